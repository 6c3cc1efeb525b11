//! File descriptors that run short refuse work and end no process: clients leave some to files and
//! links, and what cannot be opened is opened later.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tolerex::clock::{Clock, SystemClock, sleep};

use crate::support::client::Client;
use crate::support::cluster::{Cluster, is_alive};
use crate::support::wait_until;

/// Small segments, so that the journal needs a new file for each hundred messages.
const SMALL: &[(&str, &str)] = &[
    ("TOLEREX_SNAPSHOT_BYTES", "64KiB"),
    ("TOLEREX_SEGMENT_BYTES", "1MiB"),
];

/// A key that fills the journal.
fn key(number: usize) -> String {
    format!("{number:07}-{}", "k".repeat(480))
}

fn names(cluster: &Cluster) -> Vec<String> {
    let manifest = cluster.manifest();
    let rows = manifest["processes"].as_array().expect("rows");
    let name = |row: &serde_json::Value| row["name"].as_str().expect("a name").to_owned();
    rows.iter().map(name).collect()
}

/// A connection to the leader that serves.
fn serving(addresses: &[SocketAddr]) -> Client {
    let mut found = None;
    wait_until("a leader serves", Duration::from_secs(30), || {
        let clients = addresses
            .iter()
            .filter_map(|address| Client::try_connect(*address).ok());
        found = clients.into_iter().find_map(|mut client| {
            (client.try_command("SET first x").ok()? == "OK").then_some(client)
        });
        found.is_some()
    });
    found.expect("waited for")
}

fn addresses(cluster: &Cluster) -> Vec<SocketAddr> {
    let all = cluster.leaders("hatokuse").into_iter();
    all.map(|text| text.parse().expect("an address")).collect()
}

/// Idle clients take all the connections that they get; writes go on, and nothing ends.
fn idle_clients_leave_descriptors(leaders: &str) {
    let flags = ["--leaders", leaders];
    let cluster = Cluster::start_after("ulimit -n 200", &flags, SMALL);
    let addresses = addresses(&cluster);
    let mut client = serving(&addresses);
    let idle: Vec<TcpStream> = addresses
        .iter()
        .flat_map(|address| (0..300).filter_map(move |_| TcpStream::connect(address).ok()))
        .collect();
    assert!(idle.len() >= 200, "{} idle clients", idle.len());
    // Until they are accepted, or refused.
    sleep(Duration::from_millis(500));
    for first in (0..2000).step_by(100) {
        let commands: Vec<String> = (first..first + 100)
            .map(|number| format!("SET {} v", key(number)))
            .collect();
        let replies = client.pipeline(&commands).expect("replies");
        let bad = replies.iter().find(|reply| *reply != "OK");
        assert_eq!(bad, None, "from message {first} on");
    }
    for name in names(&cluster) {
        assert!(is_alive(cluster.pid(&name)), "{name} has ended");
        // Connections that were refused take some until they are closed.
        let open = format!("/proc/{}/fd", cluster.pid(&name));
        let what = format!("{name} has descriptors left");
        wait_until(&what, Duration::from_secs(20), || {
            fs::read_dir(&open).expect("it runs").count() < 200
        });
    }
    let log = cluster.log("leader-1");
    let told = "connections_max is 16384, and this process may have 200 files and sockets open";
    assert!(log.contains(told), "{log}");
}

#[test]
fn idle_clients_leave_descriptors_to_a_leader() {
    idle_clients_leave_descriptors("1");
}

#[test]
fn idle_clients_leave_descriptors_to_each_of_three_leaders() {
    idle_clients_leave_descriptors("3");
}

/// The limit of every process sinks below what it has open, so that nothing can be opened at all,
/// while a client writes; then there are descriptors again.
#[test]
fn a_cluster_without_any_descriptor_waits_and_goes_on() {
    let cluster = Cluster::start_with(&["--leaders", "3"], SMALL);
    let mut client = serving(&addresses(&cluster));
    let names = names(&cluster);
    let pid = |name: &String| Pid::from_raw(cluster.pid(name) as i32).expect("a pid");
    let set_limit = |limit: Rlimit| {
        let mut before = limit;
        for name in &names {
            before = prlimit(Some(pid(name)), Resource::Nofile, limit).expect("our child");
        }
        before
    };
    let none = Rlimit {
        current: Some(3),
        maximum: rustix::process::getrlimit(Resource::Nofile).maximum,
    };
    let before = set_limit(none);
    assert_eq!(before.current, before.maximum, "it was raised at the start");

    let clock = SystemClock::new();
    let until = clock.now() + Duration::from_secs(4);
    let (mut acknowledged, mut refused, mut number) = (Vec::new(), 0, 0);
    while clock.now() < until {
        // The connection stays, whatever becomes of the leader's files.
        let reply = client.try_command(&format!("SET {} v", key(number)));
        match reply.expect("the leader is there") {
            reply if reply == "OK" => acknowledged.push(number),
            reply => {
                assert!(reply.starts_with("ERROR: "), "{reply}");
                refused += 1;
            }
        }
        number += 1;
    }
    assert!(
        refused > 0,
        "{} messages needed no new file",
        acknowledged.len()
    );
    for name in &names {
        assert!(is_alive(cluster.pid(name)), "{name} has ended");
    }
    set_limit(before);

    let mut client = serving(&addresses(&cluster));
    for number in acknowledged {
        assert_eq!(client.command(&format!("GET {}", key(number))), "v");
    }
    for number in number..number + 500 {
        assert_eq!(client.command(&format!("SET {} v", key(number))), "OK");
    }
    for name in &names {
        assert!(is_alive(cluster.pid(name)), "{name} has ended");
    }
}
