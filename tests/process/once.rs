//! Writes with a token through the real server: a repeat has no effect and gets the first reply,
//! also after the leader was killed or stopped.

use std::fs;
use std::time::Duration;

use crate::support::client::Client;
use crate::support::cluster::Cluster;
use crate::support::wait_until;

/// What was done before is repeated, with other payloads.
fn repeat_all(client: &mut Client) {
    for (command, reply) in [
        ("ONCE t-set SET k second", "OK"),
        ("GET k", "first"),
        ("ONCE t-del DEL gone", "OK"),
        ("ONCE t-none DEL gone", "NOT_FOUND"),
        ("GET gone", "back again"),
        ("ONCE t-bulk 10000 SET other", "OK 1-10000"),
        ("GET 10000", "bulk"),
        ("COUNT", "10002"),
    ] {
        assert_eq!(client.command(command), reply, "{command}");
    }
}

#[test]
fn a_write_with_a_token_takes_effect_once_across_restarts_of_the_leader() {
    // Small, so that tokens come back from a snapshot.
    let mut cluster = Cluster::start_with(&[], &[("TOLEREX_SNAPSHOT_BYTES", "64KiB")]);
    let mut client = cluster.client();
    for (command, reply) in [
        ("ONCE t-set SET k first", "OK"),
        ("ONCE t-none DEL gone", "NOT_FOUND"),
        ("SET gone soon", "OK"),
        ("ONCE t-del DEL gone", "OK"),
        ("SET gone back again", "OK"),
        ("ONCE t-bulk 10000 SET bulk", "OK 1-10000"),
    ] {
        assert_eq!(client.command(command), reply, "{command}");
    }
    repeat_all(&mut client);
    // In one batch, with others between them.
    let batch = [
        "ONCE p SET b 1",
        "SET c 1",
        "ONCE p SET b 2",
        "DEL c",
        "GET b",
    ];
    let replies = client.pipeline(&batch.map(str::to_owned)).expect("replies");
    assert_eq!(replies, ["OK", "OK", "OK", "OK", "1"]);
    assert_eq!(client.command("DEL b"), "OK");

    let has_snapshot = || {
        let files = fs::read_dir(cluster.dir().join("leader-1/snapshots")).expect("listed");
        let names = files.map(|file| file.expect("listed").file_name());
        names
            .into_iter()
            .any(|name| name.to_string_lossy().ends_with(".snapshot"))
    };
    wait_until("a snapshot is there", Duration::from_secs(10), has_snapshot);
    assert!(cluster.stop().success());
    cluster.up();
    repeat_all(&mut cluster.client());
    cluster.kill_all();
    cluster.up();
    repeat_all(&mut cluster.client());
    assert!(cluster.stop().success());
}

#[test]
fn a_token_is_forgotten_after_its_window() {
    let cluster = Cluster::start_with(&[], &[("TOLEREX_DEDUP_WINDOW", "1s")]);
    let mut client = cluster.client();
    assert_eq!(client.command("ONCE t SET k first"), "OK");
    wait_until("the token is forgotten", Duration::from_secs(10), || {
        assert_eq!(client.command("ONCE t SET k second"), "OK");
        client.command("GET k") == "second"
    });
}
