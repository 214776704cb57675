//! Paths: finding what they name, and making missing directories.

use atoll_proto::namespace::{Caller, FileKind, NamespaceReply};
use atoll_proto::{ByteName, Code, InodeId, WireError};

use super::make::new_entry;
use super::{attr_reply, check_name, directory, entry, inode};
use crate::operation::{Apply, Now};
use crate::store::inodes::Body;
use crate::store::{Read, Transaction, dentries};

/// Longest path that is followed, in bytes (PATH_MAX).
const PATH_BYTES_MAX: usize = 4096;
/// Most symbolic links followed on the way (as Linux has it).
const SYMLINKS_MAX: usize = 40;

/// The names of an absolute path.
pub(super) fn names(path: &ByteName) -> Result<Vec<&[u8]>, WireError> {
    let bytes = path.as_bytes();
    let wrong = |rule: &str| Err(WireError::invalid(format!("path {path:?} {rule}")));
    let Some(b'/') = bytes.first() else {
        return wrong("is not absolute: start it with '/'");
    };
    if bytes.len() > PATH_BYTES_MAX {
        return Err(WireError::invalid(format!("a path is longer than {PATH_BYTES_MAX} bytes")));
    }
    let names: Vec<&[u8]> =
        bytes.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
    for name in &names {
        check_name(name)?;
    }
    Ok(names)
}

/// The inode a path names. A symbolic link at the end is not followed, those on the way are.
pub(crate) fn resolve(read: &impl Read, path: &ByteName) -> Apply<InodeId> {
    let names = names(path)?;
    let Some((last, parents)) = names.split_last() else { return Ok(InodeId::ROOT) };
    let mut walk = Walk { links: 0 };
    let mut at = InodeId::ROOT;
    for name in parents {
        at = walk.step(read, at, name)?;
    }
    directory(read, at)?;
    Ok(entry(read, at, last)?.inode)
}

/// Makes a directory with its missing parents.
pub(super) fn make_dirs(
    tx: &mut Transaction<'_>,
    now: Now,
    path: &ByteName,
    mode: u32,
    caller: Caller,
) -> Apply<NamespaceReply> {
    let names = names(path)?;
    let (at, created) = descend(tx, now, &names, mode, caller)?;
    Ok(attr_reply(directory(tx, at)?.attr(at), created))
}

/// Goes down these names from the root, making directories that are missing. Returns where it
/// ends and whether the last one was made.
pub(super) fn descend(
    tx: &mut Transaction<'_>,
    now: Now,
    names: &[&[u8]],
    mode: u32,
    caller: Caller,
) -> Apply<(InodeId, bool)> {
    let mut walk = Walk { links: 0 };
    let mut at = InodeId::ROOT;
    let mut created = false;
    for name in names {
        created = dentries::get(tx, at, name)?.is_none();
        if created {
            directory(tx, at)?;
            let body = Body::Directory { parent: at };
            new_entry(tx, now, at, &ByteName::from(*name), mode, caller, body)?;
        }
        at = walk.step(tx, at, name)?;
    }
    Ok((at, created))
}

/// A walk from directory to directory.
struct Walk {
    links: usize,
}

impl Walk {
    /// The directory that a name in a directory stands for, following symbolic links.
    fn step(&mut self, read: &impl Read, at: InodeId, name: &[u8]) -> Apply<InodeId> {
        // Names still to go, last first: a link's target is put in front of what is left.
        let mut left: Vec<Vec<u8>> = vec![name.to_vec()];
        let mut at = at;
        while let Some(name) = left.pop() {
            let holder = directory(read, at)?;
            if matches!(name.as_slice(), b"" | b".") {
                continue;
            }
            if let (b"..", Body::Directory { parent }) = (name.as_slice(), &holder.body) {
                at = *parent;
                continue;
            }
            let found = entry(read, at, &name)?;
            match found.kind {
                FileKind::Directory => at = found.inode,
                FileKind::Symlink => {
                    self.links += 1;
                    if self.links > SYMLINKS_MAX {
                        let message = "too many symbolic links on the way: do they form a loop?";
                        return Err(WireError::invalid(message).into());
                    }
                    let Body::Symlink(target) = inode(read, found.inode)?.body else { continue };
                    if target.as_bytes().first() == Some(&b'/') {
                        at = InodeId::ROOT;
                    }
                    let parts = target.as_bytes().split(|byte| *byte == b'/');
                    left.extend(parts.map(<[u8]>::to_vec).collect::<Vec<_>>().into_iter().rev());
                }
                FileKind::File | FileKind::Special(_) => {
                    let name = String::from_utf8_lossy(&name).into_owned();
                    let message = format!("{name:?} on the way is not a directory");
                    return Err(WireError::new(Code::NotADirectory, message).into());
                }
            }
        }
        Ok(at)
    }
}
