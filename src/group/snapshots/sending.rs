//! The file of a snapshot on its way to a peer.
//!
//! Whoever sends it draws chunks and has each answered before the next, so that a slow peer holds
//! nothing but one chunk. The file is open meanwhile: a newer snapshot may take its name away, not
//! its content.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::fs::{File, read_full_at};
use crate::group::snapshots::files::SnapshotFiles;
use crate::group::snapshots::incoming::IncomingChunk;
use crate::ids::PeerId;

/// Bytes of a chunk.
pub const SENT_BYTES: usize = 1 << 20;

/// A snapshot to be sent to a peer.
pub struct OutgoingSnapshot {
    /// To whom.
    pub to: PeerId,
    from: PeerId,
    file: Arc<dyn File>,
    length: u64,
    offset: u64,
    /// The Raft message that goes with the last chunk.
    message: Bytes,
}

impl OutgoingSnapshot {
    /// Opens the file of the snapshot at `index`.
    pub(in crate::group) fn open(
        files: &SnapshotFiles,
        index: u64,
        to: PeerId,
        message: Bytes,
    ) -> io::Result<OutgoingSnapshot> {
        let file = files.open_file(index)?;
        Ok(OutgoingSnapshot {
            to,
            from: files.owner,
            length: file.len()?,
            file,
            offset: 0,
            message,
        })
    }

    /// The next chunk of attempt `transfer`; `None` behind the last one.
    pub fn next_chunk(&mut self, transfer: u64) -> io::Result<Option<IncomingChunk>> {
        if self.offset == self.length {
            return Ok(None);
        }
        let left = usize::try_from(self.length - self.offset).unwrap_or(usize::MAX);
        let mut bytes = vec![0; left.min(SENT_BYTES)];
        let read = read_full_at(&*self.file, &mut bytes, self.offset)?;
        if read < bytes.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let offset = self.offset;
        self.offset += read as u64;
        Ok(Some(IncomingChunk {
            from: self.from,
            transfer,
            offset,
            bytes: bytes.into(),
            end: (self.offset == self.length).then(|| self.message.clone()),
        }))
    }
}
