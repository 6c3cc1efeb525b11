//! Opening a log's directory: which segments there are, what each of them holds, and making one.
//!
//! Owns nothing; [`open_segments`] runs before the log has an owner. [`super::recovery`] judges.
//!
//! # Passing over a sealed segment
//!
//! The headers of all segments are read. What a sealed segment holds is read too, unless the
//! [`Visitor`] knows it. That is safe because recovery decides nothing from it:
//!
//! * All of it was synced before its successor had a name, in every write mode, so nothing in it is
//!   torn, is cut, or has to be rewritten; its end is in the successor's header.
//! * The known-synced position and the epoch to go on with are those of the last segment, which is
//!   always read; what seals a segment says in its own header that all before it is synced.
//! * The salt that its records are checked with is in its header.
//!
//! What remains is to find damage, and that is put off to the reading of a record: its checksum is
//! compared then (A5). A file that is shorter than its end is read, and so reported.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::error::LogError;
use super::filler::FILL_NAME;
use super::fs::{File, FileSystem, read_all, read_full_at};
use super::log::segment_salt;
use super::record::{Location, Record, Seed};
use super::recovery::{Cut, Damage, Fate, Recovery, read_header, repair, scan, walk};
use super::segment::{
    DATA_START, SECTOR_BYTES, SealedSegment, Segment, SegmentHeader, file_name, parse_file_name,
};

/// The name of a segment that is being made. What ends in `.tmp` goes at the next opening.
const NEW_NAME: &str = "segment.tmp";

/// Takes in what a log holds, in its order, while it is opened.
pub trait Visitor {
    /// Asked for each sealed segment, when its turn comes: true if what it holds was taken in
    /// without reading it. An error ends the opening.
    fn known(&mut self, segment: &SealedSegment) -> Result<bool, LogError>;

    /// The next intact record. An error ends the opening.
    fn record(&mut self, location: Location, record: &Record<'_>) -> Result<(), LogError>;
}

/// Knows no segment.
pub(crate) struct VisitAll<'a>(
    pub(crate) &'a mut dyn FnMut(Location, &Record<'_>) -> Result<(), LogError>,
);

impl Visitor for VisitAll<'_> {
    fn known(&mut self, _segment: &SealedSegment) -> Result<bool, LogError> {
        Ok(false)
    }

    fn record(&mut self, location: Location, record: &Record<'_>) -> Result<(), LogError> {
        (self.0)(location, record)
    }
}

/// What [`open_segments`] found and made.
pub(crate) struct Opened {
    pub(crate) segments: BTreeMap<u32, Arc<Segment>>,
    /// The header of each segment file; `None` where it is damaged.
    pub(crate) headers: BTreeMap<u32, Option<SegmentHeader>>,
    /// The last one.
    pub(crate) current: Arc<Segment>,
    pub(crate) tail: Tail,
    pub(crate) recovery: Recovery,
}

/// Where the last segment ends.
#[derive(Clone, Copy)]
pub(crate) struct Tail {
    /// Where groups are appended; all before it is synced.
    pub(crate) end: u32,
    /// The known-synced offset that the disk tells; less than `end` on a full disk.
    pub(crate) announced: u32,
    /// The epoch to go on with.
    pub(crate) epoch: u64,
}

/// A segment file with its header, if that is intact.
struct Found {
    number: u32,
    path: String,
    file: Arc<dyn File>,
    header: Option<SegmentHeader>,
    /// Where the other copy of the header is, if that one is bad.
    bad_copy: Option<usize>,
}

impl Found {
    /// Makes an error of the operating system one that names this file.
    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> LogError {
        let file = self.path.clone();
        move |source| LogError::Io {
            action,
            file,
            source,
        }
    }
}

/// Reads all segments, repairs the last, and makes one where none can be appended to.
pub(crate) fn open_segments(
    fs: &dyn FileSystem,
    dir: &Path,
    salt: u64,
    visitor: &mut dyn Visitor,
) -> Result<Opened, LogError> {
    let numbers = clean(fs, dir).map_err(|source| LogError::Io {
        action: "open the log in",
        file: dir.display().to_string(),
        source,
    })?;
    let mut recovery = Recovery::default();
    let found = find(fs, dir, &numbers, &mut recovery)?;
    let mut segments = BTreeMap::new();
    let mut headers: BTreeMap<u32, Option<SegmentHeader>> = found
        .iter()
        .map(|segment| (segment.number, segment.header))
        .collect();
    let mut last = None;
    for (at, segment) in found.iter().enumerate() {
        let fate = match found.get(at + 1) {
            None => Fate::Last,
            Some(next) => Fate::Sealed(next.header.and_then(|next| next.end_of(segment.number))),
        };
        let tail = match is_known(segment, fate, visitor)? {
            true => None,
            false => read_segment(segment, fate, &mut recovery, visitor)?,
        };
        if let Some(header) = segment.header {
            let open = Arc::new(Segment {
                number: segment.number,
                path: segment.path.clone(),
                seed: Seed::of(header.salt),
                file: Arc::clone(&segment.file),
            });
            last = tail.map(|tail| (Arc::clone(&open), tail));
            segments.insert(segment.number, open);
        } else {
            last = None;
        }
    }
    let (current, tail) = match last {
        Some(last) => last,
        None => {
            // There is none yet, or the last one's header is damaged.
            let number = numbers.last().map_or(1, |last| last + 1);
            let header = SegmentHeader {
                number,
                salt: segment_salt(salt, number),
                epoch: 1,
                previous_end: None,
            };
            let made = Arc::new(make_segment(fs, dir, &header, None)?.0);
            segments.insert(number, Arc::clone(&made));
            headers.insert(number, Some(header));
            let tail = Tail {
                end: DATA_START,
                announced: DATA_START,
                epoch: header.epoch,
            };
            (made, tail)
        }
    };
    Ok(Opened {
        segments,
        headers,
        current,
        tail,
        recovery,
    })
}

/// Removes unfinished files and lists the numbers of the segments. The names that stay are durable.
fn clean(fs: &dyn FileSystem, dir: &Path) -> io::Result<Vec<u32>> {
    fs.create_dir_all(dir)?;
    let names = fs.list(dir)?;
    for name in names.iter().filter(|name| name.ends_with(".tmp")) {
        fs.remove(&dir.join(name))?;
    }
    fs.sync_dir(dir)?;
    let mut numbers: Vec<u32> = names
        .iter()
        .filter_map(|name| parse_file_name(name))
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Opens the segments and reads their headers, leaves out and removes those that were removed
/// before, notes what is missing or damaged, and repairs a bad copy of a header.
fn find(
    fs: &dyn FileSystem,
    dir: &Path,
    numbers: &[u32],
    recovery: &mut Recovery,
) -> Result<Vec<Found>, LogError> {
    let looked: Result<Vec<_>, _> = numbers
        .iter()
        .map(|&number| look(fs, dir, number))
        .collect();
    let (found, missing) = settle(fs, dir, looked?)?;
    for segment in &found {
        let failed = |action| segment.failed(action);
        match (segment.header, segment.bad_copy) {
            (Some(_), None) => {}
            (Some(header), Some(bad)) => {
                let both = header.encode();
                let copy = both.get(..SECTOR_BYTES).unwrap_or(&both);
                let written = segment.file.write_all_at(copy, bad as u64);
                written.map_err(failed("repair"))?;
                segment.file.sync_data().map_err(failed("sync"))?;
                recovery.repaired.push(Damage {
                    file: segment.path.clone(),
                    offset: bad as u64,
                    bytes: SECTOR_BYTES as u64,
                    what: "one copy of the segment's header is bad".to_owned(),
                });
            }
            (None, _) => recovery.damaged.push(Damage {
                file: segment.path.clone(),
                offset: 0,
                bytes: segment.file.len().map_err(failed("look at"))?,
                what: "neither copy of the segment's header is intact".to_owned(),
            }),
        }
    }
    recovery.damaged.extend(missing);
    recovery.segments = u32::try_from(found.len()).unwrap_or(u32::MAX);
    Ok(found)
}

/// Opens a segment and reads its header.
fn look(fs: &dyn FileSystem, dir: &Path, number: u32) -> Result<Found, LogError> {
    let path = dir.join(file_name(number));
    let shown = path.display().to_string();
    let file = fs.open(&path).map_err(|source| LogError::Io {
        action: "open",
        file: shown.clone(),
        source,
    })?;
    let mut found = Found {
        number,
        path: shown,
        file,
        header: None,
        bad_copy: None,
    };
    let mut bytes = [0; DATA_START as usize];
    let read = read_full_at(&*found.file, &mut bytes, 0).map_err(found.failed("read"))?;
    let bytes = bytes.get(..read).unwrap_or_default();
    if let Some((header, bad_copy)) = read_header(&found.path, number, bytes)? {
        found.header = Some(header);
        found.bad_copy = bad_copy;
    }
    Ok(found)
}

/// Splits what was found into the segments of the log, in order, and those that were removed from
/// it, and removes the latter for good; tells which ones are missing.
fn settle(
    fs: &dyn FileSystem,
    dir: &Path,
    looked: Vec<Found>,
) -> Result<(Vec<Found>, Vec<Damage>), LogError> {
    let mut kept: Vec<Found> = Vec::with_capacity(looked.len());
    let (mut missing, mut removed) = (Vec::new(), Vec::new());
    let mut absent = |number: u32, what: String| {
        let file = dir.join(file_name(number)).display().to_string();
        let (offset, bytes) = (0, 0);
        missing.push(Damage {
            file,
            offset,
            bytes,
            what,
        });
    };
    // From the last one on, as each names the one before.
    for segment in looked.into_iter().rev() {
        let number = segment.number;
        match kept.last().map(|next| (next.number, next.header)) {
            None => {}
            Some((_, Some(next))) if next.before() < number => {
                removed.push(segment);
                continue;
            }
            Some((_, Some(next))) if next.before() == number => {}
            Some((_, Some(next))) => absent(next.before(), missing_since(number, next.before())),
            Some((next, None)) if number + 1 == next => {}
            Some((next, None)) => {
                let what = "the file is missing, unless it was removed: its successor's header \
                            would tell";
                absent(next - 1, what.to_owned());
            }
        }
        kept.push(segment);
    }
    if let Some(first) = kept.last().and_then(|first| first.header)
        && first.before() > 0
    {
        absent(first.before(), missing_since(0, first.before()));
    }
    kept.reverse();
    missing.reverse();
    remove_for_good(fs, dir, &kept, &removed)?;
    Ok((kept, missing))
}

/// What to say of a missing segment when the next one that is there, before it, is `there`.
fn missing_since(there: u32, missing: u32) -> String {
    match missing - there - 1 {
        0 => "the file is missing".to_owned(),
        more => format!("the file is missing, and up to {more} before it"),
    }
}

/// Removes the files of segments that were removed from the log. What says so may be in the page
/// cache only, so it is made durable first.
fn remove_for_good(
    fs: &dyn FileSystem,
    dir: &Path,
    kept: &[Found],
    removed: &[Found],
) -> Result<(), LogError> {
    for gone in removed {
        let next = kept.iter().find(|segment| segment.number > gone.number);
        if let Some((next, header)) = next.and_then(|next| Some((next, next.header?))) {
            write_header(&*next.file, &next.path, &header)?;
        }
        fs.remove(&dir.join(file_name(gone.number)))
            .map_err(gone.failed("remove"))?;
    }
    if removed.is_empty() {
        return Ok(());
    }
    fs.sync_dir(dir).map_err(|source| LogError::Io {
        action: "sync",
        file: dir.display().to_string(),
        source,
    })
}

/// Writes both copies of a header, one after the other: there is an intact one at any time. When
/// the first one is durable, so is what the header says, and the second one may be left for the
/// next opening to repair. [`LogError::Refused`]: the header says what it said before.
pub(crate) fn write_header(
    file: &dyn File,
    path: &str,
    header: &SegmentHeader,
) -> Result<(), LogError> {
    let failed = |action| {
        move |source| LogError::Io {
            action,
            file: path.to_owned(),
            source,
        }
    };
    for (at, copy) in header.encode().chunks(SECTOR_BYTES).enumerate() {
        match file.write_all_at(copy, (at * SECTOR_BYTES) as u64) {
            Ok(()) => {}
            Err(source) => match LogError::from_io("write the header of", path, source) {
                LogError::Refused(_) if at > 0 => return Ok(()),
                // Part of a sector may be there: the other copy rules until this one is written.
                error => return Err(error),
            },
        }
        file.sync_data().map_err(failed("sync"))?;
    }
    Ok(())
}

/// Whether a segment need not be read, because the visitor knows what it holds.
fn is_known(segment: &Found, fate: Fate, visitor: &mut dyn Visitor) -> Result<bool, LogError> {
    let (Some(header), Fate::Sealed(Some(end))) = (segment.header, fate) else {
        return Ok(false);
    };
    let length = segment.file.len().map_err(segment.failed("look at"))?;
    let sealed = header.sealed(end);
    Ok(length >= u64::from(end) && visitor.known(&sealed)?)
}

/// Visits what is intact in a segment and notes what is not. The last one is repaired, and its tail
/// returned.
fn read_segment(
    segment: &Found,
    fate: Fate,
    recovery: &mut Recovery,
    visitor: &mut dyn Visitor,
) -> Result<Option<Tail>, LogError> {
    let Some(header) = &segment.header else {
        return Ok(None);
    };
    let bytes = read_all(&*segment.file).map_err(|source| LogError::Io {
        action: "read",
        file: segment.path.clone(),
        source,
    })?;
    let scan = scan(&bytes, header, fate);
    let seed = Seed::of(header.salt);
    let mut damaged = scan.damaged.clone();
    let mut records = 0;
    let mut counted = |location: Location, record: &Record<'_>| {
        records += 1;
        visitor.record(location, record)
    };
    for group in &scan.groups {
        let mut bad = |offset, bytes, what| damaged.push((offset, bytes, what));
        walk(&bytes, seed, group, &mut counted, &mut bad)?;
    }
    recovery.records += records;
    damaged.sort();
    let damaged = damaged.into_iter().map(|(offset, bytes, what)| Damage {
        file: segment.path.clone(),
        offset: offset as u64,
        bytes: bytes as u64,
        what,
    });
    recovery.damaged.extend(damaged);
    match fate {
        Fate::Sealed(_) => Ok(None),
        Fate::Last => {
            if scan.dirty > 0 {
                recovery.cut = Some(Cut {
                    file: segment.path.clone(),
                    offset: scan.end as u64,
                    bytes: scan.dirty as u64,
                });
            }
            let (end, announced) = repair(&*segment.file, &segment.path, &bytes, header, &scan)?;
            let too_long = |_| LogError::Damaged {
                file: segment.path.clone(),
                offset: u64::from(u32::MAX),
                what: "the segment is longer than a segment can be".to_owned(),
            };
            Ok(Some(Tail {
                end: u32::try_from(end).map_err(too_long)?,
                announced: u32::try_from(announced).map_err(too_long)?,
                epoch: scan.epoch + 1,
            }))
        }
    }
}

/// Makes a segment, in a file filled ahead if there is one. The header is synced before the file
/// gets its name, and the name before this returns: a segment's header is never torn.
/// Also tells the length of its file. [`LogError::Refused`] leaves nothing behind.
pub(crate) fn make_segment(
    fs: &dyn FileSystem,
    dir: &Path,
    header: &SegmentHeader,
    filled: Option<Arc<dyn File>>,
) -> Result<(Segment, u64), LogError> {
    let temporary = dir.join(if filled.is_some() {
        FILL_NAME
    } else {
        NEW_NAME
    });
    let path = dir.join(file_name(header.number));
    let prepare = || -> io::Result<(Arc<dyn File>, u64)> {
        let file = match filled {
            Some(file) => file,
            None => {
                if fs.exists(&temporary)? {
                    fs.remove(&temporary)?;
                }
                fs.create(&temporary)?
            }
        };
        file.write_all_at(&header.encode(), 0)?;
        file.sync_all()?;
        let length = file.len()?;
        // A name that is seen and not durable would be a segment after some crashes, and end the
        // one before it where that did not end.
        fs.rename_durably(&temporary, &path)?;
        Ok((file, length))
    };
    let shown = path.display().to_string();
    let (file, length) = prepare().map_err(|source| {
        let error = LogError::from_io("make", &shown, source);
        // If it cannot be removed now, the next attempt or opening does. After a failed sync the
        // name may be seen for as long as the machine runs and never be on the disk: the next
        // opening must not trust it.
        let is_named = !error.is_refused();
        let removed = fs.remove(if is_named { &path } else { &temporary });
        log::debug!("{error} (remains removed: {removed:?})");
        error
    })?;
    let segment = Segment {
        number: header.number,
        path: shown,
        seed: Seed::of(header.salt),
        file,
    };
    Ok((segment, length))
}
