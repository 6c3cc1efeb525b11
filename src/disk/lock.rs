//! One process per data directory: an advisory lock on its `LOCK` file.
//!
//! The operating system gives the lock up when the process ends, however it ends; the file stays.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::private;

/// The name of the file in the directory.
pub const LOCK_NAME: &str = "LOCK";

/// A directory that this process has for itself, until the value is dropped.
#[must_use = "the lock is given up when this is dropped"]
#[derive(Debug)]
pub struct DirLock {
    /// Open as long as the lock is held; closing it gives the lock up.
    _file: File,
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
    /// The operating system refused.
    #[error("cannot lock directory {}: {source}", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl DirLock {
    /// Locks an existing directory; does not wait.
    pub fn acquire(dir: &Path) -> Result<DirLock, LockError> {
        let failed = |source| LockError::Io {
            dir: dir.to_owned(),
            source,
        };
        let mut options = private::options();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(dir.join(LOCK_NAME)).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
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
        Ok(DirLock { _file: file })
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
    fn a_missing_directory_is_named() {
        let error = DirLock::acquire(Path::new("/nowhere/at/all")).expect_err("missing");
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    }
}
