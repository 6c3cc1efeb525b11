//! Links to members or to other leaders, kept open: dials, reconnects with back-off, closes on
//! removal.
//!
//! Owns a thread `dial-<name>` for each target, so that a silent one does not delay the others, and
//! the link counter: each attempt to connect takes the next number (R8 in DESIGN.md §5), which goes
//! into our Hello and which [`Link::number`] gives for fences. A process has one pool for its peers
//! and one for each purpose of links to members. Each counts from a number on that the nonce of the
//! start gives, so that a fence tells whether this start has sent it: a leader that runs on an
//! older copy of its directory may serve a term a second time.
//!
//! For one target [`PoolEvents::up`] and [`PoolEvents::down`] alternate, whatever is set and
//! removed meanwhile: the thread of a changed target first joins that of the earlier one.

use std::fmt::Display;
use std::hash::Hash;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::clock::{Clock, Instant};
use crate::ids::{MemberId, PeerId};
use crate::logging::Seldom;
use crate::rpc::LocalIdentity;
use crate::rpc::greeting::{self, Expected, GreetingError};
use crate::rpc::link::Link;
use crate::rpc::message::{Purpose, Role};
use crate::rpc::tls::TlsContext;
use crate::threads::{self, StopSignal, Thread, Threads};

/// The link counter begins with the nonce's upper 40 bits, so that two starts hardly ever meet.
const LINK_SHIFT: u32 = 24;

/// The first wait after a link was lost or not made: a restarting node takes longer, a lost
/// packet does not.
const BACKOFF_MIN: Duration = Duration::from_millis(20);

/// The longest wait. It bounds how long a target that is back stays without a link (DESIGN.md §5).
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// How often the end of a link is looked at besides being signalled; any value would do.
const CLOSED_WAIT: Duration = Duration::from_secs(60);

/// What a pool links to: the id of a node of one role.
pub trait Target: Copy + Eq + Hash + Display + Send + Sync + 'static {
    /// The role of the node, by its certificate.
    const ROLE: Role;
    /// The id as in the node's Hello.
    fn node_id(self) -> u64;
}

impl Target for MemberId {
    const ROLE: Role = Role::Member;

    fn node_id(self) -> u64 {
        self.0
    }
}

impl Target for PeerId {
    const ROLE: Role = Role::Leader;

    fn node_id(self) -> u64 {
        self.0
    }
}

/// What a pool's owner is told, on the target's `dial-` thread; reconnecting waits for it.
pub trait PoolEvents<T: Target>: Send + Sync {
    /// The link to `target` is open; [`Pool::link`] gives it.
    fn up(&self, target: T, link: &Arc<Link>);
    /// The link of the last `up` is closed, and all its calls are completed.
    fn down(&self, target: T);
}

/// Links to nodes of one role. Stopping it is its owner's duty.
pub struct Pool<T: Target> {
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    identity: LocalIdentity,
    /// Of all links.
    purpose: Purpose,
    tls: Arc<TlsContext>,
    clock: Arc<dyn Clock>,
    events: Arc<dyn PoolEvents<T>>,
    /// The last link number taken.
    last_link: AtomicU64,
    /// What it began with.
    first_link: u64,
    targets: Mutex<Targets<T>>,
}

struct Targets<T> {
    stopped: bool,
    current: FxHashMap<T, (Arc<Endpoint<T>>, Thread)>,
    /// Threads of targets that were removed or changed.
    retired: Vec<(T, Thread)>,
}

/// Where one target is reached. Replaced as a whole when it changes.
struct Endpoint<T> {
    target: T,
    address: String,
    name: String,
    stop: StopSignal,
    state: Mutex<EndpointState>,
}

#[derive(Default)]
struct EndpointState {
    /// The socket being greeted, so that a stop need not wait for a silent peer.
    greeting: Option<TcpStream>,
    link: Option<Arc<Link>>,
}

impl<T: Target> Pool<T> {
    /// An empty pool. Its links carry the pool's counter.
    pub fn new(
        identity: LocalIdentity,
        tls: Arc<TlsContext>,
        clock: Arc<dyn Clock>,
        events: Arc<dyn PoolEvents<T>>,
    ) -> Pool<T> {
        Pool::of_purpose(Purpose::All, identity, tls, clock, events)
    }

    /// An empty pool of links of one purpose.
    pub fn of_purpose(
        purpose: Purpose,
        identity: LocalIdentity,
        tls: Arc<TlsContext>,
        clock: Arc<dyn Clock>,
        events: Arc<dyn PoolEvents<T>>,
    ) -> Pool<T> {
        let first_link = identity.nonce >> LINK_SHIFT;
        Pool {
            shared: Arc::new(Shared {
                identity,
                purpose,
                tls,
                clock,
                events,
                last_link: AtomicU64::new(first_link),
                first_link,
                targets: Mutex::new(Targets {
                    stopped: false,
                    current: FxHashMap::default(),
                    retired: Vec::new(),
                }),
            }),
        }
    }

    /// Whether it has taken that link number.
    pub fn has_numbered(&self, number: u64) -> bool {
        let Shared {
            first_link,
            last_link,
            ..
        } = &*self.shared;
        number > *first_link && number <= last_link.load(Ordering::Relaxed)
    }

    /// Dials a leader that is no target, for a call or two: a link that passes by. Blocks as
    /// [`Link::dial`] does.
    pub fn visit(&self, address: &str) -> Result<Arc<Link>, GreetingError> {
        let expected = Expected {
            role: Role::Leader,
            name: None,
            node_id: None,
        };
        let Shared {
            identity,
            tls,
            clock,
            ..
        } = &*self.shared;
        Link::dial(address, &expected, tls, identity, 0, Arc::clone(clock))
    }

    /// Keeps a link to `target` at `address` (`host:port`), whose Hello must carry `name` and the
    /// id. Setting the same again does nothing, other values replace the link. Does not block.
    pub fn set(&self, target: T, address: &str, name: &str) {
        let mut targets = self.shared.targets.lock();
        targets.reap();
        let same = |endpoint: &Endpoint<T>| endpoint.address == address && endpoint.name == name;
        let known = targets.current.get(&target);
        if targets.stopped || known.is_some_and(|(endpoint, _)| same(endpoint)) {
            return;
        }
        targets.retire(target);
        let retired = std::mem::take(&mut targets.retired);
        let (earlier, others) = retired.into_iter().partition(|(id, _)| *id == target);
        targets.retired = others;
        let endpoint = Arc::new(Endpoint {
            target,
            address: address.to_owned(),
            name: name.to_owned(),
            stop: StopSignal::default(),
            state: Mutex::default(),
        });
        let body = {
            let (shared, endpoint) = (self.shared.clone(), endpoint.clone());
            let earlier: Vec<(T, Thread)> = earlier;
            move || {
                earlier.into_iter().for_each(|(_, thread)| thread.join());
                shared.keep_open(&endpoint);
            }
        };
        match threads::spawn(format!("dial-{name}"), body) {
            Ok(thread) => _ = targets.current.insert(target, (endpoint, thread)),
            Err(error) => log::error!("no thread to dial {name}: {error}"),
        }
    }

    /// Whether a thread keeps a link to `target` open, or tries to: for want of one,
    /// [`Pool::set`] may have done nothing.
    pub fn holds(&self, target: T) -> bool {
        self.shared.targets.lock().current.contains_key(&target)
    }

    /// Closes the link and forgets the target. Does not block; the last event is `down`, soon.
    pub fn remove(&self, target: T) {
        let mut targets = self.shared.targets.lock();
        targets.reap();
        targets.retire(target);
    }

    /// The open link to `target`.
    pub fn link(&self, target: T) -> Option<Arc<Link>> {
        let endpoint = {
            let targets = self.shared.targets.lock();
            targets.current.get(&target)?.0.clone()
        };
        let link = endpoint.state.lock().link.clone();
        link.filter(|link| link.is_open())
    }

    /// Closes all links and joins all threads until `deadline`; names those that are late. Nothing
    /// can be set afterwards.
    pub fn stop(&self, deadline: Instant) -> Result<(), Vec<String>> {
        let retired = {
            let mut targets = self.shared.targets.lock();
            targets.stopped = true;
            let current: Vec<T> = targets.current.keys().copied().collect();
            current
                .into_iter()
                .for_each(|target| targets.retire(target));
            std::mem::take(&mut targets.retired)
        };
        let mut threads = Threads::default();
        retired
            .into_iter()
            .for_each(|(_, thread)| threads.push(thread));
        threads.join(&*self.shared.clock, deadline)
    }
}

impl<T: Target> Drop for Pool<T> {
    fn drop(&mut self) {
        let deadline = self.shared.clock.now() + greeting::GREETING_TIMEOUT;
        // What is late was logged; there is nobody left to tell.
        _ = self.stop(deadline);
    }
}

impl<T: Target> Targets<T> {
    fn retire(&mut self, target: T) {
        if let Some((endpoint, thread)) = self.current.remove(&target) {
            endpoint.end();
            self.retired.push((target, thread));
        }
    }

    /// Joins threads that have ended, which does not block.
    fn reap(&mut self) {
        let ended = self.retired.extract_if(.., |(_, one)| one.is_finished());
        ended.for_each(|(_, thread)| thread.join());
    }
}

impl<T> Endpoint<T> {
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

impl<T: Target> Shared<T> {
    /// The thread `dial-<name>`.
    fn keep_open(&self, endpoint: &Endpoint<T>) {
        let seed = self.identity.nonce ^ endpoint.target.node_id();
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut backoff = BACKOFF_MIN;
        let mut last_problem = String::new();
        // A peer decides how it fails: two problems in turn would each be news.
        let mut seldom = Seldom::default();
        while !endpoint.stop.is_stopped() {
            match self.dial(endpoint) {
                Ok(link) => {
                    last_problem.clear();
                    let since = self.clock.now();
                    self.hold(endpoint, link);
                    // A link that is lost as soon as it is made must not be made 50 times a second.
                    if self.clock.now().since(since) > BACKOFF_MAX {
                        backoff = BACKOFF_MIN;
                    }
                }
                Err(_) if endpoint.stop.is_stopped() => return,
                Err(error) => {
                    let (name, address) = (&endpoint.name, &endpoint.address);
                    let problem = error.to_string();
                    let is_news = problem != last_problem;
                    let told = is_news.then(|| seldom.allows("no link", self.clock.now()));
                    if let Some(more) = told.flatten() {
                        log::warn!("no link to {name} at {address}: {problem}{more}");
                    } else {
                        log::debug!("no link to {name} at {address}: {problem}");
                    }
                    last_problem = problem;
                }
            }
            // Between half and all of it, so that leaders do not dial a node in step.
            endpoint
                .stop
                .wait_timeout(backoff.mul_f64(0.5 + chance.f64() / 2.0));
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    fn dial(&self, endpoint: &Endpoint<T>) -> Result<Arc<Link>, GreetingError> {
        let number = self.last_link.fetch_add(1, Ordering::Relaxed) + 1;
        let expected = Expected {
            role: T::ROLE,
            name: Some(endpoint.name.clone()),
            node_id: Some(endpoint.target.node_id()),
        };
        let socket = greeting::connect(&endpoint.address)?;
        endpoint.state.lock().greeting = Some(socket.try_clone()?);
        // `end` sets the signal, then looks for the socket.
        let greeted = if endpoint.stop.is_stopped() {
            Err(GreetingError::Io(std::io::ErrorKind::Interrupted.into()))
        } else {
            greeting::dial(
                socket,
                &expected,
                &self.tls,
                &self.identity,
                (number, self.purpose),
                &*self.clock,
            )
        };
        endpoint.state.lock().greeting = None;
        Link::start(greeted?, number, self.clock.clone())
    }

    /// From up to down.
    fn hold(&self, endpoint: &Endpoint<T>, link: Arc<Link>) {
        endpoint.state.lock().link = Some(link.clone());
        // `end` sets the signal, then looks for the link.
        if endpoint.stop.is_stopped() {
            link.close();
        }
        self.events.up(endpoint.target, &link);
        while !link.wait_closed(CLOSED_WAIT) {}
        endpoint.state.lock().link = None;
        self.events.down(endpoint.target);
    }
}
