//! Who this member is, from its data directory.
//!
//! | file | content | written |
//! |---|---|---|
//! | `cluster.id` | see `disk::cluster_file` | at the first start |
//! | `member.id` | version 1, u64 member id | last of all when an identity is made; at each start |
//! | `incarnation` | version 1, u64 count of starts | at each start, and when refused |
//! | `committed` | see `member::witness` | now and then |
//! | `incomplete` | version 1, u64 1 | at a start that found records lost; see [`forget_losses`] |
//! | `fence` | see `replica::fence` | before the effect of what raises it; at each start |
//!
//! Integers little endian, each file wrapped and checksummed by `disk::atomic_file`.
//!
//! **R11.** `member.id` claims that fence, incarnation and data are complete: leaders count on the
//! copies of that id. So it is written after the others, and when one of them is missing or damaged
//! the member does not start: it may be a disk that is not mounted, or a file that can be put back.
//! With `--replace` the id is given up instead: it is removed, durably, before anything is put in
//! the place of what is missing, and the member gets a new id, under which it holds nothing. Its
//! old records stay where they are, for the audit to release.
//!
//! A first start that was cut short leaves parts too. It is told by their values, which no member
//! has that ever took a record: no id, at most the first incarnation, at most the lowest fence.
//! Then nothing is lost, and the start begins anew.
//!
//! Not seen: a log directory that lost some of its newest segments as whole files.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::disk::atomic_file::{self, read_integer, write_integer};
use crate::disk::error::LogError;
use crate::disk::fs::FileSystem;
use crate::ids::{Fence, MemberId};
use crate::replica::fence;
use crate::storage::{EngineKind, opening};

/// Who this member is, since this start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Made once for a data directory.
    pub id: MemberId,
    /// How often the data directory was started under this id; durable.
    pub incarnation: u64,
    /// Random, new at each start.
    pub nonce: u64,
    /// The highest fence executed.
    pub fence: Fence,
}

/// What the data directory says of the member that ran in it before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// All is there: it goes on under its id.
    Complete {
        /// The member's id.
        id: MemberId,
        /// The last start's incarnation.
        incarnation: u64,
        /// The highest fence executed.
        fence: Fence,
    },
    /// It is new, or its id was given up: it gets a new id.
    None,
}

/// The file of the fence in a data directory.
pub fn fence_path(data_dir: &Path) -> PathBuf {
    data_dir.join("fence")
}

/// The identity in a data directory has a part that is missing or damaged.
#[derive(Debug, thiserror::Error)]
#[error(
    "{}: put back what is missing (is a disk not mounted?) and start again; or start with \
     --replace: then this member gets a new id, and its copies under the old one are given up",
    parts.join("; ")
)]
pub struct Incomplete {
    /// The files, each with what is wrong with it.
    parts: Vec<String>,
}

/// Looks at what is there, before the engine is opened. An identity of which a part is missing or
/// damaged is an error, [`Incomplete`]; with `replace` it is given up for good.
pub fn examine(
    fs: &dyn FileSystem,
    data_dir: &Path,
    engine: EngineKind,
    replace: bool,
) -> anyhow::Result<Past> {
    let id_path = data_dir.join("member.id");
    let id = found(read_integer(fs, &id_path))?;
    let incarnation = found(read_integer(fs, &data_dir.join("incarnation")))?;
    let fence = found(read_fence(fs, data_dir))?;
    let data = found(find_data(fs, data_dir, engine))?;
    let is_unfinished = id == Err(MISSING.to_owned())
        && is_missing_or(&incarnation, 1)
        && is_missing_or(&fence, Fence::default())
        && (fence.is_ok() || incarnation.is_err());
    match (id, incarnation, fence, data) {
        (Ok(id), Ok(incarnation), Ok(fence), Ok(())) => Ok(Past::Complete {
            id: MemberId(id),
            incarnation,
            fence,
        }),
        _ if is_unfinished => Ok(Past::None),
        (id, incarnation, fence, data) => {
            let engine = engine.to_string();
            let parts = [
                ("member.id", id.as_ref().err()),
                ("incarnation", incarnation.as_ref().err()),
                ("fence", fence.as_ref().err()),
                (engine.as_str(), data.as_ref().err()),
            ];
            let bad = parts.into_iter().filter_map(|(what, error)| {
                let path = data_dir.join(what);
                Some(format!("{} is {}", path.display(), error?))
            });
            let parts: Vec<String> = bad.collect();
            if !replace {
                return Err(Incomplete { parts }.into());
            }
            log::error!("{}: this member gets a new id", parts.join("; "));
            if let Ok(id) = id {
                log::error!("member id {id:016x} is given up, its copies count as lost");
            }
            give_up(fs, data_dir, &id_path)?;
            Ok(Past::None)
        }
    }
}

/// Whether a file does not exist, or has this value.
fn is_missing_or<T: PartialEq>(found: &Result<T, String>, value: T) -> bool {
    match found {
        Ok(found) => *found == value,
        Err(error) => error == MISSING,
    }
}

/// Begins this start's incarnation, under a new id if there is no past. The data exists by now.
/// `random` gives ids and nonces that nobody else has.
pub fn begin(
    fs: &dyn FileSystem,
    data_dir: &Path,
    past: Past,
    random: &mut dyn FnMut() -> anyhow::Result<u64>,
) -> anyhow::Result<Identity> {
    let nonce = random()?;
    let (id_path, incarnation_path) = (data_dir.join("member.id"), data_dir.join("incarnation"));
    let (id, incarnation, fence) = match past {
        Past::Complete {
            id,
            incarnation,
            fence,
        } => {
            let incarnation = incarnation + 1;
            write_integer(fs, &incarnation_path, incarnation)?;
            // Anew: when their last write failed, they may be in the page cache only, and what is
            // done under them now must not outlive them.
            atomic_file::write(fs, &fence_path(data_dir), &fence::encode(fence))?;
            write_integer(fs, &id_path, id.0)?;
            (id, incarnation, fence)
        }
        Past::None => {
            let id = MemberId(random()?.max(1));
            let fence = Fence::default();
            atomic_file::write(fs, &fence_path(data_dir), &fence::encode(fence))?;
            write_integer(fs, &incarnation_path, 1)?;
            write_integer(fs, &id_path, id.0)?;
            log::info!("new member id {id}");
            (id, 1, fence)
        }
    };
    Ok(Identity {
        id,
        incarnation,
        nonce,
        fence,
    })
}

/// Notes, durably, that acknowledged records were found lost or damaged: the part of the log that
/// tells it may be removed by compaction.
pub fn note_losses(fs: &dyn FileSystem, data_dir: &Path) -> Result<(), LogError> {
    write_integer(fs, &data_dir.join("incomplete"), 1)
}

/// Whether acknowledged records were ever found lost or damaged; a note that is damaged says so.
pub fn has_losses(fs: &dyn FileSystem, data_dir: &Path) -> anyhow::Result<bool> {
    Ok(found(read_integer(fs, &data_dir.join("incomplete")))? != Err(MISSING.to_owned()))
}

/// Removes the note of lost records: a leader has compared all copies and misses none, so none of
/// them is listed by the metadata any more.
pub fn forget_losses(fs: &dyn FileSystem, data_dir: &Path) -> std::io::Result<()> {
    let path = data_dir.join("incomplete");
    if fs.exists(&path)? {
        fs.remove(&path)?;
    }
    fs.sync_dir(data_dir)
}

/// Gives back an incarnation that the leader refused, so that the next start has the same and is
/// refused again. Otherwise a rolled back disk would be accepted once it was started often enough.
pub fn take_back(fs: &dyn FileSystem, data_dir: &Path, incarnation: u64) -> Result<(), LogError> {
    let path = data_dir.join("incarnation");
    write_integer(fs, &path, incarnation.saturating_sub(1))
}

/// What [`found`] says of a file that does not exist.
const MISSING: &str = "missing";

/// The value, or why there is none. A file that cannot be read at the moment is an error: an
/// identity is not given up for that.
fn found<T>(read: Result<Option<T>, LogError>) -> anyhow::Result<Result<T, String>> {
    match read {
        Ok(Some(value)) => Ok(Ok(value)),
        Ok(None) => Ok(Err(MISSING.to_owned())),
        Err(LogError::Damaged { offset, what, .. }) => {
            Ok(Err(format!("damaged at offset {offset}: {what}")))
        }
        Err(
            error @ (LogError::Version { .. }
            | LogError::Io { .. }
            | LogError::Refused(_)
            | LogError::Poisoned),
        ) => Err(error.into()),
    }
}

fn give_up(fs: &dyn FileSystem, data_dir: &Path, id_path: &Path) -> anyhow::Result<()> {
    let remove = || {
        if fs.exists(id_path)? {
            fs.remove(id_path)?;
        }
        fs.sync_dir(data_dir)
    };
    remove().with_context(|| format!("cannot remove {}", id_path.display()))
}

/// Whether the engine's data is there.
fn find_data(
    fs: &dyn FileSystem,
    data_dir: &Path,
    engine: EngineKind,
) -> Result<Option<()>, LogError> {
    let present = opening::is_present(fs, data_dir, engine);
    let present = present.map_err(|source| LogError::Io {
        action: "list",
        file: opening::engine_dir(data_dir, engine).display().to_string(),
        source,
    })?;
    Ok(present.then_some(()))
}

fn read_fence(fs: &dyn FileSystem, data_dir: &Path) -> Result<Option<Fence>, LogError> {
    let path = fence_path(data_dir);
    read_with(fs, &path, fence::decode)
}

fn read_with<T>(
    fs: &dyn FileSystem,
    path: &Path,
    decode: impl Fn(&[u8]) -> Option<T>,
) -> Result<Option<T>, LogError> {
    let Some(bytes) = atomic_file::read(fs, path)? else {
        return Ok(None);
    };
    let damaged = || LogError::Damaged {
        file: path.display().to_string(),
        offset: 0,
        what: format!("{} bytes of no known format", bytes.len()),
    };
    decode(&bytes).map(Some).ok_or_else(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::cluster_file;
    use crate::disk::mem::{Fault, Loss, MemFileSystem, Operation};
    use crate::ids::ClusterId;

    const DIR: &str = "data";

    /// Does what a start does, with one file in the place of a log.
    fn start(fs: &MemFileSystem) -> anyhow::Result<Identity> {
        start_with(fs, false)
    }

    fn start_with(fs: &MemFileSystem, replace: bool) -> anyhow::Result<Identity> {
        let dir = Path::new(DIR);
        fs.create_dir_all(dir)?;
        cluster_file::bind(fs, dir, ClusterId(1))?;
        let past = examine(fs, dir, EngineKind::Log, replace)?;
        let log = opening::engine_dir(dir, EngineKind::Log);
        fs.create_dir_all(&log)?;
        let segment = log.join("00000001.log");
        if !fs.exists(&segment)? {
            fs.create(&segment)?.sync_all()?;
            fs.sync_dir(&log)?;
        }
        begin(fs, dir, past, &mut || Ok(getrandom::u64()?))
    }

    fn remove(fs: &MemFileSystem, name: &str) {
        let path = Path::new(DIR).join(name);
        fs.remove(&path).unwrap();
        fs.sync_dir(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn an_incarnation_grows_with_each_start_and_a_nonce_is_new() {
        let fs = MemFileSystem::new();
        let first = start(&fs).unwrap();
        let second = start(&fs).unwrap();
        fs.crash(Loss::Everything);
        let third = start(&fs).unwrap();
        assert_eq!((first.id, second.id), (second.id, third.id));
        let incarnations = [first, second, third].map(|identity| identity.incarnation);
        assert_eq!(incarnations, [1, 2, 3]);
        assert!(first.nonce != second.nonce && second.nonce != third.nonce);
    }

    #[test]
    fn a_file_that_cannot_be_read_now_does_not_cost_the_identity() {
        let fs = MemFileSystem::new();
        let id = start(&fs).unwrap().id;
        for reads in 0..4 {
            fs.fail(Operation::Read, reads, Fault::Io);
            assert!(start(&fs).is_err(), "{reads}");
            fs.heal();
        }
        assert_eq!(start(&fs).unwrap().id, id);
    }

    #[test]
    fn what_a_start_found_outlives_it_though_its_write_failed() {
        let fs = MemFileSystem::new();
        start(&fs).unwrap();
        let fence = Fence { term: 3, link: 1 };
        let path = fence_path(Path::new(DIR));
        fs.fail(Operation::SyncDir, 0, Fault::Io);
        assert!(atomic_file::write(&fs, &path, &fence::encode(fence)).is_err());
        assert_eq!(start(&fs).unwrap().fence, fence);
        fs.crash(Loss::Everything);
        assert_eq!(start(&fs).unwrap().fence, fence);
    }

    const PARTS: [&str; 4] = ["member.id", "fence", "incarnation", "log/00000001.log"];

    #[test]
    fn a_part_that_is_missing_or_damaged_is_named_and_costs_nothing_once_it_is_back() {
        for name in PARTS {
            for is_cut in [false, true] {
                let fs = MemFileSystem::new();
                let old = start(&fs).unwrap();
                // Records came, and raised the fence.
                let fence = Fence { term: 3, link: 1 };
                let path = fence_path(Path::new(DIR));
                atomic_file::write(&fs, &path, &fence::encode(fence)).unwrap();
                let whole = fs.fork();
                match is_cut {
                    // The log's own recovery tells what becomes of a segment that was cut.
                    true if name.ends_with(".log") => continue,
                    true => assert!(fs.cut(&Path::new(DIR).join(name), 3)),
                    false => remove(&fs, name),
                }
                for _ in 0..2 {
                    let error = start(&fs).unwrap_err().to_string();
                    let part = name.split('/').next().unwrap();
                    assert!(error.contains(&format!("{DIR}/{part} is ")), "{error}");
                    assert!(error.contains("--replace"), "{error}");
                }
                let new = start_with(&fs, true).unwrap();
                assert_ne!(new.id, old.id);
                assert_eq!(start(&whole).unwrap().id, old.id);
            }
        }
    }

    #[test]
    fn a_first_start_that_was_cut_short_begins_anew() {
        for calls in 0..40 {
            let fs = MemFileSystem::new();
            fs.fail(Operation::Any, calls, Fault::ShortWrite);
            _ = start(&fs);
            fs.heal();
            fs.crash(Loss::Random(calls));
            let first = start(&fs).unwrap();
            assert_eq!(start(&fs).unwrap().id, first.id, "{calls} calls");
        }
    }

    #[test]
    fn an_id_without_its_data_never_comes_back_once_it_is_given_up() {
        for name in ["fence", "incarnation", "log/00000001.log"] {
            for calls in 0..40 {
                let fs = MemFileSystem::new();
                let old = start(&fs).unwrap();
                let fence = Fence { term: 3, link: 1 };
                let path = fence_path(Path::new(DIR));
                atomic_file::write(&fs, &path, &fence::encode(fence)).unwrap();
                remove(&fs, name);
                fs.fail(Operation::Any, calls, Fault::ShortWrite);
                let given_up = start_with(&fs, true);
                fs.heal();
                fs.crash(Loss::Random(calls));
                let new = start(&fs).or_else(|_| start_with(&fs, true)).unwrap();
                assert_ne!(new.id, old.id, "{name}, {calls} calls");
                if let Ok(given_up) = given_up {
                    assert_eq!(new.id, given_up.id);
                }
                let again = start(&fs).unwrap();
                assert_eq!(again.id, new.id);
            }
        }
    }

    #[test]
    fn a_start_that_fails_midway_keeps_a_complete_identity() {
        for calls in 0..20 {
            let fs = MemFileSystem::new();
            let old = start(&fs).unwrap();
            fs.fail(Operation::Any, calls, Fault::ShortWrite);
            let failed = start(&fs);
            fs.heal();
            fs.crash(Loss::Random(calls));
            let new = start(&fs).unwrap();
            assert_eq!(new.id, old.id, "{calls} calls");
            let last = failed.map_or(old.incarnation, |failed| failed.incarnation);
            assert!(new.incarnation > last);
        }
    }
}
