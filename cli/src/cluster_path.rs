//! Paths in the cluster's file system, as typed on the command line, and what they name.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use atoll_client::{ClientError, Cluster};
use atoll_proto::name::check_entry_name;
use atoll_proto::namespace::{Attr, DirEntry, FileKind, NamespaceQuery, NamespaceReply};
use atoll_proto::{ByteName, Code, Content, InodeId, limits};

use crate::report::Failure;
use crate::text;

/// Links followed before a path is taken to be a loop, as Linux does.
const LINKS_MAX: usize = 40;

/// An absolute path without `.`, `..`, empty parts or a final slash. The root has no parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClusterPath {
    parts: Vec<Vec<u8>>,
    /// Whether it was written with a final slash: it must be a directory.
    pub(crate) slash: bool,
}

impl ClusterPath {
    /// Reads what was typed.
    pub(crate) fn parse(typed: &OsStr) -> Result<Self, String> {
        let bytes = typed.as_bytes();
        let shown = text::name(bytes);
        if bytes.first() != Some(&b'/') {
            return Err(format!("{shown:?} is no path in the cluster: it must start with '/'"));
        }
        let mut parts = Vec::new();
        for part in bytes.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return Err(format!("{shown:?}: '..' is not allowed in cluster paths")),
                part => {
                    check_entry_name(part).map_err(|error| error.to_string())?;
                    parts.push(part.to_vec());
                }
            }
        }
        Ok(Self { parts, slash: bytes.ends_with(b"/") })
    }

    /// Whether it is the root directory.
    pub(crate) fn is_root(&self) -> bool {
        self.parts.is_empty()
    }

    /// The absolute path as the cluster wants it.
    pub(crate) fn bytes(&self) -> ByteName {
        if self.parts.is_empty() {
            return ByteName(b"/".to_vec());
        }
        let mut out = Vec::new();
        for part in &self.parts {
            out.push(b'/');
            out.extend_from_slice(part);
        }
        ByteName(out)
    }

    /// The last part; `None` for the root.
    pub(crate) fn name(&self) -> Option<&[u8]> {
        self.parts.last().map(Vec::as_slice)
    }

    /// The directory it is in; the root is in itself.
    pub(crate) fn parent(&self) -> Self {
        let kept = self.parts.len().saturating_sub(1);
        Self { parts: self.parts[..kept].to_vec(), slash: false }
    }

    /// The path of an entry of this directory.
    pub(crate) fn join(&self, name: &[u8]) -> Self {
        let mut parts = self.parts.clone();
        parts.push(name.to_vec());
        Self { parts, slash: false }
    }

    /// The same, not saying that it must be a directory.
    pub(crate) fn without_slash(self) -> Self {
        Self { slash: false, ..self }
    }

    /// Whether `other` is this path or below it.
    pub(crate) fn contains(&self, other: &Self) -> bool {
        other.parts.starts_with(&self.parts)
    }

    /// What a symbolic link here with this target names.
    fn follow(&self, target: &[u8]) -> Result<Self, String> {
        let mut parts = if target.starts_with(b"/") { Vec::new() } else { self.parent().parts };
        for part in target.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => drop(parts.pop()),
                part => {
                    check_entry_name(part).map_err(|error| error.to_string())?;
                    parts.push(part.to_vec());
                }
            }
        }
        Ok(Self { parts, slash: false })
    }
}

impl std::fmt::Display for ClusterPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&text::name(self.bytes().as_bytes()))
    }
}

/// What a path names, not following a final symbolic link.
pub(crate) async fn resolve(cluster: &Cluster, path: &ClusterPath) -> Result<Attr, Failure> {
    let query = NamespaceQuery::Resolve { path: path.bytes() };
    match cluster.query(query).await.map_err(Failure::at(path))? {
        NamespaceReply::Attr { attr, .. } => {
            if path.slash && attr.kind == FileKind::File {
                return Err(Failure::Failed(format!("{path}: not a directory")));
            }
            Ok(attr)
        }
        _ => Err(unexpected(path)),
    }
}

/// The same, or `None` when there is nothing of that name.
pub(crate) async fn resolve_maybe(
    cluster: &Cluster,
    path: &ClusterPath,
) -> Result<Option<Attr>, Failure> {
    match resolve(cluster, path).await {
        Ok(attr) => Ok(Some(attr)),
        Err(failure) if failure.code() == Some(Code::NotFound) => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// What a path names, following symbolic links.
pub(crate) async fn resolve_following(
    cluster: &Cluster,
    path: &ClusterPath,
) -> Result<(ClusterPath, Attr), Failure> {
    let mut at = path.clone();
    for _ in 0..LINKS_MAX {
        let attr = resolve(cluster, &at).await?;
        if attr.kind != FileKind::Symlink {
            return Ok((at, attr));
        }
        let target = read_link(cluster, &at, attr.inode).await?;
        at = at.follow(&target).map_err(|error| Failure::Failed(format!("{at}: {error}")))?;
    }
    Err(Failure::Failed(format!("{path}: too many levels of symbolic links")))
}

/// The target of a symbolic link.
pub(crate) async fn read_link(
    cluster: &Cluster,
    path: &ClusterPath,
    inode: InodeId,
) -> Result<Vec<u8>, Failure> {
    match cluster.query(NamespaceQuery::ReadLink { inode }).await.map_err(Failure::at(path))? {
        NamespaceReply::Target(target) => Ok(target.to_vec()),
        _ => Err(unexpected(path)),
    }
}

/// Attributes and content of a file.
pub(crate) async fn open(
    cluster: &Cluster,
    path: &ClusterPath,
    inode: InodeId,
) -> Result<(Attr, Content), Failure> {
    match cluster.query(NamespaceQuery::Open { inode }).await.map_err(Failure::at(path))? {
        NamespaceReply::File { attr, content } => Ok((attr, content)),
        _ => Err(unexpected(path)),
    }
}

/// All entries of a directory, in name order.
pub(crate) async fn read_dir(
    cluster: &Cluster,
    path: &ClusterPath,
    inode: InodeId,
) -> Result<Vec<DirEntry>, Failure> {
    let limit = u32::try_from(limits::READDIR_ENTRIES_MAX).unwrap_or(u32::MAX);
    let mut all: Vec<DirEntry> = Vec::new();
    loop {
        let after = all.last().map(|entry| entry.name.clone());
        let query = NamespaceQuery::ReadDir { inode, after, limit };
        match cluster.query(query).await.map_err(Failure::at(path))? {
            NamespaceReply::Entries { entries, end, .. } => {
                let stuck = entries.is_empty();
                all.extend(entries);
                if end || stuck {
                    return Ok(all);
                }
            }
            _ => return Err(unexpected(path)),
        }
    }
}

/// Whether a path names a directory (or a link to one).
pub(crate) async fn is_directory(cluster: &Cluster, path: &ClusterPath) -> Result<bool, Failure> {
    match resolve_following(cluster, path).await {
        Ok((_, attr)) => Ok(attr.kind == FileKind::Directory),
        Err(failure) if failure.code() == Some(Code::NotFound) => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// An answer of the wrong kind.
pub(crate) fn unexpected(what: impl std::fmt::Display) -> Failure {
    Failure::Client(ClientError::Malformed {
        what: format!("{what}: the master answered something else; versions may differ"),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn refused(text: &str) -> String {
        ClusterPath::parse(OsStr::new(text)).unwrap_err()
    }

    fn path(text: &str) -> ClusterPath {
        ClusterPath::parse(OsStr::new(text)).unwrap()
    }

    #[test]
    fn typed_paths_are_tidied() {
        assert_eq!(path("//a/./b").bytes(), "/a/b".into());
        assert!(path("/a/b/").slash);
        assert!(path("/").is_root());
        assert_eq!(path("/").bytes(), "/".into());
        assert_eq!(path("/a/b").parent(), path("/a"));
        assert_eq!(path("/a").join(b"c").bytes(), "/a/c".into());
        assert!(path("/a").contains(&path("/a/b")) && !path("/a").contains(&path("/ab")));
        let odd = ClusterPath::parse(OsStr::from_bytes(b"/\xff\n")).unwrap();
        assert_eq!(odd.bytes().as_bytes(), b"/\xff\n");
        assert_eq!(odd.to_string(), "/\\xff\\x0a");
    }

    #[test]
    fn what_cannot_be_a_path_is_refused_with_the_reason() {
        assert!(refused("a/b").contains("start with '/'"));
        assert!(refused("/a/../b").contains(".."));
        assert!(refused(&format!("/{}", "x".repeat(256))).contains("255"));
    }

    #[test]
    fn links_are_followed_from_where_they_are() {
        assert_eq!(path("/a/b/l").follow(b"../c").unwrap().bytes(), "/a/c".into());
        assert_eq!(path("/a/l").follow(b"/x/y").unwrap().bytes(), "/x/y".into());
        assert_eq!(path("/l").follow(b"../../z").unwrap().bytes(), "/z".into());
    }
}
