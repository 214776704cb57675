//! The manifest: an immutable, sorted tree of pages from path to file.
//!
//! A deploy's id is the hash of its root page. The root names the top of a tree whose leaves hold
//! the entries in path order; pages are cut at boundaries chosen by the paths themselves, so that
//! an edit changes the pages it touches and no others (the idea of content-defined chunking
//! applied to sorted trees, as in "prolly trees"). Pages are chunks: named by hash, stored and
//! verified like any other.
//!
//! This module has the encoding and what can be decided from one page alone, [`build`] makes the
//! pages of a whole tree. Walking one is the client's.

pub mod build;
pub mod proof;
mod step;

pub use step::Step;

use serde::{Deserialize, Serialize};

use crate::{ByteName, ChunkId, Content, Malformed, limits, name::check_site_path};

/// A page as it is stored. Variant numbers are stable on disk: only append.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Page {
    /// The root of a manifest, version 1.
    RootV1(Root),
    /// An inner page, version 1: children in path order.
    IndexV1(Vec<Child>),
    /// A leaf, version 1: entries in path order.
    LeafV1(Vec<Entry>),
}

/// The root page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// The top of the page tree; `None` for a site without files.
    pub top: Option<Child>,
    /// Number of files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The compiled rules ([`crate::rules::RuleSet`]), when the site has some: at most
    /// `limits::RULES_BYTES_MAX`, so never in list chunks.
    pub rules: Option<Content>,
}

/// A reference to a page below.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Child {
    /// The greatest path in it.
    pub last: ByteName,
    /// The page.
    pub id: ChunkId,
    /// Its encoded length in bytes.
    pub len: u32,
    /// Number of files in it.
    pub files: u64,
}

/// One file of a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Path relative to the site's root, without a leading slash.
    pub path: ByteName,
    /// Permission bits.
    pub mode: u32,
    /// When its content last changed, nanoseconds since the Unix epoch.
    pub mtime_ns: i64,
    /// Its bytes.
    pub content: Content,
    /// The value of `Content-Type`.
    pub content_type: String,
    /// Which header rule applies, when the site has rules.
    pub header_rule: Option<u32>,
    /// The same bytes in other content codings.
    pub variants: Vec<Variant>,
    /// The content this one was derived from, as the base of a patch.
    pub base: Option<ChunkId>,
}

/// The bytes of a file in a content coding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variant {
    /// Which coding.
    pub coding: Coding,
    /// The coded bytes.
    pub content: Content,
}

/// A content coding (RFC 9110 §8.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Coding {
    /// `br`
    Brotli,
    /// `zstd`
    Zstd,
    /// `gzip`
    Gzip,
}

/// A chunk that a page refers to, and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reference {
    /// A page below.
    Page(ChunkId),
    /// Bytes of a file, of a variant, or of the rules.
    Data(ChunkId),
    /// A list chunk.
    List(ChunkId),
}

impl Page {
    /// The page as the bytes of a chunk.
    pub fn encode(&self) -> Vec<u8> {
        crate::encode(self)
    }

    /// Reads and checks a page: order, lengths, names.
    ///
    /// # Errors
    /// When the bytes are not a page or break a rule.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let bad = |reason: &str| Err(Malformed { reason: format!("manifest page: {reason}") });
        let page: Self = crate::decode(bytes)?;
        match &page {
            Self::RootV1(root) => {
                if let Some(rules) = &root.rules {
                    let Content::Extents(extents) = rules else {
                        return bad("rules are not stored in chunks");
                    };
                    if let Err(error) = rules.check() {
                        return bad(&error.message);
                    }
                    let hole = extents.iter().any(|extent| extent.id.is_none());
                    if hole || rules.size() > limits::RULES_BYTES_MAX as u64 {
                        return bad("rules out of bounds");
                    }
                }
            }
            Self::IndexV1(children) => {
                if children.is_empty() || !children.is_sorted_by(|a, b| a.last < b.last) {
                    return bad("children out of order");
                }
            }
            Self::LeafV1(entries) => {
                if entries.is_empty() || !entries.is_sorted_by(|a, b| a.path < b.path) {
                    return bad("entries out of order");
                }
                for entry in entries {
                    if let Err(error) = entry.check() {
                        return bad(&error);
                    }
                }
            }
        }
        Ok(page)
    }

    /// The chunks this page refers to, each once, in order.
    pub fn references(&self) -> Vec<Reference> {
        let mut found = Vec::new();
        match self {
            Self::RootV1(root) => {
                found.extend(root.top.iter().map(|child| Reference::Page(child.id)));
                let rules = root.rules.iter().flat_map(Content::direct_chunks);
                found.extend(rules.map(Reference::Data));
            }
            Self::IndexV1(children) => {
                found.extend(children.iter().map(|child| Reference::Page(child.id)));
            }
            Self::LeafV1(entries) => {
                for entry in entries {
                    let variants = entry.variants.iter().map(|variant| &variant.content);
                    for content in std::iter::once(&entry.content).chain(variants) {
                        let list = matches!(content, Content::Lists { .. });
                        let wrap = if list { Reference::List } else { Reference::Data };
                        found.extend(content.direct_chunks().into_iter().map(wrap));
                    }
                }
            }
        }
        let mut seen = std::collections::HashSet::with_capacity(found.len());
        found.retain(|reference| seen.insert(*reference));
        found
    }
}

impl Reference {
    /// The chunk referred to.
    pub fn id(&self) -> ChunkId {
        match self {
            Self::Page(id) | Self::Data(id) | Self::List(id) => *id,
        }
    }
}

impl Entry {
    fn check(&self) -> Result<(), String> {
        check_site_path(self.path.as_bytes()).map_err(|error| error.to_string())?;
        self.content.check().map_err(|error| error.message)?;
        for variant in &self.variants {
            variant.content.check().map_err(|error| error.message)?;
        }
        let plain = |c: u8| (0x20..0x7f).contains(&c);
        if self.content_type.len() > 255 || !self.content_type.bytes().all(plain) {
            return Err(format!("content type of {} is not plain text", self.path));
        }
        Ok(())
    }

    /// Length of the file in bytes.
    pub fn size(&self) -> u64 {
        self.content.size()
    }
}

/// Whether a page ends after the item with this path, once it has `bytes` bytes. Depends on the
/// path alone (beside the size limits), so that equal neighbourhoods are cut equally.
pub fn ends_page(path: &ByteName, level: u8, bytes: usize) -> bool {
    if bytes < limits::PAGE_BYTES_MIN {
        return false;
    }
    let mut hasher = blake3::Hasher::new_derive_key("atoll 2026 manifest page boundary v1");
    hasher.update(&[level]);
    hasher.update(path.as_bytes());
    let hash = hasher.finalize();
    let bits = u16::from_be_bytes([hash.as_bytes()[0], hash.as_bytes()[1]]);
    // Entries have about 120 bytes: one boundary in 100 gives pages of PAGE_BYTES_MIN + 12 KiB.
    bits < u16::MAX / 100
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::content::Extent;

    pub(crate) fn entry(path: &str) -> Entry {
        let id = ChunkId::of(path.as_bytes());
        Entry {
            path: path.into(),
            mode: 0o644,
            mtime_ns: 1,
            content: Content::from_extents(vec![Extent { id: Some(id), len: 3 }]),
            content_type: "text/html; charset=utf-8".to_owned(),
            header_rule: None,
            variants: vec![],
            base: None,
        }
    }

    #[test]
    fn pages_round_trip_and_list_references_once() {
        let mut twin = entry("b");
        twin.content = entry("a").content;
        let page = Page::LeafV1(vec![entry("a"), twin, entry("c")]);
        assert_eq!(Page::decode(&page.encode()).unwrap(), page);
        assert_eq!(page.references().len(), 2);
    }

    #[test]
    fn disorder_and_bad_names_are_refused() {
        for entries in [vec![], vec![entry("b"), entry("a")], vec![entry("a"), entry("a")]] {
            assert!(Page::decode(&Page::LeafV1(entries).encode()).is_err());
        }
        assert!(Page::decode(&Page::LeafV1(vec![entry("a/../b")]).encode()).is_err());
    }

    #[test]
    fn roots_written_before_there_were_rules_are_read_as_they_are() {
        // `rules` was `Option<(u32, ChunkId)>` then, and always `None`.
        let empty = [0, 0, 0, 0, 0];
        let root = Root { top: None, files: 0, bytes: 0, rules: None };
        assert_eq!(Page::decode(&empty).unwrap(), Page::RootV1(root.clone()));
        assert_eq!(Page::RootV1(root).encode(), empty);
        let mut old = vec![0, 1, 10];
        old.extend(b"index.html");
        old.extend([7; 32]);
        old.extend([120, 1, 1, 5, 0]);
        let child = Child { last: "index.html".into(), id: ChunkId([7; 32]), len: 120, files: 1 };
        let root = Page::RootV1(Root { top: Some(child), files: 1, bytes: 5, rules: None });
        assert_eq!(root.encode(), old, "the id of a deploy without rules stays");
        assert_eq!(Page::decode(&old).unwrap(), root);
    }

    #[test]
    fn rules_are_chunks_within_bounds() {
        let extent = |id, len| Extent { id, len };
        let id = Some(ChunkId::of(b"rules"));
        let many = limits::RULES_BYTES_MAX as u32 / limits::CHUNK_BYTES_MAX + 1;
        for (rules, fine) in [
            (Content::Extents(vec![extent(id, 9)]), true),
            (Content::Empty, false),
            (Content::Extents(vec![]), false),
            (Content::Extents(vec![extent(id, 0)]), false),
            (Content::Extents(vec![extent(id, 9), extent(None, 9)]), false),
            (Content::Extents(vec![extent(id, limits::CHUNK_BYTES_MAX); many as usize]), false),
            (Content::Lists { size: 9, lists: vec![(9, ChunkId::of(b"list"))] }, false),
        ] {
            let page = Page::RootV1(Root { top: None, files: 0, bytes: 0, rules: Some(rules) });
            assert_eq!(Page::decode(&page.encode()).is_ok(), fine, "{page:?}");
            assert!(!fine || page.references() == [Reference::Data(ChunkId::of(b"rules"))]);
        }
    }

    proptest! {
        #[test]
        fn decode_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            drop(Page::decode(&bytes));
            drop(crate::decode::<crate::master::MasterRequest>(&bytes));
            drop(crate::decode::<crate::master::MasterResponse>(&bytes));
            drop(crate::decode::<crate::chunk::ChunkRequest>(&bytes));
            drop(crate::content::ExtentList::decode(&bytes));
        }
    }
}
