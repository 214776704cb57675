//! Reading a packet as a question.
//!
//! Called by [`super::answer`] for every packet. Names are read by hickory; header, records and
//! EDNS options are walked here, because hickory reserves memory by the counts of the header, logs
//! what it skips, and accepts Client Subnet options that RFC 7871 wants refused. Nothing here
//! keeps more than the packet's own bytes, and every loop ends with them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::{
    op::{OpCode, Query, ResponseCode},
    rr::Name,
    serialize::binary::{BinDecodable, BinDecoder, DecodeError},
};

use super::{cookie::Cookie, subnet::Subnet};

const HEADER_BYTES: usize = 12;
/// Enough of the header to know that the packet is a query and whose.
const HEADER_START_BYTES: usize = 4;
const TYPE_OPT: u16 = 41;
/// The option of a server that is asked for its name (RFC 5001).
pub(super) const OPTION_NSID: u16 = 3;
/// EDNS Client Subnet (RFC 7871).
pub(super) const OPTION_CLIENT_SUBNET: u16 = 8;
/// DNS cookies (RFC 7873).
pub(super) const OPTION_COOKIE: u16 = 10;
const FAMILY_NONE: u16 = 0;
const FAMILY_V4: u16 = 1;
const FAMILY_V6: u16 = 2;

/// The parts of the header that a reply repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Chosen by the asker.
    pub id: u16,
    /// What kind of request it is.
    pub op_code: OpCode,
    /// Recursion desired; repeated, not granted.
    pub recursion_desired: bool,
    /// Checking disabled; repeated.
    pub checking_disabled: bool,
}

/// The asker's OPT record (RFC 6891).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edns {
    /// Largest UDP payload it takes, in bytes.
    pub payload_bytes: u16,
    /// EDNS version.
    pub version: u8,
    /// Wants DNSSEC records.
    pub dnssec_ok: bool,
    /// Client Subnet, if present and the version is one we read.
    pub subnet: Option<ClientSubnet>,
    /// The COOKIE option (RFC 7873), if present; its length is an allowed one.
    pub cookie: Option<Vec<u8>>,
    /// Asks which server this is (RFC 5001).
    pub nsid: bool,
}

/// The option as it came, which the reply repeats, and what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSubnet {
    /// The option's bytes with the scope still 0.
    pub option: Vec<u8>,
    /// The block, or nothing if the client asked not to be located (prefix 0).
    pub subnet: Option<Subnet>,
}

/// A question this server may answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// For the reply's header.
    pub header: Header,
    /// The one question.
    pub question: Query,
    /// Absent if the asker does not speak EDNS.
    pub edns: Option<Edns>,
}

/// A packet that holds no question to look up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoAsk {
    /// Nothing may be sent back: it is a reply, or too short to be anything.
    Drop,
    /// Something else than an answer is sent back: an error, or a cookie alone.
    Fail(Box<Failure>),
}

/// A reply that answers nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// For the reply's header.
    pub header: Header,
    /// What is wrong; `NoError` when only a cookie was asked for.
    pub code: ResponseCode,
    /// The question, if it could be read.
    pub question: Option<Query>,
    /// The OPT record, if the fault is within it or its version is not ours.
    pub edns: Option<Edns>,
}

/// Reads a packet.
///
/// # Errors
/// [`NoAsk`] says what to do instead of looking up the question.
pub fn parse(packet: &[u8]) -> Result<Ask, NoAsk> {
    let header = header(packet)?;
    let fail =
        |code, question, edns| NoAsk::Fail(Box::new(Failure { header, code, question, edns }));
    if header.op_code != OpCode::Query {
        return Err(fail(ResponseCode::NotImp, None, None));
    }
    let form_error = |question| fail(ResponseCode::FormErr, question, None);
    let [questions, answers, authorities, additionals] =
        counts(packet).ok_or_else(|| form_error(None))?;
    let mut decoder = BinDecoder::new(packet);
    decoder.read_slice(HEADER_BYTES).map_err(|_| form_error(None))?;
    let question = match questions {
        0 => None,
        1 => Some(Query::read(&mut decoder).map_err(|_| form_error(None))?),
        _ => return Err(form_error(None)),
    };
    let opt = records(&mut decoder, u32::from(answers) + u32::from(authorities), additionals)
        .map_err(|_| form_error(question.clone()))?;
    let edns = opt.map(|opt| edns(&opt)).transpose();
    match (question, edns) {
        (question, Ok(Some(edns))) if edns.version > 0 => {
            Err(fail(ResponseCode::BADVERS, question, Some(edns)))
        }
        (Some(question), Ok(edns)) => Ok(Ask { header, question, edns }),
        // A client may ask for a cookie alone (RFC 7873 section 5.4).
        (None, Ok(Some(edns))) if edns.cookie.is_some() => {
            Err(fail(ResponseCode::NoError, None, Some(edns)))
        }
        (None, Ok(edns)) => Err(fail(ResponseCode::FormErr, None, edns)),
        (question, Err(edns)) => Err(fail(ResponseCode::FormErr, question, Some(edns))),
    }
}

fn header(packet: &[u8]) -> Result<Header, NoAsk> {
    let Some(&[id_high, id_low, flags, flags_low]) = packet.first_chunk::<HEADER_START_BYTES>()
    else {
        return Err(NoAsk::Drop);
    };
    if flags & 0x80 != 0 {
        return Err(NoAsk::Drop);
    }
    Ok(Header {
        id: u16::from_be_bytes([id_high, id_low]),
        op_code: OpCode::from_u8((flags >> 3) & 0xf),
        recursion_desired: flags & 1 != 0,
        checking_disabled: flags_low & 0x10 != 0,
    })
}

/// How many questions, answers, authority and additional records the header promises.
fn counts(packet: &[u8]) -> Option<[u16; 4]> {
    let header = packet.first_chunk::<HEADER_BYTES>()?;
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    Some([count(4), count(6), count(8), count(10)])
}

/// An OPT record that was not looked into yet.
struct RawOpt<'p> {
    class: u16,
    ttl: u32,
    data: &'p [u8],
}

/// Walks the records behind the question and finds the OPT record among the additional ones.
fn records<'p>(
    decoder: &mut BinDecoder<'p>,
    skipped: u32,
    additionals: u16,
) -> Result<Option<RawOpt<'p>>, Malformed> {
    for _ in 0..skipped {
        if record(decoder)?.1 == TYPE_OPT {
            return Err(Malformed);
        }
    }
    let mut found = None;
    for _ in 0..additionals {
        let (name, kind, opt) = record(decoder)?;
        if kind == TYPE_OPT && (!name.is_root() || found.replace(opt).is_some()) {
            return Err(Malformed);
        }
    }
    if decoder.is_empty() { Ok(found) } else { Err(Malformed) }
}

fn record<'p>(decoder: &mut BinDecoder<'p>) -> Result<(Name, u16, RawOpt<'p>), DecodeError> {
    let name = Name::read(decoder)?;
    let kind = decoder.read_u16()?.unverified();
    let class = decoder.read_u16()?.unverified();
    let ttl = decoder.read_u32()?.unverified();
    let length = decoder.read_u16()?.unverified();
    let data = decoder.read_slice(usize::from(length))?.unverified();
    Ok((name, kind, RawOpt { class, ttl, data }))
}

/// The packet does not have the form of a DNS message.
struct Malformed;

impl From<DecodeError> for Malformed {
    fn from(_: DecodeError) -> Malformed {
        Malformed
    }
}

/// Looks into the OPT record. The error is what to repeat in a FORMERR reply.
fn edns(opt: &RawOpt<'_>) -> Result<Edns, Edns> {
    let [_, version, flags, _] = opt.ttl.to_be_bytes();
    let mut edns = Edns {
        payload_bytes: opt.class,
        version,
        dnssec_ok: flags & 0x80 != 0,
        subnet: None,
        cookie: None,
        nsid: false,
    };
    if version > 0 {
        return Ok(edns);
    }
    match read_options(opt.data, &mut edns) {
        Ok(()) => Ok(edns),
        Err(Malformed) => Err(Edns { subnet: None, cookie: None, nsid: false, ..edns }),
    }
}

/// Reads the options that we know, of each the first; the form of all is checked.
fn read_options(mut options: &[u8], edns: &mut Edns) -> Result<(), Malformed> {
    while let Some((code, data, rest)) = next_option(options)? {
        match code {
            OPTION_CLIENT_SUBNET if edns.subnet.is_none() => {
                let subnet = told_subnet(data).ok_or(Malformed)?;
                edns.subnet = Some(ClientSubnet { option: data.to_vec(), subnet });
            }
            OPTION_COOKIE if edns.cookie.is_none() => {
                Cookie::read(data).ok_or(Malformed)?;
                edns.cookie = Some(data.to_vec());
            }
            OPTION_NSID => edns.nsid = true,
            _ => {}
        }
        options = rest;
    }
    Ok(())
}

/// Code and data of an option, and the options behind it.
type OptionAndRest<'a> = (u16, &'a [u8], &'a [u8]);

/// The first option, if there is one.
fn next_option(options: &[u8]) -> Result<Option<OptionAndRest<'_>>, Malformed> {
    if options.is_empty() {
        return Ok(None);
    }
    let (&[code_high, code_low, length_high, length_low], rest) =
        options.split_first_chunk::<4>().ok_or(Malformed)?;
    let length = usize::from(u16::from_be_bytes([length_high, length_low]));
    let (data, rest) = rest.split_at_checked(length).ok_or(Malformed)?;
    Ok(Some((u16::from_be_bytes([code_high, code_low]), data, rest)))
}

/// The block that a Client Subnet option tells, or nothing in it if the client does not want to be
/// located. Nothing at all if the option is malformed (RFC 7871 section 6): exactly as many
/// address bytes as the prefix needs, no bits behind it, and scope 0 in queries.
pub(super) fn told_subnet(data: &[u8]) -> Option<Option<Subnet>> {
    let (&[family_high, family_low, prefix, scope], addr) = data.split_first_chunk::<4>()?;
    if scope != 0 || addr.len() != usize::from(prefix.div_ceil(8)) {
        return None;
    }
    let subnet = match u16::from_be_bytes([family_high, family_low]) {
        FAMILY_NONE if prefix == 0 => None,
        FAMILY_V4 if prefix <= 32 => Some(block(IpAddr::V4(Ipv4Addr::from(padded(addr))), prefix)?),
        FAMILY_V6 if prefix <= 128 => {
            Some(block(IpAddr::V6(Ipv6Addr::from(padded(addr))), prefix)?)
        }
        _ => return None,
    };
    Some(subnet.filter(|subnet| subnet.prefix() > 0))
}

/// The bytes followed by zeros; the caller has checked that there are at most `N`.
fn padded<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut all = [0; N];
    for (to, from) in all.iter_mut().zip(bytes) {
        *to = *from;
    }
    all
}

fn block(addr: IpAddr, prefix: u8) -> Option<Subnet> {
    let subnet = Subnet::of(addr, prefix);
    (subnet.addr() == addr).then_some(subnet)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const QUESTION: &[u8] = b"\x04docs\x05atoll\x04test\x00\x00\x01\x00\x01";

    /// A query with the given flags, counts, and bytes behind the question.
    fn packet(flags: u16, counts: [u16; 4], rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0xab, 0xcd];
        packet.extend(flags.to_be_bytes());
        counts.iter().for_each(|count| packet.extend(count.to_be_bytes()));
        packet.extend(QUESTION);
        packet.extend(rest);
        packet
    }

    fn opt(version: u8, options: &[u8]) -> Vec<u8> {
        let mut opt = vec![0, 0, 41, 0x10, 0, 0, version, 0x80, 0];
        opt.extend(u16::try_from(options.len()).unwrap().to_be_bytes());
        opt.extend(options);
        opt
    }

    fn option(data: &[u8]) -> Vec<u8> {
        [&[0, 8, 0, u8::try_from(data.len()).unwrap()], data].concat()
    }

    fn code(packet: &[u8]) -> Option<ResponseCode> {
        match parse(packet) {
            Ok(_) => Some(ResponseCode::NoError),
            Err(NoAsk::Drop) => None,
            Err(NoAsk::Fail(failure)) => {
                assert_eq!(failure.header.id, 0xabcd);
                Some(failure.code)
            }
        }
    }

    #[test]
    fn a_plain_question() {
        let ask = parse(&packet(0x0110, [1, 0, 0, 0], &[])).unwrap();
        assert!(ask.header.recursion_desired && ask.header.checking_disabled);
        assert_eq!(ask.question.name.to_ascii(), "docs.atoll.test.");
        assert_eq!(ask.edns, None);
    }

    #[test]
    fn an_opt_record_with_a_subnet() {
        let cookie = [0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 3, 0, 0, 0xff, 0, 0, 1, 9];
        let options = [&cookie[..], &option(&[0, 1, 20, 0, 203, 0, 112])].concat();
        let edns = parse(&packet(0, [1, 0, 0, 1], &opt(0, &options))).unwrap().edns.unwrap();
        assert_eq!((edns.payload_bytes, edns.dnssec_ok), (4096, true));
        assert_eq!((edns.cookie.unwrap().len(), edns.nsid), (8, true));
        let subnet = edns.subnet.unwrap();
        assert_eq!(subnet.subnet.unwrap().to_string(), "203.0.112.0/20");
        assert_eq!(subnet.option, [0, 1, 20, 0, 203, 0, 112]);
    }

    #[test]
    fn what_is_no_question_gets_its_code() {
        let form_error = Some(ResponseCode::FormErr);
        assert_eq!(code(&packet(0x8000, [1, 0, 0, 0], &[])), None);
        assert_eq!(code(&[0xab, 0xcd, 0]), None);
        assert_eq!(code(&[0xab, 0xcd, 0, 0]), form_error);
        for op_code in [1, 2, 4, 5, 15] {
            let flags = op_code << 11;
            assert_eq!(code(&packet(flags, [1, 0, 0, 0], &[])), Some(ResponseCode::NotImp));
        }
        let all = packet(0, [1, 0, 0, 1], &opt(0, &[]));
        assert_eq!(code(&all), Some(ResponseCode::NoError));
        for length in HEADER_START_BYTES..all.len() {
            assert_eq!(code(&all[..length]), form_error, "{length}");
        }
        for counts in [[0, 0, 0, 0], [2, 0, 0, 0], [65535, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 65535]]
        {
            assert_eq!(code(&packet(0, counts, &[])), form_error, "{counts:?}");
        }
        assert_eq!(code(&packet(0, [1, 0, 0, 0], &[0])), form_error, "bytes left over");
        let twice = [opt(0, &[]), opt(0, &[])].concat();
        assert_eq!(code(&packet(0, [1, 0, 0, 2], &twice)), form_error);
        assert_eq!(code(&packet(0, [1, 1, 0, 0], &opt(0, &[]))), form_error);
        assert_eq!(code(&packet(0, [1, 0, 0, 1], &opt(1, &[9]))), Some(ResponseCode::BADVERS));
    }

    #[test]
    fn bad_options_are_form_errors() {
        for bad in [
            vec![0],
            vec![0, 10, 0, 1],
            vec![0, 10, 0, 1, 1],
            vec![0, 10, 0, 0],
            option(&[]),
            option(&[0, 1, 24]),
            option(&[0, 1, 24, 0, 1, 2]),
            option(&[0, 1, 24, 0, 1, 2, 3, 4]),
            option(&[0, 1, 24, 24, 1, 2, 3]),
            option(&[0, 1, 23, 0, 1, 2, 3]),
            option(&[0, 1, 33, 0, 1, 2, 3, 4, 0]),
            option(&[0, 3, 8, 0, 1]),
            option(&[0, 0, 8, 0, 1]),
        ] {
            let rest = opt(0, &bad);
            assert_eq!(
                code(&packet(0, [1, 0, 0, 1], &rest)),
                Some(ResponseCode::FormErr),
                "{bad:?}"
            );
        }
        // A cookie alone may be asked for; nothing else without a question.
        let alone = [&[0xab, 0xcd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1][..], &opt(0, &[0, 10, 0, 8])];
        let mut alone = alone.concat();
        alone.extend([7; 8]);
        let length = alone.len() - 8 - 4 - 2;
        alone[length..length + 2].copy_from_slice(&[0, 12]);
        assert_eq!(code(&alone), Some(ResponseCode::NoError));
        let none = [&[0xab, 0xcd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1][..], &opt(0, &[])].concat();
        assert_eq!(code(&none), Some(ResponseCode::FormErr));
        for hidden in [option(&[0, 0, 0, 0]), option(&[0, 1, 0, 0]), option(&[0, 2, 0, 0])] {
            let edns = parse(&packet(0, [1, 0, 0, 1], &opt(0, &hidden))).unwrap().edns.unwrap();
            assert_eq!(edns.subnet.unwrap().subnet, None);
        }
    }
}
