//! Which chunks were taken down, as far as this node has heard.
//!
//! [`super::Chunks`] asks before it gives anything out, and the HTTP side before it says anything
//! about a file. Mostly there are none, which costs a look at an empty map.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use atoll_proto::erase::{Erased, Erasure};
use atoll_proto::{ChunkId, Content};

/// The chunks for which something else holds than for all others.
#[derive(Debug, Default)]
pub struct TakenDown(ArcSwap<HashMap<ChunkId, Erasure>>);

impl TakenDown {
    /// Follows changes of the masters' list; `anew` when they are all of it. Returns all chunks whose
    /// bytes are erased.
    pub fn learn(&self, changes: &[Erased], anew: bool) -> HashSet<ChunkId> {
        let mut all = if anew { HashMap::new() } else { HashMap::clone(&self.0.load()) };
        for change in changes {
            match change.what {
                Erasure::Lifted => all.remove(&change.id),
                what => all.insert(change.id, what),
            };
        }
        let erased = all.iter().filter(|(_, what)| **what == Erasure::Erased);
        let erased = erased.map(|(id, _)| *id).collect();
        self.0.store(Arc::new(all));
        erased
    }

    /// Whether the bytes of a chunk are erased.
    pub fn is_erased(&self, id: &ChunkId) -> bool {
        let all = self.0.load();
        !all.is_empty() && all.get(id) == Some(&Erasure::Erased)
    }

    /// Whether a content is not to be served.
    pub fn covers(&self, content: &Content) -> bool {
        let all = self.0.load();
        !all.is_empty() && content.direct_chunks().iter().any(|id| all.contains_key(id))
    }
}
