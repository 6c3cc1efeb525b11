//! `tolerex shell`: HaToKuSe with line editing and a history.
//!
//! Lines go to the active leader as they are, and replies are shown as they come, but for the
//! prompt, which is the shell's own. The [client](crate::client) follows the leader and repeats
//! reads, and writes that begin with `ONCE`. On a terminal lines can be edited, and are kept in the
//! user's state directory (`$XDG_STATE_HOME` or `~/.local/state`, `tolerex/history`; nowhere if it
//! cannot be written). From a pipe lines are taken without prompt and without a word but the
//! replies.
//!
//! That no leader is found, or that the outcome of a write is unknown, is said, and the next
//! command is tried again; from a pipe it is the end, since what follows may build on it.

use std::io::{self, BufRead, IsTerminal, Read};
use std::path::PathBuf;

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::args::ClusterArgs;
use super::cluster;
use super::exit::{ToolError, print, tell};
use crate::client::{Client, Patience, without_prefixes};
use crate::config::leader::PAYLOAD_BYTES_CEILING;
use crate::disk::private;

/// Lines kept in the history file.
const HISTORY_LINES_MAX: usize = 1000;

const PROMPT: &str = "tolerex> ";
const PAYLOAD_PROMPT: &str = "payload> ";

/// Runs the shell until the end of its input, or `QUIT`.
pub fn run(at: &ClusterArgs) -> Result<(), ToolError> {
    let mut shell = Shell {
        client: cluster::client(at, Patience::WhileElecting)?,
        is_terminal: io::stdin().is_terminal(),
    };
    // Any leader answers it: that somebody is there is known at once.
    shell.client.raw(b"HELP", None)?;
    let address = shell.client.address().unwrap_or_default();
    shell.tell(&format!(
        "connected to {address}; HELP lists the commands, Ctrl-D leaves"
    ));
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
    private::create_dir_all(&dir).ok()?;
    Some(dir.join("history"))
}

struct Shell {
    client: Client,
    is_terminal: bool,
}

/// What is to be done with a line.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    /// Nothing.
    Nothing,
    /// The prompt is the shell's own.
    Prompt,
    /// It is sent.
    Command,
    /// It is sent with a payload of so many bytes.
    TakesPayload(usize),
    /// It is the last.
    Quit,
}

impl Line {
    /// As far as it matters here; the server checks it.
    fn of(line: &[u8]) -> Line {
        let text = String::from_utf8_lossy(line).to_ascii_uppercase();
        let words: Vec<&str> = text.split_ascii_whitespace().take(8).collect();
        match without_prefixes(&words) {
            [] => Line::Nothing,
            ["PROMPT", ..] => Line::Prompt,
            ["QUIT" | "EXIT", ..] => Line::Quit,
            ["SETB", _, bytes] | ["BATCH", bytes] => match bytes.parse() {
                Ok(bytes) if bytes as u64 <= PAYLOAD_BYTES_CEILING => Line::TakesPayload(bytes),
                Ok(_) | Err(_) => Line::Command,
            },
            _ => Line::Command,
        }
    }
}

impl Shell {
    /// Says something that is not a reply, to a person only.
    fn tell(&self, text: &str) {
        if self.is_terminal {
            tell(text);
        }
    }

    /// Executes a line; false when it was the last.
    fn command(&mut self, line: &[u8], input: &mut Input) -> Result<bool, ToolError> {
        let payload = match Line::of(line) {
            Line::Nothing => return Ok(true),
            Line::Prompt => {
                self.tell("the prompt is the shell's own");
                return Ok(true);
            }
            Line::Quit => {
                print(b"Bye\n")?;
                return Ok(false);
            }
            Line::TakesPayload(bytes) => {
                let payload = payload(bytes, input)?;
                if payload.is_none() {
                    self.tell("the input ended within the payload; nothing was sent");
                    return Ok(false);
                }
                payload
            }
            Line::Command => None,
        };
        match self.client.raw(line, payload.as_deref()) {
            Ok(reply) => print(&reply.text())?,
            Err(error) if self.is_terminal => self.tell(&format!("error: {error}")),
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }
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
    fn what_a_line_needs_is_known() {
        for (line, expected) in [
            ("", Line::Nothing),
            ("  ", Line::Nothing),
            ("set 1 status", Line::Command),
            ("5 SET x", Line::Command),
            ("status", Line::Command),
            ("setb k 12", Line::TakesPayload(12)),
            ("once t setb k 12", Line::TakesPayload(12)),
            ("once t if 0 setb k 12", Line::TakesPayload(12)),
            ("once t batch 12", Line::TakesPayload(12)),
            ("setb k", Line::Command),
            ("setb k many", Line::Command),
            ("setb k 99999999999", Line::Command),
            ("prompt off", Line::Prompt),
            ("quit now", Line::Quit),
            ("nonsense", Line::Command),
        ] {
            assert_eq!(Line::of(line.as_bytes()), expected, "{line}");
        }
    }
}
