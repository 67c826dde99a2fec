//! The house rules as a test: floors, lengths, links, words, licences.

mod floors;
mod lengths;
mod licences;
mod links;
mod words;

use crate::run::root;
use anyhow::{Context as _, Result, bail};
use std::path::Path;
use std::process::Command;

/// A tracked text file.
pub(crate) struct Source {
    /// Its path from the workspace's directory.
    pub(crate) path: String,
    /// Its text.
    pub(crate) text: String,
}

impl Source {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn is_markdown(&self) -> bool {
        self.path.ends_with(".md")
    }
}

/// Checks everything and prints every breach.
///
/// # Errors
/// When there is one.
pub(crate) fn run() -> Result<()> {
    println!("\n=== tidy");
    let root = root();
    let sources = sources(&root)?;
    let mut breaches = Vec::new();
    lengths::check(&sources, &root, &mut breaches)?;
    links::check(&sources, &root, &mut breaches);
    words::check(&sources, &mut breaches);
    let metadata = cargo_metadata::MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .exec()
        .context("cargo metadata failed")?;
    floors::check(&metadata, &mut breaches);
    licences::check(&metadata, &mut breaches);
    breaches.sort();
    for breach in &breaches {
        println!("{breach}");
    }
    if !breaches.is_empty() {
        bail!("tidy found {} breaches of the house rules (above)", breaches.len());
    }
    println!("{} files are tidy", sources.len());
    Ok(())
}

/// All text files that git tracks, or would track.
fn sources(root: &Path) -> Result<Vec<Source>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .current_dir(root)
        .output()
        .context("git ls-files does not start")?;
    if !output.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let names = String::from_utf8(output.stdout).context("a file's name is not UTF-8")?;
    let mut sources = Vec::new();
    for path in names.split('\0').filter(|path| !path.is_empty()) {
        // Deleted and not yet committed, or no text.
        let Ok(bytes) = std::fs::read(root.join(path)) else { continue };
        let Ok(text) = String::from_utf8(bytes) else { continue };
        sources.push(Source { path: path.to_owned(), text });
    }
    Ok(sources)
}
