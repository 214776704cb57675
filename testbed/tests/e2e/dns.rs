//! DNS: authoritative answers for the zone, over UDP and TCP; dead edges leave the answers.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Result, ensure};
use atoll_testbed::dns::{Transport, addresses, ask};
use atoll_testbed::{DevCluster, Fault, Node, Tree, seed, wait};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::rdata::svcb::SvcParamValue;
use hickory_proto::rr::{RData, RecordType};

use super::text;

/// Until an edge that died or came back must show in the answers.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(40);

/// Ports that the HTTPS records of an answer name.
fn https_ports(message: &Message) -> Vec<u16> {
    let mut ports: Vec<u16> = message
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::HTTPS(https) => Some(&https.svc_params),
            _ => None,
        })
        .flatten()
        .filter_map(|(_, value)| match value {
            SvcParamValue::Port(port) => Some(*port),
            _ => None,
        })
        .collect();
    ports.sort_unstable();
    ports
}

#[test]
fn the_zone_is_answered_and_dead_edges_leave() -> Result<()> {
    let seed = seed::or(15);
    let cluster = DevCluster::builder().edges(2).seed(seed).start()?;
    let source = cluster.work().join("site");
    Tree::ordinary(seed, 3).write(&source)?;
    cluster.deploy(&source, "named")?;
    let ready = cluster.ready();
    ensure!(!ready.dns.is_empty(), "no name server in {ready:?}");
    for dns in &ready.dns {
        let name = format!("named.{}", dns.zone);
        // Each name server hears of its own accord that the other edge is ready.
        wait::until("the new site has its name and both edges", CHANGE_TIMEOUT, || {
            let answer = ask(dns.addr, Transport::Udp, &name, RecordType::HTTPS, None)?;
            Ok((https_ports(&answer).len() >= 2).then_some(()))
        })?;
        for transport in [Transport::Udp, Transport::Tcp] {
            let question = |name: &str, kind| ask(dns.addr, transport, name, kind, None);
            let a = question(&name, RecordType::A)?;
            ensure!(a.metadata.authoritative, "{a:?}");
            ensure!(a.metadata.response_code == ResponseCode::NoError, "{a:?}");
            ensure!(addresses(&a).contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)), "{a:?}");
            ensure!(a.answers.iter().all(|record| record.ttl <= 60), "{a:?}");
            let aaaa = question(&name, RecordType::AAAA)?;
            ensure!(aaaa.metadata.response_code == ResponseCode::NoError, "{aaaa:?}");
            let https = question(&name, RecordType::HTTPS)?;
            ensure!(https_ports(&https).len() >= 2, "both edges: {https:?}");
            let soa = question(&dns.zone, RecordType::SOA)?;
            ensure!(soa.answers.iter().any(|r| r.record_type() == RecordType::SOA), "{soa:?}");
            let ns = question(&dns.zone, RecordType::NS)?;
            ensure!(ns.answers.iter().any(|r| r.record_type() == RecordType::NS), "{ns:?}");
            let absent = question("no.such.name.example", RecordType::A)?;
            ensure!(absent.metadata.response_code == ResponseCode::Refused, "{absent:?}");
        }
        located(dns.addr, &name)?;
    }
    an_edge_dies_and_comes_back(&cluster)?;
    cluster.finish()
}

#[test]
fn a_draining_edge_leaves_the_answers_and_answers_are_explained() -> Result<()> {
    let seed = seed::or(16);
    let cluster = DevCluster::builder().edges(3).seed(seed).start()?;
    let source = cluster.work().join("site");
    Tree::ordinary(seed, 3).write(&source)?;
    cluster.deploy(&source, "named")?;
    let ready = cluster.ready();
    let name = format!("named.{}", ready.dns[0].zone);
    let becomes = |what: &str, edges: &[u64]| {
        let mut expected: Vec<u16> =
            edges.iter().map(|n| ready.edge(Node::edge(*n)).unwrap().https.port()).collect();
        expected.sort_unstable();
        for dns in &ready.dns {
            wait::until(what, CHANGE_TIMEOUT, || {
                let answer = ask(dns.addr, Transport::Udp, &name, RecordType::HTTPS, None)?;
                Ok((https_ports(&answer) == expected).then_some(()))
            })?;
        }
        anyhow::Ok(())
    };
    becomes("all edges are answered", &[1, 2, 3])?;
    explained(&cluster, &name)?;
    cluster.json(&["node", "drain", "edge-2"])?;
    becomes("the draining edge leaves", &[1, 3])?;
    let told = explain(&cluster, &name)?;
    let why = candidate(&told, "edge-2");
    ensure!(why["taken"] == false && text(why, "why").contains("draining"), "{told}");
    // It serves on, and is no reason to be unwell.
    cluster.wait_healthy()?;
    cluster.json(&["node", "undrain", "edge-2"])?;
    becomes("the edge is back", &[1, 2, 3])?;
    registrar(&cluster)?;
    cluster.finish()
}

fn explain(cluster: &DevCluster, name: &str) -> Result<serde_json::Value> {
    cluster.json(&["dns", "explain", name, "--client", "193.0.6.139"])
}

fn candidate<'v>(told: &'v serde_json::Value, edge: &str) -> &'v serde_json::Value {
    let candidates = told["candidates"].as_array().unwrap();
    candidates.iter().find(|candidate| candidate["name"] == edge).unwrap()
}

/// Which rule, which edges, how far.
fn explained(cluster: &DevCluster, name: &str) -> Result<()> {
    let told = explain(cluster, name)?;
    ensure!(told["code"] == "NOERROR" && told["rule"] == "registry", "{told}");
    ensure!(told["answers"].as_array().is_some_and(|answers| !answers.is_empty()), "{told}");
    ensure!(candidate(&told, "edge-1")["km"].is_u64(), "{told}");
    let shown = cluster.atoll(&["dns", "explain", name, "--client", "10.1.2.3"])?.ok()?.text();
    ensure!(shown.contains("rule default") && shown.contains("edge-3"), "{shown}");
    let as_resolver = ["dns", "explain", name, "--client", "10.1.2.3", "--as-resolver"];
    let told = cluster.json(&as_resolver)?;
    ensure!(told["scope_prefix"] == 0 && told["told_prefix"].is_null(), "{told}");
    let absent = cluster.json(&["dns", "explain", "no.such.name", "--client", "10.1.2.3"])?;
    ensure!(absent["code"] == "REFUSED" && absent["rule"].is_null(), "{absent}");
    let bad = cluster.atoll(&["dns", "explain", name, "--client", "10.1.2.3", "--server", "x"])?;
    let bad = bad.expect_code(1)?;
    ensure!(bad.stderr.contains("no edge x answers DNS"), "{bad}");
    Ok(())
}

/// What to set at the registrar, and a check that says what is missing.
fn registrar(cluster: &DevCluster) -> Result<()> {
    let records = cluster.json(&["dns", "records"])?;
    let first = &records["records"][0];
    ensure!(first["type"] == "NS" && first["name"] == "atoll.test.", "{records}");
    let shown = cluster.atoll(&["dns", "records"])?.ok()?.text();
    ensure!(shown.contains("ns1.atoll.test. A 127.0.0.1"), "{shown}");
    // Nothing answers there, so nothing is delegated as far as one can see.
    let resolver = std::net::UdpSocket::bind("127.0.0.1:0")?;
    let addr = resolver.local_addr()?.to_string();
    drop(resolver);
    let checked = cluster.atoll(&["dns", "check", "--resolver", &addr, "--json"])?;
    let checked = checked.expect_code(1)?.last()?;
    let findings = checked["findings"].as_array().unwrap();
    let server = findings.iter().find(|f| text(f, "what").starts_with("name server"));
    ensure!(server.is_some_and(|finding| finding["ok"] == true), "{checked}");
    let parent = findings.iter().find(|f| text(f, "what").starts_with("delegation"));
    ensure!(parent.is_some_and(|finding| finding["ok"] == false), "{checked}");
    Ok(())
}

/// The client's subnet is read and answered with a scope.
fn located(server: std::net::SocketAddr, name: &str) -> Result<()> {
    let subnet = Some((IpAddr::V4(Ipv4Addr::new(198, 51, 100, 0)), 24));
    let answer = ask(server, Transport::Udp, name, RecordType::A, subnet)?;
    ensure!(!addresses(&answer).is_empty(), "{answer:?}");
    let option = answer.edns.as_ref().and_then(|edns| edns.option(EdnsCode::Subnet));
    match option {
        Some(EdnsOption::Subnet(subnet)) => {
            ensure!(subnet.source_prefix() == 24, "the option is repeated: {subnet:?}");
        }
        _ => anyhow::bail!("no client subnet in {answer:?}"),
    }
    Ok(())
}

fn an_edge_dies_and_comes_back(cluster: &DevCluster) -> Result<()> {
    let ready = cluster.ready();
    // A name server that is not on the edge that dies.
    let mut checked = false;
    for (victim, other) in [(1, 2), (2, 1)] {
        let dead = ready.edge(Node::edge(victim)).unwrap().https.port();
        let fault = Fault::Kill(Node::edge(victim));
        fault.apply(cluster)?;
        let servers = ready
            .dns
            .iter()
            .filter(|dns| ask(dns.addr, Transport::Udp, &dns.zone, RecordType::SOA, None).is_ok());
        for dns in servers {
            checked = true;
            let name = format!("named.{}", dns.zone);
            let ports = || {
                let answer = ask(dns.addr, Transport::Udp, &name, RecordType::HTTPS, None)?;
                anyhow::Ok(https_ports(&answer))
            };
            wait::until("the dead edge leaves the answers", CHANGE_TIMEOUT, || {
                let ports = ports()?;
                Ok((!ports.is_empty() && !ports.contains(&dead)).then_some(()))
            })?;
        }
        fault.undo(cluster)?;
        let live = ready.edge(Node::edge(other)).unwrap().https.port();
        for dns in &ready.dns {
            let name = format!("named.{}", dns.zone);
            wait::until("both edges in the answers", CHANGE_TIMEOUT, || {
                let answer = ask(dns.addr, Transport::Udp, &name, RecordType::HTTPS, None)?;
                let ports = https_ports(&answer);
                Ok((ports.contains(&dead) && ports.contains(&live)).then_some(()))
            })?;
        }
    }
    ensure!(checked, "no name server outlived any edge");
    Ok(())
}
