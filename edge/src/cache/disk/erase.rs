//! Erasing: the bytes of chunks that were taken down, overwritten wherever a block file has them,
//! also where they were dropped long ago.
//!
//! What is known of places in memory says where that is ([`super::dead`]). The caller sees to it that
//! none of the chunks is put meanwhile.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use atoll_proto::ChunkId;

use super::{Block, DiskTier, Place, RECORD_BYTES, STATE_OFFSET};

/// Bytes overwritten at a time.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

impl DiskTier {
    /// Erases chunks from the disk, synced. Blocking. Returns at how many places they were.
    ///
    /// # Errors
    /// When a file can neither be overwritten nor removed; the next call tries that again.
    pub fn erase(&self, ids: &HashSet<ChunkId>) -> io::Result<u64> {
        ids.iter().filter(|id| self.contains(id)).for_each(|id| self.drop_chunk(id));
        let mut places: Vec<Place> = Vec::new();
        {
            let dead = self.shared.dead();
            ids.iter().for_each(|id| places.extend_from_slice(dead.of(id)));
        }
        let mut blocks: BTreeMap<u64, Arc<Block>> = BTreeMap::new();
        let mut failed: BTreeMap<u64, io::Error> = BTreeMap::new();
        for place in &places {
            blocks.insert(place.block.number, place.block.clone());
            if let Err(error) = overwrite(place) {
                failed.insert(place.block.number, error);
            }
        }
        for (number, block) in &blocks {
            let synced = match failed.remove(number) {
                None => block.file.sync_all(),
                Some(error) => Err(error),
            };
            if let Err(error) = synced {
                tracing::warn!(%error, path = %block.path.display(),
                    "a chunk that was taken down cannot be overwritten; its whole file goes");
                self.shared.give_up(block);
            }
        }
        self.remove_stuck()?;
        ids.iter().for_each(|id| self.shared.dead().clean(id));
        if !blocks.is_empty() {
            fs::File::open(&self.dir)?.sync_all()?;
        }
        Ok(places.len() as u64)
    }

    /// Removes the files that should be gone already.
    fn remove_stuck(&self) -> io::Result<()> {
        let stuck = self.shared.dead().take_stuck();
        let mut outcome = Ok(());
        for path in stuck {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    self.shared.dead().stuck(&path);
                    outcome = Err(error);
                }
                _ => {}
            }
        }
        outcome
    }
}

/// Overwrites the bytes of a chunk; its record is one of a dropped chunk, also after a crash.
fn overwrite(place: &Place) -> io::Result<()> {
    let file = &place.block.file;
    file.write_all_at(&[0], place.offset + STATE_OFFSET)?;
    let (mut at, end) =
        (place.offset + RECORD_BYTES, place.offset + RECORD_BYTES + u64::from(place.len));
    while at < end {
        let some = usize::try_from(end - at).unwrap_or(ZEROS.len()).min(ZEROS.len());
        file.write_all_at(&ZEROS[..some], at)?;
        at += some as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::path::Path;

    use bytes::Bytes;

    use super::*;

    fn holds(dir: &Path, bytes: &[u8]) -> bool {
        fs::read_dir(dir).unwrap().any(|entry| {
            let file = fs::read(entry.unwrap().path()).unwrap();
            file.windows(bytes.len()).any(|window| window == bytes)
        })
    }

    #[test]
    fn what_is_erased_is_in_no_file_also_when_it_was_dropped_before() {
        let dir = tempfile::tempdir().unwrap();
        let chunk = |seed: u8| {
            let bytes = Bytes::from(vec![seed; 100_000]);
            (ChunkId::of(&bytes), bytes)
        };
        let (dropped, kept, there) = (chunk(1), chunk(2), chunk(3));
        let tier = DiskTier::open(dir.path(), 64 << 20).unwrap();
        for (id, bytes) in [&dropped, &kept, &there] {
            tier.put(*id, bytes.clone());
        }
        tier.flush();
        tier.drop_chunk(&dropped.0);
        assert!(holds(dir.path(), &dropped.1[..64]) && holds(dir.path(), &there.1[..64]));
        let ids = HashSet::from([dropped.0, there.0]);
        assert_eq!(tier.erase(&ids).unwrap(), 2);
        assert!(!tier.contains(&there.0) && tier.read(&kept.0).unwrap() == kept.1);
        assert!(!holds(dir.path(), &dropped.1[..64]) && !holds(dir.path(), &there.1[..64]));
        drop(tier);
        let tier = DiskTier::open(dir.path(), 64 << 20).unwrap();
        assert_eq!(tier.len(), 1);
        assert_eq!(tier.read(&kept.0).unwrap(), kept.1);
    }

    fn pattern(seed: u8, len: usize) -> (ChunkId, Bytes) {
        let bytes = Bytes::from(vec![seed; len]);
        (ChunkId::of(&bytes), bytes)
    }

    #[test]
    fn what_was_dropped_or_is_there_twice_is_found_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (dropped, twice) = (pattern(1, 5000), pattern(2, 5000));
        {
            let tier = DiskTier::open(dir.path(), 64 << 20).unwrap();
            tier.put(dropped.0, dropped.1.clone());
            tier.put(twice.0, twice.1.clone());
            tier.flush();
            tier.drop_chunk(&dropped.0);
        }
        // The mark of a drop was lost with the power: the same chunk follows once more.
        let path = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let record = bytes[16 + 48 + 5000..].to_vec();
        assert_eq!(record.len(), 48 + 5000);
        bytes.extend_from_slice(&record);
        fs::write(&path, bytes).unwrap();
        let tier = DiskTier::open(dir.path(), 64 << 20).unwrap();
        assert_eq!(tier.read(&twice.0).unwrap(), twice.1);
        let ids = HashSet::from([dropped.0, twice.0]);
        assert_eq!(tier.erase(&ids).unwrap(), 3);
        assert!(!holds(dir.path(), &dropped.1[..64]) && !holds(dir.path(), &twice.1[..64]));
        assert_eq!(tier.erase(&ids).unwrap(), 0);
        // What is put afterwards is as good as ever.
        tier.put(twice.0, twice.1.clone());
        tier.flush();
        assert_eq!(tier.read(&twice.0).unwrap(), twice.1);
    }

    #[test]
    fn a_file_that_could_not_be_removed_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let tier = DiskTier::open(&dir.path().join("tier"), 64 << 20).unwrap();
        let stuck = dir.path().join("stuck");
        // A directory that is not empty cannot be removed as a file.
        fs::create_dir_all(stuck.join("in")).unwrap();
        tier.shared.dead().stuck(&stuck);
        assert!(tier.erase(&HashSet::new()).is_err());
        fs::remove_dir_all(&stuck).unwrap();
        fs::write(&stuck, "bytes").unwrap();
        tier.erase(&HashSet::new()).unwrap();
        assert!(!stuck.exists());
    }
}
