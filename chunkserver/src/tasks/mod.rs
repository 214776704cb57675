//! What a chunkserver does by itself, without being asked.

pub(crate) mod clock;
pub(crate) mod erase;
pub(crate) mod feed;
pub(crate) mod heartbeat;
pub(crate) mod reconcile;
pub(crate) mod repair;
pub(crate) mod salvage;
pub(crate) mod scrub;
pub(crate) mod sweep;
