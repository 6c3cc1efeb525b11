//! The `raft` crate's log lines, led into ours one level quieter.
//!
//! The crate logs by `slog` and reports each election, vote and retry as news. What an operator
//! should see of that, our own code says; here its `info` becomes `debug` and its `debug` becomes
//! `trace`. Warnings and errors stay what they are.

use slog::{Drain, Level, Logger, OwnedKVList, Record, RecordStatic};
use slog_stdlog::StdLog;

/// A logger for the crate.
pub fn quiet() -> Logger {
    Logger::root(Quiet(StdLog).fuse(), slog::o!())
}

struct Quiet(StdLog);

fn quieter(level: Level) -> Level {
    match level {
        Level::Info => Level::Debug,
        Level::Debug | Level::Trace => Level::Trace,
        Level::Critical | Level::Error | Level::Warning => level,
    }
}

impl Drain for Quiet {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), slog::Never> {
        let level = quieter(record.level());
        if !self.is_enabled(record.level()) {
            return Ok(());
        }
        let location = record.location();
        let quiet = RecordStatic {
            location: &slog::RecordLocation { ..*location },
            tag: record.tag(),
            level,
        };
        let record = Record::new(&quiet, record.msg(), record.kv());
        // A line that cannot be written has nowhere to be reported.
        _ = self.0.log(&record, values);
        Ok(())
    }

    fn is_enabled(&self, level: Level) -> bool {
        let level = match quieter(level) {
            Level::Critical | Level::Error => log::Level::Error,
            Level::Warning => log::Level::Warn,
            Level::Info => log::Level::Info,
            Level::Debug => log::Level::Debug,
            Level::Trace => log::Level::Trace,
        };
        level <= log::max_level()
    }
}
