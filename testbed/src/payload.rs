//! File contents that say what they are: made from a place, a generation and a size, and judged
//! without knowing which generation to expect.

use std::ops::Range;

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _};
use serde::{Deserialize, Serialize};

use crate::seed;

/// Bytes of the line that every payload begins with.
pub const LINE_BYTES: u64 = 112;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Which payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Payload {
    /// Tells it from every other of its place.
    pub generation: u64,
    /// Its length in bytes, at least [`LINE_BYTES`].
    pub bytes: u64,
}

impl Payload {
    /// One of a size that a store may treat in its own way: tiny, around 64 KiB and 1 MiB, where
    /// stores and chunks cut, of several chunks, or anything up to 20 KiB.
    pub fn of_any_size(generation: u64, rng: &mut StdRng) -> Self {
        let sizes: Range<u64> = match rng.random_range(0..16) {
            0 | 1 => LINE_BYTES..LINE_BYTES + 32,
            2 => 64 * KIB - 1..64 * KIB + 2,
            3 => MIB - 1..MIB + 2,
            4 => MIB + 2..3 * MIB,
            5 | 6 => 20 * KIB..300 * KIB,
            _ => LINE_BYTES..20 * KIB,
        };
        Self { generation, bytes: rng.random_range(sizes) }
    }

    /// Its bytes at a place.
    pub fn content(&self, place: &str) -> Bytes {
        let name = blake3::hash(place.as_bytes());
        let key = blake3::hash(format!("{place} {}", self.generation).as_bytes());
        let key = key.as_bytes()[..8].try_into().expect("a hash has eight bytes");
        let length = self.bytes.saturating_sub(LINE_BYTES);
        let length = usize::try_from(length).expect("a payload fits into memory");
        let mut body = vec![0; length];
        seed::rng(u64::from_le_bytes(key)).fill_bytes(&mut body);
        let line = line(&name, self.generation, self.bytes, &body);
        [line.as_bytes(), &body].concat().into()
    }

    /// Which payload of a place these bytes are, every one of them.
    ///
    /// # Errors
    /// When they are none: somebody made up, lost or changed a byte.
    pub fn judge(place: &str, bytes: &[u8]) -> Result<Self> {
        let line_bytes = usize::try_from(LINE_BYTES)?;
        ensure!(bytes.len() >= line_bytes, "{place}: only {} bytes", bytes.len());
        let (found, body) = bytes.split_at(line_bytes);
        let found = String::from_utf8_lossy(found).into_owned();
        let generation =
            found.split(' ').nth(2).and_then(|word| u64::from_str_radix(word, 16).ok());
        let Some(generation) = generation else {
            bail!("{place}: starts with {found:?}");
        };
        let name = blake3::hash(place.as_bytes());
        let right = line(&name, generation, bytes.len() as u64, body);
        ensure!(found == right, "{place}: starts with {found:?}, what follows is {right:?}");
        Ok(Self { generation, bytes: bytes.len() as u64 })
    }
}

/// The first line: whose, which, how long, and the hash of all that and what follows.
fn line(name: &blake3::Hash, generation: u64, bytes: u64, body: &[u8]) -> String {
    // Over everything: a changed digit must not make another payload of it.
    let mut hasher = blake3::Hasher::new();
    hasher.update(name.as_bytes()).update(&generation.to_be_bytes()).update(&bytes.to_be_bytes());
    let (name, hash) = (name.to_hex(), hasher.update(body).finalize().to_hex());
    let line = format!("payload {} {generation:016x} {bytes:010x} {}\n", &name[..24], &hash[..50]);
    debug_assert_eq!(line.len() as u64, LINE_BYTES);
    line
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn content_says_what_it_is() {
        let mut rng = seed::rng(1);
        for generation in 0..40 {
            let payload = Payload::of_any_size(generation, &mut rng);
            let bytes = payload.content("/a/b");
            assert_eq!(bytes.len() as u64, payload.bytes);
            assert_eq!(Payload::judge("/a/b", &bytes).unwrap(), payload);
        }
        let payload = Payload { generation: 7, bytes: 500 };
        let bytes = payload.content("/a/b");
        assert_eq!(bytes, payload.content("/a/b"));
        assert_ne!(bytes[112..], payload.content("/a/c")[112..]);
        assert!(Payload::judge("/a/c", &bytes).is_err());
        assert!(Payload::judge("/a/b", &bytes[..499]).is_err());
        assert!(Payload::judge("/a/b", b"").is_err());
        for at in 0..500 {
            let mut wrong = bytes.to_vec();
            wrong[at] ^= 1;
            assert!(Payload::judge("/a/b", &wrong).is_err(), "byte {at}");
        }
    }
}
