//! Clients that hold all connections of a leader without using them: health checks and the tool get
//! through, and new clients too once somebody has been idle for long enough.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use tolerex::clock::{Clock, SystemClock, sleep};

use crate::support::client::Client;
use crate::support::cluster::Cluster;
use crate::support::http::Http;

/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a connection is idle before a new one may take its place.
const IDLE_MIN: Duration = Duration::from_secs(10);

/// Of these eight are reserved.
const CONNECTIONS_MAX: usize = 64;

const ORDINARY: usize = CONNECTIONS_MAX - 8;

fn answer(address: SocketAddr, target: &str) -> u16 {
    let mut http = Http::connect(address, PATIENCE).expect("a connection");
    let response = http.ask("GET", target, &[], b"").expect("a response");
    response.status
}

/// What an operator asks first is answered.
fn checks(cluster: &Cluster, http: SocketAddr) {
    for target in ["/livez", "/readyz", "/health", "/status", "/stats"] {
        assert_eq!(answer(http, target), 200, "{target}");
    }
    for (args, expected) in [(["status"], "role: leader"), (["group"], "leader: ")] {
        let output = cluster.tolerex(&args);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(expected), "{args:?}: {output:?}");
    }
}

#[test]
fn idle_clients_keep_neither_checks_nor_new_clients_out() {
    let limit = CONNECTIONS_MAX.to_string();
    let environment = [("TOLEREX_CONNECTIONS_MAX", limit.as_str())];
    let cluster = Cluster::start_with(&["--members", "2"], &environment);
    let address = cluster.address();
    let http = cluster.field("leader-1", "http");
    let http: SocketAddr = http.as_str().expect("text").parse().expect("an address");
    // Others may have left theirs just now.
    sleep(Duration::from_millis(500));

    let clock = SystemClock::new();
    let began = clock.now();
    let mut busy = Client::connect(address);
    busy.send(b"SET in-two-parts a").expect("sent");
    let mut used = Client::connect(address);
    let mut idle: Vec<TcpStream> = (0..CONNECTIONS_MAX + 6)
        .map(|_| TcpStream::connect(address).expect("a connection"))
        .collect();
    for _ in 0..3 {
        checks(&cluster, http);
    }
    assert_eq!(answer(http, "/kv/1"), 503);
    let mut more = Client::connect(address);
    assert_eq!(more.command("GET 1"), "ERROR: too many connections");
    let took = clock.now().since(began);
    assert!(
        took < IDLE_MIN,
        "the machine is too slow for this test: {took:?}"
    );

    // What keeps it is being used, not being there.
    sleep(IDLE_MIN + Duration::from_secs(1) - took);
    assert_eq!(used.command("COUNT"), "0");
    let count = 10;
    let mut clients: Vec<Client> = (0..count).map(|_| Client::connect(address)).collect();
    for client in &mut clients {
        assert_eq!(client.command("SET new x"), "OK");
    }
    checks(&cluster, http);
    busy.send(b"b\r\n").expect("sent");
    assert_eq!(busy.line().expect("a reply"), "OK");
    assert_eq!(busy.command("GET in-two-parts"), "ab");
    assert_eq!(used.command("GET new"), "x");

    // Some of those that came first are gone, in about their order; two of the places are ours.
    let mut is_closed = |place: usize| {
        let stream: &mut TcpStream = idle.get_mut(place).expect("there are so many");
        stream
            .set_read_timeout(Some(Duration::from_millis(100)))
            .expect("a time-out");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).is_ok()
    };
    let closed = (0..2 * count).filter(|place| is_closed(*place)).count();
    assert!(closed >= count, "{closed} are closed");
    let last = ORDINARY - 3;
    assert!(!is_closed(last), "the longest idle go first");
    let stream = idle.get_mut(last).expect("there are so many");
    stream.write_all(b"GET new\r\n").expect("sent");
    let mut reply = [0; 3];
    stream.read_exact(&mut reply).expect("a reply");
    assert_eq!(&reply, b"x\r\n");
    let log = cluster.log("leader-1");
    let told = "connections_max (64) is reached: a client that was idle for ";
    assert!(log.contains(told), "{log}");
}
