//! Telling every part of a process that it should stop.
//!
//! Every role's `run(config, shutdown)` takes a [`Shutdown`]; the binary makes one from signals,
//! tests make one with [`pair`]. It carries only the fact, not a reason and not a deadline: each
//! part bounds its own drain.

use tokio::sync::watch;

/// Resolves once the process (or the test's node) should stop. Cheap to clone.
///
/// If every [`ShutdownTrigger`] is gone, nobody can stop the part any more in an orderly way, so
/// that counts as triggered.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// The other end of a [`Shutdown`]. Dropping the last clone triggers too.
#[derive(Clone, Debug)]
pub struct ShutdownTrigger(watch::Sender<bool>);

/// A connected trigger and its listener.
pub fn pair() -> (ShutdownTrigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (ShutdownTrigger(sender), Shutdown(receiver))
}

/// A listener that triggers on SIGTERM or SIGINT. Must be called inside a Tokio runtime.
///
/// If the process may not install signal handlers, the listener never triggers by itself and a
/// warning says so; the default action of the signal still ends the process.
pub fn on_signals() -> Shutdown {
    use tokio::signal::unix::{SignalKind, signal};

    let (trigger, shutdown) = pair();
    let handlers = signal(SignalKind::terminate())
        .and_then(|terminate| Ok((terminate, signal(SignalKind::interrupt())?)));
    crate::task::spawn("signals", async move {
        match handlers {
            Ok((mut terminate, mut interrupt)) => {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                tracing::info!(signal = name, "stopping");
                trigger.trigger();
            }
            Err(error) => {
                tracing::warn!(%error, "cannot listen for signals; stopping will not be orderly");
                std::future::pending::<()>().await;
            }
        }
    });
    shutdown
}

impl Shutdown {
    /// Waits until shutdown is triggered; returns at once if it already was. Cancel-safe.
    pub async fn wait(&self) {
        let mut receiver = self.0.clone();
        // An error means that every trigger was dropped, which counts as triggered.
        if receiver.wait_for(|triggered| *triggered).await.is_err() {
            tracing::debug!("every shutdown trigger was dropped");
        }
    }

    /// Whether shutdown was triggered already.
    pub fn is_triggered(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

impl ShutdownTrigger {
    /// Tells every clone of the listener to stop. Later calls change nothing.
    pub fn trigger(&self) {
        self.0.send_replace(true);
    }

    /// A new listener of this trigger.
    pub fn listener(&self) -> Shutdown {
        Shutdown(self.0.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn trigger_reaches_every_clone_once_and_forever() {
        let (trigger, shutdown) = pair();
        let second = shutdown.clone();
        assert!(!shutdown.is_triggered());
        trigger.trigger();
        shutdown.wait().await;
        second.wait().await;
        assert!(second.is_triggered());
        trigger.listener().wait().await;
    }

    #[tokio::test]
    async fn a_dropped_trigger_counts_as_triggered() {
        let (trigger, shutdown) = pair();
        drop(trigger);
        shutdown.wait().await;
        assert!(shutdown.is_triggered());
    }
}
