//! Many requests in flight on one connection.
//!
//! Requests go out in *windows* of up to [`WINDOW_REQUESTS`], one window after the other: all of a
//! window is sent before the first reply is waited for, and the next window begins when all of it
//! is answered. Within a window each request is a call of its own, as the module above has it: with
//! its own token, deadline, repeats, redirects and outcome.

use super::batch;
use super::done::{self, Done};
use super::error::ClientError;
use super::options::WriteOptions;
use super::request::Request;
use super::{Client, Reply};
use crate::ids::Key;

/// Requests of a window at most. A leader takes 4,096 at a time; half as many as here are sent in
/// twice as many round trips, twice as many are more to be repeated when a connection breaks.
const WINDOW_REQUESTS: usize = 256;

/// A window ends with the request that makes it longer than this, in bytes. Each megabyte makes
/// all of its time-outs longer by a second.
const WINDOW_BYTES: usize = 1 << 20;

/// Collects requests, which [`Pipeline::run`] makes. See [`Client::pipeline`].
#[must_use = "nothing is sent before `run`"]
pub struct Pipeline<'a> {
    client: &'a Client,
    /// What cannot be sent is there as its error.
    requests: Vec<Entry>,
}

type Entry = Result<(Request, Kind), ClientError>;

/// What a request asks for, by which its reply is read.
#[derive(Clone, Copy)]
enum Kind {
    Set,
    /// With a time to live, which goes as a batch of one.
    LastingSet,
    Get,
    Delete,
}

impl<'a> Pipeline<'a> {
    pub(super) fn new(client: &'a Client) -> Pipeline<'a> {
        Pipeline {
            client,
            requests: Vec::new(),
        }
    }

    /// Stores a message, as [`Client::set`].
    pub fn set(&mut self, key: &Key, payload: &[u8]) -> &mut Self {
        self.set_with(key, payload, WriteOptions::default())
    }

    /// The same with options, as [`Client::set_with`].
    pub fn set_with(&mut self, key: &Key, payload: &[u8], options: WriteOptions) -> &mut Self {
        let options = self.client.with_token(options);
        self.push(match options.ttl {
            None => Ok((Request::set(key, payload, &options), Kind::Set)),
            Some(_) => {
                let request = batch::single_set(key, payload, &options);
                request.map(|request| (request, Kind::LastingSet))
            }
        })
    }

    /// Reads a message, as [`Client::get`].
    pub fn get(&mut self, key: &Key) -> &mut Self {
        self.push(Ok((Request::get(key), Kind::Get)))
    }

    /// Deletes a message, as [`Client::delete`].
    pub fn delete(&mut self, key: &Key) -> &mut Self {
        self.delete_with(key, WriteOptions::default())
    }

    /// The same with options, as [`Client::delete_with`].
    pub fn delete_with(&mut self, key: &Key, options: WriteOptions) -> &mut Self {
        let options = self.client.with_token(options);
        let is_sound = options.without_ttl();
        self.push(is_sound.map(|()| (Request::delete(key, &options), Kind::Delete)))
    }

    /// How many requests it has collected.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether it has collected none.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Makes the requests; gives what came of each, in their order. It is empty then and can be
    /// used again.
    ///
    /// It takes as long as the deadline of one call at most, and what the bytes need. What was not
    /// sent by then, or stands behind a request for which no leader was found, has failed.
    pub fn run(&mut self) -> Vec<Result<Done, ClientError>> {
        let requests = std::mem::take(&mut self.requests);
        let caller = &self.client.inner.caller;
        let extra = requests
            .iter()
            .flatten()
            .map(|(request, _)| request.extra)
            .sum();
        let give_up = caller.clock.now() + caller.options.deadline + extra;
        let mut results = Vec::with_capacity(requests.len());
        let mut end = None;
        let mut rest = requests.as_slice();
        while !rest.is_empty() {
            let (window, later) = rest.split_at(window(rest));
            rest = later;
            if end.is_none() && !results.is_empty() && caller.clock.now() >= give_up {
                let reason = "timed out before it was sent".to_owned();
                end = Some(ClientError::Unavailable { reason });
            }
            if let Some(end) = &end {
                results.extend(window.iter().map(|_| Err(end.clone())));
                continue;
            }
            let sent = window.iter().flatten().map(|(request, _)| request);
            let answers = caller.call_all(&sent.collect::<Vec<&Request>>());
            let mut answers = answers.into_iter();
            for entry in window {
                let result = match entry {
                    Err(refused) => Err(refused.clone()),
                    Ok((_, kind)) => {
                        let answer = answers.next().expect("one for each that was sent");
                        answer.and_then(|(reply, _)| kind.read(reply))
                    }
                };
                if let Err(error @ ClientError::NoLeader { .. }) = &result {
                    end = Some(error.clone());
                }
                results.push(result);
            }
        }
        results
    }

    fn push(&mut self, entry: Entry) -> &mut Self {
        self.requests.push(entry);
        self
    }
}

/// How many of the requests, which are some, make the next window.
fn window(requests: &[Entry]) -> usize {
    let mut bytes = 0;
    let fits = |entry: &&Entry| {
        let is_room = bytes <= WINDOW_BYTES;
        bytes += entry.as_ref().map_or(0, |(request, _)| request.bytes.len());
        is_room
    };
    requests
        .iter()
        .take(WINDOW_REQUESTS)
        .take_while(fits)
        .count()
}

impl Kind {
    fn read(self, reply: Reply) -> Result<Done, ClientError> {
        Ok(match self {
            Kind::Set => Done::Stored(done::stored(reply)?),
            Kind::LastingSet => Done::Stored(batch::single_stored(reply)?),
            Kind::Get => Done::Read(done::read(reply)?),
            Kind::Delete => Done::Deleted(done::existed(reply)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_bounded_in_requests_and_bytes() {
        let options = WriteOptions::default();
        let payload = |bytes| vec![0; bytes];
        let set = |bytes| {
            let request = Request::set(&Key::Id(1), &payload(bytes), &options);
            Ok((request, Kind::Set))
        };
        let of = |requests: Vec<Entry>| window(&requests);
        assert_eq!(of(vec![set(0)]), 1);
        assert_eq!(of((0..1000).map(|_| set(1)).collect()), WINDOW_REQUESTS);
        assert_eq!(of((0..1000).map(|_| set(WINDOW_BYTES / 10)).collect()), 10);
        assert_eq!(of(vec![set(2 * WINDOW_BYTES), set(1)]), 1);
        assert_eq!(of(vec![set(1), set(2 * WINDOW_BYTES), set(1)]), 2);
    }
}
