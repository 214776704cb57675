//! Extended attributes in the fake: kept as they come, without the rules of access lists.

use atoll_proto::Code;
use atoll_proto::namespace::{HAS_XATTRS, NamespaceOp, NamespaceQuery, NamespaceReply, XattrMode};

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
            NamespaceOp::SetXattr { name, value, mode, .. } => {
                match (mode, node.xattrs.contains_key(&name)) {
                    (XattrMode::Create, true) => return Err(Code::Exists),
                    (XattrMode::Replace, false) => return Ok(NamespaceReply::Xattr(None)),
                    _ => {}
                }
                node.xattrs.insert(name, value);
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
