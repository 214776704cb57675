//! The publish log through shields, so that the masters talk to a few shields instead of thousands
//! of edges. [`uplink`] is the half of an edge, [`hub`] that of a shield. What may be believed of what
//! comes this way is decided by `atoll_proto::relay`; neither half knows what entries mean.

pub mod hub;
pub mod uplink;
