//! The socket and the QUIC settings of an endpoint. The figures behind them are in
//! `docs/decisions/0004-quic-for-chunk-bytes.md`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::{CryptoError, HmacKey};
use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::identity::Identity;
use crate::{NetError, tls};

/// Largest datagram. Ten of them still fit one batched send of the kernel (GSO); above about
/// 6,550 bytes the batch is lost and QUIC takes the loss for a black hole.
const DATAGRAM_BYTES_MAX: u16 = 6500;
const SOCKET_BUFFER_BYTES: usize = 8 << 20;
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
const IDLE_TIMEOUT_MS: u32 = 10_000;
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(3);
/// Streams a peer may have open before the server's own limit is known to it.
const STREAMS_INITIAL: u32 = 256;
const CID_BYTES: usize = 8;

/// The QUIC settings of one endpoint, for peers on this machine and for all others.
pub(crate) struct Settings {
    pub(crate) endpoint: quinn::EndpointConfig,
    server: [Arc<quinn::ServerConfig>; 2],
    client: [quinn::ClientConfig; 2],
}

impl Settings {
    pub(crate) fn new(identity: &Identity) -> Result<Settings, NetError> {
        let transports = [transport(false), transport(true)];
        let server_tls = tls::server(identity)?;
        let client_tls = tls::client(identity)?;
        let server = transports.each_ref().map(|transport| {
            let mut config = quinn::ServerConfig::with_crypto(server_tls.clone());
            config.transport_config(transport.clone());
            Arc::new(config)
        });
        let client = transports.map(|transport| {
            let mut config = quinn::ClientConfig::new(client_tls.clone());
            config.transport_config(transport);
            config
        });
        Ok(Settings { endpoint: endpoint_config(identity)?, server, client })
    }

    pub(crate) fn server(&self, peer: IpAddr) -> Arc<quinn::ServerConfig> {
        self.server[usize::from(is_local(peer))].clone()
    }

    pub(crate) fn client(&self, peer: IpAddr) -> quinn::ClientConfig {
        self.client[usize::from(is_local(peer))].clone()
    }
}

fn is_local(peer: IpAddr) -> bool {
    peer.to_canonical().is_loopback()
}

fn transport(local: bool) -> Arc<TransportConfig> {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(DATAGRAM_BYTES_MAX);
    let mut config = TransportConfig::default();
    config
        .mtu_discovery_config(Some(mtu))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(u64::from(CONNECTION_WINDOW_BYTES))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .keep_alive_interval(Some(KEEP_ALIVE_EVERY))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_INITIAL))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    if local {
        // Loopback carries 64 KiB. Discovery only probes while idle, so start at the bound.
        config.initial_mtu(DATAGRAM_BYTES_MAX);
    }
    Arc::new(config)
}

/// The key that outlives the process is derived from the node's private key, so that a restarted
/// node can tell its peers at once that their old connections are gone (stateless reset,
/// RFC 9000 section 10.3) instead of leaving them to time out.
fn endpoint_config(identity: &Identity) -> Result<quinn::EndpointConfig, NetError> {
    let secret =
        blake3::derive_key("atoll-net 2026-11 stateless reset", identity.key_pem.as_bytes());
    let mut config = quinn::EndpointConfig::new(Arc::new(ResetKey(secret)));
    config
        .cid_generator(|| Box::new(RandomCids))
        .max_udp_payload_size(DATAGRAM_BYTES_MAX)
        .map_err(NetError::identity)?;
    Ok(config)
}

/// Random connection ids. QUIC's default generator signs its ids with a key of the process, and
/// would so ignore packets of connections from before a restart.
struct RandomCids;

impl quinn::ConnectionIdGenerator for RandomCids {
    fn generate_cid(&mut self) -> quinn::ConnectionId {
        quinn::ConnectionId::new(&rand::random::<[u8; CID_BYTES]>())
    }

    fn cid_len(&self) -> usize {
        CID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        blake3::Hasher::new_keyed(&self.0).update(data).finalize_xof().fill(signature_out);
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let claimed: [u8; 32] = signature.try_into().map_err(|_| CryptoError)?;
        // Comparing two `blake3::Hash` takes constant time.
        if blake3::keyed_hash(&self.0, data) == blake3::Hash::from_bytes(claimed) {
            Ok(())
        } else {
            Err(CryptoError)
        }
    }
}

/// Opens a UDP socket with large buffers. With the kernel's default of 208 KiB a burst of new
/// connections loses packets; where the system caps the size, the cap is what we get.
pub(crate) fn socket(addr: SocketAddr) -> Result<std::net::UdpSocket, NetError> {
    let open = || {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        for sized in [
            socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES),
            socket.set_send_buffer_size(SOCKET_BUFFER_BYTES),
        ] {
            if let Err(error) = sized {
                tracing::debug!(%error, "the socket keeps its default buffer");
            }
        }
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        Ok(socket.into())
    };
    open().map_err(|source| NetError::Bind { addr, source })
}
