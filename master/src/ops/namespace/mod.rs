//! Changes of the namespace, by the rules of POSIX. Applied by the state machine; the leader's
//! side is [`crate::ops::change`]. Permissions are the mount's business, not checked here.
//!
//! What an operation of the log does never changes, or replicas of two versions would differ: new
//! rules come as new operations. `Create`, `Mkdir` and `Symlink` are from before `Make`, and
//! `SetAttr` without `DropPrivileges` knows no files with privileges.

mod acl;
pub(crate) mod content;
mod make;
#[cfg(test)]
mod model_tests;
mod paths;
mod remove;
mod rename;
#[cfg(test)]
mod reserved_tests;
#[cfg(test)]
mod rules_tests;
mod set_attr;
mod xattr;

use atoll_proto::namespace::{Attr, NamespaceOp, NamespaceReply, PERMISSIONS};
use atoll_proto::{Code, Content, InodeId, WireError, name};

use crate::operation::{Apply, Covered, Now};
use crate::store::dentries::{self, Dentry};
use crate::store::inodes::{self, Body, Inode};
use crate::store::{Read, Transaction, xattrs};

pub(crate) use paths::resolve;

/// Permission bits: the lower 12 of st_mode.
const MODE_BITS: u32 = PERMISSIONS;
/// The set-group-ID bit.
const SET_GROUP_ID: u32 = 0o2000;
/// The group may execute.
const GROUP_EXECUTES: u32 = 0o010;
/// Most names of one inode (as ext4 has it).
const NLINK_MAX: u32 = 65_000;

/// Carries out a change.
pub(crate) fn apply(
    tx: &mut Transaction<'_>,
    now: Now,
    op: NamespaceOp,
    covered: &[Covered],
) -> Apply<NamespaceReply> {
    match op {
        NamespaceOp::Create { parent, name, mode, caller, exclusive } => {
            make::create(tx, now, parent, &name, mode, caller, exclusive)
        }
        NamespaceOp::Mkdir { parent, name, mode, caller } => {
            make::mkdir(tx, now, parent, &name, mode, caller)
        }
        NamespaceOp::Symlink { parent, name, target, caller } => {
            make::symlink(tx, now, parent, &name, target, caller)
        }
        NamespaceOp::Link { inode, parent, name } => make::link(tx, now, inode, parent, &name),
        NamespaceOp::Unlink { parent, name } => remove::unlink(tx, now, parent, &name),
        NamespaceOp::Rmdir { parent, name } => remove::rmdir(tx, now, parent, &name),
        NamespaceOp::Rename { parent, name, new_parent, new_name, mode } => {
            rename::rename(tx, now, (parent, &name), (new_parent, &new_name), mode)
        }
        NamespaceOp::SetAttr { inode, set } => set_attr::set_attr(tx, now, inode, set),
        NamespaceOp::Commit { inode, content, mtime_ns, if_version, receipts: _ } => {
            let how = content::How { mtime_ns, if_version, drop_privileges: false };
            content::commit(tx, now, inode, content, how, covered)
        }
        NamespaceOp::Write {
            inode,
            content,
            mtime_ns,
            if_version,
            drop_privileges,
            receipts: _,
        } => {
            let how = content::How { mtime_ns, if_version, drop_privileges };
            content::commit(tx, now, inode, content, how, covered)
        }
        NamespaceOp::PutFile { path, mode, caller, content, mtime_ns, receipts: _ } => {
            content::put_file(tx, now, &path, mode, caller, content, mtime_ns, covered)
        }
        NamespaceOp::MakeDirs { path, mode, caller } => {
            paths::make_dirs(tx, now, &path, mode, caller)
        }
        NamespaceOp::Make { parent, name, node, mode, umask, caller, exclusive } => {
            let how = make::How { mode, umask, caller, exclusive };
            make::make(tx, now, (parent, &name), node, how)
        }
        NamespaceOp::DropPrivileges { inode, set } => {
            set_attr::drop_privileges(tx, now, inode, set)
        }
        NamespaceOp::SetXattr { inode, name, value, mode, drop_group_id } => {
            xattr::set(tx, now, inode, &name, &value, mode, drop_group_id)
        }
        NamespaceOp::RemoveXattr { inode, name } => xattr::remove(tx, now, inode, &name),
    }
}

/// Makes the root directory of a new cluster: anybody may make files in it, as in `/tmp`, until
/// its owner says otherwise.
pub(crate) fn init(tx: &mut Transaction<'_>, now: Now) -> Apply<()> {
    let root = Inode {
        mode: 0o1777,
        uid: 0,
        gid: 0,
        nlink: 2,
        atime_ns: now.file_ns(),
        mtime_ns: now.file_ns(),
        ctime_ns: now.file_ns(),
        version: now.index,
        body: Body::Directory { parent: InodeId::ROOT },
    };
    let id = inodes::insert(tx, &root)?;
    assert_eq!(id, InodeId::ROOT, "the first inode is the root");
    Ok(())
}

/// An inode that must be there.
pub(crate) fn inode(read: &impl Read, id: InodeId) -> Apply<Inode> {
    let missing = || {
        WireError::not_found(format!("there is no inode {id}: it was removed, look it up again"))
    };
    Ok(inodes::get(read, id)?.ok_or_else(missing)?)
}

/// An inode that must be a directory.
pub(crate) fn directory(read: &impl Read, id: InodeId) -> Apply<Inode> {
    let found = inode(read, id)?;
    if !found.is_directory() {
        let message = format!("inode {id} is not a directory");
        return Err(WireError::new(Code::NotADirectory, message).into());
    }
    Ok(found)
}

/// The entry of a name that must be there.
pub(crate) fn entry(read: &impl Read, parent: InodeId, name: &[u8]) -> Apply<Dentry> {
    let missing = || {
        let name = String::from_utf8_lossy(name);
        WireError::not_found(format!("there is no {name:?} in directory {parent}"))
    };
    Ok(dentries::get(read, parent, name)?.ok_or_else(missing)?)
}

fn check_name(name: &[u8]) -> Result<(), WireError> {
    name::check_entry_name(name).map_err(|error| WireError::invalid(error.to_string()))
}

/// Nothing may be given the name under which mounts show deploys: they would hide it.
fn check_not_reserved(parent: InodeId, name: &[u8]) -> Result<(), WireError> {
    if parent != InodeId::ROOT || name != name::SITES_NAME {
        return Ok(());
    }
    let message = "/.sites is where mounts show the deploys of sites: choose another name";
    Err(WireError::new(Code::Denied, message))
}

fn exists(name: &[u8], parent: InodeId) -> WireError {
    let name = String::from_utf8_lossy(name);
    WireError::new(Code::Exists, format!("there is a {name:?} in directory {parent} already"))
}

impl Inode {
    /// Sets the permission bits and nothing else in the mode.
    fn set_permissions(&mut self, mode: u32) {
        self.mode = (self.mode & !MODE_BITS) | (mode & MODE_BITS);
    }

    /// Something but the content changed.
    fn changed(&mut self, now: Now) {
        self.ctime_ns = now.file_ns();
        self.version = now.index.max(self.version + 1);
    }

    /// The content (of a directory: its entries) changed.
    fn modified(&mut self, now: Now) {
        self.mtime_ns = now.file_ns();
        self.changed(now);
    }
}

/// The entries of a directory changed.
fn touch_directory(tx: &mut Transaction<'_>, now: Now, id: InodeId, mut found: Inode) {
    found.modified(now);
    inodes::put(tx, id, &found);
}

fn attr_reply(attr: Attr, created: bool) -> NamespaceReply {
    NamespaceReply::Attr { attr, created }
}

/// One name of an inode that is no directory is gone; with the last one the inode goes, and with
/// it its references to chunks.
fn drop_name(tx: &mut Transaction<'_>, now: Now, id: InodeId) -> Apply<()> {
    let mut found = inode(tx, id)?;
    found.nlink = found.nlink.saturating_sub(1);
    if found.nlink > 0 {
        found.changed(now);
        inodes::put(tx, id, &found);
        return Ok(());
    }
    if let Body::File(content) = &found.body {
        content::replace_references(tx, now, content, &Content::Empty)?;
    }
    remove_inode(tx, id, &found)
}

/// Takes an inode away, with its extended attributes.
fn remove_inode(tx: &mut Transaction<'_>, id: InodeId, found: &Inode) -> Apply<()> {
    if found.has_xattrs() {
        xattrs::remove_all(tx, id)?;
    }
    inodes::remove(tx, id)?;
    Ok(())
}
