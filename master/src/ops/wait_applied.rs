//! WaitApplied: wait until every live edge has applied an entry of the publish log.
//!
//! Edges that are down are named, not waited for. (Leases, which make sure that such an edge
//! serves nothing old either, are not built yet.)

use std::time::Duration;

use atoll_net::Context;
use atoll_proto::Seq;
use atoll_proto::error::WireResult;
use atoll_proto::master::MasterResponse;
use tokio::time::Instant;

use super::change::store_failed;
use crate::server::Master;
use crate::store::nodes;

/// An answer must leave this long before the caller stops waiting.
const MARGIN: Duration = Duration::from_millis(200);
/// How often lost edges are noticed while nothing else happens.
const CHECK_EVERY: Duration = Duration::from_millis(250);

pub(crate) async fn wait_applied(
    master: &Master,
    context: &Context,
    seq: Seq,
    wait_ms: u32,
) -> WireResult<MasterResponse> {
    master.consensus.read().await?;
    let wait = Duration::from_millis(u64::from(wait_ms));
    let until = (Instant::now() + wait).min(context.deadline - MARGIN);
    let mut acknowledged = master.acknowledged.subscribe();
    loop {
        acknowledged.borrow_and_update();
        let nodes = nodes::all(&*master.consensus.state()).map_err(store_failed)?;
        let now = Instant::now();
        let progress = master.liveness().progress(&nodes, seq, now);
        let done = progress.waiting.is_empty() || now >= until || master.shutdown.is_triggered();
        if done {
            let crate::liveness::Progress { acked, waiting, down } = progress;
            return Ok(MasterResponse::Applied { acked, waiting, down });
        }
        tokio::select! {
            // The sender lives as long as the master.
            _ = acknowledged.changed() => {}
            () = tokio::time::sleep_until(until.min(now + CHECK_EVERY)) => {
                master.consensus.check_leads()?;
            }
            () = master.shutdown.wait() => {}
        }
    }
}
