//! A node's place on the network: one UDP socket that both answers requests and makes calls.
//!
//! Every role opens one [`Endpoint`]. Each request is one bidirectional QUIC stream, so that a
//! slow or broken request never holds up another, and dropping a call resets its stream.

mod dial;
mod pool;
mod serve;
mod transport;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::NetError;
use crate::identity::{Identity, Peer};

/// How often unused connections are looked for.
const REAP_EVERY: Duration = Duration::from_secs(15);
/// How long [`Endpoint::close`] waits for the other sides to hear of it.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// Codes of orderly closes, as the other side sees them.
mod close {
    use quinn::VarInt;

    /// The endpoint was closed; requests without an answer may have been executed.
    pub(super) const STOPPED: VarInt = VarInt::from_u32(0);
    /// The server drained: every request it took was answered, and no other was started.
    pub(super) const DRAINED: VarInt = VarInt::from_u32(1);
    /// The certificate does not fit: nothing was executed.
    pub(super) const IDENTITY: VarInt = VarInt::from_u32(2);
    /// The caller does not need the connection any more.
    pub(super) const IDLE: VarInt = VarInt::from_u32(3);
    /// On a stream: whoever waited for it does not any more.
    pub(super) const CANCELLED: VarInt = VarInt::from_u32(4);
}

/// One UDP socket with the identity of this node. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct Endpoint(Arc<Inner>);

struct Inner {
    quinn: quinn::Endpoint,
    settings: transport::Settings,
    peer: Peer,
    addr: SocketAddr,
    pool: pool::Pool,
    meters: Meters,
}

/// Counters that every frame touches, looked up once.
struct Meters {
    bytes_in: metrics::Counter,
    bytes_out: metrics::Counter,
}

impl Endpoint {
    /// Opens a socket that can answer requests ([`Endpoint::serve`]) and make calls. Port 0 lets
    /// the system choose. Must be called inside a Tokio runtime.
    ///
    /// # Errors
    /// When the identity is unusable or the address cannot be bound.
    pub fn bind(addr: SocketAddr, identity: &Identity) -> Result<Endpoint, NetError> {
        let endpoint = Endpoint::open(addr, identity)?;
        // From now on connections queue up (bounded) until `serve` takes them.
        let server = endpoint.0.settings.server(endpoint.0.addr.ip());
        endpoint.0.quinn.set_server_config(Some((*server).clone()));
        Ok(endpoint)
    }

    /// Opens a socket on a free port, for calls only: over IPv6 and IPv4 where the system has
    /// both. Must be called inside a Tokio runtime.
    ///
    /// # Errors
    /// When the identity is unusable or no socket can be opened.
    pub fn client(identity: &Identity) -> Result<Endpoint, NetError> {
        let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        match Endpoint::open(both, identity) {
            Err(NetError::Bind { .. }) => {
                Endpoint::open(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), identity)
            }
            opened => opened,
        }
    }

    fn open(addr: SocketAddr, identity: &Identity) -> Result<Endpoint, NetError> {
        let peer = identity.peer()?;
        let settings = transport::Settings::new(identity)?;
        let socket = transport::socket(addr)?;
        let bind = |source| NetError::Bind { addr, source };
        let local = socket.local_addr().map_err(bind)?;
        let quinn = quinn::Endpoint::new(
            settings.endpoint.clone(),
            None,
            socket,
            Arc::new(quinn::TokioRuntime),
        )
        .map_err(bind)?;
        let meters = Meters {
            bytes_in: metrics::counter!("atoll_net_bytes_total", "direction" => "in"),
            bytes_out: metrics::counter!("atoll_net_bytes_total", "direction" => "out"),
        };
        let pool = pool::Pool::default();
        let inner = Arc::new(Inner { quinn, settings, peer, addr: local, pool, meters });
        crate::task::spawn("reap-connections", reap(Arc::downgrade(&inner)));
        Ok(Endpoint(inner))
    }

    /// The address of the socket, with the port the system chose.
    pub fn local_addr(&self) -> SocketAddr {
        self.0.addr
    }

    /// Who this node is.
    pub fn identity_peer(&self) -> &Peer {
        &self.0.peer
    }

    /// Closes every connection at once and waits a moment for the other sides to hear of it.
    /// Calls under way end as lost, a running [`Endpoint::serve`] returns. For an orderly end
    /// trigger the server's shutdown first and wait for it.
    pub async fn close(&self) {
        self.0.pool.clear();
        self.0.quinn.close(close::STOPPED, b"stopped");
        if tokio::time::timeout(CLOSE_WAIT, self.0.quinn.wait_idle()).await.is_err() {
            tracing::debug!("closed without hearing from every peer");
        }
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Endpoint({} on {})", self.0.peer, self.0.addr)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.pool.clear();
        self.quinn.close(close::STOPPED, b"stopped");
    }
}

async fn reap(endpoint: Weak<Inner>) {
    loop {
        tokio::time::sleep(REAP_EVERY).await;
        let Some(endpoint) = endpoint.upgrade() else {
            return;
        };
        endpoint.pool.drop_idle(Instant::now());
    }
}

/// Keeps a gauge one higher for as long as it lives.
struct Counted(metrics::Gauge);

impl Counted {
    fn new(gauge: metrics::Gauge) -> Counted {
        gauge.increment(1.0);
        Counted(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Who is at the other end of an established connection.
fn peer_of(connection: &quinn::Connection) -> Result<Peer, NetError> {
    let chain = connection
        .peer_identity()
        .and_then(|any| any.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok())
        .ok_or_else(|| NetError::identity("the peer showed no certificate"))?;
    let leaf = chain.first().ok_or_else(|| NetError::identity("the peer's chain is empty"))?;
    Peer::of_certificate(leaf)
}
