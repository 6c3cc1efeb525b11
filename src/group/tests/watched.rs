//! A disk that counts syncs and fails on demand, in front of another one.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::disk::fs::{File, FileId, FileSystem};

/// A disk that counts syncs and fails on demand.
#[derive(Clone)]
pub struct Watched {
    fs: Arc<dyn FileSystem>,
    pub syncs: Arc<AtomicUsize>,
    pub sync_fails: Arc<AtomicBool>,
    pub is_full: Arc<AtomicBool>,
}

struct WatchedFile {
    file: Arc<dyn File>,
    disk: Watched,
}

impl Watched {
    pub fn new(fs: Arc<dyn FileSystem>) -> Watched {
        Watched {
            fs,
            syncs: Arc::default(),
            sync_fails: Arc::default(),
            is_full: Arc::default(),
        }
    }

    fn watch(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        let disk = self.clone();
        Arc::new(WatchedFile { file, disk })
    }
}

impl FileSystem for Watched {
    fn create(&self, path: &Path) -> std::io::Result<Arc<dyn File>> {
        Ok(self.watch(self.fs.create(path)?))
    }
    fn open(&self, path: &Path) -> std::io::Result<Arc<dyn File>> {
        Ok(self.watch(self.fs.open(path)?))
    }
    fn list(&self, dir: &Path) -> std::io::Result<Vec<String>> {
        self.fs.list(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        self.fs.rename(from, to)
    }
    fn rename_durably(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        self.fs.rename_durably(from, to)
    }
    fn remove(&self, path: &Path) -> std::io::Result<()> {
        self.fs.remove(path)
    }
    fn exists(&self, path: &Path) -> std::io::Result<bool> {
        self.fs.exists(path)
    }
    fn create_dir_all(&self, dir: &Path) -> std::io::Result<()> {
        self.fs.create_dir_all(dir)
    }
    fn sync_dir(&self, dir: &Path) -> std::io::Result<()> {
        self.fs.sync_dir(dir)
    }
    fn sync_everything(&self, dir: &Path) -> std::io::Result<()> {
        self.fs.sync_everything(dir)
    }
    fn free_space(&self, dir: &Path) -> std::io::Result<u64> {
        if self.is_full.load(Ordering::SeqCst) {
            return Ok(0);
        }
        self.fs.free_space(dir)
    }
    fn id(&self, path: &Path) -> std::io::Result<FileId> {
        self.fs.id(path)
    }
}

impl File for WatchedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        self.file.read_at(buffer, offset)
    }
    fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> bool {
        self.file.read_cached_at(buffer, offset)
    }
    fn write_all_at(&self, data: &[u8], offset: u64) -> std::io::Result<()> {
        if self.disk.is_full.load(Ordering::SeqCst) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.file.write_all_at(data, offset)
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.file.set_len(len)
    }
    fn len(&self) -> std::io::Result<u64> {
        self.file.len()
    }
    fn sync_data(&self) -> std::io::Result<()> {
        self.disk.syncs.fetch_add(1, Ordering::SeqCst);
        if self.disk.sync_fails.load(Ordering::SeqCst) {
            return Err(std::io::Error::other("the disk is gone"));
        }
        self.file.sync_data()
    }
    fn sync_all(&self) -> std::io::Result<()> {
        self.file.sync_all()
    }
    fn id(&self) -> std::io::Result<FileId> {
        self.file.id()
    }
}
