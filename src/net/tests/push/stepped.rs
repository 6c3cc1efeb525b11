//! Pushes to one connection over a stream in memory, step by step.

use std::io::{self, IoSlice};

use mio::event::Source;
use mio::{Interest, Poll, Registry, Token};

use super::*;
use crate::net::connection::Connection;
use crate::net::mailbox::{Letter, Mailbox};
use crate::net::stream::Stream;

/// What a stream has sent, and how many bytes more it takes.
#[derive(Default)]
struct Wire {
    sent: Vec<u8>,
    takes: usize,
}

struct Memory(Arc<Mutex<Wire>>);

impl Stream for Memory {
    fn read(&mut self, _into: &mut [u8]) -> io::Result<Option<usize>> {
        Ok(None)
    }

    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        let mut wire = self.0.lock();
        let bytes = slices.iter().flat_map(|slice| slice.iter());
        let bytes: Vec<u8> = bytes.take(wire.takes).copied().collect();
        wire.takes -= bytes.len();
        wire.sent.extend(&bytes);
        Ok((!bytes.is_empty()).then_some(bytes.len()))
    }

    fn end_output(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn has_input(&mut self) -> bool {
        false
    }
}

impl Source for Memory {
    fn register(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
        Ok(())
    }

    fn reregister(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
        Ok(())
    }

    fn deregister(&mut self, _: &Registry) -> io::Result<()> {
        Ok(())
    }
}

const PLACE: usize = 7;

struct Rig {
    connection: Connection,
    wire: Arc<Mutex<Wire>>,
    budget: Arc<Budget>,
    mailboxes: [Arc<Mailbox>; 2],
    // The mailboxes wake them.
    _polls: [Poll; 2],
}

fn at(nanos: u64) -> Instant {
    Instant::from_nanos(nanos)
}

impl Rig {
    /// A connection that was accepted at 5 ns, of the worker with the first mailbox.
    fn new() -> Rig {
        let polls = [0, 1].map(|_| Poll::new().expect("a poll"));
        let mailbox = |poll: &Poll| Mailbox::new(poll.registry()).expect("a mailbox");
        let mailboxes = [0, 1].map(|worker: usize| Arc::new(mailbox(&polls[worker])));
        let budget = Budget::new(1 << 20);
        let wire = Arc::new(Mutex::new(Wire::default()));
        let caller = crate::protocol::testing::caller();
        let stream = Box::new(Memory(Arc::clone(&wire)));
        let session = Feeds.open(&caller);
        let connection = Connection::new((stream, caller), session, budget.charge(), at(5));
        Rig {
            connection,
            wire,
            budget,
            mailboxes,
            _polls: polls,
        }
    }

    fn pusher(&mut self) -> Pusher {
        self.connection
            .pusher(&self.mailboxes[0], PLACE, Bounds::default())
    }

    /// How often each worker was told to look at the connection.
    fn looks(&self) -> [usize; 2] {
        [0, 1].map(|worker| {
            let mut letters = Vec::new();
            self.mailboxes[worker].open(&mut letters);
            for letter in &letters {
                let is_ours = matches!(letter, Letter::Look(PLACE, accepted) if *accepted == at(5));
                assert!(is_ours, "another letter");
            }
            letters.len()
        })
    }

    /// The stream takes so many bytes more, and the connection sends what it can.
    fn flush(&mut self, takes: usize) {
        self.wire.lock().takes = takes;
        self.connection.may_be_ready(false);
        self.connection.begin_turn();
        self.connection.flush(at(6)).expect("it is open");
    }

    fn sent(&self) -> String {
        String::from_utf8(std::mem::take(&mut self.wire.lock().sent)).expect("text")
    }
}

#[test]
fn pushes_join_the_output_up_to_a_bound() {
    let mut rig = Rig::new();
    let pusher = rig.pusher();
    let mut expected = String::new();
    for number in 0..60 {
        let push = push(number, 1000);
        expected.push_str(std::str::from_utf8(&push).expect("text"));
        pusher.push(push).expect("room");
    }
    let all = expected.len();
    assert_eq!(rig.budget.used(), all + 60 * PUSH_BYTES);
    rig.connection.take_pushes();
    let output = rig.connection.session.output().len();
    assert!(
        (OUTPUT_MAX..OUTPUT_MAX + 1010).contains(&output),
        "{output}"
    );
    assert!(
        !rig.connection.has_pushes(),
        "the rest waits for the client"
    );
    rig.connection.take_pushes();
    assert_eq!(rig.connection.session.output().len(), output);
    rig.flush(2000);
    assert!(rig.connection.has_pushes());
    let mut rounds = 0;
    while rig.connection.has_pushes() {
        rig.connection.take_pushes();
        rig.flush(2000);
        rounds += 1;
    }
    assert!(rounds > 10, "{rounds}");
    rig.flush(all);
    assert_eq!(rig.sent(), expected);
    assert_eq!(rig.budget.used(), 0);
}

#[test]
fn a_push_waits_for_the_end_of_a_reply() {
    let mut rig = Rig::new();
    let pusher = rig.pusher();
    let session = &mut rig.connection.session;
    session.receive(b"7\n");
    session.next_batch().expect("a request");
    pusher.push(push(1, 1)).expect("room");
    rig.connection.take_pushes();
    rig.connection.session.complete(vec![Reply::NotFound]);
    pusher.push(push(2, 1)).expect("room");
    assert!(!rig.connection.has_pushes());
    rig.connection.take_pushes();
    rig.flush(100);
    assert_eq!(rig.sent(), "p1:x\r\n[7 ");
    rig.connection.session.next_batch().expect("the other half");
    rig.connection.session.complete(vec![Reply::NotFound]);
    assert!(rig.connection.has_pushes());
    rig.connection.take_pushes();
    rig.flush(100);
    assert_eq!(rig.sent(), "7]\r\np2:x\r\n");
}

#[test]
fn the_worker_that_owns_the_connection_is_called_once() {
    let mut rig = Rig::new();
    let pusher = rig.pusher();
    pusher.push(push(1, 1)).expect("room");
    pusher.push(push(2, 1)).expect("room");
    assert_eq!(rig.looks(), [1, 0]);
    // On its way to another worker, which looks when it takes the connection over.
    rig.connection.moves_to(&rig.mailboxes[1]);
    pusher.push(push(3, 1)).expect("room");
    assert_eq!(rig.looks(), [0, 0]);
    rig.connection.take_pushes();
    assert_eq!(rig.connection.session.output().len(), 3 * 6);
    pusher.push(push(4, 1)).expect("room");
    assert_eq!(rig.looks(), [0, 1]);
}

#[test]
fn a_connection_is_subscribed_while_there_is_a_pusher() {
    let mut rig = Rig::new();
    assert!(!rig.connection.is_subscribed());
    let first = rig.pusher();
    let second = first.clone();
    drop(first);
    assert!(rig.connection.is_subscribed());
    assert_eq!(rig.looks(), [0, 0]);
    second.push(push(1, 1)).expect("room");
    drop(second);
    assert_eq!(rig.looks(), [2, 0], "for the push, and for the end");
    assert!(!rig.connection.is_subscribed());
    rig.connection.take_pushes();
    rig.flush(100);
    assert_eq!(rig.sent(), "p1:x\r\n");
    // Another subscription is another outbox.
    let third = rig.pusher();
    third.push(push(2, 1)).expect("room");
    assert_eq!(rig.looks(), [1, 0]);
}

#[test]
fn a_closed_connection_calls_nobody_and_gives_its_bytes_back() {
    for is_dropped in [false, true] {
        let mut rig = Rig::new();
        let pusher = rig.pusher();
        pusher.push(push(1, 1000)).expect("room");
        assert_eq!(rig.looks(), [1, 0]);
        let Rig {
            mut connection,
            budget,
            mailboxes,
            ..
        } = rig;
        connection.stop_reading();
        if is_dropped {
            drop(connection);
        }
        assert_eq!(pusher.push(push(2, 1)), Err(PushError::Closed));
        assert_eq!(budget.used(), 0);
        drop(pusher);
        let mut letters = Vec::new();
        mailboxes[0].open(&mut letters);
        assert!(letters.is_empty());
    }
}
