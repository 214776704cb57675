//! Trees of files: made from a seed, written, read back, compared.
//!
//! A tree holds what can go wrong with names and sizes, so that every test that serves one tests
//! that too.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use rand::seq::IndexedRandom as _;

use crate::seed;

const MIB: usize = 1 << 20;

/// Names that break careless code: each is a file below the root.
const NASTY_NAMES: &[&[u8]] = &[
    b"with space.txt",
    b"hash#fragment.html",
    b"question?mark.html",
    b"percent%41.txt",
    b"percent%.txt",
    b"plus+and&amp;.txt",
    b"new\nline.txt",
    b"tab\there.txt",
    b"quote'and\"double.txt",
    b"back\\slash.txt",
    b"not-utf8-\xff\xfe.bin",
    b"half-utf8-\xc3.txt",
    "ünïcödé-日本語-🏝.txt".as_bytes(),
    b"semi;colon:at@.txt",
    b"brackets[1]{2}(3).txt",
    b"-starts-with-dash",
    b"~tilde",
    b"...",
    b"no-extension",
    b"UPPER.TXT",
    b"upper.txt",
    b"dir with space/inner file.html",
    b"a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/deep.txt",
    b"dir.html/file",
    b"same",
    b"same2/same",
    b"same.html",
];

/// Sizes around the chunk's: a file is cut at exact multiples of 1 MiB.
const NASTY_SIZES: &[(&str, usize)] = &[
    ("sizes/empty.bin", 0),
    ("sizes/one.bin", 1),
    ("sizes/chunk-minus-1.bin", MIB - 1),
    ("sizes/chunk.bin", MIB),
    ("sizes/chunk-plus-1.bin", MIB + 1),
    ("sizes/two-chunks.bin", 2 * MIB),
    ("sizes/three-and-a-half.bin", 3 * MIB + MIB / 2),
];

/// Files by path below the root. Directories exist only as parts of paths.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree {
    /// Path, with `/` between names, to content.
    pub files: BTreeMap<Vec<u8>, Bytes>,
}

impl Tree {
    /// All nasty names and sizes, an `index.html` and a `404.html`, and ordinary files up to
    /// `count` in all. The same seed makes the same tree.
    pub fn generate(seed: u64, count: usize) -> Self {
        let mut tree = Self::ordinary(seed, 0);
        let mut rng = seed::rng(seed);
        for name in NASTY_NAMES {
            let mut content = name.to_vec();
            content.extend_from_slice(&random(&mut rng, 300));
            tree.files.insert(name.to_vec(), content.into());
        }
        tree.files.insert([vec![b'n'; 250], b".txt".to_vec()].concat(), "long name".into());
        for (name, size) in NASTY_SIZES {
            tree.files.insert(name.as_bytes().to_vec(), random(&mut rng, *size));
        }
        let missing = count.saturating_sub(tree.files.len());
        tree.add_ordinary(&mut rng, missing);
        tree
    }

    /// A small site: `index.html`, `404.html`, `version.txt`, and `count` files of up to 20 KiB.
    pub fn ordinary(seed: u64, count: usize) -> Self {
        let mut tree = Self::default();
        tree.put("index.html", "<!doctype html><title>home</title><h1>home</h1>\n");
        tree.put("404.html", "<!doctype html><title>404</title><h1>nothing here</h1>\n");
        tree.put("version.txt", "0");
        tree.add_ordinary(&mut seed::rng(seed), count);
        tree
    }

    fn add_ordinary(&mut self, rng: &mut impl rand::Rng, count: usize) {
        const ENDINGS: [&str; 6] = ["html", "css", "js", "png", "txt", "json"];
        for number in 0..count {
            let directory = rng.random_range(0..8);
            let ending = ENDINGS.choose(rng).expect("there are endings");
            let size = rng.random_range(0..20_000);
            let content = random(rng, size);
            let path = format!("part-{directory}/page-{number}.{ending}");
            self.files.insert(path.into_bytes(), content);
        }
        for directory in 0..8 {
            let path = format!("part-{directory}/index.html");
            if count > 0 {
                self.put(&path, format!("<!doctype html><h1>part {directory}</h1>\n"));
            }
        }
    }

    /// Adds or replaces a file.
    pub fn put(&mut self, path: &str, content: impl Into<Bytes>) {
        self.files.insert(path.as_bytes().to_vec(), content.into());
    }

    /// The content of a file.
    pub fn content(&self, path: &str) -> Option<&Bytes> {
        self.files.get(path.as_bytes())
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|content| content.len() as u64).sum()
    }

    /// Writes it below a directory, which is made.
    ///
    /// # Errors
    /// Of the disk.
    pub fn write(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)?;
        for (path, content) in &self.files {
            let full = directory.join(OsStr::from_bytes(path));
            if let Some(parent) = full.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(&full, content).with_context(|| format!("write {}", full.display()))?;
        }
        Ok(())
    }

    /// Reads everything below a directory. Only files and directories may be there.
    ///
    /// # Errors
    /// Of the disk, and when there is something else.
    pub fn read(directory: &Path) -> Result<Self> {
        let mut tree = Self::default();
        let mut queue: Vec<PathBuf> = vec![PathBuf::new()];
        while let Some(relative) = queue.pop() {
            let full = directory.join(&relative);
            let entries =
                fs::read_dir(&full).with_context(|| format!("list {}", full.display()))?;
            for entry in entries {
                let entry = entry?;
                let path = relative.join(entry.file_name());
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    queue.push(path);
                    continue;
                }
                ensure!(kind.is_file(), "{} is neither file nor directory", path.display());
                let content = fs::read(entry.path())
                    .with_context(|| format!("read {}", entry.path().display()))?;
                tree.files.insert(path.into_os_string().into_vec(), content.into());
            }
        }
        Ok(tree)
    }

    /// How another tree differs, a line per path; empty when they are equal.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for (path, content) in &self.files {
            let shown = path.escape_ascii();
            match other.files.get(path) {
                None => lines.push(format!("{shown}: missing")),
                Some(found) if found != content => lines.push(format!(
                    "{shown}: {} bytes expected, {} found, first difference at {:?}",
                    content.len(),
                    found.len(),
                    content.iter().zip(found).position(|(a, b)| a != b)
                )),
                Some(_) => {}
            }
        }
        let extra = other.files.keys().filter(|path| !self.files.contains_key(*path));
        lines.extend(extra.map(|path| format!("{}: unexpected", path.escape_ascii())));
        lines
    }

    /// Fails with the differences, if there are any.
    ///
    /// # Errors
    /// When there are.
    pub fn ensure_equals(&self, found: &Self, what: &str) -> Result<()> {
        let lines = self.differences(found);
        ensure!(lines.is_empty(), "{what}: {} differences:\n{}", lines.len(), lines.join("\n"));
        Ok(())
    }

    /// One hash of all names and contents.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (path, content) in &self.files {
            hasher.update(&(path.len() as u64).to_le_bytes());
            hasher.update(path);
            hasher.update(&(content.len() as u64).to_le_bytes());
            hasher.update(content);
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// So many random bytes.
pub fn random(rng: &mut impl rand::Rng, size: usize) -> Bytes {
    let mut bytes = vec![0; size];
    rng.fill_bytes(&mut bytes);
    bytes.into()
}

/// The path of a URL that asks for this file: everything but unreserved characters and `/` is
/// percent-encoded.
pub fn url_path(path: &[u8]) -> String {
    let mut url = String::from("/");
    for byte in path {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(byte) {
            url.push(char::from(*byte));
        } else {
            write!(url, "%{byte:02X}").expect("a String takes what is written");
        }
    }
    url
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_tree_survives_the_disk_and_depends_on_its_seed() {
        let tree = Tree::generate(7, 60);
        assert_eq!(tree, Tree::generate(7, 60));
        assert_ne!(tree.digest(), Tree::generate(8, 60).digest());
        let directory = tempfile::tempdir().unwrap();
        tree.write(directory.path()).unwrap();
        let mut found = Tree::read(directory.path()).unwrap();
        tree.ensure_equals(&found, "read back").unwrap();
        assert_eq!(found.digest(), tree.digest());
        found.put("index.html", "other");
        found.files.remove(&b"version.txt"[..]);
        found.put("new", "");
        assert_eq!(tree.differences(&found).len(), 3);
    }

    proptest! {
        #[test]
        fn urls_are_plain_and_name_one_path(path in proptest::collection::vec(1u8.., 1..40)) {
            let url = url_path(&path);
            prop_assert!(url.bytes().all(|c| c.is_ascii_graphic() && c != b'#' && c != b'?'));
            let mut decoded = Vec::new();
            let mut rest = &url.as_bytes()[1..];
            while let Some((first, tail)) = rest.split_first() {
                if *first == b'%' {
                    let hex = std::str::from_utf8(&tail[..2]).unwrap();
                    decoded.push(u8::from_str_radix(hex, 16).unwrap());
                    rest = &tail[2..];
                } else {
                    decoded.push(*first);
                    rest = tail;
                }
            }
            prop_assert_eq!(decoded, path);
        }
    }
}
