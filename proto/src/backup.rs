//! A backup of the metadata: what is said to make one, and the file it ends up in.
//!
//! ```text
//! offset 0   magic       8 bytes  "ATOLLBKP"
//!        8   version     4 bytes  big-endian, of this layout
//!        12  header_len  4 bytes  big-endian, at most HEADER_BYTES_MAX
//!        16  header      postcard BackupHeader
//!            the bytes of the files, in the order of the header
//!            BLAKE3 of everything before, 32 bytes
//! ```
//! It holds hashes of tokens and the key that signs receipts: keep it as you keep a private key.

use serde::{Deserialize, Serialize};

use crate::tree::Digest;
use crate::{ClusterId, Epoch, Malformed};

/// Version of the layout of the file.
pub const VERSION: u32 = 1;
/// Length of the fixed start in bytes.
pub const PREFIX_BYTES: usize = 16;
/// Length of the checksum at the end in bytes.
pub const CHECKSUM_BYTES: usize = 32;
/// Longest header in bytes.
pub const HEADER_BYTES_MAX: u32 = 16 << 20;
/// Most bytes of a file in one answer.
pub const PART_BYTES: u32 = 4 << 20;
/// Longest name of a file in bytes.
const NAME_BYTES_MAX: usize = 128;
const MAGIC: [u8; 8] = *b"ATOLLBKP";

/// A step of making a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackupAsk {
    /// Make a consistent copy and keep it for reading. Answered with `Begun`.
    Begin,
    /// The bytes of one file from an offset on, at most [`PART_BYTES`]. Answered with `Part`.
    Read {
        /// Which copy.
        backup: u64,
        /// Which file, by its place in the header.
        file: u32,
        /// First byte.
        offset: u64,
    },
    /// The copy is not needed any more. Answered with `Ended`.
    End {
        /// Which.
        backup: u64,
    },
}

/// The answer to a [`BackupAsk`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackupAnswer {
    /// A copy is there.
    Begun {
        /// Its number.
        backup: u64,
        /// What it holds.
        header: BackupHeader,
    },
    /// The bytes are the body.
    Part,
    /// The copy is gone.
    Ended,
}

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupHeader {
    /// Format of the state in it.
    pub format: u32,
    /// Of which cluster it is.
    pub cluster: ClusterId,
    /// Log index up to which the state was applied.
    pub index: u64,
    /// Epoch of its placement table.
    pub epoch: Epoch,
    /// Term of the leader that made it.
    pub term: u64,
    /// When it was made, milliseconds since the Unix epoch.
    pub made_at_ms: u64,
    /// The files of the state's database.
    pub files: Vec<BackupFile>,
}

/// One file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupFile {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub len: u64,
    /// BLAKE3 of its bytes.
    pub hash: Digest,
}

impl BackupHeader {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.len))
    }

    /// The start of the backup file: everything before the bytes of the files.
    pub fn encode(&self) -> Vec<u8> {
        let header = crate::encode(self);
        let len = u32::try_from(header.len()).unwrap_or(u32::MAX);
        let mut out = Vec::with_capacity(PREFIX_BYTES + header.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_be_bytes());
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&header);
        out
    }

    /// How long the header behind this start of a file is.
    ///
    /// # Errors
    /// When it is no backup, or of a version that is not known here.
    pub fn len_in(prefix: &[u8; PREFIX_BYTES]) -> Result<u32, Malformed> {
        let bad = |reason: String| Err(Malformed { reason });
        if prefix[..8] != MAGIC {
            return bad("it is no backup of Atoll's metadata".to_owned());
        }
        let number = |at: usize| {
            u32::from_be_bytes([prefix[at], prefix[at + 1], prefix[at + 2], prefix[at + 3]])
        };
        if number(8) != VERSION {
            return bad(format!(
                "it has layout {}, this program reads {VERSION}: use the version that wrote it",
                number(8)
            ));
        }
        match number(12) {
            len if len > HEADER_BYTES_MAX => bad(format!("its header says {len} bytes")),
            len => Ok(len),
        }
    }

    /// Reads a header.
    ///
    /// # Errors
    /// When it is malformed, or names a file in a way that could reach outside of a directory.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let header: Self = crate::decode(bytes)?;
        let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_');
        for file in &header.files {
            let name = file.name.as_bytes();
            let fits = (1..=NAME_BYTES_MAX).contains(&name.len())
                && name[0] != b'.'
                && name.iter().copied().all(plain);
            if !fits {
                let reason = format!("a file has a name that is not expected: {:?}", file.name);
                return Err(Malformed { reason });
            }
        }
        let mut names: Vec<&str> = header.files.iter().map(|file| file.name.as_str()).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(Malformed { reason: "two files have the same name".to_owned() });
        }
        let overflow = header.files.iter().try_fold(0u64, |sum, file| sum.checked_add(file.len));
        if overflow.is_none() {
            return Err(Malformed { reason: "its files say impossible lengths".to_owned() });
        }
        Ok(header)
    }
}

/// BLAKE3 over bytes that come in parts.
#[derive(Debug, Clone, Default)]
pub struct Checksum(blake3::Hasher);

impl Checksum {
    /// More bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all of them.
    pub fn finish(&self) -> Digest {
        *self.0.finalize().as_bytes()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(names: &[&str]) -> BackupHeader {
        let file = |name: &&str| BackupFile { name: (*name).to_owned(), len: 7, hash: [3; 32] };
        BackupHeader {
            format: 2,
            cluster: ClusterId([1; 16]),
            index: 9,
            epoch: Epoch(4),
            term: 3,
            made_at_ms: 1_795_481_101_000,
            files: names.iter().map(file).collect(),
        }
    }

    fn read(bytes: &[u8]) -> Result<BackupHeader, Malformed> {
        let short = || Malformed { reason: "short".to_owned() };
        let prefix = bytes.get(..PREFIX_BYTES).and_then(|prefix| prefix.try_into().ok());
        let len = BackupHeader::len_in(&prefix.ok_or_else(short)?)? as usize;
        let header = bytes.get(PREFIX_BYTES..PREFIX_BYTES + len);
        BackupHeader::decode(header.ok_or_else(short)?)
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes: Vec<u8>, cut in 0usize..80, at in 0usize..80) {
            drop(read(&bytes));
            let mut whole = header(&["CURRENT", "000012.sst"]).encode();
            prop_assert_eq!(read(&whole).unwrap(), header(&["CURRENT", "000012.sst"]));
            let len = whole.len();
            whole[at % len] ^= 0x55;
            drop(read(&whole));
            whole.truncate(cut);
            drop(read(&whole));
        }
    }

    #[test]
    fn names_cannot_leave_the_directory() {
        for bad in ["../x", "a/b", "", ".hidden", "a\0", "é"] {
            assert!(read(&header(&[bad]).encode()).is_err(), "{bad:?}");
        }
        assert!(read(&header(&["a", "a"]).encode()).is_err());
        let other = [b'x'; 64];
        assert!(read(&other).unwrap_err().reason.contains("no backup"));
        let mut newer = header(&["a"]).encode();
        newer[11] = 9;
        assert!(read(&newer).unwrap_err().reason.contains("layout 9"));
    }
}
