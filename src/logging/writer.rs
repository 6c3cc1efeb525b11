//! The thread `log`: writes the lines of the [`Queue`] to standard error, and keeps the log file
//! short ([`LogFile`]). It is the only thread of a server that waits for standard error.

use std::io::{self, Write};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::stdio;

use super::file::{self, LogFile};
use super::queue::{Entry, Queue};

/// What the thread `log` owns.
pub(super) struct Writer<W> {
    out: W,
    /// The log file, if standard error is one that this process keeps short.
    file: Option<LogFile>,
    /// The line that says how many lines are missing in its place.
    missing: fn(u64) -> Vec<u8>,
    /// Lines that could not be written, and have not been counted by a line yet.
    lost: u64,
    /// Lines written since the last look at the file.
    lines: usize,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(out: W, file: Option<LogFile>, missing: fn(u64) -> Vec<u8>) -> Writer<W> {
        Writer {
            out,
            file,
            missing,
            lost: 0,
            // The first look comes before the first line.
            lines: file::LINES_BETWEEN_LOOKS,
        }
    }

    /// Writes until the queue is closed and empty.
    pub(super) fn run(mut self, queue: &Queue) {
        let mut batch = Vec::new();
        while let Some(is_look_due) = queue.take(&mut batch) {
            if is_look_due || self.lines >= file::LINES_BETWEEN_LOOKS {
                self.lines = 0;
                self.look();
            }
            self.lines += batch.len();
            self.write(&mut batch);
        }
    }

    fn look(&mut self) {
        if let Some(Err(error)) = self.file.as_ref().map(LogFile::look) {
            // Nothing can be done about it, and it would fail again.
            self.file = None;
            log::error!("the log is not kept short any more: {error}");
        }
    }

    /// Writes a batch by one call, where that takes it all.
    fn write(&mut self, batch: &mut Vec<Entry>) {
        let mut bytes = Vec::new();
        // Where each line ends in `bytes`, and how many lines are missing if it is not written.
        let mut lines = Vec::with_capacity(batch.len() + 1);
        let mut add = |line: &[u8], count: u64| {
            bytes.extend_from_slice(line);
            lines.push((bytes.len(), count));
        };
        if self.lost > 0 {
            add(&(self.missing)(self.lost), self.lost);
        }
        for entry in batch.drain(..) {
            match entry {
                Entry::Line(line) => add(&line, 1),
                Entry::Dropped(count) => add(&(self.missing)(count), count),
            }
        }
        let written = write_all(&mut self.out, &bytes);
        let unwritten = lines.iter().filter(|(end, _)| *end > written);
        self.lost = unwritten.map(|(_, count)| count).sum();
    }
}

/// Writes `bytes`; gives how many were written before an error, which repeats itself or not.
fn write_all(out: &mut impl Write, bytes: &[u8]) -> usize {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match out.write(rest) {
            Ok(0) => break,
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(_) => break,
        }
    }
    written
}

/// Standard error. A write waits for room also where the pipe or terminal is set to fail instead,
/// which any process that shares it can do.
pub(super) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match io::stderr().write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&stdio::stderr(), PollFlags::OUT)], None)?;
                }
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes three bytes at a time, as long as it has room.
    struct Disk {
        text: Vec<u8>,
        room: usize,
    }

    impl Write for &mut Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(3).min(self.room);
            if count == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= count;
            self.text.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_once_others_can() {
        let mut disk = Disk {
            text: Vec::new(),
            room: 12,
        };
        let missing = |count| format!("{count} missing\n").into_bytes();
        let mut writer = Writer::new(&mut disk, None, missing);
        let line = |text: &str| Entry::Line(text.as_bytes().into());
        writer.write(&mut vec![line("one\n"), Entry::Dropped(4), line("two\n")]);
        assert_eq!(writer.lost, 5);
        writer.write(&mut vec![line("three\n"), Entry::Dropped(2)]);
        assert_eq!(writer.lost, 8);
        writer.out.room = usize::MAX;
        writer.out.text.clear();
        writer.write(&mut vec![line("four\n")]);
        writer.write(&mut vec![line("five\n")]);
        assert_eq!(writer.lost, 0);
        let text = String::from_utf8_lossy(&disk.text);
        assert_eq!(text, "8 missing\nfour\nfive\n");
    }
}
