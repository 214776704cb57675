//! A disk without room: nothing that was acknowledged is lost, reads go on, and puts work again
//! once there is room.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::numbered;
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
fn a_disk_that_something_else_fills_loses_nothing_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let Some((disk, ballast, store)) = on_a_small_disk(dir.path(), 0) else { return };
    let mut stored: Vec<NewChunk> = (0..60).map(|n| numbered(n, 256 << 10)).collect();
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
