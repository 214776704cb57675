//! One operation, each way.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;

use super::{Order, Worker};
use crate::cluster::DevCluster;
use crate::history::{State, Way};

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

/// The bytes of a file as the mount shows them.
pub(super) fn read_mounted(cluster: &DevCluster, place: &str) -> Result<Option<Bytes>> {
    let path = mounted(cluster, place);
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes.into())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
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
                let local = self.cluster.work().join(format!("upload-{}", self.number));
                fs::write(&local, &bytes)?;
                let local = local.to_str().context("a plain path")?;
                self.command(&["upload", local, place])
            }
            (Way::CommandLine, None) => self.command(&["rm", place]),
            (Way::Mount, Some(bytes)) => write_synced(&mounted(&self.cluster, place), &bytes),
            (Way::MountRename, Some(bytes)) => {
                let path = mounted(&self.cluster, place);
                let new = path.with_extension("new");
                write_synced(&new, &bytes)?;
                fs::rename(&new, &path).context("rename")
            }
            (Way::Mount | Way::MountRename, None) => {
                fs::remove_file(mounted(&self.cluster, place)).context("unlink")
            }
            (Way::Deploy, _) => bail!("a path is not deployed"),
        }
    }

    /// Runs a verb of the command line to its end, or kills it when all is to be dropped.
    pub(super) fn command(&self, arguments: &[&str]) -> Result<()> {
        let mut running = self.cluster.start_atoll(arguments)?;
        while !running.ended()? {
            if self.ordered() == Order::Halt {
                running.kill9()?;
                break;
            }
            sleep(LOOK_EVERY);
        }
        running.finish(COMMAND_TIMEOUT)?.ok().map(drop)
    }
}

/// Writes a file and returns when the file system says that it is safe.
fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).context("create")?;
    file.write_all(bytes).context("write")?;
    file.sync_all().context("fsync")?;
    // Not by dropping: an error of close is an answer, too.
    nix::unistd::close(file).context("close")
}
