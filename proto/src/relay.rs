//! Relays: a shield hands the publish log on to edges, and what they say of it to the master, many
//! in one message (promise P2). Values and functions without a clock.
//!
//! The master alone grants leases and notes who has applied what; a relay only carries. What it
//! carries is sealed with a [`RelayKey`] that no one but the edge and the leading master has, given
//! to the edge over their own connection. So a relay may lose, delay, reorder and repeat what
//! it was given, and start anew at any moment; it can make up neither a grant nor an
//! acknowledgement. The rules that this rests on:
//! - A renewal has a number, and the edge counts from before it sent the renewal *of that number*
//!   ([`Asked`]). A grant for any other is worth nothing.
//! - An acknowledgement through a relay never takes one back ([`crate::lease`] says why one that
//!   comes late from an earlier run of the edge does no harm).
//! - Keys are the leader's memory: another leader has none, and neither has a leader once the edge
//!   registers anew or says farewell. Who is refused turns to the master itself.
//!
//! `proto/tests/lease_model` explores this with the rest of the protocol. What a shield that is
//! broken or hostile can do all the same is said in `docs/decisions/0017-shields-relay-the-log.md`.

use serde::{Deserialize, Serialize};

use crate::publish::PublishEntry;
use crate::{NodeId, Seq, limits};

/// A secret of one run of an edge and one leader.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayKey(pub [u8; 32]);

impl std::fmt::Debug for RelayKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RelayKey(..)")
    }
}

impl RelayKey {
    fn seal(&self, what: &[u8], fields: &impl Serialize) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(what);
        hasher.update(&crate::encode(fields));
        *hasher.finalize().as_bytes()
    }
}

/// Whether two seals are the same, in constant time.
fn same(one: [u8; 32], other: [u8; 32]) -> bool {
    // blake3::Hash compares so.
    blake3::Hash::from(one) == blake3::Hash::from(other)
}

/// An edge's word that it has applied the log up to an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayedAck {
    /// Which edge.
    pub edge: NodeId,
    /// Every entry up to this one is in force there.
    pub seq: Seq,
    /// Keyed BLAKE3 of the fields above.
    pub seal: [u8; 32],
}

impl RelayedAck {
    /// Makes one.
    pub fn sealed(key: &RelayKey, edge: NodeId, seq: Seq) -> RelayedAck {
        let mut ack = RelayedAck { edge, seq, seal: [0; 32] };
        ack.seal = ack.compute(key);
        ack
    }

    /// Whether the edge with this key said so.
    pub fn is_of(&self, key: &RelayKey) -> bool {
        same(self.compute(key), self.seal)
    }

    fn compute(&self, key: &RelayKey) -> [u8; 32] {
        key.seal(b"atoll relayed ack v1", &(self.edge, self.seq))
    }
}

/// An edge asks for a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayedRenewal {
    /// Which edge.
    pub edge: NodeId,
    /// Another one each time.
    pub number: u64,
    /// Whether it can do its work.
    pub ready: bool,
    /// The last entry of the publish log that is in force there; `None` while it knows none.
    pub applied: Option<Seq>,
    /// Keyed BLAKE3 of the fields above.
    pub seal: [u8; 32],
}

impl RelayedRenewal {
    /// Makes one.
    pub fn sealed(
        key: &RelayKey,
        edge: NodeId,
        number: u64,
        ready: bool,
        applied: Option<Seq>,
    ) -> RelayedRenewal {
        let mut renewal = RelayedRenewal { edge, number, ready, applied, seal: [0; 32] };
        renewal.seal = renewal.compute(key);
        renewal
    }

    /// Whether the edge with this key asks.
    pub fn is_of(&self, key: &RelayKey) -> bool {
        same(self.compute(key), self.seal)
    }

    fn compute(&self, key: &RelayKey) -> [u8; 32] {
        let fields = (self.edge, self.number, self.ready, self.applied);
        key.seal(b"atoll relayed renewal v1", &fields)
    }
}

/// The master's answer to a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayedGrant {
    /// To which edge.
    pub edge: NodeId,
    /// To the renewal of this number.
    pub number: u64,
    /// Whether the lease is granted; it counts from when that renewal was sent.
    pub granted: bool,
    /// Where the log ended: an edge that does not come so far has a relay that is behind.
    pub last: Seq,
    /// Keyed BLAKE3 of the fields above.
    pub seal: [u8; 32],
}

impl RelayedGrant {
    /// Makes one.
    pub fn sealed(
        key: &RelayKey,
        edge: NodeId,
        number: u64,
        granted: bool,
        last: Seq,
    ) -> RelayedGrant {
        let mut grant = RelayedGrant { edge, number, granted, last, seal: [0; 32] };
        grant.seal = grant.compute(key);
        grant
    }

    /// Whether the master that gave this key says so.
    pub fn is_of(&self, key: &RelayKey) -> bool {
        same(self.compute(key), self.seal)
    }

    fn compute(&self, key: &RelayKey) -> [u8; 32] {
        let fields = (self.edge, self.number, self.granted, self.last);
        key.seal(b"atoll relayed grant v1", &fields)
    }
}

/// The renewal that an edge waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Asked {
    number: u64,
    sent_ns: u64,
}

impl Asked {
    /// It has this number, and nothing of it was sent before this time.
    pub fn new(number: u64, sent_ns: u64) -> Asked {
        Asked { number, sent_ns }
    }

    /// Since when a lease counts that was granted to the renewal of a number. `None`: this one is
    /// not meant, and nothing follows.
    pub fn counts_from(self, number: u64) -> Option<u64> {
        (self.number == number).then_some(self.sent_ns)
    }
}

/// What a relay has gathered for the master and not yet sent. What is taken out is closed: what
/// comes later goes with the next, so that no answer is for something it was not asked.
///
/// Times are nanoseconds of any one clock.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Gathered<T> {
    items: Vec<T>,
    due_ns: Option<u64>,
    /// Edges that were given entries and have not acknowledged since.
    awaited: usize,
    /// How often something was sent while some were awaited.
    sent: u32,
}

impl<T> Default for Gathered<T> {
    fn default() -> Self {
        Gathered { items: Vec::new(), due_ns: None, awaited: 0, sent: 0 }
    }
}

impl<T> Gathered<T> {
    /// An edge was given entries, and will acknowledge them.
    pub fn handed_on(&mut self) {
        self.awaited = self.awaited.saturating_add(1);
    }

    /// An acknowledgement: sent once those of all others are here, or after a while, which doubles
    /// with each message. So slow edges cost the master a message for each doubling of the time
    /// they take, and the last one costs no time.
    pub fn acknowledgement(&mut self, item: T, now_ns: u64) {
        self.awaited = self.awaited.saturating_sub(1);
        let wait = if self.awaited == 0 {
            self.sent = 0;
            0
        } else {
            nanos(limits::RELAY_GATHER_ACKS) << self.sent
        };
        self.push(item, now_ns.saturating_add(wait));
    }

    /// A renewal: it has time.
    pub fn renewal(&mut self, item: T, now_ns: u64) {
        self.push(item, now_ns.saturating_add(nanos(limits::RELAY_GATHER_RENEWALS)));
    }

    fn push(&mut self, item: T, due_ns: u64) {
        self.items.push(item);
        self.due_ns = Some(self.due_ns.map_or(due_ns, |due| due.min(due_ns)));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// When they are to be sent.
    pub fn due_ns(&self) -> Option<u64> {
        self.due_ns
    }

    /// Takes the first ones out, to be sent now.
    pub fn take(&mut self) -> Vec<T> {
        let count = self.items.len().min(limits::RELAY_ITEMS_MAX);
        let rest = self.items.split_off(count);
        let taken = std::mem::replace(&mut self.items, rest);
        if self.items.is_empty() {
            self.due_ns = None;
        }
        if self.awaited > 0 {
            self.sent += 1;
        }
        if self.sent > limits::RELAY_GATHER_DOUBLINGS {
            // Who has not acknowledged by now may be gone: the next are not held up for it.
            (self.awaited, self.sent) = (0, 0);
        }
        taken
    }
}

fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The end of the publish log, as a relay keeps it in memory: a bounded number of entries.
#[derive(Debug, Clone, Default)]
pub struct Tail {
    entries: std::collections::VecDeque<(PublishEntry, usize)>,
    bytes: usize,
    /// Everything after this entry is in `entries`.
    floor: Seq,
    /// Everything up to this entry is known.
    upto: Seq,
}

/// What a relay has for an edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Nothing new.
    Nothing,
    /// Entries in order; having applied them the edge is up to date with the second.
    Entries(Vec<PublishEntry>, Seq),
    /// The tail does not reach back so far: the edge needs the whole state.
    TooOld,
    /// The edge knows more than this relay.
    Ahead,
}

impl Tail {
    /// Begins anew after an entry: what came before is not known one by one.
    pub fn restart(&mut self, at: Seq) {
        *self = Tail { floor: at, upto: at, ..Tail::default() };
    }

    /// The last entry that is known.
    pub fn upto(&self) -> Seq {
        self.upto
    }

    /// What the master answered to the question for what is after `after`.
    pub fn extend(&mut self, after: Seq, entries: &[PublishEntry], upto: Seq) {
        if after > self.upto {
            // What is between is not known.
            self.restart(after);
        }
        for entry in entries.iter().filter(|entry| entry.seq > self.upto) {
            let bytes = crate::encode(entry).len();
            self.bytes += bytes;
            self.entries.push_back((entry.clone(), bytes));
        }
        self.upto = self.upto.max(upto);
        while self.entries.len() > limits::RELAY_ENTRIES_MAX
            || self.bytes > limits::RELAY_ENTRIES_BYTES_MAX
        {
            let Some((entry, bytes)) = self.entries.pop_front() else { break };
            self.bytes -= bytes;
            self.floor = entry.seq;
        }
    }

    /// What there is for an edge that has applied everything up to `after`.
    pub fn after(&self, after: Seq) -> Next {
        if after > self.upto {
            return Next::Ahead;
        }
        if after < self.floor {
            return Next::TooOld;
        }
        if after == self.upto {
            return Next::Nothing;
        }
        let from = self.entries.partition_point(|(entry, _)| entry.seq <= after);
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for (entry, len) in self.entries.range(from..) {
            bytes += len;
            let full = entries.len() >= limits::WATCH_ENTRIES_MAX
                || (bytes > limits::RELAY_ANSWER_BYTES_MAX && !entries.is_empty());
            if full {
                let upto = entries.last().map_or(after, |last: &PublishEntry| last.seq);
                return Next::Entries(entries, upto);
            }
            entries.push(entry.clone());
        }
        Next::Entries(entries, self.upto)
    }
}

/// How long an edge has been short of where the master said that the log ends: a sign that its
/// relay is behind.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lag(Option<(Seq, u64)>);

impl Lag {
    /// The edge has applied the log up to `applied`; it ends at `last` or, when nothing was heard of
    /// that, where it did. Tells whether the edge stays behind for too long.
    pub fn stays_behind(&mut self, applied: Seq, last: Option<Seq>, now_ns: u64) -> bool {
        match self.0 {
            Some((target, since)) if applied < target => {
                now_ns.saturating_sub(since) >= nanos(limits::RELAY_LAG_MAX)
            }
            _ => {
                self.0 = last.filter(|last| applied < *last).map(|last| (last, now_ns));
                false
            }
        }
    }

    /// It follows somebody else from now on.
    pub fn forget(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::publish::PublishEvent;

    const KEY: RelayKey = RelayKey([7; 32]);
    const OTHER: RelayKey = RelayKey([8; 32]);
    const EDGE: NodeId = NodeId(5);

    fn entry(seq: u64) -> PublishEntry {
        let event = PublishEvent::SiteRemoved("blog".parse().unwrap());
        PublishEntry { seq: Seq(seq), at_ms: 0, event }
    }

    #[test]
    fn any_change_spoils_a_seal() {
        let ack = RelayedAck::sealed(&KEY, EDGE, Seq(3));
        assert!(ack.is_of(&KEY) && !ack.is_of(&OTHER));
        assert!(!RelayedAck { seq: Seq(4), ..ack }.is_of(&KEY));
        assert!(!RelayedAck { edge: NodeId(6), ..ack }.is_of(&KEY));
        let renewal = RelayedRenewal::sealed(&KEY, EDGE, 9, true, Some(Seq(3)));
        assert!(renewal.is_of(&KEY) && !renewal.is_of(&OTHER));
        assert!(!RelayedRenewal { number: 10, ..renewal }.is_of(&KEY));
        assert!(!RelayedRenewal { ready: false, ..renewal }.is_of(&KEY));
        assert!(!RelayedRenewal { applied: Some(Seq(4)), ..renewal }.is_of(&KEY));
        assert!(!RelayedRenewal { applied: None, ..renewal }.is_of(&KEY));
        let grant = RelayedGrant::sealed(&KEY, EDGE, 9, false, Seq(3));
        assert!(grant.is_of(&KEY) && !grant.is_of(&OTHER));
        assert!(!RelayedGrant { granted: true, ..grant }.is_of(&KEY));
        assert!(!RelayedGrant { number: 10, ..grant }.is_of(&KEY));
        assert!(!RelayedGrant { last: Seq(4), ..grant }.is_of(&KEY));
    }

    #[test]
    fn a_grant_counts_for_the_renewal_it_answers_only() {
        let asked = Asked::new(4, 100);
        assert_eq!((asked.counts_from(4), asked.counts_from(3)), (Some(100), None));
    }

    #[test]
    fn acknowledgements_wait_for_each_other_and_renewals_for_a_while() {
        let mut gathered = Gathered::default();
        gathered.acknowledgement('a', 10);
        assert_eq!(gathered.due_ns(), Some(10), "nobody else is awaited");
        assert_eq!(gathered.take(), ['a']);
        assert!(gathered.is_empty() && gathered.due_ns().is_none());
        gathered.handed_on();
        gathered.handed_on();
        gathered.acknowledgement('b', 20);
        assert_eq!(gathered.due_ns(), Some(20 + nanos(limits::RELAY_GATHER_ACKS)));
        gathered.acknowledgement('c', 30);
        assert_eq!(gathered.due_ns(), Some(30), "all are here");
        assert_eq!(gathered.take().len(), 2);
        // Of three that are awaited one is slow, and one gone.
        for _ in 0..3 {
            gathered.handed_on();
        }
        let (mut at, mut waits) = (1000, Vec::new());
        for _ in 0..=limits::RELAY_GATHER_DOUBLINGS {
            gathered.handed_on();
            gathered.acknowledgement('s', at);
            let due = gathered.due_ns().unwrap();
            waits.push((due - at) / nanos(limits::RELAY_GATHER_ACKS));
            at = due;
            assert_eq!(gathered.take().len(), 1);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16]);
        gathered.acknowledgement('t', at);
        assert_eq!(gathered.due_ns(), Some(at), "nobody is awaited any more");
        gathered.take();
        gathered.renewal('d', 40);
        assert_eq!(gathered.due_ns(), Some(40 + nanos(limits::RELAY_GATHER_RENEWALS)));
        gathered.acknowledgement('e', 50);
        assert_eq!((gathered.due_ns(), gathered.len()), (Some(50), 2));
        for _ in 0..=limits::RELAY_ITEMS_MAX {
            gathered.renewal('f', 60);
        }
        assert_eq!(gathered.take().len(), limits::RELAY_ITEMS_MAX);
        assert_eq!((gathered.len(), gathered.due_ns()), (3, Some(50)), "the rest is still due");
    }

    #[test]
    fn a_tail_has_no_gaps_and_is_bounded() {
        let mut tail = Tail::default();
        tail.restart(Seq(10));
        assert_eq!(tail.after(Seq(10)), Next::Nothing);
        assert_eq!((tail.after(Seq(9)), tail.after(Seq(11))), (Next::TooOld, Next::Ahead));
        tail.extend(Seq(10), &[entry(12), entry(15)], Seq(17));
        assert_eq!(tail.after(Seq(10)), Next::Entries(vec![entry(12), entry(15)], Seq(17)));
        assert_eq!(tail.after(Seq(13)), Next::Entries(vec![entry(15)], Seq(17)));
        assert_eq!(tail.after(Seq(16)), Next::Entries(vec![], Seq(17)), "there is nothing else");
        tail.extend(Seq(10), &[entry(12), entry(20)], Seq(20));
        assert_eq!(tail.after(Seq(17)), Next::Entries(vec![entry(20)], Seq(20)), "said twice");
        let many: Vec<_> = (21..).take(limits::RELAY_ENTRIES_MAX).map(entry).collect();
        let last = many.last().unwrap().seq;
        tail.extend(Seq(20), &many, last);
        assert_eq!(tail.after(Seq(19)), Next::TooOld, "the twentieth is not kept any more");
        let Next::Entries(some, upto) = tail.after(Seq(20)) else { panic!("it reaches back") };
        assert_eq!((some.len(), upto), (limits::WATCH_ENTRIES_MAX, some.last().unwrap().seq));
        tail.restart(Seq(5));
        assert_eq!((tail.after(Seq(5)), tail.upto()), (Next::Nothing, Seq(5)));
        tail.extend(Seq(7), &[entry(8)], Seq(8));
        assert_eq!(tail.after(Seq(5)), Next::TooOld, "something may have been between");
        assert_eq!(tail.after(Seq(7)), Next::Entries(vec![entry(8)], Seq(8)));
    }

    #[test]
    fn an_edge_that_does_not_come_on_has_a_relay_that_is_behind() {
        const LAG: u64 = limits::RELAY_LAG_MAX.as_nanos() as u64;
        let mut lag = Lag::default();
        assert!(!lag.stays_behind(Seq(5), Some(Seq(5)), 0));
        assert!(!lag.stays_behind(Seq(5), Some(Seq(7)), 0));
        assert!(!lag.stays_behind(Seq(6), Some(Seq(9)), LAG - 1));
        assert!(lag.stays_behind(Seq(6), None, LAG));
        assert!(!lag.stays_behind(Seq(7), Some(Seq(9)), LAG), "it has come to where that was");
        assert!(!lag.stays_behind(Seq(7), Some(Seq(9)), LAG + 1));
        lag.forget();
        assert!(!lag.stays_behind(Seq(7), Some(Seq(9)), 3 * LAG));
    }

    proptest! {
        /// Whatever a relay keeps, who follows it gets every entry, in order, or is told that it
        /// must take the whole state.
        #[test]
        fn who_follows_a_tail_misses_nothing(
            steps in proptest::collection::vec(1u64..4, 1..200), begin in 0usize..200,
        ) {
            let mut seq = 0;
            let all: Vec<_> = steps.iter().map(|step| { seq += step; entry(seq) }).collect();
            let begin = begin.min(all.len() - 1);
            let mut tail = Tail::default();
            tail.restart(all[begin].seq);
            for part in all[begin + 1..].chunks(7) {
                tail.extend(tail.upto(), part, part.last().unwrap().seq);
            }
            let (mut at, mut got) = (all[begin].seq, Vec::new());
            while let Next::Entries(entries, upto) = tail.after(at) {
                prop_assert!(upto > at);
                (at, got) = (upto, [got, entries].concat());
            }
            prop_assert_eq!(&got, &all[begin + 1..]);
            prop_assert_eq!(tail.after(at), Next::Nothing);
        }
    }
}
