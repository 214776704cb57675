//! The mount: Atoll's namespace as a directory.
//!
//! [`mount`] mounts and serves until it is told to stop or somebody unmounts; the `atoll` binary
//! calls it, in the foreground or in a process of its own. `kernel` is the thin adapter to FUSE,
//! [`fs`] the file system behind it, which knows no kernel types, and [`errno`] the one place
//! where failures become errno values.
//!
//! What this crate does not do: it does not go into the background, and it does not start or
//! find a cluster.

pub mod errno;
pub mod fs;
mod kernel;
mod mountpoint;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_client::{ClientError, Cluster};
use atoll_net::shutdown::Shutdown;
use atoll_net::task::{self, Boxed};
use atoll_proto::{ByteName, InodeId};

use fs::{ClusterStore, FileSystem, FsError, Options, Store};
use mountpoint::Found;

/// Memory for unsent data and cached chunks together, by default.
pub const MEMORY_BYTES: u64 = 256 << 20;
/// Longest wait of a writer while the cluster takes no data at all.
const STALL: Duration = Duration::from_secs(120);
/// How often closed files that could not be committed are tried again.
const RETRY_EVERY: Duration = Duration::from_secs(5);
/// Longest wait for a directory to say what it is.
const INSPECT_DEADLINE: Duration = Duration::from_secs(10);
/// A process that was killed is given so long to leave its mount.
const ENDING: Duration = Duration::from_secs(2);
/// How often its mount is looked at meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Longest wait for the last changes at the end.
const FLUSH_DEADLINE: Duration = Duration::from_secs(120);
/// Longest wait for the kernel to end the session after unmounting.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// Arguments of `atoll mount`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Directory to mount on
    pub dir: PathBuf,
    /// Show only this directory of the namespace
    #[arg(long, value_name = "SUBTREE")]
    pub path: Option<String>,
    /// Allow no changes
    #[arg(long)]
    pub read_only: bool,
    /// Stay in the foreground
    #[arg(long)]
    pub foreground: bool,
    /// Memory for unsent data and cached chunks: bytes, or with K, M or G
    #[arg(long, value_name = "B", value_parser = parse_bytes)]
    pub memory_limit: Option<u64>,
    /// Let other users in, as far as permission bits allow
    #[arg(long)]
    pub allow_other: bool,
}

/// Paths of the namespace begin at its root, with or without the slash.
fn absolute(path: &str) -> ByteName {
    if path.starts_with('/') { path.into() } else { format!("/{path}").as_str().into() }
}

/// What to mount and where.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// The directory to mount on.
    pub dir: PathBuf,
    /// The directory of the namespace to show; `None` for all of it, with `/.sites`.
    pub path: Option<ByteName>,
    /// Allow no changes.
    pub read_only: bool,
    /// Bytes for unsent data and cached chunks together.
    pub memory_limit: u64,
    /// Let other users in.
    pub allow_other: bool,
}

impl From<&Args> for MountOptions {
    fn from(args: &Args) -> MountOptions {
        MountOptions {
            dir: args.dir.clone(),
            path: args.path.as_deref().map(absolute),
            read_only: args.read_only,
            memory_limit: args.memory_limit.unwrap_or(MEMORY_BYTES),
            allow_other: args.allow_other,
        }
    }
}

/// Why there is no mount, or why it ended badly.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The directory cannot be used.
    #[error("cannot mount on {}: {reason}", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// The part of the namespace cannot be shown.
    #[error("cannot show {path}: {source}")]
    Path {
        /// The path in the namespace.
        path: ByteName,
        /// Why not.
        source: FsError,
    },
    /// The cluster cannot be reached.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Unmounting failed.
    #[error("cannot unmount {}: {source}", dir.display())]
    Unmount {
        /// The directory.
        dir: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Some changes did not get to the cluster.
    #[error("changes of {files} files could not be stored and are lost; the log names them")]
    Unsaved {
        /// How many files.
        files: usize,
    },
}

/// Mounts and serves until `shutdown`, or until somebody unmounts the directory. Before it
/// returns, all changes are in the cluster or their loss is the error.
///
/// `on_ready` is called once, when the directory can be used.
///
/// # Errors
/// See [`MountError`].
pub fn mount<'a>(
    cluster: Cluster,
    options: MountOptions,
    shutdown: Shutdown,
    on_ready: Box<dyn FnOnce() + Send + 'a>,
) -> Boxed<'a, Result<(), MountError>> {
    Box::pin(async move {
        let chunk_bytes = cluster.view().await?.chunk_bytes;
        serve(ClusterStore::new(cluster), chunk_bytes, options, shutdown, on_ready).await
    })
}

/// Unmounts a directory that `atoll mount` mounted. Changes are committed first: unmounting waits
/// for whoever has files open to be gone, unless `lazy`.
///
/// # Errors
/// `Unmount`, when nothing is mounted there or it is in use.
pub fn unmount(dir: &Path, lazy: bool) -> Result<(), MountError> {
    mountpoint::unmount(dir, lazy).map_err(|source| {
        let source = match source.raw_os_error() {
            Some(libc::EINVAL) => io::Error::other("nothing is mounted there"),
            Some(libc::EBUSY) => io::Error::other(
                "it is in use: close the files, leave the directory, or unmount lazily",
            ),
            _ => source,
        };
        MountError::Unmount { dir: dir.to_owned(), source }
    })
}

async fn serve<S: Store>(
    store: S,
    chunk_bytes: u32,
    options: MountOptions,
    shutdown: Shutdown,
    on_ready: impl FnOnce(),
) -> Result<(), MountError> {
    let root = match &options.path {
        None => InodeId::ROOT,
        Some(path) => FileSystem::resolve_dir(&store, path)
            .await
            .map_err(|source| MountError::Path { path: path.clone(), source })?,
    };
    prepare(&options.dir).await?;
    let half = options.memory_limit / 2;
    let fs = FileSystem::new(
        store,
        Options {
            root,
            chunk_bytes,
            dirty_bytes: half,
            cache_bytes: half,
            sites: options.path.is_none(),
            stall: STALL,
        },
    );
    let mut mounted = mount_kernel(&fs, &options).await?;
    tracing::info!(dir = %options.dir.display(), "mounted");
    on_ready();
    let retries = task::AbortOnDrop::new(task::spawn("fuse_retry", retry(fs.clone())));
    let outcome = tokio::select! {
        () = shutdown.wait() => take_down(&fs, &options.dir, &mut mounted).await,
        () = mounted.ended() => {
            sweep(&options.dir).await;
            Ok(())
        }
    };
    drop(retries);
    let left = flush(&fs).await;
    outcome?;
    tracing::info!(dir = %options.dir.display(), "unmounted");
    if left > 0 { Err(MountError::Unsaved { files: left }) } else { Ok(()) }
}

async fn retry<S: Store>(fs: Arc<FileSystem<S>>) {
    loop {
        tokio::time::sleep(RETRY_EVERY).await;
        fs.retry_closed().await;
    }
}

/// Commits what there is; returns how many files could not be.
async fn flush<S: Store>(fs: &Arc<FileSystem<S>>) -> usize {
    tokio::time::timeout(FLUSH_DEADLINE, fs.flush_all()).await.unwrap_or(usize::from(true))
}

/// Runs something that may wait for a file system, on a thread that may.
async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match tokio::time::timeout(INSPECT_DEADLINE, task::spawn_blocking(what, work)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(panic)) => Err(io::Error::other(panic)),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer")),
    }
}

/// Makes sure that the directory can be mounted on; clears away a mount whose process is gone.
async fn prepare(dir: &Path) -> Result<(), MountError> {
    let bad = |reason: String| MountError::Directory { dir: dir.to_owned(), reason };
    let until = Instant::now() + ENDING;
    let found = loop {
        let path = dir.to_owned();
        let found = blocking("fuse_inspect", move || mountpoint::inspect(&path)).await;
        if !matches!(found, Ok(Found::Mounted)) || Instant::now() > until {
            break found;
        }
        // One that was killed a moment ago may still be ending.
        tokio::time::sleep(LOOK_AGAIN).await;
    };
    match found {
        Ok(Found::Directory) => Ok(()),
        Ok(Found::Mounted) => Err(bad(format!(
            "Atoll is mounted there already; `atoll umount {}` ends that",
            dir.display()
        ))),
        Ok(Found::Dead) => {
            tracing::warn!(dir = %dir.display(), "unmounting what a process left that is gone");
            let path = dir.to_owned();
            blocking("fuse_clear", move || mountpoint::unmount(&path, true)).await.map_err(
                |error| bad(format!("a dead mount is there and cannot be unmounted: {error}")),
            )
        }
        Err(error) => Err(bad(match error.kind() {
            io::ErrorKind::NotFound => "there is no such directory; create it first".to_owned(),
            io::ErrorKind::NotADirectory => "it is not a directory".to_owned(),
            _ => error.to_string(),
        })),
    }
}

async fn mount_kernel<S: Store>(
    fs: &Arc<FileSystem<S>>,
    options: &MountOptions,
) -> Result<kernel::Mounted, MountError> {
    let kernel =
        kernel::KernelOptions { read_only: options.read_only, allow_other: options.allow_other };
    let (fs, dir, runtime) = (fs.clone(), options.dir.clone(), tokio::runtime::Handle::current());
    let mounted = blocking("fuse_mount", move || {
        let mounted = kernel::mount(fs, &dir, &kernel, runtime)?;
        if let Err(error) = mountpoint::raise_readahead(&dir) {
            tracing::debug!(%error, "the kernel's readahead stays as it is");
        }
        Ok(mounted)
    });
    mounted.await.map_err(|error| {
        let missing = !Path::new("/dev/fuse").exists();
        let reason = if missing {
            "there is no /dev/fuse: load the kernel module fuse, or give the container the device"
                .to_owned()
        } else {
            error.to_string()
        };
        MountError::Directory { dir: options.dir.clone(), reason }
    })
}

/// Commits, unmounts, and waits for the kernel to be done.
async fn take_down<S: Store>(
    fs: &Arc<FileSystem<S>>,
    dir: &Path,
    mounted: &mut kernel::Mounted,
) -> Result<(), MountError> {
    flush(fs).await;
    let path = dir.to_owned();
    let outcome = blocking("fuse_unmount", move || match mountpoint::unmount(&path, false) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            tracing::warn!(
                dir = %path.display(),
                "still in use: unmounting lazily; open files end with this process"
            );
            mountpoint::unmount(&path, true)
        }
        other => other,
    });
    match outcome.await {
        // Somebody was faster.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
        Err(source) => {
            return Err(MountError::Unmount { dir: dir.to_owned(), source });
        }
        Ok(()) => {}
    }
    if tokio::time::timeout(END_DEADLINE, mounted.ended()).await.is_err() {
        tracing::warn!("files are still open; they cannot be used any more");
    }
    Ok(())
}

/// The session ended by itself. If its connection was aborted, what is left of the mount answers
/// nothing any more and is in the way.
async fn sweep(dir: &Path) {
    let path = dir.to_owned();
    let swept = blocking("fuse_sweep", move || match mountpoint::inspect(&path)? {
        Found::Dead => mountpoint::unmount(&path, true),
        Found::Directory | Found::Mounted => Ok(()),
    });
    if let Err(error) = swept.await {
        tracing::warn!(%error, dir = %dir.display(), "could not clear away the ended mount");
    }
}

/// A number of bytes, with K, M or G for powers of 1,024.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&text[..at], 1 << 10),
        Some((at, 'm' | 'M')) => (&text[..at], 1 << 20),
        Some((at, 'g' | 'G')) => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    let number = digits.parse::<u64>().map_err(|error| error.to_string())?;
    number.checked_mul(factor).ok_or_else(|| "that is too much".to_owned())
}
