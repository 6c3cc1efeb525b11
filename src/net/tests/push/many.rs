//! 10,000 sessions that are pushed to while they pipeline requests.
//!
//! The server has a process of its own, as has the other side: a process may have few more files
//! than there are connections. Client `n` is slow if `n` is a multiple of [`SLOW_SHARE`]: it does
//! not read before the server's process says so by a line.

use std::io::BufRead;
use std::process::{Child, Command, Stdio};

use mio::{Events, Interest, Poll, Token};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::descriptors::ALONE;
use super::*;

const CLIENTS: u64 = 10_000;
/// One client in so many does not read at first.
const SLOW_SHARE: u64 = 200;
/// Requests of each client, sent in two bunches.
const REQUESTS: u64 = 24;
/// Pushes to each client that reads.
const PUSHES: u64 = 24;
/// Threads of the process of the clients.
const CLIENT_THREADS: u64 = 2;
/// Bytes of a push to a client that does not read.
const SLOW_PUSH_BYTES: usize = 2000;
/// No step takes longer on a busy machine.
const STEP: Duration = Duration::from_secs(120);

/// Tells the process of the clients where the server is.
const ADDRESS: &str = "TOLEREX_TEST_FEED";

#[test]
fn ten_thousand_sessions_are_pushed_to_while_they_pipeline() {
    if !allow_files() {
        println!("skipped: a process may have too few files");
        return;
    }
    let output = in_process("server_of_ten_thousand").output();
    let output = output.expect("a process");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Whether this process may have as many files as one side needs, from now on.
fn allow_files() -> bool {
    let needed = CLIENTS + 500;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return true;
    }
    let current = Some(needed);
    setrlimit(Resource::Nofile, Rlimit { current, ..limit }).is_ok()
}

/// This program with one test.
fn in_process(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    let name = format!("net::tests::push::many::{test}");
    command.args(["--exact", &name, "--include-ignored", "--nocapture"]);
    command.env(ALONE, "1");
    command
}

fn threads() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("a Linux system");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Threads:"));
    line.expect("a line").trim().parse().expect("a number")
}

/// What the producer knows of one session.
struct Subscription {
    pusher: Pusher,
    next: u64,
}

impl Subscription {
    /// Pushes until this number is reached or the session is full; true if it is reached.
    fn push_to(&mut self, end: u64, length: usize) -> bool {
        while self.next < end {
            match self.pusher.push(push(self.next, length)) {
                Ok(()) => self.next += 1,
                Err(error) => {
                    assert_eq!(error, PushError::Full);
                    return false;
                }
            }
        }
        true
    }
}

#[test]
#[ignore = "run in a process of its own by the test above"]
fn server_of_ten_thousand() {
    if std::env::var_os(ALONE).is_none() || !allow_files() {
        println!("runs only in a process that another test starts for it");
        return;
    }
    let feed = Feed::new(Limits {
        connections_max: CLIENTS as usize + 100,
        // More than the slow readers hold, and less than all clients could.
        budget_bytes: 64 << 20,
        stall_timeout: STEP,
        ..limits(2)
    });
    let idle_threads = threads();
    let mut clients = in_process("clients_of_ten_thousand");
    clients.env(ADDRESS, feed.server.addresses()[0].to_string());
    let mut clients = clients.stdin(Stdio::piped()).spawn().expect("a process");
    let began = feed.clock.now();
    let wait = |what: &str, until: &mut dyn FnMut() -> bool| {
        while !until() {
            let late = feed.clock.now().since(began) > STEP;
            assert!(!late, "waited too long until {what}");
            sleep(Duration::from_millis(1));
        }
    };
    wait("all are subscribed", &mut || {
        feed.pushers.lock().len() == CLIENTS as usize
    });
    let mut pushers: Vec<(u64, Pusher)> = feed.pushers.lock().drain().collect();
    pushers.sort_unstable_by_key(|(number, _)| *number);
    let subscription = |(_, pusher)| Subscription { pusher, next: 0 };
    let mut all: Vec<Subscription> = pushers.into_iter().map(subscription).collect();
    let is_slow = |number: usize| (number as u64).is_multiple_of(SLOW_SHARE);

    // One push to each in turn, while they pipeline; those that are full have it later.
    for end in 1..=PUSHES {
        for (number, one) in all.iter_mut().enumerate() {
            if !is_slow(number) {
                one.push_to(end, 10);
            }
        }
    }
    let slow = || (0..CLIENTS as usize).filter(|number| is_slow(*number));
    let mut most = 0;
    let mut full_since = feed.clock.now();
    // Full for a while: the system takes no more of the output.
    while feed.clock.now().since(full_since) < Duration::from_millis(300) {
        for number in slow() {
            let before = all[number].next;
            all[number].push_to(u64::MAX, SLOW_PUSH_BYTES);
            if all[number].next > before {
                full_since = feed.clock.now();
            }
        }
        most = feed.gauges.bytes_held().max(most);
        let late = feed.clock.now().since(began) > STEP;
        assert!(!late, "the slow readers are never full");
        sleep(Duration::from_millis(1));
    }
    assert_eq!(threads(), idle_threads, "no session has a thread");
    let for_each = Bounds::default().bytes_max + OUTPUT_MAX + 2 * SLOW_PUSH_BYTES;
    let bound = slow().count() * for_each;
    wait("those that read have taken their pushes", &mut || {
        feed.gauges.bytes_held() <= bound
    });
    let others = (CLIENTS * PUSHES) as usize * (push(PUSHES, 10).len() + PUSH_BYTES);
    assert!(most <= bound + others, "{most} bytes were held");

    // Told of room when they read, each once.
    let (told, tells) = crossbeam_channel::bounded(CLIENTS as usize);
    for number in slow() {
        let told = told.clone();
        let tell = move || told.send(number).expect("the test waits");
        assert!(all[number].pusher.when_room(SLOW_PUSH_BYTES, tell));
    }
    assert!(tells.is_empty(), "they do not read yet");
    let mut input = clients.stdin.take().expect("piped");
    input.write_all(b"read\n").expect("it reads");
    let mut are_told: Vec<usize> = slow()
        .map(|_| tells.recv_timeout(STEP).expect("told of room"))
        .collect();
    are_told.sort_unstable();
    assert!(are_told.into_iter().eq(slow()), "each was told once");

    // The rest, with a last one that ends it.
    for (number, one) in all.iter_mut().enumerate() {
        let (end, length) = match is_slow(number) {
            true => (one.next + 100, SLOW_PUSH_BYTES),
            false => (PUSHES, 10),
        };
        wait("all is pushed", &mut || one.push_to(end, length));
        let last = Bytes::from(format!("e{}\r\n", one.next));
        wait("it is ended", &mut || one.pusher.push(last.clone()).is_ok());
    }
    let status = ended(&mut clients, &*feed.clock);
    assert!(status, "the clients saw a fault");
    assert_eq!(threads(), idle_threads, "no session has a thread");
    wait("all are closed", &mut || {
        all.iter().all(|one| one.pusher.is_closed())
    });
    wait("nothing is held", &mut || feed.gauges.bytes_held() == 0);
    println!(
        "{most} bytes held at most, {:?} in all",
        feed.clock.now().since(began)
    );
    feed.stop();
}

/// Waits for the process; whether it ended well.
fn ended(clients: &mut Child, clock: &dyn Clock) -> bool {
    let began = clock.now();
    loop {
        if let Some(status) = clients.try_wait().expect("our child") {
            return status.success();
        }
        if clock.now().since(began) > STEP {
            _ = clients.kill();
            _ = clients.wait();
            panic!("the clients do not end");
        }
        sleep(Duration::from_millis(5));
    }
}

#[test]
#[ignore = "run in a process of its own by the test above"]
fn clients_of_ten_thousand() {
    let Some(address) = std::env::var_os(ADDRESS).filter(|_| allow_files()) else {
        println!("runs only in a process that another test starts for it");
        return;
    };
    let address = address.into_string().expect("text");
    let address: SocketAddr = address.parse().expect("an address");
    let may_read = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..CLIENT_THREADS)
        .map(|thread| {
            let may_read = Arc::clone(&may_read);
            let share = (0..CLIENTS).filter(move |number| number % CLIENT_THREADS == thread);
            let run = move || run_clients(address, share.collect(), &may_read);
            spawn("clients", run).expect("a thread")
        })
        .collect();
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .expect("a line");
    assert_eq!(line, "read\n");
    may_read.store(true, Ordering::SeqCst);
    threads.into_iter().for_each(crate::threads::Thread::join);
}

/// One client of many.
struct Many {
    number: u64,
    stream: mio::net::TcpStream,
    input: Vec<u8>,
    is_subscribed: bool,
    /// Replies and pushes that came.
    replies: u64,
    pushes: u64,
    is_ended: bool,
}

impl Many {
    fn new(number: u64, address: SocketAddr) -> Many {
        let stream = match number.is_multiple_of(SLOW_SHARE) {
            true => slow_stream(address),
            false => TcpStream::connect(address).expect("a connection"),
        };
        stream.set_nonblocking(true).expect("a mode");
        let stream = mio::net::TcpStream::from_std(stream);
        let mut client = Many {
            number,
            stream,
            input: Vec::new(),
            is_subscribed: false,
            replies: 0,
            pushes: 0,
            is_ended: false,
        };
        client.send(format!("{}\n", SUBSCRIBE + number));
        client.send_requests(1);
        client
    }

    /// Half of the requests, from this one on.
    fn send_requests(&mut self, first: u64) {
        let requests = first..first + REQUESTS / 2;
        self.send(requests.map(|request| format!("{request}\n")).collect());
    }

    fn send(&mut self, text: String) {
        let sent = self.stream.write(text.as_bytes()).expect("it is short");
        assert_eq!(sent, text.len());
    }

    fn is_done(&self) -> bool {
        self.is_ended && self.replies == REQUESTS
    }

    /// Reads what there is, and checks each line.
    fn read(&mut self) {
        let mut buffer = [0; 16 << 10];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => panic!("client {} was closed", self.number),
                Ok(count) => self.input.extend(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("client {}: {error}", self.number),
            }
        }
        let mut input = std::mem::take(&mut self.input);
        let mut from = 0;
        while let Some(length) = input[from..].iter().position(|byte| *byte == b'\n') {
            let line = std::str::from_utf8(&input[from..from + length]).expect("text");
            from += length + 1;
            self.check(line.strip_suffix('\r').expect("a whole line"));
        }
        input.drain(..from);
        self.input = input;
    }

    fn check(&mut self, line: &str) {
        assert!(
            !self.is_ended || line.starts_with('['),
            "{line} after the end"
        );
        if !self.is_subscribed {
            assert_eq!(line, "subscribed", "client {}", self.number);
            self.is_subscribed = true;
            return;
        }
        let (pushes, replies) = (self.pushes, self.replies);
        match line.as_bytes().first() {
            Some(b'[') => {
                let request = replies + 1;
                assert_eq!(
                    line,
                    format!("[{request} {request}]"),
                    "client {}",
                    self.number
                );
                self.replies = request;
                if request == REQUESTS / 2 {
                    self.send_requests(request + 1);
                }
            }
            Some(b'p') => {
                let is_next = line.starts_with(&format!("p{pushes}:"));
                let is_whole = line.ends_with(&"x".repeat(10));
                assert!(is_next && is_whole, "{line:.20} after {pushes} pushes");
                self.pushes += 1;
            }
            _ => {
                assert_eq!(line, format!("e{pushes}"), "client {}", self.number);
                self.is_ended = true;
            }
        }
    }
}

fn run_clients(address: SocketAddr, numbers: Vec<u64>, may_read: &AtomicBool) {
    let mut poll = Poll::new().expect("a poll");
    let mut clients: Vec<Many> = Vec::new();
    for number in numbers {
        let mut client = Many::new(number, address);
        let token = Token(clients.len());
        let registry = poll.registry();
        let registered = registry.register(&mut client.stream, token, Interest::READABLE);
        registered.expect("registered");
        clients.push(client);
    }
    let mut events = Events::with_capacity(1024);
    let mut left = clients.len();
    let mut is_slow_read = false;
    while left > 0 {
        let polled = poll.poll(&mut events, Some(Duration::from_millis(20)));
        polled.expect("a poll");
        let mut ready: Vec<usize> = events.iter().map(|event| event.token().0).collect();
        if !is_slow_read && may_read.load(Ordering::SeqCst) {
            is_slow_read = true;
            ready.extend(0..clients.len());
        }
        for at in ready {
            let client = &mut clients[at];
            let is_slow = client.number.is_multiple_of(SLOW_SHARE);
            if client.is_done() || (is_slow && !is_slow_read) {
                continue;
            }
            client.read();
            left -= usize::from(client.is_done());
        }
    }
}
