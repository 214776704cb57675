//! One operation, each way.
//!
//! Files of the mount are opened by other programs only, never by this process: it starts programs
//! all the time, and each of them begins as a copy of it whose files are closed. Closing a file of
//! the mount asks its server, and so a program could not start while the masters are away.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;

use super::{Order, Worker};
use crate::cluster::DevCluster;
use crate::history::{State, Way};
use crate::process::{Outcome, Running};

/// How often a command is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// For a command, and for one that was killed to be gone.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);

/// Where a worker works.
pub fn directory(worker: usize) -> String {
    format!("/crew/w{worker}")
}

/// The way into a worker's place: the same all its life, so that no cache of one way has to learn
/// what another did.
pub fn way_of(index: usize, mounted: bool) -> Way {
    match index % 8 {
        1 | 4 | 6 if mounted => Way::Mount,
        7 => Way::CommandLine,
        _ => Way::Client,
    }
}

fn mounted(cluster: &DevCluster, place: &str) -> PathBuf {
    cluster.mount().join(place.trim_start_matches('/'))
}

impl Worker {
    /// Makes a place hold what is meant; returns once that is acknowledged.
    pub(super) fn carry_out(&self, place: &str, way: Way, intent: State) -> Result<()> {
        let content = match intent {
            State::Absent => None,
            State::Holds(payload) => Some(payload.content(place)),
            State::Begins(..) => bail!("nobody means to leave a part"),
        };
        match (way, content) {
            (Way::Client, Some(bytes)) => self.wait_for(self.volume.put(place, bytes)),
            (Way::Client, None) => self.wait_for(self.volume.remove(place)),
            (Way::CommandLine, Some(bytes)) => {
                self.command(&["upload", &self.local(&bytes)?, place])
            }
            (Way::CommandLine, None) => self.command(&["rm", place]),
            (Way::Mount, Some(bytes)) => self.write_synced(&mounted(&self.cluster, place), &bytes),
            (Way::MountRename, Some(bytes)) => {
                let path = mounted(&self.cluster, place);
                let new = path.with_extension("new");
                self.write_synced(&new, &bytes)?;
                fs::rename(&new, &path).context("rename")
            }
            (Way::Mount | Way::MountRename, None) => {
                fs::remove_file(mounted(&self.cluster, place)).context("unlink")
            }
            (Way::Deploy, _) => bail!("a path is not deployed"),
        }
    }

    /// The bytes of a file as the mount shows them.
    pub(super) fn read_mounted(&self, place: &str) -> Result<Option<Bytes>> {
        let path = mounted(&self.cluster, place);
        if !fs::exists(&path).with_context(|| format!("look for {}", path.display()))? {
            // Without a mount there is nothing, either, and that says nothing.
            let folder = path.parent().context("below the mount")?;
            ensure!(folder.is_dir(), "{}: nothing is mounted there now", folder.display());
            return Ok(None);
        }
        let mut command = Command::new("cat");
        command.arg(&path);
        Ok(Some(self.run(Running::start(command)?)?.stdout.into()))
    }

    /// Writes a file through the mount and returns when the file system says that it is safe: `dd`
    /// fails if write, fsync or close does.
    fn write_synced(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let mut command = Command::new("dd");
        command.arg(format!("if={}", self.local(bytes)?)).arg(format!("of={}", path.display()));
        command.args(["bs=1M", "conv=fsync", "status=none"]);
        self.run(Running::start(command)?).map(drop)
    }

    /// A local file of these bytes, overwritten by the next one.
    fn local(&self, bytes: &[u8]) -> Result<String> {
        let local = self.cluster.work().join(format!("local-{}", self.number));
        fs::write(&local, bytes)?;
        Ok(local.to_str().context("a plain path")?.to_owned())
    }

    /// Runs a verb of the command line.
    pub(super) fn command(&self, arguments: &[&str]) -> Result<()> {
        self.run(self.cluster.start_atoll(arguments)?).map(drop)
    }

    /// Waits for the end of a program, or kills it when all is to be dropped.
    fn run(&self, mut running: Running) -> Result<Outcome> {
        while !running.ended()? {
            if self.ordered() == Order::Halt {
                running.kill9()?;
                break;
            }
            sleep(LOOK_EVERY);
        }
        running.finish(COMMAND_TIMEOUT)?.ok()
    }
}
