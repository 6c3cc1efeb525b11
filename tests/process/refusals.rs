//! Who may not talk to the cluster is refused, and both sides say why.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tolerex::clock::{Clock, SystemClock};
use tolerex::ids::{ClusterId, Fence, Revision};
use tolerex::rpc::LocalIdentity;
use tolerex::rpc::greeting::{Expected, GreetingError};
use tolerex::rpc::link::Link;
use tolerex::rpc::message::{FetchRequest, Request, Response, Role};
use tolerex::rpc::tls::{TlsContext, TlsSettings};

use crate::support::cluster::{Cluster, MEMBER, run, tolerex};
use crate::support::wait_until;

/// Where an impostor's certificates are: those of the cluster, or of another authority.
fn issue(certs: &Path, name: &str, role: &str) {
    let dir = certs.to_str().expect("UTF-8");
    if !certs.join("ca.key").exists() {
        assert!(tolerex(&["certs", "init", dir]).status.success());
    }
    let args = ["certs", "issue", dir, "--name", name, "--role", role];
    assert!(tolerex(&args).status.success());
}

/// A peer that says what our own processes would not.
struct Impostor<'a> {
    /// The authorities that it trusts.
    ca: &'a Path,
    certs: &'a Path,
    /// Whose certificate it has.
    holder: &'a str,
    /// What it says of itself.
    identity: LocalIdentity,
}

impl Impostor<'_> {
    /// Connects to a node of `role`.
    fn dial(&self, address: &str, role: Role) -> Result<Arc<Link>, GreetingError> {
        let settings = TlsSettings {
            ca: self.ca.to_owned(),
            certificate: self.certs.join(format!("{}.crt", self.holder)),
            key: self.certs.join(format!("{}.key", self.holder)),
            leader_name: "leader".to_owned(),
        };
        let clock = SystemClock::shared();
        let tls = TlsContext::load(settings, clock.clone()).expect("a pair of its own authority");
        let expected = Expected {
            role,
            name: None,
            node_id: None,
        };
        Link::dial(address, &expected, &tls, &self.identity, 0, clock)
    }
}

fn cluster_id(cluster: &Cluster) -> ClusterId {
    let text = std::fs::read_to_string(cluster.dir().join("config/member-1.toml"));
    let table: toml::Table = text.expect("read").parse().expect("TOML");
    let id = table["cluster_id"].as_str().expect("text");
    ClusterId(u64::from_str_radix(id, 16).expect("hexadecimal"))
}

fn identity(cluster: ClusterId, name: &str, role: Role) -> LocalIdentity {
    LocalIdentity {
        cluster_id: cluster,
        name: name.to_owned(),
        node_id: 77,
        incarnation: 1,
        nonce: 1,
        role,
    }
}

fn wait_for_text(what: &str, text: &str, read: impl Fn() -> String) {
    let what = format!("{what} says {text:?}");
    let mut last = String::new();
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_until(&what, Duration::from_secs(8), || {
            last = read();
            last.contains(text)
        });
    }));
    assert!(found.is_ok(), "{what}; it says:\n{last}");
}

/// Warnings in a log.
fn warnings(log: &str) -> String {
    let lines = log.lines().filter(|line| line.contains(" WARN "));
    lines.collect::<Vec<_>>().join("\n")
}

/// Refusals in a log. Those that are like one of the last 10 s are at the level debug.
fn refusals(log: &str) -> String {
    let lines = log
        .lines()
        .filter(|line| line.contains(": refused 127.0.0.1"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_peer_that_is_not_what_it_says_is_refused_and_told_why() {
    let environment = [("RUST_LOG", "info,tolerex::rpc=debug")];
    let cluster = Cluster::start_with(&["--members", "1", "--tolerance", "1"], &environment);
    let own = cluster.dir().join("certs");
    let scratch = tempfile::tempdir().expect("a directory");
    let other = scratch.path().to_owned();
    issue(&other, "member-7", "member");
    issue(&own, "member-8", "member");
    issue(&own, "leader-8", "leader");
    let (own_ca, other_ca) = (own.join("ca.crt"), other.join("ca.crt"));
    let both_ca = other.join("both.crt");
    let texts = [&own_ca, &other_ca].map(|path| std::fs::read_to_string(path).expect("read"));
    std::fs::write(&both_ca, texts.concat()).expect("written");
    let ours = cluster_id(&cluster);
    let addresses = ["leader-1", "member-1"].map(|name| {
        let address = cluster.field(name, "rpc");
        address.as_str().expect("text").to_owned()
    });
    let (member, leader) = (Role::Member, Role::Leader);
    // Whose authority, certificate, and what it says; then the reason that both sides give.
    for (certs, holder, said, reason) in [
        (&other, "member-7", identity(ours, "member-7", member), ""),
        (
            &own,
            "member-8",
            identity(ours, "member-9", member),
            "name is \"member-9\"",
        ),
        (
            &own,
            "leader-8",
            identity(ours, "leader-8", member),
            "role is member by hello",
        ),
        (
            &own,
            "member-8",
            identity(ours, "member-8", leader),
            "role is leader by hello",
        ),
        (
            &own,
            "member-8",
            identity(ClusterId(0xaa), "member-8", member),
            "00000000000000aa",
        ),
    ] {
        for (node, address, role) in [
            ("leader-1", &addresses[0], leader),
            ("member-1", &addresses[1], member),
        ] {
            // Who trusts both authorities is refused by the node, else it refuses the node.
            let foreign = [&other_ca, &both_ca];
            for ca in if reason.is_empty() {
                foreign
            } else {
                [&own_ca; 2]
            } {
                let before = cluster.log(node).len();
                let impostor = Impostor {
                    ca,
                    certs,
                    holder,
                    identity: said.clone(),
                };
                let Err(error) = impostor.dial(address, role) else {
                    panic!("{said:?} is welcome at {node}");
                };
                let text = error.to_string();
                assert!(
                    text.contains(reason) && !text.is_empty(),
                    "{said:?} at {node}: {text}"
                );
                wait_for_text(node, "refused 127.0.0.1", || {
                    refusals(&cluster.log(node).split_off(before))
                });
                let log = refusals(&cluster.log(node).split_off(before));
                assert!(log.contains(reason), "{said:?} at {node}: {log}");
                let is_named = [
                    "certificate",
                    "alert",
                    "cluster is",
                    "is \"member-9\"",
                    "by hello",
                ];
                assert!(
                    is_named.iter().any(|text| log.contains(text)),
                    "{node}: {log}"
                );
            }
        }
    }
    // Ten refusals of two kinds in a few seconds: a warning once of a kind in 10 s.
    for node in ["leader-1", "member-1"] {
        let log = refusals(&cluster.log(node));
        let warned = warnings(&log).lines().count();
        assert!((1..log.lines().count()).contains(&warned), "{node}: {log}");
    }
    let status = cluster.client().status();
    assert_eq!(
        status["members"].as_array().expect("members").len(),
        1,
        "{status}"
    );
    assert_eq!(cluster.client().command("SET k v"), "OK");
}

#[test]
fn only_a_leader_may_store_and_read_and_release_on_a_member() {
    let cluster = Cluster::start(&["--members", "1", "--tolerance", "1"]);
    assert_eq!(cluster.client().command("SET k secret"), "OK");
    let certs = cluster.dir().join("certs");
    let address = cluster.field("member-1", "rpc");
    let (name, role) = ("member-8", Role::Member);
    issue(&certs, name, "member");
    let impostor = Impostor {
        ca: &certs.join("ca.crt"),
        certs: &certs,
        holder: name,
        identity: identity(cluster_id(&cluster), name, role),
    };
    // Being connected is nothing yet; who is refused at once is as well refused.
    if let Ok(link) = impostor.dial(address.as_str().expect("text"), Role::Member) {
        let fence = Fence {
            term: 1 << 30,
            link: 1,
        };
        let revisions = vec![Revision::new(2, 0)];
        let request = Request::Fetch(FetchRequest { fence, revisions });
        let deadline = SystemClock::new().now() + Duration::from_secs(5);
        let answer = link.call_wait(0, request, deadline);
        assert!(
            matches!(&answer, Err(_) | Ok(Response::Refused(_))),
            "{answer:?}"
        );
        link.close();
    }
    wait_for_text("member-1", name, || warnings(&cluster.log("member-1")));
    assert_eq!(cluster.client().command("SET k more"), "OK");
}

/// What a process would only be refused for, it finds out itself, and does not start.
#[test]
fn a_member_with_a_certificate_that_is_not_its_own_does_not_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let (own, other) = (dir.path().join("own"), dir.path().join("other"));
    for (certs, name, role) in [
        (&own, "member-1", "member"),
        (&own, "leader-1", "leader"),
        (&own, "client-1", "client"),
        (&other, "member-1", "member"),
    ] {
        issue(certs, name, role);
    }
    for (name, certs, holder, expected) in [
        (
            "member-1",
            &other,
            "member-1",
            "member-1.crt: not valid under the CA",
        ),
        (
            "member-2",
            &own,
            "member-1",
            "own certificate is member [\"member-1\"]'s",
        ),
        (
            "leader-1",
            &own,
            "leader-1",
            "own certificate is leader [\"leader-1\"]'s",
        ),
        ("client-1", &own, "client-1", "client-1.crt: not valid"),
    ] {
        let mut command = Command::new(MEMBER);
        command.args(["--name", name, "--rpc-bind", "127.0.0.1:0"]);
        command.args(["--cluster-id", "0000000000000001"]);
        command.arg("--data-dir").arg(dir.path().join(name));
        command.arg("--tls-ca").arg(own.join("ca.crt"));
        command
            .arg("--tls-cert")
            .arg(certs.join(format!("{holder}.crt")));
        command
            .arg("--tls-key")
            .arg(certs.join(format!("{holder}.key")));
        let output = run(&mut command, Duration::from_secs(10));
        let text = crate::errors(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(expected), "{name} with {holder}: {text}");
    }
}

/// Sends plain text and takes what comes until the other side closes.
fn plain_text(address: &str) -> Vec<u8> {
    let address: SocketAddr = address.parse().expect("an address");
    let mut stream = TcpStream::connect(address).expect("connected");
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("set");
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .expect("sent");
    let mut answer = Vec::new();
    // A reset is as good an end as any.
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    answer
}

#[test]
fn plain_text_on_an_rpc_port_is_refused_with_a_reason() {
    let cluster = Cluster::start(&["--members", "1", "--tolerance", "1"]);
    for name in ["leader-1", "member-1"] {
        let address = cluster.field(name, "rpc");
        let answer = plain_text(address.as_str().expect("text"));
        assert!(!answer.starts_with(b"HTTP"), "{name}: {answer:?}");
        wait_for_text(name, "refused 127.0.0.1", || {
            let log = cluster.log(name);
            let lines = log.lines().filter(|line| line.contains("WARN"));
            lines.collect::<Vec<_>>().join("\n")
        });
    }
    assert_eq!(cluster.client().command("SET k v"), "OK");
}
