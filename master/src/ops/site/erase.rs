//! Erase: bytes that were taken down. And lifting that.
//!
//! The client has looked at everything that leads to the chunks, and shown it to a person. Here it is
//! compared with what there is now: when anything else leads to one of them, nothing is erased. So
//! nobody loses bytes that were not named. Who carries it out follows the list of erased chunks
//! ([`crate::ops::erased`]); edges are told by the publish log as well.

use std::collections::HashSet;

use atoll_proto::erase::{Doomed, Erasure, ErasureRecord, Parent};
use atoll_proto::master::ObjectKind;
use atoll_proto::publish::{Erase, PublishEvent, Published};
use atoll_proto::{ChunkId, Code, Epoch, Seq, SiteName, WireError, limits};

use super::log;
use crate::operation::{Apply, Now};
use crate::store::counters::{self, Counter};
use crate::store::inodes::{self, Body};
use crate::store::{
    Read, StoreError, Transaction, below, deploys, erased, erasures, groups, objects,
};

pub(super) fn erase(tx: &mut Transaction<'_>, now: Now, request: Erase) -> Apply<Published> {
    let Erase { site, chunks, withheld, parents, named } = request;
    super::site(tx, &site)?;
    check_count(chunks.len() + withheld.len())?;
    if parents.len() > limits::ERASE_PARENTS_MAX {
        let (are, most) = (parents.len(), limits::ERASE_PARENTS_MAX);
        let message =
            format!("{are} things lead to these chunks; name fewer paths, at most {most}");
        return Err(WireError::new(Code::Limit, message).into());
    }
    check_shape(&chunks, &withheld, &parents)?;
    for doomed in &chunks {
        check_doomed(tx, doomed)?;
    }
    for parent in &parents {
        check_parent(tx, parent)?;
    }
    let mut new = 0;
    for id in chunks.iter().map(|doomed| &doomed.id).chain(&withheld) {
        new += u64::from(erased::get(tx, id)?.is_none());
    }
    if erased::count(tx)? + new > limits::ERASED_MAX {
        let most = limits::ERASED_MAX;
        let message = format!("a cluster can remember {most} erased chunks, and has no room left");
        return Err(WireError::new(Code::Limit, message).into());
    }
    let event = PublishEvent::Erased { site: site.clone() };
    let seq = log(tx, now, |_| event)?;
    for doomed in &chunks {
        objects::erase(tx, now, seq, &doomed.id, Erasure::Erased)?;
    }
    for id in &withheld {
        objects::erase(tx, now, seq, id, Erasure::Withheld)?;
    }
    for parent in &parents {
        if let Parent::Page { id, below: lost, .. } = parent {
            below::add(tx, id, lost)?;
        }
    }
    erased::ask_anew(tx, seq.0)?;
    let record = ErasureRecord { site, at_ms: now.at_ms(), named, lists: withheld };
    erasures::put(tx, &record);
    Ok(Published { seq, deploy: None, previous: None })
}

/// Works also for a site that is gone: what was erased for its sake is still refused to everybody.
pub(super) fn unerase(
    tx: &mut Transaction<'_>,
    now: Now,
    site: SiteName,
    chunks: &[ChunkId],
    lists: &[ChunkId],
) -> Apply<Published> {
    check_count(chunks.len())?;
    check_count(lists.len().max(1))?;
    let event = PublishEvent::Erased { site: site.clone() };
    let seq: Seq = log(tx, now, |_| event)?;
    // Whatever was acknowledged before is for bytes that are gone.
    let epoch = Epoch(groups::epoch(tx)?.0 + 1);
    counters::set(tx, Counter::Epoch, epoch.0);
    counters::set(tx, Counter::ViewChanged, now.index);
    for id in chunks {
        objects::lift(tx, seq, id, epoch)?;
    }
    for id in lists {
        if is_withheld(tx, id)? && below::lost(tx, id, 0)?.erased.is_none() {
            objects::lift(tx, seq, id, epoch)?;
        }
    }
    erased::ask_anew(tx, seq.0)?;
    forget_lifted(tx, &site)?;
    Ok(Published { seq, deploy: None, previous: None })
}

fn is_withheld(read: &impl Read, id: &ChunkId) -> Result<bool, StoreError> {
    Ok(erased::get(read, id)?.is_some_and(|record| record.what == Erasure::Withheld))
}

/// Forgets the erasures of a site of which nothing holds any more.
fn forget_lifted(tx: &mut Transaction<'_>, site: &SiteName) -> Apply<()> {
    let mut at = None;
    while let Some((name, record)) = erasures::after(tx, site, at.as_ref())? {
        let mut holds = false;
        for id in record.named.iter().flat_map(|named| &named.chunks) {
            holds = holds || erased::is_refused(tx, id)?;
        }
        for id in &record.lists {
            holds = holds || is_withheld(tx, id)?;
        }
        if !holds {
            erasures::remove(tx, site, &name);
        }
        at = Some(name);
    }
    Ok(())
}

fn check_count(count: usize) -> Result<(), WireError> {
    if count == 0 {
        return Err(WireError::invalid("no chunk is named"));
    }
    if count > limits::ERASE_CHUNKS_MAX {
        let most = limits::ERASE_CHUNKS_MAX;
        let message =
            format!("{count} chunks in one request, and at most {most} fit: name fewer paths");
        return Err(WireError::new(Code::Limit, message));
    }
    Ok(())
}

/// Whether the parts of a request fit together.
fn check_shape(
    chunks: &[Doomed],
    withheld: &[ChunkId],
    parents: &[Parent],
) -> Result<(), WireError> {
    let mut known: HashSet<ChunkId> = chunks.iter().map(|doomed| doomed.id).collect();
    if known.len() != chunks.len() {
        return Err(WireError::invalid("a chunk is named twice"));
    }
    for parent in parents {
        if let Parent::Page { id, .. } = parent
            && !known.insert(*id)
        {
            return Err(WireError::invalid(format!("page {id} is named twice")));
        }
    }
    for parent in parents {
        if let Parent::Page { id, below, .. } = parent
            && !below.iter().all(|child| known.contains(child))
        {
            let message = format!("page {id} is said to lead to what is not erased");
            return Err(WireError::invalid(message));
        }
    }
    match withheld.iter().find(|id| !known.contains(id)) {
        Some(id) => Err(WireError::invalid(format!("nothing is said of list {id}"))),
        None => Ok(()),
    }
}

/// Whether only what the search found refers to a chunk.
fn check_doomed(read: &impl Read, doomed: &Doomed) -> Apply<()> {
    let Doomed { id, refs } = doomed;
    let object = objects::get(read, id)?;
    if object.as_ref().is_some_and(|object| object.kind != ObjectKind::Data) {
        let message =
            format!("chunk {id} is also a part of a manifest or of a list: it cannot be erased");
        return Err(WireError::invalid(message).into());
    }
    let is = object.map_or(0, |object| object.refs);
    if is == *refs {
        return Ok(());
    }
    Err(changed(&format!("chunk {id} is referred to {is} times, not {refs}")).into())
}

/// Whether something is as the search saw it.
fn check_parent(read: &impl Read, parent: &Parent) -> Apply<()> {
    match parent {
        Parent::Page { id, refs, .. } => match objects::get(read, id)? {
            Some(object) if object.kind == ObjectKind::Data => {
                let message = format!("chunk {id} is neither a page nor a list");
                Err(WireError::invalid(message).into())
            }
            Some(object) if object.refs == *refs => Ok(()),
            Some(object) => {
                let is = object.refs;
                Err(changed(&format!("page {id} is referred to {is} times, not {refs}")).into())
            }
            None => Err(changed(&format!("page {id} is not there any more")).into()),
        },
        Parent::File { inode, content } => match inodes::get(read, *inode)?.map(|it| it.body) {
            Some(Body::File(is)) if is.id() == *content => Ok(()),
            _ => Err(changed(&format!("file {inode} was changed or removed")).into()),
        },
        Parent::Deploy { site, deploy } => match deploys::get(read, site, deploy)? {
            Some(_) => Ok(()),
            None => Err(changed(&format!("site {site} has no deploy {deploy} any more")).into()),
        },
    }
}

fn changed(what: &str) -> WireError {
    let message = format!("{what}: something changed in the meantime; look again");
    WireError::new(Code::Conflict, message)
}

#[cfg(test)]
#[path = "erase_tests.rs"]
mod tests;
