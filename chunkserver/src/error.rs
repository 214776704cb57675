//! Why a chunkserver does not start, or stops: one line for people.

use std::path::PathBuf;

use atoll_net::NetError;
use atoll_proto::{ClusterId, NodeId};

use crate::store::StoreError;

/// A failure that ends the process.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration cannot be read or makes no sense.
    #[error("bad configuration {}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificate is another node's.
    #[error("the certificate in {} is {found}'s; this node is {expected}", path.display())]
    Certificate {
        /// The directory of the identity.
        path: PathBuf,
        /// Whose certificate it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
    /// The certificate or the socket.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The data directory belongs to another cluster or node.
    #[error(
        "{} holds the chunks of node {found_node} of cluster {found_cluster}, but this is node \
         {node} of cluster {cluster}; give each node its own data directory", dir.display()
    )]
    ForeignData {
        /// The data directory.
        dir: PathBuf,
        /// The cluster the data belongs to.
        found_cluster: ClusterId,
        /// The node the data belongs to.
        found_node: NodeId,
        /// This cluster.
        cluster: ClusterId,
        /// This node.
        node: NodeId,
    },
    /// The directory was set up, but its chunks are gone.
    #[error(
        "{} was set up as this node's, but its chunks are gone: is the right disk mounted? If the \
         disk was lost, remove the node and add one with a new id, or delete {} and its .copy to \
         start empty",
        dir.display(), marker.display()
    )]
    ChunksGone {
        /// The data directory.
        dir: PathBuf,
        /// The file that says it was set up.
        marker: PathBuf,
    },
    /// There are chunks, but not the marker that belongs to them.
    #[error(
        "{} holds chunks, but the file {} that belongs to them is gone: was the directory copied \
         incompletely? Restore the file, or use an empty directory",
        dir.display(), marker.display()
    )]
    MarkerGone {
        /// The data directory.
        dir: PathBuf,
        /// The file that should be there.
        marker: PathBuf,
    },
    /// No copy of the marker can be read, and there are no chunks that say whose they are.
    #[error(
        "{} and its .copy are unreadable or gone ({reason}), and there are no chunks in {}: is the \
         right disk mounted? If it is this node's, delete the directory and let the node be filled \
         again from the others",
        marker.display(), dir.display()
    )]
    MarkerUnreadable {
        /// The data directory.
        dir: PathBuf,
        /// The file that cannot be read.
        marker: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another version of this program wrote the data.
    #[error(
        "{} is in format {found}; this version reads format {known}: use the version that wrote it",
        dir.display()
    )]
    Format {
        /// The data directory.
        dir: PathBuf,
        /// Its format.
        found: String,
        /// Ours.
        known: u32,
    },
    /// A file or directory cannot be used.
    #[error("cannot {verb} {}: {source}", path.display())]
    File {
        /// What was tried.
        verb: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The store cannot be opened or read.
    #[error("{}: {source}", dir.display())]
    Store {
        /// The data directory.
        dir: PathBuf,
        /// What went wrong.
        source: StoreError,
    },
    /// The admin address or a thread is not to be had.
    #[error("cannot {verb}: {reason}")]
    System {
        /// What was tried.
        verb: &'static str,
        /// What the system said.
        reason: String,
    },
}
