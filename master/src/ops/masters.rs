//! Masters and ChangeMasters: which masters there are, and how one joins, votes and leaves.
//!
//! A new master is started first, with an empty directory. Then it is added: its incarnation goes into
//! the replicated state, and it gets the log without voting. Once it has caught up it is promoted,
//! alone or in the place of another, in one change of membership. An id is retired before its master
//! leaves, and is never used again.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use atoll_net::{CallOptions, Context, Role};
use atoll_proto::error::WireResult;
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::masters::{Greeting, Incarnation, MasterView, MastersOp};
use atoll_proto::{Code, WireError, limits};
use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::change::store_failed;
use crate::operation::{Apply, Now, Operation, Outcome};
use crate::raft::Changing;
use crate::server::Master;
use crate::store::Transaction;
use crate::store::masters::{self, MasterRecord};

/// A master that is so many entries behind, or fewer, may vote: it has them within moments.
const BEHIND_MAX: u64 = 1000;
/// Within which a master must say that it is there.
const GREETING: Duration = Duration::from_secs(2);
/// So long a master that is to vote is given to catch up.
const CATCH_UP: Duration = Duration::from_secs(5);
/// What is left of a request's time for the change itself.
const FOR_THE_CHANGE: Duration = Duration::from_secs(3);
/// Between two looks at how far a master is.
const LOOK: Duration = Duration::from_millis(20);

/// The masters there are.
pub(crate) async fn list(master: &Master) -> WireResult<MasterResponse> {
    master.consensus.read().await?;
    Ok(MasterResponse::Masters(master.consensus.members()))
}

/// One step of a change; one that was made already is made again without harm.
pub(crate) async fn change(
    master: &Master,
    context: &Context,
    op: MastersOp,
) -> WireResult<MasterResponse> {
    master.consensus.read().await?;
    let changing = master.consensus.begin_change(context.deadline).await?;
    let step = Step { master, changing, deadline: context.deadline };
    match op {
        MastersOp::Add { id, addr } => step.add(id, addr).await?,
        MastersOp::Promote { id, instead_of } => step.promote(id, instead_of).await?,
        MastersOp::Remove { id } => step.remove(id).await?,
    }
    master.consensus.see_members(context.deadline).await?;
    Ok(MasterResponse::Masters(master.consensus.members()))
}

/// Asks another master who it is.
pub(crate) async fn ask(master: &Master, addr: SocketAddr) -> Result<Greeting, String> {
    let (id, incarnation) = (master.consensus.id(), master.admission.incarnation());
    let request = MasterRequest::Greet { id, incarnation };
    let options = CallOptions::within(GREETING);
    let answer = master.endpoint.call(addr, Role::Master, &request, Vec::<Bytes>::new(), options);
    match answer.await {
        Ok((MasterResponse::Greeting(greeting), _)) => Ok(greeting),
        Ok(_) => Err(format!("the master at {addr} answered with the wrong kind of message")),
        Err(error) => Err(error.to_string()),
    }
}

/// A step that is being carried out; no other is meanwhile.
struct Step<'a> {
    master: &'a Master,
    changing: Changing,
    deadline: Instant,
}

impl Step<'_> {
    async fn add(&self, id: u64, addr: SocketAddr) -> WireResult<()> {
        let members = self.master.consensus.members();
        if let Some(member) = members.iter().find(|member| member.id == id) {
            let record = masters::get(&*self.master.consensus.state(), id).map_err(store_failed)?;
            check_stays(id, record)?;
            // By the configuration or by the log.
            let here = self.master.consensus.member_at(addr) == Some(id);
            if !here {
                let message = format!("master {id} is a member already, at {}", member.addr);
                return Err(WireError::new(Code::Exists, message));
            }
            return check_formed(self.master, id, addr, record).await;
        }
        if id == 0 {
            return Err(WireError::invalid("masters are numbered from 1"));
        }
        if let Some(other) = self.master.consensus.member_at(addr) {
            let message = format!(
                "master {other} is reached at {addr}: give master {id} another address or port, also \
                 when it is to take that one's place"
            );
            return Err(WireError::new(Code::Exists, message));
        }
        let greeting = ask(self.master, addr).await.map_err(|reason| {
            let message = format!("master {id} cannot be added, as it does not answer: {reason}");
            WireError::new(Code::Conflict, message)
        })?;
        if greeting.id != id {
            let message = format!("the master at {addr} has the id {}, not {id}", greeting.id);
            return Err(WireError::invalid(message));
        }
        let known = masters::get(&*self.master.consensus.state(), id).map_err(store_failed)?;
        if greeting.formed && known.is_none() {
            let message = format!(
                "master {id} at {addr} has a log already: it belongs, or belonged, to another group \
                 of masters. Start it with an empty data directory"
            );
            return Err(WireError::new(Code::Conflict, message));
        }
        let operation = Operation::AdmitMasters { masters: vec![(id, greeting.incarnation)] };
        self.master.consensus.propose(&operation, self.deadline).await?;
        let admitted = masters::get(&*self.master.consensus.state(), id).map_err(store_failed)?;
        check_admitted(id, admitted, greeting.incarnation)?;
        self.master.consensus.add_learner(&self.changing, (id, addr), self.deadline).await
    }

    async fn promote(&self, id: u64, instead_of: Option<u64>) -> WireResult<()> {
        let members = caught_up(self.master, id, self.deadline).await?;
        let member = find(&members, id)?;
        let record = masters::get(&*self.master.consensus.state(), id).map_err(store_failed)?;
        check_stays(id, record)?;
        if !is_there(self.master, member, record).await {
            let message = format!(
                "master {id} cannot be reached, or does not take part: it votes once it does"
            );
            return Err(WireError::new(Code::Conflict, message));
        }
        let mut voters = voters(&members);
        voters.insert(id);
        let leaves = instead_of.filter(|old| members.iter().any(|member| member.id == *old));
        if let Some(old) = instead_of {
            if old == id {
                return Err(WireError::invalid(format!("master {id} cannot take its own place")));
            }
            voters.remove(&old);
            check_known(self.master, &members, old)?;
        }
        check_majority(self.master, &members, &voters).await?;
        if let Some(old) = leaves {
            self.retire(old).await?;
        }
        self.master.consensus.set_voters(&self.changing, voters, leaves, self.deadline).await
    }

    async fn remove(&self, id: u64) -> WireResult<()> {
        let members = self.master.consensus.members();
        check_known(self.master, &members, id)?;
        let mut voters = voters(&members);
        voters.remove(&id);
        if voters.is_empty() {
            let message = format!("master {id} is the last one: add another first");
            return Err(WireError::new(Code::Conflict, message));
        }
        check_majority(self.master, &members, &voters).await?;
        self.retire(id).await?;
        if members.iter().any(|member| member.id == id) {
            self.master
                .consensus
                .set_voters(&self.changing, voters, Some(id), self.deadline)
                .await?;
        }
        Ok(())
    }

    async fn retire(&self, id: u64) -> WireResult<()> {
        let operation = Operation::RetireMaster { id };
        self.master.consensus.propose(&operation, self.deadline).await.map(drop)
    }
}

/// An id that belongs to another incarnation stays its.
fn check_admitted(
    id: u64,
    record: Option<MasterRecord>,
    incarnation: Incarnation,
) -> WireResult<()> {
    let reason = match record {
        Some(MasterRecord { retired_ms: Some(_), .. }) => "was removed from the cluster",
        Some(record) if record.incarnation != incarnation => {
            "belongs to a master with another data directory"
        }
        _ => return Ok(()),
    };
    let message =
        format!("the id {id} {reason}: ids are never used again. Give the new master another one");
    Err(WireError::new(Code::Exists, message))
}

/// One that is retired already, but is still a member because its removal was interrupted, only leaves.
fn check_stays(id: u64, record: Option<MasterRecord>) -> WireResult<()> {
    if record.is_some_and(|record| record.retired_ms.is_some()) {
        let message = format!("master {id} is being removed: finish that with `atoll node rm`");
        return Err(WireError::new(Code::Conflict, message));
    }
    Ok(())
}

/// Whether a member that is asked for again may be said to be there. Of one that is not registered yet
/// nothing says which directory its id belongs to: one that lost its disk would pass for it.
async fn check_formed(
    master: &Master,
    id: u64,
    addr: SocketAddr,
    record: Option<MasterRecord>,
) -> WireResult<()> {
    if record.is_some() || id == master.consensus.id() {
        return Ok(());
    }
    let reason = match ask(master, addr).await {
        Ok(greeting) if greeting.id != id => format!("master {} answers at {addr}", greeting.id),
        Ok(greeting) if greeting.formed => return Ok(()),
        Ok(_) => "it has no log: it was never in use, or lost it".to_owned(),
        Err(reason) => reason,
    };
    let message = format!("master {id} is a member already, but does not take part: {reason}");
    Err(WireError::new(Code::Conflict, message))
}

/// The members, once this one is not far behind and has acknowledged an entry: in a young cluster who
/// has nothing at all is not far behind either, and one that takes part in nothing must not vote.
async fn caught_up(master: &Master, id: u64, deadline: Instant) -> WireResult<Vec<MasterView>> {
    let latest = deadline.checked_sub(FOR_THE_CHANGE).unwrap_or(deadline);
    let until = latest.min(Instant::now() + CATCH_UP);
    loop {
        let members = master.consensus.members();
        let acknowledges = master.consensus.has_acknowledged(id);
        let member = find(&members, id)?;
        if member.voter || (acknowledges && member.behind <= BEHIND_MAX) {
            return Ok(members);
        }
        // One that leads for moments only has not heard yet what others have.
        if Instant::now() >= until {
            let behind = member.behind;
            let message = if acknowledges {
                format!("master {id} is {behind} entries behind: it votes once it has caught up")
            } else {
                format!(
                    "master {id} has acknowledged nothing yet: it votes once it takes part. It must \
                     run and reach the other masters, which its `peers` must name; its log says \
                     what it waits for"
                )
            };
            return Err(WireError::new(Code::Conflict, message));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn find(members: &[MasterView], id: u64) -> WireResult<&MasterView> {
    members.iter().find(|member| member.id == id).ok_or_else(|| {
        let all: Vec<String> = members.iter().map(|member| member.id.to_string()).collect();
        WireError::not_found(format!("there is no master {id}; there are {}", all.join(", ")))
    })
}

/// A member, or one that was removed: removing it again is no mistake.
fn check_known(master: &Master, members: &[MasterView], id: u64) -> WireResult<()> {
    let record = masters::get(&*master.consensus.state(), id).map_err(store_failed)?;
    match record {
        Some(MasterRecord { retired_ms: Some(_), .. }) => Ok(()),
        _ => find(members, id).map(drop),
    }
}

fn voters(members: &[MasterView]) -> BTreeSet<u64> {
    members.iter().filter(|member| member.voter).map(|member| member.id).collect()
}

/// Refuses a set of voters that could not decide anything as things are: the change itself could
/// then not be finished, nor taken back.
async fn check_majority(
    master: &Master,
    members: &[MasterView],
    voters: &BTreeSet<u64>,
) -> WireResult<()> {
    let mut known = Vec::new();
    for member in members.iter().filter(|member| voters.contains(&member.id)) {
        let record = masters::get(&*master.consensus.state(), member.id).map_err(store_failed)?;
        known.push((member, record));
    }
    let asked = known
        .into_iter()
        .map(|(member, record)| async move { (member.id, is_there(master, member, record).await) });
    let answers = join_all(asked).await;
    let there = answers.iter().filter(|(_, there)| *there).count();
    if there * 2 > voters.len() {
        return Ok(());
    }
    let away: Vec<String> =
        answers.iter().filter(|(_, there)| !there).map(|(id, _)| id.to_string()).collect();
    let message = format!(
        "of the {} masters that would vote then, only {there} can be reached: start {} first",
        voters.len(),
        away.join(" and ")
    );
    Err(WireError::new(Code::Conflict, message))
}

/// Whether a member answers and takes part, with the directory that its id belongs to. One that is not
/// registered yet, by a cluster that earlier versions formed, is known by what it acknowledges to this
/// leader: one that lost its disk and formed a cluster anew acknowledges nothing.
async fn is_there(master: &Master, member: &MasterView, record: Option<MasterRecord>) -> bool {
    if member.id == master.consensus.id() {
        return true;
    }
    let Ok(addr) = member.addr.parse() else { return false };
    let Ok(greeting) = ask(master, addr).await else { return false };
    let known = match record {
        Some(record) => record.incarnation == greeting.incarnation,
        None => {
            master.consensus.has_acknowledged(member.id) && !master.consensus.is_silent(member.id)
        }
    };
    // Who has no log yet answers no message of the consensus protocol.
    greeting.id == member.id && greeting.formed && known
}

/// As long as this master leads: finishes what its predecessor began, and makes sure that the state
/// has the incarnation of every member, so that none of their ids can be taken for a new master's.
pub(crate) async fn settle_members(master: &Master) {
    while master.consensus.leads() && !master.shutdown.is_triggered() {
        let deadline = Instant::now() + crate::raft::TASK_DEADLINE;
        let settled = match master.consensus.begin_change(deadline).await {
            Ok(changing) => {
                drop(changing);
                register_now(master).await
            }
            Err(error) => Err(error),
        };
        match settled {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "cannot settle who the masters are yet"),
        }
        tokio::time::sleep(limits::HEARTBEAT_EVERY).await;
    }
}

/// Whether every member is registered.
async fn register_now(master: &Master) -> WireResult<bool> {
    master.consensus.read().await?;
    let mut unknown = Vec::new();
    for member in master.consensus.members() {
        if masters::get(&*master.consensus.state(), member.id).map_err(store_failed)?.is_none() {
            unknown.push(member);
        }
    }
    let mut found = Vec::new();
    for member in &unknown {
        let incarnation = if member.id == master.consensus.id() {
            Some(master.admission.incarnation())
        } else if let Some(founder) = master.admission.founder(member.id) {
            Some(founder)
        } else if let Ok(addr) = member.addr.parse() {
            // One without a log may have lost it.
            let greeting = ask(master, addr).await.ok();
            let greeting = greeting.filter(|it| it.id == member.id && it.formed);
            greeting.map(|greeting| greeting.incarnation)
        } else {
            None
        };
        found.extend(incarnation.map(|incarnation| (member.id, incarnation)));
    }
    // All or none: a master of a version that cannot greet could not read the entry either.
    if found.len() < unknown.len() {
        return Ok(false);
    }
    if !found.is_empty() {
        let operation = Operation::AdmitMasters { masters: found };
        let deadline = Instant::now() + crate::raft::TASK_DEADLINE;
        master.consensus.propose(&operation, deadline).await?;
    }
    Ok(true)
}

/// Takes masters in. An id that belongs to somebody stays theirs.
pub(crate) fn admit(tx: &mut Transaction<'_>, admitted: &[(u64, Incarnation)]) -> Apply<Outcome> {
    for (id, incarnation) in admitted {
        if masters::get(tx, *id)?.is_none() {
            let record = MasterRecord { incarnation: *incarnation, retired_ms: None };
            masters::put(tx, *id, &record);
        }
    }
    Ok(Outcome::Done)
}

/// Retires an id, known or not.
pub(crate) fn retire_now(tx: &mut Transaction<'_>, now: Now, id: u64) -> Apply<Outcome> {
    let known = masters::get(tx, id)?;
    let known =
        known.unwrap_or(MasterRecord { incarnation: Incarnation([0; 16]), retired_ms: None });
    if known.retired_ms.is_none() {
        masters::put(tx, id, &MasterRecord { retired_ms: Some(now.at_ms()), ..known });
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::store::testing::TestStore;

    const NOW: Now = Now { index: 9, at_ns: 5_000_000 };

    #[test]
    fn an_id_is_given_once_and_never_again() {
        let store = TestStore::new();
        let (first, second) = (Incarnation([1; 16]), Incarnation([2; 16]));
        let mut tx = Transaction::new(&store.rocks);
        admit(&mut tx, &[(4, first)]).unwrap();
        admit(&mut tx, &[(4, second)]).unwrap();
        let record = masters::get(&tx, 4).unwrap();
        assert!(check_admitted(4, record, first).is_ok());
        let text = check_admitted(4, record, second).unwrap_err().message;
        assert!(text.contains("never used again"), "{text}");
        retire_now(&mut tx, NOW, 4).unwrap();
        retire_now(&mut tx, Now { index: 10, at_ns: 9_000_000 }, 4).unwrap();
        admit(&mut tx, &[(4, first)]).unwrap();
        let record = masters::get(&tx, 4).unwrap();
        assert_eq!(record.unwrap().retired_ms, Some(5));
        assert!(check_admitted(4, record, first).is_err());
        assert!(check_stays(4, record).is_err() && check_stays(4, None).is_ok());
        // One that was never registered is retired as well.
        retire_now(&mut tx, NOW, 5).unwrap();
        assert!(check_admitted(5, masters::get(&tx, 5).unwrap(), first).is_err());
    }
}
