//! How the other chunkservers do, as far as relays have seen: a circuit breaker per peer, and a
//! bound on the bytes on their way to it. `now` is an argument.
//!
//! A peer that *failed* a moment ago is given less time. One that is only *silent* gets its time,
//! but nobody waits for it who need not; so a frozen process slows at most the first put.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atoll_proto::NodeId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// How long a failure is remembered.
const SUSPECT_FOR: Duration = Duration::from_secs(5);
/// How long a silence is remembered: longer than any relay may take, so that it ends with an answer
/// or a failure.
const DOUBT_FOR: Duration = Duration::from_secs(10);
/// A peer with something to do that has answered nothing for this long does not keep its callers
/// waiting for room.
const STALLED_AFTER: Duration = Duration::from_millis(250);
/// How often a caller that waits for room looks whether the peer has stalled.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Bytes that may be on their way to one peer.
const PEER_BYTES_MAX: u32 = 64 << 20;

/// All peers ever relayed to.
#[derive(Debug, Default)]
pub(crate) struct Peers(Mutex<HashMap<NodeId, Arc<Peer>>>);

#[derive(Debug)]
pub(crate) struct Peer {
    seen: Mutex<Seen>,
    room: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Seen {
    failed: Option<Instant>,
    silent: Option<Instant>,
    /// Relays that are not answered yet.
    open: usize,
    /// The last answer, or the first relay since there was none open.
    sign: Option<Instant>,
}

impl Peers {
    pub(crate) fn of(&self, node: NodeId) -> Arc<Peer> {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(peers.entry(node).or_insert_with(|| {
            let room = Arc::new(Semaphore::new(PEER_BYTES_MAX as usize));
            Arc::new(Peer { seen: Mutex::default(), room })
        }))
    }
}

impl Peer {
    /// Whether it failed a moment ago. It is still tried, but not waited for as long.
    pub(crate) fn is_suspect(&self, now: Instant) -> bool {
        recent(self.seen().failed, SUSPECT_FOR, now)
    }

    /// Whether it failed, or was silent for too long, a moment ago.
    pub(crate) fn is_doubted(&self, now: Instant) -> bool {
        let seen = self.seen();
        recent(seen.failed, SUSPECT_FOR, now) || recent(seen.silent, DOUBT_FOR, now)
    }

    /// Remembers that it failed, or that it works.
    pub(crate) fn note(&self, works: bool, now: Instant) {
        let mut seen = self.seen();
        seen.failed = if works { None } else { Some(now) };
        if works {
            seen.silent = None;
            seen.sign = Some(now);
        }
    }

    /// Remembers that it has not answered when it should have.
    pub(crate) fn note_silence(&self, now: Instant) {
        self.seen().silent = Some(now);
    }

    /// A relay to it begins.
    pub(crate) fn begin(&self, now: Instant) {
        let mut seen = self.seen();
        if seen.open == 0 {
            seen.sign = Some(now);
        }
        seen.open += 1;
    }

    /// A relay to it has ended, in whatever way.
    pub(crate) fn end(&self) {
        let mut seen = self.seen();
        seen.open = seen.open.saturating_sub(1);
    }

    /// Room for this many bytes on their way to the peer, if there is some within `wait`. So a
    /// working peer that is behind slows its callers; one that has stalled does not.
    pub(crate) async fn room(&self, bytes: usize, wait: Duration) -> Option<OwnedSemaphorePermit> {
        let wanted = u32::try_from(bytes).unwrap_or(u32::MAX).clamp(1, PEER_BYTES_MAX);
        let until = Instant::now() + wait;
        let mut room = std::pin::pin!(Arc::clone(&self.room).acquire_many_owned(wanted));
        loop {
            let now = Instant::now();
            let look = until.min(now + LOOK_EVERY);
            match tokio::time::timeout_at(look, &mut room).await {
                Ok(room) => return room.ok(),
                Err(_) if look >= until || self.has_stalled(Instant::now()) => return None,
                Err(_) => {}
            }
        }
    }

    fn has_stalled(&self, now: Instant) -> bool {
        let seen = self.seen();
        seen.open > 0 && !recent(seen.sign, STALLED_AFTER, now)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn recent(at: Option<Instant>, span: Duration, now: Instant) -> bool {
    at.is_some_and(|at| now.saturating_duration_since(at) < span)
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

    #[test]
    fn a_silence_is_doubt_but_no_failure() {
        let (peers, now) = (Peers::default(), Instant::now());
        let peer = peers.of(NodeId(1));
        peer.note_silence(now);
        assert!(peer.is_doubted(now) && !peer.is_suspect(now));
        assert!(!peer.is_doubted(now + DOUBT_FOR));
        peer.note(true, now);
        assert!(!peer.is_doubted(now));
        peer.note(false, now);
        assert!(peer.is_doubted(now) && peer.is_suspect(now));
    }

    #[tokio::test]
    async fn nobody_waits_for_room_on_the_way_to_a_peer_that_has_stalled() {
        let peers = Peers::default();
        let peer = peers.of(NodeId(1));
        let _held = peer.room(usize::MAX, Duration::ZERO).await.unwrap();
        peer.begin(Instant::now());
        // Far longer than a test may take.
        assert!(peer.room(1, Duration::from_secs(3600)).await.is_none());
        peer.end();
        assert!(!peer.has_stalled(Instant::now()));
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
