//! Everything that refers to chunks: files of the namespace and deploys, with the paths people know
//! them by.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;

use atoll_client::{ClientError, Cluster, PageSource};
use atoll_proto::cluster::{ClusterView, NodeState};
use atoll_proto::content::ExtentList;
use atoll_proto::erase::Erasure;
use atoll_proto::manifest::Page;
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::namespace::{FileKind, NamespaceQuery, NamespaceReply};
use atoll_proto::publish::{Deploy, Site};
use atoll_proto::{ChunkId, Code, Content, DeployId, InodeId, NodeId, Seq, SiteName, limits};
use futures_util::{StreamExt, TryStreamExt};

use super::copies::{Copies, State};
use super::{Finding, Problem, Tell};
use crate::cluster_path::{ClusterPath, unexpected};
use crate::report::Failure;
use crate::text;

/// Files asked for at the same time.
const PARALLEL: usize = 16;
/// Deploys in one question.
const DEPLOYS: u32 = 1000;
/// Chunks that are remembered as good, so that shared ones are asked for once.
const REMEMBERED_MAX: usize = 1_000_000;

/// What was looked at, and what was found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) files: u64,
    pub(super) deploys: u64,
    pub(super) references: u64,
    pub(super) lost: u64,
    pub(super) unreachable: u64,
    pub(super) under_replicated: u64,
    pub(super) missing: u64,
    /// Taken down: no damage.
    pub(super) erased: u64,
}

/// One walk over everything.
pub(super) struct Walk<'a> {
    cluster: &'a Cluster,
    view: &'a ClusterView,
    copies: &'a Copies,
    erased: &'a HashMap<ChunkId, Erasure>,
    tell: Tell<'a>,
    good: HashSet<ChunkId>,
    bad: HashSet<(ChunkId, Problem)>,
    /// Pages and lists that no server said it lacks, and that could not be read all the same.
    unread: HashMap<ChunkId, Problem>,
    /// Pages with nothing wrong in them or below.
    clean: HashSet<ChunkId>,
    totals: Totals,
}

/// A file, or a part of a deploy, that refers to chunks.
enum Place {
    File { path: ClusterPath, inode: InodeId },
    Deploy { site: SiteName, deploy: DeployId, path: String },
}

impl Place {
    fn shown(&self) -> String {
        match self {
            Place::File { path, .. } => path.to_string(),
            Place::Deploy { site, deploy, path } => {
                format!("site {site}, deploy {}: {path}", deploy.short())
            }
        }
    }
}

/// A directory to be listed.
struct Directory {
    path: ClusterPath,
    inode: InodeId,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        cluster: &'a Cluster,
        view: &'a ClusterView,
        copies: &'a Copies,
        erased: &'a HashMap<ChunkId, Erasure>,
        tell: Tell<'a>,
    ) -> Self {
        Self {
            cluster,
            view,
            copies,
            erased,
            tell,
            good: HashSet::new(),
            bad: HashSet::new(),
            unread: HashMap::new(),
            clean: HashSet::new(),
            totals: Totals::default(),
        }
    }

    /// Looks at everything.
    pub(super) async fn run(mut self) -> Result<Totals, Failure> {
        self.namespace().await?;
        for site in self.sites().await? {
            for deploy in self.deploys(&site.name).await? {
                self.totals.deploys += 1;
                self.deploy(&site.name, deploy.id).await?;
            }
        }
        for (_, problem) in &self.bad {
            *match problem {
                Problem::Lost => &mut self.totals.lost,
                Problem::Unreachable => &mut self.totals.unreachable,
                Problem::UnderReplicated => &mut self.totals.under_replicated,
                Problem::Missing => &mut self.totals.missing,
                Problem::Erased => &mut self.totals.erased,
            } += 1;
        }
        Ok(self.totals)
    }

    async fn namespace(&mut self) -> Result<(), Failure> {
        let root = ClusterPath::parse(std::ffi::OsStr::new("/")).map_err(Failure::Failed)?;
        let mut left = vec![Directory { path: root, inode: InodeId::ROOT }];
        while let Some(directory) = left.pop() {
            let Some(entries) = self.entries(&directory).await? else { continue };
            let mut files = Vec::new();
            for entry in entries {
                let path = directory.path.join(entry.name.as_bytes());
                match entry.attr.kind {
                    FileKind::Directory => {
                        left.push(Directory { path, inode: entry.attr.inode });
                    }
                    FileKind::File if entry.attr.size > 0 => files.push((path, entry.attr.inode)),
                    FileKind::File => self.totals.files += 1,
                    FileKind::Symlink | FileKind::Special(_) => {}
                }
            }
            self.files(files).await?;
        }
        Ok(())
    }

    /// The entries of a directory; `None` when it was removed meanwhile.
    async fn entries(
        &self,
        directory: &Directory,
    ) -> Result<Option<Vec<atoll_proto::namespace::DirEntry>>, Failure> {
        let entries = crate::cluster_path::read_dir(self.cluster, &directory.path, directory.inode);
        match entries.await {
            Err(failure) if failure.code() == Some(Code::NotFound) => Ok(None),
            entries => entries.map(Some),
        }
    }

    async fn files(&mut self, files: Vec<(ClusterPath, InodeId)>) -> Result<(), Failure> {
        let cluster = self.cluster;
        let opened = futures_util::stream::iter(files).map(|(path, inode)| async move {
            let content = open(cluster, &path, inode).await?;
            Ok::<_, Failure>(content.map(|content| (path, inode, content)))
        });
        let opened: Vec<_> = opened.buffered(PARALLEL).try_collect().await?;
        for (path, inode, content) in opened.into_iter().flatten() {
            self.totals.files += 1;
            self.content(&content, &Place::File { path, inode }).await?;
        }
        Ok(())
    }

    /// The chunks of one file, those of its lists too. Whether all are well.
    async fn content(&mut self, content: &Content, place: &Place) -> Result<bool, Failure> {
        let mut well = self.chunks(&content.direct_chunks(), place).await?;
        let Content::Lists { lists, .. } = content else { return Ok(well) };
        for (_, id) in lists {
            let bytes = match self.cluster.read_chunk(*id).await {
                Ok(bytes) => bytes,
                Err(error) => {
                    self.unreadable(*id, error, place).await?;
                    well = false;
                    continue;
                }
            };
            let extents = ExtentList::decode(&bytes).map_err(|error| {
                Failure::Failed(format!("{}: list {}: {error}", place.shown(), id.short()))
            })?;
            let ids: Vec<ChunkId> = extents.iter().filter_map(|extent| extent.id).collect();
            well &= self.chunks(&ids, place).await?;
        }
        Ok(well)
    }

    /// Looks at some chunks that one place refers to. Whether all are well.
    async fn chunks(&mut self, ids: &[ChunkId], place: &Place) -> Result<bool, Failure> {
        let mut seen = HashSet::new();
        let distinct = ids.iter().filter(|id| seen.insert(**id));
        self.totals.references += ids.len() as u64;
        let unsure: Vec<ChunkId> =
            distinct.filter(|id| !self.good.contains(*id)).copied().collect();
        if unsure.is_empty() {
            return Ok(true);
        }
        let kept = self.kept(&unsure).await?;
        let mut well = true;
        for (id, known) in unsure.into_iter().zip(kept) {
            let Some(problem) = self.problem(&id, known) else {
                if self.good.len() >= REMEMBERED_MAX {
                    self.good.clear();
                }
                self.good.insert(id);
                continue;
            };
            well &= !self.confirmed(id, problem, place).await?;
        }
        Ok(well)
    }

    /// What is wrong with a chunk, which the master keeps or not, as far as one knows without
    /// reading it.
    fn problem(&self, id: &ChunkId, kept: bool) -> Option<Problem> {
        if self.erased.get(id) == Some(&Erasure::Erased) {
            return Some(Problem::Erased);
        }
        if let Some(problem) = self.unread.get(id) {
            return Some(*problem);
        }
        if !kept {
            return Some(Problem::Missing);
        }
        match self.copies.state(self.view, id) {
            State::Good => None,
            State::Few => Some(Problem::UnderReplicated),
            State::Unreachable => Some(Problem::Unreachable),
            State::Lost => Some(Problem::Lost),
        }
    }

    /// A page or list of a place could not be read: what it refers to is not known. That is told,
    /// unless it was when the chunks of the place were looked at.
    async fn unreadable(
        &mut self,
        id: ChunkId,
        error: ClientError,
        place: &Place,
    ) -> Result<(), Failure> {
        // Any other says nothing about the chunk.
        if !matches!(error, ClientError::Lost { .. }) {
            return Err(error.into());
        }
        let told = [Problem::Lost, Problem::Unreachable, Problem::Erased];
        if told.iter().any(|problem| self.bad.contains(&(id, *problem))) {
            return Ok(());
        }
        let all = Box::pin(self.all_can_be_asked(id)).await?;
        let problem = if all { Problem::Lost } else { Problem::Unreachable };
        self.good.remove(&id);
        self.unread.insert(id, problem);
        self.bad.insert((id, problem));
        self.tell.finding(&Finding { problem, chunk: id, place: place.shown() })
    }

    /// Whether everybody who may have a chunk answers at this moment.
    async fn all_can_be_asked(&self, id: ChunkId) -> Result<bool, Failure> {
        let view = self.cluster.refresh_view().await?;
        let readers: Vec<NodeId> = view.table.readers(id.pg()).collect();
        for reader in &readers {
            let up = view.node(*reader).is_some_and(|node| node.state == NodeState::Up);
            if !up || self.cluster.lacking(*reader, 1).await.is_err() {
                return Ok(false);
            }
        }
        Ok(!readers.is_empty())
    }

    /// For each of these chunks whether the master keeps it: it knows it, and that something needs
    /// it. One that is known and not needed would be collected.
    async fn kept(&self, ids: &[ChunkId]) -> Result<Vec<bool>, Failure> {
        let mut kept = Vec::with_capacity(ids.len());
        for part in ids.chunks(limits::PUT_CHUNKS_MAX) {
            let request = MasterRequest::Objects { ids: part.to_vec() };
            match self.cluster.master(&request, limits::METADATA_DEADLINE).await? {
                MasterResponse::Objects(objects) if objects.len() == part.len() => {
                    kept.extend(objects.iter().map(|it| it.as_ref().is_some_and(|it| it.refs > 0)));
                }
                _ => return Err(unexpected("objects")),
            }
        }
        Ok(kept)
    }

    /// Tells a problem unless it has gone away in the meantime. Whether it stands.
    async fn confirmed(
        &mut self,
        id: ChunkId,
        problem: Problem,
        place: &Place,
    ) -> Result<bool, Failure> {
        let told = self.bad.contains(&(id, problem));
        if !told {
            let stands = match problem {
                Problem::Missing => self.still_refers(id, place).await?,
                // The proof is whether it can be read.
                Problem::Lost | Problem::Unreachable => match self.cluster.read_chunk(id).await {
                    Ok(_) => false,
                    Err(ClientError::Lost { .. }) => true,
                    Err(error) => return Err(error.into()),
                },
                Problem::UnderReplicated | Problem::Erased => true,
            };
            if !stands {
                return Ok(false);
            }
            self.bad.insert((id, problem));
        }
        self.tell.finding(&Finding { problem, chunk: id, place: place.shown() })?;
        Ok(true)
    }

    /// Whether a place still refers to a chunk: it may have been changed or removed while it was
    /// looked at.
    async fn still_refers(&self, id: ChunkId, place: &Place) -> Result<bool, Failure> {
        match place {
            Place::File { path, inode } => {
                let Some(content) = open(self.cluster, path, *inode).await? else {
                    return Ok(false);
                };
                if content.direct_chunks().contains(&id) {
                    return Ok(true);
                }
                match self.cluster.extents(&content).await {
                    Ok(extents) => Ok(extents.iter().any(|extent| extent.id == Some(id))),
                    // It did a moment ago; what became of it nobody can tell.
                    Err(ClientError::Lost { .. }) => Ok(true),
                    Err(error) => Err(error.into()),
                }
            }
            Place::Deploy { site, deploy, .. } => {
                Ok(self.deploys(site).await?.iter().any(|it| it.id == *deploy))
            }
        }
    }

    async fn sites(&self) -> Result<Vec<Site>, Failure> {
        match self.cluster.master(&MasterRequest::Sites, limits::METADATA_DEADLINE).await? {
            MasterResponse::Sites(sites) => Ok(sites.into_iter().map(|(site, _)| site).collect()),
            _ => Err(unexpected("sites")),
        }
    }

    /// All deploys of a site; none of one that was removed meanwhile.
    async fn deploys(&self, site: &SiteName) -> Result<Vec<Deploy>, Failure> {
        let mut all: Vec<Deploy> = Vec::new();
        loop {
            let before: Option<Seq> = all.last().map(|deploy| deploy.seq);
            let request = MasterRequest::Deploys { site: site.clone(), before, limit: DEPLOYS };
            match self.cluster.master(&request, limits::METADATA_DEADLINE).await {
                Ok(MasterResponse::Deploys(some)) if some.is_empty() => return Ok(all),
                Ok(MasterResponse::Deploys(some)) => all.extend(some),
                Ok(_) => return Err(unexpected("deploys")),
                Err(error) if error.code() == Some(Code::NotFound) => return Ok(all),
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn deploy(&mut self, site: &SiteName, deploy: DeployId) -> Result<(), Failure> {
        if self.clean.contains(&deploy) {
            return Ok(());
        }
        let path = "every file (its root page)".to_owned();
        let place = Place::Deploy { site: site.clone(), deploy, path: path.clone() };
        self.chunks(&[deploy], &place).await?;
        self.page(site, deploy, deploy, path, 0).await?;
        Ok(())
    }

    /// A page, whose chunk was looked at, and everything below it; `path` is what it stands for.
    /// Whether it can be read and all below it is well.
    fn page<'b>(
        &'b mut self,
        site: &'b SiteName,
        deploy: DeployId,
        id: ChunkId,
        path: String,
        depth: usize,
    ) -> Pin<Box<dyn Future<Output = Result<bool, Failure>> + Send + 'b>> {
        Box::pin(async move {
            if self.clean.contains(&id) {
                return Ok(true);
            }
            if depth > limits::PAGE_DEPTH_MAX + 1 {
                return Err(Failure::Failed(format!("deploy {deploy} has pages without end")));
            }
            let at = |path: String| Place::Deploy { site: site.clone(), deploy, path };
            let page = match self.cluster.page(id).await {
                Ok(page) => page,
                Err(error) => {
                    self.unreadable(id, error, &at(path)).await?;
                    return Ok(false);
                }
            };
            let mut well = true;
            let children: Vec<(ChunkId, String)> = match &*page {
                Page::RootV1(root) => {
                    if let Some(rules) = &root.rules {
                        let rules = rules.direct_chunks();
                        well &= self.chunks(&rules, &at("its rules".to_owned())).await?;
                    }
                    let top = root.top.iter();
                    top.map(|child| (child.id, "every file (its top page)".to_owned())).collect()
                }
                Page::IndexV1(children) => children
                    .iter()
                    .map(|child| {
                        let last = text::name(child.last.as_bytes());
                        (child.id, format!("{} up to {last}", text::count(child.files, "file")))
                    })
                    .collect(),
                Page::LeafV1(entries) => {
                    for entry in entries {
                        let place = at(text::name(entry.path.as_bytes()));
                        well &= self.content(&entry.content, &place).await?;
                        for variant in &entry.variants {
                            well &= self.content(&variant.content, &place).await?;
                        }
                    }
                    Vec::new()
                }
            };
            for (child, path) in children {
                well &= self.chunks(&[child], &at(path.clone())).await?;
                // One with few copies can be read all the same.
                well &= self.page(site, deploy, child, path, depth + 1).await?;
            }
            if well {
                self.clean.insert(id);
            }
            Ok(well)
        })
    }
}

/// The content of a file; `None` when it was removed meanwhile.
async fn open(
    cluster: &Cluster,
    path: &ClusterPath,
    inode: InodeId,
) -> Result<Option<Content>, Failure> {
    match cluster.query(NamespaceQuery::Open { inode }).await {
        Ok(NamespaceReply::File { content, .. }) => Ok(Some(content)),
        Ok(_) => Err(unexpected(path)),
        Err(error) if error.code() == Some(Code::NotFound) => Ok(None),
        Err(error) => Err(Failure::at(path)(error)),
    }
}
