//! The read side of a log, cloned to any thread.
//!
//! The table of open segments is locked for the moment of a look-up, never over I/O.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;

use super::error::LogError;
use super::fs::{read_all_into, read_full_at};
use super::record::{BadRecord, Location, OwnedRecord, RECORD_HEADER_BYTES, Record};
use super::recovery::{Damage, Fate, read_header, scan, walk};
use super::segment::{DATA_START, SealedSegment, Segment, file_name};

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

    /// The segments that nothing is appended to any more, with the room for groups in their files.
    pub fn sealed(&self) -> Result<Vec<(u32, u64)>, LogError> {
        let segments: Vec<_> = self.segments.read().values().cloned().collect();
        let sealed = segments.split_last().map_or(&[][..], |(_, sealed)| sealed);
        let lengths = sealed.iter().map(|segment| {
            let length = segment.file.len();
            let length = length.map_err(failed("look at", segment))?;
            Ok((segment.number, length.saturating_sub(u64::from(DATA_START))))
        });
        lengths.collect()
    }

    /// Reads a sealed segment whole into `buffer` and hands each intact record to `visit`, in
    /// order. Returned are what tells it from others, unless a header that has to tell is damaged,
    /// and what is damaged in it.
    pub fn walk(
        &self,
        number: u32,
        buffer: &mut Vec<u8>,
        visit: &mut dyn FnMut(Location, &Record<'_>) -> Result<(), LogError>,
    ) -> Result<(Option<SealedSegment>, Vec<Damage>), LogError> {
        let (segment, next) = {
            let segments = self.segments.read();
            let next = segments.range(number.saturating_add(1)..).next();
            (
                segments.get(&number).cloned(),
                next.map(|next| next.1.clone()),
            )
        };
        let (Some(segment), Some(next)) = (segment, next) else {
            return Err(LogError::Damaged {
                file: file_name(number),
                offset: 0,
                what: "there is no such sealed segment".to_owned(),
            });
        };
        let mut bytes = [0; DATA_START as usize];
        let read = read_full_at(&*next.file, &mut bytes, 0).map_err(failed("read", &next))?;
        let told = bytes.get(..read).unwrap_or_default();
        let end = read_header(&next.path, next.number, told)?
            .and_then(|(header, _)| header.end_of(number));
        read_all_into(&*segment.file, buffer).map_err(failed("read", &segment))?;
        let bytes = buffer.as_slice();
        let damage = |(offset, bytes, what)| Damage {
            file: segment.path.clone(),
            offset: offset as u64,
            bytes: bytes as u64,
            what,
        };
        let Some((header, _)) = read_header(&segment.path, number, bytes)? else {
            let what = "neither copy of the segment's header is intact".to_owned();
            return Ok((None, vec![damage((0, bytes.len(), what))]));
        };
        let scan = scan(bytes, &header, Fate::Sealed(end));
        let mut damaged = scan.damaged;
        for group in &scan.groups {
            let mut bad = |offset, bytes, what| damaged.push((offset, bytes, what));
            walk(bytes, segment.seed, group, visit, &mut bad)?;
        }
        let sealed = end.map(|end| header.sealed(end));
        Ok((sealed, damaged.into_iter().map(damage).collect()))
    }

    /// The record at a location that `Log::stage` or `visit` gave, its checksum verified (A5).
    /// One that is staged only is not there yet: it reads as damage.
    pub fn read(&self, location: Location) -> Result<OwnedRecord, LogError> {
        let segment = self.segment(location);
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
            read_full_at(&*segment.file, &mut bytes, offset).map_err(failed("read", &segment))?;
        if read < bytes.len() {
            return Err(damaged(&segment.path, "the file ends here".to_owned()));
        }
        decode(&segment, bytes).map_err(|bad| damaged(&segment.path, bad.to_string()))
    }

    /// The same, if the record is in memory and intact; it does not wait for the disk.
    pub fn read_cached(&self, location: Location) -> Option<OwnedRecord> {
        let segment = self.segment(location)?;
        let mut bytes = vec![0; location.length as usize];
        let offset = u64::from(location.offset);
        let is_cached = segment.file.read_cached_at(&mut bytes, offset);
        is_cached.then(|| decode(&segment, bytes).ok())?
    }

    fn segment(&self, location: Location) -> Option<Arc<Segment>> {
        self.segments.read().get(&location.segment).cloned()
    }
}

fn decode(segment: &Segment, bytes: Vec<u8>) -> Result<OwnedRecord, BadRecord> {
    let Record {
        kind,
        number,
        key,
        payload,
    } = Record::decode(segment.seed, &bytes)?;
    let (key_end, payload_len) = (RECORD_HEADER_BYTES + key.len(), payload.len());
    let bytes = Bytes::from(bytes);
    Ok(OwnedRecord {
        kind,
        number,
        key: bytes.slice(RECORD_HEADER_BYTES..key_end),
        payload: bytes.slice(key_end..key_end + payload_len),
    })
}

fn failed(action: &'static str, segment: &Segment) -> impl FnOnce(std::io::Error) -> LogError {
    let file = segment.path.clone();
    move |source| LogError::Io {
        action,
        file,
        source,
    }
}
