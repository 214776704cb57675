//! Tests of the listeners: real sockets, real clients of each protocol, a site in memory.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::time::Duration;

use atoll_net::shutdown::{ShutdownTrigger, pair};
use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket as TokioUdp};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::super::h3::client::{self, Client};
use super::super::respond::tests::{Fixture, noise};
use super::*;

const HOST: &str = "blog.localhost";

struct Server {
    site: Fixture,
    http: SocketAddr,
    https: SocketAddr,
    tls: rustls::ClientConfig,
    trigger: ShutdownTrigger,
    running: JoinHandle<Result<usize, TlsError>>,
    _dir: tempfile::TempDir,
}

fn certificate(dir: &Path) -> (Arc<Certificate>, rustls::ClientConfig) {
    let made = rcgen::generate_simple_self_signed(vec![HOST.to_owned()]).unwrap();
    let (chain, key) = (dir.join("web.pem"), dir.join("web.key"));
    std::fs::write(&chain, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&chain).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Certificate::load(&chain, &key).unwrap(), tls)
}

impl Server {
    async fn start(files: &[(&str, &[u8])]) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, tls) = certificate(dir.path());
        let site = Fixture::new(files).await;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let bound = bind(any, any).unwrap();
        let (http, https) = (bound.http_addr, bound.https_addr);
        let (trigger, shutdown) = pair();
        let serve = bound.serve(site.responder.clone(), certificate, shutdown);
        let running = atoll_net::task::spawn("test-server", serve);
        Server { site, http, https, tls, trigger, running, _dir: dir }
    }

    async fn connect_tls(&self, alpn: &[u8]) -> tokio_rustls::client::TlsStream<TcpStream> {
        let mut tls = self.tls.clone();
        tls.alpn_protocols = vec![alpn.to_vec()];
        let stream = TcpStream::connect(self.https).await.unwrap();
        let name = ServerName::try_from(HOST).unwrap();
        TlsConnector::from(Arc::new(tls)).connect(name, stream).await.unwrap()
    }

    async fn client(&self, protocol: Protocol) -> Any {
        match protocol {
            Protocol::H1 => {
                let io = TokioIo::new(self.connect_tls(b"http/1.1").await);
                let (send, drive) = hyper::client::conn::http1::handshake(io).await.unwrap();
                drop(atoll_net::task::spawn("test-h1", drive.map(drop)));
                Any::H1(send)
            }
            Protocol::H2 => {
                let io = TokioIo::new(self.connect_tls(b"h2").await);
                let (send, drive) = hyper::client::conn::http2::handshake(Exec, io).await.unwrap();
                drop(atoll_net::task::spawn("test-h2", drive.map(drop)));
                Any::H2(send)
            }
            Protocol::H3 => Any::H3(Client::connect(self.https, self.tls.clone(), HOST).await),
        }
    }

    /// How many connections had to be cut off.
    async fn stop(self) -> usize {
        self.trigger.trigger();
        tokio::time::timeout(Duration::from_secs(15), self.running).await.unwrap().unwrap().unwrap()
    }
}

#[derive(Clone)]
struct Exec;

impl<W: Future<Output: Send> + Send + 'static> hyper::rt::Executor<W> for Exec {
    fn execute(&self, work: W) {
        drop(atoll_net::task::spawn("test-exec", work));
    }
}

enum Any {
    H1(hyper::client::conn::http1::SendRequest<Empty<Bytes>>),
    H2(hyper::client::conn::http2::SendRequest<Empty<Bytes>>),
    H3(Client),
}

struct Answer {
    status: u16,
    headers: http::HeaderMap,
    body: Result<Vec<u8>, String>,
}

impl Any {
    async fn get(&mut self, path: &str, range: Option<&str>) -> Answer {
        let absolute = !matches!(self, Any::H1(_));
        let uri = if absolute { format!("https://{HOST}{path}") } else { path.to_owned() };
        let mut request = http::Request::get(uri);
        if !absolute {
            request = request.header("host", HOST);
        }
        if let Some(range) = range {
            request = request.header("range", range);
        }
        match self {
            Any::H1(send) => {
                let request = request.body(Empty::new()).unwrap();
                send.ready().await.unwrap();
                collect(send.send_request(request).await.unwrap()).await
            }
            Any::H2(send) => {
                let request = request.body(Empty::new()).unwrap();
                collect(send.send_request(request).await.unwrap()).await
            }
            Any::H3(client) => {
                let request = request.body(()).unwrap();
                match client.request(request).await {
                    Ok((response, body)) => {
                        let (parts, ()) = response.into_parts();
                        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
                    }
                    Err(error) => {
                        Answer { status: 0, headers: http::HeaderMap::new(), body: Err(error) }
                    }
                }
            }
        }
    }
}

async fn collect(response: http::Response<hyper::body::Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map(|all| all.to_bytes().to_vec());
    let body = body.map_err(|error| error.to_string());
    Answer { status: parts.status.as_u16(), headers: parts.headers, body }
}

const ALL: [Protocol; 3] = [Protocol::H1, Protocol::H2, Protocol::H3];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_protocol_serves_every_size_byte_for_byte() {
    let files: Vec<(String, Vec<u8>)> = [0, 1, 1000, 1 << 20, (1 << 20) + 1, 3_670_016]
        .into_iter()
        .map(|len| (format!("f{len}"), noise(len)))
        .collect();
    let list: Vec<(&str, &[u8])> =
        files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let server = Server::start(&list).await;
    for protocol in ALL {
        let mut client = server.client(protocol).await;
        for (name, bytes) in &files {
            let answer = client.get(&format!("/{name}"), None).await;
            assert_eq!(answer.status, 200, "{protocol:?} {name}");
            assert!(answer.body.unwrap() == *bytes, "{protocol:?} {name}");
            assert_eq!(answer.headers["content-length"], bytes.len().to_string());
            assert_eq!(answer.headers.contains_key("alt-svc"), protocol != Protocol::H3);
        }
        let big = &files[5].1;
        for (range, expected) in [
            ("bytes=0-0", &big[..1]),
            ("bytes=1048570-1048590", &big[1_048_570..=1_048_590]),
            ("bytes=-100", &big[big.len() - 100..]),
            ("bytes=1000000-3100000", &big[1_000_000..=3_100_000]),
        ] {
            let answer = client.get("/f3670016", Some(range)).await;
            assert_eq!(answer.status, 206, "{protocol:?} {range}");
            assert!(answer.body.unwrap() == expected, "{protocol:?} {range}");
        }
        assert_eq!(client.get("/missing", None).await.status, 404);
        assert_eq!(client.get("/f1", Some("bytes=5-")).await.status, 416);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_cannot_be_completed_is_aborted_not_shortened() {
    let big = noise(6 << 20);
    let server = Server::start(&[("big", &big)]).await;
    for protocol in ALL {
        let mut client = server.client(protocol).await;
        // Only the first chunk is at hand.
        server.site.upstream.down.store(false, Ordering::SeqCst);
        assert_eq!(client.get("/big", Some("bytes=0-0")).await.status, 206);
        server.site.upstream.down.store(true, Ordering::SeqCst);
        let answer = client.get("/big", None).await;
        // The reset of an h3 stream may overtake the head.
        assert!(answer.status == 200 || protocol == Protocol::H3);
        assert!(answer.body.is_err(), "{protocol:?}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_http_redirects() {
    let server = Server::start(&[("index.html", b"home")]).await;
    let mut stream = TcpStream::connect(server.http).await.unwrap();
    stream
        .write_all(b"GET /a?b HTTP/1.1\r\nHost: blog.localhost\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let text = text.to_ascii_lowercase();
    assert!(text.starts_with("http/1.1 308"), "{text}");
    let location = format!("location: https://blog.localhost:{}/a?b", server.https.port());
    assert!(text.contains(&location), "{text}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_heads_are_431() {
    let server = Server::start(&[("index.html", b"home")]).await;
    let mut stream = server.connect_tls(b"http/1.1").await;
    let head = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX: {}\r\n\r\n", "a".repeat(100_000));
    // The answer may come, and the connection close, before all of it is written.
    drop(stream.write_all(head.as_bytes()).await);
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 431");
    let Any::H3(mut client) = server.client(Protocol::H3).await else { unreachable!() };
    let request = http::Request::get(format!("https://{HOST}/")).header("x", "a".repeat(100_000));
    // This client may refuse to send what the server said it does not take.
    if let Ok((response, _)) = client.request(request.body(()).unwrap()).await {
        assert_eq!(response.status().as_u16(), 431);
    }
    let mut client = server.client(Protocol::H3).await;
    assert_eq!(client.get("/", None).await.status, 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn junk_on_every_port_harms_nobody() {
    let server = Server::start(&[("index.html", b"home")]).await;
    let junk: Vec<Vec<u8>> = (0..24).map(|seed| noise(1 + seed * 97)).collect();
    let udp = TokioUdp::bind("127.0.0.1:0").await.unwrap();
    for bytes in &junk {
        for addr in [server.http, server.https] {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            drop(stream.write_all(bytes).await);
        }
        drop(udp.send_to(bytes, server.https).await);
        for alpn in [&b"h2"[..], b"http/1.1"] {
            let mut stream = server.connect_tls(alpn).await;
            drop(stream.write_all(bytes).await);
            drop(stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await);
        }
    }
    // Frames that make sense up to a point: HEADERS with a broken block, unknown frames, a DATA
    // frame first, a malformed head in pieces.
    let mut frames = junk.clone();
    frames.push(vec![0x01, 0x02, 0xff, 0xff]);
    frames.push(vec![0x00, 0x03, 1, 2, 3]);
    frames.push(vec![0x21, 0x01, 0x00, 0x01, 0x03, 0x00, 0x00, 0xd1]);
    frames.push(vec![0x01, 0x80, 0xff, 0xff, 0xff]);
    client::junk(server.https, server.tls.clone(), HOST, &frames).await;
    for protocol in ALL {
        let mut client = server.client(protocol).await;
        let answer = client.get("/", None).await;
        assert_eq!((answer.status, answer.body.unwrap().as_slice()), (200, &b"home"[..]));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_lets_open_connections_go_quickly() {
    let server = Server::start(&[("index.html", b"home")]).await;
    let mut clients = Vec::new();
    for protocol in ALL {
        let mut client = server.client(protocol).await;
        assert_eq!(client.get("/", None).await.status, 200);
        clients.push(client);
    }
    let began = std::time::Instant::now();
    let addr = server.https;
    server.stop().await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(TcpStream::connect(addr).await.is_err());
    for client in clients {
        if let Any::H3(client) = client {
            client.close();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_cuts_off_nobody_and_waits_for_nobody_who_has_not_asked() {
    let server = Server::start(&[("index.html", b"home")]).await;
    // Connected and silent; in the middle of TLS; before HTTP/2 began; in the middle of a head.
    let silent = [TcpStream::connect(server.https).await, TcpStream::connect(server.http).await];
    let mut hello = TcpStream::connect(server.https).await.unwrap();
    hello.write_all(&[0x16, 3, 1]).await.unwrap();
    let h2 = server.connect_tls(b"h2").await;
    let mut head = server.connect_tls(b"http/1.1").await;
    head.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
    head.flush().await.unwrap();
    let mut plain = TcpStream::connect(server.http).await.unwrap();
    plain.write_all(b"GET / HT").await.unwrap();
    assert_eq!(server.stop().await, 0, "connections that had to be cut off");
    drop((silent, hello, h2, head, plain));
}

/// Serves from a runtime of its own, whose end is that of a killed process: nobody is told.
struct Killable {
    runtime: tokio::runtime::Runtime,
    https: SocketAddr,
}

impl Killable {
    async fn start(https: SocketAddr, data: &Path, certificate: Arc<Certificate>) -> Killable {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let site = Fixture::new(&[("index.html", b"hello")]).await;
        let plain = SocketAddr::from(([127, 0, 0, 1], 0));
        let _within = runtime.enter();
        let secret = ResetSecret::of(data);
        let bound = bind(plain, https).unwrap().with_secret(secret);
        let https = bound.https_addr;
        let (trigger, shutdown) = pair();
        runtime.spawn(async move {
            let _trigger = trigger;
            bound.serve(site.responder.clone(), certificate, shutdown).await
        });
        Killable { runtime, https }
    }

    fn kill(self) {
        self.runtime.shutdown_background();
    }
}

#[tokio::test]
async fn a_connection_over_h3_to_an_edge_that_was_killed_ends_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, tls) = certificate(dir.path());
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let before = Killable::start(any, dir.path(), certificate.clone()).await;
    let https = before.https;
    let mut visitor = Client::connect(https, tls.clone(), HOST).await;
    let ask = || http::Request::get(format!("https://{HOST}/")).body(()).unwrap();
    assert_eq!(visitor.request(ask()).await.unwrap().1.unwrap(), b"hello");
    before.kill();

    // The sockets of the first are closed when its tasks are gone.
    let until = std::time::Instant::now() + Duration::from_secs(20);
    while bind(any, https).is_err() {
        assert!(std::time::Instant::now() < until, "the port stays taken");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let after = Killable::start(https, dir.path(), certificate).await;
    let hung = tokio::time::timeout(Duration::from_secs(20), visitor.request(ask())).await;
    assert!(hung.expect("it hangs until its idle timeout").is_err());
    assert_eq!(visitor.closed().await, quinn::ConnectionError::Reset);
    let mut again = Client::connect(https, tls, HOST).await;
    assert_eq!(again.request(ask()).await.unwrap().1.unwrap(), b"hello");
    after.kill();
}
