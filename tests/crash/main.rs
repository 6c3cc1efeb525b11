//! Does kill -9 lose what was acknowledged?
//!
//! Eight clients write, overwrite, delete and read, alone and in bulk, while processes are killed
//! at a random moment; after the restart each message is what it may be, deleted ones are gone, and
//! COUNT is right. kill -9 keeps the page cache: this speaks for what a process loses, power loss
//! is the matter of the simulated disk (`tests/crash_images.rs`).
//!
//! `TOLEREX_CRASH_ROUNDS` sets the number of rounds of the slow tests, `TOLEREX_CRASH_SEED` the
//! seed, which each test prints.

#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;

use support::cluster::Cluster;
use support::workload::{self, Work};
use tolerex::clock::sleep;

const CLIENTS: usize = 8;

/// Small segments, so that kills also fall on the change from one to the next.
const SEGMENTS: (&str, &str) = ("TOLEREX_SEGMENT_BYTES", "1MiB");

/// Snapshots of the metadata every moment, so that kills also fall on them and on the journal's
/// cut.
const SNAPSHOTS: (&str, &str) = ("TOLEREX_SNAPSHOT_BYTES", "64KiB");

fn number_of(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{variable}={value}")),
    )
}

fn rounds() -> u64 {
    number_of("TOLEREX_CRASH_ROUNDS").unwrap_or(10)
}

fn seed() -> u64 {
    let seed = number_of("TOLEREX_CRASH_SEED").unwrap_or_else(|| fastrand::u64(..));
    eprintln!("TOLEREX_CRASH_SEED={seed}");
    seed
}

/// Kills everything, `up` too, in the middle of the work, and brings it back.
fn kill_everything(rounds: u64) {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut cluster = Cluster::start_with(&[], &[SEGMENTS, SNAPSHOTS]);
    let mut writers = workload::writers(CLIENTS, seed);
    for round in 1..=rounds {
        let work = Work::start(cluster.address(), writers);
        sleep(Duration::from_millis(random.u64(200..900)));
        cluster.kill_all();
        writers = work.finish();
        cluster.up();
        workload::check(&mut cluster.client(), &mut writers);
        let acknowledged: u64 = writers.iter().map(|writer| writer.acknowledged).sum();
        eprintln!("round {round}: {acknowledged} commands acknowledged so far");
    }
    assert_has_snapshot(&cluster);
    assert!(cluster.stop().success());
}

fn assert_has_snapshot(cluster: &Cluster) {
    let mut names = std::fs::read_dir(cluster.dir().join("leader-1/snapshots")).expect("a list");
    let is_snapshot = |name: &std::ffi::OsStr| name.to_string_lossy().ends_with(".snapshot");
    assert!(names.any(|entry| is_snapshot(&entry.expect("an entry").file_name())));
}

/// Kills the leader alone; the members go on, and new data links take over from the old ones.
fn kill_the_leader(rounds: u64) {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let cluster = Cluster::start_with(&[], &[SEGMENTS, SNAPSHOTS]);
    let mut writers = workload::writers(CLIENTS, seed);
    let mut leader = None;
    for round in 1..=rounds {
        let work = Work::start(cluster.address(), writers);
        sleep(Duration::from_millis(random.u64(200..900)));
        // The first leader is `up`'s child, which reports its death; the others are ours.
        match leader.take() {
            None => cluster.kill("leader-1"),
            Some(old) => drop::<support::cluster::Server>(old),
        }
        writers = work.finish();
        leader = Some(cluster.by_hand("leader-1"));
        // It serves a moment before its links to the members are open.
        for name in ["member-1", "member-2", "member-3"] {
            cluster.wait_for_state(name, "up");
        }
        workload::check(&mut cluster.client(), &mut writers);
        let acknowledged: u64 = writers.iter().map(|writer| writer.acknowledged).sum();
        eprintln!("round {round}: {acknowledged} commands acknowledged so far");
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_everything_is_killed() {
    kill_everything(2);
}

#[test]
#[ignore = "slow: ten rounds of killing and restarting everything"]
fn nothing_acknowledged_is_lost_in_many_rounds_of_killing_everything() {
    kill_everything(rounds());
}

#[test]
fn the_state_is_exact_after_the_leader_was_killed() {
    kill_the_leader(2);
}

#[test]
#[ignore = "slow: ten rounds of killing and restarting the leader"]
fn the_state_is_exact_after_many_rounds_of_killing_the_leader() {
    kill_the_leader(rounds());
}
