//! Publishes under faults: rounds from a seed in which edges freeze past their lease, die, are cut
//! off from the masters or hear from them late, the shields that relay the log to them suffer the
//! same, and masters die, while a crowd asks every edge and deploys, promotes, rolls back and
//! invalidates go on. Meanwhile clocks run at different rates and jump, machines sleep, and syncs
//! take long ([`crate::shim`]). After every round
//! [`never_stale_after_ack`](crate::checks::never_stale_after_ack) judges what the crowd saw.
//!
//! All of it is within what decision 0010 assumes, so that nothing may be found. That clocks which
//! are worse are found out is a test of its own (`testbed/tests/e2e/never_stale.rs`).

mod odd;
mod plan;
mod run;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use odd::PPM_MAX;
pub use run::{Report, carry_out, run};

use crate::faults::Fault;
use crate::ready::Node;

/// What an edge may do past its lease.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Refuse
    Strict,
    /// Serve on for five seconds, for which publishes wait too
    Bounded,
    /// Serve on; publishes then say that they are not confirmed
    Available,
}

impl Policy {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Strict, Self::Bounded, Self::Available];

    /// As `--policy` of `atoll site` has it.
    pub fn as_argument(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Bounded => "bounded=5",
            Self::Available => "available",
        }
    }

    /// Its word on the command line of the bench.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Bounded => "bounded",
            Self::Available => "available",
        }
    }
}

/// Something that goes wrong for a while, beside others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hurt {
    /// SIGSTOP, then SIGCONT: all its connections stay, and what arrived meanwhile is answered.
    Freeze,
    /// The same, and its machine sleeps: `CLOCK_BOOTTIME` alone goes on.
    Suspend,
    /// SIGKILL; started again from its disk.
    Kill,
    /// Nothing passes between the edge or shield and the masters.
    Cut,
    /// Nothing of the masters reaches it.
    CutBack,
    /// Nothing of it reaches the masters.
    CutThere,
    /// Everything between it and the masters is late, and some of it lost or doubled.
    Poor,
}

/// A fault of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strike {
    /// Whom it meets.
    pub node: Node,
    /// What it is.
    pub hurt: Hurt,
    /// When it begins, in milliseconds from the start of the round.
    pub after_ms: u64,
    /// How long it lasts, in milliseconds.
    pub hold_ms: u64,
}

/// A publish of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// A deploy nobody has seen.
    Deploy,
    /// The alias moves to one of the deploys there are, counted from the latest.
    Promote(usize),
    /// Back to the deploy before.
    Rollback,
    /// Everything is invalidated.
    Invalidate,
    /// A promote that returns without waiting: nothing is promised.
    Unwaited(usize),
}

/// One round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// What goes wrong, all at the same time.
    pub strikes: Vec<Strike>,
    /// What becomes odd about machines, after so many milliseconds from the start of the round:
    /// clocks stay so, syncs are well again at its end.
    #[serde(default)]
    pub odd: Vec<(u64, Fault)>,
    /// What is published meanwhile: after a pause in milliseconds, one after the other.
    pub acts: Vec<(u64, Act)>,
}

/// A run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Where it comes from.
    pub seed: u64,
    /// How many rounds.
    pub rounds: usize,
    /// Masters: one or three.
    pub masters: usize,
    /// Edges.
    pub edges: usize,
    /// Shields, through which the edges of their regions follow the publish log.
    pub shields: usize,
    /// Of the site.
    pub policy: Policy,
    /// Without faults; then no request may fail either.
    pub calm: bool,
}

impl fmt::Display for Plan {
    /// The command that runs it again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, rounds, masters, edges, shields, policy, calm } = self;
        write!(
            f,
            "atoll-bench publishes --seed {seed} --rounds {rounds} --masters {masters} --edges \
             {edges} --shields {shields} --policy {}{}",
            policy.as_str(),
            if *calm { " --no-faults" } else { "" }
        )
    }
}

impl Round {
    /// When its last fault ends.
    pub fn lasts(&self) -> Duration {
        let end = |strike: &Strike| strike.after_ms + strike.hold_ms;
        Duration::from_millis(self.strikes.iter().map(end).max().unwrap_or_default())
    }
}
