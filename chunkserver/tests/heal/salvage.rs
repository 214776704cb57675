//! A server whose index is damaged takes its chunks back from its own disk.

use std::fs;

use atoll_chunkserver::store::rocks::RocksStore;
use atoll_chunkserver::store::{ChunkStore, NewChunk};

use super::cluster::{Cluster, chunk, chunks, ids};

/// Chunks that go to segment files.
fn large(count: u8) -> Vec<NewChunk> {
    (0..count).map(|n| chunk(&vec![n; 200_000])).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_a_damaged_server_has_comes_back_from_its_disk() {
    let cluster = Cluster::new(|_| {});
    cluster.start_on_disk(1);
    cluster.start_server(2);
    cluster.start_server(3);
    cluster.until_registered(3).await;
    cluster.stop_server(1).await;
    let chunks = large(60);
    let dir = cluster.data(1).join("chunks");
    let store = RocksStore::open(&dir, None).unwrap();
    store.put_batch(&chunks[..30]).unwrap();
    store.put_batch(&chunks[30..]).unwrap();
    drop(store);
    fs::remove_file(dir.join("CURRENT")).unwrap();
    cluster.change(|state| state.set(&ids(&chunks), true));
    cluster.start_on_disk(1);
    // The others fetch them from there.
    cluster.until_in_sync().await;
    for server in [1, 2] {
        for chunk in &chunks {
            assert_eq!(cluster.get(server, chunk.id).await.unwrap(), chunk.bytes);
        }
    }
    let aside = cluster.data(1).join("chunks.damaged-1");
    cluster.holds("deleted what was set aside", || !aside.exists()).await;
    cluster.until_heard(1).await;
    let stat = cluster.stat(1);
    assert_eq!((stat.chunks, stat.lacking, stat.dead_letters), (60, 0, 0));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_set_aside_in_use_is_taken_back_without_the_others() {
    let cluster = Cluster::start(2).await;
    let chunks = chunks(200);
    cluster.put(&[1, 2], &chunks);
    cluster.change(|state| state.set(&ids(&chunks), true));
    cluster.until_in_sync().await;
    cluster.stop_server(2).await;
    let store = cluster.store(1);
    store.set_aside();
    assert!(store.refilling() && store.has_aside());
    cluster.holds("full again", || !store.refilling()).await;
    for chunk in &chunks {
        assert_eq!(cluster.get(1, chunk.id).await.unwrap(), chunk.bytes);
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_taken_back_is_fetched_and_kept_all_the_same() {
    let cluster = Cluster::start(2).await;
    let chunks = chunks(200);
    cluster.put(&[1, 2], &chunks);
    cluster.change(|state| state.set(&ids(&chunks), true));
    cluster.until_in_sync().await;
    let store = cluster.store(1);
    store.fail_salvage(true);
    store.set_aside();
    cluster.holds("fetched", || chunks.iter().all(|it| store.has(&it.id).unwrap())).await;
    cluster.until_in_sync().await;
    cluster.until_heard(1).await;
    assert!(store.refilling() && store.has_aside(), "it was not gone through");
    store.fail_salvage(false);
    cluster.holds("full again", || !store.refilling()).await;
    assert!(!store.has_aside());
    cluster.stop().await;
}
