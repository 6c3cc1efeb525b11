//! The group as its users see it: threads, callbacks, restart, failure; on a real directory and on
//! the disk in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use std::path::Path;

use super::parts::JOURNAL_DIR;
use super::raft_thread::INBOX_MAX;
use super::*;
use crate::clock::SystemClock;
use crate::disk::fs::{File, OsFileSystem};
use crate::disk::mem::{Fault, Loss, MemFileSystem, Operation};

const LONG: Duration = Duration::from_secs(20);

/// What was applied, kept as a digest so that order and content count, and the list itself.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<SeenState>>);

#[derive(Default)]
struct SeenState {
    digest: u64,
    last_index: u64,
    /// The index of the snapshot that it started from.
    restored_index: u64,
    entries: Vec<Vec<u8>>,
    changes: Vec<Leadership>,
}

impl Seen {
    fn digest(&self) -> u64 {
        self.0.lock().digest
    }

    fn entries(&self) -> Vec<Vec<u8>> {
        self.0.lock().entries.clone()
    }
}

impl StateMachine for Seen {
    type Output = u64;

    fn apply(&mut self, index: u64, term: u64, data: &[u8]) -> u64 {
        let mut state = self.0.lock();
        assert!(index > state.last_index, "applied twice or out of order");
        state.last_index = index;
        let mut bytes = state.digest.to_le_bytes().to_vec();
        bytes.extend(index.to_le_bytes());
        bytes.extend(term.to_le_bytes());
        bytes.extend(data);
        let high = u64::from(crc32c::crc32c(&bytes)) << 32;
        bytes.reverse();
        state.digest = high | u64::from(crc32c::crc32c(&bytes));
        state.entries.push(data.to_vec());
        index
    }

    fn begin_snapshot(&mut self, index: u64) -> Option<Box<dyn SnapshotSource>> {
        let state = self.0.lock();
        assert!(index >= state.last_index);
        let mut chunks = vec![
            [state.digest, state.last_index]
                .map(u64::to_le_bytes)
                .concat(),
        ];
        chunks.extend(state.entries.iter().cloned());
        Some(Box::new(SeenSnapshot(chunks.into_iter())))
    }

    fn restore(&mut self, chunk: &[u8]) -> Result<(), String> {
        let mut state = self.0.lock();
        if state.last_index > 0 {
            state.entries.push(chunk.to_vec());
            return Ok(());
        }
        let number = |at: usize| u64::from_le_bytes(chunk[at..at + 8].try_into().unwrap());
        (state.digest, state.last_index) = (number(0), number(8));
        Ok(())
    }

    fn restored(&mut self, index: u64) -> Result<(), String> {
        let mut state = self.0.lock();
        assert!(index >= state.last_index);
        state.restored_index = index;
        Ok(())
    }

    fn leadership(&mut self, change: Leadership) {
        self.0.lock().changes.push(change);
    }
}

/// Digest and last index, then all entries.
struct SeenSnapshot(std::vec::IntoIter<Vec<u8>>);

impl SnapshotSource for SeenSnapshot {
    fn next_chunk(&mut self) -> Option<Vec<u8>> {
        self.0.next()
    }
}

/// A disk that counts syncs and fails on demand.
#[derive(Clone)]
struct Watched {
    fs: Arc<dyn FileSystem>,
    syncs: Arc<AtomicUsize>,
    sync_fails: Arc<AtomicBool>,
    is_full: Arc<AtomicBool>,
}

struct WatchedFile {
    file: Arc<dyn File>,
    disk: Watched,
}

impl Watched {
    fn new(fs: Arc<dyn FileSystem>) -> Watched {
        Watched {
            fs,
            syncs: Arc::default(),
            sync_fails: Arc::default(),
            is_full: Arc::default(),
        }
    }

    fn watch(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        let disk = self.clone();
        Arc::new(WatchedFile { file, disk })
    }
}

impl FileSystem for Watched {
    fn create(&self, path: &Path) -> std::io::Result<Arc<dyn File>> {
        Ok(self.watch(self.fs.create(path)?))
    }
    fn open(&self, path: &Path) -> std::io::Result<Arc<dyn File>> {
        Ok(self.watch(self.fs.open(path)?))
    }
    fn list(&self, dir: &Path) -> std::io::Result<Vec<String>> {
        self.fs.list(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        self.fs.rename(from, to)
    }
    fn remove(&self, path: &Path) -> std::io::Result<()> {
        self.fs.remove(path)
    }
    fn exists(&self, path: &Path) -> std::io::Result<bool> {
        self.fs.exists(path)
    }
    fn create_dir_all(&self, dir: &Path) -> std::io::Result<()> {
        self.fs.create_dir_all(dir)
    }
    fn sync_dir(&self, dir: &Path) -> std::io::Result<()> {
        self.fs.sync_dir(dir)
    }
    fn sync_everything(&self, dir: &Path) -> std::io::Result<()> {
        self.fs.sync_everything(dir)
    }
    fn free_space(&self, dir: &Path) -> std::io::Result<u64> {
        if self.is_full.load(Ordering::SeqCst) {
            return Ok(0);
        }
        self.fs.free_space(dir)
    }
}

impl File for WatchedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        self.file.read_at(buffer, offset)
    }
    fn write_all_at(&self, data: &[u8], offset: u64) -> std::io::Result<()> {
        if self.disk.is_full.load(Ordering::SeqCst) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.file.write_all_at(data, offset)
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.file.set_len(len)
    }
    fn len(&self) -> std::io::Result<u64> {
        self.file.len()
    }
    fn sync_data(&self) -> std::io::Result<()> {
        self.disk.syncs.fetch_add(1, Ordering::SeqCst);
        if self.disk.sync_fails.load(Ordering::SeqCst) {
            return Err(std::io::Error::other("the disk is gone"));
        }
        self.file.sync_data()
    }
    fn sync_all(&self) -> std::io::Result<()> {
        self.file.sync_all()
    }
}

/// A group under test, with what it reported.
struct Run {
    group: Group<u64>,
    handle: GroupHandle<u64>,
    seen: Seen,
    failures: Receiver<GroupError>,
}

fn try_start(fs: Arc<dyn FileSystem>, dir: &Path, bootstrap: Bootstrap) -> Result<Run, GroupError> {
    // Some of these tests write as much, and so take snapshots; the results must not show it.
    try_start_with(fs, dir, bootstrap, 64 << 10)
}

/// As `try_start`, with a snapshot whenever the journal is longer than `snapshot_bytes`.
fn try_start_with(
    fs: Arc<dyn FileSystem>,
    dir: &Path,
    bootstrap: Bootstrap,
    snapshot_bytes: u64,
) -> Result<Run, GroupError> {
    let (failed, failures) = bounded(1);
    let options = GroupOptions {
        fs,
        dir: dir.to_owned(),
        clock: SystemClock::shared(),
        bootstrap,
        log: LogOptions {
            segment_bytes: snapshot_bytes.min(64 << 10),
            reserve_bytes: 1 << 20,
            ..LogOptions::default()
        },
        snapshot_bytes,
        timing: Timing::default(),
        on_failure: Box::new(move |error| failed.send(error).unwrap()),
    };
    let seen = Seen::default();
    let group = Group::start(options, seen.clone(), |_, _| Box::new(NoPeers))?;
    let handle = group.handle();
    Ok(Run {
        group,
        handle,
        seen,
        failures,
    })
}

fn start(fs: Arc<dyn FileSystem>, dir: &Path, bootstrap: Bootstrap) -> Run {
    let run = try_start(fs, dir, bootstrap).unwrap();
    assert!(run.handle.wait_serving(LONG), "it does not serve");
    run
}

/// Starts a group, or says why it does not.
fn refusal(fs: Arc<dyn FileSystem>, dir: &Path, bootstrap: Bootstrap) -> String {
    match try_start(fs, dir, bootstrap) {
        Ok(_) => panic!("it started"),
        Err(error) => error.to_string(),
    }
}

fn propose(handle: &GroupHandle<u64>, term: u64, data: &[u8]) -> Receiver<ProposalOutcome<u64>> {
    let (sender, receiver) = bounded(1);
    handle.propose(term, data.to_vec(), move |outcome| {
        sender.send(outcome).unwrap();
    });
    receiver
}

fn outcome(receiver: &Receiver<ProposalOutcome<u64>>) -> ProposalOutcome<u64> {
    receiver.recv_timeout(LONG).expect("an outcome")
}

fn os() -> Arc<dyn FileSystem> {
    Arc::new(OsFileSystem)
}

#[test]
fn many_proposers_get_their_own_index_with_few_syncs() {
    let root = tempfile::tempdir().unwrap();
    let disk = Watched::new(os());
    let run = start(Arc::new(disk.clone()), root.path(), Bootstrap::New);
    let term = run.handle.status().term;
    let before = disk.syncs.load(Ordering::SeqCst);
    let threads: Vec<_> = (0..10)
        .map(|number| {
            let handle = run.handle.clone();
            let (sender, receiver) = bounded(1);
            let body = move || {
                let waiting: Vec<_> = (0..100)
                    .map(|i| propose(&handle, term, format!("{number} {i}").as_bytes()))
                    .collect();
                let indices: Vec<u64> = waiting
                    .iter()
                    .map(|receiver| match outcome(receiver) {
                        ProposalOutcome::Applied(index) => index,
                        other => panic!("{other:?}"),
                    })
                    .collect();
                sender.send(indices).unwrap();
            };
            (crate::threads::spawn("proposer", body).unwrap(), receiver)
        })
        .collect();
    let entries = {
        let mut all = Vec::new();
        for (number, (thread, receiver)) in threads.into_iter().enumerate() {
            let indices = receiver.recv_timeout(LONG).unwrap();
            assert!(indices.is_sorted(), "in the order of proposing");
            let texts = (0..100).map(|i| format!("{number} {i}").into_bytes());
            all.extend(indices.into_iter().zip(texts));
            thread.join();
        }
        all.sort_unstable();
        all
    };
    let texts: Vec<Vec<u8>> = entries.into_iter().map(|(_, text)| text).collect();
    assert_eq!(
        run.seen.entries(),
        texts,
        "each got the index of its own entry"
    );
    let syncs = disk.syncs.load(Ordering::SeqCst) - before;
    assert!(syncs < 500, "{syncs} syncs for 1,000 proposals");
    run.group.stop();
}

#[test]
fn a_restart_keeps_the_exact_state_in_a_new_term() {
    let root = tempfile::tempdir().unwrap();
    let mut digest = 0;
    let mut term = 0;
    for start_number in 0..5 {
        let bootstrap = if start_number == 0 {
            Bootstrap::New
        } else {
            Bootstrap::Existing
        };
        let run = start(os(), root.path(), bootstrap);
        let status = run.handle.status();
        assert!(status.term > term && status.role == Role::Leader);
        term = status.term;
        assert_eq!(run.seen.digest(), digest);
        let data = vec![start_number; 1000];
        let waiting: Vec<_> = (0..200)
            .map(|_| propose(&run.handle, term, &data))
            .collect();
        for receiver in &waiting {
            assert!(matches!(outcome(receiver), ProposalOutcome::Applied(_)));
        }
        digest = run.seen.digest();
        run.group.stop();
        assert!(run.failures.try_recv().is_err());
    }
}

#[test]
fn a_proposal_of_another_term_or_after_the_end_is_not_proposed() {
    let root = tempfile::tempdir().unwrap();
    let run = start(os(), root.path(), Bootstrap::New);
    let term = run.handle.status().term;
    for wrong in [term - 1, term + 1] {
        let refused = ProposalOutcome::NotProposed(Reason::NotLeader);
        assert_eq!(outcome(&propose(&run.handle, wrong, b"x")), refused);
    }
    run.group.stop();
    let refused = ProposalOutcome::NotProposed(Reason::Stopped);
    assert_eq!(outcome(&propose(&run.handle, term, b"x")), refused);
    assert!(!run.handle.status().serving);
    assert!(!run.handle.wait_serving(LONG));
    assert_eq!(
        run.handle.confirm_read(|_| ()),
        ReadConfirmation::NotServing
    );
    assert_eq!(run.seen.entries(), Vec::<Vec<u8>>::new());
    let changes = run.seen.0.lock().changes.clone();
    assert_eq!(
        changes,
        [Leadership::Serving { term }, Leadership::Ended { term }]
    );
}

#[test]
fn a_read_is_confirmed_at_once_and_sees_what_was_acknowledged() {
    let root = tempfile::tempdir().unwrap();
    let run = start(os(), root.path(), Bootstrap::New);
    let term = run.handle.status().term;
    let ProposalOutcome::Applied(index) = outcome(&propose(&run.handle, term, b"x")) else {
        panic!("not applied");
    };
    match run.handle.confirm_read(|_| panic!("not called")) {
        ReadConfirmation::Immediate { index: at } => assert!(at >= index),
        other => panic!("{other:?}"),
    }
    run.group.stop();
}

#[test]
fn a_failed_sync_ends_all_acknowledgement() {
    let root = tempfile::tempdir().unwrap();
    let disk = Watched::new(os());
    let run = start(Arc::new(disk.clone()), root.path(), Bootstrap::New);
    let term = run.handle.status().term;
    assert!(matches!(
        outcome(&propose(&run.handle, term, b"kept")),
        ProposalOutcome::Applied(_)
    ));
    disk.sync_fails.store(true, Ordering::SeqCst);
    assert_eq!(
        outcome(&propose(&run.handle, term, b"x")),
        ProposalOutcome::Unknown
    );
    let error = run.failures.recv_timeout(LONG).unwrap();
    assert!(error.to_string().contains("the disk is gone"), "{error}");
    // The disk is well again, and still nothing is taken.
    disk.sync_fails.store(false, Ordering::SeqCst);
    assert_eq!(
        outcome(&propose(&run.handle, term, b"y")),
        ProposalOutcome::NotProposed(Reason::Stopped)
    );
    assert!(!run.handle.status().serving);
    run.group.stop();
    let run = start(Arc::new(disk), root.path(), Bootstrap::Existing);
    assert_eq!(
        run.seen.entries().first().map(Vec::as_slice),
        Some(&b"kept"[..])
    );
    run.group.stop();
}

#[test]
fn a_full_disk_refuses_proposals_and_goes_on_when_there_is_space() {
    let root = tempfile::tempdir().unwrap();
    let disk = Watched::new(os());
    let run = start(Arc::new(disk.clone()), root.path(), Bootstrap::New);
    let term = run.handle.status().term;
    disk.is_full.store(true, Ordering::SeqCst);
    let waits = propose(&run.handle, term, b"waits");
    let refused = ProposalOutcome::NotProposed(Reason::DiskFull);
    let clock = SystemClock::new();
    let deadline = clock.now() + LONG;
    let mut early = Vec::new();
    loop {
        let proposal = propose(&run.handle, term, b"early");
        match proposal.recv_timeout(Duration::from_millis(5)) {
            Ok(outcome) => {
                assert_eq!(outcome, refused);
                break;
            }
            Err(_) => early.push(proposal),
        }
        assert!(clock.now() < deadline, "it is not refused");
    }
    assert!(waits.try_recv().is_err(), "it is appended and not decided");
    assert!(run.handle.status().serving, "reads go on");
    disk.is_full.store(false, Ordering::SeqCst);
    for receiver in [waits].iter().chain(&early) {
        assert!(matches!(outcome(receiver), ProposalOutcome::Applied(_)));
    }
    assert!(matches!(
        outcome(&propose(&run.handle, term, b"after")),
        ProposalOutcome::Applied(_)
    ));
    run.group.stop();
}

#[test]
fn a_stop_on_a_full_disk_leaves_the_outcome_unknown() {
    let root = tempfile::tempdir().unwrap();
    let disk = Watched::new(os());
    let run = start(Arc::new(disk.clone()), root.path(), Bootstrap::New);
    let term = run.handle.status().term;
    disk.is_full.store(true, Ordering::SeqCst);
    let waits = propose(&run.handle, term, b"waits");
    run.group.stop_within(Duration::from_millis(50));
    assert_eq!(outcome(&waits), ProposalOutcome::Unknown);
}

#[test]
fn an_id_and_a_journal_start_only_together() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("group");
    let named = |text: String, what: &str| {
        assert!(text.contains(what) && text.contains("group"), "{text}");
    };
    named(refusal(os(), &dir, Bootstrap::Existing), "--bootstrap");
    let run = start(os(), &dir, Bootstrap::New);
    let peer = run.group.peer();
    run.group.stop();
    let run = start(os(), &dir, Bootstrap::New);
    assert_eq!(run.group.peer(), peer, "an existing group is kept");
    run.group.stop();

    let id = dir.join(identity::FILE_NAME);
    let saved = std::fs::read(&id).unwrap();
    std::fs::remove_file(&id).unwrap();
    for bootstrap in [Bootstrap::New, Bootstrap::Existing] {
        named(refusal(os(), &dir, bootstrap), "no peer.id");
    }
    let other = root.path().join("other group");
    start(os(), &other, Bootstrap::New).group.stop();
    std::fs::copy(other.join(identity::FILE_NAME), &id).unwrap();
    named(refusal(os(), &dir, Bootstrap::Existing), "belongs to peer");
    std::fs::write(&id, &saved[..saved.len() - 1]).unwrap();
    named(refusal(os(), &dir, Bootstrap::Existing), "peer.id");
    std::fs::write(&id, &saved).unwrap();
    std::fs::remove_dir_all(dir.join(JOURNAL_DIR)).unwrap();
    for bootstrap in [Bootstrap::New, Bootstrap::Existing] {
        named(refusal(os(), &dir, bootstrap), "no journal");
    }
}

#[test]
fn a_damaged_journal_is_refused_by_file_and_offset() {
    let root = tempfile::tempdir().unwrap();
    let run = start(os(), root.path(), Bootstrap::New);
    let term = run.handle.status().term;
    for _ in 0..10 {
        outcome(&propose(&run.handle, term, &[7; 700]));
    }
    run.group.stop();
    let segment = root.path().join(JOURNAL_DIR).join("00000001.log");
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = bytes
        .windows(100)
        .position(|window| window == [7; 100])
        .unwrap();
    bytes[at] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let text = refusal(os(), root.path(), Bootstrap::Existing);
    assert!(text.contains("00000001.log at offset"), "{text}");
}

#[test]
fn a_power_failure_at_any_moment_keeps_what_was_acknowledged() {
    power_failures(u64::MAX);
}

#[test]
fn a_power_failure_while_snapshots_are_taken_keeps_what_was_acknowledged() {
    assert!(power_failures(16 << 10) > 0, "no snapshot was read");
}

/// Returns how many starts began with a snapshot.
fn power_failures(snapshot_bytes: u64) -> usize {
    let disk = MemFileSystem::new();
    let dir = Path::new("group");
    let begin = |disk, bootstrap| {
        let run = try_start_with(Arc::new(disk), dir, bootstrap, snapshot_bytes).unwrap();
        assert!(run.handle.wait_serving(LONG), "it does not serve");
        run
    };
    let run = begin(disk.clone(), Bootstrap::New);
    let mut restored = 0;
    let term = run.handle.status().term;
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let stop = StopSignal::default();
    let proposer = {
        let (handle, stop) = (run.handle.clone(), stop.clone());
        let acknowledged = acknowledged.clone();
        let body = move || {
            let mut number = 0_u64;
            while !stop.is_stopped() {
                // A few in flight, so that writes overlap.
                let mut waiting = Vec::new();
                for _ in 0..5 {
                    waiting.push(propose(&handle, term, &number.to_le_bytes()));
                    number += 1;
                }
                for receiver in &waiting {
                    assert!(matches!(outcome(receiver), ProposalOutcome::Applied(_)));
                    acknowledged.fetch_add(1, Ordering::SeqCst);
                }
            }
        };
        crate::threads::spawn("proposer", body).unwrap()
    };
    for seed in 0..20 {
        stop.wait_timeout(Duration::from_millis(5));
        let promised = acknowledged.load(Ordering::SeqCst);
        let after = disk.fork();
        after.crash(Loss::Random(seed));
        let again = begin(after, Bootstrap::Existing);
        assert!(again.handle.status().term > term);
        restored += usize::from(again.seen.0.lock().restored_index > 0);
        let entries = again.seen.entries();
        assert!(entries.len() >= promised, "seed {seed}");
        for (number, entry) in (0_u64..).zip(&entries) {
            assert_eq!(*entry, number.to_le_bytes(), "seed {seed}");
        }
        again.group.stop();
    }
    stop.stop();
    proposer.join();
    run.group.stop();
    restored
}

/// Proposes so many entries of 1,000 bytes, one after the other; returns how many were applied
/// before the group failed.
fn fill(run: &Run, count: usize) -> usize {
    let term = run.handle.status().term;
    for number in 0..count {
        let mut data = vec![7; 1000];
        data[..8].copy_from_slice(&(number as u64).to_le_bytes());
        match outcome(&propose(&run.handle, term, &data)) {
            ProposalOutcome::Applied(_) => {}
            _ => return number,
        }
    }
    count
}

#[test]
fn a_snapshot_cuts_the_journal_and_a_restart_goes_on_behind_it() {
    let root = tempfile::tempdir().unwrap();
    let (mut digest, mut restored_index) = (0, 0);
    for start_number in 0..4 {
        let bootstrap = match start_number {
            0 => Bootstrap::New,
            _ => Bootstrap::Existing,
        };
        let run = start(os(), root.path(), bootstrap);
        assert_eq!(run.seen.digest(), digest);
        let restored = run.seen.0.lock().restored_index;
        assert!(restored >= restored_index && (restored > 0) == (start_number > 0));
        restored_index = restored;
        assert_eq!(fill(&run, 600), 600);
        digest = run.seen.digest();
        run.group.stop();
        assert!(run.failures.try_recv().is_err());
        let list = |name| OsFileSystem.list(&root.path().join(name)).unwrap();
        assert_eq!(list(snapshots::SNAPSHOT_DIR).len(), 1);
        let segments = list(JOURNAL_DIR);
        // The journal may be as long as the snapshot.
        assert!(segments.len() < 15 * (start_number + 1), "{segments:?}");
        assert!(!segments.contains(&"00000001.log".to_owned()));
    }
}

#[test]
fn a_damaged_or_missing_snapshot_is_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let run = start(os(), root.path(), Bootstrap::New);
    fill(&run, 300);
    run.group.stop();
    let dir = root.path().join(snapshots::SNAPSHOT_DIR);
    let path = dir.join(&OsFileSystem.list(&dir).unwrap()[0]);
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[2000] ^= 4;
    std::fs::write(&path, bad).unwrap();
    let text = refusal(os(), root.path(), Bootstrap::Existing);
    assert!(text.contains(".snapshot is damaged at offset"), "{text}");
    std::fs::remove_file(&path).unwrap();
    let text = refusal(os(), root.path(), Bootstrap::Existing);
    assert!(text.contains("does not follow"), "{text}");
    std::fs::write(&path, good).unwrap();
    start(os(), root.path(), Bootstrap::Existing).group.stop();
}

#[test]
fn a_failure_at_any_step_loses_nothing_that_was_acknowledged() {
    let dir = Path::new("group");
    let disk = MemFileSystem::new();
    try_start_with(Arc::new(disk.clone()), dir, Bootstrap::New, 8 << 10)
        .unwrap()
        .group
        .stop();
    let mut restored = 0;
    for step in (0..400).step_by(7) {
        let disk = disk.fork();
        disk.fail(Operation::Any, step, Fault::Io);
        let applied =
            match try_start_with(Arc::new(disk.clone()), dir, Bootstrap::Existing, 8 << 10) {
                Ok(run) => {
                    run.handle.wait_serving(Duration::from_millis(20));
                    let applied = fill(&run, 60);
                    run.group.stop();
                    applied
                }
                Err(_) => 0,
            };
        disk.heal();
        disk.crash(Loss::Random(step));
        let run = try_start_with(Arc::new(disk), dir, Bootstrap::Existing, 8 << 10).unwrap();
        // The last one may be committed by the first entry of the new term only.
        assert!(run.handle.wait_serving(LONG), "step {step}");
        let entries = run.seen.entries();
        assert!(entries.len() >= applied, "step {step}");
        for (number, entry) in (0_u64..).zip(&entries) {
            assert_eq!(entry[..8], number.to_le_bytes(), "step {step}");
        }
        restored += usize::from(run.seen.0.lock().restored_index > 0);
        run.group.stop();
    }
    assert!(restored > 20, "{restored}");
}

#[test]
fn a_crash_while_a_group_is_made_is_made_good_by_the_next_bootstrap() {
    let dir = Path::new("group");
    for step in 0..60 {
        let disk = MemFileSystem::new();
        disk.fail(Operation::Any, step, Fault::Io);
        if let Ok(run) = try_start(Arc::new(disk.clone()), dir, Bootstrap::New) {
            run.handle.wait_serving(Duration::from_millis(20));
            run.group.stop();
        }
        disk.heal();
        disk.crash(Loss::Random(step));
        let run = start(Arc::new(disk.clone()), dir, Bootstrap::New);
        let peer = run.group.peer();
        run.group.stop();
        disk.crash(Loss::Everything);
        let run = start(Arc::new(disk), dir, Bootstrap::Existing);
        assert_eq!(run.group.peer(), peer);
        run.group.stop();
    }
}

/// A state machine that says that it has begun an entry, and waits at it until it is let on.
struct Gated {
    begun: Sender<()>,
    gate: Receiver<()>,
}

impl StateMachine for Gated {
    type Output = u64;

    fn apply(&mut self, index: u64, _term: u64, _data: &[u8]) -> u64 {
        _ = self.begun.try_send(());
        // Once the sender is gone, nothing waits any more.
        _ = self.gate.recv_timeout(LONG);
        index
    }
}

#[test]
fn a_full_inbox_is_busy_and_every_proposal_is_answered_once() {
    let (open, gate) = bounded(1);
    let (begun, has_begun) = bounded(1);
    let options = GroupOptions {
        fs: Arc::new(MemFileSystem::new()),
        dir: PathBuf::from("group"),
        clock: SystemClock::shared(),
        bootstrap: Bootstrap::New,
        log: LogOptions::default(),
        snapshot_bytes: u64::MAX,
        timing: Timing::default(),
        on_failure: Box::new(|error| panic!("{error}")),
    };
    let group = Group::start(options, Gated { begun, gate }, |_, _| Box::new(NoPeers)).unwrap();
    let handle = group.handle();
    assert!(handle.wait_serving(LONG));
    let term = handle.status().term;
    // Held at the first entry, the Raft thread takes nothing more out of its inbox.
    let mut waiting = vec![propose(&handle, term, b"x")];
    has_begun.recv_timeout(LONG).expect("it applies");
    let count = 2 * INBOX_MAX;
    waiting.extend((1..count).map(|_| propose(&handle, term, b"x")));
    let busy = ProposalOutcome::NotProposed(Reason::Busy);
    assert_eq!(outcome(&waiting[count - 1]), busy, "while all wait");
    drop(open);
    let mut applied = 0;
    for receiver in &waiting[..count - 1] {
        match outcome(receiver) {
            ProposalOutcome::Applied(_) => applied += 1,
            other => assert_eq!(other, busy),
        }
        assert!(receiver.recv().is_err(), "answered once");
    }
    assert!(applied >= INBOX_MAX, "{applied} of {count} were taken");
    group.stop();
}
