//! Does every engine in every write mode do what [`super`] and the table of write modes promise?
//!
//! Each operation is done to an engine on a disk in memory and to the model, and compared. A
//! process crash drops the engine, a power failure also loses a part of what is unsynced.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::fs::FileSystem;
use crate::disk::log::LogOptions;
use crate::disk::mem::{Fault, Loss, MemFileSystem, Operation};
use crate::ids::{Key, Revision};
use crate::storage::model::ModelEngine;
use crate::storage::opening::{self, StoreOptions};
use crate::storage::{Committed, Engine, EngineKind, ReadError, Staged, WriteMode};

mod properties;

const DIR: &str = "data";

/// Revisions that tests use are below it.
const NUMBERS: u64 = 20;

const ENGINES: [EngineKind; 2] = [EngineKind::Log, EngineKind::Files];
const MODES: [WriteMode; 3] = [WriteMode::Buffered, WriteMode::Unbuffered, WriteMode::Sync];

type Contents = BTreeMap<Revision, (Key, Bytes)>;

/// An engine on a disk in memory beside the model.
struct Pair {
    fs: MemFileSystem,
    kind: EngineKind,
    mode: WriteMode,
    engine: Box<dyn Engine>,
    model: ModelEngine,
    /// What was committed since all was on the disk for certain: that state first, the last is now.
    history: Vec<Contents>,
    /// The states from here on survive a process crash.
    written: usize,
    /// Released in the group that is staged.
    releases: Vec<Revision>,
}

fn every() -> impl Iterator<Item = (EngineKind, WriteMode)> {
    let engines = ENGINES.into_iter();
    engines.flat_map(|kind| MODES.into_iter().map(move |mode| (kind, mode)))
}

fn open(fs: &MemFileSystem, kind: EngineKind, mode: WriteMode) -> opening::Store {
    let options = StoreOptions {
        engine: kind,
        io: mode,
        // Small segments, so that a few records fill one.
        log: LogOptions {
            segment_bytes: 4 << 10,
            reserve_bytes: 8 << 10,
            salt: 1,
        },
    };
    let fs: Arc<dyn FileSystem> = Arc::new(fs.clone());
    opening::open(&fs, Path::new(DIR), &options).unwrap()
}

/// A record; every third key is too long for a file's name.
fn record(number: u64, variant: u8, length: usize) -> (Revision, Key, Bytes) {
    let key = match number % 3 {
        0 => Key::Id(number),
        1 => Key::parse(format!("./key {number}").replace(' ', "-").as_bytes()).unwrap(),
        _ => Key::parse("ü".repeat(100 + number as usize).as_bytes()).unwrap(),
    };
    let payload = Bytes::from(vec![variant; length]);
    (Revision::from_u64(number), key, payload)
}

impl Pair {
    fn new(kind: EngineKind, mode: WriteMode) -> Pair {
        let fs = MemFileSystem::new();
        Pair {
            engine: open(&fs, kind, mode).engine,
            fs,
            kind,
            mode,
            model: ModelEngine::default(),
            history: vec![Contents::default()],
            written: 0,
            releases: Vec::new(),
        }
    }

    fn store(&mut self, number: u64, variant: u8, length: usize) -> Staged {
        let (revision, key, payload) = record(number, variant, length);
        let staged = self.engine.store(revision, &key, &payload).unwrap();
        assert_eq!(staged, self.model.store(revision, &key, &payload).unwrap());
        staged
    }

    fn release(&mut self, number: u64) {
        let revision = Revision::from_u64(number);
        self.engine.release(revision).unwrap();
        self.model.release(revision).unwrap();
        self.releases.push(revision);
    }

    /// Commits; what the answer says took effect did, and nothing else.
    fn commit(&mut self) -> Committed {
        self.note_between();
        let committed = self.engine.commit().unwrap();
        self.model.set_space(committed);
        self.model.commit().unwrap();
        self.history.push(self.model.contents());
        match self.mode {
            WriteMode::Buffered => {}
            WriteMode::Unbuffered => self.written = self.history.len() - 1,
            WriteMode::Sync => self.settled(),
        }
        self.compare();
        committed
    }

    /// A power failure may find what a group of files released gone, and what it stored not there
    /// yet: its names change one after the other.
    fn note_between(&mut self) {
        let released = std::mem::take(&mut self.releases);
        if self.kind == EngineKind::Files {
            let mut between = self.history.last().expect("there is a state").clone();
            between.retain(|revision, _| !released.contains(revision));
            self.history.push(between);
        }
    }

    fn flush(&mut self) {
        self.engine.flush().unwrap();
        assert!(!self.engine.is_buffering());
        self.written = self.history.len() - 1;
    }

    fn idle(&mut self) {
        self.engine.idle().unwrap();
        self.settled();
    }

    /// What there is now is on the disk.
    fn settled(&mut self) {
        self.history = vec![self.model.contents()];
        self.written = 0;
    }

    fn compare(&self) {
        let (contents, damaged) = self.contents();
        assert_eq!((contents, damaged), (self.model.contents(), Vec::new()));
        let (reader, model) = (self.engine.reader(), self.model.reader());
        assert_eq!(reader.counters(), model.counters());
        for revision in (0..NUMBERS).map(Revision::from_u64) {
            let length = model.length(revision);
            assert_eq!(reader.length(revision), length);
            if let Some(record) = reader.at_hand(revision, usize::MAX) {
                assert_eq!(model.fetch(revision).unwrap(), Some(record));
            }
            let less = length.and_then(|length| length.checked_sub(1));
            let at_hand = less.and_then(|less| reader.at_hand(revision, less as usize));
            assert_eq!(at_hand, None);
        }
    }

    /// What readers see, and the revisions that are damaged.
    fn contents(&self) -> (Contents, Vec<Revision>) {
        let reader = self.engine.reader();
        let (mut contents, mut damaged) = (Contents::default(), Vec::new());
        for revision in (0..NUMBERS).map(Revision::from_u64) {
            match reader.fetch(revision) {
                Ok(Some(record)) => _ = contents.insert(revision, record),
                Ok(None) => {}
                Err(ReadError::Damaged { .. }) => damaged.push(revision),
                Err(error) => panic!("{error}"),
            }
        }
        (contents, damaged)
    }

    /// The process dies; the operating system goes on.
    fn process_crash(&mut self) {
        self.engine = Box::new(ModelEngine::default());
        self.engine = open(&self.fs, self.kind, self.mode).engine;
        let (contents, damaged) = self.contents();
        assert_eq!(damaged, []);
        let allowed = &self.history[self.written..];
        assert!(allowed.contains(&contents), "{contents:?} of {allowed:?}");
        // A later power failure may still take what was not synced.
        self.adopt(contents);
    }

    fn power_loss(&mut self, loss: Loss<'_>) {
        self.engine = Box::new(ModelEngine::default());
        self.fs.crash(loss);
        self.engine = open(&self.fs, self.kind, self.mode).engine;
        let (contents, damaged) = self.contents();
        match self.kind {
            EngineKind::Log => {
                assert_eq!(damaged, []);
                let history = &self.history;
                assert!(history.contains(&contents), "{contents:?} of {history:?}");
            }
            EngineKind::Files => self.check_each(&contents, &damaged),
        }
        for revision in damaged {
            self.engine.release(revision).unwrap();
        }
        self.engine.commit().unwrap();
        self.engine.idle().unwrap();
        self.history = vec![contents.clone()];
        self.adopt(contents);
    }

    /// Each record is in one of its states since all was on the disk; what is damaged was not.
    fn check_each(&self, contents: &Contents, damaged: &[Revision]) {
        for revision in (0..NUMBERS).map(Revision::from_u64) {
            let states: Vec<_> = self
                .history
                .iter()
                .map(|state| state.get(&revision))
                .collect();
            if damaged.contains(&revision) {
                assert!(states.iter().any(|state| *state != states[0]), "{revision}");
            } else {
                assert!(states.contains(&contents.get(&revision)), "{revision}");
            }
        }
    }

    /// Goes on with what is there.
    fn adopt(&mut self, contents: Contents) {
        self.model = ModelEngine::default();
        self.releases.clear();
        for (revision, (key, payload)) in &contents {
            self.model.store(*revision, key, payload).unwrap();
        }
        self.model.commit().unwrap();
        self.history.push(contents);
        self.written = self.history.len() - 1;
        self.compare();
    }
}

/// Leaves so many bytes of the disk free.
fn limit(fs: &MemFileSystem, free: u64) {
    let large = 1 << 40;
    fs.set_capacity(Some(large));
    let used = large - fs.free_space(Path::new(DIR)).unwrap();
    fs.set_capacity(Some(used + free));
}

#[test]
fn each_mode_keeps_what_it_promises_and_shows_what_it_acknowledged() {
    for (kind, mode) in every() {
        let fresh = || {
            let mut pair = Pair::new(kind, mode);
            pair.store(1, 1, 100);
            pair.store(2, 1, 1000);
            assert_eq!(pair.commit(), Committed::Done);
            pair
        };
        let records = |pair: &Pair| pair.engine.reader().counters().records;
        let keep = |kept: bool| if kept { 2 } else { 0 };
        let mut pair = fresh();
        assert_eq!(pair.engine.is_buffering(), mode == WriteMode::Buffered);
        pair.process_crash();
        assert_eq!(
            records(&pair),
            keep(mode != WriteMode::Buffered),
            "{kind} {mode}"
        );
        let mut pair = fresh();
        pair.flush();
        pair.process_crash();
        assert_eq!(records(&pair), 2, "{kind} {mode}");
        let mut pair = fresh();
        pair.flush();
        pair.power_loss(Loss::Everything);
        assert_eq!(
            records(&pair),
            keep(mode == WriteMode::Sync),
            "{kind} {mode}"
        );
        let mut pair = fresh();
        pair.idle();
        pair.power_loss(Loss::Everything);
        assert_eq!(records(&pair), 2, "{kind} {mode}");
        pair.release(1);
        pair.commit();
        pair.power_loss(Loss::Everything);
        let released = mode == WriteMode::Sync;
        assert_eq!(records(&pair), 2 - u64::from(released), "{kind} {mode}");
        let mut pair = fresh();
        pair.engine.close().unwrap();
        pair.settled();
        pair.power_loss(Loss::Everything);
        assert_eq!(records(&pair), 2, "{kind} {mode}");
    }
}

#[test]
fn a_full_disk_refuses_stores_takes_releases_and_goes_on_by_itself() {
    for (kind, mode) in every() {
        let mut pair = Pair::new(kind, mode);
        for number in 0..8 {
            pair.store(number, 1, 1000);
        }
        assert_eq!(pair.commit(), Committed::Done);
        pair.flush();
        // Less than the reserve is left, and room for a segment with a group of releases.
        limit(&pair.fs, 6 << 10);
        pair.store(9, 1, 100);
        pair.release(1);
        pair.release(9);
        assert_eq!(pair.store(1, 2, 10), Staged::New);
        assert_eq!(pair.commit(), Committed::StoresFull, "{kind} {mode}");
        pair.release(2);
        pair.commit();
        assert_eq!(pair.engine.reader().counters().records, 6, "{kind} {mode}");
        pair.fs.set_capacity(None);
        pair.store(9, 1, 100);
        assert_eq!(pair.commit(), Committed::Done, "{kind} {mode}");
        pair.idle();
        pair.power_loss(Loss::Everything);
    }
}

#[test]
fn a_write_that_finds_no_space_leaves_nothing_of_the_group() {
    for (kind, mode) in every().filter(|(_, mode)| *mode != WriteMode::Buffered) {
        for calls in 0..3 {
            let mut pair = Pair::new(kind, mode);
            for number in 0..3 {
                pair.store(number, 1, 1000);
            }
            pair.commit();
            pair.release(0);
            for number in 4..8 {
                pair.store(number, 1, 1000);
            }
            pair.fs.fail(Operation::Write, calls, Fault::NoSpace);
            let committed = pair.commit();
            pair.fs.heal();
            // The log has one write for the group, or two with a segment's header.
            if kind == EngineKind::Files || calls == 0 {
                assert_eq!(committed, Committed::StoresFull, "{kind} {mode}");
            }
            pair.idle();
            pair.power_loss(Loss::Nothing);
        }
    }
}

#[test]
fn what_was_acknowledged_from_memory_waits_for_space_and_is_not_lost() {
    for kind in ENGINES {
        let mut pair = Pair::new(kind, WriteMode::Buffered);
        pair.store(1, 1, 1000);
        pair.store(2, 1, 1000);
        assert_eq!(pair.commit(), Committed::Done);
        // A neighbour takes the space before the flush.
        limit(&pair.fs, 6 << 10);
        pair.engine.flush().unwrap();
        assert!(pair.engine.is_buffering());
        pair.compare();
        pair.store(3, 1, 10);
        pair.release(2);
        assert_eq!(pair.commit(), Committed::StoresFull);
        assert!(pair.engine.close().is_err());
        pair.fs.set_capacity(None);
        pair.flush();
        pair.process_crash();
        assert_eq!(pair.engine.reader().counters().records, 1);
    }
}

#[test]
fn a_failed_sync_is_fatal_for_good() {
    for kind in ENGINES {
        let mut pair = Pair::new(kind, WriteMode::Sync);
        let (revision, key, payload) = record(1, 1, 10);
        pair.engine.store(revision, &key, &payload).unwrap();
        pair.fs.fail(Operation::Sync, 0, Fault::Io);
        assert!(pair.engine.commit().is_err());
        assert!(pair.engine.reader().fetch(revision).unwrap().is_none());
        assert!(pair.engine.store(revision, &key, &payload).is_err());
        assert!(pair.engine.idle().is_err());
    }
}

/// Unless noticed, an engine goes on writing into files that have no name any more, and each
/// acknowledgement is a copy that the next start does not find.
#[test]
fn nothing_is_acknowledged_once_the_directory_was_replaced() {
    for (kind, mode) in every() {
        for is_idle in [false, true] {
            let mut pair = Pair::new(kind, mode);
            pair.store(1, 1, 10);
            assert_eq!(pair.commit(), Committed::Done);
            pair.engine.flush().unwrap();
            pair.engine.check_in_place().unwrap();
            pair.fs.replace_dir(Path::new(DIR));
            let error = if is_idle {
                pair.engine.check_in_place().unwrap_err()
            } else {
                let (revision, key, payload) = record(2, 1, 10);
                pair.engine.store(revision, &key, &payload).unwrap();
                // In `buffered` mode a commit looks at nothing on the disk, the flush does.
                let committed = pair.engine.commit();
                assert_eq!(committed.is_ok(), mode == WriteMode::Buffered);
                let flushed = committed.and_then(|_| pair.engine.flush());
                flushed.unwrap_err()
            };
            let said = format!("{} {}", error, error.source);
            assert!(said.contains("was removed"), "{kind} {mode}: {said}");
            assert!(pair.engine.check_in_place().is_err());
            let (revision, key, payload) = record(3, 1, 10);
            let stored = pair.engine.store(revision, &key, &payload);
            let stored = stored.and_then(|_| pair.engine.commit());
            let flushed = stored.and_then(|_| pair.engine.flush());
            assert!(flushed.is_err(), "{kind} {mode}: it goes on");
        }
    }
}

#[test]
fn a_mode_may_change_and_an_engine_may_not() {
    for (kind, mode) in every() {
        let mut pair = Pair::new(kind, mode);
        pair.store(1, 1, 10);
        pair.commit();
        pair.engine.close().unwrap();
        for other in MODES {
            let mut reopened = open(&pair.fs, kind, other).engine;
            assert_eq!(reopened.reader().counters().records, 1);
            reopened.close().unwrap();
        }
        let other = ENGINES.into_iter().find(|other| *other != kind).unwrap();
        let check = |wanted| opening::check_engine(&pair.fs, Path::new(DIR), wanted).unwrap();
        assert!(check(kind).is_ok());
        let expected = format!(
            "data holds data of the engine `{kind}`, and `{other}` is wanted: give engine = \
             \"{kind}\", or another data directory"
        );
        assert_eq!(check(other).unwrap_err().to_string(), expected);
    }
}

#[test]
fn a_buffered_engine_that_failed_takes_nothing_more() {
    for kind in ENGINES {
        let fs = MemFileSystem::new();
        let mut engine = open(&fs, kind, WriteMode::Buffered).engine;
        let (revision, key, payload) = record(1, 1, 10);
        engine.store(revision, &key, &payload).unwrap();
        engine.commit().unwrap();
        fs.fail(Operation::Write, 0, Fault::Io);
        assert!(engine.flush().is_err());
        let (revision, key, payload) = record(2, 1, 10);
        assert!(engine.store(revision, &key, &payload).is_err());
        assert!(engine.commit().is_err() && engine.release(revision).is_err());
    }
}
