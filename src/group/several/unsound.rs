//! Leaders that were elected and send what nobody can apply.

use super::super::testing::UNSOUND;
use super::*;

#[test]
fn what_cannot_be_applied_is_not_stored_by_the_others() {
    for seed in 0..5 {
        let mut net = Net::new(seed, 3);
        net.grow();
        net.run_until("a leader", |net| net.world.leader().is_some());
        let (leader, _) = net.world.leader().expect("it leads");
        assert!(net.propose("before".to_owned()));
        net.run(2_000);
        assert!(net.propose(UNSOUND.to_owned()));
        assert!(net.propose("behind it".to_owned()));
        net.run(4_000);
        // The group is held up, and nobody has stopped.
        assert_eq!(
            *net.acknowledged.lock(),
            [b"before".to_vec()],
            "seed {seed}"
        );
        net.crash(leader);
        net.run_until("another leader", |net| net.world.leader().is_some());
        assert!(net.propose("after".to_owned()));
        net.run(2_000);
        net.world.start(leader, Bootstrap::Existing);
        net.check();
        for number in 0..3 {
            let state = net.world.started(number).state();
            assert!(!state.contains(&UNSOUND.as_bytes().to_vec()), "seed {seed}");
            assert!(state.contains(&b"after".to_vec()), "seed {seed}");
        }
    }
}

#[test]
fn a_snapshot_that_cannot_be_restored_is_not_installed() {
    let mut net = Net::new(7, 2);
    net.run_until("a leader", |net| net.world.leader().is_some());
    // Alone it decides by itself.
    assert!(net.propose(UNSOUND.to_owned()));
    for number in 0..40 {
        assert!(net.propose(format!("{number:01000}")));
        net.run(50);
    }
    let id = net.world.id(1);
    net.change(ConfigurationChange::AddLearner(id, PeerAddress::default()));
    net.run(20_000);
    assert_eq!(net.voters(), 1);
    let started = net.world.started(1);
    assert!(started.state().is_empty());
    let snapshots = root().join(snapshots::SNAPSHOT_DIR);
    let names = net.world.hosts[1].fs.list(&snapshots).expect("a directory");
    assert!(names.contains(&"peer.tmp".to_owned()), "it came: {names:?}");
    assert!(
        !names.iter().any(|name| name.ends_with(".peer")),
        "{names:?}"
    );
    // It starts as it was.
    net.crash(1);
    net.world.start(1, Bootstrap::Existing);
    assert!(net.world.started(1).state().is_empty());
}
