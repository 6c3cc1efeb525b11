//! A network in user space: TCP proxies on the loopback, through which nodes reach each other, and
//! which hold back, delay or drop what passes by the rule for its direction.
//!
//! A node advertises the proxy's address instead of its own, so whoever dials it comes through the
//! proxy. Who that is, the proxy finds out from the kernel: the socket at the other end belongs to
//! one of the processes it was told of (`/proc/net/tcp`, `/proc/PID/fd`). Clients, which are
//! threads of the test, have a listener each instead.
//!
//! What is cut is held back, as on a network whose packets are lost, and goes on when the cut is
//! healed. A packet cannot be lost here: a lost one is a piece that comes as late as its repeat
//! would. Limits: a connection to a node that is cut off is accepted, and silent.
//!
//! Threads: one for each listener and two for each connection, joined when the value is dropped.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tolerex::clock::{Clock, Instant, SystemClock, sleep};
use tolerex::threads::{self, StopSignal, Thread};

/// How often a thread looks at the rules.
const LOOK: Duration = Duration::from_millis(5);

/// Bytes that are under way in one direction of a connection; more stay with the sender.
const UNDER_WAY_MAX: usize = 4 << 20;

/// How late a lost packet's repeat comes, as with TCP.
const REPEAT: Duration = Duration::from_millis(200);

/// A node, by the test's numbers.
pub type Node = usize;

/// What happens to the bytes from one node to another.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rule {
    /// Nothing passes.
    pub is_cut: bool,
    /// All comes so late.
    pub delay: Duration,
    /// Of a hundred pieces, so many are lost at first.
    pub loss: u32,
}

/// Where a listener leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Port {
    /// A node's RPC.
    Rpc(Node),
    /// A leader's client port.
    Client(Node),
}

impl Port {
    fn node(self) -> Node {
        match self {
            Port::Rpc(node) | Port::Client(node) => node,
        }
    }
}

#[derive(Default)]
struct Tables {
    rules: HashMap<(Node, Node), Rule>,
    targets: HashMap<Port, SocketAddr>,
    /// Pids, in the order in which they were told.
    processes: Vec<(u32, Node)>,
}

struct Shared {
    clock: SystemClock,
    stop: StopSignal,
    tables: Mutex<Tables>,
    /// Of the connections; the listeners add to it.
    pumps: Mutex<Vec<Thread>>,
}

/// Who made a connection.
struct Dialler {
    peer: SocketAddr,
    own: SocketAddr,
    /// The node, and how many processes were known when it was looked for last: a server dials
    /// before it says that it is ready.
    found: Mutex<(Option<Node>, usize)>,
}

impl Dialler {
    fn node(&self, shared: &Shared) -> Option<Node> {
        let mut found = self.found.lock();
        let processes: Vec<(u32, Node)> = match &*found {
            (Some(node), _) => return Some(*node),
            (None, tried) => {
                let tables = shared.tables.lock();
                let all = tables.processes.iter().skip(*tried);
                all.copied().collect()
            }
        };
        if !processes.is_empty() {
            found.0 = holder_of(self.peer, self.own, &processes);
            found.1 += processes.len();
        }
        found.0
    }
}

/// The network.
pub struct Proxies {
    shared: Arc<Shared>,
    listeners: Vec<Thread>,
}

impl Default for Proxies {
    fn default() -> Proxies {
        let shared = Shared {
            clock: SystemClock::new(),
            stop: StopSignal::default(),
            tables: Mutex::default(),
            pumps: Mutex::default(),
        };
        Proxies {
            shared: Arc::new(shared),
            listeners: Vec::new(),
        }
    }
}

impl Proxies {
    /// An address that leads to a port. `dialler` is who dials it, where that is one alone.
    pub fn listen(&mut self, port: Port, dialler: Option<Node>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("set");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::clone(&self.shared);
        let body = move || {
            while !shared.stop.wait_timeout(LOOK) {
                while let Ok((stream, peer)) = listener.accept() {
                    let found = Mutex::new((dialler, 0));
                    let own = address;
                    connect(&shared, stream, Dialler { peer, own, found }, port);
                }
            }
        };
        self.listeners
            .push(threads::spawn("proxy", body).expect("a thread"));
        address
    }

    /// From here on a port is there.
    pub fn set_target(&self, port: Port, address: SocketAddr) {
        self.shared.tables.lock().targets.insert(port, address);
    }

    /// From here on this process is that node.
    pub fn set_process(&self, pid: u32, node: Node) {
        self.shared.tables.lock().processes.push((pid, node));
    }

    /// Changes the rule for what goes from one node to another.
    pub fn change(&self, from: Node, to: Node, change: impl FnOnce(&mut Rule)) {
        change(
            self.shared
                .tables
                .lock()
                .rules
                .entry((from, to))
                .or_default(),
        );
    }

    /// Takes all rules back.
    pub fn heal(&self) {
        self.shared.tables.lock().rules.clear();
    }
}

impl Drop for Proxies {
    fn drop(&mut self) {
        self.shared.stop.stop();
        std::mem::take(&mut self.listeners)
            .into_iter()
            .for_each(Thread::join);
        let pumps = std::mem::take(&mut *self.shared.pumps.lock());
        pumps.into_iter().for_each(Thread::join);
    }
}

/// Sets up both directions of a new connection.
fn connect(shared: &Arc<Shared>, near: TcpStream, dialler: Dialler, port: Port) {
    let target = shared.tables.lock().targets.get(&port).copied();
    // Nobody there: the dialler sees the connection close.
    let far = target.and_then(|target| TcpStream::connect(target).ok());
    let Some(far) = far else { return };
    let dialler = Arc::new(dialler);
    let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
    let ways = [(clone(&near), clone(&far), true), (far, near, false)];
    let mut pumps = shared.pumps.lock();
    pumps.retain(|pump| !pump.is_finished());
    for (source, sink, is_there) in ways {
        let way = Way {
            shared: Arc::clone(shared),
            source,
            sink,
            dialler: Arc::clone(&dialler),
            dialled: port.node(),
            is_there,
            held: VecDeque::new(),
            bytes: 0,
        };
        pumps.push(threads::spawn("pump", move || way.run()).expect("a thread"));
    }
}

/// One direction of a connection.
struct Way {
    shared: Arc<Shared>,
    source: TcpStream,
    sink: TcpStream,
    dialler: Arc<Dialler>,
    dialled: Node,
    /// Whether it is the one from the dialler to the dialled.
    is_there: bool,
    /// What has left, and when it arrives.
    held: VecDeque<(Instant, Vec<u8>)>,
    /// In `held`.
    bytes: usize,
}

impl Way {
    fn run(mut self) {
        for stream in [&self.source, &self.sink] {
            stream.set_nonblocking(false).expect("set");
            stream.set_nodelay(true).expect("set");
        }
        self.source.set_read_timeout(Some(LOOK)).expect("set");
        self.sink
            .set_write_timeout(Some(Duration::from_secs(5)))
            .expect("set");
        let mut is_open = true;
        while is_open || !self.held.is_empty() {
            if self.shared.stop.is_stopped() {
                break;
            }
            let rule = self.rule();
            if rule.is_cut {
                sleep(LOOK);
                continue;
            }
            if !self.deliver() {
                // The one who sends has to learn of it too.
                _ = self.source.shutdown(Shutdown::Both);
                return;
            }
            match is_open && self.bytes < UNDER_WAY_MAX {
                true => is_open = self.take(rule),
                false => sleep(LOOK),
            }
        }
        let how = if is_open {
            Shutdown::Both
        } else {
            Shutdown::Write
        };
        _ = self.sink.shutdown(how);
    }

    fn rule(&self) -> Rule {
        let Some(dialler) = self.dialler.node(&self.shared) else {
            return Rule::default();
        };
        let pair = match self.is_there {
            true => (dialler, self.dialled),
            false => (self.dialled, dialler),
        };
        let tables = self.shared.tables.lock();
        tables.rules.get(&pair).copied().unwrap_or_default()
    }

    /// Passes on what is due; false if that is not possible any more.
    fn deliver(&mut self) -> bool {
        let now = self.shared.clock.now();
        while self.held.front().is_some_and(|(due, _)| *due <= now) {
            let (_, piece) = self.held.pop_front().expect("looked at");
            self.bytes -= piece.len();
            if self.sink.write_all(&piece).is_err() {
                return false;
            }
        }
        true
    }

    /// Waits a moment for what comes; false at its end.
    fn take(&mut self, rule: Rule) -> bool {
        let mut piece = vec![0; 64 << 10];
        match self.source.read(&mut piece) {
            Ok(0) => false,
            Ok(length) => {
                piece.truncate(length);
                let is_lost = fastrand::u32(..100) < rule.loss;
                let late = if is_lost { REPEAT } else { Duration::ZERO };
                let due = self.shared.clock.now() + rule.delay + late;
                // What comes behind a lost packet waits for it.
                let before = self.held.back().map_or(due, |(before, _)| *before);
                self.held.push_back((due.max(before), piece));
                self.bytes += length;
                // At once, where nothing holds it up.
                self.deliver()
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => true,
            Err(error) if error.kind() == ErrorKind::TimedOut => true,
            Err(_) => false,
        }
    }
}

/// The node whose process has the other end of a connection.
fn holder_of(peer: SocketAddr, own: SocketAddr, processes: &[(u32, Node)]) -> Option<Node> {
    let end = |address: SocketAddr| format!("0100007F:{:04X}", address.port());
    let (local, remote) = (end(peer), end(own));
    let table = fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
    let rows = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut rows = rows.filter(|row| row.len() > 9 && row[1] == local && row[2] == remote);
    let socket = format!("socket:[{}]", rows.next()?[9]);
    let holds = |pid: u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd"));
        let files = files.into_iter().flatten().flatten();
        let mut links = files.filter_map(|file| fs::read_link(file.path()).ok());
        links.any(|link| link.as_os_str() == socket.as_str())
    };
    let found = processes.iter().find(|(pid, _)| holds(*pid));
    found.map(|(_, node)| *node)
}
