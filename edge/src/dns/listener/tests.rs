//! Tests of the module beside this file.
#![allow(clippy::unwrap_used, reason = "tests")]

use atoll_net::{
    shutdown::{ShutdownTrigger, pair},
    task::{AbortOnDrop, spawn},
};
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RecordType},
};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};

use tokio::net::{TcpStream, UdpSocket};

use super::*;
use crate::dns::EdgeView;
use crate::dns::config::RateLimit;
use crate::dns::mmdb_tests::{Value, write};
use crate::dns::places::{CONNECTIONS_MAX, OF_BLOCK_MAX};

/// Long enough for a loaded machine; a test waits for it only when it fails.
const PATIENCE: Duration = Duration::from_secs(20);

struct Server {
    addr: SocketAddr,
    view: watch::Sender<Arc<DnsView>>,
    trigger: ShutdownTrigger,
    task: AbortOnDrop<()>,
}

impl Server {
    async fn start(view: DnsView) -> Server {
        Server::start_with(view, DnsConfig { udp_threads: Some(2), ..DnsConfig::default() }).await
    }

    async fn start_with(view: DnsView, config: DnsConfig) -> Server {
        let listener = bind(&config, None).await.unwrap();
        let addr = listener.local_addr();
        let (view, views) = watch::channel(Arc::new(view));
        let (trigger, shutdown) = pair();
        let task = AbortOnDrop::new(spawn("dns", listener.serve(views, shutdown)));
        Server { addr, view, trigger, task }
    }

    async fn udp(&self, query: &Message) -> Message {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.addr).await.unwrap();
        let mut buffer = [0; 2048];
        // The datagram may be lost behind a burst of others.
        for _ in 0..20 {
            socket.send(&query.to_vec().unwrap()).await.unwrap();
            let received = timeout(Duration::from_secs(1), socket.recv(&mut buffer)).await;
            if let Ok(length) = received {
                return Message::from_vec(&buffer[..length.unwrap()]).unwrap();
            }
        }
        panic!("no reply over UDP");
    }

    async fn tcp(&self, queries: &[Message]) -> Vec<Message> {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        let mut packets = Vec::new();
        queries.iter().for_each(|query| packets.extend(in_frame(query)));
        stream.write_all(&packets).await.unwrap();
        let mut replies = Vec::new();
        for _ in queries {
            replies.push(read_reply(&mut stream).await);
        }
        replies
    }
}

fn in_frame(query: &Message) -> Vec<u8> {
    let mut frame = Vec::new();
    framed(&query.to_vec().unwrap(), &mut frame).unwrap();
    frame
}

async fn read_reply(stream: &mut TcpStream) -> Message {
    let read = async {
        let mut reply = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut reply).await.unwrap();
        Message::from_vec(&reply).unwrap()
    };
    timeout(PATIENCE, read).await.unwrap()
}

/// Three edges with `addrs` addresses each.
fn view(addrs: u8) -> DnsView {
    let edge = |index: u8| EdgeView {
        name: format!("edge-{index}"),
        region: "eu".to_owned(),
        addrs: (0..addrs).map(|last| IpAddr::from([192, 0, index, last])).collect(),
        https_port: 443,
        ready: true,
        weight: 1,
    };
    DnsView {
        ready: true,
        edges: (1..=3).map(edge).collect(),
        sites: ["docs".to_owned()].into(),
        ..DnsView::default()
    }
}

fn query(id: u16, name: &str) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.queries.push(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message
}

#[tokio::test]
async fn udp_and_tcp_answer_on_one_port_and_follow_the_view() {
    let mut server = Server::start(DnsView::default()).await;
    let docs = query(1, "docs.atoll.test.");
    assert_eq!(server.udp(&docs).await.metadata.response_code, ResponseCode::ServFail);
    let mut now = view(1);
    server.view.send_replace(Arc::new(now.clone()));
    // The task that follows the view runs when it runs.
    let answered = async {
        while server.udp(&docs).await.answers.len() != 3 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, answered).await.unwrap();
    now.edges[0].ready = false;
    server.view.send_replace(Arc::new(now));
    let left = async {
        while server.tcp(std::slice::from_ref(&docs)).await[0].answers.len() != 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, left).await.unwrap();
    server.trigger.trigger();
    timeout(PATIENCE, server.task.join()).await.unwrap().unwrap();
    assert!(TcpStream::connect(server.addr).await.is_err());
}

#[tokio::test]
async fn a_cut_reply_is_whole_over_tcp_and_queries_may_be_sent_ahead() {
    let server = Server::start(view(20)).await;
    let docs = query(1, "docs.atoll.test.");
    let cut = server.udp(&docs).await;
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let queries = [docs, query(2, "nope.atoll.test."), query(3, "example.org.")];
    let replies = server.tcp(&queries).await;
    assert_eq!(replies[0].answers.len(), 32);
    let codes: Vec<_> = replies.iter().map(|reply| reply.metadata.response_code).collect();
    assert_eq!(codes, [ResponseCode::NoError, ResponseCode::NXDomain, ResponseCode::Refused]);
    assert_eq!(replies.iter().map(|reply| reply.metadata.id).collect::<Vec<_>>(), [1, 2, 3]);
}

#[tokio::test]
async fn a_query_may_come_in_pieces_and_one_that_is_too_long_ends_the_connection() {
    let server = Server::start(view(1)).await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in in_frame(&query(9, "docs.atoll.test.")) {
        stream.write_all(&[byte]).await.unwrap();
    }
    assert_eq!(read_reply(&mut stream).await.metadata.id, 9);
    stream.write_all(&[0xff, 0xff, 0]).await.unwrap();
    let end = timeout(PATIENCE, stream.read_u8()).await.unwrap();
    assert!(end.is_err());
}

#[tokio::test]
async fn connections_beyond_the_bound_are_closed_and_a_freed_place_is_used_again() {
    let server = Server::start(view(1)).await;
    let mut held = Vec::new();
    for id in 0..u16::try_from(CONNECTIONS_MAX).unwrap() {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        let packet = in_frame(&query(id, "docs.atoll.test."));
        stream.write_all(&packet).await.unwrap();
        read_reply(&mut stream).await;
        held.push(stream);
    }
    let mut extra = TcpStream::connect(server.addr).await.unwrap();
    assert!(timeout(PATIENCE, extra.read_u8()).await.unwrap().is_err());
    held.pop();
    let again = async {
        loop {
            let mut stream = TcpStream::connect(server.addr).await.unwrap();
            let packet = in_frame(&query(7, "docs.atoll.test."));
            if stream.write_all(&packet).await.is_ok() && stream.read_u16().await.is_ok() {
                break;
            }
        }
    };
    timeout(PATIENCE, again).await.unwrap();
}

#[tokio::test]
async fn one_block_does_not_take_the_connections_of_others() {
    let rate_limit = RateLimit { exempt: Vec::new(), ..RateLimit::default() };
    let config = DnsConfig { rate_limit, udp_threads: Some(1), ..DnsConfig::default() };
    let server = Server::start_with(view(1), config).await;
    let mut held = Vec::new();
    for id in 0..u16::try_from(OF_BLOCK_MAX).unwrap() {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(&in_frame(&query(id, "docs.atoll.test."))).await.unwrap();
        read_reply(&mut stream).await;
        held.push(stream);
    }
    let mut extra = TcpStream::connect(server.addr).await.unwrap();
    assert!(timeout(PATIENCE, extra.read_u8()).await.unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_bytes_leave_the_server_answering() {
    let server = Server::start(view(1)).await;
    let mut runner = TestRunner::new(Config::default());
    let bytes = prop::collection::vec(any::<u8>(), 0..1200);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for round in 0..300 {
        let bytes = bytes.new_tree(&mut runner).unwrap().current();
        socket.send_to(&bytes, server.addr).await.unwrap();
        if round % 10 == 0 {
            let mut stream = TcpStream::connect(server.addr).await.unwrap();
            // The server may hang up in the middle of nonsense.
            stream.write_all(&bytes).await.ok();
        }
    }
    let docs = query(5, "docs.atoll.test.");
    assert_eq!(server.udp(&docs).await.answers.len(), 3);
    assert_eq!(server.tcp(&[docs]).await[0].answers.len(), 3);
}

#[tokio::test]
async fn a_taken_port_is_an_error_that_names_it() {
    let server = Server::start(view(1)).await;
    let config = DnsConfig { listen: server.addr, ..DnsConfig::default() };
    let error = bind(&config, None).await.unwrap_err();
    assert!(error.to_string().contains(&server.addr.to_string()));
}

#[tokio::test]
async fn many_queries_sent_ahead_are_answered_in_turn() {
    let server = Server::start(view(1)).await;
    let queries: Vec<Message> = (0..3000).map(|id| query(id, "docs.atoll.test.")).collect();
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let all: Vec<u8> = queries.iter().flat_map(in_frame).collect();
    let send = async { writer.write_all(&all).await.unwrap() };
    let read = async {
        for id in 0..3000 {
            let mut reply = vec![0; usize::from(reader.read_u16().await.unwrap())];
            reader.read_exact(&mut reply).await.unwrap();
            assert_eq!(Message::from_vec(&reply).unwrap().metadata.id, id);
        }
    };
    timeout(PATIENCE, async { tokio::join!(send, read) }).await.unwrap();
}

#[tokio::test]
async fn a_flood_is_cut_and_whoever_is_real_gets_an_answer() {
    let rate_limit = RateLimit { per_second: 5, exempt: Vec::new() };
    let config = DnsConfig { rate_limit, udp_threads: Some(2), ..DnsConfig::default() };
    let server = Server::start_with(view(1), config).await;
    let docs = query(1, "docs.atoll.test.");
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server.addr).await.unwrap();
    let packet = docs.to_vec().unwrap();
    let mut buffer = [0; 2048];
    let (mut whole, mut cut) = (0, 0);
    let flooded = async {
        // Until one is cut: some are lost, and how fast they come is not known.
        while cut == 0 {
            socket.send(&packet).await.unwrap();
            while let Ok(length) = socket.try_recv(&mut buffer) {
                let reply = Message::from_vec(&buffer[..length]).unwrap();
                assert_eq!(reply.queries, docs.queries);
                assert_eq!(reply.answers.is_empty(), reply.metadata.truncation);
                if reply.metadata.truncation { cut += 1 } else { whole += 1 }
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, flooded).await.unwrap();
    assert!(whole > 0);
    assert_eq!(server.tcp(&[docs]).await[0].answers.len(), 3);
}

#[tokio::test]
async fn a_new_database_is_in_force_without_a_restart_and_a_broken_one_is_not() {
    let text = |text: &str| Value::Text(text.to_owned());
    let database = |country: &str| {
        let record = Value::Map(vec![("country_code".to_owned(), text(country))]);
        write("Test", &[("127.0.0.0/8".parse().unwrap(), record)])
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("geo.mmdb");
    let put = |bytes: &[u8]| {
        let new = dir.path().join("new");
        std::fs::write(&new, bytes).unwrap();
        std::fs::rename(&new, &path).unwrap();
    };
    put(&database("DE"));
    let mut now = view(1);
    for (edge, region) in now.edges.iter_mut().zip(["eu", "us", "ap"]) {
        edge.region = region.to_owned();
    }
    let config = DnsConfig { mmdb: vec![path.clone()], ..DnsConfig::default() };
    let missing = DnsConfig { mmdb: vec![dir.path().join("none.mmdb")], ..config.clone() };
    assert!(bind(&missing, None).await.unwrap_err().to_string().contains("none.mmdb"));
    let server = Server::start_with(now, config).await;
    let docs = query(1, "docs.atoll.test.");
    let first = async || server.udp(&docs).await.answers.first().map(|record| record.data.clone());
    let edge = |index: u8| {
        let addr = std::net::Ipv4Addr::new(192, 0, index, 0);
        Some(hickory_proto::rr::RData::A(addr.into()))
    };
    let becomes = async |index: u8| {
        let waited = async {
            while first().await != edge(index) {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, waited).await.unwrap();
    };
    becomes(1).await;
    put(b"broken");
    put(&database("US"));
    becomes(2).await;
    put(b"broken");
    assert_eq!(first().await, edge(2), "the one before stays");
    put(&database("JP"));
    becomes(3).await;
}

#[tokio::test]
async fn tls_answers_as_tcp_does() {
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};

    let made = rcgen::generate_simple_self_signed(["ns.test".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let tls = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let config = DnsConfig { tls_listen: Some(any), ..DnsConfig::default() };
    assert!(matches!(bind(&config, None).await, Err(BindError::NoCertificate)));
    let listener = bind(&config, Some(Arc::new(tls))).await.unwrap();
    let addr = listener.tls_addr().unwrap();
    let (_view, views) = watch::channel(Arc::new(view(1)));
    let (_trigger, shutdown) = pair();
    let _task = AbortOnDrop::new(spawn("dns", listener.serve(views, shutdown)));

    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let answered = async {
        // The first view is put in force by a task of its own.
        loop {
            let stream = TcpStream::connect(addr).await.unwrap();
            let connector = tokio_rustls::TlsConnector::from(Arc::new(client.clone()));
            let name = ServerName::try_from("ns.test").unwrap();
            let mut stream = connector.connect(name, stream).await.unwrap();
            stream.write_all(&in_frame(&query(3, "docs.atoll.test."))).await.unwrap();
            let mut reply = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut reply).await.unwrap();
            let reply = Message::from_vec(&reply).unwrap();
            assert_eq!(reply.metadata.id, 3);
            if reply.answers.len() == 3 {
                break;
            }
        }
    };
    timeout(PATIENCE, answered).await.unwrap();
}
