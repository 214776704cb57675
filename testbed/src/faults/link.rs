//! Links cut by the packet filter (`nft`), in one direction or both.
//!
//! A node's calls leave from the port it listens on, so two ports name the link between two nodes.
//! What users and visitors send is not touched.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::cluster::DevCluster;
use crate::ready::Node;

/// A direction: from whom, to whom.
type Way = (Node, Node);

/// Drops the packets of these directions.
///
/// # Errors
/// When the packet filter refuses, or a node has no address.
pub(super) fn cut(cluster: &DevCluster, ways: &[Way]) -> Result<()> {
    let mut script = String::new();
    for way in ways {
        let (table, from, to) = named(cluster, *way)?;
        script.push_str(&format!(
            "add table ip {table}\n\
             add chain ip {table} out {{ type filter hook output priority 0; }}\n\
             add rule ip {table} out udp sport {from} udp dport {to} counter drop\n"
        ));
    }
    nft(&script)
}

/// Lets the packets of these directions pass again.
///
/// # Errors
/// When one was not cut.
pub(super) fn mend(cluster: &DevCluster, ways: &[Way]) -> Result<()> {
    let mut script = String::new();
    for way in ways {
        let (table, ..) = named(cluster, *way)?;
        script.push_str(&format!("delete table ip {table}\n"));
    }
    nft(&script)
}

/// How many packets a cut has kept back so far, both ways together.
///
/// # Errors
/// When the link is cut in neither direction.
pub fn packets_cut(cluster: &DevCluster, one: Node, other: Node) -> Result<u64> {
    let ways = [(one, other), (other, one)];
    let counts: Vec<Result<u64>> = ways.iter().map(|way| packets(cluster, *way)).collect();
    ensure!(counts.iter().any(Result::is_ok), "the link between {one} and {other} is not cut");
    Ok(counts.into_iter().flatten().sum())
}

fn packets(cluster: &DevCluster, way: Way) -> Result<u64> {
    let (table, ..) = named(cluster, way)?;
    let listed = Command::new("nft").args(["list", "table", "ip", &table]).output()?;
    ensure!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let text = String::from_utf8_lossy(&listed.stdout);
    let mut words = text.split_whitespace();
    let mut packets = 0;
    while let Some(word) = words.next() {
        if word == "packets" {
            packets += words.next().context("a number")?.parse::<u64>()?;
        }
    }
    Ok(packets)
}

/// The name of the table that cuts a direction, and its two ports.
fn named(cluster: &DevCluster, (from, to): Way) -> Result<(String, u16, u16)> {
    let (from, to) = (port_of(cluster, from)?, port_of(cluster, to)?);
    Ok((format!("atoll_cut_{from}_{to}"), from, to))
}

fn port_of(cluster: &DevCluster, node: Node) -> Result<u16> {
    let addr = cluster.ready().addr(node).with_context(|| format!("{node} has no address"))?;
    Ok(addr.port())
}

/// Hands the packet filter a script; it applies all of it or nothing.
fn nft(script: &str) -> Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("run nft (Debian: nftables)")?;
    child.stdin.take().context("its input")?.write_all(script.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
