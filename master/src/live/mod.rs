//! Live sites: a site that follows a directory of the namespace is sealed by the leader when
//! something under the directory changes.
//!
//! [`marks`] has what the log changed; [`known`] keeps what was read; [`walk`] finds the files;
//! [`rules`] compiles `_redirects` and `_headers`; [`seal`] makes the manifest, stores its new pages
//! and proposes it; [`task`] decides when. What the state machine makes of it is in
//! [`crate::ops::site`]. Nothing here reads the bytes of a file but those two, and nothing runs
//! while nothing changes.

mod known;
pub(crate) mod marks;
mod rules;
mod seal;
pub(crate) mod task;
#[cfg(test)]
mod tests;
mod walk;

use std::sync::{Mutex, PoisonError};

use atoll_proto::error::WireResult;
use atoll_proto::publish::Published;
use atoll_proto::{Code, SiteName, WireError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Users that may wait for a seal at the same time.
const ASKS_MAX: usize = 64;

/// A user waits for a site to be sealed.
struct Ask {
    site: SiteName,
    reply: oneshot::Sender<WireResult<Published>>,
}

/// The way to the task that seals.
pub(crate) struct Live {
    asks: mpsc::Sender<Ask>,
    /// Taken by the task.
    asked: Mutex<Option<mpsc::Receiver<Ask>>>,
    /// Why sites cannot be sealed, for `status`.
    notes: Mutex<Vec<String>>,
}

impl Default for Live {
    fn default() -> Self {
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        Self { asks, asked: Mutex::new(Some(asked)), notes: Mutex::default() }
    }
}

impl Live {
    /// Has a site sealed, and waits for that.
    ///
    /// # Errors
    /// Why it cannot be sealed.
    pub(crate) async fn seal(&self, site: &SiteName, deadline: Instant) -> WireResult<Published> {
        let (reply, answer) = oneshot::channel();
        let ask = Ask { site: site.clone(), reply };
        let busy = |_| WireError::unavailable("too many wait for live sites: try again shortly");
        self.asks.try_send(ask).map_err(busy)?;
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(WireError::unavailable("this master does not lead any more")),
            Err(_) => {
                let message = format!("site {site} was not sealed in time; it may be later");
                Err(WireError::new(Code::Deadline, message))
            }
        }
    }

    /// Why sites cannot be sealed, for people.
    pub(crate) fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, notes: Vec<String>) {
        *self.notes.lock().unwrap_or_else(PoisonError::into_inner) = notes;
    }
}
