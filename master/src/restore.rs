//! Restore: a backup becomes the data directory of a master.
//!
//! `cli` calls it; no master runs on the directory. The backup is checked completely before anything
//! is written, and the directory appears in one step, or not at all. Its state is that of the
//! backup, with collection frozen: chunkservers may hold chunks that it does not know of, and an
//! operator decides when those may go.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use atoll_proto::backup::{BackupHeader, CHECKSUM_BYTES, Checksum, PREFIX_BYTES};

use crate::identity::{DataError, claim_for};
use crate::raft::seed::{STATE, seed};
use crate::raft::state::sync_directory;
use crate::store::{FORMAT_VERSION, FORMAT_VERSION_MIN};

/// What to make of a backup.
#[derive(Debug, Clone)]
pub struct Restore<'a> {
    /// The backup file.
    pub file: &'a Path,
    /// The data directory to make; it must not exist, or be empty.
    pub data: &'a Path,
    /// Which master it is for.
    pub id: u64,
    /// All masters that will vote, this one among them, with their addresses.
    pub voters: &'a BTreeMap<u64, SocketAddr>,
    /// When the backup was made, in words, for the reason why collection is frozen.
    pub made: &'a str,
}

/// Why a backup was not restored. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The backup is no backup, or not a whole one.
    #[error("backup {}: {reason}", file.display())]
    Backup {
        /// The backup file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The data directory cannot be made.
    #[error(transparent)]
    Data(#[from] DataError),
}

/// Checks a backup completely: layout, length, the hash of every file and of the whole.
///
/// # Errors
/// With what is wrong.
pub fn inspect(file: &Path) -> Result<BackupHeader, RestoreError> {
    let bad = |reason: String| RestoreError::Backup { file: file.to_owned(), reason };
    check(file).map_err(bad)
}

fn check(path: &Path) -> Result<BackupHeader, String> {
    let text = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => "it ends too early: it was cut off".to_owned(),
        _ => error.to_string(),
    };
    let file = File::open(path).map_err(text)?;
    let len = file.metadata().map_err(text)?.len();
    let mut input = BufReader::with_capacity(1 << 20, file);
    let mut whole = Checksum::default();
    let header = read_header(&mut input, Some(&mut whole)).map_err(text)?;
    if !(FORMAT_VERSION_MIN..=FORMAT_VERSION).contains(&header.format) {
        return Err(format!(
            "its state has format {}, this program reads {FORMAT_VERSION_MIN} to \
             {FORMAT_VERSION}: use the version that wrote it",
            header.format
        ));
    }
    let start = header.encode().len() as u64;
    let expected = start.saturating_add(header.bytes()).saturating_add(CHECKSUM_BYTES as u64);
    if len != expected {
        return Err(format!("it has {len} bytes and should have {expected}: it was cut off"));
    }
    for file in &header.files {
        let mut one = Checksum::default();
        copy(&mut input, file.len, &mut |bytes| {
            one.update(bytes);
            whole.update(bytes);
            Ok(())
        })
        .map_err(text)?;
        if one.finish() != file.hash {
            return Err(format!("the bytes of {} in it are not those of the backup", file.name));
        }
    }
    let mut checksum = [0; CHECKSUM_BYTES];
    input.read_exact(&mut checksum).map_err(text)?;
    if checksum != whole.finish() {
        return Err("its checksum does not fit its bytes".to_owned());
    }
    Ok(header)
}

fn read_header(input: &mut impl Read, whole: Option<&mut Checksum>) -> io::Result<BackupHeader> {
    let malformed = |error: atoll_proto::Malformed| io::Error::other(error.reason);
    let mut prefix = [0; PREFIX_BYTES];
    input.read_exact(&mut prefix)?;
    let len = BackupHeader::len_in(&prefix).map_err(malformed)?;
    let mut header = Vec::new();
    input.take(u64::from(len)).read_to_end(&mut header)?;
    if header.len() as u64 != u64::from(len) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if let Some(whole) = whole {
        whole.update(&prefix);
        whole.update(&header);
    }
    BackupHeader::decode(&header).map_err(malformed)
}

/// Hands on exactly this many bytes.
fn copy(
    input: &mut impl Read,
    len: u64,
    take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut left = len;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        input.read_exact(&mut buffer[..want])?;
        take(&buffer[..want])?;
        left -= want as u64;
    }
    Ok(())
}

/// Makes the data directory of a master out of a backup. Blocks.
///
/// # Errors
/// When the backup is not whole, or the directory is in use.
pub fn restore(request: &Restore<'_>) -> Result<BackupHeader, RestoreError> {
    let header = inspect(request.file)?;
    let data = std::path::absolute(request.data).map_err(|error| wrong(request.data, error))?;
    check_free(&data)?;
    let name = data.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.ok_or_else(|| wrong(&data, "it has no name"))?;
    let parent = data.parent().unwrap_or(Path::new("/")).to_owned();
    fs::create_dir_all(&parent).map_err(|error| wrong(&data, error))?;
    let part = Part(parent.join(format!(".{name}.restoring-{}", std::process::id())));
    build(request, &header, &part.0)?;
    fs::rename(&part.0, &data).map_err(|error| wrong(&data, error))?;
    sync_directory(&parent).map_err(|error| wrong(&data, error))?;
    Ok(header)
}

fn wrong(data: &Path, reason: impl ToString) -> DataError {
    DataError::new(data, reason)
}

/// Refuses a directory that holds anything.
fn check_free(data: &Path) -> Result<(), DataError> {
    let first = match fs::read_dir(data) {
        Ok(mut entries) => entries.next(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(wrong(data, error)),
    };
    let full = "it is not empty: a backup is never restored over something; move it away first";
    if first.is_some() { Err(wrong(data, full)) } else { Ok(()) }
}

/// The directory while it is made; removed unless it was renamed.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "cannot remove a half-restored directory");
            }
            _ => {}
        }
    }
}

fn build(request: &Restore<'_>, header: &BackupHeader, part: &Path) -> Result<(), RestoreError> {
    let failed = |error: io::Error| wrong(request.data, error);
    let database = part.join(STATE);
    // As private as the backup: the key that signs receipts is in it.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&database).map_err(failed)?;
    let file = File::open(request.file).map_err(failed)?;
    let mut input = BufReader::with_capacity(1 << 20, file);
    read_header(&mut input, None).map_err(failed)?;
    for file in &header.files {
        let mut output = File::create_new(database.join(&file.name)).map_err(failed)?;
        // Checked again: the file may have changed since it was inspected.
        let mut one = Checksum::default();
        let copied = copy(&mut input, file.len, &mut |bytes| {
            one.update(bytes);
            output.write_all(bytes)
        });
        copied.and_then(|()| output.sync_all()).map_err(failed)?;
        if one.finish() != file.hash {
            let reason = format!("{} changed while it was read", file.name);
            return Err(RestoreError::Backup { file: request.file.to_owned(), reason });
        }
    }
    sync_directory(&database).map_err(failed)?;
    let reason = format!("restored from a backup of {}", request.made);
    seed(part, request.id, request.voters, &reason).map_err(|error| wrong(request.data, error))?;
    claim_for(part, header.cluster, request.id)?;
    sync_directory(part).map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::backup::BackupFile;
    use atoll_proto::{ClusterId, Epoch};

    use super::*;

    /// A whole backup of files that are no database.
    fn backup() -> Vec<u8> {
        let files = [("CURRENT", b"x".to_vec()), ("a.sst", vec![7; 3000])];
        let mut header = BackupHeader {
            format: FORMAT_VERSION,
            cluster: ClusterId([1; 16]),
            index: 9,
            epoch: Epoch(4),
            term: 3,
            made_at_ms: 1,
            files: Vec::new(),
        };
        for (name, bytes) in &files {
            let mut hash = Checksum::default();
            hash.update(bytes);
            let (name, len) = ((*name).to_owned(), bytes.len() as u64);
            header.files.push(BackupFile { name, len, hash: hash.finish() });
        }
        let mut out = header.encode();
        files.iter().for_each(|(_, bytes)| out.extend_from_slice(bytes));
        let mut whole = Checksum::default();
        whole.update(&out);
        out.extend_from_slice(&whole.finish());
        out
    }

    #[test]
    fn every_damage_is_found_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (file, data) = (dir.path().join("backup"), dir.path().join("data"));
        let whole = backup();
        fs::write(&file, &whole).unwrap();
        assert_eq!(inspect(&file).unwrap().index, 9);
        let voters = BTreeMap::from([(1, SocketAddr::from(([127, 0, 0, 1], 1)))]);
        let request = Restore { file: &file, data: &data, id: 1, voters: &voters, made: "then" };
        let mut damaged: Vec<Vec<u8>> = (0..whole.len())
            .step_by(7)
            .map(|at| {
                let mut bytes = whole.clone();
                bytes[at] ^= 1;
                bytes
            })
            .collect();
        damaged.extend((0..whole.len()).step_by(11).map(|len| whole[..len].to_vec()));
        damaged.push([whole.as_slice(), b"x"].concat());
        damaged.push(b"something else entirely".to_vec());
        for bytes in damaged {
            fs::write(&file, &bytes).unwrap();
            assert!(inspect(&file).is_err());
            assert!(restore(&request).is_err());
            assert!(!data.exists());
        }
        // Whole, but no database: nothing is left behind either.
        fs::write(&file, &whole).unwrap();
        assert!(matches!(restore(&request), Err(RestoreError::Data(_))));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        // A directory with something in it is never touched.
        fs::create_dir(&data).unwrap();
        fs::write(data.join("precious"), b"x").unwrap();
        let error = restore(&request).unwrap_err().to_string();
        assert!(error.contains("not empty"), "{error}");
        assert!(data.join("precious").exists());
    }
}
