//! WHERE and COUNT: questions that the metadata alone answer, once leadership is confirmed as for
//! any read (R3, R4). Pure.

use super::{Effect, Event, Limits, NEVER, Tag, replica_statuses};
use crate::clock::Instant;
use crate::cluster::Cluster;
use crate::error::Failure;
use crate::ids::Key;
use crate::protocol::reply::Reply;

/// The tag of the only look-up.
const LOOKUP: Tag = Tag(0);

/// One WHERE or COUNT.
#[derive(Debug)]
pub struct Inquiry {
    limits: Limits,
    /// The key of a WHERE.
    key: Option<Key>,
    deadline: Instant,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    New,
    Confirming,
    Reading,
    Done,
}

impl Inquiry {
    /// Where the copies of a message are.
    pub fn location(key: Key, limits: Limits) -> Inquiry {
        Inquiry {
            limits,
            key: Some(key),
            deadline: Instant::default(),
            phase: Phase::New,
        }
    }

    /// How many messages there are.
    pub fn count(limits: Limits) -> Inquiry {
        Inquiry {
            limits,
            key: None,
            deadline: Instant::default(),
            phase: Phase::New,
        }
    }

    /// Takes one event and appends what is to be done.
    pub fn step(
        &mut self,
        event: Event,
        now: Instant,
        cluster: &mut Cluster,
        effects: &mut Vec<Effect>,
    ) {
        let reply = match event {
            Event::Start if self.phase == Phase::New => {
                self.deadline = now + self.limits.read_timeout;
                self.phase = Phase::Confirming;
                effects.push(Effect::ConfirmRead);
                return;
            }
            Event::ReadConfirmed if self.phase == Phase::Confirming => {
                self.phase = Phase::Reading;
                effects.push(match &self.key {
                    Some(key) => Effect::LookUp {
                        tag: LOOKUP,
                        keys: vec![key.clone()],
                    },
                    None => Effect::Count,
                });
                return;
            }
            Event::ReadRefused(failure) if self.phase == Phase::Confirming => {
                Reply::Failed(failure)
            }
            Event::LookedUp { found, .. } if self.phase == Phase::Reading => {
                match found.into_iter().next().flatten() {
                    None => Reply::NotFound,
                    Some(found) => Reply::Location {
                        revision: found.entry.revision,
                        bytes: u64::from(found.entry.length),
                        replicas: replica_statuses(cluster, &found.entry.replicas, now),
                    },
                }
            }
            Event::Counted(count) if self.phase == Phase::Reading => Reply::Count(count),
            Event::Tick if self.next_deadline() <= now => Reply::Failed(Failure::ReadTimedOut),
            Event::Start
            | Event::Tick
            | Event::ReadConfirmed
            | Event::ReadRefused(_)
            | Event::LookedUp { .. }
            | Event::Counted(_)
            | Event::StoreAnswered { .. }
            | Event::FetchAnswered { .. }
            | Event::Applied { .. }
            | Event::NotProposed { .. }
            | Event::Superseded { .. }
            | Event::OutcomeUnknown { .. } => return,
        };
        self.phase = Phase::Done;
        effects.push(Effect::Done(vec![reply]));
    }

    /// See [`super::Coordinator::next_deadline`].
    pub fn next_deadline(&self) -> Instant {
        match self.phase {
            Phase::Confirming | Phase::Reading => self.deadline,
            Phase::New | Phase::Done => NEVER,
        }
    }

    /// Whether `Done` was emitted.
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }
}
