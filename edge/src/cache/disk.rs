//! The disk tier: chunks appended to block files, found through an index in memory.
//!
//! [`super::Cache`] reads it off the runtime and hands it what is worth keeping; one thread
//! writes. The oldest file goes as a whole when the tier is full, so nothing is ever moved or
//! compacted. Nothing is synced: what a crash tears is found by its hash and dropped, because
//! every chunk can be fetched again. Every read is verified.
//!
//! ```text
//! file     "ATOLLBLK"  8 bytes · version 4 bytes (1) · zeros 4 bytes · records
//! record   magic  4 bytes  "CHNK"
//!          state  1 byte   1 live, 0 dropped; the only byte that ever changes, unless it is erased
//!          zeros  3 bytes
//!          length 4 bytes  big-endian
//!          check  4 bytes  first bytes of BLAKE3 of length and id
//!          id    32 bytes
//!          bytes
//! ```

mod dead;
mod erase;

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;

use atoll_proto::{ChunkId, limits};
use bytes::Bytes;

use dead::Dead;

const FILE_MAGIC: &[u8; 16] = b"ATOLLBLK\x00\x00\x00\x01\x00\x00\x00\x00";
const RECORD_MAGIC: &[u8; 4] = b"CHNK";
const RECORD_BYTES: u64 = 48;
const STATE_OFFSET: u64 = 4;
/// Largest block file, and the part of the capacity that one file may have.
const FILE_BYTES_MAX: u64 = 256 << 20;
const FILE_SHARE: u64 = 16;
/// Chunks and bytes that may wait for the writer; what comes on top is not kept.
const QUEUE_CHUNKS: usize = 256;
const QUEUE_BYTES: usize = 32 << 20;

/// The disk tier. Dropping it ends the writer after what is queued.
#[derive(Debug)]
pub struct DiskTier {
    dir: PathBuf,
    shared: Arc<Shared>,
    queue: Option<SyncSender<Job>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    index: RwLock<HashMap<ChunkId, Place>>,
    queued_bytes: AtomicUsize,
    /// Where dropped chunks are: their bytes stay until their file goes.
    dead: Mutex<Dead>,
    /// Files with marks of dropped chunks that may not be on the medium yet, by number.
    marked: Mutex<HashMap<u64, Arc<Block>>>,
}

#[derive(Debug, Clone)]
struct Place {
    block: Arc<Block>,
    /// Where the record starts.
    offset: u64,
    len: u32,
}

/// An open block file.
#[derive(Debug)]
struct Block {
    number: u64,
    path: PathBuf,
    file: File,
}

enum Job {
    Put(ChunkId, Bytes),
    /// Answered when everything queued before is written.
    Flush(SyncSender<()>),
}

impl DiskTier {
    /// Opens the tier in `dir`, which is made if need be, and reads the headers of its files.
    ///
    /// # Errors
    /// When the directory or a file in it cannot be used.
    pub fn open(dir: &Path, capacity: u64) -> io::Result<DiskTier> {
        fs::create_dir_all(dir)?;
        let shared = Arc::new(Shared {
            index: RwLock::new(HashMap::new()),
            queued_bytes: AtomicUsize::new(0),
            dead: Mutex::default(),
            marked: Mutex::new(HashMap::new()),
        });
        let mut writer = Writer {
            shared: shared.clone(),
            dir: dir.to_owned(),
            capacity,
            file_bytes: (capacity / FILE_SHARE).clamp(1 << 20, FILE_BYTES_MAX),
            blocks: VecDeque::new(),
            next_number: 1,
        };
        writer.load()?;
        let (queue, jobs) = sync_channel(QUEUE_CHUNKS);
        let thread = std::thread::Builder::new().name("disk-cache".into());
        let handle = thread.spawn(move || writer.run(&jobs))?;
        let (dir, writer) = (dir.to_owned(), Mutex::new(Some(handle)));
        Ok(DiskTier { dir, shared, queue: Some(queue), writer })
    }

    /// Whether the chunk is there.
    pub fn contains(&self, id: &ChunkId) -> bool {
        self.shared.place(id).is_some()
    }

    /// Reads a chunk, verified. Blocking. A damaged one is dropped and counts as absent.
    pub fn read(&self, id: &ChunkId) -> Option<Bytes> {
        let place = self.shared.place(id)?;
        let mut bytes = vec![0; place.len as usize];
        let read = place.block.file.read_exact_at(&mut bytes, place.offset + RECORD_BYTES);
        if read.is_ok() && ChunkId::of(&bytes) == *id {
            return Some(Bytes::from(bytes));
        }
        metrics::counter!("atoll_edge_cache_corrupt_total").increment(1);
        tracing::warn!(chunk = %id.short(), path = %place.block.path.display(),
            "a cached chunk is damaged; it is dropped and fetched again");
        self.drop_chunk(id);
        None
    }

    /// Has a chunk written, if there is room in the queue. The caller has verified the bytes.
    pub fn put(&self, id: ChunkId, bytes: Bytes) {
        let Some(queue) = &self.queue else { return };
        let length = bytes.len();
        if length == 0 || self.contains(&id) {
            return;
        }
        let before = self.shared.queued_bytes.fetch_add(length, Ordering::Relaxed);
        if before + length > QUEUE_BYTES || queue.try_send(Job::Put(id, bytes)).is_err() {
            self.shared.queued_bytes.fetch_sub(length, Ordering::Relaxed);
            metrics::counter!("atoll_edge_cache_disk_skipped_total").increment(1);
        }
    }

    /// Drops a chunk for good: it does not come back after a restart. Blocking.
    pub fn drop_chunk(&self, id: &ChunkId) {
        let mut index = self.shared.index.write().unwrap_or_else(PoisonError::into_inner);
        let Some(place) = index.remove(id) else {
            return;
        };
        drop(index);
        if let Err(error) = place.block.file.write_all_at(&[0], place.offset + STATE_OFFSET) {
            tracing::warn!(%error, path = %place.block.path.display(),
                "a dropped chunk cannot be marked; its whole file is given up");
            self.shared.give_up(&place.block);
        } else {
            self.shared.bury(*id, &place);
        }
        let mut marked = self.shared.marked.lock().unwrap_or_else(PoisonError::into_inner);
        marked.insert(place.block.number, place.block);
    }

    /// Waits until no chunk dropped so far would return after a power cut. Blocking.
    ///
    /// # Errors
    /// When the disk refuses; what was dropped is tried again by the next call.
    pub fn sync_drops(&self) -> io::Result<()> {
        let take = |marked: &Mutex<HashMap<u64, Arc<Block>>>| {
            std::mem::take(&mut *marked.lock().unwrap_or_else(PoisonError::into_inner))
        };
        let blocks = take(&self.shared.marked);
        for block in blocks.values() {
            if let Err(error) = block.file.sync_data() {
                self.shared.marked.lock().unwrap_or_else(PoisonError::into_inner).extend(blocks);
                return Err(error);
            }
        }
        Ok(())
    }

    /// The chunks that are there, in no order.
    pub fn ids(&self) -> Vec<ChunkId> {
        let index = self.shared.index.read().unwrap_or_else(PoisonError::into_inner);
        index.keys().copied().collect()
    }

    /// Waits until everything put so far is written. Blocking; for shutdown and tests.
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if let Some(queue) = &self.queue
            && queue.send(Job::Flush(done)).is_ok()
            && wait.recv().is_err()
        {
            tracing::debug!("the disk cache's writer ended before a flush");
        }
    }

    /// Number of chunks.
    pub fn len(&self) -> usize {
        self.shared.index.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for DiskTier {
    fn drop(&mut self) {
        self.queue = None;
        let handle = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(handle) = handle
            && handle.join().is_err()
        {
            tracing::error!("the disk cache's writer panicked");
        }
    }
}

impl Shared {
    /// Remembers where a dropped chunk is. When there are too many of them, the file goes.
    fn bury(&self, id: ChunkId, place: &Place) {
        if !self.dead().bury(id, place.clone()) {
            self.give_up(&place.block);
        }
    }

    /// Sees to it that nothing in a file is found again, neither now nor after a restart.
    fn give_up(&self, block: &Block) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        index.retain(|_, place| place.block.number != block.number);
        drop(index);
        self.remove(block);
    }

    /// Removes a file of which nothing is in the index.
    fn remove(&self, block: &Block) {
        self.dead().forget(block.number);
        match fs::remove_file(&block.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %block.path.display(), "cannot remove a block file");
                self.dead().stuck(&block.path);
            }
            _ => {}
        }
    }

    fn dead(&self) -> MutexGuard<'_, Dead> {
        self.dead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, id: &ChunkId) -> Option<Place> {
        self.index.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }
}

/// What the writing thread knows of a file.
struct Written {
    block: Arc<Block>,
    ids: Vec<ChunkId>,
    /// Where the next record goes.
    end: u64,
}

struct Writer {
    shared: Arc<Shared>,
    dir: PathBuf,
    capacity: u64,
    file_bytes: u64,
    /// Oldest first; the last is written to.
    blocks: VecDeque<Written>,
    next_number: u64,
}

impl Writer {
    fn run(mut self, jobs: &Receiver<Job>) {
        for job in jobs {
            match job {
                Job::Put(id, bytes) => {
                    self.shared.queued_bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
                    if let Err(error) = self.append(id, &bytes) {
                        metrics::counter!("atoll_edge_cache_disk_errors_total").increment(1);
                        tracing::debug!(%error, "a chunk cannot be written to the disk cache");
                        self.cut_torn();
                        // Most likely the disk is full: give back what is oldest.
                        if self.blocks.len() > 1 {
                            self.evict_oldest();
                        }
                    }
                }
                Job::Flush(done) => {
                    if done.send(()).is_err() {
                        tracing::debug!("nobody waits for a flush any more");
                    }
                }
            }
        }
    }

    fn append(&mut self, id: ChunkId, bytes: &Bytes) -> io::Result<()> {
        let Ok(len) = u32::try_from(bytes.len()) else {
            return Ok(());
        };
        let size = RECORD_BYTES + u64::from(len);
        if self.shared.place(&id).is_some() || size > self.file_bytes {
            return Ok(());
        }
        if self.blocks.back().is_none_or(|last| last.end + size > self.file_bytes) {
            self.begin_block()?;
        }
        while self.bytes() + size > self.capacity && self.blocks.len() > 1 {
            self.evict_oldest();
        }
        let Some(last) = self.blocks.back_mut() else {
            return Ok(());
        };
        let offset = last.end;
        // The bytes before the header: a torn record is then no record.
        last.block.file.write_all_at(bytes, offset + RECORD_BYTES)?;
        last.block.file.write_all_at(&record(&id, len), offset)?;
        last.end += size;
        last.ids.push(id);
        let place = Place { block: last.block.clone(), offset, len };
        self.shared.index.write().unwrap_or_else(PoisonError::into_inner).insert(id, place);
        metrics::counter!("atoll_edge_cache_disk_admitted_total").increment(1);
        metrics::gauge!("atoll_edge_cache_disk_bytes").set(self.bytes() as f64);
        Ok(())
    }

    /// Cuts off what a failed write may have left behind the last record.
    fn cut_torn(&mut self) {
        let Some(last) = self.blocks.back() else { return };
        if let Err(error) = last.block.file.set_len(last.end) {
            tracing::warn!(%error, path = %last.block.path.display(), "a block file is given up");
            let given_up = self.blocks.pop_back();
            given_up.iter().for_each(|written| self.shared.give_up(&written.block));
        }
    }

    fn begin_block(&mut self) -> io::Result<()> {
        let number = self.next_number;
        let path = self.dir.join(format!("blocks-{number:016}.atoll"));
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        file.write_all_at(FILE_MAGIC, 0)?;
        self.next_number += 1;
        let block = Arc::new(Block { number, path, file });
        self.blocks.push_back(Written { block, ids: Vec::new(), end: FILE_MAGIC.len() as u64 });
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.blocks.iter().map(|written| written.end).sum()
    }

    fn evict_oldest(&mut self) {
        let Some(oldest) = self.blocks.pop_front() else {
            return;
        };
        let mut index = self.shared.index.write().unwrap_or_else(PoisonError::into_inner);
        for id in &oldest.ids {
            if index.get(id).is_some_and(|place| place.block.number == oldest.block.number) {
                index.remove(id);
            }
        }
        drop(index);
        // Reads under way keep the file open until they are done.
        self.shared.remove(&oldest.block);
    }

    /// Reads the headers of all files, oldest first.
    fn load(&mut self) -> io::Result<()> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let number = name.strip_prefix("blocks-").and_then(|rest| rest.strip_suffix(".atoll"));
            if let Some(number) = number.and_then(|digits| digits.parse::<u64>().ok()) {
                found.push((number, path));
            }
        }
        found.sort();
        for (number, path) in found {
            self.next_number = number.saturating_add(1);
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            let block = Arc::new(Block { number, path, file });
            match self.load_block(&block)? {
                Some(written) => self.blocks.push_back(written),
                None => self.shared.remove(&block),
            }
        }
        while self.bytes() > self.capacity && self.blocks.len() > 1 {
            self.evict_oldest();
        }
        Ok(())
    }

    /// `None` when the file is not ours to read: it is made anew.
    fn load_block(&self, block: &Arc<Block>) -> io::Result<Option<Written>> {
        let size = block.file.metadata()?.len();
        let mut magic = [0; FILE_MAGIC.len()];
        if size < magic.len() as u64
            || block.file.read_exact_at(&mut magic, 0).is_err()
            || magic != *FILE_MAGIC
        {
            return Ok(None);
        }
        let mut index = self.shared.index.write().unwrap_or_else(PoisonError::into_inner);
        let mut written =
            Written { block: block.clone(), ids: Vec::new(), end: magic.len() as u64 };
        let mut header = [0; RECORD_BYTES as usize];
        let (mut known, mut dead) = (HashSet::new(), Vec::new());
        while written.end + RECORD_BYTES <= size {
            block.file.read_exact_at(&mut header, written.end)?;
            let Some((id, len, live)) = read_record(&header) else {
                break;
            };
            let next = written.end + RECORD_BYTES + u64::from(len);
            if next > size {
                break;
            }
            let place = Place { block: block.clone(), offset: written.end, len };
            if !live {
                dead.push((id, place));
            } else {
                // One that is there twice is found at its last place only.
                dead.extend(index.insert(id, place).map(|place| (id, place)));
                if known.insert(id) {
                    written.ids.push(id);
                }
            }
            written.end = next;
        }
        // What follows is torn; the next record is written over it.
        block.file.set_len(written.end)?;
        drop(index);
        // When the file has too many of these, it is made anew.
        let all = dead.into_iter().all(|(id, place)| self.shared.dead().bury(id, place));
        if !all {
            self.shared.give_up(block);
            return Ok(None);
        }
        Ok(Some(written))
    }
}

fn record(id: &ChunkId, len: u32) -> [u8; RECORD_BYTES as usize] {
    let mut header = [0; RECORD_BYTES as usize];
    header[..4].copy_from_slice(RECORD_MAGIC);
    header[4] = 1;
    header[8..12].copy_from_slice(&len.to_be_bytes());
    header[12..16].copy_from_slice(&check(id, len));
    header[16..].copy_from_slice(id.as_bytes());
    header
}

fn read_record(header: &[u8; RECORD_BYTES as usize]) -> Option<(ChunkId, u32, bool)> {
    let (magic, rest) = header.split_first_chunk::<4>()?;
    let (state, rest) = rest.split_first_chunk::<4>()?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (found, rest) = rest.split_first_chunk::<4>()?;
    let id = ChunkId(*rest.first_chunk::<32>()?);
    let len = u32::from_be_bytes(*len);
    let sound = magic == RECORD_MAGIC
        && *found == check(&id, len)
        && len <= limits::CHUNK_BYTES_MAX
        && state[0] <= 1;
    sound.then_some((id, len, state[0] == 1))
}

fn check(id: &ChunkId, len: u32) -> [u8; 4] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&len.to_be_bytes());
    hasher.update(id.as_bytes());
    let hash = hasher.finalize();
    let bytes = hash.as_bytes();
    [bytes[0], bytes[1], bytes[2], bytes[3]]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    fn chunk(seed: u32, len: usize) -> (ChunkId, Bytes) {
        let bytes: Vec<u8> = (0..len).map(|n| (n as u32 * 31 + seed) as u8).collect();
        (ChunkId::of(&bytes), Bytes::from(bytes))
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    #[test]
    fn chunks_survive_a_restart_and_dropped_ones_do_not_return() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (chunk(1, 1000), chunk(2, 70_000));
        {
            let tier = DiskTier::open(dir.path(), 64 << 20).unwrap();
            tier.put(one.0, one.1.clone());
            tier.put(two.0, two.1.clone());
            tier.flush();
            assert_eq!(tier.read(&one.0).unwrap(), one.1);
            tier.drop_chunk(&one.0);
            assert!(tier.read(&one.0).is_none());
        }
        let tier = DiskTier::open(dir.path(), 64 << 20).unwrap();
        assert!(tier.read(&one.0).is_none());
        assert_eq!(tier.read(&two.0).unwrap(), two.1);
        tier.put(one.0, one.1.clone());
        tier.flush();
        assert_eq!(tier.read(&one.0).unwrap(), one.1);
        assert_eq!(files(dir.path()).len(), 1);
    }

    #[test]
    fn a_flipped_bit_is_found_and_a_torn_end_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (chunk(1, 5000), chunk(2, 5000));
        {
            let tier = DiskTier::open(dir.path(), 64 << 20).unwrap();
            tier.put(one.0, one.1.clone());
            tier.put(two.0, two.1.clone());
            tier.flush();
        }
        let path = &files(dir.path())[0];
        let mut bytes = fs::read(path).unwrap();
        bytes[16 + 48 + 100] ^= 1;
        bytes.truncate(bytes.len() - 10);
        fs::write(path, &bytes).unwrap();
        let tier = DiskTier::open(dir.path(), 64 << 20).unwrap();
        assert_eq!(tier.len(), 1);
        assert!(tier.read(&one.0).is_none());
        assert!(tier.is_empty());
        tier.put(two.0, two.1.clone());
        tier.flush();
        assert_eq!(tier.read(&two.0).unwrap(), two.1);
    }

    #[test]
    fn the_oldest_file_goes_first_and_the_bound_holds() {
        let dir = tempfile::tempdir().unwrap();
        let capacity = 16 << 20;
        let chunks: Vec<_> = (0..60).map(|seed| chunk(seed, 400_000 + seed as usize)).collect();
        let tier = DiskTier::open(dir.path(), capacity).unwrap();
        for (id, bytes) in &chunks {
            tier.put(*id, bytes.clone());
            tier.flush();
        }
        let total: u64 = files(dir.path()).iter().map(|f| f.metadata().unwrap().len()).sum();
        assert!(total <= capacity, "{total}");
        assert!(tier.read(&chunks[0].0).is_none());
        assert_eq!(tier.read(&chunks[59].0).unwrap(), chunks[59].1);
        drop(tier);
        let smaller = DiskTier::open(dir.path(), 4 << 20).unwrap();
        let total: u64 = files(dir.path()).iter().map(|f| f.metadata().unwrap().len()).sum();
        assert!(total <= 4 << 20);
        assert_eq!(smaller.read(&chunks[59].0).unwrap(), chunks[59].1);
    }

    #[test]
    fn a_file_of_another_version_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("blocks-0000000000000001.atoll"), b"something else").unwrap();
        fs::write(dir.path().join("notes.txt"), b"kept").unwrap();
        let tier = DiskTier::open(dir.path(), 64 << 20).unwrap();
        assert!(tier.is_empty());
        assert!(dir.path().join("notes.txt").exists());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_file_can_be_opened(junk in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let dir = tempfile::tempdir().unwrap();
            let bytes = [FILE_MAGIC.as_slice(), &junk].concat();
            fs::write(dir.path().join("blocks-0000000000000007.atoll"), bytes).unwrap();
            let tier = DiskTier::open(dir.path(), 64 << 20).unwrap();
            prop_assert!(tier.is_empty());
        }
    }
}
