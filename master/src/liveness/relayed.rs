//! What edges say through shields: the keys it is sealed with, and what follows from it. Why that
//! is enough is said in `atoll_proto::relay`.

use atoll_proto::relay::{RelayKey, RelayedAck, RelayedGrant, RelayedRenewal};
use atoll_proto::{NodeId, Seq};
use tokio::time::Instant;

use super::{Enrolled, Heard, Liveness};

impl Liveness {
    /// From now on an edge may speak through shields, with this key and no other.
    pub(crate) fn enrol(&mut self, edge: NodeId, key: RelayKey) {
        self.keys.insert(edge, Enrolled { key, renewal: 0 });
    }

    /// An acknowledgement that came through a shield. `last`: the last entry of the publish log, read
    /// since the message arrived. Tells whether it is news; `None`: nothing follows from it.
    ///
    /// It is no sign of life: it may have been on its way for long.
    pub(crate) fn relayed_ack(
        &mut self,
        ack: &RelayedAck,
        last: Seq,
        now: Instant,
    ) -> Option<bool> {
        let Enrolled { key, .. } = self.keys.get(&ack.edge)?;
        // Nobody can have applied what was never published.
        if !ack.is_of(key) || ack.seq > last {
            return None;
        }
        Some(self.confirmed(ack.edge, ack.seq, now))
    }

    /// A renewal that came through a shield, since when this master has confirmed that it leads.
    /// `last`: as above. Tells also whether it brought news of what is applied.
    pub(crate) fn relayed_renewal(
        &mut self,
        renewal: &RelayedRenewal,
        last: Seq,
        now: Instant,
        now_ns: u64,
    ) -> Option<(RelayedGrant, bool)> {
        let RelayedRenewal { edge, number, ready, applied, .. } = *renewal;
        let enrolled = self.keys.get_mut(&edge)?;
        let key = enrolled.key;
        if !renewal.is_of(&key) || number <= enrolled.renewal {
            return None;
        }
        enrolled.renewal = number;
        self.heard(edge, ready, None, now);
        let (granted, news) = match applied.filter(|applied| *applied <= last) {
            Some(applied) => {
                let news = self.confirmed(edge, applied, now);
                (self.grant(edge, applied, last, now_ns), news)
            }
            None => (false, false),
        };
        Some((RelayedGrant::sealed(&key, edge, number, granted, last), news))
    }

    /// An edge had applied the log up to an entry at some time of this run or an earlier one. What
    /// it says may overtake itself, so nothing is taken back.
    pub(super) fn confirmed(&mut self, edge: NodeId, upto: Seq, now: Instant) -> bool {
        let heard = self.nodes.entry(edge).or_insert_with(|| Heard::fresh(now, true));
        let news = upto > heard.acked;
        heard.acked = heard.acked.max(upto);
        self.grants.acknowledged(edge, upto);
        news
    }
}
