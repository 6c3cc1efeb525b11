//! Golden transcripts and properties of whole sessions, with a map for a store.

use std::error::Error;
use std::fmt::Write as _;

use goldenscript::Runner;

use super::{Hatokuse, Identity, Limits};
use crate::protocol::request::Batch;
use crate::protocol::testing::{FakeStore, execute, failure};
use crate::protocol::{Session, Sessions};

fn open(payload_bytes_max: usize) -> Box<dyn Session> {
    let identity = || Identity {
        node: "leader-1".into(),
        role: "leader".into(),
    };
    Hatokuse::new(Limits { payload_bytes_max }, identity).open()
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

mod properties {
    use proptest::prelude::*;

    use super::*;

    /// Pieces of sessions: valid, invalid and random.
    fn piece() -> impl Strategy<Value = Vec<u8>> {
        let fixed = prop::sample::select(vec![
            "SET 1 hello\n",
            "SET 1 hello\r\n",
            "set  2\tx y  \n",
            "SET 1 \n",
            "SET 1\n",
            "GET 1\n",
            "gEt 2 \r\n",
            "GETB 1\n",
            "DEL 1\n",
            "ONCE t SET 1 x\n",
            "once t setb 1 5\r\nab\ncd\r\n",
            "ONCE u 3 SET bulk\n",
            "ONCE \u{a0} SETB 1 4\nabcd\n",
            "ONCE t GET 1\n",
            "3 SET bulk\n",
            "0 SET bulk\n",
            "SETB 1 5\r\nab\ncd\r\n",
            "SETB 2 0\n\n",
            "SETB k 3\nabcX",
            "SETB \u{a0} 4\nabcd\n",
            "SETB 1 70\n",
            "SETB 1 x\n",
            "WHERE 1\n",
            "COUNT\n",
            "STATUS\n",
            "STATUS JSON\n",
            "HELP me\n",
            "POST / HTTP/1.1\r\n",
            "Host: x\r\n",
            "\u{16}\u{3}\u{1}",
            "SET 1 / HTTP/1.1\n",
            "SETB 1 17\r\nGET / HTTP/1.1\r\n\r\n",
            "SETB 1 9999999999\n",
            "PROMPT OFF\n",
            "prompt on\n",
            "QUIT\n",
            "\n",
            " \t \r\n",
            "\r",
            "\n",
            " ",
        ]);
        // Around the limits of a payload and of a line, which is 64 and 1088 bytes here.
        let length = prop_oneof![0usize..140, 1070usize..1095, 1usize..1400];
        let long =
            (length, any::<bool>(), any::<bool>()).prop_map(|(length, is_padded, has_cr)| {
                let mut line = if is_padded {
                    b"".to_vec()
                } else {
                    b"SET 9 ".to_vec()
                };
                line.extend(std::iter::repeat_n(
                    if is_padded { b' ' } else { b'z' },
                    length,
                ));
                line.extend_from_slice(if is_padded { b"GET 1" } else { b"" });
                line.extend_from_slice(if has_cr { b"\r\n" } else { b"\n" });
                line
            });
        prop_oneof![
            8 => fixed.prop_map(|text| text.as_bytes().to_vec()),
            1 => long,
            1 => prop::collection::vec(any::<u8>(), 0..40),
        ]
    }

    /// What a session makes of pieces: the requests one by one, and the output.
    fn outcome(pieces: &[&[u8]], ends: bool) -> (Vec<String>, Vec<u8>, bool) {
        let mut session = open(64);
        let mut store = FakeStore::default();
        let mut output = Vec::new();
        let mut requests = Vec::new();
        let mut batches = execute(&mut *session, &mut store, &mut output);
        for piece in pieces {
            session.receive(piece);
            batches.extend(execute(&mut *session, &mut store, &mut output));
            assert!(session.bytes_held() <= 64 + super::super::LINE_ROOM + 2);
        }
        if ends {
            session.end_of_input();
            batches.extend(execute(&mut *session, &mut store, &mut output));
            assert!(session.wants_close() && session.bytes_held() == 0);
        }
        for batch in batches {
            match batch {
                Batch::Writes(writes) => {
                    requests.extend(writes.iter().map(|write| format!("{write:?}")));
                }
                Batch::Reads(keys) => requests.extend(keys.iter().map(|key| format!("{key:?}"))),
                other => requests.push(format!("{other:?}")),
            }
        }
        (requests, output, session.wants_close())
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 2000,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn any_split_of_the_same_bytes_gives_the_same_requests_and_output(
            pieces in prop::collection::vec(piece(), 1..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
            ends in any::<bool>(),
        ) {
            let input = pieces.concat();
            let whole = outcome(&[&input], ends);
            let bytes: Vec<&[u8]> = input.chunks(1).collect();
            prop_assert_eq!(&outcome(&bytes, ends), &whole);
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
            at.extend([0, input.len()]);
            at.sort_unstable();
            let parts: Vec<&[u8]> = at.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect();
            prop_assert_eq!(&outcome(&parts, ends), &whole);
        }

        #[test]
        fn giving_up_a_command_costs_that_command_only(
            commands in prop::collection::vec((0usize..3, any::<prop::sample::Index>()), 1..20),
        ) {
            let mut session = open(64);
            let mut store = FakeStore::default();
            let mut output = Vec::new();
            session.receive(b"PROMPT OFF\n");
            execute(&mut *session, &mut store, &mut output);
            for (kind, cut) in commands {
                output.clear();
                let text = ["SET 1 hello\r\n", "SETB 1 5\r\nab\ncd\r\n", "SET 1\n"][kind];
                let (front, back) = text.split_at(cut.index(text.len()));
                session.receive(front.as_bytes());
                execute(&mut *session, &mut store, &mut output);
                session.shed();
                session.receive(back.as_bytes());
                execute(&mut *session, &mut store, &mut output);
                let reply = String::from_utf8_lossy(&output);
                let usage = "ERROR: SET <id> <message>\r\n";
                let allowed = ["OK\r\n", usage, "ERROR: busy, try again\r\n"];
                // A SETB given up within its line leaves a payload that reads as a line of its own,
                // or two.
                let is_cut_off = kind == 1 && front.len() < 10 && !front.is_empty();
                let is_allowed = is_cut_off || allowed.contains(&&*reply);
                prop_assert!(is_allowed, "{text:?} {front:?} {reply:?}");
                prop_assert_eq!(session.bytes_held(), 0);
            }
        }

        #[test]
        fn what_is_written_parses_back(payload in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut session = open(64);
            let mut store = FakeStore::default();
            let mut output = Vec::new();
            session.receive(b"PROMPT OFF\n");
            session.receive(format!("SETB k {}\r\n", payload.len()).as_bytes());
            session.receive(&payload);
            session.receive(b"\r\nGETB k\n");
            execute(&mut *session, &mut store, &mut output);
            let mut expected = format!("OK\r\nOK\r\nVALUE 1 {}\r\n", payload.len()).into_bytes();
            expected.extend_from_slice(&payload);
            expected.extend_from_slice(b"\r\n");
            prop_assert!(output.ends_with(&expected));
        }
    }
}
