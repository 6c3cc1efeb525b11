//! How busy each worker of a server is, and how many connections one hands over to another. Pure.
//!
//! Each worker measures its load, the share of the time for which it works, over a window of
//! [`WINDOW`], and reports it at the window's end. One that is busy while another is much less so
//! hands some of the connections that it serves over to the one with the lowest load.
//!
//! After a hand-over both workers measure a whole window anew. Until then the one hands nothing
//! over and the other gets nothing, so that several busy workers do not all choose the same idle
//! one, each as if it were alone.

use std::time::Duration;

use crate::clock::Instant;

/// Length of a window. Half of it is too short to mean something; with ten times as much, clients
/// that send for a few seconds would not gain.
pub const WINDOW: Duration = Duration::from_millis(100);

/// The load of a worker that never waits.
pub const FULL: u32 = 1000;

/// The lowest load at which a worker hands connections over, of [`FULL`]. Below it none of its
/// clients waits for long.
const BUSY: u32 = 700;

/// The smallest difference between two loads at which connections move, of [`FULL`]. Loads of equal
/// workers differ a little from window to window, for which no connection should move.
const GAP: u32 = 300;

/// For how long a worker that was given connections gets no more, if it does not report meanwhile:
/// it sleeps, as they send nothing.
const SETTLING_TIME: Duration = Duration::from_millis(300);

/// The loads of all workers of a server.
#[derive(Debug)]
pub struct Loads(Vec<Load>);

#[derive(Clone, Debug, Default)]
struct Load {
    /// As reported last, of [`FULL`]; `None` before the first report.
    measured: Option<u32>,
    /// When connections were last handed over from or to the worker, if it has not reported a
    /// whole window since.
    moved_at: Option<Instant>,
}

impl Load {
    /// Whether the worker may get connections at `now`, as far as earlier ones go.
    fn is_settled(&self, now: Instant) -> bool {
        self.moved_at
            .is_none_or(|at| now.since(at) >= SETTLING_TIME)
    }
}

/// The window of a worker that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// When it began.
    pub began: Instant,
    /// When it ended.
    pub ended: Instant,
    /// The share of it for which the worker worked, of [`FULL`].
    pub load: u32,
    /// Connections that the worker served in it.
    pub served: usize,
}

/// Connections that a worker is to hand over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surplus {
    /// How many.
    pub count: usize,
    /// The number of the worker that gets them.
    pub to: usize,
}

impl Loads {
    /// Of so many workers, which have done nothing yet.
    pub fn new(workers: usize) -> Loads {
        Loads(vec![Load::default(); workers])
    }

    /// Takes the report of a worker, and says what it is to hand over. `is_asleep` tells whether
    /// the worker with this number has slept during the whole window, and so reports nothing.
    pub fn report(
        &mut self,
        worker: usize,
        window: Window,
        is_asleep: impl Fn(usize) -> bool,
    ) -> Option<Surplus> {
        let own = &mut self.0[worker];
        own.measured = Some(window.load);
        if own
            .moved_at
            .is_some_and(|moved_at| window.began <= moved_at)
        {
            // A part of it is from before the hand-over.
            return None;
        }
        own.moved_at = None;
        // The load of a worker that is awake and has not reported yet is not known.
        let expected = |(number, load): (usize, &Load)| {
            let measured = if is_asleep(number) {
                Some(0)
            } else {
                load.measured
            };
            load.is_settled(window.ended).then_some((measured?, number))
        };
        let others = self.0.iter().enumerate();
        let others = others.filter(|(number, _)| *number != worker);
        let (lowest, to) = others.filter_map(expected).min()?;
        let count = surplus(window.load, lowest, window.served);
        if count == 0 {
            return None;
        }
        for number in [worker, to] {
            self.0[number].moved_at = Some(window.ended);
        }
        Some(Surplus { count, to })
    }
}

/// How many of the connections served in a window a worker hands over to one with a lower load:
/// half of what would make their loads equal, rounded up, so that they do not go to and fro.
fn surplus(own: u32, other: u32, served: usize) -> usize {
    if own < BUSY || own.saturating_sub(other) < GAP {
        return 0;
    }
    let equal = served * (own - other) as usize / (own as usize * 2);
    equal.div_ceil(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_worker_hands_a_part_over_and_one_that_serves_one_connection_nothing() {
        assert_eq!(surplus(1000, 0, 1), 0);
        assert_eq!(surplus(1000, 0, 2), 1);
        assert_eq!(surplus(1000, 0, 64), 16);
        assert_eq!(surplus(1000, 600, 64), 6);
        assert_eq!(surplus(1000, 701, 64), 0);
        assert_eq!(surplus(600, 0, 64), 0);
        // The other one has more to do.
        assert_eq!(surplus(800, 1000, 64), 0);
    }

    /// Windows of 100 ms, of which the first is number 0.
    fn window(number: u64, load: u32, served: usize) -> Window {
        let began = Instant::default() + WINDOW * u32::try_from(number).unwrap_or(u32::MAX);
        Window {
            began,
            ended: began + WINDOW,
            load,
            served,
        }
    }

    #[test]
    fn each_of_the_busy_workers_gives_to_another_of_the_idle_ones() {
        let mut loads = Loads::new(5);
        let asleep = |number| number >= 3;
        let mut report = |worker| loads.report(worker, window(1, 1000, 64), asleep);
        assert_eq!(report(0), Some(Surplus { count: 16, to: 3 }));
        assert_eq!(report(1), Some(Surplus { count: 16, to: 4 }));
        // Nobody knows yet what those have to do now.
        assert_eq!(report(2), None);
    }

    #[test]
    fn a_worker_that_is_awake_and_has_not_reported_gets_nothing() {
        let mut loads = Loads::new(2);
        assert_eq!(loads.report(0, window(0, 1000, 8), |_| false), None);
    }

    #[test]
    fn after_a_hand_over_both_workers_measure_a_whole_window_first() {
        let mut loads = Loads::new(3);
        let mut report = |worker, window| loads.report(worker, window, |_| false);
        assert_eq!(report(2, window(0, 100, 1)), None);
        let some = Some(Surplus { count: 2, to: 2 });
        assert_eq!(report(0, window(0, 1000, 8)), some);
        // It hands these over during its next window; how that went is seen after it.
        assert_eq!(report(0, window(1, 1000, 8)), None);
        // So it is with the one that gets them: their load is not in this window.
        assert_eq!(report(2, window(1, 100, 1)), None);
        assert_eq!(report(0, window(2, 1000, 8)), None);
        assert_eq!(report(2, window(2, 300, 3)), None);
        assert!(report(0, window(3, 1000, 6)).is_some());
    }

    #[test]
    fn a_worker_that_sleeps_on_after_a_hand_over_gets_more_later() {
        let mut loads = Loads::new(2);
        let mut report = |number| loads.report(0, window(number, 1000, 64), |number| number == 1);
        assert!(report(0).is_some());
        assert_eq!([report(1), report(2)], [None, None]);
        assert!(report(3).is_some());
    }

    /// All clients that send are with some of the workers, which report one after the other; each
    /// client keeps its worker busy for the same share of the time. No worker gets more than those
    /// that hand over keep, and before long no client is moved any more.
    #[test]
    fn moving_is_fair_and_ends() {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let workers = random.usize(2..9);
            let cost = random.u32(10..400);
            let hot = random.usize(1..workers);
            let clients = |worker| if worker < hot { 48 } else { 0 };
            let mut at: Vec<usize> = (0..workers).map(clients).collect();
            let mut loads = Loads::new(workers);
            let mut moved_last = 0;
            for number in 0..60 {
                let served = at.clone();
                for worker in 0..workers {
                    let load = (cost * served[worker] as u32).min(FULL);
                    let window = window(number, load, served[worker]);
                    let asleep = |other: usize| served[other] == 0;
                    if asleep(worker) {
                        continue;
                    }
                    if let Some(Surplus { count, to }) = loads.report(worker, window, asleep) {
                        at[worker] -= count;
                        at[to] += count;
                        assert!(at[to] <= at[worker], "seed {seed}: {served:?} to {at:?}");
                        moved_last = number;
                    }
                }
            }
            assert!(moved_last < 40, "seed {seed}: moved in window {moved_last}");
            // What is left has no worker that is busy while another is much less so.
            let load = |count: &usize| (cost * *count as u32).min(FULL);
            let (low, high) = (at.iter().map(load).min(), at.iter().map(load).max());
            let gap = high.zip(low).map_or(0, |(high, low)| high - low);
            // A single connection cannot be halved.
            let is_even = at.iter().max() <= at.iter().min().map(|least| least + 1).as_ref();
            assert!(
                high < Some(BUSY) || gap < GAP || is_even,
                "seed {seed}: {at:?}, {cost}"
            );
        }
    }
}
