//! Proofs of what a deploy holds under a path, or that it holds nothing there.
//!
//! A deploy's id is the hash of its root page, a page names those below by hash, and entries are in
//! path order. So the pages from the root to the leaf where a path is, or would be, prove to anyone
//! who knows the id what the deploy says about the path: no key, no cluster and no trust in whoever
//! hands the pages over is needed (Merkle 1987; for absence in sorted trees, Kocher 1998).
//!
//! A [`Proof`] may cover several paths: pages that they share are in it once. List chunks of long
//! files may be in it too, without which the bytes of such a file cannot be checked, and the chunks of
//! the deploy's rules, without which nobody can tell what a URL is answered with. Every chunk but the
//! root must be named by one before it, so that nothing in a proof is unchecked.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::{Entry, Page, Reference, Root, Step};
use crate::content::{Extent, ExtentList};
use crate::rules::Rules;
use crate::{ChunkId, Content, DeployId, limits};

/// Chunks in the order in which they are checked: the root first, each other one after one that
/// names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    chunks: Vec<Vec<u8>>,
}

/// How a proof is written down. Variant numbers are stable: only append.
#[derive(Serialize, Deserialize)]
enum Written {
    V1(Vec<Vec<u8>>),
}

/// Why bytes prove nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// They are no proof in a version this program reads.
    #[error("these bytes are no proof: {reason}")]
    Malformed {
        /// What is wrong with them.
        reason: String,
    },
    /// More than any honest proof has.
    #[error("the proof is out of bounds: {what}")]
    Bounds {
        /// Which bound.
        what: &'static str,
    },
    /// It begins with the root of another deploy.
    #[error("the proof is about deploy {}, not {}", found.short(), wanted.short())]
    OtherDeploy {
        /// What was to be proved about.
        wanted: DeployId,
        /// What the proof is about.
        found: DeployId,
    },
    /// A chunk that no chunk before it names.
    #[error("chunk {at} of the proof has hash {}, which no chunk before it names", id.short())]
    Stray {
        /// Its place in the proof.
        at: usize,
        /// Its hash.
        id: ChunkId,
    },
    /// A chunk has the right hash but is not what it is named as.
    #[error("chunk {at} of the proof is not the kind of chunk that belongs there: {reason}")]
    WrongKind {
        /// Its place in the proof.
        at: usize,
        /// What it should be.
        reason: String,
    },
    /// A page or list that the question needs is not in it.
    #[error("the proof does not go far enough: it lacks chunk {}", id.short())]
    Incomplete {
        /// The first one that is needed.
        id: ChunkId,
    },
}

/// What a deploy holds under a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// This file.
    Found(Entry),
    /// Nothing.
    Absent,
}

/// A proof whose every byte was checked against the id of a deploy.
#[derive(Debug, Clone)]
pub struct Proven {
    deploy: DeployId,
    root: Root,
    pages: HashMap<ChunkId, Page>,
    lists: HashMap<ChunkId, Vec<Extent>>,
    /// Chunks of the rules.
    rules: HashMap<ChunkId, Vec<u8>>,
}

/// Checks a proof about one path.
///
/// # Errors
/// When the bytes do not prove what `deploy` holds under `path`.
pub fn check(deploy: DeployId, path: &[u8], proof: &[u8]) -> Result<Answer, ProofError> {
    let proven = Proof::decode(proof)?.open(deploy)?;
    Ok(proven.lookup(path)?.map_or(Answer::Absent, |entry| Answer::Found(entry.clone())))
}

impl Proof {
    /// A proof of these chunks, in the order in which they are to be checked. Whether they prove
    /// anything shows when it is opened.
    ///
    /// # Errors
    /// When they are out of bounds.
    pub fn new(chunks: Vec<Vec<u8>>) -> Result<Self, ProofError> {
        let bounds = |what| Err(ProofError::Bounds { what });
        if chunks.is_empty() || chunks.len() > limits::PROOF_CHUNKS_MAX {
            return bounds("the number of chunks");
        }
        if chunks.iter().map(Vec::len).sum::<usize>() > limits::PROOF_BYTES_MAX {
            return bounds("the bytes of all chunks");
        }
        Ok(Self { chunks })
    }

    /// The deploy that this proof claims to be about: the hash of its first chunk.
    pub fn deploy(&self) -> DeployId {
        self.chunks.first().map_or_else(|| ChunkId::of(b""), |root| ChunkId::of(root))
    }

    /// Its chunks.
    pub fn chunks(&self) -> &[Vec<u8>] {
        &self.chunks
    }

    /// Bytes of its chunks.
    pub fn bytes(&self) -> usize {
        self.chunks.iter().map(Vec::len).sum()
    }

    /// The proof as bytes.
    pub fn encode(&self) -> Vec<u8> {
        crate::encode(&Written::V1(self.chunks.clone()))
    }

    /// Reads what [`Proof::encode`] wrote. Proves nothing yet.
    ///
    /// # Errors
    /// When the bytes are no proof, or out of bounds.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProofError> {
        // Each chunk and the whole have a length of a few bytes in front.
        if bytes.len() > limits::PROOF_BYTES_MAX + 8 * limits::PROOF_CHUNKS_MAX {
            return Err(ProofError::Bounds { what: "the bytes of all chunks" });
        }
        let malformed = |reason: String| ProofError::Malformed { reason };
        let written: Written = crate::decode(bytes).map_err(|error| malformed(error.reason))?;
        if crate::encode(&written) != bytes {
            return Err(malformed("a length is not written in its shortest form".to_owned()));
        }
        let Written::V1(chunks) = written;
        Self::new(chunks)
    }

    /// Checks every chunk against the id of the deploy.
    ///
    /// # Errors
    /// When a chunk is not what it must be, or does not belong here.
    pub fn open(&self, deploy: DeployId) -> Result<Proven, ProofError> {
        let found = self.deploy();
        if found != deploy {
            return Err(ProofError::OtherDeploy { wanted: deploy, found });
        }
        let Some((first, others)) = self.chunks.split_first() else {
            return Err(ProofError::Bounds { what: "the number of chunks" });
        };
        let page = page(0, first)?;
        let Page::RootV1(root) = &page else {
            return Err(ProofError::WrongKind { at: 0, reason: "it should be a root".to_owned() });
        };
        let mut proven = Proven {
            deploy,
            root: root.clone(),
            pages: HashMap::new(),
            lists: HashMap::new(),
            rules: HashMap::new(),
        };
        let mut rules: HashSet<ChunkId> =
            root.rules.iter().flat_map(Content::direct_chunks).collect();
        // What the chunks so far name, and how many pages are above it.
        let mut named: HashMap<Reference, usize> = HashMap::new();
        named.extend(page.references().into_iter().map(|reference| (reference, 1)));
        proven.pages.insert(deploy, page);
        for (at, bytes) in (1..).zip(others) {
            let id = ChunkId::of(bytes);
            if let Some(depth) = named.remove(&Reference::Page(id)) {
                let page = self::page(at, bytes)?;
                if page.is_root() || depth > limits::PAGE_DEPTH_MAX {
                    return Err(ProofError::WrongKind {
                        at,
                        reason: "it should be a page below a root".to_owned(),
                    });
                }
                let below = page.references().into_iter().map(|reference| (reference, depth + 1));
                named.extend(below.filter(|(to, _)| !proven.pages.contains_key(&to.id())));
                proven.pages.insert(id, page);
            } else if named.remove(&Reference::List(id)).is_some() {
                let list = ExtentList::decode(bytes)
                    .map_err(|error| ProofError::WrongKind { at, reason: error.reason })?;
                proven.lists.insert(id, list);
            } else if rules.remove(&id) {
                proven.rules.insert(id, bytes.clone());
            } else {
                return Err(ProofError::Stray { at, id });
            }
        }
        Ok(proven)
    }
}

fn page(at: usize, bytes: &[u8]) -> Result<Page, ProofError> {
    if bytes.len() > limits::PROOF_PAGE_BYTES_MAX {
        return Err(ProofError::Bounds { what: "the bytes of a page" });
    }
    Page::decode(bytes).map_err(|error| ProofError::WrongKind { at, reason: error.reason })
}

impl Proven {
    /// The deploy that all of this is about.
    pub fn deploy(&self) -> DeployId {
        self.deploy
    }

    /// The root of its manifest.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// How many pages were checked.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// The file at this path of the deploy; `None` is a proved absence.
    ///
    /// # Errors
    /// When the pages of the proof do not decide it.
    pub fn lookup(&self, path: &[u8]) -> Result<Option<&Entry>, ProofError> {
        let mut id = self.deploy;
        for _ in 0..=limits::PAGE_DEPTH_MAX + 1 {
            let page = self.pages.get(&id).ok_or(ProofError::Incomplete { id })?;
            match page.step(path) {
                Step::Page(below) => id = below,
                Step::Found(entry) => return Ok(Some(entry)),
                Step::Absent => return Ok(None),
            }
        }
        Err(ProofError::Bounds { what: "the depth of the tree" })
    }

    /// The rules of the deploy; those without any if it has none.
    ///
    /// # Errors
    /// When they are not in the proof, or are no rules.
    pub fn rules(&self) -> Result<Rules, ProofError> {
        let Some(content) = &self.root.rules else { return Ok(Rules::default()) };
        let mut bytes = Vec::new();
        for id in content.direct_chunks() {
            bytes.extend_from_slice(self.rules.get(&id).ok_or(ProofError::Incomplete { id })?);
        }
        let wrong = |reason| ProofError::Malformed { reason };
        Rules::decode(&bytes).map_err(|error| wrong(error.reason))
    }

    /// All extents of a content, out of the lists of the proof where it has some.
    ///
    /// # Errors
    /// When a list is not in the proof, or the lists do not add up to the content.
    pub fn extents(&self, content: &Content) -> Result<Vec<Extent>, ProofError> {
        match content {
            Content::Empty => Ok(Vec::new()),
            Content::Extents(extents) => Ok(extents.clone()),
            Content::Lists { size, lists } => {
                let mut all = Vec::new();
                for (_, id) in lists {
                    all.extend(self.lists.get(id).ok_or(ProofError::Incomplete { id: *id })?);
                }
                let sum: u64 = all.iter().map(|extent: &Extent| u64::from(extent.len)).sum();
                if sum == *size { Ok(all) } else { Err(ProofError::Bounds { what: "a list" }) }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ByteName;
    use crate::manifest::Child;
    use crate::manifest::tests::entry;

    /// A tree of three levels: `leaves` leaves of `width` files `00-00`, `00-02`, …
    struct Tree {
        root: Vec<u8>,
        index: Vec<u8>,
        leaves: Vec<Vec<u8>>,
    }

    fn child(page: &Page, last: &ByteName, files: usize) -> Child {
        let bytes = page.encode();
        let len = u32::try_from(bytes.len()).unwrap();
        Child { last: last.clone(), id: ChunkId::of(&bytes), len, files: files as u64 }
    }

    fn tree(leaves: usize, width: usize) -> Tree {
        let name = |leaf: usize, at: usize| format!("{leaf:02}-{:02}", at * 2);
        let page = |leaf| Page::LeafV1((0..width).map(|at| entry(&name(leaf, at))).collect());
        let pages: Vec<Page> = (0..leaves).map(page).collect();
        let last = |leaf: usize| ByteName::from(name(leaf, width - 1).as_bytes());
        let of = |(leaf, page)| child(page, &last(leaf), width);
        let index = Page::IndexV1(pages.iter().enumerate().map(of).collect());
        let root = Page::RootV1(Root {
            top: Some(child(&index, &last(leaves - 1), leaves * width)),
            files: (leaves * width) as u64,
            bytes: 3,
            rules: None,
        });
        let leaves = pages.iter().map(Page::encode).collect();
        Tree { root: root.encode(), index: index.encode(), leaves }
    }

    impl Tree {
        fn deploy(&self) -> DeployId {
            ChunkId::of(&self.root)
        }

        fn proof(&self, leaves: &[usize]) -> Proof {
            let leaves = leaves.iter().map(|leaf| self.leaves[*leaf].clone());
            let above = [self.root.clone(), self.index.clone()];
            Proof::new(above.into_iter().chain(leaves).collect()).unwrap()
        }
    }

    fn found(path: &str) -> Answer {
        Answer::Found(entry(path))
    }

    #[test]
    fn presence_and_absence_are_proved() {
        let tree = tree(4, 5);
        let proof = tree.proof(&[2]).encode();
        let ask = |path: &str| check(tree.deploy(), path.as_bytes(), &proof);
        assert_eq!(ask("02-04").unwrap(), found("02-04"));
        // Between two files, before the first of its leaf, and past the end of the site.
        for path in ["02-05", "02", "01-09", "99"] {
            assert_eq!(ask(path).unwrap(), Answer::Absent, "{path}");
        }
        assert!(matches!(ask("01-04"), Err(ProofError::Incomplete { .. })));
        let empty = Page::RootV1(Root { top: None, files: 0, bytes: 0, rules: None }).encode();
        let deploy = ChunkId::of(&empty);
        let proof = Proof::new(vec![empty]).unwrap().encode();
        assert_eq!(check(deploy, b"x", &proof).unwrap(), Answer::Absent);
    }

    #[test]
    fn one_proof_covers_several_paths() {
        let tree = tree(4, 5);
        let proven = tree.proof(&[0, 3]).open(tree.deploy()).unwrap();
        assert_eq!(proven.lookup(b"00-00").unwrap(), Some(&entry("00-00")));
        assert_eq!(proven.lookup(b"03-01").unwrap(), None);
        assert_eq!((proven.pages(), proven.root().files), (4, 20));
    }

    #[test]
    fn what_does_not_belong_is_refused() {
        let (tree, other) = (tree(4, 5), tree(3, 5));
        let open = |chunks: Vec<&Vec<u8>>| {
            Proof::new(chunks.into_iter().cloned().collect()).unwrap().open(tree.deploy())
        };
        assert!(matches!(
            other.proof(&[0]).open(tree.deploy()),
            Err(ProofError::OtherDeploy { .. })
        ));
        // A page of another deploy, a page twice, a leaf before the page that names it.
        for chunks in [
            vec![&tree.root, &other.index],
            vec![&tree.root, &tree.index, &tree.index],
            vec![&tree.root, &tree.leaves[0], &tree.index],
        ] {
            assert!(matches!(open(chunks), Err(ProofError::Stray { .. })));
        }
        let leaf = Proof::new(vec![tree.leaves[0].clone()]).unwrap();
        assert!(matches!(leaf.open(leaf.deploy()), Err(ProofError::WrongKind { at: 0, .. })));
        assert!(matches!(Proof::new(vec![]), Err(ProofError::Bounds { .. })));
        assert!(matches!(
            Proof::new(vec![vec![0; limits::PROOF_BYTES_MAX + 1]]),
            Err(ProofError::Bounds { .. })
        ));
        let long = Proof::new(vec![vec![0; limits::PROOF_PAGE_BYTES_MAX + 1]]).unwrap();
        assert!(matches!(long.open(long.deploy()), Err(ProofError::Bounds { .. })));
    }

    #[test]
    fn lists_of_long_files_are_checked_too() {
        let extents = vec![Extent { id: Some(ChunkId::of(b"abc")), len: 3 }; 3];
        let list = ExtentList::V1(extents.clone()).encode();
        let len = u32::try_from(list.len()).unwrap();
        let mut long = entry("long");
        long.content = Content::Lists { size: 9, lists: vec![(len, ChunkId::of(&list))] };
        let content = long.content.clone();
        let leaf = Page::LeafV1(vec![long]);
        let top = Some(child(&leaf, &"long".into(), 1));
        let root = Page::RootV1(Root { top, files: 1, bytes: 9, rules: None }).encode();
        let deploy = ChunkId::of(&root);
        let proof = |chunks| Proof::new(chunks).unwrap().open(deploy).unwrap();
        let whole = proof(vec![root.clone(), leaf.encode(), list]);
        assert_eq!(whole.extents(&content).unwrap(), extents);
        let without = proof(vec![root, leaf.encode()]);
        assert!(matches!(without.extents(&content), Err(ProofError::Incomplete { .. })));
    }

    #[test]
    fn any_flipped_byte_fails() {
        let tree = tree(3, 3);
        let proof = tree.proof(&[1]).encode();
        assert!(check(tree.deploy(), b"01-02", &proof).is_ok());
        for at in 0..proof.len() {
            for bit in 0..8 {
                let mut bad = proof.clone();
                bad[at] ^= 1 << bit;
                assert!(check(tree.deploy(), b"01-02", &bad).is_err(), "byte {at}, bit {bit}");
            }
        }
        for len in 0..proof.len() {
            assert!(check(tree.deploy(), b"01-02", &proof[..len]).is_err(), "cut at {len}");
        }
    }

    proptest! {
        #[test]
        fn proofs_say_what_the_deploy_says(
            leaves in 1_usize..6, width in 1_usize..8, leaf in 0_usize..7, at in 0_usize..20,
        ) {
            let tree = tree(leaves, width);
            let path = format!("{leaf:02}-{at:02}");
            let exists = leaf < leaves && at % 2 == 0 && at / 2 < width;
            // The leaf where it is or would be; past the end, the index alone decides.
            let last = format!("{leaf:02}-{:02}", (width - 1) * 2);
            let decides = if path <= last { leaf } else { leaf + 1 };
            let proof = tree.proof(if decides < leaves { std::slice::from_ref(&decides) } else { &[] });
            let answer = check(tree.deploy(), path.as_bytes(), &proof.encode()).unwrap();
            prop_assert_eq!(answer, if exists { found(&path) } else { Answer::Absent });
            prop_assert_eq!(Proof::decode(&proof.encode()).unwrap(), proof);
        }

        #[test]
        fn any_bytes_are_judged_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            prop_assert!(check(ChunkId::of(b"x"), b"a", &bytes).is_err());
            if let Ok(proof) = Proof::decode(&bytes) {
                drop(proof.open(proof.deploy()));
            }
        }

        #[test]
        fn pages_that_are_no_pages_are_judged_without_panic(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..256), 1..4)
        ) {
            let proof = Proof::new(chunks).unwrap();
            drop(proof.open(proof.deploy()));
        }
    }
}
