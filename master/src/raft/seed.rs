//! A data directory made out of a state from elsewhere, as [`crate::restore()`] does it.
//!
//! The new history must never be mistaken for the one that was lost: whatever others remember of that
//! one (log positions, terms, epochs, numbers given out) is below what comes from now on, because
//! all of it is raised by [`RAISE`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;

use openraft::{BasicNode, Membership};

use super::entry::{StoredMembership, Vote};
use super::log;
use super::state::write_durably;
use crate::store::counters::{self, Counter};
use crate::store::rocks::{Rocks, Tuning};
use crate::store::{StoreError, Transaction, deltas, erased, masters, meta, publish_log, upgrade};

/// Far beyond what a lost history can have reached since the backup.
pub(crate) const RAISE: u64 = 1 << 32;

/// Where the state is within the data directory: its first generation.
pub(crate) const STATE: &str = "state-1";

/// Turns a data directory that holds a state in [`STATE`] into that of a master that has never
/// voted in a term that others may know, and whose log begins behind the state.
pub(crate) fn seed(
    data: &Path,
    id: u64,
    voters: &BTreeMap<u64, SocketAddr>,
    frozen: &str,
) -> Result<(), StoreError> {
    let rocks = Rocks::open(&data.join(STATE), Tuning::State)?;
    upgrade::upgrade(&rocks)?;
    let nothing = || StoreError::io("restore", &"the state was never used: it has no log index");
    let mut applied = meta::applied(&rocks)?.ok_or_else(nothing)?;
    applied.index = applied.index.saturating_add(RAISE);
    let mut tx = Transaction::new(&rocks);
    raise(&mut tx, applied.index)?;
    meta::set_applied(&mut tx, &applied);
    let nodes: BTreeMap<u64, BasicNode> =
        voters.iter().map(|(id, addr)| (*id, BasicNode::new(addr))).collect();
    let ids: BTreeSet<u64> = nodes.keys().copied().collect();
    let membership = Membership::new(vec![ids], nodes);
    meta::set_membership(&mut tx, &StoredMembership::new(Some(applied), membership));
    meta::set_frozen(&mut tx, Some(frozen));
    // The masters of the new history are others, whatever their ids are.
    masters::drop_all(&mut tx)?;
    tx.commit_synced()?;
    drop(rocks);

    let term = applied.leader_id.term.saturating_add(RAISE);
    log::begin(&data.join("log"), &Vote::new(term, id), &applied)?;
    let written = write_durably(&data.join("state-current"), STATE.as_bytes());
    written.map_err(|error| StoreError::io("write state-current", &error))
}

/// Raises every number that others may remember from the lost history.
fn raise(tx: &mut Transaction<'_>, index: u64) -> Result<(), StoreError> {
    for counter in [
        Counter::Epoch,
        Counter::LastSession,
        Counter::LastInode,
        Counter::CollectionRelease,
        Counter::ScrubAsked,
    ] {
        let raised = counters::get(tx, counter)?.saturating_add(RAISE);
        counters::set(tx, counter, raised);
    }
    counters::set(tx, Counter::ViewChanged, index);
    // Who follows must begin with a comparison or a snapshot.
    deltas::drop_all(tx, index)?;
    erased::begin_at(tx, index);
    publish_log::begin_at(tx, atoll_proto::Seq(index))
}
