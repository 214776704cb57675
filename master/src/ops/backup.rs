//! Backup: a consistent copy of the state, read file by file.
//!
//! The copy is a checkpoint: hard links, made in the time of a flush. One is kept at a time, until it
//! was read or nobody asked for it for a while.

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atoll_net::Answer;
use atoll_proto::backup::{
    BackupAnswer, BackupAsk, BackupFile, BackupHeader, Checksum, PART_BYTES,
};
use atoll_proto::error::WireResult;
use atoll_proto::master::MasterResponse;
use atoll_proto::{Code, Retry, WireError};
use bytes::Bytes;
use tokio::time::Instant;

use super::change::store_failed;
use crate::server::{Master, now_ms};
use crate::store::rocks::Rocks;
use crate::store::{StoreError, groups, meta};

/// A copy that nobody has asked for in this time is removed.
const UNUSED: Duration = Duration::from_secs(60);
/// Where copies are, within the data directory.
pub(crate) const DIRECTORY: &str = "backup";

/// The copy that is kept for reading.
#[derive(Debug, Default)]
pub(crate) struct Backups {
    kept: Mutex<Option<Kept>>,
    /// Held while one is made.
    making: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct Kept {
    number: u64,
    copy: Arc<Copy>,
    used: Instant,
}

/// A checkpoint, removed with the value.
#[derive(Debug)]
struct Copy {
    directory: PathBuf,
    header: BackupHeader,
}

impl Drop for Copy {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            tracing::warn!(%error, "cannot remove the copy for a backup; it only takes space");
        }
    }
}

impl Backups {
    /// Forgets a copy that nobody reads any more.
    pub(crate) fn expire(&self, now: Instant) {
        let mut kept = self.lock();
        if kept.as_ref().is_some_and(|kept| now.duration_since(kept.used) >= UNUSED) {
            *kept = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, number: u64) -> WireResult<Arc<Copy>> {
        let mut kept = self.lock();
        match kept.as_mut().filter(|kept| kept.number == number) {
            Some(kept) => {
                kept.used = Instant::now();
                Ok(kept.copy.clone())
            }
            None => Err(WireError::not_found("the copy for this backup is gone: begin again")),
        }
    }
}

pub(crate) async fn backup(master: &Master, ask: BackupAsk) -> WireResult<Answer<MasterResponse>> {
    match ask {
        BackupAsk::Begin => begin(master).await,
        BackupAsk::Read { backup, file, offset } => {
            let copy = master.backups.find(backup)?;
            let bytes = blocking(move || read(&copy, file, offset)).await??;
            let head = MasterResponse::Backup(BackupAnswer::Part);
            Ok(Answer::with_body(head, vec![bytes]))
        }
        BackupAsk::End { backup } => {
            let mut kept = master.backups.lock();
            if kept.as_ref().is_some_and(|kept| kept.number == backup) {
                *kept = None;
            }
            Ok(Answer::head(MasterResponse::Backup(BackupAnswer::Ended)))
        }
    }
}

async fn begin(master: &Master) -> WireResult<Answer<MasterResponse>> {
    let busy = || {
        let message = "another backup is being made: try again in a minute";
        WireError { retry: Retry::Never, ..WireError::new(Code::Unavailable, message) }
    };
    let making = master.backups.making.clone().try_lock_owned().map_err(|_| busy())?;
    master.backups.expire(Instant::now());
    if master.backups.lock().is_some() {
        return Err(busy());
    }
    master.consensus.read().await?;
    let (state, term) = (master.consensus.state(), master.consensus.term());
    // One that is still being read has another.
    let number = rand::random();
    let directory = master.settings.data.join(DIRECTORY).join(format!("{number:016x}"));
    let (copy, making) = blocking(move || {
        let copy = make(&state, directory, term, now_ms());
        (copy, making)
    })
    .await?;
    let copy = Arc::new(copy.map_err(store_failed)?);
    let header = copy.header.clone();
    *master.backups.lock() = Some(Kept { number, copy, used: Instant::now() });
    drop(making);
    tracing::info!(index = header.index, bytes = header.bytes(), "made a copy for a backup");
    let begun = BackupAnswer::Begun { backup: number, header };
    Ok(Answer::head(MasterResponse::Backup(begun)))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> WireResult<T> {
    let done = atoll_net::task::spawn_blocking("backup", work).await;
    done.map_err(|error| WireError::internal(error.to_string()))
}

/// Makes the copy and sums up its files.
fn make(state: &Rocks, directory: PathBuf, term: u64, made_at_ms: u64) -> Result<Copy, StoreError> {
    let failed = |error: std::io::Error| StoreError::io("make a copy for a backup", &error);
    match std::fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    std::fs::create_dir_all(&directory).map_err(failed)?;
    let header = BackupHeader {
        format: crate::store::FORMAT_VERSION,
        cluster: atoll_proto::ClusterId([0; 16]),
        index: 0,
        epoch: atoll_proto::Epoch(0),
        term,
        made_at_ms,
        files: Vec::new(),
    };
    // From here on it is removed when something fails.
    let mut copy = Copy { directory, header };
    let place = copy.directory.join("db");
    state.checkpoint(&place)?;
    let files = sum_up(&place).map_err(failed)?;
    let database = Rocks::open_read_only(&place)?;
    let nothing = || StoreError::io("make a copy for a backup", &"there is no cluster yet");
    copy.header.cluster = meta::cluster(&database)?.ok_or_else(nothing)?.cluster;
    copy.header.index = meta::applied(&database)?.map_or(0, |log_id| log_id.index);
    copy.header.epoch = groups::epoch(&database)?;
    copy.header.files = files;
    Ok(copy)
}

fn sum_up(directory: &Path) -> std::io::Result<Vec<BackupFile>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "LOCK" || !entry.file_type()?.is_file() {
            continue;
        }
        let mut checksum = Checksum::default();
        let mut input = BufReader::with_capacity(1 << 20, File::open(entry.path())?);
        let (mut len, mut buffer) = (0, vec![0; 1 << 20]);
        loop {
            let count = input.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            checksum.update(&buffer[..count]);
            len += count as u64;
        }
        files.push(BackupFile { name, len, hash: checksum.finish() });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// Bytes of one file from an offset on.
fn read(copy: &Copy, file: u32, offset: u64) -> WireResult<Bytes> {
    let known = usize::try_from(file).ok().and_then(|file| copy.header.files.get(file));
    let Some(known) = known.filter(|known| offset <= known.len) else {
        return Err(WireError::invalid(format!("the copy has no byte {offset} of file {file}")));
    };
    let len = (known.len - offset).min(u64::from(PART_BYTES));
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    let read = File::open(copy.directory.join("db").join(&known.name))
        .and_then(|file| file.read_exact_at(&mut bytes, offset));
    match read {
        Ok(()) => Ok(Bytes::from(bytes)),
        Err(error) => {
            Err(WireError::internal(format!("cannot read {} of the copy: {error}", known.name)))
        }
    }
}
