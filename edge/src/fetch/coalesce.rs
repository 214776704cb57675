//! Single flight: however many ask for a chunk, it is fetched once.
//!
//! The fetch is a task of its own: it goes on when the one who asked first goes away. The others
//! wait to be woken; their number is bounded, and so is the number of fetches.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use atoll_proto::ChunkId;
use tokio::sync::watch;

/// Fetches under way, each with those who wait for it.
#[derive(Debug)]
pub struct Coalescer<T> {
    flights: Arc<Flights<T>>,
    waiting: AtomicUsize,
    flights_max: usize,
    waiters_max: usize,
}

type Landing<T> = watch::Receiver<Option<T>>;

#[derive(Debug)]
struct Flights<T>(Mutex<Board<T>>);

#[derive(Debug)]
struct Board<T> {
    flights: HashMap<ChunkId, Flight<T>>,
    next_number: u64,
}

#[derive(Debug)]
struct Flight<T> {
    /// Tells it from others for the same chunk.
    number: u64,
    landing: Landing<T>,
}

/// What came of a flight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Landed<T> {
    /// The outcome.
    pub value: T,
    /// Whether somebody else had asked first.
    pub joined: bool,
}

/// Why there is no outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoFlight {
    /// Too many fetches or waiters.
    #[error("too many requests wait for upstream")]
    Busy,
    /// The fetch panicked.
    #[error("the fetch ended without an outcome")]
    Died,
}

impl<T: Clone + Send + Sync + 'static> Coalescer<T> {
    /// With room for so many fetches and so many waiters at once.
    pub fn new(flights_max: usize, waiters_max: usize) -> Coalescer<T> {
        Coalescer {
            flights: Arc::new(Flights(Mutex::new(Board {
                flights: HashMap::new(),
                next_number: 0,
            }))),
            waiting: AtomicUsize::new(0),
            flights_max,
            waiters_max,
        }
    }

    /// Joins the flight for `id`, or starts one that does `work`. Cancel-safe: the flight goes on.
    ///
    /// # Errors
    /// `Busy` when there is no room; `Died` when the work panicked.
    pub async fn run<F, W>(&self, id: ChunkId, work: F) -> Result<Landed<T>, NoFlight>
    where
        F: FnOnce() -> W,
        W: Future<Output = T> + Send + 'static,
    {
        let _waiter = self.wait()?;
        let (mut landing, joined) = self.board(id, work)?;
        let landed = landing.wait_for(Option::is_some).await;
        match landed.as_deref() {
            Ok(Some(value)) => Ok(Landed { value: value.clone(), joined }),
            Ok(None) | Err(_) => Err(NoFlight::Died),
        }
    }

    /// Lets nobody join the flights for these chunks any more: who comes now starts a new one.
    /// Those who wait already get the outcome of the old one.
    pub fn forget(&self, ids: &[ChunkId]) {
        let mut board = self.flights.lock();
        for id in ids {
            board.flights.remove(id);
        }
    }

    /// The same for all chunks.
    pub fn forget_all(&self) {
        self.flights.lock().flights.clear();
    }

    /// How many wait now.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    fn wait(&self) -> Result<Waiter<'_>, NoFlight> {
        let waiter = Waiter(&self.waiting);
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.waiters_max {
            return Err(NoFlight::Busy);
        }
        Ok(waiter)
    }

    fn board<F, W>(&self, id: ChunkId, work: F) -> Result<(Landing<T>, bool), NoFlight>
    where
        F: FnOnce() -> W,
        W: Future<Output = T> + Send + 'static,
    {
        let mut board = self.flights.lock();
        if let Some(flight) = board.flights.get(&id) {
            return Ok((flight.landing.clone(), true));
        }
        if board.flights.len() >= self.flights_max {
            return Err(NoFlight::Busy);
        }
        let (land, landing) = watch::channel(None);
        let number = board.next_number;
        board.next_number += 1;
        board.flights.insert(id, Flight { number, landing: landing.clone() });
        drop(board);
        let over = Over { flights: self.flights.clone(), id, number };
        let work = work();
        atoll_net::task::spawn("edge-fill", async move {
            // Dropped last: whoever comes before that still finds the outcome here, and whoever
            // comes after finds it where the work has put it.
            let _over = over;
            let value = work.await;
            land.send_replace(Some(value));
        });
        Ok((landing, false))
    }
}

impl<T> Flights<T> {
    fn lock(&self) -> std::sync::MutexGuard<'_, Board<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a flight off the list when its task ends, however it ends.
struct Over<T> {
    flights: Arc<Flights<T>>,
    id: ChunkId,
    number: u64,
}

impl<T> Drop for Over<T> {
    fn drop(&mut self) {
        let mut board = self.flights.lock();
        if board.flights.get(&self.id).is_some_and(|flight| flight.number == self.number) {
            board.flights.remove(&self.id);
        }
    }
}

struct Waiter<'a>(&'a AtomicUsize);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::time::Duration;

    use tokio::sync::Semaphore;

    use super::*;

    fn id(seed: u8) -> ChunkId {
        ChunkId([seed; 32])
    }

    struct Slow {
        coalescer: Coalescer<u32>,
        gate: Arc<Semaphore>,
        fetches: Arc<AtomicUsize>,
    }

    impl Slow {
        fn new(flights_max: usize, waiters_max: usize) -> Arc<Slow> {
            Arc::new(Slow {
                coalescer: Coalescer::new(flights_max, waiters_max),
                gate: Arc::new(Semaphore::new(0)),
                fetches: Arc::new(AtomicUsize::new(0)),
            })
        }

        async fn ask(self: Arc<Slow>, seed: u8) -> Result<Landed<u32>, NoFlight> {
            let (gate, fetches) = (self.gate.clone(), self.fetches.clone());
            self.coalescer
                .run(id(seed), || async move {
                    fetches.fetch_add(1, Ordering::SeqCst);
                    gate.acquire().await.unwrap().forget();
                    7
                })
                .await
        }

        async fn until_waiting(&self, count: usize) {
            while self.coalescer.waiting() < count {
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test]
    async fn many_waiters_one_fetch() {
        let slow = Slow::new(10, 1000);
        let asked: Vec<_> =
            (0..100).map(|_| atoll_net::task::spawn("test", slow.clone().ask(1))).collect();
        slow.until_waiting(100).await;
        slow.gate.add_permits(1);
        let mut first = 0;
        for each in asked {
            let landed = each.await.unwrap().unwrap();
            assert_eq!(landed.value, 7);
            first += usize::from(!landed.joined);
        }
        assert_eq!((first, slow.fetches.load(Ordering::SeqCst)), (1, 1));
        assert_eq!(slow.coalescer.waiting(), 0);
    }

    #[tokio::test]
    async fn the_first_may_leave() {
        let slow = Slow::new(10, 1000);
        let first = atoll_net::task::spawn("test", slow.clone().ask(1));
        slow.until_waiting(1).await;
        let second = atoll_net::task::spawn("test", slow.clone().ask(1));
        slow.until_waiting(2).await;
        first.abort();
        assert!(first.await.is_err());
        slow.gate.add_permits(1);
        let landed = tokio::time::timeout(Duration::from_secs(5), second).await.unwrap();
        assert_eq!(landed.unwrap().unwrap(), Landed { value: 7, joined: true });
        assert_eq!(slow.fetches.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_forgotten_flight_is_not_joined_and_ends_on_its_own() {
        let slow = Slow::new(10, 1000);
        let first = atoll_net::task::spawn("test", slow.clone().ask(1));
        slow.until_waiting(1).await;
        slow.coalescer.forget(&[id(1)]);
        let second = atoll_net::task::spawn("test", slow.clone().ask(1));
        slow.until_waiting(2).await;
        slow.gate.add_permits(2);
        for asked in [first, second] {
            assert!(!asked.await.unwrap().unwrap().joined);
        }
        assert_eq!(slow.fetches.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn bounds_hold() {
        let slow = Slow::new(1, 2);
        let first = atoll_net::task::spawn("test", slow.clone().ask(1));
        slow.until_waiting(1).await;
        assert_eq!(slow.clone().ask(2).await, Err(NoFlight::Busy));
        let second = atoll_net::task::spawn("test", slow.clone().ask(1));
        slow.until_waiting(2).await;
        assert_eq!(slow.clone().ask(1).await, Err(NoFlight::Busy));
        slow.gate.add_permits(1);
        assert!(first.await.unwrap().is_ok() && second.await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_next_may_try() {
        let coalescer: Coalescer<u32> = Coalescer::new(4, 4);
        let died = coalescer.run(id(1), || async { panic!("on purpose") }).await;
        assert_eq!(died, Err(NoFlight::Died));
        // The list is cleared when the task is gone, which may be a moment later.
        loop {
            match coalescer.run(id(1), || async { 3 }).await {
                Ok(landed) => break assert_eq!(landed.value, 3),
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }
}
