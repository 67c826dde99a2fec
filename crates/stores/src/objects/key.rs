//! What an object key may look like. Keys come from the engine, but also from listings and from
//! checkpoints, so they never leave the store's root.

use crate::limits::OBJECT_KEY_BYTES_MAX;
use pannier_engine::error::{Error, ErrorKind, Result};

/// Longest part of a key in bytes: a file name.
const PART_BYTES_MAX: usize = 255;

/// Checks a key: parts of printable ASCII divided by `/`, none of them empty or beginning with a
/// dot.
pub(super) fn check(key: &str) -> Result<()> {
    let cause = if key.is_empty() {
        "it is empty"
    } else if key.len() > OBJECT_KEY_BYTES_MAX {
        "it is longer than 1024 bytes"
    } else if !key.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\') {
        "it has characters other than printable ASCII"
    } else if key.split('/').any(|part| part.is_empty() || part.starts_with('.')) {
        "it has a part that is empty or begins with a dot"
    } else if key.split('/').any(|part| part.len() > PART_BYTES_MAX) {
        "it has a part longer than 255 bytes"
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Invalid, format!("object key `{}`: {cause}", key.escape_default())))
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn keys_stay_in_the_store() {
        let long = "a".repeat(256);
        for (key, good) in [
            ("volumes/1/segments/3.2-17.0.abcdef", true),
            ("a", true),
            ("", false),
            ("/a", false),
            ("a/", false),
            ("a//b", false),
            ("../a", false),
            ("a/../../b", false),
            ("a/.", false),
            (".incoming/x", false),
            ("a b", false),
            ("a\\b", false),
            ("a\0", false),
            ("ä", false),
            (long.as_str(), false),
        ] {
            assert_eq!(check(key).is_ok(), good, "{key:?}");
        }
        assert!(check(&"a/".repeat(513)).is_err());
    }
}
