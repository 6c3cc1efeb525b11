//! Snapshots with the journal behind them: crashes, damage, full disks, and when they are taken.

use std::path::{Path, PathBuf};

use super::files::{Found, Piece};
use super::*;
use crate::clock::ManualClock;
use crate::disk::fs::FileSystem;
use crate::disk::log::LogOptions;
use crate::disk::mem::{Fault, Loss, MemFileSystem, Operation};
use crate::error::Shortage;
use crate::group::core::{HardState, ORIGIN, Persist};
use crate::group::journal::{Journal, JournalError, Start, Written as JournalWritten};
use crate::group::window::{EntryKind, LogEntry};
use crate::ids::PeerId;

const OWNER: PeerId = PeerId(7);
const TERM: u64 = 2;

/// The state is the list of all entries' data.
type State = Vec<Vec<u8>>;

struct Chunks(std::vec::IntoIter<Vec<u8>>);

impl SnapshotSource for Chunks {
    fn next_chunk(&mut self) -> Option<Vec<u8>> {
        self.0.next()
    }
}

fn source(state: &State) -> Box<dyn SnapshotSource> {
    Box::new(Chunks(state.clone().into_iter()))
}

fn files(fs: &MemFileSystem) -> SnapshotFiles {
    SnapshotFiles {
        fs: Arc::new(fs.clone()),
        dir: PathBuf::from("snapshots"),
        owner: OWNER,
        founders: Configuration::of([OWNER]),
        reserve_bytes: 0,
    }
}

fn restore(files: &SnapshotFiles) -> Result<(Option<Found>, State), String> {
    let mut state = State::new();
    let found = files.open(&mut |piece| {
        if let Piece::Chunk(chunk) = piece {
            state.push(chunk.to_vec());
        }
        Ok(())
    });
    match found {
        Ok(found) => Ok((found, state)),
        Err(error) => Err(error.to_string()),
    }
}

fn write(files: &SnapshotFiles, index: u64, state: &State) -> Result<Written, String> {
    let position = Position { index, term: TERM };
    let configuration = Configuration::of([OWNER]);
    let stop = StopSignal::default();
    let written = files.write(position, &configuration, source(state), &stop);
    written.map_err(|error| error.to_string())
}

fn open_journal(
    fs: &MemFileSystem,
    start: Position,
    apply: &mut dyn FnMut(&LogEntry),
) -> Result<Journal, JournalError> {
    let options = LogOptions {
        segment_bytes: 4 << 10,
        reserve_bytes: 0,
        salt: 5,
    };
    let dir = Path::new("journal");
    let fs = Arc::new(fs.clone());
    let start = Start {
        position: start,
        configuration: Configuration::of([OWNER]),
        is_received: false,
    };
    let (journal, _) = Journal::open(fs, dir, options, OWNER, start, 1 << 20, apply)?;
    Ok(journal)
}

fn data(index: u64) -> Vec<u8> {
    vec![index as u8; 900]
}

fn append(journal: &mut Journal, index: u64) -> bool {
    let entry = LogEntry {
        kind: EntryKind::Command,
        index,
        term: TERM,
        data: data(index).into(),
    };
    let hard_state = HardState {
        term: TERM,
        vote: None,
        // One behind, as it is when each entry is committed after it was written.
        commit: index - 1,
    };
    let write = Persist {
        number: 0,
        reset: None,
        entries: vec![entry],
        hard_state,
    };
    matches!(journal.write(&[write]), Ok(JournalWritten::Durable))
}

/// Entries 2 to 40, each applied as soon as it is durable, with a snapshot and a cut after every
/// tenth. Ends at the first failure; returns the last entry that was acknowledged.
fn workload(fs: &MemFileSystem) -> u64 {
    let files = files(fs);
    if files.open(&mut |_| Ok(())).is_err() {
        return ORIGIN.index;
    }
    let Ok(mut journal) = open_journal(fs, ORIGIN, &mut |_| ()) else {
        return ORIGIN.index;
    };
    let mut state = State::new();
    for index in 2..=40 {
        if !append(&mut journal, index) {
            return index - 1;
        }
        state.push(data(index));
        if index % 10 == 0 {
            let Ok(Written::Durable { .. }) = write(&files, index, &state) else {
                return index;
            };
            files.remove_older(index);
            if journal.cut(index).is_err() {
                return index;
            }
        }
    }
    40
}

/// The state that a start finds, and the number of entries that it applied behind the snapshot.
fn recover(fs: &MemFileSystem) -> (State, usize) {
    let (found, mut state) = restore(&files(fs)).expect("a snapshot is whole or not there");
    let start = found.map_or(ORIGIN, |found| found.position);
    let mut applied = Vec::new();
    open_journal(fs, start, &mut |entry| applied.push(entry.clone())).expect("a journal that fits");
    for (entry, index) in applied.iter().zip(start.index + 1..) {
        assert_eq!(entry.index, index, "replay begins at the next index");
    }
    let replayed = applied.len();
    state.extend(applied.into_iter().map(|entry| entry.data.to_vec()));
    (state, replayed)
}

#[test]
fn a_crash_at_any_step_of_snapshot_and_cut_leaves_the_exact_state() {
    for fault in [Fault::Io, Fault::ShortWrite] {
        let mut acknowledged = 0;
        for step in 0..300 {
            let fs = MemFileSystem::new();
            fs.create_dir_all(Path::new("journal")).unwrap();
            fs.fail(Operation::Any, step, fault);
            acknowledged = workload(&fs);
            for seed in 0..6 {
                let fs = fs.fork();
                fs.heal();
                fs.crash(match seed {
                    0 => Loss::Everything,
                    1 => Loss::Nothing,
                    seed => Loss::Random(seed * 1000 + step),
                });
                let (state, _) = recover(&fs);
                // The last entry may be there and not known to be committed.
                let expected: State = (2..=acknowledged + 1).map(data).collect();
                assert!(expected.starts_with(&state), "step {step} seed {seed}");
                let missing =
                    acknowledged as usize - 1 - state.len().min(acknowledged as usize - 1);
                assert!(
                    missing <= 1,
                    "step {step} seed {seed}: {missing} are missing"
                );
                // What was recovered is durable, and left-overs are no hindrance.
                fs.crash(Loss::Everything);
                assert_eq!(recover(&fs).0, state, "step {step} seed {seed}");
            }
        }
        assert_eq!(acknowledged, 40, "it has fewer steps than were tried");
    }
}

#[test]
fn a_restart_replays_only_what_is_behind_the_snapshot() {
    let fs = MemFileSystem::new();
    fs.create_dir_all(Path::new("journal")).unwrap();
    assert_eq!(workload(&fs), 40);
    let names = fs.list(Path::new("snapshots")).unwrap();
    assert_eq!(names, ["00000000000000000040.snapshot"]);
    let segments = fs.list(Path::new("journal")).unwrap();
    assert!(segments.len() <= 3, "{segments:?}");
    let (state, replayed) = recover(&fs);
    assert_eq!((state.len(), replayed), (39, 0));
}

#[test]
fn no_flipped_bit_and_no_cut_is_restored() {
    let fs = MemFileSystem::new();
    let files = files(&fs);
    assert_eq!(restore(&files).unwrap(), (None, State::new()));
    let state = vec![b"one".to_vec(), b"two".to_vec(), vec![7; 100]];
    write(&files, 9, &state).unwrap();
    let path = Path::new("snapshots/00000000000000000009.snapshot");
    let length = fs.content(path).unwrap().len() as u64;
    let (found, restored) = restore(&files).unwrap();
    let position = Position {
        index: 9,
        term: TERM,
    };
    let expected = Found {
        position,
        configuration: Configuration::of([OWNER]),
        is_received: false,
        bytes: length,
    };
    assert_eq!((found, restored), (Some(expected), state));
    let refused = |fs: &MemFileSystem, what: String| {
        let error = restore(&self::files(fs)).expect_err(&what);
        let named = error.contains("00000000000000000009.snapshot is damaged at offset");
        assert!(named || error.contains("version"), "{what}: {error}");
    };
    for bit in 0..length * 8 {
        let fs = fs.fork();
        assert!(fs.flip_bit(path, bit / 8, (bit % 8) as u8));
        refused(&fs, format!("bit {bit}"));
    }
    for cut in 0..length {
        let fs = fs.fork();
        fs.open(path).unwrap().set_len(cut).unwrap();
        refused(&fs, format!("cut at {cut}"));
    }
    let longer = fs.fork();
    longer.open(path).unwrap().set_len(length + 1).unwrap();
    refused(&longer, "longer".to_owned());
    // A snapshot of another index or peer is not taken for this one.
    let other = Path::new("snapshots/00000000000000000010.snapshot");
    let renamed = fs.fork();
    renamed.rename(path, other).unwrap();
    assert!(
        restore(&self::files(&renamed))
            .unwrap_err()
            .contains("its name says 10")
    );
    let mut foreign = self::files(&fs);
    foreign.owner = PeerId(8);
    assert!(restore(&foreign).unwrap_err().contains("belongs to peer"));
}

#[test]
fn a_snapshot_whose_name_is_not_durable_is_not_restored() {
    let fs = MemFileSystem::new();
    let files = files(&fs);
    restore(&files).unwrap();
    write(&files, 3, &vec![b"old".to_vec()]).unwrap();
    fs.fail(Operation::SyncDir, 0, Fault::Io);
    assert!(write(&files, 9, &vec![b"new".to_vec()]).is_err());
    let (found, state) = restore(&files).unwrap();
    assert_eq!(found.map(|found| found.position.index), Some(3));
    assert_eq!(state, [b"old"]);
}

#[test]
fn left_overs_go_and_the_newest_stays() {
    let fs = MemFileSystem::new();
    let files = files(&fs);
    restore(&files).unwrap();
    for index in [3, 20, 100] {
        write(&files, index, &vec![vec![index as u8]]).unwrap();
    }
    fs.create(Path::new("snapshots/snapshot.tmp")).unwrap();
    fs.create(Path::new("snapshots/notes.txt")).unwrap();
    let (found, state) = restore(&files).unwrap();
    assert_eq!(found.map(|found| found.position.index), Some(100));
    assert_eq!(state, [[100]]);
    let names = fs.list(Path::new("snapshots")).unwrap();
    assert_eq!(names, ["00000000000000000100.snapshot", "notes.txt"]);
}

#[test]
fn without_space_or_when_told_to_stop_nothing_is_left() {
    let fs = MemFileSystem::new();
    let mut files = files(&fs);
    restore(&files).unwrap();
    write(&files, 2, &vec![b"old".to_vec()]).unwrap();
    let large: State = vec![vec![1; 1 << 20]; 3];
    let names = || fs.list(Path::new("snapshots")).unwrap();
    fs.set_capacity(Some(2 << 20));
    assert_eq!(
        write(&files, 3, &large).unwrap(),
        Written::Refused(Shortage::Space)
    );
    // The journal's reserve is not touched.
    fs.set_capacity(Some(8 << 20));
    files.reserve_bytes = 6 << 20;
    assert_eq!(
        write(&files, 3, &large).unwrap(),
        Written::Refused(Shortage::Space)
    );
    files.reserve_bytes = 0;
    let stop = StopSignal::default();
    stop.stop();
    let position = Position {
        index: 3,
        term: TERM,
    };
    let stopped = files
        .write(position, &Configuration::of([OWNER]), source(&large), &stop)
        .unwrap();
    assert_eq!(stopped, Written::Stopped);
    assert_eq!(names(), ["00000000000000000002.snapshot"]);
    assert!(matches!(
        write(&files, 3, &large),
        Ok(Written::Durable { .. })
    ));
    files.remove_older(3);
    assert_eq!(names(), ["00000000000000000003.snapshot"]);
}

#[test]
fn one_is_due_when_the_journal_is_longer_than_the_limit_and_the_last_one() {
    let now = ManualClock::default().now();
    let mut schedule = Schedule::new(100, 0, 50);
    assert!(!schedule.is_due(now));
    schedule.journal_grew(101);
    assert!(schedule.is_due(now));
    schedule.begun();
    schedule.journal_grew(250);
    assert!(!schedule.is_due(now), "one at a time");
    schedule.finished(300);
    schedule.journal_grew(401);
    assert!(
        !schedule.is_due(now),
        "it is 300 behind the last one's begin"
    );
    schedule.journal_grew(402);
    assert!(schedule.is_due(now));
    schedule.begun();
    schedule.refused(now);
    schedule.journal_grew(476);
    assert!(!schedule.is_due(now), "there was no space");
    schedule.want();
    assert!(!schedule.is_due(now), "nor for a peer");
    assert!(schedule.is_due(now + RETRY_AFTER), "which waits for it");
    schedule.journal_grew(477);
    assert!(schedule.is_due(now));
    assert!(Schedule::new(100, 90, 101).is_due(now), "after a restart");
    assert!(!Schedule::new(100, 300, 101).is_due(now));
}
