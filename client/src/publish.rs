//! Waiting until the edges have what was published.

use std::time::Duration;

use atoll_proto::Seq;
use atoll_proto::limits;
use atoll_proto::master::{MasterRequest, MasterResponse};
use tokio::time::Instant;

use crate::{ClientError, Cluster};

/// Which edges to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wait {
    /// Every edge that may be serving.
    #[default]
    All,
    /// Those that answer; stop at the timeout without complaint.
    Reachable,
    /// None.
    None,
}

/// Who confirmed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waited {
    /// Edges that have applied the entry.
    pub acked: Vec<String>,
    /// Live edges that have not.
    pub waiting: Vec<String>,
    /// Edges that have been silent for too long to be waited for. One that starts again catches up
    /// before it serves.
    pub down: Vec<String>,
}

/// Waits until the edges have applied a publish log entry, or until the timeout.
///
/// # Errors
/// When the master refuses to tell. An edge that did not confirm in time is no error but in
/// `waiting`, and so is a master that cannot be asked: the entry itself is committed.
pub async fn wait_applied(
    cluster: &Cluster,
    seq: Seq,
    wait: Wait,
    timeout: Duration,
) -> Result<Waited, ClientError> {
    if wait == Wait::None {
        return Ok(Waited::default());
    }
    let until = Instant::now() + timeout;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let slice = left.min(limits::WATCH_WAIT_MAX);
        let wait_ms = u32::try_from(slice.as_millis()).unwrap_or(u32::MAX);
        let request = MasterRequest::WaitApplied { seq, wait_ms };
        let deadline = slice + limits::METADATA_DEADLINE;
        let answer = match cluster.master(&request, deadline).await {
            // The entry is committed; a master that is away for a while changes nothing about it.
            Err(ClientError::Unreachable { .. } | ClientError::Deadline { .. })
                if Instant::now() < until =>
            {
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
            Err(ClientError::Unreachable { reason, .. }) => return Ok(unheard(reason)),
            Err(ClientError::Deadline { after, .. }) => {
                return Ok(unheard(format!("no answer within {after:?}")));
            }
            answer => answer?,
        };
        match answer {
            MasterResponse::Applied { acked, waiting, down } => {
                if waiting.is_empty() || Instant::now() >= until {
                    return Ok(Waited { acked, waiting, down });
                }
            }
            _ => return Err(ClientError::unexpected("the master")),
        }
    }
}

/// Nobody is known to have confirmed, because the master could not be asked.
fn unheard(reason: String) -> Waited {
    Waited {
        waiting: vec![format!("every edge (the master cannot be asked: {reason})")],
        ..Waited::default()
    }
}
