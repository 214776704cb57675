//! Set mode, owner and times.

use atoll_proto::InodeId;
use atoll_proto::namespace::{NamespaceReply, SetAttr, without_privileges};

use super::{acl, attr_reply, inode, xattr};
use crate::operation::{Apply, Now};
use crate::store::inodes::Inode;
use crate::store::{Transaction, inodes};

pub(super) fn set_attr(
    tx: &mut Transaction<'_>,
    now: Now,
    id: InodeId,
    set: SetAttr,
) -> Apply<NamespaceReply> {
    let mut found = inode(tx, id)?;
    // Mounts of an earlier version change owners like this. What they wrote knew no attributes.
    if set.uid.is_some() || set.gid.is_some() {
        xattr::drop_capability(tx, id, &mut found)?;
    }
    finish(tx, now, id, found, set)
}

/// Sets attributes of a file that must not keep its privileges, as chown(2) does. A mode that is set
/// at the same time is meant as it is.
pub(super) fn drop_privileges(
    tx: &mut Transaction<'_>,
    now: Now,
    id: InodeId,
    set: SetAttr,
) -> Apply<NamespaceReply> {
    let mut found = inode(tx, id)?;
    if !found.is_directory() {
        found.mode = without_privileges(found.mode);
        xattr::drop_capability(tx, id, &mut found)?;
    }
    finish(tx, now, id, found, set)
}

fn finish(
    tx: &mut Transaction<'_>,
    now: Now,
    id: InodeId,
    mut found: Inode,
    set: SetAttr,
) -> Apply<NamespaceReply> {
    if let Some(mode) = set.mode {
        found.set_permissions(mode);
        acl::follow_mode(tx, id, &found)?;
    }
    found.uid = set.uid.unwrap_or(found.uid);
    found.gid = set.gid.unwrap_or(found.gid);
    found.atime_ns = set.atime_ns.unwrap_or(found.atime_ns);
    found.mtime_ns = set.mtime_ns.unwrap_or(found.mtime_ns);
    found.changed(now);
    inodes::put(tx, id, &found);
    Ok(attr_reply(found.attr(id), false))
}
