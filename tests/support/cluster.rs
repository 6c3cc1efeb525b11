//! Real processes for tests: a whole cluster by `tolerex up`, or single servers.
//!
//! Everything is killed when its owner is dropped; if that is because a test failed, the logs are
//! shown first. A cluster gets ports that no other test of this machine uses: the UDP port of the
//! same number as its HaToKuSe port is held while it lives, as a sign to other test processes.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tolerex::clock::{Clock, SystemClock, sleep};
use tolerex::threads::{self, Thread};

use super::client::Client;
use super::wait_until;

/// The tool.
pub const TOLEREX: &str = env!("CARGO_BIN_EXE_tolerex");
/// The leader by itself.
pub const LEADER: &str = env!("CARGO_BIN_EXE_leader");
/// The member by itself.
pub const MEMBER: &str = env!("CARGO_BIN_EXE_member");

/// How long a cluster may take to be ready on a loaded machine.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// How long an orderly stop may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(40);

/// Offsets are multiples of this, so that the ports of two clusters of up to 10 members differ.
const OFFSET_STEP: u16 = 20;

/// Runs the tool to its end.
pub fn tolerex(args: &[&str]) -> Output {
    Command::new(TOLEREX)
        .args(args)
        .output()
        .expect("the tool runs")
}

/// Runs a command to its end, which must come within `timeout`.
pub fn run(command: &mut Command, timeout: Duration) -> Output {
    let out = tempfile::NamedTempFile::new().expect("a file");
    let errors = tempfile::NamedTempFile::new().expect("a file");
    command.stdin(Stdio::null());
    command.stdout(out.reopen().expect("opened"));
    command.stderr(errors.reopen().expect("opened"));
    let mut child = command.spawn().expect("it runs");
    let clock = SystemClock::new();
    let deadline = clock.now() + timeout;
    let status = loop {
        if let Some(status) = child.try_wait().expect("our child") {
            break Some(status);
        }
        if clock.now() >= deadline {
            break None;
        }
        sleep(Duration::from_millis(10));
    };
    kill_child(&mut child);
    let output = Output {
        status: status.unwrap_or_default(),
        stdout: fs::read(out.path()).expect("read"),
        stderr: fs::read(errors.path()).expect("read"),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        status.is_some(),
        "{command:?} runs on after {timeout:?}:\n{said}"
    );
    output
}

/// Ports that are ours while the value lives.
pub struct Ports {
    /// For `--port-offset`.
    pub offset: u16,
    _signs: Vec<UdpSocket>,
}

impl Ports {
    /// Looks for free ports, below those that the system gives to outgoing connections.
    pub fn find() -> Ports {
        Ports::find_for(1)
    }

    /// The same for so many leaders: each has the place of another cluster's first one.
    pub fn find_for(leaders: u16) -> Ports {
        for _ in 0..1000 {
            let offset = fastrand::u16(50..1200) * OFFSET_STEP;
            let signs = (0..leaders).map(|place| 6666 + offset + 100 * place);
            let signs: Result<Vec<_>, _> = signs
                .map(|port| UdpSocket::bind(("127.0.0.1", port)))
                .collect();
            if let Ok(_signs) = signs {
                return Ports { offset, _signs };
            }
        }
        panic!("no free ports");
    }
}

/// A new directory with the mode that `up` gives to one, or it would warn.
fn private_dir() -> TempDir {
    let mode = fs::Permissions::from_mode(tolerex::disk::private::DIR_MODE);
    let dir = tempfile::Builder::new().permissions(mode).tempdir();
    dir.expect("a directory")
}

/// How many leaders these flags of `tolerex up` ask for.
fn leaders_of(flags: &[&str]) -> u16 {
    let mut rest = flags.iter().skip_while(|flag| **flag != "--leaders");
    let count = rest.nth(1).and_then(|count| count.parse().ok());
    count.unwrap_or(1)
}

/// A cluster that `tolerex up` runs.
pub struct Cluster {
    dir: TempDir,
    flags: Vec<String>,
    environment: Vec<(String, String)>,
    /// What a shell does before it becomes `up`: a umask, a limit, an ignored signal.
    prelude: Option<String>,
    /// A directory in it that is a disk of its own, and that disk's size in bytes.
    small_disk: Option<(String, u64)>,
    ports: Ports,
    up: Option<Child>,
    /// Takes what `up` still prints, so that it never waits for us.
    drain: Option<Thread>,
    /// The line by which `up` said that it is ready.
    ready: String,
}

impl Cluster {
    /// Sets a cluster up and waits until it is ready. `flags` are those of `tolerex up`.
    pub fn start(flags: &[&str]) -> Cluster {
        Cluster::start_on(flags, &[], None)
    }

    /// The same with environment variables, which the servers inherit.
    pub fn start_with(flags: &[&str], environment: &[(&str, &str)]) -> Cluster {
        Cluster::start_on(flags, environment, None)
    }

    /// The same, with a directory on a small disk of its own (tmpfs, in a mount namespace that goes
    /// with the processes). `None` if this machine does not allow that.
    pub fn start_on_small_disk(flags: &[&str], dir: &str, bytes: u64) -> Option<Cluster> {
        let mut command = Command::new("unshare");
        command.args(["-Urm", "sh", "-c", "mount -t tmpfs none /tmp"]);
        let tried = command.stderr(Stdio::null()).status();
        let is_allowed = tried.is_ok_and(|status| status.success());
        is_allowed.then(|| Cluster::start_on(flags, &[], Some((dir.to_owned(), bytes))))
    }

    /// The same, with `up` run by a shell after it has executed `prelude`.
    pub fn start_after(prelude: &str, flags: &[&str], environment: &[(&str, &str)]) -> Cluster {
        let mut cluster = Cluster::new(flags, environment, None);
        cluster.prelude = Some(prelude.to_owned());
        cluster.up();
        cluster
    }

    fn start_on(
        flags: &[&str],
        environment: &[(&str, &str)],
        small_disk: Option<(String, u64)>,
    ) -> Cluster {
        let mut cluster = Cluster::new(flags, environment, small_disk);
        cluster.up();
        cluster
    }

    fn new(
        flags: &[&str],
        environment: &[(&str, &str)],
        small_disk: Option<(String, u64)>,
    ) -> Cluster {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Cluster {
            environment: environment.iter().map(owned).collect(),
            dir: private_dir(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            prelude: None,
            small_disk,
            ports: Ports::find_for(leaders_of(flags)),
            up: None,
            drain: None,
            ready: String::new(),
        }
    }

    /// Starts it again after [`Cluster::stop`] or [`Cluster::kill_all`].
    pub fn up(&mut self) {
        assert!(self.up.is_none(), "it runs");
        // Somebody else may have taken a port: not a test's, those show a sign.
        for _ in 0..10 {
            match self.try_up() {
                Ok(()) => return,
                Err(text) if text.contains("is taken") => {
                    let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
                    self.ports = Ports::find_for(leaders_of(&flags));
                }
                Err(text) => panic!("tolerex up: {text}"),
            }
        }
        panic!("no free ports");
    }

    fn try_up(&mut self) -> Result<(), String> {
        let mut command = match (&self.small_disk, &self.prelude) {
            (None, None) => Command::new(TOLEREX),
            (None, Some(prelude)) => {
                let mut command = Command::new("sh");
                command.args(["-c", &format!("{prelude}; exec \"$@\""), "sh", TOLEREX]);
                command
            }
            (Some((dir, bytes)), _) => {
                let dir = self.dir.path().join(dir);
                fs::create_dir_all(&dir).expect("a directory");
                let script = "mount -t tmpfs -o size=$1 none \"$2\" && shift 2 && exec \"$@\"";
                let mut command = Command::new("unshare");
                command.args(["-Urm", "sh", "-c", script, "sh", &bytes.to_string()]);
                command.arg(dir).arg(TOLEREX);
                command
            }
        };
        command.args([
            "up",
            "--quiet",
            "--port-offset",
            &self.ports.offset.to_string(),
        ]);
        command
            .arg("--data-dir")
            .arg(self.dir.path())
            .args(&self.flags)
            .envs(self.environment.iter().cloned());
        // As private as what `up` makes, or it would warn.
        let errors = tolerex::disk::private::create(&self.errors_path()).expect("a file");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors);
        let mut child = command.spawn().expect("the tool runs");
        let stdout = child.stdout.take().expect("piped");
        match first_line(stdout, READY_TIMEOUT) {
            Some((line, drain)) if line.starts_with("ready: ") => {
                (self.up, self.drain, self.ready) = (Some(child), Some(drain), line);
                Ok(())
            }
            line => {
                kill_child(&mut child);
                let errors = fs::read_to_string(self.errors_path()).unwrap_or_default();
                let line = line.map_or(String::new(), |(line, _)| line);
                Err(format!("{line}\n{errors}\n{}", self.logs()))
            }
        }
    }

    /// The line by which `up` said that it is ready.
    pub fn ready_line(&self) -> &str {
        &self.ready
    }

    /// What `up` wrote to standard error in this run.
    pub fn errors(&self) -> String {
        fs::read_to_string(self.errors_path()).unwrap_or_default()
    }

    fn errors_path(&self) -> PathBuf {
        self.dir.path().join("up.stderr")
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts a process of the cluster that has died, by hand: the binary of its role, with the
    /// settings that `up` wrote. Its log goes to `NAME-by-hand.log` in the directory.
    pub fn by_hand(&self, name: &str) -> Server {
        self.by_hand_with(name, &[])
    }

    /// The same with more flags.
    pub fn by_hand_with(&self, name: &str, flags: &[&str]) -> Server {
        let mut command = self.by_hand_command(name);
        command.args(flags);
        Server::run(&mut command, &self.by_hand_log(name))
    }

    /// What [`Cluster::by_hand`] starts.
    pub fn by_hand_command(&self, name: &str) -> Command {
        let is_leader = self.field(name, "role") == "leader";
        let text = |name: &str, field: &str| {
            let field = self.field(name, field);
            field.as_str().expect("text").to_owned()
        };
        let mut command = Command::new(if is_leader { LEADER } else { MEMBER });
        let config = self.dir().join("config").join(format!("{name}.toml"));
        command.arg("--config").arg(config);
        // The ports may have moved since the settings were written.
        command.args(["--rpc-bind", &text(name, "rpc")]);
        if is_leader {
            command.args(["--hatokuse-bind", &text(name, "hatokuse")]);
            command.args(["--http-bind", &text(name, "http")]);
        } else {
            command.args(["--leaders", &self.leaders("rpc").join(",")]);
        }
        command.envs(self.environment.iter().cloned());
        command
    }

    /// A field of all leaders in `cluster.json`, in their order.
    pub fn leaders(&self, field: &str) -> Vec<String> {
        let manifest = self.manifest();
        let rows = manifest["processes"].as_array().expect("rows");
        let leaders = rows.iter().filter(|row| row["role"] == "leader");
        let text = |row: &serde_json::Value| row[field].as_str().expect("text").to_owned();
        leaders.map(text).collect()
    }

    /// The log of a process that was started by hand.
    pub fn by_hand_log(&self, name: &str) -> PathBuf {
        self.dir().join(format!("{name}-by-hand.log"))
    }

    /// The whole log of a process that `up` started.
    pub fn log(&self, name: &str) -> String {
        let path = self.dir().join(name).join(format!("{name}.log"));
        let log = fs::read(path).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Waits until `STATUS` shows `state` for a member.
    pub fn wait_for_state(&self, name: &str, state: &str) {
        let what = format!("{name} is {state}");
        let mut client = self.client();
        wait_until(&what, Duration::from_secs(10), || {
            member(&client.status(), name)["state"] == state
        });
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 6666 + self.ports.offset))
    }

    /// A connection to the leader.
    pub fn client(&self) -> Client {
        Client::connect(self.address())
    }

    /// Runs a client subcommand against this cluster.
    pub fn tolerex(&self, args: &[&str]) -> Output {
        let address = self.address().to_string();
        tolerex(&[args, &["--addr", &address]].concat())
    }

    /// Runs `tolerex bench` against this cluster; gives what it found.
    pub fn bench(&self, flags: &str) -> serde_json::Value {
        let dir = self.dir().to_str().expect("UTF-8");
        let mut args = vec!["bench", "--json", "--data-dir", dir];
        args.extend(flags.split_whitespace());
        let output = tolerex(&args);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{flags}: {errors}");
        // Not a terminal: no progress.
        assert!(errors.is_empty(), "{errors}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// The resident memory of a process, in bytes.
    pub fn resident_bytes(&self, name: &str) -> u64 {
        memory_bytes(self.pid(name), "VmRSS")
    }

    /// The most resident memory that a process has had, in bytes.
    pub fn peak_bytes(&self, name: &str) -> u64 {
        memory_bytes(self.pid(name), "VmHWM")
    }

    /// `cluster.json`.
    pub fn manifest(&self) -> serde_json::Value {
        let text = fs::read(self.dir().join("cluster.json")).expect("cluster.json");
        serde_json::from_slice(&text).expect("JSON")
    }

    /// A field of a process in `cluster.json`.
    pub fn field(&self, name: &str, field: &str) -> serde_json::Value {
        let manifest = self.manifest();
        let rows = manifest["processes"].as_array().expect("rows");
        let row = rows.iter().find(|row| row["name"] == name);
        row.unwrap_or_else(|| panic!("no {name} in {manifest}"))[field].clone()
    }

    /// The pid of a process.
    pub fn pid(&self, name: &str) -> u32 {
        u32::try_from(self.field(name, "pid").as_u64().expect("a pid")).expect("a pid")
    }

    /// A path in the data directory as a process sees it, whatever is mounted there.
    pub fn seen_by(&self, name: &str, path: &str) -> PathBuf {
        let seen = format!("/proc/{}/root{}", self.pid(name), self.dir().display());
        Path::new(&seen).join(path)
    }

    /// Sends a signal to a process. After [`Signal::STOP`] waits until none of its threads runs.
    pub fn signal(&self, name: &str, signal: Signal) {
        let pid = self.pid(name);
        send(pid, signal).expect("it runs");
        if signal == Signal::STOP {
            // One of its threads has to run before the others stop: on a busy machine that takes
            // some milliseconds, in which they go on.
            let is_stopped = || threads_are_stopped(pid);
            wait_until(&format!("{name} is stopped"), STOP_TIMEOUT, is_stopped);
        }
    }

    /// Kills a process and waits until `up` has noticed.
    pub fn kill(&self, name: &str) {
        self.signal(name, Signal::KILL);
        let has_died = || self.field(name, "state") == "died";
        wait_until(
            &format!("{name} is reported dead"),
            Duration::from_secs(5),
            has_died,
        );
    }

    /// Stops all in order; gives the exit status of `up`.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal_up(Signal::TERM);
        self.wait_for_end()
    }

    /// Sends a signal to `up`.
    pub fn signal_up(&self, signal: Signal) {
        let up = self.up.as_ref().expect("it runs");
        send(up.id(), signal).expect("it runs");
    }

    /// Waits until `up` has ended.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        let mut up = self.up.take().expect("it runs");
        let mut status = None;
        wait_until("the cluster stops", STOP_TIMEOUT, || {
            status = up.try_wait().expect("our child");
            status.is_some()
        });
        self.join_drain();
        status.expect("it has ended")
    }

    /// Kills every process, `up` too, at once and without a chance to tidy.
    pub fn kill_all(&mut self) {
        let mut up = self.up.take().expect("it runs");
        // `up` would report deaths meanwhile, and its own death tells the children to stop in
        // order: so it holds still until they are dead.
        send(up.id(), Signal::STOP).expect("it runs");
        self.kill_children();
        send(up.id(), Signal::KILL).expect("it runs");
        up.wait().expect("our child");
        self.join_drain();
    }

    /// Kills `up` alone.
    pub fn kill_up(&mut self) {
        let mut up = self.up.take().expect("it runs");
        kill_child(&mut up);
        self.join_drain();
    }

    /// The `--port-offset` it runs with.
    pub fn port_offset(&self) -> u16 {
        self.ports.offset
    }

    /// Replaces the flags that the next [`Cluster::up`] gives.
    pub fn set_flags(&mut self, flags: &[&str]) {
        self.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    }

    fn kill_children(&self) {
        let text = fs::read(self.dir().join("cluster.json")).unwrap_or_default();
        let manifest: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let mut killed = Vec::new();
        for row in manifest["processes"].as_array().into_iter().flatten() {
            let pid = row["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
            let Some(pid) = pid.filter(|_| row["state"] == "running") else {
                continue;
            };
            // A pid may be reused by now: only a server of this directory is ours.
            let command_line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let dir = self.dir().as_os_str().as_encoded_bytes();
            if command_line.windows(dir.len()).any(|window| window == dir) {
                _ = send(pid, Signal::KILL);
                killed.push(pid);
            }
        }
        wait_until("the killed are gone", Duration::from_secs(10), || {
            !killed.iter().any(|pid| is_alive(*pid))
        });
    }

    fn join_drain(&mut self) {
        if let Some(drain) = self.drain.take() {
            drain.join();
        }
    }

    /// The last lines of every log.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        let entries = fs::read_dir(self.dir()).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.path().is_dir()) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let log = fs::read(entry.path().join(format!("{name}.log"))).unwrap_or_default();
            let log = String::from_utf8_lossy(&log).into_owned();
            let lines: Vec<&str> = log.lines().collect();
            if !lines.is_empty() {
                let tail = &lines[lines.len().saturating_sub(40)..];
                text += &format!("--- {name}\n{}\n", tail.join("\n"));
            }
        }
        text
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- up\n{}\n{}", self.errors(), self.logs());
            for entry in fs::read_dir(self.dir()).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.ends_with("-by-hand.log") {
                    let log = fs::read(entry.path()).unwrap_or_default();
                    eprintln!("--- {name}\n{}", String::from_utf8_lossy(&log));
                }
            }
        }
        if self.up.is_some() {
            self.kill_all();
        }
    }
}

/// A member's row in `STATUS JSON`.
pub fn member(status: &serde_json::Value, name: &str) -> serde_json::Value {
    let members = status["members"].as_array().expect("members");
    let found = members.iter().find(|member| member["name"] == name);
    found.cloned().unwrap_or_default()
}

/// A single server.
pub struct Server {
    child: Child,
    drain: Option<Thread>,
    /// Where other nodes reach it.
    pub rpc: SocketAddr,
    /// Where clients reach it.
    pub hatokuse: Option<SocketAddr>,
    /// Where they do over HTTP.
    pub http: Option<SocketAddr>,
}

impl Server {
    /// Starts `tolerex ARGS` and waits until it is ready. Ports may be 0. Its log goes to `log`.
    pub fn start(args: &[&str], log: &Path) -> Server {
        Server::run(Command::new(TOLEREX).args(args), log)
    }

    /// The same for any command that starts a server.
    pub fn run(command: &mut Command, log: &Path) -> Server {
        let errors = fs::OpenOptions::new().create(true).append(true).open(log);
        Server::run_with_errors(command, errors.expect("a file")).unwrap_or_else(|| {
            let log = fs::read_to_string(log).unwrap_or_default();
            panic!("{command:?} is not ready:\n{log}");
        })
    }

    /// The same with a standard error of any kind. `None` if it does not get ready.
    pub fn run_with_errors(command: &mut Command, errors: impl Into<Stdio>) -> Option<Server> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors);
        let mut child = command.spawn().expect("the tool runs");
        let stdout = child.stdout.take().expect("piped");
        let Some((line, drain)) = first_line(stdout, READY_TIMEOUT) else {
            kill_child(&mut child);
            return None;
        };
        let find = |name: &str| {
            let word = line.split(' ').find_map(|word| word.strip_prefix(name));
            word.map(|address| address.parse().expect("an address"))
        };
        Some(Server {
            rpc: find("rpc=").expect("an RPC address"),
            hatokuse: find("hatokuse="),
            http: find("http="),
            child,
            drain: Some(drain),
        })
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        send(self.child.id(), signal).expect("it runs");
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it and waits for its end.
    pub fn kill(&mut self) {
        kill_child(&mut self.child);
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the server ends", STOP_TIMEOUT, || {
            status = self.child.try_wait().expect("our child");
            status.is_some()
        });
        status.expect("it has ended")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        kill_child(&mut self.child);
        if let Some(drain) = self.drain.take() {
            drain.join();
        }
    }
}

/// The first line a process prints; the thread takes the others until the process ends.
fn first_line(stdout: ChildStdout, timeout: Duration) -> Option<(String, Thread)> {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let drain = threads::spawn("drain", move || {
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        if stdout.read_line(&mut line).is_ok_and(|length| length > 0) {
            _ = sender.send(line.trim_end().to_owned());
        }
        drop(sender);
        _ = stdout.read_to_end(&mut Vec::new());
    });
    let line = receiver.recv_timeout(timeout).ok()?;
    Some((line, drain.expect("a thread")))
}

/// What `/proc/PID/status` says of a process's memory in the row `what`, in bytes.
pub fn memory_bytes(pid: u32, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let mut fields = status.lines().filter_map(|line| line.split_once(':'));
    let field = fields.find(|(field, _)| *field == what);
    let kib = field.and_then(|(_, value)| value.trim().split(' ').next()?.parse::<u64>().ok());
    kib.expect("a number") * 1024
}

/// Sends a signal to a process.
pub fn send(pid: u32, signal: Signal) -> Result<(), rustix::io::Errno> {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    kill_process(pid, signal)
}

/// Whether a process runs; one that has ended and waits for its parent does not.
pub fn is_alive(pid: u32) -> bool {
    let state = state(Path::new(&format!("/proc/{pid}")));
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

/// Whether all threads of a process are stopped, by SIGSTOP for example.
fn threads_are_stopped(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let paths = threads.map(|thread| thread.expect("a thread").path());
    // One that has ended meanwhile has no state.
    paths
        .into_iter()
        .all(|path| state(&path).is_none_or(|state| state == 'T'))
}

/// The state of a process or thread with this directory below `/proc`, as in proc(5).
fn state(path: &Path) -> Option<char> {
    let stat = fs::read_to_string(path.join("stat")).ok()?;
    // It stands behind the name, which is in parentheses and may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.chars().next()
}

fn kill_child(child: &mut Child) {
    // It may have ended already.
    _ = child.kill();
    _ = child.wait();
}
