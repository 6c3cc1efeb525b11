//! Commands from bytes to batches, and replies from values to bytes: a session without its socket.

use bytes::{Buf, Bytes};
use criterion::{Criterion, Throughput};
use std::hint::black_box;
use tolerex::ids::Revision;
use tolerex::protocol::Session;
use tolerex::protocol::hatokuse::{HatokuseSession, Identity, Limits};
use tolerex::protocol::reply::Reply;
use tolerex::protocol::request::Batch;

/// Requests in one read of the socket.
const PIPELINE: usize = 16;

pub fn all(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group(format!("parsing/{PIPELINE}"));
    group.throughput(Throughput::Elements(PIPELINE as u64));
    let message = "x".repeat(100);
    for (name, line) in [
        ("SET 100B", format!("SET 123456789 {message}\r\n")),
        ("SETB 100B", format!("SETB 123456789 100\r\n{message}\r\n")),
        ("SET word key", format!("SET orders/2024/17 {message}\r\n")),
        ("GET", "GET 123456789\r\n".to_owned()),
    ] {
        let input = line.repeat(PIPELINE).into_bytes();
        let mut session = session();
        group.bench_function(name, |bencher| bencher.iter(|| serve(&mut session, &input)));
    }
    group.finish();
}

/// A session with its greeting taken and the prompt off.
fn session() -> HatokuseSession {
    let identity = Identity {
        node: "leader-1".to_owned(),
        role: "leader".to_owned(),
    };
    let mut session = HatokuseSession::new(Limits::default(), &identity);
    session.receive(b"PROMPT OFF\r\n");
    assert!(session.next_batch().is_none());
    drain(&mut session);
    session
}

/// Takes the bytes in, answers each batch, and takes the replies out.
fn serve(session: &mut HatokuseSession, input: &[u8]) {
    session.receive(input);
    let mut answered = 0;
    while let Some(batch) = session.next_batch() {
        let revision = Revision::new(1, 1);
        let (reply, count) = match black_box(batch) {
            Batch::Writes(writes) => (
                Reply::Stored {
                    revision,
                    created: true,
                },
                writes.len(),
            ),
            Batch::Reads(keys) => {
                let payload = Bytes::from_static(&[b'x'; 100]);
                (Reply::Value { revision, payload }, keys.len())
            }
            other => panic!("neither SET nor GET: {other:?}"),
        };
        session.complete(vec![reply; count]);
        answered += count;
    }
    assert_eq!(answered, PIPELINE);
    drain(session);
}

fn drain(session: &mut HatokuseSession) {
    let output = session.output();
    output.advance(output.remaining());
}
