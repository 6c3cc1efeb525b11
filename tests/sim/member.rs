//! One member: the real store, fence, append thread and readers, stepped by events.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use fastrand::Rng;
use parking_lot::RwLock;
use tolerex::disk::fs::FileSystem;
use tolerex::disk::log::LogOptions;
use tolerex::disk::mem::MemFileSystem;
use tolerex::ids::{ClusterId, Fence, MemberId};
use tolerex::member::append::Appender;
use tolerex::member::handler::{FetchWorker, Handler};
use tolerex::member::identity;
use tolerex::member::server::open_data;
use tolerex::member::witness::Witness;
use tolerex::rpc::PeerInfo;
use tolerex::rpc::message::{Purpose, Role, Seen};
use tolerex::storage::opening::StoreOptions;
use tolerex::storage::{EngineKind, Reader, WriteMode};

use crate::clock::NodeClock;
use crate::plan::Plan;

/// The cluster that all belong to.
const CLUSTER: ClusterId = ClusterId(7);

/// Its directory.
const DIR: &str = "member";

/// Requests that a member's queues hold.
const QUEUE: usize = 64;

/// A member, running or not.
pub struct Member {
    /// Its disk.
    pub fs: MemFileSystem,
    /// Its name.
    pub name: String,
    /// Its id, once it was started.
    pub id: Option<MemberId>,
    /// Grows with each start and end.
    pub epoch: u32,
    /// The process.
    pub running: Option<Running>,
    /// It stands still until then.
    pub paused_until: u64,
    /// Its disk is slow until then.
    pub slow_until: u64,
    /// As of a leader.
    pub ends_in_power: bool,
    /// For ids and nonces.
    pub rng: Rng,
    /// By how many millionths its clock is fast.
    pub ppm: i64,
    /// By leader: the start of the leader with which it is registered.
    pub registered: Vec<u32>,
    /// While its disk is not mounted: that disk, and its id there.
    pub unmounted: Option<(MemFileSystem, MemberId)>,
}

/// The process.
pub struct Running {
    /// Its clock.
    pub clock: Arc<NodeClock>,
    /// Takes calls.
    pub handler: Handler,
    /// Executes stores and releases.
    pub appender: Appender,
    /// Answers fetches.
    pub fetches: FetchWorker,
    /// What it holds.
    pub reader: Arc<dyn Reader>,
    /// Who it is, for leaders.
    pub info: PeerInfo,
    /// The highest fence that it has executed.
    pub fence: Arc<RwLock<Fence>>,
    /// What it was told is committed.
    pub witness: Witness,
    /// Whether the append thread is scheduled.
    pub append_is_due: bool,
    /// Whether a reader is scheduled.
    pub read_is_due: bool,
}

impl Running {
    /// What it has seen of leaders.
    pub fn seen(&self) -> Seen {
        Seen {
            fence: *self.fence.read(),
            revision: self.reader.highest(),
            committed: self.witness.committed(),
        }
    }
}

impl Member {
    /// Whether its directory has a note of lost records.
    pub fn has_losses(&self) -> bool {
        // What cannot be read is no reason to say nothing.
        identity::has_losses(&self.fs, Path::new(DIR)).unwrap_or(true)
    }

    /// Opens the data directory, as a start does.
    pub fn open(&mut self, now: u64, plan: &Plan) -> anyhow::Result<()> {
        self.epoch += 1;
        let dir = Path::new(DIR);
        let fs: Arc<dyn FileSystem> = Arc::new(self.fs.clone());
        fs.create_dir_all(dir)?;
        let options = StoreOptions {
            engine: EngineKind::Log,
            io: WriteMode::Sync,
            log: LogOptions {
                segment_bytes: plan.segment_bytes,
                reserve_bytes: 0,
                salt: self.rng.u64(..),
            },
        };
        let rng = &mut self.rng;
        let mut random = || Ok(rng.u64(1..));
        let (store, identity) = open_data(&fs, dir, CLUSTER, (&options, false), &mut random)?;
        let clock = Arc::new(NodeClock::new(now, self.ppm, 0));
        let reader = store.engine.reader();
        let (appender, queue) = Appender::new(
            store.engine,
            identity.fence,
            (fs, identity::fence_path(dir)),
            clock.clone(),
            (QUEUE, 1 << 20),
        );
        let fence = appender.shared_fence();
        let (handler, fetches, _large) = Handler::new(queue, reader.clone(), fence.clone(), QUEUE);
        // Only where members tell: opening it may meet a fault that is armed.
        let witness_fs: Arc<dyn FileSystem> = match plan.has_older_copy {
            true => Arc::new(self.fs.clone()),
            false => Arc::new(MemFileSystem::new()),
        };
        let witness = Witness::open(witness_fs, dir)?;
        self.id = Some(identity.id);
        self.registered.fill(0);
        self.running = Some(Running {
            clock,
            handler,
            appender,
            fetches,
            reader,
            info: PeerInfo {
                connection: u64::from(self.epoch),
                address: SocketAddr::from(([127, 0, 0, 1], 1)),
                name: self.name.clone(),
                node_id: identity.id.0,
                incarnation: identity.incarnation,
                nonce: identity.nonce,
                link: 0,
                role: Role::Member,
                purpose: Purpose::All,
                separates_fetches: false,
            },
            fence,
            witness,
            append_is_due: false,
            read_is_due: false,
        });
        Ok(())
    }
}
