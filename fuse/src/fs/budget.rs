//! The bound on unsent data in memory: whoever wants more waits.
//!
//! A [`Room`] is a claim on a number of bytes and gives them back when it is dropped. The budget
//! also knows how many uploads are under way, so that a waiter can tell whether waiting helps.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// A number of bytes that many share.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    used: Mutex<u64>,
    freed: Notify,
    uploads: AtomicUsize,
    /// Grows with every finished upload: a waiter who sees it grow has not waited in vain.
    finished: AtomicU64,
    trouble: Mutex<Option<String>>,
}

/// A claim on some bytes of a [`Budget`].
#[derive(Debug)]
pub(crate) struct Room {
    budget: Arc<Budget>,
    bytes: u64,
}

/// Counts as an upload under way until it is dropped.
#[derive(Debug)]
pub(crate) struct UnderWay(Arc<Budget>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Arc<Budget> {
        Arc::new(Budget {
            limit,
            used: Mutex::new(0),
            freed: Notify::new(),
            uploads: AtomicUsize::new(0),
            finished: AtomicU64::new(0),
            trouble: Mutex::new(None),
        })
    }

    /// A claim on so many bytes, if they are free.
    pub(crate) fn try_take(self: &Arc<Self>, bytes: u64) -> Option<Room> {
        self.claim(bytes).then(|| Room { budget: self.clone(), bytes })
    }

    fn claim(&self, bytes: u64) -> bool {
        let mut used = lock(&self.used);
        let fits = bytes <= self.limit.saturating_sub(*used);
        if fits {
            *used += bytes;
        }
        fits
    }

    pub(crate) fn used(&self) -> u64 {
        *lock(&self.used)
    }

    pub(crate) fn fits(&self, bytes: u64) -> bool {
        bytes <= self.limit.saturating_sub(self.used())
    }

    /// Resolves after the next release, if it is enabled before.
    pub(crate) fn freed(&self) -> tokio::sync::futures::Notified<'_> {
        self.freed.notified()
    }

    pub(crate) fn upload_begins(self: &Arc<Self>) -> UnderWay {
        self.uploads.fetch_add(1, Ordering::AcqRel);
        UnderWay(self.clone())
    }

    pub(crate) fn uploads(&self) -> usize {
        self.uploads.load(Ordering::Acquire)
    }

    pub(crate) fn upload_succeeded(&self) {
        self.finished.fetch_add(1, Ordering::AcqRel);
        *lock(&self.trouble) = None;
    }

    pub(crate) fn upload_failed(&self, reason: String) {
        *lock(&self.trouble) = Some(reason);
        self.freed.notify_waiters();
    }

    pub(crate) fn finished(&self) -> u64 {
        self.finished.load(Ordering::Acquire)
    }

    pub(crate) fn trouble(&self) -> Option<String> {
        lock(&self.trouble).clone()
    }
}

impl Room {
    /// Claims more; changes nothing when there is not enough.
    pub(crate) fn grow(&mut self, bytes: u64) -> bool {
        let fits = self.budget.claim(bytes);
        if fits {
            self.bytes += bytes;
        }
        fits
    }

    /// Gives some back.
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        if bytes < self.bytes {
            *lock(&self.budget.used) -= self.bytes - bytes;
            self.bytes = bytes;
            self.budget.freed.notify_waiters();
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.uploads.fetch_sub(1, Ordering::AcqRel);
        self.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn room_is_given_back() {
        let budget = Budget::new(10);
        let mut room = budget.try_take(6).unwrap();
        assert!(budget.try_take(5).is_none());
        assert!(room.grow(4) && !room.grow(1));
        room.shrink_to(3);
        assert_eq!(budget.used(), 3);
        drop(room);
        assert!(budget.fits(10) && !budget.fits(11));
    }
}
