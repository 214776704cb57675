//! A full disk: a file takes the room. Only on a file system that belongs to the test.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// The file that takes the room.
const BALLAST: &str = "ballast";
/// A file system larger than this is not ours.
const OURS_BYTES_MAX: u64 = 4 << 30;

/// Writes until the file system is full but for a rest.
///
/// # Errors
/// When the file system is a large one, or of the disk.
pub(super) fn fill(data: &Path, leave_bytes: u64) -> Result<()> {
    let stat = nix::sys::statvfs::statvfs(data)?;
    let total = stat.fragment_size() * stat.blocks();
    ensure!(total <= OURS_BYTES_MAX, "{} is on a file system of {total} bytes", data.display());
    let free = stat.fragment_size() * stat.blocks_available();
    let mut rest = free.saturating_sub(leave_bytes);
    let mut file = fs::File::create(data.join(BALLAST))?;
    let block = vec![0x5a; 1 << 16];
    while rest > 0 {
        let length = block.len().min(usize::try_from(rest)?);
        match file.write(&block[..length]) {
            Ok(0) => break,
            Ok(written) => rest -= written as u64,
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Gives the room back.
///
/// # Errors
/// When it was not taken.
pub(super) fn free(data: &Path) -> Result<()> {
    let ballast = data.join(BALLAST);
    fs::remove_file(&ballast).with_context(|| format!("remove {}", ballast.display()))
}
