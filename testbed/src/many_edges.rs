//! Many edges within one process: the edge role's own `run`, each with an identity of its own, for
//! measurements with more edges than a machine has room for processes. They register, follow the
//! publish log, renew what must be renewed and would serve visitors, exactly as edges do.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use atoll_edge::{Config, EdgeRole, TlsFiles};
use atoll_net::identity::{ClusterCa, Role};
use atoll_net::shutdown::{ShutdownTrigger, pair};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cluster::DevCluster;
use crate::proxy::{MasterLinks, Way};

/// The first of their ids: far from those of `atoll dev`.
const FIRST_ID: u64 = 10_000;
/// Until all of them must serve, and what each adds to that.
const START: Duration = Duration::from_secs(90);
const START_EACH: Duration = Duration::from_millis(400);
/// Within which all of them must stop, and what each adds to that.
const STOP: Duration = Duration::from_secs(20);
const STOP_EACH: Duration = Duration::from_millis(100);
/// Regions of shields, one after the other, as `atoll dev` has them.
const REGIONS: [&str; 3] = ["eu", "us", "ap"];
/// Memory and disk for chunks of each: the least that is allowed.
const CACHE_BYTES: u64 = 16 << 20;

/// The edges, and the links between each and the masters.
pub struct ManyEdges {
    running: Vec<(ShutdownTrigger, JoinHandle<Result<(), atoll_edge::RunError>>)>,
    links: Vec<MasterLinks>,
    /// Where their data are, removed with them.
    _data: tempfile::TempDir,
}

impl ManyEdges {
    /// Starts so many, with this delay in each direction between them and the masters, and waits
    /// until each of them serves. Without a delay nothing is between. They are spread over the
    /// regions of so many shields, and follow the publish log through them; with none, all of them
    /// follow the masters.
    ///
    /// # Errors
    /// When one of them does not serve in time.
    pub async fn start(
        cluster: &DevCluster,
        count: usize,
        delay: Option<Duration>,
        shields: usize,
    ) -> Result<Self> {
        // In memory where the system has a place for it: so many disks are not one disk.
        let shared = PathBuf::from("/dev/shm");
        let folder = if shared.is_dir() { shared } else { std::env::temp_dir() };
        let data = tempfile::Builder::new().prefix("atoll-edges-").tempdir_in(folder)?;
        let ca = ClusterCa::load(&cluster.data().join("ca"))?;
        let mut edges = Self { running: Vec::new(), links: Vec::new(), _data: data };
        let mut ready = Vec::new();
        for number in 0..count as u64 {
            let mut masters: Vec<SocketAddr> =
                cluster.ready().masters.iter().map(|master| master.addr).collect();
            if let Some(delay) = delay {
                let links = MasterLinks::open(cluster, number).await?;
                links.set_both(Way::delayed(delay));
                masters = links.addrs();
                edges.links.push(links);
            }
            let mut config = edges.config(cluster, &ca, FIRST_ID + number, masters)?;
            if shields > 0 {
                config.relay = true;
                let turn = usize::try_from(number)? % shields;
                config.region = REGIONS[turn % REGIONS.len()].to_owned();
            }
            ready.push(config.ready_file.clone().context("it has a ready file")?);
            let (trigger, shutdown) = pair();
            let work = tokio::spawn(atoll_edge::run(config, shutdown));
            edges.running.push((trigger, work));
        }
        let until = Instant::now() + START + START_EACH * u32::try_from(count)?;
        for (number, path) in ready.iter().enumerate() {
            while !path.exists() {
                ensure!(Instant::now() < until, "simulated edge {number} does not serve");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(edges)
    }

    fn config(
        &self,
        cluster: &DevCluster,
        ca: &ClusterCa,
        id: u64,
        masters: Vec<SocketAddr>,
    ) -> Result<Config> {
        let name = format!("edge-{id}");
        let folder = self._data.path().join(&name);
        let identity = folder.join("identity");
        std::fs::create_dir_all(&identity)?;
        ca.issue(Role::Edge, &name)?.save(&identity)?;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let web = cluster.data().join("web");
        Ok(Config {
            name,
            id,
            region: "eu".to_owned(),
            zone: "z1".to_owned(),
            roles: vec![EdgeRole::Edge],
            listen: any,
            advertise: None,
            admin: any,
            data: folder.join("data"),
            identity,
            masters,
            relay: false,
            ready_file: Some(folder.join("ready.json")),
            http: Some(any),
            https: Some(any),
            tls: Some(TlsFiles {
                cert: web.join("cert.pem"),
                key: web.join("key.pem"),
                authority: None,
            }),
            public: Vec::new(),
            weight: 1,
            ram_cache_bytes: CACHE_BYTES,
            disk_cache_bytes: CACHE_BYTES,
            dns_zone: None,
            hosts: vec!["localhost".to_owned()],
            dns: None,
        })
    }

    /// Stops them all. They tell the masters that they go.
    ///
    /// # Errors
    /// When one of them does not end in time, or ends with an error.
    pub async fn finish(self) -> Result<()> {
        for (trigger, _) in &self.running {
            trigger.trigger();
        }
        let until = Instant::now() + STOP + STOP_EACH * u32::try_from(self.running.len())?;
        for (_, work) in self.running {
            let ended = tokio::time::timeout_at(until, work).await;
            ended.context("an edge does not stop")??.context("an edge ended with an error")?;
        }
        drop(self.links);
        Ok(())
    }
}
