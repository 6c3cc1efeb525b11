//! HTTP/1.1 for tests: a connection that is kept, every wait with a limit.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A connection.
pub struct Http(BufReader<TcpStream>);

/// What came back.
#[derive(Debug)]
pub struct Response {
    /// 200 and such.
    pub status: u16,
    /// Names in lower case.
    fields: Vec<(String, String)>,
    /// Its bytes.
    pub body: Vec<u8>,
}

impl Http {
    /// Connects, if the server is there; waits no longer than that, for each response too.
    pub fn connect(address: SocketAddr, patience: Duration) -> io::Result<Http> {
        let stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.set_nodelay(true)?;
        Ok(Http(BufReader::new(stream)))
    }

    /// Sends a request with a body of a known length.
    pub fn send(
        &mut self,
        method: &str,
        target: &str,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<()> {
        let length = body.len();
        let mut request = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n");
        for (name, value) in fields {
            request += &format!("{name}: {value}\r\n");
        }
        request += &format!("Content-Length: {length}\r\n\r\n");
        let request = [request.as_bytes(), body].concat();
        self.0.get_mut().write_all(&request)
    }

    /// The next response.
    pub fn answer(&mut self) -> io::Result<Response> {
        let first = self.line()?;
        let status = first.split(' ').nth(1).and_then(|text| text.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(first))?;
        let mut response = Response {
            status,
            fields: Vec::new(),
            body: Vec::new(),
        };
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(": ") else {
                break;
            };
            let field = (name.to_ascii_lowercase(), value.to_owned());
            response.fields.push(field);
        }
        let length = response.field("content-length");
        let length = length.and_then(|length| length.parse().ok()).unwrap_or(0);
        response.body.resize(length, 0);
        self.0.read_exact(&mut response.body)?;
        Ok(response)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let line = line.strip_suffix("\r\n");
        Ok(line.ok_or(io::ErrorKind::UnexpectedEof)?.to_owned())
    }

    /// One after the other.
    pub fn ask(
        &mut self,
        method: &str,
        target: &str,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        self.send(method, target, fields, body)?;
        self.answer()
    }
}

impl Response {
    /// A field's value.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.fields.iter();
        fields
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// The number in its ETag, if it has one.
    pub fn revision(&self) -> Option<u64> {
        self.field("etag")?.trim_matches('"').parse().ok()
    }

    /// The body, if it is JSON.
    pub fn json(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&self.body).ok()
    }
}
