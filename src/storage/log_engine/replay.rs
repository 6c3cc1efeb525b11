//! Opening: the location index from the log's records, or from the hints of its sealed segments.

use std::collections::BTreeSet;
use std::path::Path;

use super::{KIND_RELEASE, KIND_STORE, place, segment_path};
use crate::disk::fs::FileSystem;
use crate::disk::log::{LogError, SealedSegment, Visitor};
use crate::disk::record::{Location, Record};
use crate::ids::Revision;
use crate::storage::hints;
use crate::storage::location_index::{LocationIndex, Place};

/// Takes the records of a log into an index, in the log's order.
pub(super) struct Replay<'a> {
    fs: &'a dyn FileSystem,
    dir: &'a Path,
    index: LocationIndex,
    /// Segments whose hints were taken in.
    hinted: BTreeSet<u32>,
    /// Sealed segments that are read instead.
    read: u32,
}

impl<'a> Replay<'a> {
    pub(super) fn new(fs: &'a dyn FileSystem, dir: &'a Path) -> Replay<'a> {
        Replay {
            fs,
            dir,
            index: LocationIndex::default(),
            hinted: BTreeSet::new(),
            read: 0,
        }
    }

    /// The index, and the segments whose hints were good. All other hints go, durably: of segments
    /// that are gone, that were read instead, and of the last, which is appended to.
    pub(super) fn finish(self) -> (LocationIndex, BTreeSet<u32>) {
        if self.read > 0 {
            let (dir, read, hinted) = (self.dir.display(), self.read, self.hinted.len());
            log::info!("{dir}: read {read} sealed segments, {hinted} more by their hints");
        }
        if let Err(error) = self.remove_useless() {
            let dir = self.dir.display();
            log::warn!("cannot remove hints without a use in {dir}: {error}");
        }
        (self.index, self.hinted)
    }

    fn remove_useless(&self) -> std::io::Result<()> {
        let mut there = hints::list(self.fs, self.dir)?;
        there.retain(|segment| !self.hinted.contains(segment));
        if there.is_empty() {
            return Ok(());
        }
        for segment in there {
            self.fs.remove(&hints::path(self.dir, segment))?;
        }
        self.fs.sync_dir(self.dir)
    }

    fn take(&mut self, is_store: bool, revision: Revision, place: Place) {
        match is_store {
            true => _ = self.index.insert(revision, place),
            false => _ = self.index.remove(revision),
        }
    }
}

impl Visitor for Replay<'_> {
    /// A hint that cannot be used costs the reading of its segment, and nothing else.
    fn known(&mut self, segment: &SealedSegment) -> Result<bool, LogError> {
        let name = segment_path(self.dir, segment.number);
        let entries = match hints::read(self.fs, self.dir, segment) {
            Ok(Some(entries)) => entries,
            no_hint => {
                match no_hint {
                    Err(error) => log::warn!("{error}: {name} is read, and gets a new hint"),
                    // As it is when the process ended soon after the segment did.
                    Ok(_) => log::debug!("{name} has no hint yet: it is read"),
                }
                self.read += 1;
                return Ok(false);
            }
        };
        for entry in &entries {
            let place = Place {
                location: entry.location,
                payload_bytes: entry.payload_bytes,
            };
            self.take(entry.is_store, entry.revision, place);
        }
        self.hinted.insert(segment.number);
        Ok(true)
    }

    fn record(&mut self, location: Location, record: &Record<'_>) -> Result<(), LogError> {
        let is_store = match record.kind {
            KIND_STORE => true,
            KIND_RELEASE => false,
            kind => {
                return Err(LogError::Damaged {
                    file: segment_path(self.dir, location.segment),
                    offset: u64::from(location.offset),
                    what: format!("record of unknown kind {kind}: written by a newer version?"),
                });
            }
        };
        let place = place(location, record.payload.len());
        self.take(is_store, Revision::from_u64(record.number), place);
        Ok(())
    }
}
