//! Who may not talk to the cluster is refused, and both sides say why.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::cluster::{Cluster, MEMBER, Server, tolerex};
use crate::support::wait_until;

/// Certificates and a member's flags with them.
struct Stranger<'a> {
    cluster: &'a Cluster,
    dir: PathBuf,
}

impl Stranger<'_> {
    /// A certificate by the authority in `certs`, which is made if there is none.
    fn certificate(&self, certs: &Path, name: &str, role: &str) {
        let dir = certs.to_str().expect("UTF-8");
        if !certs.join("ca.key").exists() {
            assert!(tolerex(&["certs", "init", dir]).status.success());
        }
        let args = ["certs", "issue", dir, "--name", name, "--role", role];
        assert!(tolerex(&args).status.success());
    }

    /// Starts a member that calls itself `name`, with the certificate of `certs/holder`.
    fn start(&self, name: &str, certs: &Path, holder: &str, more: &[&str]) -> (Server, PathBuf) {
        let log = self.dir.join(format!("{name}.log"));
        let mut command = Command::new(MEMBER);
        command
            .arg("--config")
            .arg(self.cluster.dir().join("config/member-1.toml"));
        command.args(["--name", name, "--rpc-bind", "127.0.0.1:0"]);
        command.arg("--data-dir").arg(self.dir.join(name));
        command
            .arg("--tls-cert")
            .arg(certs.join(format!("{holder}.crt")));
        command
            .arg("--tls-key")
            .arg(certs.join(format!("{holder}.key")));
        let leader = self.cluster.field("leader-1", "rpc");
        command
            .args(["--leaders", leader.as_str().expect("text")])
            .args(more);
        (Server::run(&mut command, &log), log)
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

#[test]
fn a_member_with_a_wrong_certificate_or_cluster_is_refused_and_told_why() {
    let cluster = Cluster::start(&["--members", "1", "--tolerance", "1"]);
    let scratch = tempfile::tempdir().expect("a directory");
    let stranger = Stranger {
        cluster: &cluster,
        dir: scratch.path().to_owned(),
    };
    let (own, other) = (cluster.dir().join("certs"), scratch.path().join("other"));
    for (certs, name, role) in [
        (&other, "member-7", "member"),
        (&own, "member-8", "client"),
        (&own, "member-6", "member"),
        (&own, "member-5", "member"),
    ] {
        stranger.certificate(certs, name, role);
    }
    let other_cluster = ["--cluster-id", "00000000000000aa"];
    // (name, certificate, more flags, what the leader says, what the member says)
    for (name, certs, holder, more, leaders, members) in [
        (
            "member-7",
            &other,
            "member-7",
            &[][..],
            "UnknownIssuer",
            "leader 127.0.0.1",
        ),
        ("member-8", &own, "member-8", &[], "client", "client"),
        (
            "member-9",
            &own,
            "member-6",
            &[],
            "name is \"member-9\"",
            "name is \"member-9\"",
        ),
        (
            "member-5",
            &own,
            "member-5",
            &other_cluster,
            "00000000000000aa",
            "00000000000000aa",
        ),
    ] {
        let before = cluster.log("leader-1").len();
        let (server, log) = stranger.start(name, certs, holder, more);
        wait_for_text(&format!("{name}: the leader"), leaders, || {
            let log = cluster.log("leader-1").split_off(before);
            let lines = log.lines().filter(|line| line.contains("refused"));
            lines.collect::<Vec<_>>().join("\n")
        });
        wait_for_text(&format!("{name}: the member"), members, || {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            let lines = log
                .lines()
                .filter(|line| line.contains("WARN") || line.contains("ERROR"));
            lines.collect::<Vec<_>>().join("\n")
        });
        drop(server);
    }
    let status = cluster.client().status();
    assert_eq!(
        status["members"].as_array().expect("members").len(),
        1,
        "{status}"
    );
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
