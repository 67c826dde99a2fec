//! What the own site's store has of a volume's segments: a list beside the volume.
//!
//! A text file with a line per segment: its name, a space, the last part of its object's key,
//! appended to as segments are stored. A line that ends in ` damaged` says that this object does
//! not have what it should: the segment then counts as not stored, and is stored again under the
//! next generation, since keys are create-only. The damaged object stays for those of its pages
//! that have no other copy, until a published checkpoint names the segment's new generation. A
//! line without its end was being written at a crash and does not count.

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::volume::Volume;
use crate::volume::segment::{Segment, blocking};
use pannier_core::format::checkpoint::Root;
use pannier_core::format::stored::generation_of;
use pannier_core::ids::SegmentName;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// Behind the key of an object that does not have what it should.
const DAMAGED: &str = " damaged";

/// By segment.
pub(crate) type StoredList = BTreeMap<SegmentName, StoredAs>;

/// A segment's objects in the site's store, each by the last part of its key.
#[derive(Debug, Clone, Default)]
pub(crate) struct StoredAs {
    /// The one that has it; without one it is not stored.
    pub(crate) key: Option<String>,
    /// Those that were found damaged or gone.
    pub(crate) damaged: BTreeSet<String>,
}

impl StoredAs {
    fn is_damaged(&mut self, key: String) {
        self.key.take_if(|good| *good == key);
        self.damaged.insert(key);
    }

    /// The generation under which the segment is stored, or is to be.
    fn generation(&self) -> u32 {
        let spent = self.damaged.iter().filter_map(|key| generation_of(key)).max();
        let next = spent.map_or(1, |spent| spent.saturating_add(1));
        self.key.as_deref().and_then(generation_of).unwrap_or(next)
    }

    fn keys(&self) -> impl Iterator<Item = &String> {
        self.key.iter().chain(&self.damaged)
    }

    fn lines(&self, name: SegmentName) -> String {
        let damaged = self.damaged.iter().map(|key| line_of(name, key, DAMAGED));
        damaged.chain(self.key.iter().map(|key| line_of(name, key, ""))).collect()
    }
}

fn line_of(name: SegmentName, key: &str, state: &str) -> String {
    format!("{name} {key}{state}\n")
}

fn last_part(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}

/// Reads a volume's list.
pub(crate) fn read(disk: &Disk, dir: &Path) -> Result<StoredList> {
    let bytes = disk.read_file(&dir.join("stored"))?.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let whole = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    let mut list = StoredList::new();
    for (name, key) in whole.filter_map(|line| line.split_once(' ')) {
        let Ok(name) = name.parse() else { continue };
        let stored: &mut StoredAs = list.entry(name).or_default();
        match key.strip_suffix(DAMAGED) {
            Some(key) => stored.is_damaged(key.to_owned()),
            None => stored.key = Some(key.to_owned()),
        }
    }
    Ok(list)
}

impl Segment {
    /// Notes what the list says of it.
    pub(crate) fn set_listed(&self, list: &StoredList) {
        let stored = list.get(&self.name);
        self.set_generation(stored.map_or(1, StoredAs::generation));
        self.set_stored(stored.is_some_and(|stored| stored.key.is_some()));
    }
}

impl Volume {
    /// Keys of the segment's objects that may have pages of it: the good one, then damaged ones.
    pub(crate) fn objects_of(&self, segment: SegmentName) -> Vec<String> {
        let list = self.stored_list.lock();
        let keys = list.get(&segment).into_iter().flat_map(StoredAs::keys);
        keys.map(|key| self.full_key(key)).collect()
    }

    fn full_key(&self, key: &str) -> String {
        format!("volumes/{}/segments/{key}", self.id())
    }

    /// Notes, durably, that the store has a segment: from then on its file may be evicted. Blocks.
    pub(crate) fn note_stored(&self, segment: &Segment, key: &str) -> Result<()> {
        let key = last_part(key);
        let mut list = self.stored_list.lock();
        self.append_line(&line_of(segment.name, key, ""))?;
        list.entry(segment.name).or_default().key = Some(key.to_owned());
        segment.set_listed(&list);
        Ok(())
    }

    /// Notes, durably, that the object with this key does not have what it should of a segment. It
    /// then counts as not stored, and is stored again under the next generation.
    pub(crate) async fn note_damaged(&self, name: SegmentName, key: String) -> Result<()> {
        let segment = self.known(name)?;
        let _one = segment.storing.lock().await;
        self.pass_over(&segment, key).await
    }

    /// As [`Volume::note_damaged`], for whoever holds the segment's `storing`.
    pub(crate) async fn pass_over(&self, segment: &Arc<Segment>, key: String) -> Result<()> {
        let (this, segment) = (self.this()?, Arc::clone(segment));
        blocking(move || {
            let key = last_part(&key);
            let mut list = this.stored_list.lock();
            if list.get(&segment.name).is_some_and(|stored| stored.damaged.contains(key)) {
                return Ok(());
            }
            this.append_line(&line_of(segment.name, key, DAMAGED))?;
            list.entry(segment.name).or_default().is_damaged(key.to_owned());
            segment.set_listed(&list);
            Ok(())
        })
        .await
    }

    /// Objects that may be deleted once this root is published: those of segments that it condemns,
    /// and damaged ones of those that it names under a later generation.
    pub(crate) fn condemned_by(&self, root: &Root) -> Vec<(SegmentName, String)> {
        let list = self.stored_list.lock();
        let mut condemned = Vec::new();
        for name in &root.condemned {
            let keys = list.get(name).into_iter().flat_map(StoredAs::keys);
            condemned.extend(keys.map(|key| (*name, self.full_key(key))));
        }
        for live in &root.segments {
            let damaged = list.get(&live.name).into_iter().flat_map(|stored| &stored.damaged);
            let former = damaged
                .filter(|key| generation_of(key).is_some_and(|former| former < live.generation));
            condemned.extend(former.map(|key| (live.name, self.full_key(key))));
        }
        condemned
    }

    /// Notes, durably, that the store has these objects no more. Blocks.
    pub(crate) fn note_deleted(&self, objects: &[(SegmentName, String)]) -> Result<()> {
        let mut list = self.stored_list.lock();
        let mut left = list.clone();
        for (name, key) in objects {
            let Some(stored) = left.get_mut(name) else { continue };
            stored.key.take_if(|good| good == last_part(key));
            stored.damaged.remove(last_part(key));
        }
        left.retain(|_, stored| stored.keys().next().is_some());
        let lines: String = left.iter().map(|(name, stored)| stored.lines(*name)).collect();
        self.context().replace_file(&self.dir().join("stored"), lines.as_bytes())?;
        *list = left;
        Ok(())
    }

    /// Appends a line to the list's file, which the caller holds the lock of.
    fn append_line(&self, line: &str) -> Result<()> {
        let path = self.dir().join("stored");
        let disk = &self.context().disk;
        let file = if path.exists() { disk.open(&path)? } else { disk.create(&path, 0)? };
        let what = |e| Error::io(format!("append to {}", path.display()), e);
        let end = file.length().map_err(what)?;
        // What a crash has left of a line is closed, so that it spoils no other.
        let mut bytes = String::new();
        if end > 0 {
            let mut last = [0];
            file.read_at(&mut last, end - 1).map_err(what)?;
            if last != *b"\n" {
                bytes.push('\n');
            }
        }
        bytes.push_str(line);
        file.write_at(bytes.as_bytes(), end).and_then(|()| file.sync()).map_err(what)
    }
}
