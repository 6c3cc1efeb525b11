//! The journal's claims: what it holds after every kind of crash, damage and failed call.

use bytes::Bytes;

use super::*;
use crate::disk::mem::{Fault, Loss, MemFileSystem, Operation};
use crate::error::Shortage;
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

fn open_behind(fs: &MemFileSystem, owner: PeerId, start: Position) -> Result<Opened, JournalError> {
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

#[test]
fn an_entry_without_its_hard_state_is_refused() {
    let fs = new_disk();
    let writes = [write(vec![entry(2, 2, "")], 2, 1)];
    open_as(&fs, OWNER).unwrap().journal.write(&writes).unwrap();
    let options = LogOptions {
        segment_bytes: 16 << 10,
        reserve_bytes: 0,
        salt: 6,
    };
    let opened = Log::open(Arc::new(fs.clone()), dir(), options, &mut |_, _| Ok(()));
    let (mut log, _) = opened.unwrap();
    let later = Record {
        kind: KIND_ENTRY,
        number: 3,
        key: &5_u64.to_le_bytes(),
        payload: b"",
    };
    log.stage(&later).unwrap();
    log.write().unwrap();
    drop(log);
    let error = open_as(&fs, OWNER).err().unwrap().to_string();
    assert!(error.contains("without the hard state"), "{error}");
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
    assert_eq!(
        opened.journal.write(&second).unwrap(),
        Written::Refused(Shortage::Space)
    );
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
        (0..3u64, lengths, 0..4u64, any::<bool>()).prop_map(|(back, lengths, commit, idle)| Step {
            back,
            lengths,
            commit,
            idle,
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
