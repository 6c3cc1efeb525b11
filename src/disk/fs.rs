//! The file system as the log sees it, and the operating system's.
//!
//! Durability is explicit: data is durable once [`File::sync_data`] returned, a name once
//! [`FileSystem::sync_dir`] of its directory did. [`crate::disk::mem`] takes both at their word.
//!
//! A failed sync is final, whatever its reason: what it should have made durable may be lost while
//! it is still seen. So it is an error without a number, which [`Shortage::of`] takes for none that
//! may be tried again. A directory that cannot be opened for its sync is another matter: nothing
//! was tried.
//!
//! [`Shortage::of`]: crate::error::Shortage::of

use std::fs;
use std::io;
#[cfg(target_os = "linux")]
use std::io::IoSliceMut;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, StatxFlags};

use super::private;
use crate::error::Shortage;

/// What makes a file or directory this one and no other while it is open: its path may name another
/// one by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    /// The device that holds it.
    pub device: u64,
    /// Its number on the device.
    pub inode: u64,
}

/// Files by path. Shared by threads.
pub trait FileSystem: Send + Sync {
    /// Makes a file and opens it for reading and writing; an error if it exists.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// The names of the files in a directory, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Gives a file another name, replacing a file that has it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// As [`FileSystem::rename`] within one directory, and makes it durable. Opens the directory
    /// first: after an error that is a [`Shortage`](crate::error::Shortage) nothing was renamed.
    /// After any other one the file may be seen under both names, and no name is durable.
    fn rename_durably(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file's name.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Whether a file has this name.
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// Makes a directory and those above it, durably.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes all data and names durable on the file system that holds `dir`, of whatever process:
    /// for so many files that one sync each would take longer.
    fn sync_everything(&self, dir: &Path) -> io::Result<()>;
    /// The bytes that this process may still write where `dir` is.
    fn free_space(&self, dir: &Path) -> io::Result<u64>;
    /// The file that has this name now.
    fn id(&self, path: &Path) -> io::Result<FileId>;
}

/// An open file. Shared by threads; has no position of its own.
pub trait File: Send + Sync {
    /// Reads at `offset`; fewer bytes than asked for, or none, at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Fills `buffer` from `offset` on if all of that is in memory. Otherwise, and where the system
    /// cannot tell, returns false, without waiting for the disk; what `buffer` holds means nothing
    /// then.
    fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> bool;
    /// Writes all of `data` at `offset`. After an error any part of it may be there.
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts the file, or extends it with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// The file's length.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Makes the data durable, and the length as far as it is needed to read them.
    fn sync_data(&self) -> io::Result<()>;
    /// Makes data and metadata durable.
    fn sync_all(&self) -> io::Result<()>;
    /// Which file this is, whatever its path names by now.
    fn id(&self) -> io::Result<FileId>;
}

/// An error unless `path` still names the file that was opened there: what is written into a file
/// that was removed, or covered by a mount, is lost when the process ends.
pub fn check_in_place(fs: &dyn FileSystem, path: &Path, opened: FileId) -> io::Result<()> {
    let what = match fs.id(path) {
        Ok(found) if found == opened => return Ok(()),
        Ok(found) => format!(
            "replaced by another one (device {}, inode {}; opened were device {}, inode {})",
            found.device, found.inode, opened.device, opened.inode
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => "removed or renamed".to_owned(),
        // Not known now: the next look will tell.
        Err(error) if Shortage::of(&error).is_some() => return Ok(()),
        Err(error) => return Err(error),
    };
    let told = format!(
        "the file or a directory above it was {what} while it was in use; what was written to it \
         may be lost"
    );
    Err(io::Error::other(told))
}

/// Reads until `buffer` is full or the file ends; returns the bytes read.
pub fn read_full_at(file: &dyn File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The whole content of a file.
pub fn read_all(file: &dyn File) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    read_all_into(file, &mut content)?;
    Ok(content)
}

/// The same in place of what a buffer holds. Large files are read faster into a buffer that was
/// used before: it has its memory already.
pub fn read_all_into(file: &dyn File, content: &mut Vec<u8>) -> io::Result<()> {
    let len = usize::try_from(file.len()?).map_err(io::Error::other)?;
    content.resize(len, 0);
    let read = read_full_at(file, content, 0)?;
    content.truncate(read);
    Ok(())
}

/// The operating system's files. What it creates is for the process's user only.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsFileSystem;

impl FileSystem for OsFileSystem {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut options = private::options();
        let file = options.read(true).write(true).create_new(true).open(path)?;
        Ok(Arc::new(OsFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Arc::new(OsFile(file)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            // A name that is not text is not one of ours.
            if let Ok(name) = entry.file_name().into_string()
                && entry.file_type()?.is_file()
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn rename_durably(&self, from: &Path, to: &Path) -> io::Result<()> {
        let dir = open_dir(to.parent().unwrap_or(Path::new("")))?;
        fs::rename(from, to)?;
        synced(dir.sync_all())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        if dir.as_os_str().is_empty() || dir.is_dir() {
            return Ok(());
        }
        let parent = dir.parent().unwrap_or(Path::new(""));
        self.create_dir_all(parent)?;
        // First, as the next attempt finds the directory and takes its name for durable.
        let above = open_dir(parent)?;
        match private::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        synced(above.sync_all())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        synced(open_dir(dir)?.sync_all())
    }

    fn sync_everything(&self, dir: &Path) -> io::Result<()> {
        let dir = open_dir(dir)?;
        synced(rustix::fs::syncfs(dir).map_err(io::Error::from))
    }

    fn free_space(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn id(&self, path: &Path) -> io::Result<FileId> {
        identify(CWD, path, AtFlags::empty())
    }
}

/// Which file this is.
pub(crate) fn id_of(file: &fs::File) -> io::Result<FileId> {
    identify(file, Path::new(""), AtFlags::EMPTY_PATH)
}

/// Asks for the file's number and for nothing else: whoever asks for its times, as `stat` does,
/// has Linux give the next write a new time of its own (since 6.13; otherwise times change with
/// the clock's tick). Then the next `fdatasync` writes the inode too, and takes half as long again.
fn identify(dir: impl AsFd, path: &Path, flags: AtFlags) -> io::Result<FileId> {
    let found = rustix::fs::statx(dir, path, flags, StatxFlags::INO)?;
    Ok(FileId {
        device: rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor),
        inode: found.stx_ino,
    })
}

fn open_dir(dir: &Path) -> io::Result<fs::File> {
    let here = dir.as_os_str().is_empty();
    fs::File::open(if here { Path::new(".") } else { dir })
}

/// Takes its number from the error of a sync; see the header of this file.
pub(crate) fn synced(result: io::Result<()>) -> io::Result<()> {
    result.map_err(io::Error::other)
}

struct OsFile(fs::File);

impl File for OsFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(&self.0, buffer, offset)
    }

    #[cfg(target_os = "linux")]
    fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> bool {
        use rustix::io::ReadWriteFlags;
        let (length, flags) = (buffer.len(), ReadWriteFlags::NOWAIT);
        let read = rustix::io::preadv2(&self.0, &mut [IoSliceMut::new(buffer)], offset, flags);
        read == Ok(length)
    }

    #[cfg(not(target_os = "linux"))]
    fn read_cached_at(&self, _buffer: &mut [u8], _offset: u64) -> bool {
        false
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(&self.0, data, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn sync_data(&self) -> io::Result<()> {
        synced(self.0.sync_data())
    }

    fn sync_all(&self) -> io::Result<()> {
        synced(self.0.sync_all())
    }

    fn id(&self) -> io::Result<FileId> {
        id_of(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operating_system_does_what_the_trait_says() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = root.path().join("a/b");
        let fs = OsFileSystem;
        fs.create_dir_all(&dir).expect("made");
        fs.create_dir_all(&dir).expect("is there");
        let file = fs.create(&dir.join("x")).expect("created");
        assert!(fs.create(&dir.join("x")).is_err());
        file.write_all_at(b"hello", 3).expect("written");
        file.sync_data().expect("synced");
        let mut buffer = [1; 10];
        assert_eq!(read_full_at(&*file, &mut buffer, 0).expect("read"), 8);
        assert_eq!(&buffer[..8], b"\0\0\0hello");
        file.set_len(4).expect("cut");
        assert_eq!(read_all(&*file).expect("read"), b"\0\0\0h");
        fs.rename(&dir.join("x"), &dir.join("z")).expect("renamed");
        let (from, to) = (dir.join("z"), dir.join("y"));
        fs.rename_durably(&from, &to).expect("renamed");
        fs.sync_dir(&dir).expect("synced");
        fs.sync_everything(&dir).expect("synced");
        assert_eq!(fs.list(&dir).expect("listed"), ["y"]);
        assert!(fs.exists(&dir.join("y")).expect("looked"));
        fs.remove(&dir.join("y")).expect("removed");
        assert!(fs.list(&dir).expect("listed").is_empty());
        assert!(fs.free_space(&dir).expect("asked") > 0);
    }

    #[test]
    fn a_path_that_names_another_file_is_noticed() {
        let root = tempfile::tempdir().expect("a directory");
        let (dir, aside) = (root.path().join("a"), root.path().join("b"));
        let fs = OsFileSystem;
        fs.create_dir_all(&dir).expect("made");
        let path = dir.join("x");
        let opened = fs.create(&path).expect("created").id().expect("looked");
        check_in_place(&fs, &path, opened).expect("in place");
        fs::rename(&dir, &aside).expect("renamed");
        let error = check_in_place(&fs, &path, opened).expect_err("no such path");
        assert!(error.to_string().contains("was removed"), "{error}");
        fs.create_dir_all(&dir).expect("made");
        let _other = fs.create(&path).expect("created");
        let error = check_in_place(&fs, &path, opened).expect_err("another file");
        assert!(error.to_string().contains("was replaced"), "{error}");
        fs::remove_dir_all(&dir).expect("removed");
        fs::rename(&aside, &dir).expect("renamed");
        check_in_place(&fs, &path, opened).expect("in place again");
    }

    #[test]
    fn a_look_at_the_path_gives_the_next_write_no_time_of_its_own() {
        const ROUNDS: usize = 200;
        let root = tempfile::tempdir().expect("a directory");
        let (fs, path) = (OsFileSystem, root.path().join("x"));
        let file = fs.create(&path).expect("created");
        let opened = file.id().expect("looked");
        let times_of_their_own = (0..ROUNDS).filter(|_| {
            file.write_all_at(b"x", 0).expect("written");
            check_in_place(&fs, &path, opened).expect("in place");
            file.id().expect("looked");
            #[expect(clippy::disallowed_methods, reason = "compared with a file's time")]
            let before = std::time::SystemTime::now();
            file.write_all_at(b"y", 0).expect("written");
            let written = fs::metadata(&path).and_then(|found| found.modified());
            written.expect("looked") >= before
        });
        // The clock's tick, some milliseconds long, falls between two steps of a round at times.
        let count = times_of_their_own.count();
        assert!(count < ROUNDS / 2, "{count} of {ROUNDS} writes");
    }
}
