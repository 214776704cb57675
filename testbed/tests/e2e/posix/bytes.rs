//! Rules about open files: opening, reading, writing, lengths, holes, mappings.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use atoll_testbed::{process, wait};
use rustix::fs::{FallocateFlags, SeekFrom as Whence, fallocate};

use super::{Rule, fails, refuses};

pub(super) const RULES: &[Rule] = &[
    ("open()", "each flag refuses what it is for", open_flags),
    ("read(), write()", "what one handle writes every other reads at once", coherent),
    ("write()", "O_APPEND writes at the end, whoever wrote meanwhile", appends),
    ("truncate(), ftruncate()", "cuts, and grows by zeros", truncates),
    ("write()", "a hole reads as zeros, a file of a terabyte takes no room", sparse),
    ("posix_fallocate(), fallocate(2)", "grows, keeps the size, punches and zeroes", allocates),
    ("lseek()", "SEEK_DATA and SEEK_HOLE find what is there", seeks),
    ("mmap()", "a shared mapping is the file, a private one a copy", mappings),
    ("close(), fsync()", "what was closed or synced is what is opened next", closes),
    ("write(), XBD 4.9", "writing changes mtime and ctime, reading neither", write_times),
    ("statvfs()", "tells sizes, and names of 255 bytes", space),
    ("copy_file_range(2)", "copies ranges within and between files", copies),
];

fn open_flags(dir: &Path) -> Result<()> {
    let at = |name: &str| dir.join(name);
    let with = |flags: i32, name: &str| {
        File::options().read(true).custom_flags(flags).open(at(name)).map(drop)
    };
    fs::write(at("f"), "x")?;
    fs::create_dir(at("d"))?;
    symlink("f", at("l"))?;
    fails(libc::ELOOP, "O_NOFOLLOW", with(libc::O_NOFOLLOW, "l"))?;
    fails(libc::ENOTDIR, "O_DIRECTORY", with(libc::O_DIRECTORY, "f"))?;
    fails(libc::EISDIR, "writing a directory", File::options().write(true).open(at("d")))?;
    fails(libc::EISDIR, "creating over a directory", File::create(at("d")))?;
    fails(libc::ENOENT, "nothing there", File::open(at("n")))?;
    fails(libc::ENOTDIR, "below a file", File::open(at("f/x")))?;
    fails(libc::EEXIST, "O_EXCL through a link", File::create_new(at("l")))?;
    symlink("made", at("dangling"))?;
    File::create(at("dangling"))?;
    ensure!(at("made").exists(), "creating follows a link to nothing");
    let mut file = File::open(at("f"))?;
    fails(libc::EBADF, "writing what is open for reading", file.write_all(b"x"))?;
    let mut file = File::options().write(true).open(at("f"))?;
    fails(libc::EBADF, "reading what is open for writing", file.read(&mut [0]))?;
    fails(libc::EISDIR, "reading a directory", File::open(at("d"))?.read(&mut [0]))?;
    let fifo = rustix::fs::FileType::Fifo;
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), fifo, mode, 0)?;
    let nobody = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(at("pipe"));
    fails(libc::ENXIO, "a pipe that nobody reads", nobody)
}

fn coherent(dir: &Path) -> Result<()> {
    let path = dir.join("f");
    let one = File::options().read(true).write(true).create_new(true).open(&path)?;
    let two = File::options().read(true).write(true).open(&path)?;
    for n in 0..40u64 {
        let (writer, reader) = if n % 2 == 0 { (&one, &two) } else { (&two, &one) };
        let bytes: Vec<u8> = (0..5000).map(|i| (i * (n + 3)) as u8).collect();
        writer.write_all_at(&bytes, n * 4321)?;
        let mut seen = vec![0; bytes.len()];
        reader.read_exact_at(&mut seen, n * 4321)?;
        ensure!(seen == bytes, "write {n} is not seen");
        ensure!(reader.metadata()?.len() == n * 4321 + 5000, "the length after write {n}");
    }
    Ok(())
}

fn appends(dir: &Path) -> Result<()> {
    let path = dir.join("log");
    let open = || File::options().append(true).create(true).open(&path);
    let (mut one, mut two) = (open()?, open()?);
    let mut expected = Vec::new();
    for n in 0..60 {
        let record = format!("record {n} {}\n", "x".repeat(n * 37 % 5000));
        let file = if n % 3 == 0 { &mut one } else { &mut two };
        file.write_all(record.as_bytes())?;
        expected.extend_from_slice(record.as_bytes());
    }
    ensure!(fs::read(&path)? == expected);
    one.rewind()?;
    one.write_all(b"end")?;
    expected.extend_from_slice(b"end");
    drop((one, two));
    ensure!(fs::read(&path)? == expected);
    Ok(())
}

fn truncates(dir: &Path) -> Result<()> {
    let path = dir.join("f");
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
    fs::write(&path, &bytes)?;
    let file = File::options().read(true).write(true).open(&path)?;
    let mut expected = bytes;
    for len in [2_999_999, 1_048_576, 1_048_575, 4096, 5000, 2_500_000, 17, 0, 1] {
        file.set_len(len)?;
        expected.resize(len as usize, 0);
        ensure!(file.metadata()?.len() == len && fs::read(&path)? == expected, "to {len}");
    }
    drop(file);
    ensure!(fs::read(&path)? == expected, "after close");
    // By name, without a handle.
    nix::unistd::truncate(&path, 70_000)?;
    expected.resize(70_000, 0);
    ensure!(fs::read(&path)? == expected);
    fails(libc::EINVAL, "of what is open for reading", File::open(&path)?.set_len(3))?;
    let outcome = nix::unistd::truncate(dir, 0).map_err(Into::into);
    fails(libc::EISDIR, "of a directory", outcome)?;
    File::create(&path)?;
    ensure!(fs::metadata(&path)?.len() == 0);
    Ok(())
}

fn sparse(dir: &Path) -> Result<()> {
    let path = dir.join("huge");
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    let far = (1u64 << 40) - 3;
    file.write_all_at(b"end", far)?;
    file.write_all_at(b"begin", 0)?;
    file.write_all_at(b"middle", 600 << 30)?;
    file.sync_all()?;
    drop(file);
    let file = File::open(&path)?;
    ensure!(file.metadata()?.len() == 1 << 40);
    let read = |at: u64, len: usize| {
        let mut bytes = vec![1; len];
        file.read_exact_at(&mut bytes, at).map(|()| bytes)
    };
    ensure!(read(far, 3)? == b"end" && read(0, 7)? == b"begin\0\0");
    ensure!(read((600 << 30) - 2, 10)? == b"\0\0middle\0\0");
    ensure!(read(300 << 30, 100_000)?.iter().all(|byte| *byte == 0));
    ensure!(file.read_at(&mut [0; 10], far)? == 3, "a read ends at the end");
    fs::remove_file(&path)?;
    Ok(())
}

fn allocates(dir: &Path) -> Result<()> {
    let path = dir.join("f");
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    let bytes: Vec<u8> = (0..2_000_000u32).map(|n| (n / 3) as u8 | 1).collect();
    file.write_all_at(&bytes, 0)?;
    let mut expected = bytes;
    let same = |expected: &[u8], what: &str| {
        ensure!(fs::read(&path)? == expected, "after {what}");
        Ok(())
    };
    fallocate(&file, FallocateFlags::empty(), 1_500_000, 1_000_000)?;
    expected.resize(2_500_000, 0);
    same(&expected, "growing")?;
    fallocate(&file, FallocateFlags::KEEP_SIZE, 2_400_000, 1_000_000)?;
    same(&expected, "reserving behind the end")?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    for (at, len) in [(100, 50), (1_000_000, 200_000), (2_499_990, 1000)] {
        fallocate(&file, punch, at, len)?;
        let end = (at + len).min(2_500_000) as usize;
        expected[at as usize..end].fill(0);
        same(&expected, "punching")?;
    }
    refuses(libc::EOPNOTSUPP, "a punch that grows", {
        fallocate(&file, FallocateFlags::PUNCH_HOLE, 0, 10)
    })?;
    refuses(libc::EINVAL, "no length", fallocate(&file, FallocateFlags::empty(), 0, 0))?;
    let reader = File::open(&path)?;
    refuses(libc::EBADF, "for reading", fallocate(&reader, FallocateFlags::empty(), 0, 1))?;
    file.sync_all()?;
    drop(file);
    same(&expected, "close")
}

fn seeks(dir: &Path) -> Result<()> {
    let path = dir.join("f");
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    file.set_len(64 << 20)?;
    file.write_all_at(&[7; 1 << 20], 32 << 20)?;
    file.sync_all()?;
    let seek = |whence| rustix::fs::seek(&file, whence);
    let (data, end) = (32 << 20, 33 << 20);
    let first = seek(Whence::Data(0))?;
    ensure!(first <= data && first > 0, "the first data is at {first}");
    let hole = seek(Whence::Hole(data))?;
    ensure!(hole >= end && hole < 64 << 20, "the next hole is at {hole}");
    ensure!(seek(Whence::Hole(0))? == 0 && seek(Whence::Data(data + 5))? == data + 5);
    refuses(libc::ENXIO, "data behind the last", seek(Whence::Data(60 << 20)))?;
    refuses(libc::ENXIO, "a hole behind the end", seek(Whence::Hole(64 << 20)))?;
    Ok(())
}

fn mappings(dir: &Path) -> Result<()> {
    let script = "
import mmap, os, sys
path = os.path.join(sys.argv[1], 'f')
with open(path, 'wb') as f: f.write(b'a' * 10000)
fd = os.open(path, os.O_RDWR)
shared = mmap.mmap(fd, 10000)
private = mmap.mmap(fd, 10000, flags=mmap.MAP_PRIVATE)
shared[5000:5003] = b'XYZ'
private[100:103] = b'123'
assert os.pread(fd, 3, 5000) == b'XYZ', 'a read sees what the mapping has'
assert os.pread(fd, 3, 100) == b'aaa', 'a private mapping is nobody else\\'s'
os.pwrite(fd, b'written', 7000)
assert shared[7000:7007] == b'written', 'the mapping sees what was written'
shared.flush()
os.close(fd)
shared[9000:9003] = b'end'
shared.close()
with open(path, 'rb') as f: text = f.read()
assert len(text) == 10000 and text[5000:5003] == b'XYZ' and text[9000:9003] == b'end'
assert text[7000:7007] == b'written' and text[100:103] == b'aaa'
";
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(dir);
    process::run(command, Duration::from_secs(60))?.ok()?;
    Ok(())
}

fn closes(dir: &Path) -> Result<()> {
    let path = dir.join("f");
    for n in 0..20u8 {
        let bytes = vec![n; 1000 + usize::from(n) * 70_000];
        let mut file = File::create(&path)?;
        file.write_all(&bytes)?;
        if n % 2 == 0 {
            file.sync_data()?;
        }
        drop(file);
        ensure!(fs::read(&path)? == bytes, "round {n}");
        ensure!(fs::metadata(&path)?.len() == bytes.len() as u64);
    }
    File::open(dir)?.sync_all()?;
    Ok(())
}

fn write_times(dir: &Path) -> Result<()> {
    let path = dir.join("f");
    fs::write(&path, "x")?;
    let at = |meta: &fs::Metadata| {
        ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()))
    };
    let before = at(&fs::metadata(&path)?);
    fs::read(&path)?;
    ensure!(at(&fs::metadata(&path)?) == before, "reading");
    // The clocks of file systems tick: a new file with a later time shows that this one's did.
    wait::until("a tick of the clock", Duration::from_secs(10), || {
        fs::write(dir.join("tick"), "")?;
        Ok((at(&fs::metadata(dir.join("tick"))?) > before).then_some(()))
    })?;
    let mut file = File::options().append(true).open(&path)?;
    ensure!(at(&fs::metadata(&path)?) == before, "opening");
    file.write_all(b"y")?;
    let open = at(&file.metadata()?);
    ensure!(open.0 > before.0 && open.1 > before.1, "writing: {before:?} {open:?}");
    drop(file);
    let closed = at(&fs::metadata(&path)?);
    ensure!(closed.0 >= open.0 && closed.1 >= open.1, "closing: {open:?} {closed:?}");
    let mut file = File::open(&path)?;
    file.seek(SeekFrom::End(0))?;
    drop(file);
    ensure!(at(&fs::metadata(&path)?) == closed, "closing what was only read");
    Ok(())
}

fn space(dir: &Path) -> Result<()> {
    let space = rustix::fs::statvfs(dir)?;
    ensure!(space.f_namemax == 255, "names of {} bytes", space.f_namemax);
    let blocks = (space.f_blocks, space.f_bfree, space.f_bavail);
    ensure!(blocks.0 > 0 && blocks.1 <= blocks.0 && blocks.2 <= blocks.1, "{blocks:?}");
    ensure!(space.f_ffree <= space.f_files, "{} of {} inodes", space.f_ffree, space.f_files);
    Ok(())
}

fn copies(dir: &Path) -> Result<()> {
    let bytes: Vec<u8> = (0..1_500_000u32).map(|n| (n / 5) as u8).collect();
    fs::write(dir.join("a"), &bytes)?;
    let from = File::open(dir.join("a"))?;
    let to = File::options().write(true).create_new(true).open(dir.join("b"))?;
    let (mut at, mut put) = (1000u64, 0u64);
    while at < 1_400_000 {
        let left = 1_400_000 - at as usize;
        let count = rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut put), left)?;
        ensure!(count > 0, "it stops at {at}");
    }
    drop(to);
    ensure!(fs::read(dir.join("b"))? == bytes[1000..1_400_000]);
    Ok(())
}
