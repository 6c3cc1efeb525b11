//! `tolerex shell`: HaToKuSe with line editing and a history.
//!
//! Lines are sent as they are and replies shown as they come, but for the prompt, which is the
//! shell's own. On a terminal lines can be edited, and are kept in the user's state directory
//! (`$XDG_STATE_HOME` or `~/.local/state`, `tolerex/history`; nowhere if it cannot be written).
//! From a pipe lines are taken without prompt and without a word but the replies.
//!
//! A broken connection is said, with what it means for the command on its way, and opened again
//! with the next command; from a pipe it is the end, since what follows may build on it.

use std::fs;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::args::ClusterArgs;
use super::cluster;
use super::exit::{Exit, ToolError, print};
use super::session::Session;
use crate::config::leader::PAYLOAD_BYTES_CEILING;

/// How long a reply may stand still: a bulk write of a million messages takes its time.
const REPLY_TIMEOUT: Duration = Duration::from_secs(600);

/// Lines of a reply that ends with an empty line.
const REPLY_LINES_MAX: usize = 1000;

/// Lines kept in the history file.
const HISTORY_LINES_MAX: usize = 1000;

const PROMPT: &str = "tolerex> ";
const PAYLOAD_PROMPT: &str = "payload> ";

/// Runs the shell until the end of its input, or `QUIT`.
pub fn run(at: &ClusterArgs) -> Result<(), ToolError> {
    let mut shell = Shell {
        addresses: cluster::addresses(at)?,
        session: None,
        is_terminal: io::stdin().is_terminal(),
    };
    shell.connect()?;
    let mut input = if shell.is_terminal {
        Input::terminal()?
    } else {
        Input::Pipe
    };
    while let Some(line) = input.line(PROMPT)? {
        if !shell.command(&line, &mut input)? {
            break;
        }
    }
    Ok(())
}

/// Where lines come from.
enum Input {
    Terminal {
        editor: Box<DefaultEditor>,
        history: Option<PathBuf>,
    },
    Pipe,
}

impl Input {
    fn terminal() -> Result<Input, ToolError> {
        let config = rustyline::Config::builder();
        let config = config
            .max_history_size(HISTORY_LINES_MAX)
            .map_err(unusable)?;
        let config = config.auto_add_history(true).build();
        let mut editor = DefaultEditor::with_config(config).map_err(unusable)?;
        let history = history_path();
        if let Some(path) = &history {
            // There is none before the first time.
            _ = editor.load_history(path);
        }
        let editor = Box::new(editor);
        Ok(Input::Terminal { editor, history })
    }

    /// The next line; `None` at the end of input.
    fn line(&mut self, prompt: &str) -> Result<Option<Vec<u8>>, ToolError> {
        match self {
            Input::Terminal { editor, .. } => loop {
                match editor.readline(prompt) {
                    Ok(line) => return Ok(Some(line.into_bytes())),
                    // Ctrl-C drops the line that is being typed.
                    Err(ReadlineError::Interrupted) => {}
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(unusable(error)),
                }
            },
            Input::Pipe => {
                let mut line = Vec::new();
                let read = io::stdin().lock().read_until(b'\n', &mut line);
                let count = read.map_err(|error| {
                    ToolError::failed(format!("cannot read standard input: {error}"))
                })?;
                if line.pop_if(|last| *last == b'\n').is_some() {
                    line.pop_if(|last| *last == b'\r');
                }
                Ok((count > 0).then_some(line))
            }
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        if let Input::Terminal {
            editor,
            history: Some(path),
        } = self
        {
            // A history is a comfort: nothing is lost that was not typed.
            _ = editor.save_history(path);
        }
    }
}

fn unusable(error: ReadlineError) -> ToolError {
    ToolError::failed(format!("the terminal cannot be used: {error}"))
}

/// The history file, its directory made; `None` if there is no place for it.
fn history_path() -> Option<PathBuf> {
    let state = match std::env::var_os("XDG_STATE_HOME") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => PathBuf::from(std::env::var_os("HOME")?).join(".local/state"),
    };
    let dir = state.join("tolerex");
    fs::create_dir_all(&dir).ok()?;
    Some(dir.join("history"))
}

struct Shell {
    /// Where leaders are, the one to be asked first in front.
    addresses: Vec<String>,
    session: Option<Session>,
    is_terminal: bool,
}

/// What the reply to a command looks like.
#[derive(Debug, PartialEq, Eq)]
enum Form {
    /// Nothing is sent.
    Nothing,
    /// The prompt is the shell's own.
    Prompt,
    /// One line.
    Line,
    /// Lines until an empty one; an error is one line.
    Lines,
    /// One line, and a payload behind `VALUE`.
    Value,
    /// One line, after a payload of so many bytes was sent.
    TakesPayload(usize),
    /// One line, then the connection is closed.
    Last,
}

/// What a line asks for, as far as it matters here; the server checks it.
fn form(line: &[u8]) -> Form {
    let text = String::from_utf8_lossy(line).to_ascii_uppercase();
    let mut words = text.split_ascii_whitespace();
    match (words.next(), words.next(), words.next(), words.next()) {
        (None, ..) => Form::Nothing,
        (Some("PROMPT"), ..) => Form::Prompt,
        (Some("STATUS" | "GROUP"), None, ..) | (Some("HELP"), ..) => Form::Lines,
        (Some("GETB"), ..) => Form::Value,
        (Some("QUIT" | "EXIT"), ..) => Form::Last,
        (Some("SETB"), Some(_), Some(bytes), None) => match bytes.parse() {
            Ok(bytes) if bytes as u64 <= PAYLOAD_BYTES_CEILING => Form::TakesPayload(bytes),
            Ok(_) | Err(_) => Form::Line,
        },
        _ => Form::Line,
    }
}

impl Shell {
    /// Opens a session, with the first leader that answers.
    fn connect(&mut self) -> Result<(), ToolError> {
        let mut tried = Vec::new();
        for address in &cluster::leader_first(self.addresses.clone()) {
            let opened = Session::open(address)
                .and_then(|session| session.wait_for_replies(REPLY_TIMEOUT).map(|()| session));
            match opened {
                Ok(session) => {
                    let hint = "HELP lists the commands, Ctrl-D leaves";
                    self.tell(&format!("connected to {address}; {hint}"));
                    self.session = Some(session);
                    return Ok(());
                }
                Err(error) => tried.push(format!("{address}: {error}")),
            }
        }
        let text = format!("not reachable: {}", tried.join("; "));
        Err(ToolError::new(Exit::Unreachable, text))
    }

    /// Says something that is not a reply, to a person only.
    fn tell(&self, text: &str) {
        if self.is_terminal {
            _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// Executes a line; false when it was the last.
    fn command(&mut self, line: &[u8], input: &mut Input) -> Result<bool, ToolError> {
        let form = form(line);
        let mut request = [line, b"\r\n"].concat();
        match form {
            Form::Nothing => return Ok(true),
            Form::Prompt => {
                self.tell("the prompt is the shell's own");
                return Ok(true);
            }
            Form::TakesPayload(bytes) => {
                let Some(payload) = payload(bytes, input)? else {
                    self.tell("the input ended within the payload; nothing was sent");
                    return Ok(false);
                };
                request.extend_from_slice(&payload);
                request.extend_from_slice(b"\r\n");
            }
            Form::Line | Form::Lines | Form::Value | Form::Last => {}
        }
        if self.session.is_none() {
            match self.connect() {
                Ok(()) => {}
                Err(error) if self.is_terminal => {
                    self.tell(&format!("error: {error}"));
                    return Ok(true);
                }
                Err(error) => return Err(error),
            }
        }
        let Some(session) = &mut self.session else {
            return Ok(true); // It was just connected.
        };
        match session.send(&request).and_then(|()| reply(session, &form)) {
            Ok(reply) => {
                print(&reply)?;
                self.follow(&reply);
                Ok(form != Form::Last)
            }
            Err(error) => {
                self.session = None;
                let text = format!(
                    "the connection is lost ({error}); if this was a write, it may or may not \
                     have happened"
                );
                if !self.is_terminal {
                    return Err(ToolError::new(Exit::Unknown, text));
                }
                self.tell(&text);
                Ok(form != Form::Last)
            }
        }
    }

    /// Turns to the leader that a reply names.
    fn follow(&mut self, reply: &[u8]) {
        let text = String::from_utf8_lossy(reply);
        if let Some(leader) = text
            .trim_end()
            .strip_prefix("ERROR: not leader, leader is ")
        {
            self.addresses.retain(|address| address != leader);
            self.addresses.insert(0, leader.to_owned());
            self.session = None;
            self.tell(&format!("the next command goes to {leader}"));
        }
    }
}

/// Reads a reply, its line ends as a terminal wants them.
fn reply(session: &mut Session, form: &Form) -> io::Result<Vec<u8>> {
    let mut reply = session.line()?;
    reply.push(b'\n');
    match form {
        Form::Lines if !reply.starts_with(b"ERROR: ") => {
            for _ in 0..REPLY_LINES_MAX {
                let line = session.line()?;
                if line.is_empty() {
                    break;
                }
                reply.extend_from_slice(&line);
                reply.push(b'\n');
            }
        }
        Form::Value if reply.starts_with(b"VALUE ") => {
            let head = String::from_utf8_lossy(&reply);
            let bytes = head.split_ascii_whitespace().nth(2).map(str::parse);
            let Some(Ok(bytes)) = bytes else {
                return Err(io::Error::other(format!("bad reply {:?}", head.trim_end())));
            };
            if bytes as u64 > PAYLOAD_BYTES_CEILING {
                return Err(io::Error::other("a payload beyond any limit"));
            }
            reply.extend_from_slice(&session.payload(bytes)?);
            reply.push(b'\n');
        }
        Form::Nothing
        | Form::Prompt
        | Form::Line
        | Form::Lines
        | Form::Value
        | Form::TakesPayload(_)
        | Form::Last => {}
    }
    Ok(reply)
}

/// A payload of so many bytes: on a terminal lines with LF between them until they make it up, from
/// a pipe the bytes as they are. What is longer goes to the server too, which refuses it. `None` if
/// the input ends before.
fn payload(bytes: usize, input: &mut Input) -> Result<Option<Vec<u8>>, ToolError> {
    let mut payload = Vec::new();
    if matches!(input, Input::Pipe) {
        let read = io::stdin()
            .lock()
            .take(bytes as u64)
            .read_to_end(&mut payload);
        read.map_err(|error| ToolError::failed(format!("cannot read standard input: {error}")))?;
        let rest = input.line(PAYLOAD_PROMPT)?.unwrap_or_default();
        payload.extend_from_slice(&rest);
        return Ok((payload.len() >= bytes).then_some(payload));
    }
    loop {
        let Some(line) = input.line(PAYLOAD_PROMPT)? else {
            return Ok(None);
        };
        payload.extend_from_slice(&line);
        if payload.len() >= bytes {
            return Ok(Some(payload));
        }
        payload.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_a_reply_is_known_from_the_command() {
        for (line, expected) in [
            ("", Form::Nothing),
            ("  ", Form::Nothing),
            ("set 1 status", Form::Line),
            ("5 SET x", Form::Line),
            ("status", Form::Lines),
            ("STATUS JSON", Form::Line),
            ("help me", Form::Lines),
            ("getb k", Form::Value),
            ("setb k 12", Form::TakesPayload(12)),
            ("setb k", Form::Line),
            ("setb k many", Form::Line),
            ("setb k 99999999999", Form::Line),
            ("prompt off", Form::Prompt),
            ("quit now", Form::Last),
            ("nonsense", Form::Line),
        ] {
            assert_eq!(form(line.as_bytes()), expected, "{line}");
        }
    }
}
