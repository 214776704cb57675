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
