//! Whether RocksDB's write-ahead log has a hole.
//!
//! RocksDB reads that log up to the first record that is not whole and drops the rest without a word.
//! That is right for what a power cut leaves, the torn tail of what was never acknowledged, and wrong
//! for damage before records that are whole: those were acknowledged after what is damaged. It
//! has stricter modes, but they take a tail in whose midst bytes are missing for damage, and pass
//! over blocks of zeros and wrong lengths near the end. So whoever relies on every record asks here
//! before the database is opened. Nothing is written.
//!
//! A torn tail stays where it was for a while when the database was opened since: it then goes on in a
//! new file, with the number that comes next or with an empty batch. Whatever began so was decided
//! then, and is no hole.
//!
//! What cannot be told from a torn tail is damage to the very last records, and that a whole file is
//! missing.
//!
//! The format is that of RocksDB's wiki, "Write Ahead Log File Format": blocks of 32 KiB; a record
//! begins with a masked CRC-32C (four bytes, of kind and payload), the payload's length (two bytes)
//! and its kind; a long one is cut into fragments, and none crosses blocks.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

const BLOCK: u64 = 32 << 10;
const HEADER: usize = 7;
/// An empty batch.
const BATCH: usize = 12;
const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;
/// The only records of the Raft log that are not synced, hints of what is committed, take no more.
/// A power cut may lose one and keep the record behind it, which nobody was told of either.
const UNSYNCED_BYTES_MAX: u64 = 56;
/// CRC-32C (RFC 3720, appendix B.4), reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;
static TABLE: LazyLock<[u32; 256]> = LazyLock::new(table);

/// Where records are damaged that others follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hole {
    /// The file.
    pub(crate) file: PathBuf,
    /// The first byte of the damaged record.
    pub(crate) at: u64,
}

/// Looks through the log files of the database in a directory. Blocks, for as long as it takes to
/// read them.
pub(crate) fn hole(directory: &Path) -> io::Result<Option<Hole>> {
    let mut search = Search::default();
    let mut block = Vec::new();
    for file in files(directory)? {
        let mut input = File::open(&file)?;
        let mut at = 0;
        search.begin_file();
        loop {
            block.clear();
            input.by_ref().take(BLOCK).read_to_end(&mut block)?;
            search.read(&file, at, &block);
            if search.is_over() {
                return Ok(search.damage.map(|damage| damage.hole));
            }
            let len = block.len() as u64;
            at += len;
            search.before += len;
            if len < BLOCK {
                break;
            }
        }
    }
    Ok(None)
}

/// The log files, oldest first.
fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_suffix(".log")?.parse::<u64>().ok());
        files.extend(number.map(|number| (number, path)));
    }
    files.sort();
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

/// How far the files were looked through.
#[derive(Debug, Default)]
struct Search {
    /// Bytes before the current block, in all files.
    before: u64,
    /// Whether the fragments of a record are all there so far.
    within: bool,
    /// Nothing of the current file was found whole so far.
    fresh: bool,
    /// The number of the write that comes after the record that is being read, and after the last
    /// one that was whole before any damage.
    after: Option<u64>,
    next: Option<u64>,
    /// The first damage.
    damage: Option<Damage>,
}

#[derive(Debug)]
struct Damage {
    hole: Hole,
    /// Where it begins, in all files.
    from: u64,
    /// Where the first record behind it begins.
    to: Option<u64>,
    /// Whole records behind it.
    whole: u32,
}

impl Search {
    /// Whether it is certain that something is lost that was acknowledged.
    fn is_over(&self) -> bool {
        self.damage.as_ref().is_some_and(|damage| {
            let bytes = damage.to.map_or(0, |to| to - damage.from);
            damage.whole > 1 || (damage.whole == 1 && bytes > UNSYNCED_BYTES_MAX)
        })
    }

    /// No record goes on in another file.
    fn begin_file(&mut self) {
        (self.fresh, self.within) = (true, false);
    }

    /// Reads a block that begins here in its file.
    fn read(&mut self, file: &Path, at: u64, block: &[u8]) {
        let mut offset = 0;
        while let Some(rest) = block.get(offset..).filter(|rest| rest.len() >= HEADER) {
            if let Some((kind, len)) = record(rest) {
                let payload = rest.get(HEADER..len).unwrap_or_default();
                self.take(kind, payload, self.before + offset as u64);
                offset += len;
                continue;
            }
            self.within = false;
            let (at, from) = (at + offset as u64, self.before + offset as u64);
            let hole = || Hole { file: file.to_owned(), at };
            self.damage.get_or_insert_with(|| Damage { hole: hole(), from, to: None, whole: 0 });
            match behind(rest) {
                Some(len) => offset += len,
                None => return,
            }
        }
    }

    fn take(&mut self, kind: u8, payload: &[u8], from: u64) {
        let begins = kind == FULL || kind == FIRST;
        let ends = kind == FULL || (kind == LAST && self.within);
        if begins {
            let batch = batch(payload);
            let goes_on = batch.is_some_and(|(number, count)| {
                (count == 0 && payload.len() == BATCH) || self.next == Some(number)
            });
            if std::mem::take(&mut self.fresh) && goes_on {
                self.damage = None;
            }
            self.after = batch.map(|(number, count)| number.saturating_add(count.into()));
        }
        if ends && self.damage.is_none() {
            self.next = self.after;
        }
        self.within = kind == FIRST || (kind == MIDDLE && self.within);
        if let Some(damage) = &mut self.damage {
            if begins {
                damage.to.get_or_insert(from);
            }
            damage.whole += u32::from(ends);
        }
    }
}

/// The number of the first write of a batch, and how many it has: with these it begins.
fn batch(payload: &[u8]) -> Option<(u64, u32)> {
    let (number, rest) = payload.split_first_chunk()?;
    let (count, _) = rest.split_first_chunk()?;
    Some((u64::from_le_bytes(*number), u32::from_le_bytes(*count)))
}

/// The kind and the whole length of the record that begins here, if it is in order.
fn record(bytes: &[u8]) -> Option<(u8, usize)> {
    let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
    let [a, b, c, d, low, high, kind] = *header;
    let payload = rest.get(..usize::from(u16::from_le_bytes([low, high])))?;
    let sum = crc(&[kind], !0);
    let sum = !crc(payload, sum);
    let masked = sum.rotate_right(15).wrapping_add(0xa282_ead8);
    (masked == u32::from_le_bytes([a, b, c, d])).then_some((kind, HEADER + payload.len()))
}

/// How far behind a damaged record the next one begins, if there is one in the block.
fn behind(damaged: &[u8]) -> Option<usize> {
    // If its length may be right, a record within the payload is none: who wrote it chose the bytes.
    if let [_, _, _, _, low, high, FULL..=LAST, ..] = *damaged {
        let len = HEADER + usize::from(u16::from_le_bytes([low, high]));
        let next = damaged.get(len..);
        let ends = |rest: &[u8]| rest.len() < HEADER || rest.iter().all(|byte| *byte == 0);
        if next.is_some_and(|rest| ends(rest) || record(rest).is_some()) {
            return Some(len);
        }
    }
    (1..damaged.len()).find(|offset| {
        let rest = damaged.get(*offset..).unwrap_or_default();
        matches!(rest.get(HEADER - 1), Some(FULL..=LAST)) && record(rest).is_some()
    })
}

fn crc(bytes: &[u8], start: u32) -> u32 {
    let table = &*TABLE;
    bytes.iter().fold(start, |sum, byte| {
        let [low, ..] = sum.to_le_bytes();
        table[usize::from(low ^ byte)] ^ (sum >> 8)
    })
}

fn table() -> [u32; 256] {
    let mut table = [0; 256];
    for (byte, entry) in (0u32..).zip(&mut table) {
        *entry = (0..8).fold(byte, |sum, _| {
            let carry = if sum & 1 == 1 { POLYNOMIAL } else { 0 };
            (sum >> 1) ^ carry
        });
    }
    table
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::store::rocks::{Batch, Rocks, Tuning};
    use crate::store::{Order, Read as _};

    const RECORDS: u64 = 30;

    /// A database with records of this length, and the one log file it has.
    fn written(directory: &Path, bytes: usize) -> PathBuf {
        let rocks = Rocks::open(directory, Tuning::Log).unwrap();
        for number in 0..RECORDS {
            let mut batch = Batch::default();
            batch.put(&number.to_be_bytes(), &vec![b'x'; bytes]);
            rocks.write(batch, true).unwrap();
        }
        drop(rocks);
        let files = files(directory).unwrap();
        assert_eq!(files.len(), 1);
        files.into_iter().next().unwrap()
    }

    /// What a database that holds this log has. It is a copy: opening one changes it.
    fn keys(directory: &Path, log: &Path, bytes: &[u8]) -> Vec<u64> {
        let copy = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
        fs::write(copy.path().join(log.file_name().unwrap()), bytes).unwrap();
        let rocks = Rocks::open(copy.path(), Tuning::Log).unwrap();
        let mut keys = Vec::new();
        rocks
            .scan(&[0], &[0xff], Order::Ascending, &mut |key, _| {
                keys.push(u64::from_be_bytes(key.try_into().unwrap()));
                Ok(true)
            })
            .unwrap();
        keys
    }

    /// The power was cut once more before it was on the disk that the torn log is gone.
    fn again_beside_a_new_log(directory: &Path, log: &Path, torn: &[u8]) {
        for records in 0..3u64 {
            let copy = tempfile::tempdir().unwrap();
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
            }
            let back = copy.path().join(log.file_name().unwrap());
            fs::write(&back, torn).unwrap();
            let rocks = Rocks::open(copy.path(), Tuning::Log).unwrap();
            for number in 0..records {
                let mut batch = Batch::default();
                batch.put(&(RECORDS + number).to_be_bytes(), b"new");
                rocks.write(batch, true).unwrap();
            }
            drop(rocks);
            fs::write(&back, torn).unwrap();
            assert!(files(copy.path()).unwrap().len() > 1, "it goes on in another file");
            assert_eq!(hole(copy.path()).unwrap(), None, "{records}");
        }
    }

    #[test]
    fn the_checksum_is_the_one_of_the_rfc() {
        assert_eq!(!crc(&[0; 32], !0), 0x8a91_36aa);
        assert_eq!(!crc(b"123456789", !0), 0xe306_9283);
    }

    #[test]
    fn a_flipped_bit_before_whole_records_is_a_hole() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(hole(&dir.path().join("none")).unwrap(), None);
        let log = written(dir.path(), 100);
        assert_eq!(hole(dir.path()).unwrap(), None);
        let whole = fs::read(&log).unwrap();
        for at in 0..whole.len() / 2 {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&log, &bytes).unwrap();
            let found = hole(dir.path()).unwrap().unwrap();
            assert!(found.file == log && found.at <= at as u64, "{at}: {found:?}");
        }
        // So are bytes that are gone.
        let middle = whole.len() / 2;
        let mut bytes = whole.clone();
        bytes[middle - 500..middle].fill(0);
        fs::write(&log, &bytes).unwrap();
        assert!(hole(dir.path()).unwrap().is_some());
        bytes.drain(middle - 500..middle);
        fs::write(&log, &bytes).unwrap();
        assert!(hole(dir.path()).unwrap().is_some());
    }

    #[test]
    fn what_a_power_cut_leaves_is_none_and_all_before_is_there() {
        let dir = tempfile::tempdir().unwrap();
        // Also records that are cut into fragments.
        for bytes in [100, 70_000] {
            let dir = dir.path().join(bytes.to_string());
            let log = written(&dir, bytes);
            let whole = fs::read(&log).unwrap();
            let record = whole.len() / usize::try_from(RECORDS).unwrap();
            let last = whole.len() - record;
            // Records in fragments are not all of one length.
            let soon = if bytes == 100 { 3 } else { 12 };
            for cut in [last + soon, last + record / 3, last + record / 2, whole.len() - 1] {
                let mut short = whole.clone();
                short.truncate(cut);
                let mut zeros = short.clone();
                zeros.resize(whole.len() + 100_000, 0);
                // The end came to the disk, the middle did not.
                let mut torn = whole.clone();
                torn[last + record / 4..last + record / 2].fill(0);
                for bytes in [short, zeros, torn] {
                    fs::write(&log, &bytes).unwrap();
                    assert_eq!(hole(&dir).unwrap(), None);
                    let kept = keys(&dir, &log, &bytes);
                    assert_eq!(kept, (0..RECORDS - 1).collect::<Vec<u64>>());
                    again_beside_a_new_log(&dir, &log, &bytes);
                }
            }
        }
    }
}
