//! Do 10,000 idle connections cost little: memory of the leader, and the speed of 64 active ones?
//!
//! Measured in a binary of its own, since it takes the machine for itself. Two processes hold the
//! idle connections, since one may have 20,000 files and other systems allow fewer: each is a
//! `tolerex bench` that sends a request every 1,000 seconds. The limits hold for a release build
//! (`cargo test --release --test idle -- --ignored --nocapture`); a debug build only prints.

mod support;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Resource, Signal, getrlimit};
use support::cluster::{Cluster, TOLEREX, send};
use support::figures::{Limit, Row, best_of, median, publish};
use support::wait_until;
use tolerex::clock::sleep;

const COMMAND: &str = "cargo test --release --test idle -- --ignored --nocapture";

const PROCESSES: u64 = 2;
const IDLE: u64 = 10_000;

/// Rounds of measuring with and without idle connections, by turns.
const ROUNDS: usize = 3;

/// Times that they are measured if the first one misses.
const TRIES: usize = 3;

/// Processes that hold [`IDLE`] connections to a leader.
struct Idle {
    children: Vec<Child>,
    /// Where the leader serves clients.
    port: u16,
}

/// Connections that are established at a local port, by the table of the system (proc(5)).
fn connections(port: u16) -> u64 {
    let table = fs::read_to_string("/proc/net/tcp").expect("the table of connections");
    let ours = format!(":{port:04X}");
    let is_ours = |line: &&str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next(), fields.nth(1));
        local.is_some_and(|local| local.ends_with(&ours)) && state == Some("01")
    };
    table.lines().filter(is_ours).count() as u64
}

impl Idle {
    fn open(cluster: &Cluster) -> Idle {
        let port = cluster.address().port();
        let share = (IDLE / PROCESSES).to_string();
        let address = cluster.address().to_string();
        let one = |_| {
            let mut command = Command::new(TOLEREX);
            command.args([
                "bench",
                "--json",
                "--addr",
                &address,
                "--connections",
                &share,
            ]);
            command.args(["--rate", "0.001", "--seconds", "3600"]);
            command.stdout(Stdio::piped()).stderr(Stdio::null());
            command.spawn().expect("the tool runs")
        };
        let children = (0..PROCESSES).map(one).collect();
        let idle = Idle { children, port };
        let are_there = || connections(port) >= IDLE;
        wait_until(
            "the connections are there",
            Duration::from_secs(60),
            are_there,
        );
        // Each was used, and is at rest.
        sleep(Duration::from_secs(1));
        idle
    }

    /// Ends the processes; none of the connections may have been lost, and no request.
    fn close(mut self) {
        assert!(connections(self.port) >= IDLE, "connections are lost");
        for child in std::mem::take(&mut self.children) {
            send(child.id(), Signal::INT).expect("it runs");
            let output = child.wait_with_output().expect("our child");
            let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
            assert_eq!(found["errors"], 0, "{found}");
        }
        let are_gone = || connections(self.port) == 0;
        wait_until(
            "the connections are closed",
            Duration::from_secs(60),
            are_gone,
        );
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        for child in &mut self.children {
            _ = child.kill();
            _ = child.wait();
        }
    }
}

/// SETs a second of 64 connections.
fn speed(cluster: &Cluster) -> f64 {
    let found = cluster.bench("--seconds 1.5");
    assert_eq!(found["errors"], 0, "{found}");
    found["ops_per_s"].as_f64().expect("a number")
}

#[test]
#[ignore = "slow: measures 10,000 connections"]
fn idle_connections_cost_little_memory_and_no_speed() {
    let limit = getrlimit(Resource::Nofile).maximum;
    if limit.is_some_and(|maximum| maximum < IDLE + 1000) {
        println!("skipped: a process may have {limit:?} files only");
        return;
    }
    let cluster = Cluster::start(&[]);
    // Nothing has run yet, so no freed memory of earlier requests makes the figure look better.
    let before = cluster.resident_bytes("leader-1");
    let idle = Idle::open(&cluster);
    let grown = cluster.resident_bytes("leader-1").saturating_sub(before);
    idle.close();
    let each = grown as f64 / IDLE as f64;
    let limit = Limit::AtMost(f64::from(16 << 10), f64::from(16 << 10));
    let mut rows = vec![Row::new(
        "leader's memory for an idle connection",
        each,
        "bytes",
        limit,
    )];
    rows.extend(best_of(TRIES, || {
        let (mut beside, mut alone) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let idle = Idle::open(&cluster);
            beside.push(speed(&cluster));
            idle.close();
            alone.push(speed(&cluster));
        }
        let (beside, alone) = (median(beside), median(alone));
        println!("{alone:.0} SET/s alone, {beside:.0} beside {IDLE} idle connections");
        let what = "SET rate of 64 connections beside 10,000 idle ones, over that alone";
        vec![Row::new(
            what,
            beside / alone,
            "x",
            Limit::AtLeast(0.95, 1.0),
        )]
    }));
    publish("speed-6-idle-connections", COMMAND, &rows);
}
