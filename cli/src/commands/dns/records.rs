//! `atoll dns records`: what the parent of a zone has to say of it, and the zones of custom
//! domains of their names.

use std::net::IpAddr;

use atoll_client::Cluster;
use atoll_proto::edge::DnsServer;
use serde::Serialize;

use super::{ServerArgs, server};
use crate::connect::Context;
use crate::report::Failure;

/// A record to be set somewhere else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Wanted {
    /// Where: `registrar` of the zone, or the `zone` that a custom domain is in.
    pub(super) at: &'static str,
    /// Of which zone or domain.
    pub(super) of: String,
    /// The record's name, with a final dot.
    pub(super) name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    /// Its data.
    pub(super) value: String,
}

/// The final object of `--json`.
#[derive(Serialize)]
struct RecordsObject<'a> {
    zones: &'a [String],
    records: &'a [Wanted],
}

/// Every record that has to be set somewhere else.
pub(super) fn wanted(server: &DnsServer) -> Vec<Wanted> {
    let mut records = Vec::new();
    for zone in &server.zones {
        let record = |name: &str, kind, value: String| Wanted {
            at: "registrar",
            of: zone.clone(),
            name: name.to_owned(),
            kind,
            value,
        };
        for (name, _) in &server.servers {
            records.push(record(zone, "NS", name.clone()));
        }
        // Glue: only where the names of the servers lie within the zone.
        let within = |name: &str| name.ends_with(&format!(".{zone}"));
        for (name, addrs) in server.servers.iter().filter(|(name, _)| within(name)) {
            for addr in addrs {
                let kind = if addr.is_ipv4() { "A" } else { "AAAA" };
                records.push(record(name, kind, addr.to_string()));
            }
        }
    }
    let first = server.zones.first().map_or("", String::as_str);
    for (domain, site) in &server.foreign_domains {
        records.push(Wanted {
            at: "zone",
            of: domain.clone(),
            name: format!("{domain}."),
            kind: "CNAME",
            value: format!("{site}.{first}"),
        });
    }
    records
}

pub(super) async fn run(
    context: &Context,
    cluster: &Cluster,
    args: &ServerArgs,
) -> Result<(), Failure> {
    let server = server(cluster, args).await?;
    let records = wanted(&server);
    if context.out.json() {
        return context.out.object(&RecordsObject { zones: &server.zones, records: &records });
    }
    let mut last = None;
    for record in &records {
        let heading = match record.at {
            "registrar" => format!("; at the registrar of {}, or in its parent zone", record.of),
            _ => "; where the custom domains are kept".to_owned(),
        };
        if last.as_ref() != Some(&heading) {
            context.out.line(&heading)?;
            last = Some(heading);
        }
        let Wanted { name, kind, value, .. } = record;
        context.out.line(format_args!("{name} {kind} {value}"))?;
    }
    let local = |addrs: &Vec<IpAddr>| addrs.iter().any(IpAddr::is_loopback);
    if server.servers.iter().any(|(_, addrs)| local(addrs)) {
        context.out.note("these are addresses of this machine only: set `ns_addrs` under [dns]");
    }
    if !server.foreign_domains.is_empty() {
        context.out.note(
            "a domain that is a zone of its own cannot be a CNAME: delegate it here and name it \
             in `zones` under [dns], or use what your provider calls ALIAS",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn glue_is_for_servers_within_the_zone() {
        let server = DnsServer {
            listen: "192.0.2.1:53".parse().unwrap(),
            zones: vec!["cdn.example.".to_owned(), "shop.example.".to_owned()],
            servers: vec![(
                "ns1.cdn.example.".to_owned(),
                vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            )],
            serial: 1,
            foreign_domains: vec![("www.else.example".to_owned(), "blog".to_owned())],
        };
        let text: Vec<String> =
            wanted(&server).iter().map(|r| format!("{} {} {}", r.name, r.kind, r.value)).collect();
        assert_eq!(
            text,
            [
                "cdn.example. NS ns1.cdn.example.",
                "ns1.cdn.example. A 192.0.2.1",
                "ns1.cdn.example. AAAA 2001:db8::1",
                "shop.example. NS ns1.cdn.example.",
                "www.else.example. CNAME blog.cdn.example.",
            ]
        );
    }
}
