//! A snapshot as a stream: the files of a RocksDB checkpoint, one after the other.
//!
//! Nothing is packed on disk at the sender: the stream reads the checkpoint's files in place. The
//! receiver writes the stream to one file and unpacks it. Reads and writes block for the time of
//! a disk access; snapshots travel rarely and in parts of at most 1 MiB.
//!
//! ```text
//! for each file:  name_len u16, name, file_len u64, bytes      (integers big-endian)
//! at the end:     name_len 0
//! ```

use std::fs::File;
use std::io::{self, Read, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};

/// Longest name of a file in a snapshot.
const NAME_BYTES_MAX: usize = 128;

/// A snapshot being sent or received.
#[derive(Debug)]
pub(crate) struct SnapshotStream {
    source: Source,
    position: u64,
}

#[derive(Debug)]
enum Source {
    /// Parts in order, each with where it starts; and the length of the whole.
    Sending { parts: Vec<(u64, Part)>, len: u64 },
    /// The file it is received into.
    Receiving(File),
}

#[derive(Debug)]
enum Part {
    Bytes(Vec<u8>),
    File(File, u64),
}

impl Part {
    fn len(&self) -> u64 {
        match self {
            Part::Bytes(bytes) => bytes.len() as u64,
            Part::File(_, len) => *len,
        }
    }
}

impl SnapshotStream {
    /// Reads the files of this directory. They stay readable when the directory is deleted.
    pub(crate) fn of_directory(directory: &Path) -> io::Result<SnapshotStream> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            let name = entry?.file_name().into_encoded_bytes();
            if name != b"LOCK" {
                names.push(check_name(&name)?);
            }
        }
        names.sort();
        let mut parts = Vec::new();
        let mut len = 0;
        let mut push = |part: Part| {
            let start = len;
            len += part.len();
            parts.push((start, part));
        };
        for name in names {
            let file = File::open(directory.join(&name))?;
            let file_len = file.metadata()?.len();
            let name_len = u16::try_from(name.len()).expect("names are short");
            let mut header = name_len.to_be_bytes().to_vec();
            header.extend_from_slice(name.as_bytes());
            header.extend_from_slice(&file_len.to_be_bytes());
            push(Part::Bytes(header));
            push(Part::File(file, file_len));
        }
        push(Part::Bytes(vec![0, 0]));
        Ok(SnapshotStream { source: Source::Sending { parts, len }, position: 0 })
    }

    /// Receives into this file.
    pub(crate) fn into_file(path: &Path) -> io::Result<SnapshotStream> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(SnapshotStream { source: Source::Receiving(file), position: 0 })
    }

    /// Writes its files into a new directory, durably.
    pub(crate) fn unpack(mut self, directory: &Path) -> io::Result<()> {
        self.position = 0;
        let mut input = io::BufReader::with_capacity(1 << 20, Blocking(self));
        std::fs::create_dir(directory)?;
        while let Some(name) = read_name(&mut input)? {
            let mut len = [0; 8];
            input.read_exact(&mut len)?;
            let len = u64::from_be_bytes(len);
            let mut output = File::create_new(directory.join(name))?;
            if io::copy(&mut (&mut input).take(len), &mut output)? != len {
                return Err(io::Error::other("the snapshot ends within a file"));
            }
            output.sync_all()?;
        }
        File::open(directory)?.sync_all()
    }

    fn read_some(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.source {
            Source::Receiving(file) => file.read_at(out, self.position)?,
            Source::Sending { parts, .. } => {
                let after = parts.partition_point(|(start, _)| *start <= self.position);
                let mut found = 0;
                // Empty parts share their start with the one after them.
                for (start, part) in &parts[after.saturating_sub(1)..] {
                    let offset = self.position.saturating_sub(*start);
                    if offset >= part.len() {
                        continue;
                    }
                    let left = usize::try_from(part.len() - offset).unwrap_or(usize::MAX);
                    let want = out.len().min(left);
                    found = match part {
                        Part::Bytes(bytes) => {
                            let from = usize::try_from(offset).expect("within a short header");
                            out[..want].copy_from_slice(&bytes[from..from + want]);
                            want
                        }
                        Part::File(file, _) => file.read_at(&mut out[..want], offset)?,
                    };
                    if found == 0 && want > 0 {
                        return Err(io::Error::other("a file of the snapshot became shorter"));
                    }
                    break;
                }
                found
            }
        };
        self.position += count as u64;
        Ok(count)
    }
}

/// Read without waiting.
struct Blocking(SnapshotStream);

impl Read for Blocking {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read_some(out)
    }
}

fn check_name(name: &[u8]) -> io::Result<String> {
    let plain = |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name[0] == b'.' || !name.iter().all(plain)
    {
        return Err(io::Error::other("a file of the snapshot has a name that is not expected"));
    }
    Ok(String::from_utf8_lossy(name).into_owned())
}

fn read_name(input: &mut impl Read) -> io::Result<Option<String>> {
    let mut len = [0; 2];
    input.read_exact(&mut len)?;
    match usize::from(u16::from_be_bytes(len)) {
        0 => Ok(None),
        len if len > NAME_BYTES_MAX => Err(io::Error::other("a name is too long")),
        len => {
            let mut name = vec![0; len];
            input.read_exact(&mut name)?;
            check_name(&name).map(Some)
        }
    }
}

impl AsyncRead for SnapshotStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = self.read_some(out.initialize_unfilled())?;
        out.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SnapshotStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let position = self.position;
        let Source::Receiving(file) = &mut self.source else {
            return Poll::Ready(Err(io::Error::other("this snapshot is being sent")));
        };
        file.write_all_at(bytes, position)?;
        self.position += bytes.len() as u64;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.source {
            Source::Receiving(file) => Poll::Ready(file.flush()),
            Source::Sending { .. } => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(context)
    }
}

impl AsyncSeek for SnapshotStream {
    fn start_seek(mut self: Pin<&mut Self>, to: SeekFrom) -> io::Result<()> {
        let len = match &self.source {
            Source::Sending { len, .. } => *len,
            Source::Receiving(file) => file.metadata()?.len(),
        };
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(delta) => len.checked_add_signed(delta),
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta),
        };
        self.position = position.ok_or_else(|| io::Error::other("seek out of range"))?;
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(self.position))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_directory_travels() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        std::fs::create_dir(&from).unwrap();
        let files = [("CURRENT", vec![]), ("a.sst", vec![7; 100_000]), ("b-1", vec![1, 2, 3])];
        for (name, bytes) in &files {
            std::fs::write(from.join(name), bytes).unwrap();
        }
        std::fs::write(from.join("LOCK"), b"").unwrap();
        let mut sending = SnapshotStream::of_directory(&from).unwrap();
        std::fs::remove_dir_all(&from).unwrap();
        let len = sending.seek(SeekFrom::End(0)).await.unwrap();

        let mut receiving = SnapshotStream::into_file(&dir.path().join("incoming")).unwrap();
        let mut at = 0;
        while at < len {
            sending.seek(SeekFrom::Start(at)).await.unwrap();
            let mut part = vec![0; 777];
            let count = sending.read(&mut part).await.unwrap();
            assert!(count > 0);
            receiving.write_all(&part[..count]).await.unwrap();
            at += count as u64;
        }
        receiving.shutdown().await.unwrap();
        let to = dir.path().join("to");
        receiving.unpack(&to).unwrap();
        for (name, bytes) in &files {
            assert_eq!(&std::fs::read(to.join(name)).unwrap(), bytes);
        }
        assert!(!to.join("LOCK").exists());
    }

    proptest! {
        #[test]
        fn no_received_bytes_panic_or_leave_the_directory(bytes: Vec<u8>) {
            let dir = tempfile::tempdir().unwrap();
            let incoming = dir.path().join("incoming");
            let stream = SnapshotStream::into_file(&incoming).unwrap();
            std::fs::write(&incoming, &bytes).unwrap();
            drop(stream.unpack(&dir.path().join("to")));
            prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        }
    }
}
