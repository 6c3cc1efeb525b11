//! Bytes that changed on disk are found, named and never served.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::client::Client;
use crate::support::cluster::{Cluster, member, run, tolerex};
use crate::support::wait_until;
use crate::{errors, get_all, set_all};

/// Flips a bit of a byte.
fn flip(file: &Path, at: u64) {
    let mut bytes = fs::read(file).expect("read");
    bytes[usize::try_from(at).expect("in the file")] ^= 1;
    fs::write(file, bytes).expect("written");
}

/// Looks for `needle` in the files below `dir`, but not in logs for people; gives the file and the
/// offset of the needle's last byte.
fn find(dir: &Path, needle: &[u8]) -> Option<(PathBuf, u64)> {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir)
        .expect("listed")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            if let Some(found) = find(&path, needle) {
                return Some(found);
            }
            continue;
        }
        let bytes = fs::read(&path).expect("read");
        let is_text_log = path.parent().and_then(Path::file_name) == path.file_stem();
        let mut windows = bytes.windows(needle.len());
        if let (false, Some(at)) = (is_text_log, windows.position(|window| window == needle)) {
            return Some((path, (at + needle.len() - 1) as u64));
        }
    }
    None
}

fn copy_files(from: &Path, to: &Path) {
    fs::create_dir(to).expect("made");
    for entry in fs::read_dir(from).expect("listed") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
}

/// The number behind `offset` in a line that names `file`.
fn named_offset(text: &str, file: &Path) -> Option<u64> {
    let name = file.file_name()?.to_str()?;
    let line = text
        .lines()
        .find(|line| line.contains(name) && line.contains("offset"))?;
    let rest = line.split("offset").nth(1)?;
    let digits = rest.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    digits[..end].parse().ok()
}

#[test]
fn a_leader_with_a_damaged_journal_refuses_to_start_naming_file_and_offset() {
    let mut cluster = Cluster::start(&[]);
    set_all(&mut cluster.client(), "some-key", 0..100, "v");
    assert!(cluster.stop().success());
    let dir = cluster.dir().join("leader-1");
    let (file, at) = find(&dir, b"some-key-5").expect("the journal names its keys");
    flip(&file, at);
    let output = run(
        &mut cluster.by_hand_command("leader-1"),
        Duration::from_secs(20),
    );
    let text = errors(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let offset = named_offset(&text, &file);
    // The start of the record or group that holds the byte.
    assert!(
        offset.is_some_and(|offset| offset <= at && offset + (1 << 20) > at),
        "{text}"
    );
    // It is left as it is: with the byte put right, all is there.
    flip(&file, at);
    cluster.up();
    get_all(&mut cluster.client(), "some-key", 0..100, "v");
}

#[test]
fn a_damaged_record_is_read_from_the_other_replica_and_named_in_the_log() {
    let members = ["--members", "2"];
    let mut cluster = Cluster::start_with(&members, &[("TOLEREX_CACHE_BYTES", "0B")]);
    let mut client = cluster.client();
    set_all(&mut client, "k", 0..30, "payload");
    let dir = cluster.dir().join("member-1");

    // While the member runs, so that only reading can find it.
    let (file, at) = find(&dir, b"payload-2").expect("the log holds its payloads");
    flip(&file, at);
    for _ in 0..4 {
        get_all(&mut client, "k", 0..30, "payload");
    }
    let log = cluster.log("member-1");
    if log.contains("damaged") {
        let offset = named_offset(&log, &file).expect("file and offset are named");
        assert!(offset <= at && offset + 4096 > at, "{offset} {at}\n{log}");
    }

    // And at a start, below what was synced.
    drop(client);
    assert!(cluster.stop().success());
    cluster.up();
    let log = cluster.log("member-1");
    let offset = named_offset(&log, &file).expect("file and offset are named");
    assert!(
        offset <= at && offset + (1 << 20) > at,
        "{offset} {at}\n{log}"
    );
    get_all(&mut cluster.client(), "k", 0..30, "payload");
    assert_eq!(cluster.client().command("COUNT"), "30");
}

#[test]
fn copies_lost_with_a_segment_count_as_missing_from_the_next_start_on() {
    let cluster = Cluster::start(&["--members", "2"]);
    set_all(&mut cluster.client(), "k", 0..60, "v");
    let data_dir = cluster.dir().to_str().expect("UTF-8");
    let control = |verb: &str, name: &str| {
        let output = tolerex(&[verb, name, "--data-dir", data_dir]);
        assert!(output.status.success(), "{}", errors(&output));
    };
    let shown = |client: &mut Client, key: &str| client.command(&format!("WHERE {key}"));
    control("stop", "member-1");
    let segment = cluster.dir().join("member-1/log/00000001.log");
    fs::write(&segment, b"").expect("cut");
    control("start", "member-1");
    let is_told = |client: &mut Client| {
        let messages = member(&client.status(), "member-1")["messages"].clone();
        shown(client, "k-0").contains(":missing") && messages == 0
    };
    let mut client = cluster.client();
    wait_until("the losses are told", Duration::from_secs(30), || {
        is_told(&mut client)
    });
    assert!(shown(&mut client, "k-0").contains(":up"));
    // New ones are stored there, and an overwritten one is whole again.
    set_all(&mut client, "n", 0..10, "v");
    assert_eq!(client.command("SET k-0 v0"), "OK");
    let place = shown(&mut client, "k-0");
    assert!(!place.contains("missing"), "{place}");
    assert_eq!(member(&client.status(), "member-1")["messages"], 11);
    // Told again to each leader: here to the next start of the same one.
    control("stop", "leader-1");
    control("start", "leader-1");
    let mut client = cluster.client();
    wait_until("the losses are told again", Duration::from_secs(30), || {
        shown(&mut client, "k-1").contains(":missing")
    });
    get_all(&mut client, "k", 1..60, "v");
    wait_until("all losses are told", Duration::from_secs(30), || {
        member(&client.status(), "member-1")["missing"] == 59
    });
    // The member notes it until none of what it lost is listed any more.
    let note = cluster.dir().join("member-1/incomplete");
    assert!(note.exists());
    set_all(&mut client, "k", 1..60, "v");
    wait_until("the note is removed", Duration::from_secs(30), || {
        !note.exists()
    });
    assert!(
        member(&client.status(), "member-1")
            .get("missing")
            .is_none()
    );
    cluster.kill("member-2");
    get_all(&mut client, "n", 0..10, "v");
}

/// The log of a member is replaced by an older copy of it, and the rest of its directory stays. The
/// member finds nothing wrong; the leader does, because the member has fewer records than the
/// metadata lists.
#[test]
fn copies_lost_with_a_log_that_was_rolled_back_count_as_missing() {
    let cluster = Cluster::start(&["--members", "2"]);
    set_all(&mut cluster.client(), "k", 0..10, "v");
    let data_dir = cluster.dir().to_str().expect("UTF-8");
    let control = |verb: &str, name: &str| {
        let output = tolerex(&[verb, name, "--data-dir", data_dir]);
        assert!(output.status.success(), "{}", errors(&output));
    };
    let (log, copy) = (
        cluster.dir().join("member-1/log"),
        cluster.dir().join("copy"),
    );
    control("stop", "member-1");
    copy_files(&log, &copy);
    control("start", "member-1");
    cluster.wait_for_state("member-1", "up");
    set_all(&mut cluster.client(), "lost", 0..10, "v");
    control("stop", "member-1");
    fs::remove_dir_all(&log).expect("removed");
    fs::rename(&copy, &log).expect("renamed");
    control("start", "member-1");
    let mut client = cluster.client();
    wait_until("the losses are told", Duration::from_secs(30), || {
        member(&client.status(), "member-1")["missing"] == 10
    });
    let note = cluster.dir().join("member-1/incomplete");
    assert!(!note.exists(), "the member does not know of it");
    let place = client.command("WHERE lost-0");
    assert!(place.contains(":missing"), "{place}");
    let place = client.command("WHERE k-0");
    assert!(!place.contains(":missing"), "{place}");
    get_all(&mut client, "k", 0..10, "v");
    get_all(&mut client, "lost", 0..10, "v");
}
