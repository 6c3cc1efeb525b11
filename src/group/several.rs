//! Three participants at random: a network that delays, reorders and loses, crashes, and journals
//! that are slow.

mod copies;
mod faults;
mod unsound;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use parking_lot::Mutex;

use super::testing::{Host, Trace, World, root};
use super::*;
use crate::clock::Instant;
use crate::disk::mem::{Loss, MemFileSystem};

struct Net {
    rng: Rng,
    world: World,
    cut: Vec<usize>,
    /// Hosts whose disk takes so long for a write, and when that becomes durable.
    slow: BTreeMap<usize, (Duration, Instant)>,
    loss: f64,
    /// Answered to whoever proposed.
    acknowledged: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Net {
    /// `count` hosts; the first one begins the group, the others wait to be added.
    fn new(seed: u64, count: usize) -> Net {
        let mut net = Net {
            rng: Rng::with_seed(seed),
            world: World::new(8 << 10, Trace::default()),
            cut: Vec::new(),
            slow: BTreeMap::new(),
            loss: 0.0,
            acknowledged: Arc::default(),
        };
        net.world.asks_peers = true;
        for number in 0..count {
            net.world.add(6 + 2 * number);
            let bootstrap = match number {
                0 => Bootstrap::New,
                _ => Bootstrap::Join,
            };
            net.world.start(number, bootstrap);
        }
        net
    }

    fn crash(&mut self, number: usize) {
        let seed = self.rng.u64(..);
        self.world.crash(number, Loss::Random(seed));
    }

    /// The journal of a host makes what it has durable, unless its disk still works on it.
    fn sync(&mut self, number: usize) {
        let now = self.world.now();
        if let Some((delay, due)) = self.slow.get_mut(&number) {
            if now < *due {
                return;
            }
            *due = now + *delay;
        }
        self.world.sync(number);
    }

    fn deliver(&mut self) {
        if self.world.parcels.is_empty() {
            return;
        }
        let chosen = self.rng.usize(..self.world.parcels.len());
        let parcel = &self.world.parcels[chosen];
        let is_cut = self.cut.contains(&parcel.from) || self.cut.contains(&parcel.to);
        let is_lost = is_cut || self.rng.f64() < self.loss;
        self.world.deliver(chosen, is_lost);
    }

    fn tick(&mut self) {
        self.world.clock.advance(TICK_INTERVAL);
        for number in 0..self.world.hosts.len() {
            self.world.tick(number);
        }
    }

    /// So many random steps.
    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            match self.rng.usize(..20) {
                0 => self.tick(),
                1..6 => {
                    let number = self.rng.usize(..self.world.hosts.len());
                    self.sync(number);
                }
                _ => self.deliver(),
            }
        }
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
            let applied = started.state().len();
            format!(
                "{number}: {:?} {applied} applied, {found:?}\n",
                started.parts.node.peer
            )
        };
        self.world.hosts.iter().enumerate().map(describe).collect()
    }

    fn propose(&mut self, text: String) -> bool {
        let Some((number, term)) = self.world.leader() else {
            return false;
        };
        let acknowledged = self.acknowledged.clone();
        let data = text.into_bytes();
        let kept = data.clone();
        let started = self.world.started(number);
        started.parts.handle.propose(term, data, move |outcome| {
            if let ProposalOutcome::Applied(_) = outcome {
                acknowledged.lock().push(kept);
            }
        });
        self.world.advance(number);
        true
    }

    fn change(&mut self, change: ConfigurationChange) {
        if let Some((number, term)) = self.world.leader() {
            let started = self.world.started(number);
            started.parts.handle.change(term, change, |_| ());
            self.world.advance(number);
        }
    }

    fn voters(&self) -> usize {
        let leader = self.world.leader().map(|(number, _)| number);
        let running = leader.and_then(|number| self.world.hosts[number].running.as_ref());
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
        for number in 1..self.world.hosts.len() {
            let id = self.world.id(number);
            self.run_until("a leader", |net| net.world.leader().is_some());
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
        self.world.cut.clear();
        self.slow.clear();
        self.loss = 0.0;
        self.run_until("a leader at rest", |net| net.world.leader().is_some());
        for _ in 0..3 {
            self.propose("end".to_owned());
            self.run(2_000);
        }
        let logs: Vec<_> = self
            .world
            .hosts
            .iter()
            .filter_map(|host| Some(host.running.as_ref()?.state()))
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

#[test]
fn others_join_by_snapshot_become_voters_and_survive_the_first_one() {
    let mut net = Net::new(1, 3);
    net.run_until("a leader", |net| net.world.leader().is_some());
    for number in 0..40 {
        assert!(net.propose(format!("{number:01000}")));
        net.run(50);
    }
    net.grow();
    let (first, _) = net.world.leader().expect("it leads");
    assert_eq!(first, 0);
    net.crash(0);
    net.run_until("another leader", |net| {
        net.world.leader().is_some_and(|(number, _)| number != 0)
    });
    assert!(net.propose("after".to_owned()));
    net.run(500);
    net.world.start(0, Bootstrap::Existing);
    net.check();
    assert_eq!(net.voters(), 3);
    let follower = net.world.started(0);
    let addresses = follower.parts.handle.configuration().addresses.clone();
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    // Each one has its own id, kept.
    let names = net.world.hosts[1].fs.list(root()).expect("a directory");
    assert!(names.contains(&identity::FILE_NAME.to_owned()), "{names:?}");
}

#[test]
fn one_that_lags_behind_the_window_catches_up_by_a_snapshot() {
    let mut net = Net::new(2, 3);
    net.grow();
    let lagging = (1..3).find(|number| Some(*number) != net.world.leader().map(|(n, _)| n));
    let lagging = lagging.expect("one follows");
    net.crash(lagging);
    for number in 0..400 {
        // The window of a leader holds 16 MiB of them.
        net.propose(format!("{number:060000}"));
        net.run(30);
    }
    net.world.start(lagging, Bootstrap::Existing);
    net.check();
}

#[test]
fn a_voter_is_removed_and_the_rest_goes_on() {
    let mut net = Net::new(3, 3);
    net.grow();
    let (leader, _) = net.world.leader().expect("it leads");
    let other = (leader + 1) % 3;
    let id = net.world.id(other);
    net.change(ConfigurationChange::Remove(id));
    net.run_until("two voters", |net| net.voters() == 2);
    net.crash(other);
    assert!(net.propose("two".to_owned()));
    net.check();
    // The leader itself hands over first.
    let (leader, _) = net.world.leader().expect("it leads");
    let id = net.world.id(leader);
    net.change(ConfigurationChange::Remove(id));
    net.run_until("another leads", |net| {
        net.world
            .leader()
            .is_some_and(|(number, _)| number != leader)
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
        let (leader, _) = net.world.leader().expect("it leads");
        let id = net.world.id(1 - leader);
        net.change(ConfigurationChange::Remove(id));
        for _ in 0..100_000 {
            if net.voters() == 1 {
                break;
            }
            net.run(1);
        }
        net.crash(1 - leader);
        net.crash(leader);
        net.world.start(leader, Bootstrap::Existing);
        net.run_until("it leads", |net| net.world.leader().is_some());
    }
}

/// A vote that only counts against the group: of a leader that is added and has never answered.
#[test]
fn one_that_never_answered_gets_no_vote() {
    let mut net = Net::new(6, 2);
    net.run_until("a leader", |net| net.world.leader().is_some());
    net.cut = vec![1];
    net.change(ConfigurationChange::AddLearner(
        net.world.id(1),
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
        let (leader, _) = net.world.leader().expect("it leads");
        let to = (leader + 1) % 3;
        let id = net.world.id(to);
        net.change(ConfigurationChange::Remove(id));
        let started = net.world.started(leader);
        started.parts.handle.transfer(Some(id));
        net.world.advance(leader);
        net.run_until("it is removed, and another one leads", |net| {
            let (number, _) = net.world.leader().unwrap_or((to, 0));
            led += usize::from(net.world.leader().is_some_and(|(number, _)| number == to));
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
    let (leader, _) = net.world.leader().expect("it leads");
    let to = (leader + 1) % 3;
    let started = net.world.started(leader);
    started.parts.handle.transfer(Some(net.world.id(to)));
    net.world.advance(leader);
    net.run_until("the chosen one leads", |net| {
        net.world.leader().is_some_and(|(number, _)| number == to)
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
                    net.world.start(number, Bootstrap::Existing);
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
