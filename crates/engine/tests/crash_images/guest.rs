//! A guest with a script, and what its disk must look like.

use bytes::Bytes;
use pannier_core::ids::{RequestNumber, SessionId};
use pannier_engine::error::Result;
use pannier_engine::volume::Volume;
use pannier_engine::volume::log::Operation;
use rand::Rng;
use rand::rngs::StdRng;

/// Bytes of the disk when it is new.
pub(crate) const SIZE: usize = 1 << 20;

/// The session of forwarded requests.
pub(crate) const SESSION: SessionId = SessionId(77);

const BLOCK: usize = 4096;

/// One operation of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    Write {
        offset: usize,
        length: usize,
        fua: bool,
    },
    Zero {
        offset: usize,
        length: usize,
        discard: bool,
    },
    Flush,
    Grow {
        by: usize,
    },
    /// Writes of one forwarded request: all or none.
    Forwarded {
        number: u64,
        writes: Vec<(usize, usize)>,
    },
    /// The engine's own: a local checkpoint.
    Checkpoint,
    /// The daemon is killed and started again.
    Restart,
}

/// A script of `count` operations.
pub(crate) fn script(rng: &mut StdRng, count: usize) -> Vec<Op> {
    let mut requests = 0;
    (0..count)
        .map(|_| match rng.random_range(0..100) {
            0..55 => {
                let (offset, length) = range(rng);
                Op::Write { offset, length, fua: rng.random_bool(0.1) }
            }
            55..65 => {
                let (offset, length) = range(rng);
                Op::Zero { offset, length, discard: rng.random_bool(0.5) }
            }
            65..82 => Op::Flush,
            82..84 => Op::Grow { by: 512 * rng.random_range(1..64) },
            84..92 => {
                requests += 1;
                let mut writes: Vec<_> = (0..rng.random_range(1..4)).map(|_| range(rng)).collect();
                // One request is never longer than a segment: here that is two long ranges.
                while writes.iter().map(|(_, length)| length).sum::<usize>() > 28 * BLOCK {
                    writes.pop();
                }
                Op::Forwarded { number: requests, writes }
            }
            92..97 => Op::Checkpoint,
            _ => Op::Restart,
        })
        .collect()
}

/// A range within the disk: sometimes of sectors, mostly of blocks, mostly short.
fn range(rng: &mut StdRng) -> (usize, usize) {
    let unit = if rng.random_bool(0.3) { 512 } else { BLOCK };
    let length = unit * if rng.random_bool(0.1) { rng.random_range(1..24) } else { 1 };
    let offset = unit * rng.random_range(0..(SIZE - length) / unit);
    (offset, length)
}

/// Bytes that tell which operation wrote them, and where.
fn pattern(number: usize, offset: usize, length: usize) -> Vec<u8> {
    let sectors = offset / 512..(offset + length) / 512;
    sectors.flat_map(|sector| [(number % 251) as u8 + 1, sector as u8].repeat(256)).collect()
}

/// Has the volume do it.
pub(crate) async fn execute(volume: &Volume, number: usize, op: &Op) -> Result<()> {
    let data = |offset, length| Bytes::from(pattern(number, offset, length));
    match op {
        Op::Write { offset, length, fua } => {
            volume.write(*offset as u64, data(*offset, *length), *fua).await
        }
        Op::Zero { offset, length, discard: true } => {
            volume.discard(*offset as u64, *length as u64, false).await
        }
        Op::Zero { offset, length, discard: false } => {
            volume.write_zeroes(*offset as u64, *length as u64, true, false).await
        }
        Op::Flush => volume.flush().await,
        Op::Grow { by } => volume.resize(volume.size_bytes() + *by as u64).await,
        Op::Forwarded { number: request, writes } => {
            let operations: Vec<_> = writes
                .iter()
                .map(|(offset, length)| Operation::Write {
                    offset: *offset as u64,
                    data: data(*offset, *length),
                })
                .collect();
            let number = RequestNumber(*request);
            volume.write_in_session(SESSION, number..=number, &operations).await
        }
        Op::Checkpoint => volume.checkpoint().await.map(|_| ()),
        Op::Restart => Ok(()),
    }
}

/// Whether an acknowledged operation is durable, and all before it.
pub(crate) fn is_durable(op: &Op) -> bool {
    match op {
        Op::Write { fua, .. } => *fua,
        Op::Flush | Op::Forwarded { .. } | Op::Checkpoint => true,
        Op::Zero { .. } | Op::Grow { .. } | Op::Restart => false,
    }
}

/// The disk as the guest believes it to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expect {
    pub(crate) bytes: Vec<u8>,
    pub(crate) request: u64,
}

impl Expect {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; SIZE], request: 0 }
    }

    /// The states through which an operation may take the disk, the last being its end: a request
    /// of several blocks may end behind any of them, a forwarded one is whole.
    pub(crate) fn steps(&self, number: usize, op: &Op) -> Vec<Self> {
        let mut state = self.clone();
        let mut states = Vec::new();
        match op {
            Op::Write { offset, length, .. } => {
                let data = pattern(number, *offset, *length);
                for (from, to) in blocks(*offset, *length) {
                    state.bytes[from..to].copy_from_slice(&data[from - offset..to - offset]);
                    states.push(state.clone());
                }
            }
            // The ends, which are rewritten, and the middle, which is one entry, in any order.
            Op::Zero { offset, length, .. } => {
                let blocks: Vec<_> = blocks(*offset, *length).collect();
                let whole = |(from, to): &(usize, usize)| to - from == BLOCK;
                let (middle, ends): (Vec<_>, Vec<_>) = blocks.into_iter().partition(whole);
                for parts in 1..1_usize << (ends.len() + 1) {
                    let mut state = self.clone();
                    let chosen = ends.iter().enumerate().filter(|(n, _)| parts >> n & 1 == 1);
                    chosen.for_each(|(_, (from, to))| state.bytes[*from..*to].fill(0));
                    if parts >> ends.len() & 1 == 1 {
                        middle.iter().for_each(|(from, to)| state.bytes[*from..*to].fill(0));
                    }
                    states.push(state);
                }
            }
            Op::Grow { by } => {
                state.bytes.resize(state.bytes.len() + by, 0);
                states.push(state);
            }
            Op::Forwarded { number: request, writes } => {
                for (offset, length) in writes {
                    let data = pattern(number, *offset, *length);
                    state.bytes[*offset..offset + length].copy_from_slice(&data);
                }
                state.request = *request;
                states.push(state);
            }
            Op::Flush | Op::Checkpoint | Op::Restart => states.push(state),
        }
        states
    }
}

/// The parts of a range in its blocks.
fn blocks(offset: usize, length: usize) -> impl Iterator<Item = (usize, usize)> {
    let end = offset + length;
    (offset / BLOCK..end.div_ceil(BLOCK))
        .map(move |block| ((block * BLOCK).max(offset), ((block + 1) * BLOCK).min(end)))
}
