//! What the zones hold: their own records, and which names exist.
//!
//! [`super::answer`] asks. [`Zones`] is fixed by the configuration; the [`Names`] follow the
//! [`DnsView`] that the edge's index publishes from the master's node feed. Which edges a name
//! leads to is not decided here but in [`super::route`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use hickory_proto::{
    rr::{
        Name, RData, Record, RecordType,
        rdata::{NS, SOA},
    },
    serialize::binary::{BinEncodable, BinEncoder, NameEncoding},
};

use super::{
    config::{BadDnsConfig, DnsConfig},
    names::Names,
    record,
    route::{self, EdgeView},
};

/// How long answers about edges are kept, in seconds; half of it while something is down.
const TTL_SECS: u32 = 30;
/// How long the names and addresses of the name servers are kept, in seconds.
const NS_TTL_SECS: u32 = 3600;
/// SOA timers in seconds. Nobody transfers the zone, so they only have to be plausible to the
/// tools that check them (RFC 1912 section 2.2).
const SOA_REFRESH_SECS: i32 = 7200;
const SOA_RETRY_SECS: i32 = 900;
const SOA_EXPIRE_SECS: i32 = 1_209_600;

/// The state of the cluster that answers depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsView {
    /// Whether the feed has been read once. Until then names may exist that are not listed here,
    /// so every answer is SERVFAIL.
    pub ready: bool,
    /// Every edge of the cluster, healthy or not.
    pub edges: Vec<EdgeView>,
    /// Names of the sites.
    pub sites: BTreeSet<String>,
    /// Custom domains and the site each belongs to; only those within a zone are answered.
    pub domains: BTreeMap<String, String>,
    /// Serial of the SOA record; grows with every change.
    pub serial: u32,
}

impl DnsView {
    /// Seconds an answer may be kept.
    pub fn ttl_secs(&self) -> u32 {
        if route::something_is_down(&self.edges) { TTL_SECS / 2 } else { TTL_SECS }
    }
}

/// The fixed part of the zones.
#[derive(Clone, Debug)]
pub struct Zones {
    /// The zones' names; the first is the one that sites have their names in.
    apexes: Vec<Name>,
    mailbox: Name,
    servers: Vec<NameServer>,
    records: Vec<record::StaticRecord>,
}

/// A name server of the zones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameServer {
    /// Its name, in the first zone.
    pub(super) name: Name,
    /// Its addresses.
    pub addrs: Vec<IpAddr>,
}

impl NameServer {
    /// Its name, with a final dot.
    pub fn name(&self) -> String {
        self.name.to_ascii()
    }
}

impl Zones {
    /// Reads the zones from the configuration. `listen` is the bound address, which is `ns1` when
    /// no other is configured.
    ///
    /// # Errors
    /// When a zone's name cannot be one, a record cannot be served, or no address of a name
    /// server is known.
    pub fn new(config: &DnsConfig, listen: SocketAddr) -> Result<Zones, BadDnsConfig> {
        let mut apexes: Vec<Name> = Vec::new();
        for text in std::iter::once(&config.zone).chain(&config.zones) {
            let apex = apex(text)?;
            if apexes.contains(&apex) {
                let reason = "is configured twice";
                return Err(BadDnsConfig::Zone { zone: text.clone(), reason });
            }
            apexes.push(apex);
        }
        let first = &apexes[0];
        let below = |label: &str| {
            let reason = "leaves no room for names below it";
            let bad = |_| BadDnsConfig::Zone { zone: config.zone.clone(), reason };
            first.prepend_label(label).map_err(bad)
        };
        // The longest label a site can have must fit, or an answer could not be written.
        below(&"x".repeat(63))?;
        let addrs = match config.ns_addrs.as_slice() {
            [] if listen.ip().is_unspecified() => {
                return Err(BadDnsConfig::NoNameServer { listen });
            }
            [] => &[listen.ip()],
            configured => configured,
        };
        let mut servers = Vec::new();
        for (index, addrs) in by_server(addrs).into_iter().enumerate() {
            servers.push(NameServer { name: below(&format!("ns{}", index + 1))?, addrs });
        }
        let records = record::read_all(&config.records, &apexes)?;
        Ok(Zones { mailbox: below("hostmaster")?, servers, records, apexes })
    }

    /// The zones' names, with a final dot.
    pub fn names(&self) -> Vec<String> {
        self.apexes.iter().map(Name::to_ascii).collect()
    }

    /// The name servers.
    pub fn servers(&self) -> &[NameServer] {
        &self.servers
    }

    /// Every name that exists in a state of the cluster.
    pub(super) fn tree(&self, view: &DnsView) -> Names {
        let mut names = Names::new(&self.apexes);
        let first = &self.apexes[0];
        // The first zone's own name leads to the edges, as any name of a site does.
        let sites = view.sites.iter().filter_map(|site| first.prepend_label(site.as_str()).ok());
        let domains = view.domains.keys().filter_map(|domain| {
            let mut name = Name::from_ascii(domain).ok()?;
            name.set_fqdn(true);
            Some(name)
        });
        for name in std::iter::once(first.clone()).chain(sites).chain(domains) {
            // A custom domain may be anywhere: those outside of our zones are not ours to answer.
            if let Some(node) = names.node(&name) {
                node.edges = true;
            }
        }
        for record in &self.records {
            let Some(node) = names.node(&record.name) else { continue };
            match &record.data {
                RData::CNAME(target) => {
                    node.alias_of = Some(target.0.clone());
                    node.alias_ttl_secs = record.ttl;
                    node.edges = false;
                }
                data => {
                    if matches!(data, RData::A(_) | RData::AAAA(_)) {
                        node.edges = false;
                    }
                    node.records.push((data.record_type(), record.ttl, data.clone()));
                }
            }
        }
        for server in &self.servers {
            let Some(node) = names.node(&server.name) else { continue };
            // A site of this name would leave the zone without a name server.
            node.edges = false;
            node.alias_of = None;
            node.records.retain(|(kind, ..)| !matches!(kind, RecordType::A | RecordType::AAAA));
            for addr in &server.addrs {
                let data = address(*addr);
                node.records.push((data.record_type(), NS_TTL_SECS, data));
            }
        }
        names
    }

    /// The SOA record of a zone.
    pub fn soa(&self, zone: usize, view: &DnsView) -> Record {
        let ttl = view.ttl_secs();
        let soa = SOA::new(
            self.primary(),
            self.mailbox.clone(),
            view.serial,
            SOA_REFRESH_SECS,
            SOA_RETRY_SECS,
            SOA_EXPIRE_SECS,
            ttl,
        );
        Record::from_rdata(self.apexes[zone].clone(), ttl, RData::SOA(soa))
    }

    /// Lifetime and data of the SOA record as they stand in packets.
    pub(super) fn soa_bytes(&self, view: &DnsView) -> Option<(u32, Vec<u8>)> {
        let record = self.soa(0, view);
        let mut data = Vec::new();
        {
            let mut encoder = BinEncoder::new(&mut data);
            // These bytes stand anywhere in a packet: a pointer within them would lead astray.
            encoder.set_name_encoding(NameEncoding::Uncompressed);
            record.data.emit(&mut encoder).ok()?;
        }
        Some((record.ttl, data))
    }

    /// The NS records of a zone.
    pub fn ns(&self, zone: usize) -> Vec<Record> {
        let record = |server: &NameServer| {
            let data = RData::NS(NS(server.name.clone()));
            Record::from_rdata(self.apexes[zone].clone(), NS_TTL_SECS, data)
        };
        self.servers.iter().map(record).collect()
    }

    /// The address records of all name servers, to go with [`Zones::ns`].
    pub fn glue(&self) -> Vec<Record> {
        let records =
            |server: &NameServer| address_records(&server.name, &server.addrs, NS_TTL_SECS);
        self.servers.iter().flat_map(records).collect()
    }

    fn primary(&self) -> Name {
        match self.servers.first() {
            Some(server) => server.name.clone(),
            None => self.apexes[0].clone(),
        }
    }
}

fn apex(text: &str) -> Result<Name, BadDnsConfig> {
    let bad = |reason| BadDnsConfig::Zone { zone: text.to_owned(), reason };
    let mut apex = Name::from_ascii(text.trim_end_matches('.'))
        .map_err(|_| bad("is not a domain name"))?
        .to_lowercase();
    apex.set_fqdn(true);
    if apex.is_root() {
        return Err(bad("must not be the root"));
    }
    let fine = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !apex.iter().flatten().all(fine) {
        return Err(bad("may hold only a-z, 0-9, '-', '_' and dots"));
    }
    Ok(apex)
}

fn address(addr: IpAddr) -> RData {
    match addr {
        IpAddr::V4(v4) => RData::A(v4.into()),
        IpAddr::V6(v6) => RData::AAAA(v6.into()),
    }
}

/// Address records of one owner, in the given order.
pub(super) fn address_records(owner: &Name, addrs: &[IpAddr], ttl: u32) -> Vec<Record> {
    let record = |addr: &IpAddr| Record::from_rdata(owner.clone(), ttl, address(*addr));
    addrs.iter().map(record).collect()
}

/// The addresses of ns1, ns2, … : the first of each family, the second of each, and so on.
fn by_server(addrs: &[IpAddr]) -> Vec<Vec<IpAddr>> {
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addrs.iter().partition(|addr| addr.is_ipv4());
    let server = |index| v4.get(index).into_iter().chain(v6.get(index)).copied().collect();
    (0..v4.len().max(v6.len())).map(server).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn zones_of(text: &str) -> Result<Zones, BadDnsConfig> {
        let config = DnsConfig { zone: text.to_owned(), ..DnsConfig::default() };
        Zones::new(&config, "127.0.0.1:53".parse().unwrap())
    }

    #[test]
    fn name_servers_pair_the_families() {
        let addrs = ["192.0.2.1", "2001:db8::1", "192.0.2.2"].map(|addr| addr.parse().unwrap());
        let config = DnsConfig { ns_addrs: addrs.into(), ..DnsConfig::default() };
        let zones = Zones::new(&config, "0.0.0.0:53".parse().unwrap()).unwrap();
        assert_eq!(zones.ns(0).len(), 2);
        assert_eq!(zones.glue().len(), 3);
        assert_eq!(zones.servers[0].addrs, addrs[..2]);
        assert_eq!(zones.servers[1].addrs, addrs[2..]);
    }

    #[test]
    fn the_bytes_of_the_soa_record_hold_whole_names() {
        let zones = zones_of("atoll.test").unwrap();
        let (_, data) = zones.soa_bytes(&DnsView::default()).unwrap();
        let names = b"\x03ns1\x05atoll\x04test\x00\x0ahostmaster\x05atoll\x04test\x00";
        assert!(data.starts_with(names), "{data:?}");
        assert_eq!(data.len(), names.len() + 20);
    }

    #[test]
    fn bad_zones_are_refused() {
        for bad in ["", ".", "a..b", "sp ace.test", &"x.".repeat(120), &"y".repeat(64)] {
            assert!(matches!(zones_of(bad), Err(BadDnsConfig::Zone { .. })), "{bad}");
        }
        let twice = DnsConfig { zones: vec!["Atoll.test.".to_owned()], ..DnsConfig::default() };
        let error = Zones::new(&twice, "127.0.0.1:53".parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("twice"), "{error}");
        let config = DnsConfig::default();
        let any = Zones::new(&config, "[::]:53".parse().unwrap());
        assert!(matches!(any, Err(BadDnsConfig::NoNameServer { .. })));
    }
}
