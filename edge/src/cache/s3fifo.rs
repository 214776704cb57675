//! S3-FIFO: which entries stay in memory ("FIFO queues are all you need for cache eviction",
//! Yang et al., SOSP 2023).
//!
//! New entries go to a small queue (a tenth of the bytes); those asked for again there move to the
//! main queue; the others leave, and only their names are remembered for a while in the ghost
//! queue, from where a second arrival goes to the main queue at once. So a flood of names that are
//! asked for once cannot push out what is used. A hit changes a counter and moves nothing, so it
//! needs only a shared reference. Pure: no clock, no locks; [`super::Cache`] adds those.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// The small queue's share of the capacity: one part in this many.
const SMALL_SHARE: usize = 10;
/// Counting hits further than this would keep what was popular once for too long.
const FREQUENCY_MAX: u8 = 3;
/// Names remembered however few entries there are.
const GHOSTS_MIN: usize = 256;

/// A cache bounded in bytes.
#[derive(Debug)]
pub struct S3Fifo<K, V> {
    entries: HashMap<K, Slot<V>>,
    small: VecDeque<Ticket<K>>,
    main: VecDeque<Ticket<K>>,
    small_bytes: usize,
    main_bytes: usize,
    capacity: usize,
    ghosts: HashMap<K, u64>,
    ghost_order: VecDeque<Ticket<K>>,
    next: u64,
}

/// What had to leave.
#[derive(Debug, PartialEq, Eq)]
pub struct Evicted<K, V> {
    /// Its name.
    pub key: K,
    /// The value.
    pub value: V,
    /// How often it was asked for since it came.
    pub hits: u32,
}

/// A place in a queue; void when its number is not the slot's any more.
#[derive(Debug)]
struct Ticket<K> {
    key: K,
    number: u64,
}

#[derive(Debug)]
struct Slot<V> {
    value: V,
    bytes: usize,
    number: u64,
    in_main: bool,
    frequency: AtomicU8,
    hits: AtomicU32,
}

impl<K: Hash + Eq + Clone, V> S3Fifo<K, V> {
    /// An empty cache for so many bytes.
    pub fn new(capacity: usize) -> S3Fifo<K, V> {
        S3Fifo {
            entries: HashMap::new(),
            small: VecDeque::new(),
            main: VecDeque::new(),
            small_bytes: 0,
            main_bytes: 0,
            capacity,
            ghosts: HashMap::new(),
            ghost_order: VecDeque::new(),
            next: 0,
        }
    }

    /// The value, and how often it was asked for with this time.
    pub fn get(&self, key: &K) -> Option<(&V, u32)> {
        let slot = self.entries.get(key)?;
        let frequency = slot.frequency.load(Ordering::Relaxed);
        if frequency < FREQUENCY_MAX {
            // Two hits at once may count as one: the counter is a hint.
            slot.frequency.store(frequency + 1, Ordering::Relaxed);
        }
        let hits = slot.hits.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        Some((&slot.value, hits))
    }

    /// The value, without counting a hit.
    pub fn peek(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|slot| &slot.value)
    }

    /// Adds an entry and returns what had to leave for it. One that is there stays as it is; one
    /// that is larger than the cache is not admitted.
    pub fn insert(&mut self, key: K, value: V, bytes: usize) -> Vec<Evicted<K, V>> {
        if bytes > self.capacity || self.entries.contains_key(&key) {
            return Vec::new();
        }
        let mut evicted = Vec::new();
        while self.bytes() + bytes > self.capacity {
            match self.evict() {
                Some(entry) => evicted.extend(entry),
                None => break,
            }
        }
        let in_main = self.ghosts.remove(&key).is_some();
        let number = self.number();
        let ticket = Ticket { key: key.clone(), number };
        if in_main {
            self.main.push_back(ticket);
            self.main_bytes += bytes;
        } else {
            self.small.push_back(ticket);
            self.small_bytes += bytes;
        }
        let (frequency, hits) = (AtomicU8::new(0), AtomicU32::new(0));
        self.entries.insert(key, Slot { value, bytes, number, in_main, frequency, hits });
        evicted
    }

    /// Takes an entry out, and forgets that it was there.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.ghosts.remove(key);
        let slot = self.entries.remove(key)?;
        if slot.in_main {
            self.main_bytes -= slot.bytes;
        } else {
            self.small_bytes -= slot.bytes;
        }
        self.compact();
        Some(slot.value)
    }

    /// The keys of all entries, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.entries.keys()
    }

    /// Bytes of all entries.
    pub fn bytes(&self) -> usize {
        self.small_bytes + self.main_bytes
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Makes one step of eviction. `None` when there is nothing left; `Some(None)` when an entry
    /// only moved.
    fn evict(&mut self) -> Option<Option<Evicted<K, V>>> {
        let small_is_full = self.small_bytes >= self.capacity / SMALL_SHARE;
        if (small_is_full || self.main_bytes == 0) && self.small_bytes > 0 {
            return self.evict_small();
        }
        if self.main_bytes > 0 { self.evict_main() } else { self.evict_small() }
    }

    fn evict_small(&mut self) -> Option<Option<Evicted<K, V>>> {
        let ticket = self.small.pop_front()?;
        let Some(slot) = self.entries.get_mut(&ticket.key) else {
            return Some(None);
        };
        if slot.number != ticket.number || slot.in_main {
            return Some(None);
        }
        if slot.frequency.load(Ordering::Relaxed) > 1 {
            slot.in_main = true;
            slot.frequency.store(0, Ordering::Relaxed);
            self.small_bytes -= slot.bytes;
            self.main_bytes += slot.bytes;
            self.main.push_back(ticket);
            return Some(None);
        }
        self.remember(ticket.key.clone());
        Some(self.take(ticket.key))
    }

    fn evict_main(&mut self) -> Option<Option<Evicted<K, V>>> {
        let ticket = self.main.pop_front()?;
        let Some(slot) = self.entries.get(&ticket.key) else {
            return Some(None);
        };
        if slot.number != ticket.number {
            return Some(None);
        }
        let frequency = slot.frequency.load(Ordering::Relaxed);
        if frequency > 0 {
            slot.frequency.store(frequency - 1, Ordering::Relaxed);
            self.main.push_back(ticket);
            return Some(None);
        }
        Some(self.take(ticket.key))
    }

    fn take(&mut self, key: K) -> Option<Evicted<K, V>> {
        let slot = self.entries.remove(&key)?;
        if slot.in_main {
            self.main_bytes -= slot.bytes;
        } else {
            self.small_bytes -= slot.bytes;
        }
        Some(Evicted { key, value: slot.value, hits: slot.hits.into_inner() })
    }

    fn remember(&mut self, key: K) {
        let number = self.number();
        self.ghosts.insert(key.clone(), number);
        self.ghost_order.push_back(Ticket { key, number });
        let most = self.entries.len().max(GHOSTS_MIN);
        while self.ghosts.len() > most || self.ghost_order.len() > 2 * most {
            let Some(oldest) = self.ghost_order.pop_front() else {
                break;
            };
            if self.ghosts.get(&oldest.key) == Some(&oldest.number) {
                self.ghosts.remove(&oldest.key);
            }
        }
    }

    /// Drops void tickets once they are the larger part of a queue.
    fn compact(&mut self) {
        if self.small.len() + self.main.len() <= 2 * self.entries.len() + 64 {
            return;
        }
        let entries = &self.entries;
        let holds = |ticket: &Ticket<K>, in_main: bool| {
            entries
                .get(&ticket.key)
                .is_some_and(|slot| slot.number == ticket.number && slot.in_main == in_main)
        };
        self.small.retain(|ticket| holds(ticket, false));
        self.main.retain(|ticket| holds(ticket, true));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_scan_does_not_push_out_what_is_used() {
        let mut cache = S3Fifo::new(100);
        for key in 0..20u32 {
            cache.insert(key, key, 1);
            cache.get(&key);
            cache.get(&key);
        }
        for key in 1000..5000u32 {
            cache.insert(key, key, 1);
            if key % 10 == 0 {
                for used in 0..20 {
                    cache.get(&used);
                }
            }
        }
        assert!((0..20).all(|key| cache.peek(&key).is_some()));
        assert!(cache.bytes() <= 100);
    }

    #[test]
    fn a_second_arrival_goes_to_the_main_queue() {
        let mut cache = S3Fifo::new(10);
        cache.insert("again", 0, 1);
        for filler in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
            cache.insert(filler, 0, 1);
        }
        assert!(cache.peek(&"again").is_none());
        cache.insert("again", 1, 1);
        assert!(cache.entries[&"again"].in_main);
    }

    #[test]
    fn what_leaves_tells_how_often_it_was_used() {
        let mut cache = S3Fifo::new(2);
        cache.insert("a", 1, 1);
        assert_eq!(cache.get(&"a"), Some((&1, 1)));
        cache.insert("b", 2, 1);
        let evicted = cache.insert("c", 3, 1);
        assert_eq!(evicted, [Evicted { key: "a", value: 1, hits: 1 }]);
        assert!(cache.insert("huge", 4, 3).is_empty());
        assert!(cache.peek(&"huge").is_none());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Get(u8),
        Insert(u8, usize),
        Remove(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u8..40).prop_map(Step::Get),
            (0u8..40, 0usize..30).prop_map(|(key, bytes)| Step::Insert(key, bytes)),
            (0u8..40).prop_map(Step::Remove),
        ]
    }

    proptest! {
        #[test]
        fn invariants_hold(steps in proptest::collection::vec(step(), 0..600)) {
            let mut cache: S3Fifo<u8, u8> = S3Fifo::new(100);
            let mut present = std::collections::BTreeMap::new();
            for step in steps {
                match step {
                    Step::Get(key) => {
                        let found = cache.get(&key).map(|(value, _)| *value);
                        prop_assert_eq!(found, present.contains_key(&key).then_some(key));
                    }
                    Step::Insert(key, bytes) => {
                        let evicted = cache.insert(key, key, bytes);
                        for entry in evicted {
                            prop_assert!(present.remove(&entry.key).is_some());
                        }
                        present.entry(key).or_insert(bytes);
                    }
                    Step::Remove(key) => {
                        prop_assert_eq!(cache.remove(&key).is_some(), present.remove(&key).is_some());
                    }
                }
                prop_assert_eq!(cache.len(), present.len());
                prop_assert_eq!(cache.bytes(), present.values().sum::<usize>());
                prop_assert!(cache.bytes() <= 100);
                prop_assert!(cache.small.len() + cache.main.len() <= 3 * (present.len() + 64));
                prop_assert!(cache.ghosts.len() <= GHOSTS_MIN.max(cache.len()));
            }
        }
    }
}
