//! What the leader does with a client's batch: a run of the coordinator, or an answer at once.
//!
//! A follower answers at once who leads, or passes the batch on ([`forward`]). Between two leaders
//! a batch waits [`LEADER_WAIT`] at most, so that a change of leaders in good order costs its
//! client one answer *not leader*, or none: one that was elected waits for the first entry of its
//! term, one that hands over waits to know who follows it.

use std::sync::Arc;
use std::time::Duration;

use log::debug;

use crate::clock::Instant;
use crate::coordinator::{Coordinator, Limits};
use crate::error::Failure;
use crate::group::ReadConfirmation;
use crate::ids::Key;
use crate::leader::confirmation::Confirmation;
use crate::leader::desk::READ_BYTES_MAX;
use crate::leader::drive::Run;
use crate::leader::forward::{self, InFlight, Onward};
use crate::leader::group_admin;
use crate::leader::state::{Shared, Standing};
use crate::leader::status;
use crate::net::{Handler, Parked, Progress, Waker};
use crate::protocol::reply::Reply;
use crate::protocol::request::{Batch, Step, Write};

/// How long a batch waits for a leader that is about to serve: some syncs. An election that fails
/// takes no longer from it than this.
const LEADER_WAIT: Duration = Duration::from_secs(1);

/// How often such a batch looks whether there is one.
const LEADER_POLL: Duration = Duration::from_millis(5);

/// Executes the batches of clients.
#[derive(Clone)]
pub struct ClientHandler {
    shared: Arc<Shared>,
    limits: Limits,
    /// The way to the active leader, if batches are passed on.
    onward: Option<Arc<dyn Onward>>,
    in_flight: Arc<InFlight>,
}

impl ClientHandler {
    /// For all connections. A follower answers who leads.
    pub fn new(shared: Arc<Shared>) -> ClientHandler {
        ClientHandler {
            limits: shared.limits,
            shared,
            onward: None,
            in_flight: Arc::default(),
        }
    }

    /// A follower passes batches on by `onward`.
    pub fn passing_on(self, onward: Arc<dyn Onward>) -> ClientHandler {
        ClientHandler {
            onward: Some(onward),
            ..self
        }
    }

    /// For what other leaders pass on: it goes no further, and is answered in small parts.
    pub fn for_peers(shared: Arc<Shared>) -> ClientHandler {
        let mut handler = ClientHandler::new(shared);
        handler.limits.read_bytes_max = READ_BYTES_MAX;
        handler
    }

    /// Whether it passes batches on.
    pub fn passes_on(&self) -> bool {
        self.onward.is_some()
    }

    /// Begins a batch about messages, which waits for a leader until `give_up`, or for
    /// [`LEADER_WAIT`] from now on.
    fn serve(&self, batch: Batch, reply_growth: usize, give_up: Option<Instant>) -> Progress {
        let shared = &self.shared;
        // They end here, so nobody who hands over has to wait for them.
        if let (Batch::Reads(keys), Standing::Serves(_)) = (&batch, shared.standing())
            && let Some(replies) = self.read_at_hand(keys, reply_growth)
        {
            return Progress::done(replies);
        }
        // First: whoever hands over says so, then looks whether batches run.
        let running = shared.batch_runs();
        let term = match shared.standing() {
            Standing::Serves(term) => term,
            Standing::Changes => {
                let now = shared.clock.now();
                let give_up = give_up.unwrap_or(now + LEADER_WAIT);
                if now >= give_up {
                    return self.redirect(batch, reply_growth);
                }
                return Progress::Parked(Box::new(AwaitsLeader {
                    handler: self.clone(),
                    batch,
                    reply_growth,
                    give_up,
                    look_at: now + LEADER_POLL,
                }));
            }
            Standing::Follows => return self.redirect(batch, reply_growth),
        };
        let Some(tolerance) = shared.view.metadata.tolerance() else {
            return failed(&batch, Failure::Busy);
        };
        let number = shared.next_batch();
        debug!("batch {number}: {}", describe(&batch));
        let needed = Coordinator::revisions_needed(&batch);
        let Some(revisions) = shared.view.allot(term, needed) else {
            return self.redirect(batch, reply_growth);
        };
        let limits = self.limits_of(reply_growth);
        let coordinator = Coordinator::new(batch, revisions, tolerance, limits)
            .expect("only these need no coordinator");
        Run::new(shared.clone(), coordinator, (number, term), running).go_on()
    }

    fn limits_of(&self, reply_growth: usize) -> Limits {
        Limits {
            reply_growth: reply_growth as u64,
            ..self.limits
        }
    }

    /// The replies to reads that need nobody else, in a group of one.
    fn read_at_hand(&self, keys: &[Key], reply_growth: usize) -> Option<Vec<Reply>> {
        // Before anything is looked up (R4).
        match self.shared.group.confirm_read_at_once() {
            Some(ReadConfirmation::Immediate { .. }) => self.look_at_hand(keys, reply_growth),
            _ => None,
        }
    }

    /// The replies to reads that were confirmed and need nobody else, as those of a [`Coordinator`]
    /// would be: of small messages which are all in the cache. Takes no lock but a shard's of the
    /// metadata and one of the cache.
    fn look_at_hand(&self, keys: &[Key], reply_growth: usize) -> Option<Vec<Reply>> {
        let shared = &self.shared;
        let mut bytes_left = self.limits.unreserved_bytes_max;
        let read = |key| {
            let Some((revision, length)) = shared.view.metadata.record(key) else {
                return Some(Reply::NotFound);
            };
            let reply_bytes = u64::from(length).saturating_mul(reply_growth as u64);
            bytes_left = bytes_left.checked_sub(reply_bytes)?;
            let payload = shared.cache.get(revision)?;
            Some(Reply::Value { revision, payload })
        };
        keys.iter().map(read).collect()
    }

    /// What a follower does: at once, without waiting for an election.
    fn redirect(&self, batch: Batch, reply_growth: usize) -> Progress {
        if let Some(reason) = self.shared.hindrance() {
            return failed(&batch, reason);
        }
        match &self.onward {
            Some(onward) => {
                forward::begin(&self.shared, onward, &self.in_flight, batch, reply_growth)
            }
            None => {
                let leader = self.shared.leader_address();
                failed(&batch, Failure::NotLeader { leader })
            }
        }
    }
}

impl Handler for ClientHandler {
    fn begin(&self, batch: Batch, reply_growth: usize) -> Progress {
        if batch == Batch::Status {
            let status = status::cluster_status(&self.shared);
            return Progress::done(vec![Reply::Status(Box::new(status))]);
        }
        if let Batch::Group(request) = batch {
            return group_admin::begin(&self.shared, request);
        }
        self.serve(batch, reply_growth, None)
    }

    fn confirms_reads(&self) -> bool {
        let shared = &self.shared;
        let serves = matches!(shared.standing(), Standing::Serves(_));
        serves && shared.group.confirm_read_at_once().is_none()
    }

    fn confirm(&self) -> Progress {
        Confirmation::begin(&self.shared)
    }

    fn begin_confirmed(&self, batch: Batch, reply_growth: usize, since: Instant) -> Progress {
        let shared = &self.shared;
        if let (Batch::Reads(keys), Standing::Serves(_)) = (&batch, shared.standing())
            && let Some(replies) = self.look_at_hand(keys, reply_growth)
        {
            return Progress::done(replies);
        }
        let running = shared.batch_runs();
        let (Batch::Reads(_), Standing::Serves(term)) = (&batch, shared.standing()) else {
            return self.begin(batch, reply_growth);
        };
        let number = shared.next_batch();
        debug!("batch {number}: {}", describe(&batch));
        let Batch::Reads(keys) = batch else {
            unreachable!("they are reads");
        };
        let limits = self.limits_of(reply_growth);
        let coordinator = Coordinator::confirmed(keys, term, since, limits);
        Run::new(shared.clone(), coordinator, (number, term), running).go_on()
    }
}

fn failed(batch: &Batch, failure: Failure) -> Progress {
    Progress::done(vec![Reply::Failed(failure); batch.reply_count()])
}

/// A batch between two leaders. It looks again now and then; nobody wakes it.
struct AwaitsLeader {
    handler: ClientHandler,
    batch: Batch,
    reply_growth: usize,
    give_up: Instant,
    look_at: Instant,
}

impl Parked for AwaitsLeader {
    fn deadline(&self) -> Instant {
        self.look_at
    }

    fn arm(&mut self, _wake: Waker) {}

    fn resume(self: Box<Self>) -> Progress {
        self.handler
            .serve(self.batch, self.reply_growth, Some(self.give_up))
    }
}

/// A batch in a line of the log: what it is, and the first key by which to find it.
fn describe(batch: &Batch) -> String {
    let first = |write: &Write| match write {
        Write::Set { key, .. } => format!("SET {key}"),
        Write::Delete { key, .. } => format!("DEL {key}"),
        Write::Expire { key, .. } => format!("EXPIRE {key}"),
    };
    match batch {
        Batch::Writes(writes) => {
            let first = writes.first().map(first).unwrap_or_default();
            format!("{} writes from {first}", writes.len())
        }
        Batch::Reads(keys) => {
            let first = keys.first().map(Key::to_string).unwrap_or_default();
            format!("{} reads from GET {first}", keys.len())
        }
        Batch::Bulk { count, payload, .. } => format!("{count} SET of {} bytes", payload.len()),
        Batch::Transaction(transaction) => {
            let first = transaction.steps.first().map(|step| match step {
                Step::Write(write) => first(write),
                Step::Get(key) => format!("GET {key}"),
            });
            let first = first.unwrap_or_default();
            format!("a transaction of {} from {first}", transaction.steps.len())
        }
        Batch::Ttl(key) => format!("TTL {key}"),
        Batch::List(request) => format!("LIST {:?}", request.prefix),
        Batch::Where(key) => format!("WHERE {key}"),
        Batch::Count => "COUNT".to_owned(),
        Batch::Status => "STATUS".to_owned(),
        Batch::Group(request) => format!("GROUP {request:?}"),
    }
}
