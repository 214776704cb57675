//! Between the kernel's words and ours: times, kinds, flags, numbers of inodes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use atoll_proto::namespace::{Attr, Caller, FileKind, NewNode, Special};
use atoll_proto::{ByteName, InodeId};
use fuser::{FileAttr, FileType, FopenFlags, INodeNo, OpenAccMode, OpenFlags, Request, TimeOrNow};

use crate::fs::{OpenHow, OpenedFile};

/// Block size reported to applications, which many use as the size of their buffers.
pub(super) const BLOCK_BYTES: u32 = 128 << 10;

pub(super) fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid() }
}

pub(super) fn name(name: &OsStr) -> ByteName {
    ByteName::from(name.as_bytes())
}

pub(super) fn time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    let moment =
        if ns >= 0 { UNIX_EPOCH.checked_add(distance) } else { UNIX_EPOCH.checked_sub(distance) };
    moment.unwrap_or(UNIX_EPOCH)
}

/// A time that a request sets. The library gives the fraction of times before the epoch the wrong
/// sign: five seconds before and seven nanoseconds after that come as both before.
pub(super) fn nanos(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => {
            let before = before.duration();
            let seconds = i64::try_from(before.as_secs()).ok();
            let whole = seconds.and_then(|seconds| seconds.checked_mul(-1_000_000_000));
            whole.map_or(i64::MIN, |whole| whole.saturating_add(i64::from(before.subsec_nanos())))
        }
    }
}

pub(super) fn nanos_or_now(time: TimeOrNow) -> i64 {
    match time {
        TimeOrNow::SpecificTime(time) => nanos(time),
        TimeOrNow::Now => nanos(SystemTime::now()),
    }
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Special(Special::Fifo) => FileType::NamedPipe,
        FileKind::Special(Special::Socket) => FileType::Socket,
        FileKind::Special(Special::CharDevice(_)) => FileType::CharDevice,
        FileKind::Special(Special::BlockDevice(_)) => FileType::BlockDevice,
    }
}

/// What mknod(2) is asked to make; `None` for what it cannot.
pub(super) fn new_node(mode: u32, device: u32) -> Option<NewNode> {
    Some(match mode & libc::S_IFMT {
        0 | libc::S_IFREG => NewNode::File,
        libc::S_IFIFO => NewNode::Special(Special::Fifo),
        libc::S_IFSOCK => NewNode::Special(Special::Socket),
        libc::S_IFCHR => NewNode::Special(Special::CharDevice(device)),
        libc::S_IFBLK => NewNode::Special(Special::BlockDevice(device)),
        _ => return None,
    })
}

fn device(kind: FileKind) -> u32 {
    match kind {
        FileKind::Special(Special::CharDevice(device) | Special::BlockDevice(device)) => device,
        _ => 0,
    }
}

/// Whether a request comes from somebody who may not keep a file's privileges while changing it.
/// The kernel knows by CAP_FSETID, which nearly always is root's and only root's.
pub(super) fn is_outsider(request: &Request) -> bool {
    request.uid() != 0
}

pub(super) fn open_how(flags: i32, request: &Request) -> OpenHow {
    OpenHow {
        outsider: is_outsider(request),
        write: OpenFlags(flags).acc_mode() != OpenAccMode::O_RDONLY,
        truncate: flags & libc::O_TRUNC != 0,
    }
}

pub(super) fn open_flags(opened: OpenedFile) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
    flags.set(FopenFlags::FOPEN_DIRECT_IO, opened.direct);
    flags
}

/// Numbers on the kernel's side: the root directory is 1 there, whichever directory it is.
#[derive(Clone, Copy)]
pub(super) struct Numbers {
    pub(super) root: InodeId,
}

impl Numbers {
    pub(super) fn inode(self, ino: INodeNo) -> InodeId {
        if ino == INodeNo::ROOT { self.root } else { InodeId(ino.0) }
    }

    pub(super) fn ino(self, inode: InodeId) -> INodeNo {
        if inode == self.root { INodeNo::ROOT } else { INodeNo(inode.0) }
    }

    pub(super) fn attr(self, attr: &Attr) -> FileAttr {
        FileAttr {
            ino: self.ino(attr.inode),
            size: attr.size,
            blocks: attr.size.div_ceil(512),
            atime: time(attr.atime_ns),
            mtime: time(attr.mtime_ns),
            ctime: time(attr.ctime_ns),
            crtime: UNIX_EPOCH,
            kind: file_type(attr.kind),
            // Twelve bits.
            perm: attr.permissions() as u16,
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            rdev: device(attr.kind),
            blksize: BLOCK_BYTES,
            flags: 0,
        }
    }
}

/// Attributes of `.` and `..`, which the kernel does not look at.
pub(super) fn dots(inode: InodeId) -> Attr {
    Attr {
        inode,
        kind: FileKind::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        nlink: 2,
        size: 0,
        atime_ns: 0,
        mtime_ns: 0,
        ctime_ns: 0,
        version: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_kept_to_the_nanosecond_also_before_the_epoch() {
        for ns in [0, 1, 1_500_000_000_123_456_789, -1_000_000_000] {
            assert_eq!(nanos(time(ns)), ns);
        }
        // As the library hands on -5 s and 7 ns.
        let asked = UNIX_EPOCH - Duration::new(5, 7);
        assert_eq!(nanos(asked), -4_999_999_993);
        assert_eq!(time(-4_999_999_993), UNIX_EPOCH - Duration::from_nanos(4_999_999_993));
    }

    #[test]
    fn the_root_is_one_for_the_kernel() {
        let numbers = Numbers { root: InodeId(77) };
        assert_eq!(numbers.inode(INodeNo::ROOT), InodeId(77));
        assert_eq!(numbers.ino(InodeId(77)), INodeNo::ROOT);
        assert_eq!(numbers.inode(INodeNo(5)), InodeId(5));
    }
}
