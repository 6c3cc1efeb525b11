//! What goes into a coordinator and what comes out: events, effects, and what they carry. Pure.
//!
//! The driver's duties for each effect are in the header of the module above.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::Failure;
use crate::ids::{Fence, Key, MemberId, Revision};
use crate::metadata::command::{Applied, Command};
use crate::metadata::message_index::Entry;
use crate::protocol::reply::{KeyPage, Reply};
use crate::protocol::request::ListRequest;
use crate::rpc::message::{FetchResult, Refusal, StoreRecord, StoreResult};

/// Pairs an answer with the effect that asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u64);

/// Hands out tags. The upper half names the part of a bulk write, 0 for everything else.
#[derive(Debug)]
pub(super) struct Tags {
    next: u64,
}

const TAG_PART_SHIFT: u32 = 32;

impl Tags {
    pub(super) fn of_part(part: u32) -> Tags {
        Tags {
            next: u64::from(part) << TAG_PART_SHIFT,
        }
    }

    pub(super) fn next(&mut self) -> Tag {
        let tag = Tag(self.next);
        self.next += 1;
        tag
    }
}

impl Tag {
    pub(super) fn part(self) -> u32 {
        (self.0 >> TAG_PART_SHIFT) as u32
    }
}

/// What a store adds to what is in flight to its member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// Records.
    pub records: u64,
    /// Payload bytes.
    pub bytes: u64,
}

/// Consecutive revisions of one term, allotted to one batch; open until they are settled (R6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revisions {
    /// The lowest; tells the term even if there are none.
    pub first: Revision,
    /// How many.
    pub count: u64,
}

impl Revisions {
    /// The revision at `position`, which is below `count`.
    pub fn at(&self, position: u64) -> Revision {
        assert!(position < self.count, "revision was not allotted");
        Revision::from_u64(self.first.as_u64() + position)
    }

    /// `count` of them from `position` on.
    pub(super) fn part(&self, position: u64, count: u64) -> Revisions {
        assert!(position + count <= self.count, "revision was not allotted");
        Revisions {
            first: Revision::from_u64(self.first.as_u64() + position),
            count,
        }
    }
}

/// Closes the revisions of a batch and names the copies it gave up, for the release queue (R7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// No longer open.
    pub closed: Revisions,
    /// Copies that may exist and that no applied metadata lists.
    pub given_up: Vec<(Revision, MemberId)>,
}

/// How a call to a member ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// One result for each thing asked for, in order.
    Results(Vec<T>),
    /// The whole request was refused and had no effect.
    Refused(Refusal),
    /// The link broke: it may or may not have been executed, and may still be until the next link
    /// has been used.
    LinkLost,
    /// It was never handed to a link: no link, or its queue is full.
    NotSent,
}

/// What the metadata holds for a key, and its payload if the cache has that revision.
#[derive(Clone, Debug)]
pub struct Found {
    /// Revision, replicas, length.
    pub entry: Entry,
    /// The payload of exactly that revision.
    pub cached: Option<Bytes>,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// First of all, exactly once.
    Start,
    /// Time has passed.
    Tick,
    /// The end of an [`Effect::Store`].
    StoreAnswered {
        /// Of the effect.
        tag: Tag,
        /// One result for each record.
        answer: Answer<StoreResult>,
    },
    /// The end of an [`Effect::Fetch`].
    FetchAnswered {
        /// Of the effect.
        tag: Tag,
        /// One result for each revision.
        answer: Answer<FetchResult>,
    },
    /// Leadership was confirmed after the effect, and its read index is applied (R4).
    ReadConfirmed,
    /// Leadership could not be confirmed.
    ReadRefused(Failure),
    /// The answer to [`Effect::LookUp`], from applied metadata, one for each key.
    LookedUp {
        /// Of the effect.
        tag: Tag,
        /// In the order of the keys.
        found: Vec<Option<Found>>,
    },
    /// The answer to [`Effect::Reserve`]: whether there is room. It may take any time.
    Reserved {
        /// False: too many wait for room, and this batch is not to wait.
        granted: bool,
    },
    /// The answer to [`Effect::Ask`].
    Told(Told),
    /// The proposed entry was applied.
    Applied {
        /// Of the proposal.
        tag: Tag,
        /// What apply decided.
        applied: Applied,
    },
    /// It was not proposed and never will be (R2).
    NotProposed {
        /// Of the proposal.
        tag: Tag,
        /// Why, for the client: not the leader, or busy.
        failure: Failure,
    },
    /// A later term's no-op was applied and the entry is not before it: it definitely failed (R15).
    Superseded {
        /// Of the proposal.
        tag: Tag,
        /// Why, for the client: not the leader.
        failure: Failure,
    },
    /// It was proposed, and nobody will learn what became of it.
    OutcomeUnknown {
        /// Of the proposal.
        tag: Tag,
    },
}

/// What the driver does next.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Send the records to a member, with its fence; answered by [`Event::StoreAnswered`].
    Store {
        /// For the answer.
        tag: Tag,
        /// To whom.
        member: MemberId,
        /// The records to store. All members that get the same records share one list of them.
        records: Arc<Vec<StoreRecord>>,
        /// Charged already; the driver ends it with the call.
        charge: Charge,
    },
    /// Ask a member for records; answered by [`Event::FetchAnswered`].
    Fetch {
        /// For the answer.
        tag: Tag,
        /// Whom.
        member: MemberId,
        /// Which records.
        revisions: Vec<Revision>,
    },
    /// Propose the command, once, in its own term only; answered by `Applied`, `NotProposed`,
    /// `Superseded` or `OutcomeUnknown`.
    Propose {
        /// For the answer.
        tag: Tag,
        /// The entry.
        command: Command,
        /// To settle when the entry is applied.
        settlement: Settlement,
        /// Whether records that the entry lists are read after it: from here to `Done` the driver
        /// holds what is released.
        reads: bool,
    },
    /// Close revisions and release copies now: nothing of them was or will be proposed.
    Settle(Settlement),
    /// Confirm leadership by a request issued from now on; answered by `ReadConfirmed` or
    /// `ReadRefused`.
    ConfirmRead,
    /// Look keys up in the applied metadata; answered by [`Event::LookedUp`].
    LookUp {
        /// For the answer.
        tag: Tag,
        /// Which.
        keys: Vec<Key>,
    },
    /// Reserve room for replies, which the driver holds until they are handed on; answered by
    /// [`Event::Reserved`], once for each coordinator at most.
    Reserve {
        /// Bytes of the replies as encoded.
        bytes: u64,
        /// Payload bytes that will be fetched from each member.
        fetches: Vec<(MemberId, u64)>,
    },
    /// Ask the applied metadata; answered by [`Event::Told`].
    Ask(Question),
    /// A payload was read that the cache may keep.
    Cache {
        /// Its name.
        revision: Revision,
        /// The bytes, verified by the member that sent them.
        payload: Bytes,
    },
    /// A listed copy is not what it should be: log it (a later issue repairs it).
    CorruptCopy {
        /// Who holds it.
        member: MemberId,
        /// The record.
        revision: Revision,
        /// The message.
        key: Key,
        /// What is wrong.
        flaw: Flaw,
    },
    /// A member has executed a fence of a higher term: this leader stops serving, or isolates the
    /// member if no leader can have made that fence.
    Deposed {
        /// Who said so.
        member: MemberId,
        /// The fence.
        highest: Fence,
    },
    /// One reply for each request (one in all for a bulk write): finished.
    Done(Vec<Reply>),
}

/// What the applied metadata alone answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// How many messages there are.
    Count,
    /// When a message expires.
    Expiry(Key),
    /// Which keys there are.
    List(ListRequest),
}

/// The answer to a [`Question`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// How many messages there are.
    Count(u64),
    /// `None`: there is no such message; else in how many milliseconds it expires, if it does.
    Expiry(Option<Option<u64>>),
    /// A page of keys.
    Keys(KeyPage),
}

/// What is wrong with a listed copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// The member has no such revision.
    Missing,
    /// Its checksum does not match, or it cannot be read.
    Damaged,
    /// It has another key or another length than the metadata say.
    Foreign,
}

impl Event {
    /// Whether it only adds to what [`super::Coordinator::answers_awaited`] counts: a store that
    /// was taken whole. Anything else changes what is to be done.
    pub fn is_good_news(&self) -> bool {
        match self {
            Event::StoreAnswered {
                answer: Answer::Results(results),
                ..
            } => results.iter().all(|result| *result == StoreResult::Stored),
            _ => false,
        }
    }

    /// The tag of the effect that it answers.
    pub(super) fn tag(&self) -> Option<Tag> {
        match self {
            Event::StoreAnswered { tag, .. }
            | Event::FetchAnswered { tag, .. }
            | Event::LookedUp { tag, .. }
            | Event::Applied { tag, .. }
            | Event::NotProposed { tag, .. }
            | Event::Superseded { tag, .. }
            | Event::OutcomeUnknown { tag } => Some(*tag),
            Event::Start
            | Event::Tick
            | Event::ReadConfirmed
            | Event::ReadRefused(_)
            | Event::Reserved { .. }
            | Event::Told(_) => None,
        }
    }
}
