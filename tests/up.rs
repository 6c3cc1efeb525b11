//! Does `tolerex up` run a cluster as it says: start, report, stop, come back, and leave nothing?

mod support;

use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use support::client::Client;
use support::cluster::{Cluster, Server, is_alive, tolerex};
use support::wait_until;

const PROCESSES: [&str; 4] = ["leader-1", "member-1", "member-2", "member-3"];

fn states(cluster: &Cluster) -> Vec<String> {
    let manifest = cluster.manifest();
    let rows = manifest["processes"].as_array().expect("rows");
    rows.iter()
        .map(|row| row["state"].as_str().expect("a state").to_owned())
        .collect()
}

#[test]
fn a_cluster_starts_and_stops_in_order() {
    let mut cluster = Cluster::start(&[]);
    assert_eq!(states(&cluster), ["running"; 4]);
    assert_eq!(
        cluster.field("leader-1", "hatokuse"),
        cluster.address().to_string()
    );
    let pids = PROCESSES.map(|name| cluster.pid(name));
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    // One that is stopped by a signal must not hold the others up.
    cluster.signal("member-1", Signal::STOP);
    assert!(
        cluster.stop().success(),
        "{}\n{}",
        cluster.errors(),
        cluster.logs()
    );
    assert_eq!(states(&cluster), ["stopped"; 4]);
    assert!(!pids.iter().any(|pid| is_alive(*pid)));
    // The rows of stopped processes keep their last pid.
    assert_eq!(PROCESSES.map(|name| cluster.pid(name)), pids);
}

#[test]
fn two_of_them_do_not_get_in_each_others_way() {
    let cluster = Cluster::start(&[]);
    let offset = cluster.port_offset().to_string();
    let dir = cluster.dir().to_str().expect("UTF-8");
    let other = tempfile::tempdir().expect("a directory");
    let other = other.path().to_str().expect("UTF-8");
    for (dir, expected) in [
        (dir, "another `tolerex up` runs on".to_owned()),
        (
            other,
            format!(
                "port {} is taken, leader-1 wants it for HaToKuSe",
                cluster.address().port()
            ),
        ),
    ] {
        let output = tolerex(&["up", "--data-dir", dir, "--port-offset", &offset]);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains(&expected), "{errors}");
    }
    assert_eq!(states(&cluster), ["running"; 4]);
}

#[test]
fn a_dead_member_is_reported_and_not_restarted() {
    let mut cluster = Cluster::start(&[]);
    let pid = cluster.pid("member-2");
    cluster.kill("member-2");
    let errors = cluster.errors();
    assert!(
        errors.contains(&format!("member-2 (pid {pid}) died: signal: 9")),
        "{errors}"
    );
    assert!(errors.contains("member-2.log:\n  "), "{errors}");
    assert!(cluster.stop().success());
    assert_eq!(states(&cluster), ["stopped", "stopped", "died", "stopped"]);
    assert_eq!(cluster.pid("member-2"), pid);
}

#[test]
fn children_end_with_a_killed_parent_and_the_cluster_comes_back() {
    let mut cluster = Cluster::start(&[]);
    let pids = PROCESSES.map(|name| cluster.pid(name));
    cluster.kill_up();
    wait_until("the children have ended", Duration::from_secs(20), || {
        !pids.iter().any(|pid| is_alive(*pid))
    });
    cluster.set_flags(&["--members", "4"]);
    cluster.up();
    assert_eq!(states(&cluster), ["running"; 5]);
    assert!(cluster.stop().success());
    let dir = cluster.dir().to_str().expect("UTF-8");
    let output = tolerex(&["up", "--members", "3", "--data-dir", dir]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_server_left_over_is_ended_first() {
    let mut cluster = Cluster::start(&[]);
    let old = cluster.pid("member-1");
    assert!(cluster.stop().success());
    let config = cluster.dir().join("config/member-1.toml");
    let data_dir = cluster.dir().join("member-1");
    let (config, data_dir) = (
        config.to_str().expect("UTF-8"),
        data_dir.to_str().expect("UTF-8"),
    );
    let args = ["member", "--config", config, "--data-dir", data_dir];
    let mut server = Server::start(&args, &cluster.dir().join("by-hand.log"));
    // As if the `up` that started it had been killed.
    let path = cluster.dir().join("cluster.json");
    let text = fs::read_to_string(&path).expect("cluster.json");
    let (from, to) = (
        format!("\"pid\":{old},"),
        format!("\"pid\":{},", server.pid()),
    );
    fs::write(&path, text.replace(&from, &to)).expect("written");
    cluster.up();
    let expected = format!(
        "ended member-1 (pid {}), left over from an earlier run",
        server.pid()
    );
    assert!(cluster.errors().contains(&expected), "{}", cluster.errors());
    assert!(server.wait().success());
    assert_eq!(states(&cluster), ["running"; 4]);
}

#[test]
fn leaders_that_an_interrupted_set_up_left_out_are_added_and_removed_ones_are_not() {
    let mut cluster = Cluster::start(&["--leaders", "3"]);
    let voters = |cluster: &Cluster| {
        let mut most = 0;
        for address in cluster.leaders("hatokuse") {
            let mut client = Client::connect(address.parse().expect("an address"));
            let group = client.command("GROUP JSON");
            most = most.max(group.matches(r#""role":"voter""#).count());
        }
        most
    };
    let all = cluster.leaders("hatokuse").join(",");
    let removed = tolerex(&["group", "remove", "leader-3", "--addr", &all]);
    assert!(removed.status.success(), "{removed:?}");
    assert!(cluster.stop().success(), "{}", cluster.errors());
    cluster.up();
    wait_until("the two are as before", Duration::from_secs(5), || {
        voters(&cluster) == 2
    });
    assert!(cluster.stop().success(), "{}", cluster.errors());
    // As if the first `up` had ended before the third one was started: what has taken part in the
    // group before is not added again.
    fs::remove_file(cluster.dir().join("config/gathered")).expect("it is there");
    fs::remove_dir_all(cluster.dir().join("leader-3")).expect("it is there");
    cluster.up();
    wait_until("all three are voters", Duration::from_secs(20), || {
        voters(&cluster) == 3
    });
}
