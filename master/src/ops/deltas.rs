//! Deltas: a chunkserver follows by long polling which chunks of its groups became live and which
//! were collected. And the retention of that feed.

use std::sync::Arc;
use std::time::Duration;

use atoll_net::Context;
use atoll_proto::cluster::PgTable;
use atoll_proto::error::WireResult;
use atoll_proto::master::{Delta, MasterResponse};
use atoll_proto::{Code, NodeId, WireError, limits};
use tokio::time::Instant;

use super::change::store_failed;
use crate::auth::Principal;
use crate::server::Master;
use crate::store::{Read, StoreError, Transaction, deltas, meta, nodes};

/// An answer must leave this long before the caller stops waiting.
const MARGIN: Duration = Duration::from_millis(200);
/// How often a waiting feed makes sure that its master still leads.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// Deltas of all groups looked through for one answer.
const SCANNED_MAX: usize = 200_000;
/// Deltas dropped by one log entry, about.
const EXPIRED_MAX: usize = 16_384;

/// A stretch of the feed.
struct Stretch {
    deltas: Vec<Delta>,
    /// Everything of the asker's groups up to this log index is in `deltas`.
    upto: u64,
    gap: bool,
}

pub(crate) async fn deltas(
    master: &Master,
    context: &Context,
    principal: &Principal,
    node: NodeId,
    after: u64,
    wait_ms: u32,
) -> WireResult<MasterResponse> {
    check_own(master, principal, node)?;
    let wait = Duration::from_millis(u64::from(wait_ms)).min(limits::WATCH_WAIT_MAX);
    let until = (Instant::now() + wait).min(context.deadline - MARGIN);
    let mut applied = master.consensus.applied();
    let mut from = after;
    loop {
        applied.borrow_and_update();
        let Stretch { deltas, upto, gap } = look(master, node, from).await?;
        let now = Instant::now();
        if !deltas.is_empty() || gap || now >= until || master.shutdown.is_triggered() {
            return Ok(MasterResponse::Deltas { deltas, upto, gap });
        }
        from = upto;
        loop {
            let now = Instant::now();
            let news = tokio::select! {
                changed = applied.wait_for(|applied| applied.delta_last > from) => {
                    if changed.is_err() {
                        return Err(WireError::unavailable("the master is stopping"));
                    }
                    true
                }
                () = tokio::time::sleep_until(until.min(now + CHECK_EVERY)) => {
                    master.consensus.check_leads()?;
                    Instant::now() >= until
                }
                () = master.shutdown.wait() => true,
            };
            if news {
                break;
            }
        }
    }
}

/// Refuses a node that asks in another's name.
pub(super) fn check_own(master: &Master, principal: &Principal, node: NodeId) -> WireResult<()> {
    let info = nodes::get(&*master.consensus.state(), node).map_err(store_failed)?;
    let Some(info) = info else {
        let message = format!("node {node} is not registered: register first");
        return Err(WireError::not_found(message));
    };
    if !principal.is_node(&info) {
        let message = format!("node {node} is {:?}, which only it may speak for", info.name);
        return Err(WireError::new(Code::Denied, message));
    }
    Ok(())
}

/// What there is for a node after a log index. The state is that of committed entries, so it may
/// be behind but never wrong.
async fn look(master: &Master, node: NodeId, after: u64) -> WireResult<Stretch> {
    let state = master.consensus.state();
    let table = master.table()?;
    let look = move || stretch(&state.view(), &table, node, after);
    let found = atoll_net::task::spawn_blocking("deltas", look)
        .await
        .map_err(|error| WireError::internal(error.to_string()))?;
    found.map_err(store_failed)
}

fn stretch(
    read: &impl Read,
    table: &Arc<PgTable>,
    node: NodeId,
    after: u64,
) -> Result<Stretch, StoreError> {
    let applied = meta::applied(read)?.map_or(0, |log_id| log_id.index);
    if after < deltas::floor(read)? {
        return Ok(Stretch { deltas: Vec::new(), upto: applied, gap: true });
    }
    let (mut found, mut scanned, mut last, mut cut) = (Vec::new(), 0, after, false);
    deltas::after(read, after, &mut |delta| {
        // All of one log index are in one answer.
        if delta.index != last && (found.len() >= limits::DELTAS_MAX || scanned >= SCANNED_MAX) {
            cut = true;
            return false;
        }
        last = delta.index;
        scanned += 1;
        let pg = delta.id.pg();
        // Old members are still asked what is live; they need not fetch what is new.
        let collected_there = !delta.live && table.leaving(pg).contains(&node);
        if collected_there || table.of(pg).contains(&node) {
            found.push(delta);
        }
        true
    })?;
    // A leader that is behind the asker has nothing to tell it yet.
    let upto = if cut { last } else { applied.max(after) };
    Ok(Stretch { deltas: found, upto, gap: false })
}

/// Whether there are more deltas than are kept.
pub(crate) fn too_many(read: &impl Read) -> Result<bool, StoreError> {
    Ok(deltas::count(read)? > limits::DELTAS_KEPT)
}

/// Drops some of the oldest deltas beyond the retention.
pub(super) fn expire(tx: &mut Transaction<'_>) -> Result<(), StoreError> {
    deltas::expire(tx, limits::DELTAS_KEPT, EXPIRED_MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::master::ObjectKind;
    use atoll_proto::{ChunkId, PgId};

    use super::*;
    use crate::operation::Now;
    use crate::store::objects;
    use crate::store::testing::TestStore;

    fn table(pgs: &[u16]) -> Arc<PgTable> {
        let mut table = PgTable::empty();
        for pg in pgs {
            table.members[usize::from(*pg)] = vec![NodeId(1)];
        }
        Arc::new(table)
    }

    fn chunk(pg: u16, n: u32) -> ChunkId {
        let mut id = ChunkId::of(&n.to_be_bytes());
        id.0[..2].copy_from_slice(&(pg << 4).to_be_bytes());
        assert_eq!(id.pg(), PgId(pg));
        id
    }

    #[test]
    fn a_stretch_has_the_groups_of_the_node_and_never_cuts_an_entry() {
        let store = TestStore::new();
        let per_entry = 10_000;
        for index in 1..=3u32 {
            let mut tx = Transaction::new(&store.rocks);
            let now = Now { index: u64::from(index), at_ns: 0 };
            for n in 0..per_entry {
                let id = chunk((n % 2) as u16, index * per_entry + n);
                objects::add_ref(&mut tx, now, &id, 1, ObjectKind::Data).unwrap();
            }
            tx.commit().unwrap();
        }
        let both = table(&[0, 1]);
        let first = stretch(&store.rocks, &both, NodeId(1), 0).unwrap();
        assert_eq!((first.deltas.len(), first.upto, first.gap), (20_000, 2, false));
        let rest = stretch(&store.rocks, &both, NodeId(1), first.upto).unwrap();
        assert_eq!(rest.deltas.len(), 10_000);
        let one = stretch(&store.rocks, &table(&[1]), NodeId(1), 0).unwrap();
        assert_eq!(one.deltas.len(), 15_000);
        assert!(one.deltas.iter().all(|delta| delta.live && delta.id.pg() == PgId(1)));
        let none = stretch(&store.rocks, &both, NodeId(2), 0).unwrap();
        assert!(none.deltas.is_empty() && !none.gap);
        // Behind the retention.
        let mut tx = Transaction::new(&store.rocks);
        deltas::expire(&mut tx, 10_000, 1).unwrap();
        tx.commit().unwrap();
        assert!(stretch(&store.rocks, &both, NodeId(1), 0).unwrap().gap);
        assert!(!stretch(&store.rocks, &both, NodeId(1), 1).unwrap().gap);
        // Ahead of this master.
        assert_eq!(stretch(&store.rocks, &both, NodeId(1), 99).unwrap().upto, 99);
    }
}
