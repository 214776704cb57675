//! What the heartbeat tells of the trees: as little as possible. Plain functions.
//!
//! While nothing changes and the master has said that all is equal, a report is the root alone.
//! Groups that changed are told until an answer came. Until the master has said that all is equal
//! (to this epoch, and since this node registered) all groups are told in turn, those that move each
//! time, so that it learns which of them are.

use std::collections::BTreeSet;

use atoll_proto::ids::PG_COUNT;
use atoll_proto::master::TreeReport;
use atoll_proto::tree::Digest;
use atoll_proto::{Epoch, PgId, limits};

use super::tree::Look;

/// What was told and what is to be told.
#[derive(Debug, Default)]
pub(crate) struct Reporter {
    last: Option<Look>,
    /// Groups that changed and were in no report that was answered.
    untold: BTreeSet<PgId>,
    /// The master said that all is equal, and nothing else since.
    assured: bool,
    /// The next group to be told in turn.
    turn: u16,
    /// How many groups have not been told in turn since the last look.
    left: usize,
    /// How many of them the last report tells.
    in_turn: usize,
}

impl Reporter {
    /// This is what the node has.
    pub(crate) fn saw(&mut self, look: Look) {
        if self.epoch() != Some(look.epoch) {
            self.assured = false;
            self.untold.clear();
        }
        self.untold.extend(&look.changed);
        self.last = Some(Look { changed: Vec::new(), ..look });
        self.left = usize::from(PG_COUNT);
    }

    /// The master changed these groups: it wants to hear of them, even if they look as before.
    pub(crate) fn note(&mut self, groups: impl IntoIterator<Item = PgId>) {
        self.untold.extend(groups);
    }

    /// The master may have forgotten what it was told.
    pub(crate) fn begin_anew(&mut self) {
        self.assured = false;
        self.left = usize::from(PG_COUNT);
    }

    /// Whether the last look was at a store that had begun anew: only then an answer about it says
    /// that such a store is full again.
    pub(crate) fn is_of_refill(&self) -> bool {
        self.last.as_ref().is_some_and(|look| look.refilling)
    }

    /// The next report; none before the first look.
    pub(crate) fn compose(
        &mut self,
        roots: &[Digest],
        keeps: impl Fn(PgId) -> bool,
        moving: impl Iterator<Item = PgId>,
    ) -> Option<TreeReport> {
        let look = self.last.as_ref()?;
        self.untold.retain(|pg| keeps(*pg));
        self.in_turn = 0;
        let mut told: BTreeSet<PgId> =
            self.untold.iter().copied().take(limits::REPORT_GROUPS_MAX).collect();
        if !self.assured {
            // Moves wait for it.
            let room = limits::REPORT_GROUPS_MAX - told.len();
            let moving = moving.filter(|pg| keeps(*pg) && !told.contains(pg)).take(room);
            let moving: Vec<PgId> = moving.collect();
            told.extend(moving);
            let in_turn = (0..PG_COUNT).map(|step| PgId((self.turn + step) % PG_COUNT));
            // What was told and answered is not told again before the next look.
            let room = (limits::REPORT_GROUPS_MAX - told.len()).min(self.left);
            let more: Vec<PgId> =
                in_turn.filter(|pg| keeps(*pg) && !told.contains(pg)).take(room).collect();
            if let Some(last) = more.last() {
                self.turn = (last.0 + 1) % PG_COUNT;
            }
            self.in_turn = more.len();
            told.extend(more);
        }
        let root = |pg: PgId| roots.get(usize::from(pg.0)).copied().unwrap_or_default();
        let groups = told.into_iter().map(|pg| (pg, root(pg))).collect();
        Some(TreeReport { epoch: look.epoch, index: look.index, root: look.root, groups })
    }

    /// The master has answered a report.
    pub(crate) fn answered(&mut self, report: &TreeReport, in_sync: Option<bool>) {
        if self.epoch() != Some(report.epoch) {
            return;
        }
        for (pg, _) in &report.groups {
            self.untold.remove(pg);
        }
        self.left = self.left.saturating_sub(std::mem::take(&mut self.in_turn));
        match in_sync {
            Some(true) => {
                self.assured = true;
                self.untold.clear();
            }
            Some(false) if self.assured => self.begin_anew(),
            Some(false) | None => {}
        }
    }

    /// Whether there is nothing to tell but that nothing changed.
    pub(crate) fn is_quiet(&self) -> bool {
        self.assured && self.untold.is_empty()
    }

    fn epoch(&self) -> Option<Epoch> {
        self.last.as_ref().map(|look| look.epoch)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn look(epoch: u64, index: u64, changed: &[u16]) -> Look {
        let changed = changed.iter().copied().map(PgId).collect();
        Look { epoch: Epoch(epoch), index, root: [7; 32], changed, refilling: false }
    }

    fn compose(reporter: &mut Reporter) -> TreeReport {
        let moving = std::iter::empty();
        reporter.compose(&vec![[1; 32]; usize::from(PG_COUNT)], |_| true, moving).unwrap()
    }

    fn groups(report: &TreeReport) -> Vec<u16> {
        report.groups.iter().map(|(pg, _)| pg.0).collect()
    }

    #[test]
    fn with_nothing_changing_a_report_is_short() {
        let mut reporter = Reporter::default();
        assert_eq!(reporter.compose(&[], |_| true, std::iter::empty()), None);
        reporter.saw(look(u64::MAX, u64::MAX, &[1, 2, 3]));
        let first = compose(&mut reporter);
        reporter.answered(&first, Some(true));
        let second = compose(&mut reporter);
        assert!(second.groups.is_empty() && reporter.is_quiet());
        let bytes = atoll_proto::encode(&second).len();
        assert!(bytes < 64, "{bytes} bytes");
    }

    #[test]
    fn changes_are_told_until_they_are_answered() {
        let mut reporter = Reporter::default();
        reporter.saw(look(1, 5, &[]));
        let first = compose(&mut reporter);
        reporter.answered(&first, Some(true));
        reporter.saw(look(1, 6, &[9]));
        assert!(!reporter.is_quiet());
        assert_eq!(groups(&compose(&mut reporter)), [9]);
        reporter.saw(look(1, 7, &[11]));
        let lost = compose(&mut reporter);
        assert_eq!(groups(&lost), [9, 11]);
        reporter.note([PgId(4)]);
        reporter.answered(&lost, None);
        assert_eq!(groups(&compose(&mut reporter)), [4]);
        // An answer to what was said under an older table says nothing.
        reporter.saw(look(2, 8, &[5]));
        reporter.answered(&lost, Some(true));
        assert!(groups(&compose(&mut reporter)).len() > 1);
    }

    #[test]
    fn all_groups_take_turns_until_all_is_equal() {
        let mut reporter = Reporter::default();
        reporter.saw(look(1, 5, &[4000]));
        let mut told = BTreeSet::new();
        for beat in 0..5 {
            let report = compose(&mut reporter);
            assert!(report.groups.len() <= limits::REPORT_GROUPS_MAX);
            told.extend(groups(&report));
            reporter.answered(&report, if beat == 0 { None } else { Some(false) });
        }
        assert_eq!(told.len(), usize::from(PG_COUNT));
        // Once is enough, until there is something new to see.
        let last = compose(&mut reporter);
        reporter.answered(&last, Some(false));
        assert!(compose(&mut reporter).groups.is_empty());
        reporter.saw(look(1, 6, &[]));
        let report = reporter.compose(&[], |pg| pg.0 < 3, std::iter::empty()).unwrap();
        assert_eq!(groups(&report), [0, 1, 2]);
        // Those that move are told whoever's turn it is.
        let mut again = Reporter::default();
        again.saw(look(1, 5, &[]));
        let moving = || [PgId(4000), PgId(4001)].into_iter();
        for _ in 0..2 {
            let report = again.compose(&[], |pg| pg.0 != 4001, moving()).unwrap();
            assert!(groups(&report).contains(&4000) && !groups(&report).contains(&4001));
        }
        reporter.answered(&report, Some(true));
        assert!(compose(&mut reporter).groups.is_empty());
        reporter.begin_anew();
        assert_eq!(compose(&mut reporter).groups.len(), limits::REPORT_GROUPS_MAX);
    }
}
