//! Faults as data: a scenario lists them, a failure prints them, a run repeats them.
//!
//! A link is cut by the packet filter (`nft`): a node's calls leave from the port it listens on, so
//! two ports name the link between two nodes.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::cluster::DevCluster;
use crate::ready::Node;

/// The file that takes the room in [`Fault::FillDisk`].
const BALLAST: &str = "ballast";

/// Where in a file bits are turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Offset {
    /// So many bytes from the start.
    FromStart(u64),
    /// So many bytes before the end.
    FromEnd(u64),
    /// In the middle.
    Middle,
}

impl Offset {
    fn within(self, length: u64) -> Option<u64> {
        let at = match self {
            Self::FromStart(at) => at,
            Self::FromEnd(back) => length.checked_sub(back)?,
            Self::Middle => length / 2,
        };
        (at < length).then_some(at)
    }
}

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// SIGKILL.
    Kill(Node),
    /// SIGTERM, and it is waited for.
    Stop(Node),
    /// Started again on its data and port.
    Start(Node),
    /// Killed and started again.
    Restart(Node),
    /// SIGSTOP: it holds its connections and answers nothing.
    Freeze(Node),
    /// SIGCONT.
    Continue(Node),
    /// One bit is turned in every file of the node's data whose name contains the text. The node
    /// should be stopped: what it has in memory is not touched.
    CorruptFile {
        /// Whose data.
        node: Node,
        /// What the file's name contains.
        name_contains: String,
        /// Where in the file.
        at: Offset,
    },
    /// No packet passes between the two nodes, either way; both still reach everybody else.
    CutLink(Node, Node),
    /// The file system of the node's data is filled. Only for one that belongs to the test.
    FillDisk {
        /// Whose data.
        node: Node,
        /// What stays free, about.
        leave_bytes: u64,
    },
}

impl Fault {
    /// Makes it happen.
    ///
    /// # Errors
    /// When it cannot be made to happen; then nothing is known about the node.
    pub fn apply(&self, cluster: &DevCluster) -> Result<()> {
        self.apply_now(cluster).with_context(|| format!("fault {self:?}"))
    }

    fn apply_now(&self, cluster: &DevCluster) -> Result<()> {
        match self {
            Self::Kill(node) => cluster.kill9(*node),
            Self::Stop(node) => cluster.stop_node(*node),
            Self::Start(node) => cluster.start_node(*node),
            Self::Restart(node) => cluster.restart(*node),
            Self::Freeze(node) => cluster.freeze(*node),
            Self::Continue(node) => cluster.thaw(*node),
            Self::CorruptFile { node, name_contains, at } => {
                corrupt(&data_of(cluster, *node)?, name_contains, *at)
            }
            Self::CutLink(one, other) => {
                let (one, other) = (port_of(cluster, *one)?, port_of(cluster, *other)?);
                let table = table_of(one, other);
                nft(&format!(
                    "add table ip {table}\n\
                     add chain ip {table} out {{ type filter hook output priority 0; }}\n\
                     add rule ip {table} out udp sport {one} udp dport {other} counter drop\n\
                     add rule ip {table} out udp sport {other} udp dport {one} counter drop\n"
                ))
            }
            Self::FillDisk { node, leave_bytes } => fill(&data_of(cluster, *node)?, *leave_bytes),
        }
    }

    /// Puts things right again.
    ///
    /// # Errors
    /// When it cannot, or when there is no way back: turned bits stay.
    pub fn undo(&self, cluster: &DevCluster) -> Result<()> {
        match self {
            Self::Kill(node) | Self::Stop(node) => Self::Start(*node).apply(cluster),
            Self::Freeze(node) => Self::Continue(*node).apply(cluster),
            Self::Start(_) | Self::Restart(_) | Self::Continue(_) => Ok(()),
            Self::CutLink(one, other) => {
                let table = table_of(port_of(cluster, *one)?, port_of(cluster, *other)?);
                nft(&format!("delete table ip {table}\n"))
            }
            Self::CorruptFile { .. } => bail!("{self:?}: healing is the cluster's part"),
            Self::FillDisk { node, .. } => {
                let ballast = data_of(cluster, *node)?.join(BALLAST);
                fs::remove_file(&ballast).with_context(|| format!("remove {}", ballast.display()))
            }
        }
    }
}

/// How many packets a cut has kept back so far.
///
/// # Errors
/// When the link is not cut.
pub fn packets_cut(cluster: &DevCluster, one: Node, other: Node) -> Result<u64> {
    let table = table_of(port_of(cluster, one)?, port_of(cluster, other)?);
    let listed = Command::new("nft").args(["list", "table", "ip", &table]).output()?;
    ensure!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let text = String::from_utf8_lossy(&listed.stdout);
    let mut words = text.split_whitespace();
    let mut packets = 0;
    while let Some(word) = words.next() {
        if word == "packets" {
            packets += words.next().context("a number")?.parse::<u64>()?;
        }
    }
    Ok(packets)
}

fn port_of(cluster: &DevCluster, node: Node) -> Result<u16> {
    let addr = cluster.ready().addr(node).with_context(|| format!("{node} has no address"))?;
    Ok(addr.port())
}

fn table_of(one: u16, other: u16) -> String {
    format!("atoll_cut_{}_{}", one.min(other), one.max(other))
}

/// Hands the packet filter a script; it applies all of it or nothing.
fn nft(script: &str) -> Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("run nft (Debian: nftables)")?;
    child.stdin.take().context("its input")?.write_all(script.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn data_of(cluster: &DevCluster, node: Node) -> Result<PathBuf> {
    let ready = cluster.ready();
    ready.data(node).map(Path::to_owned).with_context(|| format!("there is no {node}"))
}

/// Turns one bit in each file of that name; at least one must be long enough.
fn corrupt(data: &Path, name_contains: &str, at: Offset) -> Result<()> {
    let mut queue = vec![data.to_owned()];
    let mut turned = 0;
    while let Some(directory) = queue.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                queue.push(entry.path());
            } else if entry.file_name().to_string_lossy().contains(name_contains) {
                turned += u32::from(turn_bit(&entry.path(), at)?);
            }
        }
    }
    ensure!(turned > 0, "no file named *{name_contains}* in {}", data.display());
    Ok(())
}

fn turn_bit(path: &Path, at: Offset) -> Result<bool> {
    let file = fs::File::options().read(true).write(true).open(path)?;
    let Some(offset) = at.within(file.metadata()?.len()) else {
        return Ok(false);
    };
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    byte[0] ^= 1;
    file.write_all_at(&byte, offset)?;
    file.sync_all()?;
    Ok(true)
}

/// Writes until the file system is full but for a rest. Refuses a large one: that is not ours.
fn fill(data: &Path, leave_bytes: u64) -> Result<()> {
    const OURS_BYTES_MAX: u64 = 1 << 30;
    let stat = nix::sys::statvfs::statvfs(data)?;
    let total = stat.fragment_size() * stat.blocks();
    ensure!(total <= OURS_BYTES_MAX, "{} is on a file system of {total} bytes", data.display());
    let free = stat.fragment_size() * stat.blocks_available();
    let mut rest = free.saturating_sub(leave_bytes);
    let mut file = fs::File::create(data.join(BALLAST))?;
    let block = vec![0x5a; 1 << 16];
    while rest > 0 {
        let length = block.len().min(usize::try_from(rest)?);
        match file.write(&block[..length]) {
            Ok(0) => break,
            Ok(written) => rest -= written as u64,
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_scenario_is_data() {
        let faults = vec![
            Fault::Kill(Node::chunkserver(2)),
            Fault::CorruptFile {
                node: Node::chunkserver(1),
                name_contains: ".blob".into(),
                at: Offset::FromEnd(100),
            },
        ];
        let text = serde_json::to_string(&faults).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Fault>>(&text).unwrap(), faults);
    }

    #[test]
    fn exactly_one_bit_is_turned() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("sub")).unwrap();
        let path = directory.path().join("sub/7.blob");
        fs::write(&path, [0; 100]).unwrap();
        corrupt(directory.path(), ".blob", Offset::Middle).unwrap();
        let found = fs::read(&path).unwrap();
        assert_eq!(found.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
        assert_eq!(found[50], 1);
        assert!(corrupt(directory.path(), ".blob", Offset::FromStart(100)).is_err());
        assert!(corrupt(directory.path(), ".sst", Offset::Middle).is_err());
    }
}
