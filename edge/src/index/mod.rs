//! What exists: sites, aliases and manifests, as of the last entry of the publish log.
//!
//! [`crate::http`] asks [`Index::admit`] and [`Index::lookup`]; [`follow`] keeps it up to date.
//! A 404, a redirect or a 304 is decided here without asking upstream for anything but manifest
//! pages that are not at hand yet. Changes become visible to all requests at once: the whole table
//! is replaced.

pub mod erased;
pub mod follow;
pub mod host;
pub mod invalidate;
mod keeper;
pub mod lease;
mod meant;
pub mod pages;
pub mod snapshot;
pub mod table;
pub mod warm;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use atoll_client::{ClientError, PageSource};
use atoll_proto::manifest::Entry;
use atoll_proto::rules::Rules;
use atoll_proto::{AliasName, ClusterId, DeployId};
use tokio::sync::{Mutex, watch};

use crate::fetch::Chunks;
use crate::rules::asset;
use crate::rules::book::Book;
use host::HostName;
use keeper::Keeper;
use pages::Pages;
use table::{ByDigits, SiteState, Table};

/// What a host leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<'a> {
    /// A deploy to serve from.
    Deploy {
        /// Of this site.
        site: &'a SiteState,
        /// The manifest's root.
        deploy: DeployId,
        /// The alias that points at it. `None`: the host names the deploy itself, so that nothing
        /// it answers ever changes.
        alias: Option<&'a AliasName>,
    },
    /// Several deploys of the site begin with the digits that the host names.
    Ambiguous,
    /// The site exists, but nothing is published under this alias.
    Unpublished,
    /// No such site.
    Unknown,
}

/// A host, and what it named at one moment. A request is answered from what it was resolved to once.
#[derive(Debug)]
pub struct Resolved {
    /// Which table it was. Its place in memory is no other's while this is held; what was in it
    /// may go, so that slow answers do not keep old tables.
    table: Weak<Table>,
    named: Option<HostName>,
    /// Of the site; held, so that another state is another value in memory.
    state: Option<Arc<SiteState>>,
}

impl Resolved {
    /// What the host led to.
    pub fn found(&self) -> Found<'_> {
        let (Some(named), Some(state)) = (&self.named, &self.state) else {
            return Found::Unknown;
        };
        if let Some(alias) = state.aliases.get(&named.alias) {
            return Found::Deploy { site: state, deploy: alias.deploy, alias: Some(&named.alias) };
        }
        let digits = host::deploy_digits(&named.alias);
        match digits.map_or(ByDigits::None, |digits| state.by_digits(digits)) {
            ByDigits::One(deploy) => Found::Deploy { site: state, deploy, alias: None },
            ByDigits::Several => Found::Ambiguous,
            ByDigits::None => Found::Unpublished,
        }
    }

    /// Whether the host is another name of a site than those it is known by.
    pub fn is_preview(&self) -> bool {
        self.named.as_ref().is_some_and(HostName::is_preview)
    }
}

/// The file that answers for a path which an alias' current deploy does not have, and the earlier
/// deploy it is of: the latest that has it. None for pages. Costs a page per level of each.
///
/// # Errors
/// When a page of a manifest cannot be had now, so that nobody can tell.
pub async fn earlier_file<S: PageSource>(
    source: &S,
    site: &SiteState,
    alias: &AliasName,
    missing: &[u8],
    now_ms: u64,
) -> Result<Option<(DeployId, Entry)>, ClientError> {
    if !asset::may_be_earlier(missing) {
        return Ok(None);
    }
    for deploy in site.earlier(alias, now_ms) {
        if let Some(entry) = atoll_client::lookup(source, deploy, missing).await? {
            return Ok((!asset::is_page(&entry.content_type)).then_some((deploy, entry)));
        }
    }
    Ok(None)
}

/// The index of an edge.
pub struct Index {
    table: ArcSwap<Table>,
    pages: Pages,
    book: Book,
    /// Held by the search for what an invalidation means.
    searches: Arc<Mutex<()>>,
    chunks: Arc<Chunks>,
    suffixes: Vec<String>,
    /// Stores the table; `None` in tests.
    keeper: Option<Arc<Keeper>>,
    /// When the lease ends (see [`lease`]); 0 before the first.
    lease_until_ns: AtomicU64,
    /// Grows with every change of the table.
    version: watch::Sender<u64>,
    soft_invalidations: AtomicU64,
    /// How far the list of erased chunks is known since the start.
    erased: watch::Sender<Option<erased::Known>>,
    /// Held by who takes over what is new of it.
    erased_turn: Mutex<()>,
}

impl Index {
    /// An index that starts from what is stored in `dir`, if anything. `suffixes` are the domains
    /// under which sites have names; `page_bytes` bounds the decoded pages. Blocking: it reads a
    /// file.
    pub fn open(
        cluster: ClusterId,
        chunks: Arc<Chunks>,
        suffixes: Vec<String>,
        dir: Option<PathBuf>,
        page_bytes: usize,
    ) -> Index {
        let stored = dir.as_deref().and_then(|dir| snapshot::load(dir, cluster));
        let table = stored.unwrap_or_else(|| Table::empty(cluster));
        metrics::gauge!("atoll_edge_publish_seq").set(table.seq().0 as f64);
        Index {
            table: ArcSwap::from_pointee(table),
            pages: Pages::new(chunks.clone(), page_bytes),
            book: Book::new(chunks.clone()),
            searches: Arc::default(),
            chunks,
            suffixes,
            keeper: dir.map(Keeper::new),
            lease_until_ns: AtomicU64::new(0),
            version: watch::Sender::new(0),
            soft_invalidations: AtomicU64::new(0),
            erased: watch::Sender::new(None),
            erased_turn: Mutex::new(()),
        }
    }

    /// The table in force.
    pub fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// The pages of all manifests.
    pub fn pages(&self) -> &Pages {
        &self.pages
    }

    /// The chunks that all of it is made of.
    pub fn chunks(&self) -> &Chunks {
        &self.chunks
    }

    /// The rules of a deploy; those without any if it has none.
    ///
    /// # Errors
    /// When the manifest's root or the rules cannot be had now.
    pub async fn rules(&self, deploy: DeployId) -> Result<Arc<Rules>, ClientError> {
        self.book.of(&self.pages, deploy).await
    }

    /// What a normalized host names now.
    pub fn resolve(&self, host: &str) -> Resolved {
        let table = self.table.load_full();
        let named = host::resolve(host, &self.suffixes, &table);
        let state = named.as_ref().and_then(|named| table.site(&named.site)).cloned();
        Resolved { table: Arc::downgrade(&table), named, state }
    }

    /// Whether a host would be resolved to the same, with the same state of the site.
    fn is_current(&self, resolved: &Resolved, host: &str) -> bool {
        let table = self.table.load();
        if std::ptr::eq(resolved.table.as_ptr(), Arc::as_ptr(&table)) {
            return true;
        }
        let named = host::resolve(host, &self.suffixes, &table);
        match (&resolved.state, named.as_ref().and_then(|named| table.site(&named.site))) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now) && named == resolved.named,
            (None, None) => true,
            _ => false,
        }
    }

    /// [`earlier_file`] of a site's alias; its pages are at hand once they were used.
    ///
    /// # Errors
    /// When a page of a manifest cannot be had now, so that nobody can tell.
    pub async fn lookup_earlier(
        &self,
        site: &SiteState,
        alias: &AliasName,
        path: &[u8],
        now_ms: u64,
    ) -> Result<Option<(DeployId, Entry)>, ClientError> {
        earlier_file(&self.pages, site, alias, path, now_ms).await
    }

    /// The file at this path of a deploy.
    ///
    /// # Errors
    /// When a page of the manifest cannot be had now.
    pub async fn lookup(
        &self,
        deploy: DeployId,
        path: &[u8],
    ) -> Result<Option<Entry>, ClientError> {
        atoll_client::lookup(&self.pages, deploy, path).await
    }

    /// Tells of every change of the table.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Soft invalidations so far. Nothing is cached here that could be stale, so a soft
    /// invalidation only counts; it will matter once an edge caches a foreign origin.
    pub fn soft_invalidations(&self) -> u64 {
        self.soft_invalidations.load(Ordering::Relaxed)
    }

    /// Bytes of chunks in memory.
    pub fn cached_bytes(&self) -> usize {
        self.chunks.cache().memory_bytes()
    }

    /// Puts a table in force, and stores it soon: the stored one only saves a restarted edge from
    /// taking everything anew. An older one does no harm, because nothing is served from it before
    /// the first lease ([`Index::admit`]). Inside a Tokio runtime.
    pub(crate) fn put(&self, table: Table) {
        let table = Arc::new(table);
        metrics::gauge!("atoll_edge_publish_seq").set(table.seq().0 as f64);
        self.table.store(table.clone());
        self.version.send_modify(|version| *version += 1);
        if let Some(keeper) = &self.keeper {
            keeper.keep(table);
        }
    }

    /// Waits until what is in force is stored, or could not be.
    pub(crate) async fn stored(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.settled().await;
        }
    }

    /// How far the list of erased chunks is known; `None` when it was not asked for since the start:
    /// then nothing may be served.
    pub(crate) fn erased_known(&self) -> Option<erased::Known> {
        *self.erased.borrow()
    }

    /// Tells when more of it is known.
    pub(crate) fn erased_changes(&self) -> watch::Receiver<Option<erased::Known>> {
        self.erased.subscribe()
    }

    fn set_erased_known(&self, known: Option<erased::Known>) {
        self.erased.send_replace(known);
    }

    fn count_soft(&self) {
        self.soft_invalidations.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::content::Extent;
    use atoll_proto::rules::parse::{Sources, parse};
    use atoll_proto::site::SiteSettings;
    use atoll_proto::{ByteName, ChunkId, Content};

    use super::*;
    use crate::fetch::tests::FakeUpstream;

    /// A deploy whose pages and chunks are in a fake upstream.
    pub(crate) struct Published {
        pub(crate) deploy: DeployId,
    }

    /// Last change of every file: 2026-11-02 00:00 UTC.
    pub(crate) const MTIME_NS: i64 = 1_793_577_600_000_000_000;

    impl Published {
        pub(crate) fn new(upstream: &FakeUpstream, files: &[(&str, &[u8])]) -> Published {
            Published::with(upstream, files, &SiteSettings::default())
        }

        pub(crate) fn with(
            upstream: &FakeUpstream,
            files: &[(&str, &[u8])],
            settings: &SiteSettings,
        ) -> Published {
            let entries = files.iter().map(|(path, bytes)| Entry {
                path: ByteName::from(path.as_bytes()),
                mode: 0o644,
                mtime_ns: MTIME_NS,
                content: content(upstream, bytes),
                content_type: content_type(path).to_owned(),
                header_rule: None,
                variants: Vec::new(),
                base: None,
            });
            let of = |name| files.iter().find(|(path, _)| *path == name).map(|(_, bytes)| *bytes);
            let sources = Sources { redirects: of("_redirects"), headers: of("_headers") };
            let rules = parse(sources, settings).unwrap();
            let rules = rules.store(1 << 20).unwrap();
            for (_, bytes) in rules.chunks {
                upstream.add(bytes);
            }
            let built = atoll_client::build(entries.collect(), rules.content).unwrap();
            for page in built.pages {
                upstream.add(page.bytes);
            }
            Published { deploy: built.root }
        }
    }

    fn content(upstream: &FakeUpstream, bytes: &[u8]) -> Content {
        let extents = bytes.chunks(1 << 20).map(|part| {
            let id = upstream.add(part.to_vec());
            Extent { id: Some(id), len: u32::try_from(part.len()).unwrap() }
        });
        Content::from_extents(extents.collect())
    }

    fn content_type(path: &str) -> &'static str {
        match path.rsplit('.').next().unwrap() {
            "html" => "text/html; charset=utf-8",
            "js" => "text/javascript; charset=utf-8",
            _ => "application/octet-stream",
        }
    }

    #[test]
    fn chunks_of_files_are_found_by_hash() {
        let upstream = FakeUpstream::default();
        let content = content(&upstream, b"x");
        assert_eq!(content.id(), ChunkId::of(b"x"));
    }
}
