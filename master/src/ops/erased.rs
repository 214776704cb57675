//! Erased, and who has carried it out: the list of chunks that were taken down, which chunkservers
//! and edges follow by long polling. A chunkserver acknowledges by asking for what comes next; that
//! is kept in the leader's memory only.

use std::time::Duration;

use atoll_net::Context;
use atoll_proto::cluster::NodeKind;
use atoll_proto::erase::ErasedBy;
use atoll_proto::error::WireResult;
use atoll_proto::master::MasterResponse;
use atoll_proto::{ChunkId, Code, NodeId, WireError, limits};
use tokio::time::Instant;

use super::change::store_failed;
use super::deltas::check_own;
use crate::auth::Principal;
use crate::server::Master;
use crate::store::{Read, StoreError, erased, nodes};

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
    let news = upto > after;
    Ok((MasterResponse::Erased { erased, upto, more: !end }, news))
}

pub(crate) async fn erased_by(master: &Master, index: u64) -> WireResult<MasterResponse> {
    master.consensus.read().await?;
    let mut by = ErasedBy::default();
    for info in nodes::all(&*master.consensus.state()).map_err(store_failed)? {
        if info.kind != NodeKind::Chunkserver {
            continue;
        }
        let done = master.liveness().erased_upto(info.id).is_some_and(|upto| upto >= index);
        if done { by.done.push(info.name) } else { by.waiting.push(info.name) }
    }
    Ok(MasterResponse::ErasedBy(by))
}

/// The refusal of who wants to refer to an erased chunk.
pub(crate) fn refusal(id: &ChunkId, what: &str) -> WireError {
    let message = format!(
        "{what}: chunk {id} was erased (`atoll invalidate --erase`), so it cannot be stored again; \
         leave the file out, or allow it with `atoll invalidate SITE --path PATH --unerase`"
    );
    WireError::new(Code::Erased, message)
}
