//! Why a client is answered what it is answered.

use std::net::IpAddr;

use super::choice::{self, FAR_KM, Rank};
use super::{Client, EdgeView, Family, Routes};
use crate::dns::geo::LatLon;

/// Everything that led to an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// Label of the rule that placed the client.
    pub reason: &'static str,
    /// The place, in words.
    pub place: String,
    /// Its latitude and longitude in degrees, if they are known.
    pub at: Option<LatLon>,
    /// The answer holds for every client that shares this many leading bits; 0 for all clients.
    pub scope_prefix: u8,
    /// Edges that are farther than the nearest by less than this are equally near.
    pub slack_km: f32,
    /// Less than half of the edges are healthy, so that health is not trusted.
    pub panic: bool,
    /// Every edge, those of the answer first.
    pub candidates: Vec<Candidate>,
}

/// One edge, and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Name of the node.
    pub name: String,
    /// Its region.
    pub region: String,
    /// Its addresses.
    pub addrs: Vec<IpAddr>,
    /// Kilometres from the client's place; nothing if one of the two is not known.
    pub km: Option<f32>,
    /// Position of its region in the configured order, from 0; nothing if it is not in it.
    pub tier: Option<usize>,
    /// Whether it serves.
    pub ready: bool,
    /// Its share among equally near edges.
    pub weight: u32,
    /// What became of it.
    pub verdict: Verdict,
}

/// Why an edge is in an answer or is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nearest, or equally near.
    Nearest,
    /// Farther, so that the answer has two edges.
    SecondChoice,
    /// In the answer because health is not trusted.
    Panic,
    /// It holds no lease or does not report ready.
    NotReady,
    /// Its weight is 0, or it is draining.
    NoVisitors,
    /// It has no address of any family.
    NoAddress,
    /// Others are nearer.
    Farther,
    /// As near, but an answer holds only so many, and this block got others.
    LeftOut,
}

impl Verdict {
    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            Verdict::Nearest => "nearest",
            Verdict::SecondChoice => "second choice: an answer has two edges where there are two",
            Verdict::Panic => "less than half of the edges are healthy: all are answered",
            Verdict::NotReady => "not ready: it holds no lease or does not serve",
            Verdict::NoVisitors => "takes no visitors: draining, or its weight is 0",
            Verdict::NoAddress => "it has no public address",
            Verdict::Farther => "others are nearer",
            Verdict::LeftOut => "as near, but others were drawn for this block",
        }
    }

    /// Whether it is in the answer.
    pub fn is_taken(self) -> bool {
        matches!(self, Verdict::Nearest | Verdict::SecondChoice | Verdict::Panic)
    }
}

impl Routes {
    /// Why a client is answered what it is answered.
    pub fn explain(&self, client: Client) -> Explanation {
        let found = self.find(client);
        let place = &self.atlas.places[found.place as usize];
        let rank = choice::ranker(&self.atlas, place);
        let panic = choice::is_panic(&self.views);
        let takes = choice::takes_visitors(&self.views);
        let mut taken: Vec<(u32, bool)> = Vec::new();
        for family in [Family::V4, Family::V6] {
            let near = found.choice.variant(family, found.spread).near;
            for (at, number) in found.order(family).edges().iter().enumerate() {
                if !taken.iter().any(|(known, _)| known == number) {
                    taken.push((*number, at < near));
                }
            }
        }
        let ranked = |view: &EdgeView| {
            let at = self.atlas.edge_at(&view.name, &view.region);
            rank(&view.region, at.map(LatLon::direction))
        };
        let nearest = (self.views.iter())
            .filter(|view| view.ready && takes(view) && !view.addrs.is_empty())
            .map(ranked)
            .min_by(|a, b| a.tier.cmp(&b.tier).then_with(|| a.km.total_cmp(&b.km)));
        let verdict = |number: u32, view: &EdgeView, rank: Rank| match taken
            .iter()
            .find(|(known, _)| *known == number)
        {
            Some(_) if panic => Verdict::Panic,
            Some((_, true)) => Verdict::Nearest,
            Some((_, false)) => Verdict::SecondChoice,
            None if !takes(view) => Verdict::NoVisitors,
            None if !view.ready => Verdict::NotReady,
            None if view.addrs.is_empty() => Verdict::NoAddress,
            None if nearest.is_some_and(|near| choice::is_near(rank, near, place)) => {
                Verdict::LeftOut
            }
            None => Verdict::Farther,
        };
        let candidate = |(number, view): (u32, &EdgeView)| {
            let rank = ranked(view);
            let at = self.atlas.edge_at(&view.name, &view.region).map(LatLon::direction);
            let km = place.at.zip(at).map(|(from, at)| from.direction().km_to(at));
            let candidate = Candidate {
                name: view.name.clone(),
                region: view.region.clone(),
                addrs: view.addrs.clone(),
                km: km.filter(|km| *km < FAR_KM),
                tier: (rank.tier != usize::MAX).then_some(rank.tier),
                ready: view.ready,
                weight: view.weight,
                verdict: verdict(number, view, rank),
            };
            let position = taken.iter().position(|(known, _)| *known == number);
            ((position.unwrap_or(usize::MAX), rank.tier, rank.km), candidate)
        };
        let mut candidates: Vec<_> = (0u32..).zip(&self.views).map(candidate).collect();
        candidates.sort_by(|((p, t, km), a), ((q, u, miles), b)| {
            (p, t).cmp(&(q, u)).then_with(|| km.total_cmp(miles)).then_with(|| a.name.cmp(&b.name))
        });
        Explanation {
            reason: found.reason.label(),
            place: place.name.clone(),
            at: place.at,
            scope_prefix: found.scope,
            slack_km: place.slack_km(),
            panic,
            candidates: candidates.into_iter().map(|(_, candidate)| candidate).collect(),
        }
    }
}
