//! The kernel's network: a namespace with an address for each node, and a bridge between them.
//!
//! A test starts itself again by `unshare` in namespaces of its own (user, network, mounts,
//! processes), where it is root, whoever it was. There it makes the bridge and, by `ip netns` on a
//! `/run` of its own, the nodes. All of it, processes included, ends with the inner test, which
//! ends with the outer one: nothing can be left behind.
//!
//! A cut in one direction is a neighbour entry with an address that nobody has: frames leave and
//! arrive nowhere. Loss and delay are `netem`'s where the kernel has it; else loss is a rule of
//! `nft` at each node's input, and delay cannot be had. Needs `unshare` (util-linux), `ip` and `tc`
//! (iproute2), `nft` (nftables).

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Command, Output, Stdio, exit};
use std::sync::Arc;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tolerex::threads;

use crate::network::{Ends, LEADERS, NODES, Network, Node, client};
use crate::support::cluster::Server;
use crate::support::group_client::Route;
use crate::support::wait_until;

/// Set for the inner test.
const INSIDE: &str = "NETNS_INSIDE";

/// How long a test may take.
const TEST_MAX: Duration = Duration::from_secs(180);

const RPC: u16 = 5555;
const CLIENT: u16 = 6666;

/// Nobody's.
const NOWHERE: &str = "02:00:00:00:ff:ff";

/// What `unshare` is asked for; user namespaces first, which need no rights.
const WAYS: [&[&str]; 2] = [&["--user", "--map-root-user"], &[]];
const SPACES: [&str; 6] = [
    "--net",
    "--mount",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
];

/// In the new namespaces: what has to be allowed.
const TRY: &str = "mount -t tmpfs none /run && ip netns add t && ip link add tb type bridge && \
                   ip link add tv type veth peer name eth0 netns t";

/// The same for the inner test.
const ENTER: &str = "mount -t tmpfs none /run && exec \"$@\"";

/// Runs a test in namespaces of its own, or says why that cannot be.
pub fn inside(test: &str, body: impl FnOnce(Namespaces)) {
    if std::env::var_os(INSIDE).is_some() {
        end_with_parent();
        return body(Namespaces::new());
    }
    let way = match allowed_way() {
        Ok(way) => way,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let mut command = Command::new("unshare");
    command
        .args(way)
        .args(SPACES)
        .args(["sh", "-c", ENTER, "sh"]);
    command.arg(std::env::current_exe().expect("this test"));
    command.args([
        "--exact",
        test,
        "--include-ignored",
        "--nocapture",
        "--test-threads",
        "1",
    ]);
    command.env(INSIDE, "1").stdin(Stdio::piped());
    let mut child = command.spawn().expect("it was tried");
    // Held open: its end is the inner test's end.
    let stdin = child.stdin.take();
    let mut status = None;
    wait_until(test, TEST_MAX, || {
        status = child.try_wait().expect("our child");
        status.is_some()
    });
    drop(stdin);
    assert!(
        status.is_some_and(|status| status.success()),
        "{test} failed inside"
    );
}

fn allowed_way() -> Result<&'static [&'static str], String> {
    let mut reasons = Vec::new();
    for way in WAYS {
        let mut command = Command::new("unshare");
        command.args(way).args(SPACES).args(["sh", "-c", TRY]);
        match command.output() {
            Ok(output) if output.status.success() => return Ok(way),
            Ok(output) => reasons.push(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => reasons.push(format!("unshare: {error}")),
        }
    }
    Err(format!(
        "no network namespaces here: {}",
        reasons.join("; ")
    ))
}

/// The outer test's end closes our standard input, also when it is killed.
fn end_with_parent() {
    let body = || {
        _ = std::io::stdin().read(&mut [0]);
        exit(1);
    };
    // It waits until the process ends.
    drop(threads::spawn("parent", body).expect("a thread"));
}

/// A namespace for each node.
pub struct Namespaces {
    has_netem: bool,
}

fn space(node: Node) -> String {
    format!("n{node}")
}

fn ip(node: Node) -> String {
    format!("10.77.0.{}", node + 1)
}

fn mac(node: Node) -> String {
    format!("02:00:00:00:00:{:02x}", node + 1)
}

fn run(command: &mut Command, input: &str) -> Output {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    // It may have ended without reading; its status tells.
    _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("our child")
}

/// Runs lines of `ip`, in a node or between them.
fn ip_batch(node: Option<Node>, lines: &[String]) {
    let mut command = Command::new("ip");
    if let Some(node) = node {
        command.args(["-n", &space(node)]);
    }
    let output = run(command.args(["-batch", "-"]), &(lines.join("\n") + "\n"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{lines:?}: {errors}");
}

impl Namespaces {
    fn new() -> Namespaces {
        let mut between = vec![
            "link set lo up".to_owned(),
            "link add bridge0 type bridge".to_owned(),
            // For the test itself, which no cut concerns.
            "addr add 10.77.0.100/24 dev bridge0".to_owned(),
            "link set bridge0 up".to_owned(),
        ];
        for node in 0..NODES {
            let space = space(node);
            let output = run(Command::new("ip").args(["netns", "add", &space]), "");
            assert!(output.status.success(), "{output:?}");
            between.push(format!(
                "link add v{node} type veth peer name eth0 netns {space}"
            ));
            between.push(format!("link set v{node} master bridge0 up"));
        }
        ip_batch(None, &between);
        for node in 0..NODES {
            let (mac, ip) = (mac(node), ip(node));
            let lines = [
                "link set lo up".to_owned(),
                format!("link set eth0 address {mac}"),
                format!("addr add {ip}/24 dev eth0"),
                "link set eth0 up".to_owned(),
            ];
            ip_batch(Some(node), &lines);
        }
        let mut tried = Command::new("tc");
        tried.args(["qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]);
        let has_netem = run(&mut tried, "").status.success();
        if has_netem {
            run(
                Command::new("tc").args(["qdisc", "del", "dev", "lo", "root"]),
                "",
            );
        }
        let mut network = Namespaces { has_netem };
        network.heal();
        network
    }

    fn neighbour(node: Node, mac: &str) -> String {
        format!(
            "neigh replace {} lladdr {mac} dev eth0 nud permanent",
            ip(node)
        )
    }

    /// Does the network do to a datagram what the scenarios say?
    pub fn check_cut(&mut self) {
        let pass = |from: Node, to: Node| {
            let receiver = within(to, move || UdpSocket::bind((ip(to), 7000)).expect("bound"));
            receiver
                .set_read_timeout(Some(Duration::from_millis(300)))
                .expect("set");
            within(from, move || {
                let sender = UdpSocket::bind((ip(from), 0)).expect("bound");
                sender.send_to(b"x", (ip(to), 7000)).expect("sent");
            });
            receiver.recv(&mut [0; 8]).is_ok()
        };
        assert!(pass(0, 1) && pass(1, 0), "all is open");
        self.cut(0, 1);
        assert!(!pass(0, 1), "it is cut");
        assert!(
            pass(1, 0) && pass(0, 2) && pass(2, 1),
            "the others are open"
        );
        self.heal();
        assert!(pass(0, 1), "it is healed");
        self.unplug(2, true);
        assert!(!pass(0, 2) && !pass(2, 0) && pass(0, 1), "one is unplugged");
        self.unplug(2, false);
        // The kernel takes a moment to see that a cable is in.
        wait_until("it is plugged in", Duration::from_secs(5), || {
            pass(0, 2) && pass(2, 0)
        });
    }

    fn netem(&self, what: &[&str]) {
        for node in 0..NODES {
            let mut command = Command::new("tc");
            command.args([
                "-n",
                &space(node),
                "qdisc",
                "replace",
                "dev",
                "eth0",
                "root",
                "netem",
            ]);
            let output = run(command.args(what), "");
            assert!(output.status.success(), "{output:?}");
        }
    }
}

/// Runs something on a thread in a node; what it makes stays there.
fn within<T: Send + 'static>(node: Node, body: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let body = move || {
        enter(node);
        _ = sender.send(body());
    };
    let thread = threads::spawn("within", body).expect("a thread");
    let made = receiver.recv();
    thread.join();
    made.expect("it ends")
}

/// Moves this thread into a node.
fn enter(node: Node) {
    let file = File::open(format!("/run/netns/{}", space(node))).expect("made before");
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("moved");
}

impl Network for Namespaces {
    fn command(&self, node: Node, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &space(node), program]);
        command
    }

    fn rpc(&self, node: Node) -> Ends {
        let bind = format!("{}:{RPC}", ip(node));
        let advertise = bind.clone();
        Ends { bind, advertise }
    }

    fn client_port(&self, leader: Node) -> Ends {
        let bind = self.admin(leader).to_string();
        let advertise = bind.clone();
        Ends { bind, advertise }
    }

    fn started(&mut self, _node: Node, _server: &Server) {}

    fn admin(&self, leader: Node) -> SocketAddr {
        SocketAddr::new(ip(leader).parse().expect("an address"), CLIENT)
    }

    fn route(&self, _client: usize) -> Route {
        let addresses = (0..LEADERS).map(|leader| self.admin(leader).to_string());
        Route::direct(&addresses.collect::<Vec<_>>())
    }

    fn enter(&self) -> Arc<dyn Fn(usize) + Send + Sync> {
        Arc::new(|number| enter(client(number)))
    }

    fn cut(&mut self, from: Node, to: Node) {
        ip_batch(Some(from), &[Namespaces::neighbour(to, NOWHERE)]);
    }

    fn unplug(&mut self, node: Node, is_out: bool) {
        let how = if is_out { "down" } else { "up" };
        ip_batch(None, &[format!("link set v{node} {how}")]);
    }

    fn delay(&mut self, time: Duration) -> Result<(), String> {
        if !self.has_netem {
            return Err("this kernel has no netem, so nothing can be delayed".to_owned());
        }
        self.netem(&["delay", &format!("{}ms", time.as_millis())]);
        Ok(())
    }

    fn lose(&mut self, percent: u32) -> Result<(), String> {
        if self.has_netem {
            self.netem(&["loss", &format!("{percent}%")]);
            return Ok(());
        }
        let rules = format!(
            "table ip loss {{ chain in {{ type filter hook input priority 0;\n\
             numgen random mod 100 < {percent} drop\n}}\n}}\n"
        );
        for node in 0..NODES {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &space(node), "nft", "-f", "-"]);
            let output = run(&mut command, &rules);
            if !output.status.success() {
                let errors = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                return Err(format!("neither netem nor nft here: {errors}"));
            }
        }
        Ok(())
    }

    fn heal(&mut self) {
        for node in 0..NODES {
            let others = (0..NODES).filter(|other| *other != node);
            let lines = others.map(|other| Namespaces::neighbour(other, &mac(other)));
            ip_batch(Some(node), &lines.collect::<Vec<_>>());
            // These are there only where they were set.
            if self.has_netem {
                let mut command = Command::new("tc");
                run(
                    command.args(["-n", &space(node), "qdisc", "del", "dev", "eth0", "root"]),
                    "",
                );
            } else {
                let mut command = Command::new("ip");
                command.args([
                    "netns",
                    "exec",
                    &space(node),
                    "nft",
                    "delete",
                    "table",
                    "ip",
                ]);
                run(command.arg("loss"), "");
            }
        }
        let plugs = (0..NODES).map(|node| format!("link set v{node} up"));
        ip_batch(None, &plugs.collect::<Vec<_>>());
    }
}
