//! Calls over one link: their order, their ends, and what comes of them when it is lost.

use super::*;

#[test]
fn a_call_is_answered() {
    let fixture = fixture();
    let server = fixture.serve(answering());
    let link = fixture.dial(&server, 1);
    let answer = link.call_wait(3, store("hello", 2), fixture.in_time());
    assert_eq!(answer, Ok(Response::Store(vec![StoreResult::Stored; 2])));
    assert_eq!((link.peer().name.as_str(), link.number()), ("member-1", 1));
}

#[test]
fn answers_come_in_any_order_to_their_calls() {
    let fixture = fixture();
    let held = Arc::new(Mutex::new(Vec::new()));
    let service = {
        let held = held.clone();
        recorder(move |call, request, responder| {
            let Request::Fetch(fetch) = request else {
                panic!("only fetches");
            };
            let mut held = held.lock();
            held.push((fetch.revisions[0], responder));
            assert!(call.term == 9 && call.bytes > 0);
            if held.len() == 50 {
                for (revision, responder) in held.drain(..).rev() {
                    let key = Key::Id(revision.as_u64());
                    let payload = Bytes::from(revision.to_string());
                    responder.send(Response::Fetch(vec![FetchResult::Found { key, payload }]));
                }
            }
        })
    };
    let server = fixture.serve(service);
    let link = fixture.dial(&server, 1);
    let (into, from) = bounded(50);
    for n in 0..50 {
        let request = Request::Fetch(FetchRequest {
            fence: Fence::default(),
            revisions: vec![Revision::from_u64(n)],
        });
        let call = link.call(9, request, fixture.in_time(), collect(n, &into));
        call.expect("a call");
    }
    for n in (0..50).rev() {
        let key = Key::Id(n);
        let payload = Bytes::from(n.to_string());
        let found = vec![FetchResult::Found { key, payload }];
        assert_eq!(next(&from), (n, Ok(Response::Fetch(found))));
    }
}

#[test]
fn answers_given_together_leave_in_one_write_and_wake_who_waits_for_them_once() {
    const CALLS: u64 = 200;
    let fixture = fixture();
    let held = Mutex::new(Vec::new());
    let server = fixture.serve(recorder(move |_, _, responder| {
        let mut held = held.lock();
        held.push(responder);
        if held.len() as u64 == CALLS {
            // Within the handling of one read, and in a few bytes each.
            held.drain(..).for_each(|one| one.send(Response::Release));
        }
    }));
    let link = fixture.dial(&server, 1);
    let sleeper: Arc<wakeups::Counting> = Arc::default();
    let (into, from) = bounded(CALLS as usize);
    for n in 0..CALLS {
        let (sleeper, into) = (Arc::clone(&sleeper), into.clone());
        let completion: Completion = Box::new(move |answer| {
            wakeups::wake(&sleeper);
            into.send(answer).expect("there is room");
        });
        link.call(1, release(n), fixture.in_time(), completion)
            .expect("a call");
    }
    for _ in 0..CALLS {
        let answer = from.recv_timeout(SOON).expect("an answer");
        assert_eq!(answer, Ok(Response::Release));
    }
    // It joins the reader, so whoever is to be woken was.
    drop(link);
    assert_eq!(sleeper.count(), 1);
}

#[test]
fn frames_that_wait_leave_in_one_write() {
    let fixture = fixture();
    let (go, gate) = bounded::<()>(2);
    let server = fixture.serve(recorder(move |_, request, responder| match request {
        Request::Store(_) => {
            gate.recv_timeout(SOON).expect("the test goes on");
            responder.send(Response::Store(vec![StoreResult::Stored]));
        }
        _ => responder.send(Response::Release),
    }));
    let link = fixture.dial(&server, 1);
    let (into, from) = bounded(5002);
    let call = |n, request| {
        link.call(1, request, fixture.in_time(), collect(n, &into))
            .expect("a call");
    };
    // While the first is handled nothing is read, so the second keeps the writer.
    call(0, store("first", 1));
    call(1, store(vec![0; 30 << 20], 1));
    (0..5000).for_each(|n| call(n, release(n)));
    assert!(link.bytes_queued() > 1 << 20);
    let before = link.writes();
    (0..2).for_each(|_| go.send(()).expect("room for two"));
    for _ in 0..5002 {
        next(&from).1.expect("an answer");
    }
    let writes = link.writes() - before;
    assert!(writes < 500, "{writes} writes");
}

#[test]
fn a_large_frame_arrives_whole() {
    let fixture = fixture();
    let payload: Bytes = (0..20u32 << 20).map(|n| (n % 251) as u8).collect();
    let expected = payload.clone();
    let server = fixture.serve(recorder(move |_, request, responder| match request {
        Request::Store(store) if store.records[0].payload == expected => {
            responder.send(Response::Store(vec![StoreResult::Stored]));
        }
        _ => panic!("another payload"),
    }));
    let link = fixture.dial(&server, 1);
    let answer = link.call_wait(1, store(payload, 1), fixture.in_time());
    assert_eq!(answer, Ok(Response::Store(vec![StoreResult::Stored])));
    let payload = vec![0; frame::FRAME_BYTES_MAX];
    let answer = link.call_wait(1, store(payload, 1), fixture.in_time());
    assert!(
        matches!(answer, Err(CallError::TooLarge { .. })),
        "{answer:?}"
    );
    assert!(link.is_open());
}

/// Keeps responders, answering nothing.
fn silent() -> (Arc<Recorder>, Arc<Mutex<Vec<Responder>>>) {
    let held = Arc::new(Mutex::new(Vec::new()));
    let into = held.clone();
    (
        recorder(move |_, _, responder| into.lock().push(responder)),
        held,
    )
}

#[test]
fn loss_of_the_link_completes_every_call_once() {
    let fixture = fixture();
    let (service, held) = silent();
    let server = fixture.serve(service.clone());
    let link = fixture.dial(&server, 1);
    let (into, from) = bounded(1000);
    let taken = (0..100).filter(|n| {
        link.call(1, release(*n), fixture.in_time(), collect(*n, &into))
            .is_ok()
    });
    assert_eq!(taken.count(), 100);
    server.stop(fixture.in_time()).expect("a stop in time");
    let mut completed: Vec<u64> = (0..100)
        .map(|_| {
            let (n, outcome) = next(&from);
            assert!(
                matches!(outcome, Err(CallError::LinkLost(_))),
                "{outcome:?}"
            );
            n
        })
        .collect();
    completed.sort_unstable();
    assert_eq!(completed, (0..100).collect::<Vec<_>>());
    assert!(link.wait_closed(SOON) && !link.is_open());
    let late = link.call(1, release(0), fixture.in_time(), collect(0, &into));
    assert!(matches!(late, Err(CallError::LinkLost(_))), "{late:?}");
    held.lock().clear();
    drop(link);
    assert!(from.try_recv().is_err());
    service.wait_for("disconnected leader-1 1");
}

#[test]
fn a_race_of_calls_and_close_completes_each_call_once() {
    let fixture = fixture();
    let server = fixture.serve(answering());
    for number in 1..=5 {
        let link = fixture.dial(&server, number);
        let completed = Arc::new(AtomicUsize::new(0));
        let callers: Vec<_> = (0..2)
            .map(|_| {
                let (link, completed) = (link.clone(), completed.clone());
                let deadline = fixture.in_time();
                let (taken, count) = bounded(1);
                let call = move || {
                    let mut calls = 0;
                    for n in 0..2000 {
                        let completed = completed.clone();
                        let done = move |_| _ = completed.fetch_add(1, Ordering::SeqCst);
                        calls +=
                            link.call(1, release(n), deadline, Box::new(done)).is_ok() as usize;
                    }
                    taken.send(calls).expect("a count");
                };
                (
                    crate::threads::spawn("caller", call).expect("a thread"),
                    count,
                )
            })
            .collect();
        crate::clock::sleep(Duration::from_millis(number));
        link.close();
        let mut taken = 0;
        for (thread, count) in callers {
            taken += next(&count);
            thread.join();
        }
        assert!(link.wait_closed(SOON));
        assert_eq!(completed.load(Ordering::SeqCst), taken);
    }
}

#[test]
fn a_call_without_an_answer_expires() {
    let fixture = fixture();
    let (service, held) = silent();
    let server = fixture.serve(service);
    let link = fixture.dial(&server, 1);
    let begin = fixture.clock.now();
    let deadline = begin + Duration::from_millis(60);
    let outcome = link.call_wait(1, release(1), deadline);
    assert_eq!(outcome, Err(CallError::TimedOut));
    let took = fixture.clock.now().since(begin);
    assert!(took >= Duration::from_millis(60) && took < SOON, "{took:?}");
    // The late answer is dropped, and the link goes on.
    for responder in held.lock().drain(..) {
        responder.send(Response::Release);
    }
    assert_eq!((link.calls_in_flight(), link.is_open()), (0, true));
}

#[test]
fn calls_expire_while_the_peer_does_not_read_and_a_full_queue_is_busy() {
    let fixture = fixture();
    let (go, gate) = bounded::<()>(0);
    let server = fixture.serve(recorder(move |_, _, _| _ = gate.recv_timeout(SOON)));
    let link = fixture.dial(&server, 1);
    let (into, from) = bounded(1000);
    let payload = Bytes::from(vec![1; 16 << 20]);
    let deadline = fixture.clock.now() + Duration::from_millis(300);
    let mut taken = 0;
    let refused = loop {
        match link.call(1, store(payload.clone(), 1), deadline, collect(0, &into)) {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, CallError::Busy);
    assert!(link.bytes_queued() > 32 << 20 && taken < 10, "{taken}");
    for _ in 0..taken {
        assert_eq!(next(&from).1, Err(CallError::TimedOut));
    }
    link.close();
    drop(go);
    server.stop(fixture.in_time()).expect("a stop in time");
}

#[test]
fn a_dropped_responder_refuses_and_a_wrong_answer_ends_the_link() {
    let fixture = fixture();
    let server = fixture.serve(recorder(|_, request, responder| match request {
        Request::Store(_) => responder.send(Response::Heartbeat(HeartbeatAnswer::default())),
        _ => drop(responder),
    }));
    let link = fixture.dial(&server, 1);
    let refused = Response::Refused(Refusal::Other("not handled".to_owned()));
    assert_eq!(
        link.call_wait(1, release(1), fixture.in_time()),
        Ok(refused)
    );
    let outcome = link.call_wait(1, store("x", 1), fixture.in_time());
    assert!(
        matches!(outcome, Err(CallError::LinkLost(_))),
        "{outcome:?}"
    );
    assert!(link.wait_closed(SOON));
}

#[test]
fn a_link_dropped_by_a_completion_does_not_wait_for_itself() {
    let fixture = fixture();
    let server = fixture.serve(answering());
    let link = fixture.dial(&server, 1);
    let (into, from) = bounded(1);
    let (go, gate) = bounded::<()>(0);
    let last = link.clone();
    let completion = move |outcome| {
        gate.recv_timeout(SOON)
            .expect("the other reference is gone");
        drop(last);
        into.send(outcome).expect("a collector");
    };
    link.call(1, release(1), fixture.in_time(), Box::new(completion))
        .expect("a call");
    drop(link);
    go.send(()).expect("the completion waits");
    assert_eq!(next(&from), Ok(Response::Release));
}
