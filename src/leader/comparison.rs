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
