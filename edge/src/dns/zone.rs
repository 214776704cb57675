//! What the zone holds: its own records, and which names exist.
//!
//! [`super::answer`] asks. [`Zone`] is fixed by the configuration; [`SiteNames`] follows the
//! [`DnsView`] that the edge's index publishes from the master's node feed. Which edges a name
//! leads to is not decided here but in [`super::route`].

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::{IpAddr, SocketAddr},
};

use hickory_proto::rr::{
    Name, RData, Record,
    rdata::{NS, SOA},
};

use super::{
    config::{BadDnsConfig, DnsConfig},
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
    /// Custom domains and the site each belongs to; only those within the zone are answered.
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

/// What a name is in the zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The name is not within the zone.
    Outside,
    /// The zone's own name: SOA, NS, and the edges.
    Apex,
    /// The name server with this index.
    NameServer(usize),
    /// A site, an alias of one, or a custom domain: the edges.
    Host,
    /// Nothing is at the name, but something is below it (RFC 8020: it exists).
    Empty,
    /// The name does not exist, nor anything below it.
    Missing,
}

/// The fixed part of the zone.
#[derive(Clone, Debug)]
pub struct Zone {
    apex: Name,
    /// The apex as [`text_of`] writes it.
    apex_text: String,
    mailbox: Name,
    servers: Vec<NameServer>,
}

/// One of the zone's name servers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NameServer {
    name: Name,
    addrs: Vec<IpAddr>,
}

impl Zone {
    /// Reads the zone from the configuration. `listen` is the bound address, which is `ns1` when
    /// no other is configured.
    ///
    /// # Errors
    /// When the zone's name cannot be one, or no address of a name server is known.
    pub fn new(config: &DnsConfig, listen: SocketAddr) -> Result<Zone, BadDnsConfig> {
        let bad = |reason| BadDnsConfig::Zone { zone: config.zone.clone(), reason };
        let mut apex = Name::from_ascii(config.zone.trim_end_matches('.'))
            .map_err(|_| bad("is not a domain name"))?
            .to_lowercase();
        apex.set_fqdn(true);
        if apex.is_root() {
            return Err(bad("must not be the root"));
        }
        let apex_text =
            text_of(&apex).ok_or_else(|| bad("may hold only a-z, 0-9, '-', '_' and dots"))?;
        let below = |label: &str| {
            apex.prepend_label(label).map_err(|_| bad("leaves no room for names below it"))
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
        Ok(Zone { mailbox: below("hostmaster")?, apex_text, servers, apex })
    }

    /// What `name` is, given the names the sites have.
    pub fn place(&self, name: &Name, view: &DnsView, names: &SiteNames) -> Place {
        if !self.apex.zone_of(name) {
            return Place::Outside;
        }
        if self.apex.num_labels() == name.num_labels() {
            return Place::Apex;
        }
        if let Some(index) = self.servers.iter().position(|server| server.name == *name) {
            return Place::NameServer(index);
        }
        // A name with unusual bytes is none that a site can have.
        let Some(text) = text_of(name) else {
            return Place::Missing;
        };
        let label = text.strip_suffix(&self.apex_text).and_then(|text| text.strip_suffix('.'));
        if names.hosts.contains(&text) || label.is_some_and(|label| is_site(label, view)) {
            return Place::Host;
        }
        if names.empty.contains(&text) { Place::Empty } else { Place::Missing }
    }

    /// The SOA record.
    pub fn soa(&self, view: &DnsView) -> Record {
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
        Record::from_rdata(self.apex.clone(), ttl, RData::SOA(soa))
    }

    /// The NS records.
    pub fn ns(&self) -> Vec<Record> {
        let record = |server: &NameServer| {
            let data = RData::NS(NS(server.name.clone()));
            Record::from_rdata(self.apex.clone(), NS_TTL_SECS, data)
        };
        self.servers.iter().map(record).collect()
    }

    /// The address records of all name servers, to go with [`Zone::ns`].
    pub fn glue(&self) -> Vec<Record> {
        let records =
            |server: &NameServer| address_records(&server.name, &server.addrs, NS_TTL_SECS);
        self.servers.iter().flat_map(records).collect()
    }

    /// The address records of one name server under the name as it was asked.
    pub fn server_addresses(&self, index: usize, asked: &Name) -> Vec<Record> {
        match self.servers.get(index) {
            Some(server) => address_records(asked, &server.addrs, NS_TTL_SECS),
            None => Vec::new(),
        }
    }

    fn primary(&self) -> Name {
        match self.servers.first() {
            Some(server) => server.name.clone(),
            None => self.apex.clone(),
        }
    }
}

/// Names within the zone that come from custom domains, prepared for look-up. Sites need no
/// preparation: their label is looked up in the view.
#[derive(Clone, Debug, Default)]
pub struct SiteNames {
    hosts: HashSet<String>,
    /// Names between a host and the apex that hold nothing themselves.
    empty: HashSet<String>,
}

impl SiteNames {
    /// Prepares the names of `view`.
    pub fn new(zone: &Zone, view: &DnsView) -> SiteNames {
        let mut names = SiteNames::default();
        for domain in view.domains.keys() {
            let domain = domain.trim_end_matches('.').to_ascii_lowercase();
            let Some(below) =
                domain.strip_suffix(&zone.apex_text).and_then(|text| text.strip_suffix('.'))
            else {
                continue;
            };
            let dots = below.match_indices('.').map(|(at, _)| at + 1);
            names.empty.extend(dots.map(|at| domain[at..].to_owned()));
            names.hosts.insert(domain);
        }
        names
    }
}

/// Address records of one owner, in the given order.
pub(super) fn address_records(owner: &Name, addrs: &[IpAddr], ttl: u32) -> Vec<Record> {
    let record = |addr: &IpAddr| {
        let data = match *addr {
            IpAddr::V4(v4) => RData::A(v4.into()),
            IpAddr::V6(v6) => RData::AAAA(v6.into()),
        };
        Record::from_rdata(owner.clone(), ttl, data)
    };
    addrs.iter().map(record).collect()
}

/// Whether the label is a site's, or `<alias>--<site>`. Which aliases exist is not known here,
/// and need not be: a wrong one gets its 404 from the edge.
fn is_site(label: &str, view: &DnsView) -> bool {
    let (alias, site) = match label.split_once("--") {
        Some((alias, site)) => (Some(alias), site),
        None => (None, label),
    };
    view.sites.contains(site)
        && alias.is_none_or(|alias| alias.parse::<atoll_proto::AliasName>().is_ok())
}

/// The addresses of ns1, ns2, … : the first of each family, the second of each, and so on.
fn by_server(addrs: &[IpAddr]) -> Vec<Vec<IpAddr>> {
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addrs.iter().partition(|addr| addr.is_ipv4());
    let server = |index| v4.get(index).into_iter().chain(v6.get(index)).copied().collect();
    (0..v4.len().max(v6.len())).map(server).collect()
}

/// The name in lower case without the last dot, or nothing if a label holds other bytes than
/// host names do. (A dot inside a label would otherwise look like two labels.)
fn text_of(name: &Name) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label {
            if !byte.is_ascii_alphanumeric() && *byte != b'-' && *byte != b'_' {
                return None;
            }
            text.push(char::from(byte.to_ascii_lowercase()));
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn zone_of(text: &str) -> Result<Zone, BadDnsConfig> {
        let config = DnsConfig { zone: text.to_owned(), ..DnsConfig::default() };
        Zone::new(&config, "127.0.0.1:53".parse().unwrap())
    }

    #[test]
    fn names_have_their_place() {
        let zone = zone_of("Atoll.Test.").unwrap();
        let view = DnsView {
            sites: ["docs", "ns1", "a-b"].map(str::to_owned).into(),
            domains: ["www.deep.atoll.test", "Shop.atoll.test.", "example.org", "xatoll.test"]
                .map(|domain| (domain.to_owned(), "docs".to_owned()))
                .into(),
            ..DnsView::default()
        };
        let names = SiteNames::new(&zone, &view);
        for (name, place) in [
            ("atoll.test.", Place::Apex),
            ("ATOLL.test.", Place::Apex),
            ("docs.atoll.test.", Place::Host),
            ("DOCS.Atoll.Test.", Place::Host),
            ("next--docs.atoll.test.", Place::Host),
            ("n-1--a-b.atoll.test.", Place::Host),
            ("--docs.atoll.test.", Place::Missing),
            ("a--b--docs.atoll.test.", Place::Missing),
            ("docs--next.atoll.test.", Place::Missing),
            ("x.docs.atoll.test.", Place::Missing),
            ("nope.atoll.test.", Place::Missing),
            ("shop.atoll.test.", Place::Host),
            ("www.deep.atoll.test.", Place::Host),
            ("deep.atoll.test.", Place::Empty),
            ("NS1.atoll.test.", Place::NameServer(0)),
            ("ns2.atoll.test.", Place::Missing),
            ("example.org.", Place::Outside),
            ("xatoll.test.", Place::Outside),
            ("test.", Place::Outside),
            (".", Place::Outside),
        ] {
            let labels = name.split('.').filter(|label| !label.is_empty()).map(str::as_bytes);
            let name = Name::from_labels(labels).unwrap();
            assert_eq!(zone.place(&name, &view, &names), place, "{name}");
        }
        let dotted = Name::from_labels([&b"www.deep"[..], b"atoll", b"test"]).unwrap();
        assert_eq!(zone.place(&dotted, &view, &names), Place::Missing);
    }

    #[test]
    fn name_servers_pair_the_families() {
        let addrs = ["192.0.2.1", "2001:db8::1", "192.0.2.2"].map(|addr| addr.parse().unwrap());
        let config = DnsConfig { ns_addrs: addrs.into(), ..DnsConfig::default() };
        let zone = Zone::new(&config, "0.0.0.0:53".parse().unwrap()).unwrap();
        assert_eq!(zone.ns().len(), 2);
        assert_eq!(zone.glue().len(), 3);
        assert_eq!(zone.servers[0].addrs, addrs[..2]);
        assert_eq!(zone.servers[1].addrs, addrs[2..]);
    }

    #[test]
    fn bad_zones_are_refused() {
        for bad in ["", ".", "a..b", "sp ace.test", &"x.".repeat(120), &"y".repeat(64)] {
            assert!(matches!(zone_of(bad), Err(BadDnsConfig::Zone { .. })), "{bad}");
        }
        let config = DnsConfig::default();
        let any = Zone::new(&config, "[::]:53".parse().unwrap());
        assert!(matches!(any, Err(BadDnsConfig::NoNameServer { .. })));
    }
}
