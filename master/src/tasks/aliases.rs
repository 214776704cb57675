//! Removes aliases whose time is over: by a log entry, with the leader's time.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::operation::Operation;
use crate::raft::TASK_DEADLINE;
use crate::server::{Master, now_ms};
use crate::store::{StoreError, aliases};

/// How often the next expiry is looked for while nothing is published.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How often it is looked for at most, however much is published.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_millis(500);

pub(crate) async fn run(master: Arc<Master>) {
    let mut applied = master.consensus.applied();
    loop {
        let (seen, leads) = (applied.borrow().publish_seq, master.consensus.leads());
        let pause = if leads { look(&master).await } else { LOOK_EVERY };
        let wait = async {
            tokio::time::sleep(pause.min(LOOK_AT_MOST_EVERY)).await;
            tokio::select! {
                // Gone with the consensus: this task is about to be stopped.
                published = applied.wait_for(|applied| applied.publish_seq > seen) => {
                    published.is_ok()
                }
                known = master.consensus.leadership_changed(leads) => known,
                () = tokio::time::sleep(pause.saturating_sub(LOOK_AT_MOST_EVERY)) => true,
            }
        };
        let goes_on = tokio::select! {
            goes_on = wait => goes_on,
            () = master.shutdown.wait() => false,
        };
        if !goes_on {
            return;
        }
    }
}

/// Removes what has expired; says how long until there is more to do.
async fn look(master: &Master) -> Duration {
    match next_expiry_ms(master) {
        Ok(None) => LOOK_EVERY,
        Ok(Some(at_ms)) => {
            let left = Duration::from_millis(at_ms.saturating_sub(now_ms()));
            if !left.is_zero() {
                return left.min(LOOK_EVERY);
            }
            let deadline = Instant::now() + TASK_DEADLINE;
            let expired = master.consensus.propose(&Operation::ExpireAliases, deadline).await;
            if let Err(error) = expired {
                tracing::warn!(%error, "cannot remove aliases that have expired yet");
            }
            LOOK_AT_MOST_EVERY
        }
        Err(error) => {
            tracing::error!(%error, "cannot look for aliases that have expired");
            LOOK_EVERY
        }
    }
}

/// When the next alias expires, if any does.
fn next_expiry_ms(master: &Master) -> Result<Option<u64>, StoreError> {
    let all = aliases::all(&*master.consensus.state(), None)?;
    Ok(all.into_iter().filter_map(|record| record.alias.expires_ms).min())
}
