//! How connections and servers end.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::shared::Nothing;
use super::*;
use crate::net::server::Body;

#[test]
fn a_stop_finishes_what_was_begun() {
    let fixture = Fixture::new(limits(2));
    let mut idle = fixture.client();
    let (mut blocked, mut parked) = (fixture.program(), fixture.program());
    blocked.send("SET block x\nGET block\n");
    // One after the other, or they would be one batch.
    fixture.wait("the first is begun", |fixture| {
        fixture.gate.0.lock().blocked == 1
    });
    parked.send("SET doze x\nSET never x\n");
    fixture.wait("both are begun", |fixture| {
        fixture.gate.0.lock().blocked == 1 && fixture.gauges.under_way() == 1
    });
    let address = fixture.server.addresses()[0];
    let gate = Arc::clone(&fixture.gate);
    let opening = spawn("opens", move || {
        sleep(Duration::from_millis(100));
        gate.0.lock().is_open = true;
        gate.1.notify_all();
    });
    let store = Arc::clone(&fixture.store);
    fixture.stop();
    opening.expect("a thread").join();
    assert_eq!(idle.rest(), "");
    assert_eq!(blocked.rest(), "OK\r\n");
    assert!(parked.rest().starts_with("OK\r\n"));
    assert_eq!(store.lock().messages[&Key::Word("doze".into())].1, "x");
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn a_stop_ends_at_its_deadline_and_names_who_is_late() {
    let fixture = Fixture::new(limits(2));
    let (mut blocked, mut parked) = (fixture.program(), fixture.program());
    parked.send("SET park x\n");
    // One after the other, or they would be one batch.
    fixture.wait("the first is parked", |fixture| {
        fixture.gauges.under_way() == 1
    });
    blocked.send("SET block x\n");
    fixture.wait("both are begun", |fixture| {
        fixture.gate.0.lock().blocked == 1 && fixture.gauges.under_way() == 1
    });
    let deadline = fixture.clock.now() + Duration::from_millis(100);
    let late = fixture.server.stop(deadline).expect_err("a worker is held");
    assert_eq!(late.len(), 1);
    assert!(late[0].starts_with("work-"), "{late:?}");
    assert_eq!(parked.rest(), "");
    fixture.gate.0.lock().is_open = true;
    fixture.gate.1.notify_all();
}

#[test]
fn quit_drops_what_follows_and_ends_in_order() {
    let fixture = Fixture::new(limits(2));
    let mut client = fixture.client();
    client.send("SET 1 a\nQUIT\nSET 1 b\n");
    let mut sender = client.stream.try_clone().expect("a clone");
    let sending = spawn("sends", move || {
        // The server may close before all is sent.
        let _ = sender.write_all(&vec![b'x'; 3 << 20]);
        let _ = sender.shutdown(Shutdown::Write);
    });
    assert_eq!(client.rest(), "OK\r\ntolerex> Bye\r\n");
    sending.expect("a thread").join();
    fixture.wait("it is closed", |fixture| fixture.gauges.connections() == 0);
    let stored = fixture.store.lock().messages[&Key::Id(1)].1.clone();
    assert_eq!(stored, "a");
    fixture.stop();
}

#[test]
fn a_client_that_never_closes_is_closed_after_the_linger() {
    let limits = Limits {
        linger: Duration::from_millis(100),
        ..limits(2)
    };
    let fixture = Fixture::new(limits);
    let mut client = fixture.client();
    client.send("QUIT\n");
    assert_eq!(client.rest(), "Bye\r\n");
    fixture.wait("it is closed", |fixture| fixture.gauges.connections() == 0);
    fixture.stop();
}

/// `printf 'SET 1 hello\nGET 1\nGET 2' | nc -N localhost 6666`
#[test]
fn a_half_closed_connection_gets_its_replies_then_the_end() {
    let fixture = Fixture::new(limits(2));
    let mut client = fixture.stranger();
    client.send("SET 1 hello\nGET 1\nGET 2");
    client
        .stream
        .shutdown(Shutdown::Write)
        .expect("half-closed");
    let all = client.rest();
    let (_, replies) = all.split_once("tolerex> ").expect("a banner");
    assert_eq!(
        replies,
        "OK\r\ntolerex> hello\r\ntolerex> NOT_FOUND\r\ntolerex> "
    );
    fixture.wait("it is closed", |fixture| fixture.gauges.connections() == 0);
    assert_eq!(fixture.gauges.bytes_held(), 0);
    fixture.stop();
}

/// Its letter is in the mailbox of a worker that is held up.
#[test]
fn a_stop_closes_a_connection_that_has_not_reached_its_worker() {
    let fixture = Fixture::new(limits(1));
    let mut blocked = fixture.program();
    blocked.send("SET block x\n");
    fixture.wait("its batch is begun", |fixture| {
        fixture.gate.0.lock().blocked == 1
    });
    let mut newcomer = fixture.stranger();
    fixture.wait("it is accepted", |fixture| {
        fixture.gauges.connections() == 2
    });
    let deadline = fixture.clock.now() + Duration::from_millis(100);
    let late = fixture.server.stop(deadline).expect_err("a worker is held");
    assert_eq!(late, ["work-1"]);
    assert_eq!(newcomer.rest(), "");
    fixture.gate.0.lock().is_open = true;
    fixture.gate.1.notify_all();
}

#[test]
fn a_thread_that_cannot_be_started_ends_those_that_were() {
    for refused in 0..4 {
        let running = Arc::new(AtomicUsize::new(0));
        let mut started = Vec::new();
        let mut spawn_some = |name: String, body: Body| {
            if started.len() == refused {
                return Err(ErrorKind::WouldBlock.into());
            }
            started.push(name.clone());
            running.fetch_add(1, Ordering::SeqCst);
            let running = Arc::clone(&running);
            spawn(name, move || {
                body();
                running.fetch_sub(1, Ordering::SeqCst);
            })
        };
        let door = Door {
            listener: TcpListener::bind("127.0.0.1:0").expect("a port"),
            sessions: Arc::new(Hurried),
        };
        let clock = SystemClock::shared();
        let limits = limits(2);
        let budget = Budget::new(limits.budget_bytes);
        let server = Server::start_by(
            &mut spawn_some,
            vec![door],
            (Arc::new(Everything), Arc::new(Nothing)),
            Arc::clone(&clock),
            (limits, budget),
        );
        let error = server.err().expect("a thread is refused");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert_eq!(started.len(), refused, "{started:?}");
        let deadline = clock.now() + PATIENCE;
        while running.load(Ordering::SeqCst) > 0 {
            assert!(clock.now() < deadline, "some of {started:?} still run");
            sleep(Duration::from_millis(2));
        }
    }
}
