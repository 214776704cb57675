//! Collecting the proof of what a deploy holds under some paths.
//!
//! What a proof is and how it is checked is in [`atoll_proto::manifest::proof`]; this is the side
//! that has the pages.

use std::collections::HashSet;

use atoll_proto::manifest::proof::Proof;
use atoll_proto::manifest::{Entry, Page, Step};
use atoll_proto::{ChunkId, Content, DeployId, limits};

use super::walk::{PageSource, wrong};
use crate::{ClientError, Cluster};

/// The proof of what `deploy` holds under these paths. Each page is read once.
///
/// # Errors
/// When a page cannot be read, is not what it should be, or there are too many.
pub async fn prove<S: PageSource>(
    source: &S,
    deploy: DeployId,
    paths: &[Vec<u8>],
) -> Result<Proof, ClientError> {
    let (chunks, _) = pages(source, deploy, paths).await?;
    sealed(chunks)
}

/// The same, with the list chunks of long files, so that their bytes can be checked too.
///
/// # Errors
/// As [`prove`], and when a list chunk cannot be read.
pub async fn prove_with_lists(
    cluster: &Cluster,
    deploy: DeployId,
    paths: &[Vec<u8>],
) -> Result<Proof, ClientError> {
    let (mut chunks, found) = pages(cluster, deploy, paths).await?;
    let ids = list_ids(&found);
    chunks.extend(cluster.read_chunks(&ids).await?.into_iter().map(Vec::from));
    sealed(chunks)
}

/// The list chunks of these files, each once. An edge, which reads chunks in its own way, adds them
/// to a proof itself.
pub fn list_ids(found: &[Entry]) -> Vec<ChunkId> {
    let mut seen = HashSet::new();
    let lists = found.iter().filter_map(|entry| match &entry.content {
        Content::Lists { lists, .. } => Some(lists),
        Content::Empty | Content::Extents(_) => None,
    });
    lists.flatten().map(|(_, id)| *id).filter(|id| seen.insert(*id)).collect()
}

/// Chunks of a proof that are not too many.
fn sealed(chunks: Vec<Vec<u8>>) -> Result<Proof, ClientError> {
    Proof::new(chunks).map_err(|error| ClientError::Malformed { what: error.to_string() })
}

/// The pages that decide these paths, each after one that names it, and the files found.
async fn pages<S: PageSource>(
    source: &S,
    deploy: DeployId,
    paths: &[Vec<u8>],
) -> Result<(Vec<Vec<u8>>, Vec<Entry>), ClientError> {
    let mut have = HashSet::new();
    let mut chunks = Vec::new();
    let mut found = Vec::new();
    for path in paths {
        let mut id = deploy;
        let mut steps = 0;
        loop {
            let page = source.page(id).await?;
            if page.is_root() != (steps == 0) || steps > limits::PAGE_DEPTH_MAX {
                return Err(wrong(id));
            }
            if have.insert(id) {
                chunks.push(encoded(id, &page)?);
            }
            steps += 1;
            match page.step(path) {
                Step::Page(below) => id = below,
                Step::Found(entry) => {
                    found.push(entry.clone());
                    break;
                }
                Step::Absent => break,
            }
        }
    }
    Ok((chunks, found))
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
            let proof = prove(&source, deploy, std::slice::from_ref(path)).await.unwrap();
            assert!(proof.chunks().len() <= 4, "{} pages", proof.chunks().len());
            let answer = check(deploy, path, &proof.encode()).unwrap();
            let want = model.get(path).cloned().map_or(Answer::Absent, Answer::Found);
            assert_eq!(answer, want);
        }
        let proof = prove(&source, deploy, &present).await.unwrap();
        let proven = proof.open(deploy).unwrap();
        for path in &present {
            assert_eq!(proven.lookup(path).unwrap(), model.get(path));
        }
    }
}
