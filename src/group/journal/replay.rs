//! What the records of a journal say, read in log order. Pure.
//!
//! A record that does not fit what stands before it ends the reading; [`Replay::finish`] names it.

use bytes::Bytes;

use super::{KIND_CONFIGURATION, KIND_ENTRY, KIND_HARD_STATE, KIND_RESET, Start};
use crate::disk::record::Record;
use crate::group::configuration::Configuration;
use crate::group::core::{HardState, Recovered, changed};
use crate::group::window::{EntryKind, LogEntry, Position, Window};
use crate::ids::PeerId;

/// Reads records in log order into the state that they leave.
pub(super) struct Replay<'a> {
    owner: PeerId,
    /// The state machine has everything up to here.
    start: Position,
    /// It came from a peer.
    is_received: bool,
    /// As of the last entry that is applied.
    configuration: Configuration,
    apply: &'a mut dyn FnMut(&LogEntry),
    /// The log as it was at the record at hand; none before the first entry. The term of the base
    /// is 0 while it is not known, which may be until `finish`.
    window: Option<Window>,
    window_bytes_max: usize,
    /// The last one; its `commit` is how far entries were applied, unless `start` is behind it.
    hard_state: Option<HardState>,
    /// The first record that does not fit; nothing behind it is looked at.
    problem: Option<String>,
}

impl<'a> Replay<'a> {
    pub(super) fn new(
        owner: PeerId,
        start: Start,
        window_bytes_max: usize,
        apply: &'a mut dyn FnMut(&LogEntry),
    ) -> Replay<'a> {
        Replay {
            owner,
            start: start.position,
            is_received: start.is_received,
            configuration: start.configuration,
            apply,
            window: None,
            window_bytes_max,
            hard_state: None,
            problem: None,
        }
    }

    pub(super) fn step(&mut self, record: &Record<'_>, segment: u32, offset: u32) {
        if self.problem.is_some() {
            return;
        }
        let result = match record.kind {
            KIND_ENTRY => self.entry(record, EntryKind::Command),
            KIND_CONFIGURATION => self.entry(record, EntryKind::Configuration),
            KIND_RESET => self.reset(record),
            KIND_HARD_STATE => self.hard_state(record),
            kind => Err(format!("unknown kind {kind}")),
        };
        if let Err(what) = result {
            self.problem = Some(format!("segment {segment} at offset {offset}: {what}"));
        }
    }

    fn committed(&self) -> u64 {
        self.hard_state.map_or(0, |state| state.commit)
    }

    /// The index of the log's last entry.
    fn last_index(&self) -> u64 {
        let window = self.window.as_ref();
        window.map_or(self.start.index, Window::last_index)
    }

    fn reset(&mut self, record: &Record<'_>) -> Result<(), String> {
        let index = record.number;
        let term = term_of(record)?;
        if index > self.start.index || index < self.committed() {
            return Err(format!(
                "a reset to index {index}: committed {}, the snapshot has {}",
                self.committed(),
                self.start.index
            ));
        }
        let position = Position { index, term };
        self.window = Some(Window::new(position, self.window_bytes_max));
        if let Some(state) = &mut self.hard_state {
            state.commit = index;
        }
        Ok(())
    }

    fn entry(&mut self, record: &Record<'_>, kind: EntryKind) -> Result<(), String> {
        let index = record.number;
        let term = term_of(record)?;
        let (committed, last) = (self.committed(), self.last_index());
        if index <= committed || index > last + 1 {
            return Err(format!(
                "entry {index} does not follow: committed {committed}, last {last}"
            ));
        }
        // Before the first entry held there may be others, which were cut.
        let begin = Position {
            index: index - 1,
            term: 0,
        };
        let window = match &mut self.window {
            Some(window) if index >= window.first_index() => window,
            window => window.insert(Window::new(begin, self.window_bytes_max)),
        };
        let before = window.term(index - 1).unwrap_or(0);
        if term < before {
            return Err(format!("entry {index} has term {term} after term {before}"));
        }
        let data = Bytes::copy_from_slice(record.payload);
        window.push(LogEntry {
            kind,
            index,
            term,
            data,
        });
        Ok(())
    }

    fn hard_state(&mut self, record: &Record<'_>) -> Result<(), String> {
        let term = record.number;
        let (owner, state) = decode_hard_state(term, record.payload)
            .ok_or_else(|| format!("a hard state of {} bytes", record.payload.len()))?;
        if owner != self.owner {
            return Err(format!(
                "it belongs to peer {owner}, and this directory to peer {}",
                self.owner
            ));
        }
        let (committed, last) = (self.committed(), self.last_index());
        if state.commit < committed || state.commit > last {
            let commit = state.commit;
            return Err(format!(
                "commit index {commit} is not in {committed}..={last}"
            ));
        }
        let before = self.hard_state.map_or(0, |before| before.term);
        let last_term = self.window.as_ref().map_or(0, |window| window.last().term);
        if term < before.max(last_term) {
            return Err(format!("the term falls to {term}"));
        }
        self.hard_state = Some(state);
        if let Some(window) = &mut self.window {
            for index in committed.max(self.start.index) + 1..=state.commit {
                let entry = window.entry(index);
                let entry = entry.ok_or_else(|| format!("entry {index} is missing"))?;
                match entry.kind {
                    EntryKind::Command => (self.apply)(entry),
                    EntryKind::Configuration => {
                        // One that is impossible had no effect when it was applied, either.
                        if let Ok(changed) = changed(&self.configuration, &entry.data) {
                            self.configuration = changed;
                        }
                    }
                }
            }
            window.trim(state.commit, u64::MAX, usize::MAX);
        }
        Ok(())
    }

    /// What is recovered, and whether the journal must still be told of the snapshot.
    pub(super) fn finish(mut self) -> Result<Option<(Recovered, bool)>, String> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        let Some(mut hard_state) = self.hard_state else {
            return Ok(None);
        };
        let start = self.start;
        let empty = || Window::new(start, self.window_bytes_max);
        let mut window = self.window.take().unwrap_or_else(empty);
        let mut is_reset = false;
        if window.first_index() <= start.index + 1 {
            // What a snapshot has was durable here before it was taken; not so one of a peer.
            let term = window.term(start.index).filter(|term| *term > 0);
            let is_other =
                window.last_index() < start.index || term.is_some_and(|term| term != start.term);
            if is_other && !self.is_received {
                return Err(format!(
                    "the snapshot at index {} of term {} is not of this log, which ends with {:?}",
                    start.index,
                    start.term,
                    window.last()
                ));
            }
            if is_other {
                is_reset = true;
                window.reset(start);
                if hard_state.term < start.term {
                    // Nobody got a vote of that term from here: it was never stored.
                    (hard_state.term, hard_state.vote) = (start.term, None);
                }
            } else {
                window.rebase(start);
            }
        }
        let first = window.term(window.first_index());
        if first.is_some_and(|term| term < start.term) || hard_state.term < start.term {
            return Err(format!(
                "the term falls below {} of the snapshot",
                start.term
            ));
        }
        let last = window.last();
        if hard_state.term < last.term {
            return Err(format!(
                "the log ends with {last:?}, without the hard state that goes with it"
            ));
        }
        // Entries are applied, and so in a snapshot, before their commit index is written.
        hard_state.commit = hard_state.commit.max(start.index);
        let recovered = Recovered {
            hard_state,
            window,
            configuration: self.configuration,
        };
        Ok(Some((recovered, is_reset)))
    }
}

/// The term of an entry or a reset.
fn term_of(record: &Record<'_>) -> Result<u64, String> {
    let term = <[u8; 8]>::try_from(record.key).map(u64::from_le_bytes);
    let (index, length) = (record.number, record.key.len());
    term.map_err(|_| format!("entry {index} has a key of {length} bytes"))
}

/// The owner and the state.
fn decode_hard_state(term: u64, payload: &[u8]) -> Option<(PeerId, HardState)> {
    let (owner, rest) = payload.split_first_chunk::<8>()?;
    let (vote, commit) = rest.split_first_chunk::<8>()?;
    let vote = u64::from_le_bytes(*vote);
    let state = HardState {
        term,
        vote: (vote != 0).then_some(PeerId(vote)),
        commit: u64::from_le_bytes(commit.try_into().ok()?),
    };
    Some((PeerId(u64::from_le_bytes(*owner)), state))
}
