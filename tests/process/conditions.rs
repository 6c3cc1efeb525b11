//! Times to live and compare-and-set through the real servers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tolerex::clock::{Clock, SystemClock, sleep};
use tolerex::threads;

use crate::support::client::Client;
use crate::support::cluster::Cluster;
use crate::support::group_client::{GroupClient, Route};
use crate::support::wait_until;

/// How long a change of leaders and all that follows may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn addresses(cluster: &Cluster) -> Vec<SocketAddr> {
    let all = cluster.leaders("hatokuse").into_iter();
    all.map(|text| text.parse().expect("an address")).collect()
}

#[test]
fn a_time_to_live_outlives_its_leader_and_what_has_gone_stays_gone() {
    const LIFE: Duration = Duration::from_secs(4);
    let cluster = Cluster::start(&["--leaders", "3"]);
    let names = cluster.leaders("name");
    let mut client = GroupClient::new(Route::direct(&cluster.leaders("hatokuse")));
    let clock = SystemClock::new();
    for key in ["short", "long", "kept", "anew"] {
        assert_eq!(client.command(&format!("SET {key} m"), PATIENCE), "OK");
    }
    let began = clock.now();
    for (command, reply) in [
        ("EXPIRE short 4", "OK"),
        ("EXPIRE long 600", "OK"),
        ("EXPIRE kept 4", "OK"),
        ("PERSIST kept", "OK"),
        ("EXPIRE anew 4", "OK"),
        ("SET anew m", "OK"),
        ("EXPIRE none 4", "NOT_FOUND"),
    ] {
        assert_eq!(client.command(command, PATIENCE), reply, "{command}");
    }
    let first = client.leader();
    cluster.kill(&names[first]);
    let left: u64 = client
        .command("TTL long", PATIENCE)
        .parse()
        .expect("it expires");
    assert!((570..=600).contains(&left), "{left}");
    // It is there for as long as it was promised, and goes soon after.
    let mut is_there = true;
    while is_there {
        let reply = client.command("GET short", PATIENCE);
        let lived = clock.now().since(began);
        is_there = reply == "m";
        assert!(is_there || reply == "NOT_FOUND", "{reply}");
        // Leaders on one machine agree on the time to some milliseconds.
        assert!(
            is_there || lived + Duration::from_millis(100) > LIFE,
            "{lived:?}"
        );
        assert!(lived < LIFE + PATIENCE, "it is still there after {lived:?}");
    }
    // Also for the one that was away, and knows of it only from the log.
    let dir = cluster.dir().to_str().expect("UTF-8");
    let started = crate::support::cluster::tolerex(&["start", &names[first], "--data-dir", dir]);
    assert!(started.status.success(), "{started:?}");
    let transfer = format!("GROUP TRANSFER {}", names[first]);
    wait_until("the first leads again", PATIENCE, || {
        let reply = client.command("GROUP JSON", PATIENCE);
        let group: serde_json::Value = serde_json::from_str(&reply).expect("JSON");
        if group["leader"] == cluster.leaders("hatokuse")[first].as_str() {
            return true;
        }
        client.command(&transfer, PATIENCE);
        sleep(Duration::from_millis(200));
        false
    });
    for (command, reply) in [
        ("GET short", "NOT_FOUND"),
        ("TTL short", "NOT_FOUND"),
        ("TTL kept", "NONE"),
        ("TTL anew", "NONE"),
        ("GET anew", "m"),
        ("COUNT", "3"),
    ] {
        assert_eq!(client.command(command, PATIENCE), reply, "{command}");
    }
}

/// Who replaced which revision, and by which.
type Wins = Mutex<BTreeMap<u64, Vec<u64>>>;

/// Increments the number in `k` so many times, on its revision. A write is repeated under its token
/// until it is answered, should leadership move on a slow machine.
fn race(name: &str, address: SocketAddr, rounds: usize, wins: &Wins) {
    let mut client = Client::connect(address);
    let mut attempt = 0;
    for _ in 0..rounds {
        loop {
            attempt += 1;
            let (revision, number) = read(&mut client);
            let token = format!("{name}-{attempt}");
            let write = format!("ONCE {token} IF {revision} SET k {}", number + 1);
            let reply = answer(|| client.command(&write));
            if let Some(written) = reply.strip_prefix("OK ") {
                let written = written.parse().expect("a revision");
                wins.lock().entry(revision).or_default().push(written);
                break;
            }
            assert!(reply.starts_with("MISMATCH "), "{reply}");
        }
    }
}

/// Asks until the reply is no error.
fn answer(mut ask: impl FnMut() -> String) -> String {
    let mut reply = String::new();
    wait_until("an answer", PATIENCE, || {
        reply = ask();
        !reply.starts_with("ERROR")
    });
    reply
}

/// The revision of `k`, and the number in it.
fn read(client: &mut Client) -> (u64, u64) {
    let head = answer(|| client.command("GETB k"));
    let words: Vec<&str> = head.split(' ').collect();
    let ["VALUE", revision, _] = words[..] else {
        panic!("{head}");
    };
    let number = client.line().expect("the payload");
    (
        revision.parse().expect("a revision"),
        number.parse().expect("a number"),
    )
}

#[test]
fn of_all_who_write_on_one_revision_exactly_one_wins() {
    const WRITERS: usize = 12;
    const ROUNDS: usize = 15;
    let forward = ("TOLEREX_REDIRECT", "forward");
    let cluster = Cluster::start_with(&["--leaders", "3"], &[forward]);
    let all = addresses(&cluster);
    let mut client = Client::connect(all[0]);
    let first = answer(|| client.command("IF 0 SET k 0"));
    let first: u64 = first
        .strip_prefix("OK ")
        .expect(&first)
        .parse()
        .expect("a revision");
    let wins = Arc::new(Wins::default());
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (address, wins) = (all[writer % all.len()], wins.clone());
            let name = format!("writer-{writer}");
            let body = {
                let name = name.clone();
                move || race(&name, address, ROUNDS, &wins)
            };
            threads::spawn(name, body).expect("a thread")
        })
        .collect();
    writers.into_iter().for_each(threads::Thread::join);
    let (last, number) = read(&mut client);
    assert_eq!(number, (WRITERS * ROUNDS) as u64, "no increment is lost");
    let wins = wins.lock();
    let mut at = first;
    for _ in 0..number {
        let winners = &wins[&at];
        assert_eq!(winners.len(), 1, "{at} was replaced by {winners:?}");
        at = winners[0];
    }
    assert_eq!(at, last);
}
