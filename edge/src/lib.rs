//! The edge: answers visitors over HTTP and DNS, close to where they are.
//!
//! `atoll edge --config FILE` calls [`run`]. A node has any mix of three roles: `edge` serves
//! sites over HTTP/1.1, HTTP/2 and HTTP/3; `shield` fills other edges' misses, so that the origin
//! is read once, and relays the publish log ([`relay`]); `dns` sends visitors to a near and healthy
//! edge.
//!
//! The path of a request: [`http`] → [`index`] (host, site, alias, manifest) → [`rules`] →
//! [`fetch`] → [`cache`], or a shield, or the chunkservers through `atoll-client`. What exists is
//! known from the publish log, which [`index::follow`] follows; an edge whose masters are away
//! serves on while its lease holds ([`index::lease`]).

pub mod cache;
mod clock;
mod config;
pub mod dns;
mod feed;
pub mod fetch;
pub mod http;
pub mod index;
mod node;
pub mod relay;
pub mod rules;

use std::fs::{File, TryLockError};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use atoll_client::Cluster;
use atoll_net::admin::{self, Readiness};
use atoll_net::endpoint::Endpoint;
use atoll_net::identity::Identity;
use atoll_net::service::ServeLimits;
use atoll_net::shutdown::Shutdown;
use atoll_net::task::{Boxed, Tasks};
use atoll_proto::NodeId;
use atoll_proto::cluster::{EdgeInfo, NodeInfo, NodeKind};
use tokio::sync::watch;

pub use config::{Config, ConfigError, EdgeRole, TlsFiles};

use cache::Cache;
use dns::DnsView;
use fetch::Chunks;
use fetch::origin::Origin;
use fetch::serve::{EdgeService, ShieldParts};
use fetch::shield::Shields;
use fetch::upstream::Route;
use http::respond::Responder;
use http::server::Bound;
use http::tls::Certificate;
use index::Index;
use node::Addresses;
use relay::hub::{self, Hub};
use relay::uplink::Uplink;

/// The part of the memory for chunks that decoded manifest pages may have beside it.
const PAGES_SHARE: u64 = 4;
/// How long everything may take to end after shutdown, beyond what listeners allow themselves:
/// the last packets of their connections.
const DRAIN: Duration = Duration::from_millis(1500);
/// How long chunks on their way to the disk cache may hold up the end. They can be fetched again.
const FLUSH: Duration = Duration::from_secs(1);

/// Arguments of `atoll edge`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Why an edge cannot run. The text says what and why.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The identity or a socket between nodes.
    #[error(transparent)]
    Net(#[from] atoll_net::NetError),
    /// A socket for visitors.
    #[error(transparent)]
    Bind(#[from] http::server::BindError),
    /// The certificate for visitors.
    #[error(transparent)]
    Tls(#[from] http::tls::TlsError),
    /// DNS.
    #[error("{error}{}", cause(error))]
    Dns {
        /// What went wrong.
        error: dns::listener::BindError,
    },
    /// The certificate names another node than the configuration.
    #[error("the identity is of {found:?}, but `name` is {name:?}: use the node's own certificate")]
    Name {
        /// From the configuration.
        name: String,
        /// From the certificate.
        found: String,
    },
    /// The data directory or the ready file.
    #[error("cannot use {}: {source}", path.display())]
    Data {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn cause(error: &dyn std::error::Error) -> String {
    error.source().map(|source| format!(": {source}")).unwrap_or_default()
}

/// Runs an edge until shutdown.
///
/// # Errors
/// When it cannot start; once it serves, it goes on until shutdown.
pub fn run(config: Config, shutdown: Shutdown) -> Boxed<'static, Result<(), RunError>> {
    Box::pin(run_here(config, shutdown))
}

async fn run_here(config: Config, shutdown: Shutdown) -> Result<(), RunError> {
    drop(atoll_net::telemetry::init("edge", "info"));
    describe_metrics();
    let identity = Identity::load(&config.identity)?;
    let _lock = lock_data(&config)?;
    remove_ready_file(&config)?;
    let endpoint = Endpoint::bind(config.listen, &identity)?;
    let found = endpoint.identity_peer().name.clone();
    if found != config.name {
        return Err(RunError::Name { name: config.name.clone(), found });
    }
    let visitors = bind_visitors(&config)?;
    let dns = match &config.dns {
        Some(dns) if config.has(EdgeRole::Dns) => {
            let certificate = visitors.as_ref().map(|(_, certificate)| certificate);
            Some(bind_dns(dns, &config.name, certificate).await?)
        }
        _ => None,
    };
    let (readiness, judged) = watch::channel(Readiness::not("starting"));
    let admin = admin::serve(config.admin, judged.clone(), shutdown.clone())?;
    let addresses = Addresses {
        addr: endpoint.local_addr(),
        admin,
        http: visitors.as_ref().map(|(bound, _)| bound.http_addr),
        https: visitors.as_ref().map(|(bound, _)| bound.https_addr),
        dns: dns.as_ref().map(dns::DnsListener::local_addr),
    };
    let edge = Edge::build(&config, endpoint).await?;
    let info = node_info(&config, &addresses);
    let own = info.id;
    let tasks = Tasks::new();
    edge.start(&tasks, &config, info, (readiness, judged), &shutdown, dns);
    if let Some((bound, certificate)) = visitors {
        let responder =
            Arc::new(Responder::new(edge.index.clone(), edge.chunks.clone(), &config.name));
        let serve = bound.serve(responder, certificate, shutdown.clone());
        tasks.spawn("listeners", async move {
            match serve.await {
                Ok(0) => {}
                Ok(cut) => tracing::info!(cut, "connections were cut off: they took too long"),
                Err(error) => tracing::error!(%error, "the listeners cannot serve"),
            }
        });
    }
    let started = async {
        node::until_serving(&edge.index).await;
        announce(&config, addresses).await
    };
    tokio::select! {
        started = started => started?,
        () = shutdown.wait() => {}
    }
    shutdown.wait().await;
    tracing::info!("stopping");
    let cut = tasks.drain(http::DRAIN + DRAIN).await;
    if cut == 0 {
        // Every listener is closed, and no answer is under way.
        node::farewell(&edge.cluster, own).await;
    } else {
        tracing::warn!(cut, "not everything ended in time: publishes wait for this node a while");
    }
    let flush = async { tokio::join!(edge.index.stored(), edge.chunks.cache().flush()) };
    if tokio::time::timeout(FLUSH, flush).await.is_err() {
        tracing::info!("the disk is slow: some cached chunks will be fetched again");
    }
    edge.endpoint.close().await;
    Ok(())
}

/// The parts that answers are made of.
struct Edge {
    endpoint: Endpoint,
    cluster: Cluster,
    shields: Option<Arc<Shields>>,
    chunks: Arc<Chunks>,
    index: Arc<Index>,
}

impl Edge {
    async fn build(config: &Config, endpoint: Endpoint) -> Result<Edge, RunError> {
        let zone = Some(config.zone.clone());
        let cluster = Cluster::new(endpoint.clone(), config.masters.clone(), None, zone);
        // A shield asks the origin itself, so that shields never wait for each other.
        let shields = (!config.has(EdgeRole::Shield))
            .then(|| Arc::new(Shields::new(endpoint.clone(), config.region.clone())));
        let upstream = Arc::new(Route::new(shields.clone(), Origin::new(cluster.clone())));
        let id = endpoint.identity_peer().cluster;
        let (data, suffixes) = (config.data.clone(), config.suffixes());
        let (ram, disk) = (config.ram_cache_bytes, config.disk_cache_bytes);
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let open = move || {
            let cache = Cache::open(bytes(ram), &data.join("cache"), disk)?;
            let chunks = Arc::new(Chunks::new(Arc::new(cache), upstream));
            let pages = bytes(ram / PAGES_SHARE);
            let index = Index::open(id, chunks.clone(), suffixes, Some(data), pages);
            Ok((chunks, Arc::new(index)))
        };
        let opened = atoll_net::task::spawn_blocking("edge-open", open).await;
        let (chunks, index) = opened
            .map_err(io::Error::other)
            .and_then(|opened| opened)
            .map_err(|source| RunError::Data { path: config.data.clone(), source })?;
        Ok(Edge { endpoint, cluster, shields, chunks, index })
    }

    /// Starts everything but the listeners for HTTP.
    fn start(
        &self,
        tasks: &Tasks,
        config: &Config,
        info: NodeInfo,
        (readiness, judged): (watch::Sender<Readiness>, watch::Receiver<Readiness>),
        shutdown: &Shutdown,
        dns: Option<dns::DnsListener>,
    ) {
        let (cluster, index, own) = (&self.cluster, &self.index, info.id);
        let of_feed = judged.clone();
        let expected = self.endpoint.identity_peer().cluster;
        let relays = self.shields.clone().filter(|_| config.relay);
        let uplink = Arc::new(Uplink::new(cluster.clone(), own, relays));
        let hub = config
            .has(EdgeRole::Shield)
            .then(|| Arc::new(Hub::new(index.clone(), cluster.clone(), shutdown.clone())));
        tasks.spawn(
            "follow",
            index::follow::run(index.clone(), uplink.clone(), hub.clone(), shutdown.clone()),
        );
        tasks.spawn(
            "erase",
            index::erased::run(index.clone(), cluster.clone(), own, shutdown.clone()),
        );
        if config.has(EdgeRole::Edge) {
            let bytes = config.disk_cache_bytes / index::warm::DISK_SHARE;
            tasks.spawn("warm", index::warm::run(index.clone(), bytes, shutdown.clone()));
        }
        tasks.spawn("judge", node::judge(index.clone(), readiness, shutdown.clone()));
        tasks.spawn(
            "heartbeat",
            node::keep_known(
                cluster.clone(),
                uplink,
                index.clone(),
                info,
                expected,
                judged,
                shutdown.clone(),
            ),
        );
        let explainer =
            dns.as_ref().map(|dns| dns::explain::Explainer::new(dns.current(), dns.local_addr()));
        let mut names = None;
        if let Some(dns) = dns {
            let (sender, answers) = watch::channel(Arc::new(DnsView::default()));
            let shutdown = shutdown.clone();
            tasks.spawn("dns", async move { dns.serve(answers, shutdown).await });
            names = Some(sender);
        }
        let (shields, stop) = (self.shields.clone(), shutdown.clone());
        tasks.spawn(
            "feed",
            feed::run(cluster.clone(), own, shields, index.clone(), names, of_feed, stop),
        );
        let shield = hub.map(|hub| {
            tasks.spawn("relay", hub::run(hub.clone(), own));
            ShieldParts::new(self.chunks.clone(), hub)
        });
        if shield.is_some() || explainer.is_some() {
            let service = Arc::new(EdgeService::new(shield, explainer));
            let (endpoint, shutdown) = (self.endpoint.clone(), shutdown.clone());
            tasks.spawn("service", async move {
                let limits = ServeLimits { drain: http::DRAIN, ..ServeLimits::default() };
                endpoint.serve(service, limits, shutdown).await;
            });
        }
    }
}

/// Makes sure that no other process uses the data. The lock ends with the process.
fn lock_data(config: &Config) -> Result<File, RunError> {
    let failed = |source| RunError::Data { path: config.data.clone(), source };
    std::fs::create_dir_all(&config.data).map_err(failed)?;
    let file = File::create(config.data.join("lock")).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(failed(io::Error::other("another process uses it; stop that one first")))
        }
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// What an earlier run wrote must not be taken for this one's.
fn remove_ready_file(config: &Config) -> Result<(), RunError> {
    let Some(path) = &config.ready_file else {
        return Ok(());
    };
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(RunError::Data { path: path.clone(), source })
        }
        _ => Ok(()),
    }
}

fn bind_visitors(config: &Config) -> Result<Option<(Bound, Arc<Certificate>)>, RunError> {
    let (Some(http), Some(https), Some(tls)) = (config.http, config.https, &config.tls) else {
        return Ok(None);
    };
    let certificate = match &tls.authority {
        Some(authority) => Certificate::load_with_authority(&tls.cert, &tls.key, authority)?,
        None => Certificate::load(&tls.cert, &tls.key)?,
    };
    let secret = http::reset::ResetSecret::of(&config.data);
    Ok(Some((http::server::bind(http, https)?.with_secret(secret), certificate)))
}

async fn bind_dns(
    config: &dns::DnsConfig,
    name: &str,
    certificate: Option<&Arc<Certificate>>,
) -> Result<dns::DnsListener, RunError> {
    let mut config = config.clone();
    // Names of nodes may be longer than what can be told.
    if config.nsid.is_none() && name.len() <= dns::answer::NSID_BYTES_MAX {
        config.nsid = Some(name.to_owned());
    }
    let tls = match (config.tls_listen, certificate) {
        (Some(_), Some(certificate)) => Some(certificate.dns()?),
        _ => None,
    };
    dns::bind(&config, tls).await.map_err(|error| RunError::Dns { error })
}

fn node_info(config: &Config, addresses: &Addresses) -> NodeInfo {
    let port = |addr: Option<std::net::SocketAddr>| addr.map_or(0, |addr| addr.port());
    NodeInfo {
        id: NodeId(config.id),
        name: config.name.clone(),
        kind: NodeKind::Edge,
        addr: config.advertise.unwrap_or(addresses.addr),
        zone: config.zone.clone(),
        region: config.region.clone(),
        weight: config.weight,
        edge: Some(EdgeInfo {
            serves: config.has(EdgeRole::Edge),
            shield: config.has(EdgeRole::Shield),
            dns: config.has(EdgeRole::Dns),
            public: config.public.clone(),
            http_port: port(addresses.http),
            https_port: port(addresses.https),
        }),
    }
}

async fn announce(config: &Config, addresses: Addresses) -> Result<(), RunError> {
    tracing::info!(?addresses, roles = ?config.roles, "serving");
    let Some(path) = config.ready_file.clone() else {
        return Ok(());
    };
    let target = path.clone();
    let work = move || node::write_ready_file(&target, &addresses);
    atoll_net::task::spawn_blocking("ready-file", work)
        .await
        .map_err(io::Error::other)
        .and_then(|written| written)
        .map_err(|source| RunError::Data { path, source })
}

fn describe_metrics() {
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    describe_counter!("atoll_edge_requests_total", "Requests answered, by protocol and status.");
    describe_counter!("atoll_edge_sent_bytes_total", "Bytes of bodies, by protocol.");
    describe_counter!("atoll_edge_bodies_aborted_total", "Bodies that could not be completed.");
    describe_counter!("atoll_edge_connections_refused_total", "Connections over the bound.");
    describe_counter!("atoll_edge_connections_timed_out_total", "Idle or slow connections closed.");
    describe_counter!("atoll_edge_handshakes_failed_total", "TLS and QUIC handshakes that failed.");
    describe_counter!("atoll_edge_cache_hits_total", "Chunks found in the cache, by tier.");
    describe_counter!("atoll_edge_cache_misses_total", "Chunks that had to be fetched.");
    describe_counter!("atoll_edge_cache_evicted_total", "Chunks that had to leave, by tier.");
    describe_counter!("atoll_edge_cache_corrupt_total", "Cached chunks found damaged on disk.");
    describe_counter!("atoll_edge_cache_disk_admitted_total", "Chunks written to the disk cache.");
    describe_counter!("atoll_edge_cache_disk_skipped_total", "Chunks the writer had no time for.");
    describe_counter!("atoll_edge_cache_disk_errors_total", "Failed writes to the disk cache.");
    describe_gauge!("atoll_edge_cache_memory_bytes", "Bytes of chunks in memory.");
    describe_gauge!("atoll_edge_cache_disk_bytes", "Size of the disk cache.");
    describe_counter!("atoll_edge_upstream_chunks_total", "Chunks fetched, by source.");
    describe_counter!("atoll_edge_upstream_bytes_total", "Bytes fetched, by source.");
    describe_counter!("atoll_edge_upstream_corrupt_total", "Fetched chunks with a wrong hash.");
    describe_counter!("atoll_edge_shield_errors_total", "Shields that did not answer.");
    describe_counter!("atoll_edge_fill_waiters_total", "Requests that joined a fetch under way.");
    describe_histogram!("atoll_edge_fill_seconds", "Time of a fetch from upstream, by outcome.");
    describe_counter!("atoll_edge_earlier_files_total", "Answers out of earlier deploys.");
    describe_gauge!("atoll_edge_publish_seq", "Last entry of the publish log that is applied.");
    describe_counter!("atoll_edge_publish_entries_total", "Entries of the publish log applied.");
    describe_counter!("atoll_edge_deploys_warmed_total", "Deploys whose pages are all at hand.");
    describe_counter!("atoll_edge_pages_warmed_total", "Pages fetched before anyone needed them.");
    describe_counter!("atoll_edge_index_store_errors_total", "Tables of sites not stored.");
    describe_counter!("atoll_edge_publish_errors_total", "Failed requests for the publish log.");
    describe_counter!(
        "atoll_edge_follows_total",
        "Answers about the publish log, by who gave them."
    );
    describe_counter!("atoll_edge_relay_left_total", "Shields left alone for a while as relays.");
    describe_counter!(
        "atoll_edge_relay_messages_total",
        "Messages to the masters for other edges."
    );
    describe_counter!("atoll_edge_relay_acks_total", "Acknowledgements in them.");
    describe_counter!("atoll_edge_relay_renewals_total", "Renewals of leases in them.");
    describe_counter!("atoll_edge_cache_cleared_total", "Invalidations that emptied the cache.");
    describe_counter!("atoll_edge_erased_chunks_total", "Chunks of the cache taken down.");
    describe_counter!("atoll_edge_invalidated_chunks_total", "Chunks dropped by invalidations.");
    describe_counter!("atoll_dns_queries_total", "Queries answered, by type, code and transport.");
    describe_counter!(
        "atoll_dns_routes_total",
        "Answers with edges, by the rule that placed the client."
    );
    describe_counter!("atoll_dns_packets_dropped_total", "Packets that must not be answered.");
    describe_counter!(
        "atoll_dns_responses_limited_total",
        "Answers not sent: too many equal ones."
    );
    describe_counter!("atoll_dns_responses_cut_total", "Answers cut: too many equal ones.");
    describe_counter!("atoll_dns_replies_unsent_total", "Replies that the system did not take.");
    describe_counter!("atoll_dns_connections_refused_total", "Connections over the bound.");
    describe_counter!("atoll_dns_handshakes_failed_total", "TLS handshakes for DNS that failed.");
    describe_counter!(
        "atoll_dns_panics_total",
        "Queries whose answer failed by a mistake of ours."
    );
    describe_counter!("atoll_dns_database_reloads_total", "Geographic databases put in force.");
    describe_counter!("atoll_dns_database_errors_total", "Geographic databases not readable.");
    describe_gauge!("atoll_dns_database_built_seconds", "When the oldest database was made.");
    describe_gauge!("atoll_dns_atlas_bytes", "Memory of the table of addresses.");
    describe_gauge!("atoll_dns_atlas_places", "Different places in the table of addresses.");
    describe_gauge!("atoll_dns_routes_bytes", "Memory of the answers beside that table.");
    describe_histogram!("atoll_dns_answer_seconds", "Time of an answer; over UDP of a batch.");
    describe_histogram!("atoll_dns_build_seconds", "Time of building the answers anew.");
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
