//! Pages for which the disk has no space and a guest waits: read around the cache, out of memory.

use crate::limits;
use pannier_core::format::segment::PAGE_BYTES;
use pannier_core::ids::SegmentId;
use pannier_core::units::PageIndex;
use std::collections::{BTreeMap, VecDeque};

type Key = (SegmentId, PageIndex);

/// The last pages that had no place.
#[derive(Default)]
pub(super) struct Held {
    pages: BTreeMap<Key, Box<[u8]>>,
    order: VecDeque<Key>,
}

impl Held {
    /// Holds a page; the oldest leaves for it.
    pub(super) fn put(&mut self, segment: SegmentId, page: PageIndex, bytes: &[u8]) {
        assert_eq!(bytes.len(), PAGE_BYTES, "whole pages are held");
        let key = (segment, page);
        if self.pages.insert(key, bytes.into()).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > limits::HELD_PAGES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.pages.remove(&oldest);
        }
    }

    /// A page's bytes.
    pub(super) fn get(&self, segment: SegmentId, page: PageIndex) -> Option<&[u8]> {
        self.pages.get(&(segment, page)).map(|bytes| &**bytes)
    }
}
