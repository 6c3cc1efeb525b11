//! The memory that all clients share, when it is used up.

use super::*;
use crate::protocol::reply::Reply;

const LARGE_BYTES: usize = 600 << 10;

/// Room for one large request at a time.
fn tight(stall_timeout: Duration) -> Fixture {
    let limits = Limits {
        budget_bytes: 1 << 20,
        stall_timeout,
        ..limits(2)
    };
    Fixture::with_payloads(limits, LARGE_BYTES)
}

#[test]
fn large_requests_wait_for_room_in_turn_and_small_ones_do_not() {
    let fixture = tight(PATIENCE);
    let mut first = fixture.program();
    let half = "x".repeat(LARGE_BYTES / 2);
    first.send(&format!("SET 1 {half}"));
    fixture.wait("it has its room", |fixture| {
        fixture.gauges.bytes_held() > LARGE_BYTES
    });
    let store = |key| {
        let mut client = fixture.program();
        let body = move || {
            client.send(&format!("SET {key} {}\n", "y".repeat(LARGE_BYTES)));
            assert_eq!(client.line(), "OK");
        };
        spawn("stores", body).expect("a thread")
    };
    let others: Vec<_> = (2..6).map(store).collect();
    sleep(Duration::from_millis(100));
    let held = fixture.gauges.bytes_held();
    assert!(held < (1 << 20) + 4 * (128 << 10), "{held}");
    assert_eq!(
        fixture.store.lock().execute(Batch::Count),
        [Reply::Count(0)]
    );
    let mut small = fixture.program();
    small.send("SET 9 y\nGET 9\n");
    assert_eq!((small.line(), small.line()), ("OK".into(), "y".into()));
    first.send(&format!("{half}\n"));
    assert_eq!(first.line(), "OK");
    others.into_iter().for_each(crate::threads::Thread::join);
    fixture.wait("nothing is held", |fixture| {
        fixture.gauges.bytes_held() == 0
    });
    fixture.stop();
}

#[test]
fn a_large_request_without_room_is_given_up_in_time() {
    let timeout = Duration::from_millis(400);
    let fixture = tight(timeout);
    let now = fixture.clock.now();
    let request = fixture.budget.request_for_input(1 << 20, now, || ());
    let taken = request.expect("nobody waits").take().expect("room");
    let mut client = fixture.program();
    let command = format!("SET 1 {}\nCOUNT\n", "x".repeat(LARGE_BYTES));
    client.send(&command);
    assert_eq!(client.line(), "ERROR: busy, try again");
    assert_eq!(client.line(), "0");
    assert!(fixture.clock.now().since(now) >= timeout, "it waits");
    drop(taken);
    client.send(&command);
    assert_eq!((client.line(), client.line()), ("OK".into(), "1".into()));
    fixture.stop();
}

#[test]
fn a_client_that_stalls_amid_a_large_request_loses_its_room_to_others() {
    let fixture = tight(Duration::from_secs(1));
    let mut stalls = fixture.program();
    let half = "x".repeat(LARGE_BYTES / 2);
    stalls.send(&format!("SET 1 {half}"));
    fixture.wait("it has its room", |fixture| {
        fixture.gauges.bytes_held() > LARGE_BYTES
    });
    // Nobody wants it.
    sleep(Duration::from_millis(1500));
    assert!(fixture.gauges.bytes_held() > LARGE_BYTES);
    // Nor when the server looks at it again.
    stalls.send("x");
    sleep(Duration::from_millis(100));
    assert!(fixture.gauges.bytes_held() > LARGE_BYTES);
    let mut other = fixture.program();
    other.send(&format!("SET 2 {}\n", "y".repeat(LARGE_BYTES)));
    assert_eq!(other.line(), "OK");
    stalls.send(&format!("{}\n", &half[1..]));
    assert_eq!(stalls.line(), "ERROR: busy, try again");
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
