//! Real endpoints on loopback: what a call promises, and what strangers cannot do.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use atoll_net::{
    Answer, CallError, CallOptions, ClusterCa, Context, Endpoint, Identity, Role, ServeLimits,
    Service, ShutdownTrigger, shutdown,
};
use atoll_proto::frame::{Kind, Prefix, RequestHead};
use atoll_proto::{ClusterId, Code, Retry, WireError};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

#[derive(Serialize, Deserialize, Debug, Clone)]
enum Ask {
    Echo(String),
    WhoAmI,
    /// Waits until the test opens the gate.
    Wait,
    Panic,
    Refuse,
}

#[derive(Default)]
struct Echo {
    gate: Notify,
    entered: Notify,
    dropped: Arc<Notify>,
    done: AtomicUsize,
}

struct NotifyOnDrop(Arc<Notify>);

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Service for Echo {
    type Request = Ask;
    type Response = String;

    fn operation(request: &Ask) -> &'static str {
        match request {
            Ask::Echo(_) => "echo",
            Ask::WhoAmI => "whoami",
            Ask::Wait => "wait",
            Ask::Panic => "panic",
            Ask::Refuse => "refuse",
        }
    }

    async fn call(
        &self,
        context: Context,
        request: Ask,
        body: Bytes,
    ) -> Result<Answer<String>, WireError> {
        match request {
            Ask::Echo(text) => Ok(Answer::with_body(text, vec![body])),
            Ask::WhoAmI => {
                let token = context.token.as_deref().unwrap_or("none");
                assert!(context.remaining() <= Duration::from_secs(5));
                Ok(Answer::head(format!("{} {token} {}", context.peer, context.trace.trace_id())))
            }
            Ask::Wait => {
                let _dropped = NotifyOnDrop(self.dropped.clone());
                self.entered.notify_one();
                self.gate.notified().await;
                self.done.fetch_add(1, Ordering::SeqCst);
                Ok(Answer::head("waited".into()))
            }
            Ask::Panic => panic!("on purpose"),
            Ask::Refuse => Err(WireError::not_found("there is no such site; see `sites list`")),
        }
    }
}

struct Node {
    addr: SocketAddr,
    endpoint: Endpoint,
    service: Arc<Echo>,
    trigger: ShutdownTrigger,
    server: JoinHandle<()>,
}

fn start_at(addr: SocketAddr, identity: &Identity, limits: ServeLimits) -> Node {
    let endpoint = Endpoint::bind(addr, identity).unwrap();
    let service = Arc::new(Echo::default());
    let (trigger, shutdown) = shutdown::pair();
    let server = {
        let (endpoint, service) = (endpoint.clone(), service.clone());
        atoll_net::task::spawn("server", async move {
            endpoint.serve(service, limits, shutdown).await;
        })
    };
    Node { addr: endpoint.local_addr(), endpoint, service, trigger, server }
}

fn start(identity: &Identity) -> Node {
    start_at(ANY, identity, ServeLimits::default())
}

fn ca() -> ClusterCa {
    ClusterCa::create(ClusterId([1; 16])).unwrap()
}

fn pair() -> (ClusterCa, Node, Endpoint) {
    let ca = ca();
    let node = start(&ca.issue(Role::Chunkserver, "c1").unwrap());
    let client = Endpoint::client(&ca.issue(Role::Client, "cli").unwrap()).unwrap();
    (ca, node, client)
}

fn soon() -> CallOptions {
    CallOptions::within(Duration::from_secs(5))
}

async fn ask(
    client: &Endpoint,
    addr: SocketAddr,
    ask: Ask,
    body: Vec<Bytes>,
) -> Result<(String, Bytes), CallError> {
    client.call(addr, Role::Chunkserver, &ask, body, soon()).await
}

async fn assert_alive(client: &Endpoint, addr: SocketAddr) {
    let (text, _) = ask(client, addr, Ask::Echo("alive".into()), vec![]).await.unwrap();
    assert_eq!(text, "alive");
}

#[tokio::test]
async fn head_and_body_make_the_round_trip() {
    let (_ca, node, client) = pair();
    let first = Bytes::from(vec![0xab; 1 << 20]);
    let second = Bytes::from_static(b"tail");
    let echo = Ask::Echo("hello".into());
    let (text, body) =
        ask(&client, node.addr, echo, vec![first.clone(), second.clone()]).await.unwrap();
    assert_eq!(text, "hello");
    assert_eq!(body.len(), first.len() + 4);
    assert!(body.starts_with(&first) && body.ends_with(&second));

    let (text, body) = ask(&client, node.addr, Ask::Echo(String::new()), vec![]).await.unwrap();
    assert!(text.is_empty() && body.is_empty());
}

#[tokio::test]
async fn the_largest_frame_makes_the_round_trip() {
    let (_ca, node, client) = pair();
    let body = Bytes::from(vec![7; atoll_proto::limits::BODY_BYTES_MAX]);
    let (_, back) =
        ask(&client, node.addr, Ask::Echo("x".into()), vec![body.clone()]).await.unwrap();
    assert!(back == body);
}

#[tokio::test]
async fn the_server_knows_who_asks_and_on_whose_behalf() {
    let (_ca, node, client) = pair();
    let trace = atoll_net::TraceContext::root();
    let options = soon().token("secret").trace(trace);
    let (text, _): (String, Bytes) =
        client.call(node.addr, Role::Chunkserver, &Ask::WhoAmI, vec![], options).await.unwrap();
    let cluster = ClusterId([1; 16]);
    assert_eq!(text, format!("atoll://{cluster}/client/cli secret {}", trace.trace_id()));
    assert_eq!(client.identity_peer().name, "cli");
}

#[tokio::test]
async fn many_calls_share_one_connection_attempt() {
    let (_ca, node, client) = pair();
    let calls = (0..200).map(|n| {
        let (client, addr) = (client.clone(), node.addr);
        atoll_net::task::spawn("call", async move {
            let (text, _) = ask(&client, addr, Ask::Echo(n.to_string()), vec![]).await.unwrap();
            assert_eq!(text, n.to_string());
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
}

#[tokio::test]
async fn a_certificate_of_another_cluster_is_refused_by_both_sides() {
    let (_ca, node, client) = pair();
    for foreign in [ClusterCa::create(ClusterId([2; 16])).unwrap(), ca()] {
        // The second has the same cluster id, but another key: a forger.
        let stranger = Endpoint::client(&foreign.issue(Role::Client, "x").unwrap()).unwrap();
        let error = ask(&stranger, node.addr, Ask::WhoAmI, vec![]).await.unwrap_err();
        assert!(matches!(error, CallError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains("certificate"), "{error}");

        // A caller that trusts the server, but whose own certificate is not of the cluster.
        let mut mixed = foreign.issue(Role::Client, "x").unwrap();
        mixed.ca_pem = _ca.cert_pem().to_owned();
        let stranger = Endpoint::client(&mixed).unwrap();
        let error = ask(&stranger, node.addr, Ask::WhoAmI, vec![]).await.unwrap_err();
        assert!(matches!(error, CallError::Unreachable { .. }), "{error}");
    }
    assert_alive(&client, node.addr).await;
}

#[tokio::test]
async fn a_web_certificate_is_no_identity() {
    let (ca, node, client) = pair();
    let web = ca.issue_web(&["blog.localhost".to_owned()]).unwrap();
    let forged = Identity {
        ca_pem: ca.cert_pem().to_owned(),
        cert_pem: web.chain_pem,
        key_pem: web.key_pem,
    };
    assert!(Endpoint::client(&forged).is_err());
    let connection = raw(&ca, node.addr, Some(&forged)).await;
    assert_refused(connection).await;
    assert_alive(&client, node.addr).await;
}

#[tokio::test]
async fn without_a_certificate_there_is_no_connection() {
    let (ca, node, client) = pair();
    let connection = raw(&ca, node.addr, None).await;
    assert_refused(connection).await;
    assert_alive(&client, node.addr).await;
}

#[tokio::test]
async fn the_wrong_role_is_not_asked() {
    let (_ca, node, client) = pair();
    let result: Result<(String, Bytes), CallError> =
        client.call(node.addr, Role::Master, &Ask::WhoAmI, vec![], soon()).await;
    let error = result.unwrap_err();
    assert!(matches!(error, CallError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("chunkserver \"c1\", not a master"), "{error}");
    assert!(!error.is_unknown_outcome());
}

#[tokio::test]
async fn the_deadline_bounds_both_sides() {
    let (_ca, node, client) = pair();
    let options = CallOptions::within(Duration::from_millis(100));
    let result: Result<(String, Bytes), CallError> =
        client.call(node.addr, Role::Chunkserver, &Ask::Wait, vec![], options).await;
    let error = result.unwrap_err();
    assert!(error.is_unknown_outcome(), "{error}");
    node.service.dropped.notified().await;
    assert_eq!(node.service.done.load(Ordering::SeqCst), 0);
    assert_alive(&client, node.addr).await;
}

#[tokio::test]
async fn a_dropped_call_cancels_the_handler() {
    let (_ca, node, client) = pair();
    let call = {
        let (client, addr) = (client.clone(), node.addr);
        atoll_net::task::spawn("call", async move { ask(&client, addr, Ask::Wait, vec![]).await })
    };
    node.service.entered.notified().await;
    call.abort();
    node.service.dropped.notified().await;
    assert_eq!(node.service.done.load(Ordering::SeqCst), 0);
    assert_alive(&client, node.addr).await;
}

#[tokio::test]
async fn a_panic_ends_one_request_only() {
    let (_ca, node, client) = pair();
    let error = ask(&client, node.addr, Ask::Panic, vec![]).await.unwrap_err();
    let CallError::Refused(error) = error else { panic!("{error}") };
    assert_eq!(error.code, Code::Internal);
    assert!(!error.message.contains("on purpose"), "details stay in the log");
    assert_alive(&client, node.addr).await;
}

#[tokio::test]
async fn an_error_travels_whole() {
    let (_ca, node, client) = pair();
    let error = ask(&client, node.addr, Ask::Refuse, vec![]).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no such site; see `sites list`");
    assert_eq!(error.retry(), Retry::Never);
    assert!(!error.is_unknown_outcome());
}

#[tokio::test]
async fn too_long_a_body_is_refused_with_the_limit() {
    let ca = ca();
    let limits = ServeLimits { body_bytes_max: 1000, ..ServeLimits::default() };
    let node = start_at(ANY, &ca.issue(Role::Chunkserver, "c1").unwrap(), limits);
    let client = Endpoint::client(&ca.issue(Role::Client, "cli").unwrap()).unwrap();
    for len in [1001, 12 << 20] {
        let body = vec![Bytes::from(vec![0; len])];
        let error = ask(&client, node.addr, Ask::WhoAmI, body).await.unwrap_err();
        let CallError::Refused(error) = error else { panic!("{error}") };
        assert_eq!(error.code, Code::Limit, "{error}");
    }
    // What no frame may hold is refused before it is sent.
    let body = vec![Bytes::from(vec![0; atoll_proto::limits::BODY_BYTES_MAX + 1])];
    let error = ask(&client, node.addr, Ask::WhoAmI, body).await.unwrap_err();
    assert!(matches!(&error, CallError::Refused(e) if e.code == Code::Limit), "{error}");
    let (_, body) =
        ask(&client, node.addr, Ask::Echo("x".into()), vec![Bytes::from(vec![0; 1000])])
            .await
            .unwrap();
    assert_eq!(body.len(), 1000);
}

#[tokio::test]
async fn an_overloaded_server_says_so() {
    let ca = ca();
    let limits = ServeLimits { requests: 1, ..ServeLimits::default() };
    let node = start_at(ANY, &ca.issue(Role::Chunkserver, "c1").unwrap(), limits);
    let client = Endpoint::client(&ca.issue(Role::Client, "cli").unwrap()).unwrap();
    let waiting = {
        let (client, addr) = (client.clone(), node.addr);
        atoll_net::task::spawn("call", async move { ask(&client, addr, Ask::Wait, vec![]).await })
    };
    node.service.entered.notified().await;
    let error = ask(&client, node.addr, Ask::Echo("x".into()), vec![]).await.unwrap_err();
    assert!(matches!(&error, CallError::Refused(e) if e.code == Code::Unavailable), "{error}");
    assert_eq!(error.retry(), Retry::Elsewhere);
    node.service.gate.notify_one();
    waiting.await.unwrap().unwrap();
    assert_alive(&client, node.addr).await;
}

#[tokio::test]
async fn nobody_there_is_surely_not_executed() {
    let ca = ca();
    let client = Endpoint::client(&ca.issue(Role::Client, "cli").unwrap()).unwrap();
    let held = std::net::UdpSocket::bind(ANY).unwrap();
    let error = ask(&client, held.local_addr().unwrap(), Ask::WhoAmI, vec![]).await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable { .. }), "{error}");
    assert_eq!(error.retry(), Retry::Elsewhere);
}

#[tokio::test]
async fn a_restarted_peer_is_reached_again() {
    let ca = ca();
    let identity = ca.issue(Role::Chunkserver, "c1").unwrap();
    let client = Endpoint::client(&ca.issue(Role::Client, "cli").unwrap()).unwrap();
    let mut addr = ANY;
    for _ in 0..3 {
        // In one process the port is free once the last task of the old endpoint has ended.
        while std::net::UdpSocket::bind(addr).is_err() {
            tokio::task::yield_now().await;
        }
        let node = start_at(addr, &identity, ServeLimits::default());
        addr = node.addr;
        assert_alive(&client, addr).await;
        node.trigger.trigger();
        node.server.await.unwrap();
        node.endpoint.close().await;
        let gone = ask(&client, addr, Ask::WhoAmI, vec![]).await.unwrap_err();
        assert!(matches!(gone, CallError::Unreachable { .. }), "{gone}");
    }
}

/// The process died without a word: its successor tells the caller so at once, instead of
/// leaving it to the idle timeout of ten seconds.
#[tokio::test]
async fn a_killed_and_restarted_peer_is_noticed_at_once() {
    let ca = ca();
    let identity = ca.issue(Role::Chunkserver, "c1").unwrap();
    let client = Endpoint::client(&ca.issue(Role::Client, "cli").unwrap()).unwrap();
    // A relay stands in for the port, so that the old server's packets can be lost like those of
    // a killed process.
    let first = start(&identity);
    let relay = Relay::start(first.addr).await;
    assert_alive(&client, relay.addr).await;
    let second = start(&identity);
    relay.point_to(second.addr);

    let began = tokio::time::Instant::now();
    let error = ask(&client, relay.addr, Ask::Echo("x".into()), vec![]).await.unwrap_err();
    assert!(
        matches!(&error, CallError::Lost { reason, .. } if reason.contains("restarted")),
        "{error}"
    );
    assert!(error.is_unknown_outcome());
    assert!(began.elapsed() < Duration::from_secs(3));
    assert_alive(&client, relay.addr).await;
}

#[tokio::test]
async fn a_drain_finishes_running_requests_and_refuses_new_ones() {
    let (_ca, node, client) = pair();
    let running = {
        let (client, addr) = (client.clone(), node.addr);
        atoll_net::task::spawn("call", async move { ask(&client, addr, Ask::Wait, vec![]).await })
    };
    node.service.entered.notified().await;
    node.trigger.trigger();
    let refused = loop {
        match ask(&client, node.addr, Ask::Echo("x".into()), vec![]).await {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    assert!(matches!(&refused, CallError::Refused(e) if e.code == Code::Unavailable), "{refused}");
    assert!(!node.server.is_finished());

    node.service.gate.notify_one();
    let (text, _) = running.await.unwrap().unwrap();
    assert_eq!(text, "waited");
    node.server.await.unwrap();
    let gone = ask(&client, node.addr, Ask::WhoAmI, vec![]).await.unwrap_err();
    assert!(matches!(gone, CallError::Unreachable { .. }), "{gone}");
}

#[tokio::test]
async fn a_drain_is_bounded() {
    let ca = ca();
    let limits = ServeLimits { drain: Duration::from_millis(50), ..ServeLimits::default() };
    let node = start_at(ANY, &ca.issue(Role::Chunkserver, "c1").unwrap(), limits);
    let client = Endpoint::client(&ca.issue(Role::Client, "cli").unwrap()).unwrap();
    let running = {
        let (client, addr) = (client.clone(), node.addr);
        atoll_net::task::spawn("call", async move { ask(&client, addr, Ask::Wait, vec![]).await })
    };
    node.service.entered.notified().await;
    node.trigger.trigger();
    node.server.await.unwrap();
    let error = running.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Lost { .. }), "{error}");
    node.service.dropped.notified().await;
}

/// A process that ends right after its last answer has not acknowledged that answer.
#[tokio::test]
async fn a_drain_does_not_wait_for_a_caller_that_is_gone() {
    let (ca, node, _client) = pair();
    let (identity, addr) = (ca.issue(Role::Client, "gone").unwrap(), node.addr);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (end, ended) = std::sync::mpsc::sync_channel::<()>(1);
    let process = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(async {
            let client = Endpoint::client(&identity).unwrap();
            tokio::select! {
                _ = ask(&client, addr, Ask::Wait, vec![]) => panic!("nothing opened the gate"),
                _ = stopped => client,
            }
        });
        // Nothing polls this runtime any more: no goodbye, no acknowledgement.
        ended.recv().unwrap();
        drop((client, runtime));
    });
    node.service.entered.notified().await;
    stop.send(()).unwrap();
    node.service.gate.notify_one();
    node.trigger.trigger();
    // Far less than the drain's bound and than the time after which a silent connection is lost.
    tokio::time::timeout(Duration::from_secs(6), node.server).await.unwrap().unwrap();
    end.send(()).unwrap();
    process.join().unwrap();
}

#[tokio::test]
async fn one_endpoint_answers_and_calls() {
    let ca = ca();
    let a = start(&ca.issue(Role::Chunkserver, "a").unwrap());
    let b = start(&ca.issue(Role::Chunkserver, "b").unwrap());
    assert_alive(&a.endpoint, b.addr).await;
    assert_alive(&b.endpoint, a.addr).await;
}

#[tokio::test]
async fn ipv6_works_where_the_system_has_it() {
    let ca = ca();
    let addr: SocketAddr = "[::1]:0".parse().unwrap();
    let identity = ca.issue(Role::Chunkserver, "c1").unwrap();
    if std::net::UdpSocket::bind(addr).is_err() {
        return;
    }
    let node = start_at(addr, &identity, ServeLimits::default());
    let client = Endpoint::client(&ca.issue(Role::Client, "cli").unwrap()).unwrap();
    assert_alive(&client, node.addr).await;
}

#[tokio::test]
async fn another_version_is_told_what_is_spoken_here() {
    let (ca, node, client) = pair();
    let identity = ca.issue(Role::Client, "raw").unwrap();
    let connection = raw(&ca, node.addr, Some(&identity)).await.unwrap();
    let mut bytes = request_bytes(&Ask::WhoAmI, b"");
    bytes[2] = 9;
    let reply = exchange(&connection, &bytes, true).await;
    let error = error_of(&reply);
    assert_eq!(error.code, Code::UnsupportedVersion);
    assert!(error.message.contains("version 9") && error.message.contains("speaks 1 to 1"));
    assert_alive(&client, node.addr).await;
}

#[tokio::test]
async fn half_a_request_is_never_executed() {
    let (ca, node, client) = pair();
    let identity = ca.issue(Role::Client, "raw").unwrap();
    let connection = raw(&ca, node.addr, Some(&identity)).await.unwrap();
    let whole = request_bytes(&Ask::Echo("x".into()), b"12345678");
    for len in [0, 1, 15, 16, 20, whole.len() - 1] {
        let reply = exchange(&connection, &whole[..len], true).await;
        assert_eq!(error_of(&reply).code, Code::Invalid, "{len} bytes");
    }
    let mut long = whole.clone();
    long.push(0);
    assert_eq!(error_of(&exchange(&connection, &long, true).await).code, Code::Invalid);
    let good = exchange(&connection, &whole, true).await;
    assert_eq!(good[3], 1, "an answer");
    assert_alive(&client, node.addr).await;
}

#[tokio::test]
async fn a_slow_sender_holds_its_own_stream_until_its_deadline_only() {
    let (ca, node, client) = pair();
    let identity = ca.issue(Role::Client, "raw").unwrap();
    let connection = raw(&ca, node.addr, Some(&identity)).await.unwrap();
    let head = RequestHead { deadline_ms: 100, token: None, trace: None };
    let bytes = frame_bytes(&head, &Ask::WhoAmI, b"12345678");
    // The body never becomes whole, and the stream does not end.
    let reply = exchange(&connection, &bytes[..bytes.len() - 1], false).await;
    assert_eq!(error_of(&reply).code, Code::Deadline);
    assert_alive(&client, node.addr).await;
}

#[tokio::test]
async fn garbage_on_streams_and_on_the_socket_hurts_nobody_else() {
    use proptest::strategy::{Strategy, ValueTree};
    use proptest::test_runner::TestRunner;

    let (ca, node, client) = pair();
    let identity = ca.issue(Role::Client, "raw").unwrap();
    let connection = raw(&ca, node.addr, Some(&identity)).await.unwrap();
    let socket = std::net::UdpSocket::bind(ANY).unwrap();
    let mut runner = TestRunner::deterministic();
    let tails = proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600);
    for round in 0u32..300 {
        let noise = tails.new_tree(&mut runner).unwrap().current();
        drop(socket.send_to(&noise, node.addr));
        let bytes = match round % 3 {
            0 => noise,
            // A good prefix, then noise as the head.
            1 => {
                let head_len = u32::try_from(noise.len()).unwrap();
                let prefix = Prefix { version: 1, kind: Kind::Request, head_len, body_len: 0 };
                [&prefix.encode()[..], &noise].concat()
            }
            // A good request with some bytes changed.
            _ => {
                let mut bytes = request_bytes(&Ask::Echo("hello".into()), &noise);
                for (n, byte) in noise.iter().enumerate().take(3) {
                    let at = usize::from(*byte) * (n + 1) % bytes.len();
                    bytes[at] ^= 1 << (byte % 8);
                }
                bytes
            }
        };
        let reply = exchange(&connection, &bytes, true).await;
        assert!(matches!(reply.get(3), Some(1 | 2)), "round {round}: a reply of some kind");
    }
    assert!(connection.close_reason().is_none());
    assert_alive(&client, node.addr).await;
}

#[tokio::test]
async fn half_open_streams_do_not_stop_others() {
    let (ca, node, client) = pair();
    let identity = ca.issue(Role::Client, "raw").unwrap();
    let connection = raw(&ca, node.addr, Some(&identity)).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..200 {
        let (mut send, recv) = connection.open_bi().await.unwrap();
        send.write_all(&[0xa7]).await.unwrap();
        held.push((send, recv));
    }
    assert_alive(&client, node.addr).await;
    drop(held);
}

// ---- a peer that does not play by the rules ----

async fn raw(
    ca: &ClusterCa,
    addr: SocketAddr,
    identity: Option<&Identity>,
) -> Result<quinn::Connection, quinn::ConnectionError> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.cert_pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let cert = CertificateDer::from_pem_slice(identity.cert_pem.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![cert], key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"atoll/1".to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
    let endpoint = quinn::Endpoint::client(ANY).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    endpoint.connect_with(config, addr, "atoll.internal").unwrap().await
}

/// In TLS 1.3 the client is done first, and hears of the refusal right after.
async fn assert_refused(connection: Result<quinn::Connection, quinn::ConnectionError>) {
    if let Ok(connection) = connection {
        let closed = connection.closed();
        let closed = tokio::time::timeout(Duration::from_secs(5), closed).await.unwrap();
        assert!(!matches!(closed, quinn::ConnectionError::TimedOut), "{closed}");
    }
}

fn request_bytes(ask: &Ask, body: &[u8]) -> Vec<u8> {
    frame_bytes(&RequestHead { deadline_ms: 5000, token: None, trace: None }, ask, body)
}

fn frame_bytes(head: &RequestHead, ask: &Ask, body: &[u8]) -> Vec<u8> {
    let head = [atoll_proto::encode(head), atoll_proto::encode(ask)].concat();
    let head_len = u32::try_from(head.len()).unwrap();
    let prefix = Prefix { version: 1, kind: Kind::Request, head_len, body_len: body.len() as u64 };
    [&prefix.encode()[..], &head, body].concat()
}

async fn exchange(connection: &quinn::Connection, bytes: &[u8], finish: bool) -> Vec<u8> {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    // The server may have answered and stopped reading before it has all.
    drop(send.write_all(bytes).await);
    if finish {
        drop(send.finish());
    }
    let reply = recv.read_to_end(1 << 20);
    tokio::time::timeout(Duration::from_secs(5), reply).await.unwrap().unwrap()
}

fn error_of(reply: &[u8]) -> WireError {
    let prefix = Prefix::decode(reply[..16].try_into().unwrap()).unwrap();
    assert_eq!(prefix.kind, Kind::Error);
    atoll_proto::decode(&reply[16..]).unwrap()
}

/// Passes datagrams between one client and a server that may be exchanged.
struct Relay {
    addr: SocketAddr,
    server: tokio::sync::watch::Sender<SocketAddr>,
}

impl Relay {
    async fn start(server: SocketAddr) -> Relay {
        let front = tokio::net::UdpSocket::bind(ANY).await.unwrap();
        let back = tokio::net::UdpSocket::bind(ANY).await.unwrap();
        let addr = front.local_addr().unwrap();
        let (sender, receiver) = tokio::sync::watch::channel(server);
        atoll_net::task::spawn("relay", async move {
            let mut client = None;
            let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
            loop {
                tokio::select! {
                    Ok((len, from)) = front.recv_from(&mut up) => {
                        client = Some(from);
                        let server = *receiver.borrow();
                        back.send_to(&up[..len], server).await.unwrap();
                    }
                    Ok((len, from)) = back.recv_from(&mut down) => {
                        if from == *receiver.borrow() && let Some(client) = client {
                            front.send_to(&down[..len], client).await.unwrap();
                        }
                    }
                }
            }
        });
        Relay { addr, server: sender }
    }

    fn point_to(&self, server: SocketAddr) {
        self.server.send_replace(server);
    }
}
