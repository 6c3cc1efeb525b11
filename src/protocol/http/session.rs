//! One client's session: requests to batches, replies to their places. Pure.
//!
//! The input is parsed no further than the batch being collected, see [`Session`]. A request that
//! is refused by its head is answered before its body has come. Where that body may be skipped, the
//! connection goes on behind it; where it may not (it is too long, or the client waits to be told
//! whether to send it) this response is the last one, and the host drains what still arrives.
//!
//! # Time
//!
//! A head has [`HEAD_TIME`] from its first byte on, a body as long for every [`BODY_STEP_BYTES`]
//! of it. So an unfinished request holds a connection for a bounded time, however slowly its bytes
//! drip. Between requests a connection may be idle: it holds nothing but its place.

use std::sync::Arc;
use std::time::Duration;

use super::Limits;
use super::callers;
use super::head::{Head, Method};
use super::node::Node;
use super::parser::{Parsed, Parser};
use super::problem::{Kind, Problem};
use super::routes::{Call, route};
use super::step::{End, Form, Step, Way};
use super::writer::Writer;
use crate::clock::Instant;
use crate::protocol::batch::JSON_GROWTH;
use crate::protocol::output::Output;
use crate::protocol::pipeline::Pipeline;
use crate::protocol::reply::Reply;
use crate::protocol::request::Batch;
use crate::protocol::{ReservedTime, Session};

/// How long a head may take, and each part of a body. Half of it would be short for a telephone in
/// a tunnel; with twice of it a connection that drips keeps its place twice as long.
pub const HEAD_TIME: Duration = Duration::from_secs(10);

/// So many bytes of a body, or its rest, come within [`HEAD_TIME`]: 52 kbit/s.
pub const BODY_STEP_BYTES: u64 = 64 * 1024;

/// With so much output waiting, nothing more is answered without execution: it bounds what
/// thousands of pipelined bad requests hold.
const OUTPUT_PAUSE_BYTES: usize = 64 * 1024;

/// An HTTP session.
pub struct HttpSession {
    limits: Limits,
    parser: Parser,
    pipeline: Pipeline<Step>,
    writer: Writer,
    node: Arc<dyn Node>,
    /// The request whose body is on its way, if that is wanted.
    awaited: Option<Awaited>,
    /// The time of the request that is on its way.
    patience: Option<Patience>,
    /// In a reserved place: one document of the node or one check is answered, then it is closed.
    reserved: Option<ReservedTime>,
    /// No more input will come.
    is_ended: bool,
}

struct Awaited {
    call: Call,
    way: Way,
    target: Box<str>,
}

/// Until when a part of a request has to come.
struct Patience {
    until: Instant,
    /// How many heads and bodies were whole when it began.
    stage: u64,
    /// Bytes received by then.
    received: u64,
}

impl HttpSession {
    /// A session at the beginning of its first request.
    pub fn new(limits: Limits, node: Arc<dyn Node>) -> HttpSession {
        HttpSession {
            limits,
            parser: Parser::default(),
            pipeline: Pipeline::default(),
            writer: Writer::new(Arc::clone(&node)),
            node,
            awaited: None,
            patience: None,
            reserved: None,
            is_ended: false,
        }
    }

    /// The same in a place that is reserved for checks, see
    /// [`open_reserved`](crate::protocol::Sessions::open_reserved).
    pub fn reserved(self) -> HttpSession {
        HttpSession {
            reserved: Some(ReservedTime::default()),
            ..self
        }
    }

    fn parsed(&mut self, parsed: Parsed) {
        match parsed {
            Parsed::Head(head) => self.begin(*head),
            Parsed::Body(body) => {
                // Without one awaited, it was skipped and the request is answered.
                if let Some(Awaited { call, way, target }) = self.awaited.take() {
                    if way.end == End::Close {
                        self.parser.close();
                    }
                    match call.with_body(body, &self.limits) {
                        Ok((Some(work), form)) => {
                            self.pipeline.request(work, Step { form, way, target });
                        }
                        Ok((None, form)) => self.local(Step { form, way, target }),
                        Err(problem) => self.local(Step::problem(problem, way)),
                    }
                }
            }
            Parsed::Invalid(problem, begins_write) => {
                let is_write = begins_write || self.awaits_write();
                self.last(problem, Way::last(is_write));
            }
        }
    }

    fn begin(&mut self, head: Head) {
        let is_read = matches!(head.method, Method::Get | Method::Head | Method::Other);
        let is_reserved = self.reserved.is_some();
        let mut way = Way {
            is_head: head.method == Method::Head,
            is_write: !is_read,
            end: match (head.keeps_alive && !is_reserved, head.is_old) {
                (false, _) => End::Close,
                (true, false) => End::Keep,
                (true, true) => End::KeepOld,
            },
        };
        let call = callers::check(&head, &*self.node).and_then(|()| route(&head));
        let call = match call {
            Ok(Call::Put { .. } | Call::Batch(_) | Call::Ready(..)) if is_reserved => {
                return self.refuse(Kind::TooManyConnections.into(), &head, way);
            }
            Ok(call) => call,
            Err(problem) => return self.refuse(problem, &head, way),
        };
        if let Err(problem) = self.parser.take_body(call.body_bytes_max(&self.limits)) {
            way.end = End::Close;
            return self.last(problem, way);
        }
        let target = head.target;
        if head.expects_continue && !self.has_body_begun() {
            if way.is_write && self.node.redirects() {
                way.end = End::Close;
                let problem = Step::problem(Kind::NotLeader.into(), way);
                return self.end(Step { target, ..problem });
            }
            let form = Form::Continue;
            let target = Box::default();
            self.local(Step { form, way, target });
        }
        self.awaited = Some(Awaited { call, way, target });
    }

    /// A client that sends its body without waiting needs not be told to.
    fn has_body_begun(&self) -> bool {
        self.parser.bytes_held() > 0
    }

    /// Answers a request by its head; the connection goes on if its body can be skipped.
    fn refuse(&mut self, problem: Problem, head: &Head, way: Way) {
        let may_skip = !head.expects_continue && way.end != End::Close;
        let limit = self.limits.payload_bytes_max;
        if may_skip && self.parser.skip_body(limit).is_ok() {
            return self.local(Step::problem(problem, way));
        }
        let way = Way {
            end: End::Close,
            ..way
        };
        self.last(problem, way);
    }

    fn local(&mut self, step: Step) {
        if self.pipeline.is_empty() {
            self.writer.step(step, None);
        } else {
            self.pipeline.local(step);
        }
    }

    /// Ends the session within a request.
    fn give_up(&mut self, kind: Kind) {
        let is_write = self.parser.begins_write() || self.awaits_write();
        self.last(kind.into(), Way::last(is_write));
    }

    fn awaits_write(&self) -> bool {
        let awaited = self.awaited.as_ref();
        awaited.is_some_and(|awaited| awaited.way.is_write)
    }

    /// The session ends with this problem: what follows it is dropped.
    fn last(&mut self, problem: Problem, way: Way) {
        self.end(Step::problem(problem, way));
    }

    fn end(&mut self, step: Step) {
        self.parser.close();
        self.awaited = None;
        self.local(step);
    }
}

impl Session for HttpSession {
    fn receive(&mut self, bytes: &[u8]) {
        self.parser.receive(bytes);
    }

    fn end_of_input(&mut self) {
        self.is_ended = true;
        self.parser.end_of_input();
    }

    fn next_batch(&mut self) -> Option<Batch> {
        while self.pipeline.is_open() && !self.is_paused() {
            match self.parser.next_part() {
                Some(parsed) => self.parsed(parsed),
                None => break,
            }
        }
        self.pipeline.take()
    }

    fn reply_growth(&self) -> usize {
        let is_json = |step: &Step| match &step.form {
            Form::Value(reading) => reading.accept.may_choose_json(),
            Form::Stored(_) | Form::Deleted | Form::Keys | Form::Transaction { .. } => false,
            Form::Document(_) | Form::Check { .. } | Form::Problem(_) | Form::Continue => false,
        };
        if self.pipeline.is_transaction() || self.pipeline.forms().any(is_json) {
            return JSON_GROWTH;
        }
        1
    }

    fn complete(&mut self, replies: Vec<Reply>) {
        let writer = &mut self.writer;
        self.pipeline
            .complete(replies, |step, reply| writer.step(step, reply));
    }

    fn output(&mut self) -> &mut Output {
        self.writer.output()
    }

    fn is_paused(&self) -> bool {
        self.pipeline.is_empty() && self.writer.output_len() >= OUTPUT_PAUSE_BYTES
    }

    fn wants_close(&self) -> bool {
        let is_done = self.is_ended && self.parser.is_closed() && self.pipeline.is_empty();
        is_done || self.writer.is_closed()
    }

    fn is_idle(&self) -> bool {
        let is_between = !self.parser.is_amid() && self.pipeline.is_empty();
        is_between && self.writer.output_len() == 0
    }

    fn bytes_held(&self) -> usize {
        let waiting = self.parser.bytes_held() + self.pipeline.bytes_held();
        waiting + self.writer.output_len()
    }

    fn input_bytes(&self) -> usize {
        self.parser.bytes_held()
    }

    fn input_bytes_expected(&self) -> usize {
        self.parser.bytes_expected()
    }

    fn may_be_whole(&self) -> bool {
        // How long a body in chunks is, its last chunk says.
        self.parser.is_in_chunks() || self.input_bytes() >= self.input_bytes_expected()
    }

    fn shed(&mut self) {
        if self.parser.is_amid() {
            self.give_up(Kind::Busy);
        }
    }

    fn input_deadline(&mut self, now: Instant) -> Option<Instant> {
        if let Some(time) = &mut self.reserved {
            return Some(time.end(now));
        }
        if !self.parser.is_amid() || self.pipeline.is_out() {
            self.patience = None;
            return None;
        }
        let (stage, received) = self.parser.progress();
        let is_current = self.patience.as_ref().is_some_and(|patience| {
            let came = received - patience.received;
            let has_progressed = self.parser.is_in_body() && came >= BODY_STEP_BYTES;
            patience.stage == stage && !has_progressed
        });
        if !is_current {
            self.patience = Some(Patience {
                until: now + HEAD_TIME,
                stage,
                received,
            });
        }
        self.patience.as_ref().map(|patience| patience.until)
    }

    fn input_timed_out(&mut self) {
        self.give_up(match self.reserved {
            Some(_) => Kind::TooManyConnections,
            None => Kind::RequestTimeout,
        });
    }

    fn release_buffers(&mut self) {
        self.parser.release_buffers();
        self.pipeline.release_buffers();
        self.writer.output().release_buffers();
    }
}
