//! Which groups should move next, and where: a plain function of the table and the servers.
//!
//! A group keeps its members unless one of them is draining or gone, or placement would choose
//! another today. It moves one member at a time (all those that are gone at once), so that what
//! stays is always most of what there was; and only so many groups are on the move at a time,
//! those in need first. Applied again and again the plan ends in a table that no plan changes.

use std::collections::{HashMap, HashSet};

use atoll_proto::cluster::{Duty, PgTable};
use atoll_proto::{NodeId, PgId};

use super::{Candidate, extend, ideal};
use crate::ops::move_groups::LEAVING_MAX;

/// Most groups on the move for the sake of even shares.
const REBALANCE_MAX: usize = 64;
/// Most groups on the move, those counted, when more move because a member drains.
const DRAIN_MAX: usize = 256;
/// Most groups on the move, those counted, when more move because members are gone.
const REPAIR_MAX: usize = 512;

/// A chunkserver as planning sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    /// Which, where, and its share.
    pub(crate) candidate: Candidate,
    /// What is wanted of it.
    pub(crate) duty: Duty,
    /// Whether it is heard of.
    pub(crate) up: bool,
    /// Whether its disk has no room for more groups.
    pub(crate) full: bool,
    /// Whether an operator gave it up: it is gone for good.
    pub(crate) given_up: bool,
}

impl Server {
    fn can_take(&self) -> bool {
        self.duty == Duty::Active && self.up && !self.full
    }
}

/// The members every group would have if it were dealt out today. Costly to work out, so kept as
/// long as the servers stay the same.
#[derive(Debug, Default)]
pub(crate) struct Ideals {
    of: Vec<Candidate>,
    members: Vec<Vec<NodeId>>,
}

impl Ideals {
    /// For the active ones among these servers, whether they are up or not.
    pub(crate) fn refresh(&mut self, servers: &[Server], groups: u16, replicas: usize) {
        let active = servers.iter().filter(|server| server.duty == Duty::Active);
        let of: Vec<Candidate> = active.map(|server| server.candidate.clone()).collect();
        if self.of != of || self.members.len() != usize::from(groups) {
            self.members = (0..groups).map(|pg| ideal(PgId(pg), &of, replicas)).collect();
            self.of = of;
        }
    }

    fn of(&self, pg: PgId) -> &[NodeId] {
        self.members.get(usize::from(pg.0)).map_or(&[], Vec::as_slice)
    }
}

/// What should change now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Groups with their new members: those that stay first, then those that enter.
    pub(crate) moved: Vec<(PgId, Vec<NodeId>)>,
    /// Groups with a member that should go and nobody to take its place: they keep it.
    pub(crate) stuck: usize,
    /// Groups all of whose members are gone.
    pub(crate) lost: usize,
}

/// Works out the next steps. Groups whose move is `slow` do not count as on the move: they may
/// never be done, and would keep all others from moving.
pub(crate) fn plan(
    table: &PgTable,
    servers: &[Server],
    ideals: &Ideals,
    replicas: usize,
    slow: &HashSet<PgId>,
) -> Plan {
    Planner::new(table, servers, ideals, replicas).run(slow)
}

/// Why a group moves, most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    /// Members are gone; so many are left.
    Gone(usize),
    /// It has fewer members than it should, and somebody can join.
    Short,
    /// A member is draining.
    Draining,
    /// Placement would choose others; first where that uses more zones.
    Uneven { more_zones: std::cmp::Reverse<bool> },
}

struct Planner<'a> {
    table: &'a PgTable,
    ideals: &'a Ideals,
    replicas: usize,
    servers: HashMap<NodeId, &'a Server>,
    /// Every server; those that can take nothing now weigh nothing.
    takers: Vec<Candidate>,
}

impl<'a> Planner<'a> {
    fn new(table: &'a PgTable, servers: &'a [Server], ideals: &'a Ideals, replicas: usize) -> Self {
        let taker = |server: &Server| {
            let weight = if server.can_take() { server.candidate.weight } else { 0 };
            Candidate { weight, ..server.candidate.clone() }
        };
        Self {
            table,
            ideals,
            replicas,
            servers: servers.iter().map(|server| (server.candidate.id, server)).collect(),
            takers: servers.iter().map(taker).collect(),
        }
    }

    fn run(&self, slow: &HashSet<PgId>) -> Plan {
        let mut plan = Plan::default();
        let moving: HashSet<PgId> = self.table.leaving.iter().map(|(pg, _)| *pg).collect();
        let mut steps: Vec<(Why, PgId, Vec<NodeId>)> = Vec::new();
        for (members, number) in self.table.members.iter().zip(0u16..) {
            let pg = PgId(number);
            if !members.is_empty() && members.iter().all(|id| self.duty(*id) == Duty::Gone) {
                plan.lost += 1;
            }
            match self.step(pg, members, moving.contains(&pg)) {
                Step::None => {}
                Step::Stuck => plan.stuck += 1,
                Step::Move(why, members) => steps.push((why, pg, members)),
            }
        }
        steps.sort_by_key(|(why, pg, _)| (*why, *pg));
        let mut on_the_move = moving.difference(slow).count();
        for (why, pg, members) in steps {
            let most = match why {
                // Nobody leaves, or there is nothing to copy: nobody has to wait.
                Why::Short | Why::Gone(0) => usize::MAX,
                Why::Gone(_) => REPAIR_MAX,
                Why::Draining => DRAIN_MAX,
                Why::Uneven { .. } => REBALANCE_MAX,
            };
            // What moves already is among those counted.
            let counts = most < usize::MAX && (!moving.contains(&pg) || slow.contains(&pg));
            if counts && on_the_move >= most {
                continue;
            }
            on_the_move += usize::from(counts);
            plan.moved.push((pg, members));
        }
        plan
    }

    fn step(&self, pg: PgId, members: &[NodeId], moving: bool) -> Step {
        let gone: Vec<NodeId> =
            members.iter().copied().filter(|id| self.duty(*id) == Duty::Gone).collect();
        let mut stuck = false;
        if !gone.is_empty() {
            let left = members.len() - gone.len();
            match self.without(pg, members, &gone) {
                Some(members) => return Step::Move(Why::Gone(left), members),
                None => stuck = true,
            }
        }
        if members.len() < self.replicas {
            let more = extend(pg, members.to_vec(), &self.takers, self.replicas);
            if more.len() > members.len() {
                return Step::Move(Why::Short, more);
            }
        }
        let nothing = if stuck { Step::Stuck } else { Step::None };
        if moving {
            return nothing;
        }
        if let Some(going) = members.iter().find(|id| self.duty(**id) == Duty::Draining) {
            return match self.without(pg, members, &[*going]) {
                Some(members) => Step::Move(Why::Draining, members),
                None => Step::Stuck,
            };
        }
        if stuck { nothing } else { self.towards_ideal(pg, members) }
    }

    /// The group with others in place of as many of `going` as there are others; `None` when there
    /// is nobody, when nothing would be left of the members there are (unless an operator gave up
    /// all of them), or when it waits for as many old members as it may.
    fn without(&self, pg: PgId, members: &[NodeId], going: &[NodeId]) -> Option<Vec<NodeId>> {
        let stay: Vec<NodeId> = members.iter().copied().filter(|id| !going.contains(id)).collect();
        let given_up = |id: &NodeId| self.servers.get(id).is_none_or(|it| it.given_up);
        if stay.is_empty() && !members.iter().all(given_up) {
            return None;
        }
        if self.table.leaving(pg).len() + going.len() > LEAVING_MAX {
            return None;
        }
        // Nobody who is going comes back: they weigh nothing.
        let wanted = members.len().max(self.replicas);
        let new = extend(pg, stay.clone(), &self.takers, wanted);
        let entering = &new[stay.len()..];
        if entering.is_empty() {
            return None;
        }
        let replaced = &going[..entering.len().min(going.len())];
        let stays = members.iter().copied().filter(|id| !replaced.contains(id));
        Some(stays.chain(entering.iter().copied()).take(wanted).collect())
    }

    /// One step towards the members the group would have if it were dealt out today.
    fn towards_ideal(&self, pg: PgId, members: &[NodeId]) -> Step {
        let ideal = self.ideals.of(pg);
        let all_up = members.iter().all(|id| self.servers.get(id).is_some_and(|it| it.up));
        if !all_up || ideal.len() < members.len() {
            return Step::None;
        }
        let entering: Vec<NodeId> = ideal
            .iter()
            .copied()
            .filter(|id| !members.contains(id))
            .filter(|id| self.servers.get(id).is_some_and(|server| server.can_take()))
            .collect();
        let leaving: Vec<NodeId> =
            members.iter().copied().filter(|id| !ideal.contains(id)).collect();
        let mut best: Option<(usize, Vec<NodeId>)> = None;
        for enters in &entering {
            for leaves in leaving.iter().rev() {
                let stay = members.iter().copied().filter(|id| id != leaves);
                let after: Vec<NodeId> = stay.chain([*enters]).collect();
                let zones = self.zones(&after);
                if best.as_ref().is_none_or(|(most, _)| zones > *most) {
                    best = Some((zones, after));
                }
            }
        }
        match best {
            Some((zones, after)) => {
                let more_zones = std::cmp::Reverse(zones > self.zones(members));
                Step::Move(Why::Uneven { more_zones }, after)
            }
            None => Step::None,
        }
    }

    /// A server that nobody knows is gone.
    fn duty(&self, id: NodeId) -> Duty {
        self.servers.get(&id).map_or(Duty::Gone, |server| server.duty)
    }

    fn zones(&self, members: &[NodeId]) -> usize {
        let known = members.iter().filter_map(|id| self.servers.get(id));
        known.map(|server| server.candidate.zone.as_str()).collect::<HashSet<_>>().len()
    }
}

enum Step {
    None,
    Stuck,
    Move(Why, Vec<NodeId>),
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
