//! Every dependency may be used under a licence without copyleft. `deny.toml` says the same for
//! `cargo deny`, where that is installed.

use cargo_metadata::Metadata;

const ALLOWED: [&str; 13] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Checks every package that is built.
pub(super) fn check(metadata: &Metadata, breaches: &mut Vec<String>) {
    for package in &metadata.packages {
        // "/" is the old way to write OR.
        let licence = package.license.as_deref().unwrap_or("none").replace('/', " OR ");
        if !is_allowed(&licence) {
            breaches.push(format!("{} {}: licence {licence}", package.name, package.version));
        }
    }
}

/// Whether an SPDX expression can be met with the allowed licences: AND binds tighter than OR.
fn is_allowed(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    alternatives(&words, &mut at) && at == words.len()
}

fn alternatives(words: &[&str], at: &mut usize) -> bool {
    let mut allowed = all(words, at);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        allowed |= all(words, at);
    }
    allowed
}

fn all(words: &[&str], at: &mut usize) -> bool {
    let mut allowed = one(words, at);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        allowed &= one(words, at);
    }
    allowed
}

fn one(words: &[&str], at: &mut usize) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if *word == "(" {
        let allowed = alternatives(words, at);
        let closed = words.get(*at) == Some(&")");
        *at += 1;
        return allowed && closed;
    }
    let mut name = (*word).to_owned();
    if words.get(*at) == Some(&"WITH") {
        name.push_str(" WITH ");
        name.push_str(words.get(*at + 1).unwrap_or(&""));
        *at += 2;
    }
    ALLOWED.contains(&name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        for (expression, expect) in [
            ("MIT", true),
            ("GPL-3.0-only", false),
            ("MIT OR GPL-3.0-only", true),
            ("MIT AND GPL-3.0-only", false),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("(MIT OR Apache-2.0) AND MPL-2.0", false),
            ("Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT", true),
            ("GPL-2.0 WITH LLVM-exception", false),
            ("(MIT", false),
            ("none", false),
            ("", false),
        ] {
            assert_eq!(is_allowed(expression), expect, "{expression}");
        }
    }
}
