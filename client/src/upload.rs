//! Local files: cutting them into chunks, and storing one in the cluster's file system.

use std::collections::HashSet;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use atoll_proto::content::Extent;
use atoll_proto::master::{AdmitPage, ObjectKind};
use atoll_proto::namespace::{Caller, NamespaceOp};
use atoll_proto::receipt::Receipt;
use atoll_proto::{ByteName, ChunkId};
use bytes::Bytes;

use crate::stat_cache::Stamp;
use crate::write::covering;
use crate::{ChunkWriter, ClientError, Cluster};

/// After this many bytes what is uploaded is made known to the cluster, so that an interrupted
/// upload does not start anew.
pub(crate) const STAGE_BYTES: u64 = 32 << 20;

/// Chunks made known at a time: the master takes 8,192 in one request.
pub(crate) const STAGE_CHUNKS: usize = 4096;

/// What an upload of one file came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UploadedFile {
    /// Length of the file.
    pub bytes: u64,
    /// Bytes that had to travel; the cluster had the rest.
    pub bytes_uploaded: u64,
}

/// Reads a local file once and names its chunks. `seen` is told the bytes read.
///
/// # Errors
/// `Io` when it cannot be read, `Changed` when it changes meanwhile.
pub(crate) fn hash_file(
    path: &Path,
    chunk_bytes: u32,
    seen: &dyn Fn(u64),
) -> Result<(Stamp, Vec<Extent>), ClientError> {
    let io = |source| ClientError::Io { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(io)?;
    let stamp = Stamp::of(&file.metadata().map_err(io)?);
    let mut extents = Vec::new();
    let mut buffer = Vec::new();
    let mut offset = 0;
    while offset < stamp.size() {
        let len = (stamp.size() - offset).min(u64::from(chunk_bytes));
        read_exact(&file, path, offset, len, &mut buffer)?;
        let len = u32::try_from(len).map_err(|_| ClientError::Malformed {
            what: "the chunk size is out of range".to_owned(),
        })?;
        extents.push(Extent { id: Some(ChunkId::of(&buffer)), len });
        offset += u64::from(len);
        seen(u64::from(len));
    }
    if Stamp::of(&file.metadata().map_err(io)?) != stamp {
        return Err(ClientError::Changed { path: path.to_owned() });
    }
    Ok((stamp, extents))
}

fn read_exact(
    file: &std::fs::File,
    path: &Path,
    offset: u64,
    len: u64,
    buffer: &mut Vec<u8>,
) -> Result<(), ClientError> {
    buffer.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
    file.read_exact_at(buffer, offset).map_err(|source| match source.kind() {
        // Shorter than it was a moment ago.
        std::io::ErrorKind::UnexpectedEof => ClientError::Changed { path: path.to_owned() },
        _ => ClientError::Io { path: path.to_owned(), source },
    })
}

/// Reads the bytes of one chunk of a local file again; they must still have that hash.
///
/// # Errors
/// `Io`, or `Changed` when the bytes are others than when they were hashed.
pub(crate) async fn read_chunk_again(
    path: &Path,
    offset: u64,
    len: u32,
    id: ChunkId,
) -> Result<Bytes, ClientError> {
    let path = path.to_owned();
    blocking(move || {
        let io = |source| ClientError::Io { path: path.clone(), source };
        let file = std::fs::File::open(&path).map_err(io)?;
        let mut buffer = Vec::new();
        read_exact(&file, &path, offset, u64::from(len), &mut buffer)?;
        if ChunkId::of(&buffer) != id {
            return Err(ClientError::Changed { path });
        }
        Ok(Bytes::from(buffer))
    })
    .await
}

/// Runs blocking work off the runtime's own threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ClientError> + Send + 'static,
) -> Result<T, ClientError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ClientError::Malformed { what: format!("internal error: {error}") }),
    }
}

/// Stores a local file at an absolute path of the cluster's file system, making parents. Chunks
/// the cluster has do not travel, so an interrupted upload goes on where it stopped; with `reupload`
/// they do, which mends what the cluster has lost.
///
/// # Errors
/// `Io` or `Changed` for the local file; else as [`Cluster::namespace`].
#[allow(clippy::too_many_arguments, reason = "the attributes of a file")]
pub async fn upload_file(
    cluster: &Cluster,
    writer: &ChunkWriter,
    disk_path: &Path,
    dst: ByteName,
    mode: u32,
    caller: Caller,
    mtime_ns: i64,
    reupload: bool,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<UploadedFile, ClientError> {
    let chunk_bytes = cluster.view().await?.chunk_bytes;
    let path = disk_path.to_owned();
    let (_, extents) = blocking(move || hash_file(&path, chunk_bytes, &|_| {})).await?;
    let mut forced: HashSet<ChunkId> = HashSet::new();
    if reupload {
        forced.extend(extents.iter().filter_map(|extent| extent.id));
    }
    let mut uploaded = 0;
    for _ in 0..3 {
        let sent = send_missing(cluster, writer, disk_path, &extents, &forced, progress).await;
        let sent = match sent {
            Ok(sent) => sent,
            // Their group moved since they were acknowledged: their new places lack them.
            Err(ClientError::Missing { ids }) => {
                forced.extend(ids);
                continue;
            }
            Err(error) => return Err(error),
        };
        uploaded += sent.bytes;
        let content = cluster.seal_content(extents.clone(), &sent.receipts).await;
        let committed = match content {
            Ok(content) => {
                let ids = content.direct_chunks().into_iter().collect();
                let receipts = covering(&sent.receipts, &ids);
                let op = NamespaceOp::PutFile {
                    path: dst.clone(),
                    mode,
                    caller,
                    content,
                    mtime_ns: Some(mtime_ns),
                    receipts,
                };
                cluster.namespace(op).await.map(drop)
            }
            Err(error) => Err(error),
        };
        match committed {
            Ok(()) => {
                let bytes = extents.iter().map(|extent| u64::from(extent.len)).sum();
                return Ok(UploadedFile { bytes, bytes_uploaded: uploaded });
            }
            Err(ClientError::Missing { ids }) => forced.extend(ids),
            Err(error) => return Err(error),
        }
    }
    Err(ClientError::Missing { ids: forced.into_iter().collect() })
}

struct Sent {
    bytes: u64,
    receipts: Vec<Receipt>,
}

/// Sends those chunks that the cluster does not know, and those it said it misses.
async fn send_missing(
    cluster: &Cluster,
    writer: &ChunkWriter,
    path: &Path,
    extents: &[Extent],
    forced: &HashSet<ChunkId>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Sent, ClientError> {
    let ids: Vec<ChunkId> = extents.iter().filter_map(|extent| extent.id).collect();
    let known = cluster.known(&ids).await?;
    let mut have: HashSet<ChunkId> =
        ids.iter().zip(known).filter(|(_, known)| *known).map(|(id, _)| *id).collect();
    have.retain(|id| !forced.contains(id));
    let mut sent = Sent { bytes: 0, receipts: Vec::new() };
    let mut tickets = Vec::new();
    let mut unstaged = 0;
    let mut offset = 0;
    for extent in extents {
        let len = extent.len;
        if let Some(id) = extent.id.filter(|id| have.insert(*id)) {
            let bytes = read_chunk_again(path, offset, len, id).await?;
            tickets.push(writer.put_hashed(id, bytes).await?);
            sent.bytes += u64::from(len);
            unstaged += u64::from(len);
        }
        progress(u64::from(len));
        offset += u64::from(len);
        if unstaged >= STAGE_BYTES {
            let receipts = gather(std::mem::take(&mut tickets)).await?;
            stage(cluster, receipts).await?;
            unstaged = 0;
        }
    }
    sent.receipts = gather(tickets).await?;
    Ok(sent)
}

async fn gather(tickets: Vec<crate::PutTicket>) -> Result<Vec<Receipt>, ClientError> {
    let mut receipts: Vec<Receipt> = Vec::new();
    for ticket in tickets {
        for receipt in ticket.durable().await? {
            if !receipts.iter().any(|have| have.mac == receipt.mac) {
                receipts.push(receipt);
            }
        }
    }
    Ok(receipts)
}

/// Makes uploaded chunks known before anything refers to them.
pub(crate) async fn stage(cluster: &Cluster, receipts: Vec<Receipt>) -> Result<(), ClientError> {
    let mut seen = HashSet::new();
    let in_order = receipts.iter().flat_map(|receipt| receipt.chunks.iter().map(|(id, _)| *id));
    let ids: Vec<ChunkId> = in_order.filter(|id| seen.insert(*id)).collect();
    // Neighbours share their receipts.
    for some in ids.chunks(STAGE_CHUNKS) {
        let cover = covering(&receipts, &some.iter().copied().collect());
        let pages = some.iter().map(|id| AdmitPage { id: *id, kind: ObjectKind::Data }).collect();
        cluster.admit(pages, cover).await?;
    }
    Ok(())
}

/// Where a chunk can be read again on the local disk.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}
