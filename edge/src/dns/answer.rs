//! From a packet to the reply: pure, without sockets or a clock.
//!
//! [`super::listener`] makes an [`Answerer`] for every state of the cluster and calls
//! [`Answerer::answer`] for every packet. What a packet asks is read by [`super::query`]; what a
//! name is, by [`super::zone`]; where it leads, by [`super::route`].

use std::{net::IpAddr, sync::Arc};

use hickory_proto::{
    op::{Edns, Message, MessageType, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{
            HINFO, HTTPS, SVCB,
            opt::EdnsOption,
            svcb::{Alpn, IpHint, SvcParamKey, SvcParamValue},
        },
    },
};

use super::{
    query::{self, Ask, ClientSubnet, Failure, NoAsk},
    route::{Client, Family, Picked, RouteTable},
    zone::{DnsView, Place, SiteNames, Zone, address_records},
};

/// UDP payload in bytes that crosses the internet in one piece (DNS flag day 2020): what we
/// announce, and the most we send however much the asker takes.
const UDP_BYTES_MAX: u16 = 1232;
/// What every asker takes over UDP (RFC 1035).
const UDP_BYTES_MIN: u16 = 512;
/// The option code of EDNS Client Subnet.
const OPTION_CLIENT_SUBNET: u16 = 8;
/// Where the scope stands in a Client Subnet option.
const SCOPE_AT: usize = 3;
/// Port that HTTPS records do not mention.
const HTTPS_PORT: u16 = 443;
/// Record types that ask for something else than records (RFC 6895 section 3.1).
const META_TYPES: std::ops::RangeInclusive<u16> = 128..=254;

/// How a packet travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Replies that are too long are cut and marked, so that the asker comes back over TCP.
    Udp,
    /// Replies up to 65,535 bytes.
    Tcp,
}

/// A reply, and what to count it under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The packet to send.
    pub packet: Vec<u8>,
    /// The type asked for, if it is one of ours; else `other`, or `none` if none could be read.
    pub asked: &'static str,
    /// The response code in the names of RFC 6895.
    pub code: &'static str,
}

/// Answers for one state of the cluster.
#[derive(Clone, Debug)]
pub struct Answerer {
    zone: Arc<Zone>,
    routes: Arc<RouteTable>,
    view: Arc<DnsView>,
    names: SiteNames,
}

/// What a question comes to, before it is a message.
#[derive(Default)]
struct Outcome {
    code: ResponseCode,
    /// Whether this server knows for certain: in the zone, whether the name exists or not.
    authoritative: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
    /// How many bits of the client's subnet mattered.
    scope: u8,
}

impl Answerer {
    /// Prepares the names of `view`.
    pub fn new(zone: Arc<Zone>, routes: Arc<RouteTable>, view: Arc<DnsView>) -> Answerer {
        let names = SiteNames::new(&zone, &view);
        Answerer { zone, routes, view, names }
    }

    /// The same zone and routes with another state of the cluster.
    pub fn with_view(&self, view: Arc<DnsView>) -> Answerer {
        Answerer::new(self.zone.clone(), self.routes.clone(), view)
    }

    /// The reply to a packet from `from`, or nothing if it must not be answered.
    pub fn answer(&self, packet: &[u8], from: IpAddr, transport: Transport) -> Option<Answer> {
        let (header, question, edns, outcome) = match query::parse(packet) {
            Ok(Ask { header, question, edns }) => {
                let subnet = edns.as_ref().and_then(|edns| edns.subnet.as_ref());
                let outcome = self.outcome(&question, client(subnet, from));
                (header, Some(question), edns, outcome)
            }
            Err(NoAsk::Drop) => return None,
            Err(NoAsk::Fail(failure)) => {
                let Failure { header, code, question, edns } = *failure;
                (header, question, edns, Outcome::failed(code))
            }
        };
        let asked = question.as_ref().map_or("none", |question| type_label(question.query_type));
        let code = code_label(outcome.code);
        let limit = match transport {
            Transport::Tcp => u16::MAX,
            Transport::Udp => edns.as_ref().map_or(UDP_BYTES_MIN, |edns| {
                edns.payload_bytes.clamp(UDP_BYTES_MIN, UDP_BYTES_MAX)
            }),
        };
        let message = message(header, question, edns, outcome);
        let packet = encode(message, usize::from(limit))?;
        Some(Answer { packet, asked, code })
    }

    fn outcome(&self, question: &Query, client: Client) -> Outcome {
        if question.query_class != DNSClass::IN {
            return Outcome::failed(ResponseCode::Refused);
        }
        match question.query_type {
            RecordType::AXFR | RecordType::IXFR => return Outcome::failed(ResponseCode::Refused),
            RecordType::OPT => return Outcome::failed(ResponseCode::FormErr),
            kind if META_TYPES.contains(&u16::from(kind)) => {
                return Outcome::failed(ResponseCode::NotImp);
            }
            _ => {}
        }
        let place = self.zone.place(&question.name, &self.view, &self.names);
        if place == Place::Outside {
            return Outcome::failed(ResponseCode::Refused);
        }
        if !self.view.ready {
            return Outcome::failed(ResponseCode::ServFail);
        }
        match place {
            Place::Outside | Place::Missing => self.negative(ResponseCode::NXDomain),
            Place::Empty => self.negative(ResponseCode::NoError),
            _ if question.query_type == RecordType::ANY => self.any(&question.name),
            Place::Apex => self.apex(question, client),
            Place::NameServer(index) => self.name_server(question, index),
            Place::Host => self.host(question, client),
        }
    }

    /// The name or the type does not exist (RFC 2308).
    fn negative(&self, code: ResponseCode) -> Outcome {
        let authorities = vec![self.zone.soa(&self.view)];
        Outcome { code, authoritative: true, authorities, ..Outcome::default() }
    }

    /// The given records, or that there are none of this type.
    fn positive(&self, answers: Vec<Record>, scope: u8) -> Outcome {
        if answers.is_empty() {
            return Outcome { scope, ..self.negative(ResponseCode::NoError) };
        }
        Outcome { authoritative: true, answers, scope, ..Outcome::default() }
    }

    /// One small record instead of all of them (RFC 8482 section 4.2).
    fn any(&self, name: &Name) -> Outcome {
        let data = RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()));
        self.positive(vec![Record::from_rdata(name.clone(), self.view.ttl_secs(), data)], 0)
    }

    fn apex(&self, question: &Query, client: Client) -> Outcome {
        match question.query_type {
            RecordType::SOA => self.positive(vec![self.zone.soa(&self.view)], 0),
            RecordType::NS => {
                let outcome = self.positive(self.zone.ns(), 0);
                Outcome { additionals: self.zone.glue(), ..outcome }
            }
            _ => self.host(question, client),
        }
    }

    fn name_server(&self, question: &Query, index: usize) -> Outcome {
        let mut records = self.zone.server_addresses(index, &question.name);
        records.retain(|record| record.record_type() == question.query_type);
        self.positive(records, 0)
    }

    /// The edges, for any name that leads to a site.
    fn host(&self, question: &Query, client: Client) -> Outcome {
        let (name, ttl) = (&question.name, self.view.ttl_secs());
        let pick = |family| self.routes.pick(client, &self.view.edges, family);
        let (records, scope) = match question.query_type {
            RecordType::A | RecordType::AAAA => {
                let v4 = question.query_type == RecordType::A;
                let picked = pick(if v4 { Family::V4 } else { Family::V6 });
                (address_records(name, &picked.addrs(), ttl), picked.scope_prefix)
            }
            RecordType::HTTPS => {
                let (v4, v6) = (pick(Family::V4), pick(Family::V6));
                (https_records(name, &v4, &v6, ttl), v4.scope_prefix)
            }
            _ => return self.negative(ResponseCode::NoError),
        };
        if self.view.edges.is_empty() {
            // "No such records" would be kept by caches; there is nobody to send visitors to yet.
            return Outcome::failed(ResponseCode::ServFail);
        }
        self.positive(records, scope)
    }
}

impl Outcome {
    fn failed(code: ResponseCode) -> Outcome {
        Outcome { code, ..Outcome::default() }
    }
}

/// Whom to route: the subnet the resolver told, else (also if the client hides) the resolver.
fn client(told: Option<&ClientSubnet>, from: IpAddr) -> Client {
    match told.and_then(|told| told.subnet) {
        Some(subnet) => Client::Subnet(subnet),
        None => Client::Resolver(from),
    }
}

/// One record for each port in use: what is behind one port is one alternative, and its hints
/// are the addresses of the A and AAAA answers where that port is served (RFC 9460 section 7).
fn https_records(name: &Name, v4: &Picked, v6: &Picked, ttl: u32) -> Vec<Record> {
    let mut ports: Vec<u16> = Vec::new();
    for target in v4.targets.iter().chain(&v6.targets) {
        if !ports.contains(&target.port) {
            ports.push(target.port);
        }
    }
    let record = |port| {
        let data = RData::HTTPS(HTTPS(https(port, v4, v6)));
        Record::from_rdata(name.clone(), ttl, data)
    };
    ports.into_iter().map(record).collect()
}

fn https(port: u16, v4: &Picked, v6: &Picked) -> SVCB {
    let hints = |picked: &Picked| {
        let at_port = picked.targets.iter().filter(|target| target.port == port).copied();
        Picked { targets: at_port.collect(), ..*picked }.addrs()
    };
    let (mut hints_v4, mut hints_v6) = (Vec::new(), Vec::new());
    for addr in hints(v4).into_iter().chain(hints(v6)) {
        match addr {
            IpAddr::V4(addr) => hints_v4.push(addr.into()),
            IpAddr::V6(addr) => hints_v6.push(addr.into()),
        }
    }
    // The order of the keys is that of their numbers, which the wire format demands.
    let alpn = Alpn(vec!["h3".to_owned(), "h2".to_owned()]);
    let mut params = vec![(SvcParamKey::Alpn, SvcParamValue::Alpn(alpn))];
    if port != HTTPS_PORT {
        params.push((SvcParamKey::Port, SvcParamValue::Port(port)));
    }
    if !hints_v4.is_empty() {
        params.push((SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(hints_v4))));
    }
    if !hints_v6.is_empty() {
        params.push((SvcParamKey::Ipv6Hint, SvcParamValue::Ipv6Hint(IpHint(hints_v6))));
    }
    SVCB::new(1, Name::root(), params)
}

fn message(
    header: query::Header,
    question: Option<Query>,
    edns: Option<query::Edns>,
    outcome: Outcome,
) -> Message {
    let mut message = Message::new(header.id, MessageType::Response, header.op_code);
    message.metadata.recursion_desired = header.recursion_desired;
    message.metadata.checking_disabled = header.checking_disabled;
    message.metadata.authoritative = outcome.authoritative;
    message.metadata.response_code = outcome.code;
    message.queries.extend(question);
    message.edns = edns.map(|edns| reply_edns(&edns, outcome.scope));
    message.answers = outcome.answers;
    message.authorities = outcome.authorities;
    message.additionals = outcome.additionals;
    message
}

/// Our OPT record: our size, the asker's DNSSEC flag (RFC 3225), its subnet with our scope.
fn reply_edns(asked: &query::Edns, scope: u8) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_BYTES_MAX).set_dnssec_ok(asked.dnssec_ok);
    if let Some(told) = &asked.subnet {
        let mut option = told.option.clone();
        if let Some(at) = option.get_mut(SCOPE_AT) {
            *at = scope;
        }
        edns.options_mut().insert(EdnsOption::Unknown(OPTION_CLIENT_SUBNET, option));
    }
    edns
}

/// Writes the message. If it is longer than `limit`, first the additional records go, which are
/// a courtesy, then all of them, and the reply is marked as cut.
fn encode(mut message: Message, limit: usize) -> Option<Vec<u8>> {
    for _ in 0..2 {
        match message.to_vec() {
            Ok(packet) if packet.len() <= limit => return Some(packet),
            Ok(_) if !message.additionals.is_empty() => message.additionals.clear(),
            Ok(_) => {
                message.metadata.truncation = true;
                break;
            }
            Err(error) => {
                tracing::error!(%error, "a DNS reply could not be written");
                message.metadata.response_code = ResponseCode::ServFail;
                message.metadata.authoritative = false;
                break;
            }
        }
    }
    message.answers.clear();
    message.authorities.clear();
    message.additionals.clear();
    message.to_vec().ok()
}

fn type_label(kind: RecordType) -> &'static str {
    match kind {
        RecordType::A => "A",
        RecordType::AAAA => "AAAA",
        RecordType::ANY => "ANY",
        RecordType::CAA => "CAA",
        RecordType::HTTPS => "HTTPS",
        RecordType::NS => "NS",
        RecordType::SOA => "SOA",
        RecordType::TXT => "TXT",
        _ => "other",
    }
}

fn code_label(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::BADVERS => "BADVERS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests;
