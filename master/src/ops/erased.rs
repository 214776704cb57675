//! Erased, and who has carried it out: the list of chunks that were taken down, which chunkservers
//! and edges follow by long polling. They acknowledge by asking for what comes next; that is kept in
//! the leader's memory only.

use std::time::Duration;

use atoll_net::Context;
use atoll_proto::cluster::NodeKind;
use atoll_proto::erase::{ErasedBy, ErasedPart};
use atoll_proto::error::WireResult;
use atoll_proto::master::{MasterResponse, ObjectKind};
use atoll_proto::{ChunkId, Code, NodeId, SiteName, WireError, limits};
use tokio::time::Instant;

use super::change::store_failed;
use super::deltas::check_own;
use super::namespace::content::MISSING_MAX;
use crate::auth::Principal;
use crate::operation::{Apply, Failure};
use crate::server::Master;
use crate::store::below::Lost;
use crate::store::{
    Read, StoreError, below, erased, erasures, groups, nodes, objects, unreferenced,
};

/// An answer must leave this long before the caller stops waiting.
const MARGIN: Duration = Duration::from_millis(200);
/// How often a waiting question makes sure that its master still leads.
const CHECK_EVERY: Duration = Duration::from_secs(1);

pub(crate) async fn erased(
    master: &Master,
    context: &Context,
    principal: &Principal,
    after: u64,
    node: Option<NodeId>,
    wait_ms: u32,
) -> WireResult<MasterResponse> {
    master.consensus.read().await?;
    if let Some(node) = node {
        check_own(master, principal, node)?;
        master.liveness().erased(node, after, Instant::now());
    }
    let wait = Duration::from_millis(u64::from(wait_ms)).min(limits::WATCH_WAIT_MAX);
    let until = (Instant::now() + wait).min(context.deadline - MARGIN);
    let mut applied = master.consensus.applied();
    loop {
        let published = applied.borrow_and_update().publish_seq;
        let state = master.consensus.state();
        let look = move || look(&state.view(), after);
        let looked = atoll_net::task::spawn_blocking("erased", look)
            .await
            .map_err(|error| WireError::internal(error.to_string()))?;
        let (answer, news) = looked.map_err(store_failed)?;
        let now = Instant::now();
        if news || now >= until || master.shutdown.is_triggered() {
            return Ok(answer);
        }
        loop {
            let now = Instant::now();
            tokio::select! {
                // Every change of the list is an entry of the publish log too.
                changed = applied.wait_for(|applied| applied.publish_seq > published) => {
                    if changed.is_err() {
                        return Err(WireError::unavailable("the master is stopping"));
                    }
                    break;
                }
                () = tokio::time::sleep_until(until.min(now + CHECK_EVERY)) => {
                    master.consensus.check_leads()?;
                    if Instant::now() >= until {
                        break;
                    }
                }
                () = master.shutdown.wait() => break,
            }
        }
    }
}

/// What there is after a log index, and whether that is anything.
fn look(read: &impl Read, after: u64) -> Result<(MasterResponse, bool), StoreError> {
    let (erased, end) = erased::after(read, after, limits::ERASED_PART)?;
    let last = erased.last().map_or(after, |erased| erased.index);
    let upto = if end { erased::last(read)?.max(last) } else { last };
    let began = erased::began(read)?;
    // Who comes from a history that is lost has to be told that at once.
    let news = upto > after || (after > 0 && after < began);
    let part = ErasedPart { began, erased, upto, more: !end, epoch: groups::epoch(read)? };
    Ok((MasterResponse::Erased(part), news))
}

pub(crate) async fn erased_by(master: &Master, index: u64) -> WireResult<MasterResponse> {
    master.consensus.read().await?;
    let mut by = ErasedBy::default();
    for info in nodes::all(&*master.consensus.state()).map_err(store_failed)? {
        let done = master.liveness().erased_upto(info.id).is_some_and(|upto| upto >= index);
        let names = match (info.kind, done) {
            (NodeKind::Chunkserver, true) => &mut by.done,
            (NodeKind::Chunkserver, false) => &mut by.waiting,
            (NodeKind::Edge, true) => &mut by.caches_done,
            (NodeKind::Edge, false) => &mut by.caches_waiting,
        };
        names.push(info.name);
    }
    Ok(MasterResponse::ErasedBy(by))
}

/// What an erasure for a site was about.
pub(crate) async fn erasures(
    master: &Master,
    site: SiteName,
    after: Option<ChunkId>,
) -> WireResult<MasterResponse> {
    master.consensus.read().await?;
    let state = master.consensus.state();
    let look = move || erasures::after(&state.view(), &site, after.as_ref());
    let found = atoll_net::task::spawn_blocking("erasures", look)
        .await
        .map_err(|error| WireError::internal(error.to_string()))?;
    Ok(MasterResponse::Erasure(found.map_err(store_failed)?.map(Box::new)))
}

/// Pages and lists that nothing refers to: what is below them counts all the same.
pub(crate) async fn unreferenced(
    master: &Master,
    after: Option<(u64, ChunkId)>,
) -> WireResult<MasterResponse> {
    master.consensus.read().await?;
    let state = master.consensus.state();
    let look = move || -> Result<MasterResponse, StoreError> {
        let view = state.view();
        let some = unreferenced::older(&view, u64::MAX, after.as_ref(), limits::UNREFERENCED_PART)?;
        let next = some.last().copied().filter(|_| some.len() == limits::UNREFERENCED_PART);
        let mut pages = Vec::new();
        for (_, id) in some {
            let kind = objects::get(&view, &id)?.map(|object| object.kind);
            pages.extend(kind.filter(|kind| *kind != ObjectKind::Data).map(|kind| (id, kind)));
        }
        Ok(MasterResponse::Unreferenced { pages, next })
    };
    let found = atoll_net::task::spawn_blocking("unreferenced", look)
        .await
        .map_err(|error| WireError::internal(error.to_string()))?;
    found.map_err(store_failed)
}

/// Refuses who wants to refer to a page or list below which something is erased; what has only to be
/// uploaded again is missing.
pub(crate) fn check_below(
    read: &impl Read,
    id: &ChunkId,
    what: impl FnOnce() -> String,
) -> Apply<()> {
    if !below::has(read, id)? {
        return Ok(());
    }
    let lost = below::lost(read, id, MISSING_MAX)?;
    match lost {
        Lost { erased: Some(erased), .. } => Err(refusal(&erased, &what()).into()),
        Lost { absent, .. } if !absent.is_empty() => Err(Failure::Missing(absent)),
        Lost { .. } => Ok(()),
    }
}

/// The refusal of who wants to refer to an erased chunk.
pub(crate) fn refusal(id: &ChunkId, what: &str) -> WireError {
    let message = format!(
        "{what}: chunk {id} was erased (`atoll invalidate --erase`), so it cannot be stored again; \
         leave the file out, or allow it with `atoll invalidate SITE --path PATH --unerase`"
    );
    WireError::new(Code::Erased, message)
}
