//! The Raft log and vote in RocksDB. openraft calls it; what an entry means is not known here.
//!
//! Appended entries and votes are on disk before they are acknowledged, with one sync per batch.
//!
//! | key | value |
//! |---|---|
//! | 1, 1 | the vote |
//! | 1, 2 | the last committed log id (not synced: a hint that shortens recovery) |
//! | 1, 3 | the last purged log id |
//! | 2, index (u64 big-endian) | the entry |

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, LogState, OptionalSend, RaftLogReader};

use super::entry::{Entry, LogId, StorageError, StorageIoError, TypeConfig, Vote};
use crate::store::rocks::{Batch, Rocks, Tuning};
use crate::store::{Order, Read, StoreError, decode};

const VOTE: [u8; 2] = [1, 1];
const COMMITTED: [u8; 2] = [1, 2];
const PURGED: [u8; 2] = [1, 3];
const ENTRY: u8 = 2;
/// Replication reads at most about this many bytes of entries at a time.
const READ_BYTES_MAX: usize = 2 << 20;

/// The log of one master. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct LogStore {
    rocks: Arc<Rocks>,
    appended_bytes: Arc<AtomicU64>,
}

impl LogStore {
    /// The log in this database.
    pub(crate) fn new(rocks: Rocks) -> LogStore {
        LogStore { rocks: Arc::new(rocks), appended_bytes: Arc::default() }
    }

    /// Is gone once the database is closed.
    pub(super) fn open_mark(&self) -> Weak<()> {
        self.rocks.open_mark()
    }

    /// Whether nothing was ever written: no vote, no entry.
    pub(crate) fn is_empty(&self) -> Result<bool, StoreError> {
        Ok(!self.rocks.any(&[0], &[0xff])?)
    }

    /// The index of the last entry and the vote.
    pub(crate) fn position(&self) -> Result<(Option<u64>, Option<Vote>), StoreError> {
        let last = self.last()?.or(self.rocks.get_value(&PURGED)?);
        Ok((last.map(|log_id| log_id.index), self.rocks.get_value(&VOTE)?))
    }

    /// Bytes appended since the last call.
    pub(crate) fn take_appended_bytes(&self) -> u64 {
        self.appended_bytes.swap(0, Ordering::Relaxed)
    }

    /// The last entry before those that make up so many bytes at the end; `None` when there is none.
    pub(crate) fn before_the_last(&self, bytes: u64) -> Result<Option<u64>, StoreError> {
        let (mut sum, mut found) = (0, None);
        let (from, to) = ([ENTRY], [ENTRY + 1]);
        self.rocks.scan(&from, &to, Order::Descending, &mut |key, value| {
            sum += value.len() as u64;
            if sum > bytes {
                found = key.get(1..).and_then(|key| Some(u64::from_be_bytes(key.try_into().ok()?)));
            }
            Ok(sum <= bytes)
        })?;
        Ok(found)
    }

    fn last(&self) -> Result<Option<LogId>, StoreError> {
        let mut last = None;
        let (from, to) = ([ENTRY], [ENTRY + 1]);
        self.rocks.scan(&from, &to, Order::Descending, &mut |key, value| {
            last = Some(decode::<Entry>(key, value)?.log_id);
            Ok(false)
        })?;
        Ok(last)
    }

    fn read(&self, from: u64, to: u64, bytes_max: usize) -> Result<Vec<Entry>, StoreError> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        self.rocks.scan(
            &entry_key(from),
            &entry_key(to),
            Order::Ascending,
            &mut |key, value| {
                if bytes > 0 && bytes + value.len() > bytes_max {
                    return Ok(false);
                }
                bytes += value.len();
                entries.push(decode(key, value)?);
                Ok(true)
            },
        )?;
        Ok(entries)
    }

    /// Writes and syncs.
    async fn write(&self, batch: Batch) -> Result<(), StoreError> {
        metrics::counter!("atoll_master_log_syncs_total").increment(1);
        let rocks = self.rocks.clone();
        atoll_net::task::spawn_blocking("log-write", move || rocks.write(batch, true))
            .await
            .unwrap_or_else(|error| Err(StoreError::io("write", &error)))
    }
}

/// Makes a log that holds nothing but this vote and begins behind this entry.
pub(super) fn begin(directory: &Path, vote: &Vote, behind: &LogId) -> Result<(), StoreError> {
    let log = LogStore::new(Rocks::open(directory, Tuning::Log)?);
    if !log.is_empty()? {
        return Err(StoreError::io("begin a log", &"there is one already"));
    }
    let mut batch = Batch::default();
    batch.put(&VOTE, &atoll_proto::encode(vote));
    batch.put(&PURGED, &atoll_proto::encode(behind));
    log.rocks.write(batch, true)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let from = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(index) => index.saturating_add(1),
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        if from >= to {
            return Ok(Vec::new());
        }
        self.read(from, to, usize::MAX).map_err(read_logs)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        self.read(start, end, READ_BYTES_MAX).map_err(read_logs)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let purged: Option<LogId> = self.rocks.get_value(&PURGED).map_err(read_logs)?;
        let last = self.last().map_err(read_logs)?.or(purged);
        Ok(LogState { last_purged_log_id: purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let mut batch = Batch::default();
        batch.put(&VOTE, &atoll_proto::encode(vote));
        let written = self.write(batch).await;
        written.map_err(|e| StorageIoError::write_vote(AnyError::new(&e)).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        let vote = self.rocks.get_value(&VOTE);
        vote.map_err(|e| StorageIoError::read_vote(AnyError::new(&e)).into())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        let mut batch = Batch::default();
        match committed {
            Some(log_id) => batch.put(&COMMITTED, &atoll_proto::encode(&log_id)),
            None => batch.delete(&COMMITTED),
        }
        // Microseconds, as it is not synced: no thread is worth it.
        self.rocks.write(batch, false).map_err(write_logs)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        self.rocks.get_value(&COMMITTED).map_err(read_logs)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batch = Batch::default();
        let mut bytes = 0;
        for entry in entries {
            let value = atoll_proto::encode(&entry);
            bytes += value.len() as u64;
            batch.put(&entry_key(entry.log_id.index), &value);
        }
        self.appended_bytes.fetch_add(bytes, Ordering::Relaxed);
        match self.write(batch).await {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => {
                callback.log_io_completed(Err(io::Error::other(error.to_string())));
                Err(write_logs(error))
            }
        }
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let mut batch = Batch::default();
        batch.delete_range(&entry_key(log_id.index), &[ENTRY + 1]);
        self.write(batch).await.map_err(write_logs)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let mut batch = Batch::default();
        batch.put(&PURGED, &atoll_proto::encode(&log_id));
        batch.delete_range(&[ENTRY], &entry_key(log_id.index.saturating_add(1)));
        self.write(batch).await.map_err(write_logs)
    }
}

fn entry_key(index: u64) -> [u8; 9] {
    let mut key = [ENTRY; 9];
    key[1..].copy_from_slice(&index.to_be_bytes());
    key
}

fn read_logs(error: StoreError) -> StorageError {
    StorageIoError::read_logs(AnyError::new(&error)).into()
}

fn write_logs(error: StoreError) -> StorageError {
    StorageIoError::write_logs(AnyError::new(&error)).into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::raft::entry::EntryData;
    use openraft::storage::RaftLogStorageExt;
    use openraft::{CommittedLeaderId, EntryPayload};

    fn entry(index: u64) -> Entry {
        let data = EntryData { at_ns: index, operations: vec![vec![7; 10].into()] };
        Entry {
            log_id: LogId::new(CommittedLeaderId::new(1, 1), index),
            payload: EntryPayload::Normal(data),
        }
    }

    #[tokio::test]
    async fn entries_votes_and_purges_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogStore::new(Rocks::open(dir.path(), Tuning::Log).unwrap());
        assert!(log.is_empty().unwrap());
        assert_eq!(log.get_log_state().await.unwrap(), LogState::default());
        log.blocking_append((1..=5).map(entry)).await.unwrap();
        let vote = Vote::new(4, 1);
        log.save_vote(&vote).await.unwrap();
        log.truncate(entry(5).log_id).await.unwrap();
        log.purge(entry(2).log_id).await.unwrap();
        log.save_committed(Some(entry(3).log_id)).await.unwrap();
        drop(log);

        let mut log = LogStore::new(Rocks::open(dir.path(), Tuning::Log).unwrap());
        assert!(!log.is_empty().unwrap());
        let state = log.get_log_state().await.unwrap();
        assert_eq!(state.last_purged_log_id, Some(entry(2).log_id));
        assert_eq!(state.last_log_id, Some(entry(4).log_id));
        assert_eq!(log.read_vote().await.unwrap(), Some(vote));
        assert_eq!(log.read_committed().await.unwrap(), Some(entry(3).log_id));
        assert_eq!(log.try_get_log_entries(..).await.unwrap(), vec![entry(3), entry(4)]);
        assert_eq!(log.try_get_log_entries(4..=4).await.unwrap(), vec![entry(4)]);
        log.purge(entry(4).log_id).await.unwrap();
        assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(entry(4).log_id));
        assert_eq!(log.position().unwrap(), (Some(4), Some(vote)));
    }

    #[tokio::test]
    async fn a_long_range_is_read_in_parts_but_never_empty() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogStore::new(Rocks::open(dir.path(), Tuning::Log).unwrap());
        log.blocking_append((1..=4).map(entry)).await.unwrap();
        assert_eq!(log.read(1, 5, 1).unwrap().len(), 1);
        assert_eq!(log.read(1, 5, usize::MAX).unwrap().len(), 4);
        assert!(log.take_appended_bytes() > 40);
        assert_eq!(log.take_appended_bytes(), 0);
        assert_eq!(log.limited_get_log_entries(2, 4).await.unwrap().len(), 2);
        let bytes = atoll_proto::encode(&entry(1)).len() as u64;
        assert_eq!(log.before_the_last(2 * bytes).unwrap(), Some(2));
        assert_eq!(log.before_the_last(2 * bytes - 1).unwrap(), Some(3));
        assert_eq!(log.before_the_last(4 * bytes).unwrap(), None);
    }
}
