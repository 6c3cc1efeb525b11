//! The group that an engine has staged: its changes in call order, and what each revision that they
//! touch is after them. Pure.
//!
//! Owned by one engine; a change is whatever that engine needs at the commit. Here stands, once for
//! all engines, what [`super::Engine::store`] and [`super::Engine::release`] promise about
//! revisions that exist. Payloads are shared with the requests; memory is bounded by the caller,
//! which commits or discards.

use bytes::Bytes;
use rustc_hash::FxHashMap;

use crate::ids::{Key, Revision};
use crate::storage::{Reader, Staged};

/// A record, or `None` where it is released.
pub(super) type Record = Option<(Key, Bytes)>;

/// See the header of this file.
pub(super) struct Group<C> {
    changes: Vec<C>,
    /// The state of each revision that the group touches, as if it was committed.
    overlay: FxHashMap<Revision, Record>,
}

impl<C> Default for Group<C> {
    fn default() -> Group<C> {
        Group {
            changes: Vec::new(),
            overlay: FxHashMap::default(),
        }
    }
}

impl<C> Group<C> {
    /// Nothing is staged.
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The answer to a store of a revision that exists, staged here or in `committed`; `None` if
    /// it is new. A copy that cannot be read counts as none: storing it anew is how it is mended.
    pub(super) fn answer(
        &self,
        committed: &dyn Reader,
        revision: Revision,
        key: &Key,
        payload: &Bytes,
    ) -> Option<Staged> {
        let fetched;
        let (record, known) = match self.overlay.get(&revision) {
            Some(staged) => (staged.as_ref()?, Staged::New),
            None => match committed.fetch(revision) {
                Ok(record) => {
                    fetched = record?;
                    (&fetched, Staged::Known)
                }
                Err(error) => {
                    log::warn!("revision {revision} is stored anew: {error}");
                    return None;
                }
            },
        };
        let is_same = record.0 == *key && record.1 == *payload;
        Some(if is_same { known } else { Staged::Conflict })
    }

    /// Whether there is something to release: staged here, or in `committed`, damaged or not.
    pub(super) fn has(&self, committed: &dyn Reader, revision: Revision) -> bool {
        match self.overlay.get(&revision) {
            Some(staged) => staged.is_some(),
            None => committed.length(revision).is_some(),
        }
    }

    /// Stages a change, which makes `record` of the revision.
    pub(super) fn push(&mut self, revision: Revision, record: Record, change: C) {
        self.changes.push(change);
        self.overlay.insert(revision, record);
    }

    /// The changes in call order; the group is empty then.
    pub(super) fn take(&mut self) -> Vec<C> {
        self.overlay.clear();
        std::mem::take(&mut self.changes)
    }

    /// Forgets what is staged.
    pub(super) fn clear(&mut self) {
        self.changes.clear();
        self.overlay.clear();
    }
}

/// A group whose changes are the records that they make.
impl Group<(Revision, Record)> {
    /// Stages a record, unless the revision exists.
    pub(super) fn store(
        &mut self,
        committed: &dyn Reader,
        revision: Revision,
        key: &Key,
        payload: &Bytes,
    ) -> Staged {
        if let Some(answer) = self.answer(committed, revision, key, payload) {
            return answer;
        }
        let record = Some((key.clone(), payload.clone()));
        self.push(revision, record.clone(), (revision, record));
        Staged::New
    }

    /// Stages the end of a record, if there is one.
    pub(super) fn release(&mut self, committed: &dyn Reader, revision: Revision) {
        if self.has(committed, revision) {
            self.push(revision, None, (revision, None));
        }
    }
}
