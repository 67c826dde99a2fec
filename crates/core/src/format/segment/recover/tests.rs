//! Crash images of one segment file: every mix of its unsynced page writes, exhaustively for short
//! scripts and by sampling for long ones, opened and checked against what was written.

use super::*;
use crate::format::segment::{Link, SegmentWriter};
use crate::ids::{RequestNumber, SegmentName, SessionId, VolumeId};
use crate::units::BlockIndex;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::convert::Infallible;

const KEY: HashKey = HashKey([7; 32]);
const NONCE: u64 = 0x5eed;

/// One step of the segment's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Data of so many pages.
    Data(u32),
    /// Two entries that count only together.
    Joined,
    Zero,
    BeginFlush,
    /// A flush begins without closing the group: what the protocol forbids.
    BeginFlushCarelessly,
    EndFlush,
    Seal,
}
use Step::*;

/// What an earlier use of the file left in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leftover {
    Zeroes,
    /// The same script with other data.
    Other,
    /// The same script with the same data, so that data CRCs hold; further entries behind.
    Same,
}

/// A segment file with the writes that no flush has covered.
struct Model {
    header: Header,
    writer: SegmentWriter,
    /// Content when everything that was synced, and nothing else, is on the medium.
    synced: Vec<u8>,
    unsynced: Vec<(PageIndex, Vec<u8>)>,
    /// Every entry with its data.
    written: Vec<(Entry, Vec<u8>)>,
    acknowledged: usize,
    flush: Option<(u32, usize)>,
    salt: u8,
}

fn header(nonce: u64, capacity_pages: u32) -> Header {
    let name: SegmentName = "3.2-17".parse().unwrap();
    let predecessor = Some("3.2-16".parse().unwrap());
    Header { volume: VolumeId(5), name, nonce, predecessor, capacity_pages }
}

impl Model {
    fn new(file: Vec<u8>, nonce: u64, salt: u8) -> Self {
        let header = header(nonce, (file.len() / PAGE_BYTES) as u32);
        let mut model = Self {
            header,
            writer: SegmentWriter::new(header, Link { entries: 9, chain_crc: 0xc0ffee }),
            synced: file,
            unsynced: Vec::new(),
            written: Vec::new(),
            acknowledged: 0,
            flush: None,
            salt,
        };
        model.write(PageIndex(0), &header.encode()[..]);
        model.write(SEAL_PAGE, &[0; PAGE_BYTES]);
        model.sync(2);
        model
    }

    /// The script over what `leftover` says is in the file.
    fn run(script: &[Step], leftover: Leftover, capacity_pages: u32) -> Self {
        let blank = vec![0; capacity_pages as usize * PAGE_BYTES];
        let earlier = |salt| {
            let mut earlier = Self::new(blank.clone(), NONCE + 1, salt);
            let goes_on = [Data(1), Zero, Data(1)];
            let (sealed, steps) = (script.contains(&Seal), script.iter().filter(|s| **s != Seal));
            steps.chain(&goes_on).for_each(|step| earlier.step(*step));
            if sealed {
                earlier.step(Seal);
            }
            earlier.sync(earlier.unsynced.len());
            earlier.synced
        };
        let file = match leftover {
            Leftover::Zeroes => blank,
            Leftover::Other => earlier(1),
            Leftover::Same => earlier(0),
        };
        let mut model = Self::new(file, NONCE, 0);
        script.iter().for_each(|step| model.step(*step));
        model
    }

    fn write(&mut self, page: PageIndex, bytes: &[u8]) {
        for (index, bytes) in bytes.chunks_exact(PAGE_BYTES).enumerate() {
            self.unsynced.push((page.plus(index as u32), bytes.to_vec()));
        }
    }

    fn sync(&mut self, writes: usize) {
        for (page, bytes) in self.unsynced.drain(..writes) {
            let at = page.byte_offset() as usize;
            self.synced[at..at + PAGE_BYTES].copy_from_slice(&bytes);
        }
    }

    fn append(&mut self, kind: EntryKind, joined: bool, data: Vec<u8>) {
        let Ok(appended) = self.writer.append(kind, joined) else { return };
        self.write(appended.page, &data);
        let descriptors: Vec<_> =
            self.writer.unwritten().map(|(page, bytes)| (page, bytes.to_vec())).collect();
        self.writer.mark_written();
        self.unsynced.extend(descriptors);
        self.written.push((self.writer.entries_from(appended.entry_index)[0], data));
    }

    fn append_data(&mut self, pages: u32, joined: bool) {
        let number = self.written.len();
        let data: Vec<u8> = (0..pages as usize * PAGE_BYTES)
            .map(|at| (at / PAGE_BYTES + 3 * number + at % 251) as u8 ^ self.salt)
            .collect();
        let kind = EntryKind::Data {
            first_block: BlockIndex(number as u64 * 8),
            count: pages,
            page: PageIndex(0),
            data_crc: super::super::crc32c(&data),
        };
        self.append(kind, joined, data);
    }

    fn step(&mut self, step: Step) {
        match step {
            Data(pages) => self.append_data(pages, false),
            Joined => {
                if self.writer.has_room(2, 1) {
                    self.append_data(1, true);
                    let (session, request) = (SessionId(1), RequestNumber(2));
                    self.append(EntryKind::SessionMark { session, request }, false, Vec::new());
                }
            }
            Zero => {
                let first_block = BlockIndex(self.written.len() as u64);
                self.append(EntryKind::Zero { first_block, count: 3 }, false, Vec::new());
            }
            BeginFlush => self.flush = Some((self.writer.begin_flush(), self.unsynced.len())),
            BeginFlushCarelessly => {
                self.flush = Some((self.writer.entries(), self.unsynced.len()));
            }
            EndFlush => {
                if let Some((entries, writes)) = self.flush.take() {
                    self.sync(writes);
                    self.writer.flush_covers(entries);
                    self.acknowledged = entries as usize;
                }
            }
            Seal => {
                let table = self.written.iter().flat_map(|(_, data)| {
                    data.chunks_exact(PAGE_BYTES).map(|block| KEY.block(block))
                });
                let sealing = self.writer.seal(table.collect(), &KEY);
                self.write(sealing.page(), sealing.bytes());
                self.write(SEAL_PAGE, &sealing.record()[..]);
            }
        }
    }

    /// Opens a crash image by `rules`; says what is wrong with the outcome.
    fn check(&self, rules: Rules, image: &[u8]) -> Result<(), String> {
        let header = Header::decode(&image[..PAGE_BYTES]).map_err(|error| error.to_string())?;
        assert_eq!(header, self.header);
        let mut read = |page: PageIndex, into: &mut [u8]| -> Result<(), Infallible> {
            let at = page.byte_offset() as usize;
            into.copy_from_slice(&image[at..at + into.len()]);
            Ok(())
        };
        let Ok(recovered) = recover_by(rules, header, &KEY, &mut read);
        let (entries, sealed) = match &recovered {
            Recovered::Sealed(sealed) => (sealed.meta.entries(), true),
            Recovered::Open(open) => {
                if open.is_damaged() {
                    return Err("a crash was taken for damage".into());
                }
                (open.entries(), false)
            }
        };
        if sealed && entries.len() != self.written.len() {
            return Err("sealed, but not whole".into());
        }
        if entries.len() < self.acknowledged || entries.len() > self.written.len() {
            let (found, written) = (entries.len(), self.written.len());
            return Err(format!("{found} of {written} entries, {} flushed", self.acknowledged));
        }
        if entries.last().is_some_and(|entry| entry.joined) {
            return Err("half a joined request".into());
        }
        for (entry, (written, data)) in entries.iter().zip(&self.written) {
            if entry != written {
                return Err(format!("{entry:?} was never written there"));
            }
            if let EntryKind::Data { page, .. } = entry.kind {
                let at = page.byte_offset() as usize;
                if image[at..at + data.len()] != data[..] {
                    return Err(format!("{entry:?} has other data"));
                }
            }
        }
        Ok(())
    }

    /// The units of the unsynced pages that a crash decides one by one, with the contents that each
    /// can have.
    fn units(&self, tear: Tear) -> Vec<Unit> {
        let mut versions: BTreeMap<PageIndex, Vec<&[u8]>> = BTreeMap::new();
        for (page, bytes) in &self.unsynced {
            let at = page.byte_offset() as usize;
            let synced = &self.synced[at..at + PAGE_BYTES];
            versions.entry(*page).or_insert_with(|| vec![synced]).push(bytes);
        }
        let mut units = Vec::new();
        for (page, versions) in versions {
            let is_descriptor = versions[1].starts_with(b"PNR-GROU");
            for (start, end) in tear.cuts(is_descriptor) {
                let mut contents: Vec<Vec<u8>> = Vec::new();
                for version in &versions {
                    let content = version[start..end].to_vec();
                    if !contents.contains(&content) {
                        contents.push(content);
                    }
                }
                if contents.len() > 1 {
                    units.push(Unit { at: page.byte_offset() as usize + start, contents });
                }
            }
        }
        units
    }
}

/// Bytes that reach the medium together, or not.
#[derive(Debug)]
struct Unit {
    at: usize,
    contents: Vec<Vec<u8>>,
}

/// How finely a page tears.
#[derive(Debug, Clone, Copy)]
enum Tear {
    /// Descriptors at every half header and at each of the first so many entries; other pages
    /// in the middle.
    Entries(usize),
    /// Every page at its sectors.
    Sectors,
    /// Not at all.
    Pages,
}

impl Tear {
    fn cuts(self, is_descriptor: bool) -> Vec<(usize, usize)> {
        let mut cuts: Vec<usize> = match self {
            Self::Entries(entries) if is_descriptor => (0..=entries + 2).map(|n| n * 32).collect(),
            Self::Entries(_) => vec![0, PAGE_BYTES / 2],
            Self::Sectors => (0..8).map(|n| n * 512).collect(),
            Self::Pages => vec![0],
        };
        cuts.push(PAGE_BYTES);
        cuts.windows(2).map(|cut| (cut[0], cut[1])).collect()
    }
}

/// Checks every mix of the units; returns the number of images, or the first that is wrong.
fn enumerate(model: &Model, tear: Tear, rules: Rules) -> Result<usize, String> {
    let units = model.units(tear);
    let mut choice = vec![0; units.len()];
    let mut image = model.synced.clone();
    let mut images = 0;
    loop {
        model.check(rules, &image).map_err(|error| format!("{error}; units {choice:?}"))?;
        images += 1;
        // Counts up; only the units that change are written.
        let mut digit = 0;
        loop {
            let Some(unit) = units.get(digit) else { return Ok(images) };
            choice[digit] = (choice[digit] + 1) % unit.contents.len();
            let content = &unit.contents[choice[digit]];
            image[unit.at..unit.at + content.len()].copy_from_slice(content);
            if choice[digit] != 0 {
                break;
            }
            digit += 1;
        }
    }
}

const CAPACITY: u32 = 16;

/// Short scripts that have, between them, every situation of the case list in `docs/formats.md`.
const SCRIPTS: [&[Step]; 10] = [
    &[Data(1)],
    &[Data(2), Data(1)],
    &[Data(1), Zero, Data(1)],
    &[Joined, Data(1)],
    &[Data(1), BeginFlush, EndFlush, Data(1), Zero],
    &[Data(1), BeginFlush, Data(1), EndFlush, Data(1)],
    &[Data(1), BeginFlush, Zero, BeginFlush, Data(1)],
    &[Zero, BeginFlush, Joined, EndFlush, Zero, BeginFlush, Data(1)],
    &[Data(1), BeginFlush, EndFlush, Data(1), Seal],
    &[Data(1), Zero, Seal],
];

const LEFTOVERS: [Leftover; 3] = [Leftover::Zeroes, Leftover::Other, Leftover::Same];

#[test]
fn every_crash_image_of_short_scripts_is_a_prefix() {
    let mut images = 0;
    for script in SCRIPTS {
        for leftover in LEFTOVERS {
            let model = Model::run(script, leftover, CAPACITY);
            let checked = enumerate(&model, Tear::Entries(4), RULES);
            images += checked.unwrap_or_else(|error| panic!("{script:?} {leftover:?}: {error}"));
        }
    }
    assert!(images > 20_000, "only {images} images: the scripts do not exercise much");
}

/// Whether any crash image of the scripts is wrong.
fn counterexample(rules: Rules, tear: Tear) -> bool {
    SCRIPTS.iter().any(|script| {
        LEFTOVERS.iter().any(|leftover| {
            enumerate(&Model::run(script, *leftover, CAPACITY), tear, rules).is_err()
        })
    })
}

#[test]
fn without_the_chain_a_wrong_log_is_found() {
    assert!(counterexample(Rules { chain: false, ..RULES }, Tear::Entries(4)));
}

#[test]
fn without_the_data_crc_a_wrong_log_is_found() {
    assert!(counterexample(Rules { data: false, ..RULES }, Tear::Pages));
}

/// A write that is under way when power fails may spoil its whole page, whatever was there before:
/// nothing that is flushed may stand on a page that is written again.
fn spoil_each_unsynced_page(script: &[Step]) -> Result<(), String> {
    let model = Model::run(script, Leftover::Same, CAPACITY);
    for (page, _) in &model.unsynced {
        let mut image = model.synced.clone();
        let at = page.byte_offset() as usize;
        image[at..at + PAGE_BYTES].fill(0x6b);
        model.check(RULES, &image)?;
    }
    Ok(())
}

#[test]
fn a_spoilt_page_takes_nothing_that_was_flushed() {
    for script in SCRIPTS {
        spoil_each_unsynced_page(script).unwrap_or_else(|error| panic!("{script:?}: {error}"));
    }
    // The same shows why a group is closed when a flush begins, not when it ends.
    let careless = [Data(1), BeginFlushCarelessly, Data(1), EndFlush];
    assert!(spoil_each_unsynced_page(&careless).is_err());
}

#[test]
fn what_lies_behind_a_break_is_reported() {
    let script = [Data(1), BeginFlush, Data(1), Data(1), BeginFlush, Data(1), Zero];
    let model = Model::run(&script, Leftover::Same, CAPACITY);
    // Everything reaches the medium except the data of the second entry.
    let mut image = model.synced.clone();
    for (page, bytes) in &model.unsynced {
        let at = page.byte_offset() as usize;
        image[at..at + PAGE_BYTES].copy_from_slice(bytes);
    }
    let EntryKind::Data { page, .. } = model.written[1].0.kind else { panic!("data") };
    image[page.byte_offset() as usize] ^= 1;
    let read = |page: PageIndex, into: &mut [u8]| -> Result<(), Infallible> {
        let at = page.byte_offset() as usize;
        into.copy_from_slice(&image[at..at + into.len()]);
        Ok(())
    };
    let Ok(Recovered::Open(open)) = recover(&image[..PAGE_BYTES], &KEY, read) else {
        panic!("not open")
    };
    assert_eq!(open.entries().len(), 1);
    assert_eq!(open.behind(), Some(Behind { entries: 4 }));
    assert!(!open.is_damaged());
    assert!(open.precedes(open.next_link()));
    let lost = Link { entries: 3, chain_crc: model.written[2].0.chain_crc };
    assert!(!open.precedes(lost));
}

#[test]
fn a_damaged_descriptor_of_flushed_entries_is_damage_not_an_end() {
    let script = [Data(1), BeginFlush, EndFlush, Data(1), BeginFlush, EndFlush, Data(1)];
    let mut model = Model::run(&script, Leftover::Same, CAPACITY);
    model.sync(model.unsynced.len());
    model.synced[FIRST_GROUP_PAGE.byte_offset() as usize + 40] ^= 1;
    assert_eq!(model.check(RULES, &model.synced), Err("a crash was taken for damage".into()));
}

#[test]
fn a_sealed_segment_survives_damage_of_index_and_table() {
    let script = [Data(2), BeginFlush, EndFlush, Zero, Data(1), Joined, Seal];
    let mut model = Model::run(&script, Leftover::Other, CAPACITY);
    model.sync(model.unsynced.len());
    let tail = model.writer.tail();
    let sound = model.synced.clone();
    for (spoilt, repaired) in [
        (vec![], false),
        (vec![tail], true),
        (vec![tail.plus(1)], true),
        (vec![tail, tail.plus(1)], true),
    ] {
        let mut image = sound.clone();
        for page in &spoilt {
            image[page.byte_offset() as usize + 17] ^= 0x40;
        }
        model.check(RULES, &image).unwrap();
        let read = |page: PageIndex, into: &mut [u8]| -> Result<(), Infallible> {
            let at = page.byte_offset() as usize;
            into.copy_from_slice(&image[at..at + into.len()]);
            Ok(())
        };
        let Ok(Recovered::Sealed(sealed)) = recover(&image[..PAGE_BYTES], &KEY, read) else {
            panic!("not sealed: {spoilt:?}")
        };
        assert_eq!(sealed.repair.is_some(), repaired, "{spoilt:?}");
        if let Some(repair) = sealed.repair {
            let at = repair.page().byte_offset() as usize;
            image[at..at + repair.bytes().len()].copy_from_slice(repair.bytes());
            assert!(image == sound, "the repair restores the file: {spoilt:?}");
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1..4_u32).prop_map(Data),
        6 => Just(Data(1)),
        3 => Just(Zero),
        2 => Just(Joined),
        2 => Just(BeginFlush),
        1 => Just(EndFlush),
    ];
    (prop::collection::vec(step, 1..160), any::<bool>()).prop_map(|(mut steps, seal)| {
        steps.extend(seal.then_some(Seal));
        steps
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Long scripts, with groups that fill up: random mixes of the sectors of unsynced pages.
    #[test]
    fn crash_images_of_long_scripts_are_prefixes(
        script in steps(),
        leftover in prop::sample::select(LEFTOVERS.to_vec()),
        seed in any::<u64>(),
        survival in 1..20_u64,
    ) {
        let model = Model::run(&script, leftover, 256);
        let units = model.units(Tear::Sectors);
        let mut state = seed | 1;
        for _ in 0..8 {
            let mut image = model.synced.clone();
            for unit in &units {
                // xorshift64*; most units survive, so that breaks come late as well as early.
                state ^= state >> 12;
                state ^= state << 25;
                state ^= state >> 27;
                let draw = state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
                let pick = if draw % survival == 0 {
                    (draw / survival) as usize % unit.contents.len()
                } else {
                    unit.contents.len() - 1
                };
                let content = &unit.contents[pick];
                image[unit.at..unit.at + content.len()].copy_from_slice(content);
            }
            if let Err(error) = model.check(RULES, &image) {
                return Err(TestCaseError::fail(error));
            }
        }
    }
}
