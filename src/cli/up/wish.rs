//! What `tolerex stop`, `kill` and `start` wish, done by the main thread of `tolerex up`, one at a
//! time: begun, then looked at until the process has ended or serves, or took too long.

use std::time::Duration;

use crossbeam_channel::Sender;
use rustix::process::Signal;

use super::super::exit::ToolError;
use super::children::Running;
use super::control::{Answer, Request, Verb};
use super::{Up, print};
use crate::clock::Instant;

/// How long a single process may take to stop, or to serve after its start.
const WISH_TIMEOUT: Duration = Duration::from_secs(10);

/// What was wished for a process, while it is being done.
pub(super) struct Wish {
    pub(super) verb: Verb,
    /// Its place among the children.
    pub(super) place: usize,
    deadline: Instant,
    answer: Sender<Answer>,
}

impl Up {
    /// Begins what is wished for a process, or says at once why not.
    pub(super) fn take_wish(&mut self, request: Request, now: Instant) -> Result<(), ToolError> {
        let Request { verb, name, answer } = request;
        // An answer that nobody waits for any more is dropped.
        let refuse = |error| _ = answer.try_send(Err(error));
        let names: Vec<&str> = self
            .children
            .iter()
            .map(|c| c.planned.name.as_str())
            .collect();
        let Some(place) = names.iter().position(|known| *known == name) else {
            let text = format!("there is no {name}; accepted: {}", names.join(", "));
            refuse(ToolError::usage(text));
            return Ok(());
        };
        let child = &mut self.children[place];
        if self.wish.is_some() {
            refuse(ToolError::failed(
                "another process is being stopped or started",
            ));
            return Ok(());
        }
        match (verb, child.is_running()) {
            (Verb::Stop | Verb::Kill, false) => {
                refuse(ToolError::failed(format!("{name} does not run")));
                return Ok(());
            }
            (Verb::Start, true) => {
                let text = format!("{name} runs already, pid {}", child.pid());
                refuse(ToolError::failed(text));
                return Ok(());
            }
            (Verb::Stop, true) => {
                child.signal(Signal::TERM);
                child.signal(Signal::CONT);
            }
            (Verb::Kill, true) => child.signal(Signal::KILL),
            (Verb::Start, false) => {
                match Running::start(&self.plan, &self.plan.processes[place], &self.args) {
                    Ok(running) => *child = running,
                    Err(error) => {
                        refuse(error.into());
                        return Ok(());
                    }
                }
                self.write_manifest()?;
            }
        }
        self.wish = Some(Wish {
            verb,
            place,
            deadline: now + WISH_TIMEOUT,
            answer,
        });
        Ok(())
    }

    /// Answers the wish once it is fulfilled, or cannot be.
    pub(super) fn follow_wish(&mut self, now: Instant) {
        let Some(wish) = &self.wish else {
            return;
        };
        let child = &self.children[wish.place];
        let (name, pid, log) = (&child.planned.name, child.pid(), child.log().display());
        let is_late = now >= wish.deadline;
        let answer = match (wish.verb, child.is_running()) {
            (Verb::Stop | Verb::Kill, false) => Ok(format!("{name} (pid {pid}) has ended")),
            (Verb::Start, true) if child.is_ready() => Ok(format!("{name} runs, pid {pid}")),
            (Verb::Start, false) => Err(format!("{name} died at its start, see {log}")),
            (Verb::Stop | Verb::Kill, true) if is_late => {
                let seconds = WISH_TIMEOUT.as_secs();
                Err(format!(
                    "{name} still runs after {seconds} s, pid {pid}, see {log}"
                ))
            }
            (Verb::Start, true) if is_late => {
                let seconds = WISH_TIMEOUT.as_secs();
                Err(format!(
                    "{name} does not serve after {seconds} s, pid {pid}, see {log}"
                ))
            }
            (Verb::Stop | Verb::Kill | Verb::Start, true) => return,
        };
        if let Some(table) = &mut self.table {
            table.hide();
        }
        if let (Ok(line), false) = (&answer, self.args.quiet) {
            print(line);
        }
        _ = wish.answer.try_send(answer.map_err(ToolError::failed));
        self.wish = None;
    }
}
