//! The sockets of the `dns` role: UDP and TCP on one port, and TLS on another.
//!
//! [`bind`] takes the ports, [`DnsListener::serve`] answers until shutdown, [`run`] is both. What
//! is answered is decided by [`super::answer`]; this module moves packets, bounds what a peer can
//! hold, and counts. Every reply needs only what is in memory, so nothing waits for another node.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use atoll_net::{shutdown::Shutdown, task::Tasks};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpListener,
    sync::watch,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{
    answer::{Answerer, Asker, Identity, Transport},
    config::{BadDnsConfig, DnsConfig},
    follow::{self, Follower},
    geo::database::DatabaseError,
    limit::Limiter,
    places::{Held, Places},
    route::Routes,
    subnet::Subnet,
    tally,
    udp::{self, Shared},
    zone::{DnsView, Zones},
};
use crate::clock;

/// Longest query we read, in bytes. Real ones stay below 1,500; the limit bounds what a
/// connection can hold.
const QUERY_BYTES_MAX: usize = 4096;
/// Most queries of one TCP connection, so that nobody keeps a place for ever (RFC 7766 section
/// 6.2.3 lets a server close when it likes).
const CONNECTION_QUERIES_MAX: usize = 100_000;
/// Replies to queries that were sent ahead are gathered up to this many bytes.
const REPLIES_BYTES: usize = 16 * 1024;
/// How long a TCP peer may take for one whole query, or to take one reply.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// How long replies under way may take at shutdown.
const DRAIN_MAX: Duration = Duration::from_secs(1);
/// Pause after an error of a socket, so that a lasting one does not spin.
const ERROR_PAUSE: Duration = Duration::from_millis(20);
/// How often a port from the system is tried that is free for TCP but not for UDP.
const BIND_TRIES: usize = 16;
/// Most threads for UDP.
const THREADS_MAX: usize = 64;

/// Why DNS cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] BadDnsConfig),
    /// A geographic database cannot be read.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The address cannot be had.
    #[error("cannot listen for dns at {listen}")]
    Listen {
        /// The configured address.
        listen: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// TLS without a certificate.
    #[error("dns.tls_listen needs `tls`, the certificate for visitors")]
    NoCertificate,
}

/// Bound sockets, not yet answering.
pub struct DnsListener {
    udp: Vec<std::net::UdpSocket>,
    tcp: TcpListener,
    tls: Option<(TcpListener, TlsAcceptor)>,
    addr: SocketAddr,
    follower: Follower,
    limiter: Option<Limiter>,
    /// Blocks that are not limited.
    exempt: Vec<Subnet>,
}

impl std::fmt::Debug for DnsListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DnsListener").field("addr", &self.addr).finish_non_exhaustive()
    }
}

/// Binds and serves until shutdown.
///
/// # Errors
/// When the configuration cannot be served or the address cannot be bound.
pub async fn run(
    config: DnsConfig,
    view: watch::Receiver<Arc<DnsView>>,
    shutdown: Shutdown,
) -> Result<(), BindError> {
    bind(&config, None).await?.serve(view, shutdown).await;
    Ok(())
}

/// Takes the configured port for UDP and TCP; port 0 takes one that is free for both. Reads the
/// geographic databases, which takes a while for large ones. `tls` is what a TLS listener needs.
///
/// # Errors
/// When the configuration cannot be served or the address cannot be bound.
pub async fn bind(
    config: &DnsConfig,
    tls: Option<Arc<rustls::ServerConfig>>,
) -> Result<DnsListener, BindError> {
    let listen = config.listen;
    let failed = |source| BindError::Listen { listen, source };
    let (udp, tcp, addr) = bind_both(listen, threads(config)).await.map_err(failed)?;
    let tls = match (config.tls_listen, tls) {
        (None, _) => None,
        (Some(_), None) => return Err(BindError::NoCertificate),
        (Some(listen), Some(config)) => {
            let failed = |source| BindError::Listen { listen, source };
            let listener = TcpListener::bind(listen).await.map_err(failed)?;
            Some((listener, TlsAcceptor::from(config)))
        }
    };
    let zones = Arc::new(Zones::new(config, addr)?);
    let identity = Arc::new(Identity::new(config, rand::random())?);
    let limiter = Limiter::new(&config.rate_limit, rand::random());
    let own = config.clone();
    let read = move || follow::read(&own);
    let (databases, atlas) = atoll_net::task::spawn_blocking("dns-atlas", read)
        .await
        .map_err(|error| failed(io::Error::other(error)))??;
    let view = Arc::new(DnsView::default());
    let routes = Arc::new(Routes::new(atlas, &view.edges));
    let answerer = Answerer::new(zones, routes, view, identity);
    let follower = Follower::new(config.clone(), databases, answerer);
    let exempt = config.rate_limit.exempt.clone();
    Ok(DnsListener { udp, tcp, tls, addr, follower, limiter, exempt })
}

fn threads(config: &DnsConfig) -> usize {
    let processors = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    config.udp_threads.unwrap_or_else(processors).clamp(1, THREADS_MAX)
}

async fn bind_both(
    listen: SocketAddr,
    threads: usize,
) -> io::Result<(Vec<std::net::UdpSocket>, TcpListener, SocketAddr)> {
    let tries = if listen.port() == 0 { BIND_TRIES } else { 1 };
    let mut taken = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..tries {
        let tcp = TcpListener::bind(listen).await?;
        let addr = tcp.local_addr()?;
        match udp::bind(addr, threads) {
            Ok(udp) => return Ok((udp, tcp, addr)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => taken = error,
            Err(error) => return Err(error),
        }
    }
    Err(taken)
}

impl DnsListener {
    /// The address of both sockets.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// The address of the TLS listener, if there is one.
    pub fn tls_addr(&self) -> Option<SocketAddr> {
        self.tls.as_ref().and_then(|(listener, _)| listener.local_addr().ok())
    }

    /// What is in force at any time, for explanations.
    pub fn current(&self) -> Arc<ArcSwap<Answerer>> {
        self.follower.current()
    }

    /// Answers by the newest `view` until shutdown. When the view's sender is gone, the last view
    /// stays in force: old addresses are better than none.
    pub async fn serve(self, view: watch::Receiver<Arc<DnsView>>, shutdown: Shutdown) {
        let current = self.follower.current();
        let shared = Arc::new(Shared {
            current: current.clone(),
            limiter: self.limiter,
            stop: std::sync::atomic::AtomicBool::new(false),
        });
        let threads = match udp::start(self.udp, &shared) {
            Ok(threads) => threads,
            Err(error) => {
                tracing::error!(%error, "cannot start threads for dns");
                // Those that were started.
                shared.stop.store(true, Ordering::Relaxed);
                return;
            }
        };
        tracing::info!(addr = %self.addr, threads = threads.len(), "answering dns");
        let tasks = Tasks::new();
        tasks.spawn("dns_follow", until(shutdown.clone(), self.follower.run(view)));
        let places = || Arc::new(Places::new(self.exempt.clone()));
        let of_tcp = serve_tcp(self.tcp, None, places(), current.clone(), shutdown.clone());
        tasks.spawn("dns_tcp", of_tcp);
        if let Some((listener, acceptor)) = self.tls {
            let of_tls = serve_tcp(listener, Some(acceptor), places(), current, shutdown.clone());
            tasks.spawn("dns_tls", of_tls);
        }
        shutdown.wait().await;
        shared.stop.store(true, Ordering::Relaxed);
        tasks.drain(DRAIN_MAX * 2).await;
        // Each looks several times a second.
        let join = move || {
            let ended: Vec<bool> =
                threads.into_iter().map(|thread| thread.join().is_ok()).collect();
            ended.into_iter().all(|fine| fine)
        };
        if !matches!(atoll_net::task::spawn_blocking("dns-join", join).await, Ok(true)) {
            tracing::warn!("a thread for dns ended with a panic");
        }
    }
}

/// Runs `work`, which never ends by itself, until shutdown.
async fn until(shutdown: Shutdown, work: impl Future<Output = ()>) {
    tokio::select! {
        () = shutdown.wait() => {}
        () = work => {}
    }
}

async fn serve_tcp(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    places: Arc<Places>,
    current: Arc<ArcSwap<Answerer>>,
    shutdown: Shutdown,
) {
    let connections = Tasks::new();
    let accept = async {
        loop {
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accepting a dns connection failed");
                    sleep(ERROR_PAUSE).await;
                    continue;
                }
            };
            let Some(place) = places.take(from.ip()) else {
                metrics::counter!("atoll_dns_connections_refused_total").increment(1);
                continue;
            };
            // Replies leave at once; without it they are only slower.
            drop(stream.set_nodelay(true));
            let (current, tls) = (current.clone(), tls.clone());
            let serve = async move {
                let Some(tls) = tls else {
                    return serve_connection(stream, from.ip(), current, place).await;
                };
                match timeout(IDLE_MAX, tls.accept(stream)).await {
                    Ok(Ok(stream)) => serve_connection(stream, from.ip(), current, place).await,
                    Ok(Err(_)) | Err(_) => {
                        metrics::counter!("atoll_dns_handshakes_failed_total").increment(1);
                    }
                }
            };
            connections.spawn("dns_connection", until(shutdown.clone(), serve));
        }
    };
    until(shutdown.clone(), accept).await;
    connections.drain(DRAIN_MAX).await;
}

/// Answers the queries of one connection in turn. A peer may send ahead (RFC 7766 section 6.2.1.1):
/// what it sent is answered together, and what is beyond that waits in the socket.
async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    from: IpAddr,
    current: Arc<ArcSwap<Answerer>>,
    _place: Held,
) {
    let mut stream = BufReader::with_capacity(2 * QUERY_BYTES_MAX, stream);
    let mut query = Vec::with_capacity(512);
    let mut replies: Vec<u8> = Vec::new();
    let mut reply = Vec::new();
    for number in 1..=CONNECTION_QUERIES_MAX {
        match timeout(IDLE_MAX, read_query(&mut stream, &mut query)).await {
            Ok(Ok(())) => {}
            // Silence, the end, or nonsense: there is nobody to talk to.
            Ok(Err(_)) | Err(_) => return,
        }
        let more =
            answer(&current, &query, from, &mut reply) && framed(&reply, &mut replies).is_some();
        // Those that are here already are answered before anything is written.
        let last = !more || number == CONNECTION_QUERIES_MAX;
        if !last && replies.len() < REPLIES_BYTES && has_whole_query(stream.buffer()) {
            continue;
        }
        if !replies.is_empty() {
            let write = async {
                stream.write_all(&replies).await?;
                stream.flush().await
            };
            match timeout(IDLE_MAX, write).await {
                Ok(Ok(())) => replies.clear(),
                Ok(Err(_)) | Err(_) => return,
            }
        }
        if last {
            return;
        }
    }
}

fn has_whole_query(buffer: &[u8]) -> bool {
    let length = buffer.first_chunk().map(|length| usize::from(u16::from_be_bytes(*length)));
    length.is_some_and(|length| buffer.len() >= 2 + length)
}

/// Reads one query behind its length (RFC 1035 section 4.2.2).
async fn read_query(
    reader: &mut (impl AsyncReadExt + Unpin),
    query: &mut Vec<u8>,
) -> io::Result<()> {
    let length = usize::from(reader.read_u16().await?);
    if length > QUERY_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    query.resize(length, 0);
    reader.read_exact(query).await?;
    Ok(())
}

/// Length and packet in one piece, so that they leave in one segment (RFC 7766 section 8).
fn framed(packet: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let length = u16::try_from(packet.len()).ok()?;
    out.extend(length.to_be_bytes());
    out.extend(packet);
    Some(())
}

/// Writes one packet's reply into `reply`; false if there is none. A panic costs that packet its
/// reply and not everyone theirs.
fn answer(current: &ArcSwap<Answerer>, packet: &[u8], from: IpAddr, reply: &mut Vec<u8>) -> bool {
    let started = Instant::now();
    let answerer = current.load();
    let now = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    // The lower bits are all that cookies take.
    let asker = Asker { from, transport: Transport::Tcp, now_secs: now.as_secs() as u32 };
    let answered = catch_unwind(AssertUnwindSafe(|| {
        if let Some(counted) = answerer.answer_fast(packet, asker, reply) {
            tally::count_one(&counted, Transport::Tcp);
            return true;
        }
        reply.clear();
        let Some(answer) = answerer.answer(packet, asker) else { return false };
        tally::count(&answer, Transport::Tcp);
        reply.extend_from_slice(&answer.packet);
        true
    }));
    match answered {
        Ok(true) => {
            tally::took(Transport::Tcp, started.elapsed());
            true
        }
        Ok(false) => {
            metrics::counter!("atoll_dns_packets_dropped_total").increment(1);
            false
        }
        Err(_) => {
            metrics::counter!("atoll_dns_panics_total").increment(1);
            tracing::error!("answering a dns query panicked");
            false
        }
    }
}

#[cfg(test)]
mod tests;
