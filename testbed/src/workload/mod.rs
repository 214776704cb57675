//! A crew that works on a cluster while things go wrong: it uploads, writes through the mount,
//! deploys, replaces, removes and reads, and puts down in a [`History`] what was acknowledged.
//!
//! What each worker does next comes from its seed and from what its places hold; how far it gets
//! depends on the machine. Every place belongs to one worker and one way of writing.

mod act;
mod site;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use rand::Rng as _;
use rand::rngs::StdRng;
use tokio::runtime::Handle;
use tokio::sync::watch;

pub use act::{directory, way_of};
pub use site::{SITE_FILES, VERSION, site_files};

use crate::cluster::DevCluster;
use crate::history::{History, State, Way};
use crate::payload::Payload;
use crate::volume::Volume;
use crate::{seed, wait};

/// After an operation that failed, so that a cluster that is away is not asked all the time.
const PAUSE: Duration = Duration::from_millis(50);
/// Until workers that were told to stop must have stopped.
const STOP_TIMEOUT: Duration = Duration::from_secs(180);
/// Failures kept for messages.
const FAILURES_KEPT: usize = 40;

/// What a crew is made of.
#[derive(Debug, Clone)]
pub struct CrewPlan {
    /// Decides what everybody does.
    pub seed: u64,
    /// How many write.
    pub workers: usize,
    /// Places of each of them.
    pub places: usize,
    /// Whether the mount is used; the cluster must have one.
    pub mounted: bool,
    /// Whether one more worker deploys sites, and the readers ask the edges for them.
    pub deploys: bool,
    /// Payloads of at most so many bytes.
    pub bytes_max: u64,
}

impl Default for CrewPlan {
    fn default() -> Self {
        Self { seed: 0, workers: 3, places: 40, mounted: true, deploys: true, bytes_max: u64::MAX }
    }
}

/// What a worker is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Order {
    /// Go on.
    Work,
    /// Let the operation under way end, then stop.
    Finish,
    /// Give it up: its outcome is unknown.
    Halt,
}

#[derive(Debug, Default)]
struct Tally {
    acknowledged: AtomicU64,
    reads: AtomicU64,
    failures: Mutex<Vec<String>>,
    failed: AtomicU64,
    wrong: Mutex<Option<String>>,
}

/// What a crew did.
#[derive(Debug, Clone, Default)]
pub struct Done {
    /// Operations that were acknowledged.
    pub acknowledged: u64,
    /// Reads that gave the right bytes.
    pub reads: u64,
    /// Operations and reads that failed.
    pub failed: u64,
    /// Some of them, with the reason.
    pub failures: Vec<String>,
}

/// A crew at work.
pub struct Crew {
    order: watch::Sender<Order>,
    tally: Arc<Tally>,
    threads: Vec<JoinHandle<()>>,
}

/// What every worker has.
struct Worker {
    cluster: Arc<DevCluster>,
    history: Arc<History>,
    volume: Volume,
    handle: Handle,
    order: watch::Receiver<Order>,
    tally: Arc<Tally>,
    plan: CrewPlan,
    rng: StdRng,
    number: usize,
}

impl Crew {
    /// Everybody begins. Call it outside of asynchronous code; the runtime behind the handle must
    /// have threads of its own.
    ///
    /// # Errors
    /// When no master answers.
    pub fn start(
        cluster: &Arc<DevCluster>,
        history: &Arc<History>,
        plan: &CrewPlan,
        handle: &Handle,
    ) -> Result<Self> {
        let volume = handle.block_on(Volume::connect(cluster)).context("the crew connects")?;
        for number in 0..plan.workers {
            let directory = directory(number);
            handle.block_on(volume.make_dirs(&directory))?;
            if plan.mounted {
                let seen = cluster.mount().join(&directory[1..]);
                wait::holds("the directory in the mount", STOP_TIMEOUT, || seen.is_dir())?;
            }
        }
        let (order, orders) = watch::channel(Order::Work);
        let tally = Arc::new(Tally::default());
        let mut crew = Self { order, tally: Arc::clone(&tally), threads: Vec::new() };
        let mut hire = |name: String, number: usize, job: fn(Worker)| -> Result<()> {
            let worker = Worker {
                cluster: Arc::clone(cluster),
                history: Arc::clone(history),
                volume: volume.clone(),
                handle: handle.clone(),
                order: orders.clone(),
                tally: Arc::clone(&tally),
                plan: plan.clone(),
                rng: seed::rng(plan.seed.wrapping_mul(1000).wrapping_add(number as u64)),
                number,
            };
            let thread = std::thread::Builder::new().name(name);
            crew.threads.push(thread.spawn(move || job(worker))?);
            Ok(())
        };
        for number in 0..plan.workers {
            hire(format!("worker-{number}"), number, Worker::write)?;
        }
        if plan.deploys {
            hire("deployer".to_owned(), plan.workers, Worker::deploy)?;
        }
        hire("reader".to_owned(), plan.workers + 1, Worker::read)?;
        Ok(crew)
    }

    /// Operations acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.tally.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many more operations than `since` are acknowledged.
    ///
    /// # Errors
    /// When they are not in time, with what failed meanwhile, or when wrong bytes were read.
    pub fn until_acknowledged(&self, since: u64, more: u64, timeout: Duration) -> Result<()> {
        let what = format!("{more} acknowledged operations");
        wait::holds(&what, timeout, || {
            self.acknowledged() >= since + more || self.wrong().is_err()
        })
        .with_context(|| format!("only {}", self.acknowledged() - since))
        .with_context(|| self.done().failures.join("\n"))?;
        self.wrong()
    }

    /// `no_wrong_bytes`: nothing that was read differs from what was written.
    ///
    /// # Errors
    /// When something does.
    pub fn wrong(&self) -> Result<()> {
        match &*self.tally.wrong.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(line) => Err(anyhow!("no_wrong_bytes: {line}")),
            None => Ok(()),
        }
    }

    /// What it did so far.
    pub fn done(&self) -> Done {
        Done {
            acknowledged: self.acknowledged(),
            reads: self.tally.reads.load(Ordering::Relaxed),
            failed: self.tally.failed.load(Ordering::Relaxed),
            failures: self.tally.failures.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Everybody is to drop what is under way; [`Crew::halt`] waits for it. What hangs in the mount
    /// cannot be dropped while the masters are away.
    pub fn let_go(&self) {
        self.order.send_replace(Order::Halt);
    }

    /// Everybody ends what is under way, and stops.
    ///
    /// # Errors
    /// When somebody does not, or when wrong bytes were read.
    pub fn finish(self) -> Result<Done> {
        self.end(Order::Finish)
    }

    /// Everybody drops what is under way: its outcome is unknown.
    ///
    /// # Errors
    /// When somebody does not, or when wrong bytes were read.
    pub fn halt(self) -> Result<Done> {
        self.end(Order::Halt)
    }

    fn end(mut self, order: Order) -> Result<Done> {
        self.order.send_replace(order);
        self.join()?;
        self.wrong()?;
        Ok(self.done())
    }

    fn join(&mut self) -> Result<()> {
        wait::holds("the crew stops", STOP_TIMEOUT, || {
            self.threads.iter().all(JoinHandle::is_finished)
        })?;
        let panicked = self.threads.drain(..).filter_map(|thread| thread.join().err()).count();
        ensure!(panicked == 0, "{panicked} of the crew panicked");
        Ok(())
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.order.send_replace(Order::Halt);
            // The failure that led here is the one to tell.
            self.join().ok();
        }
    }
}

impl Worker {
    fn ordered(&self) -> Order {
        *self.order.borrow()
    }

    /// Runs an operation to its end, or until all is to be dropped.
    fn wait_for<T>(&self, doing: impl Future<Output = Result<T>>) -> Result<T> {
        let mut order = self.order.clone();
        self.handle.block_on(async {
            tokio::select! {
                result = doing => result,
                _ = order.wait_for(|order| *order == Order::Halt) => Err(anyhow!("halted")),
            }
        })
    }

    fn pause(&self) {
        let mut order = self.order.clone();
        let told = order.wait_for(|order| *order != Order::Work);
        // Both ways are well: time has passed, or there is an order.
        self.handle.block_on(async { tokio::time::timeout(PAUSE, told).await.map(drop) }).ok();
    }

    fn note(&self, what: std::fmt::Arguments<'_>) {
        if self.ordered() == Order::Halt {
            return; // nothing of what fails now says anything
        }
        self.tally.failed.fetch_add(1, Ordering::Relaxed);
        let mut failures = self.tally.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() < FAILURES_KEPT {
            failures.push(what.to_string());
        }
    }

    fn write(mut self) {
        while self.ordered() == Order::Work {
            self.write_once();
        }
    }

    fn write_once(&mut self) {
        let index = self.rng.random_range(0..self.plan.places);
        let place = format!("{}/f{index}", directory(self.number));
        let (own_way, remove) = (way_of(index, self.plan.mounted), self.rng.random_ratio(1, 5));
        let mut size = Payload::of_any_size(0, &mut self.rng);
        size.bytes = size.bytes.min(self.plan.bytes_max);
        let way = match (own_way, self.history.certain(&place)) {
            (Way::Mount, Some((State::Holds(_) | State::Begins(..), _))) if !remove => {
                Way::MountRename
            }
            (way, _) => way,
        };
        let begun = self.history.begin(&place, way, |generation, now| {
            Some(match now {
                State::Holds(_) | State::Begins(..) if remove => State::Absent,
                _ => State::Holds(Payload { generation, ..size }),
            })
        });
        // Open since the last fault: it waits for a checker.
        let Some((ticket, intent)) = begun else {
            return self.skip();
        };
        match self.carry_out(&place, way, intent) {
            Ok(()) => {
                self.history.acknowledged(ticket);
                self.tally.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                self.note(format_args!("{place}: {intent:?} by {way:?}: {error:#}"));
                self.history.unknown(ticket, format_args!("{error:#}"));
                self.pause();
            }
        }
    }

    /// Nothing to do at this place. Once all rest, the loop must not burn the processor.
    fn skip(&self) {
        if self.history.open().len() >= self.plan.places / 2 {
            self.pause();
        }
    }

    fn read(mut self) {
        while self.ordered() == Order::Work {
            match self.read_once() {
                Ok(true) => drop(self.tally.reads.fetch_add(1, Ordering::Relaxed)),
                Ok(false) => self.pause(),
                Err(error) => {
                    self.note(format_args!("read: {error:#}"));
                    self.pause();
                }
            }
        }
    }

    /// Reads a place where nothing happens; false when there is none, or something happened.
    fn read_once(&mut self) -> Result<bool> {
        let worker = self.rng.random_range(0..self.plan.workers);
        let index = self.rng.random_range(0..self.plan.places);
        let place = format!("{}/f{index}", directory(worker));
        let Some((state, number)) = self.history.certain(&place) else {
            return Ok(false);
        };
        let by_mount = way_of(index, self.plan.mounted) == Way::Mount;
        let found = if by_mount {
            self.read_mounted(&place)
        } else {
            self.wait_for(self.volume.get(&place))
        };
        if self.history.certain(&place) != Some((state, number)) {
            return Ok(false); // also what failed may have been removed meanwhile
        }
        let found = found?;
        let right = match state {
            State::Absent => None,
            State::Holds(payload) => Some(payload.content(&place)),
            State::Begins(payload, length) => {
                Some(payload.content(&place).slice(..usize::try_from(length)?))
            }
        };
        if found != right {
            let (way, story) =
                (if by_mount { "mount" } else { "client" }, self.history.story(&place));
            let difference = match (&found, &right) {
                (Some(found), Some(right)) => format!(
                    "{} bytes of {}, the first difference at {:?}, judged {:?}",
                    found.len(),
                    right.len(),
                    found.iter().zip(right).position(|(one, other)| one != other),
                    Payload::judge(&place, found)
                ),
                (found, right) => {
                    format!("there: {}, should be: {}", found.is_some(), right.is_some())
                }
            };
            let mut wrong = self.tally.wrong.lock().unwrap_or_else(PoisonError::into_inner);
            wrong.get_or_insert(format!("{place} by the {way}: {difference}\n{story}"));
        }
        Ok(true)
    }

    fn deploy(mut self) {
        while self.ordered() == Order::Work {
            self.deploy_once();
        }
    }
}
