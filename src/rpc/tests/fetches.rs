//! Links for fetches beside those for everything, and answers that find no room.

use super::*;
use crate::rpc::message::Purpose;

fn fetch(revisions: u64) -> Request {
    Request::Fetch(FetchRequest {
        fence: Fence { term: 1, link: 1 },
        revisions: (0..revisions).map(Revision::from_u64).collect(),
    })
}

/// A pool that keeps a link for fetches open, and that link.
fn open(fixture: &Fixture, server: &Server) -> (Pool<MemberId>, Arc<Link>) {
    let events = recorder(|_, _, _| ());
    let tls = fixture.tls("leader-1", Role::Leader);
    let clock = fixture.clock.clone();
    let pool = Pool::of_purpose(Purpose::Fetches, leader(), tls, clock, events.clone());
    pool.set(MEMBER, &server.local_addr().to_string(), "member-1");
    events.wait_for("up");
    let link = pool.link(MEMBER).expect("it is up");
    (pool, link)
}

#[test]
fn a_link_for_fetches_has_a_place_of_its_own() {
    let fixture = fixture();
    let server = fixture.serve(answering());
    let all = fixture.dial(&server, 7);
    assert!(all.peer().separates_fetches);
    let (_pool, fetches) = open(&fixture, &server);
    for link in [&all, &fetches] {
        let answer = link.call_wait(1, fetch(2), fixture.in_time());
        let missing = vec![FetchResult::Missing; 2];
        assert_eq!(answer, Ok(Response::Fetch(missing)));
    }
    let newer = fixture.dial(&server, 8);
    assert!(all.wait_closed(SOON), "its place is taken");
    assert!(newer.is_open() && fetches.is_open());
    let (_newer_pool, newer_fetches) = open(&fixture, &server);
    assert!(newer.is_open() && newer_fetches.is_open());
}

#[test]
fn a_link_for_fetches_takes_nothing_else() {
    let fixture = fixture();
    let server = fixture.serve(answering());
    for request in [store("x", 1), release(1)] {
        let (_pool, link) = open(&fixture, &server);
        let kind = request.kind();
        let answer = link.call_wait(1, request, fixture.in_time());
        let text = format!("{kind} called on a link for fetches");
        assert_eq!(answer, Ok(Response::Refused(Refusal::Other(text))));
        assert!(link.wait_closed(SOON));
    }
}

/// A leader that is busy for a while has more answers coming than may wait for it: it gets those
/// that fit, is refused the others, and keeps its link.
#[test]
fn a_peer_that_is_busy_keeps_its_link() {
    let fixture = fixture();
    let payload = Bytes::from(vec![7; 1 << 20]);
    let server = fixture.serve(recorder(move |_, _, responder| {
        let found = FetchResult::Found {
            key: Key::Id(1),
            payload: payload.clone(),
        };
        responder.send(Response::Fetch(vec![found]));
    }));
    let link = fixture.dial(&server, 1);
    let (sender, outcomes) = bounded(200);
    let (open_gate, gate) = bounded::<()>(1);
    let done = collect(0, &sender);
    let first: Completion = Box::new(move |outcome| {
        _ = gate.recv_timeout(SOON);
        done(outcome);
    });
    link.call(1, fetch(1), fixture.in_time() + SOON, first)
        .expect("sent");
    let calls = 120;
    for number in 1..=calls {
        let done = collect(number, &sender);
        link.call(1, fetch(1), fixture.in_time() + SOON, done)
            .expect("sent");
    }
    // The server answers on the thread that reads the calls: this one comes after all of them.
    let refused = Duration::from_secs(3);
    crate::clock::sleep(refused);
    assert!(link.is_open());
    open_gate.send(()).expect("it waits");
    let mut busy = 0;
    for _ in 0..=calls {
        match next(&outcomes).1.expect("the link is kept") {
            Response::Fetch(results) => assert_eq!(results.len(), 1),
            Response::Refused(Refusal::Busy) => busy += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!((1..calls).contains(&busy), "{busy} were refused");
    assert!(link.is_open());
}
