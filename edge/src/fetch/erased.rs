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
    /// Follows changes of the masters' list. Returns the chunks whose bytes are erased by them.
    pub fn learn(&self, changes: &[Erased]) -> HashSet<ChunkId> {
        if changes.is_empty() {
            return HashSet::new();
        }
        let mut all = HashMap::clone(&self.0.load());
        for change in changes {
            match change.what {
                Erasure::Lifted => all.remove(&change.id),
                what => all.insert(change.id, what),
            };
        }
        self.0.store(Arc::new(all));
        let erased = changes.iter().filter(|change| change.what == Erasure::Erased);
        erased.map(|change| change.id).collect()
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
