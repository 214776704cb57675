//! Hard invalidations: which chunks the patterns are about, and dropping them.
//!
//! Called by [`super::follow`] before the entry is acknowledged. Cached bytes are named by their
//! hash and never stale, so this is about getting rid of copies, not about correctness: a chunk
//! that another path uses too is simply fetched again.

use std::collections::HashSet;

use atoll_proto::content::ExtentList;
use atoll_proto::manifest::Entry;
use atoll_proto::publish::Pattern;
use atoll_proto::{ChunkId, Content, DeployId, SiteName};

use super::Index;
use crate::fetch::Worth;
use crate::http::path;
use crate::rules;

/// Drops what is cached of the matching paths, in all current deploys of the site. What cannot be
/// resolved (a page that is not to be had now) stays, with a warning.
pub(super) async fn drop_matching(index: &Index, site: &SiteName, patterns: &[Pattern]) {
    let table = index.table();
    let Some(state) = table.site(site) else {
        return;
    };
    let deploys: HashSet<DeployId> = state.aliases.values().map(|alias| alias.deploy).collect();
    let mut chunks = HashSet::new();
    for deploy in deploys {
        match matching(index, deploy, patterns).await {
            Ok(entries) => {
                for entry in &entries {
                    collect(index, entry, &mut chunks).await;
                }
            }
            Err(error) => {
                tracing::warn!(%site, deploy = %deploy.short(), %error,
                    "an invalidation cannot be resolved; cached copies stay (they are not stale)");
            }
        }
    }
    let dropped = index.chunks.cache().drop_chunks(chunks.into_iter().collect()).await;
    metrics::counter!("atoll_edge_invalidated_chunks_total").increment(dropped as u64);
    tracing::info!(%site, dropped, "invalidated");
}

async fn matching(
    index: &Index,
    deploy: DeployId,
    patterns: &[Pattern],
) -> Result<Vec<Entry>, atoll_client::ClientError> {
    let whole = patterns.iter().any(|p| matches!(p, Pattern::Prefix(_) | Pattern::All));
    if whole {
        let mut entries = atoll_client::entries(index.pages(), deploy).await?;
        entries.retain(|entry| patterns.iter().any(|pattern| matches(pattern, &entry.path.0)));
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
        Ok(asked) => rules::candidates(&asked).into_iter().map(|c| c.file).collect(),
        Err(_) => Vec::new(),
    }
}

/// Whether a file is meant. No file has a tag yet, so a tag means none.
fn matches(pattern: &Pattern, file: &[u8]) -> bool {
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

/// All chunks of a file and its variants. List chunks are read only where they are at hand or to
/// be had.
async fn collect(index: &Index, entry: &Entry, chunks: &mut HashSet<ChunkId>) {
    let variants = entry.variants.iter().map(|variant| &variant.content);
    for content in std::iter::once(&entry.content).chain(variants) {
        let direct = content.direct_chunks();
        if let Content::Lists { .. } = content {
            for list in &direct {
                let Ok(got) = index.chunks.get(*list, Worth::Use).await else {
                    continue;
                };
                let extents = ExtentList::decode(&got.bytes).unwrap_or_default();
                chunks.extend(extents.iter().filter_map(|extent| extent.id));
            }
        }
        chunks.extend(direct);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_name_files() {
        let path = |text: &str| Pattern::Path(text.to_owned());
        let prefix = |text: &str| Pattern::Prefix(text.to_owned());
        assert!(matches(&Pattern::All, b"a/b"));
        assert!(matches(&prefix("/a/"), b"a/b") && !matches(&prefix("/a/"), b"ab"));
        assert!(matches(&prefix("/"), b"anything"));
        assert!(matches(&path("/"), b"index.html") && matches(&path("/a/"), b"a/index.html"));
        assert!(matches(&path("/a"), b"a") && matches(&path("/a"), b"a.html"));
        assert!(!matches(&path("/a"), b"b") && !matches(&path("nonsense/../"), b"nonsense"));
        assert!(!matches(&Pattern::Tag("t".to_owned()), b"a"));
    }
}
