//! The client configuration file: where the masters are and who we are.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ClientError;

/// What a client needs to reach a cluster. Stored as TOML.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// QUIC addresses of the masters, any order.
    pub masters: Vec<SocketAddr>,
    /// Directory with `ca.pem`, `node.pem` and `node.key`; relative to the file's directory.
    pub identity: PathBuf,
    /// Secret token; what it allows is known to the masters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Prefer replicas of this zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone_hint: Option<String>,
    /// Where it is kept which masters there are by now; beside the file it was read from.
    #[serde(skip)]
    pub remembers: Option<PathBuf>,
}

impl ClientConfig {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// `Config` when it cannot be read or has unknown or wrong fields.
    pub fn load(path: &Path) -> Result<Self, ClientError> {
        let bad = |reason: String| ClientError::Config { path: path.to_owned(), reason };
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        let mut config: Self = toml::from_str(&text).map_err(|error| bad(error.to_string()))?;
        if config.masters.is_empty() {
            return Err(bad("`masters` is empty: name at least one master".to_owned()));
        }
        if config.identity.is_relative() {
            let base = path.parent().unwrap_or(Path::new("."));
            config.identity = base.join(&config.identity);
        }
        config.remembers = Some(path.with_extension("masters.json"));
        Ok(config)
    }

    /// Writes a configuration file that only its owner may read, since it holds the token.
    ///
    /// # Errors
    /// `Io` when it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), ClientError> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let io = |source| ClientError::Io { path: path.to_owned(), source };
        let text = toml::to_string(self).map_err(|error| ClientError::Config {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(path).map_err(io)?;
        file.write_all(text.as_bytes()).map_err(io)?;
        file.sync_all().map_err(io)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_resolves_relative_paths() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client.toml");
        let config = ClientConfig {
            masters: vec!["127.0.0.1:7000".parse().unwrap()],
            identity: PathBuf::from("id"),
            token: Some("t".to_owned()),
            zone_hint: None,
            remembers: None,
        };
        config.save(&path).unwrap();
        let loaded = ClientConfig::load(&path).unwrap();
        assert_eq!(loaded.identity, dir.path().join("id"));
        assert_eq!(loaded.token, config.token);
        assert_eq!(loaded.remembers, Some(dir.path().join("client.masters.json")));
    }

    #[test]
    fn unknown_fields_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client.toml");
        std::fs::write(&path, "masters=['127.0.0.1:1']\nidentity='x'\nbogus=1\n").unwrap();
        let error = ClientConfig::load(&path).unwrap_err().to_string();
        assert!(error.contains("bogus"), "{error}");
    }
}
