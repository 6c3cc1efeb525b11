//! The answering side: accepts connections, checks who they are and what they may call, dispatches.
//!
//! Owns the listener, thread `accept-rpc`, a `hello-<n>` thread for each connection being greeted,
//! and the threads of the connections. A connection is in the table from accept to its end; the
//! table is bounded ([`Limits`]), beyond it connections are closed at once. Each refusal is a log
//! line with the address and the reason.
//!
//! # One connection for a node
//!
//! A new connection of a node (same id, role and purpose) ends the older one, and is welcomed only
//! after the last call of the older one was handed over (DESIGN.md §5, R8): then `connected` and
//! `disconnected` of a node alternate. A leader's must have a higher (incarnation, link number)
//! than the older one, or be of another start (nonce) in the same incarnation; a lower one is a
//! late packet and refused. A member's must be of the same start or of a higher incarnation;
//! anything else is a rolled back or cloned disk, refused without harm to the one that is
//! connected. Calls of the older connection that the service has queued are for it to refuse, by
//! their fence.
//!
//! Between leaders each end has dialled a connection of its own; a server knows only those that it
//! accepted, so the two do not touch each other. A leader has no incarnation and is told apart from
//! its earlier start by its nonce. With link number 0 it passes by, to call a leader that it does
//! not know yet: such a connection takes no place and ends no other.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use rustc_hash::FxHashMap;
use socket2::SockRef;

use crate::clock::{Clock, Instant};
use crate::ids::CallId;
use crate::rpc::connection::{Connection, Receiver, Sender};
use crate::rpc::envelope::{self, Body};
use crate::rpc::greeting::{Accepting, GREETING_TIMEOUT, GreetingError};
use crate::rpc::message::{Kind, Purpose, Refusal, Request, Response, Role};
pub use crate::rpc::responder::Responder;
use crate::rpc::tls::TlsContext;
use crate::rpc::{LocalIdentity, PeerInfo};
use crate::threads::{self, StopSignal, Thread, Threads};

/// Waits after a failed accept (out of descriptors), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is known of a call beside its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallInfo {
    /// Its id on the connection, 0 for a one-way request.
    pub id: CallId,
    /// The caller's Raft term, 0 when it has none.
    pub term: u64,
    /// The size of its frame's body.
    pub bytes: usize,
}

/// What a process does with calls.
pub trait Service: Send + Sync {
    /// A peer's Hello was checked; an error refuses it. On a thread of its own; may block shortly.
    fn connected(&self, peer: &PeerInfo) -> Result<(), Refusal>;
    /// A call, the caller's role checked, in the order of arrival on that connection, on its reader
    /// thread; for a one-way request `responder` answers nothing and may be dropped. While this
    /// blocks, nothing more is read from this peer, and after some 6 s of that the peer's kernel
    /// takes us for dead.
    fn handle(&self, peer: &PeerInfo, call: CallInfo, request: Request, responder: Responder);
    /// The connection has ended: once for each `connected` that returned `Ok`, after its last
    /// `handle`.
    fn disconnected(&self, peer: &PeerInfo);
}

/// Limits of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections, those being greeted included.
    pub connections: usize,
    /// Connections being greeted, each a thread for 5 s at most.
    pub greetings: usize,
}

impl Default for Limits {
    /// 256 and 64: a cluster has some tens of nodes, two or three connections each at most.
    fn default() -> Limits {
        Limits {
            connections: 256,
            greetings: 64,
        }
    }
}

/// The answering side of a process. Stopping it is its owner's duty.
pub struct Server {
    shared: Arc<Shared>,
    listener: TcpListener,
    address: SocketAddr,
    /// `None` after `stop`.
    acceptor: Mutex<Option<Thread>>,
}

impl Server {
    /// Starts accepting on `listener`. `InvalidInput` if `identity` is not that of our certificate.
    pub fn start(
        listener: TcpListener,
        tls: Arc<TlsContext>,
        identity: LocalIdentity,
        service: Arc<dyn Service>,
        clock: Arc<dyn Clock>,
        limits: Limits,
    ) -> io::Result<Server> {
        identity
            .check(&tls.own())
            .map_err(|problem| io::Error::new(io::ErrorKind::InvalidInput, problem))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            tls,
            identity,
            service,
            clock,
            limits,
            stop: StopSignal::default(),
            table: Mutex::new(Table::default()),
            ended: Condvar::new(),
        });
        let accepts = listener.try_clone()?;
        let acceptor = {
            let shared = shared.clone();
            threads::spawn("accept-rpc", move || shared.accept_all(&accepts))?
        };
        Ok(Server {
            shared,
            listener,
            address,
            acceptor: Mutex::new(Some(acceptor)),
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Stops accepting, lets queued answers leave, ends all connections, and joins all threads
    /// until `deadline`; names those that are late. A second call does nothing.
    pub fn stop(&self, deadline: Instant) -> Result<(), Vec<String>> {
        let Some(acceptor) = self.acceptor.lock().take() else {
            return Ok(());
        };
        self.shared.stop.stop();
        // Wakes accept(2) on Linux. It fails only if the socket is not listening: nothing to wake.
        _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        let mut threads = Threads::default();
        threads.push(acceptor);
        let clock = &*self.shared.clock;
        let mut late = threads.join(clock, deadline).err().unwrap_or_default();
        // Nothing is added now. Greetings end with their sockets, and may add connections until
        // then.
        let mut greetings = Threads::default();
        {
            let mut table = self.shared.table.lock();
            for entry in table.entries.values() {
                entry.end("stopping");
            }
            for (_, thread) in table.greetings.drain() {
                greetings.push(thread);
            }
        }
        late.extend(greetings.join(clock, deadline).err().unwrap_or_default());
        let (mut threads, connections) = {
            let mut table = self.shared.table.lock();
            for entry in table.entries.values() {
                entry.end("stopping");
            }
            let mut connections = std::mem::take(&mut table.ended);
            connections.extend(table.entries.values().filter_map(Entry::connection));
            (Threads::default(), connections)
        };
        for thread in connections.iter().flat_map(|one| one.take_threads()) {
            threads.push(thread);
        }
        late.extend(threads.join(clock, deadline).err().unwrap_or_default());
        if late.is_empty() { Ok(()) } else { Err(late) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let deadline = self.shared.clock.now() + GREETING_TIMEOUT;
        // What is late was logged; there is nobody left to tell.
        _ = self.stop(deadline);
    }
}

struct Shared {
    tls: Arc<TlsContext>,
    identity: LocalIdentity,
    service: Arc<dyn Service>,
    clock: Arc<dyn Clock>,
    limits: Limits,
    stop: StopSignal,
    /// Held for table operations, and for closing sockets.
    table: Mutex<Table>,
    /// Signalled when a welcomed entry leaves the table.
    ended: Condvar,
}

#[derive(Default)]
struct Table {
    /// The number of the last connection accepted.
    last: u64,
    /// By number.
    entries: FxHashMap<u64, Entry>,
    /// Threads of greetings, by connection number; joined by the acceptor when they have ended.
    greetings: FxHashMap<u64, Thread>,
    /// Connections that left `entries`; their threads are joined by the acceptor.
    ended: Vec<Arc<Connection>>,
}

/// A connection from accept to its end.
struct Entry {
    socket: TcpStream,
    state: State,
}

enum State {
    Greeting,
    /// It has its node's place, unless it passes by: no other connection of that node is welcomed.
    Welcomed {
        peer: PeerInfo,
        /// `None` until its threads run.
        connection: Option<Arc<Connection>>,
    },
}

impl Entry {
    fn connection(&self) -> Option<Arc<Connection>> {
        match &self.state {
            State::Greeting => None,
            State::Welcomed { connection, .. } => connection.clone(),
        }
    }

    /// Ends it, after what is queued has left when it has got so far.
    fn end(&self, reason: &'static str) {
        match self.connection() {
            Some(connection) => connection.sender().finish(reason),
            // It fails if the peer was faster.
            None => _ = self.socket.shutdown(Shutdown::Both),
        }
    }
}

impl Shared {
    /// The thread `accept-rpc`.
    fn accept_all(self: &Arc<Self>, listener: &TcpListener) {
        let mut is_failing = false;
        while !self.stop.is_stopped() {
            match listener.accept() {
                Ok((socket, address)) => {
                    is_failing = false;
                    self.reap();
                    if let Err(reason) = self.begin(socket, address) {
                        log::warn!("refused {address}: {reason}");
                    }
                }
                Err(_) if self.stop.is_stopped() => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        log::error!("rpc connections wait to be accepted: {error}");
                    }
                    self.stop.wait_timeout(ACCEPT_PAUSE);
                }
            }
        }
    }

    /// Joins what has ended: greetings, and threads of former connections.
    fn reap(&self) {
        let mut greetings = Vec::new();
        let mut connections = Vec::new();
        {
            let mut table = self.table.lock();
            let done = table.greetings.extract_if(|_, thread| thread.is_finished());
            greetings.extend(done.map(|(_, thread)| thread));
            let done = table.ended.extract_if(.., |one| one.is_finished());
            connections.extend(done);
        }
        greetings.into_iter().for_each(Thread::join);
        drop(connections);
    }

    /// Takes a connection into the table and starts its greeting.
    fn begin(self: &Arc<Self>, socket: TcpStream, address: SocketAddr) -> Result<(), String> {
        let copy = socket.try_clone().map_err(|error| error.to_string())?;
        let mut table = self.table.lock();
        if table.entries.len() >= self.limits.connections {
            return Err(format!("{} connections are open", table.entries.len()));
        }
        if table.greetings.len() >= self.limits.greetings {
            return Err(format!("{} are being greeted", table.greetings.len()));
        }
        table.last += 1;
        let number = table.last;
        let entry = Entry {
            socket: copy,
            state: State::Greeting,
        };
        table.entries.insert(number, entry);
        let shared = self.clone();
        let greet = move || {
            if let Err(error) = shared.greet(number, socket) {
                log::warn!("refused {address}: {error}");
                shared.leave(number);
            }
        };
        // Under the lock, so that the thread finds its row; it takes some 20 µs.
        match threads::spawn(format!("hello-{number}"), greet) {
            Ok(thread) => {
                table.greetings.insert(number, thread);
                Ok(())
            }
            Err(error) => {
                table.entries.remove(&number);
                Err(format!("no thread: {error}"))
            }
        }
    }

    /// The thread `hello-<n>`: greets, and starts the connection.
    fn greet(self: &Arc<Self>, number: u64, socket: TcpStream) -> Result<(), GreetingError> {
        let clock = &*self.clock;
        let accepting = Accepting::begin(socket, number, &self.tls, &self.identity, clock)?;
        let peer = accepting.peer();
        let admitted = self
            .take_place(&peer)
            .and_then(|()| self.service.connected(&peer));
        if let Err(refusal) = admitted {
            let text = format!("{peer}: {refusal}");
            accepting.refuse(refusal);
            return Err(GreetingError::WrongPeer(text));
        }
        let caller = Arc::new(Caller {
            shared: self.clone(),
            peer: peer.clone(),
        });
        let connection = accepting
            .welcome(&self.identity)
            .and_then(|greeted| Ok(Connection::start(greeted, self.clock.clone(), caller)?));
        let connection = match connection {
            Ok(connection) => Arc::new(connection),
            Err(error) => {
                self.service.disconnected(&peer);
                return Err(error);
            }
        };
        self.settle(number, connection);
        Ok(())
    }

    /// Gives a connection its node's place, after the one that has it has ended.
    fn take_place(&self, peer: &PeerInfo) -> Result<(), Refusal> {
        let give_up = self.clock.now() + GREETING_TIMEOUT;
        let mut table = self.table.lock();
        loop {
            let older = table.entries.values().find_map(|entry| match &entry.state {
                State::Welcomed { peer: older, .. } if self.is_same_place(older, peer) => {
                    Some((entry, older))
                }
                State::Welcomed { .. } | State::Greeting => None,
            });
            let Some((entry, older)) = older else {
                break;
            };
            supersedes(peer, older)?;
            // Its reader ends, and takes it out of the table.
            _ = entry.socket.shutdown(Shutdown::Both);
            let wait = give_up.since(self.clock.now());
            if self.stop.is_stopped() || self.ended.wait_for(&mut table, wait).timed_out() {
                return Err(Refusal::Busy);
            }
        }
        match table.entries.get_mut(&peer.connection) {
            Some(entry) => {
                entry.state = State::Welcomed {
                    peer: peer.clone(),
                    connection: None,
                };
                Ok(())
            }
            None => Err(Refusal::Other("stopping".to_owned())),
        }
    }

    fn is_same_place(&self, a: &PeerInfo, b: &PeerInfo) -> bool {
        let leaders = (self.identity.role, a.role) == (Role::Leader, Role::Leader);
        let passing = leaders && (a.link == 0 || b.link == 0);
        let node = |peer: &PeerInfo| (peer.role, peer.node_id);
        !passing && a.role != Role::Client && node(a) == node(b) && a.purpose == b.purpose
    }

    /// The connection runs: it can be ended in order. It may have ended already.
    fn settle(&self, number: u64, connection: Arc<Connection>) {
        let mut table = self.table.lock();
        match table.entries.get_mut(&number) {
            Some(Entry {
                state: State::Welcomed {
                    connection: place, ..
                },
                ..
            }) => *place = Some(connection),
            Some(_) | None => table.ended.push(connection),
        }
    }

    /// A connection has ended, or did not come about.
    fn leave(&self, number: u64) {
        let mut table = self.table.lock();
        let entry = table.entries.remove(&number);
        let connection = entry.as_ref().and_then(Entry::connection);
        table.ended.extend(connection);
        drop(table);
        self.ended.notify_all();
    }
}

/// Whether a new connection ends an older one of the same node, or why it is refused itself.
fn supersedes(new: &PeerInfo, old: &PeerInfo) -> Result<(), Refusal> {
    let (same_start, incarnation) = (new.nonce == old.nonce, new.incarnation);
    let newer = match new.role {
        Role::Leader if incarnation == old.incarnation && !same_start => true,
        Role::Leader => (incarnation, new.link) > (old.incarnation, old.link),
        Role::Member | Role::Client => incarnation > old.incarnation || same_start,
    };
    if newer {
        return Ok(());
    }
    Err(match new.role {
        Role::Leader => Refusal::Other(format!(
            "link {} of incarnation {incarnation} is not newer than {} of {}, which is open",
            new.link, old.link, old.incarnation
        )),
        Role::Member | Role::Client => Refusal::StaleIncarnation {
            incarnation,
            registered: old.incarnation,
        },
    })
}

/// The receiving end of one connection.
struct Caller {
    shared: Arc<Shared>,
    peer: PeerInfo,
}

impl Receiver for Caller {
    fn frame(&self, sender: &Arc<Sender>, body: Bytes) -> Result<(), String> {
        let bytes = body.len();
        let envelope = envelope::decode(body).map_err(|error| error.to_string())?;
        let (id, term) = (envelope.call, envelope.term);
        let request = match envelope.body {
            Body::Request(request) => request,
            Body::Response(_) => return Err("answered without being called".to_owned()),
            Body::Hello(_) => return Err("said hello again".to_owned()),
        };
        let kind = request.kind();
        let responder = if kind.is_one_way() {
            Responder::silent()
        } else {
            Responder::new(sender.clone(), id)
        };
        log::debug!("call {id} of {}: {kind}, {bytes} bytes", self.peer);
        if self.peer.role != kind.caller() {
            let reason = format!("{kind} is for a {} to call", kind.caller());
            responder.send(Response::Refused(Refusal::Other(reason.clone())));
            return Err(reason);
        }
        if self.peer.purpose == Purpose::Fetches && kind != Kind::Fetch {
            let reason = format!("{kind} called on a link for fetches");
            responder.send(Response::Refused(Refusal::Other(reason.clone())));
            return Err(reason);
        }
        let call = CallInfo { id, term, bytes };
        self.shared
            .service
            .handle(&self.peer, call, request, responder);
        Ok(())
    }

    fn wake(&self, _now: Instant) -> Option<Instant> {
        None
    }

    fn closed(&self, _reason: &Arc<str>) {
        self.shared.service.disconnected(&self.peer);
        self.shared.leave(self.peer.connection);
    }
}
