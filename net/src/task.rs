//! Named, counted tasks: the only place that calls `tokio::spawn`.
//!
//! Every role uses [`spawn`] for work that may outlive its maker and [`Tasks`] for work that must
//! be awaited when the role drains. The gauge `atoll_tasks{task}` shows what runs, so that a leak
//! is a rising line with a name.

use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex;
use std::time::Duration;

use tokio::task::{JoinError, JoinHandle, JoinSet};
use tracing::Instrument;

/// A future on the heap, behind a table of functions. What is not generic and returns this is
/// compiled once, in its own crate; the body of an `async fn` is compiled again, with all it calls,
/// in each crate that awaits it.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Runs `future` on the runtime under `name`, inside the current span, counted in `atoll_tasks`.
#[allow(clippy::disallowed_methods, reason = "the one place where tasks are spawned")]
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(counted(name, future))
}

/// Runs blocking work on the runtime's thread pool under `name`, counted in `atoll_tasks`.
#[allow(clippy::disallowed_methods, reason = "the one place where tasks are spawned")]
pub fn spawn_blocking<F, R>(name: &'static str, work: F) -> JoinHandle<R>
where
    F: FnOnce() -> R + Send + 'static,
    R: Send + 'static,
{
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || {
        let _running = Running::new(name);
        span.in_scope(work)
    })
}

fn counted<F: Future>(name: &'static str, future: F) -> impl Future<Output = F::Output> {
    let running = Running::new(name);
    async move {
        let _running = running;
        future.await
    }
    .in_current_span()
}

/// Keeps one task in the gauge until it is finished, cancelled or has panicked.
struct Running(metrics::Gauge);

impl Running {
    fn new(name: &'static str) -> Running {
        let gauge = metrics::gauge!("atoll_tasks", "task" => name);
        gauge.increment(1.0);
        Running(gauge)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// A handle that cancels its task when it is dropped, for work that only its maker wants.
#[derive(Debug)]
pub struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> AbortOnDrop<T> {
    /// Takes over a task.
    pub fn new(handle: JoinHandle<T>) -> AbortOnDrop<T> {
        AbortOnDrop(handle)
    }

    /// Waits for the task. Cancel-safe; dropping the handle afterwards is harmless.
    ///
    /// # Errors
    /// When the task panicked or was cancelled.
    pub async fn join(&mut self) -> Result<T, JoinError> {
        (&mut self.0).await
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A set of tasks that is awaited at drain. Dropping the set cancels what is left.
#[derive(Debug, Default)]
pub struct Tasks(Mutex<JoinSet<()>>);

impl Tasks {
    /// An empty set.
    pub fn new() -> Tasks {
        Tasks::default()
    }

    /// Runs `future` as part of the set. Finished tasks are forgotten on the way, so that a
    /// long-lived set does not grow.
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut set = self.lock();
        set.spawn(counted(name, future));
        while let Some(finished) = set.try_join_next() {
            log_panic(&finished);
        }
    }

    /// How many tasks are running (or finished and not yet forgotten).
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether nothing is running.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits for every task for at most `bound`, then cancels the rest. Returns how many had to
    /// be cancelled.
    pub async fn drain(&self, bound: Duration) -> usize {
        let mut set = std::mem::take(&mut *self.lock());
        let all = async {
            while let Some(finished) = set.join_next().await {
                log_panic(&finished);
            }
        };
        if tokio::time::timeout(bound, all).await.is_ok() {
            return 0;
        }
        let cancelled = set.len();
        set.shutdown().await;
        cancelled
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, JoinSet<()>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn log_panic(finished: &Result<(), JoinError>) {
    if let Err(error) = finished
        && error.is_panic()
    {
        tracing::error!(%error, "a task panicked");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[tokio::test]
    async fn drain_waits_for_what_finishes_and_cancels_what_does_not() {
        let tasks = Tasks::new();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        tasks.spawn("quick", async move { sender.send(7).unwrap() });
        assert_eq!(tasks.drain(Duration::from_secs(5)).await, 0);
        assert_eq!(receiver.await.unwrap(), 7);

        tasks.spawn("endless", std::future::pending());
        assert_eq!(tasks.drain(Duration::from_millis(10)).await, 1);
        assert!(tasks.is_empty());
    }

    #[tokio::test]
    async fn a_panic_stays_in_its_task() {
        let tasks = Tasks::new();
        tasks.spawn("panics", async { panic!("on purpose") });
        assert_eq!(tasks.drain(Duration::from_secs(5)).await, 0);
    }

    #[tokio::test]
    async fn abort_on_drop_cancels() {
        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        let task = AbortOnDrop::new(spawn("held", async move {
            let _sender = sender;
            std::future::pending::<()>().await;
        }));
        drop(task);
        assert!(receiver.await.is_err());
    }
}
