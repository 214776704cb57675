//! The kernel's side: the only folder that knows the FUSE protocol's library.
//!
//! Each request becomes one call of the file system. It is polled once on the thread that read
//! it from the kernel, which is all it takes when nothing has to be waited for, and goes on as a
//! task otherwise; so a slow read never blocks others. The reply is sent from wherever the
//! request ends. How many requests wait at a time is bounded.
//!
//! `requests` has one method for each kind of request, `convert` the kernel's words in ours and
//! back, `reply` how a failure is told.

mod convert;
mod reply;
mod requests;

use std::ffi::OsStr;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Waker};

use atoll_net::task;
use atoll_proto::InodeId;
use atoll_proto::namespace::{Attr, NewNode};
use fuser::{
    BackgroundSession, Config, Generation, INodeNo, MountOption, Notifier, ReplyEmpty, ReplyEntry,
    Request, Session, SessionACL,
};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};

use convert::Numbers;
use reply::answer;

use crate::fs::{FileSystem, FsError, NewMode, Stale, Store, TTL};

/// Largest write (and read) in one request.
const REQUEST_BYTES: u32 = 1 << 20;
/// Requests that wait for something, at a time.
const WAITING_MAX: usize = 512;
/// Background requests (readahead, writeback) the kernel may have open.
const BACKGROUND_MAX: u16 = 64;
/// Threads that read requests from the kernel.
const THREADS: usize = 4;
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
    let (stale, numbers) = (fs.stale(), Numbers { root: fs.root() });
    let dropper = Dropper(stale.clone());
    let knows = notifier.clone();
    std::thread::Builder::new()
        .name("fuse_drop_pages".to_owned())
        .spawn(move || drop_pages(&stale, &knows, numbers))?;
    let adapter = Adapter {
        fs,
        runtime,
        gate: Arc::new(Semaphore::new(WAITING_MAX)),
        notifier: notifier.clone(),
        over: Some(over),
        dropper: Some(dropper),
    };
    let session = Session::new(adapter, dir, &config)?;
    drop(notifier.set(session.notifier()));
    let session = session.spawn()?;
    Ok(Mounted { _session: std::mem::ManuallyDrop::new(session), ended })
}

/// Ends the thread that drops pages.
struct Dropper(Arc<Stale>);

impl Drop for Dropper {
    fn drop(&mut self) {
        self.0.end();
    }
}

struct Adapter<S> {
    fs: Arc<FileSystem<S>>,
    runtime: Handle,
    gate: Arc<Semaphore>,
    notifier: Arc<OnceLock<Notifier>>,
    over: Option<oneshot::Sender<()>>,
    dropper: Option<Dropper>,
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

    /// Makes something that is not opened.
    fn make(
        &self,
        req: &Request,
        parent: INodeNo,
        entry: &OsStr,
        node: NewNode,
        (mode, umask): (u32, u32),
        (what, reply): (&'static str, ReplyEntry),
    ) {
        let (fs, parent, entry, caller) =
            (self.fs.clone(), self.inode(parent), convert::name(entry), convert::caller(req));
        let mode = NewMode { bits: mode, umask };
        let request = async move { fs.make(parent, entry, node, mode, caller).await };
        self.reply_entry(what, reply, request);
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

/// Makes the kernel drop pages that are in another place now, until the end of the mount. Nothing is
/// held here: dropping a page waits for the reads and writes of it that are under way.
fn drop_pages(stale: &Stale, notifier: &OnceLock<Notifier>, numbers: Numbers) {
    while let Some(inode) = stale.next() {
        if let Some(notifier) = notifier.get()
            && let Err(error) = notifier.inval_inode(numbers.ino(inode), 0, 0)
        {
            tracing::debug!(%error, %inode, "could not drop pages");
        }
    }
}
