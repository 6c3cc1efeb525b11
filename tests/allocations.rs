//! How much do the servers allocate for a request? Counts the allocations of all threads but the
//! client's while one connection sends requests to a leader and three members in this process, and
//! holds the counts below stated bounds: an allocation more for each request fails the test.
//!
//! A binary of its own, since it counts by a global allocator, with one test, since all threads of
//! the process are counted. Requests go one by one, so each is a batch: *x 1* shows what a batch
//! costs, *x 16* shows what a request adds to it.

// An allocator cannot be written without it.
#![allow(unsafe_code)]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use support::client::Client;
use support::http::Http;
use tolerex::testing::Cluster;

/// Allocations of the threads that are counted, since the start of the process.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// Bytes of those allocations.
static BYTES: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Whether this is the thread of the client, whose allocations are not counted.
    static IS_CLIENT: Cell<bool> = const { Cell::new(false) };
}

/// The system's allocator, counted. A buffer that grows counts as an allocation.
struct Counting;

fn count(bytes: usize) {
    if !IS_CLIENT.get() {
        COUNT.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

// SAFETY: every call is handed on as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Requests of a round.
const REQUESTS: usize = 800;

/// Rounds, of which the one with the fewest allocations counts: the threads that beat, tick and
/// housekeep can only add to them.
const ROUNDS: usize = 5;

/// How long a reply may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `batch`, which makes so many requests, until a round is full, some rounds long. The
/// allocations and bytes of a request in the round with the fewest.
fn measure(requests: usize, mut batch: impl FnMut()) -> (f64, f64) {
    let mut best = (u64::MAX, 0);
    for _ in 0..=ROUNDS {
        let before = (COUNT.load(Ordering::SeqCst), BYTES.load(Ordering::SeqCst));
        (0..REQUESTS / requests).for_each(|_| batch());
        let count = COUNT.load(Ordering::SeqCst) - before.0;
        best = best.min((count, BYTES.load(Ordering::SeqCst) - before.1));
    }
    let each = |total| total as f64 / (REQUESTS / requests * requests) as f64;
    (each(best.0), each(best.1))
}

/// Sends these commands in one piece; each must be answered like this.
fn commands(client: &mut Client, commands: &[String], reply: &str) {
    let replies = client.pipeline(commands).expect("replies");
    assert!(replies.iter().all(|one| one == reply), "{replies:?}");
}

fn address(addresses: &[String]) -> SocketAddr {
    addresses[0].parse().expect("an address")
}

/// The goal: what a request costs in allocations is known, and does not grow unnoticed. Each bound
/// is what was counted and what the threads that beat and tick add on a busy machine: half an
/// allocation for a GET, up to two for a SET among 16, a tenth of those of a batch with one SET.
#[test]
fn allocations_of_a_request_are_bounded() {
    IS_CLIENT.set(true);
    let cluster = Cluster::start(1, 3, 3).expect("a cluster");
    let mut client = Client::connect(address(&cluster.addresses()));
    let mut http = Http::connect(address(&cluster.http_addresses()), PATIENCE).expect("HTTP");
    let message = "m".repeat(100);
    let mut late = Vec::new();
    let mut row = |load: &str, (count, bytes): (f64, f64), max: f64| {
        println!("{load}: {count:.2} allocations of {bytes:.0} bytes, at most {max}");
        if count > max {
            late.push(format!("{load}: {count:.2} > {max}"));
        }
    };

    for (kind, prefix) in [("id", "100"), ("word", "message-")] {
        for depth in [1, 16] {
            let keys: Vec<String> = (10..10 + depth).map(|n| format!("{prefix}{n}")).collect();
            let sets: Vec<String> = keys.iter().map(|k| format!("SET {k} {message}")).collect();
            let gets: Vec<String> = keys.iter().map(|key| format!("GET {key}")).collect();
            let max = bound(kind, depth);
            let set = measure(depth, || commands(&mut client, &sets, "OK"));
            row(&format!("SET x {depth}, {kind}"), set, max.0);
            let get = measure(depth, || commands(&mut client, &gets, &message));
            row(&format!("GET x {depth}, {kind}"), get, max.1);
        }
    }
    let target = "/kv/10010";
    let put = measure(1, || {
        let answer = http.ask("PUT", target, &[], message.as_bytes());
        assert!(answer.expect("an answer").status < 300);
    });
    row("PUT over HTTP", put, HTTP_MAX.0);
    let get = measure(1, || {
        let answer = http.ask("GET", target, &[], b"").expect("an answer");
        assert_eq!(answer.body, message.as_bytes());
    });
    row("GET over HTTP", get, HTTP_MAX.1);
    assert!(late.is_empty(), "{late:?}");
}

/// The most allocations of a SET and of a GET.
fn bound(kind: &str, depth: usize) -> (f64, f64) {
    match (kind, depth) {
        ("id", 1) => (162.0, 2.5),
        ("id", _) => (15.0, 0.5),
        (_, 1) => (172.0, 3.5),
        (_, _) => (24.7, 2.5),
    }
}

/// The most allocations of a PUT and of a GET over HTTP.
const HTTP_MAX: (f64, f64) = (168.0, 7.5);
