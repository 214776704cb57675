//! Which files the patterns of an invalidation mean.
//!
//! Called by [`super::invalidate`]. A path means what a request for it may be answered with, whoever
//! asks, by the rules of the deploy; a tag means the files that may be answered with it under any
//! URL. Files of earlier deploys count where they may answer, too.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use atoll_client::{ClientError, PageSource as _};
use atoll_proto::manifest::{Entry, Page};
use atoll_proto::publish::Pattern;
use atoll_proto::rules::Rules;
use atoll_proto::rules::answers::{Answers, answers};
use atoll_proto::rules::bearers::{Bearers, SiteFiles, TooMuch, bearers, hosts_at};
use atoll_proto::rules::decide::{Lookups, Need};
use atoll_proto::tags::same_tag;
use atoll_proto::{ChunkId, DeployId, limits};

use super::Index;
use super::table::SiteState;
use crate::http::path::{self, SitePath};
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
            let earlier = files.earlier.iter().map(|(_, entry)| entry);
            meant.extend(files.own.iter().chain(earlier).filter(plain).cloned());
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
    /// Those of earlier deploys that may answer where the deploy has none, latest first.
    earlier: Vec<(DeployId, Entry)>,
}

impl Files {
    /// Reads all pages, the first time.
    async fn once<'f>(
        files: &'f mut Option<Files>,
        index: &Index,
        scope: &Scope,
    ) -> Result<&'f Files, Unclear> {
        if files.is_none() {
            let mut seen = HashSet::new();
            let own = unseen(index, scope.deploy, &mut seen).await?;
            let mut earlier = Vec::new();
            for deploy in &scope.earlier {
                let more = unseen(index, *deploy, &mut seen).await?.into_iter();
                let more = more.filter(may_be_earlier).map(|entry| (*deploy, entry));
                earlier.extend(more);
            }
            *files = Some(Files { own, earlier });
        }
        Ok(files.as_ref().expect("it was just filled in"))
    }

    fn names(&self) -> SiteFiles {
        let name = |entry: &Entry| entry.path.as_bytes().to_vec();
        let own: HashSet<Vec<u8>> = self.own.iter().map(name).collect();
        let earlier = self.earlier.iter().map(|(_, entry)| name(entry));
        let earlier = earlier.filter(|path| !own.contains(path)).collect();
        SiteFiles { own, earlier }
    }
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
    files: &mut Option<Files>,
) -> Result<Vec<Entry>, Unclear> {
    let rules = index.rules(scope.deploy).await?;
    if rules.set().headers.is_empty() {
        return Ok(Vec::new());
    }
    let files = Files::once(files, index, scope).await?;
    let names = files.names();
    let work = move || {
        let wanted = |tag: &str| tags.iter().any(|own| same_tag(own, tag));
        bearers(&rules, &wanted, &names)
    };
    let found = atoll_net::task::spawn_blocking("bearers", work).await;
    let Bearers { own, earlier } = found.map_err(|error| Unclear::Stopped(error.to_string()))??;
    let is = |names: &HashSet<Vec<u8>>, entry: &Entry| names.contains(entry.path.as_bytes());
    let own = files.own.iter().filter(|entry| is(&own, entry));
    let earlier = files.earlier.iter().map(|(_, entry)| entry).filter(|entry| is(&earlier, entry));
    Ok(own.chain(earlier).cloned().collect())
}

/// The files that a request for a path may be answered with.
async fn by_path(
    index: &Index,
    scope: &Scope,
    raw: &str,
    files: &mut Option<Files>,
) -> Result<Vec<Entry>, Unclear> {
    let Ok(asked) = path::parse(raw.as_bytes()) else {
        return Ok(Vec::new());
    };
    let rules = index.rules(scope.deploy).await?;
    let mut names: HashSet<Vec<u8>> = candidates(&asked).into_iter().collect();
    let mut old: HashSet<Vec<u8>> = candidates(&asked).into_iter().collect();
    let mut shapes = Vec::new();
    for host in hosts_at(&rules, (&asked.path, asked.directory)) {
        // Pages at hand are no reason to wait, and there may be many hosts.
        tokio::task::yield_now().await;
        let said = any_answer(index, scope.deploy, &rules, &asked, &host).await?;
        names.extend(said.files);
        old.extend(said.earlier);
        shapes.extend(said.shapes);
    }
    let mut meant = Vec::new();
    for name in &names {
        meant.extend(index.lookup(scope.deploy, name).await?);
    }
    for deploy in &scope.earlier {
        for name in &old {
            meant.extend(index.lookup(*deploy, name).await?.filter(may_be_earlier));
        }
    }
    if !shapes.is_empty() {
        let files = Files::once(files, index, scope).await?;
        let all = files.own.iter().chain(files.earlier.iter().map(|(_, entry)| entry));
        let fits =
            |entry: &&Entry| shapes.iter().any(|shape| shape.may_lead_to(entry.path.as_bytes()));
        meant.extend(all.filter(fits).cloned());
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

async fn any_answer(
    index: &Index,
    deploy: DeployId,
    rules: &Arc<Rules>,
    asked: &SitePath,
    host: &str,
) -> Result<Answers, ClientError> {
    let mut known = Known::default();
    loop {
        match answers(rules, (&asked.path, asked.directory), host, &known) {
            Ok(said) => return Ok(said),
            Err(Need(path)) => {
                let exists = index.lookup(deploy, &path).await?.is_some();
                known.0.insert(path, exists);
            }
        }
    }
}
