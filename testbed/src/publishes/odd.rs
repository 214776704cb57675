//! From a seed to machines that are odd within what leases assume (decision 0010). Pure.
//!
//! What is assumed: the rates of two clocks differ by at most the drift that leases allow, and
//! `CLOCK_BOOTTIME` counts the time that a machine sleeps. What is not: anything of the wall clock,
//! and that `CLOCK_MONOTONIC` goes on. A clock of an edge that skips time ends its lease early,
//! which costs requests and breaks nothing; one of a master that does so while its machine is
//! awake runs too fast, so masters only ever sleep.

use std::ops::RangeInclusive;

use atoll_proto::limits;
use rand::Rng as _;
use rand::rngs::StdRng;

use super::{Hurt, Plan, Round, Strike};
use crate::faults::Fault;
use crate::ready::Node;

/// Chunkservers of a cluster.
const CHUNKSERVERS: u64 = 3;
/// Faster or slower than the right time, so that two clocks never differ by more than is allowed:
/// `(1 + r) / (1 - r)` is a little more than `1 + 2 r`.
pub const PPM_MAX: i64 = limits::CLOCK_DRIFT_PPM as i64 / 2 - 100;
const _: () = {
    let (million, allowed) = (1_000_000, limits::CLOCK_DRIFT_PPM as i64);
    assert!((million + PPM_MAX) * million <= (million - PPM_MAX) * (million + allowed));
};
/// Two nodes' wall clocks differ by less than the life of a receipt, without which no chunk can
/// be stored.
const WALL_SECS_MAX: i64 = limits::RECEIPT_LIFETIME.as_secs() as i64 / 2 - 600;
const SKIPS_SECS: RangeInclusive<u64> = 1..=60;
const SYNC_MS: RangeInclusive<u64> = 50..=500;
/// Of a master that sleeps, in milliseconds: shorter and longer than a lease.
const SLEEP_MS: std::ops::Range<u64> = 500..13_000;

impl Plan {
    /// Adds to a round what is odd about machines meanwhile.
    pub(super) fn odd(&self, rng: &mut StdRng, round: &mut Round) {
        for strike in &mut round.strikes {
            if strike.hurt == Hurt::Freeze && rng.random_bool(0.5) {
                strike.hurt = Hurt::Suspend;
            }
        }
        let masters = || (1..=self.masters as u64).map(Node::master);
        let edges = || (1..=self.edges as u64).map(Node::edge);
        let shields = || (1..=self.shields as u64).map(Node::shield);
        let mut faults = Vec::new();
        for node in masters().chain(edges()).chain(shields()) {
            faults.push(Fault::ClockRate { node, ppm: rate(rng) });
            if rng.random_bool(0.25) {
                let ahead_secs = rng.random_range(-WALL_SECS_MAX..=WALL_SECS_MAX);
                faults.push(Fault::WallClock { node, ahead_secs });
            }
        }
        for node in edges().chain(shields()) {
            if rng.random_bool(0.2) {
                faults.push(Fault::SkipBootTime { node, secs: rng.random_range(SKIPS_SECS) });
            }
        }
        let chunkservers = (1..=CHUNKSERVERS).map(Node::chunkserver);
        for (nodes, often) in [
            (masters().collect::<Vec<_>>(), 0.25),
            (edges().collect(), 0.5),
            (chunkservers.collect(), 0.25),
        ] {
            if rng.random_bool(often) {
                let node = nodes[rng.random_range(0..nodes.len())];
                faults.push(Fault::SlowSyncs { node, ms: rng.random_range(SYNC_MS) });
            }
        }
        round.odd = faults.into_iter().map(|fault| (rng.random_range(0..2500), fault)).collect();
        let all_run = masters().all(|node| round.strikes.iter().all(|strike| strike.node != node));
        if all_run && rng.random_bool(0.1) {
            let node = Node::master(rng.random_range(1..=self.masters as u64));
            let (after_ms, hold_ms) = (rng.random_range(0..1500), rng.random_range(SLEEP_MS));
            round.strikes.push(Strike { node, hurt: Hurt::Suspend, after_ms, hold_ms });
        }
    }
}

/// Mostly the extremes.
fn rate(rng: &mut StdRng) -> i64 {
    match rng.random_range(0..5) {
        0 | 1 => PPM_MAX,
        2 | 3 => -PPM_MAX,
        _ => rng.random_range(-PPM_MAX..=PPM_MAX),
    }
}
