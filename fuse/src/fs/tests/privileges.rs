//! Bits that make a program run as its owner or group end when others write, on whichever mount; and
//! who may not change a file, or cannot, leaves it as it was.

use atoll_proto::Code;
use atoll_proto::namespace::Special;

use super::*;

const BY_OTHERS: WriteHow = WriteHow { append: false, outsider: true };

async fn chmod(fs: &Fs, inode: InodeId, mode: u32) {
    let set = SetAttrs { mode: Some(mode), ..SetAttrs::default() };
    fs.setattr(inode, None, set).await.unwrap();
}

async fn mode(fs: &Fs, inode: InodeId) -> u32 {
    fs.getattr(inode).await.unwrap().permissions()
}

#[test]
fn privileges_end_when_others_write() {
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        let (inode, handle) = create(&fs, "f").await;
        chmod(&fs, inode, 0o6755).await;
        assert!(fs.has_privileges(handle));
        fs.write(handle, 0, b"by root", HERE).await.unwrap();
        fs.flush(handle).await.unwrap();
        assert_eq!(mode(&fs, inode).await, 0o6755);
        fs.write(handle, 0, b"by others", BY_OTHERS).await.unwrap();
        assert_eq!((mode(&fs, inode).await, fs.has_privileges(handle)), (0o755, false));
        fs.flush(handle).await.unwrap();
        assert_eq!(mode(&fs, inode).await, 0o755);
        // Given after the writing, they are there to stay.
        fs.write(handle, 0, b"by others", BY_OTHERS).await.unwrap();
        chmod(&fs, inode, 0o4755).await;
        fs.flush(handle).await.unwrap();
        assert_eq!(mode(&fs, inode).await, 0o4755);
        let cut = SetAttrs { size: Some(0), outsider: true, ..SetAttrs::default() };
        assert_eq!(fs.setattr(inode, None, cut).await.unwrap().mode, 0o755);
        chmod(&fs, inode, 0o2745).await;
        fs.fallocate(handle, 0, 5, 0, true).await.unwrap();
        fs.flush(handle).await.unwrap();
        assert_eq!(mode(&fs, inode).await, 0o2745, "the group may not execute it: it locks");
        fs.release(handle);
        chmod(&fs, inode, 0o4755).await;
        let empty = fs.open(inode, OpenHow { outsider: true, ..EMPTY }).await.unwrap();
        assert!(empty.attr_changed);
        assert_eq!(mode(&fs, inode).await, 0o755);
        fs.flush(empty.handle).await.unwrap();
        fs.release(empty.handle);
        assert_eq!(mode(&fs, inode).await, 0o755);
    });
}

#[test]
fn they_end_also_when_they_were_given_on_another_mount() {
    run(async {
        let fake = Fake::new();
        let (one, two) = (fs(&fake), fs(&fake));
        let inode = save(&one, "f", b"#!/bin/sh").await;
        let handle = one.open(inode, WRITE).await.unwrap().handle;
        chmod(&two, inode, 0o4755).await;
        one.write(handle, 0, b"#!/bin/ls", BY_OTHERS).await.unwrap();
        one.flush(handle).await.unwrap();
        assert_eq!((mode(&one, inode).await, mode(&two, inode).await), (0o755, 0o755));
        one.release(handle);
    });
}

#[test]
fn a_mode_set_elsewhere_shows_while_a_file_is_written() {
    run(async {
        let fake = Fake::new();
        let (one, two) = (fs(&fake), fs(&fake));
        let inode = save(&one, "f", b"begin").await;
        let handle = one.open(inode, WRITE).await.unwrap().handle;
        one.write(handle, 0, b"B", HERE).await.unwrap();
        chmod(&two, inode, 0o600).await;
        // A lookup brings it at once, a question for attributes after a second.
        let found = one.lookup(ROOT, "f".into()).await.unwrap();
        assert_eq!((found.permissions(), found.size), (0o600, 5));
        chmod(&two, inode, 0o640).await;
        while mode(&one, inode).await != 0o640 {
            tokio::task::yield_now().await;
        }
        one.flush(handle).await.unwrap();
        one.release(handle);
        assert_eq!(fake.committed(inode).unwrap(), b"Begin");
    });
}

#[test]
fn they_stay_when_they_were_given_after_the_others_wrote() {
    run(async {
        let fake = Fake::new();
        let (one, two) = (fs(&fake), fs(&fake));
        let (inode, handle) = create(&one, "f").await;
        // While what others wrote is on its way: at first here, then on another mount, and somebody
        // who may goes on writing.
        for elsewhere in [false, true] {
            one.write(handle, 0, &[u8::from(elsewhere); 5], BY_OTHERS).await.unwrap();
            let held = fake.put_gate.acquire_many(1000).await.unwrap();
            let before = fake.puts.load(Ordering::Relaxed);
            let flush = tokio::spawn({
                let one = one.clone();
                async move { one.flush(handle).await }
            });
            while fake.puts.load(Ordering::Relaxed) == before {
                tokio::task::yield_now().await;
            }
            let given = tokio::spawn({
                let one = one.clone();
                async move {
                    if !elsewhere {
                        chmod(&one, inode, 0o4755).await;
                    }
                }
            });
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            if elsewhere {
                one.write(handle, 0, b"by root", HERE).await.unwrap();
            }
            drop(held);
            flush.await.unwrap().unwrap();
            given.await.unwrap();
            if elsewhere {
                chmod(&two, inode, 0o4755).await;
            }
            one.flush(handle).await.unwrap();
            assert_eq!(mode(&two, inode).await, 0o4755, "{elsewhere}");
        }
        one.release(handle);
    });
}

#[test]
fn what_somebody_else_makes_and_removes_meanwhile_is_made_after_all() {
    run(async {
        let fake = Fake::new();
        let (one, two) = (fs(&fake), fs(&fake));
        save(&one, "lock", b"held").await;
        fake.faults.vanishes.store(true, Ordering::Relaxed);
        let (attr, opened) =
            two.create(ROOT, "lock".into(), PLAIN, ME, false, WRITE).await.unwrap();
        assert_eq!(fake.committed(attr.inode).unwrap(), b"");
        two.release(opened.handle);
        for (name, node) in
            [("link", NewNode::Symlink("x".into())), ("pipe", NewNode::Special(Special::Fifo))]
        {
            one.make(ROOT, name.into(), node, PLAIN, ME).await.unwrap();
            let made = two.create(ROOT, name.into(), PLAIN, ME, false, WRITE).await;
            assert_eq!(errno::of(&made.unwrap_err()), libc::ESTALE, "{name}: look it up");
            let made = two.create(ROOT, name.into(), PLAIN, ME, true, WRITE).await;
            assert_eq!(errno::of(&made.unwrap_err()), libc::EEXIST);
        }
    });
}

#[test]
fn a_file_is_emptied_also_where_nothing_can_be_stored_or_read() {
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        let inode = save(&fs, "f", &vec![3; 20_000]).await;
        let handle = fs.open(inode, WRITE).await.unwrap().handle;
        fs.write(handle, 5, b"unsent", HERE).await.unwrap();
        fake.refuse_puts.store(true, Ordering::Relaxed);
        let empty = SetAttrs { size: Some(0), ..SetAttrs::default() };
        assert_eq!(fs.setattr(inode, None, empty).await.unwrap().size, 0);
        assert_eq!(fake.committed(inode).unwrap(), b"");
        fs.release(handle);
        fake.refuse_puts.store(false, Ordering::Relaxed);
        let inode = save(&fs, "g", &vec![3; 20_000]).await;
        fake.lose_chunks();
        fs.open(inode, WRITE).await.unwrap_err();
        assert_eq!(fs.setattr(inode, None, empty).await.unwrap().size, 0);
        assert_eq!(load(&fs, "g").await, b"");
    });
}

#[test]
fn a_file_that_somebody_else_has_just_made_is_not_opened_unseen() {
    run(async {
        let fake = Fake::new();
        let (one, two) = (fs(&fake), fs(&fake));
        save(&one, "f", b"secret").await;
        for how in [READ, WRITE, EMPTY] {
            let made = two.create(ROOT, "f".into(), PLAIN, ME, false, how).await;
            assert_eq!(errno::of(&made.unwrap_err()), libc::ESTALE);
        }
        let made = two.create(ROOT, "f".into(), PLAIN, ME, true, WRITE).await;
        assert_eq!(errno::of(&made.unwrap_err()), libc::EEXIST);
        assert_eq!(load(&two, "f").await, b"secret");
    });
}

#[test]
fn a_length_that_cannot_be_set_leaves_the_file_as_it_was() {
    for code in [Code::Denied, Code::Full, Code::Unavailable] {
        run(async {
            let fake = Fake::new();
            let fs = fs(&fake);
            let inode = save(&fs, "f", &[7; 50]).await;
            let reader = fs.open(inode, READ).await.unwrap().handle;
            *fake.faults.writes.lock().unwrap() = Some(code);
            for size in [0, 20, 99] {
                let set = SetAttrs { size: Some(size), ..SetAttrs::default() };
                fs.setattr(inode, None, set).await.unwrap_err();
                assert_eq!(fs.read(reader, 0, 99).await.unwrap(), vec![7; 50], "{code:?} {size}");
                assert_eq!(fs.getattr(inode).await.unwrap().size, 50);
                // Who reads meanwhile has the kernel keep pages that end too early.
                assert!(fs.stale().has(inode));
                assert_eq!(fs.stale().next(), Some(inode));
                assert_eq!(load(&fs, "f").await, [7; 50]);
            }
            // What was written before counts more than a length that cannot be set.
            let writer = fs.open(inode, WRITE).await.unwrap().handle;
            fs.write(writer, 0, b"new", HERE).await.unwrap();
            for size in [0, 20] {
                let set = SetAttrs { size: Some(size), ..SetAttrs::default() };
                fs.setattr(inode, None, set).await.unwrap_err();
                assert_eq!(fs.read(writer, 0, 99).await.unwrap().len(), 50);
                assert_eq!(fs.read(writer, 0, 5).await.unwrap(), b"new\x07\x07"[..]);
            }
            *fake.faults.writes.lock().unwrap() = None;
            fs.flush(writer).await.unwrap();
            fs.release(writer);
            fs.release(reader);
            assert_eq!(fake.committed(inode).unwrap()[..5], b"new\x07\x07"[..]);
        });
    }
}
