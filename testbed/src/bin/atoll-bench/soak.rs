//! Random operations and faults from a seed, and checkers named after promises.
//!
//! One fault at a time, so that the promises hold throughout: every deploy must succeed unless the
//! only master is away, visitors never see a wrong byte, and what was acknowledged is there in the
//! end. The same seed does the same in the same order; only how the machine interleaves differs.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use atoll_testbed::faults::Offset;
use atoll_testbed::http::Version;
use atoll_testbed::tree::url_path;
use atoll_testbed::{DevCluster, Fault, Node, seed};
use clap::Args;
use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use tokio::task::JoinHandle;

use crate::model::{SiteModel, no_wrong_bytes};

/// How long, and from where.
#[derive(Debug, Args)]
pub(crate) struct SoakArgs {
    /// For how long
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Where the randomness starts [default: the clock]
    #[arg(long)]
    seed: Option<u64>,
}

const SITES: usize = 3;
const FILES: usize = 60;

/// Runs it.
pub(crate) async fn run(atoll: &Path, args: &SoakArgs) -> Result<()> {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let seed = args.seed.unwrap_or(clock.as_secs());
    let repeat = format!(
        "atoll-bench --atoll {} soak --minutes {} --seed {seed}",
        atoll.display(),
        args.minutes
    );
    println!("seed {seed}; to repeat: {repeat}");
    let cluster = Arc::new(DevCluster::builder().binary(atoll).seed(seed).start()?);
    let crowd = Crowd::start(&cluster);
    let mut soak = Soak::new(&cluster, seed)?;
    let until = Instant::now() + Duration::from_secs(args.minutes * 60);
    let mut result = soak.begin();
    while result.is_ok() && Instant::now() < until {
        result = soak.step().await;
        if result.is_ok() {
            result = crowd.verdict();
        }
    }
    let answers = crowd.finish().await;
    result = match result {
        Ok(()) => soak.acked_is_durable().await.and(answers.map(|answers| {
            println!("{} steps, {} faults, {answers} answers: all right", soak.steps, soak.faults);
        })),
        Err(error) => Err(error),
    };
    let (steps, line) = (soak.steps, soak.last.clone());
    drop(soak);
    if let Err(error) = result {
        return Err(error.context(format!("step {steps}, {line}; to repeat: {repeat}")));
    }
    Arc::into_inner(cluster).context("the crowd still holds the cluster")?.finish()
}

struct Soak<'a> {
    cluster: &'a Arc<DevCluster>,
    rng: StdRng,
    /// What each site must be: several only while an outcome is unknown.
    sites: Vec<Vec<SiteModel>>,
    uploads: Vec<(String, Vec<u8>)>,
    steps: u64,
    faults: u64,
    last: String,
}

impl<'a> Soak<'a> {
    fn new(cluster: &'a Arc<DevCluster>, seed: u64) -> Result<Self> {
        let sites: Vec<Vec<SiteModel>> = (0..SITES)
            .map(|number| vec![SiteModel::new(&format!("soak-{number}"), FILES)])
            .collect();
        let rng = seed::rng(seed);
        let last = "the first deploys".to_owned();
        Ok(Self { cluster, rng, sites, uploads: Vec::new(), steps: 0, faults: 0, last })
    }

    fn begin(&mut self) -> Result<()> {
        for site in &self.sites {
            let source = self.cluster.work().join(&site[0].name);
            site[0].tree().write(&source)?;
            self.cluster.deploy(&source, &site[0].name)?;
        }
        Ok(())
    }

    async fn step(&mut self) -> Result<()> {
        self.steps += 1;
        let fault = self.rng.random_ratio(2, 3).then(|| self.fault());
        self.last = format!("fault {fault:?}");
        println!("step {}: {fault:?}", self.steps);
        if let Some(fault) = &fault {
            self.faults += 1;
            self.strike(fault)?;
        }
        // The only master away: operations may fail, and then their outcome is open.
        let may_fail = matches!(
            fault,
            Some(Fault::Kill(node) | Fault::Stop(node) | Fault::Freeze(node)) if node == Node::master(1)
        );
        for _ in 0..self.rng.random_range(1..4) {
            if self.rng.random_bool(0.6) {
                self.deploy(may_fail)?;
            } else {
                self.upload(may_fail)?;
            }
        }
        if let Some(fault) = &fault {
            self.mend(fault)?;
        }
        self.settle().await
    }

    fn fault(&mut self) -> Fault {
        let nodes = [
            Node::chunkserver(1),
            Node::chunkserver(2),
            Node::chunkserver(3),
            Node::edge(1),
            Node::edge(2),
            Node::shield(1),
            Node::master(1),
        ];
        let node = *nodes.choose(&mut self.rng).expect("there are nodes");
        match self.rng.random_range(0..6) {
            0 | 1 => Fault::Kill(node),
            2 => Fault::Restart(node),
            3 => Fault::Stop(node),
            // Nobody repairs yet: bits turn on one chunkserver only, ever.
            4 => Fault::CorruptFile {
                node: Node::chunkserver(3),
                name_contains: ".blob".to_owned(),
                at: Offset::FromStart(self.rng.random_range(100..4000)),
            },
            _ => Fault::Freeze(Node::chunkserver(self.rng.random_range(1..4))),
        }
    }

    fn strike(&self, fault: &Fault) -> Result<()> {
        let Fault::CorruptFile { node, .. } = fault else {
            return fault.apply(self.cluster);
        };
        Fault::Stop(*node).apply(self.cluster)?;
        // Without a blob file yet there is nothing to turn.
        let turned = fault.apply(self.cluster);
        Fault::Start(*node).apply(self.cluster)?;
        if let Err(error) = turned {
            println!("  nothing to corrupt: {error:#}");
        }
        Ok(())
    }

    fn mend(&self, fault: &Fault) -> Result<()> {
        if !matches!(fault, Fault::CorruptFile { .. }) {
            fault.undo(self.cluster)?;
        }
        self.cluster.wait_healthy()
    }

    fn deploy(&mut self, may_fail: bool) -> Result<()> {
        let at = self.rng.random_range(0..self.sites.len());
        let now = self.sites[at].last().context("a site has a model")?.clone();
        let next = now.changed(self.steps * 10 + self.rng.random_range(0..10), &mut self.rng);
        let source = self.cluster.work().join(&next.name);
        std::fs::remove_dir_all(&source)?;
        next.tree().write(&source)?;
        self.last = format!("{}; deploy of {}", self.last, next.name);
        match self.cluster.deploy(&source, &next.name) {
            Ok(_) => self.sites[at] = vec![next],
            Err(error) if may_fail => {
                println!("  deploy of {}: outcome open: {:.200}", next.name, error.to_string());
                self.sites[at].push(next);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn upload(&mut self, may_fail: bool) -> Result<()> {
        let number = self.uploads.len();
        let path = format!("/soak-{}-{number}", self.steps);
        let content = crate::model::content("upload", &path, self.steps);
        let local = self.cluster.work().join("upload.bin");
        std::fs::write(&local, &content)?;
        self.last = format!("{}; upload of {path}", self.last);
        let outcome =
            self.cluster.atoll(&["upload", local.to_str().context("plain path")?, &path])?;
        match outcome.code {
            Some(0) => self.uploads.push((path, content)),
            _ if may_fail => println!("  upload of {path}: outcome open"),
            _ => bail!("{outcome}"),
        }
        Ok(())
    }

    /// After the fault: which of the possible versions is it, and is it whole?
    async fn settle(&mut self) -> Result<()> {
        for at in 0..self.sites.len() {
            let mut found = None;
            let mut errors = Vec::new();
            // Latest first: it is the likely one.
            for model in self.sites[at].iter().rev() {
                match self.sample(model).await {
                    Ok(()) => {
                        found = Some(model.clone());
                        break;
                    }
                    Err(error) => errors.push(format!("{error:#}")),
                }
            }
            let model = found.with_context(|| format!("no version fits: {errors:?}"))?;
            self.sites[at] = vec![model];
        }
        Ok(())
    }

    /// Some files of a site from every edge, the changed ones always.
    async fn sample(&self, model: &SiteModel) -> Result<()> {
        for (name, addr) in self.cluster.edges() {
            let version = Version::ALL[usize::try_from(self.steps % 3)?];
            let mut visitor = self.cluster.visit(version, addr, &model.name).await?;
            let latest = model.files.values().max().copied().unwrap_or_default();
            for (number, (path, generation)) in model.files.iter().enumerate() {
                if *generation != latest && !number.is_multiple_of(5) {
                    continue;
                }
                let answer = visitor.get(&url_path(path.as_bytes())).await?;
                ensure!(answer.status == 200, "{name}: {path}: {}", answer.status);
                let found = no_wrong_bytes(&model.name, path, &answer.body)?;
                ensure!(found == *generation, "{name}: {path}: {found}, not {generation}");
            }
        }
        Ok(())
    }

    /// Everything that was acknowledged, all of it, after kill -9 of the whole cluster.
    async fn acked_is_durable(&mut self) -> Result<()> {
        self.last = "the final check after kill -9 of everything".to_owned();
        self.cluster.kill9_dev()?;
        self.cluster.start_dev()?;
        self.cluster.wait_healthy()?;
        for site in &self.sites {
            let model = site.last().context("a site has a model")?;
            for (name, addr) in self.cluster.edges() {
                let mut visitor = self.cluster.visit(Version::H2, addr, &model.name).await?;
                for (path, content) in model.tree().files {
                    let answer = visitor.get(&url_path(&path)).await?;
                    ensure!(
                        answer.status == 200 && answer.body == content,
                        "{name}: {}/{}",
                        model.name,
                        path.escape_ascii()
                    );
                }
            }
        }
        for (path, content) in &self.uploads {
            let found = self.cluster.atoll(&["cat", path])?.ok()?;
            ensure!(found.stdout == *content, "{path} differs");
        }
        Ok(())
    }
}

/// Visitors who look at any file of any site, all the time.
struct Crowd {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    wrong: Arc<Mutex<Option<String>>>,
    visitors: Vec<JoinHandle<()>>,
}

impl Crowd {
    fn start(cluster: &Arc<DevCluster>) -> Self {
        let mut crowd = Self {
            stop: Arc::default(),
            answers: Arc::default(),
            wrong: Arc::default(),
            visitors: Vec::new(),
        };
        for (number, version) in Version::ALL.into_iter().enumerate() {
            let (cluster, stop) = (Arc::clone(cluster), Arc::clone(&crowd.stop));
            let (answers, wrong) = (Arc::clone(&crowd.answers), Arc::clone(&crowd.wrong));
            crowd.visitors.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    // An edge that is being killed refuses: that is no wrong byte.
                    let looked = Box::pin(look(&cluster, version, number, &answers, &stop)).await;
                    if let Err(Wrong(line)) = looked {
                        let mut first = wrong.lock().unwrap_or_else(PoisonError::into_inner);
                        first.get_or_insert(line);
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }));
        }
        crowd
    }

    fn verdict(&self) -> Result<()> {
        match &*self.wrong.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(line) => Err(anyhow!("no_wrong_bytes: {line}")),
            None => Ok(()),
        }
    }

    async fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let verdict = self.verdict();
        for visitor in self.visitors {
            visitor.await.context("a visitor panicked")?;
        }
        verdict?;
        Ok(self.answers.load(Ordering::Relaxed))
    }
}

struct Wrong(String);

/// Looks at the files a site began with until the connection ends.
async fn look(
    cluster: &DevCluster,
    version: Version,
    number: usize,
    answers: &AtomicU64,
    stop: &AtomicBool,
) -> Result<(), Wrong> {
    let edges = cluster.edges();
    let site = SiteModel::new(&format!("soak-{}", number % SITES), FILES);
    let (name, addr) = &edges[number % edges.len()];
    let Ok(mut visitor) = cluster.visit(version, *addr, &site.name).await else {
        return Ok(());
    };
    for path in site.files.keys() {
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let Ok(answer) = visitor.get(&url_path(path.as_bytes())).await else {
            return Ok(());
        };
        if answer.status == 200 {
            no_wrong_bytes(&site.name, path, &answer.body)
                .map_err(|error| Wrong(format!("{name} over {version:?}: {error:#}")))?;
            answers.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}
