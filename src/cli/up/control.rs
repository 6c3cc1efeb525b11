//! `tolerex stop`, `kill` and `start`: wishes for the running `tolerex up`, by a Unix socket.
//!
//! Only `up` may start children (the kernel's signal at a parent's death is tied to its main
//! thread) and write `cluster.json`, so the subcommands ask it. The socket `up.sock` lies in the
//! data directory with mode 0600: whoever may use it could as well send signals. A request is the
//! line `VERB NAME`, the answer a line `EXITCODE TEXT`, when the process has ended or serves.
//!
//! The thread `control` of `up` takes one connection at a time and hands each request to `main`. It
//! is told to end through a pair of sockets of its own, so that its end does not depend on the
//! file; a file that somebody removed (a cleaner of /tmp) is made again within [`LOOK_INTERVAL`].

use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use crossbeam_channel::{Sender, bounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;

use super::super::args::ProcessArgs;
use super::super::exit::{Exit, ToolError, print};
use crate::threads::{self, StopSignal, Thread};

/// The socket's name within a data directory.
const FILE: &str = "up.sock";

/// A request or an answer is no longer: a verb and a name, or a line and the end of a log.
const LINE_BYTES_MAX: u64 = 16 << 10;

/// How long a request may take to come, once somebody has connected. Meanwhile others wait.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// How often the thread looks whether the socket's file is still there.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long the thread pauses when it cannot accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long `main` may take for a request: its own limits are 10 s at most.
const WORK_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a subcommand waits: for two requests before its own.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// What is wished for a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// SIGTERM.
    Stop,
    /// SIGKILL.
    Kill,
    /// Start it again.
    Start,
    /// Start a member again; it may take its name over from another data directory.
    Replace,
}

impl Verb {
    const ALL: [Verb; 4] = [Verb::Stop, Verb::Kill, Verb::Start, Verb::Replace];

    /// Whether the process is to run afterwards.
    pub fn starts(self) -> bool {
        matches!(self, Verb::Start | Verb::Replace)
    }

    fn as_str(self) -> &'static str {
        match self {
            Verb::Stop => "stop",
            Verb::Kill => "kill",
            Verb::Start => "start",
            Verb::Replace => "replace",
        }
    }
}

/// What became of a wish: what was done, or why not.
pub type Answer = Result<String, ToolError>;

/// A wish, for `main` to fulfil.
pub struct Request {
    /// What is wished.
    pub verb: Verb,
    /// For which process.
    pub name: String,
    /// Takes the answer. Dropped, it says that `up` is ending.
    pub answer: Sender<Answer>,
}

/// The thread `control`.
pub struct Control {
    stop: StopSignal,
    thread: Thread,
    /// Closed, it ends the thread's wait for a connection.
    waker: Option<UnixStream>,
}

impl Control {
    /// Opens the socket of a data directory, whose lock is held, and starts the thread.
    pub fn start(dir: &Path, on_request: impl Fn(Request) + Send + 'static) -> Result<Control> {
        let handle = fs::File::open(dir).context("cannot open the data directory")?;
        let mut door = Door::open(handle).context("cannot open the control socket")?;
        let (waker, woken) = UnixStream::pair().context("cannot make a pair of sockets")?;
        let stop = StopSignal::default();
        let body = {
            let stop = stop.clone();
            move || {
                while !stop.is_stopped() {
                    if let Some(stream) = door.wait(&woken) {
                        // Whoever does not wait for the answer does not want it.
                        _ = serve(&stream, &on_request);
                    }
                }
            }
        };
        let thread = threads::spawn("control", body)?;
        Ok(Control {
            stop,
            thread,
            waker: Some(waker),
        })
    }

    /// Tells the thread to end. The events that it may be sending are to be taken meanwhile.
    pub fn stop(&mut self) {
        self.stop.stop();
        self.waker = None;
    }

    /// Whether the thread has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Joins the thread and removes the socket.
    pub fn finish(self, dir: &Path) {
        self.thread.join();
        _ = fs::remove_file(dir.join(FILE));
    }
}

/// The listening socket, and its file in the data directory.
struct Door {
    dir: fs::File,
    listener: UnixListener,
    /// The file's inode number, by which another file of the name is told from ours.
    inode: u64,
}

impl Door {
    /// Replaces the file, which is that of an `up` that was killed: the lock says that no other
    /// one lives.
    fn open(dir: fs::File) -> io::Result<Door> {
        let path = short_path(&dir);
        _ = fs::remove_file(&path);
        let before = rustix::process::umask(Mode::XUSR | Mode::RWXG | Mode::RWXO);
        let bound = UnixListener::bind(&path);
        rustix::process::umask(before);
        let listener = bound?;
        listener.set_nonblocking(true)?;
        let inode = fs::symlink_metadata(&path)?.ino();
        Ok(Door {
            dir,
            listener,
            inode,
        })
    }

    /// The next connection; `None` after [`LOOK_INTERVAL`], or when `woken` is closed.
    fn wait(&mut self, woken: &UnixStream) -> Option<UnixStream> {
        let timeout = Timespec::try_from(LOOK_INTERVAL).ok();
        let mut fds = [
            PollFd::new(&self.listener, PollFlags::IN),
            PollFd::new(woken, PollFlags::IN),
        ];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => {
                self.keep();
                return None;
            }
            Ok(_) => {}
            // A signal; or the kernel has no memory for it, which is no reason to spin.
            Err(_) => crate::clock::sleep(Duration::from_millis(10)),
        }
        let (stream, _) = match self.listener.accept() {
            Ok(accepted) => accepted,
            Err(error) => {
                // For want of a descriptor it would fail again at once.
                if error.kind() != ErrorKind::WouldBlock {
                    crate::clock::sleep(ACCEPT_PAUSE);
                }
                return None;
            }
        };
        stream.set_nonblocking(false).ok()?;
        Some(stream)
    }

    /// Makes the file again if it is gone.
    fn keep(&mut self) {
        let found = fs::symlink_metadata(short_path(&self.dir));
        if found.is_ok_and(|meta| meta.ino() == self.inode) {
            return;
        }
        // If that fails, as in a directory that was removed, the next look tries again.
        if let Ok(dir) = self.dir.try_clone()
            && let Ok(door) = Door::open(dir)
        {
            *self = door;
        }
    }
}

/// A path to the socket of an open directory: the address of a Unix socket has 108 bytes, a data
/// directory's path may have more.
fn short_path(dir: &fs::File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{FILE}", dir.as_raw_fd()))
}

/// Takes a request and gives its answer.
fn serve(stream: &UnixStream, on_request: impl Fn(Request)) -> io::Result<()> {
    stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
    stream.set_write_timeout(Some(REQUEST_TIMEOUT))?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE_BYTES_MAX)).read_line(&mut line)?;
    let answer = match parse(&line) {
        Some((verb, name)) => {
            let (sender, receiver) = bounded(1);
            on_request(Request {
                verb,
                name,
                answer: sender,
            });
            receiver
                .recv_timeout(WORK_TIMEOUT)
                .unwrap_or_else(|_| Err(ToolError::failed("`tolerex up` is ending")))
        }
        None => Err(ToolError::failed(format!("bad request {line:?}"))),
    };
    let (code, text) = match &answer {
        Ok(text) => (0, text),
        Err(error) => (error.exit as u8, &error.text),
    };
    let mut stream = stream;
    stream.write_all(format!("{code} {text}\n").as_bytes())
}

fn parse(line: &str) -> Option<(Verb, String)> {
    let (verb, name) = line.strip_suffix('\n')?.split_once(' ')?;
    let verb = Verb::ALL.into_iter().find(|known| known.as_str() == verb)?;
    Some((verb, name.to_owned()))
}

/// Runs one of the subcommands.
pub fn run(verb: Verb, args: &ProcessArgs) -> Result<(), ToolError> {
    let shown = args.data_dir.display();
    let nobody = || {
        let text = format!("no `tolerex up` runs on {shown}");
        ToolError::new(Exit::Unreachable, text)
    };
    if args.name.contains(char::is_whitespace) {
        return Err(ToolError::usage(format!("{:?} is no name", args.name)));
    }
    let dir = fs::File::open(&args.data_dir).map_err(|error| match error.kind() {
        ErrorKind::NotFound => nobody(),
        _ => ToolError::failed(format!("cannot open {shown}: {error}")),
    })?;
    let stream = UnixStream::connect(short_path(&dir)).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => nobody(),
        _ => ToolError::failed(format!("cannot reach `tolerex up` on {shown}: {error}")),
    })?;
    let answer = ask(stream, verb, &args.name);
    let answer = answer.map_err(|error| {
        let text = format!("no answer from `tolerex up` on {shown}: {error}");
        ToolError::new(Exit::Unknown, text)
    })?;
    let (code, text) = answer.split_once(' ').unwrap_or(("1", &answer));
    let exit = match code {
        "0" => return print(text.as_bytes()),
        "2" => Exit::Usage,
        _ => Exit::Failed,
    };
    Err(ToolError::new(exit, text.trim_end()))
}

fn ask(mut stream: UnixStream, verb: Verb, name: &str) -> io::Result<String> {
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.write_all(format!("{} {name}\n", verb.as_str()).as_bytes())?;
    let mut answer = String::new();
    stream.take(LINE_BYTES_MAX).read_to_string(&mut answer)?;
    if answer.is_empty() {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn args(dir: &Path, name: &str) -> ProcessArgs {
        ProcessArgs {
            name: name.to_owned(),
            data_dir: dir.to_owned(),
        }
    }

    #[test]
    fn requests_reach_up_and_answers_come_back() {
        // Longer than the address of a socket may be.
        let dir = tempfile::tempdir().expect("a directory");
        let long = dir.path().join("d".repeat(150));
        fs::create_dir(&long).expect("a directory");
        fs::write(long.join(FILE), "left over").expect("written");
        let control = Control::start(&long, |request| {
            let answer = match (request.verb, request.name.as_str()) {
                (Verb::Stop, "member-1") => Ok("member-1 is stopped".to_owned()),
                (Verb::Start | Verb::Replace, _) => Err(ToolError::failed("it runs\n  already")),
                (Verb::Kill, _) => Err(ToolError::usage("no such process")),
                (Verb::Stop, _) => return, // As when `up` ends.
            };
            request.answer.send(answer).expect("somebody waits");
        });
        let mut control = control.expect("a socket");
        let mode = fs::metadata(long.join(FILE))
            .expect("a socket")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{mode:o}");
        for (verb, name, expected) in [
            (Verb::Stop, "member-1", None),
            (Verb::Start, "x", Some((Exit::Failed, "it runs\n  already"))),
            (Verb::Kill, "x", Some((Exit::Usage, "no such process"))),
            (
                Verb::Stop,
                "x",
                Some((Exit::Failed, "`tolerex up` is ending")),
            ),
            (Verb::Stop, "a b", Some((Exit::Usage, "\"a b\" is no name"))),
        ] {
            let found = run(verb, &args(&long, name)).err();
            let expected = expected.map(|(exit, text)| ToolError::new(exit, text));
            assert_eq!(found, expected, "{verb:?} {name}");
        }
        control.stop();
        while !control.is_finished() {
            crate::clock::sleep(Duration::from_millis(5));
        }
        control.finish(&long);
        for dir in [&long, &long.join("none")] {
            let error = run(Verb::Stop, &args(dir, "x")).expect_err("nobody");
            assert_eq!(error.exit, Exit::Unreachable, "{error}");
        }
    }
}
