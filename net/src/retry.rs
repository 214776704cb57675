//! How long to wait before trying again: pure, so that it is tested by the thousand.
//!
//! Whether to retry at all is said by the error ([`crate::call::CallError::retry`]); how often is
//! the caller's budget. This module only spreads out the attempts, and what every node does over and
//! over.

use std::time::Duration;

/// Exponential back-off with full jitter ("Exponential Backoff And Jitter", AWS Architecture
/// Blog, 2015): the delay is uniform between zero and a ceiling that grows with each attempt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// The ceiling of the first delay.
    pub base: Duration,
    /// No delay is longer than this.
    pub max: Duration,
    /// By how much the ceiling grows per attempt; values below 1 count as 1.
    pub factor: f64,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { base: Duration::from_millis(50), max: Duration::from_secs(5), factor: 2.0 }
    }
}

impl Backoff {
    /// The delay before attempt number `attempt + 1`, with `rng_unit` uniform in `0.0..1.0`
    /// (anything outside is clamped).
    pub fn delay(&self, attempt: u32, rng_unit: f64) -> Duration {
        let unit = if rng_unit.is_finite() { rng_unit.clamp(0.0, 1.0) } else { 1.0 };
        // Floats round: of a long delay, up to some nanoseconds beyond it.
        self.ceiling(attempt).mul_f64(unit).min(self.max)
    }

    /// The longest delay that [`Backoff::delay`] can give for this attempt.
    pub fn ceiling(&self, attempt: u32) -> Duration {
        let factor = if self.factor.is_finite() { self.factor.max(1.0) } else { 1.0 };
        let exponent = i32::try_from(attempt).unwrap_or(i32::MAX);
        let seconds = self.base.as_secs_f64() * factor.powi(exponent);
        if seconds.is_finite() && seconds < self.max.as_secs_f64() {
            Duration::from_secs_f64(seconds)
        } else {
            self.max
        }
    }
}

/// The pauses between what each of many nodes does over and over. Nodes that start together, or that
/// lost a master together, would otherwise ask the next one together for ever: of 200 edges, the
/// burst delays whatever comes next to it.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    period: Duration,
    begun: bool,
}

impl Pace {
    /// Pauses of nine tenths of a period and more, never longer than the period.
    pub const fn new(period: Duration) -> Pace {
        Pace { period, begun: false }
    }

    /// The next pause, with `rng_unit` uniform in `0.0..1.0` (anything outside is clamped). The first
    /// is anything up to the period.
    pub fn pause(&mut self, rng_unit: f64) -> Duration {
        let unit = if rng_unit.is_finite() { rng_unit.clamp(0.0, 1.0) } else { 1.0 };
        let share = if self.begun { 0.9 + 0.1 * unit } else { unit };
        self.begun = true;
        self.period.mul_f64(share).min(self.period)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nodes_that_start_together_do_not_stay_together() {
        let mut nodes = [Pace::new(Duration::from_secs(2)); 100];
        let first = |n: usize| Duration::from_millis(20) * u32::try_from(n).unwrap_or(u32::MAX);
        for (n, node) in nodes.iter_mut().enumerate() {
            assert_eq!(node.pause(n as f64 / 100.0), first(n));
            for unit in [0.0, 0.5, 1.0, f64::NAN, 7.0] {
                let pause = node.pause(unit);
                assert!((Duration::from_millis(1_800)..=Duration::from_secs(2)).contains(&pause));
            }
        }
    }

    #[test]
    fn the_ceiling_doubles_up_to_the_maximum() {
        let backoff =
            Backoff { base: Duration::from_millis(100), max: Duration::from_secs(1), factor: 2.0 };
        let ceilings: Vec<u128> = (0..6).map(|n| backoff.delay(n, 1.0).as_millis()).collect();
        assert_eq!(ceilings, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff.delay(3, 0.0), Duration::ZERO);
        assert_eq!(backoff.delay(3, 0.5), Duration::from_millis(400));
    }

    proptest! {
        #[test]
        fn no_input_panics_or_passes_the_maximum(
            base in 0u64..u64::MAX / 2, max in 0u64..u64::MAX / 2,
            factor in any::<f64>(), attempt in any::<u32>(), unit in any::<f64>(),
        ) {
            let backoff = Backoff {
                base: Duration::from_nanos(base),
                max: Duration::from_nanos(max),
                factor,
            };
            prop_assert!(backoff.delay(attempt, unit) <= backoff.max);
        }
    }
}
