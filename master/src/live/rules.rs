//! The rules of a live site: `_redirects` and `_headers` are read and compiled when they, or the
//! site's settings, have changed since they were last.
//!
//! These two are the only files whose bytes the master reads, and they are bounded by
//! `limits::RULES_FILE_BYTES_MAX`. What they are compiled to is what the client makes of the same
//! files for a deploy.

use atoll_proto::content::{Extent, ExtentList};
use atoll_proto::error::WireResult;
use atoll_proto::manifest::Entry;
use atoll_proto::rules::parse::{Sources, parse};
use atoll_proto::rules::stored::StoredRules;
use atoll_proto::rules::{HEADERS_FILE, REDIRECTS_FILE, RuleSet};
use atoll_proto::site::SiteSettings;
use atoll_proto::{ChunkId, Content, WireError, limits};
use tokio::time::Instant;

use super::seal::Unsealed;
use crate::server::Master;
use crate::store::{Read, StoreError, objects};

/// What rules are compiled from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Source {
    redirects: Option<Content>,
    headers: Option<Content>,
    /// The settings that are part of the rules, and no others.
    settings: RuleSet,
}

/// Compiled rules, and what from.
#[derive(Debug, Clone, Default)]
pub(super) struct Compiled {
    source: Source,
    /// What the manifest's root says of them.
    content: Option<Content>,
}

impl Source {
    /// What the rules of these files are compiled from.
    pub(super) fn new(files: &[Entry], settings: &SiteSettings) -> Self {
        let content = |name: &str| {
            let file = files.iter().find(|file| file.path.as_bytes() == name.as_bytes());
            file.map(|file| file.content.clone())
        };
        Self {
            redirects: content(REDIRECTS_FILE),
            headers: content(HEADERS_FILE),
            settings: RuleSet::of_settings(settings),
        }
    }
}

impl Compiled {
    /// What the root says of rules compiled from this, if these are and are still stored.
    pub(super) fn content(
        &self,
        source: &Source,
        state: &impl Read,
    ) -> Result<Option<Option<Content>>, StoreError> {
        if self.source != *source {
            return Ok(None);
        }
        for id in self.content.iter().flat_map(Content::direct_chunks) {
            if !objects::has(state, &id)? {
                return Ok(None);
            }
        }
        Ok(Some(self.content.clone()))
    }

    /// Rules that are stored.
    pub(super) fn new(source: Source, content: Option<Content>) -> Self {
        Self { source, content }
    }
}

/// Reads and compiles; the chunks are for the caller to store.
pub(super) async fn compile(
    master: &Master,
    source: &Source,
    deadline: Instant,
) -> Result<StoredRules, Unsealed> {
    let redirects = read(master, REDIRECTS_FILE, source.redirects.as_ref(), deadline).await?;
    let headers = read(master, HEADERS_FILE, source.headers.as_ref(), deadline).await?;
    let RuleSet { dialect, html, spa, .. } = source.settings;
    let settings = SiteSettings { dialect, html_handling: html, spa, ..SiteSettings::default() };
    let chunk_bytes = master.cluster_record()?.chunk_bytes;
    let work = move || {
        let sources = Sources { redirects: redirects.as_deref(), headers: headers.as_deref() };
        let set = parse(sources, &settings).map_err(|faults| faults.to_string())?;
        set.store(chunk_bytes).map_err(|error| error.reason)
    };
    let compiled = atoll_net::task::spawn_blocking("rules", work).await;
    let compiled = compiled.map_err(|error| WireError::internal(error.to_string()))?;
    compiled.map_err(|faults| Unsealed::Problems(faults.replace('\n', "; ")))
}

/// The bytes of one of the files, if it is there.
async fn read(
    master: &Master,
    name: &str,
    content: Option<&Content>,
    deadline: Instant,
) -> Result<Option<Vec<u8>>, Unsealed> {
    let Some(content) = content else { return Ok(None) };
    let max = limits::RULES_FILE_BYTES_MAX;
    if content.size() > max as u64 {
        let size = content.size();
        let problem = format!("{name}: {size} bytes are too many: at most {max}");
        return Err(Unsealed::Problems(problem));
    }
    let mut bytes = Vec::new();
    for part in extents(master, content, deadline).await?.chunks(READ_AT_ONCE) {
        let ids: Vec<ChunkId> = part.iter().filter_map(|extent| extent.id).collect();
        let chunks = master.read_chunks(&ids, deadline).await?;
        for extent in part {
            match extent.id.map(|id| chunks.get(&id)) {
                Some(Some(chunk)) => bytes.extend_from_slice(chunk),
                Some(None) => return Err(changed(name).into()),
                None => bytes.resize(bytes.len() + extent.len as usize, 0),
            }
            // The size was checked, so whatever is longer is not what it is said to be.
            if bytes.len() > max {
                return Err(changed(name).into());
            }
        }
    }
    Ok(Some(bytes))
}

/// Chunks read at a time, so that memory stays bounded.
const READ_AT_ONCE: usize = 16;

async fn extents(master: &Master, content: &Content, deadline: Instant) -> WireResult<Vec<Extent>> {
    let lists = match content {
        Content::Empty => return Ok(Vec::new()),
        Content::Extents(extents) => return Ok(extents.clone()),
        Content::Lists { lists, .. } => lists,
    };
    let mut all = Vec::new();
    for (_, id) in lists {
        let chunks = master.read_chunks(&[*id], deadline).await?;
        let bytes = chunks.get(id).cloned().unwrap_or_default();
        let list = ExtentList::decode(&bytes);
        all.extend(list.map_err(|error| WireError::internal(error.to_string()))?);
        let size: u64 = all.iter().map(|extent: &Extent| u64::from(extent.len)).sum();
        if size > content.size() {
            return Err(WireError::internal(format!("list {id} is longer than its file")));
        }
    }
    Ok(all)
}

fn changed(name: &str) -> WireError {
    WireError::unavailable(format!("{name} cannot be read as it is said to be"))
}
