//! The connections of a server, from accept to their end, and who of them gets a place.

use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::Limits;
use crate::logging;
use crate::rpc::PeerInfo;
use crate::rpc::connection::Connection;
use crate::rpc::message::{Refusal, Role};
use crate::rpc::places::{Greeted, Known, Progress};
use crate::threads::Thread;

#[derive(Default)]
pub(super) struct Table {
    /// The number of the last connection accepted.
    pub(super) last: u64,
    /// By number.
    pub(super) entries: FxHashMap<u64, Entry>,
    /// Threads of greetings, by connection number; joined by the acceptor when they have ended.
    pub(super) greetings: FxHashMap<u64, Thread>,
    /// Connections that left `entries`; their threads are joined by the acceptor.
    pub(super) ended: Vec<Arc<Connection>>,
    /// Where nodes came from.
    pub(super) known: Known,
}

/// A connection from accept to its end.
pub(super) struct Entry {
    pub(super) socket: TcpStream,
    pub(super) state: State,
}

pub(super) enum State {
    Greeting {
        /// Where it comes from.
        address: IpAddr,
        progress: Arc<Progress>,
        /// Its socket is shut down, it will leave the table.
        gives_way: bool,
    },
    /// It has its node's place, unless it passes by: no other connection of that node is welcomed.
    Welcomed {
        peer: PeerInfo,
        /// `None` until its threads run.
        connection: Option<Arc<Connection>>,
    },
}

impl Entry {
    pub(super) fn connection(&self) -> Option<Arc<Connection>> {
        match &self.state {
            State::Greeting { .. } => None,
            State::Welcomed { connection, .. } => connection.clone(),
        }
    }

    pub(super) fn is_welcomed(&self) -> bool {
        matches!(self.state, State::Welcomed { .. })
    }

    /// Ends it, after what is queued has left when it has got so far.
    pub(super) fn end(&self, reason: &'static str) {
        match self.connection() {
            Some(connection) => connection.sender().finish(reason),
            // It fails if the peer was faster.
            None => _ = self.socket.shutdown(Shutdown::Both),
        }
    }
}

impl Table {
    /// Makes a place for one more connection that is to be greeted.
    pub(super) fn make_room(&mut self, limits: &Limits) -> Result<(), String> {
        let welcomed = self
            .entries
            .values()
            .filter(|one| one.is_welcomed())
            .count();
        if welcomed >= limits.connections {
            return Err(format!("{welcomed} connections are open"));
        }
        let greeted: Vec<Greeted<'_>> = self
            .entries
            .iter()
            .filter_map(|(number, entry)| match &entry.state {
                State::Greeting {
                    address,
                    progress,
                    gives_way: false,
                } => Some(Greeted {
                    number: *number,
                    address: *address,
                    progress,
                }),
                State::Greeting { .. } | State::Welcomed { .. } => None,
            })
            .collect();
        let count = greeted.len();
        if count < limits.greetings {
            return Ok(());
        }
        // Those that give way still have a thread for a moment.
        let is_short = self.greetings.len() < 2 * limits.greetings;
        let Some(number) = self.known.gives_way(&greeted).filter(|_| is_short) else {
            return Err(format!("{count} are being greeted"));
        };
        if let Some(Entry {
            socket,
            state: State::Greeting {
                address, gives_way, ..
            },
        }) = self.entries.get_mut(&number)
        {
            *gives_way = true;
            // It fails if the peer was faster.
            _ = socket.shutdown(Shutdown::Both);
            if let Some(more) = logging::seldom("rpc greeting gives way") {
                log::warn!("{count} are being greeted, one of {address} gives way{more}");
            }
        }
        Ok(())
    }

    /// Whether there is room for one more connection of the node.
    pub(super) fn check_welcome(&self, peer: &PeerInfo, limits: &Limits) -> Result<(), Refusal> {
        let peers = self
            .entries
            .values()
            .filter_map(|entry| match &entry.state {
                State::Welcomed { peer, .. } => Some(peer),
                State::Greeting { .. } => None,
            });
        let of_name = |other: &&PeerInfo| (other.role, &other.name) == (peer.role, &peer.name);
        let (all, same) = (peers.clone().count(), peers.filter(of_name).count());
        if all >= limits.connections {
            return Err(Refusal::Busy);
        }
        if same >= limits.connections_per_name {
            let name = &peer.name;
            return Err(Refusal::Other(format!(
                "{same} connections of {name} are open"
            )));
        }
        Ok(())
    }
}

/// Whether a new connection ends an older one of the same node, or why it is refused itself.
pub(super) fn supersedes(new: &PeerInfo, old: &PeerInfo) -> Result<(), Refusal> {
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
