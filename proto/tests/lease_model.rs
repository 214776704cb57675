//! A model of leases: edges, authorities that follow each other, clocks that drift, and a network
//! that loses, delays and reorders. It calls the functions of `atoll_proto::lease` and nothing
//! else decides; stateright explores every order of what may happen, up to the bounds.
//!
//! One step of true time advances every clock by 2 or 3 seconds, each as it likes, so that their
//! rates differ by up to half. A lease is 6 s long. A message that is never delivered is lost.
//!
//! Each planted mistake must be found: it shows that the model can see it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use atoll_proto::lease::{Grants, Held, MaySend, MayServe, Terms};
use atoll_proto::site::Policy;
use atoll_proto::{NodeId, Seq};
use stateright::{Checker, HasDiscoveries, Model, Property};

const SECOND: u64 = 1_000_000_000;
const TERMS: Terms = Terms { term_ns: 6 * SECOND, drift_ppm: 500_000 };
/// What clocks show at the beginning: far enough from 0 to look back.
const BEGINNING: u64 = 1000 * SECOND;
const NEVER_STALE: &str = "no answer older than a publish that has returned";

/// What is done wrongly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    /// A lease for an edge that lacks an entry which returned without it.
    GrantToOneBehind,
    /// The edge counts from when the grant arrived.
    CountFromReceipt,
    /// The authority takes clocks to run at one rate.
    NoMargin,
    /// A new authority believes that an edge it has not heard of holds no lease.
    NoWaitOfANewAuthority,
    /// A master grants without making sure that it leads.
    NoConfirmation,
    /// A new authority reads the last entry before the confirmation, not in the step that notes
    /// the grant: it may lack what an earlier one confirmed.
    LastReadTooEarly,
    /// It is forgotten which entries were confirmed without an edge.
    ForgetGivenUp,
    /// It is forgotten what an edge that lost its table had confirmed.
    ForgetAcknowledged,
    /// Nothing is checked before the first byte.
    NoSecondCheck,
    /// The lease is checked again, but not whether the table is still the same.
    SecondCheckOfTheLeaseOnly,
    /// An answer that cannot be made anew is sent, and the lease was not checked before.
    NoFirstCheck,
    /// An edge confirms an entry before it is in force.
    AcknowledgeTooEarly,
    /// An edge that starts again serves from what it stored.
    ServeFromDisk,
    /// What was granted under a leadership is forgotten while it goes on.
    ForgetGrants,
}

/// The bounds of one exploration.
#[derive(Debug, Clone)]
struct Leases {
    edges: usize,
    policy: Policy,
    mistake: Mistake,
    steps: u8,
    publishes: u8,
    leaders: usize,
    renewals: u8,
    requests: u8,
    restarts: u8,
}

/// A message under way, or the work on one at a master.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Message {
    /// From an edge: renew.
    Renew { edge: usize, run: u8, sent: u64, applied: u8 },
    /// The leader of this term has confirmed, since the renewal arrived, that it leads.
    Confirmed { edge: usize, run: u8, sent: u64, applied: u8, term: usize, last: u8 },
    /// To an edge: granted.
    Granted { edge: usize, run: u8, sent: u64 },
    /// From an edge: it has applied this.
    Acknowledge { edge: usize, seq: u8 },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Edge {
    clock: u64,
    table: u8,
    held: Held,
    run: u8,
    request: Option<Request>,
}

/// A request at an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Request {
    /// The last publish that had returned when the request came.
    floor: u8,
    admitted: bool,
    /// The entry as of which the answer was made.
    chosen: Option<u8>,
}

/// A leadership. The master may think that it leads when another already does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Leader {
    clock: u64,
    /// The last entry it has applied.
    last: u8,
    grants: Grants,
    acked: Vec<u8>,
    /// A wait for this entry that has passed the read gate.
    waits: Option<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    edges: Vec<Edge>,
    leaders: Vec<Leader>,
    network: BTreeSet<Message>,
    committed: u8,
    /// The last publish that has returned.
    returned: u8,
    steps: u8,
    renewals: u8,
    requests: u8,
    restarts: u8,
    /// An answer older than a publish that had returned was sent.
    stale: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Action {
    /// Time passes; these clocks run fast: of each edge, then of all masters, whose clocks are
    /// never compared with each other.
    Pass {
        fast: Vec<bool>,
    },
    Publish,
    Elect,
    /// The leader's process starts again within its term.
    RestartLeader,
    RestartEdge {
        edge: usize,
    },
    Apply {
        edge: usize,
    },
    Renew {
        edge: usize,
    },
    Deliver {
        message: Message,
        term: usize,
    },
    /// A wait for the last entry passes the read gate of the leader.
    Wait,
    Return {
        term: usize,
    },
    Arrive {
        edge: usize,
    },
    Admit {
        edge: usize,
    },
    Choose {
        edge: usize,
    },
    Send {
        edge: usize,
    },
}

impl Leases {
    fn small(policy: Policy, mistake: Mistake) -> Leases {
        Leases {
            edges: 1,
            policy,
            mistake,
            steps: 4,
            publishes: 1,
            leaders: 1,
            renewals: 2,
            requests: 1,
            restarts: 0,
        }
    }

    fn is(&self, mistake: Mistake) -> bool {
        self.mistake == mistake
    }

    fn leader(&self, clock: u64) -> Leader {
        let terms = match self.mistake {
            Mistake::NoMargin => Terms { drift_ppm: 0, ..TERMS },
            _ => TERMS,
        };
        let since = match self.mistake {
            Mistake::NoWaitOfANewAuthority => clock - 100 * SECOND,
            _ => clock,
        };
        let grants = Grants::new(terms, since);
        Leader { clock, last: 0, grants, acked: vec![0; self.edges], waits: None }
    }

    fn deliver(&self, world: &mut World, message: Message, term: usize) {
        let leads = term + 1 == world.leaders.len();
        match message {
            Message::Renew { edge, run, sent, applied } => {
                let last = world.leaders[term].last;
                if leads {
                    world.leaders[term].last = world.committed;
                } else if !self.is(Mistake::NoConfirmation) {
                    return;
                }
                let next = Message::Confirmed { edge, run, sent, applied, term, last };
                world.network.insert(next);
            }
            Message::Confirmed { edge, run, sent, applied, last, .. } => {
                let leader = &mut world.leaders[term];
                let (applied, last) = match self.mistake {
                    Mistake::GrantToOneBehind => (leader.last, leader.last),
                    Mistake::LastReadTooEarly => (applied, last),
                    _ => (applied, leader.last),
                };
                let (applied, last) = (Seq(applied.into()), Seq(last.into()));
                if leader.grants.grant(node(edge), applied, last, leader.clock) {
                    world.network.insert(Message::Granted { edge, run, sent });
                    if self.is(Mistake::ForgetGrants) {
                        leader.grants = Grants::new(TERMS, 0);
                    }
                }
            }
            Message::Granted { edge, run, sent } => {
                let edge = &mut world.edges[edge];
                if edge.run == run {
                    let from = if self.is(Mistake::CountFromReceipt) { edge.clock } else { sent };
                    edge.held = edge.held.renewed(from, TERMS);
                }
            }
            Message::Acknowledge { edge, seq } => {
                let leader = &mut world.leaders[term];
                leader.acked[edge] = leader.acked[edge].max(seq);
                if !self.is(Mistake::ForgetAcknowledged) {
                    leader.grants.acknowledged(node(edge), Seq(seq.into()));
                }
            }
        }
    }

    fn send(&self, world: &mut World, at: usize) {
        let returned = world.returned;
        let edge = &mut world.edges[at];
        let Some(request @ Request { chosen: Some(chosen), .. }) = edge.request else { return };
        let same = edge.table == chosen || self.is(Mistake::SecondCheckOfTheLeaseOnly);
        let may = match self.mistake {
            Mistake::NoSecondCheck => MaySend::Yes,
            _ => edge.held.may_send(self.policy, edge.clock, same),
        };
        match may {
            MaySend::Yes | MaySend::Late => {
                edge.request = None;
                world.stale |= chosen < returned;
            }
            // It is made anew or, when that has happened too often, sent all the same: then no
            // publish that had returned before the request came may be missing.
            MaySend::Anew => {
                edge.request = Some(Request { admitted: false, chosen: None, ..request });
                world.stale |= chosen < request.floor;
            }
            MaySend::No => edge.request = None,
        }
    }

    fn actions_of_edge(&self, world: &World, at: usize, actions: &mut Vec<Action>) {
        let edge = &world.edges[at];
        if edge.table < world.committed {
            actions.push(Action::Apply { edge: at });
        }
        if world.renewals < self.renewals {
            actions.push(Action::Renew { edge: at });
        }
        if world.restarts < self.restarts {
            actions.push(Action::RestartEdge { edge: at });
        }
        match edge.request {
            None if world.requests < self.requests => actions.push(Action::Arrive { edge: at }),
            None => {}
            Some(Request { admitted: false, .. }) => actions.push(Action::Admit { edge: at }),
            Some(Request { chosen: None, .. }) => actions.push(Action::Choose { edge: at }),
            Some(_) => actions.push(Action::Send { edge: at }),
        }
    }

    fn actions_of_network(world: &World, actions: &mut Vec<Action>) {
        for message in world.network.iter().copied() {
            match message {
                Message::Confirmed { term, .. } => actions.push(Action::Deliver { message, term }),
                Message::Granted { .. } => actions.push(Action::Deliver { message, term: 0 }),
                Message::Renew { .. } | Message::Acknowledge { .. } => {
                    let terms = 0..world.leaders.len();
                    actions.extend(terms.map(|term| Action::Deliver { message, term }));
                }
            }
        }
    }

    fn restart_leader(&self, world: &mut World) {
        world.restarts += 1;
        let term = world.leaders.len() - 1;
        world.leaders[term] = self.leader(world.leaders[term].clock);
        // What it was working on is gone with it.
        let is_its = |message: &Message| matches!(message, Message::Confirmed { term: of, .. } if *of == term);
        world.network.retain(|message| !is_its(message));
    }

    fn act_on_edge(&self, world: &mut World, action: Action) {
        match action {
            Action::RestartEdge { edge } => {
                world.restarts += 1;
                let edge = &mut world.edges[edge];
                edge.run += 1;
                // What it has stored may be as old as one likes.
                edge.table = 0;
                edge.request = None;
                if !self.is(Mistake::ServeFromDisk) {
                    edge.held = Held::default();
                }
            }
            Action::Apply { edge } => {
                let seq = world.committed;
                world.network.insert(Message::Acknowledge { edge, seq });
                if !self.is(Mistake::AcknowledgeTooEarly) {
                    world.edges[edge].table = seq;
                }
            }
            Action::Renew { edge } => {
                world.renewals += 1;
                let Edge { clock, table, run, .. } = world.edges[edge];
                world.network.insert(Message::Renew { edge, run, sent: clock, applied: table });
            }
            Action::Arrive { edge } => {
                world.requests += 1;
                let floor = world.returned;
                world.edges[edge].request = Some(Request { floor, admitted: false, chosen: None });
            }
            Action::Admit { edge } => {
                let edge = &mut world.edges[edge];
                let may = edge.held.may_serve(self.policy, edge.clock);
                let may = may != MayServe::No || self.is(Mistake::NoFirstCheck);
                edge.request =
                    edge.request.filter(|_| may).map(|it| Request { admitted: true, ..it });
            }
            Action::Choose { edge } => {
                let Edge { table, request, .. } = &mut world.edges[edge];
                *request = request.map(|it| Request { chosen: Some(*table), ..it });
            }
            Action::Send { edge } => self.send(world, edge),
            _ => {}
        }
    }
}

fn node(edge: usize) -> NodeId {
    NodeId(edge as u64 + 1)
}

impl Model for Leases {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let held = Held::default();
        let edge = Edge { clock: BEGINNING, table: 0, held, run: 0, request: None };
        vec![World {
            edges: vec![edge; self.edges],
            leaders: vec![self.leader(BEGINNING)],
            network: BTreeSet::new(),
            committed: 0,
            returned: 0,
            steps: 0,
            renewals: 0,
            requests: 0,
            restarts: 0,
            stale: false,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.stale {
            return;
        }
        if world.steps < self.steps {
            for choice in 0..1u32 << (self.edges + 1) {
                let fast = (0..=self.edges).map(|clock| choice >> clock & 1 == 1).collect();
                actions.push(Action::Pass { fast });
            }
        }
        if world.committed < self.publishes {
            actions.push(Action::Publish);
        }
        if world.leaders.len() < self.leaders {
            actions.push(Action::Elect);
        }
        if world.restarts < self.restarts {
            actions.push(Action::RestartLeader);
        }
        for at in 0..self.edges {
            self.actions_of_edge(world, at, actions);
        }
        Self::actions_of_network(world, actions);
        if world.returned < world.committed {
            actions.push(Action::Wait);
            for (term, leader) in world.leaders.iter().enumerate() {
                if leader.waits.is_some_and(|seq| seq > world.returned) {
                    actions.push(Action::Return { term });
                }
            }
        }
    }

    fn next_state(&self, before: &World, action: Action) -> Option<World> {
        let mut world = before.clone();
        match action {
            Action::Pass { fast } => {
                world.steps += 1;
                let step = |fast: bool| if fast { 3 * SECOND } else { 2 * SECOND };
                for (edge, fast) in world.edges.iter_mut().zip(&fast) {
                    edge.clock += step(*fast);
                }
                let fast = fast.last().copied()?;
                world.leaders.iter_mut().for_each(|leader| leader.clock += step(fast));
            }
            Action::Publish => {
                world.committed += 1;
                world.leaders.last_mut()?.last = world.committed;
            }
            // Its clock shows something of its own, which no other looks at.
            Action::Elect => world.leaders.push(self.leader(BEGINNING)),
            Action::RestartLeader => self.restart_leader(&mut world),
            Action::Deliver { message, term } => {
                world.network.remove(&message);
                self.deliver(&mut world, message, term);
            }
            Action::Wait => {
                let leader = world.leaders.last_mut()?;
                leader.last = world.committed;
                leader.waits = Some(world.committed);
            }
            Action::Return { term } => {
                let leader = &mut world.leaders[term];
                let seq = leader.waits?;
                let mut grants = leader.grants.clone();
                let settled = |at: usize| {
                    let acked = leader.acked[at] >= seq;
                    grants.settled(node(at), Seq(seq.into()), acked, self.policy, leader.clock)
                };
                if (0..self.edges).all(settled) {
                    world.returned = world.returned.max(seq);
                }
                if !self.is(Mistake::ForgetGivenUp) && !self.is(Mistake::ForgetAcknowledged) {
                    leader.grants = grants;
                }
            }
            action => self.act_on_edge(&mut world, action),
        }
        (world != *before).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Leases>> {
        vec![
            Property::always(NEVER_STALE, |_, world: &World| !world.stale),
            Property::sometimes(
                "a publish returns before an edge has it",
                |model, world: &World| {
                    // Under `available` only the edge itself ends the wait.
                    let behind = |edge: &Edge| edge.table < world.returned;
                    (model.policy == Policy::Available && world.returned > 0)
                        || world.edges.iter().any(behind)
                },
            ),
            Property::sometimes("an edge serves again after that", |_, world: &World| {
                let serves = |edge: &Edge| edge.held.valid(edge.clock) && edge.table > 0;
                world.returned > 0 && world.edges.iter().any(serves)
            }),
        ]
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// No order of events breaks the promise, and the good ones are among those explored.
fn holds(what: &str, model: Leases) {
    let checker = model.checker().threads(threads()).spawn_bfs().join();
    println!("{what}: {} states, depth {}", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
}

fn found(mistake: Mistake, policy: Policy) {
    let restarts = match mistake {
        Mistake::ServeFromDisk | Mistake::ForgetAcknowledged => 1,
        _ => 0,
    };
    let leaders = match mistake {
        Mistake::NoWaitOfANewAuthority | Mistake::NoConfirmation | Mistake::LastReadTooEarly => 2,
        _ => 1,
    };
    // The first two of an edge that lost its table are of its first run.
    let renewals = match mistake {
        Mistake::ForgetAcknowledged => 2,
        _ if leaders == 1 && restarts == 0 => 2,
        _ => 1,
    };
    let model = Leases { restarts, leaders, renewals, ..Leases::small(policy, mistake) };
    let checker = model.checker().threads(threads());
    // Depth first: a counterexample is deep, and one is enough.
    let checker = checker.finish_when(HasDiscoveries::AnyFailures).spawn_dfs().join();
    println!("{mistake:?}: {} states", checker.unique_state_count());
    assert!(checker.discovery(NEVER_STALE).is_some(), "{mistake:?} was not found");
}

#[test]
fn strict_holds() {
    holds("strict", Leases::small(Policy::Strict, Mistake::None));
}

#[test]
fn a_change_of_the_authority_holds() {
    let small = Leases::small(Policy::Strict, Mistake::None);
    holds("two authorities", Leases { leaders: 2, renewals: 1, steps: 3, ..small });
}

#[test]
fn bounded_holds() {
    let small = Leases::small(Policy::Bounded { secs: 2 }, Mistake::None);
    holds("bounded", Leases { steps: 5, renewals: 1, ..small });
}

#[test]
fn available_holds() {
    let small = Leases::small(Policy::Available, Mistake::None);
    holds("available", Leases { steps: 3, ..small });
}

#[test]
fn restarts_hold() {
    let small = Leases::small(Policy::Strict, Mistake::None);
    holds("restarts", Leases { restarts: 1, renewals: 1, ..small });
}

#[test]
fn two_publishes_hold() {
    let small = Leases::small(Policy::Strict, Mistake::None);
    holds("two publishes", Leases { publishes: 2, steps: 3, renewals: 1, ..small });
}

#[test]
fn planted_mistakes_are_found() {
    use Mistake::*;
    for mistake in [
        GrantToOneBehind,
        CountFromReceipt,
        NoMargin,
        NoWaitOfANewAuthority,
        NoConfirmation,
        LastReadTooEarly,
        ForgetGivenUp,
        ForgetAcknowledged,
        NoSecondCheck,
        SecondCheckOfTheLeaseOnly,
        NoFirstCheck,
        AcknowledgeTooEarly,
        ServeFromDisk,
        ForgetGrants,
    ] {
        found(mistake, Policy::Strict);
    }
    found(NoMargin, Policy::Bounded { secs: 2 });
    found(AcknowledgeTooEarly, Policy::Available);
}
