//! Erasing: the bytes of chunks that were taken down, overwritten wherever a block file has them,
//! also where they were dropped long ago.
//!
//! Reads the headers of all records, as opening the tier does. The caller sees to it that none of
//! the chunks is put meanwhile.

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::PoisonError;

use atoll_proto::ChunkId;

use super::{DiskTier, FILE_MAGIC, RECORD_BYTES, STATE_OFFSET, read_record};

/// Bytes overwritten at a time.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

impl DiskTier {
    /// Erases chunks from the disk, synced. Blocking. Returns how many records there were.
    ///
    /// # Errors
    /// When a file can neither be overwritten nor removed.
    pub fn erase(&self, ids: &HashSet<ChunkId>) -> io::Result<u64> {
        ids.iter().for_each(|id| self.drop_chunk(id));
        let mut erased = 0;
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            match erase_in(&path, ids) {
                Ok(records) => erased += records,
                // It was the oldest and had to go.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(),
                        "a chunk that was taken down cannot be overwritten; its whole file goes");
                    self.remove_file(&path)?;
                }
            }
        }
        fs::File::open(&self.dir)?.sync_all()?;
        Ok(erased)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut index = self.shared.index.write().unwrap_or_else(PoisonError::into_inner);
        index.retain(|_, place| place.block.path != path);
        drop(index);
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Overwrites the chunks in one file, synced.
fn erase_in(path: &Path, ids: &HashSet<ChunkId>) -> io::Result<u64> {
    if path.extension().is_none_or(|extension| extension != "atoll") {
        return Ok(0);
    }
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let size = file.metadata()?.len();
    let (mut offset, mut erased) = (FILE_MAGIC.len() as u64, 0);
    let mut header = [0; RECORD_BYTES as usize];
    while offset + RECORD_BYTES <= size {
        file.read_exact_at(&mut header, offset)?;
        let Some((id, len, _)) = read_record(&header) else { break };
        let (begin, end) = (offset + RECORD_BYTES, offset + RECORD_BYTES + u64::from(len));
        if ids.contains(&id) {
            file.write_all_at(&[0], offset + STATE_OFFSET)?;
            let mut at = begin;
            while at < end.min(size) {
                let some = usize::try_from(end.min(size) - at).unwrap_or(ZEROS.len());
                let some = &ZEROS[..some.min(ZEROS.len())];
                file.write_all_at(some, at)?;
                at += some.len() as u64;
            }
            erased += 1;
        }
        offset = end;
    }
    if erased > 0 {
        file.sync_all()?;
    }
    Ok(erased)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
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
}
