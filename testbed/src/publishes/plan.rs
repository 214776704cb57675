//! From a seed to rounds. Pure.

use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

use super::{Act, Hurt, Plan, Round, Strike};
use crate::ready::Node;
use crate::seed;

/// Longer than a lease, in milliseconds.
const PAST_THE_LEASE_MS: std::ops::Range<u64> = 10_500..13_000;
/// Makes the seed of what is odd about machines from that of the rest.
const ODD: u64 = 0x6f64_6421;

impl Plan {
    /// Its rounds: the same for the same plan.
    pub fn rounds(&self) -> Vec<Round> {
        let (mut rng, mut odd) = (seed::rng(self.seed), seed::rng(self.seed ^ ODD));
        let round = |_| {
            let mut round = self.round(&mut rng);
            if !self.calm {
                self.odd(&mut odd, &mut round);
            }
            round
        };
        (0..self.rounds).map(round).collect()
    }

    fn round(&self, rng: &mut StdRng) -> Round {
        let strikes = if self.calm { Vec::new() } else { self.strikes(rng) };
        let count = if self.calm { 6 } else { rng.random_range(2..5) };
        let acts = (0..count).map(|_| (rng.random_range(0..700), act(rng))).collect();
        Round { strikes, odd: Vec::new(), acts }
    }

    fn strikes(&self, rng: &mut StdRng) -> Vec<Strike> {
        let mut edges: Vec<u64> = (1..=self.edges as u64).collect();
        edges.shuffle(rng);
        // One edge stays well, so that there always is one that answers.
        edges.truncate(self.edges.saturating_sub(1).max(1));
        // Rounds past a lease take as long as one; not all of them are.
        let long = rng.random_bool(0.4);
        let hurt = rng.random_range(1..=edges.len());
        let mut strikes: Vec<Strike> =
            edges.iter().take(hurt).map(|edge| strike(rng, Node::edge(*edge), long)).collect();
        if rng.random_bool(if self.masters > 1 { 0.3 } else { 0.15 }) {
            let node = Node::master(rng.random_range(1..=self.masters as u64));
            let (after_ms, hold_ms) = (rng.random_range(0..1500), rng.random_range(100..3000));
            strikes.push(Strike { node, hurt: Hurt::Kill, after_ms, hold_ms });
        }
        for shield in 1..=self.shields as u64 {
            // Publishes wait for shields too, and in most rounds it is edges that matter.
            if rng.random_bool(0.35) {
                let long = rng.random_bool(0.2);
                strikes.push(strike(rng, Node::shield(shield), long));
            }
        }
        strikes
    }
}

fn strike(rng: &mut StdRng, node: Node, long: bool) -> Strike {
    let hurt = match rng.random_range(0..10) {
        0..=2 => Hurt::Freeze,
        3..=5 => Hurt::Kill,
        6 => Hurt::Cut,
        7 => Hurt::CutBack,
        8 => Hurt::CutThere,
        _ => Hurt::Poor,
    };
    let after_ms = rng.random_range(0..1500);
    let hold_ms = match hurt {
        // What matters is that it comes back from its disk, at any moment of a publish.
        Hurt::Kill => rng.random_range(50..2500),
        _ if long => rng.random_range(PAST_THE_LEASE_MS),
        _ => rng.random_range(300..3500),
    };
    Strike { node, hurt, after_ms, hold_ms }
}

fn act(rng: &mut StdRng) -> Act {
    match rng.random_range(0..10) {
        0..=2 => Act::Deploy,
        3..=5 => Act::Promote(rng.random_range(1..6)),
        6 => Act::Rollback,
        7 | 8 => Act::Invalidate,
        _ => Act::Unwaited(rng.random_range(1..6)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::NodeRole;
    use crate::faults::Fault;
    use crate::publishes::PPM_MAX;
    use crate::publishes::Policy;

    fn plan(seed: u64, calm: bool) -> Plan {
        Plan { seed, rounds: 200, masters: 3, edges: 4, shields: 2, policy: Policy::Strict, calm }
    }

    #[test]
    fn the_same_seed_makes_the_same_rounds() {
        assert_eq!(plan(1, false).rounds(), plan(1, false).rounds());
        assert_ne!(plan(1, false).rounds(), plan(2, false).rounds());
        let calm = |round: &Round| round.strikes.is_empty() && round.odd.is_empty();
        assert!(plan(1, true).rounds().iter().all(calm));
    }

    #[test]
    fn one_edge_stays_well_and_nobody_is_struck_twice() {
        let rounds = plan(3, false).rounds();
        for round in &rounds {
            let nodes: BTreeSet<Node> = round.strikes.iter().map(|strike| strike.node).collect();
            assert_eq!(nodes.len(), round.strikes.len(), "{round:?}");
            let edges = nodes.iter().filter(|node| node.role == NodeRole::Edge).count();
            assert!((1..4).contains(&edges), "{round:?}");
            assert!((2..5).contains(&round.acts.len()));
        }
        let strikes = || rounds.iter().flat_map(|round| &round.strikes);
        for hurt in [Hurt::Freeze, Hurt::Suspend] {
            let long = |strike: &&Strike| strike.hurt == hurt && strike.hold_ms > 10_000;
            assert!(strikes().filter(long).count() > 10, "{hurt:?}");
        }
        let sleeps =
            |strike: &&Strike| strike.hurt == Hurt::Suspend && strike.node.role == NodeRole::Master;
        assert!(strikes().any(|strike| sleeps(&strike)));
        for hurt in [Hurt::Freeze, Hurt::Kill, Hurt::Cut, Hurt::CutBack] {
            let meets =
                |strike: &&Strike| strike.hurt == hurt && strike.node.role == NodeRole::Shield;
            assert!(strikes().any(|strike| meets(&strike)), "no shield meets {hurt:?}");
        }
    }

    #[test]
    fn machines_are_odd_within_what_leases_assume() {
        let rounds = plan(4, false).rounds();
        let odd = || rounds.iter().flat_map(|round| &round.odd).map(|(_, fault)| fault);
        let rates: BTreeSet<i64> = odd()
            .filter_map(|fault| match fault {
                Fault::ClockRate { ppm, .. } => Some(*ppm),
                _ => None,
            })
            .collect();
        assert_eq!((rates.first(), rates.last()), (Some(&-PPM_MAX), Some(&PPM_MAX)));
        for fault in odd() {
            if let Fault::SkipBootTime { node, .. } = fault {
                assert_ne!(node.role, NodeRole::Master, "it would run too fast");
            }
        }
        for role in [NodeRole::Master, NodeRole::Edge, NodeRole::Chunkserver] {
            let slow =
                |fault: &Fault| matches!(fault, Fault::SlowSyncs { node, .. } if node.role == role);
            assert!(odd().any(slow), "no {role:?} has a slow disk");
        }
        let back = |fault: &Fault| matches!(fault, Fault::WallClock { ahead_secs, .. } if *ahead_secs < -3600);
        assert!(odd().any(back) && odd().any(|fault| matches!(fault, Fault::SkipBootTime { .. })));
    }

    #[test]
    fn a_plan_is_told_as_a_command() {
        let told = plan(9, true).to_string();
        assert!(told.contains("--seed 9 --rounds 200") && told.ends_with("--no-faults"), "{told}");
    }
}
