//! What a takedown is about, and what leads to it: looks at every deploy of every site, at pages that
//! nothing refers to yet or any more, and at every file of the namespace. A page that several deploys
//! share is read once. How often each chunk, list and page was found to be referred to goes along with
//! the erasure, so that whatever the search did not see stops it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use atoll_client::rules::of_deploy;
use atoll_client::{Cluster, PageSource};
use atoll_edge::index::invalidate::names;
use atoll_edge::rules::asset::entry_may_be_earlier;
use atoll_proto::content::ExtentList;
use atoll_proto::erase::{Doomed, Named, Parent};
use atoll_proto::manifest::{Entry, Page};
use atoll_proto::master::{MasterRequest, MasterResponse, ObjectKind};
use atoll_proto::namespace::{FileKind, NamespaceQuery, NamespaceReply};
use atoll_proto::publish::Pattern;
use atoll_proto::rules::Rules;
use atoll_proto::rules::bearers::{self, SiteFiles, Untold};
use atoll_proto::rules::budget::Budget;
use atoll_proto::tags::folded;
use atoll_proto::{ByteName, ChunkId, Code, Content, DeployId, InodeId, SiteName, limits};

use super::erase::Asked;
use crate::cluster_path::{ClusterPath, unexpected};
use crate::commands::published::all_deploys;
use crate::report::Failure;
use crate::text;

/// Places that are kept; more are only counted.
const PLACES_MAX: usize = 100_000;
/// Most steps that finding the files with a tag may take: some minutes for each deploy.
const STEPS_MAX: u64 = 1 << 32;
/// What stands for the rules of a deploy in place of a path.
const RULES: &str = "(its rules)";

/// The bytes that are meant.
#[derive(Debug, Default)]
pub(super) struct Meant {
    /// The chunks with their lengths.
    pub(super) chunks: BTreeMap<ChunkId, u32>,
    /// The paths at which they are in deploys of the site, with what is there.
    pub(super) paths: BTreeMap<ByteName, BTreeSet<ChunkId>>,
    /// What has a tag that is meant: the paths, each with the contents that have it there.
    tagged: HashSet<(ByteName, ChunkId)>,
}

impl Meant {
    /// As an erasure names it.
    pub(super) fn named(&self) -> Vec<Named> {
        let named = |(path, chunks): (&ByteName, &BTreeSet<ChunkId>)| Named {
            path: path.clone(),
            chunks: chunks.iter().copied().collect(),
        };
        self.paths.iter().map(named).collect()
    }

    /// Whether a file is named by its tag. What another deploy has at that path is another file.
    fn is_tagged(&self, entry: &Entry) -> bool {
        self.tagged.contains(&(entry.path.clone(), entry.content.id()))
    }
}

/// Something that loses bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Holder {
    /// A file of a deploy.
    Deploy {
        /// Of which site.
        site: SiteName,
        /// Which deploy.
        deploy: DeployId,
        /// The file.
        path: ByteName,
    },
    /// A file of a deploy that was not published yet, or is not kept any more.
    Unpublished {
        /// Its page.
        page: ChunkId,
        /// The file.
        path: ByteName,
    },
    /// A file of the namespace.
    File(String),
}

impl Holder {
    /// As people name it.
    pub(super) fn shown(&self) -> String {
        match self {
            Holder::Deploy { site, deploy, path } => {
                format!("site {site}, deploy {}: {}", deploy.short(), text::name(path.as_bytes()))
            }
            Holder::Unpublished { page, path } => {
                format!(
                    "pages {} that no deploy has: {}",
                    page.short(),
                    text::name(path.as_bytes())
                )
            }
            Holder::File(path) => path.clone(),
        }
    }

    /// Whether nobody named it: only paths in deploys of the site can be. Whose the pages are that no
    /// deploy has is not known.
    fn is_other(&self, asked: &Asked, tagged: bool) -> bool {
        match self {
            Holder::Deploy { site, path, .. } => {
                let by_pattern = |pattern| names(pattern, path.as_bytes());
                let is_named = tagged || asked.patterns.iter().any(by_pattern);
                *site != asked.site || !is_named
            }
            Holder::Unpublished { .. } | Holder::File(_) => true,
        }
    }
}

/// Everything that loses bytes.
#[derive(Debug, Default)]
pub(super) struct Holders {
    /// In the order of sites, deploys and paths; at most [`PLACES_MAX`].
    pub(super) all: Vec<Holder>,
    /// How many there are.
    pub(super) count: u64,
    /// Those that nobody named.
    pub(super) others: Vec<Holder>,
    /// The lists that name lost chunks.
    pub(super) lists: BTreeSet<ChunkId>,
    /// Everything that leads to lost chunks.
    pub(super) parents: Vec<Parent>,
    /// How many pages, lists, files and deploys refer to a chunk, list or page.
    refs: HashMap<ChunkId, u64>,
}

impl Holders {
    /// The chunks with how often they were found.
    pub(super) fn doomed(&self, meant: &Meant) -> Vec<Doomed> {
        let refs = |id: &ChunkId| self.refs.get(id).copied().unwrap_or_default();
        meant.chunks.keys().map(|id| Doomed { id: *id, refs: refs(id) }).collect()
    }

    /// Something refers to these.
    fn count(&mut self, lost: &BTreeSet<ChunkId>) {
        for id in lost {
            *self.refs.entry(*id).or_default() += 1;
        }
    }

    /// How often pages were found is known at the end.
    fn settle(&mut self) {
        for parent in &mut self.parents {
            if let Parent::Page { id, refs, .. } = parent {
                *refs = self.refs.get(id).copied().unwrap_or_default();
            }
        }
    }

    /// Places that were not there when they were shown first, as text; empty when there are none.
    pub(super) fn beyond(&self, shown: &Shown) -> Vec<String> {
        let new = self.all.iter().filter(|holder| !shown.places.contains(*holder));
        let mut new: Vec<String> = new.map(Holder::shown).collect();
        if new.is_empty() && self.count > shown.count {
            new.push(format!("{} places more than before", self.count - shown.count));
        }
        new
    }

    fn note(&mut self, holder: Holder, asked: &Asked, tagged: bool) {
        self.count += 1;
        let other = holder.is_other(asked, tagged);
        if other && self.others.len() < PLACES_MAX {
            self.others.push(holder.clone());
        }
        if self.all.len() < PLACES_MAX {
            self.all.push(holder);
        }
    }
}

/// What was shown before anything was sent.
#[derive(Debug)]
pub(super) struct Shown {
    places: HashSet<Holder>,
    count: u64,
}

impl Shown {
    /// All of these.
    pub(super) fn all_of(found: &Holders) -> Shown {
        Shown { places: found.all.iter().cloned().collect(), count: found.count }
    }
}

/// What the patterns mean in all deploys of a site.
pub(super) async fn meant(
    cluster: &Cluster,
    site: &SiteName,
    patterns: &[Pattern],
) -> Result<Meant, Failure> {
    let (mut contents, mut meant) = (Contents::default(), Meant::default());
    let deploys = all_deploys(cluster, site).await?;
    let mut files = Files::default();
    for deploy in &deploys {
        files.read(cluster, deploy.id).await?;
    }
    for entry in files.all.values().flatten() {
        if patterns.iter().any(|pattern| names(pattern, entry.path.as_bytes())) {
            contents.add(entry);
        }
    }
    let tags = tags(patterns);
    if !tags.is_empty() {
        let files = Arc::new(files);
        let mut older = HashSet::new();
        // The latest is the first.
        for deploy in deploys.iter().rev() {
            let own = files.of(deploy.id);
            let rules = of_deploy(cluster, deploy.id).await?;
            if !rules.set().headers.is_empty() {
                let pages = Pages { own: own.clone(), older: older.clone() };
                for entry in tagged(&files, rules, deploy.id, pages, &tags).await? {
                    meant.tagged.insert((entry.path.clone(), entry.content.id()));
                    contents.add(&entry);
                }
            }
            older.extend(own);
        }
    }
    for (content, paths) in contents.0.into_values() {
        let extents = cluster.extents(&content).await?;
        let chunks: BTreeMap<ChunkId, u32> =
            extents.iter().filter_map(|extent| Some((extent.id?, extent.len))).collect();
        for path in paths {
            meant.paths.entry(path).or_default().extend(chunks.keys());
        }
        meant.chunks.extend(chunks);
    }
    meant.paths.retain(|_, chunks| !chunks.is_empty());
    Ok(meant)
}

/// The files of all deploys of a site. Those share most of their pages.
#[derive(Default)]
struct Files {
    /// The files by the page they are in.
    all: HashMap<ChunkId, Vec<Entry>>,
    /// The pages below each other page.
    below: HashMap<ChunkId, Vec<ChunkId>>,
}

impl Files {
    /// Reads what is not known yet of a deploy.
    async fn read(&mut self, cluster: &Cluster, deploy: DeployId) -> Result<(), Failure> {
        let mut left = vec![deploy];
        while let Some(id) = left.pop() {
            if self.all.contains_key(&id) || self.below.contains_key(&id) {
                continue;
            }
            let below: Vec<ChunkId> = match &*cluster.page(id).await? {
                Page::RootV1(root) => root.top.iter().map(|child| child.id).collect(),
                Page::IndexV1(children) => children.iter().map(|child| child.id).collect(),
                Page::LeafV1(entries) => {
                    self.all.insert(id, entries.clone());
                    continue;
                }
            };
            left.extend(&below);
            self.below.insert(id, below);
        }
        Ok(())
    }

    /// Those of one deploy, which was read.
    fn of(&self, deploy: DeployId) -> HashSet<ChunkId> {
        let (mut left, mut leaves, mut seen) = (vec![deploy], HashSet::new(), HashSet::new());
        while let Some(id) = left.pop() {
            if self.all.contains_key(&id) {
                leaves.insert(id);
            } else if seen.insert(id) {
                left.extend(self.below.get(&id).into_iter().flatten());
            }
        }
        leaves
    }
}

/// Contents, and the paths at which they are.
#[derive(Default)]
struct Contents(HashMap<ChunkId, (Content, BTreeSet<ByteName>)>);

impl Contents {
    fn add(&mut self, entry: &Entry) {
        for content in contents_of(entry) {
            let at = self.0.entry(content.id());
            let (_, paths) = at.or_insert_with(|| (content.clone(), BTreeSet::new()));
            paths.insert(entry.path.clone());
        }
    }
}

/// The tags among the patterns, as they are compared.
fn tags(patterns: &[Pattern]) -> HashSet<String> {
    let tag = |pattern: &Pattern| match pattern {
        Pattern::Tag(tag) => Some(folded(tag)),
        Pattern::Path(_) | Pattern::Prefix(_) | Pattern::All => None,
    };
    patterns.iter().filter_map(tag).collect()
}

/// Pages with files.
struct Pages {
    /// Of a deploy.
    own: HashSet<ChunkId>,
    /// Of those before it.
    older: HashSet<ChunkId>,
}

/// The files that have one of the tags by the rules of a deploy: its own, and those of older deploys
/// that it may answer with where it has none.
async fn tagged(
    files: &Arc<Files>,
    rules: Rules,
    deploy: DeployId,
    pages: Pages,
    tags: &HashSet<String>,
) -> Result<Vec<Entry>, Failure> {
    let (files, tags) = (Arc::clone(files), tags.clone());
    let work = move || {
        let wanted = |tag: &str| tags.contains(&folded(tag));
        files.tagged(&rules, &pages, &wanted)
    };
    let found = atoll_net::task::spawn_blocking("tags", work).await;
    let found = found.map_err(|error| Failure::Failed(error.to_string()))?;
    found.map_err(|error| {
        Failure::Failed(format!(
            "nothing is erased: deploy {}: {error}. Name the files by --path or --prefix",
            deploy.short()
        ))
    })
}

impl Files {
    fn tagged(
        &self,
        rules: &Rules,
        pages: &Pages,
        wanted: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<Entry>, Untold> {
        let path = |entry: &Entry| entry.path.as_bytes().to_vec();
        let mut files = SiteFiles::default();
        for (page, entries) in &self.all {
            if pages.own.contains(page) {
                files.own.extend(entries.iter().map(path));
            }
            if pages.older.contains(page) {
                let may = entries.iter().filter(|entry| entry_may_be_earlier(entry));
                files.earlier.extend(may.map(path));
            }
        }
        let never = AtomicBool::new(false);
        let found = bearers::tagged(rules, wanted, &files, &mut Budget::new(STEPS_MAX, &never))?;
        let mut tagged = Vec::new();
        for (page, entries) in &self.all {
            let (own, older) = (pages.own.contains(page), pages.older.contains(page));
            let bears = |entry: &&Entry| {
                let path = entry.path.as_bytes();
                let earlier = older && found.earlier.contains(path) && entry_may_be_earlier(entry);
                (own && found.own.contains(path)) || earlier
            };
            tagged.extend(entries.iter().filter(bears).cloned());
        }
        Ok(tagged)
    }
}

fn contents_of(entry: &Entry) -> impl Iterator<Item = &Content> {
    std::iter::once(&entry.content).chain(entry.variants.iter().map(|variant| &variant.content))
}

/// Everything that leads to one of these chunks, for the sake of what is asked for.
pub(super) async fn holders(
    cluster: &Cluster,
    asked: &Asked,
    meant: &Meant,
) -> Result<Holders, Failure> {
    let mut search = Search {
        cluster,
        meant,
        pages: HashMap::new(),
        unaffected: HashSet::new(),
        lists: HashMap::new(),
        inodes: HashSet::new(),
        found: Holders::default(),
    };
    let request = MasterRequest::Sites;
    let MasterResponse::Sites(sites) = cluster.master(&request, limits::METADATA_DEADLINE).await?
    else {
        return Err(unexpected("sites"));
    };
    for (of, _) in sites {
        for deploy in all_deploys(cluster, &of.name).await? {
            let mut paths = Vec::new();
            if !search.page(deploy.id, 0, &mut paths).await? {
                continue;
            }
            search.found.count(&BTreeSet::from([deploy.id]));
            let parent = Parent::Deploy { site: of.name.clone(), deploy: deploy.id };
            search.found.parents.push(parent);
            for (path, tagged) in paths {
                let holder = Holder::Deploy { site: of.name.clone(), deploy: deploy.id, path };
                search.found.note(holder, asked, tagged);
            }
        }
    }
    search.unreferenced(asked).await?;
    search.namespace(asked).await?;
    search.found.settle();
    Ok(search.found)
}

struct Search<'a> {
    cluster: &'a Cluster,
    meant: &'a Meant,
    /// What was read of pages with something that loses bytes in or below them.
    pages: HashMap<ChunkId, Arc<Below>>,
    /// The other pages.
    unaffected: HashSet<ChunkId>,
    /// For every list that was read, whether it names a lost chunk.
    lists: HashMap<ChunkId, bool>,
    /// Files of the namespace that were looked at.
    inodes: HashSet<InodeId>,
    found: Holders,
}

/// What is below a page.
#[derive(Default)]
struct Below {
    /// Further pages.
    pages: Vec<ChunkId>,
    /// The files that lose bytes, and whether they are named by their tag.
    files: Vec<(ByteName, bool)>,
    /// The chunks, lists and pages that are lost, or lead to what is.
    lost: BTreeSet<ChunkId>,
}

impl Search<'_> {
    /// Adds the files below a page that lose bytes. Says whether any does.
    fn page<'b>(
        &'b mut self,
        id: ChunkId,
        depth: usize,
        paths: &'b mut Vec<(ByteName, bool)>,
    ) -> Pin<Box<dyn Future<Output = Result<bool, Failure>> + Send + 'b>> {
        Box::pin(async move {
            if self.unaffected.contains(&id) {
                return Ok(false);
            }
            if depth > limits::PAGE_DEPTH_MAX + 1 {
                return Err(Failure::Failed(format!("page {id} has pages without end below it")));
            }
            if let Some(below) = self.pages.get(&id).cloned() {
                paths.extend(below.files.iter().cloned());
                for child in &below.pages {
                    self.page(*child, depth + 1, paths).await?;
                }
                return Ok(true);
            }
            let mut below = self.read(id).await?;
            paths.extend(below.files.iter().cloned());
            let mut affected = Vec::new();
            for child in std::mem::take(&mut below.pages) {
                if self.page(child, depth + 1, paths).await? {
                    affected.push(child);
                    below.lost.insert(child);
                }
            }
            below.pages = affected;
            if below.lost.is_empty() {
                self.unaffected.insert(id);
                return Ok(false);
            }
            self.found.count(&below.lost);
            let lost = below.lost.iter().copied().collect();
            self.found.parents.push(Parent::Page { id, refs: 0, below: lost });
            self.pages.insert(id, Arc::new(below));
            Ok(true)
        })
    }

    async fn read(&mut self, id: ChunkId) -> Result<Below, Failure> {
        let page = self.cluster.page(id).await?;
        let mut below = Below::default();
        match &*page {
            Page::RootV1(root) => {
                below.pages.extend(root.top.iter().map(|child| child.id));
                if let Some(content) = &root.rules {
                    let lost = self.lost(content).await?;
                    let rules = || (ByteName::from(RULES), false);
                    below.files.extend((!lost.is_empty()).then(rules));
                    below.lost.extend(lost);
                }
            }
            Page::IndexV1(children) => below.pages.extend(children.iter().map(|child| child.id)),
            Page::LeafV1(entries) => {
                for entry in entries {
                    let mut loses = false;
                    for content in contents_of(entry) {
                        let lost = self.lost(content).await?;
                        loses |= !lost.is_empty();
                        below.lost.extend(lost);
                    }
                    let file = || (entry.path.clone(), self.meant.is_tagged(entry));
                    below.files.extend(loses.then(file));
                }
            }
        }
        Ok(below)
    }

    /// What a content refers to that is lost, or names what is.
    async fn lost(&mut self, content: &Content) -> Result<BTreeSet<ChunkId>, Failure> {
        let mut lost = BTreeSet::new();
        for id in content.direct_chunks() {
            let is_lost = match content {
                Content::Lists { .. } => self.list(id).await?,
                Content::Empty | Content::Extents(_) => self.meant.chunks.contains_key(&id),
            };
            lost.extend(is_lost.then_some(id));
        }
        Ok(lost)
    }

    async fn list(&mut self, id: ChunkId) -> Result<bool, Failure> {
        if let Some(known) = self.lists.get(&id) {
            return Ok(*known);
        }
        let bytes = self.cluster.read_chunk(id).await?;
        let extents = ExtentList::decode(&bytes)
            .map_err(|error| Failure::Failed(format!("list chunk {id}: {error}")))?;
        let ids = extents.iter().filter_map(|extent| extent.id);
        let lost: BTreeSet<ChunkId> = ids.filter(|id| self.meant.chunks.contains_key(id)).collect();
        let loses = !lost.is_empty();
        self.lists.insert(id, loses);
        if loses {
            self.found.count(&lost);
            let below = lost.into_iter().collect();
            self.found.parents.push(Parent::Page { id, refs: 0, below });
            self.found.lists.insert(id);
        }
        Ok(loses)
    }

    /// Pages and lists that were not published yet, or are about to be collected: they count.
    async fn unreferenced(&mut self, asked: &Asked) -> Result<(), Failure> {
        for (id, kind) in self.cluster.unreferenced().await? {
            let mut paths = Vec::new();
            let read = match kind {
                ObjectKind::Data => continue,
                ObjectKind::List => self.list(id).await,
                ObjectKind::Page => self.page(id, 0, &mut paths).await,
            };
            match read {
                Ok(_) => {}
                // Collected meanwhile.
                Err(_) if !self.cluster.is_kept(id).await? => continue,
                Err(error) => return Err(error),
            }
            for (path, _) in paths {
                self.found.note(Holder::Unpublished { page: id, path }, asked, false);
            }
        }
        Ok(())
    }

    async fn namespace(&mut self, asked: &Asked) -> Result<(), Failure> {
        let root = ClusterPath::parse(std::ffi::OsStr::new("/")).map_err(Failure::Failed)?;
        let mut left = vec![(root, InodeId::ROOT)];
        while let Some((directory, inode)) = left.pop() {
            let entries = crate::cluster_path::read_dir(self.cluster, &directory, inode).await;
            let entries = match entries {
                // Removed meanwhile.
                Err(failure) if failure.code() == Some(Code::NotFound) => continue,
                entries => entries?,
            };
            for entry in entries {
                let path = directory.join(entry.name.as_bytes());
                match entry.attr.kind {
                    FileKind::Directory => left.push((path, entry.attr.inode)),
                    FileKind::File if entry.attr.size > 0 => {
                        if self.file_loses(&path, entry.attr.inode).await? {
                            self.found.note(Holder::File(path.to_string()), asked, false);
                        }
                    }
                    FileKind::File | FileKind::Symlink | FileKind::Special(_) => {}
                }
            }
        }
        Ok(())
    }

    async fn file_loses(&mut self, path: &ClusterPath, inode: InodeId) -> Result<bool, Failure> {
        let content = match self.cluster.query(NamespaceQuery::Open { inode }).await {
            Ok(NamespaceReply::File { content, .. }) => content,
            Ok(_) => return Err(unexpected(path)),
            Err(error) if error.code() == Some(Code::NotFound) => return Ok(false),
            Err(error) => return Err(Failure::at(path)(error)),
        };
        let lost = self.lost(&content).await?;
        // It may have several names.
        if !lost.is_empty() && self.inodes.insert(inode) {
            self.found.count(&lost);
            self.found.parents.push(Parent::File { inode, content: content.id() });
        }
        Ok(!lost.is_empty())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::time::Duration;

    fn asked(patterns: Vec<Pattern>) -> Asked {
        let (site, timeout) = ("blog".parse().unwrap(), Duration::ZERO);
        Asked { site, patterns, everywhere: false, dry_run: false, timeout }
    }

    fn deploy(site: &str, path: &str) -> Holder {
        let (site, deploy) = (site.parse().unwrap(), ChunkId::of(site.as_bytes()));
        Holder::Deploy { site, deploy, path: path.into() }
    }

    fn unpublished(path: &str) -> Holder {
        Holder::Unpublished { page: ChunkId::of(b"page"), path: path.into() }
    }

    fn found(holders: &[Holder], asked: &Asked) -> Holders {
        let mut found = Holders::default();
        for holder in holders {
            let tagged =
                matches!(holder, Holder::Deploy { path, .. } if *path == "tagged.pdf".into());
            found.note(holder.clone(), asked, tagged);
        }
        found
    }

    #[test]
    fn only_named_paths_of_the_site_lose_bytes_without_a_flag() {
        let of_path = asked(vec![Pattern::Path("/secret.pdf".to_owned())]);
        let others = [
            deploy("blog", "index.html"),
            deploy("blog", RULES),
            deploy("shop", "secret.pdf"),
            unpublished("secret.pdf"),
            Holder::File("/secret.pdf".to_owned()),
        ];
        let mut all = others.to_vec();
        all.insert(0, deploy("blog", "secret.pdf"));
        let found_some = found(&all, &of_path);
        assert_eq!(found_some.others, others);
        assert_eq!((found_some.all, found_some.count), (all, 6));
        // The same bytes at the path, whichever deploy of the site has them; not of other sites.
        let by_tag = asked(vec![Pattern::Tag("t".to_owned())]);
        let mut tagged = others.to_vec();
        tagged.extend([deploy("blog", "tagged.pdf"), deploy("shop", "tagged.pdf")]);
        let mut beside = others.to_vec();
        beside.push(deploy("shop", "tagged.pdf"));
        assert_eq!(found(&tagged, &by_tag).others, beside);
        let whole = asked(vec![Pattern::All]);
        assert_eq!(found(&others, &whole).others, others[2..]);
    }

    #[test]
    fn places_that_nobody_was_shown_are_told() {
        let asked = asked(vec![Pattern::All]);
        let [one, two] = [deploy("blog", "one"), deploy("shop", "two")];
        let both = found(&[one.clone(), two.clone()], &asked);
        let shown = Shown::all_of(&both);
        assert!(both.beyond(&shown).is_empty());
        assert!(found(std::slice::from_ref(&one), &asked).beyond(&shown).is_empty(), "fewer");
        let new = found(&[two, deploy("blog", "three")], &asked).beyond(&shown);
        assert!(new.len() == 1 && new[0].contains("three"), "{new:?}");
        // Those of which only the number is known.
        let more = Holders { count: 7, ..found(&[one], &asked) };
        assert_eq!(more.beyond(&shown), ["5 places more than before"]);
    }
}
