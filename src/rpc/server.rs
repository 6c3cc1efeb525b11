//! The answering side: accepts connections, checks who they are and what they may call, dispatches.
//!
//! Owns the listener, thread `accept-rpc`, a `hello-<n>` thread for each connection being greeted,
//! and the threads of the connections. A connection is in the table from accept to its end; the
//! table is bounded ([`Limits`]), beyond it connections are closed at once; of those that are being
//! greeted one gives way to a newcomer (see `rpc/places.rs`). Refusals are logged with
//! the address and the reason, one of a kind in some seconds, the others at the level debug; a
//! connection that closes before its first byte is none.
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
use socket2::SockRef;

use crate::clock::{Clock, Instant};
use crate::ids::CallId;
use crate::logging;
use crate::rpc::connection::{Connection, Receiver, Sender};
use crate::rpc::envelope::{self, Body};
use crate::rpc::frame::FRAME_BYTES_MAX;
use crate::rpc::greeting::{Accepting, GREETING_TIMEOUT, GreetingError};
use crate::rpc::message::{Kind, Purpose, Refusal, Request, Response, Role};
use crate::rpc::places::Progress;
pub use crate::rpc::responder::Responder;
use crate::rpc::tls::TlsContext;
use crate::rpc::unfinished::{Budget, InputLimits};
use crate::rpc::{LocalIdentity, PeerInfo};
use crate::threads::{self, StopSignal, Thread, Threads};

mod limits;
mod table;

pub use self::limits::Limits;
use self::table::{Entry, State, Table, supersedes};

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
    /// A peer's Hello was checked against its certificate. An error refuses it, before it can take
    /// the place of another connection: it has no business here, or claims another node's id.
    fn admits(&self, peer: &PeerInfo) -> Result<(), Refusal> {
        _ = peer;
        Ok(())
    }
    /// The largest frame of a peer, in bytes.
    fn frame_bytes_max(&self, peer: &PeerInfo) -> usize {
        _ = peer;
        FRAME_BYTES_MAX
    }
    /// A peer was admitted; an error refuses it. On a thread of its own; may block shortly.
    fn connected(&self, peer: &PeerInfo) -> Result<(), Refusal>;
    /// A call, the caller's role checked, in the order of arrival on that connection, on its reader
    /// thread; for a one-way request `responder` answers nothing and may be dropped. While this
    /// blocks, nothing more is read from this peer, and after some 6 s of that the peer's kernel
    /// takes us for dead. Wake-ups are held (`threads::wakeups`), and with them answers that are
    /// given here, until all calls of one read are handled.
    fn handle(&self, peer: &PeerInfo, call: CallInfo, request: Request, responder: Responder);
    /// All calls of one read were handled, on the reader thread. The same holds for blocking.
    fn read_ended(&self, peer: &PeerInfo) {
        _ = peer;
    }
    /// The connection has ended: once for each `connected` that returned `Ok`, after its last
    /// `handle`.
    fn disconnected(&self, peer: &PeerInfo);
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
            budget: Arc::new(Budget::new(limits.unfinished_bytes)),
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
    /// Of unfinished frames.
    budget: Arc<Budget>,
    stop: StopSignal,
    /// Held for table operations, and for closing sockets.
    table: Mutex<Table>,
    /// Signalled when a welcomed entry leaves the table.
    ended: Condvar,
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
                    if let Err(reason) = self.begin(socket, address)
                        && let Some(more) = logging::seldom("rpc without a place")
                    {
                        log::warn!("refused {address}: {reason}{more}");
                    }
                }
                Err(_) if self.stop.is_stopped() => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true)
                        && let Some(more) = logging::seldom("rpc accept")
                    {
                        log::error!("rpc connections wait to be accepted: {error}{more}");
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
        table.make_room(&self.limits)?;
        table.last += 1;
        let number = table.last;
        let progress = Arc::new(Progress::default());
        let entry = Entry {
            socket: copy,
            state: State::Greeting {
                address: address.ip(),
                progress: progress.clone(),
                gives_way: false,
            },
        };
        table.entries.insert(number, entry);
        let shared = self.clone();
        let greet = move || {
            if let Err(error) = shared.greet(number, socket, &progress) {
                shared.leave(number);
                if progress.is_silent() && matches!(error, GreetingError::Io(_)) {
                    log::debug!("{address} closed before it said anything: {error}");
                } else if let Some(more) = logging::seldom(error.kind()) {
                    log::warn!("refused {address}: {error}{more}");
                } else {
                    log::debug!("refused {address}: {error}");
                }
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
    fn greet(
        self: &Arc<Self>,
        number: u64,
        socket: TcpStream,
        progress: &Arc<Progress>,
    ) -> Result<(), GreetingError> {
        let (clock, progress) = (&*self.clock, progress.clone());
        let accepting =
            Accepting::begin(socket, number, &self.tls, &self.identity, clock, progress)?;
        let peer = accepting.peer();
        let admitted = self
            .service
            .admits(&peer)
            .and_then(|()| self.take_place(&peer))
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
        let connection = accepting.welcome(&self.identity).and_then(|mut greeted| {
            greeted.decoder.set_max(self.service.frame_bytes_max(&peer));
            greeted.limits = InputLimits {
                frame_timeout: self.limits.frame_timeout,
                budget: Some(self.budget.clone()),
            };
            Ok(Connection::start(greeted, self.clock.clone(), caller)?)
        });
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
                State::Welcomed { .. } | State::Greeting { .. } => None,
            });
            let Some((entry, older)) = older else {
                break;
            };
            if older.name != peer.name {
                let (name, role) = (&older.name, older.role);
                let reason = format!("the id belongs to {role} {name}, which is connected");
                return Err(Refusal::Other(reason));
            }
            supersedes(peer, older)?;
            // Its reader ends, and takes it out of the table.
            _ = entry.socket.shutdown(Shutdown::Both);
            let wait = give_up.since(self.clock.now());
            if self.stop.is_stopped() || self.ended.wait_for(&mut table, wait).timed_out() {
                return Err(Refusal::Busy);
            }
        }
        table.check_welcome(peer, &self.limits)?;
        table.known.welcome(peer.address.ip());
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

    fn read_ended(&self) {
        self.shared.service.read_ended(&self.peer);
    }

    fn wake(&self, _now: Instant) -> Option<Instant> {
        None
    }

    fn closed(&self, _reason: &Arc<str>) {
        self.shared.service.disconnected(&self.peer);
        self.shared.leave(self.peer.connection);
    }
}
