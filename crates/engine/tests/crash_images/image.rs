//! What a crash leaves of a recorded history.
//!
//! After the death of the process alone everything written is there, of a write under way any part.
//! After a power loss of unsynced writes any subset of sectors is there, each with any of the
//! contents that were written to it; of unsynced changes of directories, any number of the first
//! (a file system's journal keeps their order); synced ones are there.

use crate::recorder::Event;
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const SECTOR: usize = 512;

/// What died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    /// The daemon.
    Process,
    /// The host; so many percent of what was not synced survive.
    Power(u32),
}

#[derive(Debug, Default, Clone)]
struct File {
    length: u64,
    sectors: BTreeMap<u64, Vec<u8>>,
    pending: Vec<Pending>,
}

#[derive(Debug, Clone)]
struct Pending {
    begun: usize,
    offset: u64,
    data: Vec<u8>,
    done: bool,
    /// A sync has failed: no later one makes it durable.
    doomed: bool,
}

#[derive(Debug, Clone)]
enum Change {
    Link { path: PathBuf, inode: usize },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
}

impl Change {
    fn touches(&self, dir: &Path) -> bool {
        let within = |path: &Path| path.parent() == Some(dir);
        match self {
            Self::Link { path, .. } | Self::Remove { path } => within(path),
            Self::Rename { from, to } => within(from) || within(to),
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Link { path, inode } => _ = names.insert(path.clone(), *inode),
            Self::Rename { from, to } => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
            Self::Remove { path } => _ = names.remove(path),
        }
    }
}

/// The disk after a part of the history.
#[derive(Debug, Default, Clone)]
pub(crate) struct Disk {
    files: Vec<File>,
    handles: BTreeMap<u64, usize>,
    /// Names as a running process sees them.
    names: BTreeMap<PathBuf, usize>,
    /// Names that survive for certain, and the changes since.
    synced_names: BTreeMap<PathBuf, usize>,
    changes: Vec<Change>,
    /// Syncs under way: what they will cover.
    syncs: BTreeMap<usize, Covers>,
    next: usize,
    deaf: bool,
}

#[derive(Debug, Clone)]
enum Covers {
    Writes { inode: usize, begun: BTreeSet<usize> },
    Changes { count: usize },
}

impl Disk {
    /// A disk that answers a sync and does nothing.
    pub(crate) fn without_sync() -> Self {
        Self { deaf: true, ..Self::default() }
    }

    /// Takes the next event of the history in.
    pub(crate) fn step(&mut self, event: &Event) {
        let number = self.next;
        self.next += 1;
        match event {
            Event::Create { file, path, length } => {
                self.files.push(File { length: *length, ..File::default() });
                let inode = self.files.len() - 1;
                self.handles.insert(*file, inode);
                self.change(Change::Link { path: path.clone(), inode });
            }
            Event::Open { file, path } => {
                if let Some(inode) = self.names.get(path) {
                    self.handles.insert(*file, *inode);
                }
            }
            Event::Write { file, offset, data } => {
                assert_eq!(offset % SECTOR as u64, 0, "writes begin at sectors");
                let (offset, data) = (*offset, data.clone());
                let pending = Pending { begun: number, offset, data, done: false, doomed: false };
                self.file(*file).pending.push(pending);
            }
            Event::Sync { file } => {
                let inode = self.handles[file];
                let done = self.files[inode].pending.iter().filter(|w| w.done && !w.doomed);
                let begun = done.map(|write| write.begun).collect();
                self.syncs.insert(number, Covers::Writes { inode, begun });
            }
            Event::SyncFailed { file } => {
                self.file(*file).pending.iter_mut().for_each(|write| write.doomed = true);
            }
            Event::Rename { from, to } => {
                self.change(Change::Rename { from: from.clone(), to: to.clone() });
            }
            Event::Remove { path } => self.change(Change::Remove { path: path.clone() }),
            Event::SyncDir { path } => {
                // The journal keeps order: with the last change that concerns the directory, all
                // before it are durable.
                let last = self.changes.iter().rposition(|change| change.touches(path));
                let count = last.map_or(0, |last| last + 1);
                self.syncs.insert(number, Covers::Changes { count });
            }
            Event::Done { begun } => self.done(*begun),
            Event::Begun(_) | Event::Acknowledged(_) => {}
        }
    }

    fn file(&mut self, handle: u64) -> &mut File {
        &mut self.files[self.handles[&handle]]
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }

    fn done(&mut self, begun: usize) {
        match self.syncs.remove(&begun) {
            Some(Covers::Writes { .. }) if self.deaf => {}
            Some(Covers::Writes { inode, begun }) => {
                let file = &mut self.files[inode];
                let pending = std::mem::take(&mut file.pending);
                for write in pending {
                    if begun.contains(&write.begun) {
                        file.put(write.offset, &write.data);
                    } else {
                        file.pending.push(write);
                    }
                }
            }
            Some(Covers::Changes { count }) => {
                // Others may have been taken meanwhile by a sync that ended earlier.
                let count = count.min(self.changes.len());
                for change in self.changes.drain(..count) {
                    change.apply(&mut self.synced_names);
                }
                for covers in self.syncs.values_mut() {
                    if let Covers::Changes { count: other } = covers {
                        *other = other.saturating_sub(count);
                    }
                }
            }
            None => {
                let writes = self.files.iter_mut().flat_map(|file| &mut file.pending);
                writes.filter(|write| write.begun == begun).for_each(|write| write.done = true);
            }
        }
    }

    /// Writes what the crash leaves to `to`; `live` is the directory of the history.
    pub(crate) fn write_image(
        &self,
        crash: Crash,
        live: &Path,
        to: &Path,
        rng: &mut StdRng,
    ) -> io::Result<()> {
        let names = match crash {
            Crash::Process => self.names.clone(),
            Crash::Power(_) => {
                let mut names = self.synced_names.clone();
                let kept = rng.random_range(0..=self.changes.len());
                self.changes[..kept].iter().for_each(|change| change.apply(&mut names));
                names
            }
        };
        let contents: BTreeMap<usize, File> =
            names.values().map(|inode| (*inode, self.files[*inode].after(crash, rng))).collect();
        for (path, inode) in &names {
            let Ok(within) = path.strip_prefix(live) else { continue };
            let path = to.join(within);
            std::fs::create_dir_all(path.parent().unwrap_or(to))?;
            let file = std::fs::File::create(path)?;
            let content = &contents[inode];
            file.set_len(content.length)?;
            for (sector, bytes) in &content.sectors {
                file.write_all_at(bytes, sector * SECTOR as u64)?;
            }
        }
        Ok(())
    }
}

impl File {
    fn put(&mut self, offset: u64, data: &[u8]) {
        for (sector, bytes) in (offset / SECTOR as u64..).zip(data.chunks(SECTOR)) {
            let old = self.sectors.entry(sector).or_default();
            if old.len() < bytes.len() {
                old.resize(bytes.len(), 0);
            }
            old[..bytes.len()].copy_from_slice(bytes);
        }
        self.length = self.length.max(offset + data.len() as u64);
    }

    fn after(&self, crash: Crash, rng: &mut StdRng) -> Self {
        let mut file = Self { pending: Vec::new(), ..self.clone() };
        // A page has a content of its own, so what a page of a write does the next need not do.
        for write in &self.pending {
            let mut at = 0;
            while at < write.data.len() {
                let page_end = (write.offset as usize + at) / 4096 * 4096 + 4096;
                let end = (page_end - write.offset as usize).min(write.data.len());
                let survives = match crash {
                    Crash::Process => write.done || rng.random_bool(0.5),
                    Crash::Power(percent) => rng.random_ratio(percent, 100),
                };
                let torn = crash != Crash::Process && rng.random_bool(0.1);
                if torn {
                    for (number, bytes) in write.data[at..end].chunks(SECTOR).enumerate() {
                        if rng.random_bool(0.5) {
                            file.put(write.offset + (at + number * SECTOR) as u64, bytes);
                        }
                    }
                } else if survives {
                    file.put(write.offset + at as u64, &write.data[at..end]);
                }
                at = end;
            }
        }
        file
    }
}
