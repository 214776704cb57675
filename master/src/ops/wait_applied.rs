//! WaitApplied and WaitPublished: wait until no edge answers with what was before an entry of the
//! publish log. An edge has applied it, or its lease (with what the site's policy lets it serve
//! beyond) has surely ended: then it is named as down.

use std::sync::PoisonError;
use std::time::Duration;

use atoll_net::Context;
use atoll_proto::error::WireResult;
use atoll_proto::lease::looser;
use atoll_proto::master::MasterResponse;
use atoll_proto::site::Policy;
use atoll_proto::{Seq, SiteName, WireError};
use tokio::time::Instant;

use super::change::store_failed;
use crate::clock::boot_ns;
use crate::liveness::Progress;
use crate::policies::sites_of;
use crate::server::Master;
use crate::store::publish_log;

/// An answer must leave this long before the caller stops waiting.
const MARGIN: Duration = Duration::from_millis(200);
/// How often leases that have ended are noticed while nothing else happens.
const CHECK_EVERY: Duration = Duration::from_millis(250);

pub(crate) async fn wait_applied(
    master: &Master,
    context: &Context,
    seq: Seq,
    wait_ms: u32,
) -> WireResult<MasterResponse> {
    let Progress { acked, waiting, down, .. } = wait(master, context, seq, wait_ms).await?;
    Ok(MasterResponse::Applied { acked, waiting, down })
}

pub(crate) async fn wait_published(
    master: &Master,
    context: &Context,
    seq: Seq,
    wait_ms: u32,
) -> WireResult<MasterResponse> {
    let Progress { acked, waiting, down, left, .. } = wait(master, context, seq, wait_ms).await?;
    let left_ms = left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
    Ok(MasterResponse::Confirmed { acked, waiting, down, left_ms })
}

async fn wait(master: &Master, context: &Context, seq: Seq, wait_ms: u32) -> WireResult<Progress> {
    let leadership = master.consensus.leadership();
    // From here on everything that was granted without the entry is known, or was granted by an
    // earlier leader (`atoll_proto::lease`).
    master.consensus.read().await?;
    if seq > publish_log::last(&*master.consensus.state()).map_err(store_failed)? {
        return Err(WireError::invalid(format!("there is no entry {seq} in the publish log yet")));
    }
    let sites = sites_of(&*master.consensus.state(), seq).map_err(store_failed)?;
    let wait = Duration::from_millis(u64::from(wait_ms));
    let until = (Instant::now() + wait).min(context.deadline - MARGIN);
    let mut acknowledged = master.acknowledged.subscribe();
    loop {
        acknowledged.borrow_and_update();
        let now = Instant::now();
        let mut progress = progress(master, leadership, &sites, seq)?;
        if progress.waiting.is_empty() || now >= until || master.shutdown.is_triggered() {
            return Ok(progress);
        }
        // A lease that is about to end is noticed when it does.
        let left = progress.left.unwrap_or(CHECK_EVERY).clamp(MARGIN / 20, CHECK_EVERY);
        let look = until.min(now + left);
        // Edges confirm one by one, and only the last of them ends the wait: until then nothing
        // but who is missing is looked at.
        loop {
            tokio::select! {
                // The sender lives as long as the master.
                _ = acknowledged.changed() => {}
                () = tokio::time::sleep_until(look) => {
                    master.consensus.check_leads()?;
                    break;
                }
                () = master.shutdown.wait() => break,
            }
            acknowledged.borrow_and_update();
            let liveness = master.liveness();
            let lacking = &mut progress.lacking;
            if liveness.leadership() != leadership || !liveness.any_lacks(lacking, seq) {
                break;
            }
        }
    }
}

fn progress(
    master: &Master,
    leadership: Option<u64>,
    sites: &[(SiteName, Policy)],
    seq: Seq,
) -> WireResult<Progress> {
    let state = master.consensus.state();
    let roster = master.roster()?;
    let mut policies = master.policies.lock().unwrap_or_else(PoisonError::into_inner);
    policies.read(&*state).map_err(store_failed)?;
    let loosest = |acked| {
        let each = sites.iter().map(|(site, current)| policies.loosest(*current, site, acked));
        each.fold(Policy::Strict, looser)
    };
    let mut liveness = master.liveness();
    // What was confirmed under one leadership says nothing of what another has granted.
    if leadership.is_none() || liveness.leadership() != leadership {
        return Err(WireError::unavailable("the leader has just changed: ask again"));
    }
    Ok(liveness.progress(roster.all(), seq, loosest, boot_ns()))
}
