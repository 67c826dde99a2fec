//! Links in Markdown files resolve: the file is there, and so is the heading.

use super::Source;
use std::path::{Component, Path, PathBuf};

/// Checks every relative link.
pub(super) fn check(sources: &[Source], root: &Path, breaches: &mut Vec<String>) {
    for source in sources.iter().filter(|source| source.is_markdown()) {
        for link in links(&source.text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() {
                PathBuf::from(&source.path)
            } else {
                resolve(&source.path, file)
            };
            if !root.join(&target).exists() {
                breaches.push(format!("{}: link to {link}, which is not there", source.path));
                continue;
            }
            let text = sources.iter().find(|other| Path::new(&other.path) == target);
            if let Some(other) = text
                && !heading.is_empty()
                && !headings(&other.text).any(|anchor| anchor == heading)
            {
                breaches.push(format!("{}: link to {link}: no such heading", source.path));
            }
        }
    }
}

/// `file` as seen from the directory of `from`, without `..`.
fn resolve(from: &str, file: &str) -> PathBuf {
    let mut path = PathBuf::from(from);
    path.pop();
    for component in Path::new(file).components() {
        match component {
            Component::ParentDir => {
                path.pop();
            }
            Component::Normal(part) => path.push(part),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    path
}

/// Targets of the links outside code.
fn links(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced || line.starts_with("    ") {
            continue;
        }
        let mut rest = line;
        while let Some(start) = rest.find("](") {
            rest = &rest[start + 2..];
            let Some(end) = rest.find(')') else { break };
            found.push(rest[..end].split(' ').next().unwrap_or_default());
            rest = &rest[end..];
        }
    }
    found
}

/// Anchors of the headings, as GitHub makes them.
fn headings(text: &str) -> impl Iterator<Item = String> + '_ {
    text.lines().filter(|line| line.starts_with('#')).map(|line| {
        line.trim_start_matches('#')
            .trim()
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_headings() {
        let text =
            "see [a](x.md) and [b](../y.md#two-words \"title\")\n```\n[c](no)\n```\n    [d](no)\n";
        assert_eq!(links(text), ["x.md", "../y.md#two-words"]);
        assert_eq!(resolve("docs/decisions/a.md", "../y.md"), PathBuf::from("docs/y.md"));
        let anchors: Vec<_> = headings("# Two words\n## Segment: `head`\ntext").collect();
        assert_eq!(anchors, ["two-words", "segment-head"]);
    }
}
