//! Manifests: walking the page tree of a deploy. Building one is [`atoll_proto::manifest::build`].

mod walk;

pub use atoll_proto::manifest::build::{BuiltManifest, BuiltPage, ManifestError, build};
pub use walk::{ListItem, PageSource, entries, list, lookup};
