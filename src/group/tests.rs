//! The group as its users see it: threads, callbacks, restart; on a real directory and on the disk
//! in memory.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use parking_lot::Mutex;

use self::watched::Watched;
use super::parts::JOURNAL_DIR;
use super::*;
use crate::clock::SystemClock;
use crate::disk::fs::OsFileSystem;
use crate::disk::mem::MemFileSystem;

mod failures;
mod gated;
mod watched;

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

/// Data that [`Seen`] cannot apply.
const LATER: &[u8] = b"later";

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

    fn apply(&mut self, index: u64, term: u64, data: &[u8]) -> Result<u64, String> {
        if data == LATER {
            return Err("it is of a later version".to_owned());
        }
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
        Ok(index)
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
        asks_peers: true,
        asks_members: false,
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
fn every_proposal_gets_an_outcome_while_the_group_stops() {
    for _ in 0..100 {
        let disk = MemFileSystem::new();
        let run = start(Arc::new(disk), Path::new("group"), Bootstrap::New);
        let term = run.handle.status().term;
        let proposers: Vec<_> = (0..4)
            .map(|_| {
                let handle = run.handle.clone();
                let body = move || {
                    let stopped = ProposalOutcome::NotProposed(Reason::Stopped);
                    while outcome(&propose(&handle, term, b"x")) != stopped {}
                };
                crate::threads::spawn("proposer", body).unwrap()
            })
            .collect();
        run.group.stop();
        proposers.into_iter().for_each(crate::threads::Thread::join);
    }
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
        [
            Leadership::Serving {
                term,
                behind: LogPosition { term: 1, index: 1 }
            },
            Leadership::Ended { term }
        ]
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
