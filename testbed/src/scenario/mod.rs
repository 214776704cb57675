//! Scenarios as data: a kind and a seed make a list of rounds, and a runner carries them out.
//!
//! In each round a [`Crew`](crate::workload::Crew) works, something goes wrong, it is put right, and
//! checkers look. The same kind, seed and build make the same rounds; how far the crew gets in each
//! depends on the machine, and no verdict depends on that.

mod plan;
mod run;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use run::{Report, run};

use crate::disk::DiskKind;
use crate::faults::Fault;
use crate::ready::Node;

/// What goes wrong in a scenario.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The power of all or some nodes goes; what was not synced is lost
    PowerCut,
    /// Nodes die and come back, again and again, or hang
    KillLoop,
    /// Bits, ends and whole files of one node's data are harmed at a time
    Corruption,
    /// Links between nodes are cut, one way or both
    Partition,
    /// Disks run full
    FullDisk,
}

impl Kind {
    /// Every one.
    pub const ALL: [Self; 5] =
        [Self::PowerCut, Self::KillLoop, Self::Corruption, Self::Partition, Self::FullDisk];

    /// Its word on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PowerCut => "power-cut",
            Self::KillLoop => "kill-loop",
            Self::Corruption => "corruption",
            Self::Partition => "partition",
            Self::FullDisk => "full-disk",
        }
    }

    /// Whether nodes need disks of their own.
    pub fn needs_disks(self) -> bool {
        matches!(self, Self::PowerCut | Self::FullDisk)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The cluster of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Masters.
    pub masters: usize,
    /// Chunkservers.
    pub chunkservers: usize,
    /// Edges.
    pub edges: usize,
    /// Whether it is mounted.
    pub mounted: bool,
    /// Disks of the nodes' own: kind and size in bytes.
    pub disk: Option<(DiskKind, u64)>,
}

/// What the crew does while something is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum During {
    /// It stops: too much is gone.
    Rests,
    /// It works; operations may fail, but none may lie.
    MayFail,
    /// Some operations must be refused, so that it is sure that the fault bites; then a file must be
    /// removed all the same: that needs no room.
    Refuses,
    /// So many more operations must be acknowledged; others may fail meanwhile.
    Progresses {
        /// How many.
        acknowledged: u64,
    },
    /// So many more operations must be acknowledged, and no operation and no read may fail.
    Unharmed {
        /// How many.
        acknowledged: u64,
    },
}

/// One round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// So many operations are acknowledged first.
    pub acknowledged: u64,
    /// Then so many milliseconds pass.
    pub pause_ms: u64,
    /// Then this happens, in this order.
    pub faults: Vec<Fault>,
    /// What the crew does then, before the faults are undone.
    pub during: During,
    /// How long it does so at least, in milliseconds.
    pub hold_ms: u64,
    /// After a power cut of everything: the power comes back for so many milliseconds, each time
    /// going again while nodes recover.
    pub flickers_ms: Vec<u64>,
    /// A node that stays away while the checkers look.
    pub missing: Option<Node>,
}

/// A whole scenario.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scenario {
    /// What goes wrong.
    pub kind: Kind,
    /// Where it comes from.
    pub seed: u64,
    /// On which cluster.
    pub shape: Shape,
    /// Whether the build repairs what is damaged, so that any node may be next.
    pub heals: bool,
    /// What happens.
    pub rounds: Vec<Round>,
}

impl Scenario {
    /// The command that runs it again.
    pub fn command_to_repeat(&self) -> String {
        let (kind, seed, rounds) = (self.kind, self.seed, self.rounds.len());
        let disk = match self.shape.disk {
            Some((disk, _)) => format!(" --disk {}", disk.as_str()),
            None => String::new(),
        };
        format!("atoll-bench scenario --kind {kind} --seed {seed} --rounds {rounds}{disk}")
    }
}
