//! The hot path: the questions that nearly all visitors' resolvers ask, answered without the
//! codec and without taking memory.
//!
//! The address of a site, its HTTPS record, a name that does not exist, a name that is not ours:
//! read from the packet and written to the packet byte by byte. Everything else, and everything
//! odd, is left to [`super::answer`], which says the same by way of the codec; tests compare them.

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::RData;

use super::answer::{
    Answerer, Asker, HTTPS_PORT, SCOPE_AT, Transport, UDP_BYTES_MAX, UDP_BYTES_MIN, same_answer,
    same_failure, same_missing,
};
use super::cookie::Cookie;
use super::names::{Node, Place, WireName};
use super::query::{OPTION_CLIENT_SUBNET, OPTION_COOKIE, OPTION_NSID, told_subnet};
use super::route::{Client, Family, Found, Order, TARGETS_MAX};
use super::tally::{Asked, Code, Counted};

const HEADER_BYTES: usize = 12;
const CLASS_IN: u16 = 1;
const TYPE_A: u16 = 1;
const TYPE_SOA: u16 = 6;
const TYPE_AAAA: u16 = 28;
const TYPE_OPT: u16 = 41;
const TYPE_HTTPS: u16 = 65;
/// Where the question's name begins, as a pointer (RFC 1035 section 4.1.4).
const POINTER_TO_QUESTION: u16 = 0xc000 | HEADER_BYTES as u16;
/// ALPN of our edges in an HTTPS record: h3, h2 (RFC 9460 section 7.1).
const ALPN: &[u8] = b"\x00\x01\x00\x06\x02h3\x02h2";
const ANY_V4: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const ANY_V6: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
const KEY_PORT: u16 = 3;
const KEY_IPV4HINT: u16 = 4;
const KEY_IPV6HINT: u16 = 6;

/// What the EDNS part of a query says.
struct Opt<'p> {
    payload_bytes: u16,
    dnssec_ok: bool,
    subnet: Option<&'p [u8]>,
    client: Option<Client>,
    cookie: Option<Cookie<'p>>,
    nsid: bool,
}

/// A question of the usual form.
struct Usual<'p> {
    name: WireName,
    /// The question as it came, to be repeated.
    question: &'p [u8],
    kind: u16,
    opt: Option<Opt<'p>>,
}

impl Answerer {
    /// Writes the reply into `out`, or leaves the packet to [`Answerer::answer`].
    pub fn answer_fast(&self, packet: &[u8], asker: Asker, out: &mut Vec<u8>) -> Option<Counted> {
        out.clear();
        let usual = usual(packet)?;
        let secret = &self.identity.secret;
        let opt = usual.opt.as_ref();
        let cookie = opt.and_then(|opt| opt.cookie.as_ref());
        let trusted =
            cookie.is_some_and(|cookie| cookie.is_ours(secret, asker.from, asker.now_secs));
        let limit = match asker.transport {
            Transport::Tcp => u16::MAX,
            Transport::Udp => opt
                .map_or(UDP_BYTES_MIN, |opt| opt.payload_bytes.clamp(UDP_BYTES_MIN, UDP_BYTES_MAX)),
        };
        out.extend_from_slice(&packet[..HEADER_BYTES]);
        out.extend_from_slice(usual.question);
        let mut counted = Counted {
            asked: Asked::of(usual.kind),
            code: Code::NoError,
            reason: None,
            same: 0,
            trusted,
        };
        let mut scope = 0;
        let (mut answers, mut authorities) = (0u16, 0u16);
        let mut authoritative = true;
        match self.names.find(&usual.name) {
            Place::Outside => {
                authoritative = false;
                counted.code = Code::Refused;
                counted.same = same_failure(5);
            }
            _ if !self.view.ready => return None,
            Place::Missing(zone) => {
                counted.code = Code::NxDomain;
                counted.same = same_missing(zone);
                self.put_soa(out, &usual.name, zone);
                authorities = 1;
            }
            Place::Here(node) if !node.edges && matches!(usual.kind, TYPE_A | TYPE_AAAA) => {
                if node.alias_of.is_some() {
                    return None;
                }
                answers = put_addresses(out, node, usual.kind);
                counted.same = same_answer(node, if answers == 0 { 0 } else { usual.kind });
                if answers == 0 {
                    self.put_soa(out, &usual.name, node.zone);
                    authorities = 1;
                }
            }
            Place::Here(node) => {
                let plain = node.edges && node.alias_of.is_none() && !self.routes.is_empty();
                if !plain || !matches!(usual.kind, TYPE_A | TYPE_AAAA | TYPE_HTTPS) {
                    return None;
                }
                let client = opt.and_then(|opt| opt.client);
                let found = self.routes.find(client.unwrap_or(Client::Resolver(asker.from)));
                scope = found.scope;
                counted.reason = Some(found.reason);
                answers = self.put_edges(out, &found, usual.kind)?;
                counted.same = same_answer(node, if answers == 0 { 0 } else { usual.kind });
                if answers == 0 {
                    self.put_soa(out, &usual.name, node.zone);
                    authorities = 1;
                }
            }
        }
        if let Some(opt) = opt {
            self.put_opt(out, opt, scope, asker);
        }
        if out.len() > usize::from(limit) {
            return None;
        }
        // QR, AA; RD as it came; no TC, no RA; CD as it came.
        out[2] = 0x80 | u8::from(authoritative) << 2 | packet[2] & 1;
        out[3] = packet[3] & 0x10 | counted.code.low();
        out[6..8].copy_from_slice(&answers.to_be_bytes());
        out[8..10].copy_from_slice(&authorities.to_be_bytes());
        out[10..12].copy_from_slice(&u16::from(opt.is_some()).to_be_bytes());
        Some(counted)
    }

    /// Leaves only header, question and EDNS of the reply to a packet and marks it as cut: whoever
    /// really asked comes back over TCP, or with the cookie in it. False, and nothing is done, if
    /// that is not for here.
    pub(super) fn cut_fast(&self, packet: &[u8], asker: Asker, reply: &mut Vec<u8>) -> bool {
        let Some(usual) = usual(packet) else { return false };
        let length = HEADER_BYTES + usual.question.len();
        if reply.len() < length {
            return false;
        }
        reply.truncate(length);
        reply[2] |= 0x02;
        reply[6..HEADER_BYTES].fill(0);
        if let Some(opt) = &usual.opt {
            self.put_opt(reply, opt, 0, asker);
            reply[HEADER_BYTES - 1] = 1;
        }
        true
    }

    /// The answer section; returns how many records it has. Nothing if that is not for here.
    fn put_edges(&self, out: &mut Vec<u8>, found: &Found<'_>, kind: u16) -> Option<u16> {
        match kind {
            TYPE_A => {
                let order = found.order(Family::V4);
                let addrs = gather(order.edges(), ANY_V4, |number| &self.routes.edge(number).v4)?;
                for addr in addrs.as_slice() {
                    self.put_record(out, TYPE_A, 4);
                    out.extend_from_slice(&addr.octets());
                }
                Some(addrs.len as u16)
            }
            TYPE_AAAA => {
                let order = found.order(Family::V6);
                let addrs = gather(order.edges(), ANY_V6, |number| &self.routes.edge(number).v6)?;
                for addr in addrs.as_slice() {
                    self.put_record(out, TYPE_AAAA, 16);
                    out.extend_from_slice(&addr.octets());
                }
                Some(addrs.len as u16)
            }
            _ => self.put_https(out, found),
        }
    }

    /// One record for each port, with the addresses behind it as hints.
    fn put_https(&self, out: &mut Vec<u8>, found: &Found<'_>) -> Option<u16> {
        let (v4, v6) = (found.order(Family::V4), found.order(Family::V6));
        let mut ports = List::<u16>::new(0);
        for number in v4.edges().iter().chain(v6.edges()) {
            ports.push(self.routes.edge(*number).port)?;
        }
        for port in ports.as_slice() {
            let at_port = |order: &Order| {
                let mut kept = List::<u32>::new(0);
                for number in order.edges() {
                    if self.routes.edge(*number).port == *port {
                        kept.push(*number)?;
                    }
                }
                Some(kept)
            };
            let (at_v4, at_v6) = (at_port(&v4)?, at_port(&v6)?);
            let hints_v4 = gather(at_v4.as_slice(), ANY_V4, |number| &self.routes.edge(number).v4)?;
            let hints_v6 = gather(at_v6.as_slice(), ANY_V6, |number| &self.routes.edge(number).v6)?;
            let start = out.len();
            self.put_record(out, TYPE_HTTPS, 0);
            let data = out.len();
            // Priority 1, and the owner as the target (RFC 9460 section 2.2).
            out.extend_from_slice(&[0, 1, 0]);
            out.extend_from_slice(ALPN);
            if *port != HTTPS_PORT {
                put_u16(out, KEY_PORT);
                put_u16(out, 2);
                put_u16(out, *port);
            }
            if hints_v4.len > 0 {
                put_u16(out, KEY_IPV4HINT);
                put_u16(out, 4 * hints_v4.len as u16);
                hints_v4.as_slice().iter().for_each(|a| out.extend_from_slice(&a.octets()));
            }
            if hints_v6.len > 0 {
                put_u16(out, KEY_IPV6HINT);
                put_u16(out, 16 * hints_v6.len as u16);
                hints_v6.as_slice().iter().for_each(|a| out.extend_from_slice(&a.octets()));
            }
            let length = (out.len() - data) as u16;
            out[start + 10..start + 12].copy_from_slice(&length.to_be_bytes());
        }
        Some(ports.len as u16)
    }

    fn put_record(&self, out: &mut Vec<u8>, kind: u16, length: u16) {
        put_head(out, kind, self.ttl_secs, length);
    }

    /// The SOA record of a zone that the question's name is in.
    fn put_soa(&self, out: &mut Vec<u8>, name: &WireName, zone: usize) {
        let (ttl, data) = &self.soa;
        // A name has at most 255 bytes, so this is a pointer.
        let apex = HEADER_BYTES + self.names.bytes_before_zone(name, zone);
        put_u16(out, 0xc000 | apex as u16);
        put_u16(out, TYPE_SOA);
        put_u16(out, CLASS_IN);
        out.extend_from_slice(&ttl.to_be_bytes());
        put_u16(out, data.len() as u16);
        out.extend_from_slice(data);
    }

    fn put_opt(&self, out: &mut Vec<u8>, asked: &Opt<'_>, scope: u8, asker: Asker) {
        out.push(0);
        put_u16(out, TYPE_OPT);
        put_u16(out, UDP_BYTES_MAX);
        out.extend_from_slice(&[0, 0, u8::from(asked.dnssec_ok) << 7, 0]);
        let length_at = out.len();
        put_u16(out, 0);
        if let Some(told) = asked.subnet {
            put_u16(out, OPTION_CLIENT_SUBNET);
            put_u16(out, told.len() as u16);
            let at = out.len();
            out.extend_from_slice(told);
            out[at + SCOPE_AT] = scope;
        }
        if let Some(cookie) = &asked.cookie {
            let full = cookie.renewed(&self.identity.secret, asker.from, asker.now_secs);
            put_u16(out, OPTION_COOKIE);
            put_u16(out, full.len() as u16);
            out.extend_from_slice(&full);
        }
        if asked.nsid {
            put_u16(out, OPTION_NSID);
            put_u16(out, self.identity.nsid.len() as u16);
            out.extend_from_slice(&self.identity.nsid);
        }
        let length = (out.len() - length_at - 2) as u16;
        out[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
    }
}

/// Reads a packet of the usual form: one question of class IN for a type that is kept in zones,
/// and at most an OPT record of version 0 behind it.
fn usual(packet: &[u8]) -> Option<Usual<'_>> {
    let header = packet.first_chunk::<HEADER_BYTES>()?;
    // A query (QR and opcode are 0) with one question, and one additional record at most.
    if header[2] & 0xf8 != 0 || header[4..10] != [0, 1, 0, 0, 0, 0] || header[10] != 0 {
        return None;
    }
    let (name, length) = WireName::read(&packet[HEADER_BYTES..])?;
    let (&[kind_high, kind_low, class_high, class_low], rest) =
        packet[HEADER_BYTES + length..].split_first_chunk::<4>()?;
    let kind = u16::from_be_bytes([kind_high, kind_low]);
    let meta = kind == TYPE_OPT || (128..=255).contains(&kind);
    if u16::from_be_bytes([class_high, class_low]) != CLASS_IN || meta {
        return None;
    }
    let question = &packet[HEADER_BYTES..HEADER_BYTES + length + 4];
    let opt = match (header[11], rest) {
        (0, []) => None,
        (1, rest) => Some(opt(rest)?),
        _ => return None,
    };
    Some(Usual { name, question, kind, opt })
}

/// Reads an OPT record at the end of a packet.
fn opt(bytes: &[u8]) -> Option<Opt<'_>> {
    let (&[0, 0, 41, size_high, size_low, 0, 0, flags, _, length_high, length_low], mut options) =
        bytes.split_first_chunk::<11>()?
    else {
        return None;
    };
    if options.len() != usize::from(u16::from_be_bytes([length_high, length_low])) {
        return None;
    }
    let mut opt = Opt {
        payload_bytes: u16::from_be_bytes([size_high, size_low]),
        dnssec_ok: flags & 0x80 != 0,
        subnet: None,
        client: None,
        cookie: None,
        nsid: false,
    };
    while !options.is_empty() {
        let (&[code_high, code_low, length_high, length_low], rest) =
            options.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_be_bytes([length_high, length_low]));
        let (data, rest) = rest.split_at_checked(length)?;
        match u16::from_be_bytes([code_high, code_low]) {
            OPTION_CLIENT_SUBNET if opt.subnet.is_none() => {
                opt.client = told_subnet(data)?.map(Client::Subnet);
                opt.subnet = Some(data);
            }
            OPTION_COOKIE if opt.cookie.is_none() => opt.cookie = Some(Cookie::read(data)?),
            OPTION_NSID => opt.nsid = true,
            _ => {}
        }
        options = rest;
    }
    Some(opt)
}

/// Different values, as many as an answer holds.
struct List<T> {
    values: [T; TARGETS_MAX],
    len: usize,
}

impl<T: Copy + PartialEq> List<T> {
    /// An empty list; its room is filled with anything.
    fn new(filler: T) -> List<T> {
        List { values: [filler; TARGETS_MAX], len: 0 }
    }

    fn as_slice(&self) -> &[T] {
        &self.values[..self.len]
    }

    /// Adds a value unless it is there. Nothing when the list is full.
    fn push(&mut self, value: T) -> Option<()> {
        if !self.as_slice().contains(&value) {
            *self.values.get_mut(self.len)? = value;
            self.len += 1;
        }
        Some(())
    }
}

/// The addresses of edges in their order, each once. Nothing if they are too many.
fn gather<'e, T: Copy + PartialEq + 'e>(
    edges: &[u32],
    filler: T,
    of: impl Fn(u32) -> &'e [T],
) -> Option<List<T>> {
    let mut list = List::new(filler);
    for number in edges {
        for addr in of(*number) {
            list.push(*addr)?;
        }
    }
    Some(list)
}

/// The addresses that a node has by itself; returns how many.
fn put_addresses(out: &mut Vec<u8>, node: &Node, kind: u16) -> u16 {
    let mut records = 0;
    for (_, ttl, data) in &node.records {
        match (kind, data) {
            (TYPE_A, RData::A(addr)) => {
                put_head(out, TYPE_A, *ttl, 4);
                out.extend_from_slice(&addr.0.octets());
            }
            (TYPE_AAAA, RData::AAAA(addr)) => {
                put_head(out, TYPE_AAAA, *ttl, 16);
                out.extend_from_slice(&addr.0.octets());
            }
            _ => continue,
        }
        records += 1;
    }
    records
}

/// Owner (the question's name), type, class, lifetime and length of a record.
fn put_head(out: &mut Vec<u8>, kind: u16, ttl: u32, length: u16) {
    put_u16(out, POINTER_TO_QUESTION);
    put_u16(out, kind);
    put_u16(out, CLASS_IN);
    out.extend_from_slice(&ttl.to_be_bytes());
    put_u16(out, length);
}

fn put_u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_be_bytes());
}
