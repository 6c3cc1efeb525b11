//! Starts a member's parts in order and stops them in reverse (see the module above).
//!
//! Start: lock and identity, the log read whole, the threads behind the queues, the RPC server, and
//! last the registration, so that a leader hears of the member when it can serve.

use std::net::{SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use parking_lot::{Mutex, RwLock};

use crate::clock::{Clock, SystemClock};
use crate::disk::cluster_file;
use crate::disk::fs::{FileSystem, OsFileSystem};
use crate::disk::lock::{self, DirLock};
use crate::disk::log::LogOptions;
use crate::ids::{ClusterId, Fence};
use crate::member::Settings;
use crate::member::append::Appender;
use crate::member::handler::Handler;
use crate::member::identity::{self, Identity};
use crate::member::registration::Registration;
use crate::member::witness::Witness;
use crate::rpc::LocalIdentity;
use crate::rpc::message::Role;
use crate::rpc::server::{Limits, Server};
use crate::rpc::tls::TlsContext;
use crate::storage::opening::{self, Store, StoreOptions};
use crate::storage::{Counters, Reader, WriteMode};
use crate::threads::pace::Pace;
use crate::threads::{self, StopSignal, Threads};

/// How long an orderly stop may take: what waits in the queues is executed in far less.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// How much longer `beat-N` may take: it may be greeting a leader that is silent.
const BEAT_STOP_TIMEOUT: Duration = Duration::from_secs(4);

/// The sizes that a segment of the log may have.
const SEGMENT_BYTES: RangeInclusive<u64> = 4 << 10..=1 << 30;

/// Runs a member until `stop` is set or a part fails. `ready` is called once with the address that
/// is really bound.
pub fn run(
    settings: &Settings,
    stop: StopSignal,
    ready: impl FnOnce(SocketAddr),
) -> anyhow::Result<()> {
    let member = Member::start(settings, stop)?;
    ready(member.address());
    member.wait()
}

/// A running member.
pub struct Member {
    clock: Arc<dyn Clock>,
    tls: Arc<TlsContext>,
    server: Server,
    handler: Arc<Handler>,
    reader: Arc<dyn Reader>,
    /// `append`, `read-N`, `fill` and `compact`.
    threads: Threads,
    /// `beat-N`.
    beats: Threads,
    witness: Arc<Witness>,
    outcome: Outcome,
    /// Held as long as the data directory is in use.
    lock: DirLock,
}

impl Member {
    /// Starts all parts; when this returns, leaders can call. Setting `stop` stops it, and so does
    /// the failure of a part, which sets `stop`.
    pub fn start(settings: &Settings, stop: StopSignal) -> anyhow::Result<Member> {
        Member::start_on(Arc::new(OsFileSystem), settings, stop)
    }

    /// Starts with another file system under everything but the lock.
    pub(super) fn start_on(
        fs: Arc<dyn FileSystem>,
        settings: &Settings,
        stop: StopSignal,
    ) -> anyhow::Result<Member> {
        let outcome = Outcome::new(stop);
        // What was started before the part that cannot start ends by the signal.
        Member::start_parts(fs, settings, &outcome).inspect_err(|_| outcome.stop.stop())
    }

    fn start_parts(
        fs: Arc<dyn FileSystem>,
        settings: &Settings,
        outcome: &Outcome,
    ) -> anyhow::Result<Member> {
        check(settings)?;
        let clock = SystemClock::shared();
        let dir = settings.data_dir.as_path();
        fs.create_dir_all(dir)
            .with_context(|| format!("cannot make {}", dir.display()))?;
        let lock = DirLock::acquire(dir)?;
        let tls = TlsContext::load(settings.tls.clone(), Arc::clone(&clock))?;
        let listener = TcpListener::bind(settings.rpc_bind)
            .with_context(|| format!("cannot listen on {} (rpc)", settings.rpc_bind))?;
        let (store, identity) = open_store(&fs, settings)?;
        let reader = store.engine.reader();
        let disk = (Arc::clone(&fs), Arc::clone(&clock));
        let witness = Arc::new(Witness::open(Arc::clone(&fs), dir)?);
        let (handler, fence, threads) =
            start_workers(settings, disk, store, identity.fence, outcome)?;
        let local = local_identity(settings, &identity);
        let server = Server::start(
            listener,
            Arc::clone(&tls),
            local.clone(),
            Arc::clone(&handler) as _,
            Arc::clone(&clock),
            Limits {
                unfinished_bytes: settings.limits.unfinished_bytes,
                ..Limits::default()
            },
        )
        .context("cannot start the rpc server")?;
        let address = settings.rpc_advertise.clone();
        let registration = Registration {
            identity: local,
            address: address.unwrap_or_else(|| server.local_addr().to_string()),
            zone: settings.zone.clone(),
            replace: settings.replace,
            incomplete: Arc::new(identity::has_losses(fs.as_ref(), dir)?.into()),
            tls: Arc::clone(&tls),
            clock: Arc::clone(&clock),
            reader: Arc::clone(&reader),
            fence,
            witness: Arc::clone(&witness),
            disk: (fs, dir.to_owned()),
            stop: outcome.stop.clone(),
        };
        let beats = start_beats(settings, &registration, outcome)?;
        Ok(Member {
            clock,
            tls,
            server,
            handler,
            reader,
            threads,
            beats,
            witness,
            outcome: outcome.clone(),
            lock,
        })
    }

    /// The address that is really bound.
    pub fn address(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// The certificates in use, to be reloaded on SIGHUP.
    pub fn tls(&self) -> Arc<TlsContext> {
        Arc::clone(&self.tls)
    }

    /// What it holds.
    pub fn counters(&self) -> Counters {
        self.reader.counters()
    }

    /// Waits for the stop signal, then stops all parts; the error of the part that failed, if one
    /// did.
    pub fn wait(self) -> anyhow::Result<()> {
        while !self.outcome.stop.wait_timeout(lock::CHECK_INTERVAL) {
            if let Err(error) = self.lock.check() {
                self.outcome.fail("main", error.into());
            }
        }
        log::info!("stopping");
        let deadline = self.clock.now() + STOP_TIMEOUT;
        self.handler.close();
        let stopped = self.threads.join(self.clock.as_ref(), deadline);
        let closed = self.server.stop(deadline);
        let beats = self
            .beats
            .join(self.clock.as_ref(), deadline + BEAT_STOP_TIMEOUT);
        self.witness.save();
        self.outcome.into_result()?;
        let late = [stopped.err(), closed.err(), beats.err()]
            .into_iter()
            .flatten();
        let late: Vec<String> = late.flatten().collect();
        if !late.is_empty() {
            bail!("threads did not stop in time: {}", late.join(", "));
        }
        log::info!("stopped");
        Ok(())
    }
}

/// Refuses settings with which a member cannot work, naming them.
fn check(settings: &Settings) -> anyhow::Result<()> {
    let Settings {
        rpc_bind,
        rpc_advertise,
        segment_bytes,
        limits,
        ..
    } = settings;
    if rpc_advertise.is_none() && rpc_bind.ip().is_unspecified() {
        bail!("rpc_bind = {rpc_bind} needs rpc_advertise = HOST:PORT, where leaders reach it");
    }
    if !SEGMENT_BYTES.contains(segment_bytes) {
        let (min, max) = (SEGMENT_BYTES.start(), SEGMENT_BYTES.end());
        bail!("segment_bytes = {segment_bytes} is not {min} to {max}");
    }
    if limits.read_threads == 0 || limits.append_queue_requests == 0 {
        bail!("a member needs at least one reader and a queue of one request");
    }
    Ok(())
}

/// Starts the threads behind the queues.
fn start_workers(
    settings: &Settings,
    (fs, clock): (Arc<dyn FileSystem>, Arc<dyn Clock>),
    store: Store,
    fence: Fence,
    outcome: &Outcome,
) -> anyhow::Result<(Arc<Handler>, Arc<RwLock<Fence>>, Threads)> {
    let limits = &settings.limits;
    let reader = store.engine.reader();
    let fence_file = (fs, identity::fence_path(&settings.data_dir));
    let (appender, queue) = Appender::new(
        store.engine,
        fence,
        fence_file,
        clock,
        (limits.append_queue_requests, limits.append_queue_bytes),
    );
    let fence = appender.shared_fence();
    let shared_fence = Arc::clone(&fence);
    let (handler, worker, large) =
        Handler::new(queue, reader, shared_fence, limits.read_queue_requests);
    let handler = Arc::new(handler);
    let mut threads = Threads::default();
    threads.push(outcome.spawn("append", move || Ok(appender.run()?))?);
    for number in 1..=limits.read_threads {
        let worker = worker.clone();
        let body = move || {
            worker.run(None);
            Ok(())
        };
        threads.push(outcome.spawn(format!("read-{number}"), body)?);
    }
    let body = move || {
        large.run(Some(Pace::of_this_thread()));
        Ok(())
    };
    threads.push(outcome.spawn("read-large", body)?);
    if let Some(filler) = store.filler {
        let stop = outcome.stop.clone();
        let body = move || {
            filler.run(&stop);
            Ok(())
        };
        threads.push(outcome.spawn("fill", body)?);
    }
    if let Some(mut compactor) = store.compactor {
        let (stop, steps) = (outcome.stop.clone(), Arc::clone(&handler));
        let body = move || {
            compactor.run(&stop, &mut |step| steps.compact(step));
            Ok(())
        };
        threads.push(outcome.spawn("compact", body)?);
    }
    Ok((handler, fence, threads))
}

/// Starts a registration with each leader address.
fn start_beats(
    settings: &Settings,
    registration: &Registration,
    outcome: &Outcome,
) -> anyhow::Result<Threads> {
    let mut beats = Threads::default();
    for (number, leader) in (1..).zip(&settings.leaders) {
        let (leader, registration) = (leader.clone(), registration.clone());
        let body = move || {
            let ended = registration.run(&leader);
            ended.with_context(|| format!("leader {leader} refuses this member"))
        };
        beats.push(outcome.spawn(format!("beat-{number}"), body)?);
    }
    Ok(beats)
}

/// Opens the data directory: the store, and this start's incarnation. With `replace` an identity
/// that is not complete is given up.
pub fn open_data(
    fs: &Arc<dyn FileSystem>,
    dir: &Path,
    cluster_id: ClusterId,
    (options, replace): (&StoreOptions, bool),
    random: &mut dyn FnMut() -> anyhow::Result<u64>,
) -> anyhow::Result<(Store, Identity)> {
    let engine = options.engine;
    opening::check_engine(fs.as_ref(), dir, engine)
        .with_context(|| format!("cannot look at {}", dir.display()))??;
    cluster_file::bind(fs.as_ref(), dir, cluster_id)?;
    let past = identity::examine(fs.as_ref(), dir, engine, replace)?;
    let store = opening::open(fs, dir, options)
        .with_context(|| format!("cannot open the {engine} engine in {}", dir.display()))?;
    for damage in &store.recovery.damaged {
        log::error!("{damage}: what is in it is lost here, its replicas have it");
    }
    // Before the identity is complete: no leader counts on this start without being told.
    if !store.recovery.damaged.is_empty() {
        identity::note_losses(fs.as_ref(), dir)?;
    }
    if let Some(cut) = &store.recovery.cut {
        log::info!("{cut}");
    }
    let identity = identity::begin(fs.as_ref(), dir, past, random)?;
    Ok((store, identity))
}

/// Opens the data directory and says what is in it.
fn open_store(fs: &Arc<dyn FileSystem>, settings: &Settings) -> anyhow::Result<(Store, Identity)> {
    let (engine, io) = (settings.engine, settings.io);
    let options = StoreOptions {
        engine,
        io,
        log: LogOptions {
            segment_bytes: settings.segment_bytes,
            ..LogOptions::default()
        },
    };
    let mut random = || getrandom::u64().context("no random numbers");
    let opened = (&options, settings.replace);
    let dir = settings.data_dir.as_path();
    let (store, identity) = open_data(fs, dir, settings.cluster_id, opened, &mut random)?;
    let Counters { records, bytes } = store.engine.reader().counters();
    log::info!(
        "{} id={} incarnation={} fence={} engine={engine} io={io} records={records} bytes={bytes}",
        settings.name,
        identity.id,
        identity.incarnation,
        identity.fence,
    );
    match io {
        WriteMode::Buffered => log::warn!(
            "io=buffered: a crash of this process loses up to 10 ms of acknowledged records"
        ),
        WriteMode::Unbuffered => log::warn!(
            "io=unbuffered: a power failure loses acknowledged records not yet on the disk"
        ),
        WriteMode::Sync => {}
    }
    Ok((store, identity))
}

fn local_identity(settings: &Settings, identity: &Identity) -> LocalIdentity {
    LocalIdentity {
        cluster_id: settings.cluster_id,
        name: settings.name.clone(),
        node_id: identity.id.0,
        incarnation: identity.incarnation,
        nonce: identity.nonce,
        role: Role::Member,
    }
}

/// How the process ends: the first failure of a part stops the others.
#[derive(Clone)]
struct Outcome {
    stop: StopSignal,
    /// The first failure. Guards only itself.
    failure: Arc<Mutex<Option<anyhow::Error>>>,
}

impl Outcome {
    fn new(stop: StopSignal) -> Outcome {
        Outcome {
            stop,
            failure: Arc::default(),
        }
    }

    /// Starts a thread whose error stops the member.
    fn spawn(
        &self,
        name: impl Into<String>,
        body: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
    ) -> anyhow::Result<threads::Thread> {
        let (name, outcome) = (name.into(), self.clone());
        let thread = name.clone();
        let guarded = move || {
            if let Err(error) = body() {
                outcome.fail(&thread, error);
            }
        };
        threads::spawn(name.clone(), guarded)
            .map_err(|error| anyhow!("cannot start {name}: {error}"))
    }

    /// Notes the failure of a part and stops the member.
    fn fail(&self, thread: &str, error: anyhow::Error) {
        log::error!("thread {thread}: {error:#}");
        self.failure.lock().get_or_insert(error);
        self.stop.stop();
    }

    fn into_result(self) -> anyhow::Result<()> {
        match self.failure.lock().take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}
