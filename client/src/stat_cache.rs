//! What local files hashed to last time, so that a redeploy reads only what changed.
//!
//! An entry is trusted when size, modification time, change time and inode are as they were, and
//! the file was already two seconds old when it was hashed (an edit within the clock's grain
//! could otherwise go unseen, git's "racy" problem). The cache is a hint: losing it costs time.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use atoll_proto::ByteName;
use atoll_proto::content::Extent;
use serde::{Deserialize, Serialize};

/// What identifies the state of a local file without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    size: u64,
    mtime_ns: i128,
    ctime_ns: i128,
    inode: u64,
    device: u64,
}

impl Stamp {
    /// The stamp of a file.
    pub fn of(metadata: &std::fs::Metadata) -> Self {
        let ns = |secs: i64, nsec: i64| i128::from(secs) * 1_000_000_000 + i128::from(nsec);
        Self {
            size: metadata.len(),
            mtime_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            ctime_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
            device: metadata.dev(),
        }
    }

    /// Length of the file in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether the file was last changed well before this time.
    fn settled_before(&self, now_ns: i128) -> bool {
        self.mtime_ns.max(self.ctime_ns) + 2_000_000_000 < now_ns
    }
}

#[derive(Serialize, Deserialize)]
enum Stored {
    // Paths as bytes: they need not be UTF-8.
    V1 { chunk_bytes: u32, files: HashMap<ByteName, (Stamp, Vec<Extent>)> },
}

fn key(path: &Path) -> ByteName {
    path.as_os_str().as_bytes().into()
}

/// Hashes of local files by path and stamp.
#[derive(Debug, Default)]
pub struct StatCache {
    chunk_bytes: u32,
    files: HashMap<ByteName, (Stamp, Vec<Extent>)>,
}

impl StatCache {
    /// Reads a cache file; anything wrong with it gives an empty cache.
    pub fn load(path: Option<&Path>, chunk_bytes: u32) -> Self {
        let stored = path
            .and_then(|path| std::fs::read(path).ok())
            .and_then(|bytes| atoll_proto::decode::<Stored>(&bytes).ok());
        match stored {
            Some(Stored::V1 { chunk_bytes: same, files }) if same == chunk_bytes => {
                Self { chunk_bytes, files }
            }
            _ => Self { chunk_bytes, files: HashMap::new() },
        }
    }

    /// The extents of a file in this state, when known.
    pub fn find(&self, path: &Path, stamp: &Stamp) -> Option<&Vec<Extent>> {
        self.files.get(&key(path)).filter(|(known, _)| known == stamp).map(|(_, extents)| extents)
    }

    /// Replaces the cache file by what was hashed now. A failure costs only time later.
    pub fn save(
        path: &Path,
        chunk_bytes: u32,
        files: impl Iterator<Item = (PathBuf, Stamp, Vec<Extent>)>,
        now_ns: i128,
    ) {
        let files = files
            .filter(|(_, stamp, _)| stamp.settled_before(now_ns))
            .map(|(path, stamp, extents)| (key(&path), (stamp, extents)))
            .collect();
        let bytes = atoll_proto::encode(&Stored::V1 { chunk_bytes, files });
        let part = path.with_extension("part");
        let written = path
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::write(&part, bytes))
            .and_then(|()| std::fs::rename(&part, path));
        if let Err(error) = written {
            tracing::debug!(path = %path.display(), %error, "the stat cache was not saved");
        }
    }

    /// The chunk size the hashes are for, in bytes.
    pub fn chunk_bytes(&self) -> u32 {
        self.chunk_bytes
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn an_edit_or_a_young_file_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "abc").unwrap();
        let stamp = Stamp::of(&std::fs::metadata(&file).unwrap());
        let cache = dir.path().join("cache");
        let one = || std::iter::once((file.clone(), stamp, Vec::new()));
        StatCache::save(&cache, 8, one(), stamp.mtime_ns + 1_000_000_000);
        assert!(StatCache::load(Some(&cache), 8).find(&file, &stamp).is_none());
        StatCache::save(&cache, 8, one(), stamp.mtime_ns + 3_000_000_000);
        assert!(StatCache::load(Some(&cache), 8).find(&file, &stamp).is_some());
        assert!(StatCache::load(Some(&cache), 9).find(&file, &stamp).is_none());
        let other = Stamp { size: 4, ..stamp };
        assert!(StatCache::load(Some(&cache), 8).find(&file, &other).is_none());
        let odd = PathBuf::from(std::ffi::OsStr::from_bytes(b"/not-utf8-\xff"));
        let item = std::iter::once((odd.clone(), stamp, Vec::new()));
        StatCache::save(&cache, 8, item, stamp.mtime_ns + 3_000_000_000);
        assert!(StatCache::load(Some(&cache), 8).find(&odd, &stamp).is_some());
        std::fs::write(&cache, "garbage").unwrap();
        assert!(StatCache::load(Some(&cache), 8).find(&file, &stamp).is_none());
    }
}
