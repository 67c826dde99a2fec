//! A device in memory that can be made to wait, to fail, and that counts its handles.

use bytes::Bytes;
use pannier_engine::error::{Error, ErrorKind, Result};
use pannier_engine::port::{BlockDevice, Devices, ExtentState, StatusExtent, WriteRequest};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

const BLOCK: u64 = 4096;

/// Which requests the fast path takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inline {
    Always,
    Never,
    /// Every third of them waits.
    Mostly,
}

pub(crate) struct Disk {
    pub(crate) name: String,
    pub(crate) inline: Inline,
    pub(crate) delay: Duration,
    pub(crate) fail: Option<ErrorKind>,
    pub(crate) read_only: bool,
    content: Mutex<Content>,
    calls: AtomicU64,
    pub(crate) flushes: AtomicU64,
    /// Reads that were begun and not done inline.
    pub(crate) reads: AtomicU64,
    pub(crate) handles: AtomicUsize,
}

struct Content {
    bytes: Vec<u8>,
    states: Vec<ExtentState>,
}

impl Disk {
    pub(crate) fn new(name: &str, size_bytes: u64, inline: Inline) -> Self {
        let blocks = size_bytes.div_ceil(BLOCK) as usize;
        Self {
            name: name.to_owned(),
            inline,
            delay: Duration::ZERO,
            fail: None,
            read_only: false,
            content: Mutex::new(Content {
                bytes: vec![0; size_bytes as usize],
                states: vec![ExtentState::Hole; blocks],
            }),
            calls: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            handles: AtomicUsize::new(0),
        }
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap()
    }

    pub(crate) fn snapshot(&self) -> Vec<u8> {
        self.content().bytes.clone()
    }

    fn takes(&self) -> bool {
        match self.inline {
            Inline::Always => true,
            Inline::Never => false,
            Inline::Mostly => self.calls.fetch_add(1, Ordering::Relaxed) % 3 != 2,
        }
    }

    fn check(&self) -> Result<()> {
        match self.fail {
            Some(kind) => Err(Error::new(kind, "the disk was told to fail")),
            None => Ok(()),
        }
    }

    async fn wait(&self) -> Result<()> {
        if self.delay.is_zero() {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(self.delay).await;
        }
        self.check()
    }

    fn put(&self, offset: u64, data: &[u8]) {
        let mut content = self.content();
        content.bytes[offset as usize..offset as usize + data.len()].copy_from_slice(data);
        content.mark(offset, data.len() as u64, ExtentState::Data);
    }

    fn zero(&self, offset: u64, length: u64, state: ExtentState) {
        let mut content = self.content();
        content.bytes[offset as usize..(offset + length) as usize].fill(0);
        content.mark(offset, length, state);
    }
}

impl Content {
    /// Whole blocks take the state; others that were holes become data.
    fn mark(&mut self, offset: u64, length: u64, state: ExtentState) {
        let end = offset + length;
        for block in offset / BLOCK..end.div_ceil(BLOCK) {
            let whole = block * BLOCK >= offset && (block + 1) * BLOCK <= end;
            let at = &mut self.states[block as usize];
            if whole || state == ExtentState::Data {
                *at = state;
            }
        }
    }
}

pub(crate) struct Handle(Arc<Disk>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.handles.fetch_sub(1, Ordering::SeqCst);
    }
}

impl BlockDevice for Handle {
    fn size_bytes(&self) -> u64 {
        self.0.content().bytes.len() as u64
    }

    fn read_only(&self) -> bool {
        self.0.read_only
    }

    fn try_read(&self, offset: u64, into: &mut [u8]) -> Result<bool> {
        self.0.check()?;
        if !self.0.takes() {
            into.fill(0xee);
            return Ok(false);
        }
        into.copy_from_slice(&self.0.content().bytes[offset as usize..][..into.len()]);
        Ok(true)
    }

    fn try_write(&self, writes: &[WriteRequest<'_>]) -> Result<usize> {
        self.0.check()?;
        for (count, write) in writes.iter().enumerate() {
            if !self.0.takes() {
                return Ok(count);
            }
            self.0.put(write.offset, write.data);
        }
        Ok(writes.len())
    }

    async fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.0.reads.fetch_add(1, Ordering::SeqCst);
        self.0.wait().await?;
        into.copy_from_slice(&self.0.content().bytes[offset as usize..][..into.len()]);
        Ok(())
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<()> {
        self.0.wait().await?;
        self.0.put(offset, &data);
        self.0.flushes.fetch_add(fua.into(), Ordering::SeqCst);
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        self.0.wait().await?;
        self.0.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn discard(&self, offset: u64, length: u64, _fua: bool) -> Result<()> {
        self.0.wait().await?;
        self.0.zero(offset, length, ExtentState::Hole);
        Ok(())
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        allocate: bool,
        _fua: bool,
    ) -> Result<()> {
        self.0.wait().await?;
        let state = if allocate { ExtentState::Zero } else { ExtentState::Hole };
        self.0.zero(offset, length, state);
        Ok(())
    }

    async fn block_status(
        &self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Vec<StatusExtent>> {
        self.0.wait().await?;
        let content = self.0.content();
        let mut extents = Vec::new();
        let mut at = offset;
        while at < offset + length && extents.len() < extents_max {
            let end = ((at / BLOCK + 1) * BLOCK).min(offset + length);
            extents.push(StatusExtent {
                length: end - at,
                state: content.states[(at / BLOCK) as usize],
            });
            at = end;
        }
        Ok(extents)
    }

    async fn cache(&self, _offset: u64, _length: u64) -> Result<()> {
        self.0.wait().await
    }
}

pub(crate) struct Disks(pub(crate) Vec<Arc<Disk>>);

impl Devices for Disks {
    type Device = Handle;

    async fn open(&self, name: &str) -> Result<Handle> {
        let bare = name.strip_prefix('/').unwrap_or(name);
        let found = self.0.iter().find(|disk| disk.name.trim_start_matches('/') == bare);
        let disk =
            found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no volume `{name}`")))?;
        disk.handles.fetch_add(1, Ordering::SeqCst);
        Ok(Handle(Arc::clone(disk)))
    }

    async fn names(&self) -> Result<Vec<String>> {
        Ok(self.0.iter().map(|disk| disk.name.clone()).collect())
    }
}
