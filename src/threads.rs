//! Named threads, the stop signal, and the ordered join of a process's threads.
//!
//! Every thread starts through [`spawn`] and is joined by whoever started it. A panic in any of
//! them ends the process with [`PANIC_EXIT_CODE`]: half alive is worse than dead.

pub mod pace;
pub mod queue;
pub mod scheduling;
pub mod wakeups;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io;
use std::sync::Arc;
use std::sync::Once;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::process::{Resource, getrlimit};

use crate::clock::{Clock, Instant};

/// The exit code of a process in which a thread panicked.
pub const PANIC_EXIT_CODE: i32 = 101;

/// How often [`Threads::join`] looks whether a thread has ended. Twice as often buys nothing, a
/// tenth as often makes every orderly stop visibly slower.
const JOIN_POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Starts a thread named `name`. The name is at most 15 bytes on Linux; longer ones are cut there.
pub fn spawn<F>(name: impl Into<String>, body: F) -> io::Result<Thread>
where
    F: FnOnce() + Send + 'static,
{
    start(std::thread::Builder::new(), name.into(), body)
}

/// Starts a thread with a stack of its own size, for bodies of which a process runs thousands.
pub fn spawn_with_stack<F>(
    name: impl Into<String>,
    stack_bytes: usize,
    body: F,
) -> io::Result<Thread>
where
    F: FnOnce() + Send + 'static,
{
    let builder = std::thread::Builder::new().stack_size(stack_bytes);
    start(builder, name.into(), body)
}

#[allow(clippy::disallowed_methods)] // The one place that spawns.
fn start<F>(builder: std::thread::Builder, name: String, body: F) -> io::Result<Thread>
where
    F: FnOnce() + Send + 'static,
{
    match builder.name(name.clone()).spawn(body) {
        Ok(handle) => Ok(Thread { name, handle }),
        Err(error) => Err(refused(&name, &error)),
    }
}

/// What a refused thread lacked. The system says no more than that it is "temporarily unavailable",
/// for memory too.
fn refused(name: &str, error: &io::Error) -> io::Error {
    let limit = |resource| match getrlimit(resource).current {
        Some(limit) => limit.to_string(),
        None => "none".to_owned(),
    };
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let running = status
        .lines()
        .find_map(|line| line.strip_prefix("Threads:"));
    let text = format!(
        "cannot start the thread {name}: {error}. A thread needs memory for its stack and a place \
         among the threads of the system; this process has {} threads, its limit of memory is {} \
         (ulimit -v, in bytes), the limit of its user's threads {} (ulimit -u), and its container \
         may have others",
        running.unwrap_or("?").trim(),
        limit(Resource::As),
        limit(Resource::Nproc),
    );
    io::Error::new(error.kind(), text)
}

/// Makes a panic in any thread end the process, after `report` was called with what happened: the
/// thread, the place, the message, and the stack if `RUST_BACKTRACE` asks for it. `report` writes
/// it, and must return: the usual message is not written, as that would wait for a standard error
/// that takes nothing. Called once by `main` of each server; tests do without.
pub fn exit_on_panic(report: impl Fn(&str) + Send + Sync + 'static) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(move |info| {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or("without a name");
            let mut text = format!("the process ends: thread {name} {info}");
            let stack = Backtrace::capture();
            if stack.status() == BacktraceStatus::Captured {
                text += &format!("\n{stack}");
            }
            report(&text);
            std::process::exit(PANIC_EXIT_CODE);
        }));
    });
}

/// A running thread, to be joined by its owner.
#[must_use = "whoever starts a thread joins it"]
pub struct Thread {
    name: String,
    handle: JoinHandle<()>,
}

impl Thread {
    /// The thread's name, as in the thread table.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the thread's body has returned.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// Waits for the thread's end, however long it takes.
    pub fn join(self) {
        if self.handle.join().is_err() {
            log::error!("thread {} panicked", self.name);
        }
    }
}

/// Threads that stop together.
#[derive(Default)]
pub struct Threads {
    threads: Vec<Thread>,
}

impl Threads {
    /// Adds a thread; they are joined in the order in which they were added.
    pub fn push(&mut self, thread: Thread) {
        self.threads.push(thread);
    }

    /// Joins all until `deadline`. Those still running then are named in the log and returned, and
    /// left to end with the process.
    pub fn join(self, clock: &dyn Clock, deadline: Instant) -> Result<(), Vec<String>> {
        let mut late = Vec::new();
        for thread in self.threads {
            while !thread.is_finished() && clock.now() < deadline {
                crate::clock::sleep(JOIN_POLL_INTERVAL);
            }
            if thread.is_finished() {
                thread.join();
            } else {
                log::error!("thread {} did not stop in time", thread.name);
                late.push(thread.name);
            }
        }
        if late.is_empty() { Ok(()) } else { Err(late) }
    }
}

/// Tells threads to stop; set once, never cleared. Clones share it.
#[derive(Clone, Default)]
pub struct StopSignal {
    inner: Arc<(Mutex<bool>, Condvar)>,
}

impl StopSignal {
    /// Sets the signal and wakes all that wait for it.
    pub fn stop(&self) {
        *self.inner.0.lock() = true;
        self.inner.1.notify_all();
    }

    /// Whether the signal is set.
    pub fn is_stopped(&self) -> bool {
        *self.inner.0.lock()
    }

    /// Waits for the signal, `timeout` at most; true when it is set.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        let mut stopped = self.inner.0.lock();
        if !*stopped {
            self.inner
                .1
                .wait_while_for(&mut stopped, |stopped| !*stopped, timeout);
        }
        *stopped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    #[test]
    fn a_stop_wakes_who_waits() {
        let stop = StopSignal::default();
        assert!(!stop.wait_timeout(Duration::from_millis(1)));
        let seen = stop.clone();
        let thread = spawn("waits", move || {
            assert!(seen.wait_timeout(Duration::from_secs(60)))
        })
        .expect("a thread");
        stop.stop();
        thread.join();
        assert!(stop.is_stopped());
    }

    #[test]
    fn a_refused_thread_names_itself_and_the_limits() {
        let error = refused("rx-member-1", &io::ErrorKind::WouldBlock.into());
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let text = error.to_string();
        for part in [
            "the thread rx-member-1:",
            "memory",
            " threads, ",
            "ulimit -v",
            "ulimit -u",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains('?'), "{text}");
    }

    #[test]
    fn a_thread_that_does_not_stop_is_named() {
        let clock = SystemClock::new();
        let stop = StopSignal::default();
        let mut threads = Threads::default();
        for name in ["quick", "slow"] {
            let stop = stop.clone();
            let wait = Duration::from_secs(if name == "slow" { 60 } else { 0 });
            threads.push(spawn(name, move || _ = stop.wait_timeout(wait)).expect("a thread"));
        }
        let deadline = clock.now() + Duration::from_millis(50);
        assert_eq!(threads.join(&clock, deadline), Err(vec!["slow".to_owned()]));
        stop.stop();
    }
}
