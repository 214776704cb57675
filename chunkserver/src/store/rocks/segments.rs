//! Segment files: the bytes of large chunks, each written once.
//!
//! A file is appended to, one [`Frame`] per batch, until it is [`SEGMENT_BLOCKS`] long; then the
//! next begins. What is in a file counts only once the database refers to it:
//! [`Segments::append`] returns when the bytes are on disk, and the caller then makes them valid;
//! if it does not, the next batch overwrites them. Deleted chunks give their blocks back to the
//! file system, as holes; a file of which nothing is left is removed.
//!
//! Blocks are not allocated ahead: ext4 would have to note of each that it is written now, which
//! it leaves to a thread that waits for its turn when the processors are busy.
//!
//! Only the store's one writer appends and deletes; anybody may read.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use atoll_proto::ChunkId;
use bytes::Bytes;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};

use super::frame::{BLOCK, Frame, blocks};
use crate::store::len_of;

/// A segment file is not appended to beyond this many blocks: 256 MiB. One frame may be longer.
const SEGMENT_BLOCKS: u32 = 64 << 10;
/// Files kept open for reading.
const OPEN_FILES_MAX: usize = 256;
/// Most pieces of memory that one system call writes.
const PIECES_MAX: usize = 1024;

/// Where a chunk is in the segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    /// Number of the file.
    pub(super) segment: u32,
    /// The block it begins with.
    pub(super) block: u32,
}

/// What was appended.
#[derive(Debug)]
pub(super) struct Appended {
    /// Where each chunk is, in order.
    pub(super) spots: Vec<Spot>,
    /// The file.
    pub(super) segment: u32,
    /// The block after the last one written.
    pub(super) end: u32,
}

/// Why a chunk cannot be read.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The file is gone or cut, or the disk cannot read it: no later try will do better.
    Damaged(String),
    /// Anything else.
    Failed(io::Error),
}

/// The segment files of a store.
#[derive(Debug)]
pub(super) struct Segments {
    dir: PathBuf,
    open: Mutex<OpenFiles>,
    tail: Mutex<Tail>,
}

/// Files open for reading, oldest first out.
#[derive(Debug, Default)]
struct OpenFiles {
    files: HashMap<u32, Arc<File>>,
    order: VecDeque<u32>,
}

/// The file that is appended to.
#[derive(Debug)]
struct Tail {
    segment: u32,
    /// `None` until something is appended.
    file: Option<File>,
    /// The block after the last valid one.
    end: u32,
}

impl Segments {
    /// The segments in a directory, of which those from `next` on are not in use. Appends to the
    /// file `last`, which ends before a block, if there is room in it.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub(super) fn open(dir: &Path, next: u32, last: Option<(u32, u32)>) -> io::Result<Self> {
        if !dir.exists() {
            fs::create_dir(dir)?;
            if let Some(parent) = dir.parent() {
                File::open(parent)?.sync_all()?;
            }
        }
        let last = last.filter(|(_, end)| *end < SEGMENT_BLOCKS);
        let (segment, end) = last.unwrap_or((next, 0));
        let tail = Tail { segment, file: None, end };
        let open = Mutex::default();
        Ok(Self { dir: dir.to_owned(), open, tail: Mutex::new(tail) })
    }

    /// The numbers of the files that are there, in no order.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub(super) fn files(dir: &Path) -> io::Result<Vec<u32>> {
        let mut numbers = Vec::new();
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(numbers),
            entries => entries?,
        };
        for entry in entries {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".segment"));
            numbers.extend(number.and_then(|number| u32::from_str_radix(number, 16).ok()));
        }
        Ok(numbers)
    }

    /// Writes chunks and syncs them. They count from [`Segments::keep`] on.
    ///
    /// # Errors
    /// When the disk fails or is full; then nothing was written that counts.
    pub(super) fn append(&self, chunks: &[(ChunkId, Bytes)]) -> io::Result<Appended> {
        let mut tail = self.tail();
        if tail.end >= SEGMENT_BLOCKS {
            tail.advance();
        }
        let named: Vec<(ChunkId, u32)> =
            chunks.iter().map(|(id, bytes)| (*id, len_of(bytes))).collect();
        let frame = Frame::new(tail.end, &named).ok_or(io::ErrorKind::FileTooLarge)?;
        tail.open(&self.dir)?;
        if let Err(error) = tail.write(&frame, chunks) {
            // After a failed sync nobody knows what of the file is on disk. What was valid in it
            // stays so; but nothing more goes there.
            if tail.end == 0 {
                self.remove(tail.segment);
            }
            tail.advance();
            return Err(error);
        }
        let segment = tail.segment;
        let spots = frame.entries.iter().map(|entry| Spot { segment, block: entry.block });
        Ok(Appended { spots: spots.collect(), segment, end: frame.end })
    }

    /// What was appended last is valid: the next batch goes behind it.
    pub(super) fn keep(&self, appended: &Appended) {
        let mut tail = self.tail();
        if tail.segment == appended.segment {
            tail.end = appended.end;
        }
    }

    /// The bytes of a chunk.
    ///
    /// # Errors
    /// When the file does not have them or cannot be read.
    pub(super) fn read(&self, spot: Spot, len: u32) -> Result<Bytes, ReadError> {
        let file = self.file(spot.segment)?;
        let mut bytes = vec![0; len as usize];
        match file.read_exact_at(&mut bytes, offset(spot.block)) {
            Ok(()) => Ok(bytes.into()),
            Err(error) => Err(ReadError::of(error, spot.segment)),
        }
    }

    /// Has the kernel forget the bytes of a chunk that it has in memory: the next read is from the
    /// disk, as far as that can be had.
    pub(super) fn forget_cached(&self, spot: Spot, len: u32) {
        let Ok(file) = self.file(spot.segment) else { return };
        let (from, count) = (i64::from(spot.block), i64::from(blocks(len)));
        let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        let advised = posix_fadvise(&*file, from * BLOCK as i64, count * BLOCK as i64, advice);
        if let Err(error) = advised {
            tracing::debug!(%error, "a chunk may be verified from memory");
        }
    }

    /// Gives the room of a chunk back that nothing refers to any more. Says whether the file
    /// system can do that.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn punch(&self, spot: Spot, len: u32) -> io::Result<bool> {
        let file = match OpenOptions::new().write(true).open(self.path(spot.segment)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            file => file?,
        };
        punch(&file, spot.block, blocks(len))
    }

    /// Overwrites a chunk with zeros, on disk when this returns. Whoever reads it at that moment
    /// finds that it is damaged.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn wipe(&self, spot: Spot, len: u32) -> io::Result<()> {
        const ZEROS: [u8; BLOCK] = [0; BLOCK];
        let file = match OpenOptions::new().write(true).open(self.path(spot.segment)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        for block in 0..blocks(len) {
            file.write_all_at(&ZEROS, offset(spot.block + block))?;
        }
        file.sync_data()
    }

    /// Cuts off whatever is behind what is valid: a crash, or a write that failed, may have left bytes
    /// there. `fills` are the files in use with the blocks they end before, in order; others, which
    /// nothing refers to, are removed. Nothing is appended meanwhile.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn cut(&self, fills: &[(u32, u32)]) -> io::Result<()> {
        let tail = self.tail();
        for segment in Self::files(&self.dir)? {
            let fill = fills.binary_search_by_key(&segment, |(it, _)| *it);
            let end = match fill.map(|at| fills[at].1) {
                Ok(end) => end,
                Err(_) if segment == tail.segment => tail.end,
                Err(_) => {
                    self.opened().forget(segment);
                    fs::remove_file(self.path(segment))?;
                    continue;
                }
            };
            let file = OpenOptions::new().write(true).open(self.path(segment))?;
            if file.metadata()?.len() > offset(end) {
                file.set_len(offset(end))?;
                file.sync_all()?;
            }
        }
        File::open(&self.dir)?.sync_all()
    }

    /// Whether chunks may still be appended to this file.
    pub(super) fn is_open_ended(&self, segment: u32) -> bool {
        let tail = self.tail();
        tail.segment == segment && tail.end < SEGMENT_BLOCKS
    }

    /// Removes a file that nothing refers to.
    pub(super) fn remove(&self, segment: u32) {
        self.opened().forget(segment);
        let path = self.path(segment);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(file = %path.display(), %error, "cannot remove a segment file");
            }
            _ => {}
        }
    }

    fn path(&self, segment: u32) -> PathBuf {
        path(&self.dir, segment)
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn opened(&self) -> MutexGuard<'_, OpenFiles> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, segment: u32) -> Result<Arc<File>, ReadError> {
        if let Some(file) = self.opened().files.get(&segment) {
            return Ok(Arc::clone(file));
        }
        let file = File::open(self.path(segment));
        let file = Arc::new(file.map_err(|error| ReadError::of(error, segment))?);
        self.opened().keep(segment, &file);
        Ok(file)
    }
}

impl Tail {
    /// Leaves the file as it is and begins the next.
    fn advance(&mut self) {
        *self = Self { segment: self.segment + 1, file: None, end: 0 };
    }

    /// Writes a frame behind what is valid, and syncs it.
    fn write(&mut self, frame: &Frame, chunks: &[(ChunkId, Bytes)]) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        file.seek(SeekFrom::Start(offset(self.end)))?;
        write_all(file, frame, chunks)?;
        file.sync_data()
    }

    /// Opens the file, or makes it, if that has not been done.
    fn open(&mut self, dir: &Path) -> io::Result<()> {
        if self.file.is_some() {
            return Ok(());
        }
        let path = path(dir, self.segment);
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(path)?;
        // Even if it was there: an earlier try may have made it and failed to sync its entry.
        File::open(dir)?.sync_all()?;
        // What is behind the end was never valid.
        file.set_len(offset(self.end))?;
        self.file = Some(file);
        Ok(())
    }
}

impl OpenFiles {
    fn keep(&mut self, segment: u32, file: &Arc<File>) {
        if self.files.insert(segment, Arc::clone(file)).is_none() {
            self.order.push_back(segment);
        }
        while self.files.len() > OPEN_FILES_MAX {
            let Some(oldest) = self.order.pop_front() else { break };
            self.files.remove(&oldest);
        }
    }

    fn forget(&mut self, segment: u32) {
        self.files.remove(&segment);
        self.order.retain(|other| *other != segment);
    }
}

impl ReadError {
    fn of(error: io::Error, segment: u32) -> Self {
        let hopeless = [io::ErrorKind::NotFound, io::ErrorKind::UnexpectedEof];
        let unreadable = error.raw_os_error() == Some(nix::libc::EIO);
        if unreadable || hopeless.contains(&error.kind()) {
            Self::Damaged(format!("segment file {segment:08x}: {error}"))
        } else {
            Self::Failed(error)
        }
    }
}

/// The path of a segment file.
pub(super) fn path(dir: &Path, segment: u32) -> PathBuf {
    dir.join(format!("{segment:08x}.segment"))
}

/// Gives blocks of a file back to the file system. Says whether that can do it.
pub(super) fn punch(file: &File, block: u32, count: u32) -> io::Result<bool> {
    if count == 0 {
        return Ok(true);
    }
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let unit = BLOCK as i64;
    match fallocate(file, hole, i64::from(block) * unit, i64::from(count) * unit) {
        Ok(()) => Ok(true),
        Err(nix::Error::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Where a block begins in its file.
pub(super) fn offset(block: u32) -> u64 {
    u64::from(block) * BLOCK as u64
}

/// Writes a whole frame where the file stands, with as few calls as possible.
fn write_all(file: &mut File, frame: &Frame, chunks: &[(ChunkId, Bytes)]) -> io::Result<()> {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let mut pieces = Vec::with_capacity(1 + 2 * chunks.len());
    pieces.push(IoSlice::new(&frame.header));
    for (_, bytes) in chunks {
        pieces.push(IoSlice::new(bytes));
        let padding = bytes.len().next_multiple_of(BLOCK) - bytes.len();
        pieces.push(IoSlice::new(&ZEROS[..padding]));
    }
    let mut rest = &mut pieces[..];
    // Removes leading pieces without bytes.
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        let some = rest.len().min(PIECES_MAX);
        match file.write_vectored(&rest[..some]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut rest, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
