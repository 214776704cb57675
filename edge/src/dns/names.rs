//! What each name of the zones is, in the form that names have in packets.
//!
//! Built for every state of the cluster; [`super::answer`] and [`super::fast`] look up. A name is
//! kept in lower case with its length bytes, so that a dot within a label is no dot between two.

use std::collections::HashMap;

use hickory_proto::rr::{Name, RData, RecordType};

/// Longest name in a packet, with its length bytes (RFC 1035 section 2.3.4).
pub(super) const NAME_BYTES_MAX: usize = 255;
/// Longest label.
const LABEL_BYTES_MAX: u8 = 63;

/// A name in lower case as it stands in packets.
#[derive(Clone, Debug)]
pub(super) struct WireName {
    bytes: [u8; NAME_BYTES_MAX],
    len: usize,
}

impl WireName {
    /// Reads the name at the start of `packet`, in which nothing may be compressed: that is how a
    /// question begins. Returns how many bytes it took.
    pub(super) fn read(packet: &[u8]) -> Option<(WireName, usize)> {
        let mut name = WireName { bytes: [0; NAME_BYTES_MAX], len: 0 };
        let mut at = 0;
        loop {
            let length = *packet.get(at)?;
            if length > LABEL_BYTES_MAX {
                return None;
            }
            let end = at + 1 + usize::from(length);
            if end > NAME_BYTES_MAX || (length > 0 && end == NAME_BYTES_MAX) {
                return None;
            }
            let label = packet.get(at..end)?;
            name.bytes[at] = length;
            for (to, from) in name.bytes[at + 1..end].iter_mut().zip(&label[1..]) {
                *to = from.to_ascii_lowercase();
            }
            at = end;
            if length == 0 {
                name.len = at;
                return Some((name, at));
            }
        }
    }

    /// From the codec's form.
    pub(super) fn of(name: &Name) -> WireName {
        let mut wire = WireName { bytes: [0; NAME_BYTES_MAX], len: 0 };
        for label in name.iter() {
            // The codec holds only names that fit.
            let end = wire.len + 1 + label.len();
            if end >= NAME_BYTES_MAX {
                break;
            }
            wire.bytes[wire.len] = label.len() as u8;
            for (to, from) in wire.bytes[wire.len + 1..end].iter_mut().zip(label) {
                *to = from.to_ascii_lowercase();
            }
            wire.len = end;
        }
        wire.len += 1;
        wire
    }

    /// The name with its length bytes and the empty label at its end.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The first label.
    fn first_label(&self) -> &[u8] {
        &self.bytes[1..1 + usize::from(self.bytes[0])]
    }
}

/// Where the name begins that is left when the first label goes; nothing for the root.
fn parent(name: &[u8]) -> Option<&[u8]> {
    match *name.first()? {
        0 => None,
        length => name.get(1 + usize::from(length)..),
    }
}

/// FNV-1a, 64 bits (Fowler, Noll, Vo).
fn name_hash(name: &[u8]) -> u64 {
    name.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// What is at a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    /// The number of the zone it is in.
    pub(super) zone: usize,
    /// Another one for every other name; the names that lead here have it in common.
    pub(super) hash: u64,
    /// It is the zone's own name: SOA and NS.
    pub(super) apex: bool,
    /// It leads to the edges: A, AAAA and HTTPS.
    pub(super) edges: bool,
    /// It is another name for this one.
    pub(super) alias_of: Option<Name>,
    /// How long that may be kept, in seconds.
    pub(super) alias_ttl_secs: u32,
    /// What the operator wrote down, and the addresses of name servers.
    pub(super) records: Vec<(RecordType, u32, RData)>,
}

/// What a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place<'n> {
    /// In none of the zones.
    Outside,
    /// In this zone, but neither it nor anything below it exists.
    Missing(usize),
    /// It exists (RFC 8020: also when it holds nothing itself and something is below it).
    Here(&'n Node),
}

/// Every name that exists.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    /// The zones' own names, in the order of their numbers.
    apexes: Vec<Box<[u8]>>,
    nodes: HashMap<Box<[u8]>, Node>,
}

impl Names {
    /// Only the zones' own names.
    pub(super) fn new(apexes: &[Name]) -> Names {
        let mut names = Names::default();
        for (zone, apex) in apexes.iter().enumerate() {
            let wire = WireName::of(apex);
            names.apexes.push(wire.as_bytes().into());
            let hash = name_hash(wire.as_bytes());
            let node = Node { zone, hash, apex: true, ..Node::default() };
            names.nodes.insert(wire.as_bytes().into(), node);
        }
        // Of a zone within another: what lies between the two exists.
        for apex in names.apexes.clone() {
            let mut at = parent(&apex);
            while let Some(name) = at
                && let Some(zone) = names.zone_of(name)
                && !names.nodes.contains_key(name)
            {
                names.insert_empty(name, zone);
                at = parent(name);
            }
        }
        names
    }

    /// The node at a name, made with everything between it and its zone. Nothing for a name
    /// that is in none of the zones.
    pub(super) fn node(&mut self, name: &Name) -> Option<&mut Node> {
        let wire = WireName::of(name);
        let zone = self.zone_of(wire.as_bytes())?;
        let mut at = Some(wire.as_bytes());
        while let Some(name) = at
            && !self.nodes.contains_key(name)
        {
            self.insert_empty(name, zone);
            at = parent(name);
        }
        self.nodes.get_mut(wire.as_bytes())
    }

    fn insert_empty(&mut self, name: &[u8], zone: usize) {
        let node = Node { zone, hash: name_hash(name), ..Node::default() };
        self.nodes.insert(name.into(), node);
    }

    /// What a name is.
    pub(super) fn find(&self, name: &WireName) -> Place<'_> {
        if let Some(node) = self.nodes.get(name.as_bytes()) {
            return Place::Here(node);
        }
        match self.zone_of(name.as_bytes()) {
            None => Place::Outside,
            Some(zone) => self.alias(name).map_or(Place::Missing(zone), Place::Here),
        }
    }

    /// `<alias>--<site>`: leads where the site's name does. Which aliases exist is not known
    /// here, and need not be: a wrong one gets its 404 from the edge.
    fn alias(&self, name: &WireName) -> Option<&Node> {
        let label = name.first_label();
        let at = label.windows(2).position(|pair| pair == b"--")?;
        let (alias, site) = (std::str::from_utf8(&label[..at]).ok()?, &label[at + 2..]);
        alias.parse::<atoll_proto::AliasName>().ok()?;
        let mut wire = [0; NAME_BYTES_MAX];
        let rest = &name.as_bytes()[1 + label.len()..];
        let length = 1 + site.len() + rest.len();
        let sites = wire.get_mut(..length)?;
        sites[0] = site.len() as u8;
        sites[1..=site.len()].copy_from_slice(site);
        sites[1 + site.len()..].copy_from_slice(rest);
        let node = self.nodes.get(&*sites)?;
        // Only a site's own name below the zone has aliases.
        let direct = self.apexes.first().is_some_and(|apex| **apex == *rest);
        (direct && !node.apex && node.edges).then_some(node)
    }

    /// The zone with the longest name that a name is in.
    fn zone_of(&self, name: &[u8]) -> Option<usize> {
        let mut at = Some(name);
        while let Some(suffix) = at {
            if let Some(zone) = self.apexes.iter().position(|apex| **apex == *suffix) {
                return Some(zone);
            }
            at = parent(suffix);
        }
        None
    }

    /// How many bytes of a name stand before the name of its zone.
    pub(super) fn bytes_before_zone(&self, name: &WireName, zone: usize) -> usize {
        name.as_bytes().len() - self.apexes[zone].len()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn name(text: &str) -> Name {
        let mut name = Name::from_ascii(text).unwrap();
        name.set_fqdn(true);
        name
    }

    #[test]
    fn names_have_their_place() {
        let mut names = Names::new(&[name("Atoll.Test"), name("sub.example")]);
        for host in ["docs.atoll.test", "a-b.atoll.test", "www.deep.atoll.test", "sub.example"] {
            names.node(&name(host)).unwrap().edges = true;
        }
        assert!(names.node(&name("example.org")).is_none());
        let place = |text: &str| match names.find(&WireName::of(&name(text))) {
            Place::Outside => "outside",
            Place::Missing(0) => "missing",
            Place::Missing(_) => "missing there",
            Place::Here(node) if node.edges => "edges",
            Place::Here(node) if node.apex => "apex",
            Place::Here(_) => "empty",
        };
        for (text, expected) in [
            ("atoll.test", "apex"),
            ("ATOLL.test", "apex"),
            ("docs.atoll.test", "edges"),
            ("DOCS.Atoll.Test", "edges"),
            ("next--docs.atoll.test", "edges"),
            ("n-1--a-b.atoll.test", "edges"),
            ("--docs.atoll.test", "missing"),
            ("a--b--docs.atoll.test", "missing"),
            ("docs--next.atoll.test", "missing"),
            ("x--deep.atoll.test", "missing"),
            ("x.docs.atoll.test", "missing"),
            ("nope.atoll.test", "missing"),
            ("deep.atoll.test", "empty"),
            ("www.deep.atoll.test", "edges"),
            ("x--www.deep.atoll.test", "missing"),
            ("sub.example", "edges"),
            ("x.sub.example", "missing there"),
            ("example", "outside"),
            ("xatoll.test", "outside"),
            ("test", "outside"),
            (".", "outside"),
        ] {
            assert_eq!(place(text), expected, "{text}");
        }
        let within = Names::new(&[name("atoll.test"), name("c.b.a.atoll.test")]);
        for (text, zone, apex) in [("b.a.atoll.test", 0, false), ("c.b.a.atoll.test", 1, true)] {
            let wire = WireName::of(&name(text));
            let Place::Here(node) = within.find(&wire) else { panic!("{text}") };
            assert_eq!((node.zone, node.apex), (zone, apex), "{text}");
        }
        let dotted = Name::from_labels([&b"www.deep"[..], b"atoll", b"test"]).unwrap();
        assert_eq!(names.find(&WireName::of(&dotted)), Place::Missing(0));
    }

    #[test]
    fn names_in_packets_are_read_and_bad_ones_refused() {
        let packet = b"\x04DoCs\x05atoll\x04test\x00\x00\x01";
        let (read, length) = WireName::read(packet).unwrap();
        assert_eq!((read.as_bytes(), length), (&b"\x04docs\x05atoll\x04test\x00"[..], 17));
        assert_eq!(read.as_bytes(), WireName::of(&name("docs.atoll.test")).as_bytes());
        for short in 0..17 {
            assert!(WireName::read(&packet[..short]).is_none());
        }
        assert!(WireName::read(b"\xc0\x0c").is_none(), "a pointer");
        assert!(WireName::read(b"\x40").is_none());
        let mut long = b"\x3f".iter().chain(&[b'x'; 63]).copied().collect::<Vec<u8>>().repeat(3);
        let mut fits = long.clone();
        fits.push(61);
        fits.extend([b'y'; 61]);
        fits.push(0);
        assert_eq!(WireName::read(&fits).unwrap().1, 255);
        long.push(62);
        long.extend([b'y'; 62]);
        long.push(0);
        assert!(WireName::read(&long).is_none());
    }
}
