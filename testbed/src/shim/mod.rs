//! Machines whose clocks and disks are odd: a library loaded into the nodes of a cluster
//! (`testbed/shim`) shows them other times and slows their syncs, as this module tells it.
//!
//! What it can do: clocks that run too fast or too slow, a wall clock that jumps, a machine that
//! sleeps, syncs that take long. [`crate::DevBuilder::shimmed`] asks for it, and
//! [`crate::Fault`] has these faults as data. It needs Linux with glibc; where it cannot be had,
//! the cluster does not start.

#[allow(dead_code, reason = "the half that reads is the library's")]
mod control;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};

use self::control::{Control, Machine};
use crate::cluster::DevCluster;
use crate::ready::Node;
use crate::{process, wait};

/// What cargo calls the library.
const LIBRARY: &str = "examples/libatoll_shim.so";
/// Until all threads of a process have stopped.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The library beside this executable.
///
/// # Errors
/// When there is none; says how to build it.
pub fn find_library() -> Result<PathBuf> {
    if !cfg!(all(target_os = "linux", target_env = "gnu")) {
        bail!("the clocks and disks of nodes can be made odd on Linux with glibc only");
    }
    let own = std::env::current_exe()?;
    let found = own.ancestors().skip(1).take(2).map(|folder| folder.join(LIBRARY));
    found.into_iter().find(|path| path.is_file()).with_context(|| {
        format!(
            "no {LIBRARY} beside {}: `cargo build --release --workspace --bins --example \
             atoll_shim`",
            own.display()
        )
    })
}

/// The machines of a cluster's nodes.
#[derive(Debug)]
pub struct Shims {
    library: PathBuf,
    folder: PathBuf,
    machines: BTreeMap<Node, NodeShim>,
}

impl Shims {
    /// Machines in order, told about by files in this new folder.
    ///
    /// # Errors
    /// When the library is not there, or the files cannot be made.
    pub fn create(folder: &Path, nodes: impl IntoIterator<Item = Node>) -> Result<Self> {
        std::fs::create_dir(folder).with_context(|| folder.display().to_string())?;
        // A path of our own: the loader takes blanks and colons for ends of paths.
        let library = folder.join("library.so");
        std::os::unix::fs::symlink(find_library()?, &library)?;
        let make = |node: Node| Ok((node, NodeShim::create(&folder.join(node.to_string()))?));
        let machines = nodes.into_iter().map(make).collect::<Result<_>>()?;
        Ok(Self { library, folder: folder.to_owned(), machines })
    }

    /// What the environment of the nodes must have.
    pub fn environment(&self) -> [(&'static str, &Path); 2] {
        [("LD_PRELOAD", &self.library), (control::VARIABLE, &self.folder)]
    }

    /// The machine of a node.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn of(&self, node: Node) -> Result<&NodeShim> {
        self.machines.get(&node).with_context(|| format!("{node} has no machine of its own"))
    }

    /// Syncs that took longer, of all.
    pub fn syncs(&self) -> u64 {
        self.machines.values().map(NodeShim::syncs).sum()
    }

    /// Checks that every node runs with the library: a loader that cannot load it says so
    /// and goes on, and then nothing would be tested.
    ///
    /// # Errors
    /// When it is not.
    pub fn ensure_loaded(&self, cluster: &DevCluster) -> Result<()> {
        for (node, machine) in &self.machines {
            let (runs, reads) = (cluster.pid(*node), machine.control.reader());
            ensure!(
                runs == Some(reads),
                "{node} (process {runs:?}) is without the library that changes its clocks (the \
                 last with it was {reads}): is it linked to glibc, and dynamically?"
            );
        }
        Ok(())
    }
}

/// The machine of one node, as its clocks and disk are shown to it.
pub struct NodeShim {
    control: &'static Control,
    /// One change at a time.
    changing: Mutex<()>,
    /// What `CLOCK_MONOTONIC` showed when the machine went to sleep.
    asleep_ns: Mutex<Option<i64>>,
}

impl std::fmt::Debug for NodeShim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeShim").field("machine", &self.control.with(|machine| *machine)).finish()
    }
}

impl NodeShim {
    /// In order. The process that reads this file is started with its path, or with that of its
    /// folder and the name of the file on its command line.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).open(path);
        let control = file.and_then(|file| Control::create(&file));
        let control = control.with_context(|| path.display().to_string())?;
        Ok(Self { control, changing: Mutex::new(()), asleep_ns: Mutex::new(None) })
    }

    fn change(&self, change: impl FnOnce(Machine) -> Machine) {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.control.change(change);
    }

    /// From now on `CLOCK_BOOTTIME` and `CLOCK_MONOTONIC` run so many millionths faster than the
    /// kernel's; negative: slower.
    pub fn run_at(&self, ppm: i64) {
        self.change(|machine| {
            let (boot, monotonic) = (kernel_ns(BOOT), kernel_ns(MONOTONIC));
            Machine {
                boot: machine.boot.at_rate(boot, ppm),
                monotonic: machine.monotonic.at_rate(monotonic, ppm),
                ..machine
            }
        });
    }

    /// From now on the wall clock is so many seconds ahead of the kernel's; negative: behind.
    pub fn set_wall(&self, ahead_secs: i64) {
        let wall_ns = ahead_secs.saturating_mul(1_000_000_000);
        self.change(|machine| Machine { wall_ns, ..machine });
    }

    /// `CLOCK_BOOTTIME` goes forward at once, as if the machine had slept.
    pub fn skip_boot_time(&self, by: Duration) {
        let by_ns = i64::try_from(by.as_nanos()).unwrap_or(i64::MAX);
        self.change(|machine| Machine {
            boot: machine.boot.moved(kernel_ns(BOOT), by_ns),
            ..machine
        });
    }

    /// From now on each sync takes so much longer.
    pub fn slow_syncs(&self, by: Duration) {
        let sync_ns = i64::try_from(by.as_nanos()).unwrap_or(i64::MAX);
        self.change(|machine| Machine { sync_ns, ..machine });
    }

    /// Syncs that took longer so far.
    pub fn syncs(&self) -> u64 {
        self.control.syncs()
    }

    fn asleep(&self) -> MutexGuard<'_, Option<i64>> {
        self.asleep_ns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine sleeps: its process has stopped, every thread of it.
    fn fall_asleep(&self) {
        let shown = self.control.with(|machine| machine.monotonic.shown(kernel_ns(MONOTONIC)));
        *self.asleep() = Some(shown);
    }

    /// It wakes: `CLOCK_MONOTONIC` has stood meanwhile and `CLOCK_BOOTTIME` has not. To be called
    /// before its process goes on: nobody has seen the time between.
    fn wake(&self) {
        let Some(then_ns) = self.asleep().take() else { return };
        self.change(|machine| {
            let now_ns = kernel_ns(MONOTONIC);
            let slept_ns = machine.monotonic.shown(now_ns).saturating_sub(then_ns);
            Machine { monotonic: machine.monotonic.moved(now_ns, -slept_ns), ..machine }
        });
    }
}

const BOOT: ClockId = ClockId::CLOCK_BOOTTIME;
const MONOTONIC: ClockId = ClockId::CLOCK_MONOTONIC;

fn kernel_ns(clock: ClockId) -> i64 {
    let now = clock_gettime(clock).expect("every Linux since 2.6.39 has this clock");
    i64::try_from(Duration::from(now).as_nanos()).unwrap_or(i64::MAX)
}

impl DevCluster {
    /// The machine of a node.
    ///
    /// # Errors
    /// When the cluster was built without [`crate::DevBuilder::shimmed`].
    pub fn shim(&self, node: Node) -> Result<&NodeShim> {
        self.shims().context("the clocks of this cluster are the kernel's")?.of(node)
    }
}

/// A node's machine goes to sleep.
///
/// # Errors
/// When it does not run, or the cluster's clocks cannot be changed.
pub fn suspend(cluster: &DevCluster, node: Node) -> Result<()> {
    cluster.tell(format_args!("the machine of {node} goes to sleep"));
    let machine = cluster.shim(node)?;
    let pid = cluster.pid(node).with_context(|| format!("{node} does not run"))?;
    process::signal(pid, Signal::SIGSTOP)?;
    let what = format!("every thread of {node} has stopped");
    wait::until(&what, STOP_TIMEOUT, || Ok(all_stopped(pid)?.then_some(())))?;
    machine.fall_asleep();
    Ok(())
}

/// It wakes.
///
/// # Errors
/// As [`suspend`].
pub fn resume(cluster: &DevCluster, node: Node) -> Result<()> {
    cluster.tell(format_args!("the machine of {node} wakes"));
    cluster.shim(node)?.wake();
    let pid = cluster.pid(node).with_context(|| format!("{node} does not run"))?;
    process::signal(pid, Signal::SIGCONT)
}

fn all_stopped(pid: u32) -> Result<bool> {
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = std::fs::read_to_string(thread?.path().join("stat"))?;
        let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
        if state != Some('T') {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
