//! `atoll dns check`: whether the world finds the name servers, and whether they answer.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use atoll_client::Cluster;
use atoll_edge::dns::ask::{self, Question, Reply};
use atoll_proto::edge::DnsServer;
use serde::Serialize;

use super::{CheckArgs, DNS_PORT, server};
use crate::connect::Context;
use crate::report::{Exit, Failure};

/// Where the system says which resolver it uses.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    ok: bool,
    /// What was looked at.
    what: String,
    /// What was found, and what to do about it.
    found: String,
}

/// The final object of `--json`.
#[derive(Serialize)]
struct CheckedObject<'a> {
    ok: bool,
    findings: &'a [Finding],
}

pub(super) async fn run(
    context: &Context,
    cluster: &Cluster,
    args: CheckArgs,
) -> Result<(), Failure> {
    let server = server(cluster, &args.server).await?;
    let resolver = match args.resolver {
        Some(resolver) => resolver.0,
        None => system_resolver()?,
    };
    let mut findings = Vec::new();
    for (name, addrs) in &server.servers {
        for addr in addrs {
            findings.push(name_server(&server, name, *addr).await);
        }
    }
    for zone in &server.zones {
        findings.push(delegation(&server, zone, resolver).await);
    }
    for (domain, site) in &server.foreign_domains {
        findings.push(custom_domain(&server, domain, site, resolver).await);
    }
    let ok = findings.iter().all(|finding| finding.ok);
    if context.out.json() {
        context.out.object(&CheckedObject { ok, findings: &findings })?;
    } else {
        for Finding { ok, what, found } in &findings {
            let mark = if *ok { "ok" } else { "WRONG" };
            context.out.line(format_args!("{mark:5}  {what}: {found}"))?;
        }
    }
    if ok { Ok(()) } else { Err(Failure::Said(Exit::Failed)) }
}

fn system_resolver() -> Result<SocketAddr, Failure> {
    let text = std::fs::read_to_string(RESOLV_CONF)
        .map_err(Failure::file("read", std::path::Path::new(RESOLV_CONF)))?;
    let mut lines = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let addr = lines.find_map(|addr| addr.trim().parse::<IpAddr>().ok());
    let addr = addr.ok_or_else(|| {
        Failure::Failed(format!("{RESOLV_CONF} names no resolver: give one with --resolver"))
    })?;
    Ok(SocketAddr::new(addr, DNS_PORT))
}

/// Whether a name server answers for the zones, over UDP and TCP.
async fn name_server(server: &DnsServer, name: &str, addr: IpAddr) -> Finding {
    let what = format!("name server {name} at {addr}");
    // On its own machine a server may have another port.
    let own = addr == server.listen.ip();
    let to = SocketAddr::new(addr, if own { server.listen.port() } else { DNS_PORT });
    let mut serials = BTreeSet::new();
    for zone in &server.zones {
        for tcp in [false, true] {
            let over = if tcp { "TCP" } else { "UDP" };
            let question = Question { name: zone, kind: "SOA", recurse: false, tcp };
            match ask::ask(to, question).await {
                Err(error) => {
                    let found = format!("no answer for {zone} over {over}: {error}");
                    return Finding { ok: false, what, found };
                }
                Ok(reply) if !reply.authoritative || reply.data("SOA").is_empty() => {
                    let code = reply.code;
                    let found = format!("it does not answer for {zone} over {over} ({code})");
                    return Finding { ok: false, what, found };
                }
                Ok(reply) => {
                    let serial = |soa: &&str| soa.split(' ').nth(2).map(str::to_owned);
                    serials.extend(reply.data("SOA").iter().filter_map(serial));
                }
            }
        }
    }
    let serials: Vec<String> = serials.into_iter().collect();
    let found = format!("answers over UDP and TCP, serial {}", serials.join(", "));
    Finding { ok: true, what, found }
}

/// Whether the parent of a zone points to the name servers.
async fn delegation(server: &DnsServer, zone: &str, resolver: SocketAddr) -> Finding {
    let what = format!("delegation of {zone}");
    let reply = match ask_parent(zone, resolver).await {
        Ok(reply) => reply,
        Err(found) => return Finding { ok: false, what, found },
    };
    let (ok, found) = judge_delegation(server, zone, &reply);
    Finding { ok, what, found }
}

/// A question to a resolver.
fn recursive<'q>(name: &'q str, kind: &'static str) -> Question<'q> {
    Question { name, kind, recurse: true, tcp: false }
}

/// Asks a server of the parent zone where the zone is.
async fn ask_parent(zone: &str, resolver: SocketAddr) -> Result<Reply, String> {
    let mut parent = zone.trim_end_matches('.');
    let servers = loop {
        parent = parent.split_once('.').map_or("", |(_, parent)| parent);
        let name = format!("{parent}.");
        let reply = ask::ask(resolver, recursive(&name, "NS")).await;
        let reply = reply.map_err(|error| format!("the resolver {resolver}: {error}"))?;
        let servers: Vec<String> =
            reply.data("NS").iter().map(|server| (*server).to_owned()).collect();
        if !servers.is_empty() {
            break servers;
        }
        if parent.is_empty() {
            return Err(format!("the resolver {resolver} does not find the parent zone"));
        }
    };
    let mut last = String::new();
    for server in servers {
        let reply = ask::ask(resolver, recursive(&server, "A")).await;
        for addr in reply.map(|reply| reply.addrs()).unwrap_or_default() {
            let question = Question { name: zone, kind: "NS", recurse: false, tcp: false };
            match ask::ask(SocketAddr::new(addr, DNS_PORT), question).await {
                Ok(reply) => return Ok(reply),
                Err(error) => last = format!("{server} at {addr}: {error}"),
            }
        }
    }
    Err(format!("no server of the parent zone answers: {last}"))
}

/// Compares what the parent says with what it should.
fn judge_delegation(server: &DnsServer, zone: &str, reply: &Reply) -> (bool, String) {
    // A referral has them in the authority section; a parent on the same server in the answer.
    let lines = reply.authorities.iter().chain(&reply.answers);
    let found: BTreeSet<&str> = lines
        .filter(|line| line.kind == "NS" && line.name == zone)
        .map(|line| line.data.as_str())
        .collect();
    let expected: BTreeSet<&str> = server.servers.iter().map(|(name, _)| name.as_str()).collect();
    let list = |names: &BTreeSet<&str>| names.iter().copied().collect::<Vec<_>>().join(", ");
    let todo = "set what `atoll dns records` prints";
    if found.is_empty() {
        let code = &reply.code;
        return (false, format!("the parent zone does not delegate it ({code}): {todo}"));
    }
    if found != expected {
        let (found, expected) = (list(&found), list(&expected));
        return (false, format!("the parent zone names {found} instead of {expected}: {todo}"));
    }
    for (name, addrs) in &server.servers {
        let glue: BTreeSet<IpAddr> = reply
            .additionals
            .iter()
            .filter(|line| line.name == *name)
            .filter_map(|line| line.addr)
            .collect();
        let expected: BTreeSet<IpAddr> = addrs.iter().copied().collect();
        let within = name.ends_with(&format!(".{zone}"));
        if within && glue != expected {
            let (glue, expected) = (format!("{glue:?}"), format!("{expected:?}"));
            return (false, format!("glue of {name} is {glue} instead of {expected}: {todo}"));
        }
    }
    (true, format!("to {}", list(&found)))
}

/// Whether a custom domain leads to a site, as the world sees it.
async fn custom_domain(
    server: &DnsServer,
    domain: &str,
    site: &str,
    resolver: SocketAddr,
) -> Finding {
    let what = format!("domain {domain} of {site}");
    let first = server.zones.first().map_or("", String::as_str);
    let target = format!("{site}.{first}");
    let reply = match ask::ask(resolver, recursive(domain, "A")).await {
        Ok(reply) => reply,
        Err(error) => {
            return Finding { ok: false, what, found: format!("the resolver {resolver}: {error}") };
        }
    };
    if reply.data("CNAME").contains(&target.as_str()) {
        return Finding { ok: true, what, found: format!("a CNAME of {target}") };
    }
    // Where a zone cannot have a CNAME, its addresses may be copied.
    let own = ask::ask(server.listen, recursive(&target, "A")).await;
    let own = own.map(|reply| reply.addrs()).unwrap_or_default();
    let addrs = reply.addrs();
    if !addrs.is_empty() && addrs.iter().all(|addr| own.contains(addr)) {
        return Finding { ok: true, what, found: "leads to edges".to_owned() };
    }
    let code = &reply.code;
    let found = format!("it does not lead here ({code}): make it a CNAME of {target}");
    Finding { ok: false, what, found }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_edge::dns::ask::Line;

    use super::*;

    fn line(name: &str, kind: &str, data: &str) -> Line {
        let (name, kind, data) = (name.to_owned(), kind.to_owned(), data.to_owned());
        Line { addr: data.parse().ok(), name, kind, data }
    }

    #[test]
    fn what_is_wrong_with_a_delegation_is_said() {
        let server = DnsServer {
            listen: "192.0.2.1:53".parse().unwrap(),
            zones: vec!["cdn.example.".to_owned()],
            servers: vec![("ns1.cdn.example.".to_owned(), vec!["192.0.2.1".parse().unwrap()])],
            serial: 1,
            foreign_domains: Vec::new(),
        };
        let judge = |reply: &Reply| judge_delegation(&server, "cdn.example.", reply);
        let mut reply = Reply { code: "NXDOMAIN".to_owned(), ..Reply::default() };
        let (ok, found) = judge(&reply);
        assert!(!ok && found.contains("NXDOMAIN") && found.contains("dns records"), "{found}");
        reply.authorities = vec![line("cdn.example.", "NS", "ns1.other.example.")];
        let (ok, found) = judge(&reply);
        assert!(!ok && found.contains("ns1.other.example. instead of ns1.cdn"), "{found}");
        reply.authorities = vec![line("cdn.example.", "NS", "ns1.cdn.example.")];
        let (ok, found) = judge(&reply);
        assert!(!ok && found.contains("glue of ns1.cdn.example."), "{found}");
        reply.additionals = vec![line("ns1.cdn.example.", "A", "192.0.2.1")];
        assert_eq!(judge(&reply), (true, "to ns1.cdn.example.".to_owned()));
    }
}
