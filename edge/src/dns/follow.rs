//! Keeping the answers up to date: the state of the cluster, and geographic databases that are
//! replaced while the server runs.
//!
//! Everything is built beside what is in force and takes its place at once, so that no query waits
//! for it. A database that cannot be read changes nothing: the one before stays in force.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use atoll_net::task::spawn_blocking;
use tokio::sync::watch;

use super::answer::Answerer;
use super::atlas::Atlas;
use super::config::DnsConfig;
use super::geo::database::{Database, DatabaseError};
use super::route::Routes;
use super::zone::DnsView;

/// How often the files of databases are looked at.
const LOOK_EVERY: Duration =
    if cfg!(test) { Duration::from_millis(10) } else { Duration::from_secs(3) };

/// What tells one version of a file from another.
type Version = Option<(u64, u64, u64, i64, i64)>;

/// A database file that was read.
#[derive(Clone)]
pub(super) struct File {
    path: PathBuf,
    version: Version,
    database: Arc<Database>,
}

/// Reads all databases and builds the atlas. Blocking.
pub(super) fn read(config: &DnsConfig) -> Result<(Vec<File>, Arc<Atlas>), DatabaseError> {
    let mut files = Vec::new();
    for path in &config.mmdb {
        files.push(read_file(path.clone())?);
    }
    let atlas = atlas(config, &files);
    Ok((files, atlas))
}

fn read_file(path: PathBuf) -> Result<File, DatabaseError> {
    // Before it is read: what changes while it is read is a change.
    let version = version(&path);
    let started = Instant::now();
    let database = Arc::new(Database::read(&path)?);
    tracing::info!(
        path = %path.display(),
        kind = %database.kind,
        built_secs = database.built_secs,
        networks = database.networks.len(),
        elapsed = ?started.elapsed(),
        "read a geographic database"
    );
    Ok(File { path, version, database })
}

fn version(path: &std::path::Path) -> Version {
    let of = |data: Metadata| (data.dev(), data.ino(), data.len(), data.mtime(), data.mtime_nsec());
    std::fs::metadata(path).ok().map(of)
}

fn atlas(config: &DnsConfig, files: &[File]) -> Arc<Atlas> {
    let databases: Vec<Arc<Database>> = files.iter().map(|file| file.database.clone()).collect();
    let atlas = Atlas::new(config, &databases);
    metrics::gauge!("atoll_dns_atlas_bytes").set(atlas.bytes() as f64);
    metrics::gauge!("atoll_dns_atlas_places").set(atlas.len() as f64);
    let oldest = databases.iter().map(|database| database.built_secs).min();
    metrics::gauge!("atoll_dns_database_built_seconds").set(oldest.unwrap_or(0) as f64);
    Arc::new(atlas)
}

/// Follows what answers depend on.
pub(super) struct Follower {
    config: Arc<DnsConfig>,
    files: Vec<File>,
    current: Arc<ArcSwap<Answerer>>,
}

impl Follower {
    pub(super) fn new(config: DnsConfig, files: Vec<File>, answerer: Answerer) -> Follower {
        let current = Arc::new(ArcSwap::from_pointee(answerer));
        Follower { config: Arc::new(config), files, current }
    }

    /// What is in force.
    pub(super) fn current(&self) -> Arc<ArcSwap<Answerer>> {
        self.current.clone()
    }

    /// Puts every new state in force; never ends by itself. When the view's sender is gone, the
    /// last view stays.
    pub(super) async fn run(mut self, mut view: watch::Receiver<Arc<DnsView>>) {
        let mut known = true;
        let first = view.borrow_and_update().clone();
        self.put(None, first).await;
        // Not a sleep: a state that changes all the time must not put it off.
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = view.changed(), if known => {
                    known = changed.is_ok();
                    let next = view.borrow_and_update().clone();
                    self.put(None, next).await;
                }
                _ = look.tick(), if !self.files.is_empty() => {
                    if let Some(atlas) = self.reread().await {
                        let view = view.borrow().clone();
                        self.put(Some(atlas), view).await;
                    }
                }
                // Without databases and without a sender nothing changes any more.
                else => std::future::pending::<()>().await,
            }
        }
    }

    async fn put(&self, atlas: Option<Arc<Atlas>>, view: Arc<DnsView>) {
        let before = self.current.load_full();
        let build = move || {
            let started = Instant::now();
            let same = atlas.is_none() && before.view().edges == view.edges;
            let routes = match atlas {
                // Only names have changed.
                _ if same => before.routes().clone(),
                atlas => {
                    let atlas = atlas.unwrap_or_else(|| before.routes().atlas().clone());
                    Arc::new(Routes::new(atlas, &view.edges))
                }
            };
            let answerer = before.with(routes, view);
            metrics::histogram!("atoll_dns_build_seconds").record(started.elapsed().as_secs_f64());
            answerer
        };
        match spawn_blocking("dns-routes", build).await {
            Ok(answerer) => {
                metrics::gauge!("atoll_dns_routes_bytes").set(answerer.routes().bytes() as f64);
                self.current.store(Arc::new(answerer));
            }
            Err(error) => {
                tracing::error!(%error, "answers are not up to date: building them failed");
            }
        }
    }

    /// Reads the databases whose files have changed. Nothing if none has, or one cannot be read.
    async fn reread(&mut self) -> Option<Arc<Atlas>> {
        let (files, config) = (self.files.clone(), self.config.clone());
        let work = move || {
            let mut files = files;
            let mut changed = false;
            for file in &mut files {
                let now = version(&file.path);
                if now == file.version {
                    continue;
                }
                match read_file(file.path.clone()) {
                    Ok(new) => {
                        *file = new;
                        changed = true;
                        metrics::counter!("atoll_dns_database_reloads_total").increment(1);
                    }
                    Err(error) => {
                        // Once for each version of the file.
                        file.version = now;
                        metrics::counter!("atoll_dns_database_errors_total").increment(1);
                        tracing::error!(%error, "the database of before stays in force");
                    }
                }
            }
            let atlas = changed.then(|| atlas(&config, &files));
            (files, atlas)
        };
        match spawn_blocking("dns-databases", work).await {
            Ok((files, atlas)) => {
                self.files = files;
                atlas
            }
            Err(error) => {
                tracing::error!(%error, "looking at geographic databases failed");
                None
            }
        }
    }
}
