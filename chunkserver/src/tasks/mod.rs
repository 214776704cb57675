//! What a chunkserver does by itself, without being asked.

pub(crate) mod clock;
pub(crate) mod heartbeat;
