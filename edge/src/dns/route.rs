//! Which edges a client is sent to: a pure function of where it is ([`super::atlas`]) and of the
//! state of the edges.
//!
//! Called by [`super::answer`]. It knows nothing of names, packets or time. A [`Routes`] is made
//! for every state of the cluster: each place of the atlas gets its choice of edges, places with
//! equal choices share one, and addresses beside each other with equal choices form the blocks
//! that answers hold for. Among equally near edges the first place goes by a weighted rendezvous
//! (Thaler and Ravishankar 1998; weights by `w / -ln u`, as in Schindelhauer and Schomaker 2005):
//! stable for a subnet, in proportion to the weights over many subnets, and losing an edge moves
//! nobody else.

mod choice;
mod explain;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::atlas::{Atlas, Reason};
use super::ranges::{Address, Lookup};
use super::subnet::Subnet;
use choice::{Choice, Chooser};

pub use choice::something_is_down;
pub use explain::{Candidate, Explanation, Verdict};

/// Most addresses of an answer; only the panic rule and edges with several addresses reach it.
pub(super) const TARGETS_MAX: usize = 32;
/// Bits of a client's address that take part in the choice; the rest is nobody's business
/// (RFC 7871 section 11.1).
const CLIENT_PREFIX_V4: u8 = 24;
const CLIENT_PREFIX_V6: u8 = 56;
/// Where a place has more edges than an answer holds, blocks of this size get different ones.
const SPREAD_PREFIX_V4: u8 = 16;
const SPREAD_PREFIX_V6: u8 = 40;

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
    /// Share of visitors among equally near edges; 0 sends it none while others are there to take
    /// them.
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

/// The outcome of [`Routes::pick`].
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

/// An edge, ready to be put into answers.
#[derive(Clone, Debug)]
pub(super) struct Edge {
    hash: u64,
    weight: u32,
    /// Its IPv4 addresses.
    pub(super) v4: Vec<Ipv4Addr>,
    /// Its IPv6 addresses.
    pub(super) v6: Vec<Ipv6Addr>,
    /// Port of HTTPS on all of these.
    pub(super) port: u16,
}

/// Answers for one state of the cluster.
#[derive(Debug)]
pub struct Routes {
    atlas: Arc<Atlas>,
    views: Vec<EdgeView>,
    edges: Vec<Edge>,
    /// Different choices, each once.
    choices: Vec<Choice>,
    /// For each place of the atlas, the number of its choice.
    by_place: Vec<u32>,
    v4: Runs,
    v6: Runs,
}

/// For each point of a lookup: the run of points with equal choices around it, as its first point
/// and the first one behind it.
#[derive(Debug)]
struct Runs(Vec<(u32, u32)>);

impl Runs {
    fn new<A: Address>(lookup: &Lookup<A>, by_place: &[u32]) -> Runs {
        let choice = |place: &u32| by_place[*place as usize];
        let mut runs = Vec::with_capacity(lookup.values().len());
        // A list has fewer points than there are places for them in memory of 32 bits: databases
        // are bounded.
        for run in lookup.values().chunk_by(|a, b| choice(a) == choice(b)) {
            let first = runs.len() as u32;
            runs.extend(std::iter::repeat_n((first, first + run.len() as u32), run.len()));
        }
        Runs(runs)
    }
}

/// What was found for a client, before it is put in order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found<'r> {
    routes: &'r Routes,
    choice: &'r Choice,
    place: u32,
    /// Decides the first place among equally near edges.
    client: u64,
    /// Decides which edges of many.
    spread: u64,
    /// The answer holds for every client that shares this many leading bits.
    pub(super) scope: u8,
    /// Which rule placed the client.
    pub(super) reason: Reason,
}

/// Numbers of edges in the order of an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    edges: [u32; TARGETS_MAX],
    len: usize,
}

impl Order {
    /// The numbers.
    pub(super) fn edges(&self) -> &[u32] {
        &self.edges[..self.len]
    }
}

impl Routes {
    /// Chooses edges for every place. Takes a while with large databases and many edges.
    pub fn new(atlas: Arc<Atlas>, views: &[EdgeView]) -> Routes {
        let edges: Vec<Edge> = views.iter().map(edge).collect();
        let hashes: Vec<(u64, u32)> = edges.iter().map(|edge| (edge.hash, edge.weight)).collect();
        let mut chooser = Chooser::new(&atlas, views, &hashes);
        let by_place: Vec<u32> = atlas.places.iter().map(|place| chooser.choose(place)).collect();
        let choices = chooser.choices();
        let v4 = Runs::new(&atlas.v4, &by_place);
        let v6 = Runs::new(&atlas.v6, &by_place);
        Routes { atlas, views: views.to_vec(), edges, choices, by_place, v4, v6 }
    }

    /// The atlas it was made from.
    pub fn atlas(&self) -> &Arc<Atlas> {
        &self.atlas
    }

    /// Whether there is any edge, healthy or not.
    pub(super) fn is_empty(&self) -> bool {
        self.edges.is_empty()
    }

    /// An edge by its number.
    pub(super) fn edge(&self, number: u32) -> &Edge {
        &self.edges[number as usize]
    }

    /// Bytes of memory that this state of the cluster takes beside the atlas.
    pub fn bytes(&self) -> usize {
        (self.v4.0.len() + self.v6.0.len()) * size_of::<(u32, u32)>()
            + self.by_place.len() * size_of::<u32>()
            + self.choices.iter().map(Choice::bytes).sum::<usize>()
    }

    /// Picks edges of `family` for a client: the nearest healthy ones, filled up to two where
    /// there are two. When less than half of the edges are healthy, health is not trusted and all
    /// edges are answered, healthy ones first.
    pub fn pick(&self, client: Client, family: Family) -> Picked {
        let found = self.find(client);
        let mut targets: Vec<Target> = Vec::new();
        for number in found.order(family).edges() {
            let edge = self.edge(*number);
            let addrs: Vec<IpAddr> = match family {
                Family::V4 => edge.v4.iter().copied().map(IpAddr::V4).collect(),
                Family::V6 => edge.v6.iter().copied().map(IpAddr::V6).collect(),
            };
            for addr in addrs {
                let target = Target { addr, port: edge.port };
                if targets.len() < TARGETS_MAX && !targets.contains(&target) {
                    targets.push(target);
                }
            }
        }
        Picked { targets, scope_prefix: found.scope }
    }

    /// Where a client is and what is chosen for it.
    pub(super) fn find(&self, client: Client) -> Found<'_> {
        match client {
            Client::Subnet(told) => {
                let (place, scope) = self.place(told.addr());
                self.found_for(told, place, scope)
            }
            Client::Resolver(addr) => {
                let addr = addr.to_canonical();
                let place = self.resolver(addr).unwrap_or_else(|| self.place(addr).0);
                let own = Subnet::of(addr, client_prefix(addr));
                let hash = subnet_hash(own);
                let choice = &self.choices[self.by_place[place as usize] as usize];
                let reason = self.atlas.places[place as usize].reason;
                // Its other clients get the same from its cache, whatever we say.
                Found { routes: self, choice, place, client: hash, spread: hash, scope: 0, reason }
            }
        }
    }

    fn found_for(&self, told: Subnet, place: u32, scope: u8) -> Found<'_> {
        let choice = &self.choices[self.by_place[place as usize] as usize];
        let own = told.widened(client_prefix(told.addr()));
        // A cache hands the answer to everyone in the scope: all of them must agree on it.
        let (scope, spread) = if choice.is_spread() {
            let spread = if told.addr().is_ipv4() { SPREAD_PREFIX_V4 } else { SPREAD_PREFIX_V6 };
            let scope = scope.max(spread);
            (scope, subnet_hash(told.widened(scope)))
        } else {
            (scope, 0)
        };
        Found {
            routes: self,
            choice,
            place,
            client: subnet_hash(own),
            spread,
            // A cache would not use more bits than it told.
            scope: scope.min(told.prefix()),
            reason: self.atlas.places[place as usize].reason,
        }
    }

    /// The place of an address, and how many bits of it decide the choice.
    fn place(&self, addr: IpAddr) -> (u32, u8) {
        fn within<A: Address>(lookup: &Lookup<A>, runs: &Runs, addr: A) -> (u32, u8) {
            let point = lookup.point(addr);
            let (first, behind) = runs.0[point];
            (lookup.value(point), lookup.scope(addr, first as usize, behind as usize))
        }
        match addr {
            IpAddr::V4(v4) => within(&self.atlas.v4, &self.v4, v4.to_bits()),
            IpAddr::V6(v6) => within(&self.atlas.v6, &self.v6, v6.to_bits()),
        }
    }

    /// What the map of resolvers says.
    fn resolver(&self, addr: IpAddr) -> Option<u32> {
        fn within<A: Address>(lookup: Option<&Lookup<A>>, addr: A) -> Option<u32> {
            let lookup = lookup?;
            let place = lookup.value(lookup.point(addr));
            (place != Atlas::NONE).then_some(place)
        }
        match addr {
            IpAddr::V4(v4) => within(self.atlas.resolvers_v4.as_ref(), v4.to_bits()),
            IpAddr::V6(v6) => within(self.atlas.resolvers_v6.as_ref(), v6.to_bits()),
        }
    }
}

impl Found<'_> {
    /// The edges of an answer, best first.
    pub(super) fn order(&self, family: Family) -> Order {
        let variant = self.choice.variant(family, self.spread);
        let mut order = Order { edges: [0; TARGETS_MAX], len: variant.edges.len() };
        order.edges[..order.len].copy_from_slice(&variant.edges);
        let mut bids = [0.0f64; TARGETS_MAX];
        let near = &mut order.edges[..variant.near];
        for (bid, number) in bids.iter_mut().zip(near.iter()) {
            let edge = self.routes.edge(*number);
            *bid = share(self.client, edge.hash, edge.weight);
        }
        // Insertion sort: there are a handful.
        for at in 1..near.len() {
            let mut back = at;
            while back > 0 && bids[back] > bids[back - 1] {
                bids.swap(back, back - 1);
                near.swap(back, back - 1);
                back -= 1;
            }
        }
        order
    }
}

fn edge(view: &EdgeView) -> Edge {
    let mut edge = Edge {
        hash: mix(fnv1a(view.name.bytes())),
        weight: view.weight,
        v4: Vec::new(),
        v6: Vec::new(),
        port: view.https_port,
    };
    for addr in &view.addrs {
        match addr {
            IpAddr::V4(v4) if !edge.v4.contains(v4) => edge.v4.push(*v4),
            IpAddr::V6(v6) if !edge.v6.contains(v6) => edge.v6.push(*v6),
            IpAddr::V4(_) | IpAddr::V6(_) => {}
        }
    }
    edge
}

fn client_prefix(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { CLIENT_PREFIX_V4 } else { CLIENT_PREFIX_V6 }
}

/// An edge's bid; the highest wins.
fn share(client: u64, edge: u64, weight: u32) -> f64 {
    let hash = mix(client ^ edge);
    // 53 bits make every value exact; the half keeps the draw inside (0, 1).
    let draw = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    f64::from(weight.max(1)) / -draw.ln()
}

fn subnet_hash(subnet: Subnet) -> u64 {
    let bits = match subnet.addr() {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    };
    // The upper half alone would do for IPv4, and for IPv6 up to the /64 that a client has.
    let (high, low) = ((bits >> 64) as u64, bits as u64);
    mix(mix(high ^ (u64::from(subnet.prefix()) << 32)).wrapping_add(low))
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

#[cfg(test)]
mod tests;
