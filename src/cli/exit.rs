//! How a subcommand ends: the exit codes, the same for all of them, and the error behind one.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use super::visible::shown;
use crate::client::ClientError;
use crate::error::Outcome;
use crate::logging;

/// Why a subcommand did not do what it was asked, by what the caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It failed, and nothing happened: busy, unavailable, refused, a local error.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// There is no such message.
    NotFound = 3,
    /// No leader was found, or it has not enough members, or these have no space; nothing happened,
    /// and it is worth another try later.
    Unreachable = 4,
    /// A write may or may not have happened: only a read tells.
    Unknown = 5,
}

/// The error of a subcommand: its exit code and what standard error is told.
#[derive(Debug, PartialEq, Eq)]
pub struct ToolError {
    /// The exit code.
    pub exit: Exit,
    /// One line or more, lower case, without a full stop.
    pub text: String,
}

impl ToolError {
    /// An error of the given kind.
    pub fn new(exit: Exit, text: impl Into<String>) -> ToolError {
        let text = text.into();
        ToolError { exit, text }
    }

    /// The command line asks for something that cannot be.
    pub fn usage(text: impl Into<String>) -> ToolError {
        ToolError::new(Exit::Usage, text)
    }

    /// It was tried and failed.
    pub fn failed(text: impl Into<String>) -> ToolError {
        ToolError::new(Exit::Failed, text)
    }
}

impl fmt::Display for ToolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What the client of the cluster says.
impl From<ClientError> for ToolError {
    fn from(error: ClientError) -> ToolError {
        let exit = match &error {
            ClientError::Invalid { .. } => Exit::Usage,
            ClientError::NoLeader { .. } => Exit::Unreachable,
            ClientError::Unavailable { reason }
                if reason.starts_with("not enough alive") || reason.starts_with("no space") =>
            {
                Exit::Unreachable
            }
            _ if error.outcome() == Outcome::Unknown => Exit::Unknown,
            _ => Exit::Failed,
        };
        ToolError::new(exit, error.to_string())
    }
}

/// Local errors with their context are failures.
impl From<anyhow::Error> for ToolError {
    fn from(error: anyhow::Error) -> ToolError {
        ToolError::failed(format!("{error:#}"))
    }
}

/// Tells standard error what went wrong, after what a server has logged, and gives the process its
/// exit code.
pub fn finish(result: Result<(), ToolError>) -> ExitCode {
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&format!("error: {error}"));
            ExitCode::from(error.exit as u8)
        }
    };
    logging::finish();
    code
}

/// Writes a line to standard error, visible on a terminal. Nothing is left to be done if it is
/// closed.
pub fn tell(line: &str) {
    let line = format!("{line}\n");
    logging::say(&shown(line.as_bytes(), io::stderr().is_terminal()));
}

/// Writes data to standard output: as it is, or visible on a terminal. That its reader has gone
/// away (`tolerex get 1 | head -c 1`) is no error: it had what it wanted.
pub fn print(data: &[u8]) -> Result<(), ToolError> {
    let mut out = io::stdout().lock();
    let data = shown(data, out.is_terminal());
    match out.write_all(&data).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(ToolError::failed(format!(
            "cannot write to standard output: {error}"
        ))),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Reply;

    #[test]
    fn replies_become_exit_codes() {
        for (line, exit) in [
            (
                "not enough alive members (have 1, need 2)",
                Exit::Unreachable,
            ),
            (
                "no space on enough members (have 0, need 2)",
                Exit::Unreachable,
            ),
            ("no leader elected", Exit::Unreachable),
            (
                "no leader serves yet: 0 of 1 members have reported to the elected one",
                Exit::Unreachable,
            ),
            ("not leader, leader is h:1", Exit::Unreachable),
            (
                "timed out, the write may or may not have happened",
                Exit::Unknown,
            ),
            ("timed out", Exit::Failed),
            ("busy, try again", Exit::Failed),
            ("message unavailable (replicas: )", Exit::Failed),
            ("unknown command", Exit::Failed),
        ] {
            let reply = Reply {
                line: format!("ERROR: {line}").into_bytes(),
                ..Reply::default()
            };
            let error = ToolError::from(reply.done().expect_err(line));
            assert_eq!(error.exit, exit, "{line}");
        }
    }
}
