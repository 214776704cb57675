//! `/.sites`: deploys of sites as read-only directories.
//!
//! `/.sites/SITE/DEPLOY` is a deploy, `/.sites/SITE/ALIAS` a symbolic link to the deploy the
//! alias points at. The tree is made from manifests as it is looked at. Its inode numbers are
//! hashes of what they name with the highest bit set, which no inode of the namespace has, so
//! they are the same on every mount. `/.sites` can be looked up but is not listed in the root,
//! so that copying the root does not copy every deploy. The master lets nobody make a file or
//! directory of that name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use atoll_client::{ClientError, ListItem, PageSource};
use atoll_proto::manifest::{Entry, Page};
use atoll_proto::namespace::{Attr, FileKind};
use atoll_proto::publish::{Alias, Site};
use atoll_proto::{AliasName, ByteName, ChunkId, DeployId, InodeId, SiteName};
use bytes::Bytes;

use super::open::{OpenHow, OpenedFile};
use super::snapshot::Snapshot;
use super::{FileSystem, FsError, Handle, Store, lock};

/// The bit that tells virtual inodes from the master's.
const VIRTUAL: u64 = 1 << 63;
/// Listings of deployed directories that are kept: they never change.
const LISTINGS_MAX: usize = 64;

/// Whether an inode is one of these.
pub(super) fn is_virtual(inode: InodeId) -> bool {
    inode.0 & VIRTUAL != 0
}

/// What a virtual inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    Root,
    Site(SiteName),
    /// A moved alias is another inode: the kernel keeps the targets of links.
    Alias(SiteName, AliasName, DeployId),
    Dir {
        site: SiteName,
        deploy: DeployId,
        path: Vec<u8>,
    },
    File(DeployId, Arc<Entry>),
}

type Listings = HashMap<(DeployId, Vec<u8>), Arc<Vec<ListItem>>>;

/// The virtual inodes the kernel holds.
#[derive(Debug, Default)]
pub(super) struct Sites {
    nodes: Mutex<HashMap<InodeId, (Node, u64)>>,
    listings: Mutex<Listings>,
}

impl Node {
    fn inode(&self) -> InodeId {
        let mut key = Vec::new();
        let mut add = |tag: u8, parts: &[&[u8]]| {
            key.push(tag);
            for part in parts {
                key.extend_from_slice(&(part.len() as u64).to_le_bytes());
                key.extend_from_slice(part);
            }
        };
        match self {
            Self::Root => add(0, &[]),
            Self::Site(site) => add(1, &[site.as_str().as_bytes()]),
            Self::Alias(site, alias, deploy) => {
                let names = [site.as_str().as_bytes(), alias.as_str().as_bytes()];
                add(2, &[names[0], names[1], deploy.as_bytes()]);
            }
            Self::Dir { site, deploy, path } => {
                add(3, &[site.as_str().as_bytes(), deploy.as_bytes(), path]);
            }
            Self::File(deploy, entry) => add(4, &[deploy.as_bytes(), entry.path.as_bytes()]),
        }
        let hash = ChunkId::of(&key).0;
        let mut number = [0; 8];
        number.copy_from_slice(&hash[..8]);
        InodeId(u64::from_le_bytes(number) | VIRTUAL)
    }

    pub(super) fn attr(&self) -> Attr {
        let (kind, mode) = match self {
            Self::Root | Self::Site(_) | Self::Dir { .. } => (FileKind::Directory, 0o555),
            Self::Alias(..) => (FileKind::Symlink, 0o777),
            Self::File(_, entry) => (FileKind::File, entry.mode & 0o777),
        };
        let (size, time) = match self {
            Self::File(_, entry) => (entry.size(), entry.mtime_ns),
            // Hex digits of a deploy id.
            Self::Alias(..) => (64, 0),
            _ => (0, 0),
        };
        Attr {
            inode: self.inode(),
            kind,
            mode,
            uid: 0,
            gid: 0,
            nlink: if kind == FileKind::Directory { 2 } else { 1 },
            size,
            atime_ns: time,
            mtime_ns: time,
            ctime_ns: time,
            version: 0,
        }
    }
}

impl Sites {
    pub(super) fn give_root(&self) -> Attr {
        self.give(Node::Root)
    }

    /// The kernel holds this inode once more.
    pub(super) fn give(&self, node: Node) -> Attr {
        let attr = node.attr();
        lock(&self.nodes).entry(attr.inode).or_insert((node, 0)).1 += 1;
        attr
    }

    /// How many inodes the kernel holds.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        lock(&self.nodes).len()
    }

    pub(super) fn forget(&self, inode: InodeId, lookups: u64) {
        let mut nodes = lock(&self.nodes);
        if let Some((_, held)) = nodes.get_mut(&inode) {
            *held = held.saturating_sub(lookups);
            if *held == 0 {
                nodes.remove(&inode);
            }
        }
    }

    fn get(&self, inode: InodeId) -> Result<Node, FsError> {
        lock(&self.nodes).get(&inode).map(|(node, _)| node.clone()).ok_or(FsError::NotFound)
    }
}

/// Manifest pages through the cache of chunks.
struct Pages<'a, S>(&'a FileSystem<S>);

impl<S: Store> PageSource for Pages<'_, S> {
    async fn page(&self, id: ChunkId) -> Result<Arc<Page>, ClientError> {
        let bytes = self.0.chunks.get(&self.0.store, id).await?;
        Page::decode(&bytes)
            .map(Arc::new)
            .map_err(|error| ClientError::Malformed { what: format!("page {id}: {error}") })
    }
}

impl<S: Store> FileSystem<S> {
    pub(super) async fn deployed_attr(&self, inode: InodeId) -> Result<Attr, FsError> {
        Ok(self.sites.get(inode)?.attr())
    }

    pub(super) async fn deployed_lookup(
        &self,
        parent: InodeId,
        name: &ByteName,
    ) -> Result<Attr, FsError> {
        let text = std::str::from_utf8(name.as_bytes()).unwrap_or_default();
        let node = match self.sites.get(parent)? {
            Node::Root => {
                let site = text.parse::<SiteName>().map_err(|_| FsError::NotFound)?;
                self.find_site(&site).await?;
                Node::Site(site)
            }
            Node::Site(site) => match text.parse::<DeployId>() {
                Ok(deploy) => {
                    let deploys = self.store.deploys(site.clone()).await?;
                    if !deploys.iter().any(|known| known.id == deploy) {
                        return Err(FsError::NotFound);
                    }
                    Node::Dir { site, deploy, path: Vec::new() }
                }
                Err(_) => {
                    let alias = text.parse::<AliasName>().map_err(|_| FsError::NotFound)?;
                    let deploy = self.find_alias(&site, &alias).await?.deploy;
                    Node::Alias(site, alias, deploy)
                }
            },
            Node::Dir { site, deploy, path } => {
                let path = join(&path, name.as_bytes());
                self.deployed_node(site, deploy, path).await?
            }
            Node::Alias(..) | Node::File(..) => return Err(FsError::NotADirectory),
        };
        Ok(self.sites.give(node))
    }

    async fn deployed_node(
        &self,
        site: SiteName,
        deploy: DeployId,
        path: Vec<u8>,
    ) -> Result<Node, FsError> {
        if let Some(entry) = atoll_client::lookup(&Pages(self), deploy, &path).await? {
            return Ok(Node::File(deploy, Arc::new(entry)));
        }
        if self.listing(deploy, &path).await?.is_empty() {
            return Err(FsError::NotFound);
        }
        Ok(Node::Dir { site, deploy, path })
    }

    async fn listing(&self, deploy: DeployId, path: &[u8]) -> Result<Arc<Vec<ListItem>>, FsError> {
        let key = (deploy, path.to_vec());
        if let Some(found) = lock(&self.sites.listings).get(&key) {
            return Ok(found.clone());
        }
        let items = Arc::new(atoll_client::list(&Pages(self), deploy, path).await?);
        let mut listings = lock(&self.sites.listings);
        if listings.len() >= LISTINGS_MAX {
            listings.clear();
        }
        listings.insert(key, items.clone());
        Ok(items)
    }

    async fn find_site(&self, site: &SiteName) -> Result<(Site, Vec<Alias>), FsError> {
        let sites = self.store.sites().await?;
        sites.into_iter().find(|(known, _)| known.name == *site).ok_or(FsError::NotFound)
    }

    async fn find_alias(&self, site: &SiteName, alias: &AliasName) -> Result<Alias, FsError> {
        let (_, aliases) = self.find_site(site).await?;
        aliases.into_iter().find(|known| known.alias == *alias).ok_or(FsError::NotFound)
    }

    pub(super) fn alias_target(&self, inode: InodeId) -> Result<Bytes, FsError> {
        match self.sites.get(inode)? {
            Node::Alias(_, _, deploy) => Ok(Bytes::from(deploy.to_string())),
            _ => Err(FsError::Invalid("not a symbolic link")),
        }
    }

    /// The entries of a virtual directory and its parent. The kernel does not hold them yet.
    pub(super) async fn deployed_list(
        &self,
        inode: InodeId,
    ) -> Result<(Vec<(ByteName, Node)>, InodeId), FsError> {
        let node = self.sites.get(inode)?;
        let mut children: Vec<(ByteName, Node)> = Vec::new();
        let parent = match node {
            Node::Root => {
                for (site, _) in self.store.sites().await? {
                    children.push((site.name.as_str().into(), Node::Site(site.name)));
                }
                self.root()
            }
            Node::Site(site) => {
                for alias in self.find_site(&site).await?.1 {
                    let name = alias.alias.as_str().into();
                    let node = Node::Alias(site.clone(), alias.alias, alias.deploy);
                    children.push((name, node));
                }
                for deploy in self.store.deploys(site.clone()).await? {
                    let name = deploy.id.to_string().as_str().into();
                    let node =
                        Node::Dir { site: site.clone(), deploy: deploy.id, path: Vec::new() };
                    children.push((name, node));
                }
                Node::Root.inode()
            }
            Node::Dir { site, deploy, path } => {
                for item in self.listing(deploy, &path).await?.iter() {
                    children.push(match item {
                        ListItem::File(entry) => {
                            let name = last_part(entry.path.as_bytes());
                            (name.into(), Node::File(deploy, Arc::new(entry.clone())))
                        }
                        ListItem::Directory(name) => {
                            let path = join(&path, name.as_bytes());
                            (name.clone(), Node::Dir { site: site.clone(), deploy, path })
                        }
                    });
                }
                parent_of(site, deploy, &path).inode()
            }
            Node::Alias(..) | Node::File(..) => return Err(FsError::NotADirectory),
        };
        Ok((children, parent))
    }

    pub(super) async fn open_deployed(
        &self,
        inode: InodeId,
        how: OpenHow,
    ) -> Result<OpenedFile, FsError> {
        if how.write || how.truncate {
            return Err(FsError::ReadOnly);
        }
        let Node::File(_, entry) = self.sites.get(inode)? else {
            return Err(FsError::IsADirectory);
        };
        let extents = self.store.extents(&entry.content).await?;
        let snapshot = Arc::new(Snapshot::new(extents));
        let handle = self.add_handle(Handle::Deployed(snapshot));
        Ok(OpenedFile { handle, keep_cache: true, direct: false, attr_changed: false })
    }
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

fn last_part(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
}

fn parent_of(site: SiteName, deploy: DeployId, path: &[u8]) -> Node {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(end) => Node::Dir { site, deploy, path: path[..end].to_vec() },
        None if path.is_empty() => Node::Site(site),
        None => Node::Dir { site, deploy, path: Vec::new() },
    }
}
