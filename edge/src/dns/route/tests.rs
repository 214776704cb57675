//! Tests of the module beside this file.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

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

fn table(blocks: &[(&str, &str)], order: &[(&str, &[&str])]) -> RouteTable {
    let line = |(cidr, region): &(&str, &str)| RegionCidr {
        cidr: cidr.parse().unwrap(),
        region: (*region).to_owned(),
    };
    let regions: Vec<RegionCidr> = blocks.iter().map(line).collect();
    let order = order.iter().map(|(region, others)| {
        ((*region).to_owned(), others.iter().map(|other| (*other).to_owned()).collect())
    });
    RouteTable::new(&regions, &order.collect())
}

fn ecs(text: &str) -> Client {
    Client::Subnet(text.parse().unwrap())
}

/// The edges of the answer by the last part of their address, in alphabetical order.
fn picked(table: &RouteTable, client: Client, edges: &[EdgeView]) -> BTreeSet<String> {
    let addrs = table.pick(client, edges, Family::V4).addrs();
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
    ("198.51.100.0/24", "sa"),
    ("198.51.100.0/24", "us"),
    ("2001:db8:a000::/36", "us"),
];

#[test]
fn the_nearest_healthy_region_answers() {
    let table = table(BLOCKS, &[("us", &["ap"]), ("ap", &["us", "eu"])]);
    for (client, down, expected) in [
        // The region of the block, whole.
        ("10.1.2.0/24", &[][..], &["eu-1", "eu-2"][..]),
        // The longest block wins.
        ("10.64.9.0/24", &[], &["us-1", "ap-1"]),
        // One edge only: filled up by the configured order.
        ("172.16.5.0/24", &[], &["ap-1", "us-1"]),
        // A region without edges, then the second one named for the block, then its order.
        ("198.51.100.0/24", &[], &["us-1", "ap-1"]),
        // A dead edge leaves the answer, and the next region fills up (alphabetical).
        ("10.1.2.0/24", &["eu-1"], &["eu-2", "ap-1"]),
        ("10.1.2.0/24", &["eu-1", "ap-1"], &["eu-2", "us-1"]),
        // A whole region is dead.
        ("10.1.2.0/24", &["eu-1", "eu-2"], &["ap-1", "us-1"]),
        ("172.16.5.0/24", &["ap-1", "us-1"], &["eu-1", "eu-2"]),
        // Nobody knows where this is: every region is equally near.
        ("203.0.113.0/24", &[], &["eu-1", "eu-2", "us-1", "ap-1"]),
        ("203.0.113.0/24", &["us-1"], &["eu-1", "eu-2", "ap-1"]),
    ] {
        assert_eq!(picked(&table, ecs(client), &edges(down)), names(expected), "{client} {down:?}");
    }
    let v6 = table.pick(ecs("2001:db8:a000::/56"), &edges(&[]), Family::V6).addrs();
    assert_eq!(v6, ["2001:db8::3", "2001:db8::1"].map(|addr| addr.parse::<IpAddr>().unwrap()));
}

#[test]
fn clients_without_a_block_follow_the_default_order() {
    let table = table(BLOCKS, &[("default", &["us", "eu"])]);
    let addrs = table.pick(ecs("203.0.113.0/24"), &edges(&["eu-2"]), Family::V4).addrs();
    let expected = ["192.0.2.3", "192.0.2.1"].map(|addr| addr.parse::<IpAddr>().unwrap());
    assert_eq!(addrs, expected);
}

#[test]
fn the_resolver_stands_in_for_the_client() {
    let table = table(BLOCKS, &[]);
    for resolver in ["10.1.2.3", "::ffff:10.1.2.3"] {
        let client = Client::Resolver(resolver.parse().unwrap());
        assert_eq!(picked(&table, client, &edges(&[])), names(&["eu-1", "eu-2"]));
        assert_eq!(table.pick(client, &edges(&[]), Family::V4).scope_prefix, 0);
    }
}

#[test]
fn the_scope_says_what_decided() {
    let nested = table(BLOCKS, &[]);
    let one = table(&[("10.0.0.0/8", "eu")], &[]);
    let whole = table(&[("0.0.0.0/0", "eu")], &[]);
    let empty = table(&[], &[]);
    for (table, client, scope) in [
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
    ] {
        let picked = table.pick(ecs(client), &edges(&[]), Family::V4);
        assert_eq!(picked.scope_prefix, scope, "{client}");
    }
}

#[test]
fn with_less_than_half_healthy_all_are_answered() {
    let table = table(BLOCKS, &[]);
    let half = edges(&["eu-1", "eu-2"]);
    assert_eq!(picked(&table, ecs("10.1.2.0/24"), &half), names(&["us-1", "ap-1"]));
    let less = edges(&["eu-1", "eu-2", "ap-1"]);
    let all = table.pick(ecs("10.1.2.0/24"), &less, Family::V4).addrs();
    assert_eq!(all.len(), 4);
    assert_eq!(all[0].to_string(), "192.0.2.3", "the healthy one comes first");
    let none = edges(&["eu-1", "eu-2", "us-1", "ap-1"]);
    assert_eq!(picked(&table, ecs("10.1.2.0/24"), &none).len(), 4);
}

#[test]
fn weights_share_out_the_first_place_and_zero_takes_none() {
    let table = table(&[], &[]);
    let mut edges = edges(&[]);
    edges.iter_mut().zip([3, 1, 0, 0]).for_each(|(edge, weight)| edge.weight = weight);
    let mut first = 0;
    for third in 0..=255u8 {
        for second in [7, 77] {
            let client = Client::Resolver(IpAddr::from([203, second, third, 9]));
            let addrs = table.pick(client, &edges, Family::V4).addrs();
            assert_eq!(addrs.len(), 2);
            first += i32::from(addrs[0].to_string() == "192.0.2.1");
        }
    }
    // 3/4 of 512 draws, give or take five standard deviations (9.8 each).
    assert!((first - 384).abs() < 49, "{first}");
    edges.iter_mut().for_each(|edge| edge.weight = 0);
    assert_eq!(picked(&table, ecs("10.0.0.0/24"), &edges).len(), 4);
}

#[test]
fn a_draining_edge_is_no_reason_to_panic_or_to_hurry() {
    let mut edges = edges(&["eu-1", "eu-2", "us-1"]);
    edges.iter_mut().take(3).for_each(|edge| edge.weight = 0);
    assert_eq!(picked(&table(&[], &[]), ecs("10.0.0.0/24"), &edges), names(&["ap-1"]));
    assert!(!something_is_down(&edges));
    edges[0].weight = 1;
    assert!(something_is_down(&edges));
}

#[test]
fn edges_that_share_an_address_differ_by_port() {
    let mut edges = [edge("a", "eu", &["127.0.0.1"]), edge("b", "eu", &["127.0.0.1"])];
    edges[1].https_port = 8443;
    let picked = table(&[], &[]).pick(ecs("127.0.0.0/24"), &edges, Family::V4);
    assert_eq!(picked.addrs().len(), 1);
    assert_eq!(picked.targets.len(), 2);
}

#[test]
fn a_large_region_is_cut_and_losing_an_edge_moves_only_its_visitors() {
    let addrs: Vec<String> = (1..=40).map(|last| format!("192.0.2.{last}")).collect();
    let mut many: Vec<EdgeView> = addrs.iter().map(|addr| edge(addr, "eu", &[addr])).collect();
    let table = table(&[("10.0.0.0/8", "eu")], &[]);
    let client = Client::Resolver(IpAddr::from([10, 1, 2, 3]));
    let before = picked(&table, client, &many);
    assert_eq!(before.len(), EDGES_MAX);
    let gone = before.first().unwrap().clone();
    many.iter_mut().filter(|edge| edge.name == gone).for_each(|edge| edge.ready = false);
    let after = picked(&table, client, &many);
    assert_eq!(before.difference(&after).count(), 1);
    // Whoever shares a cached answer gets the same edges.
    let told = |text| picked(&table, ecs(text), &many);
    assert_eq!(told("10.1.2.0/24"), told("10.200.7.0/24"));
}

fn any_subnet() -> impl Strategy<Value = Subnet> {
    prop_oneof![
        (any::<[u8; 4]>(), 0..=32u8).prop_map(|(addr, prefix)| Subnet::of(addr.into(), prefix)),
        // Few leading bits vary, so that blocks nest.
        (0..64u8, 0..=8u8).prop_map(|(first, prefix)| {
            Subnet::of(IpAddr::from([first << 2, 0, 0, 0]), prefix)
        }),
        (any::<[u8; 16]>(), 0..=128u8).prop_map(|(addr, prefix)| Subnet::of(addr.into(), prefix)),
    ]
}

/// The table without a trie: the longest line that covers the client.
fn covering(lines: &[RegionCidr], client: Subnet) -> Option<&RegionCidr> {
    let covers = |line: &&RegionCidr| {
        line.cidr.addr().is_ipv4() == client.addr().is_ipv4()
            && line.cidr.prefix() <= client.prefix()
            && client.widened(line.cidr.prefix()) == line.cidr
    };
    lines.iter().filter(covers).max_by_key(|line| line.cidr.prefix())
}

proptest! {
    #[test]
    fn the_trie_agrees_with_a_list_and_a_scope_holds_for_all_in_it(
        blocks in prop::collection::vec(any_subnet(), 0..20),
        client in any_subnet(),
        other in any::<[u8; 16]>(),
    ) {
        let mut lines: Vec<RegionCidr> = Vec::new();
        for (index, cidr) in blocks.into_iter().enumerate() {
            if !lines.iter().any(|line| line.cidr == cidr) {
                lines.push(RegionCidr { cidr, region: format!("r{index}") });
            }
        }
        let table = RouteTable::new(&lines, &BTreeMap::new());
        let region = |client: Subnet| table.trie(client.addr()).find(client).regions.first();
        let found = table.trie(client.addr()).find(client);
        prop_assert_eq!(region(client), covering(&lines, client).map(|line| &line.region));
        prop_assert!(found.scope <= client.prefix());
        // Anyone else in the scope, who tells as many bits as a full address.
        if found.scope < client.prefix() {
            let mask = |bits: u128, width: u32| {
                let scope = u32::from(found.scope);
                (bits, u128::MAX.checked_shl(width - scope).unwrap_or(0))
            };
            let neighbour = match client.addr() {
                IpAddr::V4(v4) => {
                    let [a, b, c, d, ..] = other;
                    let (theirs, mask) = mask(u128::from(u32::from_be_bytes([a, b, c, d])), 32);
                    let bits = (u128::from(v4.to_bits()) & mask) | (theirs & !mask);
                    IpAddr::from(u32::try_from(bits).unwrap().to_be_bytes())
                }
                IpAddr::V6(v6) => {
                    let (theirs, mask) = mask(u128::from_be_bytes(other), 128);
                    IpAddr::from(((v6.to_bits() & mask) | (theirs & !mask)).to_be_bytes())
                }
            };
            prop_assert_eq!(region(Subnet::of(neighbour, u8::MAX)), region(client));
        }
    }

    #[test]
    fn answers_are_stable_and_hold_two_where_two_are_healthy(
        client in any_subnet(),
        ready in prop::collection::vec(any::<bool>(), 4),
    ) {
        let table = table(BLOCKS, &[]);
        let mut edges = edges(&[]);
        edges.iter_mut().zip(&ready).for_each(|(edge, ready)| edge.ready = *ready);
        let healthy = ready.iter().filter(|ready| **ready).count();
        let answer = table.pick(Client::Subnet(client), &edges, Family::V4);
        prop_assert_eq!(&answer, &table.pick(Client::Subnet(client), &edges, Family::V4));
        prop_assert!(answer.addrs().len() >= healthy.clamp(1, 2));
        if healthy * 2 >= edges.len() {
            for addr in answer.addrs() {
                prop_assert!(edges.iter().any(|edge| edge.ready && edge.addrs.contains(&addr)));
            }
        }
    }
}
