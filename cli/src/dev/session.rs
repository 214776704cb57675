//! One run of a local cluster: brought up, looked after, taken down.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use atoll_client::Cluster;
use atoll_net::Shutdown;
use atoll_net::masters::KNOWN_WITHIN;
use atoll_proto::masters::MastersOp;
use futures_util::future::join_all;
use nix::sys::signal::Signal;
use tokio::sync::mpsc;

use super::children::{self, ChildSpec, Exit, Running};
use super::control::{self, Order, Ordered, Outcome};
use super::layout::Layout;
use super::plan::{Kind, NodeName};
use super::prepare::{self, Prepared};
use super::ready::{Process, ReadyObject, local};
use super::{ZONE, probe, show};
use crate::commands::dev::DevArgs;
use crate::commands::node::masters;
use crate::connect::Context;
use crate::report::Failure;

/// A process has this long to be ready.
const READY: Duration = Duration::from_secs(60);
/// The cluster has this long to be healthy once all processes are ready.
const SERVING: Duration = Duration::from_secs(60);
/// A process that is told to stop has this long; all of them together too.
const STOP: Duration = Duration::from_secs(8);
/// The part of it that the mount may use to store what was written, before its cluster goes.
const STOP_MOUNT: Duration = Duration::from_secs(3);
/// With `--restart`: pause before a process that ended is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// Between two questions to a process that is starting.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// The name of the mount's process.
const MOUNT: &str = "mount";
/// Ends of children waiting to be looked at.
const EXITS: usize = 256;

/// A cluster and its processes.
pub(crate) struct Session<'a> {
    context: &'a Context,
    layout: Layout,
    args: DevArgs,
    prepared: Prepared,
    mount: Option<PathBuf>,
    shutdown: Shutdown,
    children: BTreeMap<String, Running>,
    exits: mpsc::Receiver<Exit>,
    tell_exit: mpsc::Sender<Exit>,
    orders: mpsc::Receiver<Ordered>,
}

/// Waits for, and in the end ends, processes of an `atoll dev` that was killed.
pub(crate) async fn settle_leftovers(layout: &Layout) {
    let run = layout.data().join("run");
    let mark = layout.data().display().to_string();
    let Ok(entries) = std::fs::read_dir(run) else {
        return;
    };
    let files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    let pids = files.iter().filter(|path| path.extension().is_some_and(|ext| ext == "pid"));
    join_all(pids.map(|path| children::settle_leftover(path, &mark))).await;
}

impl<'a> Session<'a> {
    /// With all files in place, and nothing started.
    pub(crate) fn new(
        context: &'a Context,
        layout: Layout,
        args: DevArgs,
        prepared: Prepared,
        shutdown: Shutdown,
    ) -> Result<Self, Failure> {
        let absolute = |dir: &PathBuf| std::path::absolute(dir).map_err(Failure::file("find", dir));
        let mount = args.mount.as_ref().map(absolute).transpose()?;
        // Not `exists`: that fails on a mount whose process is gone.
        if let Some(dir) = &mount
            && std::fs::symlink_metadata(dir)
                .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
        {
            std::fs::create_dir_all(dir).map_err(Failure::file("make", dir))?;
        }
        let (tell_exit, exits) = mpsc::channel(EXITS);
        let orders = control::listen(&layout)?;
        let children = BTreeMap::new();
        Ok(Self {
            context,
            layout,
            args,
            prepared,
            mount,
            shutdown,
            children,
            exits,
            tell_exit,
            orders,
        })
    }

    /// Until it is told to stop, whatever it is doing then. Afterwards the processes are still
    /// there: see [`Session::stop_all`].
    pub(crate) async fn live(&mut self) -> Result<(), Failure> {
        let shutdown = self.shutdown.clone();
        tokio::select! {
            () = shutdown.wait() => Ok(()),
            result = Box::pin(self.serve()) => match result {
                Err(_) if shutdown.is_triggered() => Ok(()),
                other => other,
            },
        }
    }

    /// Until it fails. May be dropped at any point: every process that was started is in the list.
    async fn serve(&mut self) -> Result<(), Failure> {
        let started = Instant::now();
        Box::pin(self.bring_up()).await?;
        let url = self.deploy_site().await?;
        self.write_ready()?;
        let ready = self.ready_object();
        let took = started.elapsed();
        match show::summary(self.context, &self.layout, &ready, url.as_deref(), took) {
            // The cluster does not need anybody to read this.
            Ok(()) | Err(Failure::StdoutClosed) => {}
            Err(failure) => return Err(failure),
        }
        loop {
            tokio::select! {
                Some(exit) = self.exits.recv() => self.look_at(exit).await,
                Some((order, answer)) = self.orders.recv() => {
                    let outcome = self.carry_out(order).await;
                    // Whoever asked may have gone.
                    drop(answer.send(outcome));
                }
            }
        }
    }

    /// Stops every process, the mount first, and returns within ten seconds.
    pub(crate) async fn stop_all(&mut self) {
        if let Some(path) = &self.args.ready {
            // It is not there when the cluster never served.
            drop(std::fs::remove_file(path));
        }
        let until = Instant::now() + STOP;
        if let Some(mount) = self.children.remove(MOUNT) {
            mount.stop(STOP_MOUNT).await;
        }
        let left = until.saturating_duration_since(Instant::now());
        let children = std::mem::take(&mut self.children);
        join_all(children.values().map(|child| child.stop(left))).await;
    }

    async fn bring_up(&mut self) -> Result<(), Failure> {
        let names = self.prepared.names.clone();
        let (masters, others): (Vec<_>, Vec<_>) =
            names.into_iter().partition(|name| name.kind == Kind::Master);
        for group in [masters, others] {
            let specs: Vec<ChildSpec> = group.iter().map(|name| self.spec(*name)).collect();
            for spec in &specs {
                self.start(spec)?;
            }
            Box::pin(self.take_in_added(&group)).await?;
            let waits = specs.iter().map(|spec| self.until_ready(spec));
            for ready in join_all(waits).await {
                ready?;
            }
        }
        let edges = self.prepared.ports.iter().filter(|(name, _)| name.kind == Kind::Edge);
        let https: Vec<u16> = edges.filter_map(|(_, ports)| ports.https).collect();
        let serving = probe::until_serving(&self.layout, &https, SERVING, &self.shutdown);
        drop(Box::pin(serving).await?);
        if self.mount.is_some() {
            let spec = self.mount_spec();
            self.start(&spec)?;
            self.until_ready(&spec).await?;
        }
        Ok(())
    }

    fn start(&mut self, spec: &ChildSpec) -> Result<(), Failure> {
        let running = children::start(spec, self.tell_exit.clone())?;
        self.children.insert(spec.name.clone(), running);
        Ok(())
    }

    async fn until_ready(&self, spec: &ChildSpec) -> Result<(), Failure> {
        let Some(running) = self.children.get(&spec.name) else {
            return Ok(());
        };
        children::ready(spec, running, READY, &self.shutdown).await
    }

    fn spec(&self, name: NodeName) -> ChildSpec {
        let verb = match name.kind {
            Kind::Master => "master",
            Kind::Chunkserver => "chunkserver",
            Kind::Edge | Kind::Shield => "edge",
        };
        let config = self.layout.config(name).into_os_string();
        let args = vec![verb.into(), "--config".into(), config, "--lifeline".into()];
        self.spec_of(name.to_string(), args)
    }

    fn mount_spec(&self) -> ChildSpec {
        let mut args: Vec<OsString> = vec![MOUNT.into(), "--config".into()];
        args.push(self.layout.client_config().into());
        args.extend(["--foreground".into(), "--lifeline".into(), "--ready-file".into()]);
        args.push(self.layout.ready(MOUNT).into());
        args.push("--".into());
        args.extend(self.mount.clone().map(OsString::from));
        self.spec_of(MOUNT.to_owned(), args)
    }

    fn spec_of(&self, name: String, args: Vec<OsString>) -> ChildSpec {
        ChildSpec {
            args,
            log: self.layout.log(&name),
            ready: self.layout.ready(&name),
            pid_file: self.layout.pid(&name),
            name,
        }
    }

    /// A process has ended that nobody stopped.
    async fn look_at(&mut self, exit: Exit) {
        let current = self.children.get(&exit.name).is_some_and(|child| child.pid == exit.pid);
        if !current {
            return;
        }
        self.children.remove(&exit.name);
        let log = self.layout.log(&exit.name);
        let out = &self.context.out;
        out.note(format_args!("atoll: {} {}; see {}", exit.name, exit.how, log.display()));
        if let Err(failure) = self.write_ready() {
            out.note(format_args!("atoll: {failure}"));
        }
        if !self.args.restart {
            return;
        }
        tokio::time::sleep(RESTART_PAUSE).await;
        let spec = match exit.name.parse() {
            Ok(name) => self.spec(name),
            Err(_) => self.mount_spec(),
        };
        match self.start(&spec).and_then(|()| self.write_ready()) {
            Ok(()) => self.context.out.note(format_args!("atoll: started {} again", exit.name)),
            Err(failure) => self.context.out.note(format_args!("atoll: {failure}")),
        }
    }

    async fn carry_out(&mut self, order: Order) -> Outcome {
        let result = match order {
            Order::Start { name } => self.start_one(&name).await,
            Order::Stop { name, kill } => self.stop_one(&name, kill).await,
            Order::Add { zone } => self.add_one(zone).await,
            Order::AddMaster => Box::pin(self.add_master()).await,
            Order::Forget { name } => self.forget_one(&name).await,
        };
        match result {
            Ok(message) => Outcome { ok: true, message },
            Err(failure) => Outcome { ok: false, message: failure.to_string() },
        }
    }

    fn known(&self, name: &str) -> Result<NodeName, Failure> {
        let parsed = name.parse().ok().filter(|name| self.prepared.ports.contains_key(name));
        parsed.ok_or_else(|| {
            let all: Vec<String> = self.prepared.names.iter().map(NodeName::to_string).collect();
            Failure::Failed(format!("there is no {name}; there are {}", all.join(", ")))
        })
    }

    async fn start_one(&mut self, name: &str) -> Result<String, Failure> {
        let spec = self.spec(self.known(name)?);
        if self.children.get(name).is_some_and(|child| child.ended().is_none()) {
            return Err(Failure::Failed(format!("{name} runs already")));
        }
        self.start(&spec)?;
        // A master alone is not ready until others run, and they could not be started meanwhile.
        if self.lacks_masters(name) {
            self.write_ready()?;
            return Ok(format!("started {name}; it needs more masters before it serves"));
        }
        let ready = self.until_ready(&spec).await;
        self.write_ready()?;
        ready.map(|()| format!("started {name}"))
    }

    /// Whether this is a master, and too few of them run to have a leader.
    fn lacks_masters(&self, name: &str) -> bool {
        let masters = self.prepared.names.iter().filter(|name| name.kind == Kind::Master);
        let (all, run) = masters.fold((0, 0), |(all, run), master| {
            (all + 1, run + usize::from(self.pid(*master) != 0))
        });
        name.starts_with(Kind::Master.as_str()) && run * 2 <= all
    }

    async fn add_one(&mut self, zone: Option<String>) -> Result<String, Failure> {
        let kind = Kind::Chunkserver;
        let name = prepare::add(&self.layout, &mut self.prepared, kind, zone)?;
        let zone = self.prepared.record.zone(name);
        self.start_one(&name.to_string()).await?;
        Ok(format!("added {name} in zone {zone}"))
    }

    async fn add_master(&mut self) -> Result<String, Failure> {
        let cluster = self.cluster().await?;
        let name = prepare::add(&self.layout, &mut self.prepared, Kind::Master, None)?;
        let spec = self.spec(name);
        self.start(&spec)?;
        self.write_ready()?;
        let joined = Box::pin(self.join(&cluster, name, &spec)).await;
        if let Err(failure) = joined {
            // One that belongs to nobody would never be ready at the next start.
            let left = cluster.change_masters(MastersOp::Remove { id: name.id() }).await;
            if let Err(error) = left {
                self.context.out.note(format_args!("atoll: {name} is left as it is: {error}"));
            }
            if self.children.contains_key(&name.to_string()) {
                self.stop_one(&name.to_string(), false).await?;
            }
            prepare::forget(&self.layout, &mut self.prepared, name)?;
            self.write_ready()?;
            return Err(failure);
        }
        self.write_ready()?;
        Ok(format!("added {name}"))
    }

    /// Gives those masters their votes that were added when this session ended: without one they would
    /// never be ready.
    async fn take_in_added(&self, group: &[NodeName]) -> Result<(), Failure> {
        let added = &self.prepared.record.added;
        let added =
            |name: &&NodeName| name.kind == Kind::Master && added.contains_key(&name.to_string());
        let added: Vec<NodeName> = group.iter().filter(added).copied().collect();
        if added.is_empty() {
            return Ok(());
        }
        let cluster = self.cluster().await?;
        let known = cluster.masters().await?;
        let votes = |name: &NodeName| known.iter().any(|it| it.id == name.id() && it.voter);
        for name in added.iter().filter(|name| !votes(name)) {
            Box::pin(self.join(&cluster, *name, &self.spec(*name))).await?;
        }
        Ok(())
    }

    /// Waits until a new master has a vote.
    async fn join(
        &self,
        cluster: &Cluster,
        name: NodeName,
        spec: &ChildSpec,
    ) -> Result<(), Failure> {
        // It is not ready before it belongs to the others.
        let addr = local(self.prepared.ports[&name].quic);
        self.until_answers(cluster, name, addr).await?;
        masters::take_in(self.context, cluster, name.id(), None, None).await?;
        self.until_ready(spec).await
    }

    /// Adds a master once it can be reached.
    async fn until_answers(
        &self,
        cluster: &Cluster,
        name: NodeName,
        addr: SocketAddr,
    ) -> Result<(), Failure> {
        let until = Instant::now() + READY;
        let op = MastersOp::Add { id: name.id(), addr };
        loop {
            let ended = self.children.get(&name.to_string()).is_none_or(|it| it.ended().is_some());
            match cluster.change_masters(op.clone()).await {
                Ok(_) => return Ok(()),
                Err(error) if ended || Instant::now() > until => return Err(error.into()),
                Err(_) => tokio::time::sleep(ASK_AGAIN).await,
            }
        }
    }

    async fn cluster(&self) -> Result<Cluster, Failure> {
        let config = atoll_client::ClientConfig::load(&self.layout.client_config())?;
        crate::connect::connect(&config).await
    }

    async fn forget_one(&mut self, name: &str) -> Result<String, Failure> {
        let known = self.known(name)?;
        match known.kind {
            Kind::Chunkserver => {}
            Kind::Master => {
                let op = MastersOp::Remove { id: known.id() };
                Box::pin(self.cluster()).await?.change_masters(op).await?;
                // Those that know no other yet still hear of the others from it.
                tokio::time::sleep(KNOWN_WITHIN).await;
            }
            Kind::Edge | Kind::Shield => {
                return Err(Failure::Failed(format!(
                    "{name} is neither a master nor a chunkserver: only those can be taken out of \
                     a cluster that runs"
                )));
            }
        }
        if self.children.contains_key(name) {
            self.stop_one(name, false).await?;
        }
        prepare::forget(&self.layout, &mut self.prepared, known)?;
        self.write_ready()?;
        let data = self.layout.node(known);
        Ok(format!("{name} is not started again; its data stays in {}", data.display()))
    }

    async fn stop_one(&mut self, name: &str, kill: bool) -> Result<String, Failure> {
        self.known(name)?;
        let child = self.children.get(name).filter(|child| child.ended().is_none());
        let Some(child) = child else {
            return Err(Failure::Failed(format!("{name} does not run")));
        };
        let done = if kill {
            child.signal(Signal::SIGKILL).await;
            child.wait(STOP).await;
            "killed"
        } else {
            child.stop(STOP).await;
            "stopped"
        };
        // Out of the list before its end is looked at, which is so not taken for an accident; and
        // not sooner, so that it is stopped with the others if this is interrupted.
        self.children.remove(name);
        self.write_ready()?;
        Ok(format!("{done} {name}"))
    }

    /// The number of its process; 0 when it does not run.
    fn pid(&self, name: NodeName) -> u32 {
        let child = self.children.get(&name.to_string());
        child.filter(|child| child.ended().is_none()).map_or(0, |child| child.pid)
    }

    fn ready_object(&self) -> ReadyObject {
        let process = |name: &NodeName| Process {
            name: *name,
            ports: self.prepared.ports[name],
            pid: self.pid(*name),
            data: self.layout.node(*name),
            zone: self.prepared.record.zone(*name),
        };
        ReadyObject::new(
            self.layout.client_config(),
            self.layout.web_ca().join("ca.pem"),
            ZONE,
            self.mount.clone(),
            self.prepared.names.iter().map(process).collect(),
        )
    }

    fn write_ready(&self) -> Result<(), Failure> {
        match &self.args.ready {
            Some(path) => self.ready_object().write(path),
            None => Ok(()),
        }
    }

    /// Deploys the directory of the command line, if there is one; returns its URL.
    async fn deploy_site(&self) -> Result<Option<String>, Failure> {
        let Some(dir) = &self.args.site_dir else {
            return Ok(None);
        };
        let cluster = self.cluster().await?;
        show::deploy(self.context, &cluster, dir).await.map(Some)
    }
}
