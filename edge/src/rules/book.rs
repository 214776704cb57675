//! The rules of deploys, decoded and at hand.
//!
//! Called through [`crate::index::Index::rules`], by [`super::ask`] for every request. Rules are immutable, like the manifest whose root
//! names them, so nothing here is ever out of date. Each is fetched and decoded once, by the first
//! request that needs it, while others wait; one is decoded at a time, because a hundred thousand of
//! them take a moment and some memory. That some cannot be decoded is remembered too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use atoll_client::{ClientError, PageSource};
use atoll_proto::content::Extent;
use atoll_proto::manifest::Page;
use atoll_proto::rules::trie::NODE_BYTES;
use atoll_proto::rules::{RULE_BYTES, Rules};
use atoll_proto::{ChunkId, Content, DeployId, limits};
use tokio::sync::OwnedMutexGuard;

use crate::cache::s3fifo::S3Fifo;
use crate::fetch::{Chunks, Worth};
use crate::index::pages::Pages;

/// What the text of decoded rules takes in memory for each encoded byte, about.
const TEXT_FACTOR: usize = 3;
/// What remembering that rules cannot be decoded counts as, in bytes.
const FAILURE_BYTES: usize = 4096;
/// Bytes of decoded rules that are kept, about: room for the largest there may be.
const DECODED_BYTES_MAX: usize = 640 << 20;

const _: () = {
    let nodes = 2 * limits::RULES_SEGMENTS_MAX * NODE_BYTES;
    let rules = 2 * limits::RULES_MAX * RULE_BYTES;
    assert!(nodes + rules + limits::RULES_BYTES_MAX * TEXT_FACTOR < DECODED_BYTES_MAX);
};

/// Rules, or why these bytes are none: neither ever changes.
type Decoded = Result<Arc<Rules>, Arc<str>>;

/// Rules by the content they are stored as.
pub struct Book {
    chunks: Arc<Chunks>,
    decoded: Arc<RwLock<S3Fifo<ChunkId, Decoded>>>,
    /// Those being fetched and decoded: held by who does it.
    coming: Mutex<HashMap<ChunkId, Arc<tokio::sync::Mutex<()>>>>,
    /// Held while rules are decoded.
    decoding: Arc<tokio::sync::Mutex<()>>,
    none: Arc<Rules>,
}

impl Book {
    /// Rules out of `chunks`.
    pub fn new(chunks: Arc<Chunks>) -> Book {
        Book {
            chunks,
            decoded: Arc::new(RwLock::new(S3Fifo::new(DECODED_BYTES_MAX))),
            coming: Mutex::default(),
            decoding: Arc::default(),
            none: Arc::default(),
        }
    }

    /// The rules of a deploy; those without any if it has none.
    ///
    /// # Errors
    /// When the manifest's root or the rules cannot be had now.
    pub async fn of(&self, pages: &Pages, deploy: DeployId) -> Result<Arc<Rules>, ClientError> {
        let page = pages.page(deploy).await?;
        let Page::RootV1(root) = &*page else {
            let what = format!("{deploy} is not the root of a manifest");
            return Err(ClientError::Malformed { what });
        };
        let Some(content) = &root.rules else { return Ok(self.none.clone()) };
        let id = content.id();
        if let Some(decoded) = self.decoded(&id) {
            return told(decoded);
        }
        let reading = self.read_once(id, content);
        match tokio::time::timeout(limits::CHUNK_DEADLINE, reading).await {
            Ok(rules) => rules,
            Err(_) => {
                self.came(&id);
                Err(ClientError::Unreachable {
                    what: format!("rules {}", id.short()),
                    reason: "they did not come in time".to_owned(),
                })
            }
        }
    }

    /// Nobody new waits for these rules.
    fn came(&self, id: &ChunkId) {
        let mut coming = self.coming.lock().unwrap_or_else(PoisonError::into_inner);
        coming.remove(id);
    }

    /// Waits for who reads these rules already, or reads them.
    async fn read_once(&self, id: ChunkId, content: &Content) -> Result<Arc<Rules>, ClientError> {
        let coming = {
            let mut coming = self.coming.lock().unwrap_or_else(PoisonError::into_inner);
            coming.entry(id).or_default().clone()
        };
        let first = coming.lock_owned().await;
        let read = match self.decoded(&id) {
            Some(decoded) => told(decoded),
            None => self.read(id, content, first).await,
        };
        self.came(&id);
        read
    }

    async fn read(
        &self,
        id: ChunkId,
        content: &Content,
        first: OwnedMutexGuard<()>,
    ) -> Result<Arc<Rules>, ClientError> {
        let bytes = match self.bytes(content).await {
            Err(ClientError::Malformed { what }) => {
                let decoded: Decoded = Err(what.into());
                keep(&self.decoded, id, decoded.clone(), FAILURE_BYTES);
                return told(decoded);
            }
            bytes => bytes?,
        };
        let one = self.decoding.clone().lock_owned().await;
        let kept = self.decoded.clone();
        // Goes on, and keeps others waiting, when the visitor is gone: else one who comes and goes
        // could have the same rules decoded many times at once.
        let decoding = move || {
            let decoded = decode(id, &bytes);
            let cost = decoded
                .as_ref()
                .map_or(FAILURE_BYTES, |rules| bytes.len() * TEXT_FACTOR + rules.memory_bytes());
            keep(&kept, id, decoded.clone(), cost);
            drop((first, one));
            decoded
        };
        let decoded = atoll_net::task::spawn_blocking("rules", decoding).await;
        told(
            decoded
                .map_err(|error| ClientError::Malformed { what: format!("rules {id}: {error}") })?,
        )
    }

    fn decoded(&self, id: &ChunkId) -> Option<Decoded> {
        let decoded = self.decoded.read().unwrap_or_else(PoisonError::into_inner);
        decoded.get(id).map(|(decoded, _)| decoded.clone())
    }

    async fn bytes(&self, content: &Content) -> Result<Vec<u8>, ClientError> {
        let wrong = || ClientError::Malformed { what: "rules are not stored in chunks".to_owned() };
        // The page was checked: its rules are short, and in place.
        let Content::Extents(extents) = content else { return Err(wrong()) };
        let mut bytes = Vec::new();
        for extent in extents {
            let Extent { id: Some(id), .. } = extent else { return Err(wrong()) };
            let got = self.chunks.get(*id, Worth::Keep).await;
            let got = got.map_err(|error| ClientError::Unreachable {
                what: format!("rules {}", id.short()),
                reason: error.to_string(),
            })?;
            bytes.extend_from_slice(&got.bytes);
            if bytes.len() > limits::RULES_BYTES_MAX {
                return Err(wrong());
            }
        }
        Ok(bytes)
    }
}

fn decode(id: ChunkId, bytes: &[u8]) -> Decoded {
    let rules = Rules::decode(bytes);
    rules.map(Arc::new).map_err(|error| format!("rules {id}: {}", error.reason).into())
}

fn keep(kept: &RwLock<S3Fifo<ChunkId, Decoded>>, id: ChunkId, decoded: Decoded, cost: usize) {
    let mut kept = kept.write().unwrap_or_else(PoisonError::into_inner);
    drop(kept.insert(id, decoded, cost));
}

fn told(decoded: Decoded) -> Result<Arc<Rules>, ClientError> {
    decoded.map_err(|what| ClientError::Malformed { what: what.to_string() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::cache::Cache;
    use crate::fetch::tests::FakeUpstream;

    #[tokio::test]
    async fn what_cannot_be_decoded_is_remembered() {
        let upstream = Arc::new(FakeUpstream::default());
        let bytes = b"\xff no rules".to_vec();
        let len = u32::try_from(bytes.len()).unwrap();
        let id = upstream.add(bytes);
        let content = Content::from_extents(vec![Extent { id: Some(id), len }]);
        let built = atoll_client::build(Vec::new(), Some(content.clone())).unwrap();
        for page in built.pages {
            upstream.add(page.bytes);
        }
        let cache = Arc::new(Cache::in_memory(1 << 20));
        let chunks = Arc::new(Chunks::new(cache, upstream.clone()));
        let pages = Pages::new(chunks.clone(), 1 << 20);
        let book = Book::new(chunks);
        let first = book.of(&pages, built.root).await.unwrap_err().to_string();
        assert!(book.decoded(&content.id()).is_some_and(|decoded| decoded.is_err()));
        assert_eq!(book.of(&pages, built.root).await.unwrap_err().to_string(), first);
    }
}
