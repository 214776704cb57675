//! A walk down the trees of groups that differ: which questions to ask next, and what the answers
//! mean. It does no input or output; [`super::session`] carries the questions.
//!
//! Groups are gone through depth first, many side by side, so that the first are done early and
//! little is kept in memory. Whatever is wrong with an answer ends the walk of its group: nothing
//! that was found of that group is used.

use std::collections::BTreeMap;

use atoll_proto::tree::{Ask, BUCKETS, Digest, Found, GroupTree, MIDS};
use atoll_proto::{ChunkId, PgId, limits};

use super::diff::{Difference, check_ids, compare_ids, differing};
use crate::store::StoreError;

/// Buckets under one of the nodes between a group's root and its buckets.
const BUCKETS_PER_MID: usize = BUCKETS / MIDS;

/// This side of a walk.
pub(crate) trait Local {
    /// The tree of a group; the same one during one walk.
    ///
    /// # Errors
    /// When the disk fails.
    fn tree(&mut self, pg: PgId) -> Result<&GroupTree, StoreError>;

    /// The ids in a bucket, sorted.
    ///
    /// # Errors
    /// When the disk fails.
    fn ids(&mut self, pg: PgId, bucket: u8) -> Result<Vec<ChunkId>, StoreError>;
}

/// What came of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// This is all that differs.
    Found(Difference),
    /// It changed on the other side after what this side has applied.
    Moved,
    /// Nothing is known of it.
    GivenUp(String),
}

/// A walk over some groups.
#[derive(Debug)]
pub(crate) struct Walk {
    /// Ids must be exactly those of the digest told before: the other side holds still.
    strict: bool,
    /// Last in, first out.
    open: Vec<Step>,
    asked: Vec<Step>,
    groups: BTreeMap<PgId, Group>,
    done: Vec<(PgId, Verdict)>,
}

/// A question, and the digest its answer must have.
#[derive(Debug, Clone)]
struct Step {
    pg: PgId,
    ask: Ask,
    digest: Option<Digest>,
}

#[derive(Debug, Default)]
struct Group {
    /// Questions that are not answered yet.
    open: usize,
    difference: Difference,
}

impl Walk {
    /// Over these groups. A `strict` walk gives up a group whose buckets change while it is on its
    /// way.
    pub(crate) fn over(groups: impl IntoIterator<Item = PgId>, strict: bool) -> Self {
        let mut walk =
            Self { strict, open: Vec::new(), asked: Vec::new(), groups: BTreeMap::new(), done: Vec::new() };
        for pg in groups {
            walk.groups.insert(pg, Group { open: 1, ..Group::default() });
            walk.open.push(Step { pg, ask: Ask::Mids { pg }, digest: None });
        }
        walk
    }

    /// The next questions; none when all groups are done. Their answers go to [`Walk::take`].
    pub(crate) fn asks(&mut self) -> Vec<Ask> {
        while self.asked.len() < limits::WALK_ASKS_MAX
            && let Some(step) = self.open.pop()
        {
            if self.groups.contains_key(&step.pg) {
                self.asked.push(step);
            }
        }
        self.asked.iter().map(|step| step.ask).collect()
    }

    /// Takes the answers to the last questions.
    ///
    /// # Errors
    /// When this side cannot read its own disk; the walk is over then.
    pub(crate) fn take(
        &mut self,
        local: &mut impl Local,
        found: Vec<Found>,
    ) -> Result<(), StoreError> {
        if found.len() != self.asked.len() {
            let reason = format!("{} answers to {} questions", found.len(), self.asked.len());
            self.give_up_asked(&reason);
            return Ok(());
        }
        let some_ids = found.iter().any(|found| matches!(found, Found::Ids(_)));
        for (step, found) in std::mem::take(&mut self.asked).into_iter().zip(found) {
            if !self.groups.contains_key(&step.pg) {
                continue;
            }
            match (step.ask, found) {
                // The answer was full. It is asked again, as long as that leads somewhere.
                (Ask::Ids { .. }, Found::Unavailable { .. }) if some_ids => self.open.push(step),
                (_, Found::Unavailable { reason }) => self.end(step.pg, Verdict::GivenUp(reason)),
                (_, Found::Moved { .. }) => self.end(step.pg, Verdict::Moved),
                (ask, found) => match self.descend(local, &step, ask, found)? {
                    Ok(()) => self.answered(step.pg),
                    Err(reason) => self.end(step.pg, Verdict::GivenUp(reason)),
                },
            }
        }
        Ok(())
    }

    /// The last questions got no answer.
    pub(crate) fn give_up_asked(&mut self, reason: &str) {
        for step in std::mem::take(&mut self.asked) {
            if self.groups.contains_key(&step.pg) {
                self.end(step.pg, Verdict::GivenUp(reason.to_owned()));
            }
        }
    }

    /// The groups that are done since this was last asked.
    pub(crate) fn done(&mut self) -> Vec<(PgId, Verdict)> {
        std::mem::take(&mut self.done)
    }

    fn descend(
        &mut self,
        local: &mut impl Local,
        step: &Step,
        ask: Ask,
        found: Found,
    ) -> Result<Result<(), String>, StoreError> {
        let pg = step.pg;
        match (ask, found) {
            (Ask::Mids { .. }, Found::Digests(there)) => {
                let differ = differing(local.tree(pg)?.mids(), &there);
                Ok(differ.map(|mids| {
                    for mid in mids.into_iter().rev().filter_map(|mid| u8::try_from(mid).ok()) {
                        self.push(Step { pg, ask: Ask::Buckets { pg, mid }, digest: None });
                    }
                }))
            }
            (Ask::Buckets { mid, .. }, Found::Digests(there)) => {
                let differ = differing(local.tree(pg)?.buckets(mid), &there);
                Ok(differ.map(|buckets| {
                    for at in buckets.into_iter().rev() {
                        let number = usize::from(mid) * BUCKETS_PER_MID + at;
                        let Ok(bucket) = u8::try_from(number) else { continue };
                        let digest = self.strict.then(|| there[at]);
                        self.push(Step { pg, ask: Ask::Ids { pg, bucket }, digest });
                    }
                }))
            }
            (Ask::Ids { bucket, .. }, Found::Ids(there)) => {
                if let Err(reason) = check_ids(pg, bucket, &there, step.digest.as_ref()) {
                    return Ok(Err(reason));
                }
                let mut difference = compare_ids(&local.ids(pg, bucket)?, &there);
                if let Some(group) = self.groups.get_mut(&pg) {
                    group.difference.missing.append(&mut difference.missing);
                    group.difference.extra.append(&mut difference.extra);
                }
                Ok(Ok(()))
            }
            (ask, _) => Ok(Err(format!("the wrong kind of answer to {ask:?}"))),
        }
    }

    fn push(&mut self, step: Step) {
        if let Some(group) = self.groups.get_mut(&step.pg) {
            group.open += 1;
            self.open.push(step);
        }
    }

    fn answered(&mut self, pg: PgId) {
        let Some(group) = self.groups.get_mut(&pg) else { return };
        group.open -= 1;
        if group.open == 0 {
            let difference = std::mem::take(&mut group.difference);
            self.end(pg, Verdict::Found(difference));
        }
    }

    fn end(&mut self, pg: PgId, verdict: Verdict) {
        self.groups.remove(&pg);
        self.done.push((pg, verdict));
    }
}
