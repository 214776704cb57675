//! One step of a lookup: where a page leads for a path. Readers of the cluster, edges and checkers
//! of proofs all take the same steps, so that they cannot disagree about what a deploy holds.

use super::{Entry, Page};
use crate::ChunkId;

/// Where a page leads for a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// The page that decides is this one, or below it.
    Page(ChunkId),
    /// The path is this file.
    Found(&'a Entry),
    /// There is no such path.
    Absent,
}

impl Page {
    /// Where this page leads for `path`.
    pub fn step(&self, path: &[u8]) -> Step<'_> {
        match self {
            Self::RootV1(root) => root.top.as_ref().map_or(Step::Absent, |top| Step::Page(top.id)),
            Self::IndexV1(children) => {
                let at = children.partition_point(|child| child.last.as_bytes() < path);
                children.get(at).map_or(Step::Absent, |child| Step::Page(child.id))
            }
            Self::LeafV1(entries) => {
                let found = entries.binary_search_by(|entry| entry.path.as_bytes().cmp(path));
                found.map_or(Step::Absent, |at| Step::Found(&entries[at]))
            }
        }
    }

    /// Whether this is the root of a manifest.
    pub fn is_root(&self) -> bool {
        matches!(self, Self::RootV1(_))
    }
}
