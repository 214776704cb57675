//! Erasing: follows the masters' list of chunks that were taken down, and deletes them here at
//! once, past quarantine and past every hold on dropping.
//!
//! The list is followed from its beginning at every start, and again when a store that was set aside
//! is gone: whatever disk this node comes with, it is clean when the node says so. It says so by
//! asking for what comes next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_net::{Backoff, Shutdown};
use atoll_proto::erase::{Erased, ErasedPart, Erasure};
use atoll_proto::limits::WATCH_WAIT_MAX;
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::{ChunkId, Epoch, NodeId, WireError};

use crate::node::Node;
use crate::store::{StoreError, Wiped};

/// Time for the answer beyond what the master waits.
const MARGIN: Duration = Duration::from_secs(3);
const BACKOFF: Backoff =
    Backoff { base: Duration::from_millis(200), max: Duration::from_secs(5), factor: 2.0 };
/// How often a store is gone through while it takes back what was set aside.
const REFILLING_EVERY: Duration = Duration::from_secs(5);

/// How far the list was followed.
#[derive(Debug, Default)]
struct Position {
    /// Where the list began that is followed; `None` before the first answer.
    began: Option<u64>,
    /// Everything up to this log index is known.
    upto: u64,
    /// The parts that were told and not taken over yet: the list is taken over as a whole.
    parts: Option<Parts>,
    /// Everything up to there is carried out as well; a question may wait for what comes next.
    done: bool,
    /// What was set aside may hold anything, and be taken back at any time.
    refilling: bool,
}

/// Some parts of the list, one after the other.
#[derive(Debug, PartialEq, Eq)]
struct Parts {
    changes: Vec<Erased>,
    /// The placement epoch when the first of them was read. What a later one says was read later, and
    /// holds under this epoch as well: a chunk that was put under a newer one is asked about again.
    epoch: Epoch,
}

impl Position {
    fn beginning(refilling: bool) -> Position {
        Position { refilling, ..Position::default() }
    }

    /// The list is followed from its beginning again.
    fn begin_anew(&mut self) {
        *self = Position::beginning(self.refilling);
    }

    /// No answer came. Between two parts, nothing of what was told is used: the next part may be read
    /// long after the first.
    fn unanswered(&mut self) {
        if self.parts.is_some() {
            self.begin_anew();
        }
    }

    /// Who says that it has carried out everything up to here, if that is so. A store that was set
    /// aside is not clean: then nothing is acknowledged.
    fn acknowledges(&self, node: NodeId) -> Option<NodeId> {
        (self.done && self.parts.is_none() && !self.refilling).then_some(node)
    }

    /// Takes a part; once there are no more, returns all of them.
    ///
    /// # Errors
    /// When it does not follow what is known.
    fn gather(&mut self, part: ErasedPart) -> Result<Option<Parts>, String> {
        let ErasedPart { began, erased, upto, more, epoch } = part;
        if self.began.is_some_and(|known| known != began) {
            tracing::warn!(
                began,
                "the masters were restored: the list of erased chunks is another"
            );
            self.begin_anew();
            return Ok(None);
        }
        if upto < self.upto || erased.iter().any(|erased| erased.index > upto) {
            return Err(format!("changes that do not follow index {}", self.upto));
        }
        self.began = Some(began);
        self.upto = upto;
        let mut parts = self.parts.take().unwrap_or(Parts { changes: Vec::new(), epoch });
        parts.changes.extend(erased);
        parts.epoch = parts.epoch.min(epoch);
        if more {
            self.parts = Some(parts);
            return Ok(None);
        }
        Ok(Some(parts))
    }
}

/// Runs until shutdown.
pub(crate) async fn follow(node: Arc<Node>, shutdown: Shutdown) {
    let mut views = node.view_changes();
    let work = async {
        let (mut position, mut failures) = (Position::default(), 0);
        loop {
            // Before it is registered, no master answers it.
            while node.receipt_key().is_err() {
                if views.changed().await.is_err() {
                    return;
                }
            }
            match step(&node, &mut position).await {
                Ok(()) => failures = 0,
                Err(reason) => {
                    if failures % 16 == 0 {
                        tracing::warn!(reason, "cannot follow the list of erased chunks");
                    }
                    tokio::time::sleep(BACKOFF.delay(failures, rand::random::<f64>())).await;
                    failures = failures.saturating_add(1);
                }
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.wait() => {}
    }
}

/// Asks for what comes next, and carries it out. When that fails, the list is followed from its
/// beginning again: nothing is ever taken for done that was not.
async fn step(node: &Node, position: &mut Position) -> Result<(), String> {
    let refilling = node.store.refilling();
    if position.refilling != refilling {
        *position = Position::beginning(refilling);
    }
    let part = match ask(node, position).await {
        Ok(part) => part,
        Err(reason) => {
            position.unanswered();
            return Err(reason);
        }
    };
    let taken = take_in(node, position, part).await;
    if taken.is_err() {
        position.begin_anew();
    }
    taken
}

async fn ask(node: &Node, position: &Position) -> Result<ErasedPart, String> {
    let wait = match position {
        Position { done: false, .. } | Position { parts: Some(_), .. } => Duration::ZERO,
        Position { refilling: true, .. } => REFILLING_EVERY,
        _ => WATCH_WAIT_MAX,
    };
    let request = MasterRequest::Erased {
        after: position.upto,
        node: position.acknowledges(node.id),
        wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
    };
    match node.masters.ask(&request, wait + MARGIN).await {
        Ok(MasterResponse::Erased(part)) => Ok(part),
        Ok(_) => Err("the master answered with the wrong kind of message".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

async fn take_in(node: &Node, position: &mut Position, part: ErasedPart) -> Result<(), String> {
    let (anew, before) = (!position.done, position.upto);
    let Some(Parts { changes, epoch }) = position.gather(part)? else { return Ok(()) };
    let upto = position.upto;
    node.erased.learn(&changes, anew);
    node.store.refuse(node.erased.all());
    if anew || upto > before || !changes.is_empty() {
        carry_out(node, doomed(&changes), epoch, upto).await?;
    }
    if position.refilling {
        // All of them were erased when this part was read, or it would tell otherwise.
        carry_out(node, node.erased.all().iter().copied().collect(), epoch, 0).await?;
    }
    position.done = true;
    Ok(())
}

/// The chunks that are erased in the end, whatever they were before.
fn doomed(changes: &[Erased]) -> Vec<ChunkId> {
    let last: BTreeMap<ChunkId, Erasure> =
        changes.iter().map(|change| (change.id, change.what)).collect();
    last.into_iter().filter(|(_, what)| *what == Erasure::Erased).map(|(id, _)| id).collect()
}

async fn carry_out(node: &Node, ids: Vec<ChunkId>, epoch: Epoch, upto: u64) -> Result<(), String> {
    let erase = node.at_the_disk("erase", move |store| store.erase(&ids, epoch, upto));
    let Wiped { chunks, bytes, newer } = flat(erase.await)?;
    metrics::counter!("atoll_chunk_erased_total").increment(chunks);
    metrics::counter!("atoll_chunk_erased_bytes_total").increment(bytes);
    if chunks > 0 {
        tracing::info!(chunks, bytes, upto, "erased chunks that were taken down");
    }
    if newer > 0 {
        // Either they were lifted since the list was read, or nobody had told here that they are
        // erased when they were put: the list as it is now says which.
        return Err(format!(
            "{newer} chunks were put under an epoch newer than {epoch}: asking again"
        ));
    }
    Ok(())
}

fn flat<T>(answer: Result<Result<T, StoreError>, WireError>) -> Result<T, String> {
    match answer {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::store::memory::MemoryStore;
    use crate::store::{ChunkStore, NewChunk};
    use bytes::Bytes;

    const ME: NodeId = NodeId(1);

    fn id(name: &str) -> ChunkId {
        ChunkId::of(name.as_bytes())
    }

    fn change(index: u64, name: &str, what: Erasure) -> Erased {
        Erased { index, id: id(name), what }
    }

    fn part(erased: Vec<Erased>, upto: u64, more: bool, epoch: u64) -> ErasedPart {
        ErasedPart { began: 0, erased, upto, more, epoch: Epoch(epoch) }
    }

    #[test]
    fn what_was_lifted_in_the_end_is_not_doomed() {
        let changes = [
            change(1, "lifted", Erasure::Erased),
            change(1, "erased", Erasure::Erased),
            change(2, "again", Erasure::Lifted),
            change(3, "lifted", Erasure::Lifted),
            change(4, "again", Erasure::Erased),
            change(5, "list", Erasure::Withheld),
        ];
        let mut expected = vec![id("erased"), id("again")];
        expected.sort();
        assert_eq!(doomed(&changes), expected);
    }

    #[test]
    fn nothing_told_before_an_error_between_two_parts_is_used() {
        let mut position = Position::default();
        let first = part(vec![change(1, "a", Erasure::Erased)], 1, true, 4);
        assert_eq!(position.gather(first), Ok(None));
        position.unanswered();
        assert_eq!((position.upto, position.began), (0, None), "from the beginning");
        let whole = part(vec![change(9, "a", Erasure::Lifted)], 9, false, 5);
        let parts = position.gather(whole).unwrap().unwrap();
        assert_eq!(parts.changes, [change(9, "a", Erasure::Lifted)]);
        // Between two rounds, there is nothing to forget.
        position.done = true;
        position.unanswered();
        assert_eq!((position.upto, position.done), (9, true));
    }

    #[test]
    fn a_part_is_not_acknowledged_before_the_rest_is_there() {
        let mut position = Position { done: true, ..Position::default() };
        assert_eq!(position.acknowledges(ME), Some(ME));
        let first = part(vec![change(1, "a", Erasure::Erased)], 1, true, 4);
        assert_eq!(position.gather(first), Ok(None));
        assert_eq!(position.acknowledges(ME), None);
        position.gather(part(vec![], 2, false, 4)).unwrap().unwrap();
        assert_eq!(position.acknowledges(ME), Some(ME));
        position.refilling = true;
        assert_eq!(position.acknowledges(ME), None);
    }

    #[test]
    fn an_answer_from_before_a_lift_takes_nothing_that_was_put_after_it() {
        let (mut position, store) = (Position::default(), MemoryStore::default());
        let parts = [
            part(vec![change(1, "old", Erasure::Erased)], 1, true, 4),
            part(vec![change(2, "new", Erasure::Erased)], 2, false, 5),
        ];
        let [first, last] = parts;
        assert_eq!(position.gather(first), Ok(None));
        // Both are lifted: epoch 5 begins, and 6. One is put before all of this, one after.
        for (name, epoch) in [("old", 5), ("new", 4)] {
            let bytes = Bytes::from(name);
            let chunk = NewChunk { id: id(name), bytes, epoch: Epoch(epoch), at_ms: 0 };
            store.put_batch(&[chunk]).unwrap();
        }
        let Parts { changes, epoch } = position.gather(last).unwrap().unwrap();
        assert_eq!(epoch, Epoch(4), "that of the first part");
        let wiped = store.erase(&doomed(&changes), epoch, position.upto).unwrap();
        assert_eq!((wiped.chunks, wiped.newer), (1, 1));
        assert!(store.has(&id("old")).unwrap() && !store.has(&id("new")).unwrap());
    }

    #[test]
    fn a_restored_list_is_followed_from_its_beginning() {
        let mut position = Position::default();
        position.gather(part(vec![], 7, false, 4)).unwrap().unwrap();
        position.done = true;
        let other = ErasedPart { began: 900, ..part(vec![], 900, false, 9) };
        assert_eq!(position.gather(other), Ok(None));
        assert_eq!((position.upto, position.done), (0, false));
        assert!(position.gather(part(vec![change(9, "a", Erasure::Erased)], 3, false, 4)).is_err());
    }
}
