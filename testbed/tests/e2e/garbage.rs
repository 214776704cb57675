//! Random bytes on every listener, TCP and UDP: nothing dies, and the site is served as before.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use atoll_testbed::http::Version;
use atoll_testbed::tree::random;
use atoll_testbed::{DevCluster, Tree, seed};
use hickory_proto::rr::RecordType;
use rand::Rng as _;
use rand::rngs::StdRng;

use super::ensure_served_everywhere;

/// Datagrams to each UDP port.
const DATAGRAMS: usize = 3000;
/// Connections to each TCP port.
const CONNECTIONS: usize = 60;

/// First bytes that get further than random ones do.
const OPENINGS: &[&[u8]] = &[
    b"",
    b"GET / HTTP/1.1\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x16\x03\x01\xff\xff",
    b"\x00\x1c\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00",
];
const DATAGRAM_OPENINGS: &[&[u8]] = &[
    b"",
    b"\xc3\x00\x00\x00\x01\x08",
    b"\xc0\x00\x00\x00\x01\x14",
    b"\xc0\xff\x00\x00\x1d\x00",
    b"\x40\x00\x00\x00",
    b"\xc0\x00\x00\x00\x00\x08",
    b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_bytes_on_every_listener_kill_nothing() -> Result<()> {
    let seed = seed::or(11);
    let cluster = DevCluster::builder().seed(seed).start()?;
    let tree = Tree::ordinary(seed, 30);
    let source = cluster.work().join("site");
    tree.write(&source)?;
    cluster.deploy(&source, "calm")?;

    let ready = cluster.ready();
    let mut tcp: Vec<SocketAddr> = Vec::new();
    let mut udp: Vec<SocketAddr> = Vec::new();
    for edge in &ready.edges {
        tcp.extend([edge.http, edge.https, edge.admin]);
        udp.push(edge.https);
    }
    for dns in &ready.dns {
        tcp.push(dns.addr);
        udp.push(dns.addr);
    }
    udp.extend(ready.masters.iter().map(|master| master.addr));
    udp.extend(ready.chunkservers.iter().map(|chunkserver| chunkserver.addr));
    tcp.extend(ready.masters.iter().filter_map(|master| master.admin));
    tcp.extend(ready.chunkservers.iter().filter_map(|chunkserver| chunkserver.admin));

    let mut rng = seed::rng(seed);
    for addr in udp {
        noise_over_udp(addr, &mut rng)?;
    }
    for addr in tcp {
        noise_over_tcp(addr, &mut rng)?;
    }
    cluster.ensure_all_run()?;
    cluster.wait_healthy()?;
    ensure_served_everywhere(&cluster, "calm", &tree, &Version::ALL).await?;
    let dns = &ready.dns[0];
    let name = format!("calm.{}", dns.zone);
    let transport = atoll_testbed::dns::Transport::Udp;
    let answer = atoll_testbed::dns::ask(dns.addr, transport, &name, RecordType::A, None)?;
    ensure!(!answer.answers.is_empty(), "{answer:?}");
    let mut next = tree.clone();
    next.put("version.txt", "after the noise");
    next.write(&source)?;
    cluster.deploy(&source, "calm")?;
    ensure_served_everywhere(&cluster, "calm", &next, &Version::ALL).await?;
    cluster.finish()
}

fn noise_over_udp(addr: SocketAddr, rng: &mut StdRng) -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(addr)?;
    for number in 0..DATAGRAMS {
        let opening = DATAGRAM_OPENINGS[number % DATAGRAM_OPENINGS.len()];
        let length = rng.random_range(0..1500);
        let packet = [opening, &random(rng, length)].concat();
        // A full socket buffer or a reset is the noise's own problem.
        drop(socket.send(&packet));
    }
    Ok(())
}

fn noise_over_tcp(addr: SocketAddr, rng: &mut StdRng) -> Result<()> {
    // Some stay open in silence meanwhile.
    let silent: Vec<TcpStream> =
        (0..10).map(|_| TcpStream::connect(addr)).collect::<std::io::Result<_>>()?;
    for number in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(addr)?;
        stream.set_write_timeout(Some(Duration::from_secs(2)))?;
        stream.set_read_timeout(Some(Duration::from_millis(20)))?;
        let opening = OPENINGS[number % OPENINGS.len()];
        let length = rng.random_range(0..20_000);
        // The other end may close at any byte.
        drop(stream.write_all(&[opening, &random(rng, length)].concat()));
        drop(stream.read(&mut [0; 4096]));
    }
    drop(silent);
    Ok(())
}
