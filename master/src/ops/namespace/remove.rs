//! Unlink and rmdir: operations that remove a name.

use atoll_proto::namespace::{FileKind, NamespaceReply};
use atoll_proto::{ByteName, Code, InodeId, WireError};

use super::{check_name, directory, drop_name, entry, remove_inode, touch_directory};
use crate::operation::{Apply, Now};
use crate::store::{Transaction, dentries};

pub(super) fn unlink(
    tx: &mut Transaction<'_>,
    now: Now,
    parent: InodeId,
    name: &ByteName,
) -> Apply<NamespaceReply> {
    check_name(name.as_bytes())?;
    let holder = directory(tx, parent)?;
    let found = entry(tx, parent, name.as_bytes())?;
    if found.kind == FileKind::Directory {
        let message = format!("{name:?} in directory {parent} is a directory: use rmdir");
        return Err(WireError::new(Code::IsADirectory, message).into());
    }
    dentries::remove(tx, parent, name.as_bytes());
    touch_directory(tx, now, parent, holder);
    drop_name(tx, now, found.inode)?;
    Ok(NamespaceReply::Done)
}

pub(super) fn rmdir(
    tx: &mut Transaction<'_>,
    now: Now,
    parent: InodeId,
    name: &ByteName,
) -> Apply<NamespaceReply> {
    check_name(name.as_bytes())?;
    let mut holder = directory(tx, parent)?;
    let found = entry(tx, parent, name.as_bytes())?;
    if found.kind != FileKind::Directory {
        let message = format!("{name:?} in directory {parent} is not a directory: use unlink");
        return Err(WireError::new(Code::NotADirectory, message).into());
    }
    check_empty(tx, found.inode)?;
    dentries::remove(tx, parent, name.as_bytes());
    remove_inode(tx, found.inode, &directory(tx, found.inode)?)?;
    holder.nlink = holder.nlink.saturating_sub(1);
    touch_directory(tx, now, parent, holder);
    Ok(NamespaceReply::Done)
}

/// Refuses a directory with entries.
pub(super) fn check_empty(tx: &Transaction<'_>, id: InodeId) -> Apply<()> {
    if dentries::is_empty(tx, id)? {
        return Ok(());
    }
    let message = format!("directory {id} is not empty: remove what is in it first");
    Err(WireError::new(Code::NotEmpty, message).into())
}
