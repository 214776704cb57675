//! Real mounts over a cluster in memory, used by the programs people use.
//!
//! These need /dev/fuse and root, and fail without. Each has a deadline; when it passes, the
//! kernel's connection is aborted, so that whatever hangs in the mount ends with an error.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::fs::fake::Fake;
use super::*;

mod harness;

use harness::*;

const MAKE_TREE: &str = r#"
    mkdir -p $W/src/a/b/c "$W/src/name with space"
    for i in $(seq 1 60); do echo "file $i" > $W/src/a/b/f$i; done
    head -c 3000000 /dev/urandom > $W/src/big.bin
    head -c 262144 /dev/urandom > $W/src/a/one-chunk.bin
    : > $W/src/empty
    ln -s ../big.bin $W/src/a/link
    ln -s nowhere $W/src/dangling
    chmod 600 $W/src/empty; chmod +x $W/src/a/b/f1
    touch -d '2001-02-03 04:05:06.789' $W/src/a/b/f2
"#;

#[test]
fn trees_are_copied_moved_and_removed() {
    let mount = Mount::new(&Fake::new());
    let script = [
        MAKE_TREE,
        r#"
        cp -a $W/src copy
        diff -r --no-dereference $W/src copy
        test "$(stat -c %Y.%a copy/a/b/f2)" = "$(stat -c %Y.%a $W/src/a/b/f2)"
        test "$(stat -c %a copy/empty)" = 600
        test "$(readlink copy/a/link)" = ../big.bin
        cmp copy/a/link $W/src/big.bin
        cp -r copy again && diff -r --no-dereference again $W/src
        mv again/a moved && mv moved again/b && test ! -e again/a
        diff -r --no-dereference again/b copy/a
        mv $W/src/big.bin in && cmp in copy/big.bin && test ! -e $W/src/big.bin
        rm -r copy again in
        test -z "$(ls -A)"
        "#,
    ]
    .concat();
    shell(&mount.dir, &script);
}

#[test]
fn archives_and_rsync_round_trip() {
    let mount = Mount::new(&Fake::new());
    let script = [
        MAKE_TREE,
        r#"
        tar -C $W -cf $W/t.tar src
        tar -xf $W/t.tar
        diff -r --no-dereference $W/src src
        tar -df $W/t.tar
        tar -czf packed.tgz src && tar -C $W -xzf packed.tgz --transform s/src/unpacked/
        diff -r --no-dereference $W/src $W/unpacked
        rsync -a $W/src/ synced/
        rsync -a --delete --stats $W/src/ synced/ | grep -q 'Number of regular files transferred: 0'
        echo more >> $W/src/a/b/f3; rm $W/src/a/b/f4
        rsync -a --delete $W/src/ synced/
        diff -r --no-dereference $W/src synced
        rsync -a --checksum --inplace synced/ $W/back/ && diff -r --no-dereference $W/src $W/back
        "#,
    ]
    .concat();
    shell(&mount.dir, &script);
}

#[test]
fn git_works() {
    let mount = Mount::new(&Fake::new());
    let script = r#"
        git config --global user.name Nobody; git config --global user.email nobody@example.invalid
        git config --global init.defaultBranch main
        git init -q repo && cd repo
        for i in $(seq 1 30); do echo "line $i" > f$i; done
        git add . && git commit -qm first
        sed -i s/line/row/ f7 && git mv f8 g8 && git rm -q f9 && git add -A && git commit -qm second
        test -z "$(git status --porcelain)"
        git checkout -q -b side HEAD~1 && echo side > s && git add s && git commit -qm side
        git merge -q -m merge main
        git gc -q && git fsck --full
        cd .. && git clone -q repo clone && git clone -q --no-local repo clone2
        git -C clone log --oneline | wc -l | grep -qx 4
        git -C clone2 fsck --full
        rm -rf repo clone clone2
    "#;
    shell(&mount.dir, script);
}

#[test]
fn editors_and_small_tools_work() {
    let fake = Fake::new();
    let mount = Mount::new(&fake);
    let script = r#"
        # An editor saves to a temporary file and renames it over the old one.
        echo one > doc; echo two > .doc.tmp; sync -f .doc.tmp; mv .doc.tmp doc
        test "$(cat doc)" = two
        sed -i s/two/three/ doc && test "$(cat doc)" = three
        cp doc doc~ && echo four > doc && test "$(cat doc doc~)" = $'four\nthree'
        # dd at all kinds of places
        dd if=/dev/zero of=z bs=1M count=5 status=none && test $(stat -c %s z) = 5242880
        head -c 5242880 /dev/zero | cmp - z
        printf xyz | dd of=z bs=1 seek=262143 conv=notrunc status=none
        test "$(dd if=z bs=1 skip=262143 count=3 status=none)" = xyz
        dd if=/dev/urandom of=$W/r bs=777 count=1500 status=none
        dd if=$W/r of=r bs=333 status=none && cmp r $W/r
        dd if=$W/r of=s bs=4096 oflag=sync count=20 status=none && cmp -n 81920 s $W/r
        # lengths
        truncate -s 300000 r && cmp -n 300000 r $W/r && test $(stat -c %s r) = 300000
        truncate -s 700000 r && head -c 400000 /dev/zero | cmp - <(tail -c 400000 r)
        : > r && test $(stat -c %s r) = 0
        truncate -s 10G sparse && test $(stat -c %s sparse) = 10737418240
        echo end >> sparse && test "$(tail -c 4 sparse)" = end
        fallocate -l 1000 falloc && test $(stat -c %s falloc) = 1000
        cp --sparse=always z z2 && cmp z z2
        # links
        ln doc hard && test $(stat -c %h doc) = 2 && echo five >> hard && cmp doc hard
        rm doc && test $(stat -c %h hard) = 1 && test "$(tail -1 hard)" = five
        ln -s hard soft && test "$(cat soft)" = "$(cat hard)" && test "$(readlink soft)" = hard
        # appends and locks
        for i in 1 2 3; do echo $i >> log; done; test "$(cat log)" = $'1\n2\n3'
        flock log true
        # names
        mkdir d && ! rmdir nothing 2>/dev/null && touch d/x && ! rmdir d 2>/dev/null
        ! mkdir d 2>/dev/null
        long=$(printf 'n%.0s' $(seq 255)) && touch $long && test -e $long && rm $long
        ! touch ${long}n 2>/dev/null
        ! mv d d/e 2>/dev/null
        ! mkfifo p 2>/dev/null
        touch -- '-odd name?*' $'new\nline' && ls | wc -l > /dev/null
        stat -f . > /dev/null && df . > /dev/null
        chmod 1777 d && test $(stat -c %a d) = 1777
        chown 12:34 z && test $(stat -c %u:%g z) = 12:34
    "#;
    shell(&mount.dir, script);
}

#[test]
fn mapped_memory_is_written_back() {
    let fake = Fake::new();
    let mount = Mount::new(&fake);
    let script = r#"
        head -c 600000 /dev/zero > m
        python3 - <<'PY'
import mmap, os
fd = os.open("m", os.O_RDWR)
m = mmap.mmap(fd, 0)
m[5:8] = b"abc"; m[500000:500003] = b"xyz"
m.flush(); os.fsync(fd)
assert os.pread(fd, 3, 5) == b"abc"
m[10:13] = b"def"
m.close(); os.close(fd)
assert open("m", "rb").read()[10:13] == b"def"
PY
    "#;
    shell(&mount.dir, script);
    let inode = fs::metadata(mount.path("m")).unwrap().ino();
    let committed = fake.committed(InodeId(inode)).unwrap();
    assert_eq!((&committed[5..8], &committed[500_000..500_003]), (&b"abc"[..], &b"xyz"[..]));
}

#[test]
fn many_processes_use_it_at_once() {
    let mount = Mount::new(&Fake::new());
    let script = r#"
        for j in $(seq 1 8); do
            ( mkdir d$j; for i in $(seq 1 40); do echo "$j $i" > d$j/f$i; done
              head -c 2000000 /dev/urandom > d$j/big; cp d$j/big d$j/big2; cmp d$j/big d$j/big2
              cat d$j/f* | wc -l | grep -qx 40 ) &
            pids[$j]=$!
        done
        for pid in ${pids[*]}; do wait $pid; done
        find . -type f | wc -l | grep -qx 336
        rm -r d*
    "#;
    shell(&mount.dir, script);
}

#[test]
fn what_one_mount_closes_another_opens() {
    let fake = Fake::new();
    let (one, two) = (Mount::new(&fake), Mount::new(&fake));
    fs::write(one.path("a"), "short").unwrap();
    for round in 1..20_usize {
        // The kernel of the second mount knows attributes and pages of the round before.
        assert!(fs::read(two.path("a")).is_ok());
        let text = format!("round {round} ").repeat(round * 1000);
        fs::write(one.path("a"), &text).unwrap();
        assert_eq!(fs::read_to_string(two.path("a")).unwrap(), text, "round {round}");
    }
    // A reader keeps what it opened.
    let mut old = File::open(two.path("a")).unwrap();
    fs::write(one.path("a"), "newest").unwrap();
    let mut kept = String::new();
    old.read_to_string(&mut kept).unwrap();
    assert!(kept == "round 19 ".repeat(19_000), "{} bytes", kept.len());
    assert_eq!(fs::read_to_string(two.path("a")).unwrap(), "newest");
}

#[test]
fn files_without_names_live_while_open() {
    let mount = Mount::new(&Fake::new());
    let path = mount.path("temp");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all(&[7; 400_000]).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(!path.exists());
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.write_all(b"more").unwrap();
    file.sync_all().unwrap();
    file.set_len(400_002).unwrap();
    file.seek(SeekFrom::Start(399_999)).unwrap();
    let mut rest = Vec::new();
    file.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"\x07mo");
}

#[test]
fn close_and_fsync_return_the_error() {
    let fake = Fake::new();
    let mount = Mount::new(&fake);
    let file = File::create(mount.path("a")).unwrap();
    file.write_all_at(b"data", 0).unwrap();
    fake.refuse_puts.store(true, Ordering::Relaxed);
    let error = file.sync_all().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    let copy = file.try_clone().unwrap();
    assert_eq!(nix::unistd::close(copy.into_raw_fd()), Err(nix::errno::Errno::EIO));
    assert_eq!(fs::read(mount.path("a")).unwrap(), b"data");
    fake.refuse_puts.store(false, Ordering::Relaxed);
    file.sync_all().unwrap();
    let inode = file.metadata().unwrap().ino();
    assert_eq!(fake.committed(InodeId(inode)).unwrap(), b"data");
}

#[test]
fn a_slow_request_does_not_hold_up_others() {
    let fake = Fake::new();
    let mount = Mount::new(&fake);
    fs::write(mount.path("there"), "here").unwrap();
    let held = fake.put_gate.try_acquire_many(1000).unwrap();
    let writers: Vec<_> = (0..20)
        .map(|n| {
            let path = mount.path(&format!("slow{n}"));
            std::thread::spawn(move || fs::write(path, "waits for the gate"))
        })
        .collect();
    let begin = Instant::now();
    while fs::read_dir(&mount.dir).unwrap().count() < 21 {
        assert!(begin.elapsed() < Duration::from_secs(20));
    }
    assert_eq!(fs::read(mount.path("there")).unwrap(), b"here");
    assert!(writers.iter().all(|writer| !writer.is_finished()));
    drop(held);
    writers.into_iter().for_each(|writer| writer.join().unwrap().unwrap());
}

#[test]
fn permissions_and_flags_hold() {
    let fake = Fake::new();
    let mount = Mount::new(&fake);
    fs::write(mount.path("a"), "x").unwrap();
    fs::set_permissions(mount.path("a"), fs::Permissions::from_mode(0o4711)).unwrap();
    assert_eq!(fs::metadata(mount.path("a")).unwrap().mode() & 0o7777, 0o4711);
    let again = OpenOptions::new().write(true).create_new(true).open(mount.path("a"));
    assert_eq!(again.unwrap_err().raw_os_error(), Some(libc::EEXIST));
    let append = OpenOptions::new().append(true).open(mount.path("a")).unwrap();
    let other = OpenOptions::new().append(true).open(mount.path("a")).unwrap();
    for (file, text) in [(&append, "1"), (&other, "2"), (&append, "3")] {
        (&*file).write_all(text.as_bytes()).unwrap();
    }
    assert_eq!(fs::read(mount.path("a")).unwrap(), b"x123");
    let dir = OpenOptions::new().write(true).custom_flags(0).open(&mount.dir);
    assert_eq!(dir.unwrap_err().raw_os_error(), Some(libc::EISDIR));
}

#[test]
fn a_part_can_be_mounted_read_only() {
    let fake = Fake::new();
    let mount = Mount::new(&fake);
    fs::create_dir_all(mount.path("top/sub")).unwrap();
    fs::write(mount.path("top/sub/file"), "data").unwrap();
    let home = tempfile::tempdir().unwrap();
    let part = Mount::with(
        &fake,
        MountOptions { path: Some("/top".into()), read_only: true, ..options(home.path()) },
    );
    assert_eq!(fs::read(part.path("sub/file")).unwrap(), b"data");
    assert_eq!(fs::metadata(&part.dir).unwrap().ino(), 1);
    let error = fs::write(part.path("sub/file"), "other").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    assert!(!part.path(".sites").exists() && mount.path(".sites").exists());
    assert!(fs::read_dir(mount.path(".sites")).unwrap().next().is_none());
}

#[test]
fn stopping_commits_and_unmounts_even_when_busy() {
    let fake = Fake::new();
    let mut mount = Mount::new(&fake);
    let file = File::create(mount.path("a")).unwrap();
    file.write_all_at(b"unsaved", 0).unwrap();
    let inode = file.metadata().unwrap().ino();
    mount.stop().unwrap();
    assert_eq!(fake.committed(InodeId(inode)).unwrap(), b"unsaved");
    assert_eq!(mountpoint::inspect(&mount.dir).unwrap(), Found::Directory);
}

#[test]
fn somebody_elses_unmount_ends_it() {
    let fake = Fake::new();
    let mut mount = Mount::new(&fake);
    fs::write(mount.path("a"), "x").unwrap();
    unmount(&mount.dir, false).unwrap();
    mount.wait().unwrap();
    let error = unmount(&mount.dir, false).unwrap_err().to_string();
    assert!(error.contains("nothing is mounted"), "{error}");
}

#[test]
fn a_dead_mount_is_cleared_and_a_live_one_is_not() {
    let fake = Fake::new();
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let fs = FileSystem::new(
        fake.clone(),
        Options {
            root: InodeId::ROOT,
            chunk_bytes: CHUNK_BYTES,
            dirty_bytes: 1 << 20,
            cache_bytes: 1 << 20,
            sites: true,
            stall: STALL,
        },
    );
    let how = kernel::KernelOptions { read_only: false, allow_other: false };
    let mut left = kernel::mount(fs, dir, &how, runtime.handle().clone()).unwrap();
    let error = runtime.block_on(prepare(dir)).unwrap_err().to_string();
    assert!(error.contains("mounted there already"), "{error}");

    // As after a kill: the connection ends, but the mount stays.
    let held = File::create(dir.join("held")).unwrap();
    abort(dir);
    runtime.block_on(left.ended());
    assert_eq!(mountpoint::inspect(dir).unwrap(), Found::Dead);
    runtime.block_on(prepare(dir)).unwrap();
    drop(held);
    assert_eq!(mountpoint::inspect(dir).unwrap(), Found::Directory);
    let mount = Mount::with(&fake, options(dir));
    fs::write(mount.path("works"), "again").unwrap();
}

#[test]
fn an_aborted_connection_leaves_no_dead_mount() {
    let mut mount = Mount::new(&Fake::new());
    let held = File::create(mount.path("held")).unwrap();
    abort(&mount.dir);
    mount.wait().unwrap();
    drop(held);
    assert_eq!(mountpoint::inspect(&mount.dir).unwrap(), Found::Directory);
}

#[test]
fn a_moved_alias_shows_soon() {
    let fake = Fake::new();
    let mount = Mount::new(&fake);
    let site: atoll_proto::SiteName = "blog".parse().unwrap();
    let ids = ["first", "second"].map(|text| {
        let path = text.into();
        let id = fake.plant(bytes::Bytes::copy_from_slice(text.as_bytes()));
        let extent = atoll_proto::content::Extent { id: Some(id), len: text.len() as u32 };
        let built = atoll_client::build(
            vec![atoll_proto::manifest::Entry {
                path,
                mode: 0o644,
                mtime_ns: 0,
                content: atoll_proto::Content::from_extents(vec![extent]),
                content_type: "text/plain".to_owned(),
                header_rule: None,
                variants: vec![],
                base: None,
            }],
            None,
        )
        .unwrap();
        built.pages.into_iter().for_each(|page| {
            fake.plant(page.bytes);
        });
        built.root
    });
    fake.publish_site(&site, &ids);
    let alias = mount.path(".sites/blog/production");
    for (id, name) in ids.iter().zip(["first", "second"]) {
        fake.point_alias(*id);
        let begin = Instant::now();
        while fs::read_link(&alias).unwrap() != Path::new(&id.to_string()) {
            assert!(begin.elapsed() < Duration::from_secs(10), "the alias does not move");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(fs::read_to_string(alias.join(name)).unwrap(), name);
    }
    let error = fs::write(alias.join("second"), "x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    shell(
        &mount.dir,
        "cp -r .sites/blog $W/ && test -f $W/blog/production/second && ! ls | grep .",
    );
}

#[test]
fn a_wrong_directory_is_refused_with_a_reason() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    fs::write(&file, "").unwrap();
    for (path, reason) in [(home.path().join("no"), "no such directory"), (file, "not a directory")]
    {
        let error = runtime.block_on(prepare(&path)).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn sizes_are_read_with_units() {
    assert_eq!(parse_bytes("123"), Ok(123));
    assert_eq!(parse_bytes("64M"), Ok(64 << 20));
    assert_eq!(parse_bytes("2g"), Ok(2 << 30));
    assert!(parse_bytes("x").is_err() && parse_bytes("").is_err());
    assert!(parse_bytes("99999999999G").is_err());
}

/// Where a mount's kernel takes the end of a file to be wrong, what is appended is in another place
/// than the pages it keeps.
#[test]
fn open_files_and_mappings_see_appends_where_they_are() {
    let fake = Fake::new();
    let (one, two) = (Mount::new(&fake), Mount::new(&fake));
    fs::write(one.path("log"), "begin ").unwrap();
    let mut open = OpenOptions::new().read(true).append(true).open(one.path("log")).unwrap();
    // It is in pages of this kernel's before another mount appends, and is committed after.
    open.write_all(b"one ").unwrap();
    let mut bytes = [0; 10];
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"begin one ");
    OpenOptions::new().append(true).open(two.path("log")).unwrap().write_all(b"two ").unwrap();
    open.sync_all().unwrap();
    let sees = |file: &File, expected: &str| {
        let until = Instant::now() + Duration::from_secs(20);
        let mut found = Vec::new();
        while Instant::now() < until {
            found = vec![0; 64];
            let count = file.read_at(&mut found, 0).unwrap();
            found.truncate(count);
            if found == expected.as_bytes() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("{:?} instead of {expected:?}", String::from_utf8_lossy(&found));
    };
    sees(&open, "begin two one ");
    // The other way: the kernel's end is not the file's when the write comes.
    open.write_all(b"three ").unwrap();
    open.sync_all().unwrap();
    sees(&open, "begin two one three ");
    let mapped = r#"
import mmap, os, sys, time
f = os.open("log", os.O_RDWR | os.O_APPEND)
size = os.fstat(f).st_size
os.write(f, b"four ")
m = mmap.mmap(f, size + 5, mmap.MAP_SHARED, mmap.PROT_READ)
assert m[size:] == b"four ", m[:]
with open(sys.argv[1] + "/log", "ab") as other:
    other.write(b"five ")
os.fsync(f)
until = time.time() + 20
while m[size:] != b"five " and time.time() < until:
    time.sleep(0.005)
assert m[size:] == b"five ", m[:]
"#;
    fs::write(one.path("mapped.py"), mapped).unwrap();
    shell(&one.dir, &format!("python3 mapped.py {}", two.dir.display()));
    let expected = "begin two one three five four ";
    assert_eq!(fs::read_to_string(two.path("log")).unwrap(), expected);
    assert_eq!(fs::read_to_string(one.path("log")).unwrap(), expected);
}
