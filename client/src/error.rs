//! What can go wrong between a user's wish and the cluster.

use std::path::PathBuf;
use std::time::Duration;

use atoll_net::call::CallError;
use atoll_proto::{ChunkId, Code, WireError};

/// An operation on the cluster failed. The text names the thing, the reason and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No node that could answer was reached.
    #[error("cannot reach {what}: {reason}; check that the cluster runs (`atoll status`)")]
    Unreachable {
        /// What was to be reached.
        what: String,
        /// The last reason.
        reason: String,
    },
    /// No answer in time; a change may or may not have been made.
    #[error("no answer from {what} within {after:?}; try again, or allow more time")]
    Deadline {
        /// Who was asked.
        what: String,
        /// How long was waited.
        after: Duration,
    },
    /// The cluster said no.
    #[error("{0}")]
    Refused(WireError),
    /// A commit named chunks that the cluster does not hold: upload them and commit again.
    #[error("{} chunks are not in the cluster any more; upload them again", ids.len())]
    Missing {
        /// Which.
        ids: Vec<ChunkId>,
    },
    /// No replica has this chunk in good order.
    #[error("chunk {} cannot be read from any replica: {reason}", id.short())]
    Lost {
        /// Which chunk.
        id: ChunkId,
        /// What the replicas said.
        reason: String,
    },
    /// Not enough replicas took a chunk.
    #[error("too few chunkservers took the data: {reason}; see `atoll status`")]
    TooFewReplicas {
        /// What the servers said.
        reason: String,
    },
    /// A local file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A local file changed while it was read.
    #[error("{} changed while it was uploaded; nothing was published: run it again", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Something stored or received is not what it should be.
    #[error("{what}")]
    Malformed {
        /// What, and how.
        what: String,
    },
    /// The client configuration cannot be used.
    #[error("client configuration {}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
}

impl ClientError {
    /// The code of the cluster's refusal, when it is one.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(error) => Some(error.code),
            Self::TooFewReplicas { .. } => Some(Code::TooFewReplicas),
            Self::Missing { .. } => Some(Code::Missing),
            _ => None,
        }
    }

    /// Translates the failure of a call to `what`.
    pub(crate) fn from_call(what: &str, error: CallError) -> Self {
        match error {
            CallError::Refused(error) => Self::Refused(error),
            CallError::Deadline { after, .. } => Self::Deadline { what: what.to_owned(), after },
            CallError::Malformed { .. } => Self::Malformed { what: error.to_string() },
            CallError::Unreachable { .. } | CallError::Lost { .. } => {
                Self::Unreachable { what: what.to_owned(), reason: error.to_string() }
            }
        }
    }

    /// An answer of a kind that does not fit the question.
    pub(crate) fn unexpected(what: &str) -> Self {
        Self::Malformed {
            what: format!("{what} answered with the wrong kind of message: versions may differ"),
        }
    }
}
