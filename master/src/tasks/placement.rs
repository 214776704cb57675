//! Keeps every group where it belongs: deals groups out when a cluster begins, moves them when
//! servers join, drain or are gone, and finishes moves once the new members have everything.
//!
//! What should happen is worked out by plain functions ([`crate::placement`]); what keeps data
//! safe is checked where it is applied ([`crate::ops::move_groups`]). Every table has a new epoch,
//! for which clients and servers fetch it, so there is at most one per [`STEP_EVERY`], for many
//! groups at once. When a cluster starts its chunkservers register one after the other, so a
//! change of the set of servers is followed once it was quiet for the settling time.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use atoll_proto::cluster::{Duty, NodeInfo, NodeKind, NodeState, PgTable};
use atoll_proto::error::WireResult;
use atoll_proto::ids::PG_COUNT;
use atoll_proto::{Epoch, NodeId, PgId, limits};
use tokio::time::Instant;

use super::moves;
use crate::operation::Operation;
use crate::ops::change::store_failed;
use crate::ops::set_table::may_deal_anew;
use crate::placement::plan::{Ideals, Plan, Server, plan};
use crate::placement::silence::{Standing, judge};
use crate::placement::{Candidate, deal};
use crate::raft::TASK_DEADLINE;
use crate::server::Master;
use crate::store::duties::DutyRecord;
use crate::store::{duties, nodes};

/// There is at most one new table per this long.
const STEP_EVERY: Duration = Duration::from_millis(500);
/// How often the leader looks even when nothing seems to have changed.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A move that takes longer may wait for a chunk that nobody has: others need not wait for it.
const SLOW_MOVE: Duration = Duration::from_secs(30 * 60);
/// A disk with less than this share free, in percent, gets no more groups.
const FREE_PERCENT_MIN: u64 = 5;

pub(crate) async fn run(master: Arc<Master>) {
    let mut applied = master.consensus.applied();
    let mut memory = Memory::default();
    loop {
        let view_changed = applied.borrow_and_update().view_changed;
        let pause = if master.consensus.leads() {
            look(&master, &mut memory).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot place groups yet");
                STEP_EVERY
            })
        } else {
            memory = Memory::default();
            master.finishing.begin(&[]);
            LOOK_EVERY
        };
        let until = Instant::now() + pause;
        tokio::select! {
            changed = applied.wait_for(|applied| applied.view_changed != view_changed) => {
                if changed.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep_until(until) => {}
            () = master.shutdown.wait() => return,
        }
        // A change is looked at before the pause is over, but not before its turn.
        let turn = memory.next_step.min(until);
        tokio::select! {
            () = tokio::time::sleep_until(turn) => {}
            () = master.shutdown.wait() => return,
        }
    }
}

/// What the task remembers while its master leads.
struct Memory {
    /// The servers as they were last seen, and since when they are so.
    seen: Option<(Vec<(Candidate, Duty)>, Instant)>,
    ideals: Ideals,
    /// A new table is not proposed before this.
    next_step: Instant,
    /// What was last logged.
    told: Vec<String>,
    /// The table and servers of which it is known that nothing needs to be dealt out.
    dealt: Option<(Epoch, Vec<Candidate>)>,
    /// Groups on the move, with their old members, and since when that is so.
    moving: HashMap<PgId, (Vec<NodeId>, Instant)>,
    /// The last table that was read.
    table: Option<Arc<PgTable>>,
}

impl Memory {
    /// Groups whose move has gone on for so long that it does not keep others from moving.
    fn slow(&mut self, table: &PgTable, now: Instant) -> HashSet<PgId> {
        let before = std::mem::take(&mut self.moving);
        for (pg, old) in &table.leaving {
            let since = match before.get(pg) {
                Some((same, since)) if same == old => *since,
                _ => now,
            };
            self.moving.insert(*pg, (old.clone(), since));
        }
        let slow = self.moving.iter().filter(|(_, (_, since))| now - *since >= SLOW_MOVE);
        slow.map(|(pg, _)| *pg).collect()
    }
}

impl Default for Memory {
    fn default() -> Self {
        let ideals = Ideals::default();
        let (told, moving) = (Vec::new(), HashMap::new());
        let next_step = Instant::now();
        Memory { seen: None, ideals, next_step, told, dealt: None, moving, table: None }
    }
}

/// Looks once, and says how long to wait for the next look.
async fn look(master: &Master, memory: &mut Memory) -> WireResult<Duration> {
    let Some(servers) = servers(master)? else { return Ok(STEP_EVERY) };
    let mut notes = Vec::new();
    notes.extend(follow_silence(master, &servers).await?);
    let known: Vec<(Candidate, Duty)> =
        servers.iter().map(|(server, _)| (server.candidate.clone(), server.duty)).collect();
    let now = Instant::now();
    let since = match &memory.seen {
        Some((seen, since)) if *seen == known => *since,
        _ => now,
    };
    memory.seen = Some((known, since));
    let settled = since + Duration::from_millis(master.settings.placement_settle_ms);
    let due = settled.max(memory.next_step);
    if servers.is_empty() || now < due {
        say(master, memory, notes);
        return Ok(if servers.is_empty() { LOOK_EVERY } else { due - now });
    }
    let servers: Vec<Server> = servers.into_iter().map(|(server, _)| server).collect();
    let pause = step(master, memory, &servers, &mut notes).await?;
    say(master, memory, notes);
    Ok(pause)
}

/// Chunkservers as planning and as judging sees them, by id. `None` while a new leader cannot
/// know yet which are up: one that is dead would be taken for one that is back, and given groups.
fn servers(master: &Master) -> WireResult<Option<Vec<(Server, Standing)>>> {
    let state = master.consensus.state();
    let nodes = nodes::all(&*state).map_err(store_failed)?;
    let duties: HashMap<NodeId, DutyRecord> =
        duties::all(&*state).map_err(store_failed)?.into_iter().collect();
    let liveness = master.liveness();
    let now = Instant::now();
    let chunkservers: Vec<NodeInfo> =
        nodes.into_iter().filter(|node| node.kind == NodeKind::Chunkserver).collect();
    if chunkservers.iter().any(|node| liveness.in_grace(node.id, now)) {
        return Ok(None);
    }
    let server = |info: NodeInfo| {
        let record = duties.get(&info.id);
        let duty = record.map_or(Duty::Active, DutyRecord::duty);
        let up = liveness.state(info.id, now).0 == NodeState::Up;
        let stat = liveness.stat(info.id);
        // Nothing is known of a disk before the first heartbeat.
        let full =
            stat.total_bytes > 0 && stat.free_bytes < stat.total_bytes / 100 * FREE_PERCENT_MIN;
        let standing = Standing {
            id: info.id,
            name: info.name,
            zone: info.zone.clone(),
            duty,
            returns_to: record.and_then(DutyRecord::returns_to),
            up,
            silent: liveness.silent_for(info.id, now),
        };
        let candidate = Candidate { id: info.id, zone: info.zone, weight: info.weight };
        let given_up = duty == Duty::Gone && standing.returns_to.is_none();
        (Server { candidate, duty, up, full, given_up }, standing)
    };
    Ok(Some(chunkservers.into_iter().map(server).collect()))
}

/// Takes servers that are silent for long for gone, and those that are back for back. Returns why
/// some are not, when that is so.
async fn follow_silence(
    master: &Master,
    servers: &[(Server, Standing)],
) -> WireResult<Option<String>> {
    let standings: Vec<Standing> = servers.iter().map(|(_, standing)| standing.clone()).collect();
    let patience = Duration::from_millis(master.settings.replace_after_ms);
    let verdict = judge(&standings, patience, limits::REPLICAS);
    for (node, from, to) in verdict.changes {
        let operation = Operation::SetDuty { node, from, to };
        master.consensus.propose(&operation, Instant::now() + TASK_DEADLINE).await?;
        tracing::warn!(%node, ?from, ?to, "a chunkserver is silent for long, or is back");
    }
    Ok(verdict.kept)
}

/// Finishes and begins moves. Returns how long to wait for the next look.
async fn step(
    master: &Master,
    memory: &mut Memory,
    servers: &[Server],
    notes: &mut Vec<String>,
) -> WireResult<Duration> {
    master.consensus.read().await?;
    let table = master.table()?;
    forget_who_left(master, memory, &table);
    metrics::gauge!("atoll_master_groups_moving").set(table.leaving.len() as f64);
    if may_deal_anew(&*master.consensus.state()).map_err(store_failed)? {
        let active = servers.iter().filter(|server| server.duty == Duty::Active);
        let candidates: Vec<Candidate> = active.map(|server| server.candidate.clone()).collect();
        let known = Some((table.epoch, candidates.clone()));
        if memory.dealt == known {
            return Ok(LOOK_EVERY);
        }
        let changes = deal(&table, &candidates, limits::REPLICAS);
        memory.dealt = known.filter(|_| changes.is_empty());
        if !changes.is_empty() && !candidates.is_empty() {
            let groups = changes.len();
            let operation = Operation::SetTable { base: table.epoch, changes };
            propose(master, memory, &operation).await?;
            tracing::info!(groups, servers = candidates.len(), "placed groups");
        }
        return Ok(LOOK_EVERY);
    }
    memory.ideals.refresh(servers, PG_COUNT, limits::REPLICAS);
    let slow = memory.slow(&table, Instant::now());
    let plan = plan(&table, servers, &memory.ideals, limits::REPLICAS, &slow);
    notes.extend(complaints(&plan, servers));
    let candidates: Vec<Candidate> =
        servers.iter().map(|server| server.candidate.clone()).collect();
    let mut finished = moves::finished(master, &table, &candidates).await?;
    let Plan { moved, .. } = plan;
    // What moves on is not finished.
    finished.retain(|(pg, _)| !moved.iter().any(|(other, _)| other == pg));
    if finished.is_empty() && moved.is_empty() {
        return Ok(if table.leaving.is_empty() { LOOK_EVERY } else { STEP_EVERY });
    }
    tracing::info!(
        moved = moved.len(),
        finished = finished.len(),
        under_way = table.leaving.len(),
        epoch = table.epoch.0 + 1,
        "moving groups"
    );
    let operation = Operation::MoveGroups { base: table.epoch, finished, moved };
    propose(master, memory, &operation).await?;
    Ok(STEP_EVERY)
}

/// What was found of servers that are no members of a group any more does not count when they come
/// back to it. Tables are proposed by this task only, each on top of the one that was read last, so
/// none is passed over, even when the outcome of a proposal stayed unknown.
fn forget_who_left(master: &Master, memory: &mut Memory, table: &Arc<PgTable>) {
    let Some(before) = memory.table.replace(Arc::clone(table)) else { return };
    if before.epoch == table.epoch {
        return;
    }
    let mut liveness = master.liveness();
    for (pg, nodes) in moves::left(&before, table) {
        liveness.forget_synced(pg, &nodes);
    }
}

async fn propose(master: &Master, memory: &mut Memory, operation: &Operation) -> WireResult<()> {
    memory.next_step = Instant::now() + STEP_EVERY;
    master.consensus.propose(operation, Instant::now() + TASK_DEADLINE).await?;
    Ok(())
}

/// What the plan could not do, for people.
fn complaints(plan: &Plan, servers: &[Server]) -> Vec<String> {
    let mut notes = Vec::new();
    if plan.stuck > 0 {
        let takers = servers
            .iter()
            .filter(|server| server.duty == Duty::Active && server.up && !server.full)
            .count();
        notes.push(format!(
            "{} placement groups stay on servers that are to leave, because no other can take \
             them: {takers} of the active chunkservers are up and have room; add one",
            plan.stuck
        ));
    }
    if plan.lost > 0 {
        notes.push(format!(
            "{} placement groups have only members that are gone: start one of those again, or \
             upload again what they had (`atoll fsck` names it)",
            plan.lost
        ));
    }
    notes
}

/// Says what changed, and keeps what holds for `status`.
fn say(master: &Master, memory: &mut Memory, notes: Vec<String>) {
    if memory.told != notes {
        for note in notes.iter().filter(|note| !memory.told.contains(note)) {
            tracing::warn!("placement: {note}");
        }
        memory.told.clone_from(&notes);
    }
    *master.placement.lock().unwrap_or_else(PoisonError::into_inner) = notes;
}
