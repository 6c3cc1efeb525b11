//! A HaToKuSe session as a program has it: no prompt, bounded replies, every wait with a limit.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// How long to wait for one of a host's addresses to answer. A machine that is there answers within
/// milliseconds; twice as long only delays the turn of the next leader.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a reply may stand still. The server's own deadlines (2 s and the time the bytes need)
/// end well before it.
const REPLY_TIMEOUT: Duration = Duration::from_secs(15);

/// The longest line that is taken as a reply. `STATUS JSON` of a hundred members stays below a
/// tenth.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// Lines of a banner before the first prompt; more is no Tolerex.
const BANNER_LINES_MAX: usize = 100;

/// An open connection on which the prompt is off.
pub struct Session {
    stream: BufReader<TcpStream>,
}

impl Session {
    /// Connects to `host:port` and waits until the server has said hello.
    ///
    /// # Errors
    /// Nobody answers, or whoever answers refuses or speaks something else. Nothing was asked for.
    pub fn open(address: &str) -> io::Result<Session> {
        let mut last = io::Error::other("the name has no address");
        for candidate in address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&candidate, CONNECT_TIMEOUT) {
                Ok(stream) => return Session::greet(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn greet(stream: TcpStream) -> io::Result<Session> {
        stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
        stream.set_write_timeout(Some(REPLY_TIMEOUT))?;
        stream.set_nodelay(true)?;
        let mut session = Session {
            stream: BufReader::new(stream),
        };
        session.send(b"PROMPT OFF\r\n")?;
        for _ in 0..BANNER_LINES_MAX {
            let line = session.line()?;
            if line == b"tolerex> OK" {
                return Ok(session);
            }
            if line.starts_with(b"ERROR: ") {
                return Err(io::Error::other(String::from_utf8_lossy(&line)));
            }
        }
        Err(io::Error::other(
            "what listens there does not greet as Tolerex does",
        ))
    }

    /// Lets a reply stand still for so long.
    pub fn wait_for_replies(&self, timeout: Duration) -> io::Result<()> {
        self.stream.get_ref().set_read_timeout(Some(timeout))
    }

    /// The socket, for whoever reads replies in a way of his own. Replies must not be waiting.
    pub fn into_stream(self) -> TcpStream {
        assert!(self.stream.buffer().is_empty(), "every reply was taken");
        self.stream.into_inner()
    }

    /// Sends bytes; they may have arrived even if this fails.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes).map_err(plain)
    }

    /// The next line, without its line end.
    pub fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.stream).take(LINE_BYTES_MAX);
        bounded.read_until(b'\n', &mut line).map_err(plain)?;
        if line.pop() != Some(b'\n') {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the connection was closed within a reply",
            ));
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(line)
    }

    /// The next `count` bytes and the line end behind them.
    pub fn payload(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut payload = vec![0; count];
        self.stream.read_exact(&mut payload).map_err(plain)?;
        match self.line()?.as_slice() {
            [] => Ok(payload),
            _ => Err(io::Error::other("the payload is longer than was said")),
        }
    }
}

/// A socket's time-out reads "resource temporarily unavailable"; say what it means.
fn plain(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "no answer in time"),
        _ => error,
    }
}
