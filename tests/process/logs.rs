//! Logs of processes under `tolerex up` stay short, also while a process runs for long. A log that
//! nobody reads stops no process, and what explains the end of a process is in its log.

use std::fs::{self, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use log::LevelFilter;
use rustix::process::Signal;
use tolerex::clock::{Clock, SystemClock};
use tolerex::logging::{self, LOG_BYTES_MAX};
use tolerex::threads::{self, PANIC_EXIT_CODE};

use crate::support::client::Client;
use crate::support::cluster::{Cluster, Server, run};
use crate::support::wait_until;

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_running_process_puts_its_log_aside_when_it_is_too_long() {
    // At level debug each connection to the RPC port that says nothing is a line.
    let mut cluster = Cluster::start_with(&[], &[("TOLEREX_LOG_LEVEL", "debug")]);
    let (log, aside) = (
        cluster.dir().join("leader-1/leader-1.log"),
        cluster.dir().join("leader-1/leader-1.log.1"),
    );
    assert!(!aside.exists());
    // As long as months of lines would have made it, without their bytes.
    let file = OpenOptions::new().write(true).open(&log).expect("its log");
    let long = LOG_BYTES_MAX + 1;
    file.write_all_at(b"\n", long - 1).expect("written");
    let rpc = cluster.leaders("rpc").remove(0);
    wait_until("the log is put aside", PATIENCE, || {
        for _ in 0..64 {
            drop(TcpStream::connect(&rpc));
        }
        aside.exists()
    });
    assert!(fs::metadata(&aside).expect("the older one").len() >= long);
    wait_until("the next log has lines", PATIENCE, || {
        drop(TcpStream::connect(&rpc));
        fs::metadata(&log).is_ok_and(|file| file.len() > 0)
    });
    for path in [&log, &aside] {
        let mode = fs::metadata(path).expect("a log").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
    }
    assert!(fs::metadata(&log).expect("a log").len() < LOG_BYTES_MAX);
    // The tail that `up` shows of a process that died is that of the file in use.
    cluster.kill("leader-1");
    wait_until("the end is reported", PATIENCE, || {
        cluster.errors().contains("leader-1")
    });
    assert!(
        cluster.errors().contains("closed before"),
        "{}",
        cluster.errors()
    );
    assert!(cluster.stop().success(), "{}", cluster.errors());
}

#[test]
fn a_log_that_was_moved_away_is_begun_anew_by_sighup() {
    let mut cluster = Cluster::start(&[]);
    for name in ["leader-1", "member-1"] {
        let log = cluster.dir().join(format!("{name}/{name}.log"));
        let moved = cluster.dir().join(format!("{name}/moved.log"));
        fs::rename(&log, &moved).expect("renamed");
        cluster.signal(name, Signal::HUP);
        wait_until("the new log has the line", PATIENCE, || {
            fs::read_to_string(&log).is_ok_and(|text| text.contains("settings are read again"))
        });
        let moved = fs::read_to_string(&moved).expect("the earlier log");
        assert!(!moved.contains("settings are read again"), "{moved}");
    }
    assert!(cluster.stop().success(), "{}", cluster.errors());
}

/// What a Linux pipe holds.
const PIPE_BYTES: usize = 64 << 10;

/// The line in [`full_pipe`], many times.
const FILLING: &[u8; 16] = b"....a full pipe\n";

/// How long the end of a process may take with a standard error that takes nothing: it gives its
/// log up after a second.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// A pipe that takes no byte until it is read.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = io::pipe().expect("a pipe");
    let text = FILLING.repeat(PIPE_BYTES / FILLING.len());
    writer.write_all(&text).expect("filled");
    (reader, writer)
}

/// A leader of a cluster, started with the most verbose log into a pipe that is full.
fn leader_that_nobody_hears(cluster: &Cluster) -> (Server, PipeReader) {
    cluster.kill("leader-1");
    let (reader, writer) = full_pipe();
    let mut command = cluster.by_hand_command("leader-1");
    command.env("RUST_LOG", "debug");
    let server = Server::run_with_errors(&mut command, writer).expect("it gets ready");
    (server, reader)
}

/// The goal: a log that nobody reads stops no client, and says later what is missing. The method: a
/// leader with its standard error in a full pipe gets requests one by one. It logs some eight lines
/// for each, until these are more than its queue holds.
#[test]
fn clients_are_served_while_nobody_reads_the_log_which_counts_what_it_dropped() {
    let cluster = Cluster::start(&[]);
    let (mut leader, mut pipe) = leader_that_nobody_hears(&cluster);
    let mut client = Client::connect(leader.hatokuse.expect("an address"));
    wait_until("it serves", PATIENCE, || client.command("SET a m") == "OK");
    let clock = SystemClock::new();
    let mut slowest = Duration::ZERO;
    for number in 0..2_500 {
        let start = clock.now();
        assert_eq!(client.command(&format!("SET {number} m")), "OK");
        slowest = slowest.max(clock.now().since(start));
    }
    println!("the slowest write took {slowest:?}");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");

    let reader = threads::spawn("reader", {
        let path = cluster.dir().join("read.log");
        move || {
            let mut file = fs::File::create(path).expect("a file");
            io::copy(&mut pipe, &mut file).expect("read");
        }
    });
    let read = || fs::read_to_string(cluster.dir().join("read.log")).unwrap_or_default();
    wait_until("the count of dropped lines", PATIENCE, || {
        read().contains(" dropped here: ")
    });
    assert_eq!(client.command("GET a"), "m");
    leader.signal(Signal::TERM);
    assert!(leader.wait().success(), "{}", read());
    reader.expect("a thread").join();
    let log = read();
    let filling = String::from_utf8_lossy(FILLING).repeat(PIPE_BYTES / FILLING.len());
    let log = log
        .strip_prefix(&filling)
        .expect("what the pipe held before");
    let counts = log.lines().filter_map(|line| {
        let (head, _) = line.split_once(" lines dropped here: ")?;
        assert!(head.contains(" WARN leader-1 logging: "), "{line}");
        head.rsplit(' ').next()?.parse::<u64>().ok()
    });
    let counts: Vec<u64> = counts.collect();
    println!("{} lines, dropped: {counts:?}", log.lines().count());
    assert!(counts.iter().sum::<u64>() > 1_000, "{counts:?}");
    // No line is torn.
    let torn = log.lines().find(|line| !line.starts_with("20"));
    assert_eq!(torn, None);
    assert!(log.ends_with(": stopped\n"), "{log}");
}

#[test]
fn a_process_stops_while_nobody_reads_its_log() {
    let cluster = Cluster::start(&[]);
    let (mut leader, _pipe) = leader_that_nobody_hears(&cluster);
    let clock = SystemClock::new();
    let start = clock.now();
    leader.signal(Signal::TERM);
    assert!(leader.wait().success());
    let took = clock.now().since(start);
    assert!(took < END_TIMEOUT, "{took:?}");
}

/// Runs a command with a full pipe as its standard error; it must end.
fn run_unheard(command: &mut Command) -> ExitStatus {
    let (_pipe, writer) = full_pipe();
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.stderr(writer).spawn().expect("it runs");
    let clock = SystemClock::new();
    let deadline = clock.now() + END_TIMEOUT;
    let mut status = None;
    while status.is_none() && clock.now() < deadline {
        status = child.try_wait().expect("our child");
        tolerex::clock::sleep(Duration::from_millis(10));
    }
    _ = child.kill();
    _ = child.wait();
    status.expect("it ends in time")
}

#[test]
fn a_start_that_fails_says_why_in_the_last_line_and_ends_also_if_nobody_reads_it() {
    let cluster = Cluster::start(&[]);
    // Its data directory is in use.
    for name in ["leader-1", "member-1"] {
        let mut command = cluster.by_hand_command(name);
        command.env("RUST_LOG", "debug");
        let output = run(&mut command, PATIENCE);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(" DEBUG "), "{text}");
        let last = text.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("error: ") && last.contains(" is in use"),
            "{text}"
        );
        let status = run_unheard(&mut command);
        assert_eq!(status.code(), Some(1));
    }
}

/// Set in the process that the next test makes of itself.
const PANICS: &str = "TOLEREX_TEST_PANICS";

/// Lines that are logged before the panic. They wait in the queue.
const LINES: usize = 5_000;

fn log_and_panic() -> ! {
    logging::init("node-1", LevelFilter::Info, Path::new("none")).expect("a logger");
    threads::exit_on_panic(logging::report_panic);
    for number in 0..LINES {
        log::info!(target: "tolerex::test", "line {number}");
    }
    let thread = threads::spawn("breaks", || panic!("an invariant does not hold"));
    thread.expect("a thread").join();
    unreachable!("the process has ended");
}

#[test]
fn a_panic_is_the_last_line_after_all_that_was_logged() {
    if std::env::var_os(PANICS).is_some() {
        log_and_panic();
    }
    let mut command = Command::new(std::env::current_exe().expect("a path"));
    command.args(["--exact", "--nocapture"]);
    command.arg("logs::a_panic_is_the_last_line_after_all_that_was_logged");
    command.env(PANICS, "1").env_remove("RUST_LOG");
    command.env_remove("RUST_BACKTRACE");
    let output = run(&mut command, PATIENCE);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(PANIC_EXIT_CODE), "{text}");
    let (lines, panic) = text.split_once(" ERROR ").expect("an error");
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines.len(), LINES + 1, "and the time of the error");
    for (number, line) in lines[..LINES].iter().enumerate() {
        let end = format!(" INFO node-1 test: line {number}");
        assert!(line.ends_with(&end), "{line}");
    }
    let begin = "node-1 threads: the process ends: thread breaks panicked at ";
    assert!(panic.starts_with(begin), "{panic}");
    assert!(panic.ends_with("an invariant does not hold\n"), "{panic}");

    let status = run_unheard(&mut command);
    assert_eq!(status.code(), Some(PANIC_EXIT_CODE));
    // With the stack, and whatever the log's level.
    command.env("RUST_LOG", "off").env("RUST_BACKTRACE", "1");
    let output = run(&mut command, PATIENCE);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!text.contains("INFO"), "{text}");
    assert!(text.contains("an invariant does not hold\n"), "{text}");
    assert!(text.contains("log_and_panic"), "{text}");
}
