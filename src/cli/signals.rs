//! The thread `signal`: hands the signals of a process to a function, one after the other.

use anyhow::{Context, Result};
use signal_hook::iterator::{Handle, Signals};

use crate::threads::{self, Thread};

/// Watches for signals until it is finished.
#[must_use = "whoever starts a thread joins it"]
pub struct SignalWatch {
    handle: Handle,
    thread: Thread,
}

impl SignalWatch {
    /// Calls `on_signal` for each of `signals` from now on.
    ///
    /// # Errors
    /// When the system refuses the handler or the thread.
    pub fn start(
        signals: &[i32],
        mut on_signal: impl FnMut(i32) + Send + 'static,
    ) -> Result<SignalWatch> {
        let mut signals = Signals::new(signals).context("cannot watch for signals")?;
        let handle = signals.handle();
        let body = move || signals.forever().for_each(&mut on_signal);
        let thread = threads::spawn("signal", body).context("cannot start a thread")?;
        Ok(SignalWatch { handle, thread })
    }

    /// Ends the thread. Signals that come later are taken by nobody.
    pub fn finish(self) {
        self.handle.close();
        self.thread.join();
    }
}
