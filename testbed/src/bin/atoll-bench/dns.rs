//! A name server alone, with made-up edges on every continent: to be asked by load generators
//! beside other servers, without a cluster that would take the same processors.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use atoll_edge::dns::config::{RateLimit, RecordLine};
use atoll_edge::dns::{DnsConfig, DnsView, EdgeView, bind};
use clap::Args;
use tokio::sync::watch;

/// Regions of the edges, one after the other.
const REGIONS: [&str; 6] = ["eu", "asia", "north-america", "south-america", "africa", "oceania"];

/// What it answers.
#[derive(Debug, Args)]
pub(crate) struct DnsArgs {
    /// Address for UDP and TCP
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:18553")]
    listen: SocketAddr,
    /// Geographic database in MaxMind's format
    #[arg(long, value_name = "FILE")]
    mmdb: Vec<PathBuf>,
    /// Edges, on all continents in turn
    #[arg(long, value_name = "N", default_value_t = 6)]
    edges: u16,
    /// Threads for UDP
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
}

/// Answers for `www.cdn.test` (by geography) and `static.cdn.test` until Ctrl-C.
pub(crate) async fn run(args: DnsArgs) -> Result<()> {
    let record = RecordLine {
        name: "static".to_owned(),
        kind: "A".to_owned(),
        value: "192.0.2.9".to_owned(),
        ttl: 60,
    };
    let config = DnsConfig {
        listen: args.listen,
        zone: "cdn.test".to_owned(),
        mmdb: args.mmdb,
        udp_threads: Some(args.threads),
        records: vec![record],
        rate_limit: RateLimit { per_second: 0, exempt: Vec::new() },
        ..DnsConfig::default()
    };
    let edge = |number: u16| {
        let [high, low] = number.to_be_bytes();
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number);
        EdgeView {
            name: format!("edge-{number}"),
            region: REGIONS[usize::from(number) % REGIONS.len()].to_owned(),
            addrs: vec![IpAddr::V4(Ipv4Addr::new(198, 18, high, low)), IpAddr::V6(v6)],
            https_port: 443,
            ready: true,
            weight: 1,
        }
    };
    let view = DnsView {
        ready: true,
        edges: (0..args.edges).map(edge).collect(),
        sites: ["www".to_owned()].into(),
        serial: 1,
        ..DnsView::default()
    };
    let listener = bind(&config, None).await.context("cannot serve")?;
    eprintln!("{} answers, process {}", listener.local_addr(), std::process::id());
    let (_sender, views) = watch::channel(Arc::new(view));
    listener.serve(views, atoll_net::shutdown::on_signals()).await;
    Ok(())
}
