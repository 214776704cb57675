//! Warming: the pages of new deploys are fetched before anyone needs them.
//!
//! One task per edge. A publish waits only for the rules and the first two pages of a manifest
//! ([`super::follow`]); the others come here, in the background, so that a path that does not exist
//! or a redirect costs no upstream request: not even the first time, not even a flood of them.
//! Pages that the deploy before had are at hand already, and nothing below them is looked at.
//!
//! Bounded in rate and in bytes: a site too large for its share of the disk is warmed in part, and
//! the rest is fetched when it is asked for.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use atoll_net::shutdown::Shutdown;
use atoll_proto::manifest::{Page, Reference};
use atoll_proto::{ChunkId, DeployId};
use futures_util::future::join_all;

use super::Index;
use crate::clock;
use crate::fetch::{FillError, Worth};

/// Pages of all deploys may take this share of the disk cache.
pub const DISK_SHARE: u64 = 4;
/// Pages fetched at once.
const PARALLEL: usize = 8;
/// Most bytes a second that warming fetches.
const BYTES_PER_S: u64 = 32 << 20;
/// Page ids that are remembered as at hand.
const REMEMBERED_MAX: usize = 1 << 18;
/// How long a failed round waits before it begins anew.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// A page for errors is warmed with the manifest when it is not longer than this.
const ERROR_PAGE_BYTES_MAX: u64 = 1 << 20;

/// Warms what is published, now and after every change, until shutdown. `bytes_max` bounds the
/// bytes of pages.
pub async fn run(index: Arc<Index>, bytes_max: u64, shutdown: Shutdown) {
    let work = async {
        let mut changes = index.changes();
        let mut warmer = Warmer::new(index, bytes_max);
        loop {
            changes.borrow_and_update();
            if warmer.round().await {
                if changes.changed().await.is_err() {
                    return;
                }
            } else {
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    };
    tokio::select! {
        () = shutdown.wait() => {}
        () = work => {}
    }
}

/// What was warmed so far.
struct Warmer {
    index: Arc<Index>,
    bytes_left: u64,
    bytes_max: u64,
    /// Pages at hand, with everything below them.
    pages: HashSet<ChunkId>,
    /// Deploys that are done with.
    deploys: HashSet<DeployId>,
    /// How often the cache had been emptied then.
    clears: u64,
}

/// How warming one deploy ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Whole,
    /// There is no room for more.
    Full,
    Failed,
}

impl Warmer {
    fn new(index: Arc<Index>, bytes_max: u64) -> Warmer {
        let (pages, deploys) = (HashSet::new(), HashSet::new());
        Warmer { index, bytes_left: bytes_max, bytes_max, pages, deploys, clears: 0 }
    }

    /// Warms the deploys that are published and were not warmed yet; `false` if some have to be
    /// tried again.
    async fn round(&mut self) -> bool {
        let wanted = published(&self.index);
        let clears = self.index.chunks.clears();
        if clears != self.clears {
            self.clears = clears;
            self.pages.clear();
            self.deploys.clear();
            self.bytes_left = self.bytes_max;
        }
        self.deploys.retain(|deploy| wanted.contains(deploy));
        if self.pages.len() > REMEMBERED_MAX || self.bytes_left == 0 {
            // Forgetting costs looking at the pages at hand once more.
            self.pages.clear();
            self.bytes_left = self.bytes_max;
        }
        let mut whole = true;
        for deploy in wanted {
            if self.deploys.contains(&deploy) {
                continue;
            }
            match self.warm(deploy).await {
                Ended::Whole => {
                    self.deploys.insert(deploy);
                    metrics::counter!("atoll_edge_deploys_warmed_total").increment(1);
                }
                Ended::Full => {
                    tracing::info!(deploy = %deploy.short(), "only a part of the pages is warmed: \
                        they are too many for this edge's disk cache");
                    self.deploys.insert(deploy);
                }
                Ended::Failed => whole = false,
            }
        }
        whole
    }

    /// Fetches the pages of a deploy that are not at hand, from the root down.
    async fn warm(&mut self, deploy: DeployId) -> Ended {
        let mut queue = VecDeque::from([Reference::Page(deploy)]);
        let mut seen = Vec::new();
        while !queue.is_empty() {
            let some: Vec<Reference> = queue.drain(..queue.len().min(PARALLEL)).collect();
            let mut fetched = 0;
            let fetches = some.iter().map(|wanted| self.fetch(*wanted));
            for (wanted, result) in some.iter().zip(join_all(fetches).await) {
                match result {
                    Ok((bytes, below)) => {
                        fetched += bytes;
                        seen.push(wanted.id());
                        queue.extend(below.into_iter().filter(|r| !self.pages.contains(&r.id())));
                    }
                    Err(error) => {
                        tracing::debug!(deploy = %deploy.short(), %error, "not warmed yet");
                        return Ended::Failed;
                    }
                }
            }
            if fetched > self.bytes_left {
                self.bytes_left = 0;
                return Ended::Full;
            }
            self.bytes_left -= fetched;
            tokio::time::sleep(Duration::from_micros(fetched * 1_000_000 / BYTES_PER_S)).await;
        }
        // Only now is it certain that everything below them is at hand.
        self.pages.extend(seen);
        Ended::Whole
    }

    /// Has one page, or the chunk of rules or of an error page, at hand. Returns the bytes that had
    /// to be fetched, and what is to follow.
    async fn fetch(&self, wanted: Reference) -> Result<(u64, Vec<Reference>), FillError> {
        let id = wanted.id();
        let got = self.index.chunks.get(id, Worth::Keep).await?;
        let fetched = if got.source.is_hit() { 0 } else { got.bytes.len() as u64 };
        if fetched > 0 {
            metrics::counter!("atoll_edge_pages_warmed_total").increment(1);
        }
        if !matches!(wanted, Reference::Page(_)) {
            return Ok((fetched, Vec::new()));
        }
        let below = match Page::decode(&got.bytes) {
            Ok(page) => below(&page),
            // It has the right hash, so it never was a page: nothing that a retry could mend.
            Err(error) => {
                tracing::warn!(page = %id.short(), %error, "a manifest has a page that is none");
                Vec::new()
            }
        };
        Ok((fetched, below))
    }
}

/// The deploys that aliases point at, and then those of before whose files may still answer: each
/// path that is in none of the first is looked up in all of them.
fn published(index: &Index) -> Vec<DeployId> {
    let (table, now_ms) = (index.table(), clock::wall_ms());
    let current = table.sites().flat_map(|state| state.aliases.values().map(|own| own.deploy));
    let earlier = table
        .sites()
        .flat_map(|state| state.aliases.keys().flat_map(move |alias| state.earlier(alias, now_ms)));
    let mut seen = HashSet::new();
    current.chain(earlier).filter(|deploy| seen.insert(*deploy)).collect()
}

/// What is warmed below a page: pages, rules, and the site's page for errors.
fn below(page: &Page) -> Vec<Reference> {
    match page {
        Page::LeafV1(entries) => {
            let error_page = entries.iter().find(|entry| entry.path.as_bytes() == b"404.html");
            let content = error_page.filter(|entry| entry.size() <= ERROR_PAGE_BYTES_MAX);
            let chunks = content.map(|entry| entry.content.direct_chunks()).unwrap_or_default();
            chunks.into_iter().map(Reference::Data).collect()
        }
        Page::RootV1(_) | Page::IndexV1(_) => page.references(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::atomic::Ordering;

    use atoll_proto::publish::{Alias, PublishEntry, PublishEvent, Site};
    use atoll_proto::{AliasName, ClusterId, Seq, SiteName};

    use super::*;
    use crate::cache::Cache;
    use crate::fetch::Chunks;
    use crate::fetch::tests::FakeUpstream;
    use crate::index::table::Table;
    use crate::index::tests::Published;

    fn index(upstream: &Arc<FakeUpstream>) -> Arc<Index> {
        let cache = Arc::new(Cache::in_memory(64 << 20));
        let chunks = Arc::new(Chunks::new(cache, upstream.clone()));
        let suffixes = vec!["localhost".to_owned()];
        Arc::new(Index::open(ClusterId([1; 16]), chunks, suffixes, None, 8 << 20))
    }

    async fn publish(index: &Index, deploy: DeployId, seq: u64) {
        let site: SiteName = "blog".parse().unwrap();
        let set = Site {
            name: site.clone(),
            domains: vec![],
            created_ms: 0,
            settings: Default::default(),
        };
        let alias = Alias {
            site,
            alias: AliasName::production(),
            deploy,
            seq: Seq(seq + 1),
            at_ms: 0,
            earlier: vec![],
            expires_ms: None,
        };
        let mut table = Table::clone(&index.table());
        for (seq, event) in
            [(seq, PublishEvent::SiteSet(set)), (seq + 1, PublishEvent::AliasSet(alias))]
        {
            table.apply(&PublishEntry { seq: Seq(seq), at_ms: 0, event });
        }
        index.put(table);
    }

    fn site(files: usize, changed: Option<usize>) -> Vec<(String, Vec<u8>)> {
        let content = |i| if changed == Some(i) { "changed".to_owned() } else { i.to_string() };
        let mut all: Vec<_> =
            (0..files).map(|i| (format!("page-{i:05}.html"), content(i).into_bytes())).collect();
        all.push(("404.html".to_owned(), b"not here".to_vec()));
        all
    }

    fn store(upstream: &FakeUpstream, files: &[(String, Vec<u8>)]) -> DeployId {
        let files: Vec<(&str, &[u8])> =
            files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
        Published::new(upstream, &files).deploy
    }

    #[tokio::test]
    async fn what_had_to_be_dropped_is_fetched_again() {
        let upstream = Arc::new(FakeUpstream::default());
        let index = index(&upstream);
        let mut warmer = Warmer::new(index.clone(), 64 << 20);
        let deploy = store(&upstream, &site(3_000, None));
        publish(&index, deploy, 1).await;
        assert!(warmer.round().await);
        let fetches = upstream.fetches();
        assert!(warmer.round().await);
        assert_eq!(upstream.fetches(), fetches, "everything is at hand");
        index.chunks.clear().await;
        assert!(warmer.round().await);
        assert_eq!(upstream.fetches(), fetches * 2);
    }

    #[tokio::test]
    async fn all_pages_are_fetched_once_and_a_redeploy_fetches_the_new_ones() {
        let upstream = Arc::new(FakeUpstream::default());
        let index = index(&upstream);
        let mut warmer = Warmer::new(index.clone(), 64 << 20);
        let first = store(&upstream, &site(3_000, None));
        publish(&index, first, 1).await;
        assert!(warmer.round().await);
        let fetches = upstream.fetches();
        assert!(fetches > 4, "{fetches}");
        upstream.down.store(true, Ordering::SeqCst);
        for path in ["page-00000.html", "page-02999.html", "404.html", "absent", "zzz"] {
            index.lookup(first, path.as_bytes()).await.unwrap();
        }
        let page = ChunkId::of(b"not here");
        assert!(index.chunks.cache().memory(&page).is_some(), "the page for errors is at hand");
        upstream.down.store(false, Ordering::SeqCst);
        let second = store(&upstream, &site(3_000, Some(1234)));
        publish(&index, second, 3).await;
        assert!(warmer.round().await);
        let new = upstream.fetches() - fetches;
        assert!((2..=4).contains(&new), "{new} pages of the second deploy were fetched");
        assert!(warmer.round().await && upstream.fetches() == fetches + new);
    }

    #[tokio::test]
    async fn what_fails_is_tried_again_and_what_is_too_large_is_not() {
        let upstream = Arc::new(FakeUpstream::default());
        let index = index(&upstream);
        let deploy = store(&upstream, &site(3_000, None));
        publish(&index, deploy, 1).await;
        let mut warmer = Warmer::new(index.clone(), 64 << 20);
        upstream.down.store(true, Ordering::SeqCst);
        assert!(!warmer.round().await && warmer.pages.is_empty());
        upstream.down.store(false, Ordering::SeqCst);
        let mut small = Warmer::new(index, 50_000);
        assert_eq!(small.warm(deploy).await, Ended::Full);
        assert!(warmer.round().await && !warmer.pages.is_empty());
    }
}
