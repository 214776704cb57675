//! References on disk, so that any number of them can be counted in bounded memory.
//!
//! They are dealt into files by the first bits of the id; then one file after the other is sorted and
//! summed up, in the order in which the object table has its ids.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use atoll_proto::ChunkId;
use atoll_proto::master::ObjectKind;

use crate::operation::Child;

/// Files: by the first 7 bits of the id. A hundred million references are 30 MiB in each.
const PARTS: usize = 128;
/// Bytes of one reference.
const RECORD: usize = 37;
/// Bytes that are gathered before they are written to a file.
const BUFFER: usize = 16 << 10;

/// References being gathered.
#[derive(Debug)]
pub(super) struct Tally {
    directory: PathBuf,
    parts: Vec<BufWriter<File>>,
}

/// All references to one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counted {
    /// Which chunk, how long it is and what it is said to be. Of several lengths the greatest (a
    /// deploy does not know that of its root), and a page or list rather than bytes.
    pub(super) child: Child,
    /// How many refer to it.
    pub(super) refs: u64,
}

impl Tally {
    /// None yet; the directory must be there.
    pub(super) fn new(directory: &Path) -> io::Result<Tally> {
        let part = |n| Ok(BufWriter::with_capacity(BUFFER, File::create(part_path(directory, n))?));
        let parts = (0..PARTS).map(part).collect::<io::Result<Vec<_>>>()?;
        Ok(Tally { directory: directory.to_owned(), parts })
    }

    /// One more reference.
    pub(super) fn add(&mut self, child: &Child) -> io::Result<()> {
        let mut record = [0; RECORD];
        record[..32].copy_from_slice(child.id.as_bytes());
        record[32..36].copy_from_slice(&child.len.to_be_bytes());
        record[36] = match child.kind {
            ObjectKind::Data => 0,
            ObjectKind::Page => 1,
            ObjectKind::List => 2,
        };
        self.parts[usize::from(child.id.0[0] >> 1)].write_all(&record)
    }

    /// No more will come.
    pub(super) fn finish(mut self) -> io::Result<Sums> {
        self.parts.iter_mut().try_for_each(BufWriter::flush)?;
        Ok(Sums { directory: self.directory })
    }
}

/// References to be summed up.
#[derive(Debug)]
pub(super) struct Sums {
    directory: PathBuf,
}

impl Sums {
    /// The parts, in the order of ids: each with its smallest id.
    pub(super) fn parts(&self) -> impl Iterator<Item = (usize, ChunkId)> + use<> {
        (0..PARTS).zip(0u8..).map(|(part, n)| {
            let mut first = [0; 32];
            first[0] = n << 1;
            (part, ChunkId(first))
        })
    }

    /// The sums of one part, in the order of ids.
    pub(super) fn part(&self, part: usize) -> io::Result<Vec<Counted>> {
        let path = part_path(&self.directory, part);
        let mut input = BufReader::with_capacity(1 << 20, File::open(&path)?);
        let mut records: Vec<[u8; RECORD]> = Vec::new();
        let mut record = [0; RECORD];
        loop {
            match input.read_exact(&mut record) {
                Ok(()) => records.push(record),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(error),
            }
        }
        if fs::metadata(&path)?.len() != (records.len() * RECORD) as u64 {
            return Err(io::Error::other("a file of references ends within one"));
        }
        records.sort_unstable();
        let mut sums: Vec<Counted> = Vec::new();
        for record in &records {
            let child = child(record);
            match sums.last_mut().filter(|last| last.child.id == child.id) {
                Some(last) => {
                    last.refs += 1;
                    last.child.len = last.child.len.max(child.len);
                    if last.child.kind == ObjectKind::Data {
                        last.child.kind = child.kind;
                    }
                }
                None => sums.push(Counted { child, refs: 1 }),
            }
        }
        Ok(sums)
    }
}

fn child(record: &[u8; RECORD]) -> Child {
    let (mut id, mut len) = ([0; 32], [0; 4]);
    id.copy_from_slice(&record[..32]);
    len.copy_from_slice(&record[32..36]);
    let kind = match record[36] {
        0 => ObjectKind::Data,
        1 => ObjectKind::Page,
        _ => ObjectKind::List,
    };
    Child { id: ChunkId(id), len: u32::from_be_bytes(len), kind }
}

fn part_path(directory: &Path, part: usize) -> PathBuf {
    directory.join(format!("references-{part:03}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn sums_are_those_of_a_map_in_the_order_of_ids(
            numbers in proptest::collection::vec((0u8..50, 0u8..3), 0..300),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut tally = Tally::new(dir.path()).unwrap();
            let mut model: BTreeMap<ChunkId, u64> = BTreeMap::new();
            for (n, kind) in &numbers {
                let id = ChunkId::of(&[*n]);
                let kind = [ObjectKind::Data, ObjectKind::Page, ObjectKind::List]
                    [usize::from(*kind)];
                tally.add(&Child { id, len: u32::from(*n), kind }).unwrap();
                *model.entry(id).or_default() += 1;
            }
            let sums = tally.finish().unwrap();
            let mut all = Vec::new();
            let mut firsts = Vec::new();
            for (part, first) in sums.parts() {
                let counted = sums.part(part).unwrap();
                prop_assert!(counted.iter().all(|it| it.child.id >= first));
                firsts.push(first);
                all.extend(counted);
            }
            prop_assert!(firsts.is_sorted());
            let found: Vec<(ChunkId, u64)> =
                all.iter().map(|counted| (counted.child.id, counted.refs)).collect();
            prop_assert_eq!(found, model.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_page_is_told_from_bytes_and_lengths_are_filled_in() {
        let dir = tempfile::tempdir().unwrap();
        let mut tally = Tally::new(dir.path()).unwrap();
        let id = ChunkId::of(b"x");
        for (len, kind) in [(0, ObjectKind::Page), (9, ObjectKind::Data), (9, ObjectKind::Page)] {
            tally.add(&Child { id, len, kind }).unwrap();
        }
        let sums = tally.finish().unwrap();
        let part = usize::from(id.0[0] >> 1);
        let child = Child { id, len: 9, kind: ObjectKind::Page };
        assert_eq!(sums.part(part).unwrap(), [Counted { child, refs: 3 }]);
        let path = part_path(dir.path(), part);
        File::options().append(true).open(path).unwrap().write_all(b"x").unwrap();
        assert!(sums.part(part).is_err());
    }
}
