//! HTTP sessions.

use std::sync::Arc;

use tolerex::protocol::Session;
use tolerex::protocol::batch;
use tolerex::protocol::http::Limits;
use tolerex::protocol::http::node::{Check, Document, Node};
use tolerex::protocol::http::parser::HEAD_BYTES_MAX;
use tolerex::protocol::http::session::HttpSession;

use super::sessions::{self, Kind, Outcome};
use super::splits;

const LIMITS: Limits = Limits {
    payload_bytes_max: 300,
};

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// In whatever parts the input comes, requests and responses are the same; no more than a head or a
/// body is held; nothing is read behind the end. The output is a row of whole responses, and has
/// one at least for each request.
pub fn check(data: &[u8]) {
    let may_be_batch = data.windows(5).any(|word| word == b"batch") || data.contains(&b'%');
    let body_bytes_max = match may_be_batch {
        true => batch::json_bytes_max(LIMITS.payload_bytes_max),
        false => batch::value_bytes_max(LIMITS.payload_bytes_max),
    };
    let kind = Kind {
        open: &|| open(false),
        input_bytes_max: HEAD_BYTES_MAX.max(body_bytes_max),
        probe: b"GET /kv/behind-the-end HTTP/1.1\r\nHost: h\r\n\r\n",
    };
    let outcome = sessions::check(&kind, data, without_continue);
    check_responses(&outcome);
    // Whoever waits with its body is sent away before it comes: that depends on the split.
    let elsewhere = Kind {
        open: &|| open(true),
        ..kind
    };
    let mut outcome = sessions::run(&elsewhere, &splits::of(data)[2], false);
    outcome.output = without_continue(&outcome.output);
    check_responses(&outcome);
}

fn check_responses(outcome: &Outcome) {
    let responses = count_responses(&outcome.output);
    assert!(
        responses >= outcome.requests.len(),
        "a request has no response"
    );
}

fn open(redirects: bool) -> Box<dyn Session> {
    Box::new(HttpSession::new(LIMITS, Arc::new(FixedNode { redirects })))
}

/// The output without the interim responses: a client that has begun its body gets none.
fn without_continue(output: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(output.len());
    let mut rest = output;
    while let Some((first, behind)) = rest.split_first() {
        match rest.strip_prefix(CONTINUE) {
            Some(behind) => rest = behind,
            None => {
                kept.push(*first);
                rest = behind;
            }
        }
    }
    kept
}

/// How many responses these are.
fn count_responses(mut output: &[u8]) -> usize {
    let mut count = 0;
    while !output.is_empty() {
        let mut slots = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut slots);
        let head = match response.parse(output) {
            Ok(httparse::Status::Complete(head)) => head,
            other => panic!("no whole head, {other:?}: {}", output.escape_ascii()),
        };
        let code = response.code.expect("of a whole head");
        let length = content_length(&response);
        assert_eq!(
            length.is_none(),
            matches!(code, 204 | 304),
            "{code} of {length:?} bytes"
        );
        output = &output[head..];
        count += 1;
        // The answer to HEAD has no body; no body looks like a response.
        if output.is_empty() || output.starts_with(b"HTTP/1.1 ") {
            continue;
        }
        let length = length.unwrap_or(0);
        assert!(
            length <= output.len(),
            "a body is cut: {}",
            output.escape_ascii()
        );
        output = &output[length..];
    }
    count
}

fn content_length(response: &httparse::Response<'_, '_>) -> Option<usize> {
    let mut lengths = response.headers.iter();
    let header = lengths.find(|header| header.name.eq_ignore_ascii_case("content-length"))?;
    let text = std::str::from_utf8(header.value).expect("digits");
    Some(text.parse().expect("a number"))
}

/// A node that serves, or one that says where to.
struct FixedNode {
    redirects: bool,
}

impl Node for FixedNode {
    fn wall_ms(&self) -> u64 {
        1_000_000_000_000
    }

    fn leader(&self) -> Option<String> {
        Some("127.0.0.1:8180".to_owned())
    }

    fn group_http(&self) -> Vec<String> {
        vec!["127.0.0.1:8180".to_owned()]
    }

    fn hosts(&self) -> Vec<String> {
        vec!["h".to_owned()]
    }

    fn redirects(&self) -> bool {
        self.redirects
    }

    fn document(&self, which: Document) -> String {
        format!("{{\"document\":\"{which:?}\"}}")
    }

    fn checks(&self) -> Vec<Check> {
        let check = |name, ok| Check {
            name,
            ok,
            detail: format!("of {name}"),
            is_vital: ok,
        };
        vec![check("journal", true), check("leader", false)]
    }
}
