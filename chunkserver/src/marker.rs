//! Whose data is in the data directory: checked once, before anything is served.
//!
//! Twice is written who owns the chunks: inside the store, and in the file `IDENTITY` beside it.
//! So a disk that is missing, half copied or of another node is told from a new one, and a node
//! that lost its chunks does not come back as an empty one that claims to have them.
//!
//! ```text
//! IDENTITY    store            what it means
//! absent      absent           new: set up
//! new         any              setting up was interrupted: finish
//! ready       this node's      a node with its chunks
//! ready       damaged          the disk failed it: set aside, taken back, filled from the others
//! ready       absent           refused: the chunks are gone
//! unreadable  this node's      the disk failed the marker: written again
//! unreadable  damaged, absent  refused: nothing says whose it is
//! absent      present          refused: ask the operator
//! any         another node's   refused
//! ```

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use atoll_proto::{ChunkId, ClusterId, NodeId};
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
    /// The hash of the fields above, as [`Marker::sum`] has them: a flipped bit must not make a
    /// directory another node's.
    check: Option<String>,
}

/// What the file says.
enum Found {
    Absent,
    Unreadable(String),
    Marker(Marker),
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
    let new: Vec<&Path> = dir.ancestors().take_while(|level| !level.exists()).collect();
    fs::create_dir_all(dir).map_err(file("create", dir))?;
    // A directory is there after a power cut only if its parent was synced.
    for parent in new.iter().filter_map(|level| level.parent()) {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        File::open(parent).and_then(|it| it.sync_all()).map_err(file("sync", parent))?;
    }
    let marker = dir.join(MARKER);
    let present = RocksStore::exists(&store_dir);
    match read(&marker)? {
        Found::Absent if present => Err(RunError::MarkerGone { dir: dir.to_owned(), marker }),
        Found::Absent => set_up(dir, cluster, node, reserve),
        Found::Marker(found) => {
            found.check(dir, cluster, node)?;
            if !found.ready {
                set_up(dir, cluster, node, reserve)
            } else if present {
                open_or_replace(dir, cluster, node, reserve)
            } else {
                Err(RunError::ChunksGone { dir: dir.to_owned(), marker })
            }
        }
        Found::Unreadable(reason) => {
            let unknown =
                |reason| RunError::MarkerUnreadable { dir: dir.to_owned(), marker, reason };
            if !present {
                return Err(unknown(reason));
            }
            let store = match open_checked(dir, cluster, node, reserve) {
                Err(RunError::Store { source: StoreError::Damaged { .. }, .. }) => {
                    return Err(unknown(reason));
                }
                store => store?,
            };
            tracing::warn!(dir = %dir.display(), reason, "the marker is unreadable: written again");
            write(dir, Marker::new(cluster, node, true))?;
            Ok(store)
        }
    }
}

/// Opens the store of a directory that is this node's.
fn open_or_replace(
    dir: &Path,
    cluster: ClusterId,
    node: NodeId,
    reserve: Option<u64>,
) -> Result<RocksStore, RunError> {
    match open_checked(dir, cluster, node, reserve) {
        Err(RunError::Store { source: StoreError::Damaged { reason }, .. }) => {
            tracing::error!(dir = %dir.display(), reason, "the chunk store cannot be read");
            RocksStore::replace(&dir.join(STORE), reserve, &owner(cluster, node))
                .map_err(|source| RunError::Store { dir: dir.to_owned(), source })
        }
        store => store,
    }
}

fn open_checked(
    dir: &Path,
    cluster: ClusterId,
    node: NodeId,
    reserve: Option<u64>,
) -> Result<RocksStore, RunError> {
    let failed = |source| RunError::Store { dir: dir.to_owned(), source };
    let store = RocksStore::open(&dir.join(STORE), reserve).map_err(failed)?;
    check_store(&store, dir, cluster, node)?;
    Ok(store)
}

fn set_up(
    dir: &Path,
    cluster: ClusterId,
    node: NodeId,
    reserve: Option<u64>,
) -> Result<RocksStore, RunError> {
    let failed = |source| RunError::Store { dir: dir.to_owned(), source };
    let store_dir = dir.join(STORE);
    write(dir, Marker::new(cluster, node, false))?;
    let store = match RocksStore::create(&store_dir, reserve) {
        // Nothing was ever acknowledged from a store that was not finished.
        Err(StoreError::Damaged { reason }) => {
            tracing::warn!(dir = %dir.display(), reason, "setting up from the start");
            fs::remove_dir_all(&store_dir).map_err(file("remove", &store_dir))?;
            RocksStore::create(&store_dir, reserve)
        }
        store => store,
    };
    let store = store.map_err(failed)?;
    store.save(&owner(cluster, node)).map_err(failed)?;
    write(dir, Marker::new(cluster, node, true))?;
    Ok(store)
}

fn owner(cluster: ClusterId, node: NodeId) -> [(Meta, Vec<u8>); 2] {
    [(Meta::Cluster, cluster.0.to_vec()), (Meta::Node, node.0.to_be_bytes().to_vec())]
}

impl Marker {
    fn new(cluster: ClusterId, node: NodeId, ready: bool) -> Self {
        let cluster = cluster.to_string();
        Self { format: FORMAT, cluster, node: node.0, ready, check: None }
    }

    fn sum(&self) -> String {
        let Self { format, cluster, node, ready, check: _ } = self;
        ChunkId::of(format!("{format} {cluster} {node} {ready}").as_bytes()).to_string()
    }

    /// Whether it is as it was written. Format 1 had no sum.
    fn is_whole(&self) -> bool {
        match &self.check {
            Some(check) => *check == self.sum(),
            None => self.format == 1,
        }
    }

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
        source: StoreError::Damaged { reason: format!("the store does not say its {what}") },
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

fn read(path: &Path) -> Result<Found, RunError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Absent),
        // The disk cannot read that place.
        Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => {
            return Ok(Found::Unreadable(error.to_string()));
        }
        Err(source) => return Err(file("read", path)(source)),
    };
    let parsed = str::from_utf8(&bytes).map_err(|error| error.to_string());
    let parsed = parsed.and_then(|text| {
        toml::from_str(text).map_err(|error: toml::de::Error| error.message().to_owned())
    });
    Ok(match parsed {
        Ok(marker) if Marker::is_whole(&marker) => Found::Marker(marker),
        Ok(_) => Found::Unreadable("its checksum is wrong".to_owned()),
        Err(reason) => Found::Unreadable(reason),
    })
}

/// Replaces the marker; on disk, with its directory entry, when this returns.
fn write(dir: &Path, marker: Marker) -> Result<(), RunError> {
    let marker = Marker { check: Some(marker.sum()), ..marker };
    let text = toml::to_string(&marker).expect("five plain fields always encode");
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
        write(dir.path(), Marker::new(CLUSTER, NodeId(8), true)).unwrap();
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
        let begun = || Marker::new(CLUSTER, NODE, false);
        write(dir.path(), begun()).unwrap();
        drop(open(dir.path(), CLUSTER, NODE, None).unwrap());
        write(dir.path(), begun()).unwrap();
        drop(open(dir.path(), CLUSTER, NODE, None).unwrap());
        assert!(is_ready(dir.path()));
        // Cut off in the middle of making the store.
        write(dir.path(), begun()).unwrap();
        fs::remove_file(dir.path().join(STORE).join("CURRENT")).unwrap();
        fs::write(dir.path().join(STORE).join("MANIFEST-000001"), b"half a").unwrap();
        drop(open(dir.path(), CLUSTER, NODE, None).unwrap());
        assert!(is_ready(dir.path()));
    }

    fn is_ready(dir: &Path) -> bool {
        let found = read(&dir.join(MARKER)).unwrap();
        matches!(found, Found::Marker(marker) if marker.ready)
    }

    /// Ways in which a disk fails a small file.
    fn damage(bytes: &[u8]) -> Vec<Vec<u8>> {
        let flipped = (0..bytes.len() * 8).map(|bit| {
            let mut bytes = bytes.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        });
        let cut = (0..bytes.len()).map(|len| bytes[..len].to_vec());
        flipped.chain(cut).chain([vec![0; bytes.len()], vec![0xff; 4096]]).collect()
    }

    #[test]
    fn an_unreadable_marker_is_written_again_if_the_store_is_ours() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), CLUSTER, NODE, None).unwrap());
        let path = dir.path().join(MARKER);
        let good = fs::read(&path).unwrap();
        for (at, bad) in damage(&good).into_iter().enumerate() {
            fs::write(&path, &bad).unwrap();
            match read(&path).unwrap() {
                // White space, or the like.
                Found::Marker(marker) => marker.check(dir.path(), CLUSTER, NODE).unwrap(),
                Found::Unreadable(_) => {}
                Found::Absent => panic!("it is there"),
            }
            if at % 97 == 0 || bad.len() < 2 {
                drop(open(dir.path(), CLUSTER, NODE, None).unwrap());
                assert!(is_ready(dir.path()));
            }
        }
        fs::write(&path, b"noise").unwrap();
        let refused = open(dir.path(), CLUSTER, NodeId(8), None).unwrap_err();
        assert!(matches!(refused, RunError::ForeignData { .. }), "{refused}");
        assert_eq!(fs::read(&path).unwrap(), b"noise", "nothing was changed");
    }

    #[test]
    fn nothing_is_done_where_nothing_says_whose_it_is() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), CLUSTER, NODE, None).unwrap());
        fs::write(dir.path().join(MARKER), b"noise").unwrap();
        fs::remove_file(dir.path().join(STORE).join("CURRENT")).unwrap();
        let refused = open(dir.path(), CLUSTER, NODE, None).unwrap_err();
        assert!(matches!(refused, RunError::MarkerUnreadable { .. }), "{refused}");
        fs::remove_dir_all(dir.path().join(STORE)).unwrap();
        let refused = open(dir.path(), CLUSTER, NODE, None).unwrap_err();
        assert!(matches!(refused, RunError::MarkerUnreadable { .. }), "{refused}");
    }

    #[test]
    fn a_damaged_store_is_set_aside_and_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), CLUSTER, NODE, None).unwrap();
        store.save(&[(Meta::Fence, vec![7; 16])]).unwrap();
        assert!(!store.refilling());
        drop(store);
        fs::remove_file(dir.path().join(STORE).join("CURRENT")).unwrap();
        let store = open(dir.path(), CLUSTER, NODE, None).unwrap();
        assert!(store.refilling());
        drop(store);
        let store = open(dir.path(), CLUSTER, NODE, None).unwrap();
        assert!(store.refilling(), "also after a start");
        assert!(dir.path().join("chunks.damaged-1").is_dir());
        assert!(!store.finish_refill().unwrap(), "nobody looked what is in it");
        assert!(store.salvage(0, 1).unwrap().complete);
        assert!(store.finish_refill().unwrap());
        assert!(!store.refilling());
        assert!(!dir.path().join("chunks.damaged-1").exists());
    }

    #[test]
    fn an_interrupted_replacement_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), CLUSTER, NODE, None).unwrap());
        let at = |name: &str| dir.path().join(name);
        // Between the two renames.
        fs::create_dir(at("chunks.damaged-1")).unwrap();
        fs::rename(at("chunks"), at("chunks.new")).unwrap();
        drop(open(dir.path(), CLUSTER, NODE, None).unwrap());
        assert!(at("chunks").is_dir() && !at("chunks.new").exists());
        // Before the first: the new one is not needed yet, or any more.
        fs::create_dir(at("chunks.new")).unwrap();
        fs::write(at("chunks.new/CURRENT"), b"half").unwrap();
        drop(open(dir.path(), CLUSTER, NODE, None).unwrap());
        assert!(!at("chunks.new").exists());
        // Without anything set aside the chunks are gone, whatever else is there.
        fs::remove_dir_all(at("chunks.damaged-1")).unwrap();
        fs::rename(at("chunks"), at("chunks.new")).unwrap();
        let refused = open(dir.path(), CLUSTER, NODE, None).unwrap_err();
        assert!(matches!(refused, RunError::ChunksGone { .. }), "{refused}");
    }

    #[test]
    fn an_unknown_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), CLUSTER, NODE, None).unwrap());
        let newer = Marker { format: FORMAT + 1, ..Marker::new(CLUSTER, NODE, true) };
        write(dir.path(), newer).unwrap();
        let refused = open(dir.path(), CLUSTER, NODE, None).unwrap_err();
        assert!(matches!(refused, RunError::Format { .. }), "{refused}");
        let first = format!("format = 1\ncluster = \"{CLUSTER}\"\nnode = 7\nready = true\n");
        fs::write(dir.path().join(MARKER), first).unwrap();
        let refused = open(dir.path(), CLUSTER, NODE, None).unwrap_err();
        assert!(matches!(refused, RunError::Format { .. }), "{refused}");
    }
}
