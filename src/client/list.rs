//! A listing, page by page.

use std::vec;

use super::error::ClientError;
use super::{Client, Key, ListedKey, Page};
use crate::protocol::request::PAGE_KEYS_MAX;

/// The keys that begin with a prefix, in bytewise order of their text; see [`Client::list`].
///
/// A page is asked for when the one before it is used up. Each page is what there was at its time:
/// a key that is stored or deleted meanwhile may be there or not, every other one is there once.
/// The first error is the end.
pub struct List<'a> {
    client: &'a Client,
    prefix: String,
    page: vec::IntoIter<ListedKey>,
    /// Where to go on; `None` when there is nothing more to ask for.
    rest: Option<Rest>,
}

/// What is still to be asked for.
enum Rest {
    All,
    Behind(Key),
}

impl<'a> List<'a> {
    pub(super) fn new(client: &'a Client, prefix: &str) -> List<'a> {
        List {
            client,
            prefix: prefix.to_owned(),
            page: Vec::new().into_iter(),
            rest: Some(Rest::All),
        }
    }
}

impl Iterator for List<'_> {
    type Item = Result<ListedKey, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(key) = self.page.next() {
                return Some(Ok(key));
            }
            let after = match self.rest.take()? {
                Rest::All => None,
                Rest::Behind(key) => Some(key),
            };
            let page = self
                .client
                .list_page(&self.prefix, after.as_ref(), PAGE_KEYS_MAX);
            match page {
                Ok(Page { keys, next }) => {
                    self.page = keys.into_iter();
                    self.rest = next.map(Rest::Behind);
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
