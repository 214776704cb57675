//! Linearizable reads: one confirmation of leadership serves all reads that wait for it.
//!
//! A read that arrives while a confirmation is under way takes part in the next one, never in the
//! running one: that may have read the commit index before the read was asked for.

use std::time::Duration;

use atoll_proto::{Code, WireError, limits};
use openraft::error::{CheckIsLeaderError, RaftError};
use tokio::sync::{mpsc, oneshot};

use super::entry::{Raft, Vote};

const QUEUE: usize = 4096;
/// A master that cannot reach a quorum for this long does not answer reads.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);

type Waiter = oneshot::Sender<Result<(), WireError>>;

/// Lets reads pass when the state they will see is current. Clones share it.
#[derive(Clone)]
pub(crate) struct ReadGate {
    queue: mpsc::Sender<Waiter>,
}

impl ReadGate {
    /// Starts the task behind the gate. `floor`: the vote and last log index this master started
    /// with. A leader that restarts goes on under its old vote and may have forgotten how far it
    /// had committed; its reads wait until everything it had is applied again.
    pub(crate) fn start(raft: Raft, floor: (Option<u64>, Option<Vote>)) -> ReadGate {
        let (queue, waiting) = mpsc::channel(QUEUE);
        atoll_net::task::spawn("read-gate", run(raft, floor, waiting));
        ReadGate { queue }
    }

    /// Waits until this master is known to be the leader and has applied everything committed
    /// before this call.
    ///
    /// # Errors
    /// `NotLeader` or `Unavailable`.
    pub(crate) async fn pass(&self) -> Result<(), WireError> {
        let busy = |_| WireError::unavailable("the master has too many reads waiting");
        let (waiter, passed) = oneshot::channel();
        self.queue.try_send(waiter).map_err(busy)?;
        passed.await.unwrap_or_else(|_| Err(WireError::unavailable("the master is stopping")))
    }
}

async fn run(raft: Raft, floor: (Option<u64>, Option<Vote>), mut queue: mpsc::Receiver<Waiter>) {
    let mut waiters = Vec::new();
    while queue.recv_many(&mut waiters, QUEUE).await > 0 {
        let confirmed = tokio::time::timeout(CONFIRM_TIMEOUT, confirm(&raft, floor)).await;
        let confirmed = confirmed.unwrap_or_else(|_| {
            Err(WireError::new(
                Code::Unavailable,
                "the master cannot confirm that it leads: are the other masters running?",
            ))
        });
        for waiter in waiters.drain(..) {
            if waiter.send(confirmed.clone()).is_err() {
                tracing::trace!("nobody waits for this read any more");
            }
        }
    }
}

async fn confirm(raft: &Raft, floor: (Option<u64>, Option<Vote>)) -> Result<(), WireError> {
    raft.ensure_linearizable().await.map_err(|error| match error {
        RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward)) => {
            super::not_leader(forward.leader_id, forward.leader_node.as_ref())
        }
        RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(error)) => {
            WireError::unavailable(format!("{error}: are the other masters running?"))
        }
        RaftError::Fatal(error) => WireError::unavailable(format!("the master stopped: {error}")),
    })?;
    if let (Some(index), Some(vote)) = floor
        && raft.server_metrics().borrow().vote == vote
    {
        let applied = raft.wait(Some(limits::METADATA_DEADLINE));
        let applied = applied.applied_index_at_least(Some(index), "reads after a restart").await;
        applied.map_err(|error| WireError::unavailable(format!("still recovering: {error}")))?;
    }
    Ok(())
}
