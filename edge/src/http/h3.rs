//! HTTP/3: the only file that knows the crates `h3` and `h3-quinn`.
//!
//! [`super::server`] starts [`serve`]; answers come from [`super::respond`].
//!
//! The released h3-quinn panics in `stop_sending` while a read is under way, which a malformed
//! request can bring about. So every connection and every request is a task of its own, where a
//! panic ends that connection or request and nothing else; and this file never stops a request's
//! stream. It reads it to the end, within bounds, after the answer: a stream that is dropped
//! before its end is stopped with a code that clients take for an error.

use std::io;
use std::net::UdpSocket;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use atoll_net::shutdown::Shutdown;
use atoll_net::task::Tasks;
use bytes::{Buf as _, Bytes};
use futures_util::stream::StreamExt as _;
use h3::error::Code;
use h3::server::{RequestResolver, RequestStream};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{IdleTimeout, MtuDiscoveryConfig, TokioRuntime, TransportConfig, VarInt};
use rustls::ServerConfig;
use tokio::time::{Instant, timeout};

use super::body::Body;
use super::reset::ResetSecret;
use super::respond::Responder;
use super::{
    CONNECTIONS_MAX, DRAIN, HEAD_BYTES_MAX, HEAD_TIMEOUT, IDLE_TIMEOUT, LINGER, Protocol, Request,
    STREAMS_MAX,
};

/// Above this number of connections, new ones must prove their address first.
const CONNECTIONS_TRUSTED: usize = 1024;
/// The largest datagram that quinn's batches carry safely.
const DATAGRAM_BYTES_MAX: u16 = 6500;
/// How much of a request's body is read, and for how long, before the stream is dropped.
pub(super) const BODY_BYTES_MAX: usize = 256 << 10;
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes handed to the stream at once.
const FRAME_BYTES: usize = 256 << 10;

type Stream = RequestStream<h3_quinn::BidiStream<Bytes>, Bytes>;
type Resolver = RequestResolver<h3_quinn::Connection, Bytes>;
type Connection = h3::server::Connection<h3_quinn::Connection, Bytes>;

/// Answers until shutdown, then lets what is under way finish for a while. Returns how many
/// connections had to be cut off.
///
/// # Errors
/// When the socket or the TLS configuration is not accepted.
pub async fn serve(
    socket: UdpSocket,
    tls: ServerConfig,
    secret: &ResetSecret,
    responder: Arc<Responder>,
    shutdown: Shutdown,
) -> io::Result<usize> {
    let tls = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(Arc::new(transport()));
    let endpoint =
        quinn::Endpoint::new(secret.endpoint(), Some(config), socket, Arc::new(TokioRuntime))?;
    let connections = Tasks::new();
    let mut stopping = pin!(shutdown.wait());
    loop {
        let incoming = tokio::select! {
            () = &mut stopping => break,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { break };
        let open = endpoint.open_connections();
        if open >= CONNECTIONS_MAX {
            metrics::counter!("atoll_edge_connections_refused_total", "listener" => "h3")
                .increment(1);
            incoming.refuse();
        } else if open >= CONNECTIONS_TRUSTED && !incoming.remote_address_validated() {
            if let Err(error) = incoming.retry() {
                tracing::debug!(%error, "a connection cannot be asked to come again");
            }
        } else {
            connections.spawn("h3", connection(incoming, responder.clone(), shutdown.clone()));
        }
    }
    // New connections are refused from here on, while those that exist finish.
    endpoint.set_server_config(None);
    let cut = connections.drain(DRAIN).await;
    endpoint.close(VarInt::from_u32(0x100), b"");
    if timeout(Duration::from_secs(1), endpoint.wait_idle()).await.is_err() {
        tracing::debug!("closed without hearing from every visitor");
    }
    Ok(cut)
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    let idle = IdleTimeout::try_from(IDLE_TIMEOUT).expect("a minute fits");
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(DATAGRAM_BYTES_MAX);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(8))
        .stream_receive_window(VarInt::from_u32(HEAD_BYTES_MAX as u32 * 2))
        .receive_window(VarInt::from_u32(1 << 20))
        .send_window(8 << 20)
        .max_idle_timeout(Some(idle))
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(Some(discovery));
    transport
}

async fn connection(incoming: quinn::Incoming, responder: Arc<Responder>, shutdown: Shutdown) {
    // Who has not asked for anything yet does not hold up the end.
    let set_up = tokio::select! {
        set_up = set_up(incoming) => set_up,
        () = shutdown.wait() => return,
    };
    let Some(mut connection) = set_up else { return };
    let requests = Arc::new(Tasks::new());
    if accept(&mut connection, &responder, &requests, &shutdown).await {
        drain(&mut connection, &requests).await;
    }
}

/// The handshakes of QUIC and of HTTP/3.
async fn set_up(incoming: quinn::Incoming) -> Option<Connection> {
    let handshake = async { incoming.accept().ok()?.await.ok() };
    let Ok(Some(quic)) = timeout(HEAD_TIMEOUT, handshake).await else {
        metrics::counter!("atoll_edge_handshakes_failed_total", "protocol" => "quic").increment(1);
        return None;
    };
    let mut builder = h3::server::builder();
    builder.max_field_section_size(HEAD_BYTES_MAX as u64);
    match builder.build::<_, Bytes>(h3_quinn::Connection::new(quic)).await {
        Ok(connection) => Some(connection),
        Err(error) => {
            tracing::debug!(%error, "an h3 connection cannot be set up");
            None
        }
    }
}

/// Takes requests until the connection ends, or until shutdown: then returns true.
async fn accept(
    connection: &mut Connection,
    responder: &Arc<Responder>,
    requests: &Tasks,
    shutdown: &Shutdown,
) -> bool {
    let mut stopping = pin!(shutdown.wait());
    loop {
        let accepted = tokio::select! {
            () = &mut stopping => return true,
            accepted = connection.accept() => accepted,
        };
        match accepted {
            Ok(Some(resolver)) => {
                requests.spawn("h3-request", request(resolver, responder.clone()))
            }
            Ok(None) => return false,
            Err(error) => {
                tracing::debug!(%error, "an h3 connection ended");
                return false;
            }
        }
    }
}

/// GOAWAY, then waits for the answers under way while the connection goes on being driven.
async fn drain(connection: &mut Connection, requests: &Tasks) {
    let busy = !requests.is_empty();
    if connection.shutdown(0).await.is_err() {
        return;
    }
    let finish = async {
        requests.drain(DRAIN).await;
        if busy {
            // For the bytes that the other side has not acknowledged.
            tokio::time::sleep(LINGER).await;
        }
    };
    let drive = async {
        // Late requests are rejected inside; a client that closes ends this early.
        while let Ok(Some(late)) = connection.accept().await {
            drop(late);
        }
    };
    tokio::select! {
        () = finish => {}
        () = drive => {}
    }
}

async fn request(resolver: Resolver, responder: Arc<Responder>) {
    let resolved = match timeout(HEAD_TIMEOUT, resolver.resolve_request()).await {
        Ok(Ok(resolved)) => resolved,
        Ok(Err(error)) => {
            tracing::debug!(%error, "an h3 request cannot be read");
            return;
        }
        Err(_) => return,
    };
    let (head, mut stream) = resolved;
    let (parts, ()) = head.into_parts();
    let request = Request {
        method: parts.method,
        uri: parts.uri,
        headers: parts.headers,
        protocol: Protocol::H3,
    };
    let response = responder.respond(&request).await;
    let mut head = http::Response::new(());
    *head.status_mut() = response.status;
    *head.headers_mut() = response.headers;
    if !send(&mut stream, head, response.body).await {
        // Without this, quinn would end the stream in an orderly way, and a short body could pass
        // for a whole one.
        stream.stop_stream(Code::H3_INTERNAL_ERROR);
        return;
    }
    if timeout(BODY_TIMEOUT, read_to_end(&mut stream)).await.is_err() {
        tracing::debug!("an h3 request did not end");
    }
}

/// Takes what is left of a request: usually nothing but its end.
async fn read_to_end(stream: &mut Stream) {
    let mut left = BODY_BYTES_MAX;
    while let Ok(Some(part)) = stream.recv_data().await {
        match left.checked_sub(part.remaining()) {
            Some(less) => left = less,
            None => return,
        }
    }
}

/// Sends an answer. False when it could not be completed.
async fn send(stream: &mut Stream, head: http::Response<()>, body: Body) -> bool {
    if !moved(stream.send_response(head)).await {
        return false;
    }
    match body {
        Body::Empty => {}
        Body::Whole(bytes) => {
            if !send_bytes(stream, bytes).await {
                return false;
            }
        }
        Body::Stream(mut parts) => {
            while let Some(part) = parts.next().await {
                let Ok(bytes) = part else { return false };
                if !send_bytes(stream, bytes).await {
                    return false;
                }
            }
        }
    }
    moved(stream.finish()).await
}

async fn send_bytes(stream: &mut Stream, mut bytes: Bytes) -> bool {
    while !bytes.is_empty() {
        let part = bytes.split_to(bytes.len().min(FRAME_BYTES));
        let length = part.len();
        if !moved(stream.send_data(part)).await {
            return false;
        }
        super::server::count_bytes(Protocol::H3, length);
    }
    true
}

/// Whether a step of sending was made in time.
async fn moved<E>(step: impl Future<Output = Result<(), E>>) -> bool {
    let deadline = Instant::now() + IDLE_TIMEOUT;
    matches!(tokio::time::timeout_at(deadline, step).await, Ok(Ok(())))
}

/// A small client, for the tests of the whole server.
#[cfg(test)]
pub(crate) mod client {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::net::SocketAddr;

    use quinn::crypto::rustls::QuicClientConfig;

    use super::*;

    pub(crate) struct Client {
        send: h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>,
        quic: quinn::Connection,
        endpoint: quinn::Endpoint,
        _drive: atoll_net::task::AbortOnDrop<()>,
    }

    impl Client {
        pub(crate) async fn connect(
            addr: SocketAddr,
            mut tls: rustls::ClientConfig,
            name: &str,
        ) -> Client {
            tls.alpn_protocols = vec![b"h3".to_vec()];
            let mut endpoint =
                quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
            let tls = QuicClientConfig::try_from(tls).unwrap();
            endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(tls)));
            let quic = endpoint.connect(addr, name).unwrap().await.unwrap();
            let connection = h3_quinn::Connection::new(quic.clone());
            let (mut driver, send) = h3::client::new(connection).await.unwrap();
            let drive = atoll_net::task::spawn("test-h3", async move {
                drop(std::future::poll_fn(|cx| driver.poll_close(cx)).await);
            });
            Client { send, quic, endpoint, _drive: atoll_net::task::AbortOnDrop::new(drive) }
        }

        /// Sends a request; the body is an error when the stream was aborted, which may also
        /// take the head away.
        pub(crate) async fn request(
            &mut self,
            request: http::Request<()>,
        ) -> Result<(http::Response<()>, Result<Vec<u8>, String>), String> {
            let text = |error: h3::error::StreamError| error.to_string();
            let mut stream = self.send.send_request(request).await.map_err(text)?;
            stream.finish().await.map_err(text)?;
            let response = stream.recv_response().await.map_err(text)?;
            let mut body = Vec::new();
            loop {
                match stream.recv_data().await {
                    Ok(Some(mut part)) => {
                        body.extend_from_slice(&part.copy_to_bytes(part.remaining()));
                    }
                    Ok(None) => return Ok((response, Ok(body))),
                    Err(error) => return Ok((response, Err(error.to_string()))),
                }
            }
        }

        /// Why the connection ended, once it has.
        pub(crate) async fn closed(&self) -> quinn::ConnectionError {
            self.quic.closed().await
        }

        pub(crate) fn close(self) {
            self.endpoint.close(VarInt::from_u32(0x100), b"");
        }
    }

    /// Opens a QUIC connection that speaks h3 by name only, and writes junk on its streams.
    pub(crate) async fn junk(
        addr: SocketAddr,
        mut tls: rustls::ClientConfig,
        name: &str,
        junk: &[Vec<u8>],
    ) {
        tls.alpn_protocols = vec![b"h3".to_vec()];
        let mut endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let tls = QuicClientConfig::try_from(tls).unwrap();
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(tls)));
        for bytes in junk {
            let Ok(quic) = endpoint.connect(addr, name).unwrap().await else {
                continue;
            };
            if let Ok((mut send, _recv)) = quic.open_bi().await {
                drop(send.write_all(bytes).await);
                send.finish().ok();
            }
            if let Ok(mut send) = quic.open_uni().await {
                drop(send.write_all(bytes).await);
            }
            drop(timeout(Duration::from_millis(20), quic.closed()).await);
        }
    }
}
