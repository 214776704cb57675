//! Standing for election in time.
//!
//! openraft's own timer waits twice the longest timeout more once it has been told of a longer log, and
//! forgets that only when it stands itself: a follower that was behind for a moment, long ago, makes a
//! failover longer. So a voter that hears nothing of a leader stands by this clock too. Standing is
//! always safe, whoever does it and when (Raft, 5.2); this only bounds how long nobody does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::ServerState;
use tokio::time::Instant;

use super::entry::Raft;

/// A follower refuses to elect another for so long after it heard of a leader.
const LEASE: Duration = Duration::from_millis(super::LEASE_MS);
/// After that, it waits for a time drawn anew each time: at least this, in ms,
const WAIT_MS_MIN: u64 = 300;
/// and less than this.
const WAIT_MS_MAX: u64 = 600;
/// Before it stands again, and after it gave its vote to another, it waits until all votes of that round can
/// have come, which wait for disks: at least this, in ms,
const AGAIN_MS_MIN: u64 = super::VOTE_MS;
/// and less than this.
const AGAIN_MS_MAX: u64 = super::VOTE_MS + 400;
/// How often it stands during one silence; after that openraft's clock goes on alone, so that one that
/// lacks entries does not keep the others from it.
const ATTEMPTS_MAX: u32 = 3;
const LOOK: Duration = Duration::from_millis(25);

/// When a leader spoke last, to this master.
#[derive(Debug, Clone)]
pub(super) struct Spoken {
    began: Instant,
    after_ms: Arc<AtomicU64>,
    /// Votes given to others.
    given: Arc<AtomicU64>,
    /// Questions for a vote that are being answered: the disk may be slow.
    asked: Arc<AtomicU64>,
}

/// Held while a question for a vote is answered.
pub(super) struct Asked(Arc<AtomicU64>);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Spoken {
    pub(super) fn new() -> Spoken {
        Spoken {
            began: Instant::now(),
            after_ms: Arc::default(),
            given: Arc::default(),
            asked: Arc::default(),
        }
    }

    /// A leader has spoken, and was followed.
    pub(super) fn now(&self) {
        let after = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.after_ms.store(after, Ordering::Relaxed);
    }

    /// Another asks for a vote.
    pub(super) fn asked(&self) -> Asked {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Asked(self.asked.clone())
    }

    /// Another got this master's vote.
    pub(super) fn gave_vote(&self) {
        self.given.fetch_add(1, Ordering::Relaxed);
    }

    fn at(&self) -> Instant {
        self.began + Duration::from_millis(self.after_ms.load(Ordering::Relaxed))
    }
}

/// Ends with Raft.
pub(super) async fn stand_in_time(id: u64, raft: Raft, spoken: Spoken) {
    let metrics = raft.server_metrics();
    let drawn = || Duration::from_millis(rand::random_range(WAIT_MS_MIN..WAIT_MS_MAX));
    let again = || Duration::from_millis(rand::random_range(AGAIN_MS_MIN..AGAIN_MS_MAX));
    let mut given = 0;
    let mut heard_at = spoken.at();
    let mut due = heard_at + LEASE + drawn();
    let mut attempts = 0;
    loop {
        tokio::time::sleep(LOOK).await;
        let stands = {
            let metrics = metrics.borrow();
            if metrics.state == ServerState::Shutdown {
                return;
            }
            let mut voters = metrics.membership_config.membership().voter_ids();
            // Alone it need not wait at all: `elect_if_alone`.
            metrics.state != ServerState::Leader
                && voters.any(|voter| voter == id)
                && metrics.membership_config.membership().voter_ids().nth(1).is_some()
        };
        let latest = spoken.at();
        if latest != heard_at || !stands {
            (heard_at, attempts) = (latest, 0);
            given = spoken.given.load(Ordering::Relaxed);
            due = latest.max(Instant::now() - LEASE) + LEASE + drawn();
            continue;
        }
        // Who stands while another is about to be elected keeps it from that.
        let given_now = spoken.given.load(Ordering::Relaxed);
        if given_now != given {
            given = given_now;
            due = due.max(Instant::now() + again());
        }
        let voting = spoken.asked.load(Ordering::Relaxed) > 0;
        if Instant::now() < due || attempts >= ATTEMPTS_MAX || voting {
            continue;
        }
        attempts += 1;
        due = Instant::now() + again();
        if raft.trigger().elect().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_counted_until_they_are_answered() {
        let spoken = Spoken::new();
        let asked = || spoken.asked.load(Ordering::Relaxed);
        let (one, two) = (spoken.asked(), spoken.clone().asked());
        assert_eq!(asked(), 2);
        drop(one);
        assert_eq!(asked(), 1);
        drop(two);
        assert_eq!(asked(), 0);
    }
}
