//! A bounded queue to one thread, which sleeps as soon as the queue is empty.
//!
//! The receiver of a `crossbeam` channel looks again and again before it sleeps, and yields its
//! processor between some of these looks. That pays where the next item is on its way on another
//! processor. The Raft thread and the journal wait for disks, for peers and for clients: with two
//! processors each round of reads cost six changes of thread more, two fifths of the Raft thread's
//! time.
//!
//! A wake-up of the receiver can be held, see [`wakeups`].
//!
//! Lock: the state, held for a few moves; nothing else is locked under it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{RecvError, RecvTimeoutError, SendError, TryRecvError, TrySendError};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::threads::wakeups::{self, Sleeper};

/// A queue for `max` items, at least one.
pub fn bounded<T>(max: usize) -> (Sender<T>, Receiver<T>) {
    assert!(max > 0, "nothing could be sent");
    let queue = Arc::new(Queue {
        state: Mutex::new(State {
            items: VecDeque::new(),
            senders: 1,
            has_receiver: true,
            is_asleep: false,
        }),
        max,
        ready: Condvar::new(),
        room: Condvar::new(),
    });
    (Sender(Arc::clone(&queue)), Receiver(queue))
}

/// The side of those who send. A clone sends to the same receiver.
pub struct Sender<T>(Arc<Queue<T>>);

/// The side of the one who receives.
pub struct Receiver<T>(Arc<Queue<T>>);

struct Queue<T> {
    state: Mutex<State<T>>,
    max: usize,
    /// The receiver waits here for an item.
    ready: Condvar,
    /// Senders wait here for room.
    room: Condvar,
}

struct State<T> {
    items: VecDeque<T>,
    senders: usize,
    has_receiver: bool,
    /// The receiver waits, and nobody has begun to wake it.
    is_asleep: bool,
}

impl<T: Send + 'static> Sender<T> {
    /// Sends an item, or gives it back if the queue is full or its receiver is gone.
    pub fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
        let state = self.0.state.lock();
        if !state.has_receiver {
            return Err(TrySendError::Disconnected(item));
        }
        if state.items.len() >= self.0.max {
            return Err(TrySendError::Full(item));
        }
        self.0.push(state, item);
        Ok(())
    }

    /// Sends an item; waits for room while the queue is full. Gives it back without a receiver.
    /// To be called neither by the receiver's thread nor by one that holds its wake-ups: both would
    /// wait for themselves.
    pub fn send(&self, item: T) -> Result<(), SendError<T>> {
        let mut state = self.0.state.lock();
        while state.has_receiver && state.items.len() >= self.0.max {
            self.0.room.wait(&mut state);
        }
        if !state.has_receiver {
            return Err(SendError(item));
        }
        self.0.push(state, item);
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        self.0.state.lock().senders += 1;
        Sender(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.senders -= 1;
        if state.senders == 0 {
            drop(state);
            self.0.ready.notify_one();
        }
    }
}

impl<T> Receiver<T> {
    /// The next item, if there is one.
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        let mut state = self.0.state.lock();
        match self.0.pop(&mut state) {
            Some(item) => Ok(item),
            None if state.senders == 0 => Err(TryRecvError::Disconnected),
            None => Err(TryRecvError::Empty),
        }
    }

    /// Waits for the next item. An error says that there is none, and no sender any more.
    pub fn recv(&self) -> Result<T, RecvError> {
        self.0.receive(None).map_err(|_| RecvError)
    }

    /// As [`Receiver::recv`], for so long at most.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        self.0.receive(Some(timeout))
    }

    /// The items that are there, one after the other.
    pub fn try_iter(&self) -> impl Iterator<Item = T> + '_ {
        std::iter::from_fn(|| self.try_recv().ok())
    }

    /// How many items there are.
    pub fn len(&self) -> usize {
        self.0.state.lock().items.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.has_receiver = false;
        let items = std::mem::take(&mut state.items);
        drop(state);
        self.0.room.notify_all();
        drop(items);
    }
}

impl<T> Queue<T> {
    fn push(self: &Arc<Self>, mut state: MutexGuard<'_, State<T>>, item: T)
    where
        T: Send + 'static,
    {
        state.items.push_back(item);
        if std::mem::take(&mut state.is_asleep) {
            drop(state);
            wakeups::wake(self);
        }
    }

    fn pop(&self, state: &mut State<T>) -> Option<T> {
        let item = state.items.pop_front()?;
        // Most senders never wait.
        if state.items.len() + 1 == self.max {
            self.room.notify_all();
        }
        Some(item)
    }

    fn receive(&self, timeout: Option<Duration>) -> Result<T, RecvTimeoutError> {
        let mut state = self.state.lock();
        loop {
            if let Some(item) = self.pop(&mut state) {
                return Ok(item);
            }
            if state.senders == 0 {
                return Err(RecvTimeoutError::Disconnected);
            }
            state.is_asleep = true;
            // It is woken for nothing only where an item was taken before its wake-up came; it
            // waits anew then.
            let is_late = match timeout {
                Some(timeout) => self.ready.wait_for(&mut state, timeout).timed_out(),
                None => {
                    self.ready.wait(&mut state);
                    false
                }
            };
            state.is_asleep = false;
            if is_late && state.items.is_empty() {
                return Err(RecvTimeoutError::Timeout);
            }
        }
    }
}

impl<T: Send + 'static> Sleeper for Queue<T> {
    fn wake_up(self: Arc<Self>) {
        self.ready.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads::spawn;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn items_come_in_order_and_a_full_queue_gives_back_what_is_sent() {
        let (sender, receiver) = bounded(2);
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
        assert_eq!(
            receiver.recv_timeout(Duration::ZERO),
            Err(RecvTimeoutError::Timeout)
        );
        assert_eq!(
            (sender.try_send(1), sender.clone().send(2)),
            (Ok(()), Ok(()))
        );
        assert_eq!(sender.try_send(3), Err(TrySendError::Full(3)));
        assert_eq!(receiver.len(), 2);
        assert_eq!(
            (receiver.recv(), receiver.recv_timeout(LONG)),
            (Ok(1), Ok(2))
        );
        assert_eq!(sender.try_send(3), Ok(()));
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn what_was_sent_before_the_last_sender_left_is_received() {
        let (sender, receiver) = bounded(2);
        let other = sender.clone();
        sender.send(1).unwrap();
        drop(sender);
        assert_eq!(receiver.recv(), Ok(1));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
        drop(other);
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Disconnected));
        assert_eq!(receiver.recv(), Err(RecvError));
        assert_eq!(
            receiver.recv_timeout(LONG),
            Err(RecvTimeoutError::Disconnected)
        );
    }

    #[test]
    fn what_nobody_receives_is_dropped_with_the_receiver_or_given_back() {
        let (sender, receiver) = bounded(2);
        let item = Arc::new(());
        sender.send(Arc::clone(&item)).unwrap();
        drop(receiver);
        assert_eq!(Arc::strong_count(&item), 1);
        assert!(matches!(
            sender.try_send(Arc::clone(&item)),
            Err(TrySendError::Disconnected(_))
        ));
        assert!(sender.send(item).is_err());
    }

    #[test]
    fn a_receiver_sleeps_until_an_item_comes_or_the_last_sender_leaves() {
        let (sender, receiver) = bounded(1);
        let (done, is_done) = crossbeam_channel::bounded(1);
        let thread = spawn("receiver", move || {
            let received: Vec<u32> = std::iter::from_fn(|| receiver.recv().ok()).collect();
            done.send(received).unwrap();
        });
        // Each but the first waits for room.
        (0..1000).for_each(|item| sender.send(item).unwrap());
        drop(sender);
        let received = is_done.recv_timeout(LONG).expect("it ends");
        assert_eq!(received, (0..1000).collect::<Vec<_>>());
        thread.expect("a thread").join();
    }

    #[test]
    fn senders_that_wait_for_room_go_on_when_there_is_some_or_the_receiver_is_gone() {
        let (sender, receiver) = bounded(1);
        let (done, ends) = crossbeam_channel::bounded(2);
        sender.send(0).unwrap();
        let threads = [1, 1].map(|item| {
            let (sender, done) = (sender.clone(), done.clone());
            spawn("sender", move || {
                done.send(sender.send(item).is_ok()).unwrap()
            })
        });
        assert_eq!(receiver.recv_timeout(LONG), Ok(0));
        assert_eq!(ends.recv_timeout(LONG), Ok(true));
        drop(receiver);
        assert_eq!(ends.recv_timeout(LONG), Ok(false));
        threads
            .into_iter()
            .for_each(|thread| thread.expect("a thread").join());
    }

    #[test]
    fn held_wake_ups_of_a_receiver_come_when_they_are_let_go() {
        let (sender, receiver) = bounded(8);
        let (done, is_done) = crossbeam_channel::bounded(1);
        let thread = spawn("receiver", move || {
            let first = receiver.recv();
            done.send((first, receiver.len())).unwrap();
        });
        while !sender.0.state.lock().is_asleep {
            crate::clock::sleep(Duration::from_millis(1));
        }
        let held = wakeups::hold();
        (0..3).for_each(|item| sender.send(item).unwrap());
        assert!(is_done.is_empty());
        drop(held);
        assert_eq!(is_done.recv_timeout(LONG), Ok((Ok(0), 2)));
        thread.expect("a thread").join();
    }
}
