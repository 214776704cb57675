//! Asking another name server one question, for checks of what the world sees of a zone.
//!
//! Called by the command line. No resolver: nothing is followed, tried again or kept.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(3);

/// A question.
#[derive(Clone, Copy, Debug)]
pub struct Question<'q> {
    /// The name, with or without a final dot.
    pub name: &'q str,
    /// The type, in upper case, such as `NS`.
    pub kind: &'static str,
    /// Whether the server is to ask others.
    pub recurse: bool,
    /// Over TCP from the start.
    pub tcp: bool,
}

/// An answer, as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// The response code, as it is written in RFC 6895 or as the codec calls it.
    pub code: String,
    /// The server is responsible for the name.
    pub authoritative: bool,
    /// The records of the answer.
    pub answers: Vec<Line>,
    /// The records of the authority section: in a referral, where to go.
    pub authorities: Vec<Line>,
    /// The additional records, such as addresses of name servers.
    pub additionals: Vec<Line>,
}

/// A record, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its name in lower case, with a final dot.
    pub name: String,
    /// Its type.
    pub kind: String,
    /// Its data, names in lower case.
    pub data: String,
    /// Its address, if it is one.
    pub addr: Option<IpAddr>,
}

impl Reply {
    /// The data of the answers of a type.
    pub fn data(&self, kind: &str) -> Vec<&str> {
        let of_kind = self.answers.iter().filter(|line| line.kind == kind);
        of_kind.map(|line| line.data.as_str()).collect()
    }

    /// The addresses of the answers.
    pub fn addrs(&self) -> Vec<IpAddr> {
        self.answers.iter().filter_map(|line| line.addr).collect()
    }
}

/// Asks one question; an answer that was cut is asked for again over TCP.
///
/// # Errors
/// When the name is none, or no answer comes in time.
pub async fn ask(server: SocketAddr, question: Question<'_>) -> io::Result<Reply> {
    let invalid = |error: &dyn std::fmt::Display| {
        io::Error::new(io::ErrorKind::InvalidInput, error.to_string())
    };
    let mut name = Name::from_ascii(question.name).map_err(|error| invalid(&error))?;
    name.set_fqdn(true);
    let kind: RecordType = question.kind.parse().map_err(|_| invalid(&"an unknown type"))?;
    let mut query = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = question.recurse;
    query.queries.push(Query::query(name, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(super::answer::UDP_BYTES_MAX);
    query.edns = Some(edns);
    let packet = query.to_vec().map_err(|error| invalid(&error))?;
    let over = async |tcp: bool| {
        let asked = async {
            if tcp { over_tcp(server, &packet).await } else { over_udp(server, &packet).await }
        };
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
        timeout(DEADLINE, asked).await.map_err(late)?
    };
    let reply = over(question.tcp).await?;
    let reply = if reply.metadata.truncation && !question.tcp { over(true).await? } else { reply };
    let lines = |records: &[Record]| records.iter().map(line).collect();
    Ok(Reply {
        code: super::answer::code_label(reply.metadata.response_code).to_owned(),
        authoritative: reply.metadata.authoritative,
        answers: lines(&reply.answers),
        authorities: lines(&reply.authorities),
        additionals: lines(&reply.additionals),
    })
}

fn line(record: &Record) -> Line {
    Line {
        name: record.name.to_ascii().to_ascii_lowercase(),
        kind: record.record_type().to_string(),
        data: record.data.to_string().to_ascii_lowercase(),
        addr: record.data.ip_addr(),
    }
}

async fn over_udp(server: SocketAddr, packet: &[u8]) -> io::Result<Message> {
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(packet).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What is no answer to this question is somebody's guess.
        if let Some(reply) = reply_to(packet, &buffer[..length]) {
            return Ok(reply);
        }
    }
}

async fn over_tcp(server: SocketAddr, packet: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let mut framed = Vec::with_capacity(2 + packet.len());
    // A question has some hundred bytes.
    framed.extend((packet.len() as u16).to_be_bytes());
    framed.extend(packet);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut reply = vec![0; usize::from(length)];
    stream.read_exact(&mut reply).await?;
    reply_to(packet, &reply)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no answer to the question"))
}

fn reply_to(query: &[u8], reply: &[u8]) -> Option<Message> {
    let message = Message::from_vec(reply).ok()?;
    let same =
        reply.get(..2) == query.get(..2) && message.metadata.message_type == MessageType::Response;
    same.then_some(message)
}
