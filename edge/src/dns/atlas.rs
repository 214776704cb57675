//! Where clients are: every address has a place.
//!
//! Built from the configuration and the geographic databases whenever one of them changes, looked
//! up by [`super::route`]. For each address the first rule counts that says something: a block of
//! the configuration, its autonomous system, the databases in their order (a point, else the
//! country, else the continent), the registry that gave the block out, the default. For a resolver
//! that tells no subnet of its client, the map of resolvers comes before all of these.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::config::{DnsConfig, RegionCidr};
use super::geo::database::{Database, Facts};
use super::geo::{LatLon, countries, gazetteer, registries};
use super::ranges::{Address, Lookup, Ranges};
use super::subnet::Subnet;

/// No place: the next layer decides.
const NONE: u32 = u32::MAX;
/// The entry of `region_order` for clients that no rule places.
const DEFAULT_ORDER: &str = "default";

/// Which rule placed a client. The text is the label of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// A block of the configuration.
    Override,
    /// The map of resolvers.
    Resolver,
    /// The autonomous system.
    Asn,
    /// A database knows a point.
    City,
    /// A database knows the country.
    Country,
    /// A database knows the continent.
    Continent,
    /// The registry that gave the block out.
    Registry,
    /// Nothing is known.
    Default,
}

impl Reason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Reason; 8] = [
        Reason::Override,
        Reason::Resolver,
        Reason::Asn,
        Reason::City,
        Reason::Country,
        Reason::Continent,
        Reason::Registry,
        Reason::Default,
    ];

    /// As metrics and explanations name it.
    pub fn label(self) -> &'static str {
        match self {
            Reason::Override => "override",
            Reason::Resolver => "resolver",
            Reason::Asn => "asn",
            Reason::City => "city",
            Reason::Country => "country",
            Reason::Continent => "continent",
            Reason::Registry => "registry",
            Reason::Default => "default",
        }
    }

    /// Edges that are farther than the nearest by less than this are equally near: how exact the
    /// rule is.
    fn slack_km(self) -> f32 {
        match self {
            Reason::Override | Reason::Resolver | Reason::Asn | Reason::City => 200.0,
            Reason::Country => 600.0,
            Reason::Continent => 2000.0,
            Reason::Registry | Reason::Default => 2500.0,
        }
    }
}

/// Where a client may be: everyone of one place is sent to the same edges.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// Which rule it comes from.
    pub(super) reason: Reason,
    /// What an operator reads.
    pub(super) name: String,
    /// Regions from near to far, if the configuration names them.
    pub(super) regions: Vec<String>,
    /// Where, if that is known.
    pub(super) at: Option<LatLon>,
}

impl Place {
    /// Edges that are farther than the nearest by less than this are equally near.
    pub(super) fn slack_km(&self) -> f32 {
        self.reason.slack_km()
    }
}

/// Every address and its place.
#[derive(Debug)]
pub struct Atlas {
    /// The places. The first is that of clients that nothing is known of.
    pub(super) places: Vec<Place>,
    /// For IPv4 clients.
    pub(super) v4: Lookup<u32>,
    /// For IPv6 clients.
    pub(super) v6: Lookup<u128>,
    /// For resolvers that tell no subnet; [`Atlas::NONE`] where the map says nothing.
    pub(super) resolvers_v4: Option<Lookup<u32>>,
    /// For resolvers over IPv6.
    pub(super) resolvers_v6: Option<Lookup<u128>>,
    /// Where edges and regions are, as the configuration has it.
    located: BTreeMap<String, LatLon>,
    order: BTreeMap<String, Vec<String>>,
}

impl Atlas {
    /// What [`Atlas::resolvers_v4`] holds where the map says nothing.
    pub(super) const NONE: u32 = NONE;

    /// Builds the atlas. Takes a while with large databases.
    pub fn new(config: &DnsConfig, databases: &[Arc<Database>]) -> Atlas {
        let mut places = Places::new(config);
        let default = places.default_place();
        debug_assert_eq!(default, 0, "the first place is the default");
        let overrides = places.blocks(Reason::Override, &config.regions);
        let resolvers = places.blocks(Reason::Resolver, &config.resolvers);
        let asns = places.asns(config);
        let read: Vec<Read<'_>> =
            databases.iter().map(|database| places.database(database, &asns)).collect();
        let registries = if config.registry_table { places.registries() } else { Vec::new() };
        let v4 = layers(&overrides, &read, &registries);
        let v6 = layers(&overrides, &read, &registries);
        let (resolvers_v4, resolvers_v6) = if resolvers.is_empty() {
            (None, None)
        } else {
            let of = |ranges: &Ranges<u32, u32>| Lookup::new(ranges);
            let v4 = of(&Ranges::of_blocks(resolvers.iter().copied(), NONE));
            (Some(v4), Some(Lookup::new(&Ranges::of_blocks(resolvers.iter().copied(), NONE))))
        };
        Atlas {
            places: places.list,
            v4: Lookup::new(&v4),
            v6: Lookup::new(&v6),
            resolvers_v4,
            resolvers_v6,
            located: config.places.clone(),
            order: config.region_order.clone(),
        }
    }

    /// Where an edge is: as the configuration places it, else its region, else what the region's
    /// name says.
    pub(super) fn edge_at(&self, name: &str, region: &str) -> Option<LatLon> {
        let configured = self.located.get(name).or_else(|| self.located.get(region));
        configured.copied().or_else(|| gazetteer::region(region))
    }

    /// The configured order of regions around a place, nearest first; nothing if none is.
    pub(super) fn order<'a>(&'a self, place: &'a Place) -> impl Iterator<Item = &'a String> {
        let others = match place.regions.first() {
            Some(first) => self.order.get(first),
            // The default order is for those of whom nothing is known.
            None if place.reason == Reason::Default => self.order.get(DEFAULT_ORDER),
            None => None,
        };
        place.regions.iter().chain(others.into_iter().flatten())
    }

    /// Number of different places.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Never: there is always the place of clients that nothing is known of.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Bytes of memory the tables take.
    pub fn bytes(&self) -> usize {
        self.v4.bytes()
            + self.v6.bytes()
            + self.resolvers_v4.as_ref().map_or(0, Lookup::bytes)
            + self.resolvers_v6.as_ref().map_or(0, Lookup::bytes)
            + self.places.len() * size_of::<Place>()
    }
}

/// A database, and the place of each of its records by position and by autonomous system.
struct Read<'d> {
    database: &'d Database,
    by_position: Vec<u32>,
    by_asn: Vec<u32>,
}

/// Lays the rules over each other, the strongest on top.
fn layers<A: Address>(
    overrides: &[(Subnet, u32)],
    databases: &[Read<'_>],
    registries: &[(Subnet, u32)],
) -> Ranges<A, u32> {
    let or = |top: u32, below: u32| if top == NONE { below } else { top };
    let of_database = |read: &Read<'_>, places: &[u32]| {
        let located = |(block, facts): &(Subnet, u32)| (*block, places[*facts as usize]);
        Ranges::<A, u32>::of_blocks(read.database.networks.iter().map(located), NONE)
    };
    let mut ranges = Ranges::all(0);
    ranges = Ranges::of_blocks(registries.iter().copied(), NONE).zip(&ranges, or);
    for read in databases.iter().rev() {
        ranges = of_database(read, &read.by_position).zip(&ranges, or);
    }
    for read in databases.iter().rev().filter(|read| read.by_asn.iter().any(|id| *id != NONE)) {
        ranges = of_database(read, &read.by_asn).zip(&ranges, or);
    }
    Ranges::of_blocks(overrides.iter().copied(), NONE).zip(&ranges, or)
}

/// Collects places, each once.
struct Places<'c> {
    config: &'c DnsConfig,
    list: Vec<Place>,
    known: HashMap<Place, u32>,
}

impl<'c> Places<'c> {
    fn new(config: &'c DnsConfig) -> Places<'c> {
        Places { config, list: Vec::new(), known: HashMap::new() }
    }

    fn add(&mut self, place: Place) -> u32 {
        if let Some(id) = self.known.get(&place) {
            return *id;
        }
        // `NONE` is never reached: a place takes more than a hundred bytes.
        let id = u32::try_from(self.list.len()).unwrap_or(NONE - 1);
        self.list.push(place.clone());
        self.known.insert(place, id);
        id
    }

    fn default_place(&mut self) -> u32 {
        let name = "nowhere in particular".to_owned();
        self.add(Place { reason: Reason::Default, name, regions: Vec::new(), at: None })
    }

    fn of_regions(&mut self, reason: Reason, name: String, regions: Vec<String>) -> u32 {
        let place = |region: &String| {
            self.config.places.get(region).copied().or_else(|| gazetteer::region(region))
        };
        let at = regions.first().and_then(place);
        self.add(Place { reason, name, regions, at })
    }

    /// The blocks of a list of the configuration; several lines with one block name regions from
    /// near to far.
    fn blocks(&mut self, reason: Reason, lines: &[RegionCidr]) -> Vec<(Subnet, u32)> {
        let mut regions: BTreeMap<Subnet, Vec<String>> = BTreeMap::new();
        for line in lines {
            let known = regions.entry(line.cidr).or_default();
            if !known.contains(&line.region) {
                known.push(line.region.clone());
            }
        }
        let one = |(block, regions): (Subnet, Vec<String>)| {
            let name = format!("region {}", regions.join(", "));
            (block, self.of_regions(reason, name, regions))
        };
        regions.into_iter().map(one).collect()
    }

    fn asns(&mut self, config: &DnsConfig) -> HashMap<u32, u32> {
        let mut regions: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for line in &config.asns {
            regions.entry(line.asn).or_default().push(line.region.clone());
        }
        let one = |(asn, regions): (u32, Vec<String>)| {
            let name = format!("AS{asn}, region {}", regions.join(", "));
            (asn, self.of_regions(Reason::Asn, name, regions))
        };
        regions.into_iter().map(one).collect()
    }

    fn database<'d>(&mut self, database: &'d Database, asns: &HashMap<u32, u32>) -> Read<'d> {
        let by_position = database.facts.iter().map(|facts| self.position(facts)).collect();
        let by_asn = |facts: &Facts| facts.asn.and_then(|asn| asns.get(&asn).copied());
        let by_asn = database.facts.iter().map(|facts| by_asn(facts).unwrap_or(NONE)).collect();
        Read { database, by_position, by_asn }
    }

    fn position(&mut self, facts: &Facts) -> u32 {
        let text = |code: [u8; 2]| String::from_utf8_lossy(&code).into_owned();
        let country = facts.country.map(text);
        let continent = facts.continent.map(text);
        let (reason, name, at) = if let Some(at) = facts.place {
            let at = at.coarse();
            (Reason::City, format!("near {:.1}, {:.1}", at.lat(), at.lon()), at)
        } else if let Some((code, at)) =
            country.and_then(|code| countries::country(&code).map(|at| (code, at)))
        {
            (Reason::Country, format!("country {code}"), at)
        } else if let Some((code, at)) =
            continent.and_then(|code| countries::continent(&code).map(|at| (code, at)))
        {
            (Reason::Continent, format!("continent {code}"), at)
        } else {
            return NONE;
        };
        self.add(Place { reason, name, regions: Vec::new(), at: Some(at) })
    }

    fn registries(&mut self) -> Vec<(Subnet, u32)> {
        let place = |(block, registry): (Subnet, Option<registries::Registry>)| {
            let Some(registry) = registry else { return (block, 0) };
            let name = format!("addresses of {}", registry.name);
            let at = Some(registry.place);
            (block, self.add(Place { reason: Reason::Registry, name, regions: Vec::new(), at }))
        };
        registries::blocks().map(place).collect()
    }
}
