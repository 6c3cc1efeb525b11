//! The payload cache of a leader: shards by revision, each with a lock of its own, so that workers
//! read at the same time.

use bytes::Bytes;
use parking_lot::Mutex;

use crate::coordinator::cache::PayloadCache;
use crate::ids::Revision;

/// Shards of the cache. Workers read at the same time; with one they would queue up.
const CACHE_SHARDS: usize = 16;

/// The payload cache in shards.
pub struct Cache {
    shards: Vec<Mutex<PayloadCache>>,
}

impl Cache {
    /// An empty cache for payloads of `bytes_max` bytes in all.
    pub fn new(bytes_max: usize) -> Cache {
        let shard = || Mutex::new(PayloadCache::new(bytes_max / CACHE_SHARDS));
        Cache {
            shards: std::iter::repeat_with(shard).take(CACHE_SHARDS).collect(),
        }
    }

    fn shard(&self, revision: Revision) -> &Mutex<PayloadCache> {
        // Consecutive revisions, which are written and read together, go to different shards.
        &self.shards[(revision.as_u64() % CACHE_SHARDS as u64) as usize]
    }

    /// The payload of a revision.
    pub fn get(&self, revision: Revision) -> Option<Bytes> {
        self.shard(revision).lock().get(revision)
    }

    /// Keeps a payload.
    pub fn insert(&self, revision: Revision, payload: &Bytes) {
        self.shard(revision).lock().insert(revision, payload);
    }
}
