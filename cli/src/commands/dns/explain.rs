//! `atoll dns explain`: one answer, and everything that led to it.

use std::net::IpAddr;

use atoll_client::Cluster;
use atoll_proto::edge::{DnsCandidate, DnsExplained, DnsRoute, EdgeRequest, EdgeResponse};
use serde::Serialize;

use super::{ExplainArgs, ask, wrong_kind};
use crate::connect::Context;
use crate::report::Failure;
use crate::table;

/// What resolvers usually tell of a client (RFC 7871 section 11.1).
const TOLD_BITS_V4: u8 = 24;
const TOLD_BITS_V6: u8 = 56;

/// The final object of `--json`.
#[derive(Serialize)]
struct ExplainedObject<'a> {
    name: &'a str,
    client: IpAddr,
    /// How many bits of it are told; none with `--as-resolver`.
    told_prefix: Option<u8>,
    server: &'a str,
    code: &'a str,
    ttl_secs: u32,
    answers: &'a [String],
    /// Which rule placed the client: `override`, `resolver`, `asn`, `city`, `country`,
    /// `continent`, `registry` or `default`.
    rule: Option<&'a str>,
    place: Option<&'a str>,
    latitude: Option<f64>,
    longitude: Option<f64>,
    scope_prefix: Option<u8>,
    slack_km: Option<u32>,
    panic: Option<bool>,
    candidates: &'a [DnsCandidate],
}

pub(super) async fn run(
    context: &Context,
    cluster: &Cluster,
    args: ExplainArgs,
) -> Result<(), Failure> {
    let client = args.client.addr;
    let usual = if client.is_ipv4() { TOLD_BITS_V4 } else { TOLD_BITS_V6 };
    if args.as_resolver && args.client.prefix.is_some() {
        let message = "--as-resolver takes an address: a resolver has no subnet";
        return Err(Failure::Usage(message.to_owned()));
    }
    let told_prefix = (!args.as_resolver).then(|| args.client.prefix.unwrap_or(usual));
    let request = EdgeRequest::ExplainDns { name: args.name.clone(), client, told_prefix };
    let (server, explained) = match ask(cluster, &args.server, &request).await? {
        (server, EdgeResponse::DnsExplained(explained)) => (server, explained),
        (server, _) => return Err(wrong_kind(&server)),
    };
    if !context.out.json() {
        return print(context, &args.name, &explained);
    }
    let route = explained.route.as_ref();
    let degrees = |udeg: i32| f64::from(udeg) / 1e6;
    context.out.object(&ExplainedObject {
        name: &args.name,
        client,
        told_prefix,
        server: &server,
        code: &explained.code,
        ttl_secs: explained.ttl_secs,
        answers: &explained.answers,
        rule: route.map(|route| route.reason.as_str()),
        place: route.map(|route| route.place.as_str()),
        latitude: route.and_then(|route| route.at_udeg).map(|(lat, _)| degrees(lat)),
        longitude: route.and_then(|route| route.at_udeg).map(|(_, lon)| degrees(lon)),
        scope_prefix: route.map(|route| route.scope_prefix),
        slack_km: route.map(|route| route.slack_km),
        panic: route.map(|route| route.panic),
        candidates: route.map(|route| route.candidates.as_slice()).unwrap_or_default(),
    })
}

fn print(context: &Context, name: &str, explained: &DnsExplained) -> Result<(), Failure> {
    context.out.line(format_args!("{name}: {}", explained.code))?;
    for answer in &explained.answers {
        context.out.line(format_args!("  {answer}"))?;
    }
    match &explained.route {
        Some(route) => print_route(context, route),
        None => context.out.line("the name does not lead to edges"),
    }
}

fn print_route(context: &Context, route: &DnsRoute) -> Result<(), Failure> {
    context.out.line(format_args!("\nrule {}: {}", route.reason, route.place))?;
    if let Some((lat, lon)) = route.at_udeg {
        let degrees = |udeg: i32| f64::from(udeg) / 1e6;
        context.out.line(format_args!(
            "at {:.1}, {:.1}; edges up to {} km farther than the nearest are equally near",
            degrees(lat),
            degrees(lon),
            route.slack_km
        ))?;
    }
    context.out.line(match route.scope_prefix {
        0 => "the answer holds for all clients of the resolver".to_owned(),
        bits => format!("the answer holds for all who share the first {bits} bits"),
    })?;
    if route.panic {
        context.out.line("less than half of the edges are healthy: health is not trusted")?;
    }
    let rows: Vec<Vec<String>> = route.candidates.iter().map(row).collect();
    let heading = ["", "edge", "region", ">km", ">order", "ready", ">weight", "why", "addresses"];
    context.out.line(format_args!("\n{}", table::render(&heading, &rows)))
}

fn row(candidate: &DnsCandidate) -> Vec<String> {
    let none = || "-".to_owned();
    let addrs: Vec<String> = candidate.addrs.iter().map(ToString::to_string).collect();
    vec![
        if candidate.taken { "*" } else { "" }.to_owned(),
        candidate.name.clone(),
        candidate.region.clone(),
        candidate.km.map_or_else(none, |km| km.to_string()),
        candidate.tier.map_or_else(none, |tier| (tier + 1).to_string()),
        if candidate.ready { "yes" } else { "no" }.to_owned(),
        candidate.weight.to_string(),
        candidate.why.clone(),
        if addrs.is_empty() { none() } else { addrs.join(" ") },
    ]
}
