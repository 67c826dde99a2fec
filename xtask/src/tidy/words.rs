//! Words that this house does not use.

use super::Source;

/// No names for files or modules: they say nothing about what is in them.
const NAMES: [&str; 5] = ["utils", "manager", "helper", "common", "misc"];

/// Marks of unfinished work, in two halves so that this file passes.
const MARKS: [&str; 4] =
    [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")];

/// The field's word is `export`; vhost-user alone has the other.
const PHRASES: [&str; 3] =
    [concat!("front", " end"), concat!("front", "end"), concat!("back", "end")];

/// Checks names and words of every file.
pub(super) fn check(sources: &[Source], breaches: &mut Vec<String>) {
    for source in sources {
        for part in source.path.split('/') {
            let stem = part.split('.').next().unwrap_or_default();
            if stem.split(['_', '-']).any(|word| NAMES.contains(&word)) {
                breaches.push(format!("{}: `{stem}` says nothing; name its duty", source.path));
            }
        }
        let is_checked = source.is_rust() || source.is_markdown() || source.path.ends_with(".toml");
        if !is_checked {
            continue;
        }
        for (index, line) in source.text.lines().enumerate() {
            let at = format!("{}:{}", source.path, index + 1);
            for word in line.split(|c: char| !c.is_alphanumeric() && c != '_') {
                if MARKS.contains(&word) {
                    breaches.push(format!("{at}: `{word}`: finish it, or open an issue"));
                }
            }
            if let Some(phrase) = phrase(&source.path, line) {
                breaches.push(format!("{at}: `{phrase}`: say export, store, or what it is"));
            }
        }
    }
}

fn phrase(path: &str, line: &str) -> Option<&'static str> {
    // The glossary may name what it bans.
    if path.contains("vhost") || path.ends_with("glossary.md") {
        return None;
    }
    let line = line.replace(concat!("DEBIAN_FRONT", "END"), "").to_lowercase();
    if line.contains("vhost") {
        return None;
    }
    PHRASES.into_iter().find(|phrase| line.contains(phrase))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found() {
        for (path, text, breached) in [
            ("src/utils.rs", "", true),
            ("src/lock_manager.rs", "", true),
            ("src/command.rs", "", false),
            ("docs/a.md", concat!("// TO", "DO: later"), true),
            ("docs/a.md", "mastodon", false),
            ("src/a.rs", concat!("the back", "end"), true),
            ("src/vhost_user/a.rs", concat!("the back", "end"), false),
            ("a.bin", concat!("FIX", "ME"), false),
        ] {
            let source = Source { path: path.to_owned(), text: text.to_owned() };
            let mut breaches = Vec::new();
            check(&[source], &mut breaches);
            assert_eq!(!breaches.is_empty(), breached, "{path}: {breaches:?}");
        }
    }
}
