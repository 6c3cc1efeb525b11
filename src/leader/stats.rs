//! Counters and latencies of this node's batches, by kind: what `/stats` says.
//!
//! [`Stats`] is the [`Admission`] of the client server, so the batches of all client protocols are
//! counted, each for its own connection. A batch costs a few relaxed additions, in counters that
//! few other threads write. Its latency is from
//! when its session offered it until its replies are known, so the time in which small writes of
//! several connections wait for each other is part of it.
//!
//! Latencies are kept in buckets of a quarter of a power of two, from 1 µs on, so a quantile is at
//! most a quarter above the true one. Known limit: they are of all the time since the start.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use serde::Serialize;

use crate::clock::Instant;
use crate::error::{Failure, Outcome};
use crate::protocol::admission::{Admission, Caller, Kind, Offered};
use crate::protocol::reply::Reply;
use crate::protocol::request::Batch;

/// The names of the kinds of batches, in the order of [`Kind`].
const KINDS: [&str; 10] = [
    "write", "read", "bulk", "batch", "ttl", "list", "where", "count", "status", "group",
];

/// Buckets in a power of two.
const PARTS: usize = 4;

/// Powers of two of microseconds: the last bucket begins at some two minutes.
const POWERS: usize = 28;

/// Threads count in so many parts by turns, so that workers on several processors seldom write the
/// same counters: then each would wait for the other's cache.
const SHARES: usize = 8;

/// Counters of all batches since the start. What is shown is the sum of the shares.
pub struct Stats {
    shares: [Share; SHARES],
}

/// The counters that a part of the threads add to. Aligned, so that no two shares are in one line
/// of a processor's cache.
#[repr(align(128))]
#[derive(Default)]
struct Share {
    kinds: [Counters; KINDS.len()],
}

thread_local! {
    /// The share in which this thread counts.
    static SHARE: usize = {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        THREADS.fetch_add(1, Ordering::Relaxed) % SHARES
    };
}

struct Counters {
    requests: AtomicU64,
    /// Payload bytes that clients sent, and that they got.
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    /// Replies by what they say.
    done: AtomicU64,
    not_found: AtomicU64,
    mismatch: AtomicU64,
    failed: AtomicU64,
    unknown: AtomicU64,
    /// Batches by their latency.
    latencies: [AtomicU64; PARTS * POWERS],
}

/// The counters of one kind, as they are shown.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct KindStats {
    /// What they are of.
    pub kind: &'static str,
    /// Requests answered.
    pub requests: u64,
    /// Payload bytes of the requests.
    pub bytes_in: u64,
    /// Payload bytes of the replies.
    pub bytes_out: u64,
    /// Requests that were done.
    pub done: u64,
    /// There was no such message.
    pub not_found: u64,
    /// The condition did not hold.
    pub mismatch: u64,
    /// Nothing happened.
    pub failed: u64,
    /// It may or may not have happened.
    pub unknown: u64,
    /// Batches, and how long they took: upper bounds, in microseconds.
    pub batches: u64,
    /// Half of them.
    pub p50_us: u64,
    /// 90 of 100.
    pub p90_us: u64,
    /// 99 of 100.
    pub p99_us: u64,
    /// 999 of 1,000.
    pub p999_us: u64,
}

fn add(counter: &AtomicU64, count: u64) {
    if count > 0 {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

impl Default for Counters {
    fn default() -> Counters {
        let zero = AtomicU64::default;
        Counters {
            requests: zero(),
            bytes_in: zero(),
            bytes_out: zero(),
            done: zero(),
            not_found: zero(),
            mismatch: zero(),
            failed: zero(),
            unknown: zero(),
            latencies: std::array::from_fn(|_| zero()),
        }
    }
}

impl Default for Stats {
    fn default() -> Stats {
        Stats {
            shares: std::array::from_fn(|_| Share::default()),
        }
    }
}

/// The bucket of a latency.
fn bucket(latency: Duration) -> usize {
    let micros = u64::try_from(latency.as_micros())
        .unwrap_or(u64::MAX)
        .max(1);
    let power = micros.ilog2() as usize;
    // Two bits behind the first one; below 4 µs there are fewer.
    let part = ((u128::from(micros) * PARTS as u128) >> power) as usize - PARTS;
    (power * PARTS + part).min(PARTS * POWERS - 1)
}

/// Where a bucket ends, in microseconds.
fn bucket_end(bucket: usize) -> u64 {
    let (power, part) = (bucket / PARTS, bucket % PARTS);
    ((PARTS + part + 1) as u64 * (1 << power)).div_ceil(PARTS as u64)
}

impl Stats {
    fn record(&self, kind: Kind, bytes_in: u64, latency: Duration, replies: &[Reply]) {
        let counters = &self.shares[SHARE.with(|share| *share)].kinds[kind as usize];
        let mut counts = [0u64; 5];
        let mut bytes_out = 0;
        for reply in replies {
            counts[outcome(reply)] += 1;
            bytes_out += Reply::payload_len(reply);
        }
        let [done, not_found, mismatch, failed, unknown] = counts;
        add(&counters.requests, replies.len() as u64);
        add(&counters.bytes_in, bytes_in);
        add(&counters.bytes_out, bytes_out);
        add(&counters.done, done);
        add(&counters.not_found, not_found);
        add(&counters.mismatch, mismatch);
        add(&counters.failed, failed);
        add(&counters.unknown, unknown);
        add(&counters.latencies[bucket(latency)], 1);
    }

    /// All kinds that there were any of.
    pub fn all(&self) -> Vec<KindStats> {
        let shown = KINDS.iter().enumerate().map(|(at, kind)| {
            let read = |counter: fn(&Counters) -> &AtomicU64| {
                let counts = self.shares.iter().map(|share| counter(&share.kinds[at]));
                counts.map(|count| count.load(Ordering::Relaxed)).sum()
            };
            let latencies: Vec<u64> = (0..PARTS * POWERS)
                .map(|bucket| {
                    let counts = self
                        .shares
                        .iter()
                        .map(|share| &share.kinds[at].latencies[bucket]);
                    counts.map(|count| count.load(Ordering::Relaxed)).sum()
                })
                .collect();
            KindStats {
                kind,
                requests: read(|counters| &counters.requests),
                bytes_in: read(|counters| &counters.bytes_in),
                bytes_out: read(|counters| &counters.bytes_out),
                done: read(|counters| &counters.done),
                not_found: read(|counters| &counters.not_found),
                mismatch: read(|counters| &counters.mismatch),
                failed: read(|counters| &counters.failed),
                unknown: read(|counters| &counters.unknown),
                batches: latencies.iter().sum(),
                p50_us: quantile(&latencies, 500),
                p90_us: quantile(&latencies, 900),
                p99_us: quantile(&latencies, 990),
                p999_us: quantile(&latencies, 999),
            }
        });
        shown.filter(|kind| kind.batches > 0).collect()
    }
}

/// Below which so many thousandths of the latencies lie.
fn quantile(latencies: &[u64], thousandths: u64) -> u64 {
    let all: u64 = latencies.iter().sum();
    let wanted = (all * thousandths).div_ceil(1000);
    let mut seen = 0;
    for (bucket, count) in latencies.iter().enumerate() {
        seen += count;
        if seen >= wanted && seen > 0 {
            return bucket_end(bucket);
        }
    }
    0
}

/// Which count of [`Stats::record`] a reply belongs to.
fn outcome(reply: &Reply) -> usize {
    match reply {
        Reply::NotFound => 1,
        Reply::Mismatch { .. } => 2,
        Reply::Failed(failure) => match failure.outcome() {
            Outcome::Failed => 3,
            Outcome::Unknown => 4,
        },
        _ => 0,
    }
}

impl Admission for Stats {
    /// Everything is permitted.
    fn permit(&self, _caller: &Caller, _batch: &Batch) -> Result<(), Failure> {
        Ok(())
    }

    fn count(&self, _caller: &Caller, offered: &Offered, replies: &[Reply], now: Instant) {
        let latency = now.since(offered.at);
        self.record(offered.kind, offered.payload_bytes, latency, replies);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_at_most_a_quarter_too_high() {
        for micros in (1..5000).chain([1 << 20, (1 << 26) + 12345]) {
            let end = bucket_end(bucket(Duration::from_micros(micros)));
            assert!(end > micros, "{micros} ends at {end}");
            assert!(end <= micros + micros / 4 + 1, "{micros} ends at {end}");
        }
        let last = bucket(Duration::from_secs(1 << 40));
        assert_eq!(last, PARTS * POWERS - 1);
    }

    #[test]
    fn batches_are_counted_by_kind_and_outcome() {
        let stats = Stats::default();
        let replies = [
            Reply::Deleted,
            Reply::NotFound,
            Reply::Mismatch { revision: None },
            Reply::Failed(Failure::Busy),
            Reply::Failed(Failure::WriteTimedOut),
        ];
        stats.record(Kind::Write, 7, Duration::from_micros(100), &replies);
        for _ in 0..8 {
            stats.record(Kind::Write, 0, Duration::from_micros(10), &[]);
        }
        let all = stats.all();
        let [kind] = &all[..] else {
            panic!("{all:?}");
        };
        assert_eq!((kind.kind, kind.requests, kind.batches), ("write", 5, 9));
        let outcomes = (
            kind.done,
            kind.not_found,
            kind.mismatch,
            kind.failed,
            kind.unknown,
        );
        assert_eq!(outcomes, (1, 1, 1, 1, 1));
        assert_eq!((kind.bytes_in, kind.p50_us, kind.p99_us), (7, 12, 112));
    }

    #[test]
    fn what_several_threads_counted_is_added_up() {
        let stats = Stats::default();
        std::thread::scope(|scope| {
            for _ in 0..2 * SHARES {
                scope.spawn(|| {
                    let time = Duration::from_micros(10);
                    stats.record(Kind::Read, 3, time, &[Reply::NotFound, Reply::Deleted]);
                });
            }
        });
        let [read] = &stats.all()[..] else {
            panic!("one kind");
        };
        let count = 2 * SHARES as u64;
        assert_eq!((read.requests, read.not_found), (2 * count, count));
        assert_eq!((read.batches, read.bytes_in), (count, 3 * count));
    }
}
