//! Snapshots of a leader's metadata while it writes: how long do writes pause, is the state exact
//! after a restart, and how long does opening take?
//!
//! A group with the leader's state machine on a real disk, without members: entries are proposed as
//! a coordinator does once all copies are acknowledged. The limits hold for a release build
//! (`cargo test --release --test snapshots -- --ignored --nocapture`); a debug build only prints.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use tolerex::clock::{Clock, Instant, SystemClock};
use tolerex::cluster::{Cluster, Strategy};
use tolerex::disk::fs::{FileSystem, OsFileSystem};
use tolerex::disk::log::LogOptions;
use tolerex::group::{
    Bootstrap, Group, GroupHandle, GroupOptions, NoPeers, ProposalOutcome, Timing,
};
use tolerex::ids::{Key, MemberId, Revision};
use tolerex::leader::machine::Machine;
use tolerex::leader::state::View;
use tolerex::metadata::command::{Applied, Change, Command, Operation, Registration};
use tolerex::metadata::replica_sets::ReplicaSet;

const LONG: Duration = Duration::from_secs(60);
/// Operations of a large entry: a full batch of a coordinator.
const BATCH: u64 = 4096;
/// Entries in flight, as of a few workers.
const IN_FLIGHT: usize = 4;

type Answer = Receiver<(ProposalOutcome<Applied>, Instant)>;

/// A leader's group and metadata.
struct Leader {
    clock: Arc<dyn Clock>,
    view: Arc<View>,
    group: Group<Applied>,
    handle: GroupHandle<Applied>,
    term: u64,
    sequence: u64,
    random: fastrand::Rng,
}

impl Leader {
    fn start(dir: &Path, bootstrap: Bootstrap, snapshot_bytes: u64) -> Leader {
        let clock = SystemClock::shared();
        let view = Arc::new(View::new(Cluster::new(Strategy::LeastLoaded, 1)));
        let options = GroupOptions {
            fs: Arc::new(OsFileSystem),
            dir: dir.to_owned(),
            clock: Arc::clone(&clock),
            bootstrap,
            log: LogOptions {
                segment_bytes: snapshot_bytes.clamp(64 << 10, 64 << 20),
                ..LogOptions::default()
            },
            snapshot_bytes,
            timing: Timing::default(),
            asks_peers: true,
            asks_members: false,
            on_failure: Box::new(|error| panic!("{error}")),
        };
        let group = Group::start(options, Machine::new(Arc::clone(&view)), |_, _| {
            Box::new(NoPeers)
        })
        .expect("a group");
        let handle = group.handle();
        assert!(handle.wait_serving(LONG), "it serves");
        let term = handle.status().term;
        Leader {
            clock,
            view,
            group,
            handle,
            term,
            sequence: 0,
            random: fastrand::Rng::with_seed(7),
        }
    }

    /// Proposes a change; the answer comes with the time of its being applied.
    fn propose(&self, change: Change) -> Answer {
        let term = self.term;
        let (sender, receiver) = bounded(1);
        let clock = Arc::clone(&self.clock);
        let data = Command { term, change }.encode();
        self.handle.propose(term, data, move |outcome| {
            _ = sender.send((outcome, clock.now()));
        });
        receiver
    }

    fn register(&self, id: u64) {
        let registration = Registration {
            id: MemberId(id),
            name: format!("member-{id}"),
            address: format!("127.0.0.1:{id}"),
            zone: String::new(),
            incarnation: 1,
            nonce: 1,
        };
        finish(&self.propose(Change::RegisterMember(registration)));
    }

    /// SETs of these ids in runs of 32 with a set each, and one key in 16 a word.
    fn write(&mut self, ids: impl Iterator<Item = u64>) -> Answer {
        let mut replicas = self.replicas();
        let mut operations = Vec::new();
        for (number, id) in ids.enumerate() {
            if number % 32 == 0 {
                replicas = self.replicas();
            }
            self.sequence += 1;
            operations.push(Operation::Set {
                key: key(id),
                revision: Revision::new(self.term, self.sequence),
                replicas,
                length: 100,
            });
        }
        self.propose(Change::Write(operations))
    }

    fn replicas(&mut self) -> ReplicaSet {
        let first = self.random.u64(1..=9);
        let second = (first + self.random.u64(0..8)) % 9 + 1;
        ReplicaSet::new(&[MemberId(first), MemberId(second)]).expect("distinct members")
    }
}

fn key(id: u64) -> Key {
    match id % 16 {
        0 => Key::Word(format!("user/{id:08}").into()),
        _ => Key::Id(id),
    }
}

/// Waits until a change is applied; gives the time.
fn finish(answer: &Answer) -> Instant {
    match answer.recv_timeout(LONG).expect("an answer") {
        (ProposalOutcome::Applied(_), at) => at,
        (other, _) => panic!("{other:?}"),
    }
}

/// The longest time between two entries that were applied one after the other, with entries in
/// flight all the time, while no snapshot was taken and while each one was.
#[derive(Debug, Default)]
struct Pauses {
    without: Duration,
    with: Vec<Duration>,
}

/// Overwrites messages at random, in large and small batches, until `count` snapshots were taken.
fn overwrite(leader: &mut Leader, dir: &Path, messages: u64, count: usize) -> Pauses {
    let temporary = dir.join("snapshots/snapshot.tmp");
    let mut pauses = Pauses::default();
    let mut in_flight = std::collections::VecDeque::new();
    let (mut last, mut was_taken) = (None, false);
    for number in 0_u64.. {
        let operations = if number % 8 == 0 { BATCH } else { 64 };
        let ids: Vec<u64> = (0..operations)
            .map(|_| leader.random.u64(0..messages))
            .collect();
        in_flight.push_back(leader.write(ids.into_iter()));
        if in_flight.len() < IN_FLIGHT {
            continue;
        }
        let at = finish(&in_flight.pop_front().expect("some are in flight"));
        let pause = at.since(last.unwrap_or(at));
        last = Some(at);
        // Looked at after the entry: what began or ended in the pause counts as with.
        let is_taken = temporary.exists();
        if is_taken && !was_taken {
            pauses.with.push(pause);
        }
        match pauses.with.last_mut() {
            Some(with) if is_taken || was_taken => *with = pause.max(*with),
            _ => pauses.without = pause.max(pauses.without),
        }
        if was_taken && !is_taken && pauses.with.len() == count {
            break;
        }
        was_taken = is_taken;
    }
    in_flight.iter().for_each(|answer| _ = finish(answer));
    pauses
}

fn snapshots_under_load(messages: u64, snapshot_bytes: u64) -> (Pauses, Duration) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut leader = Leader::start(dir.path(), Bootstrap::New, snapshot_bytes);
    (1..=9).for_each(|id| leader.register(id));
    for first in (0..messages).step_by(BATCH as usize) {
        finish(&leader.write(first..messages.min(first + BATCH)));
    }
    let pauses = overwrite(&mut leader, dir.path(), messages, 3);
    let count = leader.view.metadata.message_count();
    assert_eq!(count, messages);
    let entries: Vec<_> = (0..messages)
        .map(|id| leader.view.metadata.find(&key(id)))
        .collect();
    leader.group.stop();

    let clock = SystemClock::new();
    let begun_at = clock.now();
    let leader = Leader::start(dir.path(), Bootstrap::Existing, snapshot_bytes);
    let opening = clock.now().since(begun_at);
    assert_eq!(leader.view.metadata.message_count(), messages);
    for (id, entry) in (0..messages).zip(entries) {
        assert!(entry.is_some());
        assert_eq!(leader.view.metadata.find(&key(id)), entry, "message {id}");
    }
    leader.group.stop();
    let snapshots = OsFileSystem.list(&dir.path().join("snapshots"));
    println!("{messages} messages: {pauses:?}, opening {opening:?}, {snapshots:?}");
    (pauses, opening)
}

#[test]
fn a_leader_restarts_from_a_snapshot_taken_under_load() {
    snapshots_under_load(20_000, 512 << 10);
}

#[test]
#[ignore = "slow: 1,000,000 messages"]
fn with_a_million_messages_writes_pause_less_than_50_ms_and_opening_takes_less_than_3_s() {
    let (mut pauses, opening) = snapshots_under_load(1_000_000, 24 << 20);
    pauses.with.sort_unstable();
    if cfg!(debug_assertions) {
        println!("measured only: the limits hold for a release build");
        return;
    }
    // The disk has pauses of its own now and then: the middle one of three counts.
    assert!(pauses.with[1] < Duration::from_millis(50), "{pauses:?}");
    assert!(opening < Duration::from_secs(3), "{opening:?}");
}
