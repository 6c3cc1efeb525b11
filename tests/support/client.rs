//! A HaToKuSe client for tests: no prompt, every wait with a limit.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long a reply may take. The server's own deadlines are well below it.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection with the prompt off.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects; the server must be there.
    pub fn connect(address: SocketAddr) -> Client {
        Client::try_connect(address).expect("the leader takes a connection")
    }

    /// Connects, if the server is there.
    pub fn try_connect(address: SocketAddr) -> io::Result<Client> {
        Client::try_connect_within(address, REPLY_TIMEOUT)
    }

    /// The same for one that waits no longer than that, for the connection and for each reply.
    pub fn try_connect_within(address: SocketAddr, patience: Duration) -> io::Result<Client> {
        let stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.set_nodelay(true)?;
        let mut client = Client {
            stream: BufReader::new(stream),
        };
        client.send(b"PROMPT OFF\r\n")?;
        while client.line()? != "tolerex> OK" {}
        Ok(client)
    }

    /// The socket, for whoever reads in a way of his own; every reply must have been taken.
    pub fn into_stream(self) -> TcpStream {
        assert!(self.stream.buffer().is_empty(), "every reply was taken");
        self.stream.into_inner()
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// The next reply line, without its line end.
    pub fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        let line = line
            .strip_suffix(b"\r\n")
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(String::from_utf8_lossy(line).into_owned())
    }

    /// Takes so many bytes and drops them.
    pub fn skip(&mut self, count: usize) -> io::Result<()> {
        let mut rest = (&mut self.stream).take(count as u64);
        match io::copy(&mut rest, &mut io::sink())? {
            taken if taken == count as u64 => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Sends a command and gives its reply line; an error if the connection breaks.
    pub fn try_command(&mut self, command: &str) -> io::Result<String> {
        self.send(format!("{command}\r\n").as_bytes())?;
        self.line()
    }

    /// Sends a command and gives its reply line.
    pub fn command(&mut self, command: &str) -> String {
        self.try_command(command)
            .unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Sends commands in one piece and gives their reply lines.
    pub fn pipeline(&mut self, commands: &[String]) -> io::Result<Vec<String>> {
        self.send((commands.join("\r\n") + "\r\n").as_bytes())?;
        commands.iter().map(|_| self.line()).collect()
    }

    /// Stores any bytes; gives the reply line.
    pub fn set_bytes(&mut self, key: &str, payload: &[u8]) -> io::Result<String> {
        let head = format!("SETB {key} {}\r\n", payload.len()).into_bytes();
        self.send(&[&head, payload, b"\r\n"].concat())?;
        self.line()
    }

    /// Reads a message; `None` if there is none. An error reply is an error.
    pub fn get_bytes(&mut self, key: &str) -> io::Result<Option<Vec<u8>>> {
        let head = self.try_command(&format!("GETB {key}"))?;
        if head == "NOT_FOUND" {
            return Ok(None);
        }
        let length = head
            .strip_prefix("VALUE ")
            .and_then(|rest| rest.split(' ').nth(1));
        let length = length.and_then(|length| length.parse::<usize>().ok());
        let mut payload = vec![0; length.ok_or_else(|| io::Error::other(head.clone()))? + 2];
        self.stream.read_exact(&mut payload)?;
        payload.truncate(payload.len() - 2);
        Ok(Some(payload))
    }

    /// `STATUS JSON`.
    pub fn status(&mut self) -> serde_json::Value {
        serde_json::from_str(&self.command("STATUS JSON")).expect("JSON")
    }
}
