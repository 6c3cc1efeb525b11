//! Replies: each its own, in order, however commands arrive.

use super::*;

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
    fixture.open_gate();
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
    assert!(fixture.gauges.bytes_held() < 300_000);
    for _ in 0..count {
        assert_eq!(client.exact(help.len()), help.as_bytes());
    }
    fixture.stop();
}
