//! Imports point down; rooms on one floor never import each other.

use cargo_metadata::Metadata;

/// Floor of each crate. A crate may import only from lower floors; a new one needs a decision
/// record and a line here.
const FLOORS: [(&str, u32); 9] = [
    ("pannier-core", 0),
    ("pannier-engine", 1),
    ("pannier-exports", 2),
    ("pannier-stores", 2),
    ("pannier-sim", 2),
    ("pannier-wan", 2),
    ("pannier", 3),
    // Outside the house: they may look into every room, and nothing imports them.
    ("pannier-e2e", 4),
    ("xtask", 4),
];

/// Crates that are never part of what ships.
const DEV_ONLY: [&str; 1] = ["pannier-sim"];

fn floor(name: &str) -> Option<u32> {
    FLOORS.iter().find(|(known, _)| *known == name).map(|(_, floor)| *floor)
}

/// Checks the imports of every crate of the workspace.
pub(super) fn check(metadata: &Metadata, breaches: &mut Vec<String>) {
    for package in metadata.workspace_packages() {
        let name = package.name.as_str();
        let Some(own) = floor(name) else {
            breaches
                .push(format!("{name}: a crate without a floor; give it one in tidy/floors.rs"));
            continue;
        };
        for dependency in &package.dependencies {
            let theirs = dependency.name.as_str();
            if let Some(breach) = breach(name, own, theirs, &dependency.kind.to_string()) {
                breaches.push(breach);
            }
        }
    }
}

fn breach(name: &str, own: u32, theirs: &str, kind: &str) -> Option<String> {
    let floor = floor(theirs)?;
    if floor >= own {
        return Some(format!("{name} (floor {own}) imports {theirs} (floor {floor})"));
    }
    if DEV_ONLY.contains(&theirs) && kind != "dev" && own < 4 {
        return Some(format!("{name} ships {theirs}, which is for development only"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_point_down() {
        for (name, theirs, kind, allowed) in [
            ("pannier-engine", "pannier-core", "normal", true),
            ("pannier-engine", "serde", "normal", true),
            ("pannier-core", "pannier-engine", "dev", false),
            ("pannier-stores", "pannier-exports", "normal", false),
            ("pannier", "pannier-wan", "normal", true),
            ("pannier", "pannier-sim", "normal", false),
            ("pannier", "pannier-sim", "dev", true),
        ] {
            let found = breach(name, floor(name).unwrap(), theirs, kind);
            assert_eq!(found.is_none(), allowed, "{name} -> {theirs} ({kind}): {found:?}");
        }
    }
}
