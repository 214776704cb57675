//! Response rate limiting: nobody can make this server flood somebody else by asking in their
//! name.
//!
//! Counted are equal answers to one block of addresses, as in BIND, Knot and NSD. Above the limit
//! every second answer is replaced by an empty one that is marked as cut, so that a real client
//! comes back over TCP, and the others are not sent. Clients that showed a cookie of ours and TCP
//! are never limited. The time is an argument.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use super::config::RateLimit;
use super::cookie::siphash24;
use super::subnet::Subnet;

/// Answers that are counted at once, by hash; 512 KiB. A wrong guess costs a client a retry
/// over TCP.
const SLOTS: usize = 1 << 16;
/// Addresses of these blocks count as one client.
const CLIENT_PREFIX_V4: u8 = 24;
const CLIENT_PREFIX_V6: u8 = 56;
/// How much a client that was silent may ask at once, in seconds of its rate.
const BURST_SECS: u64 = 2;

/// What happens to an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// It is sent.
    Send,
    /// An empty one, marked as cut, is sent.
    Cut,
    /// Nothing is sent.
    Drop,
}

/// Counts answers. Shared by all threads.
pub(super) struct Limiter {
    /// For each slot the time in µs at which it is as if nothing had been sent (the theoretical
    /// arrival time of the generic cell rate algorithm, ITU-T I.371).
    slots: Vec<AtomicU64>,
    /// So that nobody can choose whom they collide with.
    key: [u8; 16],
    cost_us: u64,
    exempt: Vec<Subnet>,
    turn: AtomicU64,
}

impl std::fmt::Debug for Limiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limiter").field("cost_us", &self.cost_us).finish_non_exhaustive()
    }
}

impl Limiter {
    /// Nothing if the configuration sets no limit.
    pub(super) fn new(config: &RateLimit, key: [u8; 16]) -> Option<Limiter> {
        let cost_us = 1_000_000u64.checked_div(u64::from(config.per_second))?.max(1);
        let slots = (0..SLOTS).map(|_| AtomicU64::new(0)).collect();
        let exempt = config.exempt.clone();
        Some(Limiter { slots, key, cost_us, exempt, turn: AtomicU64::new(0) })
    }

    /// Counts one answer to `to`; `same` is equal for answers that are.
    pub(super) fn judge(&self, to: IpAddr, same: u64, now_us: u64) -> Judgement {
        let to = to.to_canonical();
        if self.exempt.iter().any(|block| block.covers(to)) {
            return Judgement::Send;
        }
        let (prefix, bits) = match to {
            IpAddr::V4(v4) => (CLIENT_PREFIX_V4, u128::from(v4.to_bits()) << 96),
            IpAddr::V6(v6) => (CLIENT_PREFIX_V6, v6.to_bits()),
        };
        let block = bits >> (128 - u32::from(prefix));
        let mut input = [0; 25];
        input[..16].copy_from_slice(&block.to_be_bytes());
        input[16..24].copy_from_slice(&same.to_be_bytes());
        input[24] = prefix;
        let slot = &self.slots[siphash24(&self.key, &input) as usize % SLOTS];
        let room = BURST_SECS * 1_000_000;
        let counted = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |until| {
            let next = until.max(now_us) + self.cost_us;
            (next <= now_us + room).then_some(next)
        });
        if counted.is_ok() {
            return Judgement::Send;
        }
        match self.turn.fetch_add(1, Ordering::Relaxed) % 2 {
            0 => Judgement::Cut,
            _ => Judgement::Drop,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn limiter(per_second: u32, exempt: &[&str]) -> Option<Limiter> {
        let exempt = exempt.iter().map(|block| block.parse().unwrap()).collect();
        Limiter::new(&RateLimit { per_second, exempt }, [3; 16])
    }

    #[test]
    fn a_flood_of_equal_answers_is_cut_and_nobody_else_notices() {
        let limiter = limiter(100, &["10.0.0.0/8"]).unwrap();
        let victim: IpAddr = "192.0.2.7".parse().unwrap();
        let start = 5_000_000_000;
        let mut judged = [0; 3];
        // 1,000 within one second, from all over the block.
        for index in 0..1000u64 {
            let to = IpAddr::from([192, 0, 2, (index % 256) as u8]);
            judged[limiter.judge(to, 1, start + index * 1000) as usize] += 1;
        }
        let [sent, cut, dropped] = judged;
        assert!((299..=301).contains(&sent), "two seconds' worth, and what comes in: {judged:?}");
        assert!(i32::abs(cut - dropped) <= 1, "{judged:?}");
        let now = start + 999_000;
        assert_eq!(limiter.judge(victim, 2, now), Judgement::Send, "another answer");
        let neighbour = "192.0.3.7".parse().unwrap();
        assert_eq!(limiter.judge(neighbour, 1, now), Judgement::Send, "another block");
        assert_ne!(limiter.judge(victim, 1, now), Judgement::Send);
        assert_eq!(limiter.judge(victim, 1, now + 3_000_000), Judgement::Send, "it is over");
        for _ in 0..1000 {
            let exempt = "10.1.2.3".parse().unwrap();
            assert_eq!(limiter.judge(exempt, 1, now), Judgement::Send);
        }
    }

    #[test]
    fn without_a_limit_there_is_none() {
        assert!(limiter(0, &[]).is_none());
    }
}
