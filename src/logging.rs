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

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use env_logger::{Builder, Logger, Target};
use log::{LevelFilter, Log, Metadata, Record, SetLoggerError};
use parking_lot::{Mutex, RwLock};

mod file;
mod seldom;

pub use self::file::LOG_BYTES_MAX;
pub use self::seldom::{INTERVAL, LeftOut, Seldom, seldom};

/// The crates whose level is the setting's: the library (and `tolerex`), and the two servers.
const OWN_CRATES: [&str; 3] = ["tolerex", "leader", "member"];

/// The one logger of the process.
static LOGGER: Switchable = Switchable {
    inner: RwLock::new(None),
};

/// The file that this process keeps short, if its standard error is one. Held while the file's
/// length is looked at, by one thread in so many lines.
static FILE: Mutex<Option<file::LogFile>> = Mutex::new(None);

/// Lines since the last look.
static LINES: AtomicU32 = AtomicU32::new(0);

/// A logger that can be replaced while threads log.
struct Switchable {
    /// The logger in use and the node it names. Guards nothing else; the write lock is held for an
    /// assignment only.
    inner: RwLock<Option<(Logger, String)>>,
}

/// Starts logging for the node `name`.
///
/// # Errors
/// When a logger was set before: a process calls this once.
pub fn init(name: &str, level: LevelFilter) -> Result<(), SetLoggerError> {
    log::set_logger(&LOGGER)?;
    install(name, rust_log(), level);
    Ok(())
}

/// Changes the level of the running process. `RUST_LOG` still goes before it.
pub fn set_level(level: LevelFilter) {
    let name = LOGGER.inner.read().as_ref().map(|(_, name)| name.clone());
    if let Some(name) = name {
        install(&name, rust_log(), level);
    }
}

/// Keeps the log at `path` short, if it is the standard error of this process.
pub fn keep_short(path: &Path) {
    *FILE.lock() = file::LogFile::of_this_process(path);
}

/// A line was written.
fn count_line() {
    if !LINES
        .fetch_add(1, Ordering::Relaxed)
        .is_multiple_of(file::LINES_BETWEEN_LOOKS)
    {
        return;
    }
    if let Some(mut file) = FILE.try_lock()
        && let Some(Err(error)) = file.as_ref().map(file::LogFile::look)
    {
        // Nothing can be done about it, and it would fail again.
        *file = None;
        drop(file);
        log::error!("the log is not kept short any more: {error}");
    }
}

fn rust_log() -> Option<String> {
    std::env::var("RUST_LOG")
        .ok()
        .filter(|filters| !filters.is_empty())
}

fn install(name: &str, filters: Option<String>, level: LevelFilter) {
    let logger = build(name.to_owned(), filters.as_deref(), level);
    log::set_max_level(logger.filter());
    *LOGGER.inner.write() = Some((logger, name.to_owned()));
}

fn build(name: String, filters: Option<&str>, level: LevelFilter) -> Logger {
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
    builder.target(Target::Stderr);
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

/// The module as the code map names it.
fn module_of(target: &str) -> &str {
    target.strip_prefix("tolerex::").unwrap_or(target)
}

impl Log for Switchable {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let inner = self.inner.read();
        inner
            .as_ref()
            .is_some_and(|(logger, _)| logger.enabled(metadata))
    }

    fn log(&self, record: &Record<'_>) {
        // The read lock is shared, and the line is written by one call; only `set_level` waits.
        if let Some((logger, _)) = self.inner.read().as_ref() {
            logger.log(record);
        }
        count_line();
    }

    fn flush(&self) {}
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
        let logger = build("n".to_owned(), None, LevelFilter::Debug);
        assert!(hears(&logger, "tolerex::rpc::link", Level::Debug));
        assert!(!hears(&logger, "tolerex::rpc::link", Level::Trace));
        assert!(hears(&logger, "rustls", Level::Warn) && !hears(&logger, "rustls", Level::Info));
        let logger = build("n".to_owned(), None, LevelFilter::Error);
        assert!(!hears(&logger, "rustls", Level::Warn));
    }

    #[test]
    fn filters_go_before_the_level() {
        let logger = build("n".to_owned(), Some("tolerex::rpc=trace"), LevelFilter::Off);
        assert!(hears(&logger, "tolerex::rpc::link", Level::Trace));
        assert!(!hears(&logger, "tolerex::net", Level::Error));
    }
}
