//! Commit and put_file: operations that give a file content.
//!
//! Counts of the object table change here, in the log entry that changes what refers to the
//! chunks: one for each distinct chunk of the new content, minus one for each of the old.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use atoll_proto::master::ObjectKind;
use atoll_proto::namespace::{Caller, NamespaceReply, without_privileges};
use atoll_proto::{ByteName, ChunkId, Code, Content, InodeId, WireError};

use super::make::new_entry;
use super::paths::{descend, names};
use super::{MODE_BITS, acl, attr_reply, inode, xattr};
use crate::operation::{Apply, Covered, Failure, Now};
use crate::ops::erased::{check_below, refusal};
use crate::store::inodes::{self, Body};
use crate::store::{Read, Transaction, dentries, erased, objects};

/// Most ids in a list of missing chunks.
pub(crate) const MISSING_MAX: usize = 4096;
/// What is said of a content that has lost bytes.
const REFUSED: &str = "the content of this file may not be stored";
/// Permission bits of parents made on the way.
const PARENT_MODE: u32 = 0o755;

/// How a content is given.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct How {
    pub(super) mtime_ns: Option<i64>,
    pub(super) if_version: Option<u64>,
    pub(super) drop_privileges: bool,
}

pub(super) fn commit(
    tx: &mut Transaction<'_>,
    now: Now,
    id: InodeId,
    content: Content,
    how: How,
    covered: &[Covered],
) -> Apply<NamespaceReply> {
    let mut found = inode(tx, id)?;
    if let Some(version) = how.if_version
        && version != found.version
    {
        let message = format!(
            "inode {id} changed in the meantime (version {}, not {version}): read it again",
            found.version
        );
        return Err(WireError::new(Code::Conflict, message).into());
    }
    let old = match &found.body {
        Body::File(old) => old.clone(),
        Body::Directory { .. } => {
            let message = format!("inode {id} is a directory and holds no bytes");
            return Err(WireError::new(Code::IsADirectory, message).into());
        }
        Body::Symlink(_) => {
            let message = format!("inode {id} is a symbolic link and holds no bytes");
            return Err(WireError::invalid(message).into());
        }
        Body::Special(_) => {
            let message = format!("inode {id} is a pipe, socket or device and holds no bytes");
            return Err(WireError::invalid(message).into());
        }
    };
    check(tx, &content, covered)?;
    for Covered { id, .. } in covered {
        // Erased once, and allowed again: it is there now, also where it was referred to before.
        if erased::is_absent(tx, id)? && objects::has(tx, id)? {
            objects::show(tx, now, id)?;
        }
    }
    replace_references(tx, now, &old, &content)?;
    found.body = Body::File(content);
    xattr::drop_capability(tx, id, &mut found)?;
    if how.drop_privileges {
        found.mode = without_privileges(found.mode);
    }
    found.modified(now);
    found.mtime_ns = how.mtime_ns.unwrap_or(found.mtime_ns);
    inodes::put(tx, id, &found);
    Ok(attr_reply(found.attr(id), false))
}

#[allow(clippy::too_many_arguments, reason = "the fields of the message")]
pub(super) fn put_file(
    tx: &mut Transaction<'_>,
    now: Now,
    path: &ByteName,
    mode: u32,
    caller: Caller,
    content: Content,
    mtime_ns: Option<i64>,
    covered: &[Covered],
) -> Apply<NamespaceReply> {
    let names = names(path)?;
    let Some((last, parents)) = names.split_last() else {
        let message = "the path names the root, which is a directory";
        return Err(WireError::new(Code::IsADirectory, message).into());
    };
    let (parent, _) = descend(tx, now, parents, PARENT_MODE, caller)?;
    super::directory(tx, parent)?;
    let name = ByteName::from(*last);
    let (id, created) = match dentries::get(tx, parent, last)? {
        Some(found) => (found.inode, false),
        None => {
            let body = Body::File(Content::Empty);
            match new_entry(tx, now, parent, &name, mode, caller, body)? {
                NamespaceReply::Attr { attr, .. } => (attr.inode, true),
                _ => return Err(WireError::internal("a new file has no attributes").into()),
            }
        }
    };
    let how = How { mtime_ns, ..How::default() };
    commit(tx, now, id, content, how, covered).map_err(|failure| match failure {
        Failure::Refused(error) => {
            let message = format!("{path:?}: {}", error.message);
            Failure::Refused(WireError { message, ..error })
        }
        other => other,
    })?;
    let mut found = inode(tx, id)?;
    if !created && found.mode & MODE_BITS != mode & MODE_BITS {
        found.set_permissions(mode);
        acl::follow_mode(tx, id, &found)?;
        inodes::put(tx, id, &found);
    }
    Ok(attr_reply(found.attr(id), created))
}

/// Checks that every chunk of a content is in the object table or covered, with the length the
/// content says.
pub(crate) fn check(read: &impl Read, content: &Content, covered: &[Covered]) -> Apply<()> {
    content.check()?;
    let covered: HashMap<ChunkId, u32> =
        covered.iter().map(|chunk| (chunk.id, chunk.len)).collect();
    let (kind, chunks) = chunks(content);
    let mut seen = BTreeMap::new();
    let mut missing = Vec::new();
    for (id, len) in chunks {
        let before = seen.insert(id, len);
        if before == Some(len) {
            continue;
        }
        if erased::is_refused(read, &id)? {
            return Err(refusal(&id, REFUSED).into());
        }
        if kind == ObjectKind::List {
            check_below(read, &id, || REFUSED.to_owned())?;
        }
        let known = objects::get(read, &id)?;
        let known = if erased::is_absent(read, &id)? { None } else { known };
        let is = match (&known, covered.get(&id)) {
            (Some(object), _) => object.len,
            (None, Some(len)) => *len,
            (None, None) => {
                missing.push(id);
                continue;
            }
        };
        if is != len {
            let message =
                format!("chunk {} has {is} bytes, not {len} as the content says", id.short());
            return Err(WireError::invalid(message).into());
        }
        // A list counts its extents, so it must have been read by the master first.
        let admitted = known.is_some_and(|object| object.kind == ObjectKind::List);
        if kind == ObjectKind::List && !admitted {
            let message = format!("list chunk {} is not admitted: admit it first", id.short());
            return Err(WireError::invalid(message).into());
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    missing.truncate(MISSING_MAX);
    Err(Failure::Missing(missing))
}

/// What a content refers to directly: of which kind, and the chunks with their lengths.
pub(crate) fn chunks(content: &Content) -> (ObjectKind, Vec<(ChunkId, u32)>) {
    match content {
        Content::Empty => (ObjectKind::Data, Vec::new()),
        Content::Extents(extents) => {
            let chunks = extents.iter().filter_map(|extent| Some((extent.id?, extent.len)));
            (ObjectKind::Data, chunks.collect())
        }
        Content::Lists { lists, .. } => {
            (ObjectKind::List, lists.iter().map(|(len, id)| (*id, *len)).collect())
        }
    }
}

/// Moves the references of a file from its old to its new content.
pub(super) fn replace_references(
    tx: &mut Transaction<'_>,
    now: Now,
    old: &Content,
    new: &Content,
) -> Apply<()> {
    let (kind, added) = chunks(new);
    let added: BTreeMap<ChunkId, u32> = added.into_iter().collect();
    let removed: BTreeSet<ChunkId> = chunks(old).1.into_iter().map(|(id, _)| id).collect();
    for (id, len) in added.iter().filter(|(id, _)| !removed.contains(*id)) {
        objects::add_ref(tx, now, id, *len, kind)?;
    }
    for id in removed.iter().filter(|id| !added.contains_key(*id)) {
        objects::drop_ref(tx, now, id)?;
    }
    Ok(())
}
