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
/// How long a put waits for a peer that is behind, before it goes on without.
const ROOM_WAIT: Duration = Duration::from_secs(2);

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
    pub(crate) fn is_suspect(&self) -> bool {
        let failed = *self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.is_some_and(|at| at.elapsed() < SUSPECT_FOR)
    }

    /// Remembers that it failed, or that it works.
    pub(crate) fn note(&self, works: bool) {
        let failed = if works { None } else { Some(Instant::now()) };
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = failed;
    }

    /// Room for this many bytes on their way to the peer. A working peer that is behind slows its
    /// callers; one that does not catch up within [`ROOM_WAIT`] counts as failed.
    pub(crate) async fn room(&self, bytes: usize, wait: bool) -> Option<OwnedSemaphorePermit> {
        let wanted = u32::try_from(bytes).unwrap_or(u32::MAX).clamp(1, PEER_BYTES_MAX);
        let room = Arc::clone(&self.room);
        if !wait {
            return room.try_acquire_many_owned(wanted).ok();
        }
        let got = tokio::time::timeout(ROOM_WAIT, room.acquire_many_owned(wanted)).await;
        let permit = got.ok().and_then(Result::ok);
        if permit.is_none() {
            self.note(false);
        }
        permit
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_forgotten_after_a_while_or_a_success() {
        let peers = Peers::default();
        let peer = peers.of(NodeId(1));
        assert!(!peer.is_suspect());
        peer.note(false);
        assert!(peers.of(NodeId(1)).is_suspect());
        assert!(!peers.of(NodeId(2)).is_suspect());
        peer.note(true);
        assert!(!peer.is_suspect());
        peer.note(false);
        tokio::time::advance(SUSPECT_FOR).await;
        assert!(!peer.is_suspect());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_behind_is_waited_for_once() {
        let peers = Peers::default();
        let peer = peers.of(NodeId(1));
        let held = peer.room(usize::MAX, true).await.unwrap();
        assert!(peer.room(1, false).await.is_none());
        assert!(!peer.is_suspect());
        assert!(peer.room(1, true).await.is_none());
        assert!(peer.is_suspect());
        drop(held);
        assert!(peer.room(1, false).await.is_some());
    }
}
