//! A link that can be made bad: a proxy on loopback, for UDP and TCP, between whoever is given its
//! address and the real one. No packet filter and no rights are needed.
//!
//! Each direction has a [`Way`], which can be changed at any time: delay, jitter, loss,
//! duplication, reordering, a rate, or nothing at all. Chance comes from a seed; queues are bounded
//! by [`line::QUEUE_BYTES_MAX`] and [`line::QUEUE_ITEMS_MAX`]. A proxy ends when it is dropped, and
//! with it every connection through it.
//!
//! Between nodes it is used by the *caller*: an edge whose configuration names proxies as its
//! masters asks through them ([`MasterLinks`]). Certificates name nodes and
//! not addresses, so nobody minds.

pub mod line;
mod masters;
mod mesh;
mod tcp;
mod udp;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use rand::rngs::StdRng;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use line::Way;
pub use masters::{MasterLinks, configuration};
pub use mesh::MasterMesh;

use crate::seed;
use line::Line;

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From whoever connects to the real address.
    There,
    /// From the real address to whoever connected.
    Back,
}

/// What passed and what did not, in datagrams (UDP) and reads (TCP).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Passed {
    /// Handed on.
    pub passed: u64,
    /// Lost, by chance, because the link was cut or because a queue was full.
    pub lost: u64,
}

/// Both directions of a link, and what all its connections share.
struct Link {
    there: watch::Sender<Way>,
    back: watch::Sender<Way>,
    passed: AtomicU64,
    lost: AtomicU64,
    seed: u64,
    /// Connections so far, for a chance of its own for each.
    connections: AtomicU64,
}

impl Link {
    fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            there: watch::Sender::new(Way::default()),
            back: watch::Sender::new(Way::default()),
            passed: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            seed,
            connections: AtomicU64::new(0),
        })
    }

    fn way(&self, direction: Direction) -> &watch::Sender<Way> {
        match direction {
            Direction::There => &self.there,
            Direction::Back => &self.back,
        }
    }

    /// The chance of both directions of the next connection.
    fn lines(&self) -> (Line, Line) {
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        let rng = |way: u64| -> StdRng {
            seed::rng(self.seed.wrapping_mul(0x9e37_79b9).wrapping_add(number * 2 + way))
        };
        let now = Instant::now();
        (Line::new(rng(0), now), Line::new(rng(1), now))
    }

    fn count(&self, passed: bool) {
        let counter = if passed { &self.passed } else { &self.lost };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A running proxy.
pub struct Proxy {
    addr: SocketAddr,
    target: SocketAddr,
    link: Arc<Link>,
    work: JoinHandle<()>,
}

impl Proxy {
    /// A link for datagrams to this address, over a port the system chooses.
    ///
    /// # Errors
    /// When no socket can be had.
    pub async fn udp(target: SocketAddr, seed: u64) -> Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.context("a socket for a proxy")?;
        let addr = socket.local_addr()?;
        let link = Link::new(seed);
        let work = tokio::spawn(udp::run(socket, target, Arc::clone(&link)));
        Ok(Self { addr, target, link, work })
    }

    /// A link for streams to this address, over a port the system chooses.
    ///
    /// # Errors
    /// When no socket can be had.
    pub async fn tcp(target: SocketAddr, seed: u64) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("a socket for a proxy")?;
        let addr = listener.local_addr()?;
        let link = Link::new(seed);
        let work = tokio::spawn(tcp::run(listener, target, Arc::clone(&link)));
        Ok(Self { addr, target, link, work })
    }

    /// Where to connect to.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where it leads.
    pub fn target(&self) -> SocketAddr {
        self.target
    }

    /// From now on this direction is so.
    pub fn set(&self, direction: Direction, way: Way) {
        self.link.way(direction).send_replace(way);
    }

    /// From now on both directions are so.
    pub fn set_both(&self, way: Way) {
        self.set(Direction::There, way);
        self.set(Direction::Back, way);
    }

    /// What passed so far, both ways together.
    pub fn passed(&self) -> Passed {
        let passed = self.link.passed.load(Ordering::Relaxed);
        Passed { passed, lost: self.link.lost.load(Ordering::Relaxed) }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.work.abort();
    }
}

#[cfg(test)]
mod tests;
