//! Consensus: the only users of openraft. [`Consensus::start`] makes a running Raft node out of a
//! data directory; the rest of the master proposes operations, passes the read gate and looks at
//! the state.

pub(crate) mod entry;
mod log;
mod machine;
mod members;
mod network;
mod propose;
mod read;
pub(crate) mod seed;
mod snapshot;
mod stand;
pub(crate) mod state;
#[cfg(test)]
mod suite_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use atoll_net::Endpoint;
use atoll_proto::{Code, WireError};
use bytes::Bytes;
use openraft::error::{InitializeError, RaftError};
use openraft::metrics::RaftServerMetrics;
use openraft::{BasicNode, ServerState, SnapshotPolicy};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::live::marks::Marks;
use crate::operation::{OpReply, Operation};
use crate::store::rocks::{Rocks, Tuning};
use crate::store::{StoreError, masters, meta, wal};
use entry::{Raft, Vote};
use log::LogStore;
pub(crate) use machine::Applied;
use machine::StateMachine;
#[cfg(test)]
pub(crate) use machine::apply;
pub(crate) use members::Changing;
use network::{Heard, Network};
use propose::Proposer;
use read::ReadGate;
use state::StateDb;

/// How long the log may become.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogBounds {
    /// Entries between two snapshots.
    pub(crate) snapshot_entries: u64,
    /// Bytes of entries after which a snapshot is made even when they are few.
    pub(crate) snapshot_bytes: u64,
    /// Entries kept after a snapshot, so that a follower that lags a little needs no snapshot.
    pub(crate) kept_entries: u64,
    /// Bytes of entries kept after a snapshot, about: a follower that lacks more gets the snapshot.
    pub(crate) kept_bytes: u64,
}

impl Default for LogBounds {
    fn default() -> Self {
        Self {
            snapshot_entries: 10_000,
            snapshot_bytes: 256 << 20,
            kept_entries: 2_000,
            kept_bytes: 64 << 20,
        }
    }
}

/// How long a stopping master waits until its databases are closed.
const CLOSE_WAIT: Duration = Duration::from_secs(3);
/// Between two looks at that.
const CLOSE_LOOK: Duration = Duration::from_millis(2);
/// A follower refuses to elect another for so long after it heard of a leader.
const LEASE_MS: u64 = 600;
/// How long a vote is waited for.
const VOTE_MS: u64 = 500;
/// Length of the parts in which a snapshot travels.
const SNAPSHOT_PART_BYTES: u64 = 1 << 20;

/// The databases of one master, opened but not yet running.
pub(crate) struct Storage {
    log: LogStore,
    state: Arc<StateDb>,
    machine: StateMachine,
}

impl Storage {
    /// Opens the databases in a data directory, unless the log is damaged: RocksDB would cut it.
    pub(crate) fn open(data: &Path) -> Result<Storage, StoreError> {
        let place = data.join("log");
        // Of the state nothing rests on RocksDB's log: what it lacks is applied again.
        if let Some(hole) = wal::hole(&place).map_err(|e| StoreError::io("read its log", &e))? {
            let file = hole.file.display().to_string();
            return Err(StoreError::Damaged { file, at: hole.at });
        }
        let log = LogStore::new(Rocks::open(&place, Tuning::Log)?);
        let state = Arc::new(StateDb::open(data)?);
        let machine = StateMachine::new(state.clone())?;
        Ok(Storage { log, state, machine })
    }

    /// Whether this master never took part in consensus.
    pub(crate) fn log_is_empty(&self) -> Result<bool, StoreError> {
        self.log.is_empty()
    }

    /// Who votes by the state as it was left.
    pub(crate) fn voters(&self) -> Result<BTreeSet<u64>, StoreError> {
        Ok(meta::membership(&*self.state())?.voter_ids().collect())
    }

    /// The state as it was left.
    pub(crate) fn state(&self) -> Arc<Rocks> {
        self.state.rocks()
    }
}

/// A running Raft node. Clones share it.
#[derive(Clone)]
pub(crate) struct Consensus {
    id: u64,
    raft: Raft,
    log: LogStore,
    state: Arc<StateDb>,
    applied: watch::Receiver<Applied>,
    marks: Arc<Marks>,
    proposer: Proposer,
    gate: ReadGate,
    heard: Heard,
    /// Addresses of the configuration.
    peers: Arc<BTreeMap<u64, SocketAddr>>,
    /// When a leader spoke last.
    spoken: stand::Spoken,
    /// Held while the members change.
    changing: Arc<tokio::sync::Mutex<()>>,
    bounds: LogBounds,
}

/// What [`Consensus::compact`] remembers from one call to the next.
#[derive(Debug, Default)]
pub(crate) struct Grown {
    /// Bytes appended since the last snapshot it asked for.
    appended: u64,
    /// The last snapshot it saw, by log index.
    snapshot: u64,
}

/// Which role a master has in consensus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Position {
    /// The current leader, as far as known.
    pub(crate) leader: Option<u64>,
    /// The current term.
    pub(crate) term: u64,
    /// Last log index of each voter as far as known.
    pub(crate) log: BTreeMap<u64, u64>,
    /// This master's own role in words.
    pub(crate) role: &'static str,
}

impl Consensus {
    /// Starts the Raft node. `peers` are the addresses of the masters that the configuration has, this
    /// one's own among them.
    pub(crate) async fn start(
        id: u64,
        storage: Storage,
        endpoint: Endpoint,
        peers: BTreeMap<u64, SocketAddr>,
        bounds: LogBounds,
    ) -> Result<Consensus, StoreError> {
        let Storage { log, state, machine } = storage;
        let floor = log.position()?;
        let (applied, marks) = (machine.applied(), machine.marks());
        let network = Network::new(endpoint, peers.clone());
        let heard = network.heard();
        let peers = Arc::new(peers);
        let config = Arc::new(config(&bounds)?);
        let raft = Raft::new(id, config, network, log.clone(), machine)
            .await
            .map_err(|error| StoreError::io("start consensus", &error))?;
        let proposer = Proposer::start(raft.clone());
        let gate = ReadGate::start(raft.clone(), floor);
        drop(atoll_net::task::spawn("raft-clock", rest_when_alone(id, raft.clone())));
        let changing = Arc::default();
        let spoken = stand::Spoken::new();
        let standing = stand::stand_in_time(id, raft.clone(), spoken.clone());
        drop(atoll_net::task::spawn("raft-stand", standing));
        Ok(Consensus {
            id,
            raft,
            log,
            state,
            applied,
            marks,
            proposer,
            gate,
            heard,
            peers,
            spoken,
            changing,
            bounds,
        })
    }

    /// Forms a new cluster of these masters. Harmless when it is formed already.
    pub(crate) async fn bootstrap(
        &self,
        masters: BTreeMap<u64, SocketAddr>,
    ) -> Result<(), StoreError> {
        let nodes: BTreeMap<u64, BasicNode> =
            masters.into_iter().map(|(id, addr)| (id, BasicNode::new(addr))).collect();
        match self.raft.initialize(nodes).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(StoreError::io("form a cluster", &error)),
        }
    }

    /// A lone voter need not wait for an election timeout: nobody else could lead.
    pub(crate) async fn elect_if_alone(&self) {
        let alone =
            self.votes_alone() && self.raft.server_metrics().borrow().current_leader.is_none();
        if alone && let Err(error) = self.raft.trigger().elect().await {
            tracing::warn!(%error, "cannot start an election; it starts by itself later");
        }
    }

    /// This master's id.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Whether it has never taken part in consensus.
    pub(crate) fn log_is_empty(&self) -> Result<bool, StoreError> {
        self.log.is_empty()
    }

    /// The state as of now.
    pub(crate) fn state(&self) -> Arc<Rocks> {
        self.state.rocks()
    }

    /// How far the state is.
    pub(crate) fn applied(&self) -> watch::Receiver<Applied> {
        self.applied.clone()
    }

    /// Which inodes the last entries changed.
    pub(crate) fn marks(&self) -> Arc<Marks> {
        self.marks.clone()
    }

    /// Proposes an operation and waits until it is applied.
    pub(crate) async fn propose(&self, operation: &Operation, deadline: Instant) -> OpReply {
        self.proposer.propose(operation, deadline).await
    }

    /// Waits until a read of [`Consensus::state`] is linearizable.
    pub(crate) async fn read(&self) -> Result<(), WireError> {
        self.gate.pass().await
    }

    /// Whether this master leads, as far as it knows. From the same source as what
    /// [`Consensus::leadership_changed`] waits for: Raft tells its other metrics a moment later, and
    /// who was woken would be told that nothing has changed.
    pub(crate) fn leads(&self) -> bool {
        leader_by(&self.raft.server_metrics().borrow()) == Some(self.id)
    }

    /// The term in which this master leads, as far as it knows. No two leaderships of a process
    /// have the same.
    pub(crate) fn leadership(&self) -> Option<u64> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow();
        (leader_by(&metrics) == Some(self.id)).then(|| metrics.vote.leader_id().term)
    }

    /// Refuses unless this master leads, as far as it knows.
    pub(crate) fn check_leads(&self) -> Result<(), WireError> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow();
        match leader_by(&metrics) {
            Some(leader) if leader == self.id => Ok(()),
            leader => {
                let node = leader.and_then(|id| {
                    metrics.membership_config.nodes().find(|(node, _)| **node == id)
                });
                Err(not_leader(leader, node.map(|(_, node)| node)))
            }
        }
    }

    /// The highest term this master has seen.
    pub(crate) fn term(&self) -> u64 {
        self.raft.server_metrics().borrow().vote.leader_id().term
    }

    /// Roles and progress of the masters.
    pub(crate) fn position(&self) -> Position {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let mut log: BTreeMap<u64, u64> =
            metrics.membership_config.membership().voter_ids().map(|id| (id, 0)).collect();
        if let Some(replication) = &metrics.replication {
            for (id, log_id) in replication {
                log.insert(*id, log_id.map_or(0, |log_id| log_id.index));
            }
        }
        log.insert(self.id, metrics.last_log_index.unwrap_or(0));
        let term = metrics.current_term;
        let role = match metrics.state {
            ServerState::Leader => "leader",
            ServerState::Follower => "follower",
            ServerState::Candidate => "candidate",
            ServerState::Learner | ServerState::Shutdown => "learner",
        };
        drop(metrics);
        let leader = leader_by(&self.raft.server_metrics().borrow());
        Position { leader, term, log, role }
    }

    /// Whether another master answers nothing, as far as this one knows, if it leads.
    pub(crate) fn is_silent(&self, id: u64) -> bool {
        self.heard.is_silent(id, Instant::now())
    }

    /// Waits until leadership, as this master sees it, is other than `leads`. `false` when Raft
    /// has stopped.
    pub(crate) async fn leadership_changed(&self, leads: bool) -> bool {
        let id = self.id;
        let mut metrics = self.raft.server_metrics();
        metrics.wait_for(|metrics| (leader_by(metrics) == Some(id)) != leads).await.is_ok()
    }

    /// Resolves with a reason when consensus stopped because of an error: the process must end.
    pub(crate) async fn failed(&self) -> String {
        let mut metrics = self.raft.metrics();
        let failed = metrics.wait_for(|metrics| metrics.running_state.is_err()).await;
        match failed {
            Ok(metrics) => match &metrics.running_state {
                Err(error) => error.to_string(),
                Ok(()) => String::from("unknown"),
            },
            Err(_) => String::from("consensus ended"),
        }
    }

    /// Makes a snapshot when much was appended since the last call that did, and drops entries
    /// before a new one that are too many bytes to be kept.
    pub(crate) async fn compact(&self, grown: &mut Grown) {
        grown.appended += self.log.take_appended_bytes();
        if grown.appended >= self.bounds.snapshot_bytes {
            grown.appended = 0;
            self.snapshot().await;
        }
        let snapshot = self.raft.metrics().borrow().snapshot.map(|log_id| log_id.index);
        let Some(index) = snapshot.filter(|index| *index > grown.snapshot) else { return };
        grown.snapshot = index;
        let (log, bytes) = (self.log.clone(), self.bounds.kept_bytes);
        let looked =
            atoll_net::task::spawn_blocking("log-length", move || log.before_the_last(bytes));
        match looked.await {
            Ok(Ok(Some(before))) => {
                if let Err(error) = self.raft.trigger().purge_log(before.min(index)).await {
                    tracing::warn!(%error, "cannot drop entries of the log that a snapshot has");
                }
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot read how long the log is"),
            Err(error) => tracing::warn!(%error, "cannot read how long the log is"),
        }
    }

    /// Starts making a snapshot.
    pub(crate) async fn snapshot(&self) {
        if let Err(error) = self.raft.trigger().snapshot().await {
            tracing::warn!(%error, "cannot make a snapshot; the log grows until it works");
        }
    }

    /// Whether nobody else can lead, as far as this master knows: to change that takes an entry of its
    /// own log.
    pub(crate) fn votes_alone(&self) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow();
        let mut voters = metrics.membership_config.membership().voter_ids();
        voters.next() == Some(self.id) && voters.next().is_none()
    }

    /// Answers a message of another master. One that decides alone answers only who led it before:
    /// one that lost its disk and knew no others has formed a cluster anew, and must not be taken for
    /// the one it was.
    pub(crate) async fn answer(&self, message: &Bytes, body: &Bytes) -> Result<Bytes, WireError> {
        let message = network::read(message, body);
        if self.votes_alone() && !message.as_ref().is_ok_and(|message| self.was_led(message)) {
            return Err(WireError::unavailable("this master decides alone"));
        }
        network::answer(self.id, &self.raft, &self.spoken, message?).await
    }

    /// Whether a message is from the leader that made this master the only voter and left: it must
    /// hear that it has, also when the first answer was lost. Either this master holds its vote still,
    /// durably, and so has forgotten nothing of that term; or it has seen a higher term and knows that
    /// the other was retired: then Raft answers with the higher vote and changes nothing here.
    fn was_led(&self, message: &network::RaftMessage) -> bool {
        let Some(vote) = message.leader().filter(Vote::is_committed) else { return false };
        let Some(leader) = vote.leader_id().voted_for().filter(|id| *id != self.id) else {
            return false;
        };
        let own = self.raft.server_metrics().borrow().vote;
        if vote == own {
            return true;
        }
        let record = masters::get(&*self.state(), leader).ok().flatten();
        let retired = record.is_some_and(|record| record.retired_ms.is_some());
        retired && vote.leader_id().term < own.leader_id().term
    }

    /// Stops the node.
    pub(crate) async fn stop(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "consensus did not stop in order");
        }
    }

    /// The databases, to wait until they are closed.
    pub(crate) fn databases(&self) -> Databases {
        Databases([self.log.open_mark(), self.state.rocks().open_mark()])
    }
}

/// The databases of a master that is stopping.
#[derive(Debug)]
pub(crate) struct Databases([Weak<()>; 2]);

impl Databases {
    /// Waits until all are closed. Tasks that were cancelled end a moment later, and a request that is
    /// read from the disk just now cannot be; until then another master cannot be started on the
    /// directory.
    pub(crate) async fn closed(self) {
        let in_use = || self.0.iter().any(|open| open.strong_count() > 0);
        let until = Instant::now() + CLOSE_WAIT;
        while in_use() {
            if Instant::now() >= until {
                tracing::warn!("the databases are still in use though this master has stopped");
                return;
            }
            tokio::time::sleep(CLOSE_LOOK).await;
        }
    }
}

/// Who leads, as far as a master knows. Raft goes on naming one that removed itself as the leader, at
/// that very master, until it hears of another.
fn leader_by(metrics: &RaftServerMetrics<u64, BasicNode>) -> Option<u64> {
    let leads = metrics.state == ServerState::Leader;
    metrics.current_leader.filter(|leader| *leader != metrics.id || leads)
}

/// Stops Raft's clock while this master is the only voter and leads: there is nobody to send
/// heartbeats to and no election to miss, and ten ticks a second are most of what an idle master
/// would do. Ends with Raft.
async fn rest_when_alone(id: u64, raft: Raft) {
    let mut metrics = raft.server_metrics();
    loop {
        let alone = {
            let metrics = metrics.borrow_and_update();
            let mut voters = metrics.membership_config.membership().voter_ids();
            let only = voters.next() == Some(id) && voters.next().is_none();
            only && metrics.current_leader == Some(id)
        };
        raft.runtime_config().tick(!alone);
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

fn config(bounds: &LogBounds) -> Result<openraft::Config, StoreError> {
    let config = openraft::Config {
        cluster_name: "atoll".to_owned(),
        // For the longest timeout after it heard of a leader a follower elects nobody. By openraft's
        // clock it stands after that and its own timeout (drawn once, at its start): after 1.1 to 1.2 s
        // and eleven missing heartbeats; by that of `stand` after 0.9 to 1.2 s, nine at least. One that
        // was ever told of a longer log waits twice the longest timeout more by openraft's clock. The
        // shortest timeout is also how long a vote is waited for, which the voter syncs before it
        // answers: openraft has no other option for that, and it must be below the longest.
        heartbeat_interval: 100,
        election_timeout_min: VOTE_MS,
        election_timeout_max: LEASE_MS,
        install_snapshot_timeout: 5000,
        max_payload_entries: 64,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(bounds.snapshot_entries),
        snapshot_max_chunk_size: SNAPSHOT_PART_BYTES,
        max_in_snapshot_log_to_keep: bounds.kept_entries,
        replication_lag_threshold: bounds.snapshot_entries * 2,
        ..openraft::Config::default()
    };
    config.validate().map_err(|error| StoreError::io("start consensus", &error))
}

/// The error of a master that does not lead.
pub(crate) fn not_leader(leader: Option<u64>, node: Option<&BasicNode>) -> WireError {
    let message = match (leader, node) {
        (Some(id), Some(node)) => {
            format!("this master is not the leader: ask master {id} at {}", node.addr)
        }
        (Some(id), None) => format!("this master is not the leader: ask master {id}"),
        (None, _) => "the masters have no leader at the moment: ask again shortly, and check \
                      that most of them are running if this persists"
            .to_owned(),
    };
    WireError::new(Code::NotLeader, message)
}

/// How long internal proposals (of tasks, not of requests) may take.
pub(crate) const TASK_DEADLINE: Duration = Duration::from_secs(5);
