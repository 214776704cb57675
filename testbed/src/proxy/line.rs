//! What a link does to what travels over it, one direction. Pure: time and chance are arguments.

use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;
use tokio::time::Instant;

/// Most bytes on their way in one direction; what comes on top of it is lost (UDP) or not read
/// yet (TCP).
pub const QUEUE_BYTES_MAX: usize = 4 << 20;
/// Most datagrams, or reads, on their way in one direction.
pub const QUEUE_ITEMS_MAX: usize = 8192;

/// How one direction of a link behaves.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Way {
    /// Added to everything.
    pub delay: Duration,
    /// Up to so much more, evenly distributed. Datagrams may overtake each other by it.
    pub jitter: Duration,
    /// Share of datagrams that are lost, 0 to 1. TCP loses nothing.
    pub loss: f64,
    /// Share of datagrams that arrive twice, 0 to 1.
    pub duplicate: f64,
    /// Share of datagrams that are held back for another `delay` and 5 ms, so that later ones
    /// overtake them, 0 to 1.
    pub reorder: f64,
    /// Bytes per second; `None` for as many as the machine can do.
    pub rate: Option<u64>,
    /// Nothing passes: datagrams are lost, TCP waits.
    pub cut: bool,
}

impl Way {
    /// One that only takes time.
    pub fn delayed(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }

    /// One that lets nothing pass.
    pub fn cut() -> Self {
        Self { cut: true, ..Self::default() }
    }
}

/// When what was sent arrives: never, once or twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Arrivals {
    /// The first.
    pub first: Option<Instant>,
    /// The second.
    pub again: Option<Instant>,
}

/// A direction of a link: its chance, and when its rate lets the next byte go.
#[derive(Debug)]
pub struct Line {
    rng: StdRng,
    free_at: Instant,
    last: Instant,
}

impl Line {
    /// One that is idle.
    pub fn new(rng: StdRng, now: Instant) -> Self {
        Self { rng, free_at: now, last: now }
    }

    /// A datagram of so many bytes is sent.
    pub fn datagram(&mut self, way: &Way, bytes: usize, now: Instant) -> Arrivals {
        // The same number of draws whatever the settings are: a seed then means the same fate.
        let [lost, twice, late, jitter, again] = std::array::from_fn(|_| self.rng.random::<f64>());
        if way.cut || lost < way.loss {
            return Arrivals::default();
        }
        let sent = self.pass(way, bytes, now);
        let mut first = sent + way.delay + way.jitter.mul_f64(jitter);
        if late < way.reorder {
            first += way.delay + Duration::from_millis(5);
        }
        let again = (twice < way.duplicate).then(|| sent + way.delay + way.jitter.mul_f64(again));
        Arrivals { first: Some(first), again }
    }

    /// Bytes of a stream are sent: they arrive in order.
    pub fn stream(&mut self, way: &Way, bytes: usize, now: Instant) -> Instant {
        let jitter = self.rng.random::<f64>();
        let arrives = self.pass(way, bytes, now) + way.delay + way.jitter.mul_f64(jitter);
        self.last = self.last.max(arrives);
        self.last
    }

    /// When the last of these bytes is on the line.
    fn pass(&mut self, way: &Way, bytes: usize, now: Instant) -> Instant {
        let Some(rate) = way.rate else {
            self.free_at = now;
            return now;
        };
        let takes = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        self.free_at = self.free_at.max(now) + takes;
        self.free_at
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::seed;

    fn fates(way: &Way, seed: u64) -> Vec<Arrivals> {
        let now = Instant::now();
        let mut line = Line::new(seed::rng(seed), now);
        (0..2000).map(|_| line.datagram(way, 1000, now)).collect()
    }

    #[test]
    fn a_plain_line_passes_everything_at_once() {
        let now = Instant::now();
        let mut line = Line::new(seed::rng(1), now);
        let passed = line.datagram(&Way::default(), 1200, now);
        assert_eq!(passed, Arrivals { first: Some(now), again: None });
        let delay = Duration::from_millis(100);
        assert_eq!(line.stream(&Way::delayed(delay), 5, now), now + delay);
        assert_eq!(line.datagram(&Way::cut(), 1, now), Arrivals::default());
    }

    #[test]
    fn shares_are_about_what_was_asked_for_and_a_seed_repeats_them() {
        let way = Way { loss: 0.2, duplicate: 0.1, reorder: 0.5, ..Way::default() };
        let now = Instant::now();
        let mut line = Line::new(seed::rng(7), now);
        let mut again = Line::new(seed::rng(7), now);
        let fates: Vec<Arrivals> = (0..2000).map(|_| line.datagram(&way, 9, now)).collect();
        assert!(fates.iter().all(|fate| *fate == again.datagram(&way, 9, now)));
        let lost = fates.iter().filter(|fate| fate.first.is_none()).count();
        let twice = fates.iter().filter(|fate| fate.again.is_some()).count();
        let late = fates.iter().filter(|fate| fate.first > Some(now)).count();
        assert!((300..500).contains(&lost), "{lost}");
        assert!((100..230).contains(&twice), "{twice}");
        assert!((650..950).contains(&late), "{late}");
    }

    #[test]
    fn jitter_stays_below_its_bound() {
        let (delay, jitter) = (Duration::from_millis(10), Duration::from_millis(4));
        let begin = Instant::now();
        let times: Vec<Instant> = fates(&Way { delay, jitter, ..Way::default() }, 3)
            .iter()
            .filter_map(|fate| fate.first)
            .collect();
        assert_eq!(times.len(), 2000);
        assert!(times.iter().all(|at| *at >= begin + delay || *at >= begin));
        let spread = *times.iter().max().unwrap() - *times.iter().min().unwrap();
        assert!(spread <= jitter && spread > jitter / 2, "{spread:?}");
    }

    #[test]
    fn a_rate_spaces_what_is_sent_at_once_and_a_stream_keeps_its_order() {
        let now = Instant::now();
        let way = Way { rate: Some(10_000), ..Way::default() };
        let mut line = Line::new(seed::rng(1), now);
        let at: Vec<Instant> =
            (0..3).filter_map(|_| line.datagram(&way, 1000, now).first).collect();
        let after = |ms| now + Duration::from_millis(ms);
        assert_eq!(at, [after(100), after(200), after(300)]);
        // Idle meanwhile: nothing is saved up.
        assert_eq!(line.datagram(&way, 1000, after(900)).first, Some(after(1000)));

        let way = Way { jitter: Duration::from_millis(50), ..Way::default() };
        let times: Vec<Instant> = (0..200).map(|_| line.stream(&way, 10, now)).collect();
        assert!(times.is_sorted());
    }
}
