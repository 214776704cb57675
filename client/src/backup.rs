//! A backup of the cluster's metadata in one file.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use atoll_net::task::Boxed;
use atoll_proto::Code;
use atoll_proto::backup::{BackupAnswer, BackupAsk, BackupHeader, Checksum};
use atoll_proto::limits;
use atoll_proto::master::{MasterRequest, MasterResponse};
use bytes::Bytes;

use crate::{ClientError, Cluster};

/// How long the master may take to make its copy: it hashes all of it.
const BEGIN_DEADLINE: Duration = Duration::from_secs(600);
/// How often a backup is begun anew when the leader changes on the way.
const ATTEMPTS: usize = 3;

/// Is told how a backup gets on.
pub trait BackupProgress: Send + Sync {
    /// So many bytes will travel.
    fn expect(&self, bytes: u64);
    /// So many more have.
    fn received(&self, bytes: u64);
}

/// Writes a backup of the metadata to a file that appears whole or not at all. A file of that name
/// is replaced.
///
/// # Errors
/// `Refused` without an administrator's token; `Io` when the file cannot be written; `Malformed`
/// when what arrived is not what the master announced.
pub fn backup<'a>(
    cluster: &'a Cluster,
    path: &'a Path,
    progress: &'a dyn BackupProgress,
) -> Boxed<'a, Result<BackupHeader, ClientError>> {
    Box::pin(write_backup(cluster, path, progress))
}

async fn write_backup(
    cluster: &Cluster,
    path: &Path,
    progress: &dyn BackupProgress,
) -> Result<BackupHeader, ClientError> {
    let mut attempt = 1;
    loop {
        let outcome = attempt_backup(cluster, path, progress).await;
        let again = match &outcome {
            // The copy is at the old leader, or was given up.
            Err(ClientError::Refused(refusal)) => refusal.code == Code::NotFound,
            _ => false,
        };
        if !again || attempt == ATTEMPTS {
            return outcome;
        }
        attempt += 1;
    }
}

async fn attempt_backup(
    cluster: &Cluster,
    path: &Path,
    progress: &dyn BackupProgress,
) -> Result<BackupHeader, ClientError> {
    let begun = ask(cluster, BackupAsk::Begin, BEGIN_DEADLINE).await?.0;
    let BackupAnswer::Begun { backup, header } = begun else {
        return Err(ClientError::unexpected("the master"));
    };
    let written = receive(cluster, path, backup, &header, progress).await;
    // The master gives it up by itself when this does not arrive.
    let ended = ask(cluster, BackupAsk::End { backup }, limits::METADATA_DEADLINE).await;
    if let Err(error) = ended {
        tracing::debug!(%error, "the master was not told that the backup is done");
    }
    written.map(|()| header)
}

async fn ask(
    cluster: &Cluster,
    ask: BackupAsk,
    deadline: Duration,
) -> Result<(BackupAnswer, Bytes), ClientError> {
    match cluster.master_with_body(&MasterRequest::Backup(ask), deadline).await? {
        (MasterResponse::Backup(answer), body) => Ok((answer, body)),
        _ => Err(ClientError::unexpected("the master")),
    }
}

async fn receive(
    cluster: &Cluster,
    path: &Path,
    backup: u64,
    header: &BackupHeader,
    progress: &dyn BackupProgress,
) -> Result<(), ClientError> {
    progress.expect(header.bytes());
    let mut file = Part::create(path, header).await?;
    for (number, known) in (0u32..).zip(&header.files) {
        let mut checksum = Checksum::default();
        let mut offset = 0;
        while offset < known.len {
            let read = BackupAsk::Read { backup, file: number, offset };
            let (answer, bytes) = ask(cluster, read, limits::CHUNK_DEADLINE * 2).await?;
            let fits = bytes.len() as u64 <= known.len - offset;
            if answer != BackupAnswer::Part || bytes.is_empty() || !fits {
                return Err(ClientError::unexpected("the master"));
            }
            offset += bytes.len() as u64;
            checksum.update(&bytes);
            progress.received(bytes.len() as u64);
            file = file.write(bytes).await?;
        }
        if checksum.finish() != known.hash {
            let what = format!("{} of the backup is not what the master announced", known.name);
            return Err(ClientError::Malformed { what });
        }
    }
    file.finish().await
}

/// The file while it is written: under another name, removed unless it is finished.
struct Part {
    output: BufWriter<File>,
    checksum: Checksum,
    part: Removed,
    path: PathBuf,
}

/// A file that is removed with the value.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %self.0.display(), "cannot remove a partial backup");
            }
            _ => {}
        }
    }
}

impl Part {
    async fn create(path: &Path, header: &BackupHeader) -> Result<Part, ClientError> {
        let start = header.encode();
        let path = path.to_owned();
        blocking(move || {
            let path = std::path::absolute(&path).map_err(|source| io(&path, source))?;
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(format!(".part-{}", std::process::id()));
            let part = path.with_file_name(name);
            let mut options = File::options();
            // It holds what a private key would give away.
            options.write(true).create(true).truncate(true).mode(0o600);
            let output = options.open(&part).map_err(|source| io(&part, source))?;
            let output = BufWriter::with_capacity(1 << 20, output);
            let checksum = Checksum::default();
            let part = Part { output, checksum, part: Removed(part), path };
            part.append(&start)
        })
        .await
    }

    fn append(mut self, bytes: &[u8]) -> Result<Part, ClientError> {
        self.checksum.update(bytes);
        self.output.write_all(bytes).map_err(|source| io(&self.part.0, source))?;
        Ok(self)
    }

    async fn write(self, bytes: Bytes) -> Result<Part, ClientError> {
        blocking(move || self.append(&bytes)).await
    }

    /// Seals the file and gives it its name; it is on disk when this returns.
    async fn finish(self) -> Result<(), ClientError> {
        blocking(move || {
            let checksum = self.checksum.finish();
            let Part { output, part, path, .. } = self.append(&checksum)?;
            let failed = |source| io(&path, source);
            let file = output.into_inner().map_err(|error| failed(error.into_error()))?;
            file.sync_all().map_err(failed)?;
            std::fs::rename(&part.0, &path).map_err(failed)?;
            let directory = path.parent().unwrap_or(Path::new("/"));
            File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
        })
        .await
    }
}

fn io(path: &Path, source: std::io::Error) -> ClientError {
    ClientError::Io { path: path.to_owned(), source }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ClientError> + Send + 'static,
) -> Result<T, ClientError> {
    atoll_net::task::spawn_blocking("backup-file", work)
        .await
        .unwrap_or_else(|error| Err(ClientError::Malformed { what: error.to_string() }))
}
