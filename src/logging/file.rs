//! Keeps the log of a process short whose standard error is a file: `tolerex up` opens
//! `NAME.log` in the data directory of each process, which may run for months without it.
//!
//! The thread `log` of the process renames a file longer than [`LOG_BYTES_MAX`] to `NAME.log.1`, in
//! place of an older one, opens the next one, and makes that the standard output and error. At most
//! twice the limit is on the disk for a process. A file that somebody else has renamed or removed,
//! as logrotate does, is followed by a new one of its name at the next look, or at once by SIGHUP.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::stdio;

/// The longest log of one process, in bytes: days at level `info`.
pub const LOG_BYTES_MAX: u64 = 16 << 20;

/// Lines between two looks at the length. A line has some 100 bytes, so that the limit is passed by
/// some tens of kilobytes.
pub(super) const LINES_BETWEEN_LOOKS: usize = 256;

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
        is_same(&fs::metadata(path).ok()?, stdio::stderr()).then(|| LogFile {
            path: path.to_owned(),
            bytes_max: LOG_BYTES_MAX,
        })
    }

    /// Begins the next file if this one is too long, or not at its path any more.
    pub(super) fn look(&self) -> io::Result<()> {
        if let Some(next) = self.next(stdio::stderr())? {
            stdio::dup2_stdout(&next)?;
            stdio::dup2_stderr(&next)?;
        }
        Ok(())
    }

    /// The file that follows `current`, if one is due; a file that is too long is put aside.
    fn next(&self, current: impl AsFd) -> io::Result<Option<File>> {
        match fs::metadata(&self.path) {
            Ok(file) if !is_same(&file, current) => (),
            Ok(file) if file.len() <= self.bytes_max => return Ok(None),
            Ok(_) => {
                let mut aside = self.path.clone().into_os_string();
                aside.push(".1");
                fs::rename(&self.path, aside)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => return Err(error),
        }
        let mut options = OpenOptions::new();
        options.create(true).append(true).mode(FILE_MODE);
        Ok(Some(options.open(&self.path)?))
    }
}

/// Whether an open file is the one that was found at a path.
fn is_same(found: &fs::Metadata, open: impl AsFd) -> bool {
    rustix::fs::fstat(open)
        .is_ok_and(|open| (open.st_dev, open.st_ino) == (found.dev(), found.ino()))
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
        let mut current = File::open(&path).expect("a log");
        assert!(log.next(&current).expect("a look").is_none());
        for text in ["first log", "second log"] {
            fs::write(&path, text).expect("written");
            let mut next = log.next(&current).expect("a look").expect("the next file");
            next.write_all(b"next").expect("written");
            assert_eq!((read(".1").as_str(), read("").as_str()), (text, "next"));
            current = next;
        }
        assert_eq!(fs::read_dir(dir.path()).expect("a list").count(), 2);
    }

    #[test]
    fn a_log_that_was_renamed_or_removed_is_followed_by_a_new_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("member-1.log");
        let log = LogFile {
            path: path.clone(),
            bytes_max: 8,
        };
        let current = File::create(&path).expect("a log");
        fs::rename(&path, dir.path().join("elsewhere")).expect("renamed");
        let current = log.next(&current).expect("a look").expect("the next file");
        assert!(log.next(&current).expect("a look").is_none());
        fs::remove_file(&path).expect("removed");
        let current = log.next(&current).expect("a look").expect("the next file");
        assert!(log.next(&current).expect("a look").is_none());
        // A new file of that name, made by somebody else, is written to.
        fs::remove_file(&path).expect("removed");
        fs::write(&path, "a title").expect("written");
        let mut current = log.next(&current).expect("a look").expect("the next file");
        current.write_all(b", a line").expect("written");
        assert_eq!(fs::read_to_string(&path).expect("a log"), "a title, a line");
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
