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
        let mut walk = Self {
            strict,
            open: Vec::new(),
            asked: Vec::new(),
            groups: BTreeMap::new(),
            done: Vec::new(),
        };
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::ids::PG_COUNT;
    use atoll_proto::tree::{SetHash, bucket_of};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    use super::*;

    /// A set of ids as one side keeps it.
    #[derive(Default)]
    struct Side {
        ids: BTreeMap<(PgId, u8), BTreeSet<ChunkId>>,
        leaves: BTreeMap<PgId, Box<[Digest; BUCKETS]>>,
        trees: BTreeMap<PgId, GroupTree>,
    }

    impl Side {
        fn of(ids: impl IntoIterator<Item = ChunkId>) -> Self {
            let mut side = Self::default();
            ids.into_iter().for_each(|id| side.flip(id));
            side
        }

        /// Adds an id, or takes it out.
        fn flip(&mut self, id: ChunkId) {
            let (pg, bucket) = (id.pg(), bucket_of(&id));
            let leaves = self.leaves.entry(pg).or_insert_with(|| Box::new([[0; 32]; BUCKETS]));
            let leaf = &mut leaves[usize::from(bucket)];
            let mut sum = SetHash::from_bytes(leaf);
            let ids = self.ids.entry((pg, bucket)).or_default();
            if ids.insert(id) {
                sum.insert(&id);
            } else {
                ids.remove(&id);
                sum.remove(&id);
            }
            *leaf = sum.to_bytes();
            self.trees.remove(&pg);
        }

        fn answer(&mut self, ask: Ask) -> Found {
            match ask {
                Ask::Mids { pg } => Found::Digests(self.tree(pg).unwrap().mids().to_vec()),
                Ask::Buckets { pg, mid } => {
                    Found::Digests(self.tree(pg).unwrap().buckets(mid).to_vec())
                }
                Ask::Ids { pg, bucket } => Found::Ids(self.ids(pg, bucket).unwrap()),
                Ask::Tops | Ask::Groups { .. } => panic!("not asked within groups"),
            }
        }
    }

    impl Local for Side {
        fn tree(&mut self, pg: PgId) -> Result<&GroupTree, StoreError> {
            let leaves = &self.leaves;
            let empty = [[0; 32]; BUCKETS];
            let make = || GroupTree::new(leaves.get(&pg).map_or(&empty, |leaves| leaves));
            Ok(self.trees.entry(pg).or_insert_with(make))
        }

        fn ids(&mut self, pg: PgId, bucket: u8) -> Result<Vec<ChunkId>, StoreError> {
            let ids = self.ids.get(&(pg, bucket));
            Ok(ids.map(|ids| ids.iter().copied().collect()).unwrap_or_default())
        }
    }

    fn id(number: u32) -> ChunkId {
        ChunkId::of(&number.to_be_bytes())
    }

    /// Few groups and buckets, so that some hold several ids.
    fn narrow(number: u32) -> ChunkId {
        let mut id = id(number);
        id.0[0] &= 0x01;
        id.0[1] &= 0x11;
        id.0[2] &= 0x0f;
        id
    }

    fn walk_through(walk: &mut Walk, here: &mut Side, there: &mut Side) -> u64 {
        let mut bytes = 0;
        loop {
            let asks = walk.asks();
            if asks.is_empty() {
                return bytes;
            }
            let found: Vec<Found> = asks.iter().map(|ask| there.answer(*ask)).collect();
            bytes += (atoll_proto::encode(&asks).len() + atoll_proto::encode(&found).len()) as u64;
            walk.take(here, found).unwrap();
        }
    }

    fn differences(walk: &mut Walk) -> (BTreeSet<ChunkId>, BTreeSet<ChunkId>) {
        let (mut missing, mut extra) = (BTreeSet::new(), BTreeSet::new());
        for (pg, verdict) in walk.done() {
            let Verdict::Found(difference) = verdict else { panic!("{pg:?}: {verdict:?}") };
            missing.extend(difference.missing);
            extra.extend(difference.extra);
        }
        (missing, extra)
    }

    proptest! {
        #[test]
        fn a_walk_finds_exactly_what_differs(
            both in prop::collection::btree_set(0..5000u32, 0..300),
            changed in prop::collection::btree_set(0..6000u32, 0..300),
        ) {
            let (mut here, mut there) =
                (Side::of(both.iter().map(|n| narrow(*n))), Side::of(both.iter().map(|n| narrow(*n))));
            changed.iter().for_each(|n| if n % 2 == 0 { here.flip(narrow(*n)) } else { there.flip(narrow(*n)) });
            let all = |side: &Side| -> BTreeSet<ChunkId> {
                side.ids.values().flatten().copied().collect()
            };
            let mut walk = Walk::over((0..32).map(PgId), true);
            walk_through(&mut walk, &mut here, &mut there);
            let (missing, extra) = differences(&mut walk);
            prop_assert_eq!(missing, all(&there).difference(&all(&here)).copied().collect());
            prop_assert_eq!(extra, all(&here).difference(&all(&there)).copied().collect());
        }

        #[test]
        fn no_answer_makes_a_walk_panic_or_find_what_is_not_there(
            seed: u64, lens in prop::collection::vec(0..20usize, 1..40),
        ) {
            let mut here = Side::of((0..50).map(narrow));
            let mut walk = Walk::over((0..32).map(PgId), true);
            let mut state = seed;
            let mut next = || { state = state.wrapping_mul(6364136223846793005).wrapping_add(1); state >> 33 };
            for len in lens.iter().cycle().take(200) {
                let asks = walk.asks();
                if asks.is_empty() {
                    break;
                }
                let found: Vec<Found> = asks.iter().map(|_| match next() % 5 {
                    0 => Found::Digests(vec![[next() as u8; 32]; 16]),
                    1 => Found::Digests(vec![[next() as u8; 32]; *len]),
                    2 => Found::Ids((0..*len as u32).map(narrow).collect()),
                    3 => Found::Unavailable { reason: "so".to_owned() },
                    _ => Found::Moved { index: next() },
                }).collect();
                walk.take(&mut here, found).unwrap();
            }
            for (_, verdict) in walk.done() {
                prop_assert!(!matches!(verdict, Verdict::Found(_)), "{verdict:?}");
            }
        }
    }

    #[test]
    fn a_hundred_differences_among_a_million_cost_less_than_a_mebibyte() {
        let mut here = Side::of((0..1_000_000).map(id));
        let mut there = Side::of((0..1_000_000).map(id));
        for n in 0..50 {
            here.flip(id(n * 19_001));
            there.flip(id(n * 19_001 + 7));
        }
        let pgs = (0..PG_COUNT).map(PgId);
        let differ: Vec<PgId> = pgs
            .filter(|pg| {
                let here = here.tree(*pg).unwrap().root();
                here != there.tree(*pg).unwrap().root()
            })
            .collect();
        let mut walk = Walk::over(differ.iter().copied(), true);
        let bytes = walk_through(&mut walk, &mut here, &mut there);
        let (missing, extra) = differences(&mut walk);
        assert_eq!((missing.len(), extra.len()), (50, 50));
        // Above that are at most 64 + 64 × 64 digests.
        let tops = 65 * 64 * 32;
        assert!(bytes + tops < 1 << 20, "{bytes} bytes");
    }

    #[test]
    fn a_group_that_moved_or_is_answered_badly_is_given_up_alone() {
        let mut here = Side::default();
        let mut there = Side::of((0..400).map(narrow));
        let groups: Vec<PgId> = there.leaves.keys().copied().collect();
        let [moved, short, wrong, ..] = groups[..] else { panic!("few groups") };
        let mut walk = Walk::over(groups.iter().copied(), true);
        loop {
            let asks = walk.asks();
            if asks.is_empty() {
                break;
            }
            let spoil = |ask: &Ask, found: Found| match (ask, found) {
                (Ask::Buckets { pg, .. }, _) if *pg == moved => Found::Moved { index: 7 },
                (Ask::Ids { pg, .. }, Found::Ids(mut ids)) if *pg == short => {
                    ids.pop();
                    Found::Ids(ids)
                }
                (Ask::Mids { pg }, _) if *pg == wrong => Found::Ids(Vec::new()),
                (_, found) => found,
            };
            let found = asks.iter().map(|ask| spoil(ask, there.answer(*ask))).collect();
            walk.take(&mut here, found).unwrap();
        }
        let done: BTreeMap<PgId, Verdict> = walk.done().into_iter().collect();
        assert_eq!(done.len(), groups.len());
        assert_eq!(done[&moved], Verdict::Moved);
        assert!(matches!(&done[&short], Verdict::GivenUp(reason) if reason.contains("digest")));
        assert!(matches!(&done[&wrong], Verdict::GivenUp(reason) if reason.contains("wrong kind")));
        let found = |verdict: &&Verdict| matches!(verdict, Verdict::Found(_));
        assert_eq!(done.values().filter(found).count(), groups.len() - 3);
    }

    #[test]
    fn a_full_answer_is_asked_again_but_not_for_ever() {
        let mut here = Side::default();
        let mut there = Side::of((0..50).map(narrow));
        let groups: Vec<PgId> = there.leaves.keys().copied().collect();
        let refuse = || Found::Unavailable { reason: "full".to_owned() };
        for room in [1, 0] {
            let mut walk = Walk::over(groups.iter().copied(), true);
            let mut rounds = 0;
            loop {
                let asks = walk.asks();
                rounds += 1;
                assert!(rounds < 200);
                if asks.is_empty() {
                    break;
                }
                let mut left = room;
                let mut one = |ask: &Ask| match there.answer(*ask) {
                    Found::Ids(_) if left == 0 => refuse(),
                    Found::Ids(ids) => {
                        left -= 1;
                        Found::Ids(ids)
                    }
                    found => found,
                };
                let found = asks.iter().map(&mut one).collect();
                walk.take(&mut here, found).unwrap();
            }
            for (_, verdict) in walk.done() {
                assert_eq!(matches!(verdict, Verdict::Found(_)), room == 1, "{verdict:?}");
            }
        }
    }

    #[test]
    fn answers_of_another_number_are_no_answers() {
        let mut walk = Walk::over([PgId(1), PgId(2)], false);
        assert_eq!(walk.asks().len(), 2);
        walk.take(&mut Side::default(), vec![Found::Moved { index: 1 }]).unwrap();
        assert!(walk.asks().is_empty());
        assert!(walk.done().iter().all(|(_, it)| matches!(it, Verdict::GivenUp(_))));
    }
}
