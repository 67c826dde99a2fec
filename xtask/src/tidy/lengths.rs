//! Lengths of lines, functions and files. What was too long when the rule came is listed in a
//! ratchet file, where it can only shrink.

use super::Source;
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use std::path::Path;

const COLUMNS_MAX: usize = 100;
const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 600;
const RATCHET: &str = "xtask/tidy-ratchet.txt";

/// Something too long: a file by its path, a function by `path function`.
struct Long {
    what: String,
    lines: usize,
    allowed: usize,
}

/// Checks every Rust file.
///
/// # Errors
/// When the ratchet file cannot be read.
pub(super) fn check(sources: &[Source], root: &Path, breaches: &mut Vec<String>) -> Result<()> {
    let mut long = Vec::new();
    for source in sources.iter().filter(|source| source.is_rust()) {
        for (index, line) in source.text.lines().enumerate() {
            if line.chars().count() > COLUMNS_MAX && !line.contains("http") {
                let at = index + 1;
                breaches.push(format!("{}:{at}: longer than {COLUMNS_MAX} columns", source.path));
            }
        }
        let lines = source.text.lines().count();
        if lines > FILE_LINES_MAX {
            long.push(Long { what: source.path.clone(), lines, allowed: FILE_LINES_MAX });
        }
        for (name, lines) in functions(&source.text) {
            if lines > FUNCTION_LINES_MAX {
                let what = format!("{} {name}", source.path);
                long.push(Long { what, lines, allowed: FUNCTION_LINES_MAX });
            }
        }
    }
    let text = std::fs::read_to_string(root.join(RATCHET)).context(RATCHET)?;
    against_ratchet(&long, &text, breaches);
    Ok(())
}

fn against_ratchet(long: &[Long], ratchet: &str, breaches: &mut Vec<String>) {
    let mut listed: BTreeMap<&str, usize> = BTreeMap::new();
    for line in ratchet.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        match line.rsplit_once(' ').map(|(what, lines)| (what, lines.parse())) {
            Some((what, Ok(lines))) => {
                listed.insert(what, lines);
            }
            _ => breaches.push(format!("{RATCHET}: `{line}` is not `<what> <lines>`")),
        }
    }
    for Long { what, lines, allowed } in long {
        match listed.remove(what.as_str()) {
            None => breaches.push(format!("{what}: {lines} lines, more than {allowed}: split it")),
            Some(before) if *lines > before => {
                breaches
                    .push(format!("{what}: {lines} lines; it had {before} and may only shrink"));
            }
            Some(before) if *lines < before => {
                breaches.push(format!("{what}: {lines} lines now: write that into {RATCHET}"));
            }
            Some(_) => {}
        }
    }
    for what in listed.into_keys() {
        breaches.push(format!("{what}: short enough now: take it out of {RATCHET}"));
    }
}

/// Functions with their lengths in lines, from the line with `fn` to the closing brace. Relies on
/// the layout that rustfmt gives.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        if line.ends_with('}') || line.ends_with(';') {
            continue;
        }
        let end = lines[at + 1..].iter().position(|line| {
            line.strip_prefix(indent)
                .is_some_and(|rest| rest == "}" || (rest.starts_with(')') && rest.ends_with(';')))
        });
        if let Some(more) = end {
            found.push((name.to_owned(), more + 2));
        }
    }
    found
}

fn function_name(line: &str) -> Option<&str> {
    let mut words = line.trim_start().split(' ');
    loop {
        match words.next()? {
            "fn" => break,
            "async" | "const" | "unsafe" | "extern" | "\"C\"" => {}
            word if word.starts_with("pub") || word.ends_with(')') && word.starts_with("in") => {}
            _ => return None,
        }
    }
    let name = words.next()?;
    let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
    Some(&name[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_measured() {
        let text = "\
pub(crate) async fn one(
    a: u32,
) -> u32 {
    if a {
    }
}

trait T {
    fn declared(&self) -> u32;
    fn split(
        a: u32,
    ) -> u32;
    fn short() {}
    unsafe fn two<T>() {
        // fn in a comment
    }
}
";
        let expect = [("one", 6), ("split", 3), ("two", 3)];
        let expect: Vec<_> = expect.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
        assert_eq!(functions(text), expect);
    }

    #[test]
    fn the_ratchet_only_turns_one_way() {
        for (lines, listed, breached) in [
            (Some(700), "", true),
            (Some(700), "# a comment\na.rs 700", false),
            (Some(701), "a.rs 700", true),
            (Some(699), "a.rs 700", true),
            (None, "a.rs 700", true),
            (None, "", false),
            (None, "a.rs many", true),
        ] {
            let long: Vec<_> = lines
                .map(|lines| Long { what: "a.rs".to_owned(), lines, allowed: 600 })
                .into_iter()
                .collect();
            let mut breaches = Vec::new();
            against_ratchet(&long, listed, &mut breaches);
            assert_eq!(!breaches.is_empty(), breached, "{lines:?} {listed}: {breaches:?}");
        }
    }
}
