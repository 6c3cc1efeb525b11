//! The read side of a log, cloned to any thread.
//!
//! The table of open segments is locked for the moment of a look-up, never over I/O.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;

use super::error::LogError;
use super::fs::read_full_at;
use super::record::{Location, OwnedRecord, RECORD_HEADER_BYTES, Record};
use super::segment::{Segment, file_name};

/// The open segments by number; written by the log's owner when it begins one.
pub(crate) type Segments = Arc<RwLock<BTreeMap<u32, Arc<Segment>>>>;

/// Reads records by location, from any thread.
#[derive(Clone)]
pub struct LogReader {
    segments: Segments,
}

impl LogReader {
    pub(crate) fn new(segments: Segments) -> LogReader {
        LogReader { segments }
    }

    /// The record at a location that `Log::stage` or `visit` gave, its checksum verified (A5).
    /// One that is staged only is not there yet: it reads as damage.
    pub fn read(&self, location: Location) -> Result<OwnedRecord, LogError> {
        let segment = self.segments.read().get(&location.segment).cloned();
        let offset = u64::from(location.offset);
        let damaged = |file: &str, what: String| LogError::Damaged {
            file: file.to_owned(),
            offset,
            what,
        };
        let Some(segment) = segment else {
            let name = file_name(location.segment);
            return Err(damaged(&name, "there is no such segment".to_owned()));
        };
        let mut bytes = vec![0; location.length as usize];
        let read =
            read_full_at(&*segment.file, &mut bytes, offset).map_err(|source| LogError::Io {
                action: "read",
                file: segment.path.clone(),
                source,
            })?;
        if read < bytes.len() {
            return Err(damaged(&segment.path, "the file ends here".to_owned()));
        }
        let record = Record::decode(segment.seed, &bytes)
            .map_err(|bad| damaged(&segment.path, bad.to_string()))?;
        let Record {
            kind,
            number,
            key,
            payload,
        } = record;
        let (key_end, payload_len) = (RECORD_HEADER_BYTES + key.len(), payload.len());
        let bytes = Bytes::from(bytes);
        Ok(OwnedRecord {
            kind,
            number,
            key: bytes.slice(RECORD_HEADER_BYTES..key_end),
            payload: bytes.slice(key_end..key_end + payload_len),
        })
    }
}
