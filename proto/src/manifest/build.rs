//! Building a manifest's pages from its entries: called by the client for a deploy and by the
//! master for a live site, which must come to the same pages for the same files.

use bytes::Bytes;

use super::{Child, Entry, Page, Root, ends_page};
use crate::{ByteName, ChunkId, Content, Malformed, limits};

/// A manifest as pages, ready to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltManifest {
    /// The root page: the deploy's id.
    pub root: ChunkId,
    /// All pages, children before parents, the root last. No page is in it twice.
    pub pages: Vec<BuiltPage>,
    /// Number of files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// One page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltPage {
    /// Its name.
    pub id: ChunkId,
    /// Its bytes.
    pub bytes: Bytes,
    /// The chunks it refers to.
    pub references: Vec<ChunkId>,
}

/// Entries that make no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Two entries have one path.
    #[error("two files have the path {path:?}")]
    Twice {
        /// Which.
        path: ByteName,
    },
    /// A path is also a directory of another.
    #[error("{path:?} is both a file and a directory")]
    FileAndDirectory {
        /// Which.
        path: ByteName,
    },
    /// An entry breaks a rule of the format.
    #[error("{0}")]
    Bad(#[from] Malformed),
}

/// Builds the page tree of these entries, in any order.
///
/// # Errors
/// When paths repeat or collide, or an entry breaks a rule of the format.
pub fn build(
    mut entries: Vec<Entry>,
    rules: Option<Content>,
) -> Result<BuiltManifest, ManifestError> {
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    check_paths(&entries)?;
    let files = entries.len() as u64;
    let bytes = entries.iter().map(Entry::size).sum();
    let mut pages = Pages::default();
    let mut children = Vec::new();
    let items = entries.into_iter().map(|entry| (entry.path.clone(), 1, entry));
    cut_level(items, 0, |items, last, files| {
        children.push(pages.add(&Page::LeafV1(items), last, files)?);
        Ok(())
    })?;
    let mut level = 1;
    while children.len() > 1 {
        let items: Vec<_> =
            children.drain(..).map(|child| (child.last.clone(), child.files, child)).collect();
        cut_level(items.into_iter(), level, |items, last, files| {
            children.push(pages.add(&Page::IndexV1(items), last, files)?);
            Ok(())
        })?;
        level = level.saturating_add(1);
    }
    let root = Root { top: children.pop(), files, bytes, rules };
    let root = pages.add(&Page::RootV1(root), ByteName::default(), files)?;
    Ok(BuiltManifest { root: root.id, pages: pages.list, files, bytes })
}

fn check_paths(entries: &[Entry]) -> Result<(), ManifestError> {
    let paths: std::collections::HashSet<&[u8]> =
        entries.iter().map(|entry| entry.path.as_bytes()).collect();
    for pair in entries.windows(2) {
        if pair[0].path == pair[1].path {
            return Err(ManifestError::Twice { path: pair[0].path.clone() });
        }
    }
    for entry in entries {
        let path = entry.path.as_bytes();
        for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            if paths.contains(&path[..at]) {
                let path = ByteName::from(&path[..at]);
                return Err(ManifestError::FileAndDirectory { path });
            }
        }
    }
    Ok(())
}

/// Cuts the items of one level into pages at the boundaries their paths choose.
fn cut_level<T: serde::Serialize>(
    items: impl Iterator<Item = (ByteName, u64, T)>,
    level: u8,
    mut emit: impl FnMut(Vec<T>, ByteName, u64) -> Result<(), ManifestError>,
) -> Result<(), ManifestError> {
    let mut page = Vec::new();
    let mut bytes = 0;
    let mut files = 0;
    let mut last = ByteName::default();
    for (path, count, item) in items {
        let len = crate::encode(&item).len();
        // An index page has at least two children, or the tree would never get lower.
        let enough = page.len() >= 2 || (level == 0 && !page.is_empty());
        if enough && bytes + len > limits::PAGE_BYTES_CUT {
            emit(std::mem::take(&mut page), std::mem::take(&mut last), files)?;
            (bytes, files) = (0, 0);
        }
        page.push(item);
        bytes += len;
        files += count;
        let ends = ends_page(&path, level, bytes) && (level == 0 || page.len() >= 2);
        last = path;
        if ends {
            emit(std::mem::take(&mut page), std::mem::take(&mut last), files)?;
            (bytes, files) = (0, 0);
        }
    }
    if page.is_empty() { Ok(()) } else { emit(page, last, files) }
}

#[derive(Default)]
struct Pages {
    list: Vec<BuiltPage>,
    have: std::collections::HashSet<ChunkId>,
}

impl Pages {
    fn add(&mut self, page: &Page, last: ByteName, files: u64) -> Result<Child, ManifestError> {
        let bytes = page.encode();
        // What cannot be read back must not be stored.
        Page::decode(&bytes)?;
        let too_long = || Malformed { reason: "a manifest page is too long".to_owned() };
        let len = u32::try_from(bytes.len()).map_err(|_| too_long())?;
        if len > limits::CHUNK_BYTES_MAX {
            return Err(too_long().into());
        }
        let id = ChunkId::of(&bytes);
        if self.have.insert(id) {
            let references = page.references().iter().map(|reference| reference.id()).collect();
            self.list.push(BuiltPage { id, bytes: bytes.into(), references });
        }
        Ok(Child { last, id, len, files })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use crate::content::Extent;

    use super::*;

    fn entry(path: &str, content: &str) -> Entry {
        let id = ChunkId::of(content.as_bytes());
        Entry {
            path: path.into(),
            mode: 0o644,
            mtime_ns: 0,
            content: Content::from_extents(vec![Extent { id: Some(id), len: 7 }]),
            content_type: "text/html; charset=utf-8".to_owned(),
            header_rule: None,
            variants: vec![],
            base: None,
        }
    }

    fn site(files: usize) -> Vec<Entry> {
        (0..files).map(|i| entry(&format!("d{:03}/page-{i:06}.html", i % 97), "same")).collect()
    }

    #[test]
    fn one_changed_file_changes_few_pages() {
        let before = build(site(20_000), None).unwrap();
        let mut entries = site(20_000);
        entries[12_345] = entry(entries[12_345].path.lossy().as_ref(), "other");
        let after = build(entries, None).unwrap();
        let have: std::collections::HashSet<_> = before.pages.iter().map(|p| p.id).collect();
        let new = after.pages.iter().filter(|page| !have.contains(&page.id)).count();
        assert!(before.pages.len() > 20, "{}", before.pages.len());
        assert!((2..=4).contains(&new), "{new} of {} pages are new", after.pages.len());
    }

    #[test]
    fn an_inserted_file_moves_no_other_boundary() {
        let before = build(site(20_000), None).unwrap();
        let mut entries = site(20_000);
        entries.push(entry("d050/inserted.html", "new"));
        let after = build(entries, None).unwrap();
        let have: std::collections::HashSet<_> = before.pages.iter().map(|p| p.id).collect();
        let new = after.pages.iter().filter(|page| !have.contains(&page.id)).count();
        assert!(new <= 5, "{new} of {} pages are new", after.pages.len());
    }

    #[test]
    fn page_sizes_are_near_the_target() {
        let built = build(site(20_000), None).unwrap();
        let total: usize = built.pages.iter().map(|page| page.bytes.len()).sum();
        let mean = total / built.pages.len();
        assert!((6 << 10..32 << 10).contains(&mean), "mean page has {mean} bytes");
    }

    #[test]
    fn collisions_are_named() {
        let twice = build(vec![entry("a", "1"), entry("a", "2")], None).unwrap_err();
        assert_eq!(twice, ManifestError::Twice { path: "a".into() });
        let both = build(vec![entry("a", "1"), entry("a-b", "1"), entry("a/b", "2")], None);
        assert_eq!(both.unwrap_err(), ManifestError::FileAndDirectory { path: "a".into() });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn order_of_entries_does_not_matter(files in 0_usize..600, seed: u64) {
            let sorted = build(site(files), None).unwrap();
            let mut shuffled = site(files);
            let n = shuffled.len().max(1);
            for i in 0..shuffled.len() {
                let j = (seed.wrapping_mul(i as u64 + 1) % n as u64) as usize;
                shuffled.swap(i, j);
            }
            prop_assert_eq!(build(shuffled, None).unwrap(), sorted);
        }
    }
}
