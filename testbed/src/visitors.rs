//! A crowd whose every request is written down, for [`crate::checks::never_stale_after_ack`].
//!
//! It asks for one file of one site at every edge, all the time: over connections that are kept,
//! of every version of HTTP, and over fresh ones. Edges may hang, die and come back. Some visitors
//! are patient enough to be still waiting when a frozen edge goes on, since those are the requests
//! that it could answer with what it knew before; others give up soon and connect again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::checks::{Request, Seen};
use crate::http::{Connection, Trust, Version};

/// The header that names the deploy of an answer.
const DEPLOY: &str = "atoll-deploy";
/// How long an impatient visitor waits.
const SHORT: Duration = Duration::from_secs(2);
/// How long a patient one does: longer than any edge is away.
const LONG: Duration = Duration::from_secs(30);
/// Between two requests of one visitor.
const PAUSE: Duration = Duration::from_millis(10);
/// Between two fresh connections to one edge.
const FRESH_PAUSE: Duration = Duration::from_millis(150);
/// After a failed request or connection.
const AFTER_FAILURE: Duration = Duration::from_millis(100);
/// Fresh connections to one edge that wait for an answer at a time.
const FRESH_MAX: usize = 48;
/// Most requests that are kept; the crowd rests when nobody takes them.
const REQUESTS_MAX: usize = 1_000_000;

struct Shared {
    began: Instant,
    stop: AtomicBool,
    requests: Mutex<Vec<Request>>,
    /// Which bodies came with which deploy.
    bodies: Mutex<BTreeMap<String, BTreeSet<Bytes>>>,
}

impl Shared {
    fn requests(&self) -> MutexGuard<'_, Vec<Request>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn write(&self, visitor: &str, start: Duration, seen: Seen) {
        let end = self.began.elapsed();
        let mut requests = self.requests();
        if requests.len() < REQUESTS_MAX {
            requests.push(Request { start, end, visitor: visitor.to_owned(), seen });
        }
    }

    fn body(&self, deploy: &str, body: &Bytes) {
        let mut bodies = self.bodies.lock().unwrap_or_else(PoisonError::into_inner);
        let known = bodies.entry(deploy.to_owned()).or_default();
        if known.len() < 4 && !known.contains(body) {
            known.insert(body.clone());
        }
    }
}

/// The crowd.
pub struct Crowd {
    shared: Arc<Shared>,
    visitors: Vec<JoinHandle<()>>,
}

impl Crowd {
    /// Starts it, for one path of one host. Times count from `began`. Must be called within a
    /// runtime.
    pub fn start(
        edges: &[(String, SocketAddr)],
        host: &str,
        path: &str,
        trust: &Trust,
        began: Instant,
    ) -> Self {
        let shared = Arc::new(Shared {
            began,
            stop: AtomicBool::new(false),
            requests: Mutex::default(),
            bodies: Mutex::default(),
        });
        let mut visitors = Vec::new();
        for (name, addr) in edges {
            let one = |version, patience, kind: &str| Visitor {
                who: format!("{name} {version:?} {kind}"),
                version,
                addr: *addr,
                host: host.to_owned(),
                path: path.to_owned(),
                trust: trust.clone(),
                patience,
                shared: Arc::clone(&shared),
            };
            for version in Version::ALL {
                visitors.push(tokio::spawn(one(version, LONG, "patient").keep()));
            }
            visitors.push(tokio::spawn(one(Version::H2, SHORT, "impatient").keep()));
            visitors.push(tokio::spawn(one(Version::H3, SHORT, "impatient").keep()));
            visitors.push(tokio::spawn(one(Version::H1, LONG, "fresh").renew()));
        }
        Self { shared, visitors }
    }

    /// Since the beginning, on the clock of the requests.
    pub fn now(&self) -> Duration {
        self.shared.began.elapsed()
    }

    /// The requests that have ended since the last call.
    pub fn take(&self) -> Vec<Request> {
        std::mem::take(&mut *self.shared.requests())
    }

    /// Whether some request to this edge which began after `since` saw this deploy.
    pub fn saw(&self, edge: &str, deploy: &str, since: Duration) -> bool {
        let prefix = format!("{edge} ");
        self.shared.requests().iter().rev().any(|request| {
            request.start > since
                && request.visitor.starts_with(&prefix)
                && matches!(&request.seen, Seen::Deploy(seen) if seen == deploy)
        })
    }

    /// Deploys that were answered with another body than this one, or with several.
    pub fn torn(&self, right: &BTreeMap<String, Bytes>) -> Vec<String> {
        let bodies = self.shared.bodies.lock().unwrap_or_else(PoisonError::into_inner);
        let wrong = |(deploy, seen): (&String, &BTreeSet<Bytes>)| {
            let right = right.get(deploy)?;
            let fits = seen.len() == 1 && seen.contains(right);
            (!fits).then(|| format!("{deploy}: {seen:?} instead of {right:?}"))
        };
        bodies.iter().filter_map(wrong).collect()
    }

    /// Ends it. Requests under way are given up.
    pub async fn finish(self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for visitor in self.visitors {
            visitor.abort();
            drop(visitor.await);
        }
    }
}

#[derive(Clone)]
struct Visitor {
    who: String,
    version: Version,
    addr: SocketAddr,
    host: String,
    path: String,
    trust: Trust,
    patience: Duration,
    shared: Arc<Shared>,
}

impl Visitor {
    /// One connection for as long as it lasts, then another.
    async fn keep(self) {
        let mut connection = None;
        while !self.shared.ended() {
            let Some(open) = &mut connection else {
                connection = self.open().await;
                continue;
            };
            if self.ask(open).await {
                tokio::time::sleep(PAUSE).await;
            } else {
                connection = None;
                tokio::time::sleep(AFTER_FAILURE).await;
            }
        }
    }

    /// A connection for each request, without waiting for the one before.
    async fn renew(self) {
        let room = Arc::new(Semaphore::new(FRESH_MAX));
        let mut versions = Version::ALL.into_iter().cycle();
        let mut asking = tokio::task::JoinSet::new();
        while !self.shared.ended() {
            while asking.try_join_next().is_some() {}
            let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
            let mut one = self.clone();
            one.version = versions.next().unwrap_or(one.version);
            asking.spawn(async move {
                let _place = place;
                if let Some(mut connection) = one.open().await {
                    one.ask(&mut connection).await;
                }
            });
            tokio::time::sleep(FRESH_PAUSE).await;
        }
    }

    async fn open(&self) -> Option<Connection> {
        let start = self.shared.began.elapsed();
        let opening = Connection::open(self.version, self.addr, &self.host, &self.trust);
        match timeout(self.patience, Box::pin(opening)).await {
            Ok(Ok(connection)) => return Some(connection),
            Ok(Err(error)) => self.failed(start, &format!("{error:#}")),
            Err(_) => self.failed(start, "no connection in time"),
        }
        tokio::time::sleep(AFTER_FAILURE).await;
        None
    }

    /// Whether the connection can be used again.
    async fn ask(&self, connection: &mut Connection) -> bool {
        let start = self.shared.began.elapsed();
        match timeout(self.patience, Box::pin(connection.get(&self.path))).await {
            Ok(Ok(answer)) if answer.status == 200 => {
                let deploy = answer.header(DEPLOY).to_owned();
                self.shared.body(&deploy, &answer.body);
                self.shared.write(&self.who, start, Seen::Deploy(deploy));
                true
            }
            Ok(Ok(answer)) => {
                self.shared.write(&self.who, start, Seen::Refused(answer.status));
                true
            }
            Ok(Err(error)) => {
                self.failed(start, &format!("{error:#}"));
                false
            }
            Err(_) => {
                self.failed(start, "no answer in time");
                false
            }
        }
    }

    fn failed(&self, start: Duration, reason: &str) {
        self.shared.write(&self.who, start, Seen::Failed(reason.to_owned()));
    }
}
