//! Records that the operator writes down, beside those that sites have.

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::{
    Name, RData, RecordType,
    rdata::{CNAME, MX, NULL, TXT},
};

use super::config::{BadDnsConfig, RecordLine};

/// Longest string of a TXT record (RFC 1035 section 3.3); longer texts are several strings.
const TXT_STRING_BYTES: usize = 255;
/// Longest text that is taken, so that an answer with it still fits over TCP with room to spare.
const TXT_BYTES_MAX: usize = 4096;

/// A record that was read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StaticRecord {
    pub(super) name: Name,
    pub(super) ttl: u32,
    pub(super) data: RData,
}

/// Reads all lines; `apexes` are the zones, the first being that of names without a final dot.
pub(super) fn read_all(
    lines: &[RecordLine],
    apexes: &[Name],
) -> Result<Vec<StaticRecord>, BadDnsConfig> {
    let mut records: Vec<StaticRecord> = Vec::new();
    for line in lines {
        let bad = |reason: String| BadDnsConfig::Record {
            name: line.name.clone(),
            kind: line.kind.clone(),
            reason,
        };
        let name = name(&line.name, &apexes[0]).map_err(bad)?;
        if name.is_wildcard() {
            return Err(bad("names with `*` are not answered: write each name".into()));
        }
        if !apexes.iter().any(|apex| apex.zone_of(&name)) {
            return Err(bad(format!("{name} is in none of the zones of this server")));
        }
        let data = data(&line.kind, &line.value, &apexes[0]).map_err(bad)?;
        let is_alias = |data: &RData| matches!(data, RData::CNAME(_));
        if is_alias(&data) && apexes.contains(&name) {
            return Err(bad("a zone's own name cannot be a CNAME (RFC 1034 section 3.6.2)".into()));
        }
        let beside = records.iter().filter(|other| other.name == name);
        if beside.clone().any(|other| is_alias(&data) || is_alias(&other.data)) {
            return Err(bad("beside a CNAME there is nothing (RFC 1034 section 3.6.2)".into()));
        }
        records.push(StaticRecord { name, ttl: line.ttl.min(i32::MAX as u32), data });
    }
    Ok(records)
}

fn name(text: &str, zone: &Name) -> Result<Name, String> {
    if text == "@" {
        return Ok(zone.clone());
    }
    let wrong = |error| format!("{text:?} is not a domain name: {error}");
    let name = Name::from_ascii(text).map_err(wrong)?;
    if text.ends_with('.') {
        return Ok(name.to_lowercase());
    }
    let name = name.append_domain(zone).map_err(wrong)?;
    Ok(name.to_lowercase())
}

fn data(kind: &str, value: &str, zone: &Name) -> Result<RData, String> {
    let host = |text: &str| name(text, zone);
    match kind.to_ascii_uppercase().as_str() {
        "A" => {
            let addr: Ipv4Addr =
                value.trim().parse().map_err(|_| format!("{value:?} is not an IPv4 address"))?;
            Ok(RData::A(addr.into()))
        }
        "AAAA" => {
            let addr: Ipv6Addr =
                value.trim().parse().map_err(|_| format!("{value:?} is not an IPv6 address"))?;
            Ok(RData::AAAA(addr.into()))
        }
        "CNAME" => Ok(RData::CNAME(CNAME(host(value.trim())?))),
        "MX" => {
            let (preference, exchange) = value
                .trim()
                .split_once(char::is_whitespace)
                .ok_or_else(|| format!("{value:?} is not `PREFERENCE HOST`"))?;
            let preference =
                preference.parse().map_err(|_| format!("{preference:?} is not a preference"))?;
            Ok(RData::MX(MX::new(preference, host(exchange.trim())?)))
        }
        "TXT" => {
            if value.len() > TXT_BYTES_MAX {
                return Err(format!("a text has at most {TXT_BYTES_MAX} bytes"));
            }
            let strings: Vec<&[u8]> = match value.as_bytes() {
                [] => vec![&b""[..]],
                bytes => bytes.chunks(TXT_STRING_BYTES).collect(),
            };
            Ok(RData::TXT(TXT::from_bytes(strings)))
        }
        "CAA" => caa(value),
        _ => Err("the type is none of A, AAAA, CAA, CNAME, MX, TXT".to_owned()),
    }
}

/// `FLAGS TAG "VALUE"` (RFC 8659 section 4.1.1).
fn caa(text: &str) -> Result<RData, String> {
    let wrong = || format!("{text:?} is not `FLAGS TAG \"VALUE\"`");
    let mut parts = text.trim().splitn(3, ' ');
    let flags: u8 = parts.next().and_then(|flags| flags.parse().ok()).ok_or_else(wrong)?;
    let tag = parts.next().ok_or_else(wrong)?;
    let value = parts.next().ok_or_else(wrong)?.trim().trim_matches('"');
    if value.len() > TXT_BYTES_MAX {
        return Err(format!("a value has at most {TXT_BYTES_MAX} bytes"));
    }
    if tag.is_empty() || tag.len() > 15 || !tag.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(wrong());
    }
    let mut bytes = vec![flags, tag.len() as u8];
    bytes.extend(tag.to_ascii_lowercase().bytes());
    bytes.extend(value.bytes());
    // As bytes: the codec's own form holds only the tags that it knows.
    Ok(RData::Unknown { code: RecordType::CAA, rdata: NULL::with(bytes) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn zone(text: &str) -> Name {
        let mut name = Name::from_ascii(text).unwrap();
        name.set_fqdn(true);
        name
    }

    fn read(lines: &[(&str, &str, &str)]) -> Result<Vec<StaticRecord>, BadDnsConfig> {
        let line = |(name, kind, value): &(&str, &str, &str)| RecordLine {
            name: (*name).to_owned(),
            kind: (*kind).to_owned(),
            value: (*value).to_owned(),
            ttl: 300,
        };
        let lines: Vec<RecordLine> = lines.iter().map(line).collect();
        read_all(&lines, &[zone("atoll.test"), zone("example.org")])
    }

    #[test]
    fn records_are_read() {
        let long = "x".repeat(300);
        let records = read(&[
            ("@", "caa", "0 issue \"ca.example; account=7\""),
            ("www", "CNAME", "docs"),
            ("Mail.Example.ORG.", "MX", "10 mx.example.net."),
            ("_acme-challenge.docs", "TXT", &long),
            ("v6", "AAAA", "2001:db8::1"),
            ("v6", "A", "192.0.2.1"),
        ])
        .unwrap();
        let text: Vec<String> =
            records.iter().map(|record| format!("{} {}", record.name, record.data)).collect();
        assert_eq!(text[1], "www.atoll.test. docs.atoll.test.");
        assert_eq!(text[2], "mail.example.org. 10 mx.example.net.");
        assert!(text[3].starts_with("_acme-challenge.docs.atoll.test. xxx"));
        let RData::TXT(txt) = &records[3].data else { panic!() };
        assert_eq!(txt.txt_data.iter().map(|part| part.len()).collect::<Vec<_>>(), [255, 45]);
        let RData::Unknown { rdata, .. } = &records[0].data else { panic!() };
        assert_eq!(rdata.anything, b"\x00\x05issueca.example; account=7");
    }

    #[test]
    fn what_cannot_be_served_is_refused_with_its_name() {
        for (lines, word) in [
            (&[("a", "PTR", "x")][..], "none of A"),
            (&[("a", "A", "2001:db8::1")], "IPv4"),
            (&[("a", "AAAA", "192.0.2.1")], "IPv6"),
            (&[("a", "MX", "mail")], "PREFERENCE"),
            (&[("a", "CAA", "0 issue")], "FLAGS"),
            (&[("a..b", "A", "192.0.2.1")], "not a domain name"),
            (&[("a.other.test.", "A", "192.0.2.1")], "none of the zones"),
            (&[("@", "CNAME", "x")], "own name"),
            (&[("*.a", "A", "192.0.2.1")], "write each name"),
            (&[("a", "CNAME", "x"), ("A", "TXT", "x")], "beside"),
            (&[("a", "A", "192.0.2.1"), ("a", "CNAME", "x")], "beside"),
            (&[("a", "CNAME", "x"), ("a", "CNAME", "y")], "beside"),
        ] {
            let error = read(lines).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
            assert!(error.contains(&format!("{:?}", lines[lines.len() - 1].0)), "{error}");
        }
    }
}
