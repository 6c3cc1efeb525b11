//! Places that run short: checks get through, and who is idle makes place.

use super::*;

const REFUSED: &str = "ERROR: too many connections\r\n";

/// Of 16 places two are reserved.
fn scarce(idle_min: Duration) -> Fixture {
    Fixture::new(Limits {
        connections_max: 16,
        idle_min,
        ..limits(2)
    })
}

/// What `tolerex status` asks.
fn check(fixture: &Fixture) {
    let mut tool = fixture.stranger();
    tool.send("PROMPT OFF\r\n");
    tool.read_until("tolerex> OK\r\n");
    tool.send("COUNT\r\n");
    assert_eq!(tool.line(), "0");
    tool.send("STATUS JSON\r\n");
    let status = tool.line();
    assert!(status.starts_with("{\"node\""), "{status}");
}

#[test]
fn checks_are_answered_when_clients_have_taken_all_places() {
    let fixture = scarce(PATIENCE);
    let mut clients: Vec<Client> = (0..14).map(|_| fixture.client()).collect();
    // Those that say nothing come again and again, and keep no check out.
    let mut silent: Vec<Client> = (0..100).map(|_| fixture.stranger()).collect();
    for _ in 0..20 {
        check(&fixture);
        silent.extend((0..5).map(|_| fixture.stranger()));
    }
    for one in &mut silent {
        let told = one.rest();
        assert!(told.ends_with(REFUSED), "{told}");
    }
    // Who had a place has it still.
    for client in &mut clients {
        client.send("GET 1\n");
        client.read_until("NOT_FOUND\r\ntolerex> ");
    }
    fixture.wait("the others are closed", |fixture| {
        fixture.gauges.connections() == 14
    });
    fixture.stop();
}

/// What they have sent and the server does not read, as they take no replies, is no request.
#[test]
fn clients_that_do_not_read_keep_no_check_out() {
    let fixture = scarce(PATIENCE);
    let _clients: Vec<Client> = (0..14).map(|_| fixture.client()).collect();
    let flood = "HELP\n".repeat(1 << 14);
    let mut deaf: Vec<Client> = (0..2).map(|_| fixture.stranger()).collect();
    for client in &mut deaf {
        let timeout = Some(Duration::from_millis(300));
        client
            .stream
            .set_write_timeout(timeout)
            .expect("a time-out");
        let mut sent = 0;
        while let Ok(count) = client.stream.write(flood.as_bytes()) {
            sent += count;
            assert!(sent < 64 << 20, "the server still reads");
        }
    }
    let began = fixture.clock.now();
    check(&fixture);
    let took = fixture.clock.now().since(began);
    assert!(took < crate::protocol::RESERVED_TIME / 2, "{took:?}");
    drop(deaf);
    fixture.stop();
}

#[test]
fn who_says_nothing_keeps_a_reserved_place_for_a_short_time() {
    let fixture = scarce(PATIENCE);
    let _clients: Vec<Client> = (0..14).map(|_| fixture.client()).collect();
    let mut silent = fixture.stranger();
    let began = fixture.clock.now();
    assert!(silent.rest().ends_with(REFUSED));
    let took = fixture.clock.now().since(began);
    let limit = crate::protocol::RESERVED_TIME;
    assert!(
        (limit - Duration::from_millis(500)..limit * 3).contains(&took),
        "{took:?}"
    );
    fixture.stop();
}

#[test]
fn idle_clients_make_place_and_no_request_is_cut_off() {
    let idle_min = Duration::from_millis(300);
    let fixture = scarce(idle_min);
    // These wait for longer than the others.
    let [mut line, mut payload, mut parked, mut used] = [(); 4].map(|()| fixture.program());
    line.send("SET 1 ");
    // Its head is parsed: nothing of it is in a buffer.
    payload.send("SETB 2 4\r\n");
    parked.send("SET park x\n");
    fixture.wait("it is parked", |fixture| fixture.gauges.under_way() == 1);
    // One after the other, so that the first of them is idle for longest.
    let one_more = |_| {
        sleep(Duration::from_millis(50));
        fixture.program()
    };
    let mut idle: Vec<Client> = (0..10).map(one_more).collect();
    sleep(idle_min * 2);
    used.send("COUNT\n");
    assert_eq!(used.line(), "0");

    let newcomer = || {
        let mut client = fixture.program();
        client.send("SET 3 x\n");
        assert_eq!(client.line(), "OK");
        client
    };
    let first = newcomer();
    // Used since the order of all was found: it is not the next to go.
    idle[1].send("COUNT\n");
    assert_eq!(idle[1].line(), "1");
    let _clients = [first, newcomer(), newcomer()];
    // As many as were needed are gone, the longest idle ones.
    let is_served = |client: &mut Client| {
        // Where it is closed, the write may fail or not.
        let _ = client.stream.write_all(b"GET 3\n");
        client.stream.read_exact(&mut [0; 3]).is_ok()
    };
    let served: Vec<bool> = idle.iter_mut().map(is_served).collect();
    let expected = [0, 2, 3].map(|gone| !served[gone]);
    assert!(expected == [true; 3], "{served:?}");
    assert_eq!(served.iter().filter(|is| **is).count(), 7, "{served:?}");
    line.send("a\n");
    payload.send("b\r\nb\r\n");
    assert_eq!((line.line(), payload.line()), ("OK".into(), "OK".into()));
    fixture
        .gate
        .0
        .lock()
        .wakers
        .drain(..)
        .for_each(|waker| waker.wake());
    assert_eq!(parked.line(), "OK");
    used.send("COUNT\n");
    assert_eq!(used.line(), "4");
    fixture.stop();
}

/// Newcomers that find nobody idle for long enough are refused, as each of them is young itself.
#[test]
fn newcomers_do_not_drive_each_other_out() {
    let fixture = scarce(PATIENCE);
    let mut clients: Vec<Client> = (0..14).map(|_| fixture.program()).collect();
    for _ in 0..10 {
        let mut more = fixture.stranger();
        more.send("SET 1 x\n");
        assert!(more.rest().ends_with(REFUSED));
    }
    for client in &mut clients {
        client.send("COUNT\n");
        assert_eq!(client.line(), "0");
    }
    fixture.stop();
}
