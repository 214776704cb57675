//! What is live is learned, by the feed or by comparing, and nothing wrong is.

use std::collections::BTreeSet;

use atoll_chunkserver::Point;
use atoll_chunkserver::store::{Body, ChunkStore, Mark};
use atoll_proto::NodeId;

use super::cluster::{Cluster, Hold, chunk, chunks, ids};
use super::master::Lie;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_in_the_feed_is_closed_by_comparing() {
    let cluster = Cluster::new(|_| {});
    let chunks = chunks(300);
    // Everybody has a part, and nobody has heard that anything is live.
    cluster.put(&[1, 2], &chunks[..200]);
    cluster.put(&[3], &chunks[150..]);
    cluster.change(|state| {
        state.set(&ids(&chunks), true);
        state.forget_deltas();
    });
    cluster.start_servers(3).await;
    cluster.until_in_sync().await;
    for server in 1..=3 {
        let store = cluster.store(server);
        assert!(chunks.iter().all(|chunk| store.has(&chunk.id).unwrap()));
        assert!(store.applied().unwrap() > 0);
    }
    cluster.until_heard(1).await;
    let stat = cluster.stat(1);
    assert!(stat.mismatches > 0 && stat.roots_compared >= stat.mismatches, "{stat:?}");
    assert!(stat.compared_bytes > 0);
    // Once all is equal, nothing is told but the root.
    cluster
        .until("short reports", |state| {
            state.reports.values().all(|report| report.groups.is_empty())
        })
        .await;
    let report = cluster.state().reports[&NodeId(1)].clone();
    assert!(atoll_proto::encode(&report).len() < 64);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_wrong_change_nothing() {
    let cluster = Cluster::start(1).await;
    let (known, unheard) = (chunks(20), chunk(b"the master has it, and said nothing"));
    // In the same bucket, so that a short answer is about both.
    let mut false_live = unheard.id;
    false_live.0[31] ^= 1;
    cluster.put(&[1], &known);
    cluster.put(&[1], std::slice::from_ref(&unheard));
    cluster.change(|state| state.set(&ids(&known), true));
    cluster.until_in_sync().await;
    // The master changes its table without a word in the feed.
    cluster.change(|state| {
        state.lie = Lie::Unavailable;
        state.set(&[unheard.id], true);
        state.forget_deltas();
    });
    cluster.store(1).mark(&[(false_live, Mark::Live)], 1, None).unwrap();
    for lie in [Lie::Unavailable, Lie::ShortIds, Lie::FewAnswers, Lie::WrongKind] {
        cluster.change(|state| state.lie = lie);
        // Several passes, so that at least one is under this lie from its beginning.
        for _ in 0..3 {
            cluster.change(|state| state.orders.release += 1);
            cluster.until_walked(1, 1).await;
        }
        let live = |id| cluster.record(1, id).unwrap().live;
        assert!(live(&false_live) && !live(&unheard.id), "{lie:?}");
        assert!(known.iter().all(|chunk| live(&chunk.id)), "{lie:?}");
    }
    cluster.change(|state| {
        state.lie = Lie::None;
        state.orders.release += 1;
    });
    cluster.until_in_sync().await;
    assert_eq!(cluster.body(1, &unheard.id), Some((true, Body::Present)));
    cluster.holds("forgotten", || cluster.record(1, &false_live).is_none()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_moves_during_a_walk_is_left_for_the_next() {
    let hold = Hold::at(Point::WalkFound);
    let cluster = Cluster::new(|_| {});
    cluster.hold(hold.clone());
    let late = chunk(b"collected while the walk is under way");
    cluster.change(|state| {
        state.set(&[late.id], true);
        state.forget_deltas();
    });
    cluster.start_servers(1).await;
    let mut waiting = hold.waiting.subscribe();
    drop(waiting.wait_for(|count| *count > 0).await.unwrap());
    // The walk knows that the chunk is live. Now it is collected, and the feed tells so first.
    cluster.change(|state| state.set(&[late.id], false));
    let (store, index) = (cluster.store(1), cluster.state().index);
    cluster.holds("the feed was followed", || store.applied().unwrap() == index).await;
    assert_eq!(cluster.record(1, &late.id), None);
    hold.go.add_permits(1000);
    cluster.until_in_sync().await;
    assert_eq!(cluster.record(1, &late.id), None, "it did not come back to life");
    assert_eq!(store.totals().lacking, 0);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_master_is_followed_anew() {
    let cluster = Cluster::start(2).await;
    let chunks = chunks(60);
    let (old, new) = chunks.split_at(40);
    cluster.put(&[1, 2], &chunks);
    cluster.change(|state| state.set(&ids(old), true));
    for _ in 0..5 {
        cluster.change(|state| state.set(&ids(new), true));
    }
    cluster.until_in_sync().await;
    // The backup is from before the new ones, and lost some of the old.
    let backup: BTreeSet<_> = ids(&old[..30]).into_iter().collect();
    cluster.change(|state| {
        state.restore(backup.clone(), 3);
        state.orders.frozen = true;
    });
    let applied = || [1, 2].map(|server| cluster.store(server).applied().unwrap());
    cluster.holds("followed from the beginning", || applied().iter().all(|at| *at <= 4)).await;
    // Frozen: all are equal all the same, and nothing is let go that the master does not have.
    cluster.until_in_sync().await;
    let (one, two) = (cluster.store(1), cluster.store(2));
    let all_kept = || {
        let stores = [&one, &two];
        stores.iter().all(|store| chunks.iter().all(|chunk| store.has(&chunk.id).unwrap()))
    };
    assert!(all_kept(), "bytes stay");
    let live = |id| cluster.record(1, id).unwrap().live;
    assert!(chunks.iter().all(|chunk| live(&chunk.id) == backup.contains(&chunk.id)));
    cluster.change(|state| state.orders.frozen = false);
    cluster.until_in_sync().await;
    assert!(all_kept(), "they are as young as if they had been put now");
    cluster.stop().await;
}
