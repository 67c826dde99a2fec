use super::*;
use crate::ids::{Epoch, Incarnation, Sequence};
use proptest::prelude::*;

fn name(sequence: u64) -> SegmentName {
    SegmentName { sequence: Sequence(sequence), epoch: Epoch(1), incarnation: Incarnation(1) }
}

fn map(size_blocks: u64, segments: u64) -> (Map, Vec<SegmentIndex>) {
    let mut map = Map::new(size_blocks).unwrap();
    let indices = (1..=segments).map(|sequence| map.intern(name(sequence))).collect();
    (map, indices)
}

/// The map as one target per block, read by lookup and block by block.
fn flat(map: &Map) -> Vec<Target> {
    let mut blocks = Vec::new();
    let mut at = 0;
    while at < map.size_blocks() {
        let count = (map.size_blocks() - at).min(1 << 20) as u32;
        for run in map.lookup(BlockIndex(at), count) {
            assert_eq!(run.first_block.0, blocks.len() as u64);
            blocks.extend((0..run.count).map(|offset| run.target.plus(offset)));
        }
        at += u64::from(count);
    }
    for (block, target) in blocks.iter().enumerate() {
        assert_eq!(map.target(BlockIndex(block as u64)), *target);
    }
    blocks
}

fn check(map: &Map, model: &[Target]) {
    assert_eq!(flat(map), model);
    let mut live: BTreeMap<SegmentIndex, Vec<PageIndex>> = BTreeMap::new();
    for target in model {
        if let Target::Data(segment, page) = target {
            live.entry(*segment).or_default().push(*page);
        }
    }
    for (segment, state) in map.segments().iter() {
        let expect = live.get(&segment).map_or(0, Vec::len);
        assert_eq!(state.live_pages as usize, expect, "live pages of {}", state.name);
    }
    let found = map.live_pages();
    assert_eq!(found.len(), live.len());
    for (segment, pages) in live {
        assert_eq!(found[&segment], pages.into_iter().collect());
    }
    for page in map.pages.iter().flatten() {
        let runs: Vec<_> = page.runs().collect();
        assert_eq!(page.run_count(), runs.len());
        for pair in runs.windows(2) {
            assert_ne!(pair[0].2.plus(pair[0].1), pair[1].2, "neighbours that are one run");
        }
        assert!(!page.is_hole(), "a page that is all hole is not kept");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Assign {
        first: u64,
        count: u32,
        kind: u8,
        page: u32,
    },
    /// Every second block from `first` on, until the page changes its form.
    Scatter {
        first: u64,
        count: u32,
    },
    Resize(u64),
    Snapshot,
}

const BLOCKS_MAX: u64 = 3 * PAGE_BLOCKS as u64 + 100;

fn step() -> impl Strategy<Value = Step> {
    let assign = |counts: std::ops::Range<u32>| {
        (0..BLOCKS_MAX, counts, 0..6_u8, 0..5000_u32)
            .prop_map(|(first, count, kind, page)| Step::Assign { first, count, kind, page })
    };
    prop_oneof![
        6 => assign(0..40),
        2 => assign(0..9000),
        1 => (0..BLOCKS_MAX, 0..3000_u32).prop_map(|(first, count)| Step::Scatter { first, count }),
        1 => (0..=BLOCKS_MAX).prop_map(Step::Resize),
        1 => Just(Step::Snapshot),
    ]
}

fn target(kind: u8, page: u32, segments: &[SegmentIndex]) -> Target {
    match kind {
        0 => Target::Hole,
        1 => Target::Zero,
        kind => Target::Data(segments[usize::from(kind) - 2], PageIndex(page)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn behaves_as_an_array(steps in proptest::collection::vec(step(), 1..40)) {
        let (mut map, segments) = map(BLOCKS_MAX, 4);
        let mut model = vec![Target::Hole; BLOCKS_MAX as usize];
        // The disk as the snapshots taken so far say it, page by page.
        let mut stored: BTreeMap<u32, Vec<Target>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Assign { first, count, kind, page } => {
                    let target = target(kind, page, &segments);
                    let done = map.assign(BlockIndex(first), count, target);
                    let end = first as usize + count as usize;
                    prop_assert_eq!(done.is_ok(), end <= model.len());
                    if done.is_ok() {
                        for (offset, block) in model[first as usize..end].iter_mut().enumerate() {
                            *block = target.plus(offset as u32);
                        }
                    }
                }
                Step::Scatter { first, count } => {
                    for offset in 0..u64::from(count) {
                        let block = first + offset * 2;
                        let target = Target::Data(segments[0], PageIndex(offset as u32 * 3));
                        if block < map.size_blocks() {
                            map.assign(BlockIndex(block), 1, target).unwrap();
                            model[block as usize] = target;
                        }
                    }
                }
                Step::Resize(size) => {
                    map.resize(size).unwrap();
                    model.resize(size as usize, Target::Hole);
                }
                Step::Snapshot => {
                    prop_assert_eq!(map.dirty_count(), map.snapshot_and_merge(&mut stored));
                    let pages = map.page_count();
                    stored.retain(|index, _| *index < pages);
                    let whole: Vec<_> = (0..pages)
                        .flat_map(|index| {
                            stored.get(&index).cloned().unwrap_or_else(|| {
                                vec![Target::Hole; PAGE_BLOCKS as usize]
                            })
                        })
                        .take(model.len())
                        .collect();
                    prop_assert!(whole == model, "the snapshots together are the map");
                }
            }
        }
        check(&map, &model);
    }
}

impl Map {
    fn snapshot_and_merge(&mut self, stored: &mut BTreeMap<u32, Vec<Target>>) -> usize {
        let snapshot = self.snapshot_dirty();
        assert_eq!(self.dirty_count(), 0);
        for (index, page) in &snapshot.pages {
            match page {
                None => stored.remove(&index.0),
                Some(page) => stored.insert(
                    index.0,
                    page.runs()
                        .flat_map(|(_, count, target)| (0..count).map(move |k| target.plus(k)))
                        .collect(),
                ),
            };
        }
        snapshot.pages.len()
    }
}

#[test]
fn a_page_changes_its_form_both_ways() {
    let (mut map, segments) = map(u64::from(PAGE_BLOCKS), 2);
    let mut model = vec![Target::Hole; PAGE_BLOCKS as usize];
    let mut dense_at = None;
    for block in (0..PAGE_BLOCKS).step_by(2) {
        let target = Target::Data(segments[0], PageIndex(9000 - block));
        map.assign(BlockIndex(block.into()), 1, target).unwrap();
        model[block as usize] = target;
        if dense_at.is_none() && map.page(MapPageIndex(0)).unwrap().is_dense() {
            dense_at = Some(block);
            check(&map, &model);
        }
    }
    assert_eq!(dense_at, Some(1024), "half of 1,024 runs are holes");
    check(&map, &model);
    let all = Target::Data(segments[1], PageIndex(2));
    map.assign(BlockIndex(100), 3900, all).unwrap();
    (0..3900).for_each(|offset| model[100 + offset] = all.plus(offset as u32));
    assert!(!map.page(MapPageIndex(0)).unwrap().is_dense());
    check(&map, &model);
}

#[test]
fn a_dead_segment_is_known_at_once_and_its_index_never_comes_back() {
    let (mut map, segments) = map(100, 2);
    map.assign(BlockIndex(0), 10, Target::Data(segments[0], PageIndex(3))).unwrap();
    map.assign(BlockIndex(0), 9, Target::Data(segments[1], PageIndex(3))).unwrap();
    assert_eq!(map.segments().dead().count(), 0);
    map.assign(BlockIndex(9), 1, Target::Zero).unwrap();
    assert_eq!(map.segments().dead().collect::<Vec<_>>(), [(segments[0], name(1))]);
    let snapshot = map.snapshot_dirty();
    map.retire(segments[0]);
    assert_eq!(map.segments().get(segments[0]), None);
    assert_eq!(map.segments().len(), 1);
    assert_eq!(snapshot.segments.name(segments[0]), Some(name(1)), "a snapshot keeps the name");
    let again = map.intern(name(1));
    assert_ne!(again, segments[0]);
    assert_eq!(map.intern(name(1)), again);
}

#[test]
#[should_panic(expected = "retired while blocks name it")]
fn a_live_segment_is_not_retired() {
    let (mut map, segments) = map(100, 1);
    map.assign(BlockIndex(0), 1, Target::Data(segments[0], PageIndex(2))).unwrap();
    map.retire(segments[0]);
}

#[test]
fn live_among_agrees_with_the_walk() {
    let (mut map, segments) = map(10_000, 2);
    let wrote = [(BlockIndex(5), 10, PageIndex(2)), (BlockIndex(4090), 12, PageIndex(12))];
    for (first, count, page) in wrote {
        map.assign(first, count, Target::Data(segments[0], page)).unwrap();
    }
    map.assign(BlockIndex(7), 2, Target::Data(segments[1], PageIndex(2))).unwrap();
    map.assign(BlockIndex(4095), 2, Target::Hole).unwrap();
    let live = map.live_among(segments[0], wrote);
    assert_eq!(live, map.live_pages()[&segments[0]]);
    assert_eq!(live.len(), 18);
    assert!(live.contains(PageIndex(2)) && !live.contains(PageIndex(4)));
}

#[test]
fn what_is_out_of_range_changes_nothing() {
    let (mut map, segments) = map(100, 1);
    let data = |page| Target::Data(segments[0], PageIndex(page));
    for (first, count, target) in [
        (100, 1, Target::Zero),
        (99, 2, Target::Zero),
        (u64::MAX, 1, Target::Zero),
        (0, u32::MAX, Target::Zero),
        (0, 2, data(u32::MAX - 1)),
    ] {
        assert!(map.assign(BlockIndex(first), count, target).is_err(), "{first}+{count}");
    }
    assert_eq!(map.dirty_count(), 0);
    assert!(map.lookup(BlockIndex(u64::MAX), 7).next().is_none());
    assert_eq!(map.target(BlockIndex(100)), Target::Hole);
    assert_eq!(
        Map::new(SIZE_BLOCKS_MAX + 1).unwrap_err(),
        MapError::TooLarge { size_blocks: SIZE_BLOCKS_MAX + 1 }
    );
}

#[test]
fn a_page_cut_off_and_grown_back_is_a_change() {
    let (mut map, segments) = map(3 * u64::from(PAGE_BLOCKS), 1);
    map.assign(BlockIndex(8192), 5, Target::Data(segments[0], PageIndex(2))).unwrap();
    assert_eq!(map.snapshot_dirty().pages.len(), 1);
    map.resize(100).unwrap();
    assert_eq!(map.segments().get(segments[0]).unwrap().live_pages, 0);
    map.resize(3 * u64::from(PAGE_BLOCKS)).unwrap();
    let pages = map.snapshot_dirty().pages;
    let indices: Vec<_> = pages.iter().map(|(index, page)| (index.0, page.is_none())).collect();
    assert_eq!(indices, [(1, true), (2, true)]);
}

#[test]
fn pages_sets_agree_with_a_set() {
    let mut set = PageSet::default();
    let mut model = std::collections::BTreeSet::new();
    for (add, first, count) in [
        (true, 60, 10),
        (true, 128, 64),
        (false, 64, 2),
        (true, 500, 1),
        (false, 190, 400),
        (true, 3, 0),
        (false, 10_000, 3),
    ] {
        for page in first..first + count {
            if add {
                model.insert(page)
            } else {
                model.remove(&page)
            };
        }
        if add {
            set.insert(PageIndex(first), count);
        } else {
            set.remove(PageIndex(first), count);
        }
        assert!(set.iter().map(|page| page.0).eq(model.iter().copied()));
        assert_eq!(set.len() as usize, model.len());
        let runs: Vec<_> = set.runs().collect();
        assert!(runs.windows(2).all(|pair| pair[0].0.0 + pair[0].1 < pair[1].0.0));
        assert_eq!(runs.iter().map(|run| run.1).sum::<u32>(), set.len());
    }
    let mut other: PageSet = [PageIndex(61), PageIndex(900)].into_iter().collect();
    let whole = set.clone();
    set.union(&other);
    assert!(set.contains(PageIndex(900)) && set.len() == whole.len() + 1);
    other.subtract(&whole);
    assert_eq!(other.iter().collect::<Vec<_>>(), [PageIndex(900)]);
    set.intersect(&whole);
    assert_eq!(set, whole, "equal sets are equal whatever was in them before");
}
