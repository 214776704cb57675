//! The sockets of the `dns` role: UDP and TCP on one port.
//!
//! [`bind`] takes the port, [`DnsListener::serve`] answers until shutdown, [`run`] is both. What
//! is answered is decided by [`super::answer`]; this module moves packets, bounds what a peer can
//! hold, and counts. Every reply needs only what is in memory, so nothing waits for another node.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use atoll_net::{shutdown::Shutdown, task::Tasks};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};

use super::{
    answer::{Answer, Answerer, Transport},
    config::{BadDnsConfig, DnsConfig},
    route::RouteTable,
    zone::{DnsView, Zone},
};

/// Longest query we read, in bytes. Real ones stay below 1,500; the limit bounds what a
/// connection can hold.
const QUERY_BYTES_MAX: usize = 4096;
/// Most TCP connections at once; those beyond are closed at once.
const CONNECTIONS_MAX: usize = 256;
/// Most queries of one TCP connection, so that nobody keeps a place for ever (RFC 7766 section
/// 6.2.3 lets a server close when it likes).
const CONNECTION_QUERIES_MAX: usize = 1000;
/// How long a TCP peer may take for one whole query, or to take one reply.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// How long replies under way may take at shutdown.
const DRAIN_MAX: Duration = Duration::from_secs(1);
/// Pause after an error of a socket, so that a lasting one does not spin.
const ERROR_PAUSE: Duration = Duration::from_millis(20);
/// How often a port from the system is tried that is free for UDP but not for TCP.
const BIND_TRIES: usize = 16;

/// Why DNS cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] BadDnsConfig),
    /// The address cannot be had.
    #[error("cannot listen for dns at {listen}")]
    Listen {
        /// The configured address.
        listen: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// Bound sockets, not yet answering.
#[derive(Debug)]
pub struct DnsListener {
    udp: UdpSocket,
    tcp: TcpListener,
    addr: SocketAddr,
    zone: Arc<Zone>,
    routes: Arc<RouteTable>,
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
    bind(&config).await?.serve(view, shutdown).await;
    Ok(())
}

/// Takes the configured port for UDP and TCP; port 0 takes one that is free for both.
///
/// # Errors
/// When the configuration cannot be served or the address cannot be bound.
pub async fn bind(config: &DnsConfig) -> Result<DnsListener, BindError> {
    let listen = config.listen;
    let (udp, tcp, addr) =
        bind_both(listen).await.map_err(|source| BindError::Listen { listen, source })?;
    let zone = Arc::new(Zone::new(config, addr)?);
    let routes = Arc::new(RouteTable::new(&config.regions, &config.region_order));
    Ok(DnsListener { udp, tcp, addr, zone, routes })
}

async fn bind_both(listen: SocketAddr) -> io::Result<(UdpSocket, TcpListener, SocketAddr)> {
    let tries = if listen.port() == 0 { BIND_TRIES } else { 1 };
    let mut taken = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..tries {
        let udp = UdpSocket::bind(listen).await?;
        let addr = udp.local_addr()?;
        match TcpListener::bind(addr).await {
            Ok(tcp) => return Ok((udp, tcp, addr)),
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

    /// Answers by the newest `view` until shutdown. When the view's sender is gone, the last view
    /// stays in force: old addresses are better than none.
    pub async fn serve(self, mut view: watch::Receiver<Arc<DnsView>>, shutdown: Shutdown) {
        let first = view.borrow_and_update().clone();
        let answerer = Answerer::new(self.zone, self.routes, first);
        let current = Arc::new(ArcSwap::from_pointee(answerer));
        tracing::info!(addr = %self.addr, "answering dns");

        let tasks = Tasks::new();
        tasks.spawn("dns_view", until(shutdown.clone(), follow(view, current.clone())));
        tasks.spawn("dns_udp", until(shutdown.clone(), serve_udp(self.udp, current.clone())));
        tasks.spawn("dns_tcp", serve_tcp(self.tcp, current, shutdown.clone()));
        shutdown.wait().await;
        tasks.drain(DRAIN_MAX * 2).await;
    }
}

/// Runs `work`, which never ends by itself, until shutdown.
async fn until(shutdown: Shutdown, work: impl Future<Output = ()>) {
    tokio::select! {
        () = shutdown.wait() => {}
        () = work => {}
    }
}

/// Puts every new view in force.
async fn follow(mut view: watch::Receiver<Arc<DnsView>>, current: Arc<ArcSwap<Answerer>>) {
    while view.changed().await.is_ok() {
        let next = view.borrow_and_update().clone();
        current.store(Arc::new(current.load().with_view(next)));
    }
}

async fn serve_udp(socket: UdpSocket, current: Arc<ArcSwap<Answerer>>) {
    let mut buffer = vec![0; QUERY_BYTES_MAX];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(%error, "receiving a dns query failed");
                sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        let started = Instant::now();
        let Some(answer) = answer(&current, &buffer[..length], from.ip(), Transport::Udp) else {
            continue;
        };
        if let Err(error) = socket.send_to(&answer.packet, from).await {
            tracing::debug!(%error, %from, "sending a dns reply failed");
        }
        count(&answer, Transport::Udp, started);
    }
}

async fn serve_tcp(listener: TcpListener, current: Arc<ArcSwap<Answerer>>, shutdown: Shutdown) {
    let connections = Tasks::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
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
            let Ok(place) = places.clone().try_acquire_owned() else {
                metrics::counter!("atoll_dns_connections_refused_total").increment(1);
                continue;
            };
            let serve = serve_connection(stream, from.ip(), current.clone(), place);
            connections.spawn("dns_connection", until(shutdown.clone(), serve));
        }
    };
    until(shutdown.clone(), accept).await;
    connections.drain(DRAIN_MAX).await;
}

/// Answers the queries of one connection in turn. A peer may send ahead; what it sent waits in
/// the socket, so one query and one reply is all that a connection holds.
async fn serve_connection(
    mut stream: TcpStream,
    from: IpAddr,
    current: Arc<ArcSwap<Answerer>>,
    _place: OwnedSemaphorePermit,
) {
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::with_capacity(QUERY_BYTES_MAX, reader);
    let mut query = Vec::with_capacity(512);
    for _ in 0..CONNECTION_QUERIES_MAX {
        match timeout(IDLE_MAX, read_query(&mut reader, &mut query)).await {
            Ok(Ok(())) => {}
            // Silence, the end, or nonsense: there is nobody to talk to.
            Ok(Err(_)) | Err(_) => return,
        }
        let started = Instant::now();
        let Some(answer) = answer(&current, &query, from, Transport::Tcp) else {
            return;
        };
        let Some(framed) = framed(&answer.packet) else {
            return;
        };
        match timeout(IDLE_MAX, writer.write_all(&framed)).await {
            Ok(Ok(())) => count(&answer, Transport::Tcp, started),
            Ok(Err(_)) | Err(_) => return,
        }
    }
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
fn framed(packet: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(packet.len()).ok()?;
    let mut framed = Vec::with_capacity(2 + packet.len());
    framed.extend(length.to_be_bytes());
    framed.extend(packet);
    Some(framed)
}

/// One packet's reply. A panic costs that packet its reply and not everyone theirs.
fn answer(
    current: &ArcSwap<Answerer>,
    packet: &[u8],
    from: IpAddr,
    transport: Transport,
) -> Option<Answer> {
    let answerer = current.load();
    match catch_unwind(AssertUnwindSafe(|| answerer.answer(packet, from, transport))) {
        Ok(Some(answer)) => Some(answer),
        Ok(None) => {
            metrics::counter!("atoll_dns_packets_dropped_total").increment(1);
            None
        }
        Err(_) => {
            metrics::counter!("atoll_dns_panics_total").increment(1);
            tracing::error!("answering a dns query panicked");
            None
        }
    }
}

fn count(answer: &Answer, transport: Transport, started: Instant) {
    let transport = match transport {
        Transport::Udp => "udp",
        Transport::Tcp => "tcp",
    };
    metrics::counter!(
        "atoll_dns_queries_total",
        "type" => answer.asked, "rcode" => answer.code, "transport" => transport
    )
    .increment(1);
    metrics::histogram!("atoll_dns_answer_seconds", "transport" => transport)
        .record(started.elapsed().as_secs_f64());
}

#[cfg(test)]
mod tests;
