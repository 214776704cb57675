//! The files a node needs: its configuration (TOML) and its identity.
//!
//! `atoll dev` and `atoll init` write them with this; the roles read them with their own, strict,
//! `Config` types. A test reads each kind back.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use atoll_net::{ClusterCa, Role};
use serde::Serialize;

use crate::report::Failure;

/// A master's configuration file.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct MasterFile {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) cluster: String,
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) data: PathBuf,
    pub(crate) identity: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ready_file: Option<PathBuf>,
    pub(crate) bootstrap: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) zone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) url_template: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bootstrap_token_hash: Option<String>,
    pub(crate) peers: Vec<PeerLine>,
}

/// Another master.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PeerLine {
    pub(crate) id: u64,
    pub(crate) addr: SocketAddr,
}

/// A chunkserver's configuration file.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ChunkserverFile {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) cluster: String,
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) data: PathBuf,
    pub(crate) identity: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ready_file: Option<PathBuf>,
    pub(crate) masters: Vec<SocketAddr>,
    pub(crate) zone: String,
    pub(crate) region: String,
}

/// An edge's configuration file.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct EdgeFile {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) data: PathBuf,
    pub(crate) identity: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ready_file: Option<PathBuf>,
    pub(crate) masters: Vec<SocketAddr>,
    pub(crate) zone: String,
    pub(crate) region: String,
    pub(crate) roles: Vec<&'static str>,
    pub(crate) http: SocketAddr,
    pub(crate) https: SocketAddr,
    pub(crate) public: Vec<IpAddr>,
    pub(crate) dns_zone: String,
    pub(crate) tls: TlsLines,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dns: Option<DnsLines>,
}

/// Where an edge's certificate is, and the authority for names it does not cover.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct TlsLines {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) authority: Option<PathBuf>,
}

/// Where an edge answers DNS, and for which zone.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DnsLines {
    pub(crate) listen: SocketAddr,
    pub(crate) zone: String,
    /// All name servers, in the same order in every file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ns_addrs: Vec<IpAddr>,
}

/// Writes a configuration file; it appears whole or not at all.
pub(crate) fn write_config<T: Serialize>(path: &Path, file: &T) -> Result<(), Failure> {
    let text = toml::to_string(file)
        .map_err(|error| Failure::failed(&format!("write {}", path.display()), error))?;
    write_whole(path, &text)
}

/// Writes a text file; a reader sees the old text or the new one, never a part.
pub(crate) fn write_whole(path: &Path, text: &str) -> Result<(), Failure> {
    let part = path.with_extension(format!("part{}", std::process::id()));
    let write = || {
        std::fs::write(&part, text)?;
        std::fs::rename(&part, path)
    };
    write().map_err(Failure::file("write", path))
}

/// Gives a node its certificate and key in `dir`, unless it has them already.
pub(crate) fn ensure_identity(
    ca: &ClusterCa,
    role: Role,
    name: &str,
    dir: &Path,
) -> Result<(), Failure> {
    if dir.join("node.pem").exists() {
        return Ok(());
    }
    ca.issue(role, name)?.save(dir)?;
    Ok(())
}

/// The authority kept in `dir`, made if there is none.
pub(crate) fn ensure_ca(dir: &Path, cluster: atoll_proto::ClusterId) -> Result<ClusterCa, Failure> {
    if dir.join("ca.pem").exists() {
        return Ok(ClusterCa::load(dir)?);
    }
    let ca = ClusterCa::create(cluster)?;
    ca.save(dir)?;
    Ok(ca)
}

/// A new cluster's name.
pub(crate) fn new_cluster() -> atoll_proto::ClusterId {
    let mut id = [0; 16];
    rand::Rng::fill(&mut rand::rng(), &mut id[..]);
    atoll_proto::ClusterId(id)
}

/// What all nodes of these kinds have in common, for tests of their files.
#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn addr(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    #[test]
    fn each_role_reads_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let cluster = new_cluster();
        let master = MasterFile {
            id: 1,
            name: "master-1".into(),
            cluster: cluster.to_string(),
            listen: addr(1),
            admin: addr(2),
            data: path("data"),
            identity: path("identity"),
            ready_file: Some(path("ready.json")),
            bootstrap: true,
            zone: Some("atoll.test".into()),
            url_template: Some("https://{site}.localhost:1/".into()),
            bootstrap_token_hash: Some("00".repeat(32)),
            peers: vec![PeerLine { id: 1, addr: addr(1) }],
        };
        write_config(&path("master.toml"), &master).unwrap();
        atoll_master::Config::load(&path("master.toml")).unwrap();

        let chunkserver = ChunkserverFile {
            id: 1,
            name: "chunkserver-1".into(),
            cluster: cluster.to_string(),
            listen: addr(1),
            admin: addr(2),
            data: path("data"),
            identity: path("identity"),
            ready_file: None,
            masters: vec![addr(3)],
            zone: "z1".into(),
            region: "eu".into(),
        };
        write_config(&path("chunkserver.toml"), &chunkserver).unwrap();
        atoll_chunkserver::Config::load(&path("chunkserver.toml")).unwrap();

        let edge = EdgeFile {
            id: 101,
            name: "edge-1".into(),
            listen: addr(1),
            admin: addr(2),
            data: path("data"),
            identity: path("identity"),
            ready_file: None,
            masters: vec![addr(3)],
            zone: "z1".into(),
            region: "eu".into(),
            roles: vec!["edge", "dns"],
            http: addr(4),
            https: addr(5),
            public: vec![[127, 0, 0, 1].into()],
            dns_zone: "atoll.test".into(),
            tls: TlsLines {
                cert: path("cert.pem"),
                key: path("key.pem"),
                authority: Some(path("ca")),
            },
            dns: Some(DnsLines {
                listen: addr(6),
                zone: "atoll.test".into(),
                ns_addrs: vec![[192, 0, 2, 1].into()],
            }),
        };
        write_config(&path("edge.toml"), &edge).unwrap();
        atoll_edge::Config::load(&path("edge.toml")).unwrap();
    }

    #[test]
    fn an_authority_and_an_identity_are_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let ca = ensure_ca(&dir.path().join("ca"), new_cluster()).unwrap();
        let again = ensure_ca(&dir.path().join("ca"), new_cluster()).unwrap();
        assert_eq!(ca.cluster(), again.cluster());
        let node = dir.path().join("node");
        ensure_identity(&ca, Role::Edge, "edge-1", &node).unwrap();
        let before = std::fs::read(node.join("node.pem")).unwrap();
        ensure_identity(&ca, Role::Edge, "edge-1", &node).unwrap();
        assert_eq!(std::fs::read(node.join("node.pem")).unwrap(), before);
    }
}
