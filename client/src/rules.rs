//! The rules of a deploy: read from its files and sent, and asked about a deploy that is stored.
//!
//! [`crate::deploy()`] calls [`compile`] before anything else, so that an error in `_redirects` or
//! `_headers` is told before anything is uploaded. What the rules mean is in `atoll_proto::rules`.

use std::io::Read as _;
use std::path::PathBuf;

use atoll_proto::manifest::Entry;
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::receipt::Receipt;
use atoll_proto::rules::decide::{Decision, Lookups, Need, Question};
use atoll_proto::rules::parse::{Sources, parse};
use atoll_proto::rules::stored::StoredRules;
use atoll_proto::rules::{HEADERS_FILE, REDIRECTS_FILE, RuleSet, Rules};
use atoll_proto::site::{Dialect, HtmlHandling, SiteSettings};
use atoll_proto::{ChunkId, Code, DeployId, SiteName, limits};
use bytes::Bytes;

use crate::deploy::{DeployError, SourceFile};
use crate::manifest::{PageSource, lookup};
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

/// The rules of a stored deploy; those without any if it has none.
///
/// # Errors
/// When the root of its manifest or the rules cannot be read.
pub async fn of_deploy(cluster: &Cluster, deploy: DeployId) -> Result<Rules, ClientError> {
    let root = crate::manifest::root(cluster, deploy).await?;
    let Some(content) = &root.rules else { return Ok(Rules::default()) };
    let chunks = cluster.read_chunks(&content.direct_chunks()).await?;
    Rules::decode(&chunks.concat())
        .map_err(|error| ClientError::Malformed { what: format!("of {deploy}: {error}") })
}

/// What was looked up in a manifest for one question.
#[derive(Debug, Default)]
pub struct LookedUp(Vec<(Vec<u8>, Option<Entry>)>);

impl LookedUp {
    /// The file at a path that was found.
    pub fn take(&mut self, path: &[u8]) -> Option<Entry> {
        self.0.iter_mut().find(|(own, _)| own == path).and_then(|(_, entry)| entry.take())
    }

    /// The paths that were looked up.
    pub fn names(self) -> impl Iterator<Item = Vec<u8>> {
        self.0.into_iter().map(|(path, _)| path)
    }
}

impl Lookups for LookedUp {
    fn exists(&self, path: &[u8]) -> Option<bool> {
        self.0.iter().find(|(own, _)| own == path).map(|(_, entry)| entry.is_some())
    }
}

/// What the rules decide for a request to a stored deploy, and what was looked up for that.
///
/// # Errors
/// When a page of the manifest cannot be read.
pub async fn decide<S: PageSource>(
    source: &S,
    deploy: DeployId,
    question: &Question<'_>,
) -> Result<(Decision, LookedUp), ClientError> {
    let mut known = LookedUp::default();
    // Each round looks up another path, of the few that the rules that fit can name.
    loop {
        match question.decide(&known) {
            Ok(decision) => return Ok((decision, known)),
            Err(Need(path)) => {
                let entry = lookup(source, deploy, &path).await?;
                known.0.push((path, entry));
            }
        }
    }
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
) -> Result<StoredRules, DeployError> {
    let settings = choices.apply(&settings(cluster, site).await?);
    let own = |file: &&SourceFile| atoll_proto::rules::is_rule_file(file.site_path.as_bytes());
    let files: Vec<SourceFile> = files.iter().filter(own).cloned().collect();
    let store = move |set: RuleSet| set.store(chunk_bytes).map_err(DeployError::RulesTooLong);
    let work = move || Ok(read_rules(&files, &settings).and_then(store));
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

/// Sends the chunks of the rules that the cluster lacks, or all. Returns their receipts and bytes; on
/// a dry run only what would travel.
pub(crate) async fn send(
    cluster: &Cluster,
    rules: &StoredRules,
    all: bool,
    dry_run: bool,
) -> Result<(Vec<Receipt>, u64), ClientError> {
    if rules.chunks.is_empty() {
        return Ok((Vec::new(), 0));
    }
    let ids: Vec<ChunkId> = rules.chunks.iter().map(|(id, _)| *id).collect();
    let known = cluster.known(&ids).await?;
    let lacking = rules.chunks.iter().zip(known).filter(|(_, known)| all || !known);
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
