//! What a scenario needs of a network, whatever it is made of.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::support::cluster::Server;
use crate::support::group_client::Route;

/// A node: leaders first, then members, then clients.
pub type Node = usize;

/// Nodes `0..LEADERS`.
pub const LEADERS: usize = 3;
/// The nodes behind them.
pub const MEMBERS: usize = 3;
/// The last ones.
pub const CLIENTS: usize = 2;
/// All of them.
pub const NODES: usize = LEADERS + MEMBERS + CLIENTS;

/// The node of a client.
pub fn client(number: usize) -> Node {
    LEADERS + MEMBERS + number
}

/// `leader-1`, `member-1`, `client-1`.
pub fn name(node: Node) -> String {
    match node {
        0..LEADERS => format!("leader-{}", node + 1),
        node if node < LEADERS + MEMBERS => format!("member-{}", node - LEADERS + 1),
        node => format!("client-{}", node - LEADERS - MEMBERS + 1),
    }
}

/// Where a server listens, and what it says of that.
pub struct Ends {
    /// What it binds.
    pub bind: String,
    /// What it tells others.
    pub advertise: String,
}

/// A network whose ways between nodes can be spoilt, one direction at a time.
pub trait Network {
    /// A command that runs where the node is.
    fn command(&self, node: Node, program: &str) -> Command;
    /// For other nodes.
    fn rpc(&self, node: Node) -> Ends;
    /// For clients, of a leader.
    fn client_port(&self, leader: Node) -> Ends;
    /// A node's server runs.
    fn started(&mut self, node: Node, server: &Server);
    /// Where the test itself reaches a leader's client port, whatever is cut.
    fn admin(&self, leader: Node) -> SocketAddr;
    /// The way of a client to the leaders.
    fn route(&self, client: usize) -> Route;
    /// What a client's thread does first.
    fn enter(&self) -> Arc<dyn Fn(usize) + Send + Sync>;
    /// Nothing passes from one to the other any more.
    fn cut(&mut self, from: Node, to: Node);
    /// The node's cable is out, or in again.
    fn unplug(&mut self, node: Node, is_out: bool);
    /// All takes so long from any node to any other; or why that cannot be.
    fn delay(&mut self, time: Duration) -> Result<(), String>;
    /// Of a hundred packets to each node so many are lost; or why that cannot be.
    fn lose(&mut self, percent: u32) -> Result<(), String>;
    /// All is well again.
    fn heal(&mut self);
}
