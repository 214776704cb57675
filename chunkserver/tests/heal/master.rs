//! A master that only these tests know: an object table, its feed and its trees, and orders. It
//! can be made to lie.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use atoll_net::{Answer, Context, Service};
use atoll_proto::chunk::ChunkStat;
use atoll_proto::cluster::{ClusterView, Duty, NodeInfo, NodeState, NodeView, PgTable};
use atoll_proto::ids::PG_COUNT;
use atoll_proto::master::{
    Delta, MasterRequest, MasterResponse, ObjectKind, ObjectView, Orders, TreeReport,
};
use atoll_proto::receipt::ReceiptKey;
use atoll_proto::tree::{Ask, BUCKETS, Digest, Found, GroupTree, NodeTree, SetHash, bucket_of};
use atoll_proto::{ChunkId, Epoch, NodeId, PgId, WireError, WireResult, limits};
use bytes::Bytes;
use tokio::sync::watch;

use super::cluster::CLUSTER;

/// In which way walks are answered wrongly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    /// They are not.
    None,
    /// The last id of each bucket is left out.
    ShortIds,
    /// Half of the answers are left out.
    FewAnswers,
    /// Digests where ids should be, and the reverse.
    WrongKind,
    /// Everything is unavailable.
    Unavailable,
}

/// What the master knows and says.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) epoch: u64,
    pub(crate) term: u64,
    pub(crate) index: u64,
    pub(crate) orders: Orders,
    pub(crate) lie: Lie,
    pub(crate) nodes: BTreeMap<NodeId, NodeInfo>,
    pub(crate) down: BTreeSet<NodeId>,
    /// Nodes that are no members.
    pub(crate) left: BTreeSet<NodeId>,
    /// The object table.
    pub(crate) objects: BTreeSet<ChunkId>,
    /// Said to be in the object table when asked for, without being there otherwise.
    pub(crate) claimed: BTreeSet<ChunkId>,
    deltas: Vec<Delta>,
    floor: u64,
    changes: BTreeMap<PgId, u64>,
    trees: BTreeMap<PgId, GroupTree>,
    pub(crate) stats: BTreeMap<NodeId, ChunkStat>,
    pub(crate) reports: BTreeMap<NodeId, TreeReport>,
    pub(crate) in_sync: BTreeMap<NodeId, Option<bool>>,
    /// Steps of walks of each node, and among their questions those for ids.
    pub(crate) walks: BTreeMap<NodeId, (u64, u64)>,
    /// How often somebody looked at the cluster.
    pub(crate) looks: u64,
}

impl State {
    pub(crate) fn new() -> Self {
        Self {
            epoch: 100,
            term: 1,
            index: 10,
            orders: Orders::default(),
            lie: Lie::None,
            nodes: BTreeMap::new(),
            down: BTreeSet::new(),
            left: BTreeSet::new(),
            objects: BTreeSet::new(),
            claimed: BTreeSet::new(),
            deltas: Vec::new(),
            floor: 0,
            changes: BTreeMap::new(),
            trees: BTreeMap::new(),
            stats: BTreeMap::new(),
            reports: BTreeMap::new(),
            in_sync: BTreeMap::new(),
            walks: BTreeMap::new(),
            looks: 0,
        }
    }

    /// Chunks become live, or are collected, in one log entry.
    pub(crate) fn set(&mut self, ids: &[ChunkId], live: bool) {
        self.index += 1;
        for id in ids {
            if live {
                self.objects.insert(*id)
            } else {
                self.objects.remove(id)
            };
            self.deltas.push(Delta { index: self.index, id: *id, live });
            self.changes.insert(id.pg(), self.index);
            self.trees.remove(&id.pg());
        }
    }

    /// The feed begins here.
    pub(crate) fn forget_deltas(&mut self) {
        self.floor = self.index;
        self.deltas.clear();
    }

    /// Another state of an earlier time takes the place of this one.
    pub(crate) fn restore(&mut self, objects: BTreeSet<ChunkId>, index: u64) {
        self.objects = objects;
        self.index = index;
        self.forget_deltas();
        self.changes.clear();
        self.trees.clear();
        self.term += 1 << 32;
        self.epoch += 1 << 32;
    }

    /// A change of the nodes or the table.
    pub(crate) fn change_view(&mut self, new_table: bool) {
        self.index += 1;
        self.epoch += u64::from(new_table);
    }

    fn table(&self) -> PgTable {
        let mut table = PgTable::empty();
        table.epoch = Epoch(self.epoch);
        let members: Vec<NodeId> =
            self.nodes.keys().copied().filter(|node| !self.left.contains(node)).collect();
        table.members.iter_mut().for_each(|group| group.clone_from(&members));
        table
    }

    fn view(&self) -> ClusterView {
        let node = |info: &NodeInfo| NodeView {
            info: info.clone(),
            state: if self.down.contains(&info.id) { NodeState::Down } else { NodeState::Up },
            ready: true,
            duty: Duty::Active,
        };
        ClusterView {
            cluster: CLUSTER,
            index: self.index,
            chunk_bytes: limits::CHUNK_BYTES,
            nodes: self.nodes.values().map(node).collect(),
            table: self.table(),
            zone: None,
            url_template: None,
        }
    }

    fn tree(&mut self, pg: PgId) -> &GroupTree {
        let objects = &self.objects;
        self.trees.entry(pg).or_insert_with(|| {
            let mut leaves = Box::new([[0; 32]; BUCKETS]);
            for id in objects.iter().filter(|id| id.pg() == pg) {
                let leaf = &mut leaves[usize::from(bucket_of(id))];
                let mut sum = SetHash::from_bytes(leaf);
                sum.insert(id);
                *leaf = sum.to_bytes();
            }
            GroupTree::new(&leaves)
        })
    }

    fn node_tree(&mut self, node: NodeId) -> NodeTree {
        let mut roots: Vec<Digest> = vec![[0; 32]; usize::from(PG_COUNT)];
        let groups: BTreeSet<PgId> = self.objects.iter().map(ChunkId::pg).collect();
        for pg in groups {
            roots[usize::from(pg.0)] = self.tree(pg).root();
        }
        let member = self.nodes.contains_key(&node) && !self.left.contains(&node);
        NodeTree::new(&roots, |_| member)
    }

    fn changed(&self, pg: Option<PgId>) -> u64 {
        match pg {
            Some(pg) => self.changes.get(&pg).copied().unwrap_or(0),
            None => self.changes.values().copied().max().unwrap_or(0),
        }
    }

    fn compare(&mut self, node: NodeId, report: &TreeReport) -> (Option<bool>, Vec<PgId>) {
        if report.epoch.0 != self.epoch || report.index > self.index {
            return (None, Vec::new());
        }
        let comparable = self.changed(None) <= report.index;
        let whole = comparable.then(|| self.node_tree(node).root() == report.root);
        let mut differ = Vec::new();
        for (pg, root) in &report.groups {
            if self.changed(Some(*pg)) <= report.index && self.tree(*pg).root() != *root {
                differ.push(*pg);
            }
        }
        (whole, differ)
    }

    fn walk(&mut self, node: NodeId, index: u64, asks: &[Ask]) -> Vec<Found> {
        let ids = asks.iter().filter(|ask| matches!(ask, Ask::Ids { .. })).count() as u64;
        let count = self.walks.entry(node).or_default();
        *count = (count.0 + 1, count.1 + ids);
        let mut found: Vec<Found> = asks.iter().map(|ask| self.answer(node, index, *ask)).collect();
        match self.lie {
            Lie::None => {}
            Lie::ShortIds => found.iter_mut().for_each(|found| {
                if let Found::Ids(ids) = found {
                    ids.pop();
                }
            }),
            Lie::FewAnswers => found.truncate(found.len() / 2),
            Lie::WrongKind => found.iter_mut().for_each(|found| {
                *found = match found {
                    Found::Ids(_) => Found::Digests(vec![[0; 32]; 16]),
                    _ => Found::Ids(Vec::new()),
                }
            }),
            Lie::Unavailable => found.iter_mut().for_each(|found| {
                *found = Found::Unavailable { reason: "told to be".to_owned() };
            }),
        }
        found
    }

    fn answer(&mut self, node: NodeId, index: u64, ask: Ask) -> Found {
        if index > self.index {
            return Found::Unavailable { reason: "the asker is ahead".to_owned() };
        }
        let group = match ask {
            Ask::Tops | Ask::Groups { .. } => None,
            Ask::Mids { pg } | Ask::Buckets { pg, .. } | Ask::Ids { pg, .. } => Some(pg),
        };
        if self.changed(group) > index {
            return Found::Moved { index: self.changed(group) };
        }
        match ask {
            Ask::Tops => Found::Digests(self.node_tree(node).tops().to_vec()),
            Ask::Groups { top } => Found::Digests(self.node_tree(node).groups(top).1.to_vec()),
            Ask::Mids { pg } => Found::Digests(self.tree(pg).mids().to_vec()),
            Ask::Buckets { pg, mid } => Found::Digests(self.tree(pg).buckets(mid).to_vec()),
            Ask::Ids { pg, bucket } => {
                let of = |id: &&ChunkId| id.pg() == pg && bucket_of(id) == bucket;
                Found::Ids(self.objects.iter().filter(of).copied().collect())
            }
        }
    }

    fn deltas(&self, node: NodeId, after: u64) -> Option<MasterResponse> {
        if after < self.floor {
            let (deltas, upto) = (Vec::new(), self.index);
            return Some(MasterResponse::Deltas { deltas, upto, gap: true });
        }
        let member = !self.left.contains(&node);
        let new = self.deltas.iter().filter(|delta| member && delta.index > after);
        let deltas: Vec<Delta> = new.copied().collect();
        let upto = self.index.max(after);
        (!deltas.is_empty()).then_some(MasterResponse::Deltas { deltas, upto, gap: false })
    }
}

/// The master as a service.
pub(crate) struct Master(pub(crate) watch::Sender<State>);

impl Master {
    async fn deltas(&self, node: NodeId, after: u64, wait_ms: u32) -> MasterResponse {
        let mut state = self.0.subscribe();
        let wait = Duration::from_millis(u64::from(wait_ms));
        let some = state.wait_for(|state| state.deltas(node, after).is_some());
        drop(tokio::time::timeout(wait, some).await);
        let state = self.0.borrow();
        let upto = state.index.max(after);
        state.deltas(node, after).unwrap_or(MasterResponse::Deltas {
            deltas: Vec::new(),
            upto,
            gap: false,
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut out = None;
        self.0.send_modify(|state| out = Some(change(state)));
        out.expect("send_modify always calls")
    }
}

impl Service for Master {
    type Request = MasterRequest;
    type Response = MasterResponse;

    fn operation(_: &MasterRequest) -> &'static str {
        "test"
    }

    async fn call(
        &self,
        _: Context,
        request: MasterRequest,
        _: Bytes,
    ) -> WireResult<Answer<MasterResponse>> {
        let answer = match request {
            MasterRequest::Register { info } => self.change(|state| {
                let known = state.nodes.insert(info.id, info);
                state.change_view(known.is_none());
                MasterResponse::Registered {
                    cluster: CLUSTER,
                    receipt_key: Some(ReceiptKey([3; 32])),
                    epoch: Epoch(state.epoch),
                    term: state.term,
                }
            }),
            MasterRequest::Heartbeat { node, stat, tree, .. } => self.change(|state| {
                let (mut in_sync, mut differ) = (None, Vec::new());
                if let Some(report) = tree {
                    (in_sync, differ) = state.compare(node, &report);
                    state.reports.insert(node, report);
                }
                state.in_sync.insert(node, in_sync);
                if let Some(stat) = stat {
                    state.stats.insert(node, stat);
                }
                MasterResponse::Heard {
                    epoch: Epoch(state.epoch),
                    term: state.term,
                    known: state.nodes.contains_key(&node),
                    orders: state.orders,
                    in_sync,
                    differ,
                }
            }),
            MasterRequest::Cluster { .. } => self.change(|state| {
                state.looks += 1;
                MasterResponse::Cluster(Some(Box::new(state.view())))
            }),
            MasterRequest::Deltas { node, after, wait_ms } => {
                self.deltas(node, after, wait_ms).await
            }
            MasterRequest::Walk { node, index, asks, .. } => {
                MasterResponse::Walked(self.change(|state| state.walk(node, index, &asks)))
            }
            MasterRequest::Objects { ids } => {
                let state = self.0.borrow();
                let view = ObjectView { refs: 1, len: 1, kind: ObjectKind::Data };
                let kept = |id: &ChunkId| state.objects.contains(id) || state.claimed.contains(id);
                MasterResponse::Objects(ids.iter().map(|id| kept(id).then_some(view)).collect())
            }
            other => return Err(WireError::invalid(format!("not in this test: {other:?}"))),
        };
        Ok(Answer::head(answer))
    }
}
