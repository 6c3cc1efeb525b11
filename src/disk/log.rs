//! The log: ordered segments to which groups of records are appended.
//!
//! One thread owns a [`Log`]; [`LogReader`]s are cloned to any. The owner stages records (memory
//! only), writes them as one group (one `write(2)`), and syncs when its write mode asks for it.
//!
//! Invariants: a group is in one segment, and so is a record. `announced <= synced <= end`. Only
//! the last segment has anything unsynced: it is synced before its successor has a name, and the
//! successor's header tells its end.
//! So beginning a segment costs a sync in every write mode, of 64 MiB at most.
//!
//! A segment takes groups until the next record would pass `segment_bytes`; the group that is being
//! staged then may pass it, and a record that is longer begins a segment of its own. So a group is
//! written as a whole, and refused as a whole when there is no space.
//!
//! On failure: a failed write or sync poisons the log, because what is on disk is not known any
//! more ([`LogError::Io`] once, then [`LogError::Poisoned`]). No space, descriptor or memory is
//! [`LogError::Refused`]: the group's bytes are cut off again, durably, so that it cannot come back
//! after a crash. If they cannot be cut off now, nothing is written until they are.
//!
//! Space: [`Log::write`] leaves `reserve_bytes` of the disk free, [`Log::write_reserved`] uses
//! them. Looking at the free space costs one system call for a group that is not within space
//! filled ahead, and needs no file to give up and restore; a neighbour on the same disk can take
//! the reserve, and then releases are refused too, and tried again.

pub use super::error::LogError;
pub use super::filler::Filler;
pub use super::opening::Visitor;
pub use super::reader::LogReader;
pub use super::record::{Location, OwnedRecord, Record};
pub use super::recovery::{Cut, Damage, Recovery};
pub use super::segment::{Position, SealedSegment};
pub use removal::{LogRemover, SegmentInfo};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;

use super::filler::Slot;
use super::fs::FileSystem;
use super::opening::{Opened, VisitAll, make_segment, open_segments};
use super::reader::Segments;
use super::record::Seed;
use super::recovery::mark;
use super::segment::{
    DATA_START, GROUP_HEADER_BYTES, GroupHeader, Segment, SegmentHeader, align_up,
};
use crate::error::Shortage;

/// Bytes of a staged group at most: with a segment's size it stays within a 32-bit offset. Owners
/// stop far earlier.
const GROUP_BYTES_MAX: usize = 1 << 30;

/// The capacity that the buffer of the group keeps, so that one big group does not stay in memory.
const BUFFER_BYTES_KEPT: usize = 8 << 20;

/// The settings of a log.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// The size at which a segment is full: 4 KiB to 1 GiB, 64 MiB by default. Half of it means
    /// twice the open files and a pause for making one twice as often.
    pub segment_bytes: u64,
    /// Free space that [`Log::write`] leaves on the disk, 32 MiB by default: half a segment, in
    /// which a million releases find room. 0 leaves none.
    pub reserve_bytes: u64,
    /// Makes this opening's segments differ from all others; random by default, given in tests.
    pub salt: u64,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        LogOptions {
            segment_bytes: 64 << 20,
            reserve_bytes: 32 << 20,
            salt: fastrand::u64(..),
        }
    }
}

/// The group that is being put together.
struct Staged {
    /// Room for the header, then the records.
    buffer: Vec<u8>,
    count: u32,
    /// Where it will be written.
    position: Position,
    seed: Seed,
    /// The salt of the segment to be made for it, if one is.
    roll: Option<u64>,
}

/// A log; see the header of this file.
pub struct Log {
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    options: LogOptions,
    segments: Segments,
    /// The header of each segment file, as it is on the disk; `None` where it is damaged.
    headers: BTreeMap<u32, Option<SegmentHeader>>,
    /// The last segment, to which groups are appended.
    current: Arc<Segment>,
    /// Length of its file: writing below it needs no space.
    allocated: u64,
    /// Where the next group begins.
    end: Position,
    /// All before it is synced; at most `end`.
    synced: Position,
    /// The end of the last group with records.
    records_end: Position,
    /// The known-synced position that the disk tells for certain; at most `synced`.
    announced: Position,
    epoch: u64,
    staged: Staged,
    /// A write or sync failed.
    poisoned: bool,
    /// Bytes of a refused group may be behind `end`, to be cut off before the next write.
    is_uncut: bool,
    slot: Arc<Slot>,
}

impl Log {
    /// Opens the log in `dir`, or makes one, and hands every intact record to `visit` in order. On
    /// return all that was visited is synced, and the torn tail, if there was one, is gone for
    /// good. Needs the directory for itself ([`super::lock`]).
    ///
    /// Damage is in the [`Recovery`], not an error; whether to go on with it is the owner's
    /// decision.
    pub fn open(
        fs: Arc<dyn FileSystem>,
        dir: &Path,
        options: LogOptions,
        visit: &mut dyn FnMut(Location, &Record<'_>) -> Result<(), LogError>,
    ) -> Result<(Log, Recovery), LogError> {
        Log::open_known(fs, dir, options, &mut VisitAll(visit))
    }

    /// As [`Log::open`], but a sealed segment that the visitor knows is not read: damage in it is
    /// found when its records are.
    pub fn open_known(
        fs: Arc<dyn FileSystem>,
        dir: &Path,
        options: LogOptions,
        visitor: &mut dyn Visitor,
    ) -> Result<(Log, Recovery), LogError> {
        assert!(
            (4 << 10..=1 << 30).contains(&options.segment_bytes),
            "a segment has 4 KiB to 1 GiB"
        );
        let opened = open_segments(&*fs, dir, options.salt, visitor)?;
        let Opened {
            segments,
            headers,
            current,
            tail,
            recovery,
        } = opened;
        let position = |offset| Position {
            segment: current.number,
            offset,
        };
        let (end, announced) = (position(tail.end), position(tail.announced));
        let allocated = current
            .file
            .len()
            .map_err(|source| LogError::from_io("look at", &current.path, source))?;
        let log = Log {
            staged: Staged {
                buffer: Vec::new(),
                count: 0,
                position: end,
                seed: current.seed,
                roll: None,
            },
            fs,
            dir: dir.to_owned(),
            options,
            segments: Arc::new(RwLock::new(segments)),
            headers,
            current,
            allocated,
            end,
            synced: end,
            records_end: end,
            announced,
            epoch: tail.epoch,
            poisoned: false,
            is_uncut: false,
            slot: Arc::new(Slot::default()),
        };
        Ok((log, recovery))
    }

    /// Adds a record to the group that the next write carries, in memory only, and tells where it
    /// will be. Fails only when the log is poisoned.
    pub fn stage(&mut self, record: &Record<'_>) -> Result<Location, LogError> {
        self.check()?;
        let length = record.encoded_len();
        if self.staged.count == 0 {
            self.plan(length);
        }
        let staged = &mut self.staged;
        assert!(
            staged.buffer.len() + length <= GROUP_BYTES_MAX,
            "the group is too big"
        );
        let offset = staged.position.offset as usize + staged.buffer.len();
        record.encode(staged.seed, &mut staged.buffer);
        staged.count += 1;
        Ok(Location {
            segment: staged.position.segment,
            offset: u32::try_from(offset).expect("segments and groups are limited to 1 GiB each"),
            length: u32::try_from(length).expect("a record is shorter than a group"),
        })
    }

    /// Decides where the group goes whose first record has `length` bytes.
    fn plan(&mut self, length: usize) {
        let staged = &mut self.staged;
        staged.buffer.clear();
        staged.buffer.resize(GROUP_HEADER_BYTES, 0);
        let needed = (GROUP_HEADER_BYTES + length) as u64;
        let full = u64::from(self.end.offset) + needed > self.options.segment_bytes;
        // One that grows with each write, as the first one does, is given up for one that was
        // filled: a sync of it changes the file's metadata, and takes twice as long.
        let grows = u64::from(self.end.offset) + needed > self.allocated;
        let is_over = full || (grows && self.slot.is_ready());
        if is_over && self.end.offset > DATA_START {
            let segment = self.end.segment + 1;
            let salt = segment_salt(self.options.salt, segment);
            staged.roll = Some(salt);
            staged.seed = Seed::of(salt);
            staged.position = Position {
                segment,
                offset: DATA_START,
            };
        } else {
            staged.roll = None;
            staged.seed = self.current.seed;
            staged.position = self.end;
        }
    }

    /// Bytes of the staged group; 0 when nothing is staged.
    pub fn staged_bytes(&self) -> usize {
        if self.staged.count == 0 {
            0
        } else {
            self.staged.buffer.len()
        }
    }

    /// Forgets the staged group.
    pub fn discard(&mut self) {
        self.staged.count = 0;
        self.staged.buffer.clear();
        self.staged.buffer.shrink_to(BUFFER_BYTES_KEPT);
    }

    /// Writes the staged group; it is then visible to readers, and durable after [`Log::sync`]. A
    /// group that does not fit the disk, or would use up the reserve, is forgotten:
    /// [`LogError::Refused`]. Nothing staged is no error.
    pub fn write(&mut self) -> Result<(), LogError> {
        self.write_staged(self.options.reserve_bytes)
    }

    /// As [`Log::write`], using the reserve: for a group of releases only, or what else makes room.
    pub fn write_reserved(&mut self) -> Result<(), LogError> {
        self.write_staged(0)
    }

    fn write_staged(&mut self, reserve: u64) -> Result<(), LogError> {
        self.check()?;
        if self.staged.count == 0 {
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut self.staged.buffer);
        let result = self
            .roll_as_planned(align_up(buffer.len()), reserve)
            .and_then(|()| self.append(&mut buffer, reserve));
        self.staged.buffer = buffer;
        self.discard();
        result
    }

    /// Completes the group in `buffer` and writes it where the log ends.
    fn append(&mut self, buffer: &mut Vec<u8>, reserve: u64) -> Result<(), LogError> {
        assert_eq!(
            self.staged.position, self.end,
            "a group is written where it was staged for"
        );
        let (space, records) = buffer.split_at_mut(GROUP_HEADER_BYTES);
        let header = GroupHeader {
            position: self.end,
            synced: self.synced,
            epoch: self.epoch,
            length: u32::try_from(records.len()).expect("a group is limited to 1 GiB"),
            count: self.staged.count,
            body: self.current.seed.checksum(records),
        };
        space.copy_from_slice(&header.encode(self.current.seed));
        buffer.resize(align_up(buffer.len()), 0);
        self.put(buffer, reserve)?;
        self.records_end = self.end;
        Ok(())
    }

    /// Writes whole sectors where the log ends.
    fn put(&mut self, bytes: &[u8], reserve: u64) -> Result<(), LogError> {
        if self.is_uncut {
            self.cut_refused()?;
        }
        let start = u64::from(self.end.offset);
        let length = bytes.len() as u64;
        if start + length > self.allocated {
            self.check_space(length, reserve)?;
        }
        match self.current.file.write_all_at(bytes, start) {
            Ok(()) => {
                let end = u32::try_from(start + length);
                self.end.offset = end.expect("segments and groups are limited to 1 GiB each");
                self.allocated = self.allocated.max(start + length);
                Ok(())
            }
            Err(source) => {
                let error = self.failed("write", source);
                if error.is_refused() {
                    self.cut_refused()?;
                }
                Err(error)
            }
        }
    }

    /// Cuts off what was written of a refused group, durably: it must not come back.
    fn cut_refused(&mut self) -> Result<(), LogError> {
        let end = u64::from(self.end.offset);
        let file = &self.current.file;
        self.is_uncut = true;
        match file.set_len(end).and_then(|()| file.sync_data()) {
            Ok(()) => {
                self.is_uncut = false;
                self.allocated = end;
                self.synced = self.end;
                Ok(())
            }
            Err(source) => Err(self.failed("cut", source)),
        }
    }

    /// Whether `length` more bytes leave the reserve alone.
    fn check_space(&self, length: u64, reserve: u64) -> Result<(), LogError> {
        if reserve == 0 {
            return Ok(());
        }
        match self.fs.free_space(&self.dir) {
            Ok(free) if free < reserve.saturating_add(length) => {
                Err(LogError::Refused(Shortage::Space))
            }
            // Unknown: the write itself will tell.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Begins the next segment, if the staged group is to be its first, of `length` bytes.
    fn roll_as_planned(&mut self, length: usize, reserve: u64) -> Result<(), LogError> {
        let Some(salt) = self.staged.roll else {
            return Ok(());
        };
        // The segment's successor says that all of it is synced.
        self.sync()?;
        self.check_in_place()?;
        let filled = self.slot.take();
        let taken = filled.is_some();
        if !taken {
            self.check_space(u64::from(DATA_START) + length as u64, reserve)?;
        }
        let header = SegmentHeader {
            number: self.staged.position.segment,
            salt,
            epoch: self.epoch,
            previous_end: Some(self.end),
        };
        let made = make_segment(&*self.fs, &self.dir, &header, filled);
        if taken {
            self.slot.want();
        }
        let (made, allocated) = made.inspect_err(|error| self.poisoned |= !error.is_refused())?;
        self.current = Arc::new(made);
        self.allocated = allocated;
        self.announced = self.end;
        self.end = self.staged.position;
        self.synced = self.end;
        let current = Arc::clone(&self.current);
        self.headers.insert(current.number, Some(header));
        self.segments.write().insert(current.number, current);
        Ok(())
    }

    /// Makes all that was written durable, with one `fdatasync`, in a file that still has its path.
    /// Any failure is final.
    pub fn sync(&mut self) -> Result<(), LogError> {
        self.check()?;
        if self.synced == self.end {
            return Ok(());
        }
        match self.current.file.sync_data() {
            Ok(()) => {
                self.synced = self.end;
                self.check_in_place()
            }
            // Never a refusal, see `disk::fs`.
            Err(source) => Err(self.failed("sync", source)),
        }
    }

    /// Syncs, and makes the known-synced position durable by an empty group, unless it is: when
    /// nothing was written for a while, and at a clean end. Does nothing while a group is staged.
    /// When it is refused, on a full disk for one, it leaves the empty group out.
    pub fn idle(&mut self) -> Result<(), LogError> {
        self.check()?;
        if self.staged.count > 0 {
            return Ok(());
        }
        self.sync()?;
        if self.announced >= self.records_end {
            return Ok(());
        }
        let told = self.synced;
        let sector = mark(self.current.seed, self.end, told, self.epoch);
        match self.put(&sector, 0) {
            Ok(()) => {
                self.sync()?;
                self.announced = told;
                Ok(())
            }
            Err(LogError::Refused(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Where the next group begins.
    pub fn end(&self) -> Position {
        self.end
    }

    /// All before this position is synced.
    pub fn synced(&self) -> Position {
        self.synced
    }

    /// A reader of all that is written, now and later.
    pub fn reader(&self) -> LogReader {
        LogReader::new(Arc::clone(&self.segments))
    }

    /// The work of the thread that fills segments ahead; there is one such thread at most.
    pub fn filler(&self) -> Filler {
        Filler {
            fs: Arc::clone(&self.fs),
            dir: self.dir.clone(),
            segment_bytes: self.options.segment_bytes,
            reserve_bytes: self.options.reserve_bytes,
            slot: Arc::clone(&self.slot),
        }
    }

    fn check(&self) -> Result<(), LogError> {
        if self.poisoned {
            Err(LogError::Poisoned)
        } else {
            Ok(())
        }
    }

    /// The error of a call on the last segment, which poisons the log unless it is a refusal.
    fn failed(&mut self, action: &'static str, source: std::io::Error) -> LogError {
        let error = LogError::from_io(action, self.current.path.clone(), source);
        self.poisoned |= !error.is_refused();
        error
    }
}

/// The salt of a segment: another one for each segment and each opening of the log.
pub(crate) fn segment_salt(salt: u64, number: u32) -> u64 {
    // The finalizer of splitmix64: neighbouring numbers give unrelated salts.
    let mut mixed = salt ^ u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

mod in_place;
mod removal;
#[cfg(test)]
mod tests;
