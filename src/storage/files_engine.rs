//! The `files` engine: one file for each message, its content the payload, so that `cat` shows it.
//!
//! Owns the directory; the index and the read side are in [`super::files_index`].
//!
//! | path | what |
//! |---|---|
//! | `format` | version of this layout, by `disk::atomic_file`; last of all when it is made |
//! | `unsynced` | a run in a mode below `sync` did not end in order: see `files_recovery` |
//! | `00/` .. `ff/` | bits 8 to 15 of the revision: neighbours share a directory and its sync |
//! | `0a/NAME` | a record, see [`super::file_name`] |
//! | `0a/REVISION.key` | its whole key, if that is too long for a name; synced before the record |
//! | `0a/*.tmp` | being written; removed when the engine is opened |
//!
//! A group: all files are written under unfinished names and, in `sync` mode, synced; then they get
//! their names, released ones are removed, and each directory is synced once. So a name always
//! stands for a whole record, but for a power failure in a mode below `sync`, which may leave less
//! in it: the checksum tells (A5). What was released never comes back once that sync returned.
//! Unlike the log, a group that was not acknowledged may be there in part after a crash; each
//! record of it is there as a whole or not at all.
//!
//! A record found damaged stays in the index and on the disk, reported and never returned, until it
//! is stored anew. No space, descriptor or memory refuses the stores of a group and removes what
//! was written of them; what the directories still owe is paid with the next group. After any other
//! error each call fails.
//!
//! Known limits: a sync for each record is what it costs. Opening lists all files. A release whose
//! sync failed may be undone by a power failure even after a restart; the audit repeats it.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustc_hash::FxHashSet;

use crate::disk::atomic_file;
use crate::disk::error::LogError;
use crate::disk::fs::{File, FileId, FileSystem, check_in_place};
use crate::disk::recovery::Recovery;
use crate::error::Shortage;
use crate::ids::{Key, Revision};
use crate::storage::file_name;
use crate::storage::files_index::{Arrival, Entry, Shared, dir_of};
use crate::storage::files_recovery;
use crate::storage::group::{Group, Record};
use crate::storage::{Committed, Engine, Fatal, Reader, Staged};

/// What a record takes on the disk beside key and payload, in bytes, at most: the rest of its last
/// block, its inode and its place in the directory.
pub const FILE_BYTES: u64 = 8 << 10;

/// Files written before they are synced. At many times that, open files run out; at one, the file
/// system cannot put their metadata into one transaction.
const FILES_PER_STEP: usize = 256;

/// Records whose sync is owed one by one. Beyond it one sync of the whole file system is less work,
/// though it may have to write what others left.
const UNSYNCED_MAX: usize = 1024;

/// How the engine works.
#[derive(Clone, Copy, Debug)]
pub struct FilesOptions {
    /// Whether a commit ends with syncs.
    pub synced: bool,
    /// Free space that stores leave on the disk, for the member's other files.
    pub reserve_bytes: u64,
}

/// Stores each record in a file of its own.
pub struct FilesEngine {
    fs: Arc<dyn FileSystem>,
    options: FilesOptions,
    shared: Arc<Shared>,
    /// The last change of a revision rules.
    group: Group<(Revision, Record)>,
    /// Which directories exist.
    made: BTreeSet<u8>,
    owed: Owed,
    /// Why the last group was refused.
    refusal: Shortage,
    /// The layout's `format` file, and which file it was at the opening: as long as the path names
    /// it, the directory is in its place.
    format: (PathBuf, FileId),
    /// A write or sync failed.
    poisoned: bool,
}

/// What is not on the disk for certain.
#[derive(Default)]
struct Owed {
    /// Records, while they are at most [`UNSYNCED_MAX`].
    records: BTreeSet<Revision>,
    /// There were more.
    everything: bool,
    /// Directories with new or removed names.
    dirs: BTreeSet<u8>,
    /// Side files of removed records: to be removed after the sync that makes that certain.
    sides: BTreeSet<Revision>,
}

impl FilesEngine {
    /// Opens the files in `dir`, or makes the directory. What was found damaged is in [`Recovery`],
    /// for the caller to report.
    pub fn open(
        fs: Arc<dyn FileSystem>,
        dir: &Path,
        options: FilesOptions,
    ) -> Result<(FilesEngine, Recovery), LogError> {
        let shared = Arc::new(Shared {
            fs: Arc::clone(&fs),
            dir: dir.to_owned(),
            index: Default::default(),
        });
        let (made, recovery) = files_recovery::recover(&shared, options.synced)?;
        let format = dir.join(files_recovery::FORMAT_NAME);
        let id = fs.id(&format);
        let id =
            id.map_err(|error| LogError::from_io("look at", format.display().to_string(), error))?;
        let engine = FilesEngine {
            format: (format, id),
            fs,
            options,
            shared,
            group: Group::default(),
            made,
            owed: Owed::default(),
            refusal: Shortage::Space,
            poisoned: false,
        };
        Ok((engine, recovery))
    }

    fn check(&self) -> Result<(), Fatal> {
        match self.poisoned {
            false => Ok(()),
            true => Err(Fatal {
                context: "cannot take a record".to_owned(),
                source: io::Error::other(LogError::Poisoned),
            }),
        }
    }

    /// Whether the group's stores leave the reserve alone.
    fn has_room(&self, arrivals: &[Arrival]) -> bool {
        let bytes = arrivals
            .iter()
            .map(|arrival| arrival.payload.len() as u64 + FILE_BYTES);
        let needed = self.options.reserve_bytes + bytes.sum::<u64>();
        // Unknown: the writes themselves will tell.
        let free = self.fs.free_space(&self.shared.dir);
        arrivals.is_empty() || free.map_or(true, |free| free >= needed)
    }

    /// Writes the files of a group under unfinished names; on no space some of them may be there.
    fn write_unfinished(&mut self, arrivals: &[Arrival]) -> io::Result<()> {
        for step in arrivals.chunks(FILES_PER_STEP) {
            let mut files: Vec<Arc<dyn File>> = Vec::with_capacity(step.len());
            for arrival in step {
                let dir = dir_of(arrival.revision);
                if self.made.insert(dir) {
                    let made = self.fs.create_dir_all(&self.shared.dir_path(dir));
                    made.inspect_err(|_| _ = self.made.remove(&dir))?;
                }
                if file_name::is_cut(&arrival.key) {
                    self.owed.sides.remove(&arrival.revision);
                    let side = self.shared.side_path(arrival.revision);
                    let written =
                        atomic_file::write(self.fs.as_ref(), &side, &arrival.key.to_bytes());
                    written.map_err(io_error)?;
                }
                let path = self.shared.unfinished_path(arrival);
                let file = match self.fs.create(&path) {
                    // Left when a group was refused and could not be tidied.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                        self.fs.remove(&path)?;
                        self.fs.create(&path)?
                    }
                    created => created?,
                };
                if !arrival.payload.is_empty() {
                    file.write_all_at(&arrival.payload, 0)?;
                }
                files.push(file);
            }
            if self.options.synced {
                files.iter().try_for_each(|file| file.sync_all())?;
            }
        }
        Ok(())
    }

    /// Gives the files of a group their names; counts those that have it.
    fn finish(&mut self, arrivals: &[Arrival], named: &mut usize) -> io::Result<()> {
        for arrival in arrivals {
            let revision = arrival.revision;
            let path = self.shared.path(revision, &arrival.entry());
            // A file of the revision under another name must be gone for good first, or there
            // could be two of them after a crash. Rare: one that was released in the same group,
            // or damaged.
            let old = self.shared.entry(revision);
            let old = old.map(|entry| self.shared.path(revision, &entry));
            if let Some(old) = old.filter(|old| *old != path) {
                remove_if_there(self.fs.as_ref(), &old)?;
                self.fs.sync_dir(&self.shared.dir_path(dir_of(revision)))?;
            }
            self.fs
                .rename(&self.shared.unfinished_path(arrival), &path)?;
            *named += 1;
            self.owed.dirs.insert(dir_of(revision));
            self.owed.records.insert(revision);
        }
        Ok(())
    }

    /// Whether an error refuses a group; notes why.
    fn refuses(&mut self, error: &io::Error) -> bool {
        let shortage = Shortage::of(error);
        self.refusal = shortage.unwrap_or(self.refusal);
        shortage.is_some()
    }

    /// Removes what is there of a group that was refused, of which so many have their names.
    fn tidy(&mut self, arrivals: &[Arrival], named: usize) -> io::Result<()> {
        for (at, arrival) in arrivals.iter().enumerate() {
            let revision = arrival.revision;
            if at < named {
                let path = self.shared.path(revision, &arrival.entry());
                remove_if_there(self.fs.as_ref(), &path)?;
            } else {
                remove_if_there(self.fs.as_ref(), &self.shared.unfinished_path(arrival))?;
            }
            if file_name::is_cut(&arrival.key) && self.shared.entry(revision).is_none() {
                remove_if_there(self.fs.as_ref(), &self.shared.side_path(revision))?;
            }
            if self.made.contains(&dir_of(revision)) {
                self.owed.dirs.insert(dir_of(revision));
            }
        }
        Ok(())
    }

    /// Stores the group's records; false if there is no space for them, and then nothing of them
    /// is left.
    fn store_all(&mut self, arrivals: &[Arrival]) -> io::Result<bool> {
        if !self.has_room(arrivals) {
            self.refusal = Shortage::Space;
            return Ok(false);
        }
        let mut named = 0;
        let written = self.write_unfinished(arrivals);
        match written.and_then(|()| self.finish(arrivals, &mut named)) {
            Ok(()) => Ok(true),
            Err(error) if self.refuses(&error) => {
                self.tidy(arrivals, named)?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes the files of records; false if there is no space to go on. Each leaves the index
    /// first: a reader that has not found its file must not take it for damage.
    fn remove_all(&mut self, revisions: &[Revision]) -> io::Result<bool> {
        for revision in revisions {
            let Some(entry) = self.shared.index.write().remove(*revision) else {
                continue;
            };
            let path = self.shared.path(*revision, &entry);
            match remove_if_there(self.fs.as_ref(), &path) {
                Ok(()) => {}
                Err(error) => {
                    self.shared.index.write().insert(*revision, entry);
                    return if self.refuses(&error) {
                        Ok(false)
                    } else {
                        Err(error)
                    };
                }
            }
            self.owed.dirs.insert(dir_of(*revision));
            self.owed.records.remove(revision);
            let has_side = match &entry {
                Entry::Named { key, .. } => file_name::is_cut(key),
                Entry::Damaged { .. } => false, // The next opening looks after it.
            };
            if has_side {
                self.owed.sides.insert(*revision);
            }
        }
        Ok(true)
    }

    /// Brings the directories of a commit to the write mode.
    fn settle(&mut self) -> io::Result<()> {
        if self.options.synced {
            self.owed.records.clear();
            return self.pay();
        }
        if self.owed.records.len() > UNSYNCED_MAX || self.owed.sides.len() > UNSYNCED_MAX {
            self.owed.everything = true;
            self.owed.records.clear();
        }
        // Names of removed records' side files are not kept without a limit.
        if self.owed.sides.len() > UNSYNCED_MAX {
            return self.pay();
        }
        Ok(())
    }

    /// Makes durable what is not. After an error the rest is still owed.
    fn pay(&mut self) -> io::Result<()> {
        if self.owed.everything {
            self.fs.sync_everything(&self.shared.dir)?;
            self.owed.everything = false;
            self.owed.records.clear();
            self.owed.dirs.clear();
        }
        while let Some(revision) = self.owed.records.first().copied() {
            if let Some(entry) = self.shared.entry(revision) {
                match self.fs.open(&self.shared.path(revision, &entry)) {
                    Ok(file) => file.sync_all()?,
                    // Somebody else removed it: damage, to be found when it is read.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            self.owed.records.remove(&revision);
        }
        while let Some(dir) = self.owed.dirs.first().copied() {
            self.fs.sync_dir(&self.shared.dir_path(dir))?;
            self.owed.dirs.remove(&dir);
        }
        while let Some(revision) = self.owed.sides.first().copied() {
            // If it comes back in a crash, the next opening removes it.
            remove_if_there(self.fs.as_ref(), &self.shared.side_path(revision))?;
            self.owed.sides.remove(&revision);
        }
        Ok(())
    }

    /// The steps of a commit.
    fn commit_group(
        &mut self,
        arrivals: &[Arrival],
        releases: &[Revision],
    ) -> io::Result<Committed> {
        let has_space = self.store_all(arrivals)?;
        let arrived = if has_space { arrivals } else { &[] };
        // One that is stored anew after its release was replaced by the store.
        let stored: FxHashSet<Revision> = arrived.iter().map(|arrival| arrival.revision).collect();
        let removals = releases
            .iter()
            .filter(|revision| !stored.contains(revision));
        let removals: Vec<Revision> = removals.copied().collect();
        if !self.remove_all(&removals)? {
            self.tidy(arrived, arrived.len())?;
            // What cannot be settled now is settled with the next group.
            return match self.settle() {
                Err(error) if !self.refuses(&error) => Err(error),
                Ok(()) | Err(_) => Ok(Committed::Full),
            };
        }
        if let Err(error) = self.settle() {
            // The names may be seen for as long as the machine runs and never be on the disk: the
            // next opening must not call these records known.
            let tidied = self.tidy(arrived, arrived.len());
            log::debug!("a group failed, its files are removed: {tidied:?}");
            return match self.refuses(&error) {
                true => tidied.map(|()| Committed::Full),
                false => Err(error),
            };
        }
        self.shared.publish(arrived);
        Ok(match has_space {
            true => Committed::Done,
            false => Committed::StoresFull,
        })
    }

    fn fatal<T>(&mut self, action: &str, result: io::Result<T>) -> Result<T, Fatal> {
        result.map_err(|source| {
            self.poisoned = true;
            Fatal {
                context: format!("cannot {action} in {}", self.shared.dir.display()),
                source,
            }
        })
    }
}

impl Engine for FilesEngine {
    fn store(&mut self, revision: Revision, key: &Key, payload: &Bytes) -> Result<Staged, Fatal> {
        self.check()?;
        Ok(self.group.store(&*self.shared, revision, key, payload))
    }

    fn release(&mut self, revision: Revision) -> Result<(), Fatal> {
        self.check()?;
        self.group.release(&*self.shared, revision);
        Ok(())
    }

    fn commit(&mut self) -> Result<Committed, Fatal> {
        self.check()?;
        let changes = self.group.take();
        // A release that was refused while its directory could not be synced finds nothing to
        // release when it comes again: the directory is owed.
        let owes = self.options.synced && !self.owed.dirs.is_empty();
        if changes.is_empty() && !owes {
            return Ok(Committed::Done);
        }
        let (mut arrivals, mut releases) = (Vec::new(), BTreeSet::new());
        let mut seen = FxHashSet::default();
        // Each revision once, in its last state.
        for (revision, record) in changes.into_iter().rev() {
            if record.is_none() {
                releases.insert(revision);
            }
            if let (true, Some((key, payload))) = (seen.insert(revision), record) {
                arrivals.push(Arrival::new(revision, key, payload));
            }
        }
        arrivals.reverse();
        let releases: Vec<Revision> = releases.into_iter().collect();
        // Before it as well: in a directory that is gone, an error of the commit says less.
        self.check_in_place()?;
        let committed = self.commit_group(&arrivals, &releases);
        let committed = self.fatal("commit a group", committed)?;
        self.check_in_place()?;
        Ok(committed)
    }

    fn check_in_place(&mut self) -> Result<(), Fatal> {
        let (path, opened) = &self.format;
        let checked = check_in_place(self.fs.as_ref(), path, *opened);
        self.fatal("go on", checked)
    }

    fn discard(&mut self) {
        self.group.clear();
    }

    fn idle(&mut self) -> Result<(), Fatal> {
        self.check()?;
        assert!(self.group.is_empty(), "idle with a group staged");
        let paid = match self.pay() {
            // It is paid when it is idle again, or with a group.
            Err(error) if self.refuses(&error) => Ok(()),
            paid => paid,
        };
        self.fatal("sync", paid)
    }

    fn refusal(&self) -> Shortage {
        self.refusal
    }

    fn close(&mut self) -> Result<(), Fatal> {
        self.check()?;
        assert!(self.group.is_empty(), "closed with a group staged");
        let paid = self.pay();
        self.fatal("sync", paid)?;
        let noted = files_recovery::note_synced(self.fs.as_ref(), &self.shared.dir);
        self.fatal("note the end", noted)
    }

    fn reader(&self) -> Arc<dyn Reader> {
        Arc::clone(&self.shared) as Arc<dyn Reader>
    }
}

pub(super) fn remove_if_there(fs: &dyn FileSystem, path: &Path) -> io::Result<()> {
    match fs.remove(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// An error of `disk::atomic_file` as one of the operating system.
pub(super) fn io_error(error: LogError) -> io::Error {
    match error {
        LogError::Refused(Shortage::Space) => io::ErrorKind::StorageFull.into(),
        LogError::Refused(Shortage::Descriptors) => rustix::io::Errno::MFILE.into(),
        LogError::Refused(Shortage::Memory) => io::ErrorKind::OutOfMemory.into(),
        LogError::Refused(Shortage::Moment) => io::ErrorKind::Interrupted.into(),
        LogError::Io { source, .. } => source,
        LogError::Damaged { .. } | LogError::Version { .. } | LogError::Poisoned => {
            io::Error::other(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::disk::fs::OsFileSystem;
    use crate::disk::mem::{Fault, Loss, MemFileSystem, Operation};
    use crate::storage::ReadError;

    const DIR: &str = "files";
    const OPTIONS: FilesOptions = FilesOptions {
        synced: true,
        reserve_bytes: 0,
    };

    fn open(fs: &MemFileSystem) -> (FilesEngine, Vec<String>) {
        let fs: Arc<dyn FileSystem> = Arc::new(fs.clone());
        let (engine, recovery) = FilesEngine::open(fs, Path::new(DIR), OPTIONS).unwrap();
        let damaged = recovery.damaged.iter().map(ToString::to_string);
        (engine, damaged.collect())
    }

    fn store(engine: &mut FilesEngine, number: u64, key: &str, payload: &'static str) {
        let key = Key::parse(key.as_bytes()).unwrap();
        let payload = Bytes::from_static(payload.as_bytes());
        let staged = engine.store(Revision::from_u64(number), &key, &payload);
        assert_eq!(staged.unwrap(), Staged::New);
        assert_eq!(engine.commit().unwrap(), Committed::Done);
    }

    fn names(fs: &MemFileSystem, dir: &str) -> Vec<String> {
        fs.list(&Path::new(DIR).join(dir)).unwrap()
    }

    fn is_damaged(engine: &FilesEngine, number: u64) -> bool {
        let fetched = engine.reader().fetch(Revision::from_u64(number));
        matches!(fetched, Err(ReadError::Damaged { .. }))
    }

    #[test]
    fn a_file_holds_the_payload_and_its_name_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join(DIR);
        let fs: Arc<dyn FileSystem> = Arc::new(OsFileSystem);
        let (mut engine, _) = FilesEngine::open(Arc::clone(&fs), &dir, OPTIONS).unwrap();
        store(&mut engine, 0x2a07, "user/7", "hello");
        let entries = std::fs::read_dir(dir.join("2a")).unwrap();
        let paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        let name = paths[0].file_name().unwrap().to_str().unwrap();
        assert!(
            paths.len() == 1 && name.starts_with("user%2F7.10759.5."),
            "{name}"
        );
        assert_eq!(std::fs::read(&paths[0]).unwrap(), b"hello");
        engine.close().unwrap();
        let (mut engine, recovery) = FilesEngine::open(fs, &dir, OPTIONS).unwrap();
        assert_eq!((recovery.records, recovery.damaged.len()), (1, 0));
        engine.release(Revision::from_u64(0x2a07)).unwrap();
        engine.commit().unwrap();
        assert!(!paths[0].exists());
    }

    #[test]
    fn a_long_key_has_a_side_file_as_long_as_its_record() {
        let fs = MemFileSystem::new();
        let (mut engine, _) = open(&fs);
        let key = "/".repeat(300);
        store(&mut engine, 1, &key, "x");
        let found = names(&fs, "00");
        assert!(
            found[0].starts_with("%2F%2F") && found[0].contains("%.1.1."),
            "{found:?}"
        );
        assert_eq!(found[1], "1.key");
        fs.crash(Loss::Everything);
        let (mut engine, damaged) = open(&fs);
        assert_eq!(damaged, [""; 0]);
        let (found, _) = engine
            .reader()
            .fetch(Revision::from_u64(1))
            .unwrap()
            .unwrap();
        assert_eq!(found.to_string(), key);
        engine.release(Revision::from_u64(1)).unwrap();
        engine.commit().unwrap();
        assert!(names(&fs, "00").is_empty());
        store(&mut engine, 1, &key, "x");
        fs.remove(Path::new("files/00/1.key")).unwrap();
        let (engine, damaged) = open(&fs);
        assert!(
            damaged[0].contains("the file of its key is missing"),
            "{damaged:?}"
        );
        assert!(is_damaged(&engine, 1));
    }

    #[test]
    fn what_a_crash_left_is_removed_and_what_is_foreign_is_kept_and_reported() {
        let fs = MemFileSystem::new();
        let (mut engine, _) = open(&fs);
        store(&mut engine, 1, "a", "x");
        let good = names(&fs, "00").remove(0);
        let dir = Path::new("files/00");
        for name in ["b.2.5.00000000.tmp", "2.key", "notes.txt"] {
            fs.create(&dir.join(name)).unwrap();
        }
        let (_, damaged) = open(&fs);
        assert!(
            damaged.len() == 1 && damaged[0].contains("notes.txt"),
            "{damaged:?}"
        );
        assert_eq!(names(&fs, "00"), [good, "notes.txt".to_owned()]);
    }

    #[test]
    fn a_damaged_file_is_kept_and_reported_until_it_is_stored_anew() {
        let fs = MemFileSystem::new();
        let (mut engine, _) = open(&fs);
        store(&mut engine, 1, "a", "good");
        store(&mut engine, 2, "b", "good");
        let dir = Path::new("files/00");
        let found = names(&fs, "00");
        assert!(fs.flip_bit(&dir.join(&found[0]), 1, 3));
        // A flipped bit in a name: another key, for which the checksum is wrong.
        fs.rename(
            &dir.join(&found[1]),
            &dir.join(found[1].replace("b.", "c.")),
        )
        .unwrap();
        drop(engine);
        let (mut engine, _) = open(&fs);
        assert_eq!(engine.reader().counters().records, 2);
        assert!(is_damaged(&engine, 1) && is_damaged(&engine, 2));
        store(&mut engine, 1, "a", "good");
        store(&mut engine, 2, "b", "good");
        assert_eq!(names(&fs, "00"), found);
        assert!(!is_damaged(&engine, 1) && !is_damaged(&engine, 2));
    }

    #[test]
    fn a_name_that_tells_another_length_is_damage() {
        let fs = MemFileSystem::new();
        let (mut engine, _) = open(&fs);
        store(&mut engine, 1, "a", "good");
        let found = names(&fs, "00").remove(0);
        let dir = Path::new("files/00");
        fs.rename(&dir.join(&found), &dir.join(found.replace(".4.", ".5.")))
            .unwrap();
        let (engine, _) = open(&fs);
        assert!(is_damaged(&engine, 1));
    }

    #[test]
    fn a_record_whose_name_is_not_durable_is_not_known_after_a_restart() {
        let fs = MemFileSystem::new();
        let (mut engine, _) = open(&fs);
        store(&mut engine, 1, "a", "x");
        fs.fail(Operation::SyncDir, 0, Fault::Io);
        let key = Key::parse(b"b").unwrap();
        let staged = engine.store(Revision::from_u64(2), &key, &Bytes::from_static(b"y"));
        assert_eq!(staged.unwrap(), Staged::New);
        assert!(engine.commit().is_err());
        let (mut engine, _) = open(&fs);
        store(&mut engine, 2, "b", "y");
        fs.crash(Loss::Everything);
        let (engine, damaged) = open(&fs);
        assert_eq!((engine.reader().counters().records, damaged.len()), (2, 0));
    }

    #[test]
    fn after_an_unsure_end_every_file_is_read() {
        let fs = MemFileSystem::new();
        let disk: Arc<dyn FileSystem> = Arc::new(fs.clone());
        let below = FilesOptions {
            synced: false,
            ..OPTIONS
        };
        let (mut engine, _) = FilesEngine::open(Arc::clone(&disk), Path::new(DIR), below).unwrap();
        store(&mut engine, 1, "a", "torn");
        // The name got to the disk, the content did not.
        let mut keeps = |_: usize, what: &crate::disk::mem::Unsynced| {
            !matches!(what, crate::disk::mem::Unsynced::Sector { .. })
        };
        fs.crash(Loss::Choose(&mut keeps));
        let (mut engine, damaged) = open(&fs);
        assert!(damaged[0].contains("it should have 4 bytes"), "{damaged:?}");
        assert!(is_damaged(&engine, 1));
        engine.close().unwrap();
        let (_, damaged) = open(&fs);
        assert_eq!(damaged, [""; 0], "known, and found again when it is read");
    }
}
