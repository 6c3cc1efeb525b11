//! The memory that all clients share, when it is used up.

use super::*;

#[test]
fn a_crossed_budget_costs_large_requests_and_not_small_ones() {
    let limits = Limits {
        budget_bytes: 1 << 20,
        ..limits(2)
    };
    let fixture = Fixture::new(limits);
    let piece = "x".repeat(600 << 10);
    let mut clients = [fixture.program(), fixture.program(), fixture.program()];
    for client in &mut clients {
        client.send("SET 1 ");
        client.send(&piece);
    }
    fixture.wait("room is made", |fixture| {
        let held = fixture.gauges.bytes_held();
        (500 << 10..1 << 20).contains(&held)
    });
    let mut small = fixture.program();
    small.send("SET 2 y\nGET 2\n");
    assert_eq!((small.line(), small.line()), ("OK".into(), "y".into()));
    let mut outcomes = Vec::new();
    for client in &mut clients {
        client.send("\nGET 2\n");
        outcomes.push(client.line());
        assert_eq!(client.line(), "y");
    }
    outcomes.sort();
    assert_eq!(outcomes[0], "ERROR: busy, try again");
    assert_eq!(outcomes[2], "OK");
    fixture.wait("nothing is held", |fixture| {
        fixture.gauges.bytes_held() == 0
    });
    // There is room again.
    clients[0].send(&format!("SET 1 {piece}\n"));
    assert_eq!(clients[0].line(), "OK");
    fixture.stop();
}

/// More than a read of small commands may wait for room for their replies: they are not one large
/// request that could be given up.
#[test]
fn a_crossed_budget_costs_no_pipelined_small_commands() {
    let limits = Limits {
        budget_bytes: 1,
        ..limits(2)
    };
    let fixture = Fixture::new(limits);
    fixture.store.lock().reads_max = Some(100);
    let mut client = fixture.program();
    let message = "m".repeat(1000);
    client.send(&format!("SET 1 {message}\n"));
    assert_eq!(client.line(), "OK");
    let count = 40_000;
    let mut sender = client.stream.try_clone().expect("a clone");
    let commands = "GET 1\n".repeat(count);
    let sending = spawn("sends", move || {
        sender.write_all(commands.as_bytes()).expect("sent")
    });
    // So that commands pile up behind the replies.
    sleep(Duration::from_millis(100));
    for _ in 0..count {
        assert_eq!(
            client.exact(message.len() + 2),
            format!("{message}\r\n").as_bytes()
        );
    }
    sending.expect("a thread").join();
    fixture.stop();
}

#[test]
fn clients_that_never_read_do_not_keep_the_budget_crossed() {
    let limits = Limits {
        budget_bytes: 1 << 20,
        stall_timeout: Duration::from_millis(200),
        ..limits(2)
    };
    let fixture = Fixture::new(limits);
    fixture.store.lock().reads_max = Some(1);
    let message = "m".repeat(500 << 10);
    let mut writer = fixture.program();
    writer.send(&format!("SET 1 {message}\n"));
    assert_eq!(writer.line(), "OK");
    let mut silent: Vec<Client> = (0..4).map(|_| fixture.program()).collect();
    for client in &mut silent {
        client.send(&"GET 1\n".repeat(40));
    }
    fixture.wait("enough of them are closed", |fixture| {
        fixture.gauges.connections() < 5 && fixture.gauges.bytes_held() <= 1 << 20
    });
    writer.send("SET 2 small\n");
    assert_eq!(writer.line(), "OK");
    fixture.stop();
}

/// A client that stalled while nobody wanted its bytes is closed soon after somebody does, and not
/// another time-out later.
#[test]
fn a_client_that_stalled_long_ago_is_closed_as_soon_as_its_bytes_are_wanted() {
    let timeout = Duration::from_secs(4);
    let limits = Limits {
        budget_bytes: 64 << 20,
        stall_timeout: timeout,
        ..limits(2)
    };
    let fixture = Fixture::new(limits);
    let mut silent = fixture.program();
    let message = "m".repeat(12 << 20);
    silent.send(&format!("SET 1 {message}\n"));
    assert_eq!(silent.line(), "OK");
    silent.send("GET 1\n");
    fixture.wait("it stalls", |fixture| fixture.gauges.bytes_held() > 1 << 20);
    let stalled = fixture.clock.now();
    sleep(timeout + Duration::from_millis(500));
    assert_eq!(fixture.gauges.connections(), 1, "nobody wants its bytes");
    let mut other = fixture.budget.charge();
    other.set(64 << 20);
    fixture.wait("it is closed", |fixture| fixture.gauges.connections() == 0);
    let taken = fixture.clock.now().since(stalled);
    assert!(taken < timeout * 7 / 4, "closed after {taken:?}");
    drop(other);
    fixture.stop();
}

#[test]
fn a_client_that_takes_next_to_nothing_stalls_too() {
    let limits = Limits {
        budget_bytes: 1 << 20,
        stall_timeout: Duration::from_millis(500),
        ..limits(2)
    };
    let fixture = Fixture::new(limits);
    let mut slow = fixture.program();
    let message = "m".repeat(900 << 10);
    slow.send(&format!("SET 1 {message}\n"));
    assert_eq!(slow.line(), "OK");
    fixture.store.lock().reads_max = Some(1);
    slow.send(&"GET 1\n".repeat(40));
    let deadline = fixture.clock.now() + PATIENCE;
    let mut piece = [0; 512];
    while fixture.gauges.connections() > 0 {
        assert!(fixture.clock.now() < deadline, "it keeps its place");
        // An error when it is closed.
        _ = slow.stream.read(&mut piece);
        sleep(Duration::from_millis(20));
    }
    fixture.stop();
}

/// A large reply is in memory as a whole until its last byte is taken.
#[test]
fn room_for_a_reply_is_kept_until_it_is_taken() {
    let fixture = Fixture::new(limits(2));
    let mut client = fixture.program();
    let length = 12 << 20;
    let message = "m".repeat(length);
    client.send(&format!("SET room {message}\n"));
    assert_eq!(client.line(), "OK");
    fixture.wait("nothing is held", |fixture| {
        fixture.gauges.bytes_held() == 0
    });
    client.send("GET room\n");
    client.exact(1 << 20);
    let held = fixture.gauges.bytes_held();
    assert_eq!(held, length + 2, "as long as the reply");
    client.exact(length - (1 << 20));
    assert_eq!(client.line(), "");
    fixture.wait("nothing is held", |fixture| {
        fixture.gauges.bytes_held() == 0
    });
    fixture.stop();
}
