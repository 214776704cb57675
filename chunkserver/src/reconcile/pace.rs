//! How fast work in the background may go: a bucket of bytes that fills at a rate. It has no
//! clock: `now` is an argument.

use std::time::Duration;

use tokio::time::Instant;

/// A bucket never holds more than it gets in this time.
const BURST: Duration = Duration::from_secs(1);

/// A rate in bytes per second, and what may be spent now.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_s: f64,
    /// Below zero: so much was spent ahead.
    allowance: f64,
    at: Instant,
}

impl Pace {
    pub(crate) fn new(bytes_per_s: u64, now: Instant) -> Self {
        Self { bytes_per_s: (bytes_per_s as f64).max(1.0), allowance: 0.0, at: now }
    }

    /// Changes the rate from now on.
    pub(crate) fn set(&mut self, bytes_per_s: u64, now: Instant) {
        self.fill(now);
        self.bytes_per_s = (bytes_per_s as f64).max(1.0);
    }

    /// So much was read or moved.
    pub(crate) fn spend(&mut self, bytes: u64, now: Instant) {
        self.fill(now);
        self.allowance -= bytes as f64;
    }

    /// How long until it may go on.
    pub(crate) fn wait(&mut self, now: Instant) -> Duration {
        self.fill(now);
        if self.allowance >= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(-self.allowance / self.bytes_per_s).unwrap_or(Duration::MAX)
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        let most = self.bytes_per_s * BURST.as_secs_f64();
        self.allowance = (self.allowance + passed * self.bytes_per_s).min(most);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_more_is_spent_than_the_rate_allows(
            rate in 1..10_000_000u64, pieces in prop::collection::vec(0..20_000_000u64, 1..50),
        ) {
            let start = Instant::now();
            let (mut pace, mut now, mut spent) = (Pace::new(rate, start), start, 0);
            for piece in &pieces {
                now += pace.wait(now);
                pace.spend(*piece, now);
                spent += piece;
            }
            now += pace.wait(now);
            let seconds = (now - start).as_secs_f64();
            prop_assert!(spent as f64 <= rate as f64 * (seconds + 0.001) + 1.0);
        }
    }

    #[test]
    fn what_was_not_used_is_kept_for_a_second_only() {
        let start = Instant::now();
        let mut pace = Pace::new(100, start);
        let later = start + Duration::from_secs(1000);
        pace.spend(100, later);
        assert_eq!(pace.wait(later), Duration::ZERO);
        pace.spend(100, later);
        assert_eq!(pace.wait(later), Duration::from_secs(1));
        pace.set(200, later);
        assert_eq!(pace.wait(later), Duration::from_millis(500));
    }
}
