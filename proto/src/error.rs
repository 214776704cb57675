//! The error a node may answer with: what went wrong, whose fault it is, and whether to retry.

use serde::{Deserialize, Serialize};

/// An error that travelled over the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct WireError {
    /// What kind of failure it is; callers decide by this.
    pub code: Code,
    /// Who can do something about it.
    pub fault: Fault,
    /// Whether, and where, the same request may be sent again.
    pub retry: Retry,
    /// What happened, in a sentence for people: names the thing, the reason and what to do.
    pub message: String,
}

/// What kind of failure it is. Numbers are stable on the wire: only append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Code {
    /// The request makes no sense: a field out of range, a bad name.
    Invalid,
    /// The peer speaks no version that we speak.
    UnsupportedVersion,
    /// The certificate or token does not allow this.
    Denied,
    /// There is no such thing (site, deploy, path, chunk, node).
    NotFound,
    /// There is such a thing already.
    Exists,
    /// A directory was expected.
    NotADirectory,
    /// Something other than a directory was expected.
    IsADirectory,
    /// The directory is not empty.
    NotEmpty,
    /// A compare-and-swap lost: the thing changed since it was read.
    Conflict,
    /// A commit named chunks that are neither live nor covered by receipts.
    Missing,
    /// Receipts are expired, forged, of another session, or too few.
    BadReceipt,
    /// The placement table the caller used is old; fetch the new one.
    StaleEpoch,
    /// This master is not the leader.
    NotLeader,
    /// Bytes do not have the hash they were named by.
    Corrupt,
    /// Too few replicas are reachable to keep the promise of durability.
    TooFewReplicas,
    /// No space left where the bytes must go.
    Full,
    /// A limit of size, number or rate.
    Limit,
    /// The node is overloaded, starting or draining.
    Unavailable,
    /// The deadline passed on the server.
    Deadline,
    /// The request belongs to another cluster.
    ForeignCluster,
    /// A disk or a bug: an error that should not happen.
    Internal,
    /// A chunk was erased, and may not be brought back before that is lifted.
    Erased,
}

/// Who can do something about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// The one who asked.
    Caller,
    /// The one who answered.
    Server,
    /// A node behind the one who answered.
    Upstream,
}

/// Whether, and where, the same request may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Retry {
    /// It will fail again.
    Never,
    /// The same node may succeed later.
    Same,
    /// Another node may succeed now.
    Elsewhere,
}

impl WireError {
    /// An error with the usual fault and retry of its code.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let (fault, retry) = match code {
            Code::Invalid
            | Code::UnsupportedVersion
            | Code::Denied
            | Code::NotFound
            | Code::Exists
            | Code::NotADirectory
            | Code::IsADirectory
            | Code::NotEmpty
            | Code::Conflict
            | Code::Missing
            | Code::BadReceipt
            | Code::Erased
            | Code::ForeignCluster => (Fault::Caller, Retry::Never),
            Code::StaleEpoch => (Fault::Caller, Retry::Same),
            Code::Limit => (Fault::Caller, Retry::Same),
            Code::NotLeader => (Fault::Server, Retry::Elsewhere),
            Code::Corrupt | Code::Full | Code::Internal => (Fault::Server, Retry::Elsewhere),
            Code::TooFewReplicas => (Fault::Upstream, Retry::Same),
            Code::Unavailable | Code::Deadline => (Fault::Server, Retry::Elsewhere),
        };
        Self { code, fault, retry, message: message.into() }
    }

    /// The request makes no sense.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::Invalid, message)
    }

    /// There is no such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }

    /// An error that should not happen.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// The node is overloaded, starting or draining.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message)
    }
}

/// The outcome of an operation as it travels.
pub type WireResult<T> = Result<T, WireError>;
