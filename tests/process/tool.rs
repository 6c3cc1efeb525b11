//! The tool against a real cluster: exit codes, any bytes, big messages.

use std::fs::{self, File};
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::errors;
use crate::support::cluster::{Cluster, TOLEREX};
use crate::support::wait_until;

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

/// What a command writes to a terminal, standard error included.
fn on_terminal(command: &mut Command) -> String {
    let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&main)
        .and_then(|()| unlockpt(&main))
        .expect("it is ours");
    let path = ptsname(&main, Vec::new()).expect("a name");
    let path = path.to_str().expect("ASCII").to_owned();
    let end = File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("opened");
    command.stdout(end.try_clone().expect("shared")).stderr(end);
    let mut child = command.spawn().expect("it runs");
    // The last handle on the other end is the child's.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut output = Vec::new();
    // A terminal that nobody has open any more gives EIO.
    _ = File::from(main).read_to_end(&mut output);
    child.wait().expect("our child");
    String::from_utf8(output)
        .expect("UTF-8")
        .replace("\r\n", "\n")
}

#[test]
fn what_goes_to_a_terminal_is_visible_and_what_goes_elsewhere_is_as_it_is() {
    let cluster = Cluster::start(&[]);
    let stored = b"a\x1b]0;title\x07\r\xe2\x80\xae\xff\n";
    let key = "k\u{202e}x";
    let (code, text) = set_from_input(&cluster, key, stored);
    assert_eq!(code, Some(0), "{text}");
    let shown = r"a\x1b]0;title\x07\x0d\u202e\xff";
    let command = |args: &[&str]| {
        let mut command = Command::new(TOLEREX);
        command.args(args).arg("--data-dir").arg(cluster.dir());
        command.stdin(Stdio::null());
        command
    };
    for args in [&["get", key][..], &["kv", "get", key]] {
        assert_eq!(on_terminal(&mut command(args)), format!("{shown}\n\n"));
        let output = command(args).output().expect("it runs");
        assert_eq!(output.stdout, stored, "{args:?}");
    }
    let lines = cluster.dir().join("lines");
    fs::write(&lines, format!("GETB {key}\nLIST 10 k*\n")).expect("written");
    let mut shell = command(&["shell"]);
    shell.stdin(File::open(&lines).expect("opened"));
    let told = on_terminal(&mut shell);
    assert!(
        told.contains(shown) && told.contains("\nk\\u202ex "),
        "{told:?}"
    );
    let told = on_terminal(&mut command(&["kv", "list"]));
    assert!(told.starts_with(r"k\u202ex "), "{told:?}");
    let output = command(&["kv", "list"]).output().expect("it runs");
    assert!(output.stdout.starts_with(key.as_bytes()));
    // An object stays one, with the same strings.
    let told = on_terminal(&mut command(&["kv", "get", key, "--json"]));
    let json: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(json["key"], key);
    assert!(!told.contains('\u{202e}'), "{told:?}");
    // What goes wrong is told with what the user gave, or a server said.
    let told = on_terminal(&mut command(&["kv", "cas", "k", "1\x1b", "m"]));
    assert!(told.starts_with(r"error: 1\x1b: accepted"), "{told:?}");
}

#[test]
fn a_closed_standard_input_stores_nothing_and_an_empty_one_an_empty_message() {
    let cluster = Cluster::start(&[]);
    let dir = cluster.dir().to_str().expect("UTF-8");
    let run = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh", TOLEREX, dir]);
        let output = command.output().expect("it runs");
        (output.status.code(), errors(&output))
    };
    for verb in ["set k", "kv set k", "kv cas k 0"] {
        let (code, text) = run(&format!("exec \"$1\" {verb} - --data-dir \"$2\" <&-"));
        assert_eq!(code, Some(1), "{verb}: {text}");
        assert!(text.contains("standard input is closed"), "{text}");
        assert_eq!(cluster.tolerex(&["get", "k"]).status.code(), Some(3));
    }
    let (code, text) = run("exec \"$1\" set k - --data-dir \"$2\" </dev/null");
    assert_eq!(code, Some(0), "{text}");
    let output = cluster.tolerex(&["get", "k"]);
    assert_eq!((output.status.code(), output.stdout), (Some(0), Vec::new()));
    let (code, text) = run("printf hello | \"$1\" set k - --data-dir \"$2\"");
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(cluster.tolerex(&["get", "k"]).stdout, b"hello");
}

/// What a subcommand of `tolerex kv` printed; its exit code must be this one.
fn kv(cluster: &Cluster, args: &[&str], code: i32) -> String {
    let output = cluster.tolerex(&[&["kv"], args].concat());
    assert_eq!(
        output.status.code(),
        Some(code),
        "{args:?}: {}",
        errors(&output)
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn kv_json(cluster: &Cluster, args: &[&str]) -> serde_json::Value {
    let said = kv(cluster, &[args, &["--json"]].concat(), 0);
    assert!(said.ends_with('\n') && said.lines().count() == 1, "{said}");
    serde_json::from_str(&said).expect("JSON")
}

#[test]
fn kv_compares_lists_and_lets_expire() {
    let cluster = Cluster::start(&[]);
    let stored = kv_json(&cluster, &["set", "user/b", "hello"]);
    let first = stored["revision"].as_str().expect("a revision").to_owned();
    let found = kv_json(&cluster, &["get", "user/b"]);
    assert_eq!(
        (&found["value"], &found["revision"]),
        (&"hello".into(), &stored["revision"])
    );
    assert_eq!(kv(&cluster, &["get", "user/b"], 0), "hello");
    // Of two that compare with the same revision one is done, and the other told what is there.
    let second = kv(&cluster, &["cas", "user/b", &first, "next"], 0);
    let output = cluster.tolerex(&["kv", "cas", "user/b", &first, "late"]);
    assert_eq!(output.status.code(), Some(1));
    let current = format!("does not hold: its revision is {second}");
    assert!(errors(&output).contains(&current), "{}", errors(&output));
    kv(&cluster, &["cas", "user/b", "0", "late"], 1);
    kv(&cluster, &["cas", "nothing", "*", "late"], 1);
    kv(&cluster, &["cas", "user/b", "x", "late"], 2);
    kv(&cluster, &["del", "user/b", "--if", &first], 1);
    assert_eq!(kv(&cluster, &["get", "user/b"], 0), "next");

    kv(&cluster, &["cas", "user/a", "0", "1"], 0);
    set_from_input(&cluster, "other", b"\xff");
    assert_eq!(kv_json(&cluster, &["get", "other"])["value"], "/w==");
    let keys = |listed: &str| -> Vec<String> {
        let first = |line: &str| line.split(' ').next().map(str::to_owned);
        listed.lines().filter_map(first).collect()
    };
    assert_eq!(
        keys(&kv(&cluster, &["list"], 0)),
        ["other", "user/a", "user/b"]
    );
    let listed = kv(&cluster, &["list", "user/", "--limit", "1"], 0);
    assert_eq!(keys(&listed), ["user/a"]);
    let listed = kv(&cluster, &["list", "user/", "--after", "user/a"], 0);
    assert_eq!(listed, format!("user/b {} 4\n", second.trim_end()));
    let listed = kv_json(&cluster, &["list", "--limit", "2"]);
    assert_eq!(listed["keys"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        (&listed["keys"][1]["key"], &listed["next"]),
        (&"user/a".into(), &"user/a".into())
    );
    let listed = kv_json(&cluster, &["list", "none"]);
    assert_eq!(listed.to_string(), r#"{"keys":[],"next":null}"#);
    kv(&cluster, &["list", "--limit", "0"], 2);

    assert_eq!(kv(&cluster, &["ttl", "other"], 0), "none\n");
    kv(&cluster, &["expire", "other", "1h"], 0);
    let left = kv_json(&cluster, &["ttl", "other"])["seconds"].as_u64();
    assert!((3000..=3600).contains(&left.expect("seconds")), "{left:?}");
    kv(&cluster, &["persist", "other"], 0);
    assert_eq!(kv(&cluster, &["ttl", "other"], 0), "none\n");
    kv(&cluster, &["set", "lasting", "x", "--ttl", "1h"], 0);
    let left = kv_json(&cluster, &["ttl", "lasting"])["seconds"].as_u64();
    assert!((3000..=3600).contains(&left.expect("seconds")), "{left:?}");
    kv(&cluster, &["set", "lasting", "x", "--ttl", "0s"], 2);
    kv(&cluster, &["expire", "other", "1s"], 0);
    wait_until("it has expired", Duration::from_secs(20), || {
        cluster.tolerex(&["kv", "get", "other"]).status.code() == Some(3)
    });
    for args in [
        &["ttl", "other"][..],
        &["expire", "other", "1s"],
        &["persist", "other"],
    ] {
        kv(&cluster, args, 3);
    }
    kv(&cluster, &["del", "user/b", "--if", second.trim_end()], 0);
    kv(&cluster, &["del", "user/b"], 3);
    kv(&cluster, &["expire", "user/a", "soon"], 2);
}

/// More keys than a page holds.
#[test]
fn a_long_listing_is_whole_and_in_order() {
    let cluster = Cluster::start(&[]);
    let mut client = cluster.client();
    assert_eq!(client.command("2500 SET x"), "OK 1-2500");
    let listed = kv(&cluster, &["list"], 0);
    let keys: Vec<&str> = listed
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    let mut expected: Vec<String> = (1..=2500).map(|id: u32| id.to_string()).collect();
    expected.sort_unstable();
    assert_eq!(keys, expected);
    let json = kv_json(&cluster, &["list", "--limit", "1500"]);
    let listed = json["keys"].as_array().expect("keys");
    let keys: Vec<&str> = listed
        .iter()
        .filter_map(|row| row["key"].as_str())
        .collect();
    assert_eq!(keys, expected[..1500]);
    assert_eq!(json["next"], expected[1499].as_str());
}
