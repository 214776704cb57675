//! Collecting the proof of what a deploy holds under some paths.
//!
//! What a proof is and how it is checked is in [`atoll_proto::manifest::proof`]; this is the side
//! that has the pages.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use atoll_proto::manifest::proof::Proof;
use atoll_proto::manifest::{Entry, Page, Root, Step};
use atoll_proto::{ChunkId, Content, DeployId, limits};

use super::walk::{PageSource, wrong};
use crate::{ClientError, Cluster};

/// The pages that decide some paths of a deploy, each after one that names it.
#[derive(Debug, Clone, Default)]
pub struct Proving {
    chunks: Vec<Vec<u8>>,
    found: Vec<Entry>,
    /// The chunks of the deploy's rules.
    rules: Vec<ChunkId>,
}

impl Proving {
    /// What else belongs into the proof, each chunk once: the lists of long files, without which it
    /// says which file it is, but not how to check its bytes; and the rules, unless they are so long
    /// that they would leave no room. Whoever has them hands them to [`Proving::seal`].
    pub fn more(&self) -> Vec<ChunkId> {
        let mut seen = HashSet::new();
        let lists = self.found.iter().filter_map(|entry| match &entry.content {
            Content::Lists { lists, .. } => Some(lists),
            Content::Empty | Content::Extents(_) => None,
        });
        let lists = lists.flatten().map(|(_, id)| *id);
        lists.chain(self.rules.iter().copied()).filter(|id| seen.insert(*id)).collect()
    }

    /// The proof, with these chunks.
    ///
    /// # Errors
    /// When it would be out of bounds.
    pub fn seal(mut self, more: Vec<Vec<u8>>) -> Result<Proof, ClientError> {
        self.chunks.extend(more);
        Proof::new(self.chunks).map_err(|error| ClientError::Malformed { what: error.to_string() })
    }
}

/// The proof of what a deploy holds under these paths, with its rules and the lists of long files.
///
/// # Errors
/// When a page or list cannot be read, is not what it should be, or there are too many.
pub async fn prove(
    cluster: &Cluster,
    deploy: DeployId,
    paths: &[Vec<u8>],
) -> Result<Proof, ClientError> {
    let proving = prove_pages(cluster, deploy, paths).await?;
    let more = cluster.read_chunks(&proving.more()).await?;
    proving.seal(more.into_iter().map(Vec::from).collect())
}

/// The pages that decide these paths. Each is read once.
///
/// # Errors
/// When a page cannot be read or is not what it should be.
pub async fn prove_pages<S: PageSource>(
    source: &S,
    deploy: DeployId,
    paths: &[Vec<u8>],
) -> Result<Proving, ClientError> {
    let mut have = HashMap::new();
    let mut proving = Proving::default();
    for path in paths {
        let mut id = deploy;
        let mut steps = 0;
        loop {
            let page: Arc<Page> = match have.get(&id) {
                Some(page) => Arc::clone(page),
                None => source.page(id).await?,
            };
            if page.is_root() != (steps == 0) || steps > limits::PAGE_DEPTH_MAX {
                return Err(wrong(id));
            }
            if have.insert(id, page.clone()).is_none() {
                proving.chunks.push(encoded(id, &page)?);
                if let Page::RootV1(Root { rules: Some(rules), .. }) = &*page
                    && rules.size() <= limits::PROOF_RULES_BYTES_MAX
                {
                    proving.rules = rules.direct_chunks();
                }
            }
            steps += 1;
            match page.step(path) {
                Step::Page(below) => id = below,
                Step::Found(entry) => {
                    proving.found.push(entry.clone());
                    break;
                }
                Step::Absent => break,
            }
        }
    }
    Ok(proving)
}

/// The bytes of a page, which are those it was decoded from.
fn encoded(id: ChunkId, page: &Page) -> Result<Vec<u8>, ClientError> {
    let bytes = page.encode();
    if ChunkId::of(&bytes) == id { Ok(bytes) } else { Err(wrong(id)) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use atoll_proto::manifest::proof::{Answer, check};

    use super::*;
    use crate::manifest::walk::tests::stored;

    #[tokio::test]
    async fn proofs_of_a_large_site_are_short_and_right() {
        let (source, deploy, model) = stored(20_000);
        let present: Vec<Vec<u8>> = model.keys().step_by(1777).cloned().collect();
        for path in present.iter().chain([&b"absent".to_vec(), &b"zzz".to_vec(), &vec![]]) {
            let proof = prove_pages(&source, deploy, std::slice::from_ref(path)).await.unwrap();
            let proof = proof.seal(vec![]).unwrap();
            assert!(proof.chunks().len() <= 4, "{} pages", proof.chunks().len());
            let answer = check(deploy, path, &proof.encode()).unwrap();
            let want = model.get(path).cloned().map_or(Answer::Absent, Answer::Found);
            assert_eq!(answer, want);
        }
        let proving = prove_pages(&source, deploy, &present).await.unwrap();
        assert!(proving.found.len() == present.len() && proving.more().is_empty());
        let proof = proving.seal(vec![]).unwrap();
        let proven = proof.open(deploy).unwrap();
        for path in &present {
            assert_eq!(proven.lookup(path).unwrap(), model.get(path));
        }
    }
}
