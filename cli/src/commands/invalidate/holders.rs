//! What a takedown is about, and who else has it: looks at every deploy of every site and at every
//! file of the namespace. A page that several deploys share is read once.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use atoll_client::{Cluster, PageSource};
use atoll_edge::index::invalidate::names;
use atoll_proto::content::ExtentList;
use atoll_proto::manifest::{Entry, Page};
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::namespace::{FileKind, NamespaceQuery, NamespaceReply};
use atoll_proto::publish::Pattern;
use atoll_proto::{ByteName, ChunkId, Code, Content, DeployId, InodeId, SiteName, limits};

use crate::cluster_path::{ClusterPath, unexpected};
use crate::commands::published::all_deploys;
use crate::report::Failure;
use crate::text;

/// Places that are kept; more are only counted.
const PLACES_MAX: usize = 100_000;

/// The bytes that are meant.
#[derive(Debug, Default)]
pub(super) struct Meant {
    /// The chunks with their lengths.
    pub(super) chunks: BTreeMap<ChunkId, u32>,
    /// The paths at which they are in deploys of the site.
    pub(super) paths: BTreeSet<ByteName>,
}

/// Something that loses bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holder {
    /// A file of a deploy.
    Deploy {
        /// Of which site.
        site: SiteName,
        /// Which deploy.
        deploy: DeployId,
        /// The file.
        path: ByteName,
    },
    /// A file of the namespace.
    File(String),
}

impl Holder {
    /// As people name it.
    pub(super) fn shown(&self) -> String {
        match self {
            Holder::Deploy { site, deploy, path } => {
                format!("site {site}, deploy {}: {}", deploy.short(), text::name(path.as_bytes()))
            }
            Holder::File(path) => path.clone(),
        }
    }

    /// Whether it belongs to a site.
    fn is_of(&self, name: &SiteName) -> bool {
        matches!(self, Holder::Deploy { site, .. } if site == name)
    }
}

/// Everything that loses bytes.
#[derive(Debug, Default)]
pub(super) struct Holders {
    /// In the order of sites, deploys and paths; at most [`PLACES_MAX`].
    pub(super) all: Vec<Holder>,
    /// How many there are.
    pub(super) count: u64,
    /// Those that are not of the site in question, as far as they are kept.
    pub(super) others: Vec<Holder>,
    /// The lists that name lost chunks.
    pub(super) lists: BTreeSet<ChunkId>,
}

impl Holders {
    fn note(&mut self, holder: Holder, site: &SiteName) {
        self.count += 1;
        let other = !holder.is_of(site);
        if other && self.others.len() < PLACES_MAX {
            self.others.push(holder.clone());
        }
        if self.all.len() < PLACES_MAX {
            self.all.push(holder);
        }
    }
}

/// What the patterns mean in all deploys of a site.
pub(super) async fn meant(
    cluster: &Cluster,
    site: &SiteName,
    patterns: &[Pattern],
) -> Result<Meant, Failure> {
    let mut contents: HashMap<ChunkId, Content> = HashMap::new();
    let mut meant = Meant::default();
    let mut seen = HashSet::new();
    let mut left: Vec<ChunkId> = Vec::new();
    for deploy in all_deploys(cluster, site).await? {
        left.push(deploy.id);
        while let Some(id) = left.pop() {
            if !seen.insert(id) {
                continue;
            }
            match &*cluster.page(id).await? {
                Page::RootV1(root) => left.extend(root.top.iter().map(|child| child.id)),
                Page::IndexV1(children) => left.extend(children.iter().map(|child| child.id)),
                Page::LeafV1(entries) => {
                    let is_meant = |entry: &&Entry| {
                        patterns.iter().any(|pattern| names(pattern, entry.path.as_bytes()))
                    };
                    for entry in entries.iter().filter(is_meant) {
                        meant.paths.insert(entry.path.clone());
                        let all = contents_of(entry);
                        contents.extend(all.map(|content| (content.id(), content.clone())));
                    }
                }
            }
        }
    }
    for content in contents.into_values() {
        for extent in cluster.extents(&content).await? {
            meant.chunks.extend(extent.id.map(|id| (id, extent.len)));
        }
    }
    Ok(meant)
}

fn contents_of(entry: &Entry) -> impl Iterator<Item = &Content> {
    std::iter::once(&entry.content).chain(entry.variants.iter().map(|variant| &variant.content))
}

/// Everything that refers to one of these chunks, by whom it is asked for a site.
pub(super) async fn holders(
    cluster: &Cluster,
    site: &SiteName,
    chunks: &BTreeMap<ChunkId, u32>,
) -> Result<Holders, Failure> {
    let mut search = Search {
        cluster,
        chunks,
        pages: HashMap::new(),
        unaffected: HashSet::new(),
        lists: HashMap::new(),
        found: Holders::default(),
    };
    let request = MasterRequest::Sites;
    let MasterResponse::Sites(sites) = cluster.master(&request, limits::METADATA_DEADLINE).await?
    else {
        return Err(unexpected("sites"));
    };
    for (of, _) in sites {
        for deploy in all_deploys(cluster, &of.name).await? {
            let mut paths = Vec::new();
            search.page(deploy.id, 0, &mut paths).await?;
            for path in paths {
                let holder = Holder::Deploy { site: of.name.clone(), deploy: deploy.id, path };
                search.found.note(holder, site);
            }
        }
    }
    search.namespace(site).await?;
    Ok(search.found)
}

struct Search<'a> {
    cluster: &'a Cluster,
    chunks: &'a BTreeMap<ChunkId, u32>,
    /// What was read of pages with something that loses bytes in or below them.
    pages: HashMap<ChunkId, Arc<Below>>,
    /// The other pages.
    unaffected: HashSet<ChunkId>,
    /// For every list that was read, whether it names a lost chunk.
    lists: HashMap<ChunkId, bool>,
    found: Holders,
}

/// What is below a page.
enum Below {
    Pages(Vec<ChunkId>),
    /// The files that lose bytes.
    Files(Vec<ByteName>),
}

impl Search<'_> {
    /// Adds the files below a page that lose bytes.
    fn page<'b>(
        &'b mut self,
        id: ChunkId,
        depth: usize,
        paths: &'b mut Vec<ByteName>,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'b>> {
        Box::pin(async move {
            if self.unaffected.contains(&id) {
                return Ok(());
            }
            if depth > limits::PAGE_DEPTH_MAX + 1 {
                return Err(Failure::Failed(format!("page {id} has pages without end below it")));
            }
            let known = self.pages.get(&id).cloned();
            let below = match known {
                Some(below) => below,
                None => Arc::new(self.read(id).await?),
            };
            let before = paths.len();
            match &*below {
                Below::Pages(children) => {
                    for child in children {
                        self.page(*child, depth + 1, paths).await?;
                    }
                }
                Below::Files(files) => paths.extend(files.iter().cloned()),
            }
            if paths.len() == before {
                self.unaffected.insert(id);
            } else {
                self.pages.insert(id, below);
            }
            Ok(())
        })
    }

    async fn read(&mut self, id: ChunkId) -> Result<Below, Failure> {
        let page = self.cluster.page(id).await?;
        Ok(match &*page {
            Page::RootV1(root) => Below::Pages(root.top.iter().map(|child| child.id).collect()),
            Page::IndexV1(children) => {
                Below::Pages(children.iter().map(|child| child.id).collect())
            }
            Page::LeafV1(entries) => {
                let mut files = Vec::new();
                for entry in entries {
                    let mut loses = false;
                    for content in contents_of(entry) {
                        loses |= self.loses(content).await?;
                    }
                    files.extend(loses.then(|| entry.path.clone()));
                }
                Below::Files(files)
            }
        })
    }

    /// Whether a content loses bytes.
    async fn loses(&mut self, content: &Content) -> Result<bool, Failure> {
        let direct = content.direct_chunks();
        let Content::Lists { .. } = content else {
            return Ok(direct.iter().any(|id| self.chunks.contains_key(id)));
        };
        let mut loses = false;
        for list in direct {
            loses |= self.list(list).await?;
        }
        Ok(loses)
    }

    async fn list(&mut self, id: ChunkId) -> Result<bool, Failure> {
        if let Some(known) = self.lists.get(&id) {
            return Ok(*known);
        }
        let bytes = self.cluster.read_chunk(id).await?;
        let extents = ExtentList::decode(&bytes)
            .map_err(|error| Failure::Failed(format!("list chunk {id}: {error}")))?;
        let mut ids = extents.iter().filter_map(|extent| extent.id);
        let loses = ids.any(|id| self.chunks.contains_key(&id));
        self.lists.insert(id, loses);
        if loses {
            self.found.lists.insert(id);
        }
        Ok(loses)
    }

    async fn namespace(&mut self, site: &SiteName) -> Result<(), Failure> {
        let root = ClusterPath::parse(std::ffi::OsStr::new("/")).map_err(Failure::Failed)?;
        let mut left = vec![(root, InodeId::ROOT)];
        while let Some((directory, inode)) = left.pop() {
            let entries = crate::cluster_path::read_dir(self.cluster, &directory, inode).await;
            let entries = match entries {
                // Removed meanwhile.
                Err(failure) if failure.code() == Some(Code::NotFound) => continue,
                entries => entries?,
            };
            for entry in entries {
                let path = directory.join(entry.name.as_bytes());
                match entry.attr.kind {
                    FileKind::Directory => left.push((path, entry.attr.inode)),
                    FileKind::File if entry.attr.size > 0 => {
                        if self.file_loses(&path, entry.attr.inode).await? {
                            self.found.note(Holder::File(path.to_string()), site);
                        }
                    }
                    FileKind::File | FileKind::Symlink => {}
                }
            }
        }
        Ok(())
    }

    async fn file_loses(&mut self, path: &ClusterPath, inode: InodeId) -> Result<bool, Failure> {
        match self.cluster.query(NamespaceQuery::Open { inode }).await {
            Ok(NamespaceReply::File { content, .. }) => self.loses(&content).await,
            Ok(_) => Err(unexpected(path)),
            Err(error) if error.code() == Some(Code::NotFound) => Ok(false),
            Err(error) => Err(Failure::at(path)(error)),
        }
    }
}
