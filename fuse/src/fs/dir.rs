//! Listing directories.
//!
//! A directory handle walks the master's listing page by page. Positions are counted; the names
//! at which pages begin are kept, so that an older position can be found again without holding
//! the whole listing. Entries that come or go meanwhile may or may not be seen, as POSIX has it.

use std::sync::Arc;

use atoll_proto::namespace::{Attr, DirEntry, NamespaceQuery, NamespaceReply};
use atoll_proto::{ByteName, InodeId};

use super::sites::Node;
use super::{FileSystem, FsError, Handle, Store, sites};

/// Entries asked for at first: most directories are small.
const FIRST_PAGE: u32 = 512;
/// Entries asked for later.
const NEXT_PAGE: u32 = 4096;
/// Items given at a time.
const ITEMS_MAX: usize = 512;
/// Positions of `.` and `..`.
const DOTS: u64 = 2;

/// An item of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirItem {
    /// Its name.
    pub name: ByteName,
    /// Which inode it names.
    pub inode: InodeId,
    /// Its attributes; `None` for `.` and `..`.
    pub attr: Option<Attr>,
    /// The position after it.
    pub next: u64,
    /// What it is, in `/.sites`.
    node: Option<Node>,
}

/// An open directory.
#[derive(Debug)]
pub(crate) struct Dir {
    inode: InodeId,
    listing: tokio::sync::Mutex<Listing>,
}

#[derive(Debug, Default)]
struct Listing {
    /// Where pages begin: the position, and the name before it.
    pages: Vec<(u64, Option<ByteName>)>,
    /// The page at hand.
    entries: Vec<DirEntry>,
    /// In `/.sites`, what the entries are.
    nodes: Vec<Node>,
    /// The position of its first entry.
    start: u64,
    parent: InodeId,
    /// Whether it is the last page.
    end: bool,
}

impl<S: Store> FileSystem<S> {
    /// Opens a directory. Its listing is asked for when it is read.
    pub fn opendir(&self, inode: InodeId) -> u64 {
        let listing = tokio::sync::Mutex::default();
        self.add_handle(Handle::Dir(Arc::new(Dir { inode, listing })))
    }

    /// Some items from a position on; none at the end. Position 0 lists afresh.
    ///
    /// # Errors
    /// When the inode is no directory, or the master cannot be asked.
    pub async fn readdir(&self, handle: u64, position: u64) -> Result<Vec<DirItem>, FsError> {
        let Handle::Dir(dir) = self.handle(handle)? else {
            return Err(FsError::NotADirectory);
        };
        let mut listing = dir.listing.lock().await;
        if position == 0 || listing.pages.is_empty() {
            self.load(dir.inode, &mut listing, DOTS, None).await?;
            listing.pages = vec![(DOTS, None)];
        }
        let wanted = position.max(DOTS);
        self.turn_to(dir.inode, &mut listing, wanted).await?;
        let mut items = Vec::new();
        let parent = if dir.inode == self.root() { dir.inode } else { listing.parent };
        for (at, name, inode) in [(0, ".", dir.inode), (1, "..", parent)] {
            if position <= at {
                let (name, next) = (name.into(), at + 1);
                items.push(DirItem { name, inode, attr: None, next, node: None });
            }
        }
        let skip = usize::try_from(wanted - listing.start).unwrap_or(usize::MAX);
        for (index, entry) in listing.entries.iter().enumerate().skip(skip).take(ITEMS_MAX) {
            let attr = self.overlay(entry.attr.clone());
            items.push(DirItem {
                name: entry.name.clone(),
                inode: attr.inode,
                attr: Some(attr),
                next: listing.start + index as u64 + 1,
                node: listing.nodes.get(index).cloned(),
            });
        }
        Ok(items)
    }

    /// The kernel gets an item with its attributes and holds its inode from then on.
    pub fn give_item(&self, dir: InodeId, item: &DirItem) {
        match (&item.attr, &item.node) {
            (_, Some(node)) => {
                self.sites.give(node.clone());
            }
            (Some(attr), None) => self.give_entry(dir, &item.name, attr),
            // The dots are not held.
            (None, None) => {}
        }
    }

    /// Brings the page with a position to hand.
    async fn turn_to(
        &self,
        inode: InodeId,
        listing: &mut Listing,
        position: u64,
    ) -> Result<(), FsError> {
        if position < listing.start {
            let page = listing.pages.partition_point(|(start, _)| *start <= position);
            let (start, after) = listing.pages[page.saturating_sub(1)].clone();
            self.load(inode, listing, start, after).await?;
        }
        loop {
            let end = listing.start + listing.entries.len() as u64;
            if position < end || listing.end {
                return Ok(());
            }
            let Some(last) = listing.entries.last() else {
                return Ok(());
            };
            let after = Some(last.name.clone());
            self.load(inode, listing, end, after.clone()).await?;
            if listing.pages.last().is_none_or(|(start, _)| *start < end) {
                listing.pages.push((end, after));
            }
        }
    }

    async fn load(
        &self,
        inode: InodeId,
        listing: &mut Listing,
        start: u64,
        after: Option<ByteName>,
    ) -> Result<(), FsError> {
        if sites::is_virtual(inode) {
            let (children, parent) = self.deployed_list(inode).await?;
            let entry = |(name, node): &(ByteName, Node)| {
                let (name, attr) = (name.clone(), node.attr());
                DirEntry { name, attr }
            };
            listing.entries = children.iter().map(entry).collect();
            listing.nodes = children.into_iter().map(|(_, node)| node).collect();
            (listing.parent, listing.end) = (parent, true);
        } else {
            let limit = if after.is_none() { FIRST_PAGE } else { NEXT_PAGE };
            let query = NamespaceQuery::ReadDir { inode, after, limit };
            let NamespaceReply::Entries { entries, parent, end } = self.store.query(query).await?
            else {
                return Err(FsError::Unexpected("a listing"));
            };
            (listing.entries, listing.parent, listing.end) = (entries, parent, end);
        }
        listing.start = start;
        Ok(())
    }
}
