//! Ends what an earlier `tolerex up` left running in the same data directory.
//!
//! Children stop when their `up` dies, but that takes them a moment, and one that is stopped
//! (SIGSTOP) cannot. A pid in `cluster.json` may belong to somebody else by now, so a process
//! counts as ours only if its command line runs a Tolerex server in the very directory of that row.
//! It is signalled through a pidfd opened *before* that check: a pid that changes hands in between
//! is never signalled.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::manifest::{Manifest, Process};

/// How long a left-over process may take to stop in order. It is longer than a server gives itself.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the kernel may take to end a process that was killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Ends all processes of `manifest` that still run; gives a line for each.
pub fn end_all(manifest: &Manifest) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for process in &manifest.processes {
        if let Some(pidfd) = open(process) {
            signal(&pidfd, Signal::TERM, process)?;
            // One that is stopped gets the signal only when it goes on.
            signal(&pidfd, Signal::CONT, process)?;
            found.push((process, pidfd));
        }
    }
    let mut lines = Vec::new();
    for (process, pidfd) in found {
        let (name, pid) = (&process.name, process.pid);
        if wait(&pidfd, STOP_TIMEOUT)? {
            lines.push(format!(
                "ended {name} (pid {pid}), left over from an earlier run"
            ));
            continue;
        }
        signal(&pidfd, Signal::KILL, process)?;
        if !wait(&pidfd, KILL_TIMEOUT)? {
            bail!("{name} (pid {pid}) is left over from an earlier run and cannot be ended");
        }
        lines.push(format!(
            "killed {name} (pid {pid}), left over from an earlier run"
        ));
    }
    Ok(lines)
}

/// A handle on the process of a row, if it runs and is that process.
fn open(process: &Process) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(process.pid).ok()?)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    let command_line = fs::read(format!("/proc/{}/cmdline", process.pid)).ok()?;
    is_server_of(&command_line, process).then_some(pidfd)
}

/// Whether a command line (arguments that each end in a zero byte) is that of `process`, as
/// `children` starts it.
fn is_server_of(command_line: &[u8], process: &Process) -> bool {
    let args: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    let data_dir = process.data_dir.as_os_str().as_encoded_bytes();
    let runs_role = args.get(1) == Some(&process.role.as_str().as_bytes());
    let mut pairs = args.iter().zip(args.iter().skip(1));
    runs_role && pairs.any(|(flag, value)| *flag == b"--data-dir" && *value == data_dir)
}

fn signal(pidfd: &OwnedFd, signal: Signal, process: &Process) -> Result<()> {
    match pidfd_send_signal(pidfd, signal) {
        // It has ended by itself.
        Err(rustix::io::Errno::SRCH) => Ok(()),
        sent => sent.with_context(|| {
            let (name, pid) = (&process.name, process.pid);
            format!("{name} (pid {pid}) is left over from an earlier run and cannot be signalled")
        }),
    }
}

/// Waits for the process's end; true when it has ended.
fn wait(pidfd: &OwnedFd, timeout: Duration) -> Result<bool> {
    let timeout = Timespec::try_from(timeout).context("a constant of some seconds")?;
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    Ok(poll(&mut fds, Some(&timeout)).context("cannot wait for a process")? > 0)
}

#[cfg(test)]
mod tests {
    use super::super::manifest::{Role, State};
    use super::*;
    use std::path::Path;
    use std::process::{Child, Command};

    fn row(pid: u32, data_dir: &str) -> Process {
        Process {
            name: "member-1".to_owned(),
            role: Role::Member,
            pid,
            state: State::Running,
            data_dir: data_dir.into(),
            rpc: "127.0.0.1:1".to_owned(),
            hatokuse: None,
            http: None,
        }
    }

    #[test]
    fn only_a_server_of_the_same_directory_is_ours() {
        let process = row(1, "/d/member-1");
        let ours = b"/x/tolerex\0member\0--supervised\x005\0--data-dir\0/d/member-1\0";
        assert!(is_server_of(ours, &process));
        for other in [
            &b"/x/tolerex\0leader\0--data-dir\0/d/member-1\0"[..],
            b"/x/tolerex\0member\0--data-dir\0/d/member-2\0",
            b"vi\0/d/member-1\0",
            b"",
        ] {
            assert!(!is_server_of(other, &process));
        }
    }

    /// A process with the command line of a server of `/d/m` (a shell script of that name).
    fn server(dir: &Path, role: &str) -> Child {
        fs::write(dir.join(role), "while :; do sleep 0.05; done").expect("written");
        let mut command = Command::new("sh");
        command
            .current_dir(dir)
            .args([role, "--data-dir", "/d/m"])
            .spawn()
            .expect("a process")
    }

    fn manifest(pids: &[u32]) -> Manifest {
        Manifest {
            processes: pids.iter().map(|pid| row(*pid, "/d/m")).collect(),
        }
    }

    #[test]
    fn what_is_left_over_is_ended_and_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut child = server(dir.path(), "member");
        let pid = child.id();
        while !fs::read(format!("/proc/{pid}/cmdline"))
            .expect("runs")
            .starts_with(b"sh\0member")
        {
            crate::clock::sleep(Duration::from_millis(1));
        }
        let lines = end_all(&manifest(&[pid])).expect("ended");
        let expected = format!("ended member-1 (pid {pid}), left over from an earlier run");
        assert_eq!(lines, [expected]);
        assert!(!child.wait().expect("waited").success());
    }

    #[test]
    fn a_foreign_process_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut child = server(dir.path(), "leader");
        let lines = end_all(&manifest(&[child.id(), 0, u32::MAX])).expect("nothing to do");
        assert_eq!(lines, Vec::<String>::new());
        assert!(child.try_wait().expect("waited").is_none());
        child.kill().and_then(|()| child.wait()).expect("killed");
    }
}
