//! The lease: whether what the index says may be answered with. [`crate::node`] renews it,
//! [`crate::http`] asks before it looks at the index and again before the first byte. The rules
//! are those of `atoll_proto::lease`; no lock is taken.

use std::sync::atomic::Ordering;

use atoll_proto::lease::{Held, MaySend, MayServe, Terms};
use atoll_proto::site::Policy;

use super::{Index, Resolved};

/// A request that may be answered, and from what.
#[derive(Debug)]
pub struct Admission {
    policy: Policy,
    /// What its host names; it is resolved once for a request.
    pub resolved: Resolved,
}

impl Index {
    /// The lease that was asked for at `sent_ns` is granted.
    pub fn renewed(&self, sent_ns: u64) {
        let until = Held::default().renewed(sent_ns, Terms::DEFAULT).until_ns;
        self.lease_until_ns.fetch_max(until, Ordering::AcqRel);
    }

    /// The masters do not know this edge: what it has is worth nothing, under no policy.
    pub fn lease_is_over(&self) {
        self.lease_until_ns.store(0, Ordering::Release);
    }

    /// The lease it has, or had.
    pub fn lease(&self) -> Held {
        Held { until_ns: self.lease_until_ns.load(Ordering::Acquire) }
    }

    /// Whether a request for this host may be answered now; to be asked before anything else is
    /// asked about it. A host that is not known gets the strict policy: who knows what it is by now.
    pub fn admit(&self, host: &str, now_ns: u64) -> Option<Admission> {
        // Before the table: then whatever had to be applied for this lease is in it.
        let lease = self.lease();
        let resolved = self.resolve(host);
        let state = resolved.state.as_ref();
        let policy = state.map_or(Policy::Strict, |state| state.site.settings.policy);
        let may = lease.may_serve(policy, now_ns);
        (may != MayServe::No).then_some(Admission { policy, resolved })
    }

    /// Whether an answer to an admitted request may be sent now.
    pub fn may_send(&self, admission: &Admission, host: &str, now_ns: u64) -> MaySend {
        // Before the table, as in `admit`.
        let lease = self.lease();
        let same = self.is_current(&admission.resolved, host);
        lease.may_send(admission.policy, now_ns, same)
    }
}
