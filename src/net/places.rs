//! Which connections have the places of a server when they run short. Pure.
//!
//! Of the places within the limit of connections, [`Places`] keeps some for checks: requests for
//! health and status, as an operator needs them most when clients have taken everything else. A new
//! connection gets the first of these that is to be had:
//!
//! 1. a free ordinary place;
//! 2. the ordinary place of the connection that has been idle for longest, if that is for long
//!    enough ([`Idlest`]), which is closed;
//! 3. a free reserved place, where only checks are answered, and only for a short time
//!    ([`crate::protocol::RESERVED_TIME`]);
//! 4. the reserved place of the oldest connection that waits for its client, which is dismissed:
//!    so clients that say nothing cannot keep reserved places from those that ask;
//! 5. a place beyond the limit, where it is told that there are too many.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use crate::clock::Instant;

/// The most places that are reserved. A check takes a millisecond, so a quarter of it would do for
/// clients that ask; the rest is for checks that arrive together with connections that say nothing.
const RESERVED_MAX: usize = 64;

/// One place in so many is reserved, of few.
const RESERVED_SHARE: usize = 8;

/// Places beyond the limit, for connections that are told that it is reached. When they are used up
/// too, a connection is closed without a word.
const REFUSALS_MAX: usize = 256;

/// What a place is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Any request.
    Ordinary,
    /// Checks only, for a short time.
    Reserved,
    /// To be told that there are too many connections.
    Refusal,
}

/// The places of a server, numbered from 0: ordinary ones, reserved ones, refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// Number of the first reserved place.
    ordinary: usize,
    /// Number of the first place beyond the limit of connections.
    connections_max: usize,
}

impl Places {
    /// The places for this limit of connections, of which one at least is ordinary. With a limit of
    /// 1 none is reserved.
    pub fn new(connections_max: usize) -> Places {
        let reserved = (connections_max / RESERVED_SHARE).clamp(1, RESERVED_MAX);
        Places {
            ordinary: connections_max.saturating_sub(reserved).max(1),
            connections_max,
        }
    }

    /// Number of all places.
    pub fn count(self) -> usize {
        self.connections_max + REFUSALS_MAX
    }

    /// What the place of this number is for.
    pub fn of(self, number: usize) -> Place {
        match number {
            _ if number < self.ordinary => Place::Ordinary,
            _ if number < self.connections_max => Place::Reserved,
            _ => Place::Refusal,
        }
    }

    /// Numbers of all places for this.
    pub fn numbers(self, place: Place) -> Range<usize> {
        match place {
            Place::Ordinary => 0..self.ordinary,
            Place::Reserved => self.ordinary..self.connections_max,
            Place::Refusal => self.connections_max..self.count(),
        }
    }
}

/// A connection that waits for its client: since when (for a reserved place: when it was accepted),
/// and the number of its place. The first in order is the first to give way.
pub type Waiting = (Instant, usize);

/// The order in which idle connections give up ordinary places.
///
/// A look at all places is dear, so what one look finds serves many newcomers. Such a connection
/// may have been used since: whoever closes it has to compare since when it waits.
#[derive(Debug)]
pub struct Idlest {
    /// Time for which a connection has to be idle before it may be closed.
    idle_min: Duration,
    /// Connections that were idle for that long at the last look, in order.
    found: VecDeque<Waiting>,
    /// The earliest time at which a connection that is not in `found` can be idle for that long.
    look_at: Instant,
}

impl Idlest {
    /// Of connections that may be closed when they have been idle for `idle_min`.
    pub fn new(idle_min: Duration) -> Idlest {
        Idlest {
            idle_min,
            found: VecDeque::new(),
            look_at: Instant::default(),
        }
    }

    /// The next connection to give up its place at `now`, if there is one. `look` lists all idle
    /// connections in ordinary places.
    pub fn next(&mut self, now: Instant, look: impl FnOnce() -> Vec<Waiting>) -> Option<Waiting> {
        if self.found.is_empty() && now >= self.look_at {
            let mut idle = look();
            idle.sort_unstable();
            let is_long = |(since, _): &Waiting| now.since(*since) >= self.idle_min;
            let young = idle.split_off(idle.partition_point(is_long));
            // One that is busy now becomes idle later than this.
            let next = young.first().map_or(now, |(since, _)| *since);
            self.look_at = next + self.idle_min;
            self.found = idle.into();
        }
        self.found.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_eighth_of_the_places_is_reserved_up_to_64() {
        for (max, reserved) in [
            (1, 0),
            (2, 1),
            (3, 1),
            (16, 2),
            (100, 12),
            (512, 64),
            (16_384, 64),
            (1_000_000, 64),
        ] {
            let places = Places::new(max);
            assert_eq!(places.numbers(Place::Reserved).len(), reserved, "of {max}");
            let mut next = 0;
            for place in [Place::Ordinary, Place::Reserved, Place::Refusal] {
                let numbers = places.numbers(place);
                assert_eq!(numbers.start, next, "no gap before {place:?} of {max}");
                next = numbers.end;
                for number in [
                    numbers.start,
                    numbers.end - usize::from(!numbers.is_empty()),
                ] {
                    let is_there = numbers.contains(&number);
                    assert!(!is_there || places.of(number) == place, "{number} of {max}");
                }
            }
            assert_eq!(next, places.count());
            assert_eq!(
                places.numbers(Place::Refusal).start,
                max,
                "within the limit"
            );
            assert!(!places.numbers(Place::Ordinary).is_empty());
        }
    }

    fn at(ms: u64) -> Instant {
        Instant::default() + Duration::from_millis(ms)
    }

    #[test]
    fn the_longest_idle_goes_first_and_none_that_is_idle_for_a_short_time() {
        let mut idlest = Idlest::new(Duration::from_millis(100));
        let idle = || vec![(at(30), 1), (at(10), 2), (at(20), 3), (at(60), 4)];
        assert_eq!(idlest.next(at(109), idle), None);
        // Until the oldest of them can be old enough, nobody looks again.
        let unseen = || unreachable!("nothing can be found yet");
        assert_eq!(idlest.next(at(109), unseen), None);
        assert_eq!(idlest.next(at(131), idle), Some((at(10), 2)));
        assert_eq!(idlest.next(at(140), unseen), Some((at(20), 3)));
        assert_eq!(idlest.next(at(150), unseen), Some((at(30), 1)));
        assert_eq!(idlest.next(at(159), unseen), None);
        let left = || vec![(at(60), 4)];
        assert_eq!(idlest.next(at(160), left), Some((at(60), 4)));
        // Without any, the first that becomes idle from now on.
        assert_eq!(idlest.next(at(260), Vec::new), None);
        assert_eq!(idlest.next(at(359), unseen), None);
        let young = || vec![(at(260), 5)];
        assert_eq!(idlest.next(at(360), young), Some((at(260), 5)));
    }

    /// Against a model that looks at every connection each time: connections come, are used and are
    /// closed at random.
    #[test]
    fn it_is_always_the_longest_idle_that_goes() {
        let idle_min = Duration::from_millis(50);
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut idlest = Idlest::new(idle_min);
            // Since when each place's connection is idle.
            let mut places: Vec<Option<Instant>> = vec![None; 12];
            let mut now = at(1000);
            for _ in 0..300 {
                now = now + Duration::from_millis(random.u64(0..12));
                let number = random.usize(0..places.len());
                match random.u8(0..4) {
                    0 | 1 => places[number] = Some(now),
                    2 => places[number] = None,
                    _ => {
                        let listed = || {
                            let all = places.iter().enumerate();
                            let idle = all.filter_map(|(number, since)| Some(((*since)?, number)));
                            idle.collect::<Vec<_>>()
                        };
                        let is_long = |(since, _): &Waiting| now.since(*since) >= idle_min;
                        let expected = listed().into_iter().filter(is_long).min();
                        let found = loop {
                            match idlest.next(now, listed) {
                                Some((since, number)) if places[number] != Some(since) => {}
                                found => break found,
                            }
                        };
                        assert_eq!(found, expected, "seed {seed}");
                        if let Some((_, number)) = found {
                            places[number] = None;
                        }
                    }
                }
            }
        }
    }
}
