//! Reading files.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use atoll_net::task;
use atoll_proto::ChunkId;
use bytes::{Bytes, BytesMut};
use futures_util::future::try_join_all;

use super::snapshot::Piece;
use super::{FileSystem, FsError, Handle, Store};

/// Chunks fetched ahead of a sequential reader.
const AHEAD_CHUNKS: u64 = 4;
/// The kernel reads ahead with several requests at once, which may arrive in any order: a read
/// that begins this near to the end of the one before counts as sequential.
const NEAR_BYTES: u64 = 4 << 20;

impl<S: Store> FileSystem<S> {
    /// Reads up to `len` bytes; fewer only at the end of the file.
    ///
    /// # Errors
    /// When a chunk cannot be read from any replica.
    pub async fn read(
        self: &Arc<Self>,
        handle: u64,
        offset: u64,
        len: u32,
    ) -> Result<Bytes, FsError> {
        let ahead = AHEAD_CHUNKS * self.chunk_bytes();
        let (pieces, next) = match self.handle(handle)? {
            Handle::File(open) => {
                let end = offset.saturating_add(u64::from(len));
                let before = open.read_end.swap(end, Ordering::Relaxed);
                let state = open.file.lock();
                let pieces = state.pieces(handle, offset, u64::from(len));
                let next = if before.abs_diff(offset) <= NEAR_BYTES {
                    chunk_ids(&state.pieces(handle, end, ahead))
                } else {
                    Vec::new()
                };
                (pieces, next)
            }
            Handle::Deployed(snapshot) => {
                let end = offset.saturating_add(u64::from(len));
                let next = chunk_ids(&snapshot.pieces(end, ahead));
                (snapshot.pieces(offset, u64::from(len)), next)
            }
            Handle::Dir(_) => return Err(FsError::IsADirectory),
        };
        self.prefetch(next);
        self.gather(pieces).await
    }

    /// A whole chunk of a known length.
    pub(super) async fn chunk(&self, id: ChunkId, len: u32) -> Result<Bytes, FsError> {
        let bytes = self.chunks.get(&self.store, id).await?;
        if bytes.len() != len as usize {
            return Err(FsError::Unexpected("an open, with a chunk of another length,"));
        }
        Ok(bytes)
    }

    pub(super) async fn gather(&self, pieces: Vec<Piece>) -> Result<Bytes, FsError> {
        let one = |piece: Piece| async move {
            match piece {
                // As long as the read at most, which is a u32.
                Piece::Zeros(len) => Ok::<_, FsError>(Bytes::from(vec![0; len as usize])),
                Piece::Bytes(bytes) => Ok(bytes),
                Piece::Chunk { id, len, start, end } => {
                    Ok(self.chunk(id, len).await?.slice(start as usize..end as usize))
                }
            }
        };
        let mut parts: Vec<Bytes> = match pieces.len() {
            0 => return Ok(Bytes::new()),
            _ => try_join_all(pieces.into_iter().map(one)).await?,
        };
        if parts.len() == 1 {
            return Ok(parts.swap_remove(0));
        }
        let mut joined = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
        parts.iter().for_each(|part| joined.extend_from_slice(part));
        Ok(joined.freeze())
    }

    /// Fetches chunks into the cache in the background, as far as there is capacity for it.
    fn prefetch(self: &Arc<Self>, ids: Vec<ChunkId>) {
        for id in ids {
            if self.chunks.expects(&id) {
                continue;
            }
            let Ok(permit) = self.prefetch.clone().try_acquire_owned() else {
                return;
            };
            let fs = self.clone();
            task::spawn("fuse_prefetch", async move {
                if let Err(error) = fs.chunks.get(&fs.store, id).await {
                    tracing::debug!(%error, %id, "could not prefetch a chunk");
                }
                drop(permit);
            });
        }
    }

    /// The next data, or hole, at or after an offset.
    ///
    /// # Errors
    /// `NoData` when there is none or the offset is past the end.
    pub fn seek(&self, handle: u64, offset: u64, hole: bool) -> Result<u64, FsError> {
        let found = match self.handle(handle)? {
            Handle::File(open) => open.file.lock().seek(handle, offset, hole),
            Handle::Deployed(snapshot) => snapshot.seek(offset, hole),
            Handle::Dir(_) => return Err(FsError::BadHandle),
        };
        found.ok_or(FsError::NoData)
    }
}

fn chunk_ids(pieces: &[Piece]) -> Vec<ChunkId> {
    let id = |piece: &Piece| match piece {
        Piece::Chunk { id, .. } => Some(*id),
        Piece::Zeros(_) | Piece::Bytes(_) => None,
    };
    pieces.iter().filter_map(id).collect()
}
