//! What a master does by itself. Each task runs on every master and works only while it leads.

pub(crate) mod aliases;
pub(crate) mod collect;
pub(crate) mod leadership;
mod moves;
pub(crate) mod placement;
pub(crate) mod sessions;
pub(crate) mod upkeep;
