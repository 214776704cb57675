//! `atoll dns`: what the name servers of the cluster answer and why, and what the world has to know
//! of them.

mod check;
mod explain;
mod records;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use atoll_client::Cluster;
use atoll_net::call::CallOptions;
use atoll_net::identity::Role;
use atoll_proto::cluster::{NodeState, NodeView};
use atoll_proto::edge::{DnsServer, EdgeRequest, EdgeResponse};
use clap::{Args, Subcommand};

use crate::connect::Context;
use crate::report::Failure;

/// How long a name server may take to explain itself.
const DEADLINE: Duration = Duration::from_secs(5);
/// Port of DNS.
const DNS_PORT: u16 = 53;

/// Explain DNS answers, print the records to set at the registrar, check the delegation
#[derive(Debug, Subcommand)]
#[command(after_help = "EXAMPLES
  atoll dns explain blog.cdn.example --client 203.0.113.7
  atoll dns records
  atoll dns check")]
pub(crate) enum DnsCommand {
    /// Say which edges a client is sent to, by which rule, and why not to others
    #[command(after_help = "EXAMPLES
  atoll dns explain blog.cdn.example --client 203.0.113.7
  atoll dns explain blog.cdn.example --client 2001:db8::/48 --json
  atoll dns explain blog.cdn.example --client 192.0.2.53 --as-resolver
  atoll dns explain blog.cdn.example --client 203.0.113.7 --server edge-2

The answer is that of a resolver that tells its client's subnet: the first 24 bits of an IPv4
address and 56 of an IPv6 one, or as many as are given behind a slash. With --as-resolver nothing
is told, and the address is the resolver's own.")]
    Explain(ExplainArgs),
    /// Print the records that the registrar and the zones of custom domains need
    #[command(after_help = "EXAMPLES
  atoll dns records
  atoll dns records --json")]
    Records(ServerArgs),
    /// Check that every name server answers, that the zones are delegated to them, and that custom
    /// domains lead here
    #[command(after_help = "EXAMPLES
  atoll dns check
  atoll dns check --resolver 9.9.9.9
  atoll dns check --json

Exit code 0 only if everything is as it should be.")]
    Check(CheckArgs),
}

/// Which name server to ask.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// Id or name of the edge that answers DNS [default: any that is up]
    #[arg(long, value_name = "NODE")]
    server: Option<String>,
}

/// A name and a client.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The name that is asked for
    #[arg(value_name = "NAME")]
    name: String,
    /// Address of the client, or its subnet
    #[arg(long, value_name = "ADDR")]
    client: ClientAddr,
    /// The address is that of a resolver that tells no subnet of its clients
    #[arg(long)]
    as_resolver: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Which resolver to ask.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Resolver through which the world is seen [default: the first of /etc/resolv.conf]
    #[arg(long, value_name = "ADDR")]
    resolver: Option<ResolverAddr>,
    #[command(flatten)]
    server: ServerArgs,
}

/// An address, and how many bits of it are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClientAddr {
    addr: IpAddr,
    prefix: Option<u8>,
}

impl std::str::FromStr for ClientAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (addr, prefix) = match text.split_once('/') {
            Some((addr, prefix)) => (addr, Some(prefix)),
            None => (text, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| format!("{addr:?} is not an address"))?;
        let prefix = prefix.map(|prefix| {
            let most = if addr.is_ipv4() { 32 } else { 128 };
            let number = prefix.parse().ok().filter(|number| *number <= most);
            number.ok_or_else(|| format!("{prefix:?} is not a number of bits up to {most}"))
        });
        Ok(Self { addr, prefix: prefix.transpose()? })
    }
}

/// An address with or without a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ResolverAddr(SocketAddr);

impl std::str::FromStr for ResolverAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let alone = text.parse().map(|addr: IpAddr| SocketAddr::new(addr, DNS_PORT));
        let addr = alone.or_else(|_| text.parse());
        addr.map(Self).map_err(|_| format!("{text:?} is not an address"))
    }
}

/// Does it.
pub(crate) async fn run(context: &Context, command: DnsCommand) -> Result<(), Failure> {
    let cluster = context.cluster().await?;
    match command {
        DnsCommand::Explain(args) => explain::run(context, &cluster, args).await,
        DnsCommand::Records(args) => records::run(context, &cluster, &args).await,
        DnsCommand::Check(args) => check::run(context, &cluster, args).await,
    }
}

/// Asks a name server of the cluster, each that is up until one answers.
async fn ask(
    cluster: &Cluster,
    server: &ServerArgs,
    request: &EdgeRequest,
) -> Result<(String, EdgeResponse), Failure> {
    let view = cluster.refresh_view().await?;
    let answers = |node: &&NodeView| node.info.edge.as_ref().is_some_and(|edge| edge.dns);
    let mut servers: Vec<&NodeView> = view.nodes.iter().filter(answers).collect();
    if let Some(typed) = &server.server {
        let names: Vec<&str> = servers.iter().map(|node| node.info.name.as_str()).collect();
        let names = names.join(", ");
        servers.retain(|node| {
            node.info.name == *typed || typed.parse().is_ok_and(|id: u64| id == node.info.id.0)
        });
        if servers.is_empty() {
            let message = format!("no edge {typed} answers DNS; those that do: {names}");
            return Err(Failure::Failed(message));
        }
    }
    if servers.is_empty() {
        let message = "no edge of this cluster answers DNS: give one the role `dns`";
        return Err(Failure::Failed(message.to_owned()));
    }
    // Those that are heard of first.
    servers.sort_by_key(|node| node.state == NodeState::Down);
    let mut failed = String::new();
    for node in servers {
        let options = CallOptions::within(DEADLINE);
        let called = cluster
            .endpoint()
            .call::<_, EdgeResponse>(node.info.addr, Role::Edge, request, Vec::new(), options)
            .await;
        match called {
            Ok((response, _)) => return Ok((node.info.name.clone(), response)),
            Err(error) => failed = format!("cannot ask {}: {error}", node.info.name),
        }
    }
    Err(Failure::Failed(failed))
}

/// The zones of a name server of the cluster.
async fn server(cluster: &Cluster, args: &ServerArgs) -> Result<DnsServer, Failure> {
    match ask(cluster, args, &EdgeRequest::DnsServer).await? {
        (_, EdgeResponse::DnsServer(server)) => Ok(server),
        (name, _) => Err(wrong_kind(&name)),
    }
}

fn wrong_kind(name: &str) -> Failure {
    Failure::Failed(format!("{name} answered with the wrong kind of message"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn addresses_are_read() {
        let client: ClientAddr = "203.0.113.7/20".parse().unwrap();
        assert_eq!((client.addr.to_string().as_str(), client.prefix), ("203.0.113.7", Some(20)));
        assert_eq!("2001:db8::1".parse::<ClientAddr>().unwrap().prefix, None);
        for bad in ["", "x", "1.2.3.4/33", "::1/129", "1.2.3.4/", "1.2.3.4/-1"] {
            assert!(bad.parse::<ClientAddr>().is_err(), "{bad}");
        }
        let resolver = |text: &str| text.parse::<ResolverAddr>().map(|addr| addr.0.to_string());
        assert_eq!(resolver("9.9.9.9").unwrap(), "9.9.9.9:53");
        assert_eq!(resolver("::1").unwrap(), "[::1]:53");
        assert_eq!(resolver("127.0.0.1:5300").unwrap(), "127.0.0.1:5300");
        assert!(resolver("dns.example").is_err());
    }
}
