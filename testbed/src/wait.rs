//! Waiting for a condition, with a deadline. Tests never sleep for "long enough".

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long between two looks. Short, because most conditions hold within a few of them.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks until there is something, or fails when `timeout` has passed. Errors of a look count as
/// "not yet"; the last one is told.
///
/// # Errors
/// When the deadline has passed.
pub fn until<T>(
    what: &str,
    timeout: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = match look() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if start.elapsed() > timeout {
            match last {
                Some(error) => bail!("{what}: not within {timeout:?}; last: {error:#}"),
                None => bail!("{what}: not within {timeout:?}"),
            }
        }
        sleep(LOOK_EVERY);
    }
}

/// [`until`] for a plain condition.
///
/// # Errors
/// When the deadline has passed.
pub fn holds(what: &str, timeout: Duration, mut look: impl FnMut() -> bool) -> Result<()> {
    until(what, timeout, || Ok(look().then_some(())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_deadline_ends_it_and_tells_why() {
        let mut looks = 0;
        until("third look", Duration::from_secs(10), || {
            looks += 1;
            Ok((looks == 3).then_some(()))
        })
        .unwrap();
        let error = until::<()>("never", Duration::ZERO, || bail!("because")).unwrap_err();
        assert!(error.to_string().contains("because"), "{error}");
    }
}
