//! Disks that are not what they were: rolled back, wiped, foreign.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tolerex::clock::{Clock, SystemClock};

use crate::support::cluster::{Cluster, MEMBER, Server, member, run, tolerex};
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

/// The ids that `STATUS` shows for a member that is up.
fn id_up(cluster: &Cluster, name: &str) -> Option<String> {
    let status = cluster.client().status();
    let members = status["members"].as_array().expect("members").clone();
    let row = members
        .into_iter()
        .find(|row| row["name"] == name && row["state"] == "up")?;
    Some(row["id"].as_str().expect("an id").to_owned())
}

fn wait_for_log(path: &Path, text: &str) {
    crate::support::wait_until(
        &format!("{text:?} is said"),
        Duration::from_secs(20),
        || {
            let log = fs::read(path).unwrap_or_default();
            String::from_utf8_lossy(&log).contains(text)
        },
    );
}

#[test]
fn a_wiped_member_takes_its_name_only_when_told_to_and_the_old_id_is_retired() {
    let cluster = Cluster::start(&[]);
    let mut client = cluster.client();
    set_all(&mut client, "k", 0..60, "v");
    let before = member(&client.status(), "member-1");
    let old = before["id"].as_str().expect("an id");
    cluster.kill("member-1");
    fs::remove_dir_all(cluster.dir().join("member-1")).expect("removed");
    let mut waiting = cluster.by_hand("member-1");
    wait_for_log(&cluster.by_hand_log("member-1"), "start with --replace");
    let log = fs::read_to_string(cluster.by_hand_log("member-1")).expect("a log");
    assert!(
        log.contains(&format!("held by member id {old} with")),
        "{log}"
    );
    assert_eq!(id_up(&cluster, "member-1"), None, "it waits");
    waiting.kill();
    let _member = cluster.by_hand_with("member-1", &["--replace"]);
    cluster.wait_for_state("member-1", "up");
    assert_ne!(id_up(&cluster, "member-1").as_deref(), Some(old));
    let log = cluster.log("leader-1");
    assert!(log.contains(&format!("{old} is retired")), "{log}");
    // What is given up is still shown, as long as messages list it.
    let status = client.status();
    let rows = status["members"].as_array().expect("members");
    let retired = rows.iter().find(|row| row["id"] == old);
    let retired = retired.expect("it is shown");
    assert_eq!(retired["state"], "retired", "{status}");
    assert_eq!(retired["messages"], before["messages"], "{status}");
    // The copies of the old one are lost, those of the others are not.
    get_all(&mut client, "k", 0..60, "v");
    set_all(&mut client, "n", 0..60, "v");
    get_all(&mut client, "n", 0..60, "v");
}

/// A disk that is not mounted: an empty directory is in its place for one start. Afterwards the
/// cluster survives the loss of another member, as it promises.
#[test]
fn a_start_on_an_empty_directory_costs_no_copies() {
    let cluster = Cluster::start(&["--members", "2"]);
    set_all(&mut cluster.client(), "k", 0..60, "v");
    let old = id_up(&cluster, "member-1").expect("it is up");
    let (dir, aside) = (cluster.dir().join("member-1"), cluster.dir().join("disk"));
    let data_dir = cluster.dir().to_str().expect("UTF-8");
    let control = |words: &[&str]| {
        let output = tolerex(&[words, &["--data-dir", data_dir]].concat());
        assert!(output.status.success(), "{}", errors(&output));
    };
    control(&["stop", "member-1"]);
    fs::rename(&dir, &aside).expect("renamed");
    fs::create_dir(&dir).expect("made");
    control(&["start", "member-1"]);
    let up_says = |text: &str| {
        crate::support::wait_until(
            &format!("{text:?} is said"),
            Duration::from_secs(20),
            || cluster.errors().contains(text),
        );
    };
    up_says("member-1 is waiting for a decision: this name is held by member id");
    up_says("tolerex start member-1 [--replace]");
    control(&["stop", "member-1"]);
    fs::remove_dir_all(&dir).expect("removed");
    fs::rename(&aside, &dir).expect("renamed");
    control(&["start", "member-1"]);
    cluster.wait_for_state("member-1", "up");
    assert_eq!(id_up(&cluster, "member-1").as_ref(), Some(&old));
    cluster.kill("member-2");
    // A leader that starts has no payloads in its cache.
    control(&["stop", "leader-1"]);
    control(&["start", "leader-1"]);
    cluster.wait_for_state("member-1", "up");
    get_all(&mut cluster.client(), "k", 0..60, "v");
}

/// `tolerex start NAME --replace` and `tolerex up --replace NAME`, each for one start.
#[test]
fn start_and_up_give_an_old_id_up_when_they_are_told_to() {
    let mut cluster = Cluster::start(&["--members", "2"]);
    set_all(&mut cluster.client(), "k", 0..20, "v");
    let data_dir = cluster.dir().to_str().expect("UTF-8").to_owned();
    let control = |words: &[&str]| tolerex(&[words, &["--data-dir", &data_dir]].concat());
    let succeeds = |words: &[&str]| {
        let output = control(words);
        assert!(output.status.success(), "{}", errors(&output));
    };
    let refused = control(&["start", "leader-1", "--replace"]);
    let said = errors(&refused);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("--replace is for members"), "{said}");
    let old = id_up(&cluster, "member-1").expect("it is up");
    succeeds(&["stop", "member-1"]);
    fs::remove_dir_all(cluster.dir().join("member-1")).expect("removed");
    succeeds(&["start", "member-1", "--replace"]);
    cluster.wait_for_state("member-1", "up");
    let new = id_up(&cluster, "member-1").expect("it is up");
    assert_ne!(new, old);
    let shown = |id: &str| {
        let status = cluster.client().status();
        let rows = status["members"].as_array().expect("members").clone();
        rows.into_iter().find(|row| row["id"] == id)
    };
    assert_eq!(shown(&old).expect("it is listed")["state"], "retired");
    get_all(&mut cluster.client(), "k", 0..20, "v");
    // What is stored anew needs the old id no more.
    set_all(&mut cluster.client(), "k", 0..20, "v");
    crate::support::wait_until("it goes", Duration::from_secs(20), || shown(&old).is_none());
    // Not told so, the next start keeps its id.
    succeeds(&["stop", "member-1"]);
    succeeds(&["start", "member-1"]);
    cluster.wait_for_state("member-1", "up");
    assert_eq!(id_up(&cluster, "member-1").as_ref(), Some(&new));
    assert!(cluster.stop().success(), "{}", cluster.errors());
    let offset = cluster.port_offset().to_string();
    let up = ["up", "--port-offset", &offset, "--data-dir", &data_dir];
    let refused = tolerex(&[&up[..], &["--replace", "leader-1"]].concat());
    let said = errors(&refused);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("accepted: member-1, member-2"), "{said}");
    let second = cluster.dir().join("member-2");
    fs::remove_dir_all(&second).expect("removed");
    cluster.set_flags(&["--replace", "member-2"]);
    cluster.up();
    cluster.wait_for_state("member-2", "up");
    get_all(&mut cluster.client(), "k", 0..20, "v");
    let log = cluster.log("leader-1");
    assert!(
        log.contains("member member-2 came with another id"),
        "{log}"
    );
}

/// One that stood still while another id took its name hears it with its next heartbeat.
#[test]
fn a_member_that_was_replaced_while_it_stood_still_says_so_and_waits() {
    let cluster = Cluster::start(&[]);
    cluster.wait_for_state("member-1", "up");
    let first = id_up(&cluster, "member-1").expect("it is up");
    let mut client = cluster.client();
    // Messages that are written together have their copies on the same members.
    crate::support::wait_until("it holds messages to lose", Duration::from_secs(10), || {
        set_all(&mut client, "k", 0..30, "v");
        member(&client.status(), "member-1")["messages"].as_u64() > Some(0)
    });
    cluster.signal("member-1", rustix::process::Signal::STOP);
    cluster.wait_for_state("member-1", "down");
    let config = cluster.dir().join("config/member-1.toml");
    let mut command = Command::new(MEMBER);
    command.arg("--config").arg(config);
    command.args(["--replace", "--rpc-bind", "127.0.0.1:0"]);
    command.args(["--leaders", &cluster.leaders("rpc").join(",")]);
    command.arg("--data-dir").arg(cluster.dir().join("second"));
    let _second = Server::run(&mut command, &cluster.by_hand_log("member-1"));
    crate::support::wait_until("the second is up", Duration::from_secs(30), || {
        id_up(&cluster, "member-1").is_some_and(|id| id != first)
    });
    set_all(&mut cluster.client(), "n", 0..30, "v");
    cluster.signal("member-1", rustix::process::Signal::CONT);
    crate::support::wait_until("it says so", Duration::from_secs(30), || {
        let log = cluster.log("member-1");
        log.contains("with another id, it is retired")
            && log.contains("waiting for a decision: this name belongs to member id")
    });
    assert_eq!(cluster.field("member-1", "state"), "running");
    crate::support::wait_until("`up` shows it", Duration::from_secs(20), || {
        cluster
            .errors()
            .contains("member-1 is waiting for a decision")
    });
    get_all(&mut cluster.client(), "n", 0..30, "v");
}

#[test]
fn a_second_process_with_the_same_certificate_takes_nothing_and_a_retired_one_comes_back() {
    let cluster = Cluster::start(&[]);
    set_all(&mut cluster.client(), "k", 0..60, "v");
    let first = id_up(&cluster, "member-1").expect("it is up");
    let second_dir = cluster.dir().join("second");
    let config = cluster.dir().join("config/member-1.toml");
    let log = cluster.by_hand_log("member-1");
    let mut command = Command::new(MEMBER);
    command.arg("--config").arg(config);
    command.args(["--replace", "--rpc-bind", "127.0.0.1:0"]);
    command.args(["--leaders", &cluster.leaders("rpc").join(",")]);
    command.arg("--data-dir").arg(&second_dir);
    let mut second = Server::run(&mut command, &log);
    wait_for_log(&log, "whose process is up");
    set_all(&mut cluster.client(), "n", 0..60, "v");
    assert_eq!(id_up(&cluster, "member-1").as_ref(), Some(&first));
    // It is still there when the first one has gone, and was told to replace it.
    cluster.kill("member-1");
    crate::support::wait_until("the second is up", Duration::from_secs(20), || {
        id_up(&cluster, "member-1").is_some_and(|id| id != first)
    });
    // Now the first one is the other process, and waits in its turn.
    let mut back = cluster.by_hand("member-1");
    crate::support::wait_until("the first waits", Duration::from_secs(20), || {
        cluster
            .log("leader-1")
            .contains(&format!("({first}) is refused"))
    });
    second.kill();
    // Nothing was stored on the second: the first is taken again, with all of its copies.
    cluster.kill("member-2");
    crate::support::wait_until("the first is back", Duration::from_secs(20), || {
        id_up(&cluster, "member-1").as_ref() == Some(&first)
    });
    get_all(&mut cluster.client(), "k", 0..60, "v");
    get_all(&mut cluster.client(), "n", 0..60, "v");
    back.kill();
}

#[test]
fn a_member_with_a_damaged_fence_does_not_start_and_says_how_it_can() {
    let cluster = Cluster::start(&[]);
    set_all(&mut cluster.client(), "k", 0..60, "v");
    let old = id_up(&cluster, "member-1").expect("it is up");
    cluster.kill("member-1");
    let path = cluster.dir().join("member-1/fence");
    let fence = fs::read(&path).expect("read");
    fs::write(&path, b"").expect("cut");
    let output = run(
        &mut cluster.by_hand_command("member-1"),
        Duration::from_secs(20),
    );
    let text = errors(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("member-1/fence is damaged") && text.contains("--replace"),
        "{text}"
    );
    fs::write(&path, fence).expect("put back");
    let mut member = cluster.by_hand("member-1");
    cluster.wait_for_state("member-1", "up");
    assert_eq!(id_up(&cluster, "member-1").as_ref(), Some(&old));
    member.kill();
    fs::write(&path, b"").expect("cut");
    let _member = cluster.by_hand_with("member-1", &["--replace"]);
    cluster.wait_for_state("member-1", "up");
    assert_ne!(id_up(&cluster, "member-1").as_ref(), Some(&old));
    get_all(&mut cluster.client(), "k", 0..60, "v");
}

/// Removes the directory of a process that runs and writes there.
fn remove_under_it(dir: &Path) {
    crate::support::wait_until("the directory is gone", Duration::from_secs(10), || {
        // Files that it makes meanwhile stand in the way once.
        _ = fs::remove_dir_all(dir);
        !dir.exists()
    });
}

fn wait_for_death(cluster: &Cluster, name: &str) {
    let has_died = || cluster.field(name, "state") == "died";
    crate::support::wait_until(&format!("{name} stops"), Duration::from_secs(30), has_died);
}

#[test]
fn a_member_whose_directory_is_removed_stops_and_says_so() {
    for engine in ["log", "files"] {
        let cluster = Cluster::start(&["--engine", engine]);
        let mut client = cluster.client();
        set_all(&mut client, "k", 0..20, "v");
        // One that is written to, and one that is idle.
        remove_under_it(&cluster.dir().join("member-1"));
        set_all(&mut client, "n", 0..200, "v");
        wait_for_death(&cluster, "member-1");
        let said = cluster.errors();
        let place = "member-1/";
        // The second if it was removed between a look and what followed.
        let is_clear = said.contains("removed") || said.contains("No such file");
        assert!(said.contains(place) && is_clear, "{said}");
        // What was acknowledged is there: member-1 took nothing that counts once its directory
        // was gone.
        get_all(&mut client, "n", 0..200, "v");
    }
}

#[test]
fn an_idle_member_and_a_leader_notice_a_directory_that_was_replaced() {
    let cluster = Cluster::start(&[]);
    let mut client = cluster.client();
    set_all(&mut client, "k", 0..20, "v");
    for name in ["member-2", "leader-1"] {
        let dir = cluster.dir().join(name);
        fs::rename(&dir, cluster.dir().join(format!("{name}.aside"))).expect("renamed");
        fs::create_dir(&dir).expect("made");
        wait_for_death(&cluster, name);
        let said = cluster.errors();
        assert!(
            said.contains(&format!("{name} (pid")) && said.contains("was removed or renamed"),
            "{said}"
        );
        fs::remove_dir_all(&dir).expect("removed");
        fs::rename(cluster.dir().join(format!("{name}.aside")), &dir).expect("renamed");
    }
    let _leader = cluster.by_hand("leader-1");
    let _member = cluster.by_hand("member-2");
    cluster.wait_for_state("member-2", "up");
    get_all(&mut cluster.client(), "k", 0..20, "v");
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

/// The only leader, on an older copy of its directory: terms and revisions that members have seen
/// are not used again, and what it lost is said.
#[test]
fn the_only_leader_on_an_older_copy_goes_on_above_what_members_have_seen() {
    let cluster = Cluster::start(&[]);
    set_all(&mut cluster.client(), "k", 0..10, "v");
    cluster.kill("leader-1");
    let dir = cluster.dir().join("leader-1");
    let copy = cluster.dir().join("copy");
    copy_dir(&dir, &copy);
    let mut leader = cluster.by_hand("leader-1");
    set_all(&mut cluster.client(), "lost", 0..40, "old");
    // What it has committed is told with the heartbeats of members, once a second.
    tolerex::clock::sleep(Duration::from_secs(3));
    let before = cluster.client().status()["term"].as_u64().expect("a term");
    leader.kill();
    fs::remove_dir_all(&dir).expect("removed");
    copy_dir(&copy, &dir);
    let mut leader = cluster.by_hand("leader-1");
    let mut client = cluster.client();
    let term = client.status()["term"].as_u64().expect("a term");
    assert!(term > before, "{term} was used before, up to {before}");
    get_all(&mut client, "k", 0..10, "v");
    set_all(&mut client, "new", 0..40, "new");
    get_all(&mut client, "new", 0..40, "new");
    let log = fs::read_to_string(cluster.by_hand_log("leader-1")).expect("a log");
    assert!(log.contains("did not send them"), "{log}");
    let lost = client.status()["lost"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let is_told = |text: &str| text.contains("is an older copy") && text.contains("LOST");
    assert!(is_told(&lost) && log.contains(&lost), "{lost}: {log}");
    let status = cluster.tolerex(&["status"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains(&format!("lost: {lost}")), "{status}");
    let (_, document) = http_get(&cluster, "/status");
    assert!(document.contains(&lost), "{document}");
    // And once more, as usual.
    leader.kill();
    let _leader = cluster.by_hand("leader-1");
    get_all(&mut cluster.client(), "new", 0..40, "new");
}

/// `tolerex up` prints what its leader has lost.
#[test]
fn up_says_what_a_leader_on_an_older_copy_has_lost() {
    let mut cluster = Cluster::start(&[]);
    set_all(&mut cluster.client(), "k", 0..5, "v");
    cluster.stop();
    let (dir, copy) = (cluster.dir().join("leader-1"), cluster.dir().join("copy"));
    copy_dir(&dir, &copy);
    cluster.up();
    set_all(&mut cluster.client(), "lost", 0..40, "old");
    // What it has committed is told with the heartbeats of members, once a second.
    tolerex::clock::sleep(Duration::from_secs(3));
    cluster.stop();
    fs::remove_dir_all(&dir).expect("removed");
    copy_dir(&copy, &dir);
    cluster.up();
    crate::support::wait_until("it says so", Duration::from_secs(10), || {
        let errors = cluster.errors();
        errors.contains("leader-1: this leader's directory is an older copy")
    });
    get_all(&mut cluster.client(), "k", 0..5, "v");
}

/// The answer of leader-1 to GET: its status code and its body.
fn http_get(cluster: &Cluster, path: &str) -> (u16, String) {
    let address = cluster.leaders("http").remove(0);
    let mut stream = std::net::TcpStream::connect(&address).expect("connected");
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let code = head.split(' ').nth(1).expect("a code");
    (code.parse().expect("a number"), body.to_owned())
}

/// A leader that waits for members says so everywhere, and at once; with as many reports as it
/// needs it does not wait for those that are down.
#[test]
fn a_leader_that_waits_for_members_answers_with_what_it_waits_for() {
    let cluster = Cluster::start(&[]);
    let clock = SystemClock::new();
    set_all(&mut cluster.client(), "k", 0..5, "v");
    for name in ["leader-1", "member-2"] {
        cluster.kill(name);
    }
    // Two of three members are N - tolerance + 1.
    let began = clock.now();
    let mut leader = cluster.by_hand("leader-1");
    set_all(&mut cluster.client(), "k", 5..9, "v");
    let waited = clock.now().since(began);
    assert!(waited < Duration::from_secs(8), "{waited:?}");
    leader.kill();
    cluster.kill("member-3");
    let began = clock.now();
    let _leader = cluster.by_hand("leader-1");
    let reason = "no leader serves yet: 1 of 2 members have reported to the elected one";
    let mut client = cluster.client();
    assert_eq!(client.command("SET a b"), format!("ERROR: {reason}"));
    let waited = clock.now().since(began);
    assert!(waited < Duration::from_secs(8), "{waited:?}");
    let status = client.status();
    assert_eq!(
        (&status["role"], &status["reason"]),
        (&"waiting".into(), &reason.into())
    );
    let shown = cluster.tolerex(&["status"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let lines = format!("role: waiting\nreason: {reason}\n");
    assert!(shown.replace('\r', "").contains(&lines), "{shown}");
    let (code, document) = http_get(&cluster, "/status");
    assert!(code == 200 && document.contains(reason), "{document}");
    for path in ["/readyz?verbose", "/kv/k-1"] {
        let (code, body) = http_get(&cluster, path);
        assert!(
            code == 503 && body.contains(reason),
            "{path}: {code} {body}"
        );
    }
    crate::support::wait_until("it serves", Duration::from_secs(25), || {
        cluster.client().status()["role"] == "leader"
    });
}

/// A follower on an older copy of its directory: the others know what it had stored, so it stops
/// with one line before it counts for anything. It comes back under a new id only.
#[test]
fn a_follower_on_an_older_copy_stops_with_one_line() {
    let cluster = Cluster::start(&["--leaders", "3"]);
    let addresses = cluster.leaders("hatokuse");
    let all = addresses.join(",");
    let write = |key: &str| {
        let output = crate::support::cluster::tolerex(&["set", key, "v", "--addr", &all]);
        assert!(output.status.success(), "{}", errors(&output));
    };
    (0..5).for_each(|number| write(&format!("before-{number}")));
    let role = |number: usize| {
        let address = addresses[number].parse().expect("an address");
        let mut client = crate::support::client::Client::connect(address);
        client.status()["role"].as_str().expect("a role").to_owned()
    };
    let follower = (0..3).find(|number| role(*number) == "follower");
    let name = format!("leader-{}", follower.expect("one follows") + 1);
    cluster.kill(&name);
    let dir = cluster.dir().join(&name);
    let copy = cluster.dir().join("copy");
    copy_dir(&dir, &copy);
    let mut running = cluster.by_hand(&name);
    let is_stored = |number: u64| {
        let output = crate::support::cluster::tolerex(&["group", "--json", "--addr", &all]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let view: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let peers = view["peers"].as_array().cloned().unwrap_or_default();
        let stored = peers.iter().filter_map(|peer| peer["matched"].as_u64());
        peers.len() == 3 && stored.min() >= Some(number)
    };
    (0..30).for_each(|number| write(&format!("after-{number}")));
    crate::support::wait_until("all have stored it", Duration::from_secs(20), || {
        is_stored(30)
    });
    running.kill();
    fs::remove_dir_all(&dir).expect("removed");
    copy_dir(&copy, &dir);
    let mut command = cluster.by_hand_command(&name);
    let output = run(&mut command, Duration::from_secs(30));
    let text = errors(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        !text.contains("panicked") && !text.contains("backtrace"),
        "{text}"
    );
    let says = |line: &&str| line.starts_with("error: ") && line.contains("is an older copy");
    let line = text.lines().find(says).unwrap_or_else(|| panic!("{text}"));
    assert!(
        line.contains("group remove") && line.contains("--join"),
        "{line}"
    );
    (0..3).for_each(|number| write(&format!("without-{number}")));
}

/// All leaders of a group on older copies of their directories: nobody has the entries that members
/// know to be committed, so nobody is elected, and clients are told. Started with the loss accepted
/// they serve what they have, and say what is lost.
#[test]
fn a_group_restored_from_older_copies_serves_only_when_the_loss_is_accepted() {
    let cluster = Cluster::start(&["--leaders", "3"]);
    let all = cluster.leaders("hatokuse").join(",");
    let names = ["leader-1", "leader-2", "leader-3"];
    let tolerex = |args: &[&str]| {
        let output = tolerex(&[args, &["--addr", &all]].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &errors(&output);
        (output.status.success(), text)
    };
    let write = |key: &str| {
        crate::support::wait_until(key, Duration::from_secs(20), || {
            tolerex(&["set", key, "v"]).0
        });
    };
    (0..5).for_each(|number| write(&format!("before-{number}")));
    let copy = |name: &str| cluster.dir().join(format!("{name}.copy"));
    for name in names {
        cluster.kill(name);
        copy_dir(&cluster.dir().join(name), &copy(name));
    }
    let mut leaders = names.map(|name| cluster.by_hand(name));
    (0..20).for_each(|number| write(&format!("after-{number}")));
    // What is committed is told with the heartbeats of members, once a second.
    tolerex::clock::sleep(Duration::from_secs(3));
    leaders.iter_mut().for_each(Server::kill);
    for name in names {
        fs::remove_dir_all(cluster.dir().join(name)).expect("removed");
        copy_dir(&copy(name), &cluster.dir().join(name));
    }
    let mut leaders = names.map(|name| cluster.by_hand(name));
    let mut reason = String::new();
    crate::support::wait_until("they say what is missing", Duration::from_secs(20), || {
        let status = cluster.client().status();
        reason = status["reason"].as_str().unwrap_or_default().to_owned();
        status["role"] == "waiting" && reason.contains("--accept-loss")
    });
    let (is_done, text) = tolerex(&["set", "new", "v"]);
    assert!(
        !is_done && text.contains("lack committed entries"),
        "{text}"
    );
    let accepted = reason.split("--accept-loss ").nth(1).expect("a flag");
    let accepted = accepted.split(' ').next().expect("an entry").to_owned();
    leaders.iter_mut().for_each(Server::kill);
    let _leaders = names.map(|name| cluster.by_hand_with(name, &["--accept-loss", &accepted]));
    write("new");
    (0..5).for_each(|number| assert!(tolerex(&["get", &format!("before-{number}")]).0));
    assert!(!tolerex(&["get", "after-7"]).0);
    let (_, status) = tolerex(&["status"]);
    assert!(
        status.contains("lost: ") && status.contains("LOST"),
        "{status}"
    );
}
