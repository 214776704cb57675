//! Who takes part in consensus, and changes of that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use atoll_proto::error::WireResult;
use atoll_proto::masters::MasterView;
use atoll_proto::{Code, WireError};
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers};
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use super::entry::LogId;
use super::{Consensus, not_leader};

/// Between two attempts at a change while another is under way.
const IN_PROGRESS_LOOK: Duration = Duration::from_millis(20);

/// Held by who changes the members, until the change is over, whoever waits for it: what is changed
/// follows from what there was.
#[derive(Clone)]
pub(crate) struct Changing {
    #[allow(dead_code, reason = "held")]
    held: Arc<OwnedMutexGuard<()>>,
    /// The entry that said who the members are when it began.
    since: Option<LogId>,
}

type Refusal = RaftError<u64, ClientWriteError<u64, BasicNode>>;

impl Consensus {
    /// All members, with how far they are as far as this master knows, and where they are reached as
    /// the configuration says, or else as the log does.
    pub(crate) fn members(&self) -> Vec<MasterView> {
        let leader = super::leader_by(&self.raft.server_metrics().borrow());
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
                // What the log says of a master may be old, or, of one that was restored alone, nothing.
                addr: self.peers.get(id).map_or_else(|| node.addr.clone(), ToString::to_string),
                voter: voters.contains(id),
                leads: leader == Some(*id),
                log_index,
                behind: last.saturating_sub(log_index),
            }
        };
        membership.nodes().map(view).collect()
    }

    /// Whether a member has acknowledged anything to this master since it leads.
    pub(crate) fn has_acknowledged(&self, id: u64) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let told = metrics.replication.as_ref().and_then(|all| all.get(&id).copied().flatten());
        id == self.id || told.is_some()
    }

    /// The member that is reached at this address, by the configuration or by the log. No two may
    /// be: what is said to one would be said to the other.
    pub(crate) fn member_at(&self, addr: SocketAddr) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let mut members = metrics.membership_config.membership().nodes();
        let found = members.find(|(id, node)| {
            self.peers.get(*id) == Some(&addr) || node.addr.parse().ok() == Some(addr)
        });
        found.map(|(id, _)| *id)
    }

    /// The other voters, and whether the configuration names any of them.
    pub(crate) fn other_voters(&self) -> (Vec<u64>, bool) {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow();
        let voters = metrics.membership_config.membership().voter_ids();
        let others: Vec<u64> = voters.filter(|id| *id != self.id).collect();
        let named = others.iter().any(|id| self.peers.contains_key(id));
        (others, named)
    }

    /// Waits until nobody else changes the members, and finishes what was left half done. One change at a
    /// time: two that began with the same members would undo each other.
    pub(crate) async fn begin_change(&self, deadline: Instant) -> WireResult<Changing> {
        let Ok(held) = tokio::time::timeout_at(deadline, self.changing.clone().lock_owned()).await
        else {
            let message = "another change of the masters is under way: try again in a moment";
            return Err(WireError::new(Code::Conflict, message));
        };
        let mut changing = Changing { held: Arc::new(held), since: None };
        self.see_members(deadline).await?;
        self.finish_change(&changing, deadline).await?;
        changing.since = self.see_members(deadline).await?;
        Ok(changing)
    }

    /// The entry that says who the members are.
    async fn members_since(&self) -> WireResult<Option<LogId>> {
        let now = self.raft.with_raft_state(|state| *state.membership_state.effective().log_id());
        now.await.map_err(|error| WireError::unavailable(error.to_string()))
    }

    /// Waits until [`Consensus::members`] says what Raft goes by: it is told a moment later. The entry
    /// that says it.
    pub(crate) async fn see_members(&self, deadline: Instant) -> WireResult<Option<LogId>> {
        let stopped = |_| WireError::unavailable("the master is stopping");
        let now = self.members_since().await?;
        let (mut all, mut some) = (self.raft.metrics(), self.raft.server_metrics());
        let seen = async {
            all.wait_for(|it| *it.membership_config.log_id() >= now).await.map_err(stopped)?;
            some.wait_for(|it| *it.membership_config.log_id() >= now).await.map_err(stopped)?;
            Ok(now)
        };
        let late = |_| WireError::new(Code::Deadline, "the master does not answer in time");
        tokio::time::timeout_at(deadline, seen).await.map_err(late)?
    }

    /// Sends a master the log from now on. Returns when that is decided, not when it has all of it.
    pub(crate) async fn add_learner(
        &self,
        changing: &Changing,
        (id, addr): (u64, SocketAddr),
        deadline: Instant,
    ) -> WireResult<()> {
        let node = BasicNode::new(addr);
        let change = ChangeMembers::AddNodes(BTreeMap::from([(id, node)]));
        self.change(changing, change, deadline).await
    }

    /// From now on these vote; who voted before and does not any more is forgotten, and so is
    /// `leaves`. Refused when the members are others than when the change began: another master may
    /// have led meanwhile, and who voted by then would lose their votes.
    pub(crate) async fn set_voters(
        &self,
        changing: &Changing,
        voters: BTreeSet<u64>,
        leaves: Option<u64>,
        deadline: Instant,
    ) -> WireResult<()> {
        if self.members_since().await? != changing.since {
            let message = "the masters were changed meanwhile by another leader: look at \
                           `atoll node ls`, and try again";
            return Err(WireError::new(Code::Conflict, message));
        }
        self.change(changing, ChangeMembers::ReplaceAllVoters(voters), deadline).await?;
        match leaves.filter(|id| self.members().iter().any(|member| member.id == *id)) {
            // It got the log without voting.
            Some(id) => {
                let change = ChangeMembers::RemoveNodes(BTreeSet::from([id]));
                self.change(changing, change, deadline).await
            }
            None => Ok(()),
        }
    }

    /// Finishes a change of the voters that a leader left half done, so that the old voters and the
    /// new ones need not agree any longer.
    async fn finish_change(&self, changing: &Changing, deadline: Instant) -> WireResult<()> {
        let last = {
            let metrics = self.raft.server_metrics();
            let metrics = metrics.borrow();
            match metrics.membership_config.membership().get_joint_config().as_slice() {
                [_, .., last] => last.clone(),
                _ => return Ok(()),
            }
        };
        tracing::info!(voters = ?last, "finishing a change of the masters");
        // None are added to those that are to vote then, whoever those are by now.
        self.change(changing, ChangeMembers::AddVoterIds(BTreeSet::new()), deadline).await
    }

    /// Carries a change out that may take two entries of the log. It goes on by itself when nobody
    /// waits for it any more. One that is still under way is waited for.
    async fn change(
        &self,
        changing: &Changing,
        change: ChangeMembers<u64, BasicNode>,
        deadline: Instant,
    ) -> WireResult<()> {
        let (raft, changing) = (self.raft.clone(), changing.clone());
        let changed = atoll_net::task::spawn("change-masters", async move {
            let _until_it_is_over = changing;
            loop {
                let changed = Box::pin(raft.change_membership(change.clone(), false)).await;
                match changed {
                    Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(
                        ChangeMembershipError::InProgress(_),
                    ))) if Instant::now() < deadline => {
                        tokio::time::sleep(IN_PROGRESS_LOOK).await;
                    }
                    other => return other.map(drop),
                }
            }
        });
        match tokio::time::timeout_at(deadline, changed).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(error))) => Err(refused(&error)),
            Ok(Err(_)) => Err(WireError::unavailable("the master is stopping")),
            Err(_) => Err(WireError::new(
                Code::Deadline,
                "the change of the masters takes longer; it goes on: look at `atoll node ls`",
            )),
        }
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
