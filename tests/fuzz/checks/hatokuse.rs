//! HaToKuSe sessions.

use tolerex::client::{Request, WriteOptions};
use tolerex::protocol::Session;
use tolerex::protocol::hatokuse::{HatokuseSession, Identity, Limits};
use tolerex::protocol::request::{Batch, Write};

use super::sessions::{self, Kind};

const LIMITS: Limits = Limits {
    payload_bytes_max: 300,
};

/// In whatever parts the input comes, requests and replies are the same; no more than a line or a
/// payload is held; nothing is read behind the end. The client's words for each request are that
/// request.
pub fn check(data: &[u8]) {
    let is_batch = data
        .windows(5)
        .any(|word| word.eq_ignore_ascii_case(b"BATCH"));
    let input_bytes_max = match is_batch {
        true => LIMITS.batch_bytes_max(),
        false => LIMITS.line_bytes_max() + 2,
    };
    let kind = Kind {
        open: &open,
        input_bytes_max,
        probe: b"\r\nSET behind the end\r\n",
    };
    let outcome = sessions::check(&kind, data, <[u8]>::to_vec);
    let written = outcome
        .requests
        .iter()
        .filter_map(|one| Some((write(one)?, one)));
    let (written, requests): (Vec<Vec<u8>>, Vec<&Batch>) = written.unzip();
    let written = written.concat();
    let again = sessions::run(&kind, &[&written], false);
    assert!(
        again.requests.iter().eq(requests),
        "{}",
        written.escape_ascii()
    );
}

fn open() -> Box<dyn Session> {
    let identity = Identity {
        node: "leader-1".to_owned(),
        role: "leader".to_owned(),
    };
    Box::new(HatokuseSession::new(LIMITS, &identity))
}

/// A request as our client sends it, if it does.
fn write(request: &Batch) -> Option<Vec<u8>> {
    let request = match request {
        Batch::Writes(writes) => match writes.first()? {
            Write::Set {
                key,
                payload,
                options,
            } => {
                let options = WriteOptions {
                    condition: options.condition,
                    token: options.token.clone(),
                    ..WriteOptions::default()
                };
                Request::set(key, payload, &options)
            }
            Write::Delete {
                key,
                token,
                condition,
            } => {
                let options = WriteOptions {
                    condition: *condition,
                    token: token.clone(),
                    ..WriteOptions::default()
                };
                Request::delete(key, &options)
            }
            Write::Expire { key, token, ttl_ms } => {
                let seconds = ttl_ms.map(|ms| ms / 1000);
                Request::expire(key, seconds, token.as_ref())
            }
        },
        Batch::Reads(keys) => Request::get(keys.first()?),
        Batch::Bulk {
            count,
            payload,
            token,
        } => Request::bulk(*count, payload, token.as_ref()).ok()?,
        Batch::Ttl(key) => Request::ttl(key),
        Batch::Count => Request::count(),
        // The others are written by a person, or as JSON; see the check of batches.
        Batch::List(_) | Batch::Transaction(_) | Batch::Where(_) => return None,
        Batch::Status | Batch::Group(_) => return None,
    };
    Some(request.bytes)
}
