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
/// A peer that has answered nothing for this long while it was asked is not waited for.
const SILENT_AFTER: Duration = Duration::from_millis(500);

/// All peers ever relayed to.
#[derive(Debug, Default)]
pub(crate) struct Peers(Mutex<HashMap<NodeId, Arc<Peer>>>);

#[derive(Debug)]
pub(crate) struct Peer {
    failed: Mutex<Option<Instant>>,
    room: Arc<Semaphore>,
    talk: Mutex<Talk>,
}

/// Requests to a peer that are not answered yet, and since when it says nothing.
#[derive(Debug)]
struct Talk {
    unanswered: usize,
    since: Instant,
}

/// A request to a peer. Dropping it says that it is answered, or given up.
#[derive(Debug)]
pub(crate) struct Asked(Arc<Peer>);

impl Peers {
    pub(crate) fn of(&self, node: NodeId) -> Arc<Peer> {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(peers.entry(node).or_insert_with(|| {
            let room = Arc::new(Semaphore::new(PEER_BYTES_MAX as usize));
            let talk = Mutex::new(Talk { unanswered: 0, since: Instant::now() });
            Arc::new(Peer { failed: Mutex::new(None), room, talk })
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

    /// A request is sent to the peer.
    pub(crate) fn asked(self: &Arc<Self>, now: Instant) -> Asked {
        let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        if talk.unanswered == 0 {
            talk.since = now;
        }
        talk.unanswered += 1;
        Asked(Arc::clone(self))
    }

    /// The peer has answered something, whatever it said.
    pub(crate) fn answered(&self, now: Instant) {
        self.talk.lock().unwrap_or_else(PoisonError::into_inner).since = now;
    }

    /// Room for this many bytes on their way to the peer, if there is some within `wait`. So a
    /// working peer that is behind slows its callers; one that is silent does not.
    pub(crate) async fn room(&self, bytes: usize, wait: Duration) -> Option<OwnedSemaphorePermit> {
        let wanted = u32::try_from(bytes).unwrap_or(u32::MAX).clamp(1, PEER_BYTES_MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(wanted);
        tokio::select! {
            biased;
            room = tokio::time::timeout(wait, room) => room.ok()?.ok(),
            () = self.silence() => None,
        }
    }

    /// Ends once the peer is silent.
    async fn silence(&self) {
        loop {
            let silent_at = self.silent_at();
            match silent_at {
                Some(at) if at <= Instant::now() => return,
                Some(at) => tokio::time::sleep_until(at).await,
                None => tokio::time::sleep(SILENT_AFTER).await,
            }
        }
    }

    /// When the peer will have been silent for too long, unless it answers before.
    fn silent_at(&self) -> Option<Instant> {
        let talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        (talk.unanswered > 0).then(|| talk.since + SILENT_AFTER)
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let mut talk = self.0.talk.lock().unwrap_or_else(PoisonError::into_inner);
        talk.unanswered = talk.unanswered.saturating_sub(1);
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

    #[tokio::test]
    async fn a_peer_that_is_behind_is_waited_for_and_a_silent_one_is_not() {
        let (peers, now) = (Peers::default(), Instant::now());
        let peer = peers.of(NodeId(1));
        assert_eq!(peer.silent_at(), None, "nobody waits for an answer");
        let held = (peer.room(usize::MAX, Duration::ZERO).await.unwrap(), peer.asked(now));
        assert_eq!(peer.silent_at(), Some(now + SILENT_AFTER));
        let for_ever = Duration::from_secs(3600);
        assert!(peer.room(1, for_ever).await.is_none(), "it is silent");
        // As if it went on answering.
        peer.answered(now + for_ever);
        let wait = Duration::from_millis(100);
        let began = Instant::now();
        assert!(peer.room(1, wait).await.is_none());
        assert!(began.elapsed() >= wait, "it is behind, and waited for");
        drop(held);
        assert_eq!(peer.silent_at(), None);
        assert!(peer.room(1, Duration::ZERO).await.is_some());
    }
}
