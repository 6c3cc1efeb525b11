//! Wake-ups that a thread puts off until it has handed over all that it has.
//!
//! A thread that hands over several things in a row, such as the answers of one read from a socket,
//! wakes each receiver once, after the last of them. If it woke a receiver after the first one, the
//! receiver would often run at once, on the same processor, take that one thing, sleep again, and
//! be woken for the next: a system call and two changes of thread for each thing instead of for all
//! of them.
//!
//! What is handed over goes into the receiver's queue at once, as ever, so a receiver that is awake
//! finds it there. Only the wake-up of a receiver that sleeps waits. Whoever holds wake-ups must
//! not block meanwhile, and must let go of them soon.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Arc;

thread_local! {
    /// The sleepers that this thread is to wake; `None` while it holds no wake-ups.
    static HELD: RefCell<Option<Vec<Arc<dyn Sleeper>>>> = const { RefCell::new(None) };
}

/// A receiver that may sleep.
pub trait Sleeper: Send + Sync {
    /// Wakes it, or does a little of its work in its place. Called without locks, after all was
    /// handed over; it must not block.
    fn wake_up(self: Arc<Self>);
}

/// Wakes `sleeper`: at once, or when the calling thread lets go of its wake-ups. It is woken once
/// then, however often it was asked for.
pub fn wake<S: Sleeper + 'static>(sleeper: &Arc<S>) {
    let is_held = HELD.with_borrow_mut(|held| {
        let Some(held) = held else {
            return false;
        };
        let address = Arc::as_ptr(sleeper).cast::<()>();
        if !held.iter().any(|one| Arc::as_ptr(one).cast() == address) {
            let sleeper: Arc<dyn Sleeper> = Arc::<S>::clone(sleeper);
            held.push(sleeper);
        }
        true
    });
    if !is_held {
        Arc::clone(sleeper).wake_up();
    }
}

/// Whether the calling thread holds its wake-ups.
pub fn are_held() -> bool {
    HELD.with_borrow(Option::is_some)
}

/// Holds the wake-ups of the calling thread until what it returns is dropped. Within another one it
/// does nothing: the outer one lets go.
#[must_use]
pub fn hold() -> Held {
    let is_outer = HELD.with_borrow_mut(|held| {
        let is_outer = held.is_none();
        held.get_or_insert_default();
        is_outer
    });
    Held {
        is_outer,
        _of_thread: PhantomData,
    }
}

/// Wake-ups of a thread that are held; see [`hold`].
pub struct Held {
    is_outer: bool,
    /// It must be dropped on its own thread.
    _of_thread: PhantomData<*const ()>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.is_outer {
            return;
        }
        // Taken out first: one that is woken may hand over something itself.
        let held = HELD.with_borrow_mut(Option::take);
        held.into_iter().flatten().for_each(Sleeper::wake_up);
    }
}

/// For tests: counts how often it is woken.
#[cfg(test)]
#[derive(Default)]
pub struct Counting(std::sync::atomic::AtomicUsize);

#[cfg(test)]
impl Counting {
    /// How often it was woken.
    pub fn count(&self) -> usize {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}

#[cfg(test)]
impl Sleeper for Counting {
    fn wake_up(self: Arc<Self>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sleeper_is_woken_once_when_the_outermost_lets_go() {
        let sleepers: [Arc<Counting>; 2] = Default::default();
        let woken = || [0, 1].map(|n: usize| sleepers[n].count());
        wake(&sleepers[0]);
        wake(&sleepers[0]);
        assert_eq!(woken(), [2, 0], "at once");
        let held = hold();
        for _ in 0..3 {
            let _inner = hold();
            wake(&sleepers[0]);
            wake(&sleepers[1]);
        }
        assert!(are_held());
        assert_eq!(woken(), [2, 0]);
        drop(held);
        assert_eq!(woken(), [3, 1]);
        assert!(!are_held());
        wake(&sleepers[1]);
        assert_eq!(woken(), [3, 2]);
    }

    #[test]
    fn threads_hold_their_own_wake_ups() {
        let sleeper: Arc<Counting> = Arc::default();
        let _held = hold();
        let other = Arc::clone(&sleeper);
        super::super::spawn("other", move || wake(&other))
            .unwrap()
            .join();
        assert_eq!(sleeper.count(), 1);
    }
}
