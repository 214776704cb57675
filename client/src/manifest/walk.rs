//! Walking a manifest: looking up a path, listing a directory, reading all entries.

use std::future::Future;
use std::sync::Arc;

use atoll_proto::manifest::{Child, Entry, Page, Root, Step};
use atoll_proto::{ByteName, ChunkId, DeployId, limits};
use bytes::Bytes;

use crate::{ClientError, Cluster};

/// Where pages come from: the cluster, or an edge's cache.
pub trait PageSource: Sync {
    /// The page with this id.
    fn page(&self, id: ChunkId) -> impl Future<Output = Result<Arc<Page>, ClientError>> + Send;
}

impl PageSource for Cluster {
    async fn page(&self, id: ChunkId) -> Result<Arc<Page>, ClientError> {
        decode(id, &self.read_chunk(id).await?)
    }
}

/// One item of a directory listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListItem {
    /// A file; its entry has the whole path.
    File(Entry),
    /// A directory, by its name alone.
    Directory(ByteName),
}

fn decode(id: ChunkId, bytes: &Bytes) -> Result<Arc<Page>, ClientError> {
    Page::decode(bytes)
        .map(Arc::new)
        .map_err(|error| ClientError::Malformed { what: format!("page {id}: {error}") })
}

pub(super) fn wrong(id: ChunkId) -> ClientError {
    ClientError::Malformed { what: format!("page {id} is not the kind of page expected there") }
}

pub(crate) async fn root<S: PageSource>(source: &S, deploy: DeployId) -> Result<Root, ClientError> {
    match &*source.page(deploy).await? {
        Page::RootV1(root) => Ok(root.clone()),
        Page::IndexV1(_) | Page::LeafV1(_) => Err(wrong(deploy)),
    }
}

/// The entry at this path, if the deploy has one. Reads one page per level.
///
/// # Errors
/// When a page cannot be read or is not what it should be.
pub async fn lookup<S: PageSource>(
    source: &S,
    deploy: DeployId,
    path: &[u8],
) -> Result<Option<Entry>, ClientError> {
    // Not `root`, which copies it: it may be large, and an edge comes by here for every request.
    let mut id = match &*source.page(deploy).await? {
        Page::RootV1(Root { top: Some(top), .. }) => top.id,
        Page::RootV1(_) => return Ok(None),
        Page::IndexV1(_) | Page::LeafV1(_) => return Err(wrong(deploy)),
    };
    for _ in 0..limits::PAGE_DEPTH_MAX {
        let page = source.page(id).await?;
        if page.is_root() {
            return Err(wrong(id));
        }
        match page.step(path) {
            Step::Page(below) => id = below,
            Step::Found(entry) => return Ok(Some(entry.clone())),
            Step::Absent => return Ok(None),
        }
    }
    Err(wrong(id))
}

/// The direct children of a directory, in name order; empty when there is no such directory.
/// A large directory below is skipped over, not read.
///
/// # Errors
/// When a page cannot be read or is not what it should be.
pub async fn list<S: PageSource>(
    source: &S,
    deploy: DeployId,
    directory: &[u8],
) -> Result<Vec<ListItem>, ClientError> {
    let prefix = if directory.is_empty() { Vec::new() } else { [directory, b"/"].concat() };
    let mut items = Vec::new();
    let mut cursor = Cursor::seek(source, deploy, &prefix).await?;
    while let Some(entry) = cursor.entry() {
        let Some(rest) = entry.path.as_bytes().strip_prefix(prefix.as_slice()) else { break };
        match rest.iter().position(|byte| *byte == b'/') {
            None => {
                items.push(ListItem::File(entry.clone()));
                cursor.next(source).await?;
            }
            Some(end) => {
                let name = &rest[..end];
                items.push(ListItem::Directory(ByteName::from(name)));
                // '0' is the byte after '/': the first path past everything in the directory.
                let past = [prefix.as_slice(), name, b"0"].concat();
                cursor = Cursor::seek(source, deploy, &past).await?;
            }
        }
    }
    items.sort_by(|a, b| name_of(a, prefix.len()).cmp(name_of(b, prefix.len())));
    Ok(items)
}

fn name_of(item: &ListItem, prefix: usize) -> &[u8] {
    match item {
        ListItem::File(entry) => &entry.path.as_bytes()[prefix..],
        ListItem::Directory(name) => name.as_bytes(),
    }
}

/// All entries in path order.
///
/// # Errors
/// When a page cannot be read or is not what it should be.
pub async fn entries<S: PageSource>(
    source: &S,
    deploy: DeployId,
) -> Result<Vec<Entry>, ClientError> {
    let mut all = Vec::new();
    let mut cursor = Cursor::seek(source, deploy, b"").await?;
    while let Some(entry) = cursor.entry() {
        all.push(entry.clone());
        cursor.next(source).await?;
    }
    Ok(all)
}

/// A place in the sequence of entries: the index pages above it, and a leaf.
struct Cursor {
    /// For each index page from the top: the page and which child we are in.
    above: Vec<(Arc<Page>, usize)>,
    leaf: Option<(Arc<Page>, usize)>,
}

impl Cursor {
    /// At the first entry whose path is not less than `path`.
    async fn seek<S: PageSource>(
        source: &S,
        deploy: DeployId,
        path: &[u8],
    ) -> Result<Self, ClientError> {
        let mut cursor = Self { above: Vec::new(), leaf: None };
        if let Some(top) = root(source, deploy).await?.top {
            cursor.descend(source, top.id, path).await?;
        }
        Ok(cursor)
    }

    async fn descend<S: PageSource>(
        &mut self,
        source: &S,
        mut id: ChunkId,
        path: &[u8],
    ) -> Result<(), ClientError> {
        while self.above.len() < limits::PAGE_DEPTH_MAX {
            let page = source.page(id).await?;
            match &*page {
                Page::IndexV1(children) => {
                    let at = children.partition_point(|child| child.last.as_bytes() < path);
                    let Some(child) = children.get(at) else {
                        return Ok(());
                    };
                    id = child.id;
                    self.above.push((page, at));
                }
                Page::LeafV1(entries) => {
                    let at = entries.partition_point(|entry| entry.path.as_bytes() < path);
                    // A parent's `last` says that the leaf has such an entry, unless it is the
                    // only leaf.
                    if at < entries.len() {
                        self.leaf = Some((page, at));
                    }
                    return Ok(());
                }
                Page::RootV1(_) => return Err(wrong(id)),
            }
        }
        Err(wrong(id))
    }

    fn entry(&self) -> Option<&Entry> {
        match self.leaf.as_ref() {
            Some((page, at)) => match &**page {
                Page::LeafV1(entries) => entries.get(*at),
                Page::RootV1(_) | Page::IndexV1(_) => None,
            },
            None => None,
        }
    }

    async fn next<S: PageSource>(&mut self, source: &S) -> Result<(), ClientError> {
        if let Some((page, at)) = &mut self.leaf {
            *at += 1;
            if matches!(&**page, Page::LeafV1(entries) if *at < entries.len()) {
                return Ok(());
            }
        }
        self.leaf = None;
        while let Some((page, at)) = self.above.pop() {
            if let Some(child) = child(&page, at + 1) {
                let id = child.id;
                self.above.push((page, at + 1));
                return self.descend(source, id, b"").await;
            }
        }
        Ok(())
    }
}

fn child(page: &Page, at: usize) -> Option<&Child> {
    match page {
        Page::IndexV1(children) => children.get(at),
        Page::RootV1(_) | Page::LeafV1(_) => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
pub(super) mod tests {
    use std::collections::{BTreeMap, HashMap};
    use std::sync::Mutex;

    use atoll_proto::Content;
    use atoll_proto::content::Extent;

    use super::*;
    use crate::manifest::build;

    pub(in crate::manifest) fn entry(path: &str, content: &str) -> Entry {
        let id = ChunkId::of(content.as_bytes());
        Entry {
            path: path.into(),
            mode: 0o644,
            mtime_ns: 0,
            content: Content::from_extents(vec![Extent { id: Some(id), len: 7 }]),
            content_type: "text/html; charset=utf-8".to_owned(),
            header_rule: None,
            variants: vec![],
            base: None,
        }
    }

    #[derive(Default)]
    pub(in crate::manifest) struct Stored {
        pub(in crate::manifest) pages: HashMap<ChunkId, Bytes>,
        pub(in crate::manifest) reads: Mutex<usize>,
    }

    impl PageSource for Stored {
        async fn page(&self, id: ChunkId) -> Result<Arc<Page>, ClientError> {
            *self.reads.lock().unwrap() += 1;
            decode(id, &self.pages[&id])
        }
    }

    pub(in crate::manifest) fn stored(
        files: usize,
    ) -> (Stored, DeployId, BTreeMap<Vec<u8>, Entry>) {
        let all: Vec<Entry> = (0..files)
            .map(|i| entry(&format!("dir-{:02}/sub.{}/f{i:05}", i % 31, i % 3), &i.to_string()))
            .chain([entry("index.html", "i"), entry("zz", "z")])
            .collect();
        let model = all.iter().map(|e| (e.path.0.clone(), e.clone())).collect();
        let built = build(all, None).unwrap();
        let pages = built.pages.into_iter().map(|page| (page.id, page.bytes)).collect();
        (Stored { pages, reads: Mutex::new(0) }, built.root, model)
    }

    #[tokio::test]
    async fn lookups_agree_with_the_model_and_read_one_page_a_level() {
        let (source, root, model) = stored(20_000);
        for path in model.keys().step_by(501).chain([&b"index.html".to_vec(), &b"zz".to_vec()]) {
            *source.reads.lock().unwrap() = 0;
            let found = lookup(&source, root, path).await.unwrap();
            assert_eq!(found.as_ref(), model.get(path));
            assert!(*source.reads.lock().unwrap() <= 4);
        }
        for path in [&b""[..], b"a", b"index.htm", b"index.html2", b"zzz", b"dir-01", b"\xff"] {
            assert_eq!(lookup(&source, root, path).await.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn listing_gives_direct_children_and_entries_gives_all() {
        let (source, root, model) = stored(20_000);
        assert_eq!(
            entries(&source, root).await.unwrap(),
            model.values().cloned().collect::<Vec<_>>()
        );
        let top = list(&source, root, b"").await.unwrap();
        assert_eq!(top.len(), 31 + 2);
        let sub = list(&source, root, b"dir-05/sub.1").await.unwrap();
        let want = model.keys().filter(|path| path.starts_with(b"dir-05/sub.1/")).count();
        assert_eq!(sub.len(), want);
        assert!(list(&source, root, b"nowhere").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn an_empty_site_has_nothing() {
        let built = build(vec![], None).unwrap();
        let pages = built.pages.into_iter().map(|page| (page.id, page.bytes)).collect();
        let source = Stored { pages, reads: Mutex::new(0) };
        assert_eq!(lookup(&source, built.root, b"x").await.unwrap(), None);
        assert!(entries(&source, built.root).await.unwrap().is_empty());
    }
}
