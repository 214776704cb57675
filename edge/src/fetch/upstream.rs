//! The way to a chunk that is not in the cache: shields, then the origin.
//!
//! [`super::Chunks`] calls it once per chunk. A shield goes to the origin directly, so that two
//! shields never wait for each other.

use std::sync::Arc;

use atoll_proto::ChunkId;
use futures_util::future::BoxFuture;

use super::origin::Origin;
use super::shield::Shields;
use super::{Fetched, FillError, Upstream};

/// The upstream of an edge.
pub struct Route {
    /// `None` in a shield.
    shields: Option<Arc<Shields>>,
    origin: Origin,
}

impl Route {
    /// Through shields where there are some, else from the origin.
    pub fn new(shields: Option<Arc<Shields>>, origin: Origin) -> Route {
        Route { shields, origin }
    }
}

impl Upstream for Route {
    fn fetch(&self, id: ChunkId) -> BoxFuture<'_, Result<Fetched, FillError>> {
        Box::pin(async move {
            if let Some(shields) = &self.shields
                && let Some(fetched) = shields.fetch(id).await
            {
                return Ok(fetched);
            }
            self.origin.fetch(id).await
        })
    }
}
