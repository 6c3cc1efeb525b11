//! The thread `bench-open`: finds the active leader for connections that lost theirs.
//!
//! The threads that drive a load never wait for a connection: they ask here for another one and go
//! on with those they have. It owns the [client](crate::client) that looks for the leader. Its
//! queue holds every connection of the load once, so nobody waits to ask; it ends with the last
//! driver.
//!
//! The leader is found over HaToKuSe whatever the load is spoken in: where it serves HTTP is in its
//! table of the group.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::{Receiver, Select, Sender, bounded};
use serde::Deserialize;

use super::CONNECT_TIMEOUT;
use super::driver::Shared;
use crate::cli::args::Protocol;
use crate::client::{Client, ClientError, Connection, connect};
use crate::threads::{self, Thread};

/// How often an address that has just been a leader's is tried again where it takes no connection.
const TRIES: usize = 3;

/// A connection that is wanted.
struct Wanted {
    place: usize,
    answer: Sender<Opened>,
}

/// The connection for a place, or why there is none.
pub type Opened = (usize, Result<TcpStream, ClientError>);

/// Where drivers ask.
pub struct Opener {
    wanted: Sender<Wanted>,
}

/// One driver's side.
pub struct Share {
    wanted: Sender<Wanted>,
    answer: Sender<Opened>,
    opened: Receiver<Opened>,
    /// Asked for and not answered.
    waiting: usize,
}

impl Opener {
    /// Starts the thread, for so many connections.
    pub fn start(
        (client, protocol): (Client, Protocol),
        connections: usize,
        shared: Arc<Shared>,
    ) -> anyhow::Result<(Opener, Thread)> {
        let (wanted, receiver) = bounded(connections);
        let body = move || serve((&client, protocol), &receiver, &shared);
        let thread = threads::spawn("bench-open", body)?;
        Ok((Opener { wanted }, thread))
    }

    /// For a driver of so many connections.
    pub fn share(&self, connections: usize) -> Share {
        let (answer, opened) = bounded(connections);
        Share {
            wanted: self.wanted.clone(),
            answer,
            opened,
            waiting: 0,
        }
    }
}

impl Share {
    /// Asks for a connection, one at a time for a place.
    pub fn ask(&mut self, place: usize) {
        let answer = self.answer.clone();
        let asked = self.wanted.try_send(Wanted { place, answer });
        asked.expect("the thread lives, and its queue has room for every connection");
        self.waiting += 1;
    }

    /// Whether a connection is still to come.
    pub fn is_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// Waits until a connection has come, `timeout` at most.
    pub fn wait(&self, timeout: Duration) {
        let mut select = Select::new();
        select.recv(&self.opened);
        _ = select.ready_timeout(timeout);
    }

    /// A connection that has come.
    pub fn take(&mut self) -> Option<Opened> {
        if !self.is_waiting() {
            return None;
        }
        let opened = self.opened.try_recv().ok()?;
        self.waiting -= 1;
        Some(opened)
    }
}

fn serve(leaders: (&Client, Protocol), wanted: &Receiver<Wanted>, shared: &Shared) {
    for first in wanted {
        let opened = open(leaders, shared);
        let error = opened.as_ref().err().cloned();
        // Whoever has ended does not take it.
        _ = first.answer.try_send((first.place, opened));
        if let Some(error) = error {
            // Those that came meanwhile have waited for the same leader.
            for next in wanted.try_iter() {
                _ = next.answer.try_send((next.place, Err(error.clone())));
            }
        }
    }
}

fn open(
    (client, protocol): (&Client, Protocol),
    shared: &Shared,
) -> Result<TcpStream, ClientError> {
    let mut tried = "it was ended".to_owned();
    for _ in 0..TRIES {
        if shared.stop.load(Ordering::Relaxed) {
            break;
        }
        let leader = find(client, protocol)?;
        match dial(&leader, protocol) {
            Ok(stream) => return Ok(stream),
            Err(error) => tried = format!("{leader}: {error}"),
        }
    }
    Err(ClientError::NoLeader { tried })
}

/// As much of `GROUP JSON` as is needed here.
#[derive(Deserialize)]
struct Group {
    peers: Vec<Peer>,
}

#[derive(Deserialize)]
struct Peer {
    state: String,
    http: String,
}

/// Where the active leader takes connections.
pub fn find(client: &Client, protocol: Protocol) -> Result<String, ClientError> {
    let leader = client.leader()?;
    if protocol == Protocol::Hatokuse {
        return Ok(leader);
    }
    // The same one answers.
    let table = client.raw(b"GROUP JSON", None)?.done()?.line;
    let group: Group = serde_json::from_slice(&table).map_err(|error| ClientError::Refused {
        reason: format!("{leader} does not say where it serves HTTP: {error}"),
    })?;
    let active = group.peers.into_iter().find(|peer| peer.state == "leader");
    match active {
        Some(peer) if !peer.http.is_empty() => Ok(peer.http),
        Some(_) => Err(ClientError::Refused {
            reason: format!("{leader} serves no HTTP (http_bind)"),
        }),
        // It leads no more, or the next one is not known yet.
        None => Err(ClientError::NoLeader {
            tried: format!("{leader} does not know who leads"),
        }),
    }
}

/// Opens a connection to a leader, ready for requests.
pub fn dial(leader: &str, protocol: Protocol) -> io::Result<TcpStream> {
    match protocol {
        Protocol::Hatokuse => Ok(Connection::open(leader, CONNECT_TIMEOUT)?.into_stream()),
        Protocol::Http => connect(leader, CONNECT_TIMEOUT),
    }
}
