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
//! When [`Journal::write`] returns `Durable`, all of it is. An error is final. `Full` leaves the
//! journal as it was. Damage below the known-synced offset is refused at start, naming file and
//! offset: a leader alone cannot know what stood there.
//!
//! Known limits: whole segments are cut, so a start reads up to one more than is needed.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::fs::FileSystem;
use crate::disk::log::{Filler, Log, LogError, LogOptions};
use crate::disk::record::Record;
use crate::disk::segment::SECTOR_BYTES;
use crate::faults::{self, Fault};
use crate::group::configuration::Configuration;
use crate::group::core::{HardState, Persist, Recovered, changed};
use crate::group::window::{EntryKind, LogEntry, Position, Window};
use crate::ids::PeerId;

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
    /// There is no space; nothing was written.
    Full,
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
            if journal.write(&[reset])? == Written::Full {
                return Err(LogError::Full.into());
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
            Err(LogError::Full) => {
                self.log.discard();
                Ok(Written::Full)
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
            Err(LogError::Full) => log::warn!("journal: no space to cut it"),
            Err(error) => return Err(error.into()),
        }
        Ok(())
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
    fn new(
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

    fn step(&mut self, record: &Record<'_>, segment: u32, offset: u32) {
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
                        let changed = changed(&self.configuration, &entry.data);
                        self.configuration =
                            changed.map_err(|error| format!("entry {index}: {error}"))?;
                    }
                }
            }
            window.trim(state.commit, u64::MAX, usize::MAX);
        }
        Ok(())
    }

    /// What is recovered, and whether the journal must still be told of the snapshot.
    fn finish(mut self) -> Result<Option<(Recovered, bool)>, String> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::mem::{Fault, Loss, MemFileSystem, Operation};
    use crate::group::core::ORIGIN;

    const OWNER: PeerId = PeerId(7);

    /// An opened journal, and what opening handed out.
    struct Opened {
        journal: Journal,
        recovered: Option<Recovered>,
        applied: Vec<LogEntry>,
    }

    fn dir() -> &'static Path {
        Path::new("journal")
    }

    fn open_as(fs: &MemFileSystem, owner: PeerId) -> Result<Opened, JournalError> {
        open_behind(fs, owner, ORIGIN)
    }

    fn open_behind(
        fs: &MemFileSystem,
        owner: PeerId,
        start: Position,
    ) -> Result<Opened, JournalError> {
        let options = LogOptions {
            segment_bytes: 16 << 10,
            reserve_bytes: 0,
            salt: 5,
        };
        let mut applied = Vec::new();
        let start = Start {
            position: start,
            configuration: Configuration::of([owner]),
            is_received: false,
        };
        let (journal, recovered) = Journal::open(
            Arc::new(fs.clone()),
            dir(),
            options,
            owner,
            start,
            4 << 10,
            &mut |entry| applied.push(entry.clone()),
        )?;
        Ok(Opened {
            journal,
            recovered,
            applied,
        })
    }

    fn new_disk() -> MemFileSystem {
        let fs = MemFileSystem::new();
        fs.create_dir_all(dir()).unwrap();
        fs
    }

    fn entry(index: u64, term: u64, text: &str) -> LogEntry {
        LogEntry {
            kind: EntryKind::Command,
            index,
            term,
            data: Bytes::copy_from_slice(text.as_bytes()),
        }
    }

    fn write(entries: Vec<LogEntry>, term: u64, commit: u64) -> Persist {
        Persist {
            number: 0,
            reset: None,
            entries,
            hard_state: HardState {
                term,
                vote: Some(OWNER),
                commit,
            },
        }
    }

    #[test]
    fn what_is_committed_is_applied_and_the_rest_is_kept() {
        let fs = new_disk();
        let mut opened = open_as(&fs, OWNER).unwrap();
        assert!(opened.recovered.is_none() && opened.applied.is_empty());
        let writes = [
            write(vec![entry(2, 2, ""), entry(3, 2, "a")], 2, 1),
            write(vec![entry(4, 2, "b")], 2, 3),
        ];
        assert_eq!(opened.journal.write(&writes).unwrap(), Written::Durable);
        drop(opened);
        let opened = open_as(&fs, OWNER).unwrap();
        assert_eq!(opened.applied, [entry(2, 2, ""), entry(3, 2, "a")]);
        let recovered = opened.recovered.unwrap();
        assert_eq!(recovered.hard_state, writes[1].hard_state);
        assert_eq!(recovered.window.entry(4), Some(&entry(4, 2, "b")));
    }

    #[test]
    fn a_lower_index_overrides_what_was_not_committed() {
        let fs = new_disk();
        let mut opened = open_as(&fs, OWNER).unwrap();
        let entries = (2..6).map(|index| entry(index, 2, "old")).collect();
        let writes = [
            write(entries, 2, 3),
            write(vec![entry(4, 3, "new")], 3, 3),
            write(vec![], 3, 4),
        ];
        opened.journal.write(&writes).unwrap();
        let opened = open_as(&fs, OWNER).unwrap();
        assert_eq!(opened.applied.last(), Some(&entry(4, 3, "new")));
        assert_eq!(opened.applied.len(), 3);
        assert_eq!(opened.recovered.unwrap().window.last_index(), 4);
    }

    #[test]
    fn records_that_make_no_sense_are_refused() {
        let cases = [
            (vec![write(vec![entry(3, 2, "")], 2, 1)], "does not follow"),
            (vec![write(vec![entry(2, 2, "")], 2, 3)], "commit index 3"),
            (
                vec![
                    write(vec![entry(2, 2, "")], 2, 2),
                    write(vec![entry(2, 3, "")], 3, 2),
                ],
                "committed 2",
            ),
            (
                vec![write(vec![entry(2, 3, ""), entry(3, 2, "")], 3, 1)],
                "term 2 after term 3",
            ),
            (vec![write(vec![], 3, 1), write(vec![], 2, 1)], "falls to 2"),
            (vec![write(vec![entry(2, 3, "")], 2, 1)], "falls to 2"),
        ];
        for (writes, what) in cases {
            let fs = new_disk();
            open_as(&fs, OWNER).unwrap().journal.write(&writes).unwrap();
            match open_as(&fs, OWNER) {
                Ok(_) => panic!("it opened, not {what}"),
                Err(error) => assert!(error.to_string().contains(what), "{error}"),
            }
        }
        let fs = new_disk();
        let writes = [write(vec![], 2, 1)];
        open_as(&fs, OWNER).unwrap().journal.write(&writes).unwrap();
        let error = open_as(&fs, PeerId(8)).err().unwrap().to_string();
        assert!(
            error.contains("belongs to peer 0000000000000007"),
            "{error}"
        );
    }

    /// Entries 2 to 99 of 1,000 bytes in segments of 16 KiB, all committed, in term 2.
    fn long_journal(fs: &MemFileSystem) -> Journal {
        let mut journal = open_as(fs, OWNER).unwrap().journal;
        for index in 2..100 {
            let entry = entry(index, 2, &"x".repeat(1000));
            journal.write(&[write(vec![entry], 2, index)]).unwrap();
        }
        journal
    }

    fn segments(fs: &MemFileSystem) -> Vec<String> {
        let mut names = fs.list(dir()).unwrap();
        names.retain(|name| name.ends_with(".log"));
        names
    }

    #[test]
    fn a_cut_journal_goes_on_behind_its_snapshot() {
        let fs = new_disk();
        let mut journal = long_journal(&fs);
        let before = segments(&fs).len();
        let bytes = journal.bytes();
        assert!(bytes > 98 * 1000);
        journal.cut(60).unwrap();
        assert!(segments(&fs).len() < before / 2 + 2, "{:?}", segments(&fs));
        journal
            .write(&[write(vec![entry(100, 2, "y")], 2, 99)])
            .unwrap();
        drop(journal);
        fs.crash(Loss::Everything);
        let start = Position { index: 60, term: 2 };
        let opened = open_behind(&fs, OWNER, start).unwrap();
        let applied: Vec<u64> = opened.applied.iter().map(|entry| entry.index).collect();
        assert_eq!(applied, (61..100).collect::<Vec<u64>>());
        let recovered = opened.recovered.unwrap();
        assert_eq!(recovered.window.last_index(), 100);
        assert_eq!(recovered.applied(), Position { index: 99, term: 2 });
        assert!(opened.journal.bytes() < bytes / 2, "only what is behind 60");
        // Without the snapshot, or with an older one, or one of another log, it is refused.
        for (start, what) in [
            (ORIGIN, "does not follow: committed 0, last 1"),
            (Position { index: 9, term: 2 }, "last 9"),
            (
                Position {
                    index: 101,
                    term: 2,
                },
                "is not of this log",
            ),
        ] {
            let error = open_behind(&fs, OWNER, start).err().unwrap().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn a_cut_keeps_the_last_hard_state_and_a_snapshot_counts_as_committed() {
        let fs = new_disk();
        let mut journal = long_journal(&fs);
        let vote = [write(vec![], 7, 99)];
        journal.write(&vote).unwrap();
        // All entries are in the snapshot, which is one more than the commit index that is known.
        journal
            .write(&[write(vec![entry(100, 7, "y")], 7, 99)])
            .unwrap();
        journal.cut(100).unwrap();
        journal.cut(100).unwrap();
        assert_eq!(segments(&fs).len(), 1);
        drop(journal);
        let start = Position {
            index: 100,
            term: 7,
        };
        let opened = open_behind(&fs, OWNER, start).unwrap();
        assert!(opened.applied.is_empty());
        let recovered = opened.recovered.unwrap();
        assert_eq!(recovered.hard_state.term, 7);
        assert_eq!(recovered.hard_state.commit, 100);
        assert_eq!(recovered.window.last(), start);
        let mut journal = opened.journal;
        journal
            .write(&[write(vec![entry(101, 8, "z")], 8, 100)])
            .unwrap();
        let opened = open_behind(&fs, OWNER, start).unwrap();
        assert_eq!(opened.recovered.unwrap().window.last_index(), 101);
    }

    #[test]
    fn entries_overridden_from_before_the_cut_are_gone() {
        let fs = new_disk();
        let mut journal = open_as(&fs, OWNER).unwrap().journal;
        let big = |index, term| entry(index, term, &"x".repeat(12_000));
        // One segment each: 2, 3, 4 of term 2, then 3 and 4 of term 5 in their place.
        for (index, term) in [(2, 2), (3, 2), (4, 2), (3, 5), (4, 5)] {
            let commit = 2 - u64::from(index == 2);
            let writes = [write(vec![big(index, term)], term, commit)];
            journal.write(&writes).unwrap();
        }
        journal.cut(3).unwrap();
        assert_eq!(
            segments(&fs).first().map(String::as_str),
            Some("00000003.log")
        );
        drop(journal);
        let start = Position { index: 3, term: 5 };
        let opened = open_behind(&fs, OWNER, start).unwrap();
        let recovered = opened.recovered.unwrap();
        assert_eq!(recovered.window.entry(4), Some(&big(4, 5)));
        assert_eq!(recovered.window.term(3), Some(5));
        assert_eq!(recovered.window.last_index(), 4);
        let wrong = Position { index: 3, term: 2 };
        let error = open_behind(&fs, OWNER, wrong).err().unwrap().to_string();
        assert!(error.contains("is not of this log"), "{error}");
    }

    #[test]
    fn a_full_disk_leaves_the_journal_as_it_was() {
        let fs = new_disk();
        let mut opened = open_as(&fs, OWNER).unwrap();
        let first = [write(vec![entry(2, 2, "a")], 2, 1)];
        let second = [write(vec![entry(3, 2, "b")], 2, 2)];
        opened.journal.write(&first).unwrap();
        fs.fail(Operation::Write, 0, Fault::NoSpace);
        assert_eq!(opened.journal.write(&second).unwrap(), Written::Full);
        assert_eq!(opened.journal.write(&second).unwrap(), Written::Durable);
        fs.crash(Loss::Everything);
        let opened = open_as(&fs, OWNER).unwrap();
        assert_eq!(opened.recovered.unwrap().window.last_index(), 3);
    }

    #[test]
    fn a_failed_sync_is_final() {
        let fs = new_disk();
        let mut opened = open_as(&fs, OWNER).unwrap();
        let writes = [write(vec![entry(2, 2, "a")], 2, 1)];
        fs.fail(Operation::Sync, 0, Fault::Io);
        assert!(opened.journal.write(&writes).is_err());
        assert!(opened.journal.write(&writes).is_err());
        assert!(opened.journal.idle().is_err());
    }

    mod properties {
        use proptest::prelude::*;

        use super::*;

        /// One write as Raft could make it: overrides `back` uncommitted entries, then adds some.
        #[derive(Clone, Debug)]
        struct Step {
            back: u64,
            lengths: Vec<u16>,
            commit: u64,
            idle: bool,
        }

        fn step() -> impl Strategy<Value = Step> {
            let lengths = proptest::collection::vec(0..3000u16, 0..4);
            (0..3u64, lengths, 0..4u64, any::<bool>()).prop_map(|(back, lengths, commit, idle)| {
                Step {
                    back,
                    lengths,
                    commit,
                    idle,
                }
            })
        }

        /// The log as it should be after some writes.
        #[derive(Clone, Debug, PartialEq)]
        struct Model {
            entries: Vec<LogEntry>,
            hard_state: HardState,
        }

        impl Model {
            fn apply(&mut self, step: &Step) -> Persist {
                let commit = self.hard_state.commit;
                let last = ORIGIN.index + self.entries.len() as u64;
                let first = (last + 1).saturating_sub(step.back).max(commit + 1);
                let is_override = first <= last && !step.lengths.is_empty();
                let term = self.hard_state.term + u64::from(is_override);
                if is_override {
                    self.entries.truncate((first - ORIGIN.index - 1) as usize);
                }
                let next = ORIGIN.index + self.entries.len() as u64 + 1;
                let entries: Vec<LogEntry> = (next..)
                    .zip(&step.lengths)
                    .map(|(index, length)| LogEntry {
                        kind: EntryKind::Command,
                        index,
                        term,
                        data: vec![index as u8; usize::from(*length)].into(),
                    })
                    .collect();
                self.entries.extend(entries.iter().cloned());
                let last = ORIGIN.index + self.entries.len() as u64;
                self.hard_state = HardState {
                    term,
                    vote: Some(OWNER),
                    commit: (commit + step.commit).min(last),
                };
                Persist {
                    number: 0,
                    reset: None,
                    entries,
                    hard_state: self.hard_state,
                }
            }
        }

        fn read(fs: &MemFileSystem) -> Option<Model> {
            let opened = open_as(fs, OWNER).unwrap();
            let recovered = opened.recovered?;
            let commit = recovered.hard_state.commit;
            let mut entries = opened.applied;
            for index in commit + 1..=recovered.window.last_index() {
                entries.push(recovered.window.entry(index).unwrap().clone());
            }
            Some(Model {
                entries,
                hard_state: recovered.hard_state,
            })
        }

        proptest! {
            #![proptest_config(ProptestConfig::with_cases(64))]

            /// A6: whatever a power failure in the middle of a write loses, all earlier writes are
            /// there, and the one in the middle is there as a whole or not at all.
            #[test]
            fn a_crash_keeps_all_that_was_durable(
                steps in proptest::collection::vec(step(), 1..12),
                crash_at in 0..12usize,
                seed in any::<u64>(),
            ) {
                let fs = new_disk();
                let mut journal = open_as(&fs, OWNER).unwrap().journal;
                let mut model = Model { entries: Vec::new(), hard_state: HardState::INITIAL };
                let mut before = None;
                let crash_at = crash_at.min(steps.len() - 1);
                for (number, step) in steps.iter().enumerate() {
                    let write = model.apply(step);
                    if number == crash_at {
                        fs.fail(Operation::Sync, seed % 2, Fault::Io);
                        let is_durable = journal.write(&[write]).is_ok();
                        drop(journal);
                        fs.heal();
                        fs.crash(Loss::Random(seed));
                        let found = read(&fs);
                        let is_whole = found.as_ref() == Some(&model);
                        prop_assert!(is_whole || !is_durable && found == before);
                        // What was recovered is still there after another crash.
                        fs.crash(Loss::Everything);
                        prop_assert_eq!(read(&fs), found);
                        return Ok(());
                    }
                    prop_assert_eq!(journal.write(&[write]).unwrap(), Written::Durable);
                    if step.idle {
                        journal.idle().unwrap();
                    }
                    before = Some(model.clone());
                }
            }
        }
    }
}
