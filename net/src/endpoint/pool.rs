//! Connections to other nodes: one per address and role, opened once however many calls want it.
//!
//! Only [`super::Endpoint::call`] uses it. A connection attempt runs in its own task with its own
//! deadline, so that a call that gives up does not take the attempt from the others.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use quinn::Connection;
use tokio::time::Instant;

use super::close;
use crate::identity::Role;

/// Most connections an endpoint opens; then idle ones make room, or the call is refused.
const CONNECTIONS_MAX: usize = 1024;
/// A connection without a call for this long is closed.
const IDLE_MAX: Duration = Duration::from_secs(60);

type Key = (SocketAddr, Role);
/// A connection, or the reason why there is none.
pub(super) type Dialed = Result<Connection, Arc<str>>;
type Dialing = Shared<BoxFuture<'static, Dialed>>;

#[derive(Default)]
pub(super) struct Pool {
    slots: Mutex<HashMap<Key, Arc<Slot>>>,
}

struct Slot {
    state: Mutex<State>,
    calls: AtomicUsize,
    used: Mutex<Instant>,
}

enum State {
    Idle,
    Dialing(Dialing),
    Ready(Connection),
}

/// The use of a pooled connection by one call.
pub(super) struct Lease {
    slot: Claim,
    pub(super) connection: Connection,
    /// Whether the connection was opened for this call: a failure on it is no leftover of an
    /// earlier time.
    pub(super) fresh: bool,
}

/// Keeps a slot from being evicted.
struct Claim(Arc<Slot>);

impl Drop for Claim {
    fn drop(&mut self) {
        *lock(&self.0.used) = Instant::now();
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lease {
    /// Forgets the connection, so that the next call opens another.
    pub(super) fn discard(self) {
        let mut state = lock(&self.slot.0.state);
        if matches!(&*state, State::Ready(c) if c.stable_id() == self.connection.stable_id()) {
            *state = State::Idle;
        }
    }
}

impl Pool {
    /// The connection for `key`, opened by `dial` if there is none. Waits until `deadline`.
    pub(super) async fn lease<F>(
        &self,
        key: Key,
        deadline: Instant,
        dial: impl FnOnce() -> F,
    ) -> Result<Lease, Arc<str>>
    where
        F: Future<Output = Dialed> + Send + 'static,
    {
        let claim = self.claim(key)?;
        let dialing = {
            let mut state = lock(&claim.0.state);
            match &*state {
                State::Ready(connection) if connection.close_reason().is_none() => {
                    let connection = connection.clone();
                    drop(state);
                    return Ok(Lease { slot: claim, connection, fresh: false });
                }
                // A finished attempt that is still here died before it could say so.
                State::Dialing(dialing) if dialing.peek().is_none() => dialing.clone(),
                State::Idle | State::Dialing(_) | State::Ready(_) => {
                    let dialing = start(claim.0.clone(), dial());
                    *state = State::Dialing(dialing.clone());
                    dialing
                }
            }
        };
        match tokio::time::timeout_at(deadline, dialing).await {
            Ok(Ok(connection)) => Ok(Lease { slot: claim, connection, fresh: true }),
            Ok(Err(reason)) => Err(reason),
            Err(_) => Err("no connection before the deadline of the call".into()),
        }
    }

    fn claim(&self, key: Key) -> Result<Claim, Arc<str>> {
        let mut slots = lock(&self.slots);
        if !slots.contains_key(&key) && slots.len() >= CONNECTIONS_MAX {
            evict_oldest(&mut slots)?;
        }
        let slot = slots.entry(key).or_insert_with(|| {
            Arc::new(Slot {
                state: Mutex::new(State::Idle),
                calls: AtomicUsize::new(0),
                used: Mutex::new(Instant::now()),
            })
        });
        // Counted under the lock of the map, where eviction looks.
        slot.calls.fetch_add(1, Ordering::Relaxed);
        Ok(Claim(slot.clone()))
    }

    /// Closes what was not used for a while.
    pub(super) fn drop_idle(&self, now: Instant) {
        lock(&self.slots).retain(|_, slot| {
            let keep = slot.calls.load(Ordering::Relaxed) > 0
                || now.saturating_duration_since(*lock(&slot.used)) < IDLE_MAX;
            if !keep {
                slot.close();
            }
            keep
        });
    }

    pub(super) fn clear(&self) {
        for (_, slot) in lock(&self.slots).drain() {
            slot.close();
        }
    }
}

impl Slot {
    fn close(&self) {
        if let State::Ready(connection) = std::mem::replace(&mut *lock(&self.state), State::Idle) {
            connection.close(close::IDLE, b"idle");
        }
    }
}

fn evict_oldest(slots: &mut HashMap<Key, Arc<Slot>>) -> Result<(), Arc<str>> {
    let oldest = slots
        .iter()
        .filter(|(_, slot)| slot.calls.load(Ordering::Relaxed) == 0)
        .min_by_key(|(_, slot)| *lock(&slot.used))
        .map(|(key, _)| *key);
    let slot = oldest.and_then(|key| slots.remove(&key)).ok_or_else(|| {
        Arc::from(format!("all {CONNECTIONS_MAX} connections of this process are busy; try later"))
    })?;
    slot.close();
    Ok(())
}

fn start(slot: Arc<Slot>, dial: impl Future<Output = Dialed> + Send + 'static) -> Dialing {
    let task = crate::task::spawn("dial", async move {
        let dialed = dial.await;
        *lock(&slot.state) = match &dialed {
            Ok(connection) => State::Ready(connection.clone()),
            Err(_) => State::Idle,
        };
        dialed
    });
    async move { task.await.unwrap_or_else(|_| Err("the connection attempt was cancelled".into())) }
        .boxed()
        .shared()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn key(port: u16) -> Key {
        (SocketAddr::from(([127, 0, 0, 1], port)), Role::Master)
    }

    #[tokio::test]
    async fn concurrent_calls_share_one_attempt_and_its_failure() {
        let pool = Pool::default();
        let attempts = Arc::new(AtomicUsize::new(0));
        let deadline = Instant::now() + Duration::from_secs(5);
        let lease = || {
            pool.lease(key(1), deadline, || {
                let attempts = attempts.clone();
                async move {
                    attempts.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                    Err("nobody there".into())
                }
            })
        };
        let (a, b, c) = tokio::join!(lease(), lease(), lease());
        for result in [a, b, c] {
            assert_eq!(&*result.err().unwrap(), "nobody there");
        }
        assert_eq!(attempts.load(Ordering::Relaxed), 1);
        assert!(lease().await.is_err());
        assert_eq!(attempts.load(Ordering::Relaxed), 2, "a failure is not remembered");
    }

    #[tokio::test]
    async fn an_abandoned_attempt_goes_on_and_the_deadline_holds() {
        let pool = Pool::default();
        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        let soon = Instant::now() + Duration::from_millis(20);
        let waiting = pool.lease(key(1), soon, move || async move {
            drop(receiver.await);
            Err("late".into())
        });
        assert!(waiting.await.err().unwrap().contains("before the deadline"));
        assert!(sender.send(()).is_ok(), "the attempt still runs");
    }

    #[test]
    fn the_pool_is_bounded_and_evicts_only_idle_slots() {
        let pool = Pool::default();
        let port = |n: usize| key(u16::try_from(n).unwrap());
        let claims: Vec<Claim> =
            (0..CONNECTIONS_MAX).map(|n| pool.claim(port(n)).unwrap()).collect();
        assert!(pool.claim(port(CONNECTIONS_MAX)).is_err());
        drop(claims);
        assert!(pool.claim(port(CONNECTIONS_MAX)).is_ok());
        assert_eq!(lock(&pool.slots).len(), CONNECTIONS_MAX);
        pool.drop_idle(Instant::now() + IDLE_MAX * 2);
        assert!(lock(&pool.slots).is_empty());
    }
}
