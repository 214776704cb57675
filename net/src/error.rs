//! What can go wrong while a node sets itself up: files, certificates, sockets.
//!
//! Failures of a call to another node are [`crate::call::CallError`].

use std::net::SocketAddr;
use std::path::PathBuf;

/// A failure to read an identity, to make one, or to open a socket.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A file of the identity or the authority could not be read or written.
    #[error("cannot {verb} {}: {source}", path.display())]
    File {
        /// `read` or `write`.
        verb: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A certificate or key is not what it should be.
    #[error("bad identity: {reason}")]
    Identity {
        /// What is wrong with it.
        reason: String,
    },
    /// The socket could not be opened.
    #[error("cannot listen on {addr}: {source}")]
    Bind {
        /// The address asked for.
        addr: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
}

impl NetError {
    pub(crate) fn identity(reason: impl ToString) -> NetError {
        NetError::Identity { reason: reason.to_string() }
    }
}
