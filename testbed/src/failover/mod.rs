//! Masters under faults: rounds from a seed in which the leader is killed, frozen, cut off alone or
//! together with a client, every master dies at once, all of them restart in turn, one is replaced, while clients
//! change names of the file system and move an alias by compare-and-swap, some of them sending
//! every request several times. After every round the history is judged: every answer must be
//! explained by one order of the operations that respects real time, what was acknowledged must be
//! in the publish log exactly once, and a request that was sent again must have been answered alike.
//!
//! Everything goes through proxies ([`crate::proxy`]), masters among themselves too, so no rights are
//! needed. The masters' clocks are those of the machine: clocks that jump need a library that not
//! every machine has.

mod clients;
mod history;
mod plan;
mod run;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use run::{Report, carry_out, run};

/// What goes wrong in a round.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Hurt {
    /// Nothing
    Nothing,
    /// SIGKILL of the leader, which is started again
    KillLeader,
    /// SIGSTOP of the leader for five seconds: it goes on where it was
    FreezeLeader,
    /// The leader reaches nobody and nobody reaches it
    CutLeader,
    /// The leader reaches nobody but one client, which reaches nobody else
    CutWithClient,
    /// SIGKILL of a follower, which is started again
    KillFollower,
    /// SIGKILL of every master at the same time
    KillAll,
    /// All masters are stopped and started again, one after the other, the leader last
    RestartInTurn,
    /// A follower loses its disk, is refused with an empty one, and another takes its place. The
    /// new one does not go through proxies: in a plan of all kinds, it comes last
    ReplaceFollower,
}

impl Hurt {
    /// Every one.
    pub const ALL: [Self; 9] = [
        Self::Nothing,
        Self::KillLeader,
        Self::FreezeLeader,
        Self::CutLeader,
        Self::CutWithClient,
        Self::KillFollower,
        Self::KillAll,
        Self::RestartInTurn,
        Self::ReplaceFollower,
    ];

    /// Its word on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::KillLeader => "kill-leader",
            Self::FreezeLeader => "freeze-leader",
            Self::CutLeader => "cut-leader",
            Self::CutWithClient => "cut-with-client",
            Self::KillFollower => "kill-follower",
            Self::KillAll => "kill-all",
            Self::RestartInTurn => "restart-in-turn",
            Self::ReplaceFollower => "replace-follower",
        }
    }

    /// Whether another leader takes over while it lasts: then it is measured how soon.
    pub fn unseats(self) -> bool {
        matches!(
            self,
            Self::KillLeader | Self::FreezeLeader | Self::CutLeader | Self::CutWithClient
        )
    }
}

/// One round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// What goes wrong.
    pub hurt: Hurt,
    /// When, in milliseconds from the first operation.
    pub after_ms: u64,
    /// How long it lasts, in milliseconds.
    pub hold_ms: u64,
    /// Which master, where it may be one of several.
    pub which: u64,
    /// Where the clients' operations come from.
    pub seed: u64,
}

/// A run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Where it comes from.
    pub seed: u64,
    /// How many rounds.
    pub rounds: usize,
    /// Masters: three or five.
    pub masters: usize,
    /// Only faults of these kinds; all when empty.
    pub only: Vec<Hurt>,
}

impl fmt::Display for Plan {
    /// The command that runs it again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, rounds, masters, only } = self;
        write!(f, "atoll-bench failover --seed {seed} --rounds {rounds} --masters {masters}")?;
        only.iter().try_for_each(|hurt| write!(f, " --only {}", hurt.as_str()))
    }
}

/// The time of a run, in microseconds since it began.
fn micros(since: std::time::Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// The value below which so many of a hundred are.
pub fn percentile(times: &[Duration], percent: usize) -> Option<Duration> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len() * percent).div_ceil(100).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(at).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let times: Vec<Duration> = (1..=10).rev().map(Duration::from_secs).collect();
        assert_eq!(percentile(&times, 50), Some(Duration::from_secs(5)));
        assert_eq!(percentile(&times, 99), Some(Duration::from_secs(10)));
        assert_eq!(percentile(&times, 0), Some(Duration::from_secs(1)));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn a_plan_is_told_as_a_command() {
        let only = vec![Hurt::KillLeader, Hurt::CutWithClient];
        let told = Plan { seed: 9, rounds: 20, masters: 3, only }.to_string();
        assert_eq!(
            told,
            "atoll-bench failover --seed 9 --rounds 20 --masters 3 --only kill-leader --only \
             cut-with-client"
        );
    }
}
