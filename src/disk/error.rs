//! What can go wrong with a log or an atomic file, by what its owner can do about it.

use std::io;

/// An error of the `disk` layer.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// There is no space for the group: it is forgotten, the log stays valid, a later group may
    /// succeed.
    #[error("no space left on the disk")]
    Full,
    /// Bytes on disk are not what was written. Other records are not affected.
    #[error("{file} is damaged at offset {offset}: {what}")]
    Damaged {
        /// The file, with its directory.
        file: String,
        /// Where in it.
        offset: u64,
        /// What was expected and found.
        what: String,
    },
    /// The file is of a format that this program does not know: use one that does.
    #[error("{file} has format version {version}, this program reads version {known}")]
    Version {
        /// The file, with its directory.
        file: String,
        /// The version found.
        version: u32,
        /// The version that this program reads and writes.
        known: u32,
    },
    /// The operating system refused. If it happened while writing, the log is poisoned.
    #[error("cannot {action} {file}: {source}")]
    Io {
        /// What was tried: a verb.
        action: &'static str,
        /// The file or directory.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// An earlier write or sync failed; nothing more is taken until the log is opened again.
    #[error("an earlier write or sync failed, the log takes nothing more")]
    Poisoned,
}

/// Whether an error says that there is no space, for this user or for all.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

impl LogError {
    /// The error of an operating system call, with [`LogError::Full`] told apart.
    pub(crate) fn from_io(
        action: &'static str,
        file: impl Into<String>,
        source: io::Error,
    ) -> Self {
        if is_full(&source) {
            return LogError::Full;
        }
        LogError::Io {
            action,
            file: file.into(),
            source,
        }
    }
}
