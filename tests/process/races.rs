//! Very many clients who write on one revision over HTTP, through all leaders.

use std::time::Duration;

use tolerex::clock::sleep;

use crate::support::cluster::Cluster;
use crate::support::http::{Http, Response};

const WRITERS: usize = 1000;
const ROUNDS: usize = 8;

/// How long a reply may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// One connection, which it keeps.
struct Writer(Http);

impl Writer {
    fn send(&mut self, (name, value): (&str, &str), token: &str, body: &str) {
        let fields = [(name, value), ("Idempotency-Key", token)];
        let sent = self.0.send("PUT", "/kv/k", &fields, body.as_bytes());
        sent.expect("sent");
    }

    /// Sends until there is an answer that decides: where leadership moves meanwhile, the token
    /// keeps a repeat from taking effect twice.
    fn decided(&mut self, condition: (&str, &str), token: &str, body: &str) -> Response {
        for _ in 0..100 {
            let answer = self.0.answer().expect("a response");
            if answer.status < 500 {
                return answer;
            }
            sleep(Duration::from_millis(100));
            self.send(condition, token, body);
        }
        panic!("no decision");
    }
}

#[test]
fn of_a_thousand_writers_on_one_revision_exactly_one_wins() {
    let forward = ("TOLEREX_REDIRECT", "forward");
    let cluster = Cluster::start_with(&["--leaders", "3"], &[forward]);
    let addresses = cluster.leaders("http");
    let mut writers: Vec<Writer> = (0..WRITERS)
        .map(|number| {
            let address = addresses[number % addresses.len()].parse();
            let http = Http::connect(address.expect("an address"), PATIENCE);
            Writer(http.expect("connected"))
        })
        .collect();
    let mut condition = ("If-None-Match", "*".to_owned());
    let mut current = None;
    for round in 0..ROUNDS {
        let demand = (condition.0, condition.1.as_str());
        let token = |number: usize| format!("{round}-{number}");
        let body = |number: usize| format!("written by {number} in round {round}");
        for (number, writer) in writers.iter_mut().enumerate() {
            writer.send(demand, &token(number), &body(number));
        }
        let mut winners = Vec::new();
        for (number, writer) in writers.iter_mut().enumerate() {
            let answer = writer.decided(demand, &token(number), &body(number));
            match answer.status {
                200 | 201 => winners.push(answer.revision().expect("an ETag")),
                412 => {}
                other => panic!("writer {number} was answered {other}"),
            }
        }
        assert_eq!(winners.len(), 1, "in round {round}: {winners:?}");
        assert_ne!(current, Some(winners[0]));
        current = Some(winners[0]);
        condition = ("If-Match", format!("\"{}\"", winners[0]));
    }
}
