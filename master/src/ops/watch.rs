//! Watch: follow the publish log by long polling; for edges also the acknowledgement.

use std::sync::PoisonError;
use std::time::Duration;

use atoll_net::Context;
use atoll_proto::error::WireResult;
use atoll_proto::master::MasterResponse;
use atoll_proto::publish::{PublishEntry, PublishSnapshot, Site, SiteDeploys};
use atoll_proto::{Code, NodeId, Seq, WireError, limits};
use tokio::time::Instant;

use super::change::store_failed;
use crate::auth::Principal;
use crate::server::Master;
use crate::store::rocks::View;
use crate::store::{aliases, deploys, nodes, publish_log, sites};

/// An answer must leave this long before the caller stops waiting.
const MARGIN: Duration = Duration::from_millis(200);
/// How often a waiting watch makes sure that its master still leads.
const CHECK_EVERY: Duration = Duration::from_secs(1);

pub(crate) async fn watch(
    master: &Master,
    context: &Context,
    principal: &Principal,
    after: Seq,
    edge: Option<NodeId>,
    wait_ms: u32,
) -> WireResult<MasterResponse> {
    master.consensus.read().await?;
    if let Some(edge) = edge {
        acknowledge(master, principal, edge, after)?;
    }
    let wait = Duration::from_millis(u64::from(wait_ms)).min(limits::WATCH_WAIT_MAX);
    let until = (Instant::now() + wait).min(context.deadline - MARGIN);
    let mut applied = master.consensus.applied();
    loop {
        applied.borrow_and_update();
        if let Some(answer) = entries(master, after)? {
            return Ok(answer);
        }
        let now = Instant::now();
        if now >= until || master.shutdown.is_triggered() {
            return Ok(MasterResponse::Log { entries: Vec::new(), upto: after });
        }
        tokio::select! {
            changed = applied.wait_for(|applied| applied.publish_seq > after.0) => {
                if changed.is_err() {
                    return Err(WireError::unavailable("the master is stopping"));
                }
            }
            () = tokio::time::sleep_until(until.min(now + CHECK_EVERY)) => {
                master.consensus.check_leads()?;
            }
            () = master.shutdown.wait() => {}
        }
    }
}

/// The edge has applied everything up to `after`.
fn acknowledge(master: &Master, principal: &Principal, edge: NodeId, after: Seq) -> WireResult<()> {
    let state = master.consensus.state();
    let info = nodes::get(&*state, edge).map_err(store_failed)?;
    let Some(info) = info else {
        let message = format!("edge {edge} is not registered: register first");
        return Err(WireError::not_found(message));
    };
    if !principal.is_node(&info) {
        let message = format!("node {edge} is {:?}, which only it may speak for", info.name);
        return Err(WireError::new(Code::Denied, message));
    }
    // Nobody can have applied what was never published.
    let last = publish_log::last(&*state).map_err(store_failed)?;
    if after <= last && master.liveness().acknowledged(edge, after, Instant::now()) {
        master.acknowledged.send_modify(|count| *count = count.wrapping_add(1));
    }
    Ok(())
}

/// What was last found in the log: after a publish many edges ask for the same.
#[derive(Debug, Default)]
pub(crate) struct Found {
    after: Seq,
    /// Where the log ended.
    last: Seq,
    entries: Vec<PublishEntry>,
    upto: Seq,
}

/// What there is after `after`; `None` when there is nothing.
fn entries(master: &Master, after: Seq) -> WireResult<Option<MasterResponse>> {
    let state = master.consensus.state();
    let lock = || master.found.lock().unwrap_or_else(PoisonError::into_inner);
    let last = publish_log::last(&*state).map_err(store_failed)?;
    if after == last {
        return Ok(None);
    }
    {
        // What is in the log between two entries never changes.
        let found = lock();
        if found.after == after && found.last == last && last > Seq(0) {
            let (entries, upto) = (found.entries.clone(), found.upto);
            return Ok(Some(MasterResponse::Log { entries, upto }));
        }
    }
    let (answer, last) = read(&state.view(), after)?;
    if let Some(MasterResponse::Log { entries, upto }) = &answer {
        *lock() = Found { after, last, entries: entries.clone(), upto: *upto };
    }
    Ok(answer)
}

/// What there is after `after`, and where the log ends.
fn read(view: &View<'_>, after: Seq) -> WireResult<(Option<MasterResponse>, Seq)> {
    let last = publish_log::last(view).map_err(store_failed)?;
    if after == last {
        return Ok((None, last));
    }
    let floor = publish_log::floor(view).map_err(store_failed)?;
    // Behind the retention, or from a past that is not ours.
    if after < floor || after > last {
        return Ok((Some(snapshot(view, last)?), last));
    }
    let limit = limits::WATCH_ENTRIES_MAX;
    let (entries, end) = publish_log::after(view, after, limit).map_err(store_failed)?;
    if after == Seq(0) && !end {
        return Ok((Some(snapshot(view, last)?), last));
    }
    let upto = entries.last().map_or(last, |entry| entry.seq);
    Ok((Some(MasterResponse::Log { entries, upto }), last))
}

fn snapshot(view: &View<'_>, seq: Seq) -> WireResult<MasterResponse> {
    let sites = sites::all(view).map_err(store_failed)?;
    let aliases = aliases::all(view, None).map_err(store_failed)?;
    let aliases = aliases.into_iter().map(|record| record.alias).collect();
    let deploys = named_deploys(view, &sites)?;
    Ok(MasterResponse::Snapshot(Box::new(PublishSnapshot { seq, sites, aliases, deploys })))
}

/// The latest deploys of each site; fewer of each when there are many sites.
fn named_deploys(view: &View<'_>, sites: &[Site]) -> WireResult<Vec<SiteDeploys>> {
    let each = limits::SNAPSHOT_DEPLOYS_MAX / sites.len().max(1);
    let each = each.min(limits::NAMED_DEPLOYS_MAX);
    let of = |site: &Site| {
        let mut deploys = deploys::ids(view, &site.name, None, each).map_err(store_failed)?;
        deploys.reverse();
        Ok(SiteDeploys { site: site.name.clone(), deploys })
    };
    sites.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::ChunkId;
    use atoll_proto::publish::Deploy;

    use super::*;
    use crate::store::Transaction;
    use crate::store::testing::TestStore;

    #[test]
    fn a_snapshot_names_the_latest_deploys_of_each_site() {
        let store = TestStore::new();
        let site = |name: &str| Site {
            name: name.parse().unwrap(),
            domains: vec![],
            created_ms: 0,
            settings: Default::default(),
        };
        let id = |seq: u64| ChunkId::of(&seq.to_be_bytes());
        let mut tx = Transaction::new(&store.rocks);
        for seq in [5, 3, 9] {
            let (site, message) = ("blog".parse().unwrap(), String::new());
            let (id, seq) = (id(seq), Seq(seq));
            let deploy = Deploy { id, site, created_ms: 0, message, files: 0, bytes: 0, seq };
            deploys::put(&mut tx, &deploy).unwrap();
        }
        tx.commit().unwrap();
        let view = store.rocks.view();
        let found = named_deploys(&view, &[site("blog"), site("shop")]).unwrap();
        let blog =
            SiteDeploys { site: "blog".parse().unwrap(), deploys: vec![id(3), id(5), id(9)] };
        let shop = SiteDeploys { site: "shop".parse().unwrap(), deploys: vec![] };
        assert_eq!(found, [blog, shop]);
        // Many sites share the room there is.
        let many = vec![site("blog"); limits::SNAPSHOT_DEPLOYS_MAX / 2];
        let found = named_deploys(&view, &many).unwrap();
        assert!(found.iter().all(|of| of.deploys == [id(5), id(9)]));
    }
}
