//! What can go wrong with a log or an atomic file, by what its owner can do about it.

use std::io;

use crate::error::Shortage;

/// An error of the `disk` layer.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The operating system has no space, descriptor or memory for it now: the group is forgotten,
    /// the log stays valid, a later group may succeed.
    #[error("{0}")]
    Refused(Shortage),
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

impl LogError {
    /// Whether the system refused something that may succeed later.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(self, LogError::Refused(_))
    }

    /// The error of an operating system call, with [`LogError::Refused`] told apart.
    pub(crate) fn from_io(
        action: &'static str,
        file: impl Into<String>,
        source: io::Error,
    ) -> Self {
        if let Some(shortage) = Shortage::of(&source) {
            return LogError::Refused(shortage);
        }
        LogError::Io {
            action,
            file: file.into(),
            source,
        }
    }
}
