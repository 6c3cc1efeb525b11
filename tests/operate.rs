//! Do the tools for a running cluster work: stop, kill, start, shell, status --watch?

mod support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use support::cluster::{Cluster, TOLEREX, is_alive, tolerex};
use support::wait_until;

fn on(cluster: &Cluster, args: &[&str]) -> Output {
    let dir = cluster.dir().to_str().expect("UTF-8");
    tolerex(&[args, &["--data-dir", dir]].concat())
}

/// Exit code, and what was said on either output.
fn outcome(output: &Output) -> (i32, String) {
    let said = [&output.stdout[..], &output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output.status.code().expect("an exit code"), said)
}

#[test]
#[ignore = "slow: starts a cluster"]
fn processes_are_stopped_killed_and_started_through_up() {
    let mut cluster = Cluster::start(&[]);
    for (name, verb, told) in [
        ("member-1", "stop", "has ended"),
        ("member-2", "kill", "has ended"),
        ("leader-1", "stop", "has ended"),
        ("leader-1", "start", "runs, pid"),
        ("leader-1", "kill", "has ended"),
    ] {
        let pid = cluster.pid(name);
        let (code, said) = outcome(&on(&cluster, &[verb, name]));
        assert_eq!(code, 0, "{verb} {name}: {said}");
        assert!(said.starts_with(name) && said.contains(told), "{said}");
        assert_eq!(
            is_alive(cluster.pid(name)),
            verb == "start",
            "{verb} {name}"
        );
        assert_eq!(cluster.pid(name) == pid, verb != "start", "{verb} {name}");
        let state = if verb == "start" {
            "running"
        } else {
            "stopped"
        };
        assert_eq!(cluster.field(name, "state"), state, "{verb} {name}");
    }
    for (args, code, expected) in [
        (["stop", "member-1"], 1, "member-1 does not run"),
        (["kill", "member-2"], 1, "member-2 does not run"),
        (["start", "member-3"], 1, "member-3 runs already, pid "),
        (["start", "member-9"], 2, "accepted: leader-1, member-1"),
        (["stop", "a b"], 2, "is no name"),
    ] {
        let found = outcome(&on(&cluster, &args));
        assert_eq!(found.0, code, "{args:?}: {}", found.1);
        assert!(found.1.contains(expected), "{args:?}: {}", found.1);
    }
    for name in ["leader-1", "member-1", "member-2"] {
        let found = outcome(&on(&cluster, &["start", name]));
        assert_eq!(found.0, 0, "start {name}: {}", found.1);
    }
    wait_until("a write is taken again", Duration::from_secs(20), || {
        cluster.tolerex(&["set", "k", "m"]).status.success()
    });
    // What was wished is no death to report.
    assert_eq!(cluster.errors(), "");
    assert!(cluster.stop().success(), "{}", cluster.errors());
    let found = outcome(&on(&cluster, &["start", "member-1"]));
    assert_eq!(found.0, 4, "{}", found.1);
    assert!(found.1.contains("no `tolerex up` runs on"), "{}", found.1);
}

#[test]
#[ignore = "slow: starts a cluster"]
fn the_shell_speaks_the_protocol_from_a_pipe() {
    let cluster = Cluster::start(&[]);
    let script = "SET a 1\n\nGET a\r\nsetb b 5\nx\r\nyz\nGETB b\nPROMPT ON\n3 SET same\n\
                  STATUS JSON\nHELP\nnonsense\nSTATUS\nGET none\nQUIT\nGET a\n";
    let mut command = Command::new(TOLEREX);
    command.args(["shell", "--addr", &cluster.address().to_string()]);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut shell = piped.stderr(Stdio::piped()).spawn().expect("the tool runs");
    let mut stdin = shell.stdin.take().expect("piped");
    stdin.write_all(script.as_bytes()).expect("taken");
    drop(stdin);
    let output = shell.wait_with_output().expect("our child");
    let (code, said) = outcome(&output);
    assert_eq!((code, output.stderr.len()), (0, 0), "{said}");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..2], ["OK", "1"], "{said}");
    assert_eq!(lines.last(), Some(&"Bye"), "{said}");
    for line in ["OK 1-3", "ERROR: unknown command", "NOT_FOUND"] {
        assert!(lines.contains(&line), "{line}: {said}");
    }
    assert!(!said.contains("tolerex> "), "{said}");
}

#[test]
#[ignore = "slow: starts a cluster"]
fn a_watched_status_comes_again_and_again() {
    let cluster = Cluster::start(&[]);
    let mut command = Command::new(TOLEREX);
    command.args(["status", "--watch", "--json", "--addr"]);
    let watch = command
        .arg(cluster.address().to_string())
        .stdout(Stdio::piped());
    let mut watch = watch.spawn().expect("the tool runs");
    let mut lines = BufReader::new(watch.stdout.take().expect("piped")).lines();
    for _ in 0..2 {
        let line = lines.next().expect("a line").expect("UTF-8");
        let status: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(
            status["members"].as_array().map(Vec::len),
            Some(3),
            "{line}"
        );
    }
    // It ends by itself when nobody reads any more.
    drop(lines);
    wait_until("the watch ends", Duration::from_secs(10), || {
        watch.try_wait().expect("our child").is_some()
    });
}
