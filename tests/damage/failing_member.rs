//! Failing I/O under a member: one call of a fixed life fails, then the process goes on or ends,
//! and what is found after a restart, or a power failure and a restart, is compared.
//!
//! A [`Life`] starts a member's store as a member does and does a fixed series of things with it:
//! stores (some with long keys), releases, overwrites, compaction, a segment filled ahead, raised
//! fences, an orderly restart and a sudden one. It ends with the first error.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tolerex::disk::atomic_file;
use tolerex::disk::fs::FileSystem;
use tolerex::disk::log::LogOptions;
use tolerex::disk::mem::{Fault, Loss, MemFileSystem, Operation};
use tolerex::ids::{Fence, Key, Revision};
use tolerex::member::identity::{self, Identity};
use tolerex::replica::fence;
use tolerex::storage::opening::{self, Store, StoreOptions};
use tolerex::storage::{Committed, EngineKind, Staged, WriteMode};
use tolerex::threads::StopSignal;

use super::identities::start;

const DIR: &str = "data";
const ROUNDS: u64 = 12;
/// Revisions of a life are below it.
const NUMBERS: u64 = ROUNDS * 4;

/// What is known of a revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Known {
    /// It is not there.
    #[default]
    Absent,
    /// It is there.
    Stored,
    /// What happened to it was not acknowledged, or need not have reached the disk.
    Maybe,
}

type Knowledge = BTreeMap<u64, Known>;

/// How a life is lived.
#[derive(Clone, Copy, Debug)]
struct Setting {
    engine: EngineKind,
    io: WriteMode,
}

impl Setting {
    fn options(&self) -> StoreOptions {
        StoreOptions {
            engine: self.engine,
            io: self.io,
            log: LogOptions {
                segment_bytes: 4 << 10,
                reserve_bytes: 1 << 10,
                salt: 1,
            },
        }
    }
}

/// The first error ends a life.
struct Ended;

struct Life {
    setting: Setting,
    fs: MemFileSystem,
    store: Option<Store>,
    /// As of the last start that came to an end.
    identity: Option<Identity>,
    /// The last fence that was saved.
    fence: Fence,
    /// What was acknowledged.
    current: Knowledge,
    /// What the end of the process must leave of it, and what a power failure must.
    after_end: Knowledge,
    after_crash: Knowledge,
    refused: u64,
    /// It starts or closes.
    is_at_an_end: bool,
    /// In this round the engine's files are moved away under it.
    moved_in: Option<u64>,
}

fn record(number: u64) -> (Revision, Key, Bytes) {
    let key = match number % 5 {
        1 => Key::parse(b"a.name").expect("a key"),
        3 => Key::parse("ü".repeat(120 + number as usize).as_bytes()).expect("a key"),
        _ => Key::Id(number),
    };
    let length = 40 + number as usize * 97 % 700;
    let payload: Vec<u8> = (0..length)
        .map(|at| (number as usize * 31 + at * 7) as u8)
        .collect();
    (Revision::new(1, number), key, payload.into())
}

impl Life {
    /// A life in which the call number `call` fails.
    fn live(setting: Setting, call: u64, fault: Fault) -> (Life, bool) {
        let mut life = Life::new(setting);
        life.fs.fail(Operation::Any, call, fault);
        let ended = life.rounds().is_err();
        if ended {
            life.takes_nothing_more();
        }
        (life, ended)
    }

    fn new(setting: Setting) -> Life {
        let fs = MemFileSystem::new();
        Life {
            setting,
            fs,
            store: None,
            identity: None,
            fence: Fence::default(),
            current: Knowledge::new(),
            after_end: Knowledge::new(),
            after_crash: Knowledge::new(),
            refused: 0,
            is_at_an_end: false,
            moved_in: None,
        }
    }

    fn rounds(&mut self) -> Result<(), Ended> {
        self.start()?;
        for round in 0..ROUNDS {
            let mut group = Vec::new();
            for number in round * 4..round * 4 + 4 {
                group.push((number, true));
                // An overwrite: another revision, and the old one goes.
                if number % 3 == 0 && number >= 7 {
                    group.push((number - 7, false));
                }
            }
            match round {
                // Stored and released at once; released and stored anew.
                4 => group.push((round * 4 + 1, false)),
                7 => group.extend([(26, false), (26, true)]),
                _ => {}
            }
            if self.moved_in == Some(round) {
                self.move_files(true);
            }
            self.group(&group)?;
            self.tend(round)?;
        }
        self.close()
    }

    /// Moves all files of the engine elsewhere, as renaming its directory does, or back.
    fn move_files(&self, is_away: bool) {
        let dir = opening::engine_dir(Path::new(DIR), self.setting.engine);
        let (from, to) = match is_away {
            true => (dir.clone(), Path::new("elsewhere").to_owned()),
            false => (Path::new("elsewhere").to_owned(), dir.clone()),
        };
        self.fs.create_dir_all(&to).expect("made");
        for name in self.fs.list(&from).expect("listed") {
            let moved = self.fs.rename(&from.join(&name), &to.join(&name));
            moved.expect("moved");
        }
        // A power failure does not undo it.
        for dir in [from, to] {
            self.fs.sync_dir(&dir).expect("synced");
        }
    }

    /// What happens beside the groups.
    fn tend(&mut self, round: u64) -> Result<(), Ended> {
        match round {
            1 | 6 => self.raise(Fence {
                term: round,
                link: 1,
            })?,
            3 => self.fill(),
            5 => {
                self.close()?;
                self.start()?;
            }
            9 => {
                // It ends at once; only what the mode promises is left.
                self.current = self.after_end.clone();
                self.start()?;
            }
            _ => {}
        }
        if round % 2 == 1 {
            self.compact()?;
        }
        if round % 4 == 2 {
            let failed = self.fs.failed();
            let idle = self.engine().idle();
            idle.map_err(|_| Ended)?;
            // What was refused is synced later.
            if self.fs.failed() == failed {
                self.settled();
            }
        }
        let flushed = self.engine().flush();
        flushed.map_err(|_| Ended)?;
        if !self.engine().is_buffering() {
            self.after_end = self.current.clone();
        }
        Ok(())
    }

    fn engine(&mut self) -> &mut dyn tolerex::storage::Engine {
        self.store.as_mut().expect("a store").engine.as_mut()
    }

    fn start(&mut self) -> Result<(), Ended> {
        self.store = None;
        self.is_at_an_end = true;
        let fs: Arc<dyn FileSystem> = Arc::new(self.fs.clone());
        let started = start(&fs, Path::new(DIR), &self.setting.options());
        let (store, identity) = started.map_err(|_| Ended)?;
        assert_eq!(store.recovery.damaged, []);
        self.compare_identity(&identity);
        self.identity = Some(identity);
        self.store = Some(store);
        self.is_at_an_end = false;
        Ok(())
    }

    /// The same member, another start of it.
    fn compare_identity(&self, identity: &Identity) {
        if let Some(before) = self.identity {
            assert_eq!(identity.id, before.id);
            assert!(
                identity.incarnation > before.incarnation,
                "{identity:?} after {before:?}"
            );
        }
        assert!(
            identity.fence >= self.fence,
            "the fence falls to {}",
            identity.fence
        );
    }

    /// A group of stores and releases.
    fn group(&mut self, changes: &[(u64, bool)]) -> Result<(), Ended> {
        let mut after = self.current.clone();
        for (number, is_store) in changes {
            // Until it is committed.
            self.after_end.insert(*number, Known::Maybe);
            self.after_crash.insert(*number, Known::Maybe);
            let (revision, key, payload) = record(*number);
            if *is_store {
                let staged = self.engine().store(revision, &key, &payload);
                let staged = staged.map_err(|_| Ended)?;
                assert_ne!(staged, Staged::Conflict);
                after.insert(*number, Known::Stored);
            } else {
                let released = self.engine().release(revision);
                released.map_err(|_| Ended)?;
                after.insert(*number, Known::Absent);
            }
        }
        let committed = self.engine().commit();
        let committed = committed.map_err(|_| Ended)?;
        match committed {
            Committed::Done => self.current = after,
            Committed::StoresFull => {
                let releases = changes.iter().filter(|(_, is_store)| !is_store);
                self.current
                    .extend(releases.map(|(number, _)| (*number, Known::Absent)));
            }
            // The files engine may have come to some of the releases.
            Committed::Full => {
                let releases = changes.iter().filter(|(_, is_store)| !is_store);
                self.current
                    .extend(releases.map(|(number, _)| (*number, Known::Maybe)));
            }
        }
        self.refused += u64::from(committed != Committed::Done);
        let known = |number: &u64| {
            (
                *number,
                self.current.get(number).copied().unwrap_or_default(),
            )
        };
        let touched: Vec<(u64, Known)> = changes.iter().map(|(number, _)| known(number)).collect();
        match self.setting.io {
            WriteMode::Buffered => {}
            WriteMode::Unbuffered => self.after_end.extend(touched),
            WriteMode::Sync => {
                self.after_end.extend(touched.clone());
                self.after_crash.extend(touched);
            }
        }
        Ok(())
    }

    /// All that was acknowledged is on the disk.
    fn settled(&mut self) {
        self.after_end = self.current.clone();
        self.after_crash = self.current.clone();
    }

    fn close(&mut self) -> Result<(), Ended> {
        self.is_at_an_end = true;
        let closed = self.engine().close();
        if closed.is_err() {
            self.store = None; // Nothing may be called behind it.
            return Err(Ended);
        }
        if !self.engine().is_buffering() {
            self.settled();
        }
        Ok(())
    }

    fn raise(&mut self, to: Fence) -> Result<(), Ended> {
        let path = identity::fence_path(Path::new(DIR));
        match atomic_file::write(&self.fs, &path, &fence::encode(to)) {
            Ok(()) => self.fence = to,
            Err(tolerex::disk::log::LogError::Refused(_)) => {}
            Err(_) => {
                // The process ends; its engine does not know why.
                self.store = None;
                return Err(Ended);
            }
        }
        Ok(())
    }

    /// Fills a segment ahead; the thread that does so goes on after an error.
    fn fill(&mut self) {
        let store = self.store.as_ref().expect("a store");
        if let Some(filler) = &store.filler {
            let filled = filler.fill(&StopSignal::default());
            drop(filled);
        }
    }

    /// Compacts; the thread that does so goes on after an error of its own, the engine does not.
    fn compact(&mut self) -> Result<(), Ended> {
        let store = self.store.as_mut().expect("a store");
        let (engine, Some(compactor)) = (&mut store.engine, &mut store.compactor) else {
            return Ok(());
        };
        let mut ended = false;
        for _ in 0..4 {
            let mut submit = |step| {
                let done = engine.compact(&step);
                ended |= done.is_err();
                done.unwrap_or(false)
            };
            if !matches!(compactor.compact_one(&mut submit), Ok(true)) {
                break;
            }
        }
        if ended { Err(Ended) } else { Ok(()) }
    }

    /// An engine that failed acknowledges nothing, however often it is asked.
    fn takes_nothing_more(&mut self) {
        let Some(store) = self.store.as_mut() else {
            return;
        };
        let (revision, key, payload) = record(NUMBERS + 1);
        for _ in 0..3 {
            let staged = store.engine.store(revision, &key, &payload);
            let committed = store.engine.commit();
            let took = staged.is_ok() && committed.is_ok();
            assert!(!took, "{:?}: it goes on after an error", self.setting);
            assert!(store.engine.idle().is_err());
        }
    }

    /// Opens an image and compares it with what must be there; then it must work.
    fn check(&self, fs: &MemFileSystem, known: &Knowledge, what: &str) {
        let mut found = self.read(fs, known, what);
        if self.setting.io == WriteMode::Sync {
            fs.crash(Loss::Everything);
            let again = self.read(fs, known, what);
            let lost = found.iter().find(|number| !again.contains(number));
            assert_eq!(lost, None, "{what}: what was found is not durable");
            // A release that failed may still do so.
            let is_maybe = |number: &&u64| known.get(number) == Some(&Known::Maybe);
            let back = again.iter().filter(|number| !found.contains(number));
            assert!(
                back.clone().all(|number| is_maybe(&number)),
                "{what}: {back:?} came back"
            );
            found = again;
        }
        let disk: Arc<dyn FileSystem> = Arc::new(fs.clone());
        let started = start(&disk, Path::new(DIR), &self.setting.options());
        let (mut store, _) = started.expect("started again");
        let (revision, key, payload) = record(NUMBERS + 2);
        let staged = store
            .engine
            .store(revision, &key, &payload)
            .expect("staged");
        assert_eq!(staged, Staged::New, "{what}");
        assert_eq!(store.engine.commit().expect("committed"), Committed::Done);
        store.engine.close().expect("closed");
        fs.crash(Loss::Everything);
        let mut after: Knowledge = match (self.setting.engine, self.setting.io) {
            // What is not found is not there, damaged or not.
            (EngineKind::Log, _) => Knowledge::new(),
            (EngineKind::Files, WriteMode::Sync) => known.clone(),
            // What a failed sync lost stays lost, a limit that is told in `files_recovery`.
            (EngineKind::Files, WriteMode::Unbuffered | WriteMode::Buffered) => {
                let numbers = found.drain(..).chain(known.keys().copied());
                numbers.map(|number| (number, Known::Maybe)).collect()
            }
        };
        after.extend(found.iter().map(|number| (*number, Known::Stored)));
        after.insert(NUMBERS + 2, Known::Stored);
        self.read(fs, &after, what);
    }

    /// The revisions that are there, after comparing them.
    fn read(&self, fs: &MemFileSystem, known: &Knowledge, what: &str) -> Vec<u64> {
        let disk: Arc<dyn FileSystem> = Arc::new(fs.clone());
        let started = start(&disk, Path::new(DIR), &self.setting.options());
        let (store, identity) = started.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        self.compare_identity(&identity);
        let is_synced = self.setting.io == WriteMode::Sync;
        let damaged = &store.recovery.damaged;
        // A release whose sync failed may be undone, but for the side file.
        let is_known = |what: &str| {
            self.setting.engine == EngineKind::Files
                && what.contains("the file of its key is missing")
        };
        let unknown = damaged.iter().find(|damage| !is_known(&damage.what));
        assert!(!is_synced || unknown.is_none(), "{what}: {unknown:?}");
        let reader = store.engine.reader();
        let mut found = Vec::new();
        for number in 0..NUMBERS + 3 {
            let (revision, key, payload) = record(number);
            let fetched = reader.fetch(revision);
            let known = known.get(&number).copied().unwrap_or_default();
            match (fetched, known) {
                (Ok(Some(record)), Known::Stored | Known::Maybe) => {
                    assert!(record == (key, payload), "{what}: another record {number}");
                    found.push(number);
                }
                (Ok(None), Known::Absent | Known::Maybe) => {}
                // A name whose content was lost with the power.
                (Err(_), Known::Maybe) if !is_synced => {}
                (Err(error), Known::Maybe) if is_known(&error.to_string()) => {}
                (fetched, known) => {
                    let fetched = fetched.map(|record| record.is_some());
                    panic!("{what}: {number} is {fetched:?}, and {known:?} is expected");
                }
            }
        }
        if is_synced && damaged.is_empty() {
            assert_eq!(reader.counters().records, found.len() as u64, "{what}");
        }
        found
    }

    /// All images that this life may have left.
    fn check_images(&self, call: u64, what: &str) {
        self.fs.heal();
        self.check(&self.fs.fork(), &self.after_end, &format!("{what}, ended"));
        for (loss, name) in [
            (Loss::Everything, "all lost"),
            (Loss::Nothing, "nothing lost"),
            (Loss::Random(call), "some lost"),
        ] {
            let fs = self.fs.fork();
            fs.crash(loss);
            self.check(&fs, &self.after_crash, &format!("{what}, crashed, {name}"));
        }
    }
}

/// Lets every `step`th call fail in turn in each way; returns the number of lives.
pub fn run(engine: EngineKind, io: WriteMode, step: usize) -> u64 {
    let setting = Setting { engine, io };
    let (whole, ended) = Life::live(setting, u64::MAX, Fault::Io);
    assert!(!ended && whole.refused == 0);
    let calls = whole.fs.calls();
    whole.check_images(0, "nothing failed");
    let mut lives = 0;
    for fault in [Fault::Io, Fault::NoSpace, Fault::ShortWrite, Fault::Refused] {
        for call in (0..calls).step_by(step) {
            let what = format!("{engine}, {io}, {fault:?} of call {call} of {calls}");
            let (life, ended) = Life::live(setting, call, fault);
            // A start, an orderly end and a failed sync are what a shortage may end.
            let is_final = life.is_at_an_end || life.fs.failed() == Some(Operation::Sync);
            assert!(
                !ended || fault != Fault::Refused || is_final,
                "{what}: {:?} ends it",
                life.fs.failed()
            );
            if !ended {
                assert!(
                    life.refused <= 1,
                    "{what}: {} groups are refused",
                    life.refused
                );
            }
            life.check_images(call, &what);
            lives += 1;
        }
    }
    lives
}

/// Moves the files of the engine away before each group in turn: it is not acknowledged, nor is
/// anything after it, and all is there when the files are back.
pub fn move_away(engine: EngineKind) {
    let io = WriteMode::Sync;
    for round in 0..ROUNDS {
        let mut life = Life::new(Setting { engine, io });
        life.moved_in = Some(round);
        assert!(
            life.rounds().is_err(),
            "{engine}: it goes on in round {round}"
        );
        life.takes_nothing_more();
        life.move_files(false);
        life.check_images(round, &format!("{engine}, moved away in round {round}"));
    }
}
