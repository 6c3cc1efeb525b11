//! The place where requests of known callers are permitted and counted.

use std::net::SocketAddr;

use super::*;
use crate::protocol::admission::Kind;

/// Refuses deletes, and notes what it counts.
#[derive(Default)]
struct NoDeletes(Mutex<Vec<Counted>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Counted {
    address: SocketAddr,
    kind: Kind,
    payload_bytes: u64,
    replies: usize,
    failed: usize,
    took: Duration,
}

impl Admission for NoDeletes {
    fn permit(&self, _: &Caller, batch: &Batch) -> Result<(), Failure> {
        let is_delete = |write: &Change| matches!(write, Change::Delete { .. });
        match batch {
            Batch::Writes(writes) if writes.iter().any(is_delete) => Err(Failure::Busy),
            _ => Ok(()),
        }
    }

    fn count(&self, caller: &Caller, offered: &Offered, replies: &[Reply], now: Instant) {
        let failed = replies
            .iter()
            .filter(|reply| matches!(reply, Reply::Failed(_)));
        self.0.lock().push(Counted {
            address: caller.address,
            kind: offered.kind,
            payload_bytes: offered.payload_bytes,
            replies: replies.len(),
            failed: failed.count(),
            took: now.since(offered.at),
        });
    }
}

#[test]
fn a_batch_that_is_refused_is_answered_and_not_executed() {
    let admission = Arc::new(NoDeletes::default());
    let fixture = Fixture::start(limits(2), 1000, Arc::clone(&admission) as _);
    let mut client = fixture.program();
    client.send("SET 1 stays\n");
    assert_eq!(client.line(), "OK");
    client.send("SET 2 gone\nDEL 1\nGET 1\nGET 2\nDEL 1\nCOUNT\n");
    let lines: Vec<String> = (0..6).map(|_| client.line()).collect();
    let busy = "ERROR: busy, try again";
    assert_eq!(lines, [busy, busy, "stays", "NOT_FOUND", busy, "1"]);
    let address = client.stream.local_addr().expect("connected");
    let counted = admission.0.lock().clone();
    assert!(counted.iter().all(|batch| batch.address == address));
    let shown = counted
        .iter()
        .map(|batch| (batch.kind, batch.payload_bytes, batch.replies, batch.failed));
    let expected = [
        (Kind::Write, 5, 1, 0),
        (Kind::Write, 4, 2, 2),
        (Kind::Read, 0, 2, 0),
        (Kind::Write, 0, 1, 1),
        (Kind::Count, 0, 1, 0),
    ];
    assert!(shown.eq(expected), "{counted:?}");
    fixture.stop();
}

/// Refused batches are executed no more than others: many of them in one read end with the turn.
#[test]
fn many_refused_batches_are_answered_in_order() {
    let fixture = Fixture::start(limits(1), 1000, Arc::new(NoDeletes::default()));
    let mut client = fixture.program();
    let rounds = 1000;
    client.send(&"DEL 1\nCOUNT\n".repeat(rounds));
    for _ in 0..rounds {
        assert_eq!(client.line(), "ERROR: busy, try again");
        assert_eq!(client.line(), "0");
    }
    fixture.stop();
}

#[test]
fn writes_that_share_a_batch_are_counted_for_their_callers() {
    // One worker is held until all others wait, so that they are served together.
    let admission = Arc::new(NoDeletes::default());
    let fixture = Fixture::start(limits(1), 1000, Arc::clone(&admission) as _);
    let mut blocked = fixture.program();
    let mut clients: Vec<Client> = (0..10).map(|_| fixture.program()).collect();
    blocked.send("SET block x\n");
    fixture.wait("the worker is held", |fixture| {
        fixture.gate.0.lock().blocked == 1
    });
    for client in &mut clients {
        client.send("SET doze x\nSET doze xx\n");
    }
    sleep(Duration::from_millis(50));
    let before = fixture.store.lock().batches;
    fixture.open_gate();
    assert_eq!(blocked.line(), "OK");
    for client in &mut clients {
        assert_eq!((client.line(), client.line()), ("OK".into(), "OK".into()));
    }
    assert!(
        fixture.store.lock().batches - before < 10,
        "none was shared"
    );
    let counted = admission.0.lock().clone();
    for client in &clients {
        let address = client.stream.local_addr().expect("connected");
        let mut own = counted.iter().filter(|batch| batch.address == address);
        let batch = own.next().expect("it is counted");
        let counts = (batch.payload_bytes, batch.replies, batch.failed);
        assert_eq!(counts, (3, 2, 0));
        assert!(batch.took >= Duration::from_millis(150), "{:?}", batch.took);
        assert_eq!(own.next(), None);
    }
    fixture.stop();
}
