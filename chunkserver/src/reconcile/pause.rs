//! Points at which the work can be held up, so that a test can let something else happen exactly
//! there. Outside tests nobody holds anything up, and a point costs a look at an `Option`.

use futures_util::future::BoxFuture;

/// Where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// A walk knows what differs in a group, and is about to act on it.
    WalkFound,
    /// The master has confirmed that chunks are not needed; they are about to go to quarantine.
    SweepConfirmed,
}

/// Holds the work up at points.
pub trait Pauses: Send + Sync + 'static {
    /// Is called at each point, and waited for.
    fn at(&self, point: Point) -> BoxFuture<'static, ()>;
}
