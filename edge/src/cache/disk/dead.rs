//! Where the bytes are that nobody finds any more: chunks that were dropped, and files that could not
//! be removed.
//!
//! Kept in memory, so that an erasure need not read the headers of all files. Bounded: a file with
//! dropped chunks beyond the bound is given up as a whole, which a cache may do at any time.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use atoll_proto::ChunkId;

use super::Place;

/// Dropped chunks that are remembered: about 10 MiB of memory.
const PLACES_MAX: usize = 65_536;

/// What is on the disk and in no index.
#[derive(Debug, Default)]
pub(super) struct Dead {
    places: HashMap<ChunkId, Vec<Place>>,
    count: usize,
    files: Vec<PathBuf>,
}

impl Dead {
    /// Remembers where a dropped chunk is; `false` when there is no room for it.
    pub(super) fn bury(&mut self, id: ChunkId, place: Place) -> bool {
        if self.count >= PLACES_MAX {
            return false;
        }
        self.count += 1;
        self.places.entry(id).or_default().push(place);
        true
    }

    /// A file is gone, or about to go.
    pub(super) fn forget(&mut self, block: u64) {
        self.places.retain(|_, places| {
            places.retain(|place| place.block.number != block);
            !places.is_empty()
        });
        self.count = self.places.values().map(Vec::len).sum();
    }

    /// Where a chunk is.
    pub(super) fn of(&self, id: &ChunkId) -> &[Place] {
        self.places.get(id).map_or(&[], Vec::as_slice)
    }

    /// Its bytes are overwritten everywhere.
    pub(super) fn clean(&mut self, id: &ChunkId) {
        if let Some(places) = self.places.remove(id) {
            self.count -= places.len();
        }
    }

    /// A file should have gone and is there still.
    pub(super) fn stuck(&mut self, path: &Path) {
        self.files.push(path.to_owned());
    }

    /// Those files, to be tried again.
    pub(super) fn take_stuck(&mut self) -> Vec<PathBuf> {
        std::mem::take(&mut self.files)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::Arc;

    use super::super::Block;
    use super::*;

    #[test]
    fn places_are_bounded_and_go_with_their_file() {
        let dir = tempfile::tempdir().unwrap();
        let block = |number: u64| {
            let path = dir.path().join(number.to_string());
            let file = std::fs::File::create(&path).unwrap();
            Arc::new(Block { number, path, file })
        };
        let (one, two) = (block(1), block(2));
        let place = |block: &Arc<Block>| Place { block: block.clone(), offset: 16, len: 1 };
        let id = |n: usize| ChunkId::of(&n.to_be_bytes());
        let mut dead = Dead::default();
        assert!(dead.bury(id(0), place(&one)) && dead.bury(id(0), place(&two)));
        for n in 2..PLACES_MAX {
            assert!(dead.bury(id(n), place(&one)));
        }
        assert!(!dead.bury(id(1), place(&two)));
        assert_eq!(dead.of(&id(0)).len(), 2);
        dead.forget(1);
        assert_eq!((dead.of(&id(0)).len(), dead.count), (1, 1));
        dead.clean(&id(0));
        assert_eq!((dead.of(&id(0)).len(), dead.count), (0, 0));
    }
}
