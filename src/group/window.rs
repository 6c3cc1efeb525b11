//! The recent end of the Raft log in memory, bounded by bytes. Pure.
//!
//! It holds a contiguous run of entries behind a *base*, the (index, term) of the entry before the
//! first one, which Raft still has to be able to match. New entries may not have reached the disk
//! yet. Old entries leave from the front, but never one that is not applied.
//!
//! Invariants: entry `i` has index `base.index + 1 + i`; terms never fall from one entry to the
//! next; the bytes of *applied* entries that stay are at most the limit.

use std::collections::VecDeque;

use bytes::Bytes;

/// What an entry costs beside its data: its place in the deque and the header of its buffer.
const ENTRY_OVERHEAD_BYTES: usize = 96;

/// What an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// For the state machine, or empty.
    Command,
    /// Changes who takes part in the group; its data belongs to `group::core`.
    Configuration,
}

/// Entries that a peer which catches up still needs may take so many times the usual bytes: what is
/// written while it gets a snapshot must be there when it has it, or it needs another one.
const WANTED_FACTOR: usize = 16;

/// One entry of the Raft log. Cloning shares the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// What it is for.
    pub kind: EntryKind,
    /// Its position in the log.
    pub index: u64,
    /// The term of the Raft leader that made it.
    pub term: u64,
    /// What was proposed; empty for the entry with which a Raft leader begins its term.
    pub data: Bytes,
}

impl LogEntry {
    fn cost(&self) -> usize {
        self.data.len() + ENTRY_OVERHEAD_BYTES
    }
}

/// A position in the log: an index and the term of the entry there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Raft index.
    pub index: u64,
    /// Raft term.
    pub term: u64,
}

/// The recent entries.
#[derive(Clone, Debug)]
pub struct Window {
    /// The position before the first entry.
    base: Position,
    /// Contiguous, from `base.index + 1`.
    entries: VecDeque<LogEntry>,
    /// The cost of all entries, in bytes.
    bytes: usize,
    /// How many bytes of applied entries may stay.
    bytes_max: usize,
}

impl Window {
    /// An empty window behind `base`, which keeps up to `bytes_max` bytes of applied entries.
    pub fn new(base: Position, bytes_max: usize) -> Window {
        Window {
            base,
            entries: VecDeque::new(),
            bytes: 0,
            bytes_max,
        }
    }

    /// The index of the first entry held, or that the next one will have.
    pub fn first_index(&self) -> u64 {
        self.base.index + 1
    }

    /// The index of the last entry held, or of the base.
    pub fn last_index(&self) -> u64 {
        self.base.index + self.entries.len() as u64
    }

    /// The last entry's position, or the base.
    pub fn last(&self) -> Position {
        self.entries.back().map_or(self.base, |entry| Position {
            index: entry.index,
            term: entry.term,
        })
    }

    /// What the entries cost in memory, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The entry at `index`, if it is held.
    pub fn entry(&self, index: u64) -> Option<&LogEntry> {
        let offset = index.checked_sub(self.first_index())?;
        self.entries.get(usize::try_from(offset).ok()?)
    }

    /// The term at `index`, which may be the base.
    pub fn term(&self, index: u64) -> Option<u64> {
        if index == self.base.index {
            return Some(self.base.term);
        }
        self.entry(index).map(|entry| entry.term)
    }

    /// Adds an entry. It overrides the one with its index, if there is one, and all behind that.
    ///
    /// The caller has checked that the index is in `first_index()..=last_index() + 1`, and that the
    /// term does not fall.
    pub fn push(&mut self, entry: LogEntry) {
        assert!(
            entry.index >= self.first_index() && entry.index <= self.last_index() + 1,
            "entry {} does not continue the window {}..={}",
            entry.index,
            self.first_index(),
            self.last_index(),
        );
        while self.last_index() >= entry.index {
            let overridden = self.entries.pop_back().expect("the last index is an entry");
            self.bytes -= overridden.cost();
        }
        assert!(
            entry.term >= self.last().term,
            "entry {} has term {} after term {}",
            entry.index,
            entry.term,
            self.last().term,
        );
        self.bytes += entry.cost();
        self.entries.push_back(entry);
    }

    /// Makes `position` the base: the entries up to it leave. The caller knows that it is the log's
    /// position at that index, between the base and the last entry.
    pub fn rebase(&mut self, position: Position) {
        assert!(
            (self.base.index..=self.last_index()).contains(&position.index),
            "{position:?} is outside the window {}..={}",
            self.first_index(),
            self.last_index(),
        );
        while self.first_index() <= position.index {
            let oldest = self.entries.pop_front().expect("it is in the window");
            self.bytes -= oldest.cost();
            self.base.index += 1;
        }
        self.base = position;
    }

    /// Forgets everything: the log begins anew behind `position`.
    pub fn reset(&mut self, position: Position) {
        self.entries.clear();
        self.bytes = 0;
        self.base = position;
    }

    /// Drops the oldest entries while there are too many bytes, none above `applied`; those above
    /// `wanted` only when there are very many. `bytes_max` may lower the limit.
    pub fn trim(&mut self, applied: u64, wanted: u64, bytes_max: usize) {
        let unwanted_max = self.bytes_max.min(bytes_max);
        let bytes_max = |index| match index > wanted {
            true => self.bytes_max.saturating_mul(WANTED_FACTOR),
            false => unwanted_max,
        };
        while self.first_index() <= applied && self.bytes > bytes_max(self.first_index()) {
            let Some(oldest) = self.entries.pop_front() else {
                return;
            };
            self.bytes -= oldest.cost();
            self.base = Position {
                index: oldest.index,
                term: oldest.term,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> LogEntry {
        let data = Bytes::from_static(b"0123");
        let kind = EntryKind::Command;
        LogEntry {
            kind,
            index,
            term,
            data,
        }
    }

    fn window(bytes_max: usize) -> Window {
        Window::new(Position { index: 1, term: 1 }, bytes_max)
    }

    #[test]
    fn a_lower_index_overrides_all_behind_it() {
        let mut window = window(1 << 20);
        for index in 2..=6 {
            window.push(entry(index, 2));
        }
        let before = window.bytes();
        window.push(entry(4, 3));
        assert_eq!(window.last(), Position { index: 4, term: 3 });
        assert_eq!(window.term(3), Some(2));
        assert_eq!(window.term(5), None);
        assert_eq!(window.bytes(), before / 5 * 3);
    }

    #[test]
    fn old_entries_leave_but_their_last_position_stays() {
        let mut window = window(2 * (4 + ENTRY_OVERHEAD_BYTES));
        for index in 2..=9 {
            window.push(entry(index, index));
        }
        window.trim(4, u64::MAX, usize::MAX);
        assert_eq!((window.first_index(), window.last_index()), (5, 9));
        assert_eq!((window.term(4), window.term(3)), (Some(4), None));
        window.trim(9, u64::MAX, usize::MAX);
        assert_eq!((window.first_index(), window.last_index()), (8, 9));
        window.push(entry(10, 10));
        assert_eq!(window.last_index(), 10);
    }

    #[test]
    fn a_new_base_is_where_the_entries_begin() {
        let mut window = window(1 << 20);
        for index in 2..=6 {
            window.push(entry(index, 2));
        }
        let before = window.bytes();
        window.rebase(Position { index: 4, term: 2 });
        assert_eq!((window.first_index(), window.last_index()), (5, 6));
        assert_eq!((window.term(4), window.term(3)), (Some(2), None));
        assert_eq!(window.bytes(), before / 5 * 2);
        window.rebase(Position { index: 6, term: 2 });
        assert_eq!(window.last(), Position { index: 6, term: 2 });
        assert_eq!(window.bytes(), 0);
    }

    #[test]
    fn an_empty_window_knows_its_base() {
        let mut window = window(0);
        assert_eq!((window.first_index(), window.last_index()), (2, 1));
        assert_eq!(
            (window.term(1), window.term(0), window.term(2)),
            (Some(1), None, None)
        );
        window.push(entry(2, 2));
        window.trim(2, u64::MAX, usize::MAX);
        assert_eq!(window.last(), Position { index: 2, term: 2 });
        assert_eq!(window.bytes(), 0);
    }
}
