//! Compaction of the `log` engine: segments more than half released are rewritten and removed, and
//! those that stay get their hints ([`super::hints`]).
//!
//! One thread runs [`Compactor::run`]. It reads a segment and prepares [`Step`]s; the append thread
//! executes them between its groups, so writes wait for one step at most: [`STEP_BYTES`] written
//! and synced, or the three syncs of a removal. The segment to go is the one with the fewest live
//! bytes, as long as they are less than half of it.
//!
//! # What may be left behind
//!
//! The later record of a revision rules (`log_engine`). Moving a record makes it the latest, so:
//!
//! * A **store** is moved if it is the live one, and left behind otherwise. The append thread
//!   checks
//!   that it still is.
//! * A **release** is moved if its revision has no live record, and a dead copy of it is in
//!   *another* segment of the log: without the release, that copy would be live after the next
//!   opening. Dead copies are counted by revision (`location_index`), from the records themselves
//!   at opening, so a copy left by a crash between moving and removing counts too. If the revision
//!   is live, the live record is behind all its dead copies, and rules.
//! * A segment is removed only when it has no live record, after a sync of the log: what made its
//!   records needless is durable. It leaves the log by one durable write in another file
//!   (`disk::segment`); only then are its copies no longer counted, and its file removed. A file
//!   that comes back is not part of the log. So no release is dropped while a record that it
//!   rules out can come back.
//!
//! A crash at any point leaves the records once or twice, in the order that rules.
//!
//! # Hints
//!
//! After each segment that is compacted, and at least each [`POLL_INTERVAL`], the newest sealed
//! segment without a hint is read and given one: older ones are compacted earlier. The append
//! thread has no part in it. A sealed segment's groups are never changed, so its hint stays right
//! until both are removed, the hint first.
//!
//! # Space and failure
//!
//! Moving takes the live bytes of a segment, half of it at most, from the reserve if need be, but
//! never its last quarter, which releases need; the segment with the fewest comes first, one with
//! none needs no space. A segment with a damaged record stays as it is: what cannot be read cannot
//! be judged, and its records must go on to be reported; it gets no hint, and keeps one that it
//! has, which knows what the damaged bytes were. Hints leave the reserve alone. Memory: one
//! segment, and 32 bytes for each of its records, while there is something to do.
//!
//! Sources: Bitcask paper, section 2 (merge); Rosenblum and Ousterhout, "The Design and
//! Implementation of a Log-Structured File System", section 3 (cleaning, greedy choice).
//!
//! Known limits: greedy choice only, hot and cold records are not kept apart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use crate::disk::error::LogError;
use crate::disk::log::{LogRemover, SealedSegment};
use crate::disk::record::{Location, Record};
use crate::ids::Revision;
use crate::storage::hints::{self, Entry};
use crate::storage::log_engine::{KIND_RELEASE, KIND_STORE, Shared};

/// Bytes of records that one step moves: a millisecond or two with its sync. Twice as much makes a
/// client wait as long, half of it doubles the syncs.
pub const STEP_BYTES: usize = 256 << 10;

/// Records that one step moves, so that small ones do not make it long.
const STEP_RECORDS: usize = 2048;

/// What a group takes beside its records: its header, and padding to a whole sector.
const GROUP_OVERHEAD_BYTES: u64 = 560;

/// Records that are looked up or forgotten under one hold of the index's lock, which takes some 100
/// us.
const PART_RECORDS: usize = 512;

/// The pause between two such parts. Without it the thread is often interrupted by others while it
/// has the lock, which writes then wait for until it gets a processor again: 10 to 40 ms with all
/// processors busy. After a pause it has its part done before it is interrupted.
const PART_PAUSE: Duration = Duration::from_micros(50);

/// How often it looks for a segment to compact, and gives one its hint. A segment fills in half a
/// second at full speed; at that rate one pass finds several.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The pause between two steps, which leaves the disk to the writes.
const STEP_PAUSE: Duration = Duration::from_millis(1);

/// What the append thread is asked to do; see `Engine::compact`.
#[derive(Debug)]
pub enum Step {
    /// Append these again.
    Move(Vec<Moved>),
    /// Take this segment out of the log.
    Retire(u32),
}

/// A record to be appended again.
#[derive(Debug)]
pub struct Moved {
    /// Its revision.
    pub revision: Revision,
    /// Where it is, for a store; `None` for a release.
    pub from: Option<Location>,
    /// Its key, as on disk.
    pub key: Bytes,
    /// Its payload.
    pub payload: Bytes,
}

/// Hands a step to the append thread and waits until it is done: true if it was done, false if it
/// cannot be done now, for want of space or because the thread is busy or ends.
pub type Submit<'a> = &'a mut dyn FnMut(Step) -> bool;

/// The thread that compacts; see the header of this file. Made by `LogEngine::compactor`.
pub struct Compactor {
    shared: Arc<Shared>,
    remover: LogRemover,
    reserve_bytes: u64,
    /// Segments that would have given too little space when they were read, because too many of
    /// their releases are needed still, with their live bytes then. Looked at again when another
    /// one is gone, or these are an eighth of the segment fewer.
    postponed: BTreeMap<u32, u64>,
    /// Segments that cannot be compacted.
    damaged: BTreeSet<u32>,
    /// Segments that have a good hint, or cannot get one in this run.
    hinted: BTreeSet<u32>,
    /// The content of the segment that was read last: kept, with its memory, for the next one.
    buffer: Vec<u8>,
}

/// What became of a segment that was chosen.
enum Outcome {
    /// It is not part of the log any more.
    Gone,
    /// There is no space, or the append thread is busy.
    NotNow,
    /// It would give too little space.
    Useless,
    /// It stays for good.
    Damaged,
}

/// Bytes that records take when they are moved: at most, with the headers and the padding of the
/// groups.
fn cost(keep: &[&Entry]) -> u64 {
    if keep.is_empty() {
        return 0;
    }
    let lengths = keep.iter().map(|entry| u64::from(entry.location.length));
    let bytes: u64 = lengths.sum();
    let steps = 1 + bytes / STEP_BYTES as u64 + (keep.len() / STEP_RECORDS) as u64;
    bytes + steps * GROUP_OVERHEAD_BYTES
}

/// What is in a segment that is not damaged.
struct Content {
    entries: Vec<Entry>,
    /// What tells it from others; `None` if its successor does not tell where it ends.
    sealed: Option<SealedSegment>,
}

impl Compactor {
    pub(super) fn new(
        shared: Arc<Shared>,
        remover: LogRemover,
        reserve_bytes: u64,
        hinted: BTreeSet<u32>,
    ) -> Compactor {
        Compactor {
            shared,
            remover,
            reserve_bytes,
            postponed: BTreeMap::new(),
            damaged: BTreeSet::new(),
            hinted,
            buffer: Vec::new(),
        }
    }

    /// Compacts whatever should be and writes hints, until `stop`.
    pub fn run(&mut self, stop: &crate::threads::StopSignal, submit: Submit<'_>) {
        while !stop.wait_timeout(POLL_INTERVAL) {
            let mut paced = |step| !stop.wait_timeout(STEP_PAUSE) && submit(step);
            let mut go_on = true;
            while go_on && !stop.is_stopped() {
                go_on = self.compact_one(&mut paced).unwrap_or_else(|error| {
                    log::error!("compaction: {error}");
                    false
                });
                if let Err(error) = self.hint_one() {
                    log::warn!("{error}: a segment gets no hint, the next start reads it");
                }
            }
            self.buffer = Vec::new();
        }
    }

    /// Compacts one segment, if there is one to compact and space to do it; true if it is gone.
    pub fn compact_one(&mut self, submit: Submit<'_>) -> Result<bool, LogError> {
        while let Some((live, segment, length)) = self.choose()? {
            match self.compact(segment, length, submit)? {
                Outcome::Gone => {
                    self.postponed.clear();
                    return Ok(true);
                }
                Outcome::NotNow => return Ok(false),
                Outcome::Useless => _ = self.postponed.insert(segment, live),
                Outcome::Damaged => _ = self.damaged.insert(segment),
            }
        }
        Ok(false)
    }

    /// The segment with the fewest live bytes, if they are less than half of it: these, its number
    /// and the length of its groups.
    fn choose(&self) -> Result<Option<(u64, u32, u64)>, LogError> {
        let sealed = self.shared.records.sealed()?;
        let index = self.shared.index.read();
        let candidates = sealed.into_iter().filter_map(|(segment, length)| {
            let live = index.live_bytes(segment);
            let postponed = self.postponed.get(&segment);
            let fewer = postponed.is_none_or(|then| live + length / 8 <= *then);
            let open = fewer && !self.damaged.contains(&segment);
            (open && live * 2 < length).then_some((live, segment, length))
        });
        Ok(candidates.min())
    }

    /// Moves what a segment has to keep, and removes it.
    fn compact(
        &mut self,
        segment: u32,
        length: u64,
        submit: Submit<'_>,
    ) -> Result<Outcome, LogError> {
        let Some(Content { entries, .. }) = self.read(segment)? else {
            return Ok(Outcome::Damaged);
        };
        let keep = self.to_keep(&entries);
        let cost = cost(&keep);
        // Less would not end: what is moved must fill fewer segments than it empties.
        if cost * 2 > length {
            return Ok(Outcome::Useless);
        }
        let free = self.remover.free_space();
        if cost > 0 && cost > free.saturating_sub(self.reserve_bytes / 4) {
            return Ok(Outcome::NotNow);
        }
        if !self.relocate(segment, &keep, submit)? || !submit(Step::Retire(segment)) {
            return Ok(Outcome::NotNow);
        }
        let stores = entries.iter().filter(|entry| entry.is_store);
        let stores: Vec<Revision> = stores.map(|entry| entry.revision).collect();
        for part in stores.chunks(PART_RECORDS) {
            self.shared.index.write().forget_copies(part);
            pause_after(part.len());
        }
        log::info!("segment {segment} is compacted: {length} bytes, {cost} of them moved");
        self.hinted.remove(&segment);
        let (fs, dir) = self.remover.disk();
        hints::remove(fs, dir, segment);
        if let Err(error) = self.remover.remove(segment) {
            log::warn!("{error}; it goes at the next start");
        }
        Ok(Outcome::Gone)
    }

    /// Gives the newest sealed segment that lacks a hint one; false if none does, or without space.
    pub fn hint_one(&mut self) -> Result<bool, LogError> {
        let sealed = self.shared.records.sealed()?;
        let lacks =
            |segment: &u32| !self.hinted.contains(segment) && !self.damaged.contains(segment);
        let lacking = sealed.into_iter().rfind(|(segment, _)| lacks(segment));
        let Some((segment, length)) = lacking else {
            return Ok(false);
        };
        // A hint is shorter than its segment.
        if self.remover.free_space() < self.reserve_bytes.saturating_add(length) {
            return Ok(false);
        }
        // What fails now would fail each time.
        self.hinted.insert(segment);
        let Some(Content { entries, sealed }) = self.read(segment)? else {
            self.damaged.insert(segment);
            return Ok(true);
        };
        let Some(sealed) = sealed else {
            log::warn!("segment {segment} gets no hint: it is not known where it ends");
            return Ok(true);
        };
        let (fs, dir) = self.remover.disk();
        match hints::write(fs, dir, &sealed, &entries) {
            Err(LogError::Refused(_)) => {
                self.hinted.remove(&segment);
                Ok(false)
            }
            written => written.map(|()| true),
        }
    }

    /// What is in a segment; `None` if it is damaged.
    fn read(&mut self, segment: u32) -> Result<Option<Content>, LogError> {
        let mut entries = Vec::new();
        let mut unknown = false;
        let mut visit = |location, record: &Record<'_>| {
            unknown |= !matches!(record.kind, KIND_STORE | KIND_RELEASE);
            entries.push(Entry {
                revision: Revision::from_u64(record.number),
                location,
                payload_bytes: u32::try_from(record.payload.len()).unwrap_or(u32::MAX),
                is_store: record.kind == KIND_STORE,
            });
            Ok(())
        };
        let records = &self.shared.records;
        let (sealed, damaged) = records.walk(segment, &mut self.buffer, &mut visit)?;
        for damage in &damaged {
            log::error!("{damage}: the segment is not compacted and gets no hint");
        }
        let intact = damaged.is_empty() && !unknown;
        Ok(intact.then_some(Content { entries, sealed }))
    }

    /// Which of a segment's records must be moved, by the rules above.
    fn to_keep<'a>(&self, entries: &'a [Entry]) -> Vec<&'a Entry> {
        // The copies in this segment of the revisions that it releases.
        let mut own: FxHashMap<Revision, u32> = FxHashMap::default();
        let releases = entries.iter().filter(|entry| !entry.is_store);
        own.extend(releases.map(|entry| (entry.revision, 0)));
        for entry in entries.iter().filter(|entry| entry.is_store) {
            own.entry(entry.revision).and_modify(|copies| *copies += 1);
        }
        let mut keep = Vec::new();
        for part in entries.chunks(PART_RECORDS) {
            let index = self.shared.index.read();
            keep.extend(part.iter().filter(|entry| {
                let revision = entry.revision;
                let live = || index.find(revision);
                if entry.is_store {
                    return live().is_some_and(|place| place.location == entry.location);
                }
                // One release of a revision is enough.
                let is_elsewhere = |own: &u32| index.dead_copies(revision) > *own;
                own.get(&revision).is_some_and(is_elsewhere)
                    && live().is_none()
                    && own.remove(&revision).is_some()
            }));
            drop(index);
            pause_after(part.len());
        }
        keep
    }

    /// Moves records in steps.
    fn relocate(
        &mut self,
        segment: u32,
        keep: &[&Entry],
        submit: Submit<'_>,
    ) -> Result<bool, LogError> {
        let (mut step, mut bytes) = (Vec::new(), 0);
        for entry in keep {
            let record = match self.shared.records.read(entry.location) {
                Ok(record) => record,
                Err(error) => {
                    self.damaged.insert(segment);
                    return Err(error);
                }
            };
            bytes += entry.location.length as usize;
            step.push(Moved {
                revision: entry.revision,
                from: entry.is_store.then_some(entry.location),
                key: record.key,
                payload: record.payload,
            });
            if bytes >= STEP_BYTES || step.len() >= STEP_RECORDS {
                bytes = 0;
                if !submit(Step::Move(std::mem::take(&mut step))) {
                    return Ok(false);
                }
            }
        }
        Ok(step.is_empty() || submit(Step::Move(step)))
    }
}

/// Pauses, if a whole part is done.
fn pause_after(records: usize) {
    if records == PART_RECORDS {
        crate::clock::sleep(PART_PAUSE);
    }
}

#[cfg(test)]
mod tests;
