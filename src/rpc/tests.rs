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
    FetchRequest, FetchResult, HeartbeatRequest, JoinAnswer, JoinRequest, RaftRequest, Refusal,
    ReleaseRequest, Request, Response, Role, SnapshotChunk, StoreRecord, StoreRequest, StoreResult,
};
use crate::rpc::pool::{Pool, PoolEvents, Target};
use crate::rpc::server::{CallInfo, Limits, Responder, Server, Service};
use crate::rpc::testing::TestPki;
use crate::rpc::tls::{TlsContext, TlsError};

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
            Request::Register(_) => Response::Register,
            Request::Heartbeat(_) => Response::Heartbeat,
            Request::Snapshot(_) => Response::Snapshot,
            Request::Forward(batch) => Response::Forward(vec![Reply::Deleted; batch.reply_count()]),
            Request::Standing => Response::Refused(Refusal::NotLeader),
            // Nobody may hear of an answer to the first.
            Request::Raft(_) | Request::Join(_) => Response::Join(JoinAnswer {
                rpc: "h:1".to_owned(),
                client: "h:2".to_owned(),
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
        records: (0..records).map(record).collect(),
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
fn a_call_is_answered() {
    let fixture = fixture();
    let server = fixture.serve(answering());
    let link = fixture.dial(&server, 1);
    let answer = link.call_wait(3, store("hello", 2), fixture.in_time());
    assert_eq!(answer, Ok(Response::Store(vec![StoreResult::Stored; 2])));
    assert_eq!((link.peer().name.as_str(), link.number()), ("member-1", 1));
}

#[test]
fn answers_come_in_any_order_to_their_calls() {
    let fixture = fixture();
    let held = Arc::new(Mutex::new(Vec::new()));
    let service = {
        let held = held.clone();
        recorder(move |call, request, responder| {
            let Request::Fetch(fetch) = request else {
                panic!("only fetches");
            };
            let mut held = held.lock();
            held.push((fetch.revisions[0], responder));
            assert!(call.term == 9 && call.bytes > 0);
            if held.len() == 50 {
                for (revision, responder) in held.drain(..).rev() {
                    let key = Key::Id(revision.as_u64());
                    let payload = Bytes::from(revision.to_string());
                    responder.send(Response::Fetch(vec![FetchResult::Found { key, payload }]));
                }
            }
        })
    };
    let server = fixture.serve(service);
    let link = fixture.dial(&server, 1);
    let (into, from) = bounded(50);
    for n in 0..50 {
        let request = Request::Fetch(FetchRequest {
            fence: Fence::default(),
            revisions: vec![Revision::from_u64(n)],
        });
        let call = link.call(9, request, fixture.in_time(), collect(n, &into));
        call.expect("a call");
    }
    for n in (0..50).rev() {
        let key = Key::Id(n);
        let payload = Bytes::from(n.to_string());
        let found = vec![FetchResult::Found { key, payload }];
        assert_eq!(next(&from), (n, Ok(Response::Fetch(found))));
    }
}

#[test]
fn frames_that_wait_leave_in_one_write() {
    let fixture = fixture();
    let (go, gate) = bounded::<()>(2);
    let server = fixture.serve(recorder(move |_, request, responder| match request {
        Request::Store(_) => {
            gate.recv_timeout(SOON).expect("the test goes on");
            responder.send(Response::Store(vec![StoreResult::Stored]));
        }
        _ => responder.send(Response::Release),
    }));
    let link = fixture.dial(&server, 1);
    let (into, from) = bounded(5002);
    let call = |n, request| {
        link.call(1, request, fixture.in_time(), collect(n, &into))
            .expect("a call");
    };
    // While the first is handled nothing is read, so the second keeps the writer.
    call(0, store("first", 1));
    call(1, store(vec![0; 30 << 20], 1));
    (0..5000).for_each(|n| call(n, release(n)));
    assert!(link.bytes_queued() > 1 << 20);
    let before = link.writes();
    (0..2).for_each(|_| go.send(()).expect("room for two"));
    for _ in 0..5002 {
        next(&from).1.expect("an answer");
    }
    let writes = link.writes() - before;
    assert!(writes < 500, "{writes} writes");
}

#[test]
fn a_large_frame_arrives_whole() {
    let fixture = fixture();
    let payload: Bytes = (0..20u32 << 20).map(|n| (n % 251) as u8).collect();
    let expected = payload.clone();
    let server = fixture.serve(recorder(move |_, request, responder| match request {
        Request::Store(store) if store.records[0].payload == expected => {
            responder.send(Response::Store(vec![StoreResult::Stored]));
        }
        _ => panic!("another payload"),
    }));
    let link = fixture.dial(&server, 1);
    let answer = link.call_wait(1, store(payload, 1), fixture.in_time());
    assert_eq!(answer, Ok(Response::Store(vec![StoreResult::Stored])));
    let payload = vec![0; frame::FRAME_BYTES_MAX];
    let answer = link.call_wait(1, store(payload, 1), fixture.in_time());
    assert!(
        matches!(answer, Err(CallError::TooLarge { .. })),
        "{answer:?}"
    );
    assert!(link.is_open());
}

/// Keeps responders, answering nothing.
fn silent() -> (Arc<Recorder>, Arc<Mutex<Vec<Responder>>>) {
    let held = Arc::new(Mutex::new(Vec::new()));
    let into = held.clone();
    (
        recorder(move |_, _, responder| into.lock().push(responder)),
        held,
    )
}

#[test]
fn loss_of_the_link_completes_every_call_once() {
    let fixture = fixture();
    let (service, held) = silent();
    let server = fixture.serve(service.clone());
    let link = fixture.dial(&server, 1);
    let (into, from) = bounded(1000);
    let taken = (0..100).filter(|n| {
        link.call(1, release(*n), fixture.in_time(), collect(*n, &into))
            .is_ok()
    });
    assert_eq!(taken.count(), 100);
    server.stop(fixture.in_time()).expect("a stop in time");
    let mut completed: Vec<u64> = (0..100)
        .map(|_| {
            let (n, outcome) = next(&from);
            assert!(
                matches!(outcome, Err(CallError::LinkLost(_))),
                "{outcome:?}"
            );
            n
        })
        .collect();
    completed.sort_unstable();
    assert_eq!(completed, (0..100).collect::<Vec<_>>());
    assert!(link.wait_closed(SOON) && !link.is_open());
    let late = link.call(1, release(0), fixture.in_time(), collect(0, &into));
    assert!(matches!(late, Err(CallError::LinkLost(_))), "{late:?}");
    held.lock().clear();
    drop(link);
    assert!(from.try_recv().is_err());
    service.wait_for("disconnected leader-1 1");
}

#[test]
fn a_race_of_calls_and_close_completes_each_call_once() {
    let fixture = fixture();
    let server = fixture.serve(answering());
    for number in 1..=5 {
        let link = fixture.dial(&server, number);
        let completed = Arc::new(AtomicUsize::new(0));
        let callers: Vec<_> = (0..2)
            .map(|_| {
                let (link, completed) = (link.clone(), completed.clone());
                let deadline = fixture.in_time();
                let (taken, count) = bounded(1);
                let call = move || {
                    let mut calls = 0;
                    for n in 0..2000 {
                        let completed = completed.clone();
                        let done = move |_| _ = completed.fetch_add(1, Ordering::SeqCst);
                        calls +=
                            link.call(1, release(n), deadline, Box::new(done)).is_ok() as usize;
                    }
                    taken.send(calls).expect("a count");
                };
                (
                    crate::threads::spawn("caller", call).expect("a thread"),
                    count,
                )
            })
            .collect();
        crate::clock::sleep(Duration::from_millis(number));
        link.close();
        let mut taken = 0;
        for (thread, count) in callers {
            taken += next(&count);
            thread.join();
        }
        assert!(link.wait_closed(SOON));
        assert_eq!(completed.load(Ordering::SeqCst), taken);
    }
}

#[test]
fn a_call_without_an_answer_expires() {
    let fixture = fixture();
    let (service, held) = silent();
    let server = fixture.serve(service);
    let link = fixture.dial(&server, 1);
    let begin = fixture.clock.now();
    let deadline = begin + Duration::from_millis(60);
    let outcome = link.call_wait(1, release(1), deadline);
    assert_eq!(outcome, Err(CallError::TimedOut));
    let took = fixture.clock.now().since(begin);
    assert!(took >= Duration::from_millis(60) && took < SOON, "{took:?}");
    // The late answer is dropped, and the link goes on.
    for responder in held.lock().drain(..) {
        responder.send(Response::Release);
    }
    assert_eq!((link.calls_in_flight(), link.is_open()), (0, true));
}

#[test]
fn calls_expire_while_the_peer_does_not_read_and_a_full_queue_is_busy() {
    let fixture = fixture();
    let (go, gate) = bounded::<()>(0);
    let server = fixture.serve(recorder(move |_, _, _| _ = gate.recv_timeout(SOON)));
    let link = fixture.dial(&server, 1);
    let (into, from) = bounded(1000);
    let payload = Bytes::from(vec![1; 16 << 20]);
    let deadline = fixture.clock.now() + Duration::from_millis(300);
    let mut taken = 0;
    let refused = loop {
        match link.call(1, store(payload.clone(), 1), deadline, collect(0, &into)) {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, CallError::Busy);
    assert!(link.bytes_queued() > 32 << 20 && taken < 10, "{taken}");
    for _ in 0..taken {
        assert_eq!(next(&from).1, Err(CallError::TimedOut));
    }
    link.close();
    drop(go);
    server.stop(fixture.in_time()).expect("a stop in time");
}

#[test]
fn a_dropped_responder_refuses_and_a_wrong_answer_ends_the_link() {
    let fixture = fixture();
    let server = fixture.serve(recorder(|_, request, responder| match request {
        Request::Store(_) => responder.send(Response::Heartbeat),
        _ => drop(responder),
    }));
    let link = fixture.dial(&server, 1);
    let refused = Response::Refused(Refusal::Other("not handled".to_owned()));
    assert_eq!(
        link.call_wait(1, release(1), fixture.in_time()),
        Ok(refused)
    );
    let outcome = link.call_wait(1, store("x", 1), fixture.in_time());
    assert!(
        matches!(outcome, Err(CallError::LinkLost(_))),
        "{outcome:?}"
    );
    assert!(link.wait_closed(SOON));
}

#[test]
fn a_link_dropped_by_a_completion_does_not_wait_for_itself() {
    let fixture = fixture();
    let server = fixture.serve(answering());
    let link = fixture.dial(&server, 1);
    let (into, from) = bounded(1);
    let (go, gate) = bounded::<()>(0);
    let last = link.clone();
    let completion = move |outcome| {
        gate.recv_timeout(SOON)
            .expect("the other reference is gone");
        drop(last);
        into.send(outcome).expect("a collector");
    };
    link.call(1, release(1), fixture.in_time(), Box::new(completion))
        .expect("a call");
    drop(link);
    go.send(()).expect("the completion waits");
    assert_eq!(next(&from), Ok(Response::Release));
}

mod refused {
    use super::*;

    /// Reason on the dialling side, as text.
    fn reason(outcome: Result<Arc<Link>, GreetingError>) -> String {
        match outcome {
            Ok(link) => panic!("not refused: {}", link.peer()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_peer_with_another_identity_than_its_certificate_or_ours() {
        let fixture = fixture();
        let server = fixture.serve(answering());
        let refused = |identity: &LocalIdentity| {
            let tls = fixture.tls("leader-1", Role::Leader);
            let address = server.local_addr().to_string();
            let clock = fixture.clock.clone();
            reason(Link::dial(
                &address,
                &expect_member(),
                &tls,
                identity,
                1,
                clock,
            ))
        };
        let mut other = leader();
        other.cluster_id = ClusterId(8);
        let text = refused(&other);
        let clusters = "refused: cluster is 0000000000000008, not 0000000000000007";
        assert_eq!(text, clusters);
        let mut other = leader();
        other.name = "leader-2".to_owned();
        let text = refused(&other);
        assert!(
            text.contains("name is \"leader-2\", certificate is for [\"leader-1\"]"),
            "{text}"
        );
        let mut other = leader();
        other.role = Role::Member;
        let text = refused(&other);
        assert!(
            text.contains("role is member by hello, leader by certificate"),
            "{text}"
        );
        let mut other = leader();
        other.node_id = 0;
        // Undecodable input gets no answer.
        refused(&other);
        let mut other = leader();
        other.incarnation = 0;
        let text = refused(&other);
        assert!(text.contains("incarnation 0 is not above 1"), "{text}");
    }

    #[test]
    fn another_protocol_version() {
        let fixture = fixture();
        let tls = fixture.tls("member-1", Role::Member);
        let mut hello = leader().hello(1);
        hello.protocol = 2;
        let error = crate::rpc::greeting::check_hello(&hello, &tls.own(), &member());
        let text = error.expect_err("refused").to_string();
        assert_eq!(text, "protocol version is 2, not 1");
    }

    #[test]
    fn a_server_that_is_not_the_expected_one() {
        let fixture = fixture();
        let service = answering();
        let server = fixture.serve(service.clone());
        let tls = fixture.tls("leader-1", Role::Leader);
        let refused = |role, name: &str, node_id| {
            let expected = Expected {
                role,
                name: Some(name.to_owned()),
                node_id,
            };
            let address = server.local_addr().to_string();
            let clock = fixture.clock.clone();
            let outcome = Link::dial(&address, &expected, &tls, &leader(), 1, clock);
            assert!(matches!(outcome, Err(GreetingError::WrongPeer(_))));
            reason(outcome)
        };
        let text = refused(Role::Leader, "member-1", None);
        assert_eq!(text, "certificate is a member's and should be a leader's");
        let text = refused(Role::Member, "member-2", None);
        assert_eq!(text, "certificate is for [\"member-1\"], not \"member-2\"");
        let text = refused(Role::Member, "member-1", Some(12));
        assert!(
            text.contains("node id is 000000000000000b, not 000000000000000c"),
            "{text}"
        );
    }

    #[test]
    fn a_certificate_of_another_ca_on_either_side() {
        let fixture = fixture();
        let server = fixture.serve(answering());
        let other_dir = tempfile::tempdir().expect("a directory");
        let other = TestPki::new(other_dir.path());
        let foreign = other.context("leader-1", Role::Leader, &fixture.clock);
        let address = server.local_addr().to_string();
        let dial = |tls: &TlsContext| {
            let clock = fixture.clock.clone();
            Link::dial(&address, &expect_member(), tls, &leader(), 1, clock)
        };
        let text = reason(dial(&foreign));
        assert!(text.contains("invalid peer certificate"), "{text}");
        let mut settings = other.issue("leader-1", Role::Leader);
        let ours = fixture.dir.path().join("ca.pem");
        let both = other_dir.path().join("both.pem");
        let read = |path: &Path| std::fs::read_to_string(path).expect("a CA");
        std::fs::write(&both, read(&ours) + &read(&settings.ca)).expect("written");
        // With our CA in place of its own, we find the mistake ourselves.
        settings.ca = ours;
        let error = TlsContext::load(settings.clone(), fixture.clock.clone()).err();
        let text = error.expect("found when loaded").to_string();
        assert!(text.contains("not valid under the CA"), "{text}");
        // Trusting both, it is the server that refuses.
        settings.ca = both;
        let foreign = TlsContext::load(settings, fixture.clock.clone()).expect("good");
        let text = reason(dial(&foreign));
        assert!(text.contains("received fatal alert"), "{text}");
    }

    #[test]
    fn a_certificate_without_a_role() {
        let fixture = fixture();
        let settings = fixture.pki.issue_as("leader-1", "boss");
        let error = TlsContext::load(settings, fixture.clock.clone()).err();
        let text = error.expect("found when loaded").to_string();
        assert!(text.contains("common name [\"boss\"]"), "{text}");
    }

    #[test]
    fn a_call_that_is_not_for_the_role() {
        let fixture = fixture();
        let server = fixture.serve(recorder(|_, _, _| panic!("not handled")));
        let call = |identity: LocalIdentity, request| {
            let link = fixture
                .dial_as(server.local_addr(), &identity, 0)
                .expect("a link");
            let answer = link.call_wait(0, request, fixture.in_time());
            assert!(link.wait_closed(SOON));
            match answer.expect("an answer") {
                Response::Refused(refusal) => refusal.to_string(),
                answer => panic!("{answer:?}"),
            }
        };
        let member = identity("member-2", Role::Member, 12);
        assert_eq!(call(member, release(1)), "release is for a leader to call");
        let client = identity("client-1", Role::Client, 0);
        assert_eq!(call(client, store("x", 1)), "store is for a leader to call");
        let heartbeat = Request::Heartbeat(HeartbeatRequest::default());
        assert_eq!(
            call(leader(), heartbeat),
            "heartbeat is for a member to call"
        );
    }

    /// What the server says to bytes that are not TLS, and that it goes on.
    #[test]
    fn plain_text() {
        let fixture = fixture();
        let server = fixture.serve(answering());
        let mut socket = TcpStream::connect(server.local_addr()).expect("a connection");
        socket.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sent");
        socket.set_read_timeout(Some(SOON)).expect("a timeout");
        // An alert perhaps, then the end.
        let mut answer = Vec::new();
        _ = socket.read_to_end(&mut answer);
        assert!(answer.len() < 100);

        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut socket = TcpStream::connect(listener.local_addr().expect("bound")).expect("sent");
        let (accepted, _) = listener.accept().expect("a connection");
        socket.write_all(b"SET a b\r\n").expect("sent");
        let tls = fixture.tls("member-1", Role::Member);
        let clock = &*fixture.clock;
        let outcome = Accepting::begin(accepted, 1, &tls, &member(), clock);
        match outcome.err().expect("refused") {
            GreetingError::Tls(TlsError::Broken(text)) => {
                assert!(text.contains("corrupt message"), "{text}");
            }
            error => panic!("{error:?}"),
        }
        fixture.dial(&server, 1);
    }
}

#[test]
fn a_silent_dialler_does_not_hold_up_others() {
    let fixture = fixture();
    let server = fixture.serve(answering());
    let silent: Vec<TcpStream> = (0..10)
        .map(|_| TcpStream::connect(server.local_addr()).expect("a connection"))
        .collect();
    let begin = fixture.clock.now();
    let link = fixture.dial(&server, 1);
    let answer = link.call_wait(1, release(1), fixture.in_time());
    assert_eq!(answer, Ok(Response::Release));
    assert!(fixture.clock.now().since(begin) < Duration::from_secs(3));
    // A stop does not wait for them either.
    let begin = fixture.clock.now();
    server.stop(fixture.in_time()).expect("a stop in time");
    assert!(fixture.clock.now().since(begin) < Duration::from_secs(3));
    drop(silent);
}

#[test]
fn a_greeting_has_one_deadline_for_all_its_reads() {
    /// Each look at it takes 4.95 s.
    struct Hasty(crate::clock::ManualClock);
    impl Clock for Hasty {
        fn now(&self) -> crate::clock::Instant {
            self.0.advance(Duration::from_millis(4950));
            self.0.now()
        }
        fn wall_ms(&self) -> u64 {
            self.0.wall_ms()
        }
    }
    let fixture = fixture();
    let tls = fixture.tls("member-1", Role::Member);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut socket = TcpStream::connect(listener.local_addr().expect("bound")).expect("sent");
    let (accepted, _) = listener.accept().expect("a connection");
    // The first bytes of a TLS record that does not go on.
    socket.write_all(&[0x16, 3, 1, 2]).expect("sent");
    let clock = Hasty(crate::clock::ManualClock::default());
    let outcome = Accepting::begin(accepted, 1, &tls, &member(), &clock);
    let error = outcome.err().expect("given up");
    assert!(matches!(error, GreetingError::TimedOut), "{error:?}");
}

#[test]
fn connections_over_the_limit_are_closed() {
    let fixture = fixture();
    let server = Server::start(
        TcpListener::bind("127.0.0.1:0").expect("a port"),
        fixture.tls("member-1", Role::Member),
        member(),
        answering(),
        fixture.clock.clone(),
        Limits {
            connections: 1,
            greetings: 1,
        },
    )
    .expect("a server");
    let first = fixture.dial(&server, 1);
    let second = fixture.dial_as(
        server.local_addr(),
        &identity("leader-2", Role::Leader, 2),
        1,
    );
    assert!(second.is_err());
    assert!(first.is_open());
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

mod pool {
    use super::*;

    fn pool(fixture: &Fixture, events: &Arc<Recorder>) -> Pool<MemberId> {
        let tls = fixture.tls("leader-1", Role::Leader);
        Pool::new(leader(), tls, fixture.clock.clone(), events.clone())
    }

    #[test]
    fn a_lost_link_is_made_again_with_the_next_number() {
        let fixture = fixture();
        let server = fixture.serve(answering());
        let address = server.local_addr().to_string();
        let events = answering();
        let pool = pool(&fixture, &events);
        pool.set(MEMBER, &address, "member-1");
        pool.set(MEMBER, &address, "member-1");
        events.wait_for("up 000000000000000b 1");
        let link = pool.link(MEMBER).expect("a link");
        let answer = link.call_wait(1, release(1), fixture.in_time());
        assert_eq!(answer, Ok(Response::Release));
        server.stop(fixture.in_time()).expect("a stop in time");
        drop(server);
        events.wait_for("down 000000000000000b");
        assert!(pool.link(MEMBER).is_none());
        let _server = fixture.serve_at(&address, answering());
        let begin = fixture.clock.now();
        let link = loop {
            match pool.link(MEMBER) {
                Some(link) => break link,
                None if fixture.clock.now().since(begin) > SOON => panic!("no link again"),
                None => crate::clock::sleep(Duration::from_millis(5)),
            }
        };
        assert!(link.number() > 1);
        pool.remove(MEMBER);
        assert!(link.wait_closed(SOON) && pool.link(MEMBER).is_none());
        pool.stop(fixture.in_time()).expect("a stop in time");
        let events = events.events.lock().clone();
        let kinds: Vec<&str> = events.iter().map(|one| &one[..2]).collect();
        assert_eq!(kinds, ["up", "do", "up", "do"]);
    }

    #[test]
    fn a_silent_target_delays_neither_the_others_nor_a_stop() {
        let fixture = fixture();
        let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
        let server = fixture.serve(answering());
        let events = answering();
        let pool = pool(&fixture, &events);
        let address = silent.local_addr().expect("bound").to_string();
        pool.set(MemberId(99), &address, "member-9");
        pool.set(MEMBER, &server.local_addr().to_string(), "member-1");
        events.wait_for("up 000000000000000b");
        let begin = fixture.clock.now();
        pool.stop(fixture.in_time()).expect("a stop in time");
        assert!(fixture.clock.now().since(begin) < Duration::from_secs(2));
        events.wait_for("down 000000000000000b");
    }

    #[test]
    fn a_changed_target_goes_down_before_it_is_up_again() {
        let fixture = fixture();
        let (one, two) = (fixture.serve(answering()), fixture.serve(answering()));
        let events = answering();
        let pool = pool(&fixture, &events);
        pool.set(MEMBER, &one.local_addr().to_string(), "member-1");
        events.wait_for("up 000000000000000b 1");
        pool.set(MEMBER, &two.local_addr().to_string(), "member-1");
        events.wait_for("up 000000000000000b 2");
        let link = pool.link(MEMBER).expect("a link");
        assert_eq!(link.peer().address, two.local_addr());
        let events = events.events.lock().clone();
        let down = "down 000000000000000b".to_owned();
        let up = |n| format!("up 000000000000000b {n}");
        assert_eq!(events, [up(1), down, up(2)]);
    }
}

/// Leader 1 dials leader 2, whose service notes what it is told.
mod peers {
    use super::*;

    fn peer() -> LocalIdentity {
        identity("leader-2", Role::Leader, 2)
    }

    fn serve(fixture: &Fixture, service: Arc<Recorder>) -> Server {
        Server::start(
            TcpListener::bind("127.0.0.1:0").expect("a port"),
            fixture.tls("leader-2", Role::Leader),
            peer(),
            service,
            fixture.clock.clone(),
            Limits::default(),
        )
        .expect("a server")
    }

    fn dial_as(
        fixture: &Fixture,
        server: &Server,
        identity: &LocalIdentity,
        number: u64,
    ) -> Result<Arc<Link>, GreetingError> {
        let expected = Expected {
            role: Role::Leader,
            name: None,
            node_id: None,
        };
        let tls = fixture.tls(&identity.name, identity.role);
        let address = server.local_addr().to_string();
        let clock = fixture.clock.clone();
        Link::dial(&address, &expected, &tls, identity, number, clock)
    }

    fn dial(fixture: &Fixture, server: &Server, number: u64) -> Arc<Link> {
        dial_as(fixture, server, &leader(), number).expect("a link")
    }

    fn raft(n: u64) -> Request {
        Request::Raft(RaftRequest {
            address: "127.0.0.1:7".to_owned(),
            messages: vec![Bytes::from(n.to_string())],
        })
    }

    fn join() -> Request {
        Request::Join(JoinRequest {
            founders: vec![PeerId(1), PeerId(2)],
        })
    }

    fn chunk(offset: u64) -> Request {
        Request::Snapshot(SnapshotChunk {
            transfer: 1,
            offset,
            bytes: Bytes::from_static(b"part"),
            end: None,
        })
    }

    #[test]
    fn what_is_posted_arrives_in_order_with_calls_and_has_no_answer() {
        let fixture = fixture();
        let (told, from) = bounded(1000);
        let server = serve(
            &fixture,
            recorder(move |call, request, responder| match request {
                Request::Raft(request) => {
                    assert!((call.id.0, call.term, request.messages.len()) == (0, 4, 1));
                    told.send(request.messages[0].clone()).expect("room");
                    // Half of them are dropped, the others are told an answer: neither leaves.
                    if request.messages[0].len() > 1 {
                        responder.send(Response::Heartbeat);
                    }
                }
                Request::Snapshot(chunk) => {
                    told.send(Bytes::from(format!("chunk {}", chunk.offset)))
                        .expect("room");
                    responder.send(Response::Snapshot);
                }
                _ => panic!("neither posted nor called"),
            }),
        );
        let link = dial(&fixture, &server, 1);
        let (into, answers) = bounded(100);
        for n in 0..100 {
            link.post(4, raft(n)).expect("queued");
            if n % 10 == 0 {
                let completion = collect(n, &into);
                link.call(4, chunk(n), fixture.in_time(), completion)
                    .expect("a call");
            }
            assert!(link.calls_in_flight() <= 10);
        }
        for n in 0..100 {
            assert_eq!(next(&from), n.to_string());
            if n % 10 == 0 {
                assert_eq!(next(&from), format!("chunk {n}"));
                assert_eq!(next(&answers), (n, Ok(Response::Snapshot)));
            }
        }
        // An answer to a post would have come before this one, and ended the link.
        let answer = link.call_wait(4, chunk(1), fixture.in_time());
        assert_eq!(answer, Ok(Response::Snapshot));
        assert!(link.is_open() && link.calls_in_flight() == 0);
    }

    #[test]
    fn a_post_on_a_closed_link_fails() {
        let fixture = fixture();
        let server = serve(&fixture, answering());
        let link = dial(&fixture, &server, 1);
        link.post(1, raft(1)).expect("queued");
        link.close();
        let late = link.post(1, raft(2));
        assert!(matches!(late, Err(CallError::LinkLost(_))), "{late:?}");
    }

    #[test]
    fn a_post_that_fits_no_frame_or_a_full_queue_fails() {
        let fixture = fixture();
        let (go, gate) = bounded::<()>(0);
        let server = serve(
            &fixture,
            recorder(move |_, _, _| _ = gate.recv_timeout(SOON)),
        );
        let link = dial(&fixture, &server, 1);
        let large = |bytes| {
            Request::Raft(RaftRequest {
                address: "h:1".to_owned(),
                messages: vec![Bytes::from(vec![0; bytes])],
            })
        };
        let outcome = link.post(1, large(frame::FRAME_BYTES_MAX));
        assert!(
            matches!(outcome, Err(CallError::TooLarge { .. })),
            "{outcome:?}"
        );
        let outcomes = (0..10).map(|_| link.post(1, large(16 << 20)));
        let outcomes: Vec<_> = outcomes.collect();
        assert_eq!(
            (&outcomes[0], outcomes.last()),
            (&Ok(()), Some(&Err(CallError::Busy)))
        );
        link.close();
        drop(go);
    }

    #[test]
    #[should_panic(expected = "join posted")]
    fn a_call_cannot_be_posted() {
        let fixture = fixture();
        let server = serve(&fixture, answering());
        _ = dial(&fixture, &server, 1).post(1, join());
    }

    #[test]
    fn a_member_may_not_talk_as_a_leader() {
        let fixture = fixture();
        let server = serve(&fixture, recorder(|_, _, _| panic!("not handled")));
        let member = identity("member-2", Role::Member, 12);
        let link = dial_as(&fixture, &server, &member, 0).expect("a link");
        link.post(1, raft(1)).expect("queued");
        assert!(link.wait_closed(SOON));
        for request in [join(), chunk(0)] {
            let link = dial_as(&fixture, &server, &member, 0).expect("a link");
            let kind = request.kind();
            let answer = link.call_wait(1, request, fixture.in_time());
            let refusal = Refusal::Other(format!("{kind} is for a leader to call"));
            assert_eq!(answer, Ok(Response::Refused(refusal)));
            assert!(link.wait_closed(SOON));
        }
    }

    #[test]
    fn leaders_link_to_each_other_by_a_pool_each() {
        let fixture = fixture();
        let (ours, theirs) = (answering(), answering());
        let server = serve(&fixture, theirs.clone());
        let tls = fixture.tls("leader-1", Role::Leader);
        let own_server = Server::start(
            TcpListener::bind("127.0.0.1:0").expect("a port"),
            tls.clone(),
            leader(),
            ours.clone(),
            fixture.clock.clone(),
            Limits::default(),
        )
        .expect("a server");
        let clock = || fixture.clock.clone();
        let pool: Pool<PeerId> = Pool::new(leader(), tls, clock(), ours.clone());
        let peer_tls = fixture.tls("leader-2", Role::Leader);
        let other: Pool<PeerId> = Pool::new(peer(), peer_tls, clock(), theirs.clone());
        pool.set(PeerId(2), &server.local_addr().to_string(), "leader-2");
        other.set(PeerId(1), &own_server.local_addr().to_string(), "leader-1");
        ours.wait_for("up 0000000000000002 1");
        theirs.wait_for("up 0000000000000001 1");
        ours.wait_for("connected leader-2 1");
        theirs.wait_for("connected leader-1 1");
        for link in [pool.link(PeerId(2)), other.link(PeerId(1))] {
            let link = link.expect("open beside the other's");
            link.post(1, raft(1)).expect("queued");
            let answer = link.call_wait(1, join(), fixture.in_time());
            assert!(matches!(answer, Ok(Response::Join(_))), "{answer:?}");
        }
        pool.remove(PeerId(2));
        ours.wait_for("down 0000000000000002");
        theirs.wait_for("disconnected leader-1 1");
        assert!(other.link(PeerId(1)).is_some());
    }

    #[test]
    fn a_restarted_leader_ends_its_earlier_link() {
        let fixture = fixture();
        let server = serve(&fixture, answering());
        // Leaders have the same incarnation always.
        let first = dial(&fixture, &server, 7);
        let late = dial_as(&fixture, &server, &leader(), 6);
        assert!(late.is_err());
        let mut restarted = leader();
        restarted.nonce = 5;
        let second = dial_as(&fixture, &server, &restarted, 1).expect("a link");
        assert!(first.wait_closed(SOON) && second.is_open());
    }

    #[test]
    fn a_passing_link_leaves_the_one_that_lasts_alone() {
        let fixture = fixture();
        let server = serve(&fixture, answering());
        let lasting = dial(&fixture, &server, 3);
        let passing = dial(&fixture, &server, 0);
        let another = dial(&fixture, &server, 0);
        let next = dial(&fixture, &server, 4);
        assert!(lasting.wait_closed(SOON));
        for link in [passing, another, next] {
            let answer = link.call_wait(1, join(), fixture.in_time());
            assert!(matches!(answer, Ok(Response::Join(_))), "{answer:?}");
        }
        // To a member every link is one that lasts.
        let server = fixture.serve(answering());
        let first = fixture.dial(&server, 0);
        let refused = fixture.dial_as(server.local_addr(), &leader(), 0);
        assert!(refused.is_err() && first.is_open());
    }

    #[test]
    fn a_leader_that_reaches_itself_is_refused() {
        let fixture = fixture();
        let server = serve(&fixture, answering());
        let error = dial_as(&fixture, &server, &peer(), 0)
            .err()
            .expect("refused");
        let text = error.to_string();
        assert!(text.contains("is this node itself"), "{text}");
    }
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
