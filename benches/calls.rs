//! Round trips of the RPC over mutual TLS on the loopback, between a leader's and a member's end:
//! 1, 16 and 64 stores of 100 bytes in flight on one link. A round is that many calls and answers.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput};
use crossbeam_channel::bounded;
use tolerex::clock::SystemClock;
use tolerex::ids::{ClusterId, Fence, Key, Revision};
use tolerex::rpc::greeting::Expected;
use tolerex::rpc::link::Link;
use tolerex::rpc::message::{
    Refusal, Request, Response, Role, StoreRecord, StoreRequest, StoreResult,
};
use tolerex::rpc::server::{CallInfo, Limits, Responder, Server, Service};
use tolerex::rpc::testing::TestPki;
use tolerex::rpc::{LocalIdentity, PeerInfo};

const IN_FLIGHT: [usize; 3] = [1, 16, 64];

/// Far more than a call takes.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A member without a disk.
struct Answers;

impl Service for Answers {
    fn connected(&self, _: &PeerInfo) -> Result<(), Refusal> {
        Ok(())
    }

    fn handle(&self, _: &PeerInfo, _: CallInfo, request: Request, responder: Responder) {
        let Request::Store(store) = request else {
            panic!("only stores are sent");
        };
        responder.send(Response::Store(vec![
            StoreResult::Stored;
            store.records.len()
        ]));
    }

    fn disconnected(&self, _: &PeerInfo) {}
}

fn identity(name: &str, role: Role, node_id: u64) -> LocalIdentity {
    LocalIdentity {
        cluster_id: ClusterId(7),
        name: name.to_owned(),
        node_id,
        incarnation: 1,
        nonce: node_id,
        role,
    }
}

pub fn all(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let pki = TestPki::new(dir.path());
    let clock = SystemClock::shared();
    let server = Server::start(
        TcpListener::bind("127.0.0.1:0").expect("a port"),
        pki.context("member-1", Role::Member, &clock),
        identity("member-1", Role::Member, 2),
        Arc::new(Answers),
        clock.clone(),
        Limits::default(),
    )
    .expect("a server");
    let expected = Expected {
        role: Role::Member,
        name: Some("member-1".to_owned()),
        node_id: None,
    };
    let link = Link::dial(
        &server.local_addr().to_string(),
        &expected,
        &pki.context("leader-1", Role::Leader, &clock),
        &identity("leader-1", Role::Leader, 1),
        1,
        clock.clone(),
    )
    .expect("a link");
    let request = Request::Store(StoreRequest {
        fence: Fence { term: 1, link: 1 },
        records: Arc::new(vec![StoreRecord {
            revision: Revision::new(1, 1),
            key: Key::Id(1),
            payload: Bytes::from_static(&[b'x'; 100]),
        }]),
    });
    let mut group = criterion.benchmark_group("rpc");
    for in_flight in IN_FLIGHT {
        group.throughput(Throughput::Elements(in_flight as u64));
        group.bench_function(BenchmarkId::from_parameter(in_flight), |bencher| {
            let (sender, receiver) = bounded(in_flight);
            bencher.iter(|| {
                for _ in 0..in_flight {
                    let sender = sender.clone();
                    let completion = Box::new(move |outcome: Result<_, _>| {
                        sender.send(outcome.is_ok()).expect("it is waited for");
                    });
                    let deadline = clock.now() + CALL_TIMEOUT;
                    let sent = link.call(1, request.clone(), deadline, completion);
                    sent.expect("the link is open");
                }
                for _ in 0..in_flight {
                    assert!(receiver.recv().expect("a completion"));
                }
            });
        });
    }
    group.finish();
    drop(link);
    let stopped = server.stop(clock.now() + CALL_TIMEOUT);
    stopped.expect("the server stops");
}
