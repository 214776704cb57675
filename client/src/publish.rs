//! Waiting until the edges have what was published.

use std::time::Duration;

use atoll_proto::Seq;
use atoll_proto::cluster::NodeKind;
use atoll_proto::limits;
use atoll_proto::master::{MasterRequest, MasterResponse};
use tokio::time::Instant;

use crate::{ClientError, Cluster};

/// How much longer than its lease an edge is waited for at a time.
const SLACK: Duration = Duration::from_millis(100);

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
    /// Edges that have not, and may still answer with what was before.
    pub waiting: Vec<String>,
    /// Edges that have not, and cannot: their leases have ended. One that comes back catches up
    /// before it gets another.
    pub down: Vec<String>,
    /// Why the master could not be asked in the end: who is waiting is then those edges that were
    /// known before.
    pub unasked: Option<String>,
}

/// Waits until no edge answers with what was before a publish log entry, or until the timeout. With
/// [`Wait::All`] the end of leases is waited for also beyond that, as they surely end.
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
    let mut until = Instant::now() + timeout;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let slice = left.min(limits::WATCH_WAIT_MAX);
        let wait_ms = u32::try_from(slice.as_millis()).unwrap_or(u32::MAX);
        let request = MasterRequest::WaitPublished { seq, wait_ms };
        let deadline = slice + limits::METADATA_DEADLINE;
        let answer = match cluster.master(&request, deadline).await {
            // The entry is committed; a master that is away for a while changes nothing about it.
            Err(ClientError::Unreachable { .. } | ClientError::Deadline { .. })
                if Instant::now() < until =>
            {
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
            Err(ClientError::Unreachable { reason, .. }) => return Ok(unheard(cluster, reason)),
            Err(ClientError::Deadline { after, .. }) => {
                return Ok(unheard(cluster, format!("no answer within {after:?}")));
            }
            answer => answer?,
        };
        match answer {
            MasterResponse::Confirmed { acked, waiting, down, left_ms } => {
                let now = Instant::now();
                if waiting.is_empty() {
                    return Ok(Waited { acked, waiting, down, unasked: None });
                }
                if now >= until {
                    // Leases end by themselves: only who may serve on for ever is given up.
                    let Some(left_ms) = left_ms.filter(|_| wait == Wait::All) else {
                        return Ok(Waited { acked, waiting, down, unasked: None });
                    };
                    until = now + Duration::from_millis(left_ms) + SLACK;
                }
            }
            _ => return Err(ClientError::unexpected("the master")),
        }
    }
}

/// Nobody is known to have confirmed, because the master could not be asked.
fn unheard(cluster: &Cluster, reason: String) -> Waited {
    let view = cluster.last_view();
    let nodes = view.iter().flat_map(|view| &view.nodes);
    let edges = nodes.filter(|node| node.info.kind == NodeKind::Edge);
    let mut waiting: Vec<String> = edges.map(|node| node.info.name.clone()).collect();
    if waiting.is_empty() {
        // A view without edges may be older than they are.
        waiting.push("every edge".to_owned());
    }
    Waited { waiting, unasked: Some(reason), ..Waited::default() }
}
