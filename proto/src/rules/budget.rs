//! What a search through the rules and files of a site may cost.
//!
//! Used by [`super::answers`] and [`super::bearers`], which go through rules and files that nobody
//! has bounded together. Every loop spends for each turn, in steps of about a tenth of a
//! microsecond, so that a search ends soon after it was told to stop, whatever rules there are.

use std::sync::atomic::{AtomicBool, Ordering};

/// It would take too long to find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the site and its rules are too large to tell which files are meant")]
pub struct TooMuch;

/// The steps that are left.
#[derive(Debug)]
pub struct Budget<'s> {
    left: u64,
    stop: &'s AtomicBool,
}

impl<'s> Budget<'s> {
    /// So many steps, and none once `stop` is set.
    pub fn new(steps: u64, stop: &'s AtomicBool) -> Self {
        Self { left: steps, stop }
    }

    /// Takes some.
    ///
    /// # Errors
    /// When there are not so many, or the search is to stop.
    pub fn spend(&mut self, steps: usize) -> Result<(), TooMuch> {
        let left = u64::try_from(steps).ok().and_then(|steps| self.left.checked_sub(steps));
        self.left = left.unwrap_or(0);
        if left.is_none() || self.stop.load(Ordering::Relaxed) { Err(TooMuch) } else { Ok(()) }
    }

    /// Steps that are left.
    pub fn left(&self) -> u64 {
        self.left
    }
}
