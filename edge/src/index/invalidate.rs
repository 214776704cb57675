//! Hard invalidations: dropping the chunks that the patterns are about.
//!
//! Called by [`super::follow`] before the entry is acknowledged: whatever is asked for afterwards
//! is fetched anew. When what the patterns are about cannot be found out in time, everything goes.
//! Cached bytes are named by their hash and never stale, so this is about getting rid of copies: a
//! chunk that another path uses too is simply fetched again.

use std::time::Duration;

use atoll_proto::SiteName;
use atoll_proto::publish::Pattern;
use atoll_proto::rules::template::decode;
use tokio::time::Instant;

use super::Index;
use super::meant::meant;
use super::table::Table;
use crate::clock;
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
    let resolving = async {
        // What is ready at once would not notice that others have taken all the time.
        let late = Instant::now() >= deadline;
        if late { None } else { Some(meant(index, state, patterns, clock::wall_ms()).await) }
    };
    match tokio::time::timeout_at(deadline, resolving).await {
        Ok(Some(Ok(chunks))) => {
            let chunks: Vec<_> = chunks.into_iter().collect();
            let dropped = index.chunks.drop_chunks(&chunks).await;
            metrics::counter!("atoll_edge_invalidated_chunks_total").increment(dropped as u64);
            tracing::info!(%site, chunks = chunks.len(), dropped, "invalidated");
        }
        unresolved => {
            let error = match unresolved {
                Ok(Some(Err(error))) => error.to_string(),
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

/// What the paths of files begin with that a prefix is about: decoded, as the path of a request is. The
/// masters take none that is malformed; one from before that is what it says.
pub(super) fn beginning(prefix: &str) -> Vec<u8> {
    let raw = prefix.strip_prefix('/').unwrap_or(prefix).as_bytes();
    decode(raw).unwrap_or_else(|| raw.to_vec())
}

/// Whether a path or a prefix names a file by its own path, whatever rules lead to it. A takedown is
/// about the bytes at a name; what else a request may be answered with is not meant to go for ever.
/// Tags do not go by that.
pub fn names(pattern: &Pattern, file: &[u8]) -> bool {
    match pattern {
        Pattern::All => true,
        Pattern::Prefix(prefix) => file.starts_with(&beginning(prefix)),
        Pattern::Path(path) => path::parse(path.as_bytes())
            .is_ok_and(|asked| candidates(&asked).iter().any(|wanted| wanted == file)),
        Pattern::Tag(_) => false,
    }
}
