//! What nobody needs goes, slowly and after asking; and nothing goes by mistake.

use std::time::Duration;

use atoll_chunkserver::Point;
use atoll_chunkserver::store::{Body, ChunkStore, Mark};
use atoll_proto::NodeId;

use super::cluster::{Cluster, Hold, chunk, chunks, ids, ids_of_one_group};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collected_chunk_goes_to_quarantine_and_is_deleted_in_time() {
    let cluster = Cluster::start_with(1, |config| config.quarantine_lifetime_ms = 1).await;
    let chunk = chunk(b"collected");
    cluster.put(&[1], std::slice::from_ref(&chunk));
    cluster.change(|state| state.set(&[chunk.id], true));
    cluster.until_in_sync().await;
    cluster.change(|state| state.set(&[chunk.id], false));
    cluster.until_in_sync().await;
    assert_eq!(cluster.body(1, &chunk.id), Some((false, Body::Quarantined)));
    cluster.until_heard(1).await;
    assert_eq!(cluster.stat(1).quarantined, 1);
    // A release starts a sweep at once.
    cluster.change(|state| state.orders.release += 1);
    let store = cluster.store(1);
    cluster.holds("deleted", || store.record(&chunk.id).unwrap().is_none()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_goes_while_frozen() {
    let cluster = Cluster::new(|config| {
        config.sweep_every_s = 1;
        config.pending_lifetime_ms = 1;
        config.quarantine_lifetime_ms = 1;
    });
    let [extra, pending, old, live] =
        [&b"extra"[..], b"pending", b"in quarantine", b"live"].map(chunk);
    cluster.put(&[1], &[extra.clone(), pending.clone(), old.clone(), live.clone()]);
    let store = cluster.store(1);
    store.quarantine(&[old.id], 5).unwrap();
    store.mark(&[(extra.id, Mark::Live)], 5, None).unwrap();
    cluster.change(|state| state.orders.frozen = true);
    cluster.start_servers(1).await;
    cluster.change(|state| state.set(&[live.id], true));
    cluster.holds("live", || store.record(&live.id).unwrap().unwrap().live).await;
    cluster.change(|state| state.set(&[live.id], false));
    cluster.holds("not live", || !store.record(&live.id).unwrap().unwrap().live).await;
    let body = |id| cluster.body(1, id);
    cluster.holds("forgotten", || body(&extra.id) == Some((false, Body::Present))).await;
    // Each of these starts a sweep, and nothing is swept.
    for _ in 0..4 {
        cluster.change(|state| state.orders.release += 1);
        cluster.until_heard(1).await;
    }
    assert_eq!(body(&extra.id), Some((false, Body::Present)), "not known, but kept");
    assert_eq!(cluster.body(1, &pending.id), Some((false, Body::Present)));
    assert_eq!(cluster.body(1, &old.id), Some((false, Body::Quarantined)));
    assert_eq!(cluster.body(1, &live.id), Some((false, Body::Present)), "collected, but kept");
    // And then it does.
    cluster.change(|state| state.orders.frozen = false);
    cluster.holds("all gone", || store.list(None, 10).unwrap().is_empty()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_that_would_drop_much_halts_until_it_is_released() {
    let cluster = Cluster::start(1).await;
    cluster.until_in_sync().await;
    let many = ids_of_one_group(100);
    let marks: Vec<_> = many.iter().map(|id| (*id, Mark::Live)).collect();
    let store = cluster.store(1);
    store.mark(&marks, 1, None).unwrap();
    cluster.until("halted", |state| state.stats.values().any(|stat| stat.halted.is_some())).await;
    let reason = cluster.stat(1).halted.unwrap();
    assert!(reason.contains("100 of 100"), "{reason}");
    // Nor does anything else go.
    let single = chunk(b"another group");
    store.mark(&[(single.id, Mark::Live)], 1, None).unwrap();
    cluster.until_walked(1, 8).await;
    assert_eq!(store.totals().lacking, 101);
    cluster.change(|state| state.orders.release = 1);
    cluster.holds("let go", || store.totals().lacking == 0).await;
    cluster.until_heard(1).await;
    assert_eq!(cluster.stat(1).halted, None);
    // Once only.
    store.mark(&marks, 1, None).unwrap();
    cluster
        .until("halted again", |state| state.stats.values().any(|stat| stat.halted.is_some()))
        .await;
    assert_eq!(store.totals().lacking, 100);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sweep_asks_the_master_first() {
    let cluster = Cluster::new(|config| {
        config.sweep_every_s = 1;
        config.pending_lifetime_ms = 60_000;
    });
    let [kept, unneeded] = [&b"the master has it"[..], b"the master does not"].map(chunk);
    cluster.put(&[1], &[kept.clone(), unneeded.clone()]);
    let mut young = chunk(b"young");
    young.at_ms = u64::MAX / 2;
    cluster.put(&[1], std::slice::from_ref(&young));
    cluster.change(|state| {
        state.claimed.insert(kept.id);
    });
    cluster.start_servers(1).await;
    let state = |id| cluster.body(1, id).unwrap();
    cluster.holds("swept", || state(&unneeded.id) == (false, Body::Quarantined)).await;
    assert_eq!(state(&kept.id), (false, Body::Present));
    assert_eq!(state(&young.id), (false, Body::Present));
    // It asks again each time, and goes by what it is told then.
    cluster.change(|state| state.claimed.clear());
    cluster.holds("swept", || state(&kept.id) == (false, Body::Quarantined)).await;
    assert_eq!(state(&young.id), (false, Body::Present));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_put_again_after_the_master_was_asked_is_kept() {
    let hold = Hold::at(Point::SweepConfirmed);
    let cluster = Cluster::new(|config| {
        config.sweep_every_s = 1;
        config.pending_lifetime_ms = 60_000;
    });
    cluster.hold(hold.clone());
    // Of one group, so that the master is asked about both at once.
    let mut again = chunk(b"put again");
    let mut others = (0..u32::MAX).map(|n| chunk(&n.to_be_bytes()));
    let unneeded = others.find(|other| other.id.pg() == again.id.pg()).unwrap();
    cluster.put(&[1], &[again.clone(), unneeded.clone()]);
    cluster.start_servers(1).await;
    let mut waiting = hold.waiting.subscribe();
    drop(waiting.wait_for(|count| *count > 0).await.unwrap());
    // The master has neither. Now one is uploaded again, and acknowledged.
    again.at_ms = u64::MAX / 2;
    cluster.put(&[1], std::slice::from_ref(&again));
    hold.go.add_permits(1000);
    let state = |id| cluster.body(1, id).unwrap();
    cluster.holds("swept", || state(&unneeded.id) == (false, Body::Quarantined)).await;
    assert_eq!(state(&again.id), (false, Body::Present));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_that_were_left_are_let_go_and_come_back_from_quarantine() {
    let cluster = Cluster::start_with(2, |config| config.sweep_every_s = 1).await;
    let chunks = chunks(50);
    cluster.put(&[1, 2], &chunks);
    cluster.change(|state| state.set(&ids(&chunks), true));
    cluster.until_in_sync().await;
    cluster.change(|state| {
        state.left.insert(NodeId(1));
        state.change_view(true);
    });
    let (store, other) = (cluster.store(1), cluster.store(2));
    cluster.holds("let go", || store.totals().quarantined == 50).await;
    assert_eq!((store.totals().chunks, store.totals().lacking), (0, 0));
    assert_eq!(other.totals().chunks, 50);
    // It is a member again.
    cluster.change(|state| {
        state.left.clear();
        state.change_view(true);
    });
    cluster.until_in_sync().await;
    cluster.holds("restored", || store.totals().chunks == 50).await;
    assert_eq!(store.totals().quarantined, 0);
    tokio::time::timeout(Duration::from_secs(30), cluster.stop()).await.unwrap();
}
