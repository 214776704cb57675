//! Set mode, owner and times.

use atoll_proto::InodeId;
use atoll_proto::namespace::{NamespaceReply, SetAttr};

use super::{MODE_BITS, attr_reply, inode};
use crate::operation::{Apply, Now};
use crate::store::{Transaction, inodes};

pub(super) fn set_attr(
    tx: &mut Transaction<'_>,
    now: Now,
    id: InodeId,
    set: SetAttr,
) -> Apply<NamespaceReply> {
    let mut found = inode(tx, id)?;
    if let Some(mode) = set.mode {
        found.mode = mode & MODE_BITS;
    }
    found.uid = set.uid.unwrap_or(found.uid);
    found.gid = set.gid.unwrap_or(found.gid);
    found.atime_ns = set.atime_ns.unwrap_or(found.atime_ns);
    found.mtime_ns = set.mtime_ns.unwrap_or(found.mtime_ns);
    found.changed(now);
    inodes::put(tx, id, &found);
    Ok(attr_reply(found.attr(id), false))
}
