//! Following the publish log: ask, apply, and acknowledge by asking for what comes next.
//!
//! One task per edge. The next request is the acknowledgement of everything before, so it is sent
//! at once; nothing may be acknowledged that a new request could still see in the older version.

use std::sync::Arc;
use std::time::Duration;

use atoll_client::{ClientError, PageSource};
use atoll_net::retry::Backoff;
use atoll_net::shutdown::Shutdown;
use atoll_proto::manifest::Page;
use atoll_proto::publish::{PublishEntry, PublishEvent, PublishSnapshot};
use atoll_proto::{Content, DeployId, limits};
use futures_util::future::join_all;
use tokio::time::Instant;

use super::erased::EraseError;
use super::table::Table;
use super::{Index, erased, invalidate};
use crate::fetch::Worth;
use crate::relay::hub::Hub;
use crate::relay::uplink::{News, Uplink, UplinkError};

/// How long the master may hold a request. Well below the time after which an edge is given up.
const WAIT: Duration = Duration::from_secs(3);
/// How long new deploys may hold up their entry while their first pages are fetched.
const PREFETCH: Duration = Duration::from_secs(2);

/// Follows the log until shutdown; a shield hands on what it hears to `hub`.
pub(crate) async fn run(
    index: Arc<Index>,
    uplink: Arc<Uplink>,
    hub: Option<Arc<Hub>>,
    shutdown: Shutdown,
) {
    let work = async {
        let backoff =
            Backoff { base: Duration::from_millis(50), max: Duration::from_secs(1), factor: 2.0 };
        let mut failures = 0;
        let mut caught_up = false;
        loop {
            match step(&index, &uplink, hub.as_deref(), caught_up).await {
                Ok(now) => (failures, caught_up) = (0, now),
                Err(error) => {
                    if failures == 0 {
                        tracing::warn!(%error, "cannot follow the publish log");
                    }
                    metrics::counter!("atoll_edge_publish_errors_total").increment(1);
                    tokio::time::sleep(backoff.delay(failures, rand::random::<f64>())).await;
                    failures = failures.saturating_add(1);
                }
            }
        }
    };
    tokio::select! {
        () = shutdown.wait() => {}
        () = work => {}
    }
}

#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Uplink(#[from] UplinkError),
    #[error(transparent)]
    Erase(#[from] EraseError),
}

/// Whether there was nothing more.
async fn step(
    index: &Index,
    uplink: &Uplink,
    hub: Option<&Hub>,
    caught_up: bool,
) -> Result<bool, StepError> {
    if index.erased_known().is_none() {
        erased::catch_up(index, uplink.cluster()).await?;
    }
    let table = index.table();
    // The first question after a start is answered at once: until then nothing is served.
    let wait = if caught_up && table.is_known() { WAIT } else { Duration::ZERO };
    let mut caught_up = true;
    match uplink.follow(table.seq(), table.is_known(), wait).await? {
        News::Log(entries, upto) => {
            caught_up = entries.len() < limits::WATCH_ENTRIES_MAX;
            if entries.iter().any(erases) {
                erased::catch_up(index, uplink.cluster()).await?;
            }
            // Edges hear it before it is applied here, so that nobody waits for this one. Not so
            // what has them drop copies: they would fetch them again from those that are here.
            let drops = drops_copies(&entries);
            if let Some(hub) = hub.filter(|_| !drops) {
                hub.heard(table.seq(), &entries, upto);
            }
            if !entries.is_empty() || upto > table.seq() || !table.is_known() {
                let mut next = Table::clone(&table);
                apply(index, &mut next, &entries).await;
                next.advance(upto.max(table.seq()));
                if let Some(hub) = hub.filter(|_| drops) {
                    hub.heard(table.seq(), &entries, upto);
                }
                index.put(next);
            }
        }
        News::Snapshot(snapshot) => {
            erased::catch_up(index, uplink.cluster()).await?;
            let seq = snapshot.seq;
            take(index, *snapshot).await;
            if let Some(hub) = hub {
                hub.begin_at(seq);
            }
        }
    }
    Ok(caught_up)
}

fn drops_copies(entries: &[PublishEntry]) -> bool {
    let is_hard =
        |entry: &PublishEntry| matches!(entry.event, PublishEvent::Invalidate { soft: false, .. });
    entries.iter().any(|entry| is_hard(entry) || erases(entry))
}

fn erases(entry: &PublishEntry) -> bool {
    matches!(entry.event, PublishEvent::Erased { .. })
}

/// Applies entries to a table that is not in force yet, and does what must be done before they
/// are acknowledged.
pub(crate) async fn apply(index: &Index, table: &mut Table, entries: &[PublishEntry]) {
    prefetch(index, deploys_of(entries)).await;
    let mut deadline = None;
    for entry in entries {
        if let PublishEvent::Invalidate { site, patterns, soft } = &entry.event {
            if *soft {
                index.count_soft();
                metrics::counter!("atoll_edge_soft_invalidations_total").increment(1);
            } else {
                // The table so far, not the one in force: it has what came before in this batch.
                let by = *deadline.get_or_insert_with(|| Instant::now() + invalidate::RESOLVE);
                invalidate::drop_matching(index, table, (site, patterns), by).await;
            }
        }
        table.apply(entry);
        metrics::counter!("atoll_edge_publish_entries_total").increment(1);
    }
    if deadline.is_some() {
        invalidate::sync_drops(index).await;
    }
}

/// The whole state, for an edge that knows too little to resume. It may have missed
/// invalidations, so nothing that is cached stays.
async fn take(index: &Index, snapshot: PublishSnapshot) {
    let cluster = index.table().cluster();
    tracing::info!(seq = %snapshot.seq, sites = snapshot.sites.len(), "took a snapshot of all sites");
    let table = Table::of_snapshot(cluster, snapshot);
    index.chunks.clear().await;
    index.put(table);
}

fn deploys_of(entries: &[PublishEntry]) -> Vec<DeployId> {
    let deploy = |entry: &PublishEntry| match &entry.event {
        PublishEvent::AliasSet(alias) => Some(alias.deploy),
        _ => None,
    };
    entries.iter().rev().filter_map(deploy).take(16).collect()
}

/// Fetches the first two pages of new manifests, and their rules, so that the first visitor does not
/// wait for them. That they cannot be had delays a publish, but does not stop it.
async fn prefetch(index: &Index, deploys: Vec<DeployId>) {
    let fetch = |deploy: DeployId| async move {
        let page = index.pages().page(deploy).await?;
        let Page::RootV1(root) = &*page else { return Ok(()) };
        if let Some(top) = &root.top {
            index.pages().page(top.id).await?;
        }
        let rules = root.rules.iter().flat_map(Content::direct_chunks);
        let rules = rules.map(|id| async move { index.chunks.get(id, Worth::Keep).await });
        let failed = join_all(rules).await.into_iter().find_map(Result::err);
        failed.map_or(Ok(()), |error| {
            let what = format!("the rules of {}", deploy.short());
            Err(ClientError::Unreachable { what, reason: error.to_string() })
        })
    };
    let all = join_all(deploys.into_iter().map(fetch));
    match tokio::time::timeout(PREFETCH, all).await {
        Ok(results) => {
            for error in results.into_iter().filter_map(Result::err) {
                tracing::warn!(%error, "a new manifest cannot be read yet");
            }
        }
        Err(_) => tracing::warn!("a new manifest could not be read in time"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::publish::{Alias, Pattern, Site};
    use atoll_proto::{AliasName, ChunkId, ClusterId, Seq};

    use super::*;
    use crate::cache::Cache;
    use crate::fetch::tests::FakeUpstream;
    use crate::fetch::{Chunks, Worth};
    use crate::index::Found;
    use crate::index::tests::Published;

    fn entry(seq: u64, event: PublishEvent) -> PublishEntry {
        PublishEntry { seq: Seq(seq), at_ms: 0, event }
    }

    fn publish(deploy: DeployId) -> Vec<PublishEntry> {
        let site: atoll_proto::SiteName = "blog".parse().unwrap();
        let set = Site {
            name: site.clone(),
            domains: vec![],
            created_ms: 0,
            settings: Default::default(),
        };
        let alias = AliasName::production();
        let alias =
            Alias { site, alias, deploy, seq: Seq(2), at_ms: 0, earlier: vec![], expires_ms: None };
        vec![entry(1, PublishEvent::SiteSet(set)), entry(2, PublishEvent::AliasSet(alias))]
    }

    fn index(upstream: &Arc<FakeUpstream>, dir: &std::path::Path) -> (Index, Arc<Chunks>) {
        let cache = Cache::open(8 << 20, &dir.join("cache"), 64 << 20).unwrap();
        let chunks = Arc::new(Chunks::new(Arc::new(cache), upstream.clone()));
        let suffixes = vec!["localhost".to_owned()];
        let cluster = ClusterId([1; 16]);
        let index = Index::open(cluster, chunks.clone(), suffixes, Some(dir.to_owned()), 8 << 20);
        (index, chunks)
    }

    async fn take_in(index: &Index, entries: &[PublishEntry]) {
        let mut table = Table::clone(&index.table());
        apply(index, &mut table, entries).await;
        index.put(table);
    }

    #[tokio::test]
    async fn pages_are_there_before_the_table_is_and_a_restart_needs_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let upstream = Arc::new(FakeUpstream::default());
        let published = Published::new(&upstream, &[("index.html", b"hello")]);
        {
            let (index, chunks) = index(&upstream, dir.path());
            take_in(&index, &publish(published.deploy)).await;
            let fetches = upstream.fetches();
            assert!(index.lookup(published.deploy, b"index.html").await.unwrap().is_some());
            assert!(index.lookup(published.deploy, b"missing").await.unwrap().is_none());
            assert_eq!(upstream.fetches(), fetches);
            chunks.cache().flush().await;
            index.stored().await;
        }
        upstream.down.store(true, std::sync::atomic::Ordering::SeqCst);
        let (index, _) = index(&upstream, dir.path());
        let resolved = index.resolve("blog.localhost");
        let Found::Deploy { site, deploy, alias } = resolved.found() else {
            panic!("{resolved:?}")
        };
        assert_eq!((site.site.name.as_str(), deploy), ("blog", published.deploy));
        assert_eq!(alias, Some(&AliasName::production()));
        assert!(index.lookup(published.deploy, b"index.html").await.unwrap().is_some());
        assert!(index.admit("blog.localhost", 1).is_none(), "not before it has a lease");
    }

    #[tokio::test]
    async fn a_publish_goes_on_when_its_pages_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let upstream = Arc::new(FakeUpstream::default());
        let (index, _) = index(&upstream, dir.path());
        let deploy = ChunkId::of(b"nowhere");
        take_in(&index, &publish(deploy)).await;
        let resolved = index.resolve("blog.localhost");
        assert!(matches!(resolved.found(), Found::Deploy { deploy: now, .. } if now == deploy));
        assert_eq!(index.resolve("x--blog.localhost").found(), Found::Unpublished);
        assert_eq!(index.resolve("shop.localhost").found(), Found::Unknown);
    }

    #[tokio::test]
    async fn a_table_that_cannot_be_stored_is_in_force_and_an_older_one_serves_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let upstream = Arc::new(FakeUpstream::default());
        let deploys = ["one", "two"]
            .map(|text| Published::new(&upstream, &[("index.html", text.as_bytes())]).deploy);
        let now = |index: &Index| match index.resolve("blog.localhost").found() {
            Found::Deploy { deploy, .. } => deploy,
            other => panic!("{other:?}"),
        };
        {
            let (index, _) = index(&upstream, dir.path());
            take_in(&index, &publish(deploys[0])).await;
            index.stored().await;
            // What a full disk does, and works for every user: the new file cannot be made.
            std::fs::create_dir(dir.path().join("index.snapshot.new")).unwrap();
            let mut set = publish(deploys[1]).remove(1);
            set.seq = Seq(3);
            take_in(&index, &[set]).await;
            assert_eq!((now(&index), index.table().seq()), (deploys[1], Seq(3)));
            index.stored().await;
        }
        let (index, _) = index(&upstream, dir.path());
        assert_eq!((now(&index), index.table().seq()), (deploys[0], Seq(2)), "stored before");
        assert!(index.admit("blog.localhost", 1).is_none(), "not before it has a lease");
    }

    #[tokio::test]
    async fn a_hard_invalidation_drops_and_a_soft_one_counts() {
        let dir = tempfile::tempdir().unwrap();
        let upstream = Arc::new(FakeUpstream::default());
        let published = Published::new(&upstream, &[("a.txt", b"aaa"), ("b/index.html", b"bbb")]);
        let (index, chunks) = index(&upstream, dir.path());
        take_in(&index, &publish(published.deploy)).await;
        let (a, b) = (ChunkId::of(b"aaa"), ChunkId::of(b"bbb"));
        for id in [a, b] {
            chunks.get(id, Worth::Use).await.unwrap();
        }
        let invalidate = |seq, patterns, soft| {
            let site = "blog".parse().unwrap();
            entry(seq, PublishEvent::Invalidate { site, patterns, soft })
        };
        take_in(&index, &[invalidate(3, vec![Pattern::All], true)]).await;
        assert!(chunks.cache().memory(&a).is_some());
        assert_eq!(index.soft_invalidations(), 1);
        take_in(&index, &[invalidate(4, vec![Pattern::Path("/b/".into())], false)]).await;
        assert!(chunks.cache().memory(&a).is_some() && chunks.cache().memory(&b).is_none());
        take_in(&index, &[invalidate(5, vec![Pattern::All], false)]).await;
        assert!(chunks.cache().memory(&a).is_none());
        assert_eq!(index.table().seq(), Seq(5));
    }

    #[test]
    fn what_takes_copies_away_is_handed_on_after_it_is_applied() {
        let site: atoll_proto::SiteName = "blog".parse().unwrap();
        let invalidate =
            |soft| PublishEvent::Invalidate { site: site.clone(), patterns: vec![], soft };
        let erased = PublishEvent::Erased { site: site.clone() };
        for (event, drops) in [(invalidate(true), false), (invalidate(false), true), (erased, true)]
        {
            let entries = [entry(1, invalidate(true)), entry(2, event)];
            assert_eq!(drops_copies(&entries), drops, "{entries:?}");
        }
    }

    #[tokio::test]
    async fn an_invalidation_whose_time_is_over_empties_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let upstream = Arc::new(FakeUpstream::default());
        let published = Published::new(&upstream, &[("a.html", b"a")]);
        let (index, chunks) = index(&upstream, dir.path());
        take_in(&index, &publish(published.deploy)).await;
        let (table, site) = (index.table(), "blog".parse().unwrap());
        let nothing = [Pattern::Path("/nothing".into())];
        let kept = ChunkId::of(b"a");
        chunks.get(kept, Worth::Use).await.unwrap();
        let left = Instant::now() + Duration::from_secs(600);
        invalidate::drop_matching(&index, &table, (&site, &nothing), left).await;
        assert!(chunks.cache().memory(&kept).is_some());
        // All there is to read is at hand, so it would be done before anybody looked at the time.
        invalidate::drop_matching(&index, &table, (&site, &nothing), Instant::now()).await;
        assert!(chunks.cache().memory(&kept).is_none());
    }

    #[tokio::test]
    async fn the_lease_and_the_policy_decide_and_a_change_is_noticed() {
        use atoll_proto::lease::MaySend;
        use atoll_proto::site::{Policy, SiteSettings};
        const SECOND: u64 = 1_000_000_000;
        let dir = tempfile::tempdir().unwrap();
        let upstream = Arc::new(FakeUpstream::default());
        let published = Published::new(&upstream, &[("index.html", b"hello")]);
        let (index, _) = index(&upstream, dir.path());
        take_in(&index, &publish(published.deploy)).await;
        let host = "blog.localhost";
        index.renewed(SECOND);
        index.renewed(0);
        let admission = index.admit(host, 11 * SECOND - 1).unwrap();
        assert_eq!(index.may_send(&admission, host, 11 * SECOND - 1), MaySend::Yes);
        assert_eq!(index.may_send(&admission, host, 11 * SECOND), MaySend::No);
        assert!(index.admit(host, 11 * SECOND).is_none());
        assert!(index.admit("unknown.localhost", 11 * SECOND).is_none());
        assert!(index.admit("unknown.localhost", 2 * SECOND).is_some());

        let settings = SiteSettings { policy: Policy::Available, ..SiteSettings::default() };
        let name = "blog".parse().unwrap();
        let site = Site { name, domains: vec![], created_ms: 0, settings };
        take_in(&index, &[entry(3, PublishEvent::SiteSet(site))]).await;
        assert_eq!(index.may_send(&admission, host, 2 * SECOND), MaySend::Anew);
        let admission = index.admit(host, 99 * SECOND).unwrap();
        assert_eq!(index.may_send(&admission, host, 99 * SECOND), MaySend::Late);
    }
}
