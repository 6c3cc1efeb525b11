//! WHERE, COUNT, TTL and listings: questions that the metadata alone answer, once leadership is
//! confirmed as for any read (R3, R4). Pure.

use super::{Effect, Event, Limits, NEVER, Question, Tag, Told, replica_statuses};
use crate::clock::Instant;
use crate::cluster::Cluster;
use crate::error::Failure;
use crate::ids::Key;
use crate::protocol::reply::Reply;

/// The tag of the only look-up.
const LOOKUP: Tag = Tag(0);

/// One question.
#[derive(Debug)]
pub struct Inquiry {
    limits: Limits,
    about: About,
    deadline: Instant,
    phase: Phase,
}

#[derive(Debug)]
enum About {
    /// Where the copies of a message are.
    Location(Key),
    /// Anything else.
    Other(Question),
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
        Inquiry::about(About::Location(key), limits)
    }

    /// Anything else.
    pub fn new(question: Question, limits: Limits) -> Inquiry {
        Inquiry::about(About::Other(question), limits)
    }

    fn about(about: About, limits: Limits) -> Inquiry {
        Inquiry {
            limits,
            about,
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
                effects.push(match &self.about {
                    About::Location(key) => Effect::LookUp {
                        tag: LOOKUP,
                        keys: vec![key.clone()],
                    },
                    About::Other(question) => Effect::Ask(question.clone()),
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
                        replicas: replica_statuses(
                            cluster,
                            found.entry.revision,
                            &found.entry.replicas,
                            now,
                        ),
                    },
                }
            }
            Event::Told(told) if self.phase == Phase::Reading => match told {
                Told::Count(count) => Reply::Count(count),
                Told::Expiry(None) => Reply::NotFound,
                Told::Expiry(Some(ms)) => Reply::TimeToLive { ms },
                Told::Keys(page) => Reply::Keys(page),
            },
            Event::Tick if self.next_deadline() <= now => Reply::Failed(Failure::ReadTimedOut),
            Event::Start
            | Event::Tick
            | Event::ReadConfirmed
            | Event::ReadRefused(_)
            | Event::LookedUp { .. }
            | Event::Reserved { .. }
            | Event::Told(_)
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
