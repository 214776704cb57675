//! Brings the table to disk behind what is in force: the latest, one write at a time, and some of
//! them left out: what comes within a second is written once or twice.
//!
//! [`super::Index::put`] hands every table over. Nothing waits for the disk: neither visitors nor a
//! publish, which a slow disk would hold up; and edges that hear of a publish at the same moment do
//! not all write at the same moment. What is on disk when a crash comes is some table of before, and a
//! restarted edge serves nothing until it has caught up (see [`super::snapshot`]).

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atoll_net::retry::Pace;
use tokio::sync::Notify;

use super::snapshot;
use super::table::Table;

/// How long a table waits for later ones: anything up to this.
const WAIT: Duration = Duration::from_secs(1);

/// How a table is stored in a directory; blocking.
type Store = fn(&Path, &Table) -> std::io::Result<()>;

#[derive(Debug)]
pub(super) struct Keeper {
    dir: PathBuf,
    /// The longest that a table waits for later ones, while nobody waits for it.
    wait: Duration,
    store: Store,
    state: Mutex<State>,
    /// Told when nothing is left to write.
    idle: Notify,
    /// Told when somebody waits for that.
    hurry: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// To be written; a later one takes its place.
    next: Option<Arc<Table>>,
    /// Whether somebody writes, or is about to.
    busy: bool,
    /// How many wait until everything is written.
    waiting: usize,
}

impl Keeper {
    pub(super) fn new(dir: PathBuf) -> Arc<Keeper> {
        Keeper::waiting(dir, WAIT, snapshot::store)
    }

    fn waiting(dir: PathBuf, wait: Duration, store: Store) -> Arc<Keeper> {
        let (state, idle, hurry) = (Mutex::default(), Notify::new(), Notify::new());
        Arc::new(Keeper { dir, wait, store, state, idle, hurry })
    }

    /// Stores a table soon, unless a later one comes before that. Inside a Tokio runtime.
    pub(super) fn keep(self: &Arc<Self>, table: Arc<Table>) {
        let mut state = self.state();
        state.next = Some(table);
        if !state.busy {
            state.busy = true;
            drop(atoll_net::task::spawn("index-keeper", self.clone().work()));
        }
    }

    /// Waits until the last table that was handed over is stored, or could not be. That is at once.
    pub(super) async fn settled(&self) {
        let _waiting = Waiting::new(self);
        self.hurry.notify_waiters();
        loop {
            let told = self.idle.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            if !self.state().busy {
                return;
            }
            told.await;
        }
    }

    async fn work(self: Arc<Self>) {
        let mut pace = Pace::new(self.wait);
        loop {
            self.wait_for_more(pace.pause(rand::random())).await;
            let Some(table) = self.take() else { return };
            let (keeper, seq) = (self.clone(), table.seq());
            let store = move || (keeper.store)(&keeper.dir, &table);
            let stored = match atoll_net::task::spawn_blocking("index-store", store).await {
                Ok(stored) => stored.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = stored {
                metrics::counter!("atoll_edge_index_store_errors_total").increment(1);
                tracing::warn!(error, %seq, "the table of sites cannot be stored; \
                    it is in force all the same, but a restart begins with an older one and \
                    catches up first: is the disk full?");
            }
        }
    }

    /// Waits so long, or until somebody waits for the disk.
    async fn wait_for_more(&self, pause: Duration) {
        let hurry = self.hurry.notified();
        tokio::pin!(hurry);
        hurry.as_mut().enable();
        // Nobody waits for nothing.
        let nobody = {
            let state = self.state();
            state.waiting == 0 && state.next.is_some()
        };
        if nobody {
            let _ = tokio::time::timeout(pause, hurry).await;
        }
    }

    /// What is to be written; if that is nothing, all who wait are told.
    fn take(&self) -> Option<Arc<Table>> {
        let mut state = self.state();
        let next = state.next.take();
        state.busy = next.is_some();
        drop(state);
        if next.is_none() {
            self.idle.notify_waiters();
        }
        next
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody waits, until this is dropped.
struct Waiting<'a>(&'a Keeper);

impl Waiting<'_> {
    fn new(keeper: &Keeper) -> Waiting<'_> {
        keeper.state().waiting += 1;
        Waiting(keeper)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
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
    async fn what_nobody_waits_for_is_stored_too() {
        let dir = tempfile::tempdir().unwrap();
        let keeper =
            Keeper::waiting(dir.path().to_owned(), Duration::from_millis(50), snapshot::store);
        for seq in 1..=20 {
            keeper.keep(table(seq));
        }
        let stored = || snapshot::load(dir.path(), CLUSTER).map(|table| table.seq());
        let stored = async {
            while stored() != Some(Seq(20)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), stored).await.unwrap();
    }

    /// Without the hurry, this takes hours.
    #[tokio::test]
    async fn who_waits_for_the_disk_does_not_wait_for_more() {
        let dir = tempfile::tempdir().unwrap();
        let keeper =
            Keeper::waiting(dir.path().to_owned(), Duration::from_secs(1_000_000), snapshot::store);
        for seq in 1..=20 {
            keeper.keep(table(seq));
            // The writer waits already, every other time.
            if seq % 2 == 0 {
                tokio::task::yield_now().await;
            }
            let before = snapshot::load(dir.path(), CLUSTER).map(|table| table.seq());
            assert!(before != Some(Seq(seq)), "it waits for more");
            tokio::time::timeout(Duration::from_secs(60), keeper.settled()).await.unwrap();
            assert_eq!(snapshot::load(dir.path(), CLUSTER).unwrap().seq(), Seq(seq));
        }
    }

    #[tokio::test]
    async fn a_panic_does_not_end_the_writing() {
        let dir = tempfile::tempdir().unwrap();
        let store: Store = |dir, table| {
            assert!(table.seq() != Seq(1), "as a bug would");
            snapshot::store(dir, table)
        };
        let keeper = Keeper::waiting(dir.path().to_owned(), WAIT, store);
        for seq in [1, 3] {
            keeper.keep(table(seq));
            keeper.settled().await;
        }
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
