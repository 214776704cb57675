//! A model of leases: edges, authorities that follow each other, clocks that drift, and a network
//! that loses, delays and reorders. It calls the functions of `atoll_proto::lease` and nothing
//! else decides; stateright explores every order of what may happen, up to the bounds.
//!
//! One step of true time advances every clock by 2 or 3 seconds, each as it likes, so that their
//! rates differ by up to half. A lease is 6 s long. A message that is never delivered is lost.
//!
//! Where there is a relay, an edge may use it or not, as it likes, at every step. Upwards a relay is
//! a network that is worse: it may also repeat what it was given, and it does not know the keys with
//! which that is sealed (`atoll_proto::relay`), so that what no edge and no leader has said is never
//! delivered, and what was sealed with another key counts for nothing. Downwards it hands on what it
//! knows itself, which may be older than what the edge has, also because it has just started again.
//!
//! Each planted mistake must be found: it shows that the model can see it.

#![allow(clippy::unwrap_used, reason = "tests")]

mod step;
mod world;

use atoll_proto::lease::Terms;
use atoll_proto::site::Policy;
use stateright::{Checker, HasDiscoveries, Model};

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
    /// It is forgotten what an edge that lost its table had confirmed, and not made up for when it
    /// registers.
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
    /// An edge that starts again gets a lease although it lacks what its earlier run may have
    /// acknowledged, in a message that is still under way.
    ForgetRestart,
    /// An edge takes the grant of one renewal for that of a later one.
    AnyNumber,
    /// A relay acknowledges what it has handed on, and the master believes it.
    RelayAcknowledges,
    /// A relay asks for leases of its own accord, and the master believes what it says is applied.
    RelayRenews,
    /// An edge takes what a relay has, also when that is older.
    GoBack,
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
    /// Whether there is a relay.
    relay: bool,
    /// How often something is delivered twice.
    repeats: u8,
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
            relay: false,
            repeats: 0,
        }
    }

    fn is(&self, mistake: Mistake) -> bool {
        self.mistake == mistake
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

/// The same within bounds that are too narrow for the good ones.
fn is_never_stale(what: &str, model: Leases) {
    let checker = model.checker().threads(threads()).spawn_bfs().join();
    println!("{what}: {} states, depth {}", checker.unique_state_count(), checker.max_depth());
    checker.assert_no_discovery(NEVER_STALE);
}

fn found(mistake: Mistake, policy: Policy) {
    let restarts = match mistake {
        Mistake::ServeFromDisk | Mistake::ForgetAcknowledged | Mistake::ForgetRestart => 1,
        _ => 0,
    };
    let leaders = match mistake {
        Mistake::NoWaitOfANewAuthority | Mistake::NoConfirmation | Mistake::LastReadTooEarly => 2,
        _ => 1,
    };
    // The first two of an edge that lost its table are of its first run.
    let renewals = match mistake {
        Mistake::ForgetAcknowledged | Mistake::ForgetRestart => 2,
        _ if leaders == 1 && restarts == 0 => 2,
        _ => 1,
    };
    let relay = matches!(
        mistake,
        Mistake::AnyNumber | Mistake::RelayAcknowledges | Mistake::RelayRenews | Mistake::GoBack
    );
    // Some need no time to pass, and with a relay much else can happen.
    let (renewals, steps) = match mistake {
        Mistake::ForgetAcknowledged | Mistake::ForgetRestart => (renewals, 0),
        Mistake::RelayAcknowledges | Mistake::RelayRenews | Mistake::GoBack => (1, 0),
        Mistake::AnyNumber => (renewals, 3),
        _ => (renewals, 4),
    };
    let small = Leases::small(policy, mistake);
    let model = Leases { restarts, leaders, renewals, relay, steps, ..small };
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
fn a_relay_holds() {
    let small = Leases::small(Policy::Strict, Mistake::None);
    holds("relay", Leases { relay: true, steps: 3, renewals: 1, ..small.clone() });
    let two = Leases { relay: true, steps: 2, ..small.clone() };
    is_never_stale("relay, two renewals", two);
    let repeats = Leases { relay: true, steps: 2, renewals: 1, repeats: 1, ..small };
    is_never_stale("a relay that repeats", repeats);
}

#[test]
fn a_relay_and_a_change_of_the_authority_hold() {
    let small = Leases::small(Policy::Strict, Mistake::None);
    let two = Leases { relay: true, leaders: 2, renewals: 1, steps: 2, ..small };
    is_never_stale("relay, two authorities", two);
}

#[test]
fn a_relay_and_restarts_hold() {
    let small = Leases::small(Policy::Strict, Mistake::None);
    let one = Leases { relay: true, restarts: 1, renewals: 1, steps: 2, ..small.clone() };
    is_never_stale("relay, restarts", one);
    // What is acknowledged before a restart and arrives after it.
    is_never_stale("restarts, two renewals", Leases { restarts: 1, steps: 2, ..small });
}

#[test]
fn mistakes_with_relays_are_found() {
    use Mistake::*;
    for mistake in [AnyNumber, RelayAcknowledges, RelayRenews, GoBack] {
        found(mistake, Policy::Strict);
    }
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
        ForgetRestart,
    ] {
        found(mistake, Policy::Strict);
    }
    found(NoMargin, Policy::Bounded { secs: 2 });
    found(AcknowledgeTooEarly, Policy::Available);
}
