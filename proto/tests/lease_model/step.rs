//! What follows from what may happen.

use std::collections::BTreeSet;

use atoll_proto::lease::{Grants, Held, MaySend, MayServe, Terms};
use atoll_proto::relay::Asked;
use atoll_proto::site::Policy;
use atoll_proto::{NodeId, Seq};
use stateright::{Model, Property};

use super::world::{Action, Edge, Key, Leader, Message, Request, World};
use super::{BEGINNING, Leases, Mistake, NEVER_STALE, SECOND, TERMS};

impl Leases {
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
        Leader {
            clock,
            last: 0,
            grants,
            acked: vec![0; self.edges],
            keys: vec![None; self.edges],
            waits: None,
        }
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
                let kept = !self.is(Mistake::ForgetAcknowledged);
                acknowledge(&mut world.leaders[term], edge, seq, kept);
            }
            _ => self.deliver_relayed(world, message, term),
        }
    }

    /// As `master/src/liveness/relayed.rs` and `edge/src/relay/uplink.rs` take it.
    fn deliver_relayed(&self, world: &mut World, message: Message, term: usize) {
        let leads = term + 1 == world.leaders.len();
        match message {
            Message::RelayedAck { edge, key, seq }
                if self.believes(&world.leaders[term], edge, key) =>
            {
                acknowledge(&mut world.leaders[term], edge, seq, true);
            }
            Message::RelayedRenew { edge, key, number, applied } => {
                if !leads {
                    return;
                }
                world.leaders[term].last = world.committed;
                let next = Message::RelayedConfirmed { edge, key, number, applied, term };
                world.network.insert(next);
            }
            Message::RelayedConfirmed { edge, key, number, applied, .. } => {
                let leader = &mut world.leaders[term];
                if !self.believes(leader, edge, key) {
                    return;
                }
                acknowledge(leader, edge, applied, true);
                let (applied, last) = (Seq(applied.into()), Seq(leader.last.into()));
                if leader.grants.grant(node(edge), applied, last, leader.clock) {
                    world.network.insert(Message::RelayedGranted { edge, key, number });
                }
            }
            Message::RelayedGranted { edge, number, .. } => {
                let edge = &mut world.edges[edge];
                let Some(asked) = edge.asked else { return };
                let from = match asked.counts_from(number.into()) {
                    None if self.is(Mistake::AnyNumber) => asked.counts_from(world.renewals.into()),
                    from => from,
                };
                if let Some(from) = from {
                    edge.held = edge.held.renewed(from, TERMS);
                }
            }
            _ => {}
        }
    }

    /// Whether a leader takes what is sealed with a key.
    fn believes(&self, leader: &Leader, edge: usize, key: Key) -> bool {
        let forged = self.is(Mistake::RelayAcknowledges) || self.is(Mistake::RelayRenews);
        leader.keys[edge] == Some(key) || forged
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
        let leads = world.leaders.len() - 1;
        if !edge.registered || (self.relay && edge.key.is_none_or(|(term, _)| term < leads)) {
            actions.push(Action::Register { edge: at });
        }
        if self.relay {
            if world.relay > edge.table || (self.is(Mistake::GoBack) && world.relay < edge.table) {
                actions.push(Action::ApplyRelayed { edge: at });
            }
            if world.renewals < self.renewals && edge.registered && edge.key.is_some() {
                actions.push(Action::RenewRelayed { edge: at });
            }
        }
        if world.renewals < self.renewals && edge.registered {
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

    fn actions_of_network(&self, world: &World, actions: &mut Vec<Action>) {
        for message in world.network.iter().copied() {
            let terms = match message {
                Message::Confirmed { term, .. } | Message::RelayedConfirmed { term, .. } => {
                    term..term + 1
                }
                Message::Granted { .. } | Message::RelayedGranted { .. } => 0..1,
                _ => 0..world.leaders.len(),
            };
            for term in terms {
                actions.push(Action::Deliver { message, term, again: false });
                // Between a relay and the masters too each message is a request of its own, which
                // comes once; but the relay may ask again.
                let repeats = matches!(
                    message,
                    Message::RelayedAck { .. }
                        | Message::RelayedRenew { .. }
                        | Message::RelayedGranted { .. }
                );
                if repeats && world.repeats < self.repeats {
                    actions.push(Action::Deliver { message, term, again: true });
                }
            }
        }
    }

    fn restart_leader(&self, world: &mut World) {
        world.restarts += 1;
        let term = world.leaders.len() - 1;
        world.leaders[term] = self.leader(world.leaders[term].clock);
        // What it was working on is gone with it.
        let is_its = |message: &Message| match message {
            Message::Confirmed { term: of, .. } | Message::RelayedConfirmed { term: of, .. } => {
                *of == term
            }
            _ => false,
        };
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
                (edge.registered, edge.key, edge.asked) = (false, None, None);
                if !self.is(Mistake::ServeFromDisk) {
                    edge.held = Held::default();
                }
            }
            Action::Register { edge } => {
                let term = world.leaders.len() - 1;
                let leader = &mut world.leaders[term];
                leader.last = world.committed;
                if !self.is(Mistake::ForgetRestart) && !self.is(Mistake::ForgetAcknowledged) {
                    leader.grants.began(node(edge), Seq(world.committed.into()));
                }
                world.edges[edge].registered = true;
                if self.relay {
                    world.keys += 1;
                    let key = (term, world.keys);
                    leader.keys[edge] = Some(key);
                    world.edges[edge].key = Some(key);
                }
            }
            Action::ApplyRelayed { edge: at } => {
                let seq = world.relay;
                let edge = &mut world.edges[at];
                if !self.is(Mistake::RelayAcknowledges) {
                    edge.table = seq;
                }
                if let Some(key) = edge.key {
                    world.network.insert(Message::RelayedAck { edge: at, key, seq });
                }
            }
            Action::RenewRelayed { edge: at } => {
                world.renewals += 1;
                let (number, edge) = (world.renewals, &mut world.edges[at]);
                edge.asked = Some(Asked::new(number.into(), edge.clock));
                if let Some(key) = edge.key {
                    let applied = edge.table;
                    let renew = Message::RelayedRenew { edge: at, key, number, applied };
                    world.network.insert(renew);
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

/// An edge has applied this, by its own word.
fn acknowledge(leader: &mut Leader, edge: usize, seq: u8, kept: bool) {
    leader.acked[edge] = leader.acked[edge].max(seq);
    if kept {
        leader.grants.acknowledged(node(edge), Seq(seq.into()));
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
        let edge = Edge {
            clock: BEGINNING,
            table: 0,
            held,
            run: 0,
            registered: true,
            key: None,
            asked: None,
            request: None,
        };
        vec![World {
            edges: vec![edge; self.edges],
            leaders: vec![self.leader(BEGINNING)],
            network: BTreeSet::new(),
            relay: 0,
            keys: 0,
            committed: 0,
            returned: 0,
            steps: 0,
            renewals: 0,
            requests: 0,
            restarts: 0,
            repeats: 0,
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
        if self.relay && world.relay < world.committed {
            actions.push(Action::RelayFollows);
        }
        if world.restarts < self.restarts && world.relay > 0 {
            actions.push(Action::RestartRelay);
        }
        for at in 0..self.edges {
            self.actions_of_edge(world, at, actions);
        }
        self.actions_of_network(world, actions);
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
            Action::RelayFollows => {
                world.relay = world.committed;
                if self.is(Mistake::RelayRenews) {
                    let (number, applied) = (world.renewals, world.relay);
                    let key = (0, 0);
                    let renew = Message::RelayedRenew { edge: 0, key, number, applied };
                    world.network.insert(renew);
                }
            }
            Action::RestartRelay => {
                world.restarts += 1;
                world.relay = 0;
            }
            Action::Deliver { message, term, again } => {
                world.repeats += u8::from(again);
                if !again {
                    world.network.remove(&message);
                }
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
