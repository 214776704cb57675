//! What differs between two deploys: both trees are walked from the top, and pages that they share
//! are skipped, not read. So the cost is that of the difference, not of the site.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;

use atoll_proto::manifest::{Child, Entry, Page, Root};
use atoll_proto::{ByteName, DeployId, limits};

use super::walk::{PageSource, root, wrong};
use crate::ClientError;

/// What differs between two deploys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// Files that differ, in path order.
    pub files: Vec<FileChange>,
    /// Whether the redirect and header rules, or other settings in the root, differ.
    pub rules_changed: bool,
    /// Pages that were read to find out, of both deploys.
    pub pages_read: u64,
}

/// A path whose entry differs. At least one side is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    /// The file of the first deploy, if it has one here.
    pub before: Option<Entry>,
    /// The file of the second.
    pub after: Option<Entry>,
}

impl FileChange {
    /// Its path.
    pub fn path(&self) -> &ByteName {
        static NONE: ByteName = ByteName(Vec::new());
        self.before.as_ref().or(self.after.as_ref()).map_or(&NONE, |entry| &entry.path)
    }
}

/// Finds what differs from one deploy to another.
///
/// # Errors
/// When a page cannot be read or is not what it should be.
pub async fn diff<S: PageSource>(
    source: &S,
    from: DeployId,
    to: DeployId,
) -> Result<Difference, ClientError> {
    if from == to {
        return Ok(Difference::default());
    }
    let roots = [root(source, from).await?, root(source, to).await?];
    let [rest_before, rest_after] =
        roots.clone().map(|root| Root { top: None, files: 0, bytes: 0, ..root });
    let [before, after] = roots.map(|root| Side::new(root.top));
    let mut walk = Walk { source, before, after, files: Vec::new(), pages_read: 2 };
    walk.run().await?;
    Ok(Difference {
        files: walk.files,
        rules_changed: rest_before != rest_after,
        pages_read: walk.pages_read,
    })
}

/// What is left of one tree, in path order: entries of one leaf, then pages not yet read.
struct Side {
    /// The leaf whose entries come next, and which of them is next.
    leaf: Option<(Arc<Page>, usize)>,
    /// Pages after that, with how many are above each.
    pages: VecDeque<(Child, usize)>,
    /// The last path that was passed.
    passed: Option<ByteName>,
}

impl Side {
    fn new(top: Option<Child>) -> Self {
        let pages = top.into_iter().map(|child| (child, 0)).collect();
        Self { leaf: None, pages, passed: None }
    }

    fn entry(&self) -> Option<&Entry> {
        let (page, at) = self.leaf.as_ref()?;
        match &**page {
            Page::LeafV1(entries) => entries.get(*at),
            Page::RootV1(_) | Page::IndexV1(_) => None,
        }
    }

    fn pop(&mut self) -> Option<Entry> {
        let entry = self.entry()?.clone();
        if let Some((_, at)) = &mut self.leaf {
            *at += 1;
        }
        if self.entry().is_none() {
            self.leaf = None;
        }
        Some(entry)
    }

    fn page(&self) -> Option<&Child> {
        self.pages.front().map(|(child, _)| child)
    }

    /// The page after this one is shared: what it holds is passed.
    fn skip(&mut self) {
        self.passed = self.pages.pop_front().map(|(child, _)| child.last);
    }

    /// Reads the next page and puts what it holds in its place.
    async fn expand<S: PageSource>(&mut self, source: &S) -> Result<(), ClientError> {
        let Some((child, depth)) = self.pages.pop_front() else { return Ok(()) };
        let page = source.page(child.id).await?;
        let (first, last) = match &*page {
            Page::RootV1(_) => return Err(wrong(child.id)),
            Page::IndexV1(below) => {
                if depth >= limits::PAGE_DEPTH_MAX {
                    return Err(wrong(child.id));
                }
                for below in below.iter().rev() {
                    self.pages.push_front((below.clone(), depth + 1));
                }
                (None, below.last().map(|child| &child.last))
            }
            Page::LeafV1(entries) => {
                (entries.first().map(|entry| &entry.path), entries.last().map(|entry| &entry.path))
            }
        };
        // A tree whose pages are not in order would be walked wrongly.
        if last != Some(&child.last)
            || first.is_some_and(|first| Some(first) <= self.passed.as_ref())
        {
            return Err(wrong(child.id));
        }
        if first.is_some() {
            self.passed = Some(child.last);
            self.leaf = Some((page, 0));
        }
        Ok(())
    }
}

struct Walk<'a, S> {
    source: &'a S,
    before: Side,
    after: Side,
    files: Vec<FileChange>,
    pages_read: u64,
}

/// What to do next.
enum Next {
    End,
    /// Both sides go on with the same page.
    Skip,
    Expand {
        before: bool,
        after: bool,
    },
    Emit {
        before: bool,
        after: bool,
    },
}

impl<S: PageSource> Walk<'_, S> {
    async fn run(&mut self) -> Result<(), ClientError> {
        loop {
            match self.next() {
                Next::End => return Ok(()),
                Next::Skip => {
                    self.before.skip();
                    self.after.skip();
                }
                Next::Expand { before, after } => {
                    if before {
                        self.pages_read += 1;
                        self.before.expand(self.source).await?;
                    }
                    if after {
                        self.pages_read += 1;
                        self.after.expand(self.source).await?;
                    }
                }
                Next::Emit { before, after } => {
                    let before = if before { self.before.pop() } else { None };
                    let after = if after { self.after.pop() } else { None };
                    if before != after {
                        self.files.push(FileChange { before, after });
                    }
                }
            }
        }
    }

    fn next(&self) -> Next {
        match (self.before.entry(), self.after.entry()) {
            (Some(a), Some(b)) => {
                let order = a.path.cmp(&b.path);
                Next::Emit { before: order != Ordering::Greater, after: order != Ordering::Less }
            }
            (Some(_), None) => match one_sided(&self.before, &self.after) {
                true => Next::Emit { before: true, after: false },
                false => Next::Expand { before: false, after: true },
            },
            (None, Some(_)) => match one_sided(&self.after, &self.before) {
                true => Next::Emit { before: false, after: true },
                false => Next::Expand { before: true, after: false },
            },
            (None, None) => self.next_page(),
        }
    }

    fn next_page(&self) -> Next {
        match (self.before.page(), self.after.page()) {
            (None, None) => Next::End,
            (Some(_), None) => Next::Expand { before: true, after: false },
            (None, Some(_)) => Next::Expand { before: false, after: true },
            (Some(a), Some(b)) if a.id == b.id => Next::Skip,
            // The larger one may hold the other.
            (Some(a), Some(b)) => {
                Next::Expand { before: a.files >= b.files, after: b.files >= a.files }
            }
        }
    }
}

/// Whether the entries at hand are for certain only on their own side: the other side has nothing
/// left, or goes on with the page that follows on this side too.
fn one_sided(own: &Side, other: &Side) -> bool {
    match (own.page(), other.page()) {
        (_, None) => true,
        (Some(own), Some(other)) => own.id == other.id,
        (None, Some(_)) => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::manifest::build;
    use crate::manifest::walk::tests::{Stored, entry};

    type Files = BTreeMap<String, String>;

    fn site(files: usize) -> Files {
        (0..files).map(|i| (format!("d{:03}/page-{i:06}.html", i % 97), i.to_string())).collect()
    }

    /// Stores deploys in one place and gives their ids.
    fn store(source: &mut Stored, files: &Files, rules: bool) -> DeployId {
        let entries = files.iter().map(|(path, content)| entry(path, content)).collect();
        let id = Some(atoll_proto::ChunkId::of(b"rules"));
        let extent = atoll_proto::content::Extent { id, len: 5 };
        let rules = rules.then(|| atoll_proto::Content::from_extents(vec![extent]));
        let built = build(entries, rules).unwrap();
        source.pages.extend(built.pages.into_iter().map(|page| (page.id, page.bytes)));
        built.root
    }

    fn naive(before: &Files, after: &Files) -> Vec<FileChange> {
        let mut paths: Vec<&String> = before.keys().chain(after.keys()).collect();
        paths.sort();
        paths.dedup();
        let of = |files: &Files, path: &str| files.get(path).map(|content| entry(path, content));
        paths
            .into_iter()
            .map(|path| FileChange { before: of(before, path), after: of(after, path) })
            .filter(|change| change.before != change.after)
            .collect()
    }

    async fn compare(before: &Files, after: &Files) -> (Difference, usize) {
        let mut source = Stored::default();
        let from = store(&mut source, before, false);
        let to = store(&mut source, after, false);
        let found = diff(&source, from, to).await.unwrap();
        assert_eq!(found.files, naive(before, after));
        assert_eq!(found.pages_read, *source.reads.lock().unwrap() as u64);
        (found, source.pages.len())
    }

    #[tokio::test]
    async fn one_changed_file_reads_few_pages() {
        let before = site(20_000);
        let mut after = before.clone();
        *after.values_mut().nth(12_345).unwrap() = "other".to_owned();
        let (found, pages) = compare(&before, &after).await;
        assert!(
            found.files.len() == 1
                && found.files[0].path() == &found.files[0].after.as_ref().unwrap().path
        );
        assert!(pages > 20 && found.pages_read <= 8, "{} of {pages}", found.pages_read);
        let mut after = before.clone();
        after.insert("d050/inserted.html".to_owned(), "new".to_owned());
        let (found, pages) = compare(&before, &after).await;
        assert!(pages > 20 && found.pages_read <= 10, "{} of {pages}", found.pages_read);
    }

    #[tokio::test]
    async fn rules_and_nothing_at_all() {
        let mut source = Stored::default();
        let files = site(2_000);
        let plain = store(&mut source, &files, false);
        let ruled = store(&mut source, &files, true);
        let found = diff(&source, plain, ruled).await.unwrap();
        assert_eq!((found.files.len(), found.rules_changed, found.pages_read), (0, true, 2));
        assert_eq!(diff(&source, plain, plain).await.unwrap(), Difference::default());
        let none = Files::new();
        assert_eq!(compare(&none, &files).await.0.files.len(), 2_000);
        assert_eq!(compare(&files, &none).await.0.files.len(), 2_000);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn a_walk_finds_what_a_naive_comparison_finds(
            files in 0_usize..4_000,
            changed in proptest::collection::vec((0_usize..4_000, 0_u8..3), 0..40),
            cut in 0_usize..4_000,
        ) {
            let before = site(files);
            let mut after = before.clone();
            for (at, how) in changed {
                let path = format!("d{:03}/page-{at:06}.html", at % 97);
                match how {
                    0 => drop(after.remove(&path)),
                    1 => drop(after.insert(path, "changed".to_owned())),
                    _ => drop(after.insert(format!("d{:03}/new-{at}", at % 89), at.to_string())),
                }
            }
            // Sometimes a large part is gone, so that the trees differ in height.
            if cut % 3 == 0 {
                after = after.into_iter().take(cut).collect();
            }
            tokio::runtime::Builder::new_current_thread().build().unwrap()
                .block_on(compare(&before, &after));
        }
    }
}
