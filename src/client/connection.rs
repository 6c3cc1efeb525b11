//! One HaToKuSe connection as a program has it: no prompt, bounded replies, every wait with a
//! limit.

use std::borrow::Cow;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::request::{Form, Request};
use crate::config::leader::PAYLOAD_BYTES_CEILING;
use crate::protocol::request::PAGE_KEYS_MAX;

/// The longest line that is taken as a reply: the largest message that a leader may be configured
/// for, as GET gives it.
const LINE_BYTES_MAX: u64 = PAYLOAD_BYTES_CEILING + 2;

/// Lines of a reply behind the first, if it ends with an empty line: a page of a listing has the
/// most, with its MORE.
const REPLY_LINES_MAX: usize = PAGE_KEYS_MAX as usize + 1;

/// Lines of a banner before the first prompt; more is no Tolerex.
const BANNER_LINES_MAX: usize = 100;

/// A reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// Its first line, without line end.
    pub line: Vec<u8>,
    /// What stands behind it: the payload of a value or a batch; of a table the other lines, each
    /// with an LF.
    pub rest: Vec<u8>,
    /// What that is.
    pub form: Form,
}

impl Reply {
    /// All of it as lines that end in LF.
    pub fn text(&self) -> Vec<u8> {
        let end: &[u8] = match self.form {
            Form::Value | Form::Batch => b"\n",
            Form::Line | Form::Lines => b"",
        };
        [&self.line[..], b"\n", &self.rest, end].concat()
    }
}

/// An open connection on which the prompt is off.
pub struct Connection {
    stream: BufReader<TcpStream>,
    /// How long a read or a write may stand still.
    timeout: Duration,
}

impl Connection {
    /// Connects to `host:port` and waits until the server has said hello, which may each take
    /// `timeout`, not 0, for each address of the name. A read or a write may then stand still for
    /// the same time.
    ///
    /// # Errors
    /// Nobody answers, or whoever answers refuses or speaks something else. Nothing was asked for.
    pub fn open(address: &str, timeout: Duration) -> io::Result<Connection> {
        Connection::greet(connect(address, timeout)?, timeout)
    }

    fn greet(stream: TcpStream, timeout: Duration) -> io::Result<Connection> {
        let mut connection = Connection {
            stream: BufReader::new(stream),
            timeout: Duration::ZERO,
        };
        connection.set_timeout(timeout)?;
        connection.send(b"PROMPT OFF\r\n")?;
        for _ in 0..BANNER_LINES_MAX {
            let line = connection.line()?;
            if line == b"tolerex> OK" {
                return Ok(connection);
            }
            if line.starts_with(b"ERROR: ") {
                return Err(io::Error::other(String::from_utf8_lossy(&line)));
            }
        }
        Err(io::Error::other(
            "what listens there does not greet as Tolerex does",
        ))
    }

    /// Lets a read or a write stand still for so long, not 0.
    pub fn set_timeout(&mut self, timeout: Duration) -> io::Result<()> {
        if self.timeout != timeout {
            let stream = self.stream.get_ref();
            stream.set_read_timeout(Some(timeout))?;
            stream.set_write_timeout(Some(timeout))?;
            self.timeout = timeout;
        }
        Ok(())
    }

    /// Whether the server has neither closed it nor sent what was not asked for.
    pub fn is_quiet(&self) -> bool {
        let stream = self.stream.get_ref();
        if !self.stream.buffer().is_empty() || stream.set_nonblocking(true).is_err() {
            return false;
        }
        let peeked = stream.peek(&mut [0]);
        let is_empty = peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        stream.set_nonblocking(false).is_ok() && is_empty
    }

    /// Sends a request and takes its reply.
    ///
    /// # Errors
    /// The request may have been executed. The connection is of no use any more.
    pub fn ask(&mut self, request: &Request) -> io::Result<Reply> {
        self.send(&request.bytes)?;
        self.reply(request.form)
    }

    /// Sends requests and takes their replies, as far as it comes. The reply of each may stand
    /// still for so long.
    ///
    /// Whoever sends without end and does not read may wait for a server that waits for its
    /// replies to be read. So no more is sent ahead than the socket takes at once, and the rest
    /// between the replies; to wait for room is safe only when no reply is owed.
    pub(super) fn ask_all(&mut self, requests: &[(&Request, Duration)]) -> Exchange {
        let mut outbox = Outbox::new(requests.iter().map(|(request, _)| *request));
        let (mut replies, mut error) = (Vec::with_capacity(requests.len()), None);
        for (place, (request, timeout)) in requests.iter().enumerate() {
            let reply = self
                .set_timeout(*timeout)
                .and_then(|()| outbox.send(self.stream.get_mut(), place))
                .and_then(|()| self.reply(request.form));
            match reply {
                Ok(reply) => replies.push(reply),
                Err(why) => {
                    error = Some(plain(why));
                    break;
                }
            }
        }
        let sent = outbox.begun();
        Exchange {
            replies,
            sent,
            error,
        }
    }

    /// The next reply.
    fn reply(&mut self, form: Form) -> io::Result<Reply> {
        let line = self.line()?;
        let form = match form {
            // An empty listing is nothing but the empty line.
            Form::Lines if !line.starts_with(b"ERROR: ") && !line.is_empty() => Form::Lines,
            Form::Value if line.starts_with(b"VALUE ") => Form::Value,
            Form::Batch if line.starts_with(b"BATCH ") => Form::Batch,
            Form::Line | Form::Lines | Form::Value | Form::Batch => Form::Line,
        };
        let rest = match form {
            Form::Line => Vec::new(),
            Form::Lines => self.table()?,
            Form::Value => {
                let (_, bytes) = value_of(&line).ok_or_else(|| bad(&line))?;
                self.payload(bytes)?
            }
            Form::Batch => {
                let bytes = batch_of(&line).ok_or_else(|| bad(&line))?;
                self.payload(bytes)?
            }
        };
        Ok(Reply { line, rest, form })
    }

    /// The lines of a table up to the empty one, which is left out.
    fn table(&mut self) -> io::Result<Vec<u8>> {
        let mut table = Vec::new();
        for _ in 0..REPLY_LINES_MAX {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(table);
            }
            table.extend_from_slice(&line);
            table.push(b'\n');
        }
        Err(io::Error::other("a reply of too many lines"))
    }

    /// The socket, for whoever reads replies in a way of his own. Replies must not be waiting.
    pub fn into_stream(self) -> TcpStream {
        assert!(self.stream.buffer().is_empty(), "every reply was taken");
        self.stream.into_inner()
    }

    /// Sends bytes; they may have arrived even if this fails.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes).map_err(plain)
    }

    /// The next line, without its line end.
    fn line(&mut self) -> io::Result<Vec<u8>> {
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
    fn payload(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut payload = vec![0; count];
        self.stream.read_exact(&mut payload).map_err(plain)?;
        match self.line()?.as_slice() {
            [] => Ok(payload),
            _ => Err(io::Error::other("the payload is longer than was said")),
        }
    }
}

/// Connects to `host:port`, to the first address of the name that takes it in time, for small
/// requests.
pub(crate) fn connect(address: &str, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the name has no address");
    for candidate in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&candidate, timeout) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What came of requests that were sent together.
pub(super) struct Exchange {
    /// The replies, of the first ones.
    pub replies: Vec<Reply>,
    /// Of so many something may have been sent; nothing of the others.
    pub sent: usize,
    /// Why there are not more; the connection is of no use any more.
    pub error: Option<io::Error>,
}

/// Requests on their way out.
struct Outbox<'a> {
    /// All of them.
    bytes: Cow<'a, [u8]>,
    /// Where each ends.
    ends: Vec<usize>,
    /// What lies before may have been sent, what lies behind was not.
    at: usize,
}

impl<'a> Outbox<'a> {
    fn new(requests: impl Iterator<Item = &'a Request>) -> Outbox<'a> {
        let mut bytes = Cow::default();
        let mut ends = Vec::new();
        for request in requests {
            if ends.is_empty() {
                bytes = Cow::Borrowed(request.bytes.as_slice());
            } else {
                bytes.to_mut().extend_from_slice(&request.bytes);
            }
            ends.push(bytes.len());
        }
        Outbox { bytes, ends, at: 0 }
    }

    /// Sends all of the request at `place`, and of those behind it what the socket takes at once.
    /// The replies to those before it were taken.
    fn send(&mut self, stream: &mut TcpStream, place: usize) -> io::Result<()> {
        let end = self.ends[place];
        if self.ends.len() > 1 && self.at < self.bytes.len() {
            stream.set_nonblocking(true)?;
            let sent = self.send_at_once(stream);
            stream.set_nonblocking(false)?;
            sent?;
        }
        if self.at < end {
            let rest = &self.bytes[self.at..end];
            self.at = end;
            stream.write_all(rest)?;
        }
        Ok(())
    }

    fn send_at_once(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        while self.at < self.bytes.len() {
            match stream.write(&self.bytes[self.at..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.at += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Of how many requests something may have been sent.
    fn begun(&self) -> usize {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        let begins = begins.take(self.ends.len());
        begins.filter(|begin| *begin < self.at).count()
    }
}

/// Revision and length in the line that begins a value; `None` if it is none, or one beyond any
/// limit.
pub(super) fn value_of(line: &[u8]) -> Option<(u64, usize)> {
    let text = std::str::from_utf8(line).ok()?;
    let (revision, bytes) = text.strip_prefix("VALUE ")?.split_once(' ')?;
    let (revision, bytes): (u64, usize) = (revision.parse().ok()?, bytes.parse().ok()?);
    (bytes as u64 <= PAYLOAD_BYTES_CEILING).then_some((revision, bytes))
}

/// The length in the line that begins the results of a batch. A message takes half as much again
/// in base64, and six times as much where each byte is escaped.
fn batch_of(line: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(line).ok()?;
    let bytes: usize = text.strip_prefix("BATCH ")?.parse().ok()?;
    (bytes as u64 <= 6 * PAYLOAD_BYTES_CEILING).then_some(bytes)
}

/// A line that is none of the protocol's.
pub(super) fn bad(line: &[u8]) -> io::Error {
    let text: String = String::from_utf8_lossy(line).chars().take(100).collect();
    io::Error::other(format!("bad reply {text:?}"))
}

/// A socket's time-out reads "resource temporarily unavailable"; say what it means.
fn plain(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "no answer in time"),
        _ => error,
    }
}
