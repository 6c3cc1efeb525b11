//! What happens while the Raft thread is held up in applying an entry.

use std::path::Path;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::super::raft_thread::INBOX_MAX;
use super::super::*;
use super::{LONG, outcome, propose};
use crate::clock::SystemClock;
use crate::disk::mem::MemFileSystem;
use crate::threads::wakeups::{self, Counting};

/// A state machine that says that it has begun an entry, and waits at it until it is let on.
pub(super) struct Gated {
    pub(super) begun: Sender<()>,
    pub(super) gate: Receiver<()>,
}

impl StateMachine for Gated {
    type Output = u64;

    fn apply(&mut self, index: u64, _term: u64, _data: &[u8]) -> Result<u64, String> {
        _ = self.begun.try_send(());
        // Once the sender is gone, nothing waits any more.
        _ = self.gate.recv_timeout(LONG);
        Ok(index)
    }
}

/// A group with this state machine, which serves and must not fail.
pub(super) fn start_gated(
    machine: Gated,
    fs: Arc<dyn FileSystem>,
    dir: &Path,
    bootstrap: Bootstrap,
) -> (Group<u64>, GroupHandle<u64>) {
    let options = GroupOptions {
        fs,
        dir: dir.to_owned(),
        clock: SystemClock::shared(),
        bootstrap,
        log: LogOptions::default(),
        snapshot_bytes: u64::MAX,
        timing: Timing::default(),
        asks_peers: true,
        asks_members: false,
        on_failure: Box::new(|error| panic!("{error}")),
    };
    let group = Group::start(options, machine, |_, _| Box::new(NoPeers)).unwrap();
    let handle = group.handle();
    assert!(handle.wait_serving(LONG));
    (group, handle)
}

#[test]
fn a_full_inbox_is_busy_and_every_proposal_is_answered_once() {
    let (open, gate) = bounded(1);
    let (begun, has_begun) = bounded(1);
    let disk = Arc::new(MemFileSystem::new());
    let machine = Gated { begun, gate };
    let (group, handle) = start_gated(machine, disk, Path::new("group"), Bootstrap::New);
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

#[test]
fn who_waits_for_entries_that_are_applied_together_is_woken_once() {
    const TOGETHER: usize = 100;
    let (open, gate) = bounded(1);
    let (begun, has_begun) = bounded(1);
    let disk = Arc::new(MemFileSystem::new());
    let machine = Gated { begun, gate };
    let (group, handle) = start_gated(machine, disk, Path::new("group"), Bootstrap::New);
    let term = handle.status().term;
    // While the first entry is being applied, the others gather for one write.
    let first = propose(&handle, term, b"x");
    has_begun.recv_timeout(LONG).expect("it applies");
    let sleeper: Arc<Counting> = Arc::default();
    let (into, applied) = bounded(TOGETHER);
    for _ in 0..TOGETHER {
        let (sleeper, into) = (Arc::clone(&sleeper), into.clone());
        handle.propose(term, b"x".to_vec(), move |outcome| {
            wakeups::wake(&sleeper);
            into.send(outcome).unwrap();
        });
    }
    drop(open);
    assert!(matches!(outcome(&first), ProposalOutcome::Applied(_)));
    for _ in 0..TOGETHER {
        let outcome = applied.recv_timeout(LONG).expect("an outcome");
        assert!(matches!(outcome, ProposalOutcome::Applied(_)));
    }
    group.stop();
    assert_eq!(sleeper.count(), 1);
}
