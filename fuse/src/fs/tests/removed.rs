//! Files that lose names, here and on other mounts, while they have changes.

use super::*;

/// A file `f` that is open for writing on the first mount; `g`, which the second mount gave it, is
/// unknown to the first.
async fn linked_elsewhere(one: &Fs, two: &Fs) -> (InodeId, u64) {
    let inode = save(one, "f", b"old").await;
    let handle = one.open(inode, WRITE).await.unwrap().handle;
    two.link(inode, ROOT, "g".into()).await.unwrap();
    (inode, handle)
}

/// What is written goes to the name that is left.
async fn reaches_the_other_name(fake: &Fake, mounts: [&Fs; 2], inode: InodeId, handle: u64) {
    let [one, two] = mounts;
    assert_eq!(one.getattr(inode).await.unwrap().nlink, 1);
    one.write(handle, 0, b"NEWDATA", HERE).await.unwrap();
    one.flush(handle).await.unwrap();
    one.release(handle);
    assert_eq!(fake.committed(inode).unwrap(), b"NEWDATA");
    assert_eq!(
        (load(one, "g").await, load(two, "g").await),
        (b"NEWDATA".into(), b"NEWDATA".into())
    );
}

#[test]
fn an_unlink_leaves_names_given_elsewhere() {
    run(async {
        let fake = Fake::new();
        let (one, two) = (fs(&fake), fs(&fake));
        let (inode, handle) = linked_elsewhere(&one, &two).await;
        one.unlink(ROOT, "f".into()).await.unwrap();
        reaches_the_other_name(&fake, [&one, &two], inode, handle).await;
        // The last name is the last.
        let handle = one.open(inode, WRITE).await.unwrap().handle;
        one.unlink(ROOT, "g".into()).await.unwrap();
        one.write(handle, 0, b"for nobody", HERE).await.unwrap();
        one.flush(handle).await.unwrap();
        one.release(handle);
        assert!(one.getattr(inode).await.is_err());
    });
}

#[test]
fn a_rename_over_a_file_leaves_names_given_elsewhere() {
    run(async {
        let fake = Fake::new();
        let (one, two) = (fs(&fake), fs(&fake));
        let (inode, handle) = linked_elsewhere(&one, &two).await;
        save(&one, "other", b"other").await;
        one.rename(ROOT, "other".into(), ROOT, "f".into(), RenameMode::Replace).await.unwrap();
        reaches_the_other_name(&fake, [&one, &two], inode, handle).await;
        assert_eq!(load(&one, "f").await, b"other");
    });
}

#[test]
fn changes_kept_after_close_reach_names_given_elsewhere() {
    run(async {
        let fake = Fake::new();
        let (one, two) = (fs(&fake), fs(&fake));
        let (inode, handle) = linked_elsewhere(&one, &two).await;
        fake.refuse_puts.store(true, Ordering::Relaxed);
        one.write(handle, 0, b"new", HERE).await.unwrap();
        one.flush(handle).await.unwrap_err();
        one.release(handle);
        one.unlink(ROOT, "f".into()).await.unwrap();
        fake.refuse_puts.store(false, Ordering::Relaxed);
        assert_eq!(one.flush_all().await, 0);
        assert_eq!(fake.committed(inode).unwrap(), b"new");
    });
}

#[test]
fn a_late_flush_that_fails_leaves_the_error_to_who_opened_the_file_again() {
    run(async {
        let fake = Fake::new();
        let (one, two) = (fs(&fake), fs(&fake));
        let inode = save(&one, "a", b"content").await;
        let first = one.open(inode, WRITE).await.unwrap().handle;
        one.write(first, 0, b"x", HERE).await.unwrap();
        // The late flush hangs until the file is open again.
        let held = fake.put_gate.acquire_many(1000).await.unwrap();
        one.release(first);
        let second = one.open(inode, WRITE).await.unwrap().handle;
        one.write(second, 1, b"y", HERE).await.unwrap();
        two.lookup(ROOT, "a".into()).await.unwrap();
        two.unlink(ROOT, "a".into()).await.unwrap();
        drop(held);
        let file = one.open_file(inode).unwrap();
        one.settle(&file).await;
        assert_eq!(one.read(second, 0, 99).await.unwrap(), "xyntent");
        let error = one.flush(second).await.unwrap_err();
        assert_eq!(errno::of(&error), libc::ESTALE);
        one.release(second);
        one.settle(&file).await;
        assert_eq!((one.flush_all().await, one.unsent_bytes()), (0, 0));
    });
}

/// Between the answer to an open and its use another handle may write, commit and close the file.
/// An open that has asked for the file and, with the gate held, has no answer yet.
async fn begin_open(fake: &Fake, fs: &Fs, inode: InodeId) -> tokio::task::JoinHandle<u64> {
    let before = fake.extents_asked.load(Ordering::Relaxed);
    let fs = fs.clone();
    let open = tokio::spawn(async move { fs.open(inode, WRITE).await.unwrap().handle });
    while fake.extents_asked.load(Ordering::Relaxed) == before {
        tokio::task::yield_now().await;
    }
    open
}

#[test]
fn an_open_that_a_close_overtakes_finds_what_was_closed() {
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        let inode = save(&fs, "a", b"0123456789").await;
        let first = fs.open(inode, WRITE).await.unwrap().handle;
        let held = fake.extents_gate.acquire_many(1000).await.unwrap();
        let open = begin_open(&fake, &fs, inode).await;
        fs.write(first, 0, b"written", HERE).await.unwrap();
        fs.flush(first).await.unwrap();
        fs.release(first);
        drop(held);
        let second = open.await.unwrap();
        assert_eq!(fs.read(second, 0, 99).await.unwrap(), "written789");
        fs.write(second, 9, b"!", HERE).await.unwrap();
        fs.flush(second).await.unwrap();
        fs.release(second);
        assert_eq!(fake.committed(inode).unwrap(), b"written78!");
    });
}

#[test]
fn an_open_that_other_attributes_overtake_does_not_ask_again() {
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        let inode = save(&fs, "a", b"0123456789").await;
        let held = fake.extents_gate.acquire_many(1000).await.unwrap();
        let before = fake.extents_asked.load(Ordering::Relaxed);
        let open = begin_open(&fake, &fs, inode).await;
        let set = SetAttrs { mode: Some(0o600), ..SetAttrs::default() };
        fs.setattr(inode, None, set).await.unwrap();
        drop(held);
        let handle = open.await.unwrap();
        assert_eq!(fake.extents_asked.load(Ordering::Relaxed), before + 1);
        assert_eq!(fs.read(handle, 0, 99).await.unwrap(), "0123456789");
        fs.release(handle);
    });
}

#[test]
fn a_flush_during_a_removal_does_not_fail() {
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        // The requests of the two meet in every order.
        for (early, late) in (0..8).flat_map(|n| [(n, 0), (0, n)]) {
            for rename in [false, true] {
                let inode = save(&fs, "a", b"content").await;
                save(&fs, "new", b"new").await;
                let handle = fs.open(inode, WRITE).await.unwrap().handle;
                fs.write(handle, 0, b"x", HERE).await.unwrap();
                let flush = async {
                    pause(early).await;
                    fs.flush(handle).await
                };
                let removal = async {
                    pause(late).await;
                    if rename {
                        let (from, to) = ("new".into(), "a".into());
                        fs.rename(ROOT, from, ROOT, to, RenameMode::Replace).await
                    } else {
                        fs.unlink(ROOT, "a".into()).await
                    }
                };
                let (flushed, removed) = futures_util::future::join(flush, removal).await;
                removed.unwrap();
                flushed.unwrap();
                assert_eq!(fs.getattr(inode).await.unwrap().nlink, 0);
                fs.release(handle);
                fs.unlink(ROOT, if rename { "a" } else { "new" }.into()).await.unwrap();
            }
        }
    });
}

async fn pause(turns: usize) {
    for _ in 0..turns {
        tokio::task::yield_now().await;
    }
}
