//! Which files the patterns of an invalidation mean.
//!
//! Called by [`super::invalidate`]. A path means what a request for it may be answered with, whoever
//! asks, by the rules of the deploy; a tag means the files that may be answered with it under any
//! URL. Files of earlier deploys count where they may answer, too.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use atoll_client::{ClientError, PageSource as _};
use atoll_proto::content::ExtentList;
use atoll_proto::manifest::{Entry, Page};
use atoll_proto::publish::Pattern;
use atoll_proto::rules::Rules;
use atoll_proto::rules::answers::{Answers, Unanswered, answers, closed_answers, led_to};
use atoll_proto::rules::bearers::{Bearers, SiteFiles, bearers};
use atoll_proto::rules::budget::{Budget, TooMuch};
use atoll_proto::rules::decide::{Lookups, Need};
use atoll_proto::tags::folded;
use atoll_proto::{ChunkId, Content, DeployId, limits};

use super::Index;
use super::invalidate::beginning;
use super::table::SiteState;
use crate::fetch::Worth;
use crate::http::path::{self, BadPath, SitePath};
use crate::rules::asset::entry_may_be_earlier;
use crate::rules::candidates;

/// Why the files cannot be told.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unclear {
    /// Pages or rules are not to be had.
    #[error(transparent)]
    Pages(#[from] ClientError),
    /// It would take too long.
    #[error(transparent)]
    TooMuch(#[from] TooMuch),
    /// The work was lost.
    #[error("the work stopped: {0}")]
    Stopped(String),
}

/// A deploy that answers, and those whose files answer where it has none.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Scope {
    deploy: DeployId,
    earlier: Vec<DeployId>,
}

/// The chunks of the files that the patterns mean in what the site's aliases answer with.
///
/// Gives way to others as it goes, however much of it is at hand: the publish log waits for this, and
/// so that it can be given up in time.
pub(super) async fn meant(
    index: &Index,
    site: &SiteState,
    patterns: &[Pattern],
    now_ms: u64,
) -> Result<HashSet<ChunkId>, Unclear> {
    let scopes: HashSet<Scope> = (site.aliases.iter())
        .map(|(name, alias)| Scope {
            deploy: alias.deploy,
            earlier: site.earlier(name, now_ms).collect(),
        })
        .collect();
    let mut meaning = Meaning {
        index,
        chunks: HashSet::new(),
        lists: HashSet::new(),
        chunks_max: CHUNKS_MAX,
        steps: limits::LOOKUPS_STEPS_MAX,
        looks: 0,
        since: Instant::now(),
    };
    meaning.all_beginning(&beginnings(patterns), &scopes).await?;
    let tags: HashSet<String> = (patterns.iter())
        .filter_map(|pattern| match pattern {
            Pattern::Tag(tag) => Some(folded(tag)),
            _ => None,
        })
        .collect();
    let tags = Arc::new(tags);
    for scope in &scopes {
        let mut files = None;
        for pattern in patterns {
            if let Pattern::Path(path) = pattern {
                meaning.by_path(scope, path, &mut files).await?;
            }
        }
        if !tags.is_empty() {
            meaning.by_tag(scope, tags.clone(), &mut files).await?;
        }
    }
    Ok(meaning.chunks)
}

/// What the paths of files begin with that patterns are about, in order, and none of them with
/// another one.
fn beginnings(patterns: &[Pattern]) -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = (patterns.iter())
        .filter_map(|pattern| match pattern {
            Pattern::All => Some(Vec::new()),
            Pattern::Prefix(prefix) => Some(beginning(prefix)),
            Pattern::Path(_) | Pattern::Tag(_) => None,
        })
        .collect();
    all.sort_unstable();
    all.dedup_by(|later, before| later.starts_with(&before[..]));
    all
}

/// Whether a path begins with one of [`beginnings`]: then with the last that is not after it.
fn begins(beginnings: &[Vec<u8>], path: &[u8]) -> bool {
    let after = beginnings.partition_point(|own| own.as_slice() <= path);
    beginnings[..after].last().is_some_and(|own| path.starts_with(own))
}

/// After how many lookups or files the clock is looked at, and after how long others get their turn.
const LOOKUPS_A_LOOK: u32 = 32;
const TURN: Duration = Duration::from_millis(1);
/// Most chunks that an invalidation names; one that means more empties the cache.
const CHUNKS_MAX: usize = 4 << 20;
/// Steps that a lookup takes, about.
const LOOKUP_STEPS: u64 = 16;

/// What an invalidation means, as far as it is known.
struct Meaning<'i> {
    index: &'i Index,
    chunks: HashSet<ChunkId>,
    /// Most of them.
    chunks_max: usize,
    /// Lists whose chunks are among these.
    lists: HashSet<ChunkId>,
    /// Steps that are left for looking files up one by one.
    steps: u64,
    looks: u32,
    /// Since when others had no turn.
    since: Instant,
}

impl Meaning<'_> {
    /// Lets others have their turn, once in a while.
    async fn turn(&mut self) {
        self.looks = self.looks.wrapping_add(1);
        if self.looks.is_multiple_of(LOOKUPS_A_LOOK) && self.since.elapsed() >= TURN {
            tokio::task::yield_now().await;
            // Not from before: on a busy edge a turn of others may take longer than its own.
            self.since = Instant::now();
        }
    }

    async fn lookup(
        &mut self,
        deploy: DeployId,
        path: &[u8],
    ) -> Result<Option<Entry>, ClientError> {
        self.turn().await;
        self.steps = self.steps.saturating_sub(LOOKUP_STEPS);
        self.index.lookup(deploy, path).await
    }

    /// Whether there is room for more chunks: beyond that, emptying the cache is less work.
    fn check_room(&self) -> Result<(), TooMuch> {
        if self.chunks.len() > self.chunks_max { Err(TooMuch) } else { Ok(()) }
    }

    /// Adds all chunks of a file and its variants.
    async fn add(&mut self, entry: &Entry) -> Result<(), Unclear> {
        self.turn().await;
        let variants = entry.variants.iter().map(|variant| &variant.content);
        for content in std::iter::once(&entry.content).chain(variants) {
            let direct = content.direct_chunks();
            if let Content::Lists { .. } = content {
                for list in &direct {
                    if self.lists.contains(list) {
                        continue;
                    }
                    tokio::task::yield_now().await;
                    let bad = |reason: String| {
                        let what = format!("list chunk {}", list.short());
                        ClientError::Unreachable { what, reason }
                    };
                    let got = self.index.chunks.get(*list, Worth::Use).await;
                    let got = got.map_err(|error| bad(error.to_string()))?;
                    let extents = ExtentList::decode(&got.bytes);
                    let extents = extents.map_err(|error| bad(error.to_string()))?;
                    self.chunks.extend(extents.iter().filter_map(|extent| extent.id));
                    self.lists.insert(*list);
                    self.check_room()?;
                }
            }
            self.chunks.extend(direct);
        }
        Ok(self.check_room()?)
    }

    /// Adds the files whose paths begin so. Every page is read once, whoever has it.
    async fn all_beginning(
        &mut self,
        beginnings: &[Vec<u8>],
        scopes: &HashSet<Scope>,
    ) -> Result<(), Unclear> {
        if beginnings.is_empty() {
            return Ok(());
        }
        let mut seen = HashSet::new();
        let current: HashSet<DeployId> = scopes.iter().map(|scope| scope.deploy).collect();
        let earlier: HashSet<DeployId> =
            scopes.iter().flat_map(|scope| scope.earlier.iter().copied()).collect();
        let all = current.iter().map(|deploy| (*deploy, true));
        for (deploy, own) in all.chain(earlier.iter().map(|deploy| (*deploy, false))) {
            let mut leaves = Leaves::of(deploy);
            while let Some(page) = leaves.next(self.index, &mut seen).await? {
                for entry in entries(&page) {
                    if begins(beginnings, entry.path.as_bytes())
                        && (own || entry_may_be_earlier(entry))
                    {
                        self.add(entry).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn add_all(&mut self, entries: &[Entry]) -> Result<(), Unclear> {
        for entry in entries {
            self.add(entry).await?;
        }
        Ok(())
    }

    /// Adds the files that may be answered with one of the tags.
    async fn by_tag(
        &mut self,
        scope: &Scope,
        tags: Arc<HashSet<String>>,
        files: &mut Option<Arc<Files>>,
    ) -> Result<(), Unclear> {
        let rules = self.index.rules(scope.deploy).await?;
        if rules.set().headers.is_empty() {
            return Ok(());
        }
        let files = Files::once(files, self.index, scope).await?;
        let work = move |budget: &mut Budget<'_>| {
            let wanted = |tag: &str| tags.contains(&folded(tag));
            let Bearers { own, earlier } = bearers(&rules, &wanted, files.names(budget)?, budget)?;
            files.picked(&own, &earlier, budget)
        };
        let found = search(self.index, work).await?;
        self.add_all(&found).await
    }

    /// Adds the files that a request for a path may be answered with.
    async fn by_path(
        &mut self,
        scope: &Scope,
        raw: &str,
        files: &mut Option<Arc<Files>>,
    ) -> Result<(), Unclear> {
        self.turn().await;
        let asked = match path::parse(raw.as_bytes()) {
            Ok(asked) => asked,
            Err(BadPath::Malformed(_)) => return Ok(()),
            // No file can have such a path; this is what says so.
            Err(BadPath::Impossible) => {
                if let Some(page) = self.lookup(scope.deploy, b"404.html").await? {
                    self.add(&page).await?;
                }
                return Ok(());
            }
        };
        let rules = self.index.rules(scope.deploy).await?;
        let mut names: HashSet<Vec<u8>> = candidates(&asked).into_iter().collect();
        let mut old = names.clone();
        let Some(said) = self.looked_up(scope.deploy, &rules, &asked).await? else {
            let files = Files::once(files, self.index, scope).await?;
            let work = move |budget: &mut Budget<'_>| {
                let all = files.names(budget)?;
                let asked = (asked.path.as_slice(), asked.directory);
                // All files are known, so none is needed.
                let said = answers(&rules, asked, None, all, budget).map_err(|_| TooMuch)?;
                names.extend(said.files);
                names.extend(led_to(&said.shapes, &all.own, budget)?);
                old.extend(said.earlier);
                old.extend(led_to(&said.shapes, &all.earlier, budget)?);
                files.picked(&names, &old, budget)
            };
            let found = search(self.index, work).await?;
            return self.add_all(&found).await;
        };
        names.extend(said.files);
        old.extend(said.earlier);
        for name in &names {
            if let Some(entry) = self.lookup(scope.deploy, name).await? {
                self.add(&entry).await?;
            }
        }
        for deploy in &scope.earlier {
            for name in &old {
                if let Some(entry) = self.lookup(*deploy, name).await?.filter(entry_may_be_earlier)
                {
                    self.add(&entry).await?;
                }
            }
        }
        Ok(())
    }

    /// What may answer a path at any host, found out by looking up one file after the other: most
    /// rules need only a few. `None` when it takes more than that.
    async fn looked_up(
        &mut self,
        deploy: DeployId,
        rules: &Rules,
        asked: &SitePath,
    ) -> Result<Option<Answers>, ClientError> {
        let goes_on = AtomicBool::new(false);
        let mut own = self.steps.min(limits::LOOKUP_STEPS_MAX);
        let mut known = Known::default();
        loop {
            let mut budget = Budget::new(own, &goes_on);
            let said = closed_answers(rules, (&asked.path, asked.directory), &known, &mut budget);
            self.steps = self.steps.saturating_sub(own - budget.left());
            own = budget.left();
            match said {
                Ok(said) => return Ok(Some(said)),
                Err(Unanswered::TooMuch(_)) => return Ok(None),
                Err(Unanswered::Need(Need(path))) => {
                    let exists = self.lookup(deploy, &path).await?.is_some();
                    own = own.saturating_sub(LOOKUP_STEPS);
                    known.0.insert(path, exists);
                }
            }
        }
    }
}

/// All files of a scope.
struct Files {
    own: Vec<Entry>,
    /// Those of earlier deploys that may answer where the deploy has none or a rule hides its own;
    /// without those on pages that it has, too.
    earlier: Vec<Entry>,
    /// Whether there are earlier deploys.
    had: bool,
    names: OnceLock<SiteFiles>,
}

impl Files {
    /// Reads all pages, the first time.
    async fn once(
        files: &mut Option<Arc<Files>>,
        index: &Index,
        scope: &Scope,
    ) -> Result<Arc<Files>, Unclear> {
        if let Some(files) = files {
            return Ok(files.clone());
        }
        let mut seen = HashSet::new();
        let mut own = Vec::new();
        let mut leaves = Leaves::of(scope.deploy);
        while let Some(page) = leaves.next(index, &mut seen).await? {
            own.extend(entries(&page).iter().cloned());
            few(own.len())?;
        }
        let mut earlier = Vec::new();
        for deploy in &scope.earlier {
            let mut leaves = Leaves::of(*deploy);
            while let Some(page) = leaves.next(index, &mut seen).await? {
                earlier
                    .extend(entries(&page).iter().filter(|own| entry_may_be_earlier(own)).cloned());
                few(own.len() + earlier.len())?;
            }
        }
        let (had, names) = (!scope.earlier.is_empty(), OnceLock::new());
        Ok(files.insert(Arc::new(Files { own, earlier, had, names })).clone())
    }

    /// What they are called; for a search, because there may be very many.
    fn names(&self, budget: &mut Budget<'_>) -> Result<&SiteFiles, TooMuch> {
        if let Some(names) = self.names.get() {
            return Ok(names);
        }
        let mut names = SiteFiles::default();
        for entry in &self.own {
            budget.spend(1)?;
            names.own.insert(entry.path.as_bytes().to_vec());
            // A page that deploys share was read once: what is on it counts as both's.
            if self.had && entry_may_be_earlier(entry) {
                names.earlier.insert(entry.path.as_bytes().to_vec());
            }
        }
        for entry in &self.earlier {
            budget.spend(1)?;
            names.earlier.insert(entry.path.as_bytes().to_vec());
        }
        Ok(self.names.get_or_init(|| names))
    }

    /// The files of these names.
    fn picked(
        &self,
        own: &HashSet<Vec<u8>>,
        earlier: &HashSet<Vec<u8>>,
        budget: &mut Budget<'_>,
    ) -> Result<Vec<Entry>, TooMuch> {
        let mut picked = Vec::new();
        for (entry, current) in (self.own.iter().map(|entry| (entry, true)))
            .chain(self.earlier.iter().map(|entry| (entry, false)))
        {
            budget.spend(1)?;
            let path = entry.path.as_bytes();
            if earlier.contains(path) || (current && own.contains(path)) {
                picked.push(entry.clone());
            }
        }
        Ok(picked)
    }
}

/// Whether so many files can be gone through.
fn few(files: usize) -> Result<(), TooMuch> {
    if files > limits::SEARCH_FILES_MAX { Err(TooMuch) } else { Ok(()) }
}

/// Searches through rules and files on a thread of its own, one search at a time: they take a
/// processor, and a site with many rules is to hold up nothing else. Who waits no longer ends it.
async fn search<T: Send + 'static>(
    index: &Index,
    work: impl FnOnce(&mut Budget<'_>) -> Result<T, TooMuch> + Send + 'static,
) -> Result<T, Unclear> {
    struct Stop(Arc<AtomicBool>);
    impl Drop for Stop {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let turn = index.searches.clone().lock_owned().await;
    let stop = Stop(Arc::default());
    let stopped = stop.0.clone();
    let work = move || {
        let _turn = turn;
        work(&mut Budget::new(limits::SEARCH_STEPS_MAX, &stopped))
    };
    let found = atoll_net::task::spawn_blocking("search", work).await;
    Ok(found.map_err(|error| Unclear::Stopped(error.to_string()))??)
}

/// The pages of a deploy's files that were not seen yet: deploys share most of theirs.
struct Leaves {
    deploy: DeployId,
    pages: Vec<(ChunkId, usize)>,
}

impl Leaves {
    fn of(deploy: DeployId) -> Self {
        Self { deploy, pages: vec![(deploy, 0)] }
    }

    async fn next(
        &mut self,
        index: &Index,
        seen: &mut HashSet<ChunkId>,
    ) -> Result<Option<Arc<Page>>, ClientError> {
        while let Some((id, depth)) = self.pages.pop() {
            if !seen.insert(id) {
                continue;
            }
            tokio::task::yield_now().await;
            let page = index.pages().page(id).await?;
            match &*page {
                Page::RootV1(root) if depth == 0 => {
                    self.pages.extend(root.top.iter().map(|top| (top.id, depth + 1)));
                }
                Page::IndexV1(below) if (1..=limits::PAGE_DEPTH_MAX).contains(&depth) => {
                    self.pages.extend(below.iter().map(|child| (child.id, depth + 1)));
                }
                Page::LeafV1(_) if depth > 0 => return Ok(Some(page)),
                _ => {
                    let what = format!("the page tree of {}", self.deploy);
                    return Err(ClientError::Malformed { what });
                }
            }
        }
        Ok(None)
    }
}

/// The files on a page.
fn entries(page: &Page) -> &[Entry] {
    match page {
        Page::LeafV1(entries) => entries,
        Page::RootV1(_) | Page::IndexV1(_) => &[],
    }
}

/// What was looked up so far.
#[derive(Default)]
struct Known(HashMap<Vec<u8>, bool>);

impl Lookups for Known {
    fn exists(&self, path: &[u8]) -> Option<bool> {
        self.0.get(path).copied()
    }
}

#[cfg(test)]
#[path = "meant_tests.rs"]
mod tests;
