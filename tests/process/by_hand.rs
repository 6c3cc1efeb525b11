//! A leader and members by hand, as in three terminals: files, flags, the original's names for the
//! environment, SIGTERM and SIGHUP.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use tolerex::clock::{Clock, SystemClock, sleep};

use crate::support::client::Client;
use crate::support::cluster::{LEADER, MEMBER, Ports, Server, tolerex};
use crate::support::wait_until;
use crate::support::workload::{self, Work};
use crate::{get_all, set_all};

/// Connections that are open during a reload; a process may have 1,024 files on many systems.
const OPEN: usize = 300;

/// A directory as of a clone of the repository, with certificates.
struct Terminals {
    dir: TempDir,
    ports: Ports,
}

impl Terminals {
    fn new() -> Terminals {
        let terminals = Terminals {
            dir: tempfile::tempdir().expect("a directory"),
            ports: Ports::find(),
        };
        let config = terminals.path("config");
        fs::create_dir(&config).expect("made");
        let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
        for file in ["leader.toml", "member.toml", "tolerance.conf"] {
            fs::copy(ours.join(file), config.join(file)).expect("copied");
        }
        terminals.certs(&["init"], &[]);
        terminals.certs(&["issue"], &["--name", "leader-1", "--role", "leader"]);
        for name in ["member-1", "member-2"] {
            terminals.certs(&["issue"], &["--name", name, "--role", "member"]);
        }
        terminals
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn certs(&self, action: &[&str], more: &[&str]) {
        let certs = self.path("certs");
        let dir = certs.to_str().expect("UTF-8");
        let output = tolerex(&[&["certs"], action, &[dir], more].concat());
        assert!(output.status.success(), "{output:?}");
    }

    fn leader_port(&self) -> String {
        (5555 + self.ports.offset).to_string()
    }

    fn member_port(&self, number: u16) -> String {
        (5555 + number + self.ports.offset).to_string()
    }

    /// `leader --config config/leader.toml`, with the original's environment.
    fn leader(&self, more: &[&str]) -> Server {
        let mut command = Command::new(LEADER);
        command.current_dir(self.dir.path());
        command.args(["--config", "config/leader.toml"]).args(more);
        command.env("LEADER_GRPC_PORT", self.leader_port());
        command.env("LEADER_TCP_PORT", (6666 + self.ports.offset).to_string());
        command.env("LEADER_TCP_BIND", "127.0.0.1");
        let http = format!("127.0.0.1:{}", 8080 + self.ports.offset);
        command.env("TOLEREX_HTTP_BIND", http);
        command.env(
            "LEADER_METRICS_PORT",
            (9090 + self.ports.offset).to_string(),
        );
        command.env("BALANCER_STRATEGY", "p2c");
        command.env("TOLERANCE_CONF", "config/tolerance.conf");
        Server::run(&mut command, &self.path("leader-1.log"))
    }

    fn member(&self, number: u16) -> Server {
        let name = format!("member-{number}");
        let mut command = Command::new(MEMBER);
        command.current_dir(self.dir.path());
        command.args(["--config", "config/member.toml", "--name", &name]);
        command.args(["--port", &self.member_port(number), "--metrics", "9092"]);
        command.args(["--data-dir", &format!("data/{name}")]);
        command.env("LEADER_ADDR", format!("127.0.0.1:{}", self.leader_port()));
        command.env("MEMBER_IO_MODE", "sync");
        command.env("MEMBER_EXPECTED_LEADER_CN", "leader");
        Server::run(&mut command, &self.path(&format!("{name}.log")))
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }
}

impl Drop for Terminals {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["leader-1", "member-1", "member-2"] {
                eprintln!("--- {name}\n{}", self.log(name));
            }
        }
    }
}

fn wait_until_up(client: &mut Client, count: usize) {
    wait_until("the members are up", Duration::from_secs(10), || {
        let status = client.status();
        let members = status["members"].as_array().expect("members").iter();
        members.filter(|member| member["state"] == "up").count() == count
    });
}

#[test]
fn a_leader_and_members_by_hand_stop_in_order_under_load_and_lose_nothing() {
    let terminals = Terminals::new();
    let mut leader = terminals.leader(&["--bootstrap"]);
    let (mut one, mut two) = (terminals.member(1), terminals.member(2));
    let address = leader.hatokuse.expect("an address");
    assert_eq!(address.port(), 6666 + terminals.ports.offset);
    let mut client = Client::connect(address);
    wait_until_up(&mut client, 2);
    let status = client.status();
    assert_eq!(
        (&status["tolerance"], &status["strategy"]),
        (&2.into(), &"p2c".into())
    );
    drop(client);

    let clock = SystemClock::new();
    let work = Work::start(address, workload::writers(8, 3));
    sleep(Duration::from_millis(400));
    let start = clock.now();
    leader.signal(Signal::TERM);
    assert!(leader.wait().success(), "{}", terminals.log("leader-1"));
    assert!(clock.now().since(start) < Duration::from_secs(8));
    let mut writers = work.finish();
    // One error is right here, that of a leader that goes.
    let strange = workload::errors(&writers).into_iter().find(|error| {
        !["leader", "busy", "may or may not"]
            .iter()
            .any(|text| error.contains(text))
    });
    assert_eq!(strange, None);

    // The group exists: no --bootstrap from here on.
    let mut leader = terminals.leader(&[]);
    let mut client = Client::connect(address);
    wait_until_up(&mut client, 2);
    workload::check(&mut client, &mut writers);
    // Members stop as well under load; the writes then find too few.
    let work = Work::start(address, writers);
    sleep(Duration::from_millis(300));
    two.signal(Signal::TERM);
    assert!(two.wait().success(), "{}", terminals.log("member-2"));
    let mut writers = work.finish();
    let strange = workload::errors(&writers)
        .into_iter()
        .find(|error| !error.starts_with("ERROR: not enough alive members (have 1, need 2)"));
    assert_eq!(strange, None);
    let _two = terminals.member(2);
    wait_until_up(&mut client, 2);
    workload::check(&mut client, &mut writers);
    for server in [&mut one, &mut leader] {
        server.signal(Signal::INT);
        assert!(server.wait().success());
    }
}

#[test]
fn sighup_takes_up_a_new_tolerance_and_new_certificates_and_drops_no_connection() {
    let terminals = Terminals::new();
    let leader = terminals.leader(&["--bootstrap"]);
    let members = [terminals.member(1), terminals.member(2)];
    let address = leader.hatokuse.expect("an address");
    let mut client = Client::connect(address);
    wait_until_up(&mut client, 2);
    set_all(&mut client, "k", 0..10, "v");

    let links = || terminals.log("leader-1").matches("link up").count();
    let links_before = links();
    // Some at rest, and some that write.
    let mut at_rest: Vec<Client> = (0..OPEN).map(|_| Client::connect(address)).collect();
    let work = Work::start(address, workload::writers(16, 4));
    fs::write(terminals.path("config/tolerance.conf"), "TOLERANCE=1\n").expect("written");
    leader.signal(Signal::HUP);
    wait_until("the tolerance is 1", Duration::from_secs(5), || {
        client.status()["tolerance"] == 1
    });
    // New pairs for all, of the same authority.
    for (name, role) in [
        ("leader-1", "leader"),
        ("member-1", "member"),
        ("member-2", "member"),
    ] {
        for end in ["crt", "key"] {
            fs::remove_file(terminals.path(&format!("certs/{name}.{end}"))).expect("removed");
        }
        terminals.certs(&["issue"], &["--name", name, "--role", role]);
    }
    leader.signal(Signal::HUP);
    members.iter().for_each(|member| member.signal(Signal::HUP));
    for name in ["leader-1", "member-1", "member-2"] {
        wait_until(
            &format!("{name} has read them"),
            Duration::from_secs(5),
            || terminals.log(name).contains("certificates are read again"),
        );
    }
    // A bad file changes nothing.
    fs::write(terminals.path("config/tolerance.conf"), "TOLERANCE=nine\n").expect("written");
    leader.signal(Signal::HUP);
    wait_until(
        "the bad file is complained of",
        Duration::from_secs(5),
        || terminals.log("leader-1").contains("tolerance.conf"),
    );
    sleep(Duration::from_millis(200));
    let mut writers = work.finish();
    assert_eq!(workload::errors(&writers), Vec::<String>::new());
    assert!(
        writers.iter().all(|writer| !writer.is_broken),
        "a connection was dropped"
    );
    assert_eq!(links(), links_before, "a member's link was dropped");
    for client in &mut at_rest {
        let reply = client.try_command("GET k-0");
        assert_eq!(reply.expect("a connection was dropped"), "v-0");
    }
    workload::check_with(&mut client, &mut writers, 10);
    assert_eq!(client.status()["tolerance"], 1);
    get_all(&mut client, "k", 0..10, "v");

    // New connections are made with the new pair.
    drop(members);
    let _members = [terminals.member(1), terminals.member(2)];
    wait_until_up(&mut client, 2);
    set_all(&mut client, "k", 0..10, "w");
}
