//! Compaction and the writing of hints, step by step on the disk in memory, with every failure and
//! crash, beside the model. Each opening is compared with one without hints.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::disk::fs::FileSystem;
use crate::disk::log::LogOptions;
use crate::disk::mem::{Fault, Loss, MemFileSystem, Operation};
use crate::ids::Key;
use crate::storage::log_engine::LogEngine;
use crate::storage::model::ModelEngine;
use crate::storage::{Committed, Engine};

mod hint_files;

const DIR: &str = "log";

type Contents = BTreeMap<u64, Bytes>;

/// An engine with its compactor beside the model.
struct Rig {
    fs: MemFileSystem,
    engine: LogEngine,
    compactor: Compactor,
    model: ModelEngine,
}

fn open(fs: &MemFileSystem) -> (LogEngine, Compactor) {
    let options = LogOptions {
        segment_bytes: 4 << 10,
        reserve_bytes: 16 << 10,
        salt: 1,
    };
    let disk = Arc::new(fs.clone());
    let (engine, recovery) = LogEngine::open(disk, Path::new(DIR), options).unwrap();
    assert_eq!(recovery.damaged, []);
    let compactor = engine.compactor();
    (engine, compactor)
}

/// Opens a copy of the disk without its hints, which must give the same index.
fn check_hints(fs: &MemFileSystem) {
    let (with, without) = (fs.fork(), fs.fork());
    for segment in hints::list(&without, DIR.as_ref()).unwrap() {
        hints::remove(&without, DIR.as_ref(), segment);
    }
    let (_, with) = open(&with);
    let (_, without) = open(&without);
    assert!(without.hinted.is_empty());
    assert!(*with.shared.index.read() == *without.shared.index.read());
}

impl Rig {
    fn new() -> Rig {
        let fs = MemFileSystem::new();
        let (engine, compactor) = open(&fs);
        Rig {
            fs,
            engine,
            compactor,
            model: ModelEngine::default(),
        }
    }

    fn store(&mut self, number: u64, length: usize) {
        let revision = Revision::from_u64(number);
        let payload = Bytes::from(vec![number as u8; length]);
        let key = Key::Id(number);
        let staged = self.engine.store(revision, &key, &payload).unwrap();
        assert_eq!(staged, self.model.store(revision, &key, &payload).unwrap());
    }

    fn release(&mut self, number: u64) {
        let revision = Revision::from_u64(number);
        self.engine.release(revision).unwrap();
        self.model.release(revision).unwrap();
    }

    fn commit(&mut self) {
        assert_eq!(self.engine.commit().unwrap(), Committed::Done);
        self.model.commit().unwrap();
    }

    /// Compacts and writes hints until there is nothing to do; false if the disk failed.
    fn compact(&mut self) -> bool {
        self.compact_but(u64::MAX)
    }

    /// The same, with the process ending before the step of this number.
    fn compact_but(&mut self, mut steps: u64) -> bool {
        let (engine, mut failed) = (&mut self.engine, false);
        let mut submit = |step: Step| {
            if steps == 0 {
                return false;
            }
            steps -= 1;
            let done = engine.compact(&step);
            failed |= done.is_err();
            done.unwrap_or(false)
        };
        for _ in 0..1000 {
            let compacted = self.compactor.compact_one(&mut submit);
            match (compacted, self.compactor.hint_one()) {
                (Ok(false), Ok(false)) => return !failed,
                (Ok(_), Ok(_)) => {}
                (Err(_), _) | (_, Err(_)) => return false,
            }
        }
        panic!("compaction does not end");
    }

    fn reopen(&mut self) {
        let counted = self.copies();
        check_hints(&self.fs);
        (self.engine, self.compactor) = open(&self.fs);
        self.check();
        assert_eq!(counted, self.copies(), "dead copies as the log has them");
    }

    fn copies(&self) -> Vec<u32> {
        let index = self.compactor.shared.index.read();
        let copies = |number| index.dead_copies(Revision::from_u64(number));
        (0..1000).map(copies).collect()
    }

    fn check(&self) {
        assert_eq!(contents(&self.engine), expected(&self.model));
        let reader = self.engine.reader();
        assert_eq!(reader.counters(), self.model.reader().counters());
    }

    fn segments(&self) -> usize {
        let names = self.fs.list(Path::new("log")).unwrap();
        names.iter().filter(|name| name.ends_with(".log")).count()
    }

    /// A copy of the disk, in which the power then fails.
    fn check_crash(&self, loss: Loss<'_>) {
        let fs = self.fs.fork();
        fs.heal();
        fs.crash(loss);
        for _ in 0..2 {
            check_hints(&fs);
            let (mut engine, mut compactor) = open(&fs);
            assert_eq!(contents(&engine), expected(&self.model));
            // What is left to do is done, and loses and resurrects nothing either.
            let mut submit = |step| engine.compact(&step).unwrap();
            while compactor.compact_one(&mut submit).unwrap() || compactor.hint_one().unwrap() {}
            assert_eq!(contents(&engine), expected(&self.model));
            fs.crash(Loss::Everything);
        }
    }
}

fn contents(engine: &LogEngine) -> Contents {
    let reader = engine.reader();
    let fetch = |number| {
        let record = reader.fetch(Revision::from_u64(number)).unwrap();
        record.map(|(key, payload)| {
            assert_eq!(key, Key::Id(number));
            (number, payload)
        })
    };
    (0..1000).filter_map(fetch).collect()
}

fn expected(model: &ModelEngine) -> Contents {
    let contents = model.contents().into_iter();
    contents
        .map(|(at, (_, payload))| (at.as_u64(), payload))
        .collect()
}

/// Segments with stores, and behind them segments with releases of most of them.
fn used() -> Rig {
    let mut rig = Rig::new();
    for number in 0..40 {
        rig.store(number, 300);
        if number % 3 == 0 {
            rig.commit();
        }
    }
    for number in 0..40 {
        if number % 8 != 3 {
            rig.release(number);
            rig.commit();
        }
    }
    for number in 5..9 {
        rig.store(number, 900);
        rig.commit();
    }
    rig
}

#[test]
fn space_comes_back_and_nothing_is_lost_or_resurrected() {
    let mut rig = used();
    let before = rig.segments();
    assert!(rig.compact());
    rig.check();
    assert!(
        rig.segments() * 2 < before,
        "{} of {before}",
        rig.segments()
    );
    rig.reopen();
    for number in 0..40 {
        rig.release(number);
    }
    for number in 100..103 {
        rig.store(number, 1500);
        rig.commit();
    }
    assert!(rig.compact());
    rig.reopen();
    let copies: u32 = rig.copies().iter().sum();
    let releases = rig.compactor.shared.index.read().live_bytes(1);
    assert_eq!(releases, 0);
    assert!(
        copies < 10 && rig.segments() <= 4,
        "{copies} {}",
        rig.segments()
    );
}

#[test]
fn a_release_stays_as_long_as_a_store_that_it_rules_out() {
    let mut rig = Rig::new();
    // Segment 1 stays: most of it is live. Its other record is released in a later segment.
    rig.store(1, 2000);
    rig.store(2, 500);
    rig.commit();
    rig.store(3, 3000);
    rig.commit();
    rig.release(2);
    rig.commit();
    rig.store(4, 2500);
    rig.commit();
    rig.release(4);
    rig.commit();
    for number in 5..8 {
        rig.store(number, 2500);
        rig.commit();
    }
    assert!(rig.compact());
    rig.reopen();
    assert!(!contents(&rig.engine).contains_key(&2));
    assert_eq!(rig.copies()[2], 1, "the store is still in segment 1");
    // Once that is gone, the release goes too.
    rig.release(1);
    rig.commit();
    for number in 10..13 {
        rig.store(number, 2500);
        rig.commit();
    }
    assert!(rig.compact());
    rig.reopen();
    assert_eq!(rig.copies()[2], 0);
}

#[test]
fn a_crash_at_every_step_loses_and_resurrects_nothing() {
    for steps in 0.. {
        let mut rig = used();
        rig.compact_but(steps);
        for loss in [Loss::Everything, Loss::Nothing, Loss::Random(steps)] {
            rig.check_crash(loss);
        }
        let mut whole = used();
        whole.compact();
        if rig.segments() == whole.segments() {
            assert!(steps > 5);
            break;
        }
    }
}

#[test]
fn a_crash_at_every_failing_call_loses_and_resurrects_nothing() {
    for fault in [Fault::Io, Fault::NoSpace, Fault::ShortWrite] {
        for call in 0.. {
            let mut rig = used();
            rig.fs.fail(Operation::Any, call, fault);
            let healthy = rig.compact();
            for loss in [Loss::Everything, Loss::Nothing, Loss::Random(call)] {
                rig.check_crash(loss);
            }
            if healthy {
                rig.fs.heal();
                rig.check();
                rig.store(900, 10);
                rig.commit();
            }
            if healthy && call > 400 {
                break;
            }
        }
    }
}

#[test]
fn a_segment_without_live_records_goes_from_a_disk_without_any_space() {
    let mut rig = Rig::new();
    for number in 0..4 {
        rig.store(number, 3000);
        rig.commit();
    }
    for number in 0..3 {
        rig.release(number);
    }
    rig.commit();
    rig.fs.set_capacity(Some(0));
    assert!(rig.compact());
    assert!(rig.segments() <= 2, "{}", rig.segments());
    rig.fs.set_capacity(None);
    rig.reopen();
}

#[test]
fn a_damaged_segment_stays_and_goes_on_to_be_reported() {
    let mut rig = used();
    assert!(rig.fs.flip_bit(Path::new("log/00000001.log"), 1100, 1));
    assert!(rig.compact());
    let path = Path::new("log/00000001.log");
    assert!(rig.fs.exists(path).unwrap());
    let hints = hints::list(&rig.fs, DIR.as_ref()).unwrap();
    assert!(
        !hints.contains(&1),
        "it would hide the damage from the next opening"
    );
    let (disk, dir) = (Arc::new(rig.fs.clone()), Path::new("log"));
    let (_, recovery) = LogEngine::open(disk, dir, LogOptions::default()).unwrap();
    assert_eq!(recovery.damaged.len(), 1);
}

#[test]
fn a_reader_follows_a_record_that_is_moved() {
    let mut rig = used();
    let reader = rig.engine.reader();
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            for _ in 0..300 {
                for number in [3, 11, 19, 27, 35] {
                    let found = reader.fetch(Revision::from_u64(number)).unwrap();
                    assert_eq!(found.unwrap().1, vec![number as u8; 300]);
                }
            }
        });
        assert!(rig.compact());
        reading.join().unwrap();
    });
    rig.check();
}

#[derive(Clone, Debug)]
enum Act {
    Store(u64, usize),
    Release(u64),
    Commit,
    /// Compaction and hints, cut off before a step.
    Compact(u64),
    /// Something happens to a hint.
    Spoil(Spoil, usize),
    Crash(u64),
}

#[derive(Clone, Copy, Debug)]
enum Spoil {
    Flip,
    Cut,
    Remove,
    /// It is replaced by the one of another segment.
    Exchange,
}

impl Rig {
    /// Spoils one of the hints, if there is any, in one of its places.
    fn spoil(&self, what: Spoil, choice: usize) {
        let there = hints::list(&self.fs, DIR.as_ref()).unwrap();
        let path = |at: usize| {
            Some(hints::path(
                DIR.as_ref(),
                *there.get(at % there.len().max(1))?,
            ))
        };
        let Some(chosen) = path(choice) else {
            return;
        };
        let length = self.fs.content(&chosen).unwrap().len();
        let place = (choice / 7 % length.max(1)) as u64;
        match what {
            Spoil::Flip => _ = self.fs.flip_bit(&chosen, place, choice as u8),
            Spoil::Cut => self.fs.open(&chosen).unwrap().set_len(place).unwrap(),
            Spoil::Remove => self.fs.remove(&chosen).unwrap(),
            Spoil::Exchange => {
                let other = path(choice + 1).unwrap();
                let content = self.fs.content(&other).unwrap();
                let file = self.fs.open(&chosen).unwrap();
                file.set_len(0).unwrap();
                file.write_all_at(&content, 0).unwrap();
            }
        }
    }
}

fn any_spoil() -> impl Strategy<Value = Act> {
    let kinds = [Spoil::Flip, Spoil::Cut, Spoil::Remove, Spoil::Exchange];
    let kind = prop::sample::select(kinds.to_vec());
    (kind, any::<usize>()).prop_map(|(kind, choice)| Act::Spoil(kind, choice))
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (0u64..20, 100usize..1500).prop_map(|(number, length)| Act::Store(number, length)),
        8 => (0u64..20).prop_map(Act::Release),
        4 => Just(Act::Commit),
        2 => (0u64..12).prop_map(Act::Compact),
        1 => any_spoil(),
        1 => any::<u64>().prop_map(Act::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any life with compaction and hints, cut off anywhere, and with spoilt hints and crashes, is
    /// that of the model, and has the index that the records of the log give.
    #[test]
    fn it_behaves_as_the_model(acts in prop::collection::vec(any_act(), 0..120)) {
        let mut rig = Rig::new();
        for act in acts {
            match act {
                Act::Store(number, length) => {
                    let known = expected(&rig.model).contains_key(&number);
                    if !known {
                        rig.store(number, length);
                        rig.commit();
                    }
                }
                Act::Release(number) => rig.release(number),
                Act::Commit => rig.commit(),
                Act::Compact(steps) => {
                    rig.commit();
                    rig.compact_but(steps);
                    rig.check();
                }
                Act::Spoil(what, choice) => rig.spoil(what, choice),
                Act::Crash(seed) => {
                    rig.commit();
                    rig.fs.crash(Loss::Random(seed));
                    rig.reopen();
                }
            }
        }
        rig.commit();
        rig.compact();
        rig.check();
        rig.reopen();
    }
}
