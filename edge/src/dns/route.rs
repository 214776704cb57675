//! Which edges a client is sent to: a pure function of its subnet, the region table and the
//! state of the edges.
//!
//! Called by [`super::answer`]. It knows nothing of names, packets or time. Among the edges of a
//! region the choice is a weighted rendezvous (Thaler and Ravishankar 1998; weights by
//! `w / -ln u`, as in Schindelhauer and Schomaker 2005): stable for a subnet, in proportion to
//! the weights over many subnets, and losing an edge moves nobody else.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use super::{config::RegionCidr, subnet::Subnet};

/// Most edges of one region in an answer.
const EDGES_MAX: usize = 8;
/// Edges an answer has at least, where that many are healthy.
const EDGES_MIN: usize = 2;
/// Most addresses of an answer; only the panic rule and edges with several addresses reach it.
const TARGETS_MAX: usize = 32;
/// Bits of a client's address that take part in the choice; the rest is nobody's business
/// (RFC 7871 section 11.1).
const CLIENT_PREFIX_V4: u8 = 24;
const CLIENT_PREFIX_V6: u8 = 56;
/// The entry of `region_order` for clients that no block covers.
const DEFAULT_ORDER: &str = "default";

/// An edge as DNS sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeView {
    /// Name of the node, unique in the cluster.
    pub name: String,
    /// The region it stands in.
    pub region: String,
    /// Public addresses visitors connect to.
    pub addrs: Vec<IpAddr>,
    /// Port of HTTPS on all of these, TCP and UDP.
    pub https_port: u16,
    /// Whether it serves: it holds its lease and reports ready.
    pub ready: bool,
    /// Share of visitors among the edges of a region; 0 sends it none while others have a share.
    pub weight: u32,
}

/// Address family of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// A records.
    V4,
    /// AAAA records.
    V6,
}

/// What is known about where the visitor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// The resolver told the visitor's subnet (EDNS Client Subnet) and caches the answer for all
    /// of the scope it is given.
    Subnet(Subnet),
    /// Only the resolver's own address is known.
    Resolver(IpAddr),
}

/// One place to connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Address of the edge.
    pub addr: IpAddr,
    /// Its HTTPS port.
    pub port: u16,
}

/// The outcome of [`RouteTable::pick`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picked {
    /// Where to connect, best first; several targets may share an address.
    pub targets: Vec<Target>,
    /// The answer holds for every client that shares this many leading bits; 0 for all clients.
    pub scope_prefix: u8,
}

impl Picked {
    /// The addresses, best first, each once.
    pub fn addrs(&self) -> Vec<IpAddr> {
        let mut addrs = Vec::with_capacity(self.targets.len());
        for target in &self.targets {
            if !addrs.contains(&target.addr) {
                addrs.push(target.addr);
            }
        }
        addrs
    }
}

/// Whether any edge that takes visitors is down: answers should then be kept for less long.
pub fn something_is_down(edges: &[EdgeView]) -> bool {
    edges.iter().any(|edge| edge.weight > 0 && !edge.ready)
}

/// Where clients are, and which regions are near to which.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    v4: Trie,
    v6: Trie,
    order: BTreeMap<String, Vec<String>>,
}

impl RouteTable {
    /// Builds the table from the configured blocks and orders.
    pub fn new(regions: &[RegionCidr], order: &BTreeMap<String, Vec<String>>) -> RouteTable {
        let mut table = RouteTable { order: order.clone(), ..RouteTable::default() };
        for line in regions {
            let trie = match line.cidr.addr() {
                IpAddr::V4(_) => &mut table.v4,
                IpAddr::V6(_) => &mut table.v6,
            };
            trie.insert(line.cidr, &line.region);
        }
        table
    }

    /// Picks edges of `family` for a client: the healthy edges of the nearest region that has
    /// any, filled up from the next regions to two edges where there are two. When less than
    /// half of the edges are healthy, health is not trusted and all edges are answered, healthy
    /// ones first.
    pub fn pick(&self, client: Client, edges: &[EdgeView], family: Family) -> Picked {
        let seat = self.seat(client);
        let pool = pool(edges);
        let healthy = pool.iter().filter(|edge| edge.ready).count();
        let panic = healthy * 2 < pool.len();
        let mut ranked: Vec<Ranked<'_>> = pool
            .into_iter()
            .filter(|edge| panic || edge.ready)
            .filter(|edge| edge.addrs.iter().any(|addr| is_of(family, *addr)))
            .map(|edge| Ranked {
                edge,
                nearness: self.nearness(seat.regions, &edge.region),
                share: share(seat.shared_by, edge),
            })
            .collect();
        if panic {
            ranked.sort_by(|a, b| b.edge.ready.cmp(&a.edge.ready).then_with(|| a.order(b)));
        } else {
            ranked.sort_by(Ranked::order);
            keep_nearest(&mut ranked, seat.client);
        }
        Picked { targets: targets(&ranked, family), scope_prefix: seat.scope }
    }

    fn seat(&self, client: Client) -> Seat<'_> {
        match client {
            Client::Subnet(told) => {
                let found = self.trie(told.addr()).find(told);
                let client = told.widened(client_prefix(told.addr()));
                let shared_by = told.widened(found.scope);
                Seat { regions: found.regions, scope: found.scope, client, shared_by }
            }
            Client::Resolver(addr) => {
                let addr = addr.to_canonical();
                let found = self.trie(addr).find(Subnet::of(addr, u8::MAX));
                let client = Subnet::of(addr, client_prefix(addr));
                Seat { regions: found.regions, scope: 0, client, shared_by: client }
            }
        }
    }

    fn trie(&self, addr: IpAddr) -> &Trie {
        if addr.is_ipv4() { &self.v4 } else { &self.v6 }
    }

    /// Sorts regions by distance; equal values are equally near.
    fn nearness<'a>(&self, located: &[String], region: &'a str) -> (usize, &'a str) {
        let configured = match located.first() {
            Some(first) => self.order.get(first),
            None => self.order.get(DEFAULT_ORDER),
        };
        if located.is_empty() && configured.is_none() {
            return (0, "");
        }
        let mut known = located.iter().chain(configured.into_iter().flatten());
        (known.position(|other| other == region).unwrap_or(usize::MAX), region)
    }
}

/// A client's place in the table.
struct Seat<'t> {
    /// From near to far; empty if no block covers the client.
    regions: &'t [String],
    scope: u8,
    /// Orders the answer.
    client: Subnet,
    /// Decides who is in the answer: everyone who may be handed it from a cache has to agree.
    shared_by: Subnet,
}

struct Ranked<'e> {
    edge: &'e EdgeView,
    nearness: (usize, &'e str),
    share: f64,
}

impl Ranked<'_> {
    fn order(&self, other: &Self) -> std::cmp::Ordering {
        (self.nearness.cmp(&other.nearness))
            .then_with(|| other.share.total_cmp(&self.share))
            .then_with(|| self.edge.name.cmp(&other.edge.name))
    }
}

/// Edges that take visitors; those of weight 0 only when there are no others.
fn pool(edges: &[EdgeView]) -> Vec<&EdgeView> {
    let weighted: Vec<&EdgeView> = edges.iter().filter(|edge| edge.weight > 0).collect();
    if weighted.is_empty() { edges.iter().collect() } else { weighted }
}

/// Cuts a sorted list to the nearest region, filled up to [`EDGES_MIN`] from what follows, and
/// rotates that region's edges by the client's own subnet.
fn keep_nearest(ranked: &mut Vec<Ranked<'_>>, client: Subnet) {
    let Some(nearest) = ranked.first().map(|first| first.nearness) else {
        return;
    };
    let near = ranked.iter().take_while(|each| each.nearness == nearest).count().min(EDGES_MAX);
    if near < EDGES_MIN {
        ranked.truncate(EDGES_MIN);
    } else {
        ranked.truncate(near);
    }
    let near = near.min(ranked.len());
    for each in &mut ranked[..near] {
        each.share = share(client, each.edge);
    }
    ranked[..near].sort_by(Ranked::order);
}

fn targets(ranked: &[Ranked<'_>], family: Family) -> Vec<Target> {
    let mut targets = Vec::new();
    for each in ranked {
        for addr in each.edge.addrs.iter().filter(|addr| is_of(family, **addr)) {
            let target = Target { addr: *addr, port: each.edge.https_port };
            if targets.len() < TARGETS_MAX && !targets.contains(&target) {
                targets.push(target);
            }
        }
    }
    targets
}

fn is_of(family: Family, addr: IpAddr) -> bool {
    match family {
        Family::V4 => addr.is_ipv4(),
        Family::V6 => addr.is_ipv6(),
    }
}

fn client_prefix(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { CLIENT_PREFIX_V4 } else { CLIENT_PREFIX_V6 }
}

/// An edge's bid for a subnet; the highest wins.
fn share(subnet: Subnet, edge: &EdgeView) -> f64 {
    let bits = match subnet.addr() {
        IpAddr::V4(v4) => Ipv6Addr::to_bits(v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let key = bits.to_be_bytes().into_iter().chain([subnet.prefix()]);
    let hash = mix(fnv1a(key.chain(edge.name.bytes())));
    // 53 bits make every value exact; the half keeps the draw inside (0, 1).
    let draw = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    f64::from(edge.weight.max(1)) / -draw.ln()
}

/// FNV-1a, 64 bits (Fowler, Noll, Vo).
fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): FNV alone leaves the high bits related.
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// A binary trie over prefix bits; node 0 is the root.
#[derive(Clone, Debug)]
struct Trie {
    nodes: Vec<Node>,
}

#[derive(Clone, Debug, Default)]
struct Node {
    /// Indices of the children; 0 is none, because the root is nobody's child.
    children: [usize; 2],
    regions: Vec<String>,
}

struct Found<'t> {
    regions: &'t [String],
    scope: u8,
}

impl Default for Trie {
    fn default() -> Trie {
        Trie { nodes: vec![Node::default()] }
    }
}

impl Trie {
    fn insert(&mut self, block: Subnet, region: &str) {
        let mut at = 0;
        for index in 0..block.prefix() {
            let bit = block.bit(index);
            if self.nodes[at].children[bit] == 0 {
                self.nodes[at].children[bit] = self.nodes.len();
                self.nodes.push(Node::default());
            }
            at = self.nodes[at].children[bit];
        }
        let regions = &mut self.nodes[at].regions;
        if !regions.iter().any(|known| known == region) {
            regions.push(region.to_owned());
        }
    }

    /// The longest block that covers all of `client`, and how many bits of it decide.
    ///
    /// The scope is the length of that block, made longer where blocks with other answers are
    /// nested in it or stand beside it, so that the part around the client holds none of them
    /// (RFC 7871 section 7.2.1: overlapping prefixes are deaggregated). It is never longer than
    /// what the client told, because a cache would not use more.
    fn find(&self, client: Subnet) -> Found<'_> {
        let mut at = &self.nodes[0];
        let mut found = Found { regions: &at.regions, scope: 0 };
        for index in 0..client.prefix() {
            if at.children == [0, 0] {
                break;
            }
            // A block lies in one half at least: which half the client is in matters.
            found.scope = index + 1;
            match at.children[client.bit(index)] {
                0 => break,
                child => at = &self.nodes[child],
            }
            if !at.regions.is_empty() {
                found.regions = &at.regions;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests;
