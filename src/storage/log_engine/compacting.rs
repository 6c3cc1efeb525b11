//! The append thread's side of compaction: each step is checked here against the index, which only
//! this thread changes, so it holds whatever happened since it was prepared.

use super::{Change, KIND_RELEASE, KIND_STORE, LogEngine, fatal, place};
use crate::disk::log::LogError;
use crate::disk::record::Record;
use crate::storage::Fatal;
use crate::storage::compaction::{Compactor, Moved, Step};

impl LogEngine {
    /// The work of the thread that compacts; there is one such thread at most.
    pub fn compactor(&self) -> Compactor {
        Compactor::new(
            self.shared.clone(),
            self.log.remover(),
            self.log.reserve_bytes(),
            self.hinted.clone(),
        )
    }

    /// See [`crate::storage::Engine::compact`].
    pub(super) fn compact_step(&mut self, step: &Step) -> Result<bool, Fatal> {
        assert!(self.group.is_empty(), "compaction with a group staged");
        match step {
            Step::Move(records) => self.relocate(records),
            Step::Retire(segment) => self.retire(*segment),
        }
    }

    /// Appends records again, from the reserve if need be; those that something happened to
    /// meanwhile are left out.
    fn relocate(&mut self, records: &[Moved]) -> Result<bool, Fatal> {
        let mut changes = Vec::with_capacity(records.len());
        for moved in records {
            let revision = moved.revision;
            let current = self.shared.index.read().find(revision);
            let (kind, needed) = match moved.from {
                Some(from) => (KIND_STORE, current.is_some_and(|at| at.location == from)),
                // Behind the record of a later store, a release would take that with it.
                None => (KIND_RELEASE, current.is_none()),
            };
            if !needed {
                continue;
            }
            let location = self.stage(&Record {
                kind,
                number: revision.as_u64(),
                key: &moved.key,
                payload: &moved.payload,
            })?;
            if moved.from.is_some() {
                let place = place(location, moved.payload.len());
                changes.push(Change::Store(revision, place));
            }
        }
        if !self.reach_write_mode(true)? {
            return Ok(false);
        }
        self.shared.publish(&changes);
        Ok(true)
    }

    /// Takes a segment out of the log, unless it still has a live record.
    fn retire(&mut self, segment: u32) -> Result<bool, Fatal> {
        if self.shared.index.read().live_bytes(segment) > 0 {
            return Ok(false);
        }
        match self.log.retire(segment) {
            Err(LogError::Refused(_)) => Ok(false),
            retired => retired.map_err(|error| fatal("retire a segment", error)),
        }
    }
}
