//! What is on the disk, on one page. Version [`FORMAT`].
//!
//! ```text
//! family      key                        value
//! chunks      pool u8, id [32]           the bytes of a chunk that is not in a segment file
//! index       pool u8, id [32]           version u8 = 2, live u8, body u8, len u32, epoch u64,
//!                                        at_ms u64: see Record; place u8 (0: in `chunks`, or
//!                                        nowhere; 1: segment), segment u32, block u32
//! buckets     pool u8, pg u16, number u8 digest [32], count u32: the chunks of the bucket that are
//!                                        live and present; none without any
//! lacking     pool u8, id [32]           empty: the chunk is live and not present
//! quarantine  at_ms u64, pool u8, id[32] empty: the chunk's bytes wait to be deleted since then
//! segments    segment u32                end u32, chunks u32, blocks u32: see Fill
//! holes       segment u32, block u32     len u32: deleted from the index, and not yet from the
//!                                        segment file
//! meta        'f'                        format: version u32 of this page
//!             'c'                        cluster id [16]
//!             'n'                        node id u64
//!             'e'                        fence: epoch u64, term u64; the highest ever heard
//!             'v'                        the last cluster view, as encoded by proto
//!             'o'                        order to scrub: number u64, heard_ms u64, done u64
//!             'x'                        erased u64: log index up to which no file has bytes of
//!                                        erased chunks
//!             'w'                        rewrite u8 = 1: some were erased from `chunks`, and may be
//!                                        in its files; 0, or nothing: none
//!             't'                        totals: 6 × u64, see Totals; closed u8: nothing was written
//!                                        since the store was closed
//!             'a'                        applied u64: position in the master's feed
//!             's', pg u16                scrubbed u64: ms when all of the group was verified
//! ```
//! Integers are big-endian. The pool byte is 0. An id starts with the 12 bits of its placement
//! group and the 8 bits of its bucket, so all chunks of a group, and of a bucket, are one range of
//! keys. Large chunks are in segment files: see [`super::frame`]. Everything that follows from a record changes in one write with it.

use atoll_proto::{ChunkId, Epoch, PgId};

use super::segments::Spot;
use crate::store::Meta;
use crate::store::record::{Body, Record};
use crate::store::tally::{BucketKey, Totals};

/// Version of the schema on this page.
pub const FORMAT: u32 = 2;
/// The only pool there is: plain replicas.
const POOL: u8 = 0;
/// Length of a key that names a chunk.
const KEY_BYTES: usize = 33;
/// Length of a value in `index`.
const ROW_BYTES: usize = 32;
const ROW_VERSION: u8 = 2;
/// The keys in `meta` that are not a [`Meta`].
pub(super) const TOTALS: &[u8] = b"t";
pub(super) const APPLIED: &[u8] = b"a";
const SCRUBBED: u8 = b's';

/// A part of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// Bytes of chunks.
    Chunks,
    /// Records.
    Index,
    /// Digests.
    Buckets,
    /// Chunks that are lacking.
    Lacking,
    /// Chunks to delete, by age.
    Quarantine,
    /// Segment files.
    Segments,
    /// What is to be deleted from them.
    Holes,
    /// Single values.
    Meta,
}

/// Where the bytes of a chunk are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In the database, if there are any.
    Database,
    /// In a segment file.
    Segment(Spot),
}

/// An entry of `index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    /// What is known of the chunk.
    pub(super) record: Record,
    /// Where its bytes are.
    pub(super) place: Place,
}

/// An entry of `segments`: how far a file is filled, and with what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Fill {
    /// The block after the last that was ever valid.
    pub(super) end: u32,
    /// Chunks that the index has there.
    pub(super) chunks: u32,
    /// The blocks they take.
    pub(super) blocks: u32,
}

impl Family {
    /// Every one.
    pub(super) const ALL: [Self; 8] = [
        Self::Chunks,
        Self::Index,
        Self::Buckets,
        Self::Lacking,
        Self::Quarantine,
        Self::Segments,
        Self::Holes,
        Self::Meta,
    ];

    /// Its name in the database.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Chunks => "chunks",
            Self::Index => "index",
            Self::Buckets => "buckets",
            Self::Lacking => "lacking",
            Self::Quarantine => "quarantine",
            Self::Segments => "segments",
            Self::Holes => "holes",
            Self::Meta => "meta",
        }
    }
}

/// The key of a chunk in `chunks`, `index` and `lacking`.
pub(super) fn chunk_key(id: &ChunkId) -> [u8; KEY_BYTES] {
    let mut key = [POOL; KEY_BYTES];
    key[1..].copy_from_slice(id.as_bytes());
    key
}

/// The id in such a key.
pub(super) fn key_chunk(key: &[u8]) -> Option<ChunkId> {
    match key.split_first() {
        Some((&POOL, id)) => id.try_into().ok().map(ChunkId),
        _ => None,
    }
}

/// A key that is not before that of any chunk of the group, and one that is behind all of them.
pub(super) fn group_range(pg: PgId) -> ([u8; 3], Vec<u8>) {
    let first = |pg: u16| {
        let [high, low] = (pg << 4).to_be_bytes();
        [POOL, high, low]
    };
    let end = if pg.0 >= 0xfff { vec![POOL + 1] } else { first(pg.0 + 1).to_vec() };
    (first(pg.0), end)
}

/// As [`group_range`], for one bucket.
pub(super) fn bucket_range((pg, number): BucketKey) -> ([u8; 4], Vec<u8>) {
    let first = |word: u32| {
        let [a, b, c, _] = (word << 12).to_be_bytes();
        [POOL, a, b, c]
    };
    let word = (u32::from(pg.0) << 8) | u32::from(number);
    let end = if word >= 0xf_ffff { vec![POOL + 1] } else { first(word + 1).to_vec() };
    (first(word), end)
}

/// The key in `buckets`.
pub(super) fn bucket_key((pg, number): BucketKey) -> [u8; 4] {
    let [high, low] = pg.0.to_be_bytes();
    [POOL, high, low, number]
}

/// What such a key names.
pub(super) fn key_bucket(key: &[u8]) -> Option<BucketKey> {
    match *key {
        [POOL, high, low, number] => Some((PgId(u16::from_be_bytes([high, low])), number)),
        _ => None,
    }
}

/// The key in `quarantine`.
pub(super) fn quarantine_key(at_ms: u64, id: &ChunkId) -> Vec<u8> {
    [&at_ms.to_be_bytes()[..], &chunk_key(id)].concat()
}

/// What such a key names.
pub(super) fn key_quarantine(key: &[u8]) -> Option<(u64, ChunkId)> {
    let (at_ms, id) = key.split_first_chunk()?;
    Some((u64::from_be_bytes(*at_ms), key_chunk(id)?))
}

/// The key in `meta` of when a group was scrubbed.
pub(super) fn scrubbed_key(pg: PgId) -> [u8; 3] {
    let [high, low] = pg.0.to_be_bytes();
    [SCRUBBED, high, low]
}

/// What such a key names.
pub(super) fn key_scrubbed(key: &[u8]) -> Option<PgId> {
    match *key {
        [SCRUBBED, high, low] => Some(PgId(u16::from_be_bytes([high, low]))),
        _ => None,
    }
}

/// The keys from which, and before which, [`key_scrubbed`] are.
pub(super) fn scrubbed_range() -> ([u8; 1], Vec<u8>) {
    ([SCRUBBED], vec![SCRUBBED + 1])
}

/// The value of [`TOTALS`]. It is in every change of records, so that the last one says whether
/// the store was closed after it.
pub(super) fn totals_value(totals: &Totals, closed: bool) -> Vec<u8> {
    let mut value = totals.encode();
    value.push(u8::from(closed));
    value
}

/// What such a value says.
pub(super) fn value_totals(value: &[u8]) -> Option<(Totals, bool)> {
    let (closed, totals) = value.split_last()?;
    let closed = match closed {
        0 => false,
        1 => true,
        _ => return None,
    };
    Some((Totals::decode(totals)?, closed))
}

/// A number as a value.
pub(super) fn decode_u64(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}

/// The key in `segments`.
pub(super) fn segment_key(segment: u32) -> [u8; 4] {
    segment.to_be_bytes()
}

/// What such a key names.
pub(super) fn key_segment(key: &[u8]) -> Option<u32> {
    key.try_into().ok().map(u32::from_be_bytes)
}

/// The key in `holes`.
pub(super) fn hole_key(spot: Spot) -> [u8; 8] {
    ((u64::from(spot.segment) << 32) | u64::from(spot.block)).to_be_bytes()
}

/// What such an entry names: where the hole begins, and the length of the chunk that was there.
pub(super) fn hole(key: &[u8], value: &[u8]) -> Option<(Spot, u32)> {
    let (segment, block) = key.split_first_chunk()?;
    let spot = Spot { segment: u32::from_be_bytes(*segment), block: key_segment(block)? };
    Some((spot, u32::from_be_bytes(value.try_into().ok()?)))
}

impl Row {
    pub(super) fn encode(&self) -> [u8; ROW_BYTES] {
        let mut out = [0; ROW_BYTES];
        let record = &self.record;
        out[0] = ROW_VERSION;
        out[1] = u8::from(record.live);
        out[2] = record.body.code();
        out[3..7].copy_from_slice(&record.len.to_be_bytes());
        out[7..15].copy_from_slice(&record.epoch.0.to_be_bytes());
        out[15..23].copy_from_slice(&record.at_ms.to_be_bytes());
        if let Place::Segment(spot) = self.place {
            out[23] = 1;
            out[24..].copy_from_slice(&hole_key(spot));
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; ROW_BYTES] = bytes.try_into().ok()?;
        let [ROW_VERSION, live, body, rest @ ..] = bytes else { return None };
        let live = match live {
            0 => false,
            1 => true,
            _ => return None,
        };
        let (len, rest) = rest.split_first_chunk()?;
        let (epoch, rest) = rest.split_first_chunk()?;
        let (at_ms, rest) = rest.split_first_chunk()?;
        let (segment, block) = rest.get(1..)?.split_first_chunk()?;
        let spot = Spot { segment: u32::from_be_bytes(*segment), block: key_segment(block)? };
        let place = match rest.first()? {
            0 if spot == (Spot { segment: 0, block: 0 }) => Place::Database,
            1 => Place::Segment(spot),
            _ => return None,
        };
        let record = Record {
            live,
            body: Body::from_code(*body)?,
            len: u32::from_be_bytes(*len),
            epoch: Epoch(u64::from_be_bytes(*epoch)),
            at_ms: u64::from_be_bytes(*at_ms),
        };
        Some(Self { record, place })
    }

    /// Where in the segments its bytes are, if that is where they are.
    pub(super) fn spot(&self) -> Option<Spot> {
        match self.place {
            Place::Segment(spot) if self.record.has_bytes() => Some(spot),
            Place::Segment(_) | Place::Database => None,
        }
    }
}

impl Fill {
    pub(super) fn encode(&self) -> Vec<u8> {
        [self.end, self.chunks, self.blocks].map(u32::to_be_bytes).concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (words, []) = bytes.as_chunks::<4>() else { return None };
        let words: &[[u8; 4]; 3] = words.try_into().ok()?;
        let [end, chunks, blocks] = words.map(u32::from_be_bytes);
        Some(Self { end, chunks, blocks })
    }
}

impl Meta {
    /// The key in `meta`.
    pub(super) fn key(self) -> &'static [u8] {
        match self {
            Self::Format => b"f",
            Self::Cluster => b"c",
            Self::Node => b"n",
            Self::Fence => b"e",
            Self::View => b"v",
            Self::Scrub => b"o",
            Self::Erased => b"x",
            Self::Rewrite => b"w",
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use atoll_proto::tree::bucket_of;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_round_trip(id: [u8; 32], at_ms: u64, word in 0..1u32 << 20, bytes: Vec<u8>) {
            let id = ChunkId(id);
            prop_assert_eq!(key_chunk(&chunk_key(&id)), Some(id));
            prop_assert_eq!(key_quarantine(&quarantine_key(at_ms, &id)), Some((at_ms, id)));
            let bucket = (PgId(u16::try_from(word >> 8).unwrap()), word.to_be_bytes()[3]);
            prop_assert_eq!(key_bucket(&bucket_key(bucket)), Some(bucket));
            prop_assert_eq!(key_scrubbed(&scrubbed_key(bucket.0)), Some(bucket.0));
            if let Some(id) = key_chunk(&bytes) {
                prop_assert_eq!(&chunk_key(&id)[..], &bytes[..]);
            }
        }

        #[test]
        fn ranges_hold_exactly_what_they_should(id: [u8; 32], pg in 0..4096u16, number: u8) {
            let id = ChunkId(id);
            let within = |from: &[u8], end: &[u8]| {
                let key = chunk_key(&id);
                from <= &key[..] && &key[..] < end
            };
            let (from, end) = group_range(id.pg());
            prop_assert!(within(&from, &end));
            let (from, end) = group_range(PgId(pg));
            prop_assert_eq!(within(&from, &end), id.pg() == PgId(pg));
            let (from, end) = bucket_range((id.pg(), bucket_of(&id)));
            prop_assert!(within(&from, &end));
            let (from, end) = bucket_range((id.pg(), number));
            prop_assert_eq!(within(&from, &end), number == bucket_of(&id));
        }

        #[test]
        fn older_comes_first_in_quarantine(a: u64, b: u64, id: [u8; 32], other: [u8; 32]) {
            let (first, second) = (quarantine_key(a, &ChunkId(id)), quarantine_key(b, &ChunkId(other)));
            if a != b {
                prop_assert_eq!(first < second, a < b);
            }
        }

        #[test]
        fn rows_round_trip(
            live: bool,
            body in 0..4usize,
            len: u32,
            epoch: u64,
            at_ms: u64,
            spot: Option<(u32, u32)>,
            bytes: Vec<u8>,
        ) {
            let record =
                Record { live, body: Body::ALL[body], len, epoch: Epoch(epoch), at_ms };
            let place = spot.map_or(Place::Database, |(segment, block)| {
                Place::Segment(Spot { segment, block })
            });
            let row = Row { record, place };
            prop_assert_eq!(Row::decode(&row.encode()), Some(row));
            if let Some(row) = Row::decode(&bytes) {
                prop_assert_eq!(&row.encode()[..], &bytes[..]);
            }
        }

        #[test]
        fn segments_round_trip(words: [u32; 5], bytes: Vec<u8>) {
            let [segment, block, end, chunks, blocks] = words;
            prop_assert_eq!(key_segment(&segment_key(segment)), Some(segment));
            let spot = Spot { segment, block };
            prop_assert_eq!(hole(&hole_key(spot), &end.to_be_bytes()), Some((spot, end)));
            let fill = Fill { end, chunks, blocks };
            prop_assert_eq!(Fill::decode(&fill.encode()), Some(fill));
            prop_assert_eq!(Fill::decode(&bytes).is_some(), bytes.len() == 12);
        }
    }

    #[test]
    fn meta_keys_differ() {
        let mut keys: Vec<&[u8]> = Meta::ALL.iter().map(|meta| meta.key()).collect();
        keys.extend([TOTALS, APPLIED, &[SCRUBBED]]);
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all);
    }
}
