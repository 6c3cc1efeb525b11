//! What does each signal do: the table of README, row by row? And what is said of a process that
//! was killed, or cannot be started, by whomever.

use std::fs;
use std::process::Output;
use std::time::Duration;

use rustix::process::Signal;

use crate::errors;
use crate::support::cluster::{Cluster, is_alive, send, tolerex};
use crate::support::wait_until;

const PATIENCE: Duration = Duration::from_secs(20);

fn pids(cluster: &Cluster) -> Vec<u32> {
    ["leader-1", "member-1", "member-2", "member-3"]
        .map(|name| cluster.pid(name))
        .to_vec()
}

/// Runs `tolerex stop|start NAME`.
fn on(cluster: &Cluster, args: &[&str]) -> Output {
    let dir = cluster.dir().to_str().expect("UTF-8");
    tolerex(&[args, &["--data-dir", dir]].concat())
}

fn assert_serves(cluster: &Cluster, key: &str) {
    let mut client = cluster.client();
    assert_eq!(client.command(&format!("SET {key} v")), "OK");
    assert_eq!(client.command(&format!("GET {key}")), "v");
}

#[test]
fn up_ends_by_signals_and_is_reached_again_when_its_socket_was_removed() {
    let mut cluster = Cluster::start(&[]);
    let socket = cluster.dir().join("up.sock");
    fs::remove_file(&socket).expect("it is there");
    wait_until("the socket is there again", PATIENCE, || socket.exists());
    let output = on(&cluster, &["stop", "member-1"]);
    assert!(output.status.success(), "{}", errors(&output));
    let pids = pids(&cluster);
    fs::remove_file(&socket).expect("it is there");
    cluster.signal_up(Signal::INT);
    assert!(cluster.wait_for_end().success(), "{}", cluster.errors());
    assert!(!pids.iter().any(|pid| is_alive(*pid)));
    assert!(!socket.exists());
}

#[test]
fn up_goes_on_when_its_lock_was_removed_and_says_so_once() {
    let mut cluster = Cluster::start(&[]);
    fs::remove_file(cluster.dir().join("up.lock")).expect("it is there");
    wait_until("it is said", PATIENCE, || {
        cluster
            .errors()
            .contains("up.lock: the file or a directory above it was removed")
    });
    for verb in ["stop", "start"] {
        let output = on(&cluster, &[verb, "member-1"]);
        assert!(output.status.success(), "{}", errors(&output));
    }
    assert_serves(&cluster, "k");
    assert_eq!(
        cluster.errors().matches("up.lock").count(),
        1,
        "{}",
        cluster.errors()
    );
    assert!(cluster.stop().success(), "{}", cluster.errors());
}

#[test]
fn a_hangup_that_is_ignored_at_the_start_stays_ignored_by_up_and_reloads_servers() {
    let mut cluster = Cluster::start_after("trap '' HUP", &[], &[]);
    cluster.signal_up(Signal::HUP);
    // Signals are taken one after the other: once the later one is told, the earlier had its turn.
    cluster.signal_up(Signal::USR1);
    wait_until("the later signal is told", PATIENCE, || {
        cluster.errors().contains("SIGUSR1 means nothing")
    });
    cluster.signal("leader-1", Signal::HUP);
    wait_until("the leader reads its settings", PATIENCE, || {
        cluster.log("leader-1").contains("settings are read again")
    });
    assert_serves(&cluster, "k");
    assert!(cluster.stop().success(), "{}", cluster.errors());
}

#[test]
fn a_closed_terminal_ends_up_in_order_and_so_do_two_signals_at_once() {
    let mut cluster = Cluster::start(&[]);
    for signals in [[Signal::HUP, Signal::HUP], [Signal::TERM, Signal::INT]] {
        let pids = pids(&cluster);
        signals.iter().for_each(|signal| cluster.signal_up(*signal));
        let status = cluster.wait_for_end();
        assert!(status.success(), "{signals:?}: {}", cluster.errors());
        assert!(
            !cluster.errors().contains("killing"),
            "{}",
            cluster.errors()
        );
        assert!(!pids.iter().any(|pid| is_alive(*pid)), "{signals:?}");
        cluster.up();
    }
}

#[test]
fn signals_without_a_meaning_change_nothing() {
    let mut cluster = Cluster::start(&[]);
    let pids = pids(&cluster);
    let told = [Signal::USR1, Signal::USR2, Signal::ALARM, Signal::XFSZ];
    for signal in told.into_iter().chain([Signal::PIPE, Signal::WINCH]) {
        cluster.signal_up(signal);
        pids.iter()
            .for_each(|pid| send(*pid, signal).expect("it runs"));
    }
    wait_until("each that is taken was told", PATIENCE, || {
        let up = cluster.errors().matches("means nothing to").count();
        let member = cluster.log("member-1").matches("means nothing to").count();
        (up, member) == (told.len(), told.len())
    });
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    assert_serves(&cluster, "k");
    assert!(cluster.stop().success(), "{}", cluster.errors());
}

#[test]
fn sigquit_ends_up_at_once_and_its_processes_in_order() {
    // Without a core file of the test; and what runs in the background of a script ignores SIGQUIT.
    let prelude = "ulimit -c 0; set -- env --default-signal=QUIT \"$@\"";
    let mut cluster = Cluster::start_after(prelude, &[], &[]);
    cluster.signal("member-3", Signal::QUIT);
    wait_until("the end is reported", PATIENCE, || {
        cluster.errors().contains("died: signal: 3")
    });
    assert_serves(&cluster, "k");
    let pids = pids(&cluster);
    cluster.signal_up(Signal::QUIT);
    assert!(!cluster.wait_for_end().success());
    wait_until("the processes have ended", PATIENCE, || {
        !pids.iter().any(|pid| is_alive(*pid))
    });
    for name in ["leader-1", "member-1"] {
        let log = cluster.log(name);
        assert!(log.trim_end().ends_with(": stopped"), "{log}");
    }
    cluster.up();
    assert_eq!(cluster.client().command("GET k"), "v");
}

#[test]
fn a_suspended_up_leaves_its_cluster_serving() {
    let mut cluster = Cluster::start(&[]);
    for pid in pids(&cluster) {
        // Ctrl-C and Ctrl-Z at a terminal reach the process group of `up` alone.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
        let (_, rest) = stat.rsplit_once(") ").expect("a name");
        let group = rest.split(' ').nth(2).expect("a process group");
        assert_eq!(group, pid.to_string());
    }
    cluster.signal_up(Signal::STOP);
    assert_serves(&cluster, "k");
    cluster.signal_up(Signal::CONT);
    assert!(cluster.stop().success(), "{}", cluster.errors());
}

#[test]
fn a_process_that_was_just_killed_from_outside_is_started() {
    let cluster = Cluster::start(&[]);
    for name in ["member-1", "leader-1", "member-1"] {
        let old = cluster.pid(name);
        cluster.signal(name, Signal::KILL);
        let output = on(&cluster, &["start", name]);
        assert!(output.status.success(), "{name}: {}", errors(&output));
        assert_ne!(cluster.pid(name), old, "{name}");
        let death = format!("{name} (pid {old}) died: signal: 9");
        assert!(cluster.errors().contains(&death), "{}", cluster.errors());
    }
    cluster.signal("member-2", Signal::KILL);
    let output = on(&cluster, &["stop", "member-2"]);
    let said = errors(&output);
    assert!(
        output.status.success() || said.contains("does not run"),
        "{said}"
    );
}

#[test]
fn a_member_that_cannot_be_started_does_not_keep_the_others_from_it() {
    let mut cluster = Cluster::start(&[]);
    let mut client = cluster.client();
    crate::set_all(&mut client, "k", 0..50, "v");
    assert!(cluster.stop().success(), "{}", cluster.errors());
    let log = cluster.dir().join("member-2/member-2.log");
    fs::remove_file(&log).expect("it is there");
    fs::create_dir(&log).expect("made");
    cluster.up();
    let ready = cluster.ready_line();
    assert!(ready.contains(", 2 of 3 members, "), "{ready}");
    let told = cluster.errors();
    assert!(
        told.contains("member-2 died at its start: cannot write "),
        "{told}"
    );
    assert!(told.contains("member-2.log: Is a directory"), "{told}");
    assert_eq!(cluster.field("member-2", "state"), "died");
    crate::get_all(&mut cluster.client(), "k", 0..50, "v");
    assert_serves(&cluster, "more");
    fs::remove_dir(&log).expect("mended");
    let output = on(&cluster, &["start", "member-2"]);
    assert!(output.status.success(), "{}", errors(&output));
    assert!(cluster.stop().success(), "{}", cluster.errors());
}
