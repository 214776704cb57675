//! Hard invalidations: which chunks the patterns are about, and dropping them.
//!
//! Called by [`super::follow`] before the entry is acknowledged: whatever is asked for afterwards
//! is fetched anew. When what the patterns are about cannot be found out in time, everything goes.
//! Cached bytes are named by their hash and never stale, so this is about getting rid of copies: a
//! chunk that another path uses too is simply fetched again.

use std::collections::HashSet;
use std::time::Duration;

use atoll_client::{ClientError, PageSource as _};
use atoll_proto::content::ExtentList;
use atoll_proto::manifest::{Entry, Page, Root};
use atoll_proto::publish::Pattern;
use atoll_proto::tags::{same_tag, tags_of};
use atoll_proto::{ChunkId, Content, DeployId, SiteName};

use super::Index;
use super::table::Table;
use crate::fetch::Worth;
use crate::http::path;
use crate::rules;

/// How long finding the chunks may hold up the log.
const RESOLVE: Duration = Duration::from_secs(3);
/// How long the disk may take to make the drops last through a power cut.
const SYNC: Duration = Duration::from_secs(1);

/// Drops what is cached of the matching paths, in all current deploys of the site.
pub(super) async fn drop_matching(
    index: &Index,
    table: &Table,
    site: &SiteName,
    patterns: &[Pattern],
) {
    let Some(state) = table.site(site) else {
        return;
    };
    let deploys: HashSet<DeployId> = state.aliases.values().map(|alias| alias.deploy).collect();
    match tokio::time::timeout(RESOLVE, chunks_of(index, &deploys, patterns)).await {
        Ok(Ok(chunks)) => {
            let dropped = index.chunks.drop_chunks(&chunks).await;
            metrics::counter!("atoll_edge_invalidated_chunks_total").increment(dropped as u64);
            tracing::info!(%site, chunks = chunks.len(), dropped, "invalidated");
        }
        unresolved => {
            let error = match unresolved {
                Ok(Err(error)) => error.to_string(),
                _ => "it takes too long".to_owned(),
            };
            tracing::warn!(%site, error, "an invalidation cannot be resolved: all copies go");
            metrics::counter!("atoll_edge_cache_cleared_total").increment(1);
            index.chunks.clear().await;
        }
    }
    match tokio::time::timeout(SYNC, index.chunks.cache().sync_drops()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "drops may be undone by a power cut"),
        Err(_) => tracing::info!("the disk is slow: drops may be undone by a power cut"),
    }
}

async fn chunks_of(
    index: &Index,
    deploys: &HashSet<DeployId>,
    patterns: &[Pattern],
) -> Result<Vec<ChunkId>, ClientError> {
    let mut chunks = HashSet::new();
    for deploy in deploys {
        let patterns = patterns_of(index, *deploy, patterns).await?;
        for entry in matching(index, *deploy, &patterns, &headers_by_rules).await? {
            collect(index, &entry, &mut chunks).await?;
        }
    }
    Ok(chunks.into_iter().collect())
}

/// The patterns as they concern one deploy.
async fn patterns_of(
    index: &Index,
    deploy: DeployId,
    patterns: &[Pattern],
) -> Result<Vec<Pattern>, ClientError> {
    if !patterns.iter().any(|pattern| matches!(pattern, Pattern::Tag(_))) {
        return Ok(patterns.to_vec());
    }
    let root = index.pages().page(deploy).await?;
    let has_rules = matches!(&*root, Page::RootV1(Root { rules: Some(_), .. }));
    Ok(widened(patterns, has_rules))
}

/// Rules are not asked for the tags of each file: where there are rules, a tag means every file, so
/// that none that has it is left out; where there are none, no file has a tag.
fn widened(patterns: &[Pattern], has_rules: bool) -> Vec<Pattern> {
    let tag = |pattern: &&Pattern| matches!(pattern, Pattern::Tag(_));
    if has_rules && patterns.iter().any(|pattern| tag(&pattern)) {
        return vec![Pattern::All];
    }
    patterns.iter().filter(|pattern| !tag(pattern)).cloned().collect()
}

/// Headers that the rules of a deploy give a file; its tags are among them ([`tags_of`]).
type HeadersOf<'a> = &'a (dyn Fn(&Entry) -> Vec<(String, String)> + Sync);

/// The one place that knows which headers a file has. Rules are not asked here yet: [`widened`] has
/// made up for that.
fn headers_by_rules(_entry: &Entry) -> Vec<(String, String)> {
    Vec::new()
}

async fn matching(
    index: &Index,
    deploy: DeployId,
    patterns: &[Pattern],
    headers: HeadersOf<'_>,
) -> Result<Vec<Entry>, ClientError> {
    let paths_only = patterns.iter().all(|pattern| matches!(pattern, Pattern::Path(_)));
    if !paths_only {
        let mut entries = atoll_client::entries(index.pages(), deploy).await?;
        entries.retain(|entry| patterns.iter().any(|pattern| matches(pattern, entry, headers)));
        return Ok(entries);
    }
    let mut entries = Vec::new();
    for pattern in patterns {
        for file in files_of(pattern) {
            entries.extend(index.lookup(deploy, &file).await?);
        }
    }
    Ok(entries)
}

/// The files a path pattern may mean: what a request for that path could be answered with.
fn files_of(pattern: &Pattern) -> Vec<Vec<u8>> {
    let Pattern::Path(path) = pattern else {
        return Vec::new();
    };
    match path::parse(path.as_bytes()) {
        Ok(asked) => rules::candidates(&asked),
        Err(_) => Vec::new(),
    }
}

/// Whether a file is meant, by its path. Tags do not go by that.
pub fn names(pattern: &Pattern, file: &[u8]) -> bool {
    match pattern {
        Pattern::All => true,
        Pattern::Prefix(prefix) => {
            let prefix = prefix.strip_prefix('/').unwrap_or(prefix).as_bytes();
            file.starts_with(prefix)
        }
        Pattern::Path(_) => files_of(pattern).iter().any(|wanted| wanted == file),
        Pattern::Tag(_) => false,
    }
}

/// Whether a file is meant.
fn matches(pattern: &Pattern, entry: &Entry, headers: HeadersOf<'_>) -> bool {
    match pattern {
        Pattern::Tag(tag) => tags_of(&headers(entry)).any(|found| same_tag(found, tag)),
        _ => names(pattern, entry.path.as_bytes()),
    }
}

/// All chunks of a file and its variants.
async fn collect(
    index: &Index,
    entry: &Entry,
    chunks: &mut HashSet<ChunkId>,
) -> Result<(), ClientError> {
    let variants = entry.variants.iter().map(|variant| &variant.content);
    for content in std::iter::once(&entry.content).chain(variants) {
        let direct = content.direct_chunks();
        if let Content::Lists { .. } = content {
            for list in &direct {
                let bad = |reason: String| {
                    let what = format!("list chunk {}", list.short());
                    ClientError::Unreachable { what, reason }
                };
                let got = index.chunks.get(*list, Worth::Use).await;
                let got = got.map_err(|error| bad(error.to_string()))?;
                let extents = ExtentList::decode(&got.bytes);
                let extents = extents.map_err(|error| bad(error.to_string()))?;
                chunks.extend(extents.iter().filter_map(|extent| extent.id));
            }
        }
        chunks.extend(direct);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str) -> Entry {
        Entry {
            path: path.as_bytes().into(),
            mode: 0o644,
            mtime_ns: 0,
            content: Content::from_extents(Vec::new()),
            content_type: String::new(),
            header_rule: None,
            variants: Vec::new(),
            base: None,
        }
    }

    #[test]
    fn patterns_name_files() {
        let none = |_: &Entry| Vec::new();
        let named = |pattern: &Pattern, file: &str| matches(pattern, &entry(file), &none);
        let path = |text: &str| Pattern::Path(text.to_owned());
        let prefix = |text: &str| Pattern::Prefix(text.to_owned());
        assert!(named(&Pattern::All, "a/b"));
        assert!(named(&prefix("/a/"), "a/b") && !named(&prefix("/a/"), "ab"));
        assert!(named(&prefix("/"), "anything"));
        assert!(named(&path("/"), "index.html") && named(&path("/a/"), "a/index.html"));
        assert!(named(&path("/a"), "a") && named(&path("/a"), "a.html"));
        assert!(!named(&path("/a"), "b") && !named(&path("nonsense/../"), "nonsense"));
        assert!(!named(&Pattern::Tag("t".to_owned()), "a"));
    }

    #[test]
    fn a_tag_means_every_file_that_rules_may_have_given_it() {
        let paths = vec![Pattern::Path("/a".to_owned())];
        let patterns = [paths.clone(), vec![Pattern::Tag("t".to_owned())]].concat();
        assert_eq!(widened(&patterns, true), [Pattern::All]);
        assert_eq!(widened(&patterns, false), paths);
        assert_eq!(widened(&paths, true), paths);
    }

    #[test]
    fn tags_come_from_headers() {
        let headers = |entry: &Entry| {
            let tags = if entry.path.as_bytes() == b"a" { "News, home" } else { "other" };
            vec![("Cache-Tag".to_owned(), tags.to_owned())]
        };
        let tag = Pattern::Tag("news".to_owned());
        assert!(matches(&tag, &entry("a"), &headers) && !matches(&tag, &entry("b"), &headers));
    }
}
