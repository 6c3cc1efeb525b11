//! Starts a leader's parts in order and stops them in reverse.
//!
//! Start: lock, certificates, sockets; the group, which reads snapshot and journal; links to
//! members and the RPC server; when the group serves and has a tolerance, the client port. Stop:
//! the client port with what its workers have taken, the RPC server, `house`, the links, and last
//! the group with its last sync.
//!
//! A start that fails stops what it has started in the same way before it returns, so that nothing
//! writes to the directory once its lock is let go.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use log::{info, warn};
use parking_lot::Mutex;

use crate::clock::{Clock, SystemClock, sleep};
use crate::cluster::{Cluster, MemberView, Strategy};
use crate::config::leader::Redirect;
use crate::coordinator::Limits;
use crate::disk::cluster_file;
use crate::disk::fs::{FileSystem, OsFileSystem};
use crate::disk::lock::{self, DirLock};
use crate::disk::log::LogOptions;
use crate::group::{
    self, Bootstrap, Group, GroupError, GroupHandle, GroupOptions, ProposalOutcome, Timing,
};
use crate::ids::{ClusterId, LogPosition};
use crate::leader::desk::Desk;
use crate::leader::doors::{self, Listeners};
use crate::leader::handler::ClientHandler;
use crate::leader::housekeeping::Housekeeping;
use crate::leader::links::MemberPools;
use crate::leader::machine::Machine;
use crate::leader::members::{LinkEvents, MemberService};
use crate::leader::peers::{PeerEvents, PeerTransport};
use crate::leader::state::{Shared, View};
use crate::metadata::command::{Applied, Change, Command};
use crate::net;
use crate::net::budget::Budget;
use crate::rpc::LocalIdentity;
use crate::rpc::message::Role;
use crate::rpc::pool::Pool;
use crate::rpc::server::{Limits as RpcLimits, Server as RpcServer};
use crate::rpc::tls::{TlsContext, TlsSettings};
use crate::threads::{self, StopSignal, Thread};

/// How long what was taken from clients is finished at a stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the batches under way are waited for before that.
const BATCHES_TIMEOUT: Duration = Duration::from_secs(1);
/// How long another leader may take to take over at a stop.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the other parts may take to stop, together.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a start waits for links to members that were registered before. A member that runs
/// answers in some milliseconds; one that does not makes each start longer by this.
const LINKS_TIMEOUT: Duration = Duration::from_millis(500);
/// How often it looks.
const LINKS_POLL: Duration = Duration::from_millis(5);
/// How long a start waits for members to tell what they have seen, before it opens the client
/// ports: meanwhile clients wait in the queue of the listening socket. Members that are up dial
/// again within half a second; while others are down, clients are told what is waited for.
const REPORTS_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a start waits for the first write of its term.
const SERVING_TIMEOUT: Duration = Duration::from_secs(30);
/// How often that wait looks whether it was told to stop.
const SERVING_POLL: Duration = Duration::from_millis(100);

/// Segments of the journal are as long as this at most, and at least that.
const JOURNAL_SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 64 << 10..=64 << 20;

/// All that a leader needs to know; `cli::process` fills it from the configuration.
pub struct Settings {
    /// The node's name, as in its certificate.
    pub name: String,
    /// The directory it alone uses.
    pub data_dir: PathBuf,
    /// The cluster it belongs to.
    pub cluster_id: ClusterId,
    /// Whether a group may be made.
    pub bootstrap: Bootstrap,
    /// Committed entries up to here may be missing, as people have decided.
    pub accept_loss: LogPosition,
    /// Where members connect.
    pub rpc_bind: SocketAddr,
    /// Where clients connect.
    pub client_bind: SocketAddr,
    /// Where they connect over HTTP, if anywhere.
    pub http_bind: Option<SocketAddr>,
    /// What other leaders are told of `rpc_bind`; `None`: as bound.
    pub rpc_advertise: Option<String>,
    /// What clients are told of `client_bind`; `None`: as bound.
    pub client_advertise: Option<String>,
    /// What they are told of `http_bind`; `None`: as bound.
    pub http_advertise: Option<String>,
    /// Further host names under which HTTP is served.
    pub http_hosts: Vec<String>,
    /// Certificates.
    pub tls: TlsSettings,
    /// Times and sizes of batches.
    pub limits: Limits,
    /// The largest message, in bytes.
    pub payload_bytes_max: usize,
    /// Limits of client connections.
    pub net: net::Limits,
    /// Memory for payloads read often, in bytes.
    pub cache_bytes: usize,
    /// The journal is as long as this, in bytes, before a snapshot of the metadata is taken.
    pub snapshot_bytes: u64,
    /// What a follower does with commands about messages.
    pub redirect: Redirect,
    /// How members are chosen.
    pub strategy: Strategy,
    /// The tolerance of a group that has none yet.
    pub tolerance: u8,
}

pub use crate::leader::control::Control;

/// Where a leader is reached.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// By members.
    pub rpc: SocketAddr,
    /// By clients.
    pub client: SocketAddr,
    /// By clients over HTTP, if it is.
    pub http: Option<SocketAddr>,
}

/// A running leader.
pub struct Leader {
    clock: Arc<dyn Clock>,
    pub(super) shared: Arc<Shared>,
    /// The links in `shared`.
    pool: Arc<MemberPools>,
    tls: Arc<TlsContext>,
    group: Group<Applied>,
    /// These are there once it has started.
    house: Option<Thread>,
    rpc: Option<RpcServer>,
    clients: Option<net::Server>,
    stop_house: StopSignal,
    stop: StopSignal,
    /// Why the group ended by itself.
    failure: Arc<Mutex<Option<GroupError>>>,
    addresses: Addresses,
    fs: Arc<dyn FileSystem>,
    lock: DirLock,
}

impl Leader {
    /// Starts all parts; when this returns, clients are answered. A leader that is alone serves
    /// them then, unless members that it must hear of are down. Setting `stop` stops it, and so
    /// does the failure of its journal, which sets `stop`.
    pub fn start(settings: Settings, stop: StopSignal) -> anyhow::Result<Leader> {
        Leader::start_on(Arc::new(OsFileSystem), settings, stop)
    }

    /// Starts with another file system under everything but lock and certificates.
    pub(super) fn start_on(
        fs: Arc<dyn FileSystem>,
        settings: Settings,
        stop: StopSignal,
    ) -> anyhow::Result<Leader> {
        let clock = SystemClock::shared();
        let dir = settings.data_dir.as_path();
        fs.create_dir_all(dir)
            .with_context(|| format!("cannot make {}", dir.display()))?;
        let lock = DirLock::acquire(dir)?;
        cluster_file::bind(fs.as_ref(), dir, settings.cluster_id)?;
        let tls = TlsContext::load(settings.tls.clone(), Arc::clone(&clock))?;
        let listeners = Listeners::bind(&settings)?;
        let addresses = listeners.addresses()?;

        let (seed, nonce) = (random_u64()?, random_u64()?);
        let view = Arc::new(View::new(Cluster::new(settings.strategy, seed)));
        view.gate.accept_loss(settings.accept_loss);
        let failure = Arc::new(Mutex::new(None));
        let group = start_group(&settings, Arc::clone(&fs), &clock, &view, &stop, &failure)?;
        let is_alone = group.handle().configuration().is_alone(group.peer());
        let identity = LocalIdentity {
            cluster_id: settings.cluster_id,
            name: settings.name.clone(),
            node_id: group.peer().0,
            incarnation: 0,
            nonce,
            role: Role::Leader,
        };
        let events = Arc::new(LinkEvents::new(Arc::clone(&view), Arc::clone(&clock)));
        let pool = Arc::new(MemberPools::new(
            identity.clone(),
            Arc::clone(&tls),
            Arc::clone(&clock),
            events,
        ));
        let own = doors::advertised(&addresses, &settings);
        let peers = Pool::new(
            identity.clone(),
            Arc::clone(&tls),
            Arc::clone(&clock),
            Arc::new(PeerEvents::new(group.handle())),
        );
        view.peers.open(
            group.peer(),
            own.rpc.clone(),
            peers,
            group.handle(),
            Arc::clone(&clock),
        );
        let budget = Budget::new(settings.net.budget_bytes);
        let shared = Shared::new(
            Arc::clone(&clock),
            settings.limits,
            view,
            group.handle(),
            Arc::clone(&pool) as _,
            settings.cache_bytes,
            own,
        );
        let shared = Arc::new(shared.within(budget));
        let mut leader = Leader {
            clock,
            shared,
            pool,
            tls,
            group,
            house: None,
            rpc: None,
            clients: None,
            stop_house: StopSignal::default(),
            stop,
            failure,
            addresses,
            fs,
            lock,
        };
        match leader.open(&settings, identity, listeners, is_alone) {
            Ok(()) => Ok(leader),
            Err(error) => match leader.stop_parts() {
                Ok(()) => Err(error),
                Err(cause) => Err(cause.context(error.to_string())),
            },
        }
    }

    /// Starts what is built on the group.
    fn open(
        &mut self,
        settings: &Settings,
        identity: LocalIdentity,
        listeners: Listeners,
        is_alone: bool,
    ) -> anyhow::Result<()> {
        let house = Housekeeping::new(Arc::clone(&self.shared));
        let stop = self.stop_house.clone();
        let house = threads::spawn("house", move || house.run(&stop))?;
        self.house = Some(house);
        let handler = ClientHandler::for_peers(Arc::clone(&self.shared));
        let desk = Arc::new(Desk::new(handler));
        let service = MemberService::new(Arc::clone(&self.shared)).answering(Arc::clone(&desk));
        let service = Arc::new(service);
        let rpc = RpcServer::start(
            listeners.rpc,
            Arc::clone(&self.tls),
            identity,
            service,
            Arc::clone(&self.clock),
            RpcLimits::default(),
        )
        .context("cannot start the rpc server")?;
        self.rpc = Some(rpc);
        // In a group of several another one may serve; this one answers clients at once.
        if is_alone {
            self.wait_leading()?;
            ensure_tolerance(&self.shared, settings.tolerance)?;
            self.wait_for_members();
        }
        let doors = (listeners.client, listeners.http);
        let (fs, stop) = (Arc::clone(&self.fs), self.stop.clone());
        let clients = doors::open(doors, settings, &self.shared, fs, stop)?;
        desk.open(clients.entrance());
        self.clients = Some(clients);
        Ok(())
    }

    /// Waits shortly for the members of before: for their reports, and for the links to them, since
    /// a client that comes at once would be told that what they hold is not available.
    fn wait_for_members(&self) {
        let is_serving = || self.shared.serving_term().is_some();
        let is_linked = |member: &MemberView| member.is_retired || member.liveness.is_connected();
        let are_linked = || self.shared.view.cluster.lock().members().all(is_linked);
        self.wait_until(REPORTS_TIMEOUT, is_serving);
        if is_serving() {
            self.wait_until(LINKS_TIMEOUT, are_linked);
        }
    }

    fn wait_until(&self, timeout: Duration, is_done: impl Fn() -> bool) {
        let give_up = self.clock.now() + timeout;
        while self.clock.now() < give_up && !is_done() && !self.stop.wait_timeout(LINKS_POLL) {}
    }

    /// Waits for the first write of the term, unless told to stop, which a failed group does too.
    fn wait_leading(&self) -> anyhow::Result<()> {
        let give_up = self.clock.now() + SERVING_TIMEOUT;
        while !self.shared.group.wait_serving(SERVING_POLL) {
            if self.stop.is_stopped() {
                bail!("told to stop before the group served");
            }
            if self.clock.now() >= give_up {
                bail!("the group does not serve: no write became durable");
            }
        }
        Ok(())
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// For a reload of settings, from any thread.
    pub fn control(&self) -> Control {
        Control::new(Arc::clone(&self.shared), Arc::clone(&self.tls))
    }

    /// Waits for the stop signal, then stops in order. It stops as well when the data directory is
    /// not its own any more, which is an error.
    pub fn wait(self) -> anyhow::Result<()> {
        while !self.stop.wait_timeout(lock::CHECK_INTERVAL) {
            if let Err(error) = self.lock.check() {
                log::error!("{error}: stopping");
                self.stop.stop();
                _ = self.stop_parts();
                return Err(error.into());
            }
        }
        info!("stopping");
        self.hand_over();
        self.stop_parts()?;
        info!("stopped");
        Ok(())
    }

    /// Stops now and tells nobody: the others find its connections closed, as after a crash, and
    /// elect one of them. What its workers have taken is finished all the same.
    pub fn desert(self) -> anyhow::Result<()> {
        self.stop.stop();
        self.stop_parts()
    }

    /// Hands leadership to another leader, if there is one, while clients are still answered: what
    /// was begun is finished, then they are told where the other one is.
    fn hand_over(&self) {
        let group = &self.shared.group;
        let leads = || group.status().role == group::Role::Leader;
        if !leads() || group.configuration().is_alone(self.group.peer()) {
            return;
        }
        self.shared.begin_hand_over();
        let give_up = self.clock.now() + BATCHES_TIMEOUT;
        while self.shared.batches_running() > 0 && self.clock.now() < give_up {
            sleep(LINKS_POLL);
        }
        let mut next_try = self.clock.now();
        let give_up = next_try + HAND_OVER_TIMEOUT;
        while leads() || group.status().leader.is_none() {
            let now = self.clock.now();
            if now >= give_up {
                return warn!("no other leader has taken over");
            }
            // An attempt may be lost on its way.
            if now >= next_try {
                group.transfer(None);
                next_try = now + HAND_OVER_TIMEOUT / 4;
            }
            sleep(LINKS_POLL);
        }
    }

    /// Stops what was started, in order; an error if the journal failed or a thread goes on.
    fn stop_parts(self) -> anyhow::Result<()> {
        let mut late = Vec::new();
        let mut keep =
            |result: Result<(), Vec<String>>| late.extend(result.err().unwrap_or_default());
        if let Some(clients) = self.clients {
            keep(clients.stop(self.clock.now() + DRAIN_TIMEOUT));
        }
        let deadline = self.clock.now() + STOP_TIMEOUT;
        if let Some(rpc) = self.rpc {
            keep(rpc.stop(deadline));
        }
        self.stop_house.stop();
        self.shared.view.ring();
        if let Some(house) = self.house {
            house.join();
        }
        keep(self.pool.stop(deadline));
        self.group.stop();
        // The group may have waited for the others, so these have time of their own.
        keep(self.shared.view.peers.stop(self.clock.now() + STOP_TIMEOUT));
        match self.failure.lock().take() {
            // It says all that there is to say.
            Some(error @ GroupError::OlderCopy { .. }) => return Err(error.into()),
            Some(error) => return Err(anyhow!(error).context("the journal failed")),
            None => {}
        }
        if !late.is_empty() {
            bail!("threads did not stop in time: {}", late.join(", "));
        }
        Ok(())
    }
}

fn random_u64() -> anyhow::Result<u64> {
    getrandom::u64().map_err(|error| anyhow!("no random numbers: {error}"))
}

fn start_group(
    settings: &Settings,
    fs: Arc<dyn FileSystem>,
    clock: &Arc<dyn Clock>,
    view: &Arc<View>,
    stop: &StopSignal,
    failure: &Arc<Mutex<Option<GroupError>>>,
) -> anyhow::Result<Group<Applied>> {
    let (stop, failure) = (stop.clone(), Arc::clone(failure));
    let options = GroupOptions {
        fs,
        dir: settings.data_dir.clone(),
        clock: Arc::clone(clock),
        bootstrap: settings.bootstrap,
        log: LogOptions {
            // What a snapshot makes needless is then a segment, and can go.
            segment_bytes: settings
                .snapshot_bytes
                .clamp(*JOURNAL_SEGMENT_BYTES.start(), *JOURNAL_SEGMENT_BYTES.end()),
            ..LogOptions::default()
        },
        snapshot_bytes: settings.snapshot_bytes,
        timing: Timing::default(),
        asks_peers: true,
        asks_members: true,
        on_failure: Box::new(move |error| {
            log::error!("the group has failed, the leader stops: {error}");
            *failure.lock() = Some(error);
            stop.stop();
        }),
    };
    let peers = Arc::clone(&view.peers);
    let machine = Machine::new(Arc::clone(view));
    let connect = |_: &GroupHandle<Applied>, _| Box::new(PeerTransport::new(peers)) as Box<_>;
    Ok(Group::start(options, machine, connect)?)
}

/// Sets the tolerance of a new group; warns when the one in force is another.
fn ensure_tolerance(shared: &Shared, wanted: u8) -> anyhow::Result<()> {
    if let Some(tolerance) = shared.view.metadata.tolerance() {
        if tolerance != wanted {
            warn!(
                "the file asks for tolerance {wanted}, the cluster has {tolerance}, which stays \
                 until this leader gets SIGHUP"
            );
        }
        return Ok(());
    }
    let Some(term) = shared.leading_term() else {
        bail!("the group ceased to serve while it was set up");
    };
    let change = Change::SetTolerance(wanted);
    let command = Command { term, change };
    let (done, outcome) = sync_channel(1);
    shared
        .group
        .propose(term, command.encode(), move |outcome| {
            // The receiver waits below.
            _ = done.send(outcome);
        });
    match outcome.recv_timeout(SERVING_TIMEOUT) {
        Ok(ProposalOutcome::Applied(_)) => Ok(()),
        other => bail!("tolerance {wanted} could not be set: {other:?}"),
    }
}
