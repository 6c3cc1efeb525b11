//! One TLS connection's state, without its socket: bytes in, bytes out.
//!
//! [`Session::handshake`] does I/O, on one thread, before a connection has others. After it, the
//! owner holds the session under a mutex, for encryption and decryption alone, and moves the bytes
//! itself.

use std::io::{self, BufRead, Read, Write};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, Connection, ServerConnection};

use crate::rpc::frame::Decoder;
use crate::rpc::tls::{PeerCertificate, TlsContext, TlsError};

/// The state of one TLS connection.
pub struct Session {
    inner: Connection,
    /// The common name that makes its holder a leader.
    leader_name: String,
}

/// What [`Session::receive`] found besides data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// The peer said that it sends no more.
    pub closed: bool,
    /// There is something to send back (a key update): the writer must flush.
    pub flush: bool,
}

impl Session {
    /// The dialling side's.
    pub fn client(context: &TlsContext) -> Result<Session, TlsError> {
        // Not looked at and, SNI being off, not sent: see `rpc::tls`.
        let name = ServerName::try_from("tolerex").map_err(broken)?;
        let loaded = context.loaded();
        let inner = ClientConnection::new(loaded.client.clone(), name).map_err(broken)?;
        Ok(Session::new(Connection::Client(inner), &loaded.leader_name))
    }

    /// The accepting side's.
    pub fn server(context: &TlsContext) -> Result<Session, TlsError> {
        let loaded = context.loaded();
        let inner = ServerConnection::new(loaded.server.clone()).map_err(broken)?;
        Ok(Session::new(Connection::Server(inner), &loaded.leader_name))
    }

    fn new(mut inner: Connection, leader_name: &str) -> Session {
        // The out queue has its own bound; a second one here would split what is written together.
        inner.set_buffer_limit(None);
        Session {
            inner,
            leader_name: leader_name.to_owned(),
        }
    }

    /// Does the whole handshake and says who the peer is. Errors of `io` are passed on; TLS errors,
    /// reported to the peer where possible, are `InvalidData`, with a [`TlsError`] inside.
    pub fn handshake(&mut self, io: &mut (impl Read + Write)) -> io::Result<PeerCertificate> {
        while self.inner.is_handshaking() {
            match self.inner.complete_io(io) {
                Ok(_) => (),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    // The library tries one write, which may end before the alert: without it
                    // the peer could only log that the connection was closed.
                    while self.inner.wants_write() {
                        if !self.inner.write_tls(io).is_ok_and(|written| written > 0) {
                            break;
                        }
                    }
                    return Err(invalid_data(broken(error)));
                }
                Err(error) => return Err(error),
            }
        }
        let certificate = self
            .inner
            .peer_certificates()
            .and_then(<[_]>::first)
            .ok_or_else(|| invalid_data(TlsError::Certificate("is missing".to_owned())))?;
        PeerCertificate::parse(certificate, &self.leader_name)
            .map_err(|problem| invalid_data(TlsError::Certificate(problem)))
    }

    /// Encrypts `plain` and appends what is to be written to the socket to `cipher`.
    pub fn send(&mut self, plain: &[u8], cipher: &mut Vec<u8>) {
        self.inner
            .writer()
            .write_all(plain)
            .expect("the session's own buffer has no limit");
        self.flush(cipher);
    }

    /// Appends what waits to be written (alerts, key updates) to `cipher`.
    pub fn flush(&mut self, cipher: &mut Vec<u8>) {
        while self.inner.wants_write() {
            self.inner.write_tls(cipher).expect("a Vec takes all");
        }
    }

    /// Says that we send no more; [`Session::flush`] gives it.
    pub fn close_notify(&mut self) {
        self.inner.send_close_notify();
    }

    /// Takes what the socket gave and adds what it decrypts to, to `plain`. With no `cipher` it
    /// gives what the handshake brought along. After an error the alert for the peer waits to be
    /// flushed.
    pub fn receive(
        &mut self,
        mut cipher: &[u8],
        plain: &mut Decoder,
    ) -> Result<Received, TlsError> {
        loop {
            if !cipher.is_empty() {
                self.inner.read_tls(&mut cipher).map_err(broken)?;
            }
            let state = self.inner.process_new_packets().map_err(broken)?;
            let mut closed = state.peer_has_closed();
            let mut reader = self.inner.reader();
            loop {
                match reader.fill_buf() {
                    Ok([]) => {
                        closed = true;
                        break;
                    }
                    Ok(chunk) => {
                        let taken = chunk.len();
                        plain.push(chunk);
                        reader.consume(taken);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(broken(error)),
                }
            }
            if cipher.is_empty() || closed {
                let flush = self.inner.wants_write();
                return Ok(Received { closed, flush });
            }
        }
    }
}

fn broken(error: impl ToString) -> TlsError {
    TlsError::Broken(error.to_string())
}

fn invalid_data(error: TlsError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
