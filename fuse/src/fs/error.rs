//! What can go wrong in the file system, before it becomes an errno.

use atoll_client::ClientError;

/// A request failed.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The cluster refused or could not be reached.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// There is no such file.
    #[error("no such file or directory")]
    NotFound,
    /// There is one already.
    #[error("it exists already")]
    Exists,
    /// Somebody else made it between the kernel's question and this request.
    #[error("somebody else has made it meanwhile: look it up")]
    MadeMeanwhile,
    /// Deploys never change.
    #[error("deploys of sites cannot be changed")]
    ReadOnly,
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(&'static str),
    /// This file system does not do that.
    #[error("not supported")]
    Unsupported,
    /// The handle is unknown or not open for this.
    #[error("the handle is not open for this")]
    BadHandle,
    /// A directory where another kind of file was expected.
    #[error("is a directory")]
    IsADirectory,
    /// A directory was expected.
    #[error("not a directory")]
    NotADirectory,
    /// A name longer than 255 bytes.
    #[error("the name is longer than 255 bytes")]
    NameTooLong,
    /// A file longer than [`super::FILE_BYTES_MAX`].
    #[error("the file would be too large")]
    TooLarge,
    /// `SEEK_DATA` found no data, or the offset is past the end.
    #[error("no data there")]
    NoData,
    /// There is no extended attribute of this name.
    #[error("no such extended attribute")]
    NoAttribute,
    /// A file has as many names as it can have.
    #[error("the file has too many names")]
    TooManyLinks,
    /// The file was removed by somebody else while it had changes here.
    #[error("the file was removed elsewhere; its changes have nowhere to go")]
    Stale,
    /// The changes failed when the file was closed, and somebody else has written it since.
    #[error(
        "the file was written elsewhere after its close failed here; what was written here is not in it"
    )]
    Overtaken,
    /// The cluster takes no data: there is no memory left to hold more, or no end to conflicts.
    #[error("the cluster takes no data: {reason}")]
    Stalled {
        /// Why the last upload failed, or what is in the way.
        reason: String,
    },
    /// An answer of the wrong kind.
    #[error("the master answered {0} with the wrong kind of message: versions may differ")]
    Unexpected(&'static str),
}
