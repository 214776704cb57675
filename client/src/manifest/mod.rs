//! Manifests: building the page tree of a deploy, walking one, comparing two, proving what one
//! holds.

mod build;
mod diff;
mod prove;
mod walk;

pub use build::{BuiltManifest, BuiltPage, ManifestError, build};
pub use diff::{Difference, FileChange, diff};
pub use prove::{Proving, prove, prove_pages};
pub use walk::{ListItem, PageSource, entries, list, lookup};
