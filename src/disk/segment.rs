//! The headers of segments and groups, and positions in a log. Pure but for the open segment.
//!
//! Little-endian. A **segment header** fills one sector and is there twice, so that one bad sector
//! does not cost a segment; it is synced before the segment has its name, so it is never torn.
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 8 | `TLRXSEG` and 0 |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | number of the segment, as in its name |
//! | 16 | 8 | salt, chosen anew for each segment |
//! | 24 | 8 | epoch in which it was made |
//! | 32 | 8 | end of the segment before, all of which was synced; see below |
//! | 40 | 4 | CRC-32C of bytes 0..40 |
//! | 44 | 468 | 0 |
//!
//! The end of the segment before names that segment, and so links the log's segments into a list:
//! what lies between it and this one in number **was removed**. To remove a segment is to write its
//! successor's header anew, first copy first; the file goes afterwards. It needs no space and no
//! further file, and a removed segment that comes back after a crash is known for what it is. In an
//! end, offset 0 means that it is not known; 0 as a whole is the unknown end of the segment
//! numbered one less; segment 0, which never was, stands for no segment before.
//!
//! A **group header** stands at the start of each group, on a sector boundary. Sectors are what a
//! disk writes whole: so the write of a group, however torn, leaves the groups before it as they
//! are. That costs 256 bytes a group on average, 3 % for a group of 64 records of 100 bytes; with
//! 64 bytes instead a torn sector could take an acknowledged group with it.
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 4 | `TGRP` |
//! | 4 | 4 | CRC-32C of bytes 8..48, seeded with the segment's salt: no payload can forge it |
//! | 8 | 8 | position of this header |
//! | 16 | 8 | known-synced position: all before it was synced when this was written |
//! | 24 | 8 | epoch: grows with each opening of the log, never falls along a segment |
//! | 32 | 4 | bytes of records that follow the header |
//! | 36 | 4 | number of records; 0 in a group that only tells the known-synced position |
//! | 40 | 4 | CRC-32C of the records, seeded: binds them to this header |
//! | 44 | 4 | 0 |
//!
//! A position is `segment << 32 | offset`.

use std::fmt;
use std::sync::Arc;

use super::fs::File;
use super::record::{Seed, u32_at, u64_at};

/// The end before a segment before which there is none any more.
pub(crate) const NOTHING_BEFORE: Position = Position {
    segment: 0,
    offset: DATA_START,
};

/// What a disk writes whole.
pub const SECTOR_BYTES: usize = 512;

/// Where the first group of a segment begins: behind both copies of the header.
pub(crate) const DATA_START: u32 = 2 * SECTOR_BYTES as u32;

/// Bytes of a group before its records.
pub(crate) const GROUP_HEADER_BYTES: usize = 48;

/// The format that is written and read.
pub const FORMAT_VERSION: u32 = 1;

/// No log is opened so often: a header that says so was not written by us. So there is an epoch
/// after each that is read; half of the numbers, as openings go on from there.
const EPOCH_END: u64 = 1 << 63;

const SEGMENT_MAGIC: [u8; 8] = *b"TLRXSEG\0";
const GROUP_MAGIC: [u8; 4] = *b"TGRP";

/// A byte position in a log. Ordered as the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The number of the segment; 0 only before the first.
    pub segment: u32,
    /// The byte in the segment's file.
    pub offset: u32,
}

impl Position {
    pub(crate) fn as_u64(self) -> u64 {
        u64::from(self.segment) << 32 | u64::from(self.offset)
    }

    pub(crate) fn from_u64(value: u64) -> Position {
        Position {
            segment: (value >> 32) as u32,
            offset: value as u32,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.segment, self.offset)
    }
}

/// The smallest multiple of a sector that is not less than `bytes`.
pub(crate) fn align_up(bytes: usize) -> usize {
    bytes.next_multiple_of(SECTOR_BYTES)
}

/// The name of a segment's file.
pub(crate) fn file_name(number: u32) -> String {
    format!("{number:08}.log")
}

/// The number of the segment whose file has this name.
pub(crate) fn parse_file_name(name: &str) -> Option<u32> {
    let number = name.strip_suffix(".log")?.parse().ok()?;
    (number > 0 && file_name(number) == name).then_some(number)
}

/// An open segment, shared by the log and its readers.
pub(crate) struct Segment {
    /// As in its name.
    pub(crate) number: u32,
    /// Path of the file, for errors.
    pub(crate) path: String,
    /// Of its salt.
    pub(crate) seed: Seed,
    /// Readers read it, only the log's owner writes it.
    pub(crate) file: Arc<dyn File>,
}

/// A segment with a successor: nothing is appended to it any more, and all of it was synced before
/// the successor had a name. What is equal to it is this segment: no other has its salt, and it was
/// sealed once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedSegment {
    /// As in its name.
    pub number: u32,
    /// What makes it differ from any other of this number.
    pub salt: u64,
    /// Where its last group ends, as its successor's header tells.
    pub end: u32,
}

/// See the table above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) number: u32,
    pub(crate) salt: u64,
    pub(crate) epoch: u64,
    /// The segment before and its end; `None` when the end of the one numbered less by one is not
    /// known.
    pub(crate) previous_end: Option<Position>,
}

impl SegmentHeader {
    /// The number of the segment before; 0 if there is none.
    pub(crate) fn before(&self) -> u32 {
        self.previous_end
            .map_or(self.number.saturating_sub(1), |end| end.segment)
    }

    /// The end of the segment of this number, if it is the one before and its end is known.
    pub(crate) fn end_of(&self, number: u32) -> Option<u32> {
        self.previous_end
            .filter(|end| end.segment == number && end.offset > 0)
            .map(|end| end.offset)
    }

    /// This segment, sealed, with the end that its successor tells.
    pub(crate) fn sealed(&self, end: u32) -> SealedSegment {
        SealedSegment {
            number: self.number,
            salt: self.salt,
            end,
        }
    }

    /// Both copies.
    pub(crate) fn encode(&self) -> [u8; DATA_START as usize] {
        let mut sector = [0; SECTOR_BYTES];
        let previous_end = self.previous_end.unwrap_or_default();
        sector[0..8].copy_from_slice(&SEGMENT_MAGIC);
        sector[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        sector[12..16].copy_from_slice(&self.number.to_le_bytes());
        sector[16..24].copy_from_slice(&self.salt.to_le_bytes());
        sector[24..32].copy_from_slice(&self.epoch.to_le_bytes());
        sector[32..40].copy_from_slice(&previous_end.as_u64().to_le_bytes());
        let checksum = crc32c::crc32c(&sector[..40]);
        sector[40..44].copy_from_slice(&checksum.to_le_bytes());
        let mut both = [0; DATA_START as usize];
        both[..SECTOR_BYTES].copy_from_slice(&sector);
        both[SECTOR_BYTES..].copy_from_slice(&sector);
        both
    }

    /// One copy, with the version it was written in; `None` if it is not intact.
    pub(crate) fn decode(sector: &[u8]) -> Option<(u32, SegmentHeader)> {
        let covered = sector.get(..40)?;
        if !covered.starts_with(&SEGMENT_MAGIC) || u32_at(sector, 40)? != crc32c::crc32c(covered) {
            return None;
        }
        let previous_end = Position::from_u64(u64_at(sector, 32)?);
        let header = SegmentHeader {
            number: u32_at(sector, 12)?,
            salt: u64_at(sector, 16)?,
            epoch: u64_at(sector, 24)?,
            previous_end: (previous_end != Position::default()).then_some(previous_end),
        };
        let is_ours = header.epoch < EPOCH_END;
        is_ours.then_some((u32_at(sector, 8)?, header))
    }
}

/// See the table above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupHeader {
    pub(crate) position: Position,
    pub(crate) synced: Position,
    pub(crate) epoch: u64,
    pub(crate) length: u32,
    pub(crate) count: u32,
    /// Checksum of the records.
    pub(crate) body: u32,
}

impl GroupHeader {
    pub(crate) fn encode(&self, seed: Seed) -> [u8; GROUP_HEADER_BYTES] {
        let mut bytes = [0; GROUP_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&GROUP_MAGIC);
        bytes[8..16].copy_from_slice(&self.position.as_u64().to_le_bytes());
        bytes[16..24].copy_from_slice(&self.synced.as_u64().to_le_bytes());
        bytes[24..32].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.length.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.count.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.body.to_le_bytes());
        let checksum = seed.checksum(&bytes[8..]);
        bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The header at the start of `bytes`, if it is intact and was written at `position`.
    pub(crate) fn decode(seed: Seed, position: Position, bytes: &[u8]) -> Option<GroupHeader> {
        let bytes = bytes.get(..GROUP_HEADER_BYTES)?;
        if !bytes.starts_with(&GROUP_MAGIC) || u32_at(bytes, 4)? != seed.checksum(&bytes[8..]) {
            return None;
        }
        let header = GroupHeader {
            position: Position::from_u64(u64_at(bytes, 8)?),
            synced: Position::from_u64(u64_at(bytes, 16)?),
            epoch: u64_at(bytes, 24)?,
            length: u32_at(bytes, 32)?,
            count: u32_at(bytes, 36)?,
            body: u32_at(bytes, 40)?,
        };
        let is_ours = header.position == position && header.synced <= position;
        (is_ours && header.epoch < EPOCH_END).then_some(header)
    }

    /// Bytes from this header to the next.
    pub(crate) fn size(&self) -> usize {
        align_up(GROUP_HEADER_BYTES + self.length as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupHeader = GroupHeader {
        position: Position {
            segment: 3,
            offset: 2048,
        },
        synced: Position {
            segment: 3,
            offset: 1024,
        },
        epoch: 7,
        length: 500,
        count: 2,
        body: 99,
    };

    #[test]
    fn an_epoch_without_a_next_one_is_not_ours() {
        for (epoch, is_ours) in [(EPOCH_END - 1, true), (EPOCH_END, false), (u64::MAX, false)] {
            let group = GroupHeader { epoch, ..GROUP };
            let bytes = group.encode(Seed::of(9));
            let read = GroupHeader::decode(Seed::of(9), GROUP.position, &bytes);
            assert_eq!(read.is_some(), is_ours, "{epoch}");
            let segment = SegmentHeader {
                number: 3,
                salt: 9,
                epoch,
                previous_end: None,
            };
            let read = SegmentHeader::decode(&segment.encode());
            assert_eq!(read.is_some(), is_ours, "{epoch}");
        }
    }

    #[test]
    fn names_are_numbers_in_eight_digits() {
        assert_eq!(file_name(1), "00000001.log");
        for (name, number) in [
            ("00000001.log", Some(1)),
            ("12345678.log", Some(12_345_678)),
            ("123456789.log", Some(123_456_789)),
            ("1.log", None),
            ("00000000.log", None),
            ("+0000001.log", None),
            ("next.tmp", None),
        ] {
            assert_eq!(parse_file_name(name), number, "{name}");
        }
    }

    #[test]
    fn a_segment_header_is_there_twice_and_no_flipped_bit_passes() {
        let previous_end = Some(Position {
            segment: 2,
            offset: 4096,
        });
        let header = SegmentHeader {
            number: 3,
            salt: 5,
            epoch: 7,
            previous_end,
        };
        let both = header.encode();
        for copy in both.chunks(SECTOR_BYTES) {
            assert_eq!(SegmentHeader::decode(copy), Some((1, header)));
            for bit in 0..44 * 8 {
                let mut bad = copy.to_vec();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(SegmentHeader::decode(&bad), None, "bit {bit}");
            }
        }
    }

    #[test]
    fn a_group_header_is_valid_only_in_its_segment_and_at_its_place() {
        let bytes = GROUP.encode(Seed::of(5));
        assert_eq!(
            GroupHeader::decode(Seed::of(5), GROUP.position, &bytes),
            Some(GROUP)
        );
        assert_eq!(
            GroupHeader::decode(Seed::of(6), GROUP.position, &bytes),
            None
        );
        assert_eq!(GroupHeader::decode(Seed::of(5), GROUP.synced, &bytes), None);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            let found = GroupHeader::decode(Seed::of(5), GROUP.position, &bad);
            assert_eq!(found, None, "bit {bit}");
        }
    }

    #[test]
    fn a_group_fills_whole_sectors() {
        let size = |length| GroupHeader { length, ..GROUP }.size();
        assert_eq!([size(0), size(464), size(465)], [512, 512, 1024]);
    }
}
