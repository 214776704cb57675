//! A disk without room: nothing that was acknowledged is lost, reads go on, and puts work again
//! once there is room.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{NOW, assert_consistent, numbered};
use crate::store::rocks::RocksStore;
use crate::store::{ChunkStore, NewChunk, StoreError, Totals};

#[test]
fn puts_leave_the_reserve_free() {
    let dir = tempfile::tempdir().unwrap();
    let store = RocksStore::create(dir.path(), Some(u64::MAX)).unwrap();
    let refused = store.put_batch(&[numbered(1, 10)]);
    assert!(matches!(refused, Err(StoreError::Full { reserve: u64::MAX, .. })), "{refused:?}");
    assert_eq!(store.totals(), Totals::default());
    assert_eq!(store.get(&numbered(1, 10).id).unwrap(), None);
}

/// A small file system of its own, where the test may mount one.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, bytes: u64) -> Option<Self> {
        let size = format!("size={bytes}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at);
        let mounted = mount.status().is_ok_and(|status| status.success());
        mounted.then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "cannot unmount {:?}", self.0);
    }
}

/// A store on a disk of 64 MiB, of which something else has 24; `None` where mounting is not
/// permitted.
fn on_a_small_disk(dir: &Path, reserve: u64) -> Option<(SmallDisk, PathBuf, RocksStore)> {
    let disk = SmallDisk::mount(dir, 64 << 20);
    if disk.is_none() {
        eprintln!("SKIPPED: this test needs to be allowed to mount a tmpfs");
    }
    let ballast = dir.join("ballast");
    std::fs::write(&ballast, vec![1; 24 << 20]).unwrap();
    let store = RocksStore::create(&dir.join("store"), Some(reserve)).unwrap();
    disk.map(|disk| (disk, ballast, store))
}

/// Puts chunks until one is refused; returns the stored ones and the refused one.
fn fill(store: &RocksStore) -> (Vec<NewChunk>, NewChunk) {
    let mut stored = Vec::new();
    for n in 0..2000 {
        let chunk = numbered(n, 256 << 10);
        match store.put_batch(std::slice::from_ref(&chunk)) {
            Ok(_) => stored.push(chunk),
            Err(StoreError::Full { .. }) => return (stored, chunk),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("64 MiB do not hold 500 MiB");
}

fn check_all(store: &RocksStore, stored: &[NewChunk]) {
    assert_eq!(store.totals().chunks, stored.len() as u64);
    for chunk in stored {
        assert_eq!(store.get(&chunk.id).unwrap().unwrap(), chunk.bytes);
    }
}

fn put_until_it_works(store: &RocksStore, chunk: &NewChunk) {
    let started = std::time::Instant::now();
    while let Err(error) = store.put_batch(std::slice::from_ref(chunk)) {
        assert!(started.elapsed().as_secs() < 20, "puts do not work again: {error}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn a_full_disk_refuses_puts_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let Some((disk, ballast, store)) = on_a_small_disk(dir.path(), 2 << 20) else { return };
    let (mut stored, late) = fill(&store);
    assert!(stored.len() > 100, "only {} of about 140 fit", stored.len());
    check_all(&store, &stored);
    store.put_batch(&stored[..3]).expect("what is here already needs no room");
    drop(store);
    let store = RocksStore::open(&dir.path().join("store"), Some(2 << 20)).unwrap();
    check_all(&store, &stored);

    std::fs::remove_file(&ballast).unwrap();
    store.put_batch(std::slice::from_ref(&late)).unwrap();
    stored.push(late);
    check_all(&store, &stored);
    drop(store);
    drop(disk);
}

#[test]
fn a_disk_more_than_half_full_takes_back_what_was_set_aside() {
    const RESERVE: u64 = 12 << 20;
    let dir = tempfile::tempdir().unwrap();
    let Some((disk, _ballast, store)) = on_a_small_disk(dir.path(), RESERVE) else { return };
    let (stored, _) = fill(&store);
    assert!(stored.len() > 80, "only {} fit", stored.len());
    drop(store);
    let path = dir.path().join("store");
    std::fs::remove_file(path.join("CURRENT")).unwrap();
    let store = RocksStore::replace(&path, Some(RESERVE), &[]).unwrap();
    let bytes: usize = stored.iter().map(|chunk| chunk.bytes.len()).sum();
    assert!(store.space().unwrap().free < bytes as u64 * 3 / 4, "it must not fit twice");
    while !store.salvage(NOW, 1 << 20).unwrap().complete {}
    check_all(&store, &stored);
    assert!(store.finish_refill().unwrap());
    check_all(&store, &stored);
    assert_consistent(&store);
    drop(store);
    drop(disk);
}

#[test]
fn a_disk_that_something_else_fills_loses_nothing_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let Some((disk, ballast, store)) = on_a_small_disk(dir.path(), 0) else { return };
    let mut stored: Vec<NewChunk> = (0..250).map(|n| numbered(n, 60 << 10)).collect();
    store.put_batch(&stored).unwrap();
    // Up to the last byte, so that RocksDB itself fails to write.
    let filled = std::fs::write(dir.path().join("more"), vec![2; 64 << 20]);
    assert!(filled.is_err());
    let late = numbered(1000, 256 << 10);
    let error = store.put_blindly(&late).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    check_all(&store, &stored);
    let error = store.put_batch(std::slice::from_ref(&late)).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    check_all(&store, &stored);

    // Opened on a full disk it serves reads, and takes puts once there is room.
    drop(store);
    let store = RocksStore::open(&dir.path().join("store"), Some(0)).unwrap();
    check_all(&store, &stored);
    let error = store.put_batch(std::slice::from_ref(&late)).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    check_all(&store, &stored);
    std::fs::remove_file(&ballast).unwrap();
    std::fs::remove_file(dir.path().join("more")).unwrap();
    put_until_it_works(&store, &late);
    stored.push(late);
    check_all(&store, &stored);
    drop(store);
    let store = RocksStore::open(&dir.path().join("store"), Some(0)).unwrap();
    check_all(&store, &stored);
    drop(store);
    drop(disk);
}

/// Takes all the room there is.
fn fill_up(dir: &Path) -> PathBuf {
    let path = dir.join("more");
    assert!(std::fs::write(&path, vec![2; 64 << 20]).is_err());
    path
}

#[test]
fn deleting_works_on_a_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    let Some((disk, _ballast, store)) = on_a_small_disk(dir.path(), 0) else { return };
    let mut stored: Vec<NewChunk> = (0..40).map(|n| numbered(n, 256 << 10)).collect();
    stored.extend((40..80).map(|n| numbered(n, 9000)));
    for batch in stored.chunks(10) {
        store.put_batch(batch).unwrap();
    }
    let ids: Vec<_> = stored.iter().map(|chunk| chunk.id).collect();
    assert_eq!(store.quarantine(&ids[..30], NOW).unwrap(), 30);
    assert_eq!(store.quarantine(&ids[60..], NOW).unwrap(), 20);
    fill_up(dir.path());
    let purged = store.purge(NOW + 1, usize::MAX).unwrap();
    assert_eq!(purged.chunks, 50);
    stored.drain(60..);
    stored.drain(..30);
    check_all(&store, &stored);
    let free = store.space().unwrap().free;
    assert!(free > 7 << 20, "only {free} bytes are free again");
    put_until_it_works(&store, &numbered(1000, 256 << 10));
    stored.push(numbered(1000, 256 << 10));
    assert_consistent(&store);
    drop(store);
    let store = RocksStore::open(&dir.path().join("store"), Some(0)).unwrap();
    check_all(&store, &stored);
    drop(store);
    drop(disk);
}

#[test]
fn segments_on_a_disk_that_something_else_fills_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Some((disk, _ballast, store)) = on_a_small_disk(dir.path(), 0) else { return };
    let mut stored = Vec::new();
    let mut refused = 0;
    let mut more = None;
    for n in 0..400 {
        let chunk = numbered(n, 100_000);
        match store.put_batch(std::slice::from_ref(&chunk)) {
            Ok(_) => stored.push(chunk),
            Err(StoreError::Full { .. }) => refused += 1,
            // Opening again is not tried at once after it failed.
            Err(StoreError::Disk { .. }) if more.is_some() => refused += 1,
            Err(error) => panic!("{error}"),
        }
        match n % 100 {
            40 => more = Some(fill_up(dir.path())),
            70 => std::fs::remove_file(more.take().unwrap()).unwrap(),
            _ => {}
        }
    }
    assert!(refused > 50 && stored.len() > 50, "{refused} refused, {} stored", stored.len());
    check_all(&store, &stored);
    assert_consistent(&store);
    drop(store);
    let store = RocksStore::open(&dir.path().join("store"), Some(0)).unwrap();
    check_all(&store, &stored);
    drop(store);
    drop(disk);
}
