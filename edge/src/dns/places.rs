//! Places of connections: how many there are at once, in all and of one block of addresses, so that
//! nobody can take those of everyone else by opening connections and saying nothing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::subnet::Subnet;

/// Most connections at once; those beyond are closed at once.
pub(super) const CONNECTIONS_MAX: usize = 256;
/// Most of one block of addresses.
pub(super) const OF_BLOCK_MAX: usize = CONNECTIONS_MAX / 8;
/// Addresses of these blocks count as one client.
const CLIENT_PREFIX_V4: u8 = 24;
const CLIENT_PREFIX_V6: u8 = 56;

/// The places of one listener.
#[derive(Debug)]
pub(super) struct Places {
    all: Arc<Semaphore>,
    held: Mutex<HashMap<Subnet, usize>>,
    /// Blocks whose clients may take as many as there are.
    exempt: Vec<Subnet>,
}

/// A place that is held until this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    places: Arc<Places>,
    block: Option<Subnet>,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    /// All are free.
    pub(super) fn new(exempt: Vec<Subnet>) -> Places {
        let all = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Places { all, held: Mutex::default(), exempt }
    }

    /// Takes a place for a client; nothing if there is none, or none for it.
    pub(super) fn take(self: &Arc<Self>, from: IpAddr) -> Option<Held> {
        let permit = self.all.clone().try_acquire_owned().ok()?;
        let from = from.to_canonical();
        let prefix = if from.is_ipv4() { CLIENT_PREFIX_V4 } else { CLIENT_PREFIX_V6 };
        let is_exempt = self.exempt.iter().any(|block| block.covers(from));
        let block = (!is_exempt).then(|| Subnet::of(from, prefix));
        if let Some(block) = block {
            let mut held = self.held();
            let number = held.entry(block).or_insert(0);
            if *number >= OF_BLOCK_MAX {
                return None;
            }
            *number += 1;
        }
        Some(Held { places: self.clone(), block, _permit: permit })
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Subnet, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(block) = self.block else { return };
        let mut held = self.places.held();
        if let Some(number) = held.get_mut(&block) {
            *number = number.saturating_sub(1);
            if *number == 0 {
                held.remove(&block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_block_has_its_part_and_the_others_theirs() {
        let places = Arc::new(Places::new(vec!["10.0.0.0/8".parse().unwrap()]));
        let take = |text: &str| places.take(text.parse().unwrap());
        let mut held: Vec<Held> = (0..OF_BLOCK_MAX).map(|_| take("192.0.2.1").unwrap()).collect();
        assert!(take("192.0.2.200").is_none(), "the same block");
        assert!(take("::ffff:192.0.2.3").is_none(), "the same block in other words");
        held.push(take("192.0.3.1").unwrap());
        held.remove(0);
        held.push(take("192.0.2.200").unwrap());
        let left = CONNECTIONS_MAX - held.len();
        held.extend((0..left).map(|_| take("10.1.2.3").unwrap()));
        assert!(take("10.1.2.3").is_none() && take("2001:db8::1").is_none(), "all are taken");
        held.clear();
        assert!(places.held().is_empty());
        assert!(take("192.0.2.1").is_some());
    }
}
