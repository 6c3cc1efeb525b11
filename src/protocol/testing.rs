//! A store for tests of protocols: executes batches on a map. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::reply::{ClusterStatus, MemberState, MemberStatus, ReplicaStatus, Reply};
use super::request::{BATCH_BYTES_MAX, BATCH_REQUESTS_MAX, Batch, Write};
use crate::error::Failure;
use crate::ids::{Key, Revision, Token};

/// Messages in memory.
#[derive(Default)]
pub struct FakeStore {
    /// The messages.
    pub messages: BTreeMap<Key, (Revision, Bytes)>,
    /// The first replies to writes with a token.
    pub tokens: BTreeMap<Token, Reply>,
    /// When set, every request fails so.
    pub failure: Option<Failure>,
    /// When set, at most so many reads of a batch are answered.
    pub reads_max: Option<usize>,
    /// What `STATUS` says of the tolerance.
    pub tolerance: u8,
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
                    let (key, token) = (Key::Id(id), None);
                    self.write(Write::Set {
                        key,
                        payload,
                        token,
                    });
                }
                let last = self.next_id;
                let reply = Reply::BulkStored { first, last };
                self.tokens
                    .extend(token.map(|token| (token, reply.clone())));
                vec![reply]
            }
            Batch::Where(key) => vec![self.locate(&key)],
            Batch::Count => vec![Reply::Count(self.messages.len() as u64)],
            Batch::Status => vec![Reply::Status(Box::new(self.status()))],
        }
    }

    fn write(&mut self, write: Write) -> Reply {
        self.sequence += 1;
        let revision = Revision::new(0, self.sequence);
        let (Write::Set { token, .. } | Write::Delete { token, .. }) = &write;
        let token = token.clone();
        if let Some(reply) = self.repeated(token.as_ref()) {
            return reply;
        }
        let reply = match write {
            Write::Set { key, payload, .. } => {
                self.messages.insert(key, (revision, payload));
                Reply::Stored { revision }
            }
            Write::Delete { key, .. } => match self.messages.remove(&key) {
                Some(_) => Reply::Deleted,
                None => Reply::NotFound,
            },
        };
        self.tokens
            .extend(token.map(|token| (token, reply.clone())));
        reply
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

    fn status(&self) -> ClusterStatus {
        let member = |number: u16, state, seen: Option<u64>| MemberStatus {
            name: format!("member-{number}"),
            id: format!("{:016x}", 0xa0 + number),
            address: format!("127.0.0.1:{}", 5555 + number),
            state,
            messages: self.messages.len() as u64,
            bytes: 1 << number,
            free: seen.map(|_| 75_000_000_000),
            last_seen_ms: seen,
        };
        ClusterStatus {
            node: "leader-1".into(),
            role: "leader".into(),
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
