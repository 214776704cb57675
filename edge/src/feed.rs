//! The view of the cluster, about every two seconds: which shields there are, and what DNS answers.
//! Sooner while there is nothing in it to go by.
//!
//! Started by [`crate::run`]. When the masters are away the last view stays in force, but for what
//! this node knows better: whether it serves itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use atoll_client::Cluster;
use atoll_net::admin::Readiness;
use atoll_net::retry::Pace;
use atoll_net::shutdown::Shutdown;
use atoll_proto::NodeId;
use atoll_proto::cluster::{ClusterView, Duty, NodeState, NodeView};
use tokio::sync::watch;

use crate::clock;
use crate::dns::{DnsView, EdgeView};
use crate::fetch::shield::{Shield, Shields};
use crate::index::Index;
use crate::index::table::Table;

const EVERY: Duration = Duration::from_secs(2);
/// How soon the next view is asked for while the last is of no use: a cluster that starts for the
/// first time has placed nothing yet, and none of its edges is ready.
const SOON: Duration = Duration::from_millis(250);

/// Follows the view until shutdown. `dns` is what an edge that answers DNS answers from, `judged`
/// whether this node serves.
pub(crate) async fn run(
    cluster: Cluster,
    own: NodeId,
    shields: Option<Arc<Shields>>,
    index: Arc<Index>,
    dns: Option<watch::Sender<Arc<DnsView>>>,
    mut judged: watch::Receiver<Readiness>,
    shutdown: Shutdown,
) {
    let work = async {
        let mut changes = index.changes();
        let mut failed = false;
        let mut pace = Pace::new(EVERY);
        let mut last: Option<Arc<ClusterView>> = None;
        loop {
            let refreshed = {
                let refresh = cluster.refresh_view();
                tokio::pin!(refresh);
                loop {
                    tokio::select! {
                        refreshed = &mut refresh => break refreshed,
                        // Masters that do not answer for long are why it may have lost its lease.
                        Ok(()) = judged.changed() => {}
                    }
                    if let (Some(dns), Some(view)) = (&dns, &last) {
                        let down = (!judged.borrow().ready).then_some(own);
                        publish(dns, dns_view(view, &index.table(), down));
                    }
                }
            };
            match refreshed {
                Ok(view) => {
                    failed = false;
                    if let Some(shields) = &shields {
                        shields.set(healthy_shields(&view, own));
                    }
                    last = Some(view);
                }
                Err(error) if !failed => {
                    failed = true;
                    tracing::warn!(%error, "the view of the cluster is not refreshed");
                }
                Err(_) => {}
            }
            // A new site has its name at once: who asks too early is told that there is none, and
            // remembers it for as long as the zone says.
            let useful = last.as_deref().is_some_and(is_useful);
            let pause = if useful { pace.pause(rand::random()) } else { SOON };
            let due = tokio::time::Instant::now() + pause;
            loop {
                // All edges and all sites are gone through, which with many of each is more work
                // than the publish itself: where nobody asks for it, it is not done.
                let Some(dns) = &dns else {
                    tokio::time::sleep_until(due).await;
                    break;
                };
                if let Some(view) = &last {
                    let down = (!judged.borrow().ready).then_some(own);
                    publish(dns, dns_view(view, &index.table(), down));
                }
                tokio::select! {
                    () = tokio::time::sleep_until(due) => break,
                    _ = changes.changed() => {}
                    Ok(()) = judged.changed() => {}
                }
            }
        }
    };
    tokio::select! {
        () = shutdown.wait() => {}
        () = work => {}
    }
}

/// Whether chunks can be asked for by a view, and visitors sent to an edge.
fn is_useful(view: &ClusterView) -> bool {
    let serves = |node: &NodeView| node.info.edge.as_ref().is_some_and(|edge| edge.serves);
    view.table.epoch.0 > 0 && view.nodes.iter().any(|node| serves(node) && is_well(node))
}

fn is_well(node: &NodeView) -> bool {
    node.state == NodeState::Up && node.ready
}

/// Shields that can be asked, but not this node itself, and none that is draining.
fn healthy_shields(view: &ClusterView, own: NodeId) -> Vec<Shield> {
    let is_shield = |node: &&NodeView| {
        let shield = node.info.edge.as_ref().is_some_and(|edge| edge.shield);
        shield && node.info.id != own && node.duty == Duty::Active
    };
    let shield = |node: &NodeView| Shield {
        id: node.info.id,
        addr: node.info.addr,
        region: node.info.region.clone(),
    };
    view.nodes.iter().filter(is_shield).filter(|node| is_well(node)).map(shield).collect()
}

/// What DNS answers depend on, without a serial. `down` is a node that does not serve, whatever the
/// view says.
fn dns_view(view: &ClusterView, table: &Table, down: Option<NodeId>) -> DnsView {
    let edge = |node: &NodeView| {
        let edge = node.info.edge.as_ref().filter(|edge| edge.serves)?;
        Some(EdgeView {
            name: node.info.name.clone(),
            region: node.info.region.clone(),
            addrs: edge.public.clone(),
            https_port: edge.https_port,
            ready: is_well(node) && down != Some(node.info.id),
            // One that is draining gets no visitors, as long as there are others.
            weight: if node.duty == Duty::Active { node.info.weight } else { 0 },
        })
    };
    let sites: BTreeSet<String> =
        table.sites().map(|state| state.site.name.as_str().to_owned()).collect();
    let domains: BTreeMap<String, String> =
        table.domains().map(|(domain, site)| (domain.clone(), site.as_str().to_owned())).collect();
    DnsView {
        ready: table.is_known(),
        edges: view.nodes.iter().filter_map(edge).collect(),
        sites,
        domains,
        serial: 0,
    }
}

/// Puts a view in force when it differs, with a serial that grows, also over restarts.
fn publish(dns: &watch::Sender<Arc<DnsView>>, mut view: DnsView) {
    dns.send_if_modified(|current| {
        view.serial = current.serial;
        if **current == view {
            return false;
        }
        let now = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let now = u32::try_from(now).unwrap_or(u32::MAX);
        view.serial = now.max(current.serial.wrapping_add(1));
        *current = Arc::new(view);
        true
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::ClusterId;
    use atoll_proto::cluster::{EdgeInfo, NodeInfo, NodeKind, PgTable};

    use super::*;

    fn node(id: u64, serves: bool, shield: bool, ready: bool) -> NodeView {
        let edge = EdgeInfo {
            serves,
            shield,
            dns: false,
            public: vec!["127.0.0.1".parse().unwrap()],
            http_port: 80,
            https_port: 443,
        };
        let info = NodeInfo {
            id: NodeId(id),
            name: format!("edge-{id}"),
            kind: NodeKind::Edge,
            addr: "127.0.0.1:9".parse().unwrap(),
            zone: "z".into(),
            region: "eu".into(),
            weight: 1,
            edge: Some(edge),
        };
        NodeView { info, state: NodeState::Up, ready, duty: Duty::Active }
    }

    fn view(nodes: Vec<NodeView>) -> ClusterView {
        ClusterView {
            cluster: ClusterId([0; 16]),
            index: 1,
            chunk_bytes: 1 << 20,
            nodes,
            table: PgTable::empty(),
            zone: None,
            url_template: None,
        }
    }

    #[test]
    fn healthy_shields_are_asked_but_not_oneself() {
        let view = view(vec![
            node(1, true, false, true),
            node(2, false, true, true),
            node(3, false, true, false),
            node(4, true, true, true),
        ]);
        let ids = |view: &ClusterView| -> Vec<u64> {
            healthy_shields(view, NodeId(4)).iter().map(|shield| shield.id.0).collect()
        };
        assert_eq!(ids(&view), [2]);
        let mut draining = view;
        draining.nodes[1].duty = Duty::Draining;
        assert!(ids(&draining).is_empty());
    }

    #[test]
    fn a_view_is_of_use_once_chunks_are_placed_and_an_edge_is_ready() {
        let placed = |nodes| {
            let mut view = view(nodes);
            view.table.epoch = atoll_proto::Epoch(1);
            view
        };
        assert!(is_useful(&placed(vec![node(1, true, false, true)])));
        assert!(!is_useful(&view(vec![node(1, true, false, true)])), "nothing is placed");
        assert!(!is_useful(&placed(vec![node(1, true, false, false), node(2, false, true, true)])));
    }

    #[test]
    fn dns_sees_edges_and_its_serial_grows_with_changes_only() {
        let table = Table::empty(ClusterId([0; 16]));
        let (sender, receiver) = watch::channel(Arc::new(DnsView::default()));
        let all = view(vec![node(1, true, false, true), node(2, false, true, true)]);
        publish(&sender, dns_view(&all, &table, None));
        let first = receiver.borrow().clone();
        assert_eq!(first.edges.len(), 1);
        assert!(first.edges[0].ready && !first.ready);
        publish(&sender, dns_view(&all, &table, None));
        assert_eq!(receiver.borrow().serial, first.serial);
        publish(&sender, dns_view(&all, &table, Some(NodeId(2))));
        assert!(receiver.borrow().edges[0].ready, "another one");
        publish(&sender, dns_view(&all, &table, Some(NodeId(1))));
        assert!(!receiver.borrow().edges[0].ready, "it knows better than the masters");
        let mut draining = all.clone();
        draining.nodes[0].duty = Duty::Draining;
        publish(&sender, dns_view(&draining, &table, None));
        assert_eq!(receiver.borrow().edges[0].weight, 0);
        let fewer = view(vec![node(1, true, false, false)]);
        publish(&sender, dns_view(&fewer, &table, None));
        assert!(receiver.borrow().serial > first.serial);
    }
}
