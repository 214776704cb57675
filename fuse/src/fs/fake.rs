//! A cluster in memory, for the tests: the same promises, and faults on request.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use atoll_client::{ClientError, Undecided, Unsure, Verdict};
use atoll_proto::content::{Extent, ExtentList};
use atoll_proto::namespace::{
    Attr, Caller, DirEntry, FileKind, HAS_XATTRS, NamespaceOp, NamespaceQuery, NamespaceReply,
    NewNode, Special, without_privileges,
};
use atoll_proto::publish::{Alias, Deploy, Site};
use atoll_proto::receipt::{Receipt, ReceiptKey};
use atoll_proto::{
    AliasName, ByteName, ChunkId, Code, Content, DeployId, Epoch, InodeId, NodeId, Seq, SessionId,
    SiteName, WireError,
};
use bytes::Bytes;
use tokio::sync::Semaphore;

use super::Store;
use super::file::now_ns;

mod faults;
mod rename;
mod xattrs;

use faults::Faults;
pub(crate) use faults::Lost;

/// The cluster. Several file systems may share one.
#[derive(Debug)]
pub(crate) struct Fake {
    world: Mutex<World>,
    /// Every put needs a permit for as long as it runs.
    pub(crate) put_gate: Semaphore,
    /// The same for finding the extents of a content.
    pub(crate) extents_gate: Semaphore,
    /// Puts fail.
    pub(crate) refuse_puts: AtomicBool,
    /// What goes wrong with changes.
    pub(crate) faults: Faults,
    /// Requests to the master so far.
    pub(crate) requests: AtomicU64,
    /// Puts so far.
    pub(crate) puts: AtomicU64,
    /// Contents whose extents were asked for so far.
    pub(crate) extents_asked: AtomicU64,
}

#[derive(Debug, Default)]
struct World {
    nodes: BTreeMap<InodeId, Node>,
    next_inode: u64,
    version: u64,
    chunks: HashMap<ChunkId, Bytes>,
    /// Chunks some file refers to (or referred to).
    live: HashSet<ChunkId>,
    sites: Vec<(Site, Vec<Alias>)>,
    deploys: Vec<Deploy>,
}

#[derive(Debug)]
struct Node {
    attr: Attr,
    data: Data,
    xattrs: BTreeMap<ByteName, Bytes>,
}

#[derive(Debug)]
enum Data {
    File(Content),
    Dir { entries: BTreeMap<ByteName, InodeId>, parent: InodeId },
    Link(ByteName),
    Special(Special),
}

type Reply = Result<NamespaceReply, Code>;

impl Fake {
    pub(crate) fn new() -> Arc<Fake> {
        let mut world = World { next_inode: 2, ..World::default() };
        let data = Data::Dir { entries: BTreeMap::new(), parent: InodeId::ROOT };
        let attr = world.attr(InodeId::ROOT, FileKind::Directory, 0o755, Caller { uid: 0, gid: 0 });
        world.nodes.insert(InodeId::ROOT, Node { attr, data, xattrs: BTreeMap::new() });
        Arc::new(Fake {
            world: Mutex::new(world),
            put_gate: Semaphore::new(1000),
            extents_gate: Semaphore::new(1000),
            refuse_puts: AtomicBool::new(false),
            faults: Faults::default(),
            requests: AtomicU64::new(0),
            puts: AtomicU64::new(0),
            extents_asked: AtomicU64::new(0),
        })
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the master forget that it knows any chunk; the bytes stay readable.
    pub(crate) fn forget_live(&self) {
        self.world().live.clear();
    }

    /// Loses all bytes there are.
    pub(crate) fn lose_chunks(&self) {
        self.world().chunks.clear();
    }

    /// Puts a chunk there, as a deploy did.
    pub(crate) fn plant(&self, bytes: Bytes) -> ChunkId {
        let id = ChunkId::of(&bytes);
        self.world().chunks.insert(id, bytes);
        id
    }

    /// A site with these deploys, whose production alias points at the first.
    pub(crate) fn publish_site(&self, site: &SiteName, deploys: &[DeployId]) {
        let alias = |deploy: &DeployId| Alias {
            site: site.clone(),
            alias: AliasName::production(),
            deploy: *deploy,
            seq: Seq(1),
            at_ms: 0,
            earlier: vec![],
            expires_ms: None,
        };
        let deploy = |id: &DeployId| Deploy {
            id: *id,
            site: site.clone(),
            created_ms: 0,
            message: String::new(),
            files: 0,
            bytes: 0,
            seq: Seq(1),
        };
        let mut world = self.world();
        let aliases = deploys.iter().take(1).map(alias).collect();
        let made = Site {
            name: site.clone(),
            domains: vec![],
            created_ms: 0,
            settings: Default::default(),
        };
        world.sites.push((made, aliases));
        world.deploys.extend(deploys.iter().map(deploy));
    }

    /// Points all aliases at a deploy.
    pub(crate) fn point_alias(&self, deploy: DeployId) {
        for (_, aliases) in &mut self.world().sites {
            aliases.iter_mut().for_each(|alias| alias.deploy = deploy);
        }
    }

    /// The content of a file by inode, as the cluster has it.
    pub(crate) fn committed(&self, inode: InodeId) -> Option<Vec<u8>> {
        let world = self.world();
        let Data::File(content) = &world.nodes.get(&inode)?.data else {
            return None;
        };
        let mut bytes = Vec::new();
        for extent in world.extents(content).ok()? {
            match extent.id {
                None => bytes.resize(bytes.len() + extent.len as usize, 0),
                Some(id) => bytes.extend_from_slice(world.chunks.get(&id)?),
            }
        }
        Some(bytes)
    }
}

fn refused(code: Code) -> ClientError {
    ClientError::Refused(WireError::new(code, format!("the fake says {code:?}")))
}

impl Store for Arc<Fake> {
    async fn query(&self, query: NamespaceQuery) -> Result<NamespaceReply, ClientError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        // A real request waits, so that callers meet the way they would.
        tokio::task::yield_now().await;
        let mut world = self.world();
        if let NamespaceQuery::Lookup { parent, name } = &query
            && self.faults.vanishes.swap(false, Ordering::Relaxed)
        {
            world.drop_name(*parent, name).map_err(refused)?;
        }
        world.query(query).map_err(refused)
    }

    async fn change(&self, op: NamespaceOp) -> Result<NamespaceReply, ClientError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
        let mut world = self.world();
        if let NamespaceOp::Write { content, receipts, .. } = &op {
            self.faults.refuse_write()?;
            let covered: HashSet<ChunkId> =
                receipts.iter().flat_map(|r| r.chunks.iter().map(|(id, _)| *id)).collect();
            let missing: Vec<ChunkId> = content
                .direct_chunks()
                .into_iter()
                .filter(|id| !world.live.contains(id) && !covered.contains(id))
                .collect();
            if !missing.is_empty() {
                return Err(ClientError::Missing { ids: missing });
            }
        }
        world.change(op).map_err(refused)
    }

    async fn change_once(&self, op: NamespaceOp) -> Result<NamespaceReply, Unsure> {
        self.numbered(op).await
    }

    async fn settle(&self, undecided: &Undecided) -> Result<Verdict, ClientError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
        self.faults.settle(undecided)
    }

    async fn read_chunk(&self, id: ChunkId) -> Result<Bytes, ClientError> {
        tokio::task::yield_now().await;
        let found = self.world().chunks.get(&id).cloned();
        found.ok_or(ClientError::Lost { id, reason: "the fake has no such chunk".to_owned() })
    }

    async fn put_chunk(&self, bytes: Bytes) -> Result<(ChunkId, Vec<Receipt>), ClientError> {
        self.puts.fetch_add(1, Ordering::Relaxed);
        let _permit = self.put_gate.acquire().await.expect("the gate is never closed");
        if self.refuse_puts.load(Ordering::Relaxed) {
            return Err(ClientError::TooFewReplicas { reason: "on request".to_owned() });
        }
        let (id, len) = (ChunkId::of(&bytes), bytes.len() as u32);
        self.world().chunks.insert(id, bytes);
        let key = ReceiptKey([1; 32]);
        let (node, session) = (NodeId(1), SessionId(1));
        Ok((id, vec![Receipt::sign(&key, node, session, Epoch(1), u64::MAX, vec![(id, len)])]))
    }

    async fn extents(&self, content: &Content) -> Result<Vec<Extent>, ClientError> {
        self.extents_asked.fetch_add(1, Ordering::Relaxed);
        let _permit = self.extents_gate.acquire().await.expect("the gate is never closed");
        self.world().extents(content)
    }

    async fn seal(
        &self,
        extents: Vec<Extent>,
        receipts: &[Receipt],
    ) -> Result<Content, ClientError> {
        if !Content::needs_lists(extents.len()) {
            return Ok(Content::from_extents(extents));
        }
        let mut world = self.world();
        let covered: HashSet<ChunkId> =
            receipts.iter().flat_map(|r| r.chunks.iter().map(|(id, _)| *id)).collect();
        let ids = extents.iter().filter_map(|extent| extent.id);
        let missing: Vec<ChunkId> =
            ids.filter(|id| !world.live.contains(id) && !covered.contains(id)).collect();
        if !missing.is_empty() {
            return Err(ClientError::Missing { ids: missing });
        }
        let size = extents.iter().map(|extent| u64::from(extent.len)).sum();
        let bytes = Bytes::from(ExtentList::V1(extents).encode());
        let (id, len) = (ChunkId::of(&bytes), bytes.len() as u32);
        world.chunks.insert(id, bytes);
        world.live.insert(id);
        Ok(Content::Lists { size, lists: vec![(len, id)] })
    }

    async fn sites(&self) -> Result<Vec<(Site, Vec<Alias>)>, ClientError> {
        Ok(self.world().sites.clone())
    }

    async fn deploys(&self, site: SiteName) -> Result<Vec<Deploy>, ClientError> {
        let world = self.world();
        Ok(world.deploys.iter().filter(|deploy| deploy.site == site).cloned().collect())
    }
}

impl World {
    fn extents(&self, content: &Content) -> Result<Vec<Extent>, ClientError> {
        match content {
            Content::Empty => Ok(Vec::new()),
            Content::Extents(extents) => Ok(extents.clone()),
            Content::Lists { lists, .. } => {
                let mut all = Vec::new();
                for (_, id) in lists {
                    let lost = ClientError::Lost { id: *id, reason: "no list".to_owned() };
                    let bytes = self.chunks.get(id).ok_or(lost)?;
                    let bad = |error| ClientError::Malformed { what: format!("{error}") };
                    all.extend(ExtentList::decode(bytes).map_err(bad)?);
                }
                Ok(all)
            }
        }
    }

    fn attr(&mut self, inode: InodeId, kind: FileKind, mode: u32, caller: Caller) -> Attr {
        self.version += 1;
        let now = now_ns();
        Attr {
            inode,
            kind,
            mode,
            uid: caller.uid,
            gid: caller.gid,
            nlink: if kind == FileKind::Directory { 2 } else { 1 },
            size: 0,
            atime_ns: now,
            mtime_ns: now,
            ctime_ns: now,
            version: self.version,
        }
    }

    fn node(&self, inode: InodeId) -> Result<&Node, Code> {
        self.nodes.get(&inode).ok_or(Code::NotFound)
    }

    fn dir(&mut self, inode: InodeId) -> Result<&mut BTreeMap<ByteName, InodeId>, Code> {
        match &mut self.nodes.get_mut(&inode).ok_or(Code::NotFound)?.data {
            Data::Dir { entries, .. } => Ok(entries),
            _ => Err(Code::NotADirectory),
        }
    }

    fn entry(&mut self, parent: InodeId, name: &ByteName) -> Result<InodeId, Code> {
        self.dir(parent)?.get(name).copied().ok_or(Code::NotFound)
    }

    fn reply(&self, inode: InodeId, created: bool) -> Reply {
        Ok(NamespaceReply::Attr { attr: self.node(inode)?.attr.clone(), created })
    }

    fn touch(&mut self, inode: InodeId) {
        self.version += 1;
        let version = self.version;
        if let Some(node) = self.nodes.get_mut(&inode) {
            node.attr.version = version;
            node.attr.ctime_ns = now_ns();
            if matches!(node.data, Data::Dir { .. }) {
                node.attr.mtime_ns = node.attr.ctime_ns;
            }
        }
    }

    fn query(&mut self, query: NamespaceQuery) -> Reply {
        match query {
            NamespaceQuery::Lookup { parent, name } => {
                let inode = self.entry(parent, &name)?;
                self.reply(inode, false)
            }
            NamespaceQuery::Attr { inode } => self.reply(inode, false),
            NamespaceQuery::Resolve { path } => {
                let mut inode = InodeId::ROOT;
                for part in path.as_bytes().split(|b| *b == b'/').filter(|p| !p.is_empty()) {
                    inode = self.entry(inode, &part.into())?;
                }
                self.reply(inode, false)
            }
            NamespaceQuery::Open { inode } => match &self.node(inode)?.data {
                Data::File(content) => Ok(NamespaceReply::File {
                    attr: self.node(inode)?.attr.clone(),
                    content: content.clone(),
                }),
                Data::Dir { .. } => Err(Code::IsADirectory),
                Data::Link(_) | Data::Special(_) => Err(Code::Invalid),
            },
            NamespaceQuery::ReadLink { inode } => match &self.node(inode)?.data {
                Data::Link(target) => Ok(NamespaceReply::Target(target.0.clone().into())),
                _ => Err(Code::Invalid),
            },
            NamespaceQuery::ReadDir { inode, after, limit } => self.read_dir(inode, after, limit),
            NamespaceQuery::Xattr { .. } | NamespaceQuery::Xattrs { .. } => self.ask_xattr(query),
            NamespaceQuery::StatFs => Ok(NamespaceReply::StatFs {
                total_bytes: 1 << 30,
                free_bytes: 1 << 29,
                inodes: self.nodes.len() as u64,
            }),
        }
    }

    fn read_dir(&self, inode: InodeId, after: Option<ByteName>, limit: u32) -> Reply {
        let Data::Dir { entries, parent } = &self.node(inode)?.data else {
            return Err(Code::NotADirectory);
        };
        let rest: Vec<(&ByteName, &InodeId)> =
            entries.iter().filter(|(name, _)| after.as_ref().is_none_or(|a| *name > a)).collect();
        let end = rest.len() <= limit as usize;
        let entry = |(name, inode): &(&ByteName, &InodeId)| {
            let attr = self.node(**inode)?.attr.clone();
            Ok(DirEntry { name: (*name).clone(), attr })
        };
        let entries: Result<Vec<DirEntry>, Code> =
            rest.iter().take(limit as usize).map(entry).collect();
        Ok(NamespaceReply::Entries { entries: entries?, parent: *parent, end })
    }

    fn add(
        &mut self,
        parent: InodeId,
        name: ByteName,
        mode: u32,
        caller: Caller,
        data: Data,
    ) -> Reply {
        if self.dir(parent)?.contains_key(&name) {
            return Err(Code::Exists);
        }
        let inode = InodeId(self.next_inode);
        self.next_inode += 1;
        let kind = match &data {
            Data::File(_) => FileKind::File,
            Data::Dir { .. } => FileKind::Directory,
            Data::Link(_) => FileKind::Symlink,
            Data::Special(special) => FileKind::Special(*special),
        };
        let mut attr = self.attr(inode, kind, mode, caller);
        if let Data::Link(target) = &data {
            attr.size = target.0.len() as u64;
        }
        self.nodes.insert(inode, Node { attr, data, xattrs: BTreeMap::new() });
        self.dir(parent)?.insert(name, inode);
        self.count_dirs(parent);
        self.touch(parent);
        self.reply(inode, true)
    }

    /// Sets the link count of a directory: 2 and one for each subdirectory.
    fn count_dirs(&mut self, inode: InodeId) {
        let Ok(node) = self.node(inode) else { return };
        let Data::Dir { entries, .. } = &node.data else {
            return;
        };
        let is_dir = |id: &&InodeId| {
            self.nodes.get(id).is_some_and(|node| node.attr.kind == FileKind::Directory)
        };
        let count = 2 + entries.values().filter(is_dir).count() as u32;
        if let Some(node) = self.nodes.get_mut(&inode) {
            node.attr.nlink = count;
        }
    }

    /// Takes a name out of its directory, and the inode away with its last name.
    fn drop_name(&mut self, parent: InodeId, name: &ByteName) -> Result<(), Code> {
        let inode = self.dir(parent)?.remove(name).ok_or(Code::NotFound)?;
        let node = self.nodes.get_mut(&inode).ok_or(Code::NotFound)?;
        node.attr.nlink -= 1;
        if node.attr.nlink == 0 || node.attr.kind == FileKind::Directory {
            self.nodes.remove(&inode);
        } else {
            self.touch(inode);
        }
        self.count_dirs(parent);
        self.touch(parent);
        Ok(())
    }

    fn is_empty(&self, inode: InodeId) -> bool {
        matches!(self.node(inode), Ok(Node { data: Data::Dir { entries, .. }, .. })
            if entries.is_empty())
    }

    fn kind(&self, inode: InodeId) -> Result<FileKind, Code> {
        Ok(self.node(inode)?.attr.kind)
    }

    fn change(&mut self, op: NamespaceOp) -> Reply {
        let drops = matches!(op, NamespaceOp::DropPrivileges { .. });
        match op {
            NamespaceOp::Make { parent, name, node, mode, umask, caller, exclusive } => {
                let there = self.dir(parent)?.get(&name).copied();
                let data = match (node, there) {
                    (NewNode::File, Some(inode)) if !exclusive => {
                        return match self.kind(inode)? {
                            FileKind::File => self.reply(inode, false),
                            FileKind::Directory => Err(Code::IsADirectory),
                            FileKind::Symlink | FileKind::Special(_) => Err(Code::Exists),
                        };
                    }
                    (NewNode::File, _) => Data::File(Content::Empty),
                    (NewNode::Directory, _) => Data::Dir { entries: BTreeMap::new(), parent },
                    (NewNode::Symlink(target), _) => {
                        return self.add(parent, name, 0o777, caller, Data::Link(target));
                    }
                    (NewNode::Special(special), _) => Data::Special(special),
                };
                self.add(parent, name, mode & !umask, caller, data)
            }
            NamespaceOp::Link { inode, parent, name } => self.link(inode, parent, name),
            NamespaceOp::Unlink { parent, name } => {
                let inode = self.entry(parent, &name)?;
                if self.kind(inode)? == FileKind::Directory {
                    return Err(Code::IsADirectory);
                }
                self.drop_name(parent, &name).map(|()| NamespaceReply::Done)
            }
            NamespaceOp::Rmdir { parent, name } => {
                let inode = self.entry(parent, &name)?;
                if self.kind(inode)? != FileKind::Directory {
                    return Err(Code::NotADirectory);
                }
                if !self.is_empty(inode) {
                    return Err(Code::NotEmpty);
                }
                self.drop_name(parent, &name).map(|()| NamespaceReply::Done)
            }
            NamespaceOp::Rename { parent, name, new_parent, new_name, mode } => {
                self.rename(parent, name, new_parent, new_name, mode)
            }
            NamespaceOp::SetXattr { .. } | NamespaceOp::RemoveXattr { .. } => self.change_xattr(op),
            NamespaceOp::SetAttr { inode, set } | NamespaceOp::DropPrivileges { inode, set } => {
                let node = self.nodes.get_mut(&inode).ok_or(Code::NotFound)?;
                let attr = &mut node.attr;
                let flags = attr.mode & HAS_XATTRS;
                if drops && attr.kind != FileKind::Directory {
                    attr.mode = without_privileges(attr.mode);
                }
                attr.mode = set.mode.unwrap_or(attr.mode) | flags;
                attr.uid = set.uid.unwrap_or(attr.uid);
                attr.gid = set.gid.unwrap_or(attr.gid);
                attr.atime_ns = set.atime_ns.unwrap_or(attr.atime_ns);
                let mtime = set.mtime_ns.unwrap_or(attr.mtime_ns);
                self.touch(inode);
                let node = self.nodes.get_mut(&inode).ok_or(Code::NotFound)?;
                node.attr.mtime_ns = mtime;
                self.reply(inode, false)
            }
            NamespaceOp::Write {
                inode, content, mtime_ns, if_version, drop_privileges, ..
            } => {
                if if_version.is_some_and(|version| {
                    self.nodes.get(&inode).is_some_and(|node| node.attr.version != version)
                }) {
                    return Err(Code::Conflict);
                }
                self.live.extend(content.direct_chunks());
                if self.kind(inode)? != FileKind::File {
                    return Err(Code::IsADirectory);
                }
                self.touch(inode);
                let node = self.nodes.get_mut(&inode).ok_or(Code::NotFound)?;
                node.attr.size = content.size();
                node.attr.mtime_ns = mtime_ns.unwrap_or_else(now_ns);
                if drop_privileges {
                    node.attr.mode = without_privileges(node.attr.mode);
                }
                node.data = Data::File(content);
                self.reply(inode, false)
            }
            // What mounts do not use.
            NamespaceOp::Commit { .. }
            | NamespaceOp::PutFile { .. }
            | NamespaceOp::MakeDirs { .. }
            | NamespaceOp::Create { .. }
            | NamespaceOp::Mkdir { .. }
            | NamespaceOp::Symlink { .. } => Err(Code::Invalid),
        }
    }
}
