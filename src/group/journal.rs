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
//! committed. A write is its entries followed by the hard state that goes with them, whose term is
//! not below theirs; the log keeps it as a whole or not at all. The owner is the peer id of the
//! data directory: a journal copied to another one is refused.
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

    /// Opens the journal of `owner`, or makes an empty one. Each entry known to be committed is
    /// given to `apply`, once and in order. `None` when it holds no hard state: it was never
    /// written to.
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
        let before = self.hard_state.map_or(0, |before| before.term);
        if term < before.max(self.window.last().term) {
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
        Ok(self.hard_state.map(|hard_state| Recovered {
            hard_state,
            window: self.window,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::mem::{Fault, Loss, MemFileSystem, Operation};

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
        let options = LogOptions {
            segment_bytes: 16 << 10,
            reserve_bytes: 0,
            salt: 5,
        };
        let mut applied = Vec::new();
        let (journal, recovered) = Journal::open(
            Arc::new(fs.clone()),
            dir(),
            options,
            owner,
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
        let data = Bytes::copy_from_slice(text.as_bytes());
        LogEntry { index, term, data }
    }

    fn write(entries: Vec<LogEntry>, term: u64, commit: u64) -> Persist {
        Persist {
            number: 0,
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
