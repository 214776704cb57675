//! From a packet to the reply: pure, without sockets or a clock.
//!
//! [`super::listener`] makes an [`Answerer`] for every state of the cluster and calls
//! [`Answerer::answer`] for every packet that [`super::fast`] leaves to it. What a packet asks is
//! read by [`super::query`]; what a name is, by [`super::names`]; where it leads, by
//! [`super::route`].

use std::{net::IpAddr, sync::Arc};

use hickory_proto::{
    op::{Edns, Message, MessageType, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{
            CNAME, HINFO, HTTPS, SVCB,
            opt::EdnsOption,
            svcb::{Alpn, IpHint, SvcParamKey, SvcParamValue},
        },
    },
};

use super::{
    config::{BadDnsConfig, DnsConfig},
    cookie::{Cookie, Secret},
    names::{Names, Node, Place, WireName},
    query::{
        self, Ask, ClientSubnet, Failure, NoAsk, OPTION_CLIENT_SUBNET, OPTION_COOKIE, OPTION_NSID,
    },
    route::{Client, Family, Picked, Routes},
    zone::{DnsView, Zones, address_records},
};

/// UDP payload in bytes that crosses the internet in one piece (DNS flag day 2020): what we
/// announce, and the most we send however much the asker takes.
pub(super) const UDP_BYTES_MAX: u16 = 1232;
/// What every asker takes over UDP (RFC 1035).
pub(super) const UDP_BYTES_MIN: u16 = 512;
/// Where the scope stands in a Client Subnet option.
pub(super) const SCOPE_AT: usize = 3;
/// Port that HTTPS records do not mention.
pub(super) const HTTPS_PORT: u16 = 443;
/// Record types that ask for something else than records (RFC 6895 section 3.1).
const META_TYPES: std::ops::RangeInclusive<u16> = 128..=254;
/// How many names a chain of CNAME records may have.
pub(super) const CHAIN_MAX: usize = 8;
/// Longest name of a server that is told: it must leave room for an answer.
pub const NSID_BYTES_MAX: usize = 64;

/// How a packet travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Replies that are too long are cut and marked, so that the asker comes back over TCP.
    Udp,
    /// Replies up to 65,535 bytes.
    Tcp,
}

/// Who asks, how and when.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    /// From where.
    pub from: IpAddr,
    /// How the packet came.
    pub transport: Transport,
    /// Seconds since the Unix epoch, for cookies; they may wrap around.
    pub now_secs: u32,
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
    /// Label of the rule that placed the client, if it was looked for.
    pub reason: Option<&'static str>,
    /// Equal for equal answers, for the limit of them.
    pub same: u64,
    /// The asker showed a cookie of ours: its address is not forged.
    pub trusted: bool,
}

/// What a server tells of itself.
#[derive(Clone, Debug)]
pub struct Identity {
    /// To those who ask (RFC 5001).
    pub(super) nsid: Vec<u8>,
    /// What cookies are made from.
    pub(super) secret: Secret,
}

impl Identity {
    /// Reads it from the configuration; `random` is the secret if none is configured.
    ///
    /// # Errors
    /// When the configured secret is none, or the name is too long.
    pub fn new(config: &DnsConfig, random: [u8; 16]) -> Result<Identity, BadDnsConfig> {
        let nsid = config.nsid.clone().unwrap_or_default().into_bytes();
        if nsid.len() > NSID_BYTES_MAX {
            return Err(BadDnsConfig::Nsid { most: NSID_BYTES_MAX });
        }
        let mut secret = random;
        if let Some(text) = &config.cookie_secret {
            let digit =
                |at: usize| text.as_bytes().get(at).and_then(|d| char::from(*d).to_digit(16));
            if text.len() != 2 * secret.len() {
                return Err(BadDnsConfig::CookieSecret);
            }
            for (at, byte) in secret.iter_mut().enumerate() {
                let pair = digit(2 * at).zip(digit(2 * at + 1));
                let (high, low) = pair.ok_or(BadDnsConfig::CookieSecret)?;
                // Two digits are a byte.
                *byte = (high << 4 | low) as u8;
            }
        }
        Ok(Identity { nsid, secret: Secret(secret) })
    }
}

/// Answers for one state of the cluster.
#[derive(Clone, Debug)]
pub struct Answerer {
    pub(super) zones: Arc<Zones>,
    pub(super) routes: Arc<Routes>,
    pub(super) view: Arc<DnsView>,
    pub(super) identity: Arc<Identity>,
    pub(super) names: Arc<Names>,
    pub(super) ttl_secs: u32,
    /// Lifetime and data of SOA records, as they stand in packets.
    pub(super) soa: (u32, Vec<u8>),
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
    reason: Option<&'static str>,
    /// The name that does not exist is in this zone.
    missing_in: Option<usize>,
}

impl Answerer {
    /// Prepares the names of `view`; `routes` were made for its edges.
    pub fn new(
        zones: Arc<Zones>,
        routes: Arc<Routes>,
        view: Arc<DnsView>,
        identity: Arc<Identity>,
    ) -> Answerer {
        let names = Arc::new(zones.tree(&view));
        let ttl_secs = view.ttl_secs();
        let soa = zones.soa_bytes(&view).unwrap_or_default();
        Answerer { zones, routes, view, identity, names, ttl_secs, soa }
    }

    /// The routes in force.
    pub fn routes(&self) -> &Arc<Routes> {
        &self.routes
    }

    /// The state of the cluster.
    pub fn view(&self) -> &Arc<DnsView> {
        &self.view
    }

    /// The same with other routes, or another state of the cluster.
    pub fn with(&self, routes: Arc<Routes>, view: Arc<DnsView>) -> Answerer {
        Answerer::new(self.zones.clone(), routes, view, self.identity.clone())
    }

    /// The reply to a packet, or nothing if it must not be answered.
    pub fn answer(&self, packet: &[u8], asker: Asker) -> Option<Answer> {
        let (header, question, edns, outcome) = match query::parse(packet) {
            Ok(Ask { header, question, edns }) => {
                let subnet = edns.as_ref().and_then(|edns| edns.subnet.as_ref());
                let outcome = self.outcome(&question, client(subnet, asker.from));
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
        let reason = outcome.reason;
        let same = self.same(question.as_ref(), &outcome);
        let limit = match asker.transport {
            Transport::Tcp => u16::MAX,
            Transport::Udp => edns.as_ref().map_or(UDP_BYTES_MIN, |edns| {
                edns.payload_bytes.clamp(UDP_BYTES_MIN, UDP_BYTES_MAX)
            }),
        };
        let cookie = edns.as_ref().and_then(|edns| Cookie::read(edns.cookie.as_deref()?));
        let secret = &self.identity.secret;
        let trusted =
            cookie.is_some_and(|cookie| cookie.is_ours(secret, asker.from, asker.now_secs));
        let told = edns.map(|asked| {
            let mut edns = reply_edns(&asked, outcome.scope);
            if let Some(cookie) = cookie_option(&asked, secret, asker) {
                edns.options_mut().insert(EdnsOption::Unknown(OPTION_COOKIE, cookie));
            }
            if asked.nsid {
                let nsid = self.identity.nsid.clone();
                edns.options_mut().insert(EdnsOption::Unknown(OPTION_NSID, nsid));
            }
            edns
        });
        let message = message(header, question, told, outcome);
        let packet = encode(message, usize::from(limit))?;
        Some(Answer { packet, asked, code, reason, same, trusted })
    }

    /// What the answers are counted under that are limited together. Nobody gets more of them by
    /// asking for other names that lead to the same, or for types that there are none of.
    fn same(&self, question: Option<&Query>, outcome: &Outcome) -> u64 {
        if let Some(zone) = outcome.missing_in {
            return same_missing(zone);
        }
        let Some(question) = question.filter(|_| outcome.authoritative) else {
            return same_failure(outcome.code.low());
        };
        match self.names.find(&WireName::of(&question.name)) {
            Place::Here(node) if outcome.answers.is_empty() => same_answer(node, 0),
            Place::Here(node) => same_answer(node, question.query_type.into()),
            Place::Missing(zone) => same_missing(zone),
            Place::Outside => same_failure(outcome.code.low()),
        }
    }

    fn outcome(&self, question: &Query, client: Client) -> Outcome {
        if question.query_class != DNSClass::IN {
            return Outcome::failed(ResponseCode::Refused);
        }
        match question.query_type {
            RecordType::AXFR | RecordType::IXFR => return Outcome::failed(ResponseCode::Refused),
            RecordType::OPT => return Outcome::failed(ResponseCode::FormErr),
            RecordType::ANY => {}
            kind if META_TYPES.contains(&u16::from(kind)) => {
                return Outcome::failed(ResponseCode::NotImp);
            }
            _ => {}
        }
        let mut owner = question.name.clone();
        let mut aliases: Vec<Record> = Vec::new();
        loop {
            let place = self.names.find(&WireName::of(&owner));
            if place == Place::Outside {
                // What another server has to say is not ours to fetch (RFC 1034 section 4.3.2).
                if aliases.is_empty() {
                    return Outcome::failed(ResponseCode::Refused);
                }
                return Outcome { authoritative: true, answers: aliases, ..Outcome::default() };
            }
            if !self.view.ready {
                return Outcome::failed(ResponseCode::ServFail);
            }
            let node = match place {
                Place::Outside => return Outcome::failed(ResponseCode::Refused),
                Place::Missing(zone) => {
                    // The code is that of the last name (RFC 6604 section 3).
                    let missing_in = aliases.is_empty().then_some(zone);
                    let missing = self.negative(ResponseCode::NXDomain, zone);
                    return Outcome { missing_in, answers: aliases, ..missing };
                }
                Place::Here(node) => node,
            };
            let alias = node
                .alias_of
                .as_ref()
                .filter(|_| !matches!(question.query_type, RecordType::CNAME | RecordType::ANY));
            let Some(target) = alias else {
                let mut outcome = self.at(&owner, node, question.query_type, client);
                if !aliases.is_empty() {
                    if outcome.code == ResponseCode::ServFail {
                        return outcome;
                    }
                    aliases.append(&mut outcome.answers);
                    outcome.answers = aliases;
                }
                return outcome;
            };
            if aliases.len() == CHAIN_MAX {
                return Outcome::failed(ResponseCode::ServFail);
            }
            let data = RData::CNAME(CNAME(target.clone()));
            aliases.push(Record::from_rdata(owner, node.alias_ttl_secs, data));
            owner = target.clone();
        }
    }

    /// What a node holds of a type.
    fn at(&self, owner: &Name, node: &Node, kind: RecordType, client: Client) -> Outcome {
        if kind == RecordType::ANY {
            return self.any(owner, node);
        }
        let mut records: Vec<Record> = (node.records.iter())
            .filter(|(known, ..)| *known == kind)
            .map(|(_, ttl, data)| Record::from_rdata(owner.clone(), *ttl, data.clone()))
            .collect();
        match kind {
            RecordType::SOA if node.apex => records.push(self.zones.soa(node.zone, &self.view)),
            RecordType::NS if node.apex => {
                let outcome = self.positive(node.zone, self.zones.ns(node.zone), 0);
                return Outcome { additionals: self.zones.glue(), ..outcome };
            }
            RecordType::CNAME => {
                let alias = node.alias_of.iter().cloned().map(|to| RData::CNAME(CNAME(to)));
                let record = |data| Record::from_rdata(owner.clone(), node.alias_ttl_secs, data);
                records.extend(alias.map(record));
            }
            RecordType::A | RecordType::AAAA | RecordType::HTTPS if node.edges => {
                return self.host(owner, node.zone, kind, client);
            }
            _ => {}
        }
        self.positive(node.zone, records, 0)
    }

    /// The name or the type does not exist (RFC 2308).
    fn negative(&self, code: ResponseCode, zone: usize) -> Outcome {
        let authorities = vec![self.zones.soa(zone, &self.view)];
        Outcome { code, authoritative: true, authorities, ..Outcome::default() }
    }

    /// The given records, or that there are none of this type.
    fn positive(&self, zone: usize, answers: Vec<Record>, scope: u8) -> Outcome {
        if answers.is_empty() {
            return Outcome { scope, ..self.negative(ResponseCode::NoError, zone) };
        }
        Outcome { authoritative: true, answers, scope, ..Outcome::default() }
    }

    /// One small record instead of all of them (RFC 8482 section 4.2).
    fn any(&self, owner: &Name, node: &Node) -> Outcome {
        let empty = !node.apex && !node.edges && node.records.is_empty() && node.alias_of.is_none();
        if empty {
            return self.negative(ResponseCode::NoError, node.zone);
        }
        let data = RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()));
        let record = Record::from_rdata(owner.clone(), self.ttl_secs, data);
        self.positive(node.zone, vec![record], 0)
    }

    /// The edges, for any name that leads to a site.
    fn host(&self, owner: &Name, zone: usize, kind: RecordType, client: Client) -> Outcome {
        if self.routes.is_empty() {
            // "No such records" would be kept by caches; there is nobody to send visitors to yet.
            return Outcome::failed(ResponseCode::ServFail);
        }
        let ttl = self.ttl_secs;
        let pick = |family| self.routes.pick(client, family);
        let (records, scope) = match kind {
            RecordType::HTTPS => {
                let (v4, v6) = (pick(Family::V4), pick(Family::V6));
                (https_records(owner, &v4, &v6, ttl), v4.scope_prefix)
            }
            _ => {
                let v4 = kind == RecordType::A;
                let picked = pick(if v4 { Family::V4 } else { Family::V6 });
                (address_records(owner, &picked.addrs(), ttl), picked.scope_prefix)
            }
        };
        let reason = Some(self.routes.find(client).reason.label());
        Outcome { reason, ..self.positive(zone, records, scope) }
    }
}

impl Outcome {
    fn failed(code: ResponseCode) -> Outcome {
        Outcome { code, ..Outcome::default() }
    }
}

/// The option of the reply, if the query has one.
fn cookie_option(asked: &query::Edns, secret: &Secret, asker: Asker) -> Option<Vec<u8>> {
    let cookie = Cookie::read(asked.cookie.as_deref()?)?;
    Some(cookie.renewed(secret, asker.from, asker.now_secs).to_vec())
}

/// Equal for answers of a type, and for all that say that a node has none of a type (0).
pub(super) fn same_answer(node: &Node, kind: u16) -> u64 {
    node.hash.wrapping_add(u64::from(kind)).wrapping_mul(0x0000_0100_0000_01b3)
}

/// Equal for all names of a zone that do not exist.
pub(super) fn same_missing(zone: usize) -> u64 {
    1 << 32 | zone as u64
}

/// Equal for all failures with a code.
pub(super) fn same_failure(code: u8) -> u64 {
    2 << 32 | u64::from(code)
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
    edns: Option<Edns>,
    outcome: Outcome,
) -> Message {
    let mut message = Message::new(header.id, MessageType::Response, header.op_code);
    message.metadata.recursion_desired = header.recursion_desired;
    message.metadata.checking_disabled = header.checking_disabled;
    message.metadata.authoritative = outcome.authoritative;
    message.metadata.response_code = outcome.code;
    message.queries.extend(question);
    message.edns = edns;
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

pub(super) fn type_label(kind: RecordType) -> &'static str {
    match kind {
        RecordType::A => "A",
        RecordType::AAAA => "AAAA",
        RecordType::ANY => "ANY",
        RecordType::CAA => "CAA",
        RecordType::CNAME => "CNAME",
        RecordType::HTTPS => "HTTPS",
        RecordType::NS => "NS",
        RecordType::SOA => "SOA",
        RecordType::TXT => "TXT",
        _ => "other",
    }
}

pub(super) fn code_label(code: ResponseCode) -> &'static str {
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
