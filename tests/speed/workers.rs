//! How the rates grow from one worker to two.

use super::*;

/// On a machine with two processors, which clients, leader and members share: a second worker gives
/// more only where they leave it a processor.
#[test]
#[ignore = "slow: loads for some seconds"]
fn rates_with_two_workers_over_those_with_one() {
    let _alone = alone();
    let with = |count| Cluster::start_with(&[], &[("TOLEREX_WORKERS", count)]);
    let clusters = [with("2"), with("1")];
    let mut rows = Vec::new();
    for (what, flags) in [
        ("SET", ""),
        ("SET, blocking clients", "--blocking"),
        ("SET x pipeline 16", "--pipeline 16"),
        ("GET", "--get-ratio 1"),
        ("GET, blocking clients", "--get-ratio 1 --blocking"),
        ("GET x pipeline 16", "--get-ratio 1 --pipeline 16"),
    ] {
        let flags = format!("--connections 64 --keys {FEW_KEYS} {flags}");
        let what = format!("{what}, 64 connections: rate with two workers, over that with one");
        rows.extend(ratio(&what, &flags, clusters.each_ref(), Limit::None));
    }
    publish("speed-9-workers", COMMAND, &rows);
}
