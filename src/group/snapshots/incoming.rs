//! A snapshot that is being received from a peer: chunks of its file, in order, then a check.
//!
//! The file gets its name only when all of it is durable, every checksum in it holds, and its
//! content makes a state: it is decoded as it is when it is installed, into a state that is thrown
//! away, so a snapshot of something else costs its receiver nothing. Meanwhile there are two
//! states in memory, this one and that which the snapshot replaces. One is
//! received at a time: the first chunk of another transfer gives up the one before. What is
//! received is the state of a committed entry, so it may stand in the directory whether or not Raft
//! has use for it; a newer snapshot removes it.

use std::sync::Arc;

use bytes::Bytes;

use crate::disk::fs::File;
use crate::disk::log::LogError;
use crate::error::Shortage;
use crate::group::core::{SnapshotMessage, snapshot_of};
use crate::group::snapshots::files::{SnapshotCheck, SnapshotFiles};
use crate::group::window::Position;
use crate::ids::PeerId;

/// A piece of the file.
#[derive(Clone, Debug)]
pub struct IncomingChunk {
    /// Who sends it.
    pub from: PeerId,
    /// Chosen by the sender, another one for each attempt.
    pub transfer: u64,
    /// Where it stands in the file, in bytes.
    pub offset: u64,
    /// The content.
    pub bytes: Bytes,
    /// With the last one: the Raft message that the snapshot belongs to.
    pub end: Option<Bytes>,
}

/// Why a transfer has failed; the sender begins another one.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// It is not what should come next.
    #[error("a chunk at {found} of transfer {transfer:016x}, {expected} was expected")]
    OutOfOrder {
        /// The transfer.
        transfer: u64,
        /// Where the chunk stands.
        found: u64,
        /// Where the next one should.
        expected: u64,
    },
    /// It was not looked at.
    #[error("not taken: {}", if *is_stopped { "stopped" } else { "busy" })]
    NotTaken {
        /// The group has stopped; otherwise too many chunks wait.
        is_stopped: bool,
    },
    /// The last chunk has no message of Raft about a snapshot, or not one of the sender.
    #[error("the message with the last chunk is not about a snapshot of its sender")]
    Message,
    /// The file is not whole, or the disk refuses it.
    #[error(transparent)]
    File(#[from] LogError),
}

/// A snapshot of a peer that is durable under its name.
pub struct Received {
    /// The Raft message that came with it.
    pub(in crate::group) message: Bytes,
    /// The last entry that is in it.
    pub(in crate::group) position: Position,
    /// Its file, open: the state is restored from it.
    pub(in crate::group) file: Arc<dyn File>,
}

/// What is being received, if anything.
#[derive(Default)]
pub(in crate::group) struct Incoming {
    current: Option<Transfer>,
}

struct Transfer {
    from: PeerId,
    number: u64,
    file: Arc<dyn File>,
    bytes: u64,
}

impl Incoming {
    /// Takes a chunk; with the last one, what the snapshot is, durable under its name.
    pub(in crate::group) fn take(
        &mut self,
        files: &SnapshotFiles,
        chunk: &IncomingChunk,
        check: fn() -> SnapshotCheck,
    ) -> Result<Option<Received>, TransferError> {
        let io = |source| LogError::from_io("write", "a peer's snapshot".to_owned(), source);
        if chunk.offset == 0 {
            self.current = Some(Transfer {
                from: chunk.from,
                number: chunk.transfer,
                file: files.create_received().map_err(io)?,
                bytes: 0,
            });
        }
        let is_current = |current: &&mut Transfer| {
            (current.from, current.number) == (chunk.from, chunk.transfer)
        };
        let current = self.current.as_mut().filter(is_current);
        let expected = current.as_ref().map_or(0, |current| current.bytes);
        let Some(current) = current.filter(|current| current.bytes == chunk.offset) else {
            return Err(TransferError::OutOfOrder {
                transfer: chunk.transfer,
                found: chunk.offset,
                expected,
            });
        };
        if files.is_full(chunk.bytes.len() as u64) {
            self.current = None;
            return Err(LogError::Refused(Shortage::Space).into());
        }
        current
            .file
            .write_all_at(&chunk.bytes, chunk.offset)
            .map_err(io)?;
        current.bytes += chunk.bytes.len() as u64;
        let Some(message) = &chunk.end else {
            return Ok(None);
        };
        let file = current.file.clone();
        self.current = None;
        let SnapshotMessage {
            position,
            configuration,
            ..
        } = snapshot_of(message)
            .filter(|message| message.from == chunk.from)
            .ok_or(TransferError::Message)?;
        file.sync_all().map_err(io)?;
        files.check_received(Arc::clone(&file), position, &configuration, &mut check())?;
        files.install(position.index)?;
        Ok(Some(Received {
            message: message.clone(),
            position,
            file,
        }))
    }
}
