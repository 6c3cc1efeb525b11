//! The processes of a running local cluster, as children of this one.
//!
//! They are started from our own executable, in process groups of their own (a Ctrl-C at the
//! terminal reaches only `up`, which stops them in order), with both outputs in `NAME/NAME.log`.
//! One that dies, or cannot be started, is reported and not restarted. The log is renamed to
//! `NAME.log.1` at a start when it exceeds [`LOG_BYTES_MAX`]; while a process runs it does the same
//! itself.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::super::args::UpArgs;
use super::manifest::{Process, Role, State};
use super::setup::{self, Plan, Planned};
use crate::disk::private;
use crate::logging::LOG_BYTES_MAX;

/// How much of a log is looked at for its last lines.
const LOG_TAIL_BYTES: u64 = 8 << 10;

/// How much of a run's log is looked at for the line that says that it serves.
const LOG_HEAD_BYTES: u64 = 64 << 10;

/// How many lines are shown when a process has died.
const LOG_TAIL_LINES: usize = 8;

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
    /// Where this run begins in the log.
    log_start: u64,
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
        let opened = private::options().create(true).append(true).open(&log);
        let output = opened.with_context(|| format!("cannot write {}", log.display()))?;
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
            log_start,
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
            log_start: 0,
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
        let begin = || -> io::Result<Vec<u8>> {
            let mut file = File::open(&self.log)?;
            file.seek(SeekFrom::Start(self.log_start))?;
            let mut bytes = Vec::new();
            file.take(LOG_HEAD_BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let text = begin().unwrap_or_default();
        self.is_running()
            && text
                .split(|byte| *byte == b'\n')
                .any(|l| l.starts_with(b"ready rpc="))
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
        match last_lines(&self.log, self.log_start) {
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
        }
    }
    args
}

/// The last lines of a file, of what was written from `start` on.
fn last_lines(path: &Path, start: u64) -> io::Result<Vec<String>> {
    let mut file = File::open(path)?;
    let end = file.metadata()?.len();
    // The log of this run may have been put aside meanwhile.
    let start = if start > end { 0 } else { start };
    let from = start.max(end.saturating_sub(LOG_TAIL_BYTES));
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
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
        let all = last_lines(&path, 4).expect("readable");
        assert_eq!((all.len(), all[0].as_str()), (LOG_TAIL_LINES, "line 12"));
        let end = fs::metadata(&path).expect("a file").len();
        assert_eq!(last_lines(&path, end - 8).expect("readable"), ["line 19"]);
        assert!(last_lines(&path, end).expect("readable").is_empty());
    }
}
