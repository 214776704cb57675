//! What there is in the model, and what may happen.

use std::collections::BTreeSet;

use atoll_proto::lease::{Grants, Held};
use atoll_proto::relay::Asked;

/// A message under way, or the work on one at a master.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Message {
    /// From an edge: renew.
    Renew { edge: usize, run: u8, sent: u64, applied: u8 },
    /// The leader of this term has confirmed, since the renewal arrived, that it leads.
    Confirmed { edge: usize, run: u8, sent: u64, applied: u8, term: usize, last: u8 },
    /// To an edge: granted.
    Granted { edge: usize, run: u8, sent: u64 },
    /// From an edge: it has applied this.
    Acknowledge { edge: usize, seq: u8 },
    /// From an edge through a relay: it has applied this.
    RelayedAck { edge: usize, key: Key, seq: u8 },
    /// From an edge through a relay: renew.
    RelayedRenew { edge: usize, key: Key, number: u8, applied: u8 },
    /// The leader of this term has confirmed, since that arrived, that it leads.
    RelayedConfirmed { edge: usize, key: Key, number: u8, applied: u8, term: usize },
    /// To an edge through a relay: granted.
    RelayedGranted { edge: usize, key: Key, number: u8 },
}

/// What an edge and a leader share: made by the leader of a term, another one each time.
pub(super) type Key = (usize, u8);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Edge {
    pub(super) clock: u64,
    pub(super) table: u8,
    pub(super) held: Held,
    pub(super) run: u8,
    /// The masters were told of this run.
    pub(super) registered: bool,
    /// What it seals with.
    pub(super) key: Option<Key>,
    /// The last renewal that it has sent through a relay.
    pub(super) asked: Option<Asked>,
    pub(super) request: Option<Request>,
}

/// A request at an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Request {
    /// The last publish that had returned when the request came.
    pub(super) floor: u8,
    pub(super) admitted: bool,
    /// The entry as of which the answer was made.
    pub(super) chosen: Option<u8>,
}

/// A leadership. The master may think that it leads when another already does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Leader {
    pub(super) clock: u64,
    /// The last entry it has applied.
    pub(super) last: u8,
    pub(super) grants: Grants,
    pub(super) acked: Vec<u8>,
    /// Of each edge.
    pub(super) keys: Vec<Option<Key>>,
    /// A wait for this entry that has passed the read gate.
    pub(super) waits: Option<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) edges: Vec<Edge>,
    pub(super) leaders: Vec<Leader>,
    pub(super) network: BTreeSet<Message>,
    /// Up to where the relay knows the log.
    pub(super) relay: u8,
    /// Keys that were made.
    pub(super) keys: u8,
    pub(super) committed: u8,
    /// The last publish that has returned.
    pub(super) returned: u8,
    pub(super) steps: u8,
    pub(super) renewals: u8,
    pub(super) requests: u8,
    pub(super) restarts: u8,
    pub(super) repeats: u8,
    /// An answer older than a publish that had returned was sent.
    pub(super) stale: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Action {
    /// Time passes; these clocks run fast: of each edge, then of all masters, whose clocks are
    /// never compared with each other.
    Pass {
        fast: Vec<bool>,
    },
    Publish,
    Elect,
    /// The leader's process starts again within its term.
    RestartLeader,
    RestartEdge {
        edge: usize,
    },
    /// The edge tells the leader of its run, and gets a key.
    Register {
        edge: usize,
    },
    Apply {
        edge: usize,
    },
    /// From what the relay has.
    ApplyRelayed {
        edge: usize,
    },
    Renew {
        edge: usize,
    },
    RenewRelayed {
        edge: usize,
    },
    /// The relay comes on to where the log ends.
    RelayFollows,
    /// The relay starts again from what it had stored, as old as that may be.
    RestartRelay,
    Deliver {
        message: Message,
        term: usize,
        /// It is repeated later.
        again: bool,
    },
    /// A wait for the last entry passes the read gate of the leader.
    Wait,
    Return {
        term: usize,
    },
    Arrive {
        edge: usize,
    },
    Admit {
        edge: usize,
    },
    Choose {
        edge: usize,
    },
    Send {
        edge: usize,
    },
}
