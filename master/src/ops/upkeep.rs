//! Upkeep: freeze and release collection, ask for a scrub.
//!
//! The master itself collects nothing while frozen; chunkservers are told with every heartbeat and
//! drop nothing either.

use atoll_proto::error::WireResult;
use atoll_proto::master::{Changed, Orders, UpkeepOp};
use atoll_proto::{WireError, limits};

use crate::operation::Apply;
use crate::store::counters::{self, Counter};
use crate::store::{Read, StoreError, Transaction, meta};

/// Refuses what makes no sense before it is logged.
pub(crate) fn check(op: &UpkeepOp) -> WireResult<()> {
    let UpkeepOp::Freeze { reason } = op else { return Ok(()) };
    if reason.trim().is_empty() {
        return Err(WireError::invalid("collection is frozen with a reason: give one"));
    }
    if reason.len() > limits::MESSAGE_BYTES_MAX {
        return Err(WireError::invalid(format!(
            "the reason has {} bytes; at most {} are kept: shorten it",
            reason.len(),
            limits::MESSAGE_BYTES_MAX
        )));
    }
    Ok(())
}

pub(crate) fn apply(tx: &mut Transaction<'_>, op: &UpkeepOp) -> Apply<Changed> {
    match op {
        UpkeepOp::Freeze { reason } => meta::set_frozen(tx, Some(reason)),
        UpkeepOp::Release => {
            meta::set_frozen(tx, None);
            counters::add(tx, Counter::CollectionRelease, 1)?;
        }
        UpkeepOp::Scrub => drop(counters::add(tx, Counter::ScrubAsked, 1)?),
    }
    Ok(Changed::Upkeep { scrub: counters::get(tx, Counter::ScrubAsked)? })
}

/// What chunkservers are told.
pub(crate) fn orders(read: &impl Read) -> Result<Orders, StoreError> {
    Ok(Orders {
        frozen: meta::frozen(read)?.is_some(),
        release: counters::get(read, Counter::CollectionRelease)?,
        scrub: counters::get(read, Counter::ScrubAsked)?,
    })
}

/// Why the master collects nothing, in words; `None` while it does.
pub(crate) fn held(read: &impl Read) -> Result<Option<String>, StoreError> {
    if let Some(reason) = meta::frozen(read)? {
        return Ok(Some(reason));
    }
    let miscounts = counters::get(read, Counter::Miscounts)?;
    Ok((miscounts > 0).then(|| {
        format!(
            "{miscounts} references were given up that had never been counted: nothing is \
             collected until all are counted again (`atoll fsck --repair` does it at once)"
        )
    }))
}
