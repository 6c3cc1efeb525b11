//! A batch of requests as a value that events step: the write path, the read path, bulk writes.
//! Pure.
//!
//! The worker that owns a [`Coordinator`] hands it [`Event`]s and carries out the [`Effect`]s it
//! gets back, until one of them is [`Effect::Done`]; then the value is finished and is dropped.
//! Nothing here blocks, sends or looks at a clock, so the same code runs step by step in tests.
//!
//! ```text
//!  writes   Start ─> choose members ─> Store … ────────────┐
//!                ┌── failed, refused, late: another member ─┤ StoreAnswered, Tick
//!                └──────────────────────────────────────────┤
//!                                                           │ every run of messages has its
//!                                                           v copies, or failed
//!      nothing to propose ─> Settle, Done <────────────── Propose
//!                                                           ├─> Applied        ─> Done: stored …
//!                                                           ├─> NotProposed    ─> Settle, Done
//!                                                           ├─> Superseded     ─> Done: failed
//!                                                           ├─> OutcomeUnknown ─> Done: unknown
//!                                                           └─> deadline       ─> Done: unknown
//!
//!  reads    Start ─> ConfirmRead ─> ReadConfirmed ─> LookUp ─> LookedUp ─┬────> Fetch … ─> Done
//!                               └─> ReadRefused ─> Done ^    Reserve <──┴──> ^    │
//!                                                       └─ "no such revision" ────┘
//!
//!  where,   Start ─> ConfirmRead ─> ReadConfirmed ─> LookUp ─> LookedUp ─> Done
//!  count, ttl, list                               └> Ask    ─> Told     ─> Done
//!
//!  transaction   as writes; Applied ─> Fetch … ─> Done if it reads what others wrote
//!
//!  bulk     Start ─> Propose(ReserveIds) ─> Applied ─> write batches, some at a time ─> Done
//! ```
//!
//! What the driver owes, beyond carrying out effects in their order:
//! * **Tags.** A tag pairs an event with its effect; it is unique within the coordinator. Events
//!   that come late, twice or after `Done` are harmless: an unknown tag is passed over.
//! * **Stores.** Each [`Effect::Store`] ends exactly once: answered, link lost, or not sent. At
//!   that moment the driver calls `cluster.settle(member, charge.records, charge.bytes)`, whether
//!   the coordinator is still there or not, and `cluster.answered` if it was an answer. The
//!   coordinator itself never ends the charge of a store it emitted; it reports late members to the
//!   cluster.
//! * **Order on a link.** A release that is queued after a store reaches the member after it, or on
//!   a later link, whose fence refuses the store (R8). So copies can be given up before their store
//!   is answered.
//! * **Settlements.** A [`Settlement`] goes to `ReleaseQueue::settle`: that of [`Effect::Settle`]
//!   at once; that of [`Effect::Propose`] when the entry is applied, even if the coordinator was
//!   done before (R6: a client's deadline closes nothing). It is dropped when the proposal was not
//!   proposed (the coordinator then emits `Settle`) or the term has ended.
//! * **Holds.** From an [`Effect::Propose`] that `reads` to `Done` the driver holds what is
//!   released (`ReleaseQueue::hold`), so that the records which the entry lists can be fetched
//!   after it.
//! * **Room.** What was granted to an [`Effect::Reserve`] is held until the replies of `Done` are
//!   handed on, or the coordinator is dropped.
//! * **Tokens.** A command that carries one is given its time as it is proposed
//!   (`Command::set_time`), which never goes back within a term.
//! * **Time.** A `Tick` comes no later than [`Coordinator::next_deadline`].
//!
//! Invariants: `Done` is emitted exactly once (A7 rests on it). `OK` is said only after `tolerance`
//! distinct members acknowledged to this batch and `apply` said so (A1, A2, R9). A revision is sent
//! to a member at most once (R8 holds without looking). Every copy that may exist and is in no
//! proposed set is in a settlement (A10).

pub mod bulk;
pub mod cache;
pub mod events;
pub mod inquiry;
pub mod read;
pub mod release;
pub mod write;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod scripts;
#[cfg(test)]
mod testing;

use std::time::Duration;

use crate::clock::Instant;
use crate::cluster::Cluster;
use crate::error::Failure;
use crate::ids::{Key, Revision};
use crate::metadata::command::Change;
use crate::metadata::once::{Once, OnceChange, TokenRefusal, WINDOW_MS_MAX};
use crate::metadata::replica_sets::ReplicaSet;
use crate::metadata::tokens::Outcome;
use crate::protocol::reply::{MemberState, ReplicaStatus, Reply};
use crate::protocol::request::{Batch, Step, Write};

pub use bulk::BulkWrite;
pub use events::{
    Answer, Charge, Effect, Event, Flaw, Found, Question, Revisions, Settlement, Tag, Told,
};
pub use inquiry::Inquiry;
pub use read::ReadBatch;
pub use write::WriteBatch;

/// Times and sizes. The defaults are those of DESIGN.md §3 and §4.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A store not answered after this, plus the time its bytes need, is late and another member is
    /// asked: 300 ms. Half of it and a slow `fdatasync` doubles the traffic; twice of it is felt.
    pub copy_timeout: Duration,
    /// A fetch not answered after this is late and another replica is asked as well: 300 ms.
    pub hedge_after: Duration,
    /// How fast large payloads are taken to arrive, in bytes a second: 64 MiB/s, half of a 1 Gbit/s
    /// network. A fetch that had to wait for room is late after `hedge_after` and the time for its
    /// bytes and those ahead of it. Lower and a silent member is noticed late, higher and busy ones
    /// are asked twice.
    pub hedge_bytes_per_second: u64,
    /// How fast a member's queue is taken to drain, in bytes a second: 10 MB/s, a slow disk or a
    /// 100 Mbit/s network. Higher and big messages are late on such machines.
    pub drain_bytes_per_second: u64,
    /// Copies that did not come within this, plus the time their bytes need, are not waited for: 2
    /// s. From the proposal on, the same time again is left for the commit.
    pub write_timeout: Duration,
    /// A read ends after this, and the time that large replies need: 2 s.
    pub read_timeout: Duration,
    /// How often members without room in flight are looked at again: 50 ms. Each look costs a step
    /// of every waiting batch.
    pub room_retry: Duration,
    /// Messages that share one choice of members, unless the batch is large: 32. More, and few
    /// members do all the work of a batch; fewer, and its frames and group commits get small.
    pub run_messages_max: usize,
    /// Payload bytes asked for in one fetch, unless it is one message: 8 MiB, a quarter of a frame.
    pub fetch_bytes_max: u64,
    /// Payload bytes read in one batch, unless it is one message: 8 MiB, as in a batch of writes.
    /// The requests behind them are answered in a later batch.
    pub read_bytes_max: u64,
    /// Bytes that a reply holds for each byte of its payload while it is encoded: 1 if the payload
    /// is handed on as it is.
    pub reply_growth: u64,
    /// Replies of so many bytes need no room reserved: 64 KiB, what a connection may hold anyway.
    pub unreserved_bytes_max: u64,
    /// Messages in one part of a bulk write: 4,096, as in any batch.
    pub part_messages_max: usize,
    /// Payload bytes in one part of a bulk write, unless it is one message: 8 MiB.
    pub part_bytes_max: u64,
    /// Parts of a bulk write in flight: 4, so that members, journal and network work at one time.
    pub parts_in_flight_max: usize,
    /// How long an idempotency token is remembered: 2 minutes. Clients do not go on repeating a
    /// write for longer; it costs memory for each token of that time.
    pub dedup_window: Duration,
    /// Payload bytes of a bulk write in flight, unless it is one part: 32 MiB, half of what may be
    /// in flight to one member.
    pub bulk_bytes_in_flight_max: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            copy_timeout: Duration::from_millis(300),
            hedge_after: Duration::from_millis(300),
            hedge_bytes_per_second: 64 << 20,
            drain_bytes_per_second: 10_000_000,
            write_timeout: Duration::from_secs(2),
            read_timeout: Duration::from_secs(2),
            room_retry: Duration::from_millis(50),
            run_messages_max: 32,
            fetch_bytes_max: 8 * 1024 * 1024,
            read_bytes_max: 8 * 1024 * 1024,
            reply_growth: 1,
            unreserved_bytes_max: 64 * 1024,
            part_messages_max: 4096,
            part_bytes_max: 8 * 1024 * 1024,
            parts_in_flight_max: 4,
            dedup_window: Duration::from_secs(120),
            bulk_bytes_in_flight_max: 32 * 1024 * 1024,
        }
    }
}

impl Limits {
    /// A change that takes effect at most once; its time is set as it is proposed.
    fn once(&self, change: OnceChange) -> Change {
        Change::Once(Once {
            now_ms: 0,
            window_ms: self.window_ms(),
            change,
        })
    }

    /// For how long tokens are remembered, as commands carry it.
    fn window_ms(&self) -> u64 {
        let window_ms = u64::try_from(self.dedup_window.as_millis()).unwrap_or(u64::MAX);
        window_ms.clamp(1, WINDOW_MS_MAX)
    }

    /// The time that `bytes` need to go through a slow member, in its queue or from it to a client.
    pub fn drain_time(&self, bytes: u64) -> Duration {
        let rate = self.drain_bytes_per_second.max(1);
        Duration::from_micros(bytes.saturating_mul(1_000_000) / rate)
    }
}

/// Any batch that needs coordination.
#[derive(Debug)]
pub enum Coordinator {
    /// Writes, and transactions.
    Write(WriteBatch),
    /// GET.
    Read(ReadBatch),
    /// WHERE, COUNT, TTL, and listings.
    Inquiry(Inquiry),
    /// Bulk SET.
    Bulk(BulkWrite),
}

impl Coordinator {
    /// How many revisions the batch needs; the driver opens them as it allots them (R6).
    pub fn revisions_needed(batch: &Batch) -> u64 {
        match batch {
            Batch::Writes(writes) => writes
                .iter()
                .filter(|write| matches!(write, Write::Set { .. }))
                .count() as u64,
            Batch::Transaction(transaction) => transaction
                .steps
                .iter()
                .filter(|step| matches!(step, Step::Write(Write::Set { .. })))
                .count() as u64,
            Batch::Bulk { count, .. } => *count,
            Batch::Reads(_) | Batch::Where(_) | Batch::Count => 0,
            Batch::Ttl(_) | Batch::List(_) => 0,
            Batch::Status | Batch::Group(_) => 0,
        }
    }

    /// A coordinator for reads that arrived at `since`, after which it was confirmed that this
    /// leader led, in `term`.
    pub fn confirmed(keys: Vec<Key>, term: u64, since: Instant, limits: Limits) -> Coordinator {
        Coordinator::Read(ReadBatch::confirmed(keys, term, since, limits))
    }

    /// A coordinator for the batch, unless it needs none (`Status`, `Group`). `revisions` holds
    /// exactly as many as needed; its first tells the term that the leader serves in.
    pub fn new(
        batch: Batch,
        revisions: Revisions,
        tolerance: u8,
        limits: Limits,
    ) -> Option<Coordinator> {
        assert_eq!(
            revisions.count,
            Coordinator::revisions_needed(&batch),
            "a batch gets as many revisions as it needs"
        );
        let term = revisions.first.term();
        Some(match batch {
            Batch::Writes(writes) => {
                Coordinator::Write(WriteBatch::new(writes, revisions, tolerance, limits))
            }
            Batch::Reads(keys) => Coordinator::Read(ReadBatch::new(keys, term, limits)),
            Batch::Where(key) => Coordinator::Inquiry(Inquiry::location(key, limits)),
            Batch::Count => Coordinator::Inquiry(Inquiry::new(Question::Count, limits)),
            Batch::Ttl(key) => Coordinator::Inquiry(Inquiry::new(Question::Expiry(key), limits)),
            Batch::List(request) => {
                Coordinator::Inquiry(Inquiry::new(Question::List(request), limits))
            }
            Batch::Transaction(transaction) => {
                let (kind, steps) = write::Kind::of(transaction);
                let batch = WriteBatch::of_kind(0, steps, kind, revisions, tolerance, limits);
                Coordinator::Write(batch)
            }
            Batch::Bulk {
                count,
                payload,
                token,
            } => {
                let bulk = BulkWrite::new(count, payload, token, revisions, tolerance, limits);
                Coordinator::Bulk(bulk)
            }
            Batch::Status | Batch::Group(_) => return None,
        })
    }

    /// Takes one event and appends what is to be done.
    pub fn step(
        &mut self,
        event: Event,
        now: Instant,
        cluster: &mut Cluster,
        effects: &mut Vec<Effect>,
    ) {
        match self {
            Coordinator::Write(batch) => batch.step(event, now, cluster, effects),
            Coordinator::Read(batch) => batch.step(event, now, cluster, effects),
            Coordinator::Inquiry(inquiry) => inquiry.step(event, now, cluster, effects),
            Coordinator::Bulk(bulk) => bulk.step(event, now, cluster, effects),
        }
    }

    /// A `Tick` is due no later than this, once it was started.
    pub fn next_deadline(&self) -> Instant {
        match self {
            Coordinator::Write(batch) => batch.next_deadline(),
            Coordinator::Read(batch) => batch.next_deadline(),
            Coordinator::Inquiry(inquiry) => inquiry.next_deadline(),
            Coordinator::Bulk(bulk) => bulk.next_deadline(),
        }
    }

    /// How many answers, one at least, must come before a step can bring it forward, if all of
    /// them are good news: so that its worker is woken once and not for each.
    pub fn answers_awaited(&self) -> usize {
        match self {
            Coordinator::Write(batch) => batch.answers_awaited(),
            Coordinator::Read(_) | Coordinator::Inquiry(_) | Coordinator::Bulk(_) => 1,
        }
    }

    /// Whether `Done` was emitted.
    pub fn is_done(&self) -> bool {
        match self {
            Coordinator::Write(batch) => batch.is_done(),
            Coordinator::Read(batch) => batch.is_done(),
            Coordinator::Inquiry(inquiry) => inquiry.is_done(),
            Coordinator::Bulk(bulk) => bulk.is_done(),
        }
    }
}

/// The end of time: the deadline of what is done.
const NEVER: Instant = Instant::from_nanos(u64::MAX);

/// The first reply to a write, for its repeat.
fn repeated(outcome: Outcome) -> Reply {
    match outcome {
        Outcome::Stored { revision, created } => Reply::Stored { revision, created },
        Outcome::ExpirySet => Reply::ExpirySet,
        Outcome::Mismatch(revision) => Reply::Mismatch { revision },
        Outcome::NotApplied { position } => Reply::Failed(Failure::NotApplied {
            position: position as usize,
        }),
        Outcome::Read => unreachable!("a read is done anew"),
        Outcome::Deleted => Reply::Deleted,
        Outcome::NotFound => Reply::NotFound,
        Outcome::Bulk { first, last } => Reply::BulkStored { first, last },
    }
}

/// Why the token of a write kept it from being done.
fn refused(refusal: TokenRefusal) -> Failure {
    match refusal {
        TokenRefusal::TooMany => Failure::TooManyTokens,
        TokenRefusal::InUse => Failure::TokenInUse,
        TokenRefusal::Expired => Failure::TokenExpired,
        TokenRefusal::Used => Failure::TokenUsed,
    }
}

/// The replicas as people read them; a member that is no longer registered is shown by its id.
fn replica_statuses(
    cluster: &Cluster,
    revision: Revision,
    replicas: &ReplicaSet,
    now: Instant,
) -> Vec<ReplicaStatus> {
    replicas
        .as_slice()
        .iter()
        .map(|&id| match cluster.member(id) {
            Some(member) => ReplicaStatus {
                name: member.name.clone(),
                address: member.address.clone(),
                state: cluster.copy_state(id, revision, now),
            },
            None => ReplicaStatus {
                name: id.to_string(),
                address: "unknown".to_owned(),
                state: MemberState::Down,
            },
        })
        .collect()
}
