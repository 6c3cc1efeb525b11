//! Several participants in one thread: nodes, journals and snapshot desks of the real code on disks
//! in memory, a network that delays, reorders and loses, and a clock moved by hand.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use fastrand::Rng;
use parking_lot::Mutex;

use super::core::Persist;
use super::node::Event;
use super::snapshots::Task;
use super::*;
use crate::clock::{Instant, ManualClock};
use crate::disk::mem::{Loss, MemFileSystem};

/// The state is the list of all entries' data.
#[derive(Clone, Default)]
struct Machine {
    log: Arc<Mutex<Vec<Vec<u8>>>>,
}

struct Chunks(std::vec::IntoIter<Vec<u8>>);

impl SnapshotSource for Chunks {
    fn next_chunk(&mut self) -> Option<Vec<u8>> {
        self.0.next()
    }
}

impl StateMachine for Machine {
    type Output = usize;

    fn apply(&mut self, _index: u64, _term: u64, data: &[u8]) -> usize {
        let mut log = self.log.lock();
        log.push(data.to_vec());
        log.len()
    }

    fn begin_snapshot(&mut self, _index: u64) -> Option<Box<dyn SnapshotSource>> {
        let log = self.log.lock().clone();
        Some(Box::new(Chunks(log.into_iter())))
    }

    fn reset(&mut self) {
        self.log.lock().clear();
    }

    fn restore(&mut self, chunk: &[u8]) -> Result<(), String> {
        self.log.lock().push(chunk.to_vec());
        Ok(())
    }
}

/// One participant, and what it has under way.
struct Host {
    fs: MemFileSystem,
    running: Option<Started>,
    ticks: std::ops::Range<usize>,
}

struct Started {
    parts: Parts<Machine>,
    log: Arc<Mutex<Vec<Vec<u8>>>>,
    writes: Vec<Persist>,
}

/// What is on its way between two participants.
enum Parcel {
    Message(Vec<u8>),
    Chunk(IncomingChunk, u64),
}

struct Net {
    rng: Rng,
    clock: Arc<ManualClock>,
    hosts: Vec<Host>,
    ids: BTreeMap<PeerId, usize>,
    /// From, to, what.
    parcels: Vec<(usize, usize, Parcel)>,
    transfers: BTreeMap<(usize, usize), (OutgoingSnapshot, u64)>,
    cut: Vec<usize>,
    loss: f64,
    /// Answered to whoever proposed.
    acknowledged: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Net {
    /// `count` hosts; the first one begins the group, the others wait to be added.
    fn new(seed: u64, count: usize) -> Net {
        let mut net = Net {
            rng: Rng::with_seed(seed),
            clock: Arc::new(ManualClock::default()),
            hosts: Vec::new(),
            ids: BTreeMap::new(),
            parcels: Vec::new(),
            transfers: BTreeMap::new(),
            cut: Vec::new(),
            loss: 0.0,
            acknowledged: Arc::default(),
        };
        for number in 0..count {
            net.hosts.push(Host {
                fs: MemFileSystem::new(),
                running: None,
                ticks: 6 + 2 * number..7 + 2 * number,
            });
            let bootstrap = match number {
                0 => Bootstrap::New,
                _ => Bootstrap::Join,
            };
            net.start(number, bootstrap);
        }
        net
    }

    fn start(&mut self, number: usize, bootstrap: Bootstrap) {
        let host = &mut self.hosts[number];
        let options = GroupOptions {
            fs: Arc::new(host.fs.clone()),
            dir: PathBuf::from("leader"),
            clock: self.clock.clone(),
            bootstrap,
            log: LogOptions {
                segment_bytes: 16 << 10,
                reserve_bytes: 0,
                salt: 5,
            },
            snapshot_bytes: 8 << 10,
            timing: Timing {
                heartbeat_ticks: 1,
                election_ticks: host.ticks.clone(),
            },
            on_failure: Box::new(|_| ()),
        };
        let machine = Machine::default();
        let log = machine.log.clone();
        let parts = Parts::open(&options, machine).expect("it opens");
        self.ids.insert(parts.node.peer, number);
        let writes = Vec::new();
        host.running = Some(Started { parts, log, writes });
    }

    fn id(&self, number: usize) -> PeerId {
        let found = self.ids.iter().find(|(_, host)| **host == number);
        *found.expect("it was started").0
    }

    fn crash(&mut self, number: usize) {
        let host = &mut self.hosts[number];
        host.running = None;
        host.fs.crash(Loss::Random(self.rng.u64(..)));
        self.transfers.retain(|(from, _), _| *from != number);
    }

    fn now(&self) -> Instant {
        crate::clock::Clock::now(&*self.clock)
    }

    /// Takes all that the handle of a host has queued, and does what its node says.
    fn advance(&mut self, number: usize) {
        let now = self.now();
        let Some(started) = &mut self.hosts[number].running else {
            return;
        };
        while let Ok(event) = started.parts.inbox.try_recv() {
            started.parts.node.take(event, now).expect("no failure");
        }
        let effects = started.parts.node.advance(now).expect("no failure");
        started.writes.extend(effects.writes);
        if let Some(request) = effects.snapshot {
            let task = Task::Write(request);
            let stop = StopSignal::default();
            let event = started.parts.desk.perform(task, &stop).expect("an event");
            started.parts.node.take(event, now).expect("no failure");
        }
        for message in effects.messages {
            let to = self.ids[&message.to];
            self.parcels
                .push((number, to, Parcel::Message(message.bytes)));
        }
        for transfer in effects.transfers {
            let to = self.ids[&transfer.to];
            let name = self.rng.u64(..);
            self.transfers.insert((number, to), (transfer, name));
            self.next_chunk(number, to);
        }
    }

    fn next_chunk(&mut self, from: usize, to: usize) {
        let Some((transfer, name)) = self.transfers.get_mut(&(from, to)) else {
            return;
        };
        match transfer.next_chunk(*name).expect("the file is there") {
            Some(chunk) => self.parcels.push((from, to, Parcel::Chunk(chunk, *name))),
            None => self.end_transfer(from, to, true),
        }
    }

    fn end_transfer(&mut self, from: usize, to: usize, arrived: bool) {
        self.transfers.remove(&(from, to));
        let id = self.id(to);
        if let Some(started) = &self.hosts[from].running {
            started.parts.handle.snapshot_sent(id, arrived);
        }
    }

    /// The journal of a host makes what it has durable.
    fn sync(&mut self, number: usize) {
        let now = self.now();
        let Some(started) = &mut self.hosts[number].running else {
            return;
        };
        let writes = std::mem::take(&mut started.writes);
        let Some(event) = started.parts.write(&writes).expect("a disk") else {
            return;
        };
        started.parts.node.take(event, now).expect("no failure");
        self.advance(number);
    }

    fn deliver(&mut self) {
        if self.parcels.is_empty() {
            return;
        }
        let chosen = self.rng.usize(..self.parcels.len());
        let (from, to, parcel) = self.parcels.swap_remove(chosen);
        let is_lost = self.cut.contains(&from) || self.cut.contains(&to);
        let is_lost = is_lost || self.rng.f64() < self.loss;
        let now = self.now();
        let target = self.hosts[to].running.as_mut().filter(|_| !is_lost);
        match (parcel, target) {
            (Parcel::Message(bytes), Some(started)) => {
                let event = Event::Message(bytes.into());
                started.parts.node.take(event, now).expect("no failure");
            }
            (Parcel::Message(_), None) => {}
            (Parcel::Chunk(chunk, name), Some(started)) => {
                let result = Arc::new(Mutex::new(false));
                let seen = result.clone();
                let done: snapshots::ChunkDone = Box::new(move |r| *seen.lock() = r.is_ok());
                let task = Task::Receive(chunk, done);
                let stop = StopSignal::default();
                if let Some(event) = started.parts.desk.perform(task, &stop) {
                    started.parts.node.take(event, now).expect("no failure");
                }
                let is_current = |(_, current): &(OutgoingSnapshot, u64)| *current == name;
                if self.transfers.get(&(from, to)).is_some_and(is_current) {
                    match *result.lock() {
                        true => self.next_chunk(from, to),
                        false => self.end_transfer(from, to, false),
                    }
                }
            }
            (Parcel::Chunk(..), None) => self.end_transfer(from, to, false),
        }
        self.advance(to);
    }

    fn tick(&mut self) {
        self.clock.advance(TICK_INTERVAL);
        let now = self.now();
        for number in 0..self.hosts.len() {
            if let Some(started) = &mut self.hosts[number].running {
                started.parts.node.tick(now);
                self.advance(number);
            }
        }
    }

    /// So many random steps.
    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            match self.rng.usize(..20) {
                0 => self.tick(),
                1..6 => {
                    let number = self.rng.usize(..self.hosts.len());
                    self.sync(number);
                }
                _ => self.deliver(),
            }
        }
    }

    fn leader(&self) -> Option<(usize, u64)> {
        let serving = self.hosts.iter().enumerate().filter_map(|(number, host)| {
            let status = host.running.as_ref()?.parts.handle.status();
            status.serving.then_some((number, status.term))
        });
        serving.max_by_key(|(_, term)| *term)
    }

    fn run_until(&mut self, what: &str, mut is_done: impl FnMut(&Net) -> bool) {
        for _ in 0..4_000 {
            if is_done(self) {
                return;
            }
            self.run(20);
        }
        panic!("not within the time: {what}\n{}", self.describe());
    }

    fn describe(&self) -> String {
        let describe = |(number, host): (usize, &Host)| {
            let Some(started) = &host.running else {
                return format!("{number}: down\n");
            };
            let core = &started.parts.node.core;
            let found = (core.status(), core.progress(), core.configuration());
            let applied = started.log.lock().len();
            format!(
                "{number}: {:?} {applied} applied, {found:?}\n",
                started.parts.node.peer
            )
        };
        self.hosts.iter().enumerate().map(describe).collect()
    }

    fn propose(&mut self, text: String) -> bool {
        let Some((number, term)) = self.leader() else {
            return false;
        };
        let acknowledged = self.acknowledged.clone();
        let data = text.into_bytes();
        let kept = data.clone();
        let started = self.hosts[number].running.as_ref().expect("it serves");
        started.parts.handle.propose(term, data, move |outcome| {
            if let ProposalOutcome::Applied(_) = outcome {
                acknowledged.lock().push(kept);
            }
        });
        self.advance(number);
        true
    }

    fn change(&mut self, change: ConfigurationChange) {
        if let Some((number, term)) = self.leader() {
            let started = self.hosts[number].running.as_ref().expect("it serves");
            started.parts.handle.change(term, change, |_| ());
            self.advance(number);
        }
    }

    fn voters(&self) -> usize {
        let leader = self.leader().map(|(number, _)| number);
        let running = leader.and_then(|number| self.hosts[number].running.as_ref());
        running.map_or(0, |started| {
            let configuration = started.parts.handle.configuration();
            match configuration.is_joint() {
                true => 0,
                false => configuration.voters.len(),
            }
        })
    }

    /// Adds hosts one after the other until all are voters.
    fn grow(&mut self) {
        for number in 1..self.hosts.len() {
            let id = self.id(number);
            self.run_until("a leader", |net| net.leader().is_some());
            let address = PeerAddress {
                name: format!("leader-{}", number + 1),
                ..PeerAddress::default()
            };
            self.change(ConfigurationChange::AddLearner(id, address));
            self.run_until("one more voter", |net| net.voters() == number + 1);
        }
    }

    /// All that run agree, and all that was acknowledged is there.
    fn check(&mut self) {
        self.cut.clear();
        self.loss = 0.0;
        self.run_until("a leader at rest", |net| net.leader().is_some());
        for _ in 0..3 {
            self.propose("end".to_owned());
            self.run(2_000);
        }
        let logs: Vec<_> = self
            .hosts
            .iter()
            .filter_map(|host| Some(host.running.as_ref()?.log.lock().clone()))
            .collect();
        let longest = logs.iter().max_by_key(|log| log.len()).expect("one runs");
        for text in self.acknowledged.lock().iter() {
            let count = longest.iter().filter(|entry| *entry == text).count();
            assert!(count == 1 || text == b"end", "{count} times {text:?}");
        }
        for log in &logs {
            assert!(longest.starts_with(log), "two logs differ");
            assert!(log.len() + 3 >= longest.len(), "one does not catch up");
        }
    }
}

fn root() -> &'static Path {
    Path::new("leader")
}

#[test]
fn others_join_by_snapshot_become_voters_and_survive_the_first_one() {
    let mut net = Net::new(1, 3);
    net.run_until("a leader", |net| net.leader().is_some());
    for number in 0..40 {
        assert!(net.propose(format!("{number:01000}")));
        net.run(50);
    }
    net.grow();
    let (first, _) = net.leader().expect("it leads");
    assert_eq!(first, 0);
    net.crash(0);
    net.run_until("another leader", |net| {
        net.leader().is_some_and(|(number, _)| number != 0)
    });
    assert!(net.propose("after".to_owned()));
    net.run(500);
    net.start(0, Bootstrap::Existing);
    net.check();
    assert_eq!(net.voters(), 3);
    let follower = net.hosts[0].running.as_ref().expect("it runs");
    let addresses = follower.parts.handle.configuration().addresses.clone();
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    // Each one has its own id, kept.
    let names = net.hosts[1].fs.list(root()).expect("a directory");
    assert!(names.contains(&identity::FILE_NAME.to_owned()), "{names:?}");
}

#[test]
fn one_that_lags_behind_the_window_catches_up_by_a_snapshot() {
    let mut net = Net::new(2, 3);
    net.grow();
    let lagging = (1..3).find(|number| Some(*number) != net.leader().map(|(n, _)| n));
    let lagging = lagging.expect("one follows");
    net.crash(lagging);
    for number in 0..400 {
        // The window of a leader holds 16 MiB of them.
        net.propose(format!("{number:060000}"));
        net.run(30);
    }
    net.start(lagging, Bootstrap::Existing);
    net.check();
}

#[test]
fn a_voter_is_removed_and_the_rest_goes_on() {
    let mut net = Net::new(3, 3);
    net.grow();
    let (leader, _) = net.leader().expect("it leads");
    let other = (leader + 1) % 3;
    let id = net.id(other);
    net.change(ConfigurationChange::Remove(id));
    net.run_until("two voters", |net| net.voters() == 2);
    net.crash(other);
    assert!(net.propose("two".to_owned()));
    net.check();
    // The leader itself hands over first.
    let (leader, _) = net.leader().expect("it leads");
    let id = net.id(leader);
    net.change(ConfigurationChange::Remove(id));
    net.run_until("another leads", |net| {
        net.leader().is_some_and(|(number, _)| number != leader)
    });
    net.change(ConfigurationChange::Remove(id));
    net.run_until("one voter", |net| net.voters() == 1);
}

/// A configuration that was applied is not forgotten: whoever left may be gone for good.
#[test]
fn one_that_is_left_alone_needs_no_vote_of_who_left() {
    for seed in 0..20 {
        let mut net = Net::new(seed, 2);
        net.grow();
        let (leader, _) = net.leader().expect("it leads");
        let id = net.id(1 - leader);
        net.change(ConfigurationChange::Remove(id));
        for _ in 0..100_000 {
            if net.voters() == 1 {
                break;
            }
            net.run(1);
        }
        net.crash(1 - leader);
        net.crash(leader);
        net.start(leader, Bootstrap::Existing);
        net.run_until("it leads", |net| net.leader().is_some());
    }
}

/// A vote that only counts against the group: of a leader that is added and has never answered.
#[test]
fn one_that_never_answered_gets_no_vote() {
    let mut net = Net::new(6, 2);
    net.run_until("a leader", |net| net.leader().is_some());
    net.cut = vec![1];
    net.change(ConfigurationChange::AddLearner(
        net.id(1),
        PeerAddress::default(),
    ));
    net.run(4_000);
    assert!(net.propose("alone".to_owned()));
    net.run(4_000);
    assert_eq!((net.voters(), net.acknowledged.lock().len()), (1, 1));
    net.cut.clear();
    net.run_until("one more voter", |net| net.voters() == 2);
}

/// Another one proposed its removal, and handed over to it before that was decided.
#[test]
fn a_leader_that_is_removed_all_the_same_ends_to_lead() {
    let mut led = 0;
    for seed in 0..40 {
        let mut net = Net::new(seed, 3);
        net.grow();
        let (leader, _) = net.leader().expect("it leads");
        let to = (leader + 1) % 3;
        let id = net.id(to);
        net.change(ConfigurationChange::Remove(id));
        let started = net.hosts[leader].running.as_ref().expect("it runs");
        started.parts.handle.transfer(Some(id));
        net.advance(leader);
        net.run_until("it is removed, and another one leads", |net| {
            let (number, _) = net.leader().unwrap_or((to, 0));
            led += usize::from(net.leader().is_some_and(|(number, _)| number == to));
            number != to && net.voters() == 2
        });
        assert!(net.propose("after".to_owned()));
        net.run(2_000);
    }
    assert!(led > 0, "it never came to lead");
}

#[test]
fn leadership_is_handed_over_on_request() {
    let mut net = Net::new(4, 3);
    net.grow();
    // One that has not applied all changes of the group yet would not stand for election.
    net.check();
    let (leader, _) = net.leader().expect("it leads");
    let to = (leader + 1) % 3;
    let started = net.hosts[leader].running.as_ref().expect("it runs");
    started.parts.handle.transfer(Some(net.id(to)));
    net.advance(leader);
    net.run_until("the chosen one leads", |net| {
        net.leader().is_some_and(|(number, _)| number == to)
    });
    net.check();
}

#[test]
fn nothing_acknowledged_is_lost_whatever_crashes_and_is_cut() {
    for seed in 0..40 {
        let mut net = Net::new(seed, 3);
        net.grow();
        for round in 0..30 {
            net.loss = net.rng.f64() * 0.2;
            let number = net.rng.usize(..3);
            match net.rng.usize(..6) {
                0 => {
                    net.crash(number);
                    net.run(100);
                    net.start(number, Bootstrap::Existing);
                }
                1 => net.cut = vec![number],
                2 => net.cut.clear(),
                _ => {}
            }
            for part in 0..3 {
                net.propose(format!("{seed} {round} {part} {:0900}", 0));
                net.run(60);
            }
        }
        net.check();
    }
}
