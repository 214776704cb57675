//! A deploy: hash, ask what is missing, send that, admit the manifest, publish, wait.
//!
//! Nothing of a deploy is visible before the one atomic publish at its end. What was uploaded
//! before an interruption is known to the cluster and does not travel again.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use atoll_net::task::Boxed;
use atoll_proto::content::Extent;
use atoll_proto::erase::Erasure;
use atoll_proto::manifest::Entry;
use atoll_proto::master::{AdmitPage, MasterRequest, MasterResponse, ObjectKind};
use atoll_proto::publish::{Published, SiteOp};
use atoll_proto::receipt::Receipt;
use atoll_proto::rules::parse::Faults;
use atoll_proto::rules::stored::StoredRules;
use atoll_proto::{AliasName, ByteName, ChunkId, Code, Content, DeployId, Seq, SiteName, limits};
use futures_util::StreamExt as _;

use crate::manifest::{BuiltManifest, ManifestError, build, entries};
use crate::publish::{Wait, wait_applied};
use crate::rules::{self, RuleChoices};
use crate::stat_cache::{Stamp, StatCache};
use crate::upload::{
    Place, STAGE_BYTES, STAGE_CHUNKS, blocking, hash_file, read_chunk_again, stage,
};
use crate::write::covering;
use crate::{ChunkWriter, ClientError, Cluster};

/// How often chunks are made known or pages admitted, with those sent again that went missing.
const KNOWN_TRIES: usize = 4;
/// Children that one admission may name, so that its receipts fit in a message.
const ADMIT_CHILDREN: usize = 8_000;

/// A file of the tree to deploy, as the scan found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Its path within the site.
    pub site_path: ByteName,
    /// Where it is on the local disk.
    pub disk_path: PathBuf,
    /// Its length when it was scanned.
    pub size: u64,
    /// When it was last modified, nanoseconds since the Unix epoch.
    pub mtime_ns: i64,
    /// Permission bits.
    pub mode: u32,
    /// The value of `Content-Type` it is served with.
    pub content_type: String,
}

/// What to do with the tree.
#[derive(Debug, Clone)]
pub struct DeployOptions {
    /// Which site.
    pub site: SiteName,
    /// Which alias to point at the deploy.
    pub alias: AliasName,
    /// What the author says about it.
    pub message: String,
    /// Only if the alias points at this deploy (`Some(None)`: at nothing).
    pub if_current: Option<Option<DeployId>>,
    /// Create the site when there is none.
    pub create: bool,
    /// Remove the alias after so long; whole seconds.
    pub lifetime: Option<Duration>,
    /// Send every chunk and page, also those the cluster says it has: mends what it has lost.
    pub reupload: bool,
    /// Find out what would travel, and stop.
    pub dry_run: bool,
    /// Which edges to wait for.
    pub wait: Wait,
    /// How long to wait for them.
    pub wait_timeout: Duration,
    /// File that remembers hashes of unchanged files.
    pub stat_cache: Option<PathBuf>,
    /// Files hashed and uploaded at the same time.
    pub parallel: usize,
    /// What it has instead of the site's settings.
    pub rules: RuleChoices,
}

/// What a deploy came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeployReport {
    /// The deploy's id.
    pub deploy: DeployId,
    /// Its entry in the publish log; 0 on a dry run.
    pub seq: Seq,
    /// What the alias pointed at before.
    pub previous: Option<DeployId>,
    /// Files of the site.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of chunks and pages that travelled (on a dry run: would travel).
    pub bytes_uploaded: u64,
    /// Distinct chunks of the files.
    pub chunks: u64,
    /// Those that travelled.
    pub chunks_uploaded: u64,
    /// Manifest pages that travelled.
    pub pages_uploaded: u64,
    /// Edges that are up.
    pub edges: usize,
    /// Those that confirmed.
    pub edges_acked: usize,
    /// Those that did not in time.
    pub waiting: Vec<String>,
    /// Those that are down and were not waited for; they catch up before they serve.
    pub down: Vec<String>,
    /// Why the master could not be asked who confirmed.
    pub unasked: Option<String>,
    /// Where the time went.
    pub elapsed_ms: ElapsedMs,
}

/// Milliseconds by phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ElapsedMs {
    /// Reading and hashing files.
    pub scan: u64,
    /// Sending chunks.
    pub upload: u64,
    /// Sending and admitting pages, publishing.
    pub commit: u64,
    /// Waiting for the edges.
    pub wait: u64,
    /// All of it.
    pub total: u64,
}

/// Is told how a deploy gets on, from several tasks.
pub trait DeployProgress: Send + Sync {
    /// So much more is hashed.
    fn hashed(&self, files: u64, bytes: u64);
    /// So much must travel.
    fn uploading(&self, total_bytes: u64);
    /// So much more has travelled.
    fn uploaded(&self, bytes: u64);
    /// A phase begins.
    fn phase(&self, phase: &'static str);
}

/// Why a deploy failed. Nothing was published.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// Some local files cannot be read.
    #[error("{} files cannot be read: {}", files.len(), listed(files))]
    Unreadable {
        /// Which, and why.
        files: Vec<(PathBuf, String)>,
    },
    /// Some local files have bytes that were taken down.
    #[error(
        "these files were taken down and cannot be deployed: {}; leave them out, or allow them \
         again with `atoll invalidate SITE --path PATH --unerase`",
        shortened(files.iter().map(|path| path.display().to_string()).collect())
    )]
    Erased {
        /// Which.
        files: Vec<PathBuf>,
    },
    /// The tree makes no manifest.
    #[error("{0}")]
    Manifest(#[from] ManifestError),
    /// `_redirects` or `_headers` are wrong.
    #[error("the site's rules are wrong:\n{0}")]
    Rules(#[from] Faults),
    /// Too many rules.
    #[error("{}", .0.reason)]
    RulesTooLong(atoll_proto::Malformed),
    /// The alias points at another deploy than `--if-current` says.
    #[error("{0}")]
    Conflict(String),
    /// The cluster could not do it.
    #[error("{0}")]
    Client(#[from] ClientError),
}

fn listed(files: &[(PathBuf, String)]) -> String {
    shortened(files.iter().map(|(path, reason)| format!("{} ({reason})", path.display())).collect())
}

fn shortened(mut names: Vec<String>) -> String {
    let more = if names.len() > 10 { ", …" } else { "" };
    names.truncate(10);
    names.join(", ") + more
}

struct Hashed {
    source: SourceFile,
    stamp: Stamp,
    extents: Vec<Extent>,
}

/// Deploys a tree.
///
/// # Errors
/// See [`DeployError`]; after every one of them the alias points where it did.
pub fn deploy(
    cluster: &Cluster,
    files: Vec<SourceFile>,
    options: DeployOptions,
    progress: Arc<dyn DeployProgress>,
) -> Boxed<'_, Result<DeployReport, DeployError>> {
    Box::pin(deploy_files(cluster, files, options, progress))
}

async fn deploy_files(
    cluster: &Cluster,
    files: Vec<SourceFile>,
    options: DeployOptions,
    progress: Arc<dyn DeployProgress>,
) -> Result<DeployReport, DeployError> {
    let start = Instant::now();
    let view = cluster.view().await?;
    progress.phase("scan");
    let rules =
        rules::compile(cluster, &options.site, options.rules, &files, view.chunk_bytes).await?;
    let previous = previous_entries(cluster, &options).await?;
    let hashed = hash_all(files, view.chunk_bytes, &options, &progress).await?;
    let scanned = start.elapsed();
    let lifted = refuse_erased(cluster, &hashed).await?;

    progress.phase("upload");
    let places = places(&hashed);
    let ids: Vec<ChunkId> = places.keys().copied().collect();
    let known = cluster.known(&ids).await?;
    let missing: HashSet<ChunkId> = ids
        .iter()
        .zip(known)
        .filter(|(_, known)| options.reupload || !known)
        .map(|(id, _)| *id)
        .collect();
    let missing_bytes = missing.iter().map(|id| u64::from(places[id].len)).sum();
    progress.uploading(missing_bytes);
    let mut report = DeployReport {
        chunks: ids.len() as u64,
        chunks_uploaded: missing.len() as u64,
        bytes_uploaded: missing_bytes,
        ..DeployReport::default()
    };
    let uploader = Uploader { cluster, places: &places, progress: &*progress };
    let mut receipts = Vec::new();
    if !options.dry_run {
        let back: HashSet<ChunkId> = missing.intersection(&lifted).copied().collect();
        receipts = uploader.send(missing.into_iter().collect(), options.parallel).await?;
        // The pages that name them may be known, and are not sent then.
        if !back.is_empty() {
            let mut cover = covering(&receipts, &back);
            uploader.make_known(&cluster.writer(), &mut cover, Unknown::Chunks).await?;
        }
    }
    let uploaded = start.elapsed();

    progress.phase("commit");
    let manifest = uploader.manifest(hashed, &previous, &receipts, &rules, options.dry_run).await?;
    (report.deploy, report.files, report.bytes) = (manifest.root, manifest.files, manifest.bytes);
    let mut all = options.reupload;
    let published = loop {
        let sent = uploader.send_pages(&manifest, &rules, receipts.clone(), &options, all).await;
        if let Ok((pages, bytes)) = &sent {
            report.pages_uploaded = *pages;
            report.bytes_uploaded += bytes;
            if options.dry_run {
                return Ok(report);
            }
        }
        let published = match sent {
            Ok(_) => publish(cluster, &options, manifest.root).await,
            Err(error) => Err(error),
        };
        // A page may be known as the bytes of some file and not be admitted as a page, or it was
        // known and unused, and was collected since.
        match published {
            Err(DeployError::Client(error))
                if matches!(error.code(), Some(Code::Invalid | Code::Missing)) && !all =>
            {
                all = true;
            }
            other => break other?,
        }
    };
    (report.seq, report.previous) = (published.seq, published.previous);
    let committed = start.elapsed();

    progress.phase("wait");
    let waited = wait_applied(cluster, published.seq, options.wait, options.wait_timeout).await?;
    report.edges_acked = waited.acked.len();
    report.edges = waited.acked.len() + waited.waiting.len();
    (report.waiting, report.down) = (waited.waiting, waited.down);
    report.unasked = waited.unasked;
    let total = start.elapsed();
    report.elapsed_ms = ElapsedMs {
        scan: millis(scanned),
        upload: millis(uploaded - scanned),
        commit: millis(committed - uploaded),
        wait: millis(total - committed),
        total: millis(total),
    };
    Ok(report)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The files of the deploy the alias points at, by path. Also refuses early what cannot work.
async fn previous_entries(
    cluster: &Cluster,
    options: &DeployOptions,
) -> Result<HashMap<ByteName, Entry>, DeployError> {
    let request = MasterRequest::Site { site: options.site.clone() };
    let aliases = match cluster.master(&request, limits::METADATA_DEADLINE).await {
        Ok(MasterResponse::Site { aliases, .. }) => aliases,
        Ok(_) => return Err(ClientError::unexpected("the master").into()),
        Err(error) if error.code() == Some(Code::NotFound) && options.create => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let current =
        aliases.iter().find(|alias| alias.alias == options.alias).map(|alias| alias.deploy);
    if let Some(wanted) = options.if_current.filter(|wanted| *wanted != current) {
        return Err(DeployError::Conflict(conflict_text(options, wanted, current)));
    }
    let Some(current) = current else { return Ok(HashMap::new()) };
    let all = match entries(cluster, current).await {
        // What cannot be read is what is to be mended.
        Err(error) if options.reupload => {
            tracing::warn!(%error, deploy = %current, "the previous deploy cannot be read");
            Vec::new()
        }
        all => all?,
    };
    Ok(all.into_iter().map(|entry| (entry.path.clone(), entry)).collect())
}

fn conflict_text(
    options: &DeployOptions,
    wanted: Option<DeployId>,
    current: Option<DeployId>,
) -> String {
    let name = |deploy: Option<DeployId>| {
        deploy.map_or("no deploy".to_owned(), |deploy| deploy.to_string())
    };
    format!(
        "{} of site {} points at {}, not at {}: someone else published; look at it \
         (`atoll deploys {}`) and deploy again",
        options.alias,
        options.site,
        name(current),
        name(wanted),
        options.site,
    )
}

/// Hashes all files that the stat cache does not know, several at a time.
async fn hash_all(
    files: Vec<SourceFile>,
    chunk_bytes: u32,
    options: &DeployOptions,
    progress: &Arc<dyn DeployProgress>,
) -> Result<Vec<Hashed>, DeployError> {
    let cache = Arc::new(StatCache::load(options.stat_cache.as_deref(), chunk_bytes));
    let batches: Vec<Vec<SourceFile>> = files.chunks(64).map(<[_]>::to_vec).collect();
    let mut running = futures_util::stream::iter(batches)
        .map(|batch| {
            let (cache, progress) = (cache.clone(), progress.clone());
            blocking(move || Ok(hash_batch(batch, &cache, &*progress)))
        })
        .buffered(options.parallel.max(1));
    let mut hashed = Vec::with_capacity(files.len());
    let mut unreadable = Vec::new();
    while let Some(batch) = running.next().await {
        for result in batch? {
            match result {
                Ok(file) => hashed.push(file),
                Err(ClientError::Io { path, source }) => {
                    unreadable.push((path, source.to_string()))
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    if !unreadable.is_empty() {
        return Err(DeployError::Unreadable { files: unreadable });
    }
    if let Some(path) = &options.stat_cache {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ns = i128::try_from(now.as_nanos()).unwrap_or(i128::MAX);
        let items = hashed
            .iter()
            .map(|file| (file.source.disk_path.clone(), file.stamp, file.extents.clone()));
        StatCache::save(path, chunk_bytes, items, now_ns);
    }
    Ok(hashed)
}

fn hash_batch(
    batch: Vec<SourceFile>,
    cache: &StatCache,
    progress: &dyn DeployProgress,
) -> Vec<Result<Hashed, ClientError>> {
    batch
        .into_iter()
        .map(|source| {
            let path: &Path = &source.disk_path;
            let io = |source| ClientError::Io { path: path.to_owned(), source };
            let stamp = Stamp::of(&std::fs::metadata(path).map_err(io)?);
            let (stamp, extents) = match cache.find(path, &stamp) {
                Some(extents) => (stamp, extents.clone()),
                None => hash_file(path, cache.chunk_bytes(), &|_| {})?,
            };
            progress.hashed(1, stamp.size());
            Ok(Hashed { source, stamp, extents })
        })
        .collect()
}

/// Refuses files whose bytes were taken down: pages that name them may be known from before, and
/// then nobody else would say anything. Returns the chunks that were, and may come back.
async fn refuse_erased(
    cluster: &Cluster,
    hashed: &[Hashed],
) -> Result<HashSet<ChunkId>, DeployError> {
    let erased = cluster.erased().await?;
    if erased.is_empty() {
        return Ok(HashSet::new());
    }
    let is_erased =
        |extent: &Extent| extent.id.is_some_and(|id| erased.get(&id) == Some(&Erasure::Erased));
    let files = hashed.iter().filter(|file| file.extents.iter().any(is_erased));
    let files: Vec<PathBuf> = files.map(|file| file.source.disk_path.clone()).collect();
    if !files.is_empty() {
        return Err(DeployError::Erased { files });
    }
    let lifted = erased.into_iter().filter(|(_, what)| *what == Erasure::Lifted);
    Ok(lifted.map(|(id, _)| id).collect())
}

/// For every distinct chunk, one place where its bytes are.
fn places(hashed: &[Hashed]) -> HashMap<ChunkId, Place> {
    let mut places = HashMap::new();
    for file in hashed {
        let mut offset = 0;
        for extent in &file.extents {
            if let Some(id) = extent.id {
                let path = file.source.disk_path.clone();
                places.entry(id).or_insert(Place { path, offset, len: extent.len });
            }
            offset += u64::from(extent.len);
        }
    }
    places
}

struct Uploader<'a> {
    cluster: &'a Cluster,
    places: &'a HashMap<ChunkId, Place>,
    progress: &'a dyn DeployProgress,
}

/// What the master is to be told of.
#[derive(Clone, Copy)]
enum Unknown<'a> {
    /// The chunks of the receipts.
    Chunks,
    /// Pages, and everything they name.
    Pages(&'a [AdmitPage], &'a HashSet<ChunkId>),
}

impl Uploader<'_> {
    /// Sends chunks, largest first, and returns the receipts of those not yet made known.
    async fn send(
        &self,
        mut ids: Vec<ChunkId>,
        parallel: usize,
    ) -> Result<Vec<Receipt>, ClientError> {
        ids.sort_by_key(|id| std::cmp::Reverse(self.places[id].len));
        let writer = self.cluster.writer();
        let (mut bytes, mut chunks) = (0, 0);
        let mut receipts = Vec::new();
        let mut sends = futures_util::stream::iter(ids)
            .map(|id| self.send_one(&writer, id))
            .buffer_unordered(parallel.max(1) * 4);
        while let Some(sent) = sends.next().await {
            bytes += sent?;
            chunks += 1;
            if bytes >= STAGE_BYTES || chunks >= STAGE_CHUNKS {
                (bytes, chunks) = (0, 0);
                let mut receipts = writer.flush().await?;
                self.make_known(&writer, &mut receipts, Unknown::Chunks).await?;
            }
        }
        drop(sends);
        receipts.extend(writer.flush().await?);
        Ok(receipts)
    }

    /// Makes chunks known, or admits pages. Chunks that went missing meanwhile are sent again: their
    /// group moved since they were acknowledged, or they were collected.
    async fn make_known(
        &self,
        writer: &ChunkWriter,
        receipts: &mut Vec<Receipt>,
        what: Unknown<'_>,
    ) -> Result<(), ClientError> {
        let mut tries = 1;
        loop {
            let made = match what {
                Unknown::Chunks => stage(self.cluster, receipts.clone()).await,
                Unknown::Pages(pages, children) => {
                    self.cluster.admit(pages.to_vec(), covering(receipts, children)).await
                }
            };
            match made {
                // A page or list is nowhere on the local disk: the caller sends all of them.
                Err(ClientError::Missing { ids })
                    if tries < KNOWN_TRIES && ids.iter().all(|id| self.places.contains_key(id)) =>
                {
                    tries += 1;
                    for id in ids {
                        self.put_again(writer, id).await?;
                    }
                    receipts.extend(writer.flush().await?);
                }
                other => return other,
            }
        }
    }

    async fn put_again(&self, writer: &ChunkWriter, id: ChunkId) -> Result<(), ClientError> {
        let place = &self.places[&id];
        let bytes = read_chunk_again(&place.path, place.offset, place.len, id).await?;
        drop(writer.put_hashed(id, bytes).await?);
        Ok(())
    }

    async fn send_one(&self, writer: &ChunkWriter, id: ChunkId) -> Result<u64, ClientError> {
        self.put_again(writer, id).await?;
        let len = u64::from(self.places[&id].len);
        self.progress.uploaded(len);
        Ok(len)
    }

    /// The manifest of the hashed files. A file whose bytes did not change keeps the time at
    /// which they last did.
    async fn manifest(
        &self,
        hashed: Vec<Hashed>,
        previous: &HashMap<ByteName, Entry>,
        receipts: &[Receipt],
        rules: &StoredRules,
        dry_run: bool,
    ) -> Result<BuiltManifest, DeployError> {
        let mut all = Vec::with_capacity(hashed.len());
        for file in hashed {
            let content = match previous.get(&file.source.site_path) {
                // The same list as before need not be stored again.
                Some(entry) if Content::needs_lists(file.extents.len()) && !dry_run => {
                    let same = self.cluster.extents(&entry.content).await.ok();
                    if same.as_ref() == Some(&file.extents) {
                        entry.content.clone()
                    } else {
                        self.cluster.seal_content(file.extents, receipts).await?
                    }
                }
                _ if dry_run => Content::from_extents(file.extents),
                _ => self.cluster.seal_content(file.extents, receipts).await?,
            };
            let before = previous.get(&file.source.site_path);
            let mtime_ns = before
                .filter(|entry| entry.content == content)
                .map_or(file.source.mtime_ns, |entry| entry.mtime_ns);
            all.push(Entry {
                path: file.source.site_path,
                mode: file.source.mode,
                mtime_ns,
                content,
                content_type: file.source.content_type,
                header_rule: None,
                variants: Vec::new(),
                base: None,
            });
        }
        let rules = rules.content.clone();
        Ok(blocking(move || Ok(build(all, rules))).await??)
    }

    /// Sends the rules and pages the cluster lacks (or all) and admits the pages, children first.
    /// Returns the number of pages, and the bytes of both.
    async fn send_pages(
        &self,
        manifest: &BuiltManifest,
        rules: &StoredRules,
        mut receipts: Vec<Receipt>,
        options: &DeployOptions,
        all: bool,
    ) -> Result<(u64, u64), DeployError> {
        let ids: Vec<ChunkId> = manifest.pages.iter().map(|page| page.id).collect();
        let known = self.cluster.known(&ids).await?;
        let new: Vec<_> = manifest
            .pages
            .iter()
            .zip(known)
            .filter(|(_, known)| all || !known)
            .map(|(page, _)| page)
            .collect();
        let (sent, rule_bytes) = rules::send(self.cluster, rules, all, options.dry_run).await?;
        receipts.extend(sent);
        let bytes = rule_bytes + new.iter().map(|page| page.bytes.len() as u64).sum::<u64>();
        if options.dry_run {
            return Ok((new.len() as u64, bytes));
        }
        let writer = self.cluster.writer();
        for page in &new {
            drop(writer.put_hashed(page.id, page.bytes.clone()).await?);
        }
        receipts.extend(writer.flush().await?);
        let mut batch = Vec::new();
        let mut children: HashSet<ChunkId> = HashSet::new();
        for (at, page) in new.iter().enumerate() {
            batch.push(AdmitPage { id: page.id, kind: ObjectKind::Page });
            children.insert(page.id);
            children.extend(&page.references);
            if children.len() >= ADMIT_CHILDREN || at + 1 == new.len() {
                let what = Unknown::Pages(&batch, &children);
                self.make_known(&writer, &mut receipts, what).await?;
                batch.clear();
                children.clear();
            }
        }
        Ok((new.len() as u64, bytes))
    }
}

async fn publish(
    cluster: &Cluster,
    options: &DeployOptions,
    deploy: DeployId,
) -> Result<Published, DeployError> {
    let (site, alias) = (options.site.clone(), options.alias.clone());
    let (message, create, if_current) =
        (options.message.clone(), options.create, options.if_current);
    let op = match options.lifetime {
        None => SiteOp::Publish { site, alias, deploy, if_current, message, create },
        Some(lifetime) => {
            let lifetime_secs = lifetime.as_secs();
            SiteOp::PublishFor { site, alias, deploy, if_current, message, create, lifetime_secs }
        }
    };
    cluster.site(op).await.map_err(|error| match error {
        ClientError::Refused(refusal) if refusal.code == Code::Conflict => {
            DeployError::Conflict(refusal.message)
        }
        other => other.into(),
    })
}
