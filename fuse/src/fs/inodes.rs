//! What the kernel knows: which inodes it holds, under which names, and how fresh its word is.
//!
//! The kernel names what is removed or renamed by parent and name only; this table finds the
//! inode, so that the state of an open file can be told. It holds what the kernel holds: an
//! inode is dropped when the kernel forgets it.

use std::collections::HashMap;
use std::time::Instant;

use atoll_proto::namespace::Attr;
use atoll_proto::{ByteName, ChunkId, InodeId};

use super::TTL;

/// The table.
#[derive(Debug, Default)]
pub(crate) struct Inodes {
    known: HashMap<InodeId, Known>,
    entries: HashMap<InodeId, HashMap<ByteName, InodeId>>,
}

#[derive(Debug, Default)]
struct Known {
    /// How often the kernel was given this inode.
    lookups: u64,
    names: Vec<(InodeId, ByteName)>,
    /// Version, length and mode of the attributes the kernel was given last.
    told: (u64, u64, u32),
    /// The latest version that was heard of: a listing, or an answer that was overtaken, tells of
    /// earlier ones.
    newest: u64,
    /// The version that this mount's latest commit of a content made.
    committed: u64,
    /// Since when it is known that there are no extended attributes.
    without_xattrs: Option<Instant>,
    /// The content the kernel's page cache holds pages of, when it is only one.
    cached: Option<ChunkId>,
}

impl Known {
    /// These are the attributes now; tells whether others were known.
    fn hear(&mut self, attr: &Attr) -> bool {
        if attr.version >= self.newest {
            self.newest = attr.version;
            self.without_xattrs = (!attr.has_xattrs()).then(Instant::now);
        }
        let told = (attr.version, attr.size, attr.mode);
        std::mem::replace(&mut self.told, told) != told
    }
}

impl Inodes {
    /// The kernel gets this inode as the entry of a directory.
    pub(crate) fn looked_up(&mut self, parent: InodeId, name: &ByteName, attr: &Attr) {
        let known = self.known.entry(attr.inode).or_default();
        known.lookups += 1;
        known.hear(attr);
        let entries = self.entries.entry(parent).or_default();
        match entries.insert(name.clone(), attr.inode) {
            Some(before) if before == attr.inode => {}
            before => {
                known.names.push((parent, name.clone()));
                if let Some(before) = before {
                    self.drop_name(before, parent, name);
                }
            }
        }
    }

    /// The kernel gives back so many lookups.
    pub(crate) fn forget(&mut self, inode: InodeId, lookups: u64) {
        let Some(known) = self.known.get_mut(&inode) else {
            return;
        };
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups > 0 {
            return;
        }
        let names = std::mem::take(&mut known.names);
        self.known.remove(&inode);
        for (parent, name) in names {
            self.drop_entry(parent, &name, Some(inode));
        }
    }

    /// A name is gone; returns what it named, if that was known.
    pub(crate) fn removed(&mut self, parent: InodeId, name: &ByteName) -> Option<InodeId> {
        let inode = self.drop_entry(parent, name, None)?;
        self.drop_name(inode, parent, name);
        Some(inode)
    }

    /// What a name was last seen to name.
    pub(crate) fn find(&self, parent: InodeId, name: &ByteName) -> Option<InodeId> {
        self.entries.get(&parent)?.get(name).copied()
    }

    /// A known inode has this name now.
    pub(crate) fn named(&mut self, parent: InodeId, name: &ByteName, inode: InodeId) {
        if let Some(known) = self.known.get_mut(&inode) {
            known.names.push((parent, name.clone()));
            self.entries.entry(parent).or_default().insert(name.clone(), inode);
        }
    }

    /// The kernel gets these attributes; returns whether it had others.
    pub(crate) fn tell(&mut self, attr: &Attr) -> bool {
        self.known.get_mut(&attr.inode).is_some_and(|known| known.hear(attr))
    }

    /// This mount has committed a content.
    pub(crate) fn committed(&mut self, attr: &Attr) {
        self.tell(attr);
        if let Some(known) = self.known.get_mut(&attr.inode) {
            known.committed = attr.version;
        }
    }

    /// The version that this mount's latest commit of a content made, 0 for none.
    pub(crate) fn last_commit(&self, inode: InodeId) -> u64 {
        self.known.get(&inode).map_or(0, |known| known.committed)
    }

    /// Whether it is known that an inode has no extended attributes, as of a moment ago.
    pub(crate) fn lacks_xattrs(&self, inode: InodeId) -> bool {
        let since = self.known.get(&inode).and_then(|known| known.without_xattrs);
        since.is_some_and(|since| since.elapsed() < TTL)
    }

    /// The page cache of an inode will hold this content (`None`: of several, or of changes that
    /// have no name yet). Returns what it held.
    pub(crate) fn cache(&mut self, inode: InodeId, content: Option<ChunkId>) -> Option<ChunkId> {
        let known = self.known.get_mut(&inode)?;
        std::mem::replace(&mut known.cached, content)
    }

    fn drop_entry(
        &mut self,
        parent: InodeId,
        name: &ByteName,
        only: Option<InodeId>,
    ) -> Option<InodeId> {
        let entries = self.entries.get_mut(&parent)?;
        let inode = *entries.get(name)?;
        if only.is_some_and(|only| only != inode) {
            return None;
        }
        entries.remove(name);
        if entries.is_empty() {
            self.entries.remove(&parent);
        }
        Some(inode)
    }

    fn drop_name(&mut self, inode: InodeId, parent: InodeId, name: &ByteName) {
        if let Some(known) = self.known.get_mut(&inode) {
            known.names.retain(|(p, n)| *p != parent || n != name);
        }
    }
}

#[cfg(test)]
mod tests {
    use atoll_proto::namespace::{FileKind, HAS_XATTRS};

    use super::*;

    fn attr(inode: u64) -> Attr {
        Attr {
            inode: InodeId(inode),
            kind: FileKind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            nlink: 1,
            size: 0,
            atime_ns: 0,
            mtime_ns: 0,
            ctime_ns: 0,
            version: 5,
        }
    }

    #[test]
    fn names_are_found_until_forgotten() {
        let mut inodes = Inodes::default();
        let root = InodeId::ROOT;
        let (a, b) = (ByteName::from("a"), ByteName::from("b"));
        inodes.looked_up(root, &a, &attr(7));
        inodes.looked_up(root, &a, &attr(7));
        assert_eq!(inodes.find(root, &a), Some(InodeId(7)));
        assert_eq!(inodes.removed(root, &a), Some(InodeId(7)));
        inodes.named(root, &b, InodeId(7));
        inodes.forget(InodeId(7), 1);
        assert_eq!(inodes.find(root, &b), Some(InodeId(7)));
        inodes.forget(InodeId(7), 1);
        assert_eq!(inodes.find(root, &b), None);
        assert!(inodes.known.is_empty() && inodes.entries.is_empty());
    }

    #[test]
    fn a_name_that_moved_elsewhere_does_not_leak() {
        let mut inodes = Inodes::default();
        let a = ByteName::from("a");
        inodes.looked_up(InodeId::ROOT, &a, &attr(7));
        inodes.looked_up(InodeId::ROOT, &a, &attr(8));
        inodes.forget(InodeId(7), 1);
        assert_eq!(inodes.find(InodeId::ROOT, &a), Some(InodeId(8)));
        inodes.forget(InodeId(8), 1);
        assert!(inodes.known.is_empty() && inodes.entries.is_empty());
    }

    #[test]
    fn what_is_heard_late_does_not_hide_extended_attributes() {
        let (mut inodes, inode, name) = (Inodes::default(), InodeId(7), ByteName::from("a"));
        inodes.looked_up(InodeId::ROOT, &name, &attr(7));
        assert!(inodes.lacks_xattrs(inode));
        inodes.tell(&Attr { version: 6, mode: 0o644 | HAS_XATTRS, ..attr(7) });
        assert!(!inodes.lacks_xattrs(inode));
        // An entry of a listing from before.
        inodes.looked_up(InodeId::ROOT, &name, &attr(7));
        assert!(!inodes.lacks_xattrs(inode));
        inodes.tell(&Attr { version: 7, ..attr(7) });
        assert!(inodes.lacks_xattrs(inode));
    }

    #[test]
    fn the_kernel_is_told_what_changed() {
        let mut inodes = Inodes::default();
        inodes.looked_up(InodeId::ROOT, &ByteName::from("a"), &attr(7));
        assert!(!inodes.tell(&attr(7)));
        assert!(inodes.tell(&Attr { version: 6, ..attr(7) }));
        assert!(inodes.tell(&Attr { version: 6, size: 1, ..attr(7) }));
        assert!(inodes.tell(&Attr { version: 6, size: 1, mode: 0o4755, ..attr(7) }));
        let id = ChunkId::of(b"x");
        assert_eq!(inodes.cache(InodeId(7), Some(id)), None);
        assert_eq!(inodes.cache(InodeId(7), None), Some(id));
    }
}
