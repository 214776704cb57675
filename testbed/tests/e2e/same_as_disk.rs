//! The mount against a reference: random operations on a mount and on a plain directory have the
//! same outcome, errno for errno, and leave the same tree; also seen by another mount.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use atoll_testbed::{DevCluster, seed};
use rand::Rng as _;
use rand::rngs::StdRng;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags,
};

use super::word;

/// Operations of one run.
const STEPS: usize = 1500;
/// Compare everything after so many.
const COMPARE_EVERY: usize = 250;

/// What is done; paths are small numbers, so that operations meet.
#[derive(Debug, Clone)]
enum Step {
    Write {
        path: PathBuf,
        at: u64,
        len: usize,
        fill: u8,
    },
    Replace {
        path: PathBuf,
        len: usize,
        fill: u8,
    },
    Append {
        path: PathBuf,
        len: usize,
        fill: u8,
    },
    Truncate {
        path: PathBuf,
        len: u64,
    },
    Punch {
        path: PathBuf,
        at: u64,
        len: u64,
    },
    CreateNew {
        path: PathBuf,
    },
    Mkdir {
        path: PathBuf,
    },
    Fifo {
        path: PathBuf,
    },
    Symlink {
        path: PathBuf,
        target: PathBuf,
    },
    Link {
        from: PathBuf,
        to: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
        flags: RenameFlags,
    },
    Unlink {
        path: PathBuf,
    },
    Rmdir {
        path: PathBuf,
    },
    Chmod {
        path: PathBuf,
        mode: u32,
    },
    Chown {
        path: PathBuf,
        uid: u32,
        gid: u32,
    },
    Times {
        path: PathBuf,
        access: i64,
        modification: i64,
    },
    SetXattr {
        path: PathBuf,
        name: String,
        len: usize,
        flags: XattrFlags,
    },
    RemoveXattr {
        path: PathBuf,
        name: String,
    },
    Read {
        path: PathBuf,
    },
    /// Open, remove the name, and go on with what is open.
    Orphan {
        path: PathBuf,
        len: usize,
    },
}

fn any_path(random: &mut StdRng) -> PathBuf {
    let name = |random: &mut StdRng| ["a", "b", "c"][random.random_range(0..3)];
    let mut path = PathBuf::from(name(random));
    while random.random_range(0..5) < 2 {
        path.push(name(random));
    }
    path
}

fn step(random: &mut StdRng) -> Step {
    let path = any_path;
    let len = |random: &mut StdRng| {
        let most = [50, 5_000, 300_000][random.random_range(0..3)];
        random.random_range(0..most)
    };
    let offset = |random: &mut StdRng| {
        let most = [100, 2_000_000][random.random_range(0..2)];
        random.random_range(0..most)
    };
    let fill = random.random::<u8>();
    let xattr = |random: &mut StdRng| format!("user.{}", random.random_range(0..3));
    match random.random_range(0..29) {
        0..3 => Step::Write { path: path(random), at: offset(random), len: len(random), fill },
        3..5 => Step::Replace { path: path(random), len: len(random), fill },
        5 | 6 => Step::Append { path: path(random), len: len(random), fill },
        7 => Step::Truncate { path: path(random), len: offset(random) },
        8 => Step::Punch { path: path(random), at: offset(random), len: 1 + len(random) as u64 },
        9 => Step::CreateNew { path: path(random) },
        10..13 => Step::Mkdir { path: path(random) },
        13 => Step::Fifo { path: path(random) },
        14 => Step::Symlink { path: path(random), target: path(random) },
        15 | 16 => Step::Link { from: path(random), to: path(random) },
        17..20 => {
            let flags = [RenameFlags::empty(), RenameFlags::NOREPLACE, RenameFlags::EXCHANGE];
            let flags = flags[[0, 0, 1, 2][random.random_range(0..4)]];
            Step::Rename { from: path(random), to: path(random), flags }
        }
        20 => Step::Unlink { path: path(random) },
        21 => Step::Rmdir { path: path(random) },
        22 => Step::Chmod { path: path(random), mode: random.random_range(0..0o10000) },
        23 => {
            let (uid, gid) = (random.random_range(0..3), random.random_range(0..3));
            Step::Chown { path: path(random), uid, gid }
        }
        24 => {
            let (access, modification) = (i64::from(random.random::<i32>()), i64::from(fill));
            Step::Times { path: path(random), access, modification }
        }
        25 => {
            let flags = [XattrFlags::empty(), XattrFlags::CREATE, XattrFlags::REPLACE];
            let flags = flags[random.random_range(0..3)];
            Step::SetXattr {
                path: path(random),
                name: xattr(random),
                len: len(random) % 2000,
                flags,
            }
        }
        26 => Step::RemoveXattr { path: path(random), name: xattr(random) },
        27 => Step::Read { path: path(random) },
        _ => Step::Orphan { path: path(random), len: len(random) },
    }
}

/// What a step gives: text to compare.
type Outcome = std::io::Result<String>;

/// Opens what is no pipe: an open would wait for the other end.
fn open(options: &fs::OpenOptions, path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    options.clone().custom_flags(libc::O_NONBLOCK).open(path)
}

impl Step {
    fn run(&self, root: &Path) -> Outcome {
        let none = |outcome: std::io::Result<()>| outcome.map(|()| String::new());
        let at = |path: &Path| root.join(path);
        match self {
            Self::Write { path, at: offset, len, fill } => {
                let file = open(File::options().write(true), &at(path))?;
                none(file.write_all_at(&vec![*fill; *len], *offset))
            }
            Self::Replace { path, len, fill } => {
                let file =
                    open(File::options().write(true).create(true).truncate(true), &at(path))?;
                none(file.write_all_at(&vec![*fill; *len], 0))
            }
            Self::Append { path, len, fill } => {
                let mut file = open(File::options().append(true).create(true), &at(path))?;
                none(std::io::Write::write_all(&mut file, &vec![*fill; *len]))
            }
            Self::Truncate { path, len } => {
                none(open(File::options().write(true), &at(path))?.set_len(*len))
            }
            Self::Punch { path, at: offset, len } => {
                let file = open(File::options().write(true), &at(path))?;
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                none(rustix::fs::fallocate(file, flags, *offset, *len).map_err(Into::into))
            }
            Self::CreateNew { path } => none(File::create_new(at(path)).map(drop)),
            Self::Mkdir { path } => none(fs::create_dir(at(path))),
            Self::Fifo { path } => {
                let mode = Mode::from_raw_mode(0o644);
                none(
                    rustix::fs::mknodat(CWD, at(path), FileType::Fifo, mode, 0).map_err(Into::into),
                )
            }
            Self::Symlink { path, target } => none(symlink(target, at(path))),
            Self::Link { from, to } => none(fs::hard_link(at(from), at(to))),
            Self::Rename { from, to, flags } => {
                let outcome = rustix::fs::renameat_with(CWD, at(from), CWD, at(to), *flags);
                none(outcome.map_err(Into::into))
            }
            Self::Unlink { path } => none(fs::remove_file(at(path))),
            Self::Rmdir { path } => none(fs::remove_dir(at(path))),
            Self::Chmod { path, mode } => {
                none(fs::set_permissions(at(path), Permissions::from_mode(*mode)))
            }
            Self::Chown { path, uid, gid } => none(chown(at(path), Some(*uid), Some(*gid))),
            Self::Times { path, access, modification } => {
                let spec = |tv_sec| Timespec { tv_sec, tv_nsec: 123_456_789 };
                let times = Timestamps {
                    last_access: spec(*access),
                    last_modification: spec(*modification),
                };
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                none(rustix::fs::utimensat(CWD, at(path), &times, flags).map_err(Into::into))
            }
            Self::SetXattr { path, name, len, flags } => {
                let outcome = rustix::fs::setxattr(at(path), name, &vec![b'v'; *len], *flags);
                none(outcome.map_err(Into::into))
            }
            Self::RemoveXattr { path, name } => {
                none(rustix::fs::removexattr(at(path), name).map_err(Into::into))
            }
            Self::Read { path } => {
                let file = open(File::options().read(true), &at(path))?;
                if !file.metadata()?.is_file() {
                    return Ok("no file".to_owned());
                }
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(&mut &file, &mut bytes)?;
                Ok(blake3::hash(&bytes).to_string())
            }
            Self::Orphan { path, len } => {
                let file = open(File::options().read(true).write(true), &at(path))?;
                if !file.metadata()?.is_file() {
                    return Ok("no file".to_owned());
                }
                fs::remove_file(at(path))?;
                let size = file.metadata()?.len();
                file.write_all_at(&vec![9; *len], size)?;
                let mut bytes = vec![0; size as usize + len];
                file.read_exact_at(&mut bytes, 0)?;
                Ok(format!("{} {}", file.metadata()?.nlink(), blake3::hash(&bytes)))
            }
        }
    }
}

/// An entry as everybody must see it.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    names: u64,
    size: u64,
    set_times: Option<(i64, i64)>,
    content: String,
    xattrs: Vec<(String, usize)>,
}

fn look(root: &Path, path: &Path, all: &mut BTreeMap<PathBuf, Seen>) -> Result<()> {
    for entry in fs::read_dir(root.join(path))? {
        let below = path.join(entry?.file_name());
        let at = root.join(&below);
        let meta = fs::symlink_metadata(&at)?;
        let is = meta.file_type();
        let content = if is.is_file() {
            blake3::hash(&fs::read(&at)?).to_string()
        } else if is.is_symlink() {
            fs::read_link(&at)?.display().to_string()
        } else {
            String::new()
        };
        let seen = Seen {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            names: meta.nlink(),
            // Of directories file systems have sizes of their own.
            size: if is.is_dir() { 0 } else { meta.size() },
            // Times nobody set are those of the two clocks.
            set_times: (meta.mtime_nsec() == 123_456_789)
                .then(|| (meta.mtime(), meta.mtime_nsec())),
            content,
            xattrs: xattrs(&at)?,
        };
        all.insert(below.clone(), seen);
        if is.is_dir() {
            look(root, &below, all)?;
        }
    }
    Ok(())
}

fn xattrs(path: &Path) -> Result<Vec<(String, usize)>> {
    let mut list = vec![0; 65_536];
    let len = rustix::fs::llistxattr(path, &mut list[..])?;
    let mut found = Vec::new();
    for name in list[..len].split(|byte| *byte == 0).filter(|name| name.starts_with(b"user.")) {
        let len = rustix::fs::lgetxattr(path, name, &mut vec![0; 65_536][..])?;
        found.push((std::ffi::OsStr::from_bytes(name).display().to_string(), len));
    }
    found.sort();
    Ok(found)
}

fn compare(expected: &Path, found: &Path, what: &str) -> Result<()> {
    let (mut left, mut right) = (BTreeMap::new(), BTreeMap::new());
    look(expected, Path::new(""), &mut left).context("on disk")?;
    look(found, Path::new(""), &mut right).with_context(|| what.to_owned())?;
    for (path, seen) in &left {
        let other = right.get(path);
        ensure!(other == Some(seen), "{what}: {}: {seen:?} on disk, {other:?}", path.display());
    }
    for path in right.keys() {
        ensure!(left.contains_key(path), "{what}: {} is not on disk", path.display());
    }
    Ok(())
}

#[test]
fn random_operations_do_what_they_do_on_a_disk() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "this test sets owners: run it as root");
    let seed = seed::or(31);
    let cluster = DevCluster::builder().seed(seed).start()?;
    let roots = ["disk", "mount", "other"].map(|name| cluster.work().join(name));
    for root in &roots {
        fs::create_dir(root)?;
    }
    let [disk, mount, other] = &roots;
    cluster.atoll(&["mount", word(mount)])?.ok()?;
    cluster.atoll(&["mount", word(other)])?.ok()?;
    let mut random = seed::rng(seed);
    let mut done = Vec::new();
    for number in 0..STEPS {
        let step = step(&mut random);
        let show = |outcome: &Outcome| match outcome {
            Ok(text) => format!("Ok({text})"),
            Err(error) => format!("errno {:?}", error.raw_os_error()),
        };
        let (expected, found) = (show(&step.run(disk)), show(&step.run(mount)));
        done.push(format!("{number}: {step:?}: {expected}"));
        let history = || done[done.len().saturating_sub(40)..].join("\n");
        ensure!(expected == found, "{found} instead of {expected} after\n{}", history());
        if (number + 1) % COMPARE_EVERY == 0 {
            compare(disk, mount, "the mount").with_context(history)?;
        }
    }
    // What another mount has cached is a second old at most; these it has never seen.
    compare(disk, other, "another mount").with_context(|| done.join("\n"))?;
    for root in [mount, other] {
        cluster.atoll(&["umount", word(root)])?.ok()?;
    }
    cluster.finish()
}
