//! Do the write modes and engines keep their promises in real processes: killed, restarted
//! otherwise, on a full disk?
//!
//! kill -9 leaves the page cache alone, so it shows what `buffered` and `unbuffered` lose with a
//! process. What a power failure takes is the matter of the disk in memory
//! (`src/storage/contract.rs`).

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::time::Duration;

use rustix::process::Signal;
use support::client::Client;
use support::cluster::{Cluster, tolerex};
use support::wait_until;
use tolerex::clock::sleep;
use tolerex::threads;

const ENGINES: [&str; 2] = ["log", "files"];

/// Messages that are stored before the load begins.
const EARLY: u64 = 200;

/// Stores a message; anything but OK is an error.
fn set(client: &mut Client, key: u64) -> std::io::Result<()> {
    match client.set_bytes(&key.to_string(), payload(key).as_bytes())? {
        reply if reply == "OK" => Ok(()),
        reply => Err(std::io::Error::other(reply)),
    }
}

fn payload(key: u64) -> String {
    format!("payload {key} {}", "x".repeat(key as usize % 300))
}

/// The keys of 0..end that are not there as they were stored; a wrong payload fails.
fn missing(cluster: &Cluster, end: u64) -> Vec<u64> {
    let mut client = cluster.client();
    let is_missing = |key: &u64| match client.get_bytes(&key.to_string()) {
        Ok(Some(found)) => {
            assert!(found == payload(*key).into_bytes(), "{key}");
            false
        }
        Ok(None) | Err(_) => true,
    };
    (0..end).filter(is_missing).collect()
}

/// Stores until everything is killed; how many were acknowledged.
fn kill_under_load(cluster: &mut Cluster) -> u64 {
    let mut client = cluster.client();
    (0..EARLY).for_each(|key| set(&mut client, key).expect("it serves"));
    // Far more than the 10 ms after which a buffer is flushed.
    sleep(Duration::from_secs(1));
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let writer = threads::spawn("writer", move || {
        let mut key = EARLY;
        while set(&mut client, key).is_ok() {
            key += 1;
        }
        sender.send(key).expect("the test waits");
    });
    sleep(Duration::from_millis(500));
    // Members first: at the death of `up` they would be told to stop in order.
    for member in ["member-1", "member-2", "member-3"] {
        cluster.signal(member, Signal::KILL);
    }
    cluster.kill_all();
    let acknowledged = receiver.recv().expect("the writer ends");
    writer.expect("a thread").join();
    acknowledged
}

#[test]
#[ignore = "slow: starts six clusters and kills them"]
fn kill_9_takes_no_more_than_the_write_mode_says() {
    for engine in ENGINES {
        for io in ["buffered", "unbuffered", "sync"] {
            let mut cluster = Cluster::start(&["--engine", engine, "--io", io]);
            let acknowledged = kill_under_load(&mut cluster);
            assert!(acknowledged > EARLY, "{engine} {io}");
            cluster.up();
            let logs = cluster.logs();
            assert!(
                logs.contains(&format!("engine={engine} io={io} ")),
                "{logs}"
            );
            let missing = missing(&cluster, acknowledged);
            println!("{engine} {io}: {} of {acknowledged} lost", missing.len());
            match io {
                "buffered" => assert!(missing.iter().all(|key| *key >= EARLY), "{missing:?}"),
                _ => assert_eq!(missing, [0; 0], "{engine} {io}"),
            }
        }
    }
}

#[test]
#[ignore = "slow: starts clusters"]
fn the_mode_may_change_with_a_start_and_the_engine_may_not() {
    for (engine, other) in [("log", "files"), ("files", "log")] {
        let mut cluster = Cluster::start(&["--engine", engine]);
        let mut client = cluster.client();
        (0..50).for_each(|key| set(&mut client, key).expect("it serves"));
        for io in ["buffered", "unbuffered", "sync"] {
            assert!(cluster.stop().success(), "{}", cluster.errors());
            cluster.set_flags(&["--io", io]);
            cluster.up();
            assert!(
                cluster
                    .logs()
                    .contains(&format!("engine={engine} io={io} "))
            );
            assert_eq!(missing(&cluster, 50), [0; 0], "{engine} {io}");
        }
        assert!(cluster.stop().success());
        let dir = cluster.dir().to_str().expect("UTF-8");
        let member = format!("{dir}/member-1");
        let config = format!("{dir}/config/member-1.toml");
        let up = ["up", "--data-dir", dir, "--engine", other];
        let by_hand = ["member", "--config", &config, "--engine", other];
        for args in [up.as_slice(), by_hand.as_slice()] {
            let output = tolerex(args);
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{errors}");
            let expected =
                format!("{member} holds data of the engine `{engine}`, and `{other}` is wanted");
            assert!(errors.contains(&expected), "{errors}");
        }
    }
}

#[test]
#[ignore = "slow: starts clusters"]
fn on_a_full_disk_others_take_the_stores_and_it_goes_on_by_itself() {
    for engine in ENGINES {
        for io in ["buffered", "sync"] {
            let flags = ["--engine", engine, "--io", io];
            let Some(cluster) = Cluster::start_on_small_disk(&flags, "member-1", 150 << 20) else {
                println!("skipped: no tmpfs can be mounted in a user namespace here");
                return;
            };
            full_disk(&cluster);
        }
    }
}

fn full_disk(cluster: &Cluster) {
    let says = |what: &str| {
        let log = cluster.seen_by("member-1", "member-1/member-1.log");
        fs::read_to_string(log).is_ok_and(|log| log.contains(what))
    };
    let mut client = cluster.client();
    (0..100).for_each(|key| set(&mut client, key).expect("it serves"));
    // Into the reserve of 32 MiB: stores are refused, releases are not.
    let path = cluster.seen_by("member-1", "member-1/ballast");
    let mut ballast = File::create(&path).expect("a file on the small disk");
    ballast.write_all(&vec![1; 120 << 20]).expect("it fits");
    (100..200).for_each(|key| set(&mut client, key).expect("others take it"));
    (0..50).for_each(|key| assert_eq!(client.command(&format!("DEL {key}")), "OK"));
    // To the last byte.
    while ballast.write_all(&[1; 4096]).is_ok() {}
    (200..250).for_each(|key| set(&mut client, key).expect("others take it"));
    (50..80).for_each(|key| assert_eq!(client.command(&format!("DEL {key}")), "OK"));
    // Without another one there is no acknowledgement.
    cluster.kill("member-2");
    let reply = client.command("SET 1000 x");
    assert!(
        reply.starts_with("ERROR: no space on enough members (have 1, need 2)"),
        "{reply}"
    );
    assert!(says("no space left on the disk: stores are refused"));
    for key in 80..250 {
        let found = client.get_bytes(&key.to_string()).expect("readable");
        assert_eq!(found, Some(payload(key).into_bytes()), "{key}");
    }
    drop(ballast);
    fs::remove_file(&path).expect("removed");
    wait_until(
        "member-1 takes records again",
        Duration::from_secs(20),
        || client.command("SET 1000 x") == "OK",
    );
    assert!(says("stores are taken again"));
    assert_eq!(missing(cluster, 80).len(), 80);
}
