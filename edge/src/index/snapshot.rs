//! The table on disk, so that an edge that restarts asks for what it missed and not for everything.
//!
//! [`super::keeper`] writes it behind what is in force, if the disk lets it. Nothing hangs on that:
//! a restarted edge serves nothing before it has heard of the log. Blocking: call it off the
//! runtime.
//!
//! ```text
//! "ATOLLIDX"  8 bytes
//! version     1 byte     3
//! body        postcard   cluster id, then a PublishSnapshot
//! check       32 bytes   BLAKE3 of all that stands before
//! ```

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use atoll_proto::ClusterId;
use atoll_proto::publish::PublishSnapshot;

use super::table::Table;

const MAGIC: &[u8; 9] = b"ATOLLIDX\x03";
const CHECK_BYTES: usize = 32;
const FILE: &str = "index.snapshot";
const FILE_NEW: &str = "index.snapshot.new";

/// Reads the stored table of this cluster. `None` when there is none, or when it is damaged or of
/// another cluster; then the masters are asked for everything.
pub fn load(dir: &Path, cluster: ClusterId) -> Option<Table> {
    let path = dir.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the stored index cannot be read");
            return None;
        }
    };
    match decode(&bytes) {
        Ok((stored, snapshot)) if stored == cluster => Some(Table::of_snapshot(cluster, snapshot)),
        Ok((stored, _)) => {
            tracing::warn!(%stored, %cluster, "the stored index is of another cluster; not used");
            None
        }
        Err(reason) => {
            tracing::warn!(path = %path.display(), reason, "the stored index is damaged; not used");
            None
        }
    }
}

/// Stores the table so that a crash leaves either the old or the new one.
///
/// # Errors
/// When the disk refuses; the old file is still there then.
pub fn store(dir: &Path, table: &Table) -> io::Result<()> {
    let path = dir.join(FILE_NEW);
    let written = File::create(&path).and_then(|mut file| {
        file.write_all(&encode(table.cluster(), &table.to_snapshot()))?;
        file.sync_all()
    });
    if let Err(error) = written {
        // Half a file is of no use, and on a full disk it takes what little room there is.
        fs::remove_file(&path).unwrap_or_default();
        return Err(error);
    }
    fs::rename(&path, dir.join(FILE))?;
    File::open(dir)?.sync_all()
}

fn encode(cluster: ClusterId, snapshot: &PublishSnapshot) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&atoll_proto::encode(&(cluster, snapshot)));
    let check = blake3::hash(&bytes);
    bytes.extend_from_slice(check.as_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Result<(ClusterId, PublishSnapshot), &'static str> {
    let length = bytes.len().checked_sub(CHECK_BYTES).ok_or("it is too short")?;
    let (bytes, check) = bytes.split_at(length);
    if blake3::hash(bytes).as_bytes() != check {
        return Err("its checksum is wrong");
    }
    let body = bytes.strip_prefix(MAGIC).ok_or("it is of another version")?;
    atoll_proto::decode(body).map_err(|_| "its body does not decode")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::Seq;
    use atoll_proto::publish::Site;
    use proptest::prelude::*;

    use super::*;

    fn table() -> Table {
        let site = Site {
            name: "a".parse().unwrap(),
            domains: vec!["a.example".into()],
            created_ms: 1,
            settings: Default::default(),
        };
        let snapshot =
            PublishSnapshot { seq: Seq(9), sites: vec![site], aliases: vec![], deploys: vec![] };
        Table::of_snapshot(ClusterId([1; 16]), snapshot)
    }

    #[test]
    fn it_survives_a_restart_and_refuses_damage_and_strangers() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path(), ClusterId([1; 16])), None);
        store(dir.path(), &table()).unwrap();
        store(dir.path(), &table()).unwrap();
        assert_eq!(load(dir.path(), ClusterId([1; 16])), Some(table()));
        assert_eq!(load(dir.path(), ClusterId([2; 16])), None);
        let path = dir.path().join(FILE);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(load(dir.path(), ClusterId([1; 16])), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode(&bytes).is_err());
        }
    }
}
