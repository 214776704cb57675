//! Family `Inode`: attributes and what the inode holds.

use atoll_proto::namespace::{Attr, FileKind, HAS_XATTRS, Special};
use atoll_proto::{ByteName, Content, InodeId};
use serde::{Deserialize, Serialize};

use super::counters::{self, Counter};
use super::{Family, Read, StoreError, Transaction};

/// An inode as it is stored; its number is in the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inode {
    /// Permission bits, and [`HAS_XATTRS`].
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Directory entries that refer to it (directories: 2 + subdirectories).
    pub(crate) nlink: u32,
    /// Last access, nanoseconds since the Unix epoch.
    pub(crate) atime_ns: i64,
    /// Last change of content.
    pub(crate) mtime_ns: i64,
    /// Last change of anything.
    pub(crate) ctime_ns: i64,
    /// Grows with every change.
    pub(crate) version: u64,
    /// What it holds.
    pub(crate) body: Body,
}

/// What an inode holds. Variant numbers are stable on disk: only append.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Body {
    /// A regular file.
    File(Content),
    /// A directory; its entries are in the family `Dentry`.
    Directory {
        /// The directory it is in; the root is in itself.
        parent: InodeId,
    },
    /// A symbolic link.
    Symlink(ByteName),
    /// A pipe, socket or device.
    Special(Special),
}

impl Inode {
    pub(crate) fn kind(&self) -> FileKind {
        match self.body {
            Body::File(_) => FileKind::File,
            Body::Directory { .. } => FileKind::Directory,
            Body::Symlink(_) => FileKind::Symlink,
            Body::Special(special) => FileKind::Special(special),
        }
    }

    pub(crate) fn is_directory(&self) -> bool {
        matches!(self.body, Body::Directory { .. })
    }

    pub(crate) fn has_xattrs(&self) -> bool {
        self.mode & HAS_XATTRS != 0
    }

    pub(crate) fn size(&self) -> u64 {
        match &self.body {
            Body::File(content) => content.size(),
            Body::Directory { .. } | Body::Special(_) => 0,
            Body::Symlink(target) => target.as_bytes().len() as u64,
        }
    }

    pub(crate) fn attr(&self, inode: InodeId) -> Attr {
        Attr {
            inode,
            kind: self.kind(),
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            nlink: self.nlink,
            size: self.size(),
            atime_ns: self.atime_ns,
            mtime_ns: self.mtime_ns,
            ctime_ns: self.ctime_ns,
            version: self.version,
        }
    }
}

fn key(inode: InodeId) -> Vec<u8> {
    Family::Inode.key(&[&inode.0.to_be_bytes()])
}

pub(crate) fn get(read: &impl Read, inode: InodeId) -> Result<Option<Inode>, StoreError> {
    read.get_value(&key(inode))
}

/// Changes an inode that is there.
pub(crate) fn put(tx: &mut Transaction<'_>, inode: InodeId, value: &Inode) {
    tx.put_value(key(inode), value);
}

/// Gives a new inode its number and counts it.
pub(crate) fn insert(tx: &mut Transaction<'_>, value: &Inode) -> Result<InodeId, StoreError> {
    let inode = InodeId(counters::add(tx, Counter::LastInode, 1)?);
    counters::add(tx, Counter::Inodes, 1)?;
    put(tx, inode, value);
    Ok(inode)
}

pub(crate) fn remove(tx: &mut Transaction<'_>, inode: InodeId) -> Result<(), StoreError> {
    counters::add(tx, Counter::Inodes, -1)?;
    tx.delete(key(inode));
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::TestStore;
    use super::*;
    use atoll_proto::{ChunkId, content::Extent};
    use proptest::prelude::*;

    fn body() -> impl Strategy<Value = Body> {
        prop_oneof![
            any::<(u32, [u8; 32])>().prop_map(|(len, id)| Body::File(Content::from_extents(vec![
                Extent { id: Some(ChunkId(id)), len }
            ]))),
            any::<u64>().prop_map(|parent| Body::Directory { parent: InodeId(parent) }),
            any::<Vec<u8>>().prop_map(|target| Body::Symlink(ByteName(target))),
            any::<u32>().prop_map(|device| Body::Special(Special::CharDevice(device))),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn inodes_round_trip(
            numbers: [u32; 4], times: [i64; 3], version: u64, body in body(),
        ) {
            let store = TestStore::new();
            let [mode, uid, gid, nlink] = numbers;
            let [atime_ns, mtime_ns, ctime_ns] = times;
            let inode =
                Inode { mode, uid, gid, nlink, atime_ns, mtime_ns, ctime_ns, version, body };
            let mut tx = Transaction::new(&store.rocks);
            let id = insert(&mut tx, &inode).unwrap();
            tx.commit().unwrap();
            prop_assert_eq!(get(&store.rocks, id).unwrap(), Some(inode));
            let mut tx = Transaction::new(&store.rocks);
            remove(&mut tx, id).unwrap();
            prop_assert_eq!(get(&tx, id).unwrap(), None);
            prop_assert_eq!(counters::get(&tx, Counter::Inodes).unwrap(), 0);
        }
    }
}
