//! Reading a segment after a crash: what is whole, what is damaged, what is a torn tail. The scan
//! is pure; `repair` makes its verdict durable.
//!
//! Three things may be wrong behind the last good group, and they must be told apart:
//!
//! * The **known-synced position** is the highest that any intact header of the segment tells. All
//!   before it was synced, so a bad group there is **damage**: reported, kept, passed over. For a
//!   segment that has a successor it is the segment's end, which the successor's header tells.
//! * At or above it, the first group that is not whole begins the **torn tail**. Sectors of
//!   unsynced writes land in any order, so whatever lies behind it is cut too, intact or not.
//! * Zeros are space that was filled ahead, and the end.
//!
//! Headers are looked for on every sector, not only where the chain of lengths leads, so one bad
//! header neither hides the groups behind it nor the known-synced position that they tell.
//!
//! # Order of the repair, and why
//!
//! 1. The valid groups at or above the known-synced position are written again and synced: after a
//!    failed sync they may be in the page cache only, and marked clean there.
//! 2. An empty group of the next epoch, the *mark*, is written at the cut and synced. It is one
//!    sector, so it is there or not. It makes the known-synced position durable before step 3
//!    destroys the headers that told it; and since epochs never fall along a segment, no group
//!    behind the cut is valid from here on.
//! 3. What lies behind the mark is zeroed and synced.
//!
//! A crash in between is recovered in the same way: nothing that was kept is cut later.

use std::fmt;

use super::error::LogError;
use super::fs::File;
use super::record::{Location, Record, Seed, encoded_len_at};
use super::segment::{
    DATA_START, FORMAT_VERSION, GROUP_HEADER_BYTES, GroupHeader, Position, SECTOR_BYTES,
    SegmentHeader,
};
use crate::error::Shortage;
use crate::faults::{self, Fault};

/// What opening a log found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// What is bad although it was synced, by segment and offset, in what was read. It stays as it
    /// is.
    pub damaged: Vec<Damage>,
    /// Copies of segment headers that were bad and were written again from the other copy.
    pub repaired: Vec<Damage>,
    /// The torn tail, if there was one. It is gone.
    pub cut: Option<Cut>,
    /// Records handed to `visit`.
    pub records: u64,
    /// Segments found.
    pub segments: u32,
}

/// Bytes that were synced and are bad.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file, with its directory.
    pub file: String,
    /// The first bad byte, as far as it is known.
    pub offset: u64,
    /// How many are affected; 0 if that is not known.
    pub bytes: u64,
    /// What was expected and found.
    pub what: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Damage {
            file,
            offset,
            bytes,
            what,
        } = self;
        write!(
            f,
            "{file} is damaged at offset {offset} ({bytes} bytes): {what}"
        )
    }
}

/// Bytes that were not synced and not complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The file, with its directory.
    pub file: String,
    /// Where the log ends now.
    pub offset: u64,
    /// How many bytes were not zero behind it, to the last.
    pub bytes: u64,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cut {
            file,
            offset,
            bytes,
        } = self;
        write!(
            f,
            "{file} is cut at offset {offset} ({bytes} bytes of an unfinished write)"
        )
    }
}

/// What is known of a segment from outside of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is the last one: it may have a torn tail.
    Last,
    /// It has a successor, so all of it was synced; its end, if the successor's header is intact.
    Sealed(Option<u32>),
}

/// The verdict on one segment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Scan {
    /// The groups that stay, in order; those not whole hold damage.
    pub(crate) groups: Vec<GroupHeader>,
    /// Damage outside of these groups: offset, bytes, what.
    pub(crate) damaged: Vec<(usize, usize, String)>,
    /// The known-synced offset in this segment.
    pub(crate) synced: usize,
    /// Where the log ends.
    pub(crate) end: usize,
    /// Bytes behind the end up to the last that is not zero.
    pub(crate) dirty: usize,
    /// The highest epoch seen.
    pub(crate) epoch: u64,
}

/// The intact header of a segment file, and where its other copy is, if that one is bad. `None`:
/// neither copy is intact, or the file is of another number.
pub(crate) fn read_header(
    path: &str,
    number: u32,
    bytes: &[u8],
) -> Result<Option<(SegmentHeader, Option<usize>)>, LogError> {
    let copy = |start| {
        let sector = bytes.get(start..start + SECTOR_BYTES)?;
        SegmentHeader::decode(sector)
    };
    let ((version, header), bad) = match (copy(0), copy(SECTOR_BYTES)) {
        (Some(first), Some(second)) if first == second => (first, None),
        (Some(first), Some(_) | None) => (first, Some(SECTOR_BYTES)),
        (None, Some(second)) => (second, Some(0)),
        (None, None) => return Ok(None),
    };
    if version != FORMAT_VERSION {
        return Err(LogError::Version {
            file: path.to_owned(),
            version,
            known: FORMAT_VERSION,
        });
    }
    Ok((header.number == number).then_some((header, bad)))
}

/// A piece of a segment: a group with an intact header, or bytes up to the next one.
enum Piece {
    Group(GroupHeader, usize),
    Gap(usize, usize),
}

impl Piece {
    fn start(&self) -> usize {
        match *self {
            Piece::Group(_, start) | Piece::Gap(start, _) => start,
        }
    }

    fn end(&self) -> usize {
        match *self {
            Piece::Group(group, start) => start + group.size(),
            Piece::Gap(_, end) => end,
        }
    }
}

/// Decides what of a segment stays. `bytes` is its whole file.
pub(crate) fn scan(bytes: &[u8], header: &SegmentHeader, fate: Fate) -> Scan {
    let seed = Seed::of(header.salt);
    let data_end = data_end(bytes);
    let (pieces, epoch) = pieces(bytes, header, seed, data_end);
    let told = pieces.iter().filter_map(|piece| match piece {
        Piece::Group(group, _) if group.synced.segment == header.number => {
            Some(group.synced.offset as usize)
        }
        Piece::Group(..) | Piece::Gap(..) => None,
    });
    let last = pieces.last().map_or(DATA_START as usize, Piece::end);
    let synced = match fate {
        Fate::Last => told.max().unwrap_or_default().max(DATA_START as usize),
        Fate::Sealed(Some(end)) => end as usize,
        Fate::Sealed(None) => last,
    };
    let mut scan = Scan {
        groups: Vec::new(),
        damaged: Vec::new(),
        synced,
        end: DATA_START as usize,
        dirty: 0,
        epoch,
    };
    for piece in pieces {
        let torn = match &piece {
            Piece::Group(group, start) => !is_whole(bytes, seed, group, *start),
            Piece::Gap(..) => true,
        };
        if torn && piece.start() >= synced {
            break;
        }
        scan.end = piece.end();
        match piece {
            Piece::Group(group, _) => scan.groups.push(group),
            Piece::Gap(start, end) => {
                scan.end = end.min(synced);
                let what = "there is no intact group here".to_owned();
                scan.damaged.push((start, scan.end - start, what));
                // Behind a gap across the known-synced offset nothing is certain.
                if end > synced {
                    break;
                }
            }
        }
    }
    if scan.end < synced {
        let what = "the groups that were here are missing".to_owned();
        scan.damaged.push((scan.end, synced - scan.end, what));
        scan.end = synced;
    }
    if faults::has(Fault::TornTailKept) {
        scan.end = scan.end.max(data_end.next_multiple_of(SECTOR_BYTES));
    }
    scan.dirty = data_end.saturating_sub(scan.end);
    scan
}

/// The end of the last byte that is not zero. By sectors first: most of a segment that was filled
/// ahead is zeros, and comparing memory takes a tenth of the time of looking at bytes.
fn data_end(bytes: &[u8]) -> usize {
    const ZEROS: [u8; SECTOR_BYTES] = [0; SECTOR_BYTES];
    let mut end = bytes.len();
    for sector in bytes.rchunks(SECTOR_BYTES) {
        if sector != ZEROS.get(..sector.len()).unwrap_or(&ZEROS) {
            return end - sector.iter().rev().take_while(|byte| **byte == 0).count();
        }
        end -= sector.len();
    }
    0
}

/// Splits a segment at its intact group headers.
fn pieces(bytes: &[u8], header: &SegmentHeader, seed: Seed, data_end: usize) -> (Vec<Piece>, u64) {
    let mut pieces = Vec::new();
    let mut epoch = header.epoch;
    let mut start = DATA_START as usize;
    let mut gap = None;
    while start < data_end {
        let position = Position {
            segment: header.number,
            offset: u32::try_from(start).unwrap_or(u32::MAX),
        };
        let group = bytes
            .get(start..)
            .and_then(|rest| GroupHeader::decode(seed, position, rest))
            .filter(|group| group.epoch >= epoch);
        match group {
            Some(group) => {
                if let Some(gap_start) = gap.take() {
                    pieces.push(Piece::Gap(gap_start, start));
                }
                epoch = group.epoch;
                pieces.push(Piece::Group(group, start));
                start += group.size();
            }
            None => {
                gap.get_or_insert(start);
                start += SECTOR_BYTES;
            }
        }
    }
    if let Some(gap_start) = gap {
        pieces.push(Piece::Gap(gap_start, start));
    }
    (pieces, epoch)
}

fn body<'a>(bytes: &'a [u8], group: &GroupHeader, start: usize) -> Option<&'a [u8]> {
    let start = start + GROUP_HEADER_BYTES;
    bytes.get(start..start + group.length as usize)
}

fn is_whole(bytes: &[u8], seed: Seed, group: &GroupHeader, start: usize) -> bool {
    body(bytes, group, start).is_some_and(|body| seed.checksum(body) == group.body)
}

/// Walks the records of a group that stays. A record that is bad is handed to `bad` (offset, bytes,
/// what), and the walk goes on behind it where its length still leads to an intact one.
pub(crate) fn walk(
    bytes: &[u8],
    seed: Seed,
    group: &GroupHeader,
    visit: &mut dyn FnMut(Location, &Record<'_>) -> Result<(), LogError>,
    bad: &mut dyn FnMut(usize, usize, String),
) -> Result<(), LogError> {
    let mut start = group.position.offset as usize + GROUP_HEADER_BYTES;
    let end = start + group.length as usize;
    while start < end {
        let rest = bytes.get(start..end.min(bytes.len())).unwrap_or_default();
        match Record::decode(seed, rest) {
            Ok(record) => {
                let location = Location {
                    segment: group.position.segment,
                    offset: u32::try_from(start).unwrap_or(u32::MAX),
                    length: u32::try_from(record.encoded_len()).unwrap_or(u32::MAX),
                };
                visit(location, &record)?;
                start += record.encoded_len();
            }
            Err(error) => {
                let length = encoded_len_at(rest).filter(|length| {
                    rest.get(*length..)
                        .is_some_and(|next| Record::decode(seed, next).is_ok())
                });
                let length = length.unwrap_or(end - start);
                bad(start, length, error.to_string());
                start += length;
            }
        }
    }
    Ok(())
}

/// Makes the verdict on the last segment durable, in the order that the header of this file gives.
/// Returns the end of the log, behind the mark, and the known-synced offset that the disk tells.
pub(crate) fn repair(
    file: &dyn File,
    path: &str,
    bytes: &[u8],
    header: &SegmentHeader,
    scan: &Scan,
) -> Result<(usize, usize), LogError> {
    let failed = |action| {
        move |source| LogError::Io {
            action,
            file: path.to_owned(),
            source,
        }
    };
    // A short write may have left out the end of the last sector. It is not made up for: that could
    // need space, which a full disk does not have.
    let within = |offset: usize| offset.min(bytes.len());
    let doubtful = bytes.get(within(scan.synced)..within(scan.end));
    if let Some(doubtful) = doubtful.filter(|doubtful| !doubtful.is_empty()) {
        file.write_all_at(doubtful, scan.synced as u64)
            .map_err(failed("rewrite"))?;
        file.sync_data().map_err(failed("sync"))?;
    }
    let position = Position {
        segment: header.number,
        offset: u32::try_from(scan.end).unwrap_or(u32::MAX),
    };
    let mark = mark(Seed::of(header.salt), position, position, scan.epoch + 1);
    match file.write_all_at(&mark, scan.end as u64) {
        Ok(()) => file.sync_data().map_err(failed("sync"))?,
        Err(error) if Shortage::of(&error).is_some() => {
            // A full disk must not keep a log from opening: its releases make room. The cut is
            // durable without the mark; the known-synced position is told by the next group.
            file.set_len(scan.end as u64).map_err(failed("cut"))?;
            file.sync_data().map_err(failed("sync"))?;
            return Ok((scan.end, scan.synced));
        }
        Err(error) => return Err(failed("write")(error)),
    }
    let clean = scan.end + mark.len();
    let dirty_end = scan.end + scan.dirty;
    if dirty_end > clean {
        zero(file, clean, dirty_end).map_err(failed("clear the tail of"))?;
        file.sync_data().map_err(failed("sync"))?;
    }
    Ok((clean, scan.end))
}

/// An empty group, which tells the known-synced position.
pub(crate) fn mark(
    seed: Seed,
    position: Position,
    synced: Position,
    epoch: u64,
) -> [u8; SECTOR_BYTES] {
    let header = GroupHeader {
        position,
        synced,
        epoch,
        length: 0,
        count: 0,
        body: seed.checksum(&[]),
    };
    let mut sector = [0; SECTOR_BYTES];
    sector[..GROUP_HEADER_BYTES].copy_from_slice(&header.encode(seed));
    sector
}

/// Writes zeros from `start` to `end`, in steps of a bounded size.
fn zero(file: &dyn File, start: usize, end: usize) -> std::io::Result<()> {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    let mut start = start;
    while start < end {
        let step = ZEROS.len().min(end - start);
        file.write_all_at(ZEROS.get(..step).unwrap_or(&ZEROS), start as u64)?;
        start += step;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::disk::fs::FileSystem;
    use crate::disk::mem::{Fault as DiskFault, Loss, MemFileSystem, Operation};

    #[test]
    fn the_end_of_data_is_found_at_any_byte() {
        for len in [0, 1, 511, 512, 513, 2000] {
            assert_eq!(data_end(&vec![0; len]), 0, "{len} zeros");
            for end in 1..=len {
                let mut bytes = vec![0; len];
                bytes[end - 1] = 1;
                assert_eq!(data_end(&bytes), end, "of {len}");
            }
        }
    }

    /// A short write left the header of a mark and not the rest of its sector, then a sync failed:
    /// reads find the header in the page cache, but it is not on the disk.
    #[test]
    fn a_mark_that_is_not_written_whole_is_written_again() {
        let fs = MemFileSystem::new();
        let path = Path::new("segment");
        let file = fs.create(path).expect("made");
        fs.sync_dir(Path::new("")).expect("synced");
        let header = SegmentHeader {
            number: 1,
            salt: 7,
            epoch: 1,
            previous_end: None,
        };
        file.write_all_at(&header.encode(), 0).expect("written");
        file.sync_data().expect("synced");
        let at = Position {
            segment: 1,
            offset: DATA_START,
        };
        let short = &mark(Seed::of(header.salt), at, at, 1)[..SECTOR_BYTES / 2];
        file.write_all_at(short, u64::from(DATA_START))
            .expect("written");
        fs.fail(Operation::Sync, 0, DiskFault::Io);
        file.sync_data().expect_err("it fails");
        let bytes = fs.content(path).expect("there");
        let found = scan(&bytes, &header, Fate::Last);
        assert_eq!(found.end, DATA_START as usize + SECTOR_BYTES);
        repair(&*file, "segment", &bytes, &header, &found).expect("repaired");
        fs.crash(Loss::Everything);
        let bytes = fs.content(path).expect("there");
        let found = scan(&bytes, &header, Fate::Last);
        assert_eq!(found.damaged, []);
        assert_eq!(found.end, DATA_START as usize + 2 * SECTOR_BYTES);
    }

    #[test]
    fn walking_goes_on_behind_a_bad_record_only_where_its_length_leads_to_a_good_one() {
        let seed = Seed::of(1);
        let mut bytes = vec![0; DATA_START as usize + GROUP_HEADER_BYTES];
        let first = bytes.len();
        for number in 0..3 {
            let record = Record {
                kind: 0,
                number,
                key: b"",
                payload: b"data",
            };
            record.encode(seed, &mut bytes);
        }
        let length = bytes.len() - first;
        let group = GroupHeader {
            position: Position {
                segment: 1,
                offset: DATA_START,
            },
            synced: Position::default(),
            epoch: 1,
            length: length as u32,
            count: 3,
            body: 0,
        };
        // The byte that is bad, the records that are seen, the bytes given up.
        for (bad_byte, visited, lost) in [
            (first + 24 + 22, &[0, 2][..], 24),
            (first + 24 + 4, &[0], 48),
            (first + 48 + 22, &[0, 1], 24),
            (first + 7, &[], 72),
        ] {
            let mut bytes = bytes.clone();
            bytes[bad_byte] ^= 0x40;
            let (mut seen, mut given_up) = (Vec::new(), 0);
            let mut visit = |_: Location, record: &Record<'_>| {
                seen.push(record.number);
                Ok(())
            };
            let mut bad = |_, bytes, _| given_up += bytes;
            walk(&bytes, seed, &group, &mut visit, &mut bad).expect("walked");
            assert_eq!((&seen[..], given_up), (visited, lost), "byte {bad_byte}");
        }
    }
}
