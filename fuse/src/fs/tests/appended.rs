//! Files that several mounts append to.

use super::*;

async fn append(fs: &Fs, handle: u64, record: &str) {
    fs.write(handle, 0, record.as_bytes(), APPEND).await.unwrap();
}

async fn close(fs: &Fs, handle: u64) {
    fs.flush(handle).await.unwrap();
    fs.release(handle);
}

/// What was sent in the background gives its memory back when it comes to it.
async fn all_sent(fs: &Fs) {
    while fs.unsent_bytes() > 0 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn appends_of_two_mounts_all_end_up_in_the_file() {
    run(async {
        let fake = Fake::new();
        let (one, two) = (fs(&fake), fs(&fake));
        let inode = save(&one, "log", b"begin\n").await;
        let a = one.open(inode, WRITE).await.unwrap().handle;
        let b = two.open(inode, WRITE).await.unwrap().handle;
        append(&one, a, "one: a record of more than a chunk\n").await;
        append(&two, b, "two: short\n").await;
        append(&one, a, "one: more\n").await;
        two.flush(b).await.unwrap();
        one.flush(a).await.unwrap();
        append(&two, b, "two: the last one, which is a longer record\n").await;
        close(&two, b).await;
        close(&one, a).await;
        let expected = "begin\ntwo: short\none: a record of more than a chunk\none: more\n\
                        two: the last one, which is a longer record\n";
        assert_eq!(String::from_utf8(fake.committed(inode).unwrap()).unwrap(), expected);
        // The kernel has pages of it where it was before: the next open drops them.
        let opened = one.open(inode, READ).await.unwrap();
        assert!(!opened.keep_cache);
        one.release(opened.handle);
        let again = one.open(inode, READ).await.unwrap();
        assert!(again.keep_cache);
        one.release(again.handle);
        // Whoever opens it sees it all, also where it was appended to.
        assert_eq!(load(&one, "log").await, expected.as_bytes());
        assert_eq!(one.getattr(inode).await.unwrap().size, expected.len() as u64);
    });
}

#[test]
fn what_is_appended_while_a_commit_is_under_way_comes_after_it() {
    run(async {
        let fake = Fake::new();
        let (one, two) = (fs(&fake), fs(&fake));
        let inode = save(&one, "log", b"").await;
        let mut writers = Vec::new();
        for (n, fs) in [one.clone(), two.clone(), one.clone(), two.clone()].into_iter().enumerate()
        {
            writers.push(tokio::spawn(async move {
                let handle = fs.open(inode, WRITE).await.unwrap().handle;
                for i in 0..25 {
                    append(&fs, handle, &format!("[{n} {i} {}]", "x".repeat(i))).await;
                    fs.flush(handle).await.unwrap();
                }
                close(&fs, handle).await;
            }));
        }
        for writer in writers {
            writer.await.unwrap();
        }
        let text = String::from_utf8(fake.committed(inode).unwrap()).unwrap();
        for n in 0..4 {
            let mut at = 0;
            for i in 0..25 {
                let record = format!("[{n} {i} {}]", "x".repeat(i));
                let found = text[at..].find(&record).expect("every record, in order, whole");
                at += found + record.len();
            }
        }
        let total: usize =
            (0..4).flat_map(|n| (0..25).map(move |i| format!("[{n} {i} ]").len() + i)).sum();
        assert_eq!(text.len(), total, "nothing twice");
    });
}

#[test]
fn what_only_appends_since_the_last_commit_is_kept_beside_that_of_others() {
    run(async {
        let fake = Fake::new();
        let (one, two) = (fs(&fake), fs(&fake));
        let inode = save(&one, "log", b"old").await;
        let handle = one.open(inode, EMPTY).await.unwrap().handle;
        append(&one, handle, "one ").await;
        // It goes on appending while the commit of the emptied file is under way.
        let held = fake.put_gate.acquire_many(1000).await.unwrap();
        let before = fake.puts.load(Ordering::Relaxed);
        let flush = tokio::spawn({
            let one = one.clone();
            async move { one.flush(handle).await }
        });
        while fake.puts.load(Ordering::Relaxed) == before {
            tokio::task::yield_now().await;
        }
        append(&one, handle, "more ").await;
        drop(held);
        flush.await.unwrap().unwrap();
        assert_eq!(fake.committed(inode).unwrap(), b"one ");
        let theirs = two.open(inode, WRITE).await.unwrap().handle;
        append(&two, theirs, "two ").await;
        close(&two, theirs).await;
        close(&one, handle).await;
        assert_eq!(fake.committed(inode).unwrap(), b"one two more ");
    });
}

#[test]
fn a_change_of_attributes_is_no_reason_to_append_again() {
    run(async {
        let fake = Fake::new();
        let (one, two) = (fs(&fake), fs(&fake));
        let inode = save(&one, "log", b"0123456789").await;
        let handle = one.open(inode, WRITE).await.unwrap().handle;
        append(&one, handle, "abc").await;
        let set = SetAttrs { mode: Some(0o600), ..SetAttrs::default() };
        two.setattr(inode, None, set).await.unwrap();
        close(&one, handle).await;
        assert_eq!(fake.committed(inode).unwrap(), b"0123456789abc");
        assert_eq!(two.getattr(inode).await.unwrap().mode, 0o600);
    });
}

#[test]
fn a_file_that_is_also_written_elsewhere_is_this_mounts_when_it_commits() {
    run(async {
        let fake = Fake::new();
        let (one, two) = (fs(&fake), fs(&fake));
        let inode = save(&one, "f", b"0123456789").await;
        let handle = one.open(inode, WRITE).await.unwrap().handle;
        append(&one, handle, "abc").await;
        one.write(handle, 0, b"X", HERE).await.unwrap();
        save_over(&two, inode, b"theirs").await;
        close(&one, handle).await;
        assert_eq!(fake.committed(inode).unwrap(), b"X123456789abc");
    });
}

async fn save_over(fs: &Fs, inode: InodeId, data: &[u8]) {
    let handle = fs.open(inode, EMPTY).await.unwrap().handle;
    fs.write(handle, 0, data, HERE).await.unwrap();
    close(fs, handle).await;
}

#[test]
fn appending_to_a_file_that_was_removed_elsewhere_fails() {
    run(async {
        let fake = Fake::new();
        let (one, two) = (fs(&fake), fs(&fake));
        let inode = save(&one, "log", b"x").await;
        let handle = one.open(inode, WRITE).await.unwrap().handle;
        append(&one, handle, "abc").await;
        two.unlink(ROOT, "log".into()).await.unwrap();
        // To ask for attributes does not make it go unsaid.
        let before = fake.requests.load(Ordering::Relaxed);
        while fake.requests.load(Ordering::Relaxed) == before {
            one.getattr(inode).await.unwrap();
        }
        let error = one.flush(handle).await.unwrap_err();
        assert_eq!(errno::of(&error), libc::ESTALE, "{error}");
    });
}

#[test]
fn more_than_the_memory_holds_is_appended_again() {
    run(async {
        let fake = Fake::new();
        let (one, two) = (fs(&fake), fs(&fake));
        let inode = save(&one, "log", b"begin").await;
        let handle = one.open(inode, WRITE).await.unwrap().handle;
        // Five times what may be unsent, and one more writer that waits for room meanwhile.
        let mut expected = b"begintheirs".to_vec();
        for n in 0..50_u8 {
            let record = [n; 26];
            one.write(handle, 0, &record, APPEND).await.unwrap();
            expected.extend_from_slice(&record);
        }
        let theirs = two.open(inode, WRITE).await.unwrap().handle;
        append(&two, theirs, "theirs").await;
        close(&two, theirs).await;
        let writer = tokio::spawn({
            let one = one.clone();
            async move { one.write(handle, 0, &[77; 900], APPEND).await }
        });
        one.flush(handle).await.unwrap();
        writer.await.unwrap().unwrap();
        close(&one, handle).await;
        expected.extend_from_slice(&[77; 900]);
        assert_eq!(fake.committed(inode).unwrap(), expected);
        all_sent(&one).await;
    });
}

#[test]
fn whole_chunks_are_not_sent_again() {
    run(async {
        let fake = Fake::new();
        let (one, two) = (fs(&fake), fs(&fake));
        let inode = save(&one, "log", b"begin").await;
        let handle = one.open(inode, WRITE).await.unwrap().handle;
        let record: Vec<u8> = (0..200).collect();
        append(&one, handle, "one ").await;
        one.write(handle, 0, &record, APPEND).await.unwrap();
        let mut expected = b"begin".to_vec();
        for n in 0..3_u64 {
            let theirs = two.open(inode, WRITE).await.unwrap().handle;
            append(&two, theirs, "theirs ").await;
            close(&two, theirs).await;
            expected.extend_from_slice(b"theirs ");
            if n < 2 {
                // Asked what it is now, but not committed.
                let file = one.open_file(inode).unwrap();
                let before = fake.puts.load(Ordering::Relaxed);
                one.append_again(&file).await.unwrap();
                let sent = fake.puts.load(Ordering::Relaxed) - before;
                assert!(n == 0 || sent <= 3, "{sent} of 13 chunks");
            }
        }
        expected.extend_from_slice(b"one ");
        expected.extend_from_slice(&record);
        assert_eq!(one.read(handle, 0, 999).await.unwrap()[19..], expected[26..]);
        close(&one, handle).await;
        assert_eq!(fake.committed(inode).unwrap(), expected);
        assert_eq!(load(&two, "log").await, expected);
        all_sent(&one).await;
    });
}

#[test]
fn many_files_that_are_appended_again_have_room_for_each_other() {
    run(async {
        let fake = Fake::new();
        // Whoever waits for room while nothing is sent must not take that for the end.
        let (one, two) = (patient(&fake, Duration::from_secs(20)), fs(&fake));
        let mut files = Vec::new();
        for n in 0..40 {
            let inode = save(&one, &format!("log{n}"), b"0123456789").await;
            let handle = one.open(inode, WRITE).await.unwrap().handle;
            append(&one, handle, "appended here").await;
            let theirs = two.open(inode, WRITE).await.unwrap().handle;
            append(&two, theirs, "there").await;
            close(&two, theirs).await;
            let file = one.open_file(inode).unwrap();
            let unsent = file.lock().segments().unwrap().freeze_all();
            for upload in unsent {
                one.send(&file, &upload).await.unwrap();
            }
            files.push((inode, handle));
        }
        all_sent(&one).await;
        // All of them write again as much as there is room for, before anything of it is sent.
        let held = fake.put_gate.acquire_many(1000).await.unwrap();
        let again: Vec<_> = files
            .iter()
            .map(|(inode, _)| {
                let (one, file) = (one.clone(), one.open_file(*inode).unwrap());
                tokio::spawn(async move { one.append_again(&file).await })
            })
            .collect();
        while one.unsent_bytes() < 240 {
            tokio::task::yield_now().await;
        }
        drop(held);
        for again in again {
            again.await.unwrap().unwrap();
        }
        for (inode, handle) in files {
            close(&one, handle).await;
            assert_eq!(fake.committed(inode).unwrap(), b"0123456789thereappended here");
        }
    });
}

#[test]
fn the_kernel_is_told_to_drop_the_pages_of_what_was_moved() {
    run(async {
        let fake = Fake::new();
        let (one, two) = (fs(&fake), fs(&fake));
        let inode = save(&one, "log", b"begin").await;
        let handle = one.open(inode, WRITE).await.unwrap().handle;
        one.write(handle, 5, b"one", APPEND).await.unwrap();
        let theirs = two.open(inode, WRITE).await.unwrap().handle;
        two.write(theirs, 5, b"two", APPEND).await.unwrap();
        close(&two, theirs).await;
        assert!(!two.stale().has(inode), "nothing of it was moved there");
        close(&one, handle).await;
        assert!(one.stale().has(inode));
        assert_eq!(one.stale().next(), Some(inode));
        // The kernel takes the end to be elsewhere.
        let handle = one.open(inode, WRITE).await.unwrap().handle;
        one.write(handle, 8, b"three", APPEND).await.unwrap();
        assert!(one.stale().has(inode));
        close(&one, handle).await;
        assert_eq!(fake.committed(inode).unwrap(), b"begintwoonethree");
    });
}
