//! Names of things: newtypes, so that two integers cannot be swapped.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::Malformed;

/// Number of placement groups: the top [`PG_BITS`] bits of a chunk id choose one.
pub const PG_COUNT: u16 = 1 << PG_BITS;
/// Bits of a chunk id that choose its placement group.
pub const PG_BITS: u32 = 12;

/// The name of a chunk: the BLAKE3 hash of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct ChunkId(pub [u8; 32]);

impl ChunkId {
    /// The id of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The id as bytes, for keys.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The placement group this chunk belongs to.
    pub fn pg(&self) -> PgId {
        PgId(u16::from_be_bytes([self.0[0], self.0[1]]) >> (16 - PG_BITS))
    }

    /// The first 12 hex digits, for people.
    pub fn short(&self) -> String {
        hex(&self.0[..6])
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkId({})", self.short())
    }
}

impl FromStr for ChunkId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        unhex(text).map(Self)
    }
}

/// A deploy is named by the hash of its manifest's root page.
pub type DeployId = ChunkId;

/// A placement group: all chunks whose ids start with the same 12 bits share their replicas.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PgId(pub u16);

/// The random name of a cluster. A node of one cluster refuses every message of another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

impl FromStr for ClusterId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        unhex(text).map(Self)
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize,
            Deserialize,
        )]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A node of the cluster (chunkserver or edge). Never used again after the node is removed.
    NodeId
);
number!(
    /// The version of the placement group table. It only grows.
    Epoch
);
number!(
    /// A position in the master's replicated log; the publish log is the entries among them that
    /// change what sites serve.
    Seq
);
number!(
    /// A client's session with the master: the scope of exactly-once requests and of receipts.
    SessionId
);
number!(
    /// An inode of the mutable namespace. The root directory is [`InodeId::ROOT`].
    InodeId
);

impl InodeId {
    /// The root directory.
    pub const ROOT: Self = Self(1);
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        out.push(char::from(DIGITS[usize::from(byte >> 4)]));
        out.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    out
}

fn unhex<const N: usize>(text: &str) -> Result<[u8; N], Malformed> {
    let wrong = || Malformed { reason: format!("not {} hex digits: {text:?}", N * 2) };
    let digits = text.as_bytes();
    if digits.len() != N * 2 {
        return Err(wrong());
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16).ok_or_else(wrong)?;
        let low = char::from(pair[1]).to_digit(16).ok_or_else(wrong)?;
        *byte = u8::try_from(high * 16 + low).map_err(|_| wrong())?;
    }
    Ok(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn chunk_id_round_trips_as_text() {
        let id = ChunkId::of(b"hello");
        assert_eq!(id.to_string().parse::<ChunkId>().unwrap(), id);
        assert!("zz".parse::<ChunkId>().is_err());
        assert!("é".repeat(32).parse::<ChunkId>().is_err());
    }

    #[test]
    fn placement_group_is_the_top_12_bits() {
        let mut bytes = [0; 32];
        bytes[0] = 0xab;
        bytes[1] = 0xcd;
        assert_eq!(ChunkId(bytes).pg(), PgId(0xabc));
        assert!(ChunkId([0xff; 32]).pg().0 < PG_COUNT);
    }
}
