//! The thread `signal`: hands the signals of a process to a function, one after the other.
//!
//! A table in README.md tells the effect of each signal on each program. Signals that mean nothing
//! to a program that runs for long ([`MEANINGLESS`]) are taken and logged, as their default would
//! end it. The others keep their default: SIGQUIT and those of a fault end the process at once,
//! which loses nothing that was acknowledged, and Rust's runtime ignores SIGPIPE.

use std::fs;

use anyhow::{Context, Result};
use signal_hook::consts::{SIGALRM, SIGUSR1, SIGUSR2, SIGXFSZ};
use signal_hook::iterator::{Handle, Signals};

use crate::threads::{self, Thread};

/// Signals that a server takes without doing anything. With SIGXFSZ taken, a write beyond the
/// limit of `ulimit -f` fails by an error that is reported, instead of ending the process.
pub const MEANINGLESS: [i32; 4] = [SIGUSR1, SIGUSR2, SIGALRM, SIGXFSZ];

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
        let thread = threads::spawn("signal", body)?;
        Ok(SignalWatch { handle, thread })
    }

    /// Ends the thread. Signals that come later are taken by nobody.
    pub fn finish(self) {
        self.handle.close();
        self.thread.join();
    }
}

/// Whether this process ignores a signal. Asked before a handler is set, it says what whoever
/// started the process wants, as `nohup` does for SIGHUP. Without /proc the answer is no.
pub fn is_ignored(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    is_in_mask(&status, signal)
}

/// Whether a signal is in the mask `SigIgn` of a `/proc/PID/status`.
fn is_in_mask(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let bit = u32::try_from(signal - 1).ok();
    let bit = bit.and_then(|shift| 1_u64.checked_shl(shift));
    mask.zip(bit).is_some_and(|(mask, bit)| mask & bit != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use signal_hook::consts::{SIGHUP, SIGINT, SIGPIPE, SIGTERM};

    #[test]
    fn ignored_signals_are_read_from_the_mask() {
        let status = "Name:\tup\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\nx: 1\n";
        let ignored = [SIGHUP, SIGINT, SIGPIPE, SIGTERM].map(|s| is_in_mask(status, s));
        assert_eq!(ignored, [true, false, true, false]);
        for damaged in ["", "SigIgn:", "SigIgn:\txyz"] {
            assert!(!is_in_mask(damaged, SIGHUP), "{damaged:?}");
        }
        assert!(!is_in_mask(status, 0) && !is_in_mask(status, 65));
        // As set by Rust's runtime.
        assert!(is_ignored(SIGPIPE) && !is_ignored(SIGTERM));
    }
}
