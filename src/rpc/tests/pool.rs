//! The pool that keeps a link to each target.

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
