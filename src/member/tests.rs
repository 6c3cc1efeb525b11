//! A whole member in this process, called over real TLS on loopback as a leader calls it.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use crate::clock::{Clock, SystemClock};
use crate::disk::fs::OsFileSystem;
use crate::disk::mem::{Fault, Loss, MemFileSystem, Operation};
use crate::ids::{ClusterId, Fence, Key, MemberId, Revision};
use crate::member::identity;
use crate::member::server::Member;
use crate::member::{Limits, Settings};
use crate::rpc::greeting::Expected;
use crate::rpc::link::Link;
use crate::rpc::message::{
    FetchRequest, FetchResult, HeartbeatAnswer, HeartbeatRequest, Refusal, ReleaseRequest, Request,
    Response, Role, StoreRecord, StoreRequest, StoreResult,
};
use crate::rpc::server::{CallInfo, Responder, Server, Service};
use crate::rpc::testing::TestPki;
use crate::rpc::tls::TlsContext;
use crate::rpc::{LocalIdentity, PeerInfo};
use crate::storage::{EngineKind, WriteMode};
use crate::threads::StopSignal;

mod registration;

const CLUSTER: ClusterId = ClusterId(7);

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A directory with certificates, a member's data, and the leader that calls it.
struct Rig {
    dir: tempfile::TempDir,
    pki: TestPki,
    clock: Arc<dyn Clock>,
    tls: Arc<TlsContext>,
}

impl Rig {
    fn new() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let pki = TestPki::new(dir.path());
        let clock = SystemClock::shared();
        let tls = TlsContext::load(pki.issue("leader-1", Role::Leader), Arc::clone(&clock));
        Rig {
            tls: tls.unwrap(),
            dir,
            pki,
            clock,
        }
    }

    fn settings(&self, leaders: Vec<String>) -> Settings {
        Settings {
            name: "member-1".to_owned(),
            rpc_bind: SocketAddr::from(([127, 0, 0, 1], 0)),
            rpc_advertise: None,
            leaders,
            data_dir: self.data_dir(),
            cluster_id: CLUSTER,
            zone: String::new(),
            replace: false,
            tls: self.pki.issue("member-1", Role::Member),
            engine: EngineKind::Log,
            io: WriteMode::Sync,
            segment_bytes: 1 << 20,
            limits: Limits::default(),
        }
    }

    fn data_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("data/member-1")
    }

    fn start(&self) -> RunningMember {
        let stop = StopSignal::default();
        let member = Member::start(&self.settings(Vec::new()), stop.clone()).unwrap();
        RunningMember { member, stop }
    }

    fn start_on(&self, disk: &MemFileSystem) -> RunningMember {
        let (settings, stop) = (self.settings(Vec::new()), StopSignal::default());
        let member = Member::start_on(Arc::new(disk.clone()), &settings, stop.clone()).unwrap();
        RunningMember { member, stop }
    }

    fn leader_identity(&self) -> LocalIdentity {
        LocalIdentity {
            cluster_id: CLUSTER,
            name: "leader-1".to_owned(),
            node_id: 1,
            incarnation: 1,
            nonce: 1,
            role: Role::Leader,
        }
    }

    fn dial(&self, member: &RunningMember, link: u64) -> Arc<Link> {
        let expected = Expected {
            role: Role::Member,
            name: Some("member-1".to_owned()),
            node_id: None,
        };
        let (identity, clock) = (self.leader_identity(), Arc::clone(&self.clock));
        let address = member.member.address().to_string();
        Link::dial(&address, &expected, &self.tls, &identity, link, clock).unwrap()
    }

    fn call(&self, link: &Link, request: Request) -> Response {
        let deadline = self.clock.now() + PATIENCE;
        link.call_wait(1, request, deadline).unwrap()
    }
}

struct RunningMember {
    member: Member,
    stop: StopSignal,
}

impl RunningMember {
    fn stop(self) {
        self.stop.stop();
        self.member.wait().unwrap();
    }
}

fn fence(term: u64, link: u64) -> Fence {
    Fence { term, link }
}

fn revision(sequence: u64) -> Revision {
    Revision::new(1, sequence)
}

fn payload(sequence: u64) -> Bytes {
    Bytes::from(format!("payload {sequence}"))
}

fn store(fence: Fence, sequences: &[u64]) -> Request {
    let record = |sequence: &u64| StoreRecord {
        revision: revision(*sequence),
        key: Key::Id(*sequence),
        payload: payload(*sequence),
    };
    Request::Store(StoreRequest {
        fence,
        records: Arc::new(sequences.iter().map(record).collect()),
    })
}

fn fetch(fence: Fence, sequences: &[u64]) -> Request {
    let revisions = sequences.iter().copied().map(revision).collect();
    Request::Fetch(FetchRequest { fence, revisions })
}

fn release(fence: Fence, sequences: &[u64]) -> Request {
    let revisions = sequences.iter().copied().map(revision).collect();
    Request::Release(ReleaseRequest { fence, revisions })
}

fn found(sequence: u64) -> FetchResult {
    FetchResult::Found {
        key: Key::Id(sequence),
        payload: payload(sequence),
    }
}

#[test]
fn a_restart_keeps_what_was_stored_and_not_what_was_released() {
    let rig = Rig::new();
    let member = rig.start();
    let link = rig.dial(&member, 1);
    let all: Vec<u64> = (1..=300).collect();
    let stored = Response::Store(vec![StoreResult::Stored; 300]);
    assert_eq!(rig.call(&link, store(fence(1, 1), &all)), stored);
    assert_eq!(rig.call(&link, store(fence(1, 1), &all)), stored);
    assert_eq!(
        rig.call(&link, release(fence(1, 1), &[2])),
        Response::Release
    );
    let answer = Response::Fetch(vec![found(1), FetchResult::Missing, found(300)]);
    assert_eq!(rig.call(&link, fetch(fence(1, 1), &[1, 2, 300])), answer);
    let counters = member.member.counters();
    assert_eq!(counters.records, 299);
    drop(link);
    member.stop();

    let member = rig.start();
    assert_eq!(member.member.counters(), counters);
    let link = rig.dial(&member, 2);
    assert_eq!(rig.call(&link, fetch(fence(1, 2), &[1, 2, 300])), answer);
    assert_eq!(link.peer().incarnation, 2);
    member.stop();
}

#[test]
fn a_stale_fence_is_refused_also_after_a_restart() {
    let rig = Rig::new();
    let member = rig.start();
    let old = rig.dial(&member, 1);
    rig.call(&old, store(fence(1, 1), &[1]));
    let new = rig.dial(&member, 2);
    rig.call(&new, store(fence(2, 1), &[2]));
    member.stop();

    let member = rig.start();
    let old = rig.dial(&member, 3);
    let refused = Response::Refused(Refusal::StaleFence {
        highest: fence(2, 1),
    });
    for request in [
        store(fence(1, 9), &[3]),
        release(fence(1, 9), &[1]),
        fetch(fence(1, 9), &[1]),
    ] {
        assert_eq!(rig.call(&old, request), refused);
    }
    let answer = Response::Fetch(vec![found(1), FetchResult::Missing]);
    assert_eq!(rig.call(&old, fetch(fence(2, 1), &[1, 3])), answer);
    member.stop();
}

#[test]
fn a_member_that_lost_its_fence_or_its_log_takes_a_new_id_only_when_told_to() {
    let rig = Rig::new();
    let id = |rig: &Rig, replace: bool| {
        let settings = Settings {
            replace,
            ..rig.settings(Vec::new())
        };
        let stop = StopSignal::default();
        let member = Member::start(&settings, stop.clone()).map_err(|error| error.to_string())?;
        let member = RunningMember { member, stop };
        let id = rig.dial(&member, 1).peer().node_id;
        member.stop();
        Ok::<u64, String>(id)
    };
    let mut last = id(&rig, false).unwrap();
    assert_eq!(id(&rig, true), Ok(last), "all of it is there");
    for lost in ["fence", "log", "fence"] {
        let path = rig.data_dir().join(lost);
        match lost {
            "log" => std::fs::remove_dir_all(&path).unwrap(),
            _ if last % 2 == 0 => std::fs::remove_file(&path).unwrap(),
            _ => std::fs::write(&path, b"rubbish").unwrap(),
        }
        let error = id(&rig, false).unwrap_err();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        assert!(error.contains("--replace"), "{error}");
        let new = id(&rig, true).unwrap();
        assert_ne!(new, last);
        assert_eq!(id(&rig, false), Ok(new));
        last = new;
    }
}

#[test]
fn a_data_directory_belongs_to_one_cluster_and_one_process() {
    let rig = Rig::new();
    let member = rig.start();
    let again = Member::start(&rig.settings(Vec::new()), StopSignal::default());
    assert!(again.is_err());
    member.stop();
    let settings = Settings {
        cluster_id: ClusterId(8),
        ..rig.settings(Vec::new())
    };
    let error = Member::start(&settings, StopSignal::default())
        .err()
        .unwrap();
    assert!(
        error
            .to_string()
            .contains("belongs to cluster 0000000000000007"),
        "{error}"
    );
}

/// A member on a disk in memory, which has acknowledged record 1, and a leader's link to it.
fn stored_on_a_disk() -> (Rig, MemFileSystem, RunningMember, Arc<Link>) {
    let rig = Rig::new();
    let disk = MemFileSystem::new();
    std::fs::create_dir_all(rig.data_dir()).unwrap();
    let member = rig.start_on(&disk);
    let link = rig.dial(&member, 1);
    let answer = rig.call(&link, store(fence(1, 1), &[1]));
    assert_eq!(answer, Response::Store(vec![StoreResult::Stored]));
    (rig, disk, member, link)
}

#[test]
fn a_failed_sync_is_not_acknowledged_and_ends_the_member() {
    let (rig, disk, member, link) = stored_on_a_disk();
    disk.fail(Operation::Sync, 0, Fault::Io);
    let deadline = rig.clock.now() + PATIENCE;
    let answer = link.call_wait(1, store(fence(1, 1), &[2]), deadline);
    assert!(!matches!(answer, Ok(Response::Store(_))), "{answer:?}");
    let error = format!("{:#}", member.member.wait().unwrap_err());
    assert!(error.contains("sync"), "{error}");

    disk.crash(Loss::Everything);
    let member = rig.start_on(&disk);
    assert_eq!(member.member.counters().records, 1);
    member.stop();
}

/// Only a disk without space is called full: a client is told the same, the member's log is not.
#[test]
fn a_store_without_space_or_memory_is_refused_and_the_member_goes_on() {
    let (rig, disk, member, link) = stored_on_a_disk();
    let stored = Response::Store(vec![StoreResult::Stored]);
    for (fault, expected) in [
        (Fault::Refused, StoreResult::Refused),
        (Fault::NoSpace, StoreResult::DiskFull),
    ] {
        disk.fail(Operation::Write, 0, fault);
        let answer = rig.call(&link, store(fence(1, 1), &[2]));
        assert_eq!(answer, Response::Store(vec![expected]));
        let answer = rig.call(&link, fetch(fence(1, 1), &[1, 2]));
        let expected = vec![found(1), FetchResult::Missing];
        assert_eq!(answer, Response::Fetch(expected));
    }
    assert_eq!(rig.call(&link, store(fence(1, 1), &[2])), stored);
    member.stop();
}

#[test]
fn an_orderly_stop_under_load_keeps_what_was_acknowledged() {
    let rig = Rig::new();
    let member = rig.start();
    let link = rig.dial(&member, 1);
    let (answers, received) = bounded(10_000);
    let deadline = rig.clock.now() + PATIENCE;
    let mut called = 0;
    let stored = Response::Store(vec![StoreResult::Stored]);
    assert_eq!(rig.call(&link, store(fence(1, 1), &[5_001])), stored);
    for sequence in 1..=5_000 {
        let answers = answers.clone();
        let completion = Box::new(move |answer| answers.send((sequence, answer)).unwrap());
        let request = store(fence(1, 1), &[sequence]);
        if link.call(1, request, deadline, completion).is_ok() {
            called += 1;
        }
    }
    member.stop();
    let answers = (0..called).map(|_| received.recv_timeout(PATIENCE).unwrap());
    let acknowledged = answers.filter(|(_, answer)| *answer == Ok(stored.clone()));
    let mut acknowledged: Vec<u64> = acknowledged.map(|(sequence, _)| sequence).collect();
    acknowledged.push(5_001);

    let member = rig.start();
    let link = rig.dial(&member, 2);
    for some in acknowledged.chunks(1_000) {
        let all = some.iter().copied().map(found).collect();
        assert_eq!(
            rig.call(&link, fetch(fence(1, 2), some)),
            Response::Fetch(all)
        );
    }
    member.stop();
}

#[test]
fn a_damaged_record_is_reported_as_damaged_and_can_be_stored_anew() {
    let rig = Rig::new();
    let member = rig.start();
    let link = rig.dial(&member, 1);
    rig.call(&link, store(fence(1, 1), &[1, 2]));
    flip_payload_byte(&rig.data_dir().join("log"), &payload(1));
    let answer = Response::Fetch(vec![FetchResult::Damaged, found(2)]);
    assert_eq!(rig.call(&link, fetch(fence(1, 1), &[1, 2])), answer);
    let stored = Response::Store(vec![StoreResult::Stored]);
    assert_eq!(rig.call(&link, store(fence(1, 1), &[1])), stored);
    let answer = Response::Fetch(vec![found(1)]);
    assert_eq!(rig.call(&link, fetch(fence(1, 1), &[1])), answer);
    assert_eq!(member.member.counters().records, 2);
    member.stop();
}

/// Changes a byte of the one place in the log that holds `payload`.
fn flip_payload_byte(log: &Path, payload: &[u8]) {
    use std::os::unix::fs::FileExt;
    for entry in std::fs::read_dir(log).unwrap() {
        let path = entry.unwrap().path();
        let content = std::fs::read(&path).unwrap();
        let mut windows = content.windows(payload.len());
        if let Some(at) = windows.position(|window| window == payload) {
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(b"X", at as u64).unwrap();
            return;
        }
    }
    panic!("the payload is nowhere in the log");
}
