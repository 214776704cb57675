//! Which files the patterns of an invalidation mean.
//!
//! Called by [`super::invalidate`]. A path means what a request for it may be answered with, whoever
//! asks, by the rules of the deploy; a tag means the files that may be answered with it under any
//! URL. Files of earlier deploys count where they may answer, too.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use atoll_client::{ClientError, PageSource as _};
use atoll_proto::manifest::{Entry, Page};
use atoll_proto::publish::Pattern;
use atoll_proto::rules::Rules;
use atoll_proto::rules::answers::{Answers, Unanswered, answers, led_to};
use atoll_proto::rules::bearers::{Bearers, SiteFiles, bearers};
use atoll_proto::rules::budget::{Budget, TooMuch};
use atoll_proto::rules::decide::{Lookups, Need};
use atoll_proto::tags::same_tag;
use atoll_proto::{ChunkId, DeployId, limits};

use super::Index;
use super::table::SiteState;
use crate::http::path::{self, BadPath, SitePath};
use crate::rules::{asset, candidates};

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

/// The files that the patterns mean in what the site's aliases answer with.
pub(super) async fn meant(
    index: &Index,
    site: &SiteState,
    patterns: &[Pattern],
    now_ms: u64,
) -> Result<Vec<Entry>, Unclear> {
    let scopes: HashSet<Scope> = (site.aliases.iter())
        .map(|(name, alias)| Scope {
            deploy: alias.deploy,
            earlier: site.earlier(name, now_ms).collect(),
        })
        .collect();
    let mut meant = Vec::new();
    for scope in &scopes {
        let mut files = None;
        for pattern in patterns {
            if let Pattern::Path(path) = pattern {
                meant.extend(by_path(index, scope, path, &mut files).await?);
            }
        }
        if patterns.iter().any(|pattern| !matches!(pattern, Pattern::Path(_))) {
            let files = Files::once(&mut files, index, scope).await?;
            let plain = |entry: &&Entry| patterns.iter().any(|own| begins(own, entry));
            meant.extend(files.own.iter().chain(&files.earlier).filter(plain).cloned());
        }
        let tags = patterns.iter().filter_map(|pattern| match pattern {
            Pattern::Tag(tag) => Some(tag.clone()),
            _ => None,
        });
        let tags: Vec<String> = tags.collect();
        if !tags.is_empty() {
            meant.extend(by_tag(index, scope, tags, &mut files).await?);
        }
    }
    Ok(meant)
}

/// Whether a pattern that is about paths of files means a file.
fn begins(pattern: &Pattern, entry: &Entry) -> bool {
    match pattern {
        Pattern::All => true,
        Pattern::Prefix(prefix) => {
            let prefix = prefix.strip_prefix('/').unwrap_or(prefix).as_bytes();
            entry.path.as_bytes().starts_with(prefix)
        }
        Pattern::Path(_) | Pattern::Tag(_) => false,
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
        let own = unseen(index, scope.deploy, &mut seen).await?;
        let mut earlier = Vec::new();
        for deploy in &scope.earlier {
            earlier.extend(unseen(index, *deploy, &mut seen).await?);
        }
        earlier.retain(may_be_earlier);
        let (had, names) = (!scope.earlier.is_empty(), OnceLock::new());
        Ok(files.insert(Arc::new(Files { own, earlier, had, names })).clone())
    }

    /// What they are called; for a search, because there may be very many.
    fn names(&self) -> &SiteFiles {
        self.names.get_or_init(|| {
            let name = |entry: &Entry| entry.path.as_bytes().to_vec();
            // A page that deploys share was read once: what is on it counts as both's.
            let shared = self.own.iter().filter(|entry| self.had && may_be_earlier(entry));
            SiteFiles {
                own: self.own.iter().map(name).collect(),
                earlier: self.earlier.iter().chain(shared).map(name).collect(),
            }
        })
    }

    /// The files of these names.
    fn picked(&self, own: &HashSet<Vec<u8>>, earlier: &HashSet<Vec<u8>>) -> Vec<Entry> {
        let old = |entry: &Entry| earlier.contains(entry.path.as_bytes());
        let shared = |entry: &Entry| own.contains(entry.path.as_bytes()) || old(entry);
        let current = self.own.iter().filter(|entry| shared(entry));
        current.chain(self.earlier.iter().filter(|entry| old(entry))).cloned().collect()
    }
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

/// Whether a file of an earlier deploy may answer where a deploy has none.
fn may_be_earlier(entry: &Entry) -> bool {
    asset::may_be_earlier(entry.path.as_bytes()) && !asset::is_page(&entry.content_type)
}

/// The entries on pages that were not seen yet: deploys share most of theirs.
async fn unseen(
    index: &Index,
    deploy: DeployId,
    seen: &mut HashSet<ChunkId>,
) -> Result<Vec<Entry>, ClientError> {
    let mut entries = Vec::new();
    let mut pages = vec![(deploy, 0)];
    while let Some((id, depth)) = pages.pop() {
        if !seen.insert(id) {
            continue;
        }
        tokio::task::yield_now().await;
        let malformed = || ClientError::Malformed { what: format!("the page tree of {deploy}") };
        match &*index.pages().page(id).await? {
            Page::RootV1(root) if depth == 0 => {
                pages.extend(root.top.iter().map(|top| (top.id, depth + 1)));
            }
            Page::IndexV1(below) if (1..=limits::PAGE_DEPTH_MAX).contains(&depth) => {
                pages.extend(below.iter().map(|child| (child.id, depth + 1)));
            }
            Page::LeafV1(own) if depth > 0 => entries.extend(own.iter().cloned()),
            _ => return Err(malformed()),
        }
    }
    Ok(entries)
}

/// The files that may be answered with one of the tags.
async fn by_tag(
    index: &Index,
    scope: &Scope,
    tags: Vec<String>,
    files: &mut Option<Arc<Files>>,
) -> Result<Vec<Entry>, Unclear> {
    let rules = index.rules(scope.deploy).await?;
    if rules.set().headers.is_empty() {
        return Ok(Vec::new());
    }
    let files = Files::once(files, index, scope).await?;
    let work = move |budget: &mut Budget<'_>| {
        let wanted = |tag: &str| tags.iter().any(|own| same_tag(own, tag));
        let Bearers { own, earlier } = bearers(&rules, &wanted, files.names(), budget)?;
        Ok(files.picked(&own, &earlier))
    };
    search(index, work).await
}

/// The files that a request for a path may be answered with.
async fn by_path(
    index: &Index,
    scope: &Scope,
    raw: &str,
    files: &mut Option<Arc<Files>>,
) -> Result<Vec<Entry>, Unclear> {
    let asked = match path::parse(raw.as_bytes()) {
        Ok(asked) => asked,
        Err(BadPath::Malformed(_)) => return Ok(Vec::new()),
        // No file can have such a path; this is what says so.
        Err(BadPath::Impossible) => {
            return Ok(index.lookup(scope.deploy, b"404.html").await?.into_iter().collect());
        }
    };
    let rules = index.rules(scope.deploy).await?;
    let mut names: HashSet<Vec<u8>> = candidates(&asked).into_iter().collect();
    let mut old = names.clone();
    let Some(said) = looked_up(index, scope.deploy, &rules, &asked).await? else {
        let files = Files::once(files, index, scope).await?;
        let work = move |budget: &mut Budget<'_>| {
            let all = files.names();
            let asked = (asked.path.as_slice(), asked.directory);
            // All files are known, so none is needed.
            let said = answers(&rules, asked, None, all, budget).map_err(|_| TooMuch)?;
            names.extend(said.files);
            names.extend(led_to(&said.shapes, &all.own, budget)?);
            old.extend(said.earlier);
            old.extend(led_to(&said.shapes, &all.earlier, budget)?);
            Ok(files.picked(&names, &old))
        };
        return search(index, work).await;
    };
    names.extend(said.files);
    old.extend(said.earlier);
    let mut meant = Vec::new();
    for name in &names {
        meant.extend(index.lookup(scope.deploy, name).await?);
    }
    for deploy in &scope.earlier {
        for name in &old {
            meant.extend(index.lookup(*deploy, name).await?.filter(may_be_earlier));
        }
    }
    Ok(meant)
}

/// What was looked up so far.
#[derive(Default)]
struct Known(HashMap<Vec<u8>, bool>);

impl Lookups for Known {
    fn exists(&self, path: &[u8]) -> Option<bool> {
        self.0.get(path).copied()
    }
}

/// What may answer a path at any host, found out by looking up one file after the other: most rules
/// need only a few. `None` when it takes more than that.
async fn looked_up(
    index: &Index,
    deploy: DeployId,
    rules: &Rules,
    asked: &SitePath,
) -> Result<Option<Answers>, ClientError> {
    let goes_on = AtomicBool::new(false);
    let mut budget = Budget::new(limits::LOOKUP_STEPS_MAX, &goes_on);
    let mut known = Known::default();
    loop {
        match answers(rules, (&asked.path, asked.directory), None, &known, &mut budget) {
            Ok(said) => return Ok(said.shapes.is_empty().then_some(said)),
            Err(Unanswered::TooMuch(_)) => return Ok(None),
            Err(Unanswered::Need(Need(path))) => {
                let exists = index.lookup(deploy, &path).await?.is_some();
                known.0.insert(path, exists);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::time::Duration;

    use atoll_proto::ClusterId;

    use super::*;
    use crate::cache::Cache;
    use crate::fetch::Chunks;
    use crate::fetch::tests::FakeUpstream;

    #[test]
    fn what_deploys_share_is_of_the_earlier_ones_too() {
        let entry = |path: &str| Entry {
            path: path.as_bytes().into(),
            mode: 0o644,
            mtime_ns: 0,
            content: atoll_proto::Content::from_extents(Vec::new()),
            content_type: String::new(),
            header_rule: None,
            variants: Vec::new(),
            base: None,
        };
        let files = |had| {
            let own = vec![entry("a.js"), entry("a.html")];
            Files { own, earlier: vec![entry("b.js")], had, names: OnceLock::new() }
        };
        let names = |of: &[&str]| of.iter().map(|name| name.as_bytes().to_vec()).collect();
        let shared = files(true);
        assert_eq!(shared.names().own, names(&["a.js", "a.html"]));
        assert_eq!(shared.names().earlier, names(&["a.js", "b.js"]));
        assert_eq!(shared.picked(&HashSet::new(), &names(&["a.js"])), [entry("a.js")]);
        assert_eq!(files(false).names().earlier, names(&["b.js"]));
    }

    #[tokio::test]
    async fn a_search_that_nobody_waits_for_ends_and_lets_the_next_begin() {
        let upstream = Arc::new(FakeUpstream::default());
        let chunks = Arc::new(Chunks::new(Arc::new(Cache::in_memory(1 << 20)), upstream));
        let index = Index::open(ClusterId([1; 16]), chunks, Vec::new(), None, 1 << 20);
        let (begun, begins) = tokio::sync::oneshot::channel();
        let endless = |budget: &mut Budget<'_>| {
            begun.send(()).unwrap();
            while budget.spend(0).is_ok() {
                std::thread::yield_now();
            }
            Err::<(), TooMuch>(TooMuch)
        };
        tokio::select! {
            _ = search(&index, endless) => panic!("it was not told to end"),
            told = begins => told.unwrap(),
        }
        let next = search(&index, |budget| budget.spend(1));
        tokio::time::timeout(Duration::from_secs(60), next).await.unwrap().unwrap();
        let all = search(&index, |budget| {
            while budget.left() > 0 {
                budget.spend(1 << 20)?;
            }
            budget.spend(1)
        });
        assert!(matches!(all.await, Err(Unclear::TooMuch(_))));
    }
}
