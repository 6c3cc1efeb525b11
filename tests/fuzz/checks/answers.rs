//! Answers to requests: of every kind, and each a function of its request alone, so that they are
//! the same in whatever batches the requests come.

use bytes::Bytes;
use tolerex::error::Failure;
use tolerex::ids::{Key, Revision};
use tolerex::protocol::reply::{
    ClusterStatus, GroupTable, KeyPage, ListedKey, MemberState, ReplicaStatus, Reply,
};
use tolerex::protocol::request::{Batch, ListRequest, Step, Write};

use super::splits::Numbers;

/// The answers to a batch, one for each request.
pub fn batch(batch: &Batch) -> Vec<Reply> {
    match batch {
        Batch::Writes(writes) => writes.iter().map(write).collect(),
        Batch::Reads(keys) => keys.iter().map(read).collect(),
        Batch::Bulk { count, .. } => vec![bulk(*count)],
        Batch::Transaction(transaction) => vec![Reply::Transaction(steps(&transaction.steps))],
        Batch::Ttl(key) => vec![match of(key, 4) {
            0 => Reply::NotFound,
            1 => Reply::TimeToLive { ms: None },
            2 => Reply::TimeToLive { ms: Some(1) },
            _ => Reply::TimeToLive { ms: Some(u64::MAX) },
        }],
        Batch::List(request) => vec![list(request)],
        Batch::Where(key) => vec![location(key)],
        Batch::Count => vec![Reply::Count(3)],
        Batch::Status => vec![Reply::Status(Box::new(ClusterStatus {
            node: "leader-1".to_owned(),
            role: "leader".to_owned(),
            reason: None,
            lost: None,
            leader: None,
            term: 3,
            tolerance: 2,
            strategy: "p2c".to_owned(),
            messages: 3,
            members: Vec::new(),
        }))],
        Batch::Group(_) => vec![Reply::Group(Box::new(GroupTable {
            node: "leader-1".to_owned(),
            leader: None,
            term: 3,
            peers: Vec::new(),
        }))],
    }
}

/// The answers to the steps of a transaction.
pub fn steps(steps: &[Step]) -> Vec<Reply> {
    let steps = steps.iter().map(|step| match step {
        Step::Write(one) => write(one),
        Step::Get(key) => read(key),
    });
    steps.collect()
}

/// A number below `limit` that follows from a key.
fn of(key: &Key, limit: usize) -> usize {
    Numbers::of(key.to_string().as_bytes()).below(limit)
}

fn revision(key: &Key) -> Revision {
    Revision::new(3, of(key, 1000) as u64 + 1)
}

fn failure(number: usize) -> Reply {
    Reply::Failed(match number {
        0 => Failure::NotEnoughMembers { have: 1, need: 2 },
        1 => Failure::WriteTimedOut,
        2 => Failure::NotLeader { leader: None },
        3 => Failure::NotLeader {
            leader: Some("127.0.0.1:6766".to_owned()),
        },
        4 => Failure::Unavailable {
            replicas: "member-1@127.0.0.1:5556:down".to_owned(),
        },
        5 => Failure::TokenInUse,
        7 => Failure::NoSpace { have: 0, need: 2 },
        6 => Failure::NotApplied { position: 0 },
        _ => Failure::Busy,
    })
}

fn write(write: &Write) -> Reply {
    let key = write.key();
    match (of(key, 16), write) {
        (number @ 0..8, _) => failure(number),
        (8, _) => Reply::Mismatch {
            revision: Some(revision(key)),
        },
        (9, _) => Reply::Mismatch { revision: None },
        (number, Write::Set { .. }) => Reply::Stored {
            revision: revision(key),
            created: number < 13,
        },
        (10, Write::Delete { .. } | Write::Expire { .. }) => Reply::NotFound,
        (_, Write::Delete { .. }) => Reply::Deleted,
        (_, Write::Expire { .. }) => Reply::ExpirySet,
    }
}

fn read(key: &Key) -> Reply {
    let payload = match of(key, 8) {
        0 => return Reply::NotFound,
        1 => return failure(of(key, 999) % 8),
        2 => Bytes::new(),
        3 => Bytes::from_static(b"two\r\nlines\r\n"),
        4 => Bytes::from_static(b"\xff\x00 no text"),
        5 => Bytes::from(vec![b'x'; 20_000]),
        _ => Bytes::from(key.to_string()),
    };
    Reply::Value {
        revision: revision(key),
        payload,
    }
}

fn bulk(count: u64) -> Reply {
    match count % 3 {
        0 => Reply::Failed(Failure::BulkPartial {
            reason: Box::new(Failure::Busy),
            stored: (count.is_multiple_of(2)).then_some((1, count)),
        }),
        _ => Reply::BulkStored {
            first: 1,
            last: count,
        },
    }
}

fn list(request: &ListRequest) -> Reply {
    let count = Numbers::of(request.prefix.as_bytes())
        .below(4)
        .min(request.limit as usize);
    let listed = |number: usize| ListedKey {
        key: Key::Id(number as u64),
        revision: Revision::new(3, number as u64),
        bytes: 9,
    };
    Reply::Keys(KeyPage {
        keys: (1..=count).map(listed).collect(),
        has_more: count == 2,
    })
}

fn location(key: &Key) -> Reply {
    if of(key, 2) == 0 {
        return Reply::NotFound;
    }
    Reply::Location {
        revision: revision(key),
        bytes: 9,
        replicas: vec![ReplicaStatus {
            name: "member-1".to_owned(),
            address: "127.0.0.1:5556".to_owned(),
            state: MemberState::Suspect,
        }],
    }
}
