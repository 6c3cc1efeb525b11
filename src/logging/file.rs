//! Keeps the log of a process short whose standard error is a file: `tolerex up` opens
//! `NAME.log` in the data directory of each process, which may run for months without it.
//!
//! The process itself renames a file longer than [`LOG_BYTES_MAX`] to `NAME.log.1`, in place of an
//! older one, opens the next one, and makes that its standard output and error, so that a panic's
//! message goes there, too. At most twice the limit is on the disk for a process.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::stdio;

/// The longest log of one process, in bytes: days at level `info`.
pub const LOG_BYTES_MAX: u64 = 16 << 20;

/// Lines between two looks at the length. A line has some 100 bytes, so that the limit is passed by
/// some tens of kilobytes.
pub(super) const LINES_BETWEEN_LOOKS: u32 = 256;

/// For its owner only, like all files of a process.
const FILE_MODE: u32 = 0o600;

/// A log that this process keeps short.
pub(super) struct LogFile {
    path: PathBuf,
    bytes_max: u64,
}

impl LogFile {
    /// `path`, if it is the standard error of this process.
    pub(super) fn of_this_process(path: &Path) -> Option<LogFile> {
        let is_same = |file: &fs::Metadata| {
            let own = rustix::fs::fstat(stdio::stderr()).ok()?;
            (own.st_dev == file.dev() && own.st_ino == file.ino()).then_some(())
        };
        fs::metadata(path).ok().as_ref().and_then(is_same)?;
        Some(LogFile {
            path: path.to_owned(),
            bytes_max: LOG_BYTES_MAX,
        })
    }

    /// Begins the next file if this one is too long.
    pub(super) fn look(&self) -> io::Result<()> {
        if let Some(next) = self.next()? {
            stdio::dup2_stdout(&next)?;
            stdio::dup2_stderr(&next)?;
        }
        Ok(())
    }

    /// The next file, if this one is too long and was put aside.
    fn next(&self) -> io::Result<Option<File>> {
        if fs::metadata(&self.path)?.len() <= self.bytes_max {
            return Ok(None);
        }
        let mut aside = self.path.clone().into_os_string();
        aside.push(".1");
        fs::rename(&self.path, aside)?;
        let mut options = OpenOptions::new();
        options.create(true).append(true).mode(FILE_MODE);
        Ok(Some(options.open(&self.path)?))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_log_that_is_too_long_is_put_aside_in_place_of_the_older_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("member-1.log");
        let read = |end: &str| {
            let name = format!("member-1.log{end}");
            fs::read_to_string(dir.path().join(name)).expect("a log")
        };
        let log = LogFile {
            path: path.clone(),
            bytes_max: 8,
        };
        fs::write(&path, "12345678").expect("written");
        assert!(log.next().expect("a look").is_none());
        for text in ["first log", "second log"] {
            fs::write(&path, text).expect("written");
            let mut next = log.next().expect("a look").expect("the next file");
            next.write_all(b"next").expect("written");
            assert_eq!((read(".1").as_str(), read("").as_str()), (text, "next"));
        }
        assert_eq!(fs::read_dir(dir.path()).expect("a list").count(), 2);
    }

    #[test]
    fn only_the_own_standard_error_is_kept_short() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x.log");
        assert!(LogFile::of_this_process(&path).is_none());
        fs::write(&path, "another one's").expect("written");
        assert!(LogFile::of_this_process(&path).is_none());
    }
}
