//! Where the answer to a batch that waits arrives, from any thread.

use parking_lot::Mutex;

use crate::net::Waker;

/// Takes one answer and wakes the batch that waits for it.
pub struct Slot<T> {
    /// Held for a move; a waker is called outside it.
    state: Mutex<State<T>>,
}

struct State<T> {
    /// Only the first one counts.
    answer: Option<T>,
    waker: Option<Waker>,
}

impl<T> Default for Slot<T> {
    fn default() -> Slot<T> {
        let (answer, waker) = (None, None);
        Slot {
            state: Mutex::new(State { answer, waker }),
        }
    }
}

impl<T> Slot<T> {
    /// Gives the answer; without effect if one was given.
    pub fn fill(&self, answer: T) {
        let mut state = self.state.lock();
        if state.answer.is_none() {
            state.answer = Some(answer);
        }
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes the answer, if it is there: whoever does so waits no longer.
    pub fn take(&self) -> Option<T> {
        self.state.lock().answer.take()
    }

    /// Has `wake` called when the answer comes, at once if it is there.
    pub fn arm(&self, wake: Waker) {
        let mut state = self.state.lock();
        if state.answer.is_none() {
            state.waker = Some(wake);
        } else {
            drop(state);
            wake.wake();
        }
    }
}
