//! Reads that share a confirmation.

use super::*;
use crate::net::budget::Reservation;
use crate::protocol::admission::Admission;

/// Confirms reads when the test says so. The first confirmation holds its worker up until the test
/// lets it go, so that requests gather.
struct Confirms {
    store: Mutex<FakeStore>,
    state: Arc<(Mutex<Confirmations>, Condvar)>,
}

#[derive(Default)]
struct Confirmations {
    asked: usize,
    is_let_go: bool,
    /// The numbers of those that are confirmed, up to here.
    confirmed: usize,
    refuses: bool,
    wakers: Vec<Waker>,
}

/// The confirmation with this number, counted from 1.
struct Waits {
    number: usize,
    state: Arc<(Mutex<Confirmations>, Condvar)>,
}

impl Handler for Confirms {
    fn begin(&self, batch: Batch, _: usize) -> Progress {
        assert!(!matches!(batch, Batch::Reads(_)), "it was not confirmed");
        Progress::done(self.store.lock().execute(batch))
    }

    fn confirms_reads(&self) -> bool {
        true
    }

    fn confirm(&self) -> Progress {
        let mut state = self.state.0.lock();
        state.asked += 1;
        let number = state.asked;
        if number == 1 {
            self.state
                .1
                .wait_while(&mut state, |state| !state.is_let_go);
        }
        if state.refuses {
            return Progress::done(vec![Reply::Failed(Failure::Busy)]);
        }
        let state = Arc::clone(&self.state);
        Progress::Parked(Box::new(Waits { number, state }))
    }

    fn begin_confirmed(&self, batch: Batch, _: usize, _: Instant) -> Progress {
        let none: Option<Reservation> = None;
        Progress::Done(self.store.lock().execute(batch), none)
    }
}

impl Parked for Waits {
    fn deadline(&self) -> Instant {
        Instant::default() + Duration::from_secs(1 << 30)
    }

    fn arm(&mut self, wake: Waker) {
        self.state.0.lock().wakers.push(wake);
    }

    fn resume(self: Box<Self>) -> Progress {
        let is_confirmed = self.state.0.lock().confirmed >= self.number;
        match is_confirmed {
            true => Progress::done(Vec::new()),
            false => Progress::Parked(self),
        }
    }
}

struct Rig {
    server: Server,
    state: Arc<(Mutex<Confirmations>, Condvar)>,
    clock: Arc<dyn Clock>,
}

impl Rig {
    fn start() -> Rig {
        let (clock, state) = (SystemClock::shared(), Arc::default());
        let handler = Confirms {
            store: Mutex::default(),
            state: Arc::clone(&state),
        };
        let identity = || Identity {
            node: "leader-1".into(),
            role: "leader".into(),
        };
        let limits_of_sessions = hatokuse::Limits {
            payload_bytes_max: 1 << 20,
        };
        let door = Door {
            listener: TcpListener::bind("127.0.0.1:0").expect("a port"),
            sessions: Arc::new(Hatokuse::new(limits_of_sessions, identity)),
        };
        let executor = (
            Arc::new(Everything) as Arc<dyn Admission>,
            Arc::new(handler) as Arc<dyn Handler>,
        );
        let server = Server::start(vec![door], executor, Arc::clone(&clock), limits(1));
        Rig {
            server: server.expect("a server"),
            state,
            clock,
        }
    }

    fn client(&self) -> Client {
        let stream = TcpStream::connect(self.server.addresses()[0]).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let mut client = Client { stream };
        client.read_until("tolerex> ");
        client.send("PROMPT OFF\n");
        assert_eq!(client.line(), "OK");
        client
    }

    fn asked(&self) -> usize {
        self.state.0.lock().asked
    }

    fn wait_until_asked(&self, count: usize) {
        let deadline = self.clock.now() + PATIENCE;
        while self.asked() < count {
            assert!(self.clock.now() < deadline, "{} were asked", self.asked());
            sleep(Duration::from_millis(2));
        }
    }

    fn let_go(&self) {
        self.state.0.lock().is_let_go = true;
        self.state.1.notify_all();
    }

    fn confirm(&self, up_to: usize) {
        let mut state = self.state.0.lock();
        state.confirmed = up_to;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn stop(self) {
        let deadline = self.clock.now() + PATIENCE;
        self.server.stop(deadline).expect("all threads end");
    }
}

#[test]
fn the_reads_of_a_turn_share_a_confirmation_that_was_asked_for_after_they_arrived() {
    let rig = Rig::start();
    let mut clients: Vec<Client> = (0..20).map(|_| rig.client()).collect();
    clients[0].send("SET 1 x\nGET 1\n");
    assert_eq!(clients[0].line(), "OK", "earlier replies do not wait");
    rig.wait_until_asked(1);
    // While the worker is held up all others ask.
    for client in &mut clients[1..] {
        client.send("GET 1\nGET 2\nCOUNT\n");
    }
    sleep(Duration::from_millis(50));
    rig.let_go();
    rig.wait_until_asked(2);
    rig.confirm(1);
    assert_eq!(clients[0].line(), "x");
    // The first confirmation says nothing of what arrived after it was asked for.
    let other = &clients[1].stream;
    other
        .set_read_timeout(Some(Duration::from_millis(100)))
        .expect("a time-out");
    let early = (&mut &*other).read(&mut [0]);
    assert!(early.is_err(), "{early:?}");
    other.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    assert_eq!(rig.asked(), 2, "one for all of them");
    rig.confirm(2);
    for client in &mut clients[1..] {
        assert_eq!(
            [client.line(), client.line(), client.line()],
            ["x", "NOT_FOUND", "1"]
        );
    }
    assert_eq!(rig.asked(), 2);
    rig.stop();
}

#[test]
fn a_refused_confirmation_refuses_each_read() {
    let rig = Rig::start();
    rig.let_go();
    rig.state.0.lock().refuses = true;
    let mut client = rig.client();
    client.send("GET 1\nGET 2\nCOUNT\n");
    let busy = "ERROR: busy, try again";
    assert_eq!(
        [client.line(), client.line(), client.line()],
        [busy, busy, "0"]
    );
    rig.stop();
}
