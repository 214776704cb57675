//! How a file is read and written.
//!
//! The edge, the mount and the CLI reach the cluster through [`Cluster`]. [`read`] and [`mod@write`]
//! are the two paths of file bytes; [`locate`] decides, without any input or output, which
//! replica to ask; [`manifest`] builds and walks the page trees of deploys; [`mod@deploy`] and
//! [`upload`] put them together for whole trees and files.
//!
//! What this crate does not do: it serves nothing, keeps no cache of chunks (each of its users
//! has its own, with its own bounds), and knows nothing of HTTP or FUSE.

pub mod backup;
pub mod cluster;
pub mod config;
pub mod deploy;
mod erased;
mod error;
mod lacking;
pub mod locate;
pub mod manifest;
pub mod publish;
pub mod read;
pub mod rules;
mod session;
pub mod stat_cache;
pub mod upload;
pub mod write;

pub use backup::{BackupProgress, backup};
pub use cluster::Cluster;
pub use config::ClientConfig;
pub use deploy::{
    DeployError, DeployOptions, DeployProgress, DeployReport, ElapsedMs, SourceFile, deploy,
};
pub use error::ClientError;
pub use manifest::{
    BuiltManifest, BuiltPage, ListItem, ManifestError, PageSource, build, entries, list, lookup,
};
pub use publish::{Wait, Waited, wait_applied};
pub use rules::{RuleChoices, read_rules};
pub use session::{Undecided, Unsure, Verdict};
pub use upload::{UploadedFile, upload_file};
pub use write::{ChunkWriter, PutTicket};
