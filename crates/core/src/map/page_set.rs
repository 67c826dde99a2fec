//! A set of pages of one segment.

use crate::units::PageIndex;
use serde::{Deserialize, Serialize};

/// A set of pages of one segment, one bit per page up to the highest member.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PageSet {
    /// No zero words at the end, so that equal sets are equal here.
    words: Vec<u64>,
}

impl PageSet {
    /// Adds `count` pages from `first` on.
    pub fn insert(&mut self, first: PageIndex, count: u32) {
        if count == 0 {
            return;
        }
        let end = u64::from(first.0) + u64::from(count);
        let words = end.div_ceil(64) as usize;
        if self.words.len() < words {
            self.words.resize(words, 0);
        }
        self.each_word(u64::from(first.0), end, |word, mask| *word |= mask);
    }

    /// Takes `count` pages from `first` on out.
    pub fn remove(&mut self, first: PageIndex, count: u32) {
        let end = (u64::from(first.0) + u64::from(count)).min(self.words.len() as u64 * 64);
        self.each_word(u64::from(first.0), end, |word, mask| *word &= !mask);
        self.trim();
    }

    fn each_word(&mut self, first: u64, end: u64, mut apply: impl FnMut(&mut u64, u64)) {
        let mut at = first;
        while at < end {
            let bit = at % 64;
            let count = (64 - bit).min(end - at);
            let mask = (u64::MAX >> (64 - count)) << bit;
            apply(&mut self.words[(at / 64) as usize], mask);
            at += count;
        }
    }

    fn trim(&mut self) {
        let used = self.words.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
        self.words.truncate(used);
    }

    /// Whether a page is a member.
    #[must_use]
    pub fn contains(&self, page: PageIndex) -> bool {
        self.words.get(page.0 as usize / 64).is_some_and(|word| word >> (page.0 % 64) & 1 == 1)
    }

    /// How many members it has.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether it has none. Also right for a set that came from the wire.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The members, in order.
    pub fn iter(&self) -> impl Iterator<Item = PageIndex> + '_ {
        self.words.iter().enumerate().flat_map(|(index, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                Some(PageIndex(index as u32 * 64 + bit))
            })
        })
    }

    /// The members as runs of consecutive pages: (first, count), in order.
    pub fn runs(&self) -> impl Iterator<Item = (PageIndex, u32)> + '_ {
        let mut pages = self.iter().peekable();
        std::iter::from_fn(move || {
            let first = pages.next()?;
            let mut count = 1;
            while pages.next_if(|page| page.0 == first.0 + count).is_some() {
                count += 1;
            }
            Some((first, count))
        })
    }

    /// Adds all members of another set.
    pub fn union(&mut self, other: &Self) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (word, theirs) in self.words.iter_mut().zip(&other.words) {
            *word |= theirs;
        }
        self.trim();
    }

    /// Takes all members of another set out.
    pub fn subtract(&mut self, other: &Self) {
        for (word, theirs) in self.words.iter_mut().zip(&other.words) {
            *word &= !theirs;
        }
        self.trim();
    }

    /// Keeps only what is in the other set too.
    pub fn intersect(&mut self, other: &Self) {
        self.words.truncate(other.words.len());
        for (word, theirs) in self.words.iter_mut().zip(&other.words) {
            *word &= theirs;
        }
        self.trim();
    }
}

impl FromIterator<PageIndex> for PageSet {
    fn from_iter<T: IntoIterator<Item = PageIndex>>(pages: T) -> Self {
        let mut set = Self::default();
        for page in pages {
            set.insert(page, 1);
        }
        set
    }
}
