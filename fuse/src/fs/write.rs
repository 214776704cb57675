//! Writing files: into memory, and out of it chunk by chunk.
//!
//! What `O_APPEND` writes is told apart as long as a file has no other changes, so that it can be
//! appended to whatever the file has become ([`append`](super::append)).

use std::sync::Arc;
use std::time::Instant;

use atoll_net::task;
use bytes::Bytes;

use super::budget::Budget;
use super::file::File;
use super::segments::{Loaded, Segments, Sent, Step, Upload};
use super::{FILE_BYTES_MAX, FileSystem, FsError, Handle, OpenFile, Store, lock};

/// How bytes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteHow {
    /// At the end of the file, wherever that is.
    pub append: bool,
    /// By somebody who could not give the file the privileges it has.
    pub outsider: bool,
}

/// How often a writer without room looks whether an upload must be started again.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

impl<S: Store> FileSystem<S> {
    /// Writes all of `data`. When it appends, `offset` is where the kernel takes the end to be.
    ///
    /// # Errors
    /// `Stalled` when there is no room for unsent data and the cluster takes none for long.
    pub async fn write(
        self: &Arc<Self>,
        handle: u64,
        offset: u64,
        data: &[u8],
        how: WriteHow,
    ) -> Result<(), FsError> {
        let WriteHow { append, outsider } = how;
        let open = self.writable(handle)?;
        // Whoever waits for this has claimed no room: waiting for room with it ends.
        let _whole = match append {
            true => Some(open.file.appending.lock().await),
            false => None,
        };
        // The place of an append is fixed by its first step.
        let mut start = (!append).then_some(offset);
        let mut done = 0;
        let mut loaded = None;
        let mut moved = false;
        while done < data.len() {
            let step = {
                let mut state = open.file.lock();
                let start = *start.get_or_insert_with(|| state.size());
                if start.saturating_add(data.len() as u64) > FILE_BYTES_MAX {
                    return Err(FsError::TooLarge);
                }
                let at = start + done as u64;
                // Somebody may have written or truncated there by other means meanwhile.
                if start != offset && !moved {
                    // The kernel appends, and keeps the pages, where it takes the end to be.
                    state.pages_moved();
                    moved = true;
                }
                let segments = if append && at == state.size() {
                    state.append(outsider)
                } else {
                    state.change(outsider)
                };
                segments.write(at, &data[done..], &loaded, &self.budget)
            };
            if moved {
                // Once more for every step: pages may have been read in between.
                self.stale.add(open.file.inode);
            }
            done += self.follow(&open.file, step, &mut loaded).await? as usize;
        }
        lock(&self.inodes).cache(open.file.inode, None);
        Ok(())
    }

    /// Writes what can be written without waiting; returns how much that was.
    ///
    /// # Errors
    /// As [`FileSystem::write`], but never `Stalled`.
    pub fn write_now(
        self: &Arc<Self>,
        handle: u64,
        offset: u64,
        data: &[u8],
        outsider: bool,
    ) -> Result<usize, FsError> {
        let open = self.writable(handle)?;
        if offset.saturating_add(data.len() as u64) > FILE_BYTES_MAX {
            return Err(FsError::TooLarge);
        }
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let mut state = open.file.lock();
            let step = state.change(outsider).write(at, &data[done..], &None, &self.budget);
            drop(state);
            let Step::Did(count, filled) = step else {
                break;
            };
            done += count as usize;
            if let Some(upload) = filled {
                self.start_upload(&open.file, upload);
            }
        }
        lock(&self.inodes).cache(open.file.inode, None);
        Ok(done)
    }

    fn writable(&self, handle: u64) -> Result<Arc<OpenFile>, FsError> {
        match self.handle(handle)? {
            Handle::File(open) if open.writable => Ok(open),
            Handle::Deployed(_) => Err(FsError::ReadOnly),
            Handle::File(_) | Handle::Dir(_) => Err(FsError::BadHandle),
        }
    }

    /// Sets the length of a file that is open. Counts how often that changed something.
    pub(super) async fn truncate(
        self: &Arc<Self>,
        file: &Arc<File>,
        size: u64,
        outsider: bool,
        changes: &mut u64,
    ) -> Result<(), FsError> {
        if size > FILE_BYTES_MAX {
            return Err(FsError::TooLarge);
        }
        if size == 0 {
            *changes += 1;
            file.lock().clear(outsider);
        } else {
            self.step(file, 1, outsider, |segments, _, loaded, budget| {
                *changes += 1;
                match segments.truncate(size, loaded, budget) {
                    Step::Did(..) => Step::Did(1, None),
                    other => other,
                }
            })
            .await?;
        }
        lock(&self.inodes).cache(file.inode, None);
        Ok(())
    }

    /// Reserves, punches or zeroes a range, with the flags of fallocate(2), for `outsider` (who could
    /// not give the file the privileges it has) or somebody else.
    ///
    /// # Errors
    /// `Unsupported` for other flags than these.
    pub async fn fallocate(
        self: &Arc<Self>,
        handle: u64,
        offset: u64,
        len: u64,
        flags: i32,
        outsider: bool,
    ) -> Result<(), FsError> {
        let open = self.writable(handle)?;
        let keep_size = flags & libc::FALLOC_FL_KEEP_SIZE != 0;
        let zero = flags & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE);
        if flags & !(libc::FALLOC_FL_KEEP_SIZE | zero) != 0
            || (zero == libc::FALLOC_FL_PUNCH_HOLE && !keep_size)
        {
            return Err(FsError::Unsupported);
        }
        let end = offset.saturating_add(len);
        if len == 0 {
            return Err(FsError::Invalid("a range without length"));
        }
        if end > FILE_BYTES_MAX {
            return Err(FsError::TooLarge);
        }
        if zero != 0 {
            self.step(&open.file, len, outsider, |segments, done, loaded, budget| {
                segments.zero(offset + done, len - done, loaded, budget)
            })
            .await?;
            lock(&self.inodes).cache(open.file.inode, None);
        }
        // There is nothing to reserve: space is the cluster's, and chunks are never overwritten.
        if !keep_size && end > open.file.lock().size() {
            self.truncate(&open.file, end, outsider, &mut 0).await?;
        }
        Ok(())
    }

    /// Runs a step until `total` is done.
    async fn step(
        self: &Arc<Self>,
        file: &Arc<File>,
        total: u64,
        outsider: bool,
        mut step: impl FnMut(&mut Segments, u64, &Loaded, &Arc<Budget>) -> Step,
    ) -> Result<(), FsError> {
        let mut done = 0;
        let mut loaded = None;
        while done < total {
            let step = step(file.lock().change(outsider), done, &loaded, &self.budget);
            done += self.follow(file, step, &mut loaded).await?;
        }
        Ok(())
    }

    /// Does what a step asks for; returns what it did.
    async fn follow(
        self: &Arc<Self>,
        file: &Arc<File>,
        step: Step,
        loaded: &mut Loaded,
    ) -> Result<u64, FsError> {
        match step {
            Step::Did(count, filled) => {
                if let Some(upload) = filled {
                    self.start_upload(file, upload);
                }
                return Ok(count);
            }
            Step::Load(id, len) => *loaded = Some((id, self.chunk(id, len).await?)),
            Step::Room(bytes) => self.wait_for_room(bytes).await?,
        }
        Ok(0)
    }

    /// Sends a frozen buffer in the background. If that fails it stays, for the next flush.
    pub(super) fn start_upload(self: &Arc<Self>, file: &Arc<File>, upload: Arc<Upload>) {
        let under_way = self.budget.upload_begins();
        let (fs, file) = (self.clone(), file.clone());
        task::spawn("fuse_upload", async move {
            if let Err(error) = fs.send(&file, &upload).await {
                tracing::warn!(%error, inode = %file.inode, "could not upload; will try again");
            }
            drop(upload);
            drop(under_way);
        });
    }

    /// Sends a frozen buffer.
    pub(super) async fn send(&self, file: &File, upload: &Arc<Upload>) -> Result<Sent, FsError> {
        match upload.send(&self.store).await {
            Ok(sent) => {
                self.chunks.put(sent.id, upload.bytes().clone());
                if let Some(segments) = file.lock().segments() {
                    segments.sent(upload, &sent);
                }
                self.budget.upload_succeeded();
                Ok(sent)
            }
            Err(error) => {
                self.budget.upload_failed(error.to_string());
                Err(error.into())
            }
        }
    }

    /// Waits until there may be room for so many bytes.
    pub(super) async fn wait_for_room(self: &Arc<Self>, bytes: u64) -> Result<(), FsError> {
        let mut since = Instant::now();
        let mut finished = self.budget.finished();
        loop {
            let freed = self.budget.freed();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if self.budget.fits(bytes) {
                return Ok(());
            }
            self.relieve();
            if tokio::time::timeout(LOOK_EVERY, freed).await.is_err() {
                tracing::debug!(bytes, "still waiting for room for unsent data");
            }
            if std::mem::replace(&mut finished, self.budget.finished()) != finished {
                since = Instant::now();
            } else if since.elapsed() > self.options.stall {
                let reason = self.budget.trouble();
                let reason = reason.unwrap_or_else(|| "it answers too slowly".to_owned());
                return Err(FsError::Stalled { reason });
            }
        }
    }

    /// Sends all that is unsent when nothing is on its way: the memory is full of buffers that
    /// nobody has filled up.
    fn relieve(self: &Arc<Self>) {
        if self.budget.uploads() > 0 {
            return;
        }
        let files: Vec<Arc<File>> = lock(&self.files).values().cloned().collect();
        for file in files {
            let unsent = file.lock().segments().map(Segments::freeze_all).unwrap_or_default();
            for upload in unsent {
                self.start_upload(&file, upload);
            }
        }
    }

    /// Keeps the bytes of a chunk that is known to have this id.
    pub(super) fn at_hand(&self, id: atoll_proto::ChunkId) -> Option<Bytes> {
        self.chunks.peek(id)
    }
}
