//! The file system, without kernel types.
//!
//! The kernel adapter calls one method of [`FileSystem`] per request; the tests call the same
//! methods without a mount. The names are the master's, asked at every request that needs them;
//! the bytes of open files are here ([`file`](self)): reads go through a small cache of chunks,
//! writes gather in memory, whole chunks leave at once, and `flush` and `fsync` commit.
//!
//! Consistency is close-to-open: `open` asks the master, `close` returns only when the cluster
//! has the changes, or returns why not. Two mounts that change the same file at the same time
//! overwrite each other, the last `close` wins. But for `O_APPEND`: what only appends is appended to
//! what the file has become, whoever else appended meanwhile. Each `write` is one piece of the file,
//! in the order of the commits, and nothing of it is lost. (The kernel cuts writes of more than
//! about 1 MiB into several; others may come between those.)
//!
//! A reader keeps the content it opened, and as long as it is the latest one opened on this
//! mount, stat shows its length. One reservation: the kernel has one length per inode. When
//! somebody on the same mount opens a newer content that another mount has made shorter, a reader
//! from before sees its old content up to the new length only. Replacing files by rename, as most
//! programs do, has no such effect.

mod append;
mod attr;
mod budget;
mod chunks;
mod commit;
mod dir;
mod error;
#[cfg(test)]
pub(crate) mod fake;
mod file;
mod inodes;
mod names;
mod open;
mod read;
mod segments;
mod sites;
mod snapshot;
mod stale;
mod store;
#[cfg(test)]
mod tests;
mod write;
mod xattrs;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atoll_proto::InodeId;
use atoll_proto::namespace::Attr;
use tokio::sync::Semaphore;

pub use attr::{SetAttrs, Space};
pub use dir::DirItem;
pub use error::FsError;
pub use names::NewMode;
pub use open::{OpenHow, OpenedFile};
pub use stale::Stale;
pub use store::{ClusterStore, Store};
pub use write::WriteHow;

use budget::Budget;
use chunks::Chunks;
use dir::Dir;
use file::File;
use inodes::Inodes;
use sites::Sites;
use snapshot::Snapshot;

/// How long the kernel may use attributes and names without asking again. A name that is not
/// there is not cached at all.
pub const TTL: Duration = Duration::from_secs(1);
/// The longest file: a hole of this length still has a short list of extents.
pub const FILE_BYTES_MAX: u64 = 1 << 46;
/// Least memory for unsent data and for the cache, each, in chunks.
const CHUNKS_MIN: u64 = 8;
/// Prefetches under way at a time.
const PREFETCH_MAX: usize = 16;

/// How a file system behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory that is shown as the root.
    pub root: InodeId,
    /// Chunk size of new data in bytes.
    pub chunk_bytes: u32,
    /// Most bytes of unsent data; writers wait when there are more.
    pub dirty_bytes: u64,
    /// Most bytes of cached chunks.
    pub cache_bytes: u64,
    /// Show deploys under `/.sites`. Only sensible at the root of the namespace.
    pub sites: bool,
    /// Longest wait of a writer while the cluster takes no data at all.
    pub stall: Duration,
}

/// A mounted namespace.
#[derive(Debug)]
pub struct FileSystem<S> {
    store: S,
    options: Options,
    budget: Arc<Budget>,
    chunks: Chunks,
    sites: Sites,
    inodes: Mutex<Inodes>,
    files: Mutex<HashMap<InodeId, Arc<File>>>,
    handles: Mutex<HashMap<u64, Handle>>,
    next_handle: AtomicU64,
    prefetch: Arc<Semaphore>,
    stale: Arc<Stale>,
}

/// What an open handle refers to.
#[derive(Debug, Clone)]
enum Handle {
    /// A file of the namespace.
    File(Arc<OpenFile>),
    /// A file of a deploy.
    Deployed(Arc<Snapshot>),
    /// A directory.
    Dir(Arc<Dir>),
}

#[derive(Debug)]
struct OpenFile {
    file: Arc<File>,
    writable: bool,
    /// Where the latest read ended.
    read_end: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Drops the state of a file, unless another one of the same inode took its place.
fn drop_file(files: &mut HashMap<InodeId, Arc<File>>, file: &Arc<File>) {
    if files.get(&file.inode).is_some_and(|held| Arc::ptr_eq(held, file)) {
        files.remove(&file.inode);
    }
}

impl<S: Store> FileSystem<S> {
    /// A file system over a store. Does no I/O.
    pub fn new(store: S, options: Options) -> Arc<FileSystem<S>> {
        let least = CHUNKS_MIN * u64::from(options.chunk_bytes);
        Arc::new(FileSystem {
            store,
            budget: Budget::new(options.dirty_bytes.max(least)),
            chunks: Chunks::new(options.cache_bytes.max(least)),
            sites: Sites::default(),
            inodes: Mutex::default(),
            files: Mutex::default(),
            handles: Mutex::default(),
            next_handle: AtomicU64::new(1),
            prefetch: Arc::new(Semaphore::new(PREFETCH_MAX)),
            stale: Arc::default(),
            options,
        })
    }

    /// The directory shown as the root.
    pub fn root(&self) -> InodeId {
        self.options.root
    }

    /// Bytes of unsent data in memory.
    pub fn unsent_bytes(&self) -> u64 {
        self.budget.used()
    }

    /// The files whose pages the kernel must drop.
    pub fn stale(&self) -> Arc<Stale> {
        self.stale.clone()
    }

    /// The kernel gives back so many lookups of an inode.
    pub fn forget(&self, inode: InodeId, lookups: u64) {
        if sites::is_virtual(inode) {
            self.sites.forget(inode, lookups);
        } else {
            lock(&self.inodes).forget(inode, lookups);
        }
    }

    fn chunk_bytes(&self) -> u64 {
        u64::from(self.options.chunk_bytes)
    }

    fn open_file(&self, inode: InodeId) -> Option<Arc<File>> {
        lock(&self.files).get(&inode).cloned()
    }

    fn handle(&self, handle: u64) -> Result<Handle, FsError> {
        lock(&self.handles).get(&handle).cloned().ok_or(FsError::BadHandle)
    }

    fn add_handle(&self, handle: Handle) -> u64 {
        let number = self.new_handle_number();
        lock(&self.handles).insert(number, handle);
        number
    }

    fn new_handle_number(&self) -> u64 {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }

    /// Notes attributes that go to the kernel as a directory entry.
    fn give_entry(&self, parent: InodeId, name: &atoll_proto::ByteName, attr: &Attr) {
        lock(&self.inodes).looked_up(parent, name, attr);
    }
}
