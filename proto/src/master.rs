//! What everybody asks of the master.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    ChunkId, ClusterId, DeployId, Epoch, NodeId, PgId, Seq, SessionId, SiteName,
    backup::{BackupAnswer, BackupAsk},
    chunk::ChunkStat,
    cluster::{ClusterView, NodeInfo},
    erase::{ErasedBy, ErasedPart, ErasureRecord},
    masters::{Greeting, Incarnation, MasterView, MastersOp},
    namespace::{NamespaceOp, NamespaceQuery, NamespaceReply},
    publish::{Alias, Deploy, PublishEntry, PublishSnapshot, Published, Site, SiteOp},
    receipt::{Receipt, ReceiptKey},
    relay::{RelayKey, RelayedAck, RelayedGrant, RelayedRenewal},
    tree::{Ask, Digest, Found},
};

/// A request to a master. Variant numbers are stable on the wire: only append.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MasterRequest {
    /// Open a session. Answered with `Session`.
    OpenSession {
        /// For people: program, host, process.
        name: String,
    },
    /// A change, done exactly once however often it is sent. Answered with `Changed`.
    Change {
        /// In which session.
        session: SessionId,
        /// The number of the request within the session; a repeat gets the first answer again.
        number: u64,
        /// All requests numbered below this one are answered: their replies may be forgotten.
        /// At most 1,024 requests may be open at a time.
        acked_below: u64,
        /// What to change.
        change: Change,
    },
    /// A question about the namespace, linearizable. Answered with `Namespace`.
    Namespace(NamespaceQuery),
    /// Nodes and placement. Answered with `Cluster`.
    Cluster {
        /// Answer `None` when nothing changed since this index.
        known_index: Option<u64>,
    },
    /// Which of these chunks are in the object table? Answered with `Known`.
    Known {
        /// At most `limits::IDS_MAX`.
        ids: Vec<ChunkId>,
    },
    /// All sites. Answered with `Sites`.
    Sites,
    /// One site with aliases. Answered with `Site`.
    Site {
        /// Which.
        site: SiteName,
    },
    /// Deploys of a site, latest first. Answered with `Deploys`.
    Deploys {
        /// Of which site.
        site: SiteName,
        /// Only deploys with a smaller seq.
        before: Option<Seq>,
        /// At most this many (and at most 1,000).
        limit: u32,
    },
    /// Follow the publish log. Waits until there is an entry after `after`, or `wait_ms`. From an
    /// edge it also says what that edge has applied. Answered with `Log` or `Snapshot`.
    Watch {
        /// The last entry the asker knows; 0 for none.
        after: Seq,
        /// For an edge: its id; every entry up to `after` is applied there.
        edge: Option<NodeId>,
        /// How long to wait at most, in milliseconds.
        wait_ms: u32,
    },
    /// Wait until every live edge has applied this entry, or `wait_ms`. Answered with `Applied`.
    WaitApplied {
        /// Which entry.
        seq: Seq,
        /// How long to wait at most, in milliseconds.
        wait_ms: u32,
    },
    /// A node introduces itself at its start. Answered with `Registered`.
    Register {
        /// What it is.
        info: NodeInfo,
    },
    /// A node is alive. Answered with `Heard`.
    Heartbeat {
        /// Which node.
        node: NodeId,
        /// Whether it can do its work.
        ready: bool,
        /// For chunkservers.
        stat: Option<ChunkStat>,
        /// For chunkservers that have applied the deltas so far: what they have.
        tree: Option<TreeReport>,
    },
    /// How the cluster does. Answered with `Status`.
    Status,
    /// All tokens, without their secrets. Answered with `Tokens`.
    Tokens,
    /// Between masters: a message of the consensus protocol. Answered with `Raft`.
    Raft {
        /// Encoded by the master.
        message: Bytes,
    },
    /// From a chunkserver: which chunks of its groups became live or were collected after this
    /// log index. Waits until there is one, or `wait_ms`. Answered with `Deltas`.
    Deltas {
        /// Which node.
        node: NodeId,
        /// The last log index whose deltas it has applied.
        after: u64,
        /// How long to wait at most, in milliseconds.
        wait_ms: u32,
    },
    /// From a chunkserver: steps down the tree of what its groups should have. Answered with
    /// `Walked`.
    Walk {
        /// Which node.
        node: NodeId,
        /// Epoch of the placement table it goes by.
        epoch: Epoch,
        /// The log index up to which it has applied the deltas: a group that changed later is
        /// answered with `Found::Moved`.
        index: u64,
        /// At most `limits::WALK_ASKS_MAX`.
        asks: Vec<Ask>,
    },
    /// What the object table says of these chunks, linearizable. Answered with `Objects`.
    Objects {
        /// At most `limits::PUT_CHUNKS_MAX`.
        ids: Vec<ChunkId>,
    },
    /// From an administrator: count all references again, or see how that goes. Answered with
    /// `Audit`.
    Audit {
        /// Begin unless it runs.
        start: bool,
    },
    /// From an administrator: a copy of the metadata. Answered with `Backup`.
    Backup(BackupAsk),
    /// From an edge that answers no request any more and is about to end: publishes need not wait
    /// for it. Asked twice: first without a number, which is answered with one, and then with
    /// that. It holds only if nothing was heard of the node in between and until something is
    /// heard of it again, so that a farewell that comes late is not taken for one of the node's
    /// next run. Answered with `Farewell`.
    Farewell {
        /// Which node.
        node: NodeId,
        /// What the first answer said.
        number: Option<u64>,
    },
    /// Seal a live site's directory now, and point `production` at it. Answered with `Changed`.
    Seal {
        /// Which site.
        site: SiteName,
    },
    /// From an edge: it is alive, and wants to serve for another term (`lease`). Answered with
    /// `Renewed`.
    Renew {
        /// Which node.
        node: NodeId,
        /// Whether it can do its work.
        ready: bool,
        /// The last entry of the publish log that is in force there; `None` while it knows none.
        applied: Option<Seq>,
    },
    /// Wait until every edge has applied this entry or cannot answer with what was before it, or
    /// `wait_ms`. Answered with `Confirmed`.
    WaitPublished {
        /// Which entry.
        seq: Seq,
        /// How long to wait at most, in milliseconds.
        wait_ms: u32,
    },
    /// From an edge: it will speak through a shield (`relay`). Answered with `Enrolled`.
    Enrol {
        /// Which node.
        node: NodeId,
    },
    /// From a shield: what edges say through it. Both together have at most
    /// `limits::RELAY_ITEMS_MAX` items. Answered with `Relayed`.
    Relay {
        /// Which node the shield is.
        shield: NodeId,
        /// Which edges have applied what.
        acks: Vec<RelayedAck>,
        /// Which edges ask for a lease.
        renewals: Vec<RelayedRenewal>,
    },
    /// The list of erased chunks: what changed after a log index. Waits until there is something,
    /// or `wait_ms`. With `node` it also says that everything up to `after` is carried out there.
    /// Answered with `Erased`.
    Erased {
        /// The last log index the asker has; 0 for none.
        after: u64,
        /// For a chunkserver or an edge that has carried out everything up to `after`: its id.
        node: Option<NodeId>,
        /// How long to wait at most, in milliseconds.
        wait_ms: u32,
    },
    /// Which chunkservers and edges have carried out the list of erased chunks up to a log index?
    /// Answered with `ErasedBy`.
    ErasedBy {
        /// Which.
        index: u64,
    },
    /// What the erasures for a site were about, one at a time. Answered with `Erasure`.
    Erasures {
        /// Which site.
        site: SiteName,
        /// The key of the last one that was told.
        after: Option<ChunkId>,
    },
    /// Pages and lists that nothing refers to, not collected yet: they may be referred to again.
    /// Answered with `Unreferenced`.
    Unreferenced {
        /// Where the last answer ended.
        after: Option<(u64, ChunkId)>,
    },
    /// Between masters, also such as are no members yet: who are you, and what do you know of me?
    /// Answered with `Greeting`.
    Greet {
        /// The asker's id.
        id: u64,
        /// The asker's incarnation.
        incarnation: Incarnation,
    },
    /// The masters, as the leader knows them. Answered with `Masters`.
    Masters,
    /// From an administrator: a step of a change of the masters. May be repeated. Answered with
    /// `Masters` as they are then.
    ChangeMasters(MastersOp),
}

/// How the recount of all references goes, as the leader sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditView {
    /// Whether it runs now.
    pub running: bool,
    /// Recounts that ended since this master leads, well or not: a start is done when this grew
    /// and nothing runs.
    pub ended: u64,
    /// Passes of the current (or last) recount.
    pub passes: u32,
    /// Objects compared in its last pass.
    pub objects: u64,
    /// Pages and lists read in its last pass.
    pub pages: u64,
    /// Those that could not be read: then nothing is lowered.
    pub pages_unreadable: u64,
    /// Objects whose count was too low and was raised.
    pub raised: u64,
    /// Chunks that are referred to and were not in the object table, and are now.
    pub created: u64,
    /// Objects whose count was too high in two passes and was lowered.
    pub lowered: u64,
    /// Why it stopped before its end; `None` when the last one was complete.
    pub failure: Option<String>,
}

/// What a chunkserver has of what its groups should have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeReport {
    /// Epoch of the placement table that says which groups it keeps.
    pub epoch: Epoch,
    /// The log index up to which it has applied the deltas.
    pub index: u64,
    /// Root over the roots of its groups (`tree::NodeTree`).
    pub root: Digest,
    /// The groups that changed since the last report that was answered, with their roots; at most
    /// `limits::REPORT_GROUPS_MAX`. All of its groups in turn while the master says that `root`
    /// differs. Empty when nothing changes: then a report is less than 64 bytes.
    pub groups: Vec<(PgId, Digest)>,
}

/// What the master wants of a chunkserver beside its table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// Nothing may be moved to quarantine or deleted.
    pub frozen: bool,
    /// Grows when an operator releases what was halted or frozen: a server that halted under a
    /// smaller number goes on, once.
    pub release: u64,
    /// Grows when an operator asks for a scrub: verify everything now, then report this number.
    pub scrub: u64,
}

/// A chunk became live, or was collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// Log index of the change.
    pub index: u64,
    /// Which chunk.
    pub id: ChunkId,
    /// True: the cluster must keep it from now on. False: it was collected.
    pub live: bool,
}

/// What the object table says of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectView {
    /// How many files, pages, lists and deploys refer to it.
    pub refs: u64,
    /// Its length in bytes.
    pub len: u32,
    /// What it holds.
    pub kind: ObjectKind,
}

/// What an operator wants of chunkservers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeOp {
    /// Move its groups to others; it can be removed once they have moved.
    Drain {
        /// Which.
        node: NodeId,
    },
    /// It keeps its share again.
    Undrain {
        /// Which.
        node: NodeId,
    },
    /// It will not come back: its groups go to others at once.
    Lose {
        /// Which.
        node: NodeId,
    },
    /// Forget a node that keeps no group. Its number is never used again.
    Remove {
        /// Which.
        node: NodeId,
    },
    /// As `Remove`, of a node that is gone: also while groups on the move may still be waiting for
    /// chunks that only it has.
    RemoveGone {
        /// Which.
        node: NodeId,
    },
}

impl NodeOp {
    /// The node it is about.
    pub fn node(&self) -> NodeId {
        match self {
            Self::Drain { node }
            | Self::Undrain { node }
            | Self::Lose { node }
            | Self::Remove { node }
            | Self::RemoveGone { node } => *node,
        }
    }
}

/// What an operator wants of collection, repair and scrubbing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpkeepOp {
    /// Nothing is collected and no server drops anything until `Release`.
    Freeze {
        /// Why, for `status`.
        reason: String,
    },
    /// What was frozen or halted goes on.
    Release,
    /// Verify every chunk now.
    Scrub,
}

/// A change to the replicated state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Of the namespace.
    Namespace(NamespaceOp),
    /// Of sites, aliases, deploys.
    Site(SiteOp),
    /// Admit manifest pages and list chunks, whose children are all known or covered: leaves
    /// first, the root last. The master reads them from the chunkservers.
    Admit {
        /// The pages (any order within one request as long as children come in earlier requests
        /// or earlier in the list).
        pages: Vec<AdmitPage>,
        /// Cover for the pages and their children.
        receipts: Vec<Receipt>,
    },
    /// Create a token. Answered with `TokenMade`.
    TokenCreate {
        /// BLAKE3 of the secret; the secret never reaches the log.
        hash: ChunkId,
        /// What it may do.
        grant: Grant,
    },
    /// Remove a token by its public id.
    TokenRemove {
        /// The id `Tokens` shows.
        id: u64,
    },
    /// Of chunkservers. Answered with `Node`.
    Node(NodeOp),
    /// Of collection and scrubbing. Answered with `Upkeep`.
    Upkeep(UpkeepOp),
    /// The request with this number was sent and its answer never came: it is either done already, or
    /// never will be. Answered with what it was answered with if it changed something, else with
    /// `Abandoned`.
    Abandon,
}

/// A page or list chunk to admit. A chunk of kind `Data` has no children and needs only cover: an
/// upload stages what it has sent so far in this way, so that it can be resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdmitPage {
    /// Which chunk.
    pub id: ChunkId,
    /// How to read it.
    pub kind: ObjectKind,
}

/// What a chunk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ObjectKind {
    /// File bytes.
    Data,
    /// A manifest page; it counts its children.
    Page,
    /// A list chunk; it counts its extents.
    List,
}

/// What a token may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// For people.
    pub name: String,
    /// The verbs it allows.
    pub verbs: Vec<Verb>,
    /// Only on this site; `None` for all.
    pub site: Option<SiteName>,
    /// Milliseconds since the Unix epoch after which it is void; `None` for never.
    pub expires_ms: Option<u64>,
}

/// What a request needs to be allowed to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Read files, sites, status.
    Read,
    /// Change the namespace.
    Write,
    /// Deploy, move aliases, invalidate.
    Deploy,
    /// Sites, tokens, nodes.
    Admin,
}

/// A token as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    /// Its public id.
    pub id: u64,
    /// What it may do.
    pub grant: Grant,
    /// When it was made, milliseconds since the Unix epoch.
    pub created_ms: u64,
}

/// A master's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MasterResponse {
    /// To `OpenSession`.
    Session {
        /// Its id.
        session: SessionId,
        /// The cluster.
        cluster: ClusterId,
    },
    /// To `Change`.
    Changed {
        /// Log index of the change.
        index: u64,
        /// What came of it.
        reply: Changed,
    },
    /// To `Namespace`.
    Namespace {
        /// Log index the answer was read at.
        index: u64,
        /// The answer.
        reply: NamespaceReply,
    },
    /// To `Cluster`; `None` when nothing changed.
    Cluster(Option<Box<ClusterView>>),
    /// To `Known`: one entry per id asked.
    Known(Vec<bool>),
    /// To `Sites`.
    Sites(Vec<(Site, Vec<Alias>)>),
    /// To `Site`.
    Site {
        /// The site.
        site: Site,
        /// Its aliases.
        aliases: Vec<Alias>,
    },
    /// To `Deploys`.
    Deploys(Vec<Deploy>),
    /// To `Watch`: entries in order; empty when the wait ended.
    Log {
        /// At most `limits::WATCH_ENTRIES_MAX`.
        entries: Vec<PublishEntry>,
        /// The asker is up to date with this entry once it has applied `entries`.
        upto: Seq,
    },
    /// To `Watch` when the log no longer reaches back to `after`.
    Snapshot(Box<PublishSnapshot>),
    /// To `WaitApplied`.
    Applied {
        /// Live edges that have applied the entry.
        acked: Vec<String>,
        /// Live edges that have not, when the wait ended.
        waiting: Vec<String>,
        /// Edges that are down and were not waited for.
        down: Vec<String>,
    },
    /// To `Register`.
    Registered {
        /// The cluster.
        cluster: ClusterId,
        /// Signs receipts; only given to chunkservers.
        receipt_key: Option<ReceiptKey>,
        /// Current epoch of the placement table.
        epoch: Epoch,
        /// The highest term the master has seen.
        term: u64,
    },
    /// To `Heartbeat`.
    Heard {
        /// Current epoch; fetch the table when it is newer than yours.
        epoch: Epoch,
        /// The master's term.
        term: u64,
        /// False: the master does not know this node; register again.
        known: bool,
        /// What is wanted of it, for chunkservers.
        orders: Orders,
        /// To a report: whether the roots are equal; `None` when they cannot be compared now
        /// (another epoch, or a group changed after the report's index).
        in_sync: Option<bool>,
        /// The groups among those reported whose roots differ at the same index.
        differ: Vec<PgId>,
    },
    /// To `Status`.
    Status(Box<Status>),
    /// To `Tokens`.
    Tokens(Vec<TokenView>),
    /// To `Raft`.
    Raft {
        /// Encoded by the master.
        message: Bytes,
    },
    /// To `Deltas`: in order of the log, those of the asker's groups only.
    Deltas {
        /// At most `limits::DELTAS_MAX`; all of one log index are in one answer.
        deltas: Vec<Delta>,
        /// Everything up to this log index is in `deltas`.
        upto: u64,
        /// The feed does not reach back to `after`: what is missing must be found by comparing.
        gap: bool,
    },
    /// To `Walk`: one answer per question.
    Walked(Vec<Found>),
    /// To `Objects`: one entry per id asked; `None` for one that is not kept.
    Objects(Vec<Option<ObjectView>>),
    /// To `Audit`.
    Audit(Box<AuditView>),
    /// To `Backup`. The bytes of a part are the body.
    Backup(BackupAnswer),
    /// To `Farewell`.
    Farewell {
        /// What to say it with.
        number: u64,
        /// Whether nobody waits for the node any more.
        gone: bool,
    },
    /// To `Renew`.
    Renewed {
        /// False: the master does not know this node; register again.
        known: bool,
        /// The lease is granted; it counts from when the request was sent. Otherwise the edge has
        /// not applied everything.
        granted: bool,
    },
    /// To `WaitPublished`.
    Confirmed {
        /// Edges that have applied the entry.
        acked: Vec<String>,
        /// Edges that have not, and may still answer with what was before it.
        waiting: Vec<String>,
        /// Edges that have not, and cannot.
        down: Vec<String>,
        /// Milliseconds until those that are waited for surely cannot either; `None`: never.
        left_ms: Option<u64>,
    },
    /// To `Enrol`.
    Enrolled {
        /// What the edge seals with, until it registers again or another master leads; `None`: the
        /// master does not know this node.
        key: Option<RelayKey>,
    },
    /// To `Relay`: one entry for each item, in the same order.
    Relayed {
        /// Whether the acknowledgement was taken.
        acks: Vec<bool>,
        /// `None`: the master has no key of that edge, which should turn to it.
        renewals: Vec<Option<RelayedGrant>>,
    },
    /// To `Erased`.
    Erased(ErasedPart),
    /// To `ErasedBy`.
    ErasedBy(ErasedBy),
    /// To `Erasures`: the next one with its key, in the order of keys; `None` after the last.
    Erasure(Option<Box<(ChunkId, ErasureRecord)>>),
    /// To `Unreferenced`.
    Unreferenced {
        /// Those among what was looked through.
        pages: Vec<(ChunkId, ObjectKind)>,
        /// Where to go on; `None` at the end.
        next: Option<(u64, ChunkId)>,
    },
    /// To `Greet`.
    Greeting(Greeting),
    /// To `Masters` and `ChangeMasters`, by id.
    Masters(Vec<MasterView>),
}

/// What came of a [`Change`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Changed {
    /// Of the namespace.
    Namespace(NamespaceReply),
    /// Of a site.
    Site(Published),
    /// Pages are admitted.
    Admitted,
    /// A commit or admission named chunks that are neither known nor covered: upload these and
    /// try again. Nothing was changed.
    Missing {
        /// At most `limits::IDS_MAX`.
        ids: Vec<ChunkId>,
    },
    /// A token was made.
    TokenMade {
        /// Its public id.
        id: u64,
    },
    /// A token was removed.
    TokenRemoved,
    /// A chunkserver's duty changed.
    Node,
    /// Collection was frozen or released, or a scrub was asked for.
    Upkeep {
        /// For a scrub: the number that servers report once they have carried it out.
        scrub: u64,
    },
    /// The request with this number changed nothing, and never will.
    Abandoned,
}

/// How the cluster does, as the leader sees it. The CLI turns it into the JSON of the contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Log index it was read at.
    pub index: u64,
    /// The masters.
    pub masters: Vec<MasterStatus>,
    /// The chunkservers.
    pub chunkservers: Vec<ChunkserverStatus>,
    /// The edges.
    pub edges: Vec<EdgeStatus>,
    /// Placement groups in all.
    pub groups: u32,
    /// Those with all members up.
    pub groups_clean: u32,
    /// Those with some member down but at least one up.
    pub groups_degraded: u32,
    /// Those with no member up.
    pub groups_lost: u32,
    /// Entries of the object table with references.
    pub chunks_live: u64,
    /// Chunks of groups that have a member down.
    pub chunks_degraded: u64,
    /// Latest entry of the publish log.
    pub publish_seq: Seq,
    /// Number of sites.
    pub sites: u64,
    /// Latest deploy of each production alias, for the overview.
    pub current: Vec<(SiteName, DeployId)>,
    /// Groups that are moving to other members.
    pub groups_moving: u32,
    /// Why collection is frozen; `None` while it is not.
    pub frozen: Option<String>,
    /// Chunks that nothing refers to and that wait to be collected.
    pub chunks_unreferenced: u64,
    /// The last scrub asked for (see `Orders::scrub`).
    pub scrub: u64,
    /// What placement would do and cannot, with the reason, for people; usually nothing.
    pub placement: Vec<String>,
    /// Live sites that cannot be sealed, and other things that the leader refuses, with the reason,
    /// for people; usually nothing.
    pub live: Vec<String>,
}

/// One master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasterStatus {
    /// Its Raft id.
    pub id: u64,
    /// `leader`, `follower`, `candidate` or `learner`; `silent` if it does not answer the leader.
    pub role: String,
    /// Last log index it is known to have.
    pub log_index: u64,
}

/// One chunkserver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkserverStatus {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Whether it is heard of.
    pub up: bool,
    /// What it last told.
    pub stat: ChunkStat,
    /// What the operator wants of it.
    pub duty: crate::cluster::Duty,
    /// Whether it was last found to have exactly what its groups should have; `None` when that
    /// could not be compared since this master leads.
    pub in_sync: Option<bool>,
    /// Groups it is a member of.
    pub groups: u32,
}

/// One edge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeStatus {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// `edge` or `shield`.
    pub role: String,
    /// Its region.
    pub region: String,
    /// The last entry of the publish log it has applied.
    pub seq: Seq,
    /// Milliseconds until it counts as lost.
    pub lease_ms: u64,
    /// Whether it is heard of and says it is ready.
    pub ready: bool,
    /// Whether it is heard of.
    pub up: bool,
}
