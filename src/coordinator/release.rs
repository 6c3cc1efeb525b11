//! The release queue: which members may forget which revisions, and when (R5 to R8). Pure: a value
//! behind a lock of the leader.
//!
//! ```text
//!            released (apply), settled (given up)
//!                        │
//!                        v  next_release: closed ones  answered
//!   not queued ──────> queued ───────────────> unanswered ────────> gone
//!                        │                        │    ^
//!                        │ member down,  link lost │    │ next, first on a later link
//!                        │ end of term, full       v    │
//!                        v                       lingering
//!                       gone (counted as dropped)
//! ```
//!
//! **Holds.** A transaction reads what its entry lists, after it was applied. Later entries may
//! replace that meanwhile: what they release waits until no read is under way that began before.
//!
//! What is queued satisfies R7 but for being open: it comes either from `apply`, which no longer
//! lists the record and never will again, since a revision is stored once; or from a settlement,
//! whose entry was applied without that member or never proposed. So only openness is looked at
//! again, when the release is handed out.
//!
//! Volatile: whatever is dropped here leaves garbage that the audit of a later version finds.
//!
//! Invariants: nothing is handed out outside of a serving term (R5), or while its revision is open
//! (R6). A member has at most one call unanswered. Each queue is bounded (A8).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Revisions, Settlement};
use crate::faults::{self, Fault};
use crate::ids::{MemberId, Revision};
use crate::metadata::replica_sets::ReplicaSet;

/// Revisions in one release request: the same as records in a batch.
pub const RELEASE_BATCH_MAX: usize = 4096;

/// Revisions queued for one member: 2 MiB of them. What does not fit is dropped and counted.
pub const QUEUED_MAX: usize = 256 * 1024;

/// A release to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// Names the call in `answered`.
    pub number: u64,
    /// To whom.
    pub member: MemberId,
    /// What it may forget.
    pub revisions: Vec<Revision>,
}

/// All releases of one term.
#[derive(Debug, Default)]
pub struct ReleaseQueue {
    /// The term that is served in, from the application of its no-op to its end (R5).
    serving: Option<u64>,
    /// Allotted and not settled (R6).
    open: OpenRevisions,
    held: Held,
    members: BTreeMap<MemberId, Queue>,
    /// The number of the next call.
    next_number: u64,
    /// Releases dropped since the start.
    dropped: u64,
}

/// Releases that wait for reads.
#[derive(Debug, Default)]
struct Held {
    /// The number of the next hold.
    next: u64,
    /// Those under way.
    active: BTreeSet<u64>,
    /// Each with the number that was next when it came, ascending: it waits for all lower ones.
    /// At most [`QUEUED_MAX`].
    waiting: VecDeque<(u64, Revision, MemberId)>,
}

/// The releases of one member.
#[derive(Debug, Default)]
struct Queue {
    /// A link to it is open.
    is_up: bool,
    queued: VecDeque<Revision>,
    /// The call that is under way.
    unanswered: Option<Release>,
    /// A call whose link broke: the member may execute it until a later link was used (R8). It is
    /// the first that a later link carries, so there is never a second one, and its answer there
    /// says both that it is done and that the old one is refused.
    lingering: Option<Vec<Revision>>,
}

impl ReleaseQueue {
    /// An empty queue outside of any term.
    pub fn new() -> ReleaseQueue {
        ReleaseQueue::default()
    }

    /// The no-op of this leader's term was applied. What an earlier term left is dropped.
    pub fn begin_term(&mut self, term: u64) {
        self.end_term();
        self.serving = Some(term);
    }

    /// This leader no longer serves: everything is dropped, nothing is open any more.
    pub fn end_term(&mut self) {
        self.serving = None;
        self.open = OpenRevisions::default();
        if releases_unserved() {
            return;
        }
        self.dropped += self.held.waiting.len() as u64;
        self.held.waiting.clear();
        for queue in self.members.values_mut() {
            self.dropped += queue.queued.len() as u64;
            queue.queued.clear();
            queue.unanswered = None;
            queue.lingering = None;
        }
    }

    /// Revisions were allotted to a batch. Outside of their term they are of no interest.
    pub fn open(&mut self, revisions: Revisions) {
        if self.serving == Some(revisions.first.term()) {
            self.open.insert(revisions);
        }
    }

    /// A batch was settled: its revisions close, the copies that it gave up are queued.
    pub fn settle(&mut self, settlement: Settlement) {
        if self.serving != Some(settlement.closed.first.term()) {
            self.dropped += settlement.given_up.len() as u64;
            return;
        }
        self.open.remove(settlement.closed);
        for (revision, member) in settlement.given_up {
            self.queue(revision, member);
        }
    }

    /// Records that the metadata no longer lists, as `apply` returned them.
    pub fn released(&mut self, records: &[(Revision, ReplicaSet)]) {
        for (revision, replicas) in records {
            for member in replicas.as_slice() {
                if self.held.active.is_empty() {
                    self.queue(*revision, *member);
                } else if self.held.waiting.len() < QUEUED_MAX {
                    let waits = (self.held.next, *revision, *member);
                    self.held.waiting.push_back(waits);
                } else {
                    self.dropped += 1;
                }
            }
        }
    }

    /// A read begins of what is listed now or by an entry to come: nothing that is released from
    /// here on is queued before the hold with this number ends.
    pub fn hold(&mut self) -> u64 {
        let number = self.held.next;
        self.held.next += 1;
        self.held.active.insert(number);
        number
    }

    /// The read is over.
    pub fn end_hold(&mut self, number: u64) {
        self.held.active.remove(&number);
        let first = self.held.active.first().copied();
        while let Some(&(came, revision, member)) = self.held.waiting.front()
            && first.is_none_or(|first| came <= first)
        {
            self.held.waiting.pop_front();
            self.queue(revision, member);
        }
    }

    /// A link to the member opened.
    pub fn member_up(&mut self, member: MemberId) {
        self.members.entry(member).or_default().is_up = true;
    }

    /// The link to the member broke: what was queued for it is dropped, and what it did not answer
    /// lingers.
    pub fn member_down(&mut self, member: MemberId) {
        let Some(queue) = self.members.get_mut(&member) else {
            return;
        };
        queue.is_up = false;
        self.dropped += queue.queued.len() as u64;
        queue.queued.clear();
        let waiting = self.held.waiting.len();
        self.held.waiting.retain(|(_, _, of)| *of != member);
        self.dropped += (waiting - self.held.waiting.len()) as u64;
        if let Some(release) = queue.unanswered.take() {
            queue.lingering = Some(release.revisions);
        }
    }

    /// The next release to send to anyone, if there is one; one at a time for each member.
    pub fn next_release(&mut self) -> Option<Release> {
        if self.serving.is_none() && !faults::has(Fault::ReleaseBeforeNoOp) {
            return None;
        }
        for (member, queue) in &mut self.members {
            if !queue.is_up || queue.unanswered.is_some() {
                continue;
            }
            let revisions = match queue.lingering.take() {
                Some(revisions) => revisions,
                None => take_closed(&mut queue.queued, &self.open),
            };
            if revisions.is_empty() {
                continue;
            }
            let release = Release {
                number: self.next_number,
                member: *member,
                revisions,
            };
            self.next_number += 1;
            queue.unanswered = Some(release.clone());
            return Some(release);
        }
        None
    }

    /// The member executed the release, or refused it without effect (`done` is false): what it
    /// refused is dropped. A number that is not under way is passed over.
    pub fn answered(&mut self, release: u64, member: MemberId, done: bool) {
        let Some(queue) = self.members.get_mut(&member) else {
            return;
        };
        let release = queue.unanswered.take_if(|call| call.number == release);
        if let Some(release) = release.filter(|_| !done) {
            self.dropped += release.revisions.len() as u64;
        }
    }

    /// Whether the member may still be told to forget the revision: then it is no destination for
    /// it (R8).
    pub fn is_pending(&self, revision: Revision, member: MemberId) -> bool {
        let mut held = self.held.waiting.iter();
        held.any(|(_, one, of)| (*one, *of) == (revision, member))
            || self.members.get(&member).is_some_and(|queue| {
                let unanswered = queue.unanswered.as_ref().map(|call| &call.revisions);
                let mut calls = unanswered.into_iter().chain(&queue.lingering);
                queue.queued.contains(&revision) || calls.any(|call| call.contains(&revision))
            })
    }

    /// Whether the revision is open (R6).
    pub fn is_open(&self, revision: Revision) -> bool {
        self.open.contains(revision)
    }

    /// Releases queued for a member, and held ones.
    pub fn queued(&self, member: MemberId) -> usize {
        let held = self.held.waiting.iter().filter(|(_, _, of)| *of == member);
        held.count() + self.members.get(&member).map_or(0, |q| q.queued.len())
    }

    /// Releases dropped since the start: garbage on members until an audit.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn queue(&mut self, revision: Revision, member: MemberId) {
        let queue = self.members.entry(member).or_default();
        let is_served = self.serving.is_some() && queue.is_up;
        if !(is_served || releases_unserved()) || queue.queued.len() >= QUEUED_MAX {
            self.dropped += 1;
        } else {
            queue.queued.push_back(revision);
        }
    }
}

/// Whether what is applied outside of a term of its own is released too: never, but for a fault.
pub fn releases_unserved() -> bool {
    faults::has(Fault::ReleaseBeforeNoOp) || faults::has(Fault::ReplayReleases)
}

/// Up to a batch of revisions that are not open; open ones go back to the end, so that they do not
/// hold up the others.
fn take_closed(queued: &mut VecDeque<Revision>, open: &OpenRevisions) -> Vec<Revision> {
    let mut closed = Vec::new();
    for _ in 0..queued.len().min(RELEASE_BATCH_MAX) {
        let revision = queued.pop_front().expect("as many as were counted");
        if open.contains(revision) {
            queued.push_back(revision);
        } else {
            closed.push(revision);
        }
    }
    closed
}

/// Disjoint ranges of revisions. Bounded by the batches in flight and those whose outcome is not
/// known until the term ends.
#[derive(Debug, Default)]
struct OpenRevisions {
    /// First of each range -> one past its last.
    ranges: BTreeMap<u64, u64>,
}

impl OpenRevisions {
    fn insert(&mut self, revisions: Revisions) {
        if revisions.count > 0 {
            let first = revisions.first.as_u64();
            let previous = self.ranges.insert(first, first + revisions.count);
            assert!(previous.is_none(), "a revision is allotted once");
        }
    }

    /// Takes a part of a range away, or all of it.
    fn remove(&mut self, revisions: Revisions) {
        if revisions.count == 0 {
            return;
        }
        let first = revisions.first.as_u64();
        let end = first + revisions.count;
        let Some((&from, &to)) = self.ranges.range(..=first).next_back() else {
            return;
        };
        if to < end {
            return;
        }
        self.ranges.remove(&from);
        if from < first {
            self.ranges.insert(from, first);
        }
        if end < to {
            self.ranges.insert(end, to);
        }
    }

    fn contains(&self, revision: Revision) -> bool {
        let value = revision.as_u64();
        let range = self.ranges.range(..=value).next_back();
        range.is_some_and(|(_, end)| value < *end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: MemberId = MemberId(1);

    fn serving() -> ReleaseQueue {
        let mut queue = ReleaseQueue::new();
        queue.begin_term(5);
        queue.member_up(M);
        queue
    }

    fn revision(sequence: u64) -> Revision {
        Revision::new(5, sequence)
    }

    fn revisions(first: u64, count: u64) -> Revisions {
        Revisions {
            first: revision(first),
            count,
        }
    }

    fn settlement(first: u64, count: u64, given_up: &[u64]) -> Settlement {
        Settlement {
            closed: revisions(first, count),
            given_up: given_up.iter().map(|n| (revision(*n), M)).collect(),
        }
    }

    fn on_m() -> ReplicaSet {
        ReplicaSet::new(&[M]).expect("one member")
    }

    #[test]
    fn an_open_revision_waits_and_holds_up_no_other() {
        let mut queue = serving();
        queue.open(revisions(1, 10));
        queue.released(&[(revision(5), on_m()), (revision(11), on_m())]);
        let release = queue.next_release().expect("one is closed");
        assert_eq!(release.revisions, [revision(11)]);
        queue.answered(release.number, M, true);
        assert_eq!(queue.next_release(), None);
        queue.settle(settlement(5, 1, &[]));
        assert_eq!(
            queue.next_release().expect("closed now").revisions,
            [revision(5)]
        );
    }

    #[test]
    fn what_is_released_while_a_read_is_under_way_waits_for_it() {
        let mut queue = serving();
        let release = |queue: &mut ReleaseQueue, sequence| {
            queue.released(&[(revision(sequence), on_m())]);
        };
        let sent = |queue: &mut ReleaseQueue| -> Vec<Revision> {
            let release = queue.next_release();
            release.map_or_else(Vec::new, |release| {
                queue.answered(release.number, M, true);
                release.revisions
            })
        };
        release(&mut queue, 1);
        let first = queue.hold();
        assert_eq!(sent(&mut queue), [revision(1)]);
        release(&mut queue, 2);
        let second = queue.hold();
        release(&mut queue, 3);
        assert_eq!((sent(&mut queue), queue.queued(M)), (vec![], 2));
        assert!(queue.is_pending(revision(3), M) && !queue.is_pending(revision(4), M));
        queue.end_hold(first);
        assert_eq!(sent(&mut queue), [revision(2)]);
        queue.end_hold(second);
        queue.end_hold(second);
        assert_eq!(sent(&mut queue), [revision(3)]);
        // Neither a lost link nor the end of a term leaves any behind.
        for end in [
            |queue: &mut ReleaseQueue| queue.member_down(M),
            ReleaseQueue::end_term,
        ] {
            let mut queue = serving();
            let hold = queue.hold();
            release(&mut queue, 4);
            end(&mut queue);
            queue.end_hold(hold);
            assert_eq!((queue.queued(M), queue.dropped()), (0, 1));
        }
    }

    #[test]
    fn parts_of_a_range_close_on_their_own() {
        let mut queue = serving();
        queue.open(revisions(1, 10));
        queue.open(revisions(11, 5));
        queue.settle(settlement(3, 2, &[]));
        let open = |queue: &ReleaseQueue| -> Vec<u64> {
            (0..20).filter(|n| queue.is_open(revision(*n))).collect()
        };
        assert_eq!(open(&queue), [1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        queue.settle(settlement(5, 6, &[]));
        queue.settle(settlement(1, 2, &[]));
        assert_eq!(open(&queue), [11, 12, 13, 14, 15]);
        queue.settle(settlement(11, 5, &[]));
        assert!(open(&queue).is_empty());
    }

    #[test]
    fn nothing_is_released_outside_of_the_own_term() {
        let mut queue = ReleaseQueue::new();
        queue.member_up(M);
        queue.settle(settlement(1, 1, &[1]));
        queue.released(&[(revision(2), on_m())]);
        assert_eq!((queue.next_release(), queue.dropped()), (None, 2));
        queue.begin_term(6);
        queue.open(revisions(3, 1));
        assert!(!queue.is_open(revision(3)));
        queue.settle(settlement(3, 1, &[3]));
        assert_eq!((queue.next_release(), queue.dropped()), (None, 3));
    }

    #[test]
    fn the_end_of_a_term_drops_everything() {
        let mut queue = serving();
        queue.open(revisions(1, 1));
        queue.settle(settlement(9, 0, &[2, 3]));
        let release = queue.next_release().expect("two are closed");
        queue.settle(settlement(9, 0, &[4]));
        queue.end_term();
        assert!(!queue.is_open(revision(1)) && !queue.is_pending(revision(2), M));
        queue.begin_term(6);
        queue.answered(release.number, M, true);
        assert_eq!((queue.next_release(), queue.queued(M)), (None, 0));
    }

    #[test]
    fn one_call_at_a_time_and_each_is_bounded() {
        let mut queue = serving();
        for sequence in 0..RELEASE_BATCH_MAX as u64 + 1 {
            queue.released(&[(revision(sequence), on_m())]);
        }
        let first = queue.next_release().expect("there are some");
        assert_eq!(first.revisions.len(), RELEASE_BATCH_MAX);
        assert_eq!(queue.next_release(), None);
        queue.answered(first.number, M, true);
        let second = queue.next_release().expect("one is left");
        queue.answered(first.number, M, true);
        assert!(queue.is_pending(second.revisions[0], M));
        queue.answered(second.number, M, true);
        assert!(!queue.is_pending(second.revisions[0], M));
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let mut queue = serving();
        let records: Vec<_> = (0..QUEUED_MAX as u64 + 3)
            .map(|sequence| (revision(sequence), on_m()))
            .collect();
        queue.released(&records);
        assert_eq!((queue.queued(M), queue.dropped()), (QUEUED_MAX, 3));
    }

    #[test]
    fn a_release_that_a_broken_link_left_behind_stays_pending_until_a_later_one_did_it() {
        let mut queue = serving();
        queue.settle(settlement(9, 0, &[1]));
        let lost = queue.next_release().expect("it is closed");
        queue.settle(settlement(9, 0, &[2]));
        queue.member_down(M);
        assert_eq!((queue.next_release(), queue.dropped()), (None, 1));
        assert!(queue.is_pending(revision(1), M) && !queue.is_pending(revision(2), M));
        queue.answered(lost.number, M, true);
        queue.member_up(M);
        let again = queue.next_release().expect("the next link carries it");
        assert_eq!(again.revisions, lost.revisions);
        queue.answered(again.number, M, true);
        assert!(!queue.is_pending(revision(1), M));
    }
}
