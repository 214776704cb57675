//! Which regional registry an address block was given to: the built-in table, for when there is no
//! geographic database. It tells the continent in most cases, and nothing finer.
//!
//! Source: IANA, "IPv4 Address Space Registry" and "IPv6 Global Unicast Address Assignments".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::LatLon;
use crate::dns::subnet::Subnet;

/// One of the five registries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::dns) struct Registry {
    /// What an operator reads.
    pub(in crate::dns) name: &'static str,
    /// Where most addresses it gave out are used.
    pub(in crate::dns) place: LatLon,
}

const AFRINIC: Registry = Registry { name: "AFRINIC", place: LatLon::whole(0, 20) };
const APNIC: Registry = Registry { name: "APNIC", place: LatLon::whole(28, 115) };
const ARIN: Registry = Registry { name: "ARIN", place: LatLon::whole(39, -90) };
const LACNIC: Registry = Registry { name: "LACNIC", place: LatLon::whole(-18, -55) };
const RIPE: Registry = Registry { name: "RIPE NCC", place: LatLon::whole(50, 10) };

/// First bytes of IPv4 addresses, from and to. What is reserved or private is in none of them.
const IPV4: &[(Registry, &[(u8, u8)])] = &[
    (AFRINIC, &[(41, 41), (102, 102), (105, 105), (154, 154), (196, 197)]),
    (
        APNIC,
        &[
            (1, 1),
            (14, 14),
            (27, 27),
            (36, 36),
            (39, 39),
            (42, 43),
            (49, 49),
            (58, 61),
            (101, 101),
            (103, 103),
            (106, 106),
            (110, 126),
            (133, 133),
            (150, 150),
            (153, 153),
            (163, 163),
            (171, 171),
            (175, 175),
            (180, 180),
            (182, 183),
            (202, 203),
            (210, 211),
            (218, 223),
        ],
    ),
    (
        ARIN,
        &[
            (3, 4),
            (6, 9),
            (11, 13),
            (15, 24),
            (26, 26),
            (28, 30),
            (32, 35),
            (38, 38),
            (40, 40),
            (44, 45),
            (47, 48),
            (50, 50),
            (52, 52),
            (54, 56),
            (63, 76),
            (96, 100),
            (104, 104),
            (107, 108),
            (128, 132),
            (134, 140),
            (142, 144),
            (146, 149),
            (152, 152),
            (155, 162),
            (164, 170),
            (172, 174),
            (184, 184),
            (192, 192),
            (198, 199),
            (204, 209),
            (214, 216),
        ],
    ),
    (LACNIC, &[(177, 177), (179, 179), (181, 181), (186, 187), (189, 191), (200, 201)]),
    (
        RIPE,
        &[
            (2, 2),
            (5, 5),
            (25, 25),
            (31, 31),
            (37, 37),
            (46, 46),
            (51, 51),
            (53, 53),
            (57, 57),
            (62, 62),
            (77, 95),
            (109, 109),
            (141, 141),
            (145, 145),
            (151, 151),
            (176, 176),
            (178, 178),
            (185, 185),
            (188, 188),
            (193, 195),
            (212, 213),
            (217, 217),
        ],
    ),
];

/// First 32 bits of IPv6 addresses, and how many of them count.
const IPV6: &[(Registry, &[(u32, u8)])] = &[
    (AFRINIC, &[(0x2001_4200, 23), (0x2c00_0000, 12)]),
    (
        APNIC,
        &[
            (0x2001_0200, 23),
            (0x2001_0c00, 22),
            (0x2001_4400, 23),
            (0x2001_8000, 19),
            (0x2001_a000, 19),
            (0x2400_0000, 12),
            (0x2410_0000, 12),
        ],
    ),
    (
        ARIN,
        &[
            (0x2001_0400, 23),
            (0x2001_1800, 23),
            (0x2001_4800, 23),
            (0x2600_0000, 12),
            (0x2610_0000, 23),
            (0x2620_0000, 23),
            (0x2630_0000, 12),
        ],
    ),
    (LACNIC, &[(0x2001_1200, 23), (0x2800_0000, 12)]),
    (
        RIPE,
        &[
            (0x2001_0600, 23),
            (0x2001_0800, 22),
            (0x2001_1400, 22),
            (0x2001_1a00, 23),
            (0x2001_1c00, 22),
            (0x2001_2000, 19),
            (0x2001_4000, 23),
            (0x2001_4600, 23),
            (0x2001_4a00, 23),
            (0x2001_4c00, 23),
            (0x2001_5000, 20),
            (0x2003_0000, 18),
            (0x2a00_0000, 12),
            (0x2a10_0000, 12),
        ],
    ),
];

/// Blocks within these that are private or for documentation: they are nowhere.
const NOWHERE: [(IpAddr, u8); 8] = [
    (IpAddr::V4(Ipv4Addr::new(100, 64, 0, 0)), 10),
    (IpAddr::V4(Ipv4Addr::new(172, 16, 0, 0)), 12),
    (IpAddr::V4(Ipv4Addr::new(192, 0, 2, 0)), 24),
    (IpAddr::V4(Ipv4Addr::new(192, 168, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(198, 18, 0, 0)), 15),
    (IpAddr::V4(Ipv4Addr::new(198, 51, 100, 0)), 24),
    (IpAddr::V4(Ipv4Addr::new(203, 0, 113, 0)), 24),
    (IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0)), 32),
];

/// Every block of the table; a block that is nowhere lies within one that is somewhere.
pub(in crate::dns) fn blocks() -> impl Iterator<Item = (Subnet, Option<Registry>)> {
    let v4 = IPV4.iter().flat_map(|(registry, ranges)| {
        ranges
            .iter()
            .flat_map(|(from, to)| *from..=*to)
            .map(|first| (Subnet::of(IpAddr::from([first, 0, 0, 0]), 8), Some(*registry)))
    });
    let v6 = IPV6.iter().flat_map(|(registry, blocks)| {
        blocks.iter().map(|(bits, prefix)| {
            let addr = Ipv6Addr::from_bits(u128::from(*bits) << 96);
            (Subnet::of(addr.into(), *prefix), Some(*registry))
        })
    });
    v4.chain(v6).chain(NOWHERE.map(|(addr, prefix)| (Subnet::of(addr, prefix), None)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn no_block_is_there_twice_and_all_are_written_as_they_are() {
        let mut seen = std::collections::BTreeSet::new();
        for (block, registry) in blocks() {
            assert!(seen.insert(block), "{block}");
            assert_eq!(block.to_string().parse::<Subnet>().unwrap(), block);
            assert_eq!(registry.is_none(), NOWHERE.contains(&(block.addr(), block.prefix())));
        }
        let v4: Vec<u8> = seen
            .iter()
            .filter(|block| block.prefix() == 8)
            .filter_map(|block| match block.addr() {
                IpAddr::V4(v4) => Some(v4.octets()[0]),
                IpAddr::V6(_) => None,
            })
            .collect();
        // 0, 10, 127 and from 224 on are for other purposes; every other one was given out.
        let none: Vec<u8> = (0..224).filter(|first| !v4.contains(first)).collect();
        assert_eq!(none, [0, 10, 127]);
    }
}
