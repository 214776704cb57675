//! Damage to what a node has on its disk: bits, lengths, whole files, the whole directory.
//!
//! Files are told apart by what every RocksDB directory has and by how nodes name their own; which
//! of them are hit, and where, comes from a seed.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use serde::{Deserialize, Serialize};

use crate::seed;

/// How chunkservers name the note of whose data theirs are, and its copy.
const MARKERS: [&str; 2] = ["IDENTITY", "IDENTITY.copy"];

/// Where in a file bits are turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Offset {
    /// So many bytes from the start.
    FromStart(u64),
    /// So many bytes before the end.
    FromEnd(u64),
    /// In the middle.
    Middle,
}

impl Offset {
    fn within(self, length: u64) -> Option<u64> {
        let at = match self {
            Self::FromStart(at) => at,
            Self::FromEnd(back) => length.checked_sub(back)?,
            Self::Middle => length / 2,
        };
        (at < length).then_some(at)
    }
}

/// Which files are hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// RocksDB's sorted tables: the index.
    Sst,
    /// RocksDB's blob files: payloads.
    Blob,
    /// Append-only files of payloads.
    Segment,
    /// RocksDB's write-ahead logs.
    Wal,
    /// RocksDB's `MANIFEST-…` and `CURRENT`.
    Manifest,
    /// The node's note of whose data these are, and its copy, if it keeps them.
    Marker,
    /// Any file but locks and what RocksDB logs for people.
    Any,
}

impl Target {
    fn takes(self, name: &str) -> bool {
        let ends = |ending: &str| name.ends_with(ending);
        match self {
            Self::Sst => ends(".sst"),
            Self::Blob => ends(".blob"),
            Self::Segment => ends(".seg") || ends(".segment"),
            Self::Wal => ends(".log") && !name.starts_with("LOG"),
            Self::Manifest => name.starts_with("MANIFEST-") || name == "CURRENT",
            Self::Marker => MARKERS.contains(&name),
            Self::Any => name != "LOCK" && !name.starts_with("LOG"),
        }
    }
}

/// What happens to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Harm {
    /// So many bits are turned, anywhere.
    FlipBits {
        /// How many.
        bits: u32,
    },
    /// The end is cut off, from anywhere.
    Truncate,
    /// It is gone.
    Delete,
}

/// How many of the files are hit; at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spare {
    /// All are hit but none spared.
    None,
    /// Half of them.
    Half,
    /// All are spared but one.
    AllButOne,
}

/// Harms files; says which and how. Where there are none of the sort, as no log after an orderly
/// stop, any are as good.
///
/// One of a node's markers is not deleted if the other is: of chunks beside which there never was a
/// marker a node has to say that they are not its own, and no disk that fails looks like that.
///
/// # Errors
/// When there is no file with anything in it.
pub fn damage(
    data: &Path,
    target: Target,
    harm: Harm,
    spare: Spare,
    seed: u64,
) -> Result<Vec<String>> {
    let all = below(data)?;
    let of = |target: Target| -> Vec<(PathBuf, u64)> {
        let takes =
            |path: &Path| target.takes(&path.file_name().unwrap_or_default().to_string_lossy());
        all.iter().filter(|(path, length)| *length > 0 && takes(path)).cloned().collect()
    };
    let mut files = of(target);
    if files.is_empty() {
        files = of(Target::Any);
    }
    ensure!(!files.is_empty(), "no file in {}", data.display());
    // From the directory's order, which differs from run to run, to one of the seed's.
    files.sort();
    let mut rng = seed::rng(seed);
    files.shuffle(&mut rng);
    let count = match spare {
        Spare::None => files.len(),
        Spare::Half => files.len().div_ceil(2),
        Spare::AllButOne => 1,
    };
    files.truncate(count);
    if matches!(harm, Harm::Delete) {
        spare_a_marker(data, &all, &mut files);
    }
    files.iter().map(|(path, length)| hurt(path, *length, harm, &mut rng)).collect()
}

fn spare_a_marker(data: &Path, all: &[(PathBuf, u64)], files: &mut Vec<(PathBuf, u64)>) {
    let markers = MARKERS.map(|name| data.join(name));
    let mut there = all.iter().filter(|(path, _)| markers.contains(path));
    let all_hit = there.all(|marker| files.contains(marker));
    let first = files.iter().position(|(path, _)| markers.contains(path));
    if let Some(first) = first.filter(|_| all_hit && files.len() > 1) {
        files.remove(first);
    }
}

fn hurt(path: &Path, length: u64, harm: Harm, rng: &mut StdRng) -> Result<String> {
    let shown = path.display();
    match harm {
        Harm::FlipBits { bits } => {
            let file = fs::File::options().read(true).write(true).open(path)?;
            let mut places = Vec::new();
            for _ in 0..bits {
                let place = rng.random_range(0..length);
                flip(&file, place, rng.random_range(0..8))?;
                places.push(place);
            }
            file.sync_all()?;
            Ok(format!("bits turned in {shown} of {length} bytes at {places:?}"))
        }
        Harm::Truncate => {
            let left = rng.random_range(0..length);
            let file = fs::File::options().write(true).open(path)?;
            file.set_len(left)?;
            file.sync_all()?;
            Ok(format!("{shown} cut from {length} to {left} bytes"))
        }
        Harm::Delete => {
            fs::remove_file(path)?;
            Ok(format!("{shown} of {length} bytes deleted"))
        }
    }
}

/// Turns the bits of this place in each file; at least one file must be long enough.
///
/// # Errors
/// When there is no such file.
pub(super) fn corrupt(data: &Path, name_contains: &str, at: Offset) -> Result<()> {
    let mut turned = 0;
    for (path, length) in below(data)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let (true, Some(place)) = (name.contains(name_contains), at.within(length)) else {
            continue;
        };
        let file = fs::File::options().read(true).write(true).open(&path)?;
        flip(&file, place, 0)?;
        file.sync_all()?;
        turned += 1;
    }
    ensure!(turned > 0, "no file named *{name_contains}* in {}", data.display());
    Ok(())
}

fn flip(file: &fs::File, place: u64, bit: u32) -> Result<()> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, place)?;
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, place)?;
    Ok(())
}

/// Deletes everything in a directory, which stays.
///
/// # Errors
/// Of the disk.
pub(super) fn wipe(data: &Path) -> Result<()> {
    for entry in fs::read_dir(data).with_context(|| format!("wipe {}", data.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    fs::File::open(data)?.sync_all()?;
    Ok(())
}

/// Where these bytes stand in the files below a directory: file and offset. Files that vanish
/// meanwhile, as under a running node, are passed over.
///
/// # Errors
/// When the directory cannot be listed.
pub fn find(data: &Path, needle: &[u8]) -> Result<Vec<(PathBuf, u64)>> {
    let first = *needle.first().context("something to look for")?;
    let mut found = Vec::new();
    for (path, _) in below(data)? {
        let Ok(bytes) = fs::read(&path) else { continue };
        let starts = bytes.iter().enumerate().filter(|(_, byte)| **byte == first);
        let hits = starts.filter(|(at, _)| bytes[*at..].starts_with(needle));
        found.extend(hits.map(|(at, _)| (path.clone(), at as u64)));
    }
    Ok(found)
}

/// Turns one bit of a byte of a file.
///
/// # Errors
/// Of the disk.
pub fn turn_bit(path: &Path, place: u64) -> Result<()> {
    let file = fs::File::options().read(true).write(true).open(path)?;
    flip(&file, place, 0)?;
    Ok(file.sync_all()?)
}

/// Every file below a directory, with its length. What vanishes meanwhile is left out.
pub(crate) fn below(data: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    let mut queue = vec![data.to_owned()];
    while let Some(directory) = queue.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(_) if directory != data => continue,
            Err(error) => {
                return Err(error).with_context(|| format!("list {}", directory.display()));
            }
        };
        for entry in entries {
            let entry = entry?;
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                queue.push(entry.path());
            } else if meta.is_file() {
                found.push((entry.path(), meta.len()));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn ones(path: &Path) -> u32 {
        fs::read(path).unwrap().iter().map(|byte| byte.count_ones()).sum()
    }

    #[test]
    fn exactly_one_bit_is_turned() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("sub")).unwrap();
        let path = directory.path().join("sub/7.blob");
        fs::write(&path, [0; 100]).unwrap();
        corrupt(directory.path(), ".blob", Offset::Middle).unwrap();
        assert_eq!((ones(&path), fs::read(&path).unwrap()[50]), (1, 1));
        assert!(corrupt(directory.path(), ".blob", Offset::FromStart(100)).is_err());
        assert!(corrupt(directory.path(), ".sst", Offset::Middle).is_err());
    }

    #[test]
    fn any_file_may_be_a_marker_but_not_both_are_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::create_dir(path("chunks")).unwrap();
        let left = |harm, seed| {
            for name in ["IDENTITY", "IDENTITY.copy", "LOCK", "chunks/1.sst"] {
                fs::write(path(name), [0; 64]).unwrap();
            }
            damage(directory.path(), Target::Any, harm, Spare::None, seed).unwrap();
            MARKERS.iter().filter(|name| path(name).exists() && ones(&path(name)) == 0).count()
        };
        for seed in 0..8 {
            assert_eq!(left(Harm::Delete, seed), 1);
            assert!(path("LOCK").exists() && !path("chunks/1.sst").exists());
            assert_eq!(left(Harm::FlipBits { bits: 1 }, seed), 0);
        }
    }

    #[test]
    fn the_seed_chooses_half_of_the_files_of_one_sort() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let fresh = || {
            for number in 0..9 {
                fs::write(path(&format!("{number}.sst")), [0; 64]).unwrap();
            }
            fs::write(path("000012.log"), [0; 64]).unwrap();
            fs::write(path("LOG"), [0; 64]).unwrap();
        };
        let run = |harm, seed| {
            fresh();
            damage(directory.path(), Target::Sst, harm, Spare::Half, seed).unwrap()
        };
        let first = run(Harm::FlipBits { bits: 1 }, 1);
        assert_eq!(first.len(), 5);
        let hit: u32 = (0..9).map(|number| ones(&path(&format!("{number}.sst")))).sum();
        assert_eq!((hit, ones(&path("000012.log"))), (5, 0));
        assert_eq!(first, run(Harm::FlipBits { bits: 1 }, 1));
        assert_ne!(first, run(Harm::FlipBits { bits: 1 }, 2));
        run(Harm::Delete, 1);
        let left = (0..9).filter(|number| path(&format!("{number}.sst")).exists()).count();
        assert_eq!(left, 4);
        let cut = damage(directory.path(), Target::Wal, Harm::Truncate, Spare::None, 3).unwrap();
        assert_eq!(cut.len(), 1);
        assert!(fs::metadata(path("000012.log")).unwrap().len() < 64);
        let other = damage(directory.path(), Target::Blob, Harm::Truncate, Spare::AllButOne, 1);
        assert_eq!(other.unwrap().len(), 1, "none of the sort: any other");
        fs::write(path("9.sst"), b"..needle..needle").unwrap();
        let hits = find(directory.path(), b"needle").unwrap();
        assert_eq!(hits, [(path("9.sst"), 2), (path("9.sst"), 10)]);
        turn_bit(&path("9.sst"), 2).unwrap();
        assert_eq!(find(directory.path(), b"needle").unwrap().len(), 1);
        wipe(directory.path()).unwrap();
        assert!(below(directory.path()).unwrap().is_empty());
        assert!(damage(directory.path(), Target::Any, Harm::Delete, Spare::Half, 1).is_err());
    }
}
