//! The world of one run: the queue of events by time, all nodes, and what passes between them.
//!
//! Each event is handled at once by one node; what the real code then wants of others comes out of
//! it through the [`Outbox`] and becomes further events. Events of a process that has ended are
//! dropped, those of one that stands still wait. Equal seeds give equal runs: times and choices
//! come
//! from generators of the seed, nothing from the system's clock, threads, or the order of a map.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use fastrand::Rng;
use parking_lot::Mutex;
use tolerex::clock::Instant;
use tolerex::disk::mem::MemFileSystem;
use tolerex::group::{IncomingChunk, OutgoingSnapshot};
use tolerex::ids::{MemberId, PeerId};
use tolerex::protocol::reply::Reply;
use tolerex::protocol::request::Batch;
use tolerex::rpc::link::Completion;
use tolerex::rpc::message::{Request, Response};

use crate::client::Client;
use crate::history::History;
use crate::leader::Leader;
use crate::member::Member;
use crate::net::{MS, Net};
use crate::oracle::Oracle;
use crate::plan::{Kind, Plan};
use crate::trace::Trace;

/// Events of one run: more means that it runs in circles.
const EVENTS_MAX: u64 = 2_000_000;

/// What the real code wants of others, taken out of it behind each event.
pub type Outbox = Arc<Mutex<Vec<Out>>>;

/// See [`Outbox`].
pub enum Out {
    /// Keep a link to this member.
    Dial {
        leader: usize,
        epoch: u32,
        member: MemberId,
    },
    /// Close this link.
    Close { link: usize },
    /// Call a member.
    Call {
        link: usize,
        call: u64,
        request: Arc<Request>,
        deadline: Instant,
        completion: Completion,
    },
    /// A member's answer.
    Answer {
        link: usize,
        call: u64,
        response: Response,
    },
    /// A batch has something to do.
    Woken {
        leader: usize,
        epoch: u32,
        ticket: u64,
    },
    /// A leader's answer to a registration.
    Registered { ends: Ends, response: Response },
    /// What became of a chunk of a snapshot.
    ChunkTaken {
        from: usize,
        to: usize,
        transfer: u64,
        is_taken: bool,
    },
}

/// A member and a leader, each in one of its starts.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub member: usize,
    pub member_epoch: u32,
    pub leader: usize,
    pub leader_epoch: u32,
}

/// What happens.
pub enum Event {
    Tick {
        leader: usize,
        epoch: u32,
    },
    Journal {
        leader: usize,
        epoch: u32,
    },
    Desk {
        leader: usize,
        epoch: u32,
    },
    House {
        leader: usize,
        epoch: u32,
        is_periodic: bool,
    },
    Resume {
        leader: usize,
        epoch: u32,
        ticket: u64,
    },
    Raft {
        from: usize,
        to: usize,
        bytes: Vec<u8>,
    },
    Chunk {
        from: usize,
        to: usize,
        chunk: IncomingChunk,
    },
    ChunkDone {
        from: usize,
        to: usize,
        transfer: u64,
        is_taken: bool,
    },
    Connect {
        leader: usize,
        epoch: u32,
        member: MemberId,
    },
    Break {
        link: usize,
    },
    Request {
        link: usize,
        call: u64,
        request: Arc<Request>,
    },
    Answer {
        link: usize,
        call: u64,
        response: Response,
    },
    CallDue {
        leader: usize,
        epoch: u32,
        call: u64,
    },
    Append {
        member: usize,
        epoch: u32,
    },
    Read {
        member: usize,
        epoch: u32,
    },
    Rest {
        member: usize,
        epoch: u32,
    },
    Beat {
        member: usize,
        epoch: u32,
        leader: usize,
    },
    Register {
        ends: Ends,
    },
    Registered {
        ends: Ends,
        response: Response,
    },
    Next {
        client: usize,
    },
    Submit {
        client: usize,
        request: u64,
        leader: usize,
        batch: Batch,
    },
    Reply {
        client: usize,
        request: u64,
        replies: Option<Vec<Reply>>,
    },
    StartLeader {
        leader: usize,
    },
    StartMember {
        member: usize,
    },
    Fault,
    Calm,
    Look,
}

/// An event in the queue.
struct Scheduled {
    at: u64,
    /// Events of one time happen in the order in which they were scheduled.
    sequence: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Scheduled) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Scheduled) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Scheduled) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

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
    /// For what the nodes do.
    pub rng: Rng,
    /// For faults.
    pub chance: Rng,
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
        let mut ticks: Vec<usize> = (0..plan.leaders).map(|number| 6 + number).collect();
        rng.shuffle(&mut ticks);
        let leaders = ticks.into_iter().map(|ticks| Leader {
            fs: MemFileSystem::new(),
            id: PeerId(rng.u64(1..)),
            epoch: 0,
            running: None,
            paused_until: 0,
            raft_lag: 0,
            last_term: 0,
            slow_until: 0,
            has_lost_names: false,
            ticks,
            ppm: drift(has_clock),
        });
        let leaders: Vec<Leader> = leaders.collect();
        let members = (0..plan.members).map(|number| Member {
            fs: MemFileSystem::new(),
            name: format!("member-{number}"),
            id: None,
            epoch: 0,
            running: None,
            paused_until: 0,
            slow_until: 0,
            has_lost_names: false,
            rng: Rng::with_seed(seed ^ 0x3e ^ (number as u64) << 8),
            ppm: drift(has_clock),
            registered: vec![0; plan.leaders],
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
            rng,
            chance,
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
        self.after(500 * MS, Event::Fault);
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
        let operations = (operations.len(), done);
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
        }
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

    /// Until when the process stands still that the event is for.
    fn paused_until(&self, event: &Event) -> Option<u64> {
        let leader = |leader: usize| self.leaders[leader].paused_until;
        // What came first to a process that stands still need not be looked at first.
        let raft = |leader: usize| {
            let leader = &self.leaders[leader];
            let is_paused = leader.paused_until > self.now;
            leader.paused_until + if is_paused { leader.raft_lag } else { 0 }
        };
        let member = |member: usize| self.members[member].paused_until;
        let until = match event {
            Event::Tick { leader: at, .. } | Event::Raft { to: at, .. } => raft(*at),
            Event::Journal { leader: at, .. }
            | Event::Desk { leader: at, .. }
            | Event::House { leader: at, .. }
            | Event::Resume { leader: at, .. }
            | Event::Chunk { to: at, .. }
            | Event::Connect { leader: at, .. }
            | Event::CallDue { leader: at, .. }
            | Event::Submit { leader: at, .. } => leader(*at),
            Event::ChunkDone { from, .. } => leader(*from),
            Event::Break { link } | Event::Answer { link, .. } => {
                leader(self.net.links[*link].leader)
            }
            Event::Register { ends } => leader(ends.leader),
            Event::Request { link, .. } => member(self.net.links[*link].member),
            Event::Registered { ends, .. } => member(ends.member),
            Event::Append { member: at, .. }
            | Event::Read { member: at, .. }
            | Event::Rest { member: at, .. }
            | Event::Beat { member: at, .. } => member(*at),
            Event::Next { .. } | Event::Reply { .. } | Event::StartLeader { .. } => 0,
            Event::StartMember { .. } | Event::Fault | Event::Calm | Event::Look => 0,
        };
        (until > self.now).then_some(until)
    }

    fn perform(&mut self, event: Event) {
        match event {
            Event::Tick { leader, epoch } => self.tick(leader, epoch),
            Event::Journal { leader, epoch } => self.journal(leader, epoch),
            Event::Desk { leader, epoch } => self.desk(leader, epoch),
            Event::House {
                leader,
                epoch,
                is_periodic,
            } => self.house(leader, epoch, is_periodic),
            Event::Resume {
                leader,
                epoch,
                ticket,
            } => self.resume(leader, epoch, ticket),
            Event::Raft { from, to, bytes } => self.raft(from, to, bytes),
            Event::Chunk { from, to, chunk } => self.chunk(from, to, chunk),
            Event::ChunkDone {
                from,
                to,
                transfer,
                is_taken,
            } => self.chunk_done(from, to, transfer, is_taken),
            Event::Connect {
                leader,
                epoch,
                member,
            } => self.connect(leader, epoch, member),
            Event::Break { link } => self.break_link(link),
            Event::Request {
                link,
                call,
                request,
            } => self.request(link, call, request),
            Event::Answer {
                link,
                call,
                response,
            } => self.answer(link, call, response),
            Event::CallDue {
                leader,
                epoch,
                call,
            } => self.call_due(leader, epoch, call),
            Event::Append { member, epoch } => self.append(member, epoch),
            Event::Read { member, epoch } => self.read(member, epoch),
            Event::Rest { member, epoch } => self.rest(member, epoch),
            Event::Beat {
                member,
                epoch,
                leader,
            } => self.beat(member, epoch, leader),
            Event::Register { ends } => self.register(ends),
            Event::Registered { ends, response } => self.registered(ends, response),
            Event::Next { client } => self.next(client),
            Event::Submit {
                client,
                request,
                leader,
                batch,
            } => self.submit(client, request, leader, batch),
            Event::Reply {
                client,
                request,
                replies,
            } => self.reply(client, request, replies),
            Event::StartLeader { leader } => self.start_leader(leader),
            Event::StartMember { member } => self.start_member(member),
            Event::Fault => self.fault(),
            Event::Calm => self.calm(),
            Event::Look => self.look(),
        }
    }

    /// Makes events of what the real code wants of others.
    fn drain_outbox(&mut self) {
        loop {
            let outs = std::mem::take(&mut *self.outbox.lock());
            if outs.is_empty() {
                return;
            }
            for out in outs {
                self.carry_out(out);
            }
        }
    }

    fn carry_out(&mut self, out: Out) {
        match out {
            Out::Dial {
                leader,
                epoch,
                member,
            } => {
                let event = Event::Connect {
                    leader,
                    epoch,
                    member,
                };
                self.about(Duration::from_millis(2), event);
            }
            Out::Close { link } => self.after(0, Event::Break { link }),
            Out::Call {
                link,
                call,
                request,
                deadline,
                completion,
            } => self.call(link, call, request, deadline, completion),
            Out::Answer {
                link,
                call,
                response,
            } => self.send_answer(link, call, response),
            Out::Woken {
                leader,
                epoch,
                ticket,
            } => {
                let event = Event::Resume {
                    leader,
                    epoch,
                    ticket,
                };
                self.about(Duration::from_micros(20), event);
            }
            Out::Registered { ends, response } => {
                let (from, to) = (ends.leader, self.member_node(ends.member));
                let at = self.net.arrival(from, to, self.now, true);
                self.schedule(at, Event::Registered { ends, response });
            }
            Out::ChunkTaken {
                from,
                to,
                transfer,
                is_taken,
            } => {
                let at = self.net.arrival(to, from, self.now, true);
                let event = Event::ChunkDone {
                    from,
                    to,
                    transfer,
                    is_taken,
                };
                self.schedule(at, event);
            }
        }
    }
}
