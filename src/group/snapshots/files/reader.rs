//! Reads the file of a snapshot from front to back and checks all of it.

use std::path::Path;
use std::sync::Arc;

use super::{
    CHUNK_BYTES_MAX, CHUNK_HEADER_BYTES, HEAD_1_BYTES, HEAD_BYTES, MAGIC, Name, SnapshotFiles,
    VERSION, chunk_header, io_error,
};
use crate::disk::fs::{File, read_full_at};
use crate::disk::log::LogError;
use crate::disk::record::{u32_at, u64_at};
use crate::group::configuration::{self, Configuration};
use crate::group::window::Position;
use crate::ids::PeerId;

/// Reads from front to back and checks.
pub(super) struct Reader<'a> {
    pub(super) file: Arc<dyn File>,
    pub(super) path: &'a Path,
    /// How far it has read, in bytes.
    pub(super) offset: u64,
}

impl Reader<'_> {
    /// The position, who takes part, and the seed of the chunks' checksums.
    pub(super) fn header(
        &mut self,
        files: &SnapshotFiles,
        name: Name,
    ) -> Result<(Position, Configuration, u32), LogError> {
        let mut bytes = vec![0; HEAD_1_BYTES];
        self.read(&mut bytes)?;
        if !bytes.starts_with(&MAGIC) {
            let what = "this is not the beginning of a snapshot";
            return Err(self.damaged(0, what));
        }
        let version = u32_at(&bytes, 8).unwrap_or_default();
        if version >= 2 {
            // A later version would say so behind a checksum in the same place.
            let mut length = [0; 4];
            self.read(&mut length)?;
            let at = self.offset - 4;
            let count = u32::from_le_bytes(length) as usize;
            if count > configuration::BYTES_MAX {
                return Err(self.damaged(at, format!("a configuration of {count} bytes")));
            }
            bytes.extend(length);
            bytes.resize(HEAD_BYTES + count, 0);
            self.read(bytes.get_mut(HEAD_BYTES..).unwrap_or_default())?;
        }
        let mut found = [0; 4];
        self.read(&mut found)?;
        let (checksum, found) = (crc32c::crc32c(&bytes), u32::from_le_bytes(found));
        if found != checksum {
            let what = format!("the checksum should be {checksum:08x} and is {found:08x}");
            return Err(self.damaged(self.offset - 4, what));
        }
        let configuration = match version {
            1 => files.founders.clone(),
            VERSION => {
                let encoded = bytes.get(HEAD_BYTES..).unwrap_or_default();
                let what = "the configuration is not valid";
                Configuration::decode(encoded)
                    .ok_or_else(|| self.damaged(HEAD_BYTES as u64, what))?
            }
            _ => {
                return Err(LogError::Version {
                    file: self.path.display().to_string(),
                    version,
                    known: VERSION,
                });
            }
        };
        let number_at = |offset| u64_at(&bytes, offset).unwrap_or_default();
        let (found, index, term) = (PeerId(number_at(12)), number_at(20), number_at(28));
        if name.is_own && found != files.owner {
            let what = format!(
                "it belongs to peer {found}, and this directory to peer {}",
                files.owner
            );
            return Err(self.damaged(12, what));
        }
        if index != name.index {
            let what = format!("it is of index {index}, its name says {}", name.index);
            return Err(self.damaged(20, what));
        }
        Ok((Position { index, term }, configuration, checksum))
    }

    /// The next chunk and where it stands; `None` at the end.
    pub(super) fn chunk(
        &mut self,
        seed: u32,
        number: u64,
    ) -> Result<Option<(u64, Vec<u8>)>, LogError> {
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

    pub(super) fn damaged(&self, offset: u64, what: impl Into<String>) -> LogError {
        LogError::Damaged {
            file: self.path.display().to_string(),
            offset,
            what: what.into(),
        }
    }
}
