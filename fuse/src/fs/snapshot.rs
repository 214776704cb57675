//! The content of a file at one moment: what a reader keeps while it has the file open.

use atoll_proto::ChunkId;
use atoll_proto::content::Extent;
use bytes::Bytes;

/// An immutable content, ready for reading at any offset.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    /// Extents with the offset each starts at.
    extents: Vec<(u64, Extent)>,
    size: u64,
}

/// A part of a range that is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// So many zeros.
    Zeros(u64),
    /// Bytes that are at hand.
    Bytes(Bytes),
    /// A range of a chunk of `len` bytes.
    Chunk { id: ChunkId, len: u32, start: u32, end: u32 },
}

impl Snapshot {
    pub(crate) fn new(extents: Vec<Extent>) -> Snapshot {
        let mut size = 0_u64;
        let mut placed = Vec::with_capacity(extents.len());
        for extent in extents {
            placed.push((size, extent));
            size = size.saturating_add(u64::from(extent.len));
        }
        Snapshot { extents: placed, size }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Extents with their offsets, in order.
    pub(crate) fn extents(&self) -> &[(u64, Extent)] {
        &self.extents
    }

    /// The parts of a range, cut at the end of the file.
    pub(crate) fn pieces(&self, offset: u64, len: u64) -> Vec<Piece> {
        let end = offset.saturating_add(len).min(self.size);
        let first = self.extents.partition_point(|(at, e)| at + u64::from(e.len) <= offset);
        let mut pieces = Vec::new();
        for (at, extent) in &self.extents[first..] {
            if *at >= end {
                break;
            }
            // Both lie within the extent, whose length is a u32.
            let start = (offset.max(*at) - at) as u32;
            let stop = (end.min(at + u64::from(extent.len)) - at) as u32;
            pieces.push(match extent.id {
                None => Piece::Zeros(u64::from(stop - start)),
                Some(id) => Piece::Chunk { id, len: extent.len, start, end: stop },
            });
        }
        pieces
    }

    /// The first byte of data (or, with `hole`, of a hole) at or after `offset`. The end of the
    /// file counts as a hole.
    pub(crate) fn seek(&self, offset: u64, hole: bool) -> Option<u64> {
        if offset >= self.size {
            return None;
        }
        let first = self.extents.partition_point(|(at, e)| at + u64::from(e.len) <= offset);
        let found = self.extents[first..].iter().find(|(_, e)| e.id.is_none() == hole);
        match found {
            Some((at, _)) => Some(offset.max(*at)),
            None => hole.then_some(self.size),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cross_chunks_and_holes() {
        let id = ChunkId::of(b"abc");
        let snapshot = Snapshot::new(vec![
            Extent { id: Some(id), len: 3 },
            Extent { id: None, len: 4 },
            Extent { id: Some(id), len: 3 },
        ]);
        assert_eq!(snapshot.size(), 10);
        assert_eq!(
            snapshot.pieces(2, 100),
            vec![
                Piece::Chunk { id, len: 3, start: 2, end: 3 },
                Piece::Zeros(4),
                Piece::Chunk { id, len: 3, start: 0, end: 3 },
            ]
        );
        assert_eq!(snapshot.pieces(4, 2), vec![Piece::Zeros(2)]);
        assert!(snapshot.pieces(10, 1).is_empty());
        assert_eq!(snapshot.seek(1, true), Some(3));
        assert_eq!(snapshot.seek(4, false), Some(7));
        assert_eq!(snapshot.seek(8, true), Some(10));
        assert_eq!(snapshot.seek(10, true), None);
    }
}
