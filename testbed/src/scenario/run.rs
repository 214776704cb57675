//! Carries a scenario out on a real cluster.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::runtime::Runtime;

use super::{During, Kind, Round, Scenario};
use crate::checks::{self, Extent, Eyes, Verdict};
use crate::cluster::DevCluster;
use crate::disk::DiskKind;
use crate::faults::{Fault, packets_cut, power};
use crate::history::{History, State, Way};
use crate::volume::Volume;
use crate::wait;
use crate::workload::{Crew, CrewPlan, Done, way_of};

/// Until a crew on a cluster without faults must have got so far.
const WORK_TIMEOUT: Duration = Duration::from_secs(60);
/// Until a crew must get on in spite of a fault: longer than any lease, election and deadline.
const FAULT_TIMEOUT: Duration = Duration::from_secs(120);
/// Until every chunk must be back in all its places.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(300);
/// Places that are read after a round beside those that were changed in it.
const OTHERS: usize = 60;

/// What a scenario came to.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Rounds that were carried out.
    pub rounds: usize,
    /// Operations acknowledged, all of them found durable.
    pub acknowledged: u64,
    /// Operations whose outcome was open.
    pub unknown: u64,
    /// Reads while things went wrong, all of them right.
    pub reads: u64,
    /// Operations and reads that failed where they may.
    pub failed: u64,
    /// Packets that cut links kept back.
    pub packets_cut: u64,
    /// Chunks that the cluster found corrupt, of those that were made so.
    pub corrupt_found: u64,
    /// How long each round took.
    pub times: Vec<Duration>,
    /// What this build gives no means to check.
    pub cannot_tell: BTreeSet<String>,
}

/// Carries it out: every promise is checked after every round, and all of them at the end.
/// `binary` is the one under test, if not the one beside this executable. Not for asynchronous code.
///
/// # Errors
/// When a promise is broken; with the command that repeats it. The cluster's data stay then.
pub fn run(
    kind: Kind,
    seed: u64,
    rounds: usize,
    disk: DiskKind,
    binary: Option<&Path>,
) -> Result<Report> {
    let first = Scenario::plan(kind, seed, rounds, disk, false);
    let mut act = Run::start(&first, binary)?;
    let heals = checks::counts_copies(&act.cluster)?;
    let scenario = Scenario::plan(kind, seed, rounds, disk, heals);
    ensure!(scenario.shape == first.shape, "the shape must not depend on what the build can do");
    let repeat = scenario.command_to_repeat();
    act.cluster.tell(format_args!("to repeat: {repeat}"));
    let result = act.carry_out(&scenario);
    if result.is_err() {
        let path = act.cluster.work().join("history.jsonl");
        act.history.save(&path)?;
        act.cluster.tell(format_args!("the whole history is in {}", path.display()));
    }
    let round = act.report.rounds;
    result.with_context(|| format!("round {round} of {rounds}; to repeat: {repeat}"))?;
    act.end()
}

/// Whether a place is written through the client library, so that no kernel has to learn of its end.
fn by_client(place: &str) -> bool {
    let index = place.rsplit_once("/f").and_then(|(_, index)| index.parse().ok());
    index.is_some_and(|index| way_of(index, true) == Way::Client)
}

struct Run {
    cluster: Arc<DevCluster>,
    history: Arc<History>,
    runtime: Runtime,
    report: Report,
    mounted: bool,
    deploys: bool,
}

impl Run {
    fn start(scenario: &Scenario, binary: Option<&Path>) -> Result<Self> {
        let (shape, seed) = (&scenario.shape, scenario.seed);
        let mut builder = DevCluster::builder()
            .masters(shape.masters)
            .chunkservers(shape.chunkservers)
            .edges(shape.edges)
            .shields(0)
            .repeat(&scenario.command_to_repeat())
            .seed(seed);
        if shape.mounted {
            builder = builder.mounted();
        }
        if let Some((kind, bytes)) = shape.disk {
            builder = builder.lossy_disks(kind, bytes);
        }
        if let Some(binary) = binary {
            builder = builder.binary(binary);
        }
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        Ok(Self {
            cluster: Arc::new(builder.start()?),
            history: Arc::new(History::new()),
            runtime,
            report: Report::default(),
            mounted: shape.mounted,
            deploys: shape.edges > 0,
        })
    }

    fn carry_out(&mut self, scenario: &Scenario) -> Result<()> {
        for (number, round) in scenario.rounds.iter().enumerate() {
            self.report.rounds = number + 1;
            let shown = serde_json::to_string(round)?;
            self.cluster.tell(format_args!("== round {}: {shown}", number + 1));
            let start = Instant::now();
            let (done, kept_back) = self.round(scenario, number, round)?;
            let took = start.elapsed();
            self.report.times.push(took);
            self.report.reads += done.reads;
            self.report.failed += done.failed;
            self.report.packets_cut += kept_back;
            let (acknowledged, unknown) = self.history.counts();
            self.cluster.tell(format_args!(
                "round {} was right: {took:.1?}, in all {acknowledged} acknowledged, {unknown} open",
                number + 1
            ));
        }
        self.everything(scenario)
    }

    fn round(&self, scenario: &Scenario, number: usize, round: &Round) -> Result<(Done, u64)> {
        let since = self.history.len();
        let plan = CrewPlan {
            seed: scenario.seed.wrapping_mul(1009).wrapping_add(number as u64),
            mounted: self.mounted,
            deploys: self.deploys,
            // A small disk is to run full by the fault, not by the crew.
            bytes_max: if scenario.kind == Kind::FullDisk { 100 << 10 } else { u64::MAX },
            ..CrewPlan::default()
        };
        let crew = Crew::start(&self.cluster, &self.history, &plan, self.runtime.handle())?;
        crew.until_acknowledged(0, round.acknowledged, WORK_TIMEOUT).context("before the fault")?;
        ensure!(crew.done().failed == 0, "failed without a fault: {:?}", crew.done().failures);
        // When within an operation the fault strikes is part of the data.
        sleep(Duration::from_millis(round.pause_ms));
        let at_fault = crew.acknowledged();
        for fault in &round.faults {
            fault.apply(&self.cluster)?;
        }
        if round.during != During::Rests {
            sleep(Duration::from_millis(round.hold_ms));
        }
        match round.during {
            During::Rests | During::MayFail => {}
            During::Refuses => {
                wait::holds("an operation that is refused", FAULT_TIMEOUT, || {
                    crew.done().failed > 0
                })?;
                self.a_removal_needs_no_room()?;
            }
            During::Progresses { acknowledged } | During::Unharmed { acknowledged } => {
                crew.until_acknowledged(at_fault, acknowledged, FAULT_TIMEOUT)?;
            }
        }
        let kept_back = self.kept_back(round)?;
        let done = if let During::Unharmed { .. } = round.during {
            let done = crew.finish()?;
            ensure!(
                done.failed == 0,
                "{:?} must harm nobody: {} failed:\n{}",
                round.faults,
                done.failed,
                done.failures.join("\n")
            );
            self.put_right(round)?;
            done
        } else {
            crew.let_go();
            self.put_right(round)?;
            let done = crew.halt()?;
            if round.faults.contains(&Fault::PowerCut(Vec::new())) {
                self.history.mount_ended();
            }
            done
        };
        self.look(scenario, number, round, since)?;
        Ok((done, kept_back))
    }

    /// Removes a file that nobody works on at the moment.
    fn a_removal_needs_no_room(&self) -> Result<()> {
        let handle = self.runtime.handle();
        let volume = handle.block_on(Volume::connect(&self.cluster))?;
        for (place, _) in self.history.places().into_iter().filter(|(name, _)| by_client(name)) {
            let begun = self.history.begin(&place, Way::Client, |_, now| {
                matches!(now, State::Holds(_)).then_some(State::Absent)
            });
            let Some((ticket, _)) = begun else { continue };
            return match handle.block_on(volume.remove(&place)) {
                Ok(()) => {
                    self.history.acknowledged(ticket);
                    Ok(())
                }
                Err(error) => {
                    self.history.unknown(ticket, format_args!("{error:#}"));
                    Err(error.context("a removal while disks are full"))
                }
            };
        }
        bail!("there is nothing to remove")
    }

    /// Packets that cut links kept back in this round.
    fn kept_back(&self, round: &Round) -> Result<u64> {
        let mut packets = 0;
        for fault in &round.faults {
            if let Fault::CutLink(one, other) | Fault::CutOneWay { from: one, to: other } = fault {
                packets += packets_cut(&self.cluster, *one, *other)?;
            }
        }
        Ok(packets)
    }

    fn put_right(&self, round: &Round) -> Result<()> {
        for after_ms in &round.flickers_ms {
            self.cluster.tell(format_args!("the power comes back for {after_ms} ms"));
            power::flicker(&self.cluster, *after_ms)?;
        }
        for fault in round.faults.iter().rev() {
            let stays = matches!(
                fault,
                Fault::Damage { .. } | Fault::CorruptFile { .. } | Fault::Wipe(_) | Fault::Stop(_)
            );
            if !stays {
                fault.undo(&self.cluster)?;
            }
        }
        self.cluster.wait_healthy()
    }

    fn look(&self, scenario: &Scenario, number: usize, round: &Round, since: usize) -> Result<()> {
        if let Some(node) = round.missing {
            Fault::Kill(node).apply(&self.cluster)?;
        }
        let seed = scenario.seed.wrapping_add(number as u64);
        let eyes = Eyes::open(&self.cluster, self.runtime.handle())?;
        let extent = Extent::Some { since, others: OTHERS, seed };
        let read = checks::acked_is_durable(&eyes, &self.history, extent)?;
        self.cluster.tell(format_args!("acked_is_durable: {read} places are right"));
        if let Some(node) = round.missing {
            Fault::Start(node).apply(&self.cluster)?;
            self.cluster.wait_healthy()?;
        }
        if scenario.heals {
            checks::replication(&self.cluster, REPAIR_TIMEOUT)?;
        }
        Ok(())
    }

    /// All that was ever acknowledged, after kill -9 of everything; and the cluster's own view.
    fn everything(&mut self, scenario: &Scenario) -> Result<()> {
        self.cluster.kill9_all()?;
        self.history.mount_ended();
        self.cluster.start_dev()?;
        self.cluster.wait_healthy()?;
        let eyes = Eyes::open(&self.cluster, self.runtime.handle())?;
        let read = checks::acked_is_durable(&eyes, &self.history, Extent::All)?;
        self.cluster.tell(format_args!("acked_is_durable: all {read} places are right"));
        let verdicts = [
            ("replication", checks::replication(&self.cluster, REPAIR_TIMEOUT)?),
            ("no_orphans", checks::no_orphans(&self.cluster)?),
        ];
        for (name, verdict) in verdicts {
            match verdict {
                Verdict::Holds(seen) => self.cluster.tell(format_args!("{name}: {seen}")),
                Verdict::CannotTell(why) => {
                    self.cluster.tell(format_args!("{name}: CANNOT TELL: {why}"));
                    self.report.cannot_tell.insert(format!("{name}: {why}"));
                }
            }
        }
        let status = checks::status(&self.cluster)?;
        self.report.corrupt_found = status["chunks"]["corrupt_found"].as_u64().unwrap_or_default();
        if scenario.kind == Kind::Partition {
            ensure!(self.report.packets_cut > 0, "no cut link ever kept a packet back");
        }
        // What a scenario damages it must also find again, in a build that claims to heal.
        if scenario.kind != Kind::Corruption || scenario.heals {
            self.cluster.ensure_all_run()?;
        }
        Ok(())
    }

    fn end(self) -> Result<Report> {
        let (acknowledged, unknown) = self.history.counts();
        let report = Report { acknowledged, unknown, ..self.report };
        let cluster = Arc::into_inner(self.cluster).context("somebody still holds the cluster")?;
        cluster.finish()?;
        Ok(report)
    }
}
