//! Lines and bytes of other protocols, told from commands. Pure.
//!
//! A web page can make a browser send an HTTP request to any port, with a body of its choosing, and
//! a server can be made to send one by a forged address. If the head of such a request were
//! answered line by line with errors, its body would be executed as commands. So the first line
//! that looks like HTTP ends the session. A TLS client sends bytes of which an attacker chooses
//! some too (a session id, a server's name); its hello ends the session as well.

use super::command::is_blank;

/// The longest word of a line that has to be known: `HTTP/` and a version, or a command's name.
const WORD_BYTES_MAX: usize = 16;

/// Commands whose arguments may be any words, so that one of them may end in `HTTP/1.1`. They are
/// no methods of HTTP; the `Host` in the next line of such a request ends the session.
const FREE_COMMANDS: [&[u8]; 4] = [b"SET", b"ONCE", b"IF", b"LIST"];

/// Whether bytes at the beginning of a line are those of a TLS handshake.
pub fn is_tls(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x16, 0x03])
}

/// Whether a line without its end is a request line of HTTP (a method, a target and `HTTP/` with a
/// version) or its field `Host`.
pub fn is_http(line: &[u8]) -> bool {
    let mut sketch = Sketch::default();
    sketch.receive(line);
    sketch.is_http()
}

/// What has to be known of a line to tell whether it is HTTP, while the line itself is not held.
#[derive(Clone, Debug, Default)]
pub struct Sketch {
    first: Word,
    last: Word,
    /// How many words have begun; two stand for all beyond.
    behind_first: usize,
    /// Whether the second word begins with a colon.
    has_colon: bool,
    is_in_word: bool,
}

/// The beginning of a word.
#[derive(Clone, Debug, Default)]
struct Word {
    bytes: [u8; WORD_BYTES_MAX],
    /// Up to one more than there is room for, which says that it is longer.
    length: usize,
}

impl Word {
    fn push(&mut self, byte: u8) {
        if let Some(slot) = self.bytes.get_mut(self.length) {
            *slot = byte;
        }
        self.length = (self.length + 1).min(WORD_BYTES_MAX + 1);
    }

    fn beginning(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&self.bytes)
    }

    /// All of it, unless it is longer than is kept.
    fn whole(&self) -> Option<&[u8]> {
        self.bytes.get(..self.length)
    }
}

impl Sketch {
    /// Takes the bytes that follow in the line; a CR counts as a blank.
    pub fn receive(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if is_blank(byte) || byte == b'\r' {
                self.is_in_word = false;
                if self.is_free_command() {
                    return;
                }
                continue;
            }
            if !self.is_in_word {
                self.is_in_word = true;
                if self.first.length > 0 {
                    self.has_colon |= self.behind_first == 0 && byte == b':';
                    self.behind_first = (self.behind_first + 1).min(2);
                    self.last = Word::default();
                }
            }
            match self.behind_first {
                0 => self.first.push(byte),
                _ => self.last.push(byte),
            }
        }
    }

    /// Whether the line until here is HTTP.
    pub fn is_http(&self) -> bool {
        self.is_host() || self.is_request_line()
    }

    fn is_host(&self) -> bool {
        let begins = |name: &[u8]| {
            let start = self.first.beginning().get(..name.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(name))
        };
        begins(b"host:") || (self.first.length == 4 && begins(b"host") && self.has_colon)
    }

    fn is_request_line(&self) -> bool {
        let version = self.last.whole().and_then(|word| word.split_at_checked(5));
        let is_version = version.is_some_and(|(name, version)| {
            let is_number = |byte: &u8| byte.is_ascii_digit() || *byte == b'.';
            name.eq_ignore_ascii_case(b"HTTP/")
                && !version.is_empty()
                && version.iter().all(is_number)
        });
        is_version && self.behind_first > 1 && !self.is_free_command()
    }

    fn is_free_command(&self) -> bool {
        let Some(word) = self.first.whole() else {
            return self.first.bytes.iter().all(u8::is_ascii_digit);
        };
        let is_named = |name: &&[u8]| word.eq_ignore_ascii_case(name);
        let is_count = !word.is_empty() && word.iter().all(u8::is_ascii_digit);
        is_count || FREE_COMMANDS.iter().any(is_named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_lines_and_hosts_are_told_from_commands() {
        for line in [
            "POST / HTTP/1.1",
            "GET / HTTP/1.0\r",
            " \tget  /a?b  http/2 \t\r",
            "OPTIONS * HTTP/1.1",
            "PRI * HTTP/2.0",
            "CONNECT 10.0.0.1:6666 HTTP/1.1",
            "PUT /a b c HTTP/1.1",
            "A-METHOD-OF-MORE-THAN-16-BYTES / HTTP/1.1",
            "Host: 127.0.0.1:6666",
            "host:x",
            "HOST : x",
            "  Host\t:",
            "Host:a-name-of-more-than-sixteen-bytes",
        ] {
            assert!(is_http(line.as_bytes()), "{line:?}");
        }
        for line in [
            "",
            "GET HTTP/1.1",
            "SET k HTTP/1.1",
            "set k GET / HTTP/1.1",
            "SET Host: x",
            "3 SET HTTP/1.1",
            "99999999999999999999 SET GET / HTTP/1.1",
            "ONCE t SET k POST / HTTP/1.1",
            "IF 7 DEL HTTP/1.1",
            "LIST 5 * HTTP/1.1",
            "LIST 5 HTTP/1*",
            "GET / HTTP/",
            "GET / HTTP/x",
            "GET / HTTP/1.1 x",
            "GET Host: x",
            "hosts: x",
            "Hostile : x",
            "host x :",
            "host",
        ] {
            assert!(!is_http(line.as_bytes()), "{line:?}");
        }
    }

    #[test]
    fn a_line_in_parts_is_the_same_line() {
        for line in [
            "POST / HTTP/1.1\r",
            "Host : x",
            "SET k / HTTP/1.1",
            "GET / HTTP/1.1x",
        ] {
            for cut in 0..=line.len() {
                let (front, back) = line.as_bytes().split_at(cut);
                let mut sketch = Sketch::default();
                sketch.receive(front);
                sketch.receive(back);
                assert_eq!(
                    sketch.is_http(),
                    is_http(line.as_bytes()),
                    "{line:?} at {cut}"
                );
            }
        }
    }
}
