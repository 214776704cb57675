//! Manifests: building the page tree of a deploy, and walking one.

mod build;
mod walk;

pub use build::{BuiltManifest, BuiltPage, ManifestError, build};
pub use walk::{ListItem, PageSource, entries, list, lookup};
