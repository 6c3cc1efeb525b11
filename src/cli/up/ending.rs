//! When `tolerex up` ends, by signals: in order after the first, at once after a second.
//!
//! Signals come through a queue of their own, so that nothing else that waits for `main` can keep
//! them out. `main` looks at it at each turn of its loops.

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ};

use super::super::signals::{MEANINGLESS, SignalWatch, is_ignored};
use super::warn;
use crate::clock::{Clock, Instant, SystemClock};

/// A second signal that comes sooner is the first one once more: `timeout`, a service manager and
/// a closed terminal send two of them at once. Twice as long would feel like a hang to a person
/// who presses Ctrl-C again.
const HURRY_AFTER: Duration = Duration::from_millis(500);

/// Signals that may wait for `main`. When more come they are dropped: those that wait say enough.
const SIGNALS_MAX: usize = 8;

/// A signal and when it came, by the clock of the thread `signal`.
type Taken = (i32, Instant);

/// The kind of end that the signals received so far ask for.
pub(super) struct Ending {
    signals: Receiver<Taken>,
    /// When the first came; `None` while `up` is to go on.
    first: Option<Instant>,
    /// Whether a second one asks for the end at once.
    hurries: bool,
}

impl Ending {
    /// Takes the process's signals from now on. A SIGHUP that is ignored, as under `nohup`, stays
    /// so.
    pub(super) fn watch() -> anyhow::Result<(Ending, SignalWatch)> {
        let (sender, ending) = Ending::new();
        let clock = SystemClock::new();
        let mut signals = vec![SIGTERM, SIGINT];
        signals.extend(MEANINGLESS);
        if !is_ignored(SIGHUP) {
            signals.push(SIGHUP);
        }
        let watch = SignalWatch::start(&signals, move |signal| {
            if MEANINGLESS.contains(&signal) {
                warn(&format!("{} means nothing to `tolerex up`", name(signal)));
            } else {
                _ = sender.try_send((signal, clock.now()));
            }
        })?;
        Ok((ending, watch))
    }

    fn new() -> (Sender<Taken>, Ending) {
        let (sender, signals) = bounded(SIGNALS_MAX);
        let ending = Ending {
            signals,
            first: None,
            hurries: false,
        };
        (sender, ending)
    }

    /// Takes the signals that wait; whether `up` is to end.
    pub(super) fn is_wanted(&mut self) -> bool {
        for (signal, at) in self.signals.try_iter() {
            match self.first {
                None => self.first = Some(at),
                // A terminal that is closed is in no hurry.
                Some(first) if signal != SIGHUP && at >= first + HURRY_AFTER => {
                    self.hurries = true;
                }
                Some(_) => {}
            }
        }
        self.first.is_some()
    }

    /// Takes the signals that wait; whether the end is to come at once.
    pub(super) fn is_urgent(&mut self) -> bool {
        self.is_wanted() && self.hurries
    }
}

/// The name of a signal of [`MEANINGLESS`].
fn name(signal: i32) -> &'static str {
    match signal {
        SIGUSR1 => "SIGUSR1",
        SIGUSR2 => "SIGUSR2",
        SIGALRM => "SIGALRM",
        SIGXFSZ => "SIGXFSZ",
        _ => "a signal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_signal_hurries_unless_it_is_the_first_once_more() {
        let start = SystemClock::new().now();
        let after = |ms| start + Duration::from_millis(ms);
        let outcome = |signals: &[(i32, u64)]| {
            let (sender, mut ending) = Ending::new();
            for (signal, ms) in signals {
                sender.try_send((*signal, after(*ms))).expect("room");
            }
            (ending.is_wanted(), ending.is_urgent())
        };
        assert_eq!(outcome(&[]), (false, false));
        assert_eq!(outcome(&[(SIGINT, 0)]), (true, false));
        assert_eq!(outcome(&[(SIGHUP, 0), (SIGTERM, 100)]), (true, false));
        assert_eq!(outcome(&[(SIGTERM, 0), (SIGHUP, 900)]), (true, false));
        assert_eq!(outcome(&[(SIGTERM, 0), (SIGTERM, 499)]), (true, false));
        assert_eq!(outcome(&[(SIGHUP, 0), (SIGINT, 500)]), (true, true));
        let later = [(SIGINT, 0), (SIGINT, 100), (SIGINT, 900)];
        assert_eq!(outcome(&later), (true, true));
    }
}
