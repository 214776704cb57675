//! Extended attributes, among them access control lists.
//!
//! They are the master's, and asked for every time: but for inodes of which it is known that they
//! have none, which are nearly all.

use atoll_proto::namespace::{
    Attr, Caller, NamespaceOp, NamespaceQuery, NamespaceReply, XattrMode,
};
use atoll_proto::{ByteName, InodeId};
use bytes::Bytes;

use super::attr::is_dir;
use super::{FileSystem, FsError, Store, lock, sites};

/// The attribute of a program with rights of root.
const CAPABILITY: &[u8] = b"security.capability";
/// Access control lists.
const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";
/// Names only root sees (xattr(7)).
const TRUSTED: &[u8] = b"trusted.";
/// What names may begin with besides.
const NAMESPACES: &[&[u8]] = &[b"user.", TRUSTED, b"security."];

impl<S: Store> FileSystem<S> {
    /// The value of an extended attribute.
    ///
    /// # Errors
    /// `NoAttribute`, or the master cannot be asked.
    pub async fn getxattr(&self, inode: InodeId, name: ByteName) -> Result<Bytes, FsError> {
        if self.lacks_xattrs(inode) || (name.as_bytes() == CAPABILITY && self.is_changed(inode)) {
            return Err(FsError::NoAttribute);
        }
        match self.store.query(NamespaceQuery::Xattr { inode, name }).await? {
            NamespaceReply::Xattr(value) => value.ok_or(FsError::NoAttribute),
            _ => Err(FsError::Unexpected("a question for an extended attribute")),
        }
    }

    /// The names of all extended attributes, each with a NUL behind it, as listxattr(2) gives
    /// them.
    ///
    /// # Errors
    /// When the master cannot be asked.
    pub async fn listxattr(&self, inode: InodeId, caller: Caller) -> Result<Bytes, FsError> {
        if self.lacks_xattrs(inode) {
            return Ok(Bytes::new());
        }
        let NamespaceReply::Xattrs(names) =
            self.store.query(NamespaceQuery::Xattrs { inode }).await?
        else {
            return Err(FsError::Unexpected("a question for extended attributes"));
        };
        let seen = |name: &&ByteName| caller.uid == 0 || !name.as_bytes().starts_with(TRUSTED);
        let names = names.iter().filter(seen).flat_map(|name| [name.as_bytes(), b"\0"]);
        Ok(names.collect::<Vec<_>>().concat().into())
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// `Unsupported` for names of no known kind, `NoAttribute` when there is none to replace, and
    /// the master's refusal.
    pub async fn setxattr(
        &self,
        inode: InodeId,
        name: ByteName,
        value: Bytes,
        mode: XattrMode,
        caller: Caller,
    ) -> Result<(), FsError> {
        check_space(inode, &name)?;
        // A program with the rights of a group is for members of the group to change. Of the caller's
        // groups only the first is known here; directories keep the bit, whose owner has it anyway.
        let drop_group_id = if name.as_bytes() == ACCESS && caller.uid != 0 {
            let attr = self.getattr(inode).await?;
            !is_dir(&attr) && attr.gid != caller.gid
        } else {
            false
        };
        let op = NamespaceOp::SetXattr { inode, name, value, mode, drop_group_id };
        self.change_xattr(inode, op).await
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `NoAttribute`, or the master's refusal.
    pub async fn removexattr(&self, inode: InodeId, name: ByteName) -> Result<(), FsError> {
        check_space(inode, &name)?;
        let is_list = [ACCESS, DEFAULT].contains(&name.as_bytes());
        match self.change_xattr(inode, NamespaceOp::RemoveXattr { inode, name }).await {
            // No list is what permission bits alone are.
            Err(FsError::NoAttribute) if is_list => Ok(()),
            other => other,
        }
    }

    async fn change_xattr(&self, inode: InodeId, op: NamespaceOp) -> Result<(), FsError> {
        match self.store.change(op).await? {
            NamespaceReply::Attr { attr, .. } => {
                self.heard_of(inode, &attr);
                Ok(())
            }
            NamespaceReply::Xattr(None) => Err(FsError::NoAttribute),
            _ => Err(FsError::Unexpected("a change of an extended attribute")),
        }
    }

    /// The master has new attributes of an inode, which the kernel will ask for by itself.
    fn heard_of(&self, inode: InodeId, attr: &Attr) {
        if let Some(file) = self.open_file(inode) {
            file.lock().set_attr(attr);
        }
        let attr = self.overlay(attr.clone());
        lock(&self.inodes).tell(&attr);
    }

    fn lacks_xattrs(&self, inode: InodeId) -> bool {
        let unlinked = || self.open_file(inode).is_some_and(|file| file.lock().is_unlinked());
        sites::is_virtual(inode) || lock(&self.inodes).lacks_xattrs(inode) || unlinked()
    }

    fn is_changed(&self, inode: InodeId) -> bool {
        self.open_file(inode).is_some_and(|file| file.lock().is_changed())
    }
}

fn check_space(inode: InodeId, name: &ByteName) -> Result<(), FsError> {
    if sites::is_virtual(inode) {
        return Err(FsError::ReadOnly);
    }
    let name = name.as_bytes();
    let known = [ACCESS, DEFAULT].contains(&name)
        || NAMESPACES.iter().any(|space| name.starts_with(space) && name.len() > space.len());
    if known { Ok(()) } else { Err(FsError::Unsupported) }
}
