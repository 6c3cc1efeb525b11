//! Do 10,000 idle connections cost little: memory of the leader, and the speed of 64 active ones?
//!
//! Measured in a binary of its own, since it takes the machine for itself. The connections belong
//! to this process and the leader: each has files for them, and needs no more than 20,000.

mod support;

use std::fs;
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};
use support::client::Client;
use support::cluster::{Cluster, tolerex};

const IDLE: u64 = 10_000;

/// Of the leader, for an idle connection.
const BYTES_MAX: u64 = 16 << 10;

/// What the active ones may lose, on the median of so many runs.
const SPEED_MIN: f64 = 0.8;
const RUNS: usize = 5;

fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("VmRSS");
    let kib = line
        .trim()
        .split(' ')
        .next()
        .and_then(|kib| kib.parse::<u64>().ok());
    kib.expect("a number") * 1024
}

/// Requests a second of 64 connections, the median of some runs.
fn speed(cluster: &Cluster) -> f64 {
    let address = cluster.address().to_string();
    let args = ["bench", "--json", "--seconds", "1.5", "--addr", &address];
    let mut found: Vec<f64> = (0..RUNS)
        .map(|_| {
            let output = tolerex(&args);
            let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
            assert_eq!(json["errors"], 0, "{json}");
            json["ops_per_s"].as_f64().expect("a number")
        })
        .collect();
    found.sort_by(f64::total_cmp);
    found[RUNS / 2]
}

#[test]
#[ignore = "slow: measures 10,000 connections"]
fn idle_connections_cost_little_memory_and_no_speed() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|maximum| maximum < IDLE + 1000) {
        println!("skipped: a process may have {:?} files only", limit.maximum);
        return;
    }
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("the soft limit may be raised");

    let cluster = Cluster::start(&[]);
    let leader = cluster.pid("leader-1");
    // Nothing has run yet, so no freed memory of earlier requests makes the figure look better.
    let before = resident_bytes(leader);
    let mut idle: Vec<Client> = (0..IDLE)
        .map(|_| Client::connect(cluster.address()))
        .collect();
    // Each was used, and is at rest.
    tolerex::clock::sleep(Duration::from_secs(1));
    let each = resident_bytes(leader).saturating_sub(before) / IDLE;
    let beside = speed(&cluster);
    for client in idle.iter_mut().step_by(1000) {
        assert_eq!(client.command("DEL none"), "NOT_FOUND");
    }
    drop(idle);
    let alone = speed(&cluster);
    println!("{each} bytes a connection; {alone:.0} SET/s alone, {beside:.0} beside {IDLE} idle");
    assert!(each < BYTES_MAX, "{each} bytes a connection");
    assert!(beside >= alone * SPEED_MIN, "{beside} of {alone} SET/s");
}
