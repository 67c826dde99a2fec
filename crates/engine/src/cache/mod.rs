//! The line cache: fetched data in lines of 64 KiB, with a persisted slot table.
//!
//! Two files: `slab` has line `n` at byte `65536 n`; `slots` has its record at byte `64 n`. A
//! record is written after the line's bytes and cleared before other bytes take its place. Both go
//! to the page cache only: that survives the daemon's death. After a power loss a record may name
//! bytes that never reached the disk; every first read is checked against the block table, so that
//! is noticed and the page is fetched again.
//!
//! Lines that may not leave can take the cache beyond its bound. [`LineCache::trim`] brings it
//! back, and gives the space of free slots to the file system.

mod held;
mod slot;

use crate::context::LocalConfig;
use crate::disk::{Disk, DiskFile};
use crate::error::{Error, Result};
use held::Held;
use pannier_core::cache::{ASK_MAX, Fifo, LINE_PAGES, LineKey, Policy};
use pannier_core::format::segment::PAGE_BYTES;
use pannier_core::ids::{SegmentId, VolumeId};
use pannier_core::map::PageSet;
use pannier_core::units::PageIndex;
use parking_lot::Mutex;
use slot::{RECORD_BYTES, Record};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

const LINE_BYTES: u64 = LINE_PAGES as u64 * PAGE_BYTES as u64;

/// Free slots that are out of use at once while their space is given back: 64 MiB.
const TRIMMED_AT_ONCE: usize = 1024;

/// Whether a line of a segment may leave: its pages can be had again.
pub(crate) type MayLeave = Box<dyn Fn(&SegmentId) -> bool + Send + Sync>;

/// The host's line cache.
pub struct LineCache {
    slab: DiskFile,
    slots: DiskFile,
    lines_max: usize,
    may_leave: OnceLock<MayLeave>,
    state: Mutex<State>,
    held: Mutex<Held>,
    /// One that trims at a time.
    trimming: Mutex<()>,
}

#[derive(Default)]
struct State {
    lines: BTreeMap<LineKey, u32>,
    slots: Vec<Slot>,
    /// Free slots that may have space in the slab.
    freed: Vec<u32>,
    /// Free slots without space.
    free: Vec<u32>,
    policy: Fifo<LineKey>,
}

#[derive(Clone, Copy)]
struct Slot {
    record: Option<Record>,
    /// Pages that were not in the page cache when they were wanted: what turns up there is from the
    /// disk and has to be checked first.
    suspect: u16,
    /// Counts the lines that were here: a reader sees by it that its line has left meanwhile.
    generation: u32,
}

impl LineCache {
    /// Opens the cache's files, and knows what is in them.
    ///
    /// # Errors
    /// `NoSpace` or `Unavailable`.
    pub fn open(disk: &Disk, dir: &Path, config: &LocalConfig) -> Result<Self> {
        disk.create_dir(dir)?;
        let open = |name: &str| {
            let path = dir.join(name);
            if path.exists() { disk.open(&path) } else { disk.create(&path, 0) }
        };
        let (slab, slots) = (open("slab")?, open("slots")?);
        let mut state = State::default();
        let known = disk.read_file(&dir.join("slots"))?.unwrap_or_default();
        for (number, bytes) in known.chunks_exact(RECORD_BYTES).enumerate() {
            let record = Record::decode(bytes);
            state.slots.push(Slot { record, suspect: 0, generation: 0 });
            match record {
                Some(record) if !state.lines.contains_key(&record.key) => {
                    state.lines.insert(record.key, number as u32);
                    state.policy.insert(record.key);
                }
                _ => {
                    state.slots[number].record = None;
                    state.freed.push(number as u32);
                }
            }
        }
        let lines_max = (config.cache_bytes / LINE_BYTES).max(1) as usize;
        let state = Mutex::new(state);
        Ok(Self {
            slab,
            slots,
            lines_max,
            may_leave: OnceLock::new(),
            state,
            held: Mutex::default(),
            trimming: Mutex::default(),
        })
    }

    /// Says which lines may leave; once. Until then none does.
    pub(crate) fn set_may_leave(&self, may_leave: MayLeave) {
        assert!(self.may_leave.set(may_leave).is_ok(), "set once");
    }

    /// Bytes of lines in use.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.state.lock().lines.len() as u64 * LINE_BYTES
    }

    /// The pages of a segment that are here.
    #[must_use]
    pub fn pages_of(&self, segment: SegmentId) -> PageSet {
        let state = self.state.lock();
        let mut pages = PageSet::default();
        let all = LineKey { segment, line: 0 }..=LineKey { segment, line: u32::MAX };
        for (key, slot) in state.lines.range(all) {
            let Some(record) = state.slots[*slot as usize].record else { continue };
            for bit in (0..LINE_PAGES).filter(|bit| record.mask >> bit & 1 == 1) {
                pages.insert(key.first_page().plus(bit), 1);
            }
        }
        pages
    }

    /// Reads bytes of a segment, from byte `byte` of its file on, when all of them are here and in
    /// the page cache.
    pub fn read_cached(&self, segment: SegmentId, byte: u64, into: &mut [u8]) -> bool {
        let mut done = 0;
        while done < into.len() {
            let at = byte + done as u64;
            let within = at % LINE_BYTES;
            let length = ((LINE_BYTES - within) as usize).min(into.len() - done);
            let first = PageIndex((at / PAGE_BYTES as u64) as u32);
            let last = PageIndex(((at + length as u64 - 1) / PAGE_BYTES as u64) as u32);
            let Some((slot, generation)) = self.find(segment, first, last, true) else {
                return false;
            };
            let part = &mut into[done..done + length];
            let offset = u64::from(slot) * LINE_BYTES + within;
            let read = self.slab.is_cached(offset, length as u64)
                && self.slab.read_cached(part, offset).is_ok_and(|read| read == length);
            if !read {
                self.suspect(slot, generation, first, last);
            }
            if !read || !self.is_still(slot, generation) {
                return false;
            }
            done += length;
        }
        true
    }

    /// Reads one page, waiting for the disk; `false` when it is not here.
    pub fn read(&self, segment: SegmentId, page: PageIndex, into: &mut [u8]) -> bool {
        let Some((slot, generation)) = self.find(segment, page, page, false) else {
            let held = self.held.lock();
            let Some(bytes) = held.get(segment, page) else { return false };
            into.copy_from_slice(bytes);
            return true;
        };
        let within = u64::from(page.0 % LINE_PAGES) * PAGE_BYTES as u64;
        let offset = u64::from(slot) * LINE_BYTES + within;
        if !self.slab.is_cached(offset, into.len() as u64) {
            self.suspect(slot, generation, page, page);
        }
        let read = self.slab.read_at(into, offset);
        read.is_ok() && self.is_still(slot, generation)
    }

    fn suspect(&self, slot: u32, generation: u32, first: PageIndex, last: PageIndex) {
        let slot = &mut self.state.lock().slots[slot as usize];
        if slot.generation == generation {
            slot.suspect |= mask_of(first.0 % LINE_PAGES, last.0 % LINE_PAGES);
        }
    }

    /// Notes that a page was read by [`LineCache::read`] and is what its hash says.
    pub fn trust_page(&self, segment: SegmentId, page: PageIndex) {
        let mut state = self.state.lock();
        if let Some(number) = state.lines.get(&LineKey::of(segment, page)).copied() {
            let bit = page.0 % LINE_PAGES;
            state.slots[number as usize].suspect &= !mask_of(bit, bit);
        }
    }

    /// The slot that has these pages of one line, with its generation; `trusted` asks that none of
    /// them is suspect.
    fn find(
        &self,
        segment: SegmentId,
        first: PageIndex,
        last: PageIndex,
        trusted: bool,
    ) -> Option<(u32, u32)> {
        let key = LineKey::of(segment, first);
        let mut state = self.state.lock();
        let number = *state.lines.get(&key)?;
        let slot = state.slots[number as usize];
        let wanted = mask_of(first.0 % LINE_PAGES, last.0 % LINE_PAGES);
        if slot.record?.mask & wanted != wanted || trusted && slot.suspect & wanted != 0 {
            return None;
        }
        state.policy.touch(&key);
        Some((number, slot.generation))
    }

    fn is_still(&self, slot: u32, generation: u32) -> bool {
        self.state.lock().slots[slot as usize].generation == generation
    }

    /// Keeps verified pages, whole pages from `first` on; waits for the page cache.
    ///
    /// # Errors
    /// `NoSpace` or `Unavailable`; some of the pages may have been kept.
    pub fn insert(&self, segment: SegmentId, first: PageIndex, bytes: &[u8]) -> Result<()> {
        let mut page = first;
        let mut rest = bytes;
        while !rest.is_empty() {
            let in_line = LINE_PAGES - page.0 % LINE_PAGES;
            let count = in_line.min((rest.len() / PAGE_BYTES) as u32);
            let (part, behind) = rest.split_at(count as usize * PAGE_BYTES);
            self.insert_in_line(segment, page, count, part)
                .map_err(|e| Error::io("write to the line cache", e))?;
            page = page.plus(count);
            rest = behind;
        }
        Ok(())
    }

    /// Holds verified pages in memory for whoever waits for them: the disk has no space. They do
    /// not count as here, and soon leave.
    pub fn hold(&self, segment: SegmentId, first: PageIndex, bytes: &[u8]) {
        let mut held = self.held.lock();
        for (page, block) in (first.0..).zip(bytes.chunks_exact(PAGE_BYTES)) {
            held.put(segment, PageIndex(page), block);
        }
    }

    /// Lets go of what is held in memory.
    pub fn let_go(&self) {
        *self.held.lock() = Held::default();
    }

    fn insert_in_line(
        &self,
        segment: SegmentId,
        first: PageIndex,
        count: u32,
        bytes: &[u8],
    ) -> std::io::Result<()> {
        let key = LineKey::of(segment, first);
        let mut state = self.state.lock();
        let number = match state.lines.get(&key) {
            Some(number) => *number,
            None => {
                let number = self.take_slot(&mut state)?;
                state.slots[number as usize].record = Some(Record { key, mask: 0 });
                state.lines.insert(key, number);
                state.policy.insert(key);
                number
            }
        };
        // The bytes first, then the record. Both go to the page cache: the lock is held for
        // microseconds, and nobody else writes this line meanwhile.
        let within = first.0 % LINE_PAGES;
        let offset = u64::from(number) * LINE_BYTES + u64::from(within) * PAGE_BYTES as u64;
        self.slab.write_at(bytes, offset)?;
        let Some(record) = &mut state.slots[number as usize].record else {
            unreachable!("a line in use has a record");
        };
        let written = mask_of(within, within + count - 1);
        record.mask |= written;
        let record = *record;
        state.slots[number as usize].suspect &= !written;
        self.write_record(number, Some(record))
    }

    /// A slot without line: a free one, one whose line may leave, or a new one at the end. Beyond
    /// the bound the cache grows only by lines that may not leave, because nothing else has their
    /// bytes.
    fn take_slot(&self, state: &mut State) -> std::io::Result<u32> {
        if state.lines.len() >= self.lines_max
            && let Some(may_leave) = self.may_leave.get()
            && let Some(key) = state.policy.evict(&mut |key| may_leave(&key.segment))
        {
            self.clear(state, key)?;
        }
        if let Some(number) = state.freed.pop().or_else(|| state.free.pop()) {
            return Ok(number);
        }
        state.slots.push(Slot { record: None, suspect: 0, generation: 0 });
        Ok(state.slots.len() as u32 - 1)
    }

    /// Takes a line out; its slot is free then.
    fn clear(&self, state: &mut State, key: LineKey) -> std::io::Result<()> {
        state.policy.remove(&key);
        if let Some(number) = state.lines.remove(&key) {
            let slot = &mut state.slots[number as usize];
            slot.record = None;
            slot.suspect = 0;
            slot.generation = slot.generation.wrapping_add(1);
            state.freed.push(number);
            self.write_record(number, None)?;
        }
        Ok(())
    }

    fn write_record(&self, number: u32, record: Option<Record>) -> std::io::Result<()> {
        let bytes = record.map_or([0; RECORD_BYTES], |record| record.encode());
        self.slots.write_at(&bytes, u64::from(number) * RECORD_BYTES as u64)
    }

    /// Forgets a page whose bytes are not what they should be.
    pub fn remove_page(&self, segment: SegmentId, page: PageIndex) {
        let key = LineKey::of(segment, page);
        let mut state = self.state.lock();
        let Some(number) = state.lines.get(&key).copied() else { return };
        let slot = &mut state.slots[number as usize];
        if let Some(record) = &mut slot.record {
            record.mask &= !mask_of(page.0 % LINE_PAGES, page.0 % LINE_PAGES);
        }
        let record = slot.record;
        warn_of(self.write_record(number, record));
    }

    /// Forgets all lines of a segment.
    pub fn remove_segment(&self, segment: SegmentId) {
        self.remove(LineKey { segment, line: 0 }, |key| key.segment == segment);
    }

    /// Brings the cache back to its bound, as far as lines may leave, and gives the space of free
    /// slots to the file system. Waits for the disk.
    pub fn trim(&self) {
        let _one = self.trimming.lock();
        self.shed();
        loop {
            // Nobody else has them meanwhile.
            let mut slots = {
                let mut state = self.state.lock();
                let kept = state.freed.len().saturating_sub(TRIMMED_AT_ONCE);
                state.freed.split_off(kept)
            };
            if slots.is_empty() {
                return;
            }
            slots.sort_unstable();
            for run in slots.chunk_by(|a, b| a + 1 == *b) {
                let (first, count) = (u64::from(run[0]), run.len() as u64);
                if let Err(error) = self.slab.punch(first * LINE_BYTES, count * LINE_BYTES) {
                    tracing::debug!(%error, "free lines of the cache keep their space");
                }
            }
            self.state.lock().free.append(&mut slots);
        }
    }

    /// Takes lines out that may leave, until the bound holds again.
    fn shed(&self) {
        let Some(may_leave) = self.may_leave.get() else { return };
        let mut asked = 0;
        loop {
            let mut state = self.state.lock();
            if state.lines.len() <= self.lines_max || asked > 2 * state.lines.len() {
                return;
            }
            match state.policy.evict(&mut |key| may_leave(&key.segment)) {
                Some(key) => warn_of(self.clear(&mut state, key)),
                None => asked += ASK_MAX,
            }
        }
    }

    /// Forgets all lines of a volume.
    pub fn remove_volume(&self, volume: VolumeId) {
        let name = pannier_core::ids::SegmentName {
            sequence: pannier_core::ids::Sequence(0),
            epoch: pannier_core::ids::Epoch(0),
            incarnation: pannier_core::ids::Incarnation(0),
        };
        let from = LineKey { segment: SegmentId { volume, name }, line: 0 };
        self.remove(from, |key| key.segment.volume == volume);
    }

    fn remove(&self, from: LineKey, which: impl Fn(&LineKey) -> bool) {
        let mut state = self.state.lock();
        let lines = state.lines.range(from..).map(|(key, _)| *key);
        let gone: Vec<LineKey> = lines.take_while(which).collect();
        for key in gone {
            warn_of(self.clear(&mut state, key));
        }
    }
}

/// A record that cannot be cleared is harmless: what it names is checked when it is read.
fn warn_of(result: std::io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, "a slot of the line cache cannot be written");
    }
}

/// Bits of the pages from `first` through `last` of a line.
fn mask_of(first: u32, last: u32) -> u16 {
    let count = last - first + 1;
    ((u32::from(u16::MAX) >> (LINE_PAGES - count)) << first) as u16
}

#[cfg(test)]
mod tests;
