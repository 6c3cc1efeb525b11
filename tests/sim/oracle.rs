//! What must never happen: the invariants A1 to A11, checked while it runs.
//!
//! It sees each entry as each leader applies it, each request that a member executed, and each
//! reply, and keeps what must hold of them across crashes. What is checked elsewhere: A7 and A11 by
//! the checker of histories; A8 by the bounded queues themselves; A9 by all of it, as clocks drift
//! and processes pause.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::{FxHashMap, FxHashSet};
use tolerex::group::Configuration;
use tolerex::ids::{Fence, Key, MemberId, Revision};
use tolerex::metadata::command::{
    Applied, Change, Command, Operation, OperationResult, StepResult,
};
use tolerex::metadata::message_index::Entry;
use tolerex::metadata::replica_sets::ReplicaSet;
use tolerex::rpc::message::{Refusal, Request, Response, StoreResult};

use crate::census::Census;

/// An applied entry, and who applied it first.
struct Seen {
    term: u64,
    hash: u64,
    by: usize,
}

/// The state of the checks.
#[derive(Default)]
pub struct Oracle {
    /// What went wrong first.
    pub violation: Option<String>,
    tolerance: u8,
    log: BTreeMap<u64, Seen>,
    /// The terms that were served, and by whom.
    terms: BTreeMap<u64, (usize, u32)>,
    /// Digests of the state at an index.
    digests: BTreeMap<u64, (u64, usize)>,
    /// The copies that were acknowledged, and in which term.
    copies: FxHashMap<(Revision, MemberId), u64>,
    /// The term of the entry that replaced or deleted a revision.
    replaced: FxHashMap<Revision, u64>,
    /// Members on whose disks bits were turned: what they hold is not certain.
    pub rotten: FxHashSet<MemberId>,
    /// What happened how often.
    pub census: Census,
    /// The copies that must be there after a crash, unless their release was handed in.
    kept: BTreeMap<MemberId, BTreeSet<Revision>>,
    /// The copies whose release was handed to the member, executed or not.
    leaving: FxHashSet<(Revision, MemberId)>,
    /// The copies that were given up.
    released: FxHashSet<(Revision, MemberId)>,
    /// What each message is, by the longest log.
    current: FxHashMap<Key, (Revision, ReplicaSet)>,
    /// For which key a revision was stored.
    keys: FxHashMap<Revision, Key>,
    /// At which index a revision was applied.
    applied: FxHashMap<Revision, u64>,
    /// The highest fence that a member obeyed.
    fences: FxHashMap<MemberId, Fence>,
    /// The id that a member's name has.
    names: FxHashMap<String, MemberId>,
    /// The terms in which members have executed requests.
    obeyed: BTreeSet<u64>,
    /// The only leader is on an older copy of its disk.
    older: Option<Older>,
    /// It was so once.
    was_rolled_back: bool,
}

/// What holds of the only leader on an older copy of its disk, until its log differs.
struct Older {
    /// Up to here the log is the same.
    applied: u64,
    /// What its messages are was looked up.
    is_known: bool,
}

impl Oracle {
    /// For messages with so many copies.
    pub fn new(tolerance: u8) -> Oracle {
        Oracle {
            tolerance,
            ..Oracle::default()
        }
    }

    /// Something is wrong.
    pub fn fail(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// A leader applies an entry; true if none did so before.
    pub fn applies(&mut self, by: usize, index: u64, term: u64, data: &[u8]) -> bool {
        let hash = hash(data);
        let is_other = |seen: &Seen| (seen.term, seen.hash) != (term, hash);
        if self.log.get(&index).is_some_and(is_other)
            && self.older.take_if(|older| older.applied < index).is_some()
        {
            // From here on the log is another one.
            self.log.split_off(&index);
        }
        if let Some(seen) = self.log.get(&index) {
            if (seen.term, seen.hash) != (term, hash) {
                let (first, other) = (seen.by, seen.term);
                self.fail(format!(
                    "A3: at index {index} leader {by} applies an entry of term {term}, leader \
                     {first} another one of term {other}"
                ));
            }
            return false;
        }
        self.log.insert(index, Seen { term, hash, by });
        match Command::decode(data) {
            Ok(command) if command.term == term => self.check_command(index, &command),
            // R2: it takes no effect.
            Ok(_) => {}
            Err(error) => self.fail(format!("entry {index} is not understood: {error}")),
        }
        true
    }

    fn check_command(&mut self, index: u64, command: &Command) {
        for operation in command.operations() {
            let Operation::Set {
                revision, replicas, ..
            } = operation
            else {
                continue;
            };
            let members = replicas.as_slice();
            let distinct: BTreeSet<_> = members.iter().collect();
            if distinct.len() != members.len() {
                self.fail(format!("A2: {revision} has a member twice: {members:?}"));
            }
            if members.len() < usize::from(self.tolerance) {
                self.fail(format!("A1: {revision} has {} copies", members.len()));
            }
            for member in members {
                let copy = (*revision, *member);
                match self.copies.get(&copy) {
                    None => self.fail(format!("A1: {revision} on {member} was not acknowledged")),
                    Some(term) if *term != command.term => {
                        let term = *term;
                        self.fail(format!(
                            "R9: {revision} on {member} was acknowledged in term {term}, its \
                             entry is of term {}",
                            command.term
                        ));
                    }
                    Some(_) => {}
                }
                if self.released.contains(&copy) {
                    self.fail(format!(
                        "A10: {revision} on {member} was released, index {index} lists it"
                    ));
                }
            }
            if self.applied.insert(*revision, index).is_some() {
                self.fail(format!("{revision} is in the log twice"));
            }
        }
    }

    /// What the messages of an entry are, once it was applied for the first time.
    pub fn applied(&mut self, term: u64, data: &[u8], find: impl Fn(&Key) -> Option<Entry>) {
        let Ok(command) = Command::decode(data) else {
            return;
        };
        for operation in command.operations() {
            let (Operation::Set { key, .. } | Operation::Delete { key, .. }) = operation;
            let found = find(key).map(|entry| (entry.revision, entry.replicas));
            let now = found.map(|(revision, _)| revision);
            let before = match found {
                Some(found) => self.current.insert(key.clone(), found),
                None => self.current.remove(key),
            };
            if let Some((before, _)) = before
                && now != Some(before)
            {
                self.replaced.insert(before, term);
            }
        }
    }

    /// An entry was applied: a registration may have given a name another id (R11).
    pub fn registered(&mut self, data: &[u8], applied: &Applied) {
        let Applied::Registered { retired } = applied else {
            return;
        };
        let Ok(command) = Command::decode(data) else {
            return;
        };
        let (Change::RegisterMember(registration) | Change::AdmitMember { registration, .. }) =
            command.change
        else {
            return;
        };
        if let Some(retired) = retired
            && self.listed(*retired).next().is_some()
        {
            let name = &registration.name;
            self.fail(format!(
                "R11: {name} came with a new id while {retired} holds messages"
            ));
        }
        self.names.insert(registration.name, registration.id);
    }

    /// The id that a member's name has, by the longest log.
    pub fn id_of(&self, name: &str) -> Option<MemberId> {
        self.names.get(name).copied()
    }

    /// The revisions that the metadata lists for a member, by the longest log.
    pub fn listed(&self, member: MemberId) -> impl Iterator<Item = Revision> {
        let current = self.current.values();
        let listed = current.filter(move |(_, replicas)| replicas.contains(member));
        listed.map(|(revision, _)| *revision)
    }

    /// What an entry came to, where it was applied first.
    pub fn came_to(&mut self, term: u64, applied: &Applied) {
        match applied {
            Applied::Expired { released, .. } => {
                for (revision, _) in released {
                    self.census.saw("message expires");
                    self.replaced.insert(*revision, term);
                    self.current.retain(|_, (current, _)| current != revision);
                }
            }
            Applied::Transacted { results, .. } => {
                for result in results {
                    match result {
                        StepResult::Done(OperationResult::Mismatch { .. }) => {
                            self.census.saw("condition refused");
                        }
                        StepResult::Done(OperationResult::NotApplied { .. }) => {
                            self.census.saw("transaction refused");
                        }
                        StepResult::Done(OperationResult::Repeated(_)) => {
                            self.census.saw("transaction repeated");
                        }
                        StepResult::Done(_) | StepResult::Got(_) => {}
                    }
                }
            }
            Applied::Write { results, .. } => {
                let is_repeated =
                    |one: &OperationResult| matches!(one, OperationResult::Repeated(_));
                if results.iter().any(is_repeated) {
                    self.census.saw("token repeated");
                }
            }
            Applied::Repeated(_) => self.census.saw("token repeated"),
            Applied::Resumed { .. } => self.census.saw("bulk goes on by its token"),
            _ => {}
        }
    }

    /// Who takes part, as a leader has applied it.
    pub fn configured(&mut self, configuration: &Configuration) {
        if configuration.is_joint() {
            self.census.saw("group configuration joint");
        }
    }

    /// The state of a leader at an index.
    pub fn digest(&mut self, by: usize, index: u64, digest: u64) {
        let (known, first) = *self.digests.entry(index).or_insert((digest, by));
        if known != digest {
            self.fail(format!(
                "A3: at index {index} the states of leaders {first} and {by} differ"
            ));
        }
    }

    /// The only leader starts on an older copy of its disk, with all that it had applied by then.
    pub fn rolled_back(&mut self, applied: u64) {
        self.digests.split_off(&(applied + 1));
        let is_known = false;
        self.older = Some(Older { applied, is_known });
        self.was_rolled_back = true;
    }

    /// A leader has applied all that its log held at its election. After a return to an older copy,
    /// that is what messages are.
    pub fn leads(&mut self, find: impl Fn(&Key) -> Option<Entry>) {
        let Some(older) = self.older.as_mut().filter(|older| !older.is_known) else {
            return;
        };
        older.is_known = true;
        self.current.clear();
        for key in self.keys.values() {
            if let Some(entry) = find(key) {
                self.replaced.remove(&entry.revision);
                let found = (entry.revision, entry.replicas);
                self.current.insert(key.clone(), found);
            }
        }
    }

    /// A leader serves a term from now on.
    pub fn serves(&mut self, by: usize, epoch: u32, term: u64) {
        if !self.terms.contains_key(&term) {
            self.census.saw("election");
        }
        // The only leader on an older copy may lead a term again in which it had sent nothing.
        if self.was_rolled_back && !self.obeyed.contains(&term) {
            self.terms.insert(term, (by, epoch));
        }
        let (first, start) = *self.terms.entry(term).or_insert((by, epoch));
        if (first, start) != (by, epoch) {
            self.fail(format!(
                "A4: term {term} is served by leader {first} (start {start}) and {by} (start \
                 {epoch})"
            ));
        }
    }

    /// A request is handed to a member: a release may have its effect from now on. Its term must be
    /// served (R5), and what it names was given up in this term, or replaced by an entry of it: of
    /// what was applied before, nothing is released (R14).
    pub fn delivered(&mut self, member: MemberId, request: &Request) {
        if let Request::Release(release) = request {
            self.census.saw("release");
            let term = release.fence.term;
            if !self.terms.contains_key(&term) {
                self.fail(format!(
                    "R5: a release of term {term}, which nobody serves yet"
                ));
            }
            let is_due = |revision: &&Revision| {
                revision.term() == term || self.replaced.get(*revision) == Some(&term)
            };
            if let Some(revision) = release.revisions.iter().find(|one| !is_due(one)) {
                self.fail(format!(
                    "R14: {revision} is released in term {term}, and was replaced in term {:?}",
                    self.replaced.get(revision)
                ));
            }
            let revisions = release.revisions.iter();
            self.leaving
                .extend(revisions.map(|revision| (*revision, member)));
        }
    }

    /// A member answered a request: it is executed.
    pub fn executed(&mut self, member: MemberId, request: &Request, response: &Response) {
        match (request, response) {
            (Request::Store(store), Response::Store(results)) => {
                self.obeyed(member, store.fence);
                for (record, result) in store.records.iter().zip(results) {
                    self.keys.insert(record.revision, record.key.clone());
                    if *result == StoreResult::Stored {
                        let copy = (record.revision, member);
                        self.copies.insert(copy, store.fence.term);
                        self.kept.entry(member).or_default().insert(record.revision);
                    }
                }
            }
            (Request::Release(release), Response::Release) => {
                self.obeyed(member, release.fence);
                for revision in &release.revisions {
                    self.released(*revision, member);
                }
            }
            (_, Response::Refused(Refusal::StaleFence { .. })) => self.census.saw("fence refused"),
            _ => {}
        }
    }

    fn released(&mut self, revision: Revision, member: MemberId) {
        self.released.insert((revision, member));
        let Some(key) = self.keys.get(&revision) else {
            return;
        };
        let is_listed = self
            .current
            .get(key)
            .is_some_and(|(now, set)| *now == revision && set.contains(member));
        if is_listed {
            self.fail(format!(
                "A10: {revision} on {member} is released, and is what {key} is"
            ));
        }
    }

    fn obeyed(&mut self, member: MemberId, fence: Fence) {
        self.obeyed.insert(fence.term);
        let highest = self.fences.entry(member).or_insert(fence);
        if fence < *highest {
            let highest = *highest;
            self.fail(format!(
                "A4: member {member} obeys fence {fence} after {highest}"
            ));
        } else {
            *highest = fence;
        }
    }

    /// A member was started again: what it acknowledged must be there.
    pub fn restarted(&mut self, member: MemberId, holds: impl Fn(Revision) -> bool) {
        if self.rotten.contains(&member) {
            return;
        }
        let is_lost = |revision: &&Revision| {
            !self.leaving.contains(&(**revision, member)) && !holds(**revision)
        };
        let lost = self
            .kept
            .get(&member)
            .and_then(|kept| kept.iter().find(is_lost));
        if let Some(revision) = lost.copied() {
            self.fail(format!("A6: member {member} lost {revision} in a crash"));
        }
    }

    /// A client is told that its write is stored, by a leader that has applied so much.
    pub fn acknowledged(&mut self, revision: Revision, applied: u64) {
        match self.applied.get(&revision) {
            Some(index) if *index <= applied => {}
            _ => self.fail(format!(
                "A1: {revision} is acknowledged and was not applied"
            )),
        }
    }
}

fn hash(data: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in data {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash
}
