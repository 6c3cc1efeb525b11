//! The journal: a leader's durable Raft log, entries and hard state, on [`crate::disk::log`].
//!
//! The journal thread owns it. The log begins behind a *start*: the last snapshot, or the origin.
//! Recovery hands entries that are known to be committed to the state
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
//! | 3 change of the configuration | index | 8 B term | the entry's data |
//! | 4 reset | index | 8 B term | none |
//!
//! An entry overrides all earlier ones with its index or a higher one, which is never one that is
//! committed. A write is its entries followed by the hard state that goes with them, whose term is
//! not below theirs; the log keeps it as a whole or not at all. The owner is the peer id of the
//! data directory: a journal copied to another one is refused.
//!
//! A reset says that a snapshot of a peer was installed: the log ends at its position, whatever
//! stood there before. That snapshot, or a newer one, is durable before. If a crash comes between
//! the two, the next start finds a received snapshot that the journal does not know, and writes the
//! reset ([`Journal::open`]).
//!
//! # Cut
//!
//! Behind a durable snapshot at index i, [`Journal::cut`] drops the oldest segments, as long as all
//! their entries are of i or below, and never the last one with records: it holds the last hard
//! state, since a group is in one segment and ends with one. So the first entry that is left is
//! i + 1 or below. What stood before it is unknown: it may be overridden by entries of a lower
//! index, and terms can be compared only from there on.
//!
//! # Failure and durability
//!
//! When [`Journal::write`] returns `Durable`, all of it is. An error is final. `Refused` leaves
//! the journal as it was. Damage below the known-synced offset is refused at start, naming file and
//! offset: a leader alone cannot know what stood there.
//!
//! Known limits: whole segments are cut, so a start reads up to one more than is needed.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::disk::fs::FileSystem;
use crate::disk::log::{Filler, Log, LogError, LogOptions};
use crate::disk::record::Record;
use crate::disk::segment::SECTOR_BYTES;
use crate::error::Shortage;
use crate::faults::{self, Fault};
use crate::group::configuration::Configuration;
use crate::group::core::{HardState, Persist, Recovered};
use crate::group::window::{EntryKind, LogEntry, Position};
use crate::ids::PeerId;

mod replay;
#[cfg(test)]
mod tests;

use self::replay::Replay;

const KIND_ENTRY: u8 = 1;
const KIND_HARD_STATE: u8 = 2;
const KIND_CONFIGURATION: u8 = 3;
const KIND_RESET: u8 = 4;

/// What a journal begins behind: the last snapshot, or the origin of the log.
#[derive(Clone, Debug)]
pub struct Start {
    /// The state machine has everything up to here.
    pub position: Position,
    /// Who takes part, there.
    pub configuration: Configuration,
    /// It came from a peer: the journal may not know of it yet.
    pub is_received: bool,
}

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
    /// The system refused it; nothing was written.
    Refused(Shortage),
}

/// An open journal.
pub struct Journal {
    log: Log,
    owner: PeerId,
    /// The segments that have records, with the highest index of an entry that was ever in each.
    segments: BTreeMap<u32, u64>,
    /// Bytes that it took since the start that it was opened with.
    bytes: u64,
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

    /// Opens the journal of `owner`, or makes an empty one. The state machine has everything up to
    /// `start`; each entry behind it that is known to be committed is given to `apply`, once and in
    /// order, but for those that change the configuration: what they make of it is in what is
    /// recovered. `None` when it holds no hard state: it was never written to.
    pub fn open(
        fs: Arc<dyn FileSystem>,
        dir: &Path,
        options: LogOptions,
        owner: PeerId,
        start: Start,
        window_bytes_max: usize,
        apply: &mut dyn FnMut(&LogEntry),
    ) -> Result<(Journal, Option<Recovered>), JournalError> {
        let begin = start.position;
        let mut replay = Replay::new(owner, start, window_bytes_max, apply);
        let mut segments = BTreeMap::new();
        let mut bytes = 0;
        let (log, recovery) = Log::open(fs, dir, options, &mut |location, record| {
            let is_entry = matches!(record.kind, KIND_ENTRY | KIND_CONFIGURATION);
            let highest = segments.entry(location.segment).or_default();
            if is_entry {
                *highest = record.number.max(*highest);
            }
            bytes = match is_entry && record.number <= begin.index {
                true => 0,
                false => bytes + u64::from(location.length),
            };
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
        let finished = replay.finish().map_err(|what| JournalError::Invalid {
            dir: dir.display().to_string(),
            what,
        })?;
        let mut journal = Journal {
            log,
            owner,
            segments,
            bytes,
        };
        let Some((recovered, is_reset)) = finished else {
            return Ok((journal, None));
        };
        if is_reset {
            log::info!("journal: it goes on behind the snapshot that was received, {begin:?}");
            let reset = Persist {
                number: 0,
                reset: Some(begin),
                entries: Vec::new(),
                hard_state: recovered.hard_state,
            };
            if let Written::Refused(shortage) = journal.write(&[reset])? {
                return Err(LogError::Refused(shortage).into());
            }
        }
        Ok((journal, Some(recovered)))
    }

    /// Bytes that it took since the start that it was opened with; about, where it was read back.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes and syncs all of `writes`, in order.
    pub fn write(&mut self, writes: &[Persist]) -> Result<Written, JournalError> {
        match self.try_write(writes) {
            Ok(()) => Ok(Written::Durable),
            Err(LogError::Refused(shortage)) => {
                self.log.discard();
                Ok(Written::Refused(shortage))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn try_write(&mut self, writes: &[Persist]) -> Result<(), LogError> {
        let (mut segment, mut highest) = (0, 0);
        for write in writes {
            if let Some(Position { index, term }) = write.reset {
                self.log.stage(&Record {
                    kind: KIND_RESET,
                    number: index,
                    key: &term.to_le_bytes(),
                    payload: &[],
                })?;
            }
            for entry in &write.entries {
                self.log.stage(&Record {
                    kind: match entry.kind {
                        EntryKind::Command => KIND_ENTRY,
                        EntryKind::Configuration => KIND_CONFIGURATION,
                    },
                    number: entry.index,
                    key: &entry.term.to_le_bytes(),
                    payload: &entry.data,
                })?;
                highest = entry.index.max(highest);
            }
            let mut hard_state = write.hard_state;
            if faults::has(Fault::VoteNotPersisted) {
                hard_state.vote = None;
            }
            let location = self.log.stage(&Record {
                kind: KIND_HARD_STATE,
                number: write.hard_state.term,
                key: &[],
                payload: &encode_hard_state(self.owner, &hard_state),
            })?;
            // One for all: a group is in one segment.
            segment = location.segment;
        }
        let bytes = self.log.staged_bytes().next_multiple_of(SECTOR_BYTES) as u64;
        self.log.write()?;
        if !faults::has(Fault::JournalBeforeSync) {
            self.log.sync()?;
        }
        if bytes > 0 {
            let held = self.segments.entry(segment).or_default();
            *held = highest.max(*held);
            self.bytes += bytes;
        }
        Ok(())
    }

    /// Drops the segments that are of no use behind a durable snapshot at `index`.
    pub fn cut(&mut self, index: u64) -> Result<(), JournalError> {
        let Some((&last, _)) = self.segments.last_key_value() else {
            return Ok(());
        };
        let is_needed = |(segment, highest): &(&u32, &u64)| **highest > index || **segment == last;
        let kept = self.segments.iter().find(is_needed);
        let kept = kept.map_or(last, |(segment, _)| *segment);
        match self.log.drop_head(kept) {
            Ok(()) => self.segments = self.segments.split_off(&kept),
            // Nothing was dropped; the next cut takes these too.
            Err(LogError::Refused(shortage)) => log::warn!("journal: it is not cut: {shortage}"),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Fails for good if the journal's directory was removed or replaced; each write does the same.
    pub fn check_in_place(&mut self) -> Result<(), JournalError> {
        Ok(self.log.check_in_place()?)
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
