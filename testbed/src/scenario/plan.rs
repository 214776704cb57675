//! From a kind and a seed to rounds. Pure.

use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};

use super::{During, Kind, Round, Scenario, Shape};
use crate::disk::DiskKind;
use crate::faults::{Fault, Harm, Spare, Target};
use crate::ready::Node;
use crate::seed;

/// A disk nobody is to fill.
const ROOMY_BYTES: u64 = 8 << 30;
/// A disk that is to be filled.
const SMALL_BYTES: u64 = 768 << 20;
/// The chunkserver that alone is ever damaged in a build that does not repair.
const VICTIM: u64 = 3;

impl Scenario {
    /// The scenario of this kind and seed. `heals` tells whether the build repairs damage.
    pub fn plan(kind: Kind, seed: u64, rounds: usize, disk: DiskKind, heals: bool) -> Self {
        // Different kinds of one seed have nothing in common.
        let mut rng = seed::rng(seed.wrapping_mul(31).wrapping_add(kind as u64));
        let masters = match kind {
            Kind::Partition => 3,
            Kind::PowerCut | Kind::KillLoop if rng.random_bool(0.5) => 3,
            _ => 1,
        };
        let bytes = if kind == Kind::FullDisk { SMALL_BYTES } else { ROOMY_BYTES };
        let shape = Shape {
            masters,
            chunkservers: 3,
            edges: 1,
            mounted: true,
            disk: kind.needs_disks().then_some((disk, bytes)),
        };
        let make = match kind {
            Kind::PowerCut => power_cut,
            Kind::KillLoop => kill_loop,
            Kind::Corruption if heals => corruption,
            Kind::Corruption => corruption_of_one,
            Kind::Partition => partition,
            Kind::FullDisk => full_disk,
        };
        let rounds = (0..rounds).map(|_| make(&mut rng, shape)).collect();
        Self { kind, seed, shape, heals, rounds }
    }
}

/// Work, then these faults.
fn round(rng: &mut StdRng, faults: Vec<Fault>, during: During) -> Round {
    Round {
        acknowledged: rng.random_range(10..40),
        pause_ms: rng.random_range(0..150),
        faults,
        during,
        hold_ms: rng.random_range(0..500),
        flickers_ms: Vec::new(),
        missing: None,
    }
}

fn any_chunkserver(rng: &mut StdRng, shape: Shape) -> Node {
    Node::chunkserver(rng.random_range(1..=shape.chunkservers as u64))
}

fn any_master(rng: &mut StdRng, shape: Shape) -> Node {
    Node::master(rng.random_range(1..=shape.masters as u64))
}

fn unharmed(rng: &mut StdRng) -> During {
    During::Unharmed { acknowledged: rng.random_range(5..15) }
}

fn power_cut(rng: &mut StdRng, shape: Shape) -> Round {
    let missing = rng.random_bool(0.3).then(|| any_chunkserver(rng, shape));
    match rng.random_range(0..20) {
        0..=12 => {
            let mut made = round(rng, vec![Fault::PowerCut(Vec::new())], During::Rests);
            for _ in 0..rng.random_range(0..6u32).saturating_sub(3) {
                made.flickers_ms.push(rng.random_range(5..1500));
            }
            Round { missing, ..made }
        }
        13..=15 => {
            let node = any_chunkserver(rng, shape);
            let during = unharmed(rng);
            round(rng, vec![Fault::PowerCut(vec![node])], during)
        }
        16 | 17 => {
            let all = (1..=shape.chunkservers as u64).map(Node::chunkserver).collect();
            let during = During::MayFail;
            Round { missing, ..round(rng, vec![Fault::PowerCut(all)], during) }
        }
        _ => {
            let node = any_master(rng, shape);
            let during = match shape.masters {
                1 => During::MayFail,
                _ => During::Progresses { acknowledged: 5 },
            };
            round(rng, vec![Fault::PowerCut(vec![node])], during)
        }
    }
}

fn kill_loop(rng: &mut StdRng, shape: Shape) -> Round {
    let node = match rng.random_range(0..5) {
        0 | 1 => any_master(rng, shape),
        2 => Node::edge(1),
        _ => any_chunkserver(rng, shape),
    };
    // A server that hangs instead of dying keeps its connections, and whoever waits on them.
    if node.role == crate::NodeRole::Chunkserver && rng.random_bool(0.25) {
        let during = unharmed(rng);
        let made = round(rng, vec![Fault::Freeze(node)], during);
        return Round { hold_ms: rng.random_range(0..4000), ..made };
    }
    let lives_ms = (0..rng.random_range(2..6)).map(|_| rng.random_range(0..500)).collect();
    let during = match node.role {
        crate::NodeRole::Chunkserver => unharmed(rng),
        crate::NodeRole::Master if shape.masters == 1 => During::MayFail,
        _ => During::Progresses { acknowledged: 5 },
    };
    round(rng, vec![Fault::KillLoop { node, lives_ms }], during)
}

fn corruption(rng: &mut StdRng, shape: Shape) -> Round {
    let node = any_chunkserver(rng, shape);
    let seed = rng.random();
    let harm = match rng.random_range(0..8) {
        0 => return hurt(rng, node, Fault::Wipe(node)),
        1 => Harm::Truncate,
        2 => Harm::Delete,
        _ => Harm::FlipBits { bits: rng.random_range(1..20) },
    };
    let targets = [
        Target::Sst,
        Target::Blob,
        Target::Segment,
        Target::Segment,
        Target::Wal,
        Target::Manifest,
        Target::Marker,
        Target::Any,
    ];
    let target = *targets.choose(rng).expect("there are targets");
    let spare = if rng.random_bool(0.5) { Spare::Half } else { Spare::AllButOne };
    hurt(rng, node, Fault::Damage { node, target, harm, spare, seed })
}

/// Without repair a second damaged server could take the last good copy of a chunk; and a harmed
/// index is for a server that can begin anew.
fn corruption_of_one(rng: &mut StdRng, _shape: Shape) -> Round {
    let node = Node::chunkserver(VICTIM);
    let harm = Harm::FlipBits { bits: rng.random_range(1..20) };
    let seed = rng.random();
    hurt(rng, node, Fault::Damage { node, target: Target::Blob, harm, spare: Spare::Half, seed })
}

fn hurt(rng: &mut StdRng, node: Node, fault: Fault) -> Round {
    let during = unharmed(rng);
    round(rng, vec![Fault::Stop(node), fault, Fault::Start(node)], during)
}

fn partition(rng: &mut StdRng, shape: Shape) -> Round {
    let mut nodes: Vec<Node> = (1..=shape.masters as u64).map(Node::master).collect();
    nodes.extend((1..=shape.chunkservers as u64).map(Node::chunkserver));
    nodes.push(Node::edge(1));
    let mut faults = Vec::new();
    let mut masters = false;
    for _ in 0..rng.random_range(1..3) {
        nodes.shuffle(rng);
        let (one, other) = (nodes[0], nodes[1]);
        let fault = match rng.random_range(0..3) {
            0 => Fault::CutOneWay { from: one, to: other },
            _ => Fault::CutLink(one.min(other), one.max(other)),
        };
        // A link is cut once: the other direction may be another fault of the same round.
        let pair = |fault: &Fault| match fault {
            Fault::CutLink(one, other) | Fault::CutOneWay { from: one, to: other } => {
                (*one.min(other), *one.max(other))
            }
            _ => (one, other),
        };
        if faults.iter().all(|there| pair(there) != pair(&fault)) {
            masters |= [one, other].iter().any(|node| node.role == crate::NodeRole::Master);
            faults.push(fault);
        }
    }
    // Two links of one chunkserver may leave a group without a quorum that its writers reach.
    let during = match (masters, faults.len()) {
        (false, 1) => unharmed(rng),
        _ => During::Progresses { acknowledged: 5 },
    };
    let made = round(rng, faults, during);
    // Long enough, often, for leases and heartbeats to be missed and for elections.
    Round { hold_ms: rng.random_range(0..6000), ..made }
}

fn full_disk(rng: &mut StdRng, shape: Shape) -> Round {
    let leave_bytes = rng.random_range(2 << 20..6 << 20);
    let fill = |node| Fault::FillDisk { node, leave_bytes };
    match rng.random_range(0..6) {
        0..=2 => {
            let faults = vec![fill(any_chunkserver(rng, shape))];
            let during = unharmed(rng);
            round(rng, faults, during)
        }
        3 => {
            let faults = (1..=shape.chunkservers as u64).map(|id| fill(Node::chunkserver(id)));
            let faults = faults.collect();
            round(rng, faults, During::Refuses)
        }
        4 => round(rng, vec![fill(Node::master(1))], During::Refuses),
        _ => {
            let during = unharmed(rng);
            round(rng, vec![fill(Node::edge(1))], during)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_scenario() {
        for kind in Kind::ALL {
            let plan = |seed| Scenario::plan(kind, seed, 30, DiskKind::Ext4, true);
            assert_eq!(plan(1), plan(1));
            assert_ne!(plan(1).rounds, plan(2).rounds);
            assert_eq!(plan(1).rounds.len(), 30);
            assert_eq!(plan(1).shape.disk.is_some(), kind.needs_disks());
        }
    }

    #[test]
    fn without_repair_only_one_server_is_ever_damaged() {
        let rounds = Scenario::plan(Kind::Corruption, 5, 50, DiskKind::Ext4, false).rounds;
        let damaged: BTreeSet<Node> = rounds
            .iter()
            .flat_map(|round| &round.faults)
            .filter_map(|fault| match fault {
                Fault::Damage { node, .. } | Fault::Wipe(node) => Some(*node),
                _ => None,
            })
            .collect();
        assert_eq!(damaged.len(), 1);
    }
}
