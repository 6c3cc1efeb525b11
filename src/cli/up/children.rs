//! The processes of a running local cluster, as children of this one.
//!
//! They are started from our own executable, in process groups of their own (a Ctrl-C at the
//! terminal reaches only `up`, which stops them in order), with both outputs in `NAME/NAME.log`.
//! A child that dies, or cannot be started, is reported and not restarted. The log is renamed to
//! `NAME.log.1` at a start when it exceeds [`LOG_BYTES_MAX`]; while a process runs it does the same
//! itself.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::super::args::UpArgs;
use super::manifest::{Process, Role, State};
use super::setup::{self, Plan, Planned};
use crate::disk::private;
use crate::leader::gate::OLDER_COPY;
use crate::logging::LOG_BYTES_MAX;
use crate::member::registration::WAITING;
use crate::resources::memory;

/// How much of a log is looked at for its last lines.
const LOG_TAIL_BYTES: u64 = 8 << 10;

/// How much of a run's log is looked at for the line that says that it serves.
const LOG_HEAD_BYTES: u64 = 64 << 10;

/// How many lines are shown when a process has died.
const LOG_TAIL_LINES: usize = 8;

/// Parts of log lines of a process that `up` shows, because a person must act on them.
pub enum Notice {
    /// A member waits for somebody's decision.
    Waits(String),
    /// A leader has lost acknowledged writes.
    Lost(String),
}

/// A child that was started, or could not be.
pub struct Running {
    /// What it is.
    pub planned: Planned,
    /// `None` if it could not be started.
    child: Option<Child>,
    /// Its end, once it was seen.
    status: Option<ExitStatus>,
    /// What `cluster.json` says of it.
    state: State,
    log: PathBuf,
    /// The same, open: its lines can be shown when the directory was removed under the process.
    /// `None` if it was not started.
    log_file: Option<File>,
    /// Where this run begins in the log.
    log_start: u64,
    /// Up to which byte of the log was looked for what it waits for.
    log_seen: u64,
}

impl Running {
    /// Starts a process of the plan. To be called on the main thread, which lives as long as `up`:
    /// the kernel's signal at a parent's death is tied to the thread that started the child.
    pub fn start(plan: &Plan, planned: &Planned, args: &UpArgs) -> Result<Running> {
        let log = planned.data_dir.join(format!("{}.log", planned.name));
        if fs::metadata(&log).is_ok_and(|meta| meta.len() > LOG_BYTES_MAX) {
            let old = planned.data_dir.join(format!("{}.log.1", planned.name));
            fs::rename(&log, old).context("cannot put a log aside")?;
        }
        let mut options = private::options();
        let opened = options.create(true).append(true).read(true).open(&log);
        let output = opened.with_context(|| format!("cannot write {}", log.display()))?;
        let log_file = output.try_clone().context("cannot share a log")?;
        let log_start = output.metadata().map(|meta| meta.len()).unwrap_or(0);
        let executable = std::env::current_exe().context("cannot find this executable")?;
        let mut command = Command::new(executable);
        command
            .args(arguments(plan, planned, args))
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("cannot share a log")?)
            .stderr(output)
            .process_group(0);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", planned.name))?;
        Ok(Running {
            planned: planned.clone(),
            child: Some(child),
            status: None,
            state: State::Running,
            log,
            log_file: Some(log_file),
            log_start,
            log_seen: log_start,
        })
    }

    /// A process that could not be started, and counts as died.
    pub fn unstarted(planned: &Planned) -> Running {
        Running {
            planned: planned.clone(),
            child: None,
            status: None,
            state: State::Died,
            log: planned.data_dir.join(format!("{}.log", planned.name)),
            log_file: None,
            log_start: 0,
            log_seen: 0,
        }
    }

    /// Its pid, also after its end; 0 if it was not started.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Its row in `cluster.json`.
    pub fn row(&self) -> Process {
        setup::row(&self.planned, self.pid(), self.state)
    }

    /// Whether its end was not seen yet.
    pub fn is_running(&self) -> bool {
        self.child.is_some() && self.status.is_none()
    }

    /// Whether it ended by itself.
    pub fn has_died(&self) -> bool {
        self.state == State::Died
    }

    /// Whether it has said that it serves.
    pub fn is_ready(&self) -> bool {
        let file = self.open_log();
        let text = file.map(|file| read_part(&file, self.log_start, LOG_HEAD_BYTES));
        let text = text.and_then(Result::ok).unwrap_or_default();
        self.is_running()
            && text
                .split(|byte| *byte == b'\n')
                .any(|l| l.starts_with(b"ready rpc="))
    }

    /// The latest line of its log, since the last call, that a person must see: what a member waits
    /// for, or what a leader has lost.
    pub fn new_notice(&mut self) -> Option<Notice> {
        let file = self.open_log()?;
        if file.metadata().ok()?.len() < self.log_seen {
            // The process has put its log aside and goes on in a new file.
            self.log_seen = 0;
        }
        let bytes = read_part(&file, self.log_seen, LOG_HEAD_BYTES).ok()?;
        // A line that is being written is looked at when it is whole; one longer than all that is
        // read is none of those.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n');
        let is_full = bytes.len() as u64 == LOG_HEAD_BYTES;
        let length = whole.map_or(if is_full { bytes.len() } else { 0 }, |at| at + 1);
        self.log_seen += length as u64;
        let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
        let notice = |line: &str| {
            let begins = |mark: &str| line.find(mark).map(|at| line[at..].to_owned());
            let waits = || begins(WAITING).map(Notice::Waits);
            begins(OLDER_COPY).map(Notice::Lost).or_else(waits)
        };
        let told = text.lines().rev().find_map(notice);
        told.filter(|_| self.is_running())
    }

    /// The file that it logs to now, or, if that is gone with its directory, the one that it began
    /// with.
    fn open_log(&self) -> Option<File> {
        let began = self.log_file.as_ref()?;
        File::open(&self.log).or_else(|_| began.try_clone()).ok()
    }

    /// The file with its log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Looks whether it has ended since the last look; gives its status then. `state` is what it
    /// becomes.
    pub fn poll(&mut self, state: State) -> Option<ExitStatus> {
        if self.status.is_some() {
            return None;
        }
        // An error means that the child cannot be waited for: it is ours, so it cannot happen.
        let status = self
            .child
            .as_mut()?
            .try_wait()
            .expect("our own child can be waited for")?;
        (self.status, self.state) = (Some(status), state);
        Some(status)
    }

    /// Sends a signal, if it still runs. Its pid is not reused before its end was seen.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        if let (true, Some(pid)) = (self.is_running(), pid) {
            // It may have ended by itself meanwhile.
            _ = kill_process(pid, signal);
        }
    }

    /// Says how it ended, with the last lines of its log.
    pub fn obituary(&self, status: ExitStatus) -> String {
        let (name, pid, log) = (&self.planned.name, self.pid(), self.log.display());
        let mut text = format!("{name} (pid {pid}) died: {status}");
        let file = self.open_log();
        let lines = file.map_or(Ok(Vec::new()), |file| last_lines(&file, self.log_start));
        match lines {
            Ok(lines) if !lines.is_empty() => {
                text += &format!("; the last lines of {log}:");
                lines.iter().for_each(|line| text += &format!("\n  {line}"));
            }
            Ok(_) => text += &format!("; {log} says nothing"),
            Err(error) => text += &format!("; {log} cannot be read: {error}"),
        }
        text
    }
}

/// The command line of a process: what differs between processes, and the settings file for the
/// rest.
fn arguments(plan: &Plan, planned: &Planned, asked: &UpArgs) -> Vec<String> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let certs = plan.dir.join("certs");
    let pem = |end: &str| text(&certs.join(format!("{}.{end}", planned.name)));
    let mut args = vec![planned.role.as_str().to_owned()];
    let mut flag = |name: &str, value: String| args.extend([format!("--{name}"), value]);
    flag("supervised", std::process::id().to_string());
    flag(
        "config",
        text(&setup::config_path(&plan.dir, &planned.name)),
    );
    flag("name", planned.name.clone());
    flag("base-dir", text(&plan.dir));
    flag("data-dir", text(&planned.data_dir));
    flag("cluster-id", plan.cluster_id.to_string());
    flag("rpc-bind", planned.addresses.rpc.to_string());
    flag("tls-cert", pem("crt"));
    flag("tls-key", pem("key"));
    if let Some(total) = asked.memory_limit.or_else(memory::limit) {
        let alike = plan.processes.iter().filter(|one| one.role == planned.role);
        let share = memory::share_of(total, alike.count());
        flag("memory-limit", share.to_string());
    }
    match planned.role {
        Role::Leader => {
            if let Some(address) = planned.addresses.hatokuse {
                flag("hatokuse-bind", address.to_string());
            }
            if let Some(address) = planned.addresses.http {
                flag("http-bind", address.to_string());
            }
            if let Some(strategy) = asked.strategy {
                flag("strategy", strategy.as_str().to_owned());
            }
            let is_first = setup::is_first(planned);
            args.push(format!("--bootstrap={}", plan.bootstrap && is_first));
        }
        Role::Member => {
            flag("leaders", setup::leader_addresses(&plan.processes));
            if let Some(io) = asked.io {
                flag("io", io.as_str().to_owned());
            }
            if let Some(engine) = asked.engine {
                flag("engine", engine.kind().to_string());
            }
            if asked.replace.contains(&planned.name) {
                args.push("--replace".to_owned());
            }
        }
    }
    args
}

/// Up to `length_max` bytes of a file from `start` on.
fn read_part(file: &File, start: u64, length_max: u64) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len().saturating_sub(start);
    let length = usize::try_from(length.min(length_max)).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, start)?;
    Ok(bytes)
}

/// The last lines of a file, of what was written from `start` on.
fn last_lines(file: &File, start: u64) -> io::Result<Vec<String>> {
    let end = file.metadata()?.len();
    // The log of this run may have been put aside meanwhile.
    let start = if start > end { 0 } else { start };
    let from = start.max(end.saturating_sub(LOG_TAIL_BYTES));
    let bytes = read_part(file, from, LOG_TAIL_BYTES)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let skip = lines.len().saturating_sub(LOG_TAIL_LINES);
    Ok(lines.into_iter().skip(skip).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_those_of_this_run() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x.log");
        let lines: String = (0..20).map(|number| format!("line {number}\n")).collect();
        fs::write(&path, format!("old\n{lines}")).expect("written");
        let file = File::open(&path).expect("opened");
        let all = last_lines(&file, 4).expect("readable");
        assert_eq!((all.len(), all[0].as_str()), (LOG_TAIL_LINES, "line 12"));
        let end = fs::metadata(&path).expect("a file").len();
        assert_eq!(last_lines(&file, end - 8).expect("readable"), ["line 19"]);
        assert!(last_lines(&file, end).expect("readable").is_empty());
    }
}
