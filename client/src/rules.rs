//! The rules of a deploy: read from its files, cut into chunks, sent.
//!
//! [`crate::deploy`] calls [`compile`] before anything else, so that an error in `_redirects` or
//! `_headers` is told before anything is uploaded. What the rules mean is in `atoll_proto::rules`.

use std::io::Read as _;
use std::path::PathBuf;

use atoll_proto::content::Extent;
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::receipt::Receipt;
use atoll_proto::rules::parse::{Sources, parse};
use atoll_proto::rules::{HEADERS_FILE, REDIRECTS_FILE, RuleSet};
use atoll_proto::site::{Dialect, HtmlHandling, SiteSettings};
use atoll_proto::{ChunkId, Code, Content, SiteName, limits};
use bytes::Bytes;

use crate::deploy::{DeployError, SourceFile};
use crate::upload::blocking;
use crate::{ClientError, Cluster};

/// What a deploy has instead of the site's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RuleChoices {
    /// How `_redirects` and `_headers` are read.
    pub dialect: Option<Dialect>,
    /// How URLs of pages look.
    pub html_handling: Option<HtmlHandling>,
    /// Whether navigations to paths that do not exist get `/index.html`.
    pub spa: Option<bool>,
}

impl RuleChoices {
    /// The settings with these choices.
    pub fn apply(&self, settings: &SiteSettings) -> SiteSettings {
        SiteSettings {
            dialect: self.dialect.unwrap_or(settings.dialect),
            html_handling: self.html_handling.unwrap_or(settings.html_handling),
            spa: self.spa.unwrap_or(settings.spa),
            ..settings.clone()
        }
    }
}

/// Compiled rules as chunks.
#[derive(Debug, Default)]
pub(crate) struct BuiltRules {
    /// What the manifest's root says of them; `None` for a deploy without any.
    pub(crate) content: Option<Content>,
    chunks: Vec<(ChunkId, Bytes)>,
}

/// Reads the rules among these files.
///
/// # Errors
/// When one of the files cannot be read, or with everything that is wrong in them.
pub fn read_rules(files: &[SourceFile], settings: &SiteSettings) -> Result<RuleSet, DeployError> {
    let redirects = read(files, REDIRECTS_FILE)?;
    let headers = read(files, HEADERS_FILE)?;
    let sources = Sources { redirects: redirects.as_deref(), headers: headers.as_deref() };
    Ok(parse(sources, settings)?)
}

fn read(files: &[SourceFile], name: &str) -> Result<Option<Vec<u8>>, DeployError> {
    let Some(file) = files.iter().find(|file| file.site_path.as_bytes() == name.as_bytes()) else {
        return Ok(None);
    };
    // One byte more than there may be: the parser tells that it is too long.
    let bound = limits::RULES_FILE_BYTES_MAX as u64 + 1;
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(&file.disk_path);
    match opened.and_then(|opened| opened.take(bound).read_to_end(&mut bytes)) {
        Ok(_) => Ok(Some(bytes)),
        Err(error) => {
            let files: Vec<(PathBuf, String)> = vec![(file.disk_path.clone(), error.to_string())];
            Err(DeployError::Unreadable { files })
        }
    }
}

/// Compiles the rules among these files with the site's settings.
///
/// # Errors
/// As [`read_rules`], and when the master cannot be asked or the rules are too many.
pub(crate) async fn compile(
    cluster: &Cluster,
    site: &SiteName,
    choices: RuleChoices,
    files: &[SourceFile],
    chunk_bytes: u32,
) -> Result<BuiltRules, DeployError> {
    let settings = choices.apply(&settings(cluster, site).await?);
    let own = |file: &&SourceFile| atoll_proto::rules::is_rule_file(file.site_path.as_bytes());
    let files: Vec<SourceFile> = files.iter().filter(own).cloned().collect();
    let work = move || Ok(read_rules(&files, &settings).and_then(|set| build(set, chunk_bytes)));
    blocking(work).await?
}

/// The site's settings; those of a new one when it is yet to be created.
async fn settings(cluster: &Cluster, site: &SiteName) -> Result<SiteSettings, ClientError> {
    let request = MasterRequest::Site { site: site.clone() };
    match cluster.master(&request, limits::METADATA_DEADLINE).await {
        Ok(MasterResponse::Site { site, .. }) => Ok(site.settings),
        Ok(_) => Err(ClientError::unexpected("the master")),
        // Whether that is an error is decided where the site is needed.
        Err(error) if error.code() == Some(Code::NotFound) => Ok(SiteSettings::default()),
        Err(error) => Err(error),
    }
}

fn build(set: RuleSet, chunk_bytes: u32) -> Result<BuiltRules, DeployError> {
    if set.is_default() {
        return Ok(BuiltRules::default());
    }
    let bytes = Bytes::from(set.encode().map_err(DeployError::RulesTooLong)?);
    let mut built = BuiltRules::default();
    let mut extents = Vec::new();
    let mut from = 0;
    while from < bytes.len() {
        let part = bytes.slice(from..bytes.len().min(from + chunk_bytes.max(1) as usize));
        from += part.len();
        let id = ChunkId::of(&part);
        let len = u32::try_from(part.len()).unwrap_or(u32::MAX);
        extents.push(Extent { id: Some(id), len });
        built.chunks.push((id, part));
    }
    built.content = Some(Content::from_extents(extents));
    Ok(built)
}

impl BuiltRules {
    /// Sends the chunks that the cluster lacks, or all. Returns their receipts and bytes; on a dry
    /// run only what would travel.
    pub(crate) async fn send(
        &self,
        cluster: &Cluster,
        all: bool,
        dry_run: bool,
    ) -> Result<(Vec<Receipt>, u64), ClientError> {
        if self.chunks.is_empty() {
            return Ok((Vec::new(), 0));
        }
        let ids: Vec<ChunkId> = self.chunks.iter().map(|(id, _)| *id).collect();
        let known = cluster.known(&ids).await?;
        let lacking = self.chunks.iter().zip(known).filter(|(_, known)| all || !known);
        let lacking: Vec<&(ChunkId, Bytes)> = lacking.map(|(chunk, _)| chunk).collect();
        let bytes = lacking.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        if dry_run {
            return Ok((Vec::new(), bytes));
        }
        let writer = cluster.writer();
        for (id, part) in lacking {
            drop(writer.put_hashed(*id, part.clone()).await?);
        }
        Ok((writer.flush().await?, bytes))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::rules::Rules;

    use super::*;

    #[test]
    fn many_rules_are_cut_into_chunks_and_come_back() {
        let text: String = (0..100_000)
            .map(|n| format!("/articles/2019/{n}-a-title /blog/{n}-a-title 301\n"))
            .collect();
        let sources = Sources { redirects: Some(text.as_bytes()), headers: None };
        let set = parse(sources, &SiteSettings::default()).unwrap();
        let built = build(set.clone(), 1 << 20).unwrap();
        let content = built.content.unwrap();
        assert!(built.chunks.len() > 1 && matches!(content, Content::Extents(_)));
        let bytes: Vec<u8> = built.chunks.iter().flat_map(|(_, part)| part.to_vec()).collect();
        assert_eq!(content.size(), bytes.len() as u64);
        assert_eq!(Rules::decode(&bytes).unwrap().set(), &set);
    }

    #[test]
    fn a_site_without_rules_has_none() {
        assert!(build(RuleSet::default(), 1 << 20).unwrap().content.is_none());
        let spa = RuleSet { spa: true, ..RuleSet::default() };
        assert!(build(spa, 1 << 20).unwrap().content.is_some());
    }
}
