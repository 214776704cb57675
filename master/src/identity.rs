//! What a data directory says about itself, so that a master never runs on foreign data, and
//! never votes twice because its disk was lost.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use atoll_proto::ClusterId;
use atoll_proto::masters::Incarnation;
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
    /// Whether its log is not empty any more. Versions before incarnations wrote the file only then.
    #[serde(default = "yes")]
    used: bool,
    /// Tells this directory from any other, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    incarnation: Option<String>,
    /// For a master that formed the cluster: all that did, with their incarnations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    founders: BTreeMap<u64, String>,
}

impl DataIdentity {
    fn new(cluster: ClusterId, id: u64) -> DataIdentity {
        DataIdentity {
            cluster: cluster.to_string(),
            id,
            format: FORMAT_VERSION,
            used: false,
            incarnation: Some(Incarnation(rand::random()).to_string()),
            founders: BTreeMap::new(),
        }
    }

    /// Whether the directory was in use before.
    pub(crate) fn used(&self) -> bool {
        self.used
    }

    /// Tells this directory from any other.
    pub(crate) fn incarnation(&self) -> Incarnation {
        let text = self.incarnation.as_deref().unwrap_or_default();
        text.parse().unwrap_or(Incarnation([0; 16]))
    }

    /// The masters this one formed the cluster with.
    pub(crate) fn founders(&self) -> BTreeMap<u64, Incarnation> {
        let founders = self.founders.iter();
        founders.filter_map(|(id, text)| Some((*id, text.parse().ok()?))).collect()
    }
}

fn yes() -> bool {
    true
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

/// Makes the directory if need be and checks whose it is. One that has no incarnation yet gets one.
pub(crate) fn check(config: &Config) -> Result<DataIdentity, DataError> {
    let directory = &config.data;
    let wrong = |reason: String| DataError::new(directory, reason);
    if !directory.exists() {
        fs::create_dir_all(directory).map_err(|error| wrong(error.to_string()))?;
        if let Some(parent) = directory.parent().filter(|parent| parent.is_dir()) {
            sync_directory(parent).map_err(|error| wrong(error.to_string()))?;
        }
    }
    let Some(mut found) = read(directory)? else {
        let identity = DataIdentity::new(config.cluster, config.id);
        write(directory, &identity)?;
        return Ok(identity);
    };
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
    if let Some(text) = &found.incarnation {
        text.parse::<Incarnation>().map_err(|reason| wrong(format!("{FILE}: {reason}")))?;
    } else {
        found.incarnation = DataIdentity::new(config.cluster, config.id).incarnation;
        write(directory, &found)?;
    }
    Ok(found)
}

/// What the file says; `None` when there is none.
fn read(directory: &Path) -> Result<Option<DataIdentity>, DataError> {
    let wrong = |reason: String| DataError::new(directory, format!("{FILE}: {reason}"));
    match fs::read_to_string(directory.join(FILE)) {
        Ok(text) => serde_json::from_str(&text).map(Some).map_err(|error| wrong(error.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(wrong(error.to_string())),
    }
}

fn write(directory: &Path, identity: &DataIdentity) -> Result<(), DataError> {
    let wrong = |reason: String| DataError::new(directory, reason);
    let text = serde_json::to_vec_pretty(identity).map_err(|error| wrong(error.to_string()))?;
    write_durably(&directory.join(FILE), &text).map_err(|error| wrong(error.to_string()))
}

/// Writes down with whom this master forms the cluster.
pub(crate) fn found(
    config: &Config,
    founders: &BTreeMap<u64, Incarnation>,
) -> Result<(), DataError> {
    let mut identity = check(config)?;
    identity.founders = founders.iter().map(|(id, text)| (*id, text.to_string())).collect();
    write(&config.data, &identity)
}

/// Refuses a directory that was used before but whose log is empty: a master that forgot its vote
/// could vote twice, and two leaders could be elected. `voters`: who votes by its state.
pub(crate) fn check_log(
    config: &Config,
    voters: &BTreeSet<u64>,
    used_before: bool,
    log_is_empty: bool,
) -> Result<(), DataError> {
    if used_before && log_is_empty {
        return Err(DataError::new(
            &config.data,
            format!(
                "it was in use by master {} but its log is empty. {}",
                config.id,
                way_back(config, voters)
            ),
        ));
    }
    Ok(())
}

/// What helps a master whose log is damaged or gone, and by whose state these vote. Its configuration may
/// not name those that came later.
///
/// One among others has forgotten votes it gave and entries it acknowledged: it could elect a second
/// leader in the same term, or one that lacks what was committed. So it must not come back under its
/// id, be it empty and filled by the others or restored from a backup.
pub(crate) fn way_back(config: &Config, voters: &BTreeSet<u64>) -> &'static str {
    let peers = config.peers.iter().map(|peer| &peer.id);
    if peers.chain(voters).any(|id| *id != config.id) {
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
    let identity = read(data)?.unwrap_or_else(|| DataIdentity::new(cluster, id));
    write(data, &DataIdentity { used: true, format: FORMAT_VERSION, ..identity })
}
