//! Loads against servers of a few lines: what is recorded, and how a load goes on.

use super::*;
use crate::cli::args::Protocol;
use crate::cli::load::opener::{self, Opener};
use crate::cli::load::workload::{End, Generator, Load};
use crate::client::{Client, ClientError};
use crate::clock::{SystemClock, sleep};
use crate::threads::{self, Thread};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

const GENERATORS: [Generator; 2] = [Generator::Epoll, Generator::Blocking];

const LOAD: Load = Load {
    generator: Generator::Epoll,
    protocol: Protocol::Hatokuse,
    connections: 1,
    pipeline: 1,
    size: 10,
    rate: None,
    end: End::Count(300),
    get_ratio: 0.0,
    keys: 1000,
};

/// Drives a load of SETs against a server that handles each piece it reads, with so many requests,
/// as `serve` says, until that is false.
fn drive(
    load: &Load,
    serve: impl FnMut(&mut TcpStream, usize) -> bool + Send + 'static,
) -> Recorder {
    drive_with(load, None, serve)
}

/// The same with what opens connections again.
fn drive_with(
    load: &Load,
    opener: Option<Share>,
    mut serve: impl FnMut(&mut TcpStream, usize) -> bool + Send + 'static,
) -> Recorder {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let stream = TcpStream::connect(listener.local_addr().expect("bound")).expect("taken");
    // A byte that each request has once: the end of a line, the U of PUT.
    let mark = match load.protocol {
        Protocol::Hatokuse => b'\n',
        Protocol::Http => b'U',
    };
    let server = threads::spawn("server", move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            let requests = buffer[..count].iter().filter(|byte| **byte == mark);
            if !serve(&mut stream, requests.count()) {
                return;
            }
        }
    });
    let clock = SystemClock::shared();
    let start = clock.now();
    let mut times = load.times(start, Duration::ZERO);
    times.until = times.until.min(start + Duration::from_secs(20));
    let schedule = load.schedule(0, 1);
    let connections = vec![(stream, load.requests(0, 1))];
    let shared = Arc::new(Shared::default());
    let driver = Driver::new(connections, load, schedule, clock, shared, opener);
    let (recorder, _) = driver.expect("a poller").run(times);
    server.expect("a thread").join();
    recorder
}

#[test]
fn a_server_that_stands_still_is_charged_for_all_that_waited() {
    let stall = |mut replies: usize| {
        move |stream: &mut TcpStream, lines: usize| {
            if replies < 20 && replies + lines >= 20 {
                sleep(Duration::from_millis(200));
            }
            replies += lines;
            stream.write_all("OK\r\n".repeat(lines).as_bytes()).is_ok()
        }
    };
    for generator in GENERATORS {
        let closed = Load { generator, ..LOAD };
        for pipeline in [1, 16] {
            let open = Load {
                rate: Some(1000.0),
                pipeline,
                ..closed
            };
            let recorder = drive(&open, stall(0));
            assert_eq!((recorder.ops(), recorder.errors()), (300, 0));
            // 200 requests were due while it stood still: more than a third waited for 50 ms or
            // more.
            let late = recorder.quantile_us(0.66);
            assert!(late > 50_000, "{generator:?} {pipeline}: {late}");
        }
        // Without a rate it is a single one.
        let recorder = drive(&closed, stall(0));
        assert_eq!(recorder.ops(), 300);
        let (late, max) = (recorder.quantile_us(0.66), recorder.max_us());
        assert!(
            late < 50_000 && max >= 200_000,
            "{generator:?}: {late} {max}"
        );
    }
}

#[test]
fn replies_may_come_in_any_pieces_and_errors_are_counted() {
    for generator in GENERATORS {
        let mut count = 0;
        let deep = Load {
            generator,
            pipeline: 16,
            ..LOAD
        };
        let recorder = drive(&deep, move |stream, lines| {
            for _ in 0..lines {
                count += 1;
                let reply = if count % 3 == 0 {
                    "ERROR: no\r\n"
                } else {
                    "OK\r\n"
                };
                let (first, second) = reply.split_at(1);
                stream.write_all(first.as_bytes()).expect("sent");
                stream.write_all(second.as_bytes()).expect("sent");
            }
            true
        });
        assert_eq!((recorder.ops(), recorder.errors()), (200, 100));
        assert_eq!(recorder.first_error(), Some("ERROR: no"));
    }
}

#[test]
fn a_connection_that_breaks_fails_what_it_carried() {
    for generator in GENERATORS {
        let deep = Load {
            generator,
            pipeline: 16,
            ..LOAD
        };
        let recorder = drive(&deep, |stream, _| {
            stream.write_all(b"OK\r\nOK\r\n").expect("sent");
            false
        });
        assert_eq!((recorder.ops(), recorder.errors()), (2, 14));
        let error = recorder.first_error().expect("an error");
        assert!(error.starts_with("a connection broke: "), "{error}");
    }
}

const STORED: &str = "HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}";

#[test]
fn responses_are_counted_by_their_status() {
    for generator in GENERATORS {
        let mut count = 0;
        let deep = Load {
            generator,
            protocol: Protocol::Http,
            pipeline: 16,
            ..LOAD
        };
        let recorder = drive(&deep, move |stream, requests| {
            for _ in 0..requests {
                count += 1;
                let reply = match count % 3 {
                    0 => "HTTP/1.1 503 Busy\r\nContent-Length: 16\r\n\r\n{\"title\":\"busy\"}",
                    1 => "HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\n\r\n",
                    _ => STORED,
                };
                let (first, second) = reply.split_at(reply.len() - 1);
                stream.write_all(first.as_bytes()).expect("sent");
                stream.write_all(second.as_bytes()).expect("sent");
            }
            true
        });
        assert_eq!((recorder.ops(), recorder.errors()), (100, 200));
        assert_eq!(recorder.unknowns(), 100);
        assert_eq!(recorder.first_error(), Some("504"));
    }
}

#[test]
fn requests_and_replies_that_fill_the_sockets_both_ways_are_no_deadlock() {
    for generator in GENERATORS {
        // 64 requests of 1 MiB are in flight; the server takes each only when the replies to those
        // before, as large, are taken.
        let large = Load {
            generator,
            pipeline: 64,
            size: 1 << 20,
            end: End::Count(64),
            ..LOAD
        };
        let reply = ["x".repeat(1 << 20), "\r\n".to_owned()].concat();
        let recorder = drive(&large, move |stream, lines| {
            (0..lines).all(|_| stream.write_all(reply.as_bytes()).is_ok())
        });
        assert_eq!(
            (recorder.ops(), recorder.errors()),
            (64, 0),
            "{generator:?}"
        );
    }
}

#[test]
fn what_fell_due_and_was_not_sent_is_charged_at_the_end() {
    for generator in GENERATORS {
        // The only reply comes after the end, and 299 requests were due meanwhile.
        let open = Load {
            generator,
            rate: Some(1000.0),
            end: End::After(Duration::from_millis(300)),
            ..LOAD
        };
        let recorder = drive(&open, |stream, lines| {
            sleep(Duration::from_millis(600));
            stream.write_all("OK\r\n".repeat(lines).as_bytes()).is_ok()
        });
        assert_eq!((recorder.ops(), recorder.errors()), (1, 0), "{generator:?}");
        let unsent = recorder.unsent();
        assert!((295..=300).contains(&unsent), "{generator:?}: {unsent}");
    }
}

/// A leader of which every connection is handled by a thread of its own, that does all it is asked
/// in either protocol, until so many connections have ended.
fn lead(listener: TcpListener, connections: usize) -> Thread {
    let address = listener.local_addr().expect("bound").to_string();
    let group = format!(r#"{{"peers":[{{"state":"leader","http":"{address}"}}]}}"#);
    let serve = move || {
        let one = |_| {
            let (stream, _) = listener.accept().expect("a client");
            let group = group.clone();
            threads::spawn("connection", move || obey(stream, &group)).expect("a thread")
        };
        let threads: Vec<Thread> = (0..connections).map(one).collect();
        threads.into_iter().for_each(Thread::join);
    };
    threads::spawn("leader", serve).expect("a thread")
}

fn obey(stream: TcpStream, group: &str) {
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    while let Ok(1..) = lines.read_line(&mut line) {
        let reply = match line.trim_end() {
            "PROMPT OFF" => "tolerex> OK\r\n".to_owned(),
            "COUNT" => "0\r\n".to_owned(),
            "GROUP JSON" => format!("{group}\r\n"),
            text if text.starts_with("SET ") => "OK\r\n".to_owned(),
            // The end of a head; the payload, without an end of its own, begins the next line.
            "" => STORED.to_owned(),
            _ => String::new(),
        };
        if lines.get_mut().write_all(reply.as_bytes()).is_err() {
            break;
        }
        line.clear();
    }
}

#[test]
fn a_load_goes_on_with_the_next_leader_and_counts_what_was_lost() {
    let refusal = "ERROR: not leader, leader is h:1\r\n".repeat(16);
    let moved = "HTTP/1.1 307 Temporary Redirect\r\nContent-Length: 0\r\n\r\n".repeat(16);
    let stored = STORED.repeat(2);
    let cases = [
        (Protocol::Hatokuse, "OK\r\nOK\r\n", 14, 14),
        (Protocol::Hatokuse, &refusal, 16, 0),
        (Protocol::Http, &stored, 14, 14),
        (Protocol::Http, &moved, 16, 0),
    ];
    let of = |generator| cases.map(|case| (generator, case));
    for (generator, (protocol, reply, lost, unknown)) in GENERATORS.map(of).concat() {
        let deep = Load {
            generator,
            protocol,
            pipeline: 16,
            ..LOAD
        };
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        // One connection of whoever looks for the leader, and that of the load.
        let leader = lead(listener, 2);
        let client = Client::new([address]).expect("a client");
        let shared = Arc::new(Shared::default());
        let (opener, thread) = Opener::start((client, protocol), 1, shared).expect("a thread");
        let share = opener.share(1);
        drop(opener);
        let stays = lost == 16; // Whoever refuses does.
        let reply = reply.to_owned();
        let recorder = drive_with(&deep, Some(share), move |stream, _| {
            stream.write_all(reply.as_bytes()).expect("sent");
            stays
        });
        thread.join();
        leader.join();
        assert_eq!((recorder.ops(), recorder.errors()), (300 - lost, lost));
        assert_eq!((recorder.unknowns(), recorder.reopenings()), (unknown, 1));
    }
}

/// Where a leader is found that says this of its group.
fn find_in(table: &str) -> Result<String, ClientError> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let table = table.to_owned();
    let serve = move || obey(listener.accept().expect("a client").0, &table);
    let leader = threads::spawn("leader", serve).expect("a thread");
    let client = Client::new([address]).expect("a client");
    let found = opener::find(&client, Protocol::Http);
    drop(client);
    leader.join();
    found
}

#[test]
fn the_leaders_http_address_is_that_of_its_row() {
    let table = r#"{"peers":[{"state":"follower","http":"a:1"},{"state":"leader","http":"b:2"}]}"#;
    assert_eq!(find_in(table), Ok("b:2".to_owned()));
    for table in [r#"{"peers":[{"state":"leader","http":""}]}"#, "{}"] {
        let error = find_in(table).expect_err("none");
        assert!(matches!(error, ClientError::Refused { .. }), "{error}");
    }
    let error = find_in(r#"{"peers":[]}"#).expect_err("none");
    assert!(matches!(error, ClientError::NoLeader { .. }), "{error}");
}
