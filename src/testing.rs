//! A whole cluster in this process, for the tests of programs that use Tolerex.
//!
//! ```
//! use tolerex::ids::Key;
//! use tolerex::testing::Cluster;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // One leader, two members, each message on both of them.
//! let cluster = Cluster::start(1, 2, 2)?;
//! let client = cluster.client()?;
//! let key = Key::parse(b"greeting")?;
//! client.set(&key, b"hello")?;
//! assert_eq!(client.get(&key)?.map(|message| message.payload), Some(b"hello".to_vec()));
//! # Ok(())
//! # }
//! ```
//!
//! Leaders and members are those of the real thing, with their threads, files, TLS and sockets;
//! only the processes are missing. They listen on free ports of 127.0.0.1 and keep their data in a
//! temporary directory, which goes with the [`Cluster`]. A test may have as many clusters as the
//! machine bears: a cluster of three leaders and three members takes some 150 threads and 30 MiB.
//!
//! Nodes are called `leader-1`, `leader-2`, …, `member-1`, …, as `tolerex up` calls them. One can
//! be stopped in order ([`Cluster::stop`]), be gone without a word ([`Cluster::desert`]), and be
//! started again where it was, with its data ([`Cluster::start_again`]).
//!
//! Known limits: a thread cannot be killed, so a deserter still finishes what it has begun, and its
//! disk is in order when it starts again. What `kill -9` does to a program's cluster is tried with
//! real processes: `tolerex up --leaders 3`, `tolerex kill leader-1`. Nobody holds the ports of a
//! node while it is stopped; should another program take one, it cannot be started again. Members
//! write to the system and do not sync, since the directory does not outlive a test; messages are
//! up to 1 MiB.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::cli::args;
use crate::cli::certs;
use crate::cli::process::{leader_settings, member_settings};
use crate::cli::up::readiness::{self, Expected, Gathering};
use crate::client::Client;
use crate::clock::{Clock, Instant, SystemClock, sleep};
use crate::config::leader::LeaderConfig;
use crate::config::member::MemberConfig;
use crate::config::{Sources, tolerance};
use crate::disk::private;
use crate::ids::ClusterId;
use crate::leader::server::Leader;
use crate::member::server::Member;
use crate::threads::StopSignal;

/// How long a cluster may take until all know each other: a second usually, and much longer on a
/// machine that does a lot else.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How often that is looked at.
const SETTLE_POLL: Duration = Duration::from_millis(10);

/// Bytes of a file of a log. Files are made full of zeros ahead of their use, so a small one makes
/// a start quick; the largest message must fit.
const FILE_BYTES: &str = "2MiB";

/// The largest message.
const PAYLOAD_BYTES_MAX: &str = "1MiB";

/// Threads of a leader that execute requests, instead of 64.
const WORKERS: &str = "8";

/// See the [module](self). Its nodes are stopped and its files removed when it is dropped.
pub struct Cluster {
    /// Leaders first.
    nodes: Vec<Node>,
    cluster_id: ClusterId,
    // Behind the nodes, which use it.
    dir: Dir,
}

/// A node, running or not.
struct Node {
    name: String,
    role: args::Role,
    /// Where it listens for other nodes and for clients, from its first start on.
    rpc: Option<SocketAddr>,
    client: Option<SocketAddr>,
    http: Option<SocketAddr>,
    running: Option<Running>,
}

/// A node's threads.
enum Running {
    Leader(Box<Leader>, StopSignal),
    Member(Box<Member>, StopSignal),
}

impl Cluster {
    /// Starts so many leaders (1, 3 or 5) and members, with `tolerance` copies of each message.
    /// When this returns, every leader has a vote and knows who leads, and every member is up.
    ///
    /// # Errors
    /// Such a cluster cannot be, or this machine does not let it start.
    pub fn start(leaders: usize, members: usize, tolerance: u8) -> Result<Cluster> {
        if ![1, 3, 5].contains(&leaders) {
            bail!("{leaders} leaders: accepted: 1, 3 or 5");
        }
        if !(1..=7).contains(&tolerance) || usize::from(tolerance) > members {
            bail!("tolerance {tolerance} with {members} members: accepted: 1 to 7, one each");
        }
        let dir = Dir::make()?;
        certs::init(&dir.path.join("certs"))?;
        private::create(&dir.path.join("tolerance.conf"))?
            .write_all(tolerance::render(tolerance).as_bytes())?;
        let leaders = (1..=leaders).map(|number| (args::Role::Leader, number));
        let all = leaders.chain((1..=members).map(|number| (args::Role::Member, number)));
        let nodes = all.map(|(role, number)| Node::new(role, number)).collect();
        let random = getrandom::u64().map_err(|error| anyhow!("no random numbers: {error}"))?;
        let mut cluster = Cluster {
            nodes,
            cluster_id: ClusterId(random.max(1)),
            dir,
        };
        for place in 0..cluster.nodes.len() {
            let node = &cluster.nodes[place];
            certs::issue(&cluster.dir.path.join("certs"), &node.name, node.role, &[])?;
            cluster.start_node(place)?;
        }
        cluster.settle(true)?;
        Ok(cluster)
    }

    /// Where clients reach the leaders, `127.0.0.1:port` each, also those that are stopped.
    pub fn addresses(&self) -> Vec<String> {
        let addresses = self.nodes.iter().filter_map(|node| node.client);
        addresses.map(|address| address.to_string()).collect()
    }

    /// Where they are reached over HTTP, `127.0.0.1:port` each, in the same order.
    pub fn http_addresses(&self) -> Vec<String> {
        let addresses = self.nodes.iter().filter_map(|node| node.http);
        addresses.map(|address| address.to_string()).collect()
    }

    /// A client of this cluster, with the default options.
    ///
    /// # Errors
    /// There are no random numbers for its tokens.
    pub fn client(&self) -> Result<Client> {
        Ok(Client::new(self.addresses())?)
    }

    /// The name of the leader that leads now; `None` while one is being elected.
    pub fn leader(&self) -> Option<&str> {
        let leads = |node: &&Node| match &node.running {
            Some(Running::Leader(leader, _)) => leader.control().is_active(),
            Some(Running::Member(..)) | None => false,
        };
        self.nodes.iter().find(leads).map(|node| node.name.as_str())
    }

    /// Stops a node in order. A leader that leads hands over to another one first, if one is left.
    ///
    /// # Errors
    /// There is no such node, it does not run, or a part of it had failed.
    pub fn stop(&mut self, name: &str) -> Result<()> {
        match self.take(name)? {
            Running::Leader(leader, stop) => {
                stop.stop();
                leader.wait()
            }
            Running::Member(member, stop) => {
                stop.stop();
                member.wait()
            }
        }
    }

    /// Stops a node without a word to the others, which find its connections closed, as after a
    /// crash. If it led, they elect another leader within a second or so.
    ///
    /// # Errors
    /// As [`Cluster::stop`].
    pub fn desert(&mut self, name: &str) -> Result<()> {
        self.take(name)?.end()
    }

    /// Starts a node that was stopped, where it was, and waits until it takes part again.
    ///
    /// # Errors
    /// There is no such node, it runs, or it cannot start: its port may be taken meanwhile.
    pub fn start_again(&mut self, name: &str) -> Result<()> {
        let place = self.place(name)?;
        if self.nodes[place].running.is_some() {
            bail!("{name} runs");
        }
        self.start_node(place)?;
        self.settle(false)
    }

    fn place(&self, name: &str) -> Result<usize> {
        let place = self.nodes.iter().position(|node| node.name == name);
        place.with_context(|| format!("there is no {name}"))
    }

    fn take(&mut self, name: &str) -> Result<Running> {
        let place = self.place(name)?;
        let running = self.nodes[place].running.take();
        running.with_context(|| format!("{name} does not run"))
    }

    fn start_node(&mut self, place: usize) -> Result<()> {
        let sources = Sources {
            flags: self.flags(place),
            ..Sources::default()
        };
        let node = &mut self.nodes[place];
        let why = || format!("{} cannot start", node.name);
        let stop = StopSignal::default();
        match node.role {
            args::Role::Leader => {
                let config = LeaderConfig::load(&sources).with_context(why)?.config;
                let settings = leader_settings(&config).map_err(|error| anyhow!(error.text))?;
                let leader = Leader::start(settings, stop.clone()).with_context(why)?;
                let addresses = leader.addresses();
                (node.rpc, node.client) = (Some(addresses.rpc), Some(addresses.client));
                node.http = addresses.http;
                node.running = Some(Running::Leader(Box::new(leader), stop));
            }
            args::Role::Member => {
                let config = MemberConfig::load(&sources).with_context(why)?.config;
                let settings = member_settings(&config).map_err(|error| anyhow!(error.text))?;
                let member = Member::start(&settings, stop.clone()).with_context(why)?;
                node.rpc = Some(member.address());
                node.running = Some(Running::Member(Box::new(member), stop));
            }
            args::Role::Client => unreachable!("no node is a client"),
        }
        Ok(())
    }

    /// The settings of a node, as a command line would give them.
    fn flags(&self, place: usize) -> Vec<(String, String)> {
        let node = &self.nodes[place];
        let at = |address: Option<SocketAddr>| match address {
            Some(address) => address.to_string(),
            None => "127.0.0.1:0".to_owned(),
        };
        let path = |path: &str| self.dir.path.join(path).to_string_lossy().into_owned();
        let name = &node.name;
        let mut flags = vec![
            ("name", name.clone()),
            ("data-dir", path(name)),
            ("cluster-id", self.cluster_id.to_string()),
            ("rpc-bind", at(node.rpc)),
            ("tls-ca", path("certs/ca.crt")),
            ("tls-cert", path(&format!("certs/{name}.crt"))),
            ("tls-key", path(&format!("certs/{name}.key"))),
        ];
        match node.role {
            args::Role::Member => {
                let leaders = self.nodes.iter().filter(|node| node.client.is_some());
                let leaders: Vec<String> = leaders.map(|leader| at(leader.rpc)).collect();
                flags.extend([
                    ("leaders", leaders.join(",")),
                    ("io", "unbuffered".to_owned()),
                    ("segment-bytes", FILE_BYTES.to_owned()),
                ]);
            }
            args::Role::Leader | args::Role::Client => {
                // Where its data is, neither does anything.
                let role = if place == 0 { "bootstrap" } else { "join" };
                flags.extend([
                    ("hatokuse-bind", at(node.client)),
                    ("http-bind", at(node.http)),
                    ("workers", WORKERS.to_owned()),
                    ("snapshot-bytes", FILE_BYTES.to_owned()),
                    ("payload-bytes-max", PAYLOAD_BYTES_MAX.to_owned()),
                    ("tolerance-conf", path("tolerance.conf")),
                    (role, "true".to_owned()),
                ]);
            }
        }
        let owned = |(flag, value): (&str, String)| (flag.to_owned(), value);
        flags.into_iter().map(owned).collect()
    }

    /// Waits until all that run know each other, which needs most of the leaders. `adds`: leaders
    /// that do not belong to the group yet are added.
    fn settle(&self, adds: bool) -> Result<()> {
        let running = |role| {
            let nodes = self.nodes.iter().filter(move |node| node.role == role);
            nodes.filter(|node| node.running.is_some())
        };
        let leaders = self.addresses().len();
        if running(args::Role::Leader).count() <= leaders / 2 {
            return Ok(());
        }
        let address = |address: Option<SocketAddr>| {
            let address = address.expect("one that runs has an address");
            address.to_string()
        };
        let expected = Expected {
            members: running(args::Role::Member)
                .map(|node| node.name.clone())
                .collect(),
            addresses: running(args::Role::Leader)
                .map(|node| address(node.client))
                .collect(),
            leaders: running(args::Role::Leader)
                .map(|node| (node.name.clone(), address(node.rpc)))
                .collect(),
            adds,
        };
        let clock = SystemClock::new();
        let mut gathering = Gathering::default();
        let give_up = clock.now() + SETTLE_TIMEOUT;
        loop {
            let missing = match missing(&expected, &mut gathering, clock.now()) {
                Ok(missing) if missing.is_empty() => return Ok(()),
                Ok(missing) => missing,
                Err(error) => error.to_string(),
            };
            if clock.now() >= give_up {
                bail!("after {SETTLE_TIMEOUT:?} the cluster is not complete: {missing}");
            }
            sleep(SETTLE_POLL);
        }
    }
}

/// What is missing until all know each other.
fn missing(
    expected: &Expected,
    gathering: &mut Gathering,
    now: Instant,
) -> std::io::Result<String> {
    let group = readiness::ask(expected, gathering, now)?;
    if group.leader.is_empty() || !group.missing.is_empty() {
        return Ok(format!("a leader, {}", group.missing.join(", ")));
    }
    for address in &expected.addresses {
        let seen = readiness::seen_by(address, &expected.members)?;
        if seen.leader != group.leader || !seen.missing.is_empty() {
            return Ok(format!("what {address} knows"));
        }
    }
    Ok(String::new())
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // All at once: nobody is left to take over.
        for node in &mut self.nodes {
            if let Some(Err(error)) = node.running.take().map(Running::end) {
                log::warn!("{}: {error:#}", node.name);
            }
        }
    }
}

impl Node {
    fn new(role: args::Role, number: usize) -> Node {
        Node {
            name: format!("{}-{number}", role.as_str()),
            role,
            rpc: None,
            client: None,
            http: None,
            running: None,
        }
    }
}

impl Running {
    /// Stops it without a word to the others.
    fn end(self) -> Result<()> {
        match self {
            Running::Leader(leader, _) => leader.desert(),
            Running::Member(member, stop) => {
                stop.stop();
                member.wait()
            }
        }
    }
}

/// A directory of its own, removed when it is dropped.
struct Dir {
    path: PathBuf,
}

impl Dir {
    fn make() -> Result<Dir> {
        let random = getrandom::u64().map_err(|error| anyhow!("no random numbers: {error}"))?;
        let path = std::env::temp_dir().join(format!("tolerex-{random:016x}"));
        let made = private::create_dir(&path);
        made.with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Dir { path })
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        // What cannot be removed is left to the system, as all temporary files are.
        _ = fs::remove_dir_all(&self.path);
    }
}
