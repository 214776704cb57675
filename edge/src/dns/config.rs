//! What the operator writes down about DNS.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use super::subnet::Subnet;

/// Settings of the `dns` role. The default suits a cluster on one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsConfig {
    /// Address for UDP and TCP alike; port 0 takes one from the system. On a machine with several
    /// addresses name the one to answer from, not the unspecified address.
    pub listen: SocketAddr,
    /// The zone this node is authoritative for, such as `atoll.test`.
    pub zone: String,
    /// Where clients are. Several lines with one block list regions from near to far.
    #[serde(default)]
    pub regions: Vec<RegionCidr>,
    /// For a region, the other regions from near to far; those not named follow in alphabetical
    /// order. The entry `default` is for clients that no block covers: without it every region is
    /// equally near to them.
    #[serde(default)]
    pub region_order: BTreeMap<String, Vec<String>>,
    /// Addresses of the zone's name servers: the first IPv4 and the first IPv6 address are
    /// `ns1`, the second of each `ns2`, and so on. Empty means `listen`.
    #[serde(default)]
    pub ns_addrs: Vec<IpAddr>,
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
            zone: "atoll.test".to_owned(),
            regions: Vec::new(),
            region_order: BTreeMap::new(),
            ns_addrs: Vec::new(),
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
            regions = [{ cidr = "10.0.0.0/8", region = "eu" }]
            [region_order]
            eu = ["us", "ap"]
        "#;
        let config: DnsConfig = toml::from_str(text).unwrap();
        assert_eq!(config.regions[0].cidr.to_string(), "10.0.0.0/8");
        assert_eq!(config.region_order["eu"], ["us", "ap"]);
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<DnsConfig>(&text).unwrap(), config);

        let least = "listen = \"127.0.0.1:0\"\nzone = \"atoll.test\"\n";
        assert_eq!(toml::from_str::<DnsConfig>(least).unwrap(), DnsConfig::default());
        assert!(toml::from_str::<DnsConfig>(&format!("{least}ttl = 3\n")).is_err());
        let bad = format!("{least}regions = [{{ cidr = \"10.0.0.1/8\", region = \"eu\" }}]\n");
        assert!(toml::from_str::<DnsConfig>(&bad).unwrap_err().to_string().contains("behind"));
    }
}
