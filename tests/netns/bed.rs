//! A cluster by hand on a network: certificates, three leaders that one after the other are added
//! to the group, three members.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use crate::network::{LEADERS, MEMBERS, Network, Node, name};
use crate::support::client::Client;
use crate::support::cluster::{LEADER, MEMBER, Server, tolerex};
use crate::support::group_client::{GroupClient, Route};
use crate::support::wait_until;

/// How long the cluster may take to be complete, and to be so again after a fault.
const COMPLETE_MAX: Duration = Duration::from_secs(20);

/// How long a leader may take to say how it is.
pub const STATUS_MAX: Duration = Duration::from_secs(2);

/// The cluster.
pub struct Bed<N: Network> {
    /// What is between its nodes.
    pub network: N,
    // Before the directory: servers end first.
    servers: Vec<Server>,
    dir: TempDir,
}

impl<N: Network> Bed<N> {
    /// Sets all up and waits until it is complete.
    pub fn start(network: N) -> Bed<N> {
        let mut bed = Bed {
            network,
            servers: Vec::new(),
            dir: tempfile::tempdir().expect("a directory"),
        };
        bed.certs(&["init"], &[]);
        for node in 0..LEADERS + MEMBERS {
            let role = if node < LEADERS { "leader" } else { "member" };
            bed.certs(&["issue"], &["--name", &name(node), "--role", role]);
        }
        for node in 0..LEADERS {
            bed.start_leader(node);
        }
        let first = bed.network.admin(0).to_string();
        for node in 1..LEADERS {
            let rpc = bed.network.rpc(node).advertise;
            let output = tolerex(&["group", "add", &rpc, "--addr", &first]);
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{errors}\n{}", bed.logs());
        }
        for node in LEADERS..LEADERS + MEMBERS {
            bed.start_member(node);
        }
        bed.wait_complete();
        bed
    }

    fn certs(&self, action: &[&str], more: &[&str]) {
        let certs = self.dir.path().join("certs");
        let dir = certs.to_str().expect("UTF-8");
        let output = tolerex(&[&["certs"], action, &[dir], more].concat());
        assert!(output.status.success(), "{output:?}");
    }

    fn start_leader(&mut self, node: Node) {
        let (rpc, client) = (self.network.rpc(node), self.network.client_port(node));
        let mut command = self.network.command(node, LEADER);
        command.args(["--hatokuse-bind", &client.bind, "--hatokuse-advertise"]);
        command.args([&client.advertise, "--insecure", "--http-bind", ""]);
        command.arg(if node == 0 { "--bootstrap" } else { "--join" });
        self.run(node, command, &rpc.bind, &rpc.advertise);
    }

    fn start_member(&mut self, node: Node) {
        let rpc = self.network.rpc(node);
        let leaders: Vec<String> = (0..LEADERS)
            .map(|leader| self.network.rpc(leader).advertise)
            .collect();
        let mut command = self.network.command(node, MEMBER);
        command.args(["--leaders", &leaders.join(",")]);
        self.run(node, command, &rpc.bind, &rpc.advertise);
    }

    fn run(&mut self, node: Node, mut command: std::process::Command, bind: &str, told: &str) {
        command.args([
            "--name",
            &name(node),
            "--rpc-bind",
            bind,
            "--rpc-advertise",
            told,
        ]);
        command.arg("--base-dir").arg(self.dir.path());
        let server = Server::run(&mut command, &self.log_path(node));
        self.network.started(node, &server);
        self.servers.push(server);
    }

    /// What a leader says of itself, if it is reached so quickly.
    pub fn status(&self, leader: Node, patience: Duration) -> Option<serde_json::Value> {
        let address = self.network.admin(leader);
        let mut client = Client::try_connect_within(address, patience).ok()?;
        let status = client.try_command("STATUS JSON").ok()?;
        serde_json::from_str(&status).ok()
    }

    /// A client of the test itself, whatever is cut.
    pub fn client(&self) -> GroupClient {
        let dial = (0..LEADERS).map(|leader| self.network.admin(leader));
        GroupClient::new(Route {
            dial: dial.collect(),
            ..self.network.route(0)
        })
    }

    /// Waits until one leader leads all others, which have its whole journal, and all members are
    /// up; gives the leader and its term.
    pub fn wait_complete(&self) -> (Node, u64) {
        let mut client = self.client();
        let mut term = 0;
        wait_until("the cluster is complete", COMPLETE_MAX, || {
            let group = client.group(COMPLETE_MAX);
            let peers = group["peers"].as_array().expect("peers");
            let is_level = peers.iter().all(|peer| {
                peer["matched"] == peers[0]["matched"]
                    && (peer["state"] == "leader" || peer["state"] == "follower")
                    && peer["role"] == "voter"
            });
            let Some(status) = self.status(client.leader(), STATUS_MAX) else {
                return false;
            };
            term = status["term"].as_u64().expect("a number");
            let members = status["members"].as_array().expect("members");
            let up = members.iter().filter(|member| member["state"] == "up");
            is_level && peers.len() == LEADERS && up.count() == MEMBERS
        });
        (client.leader(), term)
    }

    fn log_path(&self, node: Node) -> PathBuf {
        self.dir.path().join(format!("{}.log", name(node)))
    }

    fn logs(&self) -> String {
        let mut text = String::new();
        for node in 0..LEADERS + MEMBERS {
            let log = fs::read(self.log_path(node)).unwrap_or_default();
            let log = String::from_utf8_lossy(&log).into_owned();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(60)..];
            text += &format!("--- {}\n{}\n", name(node), tail.join("\n"));
        }
        text
    }
}

impl<N: Network> Drop for Bed<N> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}
