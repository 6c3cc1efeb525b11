//! A whole leader with whole members in this process, over real TLS and sockets on loopback.

mod admission;
mod group;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, Instant, SystemClock};
use crate::cluster::Strategy;
use crate::config::leader::Redirect;
use crate::coordinator::Limits;
use crate::disk::mem::{Fault, MemFileSystem, Operation};
use crate::group::Bootstrap;
use crate::ids::{ClusterId, Key, LogPosition, Revision};
use crate::leader::server::{Leader, Settings};
use crate::member::server::Member;
use crate::net;
use crate::rpc::message::{ReleaseRequest, Request, Response, Role};
use crate::rpc::testing::TestPki;
use crate::rpc::tls::TlsSettings;
use crate::threads::StopSignal;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

const CLUSTER: ClusterId = ClusterId(7);

/// Certificates and data directories.
struct Rig {
    dir: tempfile::TempDir,
    clock: Arc<dyn Clock>,
    tls: Vec<(String, TlsSettings)>,
}

struct RunningLeader {
    leader: Leader,
    stop: StopSignal,
}

struct RunningMember {
    member: Member,
    stop: StopSignal,
}

impl Rig {
    fn new(members: usize) -> Rig {
        Rig::of(1, members)
    }

    fn of(leaders: usize, members: usize) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let pki = TestPki::new(dir.path());
        let leaders = (1..=leaders).map(|number| (Role::Leader, number));
        let all = leaders.chain((1..=members).map(|number| (Role::Member, number)));
        let all = all.chain([(Role::Client, 1)]);
        let issue = |(role, number)| {
            let name = format!("{role}-{number}");
            let settings = pki.issue(&name, role);
            (name, settings)
        };
        let tls = all.map(issue).collect();
        Rig {
            dir,
            clock: SystemClock::shared(),
            tls,
        }
    }

    fn data_dir(&self, name: &str) -> PathBuf {
        self.dir.path().join("data").join(name)
    }

    fn tls(&self, name: &str) -> TlsSettings {
        let found = self.tls.iter().find(|(of, _)| of == name);
        found.unwrap().1.clone()
    }

    fn leader_settings(&self) -> Settings {
        Settings {
            name: "leader-1".to_owned(),
            data_dir: self.data_dir("leader-1"),
            cluster_id: CLUSTER,
            bootstrap: Bootstrap::New,
            accept_loss: LogPosition::default(),
            rpc_bind: SocketAddr::from(([127, 0, 0, 1], 0)),
            client_bind: SocketAddr::from(([127, 0, 0, 1], 0)),
            http_bind: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            rpc_advertise: None,
            client_advertise: None,
            http_advertise: None,
            http_hosts: Vec::new(),
            tls: self.tls("leader-1"),
            limits: Limits::default(),
            payload_bytes_max: 1 << 20,
            net: net::Limits {
                workers: 4,
                connections_max: 16,
                ..net::Limits::default()
            },
            cache_bytes: 0,
            snapshot_bytes: 64 << 20,
            redirect: Redirect::Reply,
            strategy: Strategy::LeastLoaded,
            tolerance: 2,
        }
    }

    fn lead(&self) -> RunningLeader {
        let stop = StopSignal::default();
        let leader = Leader::start(self.leader_settings(), stop.clone()).unwrap();
        RunningLeader { leader, stop }
    }

    fn join(&self, number: usize, leader: &RunningLeader) -> RunningMember {
        self.join_all(number, std::slice::from_ref(leader))
    }

    fn join_all(&self, number: usize, leaders: &[RunningLeader]) -> RunningMember {
        let rpc = |one: &RunningLeader| one.leader.addresses().rpc.to_string();
        let name = format!("member-{number}");
        let settings = crate::member::Settings {
            rpc_bind: SocketAddr::from(([127, 0, 0, 1], 0)),
            rpc_advertise: None,
            leaders: leaders.iter().map(rpc).collect(),
            data_dir: self.data_dir(&name),
            cluster_id: CLUSTER,
            zone: String::new(),
            replace: false,
            tls: self.tls(&name),
            engine: crate::storage::EngineKind::Log,
            io: crate::storage::WriteMode::Sync,
            segment_bytes: 1 << 20,
            limits: crate::member::Limits::default(),
            name,
        };
        let stop = StopSignal::default();
        let member = Member::start(&settings, stop.clone()).unwrap();
        RunningMember { member, stop }
    }

    /// Waits for something that comes soon.
    fn eventually(&self, what: &str, is_so: impl Fn() -> bool) {
        let give_up: Instant = self.clock.now() + PATIENCE;
        while !is_so() {
            assert!(self.clock.now() < give_up, "not within time: {what}");
            crate::clock::sleep(Duration::from_millis(5));
        }
    }

    /// All members are connected.
    fn whole(&self, members: usize, leader: &RunningLeader) {
        let view = &leader.leader.shared.view;
        self.eventually("members are connected", || {
            view.cluster.lock().connected_count() == members
        });
    }
}

impl RunningLeader {
    fn client(&self) -> Client {
        let socket = TcpStream::connect(self.leader.addresses().client).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let reader = BufReader::new(socket.try_clone().unwrap());
        let mut client = Client { socket, reader };
        client.socket.write_all(b"PROMPT OFF\n").unwrap();
        // Behind the banner.
        while client.line() != "tolerex> OK" {}
        client
    }

    fn stop(self) {
        self.stop.stop();
        self.leader.wait().unwrap();
    }
}

impl RunningMember {
    fn stop(self) {
        self.stop.stop();
        self.member.wait().unwrap();
    }

    fn records(&self) -> u64 {
        self.member.counters().records
    }
}

struct Client {
    socket: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Client {
    /// Sends lines and takes as many.
    fn ask(&mut self, lines: &[String]) -> Vec<String> {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        self.socket.write_all(text.as_bytes()).unwrap();
        lines.iter().map(|_| self.line()).collect()
    }

    fn one(&mut self, line: &str) -> String {
        self.ask(&[line.to_owned()]).remove(0)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.reader.read_line(&mut line).unwrap() > 0, "closed");
        line.trim_end().to_owned()
    }
}

/// How many files of a directory this process holds open.
fn open_files(dir: &Path) -> usize {
    let dir = dir.canonicalize().unwrap();
    let files = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    targets.filter(|target| target.starts_with(&dir)).count()
}

#[test]
fn what_was_acknowledged_is_there_after_a_restart_and_what_was_overwritten_is_released() {
    let rig = Rig::new(3);
    let leader = rig.lead();
    let members: Vec<_> = (1..=3).map(|n| rig.join(n, &leader)).collect();
    rig.whole(3, &leader);
    let mut client = leader.client();
    for round in 0..3 {
        let sets: Vec<String> = (0..500).map(|n| format!("SET {n} {round}-{n}")).collect();
        assert!(client.ask(&sets).iter().all(|reply| reply == "OK"));
    }
    assert_eq!(client.one("DEL 7"), "OK");
    let copies = || members.iter().map(RunningMember::records).sum::<u64>();
    rig.eventually("the copies in excess are released", || copies() == 499 * 2);
    let term = leader.leader.shared.serving_term().unwrap();
    leader.stop();
    members.into_iter().for_each(RunningMember::stop);

    let leader = rig.lead();
    let members: Vec<_> = (1..=3).map(|n| rig.join(n, &leader)).collect();
    rig.whole(3, &leader);
    let again = leader.leader.shared.serving_term().unwrap();
    assert!(again > term, "revisions of {term} are never made again");
    let revisions = leader.leader.shared.view.allot(again, 1).unwrap();
    assert_eq!(revisions.first, Revision::new(again, 0));
    let mut client = leader.client();
    let gets: Vec<String> = (0..500).map(|n| format!("GET {n}")).collect();
    for (n, reply) in client.ask(&gets).iter().enumerate() {
        match n {
            7 => assert_eq!(reply, "NOT_FOUND"),
            _ => assert_eq!(*reply, format!("2-{n}")),
        }
    }
    leader.stop();
    members.into_iter().for_each(RunningMember::stop);
}

#[test]
fn a_leader_with_an_older_disk_goes_on_above_what_members_have_seen() {
    let rig = Rig::new(2);
    let old = rig.dir.path().join("old");
    let disk = rig.data_dir("leader-1");
    rig.lead().stop();
    copy_dir(&disk, &old);
    for _ in 0..2 {
        rig.lead().stop();
    }
    let leader = rig.lead();
    let members: Vec<_> = (1..=2).map(|n| rig.join(n, &leader)).collect();
    rig.whole(2, &leader);
    assert_eq!(leader.client().one("SET a 1"), "OK");
    let used = leader.leader.shared.serving_term().unwrap();
    leader.stop();
    members.into_iter().for_each(RunningMember::stop);

    std::fs::remove_dir_all(&disk).unwrap();
    copy_dir(&old, &disk);
    let leader = rig.lead();
    let members: Vec<_> = (1..=2).map(|n| rig.join(n, &leader)).collect();
    rig.whole(2, &leader);
    // A batch that comes within the election is answered that there is no leader.
    rig.eventually("it serves", || leader.client().one("SET a 2") == "OK");
    assert_eq!(leader.client().one("GET a"), "2");
    let term = leader.leader.shared.serving_term().unwrap();
    assert!(term > used, "{term} was used before, up to {used}");
    leader.stop();
    members.into_iter().for_each(RunningMember::stop);
}

/// A read found that a member does not have its copy: nobody counts it from then on.
#[test]
fn where_and_status_do_not_count_a_copy_that_a_read_found_missing() {
    let rig = Rig::new(2);
    let leader = rig.lead();
    let members = [rig.join(1, &leader), rig.join(2, &leader)];
    rig.whole(2, &leader);
    let mut client = leader.client();
    assert_eq!(client.one("SET a 1"), "OK");
    let place = client.one("WHERE a");
    assert_eq!(place.matches(":up").count(), 2, "{place}");
    // The member loses it without a word, by a release that only it knows of.
    let shared = &leader.leader.shared;
    let (revision, id) = {
        let entry = shared.view.metadata.find(&Key::Word("a".into())).unwrap();
        (entry.revision, entry.replicas.as_slice()[0])
    };
    let link = shared.links.link(id).unwrap();
    let term = shared.serving_term().unwrap();
    let release = Request::Release(ReleaseRequest {
        fence: shared.fence(term, &*link),
        revisions: vec![revision],
    });
    let done = StopSignal::default();
    let is_done = done.clone();
    let deadline = rig.clock.now() + PATIENCE;
    let completion = Box::new(move |result: Result<Response, _>| {
        assert_eq!(result, Ok(Response::Release));
        done.stop();
    });
    link.call(term, release, deadline, completion).unwrap();
    assert!(is_done.wait_timeout(PATIENCE));
    // Reads ask either member first.
    rig.eventually("a read finds it missing", || {
        let mut client = leader.client();
        assert_eq!(client.one("GET a"), "1");
        client.one("WHERE a").contains(":missing")
    });
    let place = client.one("WHERE a");
    assert_eq!(place.matches(":up").count(), 1, "{place}");
    let status = client.one("STATUS JSON");
    let counted = r#""messages":0,"missing":1,"#;
    assert_eq!(status.matches(counted).count(), 1, "{status}");
    // Stored anew it is whole.
    assert_eq!(client.one("SET a 2"), "OK");
    let place = client.one("WHERE a");
    assert_eq!(place.matches(":up").count(), 2, "{place}");
    assert!(!client.one("STATUS JSON").contains("missing"));
    leader.stop();
    members.into_iter().for_each(RunningMember::stop);
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_link_that_flaps_stops_no_later_release() {
    let rig = Rig::new(1);
    let settings = Settings {
        tolerance: 1,
        ..rig.leader_settings()
    };
    let stop = StopSignal::default();
    let leader = Leader::start(settings, stop.clone()).unwrap();
    let leader = RunningLeader { leader, stop };
    let member = rig.join(1, &leader);
    rig.whole(1, &leader);
    let shared = &leader.leader.shared;
    let id = shared.view.cluster.lock().members().next().unwrap().id;
    let mut client = leader.client();
    for round in 0..5 {
        assert_eq!(client.one(&format!("SET a {round}")), "OK");
        if let Some(link) = shared.links.link(id) {
            link.close();
        }
        rig.eventually("the link is back", || {
            shared.links.link(id).is_some() && shared.view.cluster.lock().connected_count() == 1
        });
    }
    // The releases of the rounds may be lost with their links; later ones are not.
    let before = member.records();
    assert_eq!(client.one("SET b 1"), "OK");
    assert_eq!(client.one("DEL b"), "OK");
    rig.eventually("b is released", || member.records() <= before);
    leader.stop();
    member.stop();
}

#[test]
fn a_start_that_fails_leaves_nothing_behind() {
    let rig = Rig::new(0);
    let settings = Settings {
        // Not the name in the certificate: the rpc server cannot start, the group has by then.
        name: "leader-2".to_owned(),
        ..rig.leader_settings()
    };
    let error = Leader::start(settings, StopSignal::default())
        .err()
        .unwrap();
    assert!(format!("{error:#}").contains("rpc server"), "{error:#}");
    assert_eq!(open_files(&rig.data_dir("leader-1")), 0);
    rig.lead().stop();
    assert_eq!(open_files(&rig.data_dir("leader-1")), 0);
}

#[test]
fn a_start_whose_journal_fails_says_so() {
    let rig = Rig::new(0);
    std::fs::create_dir_all(rig.data_dir("leader-1")).unwrap();
    let disk = MemFileSystem::new();
    let mut said = false;
    for after in 0..40 {
        disk.fail(Operation::Sync, after, Fault::Io);
        let fs = Arc::new(disk.clone());
        let stop = StopSignal::default();
        let started = Leader::start_on(fs, rig.leader_settings(), stop.clone());
        disk.heal();
        let failed_at_start = started.is_err();
        // A later write may fail when the leader has started.
        let ended = started.and_then(|leader| {
            stop.stop();
            leader.wait()
        });
        let Err(error) = ended else { break };
        let is_told = format!("{error:#}").contains("the journal failed");
        assert!(failed_at_start || is_told, "{error:#}");
        said |= failed_at_start && is_told;
    }
    assert!(said, "no start failed at the first write of its term");
}

#[test]
fn a_journal_that_fails_while_running_acknowledges_nothing_and_ends_the_leader() {
    let rig = Rig::new(2);
    std::fs::create_dir_all(rig.data_dir("leader-1")).unwrap();
    let disk = MemFileSystem::new();
    let stop = StopSignal::default();
    let fs = Arc::new(disk.clone());
    let leader = Leader::start_on(fs, rig.leader_settings(), stop.clone()).unwrap();
    let leader = RunningLeader { leader, stop };
    let members: Vec<_> = (1..=2).map(|n| rig.join(n, &leader)).collect();
    rig.whole(2, &leader);
    let mut client = leader.client();
    assert_eq!(client.one("SET a 1"), "OK");
    // Whatever it is written for: the journal's own idle mark, or the message. The first ones may
    // be of a file that is made in advance, on which nothing depends yet.
    (0..4).for_each(|after| disk.fail(Operation::Sync, after, Fault::Io));
    let reply = client.one("SET a 2");
    assert!(reply.starts_with("ERROR"), "{reply}");
    let error = format!("{:#}", leader.leader.wait().unwrap_err());
    assert!(error.contains("the journal failed"), "{error}");
    members.into_iter().for_each(RunningMember::stop);
}
