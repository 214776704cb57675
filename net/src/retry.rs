//! How long to wait before trying again: pure, so that it is tested by the thousand.
//!
//! Whether to retry at all is said by the error ([`crate::call::CallError::retry`]); how often is
//! the caller's budget. This module only spreads the attempts out.

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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
