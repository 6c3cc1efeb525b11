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
//! * It names the segment by number, salt and end. The salt is random, so the hint of a segment of
//!   another log or generation fits only by a chance of 2^-64. A sealed segment's groups are never
//!   changed: compaction appends records elsewhere and removes the segment, and its number is not
//!   used again.
//! * It has a checksum over all. So it says what the segment says, or nothing: it is taken in after
//!   all of it was checked.
//!
//! Stores and releases are both in it, in the segment's order: later records rule over earlier
//! ones across segments, and dead copies are counted, so opening by hints makes the same index as
//! opening by records. The one difference is damage in a segment: found when the record is read
//! (its checksum, A5) or the segment is compacted, and no longer at opening. The revision of such a
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

/// Writes the hint of a segment, durably. On [`LogError::Refused`] nothing is left of it.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::fs::read_all;
    use crate::disk::mem::MemFileSystem;

    const DIR: &str = "log";

    const SEGMENT: SealedSegment = SealedSegment {
        number: 3,
        salt: 0x1122_3344_5566_7788,
        end: 4096,
    };

    fn entries() -> Vec<Entry> {
        let entry = |revision, offset, key_bytes: u32, payload_bytes, is_store| Entry {
            revision: Revision::from_u64(revision),
            location: Location {
                segment: SEGMENT.number,
                offset,
                length: RECORD_HEADER_BYTES as u32 + key_bytes + payload_bytes,
            },
            payload_bytes,
            is_store,
        };
        vec![
            entry(7, 1072, 2, 100, true),
            entry(5, 1194, 0, 0, false),
            entry(9, 1584, 512, 1980, true),
        ]
    }

    fn disk() -> MemFileSystem {
        let fs = MemFileSystem::new();
        fs.create_dir_all(DIR.as_ref()).unwrap();
        write(&fs, DIR.as_ref(), &SEGMENT, &entries()).unwrap();
        fs
    }

    fn read_here(fs: &MemFileSystem, segment: &SealedSegment) -> Result<Vec<Entry>, String> {
        match read(fs, DIR.as_ref(), segment) {
            Ok(entries) => Ok(entries.expect("there is a hint")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// What is said of a hint with this content and a checksum that fits.
    fn refusal(content: &[u8]) -> String {
        let fs = disk();
        atomic_file::write(&fs, &path(DIR.as_ref(), 3), content).unwrap();
        read_here(&fs, &SEGMENT).unwrap_err()
    }

    #[test]
    fn what_is_written_is_read() {
        let fs = disk();
        assert_eq!(read_here(&fs, &SEGMENT), Ok(entries()));
        assert_eq!(list(&fs, DIR.as_ref()).unwrap(), [3]);
        remove(&fs, DIR.as_ref(), 3);
        assert!(read(&fs, DIR.as_ref(), &SEGMENT).unwrap().is_none());
    }

    #[test]
    fn the_bytes_are_those_of_the_table() {
        let file = disk().open(&path(DIR.as_ref(), 3)).unwrap();
        let bytes = read_all(&*file).unwrap();
        let (frame, content) = bytes.split_at(FRAME_BYTES as usize);
        assert!(frame.starts_with(b"TLRXFIL\0\x01\0\0\0"));
        let first = b"HINT\x01\0\0\0\x03\0\0\0\0\x10\0\0\x88\x77\x66\x55\x44\x33\x22\x11\x03\0\0\0\
            \x07\0\0\0\0\0\0\0\x30\x04\0\0\x64\0\0\0\x02\0\x01\
            \x05\0\0\0\0\0\0\0\xaa\x04\0\0\0\0\0\0\0\0\x02";
        assert_eq!(content[..first.len()], first[..]);
        assert_eq!(content.len(), HEADER_BYTES + 3 * ENTRY_BYTES);
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_refused_and_names_the_file() {
        let whole = disk();
        let path = path(DIR.as_ref(), 3);
        let length = whole.content(&path).unwrap().len() as u64;
        for cut in 0..length {
            let fs = whole.fork();
            fs.open(&path).unwrap().set_len(cut).unwrap();
            let error = read_here(&fs, &SEGMENT).unwrap_err();
            assert!(error.contains("log/00000003.hint"), "cut at {cut}: {error}");
        }
        for bit in 0..length * 8 {
            let fs = whole.fork();
            assert!(fs.flip_bit(&path, bit / 8, (bit % 8) as u8));
            let error = read_here(&fs, &SEGMENT).unwrap_err();
            assert!(error.contains("log/00000003.hint"), "bit {bit}: {error}");
        }
    }

    #[test]
    fn a_hint_of_another_segment_is_refused() {
        let fs = disk();
        for other in [
            SealedSegment { salt: 1, ..SEGMENT },
            SealedSegment {
                end: 4608,
                ..SEGMENT
            },
        ] {
            let error = read_here(&fs, &other).unwrap_err();
            assert!(error.contains("of another segment"), "{error}");
        }
        // The file of segment 3 under the name of segment 4.
        let [from, to] = [3, 4].map(|number| path(DIR.as_ref(), number));
        fs.rename(&from, &to).unwrap();
        let other = SealedSegment {
            number: 4,
            ..SEGMENT
        };
        let error = read_here(&fs, &other).unwrap_err();
        assert!(error.contains("of another segment"), "{error}");
    }

    #[test]
    fn what_is_intact_and_no_hint_of_this_version_is_refused() {
        let good = encode(&SEGMENT, &entries());
        let with = |at: usize, byte: u8| {
            let mut bad = good.clone();
            bad[at] = byte;
            refusal(&bad)
        };
        assert!(refusal(b"").contains("not a hint"));
        assert!(with(0, b'h').contains("not a hint"));
        assert!(with(4, 2).contains("version 2"));
        assert!(refusal(&good[..HEADER_BYTES - 1]).contains("ends in its header"));
        assert!(refusal(&good[..good.len() - 1]).contains("number of entries"));
        assert!(with(24, 2).contains("number of entries"));
        let second = HEADER_BYTES + ENTRY_BYTES;
        for (what, error) in [
            ("an unknown kind", with(second + 18, 3)),
            ("an overlap", with(second + 8, 0xa9)),
            ("behind the end", with(second + ENTRY_BYTES + 9, 0x10)),
            ("a long payload", with(second + 15, 0xff)),
        ] {
            let is_there = error.contains("no record of the segment");
            assert!(is_there && error.contains("offset"), "{what}: {error}");
        }
    }
}
