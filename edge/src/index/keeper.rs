//! Brings the table to disk behind what is in force: the latest, one write at a time.
//!
//! [`super::Index::put`] hands every table over. Nothing waits for the disk: neither visitors nor a
//! publish, which a slow disk would hold up. What is on disk when a crash comes is some table of
//! before, and a restarted edge serves nothing until it has caught up (see [`super::snapshot`]).

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::snapshot;
use super::table::Table;

#[derive(Debug)]
pub(super) struct Keeper {
    dir: PathBuf,
    state: Mutex<State>,
    /// Told when nothing is left to write.
    idle: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// To be written; a later one takes its place.
    next: Option<Arc<Table>>,
    /// Whether somebody writes.
    busy: bool,
}

impl Keeper {
    pub(super) fn new(dir: PathBuf) -> Arc<Keeper> {
        Arc::new(Keeper { dir, state: Mutex::default(), idle: Notify::new() })
    }

    /// Stores a table soon, unless a later one comes before that. Inside a Tokio runtime.
    pub(super) fn keep(self: &Arc<Self>, table: Arc<Table>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.next = Some(table);
        if !state.busy {
            state.busy = true;
            let keeper = self.clone();
            // It reports its errors itself.
            drop(atoll_net::task::spawn_blocking("index-store", move || keeper.work()));
        }
    }

    /// Waits until the last table that was handed over is stored, or could not be.
    pub(super) async fn settled(&self) {
        loop {
            let told = self.idle.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            if !self.state.lock().unwrap_or_else(PoisonError::into_inner).busy {
                return;
            }
            told.await;
        }
    }

    fn work(&self) {
        let _writing = Writing(self);
        loop {
            let table = {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.busy = state.next.is_some();
                state.next.take()
            };
            let Some(table) = table else { return };
            if let Err(error) = snapshot::store(&self.dir, &table) {
                metrics::counter!("atoll_edge_index_store_errors_total").increment(1);
                tracing::warn!(%error, seq = %table.seq(), "the table of sites cannot be stored; \
                    it is in force all the same, but a restart begins with an older one and \
                    catches up first: is the disk full?");
            }
        }
    }
}

/// Somebody writes. However that ends, the next table is written by somebody else.
struct Writing<'a>(&'a Keeper);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        // After an orderly end another may write already.
        if std::thread::panicking() {
            metrics::counter!("atoll_edge_index_store_errors_total").increment(1);
            self.0.state.lock().unwrap_or_else(PoisonError::into_inner).busy = false;
        }
        self.0.idle.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::{ClusterId, Seq};

    use super::*;

    const CLUSTER: ClusterId = ClusterId([7; 16]);

    fn table(seq: u64) -> Arc<Table> {
        let mut table = Table::empty(CLUSTER);
        table.advance(Seq(seq));
        Arc::new(table)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_last_of_many_is_what_is_stored() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Keeper::new(dir.path().to_owned());
        keeper.settled().await;
        for seq in 1..=200 {
            keeper.keep(table(seq));
            if seq % 50 == 0 {
                keeper.settled().await;
                assert_eq!(snapshot::load(dir.path(), CLUSTER).unwrap().seq(), Seq(seq));
            }
        }
    }

    #[tokio::test]
    async fn a_panic_does_not_end_the_writing() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Keeper::new(dir.path().to_owned());
        keeper.state.lock().unwrap().busy = true;
        let writer = keeper.clone();
        let panicked = std::thread::spawn(move || {
            let _writing = Writing(&writer);
            panic!("as a bug would");
        });
        assert!(panicked.join().is_err());
        keeper.settled().await;
        keeper.keep(table(3));
        keeper.settled().await;
        assert_eq!(snapshot::load(dir.path(), CLUSTER).unwrap().seq(), Seq(3));
    }

    #[tokio::test]
    async fn what_cannot_be_stored_is_tried_with_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Keeper::new(dir.path().to_owned());
        let blocked = dir.path().join("index.snapshot.new");
        std::fs::create_dir(&blocked).unwrap();
        keeper.keep(table(1));
        keeper.settled().await;
        assert!(snapshot::load(dir.path(), CLUSTER).is_none());
        std::fs::remove_dir(&blocked).unwrap();
        keeper.keep(table(2));
        keeper.settled().await;
        assert_eq!(snapshot::load(dir.path(), CLUSTER).unwrap().seq(), Seq(2));
    }
}
