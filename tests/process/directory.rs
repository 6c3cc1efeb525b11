//! What does `tolerex up` do with a data directory that is damaged, or named badly, and where
//! memory is limited?

use std::fs;

use crate::errors;
use crate::support::cluster::{Cluster, tolerex};

#[test]
fn a_damaged_or_missing_list_of_processes_is_made_anew_and_told() {
    let mut cluster = Cluster::start(&["--members", "4"]);
    crate::set_all(&mut cluster.client(), "k", 0..50, "v");
    assert!(cluster.stop().success(), "{}", cluster.errors());
    cluster.set_flags(&[]);
    let path = cluster.dir().join("cluster.json");
    let before = cluster.manifest();
    let texts: [Option<&[u8]>; 5] = [
        Some(b""),
        Some(b"{\"proc"),
        Some(b"\0\0\xff"),
        Some(b"{\"processes\":[]}"),
        None,
    ];
    for text in texts {
        match text {
            Some(text) => fs::write(&path, text).expect("written"),
            None => fs::remove_file(&path).expect("it is there"),
        }
        if text.is_some_and(|text| text.starts_with(b"{\"proc\"") || text.is_empty()) {
            let dir = cluster.dir().to_str().expect("UTF-8");
            let output = tolerex(&["status", "--data-dir", dir]);
            let told = errors(&output);
            assert_eq!(output.status.code(), Some(1), "{told}");
            for part in ["cluster.json is damaged: ", "`tolerex up --data-dir "] {
                assert!(told.contains(part), "{told}");
            }
        }
        cluster.up();
        assert!(cluster.ready_line().contains(", 4 members, "), "{text:?}");
        let told = cluster.errors();
        assert!(told.contains("it is made anew from "), "{text:?}: {told}");
        crate::get_all(&mut cluster.client(), "k", 0..50, "v");
        assert!(cluster.stop().success(), "{}", cluster.errors());
        let places = |manifest: &serde_json::Value| {
            let rows = manifest["processes"].as_array().expect("rows").iter();
            let places = rows.map(|row| ["name", "role", "data_dir"].map(|f| row[f].to_string()));
            places.collect::<Vec<_>>()
        };
        assert_eq!(places(&cluster.manifest()), places(&before));
    }
}

#[test]
fn a_directory_that_would_not_be_the_one_given_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let named = dir.path().join("{name}");
    let given = named.to_str().expect("UTF-8");
    let output = tolerex(&["up", "--data-dir", given]);
    let told = errors(&output);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(
        told.contains(given) && told.contains("accepted: a path without"),
        "{told}"
    );
    assert!(!named.exists());
}

#[test]
fn a_limit_of_memory_is_told_at_the_start() {
    let cluster = Cluster::start_after("ulimit -v 16000000", &["--members", "2"], &[]);
    for name in ["leader-1", "member-1"] {
        let log = cluster.log(name);
        let told = log.lines().filter(|line| line.contains("(ulimit -v)"));
        let told: Vec<&str> = told.collect();
        assert_eq!(told.len(), 1, "{log}");
        assert!(
            told[0].contains("WARN") && told[0].contains("16384000000 bytes"),
            "{told:?}"
        );
    }
    let unlimited = Cluster::start(&["--members", "2"]);
    assert!(!unlimited.log("leader-1").contains("ulimit"));
}
