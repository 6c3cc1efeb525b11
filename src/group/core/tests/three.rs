//! Three participants that pass messages by hand, and by chance.

use super::*;

#[test]
fn three_elect_replicate_and_survive_their_leader() {
    let mut group = Group::new();
    assert_eq!(group.node(1).core.status().role, Role::Follower);
    group.ticks(10);
    let status = group.node(1).core.status();
    assert!(status.serving && status.role == Role::Leader);
    group.node(1).propose(status.term, "a").unwrap();
    group.settle();
    assert_eq!(
        group.node(2).propose(status.term, "b"),
        Err(Reason::NotLeader)
    );

    group.cut.push(1);
    group.node(1).propose(status.term, "lost").unwrap();
    group.ticks(30);
    assert_ne!(group.node(1).core.status().role, Role::Leader);
    let heir = [2, 3]
        .into_iter()
        .find(|id| group.node(*id).core.status().serving)
        .unwrap();
    let term = group.node(heir).core.status().term;
    assert!(term > status.term);
    group.node(heir).propose(term, "c").unwrap();
    group.settle();

    group.cut.clear();
    group.ticks(10);
    for id in 1..=3 {
        assert_eq!(group.node(id).texts(), ["a", "c"], "node {id}");
    }
}

#[test]
fn a_vote_leaves_only_when_it_is_stored() {
    let mut group = Group::new();
    for _ in 0..10 {
        group.node(1).core.tick();
    }
    // PreVote stores nothing, so its answers come at once.
    group.node(1).sync();
    let (to, request) = group.node(1).outbox.remove(0);
    group.node(to.0).hear(&request).unwrap();
    group.node(to.0).advance();
    let (_, answer) = group.node(to.0).outbox.remove(0);
    group.node(1).outbox.clear();
    group.node(1).hear(&answer).unwrap();
    group.node(1).advance();
    assert_eq!(group.node(1).outbox, [], "its own vote is not stored yet");
    group.node(1).sync();
    let (to, request) = group.node(1).outbox.remove(0);
    group.node(to.0).hear(&request).unwrap();
    group.node(to.0).advance();
    assert_eq!(group.node(to.0).outbox, []);
    group.node(to.0).sync();
    assert_eq!(group.node(to.0).outbox.len(), 1);
    assert_eq!(group.node(to.0).hard_state.vote, Some(PeerId(1)));
}

#[test]
fn a_read_is_confirmed_by_the_others() {
    let mut group = Group::new();
    group.ticks(10);
    group.node(1).core.read_index(7);
    group.node(1).sync();
    assert_eq!(group.node(1).reads, []);
    group.settle();
    let commit = group.node(1).core.status().commit;
    assert_eq!(group.node(1).reads, [(7, commit)]);
    group.cut = vec![2, 3];
    group.node(1).core.read_index(8);
    group.settle();
    assert_eq!(group.node(1).reads.len(), 1);
}

/// Elections, crashes, and messages that are late, lost, doubled and reordered, by a seed.
/// Returns how many entries were proposed.
fn chaos(seed: u64) -> usize {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut group = Group::new();
    let mut mail: Vec<(PeerId, Vec<u8>)> = Vec::new();
    // All that was ever applied anywhere, by index: it must stay.
    let mut agreed: Vec<LogEntry> = Vec::new();
    let mut proposed = 0;
    for _ in 0..3000 {
        let id = random.u64(1..=3);
        let node = group.node(id);
        match random.u32(0..1000) {
            0..60 => node.core.tick(),
            60..575 if mail.is_empty() => {}
            60..560 => {
                let at = random.usize(..mail.len());
                let is_doubled = random.u32(0..20) == 0;
                let (to, message) = if is_doubled {
                    mail[at].clone()
                } else {
                    mail.swap_remove(at)
                };
                _ = group.node(to.0).hear(&message);
            }
            560..575 => _ = mail.swap_remove(random.usize(..mail.len())),
            575..850 => _ = node.sync_one(),
            850..997 => {
                let term = node.core.status().term;
                let text = format!("{proposed}");
                proposed += usize::from(node.propose(term, &text).is_ok());
            }
            _ => {
                let node = group.nodes.remove(id as usize - 1);
                group.nodes.insert(id as usize - 1, node.restart());
            }
        }
        for node in &mut group.nodes {
            node.advance();
            mail.append(&mut node.outbox);
            for (index, entry) in node.applied.iter().enumerate() {
                match agreed.get(index) {
                    Some(same) => assert_eq!(entry, same, "seed {seed}"),
                    None => agreed.push(entry.clone()),
                }
            }
        }
    }
    group.settle();
    group.ticks(60);
    for node in &group.nodes {
        let (id, applied) = (node.config.id, &node.applied);
        assert!(
            applied.len() >= agreed.len(),
            "seed {seed}: node {id} is behind"
        );
        assert_eq!(applied[..agreed.len()], agreed[..], "seed {seed}");
        assert_eq!(*applied, group.nodes[0].applied, "seed {seed}");
    }
    proposed
}

#[test]
fn three_agree_whatever_is_lost_late_or_restarted() {
    let proposed: usize = (0..40).map(chaos).sum();
    assert!(proposed > 1000, "only {proposed} were proposed");
}
