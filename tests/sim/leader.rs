//! One leader: the real group node, journal, snapshot desk, state machine, batches and
//! housekeeping, stepped by events instead of threads.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tolerex::clock::{Clock, Instant};
use tolerex::cluster::{Cluster, Strategy};
use tolerex::coordinator::Limits;
use tolerex::disk::fs::FileSystem;
use tolerex::disk::log::LogOptions;
use tolerex::disk::mem::MemFileSystem;
use tolerex::group::core::Persist;
use tolerex::group::identity::Identity;
use tolerex::group::{
    Bootstrap, Configuration, GroupError, GroupOptions, Leadership, Parts, PeerAddress,
    SnapshotCheck, SnapshotSource, StateMachine, Timing,
};
use tolerex::ids::{CallId, MemberId, PeerId};
use tolerex::leader::handler::ClientHandler;
use tolerex::leader::housekeeping::Housekeeping;
use tolerex::leader::links::{MemberLink, MemberLinks};
use tolerex::leader::machine::Machine;
use tolerex::leader::members::MemberService;
use tolerex::leader::state::{Shared, View};
use tolerex::metadata::command::Applied;
use tolerex::net::Parked;
use tolerex::protocol::request::Batch;
use tolerex::rpc::link::{CallError, Completion};
use tolerex::rpc::message::Request;

use crate::clock::NodeClock;
use crate::events::{Out, Outbox};
use crate::oracle::Oracle;
use crate::plan::Plan;

/// Its directory.
const DIR: &str = "leader";

/// Digests are compared at each index that this divides.
const DIGEST_EVERY: u64 = 64;

/// A leader, running or not.
pub struct Leader {
    /// Its disk.
    pub fs: MemFileSystem,
    /// Its id in the group.
    pub id: PeerId,
    /// Grows with each start and end; what belongs to an earlier one is dropped.
    pub epoch: u32,
    /// The process.
    pub running: Option<Running>,
    /// It stands still until then.
    pub paused_until: u64,
    /// The last term that was seen of it.
    pub last_term: u64,
    /// Behind it, its raft thread is late by so much.
    pub raft_lag: u64,
    /// Its disk is slow until then.
    pub slow_until: u64,
    /// The next end of the process by itself is one of the machine: the sync of a directory is made
    /// to fail, or the power fails within a write.
    pub ends_in_power: bool,
    /// It began with an empty disk, waiting to be added.
    pub joins: bool,
    /// It was asked to leave the group, and is not out of it for all that is known.
    pub is_leaving: bool,
    /// By how much its wall clock is ahead, in milliseconds, where a start finds it so.
    pub ahead_ms: i64,
    /// Ticks until it stands for election.
    pub ticks: usize,
    /// By how many millionths its clock is fast.
    pub ppm: i64,
    /// Starts since its disk became an older copy.
    pub starts_on_copy: u32,
}

/// The process.
pub struct Running {
    /// Its clock.
    pub clock: Arc<NodeClock>,
    /// What batches use.
    pub shared: Arc<Shared>,
    /// The group.
    pub parts: Parts<Watched>,
    /// Told to stop; it ends when the group has let it go.
    pub is_stopping: bool,
    /// Of clients.
    pub handler: ClientHandler,
    /// Of members.
    pub service: MemberService,
    /// The rounds.
    pub house: Housekeeping,
    /// Whether a round is scheduled because the bell rang.
    pub house_is_due: bool,
    /// What the journal has to write.
    pub writes: Vec<Persist>,
    /// Whether a write is scheduled.
    pub journal_is_busy: bool,
    /// Whether the desk is scheduled.
    pub desk_is_busy: bool,
    /// To members.
    pub links: Arc<SimLinks>,
    /// Batches that wait, by ticket.
    pub parked: BTreeMap<u64, Waiting>,
}

/// A batch that waits.
pub struct Waiting {
    /// Whose.
    pub client: usize,
    /// Its number.
    pub request: u64,
    /// The batch.
    pub batch: Box<dyn Parked>,
    /// The reads for which it is the confirmation, and when they arrived.
    pub reads: Option<(Batch, Instant)>,
}

impl Leader {
    /// One that was never started.
    pub fn new(id: PeerId, joins: bool, ticks: usize, ppm: i64) -> Leader {
        Leader {
            fs: MemFileSystem::new(),
            id,
            epoch: 0,
            running: None,
            paused_until: 0,
            raft_lag: 0,
            last_term: 0,
            slow_until: 0,
            ends_in_power: false,
            joins,
            is_leaving: false,
            ahead_ms: 0,
            ticks,
            ppm,
            starts_on_copy: 0,
        }
    }

    /// Opens the directory, as a start does. The identity is made from the plan, not by chance.
    pub fn open(
        &mut self,
        number: usize,
        now: u64,
        plan: &Plan,
        founders: &[PeerId],
        (outbox, oracle, calls): (Outbox, Arc<Mutex<Oracle>>, Arc<AtomicU64>),
    ) -> Result<(), GroupError> {
        self.epoch += 1;
        self.identify(founders)?;
        let clock = Arc::new(NodeClock::new(now, self.ppm, self.ahead_ms));
        let salt = u64::from(self.epoch) << 8 | number as u64;
        let options = self.options(plan, clock.clone(), salt);
        let seed = plan.seed ^ u64::from(self.epoch);
        let view = Arc::new(View::new(Cluster::new(Strategy::LeastLoaded, seed)));
        if !plan.has_older_copy {
            view.gate.leave_open();
        }
        let machine = Watched {
            inner: Machine::new(view.clone()),
            view: view.clone(),
            number,
            epoch: self.epoch,
            has_gate: plan.has_older_copy,
            oracle,
        };
        let parts = Parts::open(&options, machine)?;
        let links = Arc::new(SimLinks {
            leader: number,
            epoch: self.epoch,
            outbox,
            calls,
            last: AtomicU64::new(u64::from(self.epoch) << 20),
            first: u64::from(self.epoch) << 20,
            open: Mutex::default(),
            targets: Mutex::default(),
        });
        let shared = Arc::new(Shared::new(
            clock.clone(),
            Limits::default(),
            view,
            parts.handle.clone(),
            links.clone(),
            0,
            PeerAddress {
                name: format!("leader-{number}"),
                rpc: format!("leader-{number}:2"),
                client: format!("leader-{number}:1"),
                http: String::new(),
            },
        ));
        self.running = Some(Running {
            clock,
            handler: ClientHandler::new(shared.clone()),
            service: MemberService::new(shared.clone()),
            house: Housekeeping::new(shared.clone()),
            shared,
            parts,
            is_stopping: false,
            house_is_due: false,
            writes: Vec::new(),
            journal_is_busy: false,
            desk_is_busy: false,
            links,
            parked: BTreeMap::new(),
        });
        Ok(())
    }

    /// Makes the identity where there is none.
    fn identify(&self, founders: &[PeerId]) -> Result<(), GroupError> {
        let dir = PathBuf::from(DIR);
        if Identity::read(&self.fs, &dir)?.is_some() {
            return Ok(());
        }
        // The directory cannot be missing: nothing else is on the disk.
        _ = self.fs.create_dir_all(&dir);
        let identity = Identity {
            peer: self.id,
            voters: match self.joins {
                true => Vec::new(),
                false => founders.to_vec(),
            },
            is_ready: false,
        };
        identity.write(&self.fs, &dir)
    }

    pub(crate) fn options(&self, plan: &Plan, clock: Arc<NodeClock>, salt: u64) -> GroupOptions {
        GroupOptions {
            fs: Arc::new(self.fs.clone()),
            dir: PathBuf::from(DIR),
            clock,
            bootstrap: Bootstrap::New,
            log: LogOptions {
                segment_bytes: plan.segment_bytes,
                reserve_bytes: 0,
                salt,
            },
            snapshot_bytes: plan.snapshot_bytes,
            timing: Timing {
                heartbeat_ticks: 1,
                election_ticks: self.ticks..self.ticks + 1,
            },
            asks_peers: plan.has_older_copy,
            asks_members: plan.has_older_copy,
            on_failure: Box::new(|_| ()),
        }
    }

    /// The term that it serves in.
    pub fn serving(&self) -> Option<u64> {
        let running = self.running.as_ref()?;
        running.shared.serving_term()
    }
}

/// The state machine, and what the oracle sees of it.
pub struct Watched {
    inner: Machine,
    view: Arc<View>,
    number: usize,
    epoch: u32,
    /// Terms are served when its gate opens.
    has_gate: bool,
    oracle: Arc<Mutex<Oracle>>,
}

impl Watched {
    /// The digest of the state.
    pub fn digest(&self) -> u64 {
        self.inner.state().digest()
    }

    fn compare(&self, index: u64) {
        let digest = self.digest();
        self.oracle.lock().digest(self.number, index, digest);
    }
}

impl StateMachine for Watched {
    type Output = Applied;

    fn apply(&mut self, index: u64, term: u64, data: &[u8]) -> Result<Applied, String> {
        let is_first = self.oracle.lock().applies(self.number, index, term, data);
        let applied = self.inner.apply(index, term, data)?;
        if is_first {
            self.oracle.lock().registered(data, &applied);
            self.oracle.lock().came_to(term, &applied);
            let find = |key: &_| self.view.metadata.find(key);
            self.oracle.lock().applied(term, data, find);
        }
        if index.is_multiple_of(DIGEST_EVERY) {
            self.compare(index);
        }
        Ok(applied)
    }

    fn check(data: &[u8]) -> Result<(), String> {
        Machine::check(data)
    }

    fn snapshot_check() -> SnapshotCheck {
        Machine::snapshot_check()
    }

    fn begin_snapshot(&mut self, index: u64) -> Option<Box<dyn SnapshotSource>> {
        self.oracle.lock().census.saw("snapshot taken");
        self.compare(index);
        self.inner.begin_snapshot(index)
    }

    fn reset(&mut self) {
        self.oracle.lock().census.saw("snapshot installed");
        self.inner.reset();
    }

    fn configuration(&mut self, configuration: &Configuration) {
        self.oracle.lock().configured(configuration);
        self.inner.configuration(configuration);
    }

    fn restore(&mut self, chunk: &[u8]) -> Result<(), String> {
        self.inner.restore(chunk)
    }

    fn restored(&mut self, index: u64) -> Result<(), String> {
        self.inner.restored(index)?;
        self.compare(index);
        Ok(())
    }

    fn leadership(&mut self, change: Leadership) {
        let mut oracle = self.oracle.lock();
        if let Leadership::Serving { term, .. } = change {
            oracle.leads(|key| self.view.metadata.find(key));
            // With a gate the term is served when that is open.
            if !self.has_gate {
                oracle.serves(self.number, self.epoch, term);
            }
        }
        drop(oracle);
        self.inner.leadership(change);
    }
}

/// The links of a leader to members.
pub struct SimLinks {
    leader: usize,
    epoch: u32,
    outbox: Outbox,
    calls: Arc<AtomicU64>,
    /// The last link number taken.
    last: AtomicU64,
    /// What it began with: each start has others.
    first: u64,
    open: Mutex<BTreeMap<MemberId, Arc<SimLink>>>,
    /// Whom to dial.
    targets: Mutex<BTreeMap<MemberId, String>>,
}

/// An open link.
pub struct SimLink {
    /// Which one of the network.
    pub link: usize,
    number: u64,
    name: String,
    outbox: Outbox,
    calls: Arc<AtomicU64>,
}

impl SimLinks {
    /// A new number for an attempt to connect.
    pub fn next_number(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Whether the member is to be dialled.
    pub fn wants(&self, member: MemberId) -> bool {
        self.targets.lock().contains_key(&member) && !self.open.lock().contains_key(&member)
    }

    /// A link is open.
    pub fn opened(&self, member: MemberId, link: usize, number: u64) {
        let name = self.targets.lock().get(&member).cloned();
        let opened = SimLink {
            link,
            number,
            name: name.unwrap_or_default(),
            outbox: self.outbox.clone(),
            calls: self.calls.clone(),
        };
        self.open.lock().insert(member, Arc::new(opened));
    }

    /// A link is closed.
    pub fn closed(&self, member: MemberId, link: usize) {
        let mut open = self.open.lock();
        if open.get(&member).is_some_and(|open| open.link == link) {
            open.remove(&member);
        }
    }

    /// Forgets all, so that nothing refers to the process any more.
    pub fn clear(&self) {
        self.open.lock().clear();
    }
}

impl MemberLinks for SimLinks {
    fn link(&self, member: MemberId) -> Option<Arc<dyn MemberLink>> {
        let link = self.open.lock().get(&member)?.clone();
        Some(link)
    }

    fn set(&self, member: MemberId, _address: &str, name: &str) {
        let known = self.targets.lock().insert(member, name.to_owned());
        if known.is_none() {
            let (leader, epoch) = (self.leader, self.epoch);
            let out = Out::Dial {
                leader,
                epoch,
                member,
            };
            self.outbox.lock().push(out);
        }
    }

    fn remove(&self, member: MemberId) {
        self.targets.lock().remove(&member);
        if let Some(link) = self.open.lock().get(&member) {
            self.outbox.lock().push(Out::Close { link: link.link });
        }
    }

    fn has_numbered(&self, number: u64) -> bool {
        number > self.first && number <= self.last.load(Ordering::Relaxed)
    }
}

impl MemberLink for SimLink {
    fn number(&self) -> u64 {
        self.number
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn call(
        &self,
        _term: u64,
        request: Request,
        deadline: Instant,
        completion: Completion,
    ) -> Result<CallId, CallError> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        self.outbox.lock().push(Out::Call {
            link: self.link,
            call,
            request: Arc::new(request),
            deadline,
            completion,
        });
        Ok(CallId(call))
    }

    fn close(&self) {
        self.outbox.lock().push(Out::Close { link: self.link });
    }
}

/// The time of a process's clock.
pub fn now_of(running: &Running) -> Instant {
    running.clock.now()
}
