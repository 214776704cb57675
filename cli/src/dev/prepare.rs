//! Everything the processes of a local cluster need before they start: authority, identities,
//! certificate, ports, configurations, the client's files.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use atoll_client::ClientConfig;
use atoll_net::{ClusterCa, Role};

use super::ZONE;
use super::layout::Layout;
use super::plan::{Kind, NodeName, Ports, RECORD_VERSION, Record, Shape, Wanted, assign};
use super::ports::FreePorts;
use super::ready::local;
use crate::commands::token::{hash_of, new_secret};
use crate::node_files::{
    ChunkserverFile, DnsLines, EdgeFile, MasterFile, PeerLine, TlsLines, ensure_ca,
    ensure_identity, new_cluster, write_config, write_whole,
};
use crate::report::Failure;

/// The name of users on this machine.
const CLIENT: &str = "client";
/// Longest zone that a master takes.
const ZONE_BYTES_MAX: usize = 64;

/// What was decided.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// What is remembered.
    pub(crate) record: Record,
    /// In the order in which they start.
    pub(crate) names: Vec<NodeName>,
    /// By process.
    pub(crate) ports: BTreeMap<NodeName, Ports>,
    /// Ports that had to change.
    pub(crate) moved: Vec<String>,
}

/// Writes all files. Ports are counted up from `port_base`, or are any that are free.
pub(crate) fn prepare(
    layout: &Layout,
    wanted: Wanted,
    port_base: Option<u16>,
) -> Result<Prepared, Failure> {
    let record = layout.record()?;
    let had = record.as_ref().map(|record| record.shape);
    let shape = Shape::decide(had, wanted).map_err(|reason| about(layout, &reason))?;
    let ca = ensure_ca(&layout.ca(), new_cluster())?;
    if let Some(record) = &record
        && record.cluster != ca.cluster().to_string()
    {
        return Err(about(layout, "ca/ and dev.json are of different clusters"));
    }
    let before = record.as_ref();
    let mut record = Record {
        version: RECORD_VERSION,
        cluster: ca.cluster().to_string(),
        shape,
        ports: before.map(|before| before.ports.clone()).unwrap_or_default(),
        added: before.map(|before| before.added.clone()).unwrap_or_default(),
        forgotten: before.map(|before| before.forgotten.clone()).unwrap_or_default(),
    };
    let names = record.names();
    let mut source = FreePorts::new(port_base);
    let assigned =
        assign(&names, &record.ports, &mut source).map_err(|reason| about(layout, &reason))?;
    record.ports = by_text(&assigned.ports);
    layout.save_record(&record)?;
    let files = Files { layout, ca: &ca, record: &record, ports: &assigned.ports };
    let token = files.client()?;
    files.web()?;
    for name in &names {
        files.node(*name, &token)?;
    }
    Ok(Prepared { record, names, ports: assigned.ports, moved: assigned.moved })
}

/// Everything one more chunkserver needs, while the others run. It is remembered.
pub(crate) fn add_chunkserver(
    layout: &Layout,
    prepared: &mut Prepared,
    zone: Option<String>,
) -> Result<NodeName, Failure> {
    let mut record = prepared.record.clone();
    let name = record.next_chunkserver().map_err(|reason| about(layout, &reason))?;
    let zone = zone.unwrap_or_else(|| name.zone().to_owned());
    if zone.is_empty() || zone.len() > ZONE_BYTES_MAX {
        let reason = format!("a zone has between 1 and {ZONE_BYTES_MAX} bytes");
        return Err(Failure::Usage(reason));
    }
    record.added.insert(name.to_string(), zone);
    // Ports of processes that are stopped must not be given away.
    let recorded: BTreeMap<NodeName, Ports> = prepared.ports.clone();
    let mut source = FreePorts::new(None);
    for ports in recorded.values() {
        for port in [Some(ports.quic), Some(ports.admin), ports.http, ports.https, ports.dns] {
            source.avoid(port);
        }
    }
    let assigned =
        assign(&[name], &BTreeMap::new(), &mut source).map_err(|reason| about(layout, &reason))?;
    let mut ports = prepared.ports.clone();
    ports.extend(assigned.ports);
    record.ports = by_text(&ports);
    let ca = ClusterCa::load(&layout.ca())?;
    let token = ClientConfig::load(&layout.client_config())?.token.unwrap_or_default();
    Files { layout, ca: &ca, record: &record, ports: &ports }.node(name, &token)?;
    layout.save_record(&record)?;
    *prepared = Prepared { names: record.names(), record, ports, moved: Vec::new() };
    Ok(name)
}

/// A process is never started again, from now on and after a restart.
pub(crate) fn forget(
    layout: &Layout,
    prepared: &mut Prepared,
    name: NodeName,
) -> Result<(), Failure> {
    let mut record = prepared.record.clone();
    record.forgotten.insert(name.to_string());
    record.ports.remove(&name.to_string());
    layout.save_record(&record)?;
    prepared.names = record.names();
    prepared.ports.remove(&name);
    prepared.record = record;
    Ok(())
}

fn by_text(ports: &BTreeMap<NodeName, Ports>) -> BTreeMap<String, Ports> {
    ports.iter().map(|(name, ports)| (name.to_string(), *ports)).collect()
}

fn about(layout: &Layout, reason: &str) -> Failure {
    Failure::Failed(format!("{}: {reason}", layout.data().display()))
}

struct Files<'a> {
    layout: &'a Layout,
    ca: &'a ClusterCa,
    record: &'a Record,
    ports: &'a BTreeMap<NodeName, Ports>,
}

impl Files<'_> {
    fn masters(&self) -> Vec<(NodeName, SocketAddr)> {
        let masters = self.ports.iter().filter(|(name, _)| name.kind == Kind::Master);
        masters.map(|(name, ports)| (*name, local(ports.quic))).collect()
    }

    /// The client's files; returns the token, which stays the same from start to start.
    fn client(&self) -> Result<String, Failure> {
        let path = self.layout.client_config();
        let identity = self.layout.identity(CLIENT);
        ensure_identity(self.ca, Role::Client, CLIENT, &identity)?;
        let before = if path.exists() { ClientConfig::load(&path)?.token } else { None };
        let token = before.unwrap_or_else(new_secret);
        let masters = self.masters().into_iter().map(|(_, addr)| addr).collect();
        let config = ClientConfig {
            masters,
            identity: Path::new("identity").join(CLIENT),
            token: Some(token.clone()),
            zone_hint: None,
        };
        config.save(&path)?;
        Ok(token)
    }

    /// The edges' certificate, anew at each start. Names under `localhost` get one each from the
    /// edges themselves, because OpenSSL takes no wildcard directly below a top-level name.
    fn web(&self) -> Result<(), Failure> {
        let web_ca = ensure_ca(&self.layout.web_ca(), self.ca.cluster())?;
        let names = ["localhost", "*.localhost", ZONE, "*.atoll.test", "127.0.0.1", "::1"];
        let web = web_ca.issue_web(&names.map(str::to_owned))?;
        write_whole(&self.layout.web("key.pem"), &web.key_pem)?;
        write_whole(&self.layout.web("cert.pem"), &web.chain_pem)
    }

    fn node(&self, name: NodeName, token: &str) -> Result<(), Failure> {
        let identity = self.layout.identity(&name.to_string());
        let role = match name.kind {
            Kind::Master => Role::Master,
            Kind::Chunkserver => Role::Chunkserver,
            Kind::Edge | Kind::Shield => Role::Edge,
        };
        ensure_identity(self.ca, role, &name.to_string(), &identity)?;
        let path = self.layout.config(name);
        match name.kind {
            Kind::Master => write_config(&path, &self.master(name, token)),
            Kind::Chunkserver => write_config(&path, &self.chunkserver(name)),
            Kind::Edge | Kind::Shield => write_config(&path, &self.edge(name)),
        }
    }

    fn master(&self, name: NodeName, token: &str) -> MasterFile {
        let ports = self.ports[&name];
        let masters = self.masters();
        let first_edge = self.ports.iter().find(|(name, _)| name.kind == Kind::Edge);
        let https = first_edge.and_then(|(_, ports)| ports.https);
        MasterFile {
            id: name.id(),
            name: name.to_string(),
            cluster: self.ca.cluster().to_string(),
            listen: local(ports.quic),
            admin: local(ports.admin),
            data: self.layout.node(name),
            identity: self.layout.identity(&name.to_string()),
            ready_file: Some(self.layout.ready(&name.to_string())),
            bootstrap: name.number == 1,
            zone: Some(ZONE.to_owned()),
            url_template: https.map(|port| format!("https://{{site}}.localhost:{port}/")),
            bootstrap_token_hash: Some(hash_of(token).to_string()),
            peers: masters
                .into_iter()
                .map(|(name, addr)| PeerLine { id: name.id(), addr })
                .collect(),
        }
    }

    fn chunkserver(&self, name: NodeName) -> ChunkserverFile {
        let ports = self.ports[&name];
        ChunkserverFile {
            id: name.id(),
            name: name.to_string(),
            cluster: self.ca.cluster().to_string(),
            listen: local(ports.quic),
            admin: local(ports.admin),
            data: self.layout.node(name),
            identity: self.layout.identity(&name.to_string()),
            ready_file: Some(self.layout.ready(&name.to_string())),
            masters: self.masters().into_iter().map(|(_, addr)| addr).collect(),
            zone: self.record.zone(name),
            region: name.region().to_owned(),
        }
    }

    fn edge(&self, name: NodeName) -> EdgeFile {
        let ports = self.ports[&name];
        let roles = match name.kind {
            Kind::Shield => vec!["shield"],
            _ => vec!["edge", "dns"],
        };
        EdgeFile {
            id: name.id(),
            name: name.to_string(),
            listen: local(ports.quic),
            admin: local(ports.admin),
            data: self.layout.node(name),
            identity: self.layout.identity(&name.to_string()),
            ready_file: Some(self.layout.ready(&name.to_string())),
            masters: self.masters().into_iter().map(|(_, addr)| addr).collect(),
            zone: name.zone().to_owned(),
            region: name.region().to_owned(),
            roles,
            http: local(ports.http.unwrap_or(0)),
            https: local(ports.https.unwrap_or(0)),
            public: vec![[127, 0, 0, 1].into()],
            dns_zone: ZONE.to_owned(),
            tls: TlsLines {
                cert: self.layout.web("cert.pem"),
                key: self.layout.web("key.pem"),
                authority: Some(self.layout.web_ca()),
            },
            dns: ports.dns.map(|port| DnsLines {
                listen: local(port),
                zone: ZONE.to_owned(),
                ns_addrs: Vec::new(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn chunkservers(count: u16) -> Wanted {
        Wanted { chunkservers: Some(count), ..Wanted::default() }
    }

    fn edges(count: u16) -> Wanted {
        Wanted { edges: Some(count), ..Wanted::default() }
    }

    #[test]
    fn a_second_start_finds_everything_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path()).unwrap();
        layout.create().unwrap();
        let first = prepare(&layout, edges(3), None).unwrap();
        let client = std::fs::read(layout.client_config()).unwrap();
        for name in &first.names {
            let path = layout.config(*name);
            match name.kind {
                Kind::Master => drop(atoll_master::Config::load(&path).unwrap()),
                Kind::Chunkserver => drop(atoll_chunkserver::Config::load(&path).unwrap()),
                Kind::Edge | Kind::Shield => drop(atoll_edge::Config::load(&path).unwrap()),
            }
        }
        let again = prepare(&layout, Wanted::default(), None).unwrap();
        assert_eq!(first.ports, again.ports);
        assert_eq!(std::fs::read(layout.client_config()).unwrap(), client);
        let config = ClientConfig::load(&layout.client_config()).unwrap();
        atoll_net::Identity::load(&config.identity).unwrap();
        assert!(prepare(&layout, edges(1), None).is_err());
    }

    #[test]
    fn a_chunkserver_that_was_added_is_there_after_a_restart_and_one_forgotten_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path()).unwrap();
        layout.create().unwrap();
        let mut prepared = prepare(&layout, chunkservers(3), None).unwrap();
        let before = prepared.ports.clone();
        assert!(add_chunkserver(&layout, &mut prepared, Some(String::new())).is_err());
        let name = add_chunkserver(&layout, &mut prepared, Some("attic".into())).unwrap();
        assert_eq!(name.to_string(), "chunkserver-4");
        assert!(before.iter().all(|(name, ports)| prepared.ports[name] == *ports));
        let config = atoll_chunkserver::Config::load(&layout.config(name)).unwrap();
        assert_eq!((config.zone.as_str(), config.id), ("attic", 4));
        let next = add_chunkserver(&layout, &mut prepared, None).unwrap();
        forget(&layout, &mut prepared, next).unwrap();

        let again = prepare(&layout, chunkservers(3), None).unwrap();
        assert_eq!(again.ports, prepared.ports);
        assert!(again.names.contains(&name) && !again.names.contains(&next));
        let config = atoll_chunkserver::Config::load(&layout.config(name)).unwrap();
        assert_eq!(config.zone, "attic");
    }
}
