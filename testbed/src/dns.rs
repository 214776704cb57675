//! Asking a name server, over UDP and TCP, without a resolver in between.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::rdata::opt::{ClientSubnet, EdnsOption};
use hickory_proto::rr::{Name, RData, RecordType};

const TIMEOUT: Duration = Duration::from_secs(5);

/// How the question travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One datagram each way.
    Udp,
    /// With a length before each message.
    Tcp,
}

/// Asks one question.
///
/// # Errors
/// When no answer to it comes back.
pub fn ask(
    server: SocketAddr,
    transport: Transport,
    name: &str,
    kind: RecordType,
    subnet: Option<(IpAddr, u8)>,
) -> Result<Message> {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name)?, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    if let Some((address, prefix)) = subnet {
        let option = EdnsOption::Subnet(ClientSubnet::new(address, prefix, 0));
        edns.options_mut().insert(option);
    }
    message.set_edns(edns);
    let packet = message.to_vec()?;
    let answer = exchange(server, transport, &packet)?;
    let answer = Message::from_vec(&answer).context("the answer is a DNS message")?;
    ensure!(answer.metadata.id == message.metadata.id, "the answer has another id");
    Ok(answer)
}

/// Sends a packet, whatever it is, and returns what comes back.
///
/// # Errors
/// When nothing does.
pub fn exchange(server: SocketAddr, transport: Transport, packet: &[u8]) -> Result<Vec<u8>> {
    match transport {
        Transport::Udp => over_udp(server, packet),
        Transport::Tcp => over_tcp(server, packet),
    }
}

fn over_udp(server: SocketAddr, packet: &[u8]) -> Result<Vec<u8>> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.connect(server)?;
    socket.send(packet)?;
    let mut buffer = vec![0; 65_535];
    let length = socket.recv(&mut buffer).with_context(|| format!("answer from {server}"))?;
    buffer.truncate(length);
    Ok(buffer)
}

fn over_tcp(server: SocketAddr, packet: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(&u16::try_from(packet.len())?.to_be_bytes())?;
    stream.write_all(packet)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut buffer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut buffer)?;
    Ok(buffer)
}

/// The A and AAAA addresses of an answer.
pub fn addresses(message: &Message) -> Vec<IpAddr> {
    message
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(a) => Some(IpAddr::V4(a.0)),
            RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
            _ => None,
        })
        .collect()
}
