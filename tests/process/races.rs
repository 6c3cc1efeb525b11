//! Very many clients who write on one revision over HTTP, through all leaders.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use tolerex::clock::sleep;

use crate::support::cluster::Cluster;

const WRITERS: usize = 1000;
const ROUNDS: usize = 8;

/// How long a reply may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// One connection, which it keeps.
struct Writer(BufReader<TcpStream>);

/// What became of a request.
struct Answer {
    status: u16,
    /// The number in its ETag, if it has one.
    revision: Option<u64>,
}

impl Writer {
    fn connect(address: &str) -> Writer {
        let stream = TcpStream::connect(address).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        Writer(BufReader::new(stream))
    }

    fn send(&mut self, condition: &str, token: &str, body: &str) {
        let request = format!(
            "PUT /kv/k HTTP/1.1\r\nHost: x\r\n{condition}\r\nIdempotency-Key: {token}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0
            .get_mut()
            .write_all(request.as_bytes())
            .expect("sent");
    }

    fn answer(&mut self) -> Answer {
        let mut line = || {
            let mut text = String::new();
            self.0.read_line(&mut text).expect("a line");
            text.trim_end().to_owned()
        };
        let first = line();
        let status = first.split(' ').nth(1).and_then(|text| text.parse().ok());
        let (mut length, mut revision) = (0, None);
        loop {
            let field = line();
            let Some((name, value)) = field.split_once(": ") else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().expect("a number"),
                "etag" => revision = value.trim_matches('"').parse().ok(),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).expect("a body");
        let status = status.unwrap_or_else(|| panic!("{first}"));
        Answer { status, revision }
    }

    /// Sends until there is an answer that decides: where leadership moves meanwhile, the token
    /// keeps a repeat from taking effect twice.
    fn decided(&mut self, condition: &str, token: &str, body: &str) -> Answer {
        for _ in 0..100 {
            let answer = self.answer();
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
        .map(|number| Writer::connect(&addresses[number % addresses.len()]))
        .collect();
    let mut condition = "If-None-Match: *".to_owned();
    let mut current = None;
    for round in 0..ROUNDS {
        let token = |number: usize| format!("{round}-{number}");
        let body = |number: usize| format!("written by {number} in round {round}");
        for (number, writer) in writers.iter_mut().enumerate() {
            writer.send(&condition, &token(number), &body(number));
        }
        let mut winners = Vec::new();
        for (number, writer) in writers.iter_mut().enumerate() {
            let answer = writer.decided(&condition, &token(number), &body(number));
            match answer.status {
                200 | 201 => winners.push(answer.revision.expect("an ETag")),
                412 => {}
                other => panic!("writer {number} was answered {other}"),
            }
        }
        assert_eq!(winners.len(), 1, "in round {round}: {winners:?}");
        assert_ne!(current, Some(winners[0]));
        current = Some(winners[0]);
        condition = format!("If-Match: \"{}\"", winners[0]);
    }
}
