//! Which messages of a bulk write were stored. Pure.
//!
//! Positions count from 0; the message at position p has the id `first + p`. What is stored is kept
//! as ranges: in ascending order, none empty, none touching the next.

use super::Outcome;
use crate::protocol::request::BULK_COUNT_MAX;

/// The most ranges: more than a leader makes, which stops at the first failure with at most 16,384
/// messages on the way; it bounds what a snapshot holds in one piece.
pub const RANGES_MAX: usize = 1 << 16;

/// How far a bulk write came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    first: u64,
    count: u32,
    /// Begin and end of each range.
    stored: Vec<(u32, u32)>,
}

impl Progress {
    /// Nothing is stored of `count` messages, of which the first has the id `first`; `None` unless
    /// there are 1..=1,000,000 and the ids end before the end of u64.
    pub fn new(first: u64, count: u64) -> Option<Progress> {
        first.checked_add(count.checked_sub(1)?)?;
        (count <= BULK_COUNT_MAX).then(|| Progress {
            first,
            count: count as u32,
            stored: Vec::new(),
        })
    }

    /// The lowest id.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The highest id.
    pub fn last(&self) -> u64 {
        self.first + (self.count() - 1)
    }

    /// How many messages there are.
    pub fn count(&self) -> u64 {
        u64::from(self.count)
    }

    /// The ranges of positions that are stored.
    pub fn stored(&self) -> &[(u32, u32)] {
        &self.stored
    }

    /// Whether all are stored.
    pub fn is_complete(&self) -> bool {
        self.stored == [(0, self.count)]
    }

    /// What it did when it is complete.
    pub fn outcome(&self) -> Outcome {
        let (first, last) = (self.first, self.last());
        Outcome::Bulk { first, last }
    }

    /// The position of an id.
    pub fn position(&self, id: u64) -> Option<u32> {
        let position = id.checked_sub(self.first)?;
        (position < self.count()).then_some(position as u32)
    }

    /// Whether a position is stored, and the position from which on that is not so.
    pub fn span(&self, position: u32) -> (bool, u32) {
        let next = self.next(position);
        match self.stored.get(next) {
            Some((begin, end)) if *begin <= position => (true, *end),
            Some((begin, _)) => (false, *begin),
            None => (false, self.count),
        }
    }

    /// Whether storing `begin..end` needs one range more.
    pub fn adds_range(&self, begin: u32, end: u32) -> bool {
        let next = self.next(begin);
        let follows = next > 0 && self.stored[next - 1].1 == begin;
        let precedes = self.stored.get(next).is_some_and(|range| range.0 == end);
        !follows && !precedes && !self.stored.is_empty()
    }

    /// Positions `begin..end`, of which none was, are stored.
    pub fn store(&mut self, begin: u32, end: u32) {
        assert!(begin < end && end <= self.count, "positions of the write");
        let next = self.next(begin);
        let (mut from, mut to) = (next, next);
        let (mut begin, mut end) = (begin, end);
        if let Some(range) = self.stored.get(next) {
            assert!(end <= range.0, "a position is stored once");
            if range.0 == end {
                end = range.1;
                to += 1;
            }
        }
        if next > 0 && self.stored[next - 1].1 == begin {
            begin = self.stored[next - 1].0;
            from -= 1;
        }
        self.stored.splice(from..to, [(begin, end)]);
    }

    /// The first range that ends behind `position`.
    fn next(&self, position: u32) -> usize {
        self.stored.partition_point(|range| range.1 <= position)
    }
}
