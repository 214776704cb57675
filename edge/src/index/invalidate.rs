//! Hard invalidations: dropping the chunks that the patterns are about.
//!
//! Called by [`super::follow`] before the entry is acknowledged: whatever is asked for afterwards
//! is fetched anew. When what the patterns are about cannot be found out in time, everything goes.
//! Cached bytes are named by their hash and never stale, so this is about getting rid of copies: a
//! chunk that another path uses too is simply fetched again.

use std::collections::HashSet;
use std::time::Duration;

use atoll_client::ClientError;
use atoll_proto::content::ExtentList;
use atoll_proto::manifest::Entry;
use atoll_proto::publish::Pattern;
use atoll_proto::{ChunkId, Content, SiteName};
use tokio::time::Instant;

use super::Index;
use super::meant::{Unclear, meant};
use super::table::{SiteState, Table};
use crate::clock;
use crate::fetch::Worth;
use crate::http::path;
use crate::rules::candidates;

/// How long finding the chunks may hold up the log, for all invalidations that come at once.
pub(super) const RESOLVE: Duration = Duration::from_secs(3);
/// How long the disk may take to make the drops last through a power cut.
const SYNC: Duration = Duration::from_secs(1);

/// Drops what is cached of the files that the patterns mean; everything when that is not known at
/// the deadline.
pub(super) async fn drop_matching(
    index: &Index,
    table: &Table,
    (site, patterns): (&SiteName, &[Pattern]),
    deadline: Instant,
) {
    let Some(state) = table.site(site) else {
        return;
    };
    match tokio::time::timeout_at(deadline, chunks_of(index, state, patterns)).await {
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
}

/// Makes the drops last through a power cut.
pub(super) async fn sync_drops(index: &Index) {
    match tokio::time::timeout(SYNC, index.chunks.cache().sync_drops()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "drops may be undone by a power cut"),
        Err(_) => tracing::info!("the disk is slow: drops may be undone by a power cut"),
    }
}

async fn chunks_of(
    index: &Index,
    state: &SiteState,
    patterns: &[Pattern],
) -> Result<Vec<ChunkId>, Unclear> {
    let mut chunks = HashSet::new();
    for entry in meant(index, state, patterns, clock::wall_ms()).await? {
        collect(index, &entry, &mut chunks).await?;
    }
    Ok(chunks.into_iter().collect())
}

/// Whether a path or a prefix names a file by its own path, whatever rules lead to it. A takedown is
/// about the bytes at a name; what else a request may be answered with is not meant to go for ever.
/// Tags do not go by that.
pub fn names(pattern: &Pattern, file: &[u8]) -> bool {
    match pattern {
        Pattern::All => true,
        Pattern::Prefix(prefix) => {
            let prefix = prefix.strip_prefix('/').unwrap_or(prefix).as_bytes();
            file.starts_with(prefix)
        }
        Pattern::Path(path) => path::parse(path.as_bytes())
            .is_ok_and(|asked| candidates(&asked).iter().any(|wanted| wanted == file)),
        Pattern::Tag(_) => false,
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
