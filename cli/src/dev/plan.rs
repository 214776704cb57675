//! Which processes a local cluster has, and which port each of them gets. Pure: sockets are asked
//! for through [`PortSource`], so that the rules are tested without any.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Zones of chunkservers, one after the other.
const ZONES: [&str; 3] = ["z1", "z2", "z3"];
/// Regions of edges and shields, one after the other.
const REGIONS: [&str; 3] = ["eu", "us", "ap"];
/// Most processes of one kind: their node ids must not meet.
pub(crate) const NODES_MAX: u16 = 99;

/// What a process of the cluster does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Metadata
    Master,
    /// Chunks
    Chunkserver,
    /// Visitors, and DNS
    Edge,
    /// Misses of the edges
    Shield,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Master, Kind::Chunkserver, Kind::Edge, Kind::Shield];

    /// Its word.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Kind::Master => "master",
            Kind::Chunkserver => "chunkserver",
            Kind::Edge => "edge",
            Kind::Shield => "shield",
        }
    }
}

/// A process of the cluster, such as `edge-1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeName {
    pub(crate) kind: Kind,
    /// From 1.
    pub(crate) number: u16,
}

impl NodeName {
    /// Its number in the cluster: chunkservers, edges and shields share one space of ids.
    pub(crate) fn id(self) -> u64 {
        let base = match self.kind {
            Kind::Master | Kind::Chunkserver => 0,
            Kind::Edge => 100,
            Kind::Shield => 200,
        };
        base + u64::from(self.number)
    }

    /// Its failure domain.
    pub(crate) fn zone(self) -> &'static str {
        ZONES[usize::from(self.number - 1) % ZONES.len()]
    }

    /// Where it is, for visitors.
    pub(crate) fn region(self) -> &'static str {
        REGIONS[usize::from(self.number - 1) % REGIONS.len()]
    }

    /// What it listens on.
    fn needs(self) -> Needs {
        match self.kind {
            Kind::Master | Kind::Chunkserver => Needs { web: false, dns: false },
            Kind::Edge => Needs { web: true, dns: true },
            Kind::Shield => Needs { web: true, dns: false },
        }
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.kind.as_str(), self.number)
    }
}

impl FromStr for NodeName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not the name of a process, such as edge-1");
        let (kind, number) = text.rsplit_once('-').ok_or_else(wrong)?;
        let kind = Kind::ALL.into_iter().find(|k| k.as_str() == kind).ok_or_else(wrong)?;
        let number =
            number.parse().ok().filter(|n| (1..=NODES_MAX).contains(n)).ok_or_else(wrong)?;
        Ok(Self { kind, number })
    }
}

struct Needs {
    web: bool,
    dns: bool,
}

/// How many processes of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shape {
    pub(crate) masters: u16,
    pub(crate) chunkservers: u16,
    pub(crate) edges: u16,
    pub(crate) shields: u16,
}

impl Default for Shape {
    fn default() -> Self {
        Self { masters: 1, chunkservers: 3, edges: 2, shields: 1 }
    }
}

/// How many were asked for on the command line.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted {
    pub(crate) masters: Option<u16>,
    pub(crate) chunkservers: Option<u16>,
    pub(crate) edges: Option<u16>,
    pub(crate) shields: Option<u16>,
}

impl Shape {
    /// What to start: what was asked for, else what there was, else the default. A cluster may
    /// grow, but nodes it has must stay, and its masters are those it was made with.
    pub(crate) fn decide(recorded: Option<Shape>, wanted: Wanted) -> Result<Shape, String> {
        let had = recorded.unwrap_or_default();
        let shape = Shape {
            masters: wanted.masters.unwrap_or(had.masters),
            chunkservers: wanted.chunkservers.unwrap_or(had.chunkservers),
            edges: wanted.edges.unwrap_or(had.edges),
            shields: wanted.shields.unwrap_or(had.shields),
        };
        let Some(had) = recorded else {
            return Ok(shape);
        };
        let pairs = [
            ("chunkservers", had.chunkservers, shape.chunkservers),
            ("edges", had.edges, shape.edges),
            ("shields", had.shields, shape.shields),
        ];
        if shape.masters != had.masters {
            return Err(format!(
                "this cluster was made with --masters {}; use that, or another --data",
                had.masters
            ));
        }
        match pairs.iter().find(|(_, had, now)| now < had) {
            Some((what, had, _)) => Err(format!(
                "this cluster has {had} {what}, which hold its data: --{what} may be more, not \
                 less; or use another --data"
            )),
            None => Ok(shape),
        }
    }

    /// All its processes, in the order in which they start.
    pub(crate) fn names(&self) -> Vec<NodeName> {
        let of = |kind, count| (1..=count).map(move |number| NodeName { kind, number });
        of(Kind::Master, self.masters)
            .chain(of(Kind::Chunkserver, self.chunkservers))
            .chain(of(Kind::Shield, self.shields))
            .chain(of(Kind::Edge, self.edges))
            .collect()
    }
}

/// The ports of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ports {
    /// Requests of other processes (UDP).
    pub(crate) quic: u16,
    /// `/livez`, `/readyz`, `/metrics` (TCP).
    pub(crate) admin: u16,
    /// Plain HTTP (TCP).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) http: Option<u16>,
    /// HTTPS, one number for TCP and UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) https: Option<u16>,
    /// DNS, one number for TCP and UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) dns: Option<u16>,
}

/// What a port is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
    Both,
}

/// Knows which ports are free.
pub(crate) trait PortSource {
    /// A free port.
    fn fresh(&mut self, transport: Transport) -> Result<u16, String>;
    /// Whether this port is free; it then is taken for the caller.
    fn keep(&mut self, transport: Transport, port: u16) -> bool;
}

/// What a cluster remembers from one start to the next (`dev.json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// Of this file.
    pub(crate) version: u32,
    /// The cluster's id in hex.
    pub(crate) cluster: String,
    /// How many processes.
    pub(crate) shape: Shape,
    /// By process.
    pub(crate) ports: BTreeMap<String, Ports>,
    /// Processes that were added while the cluster ran (by name), with their zones.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) added: BTreeMap<String, String>,
    /// Processes that are never started again: their ids must not be used a second time.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) forgotten: BTreeSet<String>,
}

impl Record {
    /// All processes there are, in the order in which they start.
    pub(crate) fn names(&self) -> Vec<NodeName> {
        let of_shape = self.shape.names();
        let added = self.added.keys().filter_map(|name| name.parse().ok());
        let mut names: Vec<NodeName> = added.filter(|name| !of_shape.contains(name)).collect();
        names.extend(of_shape);
        names.retain(|name| !self.forgotten.contains(&name.to_string()));
        let turn = |kind| match kind {
            Kind::Master => 0,
            Kind::Chunkserver => 1,
            Kind::Shield => 2,
            Kind::Edge => 3,
        };
        names.sort_by_key(|name| (turn(name.kind), name.number));
        names
    }

    /// The failure domain of a process.
    pub(crate) fn zone(&self, name: NodeName) -> String {
        let said = self.added.get(&name.to_string());
        said.cloned().unwrap_or_else(|| name.zone().to_owned())
    }

    /// One more of a kind, with a number that there is not and never was.
    pub(crate) fn next(&self, kind: Kind) -> Result<NodeName, String> {
        let of_shape = match kind {
            Kind::Master => self.shape.masters,
            Kind::Chunkserver => self.shape.chunkservers,
            Kind::Edge => self.shape.edges,
            Kind::Shield => self.shape.shields,
        };
        let used = |number: u16| {
            let name = NodeName { kind, number }.to_string();
            number <= of_shape || self.added.contains_key(&name) || self.forgotten.contains(&name)
        };
        let number = (1..=NODES_MAX).find(|number| !used(*number));
        let number = number.ok_or_else(|| {
            format!("there were {NODES_MAX} {}s, which is the most", kind.as_str())
        })?;
        Ok(NodeName { kind, number })
    }
}

/// The version of [`Record`] that this program writes.
pub(crate) const RECORD_VERSION: u32 = 1;

/// Ports for all processes.
pub(crate) struct Assigned {
    pub(crate) ports: BTreeMap<NodeName, Ports>,
    /// Which ports are not those of last time, because another program has them now.
    pub(crate) moved: Vec<String>,
}

/// Gives every process its ports of last time, as far as they are free, else new ones. Masters
/// that know each other by their addresses cannot move.
pub(crate) fn assign(
    names: &[NodeName],
    recorded: &BTreeMap<String, Ports>,
    source: &mut dyn PortSource,
) -> Result<Assigned, String> {
    let mut moved = Vec::new();
    let mut kept: BTreeMap<NodeName, Vec<Option<u16>>> = BTreeMap::new();
    // First all that are to stay, so that none of them is given away as new.
    for name in names {
        let had = recorded.get(&name.to_string());
        let wanted = wants(*name).map(|(use_, transport)| {
            let port = had.and_then(|had| use_.of(had))?;
            if source.keep(transport, port) {
                return Some(port);
            }
            moved.push(format!("{name} {} ({port})", use_.as_str()));
            None
        });
        kept.insert(*name, wanted.collect());
    }
    let masters = names.iter().filter(|name| name.kind == Kind::Master).count();
    if masters > 1 && moved.iter().any(|text| text.starts_with("master-") && text.contains("quic"))
    {
        return Err(format!("another program uses the port of {}; end it", moved.join(", ")));
    }
    let mut ports = BTreeMap::new();
    for (name, kept) in kept {
        let mut all = Ports { quic: 0, admin: 0, http: None, https: None, dns: None };
        for ((use_, transport), port) in wants(name).zip(kept) {
            let port = match port {
                Some(port) => port,
                None => source.fresh(transport)?,
            };
            use_.set(&mut all, port);
        }
        ports.insert(name, all);
    }
    Ok(Assigned { ports, moved })
}

#[derive(Debug, Clone, Copy)]
enum PortUse {
    Quic,
    Admin,
    Http,
    Https,
    Dns,
}

impl PortUse {
    fn as_str(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Admin => "admin",
            Self::Http => "http",
            Self::Https => "https",
            Self::Dns => "dns",
        }
    }

    fn of(self, ports: &Ports) -> Option<u16> {
        match self {
            Self::Quic => Some(ports.quic),
            Self::Admin => Some(ports.admin),
            Self::Http => ports.http,
            Self::Https => ports.https,
            Self::Dns => ports.dns,
        }
    }

    fn set(self, ports: &mut Ports, port: u16) {
        match self {
            Self::Quic => ports.quic = port,
            Self::Admin => ports.admin = port,
            Self::Http => ports.http = Some(port),
            Self::Https => ports.https = Some(port),
            Self::Dns => ports.dns = Some(port),
        }
    }
}

fn wants(name: NodeName) -> impl Iterator<Item = (PortUse, Transport)> {
    let needs = name.needs();
    let mut all = vec![(PortUse::Quic, Transport::Udp), (PortUse::Admin, Transport::Tcp)];
    if needs.web {
        all.push((PortUse::Http, Transport::Tcp));
        all.push((PortUse::Https, Transport::Both));
    }
    if needs.dns {
        all.push((PortUse::Dns, Transport::Both));
    }
    all.into_iter()
}

/// A site name made of a directory's name; `site` when nothing of it is left.
pub(crate) fn site_name(directory: &str) -> String {
    let mut name = String::new();
    for character in directory.to_lowercase().chars() {
        let fine = character.is_ascii_lowercase() || character.is_ascii_digit();
        if fine {
            name.push(character);
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
    }
    name.truncate(63);
    let name = name.trim_end_matches('-');
    if name.is_empty() { "site".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[derive(Default)]
    struct Fake {
        next: u16,
        taken: BTreeSet<u16>,
    }

    impl PortSource for Fake {
        fn fresh(&mut self, _transport: Transport) -> Result<u16, String> {
            loop {
                self.next += 1;
                if self.taken.insert(self.next) {
                    return Ok(self.next);
                }
            }
        }

        fn keep(&mut self, _transport: Transport, port: u16) -> bool {
            self.taken.insert(port)
        }
    }

    fn made(shape: Shape) -> Record {
        Record {
            version: RECORD_VERSION,
            cluster: String::new(),
            shape,
            ports: BTreeMap::new(),
            added: BTreeMap::new(),
            forgotten: BTreeSet::new(),
        }
    }

    #[test]
    fn what_is_added_stays_and_what_is_forgotten_never_returns() {
        let mut made = made(Shape::default());
        assert_eq!(made.names(), made.shape.names());
        let four = made.next(Kind::Chunkserver).unwrap();
        assert_eq!((four.to_string().as_str(), made.zone(four).as_str()), ("chunkserver-4", "z1"));
        made.added.insert(four.to_string(), "z9".into());
        assert_eq!(made.zone(four), "z9");
        assert_eq!(made.names()[4], four);
        let five = made.next(Kind::Chunkserver).unwrap();
        assert_eq!(five.number, 5);
        made.forgotten.insert(four.to_string());
        made.forgotten.insert("chunkserver-2".into());
        let names: Vec<String> = made.names().iter().map(NodeName::to_string).collect();
        assert_eq!(names[1..3], ["chunkserver-1", "chunkserver-3"]);
        assert!(!names.contains(&four.to_string()));
        assert_eq!(made.next(Kind::Chunkserver).unwrap(), five, "4 is used up");
        // Later asked for on the command line too: it is there once.
        made.added.insert(five.to_string(), "z2".into());
        made.shape.chunkservers = 5;
        assert_eq!(made.names().iter().filter(|name| **name == five).count(), 1);
        let text = serde_json::to_string(&made).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), made);
    }

    fn record(assigned: &Assigned) -> BTreeMap<String, Ports> {
        assigned.ports.iter().map(|(name, ports)| (name.to_string(), *ports)).collect()
    }

    #[test]
    fn names_ids_zones_and_regions() {
        let shape = Shape::default();
        let names: Vec<String> = shape.names().iter().map(NodeName::to_string).collect();
        let expected = [
            "master-1",
            "chunkserver-1",
            "chunkserver-2",
            "chunkserver-3",
            "shield-1",
            "edge-1",
            "edge-2",
        ];
        assert_eq!(names, expected);
        for name in shape.names() {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        let node = |text: &str| text.parse::<NodeName>().unwrap();
        assert_eq!((node("edge-2").id(), node("edge-2").region()), (102, "us"));
        assert_eq!((node("chunkserver-4").id(), node("chunkserver-4").zone()), (4, "z1"));
        assert_eq!(node("shield-1").id(), 201);
        for bad in ["edge", "edge-0", "edge-100", "wizard-1", "edge--1", ""] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_second_start_gets_the_same_ports() {
        let names = Shape::default().names();
        let first = assign(&names, &BTreeMap::new(), &mut Fake::default()).unwrap();
        let again = assign(&names, &record(&first), &mut Fake::default()).unwrap();
        assert_eq!(first.ports, again.ports);
        assert!(again.moved.is_empty());
        let edge = first.ports[&"edge-1".parse().unwrap()];
        assert!(edge.https.is_some() && edge.dns.is_some());
        assert!(first.ports[&"shield-1".parse().unwrap()].dns.is_none());
        let all: Vec<u16> = first.ports.values().flat_map(|p| [p.quic, p.admin]).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }

    #[test]
    fn a_port_somebody_took_is_replaced_and_told() {
        let names = Shape::default().names();
        let first = assign(&names, &BTreeMap::new(), &mut Fake::default()).unwrap();
        let https = first.ports[&"edge-2".parse().unwrap()].https.unwrap();
        let mut source = Fake { next: 0, taken: BTreeSet::from([https]) };
        let again = assign(&names, &record(&first), &mut source).unwrap();
        assert_eq!(again.moved, [format!("edge-2 https ({https})")]);
        let edge = again.ports[&"edge-2".parse().unwrap()];
        assert_ne!(edge.https, Some(https));
        assert_eq!(edge.dns, first.ports[&"edge-2".parse().unwrap()].dns);
    }

    #[test]
    fn several_masters_cannot_move() {
        let names = Shape { masters: 3, ..Shape::default() }.names();
        let first = assign(&names, &BTreeMap::new(), &mut Fake::default()).unwrap();
        let quic = first.ports[&"master-2".parse().unwrap()].quic;
        let mut source = Fake { next: 0, taken: BTreeSet::from([quic]) };
        assert!(assign(&names, &record(&first), &mut source).is_err());
    }

    #[test]
    fn a_cluster_may_grow_but_not_shrink() {
        let had = Shape { edges: 3, ..Shape::default() };
        let same = Shape::decide(Some(had), Wanted::default()).unwrap();
        assert_eq!(same, had);
        let more = Wanted { chunkservers: Some(5), ..Wanted::default() };
        assert_eq!(Shape::decide(Some(had), more).unwrap().chunkservers, 5);
        let fewer = Wanted { edges: Some(2), ..Wanted::default() };
        assert!(Shape::decide(Some(had), fewer).unwrap_err().contains("3 edges"));
        let masters = Wanted { masters: Some(3), ..Wanted::default() };
        assert!(Shape::decide(Some(had), masters).is_err());
        assert_eq!(Shape::decide(None, masters).unwrap().masters, 3);
    }

    #[test]
    fn a_directory_gives_a_site_its_name() {
        for (directory, expected) in [
            ("public", "public"),
            ("My Site!", "my-site"),
            ("--a__b--", "a-b"),
            ("..", "site"),
            ("\u{e9}", "site"),
        ] {
            assert_eq!(site_name(directory), expected);
            assert!(site_name(directory).parse::<atoll_proto::SiteName>().is_ok());
        }
        assert!(site_name(&"x-".repeat(60)).parse::<atoll_proto::SiteName>().is_ok());
    }
}
