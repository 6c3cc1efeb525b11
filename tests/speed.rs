//! A first look at speed, in a test binary of its own, so that nothing else runs beside it.
//!
//! The floors hold for a release build (`cargo test --release --test speed -- --ignored
//! --nocapture`); a debug build only prints.

mod support;

use std::time::Duration;

use support::cluster::Cluster;
use support::load;

#[test]
#[ignore = "slow: a load for some seconds"]
fn sets_reach_their_floors() {
    let cluster = Cluster::start(&[]);
    for (depth, floor) in [(1, 10_000.0), (16, 40_000.0)] {
        let command = move |connection, n: u64| {
            let message = "x".repeat(100);
            format!("SET {depth}-{connection}-{} {message}", n % 1000)
        };
        let found = load::run(
            cluster.address(),
            64,
            depth,
            Duration::from_secs(4),
            command,
        );
        println!(
            "SET, 100 bytes, tolerance 2, 64 connections, {depth} in flight: {:.0}/s, p50 {:?}, \
             p99 {:?}",
            found.per_second, found.p50, found.p99
        );
        assert_eq!(found.errors, 0);
        if !cfg!(debug_assertions) {
            assert!(found.per_second >= floor, "{floor} were promised");
        }
    }
    let command = |connection, n: u64| format!("GET 16-{connection}-{}", n % 1000);
    let found = load::run(cluster.address(), 64, 16, Duration::from_secs(3), command);
    println!(
        "GET, 64 connections, 16 in flight: {:.0}/s, p99 {:?}",
        found.per_second, found.p99
    );
    assert_eq!(found.errors, 0);
}
