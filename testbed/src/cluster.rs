//! A cluster on this machine, as its users start it: `atoll dev` as a child process.
//!
//! A test ends with [`DevCluster::finish`], which stops the cluster, checks that nothing of it is
//! left running, and removes its data. A cluster that is dropped without it belongs to a failed
//! test: everything is killed, the data stays, and its path is printed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::disk::{DiskKind, LossyDisk};
use crate::http::{Connection, Trust, Version};
use crate::metrics::Scrape;
use crate::process::{self, Outcome, Process, Running};
use crate::ready::{EdgeReady, Node, NodeRole, Ready};
use crate::shim::Shims;
use crate::{seed, wait};

/// The variable that names the binary under test.
pub const BINARY_VARIABLE: &str = "ATOLL_BIN";
/// Until a cluster must serve.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Within which the contract promises a stop.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Until one node must be up, or gone.
const NODE_TIMEOUT: Duration = Duration::from_secs(40);
/// For one command, unless said otherwise.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);

/// The binary under test: what [`BINARY_VARIABLE`] names, or the one in the folder this
/// executable was built into.
///
/// # Errors
/// When there is none; says how to build it.
pub fn find_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(BINARY_VARIABLE) {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "{BINARY_VARIABLE}={}: no such file", path.display());
        return Ok(std::path::absolute(path)?);
    }
    let own = std::env::current_exe()?;
    let found = own.ancestors().skip(1).take(2).map(|folder| folder.join("atoll"));
    found.into_iter().find(|path| path.is_file()).with_context(|| {
        format!(
            "no `atoll` beside {}: `cargo build --release --workspace --bins`, or set \
             {BINARY_VARIABLE}",
            own.display()
        )
    })
}

/// The variable with the number of masters of clusters that are not told: with 3 in it, the tests show
/// that three masters are the same product as one.
pub const MASTERS: &str = "ATOLL_TEST_MASTERS";

/// How a cluster is made.
#[derive(Debug, Clone)]
pub struct DevBuilder {
    atoll: Option<PathBuf>,
    counts: Vec<(&'static str, usize)>,
    mount: bool,
    seed: u64,
    repeat: Option<String>,
    environment: Vec<(String, String)>,
    lossy: Option<(DiskKind, u64)>,
    shimmed: bool,
}

impl DevBuilder {
    /// How many masters.
    pub fn masters(self, count: usize) -> Self {
        self.count("--masters", count)
    }

    /// How many chunkservers.
    pub fn chunkservers(self, count: usize) -> Self {
        self.count("--chunkservers", count)
    }

    /// How many edges.
    pub fn edges(self, count: usize) -> Self {
        self.count("--edges", count)
    }

    /// How many shields.
    pub fn shields(self, count: usize) -> Self {
        self.count("--shields", count)
    }

    fn count(mut self, flag: &'static str, count: usize) -> Self {
        self.counts.retain(|(other, _)| *other != flag);
        self.counts.push((flag, count));
        self
    }

    /// With the cluster mounted.
    pub fn mounted(mut self) -> Self {
        self.mount = true;
        self
    }

    /// Another binary than the one that [`find_binary`] finds.
    pub fn binary(mut self, path: &Path) -> Self {
        self.atoll = Some(path.to_owned());
        self
    }

    /// With the data of every node on a disk of its own, of so many bytes, whose power can be cut.
    pub fn lossy_disks(mut self, kind: DiskKind, bytes: u64) -> Self {
        self.lossy = Some((kind, bytes));
        self
    }

    /// With nodes whose clocks and disks can be made odd: see [`crate::shim`].
    pub fn shimmed(mut self) -> Self {
        self.shimmed = true;
        self
    }

    /// The seed of what is done to it, to be told on failure.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The command that repeats what is done to it, where that is no test, to be told on failure.
    pub fn repeat(mut self, command: &str) -> Self {
        self.repeat = Some(command.to_owned());
        self
    }

    /// A variable of its environment.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Every node there will be.
    fn nodes(&self) -> Vec<Node> {
        type Role = (&'static str, fn(u64) -> Node, usize);
        const ROLES: [Role; 4] = [
            ("--masters", Node::master, 1),
            ("--chunkservers", Node::chunkserver, 3),
            ("--edges", Node::edge, 2),
            ("--shields", Node::shield, 1),
        ];
        let of = |(flag, make, default): Role| {
            let count = self.counts.iter().rev().find(|(name, _)| *name == flag);
            (1..=count.map_or(default, |(_, count)| *count) as u64).map(make)
        };
        ROLES.into_iter().flat_map(of).collect()
    }

    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn start(self) -> Result<DevCluster> {
        let atoll = match &self.atoll {
            Some(path) => std::path::absolute(path)?,
            None => find_binary()?,
        };
        if self.mount {
            ensure!(
                Path::new("/dev/fuse").exists(),
                "/dev/fuse is missing: the mount cannot be tested on this machine"
            );
        }
        let root = tempfile::Builder::new().prefix("atoll-test-").tempdir()?;
        let path = root.path().canonicalize()?;
        for folder in ["home", "mnt", "work"] {
            std::fs::create_dir(path.join(folder))?;
        }
        let mut disks = Vec::new();
        if let Some((kind, bytes)) = self.lossy {
            let images = path.join("disks");
            std::fs::create_dir(&images)?;
            for node in self.nodes() {
                let image = images.join(format!("{node}.img"));
                let data = path.join("data/nodes").join(node.to_string());
                disks.push((node, LossyDisk::make(kind, &image, &data, bytes)?));
            }
        }
        let shims = self.shimmed.then(|| Shims::create(&path.join("shim"), self.nodes()));
        let cluster = DevCluster {
            atoll,
            root: path,
            keeper: Mutex::new(Some(root)),
            dev: Mutex::new(None),
            options: self,
            disks,
            shims: shims.transpose()?,
            began: Instant::now(),
        };
        cluster.start_dev()?;
        let ready = cluster.ready();
        for (node, disk) in &cluster.disks {
            // Where `atoll dev` keeps the data of a node is its own affair: it tells, we check.
            let data = ready.data(*node).map(Path::canonicalize).transpose()?;
            ensure!(
                data.as_deref() == Some(disk.path()),
                "{node} keeps its data in {data:?}, not on the disk made for it at {}",
                disk.path().display()
            );
        }
        if let Some(shims) = &cluster.shims {
            shims.ensure_loaded(&cluster)?;
        }
        Ok(cluster)
    }
}

/// A running cluster.
pub struct DevCluster {
    atoll: PathBuf,
    root: PathBuf,
    /// Removes the data when dropped; taken when it must stay.
    keeper: Mutex<Option<TempDir>>,
    dev: Mutex<Option<Child>>,
    options: DevBuilder,
    disks: Vec<(Node, LossyDisk)>,
    shims: Option<Shims>,
    began: Instant,
}

impl DevCluster {
    /// A cluster with the defaults of `atoll dev`, but with as many masters as [`MASTERS`] says.
    pub fn builder() -> DevBuilder {
        let masters = std::env::var(MASTERS).ok().and_then(|text| text.parse().ok());
        DevBuilder {
            atoll: None,
            counts: masters.map(|masters| ("--masters", masters)).into_iter().collect(),
            mount: false,
            seed: 0,
            repeat: None,
            environment: Vec::new(),
            lossy: None,
            shimmed: false,
        }
    }

    // ---- where things are

    /// The binary under test.
    pub fn binary(&self) -> &Path {
        &self.atoll
    }

    /// The cluster's `--data`.
    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// A folder for the test's own files, removed with the rest.
    pub fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    /// Where it is mounted, if it is.
    pub fn mount(&self) -> PathBuf {
        self.root.join("mnt")
    }

    /// The disks of its nodes, if they have disks of their own.
    pub fn disks(&self) -> &[(Node, LossyDisk)] {
        &self.disks
    }

    /// The machines of its nodes, if their clocks and disks can be made odd.
    pub fn shims(&self) -> Option<&Shims> {
        self.shims.as_ref()
    }

    /// What `atoll dev` and its children wrote to the terminal.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.root.join("dev.log")).unwrap_or_default()
    }

    fn ready_path(&self) -> PathBuf {
        self.root.join("ready.json")
    }

    /// The ready file, as it is now.
    ///
    /// # Panics
    /// When it is not there: a cluster that was started has one.
    pub fn ready(&self) -> Ready {
        Ready::load(&self.ready_path()).expect("a started cluster has a ready file")
    }

    /// The edges that answer visitors: name and address of HTTPS.
    pub fn edges(&self) -> Vec<(String, SocketAddr)> {
        self.ready().visitor_edges().map(|edge| (edge.name.clone(), edge.https)).collect()
    }

    /// A line of the test's story, with seconds since its start; shown when the test fails.
    pub fn tell(&self, what: impl std::fmt::Display) {
        eprintln!("{:7.2} s  {what}", self.began.elapsed().as_secs_f64());
    }

    // ---- the life of the whole

    /// The process of `atoll dev`.
    pub fn dev_pid(&self) -> Option<u32> {
        self.dev.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(Child::id)
    }

    /// Starts `atoll dev` (again) and waits until it serves.
    ///
    /// # Errors
    /// When it stops, or is not ready in time; with the end of its log.
    pub fn start_dev(&self) -> Result<()> {
        self.launch_dev()?;
        let ready = self.ready_path();
        let waited = wait::until("ready file", START_TIMEOUT, || {
            let mut dev = self.dev.lock().unwrap_or_else(PoisonError::into_inner);
            let child = dev.as_mut().context("`atoll dev` does not run")?;
            if let Some(status) = child.try_wait()? {
                return Ok(Some(Err(status)));
            }
            Ok(ready.exists().then_some(Ok(())))
        });
        match waited {
            Ok(Ok(())) => {
                self.tell("atoll dev serves");
                Ready::load(&ready)?;
                Ok(())
            }
            Ok(Err(status)) => bail!("`atoll dev` ended with {status}:\n{}", self.log_end()),
            Err(error) => bail!("{error:#}:\n{}", self.log_end()),
        }
    }

    /// Starts `atoll dev` (again) and leaves it to itself.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch_dev(&self) -> Result<()> {
        self.tell("atoll dev starts");
        let ready = self.ready_path();
        if ready.exists() {
            std::fs::remove_file(&ready)?;
        }
        let log = process::log_file(&self.root.join("dev.log"))?;
        let mut command = self.command();
        command.arg("dev").arg("--data").arg(self.data()).arg("--ready").arg(&ready);
        for (flag, count) in &self.options.counts {
            command.arg(flag).arg(count.to_string());
        }
        if self.options.mount {
            command.arg("--mount").arg(self.mount());
        }
        command.envs(self.options.environment.iter().cloned());
        command.envs(self.shims.iter().flat_map(Shims::environment));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("{}", self.atoll.display()))?;
        *self.dev.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        Ok(())
    }

    fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Stops the cluster with SIGTERM, within the promised time, and checks that nothing is left.
    ///
    /// # Errors
    /// When it takes longer, exits with another code than 0, or leaves processes.
    pub fn stop_dev(&self) -> Result<()> {
        self.tell("atoll dev is asked to stop");
        let Some(mut child) = self.dev.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Ok(());
        };
        process::signal(child.id(), Signal::SIGTERM)?;
        let ended = process::wait_child(&mut child, STOP_TIMEOUT);
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        let left = self.processes();
        self.kill_rest()?;
        let status = ended.with_context(|| format!("SIGTERM:\n{}", self.log_end()))?;
        ensure!(left.is_empty(), "left running after the stop: {left:?}");
        ensure!(status.success(), "after SIGTERM: {status}\n{}", self.log_end());
        Ok(())
    }

    /// kill -9 of `atoll dev` itself. Its children must then stop by themselves.
    ///
    /// # Errors
    /// When one goes on running.
    pub fn kill9_dev(&self) -> Result<()> {
        self.tell("kill -9 of atoll dev");
        let child = self.dev.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut child = child.context("`atoll dev` does not run")?;
        child.kill()?;
        child.wait()?;
        let gone = wait::holds("children stop by themselves", STOP_TIMEOUT, || {
            self.processes().is_empty()
        });
        let left = self.processes();
        self.kill_rest()?;
        gone.with_context(|| format!("left running: {left:?}"))
    }

    /// kill -9 of everything at once; waits until it is gone.
    ///
    /// # Errors
    /// When something survives.
    pub fn kill9_all(&self) -> Result<()> {
        self.tell("kill -9 of everything");
        let child = self.dev.lock().unwrap_or_else(PoisonError::into_inner).take();
        // First, so that it looks at none of the other ends.
        if let Some(mut child) = child {
            child.kill()?;
            child.wait()?;
        }
        self.kill_rest()
    }

    /// The end of a test that passed: stops, checks, removes.
    ///
    /// # Errors
    /// As [`DevCluster::stop_dev`].
    pub fn finish(self) -> Result<()> {
        self.stop_dev()?;
        self.detach_mount();
        self.disks.iter().try_for_each(|(_, disk)| disk.unmount())?;
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(keeper) = keeper {
            keeper.close().context("remove the cluster's data")?;
        }
        Ok(())
    }

    /// Processes of this cluster, other than the caller.
    pub fn processes(&self) -> Vec<Process> {
        let own = std::process::id();
        process::naming(&self.data()).into_iter().filter(|found| found.pid != own).collect()
    }

    fn kill_rest(&self) -> Result<()> {
        wait::holds("end of the rest", NODE_TIMEOUT, || {
            let rest = self.processes();
            for found in &rest {
                drop(process::signal(found.pid, Signal::SIGKILL));
            }
            rest.is_empty()
        })
    }

    fn detach_mount(&self) {
        let mount = self.mount();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        if mounts.contains(&format!(" {} ", mount.display())) {
            // Gone meanwhile is as good.
            nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH).ok();
        }
    }

    // ---- the life of one node

    /// The process of a node; `None` when it does not run.
    pub fn pid(&self, node: Node) -> Option<u32> {
        let running = self.processes();
        let written = self.ready().pid(node);
        if let Some(found) = running.iter().find(|process| Some(process.pid) == written) {
            return Some(found.pid);
        }
        // Started again since: found by its name on the command line.
        let name = node.to_string();
        let role = match node.role {
            NodeRole::Shield => "edge",
            _ => node.role_word(),
        };
        running
            .iter()
            .find(|process| {
                let arguments = &process.arguments;
                arguments.get(1).is_some_and(|verb| verb == role)
                    && arguments.iter().any(|word| names(word, &name))
            })
            .map(|process| process.pid)
    }

    fn running(&self, node: Node) -> Result<u32> {
        self.pid(node).with_context(|| format!("{node} does not run"))
    }

    fn wait_gone(&self, node: Node, pid: u32) -> Result<()> {
        let what = format!("end of {node}");
        // Also no zombie any more: `atoll dev` knows that it has ended.
        wait::holds(&what, NODE_TIMEOUT, || process::state(pid).is_none())
    }

    /// SIGKILL; waits until it is gone.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill9(&self, node: Node) -> Result<()> {
        self.tell(format_args!("kill -9 of {node}"));
        let pid = self.running(node)?;
        process::signal(pid, Signal::SIGKILL)?;
        self.wait_gone(node, pid)
    }

    /// `atoll dev stop`; waits until it is gone.
    ///
    /// # Errors
    /// When it does not stop.
    pub fn stop_node(&self, node: Node) -> Result<()> {
        self.tell(format_args!("{node} is asked to stop"));
        let pid = self.running(node)?;
        self.dev_verb("stop", node)?;
        self.wait_gone(node, pid)
    }

    /// `atoll dev start`; waits until it is ready.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_node(&self, node: Node) -> Result<()> {
        self.tell(format_args!("{node} starts"));
        self.dev_verb("start", node)?;
        let what = format!("{node} ready");
        wait::until(&what, NODE_TIMEOUT, || {
            if self.pid(node).is_none() {
                return Ok(None);
            }
            match self.ready().edge(node) {
                Some(edge) => {
                    let (status, _) = crate::metrics::plain_get(edge.admin, "/readyz")?;
                    Ok((status == 200).then_some(()))
                }
                None => Ok(Some(())),
            }
        })
    }

    /// kill -9 and start.
    ///
    /// # Errors
    /// When it does not come back.
    pub fn restart(&self, node: Node) -> Result<()> {
        self.kill9(node)?;
        self.start_node(node)
    }

    /// SIGSTOP.
    ///
    /// # Errors
    /// When it does not run.
    pub fn freeze(&self, node: Node) -> Result<()> {
        self.tell(format_args!("{node} freezes"));
        process::signal(self.running(node)?, Signal::SIGSTOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When it does not run.
    pub fn thaw(&self, node: Node) -> Result<()> {
        self.tell(format_args!("{node} goes on"));
        process::signal(self.running(node)?, Signal::SIGCONT)
    }

    fn dev_verb(&self, verb: &str, node: Node) -> Result<()> {
        let mut command = self.command();
        command.args(["dev", verb, node.role_word(), &node.id.to_string(), "--data"]);
        command.arg(self.data());
        process::run(command, NODE_TIMEOUT)?.ok()?;
        Ok(())
    }

    // ---- as a user

    /// The binary with the environment of this cluster.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.atoll);
        let home = self.root.join("home");
        command.env("HOME", &home).env("XDG_CACHE_HOME", home.join("cache"));
        command.env("XDG_CONFIG_HOME", home.join("config"));
        command.current_dir(self.work());
        if let Ok(ready) = Ready::load(&self.ready_path()) {
            command.env("ATOLL_CONFIG", ready.config);
        }
        command
    }

    /// Runs a verb to its end, whatever that is.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn atoll<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Result<Outcome> {
        let mut command = self.command();
        command.args(arguments);
        process::run(command, COMMAND_TIMEOUT)
    }

    /// Starts a verb.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_atoll<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Result<Running> {
        let mut command = self.command();
        command.args(arguments);
        Running::start(command)
    }

    /// Runs a verb with `--json` and returns its last object.
    ///
    /// # Errors
    /// When it does not exit with 0.
    pub fn json<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Result<Value> {
        let mut command = self.command();
        command.args(arguments).arg("--json");
        process::run(command, COMMAND_TIMEOUT)?.ok()?.last()
    }

    /// Deploys a folder and returns the final object.
    ///
    /// # Errors
    /// When it does not exit with 0.
    pub fn deploy(&self, folder: &Path, site: &str) -> Result<Value> {
        let folder = folder.to_str().context("a folder with a plain name")?;
        self.tell(format_args!("deploy of {site}"));
        self.json(&["deploy", folder, "--site", site, "--create"])
    }

    /// The client library, connected.
    ///
    /// # Errors
    /// When there is no master.
    pub async fn client(&self) -> Result<atoll_client::Cluster> {
        let config = atoll_client::ClientConfig::load(&self.ready().config)?;
        Ok(Box::pin(atoll_client::Cluster::connect(&config, "testbed")).await?)
    }

    /// The authority of the edges' certificates.
    ///
    /// # Errors
    /// When the file is not as it should be.
    pub fn trust(&self) -> Result<Trust> {
        Trust::load(&self.ready().ca)
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
        Connection::open(version, edge, &host(site), &self.trust()?).await
    }

    /// Metrics of an edge or shield.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn scrape(&self, node: Node) -> Result<Scrape> {
        let ready = self.ready();
        let edge = ready.edge(node).with_context(|| format!("there is no {node}"))?;
        Scrape::of(edge.admin)
    }

    /// A metric of an edge or shield, summed over its labels.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metric(&self, node: Node, name: &str) -> Result<f64> {
        Ok(self.scrape(node)?.sum(name))
    }

    /// Waits until `atoll status` says that all is well.
    ///
    /// # Errors
    /// When it does not in time, with what it says instead.
    pub fn wait_healthy(&self) -> Result<()> {
        self.tell("waiting until all is well");
        wait::until("a healthy cluster", NODE_TIMEOUT, || {
            let outcome = self.atoll(&["status", "--json"])?;
            if outcome.code == Some(0) { Ok(Some(())) } else { bail!("{outcome}") }
        })?;
        self.tell("all is well");
        Ok(())
    }

    /// Checks that every node and `atoll dev` run and every edge is ready.
    ///
    /// # Errors
    /// When one does not.
    pub fn ensure_all_run(&self) -> Result<()> {
        let ready = self.ready();
        for node in ready.nodes() {
            ensure!(self.pid(node).is_some(), "{node} has died:\n{}", self.node_log(node));
        }
        for EdgeReady { name, admin, .. } in &ready.edges {
            let (status, body) = crate::metrics::plain_get(*admin, "/readyz")?;
            ensure!(status == 200, "{name} is not ready: {status} {body}");
        }
        Ok(())
    }

    /// The last lines of a node's log file.
    pub fn node_log(&self, node: Node) -> String {
        let name = node.to_string();
        let mut found = String::new();
        let folders = [self.data(), self.data().join("logs"), self.data().join(&name)];
        for folder in folders {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let file = entry.file_name().to_string_lossy().into_owned();
                if file.ends_with(".log") && (names(&file, &name) || file == "log") {
                    let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
                    let lines: Vec<&str> = text.lines().collect();
                    let end = &lines[lines.len().saturating_sub(30)..];
                    found.push_str(&format!("--- {file}\n{}\n", end.join("\n")));
                }
            }
        }
        found
    }
}

/// Whether a word holds the name of a node and not that of a longer number.
fn names(word: &str, name: &str) -> bool {
    word.match_indices(name)
        .any(|(at, _)| !word[at + name.len()..].starts_with(|next: char| next.is_ascii_digit()))
}

/// The host name of a site on a development cluster.
pub fn host(site: &str) -> String {
    format!("{site}.localhost")
}

impl Drop for DevCluster {
    fn drop(&mut self) {
        let Some(keeper) = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return; // finished
        };
        let path = keeper.keep();
        eprintln!("the cluster's data and logs stay in {}", path.display());
        if let Some((_, disk)) = self.disks.first() {
            let image = disk.image().display();
            eprintln!("the nodes' disks are images, such as {image}: mount -o loop,ro IMAGE DIR");
        }
        let repeat = self.options.repeat.clone();
        let repeat = repeat.unwrap_or_else(|| seed::command_to_repeat(self.options.seed));
        eprintln!("to repeat: {repeat}");
        let child = self.dev.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut child) = child {
            drop(process::signal(child.id(), Signal::SIGTERM));
            if process::wait_child(&mut child, STOP_TIMEOUT).is_err() {
                drop(child.kill());
                drop(child.wait());
            }
        }
        if let Err(error) = self.kill_rest() {
            eprintln!("{error:#}: {:?}", self.processes());
        }
        self.detach_mount();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_not_the_start_of_another() {
        assert!(names("/data/edge-1/config.toml", "edge-1"));
        assert!(!names("/data/edge-10/config.toml", "edge-1"));
        assert!(names("edge-10 edge-1.toml", "edge-1"));
    }
}
