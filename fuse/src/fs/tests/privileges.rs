//! Bits that make a program run as its owner or group end when others write, on whichever mount; and
//! who may not change a file, or cannot, leaves it as it was.

use atoll_proto::Code;

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
                assert_eq!(load(&fs, "f").await, [7; 50]);
            }
            // What was written before counts more than a length that cannot be set.
            let writer = fs.open(inode, WRITE).await.unwrap().handle;
            fs.write(writer, 0, b"new", HERE).await.unwrap();
            let set = SetAttrs { size: Some(0), ..SetAttrs::default() };
            fs.setattr(inode, None, set).await.unwrap_err();
            assert_eq!(fs.read(writer, 0, 5).await.unwrap(), b"new\x07\x07"[..]);
            *fake.faults.writes.lock().unwrap() = None;
            fs.flush(writer).await.unwrap();
            fs.release(writer);
            fs.release(reader);
            assert_eq!(fake.committed(inode).unwrap()[..5], b"new\x07\x07"[..]);
        });
    }
}
