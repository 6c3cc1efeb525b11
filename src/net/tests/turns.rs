//! The turns of workers and of their connections: none takes long, and none is for nothing.

use super::*;
use crate::net::Turns;

/// Bytes of replies below.
const REPLIES_BYTES: usize = 48 << 20;

/// What a client takes of them in one round.
const ROUND_BYTES: usize = 512 << 10;

/// A client which has sent a part of a large request, and for which [`REPLIES_BYTES`] wait. Its
/// protocol reads on meanwhile, other than those of the product.
fn amid_a_request_with_replies(fixture: &Fixture) -> Client {
    let mut client = fixture.at_door(3);
    let line = "m".repeat((1 << 20) - 1) + "\n";
    client.send(&line.repeat(REPLIES_BYTES >> 20));
    client.send(&"x".repeat(300_000));
    // The system takes less than 16 MiB of them.
    fixture.wait("its replies wait", |fixture| {
        fixture.gauges.bytes_held() > REPLIES_BYTES - (16 << 20)
    });
    take_slowly(&mut client, 15);
    client
}

/// Takes some of the replies now and then, for so many rounds of 20 ms.
fn take_slowly(client: &mut Client, rounds: usize) {
    for _ in 0..rounds {
        client.exact(ROUND_BYTES);
        sleep(Duration::from_millis(20));
    }
}

fn roomy() -> Limits {
    Limits {
        output_bytes_max: 64 << 20,
        stall_timeout: Duration::from_millis(600),
        ..limits(1)
    }
}

/// While it is choked its request is not read, so that its time passes; what is to be done about
/// that is not asked without end.
#[test]
fn a_choked_client_amid_a_large_request_keeps_no_thread_busy() {
    let fixture = Fixture::new(roomy());
    let mut client = amid_a_request_with_replies(&fixture);
    let mut other = fixture.budget.charge();
    other.set(256 << 20);
    take_slowly(&mut client, 30);
    let before = fixture.gauges.turns();
    take_slowly(&mut client, 20);
    let turns = (&fixture.gauges.turns() - &before).count();
    assert_eq!(fixture.gauges.connections(), 1, "it takes its replies");
    assert!(turns < 2000, "{turns} turns");
    drop(other);
    client.exact(REPLIES_BYTES - (15 + 30 + 20) * ROUND_BYTES);
    client.send("\r\n");
    assert_eq!(client.line().len(), 300_000);
    fixture.stop();
}

#[test]
fn a_client_amid_a_large_request_keeps_no_thread_busy_during_a_stop() {
    let fixture = Fixture::new(roomy());
    let mut client = amid_a_request_with_replies(&fixture);
    let gauges = Gauges::clone(&fixture.gauges);
    let stopping = spawn("stops", move || fixture.stop()).expect("a thread");
    take_slowly(&mut client, 30);
    let before = gauges.turns();
    take_slowly(&mut client, 20);
    let turns = (&gauges.turns() - &before).count();
    assert!(turns < 2000, "{turns} turns");
    assert_eq!(gauges.connections(), 1, "it takes its replies");
    client.exact(REPLIES_BYTES - (15 + 30 + 20) * ROUND_BYTES);
    stopping.join();
}

/// Replies that are larger than what the system takes at once do not wait for the next batch.
#[test]
fn replies_leave_while_the_next_batch_waits() {
    for batch in ["SET park x", "SETB park 70000\n"] {
        let fixture = Fixture::new(roomy());
        let mut client = fixture.program();
        let message = "m".repeat(12 << 20);
        client.send(&format!("SET 1 {message}\n"));
        assert_eq!(client.line(), "OK");
        let payload = match batch.starts_with("SETB") {
            true => "x".repeat(70_000),
            false => String::new(),
        };
        client.send(&format!("GET 1\n{batch}{payload}\n"));
        client.exact(message.len() + 2);
        fixture.wait("it is parked", |fixture| fixture.gauges.under_way() == 1);
        let wakers = std::mem::take(&mut fixture.gate.0.lock().wakers);
        wakers.into_iter().for_each(Waker::wake);
        assert_eq!(client.line(), "OK");
        fixture.stop();
    }
}

/// A client that waits for several connections is woken once for them.
#[test]
fn replies_are_written_after_the_turns_of_the_connections_that_were_ready_together() {
    let fixture = Fixture::new(limits(1));
    let [mut first, mut quick, mut blocking] = [(); 3].map(|()| fixture.program());
    first.send("SET block x\n");
    fixture.wait("it is held up", |f| f.gate.0.lock().blocked == 1);
    quick.send("GET 1\n");
    // It shares no batch, so its turn is held up before it ends.
    blocking.send(&format!("SETB block 70000\n{}\n", "x".repeat(70_000)));
    fixture.let_through(1);
    fixture.wait("it is held up again", |f| f.gate.0.lock().blocked == 2);
    quick.stream.set_nonblocking(true).expect("it is set");
    let early = quick.stream.read(&mut [0]);
    assert!(early.is_err_and(|error| error.kind() == ErrorKind::WouldBlock));
    quick.stream.set_nonblocking(false).expect("it is set");
    fixture.open_gate();
    assert_eq!(quick.line(), "NOT_FOUND");
    assert_eq!([first.line(), blocking.line()], ["OK", "OK"]);
    fixture.stop();
}

/// Repeats something until told to end.
fn again_and_again(
    is_over: &Arc<std::sync::atomic::AtomicBool>,
    mut work: impl FnMut() + Send + 'static,
) -> crate::threads::Thread {
    let is_over = Arc::clone(is_over);
    let body = move || {
        while !is_over.load(std::sync::atomic::Ordering::SeqCst) {
            work();
        }
    };
    spawn("client", body).expect("a thread")
}

/// One worker has clients of all kinds: one that takes large replies fast, one whose pipeline is
/// deep, one that sends on after its session has ended, and many with small requests.
#[test]
fn turns_are_short_whatever_clients_send() {
    let fixture = Fixture::new(roomy());
    let message = "m".repeat(8 << 20);
    let mut large = fixture.program();
    large.send(&format!("SET 1 {message}\nSET 2 small\n"));
    assert_eq!((large.line(), large.line()), ("OK".into(), "OK".into()));
    let is_over = Arc::default();
    let mut buffer = vec![0; message.len() + 2];
    let mut deep = fixture.program();
    let pipeline = "GET 2\n".repeat(500);
    let address = fixture.server.addresses()[0];
    let flood = vec![b'x'; 24 << 20];
    let mut threads = vec![
        again_and_again(&is_over, move || {
            large.send("GET 1\n");
            large.stream.read_exact(&mut buffer).expect("received");
        }),
        again_and_again(&is_over, move || {
            deep.send(&pipeline);
            deep.exact("small\r\n".len() * 500);
        }),
        again_and_again(&is_over, move || {
            let mut stream = TcpStream::connect(address).expect("a connection");
            // The server may close it when it had enough.
            _ = stream
                .write_all(b"QUIT\n")
                .and_then(|()| stream.write_all(&flood));
        }),
    ];
    for _ in 0..4 {
        let mut clients: Vec<Client> = (0..50).map(|_| fixture.program()).collect();
        threads.push(again_and_again(&is_over, move || {
            for client in &mut clients {
                client.send("SET 3 x\n");
            }
            for client in &mut clients {
                assert_eq!(client.line(), "OK");
            }
        }));
    }
    sleep(Duration::from_millis(200));
    let before: Turns = fixture.gauges.turns();
    sleep(Duration::from_secs(2));
    let turns = &fixture.gauges.turns() - &before;
    is_over.store(true, std::sync::atomic::Ordering::SeqCst);
    threads.into_iter().for_each(crate::threads::Thread::join);
    let shares: Vec<String> = (9..15)
        .map(|exponent| {
            let count = turns.of_at_least_us(exponent);
            format!("{count} of {} us or more", 1 << exponent)
        })
        .collect();
    println!("{} turns, {}", turns.count(), shares.join(", "));
    let long = turns.of_at_least_us(11);
    assert!(long * 50 < turns.count(), "{turns:?}");
    fixture.stop();
}
