//! Partial failures: a leader that is cut off, links that work one way or now and then, a disk that
//! is slow. None of them makes elections go on for ever, and none has anything false said.

use super::*;
use crate::group::ReadConfirmation;

/// How long a fault lasts: some thirty election time-outs.
const TICKS: usize = 200;

impl Net {
    fn ticks(&mut self, ticks: usize) {
        let until =
            self.world.now() + TICK_INTERVAL * u32::try_from(ticks).expect("a small number");
        while self.world.now() < until {
            self.run(1);
            // The network keeps up: what a slow disk lets go all at once delays nothing else.
            while self.world.parcels.len() > 8 {
                self.deliver();
            }
        }
    }

    /// The highest term that any host has seen.
    fn term(&self) -> u64 {
        let running = self
            .world
            .hosts
            .iter()
            .filter_map(|host| host.running.as_ref());
        let terms = running.map(|started| started.parts.handle.status().term);
        terms.max().expect("one runs")
    }

    /// Three voters at rest, and the place of the leader.
    fn three(seed: u64) -> (Net, usize) {
        let mut net = Net::new(seed, 3);
        net.grow();
        net.ticks(20);
        let (leader, _) = net.world.leader().expect("it leads");
        (net, leader)
    }

    /// The disk of a host takes so long for a write from now on.
    fn slow_down(&mut self, number: usize, delay: Duration) {
        self.slow.insert(number, (delay, self.world.now() + delay));
    }

    /// So many ticks with proposals; how many of these were acknowledged, and how many terms began.
    fn load(&mut self, ticks: usize) -> (usize, u64) {
        let (before, term) = (self.acknowledged.lock().len(), self.term());
        for _ in 0..ticks {
            self.propose(format!("at {}", self.world.now().as_nanos()));
            self.ticks(1);
        }
        let acknowledged = self.acknowledged.lock().len() - before;
        (acknowledged, self.term() - term)
    }
}

/// Goal: Raft thesis 6.2, "a leader steps down if an election timeout elapses without a successful
/// round of heartbeats to a majority of its cluster", and what its clients are told until then.
#[test]
fn a_leader_that_is_cut_off_says_nothing_more_and_steps_down() {
    for seed in 0..10 {
        let (mut net, leader) = Net::three(seed);
        let (_, term) = net.world.leader().expect("it leads");
        net.cut = vec![leader];
        let said = Arc::new(Mutex::new(Vec::new()));
        let handle = net.world.started(leader).parts.handle.clone();
        let mut ticks = 0;
        while handle.status().serving {
            assert!(ticks < 20, "it serves on");
            ticks += 1;
            let heard = Arc::clone(&said);
            handle.propose(term, b"cut off".to_vec(), move |outcome| {
                heard.lock().push(format!("{outcome:?}"));
            });
            let heard = Arc::clone(&said);
            let read = handle.confirm_read(move |outcome| {
                heard.lock().push(format!("{outcome:?}"));
            });
            assert_eq!(read, ReadConfirmation::Later, "nobody confirms it at once");
            net.ticks(1);
        }
        assert_eq!(handle.status().role, Role::Follower);
        assert_eq!(handle.confirm_read(|_| ()), ReadConfirmation::NotServing);
        // Each read is refused, and each write waits, or was not even taken.
        let mut said: Vec<String> = said.lock().drain(..).collect();
        said.retain(|outcome| outcome != "NotProposed(NotLeader)");
        assert_eq!(said, vec!["NotServing"; ticks]);
        net.run_until("another leader", |net| {
            net.world
                .leader()
                .is_some_and(|(number, _)| number != leader)
        });
        assert!(net.propose("after".to_owned()));
        net.check();
        let log = net.world.started(leader).state();
        assert!(!log.contains(&b"cut off".to_vec()), "it was not committed");
    }
}

#[test]
fn a_link_that_works_one_way_causes_no_endless_elections() {
    for seed in 0..4 {
        for (from, to) in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)] {
            let (mut net, _) = Net::three(seed);
            net.world.cut = [(from, to)].into();
            let (acknowledged, terms) = net.load(TICKS);
            let what = format!("seed {seed}, {from} to {to}");
            assert!(terms <= 1, "{what}: {terms} terms");
            assert!(acknowledged > TICKS / 2, "{what}: {acknowledged}");
            net.check();
        }
    }
}

#[test]
fn a_leader_that_hears_nobody_or_is_heard_by_nobody_is_followed_by_another() {
    for seed in 0..4 {
        for is_deaf in [true, false] {
            let (mut net, leader) = Net::three(seed);
            let others = (0..3).filter(|other| *other != leader);
            let way = |other| match is_deaf {
                true => (other, leader),
                false => (leader, other),
            };
            net.world.cut = others.map(way).collect();
            let (acknowledged, terms) = net.load(TICKS);
            let what = format!("seed {seed}, deaf {is_deaf}");
            assert!((1..=2).contains(&terms), "{what}: {terms} terms");
            assert!(acknowledged > TICKS / 2, "{what}: {acknowledged}");
            assert!(
                net.world
                    .leader()
                    .is_some_and(|(number, _)| number != leader)
            );
            net.check();
        }
    }
}

#[test]
fn two_that_hear_each_other_by_a_third_one_only_have_a_leader_for_good() {
    for seed in 0..4 {
        for bridge in 0..3 {
            let (mut net, _) = Net::three(seed);
            let (a, b) = ((bridge + 1) % 3, (bridge + 2) % 3);
            net.world.cut = [(a, b), (b, a)].into();
            let (acknowledged, terms) = net.load(TICKS);
            let what = format!("seed {seed}, bridge {bridge}");
            assert!(terms <= 1, "{what}: {terms} terms");
            assert!(acknowledged > TICKS / 2, "{what}: {acknowledged}");
            net.check();
        }
    }
}

/// A follower that comes and goes disturbs nobody; a leader that does is followed by another one,
/// once.
#[test]
fn a_link_that_flaps_causes_no_endless_elections() {
    for period in [1, 3, 5, 8, 13] {
        for place in 0..3 {
            let (mut net, leader) = Net::three(period as u64);
            let term = net.term();
            for round in 0..TICKS / period {
                net.cut = match round % 2 {
                    0 => vec![(leader + place) % 3],
                    _ => Vec::new(),
                };
                net.load(period);
            }
            let terms = net.term() - term;
            let what = format!("each {period} ticks, {place} behind the leader");
            assert!(terms <= u64::from(place == 0) * 2, "{what}: {terms} terms");
            net.check();
        }
    }
}

#[test]
fn a_peer_with_a_slow_disk_causes_no_endless_elections() {
    for seed in 0..4 {
        for place in 0..3 {
            let (mut net, leader) = Net::three(seed);
            let slow = (leader + place) % 3;
            net.slow_down(slow, Duration::from_secs(2));
            let (acknowledged, terms) = net.load(TICKS);
            let what = format!("seed {seed}, {place} behind the leader");
            // One that leads hands over, to one of which its vote is late.
            assert!(terms <= u64::from(place == 0) * 2, "{what}: {terms} terms");
            assert!(acknowledged > TICKS / 2, "{what}: {acknowledged}");
            assert!(net.world.leader().is_some_and(|(number, _)| number != slow));
            net.check();
        }
    }
}

/// How many terms may begin in [`TICKS`] where all disks are slow: what one takes for the quicker
/// one may be chance, and is asked twice in that time at most.
const SLOW_TERMS_MAX: u64 = 4;

/// A write then takes longer than an election time-out on all of them, one being away.
#[test]
fn slow_disks_cause_no_endless_elections() {
    for seed in 0..4 {
        for delay_ms in [300, 450, 700, 1500] {
            let (mut net, leader) = Net::three(seed);
            net.crash((leader + 1) % 3);
            for number in 0..3 {
                net.slow_down(number, Duration::from_millis(delay_ms));
            }
            let (acknowledged, terms) = net.load(TICKS);
            let what = format!("seed {seed}, {delay_ms} ms");
            assert!(terms <= SLOW_TERMS_MAX, "{what}: {terms} terms");
            assert!(acknowledged > TICKS / 3, "{what}: {acknowledged}");
        }
    }
}

/// Two of three are left, and store their votes as slowly as the figures say.
#[test]
fn slow_disks_elect_a_leader() {
    for seed in 0..4 {
        for (first_ms, second_ms) in [(300, 300), (700, 700), (1500, 1500), (0, 1000), (1000, 50)] {
            let (mut net, leader) = Net::three(seed);
            net.slow_down((leader + 1) % 3, Duration::from_millis(first_ms));
            net.slow_down((leader + 2) % 3, Duration::from_millis(second_ms));
            net.crash(leader);
            let began = net.world.now();
            let what = format!("seed {seed}, {first_ms} ms and {second_ms} ms");
            net.run_until(&what, |net| net.world.leader().is_some());
            let took = net.world.now().since(began);
            assert!(took < Duration::from_secs(20), "{what}: {took:?}");
            let (acknowledged, terms) = net.load(TICKS);
            assert!(terms <= SLOW_TERMS_MAX, "{what}: {terms} terms");
            assert!(acknowledged > TICKS / 3, "{what}: {acknowledged}");
        }
    }
}
