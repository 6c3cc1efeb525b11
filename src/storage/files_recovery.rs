//! Opening the directory of the `files` engine: which records there are, by the files' names.
//!
//! Unfinished files are removed, and side files whose record is gone. The directories are synced:
//! a name that is seen may not be on the disk, and a record that is stored again would be called
//! known because of it.
//!
//! The file `unsynced` is there while an engine runs in a mode below `sync`, and is removed when it
//! ends in order. With it, a power failure may have left names without their whole content: so all
//! files are read then, and what is bad is reported; and the file system is synced, because what
//! is good may be in the page cache only. Otherwise a bad file is found when it is read, as bit rot
//! is.
//!
//! Known limit: after a *failed* sync the page cache may show what the disk does not have. Then a
//! mode below `sync` was chosen, or the file still has its unfinished name.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use crate::disk::atomic_file;
use crate::disk::error::LogError;
use crate::disk::fs::FileSystem;
use crate::disk::recovery::{Damage, Recovery};
use crate::ids::{Key, Revision};
use crate::storage::ReadError;
use crate::storage::file_name::{self, FileName, UNFINISHED};
use crate::storage::files_engine::remove_if_there;
use crate::storage::files_index::{Entry, Shared, dir_of};

/// The file whose presence says that the directory is the engine's; holds the version.
pub(super) const FORMAT_NAME: &str = "format";

const FORMAT_VERSION: u64 = 1;

/// The file whose presence says that not all may be on the disk.
const UNSYNCED_NAME: &str = "unsynced";

/// Reads the directory into the index, or makes it; the subdirectories that exist.
pub(super) fn recover(shared: &Shared, synced: bool) -> Result<(BTreeSet<u8>, Recovery), LogError> {
    let (fs, dir) = (shared.fs.as_ref(), shared.dir.as_path());
    let failed = |action| {
        move |source| LogError::Io {
            action,
            file: dir.display().to_string(),
            source,
        }
    };
    fs.create_dir_all(dir).map_err(failed("make"))?;
    let format = dir.join(FORMAT_NAME);
    match atomic_file::read_integer(fs, &format)? {
        // Written anew, below: after a failed sync it may be in the page cache only.
        None | Some(FORMAT_VERSION) => {}
        Some(version) => {
            return Err(LogError::Version {
                file: format.display().to_string(),
                version: u32::try_from(version).unwrap_or(u32::MAX),
                known: FORMAT_VERSION as u32,
            });
        }
    }
    atomic_file::write_integer(fs, &format, FORMAT_VERSION)?;
    let unsynced = dir.join(UNSYNCED_NAME);
    let is_unsure = fs.exists(&unsynced).map_err(failed("look at"))?;
    if is_unsure {
        fs.sync_everything(dir).map_err(failed("sync"))?;
    }
    let mut made = BTreeSet::new();
    let mut recovery = Recovery::default();
    for subdir in 0..=u8::MAX {
        if read_dir(shared, subdir, &mut recovery)? {
            made.insert(subdir);
        }
    }
    if is_unsure {
        verify(shared, &mut recovery)?;
    }
    match (is_unsure, synced) {
        (false, false) => atomic_file::write_integer(fs, &unsynced, 1)?,
        (true, true) => note_synced(fs, dir).map_err(failed("note the end in"))?,
        (false, true) | (true, false) => {}
    }
    recovery.records = shared.index.read().revisions().len() as u64;
    Ok((made, recovery))
}

/// Notes that all is on the disk.
pub(super) fn note_synced(fs: &dyn FileSystem, dir: &Path) -> io::Result<()> {
    let unsynced = dir.join(UNSYNCED_NAME);
    if fs.exists(&unsynced)? {
        fs.remove(&unsynced)?;
        fs.sync_dir(dir)?;
    }
    Ok(())
}

/// Takes the files of a subdirectory into the index; false if it does not exist.
fn read_dir(shared: &Shared, subdir: u8, recovery: &mut Recovery) -> Result<bool, LogError> {
    let (fs, dir) = (shared.fs.as_ref(), shared.dir_path(subdir));
    let failed = |action| {
        let file = dir.display().to_string();
        move |source| LogError::Io {
            action,
            file,
            source,
        }
    };
    let names = match fs.list(&dir) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed("list")(error)),
    };
    let mut sides = BTreeSet::new();
    let mut found: BTreeMap<Revision, Vec<(String, Entry)>> = BTreeMap::new();
    for name in names {
        if name.ends_with(UNFINISHED) {
            fs.remove(&dir.join(&name)).map_err(failed("tidy"))?;
        } else if let Some(revision) = file_name::parse_side(&name) {
            sides.insert(revision);
        } else if let Some(file) = parse(&name, subdir) {
            let entry = entry_of(shared, &file, &name)?;
            found.entry(file.revision).or_default().push((name, entry));
        } else {
            let what = "this is not the name of a record's file, or not in its place";
            recovery.damaged.push(damage(&dir, &name, what.to_owned()));
        }
    }
    for (revision, mut files) in found {
        sides.remove(&revision);
        if files.len() > 1 {
            files = choose(shared, revision, files, recovery)?;
        }
        for (name, entry) in files {
            if let Entry::Damaged { what, .. } = &entry {
                recovery.damaged.push(damage(&dir, &name, what.clone()));
            }
            shared.index.write().insert(revision, entry);
        }
    }
    for revision in sides {
        let path = dir.join(file_name::side_name(revision));
        fs.remove(&path).map_err(failed("tidy"))?;
    }
    fs.sync_dir(&dir).map_err(failed("sync"))?;
    Ok(true)
}

fn parse(name: &str, subdir: u8) -> Option<FileName> {
    file_name::parse(name).filter(|file| dir_of(file.revision) == subdir)
}

/// What a name says, with the key of the side file if it was cut.
fn entry_of(shared: &Shared, file: &FileName, name: &str) -> Result<Entry, LogError> {
    let damaged = |what: String| Entry::Damaged {
        name: name.to_owned(),
        length: file.length,
        what,
    };
    let key = match &file.key {
        Some(key) => key.clone(),
        None => match atomic_file::read(shared.fs.as_ref(), &shared.side_path(file.revision)) {
            Ok(Some(bytes)) => match Key::parse(&bytes) {
                Ok(key) => key,
                Err(error) => return Ok(damaged(format!("its key cannot be one: {error}"))),
            },
            Ok(None) => return Ok(damaged("the file of its key is missing".to_owned())),
            Err(error @ LogError::Damaged { .. }) => return Ok(damaged(error.to_string())),
            Err(error) => return Err(error),
        },
    };
    if file_name::render(file.revision, &key, file.length, file.checksum) != name {
        return Ok(damaged(
            "its name and its key do not belong together".to_owned(),
        ));
    }
    Ok(Entry::Named {
        key,
        length: file.length,
        checksum: file.checksum,
    })
}

/// The one of several files of a revision that is good, or the first. The others go: a replacement
/// was interrupted, or one of the names is damaged.
fn choose(
    shared: &Shared,
    revision: Revision,
    mut files: Vec<(String, Entry)>,
    recovery: &mut Recovery,
) -> Result<Vec<(String, Entry)>, LogError> {
    let dir = shared.dir_path(dir_of(revision));
    let is_good = |(_, entry): &(String, Entry)| shared.read(revision, entry).is_ok();
    let good = files.iter().position(is_good);
    let chosen = files.swap_remove(good.unwrap_or(0));
    for (name, _) in files {
        let what = format!("{} is the same revision, this file is given up", chosen.0);
        recovery.damaged.push(damage(&dir, &name, what));
        if good.is_some() {
            let path = dir.join(&name);
            remove_if_there(shared.fs.as_ref(), &path).map_err(|source| LogError::Io {
                action: "remove",
                file: path.display().to_string(),
                source,
            })?;
        }
    }
    Ok(vec![chosen])
}

/// Reads every file and reports the bad ones.
fn verify(shared: &Shared, recovery: &mut Recovery) -> Result<(), LogError> {
    let revisions = shared.index.read().revisions();
    log::info!(
        "the last run did not end in order: {} files in {} are read",
        revisions.len(),
        shared.dir.display()
    );
    for revision in revisions {
        let Some(entry) = shared.entry(revision) else {
            continue;
        };
        let Entry::Named { .. } = &entry else {
            continue; // Reported by its name.
        };
        match shared.read(revision, &entry) {
            Ok(Some(_)) => {}
            Ok(None) => recovery.damaged.push(Damage {
                file: shared.missing(revision, &entry).to_string(),
                offset: 0,
                bytes: 0,
                what: "the file is missing".to_owned(),
            }),
            Err(ReadError::Damaged { file, offset, what }) => recovery.damaged.push(Damage {
                file,
                offset,
                bytes: 0,
                what,
            }),
            Err(ReadError::Io { context, source }) => {
                return Err(LogError::Io {
                    action: "verify",
                    file: context,
                    source,
                });
            }
        }
    }
    Ok(())
}

fn damage(dir: &Path, name: &str, what: String) -> Damage {
    Damage {
        file: dir.join(name).display().to_string(),
        offset: 0,
        bytes: 0,
        what,
    }
}
