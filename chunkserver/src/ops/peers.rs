//! How the other chunkservers do, as far as relays have seen: a circuit breaker per peer, and a
//! bound on the bytes on their way to it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use atoll_proto::NodeId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// How long a failure is remembered.
const SUSPECT_FOR: Duration = Duration::from_secs(5);
/// Bytes that may be on their way to one peer.
const PEER_BYTES_MAX: u32 = 64 << 20;

/// All peers ever relayed to.
#[derive(Debug, Default)]
pub(crate) struct Peers(Mutex<HashMap<NodeId, Arc<Peer>>>);

#[derive(Debug)]
pub(crate) struct Peer {
    failed: Mutex<Option<Instant>>,
    room: Arc<Semaphore>,
}

impl Peers {
    pub(crate) fn of(&self, node: NodeId) -> Arc<Peer> {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(peers.entry(node).or_insert_with(|| {
            let room = Arc::new(Semaphore::new(PEER_BYTES_MAX as usize));
            Arc::new(Peer { failed: Mutex::new(None), room })
        }))
    }
}

impl Peer {
    /// Whether it failed a moment ago. It is still tried, but not waited for as long.
    pub(crate) fn is_suspect(&self, now: Instant) -> bool {
        let failed = *self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.is_some_and(|at| now.saturating_duration_since(at) < SUSPECT_FOR)
    }

    /// Remembers that it failed, or that it works.
    pub(crate) fn note(&self, works: bool, now: Instant) {
        let failed = if works { None } else { Some(now) };
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = failed;
    }

    /// Room for this many bytes on their way to the peer, if there is some within `wait`. So a
    /// working peer that is behind slows its callers.
    pub(crate) async fn room(&self, bytes: usize, wait: Duration) -> Option<OwnedSemaphorePermit> {
        let wanted = u32::try_from(bytes).unwrap_or(u32::MAX).clamp(1, PEER_BYTES_MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(wanted);
        tokio::time::timeout(wait, room).await.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_failure_is_forgotten_after_a_while_or_a_success() {
        let (peers, now) = (Peers::default(), Instant::now());
        let peer = peers.of(NodeId(1));
        assert!(!peer.is_suspect(now));
        peer.note(false, now);
        assert!(peers.of(NodeId(1)).is_suspect(now));
        assert!(!peers.of(NodeId(2)).is_suspect(now));
        peer.note(true, now);
        assert!(!peer.is_suspect(now));
        peer.note(false, now);
        assert!(!peer.is_suspect(now + SUSPECT_FOR));
    }

    #[tokio::test]
    async fn bytes_on_their_way_are_bounded() {
        let peers = Peers::default();
        let peer = peers.of(NodeId(1));
        let held = peer.room(usize::MAX, Duration::ZERO).await.unwrap();
        assert!(peer.room(1, Duration::from_millis(1)).await.is_none());
        drop(held);
        assert!(peer.room(1, Duration::ZERO).await.is_some());
    }
}
