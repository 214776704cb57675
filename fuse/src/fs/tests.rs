//! The file system against a cluster in memory, without a mount.

#![allow(clippy::unwrap_used, reason = "tests")]

mod appended;
mod doubt;
mod model;
mod privileges;
mod removed;
mod xattrs;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use atoll_client::{BuiltManifest, build};
use atoll_proto::content::Extent;
use atoll_proto::manifest::Entry;
use atoll_proto::namespace::{Attr, Caller, NewNode, RenameMode};
use atoll_proto::{ByteName, Content, InodeId};
use bytes::Bytes;

use super::fake::Fake;
use super::{FileSystem, FsError, NewMode, OpenHow, Options, SetAttrs, WriteHow};
use crate::errno;

type Fs = Arc<FileSystem<Arc<Fake>>>;

const ROOT: InodeId = InodeId::ROOT;
const ME: Caller = Caller { uid: 7, gid: 8 };
const PLAIN: NewMode = NewMode { bits: 0o644, umask: 0 };
const READ: OpenHow = OpenHow { write: false, truncate: false, outsider: false };
const WRITE: OpenHow = OpenHow { write: true, truncate: false, outsider: false };
const EMPTY: OpenHow = OpenHow { write: true, truncate: true, outsider: false };
const HERE: WriteHow = WriteHow { append: false, outsider: false };
const APPEND: WriteHow = WriteHow { append: true, outsider: false };

/// A file system with chunks of 16 bytes.
fn fs(fake: &Arc<Fake>) -> Fs {
    patient(fake, Duration::from_millis(300))
}

/// The same, whose writers wait so long for room.
fn patient(fake: &Arc<Fake>, stall: Duration) -> Fs {
    FileSystem::new(
        fake.clone(),
        Options {
            root: ROOT,
            chunk_bytes: 16,
            dirty_bytes: 256,
            cache_bytes: 1024,
            sites: true,
            stall,
        },
    )
}

/// Runs a test with a deadline.
fn run(test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(30), test).await.expect("the test hangs");
    });
}

async fn create(fs: &Fs, name: &str) -> (InodeId, u64) {
    let (attr, opened) = fs.create(ROOT, name.into(), PLAIN, ME, true, WRITE).await.unwrap();
    (attr.inode, opened.handle)
}

async fn save(fs: &Fs, name: &str, data: &[u8]) -> InodeId {
    let (inode, handle) = create(fs, name).await;
    fs.write(handle, 0, data, HERE).await.unwrap();
    fs.flush(handle).await.unwrap();
    fs.release(handle);
    inode
}

async fn load(fs: &Fs, name: &str) -> Vec<u8> {
    let attr = fs.lookup(ROOT, name.into()).await.unwrap();
    let opened = fs.open(attr.inode, READ).await.unwrap();
    let bytes = fs.read(opened.handle, 0, 1 << 20).await.unwrap();
    fs.release(opened.handle);
    bytes.to_vec()
}

async fn gone(fs: &Fs, name: &str) -> bool {
    matches!(fs.lookup(ROOT, name.into()).await, Err(error) if errno::of(&error) == libc::ENOENT)
}

#[test]
fn a_small_file_takes_one_put_and_two_requests() {
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        let inode = save(&fs, "a", b"hello").await;
        assert_eq!(fake.requests.load(Ordering::Relaxed), 2);
        assert_eq!(fake.puts.load(Ordering::Relaxed), 1);
        assert_eq!(fake.committed(inode).unwrap(), b"hello");
        assert_eq!(fs.unsent_bytes(), 0);
        assert_eq!(load(&fs, "a").await, b"hello");
    });
}

#[test]
fn writes_are_seen_at_once_here_and_after_close_elsewhere() {
    run(async {
        let fake = Fake::new();
        let (one, two) = (fs(&fake), fs(&fake));
        save(&one, "a", b"before").await;
        assert_eq!(load(&two, "a").await, b"before");

        let attr = one.lookup(ROOT, "a".into()).await.unwrap();
        let writer = one.open(attr.inode, EMPTY).await.unwrap();
        one.write(writer.handle, 0, b"after, and longer than a chunk", HERE).await.unwrap();
        assert_eq!(load(&one, "a").await, b"after, and longer than a chunk");
        assert_eq!(one.getattr(attr.inode).await.unwrap().size, 30);
        assert_eq!(load(&two, "a").await, b"before");

        one.flush(writer.handle).await.unwrap();
        assert_eq!(load(&two, "a").await, b"after, and longer than a chunk");
        one.release(writer.handle);
    });
}

#[test]
fn a_reader_keeps_what_it_opened() {
    run(async {
        let fake = Fake::new();
        let (one, two) = (fs(&fake), fs(&fake));
        let inode = save(&one, "a", b"first").await;
        two.lookup(ROOT, "a".into()).await.unwrap();
        let old = two.open(inode, READ).await.unwrap();
        assert!(!old.keep_cache && !old.direct);

        let writer = one.open(inode, WRITE).await.unwrap();
        one.write(writer.handle, 0, b"second", HERE).await.unwrap();
        one.flush(writer.handle).await.unwrap();
        one.release(writer.handle);

        // Nobody reads past the length the kernel knows.
        assert_eq!(two.getattr(inode).await.unwrap().size, 5);
        assert_eq!(two.lookup(ROOT, "a".into()).await.unwrap().size, 5);

        // A reader that comes later sees the new content, and not through the same pages.
        let new = two.open(inode, READ).await.unwrap();
        assert!(new.direct && new.attr_changed);
        assert_eq!(two.read(new.handle, 0, 99).await.unwrap(), "second");
        assert_eq!(two.read(old.handle, 0, 99).await.unwrap(), "first");
        two.release(old.handle);
        two.release(new.handle);

        // Without the old one pages can be shared, and kept as long as nothing changes.
        let again = two.open(inode, READ).await.unwrap();
        assert!(!again.direct && !again.keep_cache);
        let more = two.open(inode, READ).await.unwrap();
        assert!(more.keep_cache && !more.attr_changed);
    });
}

#[test]
fn own_changes_keep_the_page_cache() {
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        let inode = save(&fs, "a", b"first").await;
        assert!(fs.open(inode, READ).await.unwrap().keep_cache);
    });
}

#[test]
fn a_failed_flush_returns_the_error_and_keeps_the_data() {
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        let (inode, handle) = create(&fs, "a").await;
        fs.write(handle, 0, &[1; 40], HERE).await.unwrap();
        fake.refuse_puts.store(true, Ordering::Relaxed);
        fs.write(handle, 40, &[2; 5], HERE).await.unwrap();
        let error = fs.flush(handle).await.unwrap_err();
        assert_eq!(errno::of(&error), libc::EIO);
        assert_eq!(fs.read(handle, 38, 99).await.unwrap(), vec![1, 1, 2, 2, 2, 2, 2]);
        assert_eq!(fake.committed(inode).unwrap(), b"");

        fake.refuse_puts.store(false, Ordering::Relaxed);
        fs.flush(handle).await.unwrap();
        assert_eq!(fake.committed(inode).unwrap().len(), 45);
        fs.release(handle);
    });
}

#[test]
fn what_was_not_committed_at_close_is_tried_again() {
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        let (inode, handle) = create(&fs, "a").await;
        fake.refuse_puts.store(true, Ordering::Relaxed);
        fs.write(handle, 0, b"data", HERE).await.unwrap();
        fs.flush(handle).await.unwrap_err();
        fs.release(handle);
        fs.retry_closed().await;
        assert_eq!(fs.flush_all().await, 1);
        assert_eq!(load(&fs, "a").await, b"data");

        fake.refuse_puts.store(false, Ordering::Relaxed);
        fs.retry_closed().await;
        assert_eq!(fake.committed(inode).unwrap(), b"data");
        assert_eq!((fs.flush_all().await, fs.unsent_bytes()), (0, 0));
    });
}

#[test]
fn chunks_the_cluster_lost_sight_of_are_sent_again() {
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        let inode = save(&fs, "a", &[5; 64]).await;
        let opened = fs.open(inode, WRITE).await.unwrap();
        fs.write(opened.handle, 3, b"x", HERE).await.unwrap();
        fake.forget_live();
        fs.flush(opened.handle).await.unwrap();
        let mut expected = vec![5; 64];
        expected[3] = b'x';
        assert_eq!(fake.committed(inode).unwrap(), expected);
    });
}

#[test]
fn a_writer_without_room_waits_and_goes_on() {
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        let held = fake.put_gate.acquire_many(1000).await.unwrap();
        let (inode, handle) = create(&fs, "big").await;
        let writer = tokio::spawn({
            let fs = fs.clone();
            async move { fs.write(handle, 0, &[9; 1000], HERE).await }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!writer.is_finished(), "a thousand bytes do not fit into 256");
        assert!(fs.unsent_bytes() <= 256);
        drop(held);
        writer.await.unwrap().unwrap();
        fs.flush(handle).await.unwrap();
        assert_eq!(fake.committed(inode).unwrap(), vec![9; 1000]);
    });
}

#[test]
fn many_half_filled_buffers_make_room_for_each_other() {
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        let mut files = Vec::new();
        for n in 0..60_u8 {
            let (inode, handle) = create(&fs, &n.to_string()).await;
            fs.write(handle, 0, &[n; 10], HERE).await.unwrap();
            files.push((n, inode, handle));
        }
        for (n, inode, handle) in files {
            fs.write(handle, 10, &[n; 3], HERE).await.unwrap();
            fs.flush(handle).await.unwrap();
            assert_eq!(fake.committed(inode).unwrap(), vec![n; 13]);
        }
    });
}

#[test]
fn a_cluster_that_takes_nothing_fails_a_writer_in_the_end() {
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        fake.refuse_puts.store(true, Ordering::Relaxed);
        let (_, handle) = create(&fs, "a").await;
        let error = fs.write(handle, 0, &[0; 1000], HERE).await.unwrap_err();
        assert!(matches!(&error, FsError::Stalled { reason } if reason.contains("on request")));
        assert_eq!(errno::of(&error), libc::EIO);
    });
}

#[test]
fn a_removed_file_lives_on_while_it_is_open() {
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        let inode = save(&fs, "a", b"content").await;
        fs.lookup(ROOT, "a".into()).await.unwrap();
        let opened = fs.open(inode, WRITE).await.unwrap();
        fs.unlink(ROOT, "a".into()).await.unwrap();
        assert!(gone(&fs, "a").await);
        assert_eq!(fs.getattr(inode).await.unwrap().nlink, 0);
        assert_eq!(fs.read(opened.handle, 0, 99).await.unwrap(), "content");
        fs.write(opened.handle, 7, b" more", HERE).await.unwrap();
        assert_eq!(fs.read(opened.handle, 0, 99).await.unwrap(), "content more");
        fs.flush(opened.handle).await.unwrap();
        assert_eq!(fs.getattr(inode).await.unwrap().size, 12);
        fs.release(opened.handle);
        assert!(fs.getattr(inode).await.is_err());
        assert_eq!(fs.unsent_bytes(), 0);
    });
}

#[test]
fn a_file_removed_elsewhere_is_stale_for_its_writer() {
    run(async {
        let fake = Fake::new();
        let (one, two) = (fs(&fake), fs(&fake));
        let inode = save(&one, "a", b"content").await;
        let opened = one.open(inode, WRITE).await.unwrap();
        one.write(opened.handle, 0, b"x", HERE).await.unwrap();
        two.unlink(ROOT, "a".into()).await.unwrap();
        let error = one.flush(opened.handle).await.unwrap_err();
        assert_eq!(errno::of(&error), libc::ESTALE);
        one.release(opened.handle);
    });
}

#[test]
fn a_rename_over_an_open_file_leaves_it_to_who_has_it_open() {
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        let (old, new) = (save(&fs, "old", b"old").await, save(&fs, "new", b"new").await);
        let opened = fs.open(old, READ).await.unwrap();
        let rename = |from: &str, to: &str, mode| {
            let (from, to) = (ByteName::from(from), ByteName::from(to));
            let fs = fs.clone();
            async move { fs.rename(ROOT, from, ROOT, to, mode).await }
        };
        let error = rename("new", "old", RenameMode::NoReplace).await.unwrap_err();
        assert_eq!(errno::of(&error), libc::EEXIST);
        rename("new", "old", RenameMode::Replace).await.unwrap();
        assert_eq!(fs.lookup(ROOT, "old".into()).await.unwrap().inode, new);
        assert_eq!(fs.read(opened.handle, 0, 99).await.unwrap(), "old");
        assert_eq!(fs.getattr(old).await.unwrap().nlink, 0);

        save(&fs, "b", b"b").await;
        rename("old", "b", RenameMode::Exchange).await.unwrap();
        assert_eq!((load(&fs, "old").await, load(&fs, "b").await), (b"b".into(), b"new".into()));
    });
}

#[test]
fn times_and_modes_set_before_close_survive_it() {
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        let (inode, handle) = create(&fs, "a").await;
        fs.write(handle, 0, b"data", HERE).await.unwrap();
        let set = SetAttrs {
            mode: Some(0o600),
            uid: Some(ME.uid),
            mtime_ns: Some(1_000),
            atime_ns: Some(2_000),
            ..SetAttrs::default()
        };
        let attr = fs.setattr(inode, Some(handle), set).await.unwrap();
        assert_eq!((attr.mtime_ns, attr.size), (1_000, 4));
        let future = SetAttrs { mtime_ns: Some(i64::MAX), ..SetAttrs::default() };
        let attr = fs.setattr(inode, Some(handle), future).await.unwrap();
        assert!(attr.mtime_ns == i64::MAX && attr.ctime_ns < i64::MAX);
        fs.setattr(inode, Some(handle), set).await.unwrap();
        fs.flush(handle).await.unwrap();
        fs.release(handle);
        let attr = fs.getattr(inode).await.unwrap();
        assert_eq!((attr.mode, attr.mtime_ns, attr.atime_ns), (0o600, 1_000, 2_000));
    });
}

#[test]
fn truncating_by_path_commits_at_once() {
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        let inode = save(&fs, "a", &[3; 50]).await;
        for size in [20, 0, 33] {
            let set = SetAttrs { size: Some(size), ..SetAttrs::default() };
            assert_eq!(fs.setattr(inode, None, set).await.unwrap().size, size);
            let expected: Vec<u8> =
                (0..size).map(|n| if n < 20 && size == 20 { 3 } else { 0 }).collect();
            assert_eq!(fake.committed(inode).unwrap(), expected);
        }
        let set = SetAttrs { size: Some(u64::MAX), ..SetAttrs::default() };
        let error = fs.setattr(inode, None, set).await.unwrap_err();
        assert_eq!(errno::of(&error), libc::EFBIG);
    });
}

#[test]
fn appends_go_to_the_end_as_it_is_here() {
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        let inode = save(&fs, "log", b"one\n").await;
        let (a, b) = (fs.open(inode, WRITE).await.unwrap(), fs.open(inode, WRITE).await.unwrap());
        fs.write(a.handle, 0, b"two\n", APPEND).await.unwrap();
        fs.write(b.handle, 0, b"three\n", APPEND).await.unwrap();
        fs.flush(a.handle).await.unwrap();
        assert_eq!(fake.committed(inode).unwrap(), b"one\ntwo\nthree\n");
    });
}

#[test]
fn holes_are_punched_and_found() {
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        let inode = save(&fs, "a", &[1; 64]).await;
        let handle = fs.open(inode, WRITE).await.unwrap().handle;
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        fs.fallocate(handle, 10, 30, punch, false).await.unwrap();
        fs.fallocate(handle, 0, 100, 0, false).await.unwrap();
        fs.flush(handle).await.unwrap();
        let mut expected = vec![1; 64];
        expected[10..40].fill(0);
        expected.resize(100, 0);
        assert_eq!(fake.committed(inode).unwrap(), expected);
        assert_eq!(fs.seek(handle, 0, true).unwrap(), 16);
        assert_eq!(fs.seek(handle, 16, false).unwrap(), 32);
        assert!(matches!(fs.seek(handle, 64, false), Err(FsError::NoData)));
        let error =
            fs.fallocate(handle, 0, 1, libc::FALLOC_FL_COLLAPSE_RANGE, false).await.unwrap_err();
        assert_eq!(errno::of(&error), libc::EOPNOTSUPP);
    });
}

#[test]
fn a_long_file_is_stored_with_lists() {
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        let data: Vec<u8> = (0..20_000_u32).map(|n| (n / 7) as u8).collect();
        let inode = save(&fs, "long", &data).await;
        assert_eq!(fake.committed(inode).unwrap(), data);
        assert_eq!(load(&fs, "long").await, data);
        let handle = fs.open(inode, WRITE).await.unwrap().handle;
        fs.write(handle, 19_999, b"!!", HERE).await.unwrap();
        fs.flush(handle).await.unwrap();
        assert_eq!(fake.committed(inode).unwrap()[19_998..], [data[19_998], b'!', b'!']);
    });
}

#[test]
fn a_large_directory_is_listed_once_each_from_any_position() {
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        for n in 0..1500 {
            let name = format!("f{n:05}").as_str().into();
            fs.make(ROOT, name, NewNode::File, PLAIN, ME).await.unwrap();
        }
        let handle = fs.opendir(ROOT);
        let mut names = Vec::new();
        let mut position = 0;
        loop {
            let items = fs.readdir(handle, position).await.unwrap();
            let Some(last) = items.last() else { break };
            position = last.next;
            names.extend(items.into_iter().map(|item| item.name));
        }
        assert_eq!(names.len(), 1502);
        assert!(names[2..].is_sorted());
        // Back to a position on an earlier page.
        assert_eq!(fs.readdir(handle, 7).await.unwrap()[0].name, names[7]);
        assert_eq!(fs.readdir(handle, 1400).await.unwrap()[0].name, names[1400]);
        fs.release(handle);
    });
}

fn site_file(path: &str, bytes: &'static [u8], fake: &Fake) -> Entry {
    let id = fake.plant(Bytes::from_static(bytes));
    Entry {
        path: path.into(),
        mode: 0o640,
        mtime_ns: 5_000,
        content: Content::from_extents(vec![Extent { id: Some(id), len: bytes.len() as u32 }]),
        content_type: "text/plain".to_owned(),
        header_rule: None,
        variants: vec![],
        base: None,
    }
}

#[test]
fn deploys_are_directories_that_do_not_change() {
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        let files = vec![
            site_file("index.html", b"<h1>hi</h1>", &fake),
            site_file("img/deep/a.svg", b"<svg/>", &fake),
        ];
        let BuiltManifest { root, pages, .. } = build(files, None).unwrap();
        for page in pages {
            fake.plant(page.bytes);
        }
        let site: atoll_proto::SiteName = "blog".parse().unwrap();
        fake.publish_site(&site, &[root]);

        let sites = fs.lookup(ROOT, ".sites".into()).await.unwrap();
        let blog = fs.lookup(sites.inode, "blog".into()).await.unwrap();
        assert_eq!(list(&fs, blog.inode).await, ["production".to_owned(), root.to_string()]);
        let alias = fs.lookup(blog.inode, "production".into()).await.unwrap();
        assert_eq!(fs.readlink(alias.inode).await.unwrap(), root.to_string());
        let deploy = fs.lookup(blog.inode, root.to_string().as_str().into()).await.unwrap();
        assert_eq!(list(&fs, deploy.inode).await, ["img", "index.html"]);
        let index = fs.lookup(deploy.inode, "index.html".into()).await.unwrap();
        assert_eq!((index.mode, index.mtime_ns, index.size), (0o640, 5_000, 11));
        let img = fs.lookup(deploy.inode, "img".into()).await.unwrap();
        assert_eq!(list(&fs, img.inode).await, ["deep"]);
        let deep = fs.lookup(img.inode, "deep".into()).await.unwrap();
        let svg = fs.lookup(deep.inode, "a.svg".into()).await.unwrap();
        let opened = fs.open(svg.inode, READ).await.unwrap();
        assert_eq!(fs.read(opened.handle, 1, 3).await.unwrap(), "svg");

        let read_only = |outcome: Result<Attr, FsError>| {
            assert!(matches!(outcome, Err(FsError::ReadOnly)), "{outcome:?}");
        };
        read_only(fs.make(deploy.inode, "x".into(), NewNode::Directory, PLAIN, ME).await);
        read_only(fs.setattr(svg.inode, None, SetAttrs::default()).await);
        assert!(matches!(fs.open(svg.inode, WRITE).await, Err(FsError::ReadOnly)));
        assert!(matches!(fs.unlink(deep.inode, "a.svg".into()).await, Err(FsError::ReadOnly)));
        let refused = fs.make(ROOT, ".sites".into(), NewNode::Directory, PLAIN, ME).await;
        assert!(matches!(refused, Err(FsError::Exists)));
        for missing in ["img/x", "nothing"] {
            assert!(fs.lookup(deploy.inode, missing.into()).await.is_err());
        }
        // Copying the root does not copy every deploy.
        assert!(list(&fs, ROOT).await.is_empty());

        // Listings note nothing for the kernel to forget.
        for attr in [sites, blog, alias, deploy, index, img, deep, svg] {
            fs.forget(attr.inode, 1);
        }
        assert_eq!(fs.sites.held(), 0);
    });
}

async fn list(fs: &Fs, inode: InodeId) -> Vec<String> {
    let handle = fs.opendir(inode);
    let items = fs.readdir(handle, 0).await.unwrap();
    fs.release(handle);
    items.iter().skip(2).map(|item| item.name.lossy().into_owned()).collect()
}
