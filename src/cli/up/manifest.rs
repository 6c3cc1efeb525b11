//! `cluster.json`: which processes a data directory's cluster has, where they listen, and how they
//! are.
//!
//! Replaced by write, sync, rename, so that a reader sees a whole file at any moment. It stays
//! after a stop. Only the `tolerex up` that holds the directory's lock writes it.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::disk::private;

/// The file's name within a data directory.
pub const FILE: &str = "cluster.json";

/// The file is there, and is not what this module wrote.
#[derive(Debug, thiserror::Error)]
#[error("{} is damaged: {reason}", file.display())]
pub struct Damaged {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Leaders first, then members, each by number.
    pub processes: Vec<Process>,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its node name.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Its pid, the last one if it does not run; 0 before its first start.
    pub pid: u32,
    /// How it is, as far as the last `up` knew.
    pub state: State,
    /// Where its data and its log are; absolute.
    pub data_dir: PathBuf,
    /// Where other nodes reach it.
    pub rpc: String,
    /// Where clients reach it; leaders only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hatokuse: Option<String>,
    /// Where clients reach it over HTTP; leaders only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
}

/// The role of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A leader.
    Leader,
    /// A member.
    Member,
}

impl Role {
    /// The subcommand that runs such a process, which is also what a reader calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Leader => "leader",
            Role::Member => "member",
        }
    }
}

/// How a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It was started, and its end was not seen.
    Running,
    /// It was told to end, and did.
    Stopped,
    /// It ended by itself.
    Died,
}

impl Manifest {
    /// Reads the file of a data directory; `None` if there is none.
    pub fn read(data_dir: &Path) -> Result<Option<Manifest>> {
        let path = data_dir.join(FILE);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        match serde_json::from_slice(&text) {
            Ok(manifest) => Ok(Some(manifest)),
            Err(error) => Err(Damaged {
                file: path,
                reason: error.to_string(),
            }
            .into()),
        }
    }

    /// Replaces the file; when this returns, the new one is on disk.
    pub fn write(&self, data_dir: &Path) -> Result<()> {
        let mut text = serde_json::to_string(self).context("a manifest has a JSON form")?;
        text.push('\n');
        let (path, new) = (data_dir.join(FILE), data_dir.join("cluster.json.new"));
        let replace = || {
            let mut file = private::create(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(data_dir)?.sync_all()
        };
        replace().with_context(|| format!("cannot write {}", path.display()))
    }

    /// The processes of one role.
    pub fn of_role(&self, role: Role) -> impl Iterator<Item = &Process> {
        self.processes
            .iter()
            .filter(move |process| process.role == role)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Manifest {
        let process = |name: &str, role, hatokuse: Option<&str>| Process {
            name: name.to_owned(),
            role,
            pid: 7,
            state: State::Running,
            data_dir: format!("/d/{name}").into(),
            rpc: "127.0.0.1:5555".to_owned(),
            hatokuse: hatokuse.map(str::to_owned),
            http: hatokuse.map(|_| "127.0.0.1:8080".to_owned()),
        };
        Manifest {
            processes: vec![
                process("leader-1", Role::Leader, Some("127.0.0.1:6666")),
                process("member-1", Role::Member, None),
            ],
        }
    }

    #[test]
    fn what_was_written_is_read_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(Manifest::read(dir.path()).expect("readable"), None);
        for manifest in [example(), Manifest::default(), example()] {
            manifest.write(dir.path()).expect("writable");
            assert_eq!(
                Manifest::read(dir.path()).expect("readable"),
                Some(manifest)
            );
        }
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 1);
    }

    #[test]
    fn the_form_is_the_documented_one() {
        let text = serde_json::to_string(&example()).expect("JSON");
        let expected = concat!(
            r#"{"processes":[{"name":"leader-1","role":"leader","pid":7,"state":"running","#,
            r#""data_dir":"/d/leader-1","rpc":"127.0.0.1:5555","hatokuse":"127.0.0.1:6666","#,
            r#""http":"127.0.0.1:8080"},"#,
            r#"{"name":"member-1","role":"member","pid":7,"state":"running","#,
            r#""data_dir":"/d/member-1","rpc":"127.0.0.1:5555"}]}"#
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join(FILE), "{").expect("writable");
        let error = format!("{:#}", Manifest::read(dir.path()).expect_err("damaged"));
        assert!(error.contains("cluster.json is damaged: "), "{error}");
    }
}
