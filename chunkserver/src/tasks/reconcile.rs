//! Starting walks: when the master says that something differs, and that is not news still to be
//! heard from its feed.
//!
//! A pass that finds nothing new (what differs is known to be lacking, and being fetched) makes the
//! next one wait longer. Whatever may bring something new, such as another placement table or a
//! gap in the feed, starts from the shortest wait again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use atoll_net::Shutdown;
use tokio::time::Instant;

use crate::node::Node;
use crate::reconcile::session::{self, Filled, Pass};

/// Between passes while there is something to find.
const PAUSE: Duration = Duration::from_secs(1);
/// Between passes that find nothing new, at most.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long to wait for the feed.
const FEED_WAIT: Duration = Duration::from_secs(1);

/// Runs until shutdown.
pub(crate) async fn keep_equal(node: Arc<Node>, shutdown: Shutdown) {
    let work = async {
        let mut filled = Filled::new();
        let (mut pause, mut upheavals) = (Duration::ZERO, 0);
        loop {
            let now = wait(&node, pause, upheavals).await;
            if now != upheavals {
                upheavals = now;
                pause = Duration::ZERO;
            }
            if !node.upkeep.feed.lock().await.caught_up {
                tokio::time::sleep(FEED_WAIT).await;
                continue;
            }
            let mut hinted = BTreeSet::new();
            node.upkeep.compared.send_modify(|compared| {
                hinted = std::mem::take(&mut compared.differ);
                // The next pass is for what is said from now on.
                compared.in_sync = None;
            });
            let outcome = session::pass(&node, &hinted, &mut filled).await;
            pause = next_pause(pause, outcome.as_ref());
            match outcome {
                Ok(pass) if pass.groups > 0 => tracing::info!(?pass, "compared with the master"),
                Ok(pass) => tracing::debug!(?pass, "compared with the master"),
                Err(reason) => tracing::debug!(reason, "cannot compare with the master now"),
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.wait() => {}
    }
}

/// Waits until something differs and the pause is over, or there was an upheaval meanwhile.
/// Returns the number of upheavals.
async fn wait(node: &Node, pause: Duration, upheavals: u64) -> u64 {
    let mut compared = node.upkeep.compared.subscribe();
    let until = Instant::now() + pause;
    let changed = compared.wait_for(|now| now.upheavals != upheavals);
    let early = matches!(tokio::time::timeout_at(until, changed).await, Ok(Ok(_)));
    if early {
        // What happened is not compared yet at its new state.
        node.upkeep.compared.send_modify(|now| now.in_sync = None);
    }
    let differs = compared.wait_for(|now| now.in_sync == Some(false) || !now.differ.is_empty());
    match differs.await {
        Ok(now) => now.upheavals,
        Err(_closed) => upheavals,
    }
}

fn next_pause(before: Duration, outcome: Result<&Pass, &String>) -> Duration {
    let news = outcome.is_ok_and(|pass| {
        pass.learned > 0 || pass.forgotten > 0 || pass.again > 0 || pass.filled > 0
    });
    if news { PAUSE } else { (before * 2).clamp(PAUSE, PAUSE_MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_without_news_are_further_and_further_apart() {
        let (nothing, some) = (Pass::default(), Pass { learned: 1, ..Pass::default() });
        let mut pause = Duration::ZERO;
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            pause = next_pause(pause, Ok(&nothing));
            assert_eq!(pause, Duration::from_secs(seconds));
        }
        assert_eq!(next_pause(pause, Ok(&some)), PAUSE);
        assert_eq!(next_pause(PAUSE, Err(&String::new())), PAUSE * 2);
    }
}
