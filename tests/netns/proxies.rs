//! The network in user space: every node on the loopback, with a proxy before each port.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::network::{CLIENTS, Ends, LEADERS, MEMBERS, NODES, Network, Node, client};
use crate::support::cluster::Server;
use crate::support::group_client::Route;
use crate::support::proxy::{Port, Proxies};

/// Ports of the loopback.
pub struct ProxyNetwork {
    proxies: Proxies,
    /// By server: its RPC for others.
    rpc: Vec<SocketAddr>,
    /// By client and leader: its client port.
    ports: Vec<Vec<SocketAddr>>,
    /// By leader: the client port itself, once it runs.
    behind: Vec<Option<SocketAddr>>,
}

impl ProxyNetwork {
    /// Everything is open.
    pub fn new() -> ProxyNetwork {
        let mut proxies = Proxies::default();
        let servers = 0..LEADERS + MEMBERS;
        let rpc = servers
            .map(|node| proxies.listen(Port::Rpc(node), None))
            .collect();
        let mut ports = Vec::new();
        for number in 0..CLIENTS {
            let own = |leader| proxies.listen(Port::Client(leader), Some(client(number)));
            ports.push((0..LEADERS).map(own).collect());
        }
        ProxyNetwork {
            proxies,
            rpc,
            ports,
            behind: vec![None; LEADERS],
        }
    }

    fn change_all(&self, change: impl Fn(&mut crate::support::proxy::Rule)) {
        for from in 0..NODES {
            (0..NODES).for_each(|to| self.proxies.change(from, to, &change));
        }
    }
}

impl Network for ProxyNetwork {
    fn command(&self, _node: Node, program: &str) -> Command {
        Command::new(program)
    }

    fn rpc(&self, node: Node) -> Ends {
        Ends {
            bind: "127.0.0.1:0".to_owned(),
            advertise: self.rpc[node].to_string(),
        }
    }

    fn client_port(&self, leader: Node) -> Ends {
        Ends {
            bind: "127.0.0.1:0".to_owned(),
            advertise: self.ports[0][leader].to_string(),
        }
    }

    fn started(&mut self, node: Node, server: &Server) {
        self.proxies.set_process(server.pid(), node);
        self.proxies.set_target(Port::Rpc(node), server.rpc);
        if let Some(address) = server.hatokuse {
            self.proxies.set_target(Port::Client(node), address);
            self.behind[node] = Some(address);
        }
    }

    fn admin(&self, leader: Node) -> SocketAddr {
        self.behind[leader].expect("it runs")
    }

    fn route(&self, client: usize) -> Route {
        let advertised = self.ports[0].iter().map(SocketAddr::to_string).collect();
        Route {
            dial: self.ports[client].clone(),
            advertised,
            ..Route::direct(&[])
        }
    }

    fn enter(&self) -> Arc<dyn Fn(usize) + Send + Sync> {
        Arc::new(|_| {})
    }

    fn cut(&mut self, from: Node, to: Node) {
        self.proxies.change(from, to, |rule| rule.is_cut = true);
    }

    fn unplug(&mut self, node: Node, is_out: bool) {
        for other in 0..NODES {
            self.proxies
                .change(node, other, |rule| rule.is_cut = is_out);
            self.proxies
                .change(other, node, |rule| rule.is_cut = is_out);
        }
    }

    fn delay(&mut self, time: Duration) -> Result<(), String> {
        self.change_all(|rule| rule.delay = time);
        Ok(())
    }

    fn lose(&mut self, percent: u32) -> Result<(), String> {
        self.change_all(|rule| rule.loss = percent);
        Ok(())
    }

    fn heal(&mut self) {
        self.proxies.heal();
    }
}
