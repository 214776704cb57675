//! Forgets sessions that were not used for long: by a log entry, with the leader's time.

use std::sync::Arc;
use std::time::Duration;

use atoll_proto::limits;
use tokio::time::Instant;

use crate::operation::Operation;
use crate::raft::TASK_DEADLINE;
use crate::server::{Master, now_ms};
use crate::store::sessions;

const LOOK_EVERY: Duration = Duration::from_secs(60);

pub(crate) async fn run(master: Arc<Master>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = master.shutdown.wait() => return,
        }
        if !master.consensus.leads() {
            continue;
        }
        let lifetime = u64::try_from(limits::SESSION_LIFETIME.as_millis()).unwrap_or(u64::MAX);
        let before = now_ms().saturating_sub(lifetime);
        match sessions::idle(&*master.consensus.state(), before, 1) {
            Ok(idle) if idle.is_empty() => {}
            Ok(_) => {
                let deadline = Instant::now() + TASK_DEADLINE;
                let expired = master.consensus.propose(&Operation::ExpireSessions, deadline);
                if let Err(error) = expired.await {
                    tracing::warn!(%error, "cannot forget old sessions yet");
                }
            }
            Err(error) => tracing::error!(%error, "cannot look for old sessions"),
        }
    }
}
