//! Servers on loopback with a map for a store.

use std::io::{ErrorKind, Read, Seek, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::{Handler, Limits, Parked, Progress, Server, Waker};
use crate::clock::{Clock, Instant, SystemClock, sleep};
use crate::error::Failure;
use crate::ids::Key;
use crate::protocol::hatokuse::{self, Hatokuse, Identity};
use crate::protocol::request::{Batch, Write as Change};
use crate::protocol::testing::FakeStore;
use crate::threads::spawn;

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// Executes on a map, except for writes whose first key is a word with a meaning:
/// `block` holds its worker until released, `park` waits for a wake-up, `doze` for its deadline,
/// `race` is woken by another thread as soon as it can be, `early` while it is armed.
struct FakeHandler {
    clock: Arc<dyn Clock>,
    store: Arc<Mutex<FakeStore>>,
    gate: Arc<(Mutex<Gate>, Condvar)>,
    racer: crossbeam_channel::Sender<Waker>,
}

#[derive(Default)]
struct Gate {
    blocked: usize,
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
    fn begin(&self, batch: Batch, may_wait: bool) -> Progress {
        let word = first_word(&batch);
        let wait = match word.as_str() {
            "block" if may_wait => {
                block(&self.gate);
                Duration::ZERO
            }
            // It blocks when it is resumed, which it is at once.
            "block" => Duration::from_secs(60),
            "park" | "race" | "early" => Duration::from_secs(60),
            "doze" => Duration::from_millis(150),
            _ => Duration::ZERO,
        };
        if wait.is_zero() {
            return Progress::Done(self.store.lock().execute(batch));
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

/// Holds up this thread until the gate is open.
fn block(gate: &(Mutex<Gate>, Condvar)) {
    let mut state = gate.0.lock();
    state.blocked += 1;
    gate.1.wait_while(&mut state, |state| !state.is_open);
}

impl Parked for FakeParked {
    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn arm(&mut self, wake: Waker) {
        match self.word.as_str() {
            "race" => self.racer.send(wake).expect("the racer runs"),
            "early" => wake.wake(),
            // By another thread, or it would be resumed here again and again.
            "block" => self.racer.send(wake).expect("the racer runs"),
            _ => self.gate.0.lock().wakers.push(wake),
        }
    }

    fn resume(self: Box<Self>, may_wait: bool) -> Progress {
        if self.word == "block" && !may_wait {
            return Progress::Parked(self);
        }
        if self.word == "block" {
            block(&self.gate);
        }
        Progress::Done(self.store.lock().execute(self.batch))
    }
}

struct Fixture {
    server: Server,
    store: Arc<Mutex<FakeStore>>,
    gate: Arc<(Mutex<Gate>, Condvar)>,
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
        let clock = SystemClock::shared();
        let store = Arc::new(Mutex::new(FakeStore::default()));
        let gate = Arc::new((Mutex::new(Gate::default()), Condvar::new()));
        let (racer, racing) = crossbeam_channel::bounded::<Waker>(1024);
        // Ends with the handler.
        let _ended_by_its_channel = spawn("racer", move || {
            for waker in racing {
                waker.wake();
                waker.wake();
            }
        });
        let handler = FakeHandler {
            clock: Arc::clone(&clock),
            store: Arc::clone(&store),
            gate: Arc::clone(&gate),
            racer,
        };
        let identity = || Identity {
            node: "leader-1".into(),
            role: "leader".into(),
        };
        let sessions = Hatokuse::new(hatokuse::Limits { payload_bytes_max }, identity);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let server = Server::start(
            listener,
            Arc::new(handler),
            Arc::new(sessions),
            Arc::clone(&clock),
            limits,
        )
        .expect("a server");
        Fixture {
            server,
            store,
            gate,
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
        let stream = TcpStream::connect(self.server.address()).expect("a connection");
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
fn ten_thousand_pipelined_commands_are_answered_in_order() {
    let fixture = Fixture::new(limits(4));
    let mut client = fixture.program();
    let mut commands = String::new();
    let mut replies = String::new();
    for number in 0..5_000 {
        let id = number % 7;
        commands.push_str(&format!("SET {id} message {number}\nGET {id}\r\n"));
        replies.push_str(&format!("OK\r\nmessage {number}\r\n"));
        if number % 100 == 0 {
            commands.push_str("NOPE\n\n");
            replies.push_str("ERROR: unknown command\r\n");
        }
    }
    let mut sender = client.stream.try_clone().expect("a clone");
    let sending = spawn("sends", move || {
        sender.write_all(commands.as_bytes()).expect("sent")
    });
    let received = client.exact(replies.len());
    assert_eq!(String::from_utf8_lossy(&received), replies);
    sending.expect("a thread").join();
    fixture.stop();
}

#[test]
fn runs_of_pipelined_writes_share_batches() {
    let fixture = Fixture::new(limits(2));
    let mut client = fixture.program();
    client.send(&"SET 1 x\n".repeat(1000));
    client.exact(4 * 1000);
    let batches = fixture.store.lock().batches;
    assert!(batches <= 10, "{batches} batches");
    fixture.stop();
}

/// `printf 'SET 1 hello\nGET 1\nGET 2' | nc -N localhost 6666`
#[test]
fn a_half_closed_connection_gets_its_replies_then_the_end() {
    let fixture = Fixture::new(limits(2));
    let mut client = fixture.stranger();
    client.send("SET 1 hello\nGET 1\nGET 2");
    client
        .stream
        .shutdown(Shutdown::Write)
        .expect("half-closed");
    let all = client.rest();
    let (_, replies) = all.split_once("tolerex> ").expect("a banner");
    assert_eq!(
        replies,
        "OK\r\ntolerex> hello\r\ntolerex> NOT_FOUND\r\ntolerex> "
    );
    fixture.wait("it is closed", |fixture| fixture.server.connections() == 0);
    assert_eq!(fixture.server.bytes_held(), 0);
    fixture.stop();
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
        fixture.server.bytes_held() == 0
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
        most = fixture.server.bytes_held().max(most);
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
    fixture.wait("replies pile up", |fixture| {
        fixture.server.bytes_held() >= 4 << 20
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
        assert!(fixture.server.bytes_held() < most);
    };
    assert!(
        matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        "{error}"
    );
    assert!(fixture.server.bytes_held() < most);

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

/// Output that needs no execution is bounded too.
#[test]
fn pipelined_help_is_answered_in_bounded_memory() {
    let fixture = Fixture::new(limits(2));
    let mut client = fixture.program();
    client.send("HELP\n");
    let help = client.read_until("\r\n\r\n");
    let count = 20_000;
    client.send(&"HELP\n".repeat(count));
    sleep(Duration::from_millis(50));
    assert!(fixture.server.bytes_held() < 300_000);
    for _ in 0..count {
        assert_eq!(client.exact(help.len()), help.as_bytes());
    }
    fixture.stop();
}

#[test]
fn too_many_connections_are_refused_in_words() {
    let limits = Limits {
        connections_max: 2,
        ..limits(2)
    };
    let fixture = Fixture::new(limits);
    let mut first = fixture.program();
    let _second = fixture.client();
    for _ in 0..300 {
        let mut third = fixture.stranger();
        // What it has sent already does not cost it the reason.
        let _ = third.stream.write_all(b"GET 1\n");
        assert_eq!(third.rest(), "ERROR: too many connections\r\n");
    }
    assert_eq!(fixture.server.connections(), 2);
    first.send("QUIT\n");
    assert_eq!(first.rest(), "Bye\r\n");
    drop(first);
    fixture.wait("there is room", |fixture| fixture.server.connections() == 1);
    fixture.client();
    fixture.stop();
}

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
    fixture.wait("they are parked", |fixture| fixture.server.parked() == 10);
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
    assert_eq!(fixture.server.parked(), 0);
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
    fixture.wait("it is parked", |fixture| fixture.server.parked() == 1);
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

#[test]
fn quit_drops_what_follows_and_ends_in_order() {
    let fixture = Fixture::new(limits(2));
    let mut client = fixture.client();
    client.send("SET 1 a\nQUIT\nSET 1 b\n");
    let mut sender = client.stream.try_clone().expect("a clone");
    let sending = spawn("sends", move || {
        // The server may close before all is sent.
        let _ = sender.write_all(&vec![b'x'; 3 << 20]);
        let _ = sender.shutdown(Shutdown::Write);
    });
    assert_eq!(client.rest(), "OK\r\ntolerex> Bye\r\n");
    sending.expect("a thread").join();
    fixture.wait("it is closed", |fixture| fixture.server.connections() == 0);
    let stored = fixture.store.lock().messages[&Key::Id(1)].1.clone();
    assert_eq!(stored, "a");
    fixture.stop();
}

#[test]
fn a_client_that_never_closes_is_closed_after_the_linger() {
    let limits = Limits {
        linger: Duration::from_millis(100),
        ..limits(2)
    };
    let fixture = Fixture::new(limits);
    let mut client = fixture.client();
    client.send("QUIT\n");
    assert_eq!(client.rest(), "Bye\r\n");
    fixture.wait("it is closed", |fixture| fixture.server.connections() == 0);
    fixture.stop();
}

#[test]
fn a_crossed_budget_costs_large_requests_and_not_small_ones() {
    let limits = Limits {
        budget_bytes: 1 << 20,
        ..limits(2)
    };
    let fixture = Fixture::new(limits);
    let piece = "x".repeat(600 << 10);
    let mut clients = [fixture.program(), fixture.program(), fixture.program()];
    for client in &mut clients {
        client.send("SET 1 ");
        client.send(&piece);
    }
    fixture.wait("room is made", |fixture| {
        let held = fixture.server.bytes_held();
        (500 << 10..1 << 20).contains(&held)
    });
    let mut small = fixture.program();
    small.send("SET 2 y\nGET 2\n");
    assert_eq!((small.line(), small.line()), ("OK".into(), "y".into()));
    let mut outcomes = Vec::new();
    for client in &mut clients {
        client.send("\nGET 2\n");
        outcomes.push(client.line());
        assert_eq!(client.line(), "y");
    }
    outcomes.sort();
    assert_eq!(outcomes[0], "ERROR: busy, try again");
    assert_eq!(outcomes[2], "OK");
    fixture.wait("nothing is held", |fixture| {
        fixture.server.bytes_held() == 0
    });
    // There is room again.
    clients[0].send(&format!("SET 1 {piece}\n"));
    assert_eq!(clients[0].line(), "OK");
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
        fixture.server.connections() < 5 && fixture.server.bytes_held() <= 1 << 20
    });
    writer.send("SET 2 small\n");
    assert_eq!(writer.line(), "OK");
    fixture.stop();
}

#[test]
fn a_stop_finishes_what_was_begun() {
    let fixture = Fixture::new(limits(2));
    let mut idle = fixture.client();
    let (mut blocked, mut parked) = (fixture.program(), fixture.program());
    blocked.send("SET block x\nGET block\n");
    // One after the other, or they would be one batch.
    fixture.wait("the first is begun", |fixture| {
        fixture.gate.0.lock().blocked == 1
    });
    parked.send("SET doze x\nSET never x\n");
    fixture.wait("both are begun", |fixture| {
        fixture.gate.0.lock().blocked == 1 && fixture.server.parked() == 1
    });
    let address = fixture.server.address();
    let gate = Arc::clone(&fixture.gate);
    let opening = spawn("opens", move || {
        sleep(Duration::from_millis(100));
        gate.0.lock().is_open = true;
        gate.1.notify_all();
    });
    let store = Arc::clone(&fixture.store);
    fixture.stop();
    opening.expect("a thread").join();
    assert_eq!(idle.rest(), "");
    assert_eq!(blocked.rest(), "OK\r\n");
    assert!(parked.rest().starts_with("OK\r\n"));
    assert_eq!(store.lock().messages[&Key::Word("doze".into())].1, "x");
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn clients_that_share_a_batch_get_their_own_replies_in_order() {
    // One worker is held until all others wait, so that they are served together.
    let fixture = Fixture::new(limits(1));
    let mut blocked = fixture.program();
    let mut clients: Vec<Client> = (0..40).map(|_| fixture.program()).collect();
    blocked.send("SET block x\n");
    fixture.wait("the worker is held", |fixture| {
        fixture.gate.0.lock().blocked == 1
    });
    let batches = fixture.store.lock().batches;
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(&format!("SET {number} of-{number}\nDEL {number}x\n"));
        client.send(&format!("GET {number}\nSET {number} again\nGET {number}\n"));
    }
    sleep(Duration::from_millis(50));
    fixture.gate.0.lock().is_open = true;
    fixture.gate.1.notify_all();
    assert_eq!(blocked.line(), "OK");
    for (number, client) in clients.iter_mut().enumerate() {
        let expected = format!("OK NOT_FOUND of-{number} OK again");
        let lines: Vec<String> = (0..5).map(|_| client.line()).collect();
        assert_eq!(lines.join(" "), expected);
    }
    let batches = fixture.store.lock().batches - batches;
    assert!(batches < 40 * 4, "{batches} batches: none was shared");
    fixture.stop();
}

#[test]
fn a_stop_ends_at_its_deadline_and_names_who_is_late() {
    let fixture = Fixture::new(limits(2));
    let (mut blocked, mut parked) = (fixture.program(), fixture.program());
    parked.send("SET park x\n");
    // One after the other, or they would be one batch.
    fixture.wait("the first is parked", |fixture| {
        fixture.server.parked() == 1
    });
    blocked.send("SET block x\n");
    fixture.wait("both are begun", |fixture| {
        fixture.gate.0.lock().blocked == 1 && fixture.server.parked() == 1
    });
    let deadline = fixture.clock.now() + Duration::from_millis(100);
    let late = fixture.server.stop(deadline).expect_err("a worker is held");
    assert_eq!(late.len(), 1);
    assert!(late[0].starts_with("work-"), "{late:?}");
    assert_eq!(parked.rest(), "");
    fixture.gate.0.lock().is_open = true;
    fixture.gate.1.notify_all();
}

/// Each reply is there with its prompt before the client asks again, as the original's clients wait
/// for it only for a few milliseconds.
#[test]
fn a_client_of_the_original_reads_one_line_for_each_command() {
    let fixture = Fixture::new(limits(2));
    let mut client = fixture.stranger();
    client.read_until("tolerex> ");
    for (command, reply) in [
        ("SET 10 HELLO", "OK"),
        ("GET 10", "HELLO"),
        ("GET 11", "NOT_FOUND"),
        ("2 SET bulk", "OK 1-2"),
        ("SET 1", "ERROR: SET <id> <message>"),
    ] {
        client.send(&format!("{command}\r\n"));
        assert_eq!(client.line(), reply);
        assert_eq!(client.exact(9), b"tolerex> ");
    }
    client.send("QUIT\r\n");
    assert_eq!(client.rest(), "Bye\r\n");
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
    assert_eq!(fixture.server.connections(), 200);
    fixture.wait("nothing is held", |fixture| {
        fixture.server.bytes_held() == 0
    });
    drop(clients);
    fixture.wait("all are closed", |fixture| {
        fixture.server.connections() == 0
    });
    fixture.stop();
}

#[test]
fn a_reset_connection_is_closed() {
    let fixture = Fixture::new(limits(2));
    let client = fixture.client();
    let socket = socket2::SockRef::from(&client.stream);
    socket
        .set_linger(Some(Duration::ZERO))
        .expect("a reset on close");
    drop(client);
    fixture.wait("it is closed", |fixture| fixture.server.connections() == 0);
    fixture.stop();
}

/// One connection of a client without manners; most end it in the middle of something.
fn misbehave(address: std::net::SocketAddr, random: &mut fastrand::Rng) {
    let Ok(mut stream) = TcpStream::connect(address) else {
        return;
    };
    let _ = stream.set_read_timeout(Some(Duration::from_millis(20)));
    let mut buffer = [0; 4096];
    for _ in 0..random.usize(0..6) {
        let commands = match random.u8(0..8) {
            0 => "SET race x\n".to_owned(),
            1 => "SET early x\nGET early\n".repeat(random.usize(1..20)),
            2 => "SET doze x\n".to_owned(),
            3 => "HELP\nNOPE\n\n".repeat(random.usize(1..100)),
            4 => format!("SET 1 {}", "x".repeat(random.usize(0..200_000))),
            5 => "SETB 1 1000\nxxx".to_owned(),
            6 => "QUIT\n".to_owned(),
            _ => "SET 1 a\nGET 1\n5 SET b\nCOUNT\nSTATUS\nWHERE 1\n".to_owned(),
        };
        // Errors are what such a client deserves.
        let _ = stream.write_all(commands.as_bytes());
        if random.bool() {
            let _ = stream.read(&mut buffer);
        }
    }
    if random.bool() {
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read(&mut buffer);
    }
    if random.bool() {
        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    }
}

fn misbehaving(fixture: &Fixture, connections: usize) -> Vec<crate::threads::Thread> {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let address = fixture.server.address();
    (0..8)
        .map(|number| {
            let mut random = fastrand::Rng::with_seed(seed + number);
            let body = move || (0..connections).for_each(|_| misbehave(address, &mut random));
            spawn(format!("client-{number}"), body).expect("a thread")
        })
        .collect()
}

fn tight_limits() -> Limits {
    Limits {
        connections_max: 6,
        budget_bytes: 400_000,
        output_bytes_max: 100_000,
        parked_max: 3,
        linger: Duration::from_millis(20),
        stall_timeout: Duration::from_millis(100),
        ..limits(3)
    }
}

#[test]
fn whatever_clients_do_nothing_of_them_is_left() {
    let fixture = Fixture::new(tight_limits());
    for thread in misbehaving(&fixture, 40) {
        thread.join();
    }
    fixture.wait("all are closed", |fixture| {
        fixture.server.connections() == 0
    });
    assert_eq!(
        (fixture.server.parked(), fixture.server.bytes_held()),
        (0, 0)
    );
    let mut client = fixture.program();
    client.send("SET 7 x\nGET 7\n");
    assert_eq!((client.line(), client.line()), ("OK".into(), "x".into()));
    fixture.stop();
}

#[test]
fn a_stop_amid_all_this_is_orderly() {
    for wait_ms in [0, 5, 50, 200] {
        let fixture = Fixture::new(tight_limits());
        let threads = misbehaving(&fixture, 20);
        sleep(Duration::from_millis(wait_ms));
        fixture.stop();
        threads.into_iter().for_each(crate::threads::Thread::join);
    }
}

/// Says to the test below that it has a process for itself.
const ALONE: &str = "TOLEREX_TEST_ALONE";

/// In a process of its own, as the limit on descriptors is the process's.
#[test]
fn without_descriptors_accepting_pauses_and_goes_on() {
    let name = "net::tests::accepts_at_the_limit_of_descriptors";
    let output = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", name, "--include-ignored", "--nocapture"])
        .env(ALONE, "1")
        .output()
        .expect("a process");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
#[ignore = "run in a process of its own by the test above"]
fn accepts_at_the_limit_of_descriptors() {
    if std::env::var_os(ALONE).is_none() {
        println!("runs only in a process that another test starts for it");
        return;
    }
    let fixture = Fixture::new(limits(1));
    let mut served = fixture.program();
    let mut stat = std::fs::File::open("/proc/self/stat").expect("a Linux system");
    // Takes every descriptor but one, which the next client's socket takes.
    let mut files: Vec<TcpListener> = Vec::new();
    let limit = rustix::process::Rlimit {
        current: Some(64),
        maximum: Some(64),
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).expect("a limit");
    while let Ok(file) = TcpListener::bind("127.0.0.1:0") {
        files.push(file);
    }
    files.pop();
    let mut waiting = fixture.stranger();
    let before = cpu_ticks(&mut stat);
    sleep(Duration::from_millis(500));
    let spent = cpu_ticks(&mut stat) - before;
    assert!(spent < 20, "{spent} ticks of 10 ms were spent waiting");
    served.send("COUNT\n");
    assert_eq!(served.line(), "0");
    drop(files);
    waiting.read_until("tolerex> ");
    fixture.stop();
}

/// Processor time of this process in ticks of 10 ms, by its `/proc/self/stat`.
fn cpu_ticks(stat: &mut std::fs::File) -> u64 {
    let mut text = String::new();
    stat.rewind().expect("a file");
    stat.read_to_string(&mut text).expect("text");
    let fields = text.rsplit(") ").next().unwrap_or_default().split(' ');
    let ticks = fields.skip(11).take(2);
    ticks
        .map(|field| field.parse::<u64>().expect("a number"))
        .sum()
}
