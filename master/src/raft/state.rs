//! The state database in its directory: the current generation, checkpoints, replacement.
//!
//! ```text
//! state-current       text: the directory of the current generation
//! state-<n>/          RocksDB, generation n; a received snapshot starts a new one
//! snapshot/           the last checkpoint: db/ (RocksDB) and meta (encoded SnapshotMeta)
//! snapshot.part/      a checkpoint being made
//! incoming            a snapshot being received
//! ```
//! Every switch is one rename, so that a crash leaves either the old or the new.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::entry::SnapshotMeta;
use super::snapshot::SnapshotStream;
use crate::store::rocks::{Rocks, Tuning};
use crate::store::{StoreError, meta, upgrade};

/// The replicated state on disk.
#[derive(Debug)]
pub(crate) struct StateDb {
    directory: PathBuf,
    current: ArcSwap<Rocks>,
}

impl StateDb {
    /// Opens the current generation, making the first one if need be.
    pub(crate) fn open(directory: &Path) -> Result<StateDb, StoreError> {
        let pointer = directory.join("state-current");
        let name = match fs::read_to_string(&pointer) {
            Ok(name) => name.trim().to_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                write_durably(&pointer, b"state-1").map_err(io("write"))?;
                "state-1".to_owned()
            }
            Err(error) => return Err(StoreError::io("read state-current", &error)),
        };
        let rocks = Rocks::open(&directory.join(&name), Tuning::State)?;
        upgrade::upgrade(&rocks)?;
        remove_generations_but(directory, &name);
        let current = ArcSwap::from_pointee(rocks);
        Ok(StateDb { directory: directory.to_owned(), current })
    }

    /// The database as it is now. A received snapshot replaces it; who holds on to this value
    /// sees the state before.
    pub(crate) fn rocks(&self) -> Arc<Rocks> {
        self.current.load_full()
    }

    /// Where a snapshot is received.
    pub(crate) fn begin_receiving(&self) -> Result<SnapshotStream, StoreError> {
        SnapshotStream::into_file(&self.directory.join("incoming")).map_err(io("write"))
    }

    /// Makes a checkpoint of the current state and keeps it as the snapshot. Everything in it is
    /// durable in the state database too, so the log up to it may be purged.
    pub(crate) fn checkpoint(&self) -> Result<SnapshotMeta, StoreError> {
        let part = self.directory.join("snapshot.part");
        remove_directory(&part)?;
        fs::create_dir(&part).map_err(io("create"))?;
        self.rocks().checkpoint(&part.join("db"))?;
        let copy = Rocks::open_read_only(&part.join("db"))?;
        let last_log_id = meta::applied(&copy)?;
        let index = last_log_id.map_or(0, |log_id| log_id.index);
        let term = last_log_id.map_or(0, |log_id| log_id.leader_id.term);
        let snapshot = SnapshotMeta {
            last_log_id,
            last_membership: meta::membership(&copy)?,
            snapshot_id: format!("{term}-{index}"),
        };
        drop(copy);
        write_durably(&part.join("meta"), &atoll_proto::encode(&snapshot)).map_err(io("write"))?;
        let place = self.directory.join("snapshot");
        remove_directory(&place)?;
        fs::rename(&part, &place).map_err(io("rename"))?;
        sync_directory(&self.directory).map_err(io("sync"))?;
        Ok(snapshot)
    }

    /// The last checkpoint, ready to be sent.
    pub(crate) fn snapshot(&self) -> Result<Option<(SnapshotMeta, SnapshotStream)>, StoreError> {
        let place = self.directory.join("snapshot");
        let bytes = match fs::read(place.join("meta")) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("read snapshot/meta", &error)),
        };
        let snapshot = crate::store::decode(b"snapshot/meta", &bytes)?;
        let stream =
            SnapshotStream::of_directory(&place.join("db")).map_err(io("read snapshot"))?;
        Ok(Some((snapshot, stream)))
    }

    /// Replaces the state by a received snapshot.
    pub(crate) fn install(
        &self,
        snapshot: &SnapshotMeta,
        stream: SnapshotStream,
    ) -> Result<(), StoreError> {
        let name = (1u64..)
            .map(|n| format!("state-{n}"))
            .find(|name| !self.directory.join(name).exists())
            .expect("there is a free number");
        let place = self.directory.join(&name);
        stream.unpack(&place).map_err(io("unpack a received snapshot"))?;
        let rocks = Rocks::open(&place, Tuning::State)?;
        if meta::applied(&rocks)? != snapshot.last_log_id {
            drop(rocks);
            remove_directory(&place)?;
            return Err(StoreError::io("use a received snapshot", &"it is not what it says"));
        }
        upgrade::upgrade(&rocks)?;
        write_durably(&self.directory.join("state-current"), name.as_bytes())
            .map_err(io("write"))?;
        self.current.store(Arc::new(rocks));
        if let Err(error) = fs::remove_file(self.directory.join("incoming")) {
            tracing::debug!(%error, "the received snapshot is already gone");
        }
        // openraft wants the installed snapshot to be the current one. The state before stays on
        // disk until the next start: readers may still hold it.
        self.checkpoint().map(drop)
    }
}

/// Who votes by the state in a data directory that no master runs on, read without changing it; nobody
/// when it cannot be read.
pub(crate) fn stored_voters(directory: &Path) -> BTreeSet<u64> {
    let Ok(name) = fs::read_to_string(directory.join("state-current")) else {
        return BTreeSet::new();
    };
    let rocks = Rocks::open_read_only(&directory.join(name.trim()));
    let membership = rocks.and_then(|rocks| meta::membership(&rocks));
    membership.map(|membership| membership.voter_ids().collect()).unwrap_or_default()
}

/// Makes a file with these bytes, or leaves the one that was there.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let part = path.with_extension("part");
    let mut file = File::create(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&part, path)?;
    match path.parent() {
        Some(parent) => sync_directory(parent),
        None => Ok(()),
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

fn remove_directory(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io("remove a directory", &error))
        }
        _ => Ok(()),
    }
}

fn remove_generations_but(directory: &Path, current: &str) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let generation = name.strip_prefix("state-").is_some_and(|n| n.parse::<u64>().is_ok());
        if generation
            && name != current
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::warn!(%error, name, "cannot remove an old state; it only takes space");
        }
    }
}

fn io(verb: &'static str) -> impl Fn(std::io::Error) -> StoreError {
    move |error| StoreError::io(verb, &error)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::store::{Read, Transaction};
    use openraft::CommittedLeaderId;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn write(state: &StateDb, index: u64, value: &[u8]) {
        let rocks = state.rocks();
        let mut tx = Transaction::new(&rocks);
        tx.put(b"key".to_vec(), value.to_vec());
        let leader = CommittedLeaderId::new(1, 1);
        meta::set_applied(&mut tx, &crate::raft::entry::LogId::new(leader, index));
        tx.commit().unwrap();
    }

    fn value(state: &StateDb) -> Option<Vec<u8>> {
        state.rocks().get(b"key").unwrap()
    }

    #[tokio::test]
    async fn a_snapshot_travels_and_replaces_the_state() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let sender = StateDb::open(from.path()).unwrap();
        write(&sender, 7, b"new");
        assert!(sender.snapshot().unwrap().is_none());
        sender.checkpoint().unwrap();
        write(&sender, 8, b"later");
        let (meta, mut stream) = sender.snapshot().unwrap().unwrap();
        assert_eq!(meta.last_log_id.unwrap().index, 7);

        let receiver = StateDb::open(to.path()).unwrap();
        write(&receiver, 3, b"old");
        let before = receiver.rocks();
        let mut incoming = receiver.begin_receiving().unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        incoming.write_all(&bytes).await.unwrap();
        receiver.install(&meta, incoming).unwrap();
        assert_eq!(value(&receiver).unwrap(), b"new");
        // Who was reading goes on with the state before.
        assert_eq!(before.get(b"key").unwrap().unwrap(), b"old");
        assert_eq!(receiver.snapshot().unwrap().unwrap().0.last_log_id, meta.last_log_id);
        drop((before, receiver));
        let receiver = StateDb::open(to.path()).unwrap();
        assert_eq!(value(&receiver).unwrap(), b"new");
        assert!(!to.path().join("state-1").exists());

        // A snapshot that is not what it says changes nothing.
        let mut incoming = receiver.begin_receiving().unwrap();
        incoming.write_all(&bytes).await.unwrap();
        let wrong = SnapshotMeta { last_log_id: None, ..meta };
        assert!(receiver.install(&wrong, incoming).is_err());
        let mut incoming = receiver.begin_receiving().unwrap();
        incoming.write_all(&bytes[..bytes.len() / 2]).await.unwrap();
        assert!(receiver.install(&wrong, incoming).is_err());
        assert_eq!(value(&receiver).unwrap(), b"new");
    }
}
