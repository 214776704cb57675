//! Leases of edges (promise P2): the whole protocol as functions, without a clock.
//!
//! An edge may answer from its table of sites while it holds a lease. The master (the authority)
//! knows when a lease has surely ended, and then a publish need not wait for an edge that is
//! silent. `master/src/liveness.rs` and `edge/src/index/lease.rs` call these functions, and the
//! model in `proto/tests/lease_model` explores them.
//!
//! All times are nanoseconds of a clock that goes on while the machine sleeps (`CLOCK_BOOTTIME`),
//! each node's own: they are compared with times of the same node only. What must hold:
//! - The rates of two nodes' clocks differ by at most [`Terms::drift_ppm`].
//! - An edge counts from before it *sends* a renewal, the authority from when it *grants* it,
//!   which is later.
//! - The authority confirms between the two that it leads. So a later authority began after every
//!   renewal that an earlier one granted was sent, and need not know of them: it waits out one
//!   term from its beginning.
//! - A lease is granted only to an edge that has applied every entry that may have been confirmed
//!   without it: those of earlier leaderships, those it confirmed itself (it may have lost them
//!   since), and those for which nobody waited for it because its lease had ended. Any other
//!   entry waits for it, lease or no lease, so an edge that is a little behind may serve on.
//! - An edge that starts again gets one only with every entry that the log had when it
//!   registered. So an acknowledgement of its earlier run, however late it comes, is of nothing
//!   that the edge could still lack.
//! - One that stays behind gets none after a while: waits end.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::site::Policy;
use crate::{NodeId, Seq, limits};

/// How long leases are, and how much clocks may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Terms {
    /// Length of a lease in nanoseconds, from when it was asked for.
    pub term_ns: u64,
    /// How much faster one clock may run than another, in millionths.
    pub drift_ppm: u64,
}

impl Terms {
    /// What every node goes by.
    pub const DEFAULT: Terms = Terms {
        term_ns: limits::LEASE_TERM.as_secs() * 1_000_000_000,
        drift_ppm: limits::CLOCK_DRIFT_PPM,
    };

    /// How long the authority waits for something that takes an edge `length_ns` by its clock.
    fn surely(self, length_ns: u64) -> u64 {
        let margin = u128::from(length_ns) * u128::from(self.drift_ppm);
        let margin = u64::try_from(margin.div_ceil(1_000_000)).unwrap_or(u64::MAX);
        length_ns.saturating_add(margin)
    }
}

/// How long an edge may serve after its lease has ended, in nanoseconds; `None`: for ever.
fn extra_ns(policy: Policy) -> Option<u64> {
    match policy {
        Policy::Strict => Some(0),
        Policy::Bounded { secs } => Some(u64::from(secs) * 1_000_000_000),
        Policy::Available => None,
    }
}

/// The policy of two under which an edge serves longer.
pub fn looser(one: Policy, other: Policy) -> Policy {
    match (extra_ns(one), extra_ns(other)) {
        (Some(a), Some(b)) if b > a => other,
        (Some(_), None) => other,
        _ => one,
    }
}

/// The lease an edge holds: when it ends by the edge's clock. 0: it never held one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Held {
    /// Nanoseconds.
    pub until_ns: u64,
}

impl Held {
    /// After a renewal that was sent at `sent_ns` has been granted.
    #[must_use]
    pub fn renewed(self, sent_ns: u64, terms: Terms) -> Held {
        Held { until_ns: self.until_ns.max(sent_ns.saturating_add(terms.term_ns)) }
    }

    /// Whether the lease holds.
    pub fn valid(self, now_ns: u64) -> bool {
        now_ns < self.until_ns
    }

    /// Whether the edge may answer for a site of this policy. To be asked before the table is
    /// looked at. An edge that never held a lease may not, under no policy: its table may be one
    /// that it stored before any number of publishes.
    pub fn may_serve(self, policy: Policy, now_ns: u64) -> MayServe {
        if self.until_ns == 0 {
            return MayServe::No;
        }
        if self.valid(now_ns) {
            return MayServe::Yes;
        }
        match extra_ns(policy) {
            Some(extra) if now_ns >= self.until_ns.saturating_add(extra) => MayServe::No,
            _ => MayServe::Late,
        }
    }

    /// To be asked again just before the first byte of an answer. `same`: the table in force is
    /// the one the answer was made from, or says the same about it.
    pub fn may_send(self, policy: Policy, now_ns: u64, same: bool) -> MaySend {
        match self.may_serve(policy, now_ns) {
            MayServe::No => MaySend::No,
            _ if !same => MaySend::Anew,
            MayServe::Yes => MaySend::Yes,
            MayServe::Late => MaySend::Late,
        }
    }
}

/// Whether an edge may answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MayServe {
    /// It holds a lease.
    Yes,
    /// It holds none any more, but the site's policy lets it serve on, saying so.
    Late,
    /// It must not.
    No,
}

/// Whether an answer that is made may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MaySend {
    /// As it is.
    Yes,
    /// Saying that the lease has ended.
    Late,
    /// What it was made from has changed: it should be made again. A request that came before this
    /// began may still get it.
    Anew,
    /// Not at all.
    No,
}

/// What an authority knows of the leases that are out, in one leadership: a new one begins with a
/// new value, and grants of another do not count.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Grants {
    terms: Terms,
    since_ns: u64,
    /// The last entry when this leadership was first confirmed: what an earlier one let return.
    base: Option<Seq>,
    edges: BTreeMap<NodeId, Grant>,
    /// What each edge must have applied before it gets a lease.
    owed: BTreeMap<NodeId, Seq>,
    /// Of edges that are behind: up to where they must have come, and since when.
    behind: BTreeMap<NodeId, (Seq, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Grant {
    /// Granted at this time.
    At(u64),
    /// The edge said that it serves nothing any more.
    Ended,
    /// It is to be forgotten (since then), and gets no lease until that is surely done.
    Retired(u64),
}

/// So many terms after it was to be forgotten an edge may get leases again: it was not.
const RETIRED_TERMS: u64 = 6;

impl Grants {
    /// Nothing granted yet, by an authority whose leadership began at `now_ns` or before that:
    /// until one term from now any edge may hold a lease of an earlier one.
    pub fn new(terms: Terms, now_ns: u64) -> Grants {
        Grants {
            terms,
            since_ns: now_ns,
            base: None,
            edges: BTreeMap::new(),
            owed: BTreeMap::new(),
            behind: BTreeMap::new(),
        }
    }

    /// Grants a lease, if the edge has applied everything that may have been confirmed without it
    /// and does not stay behind. `last` is the last entry of the publish log as read while no one
    /// else looks at this value; between the arrival of the request and now the authority has
    /// confirmed that it leads.
    pub fn grant(&mut self, edge: NodeId, applied: Seq, last: Seq, now_ns: u64) -> bool {
        let base = *self.base.get_or_insert(last);
        let owed = self.owed.get(&edge).copied().unwrap_or_default().max(base);
        let retired = match self.edges.get(&edge) {
            Some(Grant::Retired(at)) => {
                now_ns < at.saturating_add(RETIRED_TERMS * self.terms.term_ns)
            }
            _ => false,
        };
        if retired || applied < owed || self.stays_behind(edge, applied, last, now_ns) {
            return false;
        }
        self.edges.insert(edge, Grant::At(now_ns));
        true
    }

    /// Whether an edge has not come in one term to where the log had ended then.
    fn stays_behind(&mut self, edge: NodeId, applied: Seq, last: Seq, now_ns: u64) -> bool {
        if applied >= last {
            self.behind.remove(&edge);
            return false;
        }
        let (target, since) = self.behind.entry(edge).or_insert((last, now_ns));
        if applied >= *target {
            (*target, *since) = (last, now_ns);
        }
        now_ns.saturating_sub(*since) >= self.terms.term_ns
    }

    /// An edge says that it has applied this. Should it lose it again, it gets no lease before it
    /// has it once more: a publish may have returned because of this.
    pub fn acknowledged(&mut self, edge: NodeId, seq: Seq) {
        let owed = self.owed.entry(edge).or_default();
        *owed = (*owed).max(seq);
    }

    /// The edge has started (again) while the log ended with `last`, read after the authority
    /// confirmed that it leads: what it may have acknowledged before, and lost since, it must have.
    pub fn began(&mut self, edge: NodeId, last: Seq) {
        self.acknowledged(edge, last);
    }

    /// The edge serves nothing any more, until it gets another lease.
    pub fn end(&mut self, edge: NodeId) {
        if !matches!(self.edges.get(&edge), Some(Grant::Retired(_))) {
            self.edges.insert(edge, Grant::Ended);
        }
    }

    /// Grants an edge none for a while, so that it can be forgotten, if it has surely stopped to
    /// answer for sites of this policy.
    ///
    /// # Errors
    /// With the time that is left until then; `None`: it may answer for ever.
    pub fn retire(
        &mut self,
        edge: NodeId,
        policy: Policy,
        now_ns: u64,
    ) -> Result<(), Option<Duration>> {
        if !self.surely_ended(edge, policy, now_ns) {
            return Err(self.left(edge, policy, now_ns));
        }
        self.edges.insert(edge, Grant::Retired(now_ns));
        Ok(())
    }

    /// Whether a lease was granted under this leadership and has not surely ended.
    pub fn is_out(&self, edge: NodeId, now_ns: u64) -> bool {
        matches!(self.edges.get(&edge), Some(Grant::At(_)))
            && !self.surely_ended(edge, Policy::Strict, now_ns)
    }

    /// When an edge has surely stopped to answer for a site of this policy unless its lease is
    /// renewed; `None`: never.
    pub fn ends_ns(&self, edge: NodeId, policy: Policy) -> Option<u64> {
        let from = match self.edges.get(&edge) {
            Some(Grant::Ended | Grant::Retired(_)) => return Some(0),
            Some(Grant::At(at)) => *at,
            None => self.since_ns,
        };
        let length = self.terms.term_ns.saturating_add(extra_ns(policy)?);
        Some(from.saturating_add(self.terms.surely(length)))
    }

    /// Whether an edge has surely stopped to answer for a site of this policy.
    pub fn surely_ended(&self, edge: NodeId, policy: Policy, now_ns: u64) -> bool {
        self.ends_ns(edge, policy).is_some_and(|ends| now_ns >= ends)
    }

    /// Whether a publish need not wait for an edge (any more): it has applied the entry, or cannot
    /// answer with what was before. Then it gets no lease before it has the entry.
    pub fn settled(
        &mut self,
        edge: NodeId,
        seq: Seq,
        acked: bool,
        policy: Policy,
        now_ns: u64,
    ) -> bool {
        let settled = acked || self.surely_ended(edge, policy, now_ns);
        if settled {
            self.acknowledged(edge, seq);
        }
        settled
    }

    /// How long until [`Grants::surely_ended`]; `None`: never.
    pub fn left(&self, edge: NodeId, policy: Policy, now_ns: u64) -> Option<Duration> {
        let ends = self.ends_ns(edge, policy)?;
        Some(Duration::from_nanos(ends.saturating_sub(now_ns)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const T: Terms = Terms::DEFAULT;
    const SECOND: u64 = 1_000_000_000;
    const EDGE: NodeId = NodeId(1);

    #[test]
    fn an_edge_counts_from_when_it_asked_and_never_back() {
        let held = Held::default();
        assert_eq!(held.may_serve(Policy::Available, 5), MayServe::No, "it never held one");
        let held = held.renewed(100 * SECOND, T);
        assert!(held.valid(110 * SECOND - 1) && !held.valid(110 * SECOND));
        assert_eq!(held.renewed(90 * SECOND, T), held, "an answer that was late");
    }

    #[test]
    fn past_its_lease_the_policy_decides() {
        let held = Held::default().renewed(0, T);
        let (inside, after) = (10 * SECOND - 1, 10 * SECOND);
        let bounded = Policy::Bounded { secs: 5 };
        for policy in [Policy::Strict, bounded, Policy::Available] {
            assert_eq!(held.may_serve(policy, inside), MayServe::Yes);
            assert_eq!(held.may_send(policy, inside, true), MaySend::Yes);
            assert_eq!(held.may_send(policy, inside, false), MaySend::Anew);
        }
        assert_eq!(held.may_serve(Policy::Strict, after), MayServe::No);
        assert_eq!(held.may_send(Policy::Strict, after, true), MaySend::No);
        assert_eq!(held.may_serve(bounded, 15 * SECOND - 1), MayServe::Late);
        assert_eq!(held.may_serve(bounded, 15 * SECOND), MayServe::No);
        assert_eq!(held.may_send(Policy::Available, u64::MAX, true), MaySend::Late);
    }

    #[test]
    fn a_new_authority_waits_out_a_term_and_grants_only_to_who_is_up_to_date() {
        let mut grants = Grants::new(T, 50 * SECOND);
        assert!(!grants.surely_ended(EDGE, Policy::Strict, 60 * SECOND));
        let end = 60 * SECOND + SECOND / 10;
        assert!(!grants.surely_ended(EDGE, Policy::Strict, end - 1));
        assert!(grants.surely_ended(EDGE, Policy::Strict, end));
        assert!(!grants.is_out(EDGE, 50 * SECOND), "none was granted here");
        assert!(!grants.grant(EDGE, Seq(4), Seq(5), 70 * SECOND));
        assert!(
            grants.surely_ended(EDGE, Policy::Strict, 70 * SECOND),
            "a refusal changes nothing"
        );
        assert!(grants.grant(EDGE, Seq(5), Seq(5), 70 * SECOND));
        assert!(grants.is_out(EDGE, 80 * SECOND));
        assert!(!grants.settled(EDGE, Seq(6), false, Policy::Strict, 80 * SECOND));
        assert!(grants.settled(EDGE, Seq(5), true, Policy::Strict, 70 * SECOND));
        let bounded = Policy::Bounded { secs: 90 };
        assert_eq!(grants.ends_ns(EDGE, bounded), Some(171 * SECOND));
        assert_eq!(grants.ends_ns(EDGE, Policy::Available), None);
        assert!(!grants.surely_ended(EDGE, Policy::Available, u64::MAX));
        grants.end(EDGE);
        assert!(grants.surely_ended(EDGE, Policy::Available, 70 * SECOND), "it said so");
        assert!(grants.grant(EDGE, Seq(5), Seq(5), 70 * SECOND));
        assert!(!grants.surely_ended(EDGE, Policy::Strict, 71 * SECOND), "it is back");
        let end = 80 * SECOND + SECOND / 10;
        let left = Some(Duration::from_nanos(1));
        assert_eq!(grants.retire(EDGE, Policy::Strict, end - 1), Err(left));
        assert_eq!(grants.retire(EDGE, Policy::Available, end), Err(None));
        assert_eq!(grants.retire(EDGE, Policy::Strict, end), Ok(()));
        assert!(!grants.grant(EDGE, Seq(5), Seq(5), end), "nobody would wait for it");
        grants.end(EDGE);
        assert!(!grants.grant(EDGE, Seq(5), Seq(5), end), "a farewell changes nothing");
        assert!(grants.surely_ended(EDGE, Policy::Available, end));
        assert!(grants.grant(EDGE, Seq(5), Seq(5), end + 60 * SECOND), "it was not forgotten");
    }

    #[test]
    fn an_edge_that_is_behind_serves_on_if_every_publish_waits_for_it() {
        let mut grants = Grants::new(T, 0);
        let grant = |grants: &mut Grants, applied, last, secs| {
            grants.grant(EDGE, Seq(applied), Seq(last), secs * SECOND)
        };
        assert!(!grant(&mut grants, 4, 5, 1), "an earlier leader may have confirmed the fifth");
        assert!(grant(&mut grants, 5, 6, 2), "nobody can have confirmed the sixth");
        assert!(grant(&mut grants, 6, 8, 11), "it has come to where the log ended, within a term");
        assert!(grant(&mut grants, 7, 20, 20));
        assert!(!grant(&mut grants, 7, 20, 21), "it did not, this time");
        assert!(grant(&mut grants, 8, 20, 22), "it is not stuck");
        // What it confirmed it must have, even if it lost it since.
        grants.acknowledged(EDGE, Seq(9));
        assert!(!grant(&mut grants, 8, 20, 23));
        assert!(grant(&mut grants, 9, 20, 23));
        // So it is with what was confirmed without it.
        assert!(!grants.settled(EDGE, Seq(11), false, Policy::Strict, 24 * SECOND));
        assert!(grants.settled(EDGE, Seq(11), false, Policy::Strict, 34 * SECOND));
        assert!(!grant(&mut grants, 10, 20, 34));
        assert!(grant(&mut grants, 20, 20, 34));
    }

    #[test]
    fn the_looser_of_two_policies() {
        let (short, long) = (Policy::Bounded { secs: 1 }, Policy::Bounded { secs: 2 });
        assert_eq!(looser(Policy::Strict, short), short);
        assert_eq!(looser(long, short), long);
        assert_eq!(looser(long, Policy::Available), Policy::Available);
        assert_eq!(looser(Policy::Available, Policy::Strict), Policy::Available);
        assert_eq!(looser(Policy::Strict, Policy::Strict), Policy::Strict);
    }

    proptest! {
        /// Sent, then granted, each at any time; the clocks begin anywhere and run at any rates
        /// that differ by at most the drift.
        #[test]
        fn when_the_authority_is_sure_the_edge_has_ended(
            sent in 0u64..1 << 50, flight in 0u64..1 << 40, edge_zero in 0u64..1 << 50,
            authority_zero in 0u64..1 << 50, faster in 0u64..=limits::CLOCK_DRIFT_PPM,
            secs in 0u32..100_000,
        ) {
            for policy in [Policy::Strict, Policy::Bounded { secs }] {
                let held = Held::default().renewed(edge_zero + sent, T);
                let mut grants = Grants::new(T, 0);
                // The edge's clock shows true time; the authority's is faster.
                let shows = |at: u64| {
                    let more = u128::from(at) * u128::from(faster) / 1_000_000;
                    authority_zero + at + u64::try_from(more).unwrap()
                };
                prop_assert!(grants.grant(EDGE, Seq(1), Seq(1), shows(sent + flight)));
                let length = T.term_ns + extra_ns(policy).unwrap();
                let last = sent + length - 1;
                prop_assert!(held.may_serve(policy, edge_zero + last) != MayServe::No);
                prop_assert!(!grants.surely_ended(EDGE, policy, shows(last)));
            }
        }

        #[test]
        fn no_times_panic(a: u64, b: u64, c: u64, secs: u32) {
            let held = Held { until_ns: a }.renewed(b, T);
            let mut grants = Grants::new(T, a);
            for policy in [Policy::Strict, Policy::Bounded { secs }, Policy::Available] {
                held.may_serve(policy, c);
                grants.left(EDGE, policy, c);
            }
            grants.grant(EDGE, Seq(a), Seq(b), c);
            grants.left(EDGE, Policy::Bounded { secs }, a);
        }
    }
}
