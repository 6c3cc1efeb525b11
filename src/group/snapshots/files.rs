//! The files of snapshots: written in one go, read back and checked.
//!
//! A snapshot has its name only when it is durable as a whole. Memory: one buffer of
//! [`BUFFER_BYTES`] and one chunk.
//!
//! # Bytes
//!
//! The file of the snapshot at index 123 is `00000000000000000123.snapshot`; one that is being
//! written is `snapshot.tmp`. Little-endian: a header, chunks, the end.
//!
//! | part | offset | size | meaning |
//! |---|---|---|---|
//! | header | 0 | 8 | `TLRXSNP` and 0 |
//! | | 8 | 4 | format version, 1 |
//! | | 12 | 8 | owner: the peer id of the data directory |
//! | | 20 | 8 | index |
//! | | 28 | 8 | term of the entry at that index |
//! | | 36 | 4 | CRC-32C of bytes 0..36 |
//! | chunk | 0 | 4 | bytes of content, 1 to [`CHUNK_BYTES_MAX`] |
//! | | 4 | 4 | CRC-32C of: the header's CRC (4), the chunk's number (8), bytes 0..4, the content |
//! | | 8 | .. | content, the state machine's |
//! | end | 0 | 8 | as a chunk without content; the file ends with it |

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::error::is_full;
use crate::disk::fs::{File, FileSystem, read_full_at};
use crate::disk::log::LogError;
use crate::disk::record::{u32_at, u64_at};
use crate::group::snapshots::SnapshotSource;
use crate::group::window::Position;
use crate::ids::PeerId;
use crate::threads::StopSignal;

/// The most bytes of a chunk: what a damaged length may make a reader allocate.
pub const CHUNK_BYTES_MAX: usize = 16 << 20;

const TEMPORARY_NAME: &str = "snapshot.tmp";
const MAGIC: [u8; 8] = *b"TLRXSNP\0";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 40;
const CHUNK_HEADER_BYTES: usize = 8;

/// Bytes that are written at once.
const BUFFER_BYTES: usize = 1 << 20;

/// Bytes after which the file is synced while it is written. All at once at the end would keep the
/// disk busy for as long as it takes, and the journal's syncs behind it; with a tenth of it, the
/// syncs themselves would be what takes long.
const SYNC_BYTES: u64 = 4 << 20;

/// How a write ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is on disk under its name.
    Durable {
        /// The file's length.
        bytes: u64,
    },
    /// There is no space; what was written is removed.
    Full,
    /// The stop signal is set; what was written is removed.
    Stopped,
}

/// A snapshot that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The last entry that is in it.
    pub position: Position,
    /// The file's length.
    pub bytes: u64,
}

/// What a snapshot is restored from.
pub enum Piece<'a> {
    /// The next chunk.
    Chunk(&'a [u8]),
    /// There are no more.
    End {
        /// The index of the snapshot.
        index: u64,
    },
}

/// The files of a directory.
pub struct SnapshotFiles {
    /// Where they are.
    pub fs: Arc<dyn FileSystem>,
    /// Their directory; nothing else is in it.
    pub dir: PathBuf,
    /// The peer whose data directory it is.
    pub owner: PeerId,
    /// Free space that stays for the journal.
    pub reserve_bytes: u64,
}

impl SnapshotFiles {
    /// Restores the newest snapshot, if there is one. Then removes all other files of the
    /// directory, which is made when missing.
    pub fn open(
        &self,
        restore: &mut dyn FnMut(Piece<'_>) -> Result<(), String>,
    ) -> Result<Option<Found>, LogError> {
        let io = |action| {
            let file = self.dir.display().to_string();
            move |source| LogError::Io {
                action,
                file,
                source,
            }
        };
        self.fs.create_dir_all(&self.dir).map_err(io("make"))?;
        let names = self.fs.list(&self.dir).map_err(io("list"))?;
        let newest = names.iter().filter_map(|name| parse_name(name)).max();
        let found = match newest {
            Some(index) => Some(self.read(index, restore)?),
            None => None,
        };
        // The name may not be durable yet, and is before others go and the journal is cut.
        self.fs.sync_dir(&self.dir).map_err(io("sync"))?;
        for name in &names {
            let is_ours = name == TEMPORARY_NAME || parse_name(name).is_some();
            if is_ours && newest.map(file_name).as_ref() != Some(name) {
                let path = self.dir.join(name);
                self.fs.remove(&path).map_err(io("remove a file of"))?;
            }
        }
        Ok(found)
    }

    fn read(
        &self,
        index: u64,
        restore: &mut dyn FnMut(Piece<'_>) -> Result<(), String>,
    ) -> Result<Found, LogError> {
        let path = self.dir.join(file_name(index));
        let file = self.fs.open(&path);
        let mut reader = Reader {
            file: file.map_err(|source| io_error("open", &path, source))?,
            path: &path,
            offset: 0,
        };
        let (position, seed) = reader.header(self.owner, index)?;
        let mut number = 0;
        while let Some((at, chunk)) = reader.chunk(seed, number)? {
            restore(Piece::Chunk(&chunk)).map_err(|what| reader.damaged(at, what))?;
            number += 1;
        }
        restore(Piece::End { index }).map_err(|what| reader.damaged(reader.offset, what))?;
        Ok(Found {
            position,
            bytes: reader.offset,
        })
    }

    /// Writes a snapshot; durable when this returns `Durable`. The source is dropped as soon as it
    /// is exhausted.
    pub fn write(
        &self,
        position: Position,
        source: Box<dyn SnapshotSource>,
        stop: &StopSignal,
    ) -> Result<Written, LogError> {
        let temporary = self.dir.join(TEMPORARY_NAME);
        let written = match self.write_temporary(&temporary, position, source, stop) {
            Ok(Written::Durable { bytes }) => {
                let path = self.dir.join(file_name(position.index));
                let failed = |source| io_error("rename", &path, source);
                self.fs.rename(&temporary, &path).map_err(failed)?;
                self.fs.sync_dir(&self.dir).map_err(|source| {
                    // It may be seen for as long as the machine runs and never be on the disk: the
                    // next start must not remove others because of it.
                    let removed = self.fs.remove(&path);
                    log::debug!("its name is not durable (removed: {removed:?})");
                    failed(source)
                })?;
                return Ok(Written::Durable { bytes });
            }
            Ok(other) => other,
            Err(LogError::Full) => Written::Full,
            Err(error) => return Err(error),
        };
        // What is left is overwritten by the next one, or removed by the next start.
        if let Err(error) = self.fs.remove(&temporary) {
            log::warn!("snapshot: cannot remove {}: {error}", temporary.display());
        }
        Ok(written)
    }

    fn write_temporary(
        &self,
        path: &Path,
        position: Position,
        mut source: Box<dyn SnapshotSource>,
        stop: &StopSignal,
    ) -> Result<Written, LogError> {
        let io = |source| LogError::from_io("write", path.display().to_string(), source);
        if self.fs.exists(path).map_err(io)? {
            self.fs.remove(path).map_err(io)?;
        }
        let mut writer = Writer {
            files: self,
            file: self.fs.create(path).map_err(io)?,
            path,
            buffer: Vec::with_capacity(BUFFER_BYTES),
            written: 0,
            synced: 0,
        };
        let header = header(self.owner, position);
        let seed = crc32c::crc32c(&header[..HEADER_BYTES - 4]);
        writer.put(&header)?;
        let mut number = 0;
        while let Some(chunk) = source.next_chunk() {
            assert!(
                (1..=CHUNK_BYTES_MAX).contains(&chunk.len()),
                "a chunk of {} bytes",
                chunk.len()
            );
            if stop.is_stopped() {
                return Ok(Written::Stopped);
            }
            writer.put(&chunk_header(seed, number, &chunk))?;
            writer.put(&chunk)?;
            number += 1;
        }
        drop(source);
        writer.put(&chunk_header(seed, number, &[]))?;
        writer.flush()?;
        writer.file.sync_all().map_err(io)?;
        Ok(Written::Durable {
            bytes: writer.written,
        })
    }

    /// Removes the snapshots before that at `index`, which is durable. One that cannot be removed
    /// stays until the next start.
    pub fn remove_older(&self, index: u64) {
        let remove = || -> std::io::Result<()> {
            let names = self.fs.list(&self.dir)?;
            for older in names.iter().filter_map(|name| parse_name(name)) {
                if older < index {
                    self.fs.remove(&self.dir.join(file_name(older)))?;
                }
            }
            Ok(())
        };
        if let Err(error) = remove() {
            log::warn!("snapshot: an older one stays for now: {error}");
        }
    }
}

/// Writes through a buffer, and syncs now and then.
struct Writer<'a> {
    files: &'a SnapshotFiles,
    file: Arc<dyn File>,
    path: &'a Path,
    buffer: Vec<u8>,
    /// Bytes written to the file.
    written: u64,
    /// Bytes of them that are synced.
    synced: u64,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() < BUFFER_BYTES {
            return Ok(());
        }
        self.flush()?;
        if self.written - self.synced >= SYNC_BYTES {
            self.file
                .sync_data()
                .map_err(|source| io_error("sync", self.path, source))?;
            self.synced = self.written;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), LogError> {
        let needed = self.files.reserve_bytes + self.buffer.len() as u64;
        // If the free space is not known, the write itself will tell.
        let free = self.files.fs.free_space(&self.files.dir);
        if free.is_ok_and(|free| free < needed) {
            return Err(LogError::Full);
        }
        match self.file.write_all_at(&self.buffer, self.written) {
            Ok(()) => {
                self.written += self.buffer.len() as u64;
                self.buffer.clear();
                Ok(())
            }
            Err(source) if is_full(&source) => Err(LogError::Full),
            Err(source) => Err(io_error("write", self.path, source)),
        }
    }
}

/// Reads from front to back and checks.
struct Reader<'a> {
    file: Arc<dyn File>,
    path: &'a Path,
    /// How far it has read, in bytes.
    offset: u64,
}

impl Reader<'_> {
    /// The position, and the seed of the chunks' checksums.
    fn header(&mut self, owner: PeerId, index: u64) -> Result<(Position, u32), LogError> {
        let mut bytes = [0; HEADER_BYTES];
        self.read(&mut bytes)?;
        let checksum = crc32c::crc32c(bytes.get(..HEADER_BYTES - 4).unwrap_or_default());
        let found = u32_at(&bytes, 36).unwrap_or_default();
        if !bytes.starts_with(&MAGIC) {
            let what = "this is not the beginning of a snapshot";
            return Err(self.damaged(0, what));
        }
        if found != checksum {
            let what = format!("the checksum should be {checksum:08x} and is {found:08x}");
            return Err(self.damaged(36, what));
        }
        let version = u32_at(&bytes, 8).unwrap_or_default();
        if version != VERSION {
            return Err(LogError::Version {
                file: self.path.display().to_string(),
                version,
                known: VERSION,
            });
        }
        let number_at = |offset| u64_at(&bytes, offset).unwrap_or_default();
        let (found, at, term) = (PeerId(number_at(12)), number_at(20), number_at(28));
        if found != owner {
            let what = format!("it belongs to peer {found}, and this directory to peer {owner}");
            return Err(self.damaged(12, what));
        }
        if at != index {
            return Err(self.damaged(20, format!("it is of index {at}, its name says {index}")));
        }
        Ok((Position { index: at, term }, checksum))
    }

    /// The next chunk and where it stands; `None` at the end.
    fn chunk(&mut self, seed: u32, number: u64) -> Result<Option<(u64, Vec<u8>)>, LogError> {
        let at = self.offset;
        let mut head = [0; CHUNK_HEADER_BYTES];
        self.read(&mut head)?;
        let length = u32_at(&head, 0).unwrap_or_default() as usize;
        if length > CHUNK_BYTES_MAX {
            return Err(self.damaged(at, format!("a chunk of {length} bytes")));
        }
        let mut content = vec![0; length];
        self.read(&mut content)?;
        let expected = chunk_header(seed, number, &content);
        if head != expected {
            let what = format!("the checksum of chunk {number} does not match");
            return Err(self.damaged(at, what));
        }
        if length > 0 {
            return Ok(Some((at, content)));
        }
        let end = self.offset;
        match self.file.read_at(&mut [0], end) {
            Ok(0) => Ok(None),
            Ok(_) => Err(self.damaged(end, "there are bytes behind its end")),
            Err(source) => Err(io_error("read", self.path, source)),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<(), LogError> {
        match read_full_at(&*self.file, buffer, self.offset) {
            Ok(read) => {
                self.offset += read as u64;
                if read < buffer.len() {
                    return Err(self.damaged(self.offset, "the file ends early"));
                }
                Ok(())
            }
            Err(source) => Err(io_error("read", self.path, source)),
        }
    }

    fn damaged(&self, offset: u64, what: impl Into<String>) -> LogError {
        LogError::Damaged {
            file: self.path.display().to_string(),
            offset,
            what: what.into(),
        }
    }
}

fn header(owner: PeerId, position: Position) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..20].copy_from_slice(&owner.0.to_le_bytes());
    bytes[20..28].copy_from_slice(&position.index.to_le_bytes());
    bytes[28..36].copy_from_slice(&position.term.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes[..36]);
    bytes[36..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn chunk_header(seed: u32, number: u64, content: &[u8]) -> [u8; CHUNK_HEADER_BYTES] {
    let length = u32::try_from(content.len()).expect("a chunk is limited to 16 MiB");
    let mut bound = [0; 16];
    bound[..4].copy_from_slice(&seed.to_le_bytes());
    bound[4..12].copy_from_slice(&number.to_le_bytes());
    bound[12..].copy_from_slice(&length.to_le_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&bound), content);
    let mut bytes = [0; CHUNK_HEADER_BYTES];
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes[4..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn file_name(index: u64) -> String {
    format!("{index:020}.snapshot")
}

fn parse_name(name: &str) -> Option<u64> {
    let index = name.strip_suffix(".snapshot")?.parse().ok()?;
    (file_name(index) == name).then_some(index)
}

fn io_error(action: &'static str, path: &Path, source: std::io::Error) -> LogError {
    LogError::Io {
        action,
        file: path.display().to_string(),
        source,
    }
}
