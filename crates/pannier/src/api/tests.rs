use super::*;

#[test]
fn the_description_has_every_route() {
    let description = Description::openapi();
    let paths: Vec<_> = description.paths.paths.keys().cloned().collect();
    for path in ["/v1/status", "/v1/volumes/{path}", "/v1/moves/{path}", "/v1/data/{path}"] {
        assert!(paths.iter().any(|known| known == path), "{path}: {paths:?}");
    }
    assert_eq!(description.info.title, "Pannier");
}
