//! The files of snapshots: written in one go, read back and checked.
//!
//! A snapshot has its name only when it is durable as a whole. Memory: one buffer of
//! [`BUFFER_BYTES`] and one chunk.
//!
//! # Bytes
//!
//! The file of the snapshot at index 123 is `00000000000000000123.snapshot`, or with the extension
//! `peer` if it was received from one; one that is being written is `snapshot.tmp`, one that is
//! being received `peer.tmp`. Little-endian: a header, chunks, the end.
//!
//! | part | offset | size | meaning |
//! |---|---|---|---|
//! | header | 0 | 8 | `TLRXSNP` and 0 |
//! | | 8 | 4 | format version, 2 |
//! | | 12 | 8 | owner: the peer id of the data directory that it was written in |
//! | | 20 | 8 | index |
//! | | 28 | 8 | term of the entry at that index |
//! | | 36 | 4 | bytes of the configuration, n |
//! | | 40 | n | who takes part there, see [`Configuration::encode`] |
//! | | 40 + n | 4 | CRC-32C of bytes 0..40 + n |
//! | chunk | 0 | 4 | bytes of content, 1 to [`CHUNK_BYTES_MAX`] |
//! | | 4 | 4 | CRC-32C of: the header's CRC (4), the chunk's number (8), bytes 0..4, the content |
//! | | 8 | .. | content, the state machine's |
//! | end | 0 | 8 | as a chunk without content; the file ends with it |
//!
//! Version 1, which is still read, has the checksum of its 36 bytes in place of the configuration:
//! it is of a group that never changed.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::fs::{File, FileSystem};
use crate::disk::log::LogError;
use crate::error::Shortage;
use crate::group::configuration::Configuration;
use crate::group::snapshots::SnapshotSource;
use crate::group::window::Position;
use crate::ids::PeerId;
use crate::threads::StopSignal;

mod reader;

use self::reader::Reader;

/// The most bytes of a chunk: what a damaged length may make a reader allocate.
pub const CHUNK_BYTES_MAX: usize = 16 << 20;

const TEMPORARY_NAME: &str = "snapshot.tmp";
const RECEIVED_NAME: &str = "peer.tmp";
/// Extensions of the names.
const OWN: &str = "snapshot";
const RECEIVED: &str = "peer";
const MAGIC: [u8; 8] = *b"TLRXSNP\0";
const VERSION: u32 = 2;
/// The header up to the configuration.
const HEAD_BYTES: usize = 40;
/// The header of version 1, without its checksum.
const HEAD_1_BYTES: usize = 36;
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
    /// The system refused it; what was written is removed.
    Refused(Shortage),
    /// The stop signal is set; what was written is removed.
    Stopped,
}

/// A snapshot that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The last entry that is in it.
    pub position: Position,
    /// Who takes part, there.
    pub configuration: Configuration,
    /// It came from a peer.
    pub is_received: bool,
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

/// Takes the pieces of a snapshot and says what is wrong with one; keeps none of them.
pub type SnapshotCheck = Box<dyn FnMut(Piece<'_>) -> Result<(), String>>;

/// The files of a directory.
#[derive(Clone)]
pub struct SnapshotFiles {
    /// Where they are.
    pub fs: Arc<dyn FileSystem>,
    /// Their directory; nothing else is in it.
    pub dir: PathBuf,
    /// The peer whose data directory it is.
    pub owner: PeerId,
    /// Who takes part in a snapshot of version 1.
    pub founders: Configuration,
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
            Some(name) => Some(self.read(&self.dir.join(name.to_string()), name, restore)?),
            None => None,
        };
        // The name may not be durable yet, and is before others go and the journal is cut.
        self.fs.sync_dir(&self.dir).map_err(io("sync"))?;
        for name in &names {
            let is_temporary = [TEMPORARY_NAME, RECEIVED_NAME].contains(&name.as_str());
            let parsed = parse_name(name);
            if is_temporary || parsed.is_some() && parsed != newest {
                let path = self.dir.join(name);
                self.fs.remove(&path).map_err(io("remove a file of"))?;
            }
        }
        Ok(found)
    }

    /// Restores the snapshot that was received and [`installed`](Self::install), from its file if
    /// that is open: to open it again may be refused, when the state is given up already.
    pub fn restore_received(
        &self,
        index: u64,
        file: Option<Arc<dyn File>>,
        restore: &mut dyn FnMut(Piece<'_>) -> Result<(), String>,
    ) -> Result<Found, LogError> {
        let name = Name {
            index,
            is_own: false,
        };
        let path = self.dir.join(name.to_string());
        match file {
            Some(file) => self.read_open(file, &path, name, restore),
            None => self.read(&path, name, restore),
        }
    }

    /// Checks the file that was received whole, which is to be the snapshot of `position`, and has
    /// `check` look at its content.
    pub fn check_received(
        &self,
        file: Arc<dyn File>,
        position: Position,
        configuration: &Configuration,
        check: &mut dyn FnMut(Piece<'_>) -> Result<(), String>,
    ) -> Result<(), LogError> {
        let path = self.dir.join(RECEIVED_NAME);
        let name = Name {
            index: position.index,
            is_own: false,
        };
        let found = self.read_open(file, &path, name, check)?;
        if found.position != position || !found.configuration.is_like(configuration) {
            return Err(LogError::Damaged {
                file: path.display().to_string(),
                offset: 0,
                what: "it is not the snapshot that was announced".to_owned(),
            });
        }
        Ok(())
    }

    /// Gives the file that was received its name, durably.
    pub fn install(&self, index: u64) -> Result<(), LogError> {
        let name = Name {
            index,
            is_own: false,
        };
        self.rename(&self.dir.join(RECEIVED_NAME), name)
    }

    fn rename(&self, temporary: &Path, name: Name) -> Result<(), LogError> {
        let path = self.dir.join(name.to_string());
        self.fs.rename_durably(temporary, &path).map_err(|source| {
            let error = LogError::from_io("rename", path.display().to_string(), source);
            if !matches!(error, LogError::Refused(_)) {
                // It may be seen for as long as the machine runs and never be on the disk: the next
                // start must not remove others because of it.
                let removed = self.fs.remove(&path);
                log::debug!("its name is not durable (removed: {removed:?})");
            }
            error
        })
    }

    /// The file that is being received, made anew.
    pub fn create_received(&self) -> std::io::Result<Arc<dyn File>> {
        let path = self.dir.join(RECEIVED_NAME);
        if self.fs.exists(&path)? {
            self.fs.remove(&path)?;
        }
        self.fs.create(&path)
    }

    /// The file of a durable snapshot, own or received, to be sent to a peer.
    pub fn open_file(&self, index: u64) -> std::io::Result<Arc<dyn File>> {
        let open = |is_own| {
            let name = Name { index, is_own };
            self.fs.open(&self.dir.join(name.to_string()))
        };
        open(true).or_else(|_| open(false))
    }

    fn read(
        &self,
        path: &Path,
        name: Name,
        restore: &mut dyn FnMut(Piece<'_>) -> Result<(), String>,
    ) -> Result<Found, LogError> {
        let file = self.fs.open(path);
        let file = file.map_err(|source| io_error("open", path, source))?;
        self.read_open(file, path, name, restore)
    }

    fn read_open(
        &self,
        file: Arc<dyn File>,
        path: &Path,
        name: Name,
        restore: &mut dyn FnMut(Piece<'_>) -> Result<(), String>,
    ) -> Result<Found, LogError> {
        let mut reader = Reader {
            file,
            path,
            offset: 0,
        };
        let (position, configuration, seed) = reader.header(self, name)?;
        let mut number = 0;
        while let Some((at, chunk)) = reader.chunk(seed, number)? {
            restore(Piece::Chunk(&chunk)).map_err(|what| reader.damaged(at, what))?;
            number += 1;
        }
        let index = name.index;
        restore(Piece::End { index }).map_err(|what| reader.damaged(reader.offset, what))?;
        Ok(Found {
            position,
            configuration,
            is_received: !name.is_own,
            bytes: reader.offset,
        })
    }

    /// Writes a snapshot; durable when this returns `Durable`. The source is dropped as soon as it
    /// is exhausted.
    pub fn write(
        &self,
        position: Position,
        configuration: &Configuration,
        source: Box<dyn SnapshotSource>,
        stop: &StopSignal,
    ) -> Result<Written, LogError> {
        let temporary = self.dir.join(TEMPORARY_NAME);
        let header = header(self.owner, position, configuration);
        let written = match self.write_temporary(&temporary, &header, source, stop) {
            Ok(Written::Durable { bytes }) => {
                let name = Name {
                    index: position.index,
                    is_own: true,
                };
                match self.rename(&temporary, name) {
                    Ok(()) => return Ok(Written::Durable { bytes }),
                    Err(LogError::Refused(shortage)) => Written::Refused(shortage),
                    Err(error) => return Err(error),
                }
            }
            Ok(other) => other,
            Err(LogError::Refused(shortage)) => Written::Refused(shortage),
            Err(error) => return Err(error),
        };
        // What is left is overwritten by the next one, or removed by the next start.
        if let Err(error) = self.fs.remove(&temporary)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("snapshot: cannot remove {}: {error}", temporary.display());
        }
        Ok(written)
    }

    fn write_temporary(
        &self,
        path: &Path,
        header: &[u8],
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
        let seed = crc32c::crc32c(&header[..header.len() - 4]);
        writer.put(header)?;
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

    /// Whether there is no room for so many more bytes.
    pub fn is_full(&self, bytes: u64) -> bool {
        let needed = self.reserve_bytes + bytes;
        // If the free space is not known, the write itself will tell.
        let free = self.fs.free_space(&self.dir);
        free.is_ok_and(|free| free < needed)
    }

    /// Removes the snapshots before that at `index`, which is durable. One that cannot be removed
    /// stays until the next start.
    pub fn remove_older(&self, index: u64) {
        let remove = || -> std::io::Result<()> {
            let names = self.fs.list(&self.dir)?;
            for older in names.iter().filter_map(|name| parse_name(name)) {
                if older.index < index {
                    self.fs.remove(&self.dir.join(older.to_string()))?;
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
        if self.files.is_full(self.buffer.len() as u64) {
            return Err(LogError::Refused(Shortage::Space));
        }
        match self.file.write_all_at(&self.buffer, self.written) {
            Ok(()) => {
                self.written += self.buffer.len() as u64;
                self.buffer.clear();
                Ok(())
            }
            Err(source) => {
                let path = self.path.display().to_string();
                Err(LogError::from_io("write", path, source))
            }
        }
    }
}

fn header(owner: PeerId, position: Position, configuration: &Configuration) -> Vec<u8> {
    let configuration = configuration.encode();
    let length = u32::try_from(configuration.len()).expect("a group is small");
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(owner.0.to_le_bytes());
    bytes.extend(position.index.to_le_bytes());
    bytes.extend(position.term.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(configuration);
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
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

/// What a file's name says. In the order of age: of two at one index, the own one is newer, since
/// what is received is ahead of everything here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    index: u64,
    is_own: bool,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let extension = if self.is_own { OWN } else { RECEIVED };
        write!(f, "{:020}.{extension}", self.index)
    }
}

fn parse_name(text: &str) -> Option<Name> {
    let (index, extension) = text.split_once('.')?;
    let name = Name {
        index: index.parse().ok()?,
        is_own: extension == OWN,
    };
    (name.to_string() == text).then_some(name)
}

fn io_error(action: &'static str, path: &Path, source: std::io::Error) -> LogError {
    LogError::Io {
        action,
        file: path.display().to_string(),
        source,
    }
}
