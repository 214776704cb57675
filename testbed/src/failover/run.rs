//! Carries a plan out on a real cluster.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use atoll_client::{ClientConfig, Cluster};
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::namespace::{Caller, NamespaceOp, NamespaceReply};
use atoll_proto::publish::PublishEvent;
use atoll_proto::{ByteName, DeployId, InodeId, Seq, limits};
use nix::sys::signal::Signal;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::clients::{Client, Repeats, Stage};
use super::history::{Deploy, History};
use super::{Hurt, Plan, Round, micros};
use crate::cluster::DevCluster;
use crate::faults::Fault;
use crate::proxy::MasterMesh;
use crate::ready::Node;
use crate::{process, seed, wait};

const SITE: &str = "race";
/// Deploys the alias moves between.
const DEPLOYS: usize = 4;
/// Directories of a round.
const DIRECTORIES: usize = 3;
/// Clients that the leader can be cut off from; one of them sends every request three times.
const CROWD: usize = 4;
/// Until a change is acknowledged again.
const PROGRESS: Duration = Duration::from_secs(60);
/// Until every client has its last answer: a request is given up after half of it.
const LAST_ANSWERS: Duration = Duration::from_secs(70);
/// For one question to the masters.
const ASK: Duration = Duration::from_secs(20);
/// How long clients go on once all is well.
const AFTERWARDS: Duration = Duration::from_millis(300);

/// What a run came to.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Rounds, all of them right.
    pub rounds: usize,
    /// Operations of clients.
    pub operations: usize,
    /// Those of them whose outcome stayed unknown to the client.
    pub unknown: usize,
    /// By fault: how long it took from there to the next acknowledged change that was asked for
    /// after it.
    pub gaps: BTreeMap<Hurt, Vec<Duration>>,
    /// Terms that began in rounds without a fault: elections that nothing called for.
    pub needless_terms: u64,
    /// How long each round took.
    pub times: Vec<Duration>,
}

impl Report {
    /// The times from a fault that unseats a leader to the next acknowledged change.
    pub fn failovers(&self) -> Vec<Duration> {
        let gaps = self.gaps.iter().filter(|(hurt, _)| hurt.unseats());
        gaps.flat_map(|(_, times)| times.iter().copied()).collect()
    }
}

/// Carries a plan out. `binary` is the one under test, if not the one beside this executable. Not
/// for asynchronous code.
///
/// # Errors
/// As [`carry_out`].
pub fn run(plan: &Plan, binary: Option<&Path>) -> Result<Report> {
    carry_out(plan, &plan.rounds(), binary).with_context(|| format!("to repeat: {plan}"))
}

/// The same with these rounds instead of the plan's own.
///
/// # Errors
/// When no order of the operations explains what clients were answered, when anything acknowledged is
/// missing or there twice, or when the masters do not come back; with the command that repeats it.
pub fn carry_out(plan: &Plan, rounds: &[Round], binary: Option<&Path>) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("a runtime")?;
    Box::new(Run::start(plan, runtime, binary)?).carry_out(rounds)
}

struct Run {
    runtime: Runtime,
    cluster: DevCluster,
    mesh: MasterMesh,
    /// Asks the masters directly, for what the test itself wants to know.
    eyes: Cluster,
    /// The last one is that which is cut off together with a leader.
    clients: Vec<Client>,
    deploys: Vec<DeployId>,
    followed: Seq,
    report: Report,
    began: Instant,
}

type Acting = JoinHandle<(Client, Result<()>)>;

impl Run {
    fn start(plan: &Plan, runtime: Runtime, binary: Option<&Path>) -> Result<Self> {
        let mut builder = DevCluster::builder()
            .masters(plan.masters)
            .chunkservers(1)
            .edges(1)
            .shields(0)
            .seed(plan.seed)
            .repeat(&plan.to_string());
        if let Some(binary) = binary {
            builder = builder.binary(binary);
        }
        let cluster = builder.start()?;
        let mesh = runtime.block_on(MasterMesh::open(&cluster, plan.seed))?;
        mesh.lead(&cluster)?;
        let eyes = runtime.block_on(cluster.client())?;
        let deploys = deploys(&cluster)?;
        let config = ClientConfig::load(&cluster.ready().config)?;
        let mut clients = Vec::new();
        for number in 0..=CROWD {
            let addrs = if number < CROWD { mesh.crowd() } else { mesh.captive() };
            let config = ClientConfig { masters: addrs, ..config.clone() };
            let connect = || async { Cluster::connect(&config, "failover").await };
            let client = runtime.block_on(async {
                let cluster = connect().await?;
                let repeats = match number {
                    0 => Some(Repeats::open(&cluster, connect().await?).await?),
                    _ => None,
                };
                let rng = seed::rng(plan.seed);
                anyhow::Ok(Client { number: number + 1, cluster, repeats, rng })
            })?;
            clients.push(client);
        }
        Ok(Self {
            runtime,
            cluster,
            mesh,
            eyes,
            clients,
            deploys,
            followed: Seq(0),
            report: Report::default(),
            began: Instant::now(),
        })
    }

    fn carry_out(mut self: Box<Self>, rounds: &[Round]) -> Result<Report> {
        for (number, round) in rounds.iter().enumerate() {
            let began = Instant::now();
            let text = serde_json::to_string(round)?;
            self.cluster.tell(format_args!("round {number}: {text}"));
            self.round(number, round)
                .with_context(|| format!("round {number} of {}: {text}", rounds.len()))?;
            self.report.rounds += 1;
            self.report.times.push(began.elapsed());
        }
        let Self { runtime, cluster, mesh, clients, report, .. } = *self;
        cluster.ensure_all_run()?;
        drop(clients);
        cluster.finish()?;
        drop(mesh);
        drop(runtime);
        Ok(report)
    }

    fn round(&mut self, number: usize, round: &Round) -> Result<()> {
        let stage = Arc::new(self.stage(number)?);
        let term = self.term()?;
        let (stop, stopped) = watch::channel(false);
        let acting = self.act(&stage, round.seed, &stopped);
        sleep(Duration::from_millis(round.after_ms));
        let since = self.strike(&stage, round);
        // However it went, the clients end.
        let since = since.and_then(|since| {
            self.until_progress(&stage, micros(stage.began))?;
            sleep(AFTERWARDS);
            Ok(since)
        });
        stop.send_replace(true);
        self.gather(acting)?;
        let since = since?;
        if round.hurt == Hurt::Nothing {
            self.report.needless_terms += self.term()?.saturating_sub(term);
        }
        self.look(&stage)?;
        self.judge(&stage, round, since)
    }

    /// Fresh names and a fresh alias, so that every round's history begins with nothing.
    fn stage(&mut self, number: usize) -> Result<Stage> {
        let eyes = self.eyes.clone();
        let directories = self.runtime.block_on(async {
            let mut made = Vec::new();
            for directory in 0..DIRECTORIES {
                let path = ByteName(format!("/failover/{number}/{directory}").into_bytes());
                let caller = Caller { uid: 0, gid: 0 };
                let op = NamespaceOp::MakeDirs { path, mode: 0o755, caller };
                match eyes.namespace(op).await? {
                    NamespaceReply::Attr { attr, .. } => made.push(attr.inode),
                    other => bail!("making a directory gave {other:?}"),
                }
            }
            Ok::<Vec<InodeId>, anyhow::Error>(made)
        })?;
        Ok(Stage {
            directories,
            site: SITE.parse()?,
            alias: format!("round-{number}").parse()?,
            deploys: self.deploys.clone(),
            history: Mutex::default(),
            began: self.began,
        })
    }

    fn act(&mut self, stage: &Arc<Stage>, seed: u64, stop: &watch::Receiver<bool>) -> Vec<Acting> {
        let _within = self.runtime.enter();
        let clients = std::mem::take(&mut self.clients);
        let act = |mut client: Client| {
            client.rng = seed::rng(seed.wrapping_add(client.number as u64));
            let (stage, stop) = (stage.clone(), stop.clone());
            self.runtime.spawn(async move {
                let acted = client.act(stage, stop).await;
                (client, acted)
            })
        };
        clients.into_iter().map(act).collect()
    }

    /// Waits for the clients' last answers.
    fn gather(&mut self, acting: Vec<Acting>) -> Result<()> {
        let until = tokio::time::Instant::now() + LAST_ANSWERS;
        for one in acting {
            let ended = async { tokio::time::timeout_at(until, one).await };
            let ended = self.runtime.block_on(ended).context("a client waits for ever")?;
            let (client, acted) = ended.context("a client panicked")?;
            let number = client.number;
            self.clients.push(client);
            acted.with_context(|| format!("client {number}"))?;
        }
        Ok(())
    }

    /// One fault from its beginning to its end. When it had begun, in the history's time: what is asked for
    /// after that meets it.
    fn strike(&mut self, stage: &Stage, round: &Round) -> Result<u64> {
        let leader = self.leader()?;
        let followers: Vec<u64> =
            self.masters().into_iter().filter(|master| *master != leader).collect();
        let follower = usize::try_from(round.which % followers.len().max(1) as u64)?;
        let follower = *followers.get(follower).context("there is a follower")?;
        let hold = || sleep(Duration::from_millis(round.hold_ms));
        let (leads, follows) = (Node::master(leader), Node::master(follower));
        let now = || micros(stage.began);
        self.cluster.tell(format_args!("master-{leader} leads: {}", round.hurt.as_str()));
        let mut since = now();
        match round.hurt {
            Hurt::Nothing => hold(),
            Hurt::KillLeader | Hurt::KillFollower => {
                let node = if round.hurt == Hurt::KillLeader { leads } else { follows };
                self.cluster.kill9(node)?;
                since = now();
                hold();
                self.cluster.start_node(node)?;
            }
            Hurt::FreezeLeader => {
                self.cluster.freeze(leads)?;
                since = now();
                hold();
                self.cluster.thaw(leads)?;
            }
            Hurt::CutLeader | Hurt::CutWithClient => {
                self.mesh.isolate(leader, round.hurt == Hurt::CutWithClient);
                since = now();
                hold();
                self.mesh.mend();
                self.cluster.tell("all links are well");
            }
            Hurt::KillAll => {
                self.kill_all(|| {
                    since = now();
                    hold();
                })?;
            }
            Hurt::ReplaceFollower => {
                self.replace(follows, || {
                    since = now();
                    hold();
                })?;
            }
            Hurt::RestartInTurn => {
                for master in followers.into_iter().chain([leader]) {
                    self.cluster.stop_node(Node::master(master))?;
                    hold();
                    self.cluster.start_node(Node::master(master))?;
                    self.until_progress(stage, now())?;
                }
            }
        }
        Ok(since)
    }

    /// The disk of a master is lost; with an empty one it must not take part, and another comes.
    fn replace(&self, node: Node, hold: impl FnOnce()) -> Result<()> {
        self.cluster.kill9(node)?;
        Fault::Wipe(node).apply(&self.cluster)?;
        hold();
        let refused = self.cluster.start_node(node);
        ensure!(refused.is_err(), "{node} takes part again, though it has lost its log");
        let log = self.cluster.node_log(node);
        ensure!(log.contains("must not take part"), "{node} does not say why it ended: {log}");
        let id = node.id.to_string();
        let data = self.cluster.data();
        let data = data.to_str().context("a plain path")?;
        for words in [["dev", "add", "master"].as_slice(), &["dev", "rm", "master", &id]] {
            self.cluster.tell(words.join(" "));
            self.cluster.atoll(&[words, &["--data", data]].concat())?.ok()?;
        }
        Ok(())
    }

    fn kill_all(&self, hold: impl FnOnce()) -> Result<()> {
        self.cluster.tell("kill -9 of every master");
        let nodes: Vec<Node> = self.masters().into_iter().map(Node::master).collect();
        let pids = nodes
            .iter()
            .map(|node| self.cluster.pid(*node).with_context(|| format!("{node} does not run")));
        let pids = pids.collect::<Result<Vec<u32>>>()?;
        for pid in &pids {
            process::signal(*pid, Signal::SIGKILL)?;
        }
        let gone = || pids.iter().all(|pid| process::state(*pid).is_none());
        wait::holds("end of every master", PROGRESS, gone)?;
        hold();
        nodes.iter().try_for_each(|node| self.cluster.start_node(*node))
    }

    fn masters(&self) -> Vec<u64> {
        self.cluster.ready().masters.iter().map(|master| master.id).collect()
    }

    fn leader(&self) -> Result<u64> {
        let status = self.runtime.block_on(self.eyes.master(&MasterRequest::Status, ASK))?;
        let MasterResponse::Status(status) = status else { bail!("no status but {status:?}") };
        let leader = status.masters.iter().find(|master| master.role == "leader");
        Ok(leader.context("the status names no leader")?.id)
    }

    /// The highest term any master tells.
    fn term(&self) -> Result<u64> {
        let mut highest = 0;
        for master in &self.cluster.ready().masters {
            let admin = master.admin.context("masters tell where their metrics are")?;
            let term = crate::metrics::Scrape::of(admin)?.sum("atoll_master_term");
            highest = highest.max(term as u64);
        }
        Ok(highest)
    }

    /// Until a change is acknowledged that was asked for after this moment.
    fn until_progress(&self, stage: &Stage, after: u64) -> Result<()> {
        wait::holds("the next acknowledged change", PROGRESS, || {
            let history = stage.history.lock().unwrap_or_else(PoisonError::into_inner);
            history.next_change(after).is_some()
        })
    }

    fn look(&mut self, stage: &Stage) -> Result<()> {
        let client = self.clients.last_mut().context("there are clients")?;
        self.runtime.block_on(client.look_at_all(stage))
    }

    fn judge(&mut self, stage: &Stage, round: &Round, since: u64) -> Result<()> {
        let handle = self.runtime.handle().clone();
        let log = handle.block_on(self.follow(stage))?;
        let history: History =
            std::mem::take(&mut *stage.history.lock().unwrap_or_else(PoisonError::into_inner));
        let mut wrong = history.judge(&log);
        let (operations, unknown) = history.count();
        if matches!(round.hurt, Hurt::RestartInTurn | Hurt::Nothing) && unknown > 0 {
            wrong.push(format!(
                "{unknown} operations failed, though nothing but a restart happened"
            ));
        }
        if !wrong.is_empty() {
            let path = self.cluster.work().join("history.txt");
            std::fs::write(&path, format!("{}\n\nlog: {log:?}\n", history.text()))?;
            bail!("{}\nthe history is in {}", wrong.join("\n"), path.display());
        }
        self.report.operations += operations;
        self.report.unknown += unknown;
        let next = history.next_change(since).context("no change was acknowledged")?;
        let gap = Duration::from_micros(next.saturating_sub(since));
        self.report.gaps.entry(round.hurt).or_default().push(gap);
        self.cluster.tell(format_args!(
            "{operations} operations are right, {unknown} of unknown outcome; the next change was \
             acknowledged after {gap:.2?}"
        ));
        Ok(())
    }

    /// What the publish log says of the round's alias.
    async fn follow(&mut self, stage: &Stage) -> Result<Vec<(u64, Option<Deploy>)>> {
        let mut log = Vec::new();
        loop {
            let request = MasterRequest::Watch { after: self.followed, edge: None, wait_ms: 0 };
            let (entries, upto) = match self.eyes.master(&request, ASK).await? {
                MasterResponse::Log { entries, upto } => (entries, upto),
                MasterResponse::Snapshot(_) => bail!("the publish log is not kept long enough"),
                other => bail!("the master told {other:?} instead of the log"),
            };
            let all = entries.len() < limits::WATCH_ENTRIES_MAX;
            for entry in entries {
                if let PublishEvent::AliasSet(alias) = entry.event
                    && alias.site == stage.site
                    && alias.alias == stage.alias
                {
                    let deploy = stage.deploys.iter().position(|known| *known == alias.deploy);
                    log.push((entry.seq.0, deploy));
                }
            }
            self.followed = upto.max(self.followed);
            if all {
                return Ok(log);
            }
        }
    }
}

/// Deploys of a site to move an alias between.
fn deploys(cluster: &DevCluster) -> Result<Vec<DeployId>> {
    let folder = cluster.work().join("site");
    std::fs::create_dir_all(&folder)?;
    let mut deploys = Vec::new();
    for number in 0..DEPLOYS {
        std::fs::write(folder.join("index.html"), format!("<!doctype html>{number}"))?;
        let deployed = cluster.deploy(&folder, SITE)?;
        let id = deployed["deploy"].as_str().context("a deploy has an id")?;
        deploys.push(id.parse().map_err(|error| anyhow::anyhow!("{id}: {error:?}"))?);
    }
    ensure!(deploys.len() == DEPLOYS, "too few deploys");
    Ok(deploys)
}
