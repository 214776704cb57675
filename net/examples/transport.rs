//! Measures what `docs/decisions/0004-quic-for-chunk-bytes.md` records: 1 MiB answers with 16 in
//! flight, over this crate's QUIC endpoint and over plain TLS on TCP.
//!
//! Run with `cargo run --release -p atoll-net --example transport [seconds [address]]`. Both ends
//! are in this process; CPU time is that of both together. With another address of this machine
//! than a loopback one, QUIC discovers the path's MTU as it does between machines.
#![allow(clippy::unwrap_used, reason = "a measurement, run by hand")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_net::identity::Identity;
use atoll_net::{
    Answer, CallOptions, ClusterCa, Context, Endpoint, Role, ServeLimits, Service, shutdown, task,
};
use atoll_proto::{ClusterId, WireError};
use bytes::{Buf, Bytes};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const IN_FLIGHT: usize = 16;

struct Bulk(Bytes);

impl Service for Bulk {
    type Request = u32;
    type Response = ();

    fn operation(_: &u32) -> &'static str {
        "bulk"
    }

    async fn call(&self, _: Context, len: u32, _: Bytes) -> Result<Answer<()>, WireError> {
        Ok(Answer::with_body((), vec![self.0.slice(..len as usize)]))
    }
}

fn main() {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(5);
    let ip = std::env::args().nth(2).and_then(|text| text.parse().ok());
    let any = SocketAddr::new(ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), 0);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let ca = ClusterCa::create(ClusterId([1; 16])).unwrap();
        let server = ca.issue(Role::Chunkserver, "server").unwrap();
        let client = ca.issue(Role::Client, "client").unwrap();
        let length = Duration::from_secs(seconds);
        println!("{:<34} {:>9} {:>10} {:>12}", "", "MB/s", "calls/s", "CPU-s per GB");
        quic(any, &server, &client, 1 << 20, length).await;
        tls(any, &server, &client, 1 << 20, length).await;
        quic(any, &server, &client, 4096, length).await;
        tls(any, &server, &client, 4096, length).await;
    });
}

async fn quic(any: SocketAddr, server: &Identity, client: &Identity, len: u32, length: Duration) {
    let endpoint = Endpoint::bind(any, server).unwrap();
    let addr = endpoint.local_addr();
    let (trigger, listener) = shutdown::pair();
    let serving = task::spawn("server", async move {
        let service = Arc::new(Bulk(Bytes::from(vec![0x5a; 1 << 20])));
        endpoint.serve(service, ServeLimits::default(), listener).await;
    });
    let client = Endpoint::client(client).unwrap();
    measure(&format!("QUIC, {len} B, {IN_FLIGHT} in flight"), len, length, |_| {
        let client = client.clone();
        async move {
            let options = || CallOptions::within(Duration::from_secs(10));
            move || {
                let client = client.clone();
                async move {
                    let ((), body) = client
                        .call(addr, Role::Chunkserver, &len, vec![], options())
                        .await
                        .unwrap();
                    body.len()
                }
            }
        }
    })
    .await;
    trigger.trigger();
    serving.await.unwrap();
}

/// The same over TCP with TLS 1.3, one connection per request in flight (so that none waits for
/// another), and the least framing that works.
async fn tls(any: SocketAddr, server: &Identity, client: &Identity, len: u32, length: Duration) {
    let listener = TcpListener::bind(any).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(tls_server(server));
    let connector = tokio_rustls::TlsConnector::from(tls_client(client));
    let serving = task::spawn("server", async move {
        let payload = Bytes::from(vec![0x5a; 1 << 20]);
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let (acceptor, payload) = (acceptor.clone(), payload.clone());
            task::spawn("connection", async move {
                let mut stream = acceptor.accept(stream).await.unwrap();
                while let Ok(len) = stream.read_u32().await {
                    let answer = payload.slice(..len as usize);
                    if write_all(&mut stream, answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    measure(&format!("TLS over TCP, {len} B, {IN_FLIGHT} in flight"), len, length, |_| {
        let connector = connector.clone();
        async move {
            let stream = TcpStream::connect(addr).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let name = ServerName::try_from("atoll.internal").unwrap();
            let stream = connector.connect(name, stream).await.unwrap();
            let stream = Arc::new(tokio::sync::Mutex::new(stream));
            move || {
                let stream = stream.clone();
                async move {
                    let mut stream = stream.lock().await;
                    stream.write_u32(len).await.unwrap();
                    stream.flush().await.unwrap();
                    read_exactly(&mut *stream, len as usize).await.len()
                }
            }
        }
    })
    .await;
    serving.abort();
}

async fn write_all<W: AsyncWrite + Unpin>(stream: &mut W, mut bytes: Bytes) -> std::io::Result<()> {
    while bytes.has_remaining() {
        stream.write_buf(&mut bytes).await?;
    }
    stream.flush().await
}

/// Reads into fresh memory, as a caller that keeps the bytes has to.
async fn read_exactly<R: AsyncRead + Unpin>(stream: &mut R, len: usize) -> Bytes {
    let mut bytes = bytes::BytesMut::with_capacity(len);
    while bytes.len() < len {
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0);
    }
    bytes.freeze()
}

fn tls_server(identity: &Identity) -> Arc<rustls::ServerConfig> {
    let (chain, key) = parts(identity);
    let config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    Arc::new(config)
}

fn tls_client(identity: &Identity) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(identity.ca_pem.as_bytes()).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

/// The same cipher as inside: AES-128-GCM.
fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    use rustls::crypto::aws_lc_rs;
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    Arc::new(provider)
}

fn parts(identity: &Identity) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::from_pem_slice(identity.cert_pem.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
    (vec![chain], key)
}

/// Keeps `IN_FLIGHT` callers busy; each gets its own caller from `caller`.
async fn measure<M, F, C, G>(name: &str, len: u32, length: Duration, caller: M)
where
    M: Fn(usize) -> F,
    F: Future<Output = C>,
    C: Fn() -> G + Send + Sync + 'static,
    G: Future<Output = usize> + Send + 'static,
{
    let mut callers = Vec::new();
    for n in 0..IN_FLIGHT {
        let call = caller(n).await;
        assert_eq!(call().await, len as usize);
        callers.push(call);
    }
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let running: Vec<_> = callers
        .into_iter()
        .map(|call| {
            task::spawn("caller", async move {
                let (mut calls, mut bytes) = (0u64, 0u64);
                while began.elapsed() < length {
                    bytes += call().await as u64;
                    calls += 1;
                }
                (calls, bytes)
            })
        })
        .collect();
    let (mut calls, mut bytes) = (0, 0);
    for caller in running {
        let (c, b) = caller.await.unwrap();
        calls += c;
        bytes += b;
    }
    let seconds = began.elapsed().as_secs_f64();
    let cpu = cpu_seconds() - cpu;
    println!(
        "{name:<34} {:>9.0} {:>10.0} {:>12.2}",
        bytes as f64 / 1e6 / seconds,
        calls as f64 / seconds,
        cpu / (bytes as f64 / 1e9),
    );
}

/// User and system time of this process so far.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = &stat[stat.rfind(')').unwrap() + 2..];
    let ticks: u64 =
        fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
    // USER_HZ is 100 on every Linux.
    ticks as f64 / 100.0
}
