//! Batches that wait, and the letters that continue them.

use super::*;

#[test]
fn parked_batches_leave_their_worker_to_others() {
    let fixture = Fixture::new(limits(1));
    let mut parked: Vec<Client> = (0..10).map(|_| fixture.program()).collect();
    for client in &mut parked {
        client.send("COUNT\nSET park x\nGET park\n");
        // Earlier replies do not wait for the batch that waits.
        assert_eq!(client.line(), "0");
    }
    fixture.wait("they are parked", |fixture| {
        fixture.gauges.under_way() == 10
    });
    let mut dozer = fixture.program();
    dozer.send("SET doze x\n");
    let mut other = fixture.program();
    other.send("COUNT\n");
    assert_eq!(other.line(), "0");

    // By its deadline.
    assert_eq!(dozer.line(), "OK");
    // By an event.
    let wakers = std::mem::take(&mut fixture.gate.0.lock().wakers);
    wakers.into_iter().for_each(Waker::wake);
    for client in &mut parked {
        assert_eq!((client.line(), client.line()), ("OK".into(), "x".into()));
    }
    assert_eq!(fixture.gauges.under_way(), 0);
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
        under_way_max: 1,
        ..limits(2)
    };
    let fixture = Fixture::new(limits);
    let (mut first, mut second) = (fixture.program(), fixture.program());
    first.send("SET park x\n");
    fixture.wait("it is parked", |fixture| fixture.gauges.under_way() == 1);
    second.send("SET a x\nSET b x\nGET a\n");
    for _ in 0..3 {
        assert_eq!(second.line(), format!("ERROR: {}", Failure::Busy));
    }
    let wakers = std::mem::take(&mut fixture.gate.0.lock().wakers);
    wakers.into_iter().for_each(Waker::wake);
    assert_eq!(first.line(), "OK");
    second.send("SET a x\n");
    assert_eq!(second.line(), "OK");
    fixture.stop();
}

/// A batch that still waits beyond its deadline keeps its worker neither from others nor busy.
#[test]
fn a_batch_beyond_its_deadline_is_asked_now_and_then() {
    let fixture = Fixture::new(limits(1));
    let mut late = fixture.program();
    late.send("SET late x\n");
    fixture.wait("it is parked", |fixture| fixture.gauges.under_way() == 1);
    let mut other = fixture.program();
    other.send("COUNT\n");
    assert_eq!(other.line(), "0");
    let before = fixture.gauges.turns();
    sleep(Duration::from_millis(200));
    let turns = (&fixture.gauges.turns() - &before).count();
    assert!((1..=400).contains(&turns), "{turns} turns in 200 ms");
    fixture.open_gate();
    assert_eq!(late.line(), "OK");
    fixture.stop();
}
