//! Who takes part in consensus, and changes of that.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::SocketAddr;

use atoll_proto::error::WireResult;
use atoll_proto::masters::MasterView;
use atoll_proto::{Code, WireError};
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers};
use tokio::time::Instant;

use super::{Consensus, not_leader};

type Refusal = RaftError<u64, ClientWriteError<u64, BasicNode>>;

impl Consensus {
    /// All members, with how far they are as far as this master knows.
    pub(crate) fn members(&self) -> Vec<MasterView> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let last = metrics.last_log_index.unwrap_or(0);
        let view = |(id, node): (&u64, &BasicNode)| {
            let told = metrics.replication.as_ref().and_then(|all| all.get(id).copied().flatten());
            let log_index = match told {
                _ if *id == self.id => last,
                Some(log_id) => log_id.index,
                None => 0,
            };
            MasterView {
                id: *id,
                addr: node.addr.clone(),
                voter: voters.contains(id),
                leads: metrics.current_leader == Some(*id),
                log_index,
                behind: last.saturating_sub(log_index),
            }
        };
        membership.nodes().map(view).collect()
    }

    /// Where a member is reached: as the configuration says, or else as the log does.
    pub(crate) fn addr_of(&self, member: &MasterView) -> Option<SocketAddr> {
        self.peers.get(&member.id).copied().or_else(|| member.addr.parse().ok())
    }

    /// Sends a master the log from now on. Returns when that is decided, not when it has all of it.
    pub(crate) async fn add_learner(
        &self,
        id: u64,
        addr: SocketAddr,
        deadline: Instant,
    ) -> WireResult<()> {
        let added = self.raft.add_learner(id, BasicNode::new(addr), false);
        within(deadline, async { added.await.map(drop) }).await
    }

    /// From now on these vote; who voted before and does not any more is forgotten, and so is
    /// `leaves`.
    pub(crate) async fn set_voters(
        &self,
        voters: BTreeSet<u64>,
        leaves: Option<u64>,
        deadline: Instant,
    ) -> WireResult<()> {
        let changed = self.raft.change_membership(ChangeMembers::ReplaceAllVoters(voters), false);
        within(deadline, async { changed.await.map(drop) }).await?;
        let left = leaves.filter(|id| self.members().iter().any(|member| member.id == *id));
        let Some(id) = left else { return Ok(()) };
        // It got the log without voting.
        let removed =
            self.raft.change_membership(ChangeMembers::RemoveNodes(BTreeSet::from([id])), false);
        within(deadline, async { removed.await.map(drop) }).await
    }
}

/// What a change came to. One that takes too long goes on by itself.
async fn within(
    deadline: Instant,
    change: impl Future<Output = Result<(), Refusal>>,
) -> WireResult<()> {
    match tokio::time::timeout_at(deadline, Box::pin(change)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(refused(&error)),
        Err(_) => Err(WireError::new(
            Code::Deadline,
            "the change of the masters takes longer; it goes on: look at `atoll node ls`",
        )),
    }
}

fn refused(error: &Refusal) -> WireError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            not_leader(forward.leader_id, forward.leader_node.as_ref())
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(
            error @ ChangeMembershipError::InProgress(_),
        )) => WireError::new(
            Code::Conflict,
            format!("another change of the masters is under way ({error}): try again in a moment"),
        ),
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => {
            WireError::invalid(format!("the masters cannot be changed so: {error}"))
        }
        RaftError::Fatal(error) => WireError::unavailable(format!("the master stopped: {error}")),
    }
}
