//! Manifests: walking the page tree of a deploy, comparing two, proving what one holds. Building one
//! is [`atoll_proto::manifest::build`].

mod diff;
mod prove;
mod walk;

pub use atoll_proto::manifest::build::{BuiltManifest, BuiltPage, ManifestError, build};
pub use diff::{Difference, FileChange, diff};
pub use prove::{Proving, prove, prove_pages};
pub(crate) use walk::root;
pub use walk::{ListItem, PageSource, entries, list, lookup};
