//! Rules about who may what, and about modes, owners, times and extended attributes.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::Path;

use anyhow::{Result, ensure};
use rustix::fs::{
    AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags, getxattr, listxattr,
    removexattr, setxattr, utimensat,
};

use super::{Rule, as_user, fails, refuses};

pub(super) const RULES: &[Rule] = &[
    ("XBD 4.5", "owner, group and others each have their own bits", permissions),
    ("XBD 4.5", "going through a directory needs the right to search it", searching),
    ("open()", "what is made has the mode without the mask, and its maker's owner", masks),
    ("chmod()", "is for the owner, and changes the ctime only", chmods),
    ("chown()", "gives files away only as root, and takes their privileges", chowns),
    ("write()", "of somebody else takes a file's privileges", privileges),
    ("mkdir(), open()", "a directory with the set-group-ID bit gives its group", groups),
    ("utimensat()", "sets times to the nanosecond, or to now, or leaves them", times),
    ("utimensat()", "is for the owner, and to now for writers", times_rights),
    ("XBD 4.9", "changes of names are changes of the directory", directory_times),
    ("xattr(7)", "attributes are set, replaced, listed and removed", xattrs),
    (
        "xattr(7)",
        "user attributes follow the permission bits, trusted ones are root's",
        xattr_rights,
    ),
    ("acl(5)", "access lists admit whom they name, and the mask bounds them", access_lists),
    ("acl(5)", "a directory's default list is inherited", default_lists),
];

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::symlink_metadata(path)?.mode() & 0o7777)
}

fn chmod(path: &Path, mode: u32) -> std::io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
}

fn permissions(dir: &Path) -> Result<()> {
    let file = dir.join("f");
    fs::write(&file, "content")?;
    chown(&file, Some(1001), Some(2001))?;
    let write = |path: &Path| File::options().append(true).open(path).map(drop);
    for (bits, uid, gid, may_read, may_write) in [
        (0o400, 1001, 1, true, false),
        (0o200, 1001, 2001, false, true),
        (0o044, 1001, 2001, false, false),
        (0o040, 1002, 2001, true, false),
        (0o020, 1002, 2001, false, true),
        (0o604, 1002, 2001, false, false),
        (0o004, 1002, 1, true, false),
        (0o002, 1002, 1, false, true),
        (0o660, 1002, 1, false, false),
    ] {
        chmod(&file, bits)?;
        let (read, wrote) = as_user(uid, gid, || (File::open(&file).is_ok(), write(&file).is_ok()));
        ensure!((read, wrote) == (may_read, may_write), "{bits:o} for {uid}:{gid}: {read} {wrote}");
    }
    fs::read(&file)?;
    Ok(())
}

fn searching(dir: &Path) -> Result<()> {
    let closed = dir.join("closed");
    fs::create_dir(&closed)?;
    fs::write(closed.join("f"), "x")?;
    chmod(&closed.join("f"), 0o666)?;
    chmod(&closed, 0o744)?;
    as_user(1001, 1001, || {
        fails(libc::EACCES, "open", File::open(closed.join("f")))?;
        fails(libc::EACCES, "stat", fs::metadata(closed.join("f")))?;
        fails(libc::EACCES, "stat of nothing", fs::metadata(closed.join("g")))?;
        ensure!(fs::read_dir(&closed)?.count() == 1, "listing needs the right to read only");
        anyhow::Ok(())
    })?;
    chmod(&closed, 0o711)?;
    as_user(1001, 1001, || {
        fails(libc::EACCES, "listing", fs::read_dir(&closed))?;
        fs::read(closed.join("f"))?;
        fails(libc::EACCES, "create", File::create_new(closed.join("g")))
    })
}

fn masks(dir: &Path) -> Result<()> {
    // The mask is the process's: what the tests have is what every shell has.
    let mask = {
        File::options().write(true).create_new(true).mode(0o777).open(dir.join("probe"))?;
        0o777 & !mode(&dir.join("probe"))?
    };
    as_user(1001, 2001, || {
        File::options().write(true).create_new(true).mode(0o6666).open(dir.join("f"))?;
        fs::create_dir(dir.join("d"))?;
        std::os::unix::fs::symlink("x", dir.join("l"))
    })?;
    ensure!(mode(&dir.join("f"))? == 0o6666 & !mask, "{:o}", mode(&dir.join("f"))?);
    ensure!(mode(&dir.join("d"))? == 0o777 & !mask && mode(&dir.join("l"))? == 0o777);
    for name in ["f", "d", "l"] {
        let meta = fs::symlink_metadata(dir.join(name))?;
        ensure!((meta.uid(), meta.gid()) == (1001, 2001), "{meta:?}");
    }
    Ok(())
}

fn chmods(dir: &Path) -> Result<()> {
    let file = dir.join("f");
    as_user(1001, 1001, || fs::write(&file, "x"))?;
    let before = fs::metadata(&file)?;
    as_user(1002, 1001, || fails(libc::EPERM, "of another's", chmod(&file, 0o777)))?;
    for bits in [0, 0o7777, 0o4711, 0o1000, 0o644] {
        as_user(1001, 1001, || chmod(&file, bits))?;
        ensure!(mode(&file)? == bits, "{:o} instead of {bits:o}", mode(&file)?);
    }
    let after = fs::metadata(&file)?;
    ensure!((after.ctime(), after.ctime_nsec()) > (before.ctime(), before.ctime_nsec()));
    ensure!((after.mtime(), after.mtime_nsec()) == (before.mtime(), before.mtime_nsec()));
    // A group that the owner is not in does not get to be set.
    chown(&file, Some(1001), Some(2001))?;
    as_user(1001, 1001, || chmod(&file, 0o2755))?;
    ensure!(mode(&file)? == 0o755, "{:o}", mode(&file)?);
    fs::create_dir(dir.join("d"))?;
    chmod(&dir.join("d"), 0o3775)?;
    ensure!(mode(&dir.join("d"))? == 0o3775);
    Ok(())
}

fn chowns(dir: &Path) -> Result<()> {
    let file = dir.join("f");
    as_user(1001, 1001, || fs::write(&file, "x"))?;
    as_user(1001, 1001, || {
        fails(libc::EPERM, "giving away", chown(&file, Some(1002), None))?;
        fails(libc::EPERM, "to a group of others", chown(&file, None, Some(2002)))?;
        chown(&file, Some(1001), Some(1001))?;
        anyhow::Ok(())
    })?;
    as_user(1002, 1001, || fails(libc::EPERM, "taking", chown(&file, Some(1002), None)))?;
    for (bits, after) in [(0o6755, 0o755), (0o4700, 0o700), (0o1755, 0o1755)] {
        chmod(&file, bits)?;
        chown(&file, Some(1002), Some(2002))?;
        ensure!(mode(&file)? == after, "{bits:o} becomes {:o}", mode(&file)?);
        let meta = fs::metadata(&file)?;
        ensure!((meta.uid(), meta.gid()) == (1002, 2002), "{meta:?}");
    }
    chown(&file, None, None)?;
    ensure!(fs::metadata(&file)?.uid() == 1002);
    fs::create_dir(dir.join("d"))?;
    chmod(&dir.join("d"), 0o2755)?;
    chown(dir.join("d"), Some(1), Some(1))?;
    ensure!(mode(&dir.join("d"))? == 0o2755, "directories keep the bit");
    std::os::unix::fs::symlink("f", dir.join("l"))?;
    std::os::unix::fs::lchown(dir.join("l"), Some(7), Some(8))?;
    let meta = fs::symlink_metadata(dir.join("l"))?;
    ensure!((meta.uid(), meta.gid()) == (7, 8) && fs::metadata(&file)?.uid() == 1002);
    Ok(())
}

fn privileges(dir: &Path) -> Result<()> {
    use std::io::Write as _;
    let file = dir.join("f");
    fs::write(&file, "program")?;
    let again = || chmod(&file, 0o6777);
    let write = || {
        let mut open = File::options().append(true).open(&file)?;
        open.write_all(b"more")
    };
    again()?;
    write()?;
    ensure!(mode(&file)? == 0o6777, "root may");
    as_user(1001, 1001, write)?;
    ensure!(mode(&file)? == 0o777, "after a write: {:o}", mode(&file)?);
    again()?;
    as_user(1001, 1001, || File::options().write(true).open(&file)?.set_len(3))?;
    ensure!(mode(&file)? == 0o777, "after ftruncate: {:o}", mode(&file)?);
    again()?;
    as_user(1001, 1001, || File::options().write(true).truncate(true).open(&file).map(drop))?;
    ensure!(mode(&file)? == 0o777, "after O_TRUNC: {:o}", mode(&file)?);
    Ok(())
}

fn groups(dir: &Path) -> Result<()> {
    let shared = dir.join("shared");
    fs::create_dir(&shared)?;
    chown(&shared, None, Some(2001))?;
    chmod(&shared, 0o2777)?;
    as_user(1001, 1001, || {
        fs::write(shared.join("f"), "x")?;
        fs::create_dir(shared.join("d"))?;
        fs::write(shared.join("d/f"), "x")?;
        std::os::unix::fs::symlink("f", shared.join("l"))
    })?;
    for name in ["f", "d", "d/f", "l"] {
        let gid = fs::symlink_metadata(shared.join(name))?.gid();
        ensure!(gid == 2001, "{name} has group {gid}");
    }
    ensure!(mode(&shared.join("d"))? & 0o2000 != 0, "directories pass the bit on");
    ensure!(mode(&shared.join("f"))? & 0o2000 == 0);
    // Nobody gets a program of a group by making it there.
    as_user(1001, 1001, || {
        File::options().write(true).create_new(true).mode(0o2755).open(shared.join("p")).map(drop)
    })?;
    ensure!(mode(&shared.join("p"))? & 0o2000 == 0, "{:o}", mode(&shared.join("p"))?);
    Ok(())
}

fn stamps(access: (i64, i64), modification: (i64, i64)) -> Timestamps {
    let spec = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    Timestamps { last_access: spec(access), last_modification: spec(modification) }
}

fn set_times(path: &Path, access: (i64, i64), modification: (i64, i64)) -> rustix::io::Result<()> {
    utimensat(CWD, path, &stamps(access, modification), AtFlags::SYMLINK_NOFOLLOW)
}

fn get_times(path: &Path) -> Result<((i64, i64), (i64, i64))> {
    let meta = fs::symlink_metadata(path)?;
    Ok(((meta.atime(), meta.atime_nsec()), (meta.mtime(), meta.mtime_nsec())))
}

fn times(dir: &Path) -> Result<()> {
    let file = dir.join("f");
    fs::write(&file, "x")?;
    fs::create_dir(dir.join("d"))?;
    std::os::unix::fs::symlink("f", dir.join("l"))?;
    let (old, far) = ((1, 999_999_999), (4_294_967_296, 123_456_789));
    for path in [&file, &dir.join("d"), &dir.join("l")] {
        for (access, modification) in [(old, far), (far, old), ((0, 0), (0, 1)), ((-5, 7), (-1, 0))]
        {
            set_times(path, access, modification)?;
            let got = get_times(path)?;
            ensure!(
                got == (access, modification),
                "{got:?} instead of {access:?} {modification:?}"
            );
        }
    }
    set_times(&file, old, far)?;
    set_times(&file, (0, UTIME_OMIT), (7, 8))?;
    ensure!(get_times(&file)? == (old, (7, 8)), "{:?}", get_times(&file)?);
    let before = fs::metadata(&file)?;
    set_times(&file, (0, UTIME_OMIT), (0, UTIME_OMIT))?;
    ensure!(get_times(&file)? == (old, (7, 8)));
    set_times(&file, (0, UTIME_NOW), (0, UTIME_OMIT))?;
    let (access, modification) = get_times(&file)?;
    ensure!(access.0 > 1_600_000_000 && modification == (7, 8), "{access:?} {modification:?}");
    ensure!(fs::metadata(&file)?.ctime() >= before.ctime());
    refuses(libc::EINVAL, "too many nanoseconds", set_times(&file, (0, 1_000_000_000), (0, 0)))?;
    // Open and written: the time set last counts.
    let open = File::options().append(true).open(&file)?;
    std::io::Write::write_all(&mut &open, b"more")?;
    set_times(&file, (3, 4), (5, 6))?;
    drop(open);
    ensure!(get_times(&file)? == ((3, 4), (5, 6)), "{:?}", get_times(&file)?);
    Ok(())
}

fn times_rights(dir: &Path) -> Result<()> {
    let file = dir.join("f");
    fs::write(&file, "x")?;
    let now = ((0, UTIME_NOW), (0, UTIME_NOW));
    chmod(&file, 0o644)?;
    as_user(1001, 1001, || {
        refuses(libc::EACCES, "to now without write", set_times(&file, now.0, now.1))?;
        refuses(libc::EPERM, "to a time", set_times(&file, (1, 2), (3, 4)))
    })?;
    chmod(&file, 0o666)?;
    as_user(1001, 1001, || {
        set_times(&file, now.0, now.1)?;
        refuses(libc::EPERM, "to a time", set_times(&file, (1, 2), (3, 4)))
    })
}

fn directory_times(dir: &Path) -> Result<()> {
    let at = |name: &str| dir.join(name);
    fs::create_dir(at("d"))?;
    fs::write(at("f"), "x")?;
    let check = |what: &str, work: &dyn Fn() -> std::io::Result<()>| {
        set_times(&at("d"), (1, 0), (1, 0))?;
        let before = fs::metadata(at("d"))?;
        work()?;
        let after = fs::metadata(at("d"))?;
        ensure!(after.mtime() > 1, "{what} leaves the mtime");
        ensure!(after.ctime() >= before.ctime(), "{what} leaves the ctime");
        Ok(())
    };
    check("create", &|| fs::write(at("d/f"), "x"))?;
    check("mkdir", &|| fs::create_dir(at("d/d")))?;
    check("symlink", &|| std::os::unix::fs::symlink("x", at("d/l")))?;
    check("link", &|| fs::hard_link(at("f"), at("d/h")))?;
    check("rename in", &|| fs::rename(at("f"), at("d/g")))?;
    check("rename", &|| fs::rename(at("d/g"), at("d/i")))?;
    check("rename out", &|| fs::rename(at("d/i"), at("f")))?;
    check("unlink", &|| fs::remove_file(at("d/f")))?;
    check("rmdir", &|| fs::remove_dir(at("d/d")))
}

fn get(path: &Path, name: &str) -> rustix::io::Result<Vec<u8>> {
    let mut value = vec![0; 65_536];
    let len = getxattr(path, name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}

fn names(path: &Path) -> rustix::io::Result<Vec<String>> {
    let mut list = vec![0; 65_536];
    let len = listxattr(path, &mut list[..])?;
    let names = list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut names: Vec<String> =
        names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    names.retain(|name| !name.starts_with("security."));
    names.sort();
    Ok(names)
}

fn xattrs(dir: &Path) -> Result<()> {
    let path = dir.join("f");
    fs::write(&path, "x")?;
    ensure!(names(&path)?.is_empty());
    refuses(libc::ENODATA, "get of none", get(&path, "user.a"))?;
    refuses(libc::ENODATA, "remove of none", removexattr(&path, "user.a"))?;
    refuses(libc::ENODATA, "replace", setxattr(&path, "user.a", b"1", XattrFlags::REPLACE))?;
    setxattr(&path, "user.a", b"1", XattrFlags::CREATE)?;
    refuses(libc::EEXIST, "create", setxattr(&path, "user.a", b"2", XattrFlags::CREATE))?;
    setxattr(&path, "user.a", b"three", XattrFlags::REPLACE)?;
    setxattr(&path, "user.empty", b"", XattrFlags::empty())?;
    let big = vec![7; 3000];
    setxattr(&path, "user.big", &big, XattrFlags::empty())?;
    ensure!(get(&path, "user.a")? == b"three" && get(&path, "user.empty")?.is_empty());
    ensure!(get(&path, "user.big")? == big);
    let mut little = [0; 2];
    refuses(libc::ERANGE, "too little room", getxattr(&path, "user.a", &mut little[..]))?;
    ensure!(names(&path)? == ["user.a", "user.big", "user.empty"], "{:?}", names(&path)?);
    refuses(libc::EOPNOTSUPP, "no namespace", setxattr(&path, "a", b"1", XattrFlags::empty()))?;
    let before = fs::metadata(&path)?;
    removexattr(&path, "user.big")?;
    ensure!(fs::metadata(&path)?.mtime_nsec() == before.mtime_nsec());
    // They stay with the file whatever its name is, and however often it is written.
    fs::rename(&path, dir.join("g"))?;
    fs::write(dir.join("g"), "other content")?;
    ensure!(get(&dir.join("g"), "user.a")? == b"three");
    fs::remove_file(dir.join("g"))?;
    fs::create_dir(dir.join("d"))?;
    setxattr(dir.join("d"), "user.of-a-directory", b"1", XattrFlags::empty())?;
    ensure!(get(&dir.join("d"), "user.of-a-directory")? == b"1");
    Ok(())
}

fn xattr_rights(dir: &Path) -> Result<()> {
    let path = dir.join("f");
    fs::write(&path, "x")?;
    setxattr(&path, "user.a", b"1", XattrFlags::empty())?;
    setxattr(&path, "trusted.a", b"1", XattrFlags::empty())?;
    let set = |name| setxattr(&path, name, b"2", XattrFlags::empty());
    chmod(&path, 0o644)?;
    as_user(1001, 1001, || {
        ensure!(get(&path, "user.a")? == b"1");
        refuses(libc::EACCES, "set", set("user.a"))?;
        refuses(libc::EACCES, "remove", removexattr(&path, "user.a"))
    })?;
    chmod(&path, 0o600)?;
    as_user(1001, 1001, || refuses(libc::EACCES, "get", get(&path, "user.a")))?;
    std::os::unix::fs::symlink("f", dir.join("l"))?;
    let on_link = rustix::fs::lsetxattr(dir.join("l"), "user.a", b"1", XattrFlags::empty());
    refuses(libc::EPERM, "on a symbolic link", on_link)
}

/// An access list in the kernel's layout: (tag, bits, id).
fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, bits, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&bits.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

const NOBODY: u32 = u32::MAX;
const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

fn access_lists(dir: &Path) -> Result<()> {
    let path = dir.join("f");
    fs::write(&path, "x")?;
    chmod(&path, 0o600)?;
    let with = |mask| {
        list(&[(1, 6, NOBODY), (2, 6, 1001), (4, 0, NOBODY), (16, mask, NOBODY), (32, 0, NOBODY)])
    };
    setxattr(&path, ACCESS, &with(6), XattrFlags::empty())?;
    ensure!(mode(&path)? == 0o660, "the mask shows as the group's bits: {:o}", mode(&path)?);
    ensure!(get(&path, ACCESS)? == with(6));
    as_user(1001, 1001, || fs::write(&path, "named"))?;
    as_user(1002, 1002, || fails(libc::EACCES, "others", fs::read(&path)))?;
    chmod(&path, 0o640)?;
    ensure!(get(&path, ACCESS)? == with(4), "chmod sets the mask");
    as_user(1001, 1001, || {
        fs::read(&path)?;
        fails(libc::EACCES, "write past the mask", File::options().append(true).open(&path))
    })?;
    as_user(1001, 1001, || {
        let outcome = setxattr(&path, ACCESS, &with(6), XattrFlags::empty());
        refuses(libc::EPERM, "setting another's list", outcome)
    })?;
    let half = list(&[(1, 6, NOBODY)]);
    refuses(libc::EINVAL, "half a list", setxattr(&path, ACCESS, &half, XattrFlags::empty()))?;
    let plain = list(&[(1, 6, NOBODY), (4, 4, NOBODY), (32, 0, NOBODY)]);
    setxattr(&path, ACCESS, &plain, XattrFlags::empty())?;
    ensure!(mode(&path)? == 0o640);
    refuses(libc::ENODATA, "a list that says nothing more", get(&path, ACCESS))?;
    removexattr(&path, ACCESS)?;
    as_user(1001, 1001, || fails(libc::EACCES, "no longer named", fs::read(&path)))
}

fn default_lists(dir: &Path) -> Result<()> {
    let top = dir.join("top");
    fs::create_dir(&top)?;
    chmod(&top, 0o777)?;
    let default =
        list(&[(1, 7, NOBODY), (2, 7, 1001), (4, 5, NOBODY), (16, 7, NOBODY), (32, 0, NOBODY)]);
    setxattr(&top, DEFAULT, &default, XattrFlags::empty())?;
    ensure!(mode(&top)? == 0o777, "a default list is not for the directory itself");
    File::options().write(true).create_new(true).mode(0o666).open(top.join("f"))?;
    ensure!(mode(&top.join("f"))? == 0o660, "not the mask: {:o}", mode(&top.join("f"))?);
    let own =
        list(&[(1, 6, NOBODY), (2, 7, 1001), (4, 5, NOBODY), (16, 6, NOBODY), (32, 0, NOBODY)]);
    ensure!(get(&top.join("f"), ACCESS)? == own);
    as_user(1001, 1001, || fs::write(top.join("f"), "named"))?;
    fs::create_dir(top.join("d"))?;
    ensure!(get(&top.join("d"), DEFAULT)? == default);
    ensure!(mode(&top.join("d"))? == 0o770, "{:o}", mode(&top.join("d"))?);
    std::os::unix::fs::symlink("f", top.join("l"))?;
    ensure!(mode(&top.join("l"))? == 0o777);
    let on_file = setxattr(top.join("f"), DEFAULT, &default, XattrFlags::empty());
    refuses(libc::EACCES, "on a file", on_file)?;
    removexattr(&top, DEFAULT)?;
    File::options().write(true).create_new(true).mode(0o600).open(top.join("g"))?;
    refuses(libc::ENODATA, "without a default", get(&top.join("g"), ACCESS))
}
