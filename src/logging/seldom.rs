//! Log lines that an outsider or a broken peer can cause at will: of each kind one in
//! [`INTERVAL`], with the number of those that were left out.
//!
//! A kind is a constant of the program, not a text that somebody sent, so there are as many as
//! places that log; what is left out of one kind does not depend on another. Lines that are left
//! out at the end of a burst are counted by the next line of the kind, however late that comes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{Clock, Instant, SystemClock};

/// The time between two lines of one kind. A line of 150 bytes is then 1.3 MB a day; at a tenth of
/// it a log of 16 MiB would hold a day of one kind.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// What was said of each kind. Pure.
#[derive(Debug, Default)]
pub struct Seldom {
    kinds: BTreeMap<&'static str, Said>,
}

#[derive(Debug)]
struct Said {
    /// When a line was written last.
    at: Instant,
    /// Lines that were left out since.
    left_out: u64,
}

/// How many lines were left out before this one. Displays as nothing, or as a remark in
/// parentheses that begins with a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut {
    count: u64,
    since: Duration,
}

impl Seldom {
    /// Whether a line of this kind is to be written at `now`, and how many were left out before it.
    pub fn allows(&mut self, kind: &'static str, now: Instant) -> Option<LeftOut> {
        let Some(said) = self.kinds.get_mut(kind) else {
            let said = Said {
                at: now,
                left_out: 0,
            };
            self.kinds.insert(kind, said);
            return Some(LeftOut {
                count: 0,
                since: Duration::ZERO,
            });
        };
        let since = now.since(said.at);
        if since < INTERVAL {
            said.left_out += 1;
            return None;
        }
        let count = std::mem::take(&mut said.left_out);
        said.at = now;
        Some(LeftOut { count, since })
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            0 => Ok(()),
            count => write!(f, " ({count} more of the kind in {:.0?})", self.since),
        }
    }
}

/// Guards the table of the process; held for a look-up.
static SAID: Mutex<Seldom> = Mutex::new(Seldom {
    kinds: BTreeMap::new(),
});

/// [`Seldom::allows`] of this process, now.
pub fn seldom(kind: &'static str) -> Option<LeftOut> {
    static CLOCK: OnceLock<SystemClock> = OnceLock::new();
    let now = CLOCK.get_or_init(SystemClock::new).now();
    SAID.lock().allows(kind, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_of_a_kind_in_an_interval_with_the_number_of_the_others() {
        let mut seldom = Seldom::default();
        let mut say = |kind, ms: u64| {
            let now = Instant::default() + Duration::from_millis(ms);
            seldom
                .allows(kind, now)
                .map(|left_out| left_out.to_string())
        };
        assert_eq!(say("refused", 0).as_deref(), Some(""));
        for ms in 1..=5_000 {
            assert_eq!(say("refused", ms), None);
        }
        assert_eq!(say("closed", 5_000).as_deref(), Some(""));
        let counted = say("refused", 12_000);
        assert_eq!(counted.as_deref(), Some(" (5000 more of the kind in 12s)"));
        assert_eq!(say("refused", 30_000).as_deref(), Some(""));
    }
}
