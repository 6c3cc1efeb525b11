//! Does the tool keep its promises to scripts: exit codes, bytes, and where they are written?
//!
//! The leader is an imitation that greets as a leader does, answers COUNT, by which the leader is
//! found, and then gives one reply, so that every reply can be had.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output, Stdio};

use support::cluster::{TOLEREX, tolerex};
use tolerex::threads::{self, Thread};

/// Serves one connection: greets, reads one request, replies and closes. Gives the request.
struct Imitation {
    address: SocketAddr,
    thread: Thread,
    request: crossbeam_channel::Receiver<Vec<u8>>,
}

impl Imitation {
    fn start(reply: &[u8]) -> Imitation {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let reply = reply.to_vec();
        let (sender, request) = crossbeam_channel::bounded(1);
        let thread = threads::spawn("imitation", move || {
            let (stream, _) = listener.accept().expect("a client");
            let mut stream = BufReader::new(stream);
            let banner = format!(
                "{0}\r\nTOLEREX n leader\r\n{0}\r\ntolerex> ",
                "-".repeat(50)
            );
            stream.get_mut().write_all(banner.as_bytes()).expect("sent");
            let mut line = String::new();
            stream.read_line(&mut line).expect("a line");
            assert_eq!(line, "PROMPT OFF\r\n");
            stream.get_mut().write_all(b"OK\r\n").expect("sent");
            let mut request = Vec::new();
            stream.read_until(b'\n', &mut request).expect("a line");
            if request == b"COUNT\r\n" {
                stream.get_mut().write_all(b"7\r\n").expect("sent");
                request.clear();
                stream.read_until(b'\n', &mut request).expect("a line");
            }
            // A write carries a token, which is different each time.
            if request.starts_with(b"ONCE ") {
                let mut spaces = request
                    .iter()
                    .enumerate()
                    .filter(|(_, byte)| **byte == b' ');
                let (second, _) = spaces.nth(1).expect("a command behind it");
                request.drain(..=second);
            }
            // What it demands, if anything, is another test's matter.
            if request.starts_with(b"IF - ") {
                request.drain(..5);
            }
            if request.starts_with(b"SETB ") {
                let head = String::from_utf8_lossy(&request).into_owned();
                let length = head
                    .trim_end()
                    .rsplit(' ')
                    .next()
                    .and_then(|n| n.parse().ok());
                let mut payload = vec![0; length.unwrap_or(0) + 2];
                stream.read_exact(&mut payload).expect("a payload");
                request.extend(payload);
            }
            _ = sender.send(request);
            stream.get_mut().write_all(&reply).expect("sent");
        });
        Imitation {
            address,
            thread: thread.expect("a thread"),
            request,
        }
    }

    /// Runs the tool against it; gives what it did and the request.
    fn run(self, args: &[&str]) -> (Output, Vec<u8>) {
        let output = tolerex(&[args, &["--addr", &self.address.to_string()]].concat());
        self.thread.join();
        (output, self.request.recv().expect("a request"))
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("an exit code")
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// An address at which nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").to_string()
}

#[test]
fn every_reply_has_its_exit_code() {
    for (args, reply, expected) in [
        (&["set", "k", "m"][..], "OK 7\r\n", 0),
        (&["del", "k"], "OK\r\n", 0),
        (&["del", "k"], "NOT_FOUND\r\n", 3),
        (&["get", "k"], "NOT_FOUND\r\n", 3),
        (&["get", "k"], "ERROR: timed out\r\n", 1),
        (
            &["get", "k"],
            "ERROR: message unavailable (replicas: )\r\n",
            1,
        ),
        (&["set", "k", "m"], "ERROR: busy, try again\r\n", 1),
        (
            &["set", "k", "m"],
            "ERROR: not enough alive members (have 1, need 2)\r\n",
            4,
        ),
        (
            &["set", "k", "m"],
            "ERROR: no space on enough members (have 0, need 2)\r\n",
            4,
        ),
        (&["set", "k", "m"], "ERROR: no leader elected\r\n", 4),
        (
            &["set", "k", "m"],
            "ERROR: timed out, the write may or may not have happened\r\n",
            5,
        ),
        (&["set", "k", "m"], "", 5),
        (&["get", "k"], "", 4),
        (&["get", "k"], "VALUE 1 5\r\nab", 4),
        (&["status", "--json"], "{}\r\n", 0),
    ] {
        let (output, _) = Imitation::start(reply.as_bytes()).run(args);
        assert_eq!(
            code(&output),
            expected,
            "{args:?} {reply:?}: {}",
            errors(&output)
        );
        assert_eq!(
            output.stderr.is_empty(),
            expected == 0,
            "{}",
            errors(&output)
        );
        assert!(expected == 0 || output.stdout.is_empty());
    }
}

#[test]
fn any_bytes_go_in_and_come_out_as_they_are() {
    let (output, request) = Imitation::start(b"VALUE 7 6\r\na\r\n\0\xff\n\r\n").run(&["get", "k"]);
    assert_eq!((code(&output), request), (0, b"GETB k\r\n".to_vec()));
    assert_eq!(output.stdout, b"a\r\n\0\xff\n");

    let imitation = Imitation::start(b"OK 7\r\n");
    let mut command = Command::new(TOLEREX);
    command.args(["set", "k", "-", "--addr", &imitation.address.to_string()]);
    let mut child = command
        .stdin(Stdio::piped())
        .spawn()
        .expect("the tool runs");
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(b"\0\r\n\xff")
        .expect("taken");
    assert!(child.wait().expect("our child").success());
    imitation.thread.join();
    let request = imitation.request.recv().expect("a request");
    assert_eq!(request, b"SETB k 4\r\n\0\r\n\xff\r\n");
}

#[test]
fn leaders_are_tried_in_turn_and_a_hint_is_followed() {
    let second = Imitation::start(b"OK 7\r\n");
    let hint = format!("ERROR: not leader, leader is {}\r\n", second.address);
    let first = Imitation::start(hint.as_bytes());
    let addresses = format!("{},{}", nobody(), first.address);
    let output = tolerex(&["set", "k", "m", "--addr", &addresses]);
    assert_eq!(code(&output), 0, "{}", errors(&output));
    first.thread.join();
    second.thread.join();
    assert_eq!(
        second.request.recv().expect("a request"),
        b"SETB k 1\r\nm\r\n"
    );
}

#[test]
fn nobody_there_is_not_reachable() {
    let nobody = nobody();
    for args in [&["set", "k", "m"][..], &["get", "k"], &["status"]] {
        let output = tolerex(&[args, &["--addr", &nobody]].concat());
        assert_eq!(code(&output), 4, "{args:?}");
        assert!(errors(&output).starts_with("error: no leader: 127.0.0.1:"));
    }
}

#[test]
fn nonsense_is_usage() {
    let dir = tempfile::tempdir().expect("a directory");
    let empty = dir.path().to_str().expect("UTF-8");
    let new = dir.path().join("new");
    let new = new.to_str().expect("UTF-8");
    let tolerance = dir.path().join("tolerance.conf");
    std::fs::write(&tolerance, "TOLERANCE=9\n").expect("written");
    let tolerance = tolerance.to_str().expect("UTF-8");
    for (args, expected) in [
        (
            &["leader", "--tolerance-conf", tolerance, "--data-dir", new][..],
            "tolerance.conf: TOLERANCE is \"9\"; accepted: TOLERANCE=n, n from 1 to 7",
        ),
        (&["get", "a b"], "key must be 1 to 512 bytes without spaces"),
        (&["get", "k", "--addr", "x"], "accepted: host:port"),
        (&["get", "k", "--data-dir", empty], "holds no cluster.json"),
        (
            &["up", "--leaders", "2", "--data-dir", new],
            "accepted: 1, 3, 5",
        ),
        (
            &["up", "--members", "1", "--data-dir", new],
            "give --tolerance 1",
        ),
        (
            &["up", "--tolerance", "4", "--data-dir", new],
            "accepted: 1 to 3",
        ),
        (
            &["leader", "--strategy", "best"],
            "accepted: least_loaded, p2c",
        ),
        (
            &["member", "--io", "raid"],
            "accepted: buffered, unbuffered, sync",
        ),
        (
            &["certs", "issue", empty, "--name", "a b", "--role", "client"],
            "--name a b: accepted",
        ),
    ] {
        let output = tolerex(args);
        assert_eq!(code(&output), 2, "{args:?}: {}", errors(&output));
        assert!(
            errors(&output).contains(expected),
            "{args:?}: {}",
            errors(&output)
        );
    }
    // What is refused leaves nothing behind.
    assert!(!dir.path().join("new").exists());
}

#[test]
fn certificates_are_made_and_never_overwritten() {
    let dir = tempfile::tempdir().expect("a directory");
    let certs = dir.path().join("certs");
    let certs = certs.to_str().expect("UTF-8");
    let issue = [
        "certs", "issue", certs, "--name", "leader-1", "--role", "leader",
    ];
    assert_eq!(code(&tolerex(&issue)), 1);
    let output = tolerex(&["certs", "init", certs]);
    assert_eq!(
        output.stdout,
        format!("{certs}/ca.crt\n{certs}/ca.key\n").as_bytes()
    );
    let output = tolerex(&issue);
    assert_eq!(
        output.stdout,
        format!("{certs}/leader-1.crt\n{certs}/leader-1.key\n").as_bytes()
    );
    for again in [&["certs", "init", certs][..], &issue] {
        let output = tolerex(again);
        assert_eq!(code(&output), 1);
        assert!(
            errors(&output).contains("exists and is left as it is"),
            "{}",
            errors(&output)
        );
    }
}

#[test]
fn a_shell_completes_subcommands_by_the_script() {
    for shell in ["bash", "zsh", "fish"] {
        let output = tolerex(&["completions", shell]);
        let script = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(code(&output), 0, "{}", errors(&output));
        assert!(
            script.contains("completions") && script.contains("timeout"),
            "{shell}"
        );
    }
    let script = "source <(\"$0\" completions bash)\n\
                  COMP_WORDS=(tolerex kv l) COMP_CWORD=2\n\
                  _tolerex tolerex l kv\n\
                  echo \"${COMPREPLY[@]}\"";
    let output = Command::new("bash").args(["-c", script, TOLEREX]).output();
    let Ok(output) = output else {
        println!("skipped: there is no bash");
        return;
    };
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said.trim(), "list", "{}", errors(&output));
}
