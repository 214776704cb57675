//! A chunkserver's command line and configuration file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use atoll_proto::{ClusterId, NodeId, limits};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::RunError;
use crate::reconcile::Settings;

/// Share of the data of a server that does not say otherwise.
const WEIGHT: u32 = 100;
/// Days within which every chunk is verified, if nothing else is said.
const SCRUB_DAYS: f64 = 7.0;
/// Seconds between two looks for what nobody needs, if nothing else is said.
const SWEEP_EVERY_S: u64 = 3600;
/// First pause between rounds of a repair, if nothing else is said, in milliseconds.
const REPAIR_RETRY_MS: u64 = 1000;
/// Days that a scrub may take at most.
const SCRUB_DAYS_MAX: f64 = 3650.0;

/// Runs a chunkserver.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// What a chunkserver must be told. Relative paths are seen from the file's folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The node's number; never used again after the node is removed.
    pub id: u64,
    /// The node's name, as in its certificate.
    pub name: String,
    /// The cluster it belongs to, in hex.
    #[serde(serialize_with = "write_cluster", deserialize_with = "read_cluster")]
    pub cluster: ClusterId,
    /// Where it listens (QUIC). Port 0 takes any.
    pub listen: SocketAddr,
    /// Where others reach it, if that is not where it listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise: Option<SocketAddr>,
    /// Where `/livez`, `/readyz` and `/metrics` are (HTTP).
    pub admin: SocketAddr,
    /// The directory of its chunks.
    pub data: PathBuf,
    /// The directory with `ca.pem`, `node.pem` and `node.key`.
    pub identity: PathBuf,
    /// The masters.
    pub masters: Vec<SocketAddr>,
    /// Failure domain: replicas go to different zones.
    pub zone: String,
    /// Where it is.
    #[serde(default)]
    pub region: String,
    /// Share of the data relative to other chunkservers.
    #[serde(default = "weight")]
    pub weight: u32,
    /// Bytes of disk that puts leave free; by default 256 MiB or 2 % of the disk, whichever is
    /// less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserve_bytes: Option<u64>,
    /// A file to write once it is ready: its addresses as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_file: Option<PathBuf>,
    /// Most bytes per second that repair fetches from others; without it there is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair_bytes_per_s: Option<u64>,
    /// Pause after the first time that nobody has a chunk that is lacking here, in milliseconds;
    /// it doubles with each further time.
    #[serde(default = "repair_retry_ms")]
    pub repair_retry_ms: u64,
    /// Every chunk is read and verified within this many days.
    #[serde(default = "scrub_days")]
    pub scrub_days: f64,
    /// How often chunks that nobody needs are looked for, in seconds.
    #[serde(default = "sweep_every_s")]
    pub sweep_every_s: u64,
    /// How long a chunk that was put and never referred to is kept, in milliseconds. Longer than
    /// a receipt is valid, except in tests.
    #[serde(default = "pending_lifetime_ms")]
    pub pending_lifetime_ms: u64,
    /// How long the bytes of collected chunks stay in quarantine, in milliseconds.
    #[serde(default = "quarantine_lifetime_ms")]
    pub quarantine_lifetime_ms: u64,
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// When the file cannot be read, has unknown fields, or makes no sense.
    pub fn load(path: &Path) -> Result<Self, RunError> {
        let bad = |reason: String| RunError::Config { path: path.to_owned(), reason };
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        let mut config: Self = toml::from_str(&text).map_err(|error| bad(error.to_string()))?;
        config.resolve(path.parent().unwrap_or(Path::new("")));
        config.check().map_err(bad)?;
        Ok(config)
    }

    /// The node's id.
    pub fn node(&self) -> NodeId {
        NodeId(self.id)
    }

    /// How the upkeep of its chunks is done.
    pub(crate) fn upkeep(&self) -> Settings {
        Settings {
            repair_bytes_per_s: self.repair_bytes_per_s,
            repair_pause: Duration::from_millis(self.repair_retry_ms),
            scrub_period: Duration::from_secs_f64(self.scrub_days * 86_400.0),
            sweep_every: Duration::from_secs(self.sweep_every_s),
            pending_lifetime_ms: self.pending_lifetime_ms,
            quarantine_lifetime_ms: self.quarantine_lifetime_ms,
        }
    }

    fn resolve(&mut self, folder: &Path) {
        let paths = [&mut self.data, &mut self.identity];
        for path in paths.into_iter().chain(&mut self.ready_file) {
            *path = folder.join(&*path);
        }
    }

    /// Says what makes no sense.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.id == 0 {
            return Err("id must be 1 or more".to_owned());
        }
        if self.masters.is_empty() {
            return Err("masters must name at least one address".to_owned());
        }
        if self.zone.is_empty() {
            return Err("zone must not be empty: replicas go to different zones".to_owned());
        }
        if self.weight == 0 {
            return Err("weight must be 1 or more".to_owned());
        }
        if self.repair_bytes_per_s == Some(0) {
            return Err("repair_bytes_per_s must be 1 or more, or absent for no limit".to_owned());
        }
        if self.repair_retry_ms == 0 || self.sweep_every_s == 0 {
            return Err("repair_retry_ms and sweep_every_s must be 1 or more".to_owned());
        }
        if !(self.scrub_days > 0.0 && self.scrub_days <= SCRUB_DAYS_MAX) {
            return Err(format!("scrub_days must be more than 0 and at most {SCRUB_DAYS_MAX}"));
        }
        let reached = self.advertise.unwrap_or(self.listen);
        if reached.ip().is_unspecified() {
            return Err(format!(
                "others cannot reach {reached}: set advertise to this machine's address"
            ));
        }
        Ok(())
    }
}

fn weight() -> u32 {
    WEIGHT
}

fn repair_retry_ms() -> u64 {
    REPAIR_RETRY_MS
}

fn scrub_days() -> f64 {
    SCRUB_DAYS
}

fn sweep_every_s() -> u64 {
    SWEEP_EVERY_S
}

fn pending_lifetime_ms() -> u64 {
    millis(limits::PENDING_LIFETIME)
}

fn quarantine_lifetime_ms() -> u64 {
    millis(limits::QUARANTINE_LIFETIME)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn write_cluster<S: Serializer>(cluster: &ClusterId, out: S) -> Result<S::Ok, S::Error> {
    out.collect_str(cluster)
}

fn read_cluster<'de, D: Deserializer<'de>>(input: D) -> Result<ClusterId, D::Error> {
    String::deserialize(input)?.parse().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const TEXT: &str = r#"
        id = 2
        name = "chunkserver-2"
        cluster = "000102030405060708090a0b0c0d0e0f"
        listen = "127.0.0.1:0"
        admin = "127.0.0.1:0"
        data = "data"
        identity = "/etc/atoll/identity"
        masters = ["127.0.0.1:7000"]
        zone = "z2"
        region = "eu"
    "#;

    fn load(text: &str) -> Result<Config, RunError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("chunkserver.toml");
        std::fs::write(&file, text).unwrap();
        let config = Config::load(&file)?;
        assert_eq!(config.data, dir.path().join("data"));
        Ok(config)
    }

    #[test]
    fn a_file_is_read_with_defaults_and_written_back() {
        let config = load(TEXT).unwrap();
        assert_eq!(config.weight, WEIGHT);
        assert_eq!(config.upkeep().scrub_period, Duration::from_secs(7 * 86_400));
        assert_eq!(config.upkeep().pending_lifetime_ms, 8 * 3_600_000);
        assert_eq!(config.identity, Path::new("/etc/atoll/identity"));
        assert_eq!(config.cluster.0[15], 15);
        let again: Config = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (change, word) in [
            (TEXT.replace("id = 2", "id = 0"), "id"),
            (TEXT.replace("[\"127.0.0.1:7000\"]", "[]"), "masters"),
            (TEXT.replace("listen = \"127.0.0.1:0\"", "listen = \"0.0.0.0:1\""), "advertise"),
            (format!("{TEXT}\nspeed = 3"), "speed"),
            (format!("{TEXT}\nscrub_days = nan"), "scrub_days"),
            (format!("{TEXT}\nscrub_days = 0.0"), "scrub_days"),
            (format!("{TEXT}\nrepair_bytes_per_s = 0"), "repair_bytes_per_s"),
            (format!("{TEXT}\nsweep_every_s = 0"), "sweep_every_s"),
            (TEXT.replace("0e0f\"", "\""), "hex digits"),
        ] {
            let error = load(&change).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
