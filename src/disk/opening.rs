//! Opening a log's directory: which segments there are, what each of them holds, and making one.
//!
//! Owns nothing; [`open_segments`] runs before the log has an owner. The verdict on a segment is
//! [`super::recovery`]'s.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::error::{LogError, is_full};
use super::filler::FILL_NAME;
use super::fs::{File, FileSystem, read_all, read_full_at};
use super::log::segment_salt;
use super::record::{Location, Record, Seed};
use super::recovery::{Cut, Damage, Fate, Recovery, read_header, repair, scan, walk};
use super::segment::{
    DATA_START, SECTOR_BYTES, Segment, SegmentHeader, file_name, parse_file_name,
};

/// The name of a segment that is being made. What ends in `.tmp` goes at the next opening.
const NEW_NAME: &str = "segment.tmp";

type Visit<'a> = &'a mut dyn FnMut(Location, &Record<'_>) -> Result<(), LogError>;

/// What [`open_segments`] found and made.
pub(crate) struct Opened {
    pub(crate) segments: BTreeMap<u32, Arc<Segment>>,
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
}

/// Reads all segments, repairs the last, and makes one where none can be appended to.
pub(crate) fn open_segments(
    fs: &dyn FileSystem,
    dir: &Path,
    salt: u64,
    visit: Visit<'_>,
) -> Result<Opened, LogError> {
    let numbers = clean(fs, dir).map_err(|source| LogError::Io {
        action: "open the log in",
        file: dir.display().to_string(),
        source,
    })?;
    let mut recovery = Recovery::default();
    let found = find(fs, dir, &numbers, &mut recovery)?;
    let mut segments = BTreeMap::new();
    let mut last = None;
    for (at, segment) in found.iter().enumerate() {
        let fate = match found.get(at + 1) {
            None => Fate::Last,
            Some(next) => Fate::Sealed(
                next.header
                    .and_then(|header| header.previous_end)
                    .filter(|end| end.segment == segment.number)
                    .map(|end| end.offset),
            ),
        };
        let tail = read_segment(segment, fate, &mut recovery, visit)?;
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
            let made = Arc::new(make_segment(fs, dir, &header, None)?);
            segments.insert(number, Arc::clone(&made));
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
        current,
        tail,
        recovery,
    })
}

/// Removes unfinished files and lists the numbers of the segments. The names that stay are durable.
fn clean(fs: &dyn FileSystem, dir: &Path) -> io::Result<Vec<u32>> {
    fs.create_dir_all(dir)?;
    let names = fs.list(dir)?;
    for name in names
        .iter()
        .filter(|name| *name == FILL_NAME || *name == NEW_NAME)
    {
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

/// Opens the segments and reads their headers; missing segments and bad headers are damage; one bad
/// copy of a header is repaired.
fn find(
    fs: &dyn FileSystem,
    dir: &Path,
    numbers: &[u32],
    recovery: &mut Recovery,
) -> Result<Vec<Found>, LogError> {
    let mut found = Vec::with_capacity(numbers.len());
    let mut expected = 1;
    for &number in numbers {
        if number > expected {
            recovery.damaged.push(Damage {
                file: dir.join(file_name(expected)).display().to_string(),
                offset: 0,
                bytes: 0,
                what: match number - expected {
                    1 => "the file is missing".to_owned(),
                    missing => format!("the file and {} behind it are missing", missing - 1),
                },
            });
        }
        expected = number + 1;
        let path = dir.join(file_name(number));
        let shown = path.display().to_string();
        let failed = |action| {
            let file = shown.clone();
            move |source| LogError::Io {
                action,
                file,
                source,
            }
        };
        let file = fs.open(&path).map_err(failed("open"))?;
        let mut bytes = [0; DATA_START as usize];
        let read = read_full_at(&*file, &mut bytes, 0).map_err(failed("read"))?;
        let bytes = bytes.get(..read).unwrap_or_default();
        let header = read_header(&shown, number, bytes)?;
        match header {
            Some((_, None)) => {}
            Some((header, Some(bad))) => {
                let both = header.encode();
                let copy = both.get(..SECTOR_BYTES).unwrap_or(&both);
                file.write_all_at(copy, bad as u64)
                    .map_err(failed("repair"))?;
                file.sync_data().map_err(failed("sync"))?;
                recovery.repaired.push(Damage {
                    file: shown.clone(),
                    offset: bad as u64,
                    bytes: SECTOR_BYTES as u64,
                    what: "one copy of the segment's header is bad".to_owned(),
                });
            }
            None => recovery.damaged.push(Damage {
                file: shown.clone(),
                offset: 0,
                bytes: file.len().map_err(failed("look at"))?,
                what: "neither copy of the segment's header is intact".to_owned(),
            }),
        }
        found.push(Found {
            number,
            path: shown,
            file,
            header: header.map(|(header, _)| header),
        });
    }
    recovery.segments = u32::try_from(found.len()).unwrap_or(u32::MAX);
    Ok(found)
}

/// Visits what is intact in a segment and notes what is not. The last one is repaired, and its tail
/// returned.
fn read_segment(
    segment: &Found,
    fate: Fate,
    recovery: &mut Recovery,
    visit: Visit<'_>,
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
        visit(location, record)
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
/// [`LogError::Full`] leaves nothing behind.
pub(crate) fn make_segment(
    fs: &dyn FileSystem,
    dir: &Path,
    header: &SegmentHeader,
    filled: Option<Arc<dyn File>>,
) -> Result<Segment, LogError> {
    let temporary = dir.join(if filled.is_some() {
        FILL_NAME
    } else {
        NEW_NAME
    });
    let path = dir.join(file_name(header.number));
    let prepare = || -> io::Result<Arc<dyn File>> {
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
        fs.rename(&temporary, &path)?;
        Ok(file)
    };
    let shown = path.display().to_string();
    let file = prepare().map_err(|source| {
        if is_full(&source) {
            // If it cannot be removed now, the next attempt or opening does.
            let removed = fs.remove(&temporary);
            log::debug!("no space to make {shown} (remains removed: {removed:?})");
        }
        LogError::from_io("make", &shown, source)
    })?;
    fs.sync_dir(dir).map_err(|source| LogError::Io {
        action: "sync",
        file: dir.display().to_string(),
        source,
    })?;
    Ok(Segment {
        number: header.number,
        path: shown,
        seed: Seed::of(header.salt),
        file,
    })
}
