//! How a connection begins: the TLS handshake, then a Hello each way, under one deadline.
//!
//! The dialling side sends its Hello first; the accepting side checks it and answers with its own,
//! or with `Refused` and the reason. All of it runs on one thread, blocking, before the connection
//! has threads of its own. A silent or slow peer ends with [`GreetingError::TimedOut`], however it
//! spreads its bytes. Until both Hellos are checked no frame may be larger than 4 KiB.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

use crate::clock::{Clock, Instant};
use crate::ids::CallId;
use crate::rpc::envelope::{self, Body, Envelope};
use crate::rpc::frame::{Decoder, FRAME_BYTES_MAX};
use crate::rpc::message::{Hello, Purpose, Refusal, Response, Role};
use crate::rpc::places::Progress;
use crate::rpc::tls::session::Session;
use crate::rpc::tls::{PeerCertificate, TlsContext, TlsError};
use crate::rpc::unfinished::InputLimits;
use crate::rpc::{LocalIdentity, PROTOCOL_VERSION, PeerInfo};

/// How long one address may take to connect. Round trips here are far below it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long handshake and Hellos may take. Half of it fails on a busy machine (a handshake is a few
/// ms of computing each side), twice of it keeps a silent peer's thread longer.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest frame before the peer is known; a Hello has about 300 bytes at most, a reason 1 KiB.
const HELLO_BYTES_MAX: usize = 4096;

/// Keep-alive: first probe after this idle time, then one each second.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(2);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);

/// The kernel ends a connection whose data or probes are unacknowledged for so long: a host that
/// vanished. Half of it would cut links at a short network fault, twice of it leaves calls to their
/// deadlines for longer.
const USER_TIMEOUT: Duration = Duration::from_secs(6);

/// Who must answer at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its role.
    pub role: Role,
    /// Its name, when it is known.
    pub name: Option<String>,
    /// Its node id, when it is known.
    pub node_id: Option<u64>,
}

/// Why a connection was not made.
#[derive(Debug, thiserror::Error)]
pub enum GreetingError {
    /// The address has no meaning here.
    #[error("address {address} cannot be resolved: {problem}")]
    Address {
        /// As given.
        address: String,
        /// The resolver's words.
        problem: String,
    },
    /// The socket failed, or the peer closed it.
    #[error("{0}")]
    Io(#[source] io::Error),
    /// The peer was silent or slow.
    #[error("no complete greeting in time")]
    TimedOut,
    /// No TLS, another CA, no valid certificate, no role in it.
    #[error("{0}")]
    Tls(#[source] TlsError),
    /// Its frames are not ours.
    #[error("{0}")]
    Protocol(String),
    /// It is not who it should be, or cannot be talked to: protocol, cluster, role, name or id.
    #[error("{0}")]
    WrongPeer(String),
    /// It refused us.
    #[error("refused: {0}")]
    Refused(#[source] Refusal),
}

impl GreetingError {
    /// What kind of reason it is, for lines that are logged seldom.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            GreetingError::Address { .. } => "rpc address",
            GreetingError::Io(_) => "rpc greeting broken off",
            GreetingError::TimedOut => "rpc greeting too slow",
            GreetingError::Tls(_) => "rpc greeting without tls",
            GreetingError::Protocol(_) => "rpc greeting not understood",
            GreetingError::WrongPeer(_) => "rpc peer refused",
            GreetingError::Refused(_) => "refused by an rpc peer",
        }
    }
}

impl From<io::Error> for GreetingError {
    fn from(error: io::Error) -> GreetingError {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        match (inner, error.kind()) {
            (Some(tls), _) => GreetingError::Tls(TlsError::clone(tls)),
            (None, io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => GreetingError::TimedOut,
            (None, _) => GreetingError::Io(error),
        }
    }
}

impl From<TlsError> for GreetingError {
    fn from(error: TlsError) -> GreetingError {
        GreetingError::Tls(error)
    }
}

/// A connection whose ends know each other, ready for its threads.
pub(crate) struct Greeted {
    pub(crate) socket: TcpStream,
    pub(crate) session: Session,
    /// Holds what came behind the Hello.
    pub(crate) decoder: Decoder,
    pub(crate) peer: PeerInfo,
    pub(crate) limits: InputLimits,
}

/// Connects to `host:port`, trying each of its addresses.
pub(crate) fn connect(address: &str) -> Result<TcpStream, GreetingError> {
    let unresolved = |problem: String| GreetingError::Address {
        address: address.to_owned(),
        problem,
    };
    let addresses = address
        .to_socket_addrs()
        .map_err(|error| unresolved(error.to_string()))?;
    let mut last = unresolved("no address".to_owned());
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = GreetingError::from(error),
        }
    }
    Err(last)
}

/// The dialling side's greeting on a fresh socket.
pub(crate) fn dial(
    socket: TcpStream,
    expected: &Expected,
    tls: &TlsContext,
    identity: &LocalIdentity,
    (link, purpose): (u64, Purpose),
    clock: &dyn Clock,
) -> Result<Greeted, GreetingError> {
    let session = Session::client(tls)?;
    let mut greeter = Greeter::new(socket, session, clock)?;
    let certificate = greeter.handshake()?;
    check_expected(expected, &certificate)?;
    greeter.send(Body::Hello(Hello {
        purpose,
        ..identity.hello(link)
    }))?;
    let hello = match greeter.receive()? {
        Body::Hello(hello) => hello,
        Body::Response(Response::Refused(refusal)) => return Err(GreetingError::Refused(refusal)),
        Body::Request(_) | Body::Response(_) => return Err(no_hello()),
    };
    check_hello(&hello, &certificate, identity)?;
    check_expected_hello(expected, &hello)?;
    let mut greeted = greeter.finish(hello, 0)?;
    greeted.peer.purpose = purpose;
    Ok(greeted)
}

/// The accepting side's greeting, in two steps, so that its owner can refuse between them.
pub(crate) struct Accepting<'a> {
    greeter: Greeter<'a>,
    hello: Hello,
    connection: u64,
}

impl<'a> Accepting<'a> {
    /// Handshake and the peer's Hello, checked. A bad Hello is refused with the reason.
    pub(crate) fn begin(
        socket: TcpStream,
        connection: u64,
        tls: &TlsContext,
        identity: &LocalIdentity,
        clock: &'a dyn Clock,
        progress: Arc<Progress>,
    ) -> Result<Accepting<'a>, GreetingError> {
        let session = Session::server(tls)?;
        let mut greeter = Greeter::new(socket, session, clock)?;
        greeter.progress = progress;
        let certificate = greeter.handshake()?;
        greeter.progress.is_proved();
        let hello = match greeter.receive()? {
            Body::Hello(hello) => hello,
            Body::Request(_) | Body::Response(_) => return Err(no_hello()),
        };
        if let Err(error) = check_hello(&hello, &certificate, identity) {
            greeter.refuse(Refusal::Other(error.to_string()));
            return Err(error);
        }
        Ok(Accepting {
            greeter,
            hello,
            connection,
        })
    }

    /// Who it is.
    pub(crate) fn peer(&self) -> PeerInfo {
        self.greeter.peer(&self.hello, self.connection)
    }

    /// Answers with the reason and closes.
    pub(crate) fn refuse(mut self, refusal: Refusal) {
        self.greeter.refuse(refusal);
    }

    /// Answers with our Hello.
    pub(crate) fn welcome(mut self, identity: &LocalIdentity) -> Result<Greeted, GreetingError> {
        self.greeter.send(Body::Hello(identity.hello(0)))?;
        self.greeter.finish(self.hello, self.connection)
    }
}

fn no_hello() -> GreetingError {
    GreetingError::Protocol("the first frame is not a hello".to_owned())
}

fn check_expected(expected: &Expected, certificate: &PeerCertificate) -> Result<(), GreetingError> {
    if certificate.role != expected.role {
        let (wanted, got) = (expected.role, certificate.role);
        let text = format!("certificate is a {got}'s and should be a {wanted}'s");
        return Err(GreetingError::WrongPeer(text));
    }
    match &expected.name {
        Some(name) if !certificate.names.contains(name) => {
            let text = format!("certificate is for {:?}, not {name:?}", certificate.names);
            Err(GreetingError::WrongPeer(text))
        }
        Some(_) | None => Ok(()),
    }
}

fn check_expected_hello(expected: &Expected, hello: &Hello) -> Result<(), GreetingError> {
    let wrong = |text: String| Err(GreetingError::WrongPeer(text));
    match (&expected.name, expected.node_id) {
        (Some(name), _) if *name != hello.name => {
            wrong(format!("node is {:?}, not {name:?}", hello.name))
        }
        (_, Some(id)) if id != hello.node_id => wrong(format!(
            "node id is {:016x}, not {id:016x}: another data directory",
            hello.node_id
        )),
        _ => Ok(()),
    }
}

/// What each side demands of the other's Hello.
pub(crate) fn check_hello(
    hello: &Hello,
    certificate: &PeerCertificate,
    identity: &LocalIdentity,
) -> Result<(), GreetingError> {
    let wrong = |text: String| Err(GreetingError::WrongPeer(text));
    if hello.protocol != PROTOCOL_VERSION {
        return wrong(format!(
            "protocol version is {}, not {PROTOCOL_VERSION}",
            hello.protocol
        ));
    }
    if hello.cluster_id != identity.cluster_id {
        let (theirs, ours) = (hello.cluster_id, identity.cluster_id);
        return wrong(format!("cluster is {theirs}, not {ours}"));
    }
    if (hello.role, hello.node_id) == (identity.role, identity.node_id) && hello.node_id != 0 {
        let (role, id) = (hello.role, hello.node_id);
        return wrong(format!("{role} {id:016x} is this node itself, or a copy"));
    }
    if hello.purpose == Purpose::Fetches && identity.role != Role::Member {
        return wrong(format!("a {} is not fetched from", identity.role));
    }
    if hello.role != certificate.role {
        let (said, proven) = (hello.role, certificate.role);
        return wrong(format!("role is {said} by hello, {proven} by certificate"));
    }
    if !certificate.names.contains(&hello.name) {
        let (said, proven) = (&hello.name, &certificate.names);
        return wrong(format!("name is {said:?}, certificate is for {proven:?}"));
    }
    Ok(())
}

/// A socket and its session while one thread has both.
struct Greeter<'a> {
    socket: TcpStream,
    address: SocketAddr,
    session: Session,
    decoder: Decoder,
    clock: &'a dyn Clock,
    deadline: Instant,
    /// For those who wait for a place.
    progress: Arc<Progress>,
}

impl<'a> Greeter<'a> {
    fn new(socket: TcpStream, session: Session, clock: &'a dyn Clock) -> io::Result<Greeter<'a>> {
        socket.set_nodelay(true)?;
        let options = SockRef::from(&socket);
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL);
        options.set_tcp_keepalive(&keepalive)?;
        #[cfg(target_os = "linux")]
        options.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        Ok(Greeter {
            address: socket.peer_addr()?,
            socket,
            session,
            decoder: Decoder::new(HELLO_BYTES_MAX),
            clock,
            deadline: clock.now() + GREETING_TIMEOUT,
            progress: Arc::default(),
        })
    }

    fn handshake(&mut self) -> io::Result<PeerCertificate> {
        let mut io = DeadlineIo {
            socket: &self.socket,
            clock: self.clock,
            deadline: self.deadline,
            progress: &self.progress,
        };
        self.session.handshake(&mut io)
    }

    fn send(&mut self, body: Body) -> Result<(), GreetingError> {
        let call = CallId(0);
        let frame = envelope::encode(Envelope {
            call,
            term: 0,
            body,
        })
        .map_err(|error| GreetingError::Protocol(error.to_string()))?;
        let mut cipher = Vec::new();
        frame
            .parts()
            .for_each(|part| self.session.send(part, &mut cipher));
        self.write(&cipher)?;
        Ok(())
    }

    fn write(&mut self, cipher: &[u8]) -> io::Result<()> {
        let mut io = DeadlineIo {
            socket: &self.socket,
            clock: self.clock,
            deadline: self.deadline,
            progress: &self.progress,
        };
        io.write_all(cipher)
    }

    fn receive(&mut self) -> Result<Body, GreetingError> {
        let protocol = |error: &dyn ToString| GreetingError::Protocol(error.to_string());
        let mut buffer = [0; HELLO_BYTES_MAX];
        let mut bytes = 0;
        loop {
            let cipher = buffer.get(..bytes).unwrap_or_default();
            let received = self.session.receive(cipher, &mut self.decoder)?;
            if let Some(body) = self
                .decoder
                .next_frame()
                .map_err(|error| protocol(&error))?
            {
                let envelope = envelope::decode(body).map_err(|error| protocol(&error))?;
                return Ok(envelope.body);
            }
            let mut io = DeadlineIo {
                socket: &self.socket,
                clock: self.clock,
                deadline: self.deadline,
                progress: &self.progress,
            };
            bytes = if received.closed {
                0
            } else {
                io.read(&mut buffer)?
            };
            if bytes == 0 {
                return Err(GreetingError::Io(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Best effort: the peer waits for our Hello, so the reason arrives unless it is gone.
    fn refuse(&mut self, refusal: Refusal) {
        if self
            .send(Body::Response(Response::Refused(refusal)))
            .is_ok()
        {
            let mut cipher = Vec::new();
            self.session.close_notify();
            self.session.flush(&mut cipher);
            if self.write(&cipher).is_ok() {
                // Fails only if the peer closed it first.
                _ = self.socket.shutdown(Shutdown::Write);
            }
        }
    }

    fn peer(&self, hello: &Hello, connection: u64) -> PeerInfo {
        PeerInfo {
            connection,
            address: self.address,
            name: hello.name.clone(),
            node_id: hello.node_id,
            incarnation: hello.incarnation,
            nonce: hello.nonce,
            link: hello.link,
            role: hello.role,
            purpose: hello.purpose,
            separates_fetches: hello.separates_fetches,
        }
    }

    fn finish(mut self, hello: Hello, connection: u64) -> Result<Greeted, GreetingError> {
        let peer = self.peer(&hello, connection);
        self.socket.set_read_timeout(None)?;
        self.socket.set_write_timeout(None)?;
        self.decoder.set_max(FRAME_BYTES_MAX);
        Ok(Greeted {
            socket: self.socket,
            session: self.session,
            decoder: self.decoder,
            peer,
            limits: InputLimits::default(),
        })
    }
}

/// A blocking socket on which all reads and writes together end at a deadline.
struct DeadlineIo<'a> {
    socket: &'a TcpStream,
    clock: &'a dyn Clock,
    deadline: Instant,
    progress: &'a Progress,
}

impl DeadlineIo<'_> {
    fn remaining(&self) -> io::Result<Duration> {
        let remaining = self.deadline.since(self.clock.now());
        if remaining.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(remaining)
    }
}

/// The kernel reports a socket timeout as `WouldBlock`, which rustls would take for a retry.
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}

impl Read for DeadlineIo<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.remaining()?))?;
        let bytes = self.socket.read(buffer).map_err(timed_out)?;
        if bytes > 0 {
            self.progress.speaks();
        }
        Ok(bytes)
    }
}

impl Write for DeadlineIo<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.remaining()?))?;
        self.socket.write(buffer).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
