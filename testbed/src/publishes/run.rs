//! Carries a plan out on a real cluster.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use atoll_client::Cluster;
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::publish::PublishEvent;
use atoll_proto::{Seq, limits};
use bytes::Bytes;
use rand::Rng as _;
use tokio::runtime::Runtime;

use super::{Act, Hurt, Plan, Policy, Round, Strike};
use crate::checks::{self, Acknowledged, Entry, Publishes, Request, Seen};
use crate::cluster::{DevCluster, host};
use crate::faults::Fault;
use crate::http::Trust;
use crate::process::Outcome;
use crate::proxy::{Direction, MasterLinks, Way};
use crate::ready::Node;
use crate::shim::Shims;
use crate::visitors::Crowd;
use crate::{seed, wait};

const SITE: &str = "news";
const PATH: &str = "/version.txt";
/// What a publish may wait for edges, in seconds: longer than a lease and any policy's share.
const WAIT_SECS: &str = "45";
/// Until every edge answers with the latest deploy again.
const SETTLE: Duration = Duration::from_secs(60);
/// For one question to the masters.
const ASK: Duration = Duration::from_secs(10);
/// Answers in the history that are shown when they are wrong.
const SHOWN: usize = 10;

/// What a run came to.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Rounds, all of them right.
    pub rounds: usize,
    /// Publishes that were acknowledged.
    pub acknowledged: usize,
    /// Publishes that were not, because a master was away or an edge did not confirm.
    pub unconfirmed: usize,
    /// Requests that saw a deploy, none of them a stale one.
    pub answers: usize,
    /// Requests that were refused (such as with 503), or had no answer.
    pub failed: usize,
    /// Entries of the publish log.
    pub log: usize,
    /// Syncs that a slow disk made longer.
    pub slow_syncs: u64,
    /// How long each round took.
    pub times: Vec<Duration>,
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
/// When an answer was stale, a deploy was served with another's bytes, an edge did not come back,
/// or, in a calm run, any request or publish failed; with the command that repeats it.
pub fn carry_out(plan: &Plan, rounds: &[Round], binary: Option<&Path>) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("a runtime")?;
    Box::new(Run::start(plan, runtime, binary)?).carry_out(rounds)
}

struct Run {
    plan: Plan,
    runtime: Runtime,
    cluster: DevCluster,
    client: Cluster,
    /// By edge and shield.
    links: BTreeMap<Node, MasterLinks>,
    crowd: Crowd,
    /// Every deploy and its body, the oldest first.
    deploys: Vec<(String, Bytes)>,
    publishes: Publishes,
    followed: Seq,
    report: Report,
}

impl Run {
    fn start(plan: &Plan, runtime: Runtime, binary: Option<&Path>) -> Result<Self> {
        let mut builder = DevCluster::builder()
            .masters(plan.masters)
            .edges(plan.edges)
            .shields(plan.shields)
            .seed(plan.seed)
            .repeat(&plan.to_string());
        if !plan.calm {
            builder = builder.shimmed();
        }
        if let Some(binary) = binary {
            builder = builder.binary(binary);
        }
        let cluster = builder.start()?;
        let mut links = BTreeMap::new();
        let edges = (1..=plan.edges as u64).map(Node::edge);
        let shields = (1..=plan.shields as u64).map(Node::shield);
        for (number, node) in (1u64..).zip(edges.chain(shields)) {
            // A calm run is without anything between.
            if plan.calm {
                break;
            }
            let seed = plan.seed.wrapping_mul(1009).wrapping_add(number << 8);
            let opened = runtime.block_on(MasterLinks::open(&cluster, seed))?;
            opened.lead(&cluster, node)?;
            links.insert(node, opened);
        }
        cluster.wait_healthy()?;
        let policy = plan.policy.as_argument();
        cluster.atoll(&["site", "create", SITE, "--policy", policy])?.ok()?;
        let client = runtime.block_on(cluster.client())?;
        let crowd = {
            let _within = runtime.enter();
            let none: &[(String, std::net::SocketAddr)] = &[];
            Crowd::start(
                none,
                &host(SITE),
                PATH,
                &Trust::load(&cluster.ready().ca)?,
                Instant::now(),
            )
        };
        let mut run = Self {
            plan: *plan,
            runtime,
            cluster,
            client,
            links,
            crowd,
            deploys: Vec::new(),
            publishes: Publishes::default(),
            followed: Seq(0),
            report: Report::default(),
        };
        run.act(Act::Deploy).context("the first deploy")?;
        ensure!(run.report.acknowledged == 1, "the first deploy was not acknowledged");
        run.open_doors()?;
        Ok(run)
    }

    /// The crowd comes once there is something to see.
    fn open_doors(&mut self) -> Result<()> {
        let _within = self.runtime.enter();
        let trust = Trust::load(&self.cluster.ready().ca)?;
        let began = Instant::now();
        let edges = self.cluster.edges();
        self.crowd = Crowd::start(&edges, &host(SITE), PATH, &trust, began);
        // What was acknowledged before is known from the start.
        for acknowledged in &mut self.publishes.acknowledged {
            (acknowledged.begun, acknowledged.at) = (Duration::ZERO, Duration::ZERO);
        }
        Ok(())
    }

    fn carry_out(mut self: Box<Self>, rounds: &[Round]) -> Result<Report> {
        for (number, round) in rounds.iter().enumerate() {
            let began = Instant::now();
            let text = serde_json::to_string(round)?;
            self.cluster.tell(format_args!("round {number}: {text}"));
            self.round(round)
                .and_then(|()| self.settle())
                .and_then(|()| self.judge())
                .with_context(|| format!("round {number}: {text}"))?;
            self.report.rounds += 1;
            self.report.times.push(began.elapsed());
        }
        self.report.slow_syncs = self.cluster.shims().map_or(0, Shims::syncs);
        let Self { runtime, cluster, crowd, client, links, report, publishes, .. } = *self;
        runtime.block_on(crowd.finish());
        drop((client, links));
        cluster.finish()?;
        Ok(Report { log: publishes.log.len(), ..report })
    }

    /// Faults and publishes at the same time.
    fn round(&mut self, round: &Round) -> Result<()> {
        // Faults are told and undone by threads of their own, whatever the publishes come to.
        let (cluster, links) = (&self.cluster, std::mem::take(&mut self.links));
        let links = Arc::new(links);
        let outcome = std::thread::scope(|scope| {
            let mut striking = Vec::new();
            for strike in &round.strikes {
                let links = Arc::clone(&links);
                striking.push(scope.spawn(move || apply(cluster, &links, strike)));
            }
            for (after_ms, fault) in &round.odd {
                let after = Duration::from_millis(*after_ms);
                striking.push(scope.spawn(move || {
                    sleep(after);
                    fault.apply(cluster)
                }));
            }
            let mut published = Vec::new();
            let mut rng = seed::rng(self.plan.seed ^ self.report.rounds as u64);
            for (pause_ms, act) in &round.acts {
                sleep(Duration::from_millis(*pause_ms));
                published.push(publish(
                    cluster,
                    &self.crowd,
                    &mut self.deploys,
                    *act,
                    rng.random(),
                ));
            }
            let struck: Vec<Result<()>> = striking
                .into_iter()
                .map(|strike| strike.join().unwrap_or_else(|_| bail!("a fault panicked")))
                .collect();
            (published, struck)
        });
        self.links = Arc::into_inner(links).context("every fault has ended")?;
        let (published, struck) = outcome;
        struck.into_iter().collect::<Result<Vec<()>>>()?;
        for (_, fault) in &round.odd {
            if let Fault::SlowSyncs { .. } = fault {
                fault.undo(&self.cluster)?;
            }
        }
        for done in published {
            self.note(done?)?;
        }
        Ok(())
    }

    fn act(&mut self, act: Act) -> Result<()> {
        let salt = self.deploys.len() as u64;
        let done = publish(&self.cluster, &self.crowd, &mut self.deploys, act, salt)?;
        self.note(done)
    }

    fn note(&mut self, done: Done) -> Result<()> {
        match done {
            Done::Acknowledged(acknowledged) => {
                self.publishes.acknowledged.push(acknowledged);
                self.report.acknowledged += 1;
            }
            Done::Nothing => {}
            Done::Unconfirmed(outcome) => {
                self.report.unconfirmed += 1;
                // Only the policy that trades it away may be left without a confirmation.
                let traded = self.plan.policy == Policy::Available;
                let away = outcome.code != Some(6);
                ensure!(!self.plan.calm && (away || traded), "not confirmed: {outcome}");
                self.cluster.tell(format_args!("not confirmed: {:?}", outcome.code));
            }
        }
        Ok(())
    }

    /// All is well again: a publish is acknowledged, and every edge answers with it.
    fn settle(&mut self) -> Result<()> {
        self.cluster.wait_healthy()?;
        if let Some(shims) = self.cluster.shims() {
            shims.ensure_loaded(&self.cluster)?;
        }
        let before = self.report.acknowledged;
        let until = Instant::now() + SETTLE;
        while self.report.acknowledged == before {
            ensure!(Instant::now() < until, "no publish is acknowledged, though all is well");
            self.act(Act::Deploy)?;
        }
        let since = self.crowd.now();
        let (latest, _) = self.deploys.last().context("there is a deploy")?.clone();
        for (edge, _) in self.cluster.edges() {
            let what = format!("{edge} answers with the latest deploy");
            wait::holds(&what, SETTLE, || self.crowd.saw(&edge, &latest, since))?;
        }
        Ok(())
    }

    fn judge(&mut self) -> Result<()> {
        let handle = self.runtime.handle().clone();
        handle.block_on(self.follow())?;
        let requests = self.crowd.take();
        let right: BTreeMap<String, Bytes> = self.deploys.iter().cloned().collect();
        let torn = self.crowd.torn(&right);
        ensure!(torn.is_empty(), "served with the bytes of another: {torn:?}");
        match checks::never_stale_after_ack(&self.publishes, &requests) {
            Ok(answers) => {
                self.report.answers += answers;
                self.report.failed += requests.len() - answers;
                if self.plan.calm {
                    unharmed(&requests)?;
                }
                self.cluster.tell(format_args!(
                    "never_stale_after_ack: {answers} answers are right, {} failed",
                    requests.len() - answers
                ));
                Ok(())
            }
            Err(wrong) => {
                let path = self.cluster.work().join("history.txt");
                let history = format!("{:#?}\n{requests:#?}\n", self.publishes);
                std::fs::write(&path, history)?;
                let lines: Vec<String> = wrong.iter().take(SHOWN).map(|w| w.to_string()).collect();
                bail!(
                    "{} stale answers:\n{}\nthe history is in {}",
                    wrong.len(),
                    lines.join("\n"),
                    path.display()
                )
            }
        }
    }

    /// Takes what is new in the publish log.
    async fn follow(&mut self) -> Result<()> {
        loop {
            let request = MasterRequest::Watch { after: self.followed, edge: None, wait_ms: 0 };
            let (entries, upto) = match self.client.master(&request, ASK).await? {
                MasterResponse::Log { entries, upto } => (entries, upto),
                MasterResponse::Snapshot(_) => bail!("the publish log is not kept long enough"),
                other => bail!("the master told {other:?} instead of the log"),
            };
            let all = entries.len() < limits::WATCH_ENTRIES_MAX;
            for entry in entries {
                if let PublishEvent::AliasSet(alias) = entry.event
                    && alias.site.as_str() == SITE
                    && alias.alias.as_str() == "production"
                {
                    let deploy = alias.deploy.to_string();
                    self.publishes.log.push(Entry { seq: entry.seq.0, deploy });
                }
            }
            self.followed = upto.max(self.followed);
            if all {
                return Ok(());
            }
        }
    }
}

/// What a publish came to.
enum Done {
    Acknowledged(Acknowledged),
    Unconfirmed(Box<Outcome>),
    /// It promised nothing.
    Nothing,
}

/// Publishes by the command line and waits as its user does.
fn publish(
    cluster: &DevCluster,
    crowd: &Crowd,
    deploys: &mut Vec<(String, Bytes)>,
    act: Act,
    salt: u64,
) -> Result<Done> {
    let old = |back: usize| {
        let at = deploys.len().saturating_sub(1 + back.min(deploys.len().saturating_sub(1)));
        deploys.get(at).map(|(deploy, _)| deploy.clone()).unwrap_or_default()
    };
    let wait = ["--wait", "all", "--timeout", WAIT_SECS, "--json"];
    let mut body = None;
    let mut words: Vec<String> = match act {
        Act::Deploy => {
            let number = deploys.len();
            let text = Bytes::from(format!("version {number} {salt:x}\n"));
            let folder = cluster.work().join("site");
            std::fs::create_dir_all(&folder)?;
            std::fs::write(folder.join("version.txt"), &text)?;
            std::fs::write(folder.join("index.html"), "<!doctype html><title>news</title>")?;
            body = Some(text);
            let folder = folder.to_str().context("a plain path")?.to_owned();
            vec!["deploy".into(), folder, "--site".into(), SITE.into()]
        }
        Act::Promote(back) => vec!["promote".into(), SITE.into(), old(back)],
        Act::Rollback => vec!["rollback".into(), SITE.into()],
        Act::Invalidate => vec!["invalidate".into(), SITE.into(), "--all".into()],
        Act::Unwaited(back) => {
            let words = ["promote", SITE, &old(back), "--wait", "none"].map(str::to_owned);
            cluster.atoll(&words)?;
            return Ok(Done::Nothing);
        }
    };
    words.extend(wait.map(str::to_owned));
    let begun = crowd.now();
    let outcome = cluster.atoll(&words)?;
    let at = crowd.now();
    let done = outcome.last().ok();
    let field = |name: &str| done.as_ref().map(|done| &done[name]);
    if let (Some(body), Some(deploy)) = (body, field("deploy").and_then(|d| d.as_str())) {
        deploys.push((deploy.to_owned(), body));
    }
    match (outcome.code, field("seq").and_then(|seq| seq.as_u64())) {
        (Some(0), Some(seq)) => Ok(Done::Acknowledged(Acknowledged { seq, begun, at })),
        // A rollback with nothing before it, or one that another publish overtook.
        (Some(4), _) => Ok(Done::Nothing),
        (Some(1), _) if act == Act::Rollback => Ok(Done::Nothing),
        _ => Ok(Done::Unconfirmed(Box::new(outcome))),
    }
}

/// One fault from its beginning to its end.
fn apply(cluster: &DevCluster, links: &BTreeMap<Node, MasterLinks>, strike: &Strike) -> Result<()> {
    let Strike { node, hurt, after_ms, hold_ms } = *strike;
    sleep(Duration::from_millis(after_ms));
    let hold = || sleep(Duration::from_millis(hold_ms));
    let fault = match hurt {
        Hurt::Freeze => Some(Fault::Freeze(node)),
        Hurt::Suspend => Some(Fault::Suspend(node)),
        Hurt::Kill => Some(Fault::Kill(node)),
        _ => None,
    };
    if let Some(fault) = fault {
        fault.apply(cluster)?;
        hold();
        return fault.undo(cluster);
    }
    let links = links.get(&node).with_context(|| format!("{node} has no proxies"))?;
    cluster.tell(format_args!("{node}: {hurt:?}"));
    match hurt {
        Hurt::CutBack => links.set(Direction::Back, Way::cut()),
        Hurt::CutThere => links.set(Direction::There, Way::cut()),
        Hurt::Poor => links.set_both(Way {
            delay: Duration::from_millis(150),
            jitter: Duration::from_millis(150),
            loss: 0.1,
            duplicate: 0.1,
            reorder: 0.2,
            ..Way::default()
        }),
        Hurt::Cut | Hurt::Freeze | Hurt::Suspend | Hurt::Kill => links.set_both(Way::cut()),
    }
    hold();
    links.set_both(Way::default());
    cluster.tell(format_args!("{node}: its links are well"));
    Ok(())
}

/// Without a fault no request fails.
fn unharmed(requests: &[Request]) -> Result<()> {
    let failed = |request: &&Request| !matches!(request.seen, Seen::Deploy(_));
    let failed: Vec<&Request> = requests.iter().filter(failed).take(SHOWN).collect();
    ensure!(failed.is_empty(), "requests failed though nothing was wrong: {failed:#?}");
    Ok(())
}
