//! Tests of [`super::Liveness`].

use super::*;
use atoll_proto::cluster::EdgeInfo;

fn edge(id: u64) -> NodeInfo {
    NodeInfo {
        id: NodeId(id),
        name: format!("edge-{id}"),
        kind: NodeKind::Edge,
        addr: ([127, 0, 0, 1], 1).into(),
        zone: "z".into(),
        region: "eu".into(),
        weight: 1,
        edge: Some(EdgeInfo {
            serves: true,
            shield: false,
            dns: false,
            public: vec![],
            http_port: 1,
            https_port: 2,
        }),
    }
}

#[tokio::test]
async fn a_new_leader_gives_grace_and_silence_ends_it() {
    let start = Instant::now();
    let mut liveness = Liveness::new(Some(1), start, 0);
    let node = NodeId(1);
    assert_eq!(liveness.state(node, start), (NodeState::Up, true));
    let later = start + limits::HEARTBEAT_LOST;
    assert_eq!(liveness.state(node, later), (NodeState::Down, false));
    liveness.heard(node, true, None, later);
    assert_eq!(liveness.state(node, later), (NodeState::Up, true));
    liveness.heard(node, false, None, later);
    assert_eq!(liveness.state(node, later), (NodeState::Up, false));
    let silent = later + limits::HEARTBEAT_LOST;
    assert_eq!(liveness.state(node, silent), (NodeState::Down, false));
    let mut liveness = Liveness::new(Some(2), silent, 0);
    assert_eq!(liveness.state(node, silent).0, NodeState::Up);
    assert!(liveness.in_grace(node, silent));
    assert!(!liveness.in_grace(node, silent + limits::HEARTBEAT_LOST));
    liveness.heard(node, true, None, silent);
    assert!(!liveness.in_grace(node, silent));
}

#[tokio::test]
async fn being_in_sync_is_of_an_index_and_of_a_membership() {
    let start = Instant::now();
    let mut liveness = Liveness::new(Some(1), start, 0);
    let (node, pg) = (NodeId(1), PgId(7));
    assert!(!liveness.synced(node, pg, 0));
    liveness.note_synced(node, pg, 9, start);
    assert!(liveness.synced(node, pg, 9) && !liveness.synced(node, pg, 10));
    assert!(!liveness.synced(node, PgId(8), 0));
    liveness.forget_synced(pg, &[node, NodeId(2)]);
    assert!(!liveness.synced(node, pg, 0));
    let later = start + Duration::from_secs(9);
    assert_eq!(liveness.silent_for(node, later), Duration::from_secs(9));
    assert_eq!(liveness.silent_for(NodeId(5), later), Duration::from_secs(9));
}

/// Nanoseconds after which a lease from 0 has surely ended.
const OUT: u64 = 10_100_000_000;

#[tokio::test]
async fn edges_are_waited_for_until_their_lease_is_out() {
    let start = Instant::now();
    let mut liveness = Liveness::new(Some(1), start, 0);
    let nodes = [edge(1), edge(2)];
    let strict = |_| Policy::Strict;
    assert!(liveness.acknowledged(NodeId(1), Seq(5), start));
    assert!(!liveness.acknowledged(NodeId(1), Seq(5), start));
    let progress = liveness.progress(&nodes, Seq(5), strict, 0);
    assert_eq!(progress.acked, ["edge-1"]);
    assert_eq!(progress.waiting, ["edge-2"], "it may hold a lease of an earlier leader");
    assert_eq!(progress.left, Some(Duration::from_nanos(OUT)));
    assert!(liveness.grant(NodeId(1), Seq(5), Seq(5), OUT));
    let progress = liveness.progress(&nodes, Seq(6), strict, OUT);
    assert_eq!((progress.waiting, progress.down), (vec!["edge-1".into()], vec!["edge-2".into()]));
    let progress = liveness.progress(&nodes, Seq(6), strict, OUT * 2);
    assert_eq!(progress.down, ["edge-1", "edge-2"]);
    let behind = |acked| if acked < Seq(5) { Policy::Available } else { Policy::Strict };
    let progress = liveness.progress(&nodes, Seq(6), behind, OUT * 2);
    assert_eq!((progress.waiting, progress.left), (vec!["edge-2".into()], None));
}

#[tokio::test]
async fn who_lacks_an_entry_is_found_one_by_one() {
    let start = Instant::now();
    let mut liveness = Liveness::new(Some(1), start, 0);
    let mut progress =
        liveness.progress(&[edge(1), edge(2), edge(3)], Seq(5), |_| Policy::Strict, 0);
    let edges = &mut progress.lacking;
    assert_eq!(edges, &[NodeId(1), NodeId(2), NodeId(3)]);
    assert!(liveness.any_lacks(edges, Seq(5)));
    liveness.acknowledged(NodeId(3), Seq(5), start);
    liveness.acknowledged(NodeId(1), Seq(4), start);
    assert!(liveness.any_lacks(edges, Seq(5)));
    let number = liveness.leaving(NodeId(2), 7, start);
    assert!(liveness.farewell(NodeId(2), number));
    assert!(liveness.any_lacks(edges, Seq(5)));
    assert_eq!(edges, &[NodeId(1)], "the others have it, or are gone");
    liveness.acknowledged(NodeId(1), Seq(6), start);
    assert!(!liveness.any_lacks(edges, Seq(5)));
}

#[tokio::test]
async fn a_renewal_that_was_overtaken_takes_no_acknowledgement_back() {
    let start = Instant::now();
    let mut liveness = Liveness::new(Some(1), start, 0);
    let strict = |_| Policy::Strict;
    assert!(liveness.acknowledged(NodeId(1), Seq(5), start));
    // Asked for before the entry was applied, and answered after.
    assert!(!liveness.acknowledged(NodeId(1), Seq(4), start));
    assert_eq!(liveness.progress(&[edge(1)], Seq(5), strict, 0).acked, ["edge-1"]);
    // Another run may have lost everything, and gets no lease before it has the log as it is now.
    // Until then it serves nothing, and by what it had heard it is judged when it stays silent.
    liveness.registered(NodeId(1), Seq(5), start);
    assert!(!liveness.acknowledged(NodeId(1), Seq(3), start));
    assert!(!liveness.grant(NodeId(1), Seq(3), Seq(5), OUT));
    let strict_since_4 = |acked| if acked < Seq(4) { Policy::Available } else { Policy::Strict };
    assert_eq!(liveness.progress(&[edge(1)], Seq(6), strict_since_4, OUT).down, ["edge-1"]);
    assert!(liveness.grant(NodeId(1), Seq(6), Seq(6), OUT));
    assert_eq!(liveness.progress(&[edge(1)], Seq(6), strict_since_4, OUT).waiting, ["edge-1"]);
}

#[tokio::test]
async fn a_node_is_synced_at_an_index_until_it_differs() {
    let start = Instant::now();
    let mut liveness = Liveness::new(Some(1), start, 0);
    let node = NodeId(1);
    let mut table = PgTable::empty();
    table.epoch = Epoch(1);
    table.members[3] = vec![node];
    table.members[4] = vec![node];
    let compare = |liveness: &mut Liveness, table: &PgTable, index, whole, groups: &[_]| {
        liveness.compared(node, &Comparison { table, index, whole, groups });
    };
    // Nothing is kept of a node that was never heard of.
    compare(&mut liveness, &table, 7, Some(true), &[]);
    assert_eq!(liveness.in_sync(node), None);
    liveness.heard(node, true, None, start);
    compare(&mut liveness, &table, 7, Some(true), &[]);
    assert_eq!(liveness.in_sync(node), Some(true));
    assert!(liveness.synced(node, PgId(3), 7) && liveness.synced(node, PgId(4), 0));
    assert!(!liveness.synced(node, PgId(3), 8), "it changed since");
    assert!(!liveness.synced(node, PgId(5), 0), "it does not keep that one");
    // Not comparable as a whole, but one group is.
    compare(&mut liveness, &table, 9, None, &[(PgId(3), true)]);
    assert!(liveness.synced(node, PgId(3), 9) && !liveness.synced(node, PgId(4), 9));
    assert_eq!(liveness.in_sync(node), Some(true));
    // Something differs: until it is known which, nothing counts.
    compare(&mut liveness, &table, 9, Some(false), &[(PgId(4), true)]);
    assert_eq!(liveness.in_sync(node), Some(false));
    assert!(!liveness.synced(node, PgId(3), 0) && liveness.synced(node, PgId(4), 9));
    compare(&mut liveness, &table, 9, Some(false), &[(PgId(3), false)]);
    assert!(!liveness.synced(node, PgId(3), 0) && liveness.synced(node, PgId(4), 9));
    // Another table: what it stays a member of holds on.
    compare(&mut liveness, &table, 9, Some(true), &[]);
    table.epoch = Epoch(2);
    table.members[4] = vec![NodeId(2)];
    compare(&mut liveness, &table, 9, None, &[]);
    assert!(liveness.synced(node, PgId(3), 9) && !liveness.synced(node, PgId(4), 0));
    table.epoch = Epoch(3);
    table.members[4] = vec![node];
    compare(&mut liveness, &table, 9, None, &[]);
    assert!(!liveness.synced(node, PgId(4), 0), "it came back, and was not compared since");
    // Another start of the server: begin anew.
    liveness.erased(node, 9, start);
    assert_eq!(liveness.erased_upto(node), Some(9));
    liveness.registered(node, Seq(0), start);
    assert_eq!(liveness.erased_upto(node), None, "this run has erased nothing yet");
    assert!(!liveness.synced(node, PgId(3), 0));
    assert_eq!(liveness.in_sync(node), None);
}

#[tokio::test]
async fn a_farewell_holds_until_the_next_sign_of_life() {
    let now = Instant::now();
    let mut liveness = Liveness::new(Some(1), now, 0);
    let (node, nodes) = (NodeId(1), [edge(1)]);
    liveness.acknowledged(node, Seq(5), now);
    liveness.heard(node, true, None, now);
    assert!(!liveness.farewell(node, 7), "it was given no number");
    assert_eq!(liveness.leaving(node, 7, now), 7);
    assert_eq!(liveness.leaving(node, 8, now), 7, "asked twice: the number stays");
    assert_eq!(
        liveness.progress(&nodes, Seq(6), |_| Policy::Available, 0).waiting,
        ["edge-1"],
        "not said yet"
    );
    assert!(!liveness.farewell(node, 8));
    assert!(liveness.farewell(node, 7));
    assert_eq!(liveness.progress(&nodes, Seq(6), |_| Policy::Available, 0).down, ["edge-1"]);
    assert_eq!(liveness.state(node, now), (NodeState::Down, false));
    assert_eq!(liveness.edge_left_ms(node, 0), 0);
    assert!(!liveness.farewell(node, 7), "a farewell is said once");

    let signs: [fn(&mut Liveness, NodeId, Instant); 3] = [
        |liveness, node, now| liveness.registered(node, Seq(5), now),
        |liveness, node, now| liveness.heard(node, true, None, now),
        |liveness, node, now| assert!(!liveness.acknowledged(node, Seq(5), now)),
    ];
    for sign in signs {
        liveness.leaving(node, 9, now);
        assert!(liveness.farewell(node, 9));
        sign(&mut liveness, node, now);
        let progress = liveness.progress(&nodes, Seq(6), |_| Policy::Available, 0);
        assert_eq!(progress.down, ["edge-1"], "it serves nothing before it has a lease");
        assert!(!liveness.grant(node, Seq(5), Seq(6), 0), "the sixth may have returned");
        assert!(liveness.grant(node, Seq(6), Seq(6), 0));
        let progress = liveness.progress(&nodes, Seq(6), |_| Policy::Available, 0);
        assert_eq!(progress.waiting, ["edge-1"]);
        // The second half of a farewell that was on its way when the node began anew.
        liveness.leaving(node, 10, now);
        sign(&mut liveness, node, now);
        assert!(!liveness.farewell(node, 10));
        assert_eq!(liveness.state(node, now).0, NodeState::Up);
    }
    liveness.leaving(node, 11, now);
    let mut liveness = Liveness::new(Some(2), now, 0);
    assert!(!liveness.farewell(node, 11), "a new leader does not know of it");
}

#[tokio::test]
async fn a_change_of_states_is_noticed_at_an_index() {
    let start = Instant::now();
    let mut liveness = Liveness::new(Some(1), start, 0);
    assert_eq!(liveness.notice(&[edge(1)], start, 7), 7);
    assert_eq!(liveness.notice(&[edge(1)], start, 9), 7);
    assert_eq!(liveness.notice(&[edge(1)], start + limits::HEARTBEAT_LOST, 9), 9);
}
