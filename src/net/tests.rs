//! Servers on loopback with a map for a store.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::budget::Budget;
use super::room::Need;
use super::{Door, Gauges, Handler, Limits, Parked, Progress, Server, Waker};
use crate::clock::{Clock, Instant, SystemClock, sleep};
use crate::error::Failure;
use crate::ids::Key;
use crate::protocol::Sessions;
use crate::protocol::admission::{Admission, Caller, Offered};
use crate::protocol::hatokuse::{self, Hatokuse, Identity};
use crate::protocol::http::{self, Http};
use crate::protocol::reply::Reply;
use crate::protocol::request::{Batch, Write as Change};
use crate::protocol::testing::FakeStore;
use crate::threads::spawn;

mod admission;
mod budget;
mod deadlines;
mod descriptors;
mod ending;
mod helping;
mod misbehaving;
mod parking;
mod places;
mod push;
mod readings;
mod replies;
mod shared;
mod turns;
mod workers;

use self::deadlines::{Hurried, Patient};
use self::helping::Node;

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// Executes on a map, except for writes whose first key is a word with a meaning: `block` holds its
/// worker until released, `work` for some time, `park` waits for a wake-up, `doze` for its
/// deadline, `race` is woken by another thread as soon as it can be, `early` while it is armed, and
/// `late` waits beyond its deadline, until released.
struct FakeHandler {
    clock: Arc<dyn Clock>,
    store: Arc<Mutex<FakeStore>>,
    gate: Arc<(Mutex<Gate>, Condvar)>,
    budget: Arc<Budget>,
    racer: crossbeam_channel::Sender<Waker>,
}

#[derive(Default)]
struct Gate {
    blocked: usize,
    /// So many of those that were blocked first are let through.
    let_through: usize,
    is_open: bool,
    wakers: Vec<Waker>,
}

struct FakeParked {
    store: Arc<Mutex<FakeStore>>,
    gate: Arc<(Mutex<Gate>, Condvar)>,
    racer: crossbeam_channel::Sender<Waker>,
    batch: Batch,
    word: String,
    deadline: Instant,
}

fn first_word(batch: &Batch) -> String {
    match batch {
        Batch::Writes(writes) => match writes.first() {
            Some(Change::Set {
                key: Key::Word(word),
                ..
            }) => word.to_string(),
            _ => String::new(),
        },
        _ => String::new(),
    }
}

impl Handler for FakeHandler {
    fn begin(&self, batch: Batch, _: usize) -> Progress {
        if matches!(&batch, Batch::Reads(keys) if keys[0].to_string() == "room") {
            return self.with_room(batch);
        }
        let word = first_word(&batch);
        let wait = match word.as_str() {
            "block" => {
                block(&self.gate);
                Duration::ZERO
            }
            "work" => {
                sleep(Duration::from_micros(500));
                Duration::ZERO
            }
            "park" | "race" | "early" => Duration::from_secs(60),
            "doze" => Duration::from_millis(150),
            "late" => Duration::from_nanos(1),
            _ => Duration::ZERO,
        };
        if wait.is_zero() {
            return Progress::done(self.store.lock().execute(batch));
        }
        Progress::Parked(Box::new(FakeParked {
            store: Arc::clone(&self.store),
            gate: Arc::clone(&self.gate),
            racer: self.racer.clone(),
            batch,
            word,
            deadline: self.clock.now() + wait,
        }))
    }
}

impl FakeHandler {
    /// Reserves 16 MiB for the replies, more than they take.
    fn with_room(&self, batch: Batch) -> Progress {
        let need = Need {
            reply_bytes: 16 << 20,
            fetches: vec![(1, 1)],
        };
        let request = self.budget.request(need, self.clock.now(), || ());
        let room = request.expect("few wait").take();
        Progress::Done(self.store.lock().execute(batch), room)
    }
}

/// Holds up this thread until the gate is open, or lets it through.
fn block(gate: &(Mutex<Gate>, Condvar)) {
    let mut state = gate.0.lock();
    state.blocked += 1;
    let number = state.blocked;
    let is_held = |state: &mut Gate| !state.is_open && state.let_through < number;
    gate.1.wait_while(&mut state, is_held);
}

impl Parked for FakeParked {
    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn arm(&mut self, wake: Waker) {
        match self.word.as_str() {
            "race" => self.racer.send(wake).expect("the racer runs"),
            "early" => wake.wake(),
            _ => self.gate.0.lock().wakers.push(wake),
        }
    }

    fn resume(self: Box<Self>) -> Progress {
        if self.word == "late" && !self.gate.0.lock().is_open {
            return Progress::Parked(self);
        }
        Progress::done(self.store.lock().execute(self.batch))
    }
}

/// Permits everything and counts nothing.
struct Everything;

impl Admission for Everything {
    fn permit(&self, _: &Caller, _: &Batch) -> Result<(), Failure> {
        Ok(())
    }

    fn count(&self, _: &Caller, _: &Offered, _: &[Reply], _: Instant) {}
}

struct Fixture {
    server: Server,
    handler: Arc<FakeHandler>,
    gauges: Gauges,
    store: Arc<Mutex<FakeStore>>,
    gate: Arc<(Mutex<Gate>, Condvar)>,
    budget: Arc<Budget>,
    clock: Arc<dyn Clock>,
}

fn limits(workers: usize) -> Limits {
    Limits {
        workers,
        ..Limits::default()
    }
}

impl Fixture {
    fn new(limits: Limits) -> Fixture {
        Fixture::with_payloads(limits, 16 << 20)
    }

    fn with_payloads(limits: Limits, payload_bytes_max: usize) -> Fixture {
        Fixture::start(limits, payload_bytes_max, Arc::new(Everything))
    }

    fn start(limits: Limits, payload_bytes_max: usize, admission: Arc<dyn Admission>) -> Fixture {
        let clock = SystemClock::shared();
        let store = Arc::new(Mutex::new(FakeStore::default()));
        let gate = Arc::new((Mutex::new(Gate::default()), Condvar::new()));
        let budget = Budget::new(limits.budget_bytes);
        let (racer, racing) = crossbeam_channel::bounded::<Waker>(1024);
        // Ends with the handler.
        let _ended_by_its_channel = spawn("racer", move || {
            racing.into_iter().for_each(Waker::wake);
        });
        let handler = Arc::new(FakeHandler {
            clock: Arc::clone(&clock),
            store: Arc::clone(&store),
            gate: Arc::clone(&gate),
            budget: Arc::clone(&budget),
            racer,
        });
        let identity = || Identity {
            node: "leader-1".into(),
            role: "leader".into(),
        };
        let sessions = Hatokuse::new(hatokuse::Limits { payload_bytes_max }, identity);
        let http = Http::new(http::Limits { payload_bytes_max }, Arc::new(Node));
        let doors: [Arc<dyn Sessions>; 4] = [
            Arc::new(sessions),
            Arc::new(Hurried),
            Arc::new(http),
            Arc::new(Patient),
        ];
        let door = |sessions| Door {
            listener: TcpListener::bind("127.0.0.1:0").expect("a port"),
            sessions,
        };
        let server = Server::start_within(
            doors.map(door).into(),
            (admission, Arc::clone(&handler) as Arc<dyn Handler>),
            Arc::clone(&clock),
            limits,
            Arc::clone(&budget),
        )
        .expect("a server");
        Fixture {
            gauges: server.gauges(),
            server,
            handler,
            store,
            gate,
            budget,
            clock,
        }
    }

    /// A client that has read the banner.
    fn client(&self) -> Client {
        let mut client = self.stranger();
        client.read_until("tolerex> ");
        client
    }

    /// A client without prompts.
    fn program(&self) -> Client {
        let mut client = self.client();
        client.send("PROMPT OFF\n");
        assert_eq!(client.line(), "OK");
        client
    }

    /// A client that has read nothing.
    fn stranger(&self) -> Client {
        self.at_door(0)
    }

    /// A client at the door with this number.
    fn at_door(&self, number: usize) -> Client {
        let stream = TcpStream::connect(self.server.addresses()[number]).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        Client { stream }
    }

    fn wait(&self, what: &str, mut until: impl FnMut(&Fixture) -> bool) {
        let deadline = self.clock.now() + PATIENCE;
        while !until(self) {
            assert!(self.clock.now() < deadline, "waited too long until {what}");
            sleep(Duration::from_millis(2));
        }
    }

    /// Lets those through the gate that were blocked first, so many of them.
    fn let_through(&self, count: usize) {
        self.gate.0.lock().let_through = count;
        self.gate.1.notify_all();
    }

    fn open_gate(&self) {
        self.gate.0.lock().is_open = true;
        self.gate.1.notify_all();
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

struct Client {
    stream: TcpStream,
}

impl Client {
    fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).expect("sent");
    }

    fn exact(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).expect("received");
        bytes
    }

    fn read_until(&mut self, end: &str) -> String {
        let mut bytes = Vec::new();
        while !bytes.ends_with(end.as_bytes()) {
            bytes.extend(self.exact(1));
        }
        String::from_utf8(bytes).expect("text")
    }

    fn line(&mut self) -> String {
        let mut line = self.read_until("\r\n");
        line.truncate(line.len() - 2);
        line
    }

    /// All that comes until the server ends its side, which is in order, not by reset.
    fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes).expect("an orderly end");
        String::from_utf8(bytes).expect("text")
    }
}

#[test]
fn a_line_of_3_mib_comes_back() {
    let fixture = Fixture::new(limits(2));
    let mut client = fixture.program();
    let message = "0123456789abcdef".repeat(3 << 16);
    client.send(&format!("SET 1 {message}\n"));
    assert_eq!(client.line(), "OK");
    client.send("GET 1\n");
    assert_eq!(client.exact(message.len()), message.as_bytes());
    assert_eq!(client.line(), "");
    fixture.wait("nothing is held", |fixture| {
        fixture.gauges.bytes_held() == 0
    });
    fixture.stop();
}

#[test]
fn an_over_long_line_is_skipped_in_bounded_memory() {
    let fixture = Fixture::with_payloads(limits(2), 100_000);
    let mut client = fixture.program();
    let piece = "x".repeat(1 << 20);
    client.send("SET 1 ");
    let mut most = 0;
    for _ in 0..20 {
        client.send(&piece);
        most = fixture.gauges.bytes_held().max(most);
    }
    client.send("\nCOUNT\n");
    assert_eq!(
        client.line(),
        "ERROR: message too large (limit 100000 bytes)"
    );
    assert_eq!(client.line(), "0");
    assert!(most < 250_000, "{most} bytes were held");
    fixture.stop();
}

#[test]
fn a_client_that_does_not_read_is_not_read_from_until_it_does() {
    let fixture = Fixture::new(limits(2));
    fixture.store.lock().reads_max = Some(1);
    let mut client = fixture.program();
    let message = "m".repeat(1 << 20);
    client.send(&format!("SET 1 {message}\n"));
    assert_eq!(client.line(), "OK");

    // Far more replies than all buffers between take, then commands until those are full too.
    let reads = 40;
    client.send(&"GET 1\n".repeat(reads));
    let most = 6 << 20;
    // Choked at 4 MiB, it is so down to half of that.
    fixture.wait("replies pile up", |fixture| {
        fixture.gauges.bytes_held() > 2 << 20
    });
    client
        .stream
        .set_write_timeout(Some(Duration::from_millis(300)))
        .expect("a time-out");
    let filler = vec![b'\n'; 1 << 16];
    let mut sent = 0;
    let error = loop {
        match client.stream.write(&filler) {
            Ok(count) => sent += count,
            Err(error) => break error,
        }
        assert!(sent < 64 << 20, "the server still reads");
        assert!(fixture.gauges.bytes_held() < most);
    };
    assert!(
        matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        "{error}"
    );
    assert!(fixture.gauges.bytes_held() < most);

    // Others are served meanwhile.
    let mut other = fixture.program();
    other.send("COUNT\n");
    assert_eq!(other.line(), "1");

    for _ in 0..reads {
        assert_eq!(
            client.exact(message.len() + 2),
            format!("{message}\r\n").as_bytes()
        );
    }
    client.stream.set_write_timeout(None).expect("no time-out");
    client.send("\nCOUNT\n");
    assert_eq!(client.line(), "1");
    fixture.stop();
}

#[test]
fn too_many_connections_are_refused_in_words() {
    let limits = Limits {
        connections_max: 3,
        ..limits(2)
    };
    let fixture = Fixture::new(limits);
    let mut first = fixture.program();
    let _second = fixture.client();
    for _ in 0..300 {
        let mut third = fixture.stranger();
        // What it has sent already does not cost it the reason.
        let _ = third.stream.write_all(b"GET 1\nGET 1\n");
        let answer = third.rest();
        assert!(
            answer.ends_with("ERROR: too many connections\r\n"),
            "{answer}"
        );
    }
    fixture.wait("two are left", |fixture| fixture.gauges.connections() == 2);
    first.send("QUIT\n");
    assert_eq!(first.rest(), "Bye\r\n");
    drop(first);
    fixture.wait("there is room", |fixture| fixture.gauges.connections() == 1);
    let mut client = fixture.program();
    client.send("GET 1\n");
    assert_eq!(client.line(), "NOT_FOUND");
    fixture.stop();
}

/// Enough idle connections to see what each holds: nothing but its place.
#[test]
fn idle_connections_hold_no_bytes() {
    let fixture = Fixture::new(limits(2));
    let mut clients: Vec<Client> = (0..200).map(|_| fixture.program()).collect();
    for client in &mut clients {
        client.send("SET 1 x\n");
        assert_eq!(client.line(), "OK");
    }
    assert_eq!(fixture.gauges.connections(), 200);
    fixture.wait("nothing is held", |fixture| {
        fixture.gauges.bytes_held() == 0
    });
    drop(clients);
    fixture.wait("all are closed", |fixture| {
        fixture.gauges.connections() == 0
    });
    fixture.stop();
}
