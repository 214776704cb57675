//! A walk from what differs down to single ids, and what is done about them.
//!
//! [`crate::tasks::reconcile`] starts a pass when the master says that something differs. The
//! master is asked about everything except groups of which nothing is known here yet: those are
//! learned from another reader first, so that filling a server does not load the master, and are
//! confirmed by the master's root afterwards.
//!
//! It fails closed: what is not answered, or not exactly as it must be, changes nothing, and a
//! group of which a delta was applied since the walk began is left for the next pass.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use atoll_net::{CallOptions, Role};
use atoll_proto::chunk::{ChunkRequest, ChunkResponse};
use atoll_proto::cluster::{ClusterView, NodeState};
use atoll_proto::ids::PG_COUNT;
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::tree::{Ask, Found, NodeTree, TOPS};
use atoll_proto::{ChunkId, Epoch, NodeId, PgId};
use bytes::Bytes;
use tokio::time::Instant;

use super::breaker::{Dropping, Leave};
use super::diff::{Difference, differing};
use super::known::{self, Cache, Known};
use super::pause::Point;
use super::walk::{Verdict, Walk};
use crate::node::Node;
use crate::store::{ChunkStore, Mark, StoreError};
use crate::tasks::clock;

/// How long one step may take.
const STEP_DEADLINE: Duration = Duration::from_secs(10);
/// Groups gone through side by side: few, so that the index they are compared at is fresh.
const GROUPS_AT_ONCE: usize = 64;
/// How many passes a group is to be learned from a peer that is still behind, before the master is
/// asked: longer than a peer in a quiet cluster takes to hear that there is no news.
const BEHIND_MAX: u32 = 20;

/// What a pass came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pass {
    /// Groups that differ from what this node knows to be live.
    pub(crate) groups: usize,
    /// Ids learned to be live.
    pub(crate) learned: u64,
    /// Ids that are not live after all.
    pub(crate) forgotten: u64,
    /// Groups to look at again: they moved, or no good answer came.
    pub(crate) again: usize,
    /// Groups that were learned from a peer, to be confirmed by the master.
    pub(crate) filled: usize,
}

/// Groups that were tried to learn from a peer: at which epoch, and how often in vain. After
/// [`BEHIND_MAX`] the master is asked, and from then on.
pub(crate) type Filled = BTreeMap<PgId, (Epoch, u32)>;

/// Whom to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Master,
    Peer(NodeId, SocketAddr),
}

/// How a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Walked {
    ToTheEnd,
    /// The peer does not know what was collected before this node followed the feed.
    Behind,
}

/// One pass over everything that differs; `hinted` are groups the master named.
///
/// # Errors
/// When somebody does not answer, or the disk fails; what was done before that stays done.
pub(crate) async fn pass(
    node: &Arc<Node>,
    hinted: &BTreeSet<PgId>,
    filled: &mut Filled,
) -> Result<Pass, String> {
    let view = node.placement.view().ok_or("no placement table is known yet")?;
    if node.placement.is_behind() {
        return Err("the placement table is old".to_owned());
    }
    let session = Session { node, view };
    let mut pass = Pass::default();
    let groups = session.suspects(hinted, &mut pass).await?;
    pass.groups = groups.len();
    let (fill, rest) = session.sort(groups, filled).await?;
    let epoch = session.view.table.epoch;
    for (peer, groups) in fill {
        for some in groups.chunks(GROUPS_AT_ONCE) {
            let walked = session.walk(Source::Peer(peer.0, peer.1), some, &mut pass).await;
            let mut tried = |tries: fn(u32) -> u32| {
                for pg in some {
                    let before = filled.get(pg).map_or(0, |(_, tries)| *tries);
                    filled.insert(*pg, (epoch, tries(before)));
                }
            };
            match walked {
                Ok(Walked::ToTheEnd) => {
                    // Whatever was learned, the master has the next word.
                    tried(|_| BEHIND_MAX);
                    pass.filled += some.len();
                }
                Ok(Walked::Behind) => {
                    tried(|before| before + 1);
                    pass.again += groups.len();
                    break;
                }
                Err(reason) => {
                    tracing::debug!(reason, peer = %peer.0, "cannot learn groups from a peer");
                    tried(|_| BEHIND_MAX);
                    pass.again += groups.len();
                    break;
                }
            }
        }
    }
    for some in rest.chunks(GROUPS_AT_ONCE) {
        session.walk(Source::Master, some, &mut pass).await?;
    }
    Ok(pass)
}

/// One pass: everything in it goes by the same placement table.
struct Session<'a> {
    node: &'a Arc<Node>,
    view: Arc<ClusterView>,
}

/// Groups by the peer they are to be learned from.
type Fill = BTreeMap<(NodeId, SocketAddr), Vec<PgId>>;

impl Session<'_> {
    /// The groups that differ from what this node knows to be live.
    async fn suspects(
        &self,
        hinted: &BTreeSet<PgId>,
        pass: &mut Pass,
    ) -> Result<Vec<PgId>, String> {
        let index = self.applied().await?;
        let tree = self.tree().await?;
        let mut groups = BTreeSet::new();
        let found = self.ask(Source::Master, index, vec![Ask::Tops]).await?.1;
        let tops: Vec<u8> = match &found[..] {
            [Found::Digests(there)] => {
                self.node.upkeep.count_roots(TOPS as u64, 0);
                let differ = differing(tree.tops(), there)?;
                differ.into_iter().filter_map(|top| u8::try_from(top).ok()).collect()
            }
            // Something changes all the time: only what was named can be compared at its own index.
            [Found::Moved { .. }] => {
                pass.again += 1;
                let each = PG_COUNT / u16::try_from(TOPS).unwrap_or(1);
                let tops: BTreeSet<u8> =
                    hinted.iter().filter_map(|pg| u8::try_from(pg.0 / each).ok()).collect();
                tops.into_iter().collect()
            }
            [Found::Unavailable { reason }] => return Err(reason.clone()),
            _ => return Err("the wrong kind of answer to a walk".to_owned()),
        };
        if tops.is_empty() {
            return Ok(Vec::new());
        }
        let asks: Vec<Ask> = tops.iter().map(|top| Ask::Groups { top: *top }).collect();
        let found = self.ask(Source::Master, index, asks).await?.1;
        for (top, found) in tops.into_iter().zip(found) {
            let (first, here) = tree.groups(top);
            let under = first.0..first.0 + u16::try_from(here.len()).unwrap_or_default();
            match found {
                Found::Digests(there) => {
                    let differ = differing(here, &there)?;
                    self.node.upkeep.count_roots(here.len() as u64, differ.len() as u64);
                    groups.extend(
                        differ.into_iter().filter_map(|at| Some(PgId(under.clone().nth(at)?))),
                    );
                }
                // Something under it changes all the time; what was named differs at its own index.
                Found::Moved { .. } => {
                    pass.again += 1;
                    groups.extend(hinted.iter().filter(|pg| under.contains(&pg.0)));
                }
                Found::Unavailable { reason } => return Err(reason),
                Found::Ids(_) => return Err("the wrong kind of answer to a walk".to_owned()),
            }
        }
        groups.retain(|pg| self.view.table.of(*pg).contains(&self.node.id));
        Ok(groups.into_iter().collect())
    }

    /// Tells groups that are to be learned from a peer from those the master is asked about.
    async fn sort(
        &self,
        groups: Vec<PgId>,
        filled: &mut Filled,
    ) -> Result<(Fill, Vec<PgId>), String> {
        let epoch = self.view.table.epoch;
        filled.retain(|_, (at, _)| *at == epoch);
        let known = |pg: &PgId| filled.get(pg).is_some_and(|(_, tries)| *tries >= BEHIND_MAX);
        let fresh: Vec<PgId> = groups.iter().copied().filter(|pg| !known(pg)).collect();
        let empty = self.node.at_the_disk("walk", move |store| {
            let mut empty = BTreeSet::new();
            for pg in fresh {
                if known::count(store, pg)? == 0 {
                    empty.insert(pg);
                }
            }
            Ok::<_, StoreError>(empty)
        });
        let empty = flat(empty.await)?;
        let (mut fill, mut rest) = (Fill::new(), Vec::new());
        for pg in groups {
            match self.peer(pg).filter(|_| empty.contains(&pg)) {
                Some(peer) => fill.entry(peer).or_default().push(pg),
                None => rest.push(pg),
            }
        }
        Ok((fill, rest))
    }

    /// Another reader of a group that is up, a different one for different groups.
    fn peer(&self, pg: PgId) -> Option<(NodeId, SocketAddr)> {
        let now = Instant::now();
        let others = self.view.table.readers(pg).filter(|reader| *reader != self.node.id);
        let up: Vec<(NodeId, SocketAddr)> = others
            .filter(|reader| !self.node.peers.of(*reader).is_suspect(now))
            .filter_map(|reader| self.view.node(reader))
            .filter(|node| node.state == NodeState::Up)
            .map(|node| (node.info.id, node.info.addr))
            .collect();
        up.get(usize::from(pg.0) % up.len().max(1)).copied()
    }

    /// Walks some groups to the end and acts on what was found.
    async fn walk(
        &self,
        source: Source,
        groups: &[PgId],
        pass: &mut Pass,
    ) -> Result<Walked, String> {
        let strict = source == Source::Master;
        let mut index = self.applied().await?;
        let mut walk = Walk::over(groups.iter().copied(), strict);
        let mut cache = Cache::default();
        let mut first = true;
        loop {
            let asks = walk.asks();
            if asks.is_empty() {
                return Ok(Walked::ToTheEnd);
            }
            let (at, found) = self.ask(source, index, asks).await?;
            if std::mem::take(&mut first) {
                // A peer answers as of its own index; what it says later is no older.
                index = at;
                if source != Source::Master && index < self.node.upkeep.feed.lock().await.since {
                    return Ok(Walked::Behind);
                }
            }
            let step = self.node.at_the_disk("walk", move |store| {
                let taken = walk.take(&mut Known::new(store, &mut cache), found);
                taken.map(|()| (walk, cache))
            });
            (walk, cache) = flat(step.await)?;
            for (pg, verdict) in walk.done() {
                cache.forget(pg);
                match verdict {
                    Verdict::Found(difference) => {
                        self.follow(source, pg, difference, index, pass).await?;
                    }
                    Verdict::Moved => pass.again += 1,
                    Verdict::GivenUp(reason) => {
                        tracing::debug!(group = pg.0, reason, "a group was not compared");
                        pass.again += 1;
                    }
                }
            }
        }
    }

    /// Acts on what differs in a group, unless something happened to it in between.
    async fn follow(
        &self,
        source: Source,
        pg: PgId,
        difference: Difference,
        index: u64,
        pass: &mut Pass,
    ) -> Result<(), String> {
        let upkeep = &self.node.upkeep;
        upkeep.pause(Point::WalkFound).await;
        let feed = upkeep.feed.lock().await;
        let epoch = self.view.table.epoch;
        let moved = feed.moved(pg) > index || self.node.placement.epoch() != epoch;
        if moved || (source != Source::Master && index < feed.since) {
            pass.again += 1;
            return Ok(());
        }
        let Difference { missing, extra } = difference;
        if !missing.is_empty() {
            pass.learned += missing.len() as u64;
            let marks: Vec<(ChunkId, Mark)> =
                missing.into_iter().map(|id| (id, Mark::Live)).collect();
            let now_ms = clock::now_ms();
            let marked =
                self.node.at_the_disk("mark", move |store| store.mark(&marks, now_ms, None));
            upkeep.lack(flat(marked.await)?.lacking, Duration::ZERO);
        }
        if source == Source::Master && !extra.is_empty() {
            pass.forgotten += self.forget(pg, extra).await?;
        }
        drop(feed);
        Ok(())
    }

    /// Chunks are live here that the master does not have. Only their marks go: what becomes of the
    /// bytes is for the sweep to ask.
    async fn forget(&self, pg: PgId, ids: Vec<ChunkId>) -> Result<u64, String> {
        let count = self.node.at_the_disk("walk", move |store| known::count(store, pg));
        let dropping = Dropping { pg, chunks: ids.len() as u64, of: flat(count.await)? };
        let cause = "live here, and not in the master's object table";
        let leave = self.node.upkeep.breaker().ask_to_forget(dropping, cause);
        if leave != Leave::Granted {
            tracing::warn!(group = pg.0, chunks = ids.len(), ?leave, "chunks are kept: {cause}");
            return Ok(0);
        }
        let now_ms = clock::now_ms();
        let forget = self.node.at_the_disk("forget", move |store| store.forget_live(&ids, now_ms));
        flat(forget.await)
    }

    async fn applied(&self) -> Result<u64, String> {
        flat(self.node.at_the_disk("walk", |store| store.applied()).await)
    }

    /// The tree over everything this node knows to be live.
    async fn tree(&self) -> Result<NodeTree, String> {
        let (view, id) = (Arc::clone(&self.view), self.node.id);
        let trees = Arc::clone(&self.node.upkeep.trees);
        let look = move |store: &dyn ChunkStore| {
            let keeps = |pg: PgId| view.table.of(pg).contains(&id);
            known::node_tree(store, trees.fresh_roots(store, keeps)?, keeps)
        };
        flat(self.node.at_the_disk("walk", look).await)
    }

    /// One step; with the index of what was answered.
    async fn ask(
        &self,
        source: Source,
        index: u64,
        asks: Vec<Ask>,
    ) -> Result<(u64, Vec<Found>), String> {
        let (count, epoch) = (asks.len(), self.view.table.epoch);
        let (sent, at, found) = match source {
            Source::Master => {
                let request = MasterRequest::Walk { node: self.node.id, epoch, index, asks };
                let answer = self.node.masters.ask(&request, STEP_DEADLINE).await;
                match answer.map_err(|error| error.to_string())? {
                    MasterResponse::Walked(found) => {
                        (atoll_proto::encode(&request).len(), index, found)
                    }
                    _ => {
                        return Err("the master answered with the wrong kind of message".to_owned());
                    }
                }
            }
            Source::Peer(_, addr) => {
                let request = ChunkRequest::Walk { epoch, asks };
                let options = CallOptions::within(STEP_DEADLINE);
                let endpoint = &self.node.endpoint;
                let answer: Result<(ChunkResponse, Bytes), _> =
                    endpoint.call(addr, Role::Chunkserver, &request, Vec::new(), options).await;
                match answer.map_err(|error| error.to_string())?.0 {
                    ChunkResponse::Found { index, found } => {
                        (atoll_proto::encode(&request).len(), index, found)
                    }
                    _ => return Err("a peer answered with the wrong kind of message".to_owned()),
                }
            }
        };
        let bytes = sent + atoll_proto::encode(&found).len();
        self.node.upkeep.count_bytes("walk", bytes);
        if found.len() != count {
            return Err(format!("{} answers to {count} questions", found.len()));
        }
        Ok((at, found))
    }
}

/// Both ways in which work at the disk fails, as one.
fn flat<T>(done: Result<Result<T, StoreError>, atoll_proto::WireError>) -> Result<T, String> {
    done.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}
