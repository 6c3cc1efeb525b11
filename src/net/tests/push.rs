//! Pushes to sessions, through a door of their own: a request subscribes its session, other
//! requests are answered in two halves, some of them later.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;

use super::*;
use crate::net::outbox::{Bounds, PUSH_BYTES};
use crate::net::pusher::{PushError, Pusher};
use crate::protocol::Session;
use crate::protocol::output::Output;

mod ending;
mod many;
mod stepped;

/// From this request on: subscribe under the number above it.
const SUBSCRIBE: u64 = 1 << 40;
/// A request that is answered when the test says so.
const HOLD: u64 = 1 << 41;
/// A request that keeps its worker busy for half a millisecond.
const WORK: u64 = 1 << 42;

/// Sessions of requests that are a number in a line. The reply to `7` is the line `[7 7]`, written
/// in two halves with a batch for each; the reply to a subscription is `subscribed`.
struct Feeds;

#[derive(Default)]
struct FeedSession {
    line: Vec<u8>,
    requests: VecDeque<u64>,
    /// The request whose batch is out.
    out: Option<u64>,
    /// The request of which the first half of the reply is written.
    half: Option<u64>,
    output: Output,
    is_over: bool,
    /// Told after a short time that there is no place.
    is_reserved: bool,
    deadline: Option<Instant>,
}

impl Sessions for Feeds {
    fn open(&self, _: &Caller) -> Box<dyn Session> {
        Box::new(FeedSession::default())
    }

    fn open_reserved(&self, _: &Caller) -> Box<dyn Session> {
        Box::new(FeedSession {
            is_reserved: true,
            ..FeedSession::default()
        })
    }

    fn refusal(&self) -> Bytes {
        Bytes::from_static(b"full\r\n")
    }
}

impl Session for FeedSession {
    fn receive(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => {
                    let line = std::mem::take(&mut self.line);
                    let text = String::from_utf8(line).expect("digits");
                    self.requests.push_back(text.parse().expect("a number"));
                }
                byte => self.line.push(*byte),
            }
        }
    }

    fn end_of_input(&mut self) {
        self.is_over = true;
    }

    fn next_batch(&mut self) -> Option<Batch> {
        if self.out.is_some() {
            return None;
        }
        self.out = self.half.or_else(|| self.requests.pop_front());
        self.out.map(|request| Batch::Reads(vec![Key::Id(request)]))
    }

    fn complete(&mut self, _replies: Vec<Reply>) {
        let request = self.out.take().expect("a batch is out");
        let text = match self.half.take() {
            Some(_) => format!("{request}]\r\n"),
            None if (SUBSCRIBE..HOLD).contains(&request) => "subscribed\r\n".to_owned(),
            None => {
                self.half = Some(request);
                format!("[{request} ")
            }
        };
        self.output.extend(text.as_bytes());
    }

    fn is_amid_reply(&self) -> bool {
        self.half.is_some()
    }

    fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    fn is_paused(&self) -> bool {
        false
    }

    fn wants_close(&self) -> bool {
        self.is_over && self.out.is_none() && self.half.is_none() && self.requests.is_empty()
    }

    fn is_idle(&self) -> bool {
        let is_between = self.line.is_empty() && self.requests.is_empty();
        is_between && self.out.is_none() && self.half.is_none() && self.output.is_empty()
    }

    fn bytes_held(&self) -> usize {
        self.line.len() + 8 * self.requests.len() + self.output.len()
    }

    fn input_bytes(&self) -> usize {
        self.line.len()
    }

    fn input_bytes_expected(&self) -> usize {
        0
    }

    fn shed(&mut self) {}

    fn input_deadline(&mut self, now: Instant) -> Option<Instant> {
        let end = || now + Duration::from_millis(10);
        self.is_reserved
            .then(|| *self.deadline.get_or_insert_with(end))
    }

    fn input_timed_out(&mut self) {
        self.output.extend(b"full\r\n");
        self.is_over = true;
    }

    fn release_buffers(&mut self) {
        self.output.release_buffers();
    }
}

/// Answers every third request by another thread, and hands pushers to the test.
struct FeedHandler {
    clock: Arc<dyn Clock>,
    pushers: Arc<Mutex<HashMap<u64, Pusher>>>,
    held: Arc<Mutex<Vec<Waker>>>,
    racer: crossbeam_channel::Sender<Waker>,
}

impl Handler for FeedHandler {
    fn begin(&self, batch: Batch, _: usize) -> Progress {
        let Batch::Reads(keys) = &batch else {
            unreachable!("it offers reads only");
        };
        let Key::Id(request) = keys[0] else {
            unreachable!("numbers only");
        };
        let replies = vec![Reply::NotFound];
        match request {
            WORK => {
                sleep(Duration::from_micros(500));
                Progress::done(replies)
            }
            HOLD => Progress::Parked(Box::new(FeedParked {
                deadline: self.clock.now() + Duration::from_secs(60),
                to: To::Test(Arc::clone(&self.held)),
            })),
            SUBSCRIBE.. => {
                let pushers = Arc::clone(&self.pushers);
                let subscriber = move |pusher| {
                    pushers.lock().insert(request - SUBSCRIBE, pusher);
                };
                Progress::Subscribed(replies, Box::new(subscriber))
            }
            _ if request.is_multiple_of(3) => Progress::Parked(Box::new(FeedParked {
                deadline: self.clock.now() + Duration::from_secs(60),
                to: To::Racer(self.racer.clone()),
            })),
            _ => Progress::done(replies),
        }
    }
}

enum To {
    Test(Arc<Mutex<Vec<Waker>>>),
    Racer(crossbeam_channel::Sender<Waker>),
}

struct FeedParked {
    deadline: Instant,
    to: To,
}

impl Parked for FeedParked {
    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn arm(&mut self, wake: Waker) {
        match &self.to {
            To::Test(held) => held.lock().push(wake),
            To::Racer(racer) => racer.send(wake).expect("the racer runs"),
        }
    }

    fn resume(self: Box<Self>) -> Progress {
        Progress::done(vec![Reply::NotFound])
    }
}

struct Feed {
    server: Server,
    gauges: Gauges,
    clock: Arc<dyn Clock>,
    pushers: Arc<Mutex<HashMap<u64, Pusher>>>,
    held: Arc<Mutex<Vec<Waker>>>,
}

impl Feed {
    fn new(limits: Limits) -> Feed {
        let clock = SystemClock::shared();
        let (racer, racing) = crossbeam_channel::bounded::<Waker>(1 << 15);
        // Ends with the handler.
        let _ended_by_its_channel = spawn("racer", move || {
            racing.into_iter().for_each(Waker::wake);
        });
        let handler = FeedHandler {
            clock: Arc::clone(&clock),
            pushers: Arc::default(),
            held: Arc::default(),
            racer,
        };
        let (pushers, held) = (Arc::clone(&handler.pushers), Arc::clone(&handler.held));
        let door = Door {
            listener: TcpListener::bind("127.0.0.1:0").expect("a port"),
            sessions: Arc::new(Feeds),
        };
        let executor: (Arc<dyn Admission>, Arc<dyn Handler>) =
            (Arc::new(Everything), Arc::new(handler));
        let server = Server::start(vec![door], executor, Arc::clone(&clock), limits);
        let server = server.expect("a server");
        Feed {
            gauges: server.gauges(),
            server,
            clock,
            pushers,
            held,
        }
    }

    fn client(&self) -> Client {
        let stream = TcpStream::connect(self.server.addresses()[0]).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        Client { stream }
    }

    /// A client that is subscribed under this number.
    fn subscriber(&self, number: u64) -> Client {
        self.subscribed(self.client(), number)
    }

    /// The same with a small buffer in the system for what it does not read.
    fn slow_subscriber(&self, number: u64) -> Client {
        let stream = slow_stream(self.server.addresses()[0]);
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        self.subscribed(Client { stream }, number)
    }

    fn subscribed(&self, mut client: Client, number: u64) -> Client {
        client.send(&format!("{}\n", SUBSCRIBE + number));
        assert_eq!(client.line(), "subscribed");
        client
    }

    fn pusher(&self, number: u64) -> Pusher {
        // It is handed out right behind the reply.
        self.wait("there is a pusher", || {
            self.pushers.lock().contains_key(&number)
        });
        self.pushers.lock()[&number].clone()
    }

    fn wait(&self, what: &str, mut until: impl FnMut() -> bool) {
        let deadline = self.clock.now() + PATIENCE;
        while !until() {
            assert!(self.clock.now() < deadline, "waited too long until {what}");
            sleep(Duration::from_millis(2));
        }
    }

    fn stop(self) {
        let deadline = self.clock.now() + PATIENCE;
        self.server.stop(deadline).expect("all threads end");
        assert!(
            self.clock.now() < deadline - Duration::from_secs(5),
            "the stop took long"
        );
    }
}

/// A connection with a small buffer in the system for what is not read.
fn slow_stream(address: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = socket.expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    socket.connect(&address.into()).expect("a connection");
    socket.into()
}

/// The line of a push, which is `length` bytes long and more.
fn push(number: u64, length: usize) -> Bytes {
    format!("p{number}:{}\r\n", "x".repeat(length)).into()
}

/// Pushes until the session has taken no more for some time, as the system's buffers are full too;
/// returns the number of the next push.
fn fill(feed: &Feed, pusher: &Pusher) -> u64 {
    let mut number = 0;
    let mut full_since = feed.clock.now();
    while feed.clock.now().since(full_since) < Duration::from_millis(200) {
        match pusher.push(push(number, 1000)) {
            Ok(()) => {
                number += 1;
                full_since = feed.clock.now();
            }
            Err(error) => {
                assert_eq!(error, PushError::Full);
                sleep(Duration::from_millis(1));
            }
        }
        assert!(number < 1 << 17, "its memory is not bounded");
    }
    number
}

#[test]
fn an_idle_session_is_pushed_to() {
    let feed = Feed::new(limits(2));
    let mut client = feed.subscriber(1);
    let pusher = feed.pusher(1);
    for round in 0..100 {
        pusher.push(push(round, 5)).expect("room");
        assert_eq!(client.line(), format!("p{round}:xxxxx"));
    }
    client.send("7\n");
    assert_eq!(client.line(), "[7 7]");
    feed.wait("nothing is held", || feed.gauges.bytes_held() == 0);
    feed.stop();
}

#[test]
fn pushes_do_not_wait_for_a_batch_and_do_not_enter_a_reply() {
    let feed = Feed::new(limits(1));
    let mut client = feed.subscriber(1);
    let pusher = feed.pusher(1);
    client.send(&format!("{HOLD}\n7\n"));
    feed.wait("its batch is parked", || feed.held.lock().len() == 1);
    pusher.push(push(1, 1)).expect("room");
    assert_eq!(client.line(), "p1:x");
    // The first half of the reply is written, the second is parked.
    feed.held.lock().pop().expect("parked").wake();
    feed.wait("the second half is parked", || feed.held.lock().len() == 1);
    for number in 2..5 {
        pusher.push(push(number, 1)).expect("room");
    }
    sleep(Duration::from_millis(20));
    feed.held.lock().pop().expect("parked").wake();
    assert_eq!(client.line(), format!("[{HOLD} {HOLD}]"));
    let mut rest: Vec<String> = (0..4).map(|_| client.line()).collect();
    rest.retain(|line| line != "[7 7]");
    assert_eq!(rest, ["p2:x", "p3:x", "p4:x"]);
    feed.stop();
}

/// The client takes nothing until a mark, then all of it.
#[test]
fn a_client_that_does_not_read_has_bounded_memory_and_gets_everything_later() {
    let feed = Feed::new(limits(2));
    let mut client = feed.slow_subscriber(1);
    let pusher = feed.pusher(1);
    let next = fill(&feed, &pusher);
    let Bounds { bytes_max, .. } = Bounds::default();
    let held = feed.gauges.bytes_held();
    let most = bytes_max + OUTPUT_MAX + 2000;
    assert!(
        (bytes_max / 2..most).contains(&held),
        "{held} bytes are held"
    );

    let (told, is_told) = crossbeam_channel::bounded(1);
    let waits = pusher.when_room(1000, move || told.send(()).expect("it waits"));
    assert!(waits);
    sleep(Duration::from_millis(50));
    assert!(is_told.try_recv().is_err(), "there is no room yet");
    for number in 0..next {
        assert!(client.line().starts_with(&format!("p{number}:")));
    }
    is_told.recv_timeout(PATIENCE).expect("there is room");
    assert!(!pusher.when_room(1000, || unreachable!("there is room already")));
    pusher.push(push(next, 1)).expect("room");
    assert_eq!(client.line(), format!("p{next}:x"));
    feed.wait("nothing is held", || feed.gauges.bytes_held() == 0);
    feed.stop();
}

/// Unread output up to which pushes are taken, half of the allowance.
const OUTPUT_MAX: usize = 32 << 10;

#[test]
fn a_client_that_does_not_read_is_closed_when_others_want_the_bytes() {
    let feed = Feed::new(Limits {
        budget_bytes: 64 << 10,
        stall_timeout: Duration::from_millis(300),
        ..limits(2)
    });
    let _stalled = feed.slow_subscriber(1);
    let pusher = feed.pusher(1);
    let mut next = 0;
    feed.wait("it is closed", || {
        while pusher.push(push(next, 1000)).is_ok() {
            next += 1;
        }
        let most = (64 << 10) + OUTPUT_MAX + 2000;
        assert!(feed.gauges.bytes_held() <= most);
        pusher.is_closed()
    });
    assert_eq!(pusher.push(push(next, 1)), Err(PushError::Closed));
    assert!(!pusher.when_room(1, || unreachable!("it is closed already")));
    feed.wait("nothing is held", || feed.gauges.bytes_held() == 0);
    feed.stop();
}

#[test]
fn a_producer_is_told_of_a_closed_connection_and_not_of_the_next_one_in_its_place() {
    // One place for all.
    let feed = Feed::new(Limits {
        connections_max: 2,
        ..limits(2)
    });
    for round in 0..5 {
        let client = feed.slow_subscriber(round);
        let pusher = feed.pusher(round);
        let next = fill(&feed, &pusher);
        let (told, is_told) = crossbeam_channel::bounded(1);
        let tell = move || told.send(()).expect("it waits");
        assert!(pusher.when_room(1000, tell));
        drop(client);
        is_told.recv_timeout(PATIENCE).expect("it is closed");
        feed.wait("it is closed", || pusher.is_closed());
        assert_eq!(pusher.push(push(next, 1)), Err(PushError::Closed));
        feed.wait("its place is free", || feed.gauges.connections() == 0);
        let mut other = feed.subscriber(100 + round);
        assert_eq!(pusher.push(push(next, 1)), Err(PushError::Closed));
        feed.pusher(100 + round).push(push(7, 1)).expect("room");
        assert_eq!(other.line(), "p7:x");
        drop(other);
        feed.wait("the place is free", || feed.gauges.connections() == 0);
        feed.pushers.lock().clear();
    }
    assert_eq!(feed.gauges.bytes_held(), 0);
    feed.stop();
}

#[test]
fn a_subscribed_client_does_not_give_way_until_its_producer_is_gone() {
    let feed = Feed::new(Limits {
        connections_max: 2,
        idle_min: Duration::from_millis(20),
        ..limits(2)
    });
    let mut client = feed.subscriber(1);
    let pusher = feed.pusher(1);
    for _ in 0..3 {
        sleep(Duration::from_millis(50));
        assert_eq!(feed.client().rest(), "full\r\n");
    }
    pusher.push(push(1, 1)).expect("room");
    assert_eq!(client.line(), "p1:x");
    drop(pusher);
    feed.pushers.lock().clear();
    sleep(Duration::from_millis(100));
    let mut next = feed.client();
    next.send("7\n");
    assert_eq!(next.line(), "[7 7]");
    assert_eq!(client.rest(), "");
    feed.stop();
}
