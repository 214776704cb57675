//! What holds for each address: a sorted list of the points where it changes.
//!
//! [`super::atlas`] lays layers of address blocks over each other, [`super::route`] looks up.
//! The list covers all addresses, so a look-up always finds something, and the largest block of
//! equal answers around an address (the scope of RFC 7871 section 7.2.1) follows from the two
//! points beside it.

use std::net::IpAddr;

use super::subnet::Subnet;

/// Bits of an address that the index of a list is made of.
const INDEX_BITS: u8 = 16;

/// An address as a number.
pub(super) trait Address: Copy + Ord {
    /// The first address.
    const FIRST: Self;

    /// The leading bits as an index.
    fn index(self) -> usize;
    /// The address before; nothing before the first.
    fn before(self) -> Option<Self>;
    /// How many leading bits are the same.
    fn shared_bits(self, other: Self) -> u8;
    /// First address of a block, and the first behind it unless it is the end.
    fn bounds(block: Subnet) -> Option<(Self, Option<Self>)>;
}

impl Address for u32 {
    const FIRST: u32 = 0;

    fn index(self) -> usize {
        (self >> (32 - INDEX_BITS)) as usize
    }

    fn before(self) -> Option<u32> {
        self.checked_sub(1)
    }

    fn shared_bits(self, other: u32) -> u8 {
        (self ^ other).leading_zeros() as u8
    }

    fn bounds(block: Subnet) -> Option<(u32, Option<u32>)> {
        let IpAddr::V4(v4) = block.addr() else { return None };
        let size = 1u32.checked_shl(32 - u32::from(block.prefix()));
        Some((v4.to_bits(), size.and_then(|size| v4.to_bits().checked_add(size))))
    }
}

impl Address for u128 {
    const FIRST: u128 = 0;

    fn index(self) -> usize {
        (self >> (128 - u32::from(INDEX_BITS))) as usize
    }

    fn before(self) -> Option<u128> {
        self.checked_sub(1)
    }

    fn shared_bits(self, other: u128) -> u8 {
        (self ^ other).leading_zeros() as u8
    }

    fn bounds(block: Subnet) -> Option<(u128, Option<u128>)> {
        let IpAddr::V6(v6) = block.addr() else { return None };
        let size = 1u128.checked_shl(128 - u32::from(block.prefix()));
        Some((v6.to_bits(), size.and_then(|size| v6.to_bits().checked_add(size))))
    }
}

/// What holds from each point on until the next. The first point is the first address, and no
/// two points beside each other have equal values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ranges<A, T> {
    points: Vec<(A, T)>,
}

impl<A: Address, T: Copy + Eq> Ranges<A, T> {
    /// The same everywhere.
    pub(super) fn all(value: T) -> Ranges<A, T> {
        Ranges { points: vec![(A::FIRST, value)] }
    }

    /// `outside`, and within each block its value; of blocks within each other the smallest
    /// counts, of equal ones the first. Blocks of the other family are left out.
    pub(super) fn of_blocks(
        blocks: impl IntoIterator<Item = (Subnet, T)>,
        outside: T,
    ) -> Ranges<A, T> {
        let mut sorted: Vec<(A, u8, Option<A>, T)> = blocks
            .into_iter()
            .filter_map(|(block, value)| {
                let (start, end) = A::bounds(block)?;
                Some((start, block.prefix(), end, value))
            })
            .collect();
        sorted.sort_by_key(|(start, prefix, ..)| (*start, *prefix));
        sorted.dedup_by_key(|(start, prefix, ..)| (*start, *prefix));
        let mut ranges = Ranges::all(outside);
        // Blocks that are open: where each ends and what held around it.
        let mut open: Vec<(Option<A>, T)> = Vec::new();
        let mut current = outside;
        for (start, _, end, value) in sorted {
            ranges.close(&mut open, &mut current, Some(start));
            ranges.push(start, value);
            open.push((end, current));
            current = value;
        }
        ranges.close(&mut open, &mut current, None);
        ranges
    }

    /// Ends the blocks that lie before `upto`; all of them without.
    fn close(&mut self, open: &mut Vec<(Option<A>, T)>, current: &mut T, upto: Option<A>) {
        while let Some((end, around)) = open.last().copied() {
            if let (Some(end), Some(upto)) = (end, upto)
                && end > upto
            {
                return;
            }
            if end.is_none() && upto.is_some() {
                return;
            }
            if let Some(end) = end {
                self.push(end, around);
            }
            *current = around;
            open.pop();
        }
    }

    /// Adds a point at or behind the last one.
    fn push(&mut self, at: A, value: T) {
        if let Some(last) = self.points.last_mut()
            && last.0 == at
        {
            last.1 = value;
            // It may now be equal to the one before.
            if let [.., (_, before), (_, now)] = self.points.as_slice()
                && before == now
            {
                self.points.pop();
            }
            return;
        }
        if self.points.last().is_none_or(|(_, last)| *last != value) {
            self.points.push((at, value));
        }
    }

    /// The values of both lists, merged.
    pub(super) fn zip<U: Copy + Eq, V: Copy + Eq>(
        &self,
        other: &Ranges<A, U>,
        merge: impl Fn(T, U) -> V,
    ) -> Ranges<A, V> {
        let mut merged = Ranges { points: Vec::with_capacity(self.points.len()) };
        let (mut one, mut two) = (0, 0);
        let mut at = A::FIRST;
        loop {
            merged.push(at, merge(self.points[one].1, other.points[two].1));
            let next_one = self.points.get(one + 1).map(|(at, _)| *at);
            let next_two = other.points.get(two + 1).map(|(at, _)| *at);
            at = match (next_one, next_two) {
                (Some(a), Some(b)) => a.min(b),
                (Some(next), None) | (None, Some(next)) => next,
                (None, None) => return merged,
            };
            one += usize::from(next_one == Some(at));
            two += usize::from(next_two == Some(at));
        }
    }

    /// Every value replaced; points that no longer tell anything apart go.
    #[cfg(test)]
    fn map<V: Copy + Eq>(&self, to: impl Fn(T) -> V) -> Ranges<A, V> {
        let mut mapped = Ranges { points: Vec::with_capacity(self.points.len()) };
        for (at, value) in &self.points {
            mapped.push(*at, to(*value));
        }
        mapped.points.shrink_to_fit();
        mapped
    }
}

/// A list that is looked up by the million.
#[derive(Clone, Debug)]
pub(super) struct Lookup<A> {
    starts: Vec<A>,
    values: Vec<u32>,
    /// For each value of the leading bits: the first point at or behind its first address.
    index: Vec<u32>,
}

impl<A: Address> Lookup<A> {
    /// Prepares a list.
    pub(super) fn new(ranges: &Ranges<A, u32>) -> Lookup<A> {
        let starts: Vec<A> = ranges.points.iter().map(|(at, _)| *at).collect();
        let values = ranges.points.iter().map(|(_, value)| *value).collect();
        let mut index = Vec::with_capacity((1 << INDEX_BITS) + 1);
        let mut point = 0;
        for bits in 0..1usize << INDEX_BITS {
            while starts.get(point).is_some_and(|start| start.index() < bits) {
                point += 1;
            }
            index.push(u32::try_from(point).unwrap_or(u32::MAX));
        }
        index.push(u32::try_from(starts.len()).unwrap_or(u32::MAX));
        Lookup { starts, values, index }
    }

    /// The point that an address lies behind.
    pub(super) fn point(&self, addr: A) -> usize {
        let bits = addr.index();
        let (from, to) = (self.index[bits] as usize, self.index[bits + 1] as usize);
        let behind = from + self.starts[from..to].partition_point(|start| *start <= addr);
        // The first point is the first address, so there is always one at or before.
        behind.saturating_sub(1)
    }

    /// What holds at a point.
    pub(super) fn value(&self, point: usize) -> u32 {
        self.values[point]
    }

    /// All values, in the order of the points.
    pub(super) fn values(&self) -> &[u32] {
        &self.values
    }

    /// How many leading bits tell an address apart from everything outside of a run of points,
    /// from `first` up to but not including `behind`.
    pub(super) fn scope(&self, addr: A, first: usize, behind: usize) -> u8 {
        let apart = |other: A| addr.shared_bits(other) + 1;
        let below = self.starts[first].before().map_or(0, apart);
        let above = self.starts.get(behind).map_or(0, |next| apart(*next));
        below.max(above)
    }

    /// Bytes of memory it takes.
    pub(super) fn bytes(&self) -> usize {
        self.starts.len() * (size_of::<A>() + size_of::<u32>())
            + self.index.len() * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    fn any_block() -> impl Strategy<Value = Subnet> {
        prop_oneof![
            (any::<[u8; 4]>(), 0..=32u8).prop_map(|(addr, prefix)| Subnet::of(addr.into(), prefix)),
            // Few leading bits vary, so that blocks nest and touch.
            (0..64u8, 0..=8u8).prop_map(|(first, prefix)| {
                Subnet::of(IpAddr::from([first << 2, 0, 0, 0]), prefix)
            }),
            Just("255.255.255.0/24".parse().unwrap()),
            Just("255.255.255.255/32".parse().unwrap()),
        ]
    }

    fn covers(block: Subnet, addr: u32) -> bool {
        Subnet::of(IpAddr::from(addr.to_be_bytes()), block.prefix()) == block
    }

    /// By looking at every block.
    fn covering(blocks: &[(Subnet, u32)], addr: u32) -> u32 {
        let found = blocks.iter().filter(|(block, _)| covers(*block, addr));
        // Of equal ones the first: `max_by_key` would take the last.
        found.rev().max_by_key(|(block, _)| block.prefix()).map_or(0, |(_, value)| *value)
    }

    proptest! {
        #[test]
        fn a_list_agrees_with_its_blocks_and_a_scope_holds_for_all_in_it(
            blocks in prop::collection::vec((any_block(), 1..4u32), 0..20),
            over in prop::collection::vec((any_block(), 1..4u32), 0..5),
            addr in any::<u32>(),
            other in any::<u32>(),
        ) {
            let base: Ranges<u32, u32> = Ranges::of_blocks(blocks.iter().copied(), 0);
            let top: Ranges<u32, u32> = Ranges::of_blocks(over.iter().copied(), 0);
            let both = top.zip(&base, |top, base| if top == 0 { base } else { top });
            let expected = |addr| match covering(&over, addr) {
                0 => covering(&blocks, addr),
                value => value,
            };
            for pair in both.points.windows(2) {
                prop_assert!(pair[0].0 < pair[1].0 && pair[0].1 != pair[1].1);
            }
            let lookup = Lookup::new(&both);
            // Addresses at the edges of blocks are the ones that go wrong.
            let edges = blocks.iter().chain(&over).flat_map(|(block, _)| {
                let (start, end) = u32::bounds(*block).unwrap();
                [Some(start), start.checked_sub(1), end, end.and_then(|end| end.checked_sub(1))]
            });
            for addr in edges.flatten().chain([addr, 0, u32::MAX]) {
                let point = lookup.point(addr);
                let (value, scope) = (lookup.value(point), lookup.scope(addr, point, point + 1));
                prop_assert_eq!(value, expected(addr));
                let mask = u32::MAX.checked_shl(32 - u32::from(scope)).unwrap_or(0);
                let neighbour = (addr & mask) | (other & !mask);
                prop_assert_eq!(expected(neighbour), value, "scope {}", scope);
                // It is the largest such block.
                if scope > 0 {
                    let half = 1u32 << (32 - scope);
                    let first = (addr ^ half) & mask;
                    let last = first | !mask;
                    let same = both.map(|other| other == value);
                    let at = same.points.partition_point(|(at, _)| *at <= first) - 1;
                    let whole = same.points[at].1
                        && same.points.get(at + 1).is_none_or(|(next, _)| *next > last);
                    prop_assert!(!whole, "the other half of {addr:x}/{scope} is the same");
                }
            }
        }
    }

    #[test]
    fn addresses_of_16_bytes_too() {
        let blocks = [("2001:db8::/32", 1), ("2001:db8:8000::/33", 2), ("10.0.0.0/8", 9)];
        let blocks = blocks.map(|(block, value)| (block.parse().unwrap(), value));
        let ranges: Ranges<u128, u32> = Ranges::of_blocks(blocks, 0);
        let lookup = Lookup::new(&ranges);
        let found = |lookup: &Lookup<u128>, addr| {
            let point = lookup.point(addr);
            (lookup.value(point), lookup.scope(addr, point, point + 1))
        };
        let find =
            |addr: &str| found(&lookup, addr.parse::<std::net::Ipv6Addr>().unwrap().to_bits());
        assert_eq!(find("2001:db8::1"), (1, 33));
        assert_eq!(find("2001:db8:8000::1"), (2, 33));
        assert_eq!(find("::1"), (0, 3));
        assert_eq!(find("ffff::"), (0, 1));
        assert_eq!(ranges.points.len(), 4);
        let whole: Ranges<u128, u32> = Ranges::of_blocks([("::/0".parse().unwrap(), 5)], 0);
        assert_eq!(found(&Lookup::new(&whole), 7), (5, 0));
    }
}
