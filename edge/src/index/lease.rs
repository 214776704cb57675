//! The lease: whether what the index says may be answered with. [`crate::node`] renews it,
//! [`crate::http`] asks before it looks at the index and again before the first byte. The rules
//! are those of `atoll_proto::lease`; no lock is taken.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use atoll_proto::lease::{Held, MaySend, MayServe, Terms};
use atoll_proto::site::Policy;

use super::table::SiteState;
use super::{Index, host};

/// A request that may be answered, and from what.
#[derive(Debug)]
pub struct Admission {
    policy: Policy,
    /// Held, so that another state is another value in memory.
    state: Option<Arc<SiteState>>,
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
        let state = self.state_of(host);
        let policy = state.as_ref().map_or(Policy::Strict, |state| state.site.settings.policy);
        let may = self.lease().may_serve(policy, now_ns);
        (may != MayServe::No).then_some(Admission { policy, state })
    }

    /// Whether an answer to an admitted request may be sent now.
    pub fn may_send(&self, admission: &Admission, host: &str, now_ns: u64) -> MaySend {
        let now = self.state_of(host);
        let same = match (&admission.state, &now) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            (None, None) => true,
            _ => false,
        };
        self.lease().may_send(admission.policy, now_ns, same)
    }

    fn state_of(&self, host: &str) -> Option<Arc<SiteState>> {
        let table = self.table.load();
        let named = host::resolve(host, &self.suffixes, &table)?;
        table.site(&named.site).cloned()
    }
}
