//! Answers about answers: what a client would be told, and why. For users of the cluster, over its
//! own links.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use atoll_proto::WireError;
use atoll_proto::edge::{DnsCandidate, DnsExplained, DnsRoute, DnsServer};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::opt::{ClientSubnet, EdnsOption};
use hickory_proto::rr::{Name, RecordType};

use super::answer::{Answerer, Asker, Transport};
use super::names::{Place, WireName};
use super::route::{Client, Explanation};
use super::subnet::Subnet;

/// Longest name that is looked up, as text.
const NAME_BYTES_MAX: usize = 1024;

/// Explains what a name server answers.
#[derive(Clone)]
pub struct Explainer {
    current: Arc<ArcSwap<Answerer>>,
    listen: SocketAddr,
}

impl Explainer {
    /// About the answers in force at any time of the server at `listen`.
    pub fn new(current: Arc<ArcSwap<Answerer>>, listen: SocketAddr) -> Explainer {
        Explainer { current, listen }
    }

    /// What a client is answered, and why. With `told_prefix` its resolver tells so many bits of
    /// its address, without it is the resolver.
    ///
    /// # Errors
    /// When the name or the prefix is none.
    pub fn explain(
        &self,
        name: &str,
        client: IpAddr,
        told_prefix: Option<u8>,
    ) -> Result<DnsExplained, WireError> {
        let answerer = self.current.load_full();
        if name.len() > NAME_BYTES_MAX {
            return Err(WireError::invalid("the name is too long"));
        }
        let mut name = Name::from_ascii(name)
            .map_err(|error| WireError::invalid(format!("{name:?} is not a name: {error}")))?;
        name.set_fqdn(true);
        let client = client.to_canonical();
        let told = match told_prefix {
            Some(prefix) if prefix > if client.is_ipv4() { 32 } else { 128 } => {
                let message = format!("{client} does not have {prefix} bits");
                return Err(WireError::invalid(message));
            }
            // No bits: the client does not want to be located.
            Some(0) | None => None,
            Some(prefix) => Some(Subnet::of(client, prefix)),
        };
        let mut explained = DnsExplained {
            code: String::new(),
            answers: Vec::new(),
            ttl_secs: answerer.ttl_secs,
            route: None,
        };
        for kind in [RecordType::A, RecordType::AAAA, RecordType::HTTPS] {
            let (code, mut answers) = answered(&answerer, &name, kind, client, told)
                .ok_or_else(|| WireError::invalid(format!("{name} cannot be asked for")))?;
            explained.code = code;
            answers.retain(|answer| !explained.answers.contains(answer));
            explained.answers.append(&mut answers);
        }
        if leads_to_edges(&answerer, &name) {
            let client = told.map_or(Client::Resolver(client), Client::Subnet);
            explained.route = Some(route(answerer.routes().explain(client)));
        }
        Ok(explained)
    }

    /// The zones and what leads to them.
    pub fn server(&self) -> DnsServer {
        let answerer = self.current.load_full();
        let foreign = |(domain, site): (&String, &String)| {
            let name = Name::from_ascii(domain).ok()?;
            let outside = answerer.names.find(&WireName::of(&name)) == Place::Outside;
            outside.then(|| (domain.clone(), site.clone()))
        };
        let zones = &answerer.zones;
        DnsServer {
            listen: self.listen,
            zones: zones.names(),
            servers: zones.servers().iter().map(|s| (s.name(), s.addrs.clone())).collect(),
            serial: answerer.view().serial,
            foreign_domains: answerer.view().domains.iter().filter_map(foreign).collect(),
        }
    }
}

/// Whether a name leads to edges, by itself or by way of CNAME records.
fn leads_to_edges(answerer: &Answerer, name: &Name) -> bool {
    let mut name = name.clone();
    // As many steps as an answer follows.
    for _ in 0..=super::answer::CHAIN_MAX {
        let Place::Here(node) = answerer.names.find(&WireName::of(&name)) else { return false };
        match &node.alias_of {
            Some(target) => name = target.clone(),
            None => return node.edges,
        }
    }
    false
}

/// The answer that a client would get, over TCP so that it is whole.
fn answered(
    answerer: &Answerer,
    name: &Name,
    kind: RecordType,
    client: IpAddr,
    told: Option<Subnet>,
) -> Option<(String, Vec<String>)> {
    let mut query = Message::new(0, MessageType::Query, OpCode::Query);
    query.queries.push(Query::query(name.clone(), kind));
    if let Some(told) = told {
        let mut edns = Edns::new();
        let option = ClientSubnet::new(told.addr(), told.prefix(), 0);
        edns.options_mut().insert(EdnsOption::Subnet(option));
        query.edns = Some(edns);
    }
    let asker = Asker { from: client, transport: Transport::Tcp, now_secs: 0 };
    let answer = answerer.answer(&query.to_vec().ok()?, asker)?;
    let reply = Message::from_vec(&answer.packet).ok()?;
    Some((answer.code.to_owned(), reply.answers.iter().map(ToString::to_string).collect()))
}

fn route(explanation: Explanation) -> DnsRoute {
    // Distances on earth and slacks are below 30,000.
    let whole = |km: f32| km.round() as u32;
    let candidate = |candidate: super::route::Candidate| DnsCandidate {
        name: candidate.name,
        region: candidate.region,
        addrs: candidate.addrs,
        km: candidate.km.map(whole),
        tier: candidate.tier.and_then(|tier| u32::try_from(tier).ok()),
        ready: candidate.ready,
        weight: candidate.weight,
        taken: candidate.verdict.is_taken(),
        why: candidate.verdict.text().to_owned(),
    };
    DnsRoute {
        reason: explanation.reason.to_owned(),
        place: explanation.place,
        at_udeg: explanation.at.map(|at| at.micro_degrees()),
        scope_prefix: explanation.scope_prefix,
        slack_km: whole(explanation.slack_km),
        panic: explanation.panic,
        candidates: explanation.candidates.into_iter().map(candidate).collect(),
    }
}
