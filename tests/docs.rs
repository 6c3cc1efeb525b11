//! Do the example files and README's tables say what the tables of settings say?
//!
//! `UPDATE_GOLDENFILES=1` rewrites them instead.

use std::fs;
use std::path::{Path, PathBuf};

use tolerex::config::leader::{self, LeaderConfig};
use tolerex::config::member::{self, MemberConfig};
use tolerex::config::{Setting, Sources, docs, tolerance};
use tolerex::protocol::http::problem::Kind;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn is_update() -> bool {
    std::env::var_os("UPDATE_GOLDENFILES").is_some()
}

fn check(path: &Path, expected: &str) {
    if is_update() {
        fs::write(path, expected).expect("the file can be written");
    }
    let found = fs::read_to_string(path).expect("the file is there");
    assert!(
        found == expected,
        "{} differs from the table of settings; UPDATE_GOLDENFILES=1 rewrites it",
        path.display()
    );
}

fn from_file(path: PathBuf) -> Sources {
    Sources {
        file: Some(path),
        ..Sources::default()
    }
}

#[test]
fn the_example_files_hold_every_setting_at_its_default() {
    let (leader, member) = (
        root().join("config/leader.toml"),
        root().join("config/member.toml"),
    );
    check(&leader, &docs::example_file("leader", leader::SETTINGS));
    check(&member, &docs::example_file("member", member::SETTINGS));
    assert_eq!(
        LeaderConfig::load(&from_file(leader))
            .expect("valid")
            .config,
        LeaderConfig::load(&Sources::default())
            .expect("valid")
            .config
    );
    assert_eq!(
        MemberConfig::load(&from_file(member))
            .expect("valid")
            .config,
        MemberConfig::load(&Sources::default())
            .expect("valid")
            .config
    );
    let conf = root().join("config/tolerance.conf");
    assert_eq!(tolerance::read(&conf), Ok(tolerance::TOLERANCE_DEFAULT));
}

/// README holds each table between `<!-- leader settings -->` and `<!-- end -->`.
#[test]
fn the_tables_of_the_readme_are_those_of_the_program() {
    let path = root().join("README.md");
    let Ok(mut text) = fs::read_to_string(&path) else {
        println!("skipped: there is no README.md");
        return;
    };
    let tables: [(&str, &[Setting]); 2] =
        [("leader", leader::SETTINGS), ("member", member::SETTINGS)];
    for (role, table) in tables {
        let begin = format!("<!-- {role} settings -->\n");
        let (before, rest) = text.split_once(&begin).expect("the table's first mark");
        let (_, after) = rest
            .split_once("<!-- end -->")
            .expect("the table's last mark");
        text = format!(
            "{before}{begin}\n{}\n<!-- end -->{after}",
            docs::markdown(table)
        );
    }
    check(&path, &text);
}

#[test]
fn readme_has_every_problem_beside_its_status() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README");
    let rows: Vec<&str> = readme
        .lines()
        .filter(|line| line.starts_with("| "))
        .collect();
    for kind in Kind::ALL {
        let (status, name) = (kind.status().to_string(), format!("`{}`", kind.name()));
        let is_there = |row: &&str| {
            let mut cells = row.split('|').skip(1);
            let mut has = |text: &str| cells.next().is_some_and(|cell| cell.contains(text));
            has(&status) && has(&name)
        };
        assert!(rows.iter().any(is_there), "{status} {name}");
    }
}
