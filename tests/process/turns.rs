//! One worker serves all clients: what takes long for one of them keeps the others waiting for a
//! short time only.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tolerex::clock::{Clock, SystemClock};
use tolerex::threads;

use crate::support::cluster::Cluster;
use crate::support::http::Http;

const PATIENCE: Duration = Duration::from_secs(20);

const ONE_WORKER: (&str, &str) = ("TOLEREX_WORKERS", "1");

/// Requests of the client that measures.
const REQUESTS: usize = 300;

/// What half of the requests must be answered within: a twentieth of what one large reply in JSON
/// takes to be encoded in a build for tests, or a page of a listing here.
const SOON: Duration = Duration::from_millis(5);

fn http(cluster: &Cluster) -> SocketAddr {
    cluster.leaders("http")[0].parse().expect("an address")
}

/// The median time of small requests while another client has `work` done again and again.
fn median_beside(cluster: &Cluster, mut work: impl FnMut() + Send + 'static) -> Duration {
    let is_over = Arc::new(AtomicBool::new(false));
    let (told, rounds) = crossbeam_channel::bounded(100_000);
    let other = {
        let is_over = Arc::clone(&is_over);
        let body = move || {
            while !is_over.load(Ordering::SeqCst) {
                work();
                _ = told.try_send(());
            }
        };
        threads::spawn("works", body).expect("a thread")
    };
    rounds.recv_timeout(PATIENCE).expect("it works");
    let clock = SystemClock::new();
    let mut client = cluster.client();
    let mut times: Vec<Duration> = (0..REQUESTS)
        .map(|_| {
            let asked = clock.now();
            assert_eq!(client.command("GET small"), "x");
            clock.now().since(asked)
        })
        .collect();
    is_over.store(true, Ordering::SeqCst);
    other.join();
    times.sort();
    let median = times[REQUESTS / 2];
    println!(
        "median {median:?}, slowest {:?}, beside {} rounds of the other client",
        times[REQUESTS - 1],
        rounds.try_iter().count()
    );
    median
}

#[test]
fn large_requests_and_replies_in_json_do_not_hold_up_others() {
    let cluster = Cluster::start_with(&[], &[ONE_WORKER]);
    assert_eq!(cluster.client().command("SET small x"), "OK");
    let http = http(&cluster);
    let mut large = Http::connect(http, PATIENCE).expect("a connection");
    let payload = vec![200; 8 << 20];
    let stored = large.ask("PUT", "/kv/large", &[], &payload);
    assert_eq!(stored.expect("a response").status, 201);
    let median = median_beside(&cluster, move || {
        let fields = [("Accept", "application/json")];
        let answer = large.ask("GET", "/kv/large", &fields, b"");
        assert_eq!(answer.expect("a response").status, 200);
    });
    assert!(median < SOON, "beside replies: {median:?}");

    let mut large = Http::connect(http, PATIENCE).expect("a connection");
    let text = "x".repeat(8 << 20);
    let body =
        format!("{{\"operations\":[{{\"type\":\"set\",\"key\":\"large\",\"value\":\"{text}\"}}]}}");
    let median = median_beside(&cluster, move || {
        let fields = [("Content-Type", "application/json")];
        let answer = large.ask("POST", "/batch", &fields, body.as_bytes());
        assert_eq!(answer.expect("a response").status, 200);
    });
    assert!(median < SOON, "beside requests: {median:?}");
}

#[test]
fn a_page_of_a_listing_does_not_hold_up_others() {
    let cluster = Cluster::start_with(&[], &[ONE_WORKER]);
    let mut client = cluster.client();
    assert_eq!(client.command("SET small x"), "OK");
    let stored = client.command("1000000 SET x");
    assert!(stored.starts_with("OK"), "{stored}");
    let mut lists = Http::connect(http(&cluster), PATIENCE).expect("a connection");
    let median = median_beside(&cluster, move || {
        // No id begins so: all of them are looked at.
        let page = lists.ask("GET", "/kv?prefix=0", &[], b"");
        assert_eq!(page.expect("a response").status, 200);
    });
    assert!(median < SOON, "{median:?}");
}
