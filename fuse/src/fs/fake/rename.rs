//! Names that are added and moved.

use atoll_proto::namespace::{FileKind, NamespaceReply, RenameMode};
use atoll_proto::{ByteName, Code, InodeId};

use super::{Data, Node, Reply, World};

impl World {
    pub(super) fn link(&mut self, inode: InodeId, parent: InodeId, name: ByteName) -> Reply {
        if self.kind(inode)? == FileKind::Directory {
            return Err(Code::IsADirectory);
        }
        if self.dir(parent)?.contains_key(&name) {
            return Err(Code::Exists);
        }
        self.dir(parent)?.insert(name, inode);
        self.nodes.get_mut(&inode).ok_or(Code::NotFound)?.attr.nlink += 1;
        self.touch(inode);
        self.touch(parent);
        self.reply(inode, false)
    }

    pub(super) fn rename(
        &mut self,
        parent: InodeId,
        name: ByteName,
        new_parent: InodeId,
        new_name: ByteName,
        mode: RenameMode,
    ) -> Reply {
        let inode = self.entry(parent, &name)?;
        let is_dir = self.kind(inode)? == FileKind::Directory;
        let mut above = new_parent;
        while above != InodeId::ROOT {
            if above == inode {
                return Err(Code::Invalid);
            }
            let Data::Dir { parent, .. } = &self.node(above)?.data else {
                return Err(Code::NotADirectory);
            };
            above = *parent;
        }
        let target = self.dir(new_parent)?.get(&new_name).copied();
        if target == Some(inode) {
            return Ok(NamespaceReply::Done);
        }
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Code::Exists),
            (RenameMode::Exchange, None) => return Err(Code::NotFound),
            (RenameMode::Exchange, Some(target)) => {
                self.dir(parent)?.insert(name, target);
                self.set_parent(target, parent);
            }
            (_, target) => {
                if let Some(target) = target {
                    match (is_dir, self.kind(target)? == FileKind::Directory) {
                        (true, false) => return Err(Code::NotADirectory),
                        (false, true) => return Err(Code::IsADirectory),
                        (true, true) if !self.is_empty(target) => return Err(Code::NotEmpty),
                        _ => self.drop_name(new_parent, &new_name)?,
                    }
                }
                self.dir(parent)?.remove(&name);
            }
        }
        self.dir(new_parent)?.insert(new_name, inode);
        self.set_parent(inode, new_parent);
        for dir in [parent, new_parent] {
            self.count_dirs(dir);
            self.touch(dir);
        }
        self.touch(inode);
        Ok(NamespaceReply::Done)
    }

    fn set_parent(&mut self, inode: InodeId, to: InodeId) {
        if let Some(Node { data: Data::Dir { parent, .. }, .. }) = self.nodes.get_mut(&inode) {
            *parent = to;
        }
    }
}
