//! Replies to bytes. Pure.

use std::fmt::Write as _;

use bytes::Bytes;
use memchr::memchr;

use super::command::Problem;
use super::{Identity, Limits};
use crate::error::Failure;
use crate::ids::{InvalidKey, InvalidToken, Revision};
use crate::protocol::batch;
use crate::protocol::output::Output;
use crate::protocol::reply::{ClusterStatus, GroupTable, KeyPage, ListedKey, ReplicaStatus, Reply};

/// The answer to a connection for which there is no room.
pub const TOO_MANY_CONNECTIONS: &[u8] = b"ERROR: too many connections\r\n";

/// Nine bytes, no line end: clients wait for exactly these before they send.
const PROMPT: &[u8] = b"tolerex> ";

/// The first and last line of the banner: 50 hyphens.
const RULE: &str = "--------------------------------------------------\r\n";

const COMMANDS: &str = "\
Commands:\r
  SET <key> <message>     store a message\r
  <n> SET <message>       store n messages under fresh ids\r
  GET <key>               the message\r
  DEL <key>               delete a message\r
  SETB <key> <bytes>      store any bytes, which follow on the next line\r
  EXPIRE <key> <seconds>  let a message go after so long\r
  PERSIST <key>           let it stay\r
  TTL <key>               the seconds left, or NONE\r
  ONCE <token> <write>    a write that takes effect once, however often it is sent\r
  IF <revision> <write>   a write only if that revision is there (0: none, *: any)\r
  GETB <key>              VALUE <revision> <bytes>, then the message\r
  BATCH <bytes>           several operations in one step, as JSON that follows\r
  LIST <n> [<prefix>*]    n keys in order, each with revision and bytes\r
  WHERE <key>             the members that hold a message\r
  COUNT                   the number of messages\r
  STATUS | GROUP [JSON]   the state of the cluster, of the group of leaders\r
  PROMPT ON | PROMPT OFF  show or hide the prompt\r
  HELP                    this list\r
  QUIT | EXIT             leave\r
";

/// How a step is written out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// A reply as a line (or a table).
    Reply,
    /// A reply to a SET under IF: with its revision.
    RevisionReply,
    /// A reply to GETB: a message with its revision and length.
    FramedReply,
    /// A reply to STATUS JSON or GROUP JSON.
    JsonReply,
    /// Nothing but the prompt.
    Empty,
    /// The command list.
    Help,
    /// `OK`, with the prompt on or off from here on.
    Prompt(bool),
    /// An error.
    Error(Problem),
    /// An error, then the session is closed.
    LastError(Problem),
    /// There is no place for the connection; the session is closed.
    TooManyConnections,
    /// The session is closed.
    Bye,
}

/// Writes one session's output.
#[derive(Debug)]
pub struct Writer {
    limits: Limits,
    output: Output,
    has_prompt: bool,
    is_closed: bool,
}

impl Writer {
    /// A writer with the prompt on.
    pub fn new(limits: Limits) -> Writer {
        Writer {
            limits,
            output: Output::default(),
            has_prompt: true,
            is_closed: false,
        }
    }

    /// What was written and is to be drained.
    pub fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    /// Bytes to be drained.
    pub fn output_len(&self) -> usize {
        self.output.len()
    }

    /// Whether the last step was written.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Writes the banner and the first prompt.
    pub fn banner(&mut self, identity: &Identity) {
        let Identity { node, role } = identity;
        self.text(RULE);
        self.format(format_args!("TOLEREX - {node} ({role})\r\n"));
        self.text(COMMANDS);
        self.text(RULE);
        self.prompt();
    }

    /// Writes a step that was not executed.
    pub fn local(&mut self, form: Form) {
        match form {
            Form::Empty => {}
            Form::Help => {
                self.text(COMMANDS);
                self.text("\r\n");
            }
            Form::Prompt(on) => {
                self.has_prompt = on;
                self.text("OK\r\n");
            }
            Form::Error(problem) => self.problem(problem),
            Form::LastError(problem) => {
                self.problem(problem);
                self.is_closed = true;
            }
            Form::TooManyConnections => {
                self.output.extend(TOO_MANY_CONNECTIONS);
                self.is_closed = true;
                return;
            }
            Form::Bye => {
                self.text("Bye\r\n");
                self.is_closed = true;
                return;
            }
            Form::Reply | Form::RevisionReply | Form::FramedReply | Form::JsonReply => {
                unreachable!("a request is written with its reply")
            }
        }
        self.prompt();
    }

    /// Writes the reply to a request.
    pub fn reply(&mut self, form: Form, reply: Reply) {
        match reply {
            Reply::Stored { revision, .. } if form == Form::RevisionReply => {
                self.format(format_args!("OK {revision}\r\n"));
            }
            Reply::Stored { .. } | Reply::Deleted | Reply::ExpirySet | Reply::GroupChanged => {
                self.text("OK\r\n");
            }
            Reply::Mismatch { revision } => {
                let revision = revision.map_or(0, Revision::as_u64);
                self.format(format_args!("MISMATCH {revision}\r\n"));
            }
            Reply::TimeToLive { ms: None } => self.text("NONE\r\n"),
            // Rounded up, so that 0 is never said of a message that is there.
            Reply::TimeToLive { ms: Some(ms) } => {
                self.format(format_args!("{}\r\n", ms.div_ceil(1000).max(1)));
            }
            Reply::Keys(page) => self.keys(&page),
            Reply::Transaction(replies) => {
                let json = Bytes::from(batch::write(&replies));
                self.format(format_args!("BATCH {}\r\n", json.len()));
                self.output.push(json);
                self.text("\r\n");
            }
            Reply::NotFound => self.text("NOT_FOUND\r\n"),
            Reply::Value { revision, payload } => self.value(form, revision, payload),
            Reply::BulkStored { first, last } => {
                self.format(format_args!("OK {first}-{last}\r\n"));
            }
            Reply::Location {
                revision,
                bytes,
                replicas,
            } => {
                self.location(revision, bytes, &replicas);
            }
            Reply::Count(count) => self.format(format_args!("{count}\r\n")),
            Reply::Status(status) => self.status(form, &status),
            Reply::Group(table) => self.group(form, &table),
            Reply::Failed(failure) => self.error(format_args!("{failure}")),
        }
        self.prompt();
    }

    fn value(&mut self, form: Form, revision: Revision, payload: Bytes) {
        let length = payload.len();
        if form == Form::FramedReply {
            self.format(format_args!("VALUE {revision} {length}\r\n"));
        } else if payload.ends_with(b"\r") || memchr(b'\n', &payload).is_some() {
            return self.error(format_args!(
                "message is not a single line ({length} bytes), use GETB"
            ));
        }
        self.output.push(payload);
        self.text("\r\n");
    }

    fn keys(&mut self, page: &KeyPage) {
        for listed in &page.keys {
            let ListedKey {
                key,
                revision,
                bytes,
            } = listed;
            self.format(format_args!("{key} {revision} {bytes}\r\n"));
        }
        if let Some(last) = page.keys.last().filter(|_| page.has_more) {
            self.format(format_args!("MORE {}\r\n", last.key));
        }
        self.text("\r\n");
    }

    fn location(&mut self, revision: Revision, bytes: u64, replicas: &[ReplicaStatus]) {
        self.format(format_args!("revision={revision} bytes={bytes} replicas="));
        for (index, replica) in replicas.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            self.format(format_args!("{comma}{replica}"));
        }
        self.text("\r\n");
    }

    fn problem(&mut self, problem: Problem) {
        match problem {
            Problem::Usage(usage) => self.error(format_args!("{usage}")),
            Problem::UnknownCommand => self.error(format_args!("unknown command")),
            Problem::InvalidKey => self.error(format_args!("{InvalidKey}")),
            Problem::InvalidToken => self.error(format_args!("{InvalidToken}")),
            Problem::TooLarge => {
                let limit = self.limits.payload_bytes_max;
                self.error(format_args!("message too large (limit {limit} bytes)"));
            }
            Problem::Busy => self.error(format_args!("{}", Failure::Busy)),
            Problem::InvalidBatch(error) => self.error(format_args!("{error}")),
            Problem::NoLineEnd => self.error(format_args!("no line end behind the payload")),
            Problem::Http => self.error(format_args!(
                "this port does not speak HTTP; nothing from this line on is executed"
            )),
            Problem::Tls => self.error(format_args!("this port does not speak TLS")),
        }
    }

    fn status(&mut self, form: Form, status: &ClusterStatus) {
        if form == Form::JsonReply {
            return self.json(status);
        }
        self.table(status);
        self.text("\r\n");
    }

    fn group(&mut self, form: Form, table: &GroupTable) {
        if form == Form::JsonReply {
            return self.json(table);
        }
        let leader = table.leader.as_deref().unwrap_or("none");
        self.format(format_args!("leader: {leader}\r\nterm: {}\r\n", table.term));
        let head = ["id", "name", "rpc", "client", "role", "state", "matched"];
        let mut rows = vec![head.map(str::to_owned)];
        for peer in &table.peers {
            rows.push([
                peer.id.clone(),
                peer.name.clone(),
                peer.rpc.clone(),
                peer.client.clone(),
                peer.role.to_string(),
                peer.state.to_string(),
                peer.matched
                    .map_or("-".to_owned(), |index| index.to_string()),
            ]);
        }
        self.columns(&rows, 6);
        self.text("\r\n");
    }

    /// On one line.
    fn json(&mut self, value: &impl serde::Serialize) {
        match serde_json::to_string(value) {
            Ok(json) => self.format(format_args!("{json}\r\n")),
            Err(error) => self.error(format_args!("status not available: {error}")),
        }
    }

    /// One fact a line, then one member a line, in columns. There is no empty line but the last.
    fn table(&mut self, status: &ClusterStatus) {
        let ClusterStatus {
            node,
            role,
            reason,
            lost,
            leader,
            term,
            tolerance,
            strategy,
            messages,
            members,
        } = status;
        let leader = leader.as_deref().unwrap_or("none");
        let loss = tolerance.saturating_sub(1);
        let plural = if loss == 1 { "" } else { "s" };
        self.format(format_args!("node: {node}\r\nrole: {role}\r\n"));
        for (name, text) in [("reason", reason), ("lost", lost)] {
            if let Some(text) = text {
                self.format(format_args!("{name}: {text}\r\n"));
            }
        }
        self.format(format_args!("leader: {leader}\r\n"));
        self.format(format_args!("term: {term}\r\n"));
        self.format(format_args!(
            "tolerance: {tolerance} (survives the loss of {loss} member{plural})\r\n"
        ));
        self.format(format_args!(
            "strategy: {strategy}\r\nmessages: {messages}\r\n"
        ));
        self.format(format_args!("members: {}\r\n", members.len()));
        if members.is_empty() {
            return;
        }
        let head = [
            "name",
            "id",
            "address",
            "state",
            "messages",
            "bytes",
            "free",
            "last seen",
        ];
        let mut rows = vec![head.map(str::to_owned)];
        for member in members {
            rows.push([
                member.name.clone(),
                member.id.clone(),
                member.address.clone(),
                member.state.to_string(),
                member.messages.to_string(),
                member.bytes.to_string(),
                member.free.map_or("-".to_owned(), |free| free.to_string()),
                member
                    .last_seen_ms
                    .map_or("-".to_owned(), |ms| format!("{ms} ms ago")),
            ]);
        }
        self.columns(&rows, 4);
        for member in members {
            let name = &member.name;
            if let Some(reason) = &member.reason {
                self.format(format_args!("{name}: {reason}\r\n"));
            }
            if member.missing > 0 {
                let missing = member.missing;
                self.format(format_args!("{name}: {missing} copies are missing\r\n"));
            }
        }
    }

    /// The first `words` columns to the left, the numbers behind them to the right.
    fn columns<const N: usize>(&mut self, rows: &[[String; N]], words: usize) {
        let mut widths = [0; N];
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        for row in rows {
            for (index, (cell, width)) in row.iter().zip(widths).enumerate() {
                let gap = if index == 0 { "" } else { "  " };
                if index < words {
                    self.format(format_args!("{gap}{cell:<width$}"));
                } else {
                    self.format(format_args!("{gap}{cell:>width$}"));
                }
            }
            self.text("\r\n");
        }
    }

    fn error(&mut self, text: std::fmt::Arguments<'_>) {
        self.format(format_args!("ERROR: {text}\r\n"));
    }

    fn text(&mut self, text: &str) {
        self.output.extend(text.as_bytes());
    }

    fn format(&mut self, text: std::fmt::Arguments<'_>) {
        self.output
            .write_fmt(text)
            .expect("writing to memory does not fail");
    }

    fn prompt(&mut self) {
        if self.has_prompt {
            self.output.extend(PROMPT);
        }
    }
}
