//! Calls and ends of what must be placed, in order: what is placed is taken out. Pure.
//!
//! A ring with a head: event 2i is the call of operation i, 2i + 1 its end. Only what was called
//! before the first end can be placed next.

use super::super::history::Moment;

/// The events that are left.
pub(super) struct Ring {
    next: Vec<usize>,
    previous: Vec<usize>,
}

impl Ring {
    /// With these events, of so many operations.
    pub fn new(mut events: Vec<(Moment, usize)>, operations: usize) -> Ring {
        events.sort_unstable();
        let head = 2 * operations;
        let mut next = vec![head; head + 1];
        let mut previous = next.clone();
        let mut last = head;
        for (_, event) in &events {
            (next[last], previous[*event]) = (*event, last);
            last = *event;
        }
        (next[last], previous[head]) = (head, last);
        Ring { next, previous }
    }

    /// The first event: a call, or the head.
    pub fn first(&self) -> usize {
        self.next[self.next.len() - 1]
    }

    /// The event behind this one.
    pub fn after(&self, event: usize) -> usize {
        self.next[event]
    }

    /// The event before this one, or the head.
    pub fn before(&self, event: usize) -> usize {
        self.previous[event]
    }

    /// Whether it is a call.
    pub fn is_call(&self, event: usize) -> bool {
        event + 1 < self.next.len() && event.is_multiple_of(2)
    }

    /// What may be placed next, by its calls.
    pub fn candidates(&self) -> impl Iterator<Item = usize> {
        let first = Some(self.first());
        let events = std::iter::successors(first, |event| Some(self.next[*event]));
        events
            .take_while(|event| self.is_call(*event))
            .map(|event| event / 2)
    }

    /// The operation that ends first.
    pub fn ends_first(&self) -> Option<usize> {
        let mut event = self.first();
        while self.is_call(event) {
            event = self.next[event];
        }
        (event + 1 < self.next.len()).then_some(event / 2)
    }

    /// Takes out an operation.
    pub fn take(&mut self, operation: usize) {
        for event in [2 * operation, 2 * operation + 1] {
            let (previous, next) = (self.previous[event], self.next[event]);
            (self.next[previous], self.previous[next]) = (next, previous);
        }
    }

    /// Puts back the last one taken out, so that each event finds its neighbours as it left them.
    pub fn put_back(&mut self, operation: usize) {
        for event in [2 * operation + 1, 2 * operation] {
            let (previous, next) = (self.previous[event], self.next[event]);
            (self.next[previous], self.previous[next]) = (event, event);
        }
    }
}
