//! A visitor: HTTP/1.1, 2 and 3 to one edge, with the cluster's authority trusted and the name
//! resolved by hand.
//!
//! It decodes nothing, follows nothing and retries nothing, so that a test sees what was sent.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// For one connection or one answer. Generous: a deadline here is a hang, not slowness.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Which HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// HTTP/1.1 over TLS.
    H1,
    /// HTTP/2 over TLS.
    H2,
    /// HTTP/3 over QUIC.
    H3,
}

impl Version {
    /// Every version.
    pub const ALL: [Self; 3] = [Self::H1, Self::H2, Self::H3];

    fn alpn(self) -> &'static [u8] {
        match self {
            Self::H1 => b"http/1.1",
            Self::H2 => b"h2",
            Self::H3 => b"h3",
        }
    }
}

/// Which authority signs the servers' certificates.
#[derive(Debug, Clone)]
pub struct Trust(Arc<RootCertStore>);

impl Trust {
    /// Reads certificates from a PEM file.
    ///
    /// # Errors
    /// When there are none in it.
    pub fn load(path: &Path) -> Result<Self> {
        let mut store = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(path)? {
            store.add(certificate?)?;
        }
        if store.is_empty() {
            bail!("no certificate in {}", path.display());
        }
        Ok(Self(Arc::new(store)))
    }

    fn config(&self, alpn: &[u8]) -> Result<ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.0.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        Ok(config)
    }
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// All header fields.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Answer {
    /// A header field as text; empty when absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

type H3Sender = h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>;

enum Sender {
    H1(http1::SendRequest<Empty<Bytes>>),
    H2(http2::SendRequest<Empty<Bytes>>),
    H3 {
        sender: H3Sender,
        /// Must outlive the connection.
        _endpoint: quinn::Endpoint,
    },
}

/// One connection to one edge.
pub struct Connection {
    sender: Sender,
    authority: String,
}

impl Connection {
    /// Connects to an edge as the visitor of this host.
    ///
    /// # Errors
    /// When the handshake fails or takes too long.
    pub async fn open(
        version: Version,
        addr: SocketAddr,
        host: &str,
        trust: &Trust,
    ) -> Result<Self> {
        let authority = format!("{host}:{}", addr.port());
        let opening = async {
            anyhow::Ok(match version {
                Version::H1 => Sender::H1(open_h1(tls(version, addr, host, trust).await?).await?),
                Version::H2 => open_h2(tls(version, addr, host, trust).await?).await?,
                Version::H3 => open_h3(addr, host, trust).await?,
            })
        };
        let sender = timeout(TIMEOUT, Box::pin(opening))
            .await
            .with_context(|| format!("{version:?} to {addr}: too slow"))?
            .with_context(|| format!("{version:?} to {addr} as {host}"))?;
        Ok(Self { sender, authority })
    }

    /// Connects over plain HTTP/1.1.
    ///
    /// # Errors
    /// When nobody accepts.
    pub async fn plain(addr: SocketAddr, host: &str) -> Result<Self> {
        let stream = timeout(TIMEOUT, TcpStream::connect(addr)).await??;
        let sender = Sender::H1(open_h1(stream).await?);
        Ok(Self { sender, authority: format!("{host}:{}", addr.port()) })
    }

    /// GET.
    ///
    /// # Errors
    /// When no whole answer comes back.
    pub async fn get(&mut self, path: &str) -> Result<Answer> {
        self.send(Method::GET, path, &[]).await
    }

    /// Any request without a body.
    ///
    /// # Errors
    /// When no whole answer comes back.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Answer> {
        let what = format!("{method} {path} from {}", self.authority);
        let sending = Box::pin(self.send_now(method, path, headers));
        timeout(TIMEOUT, sending)
            .await
            .with_context(|| format!("{what}: too slow"))?
            .with_context(|| what)
    }

    async fn send_now(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Answer> {
        let mut request = Request::builder().method(method);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Sender::H1(sender) = &mut self.sender {
            let given = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host"));
            if !given {
                request = request.header("host", &self.authority);
            }
            let request = request.uri(path).body(Empty::new())?;
            sender.ready().await?;
            return collected(sender.send_request(request).await?).await;
        }
        let uri = Uri::builder()
            .scheme("https")
            .authority(self.authority.as_str())
            .path_and_query(path)
            .build()?;
        let request = request.uri(uri);
        match &mut self.sender {
            Sender::H1(_) => bail!("handled above"),
            Sender::H2(sender) => {
                sender.ready().await?;
                collected(sender.send_request(request.body(Empty::new())?).await?).await
            }
            Sender::H3 { sender, .. } => over_h3(sender, request.body(())?).await,
        }
    }
}

async fn collected(response: http::Response<hyper::body::Incoming>) -> Result<Answer> {
    let (parts, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
}

async fn over_h3(sender: &mut H3Sender, request: Request<()>) -> Result<Answer> {
    let mut stream = sender.send_request(request).await?;
    stream.finish().await?;
    let response = stream.recv_response().await?;
    let mut body = BytesMut::new();
    while let Some(mut part) = stream.recv_data().await? {
        body.extend_from_slice(&part.copy_to_bytes(part.remaining()));
    }
    let (parts, ()) = response.into_parts();
    Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body: body.freeze() })
}

async fn tls(
    version: Version,
    addr: SocketAddr,
    host: &str,
    trust: &Trust,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let connector = tokio_rustls::TlsConnector::from(Arc::new(trust.config(version.alpn())?));
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let stream = connector.connect(ServerName::try_from(host.to_owned())?, stream).await?;
    let agreed = stream.get_ref().1.alpn_protocol().unwrap_or_default().to_vec();
    if agreed != version.alpn() {
        bail!("the server chose {:?}", String::from_utf8_lossy(&agreed));
    }
    Ok(stream)
}

async fn open_h1(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<http1::SendRequest<Empty<Bytes>>> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // An error of the connection reaches the request that waits on it.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

async fn open_h2(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Sender> {
    let handshake = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .handshake(TokioIo::new(stream));
    let (sender, connection) = handshake.await?;
    tokio::spawn(async move { drop(connection.await) });
    Ok(Sender::H2(sender))
}

async fn open_h3(addr: SocketAddr, host: &str, trust: &Trust) -> Result<Sender> {
    let config = trust.config(Version::H3.alpn())?;
    let config = quinn::crypto::rustls::QuicClientConfig::try_from(config)?;
    let mut endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(config)));
    let connection = endpoint.connect(addr, host)?.await?;
    let (mut driver, sender) = h3::client::new(h3_quinn::Connection::new(connection)).await?;
    tokio::spawn(async move {
        drop(std::future::poll_fn(|context| driver.poll_close(context)).await);
    });
    Ok(Sender::H3 { sender, _endpoint: endpoint })
}

/// Writes these bytes inside TLS to an edge and returns everything that comes back until it
/// closes or has said something and is silent: for requests that no client library would send.
///
/// # Errors
/// When there is no connection.
pub async fn raw(addr: SocketAddr, host: &str, trust: &Trust, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = timeout(TIMEOUT, Box::pin(tls(Version::H1, addr, host, trust))).await??;
    stream.write_all(bytes).await?;
    let mut answer = Vec::new();
    let mut patience = TIMEOUT;
    loop {
        match timeout(patience, stream.read_buf(&mut answer)).await {
            // Closing without a TLS goodbye is an error to rustls; what was read stays.
            Ok(Ok(0) | Err(_)) => return Ok(answer),
            Ok(Ok(_)) => {}
            Err(_) if answer.is_empty() => bail!("the edge neither answers nor closes"),
            Err(_) => return Ok(answer),
        }
        // It may keep the connection for the next request.
        patience = Duration::from_millis(200);
    }
}
