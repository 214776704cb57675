//! Rules about names: directories, links, special files, rename, unlink.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::{Result, ensure};
use rustix::fs::{CWD, FileType, Mode, RenameFlags, makedev, mknodat, renameat_with};

use super::{Rule, as_user, fails, refuses};

pub(super) const RULES: &[Rule] = &[
    ("mkdir()", "there must not be anything of that name", exists),
    ("rmdir()", "only an empty directory, and not by . or ..", rmdir),
    ("XBD 4.13", "names have up to 255 bytes, paths less than PATH_MAX", long_names),
    ("XBD 4.13", "symbolic links that go in circles are ELOOP", loops),
    ("symlink()", "any text is a target, and its length is the size", symlinks),
    ("link()", "a second name of a file, not of a directory, and the times change", links),
    ("unlink()", "a file without a name lives as long as it is open", unlinked),
    ("unlink(), XBD 4.3", "in a sticky directory only owners remove names", sticky),
    ("mkfifo(), mknod()", "pipes, sockets and devices are what they were made as", special),
    ("rename()", "replaces files by files, directories by empty directories", renames),
    ("rename()", "two names of one file are left alone", rename_same),
    ("rename()", "a directory does not go into itself", rename_inside),
    ("rename()", "needs the right to write both directories", rename_rights),
    ("renameat2(2)", "NOREPLACE replaces nothing, EXCHANGE swaps", rename_flags),
    ("stat()", "directories count their subdirectories", nlinks),
    ("readdir()", "lists each name once, also while names come and go", listing),
];

fn exists(dir: &Path) -> Result<()> {
    let path = dir.join("x");
    fs::create_dir(&path)?;
    fails(libc::EEXIST, "mkdir over a directory", fs::create_dir(&path))?;
    fails(libc::EEXIST, "symlink over a directory", symlink("y", &path))?;
    File::create(dir.join("f"))?;
    fails(libc::EEXIST, "mkdir over a file", fs::create_dir(dir.join("f")))?;
    fails(libc::ENOTDIR, "mkdir in a file", fs::create_dir(dir.join("f/x")))?;
    fails(libc::ENOENT, "mkdir in nothing", fs::create_dir(dir.join("nothing/x")))?;
    fails(libc::EEXIST, "O_EXCL on a file", File::create_new(dir.join("f")))
}

fn rmdir(dir: &Path) -> Result<()> {
    let path = dir.join("d");
    fs::create_dir_all(path.join("e"))?;
    fails(libc::ENOTEMPTY, "rmdir of a full one", fs::remove_dir(&path))?;
    fails(libc::EINVAL, "rmdir of .", fs::remove_dir(path.join("e/.")))?;
    fails(libc::ENOTEMPTY, "rmdir of ..", fs::remove_dir(path.join("e/..")))?;
    File::create(dir.join("f"))?;
    fails(libc::ENOTDIR, "rmdir of a file", fs::remove_dir(dir.join("f")))?;
    fails(libc::EISDIR, "unlink of a directory", fs::remove_file(&path))?;
    fs::remove_dir(path.join("e"))?;
    fs::remove_dir(&path)?;
    fails(libc::ENOENT, "rmdir of nothing", fs::remove_dir(&path))
}

fn long_names(dir: &Path) -> Result<()> {
    let longest = "n".repeat(255);
    File::create(dir.join(&longest))?;
    ensure!(dir.join(&longest).exists());
    fs::rename(dir.join(&longest), dir.join("m".repeat(255)))?;
    fs::remove_file(dir.join("m".repeat(255)))?;
    let name = dir.join("n".repeat(256));
    fails(libc::ENAMETOOLONG, "a name of 256 bytes", File::create(&name))?;
    fails(libc::ENAMETOOLONG, "stat of one", fs::metadata(&name))?;
    fails(libc::ENAMETOOLONG, "mkdir of one", fs::create_dir(&name))?;
    fails(libc::ENAMETOOLONG, "a link of one", symlink("x", &name))?;
    File::create(dir.join("f"))?;
    fails(libc::ENAMETOOLONG, "rename to one", fs::rename(dir.join("f"), &name))?;
    fails(libc::ENAMETOOLONG, "link to one", fs::hard_link(dir.join("f"), &name))?;
    let path = dir.join("d/".repeat(2048));
    fails(libc::ENAMETOOLONG, "a path of 4096 bytes", fs::metadata(path))
}

fn loops(dir: &Path) -> Result<()> {
    symlink("b", dir.join("a"))?;
    symlink("a", dir.join("b"))?;
    fails(libc::ELOOP, "open", File::open(dir.join("a")))?;
    fails(libc::ELOOP, "stat below", fs::metadata(dir.join("a/x")))?;
    fails(
        libc::ELOOP,
        "chmod",
        fs::set_permissions(dir.join("b"), fs::Permissions::from_mode(0o0)),
    )?;
    ensure!(fs::symlink_metadata(dir.join("a"))?.is_symlink());
    Ok(())
}

fn symlinks(dir: &Path) -> Result<()> {
    for target in ["x", "not/there/../é", &"t".repeat(4095)] {
        symlink(target, dir.join("l"))?;
        ensure!(fs::read_link(dir.join("l"))?.as_os_str() == target);
        ensure!(fs::symlink_metadata(dir.join("l"))?.size() == target.len() as u64);
        fs::remove_file(dir.join("l"))?;
    }
    fails(libc::ENAMETOOLONG, "a target of 4096", symlink("t".repeat(4096), dir.join("l")))?;
    fails(libc::ENOENT, "no target", symlink("", dir.join("l")))?;
    File::create(dir.join("f"))?;
    fails(libc::EINVAL, "readlink of a file", fs::read_link(dir.join("f")))
}

fn links(dir: &Path) -> Result<()> {
    let (a, b) = (dir.join("a"), dir.join("b"));
    fs::write(&a, "content")?;
    let before = fs::metadata(&a)?;
    fs::hard_link(&a, &b)?;
    let after = fs::metadata(&b)?;
    ensure!((after.ino(), after.nlink()) == (before.ino(), 2), "{after:?}");
    ensure!(ctime(&after) >= ctime(&before) && after.mtime_nsec() == before.mtime_nsec());
    fs::write(&b, "changed by the other name")?;
    ensure!(fs::read(&a)? == b"changed by the other name");
    fails(libc::EEXIST, "link over a file", fs::hard_link(&a, &b))?;
    fs::create_dir(dir.join("d"))?;
    fails(libc::EPERM, "link of a directory", fs::hard_link(dir.join("d"), dir.join("e")))?;
    symlink("nowhere", dir.join("l"))?;
    fs::hard_link(dir.join("l"), dir.join("m"))?;
    ensure!(fs::symlink_metadata(dir.join("m"))?.nlink() == 2, "links of links are links");
    fs::remove_file(&a)?;
    ensure!(fs::metadata(&b)?.nlink() == 1);
    Ok(())
}

fn ctime(meta: &fs::Metadata) -> (i64, i64) {
    (meta.ctime(), meta.ctime_nsec())
}

fn unlinked(dir: &Path) -> Result<()> {
    use std::io::{Read as _, Seek as _, Write as _};
    let path = dir.join("f");
    let mut file = File::options().read(true).write(true).create_new(true).open(&path)?;
    file.write_all(b"before")?;
    fs::remove_file(&path)?;
    fails(libc::ENOENT, "stat of the name", fs::metadata(&path))?;
    ensure!(file.metadata()?.nlink() == 0, "{:?}", file.metadata()?);
    file.write_all(b" and after")?;
    file.sync_all()?;
    file.set_permissions(fs::Permissions::from_mode(0o640))?;
    ensure!(file.metadata()?.mode() & 0o7777 == 0o640);
    file.rewind()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    ensure!(text == "before and after", "{text}");
    // Its place is free for another one.
    fs::write(&path, "another")?;
    ensure!(fs::read(&path)? == b"another");
    // The same when another file takes the name.
    let mut old = File::open(&path)?;
    fs::write(dir.join("new"), "newer")?;
    fs::rename(dir.join("new"), &path)?;
    text.clear();
    old.read_to_string(&mut text)?;
    ensure!(text == "another" && old.metadata()?.nlink() == 0, "{text}");
    Ok(())
}

fn sticky(dir: &Path) -> Result<()> {
    let shared = dir.join("shared");
    fs::create_dir(&shared)?;
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777))?;
    let (file, sub) = (shared.join("f"), shared.join("d"));
    as_user(1001, 1001, || fs::write(&file, "mine").and_then(|()| fs::create_dir(&sub)))?;
    as_user(1002, 1002, || {
        fails(libc::EPERM, "unlink", fs::remove_file(&file))?;
        fails(libc::EPERM, "rmdir", fs::remove_dir(&sub))?;
        fails(libc::EPERM, "rename away", fs::rename(&file, dir.join("away")))?;
        fs::write(shared.join("g"), "other")?;
        fails(libc::EPERM, "rename over", fs::rename(shared.join("g"), &file))
    })?;
    as_user(1001, 1001, || fs::remove_file(&file).and_then(|()| fs::remove_dir(&sub)))?;
    as_user(1002, 1002, || fs::remove_file(shared.join("g")))?;
    Ok(())
}

fn special(dir: &Path) -> Result<()> {
    let mode = Mode::from_raw_mode(0o640);
    let device = makedev(11, 0x12345);
    for (name, kind, device) in [
        ("pipe", FileType::Fifo, 0),
        ("socket", FileType::Socket, 0),
        ("char", FileType::CharacterDevice, device),
        ("block", FileType::BlockDevice, device),
    ] {
        let path = dir.join(name);
        mknodat(CWD, &path, kind, mode, device)?;
        let meta = fs::symlink_metadata(&path)?;
        let is = meta.file_type();
        let right = match name {
            "pipe" => is.is_fifo(),
            "socket" => is.is_socket(),
            "char" => is.is_char_device(),
            _ => is.is_block_device(),
        };
        ensure!(right && meta.rdev() == device && meta.mode() & 0o7777 == 0o640, "{meta:?}");
        ensure!(meta.nlink() == 1 && meta.size() == 0, "{meta:?}");
        fs::hard_link(&path, dir.join("second"))?;
        fs::remove_file(dir.join("second"))?;
        refuses(libc::EEXIST, "mknod over it", mknodat(CWD, &path, kind, mode, device))?;
    }
    as_user(1001, 1001, || {
        let kind = FileType::CharacterDevice;
        refuses(libc::EPERM, "a device", mknodat(CWD, dir.join("x"), kind, mode, device))?;
        mknodat(CWD, dir.join("mine"), FileType::Fifo, mode, 0)?;
        anyhow::Ok(())
    })?;
    // What is written to a pipe is read from it.
    let pipe = dir.join("pipe");
    let read = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::read(pipe)
    });
    fs::write(&pipe, "through the pipe")?;
    let got = read.join().expect("the reader does not panic")?;
    ensure!(got == b"through the pipe");
    let address = dir.join("listening");
    let listener = std::os::unix::net::UnixListener::bind(&address)?;
    std::os::unix::net::UnixStream::connect(&address)?;
    drop(listener);
    ensure!(fs::symlink_metadata(&address)?.file_type().is_socket());
    Ok(())
}

fn renames(dir: &Path) -> Result<()> {
    let at = |name: &str| dir.join(name);
    fs::write(at("a"), "a")?;
    fs::write(at("b"), "b")?;
    fs::create_dir_all(at("d/e"))?;
    fs::create_dir(at("empty"))?;
    fails(libc::EISDIR, "a file over a directory", fs::rename(at("a"), at("empty")))?;
    fails(libc::ENOTDIR, "a directory over a file", fs::rename(at("d"), at("a")))?;
    fails(libc::ENOTEMPTY, "over a full directory", fs::rename(at("empty"), at("d")))?;
    fails(libc::ENOENT, "of nothing", fs::rename(at("nothing"), at("x")))?;
    fails(libc::ENOENT, "into nothing", fs::rename(at("a"), at("nothing/x")))?;
    fs::rename(at("a"), at("b"))?;
    ensure!(fs::read(at("b"))? == b"a" && !at("a").exists());
    let inode = fs::metadata(at("d"))?.ino();
    fs::rename(at("d"), at("empty"))?;
    ensure!(fs::metadata(at("empty"))?.ino() == inode && at("empty/e").is_dir());
    fs::create_dir(at("other"))?;
    fs::rename(at("empty/e"), at("other/e"))?;
    ensure!(fs::metadata(at("other/e/.."))?.ino() == fs::metadata(at("other"))?.ino());
    ensure!(fs::metadata(at("other"))?.nlink() == 3 && fs::metadata(at("empty"))?.nlink() == 2);
    Ok(())
}

fn rename_same(dir: &Path) -> Result<()> {
    fs::write(dir.join("a"), "x")?;
    fs::hard_link(dir.join("a"), dir.join("b"))?;
    fs::rename(dir.join("a"), dir.join("b"))?;
    ensure!(dir.join("a").exists() && dir.join("b").exists());
    fs::rename(dir.join("a"), dir.join("a"))?;
    ensure!(dir.join("a").exists());
    Ok(())
}

fn rename_inside(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir.join("a/b/c"))?;
    fails(libc::EINVAL, "into itself", fs::rename(dir.join("a"), dir.join("a/x")))?;
    fails(libc::EINVAL, "below itself", fs::rename(dir.join("a"), dir.join("a/b/c/x")))?;
    fails(libc::EBUSY, "of .", fs::rename(dir.join("a/."), dir.join("x")))?;
    fails(libc::ENOTEMPTY, "over what holds it", fs::rename(dir.join("a/b"), dir.join("a")))
}

fn rename_rights(dir: &Path) -> Result<()> {
    let (mine, yours) = (dir.join("mine"), dir.join("yours"));
    as_user(1001, 1001, || fs::create_dir(&mine))?;
    as_user(1002, 1002, || fs::create_dir(&yours))?;
    fs::set_permissions(&mine, fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(&yours, fs::Permissions::from_mode(0o755))?;
    as_user(1001, 1001, || {
        fs::write(mine.join("f"), "x")?;
        fails(libc::EACCES, "into another's", fs::rename(mine.join("f"), yours.join("f")))
    })?;
    as_user(1002, 1002, || {
        fails(libc::EACCES, "out of another's", fs::rename(mine.join("f"), yours.join("f")))?;
        fails(libc::EACCES, "unlink in another's", fs::remove_file(mine.join("f")))?;
        fails(libc::EACCES, "mkdir in another's", fs::create_dir(mine.join("d")))
    })?;
    fs::rename(mine.join("f"), yours.join("f"))?;
    Ok(())
}

fn rename_flags(dir: &Path) -> Result<()> {
    let at = |name: &str| dir.join(name);
    fs::write(at("f"), "file")?;
    fs::create_dir_all(at("d/e"))?;
    let move_by = |from, to, flags| renameat_with(CWD, at(from), CWD, at(to), flags);
    refuses(libc::EEXIST, "NOREPLACE", move_by("f", "d", RenameFlags::NOREPLACE))?;
    refuses(libc::EEXIST, "NOREPLACE of itself", move_by("f", "f", RenameFlags::NOREPLACE))?;
    move_by("f", "g", RenameFlags::NOREPLACE)?;
    move_by("g", "d/e", RenameFlags::EXCHANGE)?;
    ensure!(at("g").is_dir() && fs::read(at("d/e"))? == b"file");
    ensure!(fs::metadata(at("d"))?.nlink() == 2 && fs::metadata(dir)?.nlink() == 4);
    refuses(libc::ENOENT, "EXCHANGE with nothing", move_by("g", "h", RenameFlags::EXCHANGE))?;
    refuses(libc::EINVAL, "EXCHANGE inside", move_by("d", "d/e", RenameFlags::EXCHANGE))?;
    let both = RenameFlags::EXCHANGE | RenameFlags::NOREPLACE;
    refuses(libc::EINVAL, "both", move_by("g", "d", both))
}

fn nlinks(dir: &Path) -> Result<()> {
    let count = || Ok::<_, anyhow::Error>(fs::metadata(dir)?.nlink());
    ensure!(count()? == 2);
    fs::create_dir(dir.join("a"))?;
    fs::create_dir(dir.join("b"))?;
    File::create(dir.join("f"))?;
    ensure!(count()? == 4);
    fs::rename(dir.join("a"), dir.join("b/a"))?;
    ensure!(count()? == 3);
    fs::remove_dir_all(dir.join("b"))?;
    ensure!(count()? == 2);
    Ok(())
}

fn listing(dir: &Path) -> Result<()> {
    let name = |n: u32| format!("f{n:05}");
    for n in 0..1500 {
        File::create(dir.join(name(n)))?;
    }
    let mut seen = std::collections::BTreeSet::new();
    for (at, entry) in fs::read_dir(dir)?.enumerate() {
        let entry = entry?.file_name().into_string().expect("names of this test are text");
        ensure!(seen.insert(entry.clone()), "{entry} twice");
        // What has been listed goes, and others come, under the reader's feet.
        if at % 3 == 0 {
            fs::remove_file(dir.join(&entry))?;
            File::create(dir.join(format!("new{at}")))?;
        }
    }
    for n in 0..1500 {
        ensure!(seen.contains(&name(n)), "{} is missing", name(n));
    }
    Ok(())
}
