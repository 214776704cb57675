//! What edges ask of shields, and users of name servers. Both are edges in another role.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::publish::{PublishEntry, PublishSnapshot};
use crate::relay::{RelayedAck, RelayedGrant, RelayedRenewal};
use crate::{ChunkId, Seq};

/// A request to an edge in the role shield or dns. Variant numbers are stable: only append.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EdgeRequest {
    /// One whole chunk, from the shield's cache or fetched by it (once, however many ask).
    Chunk {
        /// Which.
        id: ChunkId,
    },
    /// Follow the publish log through the shield (`relay`). Waits until there is an entry after
    /// `after`, or `wait_ms`. Answered with `Log` or `Snapshot`.
    Follow {
        /// The last entry the asker knows; 0 for none.
        after: Seq,
        /// For the master: the asker has applied this.
        ack: Option<RelayedAck>,
        /// How long to wait at most, in milliseconds.
        wait_ms: u32,
    },
    /// Ask the master for a lease through the shield. Answered with `Renewed`.
    Renew {
        /// For the master.
        renewal: RelayedRenewal,
    },
    /// Of a name server: what a client is answered, and why. Answered with `DnsExplained`.
    ExplainDns {
        /// The name that is asked for.
        name: String,
        /// An address of the client.
        client: IpAddr,
        /// How many bits of it the resolver tells; `None`: it is the resolver's own address.
        told_prefix: Option<u8>,
    },
    /// Of a name server: its zones and the records that lead to them. Answered with `DnsServer`.
    DnsServer,
}

/// An answer of a shield or a name server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EdgeResponse {
    /// The whole chunk is the body.
    Chunk {
        /// Whether it was in the shield's cache.
        hit: bool,
    },
    /// To `Follow`: entries in order; empty when the wait ended.
    Log {
        /// At most `limits::WATCH_ENTRIES_MAX`.
        entries: Vec<PublishEntry>,
        /// The asker is up to date with this entry once it has applied `entries`.
        upto: Seq,
    },
    /// To `Follow` when the shield does not know every entry after `after`.
    Snapshot(Box<PublishSnapshot>),
    /// To `Renew`: from the master. `None`: it has no key of the asker, which should turn to it.
    Renewed(Option<RelayedGrant>),
    /// What a client is answered, and why.
    DnsExplained(DnsExplained),
    /// Its zones and the records that lead to them.
    DnsServer(DnsServer),
}

/// What a client is answered, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsExplained {
    /// The response code in the names of RFC 6895.
    pub code: String,
    /// The records of the answers for A, AAAA and HTTPS, as in zone files.
    pub answers: Vec<String>,
    /// How long they may be kept, in seconds.
    pub ttl_secs: u32,
    /// Which edges and why; none when the name does not lead to edges.
    pub route: Option<DnsRoute>,
}

/// How edges were chosen for a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsRoute {
    /// Label of the rule that placed the client.
    pub reason: String,
    /// The place, in words.
    pub place: String,
    /// Latitude and longitude in millionths of a degree, if they are known.
    pub at_udeg: Option<(i32, i32)>,
    /// The answer holds for every client that shares this many leading bits; 0 for all clients.
    pub scope_prefix: u8,
    /// Edges that are farther than the nearest by less than this are equally near.
    pub slack_km: u32,
    /// Less than half of the edges are healthy, so that health is not trusted.
    pub panic: bool,
    /// Every edge, those of the answer first.
    pub candidates: Vec<DnsCandidate>,
}

/// One edge, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsCandidate {
    /// Name of the node.
    pub name: String,
    /// Its region.
    pub region: String,
    /// Its public addresses.
    pub addrs: Vec<IpAddr>,
    /// Kilometres from the client's place; `None` if one of the two is not known.
    pub km: Option<u32>,
    /// Position of its region in the configured order, from 0; `None` if it is not in it.
    pub tier: Option<u32>,
    /// Whether it serves.
    pub ready: bool,
    /// Its share among equally near edges.
    pub weight: u32,
    /// Whether it is in the answer.
    pub taken: bool,
    /// Why it is or is not.
    pub why: String,
}

/// What a name server is responsible for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsServer {
    /// Where it answers.
    pub listen: SocketAddr,
    /// Its zones with a final dot, that of the sites first.
    pub zones: Vec<String>,
    /// Names of the zones' name servers, with a final dot, and their addresses.
    pub servers: Vec<(String, Vec<IpAddr>)>,
    /// Serial of the SOA records.
    pub serial: u32,
    /// Domains of sites that lie in none of the zones, without a final dot, and their sites.
    pub foreign_domains: Vec<(String, String)>,
}
