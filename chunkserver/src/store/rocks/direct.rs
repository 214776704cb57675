//! Writes of whole blocks that go to the disk without a stay in the kernel's cache.
//!
//! A cached write is copied into pages that have to be found and cleared first, and that the sync
//! right behind it writes out one by one; a direct one of some megabytes takes less than half of
//! the time and a fraction of the processor's. The price: who reads the bytes soon reads them
//! from the disk. So it is for bytes that nobody is known to wait for.
//!
//! Not every file system can do it. Whoever gets [`io::ErrorKind::InvalidInput`] or
//! [`io::ErrorKind::Unsupported`] writes as usual.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;

use super::frame::BLOCK;

/// Bytes that one call writes at most, and that are kept for it.
const BUFFER_BYTES: usize = 8 << 20;

/// Memory that begins at a block boundary.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
}

/// A file that is written directly.
#[derive(Debug)]
pub(super) struct Direct<'a> {
    file: &'a File,
    buffer: &'a mut [u8],
    filled: usize,
    /// Where the buffer goes.
    at: u64,
}

/// Opens a file for direct writes.
///
/// # Errors
/// Of the kinds the module names where the file system cannot do that.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path)
}

/// Whether an error says that direct writes are not possible here.
pub(super) fn is_unable(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

impl Buffer {
    /// The memory; it is taken from the system at the first call.
    fn aligned(&mut self) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes = vec![0; BUFFER_BYTES + BLOCK];
        }
        let start = self.bytes.as_ptr().align_offset(BLOCK).min(BLOCK);
        &mut self.bytes[start..start + BUFFER_BYTES]
    }
}

impl<'a> Direct<'a> {
    /// Writes from a block boundary on.
    pub(super) fn new(file: &'a File, buffer: &'a mut Buffer, at: u64) -> Self {
        Self { file, buffer: buffer.aligned(), filled: 0, at }
    }

    /// Takes bytes. They are on the disk after [`Self::finish`] and a sync.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(self.buffer.len() - self.filled));
            self.buffer[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == self.buffer.len() {
                self.write_out()?;
            }
        }
        Ok(())
    }

    /// Takes zeros up to the next block boundary.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn pad(&mut self) -> io::Result<()> {
        let end = self.filled.next_multiple_of(BLOCK);
        self.buffer[self.filled..end].fill(0);
        self.filled = end;
        if self.filled == self.buffer.len() {
            return self.write_out();
        }
        Ok(())
    }

    /// Writes what was taken.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn finish(mut self) -> io::Result<()> {
        debug_assert_eq!(self.filled % BLOCK, 0, "only whole blocks are written directly");
        self.write_out()
    }

    fn write_out(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer[..self.filled], self.at)?;
        self.at += self.filled as u64;
        self.filled = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn bytes_arrive_in_order_and_padded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, [7; BLOCK]).unwrap();
        let file = match open(&path) {
            // Here it is not possible; then nothing is written so.
            Err(error) => return assert!(is_unable(&error), "{error}"),
            Ok(file) => file,
        };
        let (mut buffer, mut expected) = (Buffer::default(), vec![7; BLOCK]);
        let mut direct = Direct::new(&file, &mut buffer, BLOCK as u64);
        for (n, len) in
            [1, BLOCK, 5_000_000, 0, BUFFER_BYTES, 4095, 3_000_001].into_iter().enumerate()
        {
            let bytes = vec![u8::try_from(n).unwrap() + 1; len];
            direct.write(&bytes).unwrap();
            direct.pad().unwrap();
            expected.extend(bytes);
            expected.resize(expected.len().next_multiple_of(BLOCK), 0);
        }
        direct.finish().unwrap();
        file.sync_data().unwrap();
        assert!(std::fs::read(&path).unwrap() == expected);
    }
}
