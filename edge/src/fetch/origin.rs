//! The chunkservers, through the client library.
//!
//! Called by [`super::upstream`]. Which replica is asked, hedging and verification are the
//! client's; this module adds the circuit breaker and translates errors.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use atoll_client::{ClientError, Cluster};
use atoll_proto::ChunkId;

use super::breaker::Breaker;
use super::{Fetched, FillError, Source};

/// How long one read may take, with all its attempts; shorter than a fetch as a whole, so that a
/// read that hangs counts as a failure.
const DEADLINE: Duration = Duration::from_secs(20);

/// The origin.
pub struct Origin {
    cluster: Cluster,
    breaker: Mutex<Breaker>,
}

impl Origin {
    /// The chunkservers of a cluster.
    pub fn new(cluster: Cluster) -> Origin {
        Origin { cluster, breaker: Mutex::new(Breaker::default()) }
    }

    /// Reads one chunk.
    ///
    /// # Errors
    /// When no replica returns it, or when the origin did not answer lately.
    pub async fn fetch(&self, id: ChunkId) -> Result<Fetched, FillError> {
        if !self.breaker(|breaker| breaker.allow(Instant::now())) {
            return Err(FillError::upstream(id, "the origin did not answer lately"));
        }
        let read = tokio::time::timeout(DEADLINE, self.cluster.read_chunk(id)).await;
        match &read {
            // That one chunk is lost says nothing about the others.
            Ok(Ok(_) | Err(ClientError::Lost { .. })) => self.breaker(Breaker::succeeded),
            Ok(Err(_)) | Err(_) => self.breaker(|breaker| breaker.failed(Instant::now())),
        }
        match read {
            Ok(Ok(bytes)) => Ok(Fetched { bytes, source: Source::Origin }),
            Ok(Err(error)) => Err(FillError::upstream(id, error.to_string())),
            Err(_) => Err(FillError::upstream(id, "the origin took too long")),
        }
    }

    fn breaker<R>(&self, change: impl FnOnce(&mut Breaker) -> R) -> R {
        change(&mut self.breaker.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
