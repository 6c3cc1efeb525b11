//! What helpers do for the workers.

use super::*;
use crate::net::Call;
use crate::protocol::http::node::{Check, Document};

/// A node with nothing to tell.
pub struct Node;

impl http::node::Node for Node {
    fn wall_ms(&self) -> u64 {
        0
    }

    fn leader(&self) -> Option<String> {
        None
    }

    fn group_http(&self) -> Vec<String> {
        Vec::new()
    }

    fn hosts(&self) -> Vec<String> {
        vec!["h".to_owned()]
    }

    fn redirects(&self) -> bool {
        false
    }

    fn document(&self, _: Document) -> String {
        String::new()
    }

    fn checks(&self) -> Vec<Check> {
        Vec::new()
    }
}

/// Sends a large request in two parts, and while the second is awaited nobody is busy with it: the
/// request is looked at when bytes come, and not again and again.
fn sent_in_two_parts(payload_bytes_max: usize, door: usize, [first, second]: [&str; 2]) -> String {
    let fixture = Fixture::with_payloads(limits(1), payload_bytes_max);
    let mut client = match door {
        0 => fixture.program(),
        _ => fixture.at_door(door),
    };
    client.send(first);
    fixture.wait("the first part has come", |fixture| {
        fixture.gauges.bytes_held() > 280_000
    });
    let helpers = fixture.server.helpers();
    let mut last = (helpers.taken(), fixture.clock.now());
    fixture.wait("helpers let it be", |fixture| {
        let now = fixture.clock.now();
        if last.0 != helpers.taken() {
            last = (helpers.taken(), now);
        }
        now.since(last.1) > Duration::from_millis(300)
    });
    let taken = helpers.taken();
    client.send(second);
    let line = client.line();
    assert!(
        fixture.server.helpers().taken() > taken,
        "it was not helped"
    );
    assert_eq!(fixture.store.lock().messages[&Key::Id(1)].1.len(), 300_000);
    fixture.stop();
    line
}

#[test]
fn a_payload_whose_line_end_is_late_keeps_no_thread_busy() {
    let payload = "x".repeat(300_000);
    let first = format!("SETB 1 300000\n{payload}");
    assert_eq!(sent_in_two_parts(1 << 20, 0, [&first, "\n"]), "OK");
    // As long as a line may be.
    let line = sent_in_two_parts(300_000, 0, [&format!("SETB 1 300000\n{payload}\r"), "\n"]);
    assert_eq!(line, "OK");
}

#[test]
fn a_line_as_long_as_any_may_be_keeps_no_thread_busy() {
    let limits = hatokuse::Limits {
        payload_bytes_max: 300_000,
    };
    let blanks = " ".repeat(limits.line_bytes_max() - "SET1 ".len() - 300_000);
    let first = format!("SET{blanks}1 {}", "x".repeat(300_000));
    assert_eq!(sent_in_two_parts(300_000, 0, [&first, "\n"]), "OK");
}

#[test]
fn a_body_in_chunks_whose_last_is_late_keeps_no_thread_busy() {
    let head = "PUT /kv/1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    let first = format!("{head}{:x}\r\n{}\r\n", 300_000, "x".repeat(300_000));
    for payload_bytes_max in [300_000, 1 << 20] {
        let line = sent_in_two_parts(payload_bytes_max, 2, [&first, "0\r\n\r\n"]);
        assert_eq!(line, "HTTP/1.1 201 Created");
    }
}

/// Replies to another process are encoded where they are handed over.
#[test]
fn helpers_hand_over_large_replies_to_calls_and_workers_small_ones() {
    let fixture = Fixture::new(limits(1));
    let mut client = fixture.program();
    for (key, length) in [(1, 1000), (2, 300_000)] {
        client.send(&format!("SET {key} {}\n", "x".repeat(length)));
        assert_eq!(client.line(), "OK");
    }
    let entrance = fixture.server.entrance();
    for (key, thread) in [(1, "work-1"), (2, "help-1")] {
        let (told, answers) = crossbeam_channel::bounded(1);
        entrance.submit(Call {
            batch: Batch::Reads(vec![Key::Id(key)]),
            reply_growth: 1,
            handler: Arc::clone(&fixture.handler) as Arc<dyn Handler>,
            done: Box::new(move |outcome| {
                let (replies, _) = outcome.expect("it is executed");
                let name = std::thread::current().name().map(str::to_owned);
                _ = told.send((replies.len(), name));
            }),
        });
        let answer = answers.recv_timeout(PATIENCE).expect("an answer");
        assert_eq!(answer, (1, Some(thread.to_owned())));
    }
    fixture.stop();
}
