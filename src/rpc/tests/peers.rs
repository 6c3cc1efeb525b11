//! Links between leaders: what is posted, passing links, and who may say what.
//! Leader 1 dials leader 2, whose service notes what it is told.

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
                    responder.send(Response::Heartbeat(HeartbeatAnswer::default()));
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
