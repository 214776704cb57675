//! A mount for a test, and the ways to get rid of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use atoll_net::shutdown::{ShutdownTrigger, pair};
use nix::mount::{MntFlags, umount2};

use crate::fs::fake::Fake;
use crate::{MountError, MountOptions, mountpoint, serve};

pub(super) const CHUNK_BYTES: u32 = 256 << 10;
const DEADLINE: Duration = Duration::from_secs(100);

/// A mount that goes away whatever happens.
pub(super) struct Mount {
    pub(super) dir: PathBuf,
    _home: Option<tempfile::TempDir>,
    trigger: ShutdownTrigger,
    served: Option<JoinHandle<Result<(), MountError>>>,
    /// Dropped when the test is over: the watchdog ends.
    _over: SyncSender<()>,
}

fn watch(dir: PathBuf, over: Receiver<()>) {
    std::thread::spawn(move || {
        if over.recv_timeout(DEADLINE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            eprintln!("deadline: aborting the mount at {}", dir.display());
            abort(&dir);
        }
    });
}

/// Ends the kernel's connection: every request in it fails.
pub(super) fn abort(dir: &Path) {
    if let Ok(Some(device)) = mountpoint::device(dir)
        && let Some((_, minor)) = device.split_once(':')
    {
        let control = format!("/sys/fs/fuse/connections/{minor}/abort");
        if fs::write(control, "1").is_err() {
            // The control file system is not mounted: a forced unmount aborts as well.
            umount2(dir, MntFlags::MNT_FORCE).ok();
        }
    }
}

impl Mount {
    pub(super) fn new(fake: &Arc<Fake>) -> Mount {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().to_owned();
        let mut mount = Mount::with(fake, options(&dir));
        mount._home = Some(home);
        mount
    }

    pub(super) fn with(fake: &Arc<Fake>, options: MountOptions) -> Mount {
        assert!(Path::new("/dev/fuse").exists(), "these tests need /dev/fuse");
        assert!(nix::unistd::geteuid().is_root(), "these tests need root");
        let dir = options.dir.clone();
        let (trigger, shutdown) = pair();
        let (ready, is_ready) = sync_channel(1);
        let (over, is_over) = sync_channel(1);
        watch(dir.clone(), is_over);
        let fake = fake.clone();
        let served = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            let on_ready = move || ready.send(()).unwrap();
            runtime.block_on(serve(fake, CHUNK_BYTES, options, shutdown, on_ready))
        });
        let mount = Mount { dir, _home: None, trigger, served: Some(served), _over: over };
        is_ready.recv_timeout(Duration::from_secs(20)).expect("the mount becomes ready");
        mount
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Tells it to stop and waits for how that went.
    pub(super) fn stop(&mut self) -> Result<(), MountError> {
        self.trigger.trigger();
        self.wait()
    }

    pub(super) fn wait(&mut self) -> Result<(), MountError> {
        let until = Instant::now() + Duration::from_secs(30);
        let served = self.served.take().unwrap();
        while !served.is_finished() {
            if Instant::now() > until {
                abort(&self.dir);
                panic!("the mount does not end");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        served.join().unwrap()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.trigger.trigger();
        let until = Instant::now() + Duration::from_secs(20);
        while self.served.as_ref().is_some_and(|served| !served.is_finished()) {
            if Instant::now() > until {
                abort(&self.dir);
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // Nothing is there any more unless the test went wrong.
        umount2(&self.dir, MntFlags::MNT_DETACH).ok();
    }
}

pub(super) fn options(dir: &Path) -> MountOptions {
    MountOptions {
        dir: dir.to_owned(),
        path: None,
        read_only: false,
        memory_limit: 64 << 20,
        allow_other: false,
    }
}

/// Runs a shell script in a directory; `$W` is another directory outside the mount.
pub(super) fn shell(dir: &Path, script: &str) -> String {
    let outside = tempfile::tempdir().unwrap();
    let output = Command::new("timeout")
        .args(["-k", "5", "90", "bash", "-euo", "pipefail", "-c", script])
        .current_dir(dir)
        .env("W", outside.path())
        .env("HOME", outside.path())
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .output()
        .unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{script}\n{out}\n{err}", output.status);
    out.into_owned()
}
