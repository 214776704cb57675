//! What a soaked cluster must hold: sites of files whose bytes say what they are.
//!
//! Every file starts with its own site, path, generation and hash, so that an answer can be
//! judged without knowing which version it should be from.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use atoll_testbed::Tree;
use atoll_testbed::tree::random;
use rand::Rng as _;
use rand::rngs::StdRng;

/// A site: the generation of each of its files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct SiteModel {
    /// Its name.
    pub(crate) name: String,
    /// Path to generation.
    pub(crate) files: BTreeMap<String, u64>,
}

impl SiteModel {
    /// A site of so many files, all of generation 0.
    pub(crate) fn new(name: &str, files: usize) -> Self {
        let files = (0..files).map(|number| (format!("d{}/f{number}", number % 7), 0)).collect();
        Self { name: name.to_owned(), files }
    }

    /// The same with some files changed, removed and added.
    pub(crate) fn changed(&self, generation: u64, rng: &mut StdRng) -> Self {
        let mut next = self.clone();
        for stamp in next.files.values_mut() {
            if rng.random_ratio(1, 10) {
                *stamp = generation;
            }
        }
        let victim = next.files.keys().next().cloned();
        if let Some(victim) = victim.filter(|_| rng.random_bool(0.3)) {
            next.files.remove(&victim);
        }
        next.files.insert(format!("new/g{generation}"), generation);
        next
    }

    /// Its files.
    pub(crate) fn tree(&self) -> Tree {
        let mut tree = Tree::default();
        for (path, generation) in &self.files {
            tree.put(path, content(&self.name, path, *generation));
        }
        tree
    }
}

/// The bytes of one file.
pub(crate) fn content(site: &str, path: &str, generation: u64) -> Vec<u8> {
    let key = blake3::hash(format!("{site}/{path}/{generation}").as_bytes());
    let mut rng = atoll_testbed::seed::rng(u64::from_le_bytes(
        key.as_bytes()[..8].try_into().expect("a hash has eight bytes"),
    ));
    // Mostly small, some of several chunks.
    let size = if rng.random_ratio(1, 12) {
        rng.random_range(0..3 << 20)
    } else {
        rng.random_range(0..30_000)
    };
    let body = random(&mut rng, size);
    let hash = blake3::hash(&body).to_hex();
    [format!("{site} {path} {generation} {hash}\n").as_bytes(), &body].concat()
}

/// Checks that an answer is some version of this file, whole; which one.
///
/// # Errors
/// When it is anything else: a wrong byte was served.
pub(crate) fn no_wrong_bytes(site: &str, path: &str, answer: &[u8]) -> Result<u64> {
    let end = answer.iter().position(|byte| *byte == b'\n').context("no first line")?;
    let line = std::str::from_utf8(&answer[..end]).context("the first line is no text")?;
    let words: Vec<&str> = line.split(' ').collect();
    let [found_site, found_path, generation, hash] = words[..] else {
        anyhow::bail!("the first line is {line:?}");
    };
    ensure!(found_site == site && found_path == path, "asked for {site}/{path}, got {line:?}");
    let body = &answer[end + 1..];
    ensure!(blake3::hash(body).to_hex().as_str() == hash, "{line:?}: other bytes follow");
    Ok(generation.parse()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn content_says_what_it_is() {
        let mut bytes = content("s", "a/b", 7);
        assert_eq!(no_wrong_bytes("s", "a/b", &bytes).unwrap(), 7);
        assert!(no_wrong_bytes("s", "a/c", &bytes).is_err());
        *bytes.last_mut().unwrap() ^= 1;
        assert!(no_wrong_bytes("s", "a/b", &bytes).is_err());
        assert!(no_wrong_bytes("s", "a/b", b"").is_err());
    }
}
