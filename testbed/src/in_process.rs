//! A cluster within the test's own process: the roles' own `run` functions on loopback, started
//! from the files that `atoll dev` makes.
//!
//! Quick to start and to look into with a debugger; a node is stopped in order, never killed, and
//! nothing can freeze one. What is global to a process is shared by all nodes: log lines and
//! metrics. For everything about processes there is [`crate::DevCluster`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use atoll::local::{Counts, LocalCluster, LocalNode, LocalRole};
use atoll_client::{Cluster, DeployOptions, DeployProgress, DeployReport, SourceFile, Wait};
use atoll_net::shutdown::{Shutdown, ShutdownTrigger, pair};
use atoll_proto::{AliasName, ByteName};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::cluster::host;
use crate::http::{Connection, Trust, Version};
use crate::ready::{Node, NodeRole, Ready};
use crate::{Tree, seed};

/// Until a node must be ready, and until the cluster must serve.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Within which a node, and all of them together, must stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How often something is looked at that tells nobody when it changes.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How a cluster is made.
#[derive(Debug, Clone, Default)]
pub struct InProcessBuilder {
    counts: Counts,
    seed: u64,
}

impl InProcessBuilder {
    /// How many masters.
    pub fn masters(mut self, count: u16) -> Self {
        self.counts.masters = Some(count);
        self
    }

    /// How many chunkservers.
    pub fn chunkservers(mut self, count: u16) -> Self {
        self.counts.chunkservers = Some(count);
        self
    }

    /// How many edges.
    pub fn edges(mut self, count: u16) -> Self {
        self.counts.edges = Some(count);
        self
    }

    /// How many shields.
    pub fn shields(mut self, count: u16) -> Self {
        self.counts.shields = Some(count);
        self
    }

    /// The seed of what is done to it, to be told on failure.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn start(self) -> Result<InProcess> {
        let keeper = tempfile::Builder::new().prefix("atoll-test-").tempdir()?;
        let root = keeper.path().canonicalize()?;
        std::fs::create_dir(root.join("work"))?;
        let local = LocalCluster::prepare(&root.join("data"), self.counts)?;
        let ready = serde_json::from_str(&local.describe()?)?;
        let nodes = local.nodes().into_iter().map(|node| Ok((named(&node.name)?, node)));
        let nodes = nodes.collect::<Result<BTreeMap<Node, LocalNode>>>()?;
        let cluster = InProcess {
            root,
            keeper: Some(keeper),
            local,
            ready,
            nodes,
            running: Mutex::default(),
            seed: self.seed,
            began: Instant::now(),
        };
        let all = || cluster.nodes.keys().copied();
        let masters = all().filter(|node| node.role == NodeRole::Master).collect();
        let others = all().filter(|node| node.role != NodeRole::Master).collect();
        for group in [masters, others] {
            let group: Vec<Node> = group;
            for node in &group {
                cluster.spawn(*node)?;
            }
            for node in &group {
                cluster.until_ready(*node).await?;
            }
        }
        cluster.until_serving().await?;
        cluster.tell("the cluster serves");
        Ok(cluster)
    }
}

/// A node's `run`.
struct Running {
    stop: ShutdownTrigger,
    ended: JoinHandle<Result<()>>,
}

/// A running cluster. Ends with [`InProcess::finish`]; one that is dropped without it belongs to a
/// failed test, and its data stays.
pub struct InProcess {
    root: PathBuf,
    /// Removes the data when dropped; taken when it must stay.
    keeper: Option<TempDir>,
    local: LocalCluster,
    ready: Ready,
    nodes: BTreeMap<Node, LocalNode>,
    running: Mutex<BTreeMap<Node, Running>>,
    seed: u64,
    began: Instant,
}

impl InProcess {
    /// A cluster with the defaults of `atoll dev`.
    pub fn builder() -> InProcessBuilder {
        InProcessBuilder::default()
    }

    // ---- where things are

    /// Where everything is, as the ready file of `atoll dev` says it.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// The edges that answer visitors: name and address of HTTPS.
    pub fn edges(&self) -> Vec<(String, SocketAddr)> {
        self.ready.visitor_edges().map(|edge| (edge.name.clone(), edge.https)).collect()
    }

    /// A folder for the test's own files, removed with the rest.
    pub fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    /// A line of the test's story, with seconds since its start; shown when the test fails.
    pub fn tell(&self, what: impl std::fmt::Display) {
        eprintln!("{:7.2} s  {what}", self.began.elapsed().as_secs_f64());
    }

    // ---- the life of its nodes

    /// Stops a node and waits until it has ended.
    ///
    /// # Errors
    /// When it does not run, does not end in time, or ends with an error.
    pub async fn stop(&self, node: Node) -> Result<()> {
        self.tell(format_args!("{node} is asked to stop"));
        let running = self.lock().remove(&node).with_context(|| format!("{node} does not run"))?;
        running.stop.trigger();
        let ended = tokio::time::timeout(STOP_TIMEOUT, running.ended).await;
        let ended = ended.with_context(|| format!("{node} did not end in {STOP_TIMEOUT:?}"))?;
        ended?.with_context(|| format!("{node} ended with an error"))
    }

    /// Starts a node that was stopped, on its data and ports, and waits until it is ready.
    ///
    /// # Errors
    /// When it runs already, or is not ready in time.
    pub async fn start(&self, node: Node) -> Result<()> {
        self.tell(format_args!("{node} starts"));
        self.spawn(node)?;
        self.until_ready(node).await
    }

    /// [`InProcess::stop`] of a chunkserver, counted from 1.
    ///
    /// # Errors
    /// As there.
    pub async fn stop_chunkserver(&self, number: u64) -> Result<()> {
        self.stop(Node::chunkserver(number)).await
    }

    /// [`InProcess::start`] of a chunkserver, counted from 1.
    ///
    /// # Errors
    /// As there.
    pub async fn start_chunkserver(&self, number: u64) -> Result<()> {
        self.start(Node::chunkserver(number)).await
    }

    /// Waits until the cluster is healthy and every edge answers.
    ///
    /// # Errors
    /// When it is not so in time, with the reason.
    pub async fn until_serving(&self) -> Result<()> {
        Ok(self.local.until_serving(START_TIMEOUT).await?)
    }

    /// The end of a test that passed: stops all nodes, those first that others do not need,
    /// checks that nothing of them is left, and removes their data.
    ///
    /// # Errors
    /// When a node does not end in time or ends with an error, or a socket stays open.
    pub async fn finish(mut self) -> Result<()> {
        let until = tokio::time::Instant::now() + STOP_TIMEOUT;
        let mut running = std::mem::take(&mut *self.lock());
        let mut failed = Vec::new();
        for rank in 0..=2 {
            let now: Vec<Node> =
                running.keys().copied().filter(|node| stop_rank(*node) == rank).collect();
            let ending: Vec<_> =
                now.into_iter().filter_map(|node| running.remove_entry(&node)).collect();
            for (_, running) in &ending {
                running.stop.trigger();
            }
            for (node, running) in ending {
                match tokio::time::timeout_at(until, running.ended).await {
                    Ok(Ok(Ok(()))) => {}
                    Ok(Ok(Err(error))) => failed.push(format!("{node}: {error:#}")),
                    Ok(Err(error)) => failed.push(format!("{node}: {error}")),
                    Err(_) => failed.push(format!("{node} did not end in {STOP_TIMEOUT:?}")),
                }
            }
        }
        ensure!(failed.is_empty(), "{}", failed.join("; "));
        let ports = self.ports();
        let mut open = open_ports()?;
        while open.iter().any(|port| ports.contains(port)) {
            ensure!(
                tokio::time::Instant::now() < until,
                "every node has ended, but these ports are still open: {:?}",
                open.intersection(&ports).collect::<Vec<_>>()
            );
            tokio::time::sleep(LOOK_EVERY).await;
            open = open_ports()?;
        }
        let keeper = self.keeper.take().context("not finished before")?;
        keeper.close().context("remove the cluster's data")
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Node, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, node: Node) -> Result<()> {
        let found = self.nodes.get(&node).with_context(|| format!("there is no {node}"))?.clone();
        let mut running = self.lock();
        ensure!(!running.contains_key(&node), "{node} runs already");
        if found.ready.exists() {
            std::fs::remove_file(&found.ready)?;
        }
        let (stop, shutdown) = pair();
        let ended = atoll_net::task::spawn("in-process-node", Box::pin(run(found, shutdown)));
        running.insert(node, Running { stop, ended });
        Ok(())
    }

    async fn until_ready(&self, node: Node) -> Result<()> {
        let found = self.nodes.get(&node).with_context(|| format!("there is no {node}"))?;
        let until = Instant::now() + START_TIMEOUT;
        while !found.ready.exists() {
            let ended = self.lock().get(&node).is_none_or(|running| running.ended.is_finished());
            if ended {
                let running = self.lock().remove(&node).context("somebody stopped it")?;
                let how = running.ended.await?;
                bail!("{node} ended before it was ready: {how:?}");
            }
            ensure!(Instant::now() < until, "{node} is not ready after {START_TIMEOUT:?}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Every port that belongs to a node.
    fn ports(&self) -> BTreeSet<u16> {
        let ready = &self.ready;
        let masters = ready.masters.iter().flat_map(|node| [Some(node.addr), node.admin]);
        let chunkservers = ready.chunkservers.iter().flat_map(|node| [Some(node.addr), node.admin]);
        let edges = ready
            .edges
            .iter()
            .flat_map(|node| [Some(node.http), Some(node.https), Some(node.admin), node.addr]);
        let dns = ready.dns.iter().map(|dns| Some(dns.addr));
        let all = masters.chain(chunkservers).chain(edges).chain(dns);
        all.flatten().map(|addr| addr.port()).collect()
    }

    // ---- as a user

    /// The client library, connected.
    ///
    /// # Errors
    /// When there is no master.
    pub async fn client(&self) -> Result<Cluster> {
        let config = atoll_client::ClientConfig::load(&self.local.client_config())?;
        Ok(Box::pin(Cluster::connect(&config, "testbed")).await?)
    }

    /// Deploys a tree as a site, which is made if need be, and waits for all edges.
    ///
    /// # Errors
    /// When it is not published, or not confirmed by every edge that is up.
    pub async fn deploy(&self, client: &Cluster, tree: &Tree, site: &str) -> Result<DeployReport> {
        let folder = tempfile::Builder::new().prefix("site-").tempdir_in(self.work())?;
        tree.write(folder.path())?;
        let options = DeployOptions {
            reupload: false,
            site: site.parse()?,
            alias: AliasName::production(),
            message: String::new(),
            if_current: None,
            lifetime: None,
            create: true,
            dry_run: false,
            wait: Wait::All,
            wait_timeout: START_TIMEOUT,
            stat_cache: None,
            parallel: 4,
            rules: atoll_client::RuleChoices::default(),
        };
        let files = sources(folder.path(), tree)?;
        let deploy = atoll_client::deploy(client, files, options, std::sync::Arc::new(Unheard));
        let report = Box::pin(deploy).await?;
        ensure!(report.waiting.is_empty(), "not confirmed by {:?}", report.waiting);
        Ok(report)
    }

    /// A visitor's connection to an edge.
    ///
    /// # Errors
    /// When the handshake fails.
    pub async fn visit(
        &self,
        version: Version,
        edge: SocketAddr,
        site: &str,
    ) -> Result<Connection> {
        Connection::open(version, edge, &host(site), &Trust::load(&self.ready.ca)?).await
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        let Some(keeper) = self.keeper.take() else {
            return; // finished
        };
        for running in self.lock().values() {
            running.stop.trigger();
        }
        let path = keeper.keep();
        eprintln!("the cluster's data stays in {}", path.display());
        eprintln!("to repeat: {}", seed::command_to_repeat(self.seed));
    }
}

/// Runs a role from its configuration file.
async fn run(node: LocalNode, shutdown: Shutdown) -> Result<()> {
    match node.role {
        LocalRole::Master => {
            let config = atoll_master::Config::load(&node.config)?;
            Ok(atoll_master::run(config, shutdown).await?)
        }
        LocalRole::Chunkserver => {
            let config = atoll_chunkserver::Config::load(&node.config)?;
            Ok(atoll_chunkserver::run(config, shutdown).await?)
        }
        LocalRole::Edge => {
            let config = atoll_edge::Config::load(&node.config)?;
            Ok(atoll_edge::run(config, shutdown).await?)
        }
    }
}

/// The node of a name such as `edge-1`.
fn named(name: &str) -> Result<Node> {
    let wrong = || anyhow!("{name:?} is not the name of a node");
    let (role, id) = name.rsplit_once('-').ok_or_else(wrong)?;
    let id = id.parse()?;
    match role {
        "master" => Ok(Node::master(id)),
        "chunkserver" => Ok(Node::chunkserver(id)),
        "edge" => Ok(Node::edge(id)),
        "shield" => Ok(Node::shield(id)),
        _ => Err(wrong()),
    }
}

/// Edges tell the masters that they go, chunkservers too, and masters need nobody.
fn stop_rank(node: Node) -> u8 {
    match node.role {
        NodeRole::Edge | NodeRole::Shield => 0,
        NodeRole::Chunkserver => 1,
        NodeRole::Master => 2,
    }
}

/// The ports of this machine that sockets of this process are bound to or listen on.
fn open_ports() -> Result<BTreeSet<u16>> {
    let mut own = BTreeSet::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        // One that was closed meanwhile is not open.
        let Ok(target) = std::fs::read_link(entry?.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
        own.extend(inode.map(str::to_owned));
    }
    let mut ports = BTreeSet::new();
    // The state of a TCP socket that listens is 0A; any UDP socket counts.
    for (file, state) in [("udp", None), ("udp6", None), ("tcp", Some("0A")), ("tcp6", Some("0A"))]
    {
        let text = std::fs::read_to_string(Path::new("/proc/self/net").join(file));
        for line in text.unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (Some(local), Some(is), Some(inode)) =
                (fields.get(1), fields.get(3), fields.get(9))
            else {
                continue;
            };
            let port =
                local.rsplit_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
            if own.contains(*inode) && state.is_none_or(|state| state == *is) {
                ports.extend(port);
            }
        }
    }
    Ok(ports)
}

/// The files of a tree that was written to a folder, for a deploy.
fn sources(folder: &Path, tree: &Tree) -> Result<Vec<SourceFile>> {
    use std::os::unix::ffi::OsStrExt as _;
    let source = |(path, content): (&Vec<u8>, &bytes::Bytes)| {
        let name = std::ffi::OsStr::from_bytes(path);
        Ok(SourceFile {
            site_path: ByteName(path.clone()),
            disk_path: folder.join(name),
            size: content.len() as u64,
            mtime_ns: 0,
            mode: 0o644,
            content_type: "application/octet-stream".to_owned(),
        })
    };
    tree.files.iter().map(source).collect()
}

/// Nobody looks at how a deploy gets on.
struct Unheard;

impl DeployProgress for Unheard {
    fn hashed(&self, _files: u64, _bytes: u64) {}
    fn uploading(&self, _total_bytes: u64) {}
    fn uploaded(&self, _bytes: u64) {}
    fn phase(&self, _phase: &'static str) {}
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn an_open_port_is_seen_and_a_closed_one_is_not() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = std::net::UdpSocket::bind("[::1]:0").unwrap();
        let ports = [tcp.local_addr().unwrap().port(), udp.local_addr().unwrap().port()];
        let open = open_ports().unwrap();
        assert!(ports.iter().all(|port| open.contains(port)), "{ports:?} {open:?}");
        drop((tcp, udp));
        let open = open_ports().unwrap();
        assert!(ports.iter().all(|port| !open.contains(port)), "{ports:?} {open:?}");
    }
}
