//! Which shield to ask for a chunk, and asking it.
//!
//! A shield is an edge in another role. Per chunk the shields are ordered by rendezvous hashing
//! (Thaler and Ravishankar 1998), so that all edges of a region ask the same one for the same
//! chunk and the origin is read once. Called by [`super::upstream`]; the list comes from
//! [`crate::feed`].

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use atoll_net::call::{CallError, CallOptions};
use atoll_net::endpoint::Endpoint;
use atoll_net::identity::Role;
use atoll_proto::edge::{EdgeRequest, EdgeResponse};
use atoll_proto::{ChunkId, Fault, NodeId};

use super::breaker::Breaker;
use super::{Fetched, Source};

/// Shields tried before the origin is asked directly.
const TRIED: usize = 2;
/// How long one shield may take, its own fetch from the origin included.
const DEADLINE: Duration = Duration::from_secs(5);

/// A shield that is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shield {
    /// Its node id.
    pub id: NodeId,
    /// Where it answers edges.
    pub addr: SocketAddr,
    /// Where it is.
    pub region: String,
}

/// The shields, as this edge sees them.
pub struct Shields {
    endpoint: Endpoint,
    region: String,
    list: ArcSwap<Vec<Shield>>,
    breakers: Mutex<HashMap<NodeId, Breaker>>,
}

impl Shields {
    /// For an edge in this region; there are none until [`Shields::set`].
    pub fn new(endpoint: Endpoint, region: String) -> Shields {
        Shields {
            endpoint,
            region,
            list: ArcSwap::from_pointee(Vec::new()),
            breakers: Mutex::new(HashMap::new()),
        }
    }

    /// Replaces the list of healthy shields.
    pub fn set(&self, shields: Vec<Shield>) {
        if **self.list.load() == shields {
            return;
        }
        let mut breakers = self.breakers.lock().unwrap_or_else(PoisonError::into_inner);
        breakers.retain(|id, _| shields.iter().any(|shield| shield.id == *id));
        drop(breakers);
        self.list.store(Arc::new(shields));
    }

    /// The shield of the own region that a node asks for what is not a chunk: another one for
    /// another node, and the same one for as long as there is no better.
    pub fn of_region(&self, node: NodeId, usable: impl Fn(NodeId) -> bool) -> Option<Shield> {
        let shields = self.list.load();
        let near = shields.iter().filter(|it| it.region == self.region && usable(it.id));
        near.max_by_key(|shield| bid(&node.0.to_be_bytes(), shield.id)).cloned()
    }

    /// Asks up to two shields in order. `None` when none has an answer.
    pub async fn fetch(&self, id: ChunkId) -> Option<Fetched> {
        let shields = self.list.load_full();
        for shield in ranked(&id, &shields, &self.region).into_iter().take(TRIED) {
            if !self.breaker(shield.id, |breaker| breaker.allow(Instant::now())) {
                continue;
            }
            if let Some(fetched) = self.ask(shield, id).await {
                return Some(fetched);
            }
        }
        None
    }

    async fn ask(&self, shield: &Shield, id: ChunkId) -> Option<Fetched> {
        let request = EdgeRequest::Chunk { id };
        let options = CallOptions::within(DEADLINE);
        let answer = self
            .endpoint
            .call::<_, EdgeResponse>(shield.addr, Role::Edge, &request, Vec::new(), options)
            .await;
        match answer {
            Ok((EdgeResponse::Chunk { hit }, bytes)) if ChunkId::of(&bytes) == id => {
                self.breaker(shield.id, Breaker::succeeded);
                Some(Fetched { bytes, source: Source::Shield(hit) })
            }
            Ok(_) => {
                tracing::warn!(shield = %shield.id, chunk = %id.short(), "a shield sent wrong bytes");
                metrics::counter!("atoll_edge_upstream_corrupt_total").increment(1);
                self.breaker(shield.id, |breaker| breaker.failed(Instant::now()));
                None
            }
            Err(CallError::Refused(error)) if error.fault == Fault::Upstream => {
                self.breaker(shield.id, Breaker::succeeded);
                tracing::debug!(shield = %shield.id, %error, "a shield could not get a chunk");
                None
            }
            Err(error) => {
                tracing::debug!(shield = %shield.id, %error, "a shield did not answer");
                metrics::counter!("atoll_edge_shield_errors_total").increment(1);
                self.breaker(shield.id, |breaker| breaker.failed(Instant::now()));
                None
            }
        }
    }

    fn breaker<R>(&self, id: NodeId, change: impl FnOnce(&mut Breaker) -> R) -> R {
        let mut breakers = self.breakers.lock().unwrap_or_else(PoisonError::into_inner);
        change(breakers.entry(id).or_default())
    }
}

/// The shields in the order in which they are to be asked for a chunk: those of the region, or
/// all when it has none.
fn ranked<'a>(id: &ChunkId, shields: &'a [Shield], region: &str) -> Vec<&'a Shield> {
    let mut near: Vec<&Shield> = shields.iter().filter(|shield| shield.region == region).collect();
    if near.is_empty() {
        near = shields.iter().collect();
    }
    near.sort_by_cached_key(|shield| std::cmp::Reverse(bid(id.as_bytes(), shield.id)));
    near
}

/// A shield's bid for a chunk or a node; the highest wins.
fn bid(what: &[u8], shield: NodeId) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(what);
    hasher.update(&shield.0.to_be_bytes());
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shield(id: u64, region: &str) -> Shield {
        let addr = SocketAddr::from(([127, 0, 0, 1], 1));
        Shield { id: NodeId(id), addr, region: region.to_owned() }
    }

    fn first(chunk: u32, shields: &[Shield]) -> NodeId {
        ranked(&ChunkId::of(&chunk.to_be_bytes()), shields, "eu")[0].id
    }

    #[test]
    fn chunks_spread_and_losing_a_shield_moves_only_its_own() {
        let all: Vec<Shield> = (1..=4).map(|id| shield(id, "eu")).collect();
        let fewer = &all[..3];
        let mut shares = HashMap::new();
        for chunk in 0..4000 {
            let before = first(chunk, &all);
            *shares.entry(before).or_insert(0) += 1;
            if before != NodeId(4) {
                assert_eq!(first(chunk, fewer), before);
            }
        }
        assert!(shares.len() == 4 && shares.values().all(|share| (800..1200).contains(share)));
    }

    #[test]
    fn the_own_region_comes_first_and_any_other_is_better_than_none() {
        let all = [shield(1, "us"), shield(2, "eu"), shield(3, "us")];
        let id = ChunkId::of(b"x");
        let ids = |region| ranked(&id, &all, region).iter().map(|s| s.id.0).collect::<Vec<_>>();
        assert_eq!(ids("eu"), [2]);
        assert_eq!(ids("us").len(), 2);
        assert_eq!(ids("ap").len(), 3);
    }
}
