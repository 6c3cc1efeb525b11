//! Large payloads leave processor time to small requests of the same process.
//!
//! A thread that moves large payloads calls [`Pace::rest`] after each piece of some 100 KiB. If
//! small requests were sent or answered meanwhile, it sleeps for [`REST`] times the processor time
//! that the piece took, so it takes a share of a processor that is bounded, and no more than small
//! requests leave of it. It goes at full speed while there are none.
//!
//! A lower priority (`nice`) would do the same with less code, but counts against every process of
//! the machine: beside others that keep all processors busy, a read of 16 MB took many seconds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// How much longer than it works a thread rests while there are small requests. With half of it 64
/// writers kept just half of their rate beside 64 readers of large messages, on two processors;
/// with twice of it those readers would get half as much.
const REST: u32 = 12;

/// The longest rest: a piece never takes so long that a longer one would be fair.
const REST_MAX: Duration = Duration::from_millis(10);

/// Small requests and answers of this process, counted since its start.
static SMALL: AtomicU64 = AtomicU64::new(0);

/// A small request is sent, or answered.
pub fn note_small() {
    SMALL.fetch_add(1, Ordering::Relaxed);
}

/// The pace of one thread. Made and used on that thread.
#[derive(Debug)]
pub struct Pace {
    /// [`SMALL`] at the end of the last piece.
    small: u64,
    /// Processor time of the thread by then.
    worked: Duration,
}

impl Pace {
    /// The pace of the calling thread.
    pub fn of_this_thread() -> Pace {
        Pace {
            small: SMALL.load(Ordering::Relaxed),
            worked: processor_time(),
        }
    }

    /// Ends a piece of work: rests if there were small requests since the last one ended.
    pub fn rest(&mut self) {
        let rest = self.due(SMALL.load(Ordering::Relaxed), processor_time());
        if !rest.is_zero() {
            crate::clock::sleep(rest);
        }
    }

    /// How long to rest when `small` requests were counted and the thread has worked for `worked`.
    fn due(&mut self, small: u64, worked: Duration) -> Duration {
        let piece = worked.saturating_sub(std::mem::replace(&mut self.worked, worked));
        match std::mem::replace(&mut self.small, small) == small {
            true => Duration::ZERO,
            false => (piece * REST).min(REST_MAX),
        }
    }
}

/// How long the calling thread has run on a processor.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_rests_in_proportion_to_its_work_while_there_are_small_requests() {
        let ms = Duration::from_millis;
        let (small, worked) = (3, ms(50));
        let mut pace = Pace { small, worked };
        assert_eq!(pace.due(3, ms(51)), ms(0), "nobody is in a hurry");
        assert_eq!(
            pace.due(4, Duration::from_micros(51_500)),
            ms(6),
            "for the last piece alone"
        );
        assert_eq!(pace.due(4, ms(52)), ms(0), "it is over");
        assert_eq!(pace.due(9, ms(153)), REST_MAX);
    }

    #[test]
    fn only_work_counts() {
        let before = processor_time();
        crate::clock::sleep(Duration::from_millis(20));
        let slept = processor_time() - before;
        assert!(slept < Duration::from_millis(10), "{slept:?}");
        let mut sum = 0u64;
        while processor_time() < before + Duration::from_millis(20) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
    }
}
