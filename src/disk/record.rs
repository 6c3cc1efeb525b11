//! The record of both logs: encode and decode. Pure.
//!
//! Little-endian; records follow each other without padding.
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 4 | CRC-32C of all that follows, seeded with the segment's salt |
//! | 4 | 4 | payload length |
//! | 8 | 8 | number: a revision, a Raft index |
//! | 16 | 2 | key length |
//! | 18 | 1 | kind, given by the log's user |
//! | 19 | 1 | 0 |
//! | 20 | key length | key |
//! | .. | payload length | payload |

use bytes::Bytes;

/// Bytes of a record before its key.
pub const RECORD_HEADER_BYTES: usize = 20;

/// The longest key: what its length field holds.
pub const KEY_BYTES_MAX: usize = u16::MAX as usize;

/// The longest payload. Twice the frame limit, as nothing longer arrives; a longer length field is
/// damage.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// One entry of a log, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// What it is, to the log's user.
    pub kind: u8,
    /// Its name, to the log's user.
    pub number: u64,
    /// The key, [`KEY_BYTES_MAX`] bytes at most; may be empty.
    pub key: &'a [u8],
    /// The payload, [`PAYLOAD_BYTES_MAX`] bytes at most; may be empty.
    pub payload: &'a [u8],
}

/// One entry of a log, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedRecord {
    /// See [`Record::kind`].
    pub kind: u8,
    /// See [`Record::number`].
    pub number: u64,
    /// See [`Record::key`].
    pub key: Bytes,
    /// See [`Record::payload`].
    pub payload: Bytes,
}

/// Where a record is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The number of the segment.
    pub segment: u32,
    /// The record's first byte in the segment's file.
    pub offset: u32,
    /// The record's length, header included.
    pub length: u32,
}

/// What the checksums of a segment start from: a function of its salt, so that bytes of another
/// segment are not valid in this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seed(u32);

impl Seed {
    /// The seed that belongs to a salt.
    pub(crate) fn of(salt: u64) -> Seed {
        Seed(crc32c::crc32c(&salt.to_le_bytes()))
    }

    /// The checksum of `bytes`.
    pub(crate) fn checksum(self, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(self.0, bytes)
    }
}

/// The little-endian integers at a place in stored bytes, if they are there.
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(u16::from_le_bytes(*bytes))
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(u64::from_le_bytes(*bytes))
}

impl<'a> Record<'a> {
    /// The record's length on disk.
    pub fn encoded_len(&self) -> usize {
        RECORD_HEADER_BYTES + self.key.len() + self.payload.len()
    }

    /// Appends the record to `buffer`.
    pub(crate) fn encode(&self, seed: Seed, buffer: &mut Vec<u8>) {
        assert!(self.key.len() <= KEY_BYTES_MAX, "the key is too long");
        assert!(
            self.payload.len() <= PAYLOAD_BYTES_MAX,
            "the payload is too long"
        );
        let start = buffer.len();
        buffer.reserve(self.encoded_len());
        let mut header = [0; RECORD_HEADER_BYTES];
        header[4..8].copy_from_slice(&(self.payload.len() as u32).to_le_bytes());
        header[8..16].copy_from_slice(&self.number.to_le_bytes());
        header[16..18].copy_from_slice(&(self.key.len() as u16).to_le_bytes());
        header[18] = self.kind;
        buffer.extend_from_slice(&header);
        buffer.extend_from_slice(self.key);
        buffer.extend_from_slice(self.payload);
        let checksum = seed.checksum(&buffer[start + 4..]);
        buffer[start..start + 4].copy_from_slice(&checksum.to_le_bytes());
    }

    /// The record at the start of `bytes`, checked.
    pub(crate) fn decode(seed: Seed, bytes: &'a [u8]) -> Result<Record<'a>, BadRecord> {
        let length = encoded_len_at(bytes).ok_or(BadRecord::Length)?;
        let bytes = bytes.get(..length).ok_or(BadRecord::Length)?;
        let (header, rest) = bytes
            .split_first_chunk::<RECORD_HEADER_BYTES>()
            .ok_or(BadRecord::Length)?;
        let found = seed.checksum(bytes.get(4..).unwrap_or_default());
        let expected = u32_at(header, 0).ok_or(BadRecord::Length)?;
        if found != expected {
            return Err(BadRecord::Checksum { expected, found });
        }
        let key_len = usize::from(u16_at(header, 16).ok_or(BadRecord::Length)?);
        let (key, payload) = rest.split_at_checked(key_len).ok_or(BadRecord::Length)?;
        Ok(Record {
            kind: header[18],
            number: u64_at(header, 8).ok_or(BadRecord::Length)?,
            key,
            payload,
        })
    }
}

/// The length on disk of the record at the start of `bytes`, as its header says; not checked
/// against the checksum. `None` if it cannot be one.
pub(crate) fn encoded_len_at(bytes: &[u8]) -> Option<usize> {
    let payload = u32_at(bytes, 4)? as usize;
    let key = usize::from(u16_at(bytes, 16)?);
    (payload <= PAYLOAD_BYTES_MAX).then_some(RECORD_HEADER_BYTES + key + payload)
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadRecord {
    /// Its length cannot be.
    #[error("the length of the record cannot be")]
    Length,
    /// Its checksum does not match.
    #[error("the checksum of the record should be {expected:08x} and is {found:08x}")]
    Checksum {
        /// What the record says.
        expected: u32,
        /// What its bytes give.
        found: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(record: &Record<'_>) -> Vec<u8> {
        let mut buffer = vec![7; 3];
        record.encode(Seed::of(9), &mut buffer);
        buffer.split_off(3)
    }

    #[test]
    fn a_record_comes_back() {
        for (key, payload) in [
            (&b""[..], &b""[..]),
            (b"k", b""),
            (b"", b"v"),
            (b"key", b"value"),
        ] {
            let record = Record {
                kind: 3,
                number: 1 << 40,
                key,
                payload,
            };
            let bytes = encoded(&record);
            assert_eq!(bytes.len(), record.encoded_len());
            assert_eq!(Record::decode(Seed::of(9), &bytes), Ok(record));
            assert!(
                Record::decode(Seed::of(8), &bytes).is_err(),
                "another segment"
            );
        }
    }

    #[test]
    fn no_flipped_bit_and_no_cut_is_taken_for_a_record() {
        let record = Record {
            kind: 1,
            number: 42,
            key: b"key",
            payload: b"a payload",
        };
        let bytes = encoded(&record);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::decode(Seed::of(9), &bad).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(
                Record::decode(Seed::of(9), &bytes[..len]).is_err(),
                "cut to {len}"
            );
        }
    }

    #[test]
    fn the_layout_is_as_documented() {
        let record = Record {
            kind: 2,
            number: 0x0102,
            key: b"K",
            payload: b"PP",
        };
        let bytes = encoded(&record);
        assert_eq!(
            bytes[4..],
            *b"\x02\0\0\0\x02\x01\0\0\0\0\0\0\x01\0\x02\0KPP"
        );
    }
}
