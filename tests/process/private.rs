//! Are messages, keys and logs for their owner only, whatever the umask, and is wider told?

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::support::cluster::Cluster;

/// All paths below a directory that are not for their owner only, with their modes.
fn wider(dir: &Path, found: &mut Vec<(PathBuf, String)>) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        let meta = fs::symlink_metadata(&path).expect("an entry");
        let wanted = if meta.is_dir() { 0o700 } else { 0o600 };
        let mode = meta.mode() & 0o7777;
        if mode != wanted {
            found.push((path.clone(), format!("{mode:04o}")));
        }
        count += 1;
        if meta.is_dir() {
            count += wider(&path, found);
        }
    }
    count
}

#[test]
fn all_that_is_made_is_for_its_owner_only_whatever_the_umask() {
    for (umask, engine) in [("umask 000", "log"), ("umask 777", "files")] {
        let flags = ["--leaders", "3", "--members", "2", "--engine", engine];
        let small = [("TOLEREX_SNAPSHOT_BYTES", "1MiB")];
        let mut cluster = Cluster::start_after(umask, &flags, &small);
        let mut client = cluster.client();
        crate::set_all(&mut client, "k", 0..12_000, "secret");
        let check = |cluster: &Cluster| {
            let mut found = Vec::new();
            let count = wider(cluster.dir(), &mut found);
            assert!(found.is_empty(), "{umask}, {engine}: {found:?}");
            assert!(count > 50, "only {count} entries were looked at");
        };
        // Hints and what marks an orderly end come with the stop, the rest before.
        check(&cluster);
        assert!(cluster.stop().success(), "{}", cluster.errors());
        check(&cluster);
        assert!(!cluster.errors().contains("chmod"), "{}", cluster.errors());
    }
}

#[test]
fn a_directory_that_is_wider_is_named_with_the_command_that_mends_it() {
    let mut cluster = Cluster::start(&[]);
    assert!(cluster.stop().success(), "{}", cluster.errors());
    let member = cluster.dir().join("member-1");
    for path in [member.clone(), member.join("LOCK"), member.join("log")] {
        let mode = fs::metadata(&path).expect("it is there").mode() | 0o044;
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("changed");
    }
    cluster.up();
    let dir = fs::canonicalize(cluster.dir()).expect("a directory");
    let lines = |text: &str| {
        let lines = text
            .lines()
            .filter(|line| line.contains("open to other users"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let told = lines(&cluster.errors());
    assert_eq!(told.len(), 1, "{told:?}");
    let mend = format!("chmod -R go= {}", dir.display());
    assert!(
        told[0].starts_with("warning: ") && told[0].ends_with(&mend),
        "{told:?}"
    );
    let logged = lines(&cluster.log("member-1"));
    assert_eq!(logged.len(), 1, "{logged:?}");
    let mend = format!("chmod -R go= {}", dir.join("member-1").display());
    assert!(
        logged[0].contains("WARN") && logged[0].ends_with(&mend),
        "{logged:?}"
    );
    assert!(lines(&cluster.log("member-2")).is_empty());
}
