//! What can be taken back from stores that were set aside: the large chunks. Segment files say
//! themselves what is in them, so they need no index; each chunk is verified before it is stored
//! again, as if it had come from another server, but without the way.
//!
//! What is stored again is given back to the file system at once, and what was searched in vain as
//! well, so that a disk that is nearly full can be salvaged: it needs room for a few chunks. For the
//! same reason only half of the reserve is left free. A file that was gone through is deleted.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use atoll_proto::{ChunkId, Epoch};

use super::RocksStore;
use super::frame::{BLOCK, Entry, Frame, blocks};
use super::open;
use super::read::file_failure;
use super::room::{BALLAST, Leave};
use super::segments::{offset, punch};
use crate::store::{ChunkStore, NewChunk, Salvaged, StoreError};

/// So much of a file is searched for a frame at once.
const WINDOW: usize = 1 << 20;
/// Chunks are stored so many bytes at a time: clients' puts wait no longer for it than for each
/// other.
const BATCH_BYTES: usize = 4 << 20;
const VERB: &str = "read a chunk store that was set aside";

/// Where salvaging has come to.
#[derive(Debug, Default)]
pub(super) struct Progress {
    cursor: Option<Cursor>,
    /// Files the disk cannot read at all.
    given_up: BTreeSet<PathBuf>,
}

/// A place in a segment file. What is before it is not looked at again.
#[derive(Debug)]
struct Cursor {
    file: PathBuf,
    block: u32,
}

/// What the search for a frame came to.
enum Search {
    /// A frame: the block after its header, and what it says is in it.
    Frame(u32, Vec<Entry>),
    /// None up to this block; there is more behind it.
    Nothing(u32),
    End,
}

impl RocksStore {
    /// Goes on where the last call stopped.
    pub(super) fn salvage_some(
        &self,
        progress: &mut Progress,
        now_ms: u64,
        bytes_max: u64,
    ) -> Result<Salvaged, StoreError> {
        let failed = |error: io::Error| file_failure(VERB, &error);
        let mut done = Salvaged::default();
        let mut seen: u64 = 0;
        while seen < bytes_max {
            let (path, from) = match &progress.cursor {
                Some(Cursor { file, block }) => (file.clone(), *block),
                None => match self.next_file(progress)? {
                    Some(path) => (path, 0),
                    None => {
                        done.complete = self.note_salvaged(progress)?;
                        break;
                    }
                },
            };
            let file = match OpenOptions::new().read(true).write(true).open(&path) {
                // Somebody else deleted it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    progress.cursor = None;
                    continue;
                }
                Err(error) if is_unreadable(&error) => {
                    tracing::error!(file = %path.display(), %error, "gave up a segment file");
                    progress.cursor = None;
                    progress.given_up.insert(path);
                    continue;
                }
                file => file.map_err(failed)?,
            };
            let found = search(&file, from, bytes_max - seen, &mut seen).map_err(failed)?;
            let block = match found {
                Search::Frame(first, entries) => {
                    seen += entries.iter().map(|entry| u64::from(entry.len)).sum::<u64>();
                    self.take_back(&file, first, &entries, now_ms, &mut done)?
                }
                Search::Nothing(block) => block,
                Search::End => {
                    // All that was good in it is on disk here.
                    fs::remove_file(&path).map_err(failed)?;
                    progress.cursor = None;
                    continue;
                }
            };
            give_back(&file, from, block);
            progress.cursor = Some(Cursor { file: path, block });
        }
        Ok(done)
    }

    /// Whether nothing is left to be taken back.
    pub(super) fn is_salvaged(&self, progress: &Progress) -> Result<bool, StoreError> {
        Ok(self.next_file(progress)?.is_none())
    }

    /// Stores those of the chunks of a frame that are good, and gives their room back. Returns the
    /// block up to which nothing is left to be found: what follows a chunk that is not good is
    /// searched as well, because its length is only what the frame says.
    fn take_back(
        &self,
        file: &File,
        first: u32,
        entries: &[Entry],
        now_ms: u64,
        done: &mut Salvaged,
    ) -> Result<u32, StoreError> {
        let mut end = first;
        let mut rest = entries;
        while !rest.is_empty() {
            let (mut batch, mut good, mut bytes) = (Vec::new(), Vec::new(), 0);
            while bytes < BATCH_BYTES
                && let Some((entry, others)) = rest.split_first()
            {
                rest = others;
                let Some(body) = read_good(file, entry)? else { continue };
                bytes += body.len();
                good.push(*entry);
                if !self.has(&entry.id)? {
                    let (id, epoch, at_ms) = (entry.id, Epoch(0), now_ms);
                    batch.push(NewChunk { id, bytes: body.into(), epoch, at_ms });
                }
            }
            if !batch.is_empty() {
                done.note(&self.put(&batch, Leave::HalfReserve)?);
            }
            for entry in &good {
                let next = entry.block + blocks(entry.len);
                give_back(file, entry.block, next);
                if entry.block == end {
                    end = next;
                }
            }
        }
        Ok(end)
    }

    /// Nothing was left; says whether that is still so, and remembers it.
    fn note_salvaged(&self, progress: &mut Progress) -> Result<bool, StoreError> {
        // Held so that the store does not begin anew in between.
        let _keeper = self.keeper();
        let salvaged = self.is_salvaged(progress)?;
        if salvaged {
            self.unsalvaged.store(false, Ordering::Release);
        }
        Ok(salvaged)
    }

    /// A segment file of a store that was set aside.
    fn next_file(&self, progress: &Progress) -> Result<Option<PathBuf>, StoreError> {
        let list = || -> io::Result<Option<PathBuf>> {
            let mut first = None;
            for aside in open::set_aside(&self.dir)? {
                for path in segment_files(&aside)? {
                    let better = first.as_ref().is_none_or(|first| path < *first);
                    if better && !progress.given_up.contains(&path) {
                        first = Some(path);
                    }
                }
            }
            Ok(first)
        };
        list().map_err(|error| file_failure(VERB, &error))
    }

    /// Gives up the ballast of stores that were set aside: it is room for what is taken back.
    pub(super) fn drop_ballast_aside(&self) {
        for aside in open::set_aside(&self.dir).unwrap_or_default() {
            match fs::remove_file(aside.join(BALLAST)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, "cannot give up the ballast of a store set aside");
                }
                _ => {}
            }
        }
    }
}

/// The segment files in the directory of a store. A directory that cannot be read is not an empty
/// one: what is in it would be deleted.
fn segment_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir.join(open::SEGMENTS)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|it| it == "segment") {
            files.push(path);
        }
    }
    Ok(files)
}

/// The next frame from a block on, looking for it in about `bytes_max` bytes. Adds to `seen` how
/// many bytes were searched.
fn search(file: &File, from: u32, bytes_max: u64, seen: &mut u64) -> io::Result<Search> {
    // As a rule it is where the last one ended.
    let mut window = vec![0; BLOCK];
    let end = file.metadata()?.len();
    let (mut block, mut searched) = (from, 0);
    while offset(block) < end {
        if searched >= bytes_max {
            return Ok(Search::Nothing(block));
        }
        let len = read_some(file, &mut window, offset(block))?;
        if len == 0 {
            break;
        }
        searched += len as u64;
        *seen += len as u64;
        for first in window[..len].chunks(BLOCK) {
            if let Some(header_blocks) = Frame::header_blocks(first) {
                let mut header = vec![0; header_blocks as usize * BLOCK];
                let read = read_whole(file, &mut header, offset(block))?;
                if read && let Some(entries) = Frame::read(&header, block) {
                    return Ok(Search::Frame(block + header_blocks, entries));
                }
            }
            block += 1;
        }
        window.resize(WINDOW, 0);
    }
    Ok(Search::End)
}

/// The bytes of a chunk, if they are what the frame says.
fn read_good(file: &File, entry: &Entry) -> Result<Option<Vec<u8>>, StoreError> {
    let mut body = vec![0; entry.len as usize];
    let read = read_whole(file, &mut body, offset(entry.block));
    let read = read.map_err(|error| file_failure(VERB, &error))?;
    Ok((read && ChunkId::of(&body) == entry.id).then_some(body))
}

/// Whether all of it is there and the disk can read it.
///
/// # Errors
/// Any other failure: what could not be read now must not count as lost.
fn read_whole(file: &File, bytes: &mut [u8], at: u64) -> io::Result<bool> {
    match file.read_exact_at(bytes, at) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) if is_unreadable(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// As much as there is. Blocks the disk cannot read count as zeros: they have no frame.
fn read_some(file: &File, window: &mut [u8], at: u64) -> io::Result<usize> {
    match read_all(file, window, at) {
        Err(error) if is_unreadable(&error) => {}
        len => return len,
    }
    let mut len = 0;
    for (block, at) in window.chunks_mut(BLOCK).zip((at..).step_by(BLOCK)) {
        len += match read_all(file, block, at) {
            Err(error) if is_unreadable(&error) => {
                block.fill(0);
                BLOCK
            }
            read => read?,
        };
    }
    Ok(len)
}

fn read_all(file: &File, window: &mut [u8], at: u64) -> io::Result<usize> {
    let mut len = 0;
    while len < window.len() {
        match file.read_at(&mut window[len..], at + len as u64) {
            Ok(0) => break,
            Ok(some) => len += some,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

/// Whether no later try will do better: the disk, or the file system's own checks, say so.
fn is_unreadable(error: &io::Error) -> bool {
    use nix::libc::{EBADMSG, EIO, EUCLEAN};
    error.raw_os_error().is_some_and(|number| [EBADMSG, EIO, EUCLEAN].contains(&number))
}

/// Gives the blocks from `from` up to `to` back to the file system. Where that fails, they come
/// back with the whole file.
fn give_back(file: &File, from: u32, to: u32) {
    if let Err(error) = punch(file, from, to.saturating_sub(from)) {
        tracing::debug!(%error, "cannot give back the room of what was taken back");
    }
}
