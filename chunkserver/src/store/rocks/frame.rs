//! How the chunks of one batch lie in a segment file. Plain functions.
//!
//! ```text
//! header   magic [8], version u16 = 1, zero u16, count u32, blocks of the header u32, zero u32,
//!          count × (id [32], first block u32, len u32), zeros, checksum [32]
//! bodies   the bytes of each chunk, from a block boundary on, then zeros up to the next
//! ```
//! Integers are big-endian, a block is [`BLOCK`] bytes, blocks are counted from the start of the
//! file. The checksum is BLAKE3 over the header up to it. Nothing reads a header while the index
//! is in order: it lets chunks be found again when the index is lost.

use atoll_proto::{ChunkId, limits};

/// Bodies begin at multiples of this many bytes: what is deleted can be given back to the file
/// system without a remainder.
pub(super) const BLOCK: usize = 4096;

const MAGIC: &[u8; 8] = b"atollseg";
const VERSION: [u8; 2] = 1u16.to_be_bytes();
/// Bytes before the first entry.
const FIXED: usize = 24;
const ENTRY: usize = 40;
const CHECKSUM: usize = 32;
/// More blocks than a header ever has: a batch has at most two full bodies of a request.
const HEADER_BLOCKS_MAX: u32 = 64;

/// One chunk of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its name.
    pub(super) id: ChunkId,
    /// The block its bytes begin with.
    pub(super) block: u32,
    /// How many bytes it has.
    pub(super) len: u32,
}

/// A frame to be written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// The header, a whole number of blocks.
    pub(super) header: Vec<u8>,
    /// Where each chunk will be.
    pub(super) entries: Vec<Entry>,
    /// The block after the last.
    pub(super) end: u32,
}

/// Blocks that so many bytes take.
pub(super) fn blocks(len: u32) -> u32 {
    len.div_ceil(4096)
}

/// Blocks that the header for so many chunks takes.
fn header_blocks(count: usize) -> usize {
    (FIXED + count * ENTRY + CHECKSUM).div_ceil(BLOCK)
}

/// Blocks that a frame with chunks of these lengths takes.
pub(super) fn frame_blocks(lens: impl ExactSizeIterator<Item = u32>) -> u64 {
    header_blocks(lens.len()) as u64 + lens.map(|len| u64::from(blocks(len))).sum::<u64>()
}

impl Frame {
    /// A frame of these chunks that begins at `block`; `None` if block numbers do not suffice.
    pub(super) fn new(block: u32, chunks: &[(ChunkId, u32)]) -> Option<Self> {
        let header_blocks = header_blocks(chunks.len());
        let mut end = block.checked_add(u32::try_from(header_blocks).ok()?)?;
        let mut header = Vec::with_capacity(header_blocks * BLOCK);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&VERSION);
        header.extend_from_slice(&[0; 2]);
        header.extend_from_slice(&u32::try_from(chunks.len()).ok()?.to_be_bytes());
        header.extend_from_slice(&u32::try_from(header_blocks).ok()?.to_be_bytes());
        header.extend_from_slice(&[0; 4]);
        let mut entries = Vec::with_capacity(chunks.len());
        for (id, len) in chunks {
            let entry = Entry { id: *id, block: end, len: *len };
            header.extend_from_slice(entry.id.as_bytes());
            header.extend_from_slice(&entry.block.to_be_bytes());
            header.extend_from_slice(&entry.len.to_be_bytes());
            entries.push(entry);
            end = end.checked_add(blocks(*len))?;
        }
        header.resize(header_blocks * BLOCK - CHECKSUM, 0);
        let checksum = ChunkId::of(&header);
        header.extend_from_slice(checksum.as_bytes());
        Some(Self { header, entries, end })
    }

    /// How many blocks the header has that begins with this block; `None` if none does.
    pub(super) fn header_blocks(first: &[u8]) -> Option<u32> {
        let rest = first.strip_prefix(MAGIC)?.strip_prefix(&VERSION)?;
        let blocks = u32::from_be_bytes(*rest.get(6..)?.first_chunk()?);
        (1..=HEADER_BLOCKS_MAX).contains(&blocks).then_some(blocks)
    }

    /// The chunks that a whole header names, if it is one and begins at `block`. They lie one
    /// behind the other from the header's end on, as they were written: bytes of a chunk that look
    /// like a header are none elsewhere, and none that names blocks of its choice.
    pub(super) fn read(header: &[u8], block: u32) -> Option<Vec<Entry>> {
        let (covered, checksum) = header.split_last_chunk::<CHECKSUM>()?;
        if ChunkId::of(covered) != ChunkId(*checksum) {
            return None;
        }
        let count = u32::from_be_bytes(*covered.get(12..)?.first_chunk()?);
        let count = usize::try_from(count).ok()?;
        let (entries, _) = covered.get(FIXED..)?.as_chunks::<ENTRY>();
        let entries = entries.get(..count)?;
        let blocks_of_header = header_blocks(count);
        if header.len() != blocks_of_header * BLOCK {
            return None;
        }
        let mut next = block.checked_add(u32::try_from(blocks_of_header).ok()?)?;
        let mut read = Vec::with_capacity(count);
        for bytes in entries {
            let (id, rest) = bytes.split_first_chunk::<32>()?;
            let (at, len) = rest.split_first_chunk::<4>()?;
            let len = u32::from_be_bytes(len.try_into().ok()?);
            if u32::from_be_bytes(*at) != next || len > limits::CHUNK_BYTES_MAX {
                return None;
            }
            read.push(Entry { id: ChunkId(*id), block: next, len });
            next = next.checked_add(blocks(len))?;
        }
        Some(read)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frames_round_trip(
            block in 0..1u32 << 20,
            chunks in prop::collection::vec((any::<[u8; 32]>(), 0..=limits::CHUNK_BYTES_MAX), 0..300),
            flipped: prop::sample::Index,
        ) {
            let chunks: Vec<_> = chunks.into_iter().map(|(id, len)| (ChunkId(id), len)).collect();
            let frame = Frame::new(block, &chunks).unwrap();
            let taken = frame_blocks(chunks.iter().map(|(_, len)| *len));
            prop_assert_eq!(u64::from(frame.end - block), taken);
            let header_blocks = Frame::header_blocks(&frame.header[..BLOCK]).unwrap();
            prop_assert_eq!(header_blocks as usize * BLOCK, frame.header.len());
            prop_assert_eq!(&Frame::read(&frame.header, block).unwrap(), &frame.entries);
            if !chunks.is_empty() {
                prop_assert_eq!(Frame::read(&frame.header, block + 1), None);
            }
            let mut next = block + header_blocks;
            for (entry, (id, len)) in frame.entries.iter().zip(&chunks) {
                prop_assert_eq!(*entry, Entry { id: *id, block: next, len: *len });
                next += blocks(*len);
            }
            prop_assert_eq!(next, frame.end);
            let mut bad = frame.header.clone();
            let at = flipped.index(bad.len());
            bad[at] ^= 1;
            prop_assert_eq!(Frame::read(&bad, block), None);
        }

        #[test]
        fn noise_is_no_frame(noise: Vec<u8>) {
            prop_assert_eq!(Frame::read(&noise, 0), None);
            prop_assert_eq!(Frame::header_blocks(&noise), None);
        }
    }

    /// A header with a right checksum that says what its author wants.
    fn forge(header: &[u8], at: usize, value: u32) -> Vec<u8> {
        let mut forged = header[..header.len() - CHECKSUM].to_vec();
        forged[at..at + 4].copy_from_slice(&value.to_be_bytes());
        let checksum = ChunkId::of(&forged);
        forged.extend_from_slice(checksum.as_bytes());
        forged
    }

    #[test]
    fn a_forged_header_does_not_reach_beyond_its_frame() {
        let chunks = [(ChunkId([1; 32]), 9000), (ChunkId([2; 32]), 70_000)];
        let frame = Frame::new(10, &chunks).unwrap();
        assert_eq!(forge(&frame.header, FIXED + 36, 9000), frame.header);
        assert_eq!(Frame::read(&frame.header, 10), Some(frame.entries));
        let (block, len) = (FIXED + 32, FIXED + 36);
        for (at, value) in [
            (block, u32::MAX),
            (block, 0),
            (block, 12),
            (block + ENTRY, u32::MAX),
            (block + ENTRY, 15),
            (len, u32::MAX),
            (len, 12_289),
            (12, u32::MAX),
            (12, 100),
        ] {
            let forged = forge(&frame.header, at, value);
            assert_eq!(Frame::read(&forged, 10), None, "{value} at {at}");
        }
        assert_eq!(Frame::read(&frame.header, u32::MAX), None);
        let mut long = frame.header[..BLOCK - CHECKSUM].to_vec();
        long.resize(2 * BLOCK - CHECKSUM, 0);
        let checksum = ChunkId::of(&long);
        long.extend_from_slice(checksum.as_bytes());
        assert_eq!(Frame::read(&long, 10), None, "no header is longer than it has to be");
    }

    #[test]
    fn a_frame_past_the_last_block_number_is_refused() {
        assert_eq!(Frame::new(u32::MAX - 1, &[(ChunkId([1; 32]), 9000)]), None);
    }
}
