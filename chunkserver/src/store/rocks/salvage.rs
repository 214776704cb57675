//! What can be taken back from stores that were set aside: the large chunks. Segment files say
//! themselves what is in them, so they need no index; each chunk is verified before it is stored
//! again, as if it had come from another server, but without the way.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use atoll_proto::{ChunkId, Epoch};

use super::RocksStore;
use super::frame::{BLOCK, Entry, Frame, blocks};
use super::open;
use super::read::file_failure;
use super::segments::offset;
use crate::store::{ChunkStore, NewChunk, Salvaged, StoreError};

/// So much of a file is searched for a frame at once.
const WINDOW: usize = 1 << 20;
/// Chunks are stored so many bytes at a time.
const BATCH_BYTES: usize = 16 << 20;
const VERB: &str = "read a chunk store that was set aside";

/// Where salvaging has come to.
#[derive(Debug)]
pub(super) struct Cursor {
    file: PathBuf,
    block: u32,
}

impl RocksStore {
    /// Goes on where the last call stopped.
    pub(super) fn salvage_some(
        &self,
        cursor: &mut Option<Cursor>,
        now_ms: u64,
        bytes_max: u64,
    ) -> Result<Salvaged, StoreError> {
        let failed = |error: io::Error| file_failure(VERB, &error);
        let mut done = Salvaged::default();
        let mut seen: u64 = 0;
        while seen < bytes_max {
            let Some(file) = next_file(&self.dir) else {
                done.complete = true;
                break;
            };
            let at = match cursor.take() {
                Some(cursor) if cursor.file == file => cursor.block,
                _ => 0,
            };
            let open = File::open(&file).map_err(failed)?;
            let Some((block, entries)) = next_frame(&open, at, &mut seen).map_err(failed)? else {
                // All that was good in it is on disk here.
                fs::remove_file(&file).map_err(failed)?;
                continue;
            };
            self.take_back(&open, &entries, now_ms, &mut done)?;
            seen += entries.iter().map(|entry| u64::from(entry.len)).sum::<u64>();
            *cursor = Some(Cursor { file, block });
        }
        Ok(done)
    }

    /// Stores those of the chunks that are good.
    fn take_back(
        &self,
        file: &File,
        entries: &[Entry],
        now_ms: u64,
        done: &mut Salvaged,
    ) -> Result<(), StoreError> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        for entry in entries {
            if self.has(&entry.id)? {
                continue;
            }
            let mut body = vec![0; entry.len as usize];
            let read = file.read_exact_at(&mut body, offset(entry.block));
            if read.is_err() || ChunkId::of(&body) != entry.id {
                continue;
            }
            bytes += body.len();
            let (id, epoch, at_ms) = (entry.id, Epoch(0), now_ms);
            batch.push(NewChunk { id, bytes: body.into(), epoch, at_ms });
            if bytes >= BATCH_BYTES {
                done.note(&self.put_batch(&batch)?);
                batch.clear();
                bytes = 0;
            }
        }
        done.note(&self.put_batch(&batch)?);
        Ok(())
    }
}

/// A segment file of a store that was set aside.
fn next_file(dir: &Path) -> Option<PathBuf> {
    let segments = |dir: PathBuf| fs::read_dir(dir.join(open::SEGMENTS)).ok();
    let entries = open::set_aside(dir).into_iter().filter_map(segments).flatten();
    let paths = entries.flatten().map(|entry| entry.path());
    paths.filter(|path| path.extension().is_some_and(|it| it == "segment")).min()
}

/// The next frame from a block on: the block after it, and what is in it. Adds to `seen` how many
/// bytes were searched.
fn next_frame(file: &File, from: u32, seen: &mut u64) -> io::Result<Option<(u32, Vec<Entry>)>> {
    let mut window = vec![0; WINDOW];
    let end = file.metadata()?.len();
    let mut block = from;
    while offset(block) < end {
        let len = match read_some(file, &mut window, offset(block)) {
            // What the disk cannot read has no frame.
            Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => {
                window.fill(0);
                WINDOW
            }
            len => len?,
        };
        *seen += len as u64;
        for first in window[..len].chunks(BLOCK) {
            if let Some(header_blocks) = Frame::header_blocks(first) {
                let mut header = vec![0; header_blocks as usize * BLOCK];
                let read = file.read_exact_at(&mut header, offset(block));
                if let Some(entries) = read.ok().and_then(|()| Frame::read(&header, block)) {
                    let ends = entries.iter().map(|it| it.block.saturating_add(blocks(it.len)));
                    let next = block + header_blocks;
                    return Ok(Some((ends.max().unwrap_or(next).max(next), entries)));
                }
            }
            block += 1;
        }
    }
    Ok(None)
}

/// As much as there is.
fn read_some(file: &File, window: &mut [u8], at: u64) -> io::Result<usize> {
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
