//! A circuit breaker: stops asking an upstream that fails, and finds out when it is back
//! (Nygard, "Release It!", 2007).
//!
//! Pure: `now` is an argument. [`super::shield`] and [`super::origin`] keep one per upstream.

use std::time::{Duration, Instant};

/// Failures in a row that open the circuit.
const FAILURES: u32 = 5;
/// How long it stays open the first time; doubled with every failed trial.
const OPEN_FIRST: Duration = Duration::from_millis(500);
const OPEN_MAX: Duration = Duration::from_secs(15);
/// A trial that was not answered for this long was forgotten: another may be made.
const TRIAL: Duration = Duration::from_secs(20);

/// The state of one upstream.
#[derive(Debug, Clone)]
pub struct Breaker {
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Requests pass; so many failed in a row.
    Closed { failures: u32 },
    /// No request passes until then.
    Open { until: Instant, period: Duration },
    /// One request passes, to find out.
    HalfOpen { trial_since: Option<Instant>, period: Duration },
}

impl Default for Breaker {
    fn default() -> Breaker {
        Breaker { state: State::Closed { failures: 0 } }
    }
}

impl Breaker {
    /// Whether a request may be made. In the half-open state this takes the one trial, so it must
    /// be followed by the request and its outcome.
    pub fn allow(&mut self, now: Instant) -> bool {
        match self.state {
            State::Closed { .. } => true,
            State::Open { until, .. } if now < until => false,
            State::Open { period, .. } => {
                self.state = State::HalfOpen { trial_since: Some(now), period };
                true
            }
            State::HalfOpen { trial_since: Some(since), .. } if now < since + TRIAL => false,
            State::HalfOpen { period, .. } => {
                self.state = State::HalfOpen { trial_since: Some(now), period };
                true
            }
        }
    }

    /// Whether a request would be allowed; takes nothing.
    pub fn is_open(&self, now: Instant) -> bool {
        match self.state {
            State::Closed { .. } => false,
            State::Open { until, .. } => now < until,
            State::HalfOpen { trial_since, .. } => {
                trial_since.is_some_and(|since| now < since + TRIAL)
            }
        }
    }

    /// The upstream answered.
    pub fn succeeded(&mut self) {
        self.state = State::Closed { failures: 0 };
    }

    /// The upstream did not answer, or with something that is no answer.
    pub fn failed(&mut self, now: Instant) {
        self.state = match self.state {
            State::Closed { failures } if failures + 1 < FAILURES => {
                State::Closed { failures: failures + 1 }
            }
            State::Closed { .. } => State::Open { until: now + OPEN_FIRST, period: OPEN_FIRST },
            // A request from before it opened says nothing new.
            State::Open { until, period } => State::Open { until, period },
            State::HalfOpen { period, .. } => {
                let period = (period * 2).min(OPEN_MAX);
                State::Open { until: now + period, period }
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_failures_in_a_row_and_closes_after_a_good_trial() {
        let start = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..FAILURES - 1 {
            breaker.failed(start);
        }
        breaker.succeeded();
        for _ in 0..FAILURES - 1 {
            breaker.failed(start);
            assert!(breaker.allow(start));
        }
        breaker.failed(start);
        assert!(!breaker.allow(start) && breaker.is_open(start));
        let later = start + OPEN_FIRST;
        assert!(!breaker.is_open(later));
        assert!(breaker.allow(later));
        assert!(!breaker.allow(later), "one trial at a time");
        breaker.succeeded();
        assert!(breaker.allow(later) && breaker.allow(later));
    }

    #[test]
    fn failed_trials_wait_longer_up_to_a_bound() {
        let mut now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..FAILURES {
            breaker.failed(now);
        }
        let mut period = OPEN_FIRST;
        for _ in 0..10 {
            now += period;
            assert!(breaker.allow(now));
            breaker.failed(now);
            period = (period * 2).min(OPEN_MAX);
            assert!(!breaker.allow(now + period - Duration::from_millis(1)));
        }
        assert_eq!(period, OPEN_MAX);
    }

    #[test]
    fn a_forgotten_trial_does_not_block_for_ever() {
        let mut now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..FAILURES {
            breaker.failed(now);
        }
        now += OPEN_FIRST;
        assert!(breaker.allow(now));
        assert!(!breaker.allow(now));
        assert!(breaker.allow(now + TRIAL));
    }
}
