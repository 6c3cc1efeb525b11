//! Full disks, of members and of a leader: the client is told that there is no room, and so are
//! probes.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use crate::support::cluster::Cluster;
use crate::support::http::{Http, Response};
use crate::support::wait_until;

/// How long anything may take: the machine may be slow, and a full member is asked again after 5 s.
const PATIENCE: Duration = Duration::from_secs(60);

/// Holds two segments of the log, of 64 MiB each, and the reserve of 32 MiB.
const DISK_BYTES: u64 = 150 << 20;

/// One request to the leader on a connection of its own.
fn ask(cluster: &Cluster, method: &str, target: &str, body: &[u8]) -> Response {
    let address = cluster.leaders("http").remove(0);
    let address = address.parse().expect("an address");
    let mut http = Http::connect(address, PATIENCE).expect("connected");
    http.ask(method, target, &[], body).expect("an answer")
}

/// The readiness check of that name, as the leader shows it.
fn check(cluster: &Cluster, name: &str) -> serde_json::Value {
    let answer = ask(cluster, "GET", "/readyz?verbose", b"");
    let json = answer.json().expect("JSON");
    let checks = json["checks"].as_array().expect("a list").clone();
    let found = checks.into_iter().find(|check| check["name"] == name);
    found.expect("the check")
}

/// Takes all the free space of the small disk of process `name` with one file, which it names.
fn fill(cluster: &Cluster, name: &str) -> PathBuf {
    let path = cluster.seen_by(name, &format!("{name}/ballast"));
    let mut ballast = File::create(&path).expect("a file on the small disk");
    while ballast.write_all(&[1; 4096]).is_ok() {}
    path
}

#[test]
fn full_members_are_told_from_missing_ones() {
    let flags = ["--members", "1", "--tolerance", "1"];
    let Some(cluster) = Cluster::start_on_small_disk(&flags, "member-1", DISK_BYTES) else {
        println!("skipped: no tmpfs can be mounted in a user namespace here");
        return;
    };
    let mut client = cluster.client();
    assert_eq!(client.command("SET before x"), "OK");
    let ask = |method: &str, target: &str, body: &[u8]| ask(&cluster, method, target, body);
    let space = || check(&cluster, "space");
    assert_eq!(space()["ok"], true, "{}", space());

    let path = fill(&cluster, "member-1");
    let expected = "ERROR: no space on enough members (have 0, need 1)";
    // What is in the segment already has its place.
    let large = "x".repeat(1 << 20);
    wait_until("the member is full", PATIENCE, || {
        client.command(&format!("SET large {large}")) == expected
    });
    assert_eq!(client.command(&format!("SET large {large}")), expected);
    let answer = ask("PUT", "/kv/large", large.as_bytes());
    assert_eq!(answer.status, 507);
    let problem = answer.json().expect("a problem");
    assert_eq!(problem["type"], "/problems/no-space");
    assert_eq!(problem["outcome"], "failed");
    assert!(answer.field("retry-after").is_some());
    wait_until("the check fails", PATIENCE, || space()["ok"] == false);
    let check = space();
    assert!(
        check["detail"]
            .as_str()
            .is_some_and(|text| text.contains("member-1")),
        "{check}"
    );
    assert_eq!(
        ask("GET", "/livez", b"").status,
        200,
        "a restart would not help"
    );
    assert_eq!(client.command("GET before"), "x");
    let output = cluster.tolerex(&["set", "large", &"x".repeat(100 << 10), "--timeout", "1"]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");

    fs::remove_file(&path).expect("removed");
    wait_until("it takes records again", PATIENCE, || {
        client.command(&format!("SET large {large}")) == "OK"
    });
    wait_until("the check is passed", PATIENCE, || space()["ok"] == true);
}

#[test]
fn a_leader_whose_journal_has_no_space_says_so_and_goes_on() {
    let flags = ["--members", "1", "--tolerance", "1"];
    let Some(cluster) = Cluster::start_on_small_disk(&flags, "leader-1", DISK_BYTES) else {
        println!("skipped: no tmpfs can be mounted in a user namespace here");
        return;
    };
    let mut client = cluster.client();
    assert_eq!(client.command("SET before x"), "OK");
    assert_eq!(check(&cluster, "journal")["ok"], true);

    let path = fill(&cluster, "leader-1");
    // The journal's segment has its space; what is beyond it has none. A key is stored in it.
    let long = "k".repeat(480);
    let mut number = 0;
    wait_until("the journal is full", PATIENCE, || {
        let commands: Vec<String> = (number..number + 1000)
            .map(|number| format!("SET {number}-{long} v"))
            .collect();
        number += 1000;
        let replies = client.pipeline(&commands).expect("replies");
        let refused = replies.iter().find(|reply| *reply != "OK");
        refused.inspect(|reply| assert!(reply.starts_with("ERROR: "), "{reply}"));
        refused.is_some()
    });
    wait_until("the check fails", PATIENCE, || {
        check(&cluster, "journal")["ok"] == false
    });
    let shown = check(&cluster, "journal").to_string();
    assert!(shown.contains("disk is full"), "{shown}");
    assert_eq!(ask(&cluster, "GET", "/readyz", b"").status, 503);
    let live = ask(&cluster, "GET", "/livez", b"").status;
    assert_eq!(live, 200, "a restart would not help");
    assert_eq!(client.command("GET before"), "x");

    fs::remove_file(&path).expect("removed");
    wait_until("it takes writes again", PATIENCE, || {
        client.command("SET after x") == "OK"
    });
    wait_until("the check is passed", PATIENCE, || {
        check(&cluster, "journal")["ok"] == true
    });
}
