//! From a seed to rounds. Pure.

use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use super::{Hurt, Plan, Round};
use crate::seed;

/// As long as the issue of a frozen leader is promised for, in milliseconds.
const FREEZE_MS: u64 = 5000;

impl Plan {
    /// Its rounds: the same for the same plan.
    pub fn rounds(&self) -> Vec<Round> {
        let mut rng = seed::rng(self.seed);
        (1..=self.rounds).map(|number| self.round(&mut rng, number == self.rounds)).collect()
    }

    fn round(&self, rng: &mut StdRng, last: bool) -> Round {
        let before_last = |hurt: &&Hurt| **hurt != Hurt::ReplaceFollower;
        let all: Vec<Hurt> = Hurt::ALL.iter().filter(before_last).copied().collect();
        let kinds = if self.only.is_empty() { &all } else { &self.only };
        let drawn = *kinds.choose(rng).unwrap_or(&Hurt::Nothing);
        let hurt = if last && self.only.is_empty() { Hurt::ReplaceFollower } else { drawn };
        let hold_ms = match hurt {
            Hurt::FreezeLeader => FREEZE_MS,
            Hurt::Nothing => 1500,
            // Also shorter than an election: then the old leader may go on.
            Hurt::KillAll | Hurt::RestartInTurn => rng.random_range(0..500),
            Hurt::KillFollower | Hurt::ReplaceFollower => rng.random_range(100..2000),
            Hurt::KillLeader | Hurt::CutLeader | Hurt::CutWithClient => rng.random_range(300..5000),
        };
        Round {
            hurt,
            after_ms: rng.random_range(200..900),
            hold_ms,
            which: rng.random(),
            seed: rng.random(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn plan(seed: u64, only: Vec<Hurt>) -> Plan {
        Plan { seed, rounds: 200, masters: 3, only }
    }

    #[test]
    fn the_same_seed_makes_the_same_rounds() {
        assert_eq!(plan(1, Vec::new()).rounds(), plan(1, Vec::new()).rounds());
        assert_ne!(plan(1, Vec::new()).rounds(), plan(2, Vec::new()).rounds());
    }

    #[test]
    fn every_kind_comes_and_only_those_asked_for() {
        let kinds = |plan: Plan| -> BTreeSet<Hurt> {
            plan.rounds().iter().map(|round| round.hurt).collect()
        };
        assert_eq!(kinds(plan(3, Vec::new())), Hurt::ALL.into_iter().collect());
        let only = vec![Hurt::CutLeader, Hurt::KillAll];
        assert_eq!(kinds(plan(3, only.clone())), only.into_iter().collect());
    }
}
