//! Loopback tests of links, pool and server together. One fixture makes certificates, servers and
//! links; the service records what it is told and answers as a test says.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, bounded};
use parking_lot::{Condvar, Mutex};

use crate::clock::{Clock, SystemClock};
use crate::ids::{ClusterId, Fence, Key, MemberId, PeerId, Revision};
use crate::protocol::reply::Reply;
use crate::rpc::LocalIdentity;
use crate::rpc::PeerInfo;
use crate::rpc::frame;
use crate::rpc::greeting::{Accepting, Expected, GreetingError};
use crate::rpc::link::{CallError, Completion, Link};
use crate::rpc::message::{
    FetchRequest, FetchResult, HeartbeatAnswer, HeartbeatRequest, JoinAnswer, JoinRequest,
    RaftRequest, Refusal, ReleaseRequest, Request, Response, Role, SnapshotChunk, StoreRecord,
    StoreRequest, StoreResult,
};
use crate::rpc::pool::{Pool, PoolEvents, Target};
use crate::rpc::server::{CallInfo, Limits, Responder, Server, Service};
use crate::rpc::testing::TestPki;
use crate::rpc::tls::{TlsContext, TlsError};
use crate::threads::wakeups;

mod calls;
mod fetches;
mod peers;
mod pool;
mod refused;

const SOON: Duration = Duration::from_secs(5);
const CLUSTER: ClusterId = ClusterId(7);
const MEMBER: MemberId = MemberId(11);

type Handler = dyn Fn(CallInfo, Request, Responder) + Send + Sync;

/// Records events and answers by a closure.
struct Recorder {
    events: Mutex<Vec<String>>,
    changed: Condvar,
    handler: Box<Handler>,
}

impl Recorder {
    fn wait_for(&self, event: &str) {
        let mut events = self.events.lock();
        let missing = |events: &mut Vec<String>| !events.iter().any(|one| one.starts_with(event));
        let late = self.changed.wait_while_for(&mut events, missing, SOON);
        assert!(!late.timed_out(), "no {event:?} in {events:?}");
    }

    fn note(&self, event: String) {
        self.events.lock().push(event);
        self.changed.notify_all();
    }
}

impl Service for Recorder {
    fn connected(&self, peer: &PeerInfo) -> Result<(), Refusal> {
        self.note(format!("connected {} {}", peer.name, peer.link));
        if peer.incarnation == 0 {
            return Err(Refusal::StaleIncarnation {
                incarnation: 0,
                registered: 1,
            });
        }
        Ok(())
    }

    fn handle(&self, peer: &PeerInfo, call: CallInfo, request: Request, responder: Responder) {
        assert!(peer.role == request.kind().caller());
        (self.handler)(call, request, responder);
    }

    fn disconnected(&self, peer: &PeerInfo) {
        self.note(format!("disconnected {} {}", peer.name, peer.link));
    }
}

impl<T: Target> PoolEvents<T> for Recorder {
    fn up(&self, target: T, link: &Arc<Link>) {
        self.note(format!("up {target} {}", link.number()));
    }

    fn down(&self, target: T) {
        self.note(format!("down {target}"));
    }
}

fn recorder(
    handler: impl Fn(CallInfo, Request, Responder) + Send + Sync + 'static,
) -> Arc<Recorder> {
    Arc::new(Recorder {
        events: Mutex::default(),
        changed: Condvar::new(),
        handler: Box::new(handler),
    })
}

/// A member's answers: stores are stored, fetches give 8 bytes, all at once.
fn answering() -> Arc<Recorder> {
    recorder(|_, request, responder| {
        responder.send(match request {
            Request::Store(store) => {
                Response::Store(vec![StoreResult::Stored; store.records.len()])
            }
            Request::Fetch(fetch) => {
                Response::Fetch(vec![FetchResult::Missing; fetch.revisions.len()])
            }
            Request::Release(_) => Response::Release,
            Request::Holds(holds) => Response::Holds(vec![true; holds.revisions.len()]),
            Request::Register(_) => Response::Register,
            Request::Heartbeat(_) => Response::Heartbeat(HeartbeatAnswer::default()),
            Request::Snapshot(_) => Response::Snapshot,
            Request::Forward(batch) => Response::Forward(vec![Reply::Deleted; batch.reply_count()]),
            Request::Standing => Response::Refused(Refusal::NotLeader),
            // Nobody may hear of an answer to the first.
            Request::Raft(_) | Request::Join(_) => Response::Join(JoinAnswer {
                rpc: "h:1".to_owned(),
                client: "h:2".to_owned(),
                http: String::new(),
                has_log: false,
            }),
        });
    })
}

struct Fixture {
    dir: tempfile::TempDir,
    pki: TestPki,
    clock: Arc<dyn Clock>,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().expect("a directory");
    let pki = TestPki::new(dir.path());
    let clock = SystemClock::shared();
    Fixture { dir, pki, clock }
}

fn identity(name: &str, role: Role, node_id: u64) -> LocalIdentity {
    LocalIdentity {
        cluster_id: CLUSTER,
        name: name.to_owned(),
        node_id,
        incarnation: 1,
        nonce: node_id * 100,
        role,
    }
}

fn leader() -> LocalIdentity {
    identity("leader-1", Role::Leader, 1)
}

fn member() -> LocalIdentity {
    identity("member-1", Role::Member, MEMBER.0)
}

fn expect_member() -> Expected {
    Expected {
        role: Role::Member,
        name: Some("member-1".to_owned()),
        node_id: Some(MEMBER.0),
    }
}

impl Fixture {
    fn tls(&self, name: &str, role: Role) -> Arc<TlsContext> {
        self.pki.context(name, role, &self.clock)
    }

    fn serve_at(&self, address: &str, service: Arc<Recorder>) -> Server {
        Server::start(
            TcpListener::bind(address).expect("a port"),
            self.tls("member-1", Role::Member),
            member(),
            service,
            self.clock.clone(),
            Limits::default(),
        )
        .expect("a server")
    }

    fn serve(&self, service: Arc<Recorder>) -> Server {
        self.serve_at("127.0.0.1:0", service)
    }

    fn dial_as(
        &self,
        address: SocketAddr,
        identity: &LocalIdentity,
        number: u64,
    ) -> Result<Arc<Link>, GreetingError> {
        let tls = self.tls(&identity.name, identity.role);
        let clock = self.clock.clone();
        Link::dial(
            &address.to_string(),
            &expect_member(),
            &tls,
            identity,
            number,
            clock,
        )
    }

    fn dial(&self, server: &Server, number: u64) -> Arc<Link> {
        self.dial_as(server.local_addr(), &leader(), number)
            .expect("a link")
    }

    fn in_time(&self) -> crate::clock::Instant {
        self.clock.now() + SOON
    }
}

fn store(payload: impl Into<Bytes>, records: usize) -> Request {
    let payload = payload.into();
    let record = |n: usize| StoreRecord {
        revision: Revision::from_u64(n as u64),
        key: Key::Id(n as u64),
        payload: payload.clone(),
    };
    Request::Store(StoreRequest {
        fence: Fence { term: 1, link: 1 },
        records: Arc::new((0..records).map(record).collect()),
    })
}

fn release(revision: u64) -> Request {
    Request::Release(ReleaseRequest {
        fence: Fence { term: 1, link: 1 },
        revisions: vec![Revision::from_u64(revision)],
    })
}

/// A completion that sends what it is called with, and what it gives.
fn collect<T: Send + 'static>(
    tag: T,
    into: &crossbeam_channel::Sender<(T, Result<Response, CallError>)>,
) -> Completion {
    let into = into.clone();
    // A test that has what it wants ends while calls are open.
    Box::new(move |outcome| _ = into.send((tag, outcome)))
}

fn next<T>(from: &Receiver<T>) -> T {
    from.recv_timeout(SOON).expect("an outcome in time")
}

#[test]
fn a_newer_link_of_a_leader_ends_the_older_one() {
    let fixture = fixture();
    let service = answering();
    let server = fixture.serve(service.clone());
    let first = fixture.dial(&server, 1);
    let second = fixture.dial(&server, 2);
    assert!(first.wait_closed(SOON) && second.is_open());
    let late = fixture.dial_as(server.local_addr(), &leader(), 1).err();
    let text = late.expect("refused").to_string();
    assert!(
        text.contains("link 1 of incarnation 1 is not newer than 2 of 1"),
        "{text}"
    );
    // Another leader's is its own.
    let other = identity("leader-2", Role::Leader, 2);
    let other = fixture
        .dial_as(server.local_addr(), &other, 1)
        .expect("a link");
    assert!(second.is_open() && other.is_open());
    // The same leader started again counts from 1.
    let mut restarted = leader();
    restarted.nonce = 5;
    let third = fixture
        .dial_as(server.local_addr(), &restarted, 1)
        .expect("a link");
    assert!(second.wait_closed(SOON) && third.is_open());
    let events = service.events.lock().clone();
    let of_leader: Vec<&str> = events.iter().map(String::as_str).collect();
    assert_eq!(
        of_leader,
        [
            "connected leader-1 1",
            "disconnected leader-1 1",
            "connected leader-1 2",
            "connected leader-2 1",
            "disconnected leader-1 2",
            "connected leader-1 1",
        ]
    );
}

#[test]
fn a_cloned_member_is_refused_and_the_connected_one_stays() {
    let fixture = fixture();
    let server = fixture.serve(answering());
    let dial = |incarnation, nonce| {
        let mut identity = identity("member-2", Role::Member, 12);
        (identity.incarnation, identity.nonce) = (incarnation, nonce);
        fixture.dial_as(server.local_addr(), &identity, 0)
    };
    let first = dial(2, 1).expect("a link");
    for (incarnation, nonce) in [(2, 9), (1, 9)] {
        let stale = Refusal::StaleIncarnation {
            incarnation,
            registered: 2,
        };
        match dial(incarnation, nonce).err().expect("refused") {
            GreetingError::Refused(refusal) => assert_eq!(refusal, stale),
            error => panic!("{error}"),
        }
    }
    assert!(first.is_open());
    let again = dial(2, 1).expect("a reconnect");
    assert!(first.wait_closed(SOON));
    dial(3, 9).expect("the next start");
    assert!(again.wait_closed(SOON));
}

#[test]
fn an_identity_that_is_not_the_certificates_does_not_start() {
    let fixture = fixture();
    let server = Server::start(
        TcpListener::bind("127.0.0.1:0").expect("a port"),
        fixture.tls("member-2", Role::Member),
        member(),
        answering(),
        fixture.clock.clone(),
        Limits::default(),
    );
    let text = server.err().expect("refused").to_string();
    assert!(
        text.contains("[\"member-2\"]'s, this is member \"member-1\""),
        "{text}"
    );
}

#[test]
fn a_bad_reload_keeps_the_last_good_certificates() {
    let fixture = fixture();
    let settings = fixture.pki.issue("leader-1", Role::Leader);
    let server = fixture.serve(answering());
    let tls = TlsContext::load(settings.clone(), fixture.clock.clone()).expect("good");
    let dial = || {
        let address = server.local_addr().to_string();
        let mut identity = leader();
        identity.nonce = fixture.clock.now().as_nanos();
        let clock = fixture.clock.clone();
        Link::dial(&address, &expect_member(), &tls, &identity, 1, clock)
    };
    let open = dial().expect("a link");
    let write = |path: &Path, text: &str| std::fs::write(path, text).expect("written");
    let good_key = std::fs::read_to_string(&settings.key).expect("a key");
    write(&settings.key, "nonsense");
    let text = tls.reload().expect_err("no key").to_string();
    assert!(text.contains("leader-1.key"), "{text}");
    write(&settings.key, &good_key);
    // A certificate whose key is another one's.
    let other = fixture.pki.issue("leader-2", Role::Leader);
    std::fs::copy(&other.certificate, &settings.certificate).expect("copied");
    assert!(tls.reload().is_err());
    assert_eq!(tls.own().names, ["leader-1"]);
    assert!(open.is_open());
    drop(open);
    dial().expect("a link with the last good pair");
    fixture.pki.issue("leader-1", Role::Leader);
    tls.reload().expect("a good pair again");
    dial().expect("a link with the new pair");
}

/// `cargo test --lib rpc::tests::small_calls -- --ignored --nocapture`
#[test]
#[ignore = "slow: measures"]
fn small_calls_per_second() {
    let fixture = fixture();
    let server = fixture.serve(answering());
    for in_flight in [1, 16, 64] {
        let link = fixture.dial(&server, in_flight);
        let (into, from) = bounded(in_flight as usize);
        let begin = fixture.clock.now();
        let call = |n| {
            let deadline = fixture.in_time();
            link.call(1, release(n), deadline, collect(n, &into))
                .expect("a call");
        };
        (0..in_flight).for_each(call);
        let mut calls = 0;
        while fixture.clock.now().since(begin) < Duration::from_secs(1) {
            next(&from).1.expect("an answer");
            call(calls);
            calls += 1;
        }
        println!(
            "{in_flight} in flight: {calls} calls/s, {} writes",
            link.writes()
        );
    }
}

/// `cargo test --lib rpc::tests::large_calls -- --ignored --nocapture`
#[test]
#[ignore = "slow: measures"]
fn large_calls_per_second() {
    let fixture = fixture();
    let server = fixture.serve(answering());
    for kib in [4, 64, 1024] {
        let link = fixture.dial(&server, kib);
        let payload = Bytes::from(vec![7; (kib as usize) << 10]);
        let (into, from) = bounded(16);
        let begin = fixture.clock.now();
        let call = || {
            let request = store(payload.clone(), 1);
            link.call(1, request, fixture.in_time(), collect((), &into))
                .expect("a call");
        };
        (0..16).for_each(|_| call());
        let mut calls = 0;
        while fixture.clock.now().since(begin) < Duration::from_secs(1) {
            next(&from).1.expect("an answer");
            call();
            calls += 1;
        }
        println!("{kib} KiB, 16 in flight: {} MiB/s", calls * kib / 1024);
    }
}

#[test]
fn a_missing_certificate_says_how_to_make_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let settings = TestPki::new(dir.path()).issue("member-1", Role::Member);
    std::fs::remove_file(&settings.key).expect("it is there");
    let error = TlsContext::load(settings, SystemClock::shared()).err();
    let error = error.expect("no key").to_string();
    assert!(
        error.contains("member-1.key") && error.contains("tolerex certs"),
        "{error}"
    );
}
