//! Faults as data: a scenario lists them, a failure prints them, a run repeats them.
//!
//! One file per kind: [`link`] cuts links between nodes, [`files`] damages what a node has on its
//! disk, [`room`] fills a disk, [`power`] cuts the power, [`crate::shim`] makes clocks and syncs
//! odd. The life of a process is the cluster's.

mod chunks;
pub mod files;
pub mod link;
pub mod power;
pub mod room;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::cluster::DevCluster;
use crate::ready::Node;
use crate::shim;
pub use files::{Harm, Offset, Spare, Target};
pub use link::packets_cut;

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// SIGKILL.
    Kill(Node),
    /// SIGTERM, and it is waited for.
    Stop(Node),
    /// Started again on its data and port.
    Start(Node),
    /// Killed and started again.
    Restart(Node),
    /// Killed and started again, so many times, with a pause in milliseconds before each kill.
    KillLoop {
        /// Which.
        node: Node,
        /// After how many milliseconds of life it dies each time.
        lives_ms: Vec<u64>,
    },
    /// SIGSTOP: it holds its connections and answers nothing.
    Freeze(Node),
    /// SIGCONT.
    Continue(Node),
    /// The power of these nodes goes at once: of all nodes and of `atoll dev` itself when the list
    /// is empty. Their data must be on disks of their own: [`crate::DevBuilder::lossy_disks`].
    PowerCut(Vec<Node>),
    /// One bit is turned in every file of the node's data whose name contains the text. The node
    /// should be stopped: what it has in memory is not touched.
    CorruptFile {
        /// Whose data.
        node: Node,
        /// What the file's name contains.
        name_contains: String,
        /// Where in the file.
        at: Offset,
    },
    /// A share of the node's files of one sort is harmed, chosen by the seed. The node should be
    /// stopped.
    Damage {
        /// Whose data.
        node: Node,
        /// Which files.
        target: Target,
        /// What happens to them.
        harm: Harm,
        /// How many of them.
        spare: Spare,
        /// Chooses files and places in them.
        seed: u64,
    },
    /// Everything in the node's data directory is deleted. The node should be stopped.
    Wipe(Node),
    /// A chunkserver's store loses some of its live chunks without any trace of them, as if they
    /// had never come: only a comparison of replicas finds that out. The node must be stopped.
    LoseChunks {
        /// Whose.
        node: Node,
        /// How many.
        count: usize,
        /// Chooses them.
        seed: u64,
    },
    /// No packet passes between the two nodes, either way; both still reach everybody else.
    CutLink(Node, Node),
    /// No packet of the first reaches the second; those of the second still reach the first.
    CutOneWay {
        /// Whose packets are dropped.
        from: Node,
        /// On their way to whom.
        to: Node,
    },
    /// The file system of the node's data is filled. Only for one that belongs to the test.
    FillDisk {
        /// Whose data.
        node: Node,
        /// What stays free, about.
        leave_bytes: u64,
    },
    /// The node's machine sleeps: its process is stopped and `CLOCK_MONOTONIC` stands, while
    /// `CLOCK_BOOTTIME` goes on. This and what follows only for [`crate::DevBuilder::shimmed`].
    Suspend(Node),
    /// It wakes.
    Resume(Node),
    /// The node's clocks, but for the wall clock, run at another rate from now on.
    ClockRate {
        /// Whose.
        node: Node,
        /// So many millionths faster; negative: slower.
        ppm: i64,
    },
    /// The node's wall clock is set.
    WallClock {
        /// Whose.
        node: Node,
        /// So many seconds ahead of the right time; negative: behind it.
        ahead_secs: i64,
    },
    /// The node's `CLOCK_BOOTTIME` goes forward at once, as if its machine had slept.
    SkipBootTime {
        /// Whose.
        node: Node,
        /// So many seconds.
        secs: u64,
    },
    /// Each sync of the node takes longer from now on.
    SlowSyncs {
        /// Whose.
        node: Node,
        /// So many milliseconds.
        ms: u64,
    },
}

impl Fault {
    /// Makes it happen.
    ///
    /// # Errors
    /// When it cannot be made to happen; then nothing is known about the node.
    pub fn apply(&self, cluster: &DevCluster) -> Result<()> {
        self.apply_now(cluster).with_context(|| format!("fault {self:?}"))
    }

    fn apply_now(&self, cluster: &DevCluster) -> Result<()> {
        match self {
            Self::Kill(node) => cluster.kill9(*node),
            Self::Stop(node) => cluster.stop_node(*node),
            Self::Start(node) => cluster.start_node(*node),
            Self::Restart(node) => cluster.restart(*node),
            Self::KillLoop { node, lives_ms } => power::kill_loop(cluster, *node, lives_ms),
            Self::Freeze(node) => cluster.freeze(*node),
            Self::Continue(node) => cluster.thaw(*node),
            Self::PowerCut(nodes) => power::cut(cluster, nodes),
            Self::CorruptFile { node, name_contains, at } => {
                files::corrupt(&data_of(cluster, *node)?, name_contains, *at)
            }
            Self::Damage { node, target, harm, spare, seed } => {
                let harmed =
                    files::damage(&data_of(cluster, *node)?, *target, *harm, *spare, *seed)?;
                for line in harmed {
                    cluster.tell(format_args!("{node}: {line}"));
                }
                Ok(())
            }
            Self::Wipe(node) => files::wipe(&data_of(cluster, *node)?),
            Self::LoseChunks { node, count, seed } => {
                chunks::lose(&data_of(cluster, *node)?, *count, *seed)
            }
            Self::CutLink(one, other) => link::cut(cluster, &[(*one, *other), (*other, *one)]),
            Self::CutOneWay { from, to } => link::cut(cluster, &[(*from, *to)]),
            Self::FillDisk { node, leave_bytes } => {
                room::fill(&data_of(cluster, *node)?, *leave_bytes)
            }
            Self::Suspend(node) => shim::suspend(cluster, *node),
            Self::Resume(node) => shim::resume(cluster, *node),
            Self::ClockRate { node, ppm } => {
                cluster.tell(format_args!("the clocks of {node} run {ppm} ppm too fast"));
                cluster.shim(*node)?.run_at(*ppm);
                Ok(())
            }
            Self::WallClock { node, ahead_secs } => {
                cluster.tell(format_args!("the wall clock of {node} is {ahead_secs} s ahead"));
                cluster.shim(*node)?.set_wall(*ahead_secs);
                Ok(())
            }
            Self::SkipBootTime { node, secs } => {
                cluster.tell(format_args!("{node} skips {secs} s"));
                cluster.shim(*node)?.skip_boot_time(Duration::from_secs(*secs));
                Ok(())
            }
            Self::SlowSyncs { node, ms } => {
                cluster.tell(format_args!("each sync of {node} takes {ms} ms longer"));
                cluster.shim(*node)?.slow_syncs(Duration::from_millis(*ms));
                Ok(())
            }
        }
    }

    /// Puts things right again.
    ///
    /// # Errors
    /// When it cannot, or when there is no way back: turned bits stay.
    pub fn undo(&self, cluster: &DevCluster) -> Result<()> {
        match self {
            Self::Kill(node) | Self::Stop(node) => Self::Start(*node).apply(cluster),
            Self::Freeze(node) => Self::Continue(*node).apply(cluster),
            Self::Suspend(node) => Self::Resume(*node).apply(cluster),
            Self::ClockRate { node, .. } => Self::ClockRate { node: *node, ppm: 0 }.apply(cluster),
            Self::WallClock { node, .. } => {
                Self::WallClock { node: *node, ahead_secs: 0 }.apply(cluster)
            }
            Self::SlowSyncs { node, .. } => Self::SlowSyncs { node: *node, ms: 0 }.apply(cluster),
            Self::Start(_)
            | Self::Restart(_)
            | Self::KillLoop { .. }
            | Self::Continue(_)
            | Self::Resume(_) => Ok(()),
            Self::SkipBootTime { .. } => bail!("{self:?}: time does not go back"),
            Self::PowerCut(nodes) => power::back(cluster, nodes),
            Self::CutLink(one, other) => link::mend(cluster, &[(*one, *other), (*other, *one)]),
            Self::CutOneWay { from, to } => link::mend(cluster, &[(*from, *to)]),
            Self::CorruptFile { .. }
            | Self::Damage { .. }
            | Self::Wipe(_)
            | Self::LoseChunks { .. } => {
                bail!("{self:?}: healing is the cluster's part")
            }
            Self::FillDisk { node, .. } => room::free(&data_of(cluster, *node)?),
        }
    }
}

fn data_of(cluster: &DevCluster, node: Node) -> Result<PathBuf> {
    let ready = cluster.ready();
    ready.data(node).map(Path::to_owned).with_context(|| format!("there is no {node}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_scenario_is_data() {
        let faults = vec![
            Fault::Kill(Node::chunkserver(2)),
            Fault::PowerCut(Vec::new()),
            Fault::CorruptFile {
                node: Node::chunkserver(1),
                name_contains: ".blob".into(),
                at: Offset::FromEnd(100),
            },
            Fault::Damage {
                node: Node::chunkserver(1),
                target: Target::Sst,
                harm: Harm::FlipBits { bits: 3 },
                spare: Spare::Half,
                seed: 7,
            },
            Fault::CutOneWay { from: Node::master(1), to: Node::edge(1) },
        ];
        let text = serde_json::to_string(&faults).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Fault>>(&text).unwrap(), faults);
    }
}
