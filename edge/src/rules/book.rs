//! The rules of deploys, decoded and at hand.
//!
//! Called by [`crate::http::respond`] for every request. Rules are immutable, like the manifest
//! whose root names them, so nothing here is ever wrong. They are decoded one deploy at a time:
//! a hundred thousand of them take a moment and some memory.

use std::sync::{Arc, PoisonError, RwLock};

use atoll_client::{ClientError, PageSource};
use atoll_proto::content::Extent;
use atoll_proto::manifest::Page;
use atoll_proto::rules::Rules;
use atoll_proto::rules::decide::Lookups;
use atoll_proto::{ChunkId, Content, DeployId, limits};

use crate::cache::s3fifo::S3Fifo;
use crate::fetch::{Chunks, Worth};
use crate::index::Index;
use atoll_proto::manifest::Entry;

/// What decoded rules cost in memory for each encoded byte, roughly: small vectors and tree nodes.
const DECODED_FACTOR: usize = 12;
/// Bytes of decoded rules that are kept.
const DECODED_BYTES_MAX: usize = 256 << 20;

const _: () = assert!(limits::RULES_BYTES_MAX * DECODED_FACTOR < DECODED_BYTES_MAX);

/// Rules by the content they are stored as.
pub struct Book {
    chunks: Arc<Chunks>,
    decoded: RwLock<S3Fifo<ChunkId, Arc<Rules>>>,
    /// Held while rules are decoded.
    decoding: tokio::sync::Mutex<()>,
    none: Arc<Rules>,
}

impl Book {
    /// Rules out of `chunks`.
    pub fn new(chunks: Arc<Chunks>) -> Book {
        Book {
            chunks,
            decoded: RwLock::new(S3Fifo::new(DECODED_BYTES_MAX)),
            decoding: tokio::sync::Mutex::new(()),
            none: Arc::default(),
        }
    }

    /// The rules of a deploy; those without any if it has none.
    ///
    /// # Errors
    /// When the manifest's root or the rules cannot be had now.
    pub async fn of(&self, index: &Index, deploy: DeployId) -> Result<Arc<Rules>, ClientError> {
        let page = index.pages().page(deploy).await?;
        let Page::RootV1(root) = &*page else {
            let what = format!("{deploy} is not the root of a manifest");
            return Err(ClientError::Malformed { what });
        };
        match &root.rules {
            None => Ok(self.none.clone()),
            Some(content) => self.read(content).await,
        }
    }

    async fn read(&self, content: &Content) -> Result<Arc<Rules>, ClientError> {
        let id = content.id();
        if let Some(rules) = self.decoded(&id) {
            return Ok(rules);
        }
        let _one = self.decoding.lock().await;
        if let Some(rules) = self.decoded(&id) {
            return Ok(rules);
        }
        let bytes = self.bytes(content).await?;
        let cost = bytes.len() * DECODED_FACTOR;
        let decode = move || Rules::decode(&bytes);
        let malformed =
            |error: String| ClientError::Malformed { what: format!("rules {id}: {error}") };
        let rules = atoll_net::task::spawn_blocking("rules", decode)
            .await
            .map_err(|error| malformed(error.to_string()))?
            .map_err(|error| malformed(error.to_string()))?;
        let rules = Arc::new(rules);
        let mut decoded = self.decoded.write().unwrap_or_else(PoisonError::into_inner);
        drop(decoded.insert(id, rules.clone(), cost));
        Ok(rules)
    }

    fn decoded(&self, id: &ChunkId) -> Option<Arc<Rules>> {
        let decoded = self.decoded.read().unwrap_or_else(PoisonError::into_inner);
        decoded.get(id).map(|(rules, _)| rules.clone())
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
        }
        Ok(bytes)
    }
}

/// What was looked up in a manifest for one request.
#[derive(Debug, Default)]
pub struct LookedUp(Vec<(Vec<u8>, Option<Entry>)>);

impl LookedUp {
    /// Adds what is at a path.
    pub fn add(&mut self, path: Vec<u8>, entry: Option<Entry>) {
        self.0.push((path, entry));
    }

    /// The file at a path that was found.
    pub fn take(self, path: &[u8]) -> Option<Entry> {
        self.0.into_iter().find(|(own, _)| own == path).and_then(|(_, entry)| entry)
    }
}

impl Lookups for LookedUp {
    fn exists(&self, path: &[u8]) -> Option<bool> {
        self.0.iter().find(|(own, _)| own == path).map(|(_, entry)| entry.is_some())
    }
}
