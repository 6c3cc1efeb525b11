//! The tool against a real cluster: exit codes, any bytes, big messages.

use std::fs::{self, File};
use std::process::{Command, Stdio};

use crate::errors;
use crate::support::cluster::{Cluster, TOLEREX};

const MIB: usize = 1 << 20;

/// Bytes without a pattern, all 256 of them.
fn bytes(count: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(count as u64);
    let mut bytes = vec![0; count];
    random.fill(&mut bytes);
    bytes
}

/// `tolerex set KEY -` with these bytes on standard input.
fn set_from_input(cluster: &Cluster, key: &str, payload: &[u8]) -> (Option<i32>, String) {
    let path = cluster.dir().join("payload");
    fs::write(&path, payload).expect("written");
    let mut command = Command::new(TOLEREX);
    command
        .args(["set", key, "-", "--data-dir"])
        .arg(cluster.dir());
    command.stdin(Stdio::from(File::open(path).expect("opened")));
    let output = command.output().expect("it runs");
    (output.status.code(), errors(&output))
}

#[test]
fn any_bytes_of_any_size_up_to_the_limit_go_in_and_come_out() {
    let cluster = Cluster::start(&[]);
    let every_byte: Vec<u8> = (0..=255).collect();
    for payload in [
        Vec::new(),
        b"\r\n".to_vec(),
        every_byte,
        bytes(3 * MIB),
        bytes(16 * MIB),
    ] {
        let length = payload.len();
        let (code, text) = set_from_input(&cluster, "k", &payload);
        assert_eq!(code, Some(0), "{length} bytes: {text}");
        let output = cluster.tolerex(&["get", "k"]);
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        assert!(
            output.stdout == payload,
            "{length} bytes, {} came back",
            output.stdout.len()
        );
    }
    let (code, text) = set_from_input(&cluster, "k", &bytes(16 * MIB + 1));
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("message too large (limit 16777216 bytes)"),
        "{text}"
    );
    // By the text protocol too, in one line.
    let mut client = cluster.client();
    let line = "x".repeat(3 * MIB);
    assert_eq!(client.command(&format!("SET line {line}")), "OK");
    assert!(client.command("GET line") == line);
    let line = "x".repeat(16 * MIB + 1);
    assert_eq!(
        client.command(&format!("SET line {line}")),
        "ERROR: message too large (limit 16777216 bytes)"
    );
    assert_eq!(
        client.get_bytes("k").expect("a reply"),
        Some(bytes(16 * MIB))
    );
    assert_eq!(client.command("COUNT"), "2");
}

#[test]
fn exit_codes_tell_what_to_do() {
    let cluster = Cluster::start(&["--members", "2"]);
    let code = |args: &[&str]| cluster.tolerex(args).status.code();
    assert_eq!(code(&["set", "k", "m"]), Some(0));
    assert_eq!(code(&["get", "k"]), Some(0));
    assert_eq!(code(&["status"]), Some(0));
    assert_eq!(code(&["get", "nothing"]), Some(3));
    assert_eq!(code(&["del", "nothing"]), Some(3));
    assert_eq!(code(&["del", "k"]), Some(0));
    assert_eq!(code(&["get", "a key"]), Some(2));
    assert_eq!(code(&["fly"]), Some(2));
    let output = cluster.tolerex(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        (&status["tolerance"], &status["role"]),
        (&2.into(), &"leader".into())
    );
    for field in ["node", "leader", "term", "strategy", "messages", "members"] {
        assert!(!status[field].is_null(), "{field} is missing in {status}");
    }
    for field in [
        "name",
        "id",
        "address",
        "state",
        "messages",
        "bytes",
        "free",
        "last_seen_ms",
    ] {
        assert!(
            !status["members"][0][field].is_null(),
            "{field} is missing in {status}"
        );
    }
    cluster.kill("member-2");
    let output = cluster.tolerex(&["set", "k", "m"]);
    assert_eq!(output.status.code(), Some(4));
    let text = errors(&output);
    assert!(
        text.contains("not enough alive members (have 1, need 2)"),
        "{text}"
    );
    cluster.kill("leader-1");
    for args in [&["set", "k", "m"][..], &["get", "k"], &["status"]] {
        assert_eq!(code(args), Some(4), "{args:?}");
    }
}
