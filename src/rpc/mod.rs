//! The wire between leaders and members, and among leaders: length-prefixed protobuf frames over
//! mutual TLS 1.3.
//!
//! | file          | what                                                             |
//! |---------------|------------------------------------------------------------------|
//! | `message`     | what is said, in our own types                                   |
//! | `frame`       | the length prefix; pure                                          |
//! | `envelope`    | protobuf <-> message types, all checks of remote input; pure     |
//! | `tls`         | certificates, roles, sessions, reload                            |
//! | `greeting`    | the TLS handshake and the two Hellos, under one deadline         |
//! | `connection`  | one established connection: reader and writer thread             |
//! | `link`        | the calling side of a connection: call table, deadlines          |
//! | `pool`        | member or peer -> link: open, reconnect, close on removal        |
//! | `server`      | the answering side: accept, role checks, dispatch                |
//! | `places`      | who gives way when greetings run out of places; pure             |
//! | `unfinished`  | deadline and budget of frames that have begun                    |
//! | `responder`   | answers one call                                                 |
//! | `testing`     | certificates for tests                                           |
//!
//! A connection has a calling side (who dialled) and an answering side. The first frame each way is
//! `Hello`; then calls and answers, many in flight, answers in any order. What a call did when its
//! answer does not come (link lost, deadline passed) is not known: it may still be executed. Raft
//! messages are one-way: posted in order, without an answer. Two leaders dial each other, and each
//! posts and calls on the connection that it dialled. A leader keeps [`MEMBER_LINKS`] connections
//! to each member: one for everything, and one for large fetches alone, so that neither stores nor
//! small fetches wait behind large payloads. The threads of the second let others go first.
//!
//! # Threads
//!
//! | thread | owns | waits on | stopped by |
//! |---|---|---|---|
//! | `rx-<peer>` | the receiving half | socket | socket shut down |
//! | `tx-<peer>` | the sending half | out queue, next deadline | out queue closed |
//! | `dial-<peer>` | one target of a pool | its link's end, back-off | target's stop signal |
//! | `accept-rpc` | the listening socket | accept | listener shut down |
//! | `hello-<n>` | a connection being greeted | socket, 5 s at most | socket shut down |
//!
//! # Locks
//!
//! One inside another only in this order: a pool's targets, one target's state; or a server's
//! connections; then a connection's out queue. A link's call table and a connection's TLS session
//! are held alone. None is held over a callback or a system call that blocks.

pub mod connection;
pub mod envelope;
pub mod frame;
pub mod greeting;
pub mod link;
pub mod message;
mod places;
pub mod pool;
pub mod responder;
pub mod server;
pub mod testing;
pub mod tls;
mod unfinished;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;

use crate::ids::ClusterId;
use crate::rpc::message::{Hello, Purpose, Role};
use crate::rpc::tls::PeerCertificate;

/// The version that both Hellos must name.
pub const PROTOCOL_VERSION: u32 = 1;

/// Links that a leader keeps to each member: one for each [`Purpose`].
pub const MEMBER_LINKS: usize = 2;

/// Who this process is, for its Hellos. `name` and `role` must be those of its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalIdentity {
    /// The cluster it belongs to.
    pub cluster_id: ClusterId,
    /// Its name, for example `member-1`.
    pub name: String,
    /// Its `MemberId` or `PeerId` as an integer; 0 for a client.
    pub node_id: u64,
    /// How often its data directory has been started.
    pub incarnation: u64,
    /// Random, new at each start.
    pub nonce: u64,
    /// What it is.
    pub role: Role,
}

impl LocalIdentity {
    /// Compares it with our own certificate: every peer would refuse what does not match.
    pub fn check(&self, own: &PeerCertificate) -> Result<(), String> {
        if own.role == self.role && own.names.contains(&self.name) {
            return Ok(());
        }
        Err(format!(
            "own certificate is {} {:?}'s, this is {} {:?}",
            own.role, own.names, self.role, self.name
        ))
    }

    /// The Hello of a connection with link number `link` (0 unless a leader dials; see [`Hello`]).
    pub fn hello(&self, link: u64) -> Hello {
        Hello {
            protocol: PROTOCOL_VERSION,
            cluster_id: self.cluster_id,
            name: self.name.clone(),
            node_id: self.node_id,
            incarnation: self.incarnation,
            nonce: self.nonce,
            link,
            role: self.role,
            purpose: Purpose::All,
            separates_fetches: self.role == Role::Member,
        }
    }
}

/// The other end of an established connection: its Hello, checked against its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// Tells the connections of one `Server` apart, never used twice; 0 on the dialling side.
    pub connection: u64,
    /// Its address on this connection.
    pub address: SocketAddr,
    /// Its name, in its certificate's SAN.
    pub name: String,
    /// Its `MemberId` or `PeerId` as an integer.
    pub node_id: u64,
    /// How often its data directory has been started.
    pub incarnation: u64,
    /// Random, new at each of its starts.
    pub nonce: u64,
    /// As in [`Hello::link`].
    pub link: u64,
    /// Its role, in its certificate's CN.
    pub role: Role,
    /// What is called on this connection, by whoever dialled it.
    pub purpose: Purpose,
    /// As in [`Hello::separates_fetches`].
    pub separates_fetches: bool,
}

impl fmt::Display for PeerInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (role, name, address) = (self.role, &self.name, self.address);
        write!(f, "{role} {name} ({address})")
    }
}
