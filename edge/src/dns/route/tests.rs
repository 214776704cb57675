//! Tests of the module beside this file.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use proptest::prelude::*;

use super::choice::{EDGES_MAX, VARIANTS};
use super::*;
use crate::dns::config::{DnsConfig, RegionAsn, RegionCidr};
use crate::dns::geo::LatLon;
use crate::dns::geo::database::{Database, Facts};

fn edge(name: &str, region: &str, addrs: &[&str]) -> EdgeView {
    EdgeView {
        name: name.to_owned(),
        region: region.to_owned(),
        addrs: addrs.iter().map(|addr| addr.parse().unwrap()).collect(),
        https_port: 443,
        ready: true,
        weight: 1,
    }
}

/// Two edges in eu, one each in us and ap; `down` are not ready.
fn edges(down: &[&str]) -> Vec<EdgeView> {
    let mut edges = vec![
        edge("eu-1", "eu", &["192.0.2.1", "2001:db8::1"]),
        edge("eu-2", "eu", &["192.0.2.2"]),
        edge("us-1", "us", &["192.0.2.3", "2001:db8::3"]),
        edge("ap-1", "ap", &["192.0.2.4"]),
    ];
    edges.iter_mut().for_each(|edge| edge.ready = !down.contains(&edge.name.as_str()));
    edges
}

fn config(blocks: &[(&str, &str)], order: &[(&str, &[&str])]) -> DnsConfig {
    let line = |(cidr, region): &(&str, &str)| RegionCidr {
        cidr: cidr.parse().unwrap(),
        region: (*region).to_owned(),
    };
    let order = order.iter().map(|(region, others)| {
        ((*region).to_owned(), others.iter().map(|other| (*other).to_owned()).collect())
    });
    DnsConfig {
        regions: blocks.iter().map(line).collect(),
        region_order: order.collect(),
        registry_table: false,
        ..DnsConfig::default()
    }
}

fn atlas(blocks: &[(&str, &str)], order: &[(&str, &[&str])]) -> Arc<Atlas> {
    Arc::new(Atlas::new(&config(blocks, order), &[]))
}

fn ecs(text: &str) -> Client {
    Client::Subnet(text.parse().unwrap())
}

/// The edges of the answer by the last part of their address, in alphabetical order.
fn picked(atlas: &Arc<Atlas>, client: Client, edges: &[EdgeView]) -> BTreeSet<String> {
    let addrs = Routes::new(atlas.clone(), edges).pick(client, Family::V4).addrs();
    let name =
        |addr: &IpAddr| edges.iter().find(|edge| edge.addrs.contains(addr)).unwrap().name.clone();
    addrs.iter().map(name).collect()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

const BLOCKS: &[(&str, &str)] = &[
    ("10.0.0.0/8", "eu"),
    ("10.64.0.0/16", "us"),
    ("172.16.0.0/12", "ap"),
    ("198.51.100.0/24", "attic"),
    ("198.51.100.0/24", "us"),
    ("2001:db8:a000::/36", "us"),
];

#[test]
fn the_nearest_healthy_region_answers() {
    let atlas = atlas(BLOCKS, &[("us", &["ap"]), ("ap", &["us", "eu"])]);
    for (client, down, expected) in [
        // The region of the block, whole.
        ("10.1.2.0/24", &[][..], &["eu-1", "eu-2"][..]),
        // The longest block wins; one edge only: filled up by the configured order.
        ("10.64.9.0/24", &[], &["us-1", "ap-1"]),
        ("172.16.5.0/24", &[], &["ap-1", "us-1"]),
        // A region without edges, then the second one named for the block.
        ("198.51.100.0/24", &["ap-1", "eu-1"], &["us-1", "eu-2"]),
        // A dead edge leaves the answer, and the next region fills up (by distance).
        ("10.1.2.0/24", &["eu-1"], &["eu-2", "us-1"]),
        ("10.1.2.0/24", &["eu-1", "us-1"], &["eu-2", "ap-1"]),
        // A whole region is dead.
        ("10.1.2.0/24", &["eu-1", "eu-2"], &["ap-1", "us-1"]),
        ("172.16.5.0/24", &["ap-1", "us-1"], &["eu-1", "eu-2"]),
        // Nobody knows where this is: every region is equally near.
        ("203.0.113.0/24", &[], &["eu-1", "eu-2", "us-1", "ap-1"]),
        ("203.0.113.0/24", &["us-1"], &["eu-1", "eu-2", "ap-1"]),
    ] {
        assert_eq!(picked(&atlas, ecs(client), &edges(down)), names(expected), "{client} {down:?}");
    }
    let routes = Routes::new(atlas, &edges(&[]));
    let v6 = routes.pick(ecs("2001:db8:a000::/56"), Family::V6).addrs();
    assert_eq!(v6, ["2001:db8::3", "2001:db8::1"].map(|addr| addr.parse::<IpAddr>().unwrap()));
}

#[test]
fn clients_without_a_block_follow_the_default_order() {
    let atlas = atlas(BLOCKS, &[("default", &["us", "eu"])]);
    let routes = Routes::new(atlas, &edges(&["eu-2"]));
    let addrs = routes.pick(ecs("203.0.113.0/24"), Family::V4).addrs();
    let expected = ["192.0.2.3", "192.0.2.1"].map(|addr| addr.parse::<IpAddr>().unwrap());
    assert_eq!(addrs, expected);
}

#[test]
fn without_a_database_the_registry_tells_the_continent() {
    let config = DnsConfig { registry_table: true, ..config(&[], &[]) };
    let routes = Routes::new(Arc::new(Atlas::new(&config, &[])), &edges(&[]));
    for (client, first, reason) in [
        ("193.0.6.0/24", &["eu-1", "eu-2"][..], "registry"),
        ("2a00:1450::/56", &["eu-1", "us-1"], "registry"),
        ("199.43.0.0/24", &["us-1", "eu-1"], "registry"),
        ("203.119.0.0/24", &["ap-1", "eu-1"], "registry"),
        ("10.0.0.0/24", &["eu-1", "eu-2", "us-1", "ap-1"], "default"),
        ("192.168.1.0/24", &["eu-1", "eu-2", "us-1", "ap-1"], "default"),
    ] {
        let found = routes.find(ecs(client));
        assert_eq!(found.reason.label(), reason, "{client}");
        let family = if client.contains(':') { Family::V6 } else { Family::V4 };
        let order = found.order(family);
        let found: Vec<&str> = order
            .edges()
            .iter()
            .map(|number| routes.views[*number as usize].name.as_str())
            .collect();
        assert_eq!(found.len(), first.len(), "{client} {found:?}");
        assert!(first[0] == found[0] || first.contains(&found[0]), "{client} {found:?}");
        if reason == "registry" {
            assert_eq!(routes.explain(ecs(client)).candidates[0].region, first[0][..2]);
        }
    }
}

fn facts(place: Option<(f64, f64)>, country: Option<&str>, asn: Option<u32>) -> Facts {
    Facts {
        place: place.map(|(lat, lon)| LatLon::new(lat, lon).unwrap()),
        country: country.map(|code| code.as_bytes().try_into().unwrap()),
        continent: None,
        asn,
    }
}

fn database(networks: &[(&str, Facts)]) -> Arc<Database> {
    let mut database = Database::default();
    for (index, (block, facts)) in (0u32..).zip(networks) {
        database.facts.push(*facts);
        database.networks.push((block.parse().unwrap(), index));
    }
    Arc::new(database)
}

#[test]
fn rules_come_in_their_order() {
    let city = database(&[
        ("20.0.0.0/8", facts(Some((37.7, -122.4)), Some("US"), None)),
        ("30.0.0.0/8", facts(None, Some("JP"), None)),
        ("40.0.0.0/8", facts(None, Some("ZZ"), None)),
    ]);
    let systems = database(&[
        ("20.1.0.0/16", facts(None, None, Some(64500))),
        ("20.2.0.0/16", facts(None, None, Some(64501))),
    ]);
    let mut config = DnsConfig { registry_table: true, ..config(&[("20.1.2.0/24", "us")], &[]) };
    config.asns = vec![RegionAsn { asn: 64500, region: "ap".to_owned() }];
    let line = |cidr: &str, region: &str| RegionCidr {
        cidr: cidr.parse().unwrap(),
        region: region.to_owned(),
    };
    config.resolvers = vec![line("20.1.2.53/32", "eu"), line("2001:db8::53/128", "us")];
    let atlas = Arc::new(Atlas::new(&config, &[city, systems]));
    let routes = Routes::new(atlas, &edges(&[]));
    let resolver = |text: &str| Client::Resolver(text.parse().unwrap());
    for (client, reason, region) in [
        (ecs("20.1.2.0/24"), "override", "us"),
        (resolver("20.1.2.9"), "override", "us"),
        (resolver("20.1.2.53"), "resolver", "eu"),
        (resolver("2001:db8::53"), "resolver", "us"),
        // The map of resolvers is not for those who tell their client's subnet.
        (ecs("20.1.2.53/32"), "override", "us"),
        (ecs("20.1.3.0/24"), "asn", "ap"),
        (ecs("20.2.0.0/24"), "city", "us"),
        (ecs("20.9.0.0/24"), "city", "us"),
        (ecs("30.0.0.0/24"), "country", "ap"),
        // A country that nobody knows.
        (ecs("40.0.0.0/24"), "registry", "us"),
        (ecs("50.0.0.0/24"), "registry", "us"),
        (ecs("10.0.0.0/24"), "default", ""),
    ] {
        let explained = routes.explain(client);
        assert_eq!(explained.reason, reason, "{client:?}");
        if !region.is_empty() {
            assert_eq!(explained.candidates[0].region, region, "{client:?}");
            assert_eq!(explained.candidates[0].verdict, Verdict::Nearest);
        }
    }
}

#[test]
fn distance_decides_and_places_can_be_configured() {
    let mut config = DnsConfig { registry_table: false, ..config(&[], &[]) };
    let place = |lat, lon| LatLon::new(lat, lon).unwrap();
    config.places = BTreeMap::from([
        ("attic".to_owned(), place(48.1, 11.6)),
        ("berlin-1".to_owned(), place(52.5, 13.4)),
    ]);
    let munich = database(&[("20.0.0.0/8", facts(Some((48.2, 11.5)), None, None))]);
    let atlas = Arc::new(Atlas::new(&config, &[munich]));
    let mut edges = vec![
        edge("attic-1", "attic", &["192.0.2.1"]),
        edge("attic-2", "attic", &["192.0.2.2"]),
        edge("berlin-1", "basement", &["192.0.2.3"]),
        edge("fra-1", "fra", &["192.0.2.4"]),
        edge("lost-1", "basement", &["192.0.2.5"]),
    ];
    let routes = Routes::new(atlas.clone(), &edges);
    let told = routes.explain(ecs("20.0.0.0/24"));
    let by_name = |name: &str| told.candidates.iter().find(|c| c.name == name).unwrap();
    assert_eq!(by_name("attic-1").verdict, Verdict::Nearest);
    assert_eq!(by_name("attic-2").verdict, Verdict::Nearest);
    assert_eq!(by_name("fra-1").verdict, Verdict::Farther);
    assert!((by_name("fra-1").km.unwrap() - 300.0).abs() < 60.0);
    assert_eq!((by_name("lost-1").km, by_name("lost-1").verdict), (None, Verdict::Farther));
    edges[1].ready = false;
    let told = Routes::new(atlas.clone(), &edges).explain(ecs("20.0.0.0/24"));
    let verdicts: Vec<(&str, Verdict)> =
        told.candidates.iter().map(|c| (c.name.as_str(), c.verdict)).collect();
    let expected = [
        ("attic-1", Verdict::Nearest),
        ("fra-1", Verdict::SecondChoice),
        ("attic-2", Verdict::NotReady),
        ("berlin-1", Verdict::Farther),
        ("lost-1", Verdict::Farther),
    ];
    assert_eq!(verdicts, expected);
    edges[0].weight = 0;
    let told = Routes::new(atlas, &edges).explain(ecs("20.0.0.0/24"));
    let drained = told.candidates.iter().find(|c| c.name == "attic-1").unwrap();
    assert_eq!(drained.verdict, Verdict::NoVisitors);
    assert!(!told.panic);
}

#[test]
fn the_resolver_stands_in_for_the_client() {
    let atlas = atlas(BLOCKS, &[]);
    for resolver in ["10.1.2.3", "::ffff:10.1.2.3"] {
        let client = Client::Resolver(resolver.parse().unwrap());
        assert_eq!(picked(&atlas, client, &edges(&[])), names(&["eu-1", "eu-2"]));
        let routes = Routes::new(atlas.clone(), &edges(&[]));
        assert_eq!(routes.pick(client, Family::V4).scope_prefix, 0);
    }
}

#[test]
fn the_scope_is_the_largest_block_of_equal_answers() {
    let nested = atlas(BLOCKS, &[]);
    let one = atlas(&[("10.0.0.0/8", "eu")], &[]);
    let whole = atlas(&[("0.0.0.0/0", "eu")], &[]);
    let empty = atlas(&[], &[]);
    // Two blocks beside each other with one answer are one block.
    let merged = atlas(&[("10.0.0.0/9", "eu"), ("10.128.0.0/9", "eu"), ("11.0.0.0/8", "eu")], &[]);
    for (atlas, client, scope) in [
        (&nested, "10.64.9.0/24", 16),
        (&nested, "172.16.5.0/24", 12),
        (&nested, "198.51.100.0/24", 24),
        (&nested, "2001:db8:a000::/56", 36),
        // A block is nested in 10/8: 10.128/9 is what surely holds no other.
        (&nested, "10.128.0.0/24", 9),
        // 10.65/16 lies beside the nested block: nothing shorter tells them apart.
        (&nested, "10.65.0.0/24", 16),
        // Never longer than what the client told.
        (&nested, "10.64.0.0/10", 10),
        (&nested, "10.0.0.0/8", 8),
        (&one, "10.1.2.0/24", 8),
        (&one, "10.1.2.3/32", 8),
        // Outside all blocks the answer does not hold for those inside.
        (&one, "203.0.113.0/24", 1),
        (&whole, "203.0.113.0/24", 0),
        (&empty, "203.0.113.0/24", 0),
        (&empty, "2001:db8::/56", 0),
        (&merged, "10.1.2.0/24", 7),
        (&merged, "11.200.0.0/24", 7),
    ] {
        let routes = Routes::new(atlas.clone(), &edges(&[]));
        let picked = routes.pick(ecs(client), Family::V4);
        assert_eq!(picked.scope_prefix, scope, "{client}");
    }
    // Different places with one answer are one block, too: there is one edge.
    let routes = Routes::new(nested, &edges(&[])[..1]);
    assert_eq!(routes.pick(ecs("10.64.9.0/24"), Family::V4).scope_prefix, 0);
}

#[test]
fn with_less_than_half_healthy_all_are_answered() {
    let atlas = atlas(BLOCKS, &[]);
    let half = edges(&["eu-1", "eu-2"]);
    assert_eq!(picked(&atlas, ecs("10.1.2.0/24"), &half), names(&["us-1", "ap-1"]));
    let less = edges(&["eu-1", "eu-2", "ap-1"]);
    let routes = Routes::new(atlas.clone(), &less);
    let all = routes.pick(ecs("10.1.2.0/24"), Family::V4).addrs();
    assert_eq!(all.len(), 4);
    assert_eq!(all[0].to_string(), "192.0.2.3", "the healthy one comes first");
    let told = routes.explain(ecs("10.1.2.0/24"));
    assert!(told.panic && told.candidates.iter().all(|c| c.verdict == Verdict::Panic));
    let none = edges(&["eu-1", "eu-2", "us-1", "ap-1"]);
    assert_eq!(picked(&atlas, ecs("10.1.2.0/24"), &none).len(), 4);
}

#[test]
fn weights_share_out_the_first_place_and_zero_takes_none() {
    let atlas = atlas(&[], &[]);
    let mut edges = edges(&[]);
    edges.iter_mut().zip([3, 1, 0, 0]).for_each(|(edge, weight)| edge.weight = weight);
    let routes = Routes::new(atlas.clone(), &edges);
    let mut first = 0;
    for third in 0..=255u8 {
        for second in [7, 77] {
            let client = Client::Resolver(IpAddr::from([203, second, third, 9]));
            let addrs = routes.pick(client, Family::V4).addrs();
            assert_eq!(addrs.len(), 2);
            first += i32::from(addrs[0].to_string() == "192.0.2.1");
            // Sticky: the same for the whole subnet.
            let beside = Client::Resolver(IpAddr::from([203, second, third, 200]));
            assert_eq!(routes.pick(beside, Family::V4).addrs(), addrs);
        }
    }
    // 3/4 of 512 draws, give or take five standard deviations (9.8 each).
    assert!((first - 384).abs() < 49, "{first}");
    edges.iter_mut().for_each(|edge| edge.weight = 0);
    assert_eq!(picked(&atlas, ecs("10.0.0.0/24"), &edges).len(), 4);
}

#[test]
fn a_draining_edge_is_no_reason_to_panic_or_to_hurry_and_serves_when_it_is_the_last() {
    let atlas = atlas(&[], &[]);
    let mut edges = edges(&["eu-1", "eu-2", "us-1"]);
    edges.iter_mut().take(3).for_each(|edge| edge.weight = 0);
    assert_eq!(picked(&atlas, ecs("10.0.0.0/24"), &edges), names(&["ap-1"]));
    assert!(!something_is_down(&edges));
    edges[0].weight = 1;
    assert!(something_is_down(&edges));
    // Only the draining one is alive: it is better than none.
    let mut last = vec![edges[0].clone(), edges[3].clone()];
    last[1].weight = 0;
    assert_eq!(picked(&atlas, ecs("10.0.0.0/24"), &last), names(&["ap-1"]));
}

#[test]
fn edges_that_share_an_address_differ_by_port() {
    let mut edges = [edge("a", "eu", &["127.0.0.1"]), edge("b", "eu", &["127.0.0.1"])];
    edges[1].https_port = 8443;
    let picked = Routes::new(atlas(&[], &[]), &edges).pick(ecs("127.0.0.0/24"), Family::V4);
    assert_eq!(picked.addrs().len(), 1);
    assert_eq!(picked.targets.len(), 2);
}

#[test]
fn a_large_region_is_cut_and_losing_an_edge_moves_only_its_visitors() {
    let addrs: Vec<String> = (1..=40).map(|last| format!("192.0.2.{last}")).collect();
    let mut many: Vec<EdgeView> = addrs.iter().map(|addr| edge(addr, "eu", &[addr])).collect();
    let atlas = atlas(&[("10.0.0.0/8", "eu")], &[]);
    let client = Client::Resolver(IpAddr::from([10, 1, 2, 3]));
    let before = picked(&atlas, client, &many);
    assert_eq!(before.len(), EDGES_MAX);
    let routes = Routes::new(atlas.clone(), &many);
    // Whoever shares a cached answer gets the same edges; other blocks get others.
    let told = |text: &str| {
        let picked = routes.pick(ecs(text), Family::V4);
        let addrs: BTreeSet<IpAddr> = picked.addrs().into_iter().collect();
        (addrs, picked.scope_prefix)
    };
    let (mut different, mut all) = (BTreeSet::new(), BTreeSet::new());
    for second in 0..=255u8 {
        let (addrs, scope) = told(&format!("10.{second}.2.0/24"));
        assert_eq!((scope, addrs.len()), (16, EDGES_MAX));
        assert_eq!(told(&format!("10.{second}.200.0/24")), (addrs.clone(), scope));
        all.extend(addrs.iter().copied());
        different.insert(addrs);
    }
    assert_eq!(different.len(), VARIANTS);
    assert!(all.len() > 32, "nearly every edge gets visitors: {}", all.len());
    let gone = before.first().unwrap().clone();
    many.iter_mut().filter(|edge| edge.name == gone).for_each(|edge| edge.ready = false);
    let after = picked(&atlas, client, &many);
    assert_eq!(before.difference(&after).count(), 1);
}

/// A number that looks random, the same in every run.
fn draw(seed: u64) -> u64 {
    mix(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// How long it takes depends on the machine; that it works at this size does not.
#[test]
fn a_thousand_edges_and_a_million_subnets() {
    let place = |seed: u64| {
        let (lat, lon) = (draw(seed) % 12_000, draw(seed ^ 77) % 36_000);
        LatLon::new(lat as f64 / 100.0 - 60.0, lon as f64 / 100.0 - 180.0).unwrap()
    };
    let mut config = config(&[], &[]);
    let mut edges = Vec::new();
    for number in 0..1000u64 {
        let name = format!("edge-{number}");
        config.places.insert(name.clone(), place(number));
        let [a, b] = (number as u16).to_be_bytes();
        edges.push(edge(&name, "somewhere", &[&format!("192.0.{a}.{b}")]));
    }
    let mut database = Database::default();
    for number in 0..50_000u64 {
        let facts = Facts { place: Some(place(number << 20)), ..Facts::default() };
        database.facts.push(facts);
    }
    for number in 0..1_000_000u32 {
        let block = Subnet::of(IpAddr::from(((1 << 24) + number * 256).to_be_bytes()), 24);
        database.networks.push((block, (draw(u64::from(number)) % 50_000) as u32));
    }
    let started = Instant::now();
    let atlas = Arc::new(Atlas::new(&config, &[Arc::new(database)]));
    let (placed, started) = (started.elapsed(), Instant::now());
    let routes = Routes::new(atlas.clone(), &edges);
    let routed = started.elapsed();
    println!(
        "atlas {} ms, {} places, {} MiB; routes {} ms, {} choices, {} MiB",
        placed.as_millis(),
        atlas.len(),
        atlas.bytes() >> 20,
        routed.as_millis(),
        routes.choices.len(),
        routes.bytes() >> 20
    );
    assert!(routes.choices.len() > 1000, "{}", routes.choices.len());
    // Against looking at every edge, for some of the blocks.
    for number in (0..1_000_000u32).step_by(9973) {
        let addr = IpAddr::from(((1 << 24) + number * 256).to_be_bytes());
        let at = place((draw(u64::from(number)) % 50_000) << 20).coarse().direction();
        let km = |edge: &EdgeView| config.places[&edge.name].direction().km_to(at);
        let nearest = edges.iter().min_by(|a, b| km(a).total_cmp(&km(b))).unwrap();
        let told = routes.explain(Client::Subnet(Subnet::of(addr, 24)));
        let taken: Vec<&Candidate> =
            told.candidates.iter().filter(|c| c.verdict.is_taken()).collect();
        assert!(taken.len() >= 2);
        let first = taken.iter().find(|c| c.name == nearest.name);
        let spread = taken.len() == EDGES_MAX;
        assert!(first.is_some() || spread, "{addr}: {} of {taken:?}", nearest.name);
    }
}

fn any_subnet() -> impl Strategy<Value = Subnet> {
    prop_oneof![
        (any::<[u8; 4]>(), 0..=32u8).prop_map(|(addr, prefix)| Subnet::of(addr.into(), prefix)),
        (any::<[u8; 16]>(), 0..=128u8).prop_map(|(addr, prefix)| Subnet::of(addr.into(), prefix)),
    ]
}

proptest! {
    #[test]
    fn answers_are_stable_and_hold_two_where_two_are_healthy(
        client in any_subnet(),
        ready in prop::collection::vec(any::<bool>(), 4),
        weights in prop::collection::vec(0..3u32, 4),
    ) {
        let atlas = atlas(BLOCKS, &[]);
        let mut edges = edges(&[]);
        let states = ready.iter().zip(&weights);
        edges.iter_mut().zip(states).for_each(|(edge, (ready, weight))| {
            (edge.ready, edge.weight) = (*ready, *weight);
        });
        let routes = Routes::new(atlas.clone(), &edges);
        let answer = routes.pick(Client::Subnet(client), Family::V4);
        let again = Routes::new(atlas, &edges);
        prop_assert_eq!(&answer, &again.pick(Client::Subnet(client), Family::V4));
        let alive = edges.iter().filter(|edge| edge.ready && edge.weight > 0).count();
        prop_assert!(answer.addrs().len() >= alive.clamp(1, 2));
        // A living edge is in it whenever there is one.
        let lives = |addr: &IpAddr| edges.iter().any(|e| e.ready && e.addrs.contains(addr));
        if edges.iter().any(|edge| edge.ready) {
            prop_assert!(answer.addrs().iter().any(lives), "{answer:?} {edges:?}");
        }
        let explained = routes.explain(Client::Subnet(client));
        for candidate in &explained.candidates {
            let answered = candidate.addrs.iter().any(|addr| {
                let v6 = routes.pick(Client::Subnet(client), Family::V6);
                answer.addrs().contains(addr) || v6.addrs().contains(addr)
            });
            prop_assert_eq!(candidate.verdict.is_taken(), answered, "{:?}", candidate);
        }
    }
}
