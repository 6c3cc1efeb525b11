//! The client library and the tool against a group of real leaders, of which the active one is
//! killed.

use std::collections::HashMap;
use std::io::Write;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crossbeam_channel::bounded;
use rustix::process::Signal;
use tolerex::client::{Client, ClientOptions, Condition, Done, Message, Outcome};
use tolerex::clock::{Clock, SystemClock, sleep};
use tolerex::ids::Key;
use tolerex::threads::{self, StopSignal, Thread};

use crate::errors;
use crate::support::cluster::{Cluster, TOLEREX, tolerex};

/// Clients that write at a time.
const WRITERS: u64 = 3;

/// Messages of each bulk write.
const BULK: u64 = 3;

/// Messages of each pipeline.
const PIPELINE: usize = 30;

/// Writes that compare, in a row.
const COMPARES: u64 = 5;

/// No call may take longer: a fail-over, and the rest that it falls into.
const CALL_MAX: Duration = Duration::from_secs(8);

fn client(cluster: &Cluster) -> Client {
    Client::new(cluster.leaders("hatokuse")).expect("a client")
}

fn key(text: &str) -> Key {
    Key::parse(text.as_bytes()).expect("a key")
}

/// The name of the active leader.
fn active(cluster: &Cluster) -> String {
    let address = client(cluster).leader().expect("somebody leads");
    let places = cluster.leaders("hatokuse");
    let place = places.iter().position(|place| *place == address);
    cluster.leaders("name")[place.expect("a leader")].clone()
}

/// Kills the active leader, waits until another one serves, and starts the killed one again.
pub fn kill_the_active(cluster: &Cluster) {
    let name = active(cluster);
    cluster.kill(&name);
    sleep(Duration::from_millis(1500));
    let next = active(cluster);
    assert_ne!(next, name);
    let output = cluster_tool(cluster, &["start", &name]);
    assert!(output.status.success(), "{}", errors(&output));
}

fn cluster_tool(cluster: &Cluster, args: &[&str]) -> Output {
    let dir = cluster.dir().to_str().expect("UTF-8");
    tolerex(&[args, &["--data-dir", dir]].concat())
}

/// What a writer did, all of it acknowledged.
#[derive(Default)]
struct Written {
    /// Keys and values that must be there.
    messages: HashMap<String, String>,
    /// First ids of bulk writes, and their payload.
    bulks: Vec<(u64, String)>,
    calls: u64,
    longest: Duration,
}

/// The same in one pipeline: a repeat of a DELETE that took effect again would find nothing.
fn write_pipelined(client: &Client, name: &str, done: &mut Written) {
    let mut pipeline = client.pipeline();
    for part in 0..PIPELINE {
        let name = format!("{name}-{part}");
        pipeline.set(&key(&name), name.as_bytes());
        done.messages.insert(name.clone(), name);
    }
    let stored = pipeline.run();
    assert_eq!(stored.len(), PIPELINE);
    for result in stored {
        assert!(matches!(result, Ok(Done::Stored(_))), "{name}: {result:?}");
    }
    // A batch that took effect again would find its message gone.
    let (kept, gone) = (format!("{name}-kept"), key(&format!("{name}-gone")));
    client.set(&gone, b"x").expect("stored");
    let mut batch = client.batch();
    batch.atomic().delete(&gone).set(&key(&kept), b"kept");
    let results = batch.run().expect("done");
    assert_eq!(results[0], Ok(Done::Deleted(true)), "{name}");
    assert!(matches!(results[1], Ok(Done::Stored(_))), "{results:?}");
    done.messages.insert(kept, "kept".to_owned());
    // Of those that compare, each finds what it compares with once.
    let mut revision = None;
    for number in 0..COMPARES {
        let condition = revision.map_or(Condition::Absent, Condition::Revision);
        let stored = client.set_if(&key(name), number.to_string().as_bytes(), condition);
        revision = Some(stored.expect("nobody else writes it"));
    }
    done.messages
        .insert(name.to_owned(), (COMPARES - 1).to_string());
    for part in 0..PIPELINE / 2 {
        let name = format!("{name}-{part}");
        pipeline.delete(&key(&name));
        done.messages.remove(&name);
    }
    let deleted = pipeline.run();
    assert_eq!(deleted, vec![Ok(Done::Deleted(true)); PIPELINE / 2]);
}

/// Sets, deletes and stores in bulk under fresh tokens, everything once; every call must be done.
fn write(client: &Client, writer: u64, stop: &StopSignal) -> Written {
    let clock = SystemClock::new();
    let mut done = Written::default();
    let mut number = 0;
    while !stop.is_stopped() {
        number += 1;
        let begin = clock.now();
        let (name, value) = (format!("w{writer}-{number}"), format!("v{number}"));
        match number % 4 {
            3 => write_pipelined(client, &name, &mut done),
            0 => {
                let ids = client.set_bulk(BULK, name.as_bytes()).expect("stored");
                assert_eq!(ids.end() - ids.start() + 1, BULK);
                done.bulks.push((*ids.start(), name));
            }
            1 => {
                client.set(&key(&name), value.as_bytes()).expect("stored");
                done.messages.insert(name, value);
            }
            _ => {
                // A repeat that took effect again would say that there is none.
                let name = format!("w{writer}-{}", number - 1);
                if number % 8 == 2 {
                    assert_eq!(client.delete(&key(&name)), Ok(true), "{name}");
                    done.messages.remove(&name);
                } else {
                    let found = client.get(&key(&name)).expect("read");
                    let found = found.map(|message| message.payload);
                    assert_eq!(
                        found,
                        done.messages.get(&name).map(|v| v.clone().into_bytes())
                    );
                }
            }
        }
        done.calls += 1;
        done.longest = done.longest.max(clock.now().since(begin));
    }
    done
}

#[test]
fn every_write_takes_effect_once_while_leaders_are_killed() {
    let cluster = Cluster::start(&["--leaders", "3"]);
    let stop = StopSignal::default();
    let (sender, finished) = bounded(WRITERS as usize);
    let shared = client(&cluster);
    let start = |writer| {
        let (stop, sender) = (stop.clone(), sender.clone());
        let client = shared.clone();
        let body = move || _ = sender.send(write(&client, writer, &stop));
        threads::spawn("writes", body).expect("a thread")
    };
    let threads: Vec<Thread> = (0..WRITERS).map(start).collect();
    for _ in 0..3 {
        sleep(Duration::from_millis(500));
        kill_the_active(&cluster);
    }
    stop.stop();
    threads.into_iter().for_each(Thread::join);
    drop(sender);

    let client = client(&cluster);
    let (mut count, mut calls, mut longest) = (0, 0, Duration::ZERO);
    for done in finished.iter() {
        calls += done.calls;
        longest = longest.max(done.longest);
        let mut pipeline = client.pipeline();
        for name in done.messages.keys() {
            pipeline.get(&key(name));
        }
        for ((name, value), found) in done.messages.iter().zip(pipeline.run()) {
            let Ok(Done::Read(Some(Message { payload, .. }))) = found else {
                panic!("{name}: {found:?}");
            };
            assert_eq!(payload, value.as_bytes(), "{name}");
        }
        for (first, value) in &done.bulks {
            for id in *first..first + BULK {
                let found = client.get(&Key::Id(id)).expect("read");
                let found = found.map(|message| message.payload);
                assert_eq!(found, Some(value.clone().into_bytes()), "{id}");
            }
        }
        count += done.messages.len() as u64 + BULK * done.bulks.len() as u64;
    }
    println!("{calls} calls, the longest took {} ms", longest.as_millis());
    assert!(calls > 30 && longest < CALL_MAX, "{calls} {longest:?}");
    // A bulk write that took effect twice would have stored more.
    let reply = client.raw(b"COUNT", None).expect("a reply");
    assert_eq!(String::from_utf8_lossy(&reply.line), count.to_string());
}

#[test]
fn without_a_leader_a_client_says_so_and_nothing_happens() {
    let cluster = Cluster::start(&["--leaders", "3"]);
    let writing = client(&cluster);
    writing.set(&key("k"), b"before").expect("stored");
    let first = active(&cluster);
    let names = cluster.leaders("name");
    let others: Vec<&String> = names.iter().filter(|name| **name != first).collect();
    cluster.kill(&first);
    cluster.kill(others[0]);
    let left = names
        .iter()
        .position(|name| name == others[1])
        .expect("a leader");
    let address = cluster.leaders("hatokuse")[left].clone();
    // It takes the rest of its election time-out until it knows that nobody leads.
    for args in [&["set", "k", "m"][..], &["get", "k"]] {
        let output = tolerex(&[args, &["--timeout", "3", "--addr", &address]].concat());
        assert_eq!(output.status.code(), Some(4), "{}", errors(&output));
        assert!(errors(&output).contains("no leader"), "{}", errors(&output));
    }
    // What one leader knows by itself can be seen all the same.
    for args in [&["status", "--json"][..], &["group"]] {
        let output = tolerex(&[args, &["--addr", &address]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    }
    for name in [&first, others[0]] {
        let output = cluster_tool(&cluster, &["start", name]);
        assert!(output.status.success(), "{}", errors(&output));
    }
    let found = writing.get(&key("k")).expect("read");
    assert_eq!(
        found.map(|message| message.payload),
        Some(b"before".to_vec())
    );
}

/// A subcommand with something on its standard input.
fn with_input(args: &[&str], input: &str) -> Output {
    let mut command = Command::new(TOLEREX);
    let piped = command.args(args).stdin(Stdio::piped());
    let piped = piped.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child: Child = piped.spawn().expect("the tool runs");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("taken");
    drop(stdin);
    child.wait_with_output().expect("our child")
}

#[test]
fn every_subcommand_finds_the_leader_from_a_follower() {
    let cluster = Cluster::start(&["--leaders", "3"]);
    let leader = client(&cluster).leader().expect("somebody leads");
    let places = cluster.leaders("hatokuse");
    let follower = places
        .iter()
        .find(|place| **place != leader)
        .expect("three");
    for (args, expected) in [
        (&["set", "k", "m"][..], ""),
        (&["get", "k"], "m"),
        (&["del", "k"], ""),
        (&["status"], "role: leader"),
        (&["status", "--json"], "\"role\":\"leader\""),
        (&["group"], &format!("leader: {leader}")),
        (&["group", "--json"], &leader),
        (&["bench", "--count", "300", "--json"], "\"errors\":0,"),
        (
            &["bench", "--count", "9", "--get-ratio", "1", "--keys", "9"],
            "errors: 0",
        ),
        (
            &["bench", "--count", "9", "--keys", "9", "--protocol", "http"],
            "errors: 0",
        ),
    ] {
        let output = tolerex(&[args, &["--addr", follower]].concat());
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(
            output.status.code(),
            Some(0),
            "{args:?}: {}",
            errors(&output)
        );
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    let typed = "SET a 1\nGET a\nONCE t SETB b 3\nx\ny\nGETB b\nSTATUS\nCOUNT\nQUIT\n";
    let output = with_input(&["shell", "--addr", follower], typed);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..3], ["OK", "1", "OK"], "{said}");
    assert!(
        said.contains("role: leader") && said.ends_with("Bye\n"),
        "{said}"
    );
    // A change of the group goes to the leader too, and the next command follows.
    let names = cluster.leaders("name");
    let place = places.iter().position(|place| place == follower);
    let name = &names[place.expect("a leader")];
    let output = tolerex(&["group", "transfer", name, "--addr", follower]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    assert_eq!(active(&cluster), *name);
    let output = tolerex(&["get", "a", "--addr", &leader]);
    assert_eq!(
        (output.status.code(), &output.stdout[..]),
        (Some(0), &b"1"[..])
    );
}

#[test]
fn a_load_goes_on_when_the_active_leader_is_killed() {
    goes_on_when_the_active_leader_is_killed("hatokuse");
}

#[test]
fn a_load_over_http_goes_on_when_the_active_leader_is_killed() {
    goes_on_when_the_active_leader_is_killed("http");
}

fn goes_on_when_the_active_leader_is_killed(protocol: &str) {
    let cluster = Cluster::start(&["--leaders", "3"]);
    let all = cluster.leaders("hatokuse").join(",");
    let (connections, pipeline) = (8, 4);
    let mut command = Command::new(TOLEREX);
    let flags = format!(
        "bench --json --seconds 8 --connections {connections} --pipeline {pipeline} --addr {all} \
         --protocol {protocol}"
    );
    let piped = command.args(flags.split(' ')).stdout(Stdio::piped());
    let child = piped.stderr(Stdio::piped()).spawn().expect("the tool runs");
    sleep(Duration::from_secs(3));
    let name = active(&cluster);
    cluster.kill(&name);
    let output = child.wait_with_output().expect("our child");
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    println!("{report}");
    assert_eq!(report["protocol"], protocol);
    let number = |field: &str| report[field].as_u64().expect(field);
    assert!(number("reopened") >= connections, "{report}");
    // What was in flight at the kill, and a refusal or two of each on the way.
    assert!(
        (1..=8 * connections * pipeline).contains(&number("errors")),
        "{report}"
    );
    assert!(number("unknown") <= connections * pipeline, "{report}");
    assert!(number("unknown") <= number("errors"), "{report}");
    let seconds = report["elapsed_s"].as_f64().expect("a time");
    assert!(
        (7.0..20.0).contains(&seconds),
        "it ran to its end: {report}"
    );
    assert!(number("max_us") < 8_000_000, "{report}");
}

#[test]
fn a_leader_that_stands_still_is_left_and_nothing_is_done_twice() {
    let cluster = Cluster::start(&["--leaders", "3"]);
    let client = client(&cluster);
    client.set(&key("k"), b"first").expect("stored");
    let name = active(&cluster);
    // It keeps the connection and what was sent, and answers nothing.
    cluster.signal(&name, Signal::STOP);
    let clock = SystemClock::new();
    let begin = clock.now();
    let stored = client.set(&key("k"), b"second");
    let took = clock.now().since(begin);
    let ids = client.set_bulk(BULK, b"m");
    let then = client.set(&key("k"), b"third");
    cluster.signal(&name, Signal::CONT);
    assert_eq!(ids, Ok(1..=BULK));
    let (stored, then) = (stored.expect("stored"), then.expect("stored"));
    assert!(stored < then, "of a later term: {stored} {then}");
    assert!(took < CALL_MAX, "{took:?}");
    // It may still find the second one in its socket: it leads no more.
    sleep(Duration::from_secs(1));
    let found = client.get(&key("k")).expect("read");
    assert_eq!(
        found.map(|message| message.payload),
        Some(b"third".to_vec())
    );
}

#[test]
fn a_write_without_a_token_is_unknown_when_its_leader_is_killed() {
    let cluster = Cluster::start(&[]);
    let options = ClientOptions {
        tokens: false,
        deadline: Duration::from_secs(10),
        ..ClientOptions::default()
    };
    let client = Client::with_options(cluster.leaders("hatokuse"), options).expect("a client");
    client.set(&key("k"), b"m").expect("stored");
    // It stands still, so that the write is on its way when it dies.
    cluster.signal("leader-1", Signal::STOP);
    let (sender, result) = bounded(1);
    let body = move || _ = sender.send(client.set(&key("k"), b"n"));
    let thread = threads::spawn("writes", body).expect("a thread");
    sleep(Duration::from_millis(300));
    cluster.kill("leader-1");
    thread.join();
    let error = result.recv().expect("a result").expect_err("no answer");
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
}
