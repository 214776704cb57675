//! The files of a live directory, by the rules of the deploy scanner (`cli/src/scan.rs`): symbolic
//! links within the tree count as what they point at, one that leads nowhere or leaves the tree is
//! a problem, one that leads to a directory above it is left out; a file with two names is two
//! files, an empty directory is nothing. Reads metadata only, never the bytes of a file.

use atoll_proto::manifest::Entry;
use atoll_proto::name::{NEVER_SERVED, check_site_path};
use atoll_proto::namespace::FileKind;
use atoll_proto::{ByteName, InodeId, content_type, limits};

use super::known::Look;
use crate::store::dentries::Dentry;
use crate::store::inodes::Body;
use crate::store::{Read, StoreError};

/// Most symbolic links followed on the way to one file.
const LINKS_MAX: usize = 40;
/// Problems that are named; the rest is counted.
const PROBLEMS_KEPT: usize = 10;

/// What a live directory holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Walked {
    /// It does not exist (yet, or any more).
    Absent,
    /// These files.
    Files(Vec<Entry>),
    /// Something in it cannot be served: what and why.
    Problems(String),
}

/// Finds the files under an absolute path.
pub(super) fn walk<R: Read>(look: &mut Look<'_, R>, path: &str) -> Result<Walked, StoreError> {
    let root = match resolve(look, InodeId::ROOT, path.as_bytes())? {
        Ok(Target::Directory(root)) => root,
        Ok(Target::File { .. }) => {
            return Ok(Walked::Problems(format!("{path} is a file, not a directory")));
        }
        Err(_) => return Ok(Walked::Absent),
    };
    let mut walk = Walk { look, root, files: Vec::new(), problems: Vec::new(), more: 0 };
    let ancestors = vec![root];
    let mut queue = vec![Directory { inode: root, path: Vec::new(), ancestors, links: 0 }];
    let mut directories = 0;
    while let Some(directory) = queue.pop() {
        directories += 1;
        if walk.files.len().max(directories) > limits::LIVE_FILES_MAX {
            let most = limits::LIVE_FILES_MAX;
            let text = format!("{path} has more than {most} files or directories");
            return Ok(Walked::Problems(text));
        }
        walk.directory(&directory, &mut queue)?;
    }
    Ok(walk.finish(path))
}

/// A directory to look into.
struct Directory {
    inode: InodeId,
    /// Within the site, without a final slash; empty for the root.
    path: Vec<u8>,
    /// Itself and the directories above, to notice links that go in circles.
    ancestors: Vec<InodeId>,
    /// How many of those were reached through a link.
    links: usize,
}

struct Walk<'w, 'l, R: Read> {
    look: &'w mut Look<'l, R>,
    root: InodeId,
    files: Vec<Entry>,
    problems: Vec<String>,
    more: usize,
}

impl<R: Read> Walk<'_, '_, R> {
    fn problem(&mut self, path: &[u8], reason: &str) {
        if self.problems.len() < PROBLEMS_KEPT {
            self.problems.push(format!("{:?}: {reason}", String::from_utf8_lossy(path)));
        } else {
            self.more += 1;
        }
    }

    fn directory(
        &mut self,
        directory: &Directory,
        queue: &mut Vec<Directory>,
    ) -> Result<(), StoreError> {
        // A change of the directory itself (its removal) must be noticed, too.
        self.look.inode(directory.inode)?;
        let names = self.look.names(directory.inode)?;
        for (name, dentry) in names.iter() {
            let name = name.as_bytes();
            let top = directory.path.is_empty();
            if NEVER_SERVED.contains(&name) {
                continue;
            }
            let path = if top { name.to_vec() } else { [&directory.path, name].join(&b'/') };
            self.entry(directory, path, *dentry, queue)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        above: &Directory,
        path: Vec<u8>,
        dentry: Dentry,
        queue: &mut Vec<Directory>,
    ) -> Result<(), StoreError> {
        let linked = dentry.kind == FileKind::Symlink;
        let target = match dentry.kind {
            FileKind::Directory => Target::Directory(dentry.inode),
            FileKind::File => Target::File { inode: dentry.inode, holder: above.inode },
            FileKind::Symlink => match self.follow(above.inode, dentry.inode)? {
                Ok(target) => target,
                Err(reason) => {
                    self.problem(&path, reason);
                    return Ok(());
                }
            },
            FileKind::Special(_) => {
                self.problem(&path, "a pipe, socket or device, which cannot be served");
                return Ok(());
            }
        };
        match target {
            Target::File { inode, .. } => self.file(path, inode),
            Target::Directory(inode) if above.ancestors.contains(&inode) => Ok(()),
            Target::Directory(inode) => {
                let links = above.links + usize::from(linked);
                if links > LINKS_MAX {
                    self.problem(&path, "too many links within links");
                    return Ok(());
                }
                let mut ancestors = above.ancestors.clone();
                ancestors.push(inode);
                queue.push(Directory { inode, path, ancestors, links });
                Ok(())
            }
        }
    }

    /// Where a symbolic link leads, if that is within the tree.
    fn follow(
        &mut self,
        holder: InodeId,
        link: InodeId,
    ) -> Result<Result<Target, &'static str>, StoreError> {
        let Some(inode) = self.look.inode(link)? else { return Ok(Err(NOWHERE)) };
        let Body::Symlink(to) = &inode.body else { return Ok(Err(NOWHERE)) };
        let target = match resolve(self.look, holder, to.as_bytes())? {
            Ok(target) => target,
            Err(reason) => return Ok(Err(reason)),
        };
        let mut at = match target {
            Target::Directory(inode) => inode,
            Target::File { holder, .. } => holder,
        };
        while at != self.root {
            match self.look.inode(at)?.as_deref().map(|inode| &inode.body) {
                Some(Body::Directory { parent }) if *parent != at => at = *parent,
                _ => return Ok(Err("symbolic link that leaves the tree")),
            }
        }
        Ok(Ok(target))
    }

    fn file(&mut self, path: Vec<u8>, inode: InodeId) -> Result<(), StoreError> {
        if let Err(error) = check_site_path(&path) {
            self.problem(&path, &error.to_string());
            return Ok(());
        }
        let Some(found) = self.look.inode(inode)? else { return Ok(()) };
        if let Body::File(content) = &found.body {
            self.files.push(Entry {
                content_type: content_type::of(&path),
                path: ByteName(path),
                mode: found.mode & 0o7777,
                mtime_ns: found.mtime_ns,
                content: content.clone(),
                header_rule: None,
                variants: Vec::new(),
                base: None,
            });
        }
        Ok(())
    }

    fn finish(mut self, path: &str) -> Walked {
        if self.problems.is_empty() {
            return Walked::Files(self.files);
        }
        self.problems.sort();
        if self.more > 0 {
            self.problems.push(format!("and {} more", self.more));
        }
        Walked::Problems(format!("{path} has what cannot be served: {}", self.problems.join("; ")))
    }
}

const NOWHERE: &str = "symbolic link that leads nowhere";

/// What a path leads to.
enum Target {
    Directory(InodeId),
    File {
        inode: InodeId,
        /// The directory it is in, once all links are followed.
        holder: InodeId,
    },
}

/// Follows a path from a directory to its end, through symbolic links.
fn resolve<R: Read>(
    look: &mut Look<'_, R>,
    from: InodeId,
    path: &[u8],
) -> Result<Result<Target, &'static str>, StoreError> {
    let parts = |path: &[u8]| -> Vec<Vec<u8>> {
        path.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec).collect()
    };
    let start = |at: InodeId, path: &[u8]| {
        if path.first() == Some(&b'/') { InodeId::ROOT } else { at }
    };
    let mut at = start(from, path);
    // Names still to go, last first.
    let mut left = parts(path);
    let mut links = 0;
    while let Some(name) = left.pop() {
        if matches!(name.as_slice(), b"" | b".") {
            continue;
        }
        if name == b".." {
            match look.inode(at)?.as_deref().map(|inode| &inode.body) {
                Some(Body::Directory { parent }) => at = *parent,
                _ => return Ok(Err(NOWHERE)),
            }
            continue;
        }
        let Some(found) = look.entry(at, &name)? else { return Ok(Err(NOWHERE)) };
        match found.kind {
            FileKind::Directory => at = found.inode,
            FileKind::File if left.is_empty() => {
                return Ok(Ok(Target::File { inode: found.inode, holder: at }));
            }
            FileKind::File | FileKind::Special(_) => return Ok(Err(NOWHERE)),
            FileKind::Symlink => {
                links += 1;
                if links > LINKS_MAX {
                    return Ok(Err("symbolic links that go in circles"));
                }
                let inode = look.inode(found.inode)?;
                let Some(Body::Symlink(to)) = inode.as_deref().map(|inode| &inode.body) else {
                    return Ok(Err(NOWHERE));
                };
                at = start(at, to.as_bytes());
                left.extend(parts(to.as_bytes()));
            }
        }
    }
    Ok(Ok(Target::Directory(at)))
}
