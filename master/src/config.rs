//! The master's command line and configuration file.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use atoll_proto::{ChunkId, ClusterId, limits};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `atoll master`: holds the metadata of a cluster.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// What a master needs to know. Relative paths are relative to the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its name, equal to that in its certificate.
    pub name: String,
    /// Its number among the masters; never used again for another one.
    pub id: u64,
    /// Where it listens (QUIC).
    pub listen: SocketAddr,
    /// Where the other masters reach it, when that is not where it listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise: Option<SocketAddr>,
    /// Where `/livez`, `/readyz` and `/metrics` are served (HTTP).
    pub admin: SocketAddr,
    /// Where its data is.
    pub data: PathBuf,
    /// Directory with `ca.pem`, `node.pem` and `node.key`.
    pub identity: PathBuf,
    /// Which cluster it belongs to.
    #[serde(serialize_with = "as_text", deserialize_with = "from_text")]
    pub cluster: ClusterId,
    /// The DNS zone under which sites have names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// What a site's URL looks like from outside, with `{site}` in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_template: Option<String>,
    /// Forms the cluster when there is none yet. A master that joins a running cluster has false.
    #[serde(default)]
    pub bootstrap: bool,
    /// All masters of the cluster, this one may be among them; empty for a single one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Peer>,
    /// BLAKE3 (hex) of the secret of a token with all verbs, made with the cluster.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "as_optional_text",
        deserialize_with = "from_optional_text"
    )]
    pub bootstrap_token_hash: Option<ChunkId>,
    /// Chunk size for new files in bytes; decided when the cluster is made.
    #[serde(default = "default_chunk_bytes")]
    pub chunk_bytes: u32,
    /// Written, once the master serves, with the addresses it really listens on (JSON).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_file: Option<PathBuf>,
    /// How long the set of chunkservers must be quiet before placement, in milliseconds.
    #[serde(default = "default_placement_settle_ms")]
    pub placement_settle_ms: u64,
    /// How long nothing must have referred to a chunk before it is collected, in milliseconds.
    #[serde(default = "default_collect_after_ms")]
    pub collect_after_ms: u64,
    /// How often such chunks are looked for, in milliseconds.
    #[serde(default = "default_collect_every_ms")]
    pub collect_every_ms: u64,
    /// How often all references are counted again, in days; 0 for never.
    #[serde(default = "default_audit_days")]
    pub audit_days: u64,
    /// How long a chunkserver may be silent before others take its place by themselves, in
    /// milliseconds.
    #[serde(default = "default_replace_after_ms")]
    pub replace_after_ms: u64,
}

/// A master as the others know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its number.
    pub id: u64,
    /// Where it is reached.
    pub addr: SocketAddr,
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// With the file and what is wrong in it.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let bad = |reason: String| ConfigError { path: path.to_owned(), reason };
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        let mut config: Config =
            toml::from_str(&text).map_err(|error| bad(error.to_string().trim().to_owned()))?;
        let base = path.parent().unwrap_or(Path::new(""));
        for file in [&mut config.data, &mut config.identity] {
            *file = base.join(&file);
        }
        config.ready_file = config.ready_file.map(|file| base.join(file));
        config.check().map_err(bad)?;
        Ok(config)
    }

    /// Checks what types cannot.
    ///
    /// # Errors
    /// With the field and the rule it breaks.
    pub fn check(&self) -> Result<(), String> {
        if self.id == 0 {
            return Err("`id` is 0: masters are numbered from 1".to_owned());
        }
        if !(limits::CHUNK_BYTES_MIN..=limits::CHUNK_BYTES_MAX).contains(&self.chunk_bytes) {
            return Err(format!(
                "`chunk_bytes` is {}: it must be between {} and {}",
                self.chunk_bytes,
                limits::CHUNK_BYTES_MIN,
                limits::CHUNK_BYTES_MAX
            ));
        }
        if self.collect_every_ms == 0 {
            return Err("`collect_every_ms` is 0: looking never stops; say at least 1".to_owned());
        }
        let lost_ms = limits::HEARTBEAT_LOST.as_millis();
        if u128::from(self.replace_after_ms) < lost_ms {
            return Err(format!(
                "`replace_after_ms` is {}: a node counts as down after {lost_ms} ms only",
                self.replace_after_ms
            ));
        }
        let mut ids: Vec<u64> = self.peers.iter().map(|peer| peer.id).collect();
        ids.sort_unstable();
        if ids.windows(2).any(|pair| pair[0] == pair[1]) || ids.first() == Some(&0) {
            return Err("`peers` must have distinct ids from 1".to_owned());
        }
        let masters = self.masters(self.listen);
        if let Some(own) = masters.get(&self.id).filter(|own| own.ip().is_unspecified()) {
            return Err(format!(
                "nobody can reach {own}: set `advertise` to this machine's address, or correct this \
                 master's entry in `peers`"
            ));
        }
        if masters.len() > 1 {
            let others = self.peers.iter().filter(|peer| peer.id != self.id);
            if others.clone().any(|peer| peer.addr.port() == 0) {
                return Err("`peers` must have real port numbers".to_owned());
            }
        }
        Ok(())
    }

    /// All masters: the peers and this one.
    pub(crate) fn masters(&self, own: SocketAddr) -> BTreeMap<u64, SocketAddr> {
        let mut masters: BTreeMap<u64, SocketAddr> =
            self.peers.iter().map(|peer| (peer.id, peer.addr)).collect();
        masters.entry(self.id).or_insert(self.advertise.unwrap_or(own));
        masters
    }
}

/// A configuration file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot use the configuration {}: {reason}", path.display())]
pub struct ConfigError {
    path: PathBuf,
    reason: String,
}

fn default_chunk_bytes() -> u32 {
    limits::CHUNK_BYTES
}

fn default_placement_settle_ms() -> u64 {
    300
}

fn default_collect_after_ms() -> u64 {
    u64::try_from(limits::UNREFERENCED_LIFETIME.as_millis()).unwrap_or(u64::MAX)
}

fn default_collect_every_ms() -> u64 {
    60_000
}

fn default_audit_days() -> u64 {
    30
}

fn default_replace_after_ms() -> u64 {
    15 * 60 * 1000
}

fn as_text<T: ToString, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

fn from_text<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
    D: Deserializer<'de>,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

fn as_optional_text<T: ToString, S: Serializer>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    value.as_ref().map(ToString::to_string).serialize(serializer)
}

fn from_optional_text<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
    D: Deserializer<'de>,
{
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| text.parse()).transpose().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const FULL: &str = r#"
        name = "master-1"
        id = 1
        listen = "127.0.0.1:7000"
        advertise = "10.0.0.1:7000"
        admin = "127.0.0.1:7001"
        data = "data"
        identity = "/etc/atoll/identity"
        cluster = "00112233445566778899aabbccddeeff"
        zone = "atoll.test"
        url_template = "https://{site}.localhost:8443/"
        bootstrap = true
        bootstrap_token_hash = "0011223344556677889900112233445566778899001122334455667788990011"
        chunk_bytes = 1048576
        ready_file = "ready.json"
        placement_settle_ms = 100
        collect_after_ms = 1000
        collect_every_ms = 500
        audit_days = 7
        replace_after_ms = 60000
        [[peers]]
        id = 2
        addr = "10.0.0.2:7000"
    "#;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("master.toml");
        std::fs::write(&file, text).unwrap();
        let mut config = Config::load(&file)?;
        config.data = config.data.strip_prefix(dir.path()).unwrap().to_owned();
        Ok(config)
    }

    #[test]
    fn a_full_file_is_read_and_written_alike() {
        let config = load(FULL).unwrap();
        assert_eq!(config.data, Path::new("data"));
        assert_eq!(config.masters(config.listen).len(), 2);
        let again: Config = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn mistakes_are_named() {
        let unknown = load(&format!("typo = 1\n{FULL}")).unwrap_err().to_string();
        assert!(unknown.contains("typo"), "{unknown}");
        let zero = load(&FULL.replace("id = 1\n", "id = 0\n")).unwrap_err().to_string();
        assert!(zero.contains("`id` is 0"), "{zero}");
        let small = load(&FULL.replace("1048576", "17")).unwrap_err().to_string();
        assert!(small.contains("chunk_bytes"), "{small}");
        let soon = load(&FULL.replace("60000", "60")).unwrap_err().to_string();
        assert!(soon.contains("replace_after_ms"), "{soon}");
        let any = FULL.replace("127.0.0.1:7000", "0.0.0.0:7000");
        assert_eq!(load(&any).unwrap().listen.port(), 7000);
        let nowhere = load(&any.replace("advertise = \"10.0.0.1:7000\"\n", ""));
        let nowhere = nowhere.unwrap_err().to_string();
        assert!(nowhere.contains("advertise"), "{nowhere}");
        let hex = load(&FULL.replace("00112233445566778899aabbccddeeff", "xyz"));
        assert!(hex.unwrap_err().to_string().contains("hex"));
    }
}
