//! One page of the map: sorted runs, or one word per block once it is fragmented.

use super::Target;
use super::segments::SegmentIndex;
use crate::units::PageIndex;

/// Blocks that a page of the map covers: 16 MiB of disk.
pub const PAGE_BLOCKS: u32 = 4096;

/// Above this number of runs a page becomes dense: 16 KiB of runs against 32 KiB, but without the
/// search and the move of the tail at each insertion.
const RUNS_MAX: usize = 1024;

/// Below this number of runs a dense page becomes runs again. Far below [`RUNS_MAX`], so that a
/// page near the border does not change back and forth.
const RUNS_AGAIN: u32 = 256;

/// A target in one word: segment index above, page below; the highest index says hole or zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Packed(u64);

const SPECIAL: u64 = (u32::MAX as u64) << 32;
const HOLE: Packed = Packed(SPECIAL);
const ZERO: Packed = Packed(SPECIAL | 1);

impl Packed {
    fn new(target: Target) -> Self {
        match target {
            Target::Data(segment, page) => {
                debug_assert_ne!(segment.0, u32::MAX, "the table never gives this index out");
                Self(u64::from(segment.0) << 32 | u64::from(page.0))
            }
            Target::Zero => ZERO,
            Target::Hole => HOLE,
        }
    }

    fn target(self) -> Target {
        match self {
            HOLE => Target::Hole,
            ZERO => Target::Zero,
            Self(word) => Target::Data(SegmentIndex((word >> 32) as u32), PageIndex(word as u32)),
        }
    }

    fn plus(self, count: u32) -> Self {
        if self.0 >= SPECIAL { self } else { Self(self.0 + u64::from(count)) }
    }
}

/// A run within a page; it ends where the next one starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PageRun {
    start: u16,
    packed: Packed,
}

#[derive(Debug, Clone)]
enum Form {
    /// Sorted, gapless from block 0 on, no two neighbours that could be one.
    Runs(Vec<PageRun>),
    /// One word per block, and how many runs they make.
    Dense { blocks: Box<[Packed; PAGE_BLOCKS as usize]>, runs: u32 },
}

/// One page of the map.
#[derive(Debug, Clone)]
pub struct MapPage {
    form: Form,
}

impl MapPage {
    pub(super) fn hole() -> Self {
        Self { form: Form::Runs(vec![PageRun { start: 0, packed: HOLE }]) }
    }

    pub(super) fn is_hole(&self) -> bool {
        match &self.form {
            Form::Runs(runs) => runs.len() == 1 && runs[0].packed == HOLE,
            Form::Dense { blocks, runs } => *runs == 1 && blocks[0] == HOLE,
        }
    }

    /// How many runs the page has.
    #[must_use]
    pub fn run_count(&self) -> usize {
        match &self.form {
            Form::Runs(runs) => runs.len(),
            Form::Dense { runs, .. } => *runs as usize,
        }
    }

    /// Whether the page has one word per block.
    #[must_use]
    pub fn is_dense(&self) -> bool {
        matches!(self.form, Form::Dense { .. })
    }

    /// All runs, as (first block within the page, count, target).
    pub fn runs(&self) -> PageRuns<'_> {
        self.range(0, PAGE_BLOCKS)
    }

    /// The runs of a range of the page.
    pub(super) fn range(&self, first: u32, count: u32) -> PageRuns<'_> {
        let end = first + count;
        debug_assert!(end <= PAGE_BLOCKS);
        let at = match &self.form {
            Form::Runs(runs) => run_at(runs, first),
            Form::Dense { .. } => 0,
        };
        PageRuns { page: self, at, next: first, end }
    }

    /// What one block is.
    pub(super) fn target(&self, within: u32) -> Target {
        match &self.form {
            Form::Runs(runs) => {
                let run = runs[run_at(runs, within)];
                run.packed.plus(within - u32::from(run.start)).target()
            }
            Form::Dense { blocks, .. } => blocks[within as usize].target(),
        }
    }

    /// Says what `count` blocks from `first` on now are. `dead` hears of every run of data pages
    /// that is no longer named.
    pub(super) fn assign(
        &mut self,
        first: u32,
        count: u32,
        target: Target,
        mut dead: impl FnMut(SegmentIndex, u32),
    ) {
        if count == 0 {
            return;
        }
        for (_, count, old) in self.range(first, count) {
            if let Target::Data(segment, _) = old {
                dead(segment, count);
            }
        }
        let packed = Packed::new(target);
        match &mut self.form {
            Form::Runs(runs) => assign_runs(runs, first, first + count, packed),
            Form::Dense { blocks, runs } => {
                let (from, to) = (first as usize, (first + count) as usize);
                *runs -= borders(blocks, from, to);
                for (offset, block) in blocks[from..to].iter_mut().enumerate() {
                    *block = packed.plus(offset as u32);
                }
                *runs += borders(blocks, from, to);
            }
        }
        self.choose_form();
    }

    fn choose_form(&mut self) {
        match &self.form {
            Form::Runs(runs) if runs.len() > RUNS_MAX => {
                let mut blocks = Box::new([HOLE; PAGE_BLOCKS as usize]);
                let count = runs.len() as u32;
                for (index, run) in runs.iter().enumerate() {
                    let from = usize::from(run.start);
                    let to = runs.get(index + 1).map_or(blocks.len(), |next| next.start.into());
                    for (offset, block) in blocks[from..to].iter_mut().enumerate() {
                        *block = run.packed.plus(offset as u32);
                    }
                }
                self.form = Form::Dense { blocks, runs: count };
            }
            Form::Dense { runs, .. } if *runs < RUNS_AGAIN => {
                let again = self
                    .runs()
                    .map(|(start, _, target)| PageRun {
                        start: start as u16,
                        packed: Packed::new(target),
                    })
                    .collect();
                self.form = Form::Runs(again);
            }
            Form::Runs(_) | Form::Dense { .. } => {}
        }
    }
}

/// Index of the run that holds a block.
fn run_at(runs: &[PageRun], within: u32) -> usize {
    runs.partition_point(|run| u32::from(run.start) <= within) - 1
}

/// How many runs of a dense page start at blocks `from..=to`, where block 0 starts none.
fn borders(blocks: &[Packed; PAGE_BLOCKS as usize], from: usize, to: usize) -> u32 {
    let from = from.max(1);
    let to = to.min(blocks.len() - 1);
    (from..=to).filter(|&at| blocks[at] != blocks[at - 1].plus(1)).count() as u32
}

/// Puts one run in place of what is in `first..end`.
fn assign_runs(runs: &mut Vec<PageRun>, first: u32, end: u32, packed: Packed) {
    let from = run_at(runs, first);
    // What is left of the run that the range starts in, the new run, what follows it.
    let mut put = [PageRun { start: 0, packed: HOLE }; 3];
    let mut puts = 0;
    let mut replace_from = from;
    let head = runs[from];
    if u32::from(head.start) < first {
        if head.packed.plus(first - u32::from(head.start)) == packed {
            // The new run goes on where this one is cut.
            put[0] = head;
        } else {
            put[0] = head;
            put[1] = PageRun { start: first as u16, packed };
            puts = 1;
        }
    } else {
        put[0] = PageRun { start: first as u16, packed };
        if from > 0 {
            let before = runs[from - 1];
            if before.packed.plus(first - u32::from(before.start)) == packed {
                replace_from = from - 1;
                put[0] = before;
            }
        }
    }
    puts += 1;
    let mut replace_to = from;
    while replace_to < runs.len() && u32::from(runs[replace_to].start) < end {
        replace_to += 1;
    }
    // The last run that starts before the end may reach beyond it; a run that starts at the end may
    // be what the new one goes on as.
    let after = packed.plus(end - first);
    let runs_end = runs.get(replace_to).map_or(PAGE_BLOCKS, |run| u32::from(run.start));
    if runs_end > end {
        let last = runs[replace_to - 1];
        let rest = last.packed.plus(end - u32::from(last.start));
        if rest != after {
            put[puts] = PageRun { start: end as u16, packed: rest };
            puts += 1;
        }
    } else if let Some(next) = runs.get(replace_to)
        && next.packed == after
    {
        replace_to += 1;
    }
    runs.splice(replace_from..replace_to, put[..puts].iter().copied());
}

/// Runs of a page: (first block within the page, count, target).
#[derive(Debug, Clone)]
pub struct PageRuns<'a> {
    page: &'a MapPage,
    /// Index of the run that `next` is in; unused when dense.
    at: usize,
    next: u32,
    end: u32,
}

impl Iterator for PageRuns<'_> {
    type Item = (u32, u32, Target);

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.end {
            return None;
        }
        let first = self.next;
        let (stop, target) = match &self.page.form {
            Form::Runs(runs) => {
                let run = runs[self.at];
                self.at += 1;
                let stop = runs.get(self.at).map_or(PAGE_BLOCKS, |next| u32::from(next.start));
                (stop.min(self.end), run.packed.plus(first - u32::from(run.start)))
            }
            Form::Dense { blocks, .. } => {
                let packed = blocks[first as usize];
                let mut expect = packed.plus(1);
                let mut stop = first + 1;
                while stop < self.end && blocks[stop as usize] == expect {
                    expect = expect.plus(1);
                    stop += 1;
                }
                (stop, packed)
            }
        };
        self.next = stop;
        Some((first, stop - first, target.target()))
    }
}
