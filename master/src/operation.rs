//! What the log says: the operations that entries are made of, and what applying them gives.
//!
//! Requests become operations in [`crate::ops`] on the leader, which checks what needs a clock, a
//! key or another node (tokens, receipts, pages). Applying an operation depends on nothing but
//! the operation, the state and [`Now`].

use atoll_proto::cluster::Duty;
use atoll_proto::master::{Changed, Grant, NodeOp, ObjectKind, UpkeepOp};
use atoll_proto::masters::Incarnation;
use atoll_proto::namespace::NamespaceOp;
use atoll_proto::publish::SiteOp;
use atoll_proto::receipt::ReceiptKey;
use atoll_proto::{
    ChunkId, ClusterId, DeployId, Epoch, NodeId, PgId, SessionId, SiteName, WireError,
};
use serde::{Deserialize, Serialize};

use crate::store::StoreError;

/// A change of the replicated state. Variant numbers are stable in the log: only append.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Operation {
    /// The first operation of a cluster.
    Init {
        /// Its random name.
        cluster: ClusterId,
        /// Signs receipts; random.
        receipt_key: ReceiptKey,
        /// Chunk size for new files.
        chunk_bytes: u32,
        /// Hash of the secret of a token with all verbs.
        bootstrap_token: Option<ChunkId>,
    },
    /// Open a session.
    OpenSession {
        /// For people.
        name: String,
        /// The principal that may use it.
        owner: String,
    },
    /// Forget sessions that were not used for the lifetime of sessions.
    ExpireSessions,
    /// A request of a session, done once.
    Numbered {
        /// In which session.
        session: SessionId,
        /// Its number.
        number: u64,
        /// Replies below may be forgotten.
        acked_below: u64,
        /// What to change.
        change: LoggedChange,
    },
    /// A part of an admission; the last part is a numbered change.
    AdmitPart(Admission),
    /// A node is new or has changed.
    RegisterNode(atoll_proto::cluster::NodeInfo),
    /// New members of placement groups.
    SetTable {
        /// The epoch this was worked out from; another one makes it void.
        base: Epoch,
        /// The groups that change.
        changes: Vec<(PgId, Vec<NodeId>)>,
    },
    /// Objects that nothing has referred to for long are no longer kept.
    Collect {
        /// Which, each with what the leader saw of it.
        objects: Vec<Collected>,
    },
    /// Drop deltas beyond the retention.
    ExpireDeltas,
    /// Steps of moves: many groups, one new epoch.
    MoveGroups {
        /// The epoch this was worked out from; another one makes it void.
        base: Epoch,
        /// Groups whose members have everything now: the old members leave. With the order of
        /// preference of the members from now on.
        finished: Vec<(PgId, Vec<NodeId>)>,
        /// Groups that get other members, or more: those that stay first, in the order they had,
        /// then those that enter. Who is no member any more is leaving from now on.
        moved: Vec<(PgId, Vec<NodeId>)>,
    },
    /// The leader found that a chunkserver is silent for long, or is back.
    SetDuty {
        /// Which.
        node: NodeId,
        /// The duty it has now; another one makes this void.
        from: Duty,
        /// The duty it gets.
        to: Duty,
    },
    /// What a recount of references found.
    FixRefs {
        /// Log index of the state that was counted.
        index: u64,
        /// Counts to correct.
        fixes: Vec<Fix>,
        /// The recount is complete: so many miscounts were known when it began.
        complete: Option<u64>,
    },
    /// Remove the aliases whose time is over.
    ExpireAliases,
    /// The cluster takes these masters in: from now on their ids belong to these incarnations.
    AdmitMasters {
        /// Id and incarnation.
        masters: Vec<(u64, Incarnation)>,
    },
    /// A master leaves: its id is never used again.
    RetireMaster {
        /// Which.
        id: u64,
    },
}

/// A numbered change. Variant numbers are stable in the log: only append.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum LoggedChange {
    /// Of the namespace.
    Namespace {
        /// What to do; its receipts are left out, as they were checked.
        op: NamespaceOp,
        /// The chunks of its content that valid receipts cover.
        covered: Vec<Covered>,
    },
    /// Of sites.
    Site {
        /// What to do.
        op: SiteOp,
        /// For `Publish`: what the root page says.
        root: Option<RootFacts>,
    },
    /// The (last part of the) pages to admit.
    Admit(Admission),
    /// Make a token.
    TokenCreate {
        /// BLAKE3 of the secret.
        hash: ChunkId,
        /// What it may do.
        grant: Grant,
    },
    /// Remove a token.
    TokenRemove {
        /// Its public id.
        id: u64,
    },
    /// Freeze or release collection, ask for a scrub.
    Upkeep(UpkeepOp),
    /// Of chunkservers.
    Node(NodeOp),
    /// The directory of a live site was sealed.
    Seal(Seal),
    /// Whoever sent the request of this number wants to know what became of it.
    Abandon,
}

/// An object to collect. It stays when it is not as the leader saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Collected {
    /// Which chunk.
    pub(crate) id: ChunkId,
    /// What it holds.
    pub(crate) kind: ObjectKind,
    /// Log index since when nothing refers to it.
    pub(crate) zero_since: u64,
    /// The chunks that it refers to as a page or list, each once: they lose that reference.
    pub(crate) children: Vec<ChunkId>,
}

/// A count of references to correct. It stays when the object is not as it was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fix {
    /// Which chunk.
    pub(crate) id: ChunkId,
    /// What the object table said; `None` when it had no such object.
    pub(crate) seen: Option<Seen>,
    /// How many things refer to it.
    pub(crate) refs: u64,
    /// Its length, for one that is new.
    pub(crate) len: u32,
}

/// What the object table said of an object's references.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// How many.
    pub(crate) refs: u64,
    /// Log index since when there is none.
    pub(crate) zero_since: Option<u64>,
}

/// A chunk that enough chunkservers have on disk, by their receipts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Covered {
    /// Which.
    pub(crate) id: ChunkId,
    /// Its length in bytes.
    pub(crate) len: u32,
}

/// What a manifest's root page says about the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RootFacts {
    /// Number of files.
    pub(crate) files: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
}

/// What a live site's directory was sealed as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seal {
    /// Which site.
    pub(crate) site: SiteName,
    /// The directory it followed when that was read; void when it follows another one now.
    pub(crate) live: String,
    /// The manifest's root page.
    pub(crate) deploy: DeployId,
    /// What the root page says.
    pub(crate) root: RootFacts,
    /// Where the alias `production` pointed when the directory was read. When it points elsewhere
    /// now, somebody moved it meanwhile, and it stays there unless `forced`.
    pub(crate) current: Option<DeployId>,
    /// A user asked for it.
    pub(crate) forced: bool,
}

/// Pages to admit, read and decoded by the leader.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Admission {
    /// In order: children before what refers to them.
    pub(crate) pages: Vec<AdmittedPage>,
    /// The pages and children that valid receipts cover.
    pub(crate) covered: Vec<Covered>,
}

/// One page or list chunk to admit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AdmittedPage {
    /// Which chunk.
    pub(crate) id: ChunkId,
    /// Its length in bytes.
    pub(crate) len: u32,
    /// How it was read.
    pub(crate) kind: ObjectKind,
    /// The chunks it refers to, each once.
    pub(crate) children: Vec<Child>,
}

/// A chunk that a page refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Child {
    /// Which chunk.
    pub(crate) id: ChunkId,
    /// Its length in bytes, as the page says.
    pub(crate) len: u32,
    /// What it must be.
    pub(crate) kind: ObjectKind,
}

/// What came of an operation. Variant numbers are stable: only append.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// Done.
    Done,
    /// A session was opened.
    Session(SessionId),
    /// A numbered change was made, now or when it was first asked for.
    Changed {
        /// Log index of the change.
        index: u64,
        /// What came of it.
        reply: Changed,
    },
}

/// The answer to an operation: the same on every master.
pub(crate) type OpReply = Result<Outcome, WireError>;

/// When and where an operation is applied: all that it may know beside the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Now {
    /// Log index of the entry.
    pub(crate) index: u64,
    /// The state's clock, nanoseconds since the Unix epoch.
    pub(crate) at_ns: u64,
}

impl Now {
    /// The state's clock in milliseconds.
    pub(crate) fn at_ms(self) -> u64 {
        self.at_ns / 1_000_000
    }

    /// The state's clock as file times have it.
    pub(crate) fn file_ns(self) -> i64 {
        i64::try_from(self.at_ns).unwrap_or(i64::MAX)
    }
}

/// Why an operation was not carried out.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It is not allowed or makes no sense in this state; the same on every master.
    Refused(WireError),
    /// Chunks are neither known nor covered.
    Missing(Vec<ChunkId>),
    /// The disk failed; this master must stop.
    Store(StoreError),
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Failure {
        Failure::Refused(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::Store(error)
    }
}

/// The outcome of applying (a part of) an operation.
pub(crate) type Apply<T> = Result<T, Failure>;
