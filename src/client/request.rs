//! A request as bytes, with what its reply looks like and whether it may be sent again. Pure.

use std::time::Duration;

use super::error::ClientError;
use super::options::WriteOptions;
use crate::ids::{KEY_BYTES_MAX, Key, Token};
use crate::protocol::request::{Condition, PAGE_KEYS_MAX};

/// Payload bytes that the slowest cluster this is made for stores in a second, and messages of a
/// bulk write: a leader's own deadline counts on ten times as much. Twice as long only delays the
/// news of a leader that is cut off without a word.
const BYTES_PER_SECOND: u64 = 1_000_000;
const MESSAGES_PER_SECOND: u64 = 10_000;

/// What follows a reply's first line, unless that is an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// Nothing.
    #[default]
    Line,
    /// Lines until an empty one.
    Lines,
    /// Behind `VALUE <revision> <bytes>` a payload.
    Value,
    /// Behind `BATCH <bytes>` JSON.
    Batch,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The command's line, and the payload of a SETB.
    pub bytes: Vec<u8>,
    /// What its reply looks like.
    pub form: Form,
    /// Whether it may change something.
    pub is_write: bool,
    /// Whether it may be sent again when its outcome is not known: a read, or a write under a
    /// token.
    pub is_repeatable: bool,
    /// How long the reply may take beyond the usual: what its bytes need.
    pub extra: Duration,
}

impl Request {
    /// Stores a message of any bytes; `options` without a time to live. The reply has a revision.
    pub fn set(key: &Key, payload: &[u8], options: &WriteOptions) -> Request {
        let demand = demand(options.condition);
        let head = format!("IF {demand} SETB {key} {}\r\n", payload.len());
        let mut request = Request::write(head.as_bytes(), options.token.as_ref());
        request.bytes.extend_from_slice(payload);
        request.bytes.extend_from_slice(b"\r\n");
        request.extra = time_for(1, payload.len());
        request
    }

    /// Stores one message many times under fresh ids. It stands on the command's line, so not every
    /// byte can be sent.
    pub fn bulk(count: u64, payload: &[u8], token: Option<&Token>) -> Result<Request, ClientError> {
        if memchr::memchr(b'\n', payload).is_some() || payload.ends_with(b"\r") {
            let reason =
                "the message of a bulk write is a single line: without LF, no CR at its end";
            return Err(ClientError::invalid(reason));
        }
        let line = [format!("{count} SET ").as_bytes(), payload, b"\r\n"].concat();
        let mut request = Request::write(&line, token);
        request.extra = time_for(count, payload.len());
        Ok(request)
    }

    /// Deletes a message; `options` without a time to live.
    pub fn delete(key: &Key, options: &WriteOptions) -> Request {
        let line = match options.condition {
            None => format!("DEL {key}\r\n"),
            condition => format!("IF {} DEL {key}\r\n", demand(condition)),
        };
        Request::write(line.as_bytes(), options.token.as_ref())
    }

    /// Lets a message expire in so many seconds, or never.
    pub fn expire(key: &Key, seconds: Option<u64>, token: Option<&Token>) -> Request {
        let line = match seconds {
            Some(seconds) => format!("EXPIRE {key} {seconds}\r\n"),
            None => format!("PERSIST {key}\r\n"),
        };
        Request::write(line.as_bytes(), token)
    }

    /// Asks when a message expires.
    pub fn ttl(key: &Key) -> Request {
        Request::read(&format!("TTL {key}\r\n"))
    }

    /// Lists up to `limit` keys that begin with `prefix`, those behind `after`.
    pub fn list(prefix: &str, after: Option<&Key>, limit: u32) -> Result<Request, ClientError> {
        let is_bad = |c: char| c.is_whitespace() || c.is_control();
        if prefix.contains(is_bad) || prefix.len() > KEY_BYTES_MAX {
            let reason = "a prefix is up to 512 bytes without spaces";
            return Err(ClientError::invalid(reason));
        }
        if !(1..=PAGE_KEYS_MAX).contains(&limit) {
            let reason = format!("{limit} keys: accepted: 1 to {PAGE_KEYS_MAX}");
            return Err(ClientError::invalid(reason));
        }
        let after = after.map_or(String::new(), |after| format!(" {after}"));
        Ok(Request {
            form: Form::Lines,
            ..Request::read(&format!("LIST {limit} {prefix}*{after}\r\n"))
        })
    }

    /// Reads a message.
    pub fn get(key: &Key) -> Request {
        Request {
            form: Form::Value,
            ..Request::read(&format!("GETB {key}\r\n"))
        }
    }

    /// Reads and writes together, as JSON.
    pub fn batch(json: &[u8], token: Option<&Token>) -> Request {
        let head = format!("BATCH {}\r\n", json.len());
        let mut request = Request::write(head.as_bytes(), token);
        request.bytes.extend_from_slice(json);
        request.bytes.extend_from_slice(b"\r\n");
        request.form = Form::Batch;
        request.extra = time_for(1, json.len());
        request
    }

    /// Counts the messages, which only the active leader does.
    pub fn count() -> Request {
        Request::read("COUNT\r\n")
    }

    /// A command as a person types it, without line end, and the payload of a SETB or BATCH.
    pub fn raw(line: &[u8], payload: Option<&[u8]>) -> Result<Request, ClientError> {
        if memchr::memchr(b'\n', line).is_some() {
            return Err(ClientError::invalid("a command is a single line"));
        }
        let text = String::from_utf8_lossy(line).to_ascii_uppercase();
        let words: Vec<&str> = text.split_ascii_whitespace().take(6).collect();
        let is_once = words.first() == Some(&"ONCE");
        let words = without_prefixes(&words);
        let (form, is_write) = match words {
            [] | ["PROMPT" | "QUIT" | "EXIT", ..] => {
                let reason = "the connection belongs to the client: no PROMPT, QUIT or empty line";
                return Err(ClientError::invalid(reason));
            }
            ["STATUS" | "GROUP"] | ["HELP" | "LIST", ..] => (Form::Lines, false),
            ["STATUS" | "WHERE" | "COUNT" | "GET" | "TTL", ..] | ["GROUP", "JSON"] => {
                (Form::Line, false)
            }
            ["GETB", ..] => (Form::Value, false),
            ["BATCH", ..] => (Form::Batch, true),
            _ => (Form::Line, true),
        };
        let mut bytes = [line, b"\r\n"].concat();
        if let Some(payload) = payload {
            bytes.extend_from_slice(payload);
            bytes.extend_from_slice(b"\r\n");
        }
        let count = match words {
            [count, "SET", ..] => count.parse().unwrap_or(1),
            _ => 1,
        };
        let extra = time_for(count, bytes.len());
        Ok(Request {
            bytes,
            form,
            is_write,
            is_repeatable: is_once || !is_write,
            extra,
        })
    }

    fn read(line: &str) -> Request {
        Request {
            bytes: line.as_bytes().to_vec(),
            form: Form::Line,
            is_write: false,
            is_repeatable: true,
            extra: Duration::ZERO,
        }
    }

    fn write(line: &[u8], token: Option<&Token>) -> Request {
        let once = token.map_or(String::new(), |token| format!("ONCE {token} "));
        Request {
            bytes: [once.as_bytes(), line].concat(),
            form: Form::Line,
            is_write: true,
            is_repeatable: token.is_some(),
            extra: Duration::ZERO,
        }
    }
}

/// A command without what may stand before a write; in capitals.
pub fn without_prefixes<'a, 'b>(words: &'a [&'b str]) -> &'a [&'b str] {
    let words = match words {
        ["ONCE", _, rest @ ..] => rest,
        rest => rest,
    };
    match words {
        ["IF", _, rest @ ..] => rest,
        rest => rest,
    }
}

/// A condition as `IF` has it; `-`: none.
fn demand(condition: Option<Condition>) -> String {
    match condition {
        None => "-".to_owned(),
        Some(Condition::Absent) => "0".to_owned(),
        Some(Condition::Exists) => "*".to_owned(),
        Some(Condition::Revision(revision)) => revision.to_string(),
    }
}

/// The longest that storing `count` messages of so many bytes takes.
fn time_for(count: u64, bytes: usize) -> Duration {
    let bytes = count.saturating_mul(bytes as u64);
    let seconds = |count: u64, each: u64| Duration::from_secs_f64(count as f64 / each as f64);
    seconds(bytes, BYTES_PER_SECOND) + seconds(count - count.min(1), MESSAGES_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Revision;

    #[test]
    fn what_a_typed_command_does_and_answers_is_known() {
        for (line, form, is_write, is_repeatable) in [
            ("set 1 status", Form::Line, true, false),
            ("5 SET x", Form::Line, true, false),
            ("once t 5 SET x", Form::Line, true, true),
            (" ONCE t del k", Form::Line, true, true),
            ("status", Form::Lines, false, true),
            ("STATUS JSON", Form::Line, false, true),
            ("group", Form::Lines, false, true),
            ("GROUP json", Form::Line, false, true),
            ("GROUP ADD h:1", Form::Line, true, false),
            ("help me", Form::Lines, false, true),
            ("getb k", Form::Value, false, true),
            ("GET k", Form::Line, false, true),
            ("ttl k", Form::Line, false, true),
            ("list 9", Form::Lines, false, true),
            ("IF 0 SET k m", Form::Line, true, false),
            ("once t if * setb k 1", Form::Line, true, true),
            ("EXPIRE k 1", Form::Line, true, false),
            ("once t batch 2", Form::Batch, true, true),
            ("count", Form::Line, false, true),
            // It may be one of a later server.
            ("nonsense", Form::Line, true, false),
        ] {
            let request = Request::raw(line.as_bytes(), None).expect(line);
            assert_eq!(
                (request.form, request.is_write, request.is_repeatable),
                (form, is_write, is_repeatable),
                "{line}"
            );
            assert_eq!(request.bytes, format!("{line}\r\n").into_bytes());
        }
        for line in ["", "  ", "prompt off", "QUIT", "GET a\nGET b"] {
            assert!(Request::raw(line.as_bytes(), None).is_err(), "{line:?}");
        }
    }

    #[test]
    fn requests_are_written_as_the_protocol_has_them() {
        let (key, token) = (Key::Id(7), Token::parse(b"t-1").expect("a token"));
        let text = |request: Request| String::from_utf8(request.bytes).expect("UTF-8");
        let (bare, once) = (WriteOptions::default(), WriteOptions::once(token.clone()));
        let set = Request::set(&key, b"a\nb", &once);
        assert_eq!((set.is_write, set.is_repeatable), (true, true));
        assert_eq!(text(set), "ONCE t-1 IF - SETB 7 3\r\na\nb\r\n");
        let set = Request::set(&key, b"", &bare);
        assert_eq!((set.is_write, set.is_repeatable), (true, false));
        assert_eq!(text(set), "IF - SETB 7 0\r\n\r\n");
        assert_eq!(text(Request::delete(&key, &once)), "ONCE t-1 DEL 7\r\n");
        let revision = Condition::Revision(Revision::from_u64(9));
        for (condition, demand) in [
            (revision, "9"),
            (Condition::Absent, "0"),
            (Condition::Exists, "*"),
        ] {
            let options = WriteOptions::on(condition);
            let set = Request::set(&key, b"", &options);
            assert_eq!(text(set), format!("IF {demand} SETB 7 0\r\n\r\n"));
            let delete = Request::delete(&key, &options);
            assert_eq!(text(delete), format!("IF {demand} DEL 7\r\n"));
        }
        let expire = |seconds| text(Request::expire(&key, seconds, Some(&token)));
        assert_eq!(expire(Some(5)), "ONCE t-1 EXPIRE 7 5\r\n");
        assert_eq!(expire(None), "ONCE t-1 PERSIST 7\r\n");
        assert_eq!(text(Request::ttl(&key)), "TTL 7\r\n");
        let list = |prefix, after| Request::list(prefix, after, 9).map(text);
        assert_eq!(list("", None), Ok("LIST 9 *\r\n".to_owned()));
        assert_eq!(list("a", Some(&key)), Ok("LIST 9 a* 7\r\n".to_owned()));
        assert!(list("a b", None).is_err());
        assert!(Request::list("", None, 1001).is_err());
        assert_eq!(text(Request::get(&key)), "GETB 7\r\n");
        let bulk = Request::bulk(9, b" m ", None).expect("a line");
        assert_eq!(text(bulk), "9 SET  m \r\n");
        for payload in [&b"a\nb"[..], b"a\r"] {
            assert!(Request::bulk(9, payload, None).is_err());
        }
        let raw = Request::raw(b"setb k 2", Some(b"\r\n")).expect("a request");
        assert_eq!(text(raw), "setb k 2\r\n\r\n\r\n");
    }

    #[test]
    fn what_is_much_has_more_time() {
        let key = Key::Id(7);
        assert_eq!(
            Request::delete(&key, &WriteOptions::default()).extra,
            Duration::ZERO
        );
        let set = Request::set(&key, &vec![0; 3_000_000], &WriteOptions::default());
        assert_eq!(set.extra.as_secs(), 3);
        for bulk in [
            Request::bulk(1_000_000, b"x", None),
            Request::raw(b"ONCE t 1000000 SET x", None),
        ] {
            let seconds = bulk.expect("a line").extra.as_secs();
            assert!((100..130).contains(&seconds), "{seconds}");
        }
        // A count beyond all bounds is the server's to refuse.
        let raw = Request::raw(b"99999999999999999999 SET x", None);
        assert!(raw.expect("a line").extra < Duration::from_secs(1));
        assert!(Request::raw(b"18446744073709551615 SET xxxxx", None).is_ok());
    }
}
