//! The file that tells programs where everything is: `--ready FILE`, written when it serves.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::plan::{Kind, NodeName, Ports};
use crate::node_files::write_whole;
use crate::report::Failure;

/// The file's content; the names are a contract with scripts.
#[derive(Debug, Serialize)]
pub(crate) struct ReadyObject {
    pub(crate) config: PathBuf,
    pub(crate) ca: PathBuf,
    pub(crate) masters: Vec<MasterReady>,
    pub(crate) chunkservers: Vec<ChunkserverReady>,
    pub(crate) edges: Vec<EdgeReady>,
    pub(crate) dns: Vec<DnsReady>,
    pub(crate) mount: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
pub(crate) struct MasterReady {
    id: u64,
    addr: SocketAddr,
    admin: SocketAddr,
    pid: u32,
    data: PathBuf,
}

#[derive(Debug, Serialize)]
pub(crate) struct ChunkserverReady {
    id: u64,
    addr: SocketAddr,
    admin: SocketAddr,
    zone: String,
    pid: u32,
    data: PathBuf,
}

#[derive(Debug, Serialize)]
pub(crate) struct EdgeReady {
    name: String,
    role: &'static str,
    region: &'static str,
    http: Option<SocketAddr>,
    https: Option<SocketAddr>,
    admin: SocketAddr,
    addr: SocketAddr,
    pid: u32,
    data: PathBuf,
}

#[derive(Debug, Serialize)]
pub(crate) struct DnsReady {
    addr: SocketAddr,
    zone: &'static str,
}

impl EdgeReady {
    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether visitors go there.
    pub(crate) fn is_visited(&self) -> bool {
        self.role == Kind::Edge.as_str()
    }

    /// Its HTTPS port.
    pub(crate) fn port(&self) -> u16 {
        self.https.map_or(0, |addr| addr.port())
    }
}

impl DnsReady {
    /// Where it answers.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// A process that runs.
pub(crate) struct Process {
    pub(crate) name: NodeName,
    pub(crate) ports: Ports,
    pub(crate) pid: u32,
    pub(crate) data: PathBuf,
    pub(crate) zone: String,
}

/// An address of this machine.
pub(crate) fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

impl ReadyObject {
    /// Where these processes are.
    pub(crate) fn new(
        config: PathBuf,
        ca: PathBuf,
        zone: &'static str,
        mount: Option<PathBuf>,
        processes: Vec<Process>,
    ) -> Self {
        let (masters, chunkservers, edges, dns) = (vec![], vec![], vec![], vec![]);
        let mut ready = Self { config, ca, masters, chunkservers, edges, dns, mount };
        for process in processes {
            ready.add(process, zone);
        }
        ready
    }

    fn add(&mut self, process: Process, zone: &'static str) {
        let Process { name, ports, pid, data, zone: own } = process;
        let (addr, admin) = (local(ports.quic), local(ports.admin));
        match name.kind {
            Kind::Master => {
                self.masters.push(MasterReady { id: name.id(), addr, admin, pid, data });
            }
            Kind::Chunkserver => self.chunkservers.push(ChunkserverReady {
                id: name.id(),
                addr,
                admin,
                zone: own,
                pid,
                data,
            }),
            Kind::Edge | Kind::Shield => {
                self.edges.push(EdgeReady {
                    name: name.to_string(),
                    role: name.kind.as_str(),
                    region: name.region(),
                    http: ports.http.map(local),
                    https: ports.https.map(local),
                    admin,
                    addr,
                    pid,
                    data,
                });
                self.dns.extend(ports.dns.map(|port| DnsReady { addr: local(port), zone }));
            }
        }
    }

    /// Writes the file; it appears whole.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| Failure::failed("write the ready file", error))?;
        write_whole(path, &text)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_shape_is_that_of_the_contract() {
        let process = |name: &str, http, https, dns| Process {
            name: name.parse().unwrap(),
            ports: Ports { quic: 1, admin: 2, http, https, dns },
            pid: 7,
            data: "/d".into(),
            zone: "z2".into(),
        };
        let processes = vec![
            process("master-1", None, None, None),
            process("chunkserver-2", None, None, None),
            process("shield-1", Some(3), Some(4), None),
            process("edge-2", Some(5), Some(6), Some(8)),
        ];
        let ready = ReadyObject::new("/c".into(), "/ca.pem".into(), "atoll.test", None, processes);
        let json = serde_json::to_value(&ready).unwrap();
        assert_eq!(json["config"], "/c");
        assert_eq!(json["ca"], "/ca.pem");
        assert!(json["mount"].is_null());
        assert_eq!(json["masters"][0]["addr"], "127.0.0.1:1");
        assert_eq!(json["masters"][0]["pid"], 7);
        assert_eq!(json["chunkservers"][0]["id"], 2);
        assert_eq!(json["chunkservers"][0]["zone"], "z2");
        assert_eq!(json["edges"][0]["role"], "shield");
        assert_eq!(json["edges"][1]["name"], "edge-2");
        assert_eq!(json["edges"][1]["region"], "us");
        assert_eq!(json["edges"][1]["https"], "127.0.0.1:6");
        assert_eq!(json["dns"][0]["addr"], "127.0.0.1:8");
        assert_eq!(json["dns"][0]["zone"], "atoll.test");
        assert_eq!(json["dns"].as_array().unwrap().len(), 1);
        for kind in ["masters", "chunkservers", "edges"] {
            assert_eq!(json[kind][0]["data"], "/d", "{kind}");
        }
    }
}
