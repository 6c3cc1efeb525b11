//! Clients that do what no client should.

use super::*;

#[test]
fn a_reset_connection_is_closed() {
    let fixture = Fixture::new(limits(2));
    let client = fixture.client();
    let socket = socket2::SockRef::from(&client.stream);
    socket
        .set_linger(Some(Duration::ZERO))
        .expect("a reset on close");
    drop(client);
    fixture.wait("it is closed", |fixture| fixture.gauges.connections() == 0);
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
    let address = fixture.server.addresses()[0];
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
        under_way_max: 3,
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
        fixture.gauges.connections() == 0
    });
    assert_eq!(
        (fixture.gauges.under_way(), fixture.gauges.bytes_held()),
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

/// A read stops before urgent data, and what follows that is read all the same.
#[test]
fn urgent_data_holds_up_nothing() {
    let fixture = Fixture::new(limits(1));
    let (mut blocked, client) = (fixture.program(), fixture.program());
    // So that all of it has come when the worker reads.
    blocked.send("SET block x\n");
    fixture.wait("the worker is held", |fixture| {
        fixture.gate.0.lock().blocked == 1
    });
    let mut client = client;
    client.send("COU");
    let urgent = socket2::SockRef::from(&client.stream).send_out_of_band(b"!");
    assert_eq!(urgent.expect("sent"), 1);
    client.send("NT\n");
    sleep(Duration::from_millis(50));
    fixture.open_gate();
    assert_eq!(client.line(), "1");
    assert_eq!(blocked.line(), "OK");
    fixture.stop();
}
