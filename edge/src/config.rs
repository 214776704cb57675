//! What the operator writes down about an edge.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::dns::DnsConfig;

/// Settings of `atoll edge`, stored as TOML.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the node; equals the name in its certificate.
    pub name: String,
    /// Number of the node, unique in the cluster for ever.
    pub id: u64,
    /// Where it is, for visitors.
    pub region: String,
    /// Failure domain; replicas of the same zone are read first.
    pub zone: String,
    /// What it does, in any mix.
    #[serde(default = "roles")]
    pub roles: Vec<EdgeRole>,
    /// Where it speaks to other nodes (QUIC); port 0 takes one from the system.
    pub listen: SocketAddr,
    /// Where other nodes reach it, when that is not `listen`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise: Option<SocketAddr>,
    /// `/livez`, `/readyz` and `/metrics` over plain HTTP.
    pub admin: SocketAddr,
    /// Its data: the stored index and the disk cache.
    pub data: PathBuf,
    /// Directory with `ca.pem`, `node.pem` and `node.key`.
    pub identity: PathBuf,
    /// The masters, any order.
    pub masters: Vec<SocketAddr>,
    /// Whether it follows the publish log through a shield of its region, where there is one that
    /// is well, so that the masters talk to shields instead of every edge.
    #[serde(default = "relay")]
    pub relay: bool,
    /// Written once the edge serves: the addresses it really has, as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_file: Option<PathBuf>,
    /// Plain HTTP, which redirects to HTTPS. Needed with `https`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<SocketAddr>,
    /// HTTPS: HTTP/1.1 and HTTP/2 on TCP, HTTP/3 on UDP. Needed for the role `edge`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub https: Option<SocketAddr>,
    /// Certificate for visitors. Needed with `https`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsFiles>,
    /// Public addresses, for DNS answers.
    #[serde(default)]
    pub public: Vec<IpAddr>,
    /// Share of visitors relative to other edges of the region.
    #[serde(default = "weight")]
    pub weight: u32,
    /// Memory for chunks, in bytes.
    #[serde(default = "ram_cache_bytes")]
    pub ram_cache_bytes: u64,
    /// Disk for chunks, in bytes.
    #[serde(default = "disk_cache_bytes")]
    pub disk_cache_bytes: u64,
    /// The zone under which sites have names, such as `atoll.test`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_zone: Option<String>,
    /// Other domains under which sites have names.
    #[serde(default = "hosts")]
    pub hosts: Vec<String>,
    /// Settings of the role `dns`; must stand last in the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsConfig>,
}

/// What an edge does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EdgeRole {
    /// Serves visitors.
    Edge,
    /// Fills other edges' misses.
    Shield,
    /// Answers DNS.
    Dns,
}

/// Files of the certificate for visitors. They may be replaced while the edge runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// PEM chain, the leaf first.
    pub cert: PathBuf,
    /// PEM private key.
    pub key: PathBuf,
    /// Directory with `ca.pem` and `ca.key` of an authority that makes a certificate for every
    /// name a visitor asks for: for clusters on one machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<PathBuf>,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("configuration {}: {reason}", path.display())]
pub struct ConfigError {
    path: PathBuf,
    reason: String,
}

fn roles() -> Vec<EdgeRole> {
    vec![EdgeRole::Edge]
}

fn weight() -> u32 {
    1
}

fn relay() -> bool {
    true
}

fn ram_cache_bytes() -> u64 {
    256 << 20
}

fn disk_cache_bytes() -> u64 {
    4 << 30
}

fn hosts() -> Vec<String> {
    vec!["localhost".to_owned()]
}

impl Config {
    /// Reads a configuration file. Relative paths in it count from its own directory.
    ///
    /// # Errors
    /// When it cannot be read, has unknown fields, or makes no sense.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let bad = |reason: String| ConfigError { path: path.to_owned(), reason };
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        let mut config: Config = toml::from_str(&text).map_err(|error| bad(error.to_string()))?;
        config.check().map_err(bad)?;
        config.resolve(path.parent().unwrap_or(Path::new("")));
        Ok(config)
    }

    /// Whether the node has this role.
    pub fn has(&self, role: EdgeRole) -> bool {
        self.roles.contains(&role)
    }

    /// The domains under which sites have names, lower case, each once.
    pub fn suffixes(&self) -> Vec<String> {
        let zones = self.dns_zone.iter().chain(self.dns.iter().map(|dns| &dns.zone));
        let mut suffixes: Vec<String> = Vec::new();
        for name in self.hosts.iter().chain(zones) {
            let name = name.trim_matches('.').to_ascii_lowercase();
            if !name.is_empty() && !suffixes.contains(&name) {
                suffixes.push(name);
            }
        }
        suffixes
    }

    fn check(&self) -> Result<(), String> {
        let needs = |wrong: bool, text: &str| if wrong { Err(text.to_owned()) } else { Ok(()) };
        needs(self.masters.is_empty(), "`masters` is empty: name at least one master")?;
        needs(self.roles.is_empty(), "`roles` is empty: name edge, shield or dns")?;
        needs(
            self.has(EdgeRole::Edge) && self.https.is_none(),
            "the role edge needs `https`, the address to serve visitors on",
        )?;
        needs(
            self.https.is_some() && (self.http.is_none() || self.tls.is_none()),
            "`https` needs `http` (it redirects) and `tls` (cert and key)",
        )?;
        needs(
            self.has(EdgeRole::Dns) && self.dns.is_none(),
            "the role dns needs a [dns] section with `listen` and `zone`",
        )?;
        needs(self.ram_cache_bytes < 16 << 20, "`ram_cache_bytes` must be at least 16777216")?;
        needs(self.disk_cache_bytes < 16 << 20, "`disk_cache_bytes` must be at least 16777216")
    }

    fn resolve(&mut self, base: &Path) {
        let paths = [Some(&mut self.data), Some(&mut self.identity), self.ready_file.as_mut()];
        let tls = self.tls.iter_mut().flat_map(|tls| {
            [Some(&mut tls.cert), Some(&mut tls.key), tls.authority.as_mut()].into_iter().flatten()
        });
        let databases = self.dns.iter_mut().flat_map(|dns| &mut dns.mmdb);
        for path in paths.into_iter().flatten().chain(tls).chain(databases) {
            *path = base.join(&*path);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const EDGE: &str = r#"
        name = "edge-1"
        id = 101
        region = "eu"
        zone = "z1"
        listen = "127.0.0.1:0"
        admin = "127.0.0.1:0"
        data = "data"
        identity = "/etc/atoll/identity"
        masters = ["127.0.0.1:7000"]
        http = "127.0.0.1:0"
        https = "127.0.0.1:0"
        tls = { cert = "web.pem", key = "web.key" }
        dns_zone = "Atoll.test."
    "#;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("edge.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path)
    }

    #[test]
    fn a_small_file_has_defaults_and_paths_of_its_directory() {
        let config = load(EDGE).unwrap();
        assert!(config.has(EdgeRole::Edge) && !config.has(EdgeRole::Shield));
        assert!(config.data.is_absolute() && config.data.ends_with("data"));
        assert_eq!(config.identity, Path::new("/etc/atoll/identity"));
        assert_eq!(config.suffixes(), ["localhost", "atoll.test"]);
        let again: Config = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_to_do() {
        for (text, word) in [
            (format!("{EDGE}\nbogus = 1"), "bogus"),
            (EDGE.replace("https = \"127.0.0.1:0\"", ""), "https"),
            (EDGE.replace("tls = ", "#"), "tls"),
            (format!("{EDGE}\nroles = [\"dns\"]"), "[dns]"),
            (format!("{EDGE}\nroles = []"), "roles"),
            (format!("{EDGE}\nram_cache_bytes = 5"), "ram_cache_bytes"),
            (EDGE.replace("\"127.0.0.1:7000\"", ""), "masters"),
        ] {
            let error = load(&text).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("edge.toml"), "{error}");
        }
    }

    #[test]
    fn a_shield_needs_no_listeners_and_dns_its_section() {
        let shield = EDGE
            .replace("http = \"127.0.0.1:0\"", "")
            .replace("https = \"127.0.0.1:0\"", "")
            .replace("tls = ", "#");
        assert!(load(&format!("{shield}\nroles = [\"shield\"]")).is_ok());
        let dns = "roles = [\"edge\", \"dns\"]\n[dns]\nlisten = \"127.0.0.1:0\"\nzone = \"a.test\"";
        assert_eq!(load(&format!("{EDGE}\n{dns}")).unwrap().suffixes().len(), 3);
    }
}
