//! The requests of the kernel, one method each.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

use atoll_proto::namespace::{FileKind, NewNode, RenameMode, XattrMode};
use bytes::Bytes;
use fuser::{
    CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::convert::{
    caller, dots, file_type, is_outsider, name, nanos_or_now, new_node, open_flags, open_how,
};
use super::reply::{answer, sized};
use super::{Adapter, BACKGROUND_MAX, REQUEST_BYTES, STATFS_BYTES, drop_attr};
use crate::fs::{FsError, NewMode, SetAttrs, Store, TTL, WriteHow};

impl<S: Store> Filesystem for Adapter<S> {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for flag in [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // Access control lists, which need the mask to be applied here.
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_DONT_MASK,
            // Without this every write asks for the capabilities of the file first.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ] {
            // Most save round trips; a kernel without one works all the same.
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "the kernel lacks a FUSE feature");
            }
        }
        let set = [
            config.set_max_write(REQUEST_BYTES).is_ok(),
            config.set_max_background(BACKGROUND_MAX).is_ok(),
        ];
        if set.contains(&false) {
            tracing::debug!("the kernel refuses a FUSE setting");
        }
        Ok(())
    }

    fn destroy(&mut self) {
        self.dropper = None;
        if let Some(over) = self.over.take() {
            // Nobody listens when the mount has given up waiting.
            over.send(()).unwrap_or_default();
        }
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, entry: &OsStr, reply: ReplyEntry) {
        let (fs, parent, entry) = (self.fs.clone(), self.inode(parent), name(entry));
        self.reply_entry("lookup", reply, async move { fs.lookup(parent, entry).await });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.fs.forget(self.inode(ino), nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let (fs, inode, numbers) = (self.fs.clone(), self.inode(ino), self.numbers());
        self.run(async move {
            let outcome = fs.getattr(inode).await;
            answer("getattr", reply, outcome, |reply, attr| {
                reply.attr(&TTL, &numbers.attr(&attr));
            });
        });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttrs {
            mode,
            uid,
            gid,
            size,
            atime_ns: atime.map(nanos_or_now),
            mtime_ns: mtime.map(nanos_or_now),
            // What the kernel asks for in a flag that the library does not pass on. A request that
            // sets nothing is a chown that changes no owner.
            drop_privileges: uid.is_some()
                || gid.is_some()
                || (mode.is_none() && size.is_none() && atime.is_none() && mtime.is_none()),
            outsider: is_outsider(req),
        };
        let (fs, inode, numbers) = (self.fs.clone(), self.inode(ino), self.numbers());
        self.run(async move {
            let outcome = fs.setattr(inode, fh.map(|fh| fh.0), set).await;
            answer("setattr", reply, outcome, |reply, attr| {
                reply.attr(&TTL, &numbers.attr(&attr));
            });
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let (fs, inode) = (self.fs.clone(), self.inode(ino));
        self.run(async move {
            let outcome = fs.readlink(inode).await;
            answer("readlink", reply, outcome, |reply, target| reply.data(&target));
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        entry: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        match new_node(mode, rdev) {
            Some(node) => self.make(req, parent, entry, node, (mode, umask), ("mknod", reply)),
            None => {
                let error = FsError::Invalid("unknown kind of file");
                answer("mknod", reply, Err::<(), _>(error), |_, ()| {});
            }
        }
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        entry: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        self.make(req, parent, entry, NewNode::Directory, (mode, umask), ("mkdir", reply));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, entry: &OsStr, reply: ReplyEmpty) {
        let (fs, parent, entry) = (self.fs.clone(), self.inode(parent), name(entry));
        self.reply_empty("unlink", reply, async move { fs.unlink(parent, entry).await });
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, entry: &OsStr, reply: ReplyEmpty) {
        let (fs, parent, entry) = (self.fs.clone(), self.inode(parent), name(entry));
        self.reply_empty("rmdir", reply, async move { fs.rmdir(parent, entry).await });
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let node = NewNode::Symlink(name(target.as_os_str()));
        self.make(req, parent, link_name, node, (0o777, 0), ("symlink", reply));
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        entry: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = match flags.bits() {
            0 => RenameMode::Replace,
            libc::RENAME_NOREPLACE => RenameMode::NoReplace,
            libc::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => {
                let error = FsError::Invalid("unknown flags of a rename");
                return answer("rename", reply, Err::<(), _>(error), |_, ()| {});
            }
        };
        let (fs, from, to) = (self.fs.clone(), self.inode(parent), self.inode(newparent));
        let (old, new) = (name(entry), name(newname));
        let request = async move { fs.rename(from, old, to, new, mode).await };
        self.reply_empty("rename", reply, request);
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let (fs, inode) = (self.fs.clone(), self.inode(ino));
        let (parent, entry) = (self.inode(newparent), name(newname));
        self.reply_entry("link", reply, async move { fs.link(inode, parent, entry).await });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (fs, inode, notifier) = (self.fs.clone(), self.inode(ino), self.notifier.clone());
        let how = open_how(flags.0, req);
        self.run(async move {
            let outcome = fs.open(inode, how).await;
            answer("open", reply, outcome, |reply, opened| {
                if opened.attr_changed {
                    drop_attr(&notifier, ino);
                }
                reply.opened(FileHandle(opened.handle), open_flags(opened));
            });
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        entry: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (fs, parent, entry, caller) =
            (self.fs.clone(), self.inode(parent), name(entry), caller(req));
        let (numbers, how) = (self.numbers(), open_how(flags, req));
        self.run(async move {
            let exclusive = flags & libc::O_EXCL != 0;
            let mode = NewMode { bits: mode, umask };
            let outcome = fs.create(parent, entry, mode, caller, exclusive, how).await;
            answer("create", reply, outcome, |reply, (attr, opened)| {
                let (attr, flags) = (numbers.attr(&attr), open_flags(opened));
                reply.created(&TTL, &attr, Generation(0), FileHandle(opened.handle), flags);
            });
        });
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let fs = self.fs.clone();
        self.run(async move {
            let outcome = fs.read(fh.0, offset, size).await;
            answer("read", reply, outcome, |reply, bytes| reply.data(&bytes));
        });
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // Pages written back have their place; only a write(2) appends.
        let cached = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let append = flags.0 & libc::O_APPEND != 0 && !cached;
        let outsider = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        // The kernel would show them until it asks again.
        let drops = outsider && self.fs.has_privileges(fh.0);
        // At most REQUEST_BYTES.
        let size = data.len() as u32;
        let mut done = 0;
        if !append {
            let _runtime = self.runtime.enter();
            match self.fs.write_now(fh.0, offset, data, outsider) {
                Ok(count) if count == data.len() => {
                    if drops {
                        drop_attr(&self.notifier, ino);
                    }
                    return reply.written(size);
                }
                Ok(count) => done = count,
                Err(error) => return answer("write", reply, Err::<(), _>(error), |_, ()| {}),
            }
        }
        let (fs, rest) = (self.fs.clone(), data[done..].to_vec());
        let notifier = self.notifier.clone();
        let how = WriteHow { append, outsider };
        self.run(async move {
            let outcome = fs.write(fh.0, offset + done as u64, &rest, how).await;
            if drops {
                drop_attr(&notifier, ino);
            }
            answer("write", reply, outcome, |reply, ()| reply.written(size));
        });
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let fs = self.fs.clone();
        self.reply_empty("flush", reply, async move { fs.flush(fh.0).await });
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _runtime = self.runtime.enter();
        self.fs.release(fh.0);
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let fs = self.fs.clone();
        self.reply_empty("fsync", reply, async move { fs.flush(fh.0).await });
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let handle = self.fs.opendir(self.inode(ino));
        reply.opened(FileHandle(handle), FopenFlags::empty());
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let (fs, numbers) = (self.fs.clone(), self.numbers());
        self.run(async move {
            let outcome = fs.readdir(fh.0, offset).await;
            answer("readdir", reply, outcome, |mut reply, items| {
                for item in items {
                    let kind = item.attr.as_ref().map_or(FileKind::Directory, |attr| attr.kind);
                    let name = OsStr::from_bytes(item.name.as_bytes());
                    if reply.add(numbers.ino(item.inode), item.next, file_type(kind), name) {
                        break;
                    }
                }
                reply.ok();
            });
        });
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let (fs, numbers, dir) = (self.fs.clone(), self.numbers(), self.inode(ino));
        self.run(async move {
            let outcome = fs.readdir(fh.0, offset).await;
            answer("readdirplus", reply, outcome, |mut reply, items| {
                for item in items {
                    let attr = numbers.attr(item.attr.as_ref().unwrap_or(&dots(item.inode)));
                    let name = OsStr::from_bytes(item.name.as_bytes());
                    let ino = numbers.ino(item.inode);
                    if reply.add(ino, item.next, name, &TTL, &attr, Generation(0)) {
                        break;
                    }
                    fs.give_item(dir, &item);
                }
                reply.ok();
            });
        });
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let _runtime = self.runtime.enter();
        self.fs.release(fh.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        // Every change of a name is durable when it is answered.
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let fs = self.fs.clone();
        self.run(async move {
            answer("statfs", reply, fs.statfs().await, |reply, space| {
                let unit = u64::from(STATFS_BYTES);
                let (total, free) = (space.total_bytes / unit, space.free_bytes / unit);
                // Inodes are as many as there is room for.
                let files = space.inodes.saturating_add(free);
                reply.statfs(total, free, free, files, free, STATFS_BYTES, 255, STATFS_BYTES);
            });
        });
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        entry: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            0 => XattrMode::Set,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => {
                let error = FsError::Invalid("create and replace exclude each other");
                return answer("setxattr", reply, Err::<(), _>(error), |_, ()| {});
            }
        };
        let (fs, inode, caller) = (self.fs.clone(), self.inode(ino), caller(req));
        let (entry, value) = (name(entry), Bytes::copy_from_slice(value));
        let request = async move { fs.setxattr(inode, entry, value, mode, caller).await };
        self.reply_empty("setxattr", reply, request);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, entry: &OsStr, size: u32, reply: ReplyXattr) {
        let (fs, inode, entry) = (self.fs.clone(), self.inode(ino), name(entry));
        self.run(async move {
            let outcome = fs.getxattr(inode, entry).await;
            // Asked about every file, and hardly any has one: not worth counting.
            if let Err(FsError::NoAttribute) = outcome {
                return reply.error(Errno::ENODATA);
            }
            answer("getxattr", reply, outcome, |reply, value| sized(reply, size, &value));
        });
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let (fs, inode, caller) = (self.fs.clone(), self.inode(ino), caller(req));
        self.run(async move {
            let outcome = fs.listxattr(inode, caller).await;
            answer("listxattr", reply, outcome, |reply, names| sized(reply, size, &names));
        });
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, entry: &OsStr, reply: ReplyEmpty) {
        let (fs, inode, entry) = (self.fs.clone(), self.inode(ino), name(entry));
        let request = async move { fs.removexattr(inode, entry).await };
        self.reply_empty("removexattr", reply, request);
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel copies through the page cache then.
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let (fs, outsider) = (self.fs.clone(), is_outsider(req));
        let request = async move { fs.fallocate(fh.0, offset, length, mode, outsider).await };
        self.reply_empty("fallocate", reply, request);
    }

    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let found = match (u64::try_from(offset), whence) {
            (Ok(offset), libc::SEEK_DATA) => self.fs.seek(fh.0, offset, false),
            (Ok(offset), libc::SEEK_HOLE) => self.fs.seek(fh.0, offset, true),
            (Err(_), _) => Err(FsError::NoData),
            _ => Err(FsError::Invalid("unknown kind of seek")),
        };
        answer("lseek", reply, found, |reply, offset| {
            reply.offset(i64::try_from(offset).unwrap_or(i64::MAX));
        });
    }
}
