//! The nodes of the cluster as the state has them, read again when they have changed: every publish
//! and every question for the view looks at all of them.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use atoll_proto::NodeId;
use atoll_proto::cluster::NodeInfo;
use atoll_proto::error::WireResult;

use crate::ops::change::store_failed;
use crate::server::Master;
use crate::store::counters::{self, Counter};
use crate::store::nodes;

/// All nodes as of one change of them.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    /// The log index of that change.
    changed: u64,
    all: Vec<NodeInfo>,
    by_id: HashMap<NodeId, usize>,
}

impl Roster {
    fn new(changed: u64, all: Vec<NodeInfo>) -> Roster {
        let by_id = all.iter().enumerate().map(|(at, info)| (info.id, at)).collect();
        Roster { changed, all, by_id }
    }

    /// All nodes by id.
    pub(crate) fn all(&self) -> &[NodeInfo] {
        &self.all
    }

    /// A node.
    pub(crate) fn get(&self, node: NodeId) -> Option<&NodeInfo> {
        self.by_id.get(&node).and_then(|at| self.all.get(*at))
    }
}

impl Master {
    /// All nodes, as of now.
    pub(crate) fn roster(&self) -> WireResult<Arc<Roster>> {
        let state = self.consensus.state();
        let mut cached = self.roster.lock().unwrap_or_else(PoisonError::into_inner);
        // Whatever changes a node notes the index of its log entry, which becomes visible as a whole.
        let changed = counters::get(&*state, Counter::ViewChanged).map_err(store_failed)?;
        if cached.changed != changed {
            let view = state.view();
            let changed = counters::get(&view, Counter::ViewChanged).map_err(store_failed)?;
            *cached = Arc::new(Roster::new(changed, nodes::all(&view).map_err(store_failed)?));
        }
        Ok(cached.clone())
    }
}
