//! The path of a read: chunk id → replicas in order → bytes that have that hash.
//!
//! A replica that fails, is slow or returns wrong bytes costs time, never an answer: the next is
//! asked, and after [`HEDGE_AFTER`] a second one is asked beside the first ("The Tail at Scale",
//! Dean and Barroso 2013). A replica that has answered nothing at all meanwhile is asked last for a
//! while, so that a frozen server costs a reader that wait once in a while and not at every chunk.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use atoll_net::call::CallError;
use atoll_net::identity::Role;
use atoll_net::task::Boxed;
use atoll_proto::chunk::{ChunkRequest, ChunkResponse, Get, GetMany};
use atoll_proto::cluster::ClusterView;
use atoll_proto::content::{Extent, ExtentList};
use atoll_proto::{ChunkId, Content, NodeId, limits};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use crate::locate::{Replica, read_order};
use crate::{ClientError, Cluster};

/// A second replica is asked when the first has not answered after this long.
const HEDGE_AFTER: Duration = Duration::from_millis(150);
/// Chunks of one file that are fetched at the same time.
const PARALLEL_CHUNKS: usize = 8;
/// Small chunks that are asked for in one request.
const BATCH_CHUNKS: usize = 128;
/// How often all replicas are tried, with a fresh view in between.
const ROUNDS: usize = 3;

impl Cluster {
    /// Reads one whole chunk, verified.
    ///
    /// # Errors
    /// `Lost` when no replica returns it in good order.
    pub fn read_chunk(&self, id: ChunkId) -> Boxed<'_, Result<Bytes, ClientError>> {
        Box::pin(self.read_one(id))
    }

    async fn read_one(&self, id: ChunkId) -> Result<Bytes, ClientError> {
        let mut view = self.view().await?;
        let mut reason = String::new();
        for round in 0..ROUNDS {
            if round > 0 {
                tokio::time::sleep(Duration::from_millis(50 << (2 * round))).await;
                if let Ok(newer) = self.refresh_view().await {
                    view = newer;
                }
            }
            match self.read_round(&view, id).await {
                Ok(bytes) => return Ok(bytes),
                Err(why) => reason = why,
            }
        }
        metrics::counter!("atoll_client_chunks_lost_total").increment(1);
        Err(ClientError::Lost { id, reason })
    }

    /// Tries every replica once, hedged. The error says what each of them said.
    async fn read_round(&self, view: &ClusterView, id: ChunkId) -> Result<Bytes, String> {
        let zone = self.inner.zone.as_deref();
        let order = read_order(view, id.pg(), zone, self, rand::random());
        if order.is_empty() {
            return Err("its placement group has no members yet".to_owned());
        }
        let nodes: Vec<NodeId> = order.iter().map(|replica| replica.node).collect();
        let mut rest = order.into_iter();
        let mut asked = FuturesUnordered::new();
        asked.extend(rest.next().map(|replica| self.read_from(replica, id)));
        let mut reasons = Vec::new();
        loop {
            let since = Instant::now();
            let hedge = tokio::time::sleep(HEDGE_AFTER);
            tokio::select! {
                answer = asked.next() => match answer {
                    Some(Ok(bytes)) => return Ok(bytes),
                    Some(Err(reason)) => {
                        reasons.push(reason);
                        asked.extend(rest.next().map(|replica| self.read_from(replica, id)));
                    }
                    None => return Err(reasons.join("; ")),
                },
                () = hedge, if rest.len() > 0 => {
                    metrics::counter!("atoll_client_hedged_reads_total").increment(1);
                    self.suspect_silent(nodes.iter().take(nodes.len() - rest.len()), since);
                    asked.extend(rest.next().map(|replica| self.read_from(replica, id)));
                }
            }
        }
    }

    /// Those of these nodes, which were asked before, that have answered nothing since then.
    fn suspect_silent<'a>(&self, asked: impl Iterator<Item = &'a NodeId>, since: Instant) {
        for node in asked.filter(|node| self.is_silent(**node, since)) {
            self.suspect(*node);
        }
    }

    async fn read_from(&self, replica: Replica, id: ChunkId) -> Result<Bytes, String> {
        let _running = self.begin(replica.node);
        let request = ChunkRequest::Get(Get { id, offset: 0, len: u32::MAX });
        let options = self.options(limits::CHUNK_DEADLINE);
        let answer: Result<(ChunkResponse, Bytes), CallError> = self
            .endpoint()
            .call(replica.addr, Role::Chunkserver, &request, Vec::new(), options)
            .await;
        if matches!(&answer, Ok(_) | Err(CallError::Refused(_))) {
            self.heard(replica.node);
        }
        match answer {
            Ok((ChunkResponse::Bytes { .. }, bytes)) if ChunkId::of(&bytes) == id => Ok(bytes),
            Ok(_) => {
                metrics::counter!("atoll_client_wrong_bytes_total").increment(1);
                self.suspect(replica.node);
                Err(format!("node {} returned wrong bytes", replica.node))
            }
            Err(error) => {
                if !matches!(&error, CallError::Refused(_)) {
                    self.suspect(replica.node);
                }
                Err(format!("node {}: {error}", replica.node))
            }
        }
    }

    /// Reads many chunks, small ones several to a request; the result is in the order asked.
    ///
    /// # Errors
    /// `Lost` for the first chunk that no replica returns.
    pub fn read_chunks<'a>(
        &'a self,
        ids: &'a [ChunkId],
    ) -> Boxed<'a, Result<Vec<Bytes>, ClientError>> {
        Box::pin(self.read_many(ids))
    }

    async fn read_many(&self, ids: &[ChunkId]) -> Result<Vec<Bytes>, ClientError> {
        let view = self.view().await?;
        let zone = self.inner.zone.as_deref();
        let mut groups: HashMap<NodeId, Vec<Sought>> = HashMap::new();
        for id in ids.iter().collect::<BTreeSet<_>>() {
            let order = read_order(&view, id.pg(), zone, self, 0);
            if let Some(first) = order.first() {
                groups.entry(first.node).or_default().push(Sought { id: *id, order });
            }
        }
        let parts = groups.into_values().flat_map(|group| {
            let parts: Vec<Vec<Sought>> =
                group.chunks(BATCH_CHUNKS).map(<[Sought]>::to_vec).collect();
            parts
        });
        let mut found: HashMap<ChunkId, Bytes> = HashMap::new();
        let mut requests = futures_util::stream::iter(parts)
            .map(|part| self.read_batch(part))
            .buffer_unordered(PARALLEL_CHUNKS);
        while let Some(some) = requests.next().await {
            found.extend(some);
        }
        drop(requests);
        let mut all = Vec::with_capacity(ids.len());
        for id in ids {
            // What the batch did not bring goes the careful way.
            match found.get(id) {
                Some(bytes) => all.push(bytes.clone()),
                None => all.push(self.read_chunk(*id).await?),
            }
        }
        Ok(all)
    }

    /// As many of these chunks as their replicas return, hedged: all in one request to the first
    /// replica; what that does not bring, or not in time, in requests to the next ones.
    async fn read_batch(&self, mut missing: Vec<Sought>) -> HashMap<ChunkId, Bytes> {
        let mut found = HashMap::with_capacity(missing.len());
        let mut asked = FuturesUnordered::new();
        let mut nodes: Vec<NodeId> = Vec::new();
        let ranks = missing.iter().map(|sought| sought.order.len()).max().unwrap_or(0);
        for rank in 0..ranks {
            let since = Instant::now();
            let mut requests: HashMap<NodeId, (Replica, Vec<ChunkId>)> = HashMap::new();
            for sought in &missing {
                if let Some(replica) = sought.order.get(rank) {
                    let request = requests.entry(replica.node);
                    request.or_insert_with(|| (*replica, Vec::new())).1.push(sought.id);
                }
            }
            if rank > 0 && !asked.is_empty() {
                metrics::counter!("atoll_client_hedged_reads_total").increment(1);
            }
            nodes.extend(requests.keys());
            asked.extend(requests.into_values().map(|(at, ids)| self.read_many_from(at, ids)));
            // The last ones are waited for as long as their own deadline lets them.
            let last = rank + 1 == ranks;
            let mut hedge = std::pin::pin!(tokio::time::sleep(HEDGE_AFTER));
            loop {
                tokio::select! {
                    answer = asked.next() => {
                        let Some(some) = answer else { break };
                        found.extend(some);
                        missing.retain(|sought| !found.contains_key(&sought.id));
                        if missing.is_empty() {
                            return found;
                        }
                    }
                    () = &mut hedge, if !last => {
                        self.suspect_silent(nodes.iter(), since);
                        break;
                    }
                }
            }
        }
        found
    }

    /// What one replica has of these chunks, in good order; nothing when it fails.
    async fn read_many_from(&self, replica: Replica, ids: Vec<ChunkId>) -> Vec<(ChunkId, Bytes)> {
        let _running = self.begin(replica.node);
        let request = ChunkRequest::GetMany(GetMany { ids: ids.clone() });
        let options = self.options(limits::CHUNK_DEADLINE);
        let answer: Result<(ChunkResponse, Bytes), CallError> = self
            .endpoint()
            .call(replica.addr, Role::Chunkserver, &request, Vec::new(), options)
            .await;
        if matches!(&answer, Ok(_) | Err(CallError::Refused(_))) {
            self.heard(replica.node);
        }
        let Ok((ChunkResponse::Many { lens, .. }, mut body)) = answer else {
            if !matches!(answer, Err(CallError::Refused(_))) {
                self.suspect(replica.node);
            }
            return Vec::new();
        };
        let mut found = Vec::with_capacity(ids.len());
        for (id, len) in ids.into_iter().zip(lens) {
            let Some(len) = len else { continue };
            if len as usize > body.len() {
                break;
            }
            let bytes = body.split_to(len as usize);
            if ChunkId::of(&bytes) == id {
                found.push((id, bytes));
            } else {
                metrics::counter!("atoll_client_wrong_bytes_total").increment(1);
            }
        }
        found
    }

    /// All extents of a content, reading list chunks where it has them.
    ///
    /// # Errors
    /// `Lost` when a list chunk cannot be read, `Malformed` when one is not a list.
    pub async fn extents(&self, content: &Content) -> Result<Vec<Extent>, ClientError> {
        match content {
            Content::Empty => Ok(Vec::new()),
            Content::Extents(extents) => Ok(extents.clone()),
            Content::Lists { lists, size } => {
                let ids: Vec<ChunkId> = lists.iter().map(|(_, id)| *id).collect();
                let mut extents = Vec::new();
                for (id, bytes) in ids.iter().zip(self.read_chunks(&ids).await?) {
                    extents.extend(ExtentList::decode(&bytes).map_err(|error| {
                        ClientError::Malformed { what: format!("list chunk {id}: {error}") }
                    })?);
                }
                let sum: u64 = extents.iter().map(|extent| u64::from(extent.len)).sum();
                if sum != *size {
                    let what = format!("extent lists hold {sum} bytes, the file says {size}");
                    return Err(ClientError::Malformed { what });
                }
                Ok(extents)
            }
        }
    }

    /// Reads a range of a file. Holes read as zeros; the end of the file cuts the range.
    ///
    /// # Errors
    /// `Lost` when a chunk cannot be read from any replica.
    pub async fn read_at(
        &self,
        extents: &[Extent],
        offset: u64,
        len: usize,
    ) -> Result<Bytes, ClientError> {
        let wanted = cut(extents, offset, len);
        let mut pieces = futures_util::stream::iter(wanted)
            .map(|piece| async move {
                match piece.id {
                    None => Ok(Bytes::from(vec![0; piece.end - piece.start])),
                    Some(id) => {
                        let bytes = self.read_chunk(id).await?;
                        if bytes.len() < piece.end {
                            let what = format!("chunk {id} is shorter than the file says");
                            return Err(ClientError::Malformed { what });
                        }
                        Ok(bytes.slice(piece.start..piece.end))
                    }
                }
            })
            .buffered(PARALLEL_CHUNKS);
        let mut out: Vec<Bytes> = Vec::new();
        while let Some(bytes) = pieces.next().await {
            out.push(bytes?);
        }
        if let [one] = out.as_slice() {
            return Ok(one.clone());
        }
        let mut joined = BytesMut::with_capacity(out.iter().map(Bytes::len).sum());
        out.iter().for_each(|bytes| joined.extend_from_slice(bytes));
        Ok(joined.freeze())
    }
}

/// A chunk that is read together with others, and whom to ask for it.
#[derive(Debug, Clone)]
struct Sought {
    id: ChunkId,
    order: Vec<Replica>,
}

/// A part of a chunk (or of a hole) that a range needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The chunk; `None` for a hole.
    pub id: Option<ChunkId>,
    /// First byte within it.
    pub start: usize,
    /// Byte after the last within it.
    pub end: usize,
}

/// The parts of extents that the range of `len` bytes at `offset` needs, in order.
pub fn cut(extents: &[Extent], offset: u64, len: usize) -> Vec<Piece> {
    let end = offset.saturating_add(len as u64);
    let mut at = 0_u64;
    let mut pieces = Vec::new();
    for extent in extents {
        let next = at.saturating_add(u64::from(extent.len));
        if next > offset && at < end {
            let start = offset.saturating_sub(at);
            let stop = end.min(next) - at;
            // Both are at most an extent's length, which is a u32.
            let (start, stop) = (
                usize::try_from(start).unwrap_or(usize::MAX),
                usize::try_from(stop).unwrap_or(usize::MAX),
            );
            if start < stop {
                pieces.push(Piece { id: extent.id, start, end: stop });
            }
        }
        at = next;
        if at >= end {
            break;
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn cut_equals_slicing(
            lens in proptest::collection::vec(1_u32..9, 0..12),
            offset in 0_u64..100,
            len in 0_usize..100,
        ) {
            let file: Vec<u8> = (0..lens.iter().sum::<u32>()).map(|i| (i % 251) as u8).collect();
            let mut at = 0;
            let mut parts = Vec::new();
            let mut extents = Vec::new();
            for len in &lens {
                let part = file[at..at + *len as usize].to_vec();
                at += *len as usize;
                extents.push(Extent { id: Some(ChunkId::of(&part)), len: *len });
                parts.push(part);
            }
            let mut got = Vec::new();
            for piece in cut(&extents, offset, len) {
                let part = parts.iter().find(|part| Some(ChunkId::of(part)) == piece.id);
                got.extend_from_slice(part.map_or(&[][..], |part| &part[piece.start..piece.end]));
            }
            let from = (offset as usize).min(file.len());
            let to = (from + len).min(file.len());
            prop_assert_eq!(got, &file[from..to]);
        }
    }
}
