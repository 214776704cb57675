//! Appending to a file that somebody else appends to.
//!
//! Changes that only appended are committed on the condition that the file is still what they were
//! appended to. If it is not, they are written once more, at the end of what it is now, and the
//! commit is tried again: so appends of several mounts all end up in the file, each in one piece.
//! With every failure somebody else's commit succeeded, so that together they always get on. Whole
//! chunks are not copied but referred to in their new place, so that however much was appended the
//! next commit comes soon: else whoever appends little would always be faster.

use std::sync::Arc;

use super::file::{File, Next};
use super::segments::{Part, PartData, Segments, Step, Upload};
use super::{FileSystem, FsError, Store, lock};

/// Bytes that are written again at a time.
const PIECE_BYTES: u64 = 1 << 20;

impl<S: Store> FileSystem<S> {
    /// The file is not any more what was appended to: appends to what it is.
    ///
    /// # Errors
    /// When the file is gone, the master cannot be asked, or there is no room for unsent data.
    pub(super) async fn append_again(self: &Arc<Self>, file: &Arc<File>) -> Result<(), FsError> {
        let _whole = file.appending.lock().await;
        let (attr, opened) = self.ask(file.inode, false).await?;
        let Some((from, _)) = file.lock().appended() else { return Ok(()) };
        if file.lock().is_based_on(&attr, &opened) {
            return Ok(());
        }
        tracing::debug!(inode = %file.inode, "somebody else appended: appending behind that");
        let base = opened.snapshot.size();
        let mut segments = Segments::new(&opened.snapshot, self.chunk_bytes());
        let (mut done, mut loaded) = (0, None);
        let mut under_way: Vec<Arc<Upload>> = Vec::new();
        loop {
            let next = {
                let mut state = file.lock();
                match state.appended() {
                    Some((now, end)) if now == from && from + done < end => {
                        state.next_of_changes(from + done, PIECE_BYTES)
                    }
                    Some((now, end)) if now == from && from > end => {
                        let reason = "what it appended is shorter than nothing".to_owned();
                        return Err(FsError::Stalled { reason });
                    }
                    Some((now, _)) if now == from => {
                        state.appended_again(&attr, opened, segments);
                        drop(state);
                        lock(&self.inodes).cache(file.inode, None);
                        self.stale.add(file.inode);
                        return Ok(());
                    }
                    // Written elsewhere meanwhile: this mount's content is what counts.
                    _ => return Ok(()),
                }
            };
            let pieces = match next {
                Next::Chunk(Part { len, data: PartData::Stored(id, receipts) }) => {
                    segments.add_chunk(len, id, receipts);
                    done += len;
                    continue;
                }
                Next::Chunk(Part { data: PartData::Pending(upload), .. }) => {
                    // Then it is stored, and the memory is free.
                    self.send(file, &upload).await?;
                    continue;
                }
                Next::Chunk(Part { data: PartData::Hole, .. }) => Vec::new(),
                Next::Bytes(pieces) => pieces,
            };
            let bytes = self.gather(pieces).await?;
            if bytes.is_empty() {
                return Err(FsError::Stalled { reason: "its changes have a gap".to_owned() });
            }
            let mut written = 0;
            while written < bytes.len() {
                let at = base + done;
                match segments.write(at, &bytes[written..], &loaded, &self.budget) {
                    Step::Did(count, filled) => {
                        done += count;
                        // At most what was given.
                        written += count as usize;
                        if let Some(upload) = filled {
                            self.start_upload(file, upload.clone());
                            under_way.push(upload);
                        }
                    }
                    Step::Load(id, len) => loaded = Some((id, self.chunk(id, len).await?)),
                    Step::Room(bytes) => {
                        under_way.extend(segments.freeze_all());
                        if under_way.is_empty() {
                            self.wait_for_room(bytes).await?;
                        }
                        self.send_all(file, &mut segments, &mut under_way).await?;
                    }
                }
            }
        }
    }

    /// Gives back the memory of what was written again so far. Nobody else would: these segments are
    /// not the file's yet.
    async fn send_all(
        &self,
        file: &File,
        segments: &mut Segments,
        under_way: &mut Vec<Arc<Upload>>,
    ) -> Result<(), FsError> {
        for upload in under_way.drain(..) {
            let sent = self.send(file, &upload).await?;
            segments.sent(&upload, &sent);
        }
        Ok(())
    }
}
