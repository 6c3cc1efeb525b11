//! Batches that wait for something else than a worker.

use super::*;

#[test]
fn parked_batches_leave_the_workers_to_others() {
    let fixture = Fixture::new(limits(2));
    let mut blocker = fixture.program();
    blocker.send("NOPE\nSET block x\n");
    assert_eq!(blocker.line(), "ERROR: unknown command");
    fixture.wait("a worker is held", |fixture| {
        fixture.gate.0.lock().blocked == 1
    });

    let mut parked: Vec<Client> = (0..10).map(|_| fixture.program()).collect();
    for client in &mut parked {
        client.send("COUNT\nSET park x\nGET park\n");
        // Earlier replies do not wait for the batch that waits.
        assert_eq!(client.line(), "0");
    }
    fixture.wait("they are parked", |fixture| fixture.gauges.parked() == 10);
    let mut dozer = fixture.program();
    dozer.send("SET doze x\n");
    let mut other = fixture.program();
    other.send("COUNT\n");
    assert_eq!(other.line(), "0");

    // By its deadline, with one worker left.
    assert_eq!(dozer.line(), "OK");
    // By an event; twice does no harm.
    let wakers = std::mem::take(&mut fixture.gate.0.lock().wakers);
    for waker in wakers.iter().chain(&wakers) {
        waker.wake();
    }
    for client in &mut parked {
        assert_eq!((client.line(), client.line()), ("OK".into(), "x".into()));
    }
    assert_eq!(fixture.gauges.parked(), 0);
    fixture.open_gate();
    assert_eq!(blocker.line(), "OK");
    // An old waker does nothing.
    wakers[0].wake();
    fixture.stop();
}

#[test]
fn no_wake_up_is_lost_however_early_it_comes() {
    let fixture = Fixture::new(limits(4));
    let mut clients: Vec<Client> = (0..8).map(|_| fixture.program()).collect();
    for round in 0..300 {
        for client in &mut clients {
            let word = if round % 3 == 0 { "early" } else { "race" };
            client.send(&format!("SET {word} x\nGET {word}\nSET race x\n"));
        }
        for client in &mut clients {
            assert_eq!(client.line() + &client.line() + &client.line(), "OKxOK");
        }
    }
    fixture.stop();
}

#[test]
fn beyond_the_limit_of_parked_batches_the_answer_is_busy() {
    let limits = Limits {
        parked_max: 1,
        ..limits(2)
    };
    let fixture = Fixture::new(limits);
    let (mut first, mut second) = (fixture.program(), fixture.program());
    first.send("SET park x\n");
    fixture.wait("it is parked", |fixture| fixture.gauges.parked() == 1);
    second.send("SET a x\nSET b x\nGET a\n");
    for _ in 0..3 {
        assert_eq!(second.line(), format!("ERROR: {}", Failure::Busy));
    }
    fixture.gate.0.lock().wakers[0].wake();
    assert_eq!(first.line(), "OK");
    second.send("SET a x\n");
    assert_eq!(second.line(), "OK");
    fixture.stop();
}
