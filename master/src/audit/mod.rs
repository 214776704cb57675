//! The auditor: counts all references again and corrects the object table.
//!
//! A count that is too low could lose data, so it is raised at once. One that is too high only wastes
//! space, so it is lowered only after two passes over different moments agree, only when every page
//! could be read, and never for more than a small share of all objects: then something else is
//! wrong, and it stops. It runs every month, when miscounts were noticed, and when an administrator
//! asks. Only the leader runs it.

mod pass;
mod tally;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atoll_proto::error::WireResult;
use atoll_proto::master::{AuditView, ObjectKind};
use atoll_proto::{ChunkId, Code, WireError, limits};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::operation::{Admission, AdmittedPage, Child, Covered, Fix, Operation};
use crate::ops::audit::FIXES_MAX;
use crate::ops::change::store_failed;
use crate::ops::{admit, upkeep};
use crate::raft::TASK_DEADLINE;
use crate::server::{Master, now_ms};
use crate::store::counters::{self, Counter};
use crate::store::{meta, objects};
use pass::Found;

/// Where its files are, within the data directory.
pub(crate) const DIRECTORY: &str = "audit";
/// How often it is seen whether a recount is due.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Longest pause after a recount that failed.
const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// Passes of one recount: each raises what the one before made visible.
const PASSES_MAX: u32 = 12;
/// Pages admitted below one page that was not.
const ADMITTED_MAX: usize = 10_000;
/// Milliseconds in a day.
const DAY_MS: u64 = 24 * 3600 * 1000;

/// The recount of one master.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    view: Mutex<AuditView>,
    asked: Notify,
}

impl Audit {
    /// Somebody wants a recount now.
    pub(crate) fn ask(&self) {
        // Shown as running at once, so that who asked need not guess whether it has begun.
        let mut view = self.lock();
        if !view.running {
            view.running = true;
            self.asked.notify_one();
        }
    }

    /// How it goes.
    pub(crate) fn view(&self) -> AuditView {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, AuditView> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs recounts when they are due or asked for.
pub(crate) async fn run(master: Arc<Master>) {
    // After a failure it is not begun again by itself for a while, longer each time.
    let (mut pause, mut not_before) = (LOOK_EVERY, Instant::now());
    loop {
        let asked = tokio::select! {
            () = master.audit.asked.notified() => true,
            () = tokio::time::sleep(LOOK_EVERY) => false,
            () = master.shutdown.wait() => return,
        };
        let leads = master.consensus.leads();
        let rested = Instant::now() >= not_before;
        let due = leads && rested && due(&master).unwrap_or(false);
        if !asked && !due {
            continue;
        }
        let ended = master.audit.view().ended;
        *master.audit.lock() = AuditView { running: true, ended, ..AuditView::default() };
        let outcome = recount(&master).await;
        let mut view = master.audit.lock();
        view.running = false;
        view.ended += 1;
        if let Err(error) = outcome {
            tracing::warn!(%error, "the recount of references is not complete");
            view.failure = Some(error.to_string());
            not_before = Instant::now() + pause;
            pause = (pause * 2).min(PAUSE_MAX);
        } else {
            pause = LOOK_EVERY;
            tracing::info!(
                objects = view.objects,
                raised = view.raised,
                created = view.created,
                lowered = view.lowered,
                "counted all references"
            );
        }
    }
}

/// Whether miscounts were noticed, or the last complete recount is long ago.
fn due(master: &Master) -> WireResult<bool> {
    let state = master.consensus.state();
    if counters::get(&*state, Counter::Miscounts).map_err(store_failed)? > 0 {
        return Ok(true);
    }
    let audited = meta::audited(&*state).map_err(store_failed)?.unwrap_or_default();
    let age_ms = now_ms().saturating_sub(audited.at_ms);
    let days = master.settings.audit_days;
    Ok(days > 0 && age_ms >= days.saturating_mul(DAY_MS))
}

/// Counts and corrects until nothing is left to correct.
async fn recount(master: &Master) -> WireResult<()> {
    let mut before: Option<BTreeMap<ChunkId, Fix>> = None;
    for _ in 0..PASSES_MAX {
        let mut found = pass::run(master).await?;
        {
            let mut view = master.audit.lock();
            view.passes += 1;
            view.objects = found.objects;
            view.pages = found.pages;
            view.pages_unreadable = found.unreadable;
        }
        if !found.low.is_empty() || !found.unadmitted.is_empty() {
            raise(master, &found).await?;
            before = None;
            continue;
        }
        if found.unreadable > 0 {
            let message = format!(
                "{} pages cannot be read, so counts were only raised, not lowered: see `atoll fsck`",
                found.unreadable
            );
            return Err(WireError::new(Code::Unavailable, message));
        }
        let high = std::mem::take(&mut found.high);
        if high.is_empty() {
            return complete(master, &found).await;
        }
        let Some(before) = before.replace(high.clone()) else { continue };
        let agreed: Vec<Fix> = high
            .into_values()
            .filter(|fix| before.get(&fix.id).is_some_and(|before| excess(before) == excess(fix)))
            .collect();
        check_share(agreed.len() as u64, found.objects, found.more)?;
        fix(master, found.index, &agreed).await?;
        master.audit.lock().lowered += agreed.len() as u64;
        return complete(master, &found).await;
    }
    Err(WireError::unavailable("counts still differ after many passes: run it again"))
}

/// How many references too many the table has.
fn excess(fix: &Fix) -> u64 {
    fix.seen.map_or(0, |seen| seen.refs.saturating_sub(fix.refs))
}

/// Refuses to lower a large share of all counts.
fn check_share(lower: u64, objects: u64, more: bool) -> WireResult<()> {
    let share = objects.saturating_mul(limits::DROP_PERCENT_MAX) / 100;
    if !more && (lower <= limits::DROP_CHUNKS_MAX || lower <= share) {
        return Ok(());
    }
    let message = format!(
        "{lower} of {objects} counts are too high, which is more than a few mistakes explain: \
         nothing was lowered"
    );
    Err(WireError::new(Code::Limit, message))
}

/// Raises what is too low, and admits what should be admitted.
async fn raise(master: &Master, found: &Found) -> WireResult<()> {
    fix(master, found.index, &found.low).await?;
    {
        let created = found.low.iter().filter(|fix| fix.seen.is_none()).count() as u64;
        let mut view = master.audit.lock();
        view.created += created;
        view.raised += found.low.len() as u64 - created;
    }
    let mut outcome = Ok(());
    for (id, kind) in &found.unadmitted {
        // One that cannot be read does not keep the others from being admitted.
        outcome = outcome.and(admit_below(master, *id, *kind).await);
    }
    outcome
}

async fn fix(master: &Master, index: u64, fixes: &[Fix]) -> WireResult<()> {
    for part in fixes.chunks(FIXES_MAX) {
        let operation = Operation::FixRefs { index, fixes: part.to_vec(), complete: None };
        master.consensus.propose(&operation, Instant::now() + TASK_DEADLINE).await?;
    }
    Ok(())
}

async fn complete(master: &Master, found: &Found) -> WireResult<()> {
    let complete = Some(found.miscounts);
    let operation = Operation::FixRefs { index: found.index, fixes: Vec::new(), complete };
    master.consensus.propose(&operation, Instant::now() + TASK_DEADLINE).await?;
    let state = master.consensus.state();
    if let Some(reason) = upkeep::held(&*state).map_err(store_failed)? {
        tracing::info!(reason, "collection still waits");
    }
    Ok(())
}

/// Admits a page or list that something refers to, and what is below it and not admitted either.
async fn admit_below(master: &Master, id: ChunkId, kind: ObjectKind) -> WireResult<()> {
    let mut level = vec![(id, kind)];
    let mut seen: HashSet<ChunkId> = HashSet::from([id]);
    let mut pages: Vec<AdmittedPage> = Vec::new();
    while !level.is_empty() {
        let ids: Vec<ChunkId> = level.iter().map(|(id, _)| *id).collect();
        let bytes = master.read_pages(&ids).await;
        let mut below = Vec::new();
        for (id, kind) in std::mem::take(&mut level) {
            let Some(bytes) = bytes.get(&id) else {
                let message = format!("page {id} should be admitted but cannot be read");
                return Err(WireError::unavailable(message));
            };
            let children = admit::children(id, kind, bytes)?;
            let state = master.consensus.state();
            for child in children.iter().filter(|child| child.kind != ObjectKind::Data) {
                let known = objects::get(&*state, &child.id).map_err(store_failed)?;
                let admitted = known.is_some_and(|object| object.kind == child.kind);
                if !admitted && seen.insert(child.id) {
                    below.push((child.id, child.kind));
                }
            }
            let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            pages.push(AdmittedPage { id, len, kind, children });
        }
        if pages.len() + below.len() > ADMITTED_MAX {
            return Err(WireError::unavailable("very many pages are not admitted: deploy again"));
        }
        level = below;
    }
    pages.reverse();
    for page in pages {
        let covered = cover(&page);
        let part = Operation::AdmitPart(Admission { pages: vec![page], covered });
        master.consensus.propose(&part, Instant::now() + TASK_DEADLINE).await?;
    }
    Ok(())
}

/// The page and its children, as if receipts covered them: what is referred to must be kept, and
/// what is really missing shows as lacking.
fn cover(page: &AdmittedPage) -> Vec<Covered> {
    let children = page.children.iter().map(|child: &Child| (child.id, child.len));
    let all: HashMap<ChunkId, u32> = children.chain([(page.id, page.len)]).collect();
    all.into_iter().map(|(id, len)| Covered { id, len }).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn only_a_small_share_is_lowered() {
        assert!(check_share(64, 64, false).is_ok());
        assert!(check_share(65, 6400, false).is_err());
        assert!(check_share(65, 6500, false).is_ok());
        assert!(check_share(1, 1_000_000, true).is_err());
    }
}
