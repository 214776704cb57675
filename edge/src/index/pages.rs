//! Manifest pages, decoded and at hand.
//!
//! The client library walks a manifest through [`PageSource`]; here its pages come from a bounded
//! cache of decoded pages, below that from the chunk cache (where they are kept on disk), below
//! that from upstream. Pages are immutable, so nothing here is ever wrong.

use std::sync::{Arc, PoisonError, RwLock};

use atoll_client::{ClientError, PageSource};
use atoll_proto::ChunkId;
use atoll_proto::manifest::Page;

use crate::cache::s3fifo::S3Fifo;
use crate::fetch::{Chunks, Worth};

/// What a decoded page costs in memory for each encoded byte, roughly: small vectors and strings.
const DECODED_FACTOR: usize = 3;

/// A source of pages.
pub struct Pages {
    chunks: Arc<Chunks>,
    decoded: RwLock<S3Fifo<ChunkId, Arc<Page>>>,
}

impl Pages {
    /// Pages out of `chunks`, with room for so many bytes of decoded ones.
    pub fn new(chunks: Arc<Chunks>, bytes_max: usize) -> Pages {
        Pages { chunks, decoded: RwLock::new(S3Fifo::new(bytes_max)) }
    }

    fn decoded(&self, id: &ChunkId) -> Option<Arc<Page>> {
        let decoded = self.decoded.read().unwrap_or_else(PoisonError::into_inner);
        decoded.get(id).map(|(page, _)| page.clone())
    }
}

impl PageSource for Pages {
    async fn page(&self, id: ChunkId) -> Result<Arc<Page>, ClientError> {
        if let Some(page) = self.decoded(&id) {
            return Ok(page);
        }
        let got =
            self.chunks.get(id, Worth::Keep).await.map_err(|error| ClientError::Unreachable {
                what: format!("manifest page {}", id.short()),
                reason: error.to_string(),
            })?;
        let page = Page::decode(&got.bytes)
            .map_err(|error| ClientError::Malformed { what: format!("page {id}: {error}") })?;
        let page = Arc::new(page);
        let cost = got.bytes.len() * DECODED_FACTOR;
        let mut decoded = self.decoded.write().unwrap_or_else(PoisonError::into_inner);
        drop(decoded.insert(id, page.clone(), cost));
        Ok(page)
    }
}
