//! What a data directory says about itself, so that a master never runs on foreign data, and
//! never votes twice because its disk was lost.

use std::fs;
use std::path::Path;

use atoll_proto::ClusterId;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::raft::state::{sync_directory, write_durably};
use crate::store::{FORMAT_VERSION, FORMAT_VERSION_MIN};

const FILE: &str = "master.json";

/// The content of the file `master.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DataIdentity {
    cluster: String,
    id: u64,
    format: u32,
}

/// A data directory that must not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot use the data directory {directory}: {reason}")]
pub struct DataError {
    directory: String,
    reason: String,
}

impl DataError {
    pub(crate) fn new(directory: &Path, reason: impl ToString) -> DataError {
        DataError { directory: directory.display().to_string(), reason: reason.to_string() }
    }
}

/// Makes the directory if need be and checks whose it is. Returns whether it was used before.
pub(crate) fn check(config: &Config) -> Result<bool, DataError> {
    let directory = &config.data;
    let wrong = |reason: String| DataError::new(directory, reason);
    if !directory.exists() {
        fs::create_dir_all(directory).map_err(|error| wrong(error.to_string()))?;
        if let Some(parent) = directory.parent().filter(|parent| parent.is_dir()) {
            sync_directory(parent).map_err(|error| wrong(error.to_string()))?;
        }
    }
    let text = match fs::read_to_string(directory.join(FILE)) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(wrong(format!("{FILE}: {error}"))),
    };
    let found: DataIdentity =
        serde_json::from_str(&text).map_err(|error| wrong(format!("{FILE}: {error}")))?;
    if !(FORMAT_VERSION_MIN..=FORMAT_VERSION).contains(&found.format) {
        return Err(wrong(format!(
            "it has format {}, this program reads {FORMAT_VERSION_MIN} to {FORMAT_VERSION}: use \
             the version that wrote it",
            found.format
        )));
    }
    if found.cluster.parse::<ClusterId>().ok() != Some(config.cluster) {
        return Err(wrong(format!(
            "it belongs to cluster {}, not to {}: give this master a directory of its own",
            found.cluster, config.cluster
        )));
    }
    if found.id != config.id {
        return Err(wrong(format!(
            "it belongs to master {}, not to master {}: give this master a directory of its own",
            found.id, config.id
        )));
    }
    Ok(true)
}

/// Refuses a directory that was used before but whose log is empty: a master that forgot its vote
/// could vote twice, and two leaders could be elected.
pub(crate) fn check_log(
    config: &Config,
    used_before: bool,
    log_is_empty: bool,
) -> Result<(), DataError> {
    if used_before && log_is_empty {
        return Err(DataError::new(
            &config.data,
            format!(
                "it was in use by master {} but its log is empty. {}",
                config.id,
                way_back(config)
            ),
        ));
    }
    Ok(())
}

/// What helps a master whose log is damaged or gone.
///
/// One among others has forgotten votes it gave and entries it acknowledged: it could elect a second
/// leader in the same term, or one that lacks what was committed. So it must not come back under its
/// id, be it empty and filled by the others or restored from a backup.
pub(crate) fn way_back(config: &Config) -> &'static str {
    if config.peers.iter().any(|peer| peer.id != config.id) {
        "It must not take part again under this id, neither emptied nor restored from a backup: it has \
         forgotten what it promised to the others, and changes that were acknowledged could be undone. \
         Leave it off, which the others bear as long as most of them run, and let a new master with \
         a new id and an empty directory take its place. Restore all from a backup only when most are \
         lost"
    } else {
        "Move the directory away, and restore this master from a backup with `atoll restore`"
    }
}

/// Writes down whose the directory is, once its log is no longer empty.
pub(crate) fn claim(config: &Config) -> Result<(), DataError> {
    claim_for(&config.data, config.cluster, config.id)
}

/// The same for a directory that no configuration names yet.
pub(crate) fn claim_for(data: &Path, cluster: ClusterId, id: u64) -> Result<(), DataError> {
    let identity = DataIdentity { cluster: cluster.to_string(), id, format: FORMAT_VERSION };
    let wrong = |reason: String| DataError::new(data, reason);
    let text = serde_json::to_vec_pretty(&identity).map_err(|error| wrong(error.to_string()))?;
    write_durably(&data.join(FILE), &text).map_err(|error| wrong(error.to_string()))
}
