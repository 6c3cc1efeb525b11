//! What the disk in memory holds, and what a crash leaves of it. The model is described in
//! [`super`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Fault, Loss, Operation, Unsynced};
use crate::disk::segment::SECTOR_BYTES;

#[derive(Clone, Default)]
pub(super) struct Disk {
    pub(super) files: BTreeMap<u64, Inode>,
    /// Names as they are seen.
    pub(super) names: BTreeMap<PathBuf, u64>,
    /// Names as they are on the disk.
    pub(super) durable_names: BTreeMap<PathBuf, u64>,
    pub(super) unsynced_names: Vec<(u64, NameChange)>,
    pub(super) dirs: BTreeSet<PathBuf>,
    /// Numbers of files and of changes: the order in which they were done.
    pub(super) last_number: u64,
    /// Grows with each crash; a file of an earlier one is dead.
    pub(super) generation: u64,
    pub(super) capacity: Option<u64>,
    pub(super) armed: Vec<Armed>,
    /// Calls that could have been made to fail, so far.
    pub(super) calls: u64,
    /// The last one that was.
    pub(super) failed: Option<Operation>,
    /// Calls that open something fail.
    pub(super) is_out_of_descriptors: bool,
    /// What was done, while it is recorded.
    pub(super) trace: Option<Vec<String>>,
}

/// Forks of a disk share the bytes until one of them changes them.
#[derive(Clone, Default)]
pub(super) struct Inode {
    pub(super) path: PathBuf,
    /// As it is seen.
    pub(super) content: Arc<Vec<u8>>,
    /// As it is on the disk.
    pub(super) durable: Arc<Vec<u8>>,
    pub(super) unsynced: Vec<(u64, Change)>,
}

#[derive(Clone)]
pub(super) enum Change {
    Data { offset: u64, data: Vec<u8> },
    Length(u64),
}

#[derive(Clone)]
pub(super) enum NameChange {
    Create(PathBuf, u64),
    Rename(PathBuf, PathBuf, u64),
    Remove(PathBuf),
}

#[derive(Clone)]
pub(super) struct Armed {
    pub(super) operation: Operation,
    /// Calls that still succeed before.
    pub(super) after: u64,
    pub(super) fault: Fault,
}

impl Disk {
    pub(super) fn named(&mut self, path: &Path) -> Option<&mut Inode> {
        let number = self.names.get(path)?;
        self.files.get_mut(number)
    }

    pub(super) fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    pub(super) fn used(&self) -> u64 {
        self.names
            .values()
            .filter_map(|number| self.files.get(number))
            .map(|file| file.content.len() as u64)
            .sum()
    }

    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(line());
        }
    }

    /// Whether this call is to fail, and how; counts it.
    pub(super) fn fault(&mut self, operation: Operation) -> Option<Fault> {
        self.calls += 1;
        let applies =
            |armed: &Armed| armed.operation == operation || armed.operation == Operation::Any;
        let due = self
            .armed
            .iter()
            .position(|armed| applies(armed) && armed.after == 0);
        for armed in self.armed.iter_mut().filter(|armed| applies(armed)) {
            armed.after = armed.after.saturating_sub(1);
        }
        let due = due.map(|at| self.armed.remove(at).fault);
        let fault =
            due.or((self.is_out_of_descriptors && opens(operation)).then_some(Fault::Refused));
        if fault.is_some() {
            self.failed = Some(operation);
        }
        fault
    }

    /// Whether a call that no fault is armed for can open something.
    pub(super) fn check_descriptors(&self) -> io::Result<()> {
        match self.is_out_of_descriptors {
            true => Err(fault_error(Fault::Refused, Operation::Open)),
            false => Ok(()),
        }
    }

    pub(super) fn check(&mut self, operation: Operation) -> io::Result<()> {
        match self.fault(operation) {
            None => Ok(()),
            Some(fault) => Err(fault_error(fault, operation)),
        }
    }

    pub(super) fn change_name(&mut self, change: NameChange) {
        let number = self.next_number();
        change.apply(&mut self.names);
        self.unsynced_names.push((number, change));
    }

    pub(super) fn unsynced(&self) -> Vec<(u64, Unsynced)> {
        let names = self.unsynced_names.iter().map(|(number, change)| {
            let what = match change {
                NameChange::Create(path, _) => Unsynced::Create(path.clone()),
                NameChange::Rename(from, to, _) => Unsynced::Rename(from.clone(), to.clone()),
                NameChange::Remove(path) => Unsynced::Remove(path.clone()),
            };
            (*number, what)
        });
        let data = self.files.values().flat_map(|file| {
            file.unsynced.iter().map(|(number, change)| {
                let path = file.path.clone();
                let what = match change {
                    Change::Data { offset, data } => Unsynced::Sector {
                        path,
                        offset: *offset,
                        bytes: data.len(),
                    },
                    Change::Length(len) => Unsynced::Length { path, len: *len },
                };
                (*number, what)
            })
        });
        let mut all: Vec<_> = names.chain(data).collect();
        all.sort_unstable_by_key(|(number, _)| *number);
        all
    }

    pub(super) fn crash(&mut self, loss: Loss<'_>) -> Vec<Unsynced> {
        let unsynced = self.unsynced();
        // How many bytes of each change are kept: all, none, or the first part of a sector.
        let kept = keep(&unsynced, loss);
        for file in self.files.values_mut() {
            for (number, change) in std::mem::take(&mut file.unsynced) {
                match kept.get(&number).copied().unwrap_or(0) {
                    0 => {}
                    bytes => change.apply(Arc::make_mut(&mut file.durable), bytes),
                }
            }
            file.content = Arc::clone(&file.durable);
        }
        for (number, change) in std::mem::take(&mut self.unsynced_names) {
            if kept.get(&number).copied().unwrap_or(0) > 0 {
                change.apply(&mut self.durable_names);
            }
        }
        self.names.clone_from(&self.durable_names);
        let named: BTreeMap<u64, PathBuf> = self
            .names
            .iter()
            .map(|(path, number)| (*number, path.clone()))
            .collect();
        self.files.retain(|number, _| named.contains_key(number));
        for (number, path) in named {
            if let Some(file) = self.files.get_mut(&number) {
                file.path = path;
            }
        }
        self.generation += 1;
        self.armed.clear();
        let is_lost = |number: &u64| kept.get(number).copied().unwrap_or(0) == 0;
        let lost = unsynced.into_iter().filter(|(number, _)| is_lost(number));
        lost.map(|(_, what)| what).collect()
    }
}

/// The bytes kept of each unsynced change; `usize::MAX` for all.
pub(super) fn keep(unsynced: &[(u64, Unsynced)], loss: Loss<'_>) -> BTreeMap<u64, usize> {
    let mut kept = BTreeMap::new();
    let mut behind = |mut left: u64| {
        for (number, what) in unsynced {
            let bytes = match what {
                Unsynced::Sector { bytes, .. } => {
                    let bytes = usize::try_from(left).unwrap_or(usize::MAX).min(*bytes);
                    left -= bytes as u64;
                    bytes
                }
                Unsynced::Length { .. }
                | Unsynced::Create(_)
                | Unsynced::Rename(..)
                | Unsynced::Remove(_) => usize::MAX,
            };
            kept.insert(*number, bytes);
        }
    };
    match loss {
        Loss::Everything => {}
        Loss::Nothing => behind(u64::MAX),
        Loss::BehindBytes(bytes) => behind(bytes),
        Loss::Random(seed) => {
            let mut random = fastrand::Rng::with_seed(seed);
            let total: u64 = unsynced.len() as u64 * SECTOR_BYTES as u64;
            match random.u32(..8) {
                0 => {}
                1 | 2 => behind(random.u64(..=total)),
                likely => {
                    for (number, _) in unsynced {
                        let keep = random.u32(..8) < likely;
                        kept.insert(*number, if keep { usize::MAX } else { 0 });
                    }
                }
            }
        }
        Loss::Choose(keeps) => {
            for (at, (number, what)) in unsynced.iter().enumerate() {
                kept.insert(*number, if keeps(at, what) { usize::MAX } else { 0 });
            }
        }
    }
    kept
}

pub(super) fn fault_error(fault: Fault, operation: Operation) -> io::Error {
    let error = match fault {
        Fault::Io | Fault::ShortWrite => io::Error::other("input/output error (injected)"),
        Fault::NoSpace => io::ErrorKind::StorageFull.into(),
        Fault::Refused if opens(operation) => rustix::io::Errno::MFILE.into(),
        Fault::Refused => rustix::io::Errno::NOMEM.into(),
    };
    // A directory is opened for its sync, a file is open.
    let is_sync = operation == Operation::Sync
        || (operation == Operation::SyncDir && fault != Fault::Refused);
    match is_sync {
        true => io::Error::other(error),
        false => error,
    }
}

/// Whether a call needs a descriptor of its own.
fn opens(operation: Operation) -> bool {
    use Operation::{Create, Open, SyncDir};
    matches!(operation, Create | Open | SyncDir)
}

impl Change {
    /// Applies the first `bytes` bytes of it.
    pub(super) fn apply(&self, content: &mut Vec<u8>, bytes: usize) {
        match self {
            Change::Data { offset, data } => {
                let data = data.get(..bytes).unwrap_or(data);
                let start = *offset as usize;
                let end = start + data.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[start..end].copy_from_slice(data);
            }
            Change::Length(len) => content.resize(*len as usize, 0),
        }
    }
}

impl Inode {
    /// Changes the bytes that are seen and those on the disk, which are mostly the same.
    pub(super) fn rot(&mut self, mut change: impl FnMut(&mut Vec<u8>)) {
        let is_shared = Arc::ptr_eq(&self.content, &self.durable);
        change(Arc::make_mut(&mut self.content));
        if is_shared {
            self.durable = Arc::clone(&self.content);
        } else {
            change(Arc::make_mut(&mut self.durable));
        }
    }
}

impl NameChange {
    pub(super) fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            NameChange::Create(path, number) => {
                names.insert(path.clone(), *number);
            }
            NameChange::Rename(from, to, number) => {
                names.remove(from);
                names.insert(to.clone(), *number);
            }
            NameChange::Remove(path) => {
                names.remove(path);
            }
        }
    }

    pub(super) fn is_in(&self, dir: &Path) -> bool {
        let (NameChange::Create(path, _)
        | NameChange::Rename(_, path, _)
        | NameChange::Remove(path)) = self;
        path.parent() == Some(dir)
    }

    pub(super) fn is_below(&self, dir: &Path) -> bool {
        let (NameChange::Create(path, _)
        | NameChange::Rename(_, path, _)
        | NameChange::Remove(path)) = self;
        path.starts_with(dir)
    }
}

pub(super) fn not_found(path: &Path) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        format!("{} is not there", path.display()),
    )
}

pub(super) fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

impl Disk {
    pub(super) fn file(&mut self, inode: u64) -> &mut Inode {
        self.files.get_mut(&inode).expect("the caller looked")
    }

    /// Writes what fits; true if that is all.
    pub(super) fn write(&mut self, inode: u64, data: &[u8], offset: u64) -> bool {
        let free = self
            .capacity
            .map(|capacity| capacity.saturating_sub(self.used()));
        let len = self.file(inode).content.len() as u64;
        let fits = match free {
            None => data.len(),
            Some(free) => {
                let writable = (len + free).saturating_sub(offset);
                data.len()
                    .min(usize::try_from(writable).unwrap_or(usize::MAX))
            }
        };
        let data_fits = &data[..fits];
        let mut start = 0;
        while start < fits {
            let at = offset + start as u64;
            let left_in_sector = SECTOR_BYTES - at as usize % SECTOR_BYTES;
            let end = fits.min(start + left_in_sector);
            let number = self.next_number();
            let change = Change::Data {
                offset: at,
                data: data_fits[start..end].to_vec(),
            };
            let file = self.file(inode);
            change.apply(Arc::make_mut(&mut file.content), usize::MAX);
            file.unsynced.push((number, change));
            start = end;
        }
        fits == data.len()
    }

    pub(super) fn sync(&mut self, inode: u64) -> io::Result<()> {
        let fault = self.fault(Operation::Sync);
        let file = self.file(inode);
        let changes = std::mem::take(&mut file.unsynced);
        if let Some(fault) = fault {
            return Err(fault_error(fault, Operation::Sync));
        }
        for (_, change) in changes {
            change.apply(Arc::make_mut(&mut file.durable), usize::MAX);
        }
        let name = name_of(&file.path);
        self.note(|| format!("sync {name}"));
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let inode = *self.names.get(from).ok_or_else(|| not_found(from))?;
        self.change_name(NameChange::Rename(from.to_owned(), to.to_owned(), inode));
        if let Some(file) = self.files.get_mut(&inode) {
            file.path = to.to_owned();
        }
        self.note(|| format!("rename {} {}", name_of(from), name_of(to)));
        Ok(())
    }

    /// Makes the names in a directory durable, or loses them with `fault`.
    pub(super) fn sync_names(&mut self, dir: &Path, fault: Option<Fault>) -> io::Result<()> {
        let (synced, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.unsynced_names)
            .into_iter()
            .partition(|(_, change)| change.is_in(dir));
        self.unsynced_names = rest;
        if let Some(fault) = fault {
            return Err(fault_error(fault, Operation::SyncDir));
        }
        for (_, change) in synced {
            change.apply(&mut self.durable_names);
        }
        self.note(|| "sync the directory".to_owned());
        Ok(())
    }
}
