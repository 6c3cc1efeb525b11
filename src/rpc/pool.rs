//! Links to members, kept open: dials, reconnects with back-off, closes on removal.
//!
//! Owns a thread `dial-<name>` for each target, so that a silent one does not delay the others, and
//! the link counter: each attempt to connect takes the next number (R8 in DESIGN.md §5), which goes
//! into our Hello and which [`Link::number`] gives for fences. It counts from 1 in each process;
//! the term grows with each start of a leader.
//!
//! For one member [`PoolEvents::up`] and [`PoolEvents::down`] alternate, whatever is set and
//! removed meanwhile: the thread of a changed target first joins that of the earlier one.

use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::clock::{Clock, Instant};
use crate::ids::MemberId;
use crate::rpc::LocalIdentity;
use crate::rpc::greeting::{self, Expected, GreetingError};
use crate::rpc::link::Link;
use crate::rpc::message::Role;
use crate::rpc::tls::TlsContext;
use crate::threads::{self, StopSignal, Thread, Threads};

/// The first wait after a link was lost or not made: a restarting member takes longer, a lost
/// packet does not.
const BACKOFF_MIN: Duration = Duration::from_millis(20);

/// The longest wait. It bounds how long a member that is back stays without a link (DESIGN.md §5).
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// How often the end of a link is looked at besides being signalled; any value would do.
const CLOSED_WAIT: Duration = Duration::from_secs(60);

/// What a pool's owner is told, on the target's `dial-` thread; reconnecting waits for it.
pub trait PoolEvents: Send + Sync {
    /// The link to `member` is open; [`Pool::link`] gives it.
    fn up(&self, member: MemberId, link: &Arc<Link>);
    /// The link of the last `up` is closed, and all its calls are completed.
    fn down(&self, member: MemberId);
}

/// Links to members. Stopping it is its owner's duty.
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    identity: LocalIdentity,
    tls: Arc<TlsContext>,
    clock: Arc<dyn Clock>,
    events: Arc<dyn PoolEvents>,
    /// The last link number taken.
    last_link: AtomicU64,
    targets: Mutex<Targets>,
}

#[derive(Default)]
struct Targets {
    stopped: bool,
    current: FxHashMap<MemberId, (Arc<Target>, Thread)>,
    /// Threads of targets that were removed or changed.
    retired: Vec<(MemberId, Thread)>,
}

/// One member to keep a link to. Replaced as a whole when it changes.
struct Target {
    member: MemberId,
    address: String,
    name: String,
    stop: StopSignal,
    state: Mutex<TargetState>,
}

#[derive(Default)]
struct TargetState {
    /// The socket being greeted, so that a stop need not wait for a silent peer.
    greeting: Option<TcpStream>,
    link: Option<Arc<Link>>,
}

impl Pool {
    /// An empty pool. Its targets are members, their links carry the pool's counter.
    pub fn new(
        identity: LocalIdentity,
        tls: Arc<TlsContext>,
        clock: Arc<dyn Clock>,
        events: Arc<dyn PoolEvents>,
    ) -> Pool {
        Pool {
            shared: Arc::new(Shared {
                identity,
                tls,
                clock,
                events,
                last_link: AtomicU64::new(0),
                targets: Mutex::default(),
            }),
        }
    }

    /// Keeps a link to `member` at `address` (`host:port`), whose Hello must carry `name` and the
    /// id. Setting the same again does nothing, other values replace the link. Does not block.
    pub fn set(&self, member: MemberId, address: &str, name: &str) {
        let mut targets = self.shared.targets.lock();
        targets.reap();
        let same = |target: &Target| target.address == address && target.name == name;
        let known = targets.current.get(&member);
        if targets.stopped || known.is_some_and(|(target, _)| same(target)) {
            return;
        }
        targets.retire(member);
        let retired = std::mem::take(&mut targets.retired);
        let (earlier, others) = retired.into_iter().partition(|(id, _)| *id == member);
        targets.retired = others;
        let target = Arc::new(Target {
            member,
            address: address.to_owned(),
            name: name.to_owned(),
            stop: StopSignal::default(),
            state: Mutex::default(),
        });
        let body = {
            let (shared, target): (_, Arc<Target>) = (self.shared.clone(), target.clone());
            let earlier: Vec<(MemberId, Thread)> = earlier;
            move || {
                earlier.into_iter().for_each(|(_, thread)| thread.join());
                shared.keep_open(&target);
            }
        };
        match threads::spawn(format!("dial-{name}"), body) {
            Ok(thread) => _ = targets.current.insert(member, (target, thread)),
            Err(error) => log::error!("no thread to dial {name}: {error}"),
        }
    }

    /// Closes the link and forgets the member. Does not block; the last event is `down`, soon.
    pub fn remove(&self, member: MemberId) {
        let mut targets = self.shared.targets.lock();
        targets.reap();
        targets.retire(member);
    }

    /// The open link to `member`.
    pub fn link(&self, member: MemberId) -> Option<Arc<Link>> {
        let target = {
            let targets = self.shared.targets.lock();
            targets.current.get(&member)?.0.clone()
        };
        let link = target.state.lock().link.clone();
        link.filter(|link| link.is_open())
    }

    /// Closes all links and joins all threads until `deadline`; names those that are late. Nothing
    /// can be set afterwards.
    pub fn stop(&self, deadline: Instant) -> Result<(), Vec<String>> {
        let retired = {
            let mut targets = self.shared.targets.lock();
            targets.stopped = true;
            let members: Vec<MemberId> = targets.current.keys().copied().collect();
            members
                .into_iter()
                .for_each(|member| targets.retire(member));
            std::mem::take(&mut targets.retired)
        };
        let mut threads = Threads::default();
        retired
            .into_iter()
            .for_each(|(_, thread)| threads.push(thread));
        threads.join(&*self.shared.clock, deadline)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let deadline = self.shared.clock.now() + greeting::GREETING_TIMEOUT;
        // What is late was logged; there is nobody left to tell.
        _ = self.stop(deadline);
    }
}

impl Targets {
    fn retire(&mut self, member: MemberId) {
        if let Some((target, thread)) = self.current.remove(&member) {
            target.end();
            self.retired.push((member, thread));
        }
    }

    /// Joins threads that have ended, which does not block.
    fn reap(&mut self) {
        let ended = self.retired.extract_if(.., |(_, one)| one.is_finished());
        ended.for_each(|(_, thread)| thread.join());
    }
}

impl Target {
    fn end(&self) {
        self.stop.stop();
        let state = self.state.lock();
        if let Some(link) = &state.link {
            link.close();
        }
        if let Some(socket) = &state.greeting {
            // It fails if the peer was faster.
            _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    /// The thread `dial-<name>`.
    fn keep_open(&self, target: &Target) {
        let seed = self.identity.nonce ^ target.member.0;
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut backoff = BACKOFF_MIN;
        let mut last_problem = String::new();
        while !target.stop.is_stopped() {
            match self.dial(target) {
                Ok(link) => {
                    last_problem.clear();
                    let since = self.clock.now();
                    self.hold(target, link);
                    // A link that is lost as soon as it is made must not be made 50 times a second.
                    if self.clock.now().since(since) > BACKOFF_MAX {
                        backoff = BACKOFF_MIN;
                    }
                }
                Err(_) if target.stop.is_stopped() => return,
                Err(error) => {
                    let (name, address) = (&target.name, &target.address);
                    let problem = error.to_string();
                    if problem == last_problem {
                        log::debug!("no link to {name} at {address}: {problem}");
                    } else {
                        log::warn!("no link to {name} at {address}: {problem}");
                    }
                    last_problem = problem;
                }
            }
            // Between half and all of it, so that leaders do not dial a member in step.
            target
                .stop
                .wait_timeout(backoff.mul_f64(0.5 + chance.f64() / 2.0));
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    fn dial(&self, target: &Target) -> Result<Arc<Link>, GreetingError> {
        let number = self.last_link.fetch_add(1, Ordering::Relaxed) + 1;
        let expected = Expected {
            role: Role::Member,
            name: Some(target.name.clone()),
            node_id: Some(target.member.0),
        };
        let socket = greeting::connect(&target.address)?;
        target.state.lock().greeting = Some(socket.try_clone()?);
        // `end` sets the signal, then looks for the socket.
        let greeted = if target.stop.is_stopped() {
            Err(GreetingError::Io(std::io::ErrorKind::Interrupted.into()))
        } else {
            greeting::dial(
                socket,
                &expected,
                &self.tls,
                &self.identity,
                number,
                &*self.clock,
            )
        };
        target.state.lock().greeting = None;
        Link::start(greeted?, number, self.clock.clone())
    }

    /// From up to down.
    fn hold(&self, target: &Target, link: Arc<Link>) {
        target.state.lock().link = Some(link.clone());
        // `end` sets the signal, then looks for the link.
        if target.stop.is_stopped() {
            link.close();
        }
        self.events.up(target.member, &link);
        while !link.wait_closed(CLOSED_WAIT) {}
        target.state.lock().link = None;
        self.events.down(target.member);
    }
}
