//! Files that several mounts append to.

use super::*;

async fn append(fs: &Fs, handle: u64, record: &str) {
    fs.write(handle, 0, record.as_bytes(), true).await.unwrap();
}

async fn close(fs: &Fs, handle: u64) {
    fs.flush(handle).await.unwrap();
    fs.release(handle);
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
        one.write(handle, 0, b"X", false).await.unwrap();
        save_over(&two, inode, b"theirs").await;
        close(&one, handle).await;
        assert_eq!(fake.committed(inode).unwrap(), b"X123456789abc");
    });
}

async fn save_over(fs: &Fs, inode: InodeId, data: &[u8]) {
    let how = OpenHow { write: true, truncate: true };
    let handle = fs.open(inode, how).await.unwrap().handle;
    fs.write(handle, 0, data, false).await.unwrap();
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
        let error = one.flush(handle).await.unwrap_err();
        assert_eq!(errno::of(&error), libc::ESTALE, "{error}");
    });
}
