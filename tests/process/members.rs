//! Members join a running cluster, go down and come back; what STATUS says of them is true.

use std::process::Command;

use crate::support::cluster::{Cluster, MEMBER, Server, member, tolerex};
use crate::{copies, get_all, set_all};

fn certificate(cluster: &Cluster, name: &str) {
    let certs = cluster.dir().join("certs");
    let certs = certs.to_str().expect("UTF-8");
    let args = ["certs", "issue", certs, "--name", name, "--role", "member"];
    assert!(tolerex(&args).status.success());
}

/// A member that is not `up`'s, with the settings of another one.
fn join(cluster: &Cluster, name: &str) -> Server {
    let mut command = Command::new(MEMBER);
    command
        .arg("--config")
        .arg(cluster.dir().join("config/member-1.toml"));
    command.args(["--name", name, "--rpc-bind", "127.0.0.1:0"]);
    command.arg("--data-dir").arg(cluster.dir().join(name));
    let leader = cluster.field("leader-1", "rpc");
    command.args(["--leaders", leader.as_str().expect("text")]);
    Server::run(&mut command, &cluster.by_hand_log(name))
}

#[test]
fn a_member_joins_goes_down_and_comes_back_and_counters_stay_true() {
    let cluster = Cluster::start(&[]);
    let mut client = cluster.client();
    let counters_are_true = |expected: u64| {
        let status = cluster.client().status();
        assert_eq!(status["messages"], expected);
        assert_eq!(copies(&status), 2 * expected, "{status}");
        let rows = status["members"].as_array().expect("members");
        assert!(
            rows.iter().all(|row| row["free"].as_u64() > Some(0)),
            "{status}"
        );
    };
    set_all(&mut client, "k", 0..300, "v");
    counters_are_true(300);

    certificate(&cluster, "member-4");
    let mut newcomer = join(&cluster, "member-4");
    cluster.wait_for_state("member-4", "up");
    set_all(&mut client, "n", 0..300, "v");
    set_all(&mut client, "k", 0..100, "w");
    for number in 200..250 {
        assert_eq!(client.command(&format!("DEL k-{number}")), "OK");
        assert_eq!(client.command(&format!("DEL k-{number}")), "NOT_FOUND");
    }
    counters_are_true(550);
    let row = member(&client.status(), "member-4");
    assert!(row["messages"].as_u64() > Some(100), "{row}");
    assert!(row["bytes"].as_u64() > Some(0), "{row}");

    newcomer.kill();
    cluster.wait_for_state("member-4", "down");
    assert_eq!(
        member(&client.status(), "member-4")["messages"],
        row["messages"]
    );
    get_all(&mut client, "n", 0..300, "v");
    let again = join(&cluster, "member-4");
    cluster.wait_for_state("member-4", "up");
    let back = member(&client.status(), "member-4");
    assert_eq!(
        (&back["id"], &back["messages"]),
        (&row["id"], &row["messages"])
    );
    get_all(&mut client, "n", 0..300, "v");
    get_all(&mut client, "k", 0..100, "w");
    get_all(&mut client, "k", 100..200, "v");
    counters_are_true(550);
    drop(again);
}
