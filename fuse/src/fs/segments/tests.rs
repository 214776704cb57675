//! Random changes of segments equal changes of a vector.

#![allow(clippy::unwrap_used, reason = "tests")]
use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const CHUNK: u64 = 8;

/// Segments with a store so simple that it fits a map.
struct Bed {
    segments: Segments,
    chunks: HashMap<ChunkId, Bytes>,
    budget: Arc<Budget>,
    model: Vec<u8>,
}

#[derive(Debug, Clone)]
enum Act {
    Write(u64, Vec<u8>),
    Truncate(u64),
    Zero(u64, u64),
    /// Send everything and start again from what is stored.
    Commit,
    /// Send everything, but go on.
    Send,
}

impl Bed {
    fn run(&mut self, mut step: impl FnMut(&mut Segments, &Loaded, &Arc<Budget>) -> Step) -> u64 {
        let mut loaded = None;
        loop {
            match step(&mut self.segments, &loaded, &self.budget) {
                Step::Did(count, _) => return count,
                Step::Load(id, len) => {
                    let bytes = self.chunks[&id].clone();
                    assert_eq!(bytes.len() as u64, u64::from(len));
                    loaded = Some((id, bytes));
                }
                Step::Room(_) => panic!("the budget is large enough"),
            }
        }
    }

    fn send(&mut self) -> Vec<Part> {
        let parts = self.segments.plan();
        for part in &parts {
            if let PartData::Pending(upload) = &part.data {
                assert_eq!(upload.bytes.len() as u64, part.len);
                let id = ChunkId::of(&upload.bytes);
                self.chunks.insert(id, upload.bytes.clone());
                self.segments.sent(upload, &Sent { id, receipts: Vec::new().into() });
            }
        }
        parts
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Write(offset, data) => {
                let mut done = 0;
                while done < data.len() {
                    let at = offset + done as u64;
                    done += self.run(|s, l, b| s.write(at, &data[done..], l, b)) as usize;
                }
                let end = *offset as usize + data.len();
                self.model.resize(self.model.len().max(end), 0);
                self.model[*offset as usize..end].copy_from_slice(data);
            }
            Act::Truncate(size) => {
                self.run(|s, l, b| s.truncate(*size, l, b));
                self.model.resize(*size as usize, 0);
            }
            Act::Zero(offset, len) => {
                let mut done = 0;
                while done < *len {
                    done += self.run(|s, l, b| s.zero(offset + done, len - done, l, b));
                }
                let end = ((offset + len) as usize).min(self.model.len());
                let start = (*offset as usize).min(end);
                self.model[start..end].fill(0);
            }
            Act::Commit => {
                let parts = self.send();
                let ids = parts.iter().map(|part| match &part.data {
                    PartData::Hole => (part.len, None),
                    PartData::Stored(id, _) => (part.len, Some(*id)),
                    PartData::Pending(upload) => (part.len, Some(ChunkId::of(&upload.bytes))),
                });
                let snapshot = Snapshot::new(extents(ids));
                drop(parts);
                assert_eq!(self.join(snapshot.pieces(0, u64::MAX)), self.model);
                self.segments = Segments::new(&snapshot, CHUNK);
                assert_eq!(self.budget.used(), 0);
            }
            Act::Send => drop(self.send()),
        }
    }

    fn join(&self, pieces: Vec<Piece>) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Zeros(len) => out.resize(out.len() + len as usize, 0),
                Piece::Bytes(bytes) => out.extend_from_slice(&bytes),
                Piece::Chunk { id, len, start, end } => {
                    assert_eq!(self.chunks[&id].len() as u32, len);
                    out.extend_from_slice(&self.chunks[&id][start as usize..end as usize]);
                }
            }
        }
        out
    }

    fn check(&self) {
        let mut at = 0;
        for (start, segment) in &self.segments.map {
            assert_eq!(*start, at, "segments leave no gap");
            assert!(segment.len > 0);
            if let Data::Dirty(buffer) = &segment.data {
                assert_eq!(buffer.bytes.len() as u64, segment.len);
            }
            at += segment.len;
        }
        assert_eq!(at, self.segments.size);
        assert_eq!(self.join(self.segments.pieces(0, u64::MAX)), self.model);
    }
}

fn act() -> impl Strategy<Value = Act> {
    let data = proptest::collection::vec(1_u8.., 1..30);
    prop_oneof![
        6 => (0..60_u64, data).prop_map(|(offset, data)| Act::Write(offset, data)),
        2 => (0..70_u64).prop_map(Act::Truncate),
        1 => (0..60_u64, 1..30_u64).prop_map(|(offset, len)| Act::Zero(offset, len)),
        1 => Just(Act::Commit),
        1 => Just(Act::Send),
    ]
}

proptest! {
    #[test]
    fn any_changes_equal_a_vector(
        foreign in proptest::collection::vec((any::<bool>(), 1..20_u32), 0..4),
        acts in proptest::collection::vec(act(), 1..40),
    ) {
        // The file comes with chunks of lengths that are not ours.
        let mut chunks = HashMap::new();
        let mut model = Vec::new();
        let mut extents = Vec::new();
        for (hole, len) in foreign {
            let bytes = Bytes::from(vec![if hole { 0 } else { 7 }; len as usize]);
            let id = ChunkId::of(&bytes);
            model.extend_from_slice(&bytes);
            extents.push(Extent { id: (!hole).then_some(id), len });
            chunks.insert(id, bytes);
        }
        let segments = Segments::new(&Snapshot::new(extents), CHUNK);
        let mut bed = Bed { segments, chunks, budget: Budget::new(1 << 20), model };
        bed.check();
        for act in acts {
            bed.act(&act);
            bed.check();
        }
    }
}

#[test]
fn a_sequential_writer_freezes_whole_chunks_only() {
    let budget = Budget::new(1 << 20);
    let mut segments = Segments::new(&Snapshot::default(), CHUNK);
    let mut frozen = 0;
    for at in 0..20 {
        if let Step::Did(1, Some(upload)) = segments.write(at, b"x", &None, &budget) {
            assert_eq!(upload.bytes.len() as u64, CHUNK);
            frozen += 1;
        }
    }
    assert_eq!(frozen, 2);
    assert_eq!(segments.plan().len(), 3);
}

#[test]
fn a_full_budget_changes_nothing() {
    let budget = Budget::new(4);
    let mut segments = Segments::new(&Snapshot::default(), CHUNK);
    assert!(matches!(segments.write(0, b"abcd", &None, &budget), Step::Did(4, None)));
    assert!(matches!(segments.write(4, b"e", &None, &budget), Step::Room(1)));
    assert_eq!(segments.size(), 4);
    assert_eq!(segments.pieces(0, 9), vec![Piece::Bytes(Bytes::from_static(b"abcd"))]);
}

#[test]
fn long_holes_stay_cheap() {
    let budget = Budget::new(1 << 20);
    let mut segments = Segments::new(&Snapshot::default(), CHUNK);
    assert!(matches!(segments.write(1 << 40, b"x", &None, &budget), Step::Did(1, None)));
    assert!(budget.used() <= CHUNK);
    assert_eq!(segments.seek(0, false), Some(1 << 40));
    assert!(matches!(segments.truncate(1 << 41, &None, &budget), Step::Did(..)));
    assert_eq!(segments.seek((1 << 40) + 8, true), Some((1 << 40) + 8));
}
