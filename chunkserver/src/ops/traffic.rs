//! How much clients ask of this server, so that work in the background can make way. `now` is an
//! argument; counting is one lock per request.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Traffic is counted over spans of this length.
const SPAN: Duration = Duration::from_secs(1);
/// So many bytes to or from clients within a span are heavy traffic.
const HEAVY_BYTES: u64 = 32 << 20;
/// And so many requests.
const HEAVY_REQUESTS: u64 = 300;

/// What clients asked lately.
#[derive(Debug, Default)]
pub(crate) struct Traffic(Mutex<Spans>);

#[derive(Debug, Default)]
struct Spans {
    began: Option<Instant>,
    now: Span,
    before: Span,
}

#[derive(Debug, Clone, Copy, Default)]
struct Span {
    requests: u64,
    bytes: u64,
}

impl Traffic {
    /// A client's request was answered, with so many bytes in either direction.
    pub(crate) fn note(&self, bytes: u64, now: Instant) {
        let mut spans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spans.roll(now);
        spans.now.requests += 1;
        spans.now.bytes += bytes;
    }

    /// Whether clients have asked much in the last second or two.
    pub(crate) fn is_heavy(&self, now: Instant) -> bool {
        let mut spans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spans.roll(now);
        let heavy = |span: Span| span.bytes >= HEAVY_BYTES || span.requests >= HEAVY_REQUESTS;
        heavy(spans.now) || heavy(spans.before)
    }
}

impl Spans {
    fn roll(&mut self, now: Instant) {
        let age = self.began.map(|began| now.saturating_duration_since(began));
        match age {
            Some(age) if age < SPAN => {}
            Some(age) => {
                self.before = if age < SPAN * 2 { self.now } else { Span::default() };
                self.now = Span::default();
                self.began = Some(now);
            }
            None => self.began = Some(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_within_a_second_is_heavy_and_is_forgotten() {
        let (traffic, start) = (Traffic::default(), Instant::now());
        assert!(!traffic.is_heavy(start));
        traffic.note(HEAVY_BYTES / 2, start);
        assert!(!traffic.is_heavy(start));
        traffic.note(HEAVY_BYTES / 2, start);
        assert!(traffic.is_heavy(start));
        assert!(traffic.is_heavy(start + SPAN));
        assert!(!traffic.is_heavy(start + SPAN * 2));
        for _ in 0..HEAVY_REQUESTS {
            traffic.note(1, start + SPAN * 3);
        }
        assert!(traffic.is_heavy(start + SPAN * 3));
        assert!(!traffic.is_heavy(start + SPAN * 6));
    }
}
