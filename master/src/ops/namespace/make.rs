//! Make, create, mkdir, symlink, link: operations that make a name.

use atoll_proto::namespace::{Caller, FileKind, NamespaceReply, NewNode};
use atoll_proto::{ByteName, Code, Content, InodeId, WireError, limits};

use super::{
    GROUP_EXECUTES, MODE_BITS, NLINK_MAX, SET_GROUP_ID, acl, attr_reply, check_name,
    check_not_reserved, directory, exists, inode, touch_directory,
};
use crate::operation::{Apply, Now};
use crate::store::Transaction;
use crate::store::dentries::{self, Dentry};
use crate::store::inodes::{self, Body, Inode};

pub(super) fn create(
    tx: &mut Transaction<'_>,
    now: Now,
    parent: InodeId,
    name: &ByteName,
    mode: u32,
    caller: Caller,
    exclusive: bool,
) -> Apply<NamespaceReply> {
    check_name(name.as_bytes())?;
    directory(tx, parent)?;
    if let Some(there) = file_there(tx, (parent, name), exclusive)? {
        return Ok(there);
    }
    new_entry(tx, now, parent, name, mode, caller, Body::File(Content::Empty))
}

/// How something is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct How {
    pub(super) mode: u32,
    pub(super) umask: u32,
    pub(super) caller: Caller,
    pub(super) exclusive: bool,
}

pub(super) fn make(
    tx: &mut Transaction<'_>,
    now: Now,
    (parent, name): (InodeId, &ByteName),
    node: NewNode,
    how: How,
) -> Apply<NamespaceReply> {
    if matches!(node, NewNode::File) && !how.exclusive {
        check_name(name.as_bytes())?;
        directory(tx, parent)?;
        if let Some(there) = file_there(tx, (parent, name), false)? {
            return Ok(there);
        }
    }
    check_free(tx, parent, name)?;
    let (mut mode, body) = match node {
        NewNode::File => (how.mode, Body::File(Content::Empty)),
        NewNode::Directory => (how.mode, Body::Directory { parent }),
        NewNode::Symlink(target) => {
            check_target(&target)?;
            (0o777, Body::Symlink(target))
        }
        NewNode::Special(special) => (how.mode, Body::Special(special)),
    };
    let holder = directory(tx, parent)?;
    let mut caller = how.caller;
    // POSIX.1-2017, open() and mkdir(): the group is the caller's or the directory's. As on every
    // Linux file system the bit decides, and directories pass it on.
    if holder.mode & SET_GROUP_ID != 0 {
        // Nobody makes programs that run with the rights of a group that is not theirs. Of the
        // caller's groups only the first is known: members by another one set the bit with chmod(2).
        let is_member = how.caller.uid == 0 || how.caller.gid == holder.gid;
        let executable = SET_GROUP_ID | GROUP_EXECUTES;
        caller.gid = holder.gid;
        if matches!(body, Body::Directory { .. }) {
            mode |= SET_GROUP_ID;
        } else if mode & executable == executable && !is_member {
            mode &= !SET_GROUP_ID;
        }
    }
    let rules = match body {
        Body::Symlink(_) => None,
        _ => acl::inherited(tx, parent, &holder)?,
    };
    let Some(rules) = rules else {
        if !matches!(body, Body::Symlink(_)) {
            mode &= !how.umask;
        }
        return new_entry(tx, now, parent, name, mode, caller, body);
    };
    let (mode, own) = rules.for_new(mode);
    let is_directory = matches!(body, Body::Directory { .. });
    let reply = new_entry(tx, now, parent, name, mode, caller, body)?;
    let NamespaceReply::Attr { attr, created } = reply else { return Ok(reply) };
    let mut made = inode(tx, attr.inode)?;
    acl::give(tx, attr.inode, &mut made, own, is_directory.then_some(rules));
    inodes::put(tx, attr.inode, &made);
    Ok(attr_reply(made.attr(attr.inode), created))
}

/// The file that is there already, for who does not insist on a new one.
fn file_there(
    tx: &Transaction<'_>,
    (parent, name): (InodeId, &ByteName),
    exclusive: bool,
) -> Apply<Option<NamespaceReply>> {
    match dentries::get(tx, parent, name.as_bytes())? {
        Some(found) if !exclusive && found.kind == FileKind::File => {
            Ok(Some(attr_reply(inode(tx, found.inode)?.attr(found.inode), false)))
        }
        Some(found) if !exclusive && found.kind == FileKind::Directory => {
            let message = format!("{name:?} in directory {parent} is a directory");
            Err(WireError::new(Code::IsADirectory, message).into())
        }
        Some(_) => Err(exists(name.as_bytes(), parent).into()),
        None => Ok(None),
    }
}

pub(super) fn mkdir(
    tx: &mut Transaction<'_>,
    now: Now,
    parent: InodeId,
    name: &ByteName,
    mode: u32,
    caller: Caller,
) -> Apply<NamespaceReply> {
    check_free(tx, parent, name)?;
    new_entry(tx, now, parent, name, mode, caller, Body::Directory { parent })
}

pub(super) fn symlink(
    tx: &mut Transaction<'_>,
    now: Now,
    parent: InodeId,
    name: &ByteName,
    target: ByteName,
    caller: Caller,
) -> Apply<NamespaceReply> {
    check_target(&target)?;
    check_free(tx, parent, name)?;
    new_entry(tx, now, parent, name, 0o777, caller, Body::Symlink(target))
}

fn check_target(target: &ByteName) -> Result<(), WireError> {
    let len = target.as_bytes().len();
    if len == 0 || len > limits::SYMLINK_BYTES_MAX || target.as_bytes().contains(&0) {
        let message = format!(
            "the target of a symbolic link must have 1 to {} bytes and no NUL",
            limits::SYMLINK_BYTES_MAX
        );
        return Err(WireError::invalid(message));
    }
    Ok(())
}

pub(super) fn link(
    tx: &mut Transaction<'_>,
    now: Now,
    id: InodeId,
    parent: InodeId,
    name: &ByteName,
) -> Apply<NamespaceReply> {
    let mut target = inode(tx, id)?;
    if target.is_directory() {
        let message = "a directory cannot have a second name: make a symbolic link instead";
        return Err(WireError::new(Code::Denied, message).into());
    }
    check_free(tx, parent, name)?;
    if target.nlink >= NLINK_MAX {
        let message = format!("inode {id} has {NLINK_MAX} names, which is the most");
        return Err(WireError::new(Code::Limit, message).into());
    }
    target.nlink += 1;
    target.changed(now);
    inodes::put(tx, id, &target);
    dentries::put(tx, parent, name.as_bytes(), Dentry { inode: id, kind: target.kind() });
    let holder = directory(tx, parent)?;
    touch_directory(tx, now, parent, holder);
    Ok(attr_reply(target.attr(id), false))
}

fn check_free(tx: &Transaction<'_>, parent: InodeId, name: &ByteName) -> Apply<()> {
    check_name(name.as_bytes())?;
    check_not_reserved(parent, name.as_bytes())?;
    directory(tx, parent)?;
    match dentries::get(tx, parent, name.as_bytes())? {
        Some(_) => Err(exists(name.as_bytes(), parent).into()),
        None => Ok(()),
    }
}

/// Makes an inode under a name that is free.
pub(super) fn new_entry(
    tx: &mut Transaction<'_>,
    now: Now,
    parent: InodeId,
    name: &ByteName,
    mode: u32,
    caller: Caller,
    body: Body,
) -> Apply<NamespaceReply> {
    check_not_reserved(parent, name.as_bytes())?;
    let at = now.file_ns();
    let is_directory = matches!(body, Body::Directory { .. });
    let made = Inode {
        mode: mode & MODE_BITS,
        uid: caller.uid,
        gid: caller.gid,
        nlink: if is_directory { 2 } else { 1 },
        atime_ns: at,
        mtime_ns: at,
        ctime_ns: at,
        version: now.index,
        body,
    };
    let id = inodes::insert(tx, &made)?;
    dentries::put(tx, parent, name.as_bytes(), Dentry { inode: id, kind: made.kind() });
    let mut holder = directory(tx, parent)?;
    if is_directory {
        holder.nlink = holder.nlink.saturating_add(1);
    }
    touch_directory(tx, now, parent, holder);
    Ok(attr_reply(made.attr(id), true))
}
