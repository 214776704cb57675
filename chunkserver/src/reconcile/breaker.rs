//! Whether chunks may be dropped: not while an operator has frozen it, and never suddenly many at
//! once without one saying so. Plain functions.
//!
//! Whatever wants to drop by its own conclusion asks for each group first: walks and the sweep. What
//! the masters' log says was collected needs no leave, except that it stays where it is as long as
//! nothing may go. A group that would lose too much halts all dropping on this server, with a reason
//! that `status` shows. A release by the operator lets exactly the groups that were halted drop as
//! much as they wanted to, each once and no later than at the next time it wants to drop anything.

use std::collections::BTreeMap;

use atoll_proto::PgId;
use atoll_proto::limits::{DROP_CHUNKS_MAX, DROP_PERCENT_MAX};
use atoll_proto::master::Orders;

/// Whether a group may drop what it wants to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    /// It may.
    Granted,
    /// Nothing may be dropped now: an operator said so, or no master has said anything yet.
    Frozen,
    /// Dropping is halted until an operator releases it.
    Halted,
}

/// A drop that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dropping {
    /// In which group.
    pub(crate) pg: PgId,
    /// How many chunks.
    pub(crate) chunks: u64,
    /// Of how many there are.
    pub(crate) of: u64,
}

/// What was asked of this server so far.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    /// `None` before a master has said anything.
    orders: Option<Orders>,
    /// Groups that would have lost too much: how much, and why.
    halted: BTreeMap<PgId, (u64, String)>,
    /// Groups that may lose so much, once.
    released: BTreeMap<PgId, u64>,
}

impl Breaker {
    /// A master said this. True if something may go on now that could not before.
    pub(crate) fn hear(&mut self, orders: Orders) -> bool {
        let before = self.orders.replace(orders);
        let released = before.is_some_and(|before| orders.release > before.release);
        if released {
            let halted = std::mem::take(&mut self.halted);
            self.released.extend(halted.into_iter().map(|(pg, (chunks, _))| (pg, chunks)));
        }
        let thawed = before.is_none_or(|before| before.frozen) && !orders.frozen;
        released || thawed
    }

    /// Whether nothing at all may be moved or deleted.
    pub(crate) fn is_frozen(&self) -> bool {
        self.orders.is_none_or(|orders| orders.frozen)
    }

    /// Whether nothing may be moved or deleted now: it is frozen or halted.
    pub(crate) fn is_held(&self) -> bool {
        self.is_frozen() || !self.halted.is_empty()
    }

    /// Why dropping is halted, if it is.
    pub(crate) fn reason(&self) -> Option<String> {
        let (pg, (_, first)) = self.halted.first_key_value()?;
        let more = match self.halted.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more groups)"),
        };
        Some(format!("group {}: {first}{more}", pg.0))
    }

    /// Asks for leave to drop some chunks of a group for `cause`.
    pub(crate) fn ask(&mut self, drop: Dropping, cause: &str) -> Leave {
        if self.is_frozen() {
            return Leave::Frozen;
        }
        let much = drop.chunks > DROP_CHUNKS_MAX
            && drop.chunks.saturating_mul(100) > drop.of.saturating_mul(DROP_PERCENT_MAX);
        let released = self.released.get(&drop.pg).copied().unwrap_or(0);
        if much && drop.chunks > released {
            let Dropping { chunks, of, .. } = drop;
            let reason = format!("{chunks} of {of} chunks would be dropped: {cause}");
            self.halted.insert(drop.pg, (chunks, reason));
        }
        if !self.halted.is_empty() {
            return Leave::Halted;
        }
        self.released.remove(&drop.pg);
        Leave::Granted
    }

    /// Asks for leave to take chunks of a group as not live, their bytes staying where they are.
    ///
    /// While a master has frozen the cluster that is no drop: the sweep and the purge stand still as
    /// long, however many chunks it is, and ask again, each for itself, once they may go on. And a
    /// restored master has to find its servers equal although they have more than it knows, or no
    /// group ever ends a move. Before a master has spoken, or while this server has halted, it is
    /// a drop like any other.
    pub(crate) fn ask_to_forget(&mut self, drop: Dropping, cause: &str) -> Leave {
        let told = self.orders.is_some_and(|orders| orders.frozen);
        if told && self.halted.is_empty() {
            return Leave::Granted;
        }
        self.ask(drop, cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Orders = Orders { frozen: false, release: 3, scrub: 0 };

    fn drop(pg: u16, chunks: u64, of: u64) -> Dropping {
        Dropping { pg: PgId(pg), chunks, of }
    }

    fn ask(breaker: &mut Breaker, pg: u16, chunks: u64, of: u64) -> Leave {
        breaker.ask(drop(pg, chunks, of), "not in the object table")
    }

    #[test]
    fn nothing_is_dropped_before_a_master_has_spoken_or_while_frozen() {
        let mut breaker = Breaker::default();
        assert_eq!(ask(&mut breaker, 1, 1, 1000), Leave::Frozen);
        assert!(breaker.hear(NOTHING));
        assert_eq!(ask(&mut breaker, 1, 1, 1000), Leave::Granted);
        assert!(!breaker.hear(Orders { frozen: true, ..NOTHING }));
        assert_eq!(ask(&mut breaker, 1, 1, 1000), Leave::Frozen);
        assert!(breaker.hear(NOTHING));
        assert!(!breaker.hear(NOTHING));
    }

    #[test]
    fn while_frozen_marks_may_go_however_many_but_not_while_halted() {
        let forget = |breaker: &mut Breaker| {
            breaker.ask_to_forget(drop(1, 500, 500), "not in the object table")
        };
        let mut breaker = Breaker::default();
        assert_eq!(forget(&mut breaker), Leave::Frozen, "no master has spoken");
        breaker.hear(Orders { frozen: true, ..NOTHING });
        assert_eq!(forget(&mut breaker), Leave::Granted);
        assert!(breaker.is_held(), "bytes stay");
        assert_eq!(ask(&mut breaker, 1, 1, 500), Leave::Frozen);
        assert_eq!(breaker.reason(), None);
        breaker.hear(NOTHING);
        assert_eq!(forget(&mut breaker), Leave::Halted, "thawed, it is a drop like any other");
        breaker.hear(Orders { frozen: true, ..NOTHING });
        assert_eq!(forget(&mut breaker), Leave::Frozen, "halted is halted");
    }

    #[test]
    fn few_or_a_small_share_is_no_alarm() {
        let mut breaker = Breaker::default();
        breaker.hear(NOTHING);
        assert_eq!(ask(&mut breaker, 1, 64, 64), Leave::Granted);
        assert_eq!(ask(&mut breaker, 1, 65, 6500), Leave::Granted);
        assert_eq!(breaker.reason(), None);
        assert_eq!(ask(&mut breaker, 1, 65, 6499), Leave::Halted);
    }

    #[test]
    fn much_halts_everything_until_it_is_released_once() {
        let mut breaker = Breaker::default();
        breaker.hear(NOTHING);
        assert_eq!(ask(&mut breaker, 7, 100, 200), Leave::Halted);
        assert_eq!(ask(&mut breaker, 8, 1, 200), Leave::Halted);
        assert_eq!(ask(&mut breaker, 9, 500, 500), Leave::Halted);
        let reason = breaker.reason().unwrap_or_default();
        assert!(reason.contains("group 7: 100 of 200") && reason.contains("1 more"), "{reason}");
        assert!(!breaker.hear(NOTHING));
        assert!(breaker.hear(Orders { release: 4, ..NOTHING }));
        assert_eq!(breaker.reason(), None);
        assert_eq!(ask(&mut breaker, 8, 1, 200), Leave::Granted);
        assert_eq!(ask(&mut breaker, 7, 100, 200), Leave::Granted);
        assert_eq!(ask(&mut breaker, 7, 100, 200), Leave::Halted, "once");
        assert_eq!(ask(&mut breaker, 9, 500, 500), Leave::Halted, "all is halted again");
        assert!(breaker.is_held() && !breaker.is_frozen());
        breaker.hear(Orders { release: 5, ..NOTHING });
        assert!(!breaker.is_held());
        assert_eq!(ask(&mut breaker, 9, 500, 500), Leave::Granted);
    }

    #[test]
    fn a_release_is_for_what_was_asked_then_and_not_for_more_or_later() {
        let mut breaker = Breaker::default();
        breaker.hear(NOTHING);
        for pg in [1, 2] {
            assert_eq!(ask(&mut breaker, pg, 100, 200), Leave::Halted);
        }
        breaker.hear(Orders { release: 4, ..NOTHING });
        assert_eq!(ask(&mut breaker, 2, 1, 200), Leave::Granted);
        assert_eq!(ask(&mut breaker, 1, 101, 200), Leave::Halted, "more than was released");
        breaker.hear(Orders { release: 5, ..NOTHING });
        assert_eq!(ask(&mut breaker, 1, 101, 200), Leave::Granted);
        assert_eq!(ask(&mut breaker, 2, 100, 200), Leave::Halted, "it had its turn");
    }

    #[test]
    fn a_release_before_there_was_anything_to_release_allows_nothing() {
        let mut breaker = Breaker::default();
        breaker.hear(NOTHING);
        breaker.hear(Orders { release: 9, ..NOTHING });
        assert_eq!(ask(&mut breaker, 1, 100, 200), Leave::Halted);
    }
}
