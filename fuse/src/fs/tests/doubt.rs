//! Commits whose answers do not come.

use super::super::fake::Lost;
use super::*;

fn lose(fake: &Fake, lost: &[Lost]) {
    fake.faults.lose.lock().unwrap().extend(lost);
}

/// A file that ends in "one", appended by a commit that was not answered.
async fn in_doubt(fake: &Arc<Fake>, fs: &Fs, lost: Lost) -> (InodeId, u64) {
    let inode = save(fs, "log", b"begin ").await;
    let handle = fs.open(inode, WRITE).await.unwrap().handle;
    fs.write(handle, 0, b"one ", APPEND).await.unwrap();
    lose(fake, &[lost]);
    let error = fs.flush(handle).await.unwrap_err();
    assert_eq!(errno::of(&error), libc::EIO, "{error}");
    (inode, handle)
}

#[test]
fn what_was_appended_without_an_answer_is_there_once() {
    for lost in [Lost::Request, Lost::Reply] {
        run(async {
            let fake = Fake::new();
            let fs = fs(&fake);
            let (inode, handle) = in_doubt(&fake, &fs, lost).await;
            fs.write(handle, 0, b"two ", APPEND).await.unwrap();
            assert_eq!(fs.read(handle, 0, 99).await.unwrap(), "begin one two ");
            fs.flush(handle).await.unwrap();
            fs.flush(handle).await.unwrap();
            fs.release(handle);
            assert_eq!(fake.committed(inode).unwrap(), b"begin one two ", "{lost:?}");
        });
    }
}

#[test]
fn it_is_there_once_also_when_others_append_behind_it() {
    for lost in [Lost::Request, Lost::Reply] {
        run(async {
            let fake = Fake::new();
            let (one, two) = (fs(&fake), fs(&fake));
            // It takes a while until anybody knows.
            fake.faults.silent.store(true, Ordering::Relaxed);
            let (inode, handle) = in_doubt(&fake, &one, lost).await;
            let theirs = two.open(inode, WRITE).await.unwrap().handle;
            two.write(theirs, 0, b"theirs ", APPEND).await.unwrap();
            two.flush(theirs).await.unwrap();
            two.release(theirs);
            one.write(handle, 0, b"two ", APPEND).await.unwrap();
            one.flush(handle).await.unwrap_err();
            // Then the next answer is lost as well.
            fake.faults.silent.store(false, Ordering::Relaxed);
            lose(&fake, &[lost]);
            while one.flush(handle).await.is_err() {}
            one.release(handle);
            let expected: &[u8] = match lost {
                Lost::Request => b"begin theirs one two ",
                Lost::Reply => b"begin one theirs two ",
            };
            assert_eq!(fake.committed(inode).unwrap(), expected);
        });
    }
}

#[test]
fn what_was_written_without_an_answer_does_not_take_the_place_of_what_came_after() {
    for lost in [Lost::Request, Lost::Reply] {
        run(async {
            let fake = Fake::new();
            let (one, two) = (fs(&fake), fs(&fake));
            let inode = save(&one, "log", b"old").await;
            fake.faults.silent.store(true, Ordering::Relaxed);
            let handle = one.open(inode, EMPTY).await.unwrap().handle;
            one.write(handle, 0, b"one ", HERE).await.unwrap();
            lose(&fake, &[lost]);
            one.flush(handle).await.unwrap_err();
            let theirs = two.open(inode, WRITE).await.unwrap().handle;
            two.write(theirs, 0, b"two ", APPEND).await.unwrap();
            two.flush(theirs).await.unwrap();
            two.release(theirs);
            fake.faults.silent.store(false, Ordering::Relaxed);
            one.flush(handle).await.unwrap();
            one.release(handle);
            let expected: &[u8] = match lost {
                // Whoever closes last wins.
                Lost::Request => b"one ",
                Lost::Reply => b"one two ",
            };
            assert_eq!(fake.committed(inode).unwrap(), expected);
            assert_eq!(load(&one, "log").await, expected);
        });
    }
}

#[test]
fn a_length_of_which_nobody_knows_whether_it_was_set_takes_nothing_that_is_written_then() {
    for lost in [Lost::Request, Lost::Reply] {
        run(async {
            let fake = Fake::new();
            let fs = fs(&fake);
            let inode = save(&fs, "f", b"0123456789").await;
            let handle = fs.open(inode, WRITE).await.unwrap().handle;
            for size in [4, 0] {
                fake.faults.silent.store(true, Ordering::Relaxed);
                lose(&fake, &[lost]);
                let set = SetAttrs { size: Some(size), ..SetAttrs::default() };
                fs.setattr(inode, None, set).await.unwrap_err();
                fs.write(handle, 0, b"written", HERE).await.unwrap();
                fake.faults.silent.store(false, Ordering::Relaxed);
                fs.flush(handle).await.unwrap();
                let found = fake.committed(inode).unwrap();
                assert_eq!(found[..7], b"written"[..], "{lost:?} {size}");
            }
            fs.release(handle);
        });
    }
}

#[test]
fn what_failed_at_close_comes_late_but_not_after_what_others_wrote() {
    for theirs in [None, Some("two")] {
        run(async {
            let fake = Fake::new();
            let (one, two) = (fs(&fake), fs(&fake));
            let inode = save(&one, "f", b"old").await;
            let handle = one.open(inode, EMPTY).await.unwrap().handle;
            one.write(handle, 0, b"one", HERE).await.unwrap();
            fake.faults.silent.store(true, Ordering::Relaxed);
            lose(&fake, &[Lost::Request]);
            one.flush(handle).await.unwrap_err();
            one.release(handle);
            match theirs {
                Some(text) => {
                    let handle = two.open(inode, EMPTY).await.unwrap().handle;
                    two.write(handle, 0, text.as_bytes(), HERE).await.unwrap();
                    two.flush(handle).await.unwrap();
                    two.release(handle);
                }
                // That is another version of the inode as well, but of what it holds.
                None => {
                    let set = SetAttrs { mode: Some(0o600), ..SetAttrs::default() };
                    two.setattr(inode, None, set).await.unwrap();
                }
            }
            fake.faults.silent.store(false, Ordering::Relaxed);
            one.retry_closed().await;
            let expected = theirs.unwrap_or("one").as_bytes();
            assert_eq!(fake.committed(inode).unwrap(), expected);
            assert_eq!(load(&one, "f").await, expected);
            assert_eq!(one.flush_all().await, 0, "nothing is left to commit");
        });
    }
}

#[test]
fn what_is_appended_after_a_length_was_in_doubt_is_there_once() {
    // What is appended before, if anything; to set another length than 0 would commit that.
    let unsaved = b"unsaved ".as_slice();
    for (lost, size, before) in [
        (Lost::Request, 0, b"".as_slice()),
        (Lost::Reply, 0, b""),
        (Lost::Request, 20, b""),
        (Lost::Reply, 20, b""),
        (Lost::Request, 0, unsaved),
        (Lost::Reply, 0, unsaved),
    ] {
        run(async {
            let fake = Fake::new();
            let (one, two) = (fs(&fake), fs(&fake));
            let inode = save(&one, "log", b"0123456789").await;
            let handle = one.open(inode, WRITE).await.unwrap().handle;
            if !before.is_empty() {
                one.write(handle, 0, before, APPEND).await.unwrap();
            }
            fake.faults.silent.store(true, Ordering::Relaxed);
            lose(&fake, &[lost]);
            let set = SetAttrs { size: Some(size), ..SetAttrs::default() };
            one.setattr(inode, None, set).await.unwrap_err();
            let theirs = two.open(inode, WRITE).await.unwrap().handle;
            two.write(theirs, 0, b"theirs ", APPEND).await.unwrap();
            two.flush(theirs).await.unwrap();
            two.release(theirs);
            one.write(handle, 0, b"own", APPEND).await.unwrap();
            fake.faults.silent.store(false, Ordering::Relaxed);
            one.flush(handle).await.unwrap();
            one.release(handle);
            let mut expected = b"0123456789".to_vec();
            if lost == Lost::Reply {
                expected.resize(usize::try_from(size).unwrap(), 0);
            }
            expected.extend([b"theirs ", before, b"own"].concat());
            let found = fake.committed(inode).unwrap();
            let shown = String::from_utf8_lossy(&found);
            assert_eq!(found, expected, "{lost:?} {size} {before:?}: {shown}");
        });
    }
}

#[test]
fn doubt_ends_by_itself_and_does_not_outlive_its_session() {
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        let (inode, handle) = in_doubt(&fake, &fs, Lost::Reply).await;
        // Nobody flushes it: the number of the request must not be in use for ever.
        let file = fs.open_file(inode).unwrap();
        while file.lock().doubt().is_some() {
            tokio::task::yield_now().await;
        }
        assert!(!file.lock().is_changed());
        fs.write(handle, 0, b"two ", APPEND).await.unwrap();
        lose(&fake, &[Lost::Reply]);
        fake.faults.forgetful.store(true, Ordering::Relaxed);
        fs.flush(handle).await.unwrap_err();
        fs.flush(handle).await.unwrap();
        fs.release(handle);
        assert_eq!(fake.committed(inode).unwrap(), b"begin one two ");
    });
}
