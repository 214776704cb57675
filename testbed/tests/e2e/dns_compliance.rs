//! DNS as an independent client sees it: what RFC 1035, 2308, 6891, 7871, 7873, 8482, 8906 and 9460
//! ask of an authoritative server, over UDP and TCP.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use atoll_testbed::dns::{Transport, ask, exchange};
use atoll_testbed::{DevCluster, Tree, seed, wait};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{DNSClass, Name, RecordType};

const PATIENCE: Duration = Duration::from_secs(40);

fn query(name: &str, kind: RecordType) -> Result<Message> {
    let mut message = Message::query();
    let mut name = Name::from_ascii(name)?;
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    Ok(message)
}

fn edns(message: &Message) -> Message {
    let mut message = message.clone();
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.edns = Some(edns);
    message
}

fn with_option(message: &Message, code: u16, data: &[u8]) -> Message {
    let mut message = edns(message);
    if let Some(edns) = &mut message.edns {
        edns.options_mut().insert(EdnsOption::Unknown(code, data.to_vec()));
    }
    message
}

fn option(reply: &Message, code: u16) -> Result<Vec<u8>> {
    let edns = reply.edns.as_ref().context("EDNS in the reply")?;
    let option = edns.option(EdnsCode::from(code)).context("the option in the reply")?;
    Ok(Vec::<u8>::try_from(option)?)
}

struct Server {
    addr: SocketAddr,
    /// A site's name.
    site: String,
    zone: String,
}

impl Server {
    fn ask(&self, packet: &Message) -> Result<Message> {
        self.raw(&packet.to_vec()?)
    }

    /// Over both transports: the same but for what must differ.
    fn raw(&self, packet: &[u8]) -> Result<Message> {
        let udp = Message::from_vec(&exchange(self.addr, Transport::Udp, packet)?)?;
        let tcp = Message::from_vec(&exchange(self.addr, Transport::Tcp, packet)?)?;
        ensure!(udp.metadata.response_code == tcp.metadata.response_code, "{udp:?} {tcp:?}");
        ensure!(udp.metadata.message_type == MessageType::Response, "{udp:?}");
        ensure!(!udp.metadata.recursion_available, "{udp:?}");
        Ok(udp)
    }
}

#[test]
fn the_server_does_what_the_standards_ask() -> Result<()> {
    let seed = seed::or(41);
    let cluster = DevCluster::builder().edges(2).seed(seed).start()?;
    let source = cluster.work().join("site");
    Tree::ordinary(seed, 3).write(&source)?;
    cluster.deploy(&source, "plain")?;
    let dns = cluster.ready().dns.first().cloned().context("a name server")?;
    let site = format!("plain.{}", dns.zone);
    wait::until("the site has its name", PATIENCE, || {
        let answer = ask(dns.addr, Transport::Udp, &site, RecordType::A, None)?;
        Ok((!answer.answers.is_empty()).then_some(()))
    })?;
    let server = Server { addr: dns.addr, site, zone: dns.zone };
    plain_dns(&server).context("plain DNS")?;
    negative(&server).context("negative answers")?;
    extended(&server).context("EDNS")?;
    cookies(&server).context("cookies")?;
    client_subnet(&server).context("client subnet")?;
    malformed(&server).context("malformed queries")?;
    cluster.finish()
}

fn plain_dns(server: &Server) -> Result<()> {
    let reply = server.ask(&query(&server.site, RecordType::A)?)?;
    ensure!(reply.metadata.authoritative && !reply.answers.is_empty(), "{reply:?}");
    ensure!(reply.edns.is_none(), "EDNS only if it was asked for: {reply:?}");
    let mixed = server.site.to_uppercase();
    let reply = server.ask(&query(&mixed, RecordType::A)?)?;
    ensure!(reply.answers[0].name.to_ascii().trim_end_matches('.') == mixed, "{reply:?}");
    for kind in [RecordType::SOA, RecordType::NS] {
        let reply = server.ask(&query(&server.zone, kind)?)?;
        ensure!(reply.answers.iter().all(|record| record.record_type() == kind), "{reply:?}");
        ensure!(!reply.answers.is_empty(), "{reply:?}");
    }
    // RFC 8482: little instead of everything.
    let any = server.ask(&query(&server.site, RecordType::ANY)?)?;
    ensure!(any.answers.len() == 1, "{any:?}");
    for kind in [RecordType::AXFR, RecordType::IXFR] {
        let reply = server.ask(&query(&server.zone, kind)?)?;
        ensure!(reply.metadata.response_code == ResponseCode::Refused, "{reply:?}");
        ensure!(reply.answers.is_empty(), "{reply:?}");
    }
    let outside = server.ask(&query("example.com", RecordType::A)?)?;
    ensure!(outside.metadata.response_code == ResponseCode::Refused, "{outside:?}");
    ensure!(!outside.metadata.authoritative, "{outside:?}");
    let mut chaos = query(&server.site, RecordType::A)?;
    chaos.queries[0].set_query_class(DNSClass::CH);
    let reply = server.ask(&chaos)?;
    ensure!(reply.metadata.response_code == ResponseCode::Refused, "{reply:?}");
    let mut notify = query(&server.zone, RecordType::SOA)?;
    notify.metadata.op_code = OpCode::Notify;
    let reply = server.ask(&notify)?;
    ensure!(reply.metadata.response_code == ResponseCode::NotImp, "{reply:?}");
    // RFC 8906 section 3.1.4: bits that mean nothing are not repeated; RD and CD are.
    let mut packet = query(&server.site, RecordType::A)?.to_vec()?;
    packet[2] |= 0x01;
    packet[3] |= 0x70;
    let reply = exchange(server.addr, Transport::Udp, &packet)?;
    ensure!(reply[2] & 0x01 == 1 && reply[3] & 0x70 == 0x10, "{:x} {:x}", reply[2], reply[3]);
    // RFC 3597: a type that nobody knows is a type like any other.
    let unknown = server.ask(&query(&server.site, RecordType::Unknown(6500))?)?;
    ensure!(unknown.metadata.response_code == ResponseCode::NoError, "{unknown:?}");
    ensure!(unknown.answers.is_empty() && unknown.authorities.len() == 1, "{unknown:?}");
    Ok(())
}

/// RFC 2308: the SOA record says how long that there is nothing may be kept.
fn negative(server: &Server) -> Result<()> {
    let absent = format!("absent.{}", server.zone);
    for (name, kind, code) in [
        (&absent, RecordType::A, ResponseCode::NXDomain),
        (&absent, RecordType::MX, ResponseCode::NXDomain),
        (&server.site, RecordType::MX, ResponseCode::NoError),
    ] {
        let reply = server.ask(&query(name, kind)?)?;
        ensure!(reply.metadata.response_code == code, "{reply:?}");
        ensure!(reply.metadata.authoritative && reply.answers.is_empty(), "{reply:?}");
        let soa = reply.authorities.first().context("a SOA record")?;
        ensure!(soa.record_type() == RecordType::SOA, "{soa:?}");
        ensure!(soa.name.to_ascii().trim_end_matches('.') == server.zone, "{soa:?}");
    }
    Ok(())
}

fn extended(server: &Server) -> Result<()> {
    let plain = query(&server.site, RecordType::A)?;
    let reply = server.ask(&edns(&plain))?;
    let got = reply.edns.as_ref().context("EDNS in the reply")?;
    ensure!(got.version() == 0 && got.max_payload() >= 512, "{got:?}");
    ensure!(!got.flags().dnssec_ok, "{got:?}");
    // A version that does not exist yet (RFC 6891 section 6.1.3).
    let mut newer = edns(&plain);
    newer.edns.as_mut().context("EDNS")?.set_version(1);
    let reply = server.ask(&newer)?;
    ensure!(u16::from(reply.metadata.response_code) == 16, "BADVERS: {reply:?}");
    ensure!(reply.edns.as_ref().context("EDNS")?.version() == 0, "{reply:?}");
    ensure!(reply.answers.is_empty(), "{reply:?}");
    // An option that does not exist is ignored and not repeated (section 6.1.2).
    let reply = server.ask(&with_option(&plain, 100, &[1, 2, 3]))?;
    ensure!(!reply.answers.is_empty() && option(&reply, 100).is_err(), "{reply:?}");
    // A flag that does not exist is not repeated (section 6.1.4).
    let mut packet = edns(&plain).to_vec()?;
    let end = packet.len();
    packet[end - 3] |= 0x40;
    let reply = exchange(server.addr, Transport::Udp, &packet)?;
    let reply = Message::from_vec(&reply)?;
    ensure!(!reply.answers.is_empty(), "{reply:?}");
    let flags = reply.edns.as_ref().context("EDNS")?.flags();
    ensure!(!flags.dnssec_ok && flags.z == 0, "{flags:?}");
    let mut dnssec = edns(&plain);
    dnssec.edns.as_mut().context("EDNS")?.set_dnssec_ok(true);
    let reply = server.ask(&dnssec)?;
    ensure!(reply.edns.as_ref().context("EDNS")?.flags().dnssec_ok, "RFC 3225: {reply:?}");
    // Which server this is (RFC 5001).
    let reply = server.ask(&with_option(&plain, 3, &[]))?;
    let name = option(&reply, 3)?;
    ensure!(name.starts_with(b"edge-"), "{name:?}");
    Ok(())
}

/// RFC 7873.
fn cookies(server: &Server) -> Result<()> {
    let plain = query(&server.site, RecordType::A)?;
    let first = option(&server.ask(&with_option(&plain, 10, &[7; 8]))?, 10)?;
    ensure!(first.len() == 24 && first[..8] == [7; 8], "{first:?}");
    let again = server.ask(&with_option(&plain, 10, &first))?;
    ensure!(!again.answers.is_empty() && option(&again, 10)?.len() == 24, "{again:?}");
    let bad = server.ask(&with_option(&plain, 10, &[7; 5]))?;
    ensure!(bad.metadata.response_code == ResponseCode::FormErr, "{bad:?}");
    // Someone else's cookie is no reason not to answer.
    let strange = server.ask(&with_option(&plain, 10, &[9; 24]))?;
    ensure!(!strange.answers.is_empty(), "{strange:?}");
    Ok(())
}

/// RFC 7871.
fn client_subnet(server: &Server) -> Result<()> {
    let plain = query(&server.site, RecordType::A)?;
    let told = [0, 1, 24, 0, 203, 0, 113];
    let reply = server.ask(&with_option(&plain, 8, &told))?;
    let repeated = option(&reply, 8)?;
    ensure!(repeated[..3] == told[..3] && repeated[4..] == told[4..], "{repeated:?}");
    ensure!(repeated[3] <= 24, "{repeated:?}");
    // Where it does not matter the scope is 0.
    let soa = query(&server.zone, RecordType::SOA)?;
    let repeated = option(&server.ask(&with_option(&soa, 8, &told))?, 8)?;
    ensure!(repeated[3] == 0, "{repeated:?}");
    for bad in [
        &[0, 1, 24, 0, 203, 0][..],
        &[0, 1, 24, 0, 203, 0, 113, 1],
        &[0, 1, 24, 24, 203, 0, 113],
        &[0, 1, 23, 0, 203, 0, 113],
        &[0, 1, 33, 0, 203, 0, 113, 1, 1],
        &[0, 7, 8, 0, 1],
    ] {
        let reply = server.ask(&with_option(&plain, 8, bad))?;
        ensure!(reply.metadata.response_code == ResponseCode::FormErr, "{bad:?} {reply:?}");
    }
    Ok(())
}

fn malformed(server: &Server) -> Result<()> {
    let good = edns(&query(&server.site, RecordType::A)?).to_vec()?;
    for (what, at, byte) in [
        ("no question", 5, 0),
        ("two questions", 5, 2),
        ("an answer that is not there", 7, 1),
        ("more additional records than there are", 11, 2),
        ("a label that runs out of the packet", 12, 63),
        ("a pointer to nowhere", 12, 0xff),
    ] {
        let mut packet = good.clone();
        packet[at] = byte;
        let reply = server.raw(&packet)?;
        ensure!(reply.metadata.response_code == ResponseCode::FormErr, "{what}: {reply:?}");
    }
    for length in 12..good.len() {
        let reply = server.raw(&good[..length])?;
        ensure!(reply.metadata.response_code == ResponseCode::FormErr, "{length}: {reply:?}");
    }
    // A response is never answered: two servers would talk for ever.
    let mut response = good.clone();
    response[2] |= 0x80;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(server.addr)?;
    socket.send(&response)?;
    let mut other = good;
    other[0] ^= 0xff;
    socket.send(&other)?;
    let mut buffer = [0; 2048];
    // What comes is the answer to the second one. Two threads may share the work, so an answer to
    // the first, if there were one, could come after it: it would be the next.
    let length = socket.recv(&mut buffer)?;
    ensure!(buffer[..2] == other[..2] && length > 12, "the answer to a response");
    Ok(())
}
