//! The data directory of `tolerex up` as a whole: its path, and who has it.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};

use super::super::exit::ToolError;
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

/// Keeps any other `up` away from the directory while the file is open.
pub(super) fn lock(dir: &Path) -> Result<File, ToolError> {
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
    Ok(file)
}
