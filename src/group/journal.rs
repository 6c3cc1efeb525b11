//! The journal: a leader's durable Raft log, entries and hard state, on [`crate::disk::log`].
//!
//! The journal thread owns it. Recovery hands entries that are known to be committed to the state
//! machine while it reads, so that its memory is bounded by what was in flight, not by the log.
//!
//! # Records
//!
//! Integers are little-endian, as everywhere in the log.
//!
//! | kind | number | key | payload |
//! |---|---|---|---|
//! | 1 entry | index | 8 B term | the entry's data |
//! | 2 hard state | term | none | 8 B owner, 8 B vote or 0, 8 B commit index |
//!
//! An entry overrides all earlier ones with its index or a higher one, which is never one that is
//! committed. A write is its entries followed by the hard state that goes with them, so that a tail
//! torn anywhere leaves a log that contains the hard state's commit index; if it takes the hard state
//! with it, the term is at least that of the last entry, and no vote of that term had left. The
//! owner is the peer id of the data directory: a journal copied to another one is refused.
//!
//! # Failure and durability
//!
//! When [`Journal::write`] returns `Durable`, all of it is. An error is final. `Full` leaves the
//! journal as it was. Damage below the known-synced offset is refused at start, naming file and
//! offset: a leader alone cannot know what stood there.
//!
//! Known limits: nothing is cut from the front before there are snapshots, so a start reads all.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::fs::FileSystem;
use crate::disk::log::{Filler, Log, LogError, LogOptions};
use crate::disk::record::Record;
use crate::group::core::{HardState, ORIGIN, Persist, Recovered};
use crate::group::window::{LogEntry, Window};
use crate::ids::PeerId;

const KIND_ENTRY: u8 = 1;
const KIND_HARD_STATE: u8 = 2;

/// Why a journal cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Something that was durable is not what was written.
    #[error("the journal is damaged: {file} at offset {offset}: {what}")]
    Damaged {
        /// The segment.
        file: String,
        /// Where in it, in bytes.
        offset: u64,
        /// What was expected and found.
        what: String,
    },
    /// All checksums hold, and the records make no sense.
    #[error("the journal in {dir} is not valid: {what}")]
    Invalid {
        /// The journal's directory.
        dir: String,
        /// The first record that does not fit, and why.
        what: String,
    },
    /// The log beneath failed.
    #[error("journal: {0}")]
    Log(#[from] LogError),
}

/// How a write ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is on disk.
    Durable,
    /// There is no space; nothing was written.
    Full,
}

/// An open journal.
pub struct Journal {
    log: Log,
    owner: PeerId,
}

impl Journal {
    /// Whether `dir` holds a journal.
    pub fn exists(fs: &dyn FileSystem, dir: &Path) -> io::Result<bool> {
        match fs.list(dir) {
            Ok(names) => Ok(!names.is_empty()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Opens the journal of `owner`, or makes an empty one. Each entry known to be committed is given
    /// to `apply`, once and in order. `None` when it holds no hard state: it was never written to.
    pub fn open(
        fs: Arc<dyn FileSystem>,
        dir: &Path,
        options: LogOptions,
        owner: PeerId,
        window_bytes_max: usize,
        apply: &mut dyn FnMut(&LogEntry),
    ) -> Result<(Journal, Option<Recovered>), JournalError> {
        let mut replay = Replay::new(owner, window_bytes_max, apply);
        let (log, recovery) = Log::open(fs, dir, options, &mut |location, record| {
            replay.step(record, location.segment, location.offset);
            Ok(())
        })?;
        if let Some(damage) = recovery.damaged.first() {
            return Err(JournalError::Damaged {
                file: damage.file.clone(),
                offset: damage.offset,
                what: damage.what.clone(),
            });
        }
        if let Some(cut) = &recovery.cut {
            log::info!("journal: {cut}");
        }
        let recovered = replay.finish().map_err(|what| JournalError::Invalid {
            dir: dir.display().to_string(),
            what,
        })?;
        Ok((Journal { log, owner }, recovered))
    }

    /// Writes and syncs all of `writes`, in order.
    pub fn write(&mut self, writes: &[Persist]) -> Result<Written, JournalError> {
        match self.try_write(writes) {
            Ok(()) => Ok(Written::Durable),
            Err(LogError::Full) => {
                self.log.discard();
                Ok(Written::Full)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn try_write(&mut self, writes: &[Persist]) -> Result<(), LogError> {
        for write in writes {
            for entry in &write.entries {
                self.log.stage(&Record {
                    kind: KIND_ENTRY,
                    number: entry.index,
                    key: &entry.term.to_le_bytes(),
                    payload: &entry.data,
                })?;
            }
            self.log.stage(&Record {
                kind: KIND_HARD_STATE,
                number: write.hard_state.term,
                key: &[],
                payload: &encode_hard_state(self.owner, &write.hard_state),
            })?;
        }
        self.log.write()?;
        self.log.sync()
    }

    /// Makes the known-synced offset durable, if it is not.
    pub fn idle(&mut self) -> Result<(), JournalError> {
        Ok(self.log.idle()?)
    }

    /// Fills the next segment with zeros ahead of need, on a thread of its own.
    pub fn filler(&self) -> Filler {
        self.log.filler()
    }
}

fn encode_hard_state(owner: PeerId, state: &HardState) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&owner.0.to_le_bytes());
    bytes[8..16].copy_from_slice(&state.vote.map_or(0, |id| id.0).to_le_bytes());
    bytes[16..].copy_from_slice(&state.commit.to_le_bytes());
    bytes
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

/// Reads records in log order into the state that they leave.
struct Replay<'a> {
    owner: PeerId,
    apply: &'a mut dyn FnMut(&LogEntry),
    window: Window,
    /// The last one; its `commit` is how far entries were applied.
    hard_state: Option<HardState>,
    /// The first record that does not fit; nothing behind it is looked at.
    problem: Option<String>,
}

impl<'a> Replay<'a> {
    fn new(
        owner: PeerId,
        window_bytes_max: usize,
        apply: &'a mut dyn FnMut(&LogEntry),
    ) -> Replay<'a> {
        Replay {
            owner,
            apply,
            window: Window::new(ORIGIN, window_bytes_max),
            hard_state: None,
            problem: None,
        }
    }

    fn step(&mut self, record: &Record<'_>, segment: u32, offset: u32) {
        if self.problem.is_some() {
            return;
        }
        let result = match record.kind {
            KIND_ENTRY => self.entry(record),
            KIND_HARD_STATE => self.hard_state(record),
            kind => Err(format!("unknown kind {kind}")),
        };
        if let Err(what) = result {
            self.problem = Some(format!("segment {segment} at offset {offset}: {what}"));
        }
    }

    fn applied(&self) -> u64 {
        self.hard_state.map_or(ORIGIN.index, |state| state.commit)
    }

    fn entry(&mut self, record: &Record<'_>) -> Result<(), String> {
        let index = record.number;
        let term = <[u8; 8]>::try_from(record.key)
            .map(u64::from_le_bytes)
            .map_err(|_| format!("entry {index} has a key of {} bytes", record.key.len()))?;
        let (applied, last) = (self.applied(), self.window.last_index());
        if index <= applied || index > last + 1 {
            return Err(format!(
                "entry {index} does not follow: committed {applied}, last {last}"
            ));
        }
        let before = self.window.term(index - 1).unwrap_or(0);
        if term < before {
            return Err(format!("entry {index} has term {term} after term {before}"));
        }
        let data = Bytes::copy_from_slice(record.payload);
        self.window.push(LogEntry { index, term, data });
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
        let applied = self.applied();
        if state.commit < applied || state.commit > self.window.last_index() {
            return Err(format!(
                "commit index {} is not in {applied}..={}",
                state.commit,
                self.window.last_index()
            ));
        }
        if self.hard_state.is_some_and(|before| term < before.term) {
            return Err(format!("the term falls to {term}"));
        }
        self.hard_state = Some(state);
        for index in applied + 1..=state.commit {
            let entry = self.window.entry(index);
            (self.apply)(entry.expect("entries above the last commit index are held"));
        }
        self.window.trim(state.commit);
        Ok(())
    }

    fn finish(self) -> Result<Option<Recovered>, String> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        let Some(mut hard_state) = self.hard_state else {
            return Ok(None);
        };
        let last_term = self.window.last().term;
        if hard_state.term < last_term {
            // The tail was torn between entries of a new term and the hard state behind them, which
            // was not synced: no vote of that term was given.
            hard_state.term = last_term;
            hard_state.vote = None;
        }
        Ok(Some(Recovered {
            hard_state,
            window: self.window,
        }))
    }
}
