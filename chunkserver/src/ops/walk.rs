//! Walk: steps down the tree of what this server has that is live, for another server that fills
//! up. What it says is true at the index it answers with, or at a later one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use atoll_net::{Answer, Context, Role};
use atoll_proto::chunk::ChunkResponse;
use atoll_proto::cluster::PgTable;
use atoll_proto::ids::PG_COUNT;
use atoll_proto::tree::{Ask, Found, GroupTree, MIDS};
use atoll_proto::{Code, Epoch, NodeId, PgId, WireError, WireResult, limits};

use super::{check_count, put::check_peer};
use crate::node::{Node, to_wire};
use crate::store::{ChunkStore, StoreError};

pub(super) async fn walk(
    node: &Node,
    context: &Context,
    epoch: Epoch,
    asks: Vec<Ask>,
) -> WireResult<Answer<ChunkResponse>> {
    let role = context.peer.role;
    if role != Role::Chunkserver {
        return Err(WireError::new(Code::Denied, format!("a {role} may not walk here")));
    }
    check_count("questions", asks.len(), limits::WALK_ASKS_MAX)?;
    if let Some(ask) = asks.iter().find(|ask| !exists(ask)) {
        let message = format!("{ask:?} asks for what a chunkserver does not answer");
        return Err(WireError::invalid(message));
    }
    let view = node.view_at(epoch, context.deadline).await?;
    check_peer(&view, &context.peer.name)?;
    let id = node.id;
    let answers = move |store: &dyn ChunkStore| answers(store, &view.table, id, &asks);
    let (index, found) = node.at_the_disk("walk", answers).await?.map_err(to_wire)?;
    // Where nothing changes this node may be behind without knowing; when it is asked again, it
    // should not be.
    node.upkeep.feed_wanted.notify_one();
    Ok(Answer::head(ChunkResponse::Found { index, found }))
}

fn exists(ask: &Ask) -> bool {
    match ask {
        Ask::Tops | Ask::Groups { .. } => false,
        Ask::Mids { pg } | Ask::Ids { pg, .. } => pg.0 < PG_COUNT,
        Ask::Buckets { pg, mid } => pg.0 < PG_COUNT && usize::from(*mid) < MIDS,
    }
}

/// Blocks.
fn answers(
    store: &dyn ChunkStore,
    table: &PgTable,
    node: NodeId,
    asks: &[Ask],
) -> Result<(u64, Vec<Found>), StoreError> {
    // Before anything else: what is read after it is at least as new.
    let index = store.applied()?;
    let mut trees: HashMap<PgId, GroupTree> = HashMap::new();
    let mut ids_left = limits::WALK_IDS_MAX;
    let mut found = Vec::with_capacity(asks.len());
    for ask in asks {
        found.push(match *ask {
            Ask::Mids { pg } | Ask::Buckets { pg, .. } | Ask::Ids { pg, .. }
                if table.readers(pg).all(|reader| reader != node) =>
            {
                let reason = format!("node {node} does not keep group {}", pg.0);
                Found::Unavailable { reason }
            }
            Ask::Mids { pg } => Found::Digests(tree(store, &mut trees, pg)?.mids().to_vec()),
            Ask::Buckets { pg, mid } => {
                Found::Digests(tree(store, &mut trees, pg)?.buckets(mid).to_vec())
            }
            Ask::Ids { pg, bucket } => {
                let ids = store.bucket_ids(pg, bucket)?;
                match ids_left.checked_sub(ids.len()) {
                    Some(left) => {
                        ids_left = left;
                        Found::Ids(ids)
                    }
                    None => Found::Unavailable { reason: "too many ids for one answer".to_owned() },
                }
            }
            Ask::Tops | Ask::Groups { .. } => {
                Found::Unavailable { reason: "not asked of a chunkserver".to_owned() }
            }
        });
    }
    Ok((index, found))
}

fn tree<'a>(
    store: &dyn ChunkStore,
    trees: &'a mut HashMap<PgId, GroupTree>,
    pg: PgId,
) -> Result<&'a GroupTree, StoreError> {
    Ok(match trees.entry(pg) {
        Entry::Occupied(made) => made.into_mut(),
        Entry::Vacant(new) => new.insert(GroupTree::new(&*store.buckets(pg)?)),
    })
}
