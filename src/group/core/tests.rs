//! One participant step by step.

use protobuf::Message as _;
use raft::eraftpb::{Entry, MessageType};

use super::*;
use crate::ids::Revision;

mod three;

fn quiet() -> slog::Logger {
    slog::Logger::root(slog::Discard, slog::o!())
}

/// Enough that no peer in these tests needs an entry that is gone, except where that is the test.
const WINDOW_BYTES: usize = 128 << 10;

/// A participant with a disk that keeps what it was told to, and applies to a list.
struct Node {
    core: Core,
    config: CoreConfig,
    /// At the origin.
    configuration: Configuration,
    /// Writes handed out and not durable.
    unsynced: VecDeque<Persist>,
    /// What is durable.
    entries: Vec<LogEntry>,
    hard_state: HardState,
    applied: Vec<LogEntry>,
    outbox: Vec<(PeerId, Vec<u8>)>,
    reads: Vec<(u64, u64)>,
}

impl Node {
    fn new(id: u64, voters: &[u64]) -> Node {
        let config = CoreConfig {
            id: PeerId(id),
            heartbeat_ticks: 1,
            election_ticks: 5 + id as usize..6 + id as usize,
            asks_peers: false,
            asks_members: false,
            check: |_| Ok(()),
        };
        let configuration = Configuration::of(voters.iter().copied().map(PeerId));
        Node::start(config, configuration, Vec::new(), HardState::INITIAL)
    }

    fn start(
        config: CoreConfig,
        configuration: Configuration,
        entries: Vec<LogEntry>,
        hard_state: HardState,
    ) -> Node {
        let mut window = Window::new(ORIGIN, WINDOW_BYTES);
        let mut applied = Vec::new();
        for entry in &entries {
            window.push(entry.clone());
            if entry.index <= hard_state.commit {
                applied.push(entry.clone());
            }
        }
        let recovered = Recovered {
            hard_state,
            window,
            configuration: configuration.clone(),
        };
        Node {
            configuration,
            core: Core::new(&config, recovered, &quiet()).unwrap(),
            config,
            unsynced: VecDeque::new(),
            entries,
            hard_state,
            applied,
            outbox: Vec::new(),
            reads: Vec::new(),
        }
    }

    /// A message comes on its sender's link.
    fn hear(&mut self, message: &[u8]) -> Result<(), MessageDropped> {
        let sender = Message::parse_from_bytes(message).map_or(0, |message| message.from);
        self.core.step(PeerId(sender), message)
    }

    /// Loses what is not durable.
    fn restart(self) -> Node {
        Node::start(
            self.config,
            self.configuration,
            self.entries,
            self.hard_state,
        )
    }

    fn advance(&mut self) {
        while let Some(batch) = self.core.ready() {
            self.unsynced.extend(batch.persist);
            let messages = batch.messages.into_iter();
            self.outbox
                .extend(messages.map(|message| (message.to, message.bytes)));
            self.reads.extend(batch.reads);
            for entry in batch.committed {
                self.core.applied(entry.index);
                self.applied.push(entry);
            }
        }
    }

    fn sync(&mut self) {
        self.advance();
        while self.sync_one() {}
    }

    /// Makes one write durable; false if there is none.
    fn sync_one(&mut self) -> bool {
        let Some(write) = self.unsynced.pop_front() else {
            return false;
        };
        for entry in write.entries {
            let before = entry.index - ORIGIN.index - 1;
            assert!(before <= self.entries.len() as u64, "a gap in the journal");
            self.entries.truncate(before as usize);
            self.entries.push(entry);
        }
        self.hard_state = write.hard_state;
        assert!(self.hard_state.commit <= ORIGIN.index + self.entries.len() as u64);
        self.core.persisted(write.number);
        self.advance();
        true
    }

    fn propose(&mut self, term: u64, text: &str) -> Result<u64, Reason> {
        self.core.propose(term, text.as_bytes().to_vec())
    }

    fn texts(&self) -> Vec<String> {
        let texts = self.applied.iter().filter(|entry| !entry.data.is_empty());
        texts
            .map(|entry| String::from_utf8(entry.data.to_vec()).unwrap())
            .collect()
    }
}

#[test]
fn one_alone_leads_at_once_and_serves_when_its_first_entry_is_applied() {
    let mut node = Node::new(1, &[1]);
    let status = node.core.status();
    assert_eq!((status.role, status.term), (Role::Leader, 2));
    assert!(!status.serving);
    node.advance();
    assert!(!node.core.status().serving);
    assert_eq!(node.propose(2, "early"), Err(Reason::NotLeader));
    node.sync();
    assert!(node.core.status().serving);
    assert_eq!(node.propose(2, "in time"), Ok(3));
}

#[test]
fn nothing_is_applied_before_it_is_persisted_and_then_in_order() {
    let mut node = Node::new(1, &[1]);
    node.sync();
    node.propose(2, "a").unwrap();
    node.advance();
    node.propose(2, "b").unwrap();
    node.propose(2, "c").unwrap();
    node.advance();
    assert_eq!(node.texts(), Vec::<String>::new());
    assert_eq!(node.unsynced.len(), 2);
    assert_eq!(node.unsynced[1].entries.len(), 2);
    assert!(node.sync_one());
    assert_eq!(node.texts(), ["a"]);
    node.sync();
    assert_eq!(node.texts(), ["a", "b", "c"]);
    let status = node.core.status();
    assert_eq!((status.commit, status.applied), (5, 5));
}

#[test]
fn one_acknowledgement_covers_all_earlier_writes() {
    let mut node = Node::new(1, &[1]);
    node.sync();
    for text in ["a", "b", "c"] {
        node.propose(2, text).unwrap();
        node.advance();
    }
    let last = node.unsynced.pop_back().unwrap();
    node.core.persisted(last.number);
    assert_eq!(node.core.writes_in_flight(), 0);
    node.advance();
    assert_eq!(node.texts(), ["a", "b", "c"]);
}

#[test]
fn a_proposal_of_another_term_is_refused() {
    let mut node = Node::new(1, &[1]);
    node.sync();
    for term in [0, 1, 3] {
        assert_eq!(node.propose(term, "x"), Err(Reason::NotLeader));
    }
    node.sync();
    assert_eq!(node.texts(), Vec::<String>::new());
}

#[test]
fn each_start_has_a_new_term_and_commits_what_the_last_one_stored() {
    let mut node = Node::new(1, &[1]);
    for start in 0..5 {
        node.sync();
        let term = node.core.status().term;
        assert_eq!(term, 2 + start);
        node.propose(term, &format!("{start}")).unwrap();
        node.advance();
        // Stored, and not known to be committed when the crash comes.
        let write = node.unsynced.pop_front().unwrap();
        node.entries.extend(write.entries);
        node.hard_state = write.hard_state;
        node = node.restart();
    }
    node.sync();
    assert_eq!(node.texts(), ["0", "1", "2", "3", "4"]);
    let terms: Vec<u64> = node.applied.iter().map(|entry| entry.term).collect();
    assert!(terms.is_sorted());
}

#[test]
fn a_term_that_was_not_stored_was_not_served() {
    let mut node = Node::new(1, &[1]);
    node.sync();
    node = node.restart();
    node.advance();
    assert_eq!(node.core.status().term, 3);
    node = node.restart();
    assert_eq!(node.core.status().term, 3);
    assert!(!node.core.status().serving);
}

#[test]
fn memory_does_not_grow_with_the_log() {
    let mut node = Node::new(1, &[1]);
    node.sync();
    for _ in 0..100 {
        node.propose(2, &"x".repeat(3000)).unwrap();
        node.sync();
    }
    assert!(node.core.window_bytes() <= WINDOW_BYTES);
    assert_eq!(node.applied.len(), 101);
}

#[test]
fn too_much_uncommitted_is_refused() {
    let mut node = Node::new(1, &[1]);
    node.sync();
    let megabyte = vec![0; 1 << 20];
    let refused = (0..100)
        .filter(|_| node.core.propose(2, megabyte.clone()) == Err(Reason::Busy))
        .count();
    assert_eq!(refused, 36);
    node.sync();
    assert!(node.core.propose(2, megabyte).is_ok());
}

#[test]
fn a_log_that_makes_no_sense_is_refused() {
    let config = CoreConfig {
        id: PeerId(1),
        heartbeat_ticks: 1,
        election_ticks: 6..12,
        asks_peers: false,
        asks_members: false,
        check: |_| Ok(()),
    };
    for (term, commit) in [(1, 2), (1, 0), (0, 1), (1 << 24, 1)] {
        let recovered = Recovered {
            hard_state: HardState {
                term,
                vote: None,
                commit,
            },
            window: Window::new(ORIGIN, 0),
            configuration: Configuration::of([PeerId(1)]),
        };
        assert!(
            Core::new(&config, recovered, &quiet()).is_err(),
            "{term} {commit}"
        );
    }
}

/// Three participants; messages go where they are sent unless an end is cut off.
struct Group {
    nodes: Vec<Node>,
    cut: Vec<u64>,
}

impl Group {
    fn new() -> Group {
        let nodes = (1..=3).map(|id| Node::new(id, &[1, 2, 3])).collect();
        Group {
            nodes,
            cut: Vec::new(),
        }
    }

    fn node(&mut self, id: u64) -> &mut Node {
        &mut self.nodes[id as usize - 1]
    }

    /// Syncs and delivers until nothing moves.
    fn settle(&mut self) {
        loop {
            let mut mail = Vec::new();
            for id in 1..=3 {
                self.node(id).sync();
                for (to, message) in std::mem::take(&mut self.node(id).outbox) {
                    if !self.cut.contains(&id) && !self.cut.contains(&to.0) {
                        mail.push((to, message));
                    }
                }
            }
            if mail.is_empty() {
                return;
            }
            for (to, message) in mail {
                _ = self.node(to.0).hear(&message);
            }
        }
    }

    fn ticks(&mut self, count: usize) {
        for _ in 0..count {
            for id in 1..=3 {
                self.node(id).core.tick();
            }
            self.settle();
        }
    }
}

#[test]
fn what_a_peer_must_not_send_is_dropped() {
    let mut group = Group::new();
    group.ticks(10);
    let mut message = Message {
        to: 1,
        from: 2,
        ..Message::default()
    };
    message.set_msg_type(MessageType::MsgPropose);
    message.entries.push(Entry {
        data: vec![1].into(),
        ..Entry::default()
    });
    let node = group.node(1);
    assert!(node.hear(&message.write_to_bytes().unwrap()).is_err());
    message.set_msg_type(MessageType::MsgReadIndex);
    assert!(node.hear(&message.write_to_bytes().unwrap()).is_err());
    message.set_msg_type(MessageType::MsgAppend);
    message.term = Revision::TERM_MAX + 1;
    assert!(node.hear(&message.write_to_bytes().unwrap()).is_err());
    assert!(node.hear(b"\xff\xff").is_err());
    message.to = 2;
    message.term = 2;
    assert!(node.hear(&message.write_to_bytes().unwrap()).is_err());
    group.settle();
    assert_eq!(group.node(1).texts(), Vec::<String>::new());
}

/// A message of peer 2 to peer 1, which follows it in `term`.
fn of_leader(kind: MessageType, term: u64) -> Message {
    let mut message = Message {
        to: 1,
        from: 2,
        term,
        log_term: term,
        ..Message::default()
    };
    message.set_msg_type(kind);
    message
}

#[test]
fn what_the_crate_would_panic_at_is_dropped() {
    let mut group = Group::new();
    group.ticks(20);
    let lead = |group: &Group| group.nodes.iter().position(|one| one.core.status().serving);
    let leader = lead(&group).expect("one leads") as u64 + 1;
    let term = group.node(leader).core.status().term;
    let follower = 1 + leader % 3;
    let last = group.node(follower).core.node.raft.raft_log.last_index();
    let absurd = |kind, change: &dyn Fn(&mut Message)| {
        let mut message = of_leader(kind, term);
        (message.from, message.to) = (leader, follower);
        change(&mut message);
        message
    };
    let entry = |index, kind, data: &[u8]| {
        let mut entry = Entry {
            index,
            term,
            data: data.to_vec().into(),
            ..Entry::default()
        };
        entry.set_entry_type(kind);
        entry
    };
    let with_entries = |index: u64, entries: Vec<Entry>| {
        absurd(MessageType::MsgAppend, &|message| {
            (message.index, message.commit) = (index, 1 << 40);
            message.set_entries(entries.clone().into());
        })
    };
    use raft::eraftpb::EntryType::{EntryConfChangeV2, EntryNormal};
    for message in [
        absurd(MessageType::MsgHeartbeat, &|message| {
            message.commit = 1 << 40
        }),
        absurd(MessageType::MsgHeartbeat, &|message| {
            message.commit = last + 1
        }),
        absurd(MessageType::MsgAppend, &|message| {
            (message.index, message.log_term, message.commit) = (1 << 40, 0, 1 << 40);
        }),
        with_entries(last, vec![entry(last + 9, EntryNormal, b"gap")]),
        with_entries(last, vec![entry(last, EntryNormal, b"again")]),
        with_entries(last, vec![entry(last + 1, EntryConfChangeV2, &[0xff; 5])]),
        absurd(MessageType::MsgHeartbeat, &|message| {
            message.term = u64::MAX
        }),
        absurd(MessageType::MsgReadIndexResp, &|message| {
            message.index = last
        }),
    ] {
        let node = group.node(follower);
        let refused = node.hear(&message.write_to_bytes().unwrap());
        assert!(
            matches!(refused, Err(MessageDropped::Absurd(_))),
            "{message:?}"
        );
    }
    let answer = |index| {
        let mut answer = of_leader(MessageType::MsgAppendResponse, term);
        (answer.from, answer.to, answer.index) = (follower, leader, index);
        answer.log_term = 0;
        answer.write_to_bytes().unwrap()
    };
    for index in [last + 1, u64::MAX] {
        assert!(group.node(leader).hear(&answer(index)).is_err());
    }
    group.node(leader).propose(term, "x").unwrap();
    group.settle();
    group.ticks(1);
    for id in 1..=3 {
        assert_eq!(group.node(id).texts(), ["x"], "{id}");
    }
    assert_eq!(lead(&group), Some(leader as usize - 1));
}

#[test]
fn an_impossible_change_of_the_group_has_no_effect() {
    let before = Configuration::of([PeerId(1), PeerId(2)]);
    let removal = |peers: &[u64]| {
        let mut change = raft::eraftpb::ConfChangeV2::default();
        for peer in peers {
            let mut single = raft::eraftpb::ConfChangeSingle::default();
            single.set_change_type(raft::eraftpb::ConfChangeType::RemoveNode);
            single.node_id = *peer;
            change.mut_changes().push(single);
        }
        change.write_to_bytes().unwrap()
    };
    assert!(changed(&before, &removal(&[1])).is_ok());
    // Nobody would be left; there is no joint configuration to leave.
    assert!(changed(&before, &removal(&[1, 2])).is_err());
    assert!(changed(&before, &removal(&[])).is_err());
    let mut node = Node::new(1, &[1]);
    node.sync();
    let entry = LogEntry {
        kind: EntryKind::Configuration,
        index: 2,
        term: 2,
        data: removal(&[1]).into(),
    };
    assert!(node.core.apply_change(&entry).is_err());
    assert_eq!(*node.core.configuration(), Configuration::of([PeerId(1)]));
}
