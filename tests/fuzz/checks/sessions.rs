//! A session of either client protocol and its host, as one value.

use bytes::Buf;
use tolerex::clock::Instant;
use tolerex::protocol::Session;
use tolerex::protocol::request::{BATCH_BYTES_MAX, BATCH_REQUESTS_MAX, Batch, Write};

use super::answers;
use super::splits::{self, Numbers};

/// What a session made of its input.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Each request, in a batch of its own.
    pub requests: Vec<Batch>,
    /// What the client received.
    pub output: Vec<u8>,
    /// Whether the session ended before the input did.
    pub is_closed: bool,
}

/// A kind of session.
pub struct Kind<'a> {
    /// Begins one.
    pub open: &'a dyn Fn() -> Box<dyn Session>,
    /// The most bytes of an unfinished request that it may hold, beside the part received last.
    pub input_bytes_max: usize,
    /// What nobody may be answered behind the end of a session.
    pub probe: &'a [u8],
}

/// The outcome of an input, the same in each of its splits and however many reads are answered at a
/// time; `normal` takes out of the output what may differ. Also tries what a host does to slow and
/// greedy clients: of that only the limits are claimed.
pub fn check(kind: &Kind<'_>, data: &[u8], normal: fn(&[u8]) -> Vec<u8>) -> Outcome {
    let [mut whole, others @ ..] = splits::of(data).map(|split| run(kind, &split, false));
    for other in others {
        assert_eq!(
            other.requests, whole.requests,
            "another split, other requests"
        );
        let (a, b) = (normal(&other.output), normal(&whole.output));
        assert!(
            a == b,
            "another split, another output:\n{}\n--\n{}",
            a.escape_ascii(),
            b.escape_ascii()
        );
        assert_eq!(other.is_closed, whole.is_closed);
    }
    run(kind, &splits::of(data)[2], true);
    whole.output = normal(&whole.output);
    whole
}

/// The outcome of one split; `is_harsh` as a host may be with slow and greedy clients.
pub fn run(kind: &Kind<'_>, split: &[&[u8]], is_harsh: bool) -> Outcome {
    let mut host = Host {
        session: (kind.open)(),
        numbers: Numbers::of(split.concat().as_slice()),
        is_partial: split.len() > 1,
        outcome: Outcome {
            requests: Vec::new(),
            output: Vec::new(),
            is_closed: false,
        },
    };
    host.serve();
    let mut now = Instant::from_nanos(0);
    for part in split {
        host.session.receive(part);
        host.serve();
        let held = host.session.input_bytes();
        assert!(
            held <= kind.input_bytes_max + part.len(),
            "{held} bytes are held"
        );
        if is_harsh {
            match host.numbers.below(8) {
                0 => host.session.shed(),
                1 => host.session.release_buffers(),
                2 => {
                    if let Some(until) = host.session.input_deadline(now) {
                        assert!(until >= now);
                        now = until;
                        if host.numbers.below(4) == 0 {
                            host.session.input_timed_out();
                        }
                    }
                }
                _ => {}
            }
            host.serve();
        }
        if host.session.wants_close() {
            host.outcome.is_closed = true;
            break;
        }
    }
    if host.outcome.is_closed {
        let before = (host.outcome.requests.len(), host.outcome.output.len());
        host.session.receive(kind.probe);
        host.serve();
        let after = (host.outcome.requests.len(), host.outcome.output.len());
        assert_eq!(after, before, "something is answered behind the end");
    }
    host.session.end_of_input();
    host.serve();
    assert!(host.session.wants_close(), "the input has ended");
    assert_eq!(
        host.session.bytes_held(),
        0,
        "something is held behind the end"
    );
    host.outcome
}

struct Host {
    session: Box<dyn Session>,
    numbers: Numbers,
    /// Whether reads are answered a few at a time.
    is_partial: bool,
    outcome: Outcome,
}

impl Host {
    /// Executes all that can be executed.
    fn serve(&mut self) {
        // A batch of reads that was answered in part comes again: those requests are known.
        let mut known = 0;
        loop {
            let Some(batch) = self.session.next_batch() else {
                let is_paused = self.session.is_paused();
                self.drain();
                if is_paused {
                    continue;
                }
                break;
            };
            check_limits(&batch);
            let mut replies = answers::batch(&batch);
            assert_eq!(replies.len(), batch.reply_count());
            let mut requests = single(batch);
            requests.drain(..known);
            known = 0;
            self.outcome.requests.extend(requests);
            if self.is_partial && replies.len() > 1 && self.session_reads() {
                let count = 1 + self.numbers.below(replies.len());
                known = replies.len() - count;
                replies.truncate(count);
            }
            self.session.complete(replies);
            self.drain();
        }
    }

    fn session_reads(&self) -> bool {
        matches!(self.outcome.requests.last(), Some(Batch::Reads(_)))
    }

    fn drain(&mut self) {
        let output = self.session.output();
        let bytes = output.copy_to_bytes(output.remaining());
        self.outcome.output.extend_from_slice(&bytes);
    }
}

fn check_limits(batch: &Batch) {
    let count = batch.reply_count();
    assert!((1..=BATCH_REQUESTS_MAX).contains(&count));
    if let Batch::Writes(writes) = batch {
        let bytes: usize = writes.iter().map(Write::payload_len).sum();
        assert!(bytes <= BATCH_BYTES_MAX || count == 1);
    }
}

/// The requests of a batch, each in one of its own.
fn single(batch: Batch) -> Vec<Batch> {
    match batch {
        Batch::Writes(writes) => {
            let single = writes.into_iter().map(|write| Batch::Writes(vec![write]));
            single.collect()
        }
        Batch::Reads(keys) => keys
            .into_iter()
            .map(|key| Batch::Reads(vec![key]))
            .collect(),
        other => vec![other],
    }
}
