//! The guest's writes, zeroes, discards and sizes, and those that other hosts forward.
//!
//! A write of less than a block reads the rest of the block and appends the whole, both under the
//! sequencer's lock, so nothing can come between. When the rest is not in the page cache the lock
//! is let go, the block is read in the slow way, and all is tried again.

use super::Volume;
use super::append::{Change, Tried, Wait, is_aligned};
use super::journal::Journal;
use super::log::Operation;
use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::port::{Class, WriteRequest};
use bytes::Bytes;
use pannier_core::format::segment::PAGE_BYTES;
use pannier_core::ids::{RequestNumber, SessionId};
use pannier_core::map::{SIZE_BLOCKS_MAX, Target};
use pannier_core::units::{BLOCK_BYTES, BlockIndex, SECTOR_BYTES};
use parking_lot::MutexGuard;
use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::time::Duration;

/// Most bytes of one entry.
const ENTRY_BYTES_MAX: usize = limits::ENTRY_PAGES_MAX as usize * PAGE_BYTES;

/// Times that a write of part of a block reads the rest anew because it left the page cache.
const WARM_ROUNDS_MAX: usize = 64;

/// Most blocks of one zero or discard entry.
const RANGE_BLOCKS_MAX: u64 = 1 << 31;

impl Volume {
    /// As [`crate::port::BlockDevice::try_write`].
    ///
    /// # Errors
    /// As [`Volume::write`].
    pub fn try_write(&self, writes: &[WriteRequest<'_>]) -> Result<usize> {
        let mut journal = self.journal.lock();
        let mut done = 0;
        while done < writes.len() {
            match self.try_some(&mut journal, &writes[done..]) {
                Ok(Ok(count)) => done += count,
                Ok(Err(_wait)) => break,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Appends at least the first of the writes, if that needs no waiting.
    fn try_some(
        &self,
        journal: &mut MutexGuard<'_, Journal>,
        writes: &[WriteRequest<'_>],
    ) -> Tried<usize> {
        let write = writes[0];
        let length = write.data.len();
        self.check_range(write.offset, length as u64)?;
        if length == 0 {
            journal.check()?;
            return Ok(Ok(1));
        }
        if length > self.piece_bytes() {
            return Ok(Err(Wait::Room));
        }
        if !is_aligned(write.offset) || !is_aligned(length as u64) {
            return Ok(self.write_part(journal, write.offset, write.data)?.map(|()| 1));
        }
        if let Err(wait) = self.make_room(journal, 1, (length / PAGE_BYTES) as u32)? {
            return Ok(Err(wait));
        }
        let size = self.size_bytes();
        let fits = |write: &&WriteRequest<'_>| {
            write.data.len() <= self.piece_bytes()
                && write.offset.checked_add(write.data.len() as u64).is_some_and(|end| end <= size)
        };
        let mut bytes = 0;
        let batch = writes.iter().take_while(fits).take_while(|write| {
            bytes += write.data.len();
            bytes <= limits::BATCH_BYTES_MAX || bytes == write.data.len()
        });
        let count = batch.count();
        let appended = self.append_batch(journal, &writes[..count.max(1)])?;
        self.note_written(journal);
        Ok(Ok(appended))
    }

    /// Writes; with `fua` durable.
    ///
    /// # Errors
    /// `NoSpace`, `Closed`, `Unavailable` when the disk failed.
    pub async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<()> {
        self.check_range(offset, data.len() as u64)?;
        let mut rest = data;
        let mut at = offset;
        loop {
            // Cut at block borders, so that at most the ends are parts of blocks.
            let skew = (at % BLOCK_BYTES) as usize;
            let piece = rest.split_to(rest.len().min(self.piece_bytes() - skew));
            self.submit(|journal| self.write_part(journal, at, &piece)).await?;
            at += piece.len() as u64;
            if rest.is_empty() {
                break;
            }
        }
        if fua { self.flush_log().await } else { Ok(()) }
    }

    /// Discards a range.
    ///
    /// # Errors
    /// As [`Volume::write`].
    pub async fn discard(&self, offset: u64, length: u64, fua: bool) -> Result<()> {
        self.clear(offset, length, false, fua).await
    }

    /// Zeroes a range.
    ///
    /// # Errors
    /// As [`Volume::write`].
    pub async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        allocate: bool,
        fua: bool,
    ) -> Result<()> {
        self.clear(offset, length, allocate, fua).await
    }

    async fn clear(&self, offset: u64, length: u64, allocate: bool, fua: bool) -> Result<()> {
        self.check_range(offset, length)?;
        let end = offset + length;
        let mut at = offset;
        loop {
            let piece = (end - at).min(RANGE_BLOCKS_MAX * BLOCK_BYTES - at % BLOCK_BYTES);
            self.submit(|journal| {
                let mut changes = Vec::new();
                if let Err(wait) = self.clear_part(at, piece, allocate, &mut changes) {
                    return Ok(Err(wait));
                }
                if changes.is_empty() {
                    journal.check()?;
                    return Ok(Ok(()));
                }
                self.append(journal, &changes, None)
            })
            .await?;
            at += piece;
            if at >= end {
                break;
            }
        }
        if fua { self.flush_log().await } else { Ok(()) }
    }

    /// Grows the volume to a multiple of 512 bytes. The size that counts is the one here, which the
    /// registry may not know yet.
    ///
    /// # Errors
    /// `Invalid` for a size that is smaller or cannot be, or as [`Volume::write`].
    pub async fn resize(&self, size_bytes: u64) -> Result<()> {
        check_size(size_bytes)?;
        self.submit(|journal| {
            journal.check()?;
            let now = self.size_bytes();
            if size_bytes < now {
                let text = format!(
                    "volume {} has {now} bytes and cannot shrink to {size_bytes}; resize it to \
                     {now} or more, or copy it to a smaller volume",
                    self.id
                );
                return Err(Error::new(ErrorKind::Invalid, text));
            }
            if size_bytes == now {
                return Ok(Ok(()));
            }
            self.append(journal, &[Change::Resize { size_bytes }], None)
        })
        .await?;
        self.flush_log().await
    }

    /// Applies forwarded requests of consecutive numbers once, as one: the changes and the mark of
    /// the last number go into the log together, and are durable when this returns. Requests that
    /// were applied before (also at a former owner) are not applied again. Requests of a session
    /// are applied in the order of their numbers; those that come early wait for those before them.
    /// Of several operations only the first may cover parts of blocks: what is around the part is
    /// read before any of them is applied.
    ///
    /// # Errors
    /// As [`Volume::write`]; then it was not applied. `Unavailable` when the requests before it do
    /// not come.
    pub async fn write_in_session(
        &self,
        session: SessionId,
        numbers: RangeInclusive<RequestNumber>,
        operations: &[Operation],
    ) -> Result<()> {
        let (first, last) = numbers.into_inner();
        for operation in operations {
            let (offset, length) = match operation {
                Operation::Write { offset, data } => (*offset, data.len() as u64),
                Operation::Discard { offset, length }
                | Operation::WriteZeroes { offset, length, .. } => (*offset, *length),
            };
            self.check_range(offset, length)?;
        }
        let turn = tokio::time::timeout(
            Duration::from_millis(limits::SESSION_WAIT_MS),
            self.wait_turn(session, first),
        );
        turn.await.map_err(|elapsed| {
            let text = format!("requests of session {} before {} do not come", session.0, first.0);
            Error::new(ErrorKind::Unavailable, text).with_source(elapsed)
        })??;
        self.submit(|journal| {
            journal.check()?;
            if journal.sessions.get(&session).is_some_and(|applied| last <= *applied) {
                return Ok(Ok(()));
            }
            let mut changes = Vec::new();
            for operation in operations {
                let prepared = match operation {
                    Operation::Write { offset, data } if data.is_empty() => {
                        let _nothing = offset;
                        Ok(())
                    }
                    Operation::Write { offset, data } => {
                        self.whole_blocks(*offset, data).map(|change| changes.push(change))
                    }
                    Operation::Discard { offset, length } => {
                        self.clear_part(*offset, *length, false, &mut changes)
                    }
                    Operation::WriteZeroes { offset, length, allocate } => {
                        self.clear_part(*offset, *length, *allocate, &mut changes)
                    }
                };
                if let Err(wait) = prepared {
                    return Ok(Err(wait));
                }
            }
            self.append(journal, &changes, Some((session, last)))
        })
        .await?;
        self.session_news.notify_waiters();
        self.flush_log().await
    }

    async fn wait_turn(&self, session: SessionId, number: RequestNumber) -> Result<()> {
        loop {
            let news = self.session_news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            {
                let journal = self.journal.lock();
                journal.check()?;
                let applied = journal.sessions.get(&session).copied().unwrap_or_default();
                if number.0 <= applied.0 + 1 {
                    return Ok(());
                }
            }
            news.await;
        }
    }

    /// Tries until what the attempt waits for is there.
    async fn submit<T>(
        &self,
        mut attempt: impl FnMut(&mut MutexGuard<'_, Journal>) -> Tried<T>,
    ) -> Result<T> {
        let mut warmed = 0;
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            let tried = attempt(&mut self.journal.lock())?;
            match tried {
                Ok(done) => return Ok(done),
                Err(Wait::Room) => room.await,
                Err(Wait::Warm { offset, length }) => {
                    warmed += 1;
                    if warmed > WARM_ROUNDS_MAX {
                        let text = "a block leaves the page cache faster than it can be changed";
                        return Err(Error::new(ErrorKind::Unavailable, text));
                    }
                    let mut blocks = vec![0; length as usize];
                    self.read_waiting(offset, &mut blocks, Class::Demand).await?;
                }
            }
        }
    }

    /// Most bytes of a write that are appended at once; longer ones are cut.
    fn piece_bytes(&self) -> usize {
        let half_segment = self.context.config.segment_pages as usize / 2 * PAGE_BYTES;
        (ENTRY_BYTES_MAX / 2).min(half_segment)
    }

    fn check_range(&self, offset: u64, length: u64) -> Result<()> {
        let size = self.size_bytes();
        let sectors = offset.is_multiple_of(SECTOR_BYTES) && length.is_multiple_of(SECTOR_BYTES);
        if !sectors || offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("bytes {offset}+{length} are not sectors of a volume of {size} bytes"),
            ));
        }
        Ok(())
    }

    fn write_part(
        &self,
        journal: &mut MutexGuard<'_, Journal>,
        offset: u64,
        data: &[u8],
    ) -> Tried<()> {
        journal.check()?;
        self.check_range(offset, data.len() as u64)?;
        if data.is_empty() {
            return Ok(Ok(()));
        }
        match self.whole_blocks(offset, data) {
            Ok(change) => self.append(journal, &[change], None),
            Err(wait) => Ok(Err(wait)),
        }
    }

    /// The blocks that data touches, whole: what the data does not cover is read. The caller holds
    /// the sequencer's lock.
    fn whole_blocks<'a>(&self, offset: u64, data: &'a [u8]) -> Result<Change<'a>, Wait> {
        let first_block = BlockIndex(offset / BLOCK_BYTES);
        if is_aligned(offset) && is_aligned(data.len() as u64) {
            return Ok(Change::Data { first_block, data: Cow::Borrowed(data) });
        }
        let start = first_block.byte_offset();
        let end = (offset + data.len() as u64).next_multiple_of(BLOCK_BYTES);
        let mut blocks = vec![0; (end - start) as usize];
        let (head, tail) = ((offset - start) as usize, (offset - start) as usize + data.len());
        let last = blocks.len() - PAGE_BYTES;
        let mut read = true;
        if head > 0 {
            read &= self.read_inline(start, &mut blocks[..PAGE_BYTES]);
        }
        if tail < blocks.len() && (head == 0 || last > 0) {
            read &= self.read_inline(start + last as u64, &mut blocks[last..]);
        }
        if !read {
            return Err(Wait::Warm { offset: start, length: end - start });
        }
        blocks[head..tail].copy_from_slice(data);
        Ok(Change::Data { first_block, data: Cow::Owned(blocks) })
    }

    /// The changes that make a range read as zero. The caller holds the sequencer's lock.
    fn clear_part(
        &self,
        offset: u64,
        length: u64,
        allocate: bool,
        changes: &mut Vec<Change<'_>>,
    ) -> Result<(), Wait> {
        let size = self.size_bytes();
        let end = if offset + length == size {
            // The rest of the last block is nobody's.
            size.next_multiple_of(BLOCK_BYTES)
        } else {
            offset + length
        };
        let (first, behind) = (offset.div_ceil(BLOCK_BYTES), end / BLOCK_BYTES);
        if first > behind {
            return self.clear_within(offset, end, changes);
        }
        self.clear_within(offset, first * BLOCK_BYTES, changes)?;
        if behind > first {
            let (first_block, count) = (BlockIndex(first), (behind - first) as u32);
            changes.push(if allocate {
                Change::Zero { first_block, count }
            } else {
                Change::Discard { first_block, count }
            });
        }
        self.clear_within(behind * BLOCK_BYTES, end, changes)
    }

    /// Clears a part of one block, unless the block reads as zero already.
    fn clear_within(
        &self,
        start: u64,
        end: u64,
        changes: &mut Vec<Change<'_>>,
    ) -> Result<(), Wait> {
        let block = BlockIndex(start / BLOCK_BYTES);
        let is_data = || matches!(self.map.read().map.target(block), Target::Data(..));
        if start == end || !is_data() {
            return Ok(());
        }
        let base = block.byte_offset();
        let mut bytes = vec![0; PAGE_BYTES];
        if !self.read_inline(base, &mut bytes) {
            return Err(Wait::Warm { offset: base, length: BLOCK_BYTES });
        }
        bytes[(start - base) as usize..(end - base) as usize].fill(0);
        changes.push(Change::Data { first_block: block, data: Cow::Owned(bytes) });
        Ok(())
    }
}

/// Whether a volume can have this size.
pub(crate) fn check_size(size_bytes: u64) -> Result<()> {
    let blocks = size_bytes.div_ceil(BLOCK_BYTES);
    if size_bytes.is_multiple_of(SECTOR_BYTES) && blocks <= SIZE_BLOCKS_MAX {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Invalid,
        format!(
            "{size_bytes} bytes are no size for a volume; take a multiple of 512 up to 256 TiB"
        ),
    ))
}
