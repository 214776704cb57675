//! Whose data is in the data directory: checked once, before anything is served.
//!
//! Twice is written who owns the chunks: inside the store, and in the file `IDENTITY` beside it.
//! So a disk that is missing, half copied or of another node is told from a new one, and a node
//! that lost its chunks does not come back as an empty one that claims to have them.
//!
//! ```text
//! IDENTITY   store     what it means
//! absent     absent    new: set up
//! new        any       setting up was interrupted: finish
//! ready      present   a node with its chunks
//! ready      absent    refused: the chunks are gone
//! absent     present   refused: ask the operator
//! ```

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use atoll_proto::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};

use crate::error::RunError;
use crate::store::{ChunkStore, FORMAT, Meta, StoreError, rocks::RocksStore};

const MARKER: &str = "IDENTITY";
const STORE: &str = "chunks";

#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    format: u32,
    cluster: String,
    node: u64,
    ready: bool,
}

/// Opens the chunks of this node in `dir`, or sets the directory up. Blocks.
///
/// # Errors
/// When the directory is another node's, has lost its chunks, or cannot be used.
pub(crate) fn open(
    dir: &Path,
    cluster: ClusterId,
    node: NodeId,
    reserve: Option<u64>,
) -> Result<RocksStore, RunError> {
    let store_dir = dir.join(STORE);
    let failed = |source| RunError::Store { dir: dir.to_owned(), source };
    let new: Vec<&Path> = dir.ancestors().take_while(|level| !level.exists()).collect();
    fs::create_dir_all(dir).map_err(file("create", dir))?;
    // A directory is there after a power cut only if its parent was synced.
    for parent in new.iter().filter_map(|level| level.parent()) {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        File::open(parent).and_then(|it| it.sync_all()).map_err(file("sync", parent))?;
    }
    let marker = dir.join(MARKER);
    match (read(&marker)?, RocksStore::exists(&store_dir)) {
        (None, false) => set_up(dir, cluster, node, reserve),
        (None, true) => Err(RunError::MarkerGone { dir: dir.to_owned(), marker }),
        (Some(found), present) => {
            found.check(dir, cluster, node)?;
            if !found.ready {
                return set_up(dir, cluster, node, reserve);
            }
            if !present {
                return Err(RunError::ChunksGone { dir: dir.to_owned(), marker });
            }
            let store = RocksStore::open(&store_dir, reserve).map_err(failed)?;
            check_store(&store, dir, cluster, node)?;
            Ok(store)
        }
    }
}

fn set_up(
    dir: &Path,
    cluster: ClusterId,
    node: NodeId,
    reserve: Option<u64>,
) -> Result<RocksStore, RunError> {
    let marker =
        |ready| Marker { format: FORMAT, cluster: cluster.to_string(), node: node.0, ready };
    write(dir, &marker(false))?;
    let owner = [(Meta::Cluster, cluster.0.to_vec()), (Meta::Node, node.0.to_be_bytes().to_vec())];
    let store = RocksStore::create(&dir.join(STORE), reserve)
        .and_then(|store| store.save(&owner).map(|()| store))
        .map_err(|source| RunError::Store { dir: dir.to_owned(), source })?;
    write(dir, &marker(true))?;
    Ok(store)
}

impl Marker {
    fn check(&self, dir: &Path, cluster: ClusterId, node: NodeId) -> Result<(), RunError> {
        check_format(dir, self.format)?;
        let found_cluster: ClusterId =
            self.cluster.parse().map_err(|_malformed| RunError::Format {
                dir: dir.to_owned(),
                found: format!("{:?} (not a cluster id)", self.cluster),
                known: FORMAT,
            })?;
        check_owner(dir, (found_cluster, NodeId(self.node)), (cluster, node))
    }
}

fn check_store(
    store: &RocksStore,
    dir: &Path,
    cluster: ClusterId,
    node: NodeId,
) -> Result<(), RunError> {
    let load =
        |key| store.load(key).map_err(|source| RunError::Store { dir: dir.to_owned(), source });
    let nothing = |what: &'static str| RunError::Store {
        dir: dir.to_owned(),
        source: StoreError::Disk {
            verb: "read whose chunks these are",
            reason: format!("the store does not say its {what}"),
        },
    };
    let format = load(Meta::Format)?.and_then(|value| value.try_into().ok());
    check_format(dir, u32::from_be_bytes(format.ok_or_else(|| nothing("format"))?))?;
    let found = load(Meta::Cluster)?.and_then(|value| value.try_into().ok());
    let found_cluster = ClusterId(found.ok_or_else(|| nothing("cluster"))?);
    let found = load(Meta::Node)?.and_then(|value| value.try_into().ok());
    let found_node = NodeId(u64::from_be_bytes(found.ok_or_else(|| nothing("node"))?));
    check_owner(dir, (found_cluster, found_node), (cluster, node))
}

fn check_format(dir: &Path, found: u32) -> Result<(), RunError> {
    if found == FORMAT {
        return Ok(());
    }
    Err(RunError::Format { dir: dir.to_owned(), found: found.to_string(), known: FORMAT })
}

fn check_owner(
    dir: &Path,
    (found_cluster, found_node): (ClusterId, NodeId),
    (cluster, node): (ClusterId, NodeId),
) -> Result<(), RunError> {
    if (found_cluster, found_node) == (cluster, node) {
        return Ok(());
    }
    Err(RunError::ForeignData { dir: dir.to_owned(), found_cluster, found_node, cluster, node })
}

fn read(path: &Path) -> Result<Option<Marker>, RunError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(file("read", path)(source)),
    };
    let parsed = toml::from_str(&text).map_err(|error| {
        file("read", path)(std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string()))
    })?;
    Ok(Some(parsed))
}

/// Replaces the marker; on disk, with its directory entry, when this returns.
fn write(dir: &Path, marker: &Marker) -> Result<(), RunError> {
    let text = toml::to_string(marker).expect("four plain fields always encode");
    let path = dir.join(MARKER);
    let draft = dir.join(format!("{MARKER}.new"));
    let put = || -> std::io::Result<()> {
        let mut out = File::create(&draft)?;
        out.write_all(text.as_bytes())?;
        out.sync_all()?;
        fs::rename(&draft, &path)?;
        File::open(dir)?.sync_all()
    };
    put().map_err(file("write", &path))
}

fn file(verb: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> RunError + use<> {
    let path: PathBuf = path.to_owned();
    move |source| RunError::File { verb, path, source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const CLUSTER: ClusterId = ClusterId([1; 16]);
    const NODE: NodeId = NodeId(7);

    #[test]
    fn a_directory_belongs_to_one_node_of_one_cluster() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), CLUSTER, NODE, None).unwrap());
        drop(open(dir.path(), CLUSTER, NODE, None).unwrap());
        for (cluster, node) in [(ClusterId([2; 16]), NODE), (CLUSTER, NodeId(8))] {
            let refused = open(dir.path(), cluster, node, None).unwrap_err();
            assert!(matches!(refused, RunError::ForeignData { .. }), "{refused}");
        }
    }

    #[test]
    fn the_store_itself_knows_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), CLUSTER, NODE, None).unwrap());
        let other = Marker { format: FORMAT, cluster: CLUSTER.to_string(), node: 8, ready: true };
        write(dir.path(), &other).unwrap();
        let refused = open(dir.path(), CLUSTER, NodeId(8), None).unwrap_err();
        assert!(matches!(refused, RunError::ForeignData { .. }), "{refused}");
    }

    #[test]
    fn lost_chunks_are_not_an_empty_node() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), CLUSTER, NODE, None).unwrap());
        fs::remove_dir_all(dir.path().join(STORE)).unwrap();
        let refused = open(dir.path(), CLUSTER, NODE, None).unwrap_err();
        assert!(matches!(refused, RunError::ChunksGone { .. }), "{refused}");
    }

    #[test]
    fn chunks_without_a_marker_are_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), CLUSTER, NODE, None).unwrap());
        fs::remove_file(dir.path().join(MARKER)).unwrap();
        let refused = open(dir.path(), CLUSTER, NODE, None).unwrap_err();
        assert!(matches!(refused, RunError::MarkerGone { .. }), "{refused}");
    }

    #[test]
    fn an_interrupted_setup_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let begun =
            Marker { format: FORMAT, cluster: CLUSTER.to_string(), node: NODE.0, ready: false };
        write(dir.path(), &begun).unwrap();
        drop(open(dir.path(), CLUSTER, NODE, None).unwrap());
        write(dir.path(), &begun).unwrap();
        drop(open(dir.path(), CLUSTER, NODE, None).unwrap());
        assert!(read(&dir.path().join(MARKER)).unwrap().unwrap().ready);
    }

    #[test]
    fn an_unknown_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), CLUSTER, NODE, None).unwrap());
        let newer =
            Marker { format: FORMAT + 1, cluster: CLUSTER.to_string(), node: NODE.0, ready: true };
        write(dir.path(), &newer).unwrap();
        let refused = open(dir.path(), CLUSTER, NODE, None).unwrap_err();
        assert!(matches!(refused, RunError::Format { .. }), "{refused}");
    }
}
