//! A crowd of visitors that looks for an old version after a publish has returned.
//!
//! Every visitor asks for one file again and again. The test says which bodies are right from now
//! on ([`Hammer::allow`]): both while a publish runs, one after it returned. An answer must be
//! right by some list that was in force between the start of its request and its end.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::http::{Connection, Trust, Version};

#[derive(Default)]
struct Shared {
    /// Right bodies, one list after the other.
    history: Mutex<Vec<Vec<Bytes>>>,
    stop: AtomicBool,
    answers: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

impl Shared {
    fn phase(&self) -> usize {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).len() - 1
    }

    fn check(&self, who: &str, from: usize, status: u16, body: &Bytes) {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let right = history[from..].iter().flatten().any(|allowed| allowed == body);
        self.answers.fetch_add(1, Ordering::Relaxed);
        if status != 200 || !right {
            let text = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
            let allowed = &history[from..];
            self.note(format!("{who}: {status} {text:?}, right were {allowed:?}"));
        }
    }

    fn note(&self, line: String) {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        if wrong.len() < 20 {
            wrong.push(line);
        }
    }
}

/// The crowd.
pub struct Hammer {
    shared: Arc<Shared>,
    visitors: Vec<JoinHandle<()>>,
}

impl Hammer {
    /// Starts one visitor per edge and version, for one path of one host.
    pub fn start(
        edges: &[(String, SocketAddr)],
        host: &str,
        path: &str,
        trust: &Trust,
        allowed: Vec<Bytes>,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        shared.history.lock().unwrap_or_else(PoisonError::into_inner).push(allowed);
        let mut visitors = Vec::new();
        for (name, addr) in edges {
            for version in Version::ALL {
                let visitor = Visitor {
                    who: format!("{name} {version:?}"),
                    version,
                    addr: *addr,
                    host: host.to_owned(),
                    path: path.to_owned(),
                    trust: trust.clone(),
                };
                visitors.push(tokio::spawn(visitor.run(Arc::clone(&shared))));
            }
        }
        Self { shared, visitors }
    }

    /// From now on these bodies are right.
    pub fn allow(&self, bodies: Vec<Bytes>) {
        self.shared.history.lock().unwrap_or_else(PoisonError::into_inner).push(bodies);
    }

    /// Answers seen so far.
    pub fn answers(&self) -> u64 {
        self.shared.answers.load(Ordering::Relaxed)
    }

    /// Ends it; the number of answers, all of them right.
    ///
    /// # Errors
    /// When one was wrong or missing.
    pub async fn finish(self) -> Result<u64> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for visitor in self.visitors {
            visitor.await.context("a visitor panicked")?;
        }
        let wrong = self.shared.wrong.lock().map_err(|_| anyhow!("a visitor panicked"))?;
        ensure!(wrong.is_empty(), "wrong answers:\n{}", wrong.join("\n"));
        Ok(self.shared.answers.load(Ordering::Relaxed))
    }
}

struct Visitor {
    who: String,
    version: Version,
    addr: SocketAddr,
    host: String,
    path: String,
    trust: Trust,
}

impl Visitor {
    async fn run(self, shared: Arc<Shared>) {
        let opening = Connection::open(self.version, self.addr, &self.host, &self.trust);
        let mut connection = match opening.await {
            Ok(connection) => connection,
            Err(error) => return shared.note(format!("{}: {error:#}", self.who)),
        };
        while !shared.stop.load(Ordering::Relaxed) {
            let from = shared.phase();
            match connection.get(&self.path).await {
                Ok(answer) => shared.check(&self.who, from, answer.status, &answer.body),
                Err(error) => return shared.note(format!("{}: {error:#}", self.who)),
            }
        }
    }
}
