//! What the leader computes for a write: placement, and applying its entry; for a page of keys; and
//! the memory of its message index.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use serde_json::{Value, json};
use std::hint::black_box;
use tolerex::clock::Instant;
use tolerex::cluster::{Cluster, Strategy};
use tolerex::ids::{Key, MemberId, Revision};
use tolerex::metadata::command::{Change, Command, Operation, Registration};
use tolerex::metadata::listing::list;
use tolerex::metadata::message_index::{Shard, Slot, shard_of};
use tolerex::metadata::replica_sets::{ReplicaSet, SetId};
use tolerex::metadata::state::{PlainShards, Shards, State};
use tolerex::protocol::request::ListRequest;

/// Operations of an entry: a batch of pipelined SETs, and the largest batch.
const OPERATIONS: [u64; 3] = [1, 16, 4096];

/// Shards of the state; more make no difference here.
const SHARDS: usize = 64;

/// Those of a leader: each is looked at for a page of keys.
const LEADER_SHARDS: usize = 1024;

/// Messages in the index while entries are applied: tables as large as in use.
const MESSAGES: u64 = 1_000_000;

pub fn all(criterion: &mut Criterion) {
    placement(criterion);
    apply(criterion);
    listing(criterion);
}

fn registration(id: u64) -> Registration {
    Registration {
        id: MemberId(id),
        name: format!("member-{id}"),
        address: format!("h:{id}"),
        zone: String::new(),
        incarnation: 1,
        nonce: id,
    }
}

fn placement(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("placement");
    for (name, strategy) in [
        ("least_loaded", Strategy::LeastLoaded),
        ("p2c", Strategy::P2c),
    ] {
        for members in [3, 30, 300] {
            let now = Instant::from_nanos(1);
            let mut cluster = Cluster::new(strategy, 7);
            for id in 1..=members {
                cluster.register(&registration(id));
                cluster.connected(MemberId(id), now);
            }
            group.bench_function(BenchmarkId::new(name, members), |bencher| {
                bencher.iter(|| {
                    let chosen = cluster.choose(2, &[], 1, 100, now);
                    for member in &chosen {
                        cluster.settle(*member, 1, 100);
                    }
                    black_box(chosen)
                });
            });
        }
    }
    group.finish();
}

/// An entry that sets `count` messages, from `first` on.
fn entry(first: u64, count: u64, replicas: ReplicaSet) -> Command {
    let operation = |number| Operation::Set {
        key: Key::Id(number % MESSAGES),
        revision: Revision::new(1, number),
        replicas,
        length: 100,
    };
    Command {
        term: 1,
        change: Change::Write((first..first + count).map(operation).collect()),
    }
}

fn apply(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("apply");
    let ids = [1, 2, 3].map(MemberId);
    let replicas = ReplicaSet::new(&ids[..2]).expect("two members");
    let mut state = State::new(PlainShards::new(SHARDS));
    let mut index = 0;
    let mut next = || {
        index += 1;
        index
    };
    for id in ids {
        let change = Change::RegisterMember(registration(id.0));
        state.apply(next(), 1, &Command { term: 1, change });
    }
    let mut number = 0;
    while number < MESSAGES {
        state.apply(next(), 1, &entry(number, 1000, replicas));
        number += 1000;
    }
    for operations in OPERATIONS {
        group.throughput(Throughput::Elements(operations));
        group.bench_function(BenchmarkId::from_parameter(operations), |bencher| {
            let make = || {
                number += operations;
                entry(number, operations, replicas)
            };
            let apply = |command: Command| black_box(state.apply(next(), 1, &command));
            bencher.iter_batched(make, apply, BatchSize::SmallInput);
        });
    }
    group.finish();
}

/// A page of keys: the first one, and one from the middle on; ids, and words as many as a tenth of
/// them.
fn listing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("listing");
    let mut shards = PlainShards::new(LEADER_SHARDS);
    let mut insert = |key: Key| {
        let slot = Slot {
            revision: Revision::new(1, 1),
            set: SetId(0),
            length: 100,
        };
        let shard = shard_of(&key, LEADER_SHARDS);
        shards.write_shard(shard, |shard| _ = shard.insert(&key, slot));
    };
    (0..MESSAGES).for_each(|id| insert(Key::Id(id)));
    for number in 0..MESSAGES / 10 {
        let word = format!("user:{number:06}");
        insert(Key::parse(word.as_bytes()).expect("a key"));
    }
    for (name, prefix, after) in [
        ("first page", "", None),
        ("ids from the middle on", "", Some("5")),
        ("ids with a prefix", "77", None),
        ("words from the middle on", "user:", Some("user:05")),
    ] {
        let request = ListRequest {
            prefix: prefix.into(),
            after: after.map(Into::into),
            limit: 100,
        };
        assert_eq!(list(&shards, &request).keys.len(), 100, "{name}");
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(list(&shards, &request)));
        });
    }
    group.finish();
}

/// Not a time: the index's bytes for a message, at the best and the worst fill of its tables.
pub fn index_memory() -> Value {
    let mut shard = Shard::default();
    let mut each = Vec::new();
    for id in 0..MESSAGES {
        let slot = Slot {
            revision: Revision::new(1, id),
            set: SetId(0),
            length: 100,
        };
        shard.insert(&Key::Id(id), slot);
        // The tables double: between two powers of two all fills come by.
        if shard.len() >= MESSAGES as usize / 4 && id % 1000 == 0 {
            each.push(shard.memory_bytes() as f64 / shard.len() as f64);
        }
    }
    let least = each.iter().copied().fold(f64::INFINITY, f64::min);
    let most = each.iter().copied().fold(0.0, f64::max);
    println!("index memory for a message with a numeric id: {least:.1} to {most:.1} bytes");
    json!({ "least": least, "most": most })
}
