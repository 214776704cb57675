//! What the operator writes down about DNS.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use super::{geo::LatLon, subnet::Subnet};

/// Settings of the `dns` role. The default suits a cluster on one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsConfig {
    /// Address for UDP and TCP alike; port 0 takes one from the system. On a machine with several
    /// addresses name the one to answer from, not the unspecified address.
    pub listen: SocketAddr,
    /// Address for DNS over TLS (RFC 7858); none without. Uses the certificate for visitors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_listen: Option<SocketAddr>,
    /// The zone this node is authoritative for, such as `atoll.test`.
    pub zone: String,
    /// Other zones that are delegated to it, for custom domains of sites: names in them exist
    /// when a site has them as a domain, or a record below says so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<String>,
    /// Threads that answer over UDP; without, one for each processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp_threads: Option<usize>,
    /// Where clients are. Several lines with one block list regions from near to far.
    #[serde(default)]
    pub regions: Vec<RegionCidr>,
    /// Where the clients of resolvers are that do not tell their subnet, by the resolver's
    /// address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resolvers: Vec<RegionCidr>,
    /// Where the clients of autonomous systems are. Needs a database that knows the systems.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asns: Vec<RegionAsn>,
    /// For a region, the other regions from near to far; those not named follow by distance. The
    /// entry `default` is for clients that no rule places: without it every region is equally
    /// near to them.
    #[serde(default)]
    pub region_order: BTreeMap<String, Vec<String>>,
    /// Where regions and single edges are: `eu = [50.1, 8.7]`, latitude and longitude in degrees.
    /// Regions with well-known names (`eu`, `us-east`, `fra`, `de`) need none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub places: BTreeMap<String, LatLon>,
    /// Geographic databases in MaxMind's format; the first that knows an address counts. They may
    /// be replaced while the edge runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mmdb: Vec<PathBuf>,
    /// Whether addresses that nothing else knows are placed by the registry that gave them out.
    #[serde(default = "yes")]
    pub registry_table: bool,
    /// Addresses of the zone's name servers: the first IPv4 and the first IPv6 address are
    /// `ns1`, the second of each `ns2`, and so on. Empty means `listen`.
    #[serde(default)]
    pub ns_addrs: Vec<IpAddr>,
    /// Records beside those of sites.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<RecordLine>,
    /// What this server tells of itself to those who ask (NSID, RFC 5001); its name without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nsid: Option<String>,
    /// 32 hexadecimal digits that DNS cookies are made from, the same on all name servers that
    /// share an address; random without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie_secret: Option<String>,
    /// The limit of equal answers to one block of addresses.
    #[serde(default)]
    pub rate_limit: RateLimit,
}

/// A block of client addresses and the region it lies in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionCidr {
    /// The block, for example `192.0.2.0/24` or `2001:db8::/32`.
    pub cidr: Subnet,
    /// Name of the region, as edges state theirs.
    pub region: String,
}

/// An autonomous system and the region its clients are in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionAsn {
    /// Its number.
    pub asn: u32,
    /// Name of the region, as edges state theirs.
    pub region: String,
}

/// A record that the operator writes down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordLine {
    /// Its name: `@` for the zone itself, names without a final dot are within the zone, and with
    /// one they may be in another zone of this server.
    pub name: String,
    /// A, AAAA, CAA, CNAME, MX or TXT.
    #[serde(rename = "type")]
    pub kind: String,
    /// As in zone files, TXT without quotes: `10 mail.example.`, `0 issue "letsencrypt.org"`.
    pub value: String,
    /// How long it may be kept, in seconds.
    #[serde(default = "record_ttl_secs")]
    pub ttl: u32,
}

/// How many equal answers go to one block of addresses (/24, /56) over UDP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Answers in a second, twice as many after a pause; 0 for no limit.
    pub per_second: u32,
    /// Blocks that are never limited.
    #[serde(default = "loopback")]
    pub exempt: Vec<Subnet>,
}

impl Default for RateLimit {
    fn default() -> RateLimit {
        RateLimit { per_second: RESPONSES_PER_SECOND, exempt: loopback() }
    }
}

/// Equal answers in a second to one block. A busy resolver that honours the lifetime of answers
/// asks for a name some ten times a minute and subnet; one that shows a cookie is not limited.
const RESPONSES_PER_SECOND: u32 = 1000;

fn loopback() -> Vec<Subnet> {
    let block = |addr: IpAddr, prefix| Subnet::of(addr, prefix);
    vec![block(Ipv4Addr::new(127, 0, 0, 0).into(), 8), block(Ipv6Addr::LOCALHOST.into(), 128)]
}

fn record_ttl_secs() -> u32 {
    300
}

fn yes() -> bool {
    true
}

/// A setting that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadDnsConfig {
    /// The zone is not a domain name, or has no room for names below it.
    #[error("dns zone {zone:?} {reason}")]
    Zone {
        /// What was configured.
        zone: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A record cannot be served.
    #[error("dns record {name:?} {kind}: {reason}")]
    Record {
        /// Its name, as configured.
        name: String,
        /// Its type, as configured.
        kind: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The secret of cookies is none.
    #[error(
        "dns.cookie_secret must be 32 hexadecimal digits, such as `openssl rand -hex 16` prints"
    )]
    CookieSecret,
    /// The name of the server is too long.
    #[error("dns.nsid must have at most {most} bytes")]
    Nsid {
        /// The most.
        most: usize,
    },
    /// Nobody could be told where the zone's name server is.
    #[error("dns.ns_addrs must be set when dns.listen is {listen}")]
    NoNameServer {
        /// The unspecified address that was configured.
        listen: SocketAddr,
    },
}

impl Default for DnsConfig {
    fn default() -> DnsConfig {
        DnsConfig {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            tls_listen: None,
            zone: "atoll.test".to_owned(),
            zones: Vec::new(),
            udp_threads: None,
            regions: Vec::new(),
            resolvers: Vec::new(),
            asns: Vec::new(),
            region_order: BTreeMap::new(),
            places: BTreeMap::new(),
            mmdb: Vec::new(),
            registry_table: true,
            ns_addrs: Vec::new(),
            records: Vec::new(),
            nsid: None,
            cookie_secret: None,
            rate_limit: RateLimit::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_file_is_read_and_unknown_fields_are_refused() {
        let text = r#"
            listen = "192.0.2.53:53"
            zone = "cdn.example"
            ns_addrs = ["192.0.2.53", "2001:db8::53"]
            mmdb = ["city.mmdb", "asn.mmdb"]
            asns = [{ asn = 64500, region = "eu" }]
            records = [{ name = "@", type = "CAA", value = '0 issue "ca.example"' }]
            rate_limit = { per_second = 50 }
            regions = [{ cidr = "10.0.0.0/8", region = "eu" }]
            [region_order]
            eu = ["us", "ap"]
            [places]
            attic = [50.1, 8.7]
        "#;
        let config: DnsConfig = toml::from_str(text).unwrap();
        assert_eq!(config.regions[0].cidr.to_string(), "10.0.0.0/8");
        assert_eq!(config.region_order["eu"], ["us", "ap"]);
        assert_eq!(config.rate_limit.exempt, loopback());
        assert_eq!((config.records[0].ttl, config.places["attic"].lon()), (300, 8.7));
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<DnsConfig>(&text).unwrap(), config);

        let least = "listen = \"127.0.0.1:0\"\nzone = \"atoll.test\"\n";
        assert_eq!(toml::from_str::<DnsConfig>(least).unwrap(), DnsConfig::default());
        assert!(toml::from_str::<DnsConfig>(&format!("{least}ttl = 3\n")).is_err());
        let bad = format!("{least}regions = [{{ cidr = \"10.0.0.1/8\", region = \"eu\" }}]\n");
        assert!(toml::from_str::<DnsConfig>(&bad).unwrap_err().to_string().contains("behind"));
    }
}
