//! The data directory of `tolerex up` as a whole: its path, and who has it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};

use super::super::exit::ToolError;
use crate::disk::fs::{OsFileSystem, check_in_place, id_of};
use crate::disk::private;

/// Refuses a path with `{name}`: in settings that stands for the name of a process, which would
/// keep its data in another directory than the one that was given.
pub(super) fn check(dir: &Path) -> Result<(), ToolError> {
    if dir
        .as_os_str()
        .as_encoded_bytes()
        .windows(6)
        .any(|part| part == b"{name}")
    {
        let text = format!(
            "--data-dir {}: {{name}} stands for a process's name in settings; accepted: a path \
             without it",
            dir.display()
        );
        return Err(ToolError::usage(text));
    }
    Ok(())
}

/// Makes the directory where it is missing; its path, absolute and without symbolic links.
pub(super) fn make(dir: &Path) -> Result<PathBuf, ToolError> {
    let make = || private::create_dir_all(dir).and_then(|()| dir.canonicalize());
    let dir = make().with_context(|| format!("cannot create {}", dir.display()))?;
    // Paths are handed to children as flags and stand in cluster.json.
    if dir.to_str().is_none() {
        return Err(ToolError::failed(format!("{} is not UTF-8", dir.display())));
    }
    check(&dir)?;
    Ok(dir)
}

/// Keeps any other `up` away from the directory while it is held.
pub(super) struct Lock {
    file: File,
    path: PathBuf,
    is_lost: bool,
}

impl Lock {
    /// Takes the lock of the directory.
    pub(super) fn take(dir: &Path) -> Result<Lock, ToolError> {
        let path = dir.join("up.lock");
        let opened = private::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let file = opened.with_context(|| format!("cannot open {}", path.display()))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => {
                ToolError::failed(format!("another `tolerex up` runs on {}", dir.display()))
            }
            error => ToolError::failed(format!("cannot lock {}: {error}", path.display())),
        })?;
        Ok(Lock {
            file,
            path,
            is_lost: false,
        })
    }

    /// Whether the lock's file is not the locked one any more: it or the directory was removed,
    /// replaced or covered by a mount, and another `up` may use what is there now.
    pub(super) fn is_lost(&self) -> bool {
        self.check().is_err()
    }

    /// The message that is printed, once, when that is noticed.
    pub(super) fn look(&mut self) -> Option<String> {
        let error = self.check().err()?;
        let is_known = std::mem::replace(&mut self.is_lost, true);
        (!is_known).then(|| {
            format!(
                "warning: {}: {error}. Another `tolerex up` may run there now; this one goes on \
                 with its processes and leaves cluster.json alone",
                self.path.display()
            )
        })
    }

    fn check(&self) -> io::Result<()> {
        let held = id_of(&self.file)?;
        check_in_place(&OsFileSystem, &self.path, held)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_lock_whose_file_or_directory_is_gone_is_lost_and_said_once() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = root.path().join("data");
        for remove in [fs::remove_dir_all::<&Path>, |dir: &Path| {
            fs::remove_file(dir.join("up.lock"))
        }] {
            fs::create_dir_all(&dir).expect("made");
            let mut lock = Lock::take(&dir).unwrap_or_else(|_| panic!("it is free"));
            assert!(!lock.is_lost() && lock.look().is_none());
            assert!(Lock::take(&dir).is_err(), "it is held");
            remove(&dir).expect("removed");
            assert!(lock.is_lost());
            let said = lock.look().expect("it is said");
            assert!(
                said.contains("up.lock") && said.contains("removed"),
                "{said}"
            );
            fs::create_dir_all(&dir).expect("made");
            let other = Lock::take(&dir);
            assert!(other.is_ok(), "nothing stands in the way");
            assert!(lock.is_lost() && lock.look().is_none(), "once");
        }
    }
}
