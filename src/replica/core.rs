//! The replica core: requests in, engine operations and answers out. Pure (see the module above).
//!
//! Invariants: the fence only grows (A4); nothing of a refused request reaches the engine; no group
//! is committed while its raised fence is not durable (R10); an answer is given only with the
//! outcome of the commit that made it true (A1).
//!
//! On a fatal error of the engine the whole group stays unanswered: the caller drops it and stops.

use std::sync::Arc;

use bytes::Bytes;

use crate::ids::{Fence, Revision};
use crate::replica::fence::{self, FenceState};
use crate::rpc::message::{
    FetchRequest, FetchResult, HoldsRequest, Refusal, ReleaseRequest, Response, StoreRequest,
    StoreResult,
};
use crate::storage::{Committed, Engine, Fatal, ReadError, Reader, Staged};

/// Bytes that an answer's record takes beside key and payload, at most: revision, lengths and tags
/// of the wire format, with room to spare.
const RECORD_OVERHEAD_BYTES: usize = 64;

/// Executes stores and releases. `T` travels with each request and comes back with its answer.
pub struct Replica<T> {
    fence: FenceState,
    /// The requests of the group, in order of execution.
    pending: Vec<(T, Pending)>,
}

/// A request that waits for the commit of its group.
enum Pending {
    /// Admitted; one entry for each record, in order.
    Store(Vec<Staged>),
    /// Admitted.
    Release,
    /// Refused, and nothing of it was staged. Answered with the others, because the fence that it
    /// names as executed must be durable first.
    Refused(Refusal),
}

impl<T> Replica<T> {
    /// Continues with the fence that was persisted last.
    pub fn new(durable: Fence) -> Replica<T> {
        Replica {
            fence: FenceState::new(durable),
            pending: Vec::new(),
        }
    }

    /// Executes a store of the leader `from` up to the point where only the commit is missing.
    pub fn store(
        &mut self,
        engine: &mut dyn Engine,
        request: &StoreRequest,
        from: &Arc<str>,
        ticket: T,
    ) -> Result<(), Fatal> {
        let pending = match self.fence.admit(request.fence, from) {
            Ok(()) => {
                let mut staged = Vec::with_capacity(request.records.len());
                for record in request.records.iter() {
                    staged.push(engine.store(record.revision, &record.key, &record.payload)?);
                }
                Pending::Store(staged)
            }
            Err(refusal) => Pending::Refused(refusal),
        };
        self.pending.push((ticket, pending));
        Ok(())
    }

    /// Executes a release of the leader `from` up to the point where only the commit is missing.
    pub fn release(
        &mut self,
        engine: &mut dyn Engine,
        request: &ReleaseRequest,
        from: &Arc<str>,
        ticket: T,
    ) -> Result<(), Fatal> {
        let pending = match self.fence.admit(request.fence, from) {
            Ok(()) => {
                for revision in &request.revisions {
                    engine.release(*revision)?;
                }
                Pending::Release
            }
            Err(refusal) => Pending::Refused(refusal),
        };
        self.pending.push((ticket, pending));
        Ok(())
    }

    /// The fence to make durable before [`Replica::commit`]; none if it is already.
    pub fn unsaved_fence(&self) -> Option<Fence> {
        self.fence.unsaved()
    }

    /// The fence file now holds `fence`.
    pub fn persisted(&mut self, fence: Fence) {
        self.fence.persisted(fence);
    }

    /// The highest fence of any request executed so far, to compare fetches with.
    pub fn executed_fence(&self) -> Fence {
        self.fence.executed()
    }

    /// Refuses the whole group, because its fence cannot be made durable; nothing of it has an
    /// effect and the fence is not raised.
    pub fn refuse(&mut self, engine: &mut dyn Engine, refusal: &Refusal) -> Vec<(T, Response)> {
        engine.discard();
        self.fence.forget_unsaved();
        let pending = std::mem::take(&mut self.pending);
        let refused = |(ticket, _)| (ticket, Response::Refused(refusal.clone()));
        pending.into_iter().map(refused).collect()
    }

    /// Commits the group; the answers of its requests, in their order.
    pub fn commit(&mut self, engine: &mut dyn Engine) -> Result<Vec<(T, Response)>, Fatal> {
        assert_eq!(
            self.fence.unsaved(),
            None,
            "an effect before its fence is durable (R10)"
        );
        let committed = engine.commit()?;
        let pending = std::mem::take(&mut self.pending);
        let answers = pending.into_iter().map(|(ticket, pending)| {
            let response = match pending {
                Pending::Store(staged) => Response::Store(store_results(staged, committed)),
                Pending::Release => release_response(committed),
                Pending::Refused(refusal) => Response::Refused(refusal),
            };
            (ticket, response)
        });
        Ok(answers.collect())
    }
}

fn store_results(staged: Vec<Staged>, committed: Committed) -> Vec<StoreResult> {
    let result = |staged| match (staged, committed) {
        (Staged::New, Committed::Done) | (Staged::Known, _) => StoreResult::Stored,
        (Staged::New, Committed::StoresFull | Committed::Full) => StoreResult::DiskFull,
        (Staged::Conflict, _) => StoreResult::Conflict,
    };
    staged.into_iter().map(result).collect()
}

fn release_response(committed: Committed) -> Response {
    match committed {
        Committed::Done | Committed::StoresFull => Response::Release,
        Committed::Full => {
            let reason = "no space left to record the release".to_owned();
            Response::Refused(Refusal::Other(reason))
        }
    }
}

/// Answers which records the member has, by its index. It raises no fence.
pub fn holds(reader: &dyn Reader, highest: Fence, request: &HoldsRequest) -> Response {
    if let Err(refusal) = fence::check(highest, request.fence) {
        return Response::Refused(refusal);
    }
    let revisions = request.revisions.iter();
    let held = revisions.map(|revision| reader.length(*revision).is_some());
    Response::Holds(held.collect())
}

/// The answer to a fetch if all of its records are in memory and have payloads of at most
/// `bytes_max` bytes in all; it does not wait for the disk. Otherwise [`fetch`] says what is wrong.
pub fn fetch_at_hand(
    reader: &dyn Reader,
    highest: Fence,
    request: &FetchRequest,
    bytes_max: usize,
) -> Option<Response> {
    fence::check(highest, request.fence).ok()?;
    let mut bytes_left = bytes_max;
    let find = |revision: &Revision| {
        let (key, payload) = reader.at_hand(*revision, bytes_left)?;
        bytes_left -= payload.len();
        Some(FetchResult::Found { key, payload })
    };
    let results: Option<Vec<FetchResult>> = request.revisions.iter().map(find).collect();
    results.map(Response::Fetch)
}

/// Answers a fetch. Its fence is compared with `highest`, the highest executed, and raises nothing.
/// The answer's records take `bytes_max` at most, except that the first one found is always in it;
/// from the first that does not fit the rest is `Omitted`. Copies that cannot be read go to
/// `damaged`, to be logged.
pub fn fetch(
    reader: &dyn Reader,
    highest: Fence,
    request: &FetchRequest,
    bytes_max: usize,
    mut damaged: impl FnMut(Revision, ReadError),
) -> Response {
    if let Err(refusal) = fence::check(highest, request.fence) {
        return Response::Refused(refusal);
    }
    let named = request.revisions.len();
    let mut results = Vec::with_capacity(named);
    let mut room = Room {
        used: 0,
        max: bytes_max,
    };
    for revision in &request.revisions {
        let result = match reader.fetch(*revision) {
            Ok(None) => FetchResult::Missing,
            Ok(Some((key, payload))) if room.take(key.text_len(), &payload) => {
                FetchResult::Found { key, payload }
            }
            Ok(Some(_)) => break,
            Err(error) => {
                damaged(*revision, error);
                FetchResult::Damaged
            }
        };
        results.push(result);
    }
    results.resize(named, FetchResult::Omitted);
    Response::Fetch(results)
}

/// The bytes of an answer that are taken and allowed.
struct Room {
    used: usize,
    max: usize,
}

impl Room {
    /// Takes room for a record if there is enough, or if it is the first.
    fn take(&mut self, key_bytes: usize, payload: &Bytes) -> bool {
        let used = self.used + key_bytes + payload.len() + RECORD_OVERHEAD_BYTES;
        let fits = self.used == 0 || used <= self.max;
        if fits {
            self.used = used;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Key;
    use crate::rpc::message::StoreRecord;
    use crate::storage::model::ModelEngine;

    pub(super) fn fence(term: u64, link: u64) -> Fence {
        Fence { term, link }
    }

    pub(super) fn leader() -> Arc<str> {
        "leader".into()
    }

    pub(super) fn store_request(fence: Fence, revisions: &[u64], payload: &str) -> StoreRequest {
        let record = |revision: &u64| StoreRecord {
            revision: Revision::from_u64(*revision),
            key: Key::Id(*revision),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
        };
        StoreRequest {
            fence,
            records: Arc::new(revisions.iter().map(record).collect()),
        }
    }

    pub(super) fn release_request(fence: Fence, revisions: &[u64]) -> ReleaseRequest {
        let revisions = revisions.iter().copied().map(Revision::from_u64).collect();
        ReleaseRequest { fence, revisions }
    }

    /// Commits as the append thread does; the answers without their tickets.
    pub(super) fn commit(replica: &mut Replica<()>, engine: &mut ModelEngine) -> Vec<Response> {
        if let Some(fence) = replica.unsaved_fence() {
            replica.persisted(fence);
        }
        let answers = replica.commit(engine).unwrap();
        answers.into_iter().map(|((), response)| response).collect()
    }

    fn fetch_all(engine: &ModelEngine, at: Fence, revisions: &[u64], max: usize) -> Response {
        let revisions = revisions.iter().copied().map(Revision::from_u64).collect();
        let request = FetchRequest {
            fence: at,
            revisions,
        };
        let none = |revision, error| panic!("{revision}: {error}");
        fetch(engine.reader().as_ref(), fence(2, 1), &request, max, none)
    }

    #[test]
    fn a_fetch_is_answered_at_hand_as_otherwise_or_not_at_all() {
        let (mut engine, mut replica) = (ModelEngine::default(), Replica::new(fence(2, 1)));
        let stored = store_request(fence(2, 1), &[1, 2, 3], "four");
        replica.store(&mut engine, &stored, &leader(), ()).unwrap();
        commit(&mut replica, &mut engine);
        let at_hand = |at: Fence, revisions: &[u64], max: usize| {
            let revisions = revisions.iter().copied().map(Revision::from_u64).collect();
            let request = FetchRequest {
                fence: at,
                revisions,
            };
            fetch_at_hand(engine.reader().as_ref(), fence(2, 1), &request, max)
        };
        let all = fetch_all(&engine, fence(2, 1), &[3, 1, 2], usize::MAX);
        assert_eq!(at_hand(fence(2, 1), &[3, 1, 2], 12), Some(all));
        assert_eq!(at_hand(fence(2, 1), &[3, 1, 2], 11), None, "too many bytes");
        assert_eq!(at_hand(fence(2, 1), &[3, 4], 12), None, "one is missing");
        assert_eq!(at_hand(fence(1, 1), &[3], 12), None, "a stale fence");
    }

    #[test]
    fn a_stale_request_in_a_group_is_refused_and_the_others_take_effect() {
        let (mut engine, mut replica) = (ModelEngine::default(), Replica::new(fence(1, 1)));
        let stored = store_request(fence(2, 1), &[1, 2], "x");
        let stale = store_request(fence(1, 9), &[3], "x");
        replica.store(&mut engine, &stored, &leader(), ()).unwrap();
        replica.store(&mut engine, &stale, &leader(), ()).unwrap();
        let released = release_request(fence(2, 1), &[1]);
        replica
            .release(&mut engine, &released, &leader(), ())
            .unwrap();
        assert_eq!(replica.unsaved_fence(), Some(fence(2, 1)));
        assert_eq!(
            commit(&mut replica, &mut engine),
            [
                Response::Store(vec![StoreResult::Stored; 2]),
                Response::Refused(Refusal::StaleFence {
                    highest: fence(2, 1)
                }),
                Response::Release,
            ]
        );
        let revisions: Vec<u64> = engine.contents().keys().map(|r| r.as_u64()).collect();
        assert_eq!(revisions, [2]);
    }

    #[test]
    fn a_known_record_raises_the_fence_and_is_acknowledged_again() {
        let (mut engine, mut replica) = (ModelEngine::default(), Replica::new(fence(1, 1)));
        for term in [1, 2] {
            let request = store_request(fence(term, 1), &[1], "x");
            replica.store(&mut engine, &request, &leader(), ()).unwrap();
            let stored = Response::Store(vec![StoreResult::Stored]);
            assert_eq!(commit(&mut replica, &mut engine), [stored]);
            assert_eq!(replica.executed_fence(), fence(term, 1));
        }
        let other = store_request(fence(2, 1), &[1, 4], "y");
        replica.store(&mut engine, &other, &leader(), ()).unwrap();
        let results = vec![StoreResult::Conflict, StoreResult::Stored];
        let answers = commit(&mut replica, &mut engine);
        assert_eq!(answers, [Response::Store(results)]);
    }

    #[test]
    fn a_group_whose_fence_cannot_be_saved_is_refused_without_effect() {
        let (mut engine, mut replica) = (ModelEngine::default(), Replica::new(fence(1, 1)));
        let request = store_request(fence(1, 2), &[1], "x");
        replica.store(&mut engine, &request, &leader(), ()).unwrap();
        let refusal = Refusal::Other("no space".to_owned());
        let answers = replica.refuse(&mut engine, &refusal);
        assert_eq!(answers, [((), Response::Refused(refusal))]);
        assert_eq!(replica.executed_fence(), fence(1, 1));
        assert!(commit(&mut replica, &mut engine).is_empty() && engine.contents().is_empty());
    }

    #[test]
    #[should_panic(expected = "R10")]
    fn no_effect_before_the_fence_is_durable() {
        let (mut engine, mut replica) = (ModelEngine::default(), Replica::new(fence(1, 1)));
        let request = store_request(fence(1, 2), &[1], "x");
        replica.store(&mut engine, &request, &leader(), ()).unwrap();
        _ = replica.commit(&mut engine);
    }

    #[test]
    fn a_full_disk_refuses_stores_and_keeps_releases_while_it_can() {
        let (mut engine, mut replica) = (ModelEngine::default(), Replica::new(fence(1, 1)));
        let at = fence(1, 1);
        let first = store_request(at, &[1], "x");
        replica.store(&mut engine, &first, &leader(), ()).unwrap();
        commit(&mut replica, &mut engine);
        for (space, release) in [
            (Committed::Full, release_response(Committed::Full)),
            (Committed::StoresFull, Response::Release),
        ] {
            engine.set_space(space);
            let both = store_request(at, &[1, 2], "x");
            let freed = release_request(at, &[1]);
            replica.store(&mut engine, &both, &leader(), ()).unwrap();
            replica.release(&mut engine, &freed, &leader(), ()).unwrap();
            let results = vec![StoreResult::Stored, StoreResult::DiskFull];
            let answers = commit(&mut replica, &mut engine);
            assert_eq!(answers, [Response::Store(results), release]);
        }
        assert!(engine.contents().is_empty());
    }

    #[test]
    fn a_fetch_is_bounded_refused_when_stale_and_raises_nothing() {
        let (mut engine, mut replica) = (ModelEngine::default(), Replica::new(fence(2, 1)));
        let request = store_request(fence(2, 1), &[1, 2, 3], "0123456789");
        replica.store(&mut engine, &request, &leader(), ()).unwrap();
        commit(&mut replica, &mut engine);
        let found = |id| FetchResult::Found {
            key: Key::Id(id),
            payload: Bytes::from_static(b"0123456789"),
        };
        let both = Response::Fetch(vec![found(1), FetchResult::Missing, found(3)]);
        assert_eq!(fetch_all(&engine, fence(2, 2), &[1, 9, 3], 1000), both);
        let one = Response::Fetch(vec![found(1), FetchResult::Omitted, FetchResult::Omitted]);
        assert_eq!(fetch_all(&engine, fence(2, 1), &[1, 2, 9], 100), one);
        assert_eq!(fetch_all(&engine, fence(2, 1), &[1, 2, 9], 1), one);
        let highest = fence(2, 1);
        let refused = Response::Refused(Refusal::StaleFence { highest });
        assert_eq!(fetch_all(&engine, fence(1, 9), &[1], 1000), refused);
        assert_eq!(replica.executed_fence(), fence(2, 1));
    }
}

#[cfg(test)]
mod properties {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::tests::{commit, fence, leader, release_request, store_request};
    use super::*;
    use crate::storage::model::ModelEngine;

    #[derive(Clone, Debug)]
    enum Step {
        Store(Fence, Vec<u64>, bool),
        Release(Fence, Vec<u64>),
        Commit,
        Restart,
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let any_fence = || (0u64..4, 0u64..4).prop_map(|(term, link)| fence(term, link));
        let revisions = || prop::collection::vec(0u64..8, 0..4);
        prop_oneof![
            4 => (any_fence(), revisions(), any::<bool>())
                .prop_map(|(fence, revisions, other)| Step::Store(fence, revisions, other)),
            3 => (any_fence(), revisions())
                .prop_map(|(fence, revisions)| Step::Release(fence, revisions)),
            2 => Just(Step::Commit),
            1 => Just(Step::Restart),
        ]
    }

    proptest! {
        /// Against a plain map that executes requests one at a time: fences never go back, also
        /// over a restart; a stale request has no effect; what is answered as stored is stored.
        #[test]
        fn fences_never_go_back_and_stale_requests_have_no_effect(
            steps in prop::collection::vec(any_step(), 0..60)
        ) {
            let mut engine = ModelEngine::default();
            let mut replica = Replica::new(fence(0, 0));
            let (mut highest, mut durable) = (fence(0, 0), fence(0, 0));
            let (mut expected, mut committed) = (BTreeMap::new(), BTreeMap::new());
            let mut answers = Vec::new();
            for step in steps {
                match step {
                    Step::Store(at, revisions, other) => {
                        let payload = if other { "other" } else { "payload" };
                        let request = store_request(at, &revisions, payload);
                        replica.store(&mut engine, &request, &leader(), ()).unwrap();
                        answers.push(if at < highest {
                            Response::Refused(Refusal::StaleFence { highest })
                        } else {
                            highest = at;
                            let store = |revision| {
                                match *expected.entry(revision).or_insert(payload) == payload {
                                    true => StoreResult::Stored,
                                    false => StoreResult::Conflict,
                                }
                            };
                            Response::Store(revisions.into_iter().map(store).collect())
                        });
                    }
                    Step::Release(at, revisions) => {
                        let request = release_request(at, &revisions);
                        replica.release(&mut engine, &request, &leader(), ()).unwrap();
                        answers.push(if at < highest {
                            Response::Refused(Refusal::StaleFence { highest })
                        } else {
                            highest = at;
                            expected.retain(|revision, _| !revisions.contains(revision));
                            Response::Release
                        });
                    }
                    Step::Commit => {
                        let expected_answers = std::mem::take(&mut answers);
                        prop_assert_eq!(commit(&mut replica, &mut engine), expected_answers);
                        (durable, committed) = (highest, expected.clone());
                    }
                    Step::Restart => {
                        engine.discard();
                        replica = Replica::new(durable);
                        (highest, expected) = (durable, committed.clone());
                        answers.clear();
                    }
                }
                prop_assert_eq!(replica.executed_fence(), highest);
                let contents = engine.contents();
                prop_assert!(contents.keys().map(|r| r.as_u64()).eq(committed.keys().copied()));
            }
        }
    }
}
