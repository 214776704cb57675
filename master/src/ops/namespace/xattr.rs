//! Extended attributes: set and removed.
//!
//! Who may do that is the mount's business. Access rules are attributes as well, and change the
//! permission bits.

use atoll_proto::namespace::{HAS_XATTRS, NamespaceReply, XattrMode};
use atoll_proto::{ByteName, Code, InodeId, Retry, WireError, limits};

use super::{SET_GROUP_ID, acl, attr_reply, inode};
use crate::operation::{Apply, Now};
use crate::store::inodes::{self, Inode};
use crate::store::{Transaction, xattrs};

/// The attribute that gives a program rights of root: it is for the content it was given for.
const CAPABILITY: &[u8] = b"security.capability";
/// What names may begin with (xattr(7)).
const NAMESPACES: &[&[u8]] = &[b"user.", b"trusted.", b"security."];

pub(super) fn set(
    tx: &mut Transaction<'_>,
    now: Now,
    id: InodeId,
    name: &ByteName,
    value: &[u8],
    mode: XattrMode,
    drop_group_id: bool,
) -> Apply<NamespaceReply> {
    let name = name.as_bytes();
    check_name(name)?;
    let mut found = inode(tx, id)?;
    let before = xattrs::get(tx, id, name)?;
    match (mode, &before) {
        (XattrMode::Create, Some(_)) => {
            let message = format!("inode {id} has this extended attribute already");
            return Err(WireError::new(Code::Exists, message).into());
        }
        (XattrMode::Replace, None) => return Ok(NamespaceReply::Xattr(None)),
        _ => {}
    }
    let keep = match name {
        acl::ACCESS => {
            let keep = acl::set_access(&mut found, value)?;
            if drop_group_id {
                found.mode &= !SET_GROUP_ID;
            }
            keep
        }
        acl::DEFAULT if !found.is_directory() => {
            let message = "only directories have rules for what is made in them";
            return Err(WireError::new(Code::Denied, message).into());
        }
        acl::DEFAULT => Some(acl::Acl::decode(value)?.encode()),
        _ => Some(value.to_vec()),
    };
    match keep {
        Some(value) => {
            check_room(tx, id, name, value.len())?;
            xattrs::put(tx, id, name, &value);
            found.mode |= HAS_XATTRS;
        }
        None => forget(tx, id, &mut found, name)?,
    }
    found.changed(now);
    inodes::put(tx, id, &found);
    Ok(attr_reply(found.attr(id), false))
}

pub(super) fn remove(
    tx: &mut Transaction<'_>,
    now: Now,
    id: InodeId,
    name: &ByteName,
) -> Apply<NamespaceReply> {
    let mut found = inode(tx, id)?;
    if xattrs::get(tx, id, name.as_bytes())?.is_none() {
        return Ok(NamespaceReply::Xattr(None));
    }
    forget(tx, id, &mut found, name.as_bytes())?;
    found.changed(now);
    inodes::put(tx, id, &found);
    Ok(attr_reply(found.attr(id), false))
}

/// A file with other content does not keep the rights its old content was given.
pub(super) fn drop_capability(
    tx: &mut Transaction<'_>,
    id: InodeId,
    found: &mut Inode,
) -> Apply<()> {
    if found.has_xattrs() && xattrs::get(tx, id, CAPABILITY)?.is_some() {
        forget(tx, id, found, CAPABILITY)?;
    }
    Ok(())
}

fn forget(tx: &mut Transaction<'_>, id: InodeId, found: &mut Inode, name: &[u8]) -> Apply<()> {
    xattrs::remove(tx, id, name);
    if found.has_xattrs() && xattrs::list(tx, id)?.is_empty() {
        found.mode &= !HAS_XATTRS;
    }
    Ok(())
}

fn check_name(name: &[u8]) -> Result<(), WireError> {
    let known = name == acl::ACCESS
        || name == acl::DEFAULT
        || NAMESPACES.iter().any(|space| name.starts_with(space) && name.len() > space.len());
    if !known || name.len() > limits::NAME_BYTES_MAX || name.contains(&0) {
        let message = format!(
            "extended attribute {:?}: names begin with user., trusted. or security. and have at \
             most {} bytes",
            String::from_utf8_lossy(name),
            limits::NAME_BYTES_MAX
        );
        return Err(WireError::invalid(message));
    }
    Ok(())
}

/// Refuses an attribute for which the inode has no room.
fn check_room(tx: &Transaction<'_>, id: InodeId, name: &[u8], len: usize) -> Apply<()> {
    let others = xattrs::list(tx, id)?.into_iter().filter(|(known, _)| known.as_bytes() != name);
    let (mut count, mut bytes) = (1, name.len() + len);
    for (known, len) in others {
        count += 1;
        bytes += known.as_bytes().len() + len;
    }
    let fits = len <= limits::XATTR_BYTES_MAX
        && count <= limits::XATTRS_MAX
        && bytes <= limits::XATTRS_BYTES_MAX;
    if fits {
        return Ok(());
    }
    let message = format!(
        "an inode has at most {} extended attributes, {} bytes each and {} together",
        limits::XATTRS_MAX,
        limits::XATTR_BYTES_MAX,
        limits::XATTRS_BYTES_MAX
    );
    // No other master has more room for it.
    Err(WireError { retry: Retry::Never, ..WireError::new(Code::Full, message) }.into())
}
