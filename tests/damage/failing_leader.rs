//! Failing I/O under a leader's journal and snapshots: one call of a fixed life fails, then the
//! process goes on or ends, and what a start finds is compared.
//!
//! A [`Life`] makes a group, appends entries, takes snapshots and cuts the journal behind them, and
//! starts again twice. What the threads of a group do with a full disk is done here: the same write
//! again, the snapshot given up.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tolerex::clock::SystemClock;
use tolerex::disk::log::LogOptions;
use tolerex::disk::mem::{Fault, Loss, MemFileSystem, Operation};
use tolerex::group::core::{HardState, ORIGIN, Persist};
use tolerex::group::identity::Identity;
use tolerex::group::journal::{Journal, Written};
use tolerex::group::snapshots::files::{SnapshotFiles, Written as SnapshotWritten};
use tolerex::group::window::{EntryKind, LogEntry, Position};
use tolerex::group::{
    Bootstrap, Configuration, GroupOptions, SnapshotSource, StateMachine, Timing, inspect,
};
use tolerex::ids::PeerId;
use tolerex::threads::StopSignal;

const DIR: &str = "group";
const TERM: u64 = 2;
const LAST: u64 = 60;

/// The state is the list of all entries.
#[derive(Default)]
struct List(Vec<Vec<u8>>);

impl StateMachine for List {
    type Output = ();

    fn apply(&mut self, index: u64, _: u64, data: &[u8]) -> Result<(), String> {
        assert_eq!(
            index,
            self.0.len() as u64 + 2,
            "each entry once and in order"
        );
        self.0.push(data.to_vec());
        Ok(())
    }

    fn restore(&mut self, chunk: &[u8]) -> Result<(), String> {
        self.0.push(chunk.to_vec());
        Ok(())
    }

    fn restored(&mut self, index: u64) -> Result<(), String> {
        assert_eq!(index, self.0.len() as u64 + 1, "a snapshot is whole");
        Ok(())
    }
}

struct Chunks(std::vec::IntoIter<Vec<u8>>);

impl SnapshotSource for Chunks {
    fn next_chunk(&mut self) -> Option<Vec<u8>> {
        self.0.next()
    }
}

fn data(index: u64) -> Vec<u8> {
    vec![index as u8; 100 + index as usize * 41 % 500]
}

fn entry(index: u64) -> LogEntry {
    LogEntry {
        kind: EntryKind::Command,
        index,
        term: TERM,
        data: data(index).into(),
    }
}

fn log_options() -> LogOptions {
    LogOptions {
        segment_bytes: 4 << 10,
        reserve_bytes: 0,
        salt: 5,
    }
}

fn group_options(fs: &MemFileSystem) -> GroupOptions {
    GroupOptions {
        fs: Arc::new(fs.clone()),
        dir: PathBuf::from(DIR),
        clock: SystemClock::shared(),
        bootstrap: Bootstrap::New,
        log: log_options(),
        snapshot_bytes: 1 << 20,
        timing: Timing::default(),
        asks_peers: true,
        asks_members: false,
        on_failure: Box::new(|error| panic!("{error}")),
    }
}

/// The first error ends a life.
#[derive(Debug)]
struct Ended(String);

/// Says which call failed, if the test fails.
struct Told(Fault, u64, u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Told(fault, call, calls) = self;
            println!("{fault:?} of call {call} of {calls}");
        }
    }
}

fn ended(error: impl std::fmt::Display) -> Ended {
    Ended(error.to_string())
}

struct Life {
    fs: MemFileSystem,
    peer: Option<PeerId>,
    /// All up to this entry are acknowledged.
    acknowledged: u64,
    /// Nothing behind this entry was ever written.
    attempted: u64,
    /// Writes and snapshots that found no space.
    refused: u64,
    /// It has not come to an open journal.
    starts: bool,
}

/// An open journal and the snapshots beside it.
struct Open {
    journal: Journal,
    files: SnapshotFiles,
}

impl Life {
    fn live(call: u64, fault: Fault) -> (Life, bool) {
        let fs = MemFileSystem::new();
        fs.fail(Operation::Any, call, fault);
        let mut life = Life {
            fs,
            peer: None,
            acknowledged: ORIGIN.index,
            attempted: ORIGIN.index,
            refused: 0,
            starts: false,
        };
        let ended = life.rounds().is_err();
        (life, ended)
    }

    fn rounds(&mut self) -> Result<(), Ended> {
        for until in [20, 40, LAST] {
            let mut open = self.start()?;
            while self.acknowledged < until {
                self.append(&mut open.journal)?;
                if self.acknowledged.is_multiple_of(7) {
                    self.snapshot(&mut open)?;
                }
                if self.acknowledged.is_multiple_of(5) {
                    open.journal.idle().map_err(ended)?;
                }
            }
            if until == 40 {
                continue; // It ends at once.
            }
            open.journal.idle().map_err(ended)?;
        }
        Ok(())
    }

    /// Starts as a group does, and has the journal open.
    fn start(&mut self) -> Result<Open, Ended> {
        self.starts = true;
        self.check_state(&self.fs.clone())?;
        let identity = Identity::read(&self.fs, Path::new(DIR)).map_err(ended)?;
        let owner = identity.expect("an identity").peer;
        self.peer = Some(owner);
        let fs = Arc::new(self.fs.clone());
        let files = SnapshotFiles {
            fs: fs.clone(),
            dir: Path::new(DIR).join("snapshots"),
            owner,
            founders: Configuration::of([owner]),
            reserve_bytes: 0,
        };
        let found = files.open(&mut |_| Ok(())).map_err(ended)?;
        let start = found.map_or(ORIGIN, |found| found.position);
        let dir = Path::new(DIR).join("journal");
        let opened = Journal::open(
            fs,
            &dir,
            log_options(),
            owner,
            super::start_at(start, owner),
            1 << 20,
            &mut |_| (),
        );
        let (journal, recovered) = opened.map_err(ended)?;
        // An entry that was written and not acknowledged may be there: it counts.
        let last = recovered.expect("a hard state").window.last_index();
        assert!((self.acknowledged..=self.attempted).contains(&last));
        self.acknowledged = last;
        self.starts = false;
        Ok(Open { journal, files })
    }

    /// Writes the next entries, as often as there is no space.
    fn append(&mut self, journal: &mut Journal) -> Result<(), Ended> {
        let first = self.acknowledged + 1;
        let last = first + first % 2;
        let write = Persist {
            number: first,
            reset: None,
            entries: (first..=last).map(entry).collect(),
            hard_state: HardState {
                term: TERM,
                vote: None,
                commit: self.acknowledged,
            },
        };
        self.attempted = self.attempted.max(last);
        let writes = [write];
        for _ in 0..3 {
            match journal.write(&writes) {
                Ok(Written::Durable) => {
                    self.acknowledged = last;
                    return Ok(());
                }
                Ok(Written::Refused(_)) => self.refused += 1,
                Err(error) => {
                    assert!(journal.write(&writes).is_err(), "it goes on after an error");
                    assert!(journal.idle().is_err());
                    return Err(ended(error));
                }
            }
        }
        panic!("there is space, and the journal takes nothing");
    }

    /// Takes a snapshot of what is acknowledged, and cuts the journal behind it.
    fn snapshot(&mut self, open: &mut Open) -> Result<(), Ended> {
        let position = Position {
            index: self.acknowledged,
            term: TERM,
        };
        let state: Vec<Vec<u8>> = (2..=self.acknowledged).map(data).collect();
        let source = Box::new(Chunks(state.into_iter()));
        let configuration = open.files.founders.clone();
        match open
            .files
            .write(position, &configuration, source, &StopSignal::default())
        {
            Ok(SnapshotWritten::Durable { .. }) => {
                open.files.remove_older(position.index);
                let cut = open.journal.cut(position.index);
                cut.map_err(ended)
            }
            Ok(SnapshotWritten::Refused(_)) => {
                self.refused += 1;
                Ok(())
            }
            Ok(SnapshotWritten::Stopped) => panic!("nobody said so"),
            Err(error) => Err(ended(error)),
        }
    }

    /// Opens an image: it has all that was acknowledged, and nothing that was not written.
    fn check_state(&self, fs: &MemFileSystem) -> Result<u64, Ended> {
        let mut list = List::default();
        let recovered = inspect(&group_options(fs), &mut list);
        let recovered = recovered.map_err(|error| Ended(error.to_string()))?;
        let mut state = list.0;
        for index in state.len() as u64 + 2.. {
            match recovered.window.entry(index) {
                Some(entry) => state.push(entry.data.to_vec()),
                None => break,
            }
        }
        let last = state.len() as u64 + 1;
        assert!(
            (self.acknowledged..=self.attempted).contains(&last),
            "{last} is the last entry of {} acknowledged and {} written",
            self.acknowledged,
            self.attempted
        );
        let expected: Vec<Vec<u8>> = (2..=last).map(data).collect();
        assert!(state == expected, "other entries");
        let identity = Identity::read(fs, Path::new(DIR)).map_err(ended)?;
        let peer = identity.map(|identity| identity.peer);
        assert!(self.peer.is_none() || self.peer == peer, "another peer");
        Ok(last)
    }

    fn check_images(&self, call: u64) {
        self.fs.heal();
        for loss in [
            None,
            Some(Loss::Everything),
            Some(Loss::Nothing),
            Some(Loss::Random(call)),
        ] {
            let fs = self.fs.fork();
            if let Some(loss) = loss {
                fs.crash(loss);
            }
            let last = self
                .check_state(&fs)
                .unwrap_or_else(|Ended(error)| panic!("{error}"));
            fs.crash(Loss::Everything);
            let again = self.check_state(&fs).expect("it starts again");
            assert_eq!(last, again, "what was found is durable");
            let life = Life {
                fs: fs.fork(),
                peer: self.peer,
                acknowledged: last,
                attempted: LAST + 10,
                refused: 0,
                starts: false,
            };
            life.goes_on();
        }
    }

    /// It takes entries again.
    fn goes_on(mut self) {
        let mut open = self
            .start()
            .unwrap_or_else(|Ended(error)| panic!("{error}"));
        for _ in 0..3 {
            self.append(&mut open.journal).expect("it takes entries");
        }
        self.fs.crash(Loss::Everything);
        assert_eq!(
            self.check_state(&self.fs)
                .unwrap_or_else(|Ended(error)| panic!("{error}")),
            self.acknowledged
        );
    }
}

/// Lets every `step`th call fail in turn in each way; returns the number of lives.
pub fn run(step: usize) -> u64 {
    let (whole, ended) = Life::live(u64::MAX, Fault::Io);
    assert!(!ended && whole.refused == 0);
    let calls = whole.fs.calls();
    whole.check_images(0);
    let mut lives = 0;
    for fault in [Fault::Io, Fault::NoSpace, Fault::ShortWrite, Fault::Refused] {
        for call in (0..calls).step_by(step) {
            let (life, ended) = Life::live(call, fault);
            let _told = Told(fault, call, calls);
            assert!(ended || life.refused <= 1, "{} refused", life.refused);
            assert!(ended || life.acknowledged >= LAST);
            // A start and a failed sync are what a shortage may end.
            let is_final = life.starts || life.fs.failed() == Some(Operation::Sync);
            let failed = life.fs.failed();
            assert!(
                !ended || fault != Fault::Refused || is_final,
                "{failed:?} ends it"
            );
            life.check_images(call);
            lives += 1;
        }
    }
    lives
}
