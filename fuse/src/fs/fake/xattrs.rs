//! Extended attributes in the fake: kept as they come. Of the rules of access lists it has one: a list
//! that says no more than permission bits is these bits, which is how `cp -a` sets them.

use atoll_proto::namespace::{HAS_XATTRS, NamespaceOp, NamespaceQuery, NamespaceReply, XattrMode};
use atoll_proto::{ByteName, Code};

use super::{Reply, World};

impl World {
    pub(super) fn ask_xattr(&self, query: NamespaceQuery) -> Reply {
        match query {
            NamespaceQuery::Xattr { inode, name } => {
                Ok(NamespaceReply::Xattr(self.node(inode)?.xattrs.get(&name).cloned()))
            }
            NamespaceQuery::Xattrs { inode } => {
                Ok(NamespaceReply::Xattrs(self.node(inode)?.xattrs.keys().cloned().collect()))
            }
            _ => Err(Code::Invalid),
        }
    }

    pub(super) fn change_xattr(&mut self, op: NamespaceOp) -> Reply {
        let (NamespaceOp::SetXattr { inode, .. } | NamespaceOp::RemoveXattr { inode, .. }) = op
        else {
            return Err(Code::Invalid);
        };
        let node = self.nodes.get_mut(&inode).ok_or(Code::NotFound)?;
        match op {
            NamespaceOp::SetXattr { name, value, mode, drop_group_id, .. } => {
                match (mode, node.xattrs.contains_key(&name)) {
                    (XattrMode::Create, true) => return Err(Code::Exists),
                    (XattrMode::Replace, false) => return Ok(NamespaceReply::Xattr(None)),
                    _ => {}
                }
                match permissions(&name, &value) {
                    Some(mode) => {
                        let drop = if drop_group_id { 0o2000 } else { 0 };
                        node.attr.mode = node.attr.mode & !(0o777 | drop) | mode;
                    }
                    None => {
                        node.xattrs.insert(name, value);
                    }
                }
            }
            NamespaceOp::RemoveXattr { name, .. } => {
                if node.xattrs.remove(&name).is_none() {
                    return Ok(NamespaceReply::Xattr(None));
                }
            }
            _ => return Err(Code::Invalid),
        }
        let flag = if node.xattrs.is_empty() { 0 } else { HAS_XATTRS };
        node.attr.mode = node.attr.mode & !HAS_XATTRS | flag;
        self.touch(inode);
        self.reply(inode, false)
    }
}

/// The permission bits of a list of three entries, in the kernel's layout: a version of four bytes,
/// then tag, bits and id of each, eight bytes together.
fn permissions(name: &ByteName, list: &[u8]) -> Option<u32> {
    let is_minimal = name.as_bytes() == b"system.posix_acl_access" && list.len() == 4 + 3 * 8;
    is_minimal
        .then(|| list[4..].chunks(8).fold(0, |mode, entry| mode << 3 | u32::from(entry[2] & 7)))
}
