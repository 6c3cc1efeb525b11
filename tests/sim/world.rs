//! The world of one run: the queue of events by time, all nodes, and what passes between them.
//!
//! Each event is handled at once by one node; what the real code then wants of others comes out of
//! it through the [`Outbox`] and becomes further events. Events of a process that has ended are
//! dropped, those of one that stands still wait. Equal seeds give equal runs: times and choices
//! come from generators of the seed, nothing from the system's clock, threads, or the order of a
//! map.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use fastrand::Rng;
use parking_lot::Mutex;
use tolerex::disk::mem::MemFileSystem;
use tolerex::group::OutgoingSnapshot;
use tolerex::ids::{MemberId, PeerId};
use tolerex::rpc::link::Completion;

use crate::census::Census;
use crate::client::Client;
use crate::copies::OlderCopy;
use crate::events::{Event, Outbox, Scheduled};
use crate::history::History;
use crate::leader::Leader;
use crate::member::Member;
use crate::net::{MS, Net};
use crate::oracle::Oracle;
use crate::plan::{Kind, Plan};
use crate::trace::Trace;

/// How long the peers wait for a leader before they elect another, in ticks: 300 to 600 ms.
pub const TICKS: std::ops::RangeInclusive<usize> = 6..=12;

/// Events of one run: more means that it runs in circles.
const EVENTS_MAX: u64 = 2_000_000;

/// A call to a member without an outcome.
pub struct PendingCall {
    /// On which link.
    pub link: usize,
    /// Told the outcome.
    pub completion: Completion,
}

/// A snapshot on its way to a peer.
pub struct Transfer {
    /// The rest of it.
    pub snapshot: OutgoingSnapshot,
    /// Which attempt.
    pub number: u64,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Clients work, there are faults.
    Faults,
    /// No more faults; everything must come to rest.
    Calm,
    /// All that was stored is read again.
    Reading,
    /// It is over.
    Over,
}

/// One run.
pub struct World {
    pub plan: Plan,
    pub now: u64,
    sequence: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    pub trace: Trace,
    pub outbox: Outbox,
    pub oracle: Arc<Mutex<Oracle>>,
    pub net: Net,
    pub leaders: Vec<Leader>,
    pub members: Vec<Member>,
    pub clients: Vec<Client>,
    pub history: History,
    /// Calls to members, by number.
    pub calls: BTreeMap<u64, PendingCall>,
    pub next_call: Arc<AtomicU64>,
    /// Snapshots under way, by sender and receiver.
    pub transfers: BTreeMap<(usize, usize), Transfer>,
    /// For tickets, requests and transfers.
    pub next_number: u64,
    /// The voters with which the group began.
    pub founders: Vec<PeerId>,
    /// For what the nodes do.
    pub rng: Rng,
    /// For faults.
    pub chance: Rng,
    /// For what becomes of a member's disk.
    pub lot: Rng,
    /// For the older copy of a leader's disk.
    pub lots: Rng,
    /// That copy, once it was kept.
    pub older: Option<OlderCopy>,
    pub phase: Phase,
    /// Since when there are no faults, or reading began.
    pub phase_since: u64,
}

/// What a run came to.
pub struct Report {
    /// Of the trace.
    pub hash: u64,
    /// Lines of the trace.
    pub events: u64,
    /// What went wrong.
    pub violation: Option<String>,
    /// The last lines of the trace.
    pub tail: String,
    /// Requests of clients, and how many of them were answered as done.
    pub operations: (usize, usize),
    /// What happened how often.
    pub census: Census,
}

impl World {
    /// Before anything happens.
    pub fn new(plan: Plan, prints: bool) -> World {
        let seed = plan.seed;
        let mut rng = Rng::with_seed(seed ^ 0x51);
        let mut chance = Rng::with_seed(seed ^ 0xfa);
        let nodes = plan.leaders + plan.members + plan.clients;
        let mut drift = |has: bool| {
            let ppm = chance.i64(-100_000..=100_000);
            if has { ppm } else { 0 }
        };
        let has_clock = plan.has(Kind::Clock);
        let mut ticks: Vec<usize> = TICKS.collect();
        rng.shuffle(&mut ticks);
        if plan.has_rivals {
            ticks[1] = ticks[0];
        }
        ticks.truncate(plan.leaders);
        let leaders = ticks.into_iter().enumerate().map(|(number, ticks)| {
            let id = PeerId(rng.u64(1..));
            Leader::new(id, number >= plan.voters, ticks, drift(has_clock))
        });
        let leaders: Vec<Leader> = leaders.collect();
        let founders = leaders[..plan.voters].iter().map(|one| one.id).collect();
        let members = (0..plan.members).map(|number| Member {
            fs: MemFileSystem::new(),
            name: format!("member-{number}"),
            id: None,
            epoch: 0,
            running: None,
            paused_until: 0,
            slow_until: 0,
            ends_in_power: false,
            rng: Rng::with_seed(seed ^ 0x3e ^ (number as u64) << 8),
            ppm: drift(has_clock),
            registered: vec![0; plan.leaders],
            unmounted: None,
        });
        let members = members.collect();
        let clients = (0..plan.clients)
            .map(|number| Client::new(number, &plan))
            .collect();
        World {
            now: 0,
            sequence: 0,
            queue: BinaryHeap::new(),
            trace: Trace::new(prints),
            outbox: Outbox::default(),
            oracle: Arc::new(Mutex::new(Oracle::new(plan.tolerance))),
            net: Net::new(nodes, plan.delay_us, seed ^ 0x7e),
            leaders,
            members,
            clients,
            history: History::default(),
            calls: BTreeMap::new(),
            next_call: Arc::new(AtomicU64::new(1)),
            transfers: BTreeMap::new(),
            next_number: 0,
            founders,
            rng,
            chance,
            lot: Rng::with_seed(seed ^ 0xd1),
            lots: Rng::with_seed(seed ^ 0xc0),
            older: None,
            phase: Phase::Faults,
            phase_since: 0,
            plan,
        }
    }

    /// Runs to the end.
    pub fn run(mut self) -> Report {
        for leader in 0..self.plan.leaders {
            self.schedule(0, Event::StartLeader { leader });
        }
        for member in 0..self.plan.members {
            self.schedule(0, Event::StartMember { member });
        }
        for client in 0..self.plan.clients {
            self.after(300 * MS, Event::Next { client });
        }
        if self.plan.has_older_copy {
            let at = self.lots.u64(500..900);
            self.after(at * MS, Event::KeepCopy);
        }
        self.after(500 * MS, Event::Fault);
        if self.plan.loses_disks {
            self.after(700 * MS, Event::Disk);
        }
        self.after(self.plan.faults_until_ms * MS, Event::Calm);
        while self.phase != Phase::Over {
            let Some(Reverse(next)) = self.queue.pop() else {
                self.fail("nothing is left to happen".to_owned());
                break;
            };
            self.now = next.at;
            if let Some(until) = self.paused_until(&next.event) {
                self.schedule(until, next.event);
                continue;
            }
            self.perform(next.event);
            self.drain_outbox();
            if self.trace.events > EVENTS_MAX {
                self.fail("there is no end to it".to_owned());
            }
            if self.oracle.lock().violation.is_some() {
                break;
            }
        }
        self.finish()
    }

    fn finish(mut self) -> Report {
        let mut violation = self.oracle.lock().violation.take();
        if violation.is_none()
            && !self.has_lost_writes()
            && let Err(fault) = crate::linearize::check(&self.history)
        {
            violation = Some(format!("history: {fault}"));
        }
        let operations = self.history.operations();
        let is_done = |outcome: &crate::history::Outcome| {
            use crate::history::Outcome::{Failed, Unknown};
            !matches!(outcome, Failed | Unknown)
        };
        let done = operations
            .iter()
            .filter(|one| is_done(&one.outcome))
            .count();
        for operation in operations {
            use crate::history::{Command, Outcome};
            if operation.outcome == Outcome::Unknown {
                self.saw("history unknown");
            }
            if let (Command::Bulk { .. }, Outcome::Ids { .. }) =
                (&operation.command, &operation.outcome)
            {
                self.saw("history bulk");
            }
        }
        if self.plan.has(Kind::Clock) {
            self.saw("clock drift");
        }
        let operations = (operations.len(), done);
        let census = std::mem::take(&mut self.oracle.lock().census);
        // What refers to each other in circles is taken apart, or its memory is lost.
        for leader in 0..self.leaders.len() {
            self.end_leader(leader);
        }
        Report {
            hash: self.trace.hash,
            events: self.trace.events,
            violation,
            tail: self.trace.tail(),
            operations,
            census,
        }
    }

    /// Something happened that is counted.
    pub fn saw(&self, what: &'static str) {
        self.oracle.lock().census.saw(what);
    }

    /// A line of the trace.
    pub fn note(&mut self, what: std::fmt::Arguments<'_>) {
        self.trace.note(self.now, what);
    }

    /// Something is wrong.
    pub fn fail(&self, what: String) {
        self.oracle.lock().fail(what);
    }

    /// An event at a time.
    pub fn schedule(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        let at = at.max(self.now);
        self.queue.push(Reverse(Scheduled {
            at,
            sequence: self.sequence,
            event,
        }));
    }

    /// An event after so many nanoseconds.
    pub fn after(&mut self, nanos: u64, event: Event) {
        self.schedule(self.now + nanos, event);
    }

    /// An event after so long, between half and all of it.
    pub fn about(&mut self, duration: Duration, event: Event) {
        let nanos = duration.as_nanos() as u64;
        let nanos = self.rng.u64(nanos / 2..=nanos);
        self.after(nanos, event);
    }

    /// A number that was not given before.
    pub fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// The number of a member among the nodes.
    pub fn member_node(&self, member: usize) -> usize {
        self.plan.leaders + member
    }

    /// The number of a client among the nodes.
    pub fn client_node(&self, client: usize) -> usize {
        self.plan.leaders + self.plan.members + client
    }

    /// The member with this id.
    pub fn member_of(&self, id: MemberId) -> Option<usize> {
        self.members.iter().position(|member| member.id == Some(id))
    }
}
