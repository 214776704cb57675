//! The state machine as openraft drives it: applies entries, makes and installs snapshots.
//!
//! What operations mean is in [`crate::ops`]; this module gives each entry one transaction, so
//! that its changes and its index become visible together, and applying it again after a crash
//! is recognised by the index.

use std::sync::Arc;

use openraft::storage::RaftStateMachine;
use openraft::{AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot};
use tokio::sync::watch;

use super::entry::{
    Entry, EntryReply, LogId, SnapshotMeta, StorageError, StorageIoError, StoredMembership,
    TypeConfig,
};
use super::snapshot::SnapshotStream;
use super::state::StateDb;
use crate::live::marks::Marks;
use crate::operation::Now;
use crate::store::counters::{self, Counter};
use crate::store::rocks::Rocks;
use crate::store::{StoreError, Transaction, deltas, meta, publish_log};

/// How far the state is; watchers wake when it moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Applied {
    /// Index of the last applied entry.
    pub(crate) index: u64,
    /// Latest entry of the publish log.
    pub(crate) publish_seq: u64,
    /// Log index of the last change of nodes or placement.
    pub(crate) view_changed: u64,
    /// Epoch of the placement table.
    pub(crate) epoch: u64,
    /// Log index of the latest delta.
    pub(crate) delta_last: u64,
    /// Log index of the last change of the namespace since this master started.
    pub(crate) namespace_changed: u64,
    /// Log index of the last change of a site since this master started.
    pub(crate) sites_changed: u64,
}

impl Applied {
    fn of(rocks: &Rocks, marks: &Marks) -> Result<Applied, StoreError> {
        let (namespace_changed, sites_changed) = marks.latest();
        Ok(Applied {
            index: meta::applied(rocks)?.map_or(0, |log_id| log_id.index),
            publish_seq: publish_log::last(rocks)?.0,
            view_changed: counters::get(rocks, Counter::ViewChanged)?,
            epoch: counters::get(rocks, Counter::Epoch)?,
            delta_last: deltas::last(rocks)?,
            namespace_changed,
            sites_changed,
        })
    }
}

/// Applies entries to the state database.
#[derive(Debug, Clone)]
pub(crate) struct StateMachine {
    state: Arc<StateDb>,
    applied: watch::Sender<Applied>,
    marks: Arc<Marks>,
}

impl StateMachine {
    /// The machine over this state.
    pub(crate) fn new(state: Arc<StateDb>) -> Result<StateMachine, StoreError> {
        let marks = Arc::<Marks>::default();
        let applied = watch::Sender::new(Applied::of(&state.rocks(), &marks)?);
        Ok(StateMachine { state, applied, marks })
    }

    /// Follows how far the state is.
    pub(crate) fn applied(&self) -> watch::Receiver<Applied> {
        self.applied.subscribe()
    }

    /// Which inodes the last entries changed.
    pub(crate) fn marks(&self) -> Arc<Marks> {
        self.marks.clone()
    }

    fn apply_all(&self, entries: Vec<Entry>) -> Result<Vec<EntryReply>, StoreError> {
        let rocks = self.state.rocks();
        let replies = entries
            .into_iter()
            .map(|entry| apply(&rocks, entry, &self.marks))
            .collect::<Result<Vec<_>, StoreError>>()?;
        self.applied.send_replace(Applied::of(&rocks, &self.marks)?);
        Ok(replies)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&StateMachine) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let machine = self.clone();
        atoll_net::task::spawn_blocking("state-machine", move || work(&machine))
            .await
            .unwrap_or_else(|error| Err(StoreError::io("apply", &error)))
    }
}

/// Applies one entry in one write. An entry that is already applied changes nothing.
pub(crate) fn apply(rocks: &Rocks, entry: Entry, marks: &Marks) -> Result<EntryReply, StoreError> {
    let mut replies = Vec::new();
    if meta::applied(rocks)?.is_some_and(|applied| applied.index >= entry.log_id.index) {
        return Ok(EntryReply { replies });
    }
    let mut tx = Transaction::new(rocks);
    match entry.payload {
        EntryPayload::Blank => {}
        EntryPayload::Membership(membership) => {
            let stored = StoredMembership::new(Some(entry.log_id), membership);
            meta::set_membership(&mut tx, &stored);
        }
        EntryPayload::Normal(data) => {
            // The state's clock never goes back, whatever the leaders' clocks do.
            let at_ns = data.at_ns.max(meta::clock_ns(&tx)?);
            meta::set_clock_ns(&mut tx, at_ns);
            let now = Now { index: entry.log_id.index, at_ns };
            for operation in &data.operations {
                replies.push(crate::ops::apply(&mut tx, now, operation)?);
            }
        }
    }
    meta::set_applied(&mut tx, &entry.log_id);
    // Before it becomes visible: who sees the entry finds its marks.
    marks.note(entry.log_id.index, &tx)?;
    tx.commit()?;
    Ok(EntryReply { replies })
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = StateMachine;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let rocks = self.state.rocks();
        let read = || Ok((meta::applied(&*rocks)?, meta::membership(&*rocks)?));
        read().map_err(|e: StoreError| StorageIoError::read_state_machine(AnyError::new(&e)).into())
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<EntryReply>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let replies = self.blocking(move |machine| machine.apply_all(entries)).await;
        replies.map_err(|e| StorageIoError::write_state_machine(AnyError::new(&e)).into())
    }

    async fn get_snapshot_builder(&mut self) -> StateMachine {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotStream>, StorageError> {
        self.state.begin_receiving().map(Box::new).map_err(write_snapshot)
    }

    async fn install_snapshot(
        &mut self,
        snapshot: &SnapshotMeta,
        stream: Box<SnapshotStream>,
    ) -> Result<(), StorageError> {
        let snapshot = snapshot.clone();
        let installed = self.blocking(move |machine| {
            machine.state.install(&snapshot, *stream)?;
            machine.marks.lose(snapshot.last_log_id.map_or(0, |log_id| log_id.index));
            let applied = Applied::of(&machine.state.rocks(), &machine.marks)?;
            machine.applied.send_replace(applied);
            Ok(())
        });
        installed.await.map_err(write_snapshot)
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let snapshot = self.blocking(|machine| machine.state.snapshot()).await;
        let snapshot =
            snapshot.map_err(|e| StorageIoError::read_snapshot(None, AnyError::new(&e)))?;
        Ok(snapshot.map(|(meta, stream)| Snapshot { meta, snapshot: Box::new(stream) }))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let built = self.blocking(|machine| {
            machine.state.checkpoint()?;
            let missing = || StoreError::io("read a snapshot", &"it vanished");
            machine.state.snapshot()?.ok_or_else(missing)
        });
        let (meta, stream) = built.await.map_err(write_snapshot)?;
        Ok(Snapshot { meta, snapshot: Box::new(stream) })
    }
}

fn write_snapshot(error: StoreError) -> StorageError {
    StorageIoError::write_snapshot(None, AnyError::new(&error)).into()
}
