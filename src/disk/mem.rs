//! A disk in memory that knows what is durable, for tests and the simulation.
//!
//! Clones share the disk; [`MemFileSystem::fork`] copies it. Reads see what was written, like the
//! page cache. [`MemFileSystem::crash`] is a power failure: of what was not synced, any part may be
//! lost, by choice of a [`Loss`]. A process that merely ends needs no call: drop its files.
//!
//! The model, which is at least as harsh as Linux:
//!
//! * Data is lost by the **sector**: of an unsynced write any subset of its sectors is on the disk,
//!   whatever the order of the writes. [`Loss::BehindBytes`] even cuts within one.
//! * A change of a file's length, a name made, given or removed is kept or lost, each on its own,
//!   until `sync_data` or `sync_dir`. Directories themselves are always durable.
//! * A **failed sync** loses what it should have made durable, and later syncs do not bring it
//!   back, though reads still see it: what Linux does with pages after a failed write-back.
//! * A file opened before a crash is dead after it.
//! * The capacity counts the bytes of files as reads see them. A write that does not fit writes
//!   what does.
//!
//! Known limits: no torn sectors but by [`Loss::BehindBytes`]; no read errors except injected ones.

mod state;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::fs::{File, FileId, FileSystem};
use super::segment::SECTOR_BYTES;
use state::{Armed, Change, Disk, Inode, NameChange, fault_error, name_of, not_found};

/// The disk; see the header of this file.
#[derive(Clone, Default)]
pub struct MemFileSystem {
    /// Guards everything; nothing else is locked while it is held.
    disk: Arc<Mutex<Disk>>,
}

/// Kinds of calls that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Any of those below.
    Any,
    /// `create`.
    Create,
    /// `open`.
    Open,
    /// `read_at`.
    Read,
    /// `write_all_at`.
    Write,
    /// `set_len`.
    SetLen,
    /// `sync_data`, `sync_all`.
    Sync,
    /// `sync_dir`.
    SyncDir,
    /// `rename`.
    Rename,
    /// `remove`.
    Remove,
    /// `create_dir_all`.
    MakeDir,
    /// `list`, `exists`, `len`.
    Look,
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// EIO; nothing happens, except that a failed sync loses what it should have synced.
    Io,
    /// ENOSPC; nothing happens, except that a write writes its first half and a failed sync loses
    /// what it should have synced.
    NoSpace,
    /// A write writes its first half, then EIO. As [`Fault::Io`] for other calls.
    ShortWrite,
    /// EMFILE where the call opens something, ENOMEM elsewhere; nothing happens, except that a
    /// write writes its first half. A failed sync loses what it should have synced.
    Refused,
}

/// Something that is not durable yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsynced {
    /// A sector of a write, or the part of a sector that it covers.
    Sector {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// How much.
        bytes: usize,
    },
    /// A file was cut or extended.
    Length {
        /// The file.
        path: PathBuf,
        /// Its new length.
        len: u64,
    },
    /// A name was made.
    Create(PathBuf),
    /// A name was given.
    Rename(PathBuf, PathBuf),
    /// A name was removed.
    Remove(PathBuf),
}

/// What a crash loses of what is unsynced, in the order in which it was done.
pub enum Loss<'a> {
    /// Everything.
    Everything,
    /// Nothing: all of it happened to be written.
    Nothing,
    /// All data behind the first so many bytes; lengths and names are kept.
    BehindBytes(u64),
    /// Any part, by a seed.
    Random(u64),
    /// What this returns false for.
    Choose(&'a mut dyn FnMut(usize, &Unsynced) -> bool),
}

impl MemFileSystem {
    /// An empty disk without a limit.
    pub fn new() -> MemFileSystem {
        MemFileSystem::default()
    }

    /// A copy that shares nothing; files opened here are not open there.
    pub fn fork(&self) -> MemFileSystem {
        let disk = self.disk.lock().clone();
        MemFileSystem {
            disk: Arc::new(Mutex::new(disk)),
        }
    }

    /// Limits the bytes of all files; `None` lifts the limit.
    pub fn set_capacity(&self, capacity: Option<u64>) {
        self.disk.lock().capacity = capacity;
    }

    /// Whether every call that opens something fails with EMFILE from now on, until it is told
    /// otherwise.
    pub fn set_out_of_descriptors(&self, is_out: bool) {
        self.disk.lock().is_out_of_descriptors = is_out;
    }

    /// Which kind of call was made to fail last.
    pub fn failed(&self) -> Option<Operation> {
        self.disk.lock().failed
    }

    /// Makes one call fail: the one after `after` more of its kind.
    pub fn fail(&self, operation: Operation, after: u64, fault: Fault) {
        self.disk.lock().armed.push(Armed {
            operation,
            after,
            fault,
        });
    }

    /// How many calls there were that could have been made to fail.
    pub fn calls(&self) -> u64 {
        self.disk.lock().calls
    }

    /// Forgets the failures that have not happened yet; there are descriptors again.
    pub fn heal(&self) {
        let mut disk = self.disk.lock();
        disk.armed.clear();
        disk.is_out_of_descriptors = false;
    }

    /// Whether calls that open something fail.
    pub fn is_out_of_descriptors(&self) -> bool {
        self.disk.lock().is_out_of_descriptors
    }

    /// What a crash could lose now, in the order in which it was done.
    pub fn unsynced(&self) -> Vec<Unsynced> {
        self.disk
            .lock()
            .unsynced()
            .into_iter()
            .map(|(_, what)| what)
            .collect()
    }

    /// A power failure. Returns what was lost; afterwards everything there is is durable.
    pub fn crash(&self, loss: Loss<'_>) -> Vec<Unsynced> {
        self.disk.lock().crash(loss)
    }

    /// Turns a bit of a file, seen and on the disk. False if the file has no such byte.
    pub fn flip_bit(&self, path: &Path, offset: u64, bit: u8) -> bool {
        let mut disk = self.disk.lock();
        let Some(file) = disk.named(path) else {
            return false;
        };
        let mut flipped = false;
        file.rot(|bytes| {
            if let Some(byte) = bytes.get_mut(offset as usize) {
                *byte ^= 1 << (bit % 8);
                flipped = true;
            }
        });
        flipped
    }

    /// Cuts a file, seen and on the disk. False if the file is not longer than that.
    pub fn cut(&self, path: &Path, len: u64) -> bool {
        let mut disk = self.disk.lock();
        let Some(file) = disk.named(path) else {
            return false;
        };
        let mut is_cut = false;
        file.rot(|bytes| {
            is_cut |= bytes.len() as u64 > len;
            bytes.truncate(len as usize);
        });
        is_cut
    }

    /// Another, empty directory takes the place of `dir`: all names in it and below are gone,
    /// durably. Files that are open go on without a name, as under an operating system.
    pub fn replace_dir(&self, dir: &Path) {
        let mut disk = self.disk.lock();
        disk.names.retain(|path, _| !path.starts_with(dir));
        disk.durable_names.retain(|path, _| !path.starts_with(dir));
        let (below, rest) = std::mem::take(&mut disk.unsynced_names)
            .into_iter()
            .partition::<Vec<_>, _>(|(_, change)| change.is_below(dir));
        drop(below);
        disk.unsynced_names = rest;
    }

    /// The content of a file, as it is seen.
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        Some(self.disk.lock().named(path)?.content.to_vec())
    }

    /// Records what is done from here on, a line for each call that changes something.
    pub fn start_trace(&self) {
        self.disk.lock().trace = Some(Vec::new());
    }

    /// What was done since the last call.
    pub fn take_trace(&self) -> Vec<String> {
        self.disk
            .lock()
            .trace
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }
}

impl FileSystem for MemFileSystem {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut disk = self.disk.lock();
        disk.check(Operation::Create)?;
        if disk.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let dir = path.parent().unwrap_or(Path::new(""));
        if !dir.as_os_str().is_empty() && !disk.dirs.contains(dir) {
            return Err(not_found(dir));
        }
        let inode = disk.next_number();
        let file = Inode {
            path: path.to_owned(),
            ..Inode::default()
        };
        disk.files.insert(inode, file);
        disk.change_name(NameChange::Create(path.to_owned(), inode));
        disk.note(|| format!("create {}", name_of(path)));
        let generation = disk.generation;
        Ok(Arc::new(MemFile {
            disk: Arc::clone(&self.disk),
            inode,
            generation,
        }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut disk = self.disk.lock();
        disk.check(Operation::Open)?;
        let inode = *disk.names.get(path).ok_or_else(|| not_found(path))?;
        let generation = disk.generation;
        Ok(Arc::new(MemFile {
            disk: Arc::clone(&self.disk),
            inode,
            generation,
        }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut disk = self.disk.lock();
        disk.check(Operation::Look)?;
        disk.check_descriptors()?;
        if !disk.dirs.contains(dir) {
            return Err(not_found(dir));
        }
        let inside = disk.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.map(|path| name_of(path)).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.check(Operation::Rename)?;
        disk.rename(from, to)
    }

    fn rename_durably(&self, from: &Path, to: &Path) -> io::Result<()> {
        // The fault of the last step comes before the first one if the directory is not opened.
        let mut disk = self.disk.lock();
        let fault = disk.fault(Operation::SyncDir);
        if let Some(fault) = fault.filter(|fault| *fault == Fault::Refused) {
            return Err(fault_error(fault, Operation::SyncDir));
        }
        disk.check(Operation::Rename)?;
        disk.rename(from, to)?;
        disk.sync_names(to.parent().unwrap_or(Path::new("")), fault)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.check(Operation::Remove)?;
        if !disk.names.contains_key(path) {
            return Err(not_found(path));
        }
        disk.change_name(NameChange::Remove(path.to_owned()));
        disk.note(|| format!("remove {}", name_of(path)));
        Ok(())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let mut disk = self.disk.lock();
        disk.check(Operation::Look)?;
        Ok(disk.names.contains_key(path))
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.check(Operation::MakeDir)?;
        disk.dirs.extend(dir.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        match disk.fault(Operation::SyncDir) {
            Some(Fault::Refused) => Err(fault_error(Fault::Refused, Operation::SyncDir)),
            fault => disk.sync_names(dir, fault),
        }
    }

    fn sync_everything(&self, _dir: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.check_descriptors()?;
        let files: Vec<u64> = disk.files.keys().copied().collect();
        files.into_iter().try_for_each(|inode| disk.sync(inode))?;
        for (_, change) in std::mem::take(&mut disk.unsynced_names) {
            change.apply(&mut disk.durable_names);
        }
        Ok(())
    }

    fn free_space(&self, _dir: &Path) -> io::Result<u64> {
        let disk = self.disk.lock();
        Ok(disk
            .capacity
            .map_or(u64::MAX, |capacity| capacity.saturating_sub(disk.used())))
    }

    fn id(&self, path: &Path) -> io::Result<FileId> {
        let disk = self.disk.lock();
        let inode = *disk.names.get(path).ok_or_else(|| not_found(path))?;
        Ok(FileId { device: 0, inode })
    }
}

struct MemFile {
    disk: Arc<Mutex<Disk>>,
    inode: u64,
    generation: u64,
}

impl MemFile {
    /// Runs `call` on the disk, if the file is still alive.
    fn with<T>(&self, call: impl FnOnce(&mut Disk) -> io::Result<T>) -> io::Result<T> {
        let mut disk = self.disk.lock();
        if disk.generation != self.generation || !disk.files.contains_key(&self.inode) {
            return Err(io::Error::other("this file was opened before the crash"));
        }
        call(&mut disk)
    }
}

impl File for MemFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|disk| {
            disk.check(Operation::Read)?;
            let content = &disk.file(self.inode).content;
            let start = usize::try_from(offset)
                .unwrap_or(usize::MAX)
                .min(content.len());
            let length = buffer.len().min(content.len() - start);
            buffer[..length].copy_from_slice(&content[start..start + length]);
            Ok(length)
        })
    }

    /// A read that begins in every fourth sector counts as one that has to wait for the disk, so
    /// that tests meet both cases.
    fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> bool {
        if offset / SECTOR_BYTES as u64 % 4 == 3 {
            return false;
        }
        let read = self.with(|disk| {
            let content = &disk.file(self.inode).content;
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let end = start.saturating_add(buffer.len());
            let cached = content.get(start..end);
            cached
                .into_iter()
                .for_each(|bytes| buffer.copy_from_slice(bytes));
            Ok(cached.is_some())
        });
        read.unwrap_or(false)
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.with(|disk| {
            let name = name_of(&disk.file(self.inode).path);
            let length = data.len();
            disk.note(|| format!("write {name} {offset}+{length}"));
            match disk.fault(Operation::Write) {
                Some(fault @ (Fault::ShortWrite | Fault::NoSpace | Fault::Refused)) => {
                    disk.write(self.inode, &data[..length / 2], offset);
                    Err(fault_error(fault, Operation::Write))
                }
                Some(fault @ Fault::Io) => Err(fault_error(fault, Operation::Write)),
                None if disk.write(self.inode, data, offset) => Ok(()),
                None => Err(fault_error(Fault::NoSpace, Operation::Write)),
            }
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|disk| {
            disk.check(Operation::SetLen)?;
            let number = disk.next_number();
            let file = disk.file(self.inode);
            let change = Change::Length(len);
            change.apply(Arc::make_mut(&mut file.content), usize::MAX);
            file.unsynced.push((number, change));
            let name = name_of(&file.path);
            disk.note(|| format!("set length {name} {len}"));
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|disk| {
            disk.check(Operation::Look)?;
            Ok(disk.file(self.inode).content.len() as u64)
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|disk| disk.sync(self.inode))
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn id(&self) -> io::Result<FileId> {
        let inode = self.inode;
        Ok(FileId { device: 0, inode })
    }
}

#[cfg(test)]
mod tests;
