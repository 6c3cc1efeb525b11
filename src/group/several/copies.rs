//! Directories that are older copies of themselves: what peers know of them stops them.

use super::*;

impl Net {
    /// The disk of a host becomes the older copy, and it starts again.
    fn start_copy(&mut self, number: usize, copy: &MemFileSystem) {
        self.crash(number);
        self.world.hosts[number].fs = copy.fork();
        self.world.start(number, Bootstrap::Existing);
    }

    fn propose_some(&mut self, count: usize, word: &str) {
        let before = self.acknowledged.lock().len();
        for number in 0..count {
            self.propose(format!("{word} {number}"));
        }
        self.run_until("all are acknowledged", |net| {
            net.acknowledged.lock().len() >= before + count
        });
    }

    /// Three voters, one of them not the leader, and the disks of all as they are at that time.
    fn with_copies(seed: u64) -> (Net, usize, usize, Vec<MemFileSystem>) {
        let mut net = Net::new(seed, 3);
        net.grow();
        net.propose_some(5, "before");
        net.run(300);
        let (leader, _) = net.world.leader().expect("it leads");
        let copies = net.world.hosts.iter().map(|host| host.fs.fork()).collect();
        net.world.failures = Some(Vec::new());
        (net, leader, (leader + 1) % 3, copies)
    }
}

/// Goal: an older copy takes no part. Method: a follower's disk goes back behind what the leader
/// knows that it had stored. It is told so before it counts, and stops; the others go on.
#[test]
fn a_follower_on_an_older_copy_is_told_by_its_leader_and_stops() {
    for seed in 1..6 {
        let (mut net, leader, follower, copies) = Net::with_copies(seed);
        net.propose_some(20, "after");
        net.run(300);
        net.start_copy(follower, &copies[follower]);
        net.run_until("it stops", |net| {
            !net.world.failures.as_ref().unwrap().is_empty()
        });
        let failures = net.world.failures.take().unwrap();
        let [(number, error)] = &failures[..] else {
            panic!("{failures:?}");
        };
        assert_eq!(*number, follower);
        let GroupError::OlderCopy {
            peer, known, last, ..
        } = error
        else {
            panic!("{error}");
        };
        assert!(*peer == net.world.id(leader) && known > last, "{error}");
        let text = error.to_string();
        assert!(
            !text.contains('\n') && text.contains("group remove"),
            "{text}"
        );
        net.propose_some(3, "without it");
    }
}

/// Goal: committed entries are not overwritten. Method: the leader and a follower commit, while the
/// third one is away; then the follower goes back, and one of these two elects the other; neither
/// knows what is missing. When the one that led comes back, it keeps what it has, follows nobody,
/// and says so.
#[test]
fn one_that_has_committed_entries_does_not_let_them_be_overwritten() {
    let (mut net, leader, follower, copies) = Net::with_copies(7);
    let away = (leader + 2) % 3;
    net.crash(away);
    net.propose_some(20, "after");
    // With these it is stored that the others are committed.
    net.propose_some(3, "then");
    net.run(300);
    net.crash(leader);
    net.start_copy(follower, &copies[follower]);
    net.world.start(away, Bootstrap::Existing);
    net.run_until("one of both leads", |net| net.world.leader().is_some());
    net.run(300);
    net.world.start(leader, Bootstrap::Existing);
    let handle = |net: &Net| net.world.started(leader).parts.handle.clone();
    net.run_until("the third one is in conflict", |net| {
        handle(net).obstacle().is_some()
    });
    let before = net.world.started(leader).state();
    net.run(3_000);
    assert_eq!(net.world.started(leader).state(), before);
    assert_eq!(handle(&net).status().leader, None);
    assert!(net.world.failures.take().unwrap().is_empty(), "none ended");
    let obstacle = handle(&net).obstacle().expect("it stands").to_string();
    assert!(!obstacle.contains('\n') && obstacle.contains("older copy"));
}

/// An intact one that starts again, however far behind, is told nothing that it lacks.
#[test]
fn one_that_was_away_is_taken_back() {
    for seed in 1..6 {
        let (mut net, _, follower, _) = Net::with_copies(seed);
        net.crash(follower);
        net.propose_some(20, "meanwhile");
        net.world.start(follower, Bootstrap::Existing);
        net.run_until("it has all", |net| {
            net.world.started(follower).state().len() >= 25
        });
        assert!(net.world.failures.take().unwrap().is_empty());
    }
}
