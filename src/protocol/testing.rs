//! A store for tests of protocols: executes batches on a map. Pure.

use std::collections::BTreeMap;
use std::error::Error;

use bytes::{Buf, Bytes};

use super::Session;
use super::admission::Caller;
use super::reply::{
    ClusterStatus, GroupTable, KeyPage, ListedKey, MemberState, MemberStatus, PeerRole, PeerState,
    PeerStatus, ReplicaStatus, Reply,
};
use super::request::{
    BATCH_BYTES_MAX, BATCH_REQUESTS_MAX, Batch, Condition, GroupRequest, ListRequest, Step,
    Transaction, Write,
};
use crate::error::Failure;
use crate::ids::{Key, Revision, Token};

/// A client on this machine.
pub fn caller() -> Caller {
    let address = "127.0.0.1:1".parse().expect("an address");
    Caller { address }
}

/// Executes all that can be executed, and appends what was written; says which batches those were.
pub fn execute(
    session: &mut dyn Session,
    store: &mut FakeStore,
    output: &mut Vec<u8>,
) -> Vec<Batch> {
    let mut batches = Vec::new();
    loop {
        match session.next_batch() {
            Some(batch) => {
                batches.push(batch.clone());
                session.complete(store.execute(batch));
            }
            None if session.is_paused() => {}
            None => break,
        }
        drain(session, output);
    }
    drain(session, output);
    batches
}

/// Appends what was written.
pub fn drain(session: &mut dyn Session, output: &mut Vec<u8>) {
    let queue = session.output();
    let bytes = queue.copy_to_bytes(queue.remaining());
    output.extend_from_slice(&bytes);
}

/// Messages in memory.
#[derive(Default)]
pub struct FakeStore {
    /// The messages.
    pub messages: BTreeMap<Key, (Revision, Bytes)>,
    /// How long messages live, of those that expire: time stands still.
    pub ttls: BTreeMap<Key, u64>,
    /// The first replies to writes with a token.
    pub tokens: BTreeMap<Token, Reply>,
    /// When set, every request fails so.
    pub failure: Option<Failure>,
    /// When set, at most so many reads of a batch are answered.
    pub reads_max: Option<usize>,
    /// What `STATUS` says of the tolerance.
    pub tolerance: u8,
    /// The term of its revisions.
    pub term: u64,
    /// Batches executed.
    pub batches: usize,
    sequence: u64,
    next_id: u64,
}

impl FakeStore {
    /// Executes a batch.
    pub fn execute(&mut self, batch: Batch) -> Vec<Reply> {
        self.batches += 1;
        if let Some(failure) = &self.failure {
            return vec![Reply::Failed(failure.clone()); batch.reply_count()];
        }
        match batch {
            Batch::Writes(writes) => {
                let bytes: usize = writes.iter().map(Write::payload_len).sum();
                assert!(writes.len() <= BATCH_REQUESTS_MAX);
                assert!(bytes <= BATCH_BYTES_MAX || writes.len() == 1);
                writes.into_iter().map(|write| self.write(write)).collect()
            }
            Batch::Reads(keys) => {
                assert!(keys.len() <= BATCH_REQUESTS_MAX);
                let count = self.reads_max.unwrap_or(keys.len());
                let keys = keys.iter().take(count);
                keys.map(|key| self.read(key)).collect()
            }
            Batch::Bulk {
                count,
                payload,
                token,
            } => {
                if let Some(reply) = self.repeated(token.as_ref()) {
                    return vec![reply];
                }
                let first = self.next_id + 1;
                self.next_id += count;
                for id in first..=self.next_id {
                    let payload = payload.clone();
                    self.write(Write::set(Key::Id(id), payload, None));
                }
                let last = self.next_id;
                let reply = Reply::BulkStored { first, last };
                self.tokens
                    .extend(token.map(|token| (token, reply.clone())));
                vec![reply]
            }
            Batch::Transaction(transaction) => vec![self.transaction(transaction)],
            Batch::Ttl(key) => vec![self.ttl(&key)],
            Batch::List(request) => vec![self.list(&request)],
            Batch::Where(key) => vec![self.locate(&key)],
            Batch::Count => vec![Reply::Count(self.messages.len() as u64)],
            Batch::Status => vec![Reply::Status(Box::new(self.status()))],
            Batch::Group(GroupRequest::View) => vec![Reply::Group(Box::new(self.group()))],
            Batch::Group(_) => vec![Reply::GroupChanged],
        }
    }

    fn write(&mut self, write: Write) -> Reply {
        self.sequence += 1;
        let revision = Revision::new(self.term, self.sequence);
        let token = write.token().cloned();
        if let Some(reply) = self.repeated(token.as_ref()) {
            return reply;
        }
        let reply = match self.mismatch(&write) {
            Some(reply) => reply,
            None => self.change(write, revision),
        };
        self.tokens
            .extend(token.map(|token| (token, reply.clone())));
        reply
    }

    fn mismatch(&self, write: &Write) -> Option<Reply> {
        let held = self.messages.get(write.key()).map(|held| held.0);
        let holds = match write.condition()? {
            Condition::Revision(demanded) => held == Some(demanded),
            Condition::Absent => held.is_none(),
            Condition::Exists => held.is_some(),
        };
        (!holds).then_some(Reply::Mismatch { revision: held })
    }

    fn change(&mut self, write: Write, revision: Revision) -> Reply {
        let ttl_ms = write.ttl_ms();
        let key = write.key().clone();
        let reply = match write {
            Write::Set { key, payload, .. } => {
                let before = self.messages.insert(key, (revision, payload));
                let created = before.is_none();
                Reply::Stored { revision, created }
            }
            Write::Delete { key, .. } => match self.messages.remove(&key) {
                Some(_) => Reply::Deleted,
                None => Reply::NotFound,
            },
            Write::Expire { key, .. } if !self.messages.contains_key(&key) => Reply::NotFound,
            Write::Expire { .. } => Reply::ExpirySet,
        };
        match ttl_ms.filter(|_| self.messages.contains_key(&key)) {
            Some(ttl_ms) => self.ttls.insert(key, ttl_ms),
            None => self.ttls.remove(&key),
        };
        reply
    }

    /// As `apply` decides it, but for tokens.
    fn transaction(&mut self, transaction: Transaction) -> Reply {
        if transaction.is_atomic {
            let before = (self.messages.clone(), self.ttls.clone());
            let replies = self.steps(transaction.steps);
            let is_mismatch = |reply: &Reply| matches!(reply, Reply::Mismatch { .. });
            let Some(position) = replies.iter().position(is_mismatch) else {
                return Reply::Transaction(replies);
            };
            (self.messages, self.ttls) = before;
            let mut failed = vec![Reply::Failed(Failure::NotApplied { position }); replies.len()];
            failed[position] = replies[position].clone();
            return Reply::Transaction(failed);
        }
        Reply::Transaction(self.steps(transaction.steps))
    }

    fn steps(&mut self, steps: Vec<Step>) -> Vec<Reply> {
        let steps = steps.into_iter().map(|step| match step {
            Step::Write(write) => self.write(write),
            Step::Get(key) => self.read(&key),
        });
        steps.collect()
    }

    fn list(&self, request: &ListRequest) -> Reply {
        let mut keys: Vec<(String, ListedKey)> = Vec::new();
        for (key, (revision, payload)) in &self.messages {
            let listed = ListedKey {
                key: key.clone(),
                revision: *revision,
                bytes: payload.len() as u64,
            };
            keys.push((key.to_string(), listed));
        }
        keys.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        keys.retain(|(text, _)| text.starts_with(&*request.prefix));
        let after = request.after.as_deref();
        keys.retain(|(text, _)| after.is_none_or(|after| text.as_str() > after));
        let has_more = keys.len() > request.limit as usize;
        let keys = keys.into_iter().take(request.limit as usize);
        Reply::Keys(KeyPage {
            keys: keys.map(|(_, listed)| listed).collect(),
            has_more,
        })
    }

    fn ttl(&self, key: &Key) -> Reply {
        if !self.messages.contains_key(key) {
            return Reply::NotFound;
        }
        let ms = self.ttls.get(key).copied();
        Reply::TimeToLive { ms }
    }

    fn repeated(&self, token: Option<&Token>) -> Option<Reply> {
        self.tokens.get(token?).cloned()
    }

    fn read(&self, key: &Key) -> Reply {
        match self.messages.get(key) {
            Some((revision, payload)) => Reply::Value {
                revision: *revision,
                payload: payload.clone(),
            },
            None => Reply::NotFound,
        }
    }

    fn locate(&self, key: &Key) -> Reply {
        let Some((revision, payload)) = self.messages.get(key) else {
            return Reply::NotFound;
        };
        let replica = |number: u16, state| ReplicaStatus {
            name: format!("member-{number}"),
            address: format!("127.0.0.1:{}", 5555 + number),
            state,
        };
        Reply::Location {
            revision: *revision,
            bytes: payload.len() as u64,
            replicas: vec![
                replica(1, MemberState::Up),
                replica(3, MemberState::Suspect),
            ],
        }
    }

    fn group(&self) -> GroupTable {
        let peer = |number: u16, role, state, matched| PeerStatus {
            id: format!("{:016x}", 0xb0 + number),
            name: format!("leader-{number}"),
            rpc: format!("127.0.0.1:{}", 5455 + 100 * number),
            client: format!("127.0.0.1:{}", 6566 + 100 * number),
            http: format!("127.0.0.1:{}", 7980 + 100 * number),
            role,
            state,
            matched,
        };
        GroupTable {
            node: "leader-1".to_owned(),
            leader: Some("127.0.0.1:6666".to_owned()),
            term: 3,
            peers: vec![
                peer(1, PeerRole::Voter, PeerState::Leader, Some(1200)),
                peer(2, PeerRole::Learner, PeerState::Silent, None),
            ],
        }
    }

    fn status(&self) -> ClusterStatus {
        let member = |number: u16, state, seen: Option<u64>| MemberStatus {
            name: format!("member-{number}"),
            id: format!("{:016x}", 0xa0 + number),
            address: format!("127.0.0.1:{}", 5555 + number),
            state,
            reason: None,
            messages: self.messages.len() as u64,
            missing: 0,
            bytes: 1 << number,
            free: seen.map(|_| 75_000_000_000),
            last_seen_ms: seen,
        };
        ClusterStatus {
            node: "leader-1".into(),
            role: "leader".into(),
            reason: None,
            lost: None,
            leader: (self.tolerance > 0).then(|| "127.0.0.1:6666".into()),
            term: 3,
            tolerance: self.tolerance,
            strategy: "least_loaded".into(),
            messages: self.messages.len() as u64,
            members: match self.tolerance {
                0 => Vec::new(),
                _ => vec![
                    member(1, MemberState::Up, Some(12)),
                    member(10, MemberState::Down, None),
                ],
            },
        }
    }
}

/// The failure that goes by this name in golden scripts.
pub fn failure(name: &str) -> Result<Failure, Box<dyn Error>> {
    Ok(match name {
        "members" => Failure::NotEnoughMembers { have: 1, need: 2 },
        "space" => Failure::NoSpace { have: 0, need: 2 },
        "unavailable" => Failure::Unavailable {
            replicas: "member-1@127.0.0.1:5556:down".into(),
        },
        "write-timeout" => Failure::WriteTimedOut,
        "read-timeout" => Failure::ReadTimedOut,
        "not-leader" => Failure::NotLeader {
            leader: Some("127.0.0.1:6766".into()),
        },
        "no-leader" => Failure::NotLeader { leader: None },
        "busy" => Failure::Busy,
        "too-many" => Failure::TooManyTokens,
        "in-use" => Failure::TokenInUse,
        "used" => Failure::TokenUsed,
        "expired" => Failure::TokenExpired,
        "bulk" => Failure::BulkPartial {
            reason: Box::new(Failure::NotEnoughMembers { have: 1, need: 2 }),
            stored: Some((1, 4096)),
        },
        "bulk-none" => Failure::BulkPartial {
            reason: Box::new(Failure::WriteTimedOut),
            stored: None,
        },
        other => return Err(format!("no failure {other}").into()),
    })
}
