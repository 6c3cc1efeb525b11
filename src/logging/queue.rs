//! The queue of log lines between the threads that log and the thread `log`, which writes them.
//!
//! A thread that logs copies its line into the queue and goes on. It waits for no I/O, and for no
//! thread that does I/O: the lock is held only to put lines in or to take them out.
//!
//! Invariants:
//! * At most [`LINES_MAX`] lines of [`BYTES_MAX`] bytes together wait, beside the last words of the
//!   process ([`Queue::put_last`]).
//! * Lines are written in the order in which they were put in.
//! * A line that finds no room is dropped and counted. The count is an entry of the queue, in the
//!   place of the lines: once a line was dropped, further ones are dropped too until the writing
//!   thread has made room and put the count in.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Lines that may wait. At level `debug` a busy leader logs some 10,000 lines a second: the queue
/// bridges a pause of most of a second. Twice as many would be no limit before [`BYTES_MAX`].
pub(super) const LINES_MAX: usize = 8_192;

/// Bytes of lines that may wait: [`LINES_MAX`] lines of the usual length, some 100 bytes. The
/// memory is taken only while lines wait.
pub(super) const BYTES_MAX: usize = 1 << 20;

/// Bytes that are written by one call, if no line is longer. Fewer would cost a call for each few
/// lines under load; more would keep lines out of the file, and room out of the queue, for longer.
const BATCH_BYTES_MAX: usize = 16 << 10;

/// What waits to be written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// A line with its line feed.
    Line(Box<[u8]>),
    /// The number of lines that were dropped in this place.
    Dropped(u64),
}

/// The queue. One thread takes entries out ([`Queue::take`]), any thread puts lines in.
pub(super) struct Queue {
    /// Held for no I/O, and no other lock is taken under it.
    state: Mutex<State>,
    /// Wakes the writing thread: there is an entry, a look is due, or the queue is closed.
    filled: Condvar,
    /// Wakes the threads in [`Queue::flush`]: entries were written.
    written: Condvar,
}

struct State {
    /// Whether lines are accepted: there is a writing thread.
    is_open: bool,
    /// What waits, oldest first.
    entries: VecDeque<Entry>,
    /// Bytes of the lines in `entries`.
    bytes: usize,
    /// Lines that were dropped and have no entry yet.
    dropped: u64,
    /// Entries that were ever put in.
    put: u64,
    /// Entries that were taken out, and whose write has ended. At most `put`.
    done: u64,
    /// Entries that the writing thread has taken and not written yet.
    taken: u64,
    /// Whether the writing thread is to look after its file before it writes on.
    is_look_due: bool,
}

impl State {
    fn put(&mut self, entry: Entry) {
        if let Entry::Line(line) = &entry {
            self.bytes += line.len();
        }
        self.entries.push_back(entry);
        self.put += 1;
    }

    /// Puts the count of dropped lines in their place, if there are any.
    fn put_count(&mut self) {
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0 {
            self.put(Entry::Dropped(dropped));
        }
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.dropped == 0 && self.entries.len() < LINES_MAX && self.bytes + bytes <= BYTES_MAX
    }
}

impl Queue {
    /// A queue that accepts nothing yet.
    pub(super) const fn new() -> Queue {
        Queue {
            state: Mutex::new(State {
                is_open: false,
                entries: VecDeque::new(),
                bytes: 0,
                dropped: 0,
                put: 0,
                done: 0,
                taken: 0,
                is_look_due: false,
            }),
            filled: Condvar::new(),
            written: Condvar::new(),
        }
    }

    /// Accepts lines from now on. A thread that calls [`Queue::take`] is to be started next.
    pub(super) fn open(&self) {
        self.state.lock().is_open = true;
    }

    /// Accepts no more lines. The writing thread ends after it has written those that wait.
    pub(super) fn close(&self) {
        self.state.lock().is_open = false;
        self.filled.notify_one();
    }

    /// Puts a line in, or drops and counts it where there is no room.
    pub(super) fn put(&self, line: &[u8]) {
        let copy = Entry::Line(line.into());
        let mut state = self.state.lock();
        if !state.is_open {
            return;
        }
        if !state.has_room(line.len()) {
            state.dropped += 1;
            return;
        }
        state.put(copy);
        self.filled.notify_one();
    }

    /// Puts a line in whether there is room or not. For the few lines that explain the end of the
    /// process. False if the queue is not open.
    pub(super) fn put_last(&self, line: &[u8]) -> bool {
        let mut state = self.state.lock();
        if state.is_open {
            state.put_count();
            state.put(Entry::Line(line.into()));
            self.filled.notify_one();
        }
        state.is_open
    }

    /// Has the writing thread look after its file before it writes what is put in from now on.
    pub(super) fn request_look(&self) {
        self.state.lock().is_look_due = true;
        self.filled.notify_one();
    }

    /// Waits until all that was put in before the call is written, or could not be; false when
    /// `timeout` has passed before.
    pub(super) fn flush(&self, timeout: Duration) -> bool {
        let mut state = self.state.lock();
        state.put_count();
        let target = state.put;
        let late = |state: &mut State| state.done < target;
        !self
            .written
            .wait_while_for(&mut state, late, timeout)
            .timed_out()
    }

    /// For the one thread that writes: says that the entries of the last call are written, and
    /// waits for more. They are appended to `batch`; the answer is whether a look is due before
    /// they are written. `None` when the queue is closed and empty.
    pub(super) fn take(&self, batch: &mut Vec<Entry>) -> Option<bool> {
        let mut state = self.state.lock();
        state.done += std::mem::take(&mut state.taken);
        self.written.notify_all();
        self.filled.wait_while(&mut state, |state| {
            state.is_open && !state.is_look_due && state.entries.is_empty()
        });
        let mut bytes = 0;
        while bytes < BATCH_BYTES_MAX {
            let Some(entry) = state.entries.pop_front() else {
                break;
            };
            if let Entry::Line(line) = &entry {
                bytes += line.len();
            }
            state.taken += 1;
            batch.push(entry);
        }
        state.bytes -= bytes;
        // The room that was made is after the dropped lines' place.
        state.put_count();
        let is_look_due = std::mem::take(&mut state.is_look_due);
        (is_look_due || state.taken > 0).then_some(is_look_due)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::{Clock, SystemClock};
    use crate::threads;

    fn open() -> Queue {
        let queue = Queue::new();
        queue.open();
        queue
    }

    /// Everything that waits, as the writing thread gets it; ends at the queue's end.
    fn take_all(queue: &Queue) -> Vec<Entry> {
        queue.close();
        let mut all = Vec::new();
        while queue.take(&mut all).is_some() {}
        all
    }

    fn line(text: impl ToString) -> Entry {
        Entry::Line(text.to_string().into_bytes().into())
    }

    #[test]
    fn lines_are_taken_in_their_order_in_batches() {
        let queue = open();
        for number in 0..5_000 {
            queue.put(format!("{number:010}").as_bytes());
        }
        let mut batch = Vec::new();
        assert_eq!(queue.take(&mut batch), Some(false));
        assert_eq!(batch.len(), BATCH_BYTES_MAX.div_ceil(10));
        batch.extend(take_all(&queue));
        let expected = (0..5_000).map(|number| line(format!("{number:010}")));
        assert_eq!(batch, expected.collect::<Vec<_>>());
    }

    #[test]
    fn lines_beyond_the_bound_are_dropped_and_counted_in_their_place() {
        let queue = open();
        for number in 0..LINES_MAX + 3 {
            queue.put(number.to_string().as_bytes());
        }
        // Room for some thousands of lines, and one more gap before the end.
        let mut all = Vec::new();
        queue.take(&mut all).expect("lines");
        let room = all.len() - 1;
        assert!(room > 1_000);
        for _ in 0..room + 2 {
            queue.put(b"later");
        }
        all.extend(take_all(&queue));
        let mut expected: Vec<Entry> = (0..LINES_MAX).map(line).collect();
        expected.push(Entry::Dropped(3));
        expected.extend((0..room).map(|_| line("later")));
        expected.push(Entry::Dropped(2));
        assert_eq!(all, expected);
    }

    #[test]
    fn bytes_are_bounded_and_a_short_line_does_not_overtake_a_dropped_one() {
        let queue = open();
        let long = "x".repeat(BYTES_MAX / 4);
        for _ in 0..3 {
            queue.put(long.as_bytes());
        }
        queue.put(b"fits");
        queue.put(long.as_bytes());
        queue.put(b"would fit");
        let mut all = Vec::new();
        queue.take(&mut all).expect("lines");
        queue.put(b"after");
        queue.put(&[b'x'; BYTES_MAX + 1]);
        all.extend(take_all(&queue));
        let mut expected: Vec<Entry> = (0..3).map(|_| line(&long)).collect();
        expected.extend([line("fits"), Entry::Dropped(2)]);
        expected.extend([line("after"), Entry::Dropped(1)]);
        assert_eq!(all, expected);
    }

    #[test]
    fn last_words_have_room_in_a_full_queue_after_the_count() {
        let queue = Queue::new();
        assert!(!queue.put_last(b"nobody would write it"));
        queue.put(b"nobody would write it");
        queue.open();
        for _ in 0..LINES_MAX + 7 {
            queue.put(b"x");
        }
        assert!(queue.put_last(b"the end"));
        let all = take_all(&queue);
        assert_eq!(all.len(), LINES_MAX + 2);
        assert_eq!(all[LINES_MAX..], [Entry::Dropped(7), line("the end")]);
    }

    #[test]
    fn a_flush_waits_for_the_write_and_not_for_longer_than_it_may() {
        let clock = SystemClock::new();
        let queue = Arc::new(open());
        assert!(queue.flush(Duration::from_secs(60)), "there is nothing");
        queue.put(b"a line");
        // Taken is not written.
        let mut batch = Vec::new();
        assert_eq!(queue.take(&mut batch), Some(false));
        let start = clock.now();
        assert!(!queue.flush(Duration::from_millis(50)));
        let waited = clock.now().since(start);
        assert!(waited >= Duration::from_millis(50) && waited < Duration::from_secs(10));
        let writer = threads::spawn("log", {
            let queue = Arc::clone(&queue);
            move || while queue.take(&mut batch).is_some() {}
        });
        assert!(queue.flush(Duration::from_secs(60)));
        queue.close();
        writer.expect("a thread").join();
    }

    #[test]
    fn a_look_is_due_before_what_is_put_in_after_the_request() {
        let queue = open();
        queue.put(b"before");
        let mut batch = Vec::new();
        assert_eq!(queue.take(&mut batch), Some(false));
        queue.request_look();
        queue.put(b"after");
        assert_eq!(queue.take(&mut batch), Some(true));
        queue.request_look();
        assert_eq!(queue.take(&mut batch), Some(true));
        assert_eq!(batch, [line("before"), line("after")]);
        queue.close();
        assert_eq!(queue.take(&mut batch), None);
    }
}
