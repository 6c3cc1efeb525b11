//! Compares what the metadata lists for a member with what the member has, after it lost records.
//!
//! A member says at its registration that records may be lost, or holds fewer than the metadata
//! lists, or a read found that it lacks one. Then the `house` thread asks it for every copy that it
//! should have, a shard of the message index and [`HOLDS_REVISIONS_MAX`] revisions at a time, one
//! request under way, one member after the other. What the member does not have counts as missing
//! (`cluster::missing`).
//!
//! Only copies are asked for that the metadata lists, so the member has acknowledged each of them.
//! A message may be overwritten while the question is under way: what an answer calls missing is
//! looked up again after it was noted, and taken back if it is not listed any more. A release that
//! is applied later takes it back itself.
//!
//! A failed request ends the pass; it begins anew when the member is connected. A pass of 10
//! million messages takes a minute. The member answers from its index: a record that is there and
//! damaged is found when it is read.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use log::{info, warn};
use parking_lot::Mutex;

use crate::ids::{Key, MemberId, Revision};
use crate::leader::state::Shared;
use crate::metadata::state::Shards;
use crate::rpc::message::{HOLDS_REVISIONS_MAX, HoldsRequest, Request, Response};

/// How long a member may take to answer. It looks 4,096 times into its index; more means that its
/// readers are busy.
const HOLDS_TIMEOUT: Duration = Duration::from_secs(10);

/// A copy that is asked for.
#[derive(Clone)]
struct Copy {
    key: Key,
    revision: Revision,
}

/// The answer to the request under way: for each copy whether it is there; `None` if it failed.
type Answer = Arc<Mutex<Option<Option<Vec<bool>>>>>;

/// The pass over one member's copies.
struct Pass {
    member: MemberId,
    /// The report of lost records that it answers; see `MemberView::incomplete`.
    report: u64,
    /// The start of the member that is asked.
    start: Option<u64>,
    /// The next shard of the message index to look at.
    shard: usize,
    /// Copies of the shards before it that were not asked for yet: those of one shard at most.
    waiting: VecDeque<Copy>,
    /// The copies that are asked for now, and where the answer arrives.
    asked: Option<(Vec<Copy>, Answer)>,
    compared: u64,
    missing: u64,
}

/// What the `house` thread remembers of the comparisons of a term.
#[derive(Default)]
pub struct Comparisons {
    term: u64,
    /// The report that was answered last, by member.
    answered: BTreeMap<MemberId, u64>,
    pass: Option<Pass>,
}

impl Comparisons {
    /// Does the next step, without waiting for anything.
    pub fn round(&mut self, shared: &Arc<Shared>, term: u64) {
        if self.term != term {
            *self = Comparisons {
                term,
                ..Comparisons::default()
            };
        }
        let Some(mut pass) = self.pass.take().or_else(|| self.next(shared)) else {
            return;
        };
        match pass.step(shared, term) {
            Step::Goes => self.pass = Some(pass),
            Step::Failed => {}
            Step::Complete => {
                let Pass {
                    member,
                    compared,
                    missing,
                    ..
                } = pass;
                self.answered.insert(member, pass.report);
                let mut cluster = shared.view.cluster.lock();
                cluster.copies_compared(member, pass.start);
                drop(cluster);
                match missing {
                    0 => info!("member {member} has all of its {compared} copies"),
                    _ => warn!(
                        "member {member} lacks {missing} of its {compared} copies: they count as \
                         missing"
                    ),
                }
                shared.view.ring();
            }
        }
    }

    /// A pass over a member that reported losses and is connected.
    fn next(&self, shared: &Shared) -> Option<Pass> {
        let cluster = shared.view.cluster.lock();
        let mut members = cluster.members();
        let member = members.find(|member| {
            let answered = self.answered.get(&member.id).copied().unwrap_or(0);
            member.says_what_it_holds
                && member.incomplete > answered
                && member.liveness.is_connected()
        })?;
        Some(Pass {
            member: member.id,
            report: member.incomplete,
            start: member.start,
            shard: 0,
            waiting: VecDeque::new(),
            asked: None,
            compared: 0,
            missing: 0,
        })
    }
}

/// What became of a step.
enum Step {
    Goes,
    Complete,
    Failed,
}

impl Pass {
    fn step(&mut self, shared: &Arc<Shared>, term: u64) -> Step {
        if let Some((asked, answer)) = self.asked.take() {
            let Some(told) = answer.lock().take() else {
                self.asked = Some((asked, answer));
                return Step::Goes;
            };
            let Some(held) = told else {
                return Step::Failed;
            };
            self.note(shared, &asked, &held);
        }
        let shards = shared.view.metadata.shard_count();
        while self.waiting.is_empty() && self.shard < shards {
            self.gather(shared);
        }
        if self.waiting.is_empty() {
            return Step::Complete;
        }
        self.ask(shared, term)
    }

    /// Takes the copies of the next shard.
    fn gather(&mut self, shared: &Shared) {
        let metadata = &shared.view.metadata;
        let (member, waiting) = (self.member, &mut self.waiting);
        metadata.read_shard(self.shard, |shard| {
            let ids = shard.ids().map(|(id, slot)| (Key::Id(id), slot));
            let words = shard.words();
            let words = words.map(|(word, slot)| (Key::Word(word.into()), slot));
            for (key, slot) in ids.chain(words) {
                let replicas = metadata.read_sets(|sets| sets.set(slot.set));
                if replicas.contains(member) {
                    waiting.push_back(Copy {
                        key,
                        revision: slot.revision,
                    });
                }
            }
        });
        self.shard += 1;
    }

    fn ask(&mut self, shared: &Arc<Shared>, term: u64) -> Step {
        let Some(link) = shared.links.link(self.member) else {
            return Step::Failed;
        };
        let count = self.waiting.len().min(HOLDS_REVISIONS_MAX);
        let copies: Vec<Copy> = self.waiting.drain(..count).collect();
        let request = Request::Holds(HoldsRequest {
            fence: shared.fence(term, &*link),
            revisions: copies.iter().map(|copy| copy.revision).collect(),
        });
        let answer = Answer::default();
        let (told, view) = (Arc::clone(&answer), Arc::clone(&shared.view));
        let member = self.member;
        let deadline = shared.clock.now() + HOLDS_TIMEOUT;
        let sent = link.call(
            term,
            request,
            deadline,
            Box::new(move |result| {
                let held = match result {
                    Ok(Response::Holds(held)) => Some(held),
                    other => {
                        info!("member {member} does not say what it holds: {other:?}");
                        None
                    }
                };
                *told.lock() = Some(held);
                view.ring();
            }),
        );
        if let Err(error) = sent {
            info!("member {member} is not asked what it holds: {error}");
            return Step::Failed;
        }
        self.asked = Some((copies, answer));
        Step::Goes
    }

    fn note(&mut self, shared: &Shared, asked: &[Copy], held: &[bool]) {
        self.compared += asked.len() as u64;
        for (copy, _) in asked.iter().zip(held).filter(|(_, held)| !**held) {
            if shared
                .view
                .copy_missing(self.member, copy.revision, &copy.key)
            {
                self.missing += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::clock::{Clock, Instant, ManualClock};
    use crate::cluster::{Cluster, Strategy};
    use crate::coordinator::Limits;
    use crate::disk::log::LogOptions;
    use crate::disk::mem::MemFileSystem;
    use crate::group::{Bootstrap, GroupOptions, Parts, PeerAddress, StateMachine, Timing};
    use crate::ids::CallId;
    use crate::leader::links::{MemberLink, MemberLinks};
    use crate::leader::machine::Machine;
    use crate::leader::state::View;
    use crate::metadata::command::{Change, Command, Operation, Registration};
    use crate::metadata::replica_sets::ReplicaSet;
    use crate::protocol::reply::MemberState;
    use crate::rpc::link::{CallError, Completion};

    const M: MemberId = MemberId(1);
    const OTHER: MemberId = MemberId(2);
    const TERM: u64 = 2;
    /// The nonce of the member's start.
    const START: u64 = 77;

    /// The only link, and the questions on it that are not answered.
    #[derive(Default)]
    struct Asked(Mutex<Vec<(Vec<Revision>, Completion)>>);

    impl MemberLink for Asked {
        fn number(&self) -> u64 {
            1
        }

        fn name(&self) -> &str {
            "member-1"
        }

        fn call(
            &self,
            _: u64,
            request: Request,
            _: Instant,
            completion: Completion,
        ) -> Result<CallId, CallError> {
            let Request::Holds(request) = request else {
                panic!("{request:?}");
            };
            self.0.lock().push((request.revisions, completion));
            Ok(CallId(1))
        }

        fn close(&self) {}
    }

    struct OneLink(Arc<Asked>);

    impl MemberLinks for OneLink {
        fn link(&self, _: MemberId) -> Option<Arc<dyn MemberLink>> {
            Some(Arc::clone(&self.0) as _)
        }

        fn set(&self, _: MemberId, _: &str, _: &str) {}

        fn remove(&self, _: MemberId) {}

        fn has_numbered(&self, _: u64) -> bool {
            true
        }
    }

    /// A leader's metadata, which entries change, and what compares it with a member.
    struct Rig {
        shared: Arc<Shared>,
        machine: Machine,
        index: u64,
        asked: Arc<Asked>,
        comparisons: Comparisons,
    }

    impl Rig {
        /// Two members are registered, and messages 1 to 3 have their copies on the first one.
        fn new() -> Rig {
            let clock: Arc<dyn Clock> = Arc::new(ManualClock::default());
            let view = Arc::new(View::new(Cluster::new(Strategy::LeastLoaded, 1)));
            let options = GroupOptions {
                fs: Arc::new(MemFileSystem::new()),
                dir: PathBuf::from("leader"),
                clock: Arc::clone(&clock),
                bootstrap: Bootstrap::New,
                log: LogOptions::default(),
                snapshot_bytes: u64::MAX,
                timing: Timing::default(),
                asks_peers: false,
                asks_members: false,
                on_failure: Box::new(|error| panic!("{error}")),
            };
            let parts = Parts::open(&options, Machine::new(Arc::clone(&view))).unwrap();
            let asked = Arc::new(Asked::default());
            let shared = Shared::new(
                clock,
                Limits::default(),
                Arc::clone(&view),
                parts.handle,
                Arc::new(OneLink(Arc::clone(&asked))),
                0,
                PeerAddress::default(),
            );
            let mut rig = Rig {
                shared: Arc::new(shared),
                machine: Machine::new(view),
                index: 1,
                asked,
                comparisons: Comparisons::default(),
            };
            for id in [M, OTHER] {
                let name = format!("member-{id}");
                rig.apply(Change::RegisterMember(Registration {
                    id,
                    name,
                    address: "localhost:1".to_owned(),
                    zone: String::new(),
                    incarnation: 1,
                    nonce: START,
                }));
            }
            let sets = (1..=3).map(|id| set(id, id, M));
            rig.apply(Change::Write(sets.collect()));
            let mut cluster = rig.shared.view.cluster.lock();
            cluster.connected(M, Instant::default());
            cluster.started(M, START, true);
            cluster.report_incomplete(M);
            drop(cluster);
            rig
        }

        fn apply(&mut self, change: Change) {
            self.index += 1;
            let bytes = Command { term: TERM, change }.encode();
            self.machine.apply(self.index, TERM, &bytes).unwrap();
        }

        fn round(&mut self) {
            self.comparisons.round(&self.shared, TERM);
        }

        /// The next copies that the member is asked for, if any, and the answer's way.
        fn question(&mut self) -> Option<(Vec<Revision>, Completion)> {
            self.round();
            self.asked.0.lock().pop()
        }

        /// Answers until no more is asked; how often it was.
        fn answer_all(&mut self, is_held: impl Fn(Revision) -> bool) -> usize {
            let mut count = 0;
            while let Some((asked, answer)) = self.question() {
                let held = asked.into_iter().map(&is_held).collect();
                answer(Ok(Response::Holds(held)));
                count += 1;
            }
            count
        }

        fn is_missing(&self, sequence: u64) -> bool {
            let cluster = self.shared.view.cluster.lock();
            let state = cluster.copy_state(M, revision(sequence), Instant::default());
            state == MemberState::Missing
        }

        fn has_all(&self) -> bool {
            self.shared.view.cluster.lock().has_all(M, START)
        }
    }

    fn revision(sequence: u64) -> Revision {
        Revision::new(TERM, sequence)
    }

    fn set(id: u64, sequence: u64, member: MemberId) -> Operation {
        Operation::Set {
            key: Key::Id(id),
            revision: revision(sequence),
            replicas: ReplicaSet::new(&[member]).unwrap(),
            length: 5,
        }
    }

    #[test]
    fn what_is_overwritten_or_deleted_meanwhile_is_not_called_missing() {
        let mut rig = Rig::new();
        let mut changes = 0;
        while let Some((asked, answer)) = rig.question() {
            // Overwritten elsewhere or in place, or deleted, while the question is under way: the
            // member forgets them before it answers.
            for one in &asked {
                let operation = match one.as_u64() & 0xff {
                    1 => set(1, 11, OTHER),
                    2 => set(2, 12, M),
                    3 => Operation::Delete { key: Key::Id(3) },
                    _ => continue,
                };
                rig.apply(Change::Write(vec![operation]));
                changes += 1;
            }
            let held = asked.iter().map(|one| *one == revision(12)).collect();
            answer(Ok(Response::Holds(held)));
        }
        assert_eq!(changes, 3);
        for sequence in [1, 2, 3, 11, 12] {
            assert!(!rig.is_missing(sequence), "{sequence}");
        }
        let present = rig.shared.view.cluster.lock().member(M).unwrap().present();
        assert_eq!(present, (1, 5));
        assert!(rig.has_all(), "what it lost is not listed any more");
        assert!(rig.question().is_none(), "once for each report");
    }

    #[test]
    fn a_member_has_all_when_what_it_lost_is_listed_no_more() {
        let mut rig = Rig::new();
        assert!(!rig.has_all(), "not compared yet");
        assert!(rig.answer_all(|one| one != revision(2)) > 0);
        assert!(rig.is_missing(2) && !rig.is_missing(1) && !rig.has_all());
        rig.apply(Change::Write(vec![set(2, 12, OTHER)]));
        assert!(!rig.is_missing(2) && rig.has_all());
        let view = Arc::clone(&rig.shared.view);
        assert!(!view.cluster.lock().has_all(M, START + 1), "another start");
        // A read misses a copy that was there: it is not known what else is lost.
        assert!(view.copy_missing(M, revision(3), &Key::Id(3)));
        rig.apply(Change::Write(vec![Operation::Delete { key: Key::Id(3) }]));
        assert!(!rig.has_all());
        // It registers again and says that it lost some: they are compared anew.
        view.cluster.lock().report_incomplete(M);
        let (asked, answer) = rig.question().expect("it is asked");
        assert_eq!(asked, [revision(1)]);
        // It starts once more before it has answered.
        view.cluster.lock().started(M, START + 1, true);
        answer(Ok(Response::Holds(vec![true])));
        assert!(rig.question().is_none());
        assert!(rig.has_all(), "of the start that was asked");
        assert!(!view.cluster.lock().has_all(M, START + 1));
        // What was found in another term says nothing.
        view.cluster.lock().forget_missing();
        assert!(!rig.has_all());
    }
}
