//! One client's session: commands to batches, replies to their places, banner and prompt. Pure.
//!
//! The input is parsed no further than the batch being collected, see [`Session`]. What needs no
//! execution (errors, help, empty lines) is written at once if nothing waits before it, else it
//! takes its place among the replies.

use super::command::Command;
use super::command::prefix::Prefix;
use super::parser::Parser;
use super::writer::{Form, Writer};
use super::{Identity, Limits};
use crate::clock::Instant;
use crate::protocol::batch::JSON_GROWTH;
use crate::protocol::output::Output;
use crate::protocol::pipeline::{Pipeline, Work};
use crate::protocol::reply::Reply;
use crate::protocol::request::{Batch, GroupRequest, SetOptions, Write};
use crate::protocol::{ReservedTime, Session};

/// With so much output waiting, nothing more is answered without execution. It is far above what
/// one run of commands at a keyboard needs, and bounds what thousands of pipelined HELPs hold.
const OUTPUT_PAUSE_BYTES: usize = 64 * 1024;

/// A HaToKuSe session.
pub struct HatokuseSession {
    parser: Parser,
    pipeline: Pipeline<Form>,
    writer: Writer,
    /// In a reserved place.
    reserved: Option<ReservedTime>,
}

/// Whether a session in a reserved place may send it: what `tolerex status` and `tolerex group`
/// need, and what is answered without execution. COUNT tells them where the active leader is.
fn is_check(command: &Command) -> bool {
    match command {
        Command::Count
        | Command::Status { .. }
        | Command::Group {
            request: GroupRequest::View,
            ..
        } => true,
        Command::Empty | Command::Help | Command::Prompt(_) => true,
        Command::Quit | Command::Fatal(_) => true,
        Command::Group { .. } | Command::Invalid(_) => false,
        Command::Set { .. } | Command::Bulk { .. } | Command::Delete { .. } => false,
        Command::Expire { .. } | Command::Batch(_) | Command::Ttl(_) => false,
        Command::List(_) | Command::Where(_) => false,
        Command::Get(_) | Command::GetFramed(_) => false,
    }
}

impl HatokuseSession {
    /// A session whose output begins with the banner and the first prompt.
    pub fn new(limits: Limits, identity: &Identity) -> HatokuseSession {
        let mut writer = Writer::new(limits);
        writer.banner(identity);
        HatokuseSession {
            parser: Parser::new(limits),
            pipeline: Pipeline::default(),
            writer,
            reserved: None,
        }
    }

    /// The same in a place that is reserved for checks, see
    /// [`open_reserved`](crate::protocol::Sessions::open_reserved).
    pub fn reserved(self) -> HatokuseSession {
        HatokuseSession {
            reserved: Some(ReservedTime::default()),
            ..self
        }
    }

    /// Adds a command behind those before it.
    fn step(&mut self, command: Command) {
        if self.reserved.is_some() && !is_check(&command) {
            return self.last(Form::TooManyConnections);
        }
        let (work, form) = match command {
            Command::Set {
                key,
                payload,
                prefix,
            } => {
                let Prefix {
                    token,
                    condition,
                    tells_revision,
                } = prefix;
                let form = match tells_revision {
                    true => Form::RevisionReply,
                    false => Form::Reply,
                };
                let write = Write::Set {
                    key,
                    payload,
                    options: SetOptions {
                        token,
                        condition,
                        ttl_ms: None,
                    },
                };
                (Work::Write(write), form)
            }
            Command::Delete { key, prefix } => {
                let Prefix {
                    token, condition, ..
                } = prefix;
                let write = Write::Delete {
                    key,
                    token,
                    condition,
                };
                (Work::Write(write), Form::Reply)
            }
            Command::Expire { key, ttl_ms, token } => {
                let write = Write::Expire { key, token, ttl_ms };
                (Work::Write(write), Form::Reply)
            }
            Command::Batch(transaction) => {
                let batch = Batch::Transaction(transaction);
                (Work::Alone(batch), Form::Reply)
            }
            Command::Ttl(key) => (Work::Alone(Batch::Ttl(key)), Form::Reply),
            Command::List(request) => (Work::Alone(Batch::List(request)), Form::Reply),
            Command::Get(key) => (Work::Read(key), Form::Reply),
            Command::GetFramed(key) => (Work::Read(key), Form::FramedReply),
            Command::Bulk {
                count,
                payload,
                token,
            } => {
                let bulk = Batch::Bulk {
                    count,
                    payload,
                    token,
                };
                (Work::Alone(bulk), Form::Reply)
            }
            Command::Where(key) => (Work::Alone(Batch::Where(key)), Form::Reply),
            Command::Count => (Work::Alone(Batch::Count), Form::Reply),
            Command::Status { json: false } => (Work::Alone(Batch::Status), Form::Reply),
            Command::Status { json: true } => (Work::Alone(Batch::Status), Form::JsonReply),
            Command::Group { request, json } => {
                let form = if json { Form::JsonReply } else { Form::Reply };
                (Work::Alone(Batch::Group(request)), form)
            }
            Command::Empty => return self.local(Form::Empty),
            Command::Help => return self.local(Form::Help),
            Command::Prompt(on) => return self.local(Form::Prompt(on)),
            Command::Invalid(problem) => return self.local(Form::Error(problem)),
            Command::Quit => return self.last(Form::Bye),
            Command::Fatal(problem) => return self.last(Form::LastError(problem)),
        };
        self.pipeline.request(work, form);
    }

    fn local(&mut self, form: Form) {
        if self.pipeline.is_empty() {
            self.writer.local(form);
        } else {
            self.pipeline.local(form);
        }
    }

    /// The session ends with this step: what follows it is dropped.
    fn last(&mut self, form: Form) {
        self.parser.close();
        self.local(form);
    }
}

impl Session for HatokuseSession {
    fn receive(&mut self, bytes: &[u8]) {
        self.parser.receive(bytes);
    }

    fn end_of_input(&mut self) {
        self.parser.end_of_input();
    }

    fn next_batch(&mut self) -> Option<Batch> {
        while self.pipeline.is_open() && !self.is_paused() {
            match self.parser.next_command() {
                Some(command) => self.step(command),
                None => break,
            }
        }
        self.pipeline.take()
    }

    fn reply_growth(&self) -> usize {
        if self.pipeline.is_transaction() {
            return JSON_GROWTH;
        }
        1
    }

    fn complete(&mut self, replies: Vec<Reply>) {
        let writer = &mut self.writer;
        self.pipeline.complete(replies, |form, reply| match reply {
            Some(reply) => writer.reply(form, reply),
            None => writer.local(form),
        });
    }

    fn output(&mut self) -> &mut Output {
        self.writer.output()
    }

    fn is_paused(&self) -> bool {
        self.pipeline.is_empty() && self.writer.output_len() >= OUTPUT_PAUSE_BYTES
    }

    fn wants_close(&self) -> bool {
        let is_done = self.parser.is_finished() && self.pipeline.is_empty();
        is_done || self.writer.is_closed()
    }

    fn is_idle(&self) -> bool {
        let is_between = self.parser.is_between_commands() && self.pipeline.is_empty();
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

    fn shed(&mut self) {
        self.parser.shed();
    }

    fn input_deadline(&mut self, now: Instant) -> Option<Instant> {
        self.reserved.as_mut().map(|time| time.end(now))
    }

    fn input_timed_out(&mut self) {
        self.last(Form::TooManyConnections);
    }

    fn release_buffers(&mut self) {
        self.parser.release_buffers();
        self.pipeline.release_buffers();
        self.writer.output().release_buffers();
    }
}
