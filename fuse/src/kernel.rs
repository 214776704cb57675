//! The kernel's side: the only file that knows the FUSE protocol's library.
//!
//! Each request becomes one call of the file system. It is polled once on the thread that read
//! it from the kernel, which is all it takes when nothing has to be waited for, and goes on as a
//! task otherwise; so a slow read never blocks others. The reply is sent from wherever the
//! request ends. How many requests wait at a time is bounded.

use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Waker};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use atoll_net::task;
use atoll_proto::namespace::{Attr, Caller, FileKind, RenameMode};
use atoll_proto::{ByteName, InodeId};
use fuser::{
    BackgroundSession, Config, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType,
    Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption,
    Notifier, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};

use crate::errno;
use crate::fs::{FileSystem, FsError, OpenHow, OpenedFile, SetAttrs, Store, TTL};

/// Largest write (and read) in one request.
const REQUEST_BYTES: u32 = 1 << 20;
/// Requests that wait for something, at a time.
const WAITING_MAX: usize = 512;
/// Background requests (readahead, writeback) the kernel may have open.
const BACKGROUND_MAX: u16 = 64;
/// Threads that read requests from the kernel.
const THREADS: usize = 4;
/// Block size reported to applications, which many use as the size of their buffers.
const BLOCK_BYTES: u32 = 128 << 10;
/// Unit of the numbers of statfs.
const STATFS_BYTES: u32 = 4096;

/// How the kernel is to mount.
#[derive(Debug, Clone)]
pub(crate) struct KernelOptions {
    pub(crate) read_only: bool,
    pub(crate) allow_other: bool,
}

/// A mount the kernel knows.
pub(crate) struct Mounted {
    /// Never dropped, because dropping it unmounts whatever is mounted at the path by then: if
    /// somebody has unmounted us, that may be another file system.
    _session: std::mem::ManuallyDrop<BackgroundSession>,
    ended: oneshot::Receiver<()>,
}

impl Mounted {
    /// Resolves when the kernel has ended the session: after unmounting.
    pub(crate) async fn ended(&mut self) {
        // An error means that the adapter is gone, which is an end as well.
        if (&mut self.ended).await.is_err() {
            tracing::debug!("the session ended without a word");
        }
    }
}

/// Mounts a file system; returns when the kernel has accepted it. Blocks.
///
/// # Errors
/// When the directory cannot be mounted on, or there is no FUSE here.
pub(crate) fn mount<S: Store>(
    fs: Arc<FileSystem<S>>,
    dir: &Path,
    options: &KernelOptions,
    runtime: Handle,
) -> std::io::Result<Mounted> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("atoll".to_owned()),
        // As a plain option the kernel takes it too, not only fusermount3.
        MountOption::CUSTOM("subtype=atoll".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoAtime,
        if options.read_only { MountOption::RO } else { MountOption::RW },
    ];
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    let (over, ended) = oneshot::channel();
    let notifier = Arc::new(OnceLock::new());
    let adapter = Adapter {
        fs,
        runtime,
        gate: Arc::new(Semaphore::new(WAITING_MAX)),
        notifier: notifier.clone(),
        over: Some(over),
    };
    let session = Session::new(adapter, dir, &config)?;
    drop(notifier.set(session.notifier()));
    let session = session.spawn()?;
    Ok(Mounted { _session: std::mem::ManuallyDrop::new(session), ended })
}

struct Adapter<S> {
    fs: Arc<FileSystem<S>>,
    runtime: Handle,
    gate: Arc<Semaphore>,
    notifier: Arc<OnceLock<Notifier>>,
    over: Option<oneshot::Sender<()>>,
}

/// A reply that can tell of a failure.
trait Fail {
    fn fail(self, errno: Errno);
}

macro_rules! fail {
    ($($reply:ty),*) => {
        $(impl Fail for $reply {
            fn fail(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}

fail!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite
);

/// Sends a reply or the errno of a failure, which is logged when it is not an everyday one.
fn answer<R: Fail, T>(what: &str, reply: R, outcome: Result<T, FsError>, ok: impl FnOnce(R, T)) {
    match outcome {
        Ok(value) => ok(reply, value),
        Err(error) => {
            let errno = errno::of(&error);
            if errno == libc::EIO || errno == libc::ESTALE {
                tracing::warn!(%error, what, "a request failed");
            }
            metrics::counter!("atoll_fuse_errors_total", "op" => what.to_owned()).increment(1);
            reply.fail(Errno::from_i32(errno));
        }
    }
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid() }
}

fn name(name: &OsStr) -> ByteName {
    ByteName::from(name.as_bytes())
}

fn time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    let moment =
        if ns >= 0 { UNIX_EPOCH.checked_add(distance) } else { UNIX_EPOCH.checked_sub(distance) };
    moment.unwrap_or(UNIX_EPOCH)
}

fn nanos(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => {
            i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, std::ops::Neg::neg)
        }
    }
}

fn nanos_or_now(time: TimeOrNow) -> i64 {
    match time {
        TimeOrNow::SpecificTime(time) => nanos(time),
        TimeOrNow::Now => nanos(SystemTime::now()),
    }
}

fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
    }
}

fn open_how(flags: i32) -> OpenHow {
    OpenHow {
        write: OpenFlags(flags).acc_mode() != OpenAccMode::O_RDONLY,
        truncate: flags & libc::O_TRUNC != 0,
    }
}

fn open_flags(opened: OpenedFile) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
    flags.set(FopenFlags::FOPEN_DIRECT_IO, opened.direct);
    flags
}

/// Numbers on the kernel's side: the root directory is 1 there, whichever directory it is.
#[derive(Clone, Copy)]
struct Numbers {
    root: InodeId,
}

impl Numbers {
    fn inode(self, ino: INodeNo) -> InodeId {
        if ino == INodeNo::ROOT { self.root } else { InodeId(ino.0) }
    }

    fn ino(self, inode: InodeId) -> INodeNo {
        if inode == self.root { INodeNo::ROOT } else { INodeNo(inode.0) }
    }

    fn attr(self, attr: &Attr) -> FileAttr {
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
            perm: (attr.mode & 0o7777) as u16,
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        }
    }
}

impl<S: Store> Adapter<S> {
    fn numbers(&self) -> Numbers {
        Numbers { root: self.fs.root() }
    }

    fn inode(&self, ino: INodeNo) -> InodeId {
        self.numbers().inode(ino)
    }

    /// Runs a request: at once as far as possible, then as a task.
    fn run(&self, request: impl Future<Output = ()> + Send + 'static) {
        let _runtime = self.runtime.enter();
        let mut request = Box::pin(request);
        let mut context = Context::from_waker(Waker::noop());
        match catch_unwind(AssertUnwindSafe(|| request.as_mut().poll(&mut context))) {
            Ok(std::task::Poll::Ready(())) => return,
            Ok(std::task::Poll::Pending) => {}
            Err(_) => {
                // Its reply was dropped, which answers EIO.
                tracing::error!("a request panicked");
                return;
            }
        }
        let gate = self.gate.clone();
        let permit = match gate.clone().try_acquire_owned() {
            Ok(permit) => Some(permit),
            // This thread takes no more requests until another one ends.
            Err(_) => self.runtime.block_on(gate.acquire_owned()).ok(),
        };
        task::spawn("fuse_request", async move {
            request.await;
            drop(permit);
        });
    }

    fn reply_entry(
        &self,
        what: &'static str,
        reply: ReplyEntry,
        request: impl Future<Output = Result<Attr, FsError>> + Send + 'static,
    ) {
        let numbers = self.numbers();
        self.run(async move {
            answer(what, reply, request.await, |reply, attr| {
                reply.entry(&TTL, &numbers.attr(&attr), Generation(0));
            });
        });
    }

    fn reply_empty(
        &self,
        what: &'static str,
        reply: ReplyEmpty,
        request: impl Future<Output = Result<(), FsError>> + Send + 'static,
    ) {
        self.run(async move { answer(what, reply, request.await, |reply, ()| reply.ok()) });
    }
}

/// Makes the kernel ask for attributes again. With a negative offset it leaves the pages alone
/// and so takes no page lock: this cannot wait for a read that waits for us.
fn drop_attr(notifier: &OnceLock<Notifier>, ino: INodeNo) {
    if let Some(notifier) = notifier.get()
        && let Err(error) = notifier.inval_inode(ino, -1, 0)
    {
        tracing::debug!(%error, %ino, "could not invalidate attributes");
    }
}

impl<S: Store> Filesystem for Adapter<S> {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for flag in [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
        ] {
            // Each saves round trips; a kernel without one works all the same.
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
        _req: &Request,
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
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        // Devices, pipes and sockets have no place in a shared namespace.
        if mode & libc::S_IFMT != libc::S_IFREG {
            return answer("mknod", reply, Err::<(), _>(FsError::NotPermitted), |_, ()| {});
        }
        let (fs, parent, entry, caller) =
            (self.fs.clone(), self.inode(parent), name(entry), caller(req));
        let request = async move { fs.mknod(parent, entry, mode, caller).await };
        self.reply_entry("mknod", reply, request);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        entry: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let (fs, parent, entry, caller) =
            (self.fs.clone(), self.inode(parent), name(entry), caller(req));
        let request = async move { fs.mkdir(parent, entry, mode, caller).await };
        self.reply_entry("mkdir", reply, request);
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
        let (fs, parent, entry, caller) =
            (self.fs.clone(), self.inode(parent), name(link_name), caller(req));
        let target = name(target.as_os_str());
        let request = async move { fs.symlink(parent, entry, target, caller).await };
        self.reply_entry("symlink", reply, request);
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

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (fs, inode, notifier) = (self.fs.clone(), self.inode(ino), self.notifier.clone());
        let how = open_how(flags.0);
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
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (fs, parent, entry, caller) =
            (self.fs.clone(), self.inode(parent), name(entry), caller(req));
        let numbers = self.numbers();
        self.run(async move {
            let exclusive = flags & libc::O_EXCL != 0;
            let how = open_how(flags);
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
        _ino: INodeNo,
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
        // At most REQUEST_BYTES.
        let size = data.len() as u32;
        let mut done = 0;
        if !append {
            let _runtime = self.runtime.enter();
            match self.fs.write_now(fh.0, offset, data) {
                Ok(count) if count == data.len() => return reply.written(size),
                Ok(count) => done = count,
                Err(error) => return answer("write", reply, Err::<(), _>(error), |_, ()| {}),
            }
        }
        let (fs, rest) = (self.fs.clone(), data[done..].to_vec());
        self.run(async move {
            let outcome = fs.write(fh.0, offset + done as u64, &rest, append).await;
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

    // ENOSYS: the kernel does not ask again.

    fn setxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _size: u32,
        reply: ReplyXattr,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
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
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let fs = self.fs.clone();
        let request = async move { fs.fallocate(fh.0, offset, length, mode).await };
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

/// Attributes of `.` and `..`, which the kernel does not look at.
fn dots(inode: InodeId) -> Attr {
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
    fn times_before_and_after_the_epoch_round_trip() {
        for ns in [0, 1, -1, 1_500_000_000_123_456_789, -1_500_000_000_123_456_789] {
            assert_eq!(nanos(time(ns)), ns);
        }
    }

    #[test]
    fn the_root_is_one_for_the_kernel() {
        let numbers = Numbers { root: InodeId(77) };
        assert_eq!(numbers.inode(INodeNo::ROOT), InodeId(77));
        assert_eq!(numbers.ino(InodeId(77)), INodeNo::ROOT);
        assert_eq!(numbers.inode(INodeNo(5)), InodeId(5));
    }
}
