//! One HTTP request over a chosen version, for `atoll get` and for `atoll dev` to see that an edge
//! answers.
//!
//! It follows no redirects, keeps no connections and no cookies: it shows what the server said.

use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::header::{CONTENT_LENGTH, HOST, HeaderName};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::report::Failure;

/// To connect, handshakes included.
const CONNECT: Duration = Duration::from_secs(10);
/// Between one piece of an answer and the next.
const SILENCE: Duration = Duration::from_secs(30);
/// Where Debian and its relatives keep the authorities that the machine trusts.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What to fetch, and how.
pub(crate) struct Fetch {
    /// GET or HEAD.
    pub(crate) method: Method,
    /// Absolute, `http` or `https`.
    pub(crate) url: Uri,
    /// Where the host is; tried in order.
    pub(crate) addrs: Vec<SocketAddr>,
    /// HTTP/1.1, 2 or 3; `None` lets the server choose between the first two.
    pub(crate) version: Option<Version>,
    /// Sent beside what the version itself asks for.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// Whom to trust.
    pub(crate) roots: Arc<rustls::RootCertStore>,
}

/// Status and headers of an answer.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    /// How it came.
    pub(crate) version: Version,
    /// What the server says.
    pub(crate) status: StatusCode,
    /// More of that.
    pub(crate) headers: HeaderMap,
}

/// Is told of an answer as it comes.
pub(crate) trait Receiver: Send {
    /// The first thing, once.
    fn head(&mut self, head: &Head) -> Result<(), Failure>;
    /// Then pieces of the body.
    fn data(&mut self, bytes: &[u8]) -> Result<(), Failure>;
}

/// Certificates of authorities: of this file and, if `system`, those the machine trusts.
pub(crate) fn roots(ca: Option<&Path>, system: bool) -> Result<rustls::RootCertStore, Failure> {
    let mut roots = rustls::RootCertStore::empty();
    if let Some(path) = ca {
        let wrong = |error: &dyn std::fmt::Display| {
            Failure::Failed(format!("{} holds no certificate: {error}", path.display()))
        };
        let mut pem = Vec::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(16 << 20).read_to_end(&mut pem))
            .map_err(Failure::file("read", path))?;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| wrong(&error))?;
            roots.add(certificate).map_err(|error| wrong(&error))?;
        }
        if roots.is_empty() {
            return Err(wrong(&"it is empty"));
        }
    }
    if system && let Ok(certificates) = CertificateDer::pem_file_iter(SYSTEM_ROOTS) {
        // One that cannot be read only means that servers it signed are not trusted.
        roots.add_parsable_certificates(certificates.flatten());
    }
    Ok(roots)
}

/// Sends the request and hands over the answer.
///
/// # Errors
/// When there is no whole answer, or the receiver fails. Whatever status the server gives is not
/// an error here.
pub(crate) async fn fetch(fetch: &Fetch, receiver: &mut dyn Receiver) -> Result<Head, Failure> {
    let mut last = Failure::Failed(format!("{}: the host has no address", fetch.url));
    for addr in &fetch.addrs {
        let connected = if fetch.version == Some(Version::HTTP_3) {
            connect_h3(fetch, *addr).await
        } else {
            connect_tcp(fetch, *addr).await
        };
        match connected {
            Ok(connection) => return exchange(fetch, connection, receiver).await,
            Err(failure) => last = failure,
        }
    }
    Err(last)
}

enum Connection {
    H1(hyper::client::conn::http1::SendRequest<Empty<Bytes>>),
    H2(hyper::client::conn::http2::SendRequest<Empty<Bytes>>),
    H3 { endpoint: quinn::Endpoint, send: h3::client::SendRequest<h3_quinn::OpenStreams, Bytes> },
}

async fn exchange(
    fetch: &Fetch,
    connection: Connection,
    receiver: &mut dyn Receiver,
) -> Result<Head, Failure> {
    let mut meter = Meter { receiver, expected: None, received: 0 };
    let head = match connection {
        Connection::H1(mut send) => {
            let request = request(fetch, Version::HTTP_11, Empty::new())?;
            hyper_answer(fetch, send.send_request(request), &mut meter).await?
        }
        Connection::H2(mut send) => {
            let request = request(fetch, Version::HTTP_2, Empty::new())?;
            hyper_answer(fetch, send.send_request(request), &mut meter).await?
        }
        Connection::H3 { endpoint, send } => {
            let head = h3_answer(fetch, send, &mut meter).await;
            endpoint.close(0_u32.into(), b"");
            // The server would learn it from its idle timeout as well.
            drop(tokio::time::timeout(Duration::from_millis(200), endpoint.wait_idle()).await);
            head?
        }
    };
    meter.check(fetch)?;
    Ok(head)
}

/// Notices an answer that is cut short.
struct Meter<'a> {
    receiver: &'a mut dyn Receiver,
    expected: Option<u64>,
    received: u64,
}

impl Meter<'_> {
    fn head(&mut self, head: &Head) -> Result<(), Failure> {
        let length = head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        self.expected = length.and_then(|length| length.parse().ok());
        self.receiver.head(head)
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.received += bytes.len() as u64;
        self.receiver.data(bytes)
    }

    fn check(&self, fetch: &Fetch) -> Result<(), Failure> {
        match self.expected {
            Some(expected) if expected != self.received && fetch.method != Method::HEAD => {
                Err(Failure::Failed(format!(
                    "{}: the answer ends after {} of {expected} bytes",
                    fetch.url, self.received
                )))
            }
            _ => Ok(()),
        }
    }
}

fn request<B>(fetch: &Fetch, version: Version, body: B) -> Result<http::Request<B>, Failure> {
    let path = fetch.url.path_and_query().map_or("/", |path| path.as_str());
    let mut builder = http::Request::builder().method(fetch.method.clone()).version(version);
    builder = if version == Version::HTTP_11 {
        let authority = fetch.url.authority().map_or("", |authority| authority.as_str());
        builder.uri(path).header(HOST, authority)
    } else {
        builder.uri(fetch.url.clone())
    };
    for (name, value) in &fetch.headers {
        builder = builder.header(name, value);
    }
    builder.body(body).map_err(|error| wrong(fetch, error))
}

async fn hyper_answer<E: std::error::Error>(
    fetch: &Fetch,
    answer: impl Future<Output = Result<hyper::Response<hyper::body::Incoming>, E>>,
    meter: &mut Meter<'_>,
) -> Result<Head, Failure> {
    let response =
        within(fetch, SILENCE, answer).await?.map_err(|error| wrong(fetch, deep(&error)))?;
    let (parts, mut body) = response.into_parts();
    let head = Head { version: parts.version, status: parts.status, headers: parts.headers };
    meter.head(&head)?;
    while let Some(frame) = within(fetch, SILENCE, body.frame()).await? {
        let frame = frame.map_err(|error| wrong(fetch, deep(&error)))?;
        if let Some(bytes) = frame.data_ref() {
            meter.data(bytes)?;
        }
    }
    Ok(head)
}

async fn h3_answer(
    fetch: &Fetch,
    mut send: h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>,
    meter: &mut Meter<'_>,
) -> Result<Head, Failure> {
    let request = request(fetch, Version::HTTP_3, ())?;
    let sent = within(fetch, CONNECT, send.send_request(request)).await?;
    let mut stream = sent.map_err(|error| wrong(fetch, error))?;
    within(fetch, CONNECT, stream.finish()).await?.map_err(|error| wrong(fetch, error))?;
    let received = within(fetch, SILENCE, stream.recv_response()).await?;
    let response = received.map_err(|error| wrong(fetch, error))?;
    let head = Head {
        version: Version::HTTP_3,
        status: response.status(),
        headers: response.headers().clone(),
    };
    meter.head(&head)?;
    loop {
        let part = within(fetch, SILENCE, stream.recv_data()).await?;
        let Some(mut part) = part.map_err(|error| wrong(fetch, error))? else {
            return Ok(head);
        };
        while part.has_remaining() {
            let bytes = part.chunk();
            let len = bytes.len();
            meter.data(bytes)?;
            part.advance(len);
        }
    }
}

async fn connect_tcp(fetch: &Fetch, addr: SocketAddr) -> Result<Connection, Failure> {
    let stream = within(fetch, CONNECT, TcpStream::connect(addr)).await?;
    let stream = stream.map_err(|error| wrong(fetch, format_args!("{addr}: {error}")))?;
    stream.set_nodelay(true).map_err(|error| wrong(fetch, error))?;
    if fetch.url.scheme_str() == Some("http") {
        let two = fetch.version == Some(Version::HTTP_2);
        return handshake(fetch, TokioIo::new(stream), two).await;
    }
    let protocols: &[&[u8]] = match fetch.version {
        Some(Version::HTTP_2) => &[b"h2"],
        Some(_) => &[b"http/1.1"],
        None => &[b"h2", b"http/1.1"],
    };
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls(fetch, protocols)?));
    let name =
        ServerName::try_from(host(&fetch.url).to_owned()).map_err(|error| wrong(fetch, error))?;
    let stream = within(fetch, CONNECT, connector.connect(name, stream)).await?;
    let stream = stream.map_err(|error| wrong(fetch, format_args!("TLS: {error}")))?;
    let chosen = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    let two = chosen.as_deref() == Some(b"h2");
    if fetch.version == Some(Version::HTTP_2) && !two {
        return Err(wrong(fetch, "the server does not speak HTTP/2"));
    }
    handshake(fetch, TokioIo::new(stream), two).await
}

async fn handshake<S>(fetch: &Fetch, io: TokioIo<S>, two: bool) -> Result<Connection, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // The connection ends with its error; what that means for the answer, the answer says.
    if two {
        let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
        let (send, connection) =
            within(fetch, CONNECT, shaken).await?.map_err(|error| wrong(fetch, deep(&error)))?;
        drop(atoll_net::task::spawn("h2", async move { drop(connection.await) }));
        return Ok(Connection::H2(send));
    }
    let shaken = hyper::client::conn::http1::handshake(io);
    let (send, connection) =
        within(fetch, CONNECT, shaken).await?.map_err(|error| wrong(fetch, deep(&error)))?;
    drop(atoll_net::task::spawn("h1", async move { drop(connection.await) }));
    Ok(Connection::H1(send))
}

async fn connect_h3(fetch: &Fetch, addr: SocketAddr) -> Result<Connection, Failure> {
    if fetch.url.scheme_str() != Some("https") {
        return Err(wrong(fetch, "HTTP/3 needs https"));
    }
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls(fetch, &[b"h3"])?)
        .map_err(|error| wrong(fetch, error))?;
    let any: SocketAddr =
        if addr.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let endpoint = quinn::Endpoint::client(any).map_err(|error| wrong(fetch, error))?;
    let config = quinn::ClientConfig::new(Arc::new(tls));
    let connecting = endpoint
        .connect_with(config, addr, host(&fetch.url))
        .map_err(|error| wrong(fetch, error))?;
    let connection = within(fetch, CONNECT, connecting).await?;
    let connection = connection.map_err(|error| wrong(fetch, format_args!("{addr}: {error}")))?;
    let shaken = h3::client::new(h3_quinn::Connection::new(connection));
    let (mut driver, send) =
        within(fetch, CONNECT, shaken).await?.map_err(|error| wrong(fetch, error))?;
    drop(atoll_net::task::spawn("h3", async move {
        drop(std::future::poll_fn(|cx| driver.poll_close(cx)).await);
    }));
    Ok(Connection::H3 { endpoint, send })
}

fn tls(fetch: &Fetch, protocols: &[&[u8]]) -> Result<rustls::ClientConfig, Failure> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(fetch, error))?
        .with_root_certificates(fetch.roots.clone())
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

/// The host of a URL, an IPv6 address without its brackets.
pub(crate) fn host(url: &Uri) -> &str {
    url.host().unwrap_or("").trim_start_matches('[').trim_end_matches(']')
}

async fn within<F: Future>(
    fetch: &Fetch,
    bound: Duration,
    future: F,
) -> Result<F::Output, Failure> {
    tokio::time::timeout(bound, future)
        .await
        .map_err(|_elapsed| wrong(fetch, format_args!("no answer within {} s", bound.as_secs())))
}

fn wrong(fetch: &Fetch, error: impl std::fmt::Display) -> Failure {
    Failure::Failed(format!("{}: {error}", fetch.url))
}

/// hyper's own text leaves the cause out.
fn deep(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
