//! Logging: one readable line an event, to standard error.
//!
//! ```text
//! 2026-11-21T09:00:00.123Z INFO leader-1 rpc::link: connected to member-2
//! ```
//!
//! Time (UTC), level, node, module, event. The level comes from the settings; `RUST_LOG`, where it
//! is set, goes before them and may name modules (`info,tolerex::rpc=debug`). [`set_level`] changes
//! it while the process runs. [`seldom`] is for lines that others can cause at will. Libraries are
//! heard from `warn` on, or everything would be lost in what they say at the levels we are
//! interested in.
//!
//! A thread that logs waits for nobody: it puts its line into a bounded queue (`logging/queue.rs`),
//! which drops and counts lines beyond its bounds, and the thread `log` writes them. At the end of
//! the process ([`finish`], [`report_panic`]) the queued lines are written first, for
//! [`FLUSH_TIMEOUT`] at most.
//!
//! A process that ends at once (SIGKILL, SIGQUIT, no memory) may lose the lines of its last
//! instant: those that it had logged and the thread `log` had not written yet.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use env_logger::{Builder, Logger, Target, WriteStyle};
use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::{Mutex, RwLock};

use crate::clock::{Clock, SystemClock};
use crate::threads::{self, Thread, Threads};

mod file;
mod queue;
mod seldom;
mod writer;

pub use self::file::LOG_BYTES_MAX;
pub use self::seldom::{INTERVAL, LeftOut, Seldom, seldom};

use self::file::LogFile;
use self::queue::Queue;
use self::writer::{Stderr, Writer};

/// How long the end of a process waits for its log lines to be written. Half of it may be too short
/// for a busy disk; a standard error that takes nothing for so long takes nothing later either.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The crates whose level is the setting's: the library (and `tolerex`), and the two servers.
const OWN_CRATES: [&str; 3] = ["tolerex", "leader", "member"];

/// The name of the thread that writes.
const THREAD_NAME: &str = "log";

/// The one logger of the process.
static LOGGER: Switchable = Switchable {
    inner: RwLock::new(None),
};

/// The lines that wait to be written. Not open in a process that does not call [`init`].
static QUEUE: Queue = Queue::new();

/// The node's name.
static NAME: OnceLock<String> = OnceLock::new();

/// The thread `log`, until it is joined.
static THREAD: Mutex<Option<Thread>> = Mutex::new(None);

/// A logger that can be replaced while threads log.
struct Switchable {
    /// The logger in use. Guards nothing else; the write lock is held for an assignment only.
    inner: RwLock<Option<Logger>>,
}

/// Starts logging for the node `name`, and the thread `log`. If standard error is the file `path`,
/// that file is kept short. To be ended by [`finish`].
///
/// # Errors
/// When a logger was set before (a process calls this once), or the system refuses the thread.
pub fn init(name: &str, level: LevelFilter, path: &Path) -> io::Result<()> {
    log::set_logger(&LOGGER).map_err(io::Error::other)?;
    _ = NAME.set(name.to_owned());
    let writer = Writer::new(Stderr, LogFile::of_this_process(path), missing);
    // Before the thread is there, which ends with the queue.
    QUEUE.open();
    let thread = threads::spawn(THREAD_NAME, move || writer.run(&QUEUE));
    *THREAD.lock() = Some(thread.inspect_err(|_| QUEUE.close())?);
    install(rust_log(), level);
    Ok(())
}

/// Changes the level of the running process. `RUST_LOG` still goes before it.
pub fn set_level(level: LevelFilter) {
    install(rust_log(), level);
}

/// Begins a new log file if the one that this process keeps short is not at its path any more: the
/// thread `log` does it before it writes what is logged from now on. For the signal by which a
/// program that moves logs away tells of it.
pub fn reopen() {
    QUEUE.request_look();
}

/// Waits until what was logged before is written, [`FLUSH_TIMEOUT`] at most.
pub fn flush() {
    // The thread `log` would wait for itself.
    if !is_writer() {
        QUEUE.flush(FLUSH_TIMEOUT);
    }
}

/// Writes the queued lines, [`FLUSH_TIMEOUT`] at most, and ends the thread `log`. A thread that
/// waits for a standard error that takes nothing is left to end with the process.
pub fn finish() {
    QUEUE.close();
    let mut threads = Threads::default();
    if let Some(thread) = THREAD.lock().take() {
        threads.push(thread);
    }
    let clock = SystemClock::new();
    // The one that is late could not write its name either.
    _ = threads.join(&clock, clock.now() + FLUSH_TIMEOUT);
}

/// Writes a line to standard error as it is, in order with the log lines. It is for what a process
/// says of its end: it is written later, and is dropped by no bound. A process that does not log
/// writes it at once.
pub fn say(line: &[u8]) {
    if is_writer() || !QUEUE.put_last(line) {
        // Nothing is left to be done if it is closed.
        _ = io::stderr().write_all(line);
    }
}

/// Logs a panic, whatever the level, after which the process ends. Waits until it is written,
/// [`FLUSH_TIMEOUT`] at most.
pub fn report_panic(text: &str) {
    say(&line(Level::Error, "threads", format_args!("{text}")));
    flush();
}

fn is_writer() -> bool {
    std::thread::current().name() == Some(THREAD_NAME)
}

/// The line in the place of lines that are not there.
fn missing(count: u64) -> Vec<u8> {
    let lines = if count == 1 { "line" } else { "lines" };
    let why = "they came faster than standard error took them, or could not be written";
    line(
        Level::Warn,
        "logging",
        format_args!("{count} {lines} dropped here: {why}"),
    )
}

/// A line as the logger makes one, whatever its filters.
fn line(level: Level, target: &str, event: fmt::Arguments<'_>) -> Vec<u8> {
    let text = Arc::new(Mutex::new(Vec::new()));
    let name = NAME.get().cloned().unwrap_or_default();
    let logger = build(name, Some("trace"), LevelFilter::Trace, {
        let text = Arc::clone(&text);
        move |line: &[u8]| text.lock().extend_from_slice(line)
    });
    let mut record = Record::builder();
    logger.log(&record.level(level).target(target).args(event).build());
    std::mem::take(&mut *text.lock())
}

fn rust_log() -> Option<String> {
    std::env::var("RUST_LOG")
        .ok()
        .filter(|filters| !filters.is_empty())
}

fn install(filters: Option<String>, level: LevelFilter) {
    let name = NAME.get().cloned().unwrap_or_default();
    let logger = build(name, filters.as_deref(), level, |line| QUEUE.put(line));
    log::set_max_level(logger.filter());
    *LOGGER.inner.write() = Some(logger);
}

/// A logger that hands each line to `put`, which must not wait: the logger has a lock around it.
fn build(
    name: String,
    filters: Option<&str>,
    level: LevelFilter,
    put: impl FnMut(&[u8]) + Send + 'static,
) -> Logger {
    let mut builder = Builder::new();
    match filters {
        Some(filters) => {
            builder.parse_filters(filters);
        }
        None => {
            builder.filter_level(level.min(LevelFilter::Warn));
            for own in OWN_CRATES {
                builder.filter_module(own, level);
            }
        }
    }
    builder.target(Target::Pipe(Box::new(Lines(put))));
    builder.write_style(style());
    builder.format(move |out, record| {
        let (time, level) = (out.timestamp_millis(), record.level());
        let style = out.default_level_style(level);
        let module = module_of(record.target());
        let event = record.args();
        writeln!(
            out,
            "{time} {style}{level}{style:#} {name} {module}: {event}"
        )
    });
    builder.build()
}

/// Colours on a terminal that has them. The logger itself does not look at the terminal, as it
/// writes to the queue.
fn style() -> WriteStyle {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    if io::stderr().is_terminal() && !is_set("NO_COLOR") && !is_dumb {
        WriteStyle::Always
    } else {
        WriteStyle::Never
    }
}

/// The target of a logger: gets each line by one call.
struct Lines<F>(F);

impl<F: FnMut(&[u8])> Write for Lines<F> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        (self.0)(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The module as the code map names it.
fn module_of(target: &str) -> &str {
    target.strip_prefix("tolerex::").unwrap_or(target)
}

impl Log for Switchable {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let inner = self.inner.read();
        inner
            .as_ref()
            .is_some_and(|logger| logger.enabled(metadata))
    }

    fn log(&self, record: &Record<'_>) {
        // The read lock is shared, and no I/O is done under it; only `set_level` waits for it.
        if let Some(logger) = self.inner.read().as_ref() {
            logger.log(record);
        }
    }

    fn flush(&self) {
        flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::Level;

    fn hears(logger: &Logger, target: &str, level: Level) -> bool {
        logger.enabled(&Metadata::builder().target(target).level(level).build())
    }

    #[test]
    fn the_level_is_ours_and_libraries_are_heard_from_warnings_on() {
        let logger = build("n".to_owned(), None, LevelFilter::Debug, |_| ());
        assert!(hears(&logger, "tolerex::rpc::link", Level::Debug));
        assert!(!hears(&logger, "tolerex::rpc::link", Level::Trace));
        assert!(hears(&logger, "rustls", Level::Warn) && !hears(&logger, "rustls", Level::Info));
        let logger = build("n".to_owned(), None, LevelFilter::Error, |_| ());
        assert!(!hears(&logger, "rustls", Level::Warn));
    }

    #[test]
    fn the_line_of_dropped_lines_looks_like_others() {
        let text = String::from_utf8(missing(4711)).expect("UTF-8");
        assert!(text.contains(" WARN "), "{text}");
        assert!(
            text.contains(" logging: 4711 lines dropped here: "),
            "{text}"
        );
        assert!(text.ends_with('\n') && text.lines().count() == 1, "{text}");
    }

    #[test]
    fn filters_go_before_the_level() {
        let logger = build(
            "n".to_owned(),
            Some("tolerex::rpc=trace"),
            LevelFilter::Off,
            |_| (),
        );
        assert!(hears(&logger, "tolerex::rpc::link", Level::Trace));
        assert!(!hears(&logger, "tolerex::net", Level::Error));
    }
}
