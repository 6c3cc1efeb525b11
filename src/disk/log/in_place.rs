//! Whether the log's paths still name its files.
//!
//! A file that was removed while it is open takes writes and syncs like any other, and all of it is
//! gone when the process ends. So each sync, and the owner once in a while, compares the file that
//! is appended to with what its path names: that covers the file, the directories above it and a
//! mount over them, with one system call.

use std::path::Path;

use super::{Log, LogError};
use crate::disk::fs::check_in_place;

impl Log {
    /// Poisons the log if the segment that it appends to does not have its path any more.
    pub fn check_in_place(&mut self) -> Result<(), LogError> {
        self.check()?;
        let (file, path) = (&self.current.file, Path::new(&self.current.path));
        let opened = file.id();
        let checked = opened.and_then(|opened| check_in_place(&*self.fs, path, opened));
        checked.map_err(|source| {
            self.poisoned = true;
            LogError::Io {
                action: "go on with",
                file: self.current.path.clone(),
                source,
            }
        })
    }
}
