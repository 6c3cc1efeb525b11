//! `tolerex leader` and `tolerex member`: settings, logging, signals, and the server itself.
//!
//! SIGTERM and SIGINT set the stop signal, SIGHUP reads the settings again and hands them to the
//! running server, also where it was ignored at the start (`nohup`): that keeps a process from
//! ending with its terminal, and a reload ends nothing. When the server serves, one line
//! `ready rpc=ADDRESS hatokuse=ADDRESS http=ADDRESS` stands on standard output (a member has only
//! the first), with the real ports where 0 was asked for.
//!
//! A process started by `tolerex up` asks the kernel for SIGTERM when its parent dies, so that
//! nothing is left behind when `up` is killed. The kernel ties this to the parent's thread: `up`
//! starts its children from its main thread.

mod resources;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use log::LevelFilter;
use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::args::{Leader, Member, ServerArgs};
use super::exit::ToolError;
use super::signals::{MEANINGLESS, SignalWatch};
use crate::config::leader::LeaderConfig;
use crate::config::member::MemberConfig;
use crate::config::tolerance::{self, TOLERANCE_DEFAULT};
use crate::config::{ConfigError, Loaded, Sources, Tls};
use crate::coordinator;
use crate::disk::cluster_file;
use crate::disk::fs::OsFileSystem;
use crate::disk::private;
use crate::group::Bootstrap;
use crate::ids::ClusterId;
use crate::leader::{self, server::Leader as LeaderServer};
use crate::logging;
use crate::member::{self, server::Member as MemberServer};
use crate::resources::descriptors::Descriptors;
use crate::rpc::tls::TlsSettings;
use crate::threads::{self, StopSignal};

/// Told by a server when it serves.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// Where it listens for other nodes.
    pub rpc: SocketAddr,
    /// Where a leader listens for clients.
    pub hatokuse: Option<SocketAddr>,
    /// Where it listens for them over HTTP, if it does.
    pub http: Option<SocketAddr>,
}

impl Ready {
    /// Prints the line that whoever started the process waits for.
    pub fn announce(&self) {
        let mut line = format!("ready rpc={}", self.rpc);
        for (name, address) in [("hatokuse", self.hatokuse), ("http", self.http)] {
            if let Some(address) = address {
                line += &format!(" {name}={address}");
            }
        }
        // Both may be one file, where the line stands after what was logged before it.
        logging::flush();
        let mut out = io::stdout().lock();
        // Nobody has to listen.
        _ = writeln!(out, "{line}").and_then(|()| out.flush());
        log::info!("{line}");
    }
}

/// What is called with a server's newly read settings.
type Callback<C> = Box<dyn Fn(&C) + Send>;

/// Where a server says what SIGHUP should do. Clones share it.
pub struct Reload<C> {
    /// Called on the signal thread, with this lock held: it must be quick and must not wait for the
    /// server's stop.
    callback: Arc<Mutex<Option<Callback<C>>>>,
}

impl<C> Reload<C> {
    /// Sets what is called with the newly read settings.
    pub fn on_reload(&self, callback: impl Fn(&C) + Send + 'static) {
        *self.callback.lock() = Some(Box::new(callback));
    }

    fn call(&self, config: &C) {
        if let Some(callback) = self.callback.lock().as_ref() {
            callback(config);
        }
    }
}

impl<C> Clone for Reload<C> {
    fn clone(&self) -> Reload<C> {
        Reload {
            callback: Arc::clone(&self.callback),
        }
    }
}

impl<C> Default for Reload<C> {
    fn default() -> Reload<C> {
        Reload {
            callback: Arc::default(),
        }
    }
}

/// Runs a leader until it is told to stop.
pub fn run_leader(args: &ServerArgs<Leader>) -> Result<(), ToolError> {
    run(args, serve_leader)
}

/// Runs a member until it is told to stop.
pub fn run_member(args: &ServerArgs<Member>) -> Result<(), ToolError> {
    run(args, serve_member)
}

/// What both kinds of settings have.
trait Settings: Sized + 'static {
    fn load(sources: &Sources) -> Result<Loaded<Self>, ConfigError>;
    fn name(&self) -> &str;
    fn log_level(&self) -> LevelFilter;
    fn metrics_bind(&self) -> Option<SocketAddr>;
    fn data_dir(&self) -> &Path;
    fn tls(&self) -> &Tls;
}

impl Settings for LeaderConfig {
    fn load(sources: &Sources) -> Result<Loaded<LeaderConfig>, ConfigError> {
        LeaderConfig::load(sources)
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn log_level(&self) -> LevelFilter {
        self.log_level
    }

    fn metrics_bind(&self) -> Option<SocketAddr> {
        self.metrics_bind
    }

    fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    fn tls(&self) -> &Tls {
        &self.tls
    }
}

impl Settings for MemberConfig {
    fn load(sources: &Sources) -> Result<Loaded<MemberConfig>, ConfigError> {
        MemberConfig::load(sources)
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn log_level(&self) -> LevelFilter {
        self.log_level
    }

    fn metrics_bind(&self) -> Option<SocketAddr> {
        self.metrics_bind
    }

    fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    fn tls(&self) -> &Tls {
        &self.tls
    }
}

fn run<S, C: Settings>(
    args: &ServerArgs<S>,
    serve: impl FnOnce(C, Descriptors, &StopSignal, &Reload<C>) -> Result<(), ToolError>,
) -> Result<(), ToolError> {
    let sources = args.sources();
    let loaded = C::load(&sources).map_err(|error| ToolError::usage(error.to_string()))?;
    let config = loaded.config;
    let log = config.data_dir().join(format!("{}.log", config.name()));
    logging::init(config.name(), config.log_level(), &log).context("cannot start logging")?;
    threads::exit_on_panic(logging::report_panic);
    let descriptors = Descriptors::raise();
    loaded
        .warnings
        .iter()
        .for_each(|warning| log::warn!("{warning}"));
    if config.metrics_bind().is_some() {
        log::warn!("metrics_bind is given; metrics are not served yet");
    }
    if let Some(limit) = getrlimit(Resource::As).current {
        // The allocator and a refused thread say no more than that there was nothing to be had.
        log::warn!(
            "the memory of this process is limited to {limit} bytes (ulimit -v), stacks and unused \
             reserves of its threads included; when it is used up, the process ends"
        );
    }
    private::warnings(config.data_dir(), &[&config.tls().key])
        .iter()
        .for_each(|warning| log::warn!("{warning}"));
    let (stop, reload) = (StopSignal::default(), Reload::default());
    let signals = watch_signals(&stop, {
        let reload = reload.clone();
        move || reload_settings(&sources, &reload)
    })?;
    // From here on SIGTERM, from whomever, is an orderly stop.
    let followed = follow_parent(args.supervised).map_err(ToolError::from);
    let result = followed.and_then(|()| {
        let ended = StopSignal::default();
        let trim = resources::start_trim(ended.clone())?;
        let served = serve(config, descriptors, &stop, &reload);
        ended.stop();
        trim.join();
        served
    });
    signals.finish();
    result
}

/// Runs the leader's threads until `stop` and an orderly end.
fn serve_leader(
    config: LeaderConfig,
    descriptors: Descriptors,
    stop: &StopSignal,
    reload: &Reload<LeaderConfig>,
) -> Result<(), ToolError> {
    let mut settings = leader_settings(&config)?;
    resources::fit_connections(&mut settings.net, descriptors);
    resources::fit_leader(&mut settings, config.memory_limit);
    let leader = LeaderServer::start(settings, stop.clone())?;
    let control = leader.control();
    reload.on_reload(move |config| {
        control.reload_certificates();
        control.set_strategy(config.strategy);
        match tolerance::read(&config.tolerance_conf) {
            Ok(tolerance) => control.set_tolerance(tolerance),
            Err(error) => log::error!("the tolerance stays as it is: {error}"),
        }
    });
    let addresses = leader.addresses();
    Ready {
        rpc: addresses.rpc,
        hatokuse: Some(addresses.client),
        http: addresses.http,
    }
    .announce();
    Ok(leader.wait()?)
}

/// What a leader is told at its start, from its configuration.
pub(crate) fn leader_settings(
    config: &LeaderConfig,
) -> Result<leader::server::Settings, ToolError> {
    let tolerance = match tolerance::read(&config.tolerance_conf) {
        Ok(tolerance) => tolerance,
        // The file is needed only by a group that has no tolerance yet.
        Err(_) if !config.tolerance_conf.exists() => TOLERANCE_DEFAULT,
        Err(error) => return Err(ToolError::usage(format!("bad configuration:\n  {error}"))),
    };
    let bootstrap = match (config.bootstrap, config.join) {
        (true, true) => {
            let text = "bootstrap makes a new group, join waits to be added to one: give one";
            return Err(ToolError::usage(format!("bad configuration:\n  {text}")));
        }
        (true, false) => Bootstrap::New,
        (false, true) => Bootstrap::Join,
        (false, false) => Bootstrap::Existing,
    };
    let tls = tls_settings(&config.tls, &config.expected_leader_cn);
    Ok(leader::server::Settings {
        name: config.name.clone(),
        data_dir: config.data_dir.clone(),
        cluster_id: cluster_id(config.cluster_id, &config.data_dir, &tls)?,
        bootstrap,
        accept_loss: config.accept_loss,
        rpc_bind: config.rpc_bind,
        client_bind: config.hatokuse_bind,
        http_bind: config.http_bind,
        rpc_advertise: config.rpc_advertise.clone(),
        client_advertise: config.hatokuse_advertise.clone(),
        http_advertise: config.http_advertise.clone(),
        http_hosts: config.http_hosts.clone(),
        tls,
        limits: coordinator::Limits {
            copy_timeout: config.copy_timeout,
            hedge_after: config.read_hedge,
            write_timeout: config.write_timeout,
            read_timeout: config.read_timeout,
            dedup_window: config.dedup_window,
            ..coordinator::Limits::default()
        },
        payload_bytes_max: config.payload_bytes_max,
        net: crate::net::Limits {
            workers: workers(config.workers),
            connections_max: config.connections_max,
            output_bytes_max: config.unread_reply_bytes_max,
            budget_bytes: config.client_buffer_bytes_max,
            ..crate::net::Limits::default()
        },
        cache_bytes: config.cache_bytes,
        snapshot_bytes: config.snapshot_bytes,
        redirect: config.redirect,
        strategy: config.strategy,
        tolerance,
    })
}

/// Runs the member's threads until `stop` and an orderly end.
fn serve_member(
    config: MemberConfig,
    _descriptors: Descriptors,
    stop: &StopSignal,
    reload: &Reload<MemberConfig>,
) -> Result<(), ToolError> {
    let mut settings = member_settings(&config)?;
    resources::fit_member(&mut settings, config.memory_limit);
    let member = MemberServer::start(&settings, stop.clone())?;
    let tls = member.tls();
    reload.on_reload(move |_| match tls.reload() {
        Ok(()) => log::info!("certificates are read again"),
        Err(error) => log::warn!("the certificates in use stay: {error}"),
    });
    Ready {
        rpc: member.address(),
        hatokuse: None,
        http: None,
    }
    .announce();
    Ok(member.wait()?)
}

/// What a member is told at its start, from its configuration.
pub(crate) fn member_settings(config: &MemberConfig) -> Result<member::Settings, ToolError> {
    let tls = tls_settings(&config.tls, &config.expected_leader_cn);
    Ok(member::Settings {
        name: config.name.clone(),
        rpc_bind: config.rpc_bind,
        rpc_advertise: config.rpc_advertise.clone(),
        leaders: config.leaders.clone(),
        data_dir: config.data_dir.clone(),
        cluster_id: cluster_id(config.cluster_id, &config.data_dir, &tls)?,
        zone: config.zone.clone(),
        replace: config.replace,
        tls,
        engine: config.engine,
        io: config.io,
        segment_bytes: config.segment_bytes,
        limits: member::Limits {
            read_threads: config.readers,
            ..member::Limits::default()
        },
    })
}

/// The configured number of threads that serve clients, or one for each processor.
fn workers(configured: usize) -> usize {
    match configured {
        0 => std::thread::available_parallelism().map_or(2, NonZero::get),
        workers => workers,
    }
}

/// The configured cluster, or that of the last start, or the one that the CA's key names.
fn cluster_id(
    configured: Option<ClusterId>,
    data_dir: &Path,
    tls: &TlsSettings,
) -> anyhow::Result<ClusterId> {
    if let Some(id) = configured {
        return Ok(id);
    }
    Ok(match cluster_file::read(&OsFileSystem, data_dir)? {
        Some(id) => id,
        None => ClusterId(tls.authority_id()?),
    })
}

fn tls_settings(tls: &Tls, leader_name: &str) -> TlsSettings {
    TlsSettings {
        ca: tls.ca.clone(),
        certificate: tls.cert.clone(),
        key: tls.key.clone(),
        leader_name: leader_name.to_owned(),
    }
}

/// Reads the settings again, and begins a new log file if the present one was moved away. Bad
/// settings are reported and change nothing.
fn reload_settings<C: Settings>(sources: &Sources, reload: &Reload<C>) {
    logging::reopen();
    match C::load(sources) {
        Ok(loaded) => {
            logging::set_level(loaded.config.log_level());
            loaded
                .warnings
                .iter()
                .for_each(|warning| log::warn!("{warning}"));
            log::info!("SIGHUP: settings are read again");
            reload.call(&loaded.config);
        }
        Err(error) => {
            let problems = error.problems.iter();
            problems.for_each(|problem| log::error!("SIGHUP: nothing is changed: {problem}"));
        }
    }
}

/// Ends this process with its parent, if the parent is the `tolerex up` that gave its pid.
fn follow_parent(expected: Option<u32>) -> anyhow::Result<()> {
    let Some(expected) = expected else {
        return Ok(());
    };
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
        .context("cannot ask for a signal at the parent's end")?;
    // The parent may have died before the request: then the signal will never come.
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_pid());
    if parent.and_then(|pid| u32::try_from(pid).ok()) == Some(expected) {
        return Ok(());
    }
    anyhow::bail!("the `tolerex up` that started this process has ended")
}

/// Turns signals into the stop signal and reloads.
fn watch_signals(
    stop: &StopSignal,
    on_hangup: impl Fn() + Send + 'static,
) -> anyhow::Result<SignalWatch> {
    let stop = stop.clone();
    let signals = [&[SIGTERM, SIGINT, SIGHUP], &MEANINGLESS[..]].concat();
    SignalWatch::start(&signals, move |signal| match signal {
        SIGHUP => on_hangup(),
        SIGTERM | SIGINT if stop.is_stopped() => {
            log::info!("signal {signal}: stopping already; SIGQUIT or SIGKILL end it at once");
        }
        SIGTERM | SIGINT => {
            log::info!("told to stop by signal {signal}");
            stop.stop();
        }
        _ => log::warn!("signal {signal} means nothing to a server"),
    })
}
