//! Does `tolerex bench` measure a real cluster, and say so in the promised form?

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use support::client::Client;
use support::cluster::{Cluster, tolerex};
use tolerex::clock::{Clock, SystemClock};
use tolerex::threads::{self, Thread};

#[test]
#[ignore = "slow: starts a cluster"]
fn loads_are_done_and_measured() {
    let cluster = Cluster::start(&[]);
    for (generator, keys) in [("", 500), ("--blocking", 600)] {
        let flags = format!("--connections 8 --pipeline 16 --count {keys} --keys {keys}");
        let stored = cluster.bench(&format!("{generator} {flags}"));
        assert_eq!(
            (&stored["ops"], &stored["errors"]),
            (&keys.into(), &0.into())
        );
        let count = Client::connect(cluster.address()).command("COUNT");
        assert_eq!(count, keys.to_string());
    }
    for flags in [
        "--connections 4 --seconds 0.5",
        "--connections 4 --seconds 0.5 --rate 200 --get-ratio 0.5 --keys 50",
        "--connections 2 --pipeline 3 --size 70000 --count 30 --get-ratio 1 --keys 9",
        "--protocol http --connections 4 --seconds 0.5 --rate 200 --get-ratio 0.5 --keys 50",
        "--protocol http --pipeline 3 --size 70000 --count 90 --get-ratio 1 --keys 9",
        "--blocking --connections 4 --seconds 0.5",
        "--blocking --connections 1000 --seconds 1",
        "--blocking --connections 4 --seconds 0.5 --rate 200 --get-ratio 0.5 --keys 50",
        "--blocking --connections 2 --pipeline 3 --size 70000 --count 30 --get-ratio 1 --keys 9",
        "--blocking --protocol http --connections 4 --seconds 0.5 --get-ratio 0.5 --keys 50",
    ] {
        let found = cluster.bench(flags);
        let protocol = if flags.contains("http") {
            "http"
        } else {
            "hatokuse"
        };
        assert_eq!(found["protocol"], protocol);
        let is_blocking = flags.contains("--blocking");
        let generator = if is_blocking { "blocking" } else { "epoll" };
        assert_eq!(found["generator"], generator);
        let is_one_each = found["threads"] == found["connections"];
        assert!(is_one_each || !is_blocking, "{found}");
        assert_eq!(found["errors"], 0, "{flags}: {found}");
        let number = |field: &str| found[field].as_f64().unwrap_or_else(|| panic!("{found}"));
        assert!(
            number("ops_per_s") > 0.0 && number("server_cpu_us_per_op") >= 0.0,
            "{found}"
        );
        let latencies = ["p50_us", "p90_us", "p99_us", "p999_us", "max_us"].map(number);
        assert!(latencies[0] > 0.0 && latencies.is_sorted(), "{found}");
    }
}

#[test]
#[ignore = "slow: starts a cluster"]
fn a_load_over_http_stores_what_hatokuse_reads() {
    let cluster = Cluster::start(&[]);
    let flags = "--protocol http --connections 8 --pipeline 16 --size 5 --count 500 --keys 500";
    let stored = cluster.bench(flags);
    assert_eq!(
        (&stored["ops"], &stored["errors"]),
        (&500.into(), &0.into())
    );
    let mut client = Client::connect(cluster.address());
    assert_eq!(client.command("COUNT"), "500");
    assert_eq!(client.command("GET 9000000000000499"), "xxxxx");
}

#[test]
#[ignore = "slow: starts a cluster"]
fn what_an_earlier_run_stored_is_read_without_being_stored_again() {
    let cluster = Cluster::start(&[]);
    let flags = "--connections 4 --keys 30 --count 300";
    assert_eq!(cluster.bench(flags)["errors"], 0);
    let read = format!("{flags} --get-ratio 1 --stored");
    assert_eq!(cluster.bench(&read)["errors"], 0);
    let mut client = Client::connect(cluster.address());
    assert_eq!(client.command("DEL 9000000000000007"), "OK");
    let found = cluster.bench(&read);
    assert!(found["errors"].as_u64() > Some(0), "{found}");
    assert_eq!(client.command("COUNT"), "29");
}

#[test]
fn nobody_there_and_nonsense_have_their_exit_codes() {
    for (args, expected) in [
        (&["bench", "--addr", "127.0.0.1:1"][..], 4),
        (&["bench", "--get-ratio", "2"], 2),
        (&["bench", "--seconds", "1", "--count", "1"], 2),
        (&["bench", "--connections", "0"], 2),
        (&["bench", "--protocol", "gopher"], 2),
    ] {
        assert_eq!(tolerex(args).status.code(), Some(expected), "{args:?}");
    }
}

/// Both generators.
const GENERATORS: [&str; 2] = ["", "--blocking"];

/// What an imitated leader does with a request of the load.
#[derive(Clone, Copy)]
enum Answer {
    Done,
    Refused,
    /// It ends: every connection is closed and none is taken any more.
    GoesAway,
}

/// A leader of a few lines, which answers the requests of a load as it is told.
struct Leader {
    address: SocketAddr,
    /// Requests of the load that have come, over all connections.
    requests: Arc<AtomicU64>,
    has_ended: Arc<AtomicBool>,
    thread: Thread,
}

impl Leader {
    /// One whose answer to request `n`, from 1 on, is `answer(n)`.
    fn start(answer: fn(u64) -> Answer) -> Leader {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let requests = Arc::new(AtomicU64::new(0));
        let has_ended = Arc::new(AtomicBool::new(false));
        let (counted, ended) = (Arc::clone(&requests), Arc::clone(&has_ended));
        let accept = move || {
            let mut connections = Vec::new();
            loop {
                let (stream, _) = listener.accept().expect("a client");
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                let (requests, ended) = (Arc::clone(&counted), Arc::clone(&ended));
                let serve = move || serve(stream, address, &requests, &ended, answer);
                connections.push(threads::spawn("connection", serve).expect("a thread"));
            }
            drop(listener);
            connections.into_iter().for_each(Thread::join);
        };
        Leader {
            address,
            requests,
            has_ended,
            thread: threads::spawn("leader", accept).expect("a thread"),
        }
    }

    /// Runs a load against it; gives the exit code, the report, and how many requests have come.
    fn bench(self, flags: &str) -> (Option<i32>, Value, u64) {
        let address = self.address.to_string();
        let mut args = vec!["bench", "--json", "--addr", &address];
        args.extend(flags.split_whitespace());
        let output = tolerex(&args);
        end(&self.has_ended, self.address);
        self.thread.join();
        let report = serde_json::from_slice(&output.stdout);
        let report = report.unwrap_or_else(|_| panic!("{flags}: {output:?}"));
        let requests = self.requests.load(Ordering::SeqCst);
        (output.status.code(), report, requests)
    }
}

/// Ends a leader: its listener wakes up by a last connection.
fn end(has_ended: &AtomicBool, address: SocketAddr) {
    if !has_ended.swap(true, Ordering::SeqCst) {
        // Another connection may have woken it first, and the listener be gone.
        _ = TcpStream::connect(address);
    }
}

/// Serves one connection in either protocol until it or the leader ends.
fn serve(
    stream: TcpStream,
    address: SocketAddr,
    requests: &AtomicU64,
    has_ended: &AtomicBool,
    answer: fn(u64) -> Answer,
) {
    let stored = "HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}";
    let refused = "HTTP/1.1 503 Busy\r\nContent-Length: 16\r\n\r\n{\"title\":\"busy\"}";
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    while let Ok(1..) = lines.read_line(&mut line) {
        if has_ended.load(Ordering::SeqCst) {
            return;
        }
        // A PUT ends with its head; its payload, without an end of line, begins the next line.
        let replies = match line.trim_end() {
            "PROMPT OFF" => Err("tolerex> OK\r\n".to_owned()),
            "COUNT" => Err("0\r\n".to_owned()),
            "GROUP JSON" => Err(format!(
                "{{\"peers\":[{{\"state\":\"leader\",\"http\":\"{address}\"}}]}}\r\n"
            )),
            "" => Ok([stored, refused]),
            text if text.starts_with("SET ") => Ok(["OK\r\n", "ERROR: busy, try again\r\n"]),
            _ => Err(String::new()),
        };
        let reply = match replies {
            Err(reply) => reply,
            Ok([done, refused]) => match answer(requests.fetch_add(1, Ordering::SeqCst) + 1) {
                Answer::Done => done.to_owned(),
                Answer::Refused => refused.to_owned(),
                Answer::GoesAway => return end(has_ended, address),
            },
        };
        if lines.get_mut().write_all(reply.as_bytes()).is_err() {
            return;
        }
        line.clear();
    }
}

#[test]
fn each_reply_is_counted_once_and_checked() {
    for generator in GENERATORS {
        for (protocol, error) in [("hatokuse", "ERROR: busy, try again"), ("http", "503 busy")] {
            let leader = Leader::start(|n| match n % 3 {
                0 => Answer::Refused,
                _ => Answer::Done,
            });
            let flags = "--connections 8 --pipeline 4 --size 10 --count 603";
            let flags = format!("{generator} --protocol {protocol} {flags}");
            let (code, report, requests) = leader.bench(&flags);
            assert_eq!((code, requests), (Some(0), 603), "{flags}: {report}");
            assert_eq!(report["ops"], 402, "{flags}");
            assert_eq!(report["errors"], 201, "{flags}");
            assert_eq!(report["first_error"], error, "{flags}");
            let found = if generator.is_empty() {
                "epoll"
            } else {
                assert_eq!(report["threads"], 8);
                "blocking"
            };
            assert_eq!(report["generator"], found);
        }
    }
}

#[test]
fn a_load_of_which_nothing_was_done_fails() {
    for generator in GENERATORS {
        let leader = Leader::start(|_| Answer::Refused);
        let flags = format!("{generator} --connections 4 --count 40");
        let (code, report, requests) = leader.bench(&flags);
        assert_eq!((code, requests), (Some(1), 40), "{flags}: {report}");
        assert_eq!((&report["ops"], &report["errors"]), (&0.into(), &40.into()));
    }
}

#[test]
fn a_leader_that_goes_away_ends_the_load_with_errors() {
    let clock = SystemClock::new();
    let at_once: fn(u64) -> Answer = |_| Answer::GoesAway;
    let later: fn(u64) -> Answer = |n| match n {
        ..=200 => Answer::Done,
        _ => Answer::GoesAway,
    };
    for generator in GENERATORS {
        for protocol in ["hatokuse", "http"] {
            for (answer, code, ops) in [(at_once, 1, 0), (later, 0, 200)] {
                let flags = "--connections 4 --size 10 --count 1000000 --timeout 1";
                let flags = format!("{generator} --protocol {protocol} {flags}");
                let start = clock.now();
                let (found, report, _) = Leader::start(answer).bench(&flags);
                let took = clock.now().since(start);
                assert!(took < Duration::from_secs(20), "{flags}: {took:?}");
                assert_eq!(found, Some(code), "{flags}: {report}");
                // Each connection had a write on its way, of which nothing is known.
                assert_eq!(report["unknown"], 4, "{flags}: {report}");
                let error = report["first_error"].as_str().unwrap_or_default();
                assert!(error.starts_with("a connection broke: "), "{report}");
                assert_eq!(report["ops"], ops, "{flags}: {report}");
            }
        }
    }
}
