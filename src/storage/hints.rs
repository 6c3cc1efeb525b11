//! Hint files of the `log` engine: what a sealed segment holds, without keys and payloads, so that
//! opening need not read it.
//!
//! `00000001.hint` lies beside `00000001.log`. The thread that compacts writes it some time after
//! the segment was sealed, from the segment itself, and only if all of it is intact. It is replaced
//! as a whole (`disk::atomic_file`), and removed with its segment. One without a use, because it is
//! damaged, of another segment or of another version, is removed at opening: its segment is read
//! instead, and gets a new one.
//!
//! # Why a hint can be believed
//!
//! * It is of a segment to which nothing is appended any more and which was synced to its end
//!   before its successor had a name (`disk::opening` says why nothing else is needed of it).
//! * It names the segment by number, salt and end. The salt is chosen at random when a segment is
//!   made, so the hint of another segment of this number fits only by a chance of 2^-64; a segment
//!   is never changed, and a number is not used again in a log. Compaction appends records elsewhere
//!   and removes the segment.
//! * It has a checksum over all. So it says what the segment says, or nothing: it is taken in after
//!   all of it was checked.
//!
//! Stores and releases are both in it, in the segment's order: later records rule over earlier ones
//! across segments, and dead copies are counted, so opening by hints makes the same index as opening
//! by records. The one difference is damage in a segment: found when the record is read (its
//! checksum, A5) or the segment is compacted, and no longer at opening. The revision of such a
//! record is still known, so that it is reported as damaged and not as missing.
//!
//! # Bytes
//!
//! Little-endian. The first 16 bytes are those of `disk::atomic_file`.
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 8 | `TLRXFIL` and 0 |
//! | 8 | 4 | version of the file's frame, 1 |
//! | 12 | 4 | CRC-32C of bytes 0..12 and 16.. |
//! | 16 | 4 | `HINT` |
//! | 20 | 4 | version of what follows, 1 |
//! | 24 | 4 | number of the segment |
//! | 28 | 4 | its end |
//! | 32 | 8 | its salt |
//! | 40 | 4 | number of entries |
//! | 44 | .. | an entry for each record, in the segment's order |
//!
//! An entry is shorter than the record that it stands for, so a hint is shorter than its segment:
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 8 | revision |
//! | 8 | 4 | offset of the record in the segment's file |
//! | 12 | 4 | length of its payload |
//! | 16 | 2 | length of its key; the record is as long as its header, key and payload |
//! | 18 | 1 | kind: 1 store, 2 release |
//!
//! Source: Bitcask paper, section 2 (hint files).

use std::path::{Path, PathBuf};

use crate::disk::atomic_file;
use crate::disk::error::LogError;
use crate::disk::fs::FileSystem;
use crate::disk::log::SealedSegment;
use crate::disk::record::{Location, RECORD_HEADER_BYTES, u16_at, u32_at, u64_at};
use crate::ids::Revision;
use crate::storage::log_engine::{KIND_RELEASE, KIND_STORE};

const MAGIC: [u8; 4] = *b"HINT";
const VERSION: u32 = 1;
/// What `disk::atomic_file` puts before the rest: offsets in errors count from the file's start.
const FRAME_BYTES: u64 = 16;
const HEADER_BYTES: usize = 28;
const ENTRY_BYTES: usize = 19;

/// A record of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its revision.
    pub revision: Revision,
    /// Where it is.
    pub location: Location,
    /// Length of its payload, in bytes.
    pub payload_bytes: u32,
    /// Whether it is a store; if not, it is a release.
    pub is_store: bool,
}

/// What the hint of a segment tells; `None` if it has no hint. One that is damaged, of another
/// version or not of this segment is an error.
pub fn read(
    fs: &dyn FileSystem,
    dir: &Path,
    segment: &SealedSegment,
) -> Result<Option<Vec<Entry>>, LogError> {
    let path = path(dir, segment.number);
    let Some(content) = atomic_file::read(fs, &path)? else {
        return Ok(None);
    };
    decode(&content, segment, &path).map(Some)
}

/// Writes the hint of a segment, durably. On [`LogError::Full`] nothing is left of it.
pub fn write(
    fs: &dyn FileSystem,
    dir: &Path,
    segment: &SealedSegment,
    entries: &[Entry],
) -> Result<(), LogError> {
    atomic_file::write(fs, &path(dir, segment.number), &encode(segment, entries))
}

/// Removes the hint of a segment that is to go. One that stays is removed by the next opening.
pub fn remove(fs: &dyn FileSystem, dir: &Path, segment: u32) {
    let removed = fs.remove(&path(dir, segment));
    log::trace!("hint of segment {segment} removed: {removed:?}");
}

/// The segments that there are hints of, good or not.
pub fn list(fs: &dyn FileSystem, dir: &Path) -> std::io::Result<Vec<u32>> {
    let names = fs.list(dir)?;
    Ok(names.iter().filter_map(|name| parse(name)).collect())
}

fn parse(name: &str) -> Option<u32> {
    let number = name.strip_suffix(".hint")?.parse().ok()?;
    (file_name(number) == name).then_some(number)
}

fn file_name(segment: u32) -> String {
    format!("{segment:08}.hint")
}

/// The file of a segment's hint.
pub fn path(dir: &Path, segment: u32) -> PathBuf {
    dir.join(file_name(segment))
}

fn encode(segment: &SealedSegment, entries: &[Entry]) -> Vec<u8> {
    let count = u32::try_from(entries.len()).expect("a segment has fewer records than bytes");
    let mut content = Vec::with_capacity(HEADER_BYTES + entries.len() * ENTRY_BYTES);
    content.extend_from_slice(&MAGIC);
    content.extend_from_slice(&VERSION.to_le_bytes());
    content.extend_from_slice(&segment.number.to_le_bytes());
    content.extend_from_slice(&segment.end.to_le_bytes());
    content.extend_from_slice(&segment.salt.to_le_bytes());
    content.extend_from_slice(&count.to_le_bytes());
    for entry in entries {
        let Location { offset, length, .. } = entry.location;
        let key_bytes = length - entry.payload_bytes - RECORD_HEADER_BYTES as u32;
        let key_bytes = u16::try_from(key_bytes).expect("keys are limited");
        let kind = if entry.is_store {
            KIND_STORE
        } else {
            KIND_RELEASE
        };
        content.extend_from_slice(&entry.revision.as_u64().to_le_bytes());
        content.extend_from_slice(&offset.to_le_bytes());
        content.extend_from_slice(&entry.payload_bytes.to_le_bytes());
        content.extend_from_slice(&key_bytes.to_le_bytes());
        content.push(kind);
    }
    content
}

/// The entries of a hint, after all of it was checked.
fn decode(content: &[u8], segment: &SealedSegment, path: &Path) -> Result<Vec<Entry>, LogError> {
    let file = || path.display().to_string();
    let damaged = |at: usize, what: &str| LogError::Damaged {
        file: file(),
        offset: FRAME_BYTES + at as u64,
        what: what.to_owned(),
    };
    if !content.starts_with(&MAGIC) {
        return Err(damaged(0, "this is not a hint"));
    }
    match u32_at(content, 4) {
        Some(VERSION) => {}
        version => {
            return Err(LogError::Version {
                file: file(),
                version: version.unwrap_or_default(),
                known: VERSION,
            });
        }
    }
    let Some((found, count)) = header(content) else {
        return Err(damaged(0, "the file ends in its header"));
    };
    if found != *segment {
        let what = format!("it is of another segment: {found:?}, expected {segment:?}");
        return Err(damaged(8, &what));
    }
    let entries = content.get(HEADER_BYTES..).unwrap_or_default();
    if entries.len() != (count as usize).saturating_mul(ENTRY_BYTES) {
        return Err(damaged(24, "the number of entries is not that of the file"));
    }
    let mut decoded = Vec::with_capacity(count as usize);
    let mut free_from = 0;
    for bytes in entries.chunks_exact(ENTRY_BYTES) {
        let at = HEADER_BYTES + decoded.len() * ENTRY_BYTES;
        let entry = decode_entry(bytes, segment, free_from)
            .ok_or_else(|| damaged(at, "this entry is of no record of the segment"))?;
        free_from = entry.location.offset + entry.location.length;
        decoded.push(entry);
    }
    Ok(decoded)
}

/// The segment that a hint is of, and its number of entries.
fn header(content: &[u8]) -> Option<(SealedSegment, u32)> {
    let segment = SealedSegment {
        number: u32_at(content, 8)?,
        end: u32_at(content, 12)?,
        salt: u64_at(content, 16)?,
    };
    Some((segment, u32_at(content, 24)?))
}

/// An entry, if such a record can lie in the segment behind `free_from`.
fn decode_entry(bytes: &[u8], segment: &SealedSegment, free_from: u32) -> Option<Entry> {
    let payload_bytes = u32_at(bytes, 12)?;
    let length = payload_bytes
        .checked_add(RECORD_HEADER_BYTES as u32)?
        .checked_add(u32::from(u16_at(bytes, 16)?))?;
    let entry = Entry {
        revision: Revision::from_u64(u64_at(bytes, 0)?),
        location: Location {
            segment: segment.number,
            offset: u32_at(bytes, 8)?,
            length,
        },
        payload_bytes,
        is_store: match *bytes.get(18)? {
            KIND_STORE => true,
            KIND_RELEASE => false,
            _ => return None,
        },
    };
    let end = entry.location.offset.checked_add(length)?;
    (entry.location.offset >= free_from && end <= segment.end).then_some(entry)
}
