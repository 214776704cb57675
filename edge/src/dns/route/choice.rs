//! The choice of edges for one place.
//!
//! [`super::Routes::new`] asks for every place of the atlas. Places with equal choices share one.

use std::collections::HashMap;

use super::{EdgeView, Family, TARGETS_MAX, mix, share};
use crate::dns::atlas::{Atlas, Place};
use crate::dns::geo::{Direction, LatLon};

/// Most edges of an answer, but for the panic rule.
pub(super) const EDGES_MAX: usize = 8;
/// Edges an answer has at least, where that many are healthy.
pub(super) const EDGES_MIN: usize = 2;
/// Different selections where a place has more edges than an answer holds.
pub(super) const VARIANTS: usize = 16;
/// Farther than anything on earth: for edges that nobody knows the place of.
pub(super) const FAR_KM: f32 = 30_000.0;

/// Whether any edge that takes visitors is down: answers should then be kept for less long.
pub fn something_is_down(edges: &[EdgeView]) -> bool {
    edges.iter().any(|edge| edge.weight > 0 && !edge.ready)
}

/// Edges for a place, for each family.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Choice {
    v4: Vec<Variant>,
    v6: Vec<Variant>,
}

/// Edges of one answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    /// Numbers of edges, the equally near ones first.
    pub(super) edges: Vec<u32>,
    /// How many are equally near: the client's subnet decides their order.
    pub(super) near: usize,
}

impl Choice {
    /// The answer for a client.
    pub(super) fn variant(&self, family: Family, spread: u64) -> &Variant {
        let variants = match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        // Never empty: `Chooser` makes one at least.
        &variants[spread as usize % variants.len()]
    }

    /// Whether different blocks get different edges.
    pub(super) fn is_spread(&self) -> bool {
        self.v4.len() > 1 || self.v6.len() > 1
    }

    /// Bytes of memory it takes.
    pub(super) fn bytes(&self) -> usize {
        let variants = self.v4.iter().chain(&self.v6);
        variants.map(|variant| size_of::<Variant>() + variant.edges.len() * 4).sum()
    }
}

/// How far an edge is from a place: first by its position in the configured order, then in
/// kilometres.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rank {
    /// Position in the configured order; `usize::MAX` when it is not in it.
    pub(super) tier: usize,
    /// Kilometres; 0 when the order alone decides, [`FAR_KM`] when nobody knows.
    pub(super) km: f32,
}

impl Rank {
    fn order(self, other: Rank) -> std::cmp::Ordering {
        self.tier.cmp(&other.tier).then_with(|| self.km.total_cmp(&other.km))
    }
}

/// Edges at one place and of one region: as far from everywhere as each other.
struct Stand<'v> {
    region: &'v str,
    at: Option<Direction>,
    edges: Vec<u32>,
}

/// Chooses for one place after the other.
pub(super) struct Chooser<'v> {
    atlas: &'v Atlas,
    views: &'v [EdgeView],
    /// Hash and weight of each edge.
    hashes: &'v [(u64, u32)],
    stands: [Vec<Stand<'v>>; 2],
    /// Less than half are healthy.
    panic: bool,
    known: HashMap<Choice, u32>,
    choices: Vec<Choice>,
}

/// Edges that take visitors: those with a weight, unless only others are alive.
pub(super) fn takes_visitors(views: &[EdgeView]) -> impl Fn(&EdgeView) -> bool + use<> {
    let has = |wanted: fn(&EdgeView) -> bool| views.iter().any(wanted);
    let weighted = has(|edge| edge.weight > 0 && edge.ready)
        || (has(|edge| edge.weight > 0) && !has(|edge| edge.ready));
    move |edge| !weighted || edge.weight > 0
}

/// Whether health is not trusted: less than half of the edges that take visitors are healthy.
pub(super) fn is_panic(views: &[EdgeView]) -> bool {
    let takes = takes_visitors(views);
    let pool = views.iter().filter(|edge| takes(edge));
    let (ready, all) =
        pool.fold((0, 0), |(ready, all), edge| (ready + usize::from(edge.ready), all + 1));
    ready * 2 < all
}

impl<'v> Chooser<'v> {
    pub(super) fn new(
        atlas: &'v Atlas,
        views: &'v [EdgeView],
        hashes: &'v [(u64, u32)],
    ) -> Chooser<'v> {
        let panic = is_panic(views);
        let takes = takes_visitors(views);
        let stands = |v4: bool| {
            let mut stands: Vec<Stand<'v>> = Vec::new();
            let mut by_place = HashMap::new();
            for (number, view) in (0u32..).zip(views) {
                let has = view.addrs.iter().any(|addr| addr.is_ipv4() == v4);
                if !has || !takes(view) || !(panic || view.ready) {
                    continue;
                }
                let at = atlas.edge_at(&view.name, &view.region);
                let stand = *by_place.entry((at, view.region.as_str())).or_insert_with(|| {
                    let at = at.map(LatLon::direction);
                    stands.push(Stand { region: &view.region, at, edges: Vec::new() });
                    stands.len() - 1
                });
                stands[stand].edges.push(number);
            }
            stands
        };
        let stands = [stands(true), stands(false)];
        Chooser { atlas, views, hashes, stands, panic, known: HashMap::new(), choices: Vec::new() }
    }

    /// The number of the choice for a place.
    pub(super) fn choose(&mut self, place: &Place) -> u32 {
        let [v4, v6] = &self.stands;
        let choice = Choice { v4: self.variants(place, v4), v6: self.variants(place, v6) };
        if let Some(number) = self.known.get(&choice) {
            return *number;
        }
        // Fewer choices than places, and those are numbered with as many bits.
        let number = self.choices.len() as u32;
        self.choices.push(choice.clone());
        self.known.insert(choice, number);
        number
    }

    /// All choices, in the order of their numbers.
    pub(super) fn choices(self) -> Vec<Choice> {
        self.choices
    }

    fn variants(&self, place: &Place, stands: &[Stand<'v>]) -> Vec<Variant> {
        let rank = ranker(self.atlas, place);
        let mut ranked: Vec<(Rank, &Stand<'v>)> =
            stands.iter().map(|stand| (rank(stand.region, stand.at), stand)).collect();
        let Some(nearest) = ranked.iter().map(|(rank, _)| *rank).min_by(|a, b| a.order(*b)) else {
            return vec![Variant::default()];
        };
        if self.panic {
            return vec![self.everyone(&mut ranked, place, nearest)];
        }
        let near = |rank: Rank| is_near(rank, nearest, place);
        let mut first: Vec<u32> = ranked
            .iter()
            .filter(|(rank, _)| near(*rank))
            .flat_map(|(_, stand)| stand.edges.iter().copied())
            .collect();
        first.sort_unstable();
        if first.len() > EDGES_MAX {
            return (0..VARIANTS).map(|variant| self.some_of(&first, variant)).collect();
        }
        let near_edges = first.len();
        if near_edges < EDGES_MIN {
            ranked.retain(|(rank, _)| !near(*rank));
            ranked.sort_by(|a, b| a.0.order(b.0));
            let mut rest = ranked.as_slice();
            while first.len() < EDGES_MIN
                && let Some(((rank, _), _)) = rest.split_first()
            {
                let same = rest.partition_point(|(other, _)| other == rank);
                let mut next: Vec<u32> =
                    rest[..same].iter().flat_map(|(_, s)| s.edges.iter().copied()).collect();
                self.sort_by_share(&mut next, 0);
                first.extend(next.into_iter().take(EDGES_MIN - first.len()));
                rest = &rest[same..];
            }
        }
        vec![Variant { edges: first, near: near_edges }]
    }

    /// A selection out of more edges than an answer holds.
    fn some_of(&self, near: &[u32], variant: usize) -> Variant {
        let mut edges = near.to_vec();
        self.sort_by_share(&mut edges, mix(variant as u64 + 1));
        edges.truncate(EDGES_MAX);
        edges.sort_unstable();
        Variant { near: edges.len(), edges }
    }

    /// All edges, healthy ones first, each part from near to far.
    fn everyone(&self, ranked: &mut [(Rank, &Stand<'v>)], place: &Place, nearest: Rank) -> Variant {
        ranked.sort_by(|a, b| a.0.order(b.0));
        let is_ready = |number: &u32| self.views[*number as usize].ready;
        let edges = |ready: bool| {
            ranked.iter().flat_map(move |(rank, stand)| {
                let edges = stand.edges.iter().copied();
                edges.filter(move |n| is_ready(n) == ready).map(move |n| (*rank, n))
            })
        };
        let near = edges(true).take_while(|(rank, _)| is_near(*rank, nearest, place)).count();
        let all: Vec<u32> = edges(true).chain(edges(false)).map(|(_, number)| number).collect();
        let near = if near == 0 && !all.iter().any(is_ready) {
            // None is healthy: every one is as good as any.
            edges(false).take_while(|(rank, _)| is_near(*rank, nearest, place)).count()
        } else {
            near
        };
        let edges: Vec<u32> = all.into_iter().take(TARGETS_MAX).collect();
        Variant { near: near.min(edges.len()), edges }
    }

    fn sort_by_share(&self, edges: &mut [u32], seed: u64) {
        let bid = |number: &u32| {
            let (hash, weight) = self.hashes[*number as usize];
            share(seed, hash, weight)
        };
        edges.sort_by(|a, b| bid(b).total_cmp(&bid(a)).then_with(|| a.cmp(b)));
    }
}

/// How far edges are from a place.
pub(super) fn ranker<'p>(
    atlas: &'p Atlas,
    place: &'p Place,
) -> impl Fn(&str, Option<Direction>) -> Rank + 'p {
    let order: Vec<&str> = atlas.order(place).map(String::as_str).collect();
    let from = place.at.map(LatLon::direction);
    move |region, at| {
        if let Some(tier) = order.iter().position(|known| *known == region) {
            return Rank { tier, km: 0.0 };
        }
        let km = match (from, at) {
            (Some(from), Some(at)) => from.km_to(at),
            (None, _) => 0.0,
            (Some(_), None) => FAR_KM,
        };
        Rank { tier: usize::MAX, km }
    }
}

/// Whether an edge is as near as the nearest.
pub(super) fn is_near(rank: Rank, nearest: Rank, place: &Place) -> bool {
    rank.tier == nearest.tier
        && (rank.km <= nearest.km || (rank.km < FAR_KM && rank.km <= nearest.km + place.slack_km()))
}
