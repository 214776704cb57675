//! What is lacking is fetched from those who have it.

use atoll_chunkserver::store::{Body, ChunkStore};
use atoll_net::CallError;
use atoll_proto::chunk::{ChunkRequest, ChunkResponse, Lacking};
use atoll_proto::{ChunkId, Code, NodeId};
use bytes::Bytes;

use super::cluster::{Cluster, chunk, chunks, ids};

/// When something was put into quarantine that no sweep deletes: any past time could be too old.
const NOT_YET_PURGED: u64 = u64::MAX / 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_becomes_live_is_fetched_where_it_is_missing() {
    let cluster = Cluster::start(3).await;
    let chunks = chunks(200);
    cluster.put(&[1, 2], &chunks);
    cluster.change(|state| state.set(&ids(&chunks), true));
    cluster.until_in_sync().await;
    let store = cluster.store(3);
    assert!(chunks.iter().all(|chunk| store.get(&chunk.id).unwrap().unwrap() == chunk.bytes));
    cluster.until_heard(3).await;
    let stat = cluster.stat(3);
    assert_eq!((stat.repaired, stat.lacking, stat.chunks), (200, 0, 200));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_read_is_mended() {
    let cluster = Cluster::start(2).await;
    let chunk = chunk(b"precious");
    cluster.put(&[1, 2], std::slice::from_ref(&chunk));
    cluster.change(|state| state.set(&[chunk.id], true));
    cluster.until_in_sync().await;
    cluster.store(1).damage(&chunk.id, Bytes::from_static(b"preciOus"));
    match cluster.get(1, chunk.id).await {
        Err(CallError::Refused(error)) => assert_eq!(error.code, Code::Corrupt),
        other => panic!("{other:?}"),
    }
    let store = cluster.store(1);
    cluster.holds("mended", || store.has(&chunk.id).unwrap()).await;
    assert_eq!(cluster.get(1, chunk.id).await.unwrap(), chunk.bytes);
    cluster.until_heard(1).await;
    assert_eq!((cluster.stat(1).corrupt_found, cluster.stat(1).repaired), (1, 1));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scrub_finds_a_flipped_bit_that_nobody_reads() {
    let cluster = Cluster::start(2).await;
    let chunks = chunks(300);
    cluster.put(&[1, 2], &chunks);
    cluster.change(|state| state.set(&ids(&chunks), true));
    cluster.until_in_sync().await;
    let victim = &chunks[123];
    let mut wrong = victim.bytes.to_vec();
    wrong[5] ^= 0x10;
    cluster.store(2).damage(&victim.id, Bytes::from(wrong));
    cluster.change(|state| state.orders.scrub = 4);
    cluster
        .until("the order is carried out", |state| {
            state.stats.values().filter(|stat| stat.scrubbed == 4).count() == 2
        })
        .await;
    cluster.until_in_sync().await;
    assert_eq!(cluster.store(2).get(&victim.id).unwrap().unwrap(), victim.bytes);
    cluster.until_heard(2).await;
    let stat = cluster.stat(2);
    assert_eq!((stat.corrupt_found, stat.repaired), (1, 1));
    assert!(stat.oldest_unverified_s.is_some());
    // A restart remembers the order.
    cluster.stop_server(2).await;
    cluster.store(2).reopen();
    cluster.change(|state| drop(state.stats.remove(&NodeId(2))));
    cluster.start_server(2);
    cluster
        .until("the order is not carried out again", |state| {
            state.stats.get(&NodeId(2)).is_some_and(|stat| stat.scrubbed == 4)
        })
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_has_is_a_dead_letter_until_somebody_has_it() {
    let cluster = Cluster::start_with(2, |config| config.repair_retry_ms = 1).await;
    let chunk = chunk(b"lost");
    cluster.change(|state| state.set(&[chunk.id], true));
    let dead = |state: &super::master::State, node| {
        state.stats.get(&NodeId(node)).is_some_and(|stat| stat.dead_letters == 1)
    };
    cluster.until("given up", |state| dead(state, 1) && dead(state, 2)).await;
    let ask = ChunkRequest::Lacking { after: None, limit: 10 };
    let (answer, _) = cluster.ask(1, ask.clone()).await.unwrap();
    let ChunkResponse::Lacking(lacking) = answer else { panic!("{answer:?}") };
    let [Lacking { id, corrupt: false, attempts: 10, dead: true }] = lacking[..] else {
        panic!("{lacking:?}")
    };
    assert_eq!(id, chunk.id);
    // A reader comes back up, with the chunk.
    cluster.change(|state| {
        state.down.insert(NodeId(2));
        state.change_view(false);
    });
    cluster.put(&[2], std::slice::from_ref(&chunk));
    // Both looked at the cluster while it was down.
    let looked = cluster.state().looks;
    cluster.until("both looked", |state| state.looks >= looked + 4).await;
    cluster.change(|state| {
        state.down.clear();
        state.change_view(false);
    });
    let store = cluster.store(1);
    cluster.holds("fetched", || store.has(&chunk.id).unwrap()).await;
    cluster.until_in_sync().await;
    cluster.until_heard(1).await;
    assert_eq!(cluster.stat(1).dead_letters, 0);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_server_is_refilled_without_asking_the_master_for_ids() {
    let cluster = Cluster::start(3).await;
    let chunks = chunks(1500);
    cluster.put(&[1, 2, 3], &chunks);
    cluster.change(|state| state.set(&ids(&chunks), true));
    cluster.until_in_sync().await;
    cluster.stop_server(3).await;
    cluster.change(|state| {
        state.forget_deltas();
        state.in_sync.remove(&NodeId(3));
        state.walks.clear();
    });
    cluster.start_wiped(3);
    cluster.until_in_sync().await;
    let store = cluster.store(3);
    assert!(chunks.iter().all(|chunk| store.get(&chunk.id).unwrap().unwrap() == chunk.bytes));
    let walks = cluster.state().walks.get(&NodeId(3)).copied().unwrap_or_default();
    assert_eq!(walks.1, 0, "questions for ids");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_lost_its_index_while_running_fills_up_again() {
    let cluster = Cluster::start(3).await;
    let chunks = chunks(200);
    cluster.put(&[1, 2, 3], &chunks);
    cluster.change(|state| state.set(&ids(&chunks), true));
    cluster.until_in_sync().await;
    let store = cluster.store(1);
    store.lose_index();
    assert!(store.refilling());
    cluster.holds("full again", || !store.refilling()).await;
    assert!(chunks.iter().all(|chunk| store.has(&chunk.id).unwrap()));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_its_own_quarantine_is_not_fetched() {
    let cluster = Cluster::new(|_| {});
    let kept = chunk(b"kept");
    cluster.put(&[1], std::slice::from_ref(&kept));
    cluster.store(1).quarantine(&[kept.id], NOT_YET_PURGED).unwrap();
    cluster.start_servers(2).await;
    // The other server does not have it, so it can only come from the quarantine.
    cluster.change(|state| state.set(&[kept.id], true));
    cluster.until_in_sync().await;
    for server in [1, 2] {
        assert_eq!(cluster.body(server, &kept.id), Some((true, Body::Present)));
    }
    assert_eq!(cluster.get(2, kept.id).await.unwrap(), kept.bytes);
    assert!(cluster.get(1, ChunkId([1; 32])).await.is_err());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_server_has_its_quarantine() {
    let cluster = Cluster::new(|_| {});
    let kept = chunk(b"kept");
    cluster.put(&[1], std::slice::from_ref(&kept));
    cluster.store(1).quarantine(&[kept.id], NOT_YET_PURGED).unwrap();
    cluster.start_servers(1).await;
    cluster.change(|state| state.set(&[kept.id], true));
    cluster.until_in_sync().await;
    assert_eq!(cluster.body(1, &kept.id), Some((true, Body::Present)));
    cluster.stop().await;
}
