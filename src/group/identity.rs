//! Who this leader is in its group: the file `peer.id`, made once by an explicit bootstrap.
//!
//! It holds the peer's id and the voters of its group, as text, beneath the checksum of
//! [`crate::disk::atomic_file`]:
//!
//! ```text
//! format 1
//! peer 0123456789abcdef
//! voters 0123456789abcdef
//! state ready
//! ```
//!
//! The voters are those with which the group began; who takes part since then the log and the
//! snapshots say. A leader that joined a group has none there: it learns all from a snapshot.
//!
//! # Which directories start
//!
//! A leader that lost its disk must not vote again under its old id, and one that lost its id must
//! not invent another for an old journal. So the file and the journal belong together:
//!
//! | `peer.id` | journal | [`Bootstrap::New`] or [`Bootstrap::Join`] | [`Bootstrap::Existing`] |
//! |---|---|---|---|
//! | none | none | made | refused: not set up |
//! | none | there | refused | refused |
//! | `state new` | none or empty | set up to the end | refused: not set up |
//! | `state ready` | none | refused | refused |
//! | `state ready` | there | started | started |
//!
//! `new` is written before the journal is made and `ready` once it is durable: a crash in between
//! leaves a directory that the next bootstrap finishes. Nothing was proposed until then.

use std::path::{Path, PathBuf};

use crate::disk::atomic_file;
use crate::disk::fs::FileSystem;
use crate::group::GroupError;
use crate::ids::PeerId;

/// The file's name in the group's directory.
pub const FILE_NAME: &str = "peer.id";

/// Whether a group may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// Make a group of one in a directory that has none; an existing one is started.
    New,
    /// In a directory that has none, make a leader that waits to be added to a group, always under
    /// a new id; an existing one is started.
    Join,
    /// Start an existing group only.
    Existing,
}

/// What `peer.id` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// This leader.
    pub peer: PeerId,
    /// The voters with which the group began; empty for a leader that joined it.
    pub voters: Vec<PeerId>,
    /// Its journal is durable.
    pub is_ready: bool,
}

impl Identity {
    /// A new id in a group of its own, or in none yet.
    pub fn random(joins: bool) -> Result<Identity, GroupError> {
        loop {
            let id = getrandom::u64().map_err(|source| GroupError::Random(source.to_string()))?;
            if id != 0 {
                return Ok(Identity {
                    peer: PeerId(id),
                    voters: match joins {
                        true => Vec::new(),
                        false => vec![PeerId(id)],
                    },
                    is_ready: false,
                });
            }
        }
    }

    /// Reads the file in `dir`; none when there is none.
    pub fn read(fs: &dyn FileSystem, dir: &Path) -> Result<Option<Identity>, GroupError> {
        let path = path(dir);
        let Some(bytes) = atomic_file::read(fs, &path)? else {
            return Ok(None);
        };
        let content = String::from_utf8_lossy(&bytes);
        match Identity::parse(&content) {
            Some(identity) => Ok(Some(identity)),
            None => Err(GroupError::IdContent {
                file: path.display().to_string(),
                content: content.into_owned(),
            }),
        }
    }

    /// Replaces the file in `dir`, durably.
    pub fn write(&self, fs: &dyn FileSystem, dir: &Path) -> Result<(), GroupError> {
        Ok(atomic_file::write(
            fs,
            &path(dir),
            self.format().as_bytes(),
        )?)
    }

    fn format(&self) -> String {
        let voters: Vec<String> = self.voters.iter().map(PeerId::to_string).collect();
        format!(
            "format 1\npeer {}\nvoters {}\nstate {}\n",
            self.peer,
            voters.join(" "),
            if self.is_ready { "ready" } else { "new" }
        )
    }

    fn parse(text: &str) -> Option<Identity> {
        let mut lines = text.lines();
        if lines.next()? != "format 1" {
            return None;
        }
        let peer = parse_id(lines.next()?.strip_prefix("peer ")?)?;
        let voters: Vec<PeerId> = lines
            .next()?
            .strip_prefix("voters ")?
            .split_terminator(' ')
            .map(parse_id)
            .collect::<Option<_>>()?;
        let is_ready = match lines.next()?.strip_prefix("state ")? {
            "ready" => true,
            "new" => false,
            _ => return None,
        };
        let is_founder = voters.is_empty() || voters.contains(&peer);
        let is_complete = lines.next().is_none() && is_founder;
        is_complete.then_some(Identity {
            peer,
            voters,
            is_ready,
        })
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join(FILE_NAME)
}

fn parse_id(text: &str) -> Option<PeerId> {
    let id = u64::from_str_radix(text, 16).ok()?;
    (id != 0 && text.len() == 16).then_some(PeerId(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_reads_back_and_anything_else_is_refused() {
        let mut identity = Identity::random(true).unwrap();
        assert_eq!(Identity::parse(&identity.format()), Some(identity));
        identity = Identity::random(false).unwrap();
        for is_ready in [false, true] {
            identity.is_ready = is_ready;
            assert_eq!(Identity::parse(&identity.format()), Some(identity.clone()));
        }
        let good = identity.format();
        let other = good.replace("voters ", "voters 00000000000000ff\nx ");
        for bad in ["", "format 2\n", &good[..good.len() - 3], &other] {
            assert_eq!(Identity::parse(bad), None, "{bad:?}");
        }
    }
}
