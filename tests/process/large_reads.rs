//! Clients that read large messages, fast or not at all, cost neither others their writes nor the
//! leader more memory than its budget for clients.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use tolerex::clock::sleep;

use crate::support::client::Client;
use crate::support::cluster::Cluster;
use crate::support::http::Http;
use crate::support::readers::{Readers, connect_small, fill, non_reader, write_for};
use crate::support::wait_until;

const PATIENCE: Duration = Duration::from_secs(20);

fn assert_links_were_kept(cluster: &Cluster) {
    assert_eq!(cluster.log("leader-1").matches("link down").count(), 0);
    for name in ["member-1", "member-2", "member-3"] {
        assert!(!cluster.log(name).contains("does not read"), "{name}");
    }
}

#[test]
fn writes_do_not_feel_clients_that_read_much() {
    let cluster = Cluster::start(&[]);
    fill(&cluster);
    let readers = Readers::start(cluster.address(), 64);
    let times = write_for(&cluster, Duration::from_secs(4));
    let reads = readers.finish();
    println!(
        "{} writes, p50 {:?}, slowest {:?}, beside {reads} reads",
        times.len(),
        times[times.len() / 2],
        times[times.len() - 1]
    );
    assert!(reads > 100, "{reads}");
    assert_links_were_kept(&cluster);
}

#[test]
fn writes_do_not_feel_clients_that_never_read() {
    let cluster = Cluster::start(&[]);
    fill(&cluster);
    let silent: Vec<TcpStream> = (0..400).map(|_| non_reader(cluster.address())).collect();
    let times = write_for(&cluster, Duration::from_secs(3));
    println!(
        "{} writes, p50 {:?}, slowest {:?}",
        times.len(),
        times[times.len() / 2],
        times[times.len() - 1]
    );
    // Small reads have their turn as well.
    assert_eq!(cluster.client().command("GET small"), "x".repeat(100));
    assert_links_were_kept(&cluster);
    drop(silent);
}

/// Bytes for all clients, in the test of memory.
const BUDGET_BYTES: u64 = 64 << 20;

/// What a leader takes beside: what it has after its start, one reply that is larger than the room
/// for reads, the copies that links and workers hold for a moment, and what the allocator keeps.
const MARGIN_BYTES: u64 = 96 << 20;

#[test]
fn replies_that_nobody_takes_stay_within_the_budget() {
    let budget = ("TOLEREX_CLIENT_BUFFER_BYTES_MAX", "64MiB");
    let cluster = Cluster::start_with(&[], &[budget]);
    assert_budget_is_kept(&cluster, "leader-1");
    assert_links_were_kept(&cluster);
}

#[test]
fn replies_that_a_follower_passes_on_stay_within_its_budget() {
    let settings = [
        ("TOLEREX_CLIENT_BUFFER_BYTES_MAX", "64MiB"),
        ("TOLEREX_REDIRECT", "forward"),
    ];
    let cluster = Cluster::start_with(&["--leaders", "3"], &settings);
    let follows = |address: &String| {
        let address: SocketAddr = address.parse().expect("an address");
        Client::connect(address).status()["role"] == "follower"
    };
    let addresses = cluster.leaders("hatokuse");
    let place = addresses.iter().position(follows).expect("a follower");
    assert_budget_is_kept(&cluster, &cluster.leaders("name")[place]);
}

/// Clients of the leader `name` ask for large replies over HTTP and take nothing.
fn assert_budget_is_kept(cluster: &Cluster, name: &str) {
    let names = cluster.leaders("name");
    let place = names.iter().position(|one| one == name).expect("a leader");
    let http = cluster.leaders("http").swap_remove(place);
    let http: SocketAddr = http.parse().expect("an address");
    let mut client = cluster.client();
    // As JSON six times as long.
    let payload = vec![1; 4 << 20];
    for (key, payload) in [("four", &payload[..]), ("one", &payload[..1 << 20])] {
        let reply = client.set_bytes(key, payload).expect("a reply");
        assert_eq!(reply, "OK");
    }
    let get = |accept: &str| {
        format!("GET /kv/four HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n")
    };
    let operations = [r#"{"type":"get","key":"one"}"#; 7].join(",");
    let body = format!(r#"{{"operations":[{operations}]}}"#);
    let batch = format!(
        "POST /batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let requests = [
        ("json", get("application/json"), 24),
        ("plain", get("application/octet-stream"), 80),
        ("batch", batch, 24),
    ];
    for (what, request, count) in requests {
        let before = cluster.resident_bytes(name);
        let ask = |_| {
            let mut stream = connect_small(http);
            stream.write_all(request.as_bytes()).expect("sent");
            stream
        };
        let silent: Vec<TcpStream> = (0..count).map(ask).collect();
        // Longer than a read waits for room and is then read.
        let mut most = 0;
        for _ in 0..50 {
            sleep(Duration::from_millis(100));
            most = most.max(cluster.resident_bytes(name));
        }
        println!(
            "{name} {what}: {} MiB, before {} MiB",
            most >> 20,
            before >> 20
        );
        assert!(most < BUDGET_BYTES + MARGIN_BYTES, "{what}: {most} bytes");
        assert_eq!(client.command("SET small x"), "OK");
        // When they are gone, there is room again.
        drop(silent);
        let mut reader = Http::connect(http, PATIENCE).expect("a connection");
        let fields = [("Accept", "application/json")];
        wait_until("a large reply is sent", PATIENCE, || {
            let answer = reader
                .ask("GET", "/kv/four", &fields, b"")
                .expect("a response");
            assert!([200, 503].contains(&answer.status), "{}", answer.status);
            answer.status == 200
        });
    }
}
