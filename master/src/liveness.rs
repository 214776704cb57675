//! Which nodes are heard of: the leader's memory, lost with the leadership.
//!
//! Plain state with the time as an argument. A new leader has heard of nobody yet, so every node
//! has a full period of grace before it counts as down.

mod relayed;

use std::collections::HashMap;
use std::time::Duration;

use atoll_proto::chunk::ChunkStat;
use atoll_proto::cluster::{Duty, NodeInfo, NodeKind, NodeState, NodeView, PgTable};
use atoll_proto::ids::PG_COUNT;
use atoll_proto::lease::{Grants, Terms};
use atoll_proto::relay::RelayKey;
use atoll_proto::site::Policy;
use atoll_proto::{Epoch, NodeId, PgId, Seq, limits};
use tokio::time::Instant;

/// Number of placement groups.
const GROUPS: usize = PG_COUNT as usize;

/// An edge that may speak through shields.
#[derive(Debug)]
struct Enrolled {
    key: RelayKey,
    /// The number of its last renewal that came through one. Each counts once: who repeats an old
    /// one cannot make an edge seem alive that is not.
    renewal: u64,
}

/// What the leader heard of the nodes.
#[derive(Debug)]
pub(crate) struct Liveness {
    /// The term in which this master leads; `None` while it does not.
    leadership: Option<u64>,
    /// Since when this master leads.
    since: Instant,
    /// The leases it granted.
    grants: Grants,
    nodes: HashMap<NodeId, Heard>,
    /// What edges that speak through shields seal with.
    keys: HashMap<NodeId, Enrolled>,
    /// The last view of nodes that was handed out, and the log index when it was new.
    noticed: (Vec<(NodeId, NodeState, bool)>, u64),
}

#[derive(Debug, Clone)]
struct Heard {
    at: Instant,
    ready: bool,
    stat: ChunkStat,
    acked: Seq,
    /// The log index up to which it has carried out the list of erased chunks.
    erased: Option<u64>,
    sync: Sync,
    presence: Presence,
}

impl Heard {
    fn fresh(at: Instant, ready: bool) -> Heard {
        let (stat, sync) = (ChunkStat::default(), Sync::default());
        Heard { at, ready, stat, acked: Seq(0), erased: None, sync, presence: Presence::Here }
    }
}

/// What comparing a chunkserver with the object table has shown.
#[derive(Debug, Clone, Default)]
struct Sync {
    /// Epoch of the table that said which groups it keeps.
    epoch: Epoch,
    /// Whether everything was equal when that was last compared.
    whole: Option<bool>,
    /// For each group: one more than the log index at which it was last found equal; 0 when it was
    /// not, or was found to differ since. Empty before the first comparison.
    equal: Vec<u64>,
}

/// A comparison of what a chunkserver has with what it should have.
#[derive(Debug)]
pub(crate) struct Comparison<'a> {
    /// The table that says which groups it keeps.
    pub(crate) table: &'a PgTable,
    /// The log index at which both sides were looked at.
    pub(crate) index: u64,
    /// Whether everything is equal; `None` when that could not be compared.
    pub(crate) whole: Option<bool>,
    /// Single groups that could be compared, and whether they are equal.
    pub(crate) groups: &'a [(PgId, bool)],
}

/// Whether a node is there, by its own word. Any sign of life makes it `Here` again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    /// It said nothing else.
    Here,
    /// It wants to leave, and was given this number to say farewell with.
    Leaving(u64),
    /// It said that it answers nothing any more.
    Gone,
}

/// Who has applied an entry of the publish log.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Live edges that have.
    pub(crate) acked: Vec<String>,
    /// Edges that have not, and may still answer with what was before.
    pub(crate) waiting: Vec<String>,
    /// The same by id.
    pub(crate) lacking: Vec<NodeId>,
    /// Edges that have not, and cannot.
    pub(crate) down: Vec<String>,
    /// How long until those waited for surely cannot either; `None`: never.
    pub(crate) left: Option<Duration>,
}

impl Liveness {
    /// Nothing heard yet. `now_ns` is the time that leases are counted by.
    pub(crate) fn new(leadership: Option<u64>, now: Instant, now_ns: u64) -> Liveness {
        Liveness {
            leadership,
            since: now,
            grants: Grants::new(Terms::DEFAULT, now_ns),
            nodes: HashMap::new(),
            keys: HashMap::new(),
            noticed: (Vec::new(), 0),
        }
    }

    /// The term in which all of this was heard.
    pub(crate) fn leadership(&self) -> Option<u64> {
        self.leadership
    }

    /// A node has registered; it says by heartbeat when it is ready. `last`: the last entry of the
    /// publish log, read since the request arrived (see [`Grants::began`]).
    pub(crate) fn registered(&mut self, node: NodeId, last: Seq, now: Instant) {
        self.keys.remove(&node);
        self.grants.began(node, last);
        let heard = self.nodes.entry(node).or_insert_with(|| Heard::fresh(now, false));
        heard.sign_of_life(now);
        heard.ready = false;
        heard.erased = None;
        // It may have started with another disk.
        heard.sync = Sync::default();
    }

    /// A heartbeat.
    pub(crate) fn heard(
        &mut self,
        node: NodeId,
        ready: bool,
        stat: Option<ChunkStat>,
        now: Instant,
    ) {
        let heard = self.entry(node, now);
        heard.sign_of_life(now);
        heard.ready = ready;
        if let Some(stat) = stat {
            if stat.refilling && !heard.stat.refilling {
                // What it had before it began anew does not count.
                heard.sync = Sync::default();
                heard.erased = None;
            }
            heard.stat = stat;
        }
    }

    /// An edge has applied the publish log up to an entry. Tells whether that is news.
    ///
    /// Its renewals and its questions for the log are requests of their own, which may overtake
    /// each other, so nothing is taken back: also not when it starts anew, because then it gets no
    /// lease before it has more than it can have acknowledged (see [`Grants::began`]).
    pub(crate) fn acknowledged(&mut self, edge: NodeId, upto: Seq, now: Instant) -> bool {
        self.entry(edge, now).sign_of_life(now);
        self.confirmed(edge, upto, now)
    }

    /// Grants an edge no lease any more (see [`Grants::retire`]).
    ///
    /// # Errors
    /// With the time until it surely serves nothing; `None`: it may for ever.
    pub(crate) fn retire(
        &mut self,
        edge: NodeId,
        policy: Policy,
        now_ns: u64,
    ) -> Result<(), Option<Duration>> {
        self.grants.retire(edge, policy, now_ns)
    }

    /// Grants an edge a lease if it has applied everything up to `last` (see [`Grants::grant`]).
    pub(crate) fn grant(&mut self, edge: NodeId, applied: Seq, last: Seq, now_ns: u64) -> bool {
        self.grants.grant(edge, applied, last, now_ns)
    }

    /// A node has carried out the list of erased chunks up to a log index. No sign of life: an edge
    /// that leaves may still say it.
    pub(crate) fn erased(&mut self, node: NodeId, upto: u64, now: Instant) {
        // One that has begun anew starts again: what it says last holds.
        self.entry(node, now).erased = Some(upto);
    }

    /// How far a node said that it has carried out that list.
    pub(crate) fn erased_upto(&self, node: NodeId) -> Option<u64> {
        self.nodes.get(&node).and_then(|heard| heard.erased)
    }

    /// A chunkserver was compared with the object table.
    pub(crate) fn compared(&mut self, node: NodeId, comparison: &Comparison<'_>) {
        let Some(Heard { sync, .. }) = self.nodes.get_mut(&node) else { return };
        let Comparison { table, index, whole, groups } = comparison;
        if sync.epoch != table.epoch || sync.equal.is_empty() {
            sync.epoch = table.epoch;
            sync.equal.resize(GROUPS, 0);
            // What was found of groups it stays a member of holds on; for those it left in a table
            // between, see `forget_synced`.
            for (pg, equal) in (0u16..).zip(&mut sync.equal) {
                if !table.readers(PgId(pg)).any(|reader| reader == node) {
                    *equal = 0;
                }
            }
        }
        match whole {
            Some(true) => {
                for (pg, equal) in (0u16..).zip(&mut sync.equal) {
                    let keeps = table.of(PgId(pg)).contains(&node);
                    *equal = if keeps { index.saturating_add(1) } else { 0 };
                }
            }
            // Nobody knows yet which group it is: the server tells them one after the other.
            Some(false) if sync.whole != Some(false) => sync.equal.fill(0),
            Some(false) | None => {}
        }
        sync.whole = whole.or(sync.whole);
        for (pg, same) in *groups {
            if let Some(equal) = sync.equal.get_mut(usize::from(pg.0)) {
                *equal = if *same { index.saturating_add(1) } else { 0 };
            }
        }
    }

    /// A node wants to leave. Returns the number that its farewell must name: `number`, unless
    /// it was given one before.
    pub(crate) fn leaving(&mut self, node: NodeId, number: u64, now: Instant) -> u64 {
        // What is still on its way through a shield is no sign of life.
        self.keys.remove(&node);
        let heard = self.entry(node, now);
        match heard.presence {
            Presence::Leaving(before) => before,
            Presence::Here | Presence::Gone => {
                heard.presence = Presence::Leaving(number);
                number
            }
        }
    }

    /// Whether a chunkserver was last found to have exactly what it should have; `None` when that
    /// was never compared.
    pub(crate) fn in_sync(&self, node: NodeId) -> Option<bool> {
        self.nodes.get(&node).and_then(|heard| heard.sync.whole)
    }

    /// Whether a node has exactly what a group should have, which last changed at `since_index`.
    pub(crate) fn synced(&self, node: NodeId, pg: PgId, since_index: u64) -> bool {
        let equal = self.nodes.get(&node).and_then(|it| it.sync.equal.get(usize::from(pg.0)));
        equal.is_some_and(|equal| *equal > since_index)
    }

    /// A node says farewell. False: something was heard of it since it was given this number, so
    /// that it may be another run of it that is there now.
    pub(crate) fn farewell(&mut self, node: NodeId, number: u64) -> bool {
        let Some(heard) = self.nodes.get_mut(&node) else { return false };
        if heard.presence != Presence::Leaving(number) {
            return false;
        }
        heard.presence = Presence::Gone;
        self.grants.end(node);
        true
    }

    /// Whether a node is heard of, and ready.
    pub(crate) fn state(&self, node: NodeId, now: Instant) -> (NodeState, bool) {
        match self.nodes.get(&node) {
            Some(heard) if heard.presence == Presence::Gone => (NodeState::Down, false),
            Some(heard) if now.duration_since(heard.at) < limits::HEARTBEAT_LOST => {
                (NodeState::Up, heard.ready)
            }
            // Not heard of under this leadership: it had no reason to be down before.
            None if now.duration_since(self.since) < limits::HEARTBEAT_LOST => {
                (NodeState::Up, true)
            }
            _ => (NodeState::Down, false),
        }
    }

    /// Whether a node counts as up only because this master has not led for long enough to know.
    pub(crate) fn in_grace(&self, node: NodeId, now: Instant) -> bool {
        !self.nodes.contains_key(&node) && self.state(node, now).0 == NodeState::Up
    }

    /// Whether a node that is up may lack what a group should have: it has begun anew, was not
    /// compared yet or was found to differ, and this group was not found equal since. While
    /// collection is `frozen`, a node that differs most likely keeps more than it should.
    pub(crate) fn may_lack(&self, node: NodeId, pg: PgId, frozen: bool) -> bool {
        let Some(heard) = self.nodes.get(&node) else { return false };
        let doubtful = match heard.sync.whole {
            _ if heard.stat.refilling => true,
            None => true,
            Some(false) => !frozen,
            Some(true) => false,
        };
        doubtful && !self.synced(node, pg, 0)
    }

    /// What a chunkserver last told of itself.
    pub(crate) fn stat(&self, node: NodeId) -> ChunkStat {
        self.nodes.get(&node).map(|heard| heard.stat.clone()).unwrap_or_default()
    }

    /// How long a node has been silent; since this master leads, when nothing was heard of it.
    pub(crate) fn silent_for(&self, node: NodeId, now: Instant) -> Duration {
        let at = self.nodes.get(&node).map_or(self.since, |heard| heard.at);
        now.duration_since(at)
    }

    /// Nodes are no members of a group any more: what was found of them does not count when they
    /// come back to it. Called for every table there was, before the next one is proposed.
    pub(crate) fn forget_synced(&mut self, pg: PgId, nodes: &[NodeId]) {
        for node in nodes {
            let sync = self.nodes.get_mut(node).map(|heard| &mut heard.sync);
            if let Some(equal) = sync.and_then(|sync| sync.equal.get_mut(usize::from(pg.0))) {
                *equal = 0;
            }
        }
    }

    /// A node has exactly what a group should have as of a log index.
    #[cfg(test)]
    pub(crate) fn note_synced(&mut self, node: NodeId, pg: PgId, index: u64, now: Instant) {
        let sync = &mut self.entry(node, now).sync;
        sync.equal.resize(GROUPS, 0);
        sync.equal[usize::from(pg.0)] = index.saturating_add(1);
    }

    /// The last entry of the publish log an edge has applied.
    pub(crate) fn acked(&self, edge: NodeId) -> Seq {
        self.nodes.get(&edge).map_or(Seq(0), |heard| heard.acked)
    }

    /// Milliseconds until an edge's lease has surely ended; 0 for one that said farewell.
    pub(crate) fn edge_left_ms(&self, edge: NodeId, now_ns: u64) -> u64 {
        let left = self.grants.left(edge, Policy::Strict, now_ns).unwrap_or_default();
        u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
    }

    /// Which edges and shields have applied an entry; those that have not, and are not waited for,
    /// get no lease before they have. `policy` tells of an edge that has applied
    /// the log up to some entry by which policy it may go.
    pub(crate) fn progress(
        &mut self,
        nodes: &[NodeInfo],
        seq: Seq,
        policy: impl Fn(Seq) -> Policy,
        now_ns: u64,
    ) -> Progress {
        let mut progress = Progress { left: Some(Duration::ZERO), ..Progress::default() };
        for info in nodes {
            let serves = info.edge.as_ref().is_some_and(|edge| edge.serves || edge.shield);
            if info.kind != NodeKind::Edge || !serves {
                continue;
            }
            let acked = self.acked(info.id);
            let policy = policy(acked);
            let settled = self.grants.settled(info.id, seq, acked >= seq, policy, now_ns);
            let list = if acked >= seq {
                &mut progress.acked
            } else if settled {
                &mut progress.down
            } else {
                let left = self.grants.left(info.id, policy, now_ns);
                progress.left = progress.left.zip(left).map(|(one, other)| one.max(other));
                progress.lacking.push(info.id);
                &mut progress.waiting
            };
            list.push(info.name.clone());
        }
        progress
    }

    /// Whether any of these has neither applied an entry nor gone. Those that are found to have are
    /// taken out, so that each is looked at once however often this is asked.
    pub(crate) fn any_lacks(&self, edges: &mut Vec<NodeId>, seq: Seq) -> bool {
        let lacks = |heard: &Heard| heard.acked < seq && heard.presence != Presence::Gone;
        while let Some(edge) = edges.last() {
            if self.nodes.get(edge).is_none_or(lacks) {
                return true;
            }
            edges.pop();
        }
        false
    }

    /// Nodes with how they do.
    pub(crate) fn views(&self, nodes: &[NodeInfo], now: Instant) -> Vec<NodeView> {
        let view = |info: &NodeInfo| {
            let (state, ready) = self.state(info.id, now);
            NodeView { info: info.clone(), state, ready, duty: Duty::Active }
        };
        nodes.iter().map(view).collect()
    }

    /// The log index at which the nodes' states were first seen to be as they are now.
    pub(crate) fn notice(&mut self, nodes: &[NodeInfo], now: Instant, index: u64) -> u64 {
        let states = nodes.iter().map(|info| {
            let (state, ready) = self.state(info.id, now);
            (info.id, state, ready)
        });
        let states: Vec<_> = states.collect();
        if self.noticed.0 != states {
            self.noticed = (states, index);
        }
        self.noticed.1
    }

    fn entry(&mut self, node: NodeId, now: Instant) -> &mut Heard {
        self.nodes.entry(node).or_insert_with(|| Heard::fresh(now, true))
    }
}

impl Heard {
    fn sign_of_life(&mut self, now: Instant) {
        self.at = now;
        self.presence = Presence::Here;
    }
}

#[cfg(test)]
mod tests;
