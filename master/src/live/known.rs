//! What was read of the namespace for one live site, kept until a log entry changes it.
//!
//! A look reads through it, so that sealing again reads from the database what changed and
//! nothing else. Everything a look depended on is remembered by inode: a change of any other inode
//! cannot change what the look found.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use atoll_proto::{ByteName, InodeId};

use super::marks::Marks;
use crate::store::dentries::{self, Dentry};
use crate::store::inodes::{self, Inode};
use crate::store::{Read, StoreError};

/// Names read from the database at a time.
const NAMES_AT_ONCE: usize = 4096;

/// The names in a directory.
pub(super) type Names = Arc<Vec<(ByteName, Dentry)>>;

/// What is known of the inodes of one site.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// As of this log index.
    upto: u64,
    /// What the last look depended on.
    seen: HashSet<InodeId>,
    inodes: HashMap<InodeId, Option<Arc<Inode>>>,
    names: HashMap<InodeId, Names>,
}

impl Known {
    /// Forgets what changed up to this log index, before a look at the state as of it.
    pub(super) fn refresh(&mut self, marks: &Marks, index: u64) {
        match marks.between(self.upto, index) {
            Some(changed) => {
                for inode in changed {
                    self.inodes.remove(&inode);
                    self.names.remove(&inode);
                }
            }
            None => self.trim(),
        }
        self.upto = index;
    }

    /// Whether the last look would find something else after a change of these.
    pub(super) fn depends_on(&self, changed: &[InodeId]) -> bool {
        changed.iter().any(|inode| self.seen.contains(inode))
    }

    /// Forgets what was read, but not on what it depended.
    pub(super) fn trim(&mut self) {
        self.inodes = HashMap::new();
        self.names = HashMap::new();
    }

    /// How many inodes are kept.
    pub(super) fn len(&self) -> usize {
        self.inodes.len()
    }
}

/// One look at the state through what is known.
pub(super) struct Look<'a, R: Read> {
    read: &'a R,
    known: &'a mut Known,
    seen: HashSet<InodeId>,
    /// Inodes read from the database.
    pub(super) reads: u64,
}

impl<'a, R: Read> Look<'a, R> {
    /// Begins a look; [`Known::refresh`] was called for the state's index.
    pub(super) fn new(read: &'a R, known: &'a mut Known) -> Self {
        Self { read, known, seen: HashSet::new(), reads: 0 }
    }

    /// An inode.
    pub(super) fn inode(&mut self, id: InodeId) -> Result<Option<Arc<Inode>>, StoreError> {
        self.seen.insert(id);
        if let Some(found) = self.known.inodes.get(&id) {
            return Ok(found.clone());
        }
        self.reads += 1;
        let found = inodes::get(self.read, id)?.map(Arc::new);
        self.known.inodes.insert(id, found.clone());
        Ok(found)
    }

    /// What a name in a directory stands for.
    pub(super) fn entry(
        &mut self,
        directory: InodeId,
        name: &[u8],
    ) -> Result<Option<Dentry>, StoreError> {
        self.seen.insert(directory);
        if let Some(names) = self.known.names.get(&directory) {
            let at = names.binary_search_by(|(other, _)| other.as_bytes().cmp(name));
            return Ok(at.ok().map(|at| names[at].1));
        }
        dentries::get(self.read, directory, name)
    }

    /// All names in a directory, in order.
    pub(super) fn names(&mut self, directory: InodeId) -> Result<Names, StoreError> {
        self.seen.insert(directory);
        if let Some(names) = self.known.names.get(&directory) {
            return Ok(names.clone());
        }
        let mut names = Vec::new();
        loop {
            let after = names.last().map(|(name, _): &(ByteName, Dentry)| name.clone());
            let (part, end) = dentries::list(self.read, directory, after.as_ref(), NAMES_AT_ONCE)?;
            names.extend(part);
            if end {
                break;
            }
        }
        let names = Arc::new(names);
        self.known.names.insert(directory, names.clone());
        Ok(names)
    }

    /// Ends the look: what it did not need is forgotten.
    pub(super) fn finish(self) {
        let Self { known, seen, .. } = self;
        known.inodes.retain(|inode, _| seen.contains(inode));
        known.names.retain(|inode, _| seen.contains(inode));
        known.seen = seen;
    }
}
