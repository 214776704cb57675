//! The content of a file that is being changed.
//!
//! A map from offset to segment covers the file without gaps. A segment is a hole, a chunk the
//! cluster has, a buffer that is written to, or a frozen buffer on its way to the cluster. New
//! segments end at multiples of the cluster's chunk size; those a file came with keep their
//! lengths. There is no input, output or waiting here: when a step needs a chunk's old bytes or
//! room in memory it says so and changes nothing, and the caller comes again with them.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use atoll_client::ClientError;
use atoll_proto::ChunkId;
use atoll_proto::content::Extent;
use atoll_proto::receipt::Receipt;
use bytes::Bytes;
use tokio::sync::OnceCell;

use super::Store;
use super::budget::{Budget, Room};
use super::snapshot::{Piece, Snapshot};

/// The longest hole one extent describes, a multiple of every chunk size.
const HOLE_BYTES_MAX: u64 = 1 << 31;

/// The content of a changing file.
#[derive(Debug)]
pub(crate) struct Segments {
    map: BTreeMap<u64, Segment>,
    size: u64,
    chunk_bytes: u64,
}

#[derive(Debug)]
struct Segment {
    len: u64,
    data: Data,
}

#[derive(Debug)]
enum Data {
    Hole,
    Stored { id: ChunkId, receipts: Option<Arc<[Receipt]>> },
    Dirty(Buffer),
    Frozen(Arc<Upload>),
}

#[derive(Debug)]
struct Buffer {
    bytes: Vec<u8>,
    room: Room,
}

/// Bytes that are to become a chunk. Whoever needs the chunk sends it; it is sent once.
#[derive(Debug)]
pub(crate) struct Upload {
    start: u64,
    bytes: Bytes,
    sent: OnceCell<Sent>,
    _room: Room,
}

/// What came of an upload.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) id: ChunkId,
    pub(crate) receipts: Arc<[Receipt]>,
}

/// The outcome of a step.
#[derive(Debug)]
pub(crate) enum Step {
    /// So many bytes of the request are done. A segment that was written through to its end is
    /// frozen and may be sent now.
    Did(u64, Option<Arc<Upload>>),
    /// The old bytes of this chunk of this length are needed.
    Load(ChunkId, u32),
    /// So many bytes of room are needed.
    Room(u64),
}

/// The old bytes of a chunk, for a step that asked for them.
pub(crate) type Loaded = Option<(ChunkId, Bytes)>;

/// A segment of a [`Segments::plan`].
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) len: u64,
    pub(crate) data: PartData,
}

/// What a [`Part`] holds.
#[derive(Debug)]
pub(crate) enum PartData {
    Hole,
    Stored(ChunkId, Option<Arc<[Receipt]>>),
    Pending(Arc<Upload>),
}

impl Upload {
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub(crate) fn is_sent(&self) -> bool {
        self.sent.initialized()
    }

    /// Sends the bytes if nobody has, or waits for whoever is at it. After a failure the next
    /// caller tries again.
    pub(crate) async fn send<S: Store>(&self, store: &S) -> Result<Sent, ClientError> {
        let send = async {
            let (id, receipts) = store.put_chunk(self.bytes.clone()).await?;
            Ok(Sent { id, receipts: receipts.into() })
        };
        self.sent.get_or_try_init(|| send).await.cloned()
    }
}

/// Where a write lands: a segment that is there (or begins there, with length 0), and how far it
/// may reach.
struct Slot {
    start: u64,
    len: u64,
    limit: u64,
}

impl Segments {
    pub(crate) fn new(snapshot: &Snapshot, chunk_bytes: u64) -> Segments {
        let segment = |(start, extent): &(u64, Extent)| {
            let data = match extent.id {
                None => Data::Hole,
                Some(id) => Data::Stored { id, receipts: None },
            };
            (*start, Segment { len: u64::from(extent.len), data })
        };
        let map = snapshot.extents().iter().map(segment).collect();
        Segments { map, size: snapshot.size(), chunk_bytes }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Writes as much of `data` at `offset` as falls into one segment.
    pub(crate) fn write(
        &mut self,
        offset: u64,
        data: &[u8],
        loaded: &Loaded,
        budget: &Arc<Budget>,
    ) -> Step {
        if data.is_empty() {
            return Step::Did(0, None);
        }
        self.extend(offset);
        let slot = self.slot(offset);
        let count = (data.len() as u64).min(slot.limit - offset);
        let new_len = slot.len.max(offset + count - slot.start);
        let covered = offset == slot.start && count >= slot.len;
        let buffer = match self.buffer(&slot, new_len, covered, loaded, budget) {
            Ok(buffer) => buffer,
            Err(step) => return step,
        };
        // Offsets within a buffer fit memory.
        let (at, count) = ((offset - slot.start) as usize, count as usize);
        let over = count.min(buffer.bytes.len() - at);
        buffer.bytes[at..at + over].copy_from_slice(&data[..over]);
        buffer.bytes.extend_from_slice(&data[over..count]);
        let end = slot.start + new_len;
        self.size = self.size.max(end);
        let full = end < self.size || end >= self.grid_end(slot.start);
        let filled = offset + count as u64 == end && full;
        Step::Did(count as u64, filled.then(|| self.freeze(slot.start)).flatten())
    }

    /// Sets the length. Either all of it is done, or nothing.
    pub(crate) fn truncate(&mut self, size: u64, loaded: &Loaded, budget: &Arc<Budget>) -> Step {
        self.extend(size);
        if size == self.size {
            return Step::Did(0, None);
        }
        if let Some((&start, segment)) = self.map.range(..size).next_back()
            && start + segment.len > size
        {
            let keep = size - start;
            if matches!(segment.data, Data::Hole) {
                self.map.insert(start, Segment { len: keep, data: Data::Hole });
            } else {
                let slot = Slot { start, len: segment.len, limit: start + segment.len };
                let buffer = match self.buffer(&slot, slot.len, false, loaded, budget) {
                    Ok(buffer) => buffer,
                    Err(step) => return step,
                };
                buffer.bytes.truncate(keep as usize);
                buffer.room.shrink_to(keep);
                self.set_len(start, keep);
            }
        }
        self.map.split_off(&size);
        self.size = size;
        Step::Did(0, None)
    }

    /// Makes a range read as zeros, as far as it lies in one segment and in the file.
    pub(crate) fn zero(
        &mut self,
        offset: u64,
        len: u64,
        loaded: &Loaded,
        budget: &Arc<Budget>,
    ) -> Step {
        let Some((&start, segment)) = self.map.range(..=offset).next_back() else {
            return Step::Did(len, None);
        };
        let end = start + segment.len;
        if offset >= end {
            return Step::Did(len, None);
        }
        let stop = offset.saturating_add(len).min(end);
        if matches!(segment.data, Data::Hole) {
            return Step::Did(stop - offset, None);
        }
        if offset == start && stop == end {
            self.map.insert(start, Segment { len: end - start, data: Data::Hole });
            return Step::Did(stop - offset, None);
        }
        let slot = Slot { start, len: end - start, limit: end };
        match self.buffer(&slot, slot.len, false, loaded, budget) {
            Ok(buffer) => {
                buffer.bytes[(offset - start) as usize..(stop - start) as usize].fill(0);
                Step::Did(stop - offset, None)
            }
            Err(step) => step,
        }
    }

    /// The parts of a range, cut at the end of the file.
    pub(crate) fn pieces(&self, offset: u64, len: u64) -> Vec<Piece> {
        let end = offset.saturating_add(len).min(self.size);
        let first = self.map.range(..=offset).next_back().map_or(0, |(start, _)| *start);
        let mut pieces = Vec::new();
        for (start, segment) in self.map.range(first..) {
            if *start >= end {
                break;
            }
            let from = offset.max(*start) - start;
            let to = end.min(start + segment.len).saturating_sub(*start);
            if from >= to {
                continue;
            }
            // A segment with bytes is a chunk, whose length is a u32.
            let range = from as usize..to as usize;
            pieces.push(match &segment.data {
                Data::Hole => Piece::Zeros(to - from),
                Data::Dirty(buffer) => Piece::Bytes(Bytes::copy_from_slice(&buffer.bytes[range])),
                Data::Frozen(upload) => Piece::Bytes(upload.bytes.slice(range)),
                Data::Stored { id, .. } => Piece::Chunk {
                    id: *id,
                    len: segment.len as u32,
                    start: from as u32,
                    end: to as u32,
                },
            });
        }
        pieces
    }

    /// The whole chunk that begins at an offset, if there is one.
    pub(crate) fn chunk_at(&self, offset: u64) -> Option<Part> {
        let segment = self.map.get(&offset).filter(|segment| segment.len >= self.chunk_bytes)?;
        let data = match &segment.data {
            Data::Stored { id, receipts } => PartData::Stored(*id, receipts.clone()),
            Data::Frozen(upload) => PartData::Pending(upload.clone()),
            Data::Hole | Data::Dirty(_) => return None,
        };
        Some(Part { len: segment.len, data })
    }

    /// Where the segment that holds an offset ends.
    pub(crate) fn segment_end(&self, offset: u64) -> u64 {
        let found = self.map.range(..=offset).next_back();
        found.map_or(self.size, |(start, segment)| start + segment.len)
    }

    /// Puts a chunk that the cluster has behind the end.
    pub(crate) fn add_chunk(&mut self, len: u64, id: ChunkId, receipts: Option<Arc<[Receipt]>>) {
        self.map.insert(self.size, Segment { len, data: Data::Stored { id, receipts } });
        self.size += len;
    }

    /// As [`Snapshot::seek`].
    pub(crate) fn seek(&self, offset: u64, hole: bool) -> Option<u64> {
        if offset >= self.size {
            return None;
        }
        let first = self.map.range(..=offset).next_back().map_or(0, |(start, _)| *start);
        let is_hole = |segment: &Segment| matches!(segment.data, Data::Hole);
        match self.map.range(first..).find(|(_, segment)| is_hole(segment) == hole) {
            Some((start, _)) => Some(offset.max(*start)),
            None => hole.then_some(self.size),
        }
    }

    /// The content as of now. Every buffer is frozen, so that later writes do not touch it.
    pub(crate) fn plan(&mut self) -> Vec<Part> {
        self.freeze_all();
        let part = |segment: &Segment| Part {
            len: segment.len,
            data: match &segment.data {
                Data::Stored { id, receipts } => PartData::Stored(*id, receipts.clone()),
                Data::Frozen(upload) => PartData::Pending(upload.clone()),
                Data::Hole | Data::Dirty(_) => PartData::Hole,
            },
        };
        self.map.values().map(part).collect()
    }

    /// Freezes every buffer; returns what is not sent yet.
    pub(crate) fn freeze_all(&mut self) -> Vec<Arc<Upload>> {
        let dirty: Vec<u64> = self
            .map
            .iter()
            .filter(|(_, segment)| matches!(segment.data, Data::Dirty(_)))
            .map(|(start, _)| *start)
            .collect();
        for start in dirty {
            self.freeze(start);
        }
        let unsent = |segment: &Segment| match &segment.data {
            Data::Frozen(upload) if !upload.is_sent() => Some(upload.clone()),
            _ => None,
        };
        self.map.values().filter_map(unsent).collect()
    }

    /// Notes that the cluster has an upload, whose bytes can go now.
    pub(crate) fn sent(&mut self, upload: &Arc<Upload>, sent: &Sent) {
        if let Some(segment) = self.map.get_mut(&upload.start)
            && matches!(&segment.data, Data::Frozen(own) if Arc::ptr_eq(own, upload))
        {
            segment.data = Data::Stored { id: sent.id, receipts: Some(sent.receipts.clone()) };
        }
    }

    /// Notes that these chunks are part of a committed content: their receipts are used up.
    pub(crate) fn committed(&mut self, ids: &HashSet<ChunkId>) {
        for segment in self.map.values_mut() {
            if let Data::Stored { id, receipts } = &mut segment.data
                && ids.contains(id)
            {
                *receipts = None;
            }
        }
    }

    fn grid_end(&self, start: u64) -> u64 {
        (start / self.chunk_bytes + 1) * self.chunk_bytes
    }

    fn extend(&mut self, size: u64) {
        if size <= self.size {
            return;
        }
        let more = size - self.size;
        match self.map.last_entry() {
            Some(mut last) if matches!(last.get().data, Data::Hole) => last.get_mut().len += more,
            _ => {
                self.map.insert(self.size, Segment { len: more, data: Data::Hole });
            }
        }
        self.size = size;
    }

    /// Where a write at `offset`, at most the size, lands. A hole there is split, so that the
    /// slot is never longer than a chunk.
    fn slot(&mut self, offset: u64) -> Slot {
        let floor = offset / self.chunk_bytes * self.chunk_bytes;
        let found = if offset < self.size {
            self.map.range(..=offset).next_back()
        } else {
            let chunk_bytes = self.chunk_bytes;
            self.map.last_key_value().filter(|(start, segment)| match segment.data {
                Data::Hole => floor < offset,
                _ => (*start / chunk_bytes + 1) * chunk_bytes > offset,
            })
        };
        let (start, len) = match found {
            None => (offset, 0),
            Some((&start, segment)) => match segment.data {
                Data::Hole => {
                    let end = start + segment.len;
                    let from = floor.max(start);
                    let to = (floor + self.chunk_bytes).min(end);
                    self.split_hole(start, from, to, end);
                    (from, to - from)
                }
                _ => (start, segment.len),
            },
        };
        let end = start + len;
        let limit = if end == self.size { end.max(self.grid_end(start)) } else { end };
        Slot { start, len, limit }
    }

    fn split_hole(&mut self, start: u64, from: u64, to: u64, end: u64) {
        for (a, b) in [(start, from), (from, to), (to, end)] {
            if a < b {
                self.map.insert(a, Segment { len: b - a, data: Data::Hole });
            }
        }
    }

    /// The buffer of a slot, with room for `new_len` bytes. Its old bytes are in it, unless they
    /// will be covered by what is written now.
    fn buffer(
        &mut self,
        slot: &Slot,
        new_len: u64,
        covered: bool,
        loaded: &Loaded,
        budget: &Arc<Budget>,
    ) -> Result<&mut Buffer, Step> {
        let old = self.map.get(&slot.start).map(|segment| &segment.data);
        if let Some(Data::Dirty(_)) = old {
            let whole = self.chunk_bytes;
            let segment = self.map.get_mut(&slot.start).expect("it was there a line before");
            segment.len = new_len;
            let Data::Dirty(buffer) = &mut segment.data else {
                unreachable!("it was dirty a line before")
            };
            if !buffer.room.grow(new_len - slot.len) {
                segment.len = slot.len;
                return Err(Step::Room(new_len - slot.len));
            }
            reserve(&mut buffer.bytes, new_len, whole);
            return Ok(buffer);
        }
        let mut bytes = Vec::new();
        let room = |bytes| budget.try_take(bytes).ok_or(Step::Room(bytes));
        let room = match old {
            _ if covered => {
                let room = room(new_len)?;
                bytes.resize(slot.len as usize, 0);
                room
            }
            Some(Data::Stored { id, .. }) => match loaded {
                Some((have, old)) if have == id && old.len() as u64 == slot.len => {
                    let room = room(new_len)?;
                    bytes.reserve_exact(new_len as usize);
                    bytes.extend_from_slice(old);
                    room
                }
                // A segment with a chunk has the chunk's length.
                _ => return Err(Step::Load(*id, slot.len as u32)),
            },
            Some(Data::Frozen(upload)) => {
                let room = room(new_len)?;
                bytes.reserve_exact(new_len as usize);
                bytes.extend_from_slice(&upload.bytes);
                room
            }
            _ => {
                let room = room(new_len)?;
                bytes.resize(slot.len as usize, 0);
                room
            }
        };
        reserve(&mut bytes, new_len, self.chunk_bytes);
        let data = Data::Dirty(Buffer { bytes, room });
        self.map.insert(slot.start, Segment { len: new_len, data });
        match self.map.get_mut(&slot.start).map(|segment| &mut segment.data) {
            Some(Data::Dirty(buffer)) => Ok(buffer),
            _ => unreachable!("it was put there a line before"),
        }
    }

    fn set_len(&mut self, start: u64, len: u64) {
        if let Some(segment) = self.map.get_mut(&start) {
            segment.len = len;
        }
    }

    fn freeze(&mut self, start: u64) -> Option<Arc<Upload>> {
        let segment = self.map.get_mut(&start)?;
        let Data::Dirty(buffer) = std::mem::replace(&mut segment.data, Data::Hole) else {
            return None;
        };
        let upload = Arc::new(Upload {
            start,
            bytes: Bytes::from(buffer.bytes),
            sent: OnceCell::new(),
            _room: buffer.room,
        });
        segment.data = Data::Frozen(upload.clone());
        Some(upload)
    }
}

/// Makes room in a growing buffer: small ones double, larger ones get a whole chunk at once.
fn reserve(bytes: &mut Vec<u8>, len: u64, chunk_bytes: u64) {
    const SMALL: u64 = 64 << 10;
    if len > SMALL && (bytes.capacity() as u64) < len {
        let goal = len.max(chunk_bytes) as usize;
        bytes.reserve_exact(goal - bytes.len());
    }
}

/// The extents of these parts, in which every id is known by now.
pub(crate) fn extents(parts: impl Iterator<Item = (u64, Option<ChunkId>)>) -> Vec<Extent> {
    let mut extents = Vec::new();
    let mut hole = 0_u64;
    for (len, id) in parts {
        match id {
            None => hole += len,
            Some(_) => {
                push_hole(&mut extents, std::mem::take(&mut hole));
                extents.push(Extent { id, len: len as u32 });
            }
        }
    }
    push_hole(&mut extents, hole);
    extents
}

fn push_hole(extents: &mut Vec<Extent>, mut len: u64) {
    while len > 0 {
        let part = len.min(HOLE_BYTES_MAX);
        extents.push(Extent { id: None, len: part as u32 });
        len -= part;
    }
}

#[cfg(test)]
mod tests;
