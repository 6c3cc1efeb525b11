//! `tolerex up`: a whole cluster on this machine, from one command.
//!
//! It sets up the data directory ([`setup`]), ends what an earlier run left ([`leftover`]), checks
//! the ports ([`ports`]), starts each process as a child ([`children`]), keeps `cluster.json`
//! ([`manifest`]), says when the cluster serves ([`readiness`]), reports children that die, and
//! stops all in order: leaders first, so that no client sees members go, then members. Meanwhile
//! single ones are stopped and started on demand ([`control`]), and a terminal shows how they are
//! ([`live`]).
//!
//! A process that cannot be started, or dies, is reported, and the others go on.
//!
//! Threads: `main` starts and watches the children; `ready`, `control` and, on a terminal, `table`
//! send it events through one bounded queue, `signal` through one of its own ([`ending`]). At the
//! end the children go first: none of the threads can keep `main` from stopping them.

pub mod children;
pub mod control;
mod directory;
mod ending;
pub mod leftover;
pub mod live;
pub mod manifest;
mod owed;
pub mod ports;
pub mod readiness;
mod remake;
pub mod setup;
mod wish;

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::process::Signal;

use super::args::UpArgs;
use super::exit::{ToolError, tell};
use super::visible::shown;
use crate::clock::{Clock, SystemClock};
use crate::disk::{lock, private};
use crate::resources::descriptors::Descriptors;
use crate::threads::{StopSignal, Thread};
use children::Running;
use control::{Control, Request};
use ending::Ending;
use manifest::{Manifest, Role, State};
use owed::Owed;
use readiness::Readiness;
use setup::Plan;
use wish::Wish;

/// How often children are looked at. A death is reported within it; a tenth of it would only burn
/// time, ten times it would no longer be "at once".
const CHILD_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How long the processes of one role may take to stop before they are killed. Servers give
/// themselves 5 s for what is in flight.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the cluster may take before what is missing is named.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// Events that may wait for `main`, which takes them within [`CHILD_POLL_INTERVAL`]. When it is
/// full a table is dropped (the next one comes), and `ready` and `control` wait.
const EVENTS_MAX: usize = 16;

/// What `main` waits for.
enum Event {
    /// What the leader says of the cluster.
    Status(Readiness),
    /// The same for a person.
    Table(String),
    /// A process is to be stopped or started.
    Wish(Request),
}

/// Runs `tolerex up` until it is told to stop.
pub fn run(args: &UpArgs) -> Result<(), ToolError> {
    Descriptors::raise();
    // What cannot be is refused before a directory is made for it.
    directory::check(&std::path::absolute(&args.data_dir).unwrap_or_default())?;
    setup::plan(
        args,
        &args.data_dir,
        remake::read(&args.data_dir)?.0.as_ref(),
    )?;
    let dir = directory::make(&args.data_dir)?;
    let lock = directory::Lock::take(&dir)?;
    private::warnings(&dir, &[])
        .iter()
        .for_each(|warning| warn(&format!("warning: {warning}")));
    let (existing, remade) = remake::read(&dir)?;
    remade
        .iter()
        .for_each(|line| warn(&format!("warning: {line}")));
    let processes = setup::plan(args, &dir, existing.as_ref())?;
    if let Some(existing) = &existing {
        leftover::end_all(existing)?
            .iter()
            .for_each(|line| warn(line));
    }
    let wanted = processes.iter();
    ports::check_free(wanted.map(|planned| (planned.name.as_str(), planned.addresses)))?;
    let plan = setup::prepare(args, &dir, processes, existing.as_ref())?;
    plan.warnings
        .iter()
        .for_each(|warning| warn(&format!("warning: {warning}")));

    let (sender, events) = bounded(EVENTS_MAX);
    let (ending, signals) = Ending::watch()?;
    let mut up = Up {
        children: Vec::with_capacity(plan.processes.len()),
        before: existing.unwrap_or_default(),
        plan,
        lock,
        args: args.clone(),
        wish: None,
        owed: Owed::default(),
        table: None,
        events,
        ending,
        helpers: Helpers::default(),
    };
    // Children must not outlive an error on the way, so all ends lead through `stop`.
    let served = up.start().and_then(|()| up.serve(sender));
    let stopped = up.stop();
    signals.finish();
    served.and(stopped)
}

/// A running local cluster.
struct Up {
    plan: Plan,
    /// The lock of the data directory.
    lock: directory::Lock,
    args: UpArgs,
    /// In the order of the plan; while they are started, its first ones.
    children: Vec<Running>,
    /// What `cluster.json` said of the last run.
    before: Manifest,
    wish: Option<Wish>,
    owed: Owed,
    /// On a terminal, once the cluster is ready.
    table: Option<live::Table>,
    events: Receiver<Event>,
    ending: Ending,
    helpers: Helpers,
}

/// The threads that send events.
#[derive(Default)]
struct Helpers {
    stop: StopSignal,
    threads: Vec<Thread>,
    control: Option<Control>,
}

impl Helpers {
    /// Tells all to end. Their last events may wait for room in the queue.
    fn stop(&mut self) {
        self.stop.stop();
        self.control.iter_mut().for_each(Control::stop);
    }

    fn are_finished(&self) -> bool {
        let control = self.control.as_ref();
        control.is_none_or(Control::is_finished) && self.threads.iter().all(Thread::is_finished)
    }

    fn join(&mut self, dir: &Path) {
        self.threads.drain(..).for_each(Thread::join);
        if let Some(control) = self.control.take() {
            control.finish(dir);
        }
    }
}

impl Up {
    fn start(&mut self) -> Result<(), ToolError> {
        // The set-up is complete, whatever becomes of the start.
        self.write_manifest()?;
        for planned in &self.plan.processes {
            let made = private::create_dir_all(&planned.data_dir)
                .with_context(|| format!("cannot create {}", planned.data_dir.display()));
            let started = made.and_then(|()| Running::start(&self.plan, planned, &self.args));
            let child = started.unwrap_or_else(|error| {
                warn(&format!("{} died at its start: {error:#}", planned.name));
                Running::unstarted(planned)
            });
            self.children.push(child);
            // At once: the next `up` must find it if we are killed now.
            self.write_manifest()?;
        }
        // For one start: whoever starts one of them again says so again.
        self.args.replace.clear();
        for child in self.children.iter().filter(|child| child.is_running()) {
            let planned = &child.planned;
            let (name, role, pid) = (&planned.name, planned.role.as_str(), child.pid());
            let mut line = format!(
                "{name:10} {role:6} pid {pid:<7} rpc {}",
                planned.addresses.rpc
            );
            if let Some(address) = planned.addresses.hatokuse {
                line += &format!(" hatokuse {address}");
            }
            if let Some(address) = planned.addresses.http {
                line += &format!(" http {address}");
            }
            self.say(&line);
        }
        Ok(())
    }

    /// Watches until the user wants the end, or no child is left.
    fn serve(&mut self, sender: Sender<Event>) -> Result<(), ToolError> {
        self.start_threads(&sender)?;
        let wishes = Control::start(&self.plan.dir, move |request| {
            // The receiver lives as long as this thread, which `stop` joins.
            _ = sender.send(Event::Wish(request));
        });
        match wishes {
            Ok(control) => self.helpers.control = Some(control),
            Err(error) => warn(&format!(
                "warning: stop, kill and start do not work: {error:#}"
            )),
        }
        self.watch_children()
    }

    /// Starts the threads that ask the leader how it is.
    fn start_threads(&mut self, sender: &Sender<Event>) -> Result<(), ToolError> {
        let ready = sender.clone();
        let stop = self.helpers.stop.clone();
        let thread = readiness::watch(&self.plan, stop, move |readiness| {
            // The receiver lives as long as this thread, which `stop` joins.
            _ = ready.send(Event::Status(readiness));
        })?;
        self.helpers.threads.push(thread);
        if self.is_live() {
            let sender = sender.clone();
            let addresses = self.plan.client_addresses();
            let table = live::watch(addresses, self.helpers.stop.clone(), move |table| {
                _ = sender.try_send(Event::Table(table));
            });
            self.helpers.threads.push(table?);
        }
        Ok(())
    }

    /// Whether somebody looks at a live table.
    fn is_live(&self) -> bool {
        !self.args.quiet && io::stdout().is_terminal()
    }

    fn watch_children(&mut self) -> Result<(), ToolError> {
        let clock = SystemClock::new();
        let deadline = clock.now() + READY_TIMEOUT;
        let mut newest = Readiness::default();
        let (mut is_ready, mut is_late) = (false, false);
        let mut look_at = clock.now();
        loop {
            if clock.now() >= look_at {
                look_at = clock.now() + lock::CHECK_INTERVAL;
                if let Some(line) = self.lock.look() {
                    warn(&line);
                }
            }
            match self.events.recv_timeout(CHILD_POLL_INTERVAL) {
                Ok(Event::Status(readiness)) => {
                    let is_new = |line: &&String| !newest.refusals.contains(line);
                    readiness
                        .refusals
                        .iter()
                        .filter(is_new)
                        .for_each(|line| warn(line));
                    newest = readiness;
                    self.owed.gathered |= newest.is_gathered;
                }
                Ok(Event::Table(text)) => {
                    if let Some(table) = &mut self.table {
                        table.show(&text);
                    }
                }
                Ok(Event::Wish(request)) => self.take_wish(request, clock.now()),
                Err(_) => {}
            }
            if self.ending.is_wanted() {
                return Ok(());
            }
            self.bury_dead();
            self.pay();
            self.show_notices();
            self.follow_wish(clock.now());
            // Those that were told to end may be started again.
            if self.children.iter().all(Running::has_died) {
                return Err(ToolError::failed("every process has died"));
            }
            if is_ready {
                continue;
            }
            if !is_late && clock.now() >= deadline {
                is_late = true;
                warn(&newest.complaint());
            }
            // Those that have died are not waited for: that was reported.
            let mut missing = newest.missing.iter();
            let is_complete = missing.all(|name| self.has_died(name));
            if newest.serves() && (is_late || is_complete) {
                is_ready = true;
                self.announce(&newest);
            }
        }
    }

    fn has_died(&self, name: &str) -> bool {
        let mut children = self.children.iter();
        children.any(|child| child.planned.name == name && child.has_died())
    }

    /// Reports children that have died; `cluster.json` is to say so.
    fn bury_dead(&mut self) {
        let wish = self.wish.as_ref().filter(|wish| !wish.verb.starts());
        let expected = wish.map(|wish| wish.place);
        let mut reports = Vec::new();
        let mut has_ended = false;
        for (place, child) in self.children.iter_mut().enumerate() {
            let is_expected = expected == Some(place);
            let state = if is_expected {
                State::Stopped
            } else {
                State::Died
            };
            if let Some(status) = child.poll(state) {
                has_ended = true;
                if !is_expected {
                    reports.push(child.obituary(status));
                }
            }
        }
        if let (false, Some(table)) = (reports.is_empty(), &mut self.table) {
            table.hide();
        }
        reports.iter().for_each(|report| warn(report));
        self.owed.manifest |= has_ended;
    }

    fn announce(&mut self, readiness: &Readiness) {
        self.owed.bootstrapped = true;
        self.pay();
        // A leader that is started again finds the group that exists.
        self.plan.bootstrap = false;
        self.table = self.is_live().then(live::Table::default);
        let address = &readiness.leader;
        let (members, tolerance) = (readiness.registered, readiness.tolerance);
        let lost = tolerance.saturating_sub(1);
        let (ip, port) = address.rsplit_once(':').unwrap_or((address, ""));
        let of = match self.plan.of_role(Role::Leader).count() {
            1 => String::new(),
            leaders => format!(" of {leaders} leaders"),
        };
        let members = match self.plan.of_role(Role::Member).count() {
            1 => format!("{members} member"),
            expected if expected == members => format!("{members} members"),
            expected => format!("{members} of {expected} members"),
        };
        print(&format!(
            "ready: {address}{of}, {members}, tolerance {tolerance} ({lost} may be lost); \
             try: printf 'SET 1 hello\\nGET 1\\n' | nc -N {ip} {port}"
        ));
    }

    /// Ends all children, leaders first. A second wish for the end hurries.
    fn stop(&mut self) -> Result<(), ToolError> {
        self.table = None;
        self.helpers.stop();
        // Whoever waits for an answer learns that it is over.
        self.wish = None;
        let mut is_clean = true;
        for role in [Role::Leader, Role::Member] {
            self.signal(role, Signal::TERM);
            // One that is stopped (SIGSTOP) ends only when it goes on.
            self.signal(role, Signal::CONT);
            is_clean &= self.wait_for(role);
        }
        while !self.helpers.are_finished() {
            drop(self.events.recv_timeout(CHILD_POLL_INTERVAL));
        }
        self.helpers.join(&self.plan.dir);
        self.write_manifest()?;
        if is_clean {
            self.say("stopped");
            return Ok(());
        }
        Err(ToolError::failed("not every process stopped in order"))
    }

    /// Waits for the end of all of a role; true if each ended by itself and without an error.
    fn wait_for(&mut self, role: Role) -> bool {
        let clock = SystemClock::new();
        let deadline = clock.now() + STOP_TIMEOUT;
        let (mut is_clean, mut killed) = (true, false);
        loop {
            for child in self
                .children
                .iter_mut()
                .filter(|child| child.planned.role == role)
            {
                if let Some(status) = child.poll(State::Stopped)
                    && !status.success()
                {
                    warn(&format!("{} ended with {status}", child.planned.name));
                    is_clean = false;
                }
            }
            let mut of_role = self
                .children
                .iter()
                .filter(|child| child.planned.role == role);
            if !of_role.any(Running::is_running) {
                return is_clean;
            }
            drop(self.events.recv_timeout(CHILD_POLL_INTERVAL));
            if !killed && (self.ending.is_urgent() || clock.now() >= deadline) {
                warn(&format!("killing each {} that still runs", role.as_str()));
                self.signal(role, Signal::KILL);
                killed = true;
            }
        }
    }

    fn signal(&self, role: Role, signal: Signal) {
        let of_role = self
            .children
            .iter()
            .filter(|child| child.planned.role == role);
        of_role.for_each(|child| child.signal(signal));
    }

    fn write_manifest(&self) -> Result<(), ToolError> {
        if self.lock.is_lost() {
            return Ok(());
        }
        let rows = self
            .plan
            .processes
            .iter()
            .enumerate()
            .map(|(place, planned)| {
                if let Some(child) = self.children.get(place) {
                    return child.row();
                }
                let before = self
                    .before
                    .processes
                    .iter()
                    .find(|row| row.name == planned.name);
                setup::row(planned, before.map_or(0, |row| row.pid), State::Stopped)
            });
        let processes = rows.collect();
        Ok(Manifest { processes }.write(&self.plan.dir)?)
    }

    fn say(&self, line: &str) {
        if !self.args.quiet {
            print(line);
        }
    }
}

/// Writes a line to standard output. That nobody reads it must not end the cluster.
fn print(line: &str) {
    let mut out = io::stdout().lock();
    let line = format!("{line}\n");
    let line = shown(line.as_bytes(), out.is_terminal());
    _ = out.write_all(&line).and_then(|()| out.flush());
}

fn warn(line: &str) {
    tell(line);
}
