//! Disks that are not what they were: rolled back, wiped, foreign.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::cluster::{Cluster, member, run};
use crate::{errors, get_all, set_all};

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("listed") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}

#[test]
fn a_rolled_back_member_is_refused_and_exits_naming_both_incarnations() {
    let cluster = Cluster::start(&[]);
    set_all(&mut cluster.client(), "k", 0..50, "v");
    cluster.kill("member-1");
    let dir = cluster.dir().join("member-1");
    let copy = cluster.dir().join("copy");
    copy_dir(&dir, &copy);
    // Incarnation 1 was `up`'s, and the copy is of its end: after two more starts, the copy
    // begins the second once more.
    for _ in 2..=3 {
        let mut member = cluster.by_hand("member-1");
        cluster.wait_for_state("member-1", "up");
        member.kill();
        cluster.wait_for_state("member-1", "down");
    }
    fs::remove_dir_all(&dir).expect("removed");
    fs::rename(&copy, &dir).expect("moved");
    fs::remove_file(cluster.by_hand_log("member-1")).expect("removed");
    let output = run(
        &mut cluster.by_hand_command("member-1"),
        Duration::from_secs(20),
    );
    let log = errors(&output);
    assert!(!output.status.success(), "{log}");
    assert!(
        log.contains("incarnation 2") && log.contains("3"),
        "both incarnations should be named: {log}"
    );
    assert!(
        cluster.log("leader-1").contains("is refused"),
        "{}",
        cluster.logs()
    );
    get_all(&mut cluster.client(), "k", 0..50, "v");
}

#[test]
fn a_wiped_member_gets_a_new_id_and_the_old_one_is_retired() {
    let cluster = Cluster::start(&[]);
    let mut client = cluster.client();
    set_all(&mut client, "k", 0..60, "v");
    let before = member(&client.status(), "member-1");
    cluster.kill("member-1");
    fs::remove_dir_all(cluster.dir().join("member-1")).expect("removed");
    let _member = cluster.by_hand("member-1");
    let is_new = |row: &serde_json::Value| {
        row["name"] == "member-1" && row["id"] != before["id"] && row["state"] == "up"
    };
    crate::support::wait_until("the new one is up", Duration::from_secs(10), || {
        let status = cluster.client().status();
        status["members"]
            .as_array()
            .expect("members")
            .iter()
            .any(is_new)
    });
    let log = fs::read(cluster.dir().join("leader-1/leader-1.log")).expect("a log");
    let log = String::from_utf8_lossy(&log);
    let old = before["id"].as_str().expect("an id");
    assert!(log.contains(&format!("{old} is retired")), "{log}");
    // The copies of the old one are lost, those of the others are not.
    get_all(&mut client, "k", 0..60, "v");
    set_all(&mut client, "n", 0..60, "v");
    get_all(&mut client, "n", 0..60, "v");
}

#[test]
fn a_wiped_leader_refuses_to_start_an_empty_group() {
    let cluster = Cluster::start(&[]);
    set_all(&mut cluster.client(), "k", 0..3, "v");
    cluster.kill("leader-1");
    let dir = cluster.dir().join("leader-1");
    fs::rename(&dir, cluster.dir().join("kept")).expect("moved");
    let output = run(
        &mut cluster.by_hand_command("leader-1"),
        Duration::from_secs(20),
    );
    let text = errors(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("--bootstrap") || text.contains("bootstrap"),
        "{text}"
    );
    assert!(text.contains(dir.to_str().expect("UTF-8")), "{text}");
    // With its directory back it has all it had.
    fs::remove_dir_all(&dir).ok();
    fs::rename(cluster.dir().join("kept"), &dir).expect("moved");
    let _leader = cluster.by_hand("leader-1");
    cluster.wait_for_state("member-3", "up");
    get_all(&mut cluster.client(), "k", 0..3, "v");
}
