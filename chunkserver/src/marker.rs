//! Whose data is in the data directory: checked once, before anything is served.
//!
//! Twice is written who owns the chunks: inside the store, and in the file `IDENTITY` beside it.
//! So a disk that is missing, half copied or of another node is told from a new one, and a node
//! that lost its chunks does not come back as an empty one that claims to have them.
//!
//! `IDENTITY` has a second copy, `IDENTITY.copy`, so that a disk that fails one small file does no
//! harm: the marker is what the better of the two says, and the other is written again. The copy is
//! only ever written as ready, and before `IDENTITY` is.
//!
//! ```text
//! marker      store            what it means
//! absent      absent           new: set up
//! new         any              setting up was interrupted: finish
//! ready       this node's      a node with its chunks
//! ready       damaged          the disk failed it: set aside, taken back, filled from the others
//! ready       absent           refused: the chunks are gone
//! unreadable  this node's      the disk failed both copies: written again
//! unreadable  damaged          the disk failed all of it: as ready and damaged, unless what is
//!                              left of the store is another node's
//! one alone   damaged          refused if it is unreadable, as in a directory from before there were
//!                              copies: too little says whose it is
//! unreadable  absent           refused: nothing says that this disk is the right one
//! absent      present          refused: ask the operator
//! any         another node's   refused; so is one copy of a marker that is another node's
//! ```
//!
//! Where neither a copy nor the store can be read, the configuration is believed, whose cluster and
//! name the certificate has confirmed. That is right for the disk that failed, and the other case does
//! no harm that cannot be borne: it takes another node's disk, mounted by mistake, that has failed
//! in three places. Its store is then set aside, not deleted, and what is whole in it is taken over as
//! chunks that nobody has said to be live, each checked against its own name; such chunks are
//! asked about at the master before they go, and stay in quarantine for their time. A small chunk in
//! the index that cannot be read is lost to its own node in just the same way.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use atoll_proto::{ChunkId, ClusterId, NodeId};
use serde::{Deserialize, Serialize};

use crate::error::RunError;
use crate::store::{ChunkStore, FORMAT, Meta, StoreError, rocks::RocksStore};

const MARKER: &str = "IDENTITY";
/// The second copy.
const COPY: &str = "IDENTITY.copy";
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

/// What one copy says.
enum Found {
    Absent,
    Unreadable(String),
    Marker(Marker),
}

/// Both copies, neither of them another node's.
struct Copies {
    marker: Found,
    copy: Found,
}

/// What the copies say together.
enum Said {
    Absent,
    Unreadable(String),
    New,
    Ready,
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
    let copies = Copies::read(dir, cluster, node)?;
    let store = match copies.said() {
        Said::Absent if present => {
            return Err(RunError::MarkerGone { dir: dir.to_owned(), marker });
        }
        Said::Absent | Said::New => return set_up(dir, cluster, node, reserve),
        Said::Ready if present => open_or_replace(dir, cluster, node, reserve)?,
        Said::Ready => return Err(RunError::ChunksGone { dir: dir.to_owned(), marker }),
        Said::Unreadable(reason) if present && copies.is_older() => {
            // One bad sector in a directory from before there were copies. If the store is damaged as
            // well, too little says whose it is.
            match open_checked(dir, cluster, node, reserve) {
                Err(RunError::Store { source: StoreError::Damaged { .. }, .. }) => {
                    return Err(RunError::MarkerUnreadable { dir: dir.to_owned(), marker, reason });
                }
                store => store?,
            }
        }
        Said::Unreadable(reason) if present => {
            tracing::error!(dir = %dir.display(), reason, "no copy of the marker can be read");
            open_or_replace(dir, cluster, node, reserve)?
        }
        Said::Unreadable(reason) => {
            return Err(RunError::MarkerUnreadable { dir: dir.to_owned(), marker, reason });
        }
    };
    copies.mend(dir, cluster, node)?;
    Ok(store)
}

/// Opens the store of a directory that is this node's, as far as anything says whose it is.
fn open_or_replace(
    dir: &Path,
    cluster: ClusterId,
    node: NodeId,
    reserve: Option<u64>,
) -> Result<RocksStore, RunError> {
    match open_checked(dir, cluster, node, reserve) {
        Err(RunError::Store { source: StoreError::Damaged { reason }, .. }) => {
            check_remains(dir, cluster, node)?;
            tracing::error!(dir = %dir.display(), reason, "the chunk store cannot be read");
            RocksStore::replace(&dir.join(STORE), reserve, &owner(cluster, node))
                .map_err(|source| RunError::Store { dir: dir.to_owned(), source })
        }
        store => store,
    }
}

/// A store that cannot be opened may still say that it is another node's.
fn check_remains(dir: &Path, cluster: ClusterId, node: NodeId) -> Result<(), RunError> {
    let remains = RocksStore::remains(&dir.join(STORE));
    let found_cluster = remains.get(&Meta::Cluster).and_then(|it| it.as_slice().try_into().ok());
    let found_node = remains.get(&Meta::Node).and_then(|it| it.as_slice().try_into().ok());
    let found_cluster = found_cluster.map_or(cluster, ClusterId);
    let found_node = found_node.map_or(node, |bytes| NodeId(u64::from_be_bytes(bytes)));
    check_owner(dir, (found_cluster, found_node), (cluster, node))
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
    write(dir, MARKER, Marker::new(cluster, node, false))?;
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
    for copy in [COPY, MARKER] {
        write(dir, copy, Marker::new(cluster, node, true))?;
    }
    Ok(store)
}

fn owner(cluster: ClusterId, node: NodeId) -> [(Meta, Vec<u8>); 2] {
    [(Meta::Cluster, cluster.0.to_vec()), (Meta::Node, node.0.to_be_bytes().to_vec())]
}

impl Copies {
    fn read(dir: &Path, cluster: ClusterId, node: NodeId) -> Result<Self, RunError> {
        let copies = Self { marker: read(&dir.join(MARKER))?, copy: read(&dir.join(COPY))? };
        for marker in copies.whole() {
            marker.check(dir, cluster, node)?;
        }
        Ok(copies)
    }

    /// Those that can be read.
    fn whole(&self) -> impl Iterator<Item = &Marker> {
        [&self.marker, &self.copy].into_iter().filter_map(|found| match found {
            Found::Marker(marker) => Some(marker),
            Found::Absent | Found::Unreadable(_) => None,
        })
    }

    fn said(&self) -> Said {
        if self.whole().any(|marker| marker.ready) {
            return Said::Ready;
        }
        match (&self.marker, &self.copy) {
            (Found::Marker(_), _) | (_, Found::Marker(_)) => Said::New,
            (Found::Unreadable(reason), _) | (_, Found::Unreadable(reason)) => {
                Said::Unreadable(reason.clone())
            }
            (Found::Absent, Found::Absent) => Said::Absent,
        }
    }

    /// Whether there is only one of them: they are made both or, before there were two, one.
    fn is_older(&self) -> bool {
        matches!(self.marker, Found::Absent) || matches!(self.copy, Found::Absent)
    }

    /// Writes copies that do not say that the directory is ready once more. The store is open by now.
    fn mend(&self, dir: &Path, cluster: ClusterId, node: NodeId) -> Result<(), RunError> {
        let any_ready = self.whole().any(|marker| marker.ready);
        for (name, found) in [(COPY, &self.copy), (MARKER, &self.marker)] {
            let unfinished = match found {
                Found::Marker(marker) if marker.ready => continue,
                Found::Marker(_) => true,
                // A directory from before there were copies.
                Found::Absent => false,
                Found::Unreadable(reason) => {
                    tracing::warn!(dir = %dir.display(), copy = name, reason, "written again");
                    false
                }
            };
            match write(dir, name, Marker::new(cluster, node, true)) {
                // The other is good, and a full disk must not keep anybody from reading. But what
                // says that setting up was not finished must not be the last that can be read.
                Err(error) if any_ready && !unfinished => {
                    tracing::warn!(%error, "there is only one copy of the marker");
                }
                written => written?,
            }
        }
        Ok(())
    }
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

/// Replaces one copy of the marker; on disk, with its directory entry, when this returns.
fn write(dir: &Path, name: &str, marker: Marker) -> Result<(), RunError> {
    let marker = Marker { check: Some(marker.sum()), ..marker };
    let text = toml::to_string(&marker).expect("five plain fields always encode");
    let path = dir.join(name);
    let draft = dir.join(format!("{name}.new"));
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
        for copy in [MARKER, COPY] {
            write(dir.path(), copy, Marker::new(CLUSTER, NodeId(8), true)).unwrap();
        }
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
        for copy in [MARKER, COPY] {
            fs::remove_file(dir.path().join(copy)).unwrap();
        }
        let refused = open(dir.path(), CLUSTER, NODE, None).unwrap_err();
        assert!(matches!(refused, RunError::MarkerGone { .. }), "{refused}");
    }

    #[test]
    fn an_interrupted_setup_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let begin = || write(dir.path(), MARKER, Marker::new(CLUSTER, NODE, false)).unwrap();
        begin();
        drop(open(dir.path(), CLUSTER, NODE, None).unwrap());
        // Between the two copies.
        begin();
        drop(open(dir.path(), CLUSTER, NODE, None).unwrap());
        assert!(is_ready(dir.path()));
        // Before them.
        begin();
        fs::remove_file(dir.path().join(COPY)).unwrap();
        drop(open(dir.path(), CLUSTER, NODE, None).unwrap());
        assert!(is_ready(dir.path()));
        // Cut off in the middle of making the store.
        begin();
        fs::remove_file(dir.path().join(COPY)).unwrap();
        fs::remove_file(dir.path().join(STORE).join("CURRENT")).unwrap();
        fs::write(dir.path().join(STORE).join("MANIFEST-000001"), b"half a").unwrap();
        let store = open(dir.path(), CLUSTER, NODE, None).unwrap();
        assert!(is_ready(dir.path()) && !store.refilling());
    }

    /// Whether both copies say so.
    fn is_ready(dir: &Path) -> bool {
        [MARKER, COPY].into_iter().all(|copy| {
            let found = read(&dir.join(copy)).unwrap();
            matches!(found, Found::Marker(marker) if marker.ready)
        })
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
        let (path, copy) = (dir.path().join(MARKER), dir.path().join(COPY));
        let good = fs::read(&path).unwrap();
        for (at, bad) in damage(&good).into_iter().enumerate() {
            fs::write(&path, &bad).unwrap();
            fs::write(&copy, &bad).unwrap();
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
        for (one, other) in [(&path, &copy), (&copy, &path)] {
            fs::write(one, b"noise").unwrap();
            for found in [b"noise".to_vec(), good.clone()] {
                fs::write(other, &found).unwrap();
                let refused = open(dir.path(), CLUSTER, NodeId(8), None).unwrap_err();
                assert!(matches!(refused, RunError::ForeignData { .. }), "{refused}");
                assert_eq!(fs::read(one).unwrap(), b"noise", "nothing was changed");
            }
        }
    }

    /// How one copy of the marker is.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Health {
        Good,
        Bad,
        Gone,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Index {
        Good,
        Damaged,
        Gone,
    }

    fn harm(dir: &Path, copies: [Health; 2], index: Index) {
        for (name, copy) in [MARKER, COPY].into_iter().zip(copies) {
            match copy {
                Health::Good => {}
                Health::Bad => fs::write(dir.join(name), b"noise").unwrap(),
                Health::Gone => fs::remove_file(dir.join(name)).unwrap(),
            }
        }
        match index {
            Index::Good => {}
            Index::Damaged => fs::remove_file(dir.join(STORE).join("CURRENT")).unwrap(),
            Index::Gone => fs::remove_dir_all(dir.join(STORE)).unwrap(),
        }
    }

    #[test]
    fn whatever_fails_of_a_directory_it_is_mended_or_left_alone() {
        let all = [Health::Good, Health::Bad, Health::Gone];
        for (one, other) in all.into_iter().flat_map(|one| all.map(|other| (one, other))) {
            for index in [Index::Good, Index::Damaged, Index::Gone] {
                let what = format!("{one:?}, {other:?}, {index:?}");
                let dir = tempfile::tempdir().unwrap();
                drop(open(dir.path(), CLUSTER, NODE, None).unwrap());
                harm(dir.path(), [one, other], index);
                let opened = open(dir.path(), CLUSTER, NODE, None);
                let any = |copy| one == copy || other == copy;
                match (opened, index) {
                    (Ok(store), Index::Gone) => {
                        assert!(!any(Health::Good) && !any(Health::Bad), "{what}");
                        assert!(is_ready(dir.path()) && !store.refilling(), "{what}: begun anew");
                    }
                    (Ok(store), _) => {
                        assert!(any(Health::Good) || any(Health::Bad), "{what}");
                        let one_of_one = any(Health::Bad) && any(Health::Gone);
                        assert!(index == Index::Good || !one_of_one, "{what}: whose is it?");
                        assert_eq!(store.refilling(), index == Index::Damaged, "{what}");
                        assert!(is_ready(dir.path()), "{what}");
                        drop(store);
                        let store = open(dir.path(), CLUSTER, NODE, None).unwrap();
                        assert_eq!(store.refilling(), index == Index::Damaged, "{what}: later");
                    }
                    (Err(RunError::ChunksGone { .. }), Index::Gone) => {
                        assert!(any(Health::Good), "{what}");
                    }
                    (Err(RunError::MarkerUnreadable { .. }), Index::Gone) => {
                        assert!(!any(Health::Good) && any(Health::Bad), "{what}");
                    }
                    // Too little says whose it is.
                    (Err(RunError::MarkerUnreadable { .. }), Index::Damaged) => {
                        assert!(any(Health::Gone) && any(Health::Bad), "{what}");
                    }
                    (Err(RunError::MarkerGone { .. }), Index::Good | Index::Damaged) => {
                        assert!(!any(Health::Good) && !any(Health::Bad), "{what}");
                    }
                    (Err(error), _) => panic!("{what}: {error}"),
                }
            }
        }
    }

    #[test]
    fn a_store_that_says_it_is_anothers_is_never_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), CLUSTER, NODE, None).unwrap());
        check_remains(dir.path(), CLUSTER, NODE).unwrap();
        for (cluster, node) in [(ClusterId([2; 16]), NODE), (CLUSTER, NodeId(8))] {
            let refused = check_remains(dir.path(), cluster, node).unwrap_err();
            assert!(matches!(refused, RunError::ForeignData { .. }), "{refused}");
        }
        // Of nothing that can be read nothing can be said.
        fs::remove_file(dir.path().join(STORE).join("CURRENT")).unwrap();
        check_remains(dir.path(), CLUSTER, NodeId(8)).unwrap();
        // But one copy of the marker is enough.
        fs::write(dir.path().join(MARKER), b"noise").unwrap();
        let refused = open(dir.path(), CLUSTER, NodeId(8), None).unwrap_err();
        assert!(matches!(refused, RunError::ForeignData { .. }), "{refused}");
        assert!(!dir.path().join("chunks.damaged-1").exists());
    }

    #[test]
    fn a_directory_from_before_there_were_copies_gets_one() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), CLUSTER, NODE, None).unwrap());
        fs::remove_file(dir.path().join(COPY)).unwrap();
        let before = fs::read(dir.path().join(MARKER)).unwrap();
        drop(open(dir.path(), CLUSTER, NODE, None).unwrap());
        assert!(is_ready(dir.path()));
        assert_eq!(fs::read(dir.path().join(MARKER)).unwrap(), before);
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
        write(dir.path(), MARKER, newer).unwrap();
        let refused = open(dir.path(), CLUSTER, NODE, None).unwrap_err();
        assert!(matches!(refused, RunError::Format { .. }), "{refused}");
        let first = format!("format = 1\ncluster = \"{CLUSTER}\"\nnode = 7\nready = true\n");
        fs::write(dir.path().join(MARKER), first).unwrap();
        let refused = open(dir.path(), CLUSTER, NODE, None).unwrap_err();
        assert!(matches!(refused, RunError::Format { .. }), "{refused}");
    }
}
