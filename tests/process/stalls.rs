//! A member that is silent with its connections open (SIGSTOP) stalls nothing that can avoid it,
//! with fewer workers than requests that wait for it.

use std::thread;
use std::time::Duration;

use crossbeam_channel::bounded;
use rustix::process::Signal;
use tolerex::clock::{Clock, SystemClock, sleep};
use tolerex::threads;

use crate::copies;
use crate::support::client::Client;
use crate::support::cluster::Cluster;
use crate::support::http::Http;
use crate::support::load;
use crate::support::wait_until;
use crate::support::workload::{self, Work};

const FEW_WORKERS: (&str, &str) = ("TOLEREX_WORKERS", "4");

/// The copy deadline is 300 ms; two of them, and what a loaded machine adds.
const PATIENCE: Duration = Duration::from_millis(1500);

#[test]
fn writes_go_around_a_silent_member_with_all_workers_busy() {
    let cluster = Cluster::start_with(&["--members", "4", "--tolerance", "3"], &[FEW_WORKERS]);
    let work = Work::start(cluster.address(), workload::writers(12, 2));
    sleep(Duration::from_millis(300));
    // Nearly every batch has a copy on it, or reads one.
    cluster.signal("member-3", Signal::STOP);
    sleep(Duration::from_millis(2500));
    let mut writers = work.finish();
    assert_eq!(workload::errors(&writers), Vec::<String>::new());
    let slowest = writers.iter().map(|writer| writer.slowest).max();
    assert!(slowest < Some(PATIENCE), "{slowest:?}");
    workload::check(&mut cluster.client(), &mut writers);
    cluster.signal("member-3", Signal::CONT);
    cluster.wait_for_state("member-3", "up");
    workload::check(&mut cluster.client(), &mut writers);
    let status = cluster.client().status();
    assert_eq!(
        copies(&status),
        3 * status["messages"].as_u64().expect("a number")
    );
}

#[test]
fn requests_that_wait_for_a_silent_member_hold_no_worker() {
    let cluster = Cluster::start_with(&["--tolerance", "3"], &[FEW_WORKERS]);
    let mut client = cluster.client();
    assert_eq!(client.command("SET before m"), "OK");
    cluster.signal("member-3", Signal::STOP);
    let clock = SystemClock::new();
    let start = clock.now();
    // Five times as many as workers, and none of them can have its third copy.
    let clients = 20;
    let (sender, replies) = bounded(clients);
    let threads: Vec<_> = (0..clients)
        .map(|number| {
            let (sender, mut client) = (sender.clone(), cluster.client());
            let body = move || _ = sender.send(client.command(&format!("SET w-{number} m")));
            threads::spawn("waits", body).expect("a thread")
        })
        .collect();
    drop(sender);
    let mut served = 0;
    let mut slowest = Duration::ZERO;
    while clock.now().since(start) < Duration::from_millis(1500) {
        let asked = clock.now();
        assert_eq!(client.command("GET before"), "m");
        assert_eq!(client.status()["tolerance"], 3);
        assert_eq!(Client::connect(cluster.address()).command("COUNT"), "1");
        slowest = slowest.max(clock.now().since(asked));
        served += 1;
        sleep(Duration::from_millis(20));
    }
    assert!(
        replies.is_empty(),
        "a write was answered before its time-out"
    );
    // Less than the time for which a copy is waited for: no worker waits for one.
    assert!(slowest < Duration::from_millis(300), "{slowest:?}");
    assert!(served > 10, "{served} rounds");
    threads.into_iter().for_each(threads::Thread::join);
    let took = clock.now().since(start);
    let replies: Vec<String> = replies.iter().collect();
    assert_eq!(
        replies,
        vec!["ERROR: not enough alive members (have 2, need 3)"; clients]
    );
    assert!(took < Duration::from_secs(5), "{took:?}");

    cluster.signal("member-3", Signal::CONT);
    cluster.wait_for_state("member-3", "up");
    assert_eq!(client.command("SET w-0 m"), "OK");
    assert_eq!(client.command("COUNT"), "2");
}

/// Processes that are stopped and go on must not take the pause for anything but a pause: at worst
/// a write's outcome is unknown or it found too few members in time.
#[test]
#[ignore = "slow: pauses of some seconds"]
fn nothing_is_lost_when_processes_pause_under_load() {
    let cluster = Cluster::start(&[]);
    let mut writers = workload::writers(8, 6);
    let members = ["member-1", "member-2", "member-3"];
    for (names, pause_ms) in [
        (&["leader-1"][..], 3_500),
        (&members, 1_000),
        (&members, 3_500),
    ] {
        let work = Work::start(cluster.address(), writers);
        sleep(Duration::from_millis(300));
        names
            .iter()
            .for_each(|name| cluster.signal(name, Signal::STOP));
        sleep(Duration::from_millis(pause_ms));
        names
            .iter()
            .for_each(|name| cluster.signal(name, Signal::CONT));
        sleep(Duration::from_millis(500));
        writers = work.finish();
        assert!(writers.iter().all(|writer| !writer.is_broken), "{names:?}");
        for error in workload::errors(&writers) {
            let is_known = [
                "not enough alive members",
                "timed out",
                "message unavailable",
                "busy",
            ];
            assert!(
                is_known.iter().any(|text| error.contains(text)),
                "{names:?}: {error}"
            );
        }
        for name in members {
            cluster.wait_for_state(name, "up");
        }
        workload::check(&mut cluster.client(), &mut writers);
    }
}

/// A request of each connection may wait, without a thread: others are served meanwhile, none is
/// refused, and all end in time. That there is a limit is tested in `net/tests/parking.rs`; more
/// connections than reach it are not served at all.
#[test]
#[ignore = "slow: 4,600 connections"]
fn thousands_of_requests_wait_and_end_in_time() {
    const WAITING: u64 = 4600;
    // Reads, since writes of many connections share a batch.
    let cluster = Cluster::start(&["--members", "1", "--tolerance", "1"]);
    assert_eq!(cluster.client().command("SET k m"), "OK");
    cluster.signal("member-1", Signal::STOP);
    let stats = || {
        let http = cluster.leaders("http")[0].parse().expect("an address");
        let mut http = Http::connect(http, Duration::from_secs(20)).expect("a connection");
        let answer = http.ask("GET", "/stats", &[], b"").expect("a response");
        answer.json().expect("JSON")
    };
    let found = thread::scope(|scope| {
        let address = cluster.address();
        let waiting = scope.spawn(move || load::waiting(address, WAITING, |_| "GET k".to_owned()));
        wait_until("all wait", Duration::from_secs(20), || {
            stats()["parked_batches"].as_u64() >= Some(WAITING)
        });
        assert_eq!(cluster.client().command("COUNT"), "1");
        waiting.join().expect("replies")
    });
    let late = found.iter().filter(|reply| *reply == "ERROR: timed out");
    assert_eq!(late.count(), found.len(), "{:?}", found.first());
    cluster.signal("member-1", Signal::CONT);
    // It first works off what it was sent while it was held.
    wait_until("the member reads again", Duration::from_secs(20), || {
        cluster.client().command("GET k") == "m"
    });
    assert_eq!(cluster.client().command("SET k m"), "OK");
}
