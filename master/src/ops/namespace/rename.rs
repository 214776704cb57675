//! Rename, with the rules of rename(2) and renameat2(2).

use atoll_proto::namespace::{FileKind, NamespaceReply, RenameMode};
use atoll_proto::{ByteName, Code, InodeId, WireError};

use super::remove::check_empty;
use super::{
    check_name, check_not_reserved, directory, drop_name, entry, exists, inode, remove_inode,
};
use crate::operation::{Apply, Now};
use crate::store::dentries::{self, Dentry};
use crate::store::inodes::{self, Body};
use crate::store::{Read, Transaction};

/// A place in the namespace: a directory and a name in it.
type Place<'a> = (InodeId, &'a ByteName);

pub(super) fn rename(
    tx: &mut Transaction<'_>,
    now: Now,
    from: Place<'_>,
    to: Place<'_>,
    mode: RenameMode,
) -> Apply<NamespaceReply> {
    check_name(from.1.as_bytes())?;
    check_name(to.1.as_bytes())?;
    check_not_reserved(to.0, to.1.as_bytes())?;
    if mode == RenameMode::Exchange {
        check_not_reserved(from.0, from.1.as_bytes())?;
    }
    directory(tx, from.0)?;
    directory(tx, to.0)?;
    let source = entry(tx, from.0, from.1.as_bytes())?;
    let target = dentries::get(tx, to.0, to.1.as_bytes())?;
    match (mode, target) {
        (RenameMode::Exchange, None) => {
            entry(tx, to.0, to.1.as_bytes())?;
        }
        (RenameMode::Exchange, Some(target)) => exchange(tx, now, from, source, to, target)?,
        (RenameMode::NoReplace, Some(_)) => {
            return Err(exists(to.1.as_bytes(), to.0).into());
        }
        // Two names of one file (or the same name): rename(2) leaves both.
        (RenameMode::Replace, Some(target)) if target.inode == source.inode => {}
        (_, target) => replace(tx, now, from, source, to, target)?,
    }
    Ok(NamespaceReply::Done)
}

fn replace(
    tx: &mut Transaction<'_>,
    now: Now,
    from: Place<'_>,
    source: Dentry,
    to: Place<'_>,
    target: Option<Dentry>,
) -> Apply<()> {
    check_not_inside(tx, source, to.0)?;
    if let Some(target) = target {
        make_room(tx, now, source, to, target)?;
    }
    dentries::remove(tx, from.0, from.1.as_bytes());
    dentries::put(tx, to.0, to.1.as_bytes(), source);
    move_inode(tx, now, source, from.0, to.0)?;
    touch_both(tx, now, from.0, to.0)
}

/// Removes what the target name stands for.
fn make_room(
    tx: &mut Transaction<'_>,
    now: Now,
    source: Dentry,
    to: Place<'_>,
    target: Dentry,
) -> Apply<()> {
    let source_is_directory = source.kind == FileKind::Directory;
    if target.kind != FileKind::Directory {
        if source_is_directory {
            let message = format!("cannot replace {:?}, which is no directory, by one", to.1);
            return Err(WireError::new(Code::NotADirectory, message).into());
        }
        return drop_name(tx, now, target.inode);
    }
    if !source_is_directory {
        let message = format!("cannot replace the directory {:?} by something else", to.1);
        return Err(WireError::new(Code::IsADirectory, message).into());
    }
    check_empty(tx, target.inode)?;
    remove_inode(tx, target.inode, &directory(tx, target.inode)?)?;
    let mut holder = directory(tx, to.0)?;
    holder.nlink = holder.nlink.saturating_sub(1);
    inodes::put(tx, to.0, &holder);
    Ok(())
}

fn exchange(
    tx: &mut Transaction<'_>,
    now: Now,
    from: Place<'_>,
    source: Dentry,
    to: Place<'_>,
    target: Dentry,
) -> Apply<()> {
    if source.inode == target.inode {
        return Ok(());
    }
    check_not_inside(tx, source, to.0)?;
    check_not_inside(tx, target, from.0)?;
    dentries::put(tx, from.0, from.1.as_bytes(), target);
    dentries::put(tx, to.0, to.1.as_bytes(), source);
    move_inode(tx, now, source, from.0, to.0)?;
    move_inode(tx, now, target, to.0, from.0)?;
    touch_both(tx, now, from.0, to.0)
}

/// Tells the moved inode and, for a directory, both parents.
fn move_inode(
    tx: &mut Transaction<'_>,
    now: Now,
    moved: Dentry,
    from: InodeId,
    to: InodeId,
) -> Apply<()> {
    let mut found = inode(tx, moved.inode)?;
    found.changed(now);
    if let Body::Directory { parent } = &mut found.body {
        *parent = to;
    }
    inodes::put(tx, moved.inode, &found);
    if moved.kind == FileKind::Directory && from != to {
        let mut left = directory(tx, from)?;
        left.nlink = left.nlink.saturating_sub(1);
        inodes::put(tx, from, &left);
        let mut entered = directory(tx, to)?;
        entered.nlink = entered.nlink.saturating_add(1);
        inodes::put(tx, to, &entered);
    }
    Ok(())
}

fn touch_both(tx: &mut Transaction<'_>, now: Now, from: InodeId, to: InodeId) -> Apply<()> {
    let mut ids = vec![from, to];
    ids.dedup();
    for id in ids {
        let holder = directory(tx, id)?;
        super::touch_directory(tx, now, id, holder);
    }
    Ok(())
}

/// Refuses to move a directory into itself or below: it would no longer be reachable.
fn check_not_inside(read: &impl Read, moved: Dentry, into: InodeId) -> Apply<()> {
    if moved.kind != FileKind::Directory {
        return Ok(());
    }
    let mut at = into;
    loop {
        if at == moved.inode {
            let message = "a directory cannot be moved into itself or below itself";
            return Err(WireError::invalid(message).into());
        }
        match inode(read, at)?.body {
            Body::Directory { parent } if parent != at => at = parent,
            _ => return Ok(()),
        }
    }
}
