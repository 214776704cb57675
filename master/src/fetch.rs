//! Reading chunks from the chunkservers, for the pages the master admits. Of files it reads the rules
//! of live sites, and no others.
//!
//! Every member of a chunk's group is tried, live ones first, then, while it moves, those it had
//! before and those that are still filling; every chunk's hash is checked. A member that takes long
//! is not waited for alone: the next one is asked beside it.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use atoll_net::{CallOptions, Role};
use atoll_proto::chunk::{ChunkRequest, ChunkResponse, GetMany};
use atoll_proto::cluster::NodeState;
use atoll_proto::error::WireResult;
use atoll_proto::{ChunkId, Code, NodeId, WireError, limits};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use crate::server::Master;

/// How long one server may take at all.
const TRY: Duration = Duration::from_secs(3);
/// How long a server may take before another is asked beside it.
const HEDGE_AFTER: Duration = Duration::from_millis(250);

impl Master {
    /// These chunks, whole and verified.
    ///
    /// # Errors
    /// `Unavailable` when one of them cannot be read from any member of its group.
    pub(crate) async fn read_chunks(
        &self,
        ids: &[ChunkId],
        deadline: Instant,
    ) -> WireResult<HashMap<ChunkId, Bytes>> {
        // Without this there is no round in which everything could turn out to be found.
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let table = self.table()?;
        let views = self.node_views()?;
        let nodes: HashMap<NodeId, (SocketAddr, bool)> = views
            .into_iter()
            .map(|node| (node.info.id, (node.info.addr, node.state == NodeState::Up)))
            .collect();
        let mut candidates: HashMap<ChunkId, Vec<NodeId>> = HashMap::new();
        for id in ids {
            // In the table's order of who surely has it, those that are up first.
            let mut members: Vec<NodeId> = table.readers(id.pg()).collect();
            members.sort_by_key(|member| !nodes.get(member).is_some_and(|(_, up)| *up));
            candidates.insert(*id, members);
        }

        let mut found: HashMap<ChunkId, Bytes> = HashMap::new();
        let mut reasons: Vec<String> = Vec::new();
        let rounds = candidates.values().map(Vec::len).max().unwrap_or(0);
        let mut asked = FuturesUnordered::new();
        for round in 0..rounds {
            let mut by_node: BTreeMap<NodeId, Vec<ChunkId>> = BTreeMap::new();
            for (id, members) in &candidates {
                if let Some(member) = members.get(round)
                    && !found.contains_key(id)
                {
                    by_node.entry(*member).or_default().push(*id);
                }
            }
            asked.extend(by_node.into_iter().map(|(node, ids)| {
                let addr = nodes.get(&node).map(|(addr, _)| *addr);
                self.read_from(node, addr, ids, deadline)
            }));
            let last = round + 1 == rounds;
            let mut hedge = pin!(tokio::time::sleep(HEDGE_AFTER));
            loop {
                let (read, reason) = tokio::select! {
                    answer = asked.next() => match answer {
                        Some(answer) => answer,
                        None => break,
                    },
                    () = &mut hedge, if !last => break,
                };
                found.extend(read);
                reasons.extend(reason);
                if candidates.keys().all(|id| found.contains_key(id)) {
                    return Ok(found);
                }
            }
        }
        let lost = candidates.keys().find(|id| !found.contains_key(*id));
        let lost = lost.map(ToString::to_string).unwrap_or_default();
        reasons.sort();
        reasons.dedup();
        let reasons = if reasons.is_empty() {
            "its placement group has no members: are chunkservers running?".to_owned()
        } else {
            reasons.join("; ")
        };
        let message = format!("page {lost} cannot be read from any chunkserver: {reasons}");
        Err(WireError::new(Code::Unavailable, message))
    }

    /// Whether every server that might have a chunk has said that it does not.
    pub(crate) async fn nobody_has(&self, id: ChunkId) -> WireResult<bool> {
        let table = self.table()?;
        let views = self.node_views()?;
        let mut asked = 0;
        for reader in table.readers(id.pg()) {
            let Some(node) = views.iter().find(|node| node.info.id == reader) else {
                return Ok(false);
            };
            let head = ChunkRequest::GetMany(GetMany { ids: vec![id] });
            let options = CallOptions::within(TRY);
            let called = self
                .endpoint
                .call(node.info.addr, Role::Chunkserver, &head, Vec::new(), options)
                .await;
            match called {
                Ok((ChunkResponse::Many { lens, complete: true }, _)) if lens == [None] => {
                    asked += 1
                }
                _ => return Ok(false),
            }
        }
        Ok(asked > 0)
    }

    /// What one server has of these chunks, and why not more.
    async fn read_from(
        &self,
        node: NodeId,
        addr: Option<SocketAddr>,
        mut ids: Vec<ChunkId>,
        deadline: Instant,
    ) -> (HashMap<ChunkId, Bytes>, Option<String>) {
        let mut found = HashMap::new();
        let Some(addr) = addr else {
            return (found, Some(format!("chunkserver {node} is not registered")));
        };
        while !ids.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let options = CallOptions::within(left.min(TRY));
            let part: Vec<ChunkId> = ids.iter().copied().take(limits::PUT_CHUNKS_MAX).collect();
            let head = ChunkRequest::GetMany(GetMany { ids: part.clone() });
            let called =
                self.endpoint.call(addr, Role::Chunkserver, &head, Vec::new(), options).await;
            let (lens, mut body) = match called {
                Ok((ChunkResponse::Many { lens, .. }, body)) if lens.len() == part.len() => {
                    (lens, body)
                }
                Ok(_) => {
                    let reason = format!("chunkserver {node} gave an answer of another kind");
                    return (found, Some(reason));
                }
                Err(error) => return (found, Some(format!("chunkserver {node}: {error}"))),
            };
            let before = found.len();
            for (id, len) in part.iter().zip(lens) {
                let Some(len) = len.and_then(|len| usize::try_from(len).ok()) else { continue };
                if len > body.len() {
                    let reason = format!("chunkserver {node} sent fewer bytes than it said");
                    return (found, Some(reason));
                }
                let bytes = body.split_to(len);
                if ChunkId::of(&bytes) == *id {
                    found.insert(*id, bytes);
                } else {
                    tracing::warn!(%node, chunk = %id, "a chunkserver sent wrong bytes");
                }
            }
            // Asked again only for what did not fit; what is not there is sought elsewhere.
            ids.retain(|id| !found.contains_key(id));
            if found.len() == before {
                let reason = format!("chunkserver {node} does not have it");
                return (found, Some(reason));
            }
        }
        (found, None)
    }
}
