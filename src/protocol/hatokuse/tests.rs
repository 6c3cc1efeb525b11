//! Golden transcripts and properties of whole sessions, with a map for a store.

use std::error::Error;
use std::fmt::Write as _;

use goldenscript::Runner;

use super::{Hatokuse, Identity, Limits};
use crate::clock::Instant;
use crate::protocol::request::Batch;
use crate::protocol::testing::{FakeStore, caller, execute, failure};
use crate::protocol::{RESERVED_TIME, Session, Sessions};

mod properties;

fn sessions(payload_bytes_max: usize) -> Hatokuse {
    let identity = || Identity {
        node: "leader-1".into(),
        role: "leader".into(),
    };
    Hatokuse::new(Limits { payload_bytes_max }, identity)
}

fn open(payload_bytes_max: usize) -> Box<dyn Session> {
    sessions(payload_bytes_max).open(&caller())
}

struct Transcript {
    session: Box<dyn Session>,
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
    /// The time of such a session is over.
    Late,
    /// Receives each text as a piece of its own.
    Send(Vec<String>),
    /// Receives bytes, given as the characters of the same numbers.
    Raw(String),
    /// Receives a text so many times, in one piece.
    Repeat(usize, String),
    /// The client ends its side.
    End,
    /// Room is needed: the unfinished command is given up.
    Shed,
    /// Says what is held.
    Held,
    /// From here on every request fails; without a word no longer.
    Fail(Option<String>),
    /// From here on at most so many reads are answered at a time.
    Reads(usize),
    /// What the store says of the tolerance.
    Tolerance(u8),
}

impl Runner for Transcript {
    type Command = Step;

    fn run(&mut self, step: &Step, _: &goldenscript::Context) -> Result<String, Box<dyn Error>> {
        match step {
            Step::Open { limit } => self.session = open(limit.unwrap_or(1000)),
            Step::Reserved => self.session = sessions(1000).open_reserved(&caller()),
            Step::Late => self.session.input_timed_out(),
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
            Step::Held => return Ok(format!("{} bytes held\n", self.session.bytes_held())),
            Step::Fail(name) => {
                self.store.failure = name.as_deref().map(failure).transpose()?;
            }
            Step::Reads(count) => self.store.reads_max = Some(*count),
            Step::Tolerance(tolerance) => self.store.tolerance = *tolerance,
        }
        let batches = execute(&mut *self.session, &mut self.store, &mut self.output);
        let mut text = String::new();
        for batch in batches {
            writeln!(text, "batch {}", describe(&batch))?;
        }
        for line in std::mem::take(&mut self.output).split_inclusive(|&byte| byte == b'\n') {
            let line = String::from_utf8_lossy(line).escape_debug().to_string();
            // Quotes need no escape here.
            writeln!(
                text,
                "« {} »",
                line.replace("\\\"", "\"").replace("\\'", "'")
            )?;
        }
        if self.session.wants_close() {
            writeln!(text, "closed")?;
        }
        Ok(text)
    }
}

fn describe(batch: &Batch) -> String {
    match batch {
        Batch::Writes(writes) => format!("of {} writes", writes.len()),
        Batch::Reads(keys) => format!("of {} reads", keys.len()),
        Batch::Bulk { count, payload, .. } => format!("of {count} times {} bytes", payload.len()),
        Batch::Transaction(transaction) => format!("of {} steps", transaction.steps.len()),
        Batch::Ttl(key) => format!("ttl {key}"),
        Batch::List(request) => format!("list {:?}", request.prefix),
        Batch::Where(key) => format!("where {key}"),
        Batch::Count => "count".into(),
        Batch::Status => "status".into(),
        Batch::Group(request) => format!("{request:?}").to_lowercase(),
    }
}

fn transcript(name: &str) {
    let mut runner = Transcript {
        session: open(1000),
        store: FakeStore::default(),
        output: Vec::new(),
    };
    let path = format!(
        "{}/src/protocol/hatokuse/testscripts/{name}",
        env!("CARGO_MANIFEST_DIR")
    );
    runner.store.tolerance = 2;
    goldenscript::run(&mut runner, path).expect("a script that runs");
}

#[test]
fn transcript_session() {
    transcript("session");
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
fn transcript_batch() {
    transcript("batch");
}

#[test]
fn transcript_expiry() {
    transcript("expiry");
}

#[test]
fn transcript_list() {
    transcript("list");
}

#[test]
fn transcript_set_and_get() {
    transcript("set_and_get");
}

#[test]
fn transcript_setb_and_getb() {
    transcript("setb_and_getb");
}

#[test]
fn transcript_bulk() {
    transcript("bulk");
}

#[test]
fn transcript_once() {
    transcript("once");
}

#[test]
fn transcript_where_count_status() {
    transcript("where_count_status");
}

#[test]
fn transcript_errors() {
    transcript("errors");
}

#[test]
fn transcript_other_protocols() {
    transcript("other_protocols");
}

#[test]
fn transcript_pipelining() {
    transcript("pipelining");
}

/// The original's client waits for the first nine bytes of the prompt, then reads one line for each
/// command, skipping what looks like the banner, and takes a prompt at the front of what follows.
#[test]
fn the_clients_of_the_original_read_each_reply() {
    let mut session = open(1000);
    let mut store = FakeStore::default();
    let mut output = Vec::new();
    execute(&mut *session, &mut store, &mut output);
    let banner = String::from_utf8(std::mem::take(&mut output)).expect("text");
    let (banner, rest) = banner.split_once("tolerex> ").expect("the prompt");
    assert_eq!(rest, "");
    assert!(banner.ends_with("\r\n") && !banner.replace("\r\n", "").contains(['\r', '\n']));
    let lines: Vec<&str> = banner.lines().collect();
    assert_eq!(lines.first(), Some(&"-".repeat(50).as_str()));
    assert_eq!(lines.last(), Some(&"-".repeat(50).as_str()));
    assert!(banner.contains("TOLEREX"));

    let exchanges = [
        ("SET 1 hello world\r\n", "OK"),
        ("GET 1\r\n", "hello world"),
        ("GET 2\r\n", "NOT_FOUND"),
        ("GET\r\n", "ERROR: GET <id>"),
        ("FOO\r\n", "ERROR: unknown command"),
        ("QUIT\r\n", "Bye"),
    ];
    for (command, reply) in exchanges {
        session.receive(command.as_bytes());
        execute(&mut *session, &mut store, &mut output);
        let text = String::from_utf8(std::mem::take(&mut output)).expect("text");
        let (line, prompt) = text.split_once("\r\n").expect("a line");
        assert_eq!(line, reply);
        assert!(
            !line.starts_with(['-', '<', 'S', 'G', 'H', 'Q']),
            "{line} would be skipped"
        );
        assert_eq!(prompt, if reply == "Bye" { "" } else { "tolerex> " });
    }
}

/// `proto/hatokuse.md` is the promise: a command or a reason to fail that it does not have would be
/// none.
#[test]
fn the_promise_has_every_command_and_failure() {
    let promise = include_str!("../../../proto/hatokuse.md");
    let mut session = open(1000);
    let mut output = Vec::new();
    session.receive(b"PROMPT OFF\nHELP\n");
    execute(&mut *session, &mut FakeStore::default(), &mut output);
    let text = String::from_utf8(output).expect("text");
    let (_, list) = text.rsplit_once("Commands:").expect("the list of HELP");
    let lines: Vec<&str> = list.lines().filter(|line| line.starts_with("  ")).collect();
    assert!(lines.len() > 15, "{lines:?}");
    for line in lines {
        let (form, _) = line
            .trim()
            .split_once("  ")
            .expect("a form and what it does");
        let command = form.split(['[', '|']).next().unwrap_or(form).trim_end();
        let begins = format!("| `{command}");
        assert!(promise.contains(&begins), "{begins}");
    }
    for name in [
        "members",
        "space",
        "write-timeout",
        "read-timeout",
        "no-leader",
        "busy",
        "too-many",
        "in-use",
        "used",
        "expired",
    ] {
        let failure = failure(name).expect("a failure").to_string();
        let words = failure.split(" (").next().unwrap_or_default();
        assert!(promise.contains(&format!("`ERROR: {words}")), "{failure}");
    }
}

/// A line is searched once, however small the pieces: this would take minutes if it were not.
#[test]
fn a_long_line_in_small_pieces_is_not_searched_again() {
    let mut session = open(4 << 20);
    session.receive(b"SET 1 ");
    let piece = [b'x'; 16];
    for _ in 0..(1 << 18) {
        session.receive(&piece);
        assert_eq!(session.next_batch(), None);
    }
    session.receive(b"\n");
    let Some(Batch::Writes(writes)) = session.next_batch() else {
        panic!("no batch");
    };
    assert_eq!(writes[0].payload_len(), 4 << 20);
}

#[test]
fn an_over_long_line_is_not_held() {
    let mut session = open(100_000);
    session.receive(b"SET 1 ");
    let mut most = 0;
    for _ in 0..1000 {
        session.receive(&[b'x'; 5000]);
        assert_eq!(session.next_batch(), None);
        most = session.input_bytes().max(most);
    }
    assert!(most < 110_000, "{most}");
    session.receive(b"\nGET 1\n");
    assert_eq!(
        session.next_batch().map(|batch| describe(&batch)),
        Some("of 1 reads".into())
    );
}

/// More than is ever skipped: whoever sends a line without end is told at last.
#[test]
fn a_line_without_end_is_skipped_for_so_long() {
    for (begin, reply) in [
        (
            &b"SET 1 "[..],
            "ERROR: message too large (limit 1000 bytes)",
        ),
        (b"x", "ERROR: message too large (limit 1000 bytes)"),
    ] {
        let mut session = open(1000);
        session.receive(b"PROMPT OFF\n");
        session.receive(begin);
        let mut store = FakeStore::default();
        let mut output = Vec::new();
        let piece = vec![b'x'; 16 << 20];
        for _ in 0..63 {
            session.receive(&piece);
            execute(&mut *session, &mut store, &mut output);
        }
        assert!(!session.wants_close());
        output.clear();
        session.receive(&piece);
        execute(&mut *session, &mut store, &mut output);
        assert_eq!(String::from_utf8_lossy(&output), format!("{reply}\r\n"));
        assert!(session.wants_close());
    }
}

#[test]
fn a_large_payload_is_not_copied_out_of_the_input() {
    let mut session = open(1 << 20);
    let mut store = FakeStore::default();
    let mut output = Vec::new();
    session.receive(format!("SET 1 {}\n", "x".repeat(1 << 20)).as_bytes());
    execute(&mut *session, &mut store, &mut output);
    let (_, payload) = &store.messages[&crate::ids::Key::Id(1)];
    assert_eq!(payload.len(), 1 << 20);
    // The buffer is the payload's now: nothing of it is held by the session.
    assert_eq!(session.bytes_held(), 0);
}

#[test]
fn a_session_in_a_reserved_place_ends_whatever_it_sends() {
    let at = |s| Instant::default() + std::time::Duration::from_secs(s);
    let mut session = sessions(1000).open_reserved(&caller());
    let end = at(1) + RESERVED_TIME;
    assert_eq!(session.input_deadline(at(1)), Some(end));
    session.receive(b"STATUS\n");
    execute(&mut *session, &mut FakeStore::default(), &mut Vec::new());
    assert_eq!(session.input_deadline(at(4)), Some(end));
    assert_eq!(open(1000).input_deadline(at(4)), None);
}

#[test]
fn a_session_is_idle_between_commands_only() {
    let mut store = FakeStore::default();
    let mut session = open(1000);
    assert!(!session.is_idle(), "its banner is to be sent");
    for (piece, is_idle) in [
        ("", true),
        ("SET 1 ", false),
        ("a\n", true),
        ("SETB 2 3\n", false),
        ("abc", false),
        ("\n", true),
        ("\n", true),
    ] {
        session.receive(piece.as_bytes());
        execute(&mut *session, &mut store, &mut Vec::new());
        assert_eq!(session.is_idle(), is_idle, "behind {piece:?}");
    }
    session.receive(b"COUNT\n");
    assert!(session.next_batch().is_some() && !session.is_idle());
}
