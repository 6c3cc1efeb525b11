//! Golden transcripts and properties of whole sessions, with a map for a store.

use std::error::Error;
use std::fmt::Write as _;
use std::sync::Arc;

use goldenscript::Runner;
use parking_lot::Mutex;

use super::node::{Check, Document, Node};
use super::session::{BODY_STEP_BYTES, HEAD_TIME};
use super::{Http, Limits};
use crate::clock::Instant;
use crate::protocol::request::Batch;
use crate::protocol::testing::{FakeStore, caller, execute, failure};
use crate::protocol::{RESERVED_TIME, Session, Sessions};

/// A node in the middle of 2001 whose checks are passed but for one.
#[derive(Default)]
struct FakeNode {
    leader: Mutex<Option<String>>,
    redirects: Mutex<bool>,
    failed: Mutex<Option<String>>,
}

impl Node for FakeNode {
    fn wall_ms(&self) -> u64 {
        1_000_000_000_000
    }

    fn leader(&self) -> Option<String> {
        self.leader.lock().clone()
    }

    fn group_http(&self) -> Vec<String> {
        ["10.0.0.1:8080", "leader-2.example:8080"]
            .map(str::to_owned)
            .to_vec()
    }

    fn hosts(&self) -> Vec<String> {
        let mut hosts = self.group_http();
        hosts.extend_from_slice(&["h".to_owned(), "tolerex.example".to_owned()]);
        hosts
    }

    fn redirects(&self) -> bool {
        *self.redirects.lock()
    }

    fn document(&self, which: Document) -> String {
        format!("{{\"document\":\"{which:?}\"}}")
    }

    fn checks(&self) -> Vec<Check> {
        let failed = self.failed.lock().clone();
        let check = |name, is_vital| Check {
            name,
            ok: failed.as_deref() != Some(name),
            detail: format!("of {name}"),
            is_vital,
        };
        vec![check("journal", true), check("leader", false)]
    }
}

fn sessions(payload_bytes_max: usize, node: &Arc<FakeNode>) -> Http {
    Http::new(Limits { payload_bytes_max }, Arc::clone(node) as _)
}

fn open(payload_bytes_max: usize, node: &Arc<FakeNode>) -> Box<dyn Session> {
    sessions(payload_bytes_max, node).open(&caller())
}

struct Transcript {
    session: Box<dyn Session>,
    node: Arc<FakeNode>,
    store: FakeStore,
    output: Vec<u8>,
}

/// Commands of the scripts.
#[derive(goldenscript::Command)]
enum Step {
    /// Begins a new session, with this limit on payloads; messages stay.
    Open {
        #[arg(key)]
        limit: Option<usize>,
    },
    /// Begins a new session in a reserved place; messages stay.
    Reserved,
    /// Receives a request: its line, its fields (Host is added), and behind `body=` its body, with
    /// Content-Length.
    Ask {
        lines: Vec<String>,
        #[arg(key)]
        body: Option<String>,
    },
    /// Receives each text as a piece of its own.
    Send(Vec<String>),
    /// Receives bytes, given as the characters of the same numbers.
    Raw(String),
    /// Receives a text so many times, in one piece.
    Repeat(usize, String),
    /// The client ends its side.
    End,
    /// Room is needed: the unfinished request is given up.
    Shed,
    /// The time of the unfinished request, or in a reserved place, is over.
    Late,
    /// Says what is held.
    Held,
    /// From here on revisions are of this term.
    Term(u64),
    /// From here on every request fails; without a word no longer.
    Fail(Option<String>),
    /// From here on the active leader is there; without a word it is not known.
    Leader(Option<String>),
    /// From here on writes are to be sent there.
    Redirect,
    /// From here on this check fails; without a word none.
    Check(Option<String>),
}

impl Runner for Transcript {
    type Command = Step;

    fn run(&mut self, step: &Step, _: &goldenscript::Context) -> Result<String, Box<dyn Error>> {
        match step {
            Step::Open { limit } => self.session = open(limit.unwrap_or(1000), &self.node),
            Step::Reserved => self.session = sessions(1000, &self.node).open_reserved(&caller()),
            Step::Ask { lines, body } => {
                let (first, fields) = lines.split_first().ok_or("no request line")?;
                let mut text = format!("{first} HTTP/1.1\r\nHost: h\r\n");
                for field in fields {
                    write!(text, "{field}\r\n")?;
                }
                if let Some(body) = body {
                    write!(text, "Content-Length: {}\r\n\r\n{body}", body.len())?;
                } else {
                    text += "\r\n";
                }
                self.session.receive(text.as_bytes());
            }
            Step::Send(pieces) => {
                for piece in pieces {
                    self.session.receive(piece.as_bytes());
                }
            }
            Step::Raw(text) => {
                let bytes: Result<Vec<u8>, _> = text.chars().map(u8::try_from).collect();
                self.session.receive(&bytes?);
            }
            Step::Repeat(count, text) => self.session.receive(text.repeat(*count).as_bytes()),
            Step::End => self.session.end_of_input(),
            Step::Shed => self.session.shed(),
            Step::Late => self.session.input_timed_out(),
            Step::Held => return Ok(format!("{} bytes held\n", self.session.bytes_held())),
            Step::Term(term) => self.store.term = *term,
            Step::Fail(name) => {
                self.store.failure = name.as_deref().map(failure).transpose()?;
            }
            Step::Leader(address) => *self.node.leader.lock() = address.clone(),
            Step::Redirect => *self.node.redirects.lock() = true,
            Step::Check(name) => *self.node.failed.lock() = name.clone(),
        }
        let batches = execute(&mut *self.session, &mut self.store, &mut self.output);
        let mut text = String::new();
        for batch in batches {
            writeln!(text, "batch {}", describe(&batch))?;
        }
        let output = std::mem::take(&mut self.output);
        for line in output.split_inclusive(|&byte| byte == b'\n') {
            // The same in every response.
            if line.starts_with(b"Date: Sun, 09 Sep 2001 01:46:40 GMT\r\n") {
                continue;
            }
            let text_line: String = line.iter().map(|byte| char::from(*byte)).collect();
            let line = text_line.escape_debug().to_string();
            let line = line.replace("\\\"", "\"").replace("\\'", "'");
            writeln!(text, "« {line} »")?;
        }
        if self.session.wants_close() {
            writeln!(text, "closed")?;
        }
        Ok(text)
    }
}

fn describe(batch: &Batch) -> String {
    match batch {
        Batch::Writes(writes) => format!("of writes {writes:?}"),
        Batch::Reads(keys) => format!("of {} reads", keys.len()),
        other => format!("{other:?}"),
    }
}

fn transcript(name: &str) {
    let node = Arc::new(FakeNode::default());
    let mut runner = Transcript {
        session: open(1000, &node),
        node,
        store: FakeStore::default(),
        output: Vec::new(),
    };
    let path = format!(
        "{}/src/protocol/http/testscripts/{name}",
        env!("CARGO_MANIFEST_DIR")
    );
    goldenscript::run(&mut runner, path).expect("a script that runs");
}

#[test]
fn transcript_put_get_delete() {
    transcript("put_get_delete");
}

#[test]
fn transcript_callers() {
    transcript("callers");
}

#[test]
fn transcript_large_revisions() {
    transcript("large_revisions");
}

#[test]
fn transcript_twice() {
    transcript("twice");
}

#[test]
fn transcript_reserved() {
    transcript("reserved");
}

#[test]
fn transcript_conditions() {
    transcript("conditions");
}

#[test]
fn transcript_representations() {
    transcript("representations");
}

#[test]
fn transcript_batch_and_list() {
    transcript("batch_and_list");
}

#[test]
fn transcript_bodies() {
    transcript("bodies");
}

#[test]
fn transcript_connections() {
    transcript("connections");
}

#[test]
fn transcript_refused() {
    transcript("refused");
}

#[test]
fn transcript_failures() {
    transcript("failures");
}

#[test]
fn transcript_node() {
    transcript("node");
}

#[test]
fn a_request_has_its_time_and_idleness_has_none() {
    let node = Arc::new(FakeNode::default());
    let mut session = open(1 << 20, &node);
    let (mut store, mut output) = (FakeStore::default(), Vec::new());
    let at = |seconds: u64| Instant::from_nanos(seconds * 1_000_000_000);
    assert_eq!(session.input_deadline(at(0)), None);
    assert!(session.is_idle());
    session.receive(b"PUT /kv/k HT");
    assert_eq!(session.next_batch(), None);
    assert_eq!(session.input_deadline(at(1)), Some(at(1) + HEAD_TIME));
    assert!(!session.is_idle());
    // More of the head does not prolong it; the body has time of its own, for each part.
    session.receive(b"TP/1.1\r\nHost: h\r\n");
    assert_eq!(session.next_batch(), None);
    assert_eq!(session.input_deadline(at(5)), Some(at(1) + HEAD_TIME));
    session.receive(b"Content-Length: 100000\r\n\r\n");
    assert_eq!(session.next_batch(), None);
    assert_eq!(session.input_deadline(at(6)), Some(at(6) + HEAD_TIME));
    assert!(!session.is_idle());
    session.receive(&[b'x'; 1000]);
    assert_eq!(session.next_batch(), None);
    assert_eq!(session.input_deadline(at(9)), Some(at(6) + HEAD_TIME));
    session.receive(&vec![b'x'; BODY_STEP_BYTES as usize]);
    assert_eq!(session.next_batch(), None);
    assert_eq!(session.input_deadline(at(12)), Some(at(12) + HEAD_TIME));
    session.receive(&vec![b'x'; 99_000 - BODY_STEP_BYTES as usize]);
    execute(&mut *session, &mut store, &mut output);
    assert!(output.starts_with(b"HTTP/1.1 201"), "{output:?}");
    assert_eq!(session.input_deadline(at(30)), None);
    assert!(session.is_idle());
    let mut reserved = sessions(1000, &node).open_reserved(&caller());
    assert_eq!(reserved.input_deadline(at(1)), Some(at(1) + RESERVED_TIME));
    reserved.receive(b"GET");
    assert_eq!(reserved.next_batch(), None);
    assert_eq!(reserved.input_deadline(at(4)), Some(at(1) + RESERVED_TIME));
    // The next request begins anew, whatever the last one took.
    session.receive(b"G");
    assert_eq!(session.next_batch(), None);
    assert_eq!(session.input_deadline(at(31)), Some(at(31) + HEAD_TIME));
}

#[test]
fn a_large_body_is_not_copied_out_of_the_input() {
    let node = Arc::new(FakeNode::default());
    let mut session = open(1 << 20, &node);
    let (mut store, mut output) = (FakeStore::default(), Vec::new());
    let head = "PUT /kv/1 HTTP/1.1\r\nHost: h\r\nContent-Length: 1048576\r\n\r\n";
    session.receive(head.as_bytes());
    session.receive(&vec![b'x'; 1 << 20]);
    execute(&mut *session, &mut store, &mut output);
    let (_, payload) = &store.messages[&crate::ids::Key::Id(1)];
    assert_eq!(payload.len(), 1 << 20);
    // The buffer is the payload's now: nothing of it is held by the session.
    assert_eq!(session.bytes_held(), 0);
}

#[test]
fn a_body_that_is_too_long_is_not_held() {
    let node = Arc::new(FakeNode::default());
    let mut session = open(1000, &node);
    let chunked = "PUT /kv/k HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    session.receive(chunked.as_bytes());
    for _ in 0..2000 {
        session.receive(b"64\r\n");
        session.receive(&[b'x'; 100]);
        session.receive(b"\r\n");
        assert_eq!(session.next_batch(), None);
        assert!(session.input_bytes() < 2500, "{}", session.input_bytes());
    }
    assert!(session.wants_close());
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    /// Requests, whole and broken, and random bytes.
    fn piece() -> impl Strategy<Value = Vec<u8>> {
        let fixed = prop::sample::select(vec![
            "GET /kv/1 HTTP/1.1\r\nHost: h\r\n\r\n",
            "HEAD /kv/1 HTTP/1.1\r\nHost: h\r\nRange: bytes=0-1\r\n\r\n",
            "GET /kv/%61?x HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET /kv/1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            "PUT /kv/1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
            "PUT /kv/1?ttl=1s HTTP/1.1\r\nHost: h\r\n\
             Content-Length: 3\r\nExpect: 100-continue\r\n\r\nabc",
            "PUT /kv/2 HTTP/1.1\r\nHost: h\r\n\
             Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n0\r\nT: 1\r\n\r\n",
            "PUT /kv/2 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n",
            "PUT /kv/2 HTTP/1.1\r\nHost: h\r\nContent-Length: 9999999\r\n\r\n",
            "PUT /kv HTTP/1.1\r\nHost: h\r\n\
             Content-Length: 30\r\n\r\nGET /kv/1 HTTP/1.1\r\nHost: h\r\n\r\n",
            "DELETE /kv/1 HTTP/1.1\r\nHost: h\r\nIf-Match: \"1\"\r\n\r\n",
            "POST /batch HTTP/1.1\r\nHost: h\r\n\
             Content-Type: application/json\r\nContent-Length: 46\r\n\r\n\
             {\"operations\":[{\"type\":\"get\",\"key\":\"1\"}        ]}",
            "GET /readyz HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET /kv?limit=2 HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: h\r\n\r\n",
            "GET / HTTP/1.1\nHost: h\n\n",
            "GET / HTTP/1.1\r\nHost: h\r\n folded\r\n\r\n",
            "\r\n",
            "\0",
        ]);
        prop_oneof![
            8 => fixed.prop_map(|text| text.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 0..20),
            1 => prop::collection::vec(prop::sample::select(b"GPH /:\r\n\"%1".to_vec()), 0..30),
        ]
    }

    fn input() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(piece(), 0..12).prop_map(|pieces| pieces.concat())
    }

    /// Requests in order and responses, of an input in pieces of these lengths.
    fn run(input: &[u8], cuts: &[usize]) -> (Vec<String>, Vec<u8>, bool) {
        let node = Arc::new(FakeNode::default());
        let mut session = open(1000, &node);
        let (mut store, mut output) = (FakeStore::default(), Vec::new());
        let mut requests = Vec::new();
        let mut rest = input;
        let mut cuts = cuts.iter().copied().cycle();
        while !rest.is_empty() && !session.wants_close() {
            let count = cuts.next().unwrap_or(rest.len()).clamp(1, rest.len());
            let (piece, behind) = rest.split_at(count);
            rest = behind;
            session.receive(piece);
            for batch in execute(&mut *session, &mut store, &mut output) {
                match batch {
                    Batch::Writes(writes) => {
                        requests.extend(writes.iter().map(|write| format!("{write:?}")));
                    }
                    Batch::Reads(keys) => {
                        requests.extend(keys.iter().map(|key| format!("{key:?}")));
                    }
                    other => requests.push(format!("{other:?}")),
                }
            }
            assert!(session.bytes_held() < 40_000);
        }
        if !session.wants_close() {
            session.end_of_input();
            execute(&mut *session, &mut store, &mut output);
        }
        assert!(session.wants_close(), "it waits for more behind the end");
        // Whether 100-continue is said depends on what has come by then, and may.
        let text: String = output.iter().map(|byte| char::from(*byte)).collect();
        let output = text.replace("HTTP/1.1 100 Continue\r\n\r\n", "");
        (requests, output.into_bytes(), session.wants_close())
    }

    proptest! {
        #[test]
        fn any_split_of_the_bytes_gives_the_same_requests(
            input in input(),
            cuts in prop::collection::vec(1usize..40, 1..8),
        ) {
            prop_assert_eq!(run(&input, &cuts), run(&input, &[usize::MAX]));
        }

        #[test]
        fn no_input_panics(input in prop::collection::vec(any::<u8>(), 0..300)) {
            run(&input, &[1]);
        }

        /// Whatever is sent, what comes back is a sequence of whole responses.
        #[test]
        fn every_response_is_whole(input in input()) {
            let (_, output, _) = run(&input, &[usize::MAX]);
            let mut rest = &output[..];
            while !rest.is_empty() {
                let mut slots = [httparse::EMPTY_HEADER; 20];
                let mut response = httparse::Response::new(&mut slots);
                let parsed = response.parse(rest).expect("a response");
                prop_assert!(parsed.is_complete());
                let length = response.headers.iter().find(|header| header.name == "Content-Length");
                let length = length.and_then(|header| std::str::from_utf8(header.value).ok());
                let length: usize = length.map_or(0, |text| text.parse().expect("a number"));
                let head = parsed.unwrap();
                // A response to HEAD has none of its bytes; then another follows at once.
                let body = rest.get(head..head + length);
                let is_head = body.is_none_or(|_| rest[head..].starts_with(b"HTTP/1.1 "));
                rest = &rest[head + if is_head { 0 } else { length }..];
            }
        }
    }
}
