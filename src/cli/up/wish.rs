//! What `tolerex stop`, `kill` and `start` wish, done by the main thread of `tolerex up`, one at a
//! time: begun, then looked at until the process has ended or serves, or took too long.

use std::time::Duration;

use anyhow::Context;
use crossbeam_channel::Sender;
use rustix::process::Signal;

use super::super::args::UpArgs;
use super::super::exit::ToolError;
use super::children::{Notice, Running};
use super::control::{Answer, Request, Verb};
use super::manifest::Role;
use super::{Up, print, warn};
use crate::clock::Instant;
use crate::disk::private;

/// How long a single process may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a single process may take to say that it is ready after its start. A leader whose
/// members are down is ready after 2 s, and tells clients what it waits for.
const SERVE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a process that is to be started, and still runs, is given to end before the answer is
/// that it runs already. One that was just killed, by whomever, ends within a few milliseconds; the
/// kernel takes longer to free the memory of a big one.
const DYING_TIMEOUT: Duration = Duration::from_millis(500);

/// What was wished for a process, while it is being done.
pub(super) struct Wish {
    pub(super) verb: Verb,
    /// Its place among the children.
    pub(super) place: usize,
    deadline: Instant,
    answer: Sender<Answer>,
    /// It is started once it has ended: it may have been killed just now.
    awaits_end: bool,
}

impl Up {
    /// Begins what is wished for a process, or says at once why not.
    pub(super) fn take_wish(&mut self, request: Request, now: Instant) {
        let Request { verb, name, answer } = request;
        // What is said of a process is to be true now, not at the last look.
        self.bury_dead();
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
            return;
        };
        let child = &mut self.children[place];
        if self.wish.is_some() {
            refuse(ToolError::failed(
                "another process is being stopped or started",
            ));
            return;
        }
        let awaits_end = verb.starts() && child.is_running();
        match (verb, child.is_running()) {
            (Verb::Stop | Verb::Kill, false) => {
                refuse(ToolError::failed(format!("{name} does not run")));
                return;
            }
            (Verb::Replace, _) if child.planned.role != Role::Member => {
                let text = format!("{name} is no member: --replace is for members");
                refuse(ToolError::usage(text));
                return;
            }
            (Verb::Start | Verb::Replace, true) => {}
            (Verb::Stop, true) => {
                child.signal(Signal::TERM);
                child.signal(Signal::CONT);
            }
            (Verb::Kill, true) => child.signal(Signal::KILL),
            (Verb::Start | Verb::Replace, false) => {
                if let Err(error) = self.start_again(place, verb) {
                    refuse(error);
                    return;
                }
            }
        }
        let timeout = match verb {
            _ if awaits_end => DYING_TIMEOUT,
            Verb::Stop | Verb::Kill => STOP_TIMEOUT,
            Verb::Start | Verb::Replace => SERVE_TIMEOUT,
        };
        self.wish = Some(Wish {
            verb,
            place,
            deadline: now + timeout,
            answer,
            awaits_end,
        });
        self.pay();
    }

    /// Starts a process that does not run.
    fn start_again(&mut self, place: usize, verb: Verb) -> Result<(), ToolError> {
        let planned = &self.plan.processes[place];
        // As at the start of `up`: one that was removed is an empty one.
        private::create_dir_all(&planned.data_dir)
            .with_context(|| format!("cannot create {}", planned.data_dir.display()))?;
        let replaced = (verb == Verb::Replace).then(|| planned.name.clone());
        let args = UpArgs {
            replace: replaced.into_iter().collect(),
            ..self.args.clone()
        };
        self.children[place] = Running::start(&self.plan, planned, &args)?;
        self.owed.manifest = true;
        Ok(())
    }

    /// Starts the process that was awaited to end, once it has; the error if that failed.
    fn start_ended(&mut self, now: Instant) -> Option<ToolError> {
        let wish = self.wish.as_mut().filter(|wish| wish.awaits_end)?;
        let (place, verb) = (wish.place, wish.verb);
        if self.children[place].is_running() {
            return None;
        }
        (wish.awaits_end, wish.deadline) = (false, now + SERVE_TIMEOUT);
        self.start_again(place, verb).err()
    }

    /// Shows what processes say that a person must see.
    pub(super) fn show_notices(&mut self) {
        let dir = self.plan.dir.display();
        for child in &mut self.children {
            let Some(notice) = child.new_notice() else {
                continue;
            };
            if let Some(table) = &mut self.table {
                table.hide();
            }
            let name = &child.planned.name;
            warn(&match notice {
                Notice::Waits(waits_for) => format!(
                    "{name} is {waits_for}\n  here: tolerex stop {name} --data-dir {dir}, then \
                     tolerex start {name} [--replace] --data-dir {dir}"
                ),
                Notice::Lost(lost) => format!("{name}: {lost}"),
            });
        }
    }

    /// Answers the wish once it is fulfilled, or cannot be.
    pub(super) fn follow_wish(&mut self, now: Instant) {
        let failure = self.start_ended(now);
        let Some(wish) = &self.wish else {
            return;
        };
        if let Some(error) = failure {
            _ = wish.answer.try_send(Err(error));
            self.wish = None;
            return;
        }
        let child = &self.children[wish.place];
        let (name, pid, log) = (&child.planned.name, child.pid(), child.log().display());
        let is_late = now >= wish.deadline;
        let answer = match (wish.verb, child.is_running()) {
            (Verb::Stop | Verb::Kill, false) => Ok(format!("{name} (pid {pid}) has ended")),
            (Verb::Start | Verb::Replace, true) if wish.awaits_end && is_late => {
                Err(format!("{name} runs already, pid {pid}"))
            }
            (Verb::Start | Verb::Replace, true) if wish.awaits_end => return,
            (Verb::Start | Verb::Replace, true) if child.is_ready() => {
                Ok(format!("{name} runs, pid {pid}"))
            }
            (Verb::Start | Verb::Replace, false) => {
                Err(format!("{name} died at its start, see {log}"))
            }
            (Verb::Stop | Verb::Kill, true) if is_late => {
                let seconds = STOP_TIMEOUT.as_secs();
                Err(format!(
                    "{name} still runs after {seconds} s, pid {pid}, see {log}"
                ))
            }
            (Verb::Start | Verb::Replace, true) if is_late => {
                let seconds = SERVE_TIMEOUT.as_secs();
                Err(format!(
                    "{name} does not serve after {seconds} s, pid {pid}, see {log}"
                ))
            }
            (Verb::Stop | Verb::Kill | Verb::Start | Verb::Replace, true) => return,
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
