//! One process per data directory: an advisory lock on its `LOCK` file.
//!
//! The operating system gives the lock up when the process ends, however it ends; the file stays.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::fs::{OsFileSystem, check_in_place, id_of};
use super::private;
use crate::clock::sleep;

/// How often the holder of a lock should call [`DirLock::check`]: a second process, which a removed
/// lock file would let in, is not alone for longer. Each call is two system calls.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The name of the file in the directory.
pub const LOCK_NAME: &str = "LOCK";

/// A directory that this process has for itself, until the value is dropped.
#[must_use = "the lock is given up when this is dropped"]
#[derive(Debug)]
pub struct DirLock {
    /// The directory.
    dir: PathBuf,
    /// Open as long as the lock is held; closing it gives the lock up.
    file: File,
}

/// Why a directory could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("directory {} is in use by {holder}", dir.display())]
    Held {
        /// The directory.
        dir: PathBuf,
        /// `process 123`, or `another process`.
        holder: String,
    },
    /// The lock file is not there any more.
    #[error("{} is lost: {source}", path.display())]
    Lost {
        /// The lock file.
        path: PathBuf,
        /// What became of it.
        source: io::Error,
    },
    /// The operating system refused.
    #[error("cannot lock directory {}: {source}", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// How long the start of a process waits for the one before it, which may have been killed: the
/// kernel gives the lock up when it has freed the memory of that process, tens of milliseconds on a
/// busy machine for a big one.
const DYING_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the lock is tried meanwhile.
const DYING_LOOKS: u32 = 20;

impl DirLock {
    /// Locks an existing directory. Waits [`DYING_TIMEOUT`] at most for another holder to end.
    pub fn acquire(dir: &Path) -> Result<DirLock, LockError> {
        let failed = |source| LockError::Io {
            dir: dir.to_owned(),
            source,
        };
        let mut options = private::options();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(dir.join(LOCK_NAME)).map_err(failed)?;
        let lock = || flock(&file, FlockOperation::NonBlockingLockExclusive);
        let mut locked = lock();
        for _ in 0..DYING_LOOKS {
            if locked != Err(rustix::io::Errno::WOULDBLOCK) {
                break;
            }
            sleep(DYING_TIMEOUT / DYING_LOOKS);
            locked = lock();
        }
        match locked {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let read = file.take(32).read_to_string(&mut pid);
                let pid = read.ok().and_then(|_| pid.trim().parse::<u32>().ok());
                let holder = pid.map(|pid| format!("process {pid}"));
                return Err(LockError::Held {
                    dir: dir.to_owned(),
                    holder: holder.unwrap_or_else(|| "another process".to_owned()),
                });
            }
            Err(error) => return Err(failed(error.into())),
        }
        // Only for the message above: a disk without space for it is no reason to stop.
        let told = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        if let Err(error) = told {
            log::debug!(
                "cannot write the process id into {}: {error}",
                dir.display()
            );
        }
        let dir = dir.to_owned();
        Ok(DirLock { dir, file })
    }

    /// An error if the directory's lock file is not the locked one any more: it or the directory
    /// was removed, replaced or covered by a mount. Another process could lock what is there now,
    /// so the holder must stop.
    pub fn check(&self) -> Result<(), LockError> {
        let path = self.dir.join(LOCK_NAME);
        let held = id_of(&self.file);
        let checked = held.and_then(|held| check_in_place(&OsFileSystem, &path, held));
        checked.map_err(|source| LockError::Lost { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_holder_who_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let lock = DirLock::acquire(dir.path()).expect("free");
        let error = DirLock::acquire(dir.path()).expect_err("held").to_string();
        assert!(error.contains(&dir.path().display().to_string()), "{error}");
        assert!(
            error.contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        drop(lock);
        let _again = DirLock::acquire(dir.path()).expect("free again");
    }

    #[test]
    fn a_lock_file_that_was_removed_or_replaced_is_noticed() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = root.path().join("data");
        std::fs::create_dir(&dir).expect("made");
        let lock = DirLock::acquire(&dir).expect("free");
        lock.check().expect("in its place");
        std::fs::remove_file(dir.join(LOCK_NAME)).expect("removed");
        let error = lock.check().expect_err("removed").to_string();
        assert!(error.contains("LOCK is lost"), "{error}");
        let _other = DirLock::acquire(&dir).expect("nothing stands in the way");
        let error = lock.check().expect_err("replaced").to_string();
        assert!(error.contains("replaced"), "{error}");
        std::fs::remove_dir_all(&dir).expect("removed");
        assert!(lock.check().is_err());
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = DirLock::acquire(Path::new("/nowhere/at/all")).expect_err("missing");
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    }
}
