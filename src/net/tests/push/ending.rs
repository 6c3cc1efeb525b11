//! Pushes to sessions whose connection moves to another worker, or whose server stops.

use super::*;

/// All clients that send are with one of two workers, which hands some of them over.
#[test]
fn a_connection_that_moves_takes_its_pushes_along() {
    let feed = Feed::new(limits(2));
    let clients: Vec<Client> = (0..8).map(|number| feed.subscriber(number)).collect();
    assert_eq!(feed.gauges.by_worker(), [4, 4]);
    let is_over = Arc::new(AtomicBool::new(false));
    let mut serving = Vec::new();
    for (number, mut client) in clients.into_iter().enumerate() {
        let is_busy = number % 2 == 0;
        let is_over = Arc::clone(&is_over);
        let serve = move || {
            let mut next = 0;
            loop {
                let is_last = is_over.load(Ordering::SeqCst);
                client.send(&format!("{}\n", if is_busy { WORK } else { 7 }));
                loop {
                    let line = client.line();
                    if line.starts_with('[') {
                        break;
                    }
                    assert_eq!(line, format!("p{next}:xxx"));
                    next += 1;
                }
                if is_last {
                    return (client, next);
                }
                if !is_busy {
                    sleep(Duration::from_millis(5));
                }
            }
        };
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let thread = spawn("client", move || {
            sender.send(serve()).expect("the test waits");
        });
        serving.push((thread.expect("a thread"), receiver));
    }
    let pushers: Vec<Pusher> = (0..8).map(|number| feed.pusher(number)).collect();
    let mut pushed = [0; 8];
    let began = feed.clock.now();
    let mut has_moved = false;
    while !has_moved || feed.clock.now().since(began) < Duration::from_millis(500) {
        for (pusher, pushed) in pushers.iter().zip(&mut pushed) {
            if pusher.push(push(*pushed, 3)).is_ok() {
                *pushed += 1;
            }
        }
        // At full rate they would keep the other worker busy too.
        sleep(Duration::from_millis(1));
        let late = feed.clock.now().since(began) > PATIENCE;
        assert!(!late, "none has moved");
        has_moved |= feed.gauges.by_worker() != [4, 4];
    }
    is_over.store(true, Ordering::SeqCst);
    for ((thread, receiver), pushed) in serving.into_iter().zip(pushed) {
        let (mut client, mut next) = receiver.recv_timeout(PATIENCE).expect("it ends");
        thread.join();
        while next < pushed {
            assert_eq!(client.line(), format!("p{next}:xxx"));
            next += 1;
        }
        assert_eq!(next, pushed, "none came twice");
    }
    feed.stop();
}

#[test]
fn a_stop_drops_pushes_that_nobody_reads_and_tells_the_producers() {
    let feed = Feed::new(Limits {
        linger: Duration::from_millis(200),
        ..limits(2)
    });
    let _clients: Vec<Client> = (0..4).map(|number| feed.slow_subscriber(number)).collect();
    let pushers: Vec<Pusher> = (0..4).map(|number| feed.pusher(number)).collect();
    let told = Arc::new(AtomicUsize::new(0));
    let mut waiting = 0;
    for pusher in &pushers {
        fill(&feed, pusher);
        let told = Arc::clone(&told);
        // It holds a pusher to the session itself, as producers do.
        let own = pusher.clone();
        let waits = pusher.when_room(1000, move || {
            assert_eq!(own.push(push(0, 1)), Err(PushError::Closed));
            told.fetch_add(1, Ordering::SeqCst);
        });
        waiting += usize::from(waits);
    }
    assert_eq!(waiting, 4);
    let gauges = feed.server.gauges();
    feed.stop();
    assert_eq!(told.load(Ordering::SeqCst), waiting);
    assert_eq!(gauges.bytes_held(), 0);
    for pusher in &pushers {
        assert_eq!(pusher.push(push(0, 1)), Err(PushError::Closed));
    }
}
