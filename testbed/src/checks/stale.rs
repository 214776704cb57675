//! `never_stale_after_ack` and `log_order`: what visitors saw against what was published. Pure.
//!
//! A history is made by a run: who asked when and what they saw, which publishes were acknowledged
//! when, and the publish log as the masters tell it. All times are of one clock, that of the
//! process which started the requests and waited for the publishes.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What a visitor saw.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Seen {
    /// An answer of this deploy.
    Deploy(String),
    /// An answer that is of no deploy, such as a 503: its status.
    Refused(u16),
    /// No whole answer; why.
    Failed(String),
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// When it was sent, on an open connection; since the run began.
    pub start: Duration,
    /// When its answer was whole, or it was given up.
    pub end: Duration,
    /// Who asked whom, such as `edge-1 H3`.
    pub visitor: String,
    /// What came of it.
    pub seen: Seen,
}

/// One entry of the publish log that points the alias at a deploy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the log.
    pub seq: u64,
    /// The deploy.
    pub deploy: String,
}

/// A publish (or an invalidation) that was acknowledged: no edge may answer with what was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledged {
    /// Its place in the log. For an invalidation no deploy changes there; those before it hold.
    pub seq: u64,
    /// When the command began: nothing at this place of the log or later was in force before.
    /// Commands follow each other; none begins before the one before it has ended.
    pub begun: Duration,
    /// When the command had returned.
    pub at: Duration,
}

/// What happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Publishes {
    /// The log, in order.
    pub log: Vec<Entry>,
    /// Acknowledgements, in any order.
    pub acknowledged: Vec<Acknowledged>,
}

/// An answer that should not have been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stale {
    /// Of a deploy that was replaced before the request began.
    Older {
        /// The request.
        request: Request,
        /// The newest place of its deploy in the log.
        seq: u64,
        /// The newest place acknowledged before it began.
        acknowledged: Acknowledged,
    },
    /// Of a deploy that was never published here.
    Unpublished(Request),
    /// The history itself makes no sense.
    History(String),
}

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Older { request, seq, acknowledged } => write!(
                f,
                "{} asked at {:?} and at {:?} had {:?} (seq {seq}), though seq {} was acknowledged \
                 at {:?}",
                request.visitor,
                request.start,
                request.end,
                request.seen,
                acknowledged.seq,
                acknowledged.at
            ),
            Self::Unpublished(request) => write!(
                f,
                "{} asked at {:?} and had {:?}, which nobody published",
                request.visitor, request.start, request.seen
            ),
            Self::History(reason) => write!(f, "the history makes no sense: {reason}"),
        }
    }
}

/// No request that began after a publish was acknowledged may see an older deploy than the newest
/// one acknowledged by then. Returns the requests that saw a deploy at all.
///
/// A deploy that is published twice counts by its latest place that can have been in force before
/// the answer, since nobody can tell which of the two it is of; a newer deploy than the
/// acknowledged one is always right, whether its own publish was acknowledged or not.
///
/// # Errors
/// With every answer that breaks it.
pub fn never_stale_after_ack(
    publishes: &Publishes,
    requests: &[Request],
) -> Result<usize, Vec<Stale>> {
    let mut places: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    let mut before = None;
    for entry in &publishes.log {
        if before.is_some_and(|before| before >= entry.seq) {
            return Err(vec![Stale::History(format!("seq {} is out of order", entry.seq))]);
        }
        before = Some(entry.seq);
        places.entry(&entry.deploy).or_default().push(entry.seq);
    }
    let floors = Floors::new(publishes);
    let beginnings = Beginnings::new(publishes);
    let mut wrong = Vec::new();
    let mut seen = 0;
    for request in requests {
        let Seen::Deploy(deploy) = &request.seen else { continue };
        seen += 1;
        let places = places.get(deploy.as_str()).map(Vec::as_slice).unwrap_or_default();
        let possible = |seq: &&u64| beginnings.of(**seq) < request.end;
        let Some(&seq) = places.iter().rev().find(possible) else {
            wrong.push(Stale::Unpublished(request.clone()));
            continue;
        };
        if let Some((floor, acknowledged)) = floors.at(request.start)
            && seq < floor
        {
            wrong.push(Stale::Older { request: request.clone(), seq, acknowledged });
        }
    }
    if wrong.is_empty() { Ok(seen) } else { Err(wrong) }
}

/// Before when nothing at a place of the log was in force, by what is known of the commands.
struct Beginnings(Vec<(u64, Duration)>);

impl Beginnings {
    fn new(publishes: &Publishes) -> Self {
        let mut known: Vec<(u64, Duration)> =
            publishes.acknowledged.iter().map(|ack| (ack.seq, ack.begun)).collect();
        known.sort_unstable();
        // What comes later in the log was there later.
        let mut latest = Duration::ZERO;
        for (_, begun) in &mut known {
            latest = latest.max(*begun);
            *begun = latest;
        }
        Self(known)
    }

    fn of(&self, seq: u64) -> Duration {
        let before = self.0.partition_point(|(known, _)| *known <= seq);
        before.checked_sub(1).map(|at| self.0[at].1).unwrap_or_default()
    }
}

/// What was acknowledged by when: the place in the log of the deploy that then was in force.
struct Floors(Vec<(u64, Acknowledged)>);

impl Floors {
    fn new(publishes: &Publishes) -> Self {
        let mut acknowledged = publishes.acknowledged.clone();
        acknowledged.sort_by_key(|ack| ack.at);
        let mut floors: Vec<(u64, Acknowledged)> = Vec::new();
        for ack in acknowledged {
            // The last deploy at or before it: an invalidation changes none.
            let reached = publishes.log.partition_point(|entry| entry.seq <= ack.seq);
            let Some(entry) = reached.checked_sub(1).map(|at| &publishes.log[at]) else { continue };
            if floors.last().is_none_or(|(floor, _)| *floor < entry.seq) {
                floors.push((entry.seq, ack));
            }
        }
        Self(floors)
    }

    fn at(&self, start: Duration) -> Option<(u64, Acknowledged)> {
        // At the very moment is not after.
        let known = self.0.partition_point(|(_, ack)| ack.at < start);
        known.checked_sub(1).map(|at| self.0[at])
    }
}

/// One of several deploys that raced with `--if-current`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Racer {
    /// What it wanted to publish.
    pub deploy: String,
    /// Whether it won: exit code 0 (or 6), as against 4.
    pub won: bool,
}

/// In each round exactly one racer wins; the log holds the winners and nobody else, in the order
/// of the rounds; and each visitor saw deploys in the order of the log. `served` is what each
/// visitor saw over one connection, answer by answer.
///
/// # Errors
/// With what is wrong.
pub fn log_order(
    rounds: &[Vec<Racer>],
    log: &[Entry],
    served: &[(String, Vec<String>)],
) -> Result<(), String> {
    let mut winners = Vec::new();
    for (number, round) in rounds.iter().enumerate() {
        let won: Vec<&Racer> = round.iter().filter(|racer| racer.won).collect();
        match won.as_slice() {
            [one] => winners.push(one.deploy.as_str()),
            many => return Err(format!("round {number}: {} winners: {many:?}", many.len())),
        }
    }
    let logged: Vec<&str> = log.iter().map(|entry| entry.deploy.as_str()).collect();
    if logged != winners {
        return Err(format!("the log has {logged:?}, the winners were {winners:?}"));
    }
    for (visitor, deploys) in served {
        // Each answer is at the place of the one before or at a later one.
        let mut at = 0;
        for deploy in deploys {
            match logged[at..].iter().position(|there| there == deploy) {
                Some(further) => at += further,
                None => {
                    return Err(format!(
                        "{visitor} saw {deploy} after {}, which the log {logged:?} has not",
                        logged.get(at).copied().unwrap_or("nothing")
                    ));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn log(deploys: &[&str]) -> Vec<Entry> {
        let entry = |(at, deploy): (usize, &&str)| Entry {
            seq: at as u64 * 10 + 10,
            deploy: (*deploy).to_owned(),
        };
        deploys.iter().enumerate().map(entry).collect()
    }

    fn ask(start: u64, end: u64, deploy: &str) -> Request {
        let visitor = "edge-1 H2".to_owned();
        Request { start: ms(start), end: ms(end), visitor, seen: Seen::Deploy(deploy.to_owned()) }
    }

    fn publishes(deploys: &[&str], acknowledged: &[(u64, u64)]) -> Publishes {
        // Each takes 5 ms.
        let ack = |(seq, at): &(u64, u64)| Acknowledged {
            seq: *seq,
            begun: ms(at.saturating_sub(5)),
            at: ms(*at),
        };
        Publishes { log: log(deploys), acknowledged: acknowledged.iter().map(ack).collect() }
    }

    #[test]
    fn an_old_answer_is_right_until_the_newer_publish_has_returned() {
        let made = publishes(&["a", "b"], &[(10, 5), (20, 100)]);
        let asked = [ask(6, 7, "a"), ask(99, 300, "a"), ask(100, 300, "a"), ask(101, 102, "b")];
        assert_eq!(never_stale_after_ack(&made, &asked), Ok(4));
    }

    #[test]
    fn an_older_answer_to_a_request_that_began_later_is_caught() {
        let made = publishes(&["a", "b"], &[(10, 5), (20, 100)]);
        let wrong = never_stale_after_ack(&made, &[ask(101, 102, "a")]).unwrap_err();
        let [Stale::Older { seq: 10, acknowledged, .. }] = wrong.as_slice() else {
            panic!("{wrong:?}")
        };
        assert_eq!(*acknowledged, Acknowledged { seq: 20, begun: ms(95), at: ms(100) });
        assert!(wrong[0].to_string().contains("edge-1 H2"), "{}", wrong[0]);
    }

    #[test]
    fn the_newest_acknowledgement_counts_in_whatever_order_they_come() {
        // The third was acknowledged before the second.
        let made = publishes(&["a", "b", "c"], &[(30, 100), (20, 200)]);
        assert!(never_stale_after_ack(&made, &[ask(101, 102, "b")]).is_err());
        assert!(never_stale_after_ack(&made, &[ask(201, 202, "b")]).is_err());
        assert!(never_stale_after_ack(&made, &[ask(201, 202, "c"), ask(99, 150, "a")]).is_ok());
    }

    #[test]
    fn what_nobody_confirmed_may_be_seen_or_not() {
        let made = publishes(&["a", "b", "c"], &[(20, 100)]);
        assert!(never_stale_after_ack(&made, &[ask(150, 151, "c"), ask(160, 161, "b")]).is_ok());
        assert!(never_stale_after_ack(&made, &[ask(150, 151, "a")]).is_err());
    }

    #[test]
    fn a_rollback_makes_the_older_deploy_the_newer_one() {
        let made = publishes(&["a", "b", "a"], &[(20, 100), (30, 200)]);
        let good = [ask(201, 202, "a"), ask(101, 196, "a"), ask(98, 99, "a")];
        assert!(never_stale_after_ack(&made, &good).is_ok());
        assert!(never_stale_after_ack(&made, &[ask(201, 202, "b")]).is_err());
        // Before the rollback began it was the older one.
        assert!(never_stale_after_ack(&made, &[ask(101, 195, "a")]).is_err());
        // The rollback of which nothing is known may have been there when the request came.
        let unknown = publishes(&["a", "b", "a"], &[(20, 100)]);
        assert!(never_stale_after_ack(&unknown, &[ask(101, 195, "a")]).is_ok());
    }

    #[test]
    fn an_invalidation_covers_the_deploy_before_it() {
        // Deploy `b` returned without waiting; the invalidation after it waited.
        let made = publishes(&["a", "b"], &[(10, 5), (25, 100)]);
        assert!(never_stale_after_ack(&made, &[ask(101, 102, "a")]).is_err());
        assert!(never_stale_after_ack(&made, &[ask(99, 102, "a"), ask(101, 102, "b")]).is_ok());
    }

    #[test]
    fn no_answer_is_no_stale_answer_and_an_unknown_deploy_is_wrong() {
        let made = publishes(&["a", "b"], &[(20, 100)]);
        let with = |seen| Request { seen, ..ask(101, 102, "") };
        let none = [with(Seen::Refused(503)), with(Seen::Failed("reset".into()))];
        assert_eq!(never_stale_after_ack(&made, &none), Ok(0));
        let wrong = never_stale_after_ack(&made, &[ask(1, 2, "z")]).unwrap_err();
        assert!(matches!(wrong.as_slice(), [Stale::Unpublished(_)]));
        let mut twisted = made;
        twisted.log.reverse();
        let wrong = never_stale_after_ack(&twisted, &[]).unwrap_err();
        assert!(matches!(wrong.as_slice(), [Stale::History(_)]));
    }

    fn race(round: &[(&str, bool)]) -> Vec<Racer> {
        let racer = |(deploy, won): &(&str, bool)| Racer { deploy: (*deploy).into(), won: *won };
        round.iter().map(racer).collect()
    }

    #[test]
    fn a_race_has_one_winner_and_the_log_has_the_winners() {
        let rounds = [race(&[("a", true), ("b", false)]), race(&[("c", false), ("d", true)])];
        let saw = |deploys: &[&str]| {
            vec![("edge-1".to_owned(), deploys.iter().map(|&deploy| deploy.to_owned()).collect())]
        };
        assert_eq!(log_order(&rounds, &log(&["a", "d"]), &saw(&["a", "a", "d"])), Ok(()));
        assert_eq!(log_order(&rounds, &log(&["a", "d"]), &saw(&["d"])), Ok(()));
        for (rounds, logged, served) in [
            (&rounds[..], log(&["a", "c"]), saw(&[])),
            (&rounds[..], log(&["a", "d"]), saw(&["d", "a"])),
            (&rounds[..], log(&["a", "d"]), saw(&["b"])),
            (&rounds[..], log(&["a", "b", "d"]), saw(&[])),
            (&[race(&[("a", true), ("b", true)])][..], log(&["a"]), saw(&[])),
            (&[race(&[("a", false)])][..], log(&[]), saw(&[])),
        ] {
            assert!(log_order(rounds, &logged, &served).is_err(), "{rounds:?} {served:?}");
        }
    }
}
